# SPDX-License-Identifier: Apache-2.0
"""`edvit bench`: what is timed, how, what is written where, and what is refused."""

import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from edvit_hf.bench import (
    REPEATS,
    bench_ensemble,
    bench_table,
    measure,
    save_bench_figure,
    save_latencies,
    timed_process,
)
from edvit_hf.bench.selection import FUSION, Candidate, Hardware, input_sizes
from edvit_hf.cli import app
from edvit_hf.errors import DataError, EDViTError, ManifestError
from edvit_hf.hardware.profiles import load_profiles
from edvit_hf.manifest import MANIFEST_NAME, Manifest
from support.hostile_graphs import make_endless
from support.tiny_ensemble import MAX_TOKENS, write_tiny_ensemble

GROUPS = [[0, 2], [1, 3]]
LIGHT = ("hardware", "hardware.machine", "hardware.timing")
FILES = ["sub_models/00/onnx/model.onnx", "sub_models/01/onnx/model.onnx", "onnx/fusion.onnx"]
VNNI, ARM = (
    Hardware(name, load_profiles()[name].isa, load_profiles()[name].quantization)
    for name in ("x86-avx512-vnni", "raspberry-pi-5")
)


@pytest.fixture(autouse=True)
def on_avx512(monkeypatch):
    """The tests' machine may be any: they say which one they mean."""
    monkeypatch.setattr(Hardware, "here", classmethod(lambda _: VNNI))


@pytest.fixture
def root(tmp_path):
    write_tiny_ensemble(tmp_path, GROUPS)
    return tmp_path


@pytest.fixture(scope="module")
def benched(tmp_path_factory):
    """One benchmark of a tiny ensemble: folder, report."""
    root = tmp_path_factory.mktemp("bench")
    write_tiny_ensemble(root, GROUPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hardware, "here", classmethod(lambda _: VNNI))
        return root, bench_ensemble(root, repeats=2, command="edvit bench DIR", progress=False)


@pytest.fixture
def here(monkeypatch):
    """Files are timed in this process, which is fast, by the same code; returns which ones, in order."""
    asked = []

    def run(root, candidate, values):
        asked.append(candidate.variant.file)
        return json.loads(json.dumps(timed_process.measure({**values, "file": str(root / candidate.variant.file)})))

    monkeypatch.setattr(measure, "_run_process", run)
    monkeypatch.setattr(timed_process, "SECONDS", 0.0)
    monkeypatch.setattr(timed_process, "WARM_UP_SECONDS", 0.0)
    return asked


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_every_file_of_the_manifest_is_timed_with_its_spread_and_memory(benched):
    root, report = benched
    assert [row.file for row in report.rows] == [v.file for v in Manifest.load(root).variants]
    for row in report.rows:
        assert row.min <= row.median <= row.max
        assert len(row.repeats_ms) == 2
        assert row.runs >= 2 * 3
        assert row.load_ms > 0
        if sys.platform == "linux":
            assert 5 < row.idle_memory_mib <= row.peak_memory_mib < 500
    assert report.rows[0].inputs == {"pixel_values": [1, 3, 8, 8]}
    assert report.rows[-1].owner == FUSION
    assert report.protocol["threads"] == report.protocol["batch"] == 1
    assert report.protocol["isa"] == VNNI.isa
    assert json.loads(json.dumps(report.to_json()))["rows"][0]["median"] == report.rows[0].median


def test_the_default_is_at_least_five_fresh_processes():
    assert REPEATS >= 5


