# SPDX-License-Identifier: Apache-2.0
"""Exported files and figures on a card, and its code blocks, which are run."""

import contextlib
import dataclasses
import io
import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from edvit_hf.card.exports import fidelity_table, files_table, gates_table, own_vote_finding, same_graph, whole_table
from edvit_hf.card.figures import _spread, draw_figures
from edvit_hf.card.markup import NOT_MEASURED, span
from edvit_hf.card.render import CardData, render_card, write_card
from edvit_hf.card.sources import sources_table
from edvit_hf.cli import app
from edvit_hf.export import ExportConfig
from edvit_hf.manifest import content_files, hash_of_content
from edvit_hf.published.export import export_command
from edvit_hf.tasks import PROCESSOR_FILES, TASKS
from support.card_samples import GROUPS, quantization, sample_manifest, sample_results, variant
from support.tiny_ensemble import write_tiny_ensemble
from support.torch_ensemble import GROUPS as ENSEMBLE_GROUPS
from support.torch_ensemble import NAMES, mixed_ensemble

MANIFEST = sample_manifest()


@pytest.fixture
def results():
    return sample_results()


def test_the_gate_is_stated_as_it_binds_overall_and_in_the_worst_class_group_and_its_absence_too():
    table = gates_table(MANIFEST, ["a", "b", "c"])
    assert "| `qint8_arm64` | validation, 60 items | 98.3 % | 96.7 % | 1 (2) | 1 (2) of 12: b |" in table
    assert "at most 0.50 points worse than fp32 overall and 1.00 points in any class group" in table
    assert "- `qint8_arm64_static` passed no accuracy gate; not judged." in table
    assert "- `fp16` passed no accuracy gate; not judged." in table
    assert "`fp32` passed" not in table
    assert "`raw` passed" not in table, "the same numbers as fp32"


def test_a_variant_is_one_line_whatever_the_number_of_sub_models():
    table = files_table(MANIFEST)
    assert len([line for line in table.splitlines() if line.startswith("| `")]) == 5
    assert "| `fp32` | fp32 | any hardware | 0.37 to 0.39 MiB | none | 2.00 to 2.50 ms |" in table
    assert "| `qint8_arm64` | int8, dynamic | raspberry-pi-5 | 0.11 MiB | 25.9 % | 1.00 to 1.25 ms |" in table
    assert "| `raw` | fp32, raw input | any hardware |" in table
    assert (
        "kept in float to hold accuracy: 2 in sub-model 1; ranges by entropy on 128 items of the train split" in table
    )


def test_the_worst_sub_model_and_the_worst_class_group_count():
    table = fidelity_table(MANIFEST, ["a", "b", "c"])
    assert "| `qint8_arm64` | 4.0e-02 | 96.0 % | 94.5 % | 96.2 % | 0.22 points | 1.11 points (b) |" in table
    assert "| `fp32` | 2.1e-06 | 100.0 % | 95.0 to 97.0 % | 96.4 % | reference | reference |" in table
    assert "| `raw` | 3.0e-06 | 100.0 % | as `fp32` | as `fp32` | as `fp32` | as `fp32` |" in table
    assert "| `fp16` | 4.0e-04 | 100.0 % | not measured | not measured | not measured | not measured |" in table


def test_each_kind_of_figure_names_what_measured_it(results):
    table = sources_table(results, MANIFEST).splitlines()
    run, fp32, int8, latency = table[2:]
    assert "| `edvit run recipes/digits.yaml` | 0 | `3f2a9c1` | Example CPU 3000, 2 cores, 23.5 GiB memory |" in run
    assert "of `fp32` | `edvit run recipes/digits.yaml`, stage `export` | 0 | `3f2a9c2+changes` |" in fp32
    assert "of `qint8_arm64` | `edvit export DIR --profile raspberry-pi-5` | 0 | `3f2a9c3` |" in int8
    assert "latency (batch 1, 1 thread, 5 fresh processes) | `edvit bench DIR` |" in latency
    assert [line.count("not recorded") for line in (run, fp32, int8)] == [0, 1, 0]
    assert sources_table(results, None).count(NOT_MEASURED) == 10


