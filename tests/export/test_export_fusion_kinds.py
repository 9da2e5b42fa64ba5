# SPDX-License-Identifier: Apache-2.0
"""Every kind of fusion is exported to one form and answers as in torch, whoever is absent and whatever they left."""

import itertools
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import ViTConfig

from edvit_hf.configuration_edvit import EDViTConfig
from edvit_hf.errors import DataError
from edvit_hf.evaluation.evaluator import EvaluateConfig
from edvit_hf.export import ExportConfig
from edvit_hf.export.graphs.draw import FusionGraph, draw_graph, save_graph
from edvit_hf.export.optimum_config import FUSION_MODEL_TYPE, resolve_onnx_config
from edvit_hf.modeling_edvit import ResidualFusion, VoteAverage
from edvit_hf.parts_edvit import make_fusion
from edvit_hf.probabilities import softmax
from edvit_hf.published import export, measure
from edvit_hf.published.plan import plan_published
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.runtime.answers import Fusion
from edvit_hf.runtime.engines import SubModelResponse
from edvit_hf.tasks import FUSION_INPUTS
from support.tiny_export import PIXELS, SHAPES_OF_FUSION, SPLITS, exported_fusion, exported_images

NUM_CLASSES, WIDTH = 6, 4


def random_groups(seed, num_sub_models=3):
    """Overlapping groups that cover the classes, each in an order of its own; with seed 0 all know all."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, NUM_CLASSES + 1, num_sub_models) if seed else [NUM_CLASSES] * num_sub_models
    groups = [[int(c) for c in random.permutation(NUM_CLASSES)[:size]] for size in sizes]
    missing = sorted(set(range(NUM_CLASSES)) - {c for group in groups for c in group})
    return [*groups[:-1], groups[-1] + missing]


def drawn_fusion(kind, seed, path):
    """A fusion with random weights over random groups, and its graph at `path`."""
    groups = random_groups(seed)
    sizes = {"hidden_size": WIDTH, "num_attention_heads": 1, "intermediate_size": 4, "num_hidden_layers": 1}
    stock = [
        ViTConfig(image_size=8, patch_size=4, num_labels=len(g) + (len(g) < NUM_CLASSES), **sizes).to_dict()
        for g in groups
    ]
    config = EDViTConfig(
        sub_model_configs=stock, class_groups=groups, fusion_kind=kind, fusion_other="spread", fusion_hidden_size=5
    )
    torch.manual_seed(seed)
    fusion = make_fusion(config).eval()
    if isinstance(fusion, VoteAverage | ResidualFusion):
        fusion.set_temperatures(torch.rand(len(groups)) + 0.5)
    if isinstance(fusion, ResidualFusion):
        fusion.set_scale(0.8)
    onnx_config = resolve_onnx_config(config, model_type=FUSION_MODEL_TYPE)
    save_graph(draw_graph(FusionGraph(fusion).eval(), onnx_config, opset=20), path)
    return config, fusion


# A head on features alone reads no votes: groups change nothing about it.
DRAWN = [*itertools.product(["average", "residual"], [0, 1, 2]), ("mlp", 1)]


@pytest.mark.parametrize(("kind", "seed"), DRAWN)
def test_torch_onnx_and_runtime_agree_for_every_mask_whatever_the_absent_left(kind, seed, tmp_path):
    config, fusion = drawn_fusion(kind, seed, tmp_path / "fusion.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "fusion.onnx", providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == list(FUSION_INPUTS)
    entries = [SimpleNamespace(feature_size=WIDTH) for _ in config.class_groups]
    runtime = Fusion(SimpleNamespace(sub_models=entries, vote_sizes=config.vote_sizes), session)
    random = np.random.default_rng(seed)
    for rows, mask in zip(itertools.cycle([1, 2, 5]), itertools.product([True, False], repeat=3), strict=False):
        features, votes = (
            [random.normal(size=(rows, size)).astype(np.float32) for size in sizes]
            for sizes in (config.feature_sizes, config.vote_sizes)
        )
        spoilt = [[np.where(there, part, np.float32(np.nan)) for part, there in zip(parts, mask, strict=True)]
                  for parts in (features, votes)]  # fmt: skip
        joined = [np.concatenate(parts, axis=1).astype(np.float32) for parts in spoilt]
        given = np.tile(np.float32(mask), (rows, 1))
        with torch.no_grad():
            expected = fusion(*map(torch.from_numpy, joined), torch.from_numpy(given)).numpy()
        assert np.isfinite(expected).all()
        (logits,) = session.run(["logits"], dict(zip(FUSION_INPUTS, [*joined, given], strict=True)))
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        whole = dict(zip(FUSION_INPUTS, joined, strict=False))
        np.testing.assert_allclose(runtime.probabilities(whole, mask), softmax(expected), atol=1e-6)
        if any(mask):
            about = {"request_id": "", "content_hash": "", "compute_ms": 0.0}
            responses = {
                i: SubModelResponse(sub_model=i, features=features[i], logits=votes[i], **about)
                for i in range(3)
                if mask[i]
            }
            fused = runtime.fused(runtime.join(responses), mask)
            np.testing.assert_allclose(fused, softmax(expected), atol=1e-6)
    runtime.close()


@pytest.fixture(scope="module", params=sorted(SHAPES_OF_FUSION))
def exported(request, tmp_path_factory):
    return request.param, *exported_fusion(tmp_path_factory, request.param)


def test_the_manifest_says_how_answers_are_fused(exported):
    shape, _, model, manifest = exported
    kind = "average" if shape == "replica" else shape
    assert (manifest.schema_version, manifest.fusion.kind) == (4, kind)
    assert manifest.class_groups == SHAPES_OF_FUSION[shape]
    assert manifest.vote_sizes == [entry.vote_size for entry in manifest.sub_models] == model.config.vote_sizes
    assert manifest.focus_groups == model.config.focus_groups
    assert {variant.precision for variant in manifest.fusion.variants} == {"fp32"}
    assert manifest.ensemble.parity.argmax_agreement == 1.0


@torch.no_grad()
def test_losses_are_gated_and_told_for_what_each_sub_model_was_cut_for_though_it_votes_over_more(exported, monkeypatch):
    _, root, model, manifest = exported
    gating = model(torch.from_numpy(PIXELS[SPLITS["validation"]])).logits.argmax(1).numpy()
    for gate in manifest.ensemble.gates.values():
        assert [g["num_items"] for g in gate["groups"]] == [np.isin(gating, f).sum() for f in model.config.focus_groups]
    labels = np.arange(8) % 4
    always_0 = np.tile(np.float32([1, 0, 0, 0]), (8, 1))
    monkeypatch.setattr(measure, "_logits", lambda runtime, data, wanted, *_: ([always_0] * len(wanted), labels))
    data = SimpleNamespace(label_names=manifest.label_names)
    row = measure._measure(root, data, EvaluateConfig(), "fp32", None, None)["rows"][0]
    assert row["per_group_accuracy"] == [1.0, 0.0][: len(manifest.sub_models)]


@torch.no_grad()
def test_a_vote_over_more_than_it_was_cut_for_says_what_its_group_accuracy_is_over(exported):
    _, _, model, manifest = exported
    labels = model(torch.from_numpy(PIXELS[SPLITS["test"]])).logits.argmax(1).numpy()
    for index, entry in enumerate(manifest.sub_models):
        (focus,), group = model.config.focus_groups[index], model.config.class_groups[index]
        votes = model.sub_models[index](torch.from_numpy(PIXELS[SPLITS["test"]])).logits.argmax(1).numpy()
        own = labels == focus
        expected = (votes[own] == group.index(focus)).mean() if own.any() else None
        row = entry.variants[0].accuracy
        assert row["group_accuracy"] == (None if expected is None else pytest.approx(expected))
        assert row["group_accuracy_over"] == "focus_groups"


def test_a_vote_over_what_it_was_cut_for_is_told_as_ever(tmp_path_factory):
    _, _, _, manifest = exported_images(tmp_path_factory)
    assert all("group_accuracy_over" not in v.accuracy for e in manifest.sub_models for v in e.variants)


def test_accuracy_per_group_is_asked_for_what_each_sub_model_was_cut_for(exported, monkeypatch):
    _, root, model, _ = exported
    asked = []
    monkeypatch.setattr(export, "Measured", lambda **_: SimpleNamespace(options=[], whole=lambda: (None, {})))
    monkeypatch.setattr(export, "described", str)

    def measured_on(data, groups, *_):
        asked.append(groups)
        raise DataError("enough")

    monkeypatch.setattr(export, "measured_on", measured_on)
    with pytest.raises(DataError, match="enough"):
        export.export_folder(root, ExportConfig(), data_dir=root)
    assert asked == [model.config.focus_groups]


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_runtime_answers_as_torch_does_with_any_sub_model_absent(exported, precision):
    _, root, model, manifest = exported
    count, close = len(manifest.sub_models), {"fp32": 1e-5, "fp16": 2e-2, "int8": 0.2}[precision]
    subsets = [(i,) for i in range(count)] if count > 1 else []
    with EDViTRuntime.from_pretrained(root, precision=precision, schedule="in_turn") as runtime:
        answer, without = runtime.predict_without(PIXELS[:5], subsets)
        for subset, found in zip([(), *subsets], [answer.probabilities, *without], strict=True):
            mask = torch.tensor([i not in subset for i in range(count)])
            expected = model(torch.from_numpy(PIXELS[:5]), sub_model_mask=mask).logits.softmax(1).numpy()
            np.testing.assert_allclose(found, expected, atol=close)
            if precision == "fp32":
                alone = runtime.predict(PIXELS[:5], absent=subset)
                np.testing.assert_allclose(alone.probabilities, expected, atol=1e-5)


@torch.no_grad()
def test_the_graph_of_the_whole_answers_as_torch_does_and_holds_nothing_that_is_not_read(exported):
    shape, root, model, manifest = exported
    (file,) = [variant.file for variant in manifest.whole if variant.precision == "fp32"]
    session = onnxruntime.InferenceSession(root / file, providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == ["pixel_values"]
    (logits,) = session.run(["logits"], {"pixel_values": PIXELS[:3]})
    np.testing.assert_allclose(logits, model(torch.from_numpy(PIXELS[:3])).logits.numpy(), atol=1e-5)
    graph = onnx.load(root / file).graph
    read = {name for node in graph.node for name in node.input}
    made = {name for node in graph.node for name in node.output}
    assert made - read == {"logits"}
    assert ("fusion/features" in made) == (shape == "residual")


def test_devices_send_what_the_kind_of_fusion_looks_at(exported):
    shape, root, _, _ = exported
    sizes = {"replica": [4], "average": [4, 4], "residual": [16 + 4, 16 + 3]}[shape]
    with EDViTRuntime.from_pretrained(root, schedule="in_turn") as runtime:
        assert [runtime.sent_bytes(i) for i in range(len(sizes))] == [4 * size for size in sizes]
        assert list(runtime.predict(PIXELS[:2]).bytes_sent) == [8 * size for size in sizes]
    planned, _ = plan_published(str(root))
    assert [s.feature_bytes for s in planned.sub_models] == [4 * size for size in sizes]


def test_a_class_is_missing_only_where_nobody_present_knows_it(exported):
    shape, root, _, _ = exported
    with EDViTRuntime.from_pretrained(root, schedule="in_turn") as runtime:
        assert runtime.predict(PIXELS[:1]).missing_classes == ()
        if shape == "residual":
            assert runtime.predict(PIXELS[:1], absent=[0]).missing_classes == ("c0", "c2")
            assert runtime.predict(PIXELS[:1], absent=[1]).missing_classes == ("c3",)
        if shape == "average":
            assert runtime.predict(PIXELS[:1], absent=[0]).missing_classes == ()
