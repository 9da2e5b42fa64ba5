# SPDX-License-Identifier: Apache-2.0
"""Labels are one class for each row, or the loss refuses them; no forward changes what an ensemble is."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from edvit_hf.auto import EDViTForImageClassification
from support.torch_ensemble import NAMES, mixed_ensemble, mixed_inputs, tiny_sub_model, tiny_torch_ensemble

CLASSES = [0, 4, 2, 1]
WHOLE_NUMBERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
WHOLE_NUMBERS += [torch.uint16, torch.uint32, torch.uint64]


@pytest.fixture(scope="module")
def ensemble():
    return tiny_torch_ensemble()


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


# The stock loss turns a model into a multi-label one for good when the first labels that it sees are uint8.
@pytest.mark.parametrize("dtype", WHOLE_NUMBERS)
def test_whole_numbers_of_every_width_mean_the_same_classes_and_leave_the_config_alone(ensemble, pixels, dtype):
    before = ensemble.config.to_json_string()
    expected = F.cross_entropy(ensemble(pixels).logits, torch.tensor(CLASSES))
    loss = ensemble(pixels, labels=torch.tensor(CLASSES).to(dtype)).loss
    assert torch.allclose(loss, expected)
    assert ensemble.config.to_json_string() == before
    assert ensemble.config.problem_type is None


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (torch.tensor(CLASSES).float(), r"torch.float32 of shape \(4,\)"),
        (torch.tensor(CLASSES).bfloat16(), "torch.bfloat16"),
        (torch.tensor([True, False, True, True]), "torch.bool"),
        (torch.tensor(CLASSES) * 1j, "torch.complex64"),
        (F.one_hot(torch.tensor(CLASSES), 5), r"torch.int64 of shape \(4, 5\)"),
        (F.one_hot(torch.tensor(CLASSES), 5).float(), r"torch.float32 of shape \(4, 5\)"),
        (torch.tensor(CLASSES)[:, None], r".*shape \(4, 1\)"),
        (torch.tensor(CLASSES[:3]), r".*shape \(3,\)"),
        (torch.tensor(1), r".*shape \(\)"),
        (torch.tensor([], dtype=torch.long), r".*shape \(0,\)"),
        (torch.tensor([0, 1, 2, 5]), r"torch.int64 of shape \(4,\) from 0 to 5"),
        (torch.tensor([0, 1, 2, -1]), ".*from -1 to 2"),
        (torch.tensor([0, 1, 2, -100]), ".*from -100 to 2"),
        (torch.tensor([0, 1, 2, 255], dtype=torch.uint8), "torch.uint8 of shape .* from 0 to 255"),
        (CLASSES, "a list"),
        (np.array(CLASSES), "a ndarray"),
        (2, "a int"),
    ],
)
def test_any_other_labels_are_refused_and_named(ensemble, pixels, labels, found):
    before = ensemble.config.to_json_string()
    with pytest.raises(ValueError, match=f"Expected `labels` to be a tensor of class ids 0..4, .*got {found}"):
        ensemble(pixels, labels=labels)
    assert ensemble.config.to_json_string() == before


@pytest.mark.parametrize("task", ["audio-classification", "text-classification"])
def test_ensembles_of_other_tasks_are_as_strict(task):
    ensemble, inputs = mixed_ensemble(task), mixed_inputs(task)
    logits = ensemble(**inputs).logits
    loss = ensemble(**inputs, labels=torch.tensor(CLASSES, dtype=torch.uint8)).loss
    assert torch.allclose(loss, F.cross_entropy(logits, torch.tensor(CLASSES)))
    with pytest.raises(ValueError, match=r"got torch\.float32"):
        ensemble(**inputs, labels=torch.rand(4, len(NAMES)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_of_half_precision_is_computed_in_float32(pixels, dtype):
    ensemble = tiny_torch_ensemble().to(dtype)
    output = ensemble(pixels.to(dtype), labels=torch.tensor(CLASSES))
    assert output.logits.dtype == dtype
    assert output.loss.dtype == torch.float32
    assert torch.allclose(output.loss, F.cross_entropy(output.logits.float(), torch.tensor(CLASSES)))


def test_an_ensemble_of_one_class_is_no_regression(pixels):
    names = {0: "a"}
    sub = tiny_sub_model([0], names=["a"])
    ensemble = EDViTForImageClassification.from_sub_models([sub], [[0]], id2label=names)
    assert ensemble(pixels, labels=torch.zeros(4, dtype=torch.long)).loss.item() == 0
    assert ensemble.config.problem_type is None
    with pytest.raises(ValueError, match=r"got torch\.float32"):
        ensemble(pixels, labels=torch.rand(4))


# A sub-model is a stock model; what it is asked by itself must not turn it into another kind either.
@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 2, 0], dtype=torch.uint8), torch.rand(4)])
def test_a_sub_model_that_is_trained_by_itself_stays_single_label(pixels, labels, tmp_path):
    ensemble = tiny_torch_ensemble()
    sub_model = ensemble.sub_models[0]
    if labels.is_floating_point():
        with pytest.raises(RuntimeError, match="Long"):
            sub_model(pixels, labels=labels)
    else:
        assert torch.allclose(sub_model(pixels, labels=labels).loss, F.cross_entropy(sub_model(pixels).logits, labels))
    assert sub_model.config.problem_type == "single_label_classification"
    sub_model.config.problem_type = "multi_label_classification"  # by hand
    with pytest.raises(ValueError, match="`problem_type` of sub-model 0"):
        ensemble.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification"])
def test_a_kind_of_problem_set_by_hand_is_refused_before_anything_is_written(kind, tmp_path):
    ensemble = tiny_torch_ensemble()
    ensemble.config.problem_type = kind
    with pytest.raises(ValueError, match="`problem_type` of the ensemble"):
        ensemble.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    sub_models = [tiny_sub_model(group) for group in ([0, 1], [2, 3])]
    sub_models[1].config.problem_type = kind
    with pytest.raises(ValueError, match="`problem_type` of sub-model 1"):
        EDViTForImageClassification.from_sub_models(sub_models, [[0, 1], [2, 3]], id2label=dict(enumerate(NAMES[:4])))
