# SPDX-License-Identifier: Apache-2.0
"""The search for what must stay float: cheapest, needed, deterministic; and on real files."""

import itertools
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edvit_hf.errors import DataError, ExportGateError
from edvit_hf.export.graphs.derived import load_graph
from edvit_hf.export.int8.auto import auto_quantize, cheapest_float_set
from edvit_hf.export.int8.dynamic import PRESETS, quantize_graph
from edvit_hf.export.int8.nodes import NodeGroup, quantizable_nodes
from edvit_hf.export.int8.static import calibrate, quantize_graph_static
from support.tiny_architectures import tiny_inputs
from support.tiny_export import PIXELS, exported_architectures, exported_images

pytestmark = pytest.mark.slow

ARM = PRESETS["arm64"]
SETTINGS = len(ARM.settings())


class Problem:
    """Groups whose errors add up; the gate passes up to a limit. Counts what it is asked."""

    def __init__(self, errors, costs, limit):
        names = [f"g{i:02d}" for i in range(len(errors))]
        self.groups = [NodeGroup(label=n, nodes=(n,), cost=c) for n, c in zip(names, costs, strict=True)]
        self.errors, self.limit = dict(zip(names, errors, strict=True)), limit
        self.asked = []

    def error(self, kept):
        return sum(error for name, error in self.errors.items() if name not in kept)

    def gate(self, kept):
        self.asked.append(kept)
        return {"passed": self.error(kept) <= self.limit, "net_flips": self.error(kept)}

    def cost(self, kept):
        return sum(group.cost for group in self.groups if group.label in kept)

    def solve(self, **values):
        return cheapest_float_set(self.groups, error=self.error, gate=self.gate, **values)

    def best_cost(self):
        names = list(self.errors)
        subsets = itertools.chain.from_iterable(itertools.combinations(names, n) for n in range(len(names) + 1))
        return min((self.cost(kept) for kept in subsets if self.error(kept) <= self.limit), default=None)


problems = st.integers(1, 7).flatmap(
    lambda n: st.builds(
        Problem,
        st.lists(st.integers(0, 50), min_size=n, max_size=n),
        st.lists(st.integers(1, 50), min_size=n, max_size=n),
        st.integers(0, 120),
    )
)


@given(problems)
@settings(max_examples=150, deadline=None)
def test_what_is_found_passes_and_no_group_of_it_can_be_spared(problem):
    found = problem.solve()
    kept = frozenset(found.kept_float)
    assert problem.error(kept) <= problem.limit
    assert not [label for label in kept if problem.error(kept - {label}) <= problem.limit]
    assert found.cost == problem.cost(kept) >= problem.best_cost()
    assert [frozenset(trial.kept_float) for trial in found.trials] == problem.asked
    assert len(set(problem.asked)) == len(problem.asked)  # the gate is asked nothing twice
    assert found.kept_float in [trial.kept_float for trial in found.trials if trial.passed]


def test_int8_that_holds_is_tried_once_and_nothing_else_is_measured():
    problem = Problem([5, 5], [1, 1], limit=10)
    problem.error = lambda kept: pytest.fail("measured without need") if problem.asked else 10
    problem.gate = lambda kept: problem.asked.append(kept) or {"passed": True}
    found = problem.solve()
    assert (found.kept_float, found.cost, found.harms, len(found.trials)) == ([], 0, {}, 1)


def test_harm_per_byte_decides_and_what_it_took_too_much_is_dropped_again():
    # g00 harms most per byte, but g01 alone is needed: without it nothing passes.
    problem = Problem([3, 40, 2], [1, 20, 30], limit=5)
    found = problem.solve()
    assert (found.kept_float, found.cost) == (["g01"], 20)
    assert found.harms == {"g00": 3, "g01": 40, "g02": 2}


