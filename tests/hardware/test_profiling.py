# SPDX-License-Identifier: Apache-2.0
"""`edvit profile`: its graphs, its timing, the profile it writes; and how the benchmark accounts for kernels."""

import json
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from transformers import ViTConfig, ViTForImageClassification
from typer.testing import CliRunner

from edvit_hf.cli import app
from edvit_hf.errors import EDViTError
from edvit_hf.hardware.latency import predicted_ms
from edvit_hf.hardware.profiles import FIGURES, LATENCY_FEATURES, load_profile, save_profile
from edvit_hf.hardware.profiling import profile_machine
from edvit_hf.hardware.profiling_graphs import OPSET, encoder_graph, encoder_shape, matmul_graph, shapes_to_measure
from edvit_hf.hardware.timing import TimedRun, TimedRuns, open_session, random_feed, summary, time_rounds
from edvit_hf.planning.fleet import load_fleet
from support.benchmarks import benchmark

TINY = (16, 2, 8, 24, 2, 2, 3)
SHAPES = [encoder_shape(*TINY), encoder_shape(32, 4, 8, 64, 1, 3, 3), encoder_shape(48, 2, 24, 96, 3, 4, 4)]


def stock_model(shape):
    config = ViTConfig(**{k: v for k, v in shape.config.items() if k != "model_type"}, num_labels=shape.widths.labels)
    return ViTForImageClassification(config).eval()


def operators(model):
    names = [node.op_type for node in model.graph.node]
    return {name: names.count(name) for name in set(names)}


def test_an_encoder_graph_is_what_the_export_draws_before_it_reads_early():
    from edvit_hf.export.graphs.draw import draw_in_full
    from edvit_hf.export.optimum_config import resolve_onnx_config

    shape = encoder_shape(*TINY[:5], 3, 3)  # square: Optimum's dummy images are
    model = stock_model(shape)
    exported = draw_in_full(model, resolve_onnx_config(model.config), opset=OPSET)
    ours = encoder_graph(shape)
    onnx.checker.check_model(ours, full_check=True)
    assert operators(ours) == operators(exported)
    order = [[node.op_type for node in one.graph.node] for one in (ours, exported)]
    order = [[name for name in names if name not in ("Reshape", "Transpose")] for names in order]
    # The embeddings' Shape and Concat come earlier in the export; from the first norm on the order is the same.
    start = [names.index("LayerNormalization") for names in order]
    assert order[0][start[0] :] == order[1][start[1] :]


def test_an_encoder_graph_has_the_parameters_of_its_shape():
    for shape in SHAPES:
        stored = sum(np.prod(one.dims) for one in encoder_graph(shape).graph.initializer if one.data_type == 1)
        scales = shape.widths.layers  # of the attention logits, one number per layer
        assert stored - scales == shape.parameters == sum(p.numel() for p in stock_model(shape).parameters())


def test_an_encoder_graph_runs_and_its_seed_decides_the_weights():
    shape = SHAPES[0]
    outputs = []
    for seed in (0, 0, 1):
        session = open_session(encoder_graph(shape, seed=seed).SerializeToString(), 1)
        outputs.append(session.run(None, random_feed(session)))
    assert [one.shape for one in outputs[0]] == [(1, 16), (1, shape.widths.labels)]
    assert np.isfinite(outputs[0][0]).all()
    np.testing.assert_array_equal(outputs[0][1], outputs[1][1])
    assert not np.array_equal(outputs[0][1], outputs[2][1])


def test_the_shapes_to_measure_tell_every_feature_from_the_others():
    from edvit_hf.hardware.latency import feature_matrix

    for quick in (True, False):
        matrix = feature_matrix(shapes_to_measure(quick=quick))
        matrix /= np.linalg.norm(matrix, axis=0)
        assert np.linalg.matrix_rank(matrix) == len(LATENCY_FEATURES) < len(matrix)


def test_rounds_time_every_session_equally_often():
    sessions = [open_session(matmul_graph(size).SerializeToString(), 2) for size in (8, 256)]
    seen = []
    samples = time_rounds(sessions, rounds=5, threads=2, after_each=lambda: seen.append(1))
    assert [len(one.runs) for one in samples] == [5, 5]  # on two threads no run counts as disturbed
    assert len(seen) == 10
    assert np.median(samples[1].milliseconds) > np.median(samples[0].milliseconds) > 0


