# SPDX-License-Identifier: Apache-2.0
"""What a caller passes by mistake is told in our own words; a runtime that was loaded is ready for its first input."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edvit_hf.errors import DataError, EDViTError, ManifestError
from edvit_hf.manifest import Manifest
from edvit_hf.runtime import EDViTRuntime, LocalEngine
from edvit_hf.runtime.answers import Fusion
from edvit_hf.tasks import TASKS
from support.drills import StubEngine
from support.tiny_ensemble import TASK_GROUPS, write_tiny_ensemble

pytest_plugins = ["support.task_fixtures"]
IMAGE, AUDIO, TEXT = TASKS
PICTURE = np.zeros((9, 9, 3), np.uint8)


@pytest.mark.parametrize("wrong", ["5", True, 1j, [5], 10**400, float("nan"), 0, -1.0, np.bool_(1)])
def test_a_deadline_that_is_no_positive_number_is_refused(folders, runtimes, wrong):
    runtime = runtimes[IMAGE]
    for ask in (runtime, lambda p, **o: runtime.batch([p], **o), lambda p, **o: runtime.stream([p], **o)):
        with pytest.raises(EDViTError, match="Expected a positive `deadline_ms`"):
            ask(PICTURE, deadline_ms=wrong)
    with pytest.raises(EDViTError, match="Expected a positive `deadline_ms`"):
        EDViTRuntime.from_pretrained(folders[IMAGE], deadline_ms=wrong)
    assert set(runtime.status()["breakers"].values()) == {"closed"}


@pytest.mark.parametrize("given", [60_000, 6e4, np.float32(6e4), np.int64(60_000), float("inf"), 1e300])
def test_a_deadline_of_any_type_of_number_is_taken(runtimes, given):
    assert not runtimes[IMAGE](PICTURE, deadline_ms=given).degraded


@pytest.mark.parametrize("wrong", [2, "2", "01", None, [None], [1.0], ["1"], [[1]], [True, False, True], np.array(2)])
def test_sub_models_that_are_no_list_of_numbers_are_refused(folders, runtimes, wrong):
    runtime = runtimes[IMAGE]
    for ask in (
        lambda: runtime(PICTURE, absent=wrong),
        lambda: runtime.explain(PICTURE, absent=wrong),
        lambda: runtime.batch([PICTURE], absent=wrong),
        lambda: runtime.stream([PICTURE], absent=wrong),
    ):
        with pytest.raises(EDViTError, match=r"Expected `absent` to be a list of whole numbers.*Pass a list"):
            ask()
    if wrong is not None:
        with pytest.raises(EDViTError, match="Expected `sub_models` to be a list of whole numbers"):
            EDViTRuntime.from_pretrained(folders[IMAGE], sub_models=wrong)


@pytest.mark.parametrize("given", [(1,), {1}, np.array([1]), range(1, 2), iter([1])])
def test_sub_models_may_be_named_by_anything_that_holds_their_numbers(runtimes, given):
    assert runtimes[IMAGE](PICTURE, absent=given).missing == {1: "absent"}


@pytest.mark.parametrize("wrong", ["2", 1.5, 0.5, True, None, 0, -3])
def test_a_size_of_batches_that_is_none_is_refused(runtimes, wrong):
    with pytest.raises(DataError, match="`batch_size` of at least 1"):
        runtimes[IMAGE].stream([PICTURE], batch_size=wrong)


@pytest.mark.parametrize("wrong", ["2", 1.5, True, [2], 0])
def test_a_number_of_threads_that_is_none_is_refused(folders, wrong):
    for schedule in ("auto", "in_turn", "per_core"):
        with pytest.raises(EDViTError, match="`num_threads` must be a whole number"):
            EDViTRuntime.from_pretrained(folders[IMAGE], num_threads=wrong, schedule=schedule)


SOUND = np.zeros(1000, np.float32)


@pytest.mark.parametrize(
    ("task", "single"),
    [
        (IMAGE, "a/path.png"),
        (IMAGE, Path("a/path.png")),
        (IMAGE, b"bytes"),
        (IMAGE, io.BytesIO(b"a\nb")),
        (IMAGE, PICTURE),
        (IMAGE, PICTURE[..., 0]),
        (IMAGE, None),
        (IMAGE, 3),
        (AUDIO, SOUND),
        (AUDIO, (SOUND, 8000)),
        (AUDIO, (8000, SOUND)),
        (AUDIO, {"array": SOUND, "sampling_rate": 8000}),
        (TEXT, "word1 word2"),
        (TEXT, bytearray(b"word1")),
        (TEXT, np.array("word1")),
    ],
)
def test_one_source_is_not_taken_for_several(runtimes, task, single):
    for ask in (runtimes[task].batch, runtimes[task].stream):
        with pytest.raises(DataError, match=r"Expected several sources, got one .*\[source\]"):
            ask(single)


def test_arrays_of_several_are_several(runtimes):
    assert len(runtimes[IMAGE].batch(np.zeros((4, 9, 9, 3), np.uint8))) == 4
    assert len(runtimes[IMAGE].batch(np.zeros((4, 9, 9), np.uint8))) == 4  # grey
    assert len(runtimes[AUDIO].batch(np.zeros((2, 1000), np.float32))) == 2
    assert len(runtimes[AUDIO].batch(((SOUND, 8000), (SOUND, 16_000)))) == 2
    assert len(runtimes[TEXT].batch(np.array(["word1", "word2"]))) == 2


def test_batches_and_streams_have_deadlines(runtimes, monkeypatch):
    runtime, asked = runtimes[IMAGE], []
    predict = runtime.predict
    monkeypatch.setattr(runtime, "predict", lambda *a, **o: asked.append(o["deadline_ms"]) or predict(*a, **o))
    runtime.batch([PICTURE], deadline_ms=50_000)
    list(runtime.stream([PICTURE], deadline_ms=60_000))
    runtime.batch([PICTURE])
    assert asked == [50_000, 60_000, None]


def test_a_runtime_says_what_it_is(folders):
    part = EDViTRuntime.from_pretrained(folders[TEXT], sub_models=[2, 0], schedule="workers")
    assert repr(part) == "<EDViTRuntime tiny: text-classification, sub-models 0, 2 of 3, schedule workers>"
    part.close()
    assert repr(part).endswith(", closed>")
    whole = EDViTRuntime.from_pretrained(folders[IMAGE], engine=StubEngine(Manifest.load(folders[IMAGE])))
    assert repr(whole) == "<EDViTRuntime tiny: image-classification, 3 sub-models, engine StubEngine>"


def test_everything_has_run_once_when_it_is_loaded(folders, monkeypatch):
    asked, fused = [], []
    submit, run = LocalEngine.submit, Fusion.fused
    monkeypatch.setattr(LocalEngine, "submit", lambda self, i, request: asked.append(i) or submit(self, i, request))
    monkeypatch.setattr(
        Fusion, "fused", lambda self, *given, **options: fused.append(1) or run(self, *given, **options)
    )
    runtime = EDViTRuntime.from_pretrained(folders[IMAGE], schedule="in_turn")
    assert sorted(asked) == [0, 1, 2]
    assert fused == [1]
    assert set(runtime.status()["requests"].values()) == {0}  # nobody has asked yet


def test_the_first_input_finds_loaded_what_reads_it(folders, tmp_path):
    """In a fresh process, each task's first answer imports nothing of any reader's any more."""
    code = """
