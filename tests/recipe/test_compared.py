# SPDX-License-Identifier: Apache-2.0
"""The rivals beside an ensemble: each of the size that its name says, and none of them twice."""

import types

import pytest

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.card.tables import PLAIN_DEVICE_SIZE, PLAIN_TOTAL_SIZE, splitting_finding
from edvit_hf.planning.fleet import Device, Fleet
from edvit_hf.planning.keep_search import plan
from edvit_hf.recipe.stages import compared
from edvit_hf.recipe.stages.compared import ComparedModel, on_fullest_device, plain_keeps
from support.card_samples import sample_results

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
    kept = keeps[PLAIN_DEVICE_SIZE]
    assert all(abs(sizes[kept] / held - 1) <= abs(sizes[k] / held - 1) + 0.05 for k in sizes)
    assert kept == 2 if carried == 1 else kept > 2
    assert keeps[PLAIN_TOTAL_SIZE] > kept


def test_one_device_carries_the_total_and_has_one_rival_of_both_sizes():
    assert list(plain_keeps(planned(1), SHAPE, LABELS)) == [PLAIN_DEVICE_SIZE]


@pytest.mark.parametrize(("free", "names"), [(900, ["per-device size"]), (1100, ["per-device size", "no limit"])])
def test_tfidf_stands_once_where_the_texts_give_no_more_than_one_device_holds(monkeypatch, free, names):
    asked = []

    def tfidf(trip, limit):
        asked.append(limit)
        parameters, name = free if limit is None else min(limit, free), f"TF-IDF{'' if limit is None else ', limited'}"
        return ComparedModel(name, "baseline", types.SimpleNamespace(), parameters, parameters, 1, 1, "note")

    monkeypatch.setattr(compared, "_tfidf", tfidf)
    rows = compared._tfidf_rows(None, 1000)
    assert len(rows) == len(names)
    assert len({row.parameters for row in rows}) == len(rows), "no two of the same size"
    assert (rows[0].name == "TF-IDF + linear, per-device size") == (len(names) == 1)
    assert ("fits one device" in rows[0].note) == (len(names) == 1)


def test_an_earlier_card_says_where_its_rival_is_smaller_than_what_the_device_holds():
    results = sample_results()
    rows = {row["name"]: row for row in results["rows"]}
    rows[PLAIN_DEVICE_SIZE]["parameters_per_device"] = rows["ensemble"]["parameters_per_device"]
    assert "of the parameters that the fullest device holds" not in splitting_finding(results)
    rows["ensemble"]["parameters_per_device"] *= 2
    assert "The plain model has 50.0 % of the parameters that the fullest device holds." in splitting_finding(results)
