# SPDX-License-Identifier: Apache-2.0
"""Keep search, budgets, errors and the published arithmetic of ED-ViT's ratios."""

import dataclasses
import json
from pathlib import Path

import pytest

from edvit_hf.architectures.costs import ModelShape, fusion_parameters
from edvit_hf.errors import BudgetError, MissingExtraError, PruningError, RecipeError
from edvit_hf.hardware.profiles import load_profiles, save_profile
from edvit_hf.planning.fleet import Device, Fleet
from edvit_hf.planning.keep_search import plan
from edvit_hf.planning.plan import Plan
from edvit_hf.pruning.config import KeepRatios
from edvit_hf.recipe import load_recipe
from edvit_hf.recipe.schema import find_fleet
from edvit_hf.recipe.stages.plan import plan_recipe
from edvit_hf.recipe.stages.split import capability
from edvit_hf.storage import MIB
from support.benchmarks import benchmark

ROOT = Path(__file__).resolve().parents[2]
VIT = {
    "S": {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12, "intermediate_size": 1536},
    "B": {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072},
    "L": {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24, "intermediate_size": 4096},
}
SHAPES = {name: ModelShape.from_config({"model_type": "vit", **sizes}, num_labels=10) for name, sizes in VIT.items()}
GROUPS = [[0, 1], [2, 3], [4]]


def small_shape(heads=4, layers=2, labels=5):
    config = {
        "hidden_size": 8 * heads,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "intermediate_size": 12 * heads,
        "image_size": 8,
        "patch_size": 4,
    }
    return ModelShape.from_config(config, num_labels=labels)


def fleet(count=3, *, profile="x86-avx2", name="test", total_mib=None, **budgets):
    devices = tuple(Device(name=f"d{i}", profile=profile, **budgets) for i in range(count))
    return Fleet(devices=devices, name=name, total_mib=total_mib)


def small_plan(fleet_=None, *, shape=None, groups=GROUPS, keep="auto", fusion_hidden_size=0, **options):
    return plan(
        shape or small_shape(), groups, fleet_ or fleet(), keep=keep, fusion_hidden_size=fusion_hidden_size, **options
    )


@pytest.mark.parametrize(
    ("model", "parameters", "mib", "gmacs"),
    [("S", 21.67, 82.66, 4.60), ("B", 85.81, 327.33, 17.56), ("L", 303.31, 1157.0, 61.55)],
)
def test_the_teachers_of_the_three_tables(model, parameters, mib, gmacs):
    shape = SHAPES[model]
    assert round(shape.parameters / 1e6, 2) == parameters
    assert round(shape.bytes / MIB, 2 if model != "L" else 1) == mib
    assert round(shape.macs / 1e9, 2) == gmacs


@pytest.mark.parametrize(
    ("model", "keep", "width", "parameters", "mib", "size_ratio", "gmacs", "macs_ratio"),
    [
        ("S", 1, 64, 0.66, 2.53, 32.71, 0.185, 24.80),
        ("S", 2, 128, 2.50, 9.55, 8.65, 0.603, 7.62),
        ("S", 3, 192, 5.53, 21.08, 3.92, 1.253, 3.67),
        ("B", 2, 128, 2.50, 9.55, 34.26, 0.603, 29.11),
        ("B", 3, 192, 5.53, 21.08, 15.53, 1.253, 14.01),
        ("B", 4, 256, 9.73, 37.11, 8.82, 2.136, 8.22),
        ("B", 5, 320, 15.11, 57.64, 5.68, 3.251, 5.40),
        ("B", 6, 384, 21.67, 82.66, 3.96, 4.599, 3.82),
        ("B", 8, 512, 38.33, 146.22, 2.24, 7.990, 2.20),
        ("L", 2, 128, 4.88, 18.63, 62.11, 1.187, 51.84),
        ("L", 3, 192, 10.86, 41.45, 27.92, 2.478, 24.84),
        ("L", 4, 256, 19.20, 73.26, 15.79, 4.234, 14.54),
        ("L", 6, 384, 42.96, 163.89, 7.06, 9.139, 6.74),
    ],
)
def test_the_three_tables(model, keep, width, parameters, mib, size_ratio, gmacs, macs_ratio):
    """Five cells differ by one in the last digit from the table that we worked from, for a reason we did not find.

    It has 1.254 GMACs for 3 heads of S and of B, 7.991 for 8 of B, and 10.87 M and 19.21 M parameters for 3 and 4 of L.
    The exact figures (a test in test_architectures) are those of built stock models and of torch's flop counter.
    """
    teacher = SHAPES[model]
    kept = teacher.keep(keep, num_labels=10)
    assert kept.widths.residual == width
    assert round(kept.parameters / 1e6, 2) == parameters
    assert round(kept.bytes / MIB, 2) == mib
    assert round(teacher.parameters / kept.parameters, 2) == size_ratio
    assert round(kept.macs / 1e9, 3) == gmacs
    assert round(teacher.macs / kept.macs, 2) == macs_ratio