import io, sys, wave
from edvit_hf.runtime import EDViTRuntime
png = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000002000000020802000000fdd49a730000000b494441"
    "54789c6360400600000e0001a99173b10000000049454e44ae426082"
)
sound = io.BytesIO()
with wave.open(sound, "wb") as out:
    out.setparams((1, 2, 8000, 0, "NONE", ""))
    out.writeframes(bytes(4000))
for folder, source in zip(sys.argv[1:], (png, sound.getvalue(), "word1"), strict=True):
    runtime = EDViTRuntime.from_pretrained(folder, schedule="in_turn", num_threads=1)
    before = set(sys.modules)
    runtime(source)
    print(sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, folders.values())], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["[]", "[]", "[]", ""]


def test_without_what_reads_inputs_prepared_ones_are_answered(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    runtime = EDViTRuntime.from_pretrained(folders[IMAGE], schedule="in_turn")
    assert not runtime.predict(np.zeros((1, 3, 8, 8), np.float32)).degraded


def share(folder, tmp_path, *kept):
    """A copy of the ensemble with only these graphs, as a device's share has them."""
    manifest = write_tiny_ensemble(tmp_path / "share", TASK_GROUPS)
    for file in (tmp_path / "share").rglob("*.onnx"):
        if file.relative_to(tmp_path / "share").as_posix() not in kept:
            file.unlink()
    del folder
    return tmp_path / "share", manifest


def test_a_share_says_what_it_holds_and_how_to_fetch_the_fusion_head(folders, tmp_path):
    int8, fp32 = ("sub_models/00/onnx/model_quint8_avx2.onnx", "sub_models/00/onnx/model.onnx")
    root, _ = share(folders[IMAGE], tmp_path, int8)
    with pytest.raises(ManifestError) as refused:
        EDViTRuntime.from_pretrained(root, sub_models=[0], precision="fp32")
    for told in (
        f"{fp32} (fp32 of sub-model 0), onnx/fusion.onnx (the fusion head)",
        "got sub-model 0 as int8 for x86-avx2 and no fusion head",
        "Ask for what is there: --precision int8",
        "--profile x86-avx2",
        "edvit pull REPO --sub-model 0 --precision int8 --profile x86-avx2 --fusion",
    ):
        assert told in str(refused.value)
    root, _ = share(folders[IMAGE], tmp_path, int8, "onnx/fusion.onnx")
    with pytest.raises(ManifestError, match=r"and the fusion head.*Ask for what is there: --sub-model 0 "):
        EDViTRuntime.from_pretrained(root, precision="fp32")
    assert EDViTRuntime.from_pretrained(root, sub_models=[0], precision="int8").loaded == (0,)
    root, _ = share(folders[IMAGE], tmp_path)
    with pytest.raises(ManifestError, match=r"got no sub-model and no fusion head.*edvit pull REPO --fusion"):
        EDViTRuntime.from_pretrained(root)


def test_a_share_answers_as_it_was_pulled_and_a_damaged_export_does_not(folders, tmp_path):
    kept = ("sub_models/00/onnx/model_quint8_avx2.onnx", "sub_models/02/onnx/model.onnx", "onnx/fusion.onnx")
    root, _ = share(folders[IMAGE], tmp_path, *kept)
    shutil.rmtree(root / "sub_models/01")
    runtime = EDViTRuntime.from_pretrained(root, schedule="in_turn")
    assert runtime.loaded == (0, 2)
    answer = runtime.predict(np.zeros((1, 3, 8, 8), np.float32))
    assert answer.degraded
    assert EDViTRuntime.from_pretrained(root, sub_models=[2]).loaded == (2,)
    with pytest.raises(ManifestError, match=r"fp32 of sub-model 1"):
        EDViTRuntime.from_pretrained(root, sub_models=[1])
    (root / "sub_models/01").mkdir()  # it was here: its graph is lost
    with pytest.raises(ManifestError, match=r"Expected sub_models/01/onnx/model\.onnx"):
        EDViTRuntime.from_pretrained(root)


def test_an_engine_of_ones_own_needs_no_graph_but_the_fusion_head(folders, tmp_path):
    root, manifest = share(folders[IMAGE], tmp_path, "onnx/fusion.onnx")
    assert EDViTRuntime.from_pretrained(root, engine=StubEngine(manifest)).loaded == (0, 1, 2)
    (root / "onnx/fusion.onnx").unlink()
    with pytest.raises(ManifestError, match=r"Expected onnx/fusion\.onnx \(the fusion head\)"):
        EDViTRuntime.from_pretrained(root, engine=StubEngine(manifest))


def test_what_is_to_be_said_of_all_sub_models_is_said_once(tmp_path, caplog, monkeypatch):
    import dataclasses

    from edvit_hf.runtime import sessions

    monkeypatch.setattr(sessions, "detect_profile", lambda: "raspberry-pi-5")
    entry = write_tiny_ensemble(tmp_path, TASK_GROUPS).sub_models[0]
    sessions.chosen_variants([dataclasses.replace(entry, index=i) for i in (0, 2, 1)], "int8", None)
    (record,) = caplog.records
    assert record.getMessage().startswith("sub-models 0, 2, 1: no int8 file for raspberry-pi-5, and quint8_avx2")
