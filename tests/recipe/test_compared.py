# SPDX-License-Identifier: Apache-2.0
"""The rivals beside an ensemble: each of the size that its name says, and none of them twice."""

import dataclasses
import shutil
import types

import numpy as np
import pytest

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.card.rows import ALL_PASSES, COPIES, DEVICE_COPIES, LARGE, PLAIN_DEVICE_SIZE, REPLICAS
from edvit_hf.card.tables import splitting_finding
from edvit_hf.errors import RecipeError
from edvit_hf.evaluation.evaluator import EvaluateConfig
from edvit_hf.planning.fleet import Device, Fleet
from edvit_hf.planning.keep_search import plan
from edvit_hf.recipe import choosing, run
from edvit_hf.recipe.running import stage_dir
from edvit_hf.recipe.stages import compared, effort, evaluate
from edvit_hf.recipe.stages.compared import ComparedModel, plain_folder, plain_keeps, training_note
from edvit_hf.recipe.stages.effort import on_fullest_device
from edvit_hf.storage import read_json, write_json
from support.card_samples import sample_results
from support.tiny_recipe import tiny_recipe

HEADS, LABELS = 8, 8
GROUPS = [[0, 1], [2, 3], [4, 5], [6, 7]]
SIZES = {"num_attention_heads": HEADS, "num_hidden_layers": 2, "image_size": 8, "patch_size": 4}
SHAPE = ModelShape.from_config(
    {"model_type": "vit", "hidden_size": 8 * HEADS, "intermediate_size": 16 * HEADS, **SIZES}, num_labels=LABELS
)


def planned(num_devices, keep=2):
    fleet = Fleet(devices=tuple(Device(name=f"d{i}", profile="x86-avx2") for i in range(num_devices)))
    return plan(SHAPE, GROUPS, fleet, keep=keep, fusion_hidden_size=8)


@pytest.mark.parametrize(("num_devices", "carried"), [(4, 1), (3, 2), (2, 2)])
def test_the_plain_rival_of_per_device_size_is_of_the_fullest_devices_size(num_devices, carried):
    found = planned(num_devices)
    counts = [sum(s.device == device.name for s in found.sub_models) for device in found.devices]
    assert max(counts) == carried
    held = on_fullest_device(found, "parameters")
    assert held == carried * found.sub_models[0].parameters
    keeps = plain_keeps(found, SHAPE, LABELS)
    sizes = {k: SHAPE.keep(k, num_labels=LABELS).parameters for k in range(1, HEADS + 1)}
    kept = keeps[REPLICAS]
    assert all(abs(sizes[kept] / held - 1) <= abs(sizes[k] / held - 1) + 0.05 for k in sizes)
    assert kept == 2 if carried == 1 else kept > 2
    assert keeps[LARGE] > kept


def test_one_device_carries_the_total_and_has_one_rival_of_both_sizes():
    assert list(plain_keeps(planned(1), SHAPE, LABELS)) == [REPLICAS]


def test_one_model_on_every_device_is_compared_with_what_so_many_devices_could_carry():
    fleet = Fleet(devices=tuple(Device(name=f"d{i}", profile="x86-avx2") for i in range(3)))
    alone = plan(SHAPE, [list(range(LABELS))], fleet, keep=2, fusion_hidden_size=8, fusion_kind="average")
    for_all, for_two = (plain_keeps(alone, SHAPE, LABELS, devices) for devices in (None, 2))
    assert for_all[REPLICAS] == for_two[REPLICAS] == 2
    assert 2 < for_two[LARGE] < for_all[LARGE]


@pytest.mark.parametrize(("free", "names"), [(900, ["per-device size"]), (1100, ["per-device size", "no limit"])])
def test_tfidf_stands_once_where_the_texts_give_no_more_than_one_device_holds(monkeypatch, free, names):
    asked = []

    def tfidf(trip, limit):
        asked.append(limit)
        parameters, name = free if limit is None else min(limit, free), f"TF-IDF{'' if limit is None else ', limited'}"
        answers = types.SimpleNamespace(predictions=np.zeros(3), labels=np.arange(3))
        return ComparedModel(name, "baseline", answers, parameters, parameters, 1, 1, "note")

    monkeypatch.setattr(compared, "_tfidf", tfidf)
    recipe = types.SimpleNamespace(evaluate=EvaluateConfig())
    rows = compared._tfidf_rows(types.SimpleNamespace(plan=planned(4), recipe=recipe), 1000)
    assert [each.num_absent for each in rows[0].absent] == [0, 1, 2], "on every device: an absence changes nothing"
    assert len(rows) == len(names)
    assert len({row.parameters for row in rows}) == len(rows), "no two of the same size"
    assert (rows[0].name == "TF-IDF + linear, per-device size") == (len(names) == 1)
    assert ("fits one device" in rows[0].note) == (len(names) == 1)