def test_the_command_of_an_export_reads_back_as_its_settings():
    config = ExportConfig(
        profiles=("raspberry-pi-5", "x86-avx2"),
        precisions=("int8", "fp16"),
        whole=False,
        with_preprocessing=True,
        auto=True,
        calibration="entropy",
        opset=21,
    )
    assert export_command(ExportConfig()) == "edvit export DIR"
    assert export_command(config) == (
        "edvit export DIR --profile raspberry-pi-5 --profile x86-avx2 --precision int8 --precision fp16 "
        "--calibration entropy --auto --with-preprocessing --no-whole --opset 21"
    )


def test_a_graph_of_the_whole_ensemble_has_the_accuracy_of_the_variant_whose_graphs_it_holds():
    fp32, raw = (variant(f"onnx/model{suffix}.onnx", inputs=i) for suffix, i in (("", "prepared"), ("_raw", "raw")))
    int8 = [
        variant(f"onnx/model{name}_quantized.onnx", precision="int8", made=quantization(), inputs=i)
        for name, i in (("", "prepared"), ("_raw", "raw"))
    ]
    manifest = dataclasses.replace(MANIFEST, whole=[fp32, raw, *int8])
    assert [same_graph(file, manifest) for file in manifest.whole] == ["fp32", "fp32", "qint8_arm64", "qint8_arm64"]
    table = whole_table(manifest)
    assert "| `onnx/model_raw.onnx` | fp32, raw input | 0.37 MiB | 2.1e-06 | 100.0 % | as `fp32` |" in table
    assert "| as `qint8_arm64` |" in table
    assert "| `onnx/fusion.onnx` | fp32 | 0.030 MiB | 2.1e-06 | 100.0 % | part of every variant |" in table


def test_a_variant_that_not_every_sub_model_has_says_so():
    first, *rest = MANIFEST.sub_models
    fewer = [dataclasses.replace(entry, variants=entry.variants[:1]) for entry in rest]
    table = files_table(dataclasses.replace(MANIFEST, sub_models=[first, *fewer]))
    assert "| `qint8_arm64` (1 of 3 sub-models) |" in table
    assert "| `fp32` |" in table


@pytest.mark.parametrize(
    ("values", "text"),
    [([None], "not measured"), ([1.0], "1.0 s"), ([1.0, None, 2.0], "1.0 to 2.0 s"), ([1.0, 1.01], "1.0 s")],
)
def test_a_span_names_both_ends_where_they_differ(values, text):
    assert span(values, lambda value: f"{value:.1f} s") == text


def test_the_own_votes_name_their_items():
    assert "on 450 items of the test split." in own_vote_finding(MANIFEST)
    assert NOT_MEASURED in own_vote_finding(None)


def test_write_card_leaves_readme_and_figures_and_nothing_else(results, tmp_path):
    path = write_card(tmp_path, CardData.from_run(results, MANIFEST))
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert found == [
        "README.md",
        "assets/accuracy_absent.png",
        "assets/accuracy_groups.png",
        "assets/accuracy_latency.png",
        "assets/accuracy_size.png",
    ]
    for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", path.read_text()):
        with Image.open(tmp_path / link) as image:
            assert image.width >= 1000, "readable at the width of a Hub page"
        assert (tmp_path / link).stat().st_size <= 60_000, "a card is read over the network"
    first = {name: (tmp_path / name).read_bytes() for name in found}
    write_card(tmp_path, CardData.from_run(results, MANIFEST))
    assert {name: (tmp_path / name).read_bytes() for name in found} == first, "same results, same bytes"
    without = draw_figures(results, tmp_path / "assets", sample_manifest("audio-classification"))
    assert set(without) == {"size", "absent", "groups"}, "no latency, no figure of it"
    assert not (tmp_path / "assets/accuracy_latency.png").exists(), "and none of an earlier card stays"