def test_every_file_runs_once_a_round_and_in_shuffled_order(root, here):
    report = bench_ensemble(root, progress=False)
    count = len(report.rows)
    rounds = [here[i : i + count] for i in range(0, len(here), count)]
    assert len(rounds) == REPEATS
    assert all(sorted(one) == sorted(row.file for row in report.rows) for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    first, here[:] = list(here), []
    bench_ensemble(root, progress=False)
    assert here == first  # the same seed, the same order
    here.clear()
    bench_ensemble(root, seed=1, progress=False)
    assert here != first


def test_each_repeat_is_a_process_of_its_own(benched):
    root, _ = benched
    code = "import os, sys, json; print(json.dumps({'pid': os.getpid()}))"
    candidate = Candidate("sub-model 0", Manifest.load(root).sub_models[0].variants[0])
    pids = set()
    with pytest.MonkeyPatch.context() as patch:
        script = root / "pid.py"
        script.write_text(code)
        patch.setattr(measure, "_SCRIPT", script)
        for _ in range(2):
            pids.add(measure._run_process(root, candidate, {})["pid"])
    script.unlink()
    assert len(pids | {os.getpid()}) == 3


def test_the_timed_process_imports_numpy_onnxruntime_and_two_small_modules_alone(root):
    arguments = {"file": str(root / FILES[0]), "threads": 1, "sizes": {"batch": 3}, "vocabulary": 2, "seed": 0}
    code = (
        f"import runpy, sys; sys.argv = ['x', {json.dumps(arguments)!r}]; runpy.run_path({str(measure._SCRIPT)!r}, "
        "run_name='__main__'); print(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    result, modules = done.stdout.strip().splitlines()
    assert json.loads(result)["inputs"] == {"pixel_values": [3, 3, 8, 8]}
    own = {name for name in modules.split() if name.startswith("edvit_hf.")}
    assert own <= {f"edvit_hf.{name}" for name in ("_version", "errors", "lazy", *LIGHT)}
    others = {name.partition(".")[0] for name in modules.split()}
    assert not {"torch", "transformers", "onnx", "yaml", "typer", "rich"} & others


def test_the_benchmark_itself_needs_no_torch():
    code = "import sys, edvit_hf.bench; print({'torch', 'transformers', 'onnx', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("hardware", "presets"),
    [
        (VNNI, {"avx2", "avx512", "avx512_vnni"}),
        (ARM, {"arm64"}),
        (Hardware("x86-avx2", "avx2", "avx2"), {"avx2"}),
        (Hardware(None, None, None), set()),
    ],
)
def test_which_instruction_sets_run_where(hardware, presets):
    assert {p for p in ("arm64", "avx2", "avx512", "avx512_vnni") if hardware.runs(p)} == presets


def test_files_for_a_foreign_instruction_set_are_left_out_and_said(root, here, monkeypatch):
    monkeypatch.setattr(Hardware, "here", classmethod(lambda _: ARM))
    report = bench_ensemble(root, repeats=1, progress=False)
    assert [row.file for row in report.rows] == FILES
    (left,) = report.left_out
    assert left.file == "sub_models/00/onnx/model_quint8_avx2.onnx"
    assert "avx2" in left.reason
    assert "raspberry-pi-5" in left.reason
    assert left.file in " ".join(str(bench_table(report).caption).split())
    saved = save_latencies(report, root)
    kept = next(v for v in saved.variants if v.file == left.file)
    assert kept.latency_ms is None
    assert kept.latency_note
    with pytest.raises(EDViTError, match=r"Expected at least one file to time.*--profile raspberry-pi-5"):
        bench_ensemble(root, precisions=["int8"], progress=False)


def test_saving_writes_figures_and_protocol_and_leaves_the_rest(benched):
    root, report = benched
    before = Manifest.load(root)
    save_latencies(report, root)
    after = Manifest.load(root)
    for old, new, row in zip(before.variants, after.variants, report.rows, strict=True):
        assert new.latency_ms["median"] == row.median
        assert (new.latency_ms["profile"], new.latency_ms["protocol"]) == ("x86-avx512-vnni", 0)
        assert new.latency_note is None
        assert replace(new, latency_ms=old.latency_ms, latency_note=old.latency_note) == old
    assert after.ensemble == before.ensemble
    assert after.content == before.content
    assert after.latency_protocols == [report.protocol]
    assert after.latency_protocols[0]["environment"]["machine"]
    assert not list(root.glob("*.tmp"))
    save_latencies(report, root)  # once more is no different
    assert Manifest.load(root) == after


def test_protocols_stand_once_and_go_with_their_last_figure(benched):
    root, report = benched
    save_latencies(report, root)
    slower = replace(report, protocol={**report.protocol, "threads": 2})
    first = replace(slower, rows=slower.rows[:1])
    save_latencies(first, root)
    both = Manifest.load(root)
    assert [p["threads"] for p in both.latency_protocols] == [1, 2]
    assert [v.latency_ms["protocol"] for v in both.variants] == [1] + [0] * (len(both.variants) - 1)
    save_latencies(slower, root)
    assert [p["threads"] for p in Manifest.load(root).latency_protocols] == [2]
    assert {v.latency_ms["protocol"] for v in Manifest.load(root).variants} == {0}
    save_latencies(report, root)


def test_an_interruption_leaves_the_manifest_as_it_was(root, here, monkeypatch):
    text = (root / MANIFEST_NAME).read_text()
    run = measure._run_process

    def run_until_interrupted(*arguments):
        if len(here) > 5:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(measure, "_run_process", run_until_interrupted)
    assert bench(root, "--save", "--repeats", 2).exit_code == 130
    assert (root / MANIFEST_NAME).read_text() == text
    assert sorted(path.name for path in root.iterdir() if path.is_file()) == [MANIFEST_NAME, "preprocessor_config.json"]


def test_figures_of_another_ensemble_are_not_saved(benched, tmp_path):
    _, report = benched
    write_tiny_ensemble(tmp_path, GROUPS)
    text = (tmp_path / MANIFEST_NAME).read_text()
    with pytest.raises(ManifestError, match="Measure again"):
        save_latencies(replace(report, content_hash="1" * 64), tmp_path)
    grown = [replace(row, bytes=row.bytes + 1) for row in report.rows]
    with pytest.raises(ManifestError, match=r"changed: sub_models/00/onnx/model.onnx"):
        save_latencies(replace(report, rows=grown), tmp_path)
    assert (tmp_path / MANIFEST_NAME).read_text() == text


def test_a_graph_that_never_ends_is_given_up_and_named(root, monkeypatch):
    make_endless(root, FILES[1], spares_zeros=False)
    monkeypatch.setattr(measure, "PROCESS_SECONDS", 2.0)
    with pytest.raises(ManifestError, match=f"{FILES[1]}: expected a graph that is opened and timed within"):
        bench_ensemble(root, sub_models=[1], repeats=1, progress=False)


def test_one_sub_model_in_one_precision(root, here):
    report = bench_ensemble(root, sub_models=[0], precisions=["int8"], repeats=1, batch=4, progress=False)
    assert [(row.owner, row.name) for row in report.rows] == [("sub-model 0", "quint8_avx2")]
    assert report.rows[0].inputs == {"pixel_values": [4, 3, 8, 8]}


@pytest.mark.parametrize("task", ["audio-classification", "text-classification"])
def test_sounds_and_texts_are_timed_too(tmp_path, here, task):
    write_tiny_ensemble(tmp_path, GROUPS, task=task)
    report = bench_ensemble(tmp_path, sub_models=[1], repeats=1, progress=False)
    shapes = {
        "audio-classification": {"input_values": [1, 20, 16]},
        "text-classification": {"input_ids": [1, MAX_TOKENS], "attention_mask": [1, MAX_TOKENS]},
    }
    assert report.rows[0].inputs == shapes[task]
    if task == "text-classification":
        assert report.protocol["tokens"] == MAX_TOKENS
        manifest = Manifest.load(tmp_path)
        assert input_sizes(tmp_path, manifest, batch=1, tokens=3)["sequence"] == 3
        with pytest.raises(DataError, match="at most 16 tokens"):
            input_sizes(tmp_path, manifest, batch=1, tokens=17)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"repeats": 0}, "`repeats` must be a whole number of at least 1, got 0"),
        ({"threads": 0}, "`threads` must lie between 1"),
        ({"threads": 10**6}, "`threads` must lie between 1"),
        ({"batch": -1}, "`batch` must be a whole number of at least 1"),
        ({"tokens": 0}, "`tokens` must be a whole number of at least 1"),
        ({"tokens": 5}, "for texts only"),
        ({"sub_models": [2]}, "from 0 to 1"),
        ({"sub_models": []}, "got none"),
        ({"precisions": ["int4"]}, "Did you mean `int8`"),
    ],
)
def test_numbers_and_names_that_cannot_be_are_refused(root, values, message):
    with pytest.raises(EDViTError, match=message):
        bench_ensemble(root, **values, progress=False)


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="No manifest"):
        bench_ensemble(tmp_path, progress=False)
    done = bench(tmp_path / "nowhere", "--repeats", 1)
    assert done.exit_code == 1


