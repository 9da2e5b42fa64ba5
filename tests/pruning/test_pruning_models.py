# SPDX-License-Identifier: Apache-2.0
"""The axis tables describe stock models completely, and refuse what they do not describe."""

import re
from dataclasses import replace
from math import prod

import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from edvit_hf.architectures.axes import Widths
from edvit_hf.architectures.tables import VIT
from edvit_hf.errors import PruningError
from edvit_hf.pruning import ARCHITECTURES, PruneConfig, architecture_of
from edvit_hf.pruning.models import norm_modules
from support.tiny_architectures import ARCHITECTURE_NAMES, tiny_inputs, tiny_model, tiny_vit


def test_the_vit_table_covers_a_stock_model_and_nothing_else(teacher):
    architecture = architecture_of(teacher)
    located = {name: architecture.locate(name) for name in teacher.state_dict()}
    assert located["vit.layers.1.mlp.fc1.weight"] == (("ffn", "residual"), 1)
    assert located["classifier.weight"] == (("label", "residual"), None)
    templates = {re.sub(r"\.\d+\.", ".{layer}.", name) for name in located}
    assert templates == set(architecture.parameters)


def test_widths_are_read_from_the_config(teacher):
    assert architecture_of(teacher).widths(teacher.config) == Widths(
        residual=32, heads=4, head_dim=8, ffn=64, labels=4, layers=2
    )


def test_explicit_head_dim_is_honoured():
    config = ViTConfig(hidden_size=32, num_attention_heads=2, head_dim=4, num_labels=3)
    assert VIT.widths(config).attention == 8


@pytest.mark.parametrize("name", ARCHITECTURE_NAMES)
def test_every_layer_norm_of_the_model_is_in_the_table(name):
    model = tiny_model(name)
    expected = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert len(expected) >= 5
    assert set(map(id, norm_modules(architecture_of(model), model))) == set(map(id, expected))


READ_BY = {
    "bert": lambda model, feature: model.classifier(model.bert.pooler.dense(feature).tanh()),
    "distilbert": lambda model, feature: model.classifier(model.pre_classifier(feature).relu()),
}


@pytest.mark.parametrize("name", ARCHITECTURE_NAMES)
def test_the_feature_is_what_the_head_reads(name):
    model, architecture = tiny_model(name), ARCHITECTURES[name]
    seen = []
    norm = model.get_submodule(architecture.feature_norm.format(last=1))
    handle = norm.register_forward_hook(lambda _module, _args, output: seen.append(output))
    logits = model(**tiny_inputs(name)).logits
    handle.remove()
    feature = seen[0][:, list(architecture.feature_tokens)].mean(dim=1)
    head = READ_BY.get(name, lambda model, feature: model.classifier(feature))
    torch.testing.assert_close(head(model, feature), logits)


def test_an_extra_parameter_is_refused_by_name(teacher):
    teacher.vit.layers[1].adapter = nn.Linear(2, 2)
    with pytest.raises(PruningError, match=r"vit\.layers\.1\.adapter\.weight"):
        architecture_of(teacher)


def test_a_model_without_a_classifier_is_refused():
    config = tiny_vit().config
    with pytest.raises(PruningError, match=r"cls_token"):
        architecture_of(ViTModel(config))
    with pytest.raises(PruningError, match=r"classifier\.(weight|bias)"):
        architecture_of(ViTForImageClassification(ViTConfig(**{**config.to_dict(), "num_labels": 0})))


def test_a_parameter_of_another_size_than_the_config_says_is_refused(teacher):
    teacher.vit.layers[0].mlp.fc1 = nn.Linear(32, 63)
    with pytest.raises(PruningError, match=r"layers\.0\.mlp\.fc1.*63.*64"):
        architecture_of(teacher)


def test_missing_biases_are_allowed():
    config = ViTConfig(**{**tiny_vit().config.to_dict(), "qkv_bias": False})
    assert architecture_of(ViTForImageClassification(config)) is ARCHITECTURES["vit"]


def counted(widths, config):
    return sum(prod(shape) for shape in VIT.shapes(config, widths).values())


@pytest.mark.parametrize(("residual", "heads", "ffn", "labels"), [(32, 4, 64, 4), (16, 2, 32, 3), (17, 1, 5, 2)])
def test_counted_parameters_equal_those_of_a_built_model(teacher, residual, heads, ffn, labels):
    widths = replace(VIT.widths(teacher.config), residual=residual, heads=heads, ffn=ffn, labels=labels)
    config = ViTConfig(**{**teacher.config.to_dict(), "id2label": {i: str(i) for i in range(labels)}})
    VIT.set_widths(config, widths)
    built = sum(p.numel() for p in ViTForImageClassification(config).parameters())
    assert counted(widths, teacher.config) == built


def test_counting_leaves_config_and_generator_alone(teacher):
    before, state = teacher.config.to_dict(), torch.get_rng_state()
    counted(VIT.widths(teacher.config), teacher.config)
    assert teacher.config.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_tied_widths_may_not_be_parted(teacher):
    tied = replace(VIT, honours_head_dim=False)
    widths = tied.widths(teacher.config)
    tied.check_ties(teacher.config, replace(widths, residual=16, heads=2, ffn=64, labels=4))
    with pytest.raises(PruningError, match="Keep 16 residual channels"):
        tied.set_widths(teacher.config, replace(widths, residual=20, heads=2, ffn=64, labels=4))


@pytest.mark.parametrize(
    "values",
    [
        {"keep_heads": 0},
        {"keep_heads": "all"},
        {"importance": "gradient"},
        {"samples_per_class": 0},
        {"batch_size": True},
        {"seed": -1},
        {"seed": 0.5},
        {"keep_heads": []},
        {"keep_heads": [2, 0]},
    ],
)
def test_pruning_values_that_cannot_be_followed_are_refused(values):
    with pytest.raises(PruningError, match=next(iter(values))):
        PruneConfig(**values)


def test_a_list_of_keeps_is_a_tuple_of_them():
    assert PruneConfig(keep_heads=[2, 2]) == PruneConfig(keep_heads=(2, 2))


def test_the_defaults_are_those_that_were_measured_best():
    config = PruneConfig()
    assert (config.importance, config.compensate, config.compensation_samples) == ("fisher", True, 1024)


def test_the_config_is_light():
    import subprocess
    import sys

    code = "import sys; from edvit_hf.pruning.config import PruneConfig; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
