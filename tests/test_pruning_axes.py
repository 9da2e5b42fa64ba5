"""The axis tables describe stock models completely, and refuse what they do not describe."""

import re

import pytest
import torch
from torch import nn
from transformers import BertConfig, ViTConfig, ViTForImageClassification, ViTModel

from conftest import tiny_vit
from edvit_hf.errors import PruningError
from edvit_hf.pruning import ARCHITECTURES, PruneConfig, architecture_of
from edvit_hf.pruning.axes import VIT, Widths, resized


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


@pytest.mark.parametrize("norm_count", [5])
def test_every_layer_norm_of_the_model_is_in_the_table(teacher, norm_count):
    expected = [module for module in teacher.modules() if isinstance(module, nn.LayerNorm)]
    assert len(expected) == norm_count
    assert set(map(id, architecture_of(teacher).norm_modules(teacher))) == set(map(id, expected))


def test_the_feature_is_what_the_classifier_reads(teacher):
    architecture, pixel_values = architecture_of(teacher), torch.randn(2, 3, 8, 8)
    seen = []
    norm = teacher.get_submodule(architecture.feature_norm)
    handle = norm.register_forward_hook(lambda _module, _args, output: seen.append(output))
    logits = teacher(pixel_values).logits
    handle.remove()
    feature = seen[0][:, list(architecture.feature_tokens)].mean(dim=1)
    assert torch.equal(teacher.get_submodule(architecture.classifier)(feature), logits)


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(PruningError, match=r"'bert'; known: .*vit"):
        architecture_of(BertConfig())


def test_an_extra_parameter_is_refused_by_name(teacher):
    teacher.vit.layers[1].adapter = nn.Linear(2, 2)
    with pytest.raises(PruningError, match=r"vit\.layers\.1\.adapter\.weight"):
        architecture_of(teacher)


def test_a_model_without_a_classifier_is_refused():
    config = tiny_vit().config
    with pytest.raises(PruningError, match=r"cls_token"):
        architecture_of(ViTModel(config))
    with pytest.raises(PruningError, match=r"classifier\.weight"):
        architecture_of(ViTForImageClassification(ViTConfig(**{**config.to_dict(), "num_labels": 0})))


def test_a_parameter_of_another_size_than_the_config_says_is_refused(teacher):
    teacher.vit.layers[0].mlp.fc1 = nn.Linear(32, 63)
    with pytest.raises(PruningError, match=r"layers\.0\.mlp\.fc1.*63.*64"):
        architecture_of(teacher)


def test_missing_biases_are_allowed():
    config = ViTConfig(**{**tiny_vit().config.to_dict(), "qkv_bias": False})
    assert architecture_of(ViTForImageClassification(config)) is ARCHITECTURES["vit"]


@pytest.mark.parametrize(("residual", "heads", "ffn", "labels"), [(32, 4, 64, 4), (16, 2, 32, 3), (17, 1, 5, 2)])
def test_counted_parameters_equal_those_of_a_built_model(teacher, residual, heads, ffn, labels):
    widths = resized(VIT.widths(teacher.config), residual=residual, heads=heads, ffn=ffn, labels=labels)
    config = ViTConfig(**{**teacher.config.to_dict(), "id2label": {i: str(i) for i in range(labels)}})
    VIT.set_widths(config, widths)
    built = sum(p.numel() for p in ViTForImageClassification(config).parameters())
    assert VIT.count_parameters(teacher.config, widths) == built


def test_counting_leaves_config_and_generator_alone(teacher):
    before, state = teacher.config.to_dict(), torch.get_rng_state()
    VIT.count_parameters(teacher.config, VIT.widths(teacher.config))
    assert teacher.config.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_tied_widths_may_not_be_parted(teacher):
    from dataclasses import replace

    tied = replace(VIT, honours_head_dim=False)
    widths = tied.widths(teacher.config)
    tied.check_tie(resized(widths, residual=16, heads=2, ffn=64, labels=4))
    with pytest.raises(PruningError, match="Keep 16 residual channels"):
        tied.set_widths(teacher.config, resized(widths, residual=20, heads=2, ffn=64, labels=4))


@pytest.mark.parametrize(
    "values",
    [
        {"keep_heads": 0},
        {"keep_heads": "all"},
        {"importance": "taylor"},
        {"samples_per_class": 0},
        {"batch_size": True},
    ],
)
def test_pruning_values_that_cannot_be_followed_are_refused(values):
    with pytest.raises(PruningError, match=next(iter(values))):
        PruneConfig(**values)


def test_the_config_is_light():
    import subprocess
    import sys

    code = "import sys; from edvit_hf.pruning.config import PruneConfig; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
