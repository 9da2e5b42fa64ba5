# SPDX-License-Identifier: Apache-2.0
"""`edvit predict` for every kind of input: a picture, a sound, a text, from a file or from standard input."""

import io
import json
import time

import numpy as np
import pytest
import soundfile
from PIL import Image
from typer.testing import CliRunner

from edvit_hf.cli import app
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.runtime.engines import local as local_engine
from edvit_hf.tasks import TASKS
from support.tiny_ensemble import FEATURES, TASK_GROUPS, write_tiny_ensemble

pytest_plugins = ["support.task_fixtures"]
TEXT = "word3 word1 unheard-of word9"
runner = CliRunner()


def encoded(task):
    """What an input of this kind looks like as bytes."""
    file, rng = io.BytesIO(), np.random.default_rng(0)
    if task == "text-classification":
        return TEXT.encode()
    if task == "image-classification":
        Image.fromarray(rng.integers(0, 256, (20, 9, 3), dtype=np.uint8)).save(file, "PNG")
    else:
        soundfile.write(file, rng.normal(size=3000) / 5, 8000, format="WAV")
    return file.getvalue()


def predict(*arguments, stdin=None):
    return runner.invoke(app, ["predict", *map(str, arguments)], input=stdin)


def report_of(*arguments, stdin=None):
    done = predict(*arguments, "--format", "json", stdin=stdin)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("task", TASKS)
def test_a_file_and_standard_input_give_the_answer_of_the_runtime(folders, tmp_path, task):
    content, source = encoded(task), tmp_path / "input"
    source.write_bytes(content)
    given = TEXT if task == "text-classification" else source
    answer = EDViTRuntime.from_pretrained(folders[task])(given)
    expected = dict(zip(answer.label_names, answer.probabilities[0].tolist(), strict=True))
    by_name = report_of(folders[task], given)
    by_stdin = report_of(folders[task], "-", stdin=content)
    for report in (by_name, by_stdin):
        assert report["probabilities"] == pytest.approx(expected, abs=1e-6)
        assert report["label"] == answer.labels[0]
        assert [vote["present"] for vote in report["votes"]] == [True] * 3
        assert [without["sub_model"] for without in report["without"]] == [0, 1, 2]
    assert by_name["input"] == str(given)
    assert by_stdin["input"] == (TEXT if task == "text-classification" else f"{len(content)} bytes")


@pytest.mark.parametrize("task", TASKS)
def test_a_dropped_sub_model_is_left_out_whatever_the_input(folders, tmp_path, task):
    source = tmp_path / "input"
    source.write_bytes(encoded(task))
    given = TEXT if task == "text-classification" else source
    report = report_of(folders[task], given, "--drop", 1)
    assert [vote["present"] for vote in report["votes"]] == [True, False, True]
    assert report["degraded"]
    assert report["missing_classes"] == ["class_1"]
    assert [vote["missing"] for vote in report["votes"]] == [None, "absent", None]
    assert [vote["bytes_sent"] for vote in report["votes"]] == [4 * FEATURES, 0, 4 * FEATURES]
    table = predict(folders[task], given, "--drop", 1)
    assert report["label"] in table.output
    for told in ("missing: absent", "degraded: without sub-model 1", "class_1"):
        assert told in " ".join(table.output.split())


@pytest.mark.parametrize("option", ["--deadline-ms", "--deadline"])
def test_a_sub_model_beyond_the_deadline_is_told(folders, monkeypatch, option):
    run, ran = local_engine._run, []

    def slow_last(session, index, feeds, options):
        ran.append(index)
        while ran.count(2) > 1 and index == 2 and not options.terminate:  # until nobody waits for it any more
            time.sleep(0.001)
        return run(session, index, feeds, options)

    monkeypatch.setattr(local_engine, "_run", slow_last)
    report = report_of(folders["text-classification"], TEXT, option, 800)
    assert report["degraded"]
    assert [vote["missing"] for vote in report["votes"]] == [None, None, "deadline"]
    assert report["milliseconds"] > 799


def test_a_share_can_be_tried(folders, tmp_path):
    """What `edvit pull DIR --sub-model 0 --profile x86-avx2 --fusion` fetches answers, and says what it lacks."""
    write_tiny_ensemble(tmp_path, TASK_GROUPS, task="text-classification")
    for file in tmp_path.rglob("model.onnx"):
        file.unlink()
    share = ("--sub-model", 0, "--precision", "int8", "--profile", "x86-avx2", "--num-threads", 1)
    report = report_of(tmp_path, TEXT, *share, "--schedule", "workers")
    assert [vote["missing"] for vote in report["votes"]] == [None, "not loaded", "not loaded"]
    whole = report_of(folders["text-classification"], TEXT, *share)
    assert report["probabilities"] == pytest.approx(whole["probabilities"])
    as_pulled = report_of(tmp_path, TEXT, *share[:2], "--num-threads", 1)
    assert as_pulled["probabilities"] == pytest.approx(whole["probabilities"])
    done = predict(tmp_path, TEXT, *share[:2], "--precision", "fp32")
    assert done.exit_code == 1
    assert "Ask for what is there: --precision int8" in " ".join(done.output.split())


@pytest.mark.parametrize("task", ["image-classification", "audio-classification"])
def test_something_else_than_the_ensemble_is_for_is_one_message(folders, tmp_path, task):
    (tmp_path / "input").write_text("hello")
    for done in (predict(folders[task], tmp_path / "input"), predict(folders[task], tmp_path / "none")):
        assert done.exit_code == 1
        assert "error: Expected" in done.output
        assert "Traceback" not in done.output


def test_the_name_of_a_file_is_not_classified_as_a_text(folders, tmp_path):
    (tmp_path / "question.txt").write_text(TEXT)
    done = predict(folders["text-classification"], tmp_path / "question.txt")
    assert done.exit_code == 1
    assert "edvit predict DIR - <" in done.output


def test_a_text_may_be_long_or_hold_other_scripts(folders):
    for text in ("word1 " * 5000, "слово 词 😀 word1"):
        report = report_of(folders["text-classification"], "-", stdin=text.encode())
        assert sum(report["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    for text in ("word1 " * 5000, "word1 " + "слово " * 300):  # on the command line; longer than any name of a file
        assert report_of(folders["text-classification"], text)["input"] == text


@pytest.mark.parametrize("text", ["", "  ", "слово 词 😀"])
def test_a_text_of_which_nothing_is_known_is_one_message(folders, text):
    for arguments, stdin in (([text], None), (["-"], text)):
        done = predict(folders["text-classification"], *arguments, stdin=stdin)
        assert done.exit_code == 1
        assert "that the tokenizer knows" in " ".join(done.output.split())
        assert "Traceback" not in done.output
