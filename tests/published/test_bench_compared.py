# SPDX-License-Identifier: Apache-2.0
"""`edvit bench --compared`: the teacher and the plain models, timed as graphs of their sizes beside the ensemble."""

import json
import shutil
from pathlib import Path

import onnxruntime
import pytest
from typer.testing import CliRunner

from edvit_hf.card.exports import ensemble_ms
from edvit_hf.cli import app
from edvit_hf.errors import RecipeError
from edvit_hf.manifest import Manifest
from edvit_hf.published.compared import compared_shapes, draw_compared
from edvit_hf.recipe.running import ensemble_dir
from edvit_hf.storage import read_json, write_json

pytestmark = pytest.mark.slow

PLAIN = ("replicas", "plain, N times the size")
BUNDLED = Path(__file__).resolve().parents[2] / "space_app/model"
EARLIER = ("plain model, per-device size", "plain model, total size")


@pytest.fixture(scope="module")
def drawn(finished_trip, tmp_path_factory):
    """The graphs, drawn once: that is what takes the time here."""
    return draw_compared(ensemble_dir(finished_trip[1]), tmp_path_factory.mktemp("compared"))


@pytest.fixture
def folder(finished_trip, tmp_path):
    shutil.copytree(ensemble_dir(finished_trip[1]), tmp_path / "ensemble")
    return tmp_path / "ensemble"


def change(folder, edit):
    results = read_json(folder / "results.json")
    edit(results)
    write_json(folder / "results.json", results)


def rows_of(folder):
    return {row["name"]: row for row in read_json(folder / "results.json")["rows"]}


def test_sizes_are_those_of_the_models_to_the_parameter(folder):
    shapes, rows = compared_shapes(folder), rows_of(folder)
    assert set(shapes) == {"teacher", *PLAIN} & set(rows)
    for name, shape in shapes.items():
        assert shape.parameters == rows[name]["parameters"]
        assert shape.macs == rows[name]["macs"]


@pytest.mark.parametrize("name", ["digits", "question_type", "spoken_digits"])
def test_the_bundled_ensembles_record_the_configs_of_their_rivals(name):
    rows = rows_of(BUNDLED / name)
    shapes = compared_shapes(BUNDLED / name)
    assert set(shapes) == {"teacher", *EARLIER}
    assert all((s.parameters, s.macs) == (rows[n]["parameters"], rows[n]["macs"]) for n, s in shapes.items())


@pytest.mark.parametrize("names", [PLAIN, EARLIER])
def test_the_note_tells_the_sizes_of_a_plain_model_whatever_results_call_it(names, tmp_path):
    folder = shutil.copytree(BUNDLED / "digits", tmp_path / "digits", ignore=shutil.ignore_patterns("*.onnx"))
    recorded = compared_shapes(folder)

    def edit(results):
        for row in results["rows"]:
            row.pop("config", None)
            row["name"] = dict(zip(EARLIER, names, strict=True)).get(row["name"], row["name"])

    change(folder, edit)
    found = compared_shapes(folder)
    assert set(found) == {"teacher", *names}
    assert [shape.widths for shape in found.values()] == [shape.widths for shape in recorded.values()]


def test_graphs_take_what_the_sub_models_take_and_answer_over_all_labels(folder, drawn):
    assert set(drawn) == set(compared_shapes(folder))
    manifest = Manifest.load(folder)
    own = onnxruntime.InferenceSession(folder / manifest.sub_models[0].variant("fp32").file)
    for path in drawn.values():
        session = onnxruntime.InferenceSession(path)
        assert [(i.name, i.shape) for i in session.get_inputs()] == [(i.name, i.shape) for i in own.get_inputs()]
        assert session.get_outputs()[1].shape[-1] == len(manifest.label_names)


def test_in_an_older_folder_the_recipe_and_the_kept_heads_tell_the_sizes_and_what_they_do_not_fit_is_left_out(
    folder, caplog
):
    recorded = compared_shapes(folder)
    change(folder, lambda results: [row.pop("config", None) for row in results["rows"]])
    assert {name: shape.widths for name, shape in compared_shapes(folder).items()} == {
        name: shape.widths for name, shape in recorded.items()
    }
    change(folder, lambda results: results["rows"][0].update(parameters=12345))
    assert "teacher" not in compared_shapes(folder)
    assert "teacher: its sizes are not in the results" in caplog.text
    change(folder, lambda results: [row.update(note="", parameters=1) for row in results["rows"]])
    with pytest.raises(RecipeError, match="without --compared"):
        compared_shapes(folder)
    (folder / "results.json").write_text("{")
    with pytest.raises(RecipeError, match=r"results\.json"):
        compared_shapes(folder)


def test_figures_go_into_the_results_and_the_card_compares_those_of_one_run(folder, drawn, monkeypatch):
    monkeypatch.setattr("edvit_hf.published.compared.draw_compared", lambda *_: drawn)

    def invoke(*arguments):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return done.output

    before = read_json(folder / "results.json")
    report = json.loads(
        invoke("bench", folder, "--precision", "fp32", "--repeats", 1, "--compared", "--save", "--format", "json")
    )
    results = read_json(folder / "results.json")
    timed = {row["owner"]: row["median"] for row in report["beside"]}
    assert set(timed) == set(compared_shapes(folder))
    for old, row in zip(before["rows"], results["rows"], strict=True):
        assert (row.pop("latency_ms", None) or {}).get("median") == timed.get(row["name"])
        assert row == old
    assert "--compared" in results["latency_protocol"]["command"]
    fusion = next(row["median"] for row in report["rows"] if row["owner"] == "fusion head")
    slowest = max(row["median"] for row in report["rows"] if row["owner"].startswith("sub-model"))
    results = read_json(folder / "results.json")
    assert ensemble_ms(Manifest.load(folder), results) == pytest.approx(slowest + fusion)

    invoke("card", folder)
    card = (folder / "README.md").read_text()
    assert "| one answer |" in card
    assert f"{timed['teacher']:.3g} ms" in card
    results["latency_protocol"]["seed"] = 7  # of another run than the manifest's
    assert ensemble_ms(Manifest.load(folder), results) is None
