# SPDX-License-Identifier: Apache-2.0
"""Sub-models of other widths, depths and architectures by recipe: planned, built, taken through the trip, refused."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.data.contents import FileHashes
from edvit_hf.errors import BudgetError, EDViTError, PruningError, RecipeError
from edvit_hf.planning.fleet import Device, Fleet
from edvit_hf.planning.keep_search import plan
from edvit_hf.planning.plan import Plan
from edvit_hf.pruning.config import PruneConfig
from edvit_hf.published.files import read_published
from edvit_hf.recipe import STAGES, load_recipe, run
from edvit_hf.recipe.keys import key_values
from edvit_hf.recipe.running import ensemble_dir, open_trip, stage_dir
from edvit_hf.recipe.stages.cut import prune_round
from edvit_hf.recipe.stages.plan import plan_recipe, sub_model_config, sub_model_shapes
from edvit_hf.recipe.staging import key_of
from edvit_hf.recipe.trip import load_model, stock_model
from edvit_hf.storage import read_json
from support.tiny_recipe import tiny_recipe
from support.tiny_tasks import AUDIO, TEXT, task_recipe

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DEIT = {
    "model_type": "deit",
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "patch_size": 4,
}
AST = {
    "model_type": "audio-spectrogram-transformer",
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_hidden_layers": 1,
    "intermediate_size": 40,
    "patch_size": 4,
    "frequency_stride": 4,
    "time_stride": 4,
}
BERT = {
    "model_type": "bert",
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_hidden_layers": 1,
    "intermediate_size": 40,
    "type_vocab_size": 1,
}
PRUNE = {"keep_heads": 1, "from_scratch": [None, DEIT]}


def teacher_shape(recipe):
    labels = recipe.dataset.num_labels
    return ModelShape.from_config({**recipe.input_sizes, **recipe.teacher.from_scratch}, num_labels=labels)


def recipe_of(folder, task, entry, **changes):
    """A tiny recipe of any task whose sub-model 1 is `entry`, built from scratch."""
    changes["prune"] = {"from_scratch": [None, entry], **changes.pop("prune", {})}
    return tiny_recipe(folder, **changes) if task == "image" else task_recipe(folder, task, **changes)


@pytest.mark.parametrize(
    ("task", "entry"),
    [("image", DEIT), ("image", {**DEIT, "model_type": "vit", "head_dim": 5}), (AUDIO, AST), (TEXT, BERT)],
    ids=["deit", "vit", "ast", "bert"],
)
def test_planned_costs_are_those_of_the_model_that_is_built(tmp_path, task, entry):
    recipe = recipe_of(tmp_path, task, entry)
    result = plan_recipe(recipe)
    cut, new = result.sub_models
    config = sub_model_config(recipe, teacher_shape(recipe), 1)
    model = stock_model(recipe, config, [*map(str, range(len(new.classes) + 1))], "prune.from_scratch[1]")
    assert new.parameters == sum(p.numel() for p in model.parameters())
    model.save_pretrained(tmp_path / "model")
    assert new.file_bytes["fp32"] == (tmp_path / "model/model.safetensors").stat().st_size
    assert (cut.from_scratch, new.from_scratch) == (None, entry["model_type"])
    assert (cut.keep_heads, new.keep_heads) == (1, None)
    alone = plan_recipe(recipe_of(tmp_path, task, entry, prune={"from_scratch": None})).sub_models[0]
    assert dataclasses.replace(alone, device=cut.device) == cut
    assert Plan.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert f"{entry['model_type']} from scratch" in str(result)
    assert "1 of 2 sub-models from scratch" in result.keep_text


def small_plan(given, keep="auto", **budgets):
    sizes = {"num_hidden_layers": 2, "image_size": 8, "patch_size": 4}
    shape = ModelShape.from_config(
        {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, **sizes}, num_labels=4
    )
    fleet = Fleet(devices=(Device(name="d", profile="x86-avx2"),), name="test", **budgets)
    return shape, plan(shape, [[0, 1], [2, 3]], fleet, keep=keep, from_scratch=given, fusion_hidden_size=0)


def test_what_is_built_takes_its_share_of_the_budget_and_is_never_cut():
    big = ModelShape.from_config({**DEIT, "hidden_size": 48, "intermediate_size": 96, "image_size": 8})
    _, free = small_plan([None, big])
    assert [s.keep_heads for s in free.sub_models] == [4, None]
    limit = (free.sub_models[1].bytes + 4 * free.fusion_parameters + 20_000) / 2**20
    for keep in ("auto", "per-sub-model"):
        shape, tight = small_plan([None, big], keep, total_mib=limit)
        assert 1 <= tight.sub_models[0].keep_heads < 4
        assert tight.sub_models[1].parameters == free.sub_models[1].parameters
    with pytest.raises(BudgetError, match=r"sizes of `prune.from_scratch`"):
        small_plan([big, big], total_mib=limit)
    # The largest is no cut: the plain model beside it is the cut that comes nearest in size.
    nearest = min(range(1, 5), key=lambda k: abs(shape.keep(k, num_labels=4).parameters / tight.largest.parameters - 1))
    assert tight.largest.from_scratch == "deit"
    assert tight.keep_heads == nearest
    assert tight.hidden_size == 48
    labels = big.resized(tight.largest.widths).parameters
    assert tight.same_head["parameters"] == labels + 48 + 1  # one output more than the class group and "other"


def test_a_recipe_without_it_keeps_its_stage_keys(tmp_path):
    recipe = tiny_recipe(tmp_path)
    assert "from_scratch" not in key_values(recipe)["prune"]

    def keys(recipe):
        found = {"plan.keep_heads": "1"}
        for stage in STAGES:
            found[stage.name] = key_of(stage, recipe, found, stage.sources(recipe, FileHashes()))
        return found

    before, after = keys(recipe), keys(tiny_recipe(tmp_path, prune=PRUNE))
    wide = {**PRUNE, "from_scratch": [None, {**DEIT, "num_hidden_layers": 3}]}
    for other in (before, keys(tiny_recipe(tmp_path, prune=wide))):
        changed = [name for name in after if after[name] != other[name]]
        assert changed == ["plan", "prune", "distill", "fuse", "evaluate", "export", "card"]


@pytest.fixture(scope="module")
def mixed_trip(tmp_path_factory):
    """A trip with a cut of a ViT and a deeper, wider DeiT, DEKD and joint tuning: (recipe, work directory)."""
    folder = tmp_path_factory.mktemp("mixed")
    recipe = tiny_recipe(
        folder,
        prune=PRUNE,
        distill={"objective": "dekd"},
        fuse={"joint": True, "joint_epochs": 1},
        evaluate={"max_subsets": 2},
    )
    run(recipe, folder / "work")
    return recipe, folder / "work"


def test_a_cut_vit_and_a_new_deit_go_through_every_stage(mixed_trip):
    _, work = mixed_trip
    pruned = stage_dir(work, "prune")
    assert sorted(p.name for p in pruned.glob("*_0[01].json")) == ["from_scratch_01.json", "pruning_plan_00.json"]
    note = read_json(pruned / "from_scratch_01.json")
    planned = Plan.from_dict(read_json(stage_dir(work, "plan") / "plan.json")).sub_models
    new, trained = (load_model(stage_dir(work, name) / "sub_models/01") for name in ("prune", "distill"))
    assert type(new).__name__ == "DeiTForImageClassification"
    assert sum(p.numel() for p in new.parameters()) == planned[1].parameters == note["parameters"]
    assert [new.config.id2label[i] for i in range(new.config.num_labels)] == note["labels"]
    assert note["labels"][-1] == "other"
    assert not (new.deit.layers[0].attention.q_proj.weight == trained.deit.layers[0].attention.q_proj.weight).all()
    results = read_json(stage_dir(work, "evaluate") / "results.json")
    rows = {row["name"]: row for row in results["rows"]}
    assert rows["ensemble"]["parameters_per_device"] == max(s.parameters for s in planned)
    published = ensemble_dir(work)
    kinds = [read_json(published / f"sub_models/0{i}/config.json")["model_type"] for i in range(2)]
    assert kinds == ["vit", "deit"]
    assert (published / "sub_models/01/onnx/model.onnx").is_file()
    assert "built from scratch: sub-models 1 (`deit`)" in (published / "README.md").read_text()


def test_two_builds_agree_bit_for_bit(mixed_trip, tmp_path):
    recipe, work = mixed_trip
    trip = open_trip(recipe, work, "")
    trip.folders["prune"] = tmp_path / "again"
    shutil.copytree(stage_dir(work, "prune") / "sub_models/00", tmp_path / "again/sub_models/00")
    prune_round(trip, 1)  # resumed: the first is there
    files = [folder / "sub_models/01/model.safetensors" for folder in (stage_dir(work, "prune"), tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_sizes_are_read_again_from_the_configs(mixed_trip):
    _, work = mixed_trip
    found = read_published(str(ensemble_dir(work))).shapes[1]
    assert found.architecture.model_type == "deit"
    assert found.widths.layers == 2


@pytest.mark.parametrize(
    ("task", "entry", "changes", "message"),
    [
        ("image", {**DEIT, "hidden_sise": 3}, {}, r"hidden_size"),
        ("image", {**DEIT, "hidden_size": 25}, {}, "no multiple"),
        ("image", {**DEIT, "num_labels": 3}, {}, r"names num_labels.*class group"),
        ("image", {**DEIT, "image_size": 16}, {}, r"image_size` is 16, the teacher has 8"),
        ("image", BERT, {}, "reads input_ids"),
        ("image", {**DEIT, "model_type": "swin"}, {}, "No axis table"),
        ("image", {**DEIT, "patch_size": 2}, {"distill": {"objective": "dekd"}}, "16 patches, the teacher into 4"),
        (AUDIO, {**AST, "time_stride": 2}, {"distill": {"objective": "dekd"}}, "patches, the teacher into"),
        (AUDIO, {**AST, "num_mel_bins": 32}, {}, "num_mel_bins"),
        (TEXT, {**BERT, "vocab_size": 64}, {}, "vocab_size` is 64, the teacher has 128"),
        (TEXT, {**BERT, "max_position_embeddings": 15}, {}, "max_position_embeddings"),
    ],
)
def test_what_does_not_fit_the_teacher_is_refused_by_planning(tmp_path, task, entry, changes, message):
    with pytest.raises(EDViTError, match=message):
        plan_recipe(recipe_of(tmp_path, task, entry, **changes))


def test_what_fits_is_not_refused(tmp_path):
    every = plan_recipe(recipe_of(tmp_path, "image", DEIT, prune={"keep_heads": "auto", "from_scratch": [DEIT, DEIT]}))
    assert [s.from_scratch for s in every.sub_models] == ["deit", "deit"]
    assert every.keep_text == "24 residual channels in the largest sub-model, 2 of 2 sub-models from scratch"
    assert every.keep_heads in (1, 2)  # of the plain model beside them
    assert len(plan_recipe(recipe_of(tmp_path, "image", {**DEIT, "patch_size": 2})).sub_models) == 2  # kd
    longer = recipe_of(tmp_path, TEXT, {**BERT, "max_position_embeddings": 20}, distill={"objective": "dekd"})
    (_, shape) = sub_model_shapes(longer, teacher_shape(longer))
    assert shape.config["max_position_embeddings"] == 20


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"from_scratch": [None, None]}, "no config"),
        ({"from_scratch": [None, {"hidden_size": 8}]}, r"\[1\]` needs a `model_type`"),
        ({"from_scratch": [None, DEIT], "rounds": 2}, "never pruned"),
        ({"from_scratch": [DEIT, DEIT], "keep_heads": 1}, "ignored silently"),
        ({"from_scratch": [None, DEIT], "keep_heads": [1, 1]}, "Write null"),
        ({"from_scratch": [None, DEIT], "keep_heads": [None, None]}, "Write null"),
        ({"from_scratch": [None, DEIT], "keep_heads": [0, None]}, "at least 1"),
        ({"keep_heads": [1, None]}, "at least 1"),
    ],
)
def test_values_that_contradict_each_other_are_refused(values, message):
    with pytest.raises(PruningError, match=message):
        PruneConfig(**values)


def test_another_number_of_entries_is_refused_on_reading(tmp_path):
    with pytest.raises(RecipeError, match=r"from_scratch` lists 3 entries, but `split.num_sub_models` is 2"):
        tiny_recipe(tmp_path, prune={"from_scratch": [None, DEIT, DEIT]})


@pytest.mark.parametrize(
    ("entry", "objective", "message"),
    [
        ({**DEIT, "patch_size": 2}, "dekd", "16 patches, the teacher into 4"),
        ({**DEIT, "hidden_act": "no such function"}, "kd", "no stock model"),
    ],
)
def test_the_teacher_is_not_trained_for_what_cannot_be_built(tmp_path, entry, objective, message):
    recipe = recipe_of(tmp_path, "image", entry, distill={"objective": objective})
    with pytest.raises(RecipeError, match=message):
        run(recipe, tmp_path / "work")
    assert not list((tmp_path / "work/01_teacher").rglob("*.safetensors"))


def test_the_recipe_of_the_guide_is_read_and_planned(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/guides/heterogeneous_ensembles.md").read_text(), re.DOTALL)
    (tmp_path / "fleets").symlink_to(ROOT / "recipes/fleets")
    (tmp_path / "guide.yaml").write_text(text)
    result = plan_recipe(load_recipe(tmp_path / "guide.yaml"))
    assert [s.keep_heads for s in result.sub_models] == [2, 3, None]
    assert [s.widths.layers for s in result.sub_models] == [3, 3, 1]
    assert yaml.safe_load(text)["distill"]["objective"] == "dekd"
