# SPDX-License-Identifier: Apache-2.0
"""Ensembles that overlap or average answer at run time, and those exported before there were kinds still do."""

import json

import numpy as np
import pytest

from edvit_hf.errors import ManifestError, QuorumError
from edvit_hf.manifest import Manifest
from edvit_hf.probabilities import softmax
from edvit_hf.runtime import Coordinator, CoordinatorConfig, EDViTRuntime, MonotonicClock
from edvit_hf.tasks import unknown_classes
from support.drills import Faults, FaultyEngine, SimulatedClock, StubEngine
from support.tiny_ensemble import SIZE, write_tiny_ensemble

ALL = [0, 1, 2]
PIXELS = np.random.default_rng(0).normal(size=(4, 3, SIZE, SIZE)).astype(np.float32)


def as_schema_3(root):
    """Rewrite the manifest as it was written before there were kinds of fusion and overlapping groups."""
    path = root / "manifest.json"
    data = json.loads(path.read_text())
    data["schema_version"] = 3
    del data["focus_groups"], data["fusion"]["kind"]
    for entry in data["sub_models"]:
        del entry["vote_size"]
    path.write_text(json.dumps(data))


def test_an_export_of_schema_3_is_read_upgraded_and_answers_to_the_same_bits(tmp_path):
    written = write_tiny_ensemble(tmp_path, [[0, 1], [2]])
    with EDViTRuntime.from_pretrained(tmp_path) as runtime:
        expected, expected_without = runtime.predict_without(PIXELS, [(0,), (1,)])
    as_schema_3(tmp_path)
    manifest = Manifest.load(tmp_path)
    assert (manifest.schema_version, manifest.fusion.kind, manifest.focus_groups) == (4, "mlp", None)
    assert manifest.vote_sizes == written.vote_sizes == [3, 2]
    with EDViTRuntime.from_pretrained(tmp_path) as runtime:
        answer, without = runtime.predict_without(PIXELS, [(0,), (1,)])
        assert answer.bytes_sent == expected.bytes_sent
    assert np.array_equal(answer.probabilities, expected.probabilities)
    assert np.array_equal(without, expected_without)
    assert Manifest.load(manifest.save(tmp_path / "manifest.json")) == manifest


def test_an_older_single_sub_model_may_have_other_or_not(tmp_path):
    write_tiny_ensemble(tmp_path, [ALL])
    as_schema_3(tmp_path)
    with EDViTRuntime.from_pretrained(tmp_path) as runtime:
        assert runtime.predict(PIXELS).vote_logits[0].shape == (4, 3)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    root = tmp_path_factory.mktemp("copies")
    write_tiny_ensemble(root, [ALL] * 3, kind="average")
    with EDViTRuntime.from_pretrained(root) as runtime:
        yield runtime


@pytest.mark.parametrize("absent", [(), (0,), (1, 2)])
def test_an_average_is_that_of_the_present_votes_and_no_class_is_missing(copies, absent):
    answer = copies.predict(PIXELS, absent=absent)
    heard = [np.log(softmax(vote)) for vote in answer.vote_logits if vote is not None]
    assert len(heard) == 3 - len(absent)
    np.testing.assert_allclose(answer.probabilities, softmax(np.mean(heard, axis=0)), atol=1e-5)
    assert answer.missing_classes == ()
    assert answer.degraded == bool(absent)


def test_explaining_asks_the_fusion_again_without_each(copies):
    picture = np.zeros((SIZE, SIZE, 3), np.uint8)
    answer, changes = copies.explain(picture)
    for change in changes:
        alone = copies(picture, absent=[change.index])
        np.testing.assert_allclose(change.probabilities, alone.probabilities, atol=1e-6)
    assert answer.missing_classes == ()


def test_a_single_sub_model_on_its_own_answers_and_leaves_nobody_when_it_is_away(tmp_path):
    write_tiny_ensemble(tmp_path, [ALL], kind="average")
    with EDViTRuntime.from_pretrained(tmp_path) as runtime:
        answer, changes = runtime.explain(np.zeros((SIZE, SIZE, 3), np.uint8))
        np.testing.assert_allclose(answer.probabilities, answer.votes[0], atol=1e-6)
        assert changes == []
        with pytest.raises(QuorumError):
            runtime.predict(PIXELS, absent=[0])