@pytest.mark.parametrize(("model", "keeps"), [("S", [6, 6, 5, 3, 2]), ("B", [8, 6, 5, 3, 2]), ("L", [6, 4, 3, 2, 1])])
def test_the_largest_keep_under_180_mib_for_1_2_3_5_and_10_devices(model, keeps):
    found = []
    for count in (1, 2, 3, 5, 10):
        groups = [list(range(i, 10, count)) for i in range(count)]
        found.append(plan(SHAPES[model], groups, fleet(count, total_mib=180), fusion_hidden_size=256).keep_heads)
    assert found == keeps


@pytest.mark.parametrize(
    ("name", "keep", "ratios"), [("small", 2, (8.65, 7.62)), ("base", 2, (34.26, 29.11)), ("large", 1, None)]
)
def test_the_deployment_recipes_plan_without_training_or_download(name, keep, ratios):
    recipe = load_recipe(ROOT / f"recipes/cifar10_vit_{name}.yaml")
    result = plan_recipe(recipe)
    assert result.keep_heads == keep
    assert len({s.device for s in result.sub_models}) == len(result.sub_models) == 10
    assert sum(s.bytes for s in result.sub_models) + 4 * result.fusion_parameters <= 180 * MIB
    assert ratios is None or (result.same_head["size_ratio"], result.same_head["macs_ratio"]) == ratios


def test_planning_takes_another_fleet_and_asks_for_unknown_sizes():
    recipe = load_recipe(ROOT / "recipes/cifar10_vit_base.yaml")
    assert plan_recipe(recipe, fleet=find_fleet("five_x86")).fleet == "five_x86"
    with pytest.raises(RecipeError, match=r"packaged names.*ten_raspberry_pi_4b"):
        find_fleet("twelve_abaci")
    blind = dataclasses.replace(recipe, teacher=dataclasses.replace(recipe.teacher, config=None))
    with pytest.raises(RecipeError, match=r"Write the checkpoint's sizes as `teacher\.config`"):
        plan_recipe(blind)
    countless = dataclasses.replace(recipe, dataset=dataclasses.replace(recipe.dataset, num_labels=None))
    with pytest.raises(RecipeError, match=r"dataset\.num_labels"):
        plan_recipe(countless)
    assert len(plan_recipe(countless, num_classes=20).sub_models[0].classes) == 2


@pytest.mark.parametrize("count", [0, 1, -4])
def test_a_number_of_classes_that_cannot_be_is_refused(count):
    recipe = load_recipe(ROOT / "recipes/cifar10_vit_base.yaml")
    with pytest.raises(RecipeError, match=f"at least 2, got {count}"):
        plan_recipe(recipe, num_classes=count)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "`hidden_size` must be a whole number of at least 1, got 0"),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be"),
        ({"patch_size": 0}, "`patch_size` must be"),
        ({"num_hidden_layers": -2}, "`num_hidden_layers` must be.*got -2"),
        ({"hiden_size": 384}, r"`teacher\.(config|from_scratch)\.hiden_size` is no key.*Did you mean.*hidden_size`"),
        ({"dim": 384}, r"dim` is no key of a vit config"),
    ],
)
@pytest.mark.parametrize("section", ["config", "from_scratch"])
def test_a_teacher_that_cannot_be_is_refused_by_key(section, change, message):
    recipe = load_recipe(ROOT / "recipes/cifar10_vit_base.yaml")
    values = {"config": None, section: {**recipe.teacher.config, **change}}
    if section == "from_scratch":
        values |= {"checkpoint": None, "epochs": 1}
    recipe = dataclasses.replace(recipe, teacher=dataclasses.replace(recipe.teacher, **values))
    with pytest.raises(PruningError, match=message):
        plan_recipe(recipe)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_local_checkpoint_with_a_broken_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    recipe = load_recipe(ROOT / "recipes/cifar10_vit_base.yaml")
    teacher = dataclasses.replace(recipe.teacher, checkpoint=str(tmp_path))
    with pytest.raises(RecipeError, match=r"config\.json"):
        plan_recipe(dataclasses.replace(recipe, teacher=teacher))


