# SPDX-License-Identifier: Apache-2.0
"""Tables for the terminal: whole columns at a common width, and one pass for one prediction."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from edvit_hf.cli import tables
from edvit_hf.cli.tables import prediction_report, results_tables
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.transforms import ImageTransform
from support.tiny_ensemble import SIZE, write_tiny_ensemble

GROUPS = [[0, 3], [1], [2, 4]]


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    root = tmp_path_factory.mktemp("ensemble")
    write_tiny_ensemble(root, GROUPS)
    return EDViTRuntime.from_pretrained(root, num_threads=1)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
    return path


def test_a_prediction_reads_the_image_once_and_runs_each_sub_model_once(ensemble, picture, monkeypatch):
    expected = {i: ensemble(picture, absent=[i]) for i in range(3)}
    engine = ensemble.coordinator.engine
    done, submit, transform = Counter(), engine.submit, ImageTransform.__call__

    def counted_submit(index, request):
        done[index] += 1
        return submit(index, request)

    def counted_transform(self, image):
        done["decoded"] += 1
        return transform(self, image)

    monkeypatch.setattr(engine, "submit", counted_submit)
    monkeypatch.setattr(ImageTransform, "__call__", counted_transform)
    report = prediction_report(ensemble, picture)
    assert done == {0: 1, 1: 1, 2: 1, "decoded": 1}
    assert [row["sub_model"] for row in report["without"]] == [0, 1, 2]
    for row in report["without"]:
        assert row["label"] == expected[row["sub_model"]].labels[0]
        assert row["probability"] == pytest.approx(expected[row["sub_model"]].probabilities.max(), abs=1e-6)


def test_a_prediction_of_generalists_names_what_each_was_cut_for(tmp_path, picture):
    manifest = write_tiny_ensemble(tmp_path, [[0, 1, 2]] * 2, kind="average")
    replace(manifest, focus_groups=[[0, 2], [1]]).save(tmp_path)
    with EDViTRuntime.from_pretrained(tmp_path, num_threads=1) as runtime:
        report = prediction_report(runtime, picture)
    assert [row["cut_for"] for row in report["votes"]] == [["class_0", "class_2"], ["class_1"]]
    (table,) = tables.prediction_tables(report)
    assert str(table.columns[1].header) == "cut for"
    assert [str(cell) for cell in table.columns[1].cells] == ["class_0 class_2", "class_1"]


def test_the_last_sub_model_present_has_no_answer_without_it(ensemble, picture):
    report = prediction_report(ensemble, picture, absent=[0, 2])
    assert report["without"] == []
    assert [vote["present"] for vote in report["votes"]] == [False, True, False]


def test_the_results_fit_132_columns_with_every_heading_whole():
    row = {
        "name": "plain model, per-device size",
        "kind": "baseline",
        "parameters": 86_567_656,
        "parameters_per_device": 86_567_656,
        "macs_per_device": 17_563_000_000,
        "accuracy": 1.0,
        "macro_f1": 1.0,
        "against_teacher": {"difference": -0.1234, "low": -0.2345, "high": -0.1111},
    }
    results = {
        "recipe": "digits",
        "dataset": {"num_test_items": 10_000},
        "rows": [{**row, "against_teacher": None}, row],
        "absent": [],
    }
    console = Console(width=132)
    with console.capture() as capture:
        console.print(results_tables(results)[0])
    text = capture.get()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 132
    assert text.count("per device") == 3
    for heading in ("x smaller", "MMACs", "-12.34 [-23.45, -11.11]", "86,567,656", "17563.00"):
        assert heading in text


def test_a_class_group_without_an_item_has_no_accuracy_and_the_table_says_so():
    row = {"absent": [], "accuracy": 0.5, "macro_f1": 0.25, "num_items": 3, "per_group_accuracy": [0.5, None]}
    table = tables.evaluation_table({"precision": "fp32", "rows": [row]})
    assert [str(cell) for cell in table.columns[3].cells] == ["50.0 -"]


@pytest.mark.parametrize(
    ("missing_classes", "words"), [(["cat"], "least is known about the classes cat"), ([], "others know every class")]
)
def test_a_degraded_answer_names_the_classes_that_nobody_knows(missing_classes, words):
    vote = {"sub_model": 0, "classes": ["cat"], "present": False, "missing": "absent", "vote": None}
    report = {
        **{"label": "dog", "probability": 0.5, "milliseconds": 1.0, "missing_classes": missing_classes, "without": []},
        "votes": [{**vote, "milliseconds": None, "bytes_sent": 0}],
    }
    (table,) = tables.prediction_tables(report)
    assert words in str(table.caption)
