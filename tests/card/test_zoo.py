# SPDX-License-Identifier: Apache-2.0
"""The table of ensembles: what was measured, what was not, and where each is."""

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edvit_hf.card.zoo import ZOO_HEADER, zoo_of_folder, zoo_of_hub, zoo_row, zoo_table_markdown
from edvit_hf.cli import app
from edvit_hf.errors import HubError
from edvit_hf.manifest import Manifest
from edvit_hf.storage import MIB
from support.hub_ensemble import RESULTS, files_of, write_publishable

pytest_plugins = ["support.hub_fixtures"]
runner = CliRunner()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "zoo" / "first"
    write_publishable(root)
    return root


def with_latency(manifest, *times):
    """The manifest with these milliseconds for the fp32 files, in order."""
    sub_models = []
    for entry, ms in zip(manifest.sub_models, times, strict=True):
        measured = None if ms is None else {"median": ms, "profile": "x86-avx2"}
        first = replace(entry.variants[0], latency_ms=measured)
        sub_models.append(replace(entry, variants=[first, *entry.variants[1:]]))
    return replace(manifest, sub_models=sub_models)


def test_a_row_says_what_was_measured_and_on_what(folder):
    manifest = Manifest.load(folder)
    row = zoo_row(manifest, RESULTS, "first", place="here")
    assert (row.task, row.num_sub_models, row.num_labels) == ("image-classification", 3, 5)
    assert (row.accuracy, row.accuracy_of, row.num_items) == (0.9, "fp32 ONNX", 10)
    assert "UCI" in row.dataset
    assert row.mib_fp32 == max(e.variants[0].bytes for e in manifest.sub_models) / MIB
    assert row.mib_int8 == max(e.variants[1].bytes for e in manifest.sub_models) / MIB
    assert (row.ms, row.ms_of) == (None, None)


def test_without_an_exported_figure_the_results_are_taken_and_without_both_nothing(folder):
    manifest = Manifest.load(folder)
    manifest = replace(manifest, ensemble=replace(manifest.ensemble, accuracy=None, accuracy_note="none"))
    row = zoo_row(manifest, RESULTS, "first")
    assert (row.accuracy, row.accuracy_of, row.num_items) == (0.875, "torch", 100)
    bare = zoo_row(manifest, None, "first")
    assert (bare.accuracy, bare.dataset) == (None, None)
    assert zoo_table_markdown([bare]).count("not measured") == 3


def test_milliseconds_are_those_of_the_slowest_sub_model_or_none_at_all(folder):
    manifest = Manifest.load(folder)
    assert zoo_row(with_latency(manifest, 1.0, 4.0, 2.0), None, "x").ms == 4.0
    assert zoo_row(with_latency(manifest, 1.0, 4.0, 2.0), None, "x").ms_of == "fp32 on x86-avx2"
    assert zoo_row(with_latency(manifest, 1.0, None, 2.0), None, "x").ms is None


def test_an_int8_file_that_only_one_sub_model_has_is_no_figure_of_the_ensemble(folder):
    manifest = Manifest.load(folder)
    sub_models = [replace(e, variants=e.variants[: 1 + (e.index == 0)]) for e in manifest.sub_models]
    assert zoo_row(replace(manifest, sub_models=sub_models), None, "x").mib_int8 is None


def test_the_markdown_table_has_a_line_for_each_and_a_place_only_if_there_is_one(folder):
    row = zoo_row(Manifest.load(folder), RESULTS, "first")
    lines = zoo_table_markdown([row, replace(row, name="second")]).strip().splitlines()
    assert len(lines) == 4
    assert "90.0 % (fp32 ONNX)" in lines[2]
    assert "where" not in lines[0]
    assert "where" in zoo_table_markdown([replace(row, place="lab/first")]).splitlines()[0]
    assert lines[0].count("|") == len(ZOO_HEADER)