def test_two_groups_of_which_each_alone_spoils_the_answer_are_both_found():
    problem = Problem([9, 9, 1, 1, 1], [5, 5, 1, 1, 1], limit=4)
    rest = {"g02", "g03", "g04"}
    problem.error = lambda kept: 9 if {"g00", "g01"} - kept else len(rest - kept)
    found = problem.solve()
    assert found.kept_float == ["g00", "g01"]  # neither helps while the other is int8


def test_long_searches_try_few_sets():
    problem = Problem([1] * 100, [1] * 100, limit=95)
    found = problem.solve()
    assert found.kept_float == ["g00", "g01", "g02", "g03", "g04"]  # equal harms go by label
    assert len(found.trials) <= 14
    capped = Problem([1] * 100, [1] * 100, limit=20)
    assert len(capped.solve(max_trials=20).trials) <= 20
    assert capped.error(frozenset(capped.solve(max_trials=20).kept_float)) <= 20


def test_groups_that_may_not_stay_float_together_do_not():
    problem = Problem([10, 10, 10], [1, 2, 3], limit=10)
    found = problem.solve(allowed=lambda kept: not {"g00", "g01"} <= kept)
    assert found.kept_float == ["g00", "g02"]


def test_a_gate_that_nothing_passes_is_an_error_that_says_how_far_it_went():
    problem = Problem([10, 10, 10], [1, 2, 3], limit=-1)
    with pytest.raises(ExportGateError, match=r"found none among 3: the last kept 3 of 3 groups"):
        problem.solve()
    with pytest.raises(ExportGateError, match="found none among 0"):
        problem.solve(allowed=lambda kept: False)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Two sub-models; in the first, one unit of the FFN answers 3000 times as much as it should."""
    root, _, _, manifest = exported_images(tmp_path_factory)
    folder = tmp_path_factory.mktemp("planted")
    sources = []
    for index, entry in enumerate(manifest.sub_models):
        model = load_graph(root / entry.variant().file)
        if index == 0:
            by_path = {n.path.rpartition(".")[2]: n for n in quantizable_nodes(model, op_types=("MatMul", "Gemm"))}
            for name, factor, row in (("fc1", 3000.0, False), ("fc2", 1 / 3000.0, True)):
                tensor = next(t for t in model.graph.initializer if t.name == by_path[name].weight)
                values = numpy_helper.to_array(tensor).copy()
                values[(0, slice(None)) if row else (slice(None), 0)] *= factor
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        sources.append(folder / f"{index}.onnx")
        onnx.save(model, sources[-1])
    return sources, root / manifest.fusion.variants[0].file


def sweep(planted, scratch, gate, preset=ARM, write=None):
    sources, fusion = planted

    def write_int8(index, target, setting, kept_float):
        quantize_graph(sources[index], target, setting, kept_float=kept_float)

    return auto_quantize(
        sources, fusion, preset, write=write or write_int8, gate=gate, inputs={"pixel_values": PIXELS}, scratch=scratch
    )


def closeness(planted, limit):
    """A gate that passes ensembles whose features are close to those of the fp32 files."""
    from edvit_hf.export.gates import OnnxEnsemble

    expected = OnnxEnsemble(*planted).answers({"pixel_values": PIXELS})["features"]

    def gate(ensemble):
        got = ensemble.answers({"pixel_values": PIXELS})["features"]
        error = float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)))
        return {"passed": error <= limit, "net_flips": round(1000 * error)}

    return gate


def test_the_node_that_spoils_int8_is_found_and_it_alone_stays_float(planted, tmp_path, tmp_path_factory):
    found = sweep(planted, tmp_path, closeness(planted, 0.05))
    assert found == sweep(planted, tmp_path_factory.mktemp("again"), closeness(planted, 0.05))
    kept = {
        node.path.rpartition(".")[2]
        for node in quantizable_nodes(load_graph(planted[0][0]), op_types=("MatMul", "Gemm"))
        if node.name in found.kept_float[0]
    }
    assert "fc2" in kept  # what reads the unit that answers too much
    assert kept <= {"fc1", "fc2"}
    assert found.kept_float[1] == []
    assert found.record["passed"]
    whole = [row for row in found.tried if not row["kept_float"]]
    assert 2 <= len(whole) <= SETTINGS
    assert not any(row["passed"] for row in whole)
    assert all(row["error"] > 0 for row in whole)
    mixes = [row for row in found.tried if row["kept_float"]]
    assert any(row["passed"] and row["cost_bytes"] > 0 for row in mixes)
    assert all(label.startswith(("00/", "01/")) for row in mixes for label in row["kept_float"])
    assert {row["weight_type"] for row in mixes} == {found.preset.weight_type}


def test_tables_of_embeddings_are_swept_though_they_make_no_int8_file_alone(tmp_path, tmp_path_factory):
    root, _, manifest = exported_architectures(tmp_path_factory, "bert", "distilbert")
    sources = [root / entry.variant().file for entry in manifest.sub_models]
    inputs = {name: values.numpy() for name, values in tiny_inputs("bert", 8).items()}

    def write(index, target, setting, kept_float):
        quantize_graph(sources[index], target, setting, kept_float=kept_float)

    asked = []

    def gate(ensemble):  # nothing but a mix will do
        asked.append(ensemble)
        return {"passed": len(asked) > SETTINGS, "net_flips": 1}

    fusion, options = root / manifest.fusion.variants[0].file, {"scratch": tmp_path, "max_trials": 6}
    found = auto_quantize(sources, fusion, ARM, write=write, gate=gate, inputs=inputs, **options)
    assert found.record["passed"]
    labels = {label for row in found.tried for label in row["kept_float"]}
    assert labels
    assert all(label.startswith(("00/", "01/")) for label in labels)


def test_other_settings_come_before_float_and_the_first_that_passes_is_taken(planted, tmp_path):
    left = iter([5, 4, 0])

    def gate(ensemble):
        flips = next(left)
        return {"passed": flips == 0, "net_flips": flips}

    found = sweep(planted, tmp_path, gate)
    assert found.preset == ARM.settings()[2]
    assert found.kept_float == [[], []]
    assert [row["net_flips"] for row in found.tried] == [5, 4, 0]


def test_the_setting_that_loses_fewest_items_is_where_float_is_added(planted, tmp_path):
    asked = []

    def gate(ensemble):
        asked.append(ensemble)
        flips = {1: 9, 2: 3, 3: 9, 4: 9, 5: 9, 6: 9}.get(len(asked), 0)
        return {"passed": flips == 0, "net_flips": flips}

    found = sweep(planted, tmp_path, gate)
    assert found.preset == replace(ARM, weight_type="QUInt8")
    assert sum(map(len, found.kept_float)) >= 1
    assert len(found.tried) == len(asked)  # the starting point of the search is not asked again


def test_every_sub_model_keeps_a_product_in_int8(planted, tmp_path):
    with pytest.raises(ExportGateError, match="Expected a mix of int8 and float"):
        sweep(planted, tmp_path, lambda ensemble: {"passed": False, "net_flips": 1})


def test_static_files_are_swept_too_with_their_convolution(planted, tmp_path):
    sources, _ = planted
    ranges = [calibrate(source, {"pixel_values": PIXELS}) for source in sources]

    def write(index, target, setting, kept_float):
        quantize_graph_static(sources[index], target, setting, ranges[index], kept_float=kept_float)

    static = replace(ARM, mode="static")
    found = sweep(planted, tmp_path, closeness(planted, 0.05), preset=static, write=write)
    assert found.preset.mode == "static"
    assert found.kept_float[0]
    assert found.record["passed"]


def test_a_search_without_inputs_is_refused(planted, tmp_path):
    with pytest.raises(DataError, match="Expected inputs to measure output errors on"):
        auto_quantize(*planted, ARM, write=print, gate=print, inputs={}, scratch=tmp_path)