@pytest.mark.parametrize(("num_devices", "with_one_absent"), [(4, [0.0, 1.0, 1.0, 1.0]), (2, [0.0, 1.0]), (1, None)])
def test_an_absent_device_takes_all_its_sub_models_away(monkeypatch, num_devices, with_one_absent):
    plan, answers = planned(num_devices), (np.zeros((3, 4), np.float32),) * 2
    monkeypatch.setattr(evaluate, "_test_answers", lambda _: answers)
    trip = types.SimpleNamespace(plan=plan, class_groups=GROUPS)
    trip.ensemble = types.SimpleNamespace(fusion=lambda features, logits, mask: mask.float())  # the first that is there
    trip.data = types.SimpleNamespace(test=types.SimpleNamespace(labels=np.zeros(3, int)))
    trip.recipe = types.SimpleNamespace(evaluate=EvaluateConfig())
    sub_models, devices = evaluate._absent(trip)
    assert [each.num_absent for each in sub_models] == [0, 1, 2, 3]
    assert sub_models[1].accuracies == [0.0, 1.0, 1.0, 1.0]
    assert [each.num_absent for each in devices] == list(range(num_devices))
    if with_one_absent:
        assert sorted(devices[1].accuracies) == with_one_absent
    assert compared._most_absent(trip) == min(2, num_devices - 1)
    assert devices[0].to_row()["of"] == "device"


def test_strategies_on_other_numbers_of_devices_are_compared_as_far_as_all_know(monkeypatch, tmp_path):
    """Of two sub-models on one device nothing is left without it; the plain model answers with any device absent."""
    right = {"replicas": [np.ones(9)], "overlap": [np.ones(9)] * 3, "generalists": [np.zeros(9)] * 2}
    monkeypatch.setattr(choosing, "absences_of", lambda name: [types.SimpleNamespace(correct=c) for c in right[name]])
    trip = types.SimpleNamespace(folders={"choose": tmp_path})
    trip.recipe = types.SimpleNamespace(auto=types.SimpleNamespace(min_gap=0.02))
    choosing._write(trip, {name: name for name in right}, {"points": 5.0}, {})
    found = choosing.read_choice(tmp_path)["accuracies"]
    assert found == {"replicas": [1.0, 1.0], "overlap": [1.0, 1.0], "generalists": [0.0, 0.0]}


def test_an_earlier_card_says_where_its_rival_is_smaller_than_what_the_device_holds():
    results = sample_results()
    rows = {row["name"]: row for row in results["rows"]}
    rows[PLAIN_DEVICE_SIZE]["parameters_per_device"] = rows["ensemble"]["parameters_per_device"]
    assert "of the parameters that the fullest device holds" not in splitting_finding(results)
    rows["ensemble"]["parameters_per_device"] *= 2
    assert "The plain model has 50.0 % of the parameters that the fullest device holds." in splitting_finding(results)


def results_of(work):
    return read_json(stage_dir(work, "evaluate") / "results.json")


@pytest.fixture(scope="module")
def all_rivals(finished_trip, tmp_path_factory):
    """The finished trip with every rival, of one epoch where the recipe's own sub-models have two each."""
    folder = tmp_path_factory.mktemp("rivals")
    shutil.copytree(finished_trip[1], folder / "work")
    names = ["device_copies", "replicas", "all_passes", "large", "copies"]
    recipe = tiny_recipe(folder, evaluate={"rivals": names, "baseline_epochs": 1})
    run(recipe, folder / "work", stages=["evaluate"])
    return folder


def test_every_rival_stands_with_its_absences_passes_and_minutes(all_rivals):
    results = results_of(all_rivals / "work")
    rows = {row["name"]: row for row in results["rows"]}
    rivals = [REPLICAS, ALL_PASSES, LARGE, COPIES, DEVICE_COPIES]
    assert list(rows) == ["teacher", "ensemble", *rivals, "small CNN"]
    items = results["dataset"]["num_train_items"]
    epochs = {name: [value / items for value in rows[name]["passes"].values()] for name in ("ensemble", *rivals)}
    assert epochs == {
        "ensemble": [2, 4],  # two sub-models; a view holds as many others as own items: all of them here
        REPLICAS: [1, 1],
        ALL_PASSES: [4, 4],
        LARGE: [1, 1],
        COPIES: [2, 4],
        DEVICE_COPIES: [1, 2],
    }
    assert all(row["minutes"] >= 0 for row in rows.values())
    numbers = {name: [entry["num_absent"] for entry in row["absent"]] for name, row in rows.items()}
    assert numbers.pop("teacher") == numbers.pop(LARGE) == [0], "without the one machine nothing answers"
    assert set(map(tuple, numbers.values())) == {(0, 1)}
    for name, row in rows.items():
        first, *others = row["absent"]
        assert first["accuracy"] == first["worst"] == pytest.approx(row["accuracy"])
        assert all(entry["worst"] <= entry["accuracy"] for entry in others)
        assert len(row["against_replicas"]) == (0 if name == REPLICAS else len(row["absent"]))
        assert row["config"] is not None if name in ("teacher", REPLICAS, LARGE) else "config" not in row
    assert rows[REPLICAS]["absent"][1]["accuracy"] == rows[REPLICAS]["accuracy"]
    assert rows["ensemble"]["absent"][1]["accuracy"] == results["absent"][1]["accuracy_mean"]
    copies, plain = rows[COPIES], rows[REPLICAS]
    assert (copies["parameters"], copies["parameters_per_device"]) == (2 * plain["parameters"], plain["parameters"])
    gap = results["gap"]
    assert gap["points"] == pytest.approx(100 * (rows[LARGE]["accuracy"] - plain["accuracy"]))
    assert results["schema_version"] == 2