def test_vit_large_on_one_pi_stays_within_its_memory():
    groups = [[i] for i in range(10)]
    pi = Fleet(devices=(Device(name="pi", profile="raspberry-pi-4b"),))
    result = plan(SHAPES["L"], groups, pi, fusion_hidden_size=256)
    assert result.devices[0].bytes <= 4096 * MIB
    assert result.keep_heads < 16
    more = Fleet(devices=(Device(name="pi", profile="raspberry-pi-4b", memory_mib=16384),))
    assert plan(SHAPES["L"], groups, more, fusion_hidden_size=256).keep_heads == 16


def test_the_shares_of_classes_follow_the_speed_of_measured_devices_too(tmp_path):
    measured = dataclasses.replace(load_profiles()["raspberry-pi-5"], name="mine", sustained_gflops=3 * 11.889)
    save_profile(measured, tmp_path / "mine.yaml")
    (tmp_path / "fleet.yaml").write_text(
        "devices: [{name: a, profile: mine.yaml}, {name: b, profile: raspberry-pi-4b}]"
    )
    recipe = load_recipe(ROOT / "recipes/cifar10_vit_base.yaml")
    split = dataclasses.replace(recipe.split, num_sub_models=2, sizes="proportional")
    recipe = dataclasses.replace(recipe, folder=tmp_path, fleet="fleet.yaml", split=split)
    assert capability(recipe) == pytest.approx([35.667, 11.889])


def test_the_given_keep_is_used_and_every_sub_model_is_placed():
    result = small_plan(keep=2, fusion_hidden_size=16)
    assert {s.keep_heads for s in result.sub_models} == {2}
    assert sorted(s.device for s in result.sub_models) == ["d0", "d1", "d2"]
    assert result.fusion_parameters == fusion_parameters([16] * 3, 5, 16)
    assert [s.classes for s in result.sub_models] == GROUPS
    assert [s.widths.labels for s in result.sub_models] == [3, 3, 2]


def test_auto_takes_the_largest_keep_that_fits_every_device():
    sizes = {k: small_shape().keep(k, num_labels=3).bytes / MIB for k in (1, 2, 3)}
    assert small_plan(fleet(memory_mib=(sizes[2] + sizes[3]) / 2)).keep_heads == 2


def test_auto_finds_the_keep_whose_packing_greedy_misses():
    shape, groups = small_shape(labels=8), [[0], [1], [2, 3, 4], [5, 6], [7]]
    keep = 3
    sizes = [shape.keep(keep, num_labels=len(g) + 1).bytes for g in groups]
    # Two devices that hold exactly {0, 1, 4} and {2, 3}: the only packing by weight.
    devices = (
        Device(name="a", profile="x86-avx2", memory_mib=(sizes[0] + sizes[1] + sizes[4]) / MIB),
        Device(name="b", profile="x86-avx2", memory_mib=(sizes[2] + sizes[3]) / MIB),
    )
    options = {"shape": shape, "groups": groups}
    exact = small_plan(Fleet(devices=devices), **options, placement="exact")
    assert exact.keep_heads == 3
    assert {s.device for s in exact.sub_models[2:4]} == {"b"}
    assert small_plan(Fleet(devices=devices), **options, placement="greedy").keep_heads < 3


def test_per_sub_model_keep_goes_on_where_there_is_room():
    sizes = {k: small_shape().keep(k, num_labels=3).bytes / MIB for k in (1, 2, 3, 4)}
    devices = tuple(Device(name=f"d{i}", profile="x86-avx2", memory_mib=sizes[k]) for i, k in enumerate((1, 2, 4)))
    result = small_plan(Fleet(devices=devices), keep="per-sub-model")
    keeps = [s.keep_heads for s in result.sub_models]
    assert min(keeps) == small_plan(Fleet(devices=devices)).keep_heads < max(keeps)
    for index in range(3):  # nothing is left that one sub-model more could use
        more = [keep + (i == index) for i, keep in enumerate(keeps)]
        with pytest.raises((BudgetError, PruningError)):
            small_plan(Fleet(devices=devices), keep=more)
    assert f"keep {min(keeps)} to {max(keeps)} of 4 heads" in str(result)