def test_a_vote_of_another_scale_is_not_averaged(tmp_path):
    manifest = write_tiny_ensemble(tmp_path, [ALL] * 3, kind="average")
    engine = FaultyEngine(StubEngine(manifest), MonotonicClock(), {1: Faults(wrong_scale=1.0)})
    with EDViTRuntime.from_pretrained(tmp_path, engine=engine) as runtime:
        answer = runtime.predict(PIXELS)
        assert answer.missing == {1: "out of range"}
        assert answer.missing_classes == ()
        assert answer.probabilities.shape == (4, 3)


def test_a_single_sub_model_that_fails_leaves_nobody_until_a_probe_finds_it_well(tmp_path):
    manifest, clock = write_tiny_ensemble(tmp_path, [ALL], kind="average"), SimulatedClock()
    engine = FaultyEngine(StubEngine(manifest), clock, {0: Faults(is_unavailable=True)})
    coordinator = Coordinator(manifest, engine, CoordinatorConfig(probe_pause_s=1), clock=clock)
    for _ in range(2):
        with pytest.raises(QuorumError) as refused:
            coordinator.gather({"pixel_values": PIXELS})
    assert refused.value.missing == {0: "breaker"}
    engine.faults.clear()
    clock.advance(1.5)
    assert coordinator.gather({"pixel_values": PIXELS}).missing == {}


def test_what_overlaps_is_missing_only_where_nobody_present_knows_it(tmp_path):
    write_tiny_ensemble(tmp_path, [[0, 1], [1, 2], [2, 3], [3, 0]])
    with EDViTRuntime.from_pretrained(tmp_path) as runtime:
        assert runtime.predict(PIXELS, absent=[1]).missing_classes == ()
        assert runtime.predict(PIXELS, absent=[1, 2]).missing_classes == ("class_2",)
        assert runtime.predict(PIXELS, absent=[0, 2, 1]).missing_classes == ("class_1", "class_2")


def test_unknown_classes_come_in_the_order_of_the_groups():
    assert unknown_classes([[2, 0], [1], [0, 3]], [False, False, True]) == [2, 1]
    assert unknown_classes([[2, 0], [1], [0, 3]], [True] * 3) == []


def edited(root, change):
    path = root / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return root


def narrowed(data, group):
    """The manifest with another class group of its first sub-model."""
    data["class_groups"][0] = data["sub_models"][0]["class_group"] = group
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["fusion"].update(kind="sum"), "one of"),
        (lambda d: d["sub_models"][1].update(vote_size=5), "`vote_size` must be 3 or 4 for 3 of 3 classes, got 5"),
        (lambda d: d["sub_models"][1].update(vote_size=None), "`vote_size` must be 3 or 4"),
        (lambda d: d["sub_models"][1].update(vote_size=4), "promises logits of size 4, the graph gives 3"),
        (lambda d: d.update(focus_groups=[[0], [1]]), "`focus_groups` must name, for each sub-model, some of"),
        (lambda d: d.update(focus_groups=[[0], [1], [3]]), "`focus_groups`"),
        (lambda d: narrowed(d, [0, 1]).update(focus_groups=[[2], [0], [1]]), "`focus_groups`.*votes over"),
        (lambda d: d["class_groups"].__setitem__(1, [0, 1, 1]), "class 1 stands twice in class group 1"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path, change, message):
    write_tiny_ensemble(tmp_path, [ALL] * 3, kind="average")
    with pytest.raises(ManifestError, match=message):
        EDViTRuntime.from_pretrained(edited(tmp_path, change))


def test_a_graph_that_does_not_read_what_its_kind_needs_is_refused(tmp_path):
    write_tiny_ensemble(tmp_path, [ALL] * 3)  # from features and mask
    edited(tmp_path, lambda d: d["fusion"].update(kind="average"))
    with pytest.raises(ManifestError, match="expected a graph from features, votes, mask to logits"):
        EDViTRuntime.from_pretrained(tmp_path)
