# SPDX-License-Identifier: Apache-2.0
"""The Space: timelines are what was measured or what `edvit plan` predicts, and the comparison is what results say."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from answers import answering, documents, ensembles, inputs
from answers.documents import absent_rows, models_of
from answers.timelines import FLEETS, fleet_plans, measured, predicted
from edvit_hf.published.files import read_published
from edvit_hf.published.plan import place_published
from support.space_ensembles import ABSENT, ROWS, write_digits
from support.tiny_ensemble import write_tiny_ensemble


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def answer(folder):
    opened = ensembles.open_other(str(folder))
    return opened.runtime(ensembles.open_bundle("digits").examples[0].value, absent=[1])


def spans(line, name):
    return [(span.kind, span.start_ms, span.end_ms) for span in line.spans if span.lane == name]


def test_a_measured_timeline_holds_the_runtimes_own_numbers_one_after_the_other(answer):
    line = measured(answer, "in_turn")
    assert line.is_measured
    assert "Measured" in line.title
    assert "Measured on this machine" in line.note
    assert line.total_ms == answer.total_milliseconds
    at = 0.0
    for index, taken in enumerate(answer.milliseconds):
        found = spans(line, f"device {index}")
        assert (found == []) == (index == 1), "who is unplugged has no lane"
        if found:
            assert found == [("compute", at, at + taken)]
            at += taken
    ((kind, start, end),) = spans(line, "coordinator")
    assert (kind, end) == ("fusion", line.total_ms)
    assert end - start == pytest.approx(answer.fusion_milliseconds)
    assert start >= at - 1e-9


def test_workers_run_at_the_same_time(answer):
    line = measured(answer, "workers")
    assert {start for i in (0, 2, 3, 4) for _, start, _ in spans(line, f"device {i}")} == {0.0}
    assert "at the same time" in line.note


@pytest.mark.parametrize("kind", FLEETS, ids=lambda kind: kind.profile)
def test_a_predicted_timeline_ends_when_the_plan_says(folder, kind):
    published = read_published(str(folder))
    plan = place_published(published, kind.fleet(5), placement="greedy")
    name = kind.name(5)
    line = predicted(name, fleet_plans(published)[name], [True] * 5)
    assert not line.is_measured
    assert line.title == f"Predicted for {name}"
    assert "Predicted, not measured" in line.note
    assert line.total_ms == pytest.approx(plan.latency_ms, abs=5e-3)
    assert [kind for kind, _, _ in spans(line, "device 3")] == ["input", "compute", "transfer"]
    for index in range(5):
        for (_, _, end), (_, start, _) in zip(
            spans(line, f"device {index}"), spans(line, f"device {index}")[1:], strict=False
        ):
            assert end == start


def test_fewer_devices_share_the_link_and_have_no_lane(folder):
    plans = fleet_plans(read_published(str(folder)))
    slow = next(name for name in plans if "Wi-Fi" in name)
    whole, some = (predicted(slow, plans[slow], present) for present in ([True] * 5, [False, True] * 2 + [False]))
    assert some.total_ms < whole.total_ms
    assert {span.lane for span in some.spans} == {"device 1", "device 3", "coordinator"}
    assert spans(some, "device 1")[0][2] == pytest.approx(spans(whole, "device 1")[0][2] * 2 / 5)


def test_the_page_shows_the_fleet_that_was_chosen(folder):
    opened = ensembles.open_other(str(folder))
    prepared = inputs.prepare_image(opened, ensembles.open_bundle("digits").examples[0].value)
    names = list(opened.plans)
    assert len(names) == len(FLEETS)
    assert answering.view(opened, prepared, []).timelines[1].title.endswith(names[0])
    assert answering.view(opened, prepared, [], names[2]).timelines[1].title.endswith(names[2])
    assert len(answering.view(opened, prepared, [], "no such fleet").timelines) == 2


def test_where_nothing_tells_the_sizes_nothing_is_predicted(tmp_path):
    write_tiny_ensemble(tmp_path, [[0, 1], [2]])
    opened = ensembles.open_other(str(tmp_path))
    assert opened.plans == {}
    assert fleet_plans(None) == {}


def test_the_comparison_is_what_the_results_say(folder):
    manifest = ensembles.open_other(str(folder)).runtime.manifest
    teacher, ensemble = models_of({"rows": ROWS}, manifest)
    assert (teacher.accuracy, teacher.bytes_per_device, teacher.bytes_total) == (0.97, 4000, 4000)
    assert (ensemble.accuracy, ensemble.bytes_per_device, ensemble.bytes_total) == (0.958, 400, 2400)
    assert teacher.milliseconds is None
    assert teacher.note == "Latency was not measured."
    assert ensemble.note.startswith("Five of them. -1.3 points against the teacher (95 % interval -3.1 to +0.4).")
    rows = absent_rows({"absent": ABSENT}, 5)
    assert [(row.num_absent, row.mean, row.low, row.high, row.num_subsets) for row in rows] == [
        (0, 0.958, 0.958, 0.958, 1),
        (1, 0.931, 0.902, 0.956, 5),
    ]
    assert absent_rows({"absent": ABSENT}, 1) == rows[:1], "nobody would be left"


def test_latency_is_that_of_the_slowest_sub_model_and_the_fusion_head():
    manifest = ensembles.open_bundle("spoken_digits").runtime.manifest
    medians = [entry.variant("fp32").latency_ms["median"] for entry in manifest.sub_models]
    ensemble = next(model for model in ensembles.open_bundle("spoken_digits").models if model.name == "ensemble")
    assert ensemble.milliseconds == max(medians) + manifest.fusion.variant("fp32").latency_ms["median"]
    assert "no network" in ensemble.note
    assert "onnxruntime" in ensemble.note
    first = dataclasses.replace(manifest.sub_models[0].variants[0], latency_ms=None, latency_note="none")
    some = dataclasses.replace(manifest.sub_models[0], variants=[first])
    unmeasured = dataclasses.replace(manifest, sub_models=[some, *manifest.sub_models[1:]])
    assert documents._latency(unmeasured) == (None, "Latency was not measured."), "part of a figure is none"


_OF_ROWS = ["rows", "name", "kind", "accuracy", "bytes", "bytes_per_device", "note", "against_teacher"]
_OF_ABSENT = ["absent", "num_absent", "accuracy_mean", "accuracy_min", "accuracy_max", "num_subsets"]
KEYS = [*_OF_ROWS, *_OF_ABSENT, "difference", "low", "high"]
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=25,
)


@given(JSON, JSON)
@settings(max_examples=80, deadline=None)
def test_whatever_a_strangers_results_hold_rows_make_sense(tmp_path_factory, rows, absent):
    path = tmp_path_factory.getbasetemp() / "results.json"
    path.write_text(json.dumps({"rows": rows, "absent": absent}))
    results = documents.read_results(path.parent)
    manifest = ensembles.open_bundle("digits").runtime.manifest
    for model in models_of(results, manifest):
        assert model.name
        assert model.accuracy is None or 0 <= model.accuracy <= 1
        assert model.bytes_total is None or model.bytes_total >= 0
    for row in absent_rows(results, 5):
        assert 0 <= row.mean <= 1
        assert 0 <= row.num_absent < 5