def test_a_list_of_keeps_gives_each_sub_model_its_own():
    result = small_plan(keep=(1, 3, 2))
    assert [s.keep_heads for s in result.sub_models] == [1, 3, 2]
    assert [s.widths.residual for s in result.sub_models] == [8, 24, 16]
    assert result.pruning_key != small_plan(keep=3).pruning_key == "3"
    with pytest.raises(RecipeError, match="lists 2 numbers, but there are 3 sub-models"):
        small_plan(keep=(1, 3))


def test_ratios_and_kinds_of_attention_decide_the_widths():
    ratios = KeepRatios(residual=0.5, attention=0.25, ffn=0.75)
    result = small_plan(keep=ratios)
    widths = result.sub_models[0].widths
    assert (widths.residual, widths.heads, widths.ffn) == (16, 1, 36)
    assert result.sub_models[0].keep_heads is None
    assert 1 <= result.keep_heads <= 4
    thin = small_plan(keep=2, attention="thin").sub_models[0].widths
    assert (thin.heads, thin.head_dim) == (4, 4)
    bert = ModelShape.from_config(
        {
            "model_type": "bert",
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_hidden_layers": 1,
            "intermediate_size": 64,
            "vocab_size": 99,
            "max_position_embeddings": 16,
        },
        num_labels=5,
    )
    with pytest.raises(PruningError, match="bert ties the attention width"):
        small_plan(shape=bert, keep=ratios)
    assert small_plan(shape=bert, keep=2).keep_heads == 2


def test_auto_skips_keeps_that_thin_heads_cannot_say():
    shape = ModelShape.from_config(
        {
            "hidden_size": 18,
            "num_attention_heads": 6,
            "num_hidden_layers": 1,
            "intermediate_size": 36,
            "image_size": 8,
            "patch_size": 4,
        },
        num_labels=5,
    )
    sizes = {k: shape.keep(k, num_labels=3).bytes / MIB for k in (2, 5)}
    assert small_plan(fleet(memory_mib=sizes[5] * 1.01), shape=shape, attention="thin").keep_heads == 4
    assert small_plan(fleet(memory_mib=sizes[5] * 1.01), shape=shape).keep_heads == 5


def test_fewer_devices_than_sub_models_share_their_memory():
    result = small_plan(fleet(2), keep=1)
    assert sorted(s.device for s in result.sub_models) in (["d0", "d0", "d1"], ["d0", "d1", "d1"])


def raised(fleet_, nearest, factor):
    """The fleet with the budgets that an error names, times a factor."""
    devices = []
    for device in fleet_.devices:
        changes = {
            name.rpartition(".")[2]: value * factor
            for name, value in nearest.items()
            if name.startswith(f"devices.{device.name}.")
        }
        if "macs" in changes:
            changes["macs"] = round(changes["macs"])
        devices.append(Device(**{**vars(device), **changes}))
    total = nearest.get("total_mib", 0) * factor or fleet_.total_mib
    return Fleet(devices=tuple(devices), total_mib=total, coordinator=fleet_.coordinator, name=fleet_.name)


SMALLEST = small_shape().keep(1, num_labels=3).bytes / MIB


@pytest.mark.parametrize(
    ("tight", "named"),
    [
        (fleet(memory_mib=0.0001), "memory_mib"),
        (fleet(macs=10), "macs"),
        (fleet(profile="raspberry-pi-5", energy_mj=1e-6), "energy_mj"),
        (fleet(total_mib=0.001), "total_mib"),
        (fleet(memory_mib=0.0001, total_mib=0.001), "total_mib"),
        (fleet(2, memory_mib=1.5 * SMALLEST), "memory_mib"),
        (fleet(macs=10, memory_mib=0.001, total_mib=0.002), "macs"),
    ],
)
@pytest.mark.parametrize("keep", ["auto", 2])
def test_a_plan_that_cannot_fit_names_the_budget_and_the_nearest_value_that_does(tight, named, keep):
    with pytest.raises(BudgetError) as caught:
        small_plan(tight, keep=keep)
    message, nearest = str(caught.value), caught.value.nearest
    assert any(name.endswith(named) for name in nearest)
    assert all(f"`{name}` must be at least" in message for name in list(nearest)[:6])
    assert ("smallest possible sub-models (1 of 4 heads)" in message) == (keep == "auto")
    assert ("keep less (`prune.keep_heads: auto`" in message) == (keep != "auto")  # no remedy that was tried
    small_plan(raised(tight, nearest, 1.0001), keep=keep)
    for name, value in nearest.items():
        with pytest.raises(BudgetError):
            small_plan(raised(tight, {**nearest, name: value * 0.999}, 1.0), keep=keep)