def test_a_folder_of_ensembles_and_of_work_directories_is_searched_and_a_broken_one_left_out(folder, caplog):
    root = folder.parent
    write_publishable(root / "run" / "09_card" / "ensemble", seed=1)
    shutil.copytree(folder, root / "run" / "08_export" / "ensemble")
    shutil.copytree(folder, root / "broken")
    (root / "broken/manifest.json").write_text("{")
    (root / "other").mkdir()
    rows = zoo_of_folder(root)
    assert [row.name for row in rows] == ["first", "run"]
    assert "broken left out" in caplog.text
    assert [row.name for row in zoo_of_folder(folder)] == ["first"]
    for empty in (root / "other", root / "none"):
        with pytest.raises(HubError):
            zoo_of_folder(empty)


def test_a_folder_that_may_not_be_read_and_results_that_are_a_pipe_hide_no_other_ensemble(folder, caplog, monkeypatch):
    for name in ("locked", "pipe"):
        shutil.copytree(folder, folder.parent / name)
    (folder.parent / "pipe/results.json").unlink(missing_ok=True)
    os.mkfifo(folder.parent / "pipe/results.json")
    is_file = Path.is_file

    def refused(path):
        if "locked" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)
    assert [row.name for row in zoo_of_folder(folder.parent)] == ["first"]
    assert "locked left out" in caplog.text
    assert "pipe left out" in caplog.text


@pytest.mark.parametrize(
    "results", [b"{", b"\xff\xfe", b"[1]", b'{"dataset": "mnist"}', b'{"rows": 3}', b'{"recipe_values": [1]}']
)
def test_results_that_are_damaged_never_hide_the_other_ensembles(folder, results):
    write_publishable(folder.parent / "other", seed=1)
    manifest = Manifest.load(folder)
    replace(manifest, ensemble=replace(manifest.ensemble, accuracy=None, accuracy_note="none")).save(folder)
    (folder / "results.json").write_bytes(results)
    assert "other" in [row.name for row in zoo_of_folder(folder.parent)]


def test_what_others_wrote_is_shown_and_never_read_as_markup(folder):
    (folder / "results.json").write_text(json.dumps({"dataset": {"path": "[/red]x[bold]"}}))
    done = runner.invoke(app, ["zoo", str(folder)])
    assert done.exit_code == 0, done.output
    assert "[/red]x[bold]" in done.output


def test_an_owners_ensembles_are_found_by_their_tag_and_little_is_fetched(hub, folder, caplog):
    files = files_of(folder)
    hub.create("lab/first", files)
    hub.create("lab/bare", {k: v for k, v in files.items() if k != "results.json"})
    hub.create("lab/unfinished", {"README.md": files["README.md"]})
    hub.create("lab/something", {"README.md": b"---\nlicense: mit\n---\n# x\n"})
    hub.create("other/first", files)
    rows = zoo_of_hub("lab")
    assert [(row.name, row.place) for row in rows] == [("bare", "lab/bare"), ("first", "lab/first")]
    assert [row.dataset is None for row in rows] == [True, False]
    assert "lab/unfinished has no manifest.json" in caplog.text
    assert {line.rpartition("/")[2] for line in hub.seen("GET .*/resolve/")} == {"manifest.json", "results.json"}
    with pytest.raises(HubError, match="Expected ensembles of 'nobody'"):
        zoo_of_hub("nobody")


def test_the_command_prints_a_table_or_json(hub, folder):
    hub.create("lab/first", files_of(folder))
    human = runner.invoke(app, ["zoo", str(folder.parent)])
    assert "not measured" in human.output
    assert "90.0 %" in human.output
    rows = json.loads(runner.invoke(app, ["zoo", "--org", "lab", "--format", "json"]).stdout)
    assert rows == [asdict(row) for row in zoo_of_hub("lab")]
    assert runner.invoke(app, ["zoo", str(folder), "--org", "lab"]).exit_code == 2