def test_the_results_end_with_what_to_deploy(all_rivals):
    choice = results_of(all_rivals / "work")["choice"]
    assert choice["baseline"] == REPLICAS
    assert set(choice["accuracies"]) == {"ensemble", REPLICAS, ALL_PASSES, COPIES, DEVICE_COPIES}
    assert set(choice["beside"]) == {"small CNN"}, "no export writes it"
    assert LARGE not in choice["accuracies"], "no device of these can hold it"
    assert choice["verdict"].startswith(f"deploy: {choice['what']} because ")


def test_rivals_that_were_trained_are_not_trained_again(all_rivals, monkeypatch):
    work = all_rivals / "work"
    before = results_of(work)
    monkeypatch.setattr(compared, "distill_into", lambda *_, **__: pytest.fail("a finished rival is kept"))
    names = ["replicas", "copies"]
    run(tiny_recipe(all_rivals, evaluate={"rivals": names, "baseline_epochs": 1}), work, stages=["evaluate"])
    fewer = {row["name"]: row for row in results_of(work)["rows"]}
    assert list(fewer) == ["teacher", "ensemble", REPLICAS, COPIES, "small CNN"]
    for row in before["rows"]:
        assert fewer.get(row["name"], row) == row, "minutes are those of the training, not of looking it up"
    assert results_of(work)["gap"] is None


def test_a_note_says_how_long_a_rival_trained_and_not_how_long_it_might_have(tmp_path):
    config = tiny_recipe(tmp_path, distill={"epochs": 60, "patience": 3}).distill
    folders = [tmp_path / name for name in ("first", "second", "without_log")]
    for folder, count in zip(folders, (23, 31), strict=False):
        folder.mkdir()
        write_json(folder / "training_log.json", {"epochs": [{"seconds": 1.0}] * count})
    told = "over all classes from the same stored teacher outputs"
    assert training_note(folders[:1], config) == f"23 epochs (of at most 60, ended by `patience`) {told}"
    assert training_note(folders[:2], config) == f"23 to 31 epochs (of at most 60, ended by `patience`) {told}"
    assert training_note(folders[2:], config) == f"60 epochs {told}"


def test_as_long_as_all_devices_means_what_their_logs_say(monkeypatch):
    trip = types.SimpleNamespace(data=types.SimpleNamespace(train=range(100)))
    monkeypatch.setattr(effort, "ensemble_effort", lambda _: effort.Effort(2000, 4000, None))
    assert [effort.as_long_as_all(trip, done) for done in (39, 40, 60)] == [False, True, True]


@pytest.mark.parametrize("names", [["replica"], ["copies", "copies"]])
def test_a_rival_that_does_not_exist_or_stands_twice_is_refused(tmp_path, names):
    with pytest.raises(RecipeError, match=r"evaluate\.rivals"):
        tiny_recipe(tmp_path, evaluate={"rivals": names})


def test_one_plain_model_serves_every_strategy(tmp_path):
    """What a model of all classes does not read gives it no other folder; its length and its seed do."""
    trip = types.SimpleNamespace(folders={"teacher": tmp_path}, data=types.SimpleNamespace(train=range(9)), words=None)
    trip.recipe = tiny_recipe(tmp_path)
    config = trip.recipe.distill
    own = plain_folder(trip, 1, config)
    for change in ({"votes": "all"}, {"focus_weight": 2.0}, {"negatives_per_positive": 3.0}):
        assert plain_folder(trip, 1, dataclasses.replace(config, **change)) == own
    for change in ({"epochs": 9}, {"seed": 1}, {"temperature": 1.5}):
        assert plain_folder(trip, 1, dataclasses.replace(config, **change)) != own