@pytest.mark.parametrize("keep", [0, -1, 5])
def test_a_keep_outside_the_teachers_heads_is_refused(keep):
    with pytest.raises(PruningError, match="between 1 and the teacher's 4 heads"):
        small_plan(keep=keep)


def test_the_fusion_head_counts_on_the_coordinator():
    device = {"profile": "x86-avx2"}
    size = small_shape().keep(4, num_labels=5).bytes / MIB
    alone = Fleet(devices=(Device(name="a", memory_mib=size, **device),))
    assert small_plan(alone, groups=[[0, 1, 2, 3, 4]]).keep_heads == 4
    hub = Fleet(devices=alone.devices, coordinator="a")
    assert small_plan(hub, groups=[[0, 1, 2, 3, 4]]).keep_heads == 3


def test_a_plan_survives_its_file(tmp_path):
    result = small_plan(fleet(4), keep=2, fusion_hidden_size=16)
    result.save(tmp_path / "plan.json")
    assert Plan.from_dict(json.loads((tmp_path / "plan.json").read_text())) == result
    assert "keep 2 of 4 heads" in str(result)
    assert len(result.replicas) == 1


def test_without_scipy_the_placement_is_greedy_and_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy.optimize", None)
    result = small_plan()
    assert result.placement["method"] == "greedy"
    assert any("edvit_hf[plan]" in note for note in result.notes)
    with pytest.raises(MissingExtraError, match=r"edvit_hf\[plan\]"):
        small_plan(placement="exact")
    with pytest.raises(BudgetError, match="must be at least") as caught:
        small_plan(fleet(memory_mib=0.001), keep=2)
    small_plan(raised(fleet(memory_mib=0.001), caught.value.nearest, 1.0001), keep=2)


def test_an_unknown_way_of_placing_is_refused():
    with pytest.raises(RecipeError, match="auto, exact or greedy"):
        small_plan(placement="best")


def test_random_fleets_are_planned_within_every_budget():
    result = benchmark("planning.planner_fleets").measure(25, seed=7)
    assert result["summary"]["num_planned"] + result["summary"]["num_infeasible"] == 25
    assert result["summary"]["num_planned"] >= 15
    assert result["summary"]["num_broken_budgets"] == 0
    assert result["summary"]["num_exact_worse_than_greedy"] == 0
    assert result["summary"]["num_exact_faster"] >= 1
    assert result["summary"]["num_infeasible"] >= 2
    assert all(row["nearest"] for row in result["rows"] if "keep_heads" not in row)


def test_a_dollar_in_the_name_of_a_device_or_fleet_begins_no_formula(tmp_path):
    from edvit_hf.planning.figure import save_plan_figure

    devices = tuple(Device(name=f"$x^{{2{i}$", profile="x86-avx2") for i in range(3))
    placed = small_plan(Fleet(devices=devices, name="$\\frac$"))
    assert save_plan_figure(placed, tmp_path / "plan.png").is_file()


@pytest.mark.parametrize(("kind", "groups", "numbers"), [
    ("mlp", GROUPS, [24, 24, 24]), ("average", [range(5)] * 3, [5, 5, 5]),
    ("residual", [range(5)] * 3, [29, 29, 29]), ("residual", GROUPS, [27, 27, 26]),
])  # fmt: skip
def test_a_recipe_is_planned_with_what_its_kind_of_fusion_has_sent(kind, groups, numbers):
    found = small_plan(groups=groups, keep=3, fusion_kind=kind, fusion_hidden_size=8)
    assert [s.feature_bytes for s in found.sub_models] == [4 * number for number in numbers]
    mlp = small_plan(groups=groups, keep=3, fusion_hidden_size=8)
    assert found.fusion_parameters == (0 if kind == "average" else mlp.fusion_parameters)  # of the features alone