def test_a_damaged_file_is_refused_before_anything_is_timed(root, here):
    path = root / FILES[1]
    data = bytearray(path.read_bytes())
    data[random.Random(0).randrange(len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(ManifestError, match=r"sub_models/01/onnx/model\.onnx: expected sha256"):
        bench_ensemble(root, repeats=1, progress=False)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ManifestError, match="truncated"):
        bench_ensemble(root, repeats=1, progress=False)
    assert not here


def test_a_file_that_is_no_graph_is_named(tmp_path):
    manifest = write_tiny_ensemble(tmp_path, GROUPS)
    (tmp_path / FILES[0]).write_bytes(b"no graph")
    import hashlib

    first = manifest.sub_models[0]
    changed = replace(first.variants[0], bytes=8, sha256=hashlib.sha256(b"no graph").hexdigest())
    entries = [replace(first, variants=[changed, *first.variants[1:]]), *manifest.sub_models[1:]]
    replace(manifest, sub_models=entries).save(tmp_path)
    with pytest.raises(ManifestError, match=r"sub_models/00/onnx/model\.onnx: expected an ONNX graph"):
        bench_ensemble(tmp_path, sub_models=[0], repeats=1, progress=False)


def test_the_command_writes_json_figure_and_manifest(root, tmp_path):
    result, figure = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = (root, "--repeats", 1, "--sub-model", 1, "--format", "json", "--save")
    done = bench(*arguments, "--output", result, "--figure", figure)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document == json.loads(result.read_text())
    assert document["protocol"]["command"] == (
        "edvit bench DIR --sub-model 1 --threads 1 --repeats 1 --batch 1 --seed 0"
    )
    assert figure.read_bytes().startswith(b"\x89PNG")
    entry = Manifest.load(root).sub_models[1].variants[0]
    assert entry.latency_ms["median"] == document["rows"][0]["median"]


def test_the_command_prints_a_table_and_refuses_outputs_it_cannot_write(root, here, tmp_path):
    done = bench(root, "--repeats", 1, "--precision", "fp32")
    assert done.exit_code == 0, done.output
    assert "whole" not in done.output
    assert "fusion head" in done.output
    assert "slowest sub-model" in done.output
    assert bench(root, "--figure", tmp_path / "x.txt").exit_code == 1
    assert bench(root, "--output", tmp_path / "no" / "x.json").exit_code == 1
    assert bench(root, "--repeats", 0).exit_code == 1


def test_the_figure_shows_every_file(benched, tmp_path):
    from edvit_hf.bench.report import draw_bench

    _, report = benched
    (axes,) = draw_bench(report).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [row.label for row in report.rows]
    assert (
        save_bench_figure(report, tmp_path / "a.png").read_bytes()
        == save_bench_figure(report, tmp_path / "b.png").read_bytes()
    )


def test_two_measurements_saved_at_once_both_stand_in_the_manifest(tmp_path):
    write_tiny_ensemble(tmp_path, GROUPS)
    reports = [bench_ensemble(tmp_path, sub_models=[i], precisions=["fp32"], repeats=1, progress=False) for i in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(save_latencies, report, tmp_path) for report in reports]:
            done.result()
    timed = {v.file for v in Manifest.load(tmp_path).variants if v.latency_ms is not None}
    assert timed >= {row.file for report in reports for row in report.rows}
