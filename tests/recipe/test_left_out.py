# SPDX-License-Identifier: Apache-2.0
import pytest

from edvit_hf.card.rows import COPIES, LARGE, REPLICAS, left_out
from edvit_hf.recipe import run
from edvit_hf.storage import read_json
from support.tiny_recipe import tiny_recipe


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("left_out")
    recipe = tiny_recipe(folder, evaluate={"baselines": False})
    run(recipe, folder / "work", stages=["teacher", "split", "plan", "prune", "distill", "fuse", "evaluate"])
    return read_json(folder / "work" / "07_evaluate" / "results.json")


def test_what_own_data_did_not_train_is_said_with_what_it_would_take(results):
    assert [row["name"] for row in results["rows"]] == ["teacher", "ensemble"]
    assert {row["rival"] for row in results["left_out"]} <= {"replicas", "large", "copies"}
    assert {row["name"] for row in results["left_out"]} <= {REPLICAS, LARGE, COPIES}
    assert results["left_out"][0]["rival"] == "replicas"
    assert all(row["minutes"] >= 0 and row["passes"] > 0 for row in results["left_out"])
    said = left_out(results)
    assert said.startswith("not trained beside it: replicas (less than a minute)")
    assert "`evaluate: {rivals: [replicas," in said


def test_results_of_an_earlier_version_leave_nothing_out():
    assert left_out({"rows": []}) == ""
    assert "about 12 min" in left_out({"left_out": [{"name": "copies", "rival": "copies", "minutes": 12.4}]})