def test_figures_without_values_are_not_drawn(tmp_path):
    nothing = {"class_groups": GROUPS, "rows": [{"name": "teacher"}]}
    assert draw_figures(nothing, tmp_path / "assets") == {}
    assert not (tmp_path / "assets").exists()


def test_marks_of_nearly_equal_size_stand_side_by_side_and_others_stay():
    places = _spread([1.0, 1.01, 5.0])
    assert places[2] == pytest.approx(5.0)
    assert places[0] < 1.0 < 1.01 < places[1]


KNOWN_TEXT = "word1 word2"  # the tiny tokenizer knows no others
SOURCES = {
    "image-classification": Image.fromarray(np.zeros((20, 20, 3), np.uint8)),
    "audio-classification": {"raw": np.zeros(3200, np.float32), "sampling_rate": 16000},
    "text-classification": KNOWN_TEXT,
}


@pytest.fixture(scope="module", params=TASKS)
def published(request, tmp_path_factory):
    """A folder as it lies on the Hub: a real ensemble at toy size with exported graphs beside it, and its task."""
    root = tmp_path_factory.mktemp("published") / "ensemble"
    mixed_ensemble(request.param).save_pretrained(root)
    manifest = write_tiny_ensemble(root, ENSEMBLE_GROUPS, label_names=NAMES, task=request.param)
    for entry in manifest.sub_models:
        for name in PROCESSOR_FILES:
            if (root / name).is_file():
                shutil.copy(root / name, root / entry.path / name)
    content = content_files(root)
    entry = dataclasses.replace(manifest.ensemble, content_hash=hash_of_content(content))
    dataclasses.replace(manifest, content=content, ensemble=entry).save(root)
    return root, request.param


@pytest.mark.parametrize("is_published", [True, False])
def test_every_code_block_of_the_card_runs(results, published, monkeypatch, is_published, tmp_path):
    """In the order of the card; tests/card/test_javascript.py runs the JavaScript."""
    root, task = published
    place = f"{root.parent.name}/{root.name}" if is_published else "path/to/this/folder"
    monkeypatch.chdir(root.parent.parent)  # a relative path of two parts looks like a Hub id, and loads locally
    results = {**results, "task": task}
    card = render_card(CardData.from_run(results, repo_id=place if is_published else None))
    assert ("path/to/this/folder" in card) != is_published
    names: dict = {}
    printed = io.StringIO()
    blocks = re.findall(r"```(bash|python)\n(.*?)```", card, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python"] * 3 + ["bash", "python"] * 2 + ["bash"]
    for kind, block in blocks:
        if kind == "python":
            with contextlib.redirect_stdout(printed):
                code = block.replace("path/to/this/folder", str(root)).replace('"some text"', f'"{KNOWN_TEXT}"')
                exec(compile(code, "card", "exec"), names)
        elif block.startswith("edvit pull "):
            command = shlex.split(block.replace(place, str(root)).replace("output share", f"output {tmp_path}/share"))
            done = CliRunner().invoke(app, command[1:])
            assert done.exit_code == 0, done.output
            assert not (tmp_path / "share/sub_models/00").exists(), "only what that device needs"
            monkeypatch.chdir(tmp_path)
        else:
            assert re.match(r"(pip|npm) install ", block)
            assert ("&& cd ensemble" in block) == (is_published and block.startswith("pip"))
            monkeypatch.chdir(root)
    assert "other" in printed.getvalue()
    top = names["classifier"](SOURCES[task], top_k=5)
    assert {entry["label"] for entry in top} == set(NAMES)
    assert names["answer"].degraded
    assert printed.getvalue().splitlines()[-1].strip("[']") in NAMES
