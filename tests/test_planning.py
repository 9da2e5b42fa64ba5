import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig, ViTForImageClassification

from edvit_hf.errors import BudgetError, RecipeError
from edvit_hf.planning import MIB, Device, EncoderShape, Fleet, Plan, fusion_parameters, load_fleet, plan

VIT_BASE = EncoderShape.from_config({"model_type": "vit"}, num_labels=10)
GROUPS = [[0, 1], [2, 3], [4]]


def small_shape(heads=4, layers=2, labels=5):
    config = {"hidden_size": 8 * heads, "num_attention_heads": heads, "num_hidden_layers": layers,
              "intermediate_size": 12 * heads, "image_size": 8, "patch_size": 4}  # fmt: skip
    return EncoderShape.from_config(config, num_labels=labels)


def fleet(count=3, **budgets):
    devices = tuple(Device(name=f"d{i}", profile="x86-avx2", **budgets) for i in range(count))
    return Fleet(devices=devices, name="test")


def test_vit_base_and_its_two_of_twelve_heads_match_the_published_arithmetic():
    assert round(VIT_BASE.parameters / 1e6, 2) == 85.81
    assert round(VIT_BASE.macs / 1e9, 2) == 17.56
    kept = VIT_BASE.keep(2, num_labels=10)
    assert round(kept.parameters / 1e6, 2) == 2.50
    assert round(VIT_BASE.parameters / kept.parameters, 2) == 34.26
    assert round(VIT_BASE.macs / kept.macs, 2) == 29.11


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(2, 6), st.booleans())
def test_costs_equal_those_of_the_built_model(heads, layers, labels, qkv_bias):
    shape = dataclasses.replace(small_shape(heads, layers, labels), qkv_bias=qkv_bias)
    model = ViTForImageClassification(
        ViTConfig(hidden_size=8 * heads, num_attention_heads=heads, num_hidden_layers=layers, qkv_bias=qkv_bias,
                  intermediate_size=12 * heads, image_size=8, patch_size=4, num_labels=labels,
                  attn_implementation="eager")
    ).eval()  # fmt: skip
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, 8, 8))
    assert counter.get_total_flops() == 2 * shape.macs


def test_the_given_keep_is_used_and_every_sub_model_is_placed():
    result = plan(small_shape(), GROUPS, fleet(), keep_heads=2, fusion_hidden_size=16)
    assert {s.keep_heads for s in result.sub_models} == {2}
    assert sorted(s.device for s in result.sub_models) == ["d0", "d1", "d2"]
    assert result.fusion_parameters == fusion_parameters([16] * 3, 5, 16)
    assert [s.class_group for s in result.sub_models] == GROUPS


def test_auto_takes_the_largest_keep_that_fits_every_device():
    shape = small_shape()
    sizes = {k: shape.keep(k, num_labels=3).bytes / MIB for k in (1, 2, 3)}
    result = plan(shape, GROUPS, fleet(memory_mib=(sizes[2] + sizes[3]) / 2), keep_heads=None, fusion_hidden_size=0)
    assert result.keep_heads == 2


def test_fewer_devices_than_sub_models_share_their_memory():
    result = plan(small_shape(), GROUPS, fleet(2), keep_heads=1, fusion_hidden_size=0)
    assert sorted(s.device for s in result.sub_models) in (["d0", "d0", "d1"], ["d0", "d1", "d1"])


@pytest.mark.parametrize(
    ("budget", "message"),
    [({"memory_mib": 0.0001}, "largest free memory"), ({"macs": 10}, "no device has that much left")],
)
def test_a_plan_that_cannot_fit_names_the_budget(budget, message):
    with pytest.raises(BudgetError, match=message):
        plan(small_shape(), GROUPS, fleet(**budget), keep_heads=None, fusion_hidden_size=0)


def test_the_total_budget_binds_too():
    tight = Fleet(devices=fleet().devices, total_mib=0.001, name="tight")
    with pytest.raises(BudgetError, match="total_mib"):
        plan(small_shape(), GROUPS, tight, keep_heads=1, fusion_hidden_size=0)


@pytest.mark.parametrize("keep", [0, -1, 5])
def test_a_keep_outside_the_teachers_heads_is_refused(keep):
    with pytest.raises(RecipeError, match="between 1 and the teacher's 4 heads"):
        plan(small_shape(), GROUPS, fleet(), keep_heads=keep, fusion_hidden_size=0)


def test_a_plan_survives_its_file(tmp_path):
    result = plan(small_shape(), GROUPS, fleet(), keep_heads=2, fusion_hidden_size=16)
    result.save(tmp_path / "plan.json")
    import json

    assert Plan.from_dict(json.loads((tmp_path / "plan.json").read_text())) == result
    assert "keep 2 of 4 heads" in str(result)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("devices: []", "at least one device"),
        ("devices: [{name: a, profile: x86-avx2}, {name: a, profile: x86-avx2}]", "unique"),
        ("devices: [{name: a, profile: abacus}]", "unknown profile 'abacus'"),
        ("devices: [{name: a, profile: x86-avx2, memory_mib: -1}]", "must be above 0"),
        ("devices: [{name: a, profile: x86-avx2, memory_mib: .nan}]", "must be above 0"),
        ("devices: [{name: a, profile: x86-avx2}]\ntotal_mib: 0", "`total_mib` must be above 0"),
        ("devices: [{name: a, profile: x86-avx2, memory_mb: 1}]", r"devices\[0\].*Did you mean `memory_mib`"),
        ("devices: [{name: a, profile: x86-avx2}]\ntotal_mb: 10", "`total_mb`.*Did you mean `total_mib`"),
        ("devices: [{name: a, profile: x86-avx2}]\n1: 10", "unknown key `1`"),
        ("devices: [{name: a, profile: x86-avx2, macs: 1e9}]", "`macs` must be of type int, got '1e9'"),
        ("devices: [{name: a, profile: x86-avx2, memory_mib: yes}]", "must be of type int or float, got True"),
        ("devices: [{name: 7, profile: x86-avx2}]", "`name` must be of type str, got 7"),
        ("devices: [{name: a, profile: null}]", "`profile` must be of type str, got None"),
        ("devices: [{name: a}]", "`profile` is missing"),
        ("devices: [a]", r"devices\[0\] must be a mapping"),
        ("devices: {name: a, profile: x86-avx2}", "`devices` must be of type list"),
        ("devices: null", "`devices` must be of type list"),
        ("total_mib: 1", "`devices` is missing"),
        ("nothing: 1", "unknown key `nothing`"),
        ("", "must be a mapping"),
        ("devices: [{name: a", "no readable YAML"),
        ("devices: [\x01]", "no readable YAML"),
    ],
)
def test_a_bad_fleet_file_is_refused_with_the_reason(tmp_path, text, message):
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_fleet(path)


def test_every_key_of_a_fleet_file_is_followed_and_null_means_no_limit(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "total_mib: 10\ndevices:\n"
        "  - {name: a, profile: x86-avx2, memory_mib: 2.5, macs: 1000, link_mbit_per_s: 100, link_ms: 1}\n"
        "  - {name: b, profile: x86-avx2, memory_mib: null}\n"
    )
    first = Device(name="a", profile="x86-avx2", memory_mib=2.5, macs=1000, link_mbit_per_s=100, link_ms=1)
    expected = Fleet(devices=(first, Device(name="b", profile="x86-avx2")), total_mib=10, name="mine")
    assert load_fleet(path) == expected


def test_a_missing_fleet_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match="does not exist"):
        load_fleet(tmp_path / "none.yaml")