class Waiting:
    """Stands in for a session whose runs spend some of their time off the processor."""

    def __init__(self, waits):
        self.waits, self.calls = waits, 0

    def get_inputs(self):
        return []

    def run(self, *_):
        self.calls += 1
        begin = time.thread_time()
        while time.thread_time() - begin < 0.006:
            pass
        if self.calls % 2 == 0 and self.waits(self.calls // 2):  # every other run is a warm-up
            time.sleep(0.02)


def test_runs_in_which_others_had_the_core_are_taken_again():
    samples = time_rounds([Waiting(lambda run: run in (1, 3))], rounds=4)[0]
    assert len(samples.runs) >= 6
    assert samples.runs[0].is_disturbed
    assert samples.runs[2].is_disturbed


def test_undisturbed_runs_count_alone_if_there_are_enough():
    quiet, waited = TimedRun(2.0, 1.99, False), TimedRun(50.0, 2.2, True)
    assert TimedRuns([quiet, waited, quiet, quiet]).milliseconds == [2.0, 2.0, 2.0]
    assert TimedRuns([quiet, waited, waited, quiet]).milliseconds == [2.0, 2.2, 2.2, 2.0]
    assert TimedRuns([quiet]).milliseconds == [2.0]
    assert TimedRuns([quiet, waited]).disturbed_share == 0.5


def test_where_every_run_is_disturbed_the_waiting_is_left_out_and_the_rounds_end():
    samples = time_rounds([Waiting(lambda run: True)], rounds=2)[0]
    assert len(samples.runs) == 6
    assert samples.disturbed_share == 1
    assert all(run.milliseconds > 20 for run in samples.runs)
    assert all(5 < milliseconds < 20 for milliseconds in samples.milliseconds)


def test_the_summary_of_samples():
    assert summary([4.0, 1.0, 2.0, 3.0, 100.0]) == {
        "median_ms": 3.0,
        "lower_ms": 2.0,
        "upper_ms": 4.0,
        "min_ms": 1.0,
        "repeats": 5,
    }
    assert summary([2.0])["median_ms"] == 2.0


def test_a_profile_of_this_machine_is_complete_and_survives_its_file(tmp_path):
    begin = time.process_time()  # not that of others on this machine
    profile = profile_machine("here", quick=True, repeats=3, threads=1, shapes=SHAPES, progress=False)
    assert time.process_time() - begin < 20
    assert profile.cores >= 1
    assert profile.memory_mib > 100
    assert profile.sustained_gflops > 0
    assert profile.watts is None
    assert profile.sources["watts"] == "null: not measured; this machine has no power meter"
    assert all(profile.sources[figure].startswith("measured") for figure in FIGURES if figure != "watts")
    assert profile.latency_all_cores is None  # threads=1 is the only measurement
    fitted = profile.provenance["fits"][0]
    assert fitted["threads"] == 1
    assert [row["tokens"] for row in fitted["measurements"]] == [7, 10, 17]
    for shape, row in zip(SHAPES, fitted["measurements"], strict=True):
        assert 3 <= row["repeats"] <= 9
        assert predicted_ms(shape, profile) == pytest.approx(row["predicted_ms"], abs=1e-4)
        assert row["min_ms"] <= row["median_ms"] <= row["upper_ms"]
    assert {"machine", "versions", "date", "commit", "method"} <= set(profile.provenance)
    save_profile(profile, tmp_path / "here.yaml")
    assert load_profile(tmp_path / "here.yaml") == profile
    assert list(tmp_path.iterdir()) == [tmp_path / "here.yaml"]


@pytest.mark.parametrize(
    "change", [{"threads": 0}, {"threads": 10_000}, {"repeats": 0}, {"name": ""}, {"watts": 0}, {"watts": float("nan")}]
)
def test_what_cannot_be_measured_is_refused_before_anything_is(change):
    with pytest.raises(EDViTError, match=r"[Ll]eave it out|at least 1|Pass `--name`"):
        profile_machine(**{"name": "x", "shapes": SHAPES, "progress": False, **change})


def test_a_place_that_cannot_be_written_or_read_by_a_fleet_is_refused_before_measuring(tmp_path):
    for path in (tmp_path, tmp_path / "absent" / "new.yaml", tmp_path / "my_pi5", tmp_path / "my_pi5.json"):
        done = CliRunner().invoke(app, ["profile", "--output", str(path)])
        assert done.exit_code == 1
        assert "Name a file" in done.output or "my_pi5.yaml" in done.output
    assert not list(tmp_path.iterdir())


def test_watts_are_the_users_or_the_known_boards(monkeypatch, tmp_path):
    def profiled(**options):
        return profile_machine("x", quick=True, repeats=1, threads=1, shapes=SHAPES, progress=False, **options)

    given = profiled(watts=6.5)
    assert (given.watts, given.sources["watts"]) == (6.5, "given by the user")
    save_profile(given, tmp_path / "mine.yaml")
    (tmp_path / "fleet.yaml").write_text("devices: [{name: a, profile: mine.yaml, energy_mj: 3}]")
    assert load_fleet(tmp_path / "fleet.yaml").devices[0].hardware.watts == 6.5
    monkeypatch.setattr("edvit_hf.hardware.profiling.detect_profile", lambda: "raspberry-pi-4b")
    known = profiled()
    assert known.watts == 7.2
    assert known.sources["watts"].startswith("published, of the profile raspberry-pi-4b: [HPL]")
    assert profiled(watts=5.0).watts == 5.0


def test_the_command_prints_what_it_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("edvit_hf.hardware.profiling.shapes_to_measure", lambda quick: SHAPES)
    path = tmp_path / "my_board.yaml"
    arguments = ["profile", "--output", str(path), "--quick", "--threads", "1", "--repeats", "2", "--watts", "4"]
    done = CliRunner().invoke(app, [*arguments, "--format", "json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["name"] == "my_board"
    assert document["watts"] == 4
    assert document["latency"] == load_profile(path).latency
    done = CliRunner().invoke(app, [*arguments, "--name", "my board"])
    assert done.exit_code == 0, done.output
    assert load_profile(path).name == "my board"
    assert "GFLOP/s" in done.output
    assert "median error" in done.output


def test_profiling_needs_no_torch_and_names_the_extra_without_onnx():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from edvit_hf.hardware.profiling import profile_machine\n"
        "from edvit_hf.hardware.profiling_graphs import encoder_shape\n"
        "shapes = [encoder_shape(16, 2, 8, 24, 2, 2, 3)]\n"
        "profile_machine('x', quick=True, repeats=1, threads=1, shapes=shapes, progress=False)\n"
        "for name in [n for n in sys.modules if n.split('.')[0] == 'onnx']: del sys.modules[name]\n"
        "class Hide:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'onnx': raise ModuleNotFoundError(\"No module named 'onnx'\", name='onnx')\n"
        "sys.meta_path.insert(0, Hide())\n"
        "try: profile_machine('x', shapes=shapes, progress=False)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingExtraError Profiling a machine needs the package `onnx`")
    assert "edvit_hf[profile]" in done.stdout


def test_no_measured_shape_is_a_whole_head_cut_of_vit_base():
    """The prediction benchmark measures those: a model that has seen them would prove nothing."""
    for shape in shapes_to_measure():
        w = shape.widths
        assert not (shape.tokens == 197 and w.residual == 64 * w.heads and w.layers == 12)


def test_the_benchmark_accounts_for_every_kernel_of_a_graph(tmp_path):
    shape = encoder_shape(96, 4, 24, 192, 3, 8, 8)
    (tmp_path / "graph.onnx").write_bytes(encoder_graph(shape).SerializeToString())
    found = benchmark("speed.vit_base_onnx").breakdown(tmp_path / "graph.onnx", 5, shape)
    assert found["kernels"]["linear"]["calls"] == 3 * 6 + 1
    assert found["kernels"]["attention"]["calls"] == 3 * 2
    assert found["kernels"]["Softmax"]["calls"] == 3
    assert found["parts_ms"]["rest"] < 0.1 * found["kernels_ms"]
    assert sum(found["parts_ms"].values()) == pytest.approx(found["kernels_ms"], abs=1e-3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["graph.onnx"]
