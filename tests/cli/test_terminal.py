# SPDX-License-Identifier: Apache-2.0
"""Text of strangers on a terminal: names of classes, devices and files, in every table, line, bar, log and error."""

import ast
import io
import json
import logging
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import edvit_hf
from edvit_hf.cli import app
from edvit_hf.cli.tables import absent_table, doctor_table, export_tables, prediction_tables, results_tables
from edvit_hf.terminal import LogFormat, Terminal, new_table, progress_bar, visible, visible_lines
from support.serving_setup import GROUPS, TEXT_TASK
from support.tiny_ensemble import write_tiny_ensemble

PACKAGE = Path(edvit_hf.__file__).parent
HOSTILE = {
    "[digit 6]": "[digit 6]",
    "[/x]": "[/x]",
    "[bold red]a[/]": "[bold red]a[/]",
    "[link=http://x]y[/link]": "[link=http://x]y[/link]",
    ":smile:": ":smile:",
    "\\[x]": "\\[x]",
    "a\x1b[31mb": "a\\x1b[31mb",
    "a\x1b]0;t\x07b": "a\\x1b]0;t\\x07b",
    "a\x9b2Jb": "a\\x9b2Jb",  # the same sequence in one character
    "a\rb": "a\\rb",
    "a\nb": "a\\nb",
    "a\tb": "a\\tb",
    "a\x08b": "a\\x08b",
    "a\x7fb": "a\\x7fb",
    "a\u202eb": "a\\u202eb",
    "a\u2066b": "a\\u2066b",
    "a\u2028b": "a\\u2028b",
    "a\u200bb": "a\\u200bb",
    "a\ufeffb": "a\\ufeffb",
    "a\udc9bb": "a\\udc9bb",  # a byte of a file's name that is no UTF-8
    "\U000e0041": "\\U000e0041",
}
HARMLESS = ["Zürich", "東京", "नमस्ते", "می\u200cخواهم", "👩\u200d🚒", "naïve café", "50 %"]


def is_calm(text):
    """Whether a terminal would show all of it and obey nothing."""
    return visible(text, keep="\n") == text


def printed(renderable, console=Console, **settings):
    file = io.StringIO()
    console(file=file, width=400, **settings).print(renderable)
    return file.getvalue()


@pytest.mark.parametrize(("text", "shown"), HOSTILE.items())
def test_what_a_terminal_would_obey_is_written_out(text, shown):
    assert visible(text) == shown
    assert is_calm(visible_lines(text))


@pytest.mark.parametrize("text", HARMLESS)
def test_names_in_any_script_stay_as_they_are(text):
    assert visible(text) == text


def test_a_second_line_cannot_pass_for_a_message_of_its_own():
    assert visible_lines("no such class: a\nerror: all is well\n") == "no such class: a\n  error: all is well"


@pytest.mark.parametrize("console", [Console, Terminal])
@pytest.mark.parametrize(("text", "shown"), HOSTILE.items())
def test_a_table_shows_its_texts_on_whatever_console(text, shown, console):
    table = new_table([f">{visible(text)}", "b"], title=text, caption=[text, "second"])
    table.add_row(text, 3)
    lines = printed(table, console)
    assert lines.count(shown) == 4
    assert is_calm(lines)


@pytest.mark.parametrize(("text", "shown"), [each for each in HOSTILE.items() if each[0] != "a\nb"])
def test_a_line_shows_its_text(text, shown):
    assert printed(text, Terminal) == f"{shown}\n"
    assert printed(text, Terminal, force_terminal=True) == f"{shown}\n"


def test_a_bar_shows_its_description(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    with progress_bar(is_shown=True) as bar:
        bar.update(bar.add_task("a\x1b[31m[/x]", total=2), advance=1, refresh=True)
    assert "a\\x1b[31m[/x]" in file.getvalue()


def test_a_log_line_shows_its_text():
    record = logging.LogRecord("edvit_hf", logging.WARNING, __file__, 1, "file %s", ("a\x1b[2J\nb",), None)
    assert LogFormat("%(message)s").format(record) == "file a\\x1b[2J\n  b"


def test_every_table_of_the_commands_shows_its_texts(benched_report):
    from edvit_hf.bench import bench_table
    from edvit_hf.published.plan import plan_published  # noqa: F401  (a room whose plans the tables take)

    for text, shown in HOSTILE.items():
        tables = [
            *prediction_tables(_prediction(text)),
            *results_tables(_results(text)),
            doctor_table(_doctor(text)),
            absent_table({text: {"absent": [_absent()]}}),
            *export_tables(_export(text)),
            bench_table(benched_report(text)),
        ]
        for table in tables:
            lines = printed(table, Terminal)
            assert shown in lines
            assert is_calm(lines)


def _prediction(text):
    vote = {"label": text, "probability": 0.5}
    row = {"sub_model": 0, "classes": [text], "present": True, "missing": None, "vote": vote, "milliseconds": 1.0}
    gone = {**row, "sub_model": 1, "present": False, "missing": text, "vote": None, "bytes_sent": 0}
    return {
        **{"label": text, "probability": 0.5, "milliseconds": 1.0, "missing_classes": [text]},
        **{"votes": [{**row, "bytes_sent": 1}, gone], "without": [{"sub_model": 0, **vote}]},
    }


def _results(text):
    row = {"name": text, "accuracy": 0.5, "macro_f1": 0.5, "against_teacher": None, "parameters": 1}
    row |= {"parameters_per_device": 1, "macs_per_device": 1.0}
    return {
        "recipe": text,
        "dataset": {"num_test_items": 3},
        "rows": [row],
        "absent": [_absent() | {"num_absent": text}],
    }


def _absent():
    return {"num_absent": 0, "num_subsets": 1, "accuracy_mean": 0.5, "accuracy_min": 0.5, "accuracy_max": 0.5}


def _doctor(text):
    machine = {"cpu": text, "cores": 1, "memory_gib": 1}
    findings = [{"level": "ok", "subject": text, "text": text}]
    return {"machine": machine, "profile": text, "versions": {text: text}, "findings": findings}


def _export(text):
    row = {"name": text, "profiles": [text], "accuracy": None, "weight_ratio": None, "bytes": 1, "parity": 0.0}
    row |= {"argmax_agreement": 1.0, "gate": None, "precision": "fp32", "inputs": "prepared"}
    return {"id": text, "variants": [row], "whole": [], "accuracy_note": None}


@pytest.fixture
def benched_report():
    from edvit_hf.bench import BenchReport, BenchRow

    def make(text):
        row = BenchRow(
            **{"owner": text, "name": text, "file": text, "precision": "fp32", "bytes": 1, "inputs": {}, "median": 1.0},
            **{"p90": 1.0, "min": 1.0, "max": 1.0, "repeats_ms": [1.0], "runs": 1, "disturbed_share": 0.0},
            **{"load_ms": 1.0, "peak_memory_mib": None, "idle_memory_mib": None},
        )
        protocol = {"environment": {"machine": {"cpu": text}}, "isa": text, "batch": 1, "threads": 1, "repeats": 1}
        return BenchReport(ensemble=text, content_hash="", protocol=protocol, rows=[row], left_out=[])

    return make


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """An ensemble whose classes are called what they should not be."""
    root = tmp_path_factory.mktemp("texts")
    names = ["[digit 6]", "[/x]", "a\x1b[31mb", "x:smile:", "東京\u202e"]
    write_tiny_ensemble(root, GROUPS, task=TEXT_TASK, label_names=names)
    return root, names


def test_predict_shows_every_class_and_its_json_holds_them_exactly(texts):
    root, names = texts
    shown = CliRunner().invoke(app, ["predict", str(root), "word1", "--drop", "1"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.exception
    assert is_calm(shown.output)
    assert all(visible(name) in shown.output for name in names)
    report = json.loads(CliRunner().invoke(app, ["predict", str(root), "word1", "--format", "json"]).stdout)
    assert list(report["probabilities"]) == names


@pytest.mark.parametrize("name", ["[/x]", "a\x1b[31mb", "[bold]b"])
def test_plan_shows_every_device(tmp_path, name):
    devices = [{"name": name if i == 0 else f"d{i}", "profile": "x86-avx2"} for i in range(5)]
    (tmp_path / "fleet.yaml").write_text(json.dumps({"devices": devices}))
    done = CliRunner().invoke(app, ["plan", "digits", "--fleet", str(tmp_path / "fleet.yaml")])
    assert is_calm(done.output)
    assert done.exit_code == 0 or done.output.startswith("error: ")
    assert visible(name) in done.output


@pytest.mark.parametrize("text", ["[/x]", "a\x1b[31mb", "a\u202eb", "a\rb", "a\udc9bb", "a\nerror: b"])
@pytest.mark.parametrize(
    "command",
    [
        ("TEXT",),
        ("run", "TEXT"),
        ("run", "digits", "--work-dir", "w", "--stages", "TEXT"),
        ("plan", "digits", "--fleet", "TEXT"),
        ("plan", "digits", "TEXT"),
        ("predict", "TEXT", "x"),
        ("predict", "DIR", "x", "--profile", "TEXT"),
        ("predict", "DIR", "x", "--precision", "TEXT"),
        ("predict", "DIR", "x", "--drop", "TEXT"),
        ("predict", "DIR", "x", "--TEXT"),
        ("evaluate", "TEXT"),
        ("bench", "TEXT"),
        ("bench", "DIR", "--precision", "TEXT"),
        ("card", "TEXT"),
        ("zoo", "TEXT"),
        ("push", "DIR", "TEXT", "--dry-run"),
        ("pull", "DIR", "--output", "o", "--placement", "p.json", "--device", "TEXT"),
        ("space", "bundle", "TEXT", "o"),
        ("space", "TEXT"),
        ("profile", "--output", "TEXT"),
    ],
    ids=" ".join,
)
def test_an_error_shows_what_it_quotes(texts, tmp_path, monkeypatch, command, text):
    monkeypatch.chdir(tmp_path)
    arguments = [each.replace("TEXT", text).replace("DIR", str(texts[0])) for each in command]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code in (1, 2), done.output
    assert isinstance(done.exception, SystemExit)
    assert is_calm(done.output)
    assert "\nerror: b" not in done.output


def _outlets(tree):
    """Where a file could print by itself: rich, `print`, `typer.echo`, the standard streams, markup."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in {"rich", "click"})
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in {"rich", "click"}:
            yield node.module
        elif isinstance(node, ast.Name) and node.id == "print":
            yield "print"
        elif isinstance(node, ast.Attribute) and node.attr in {"echo", "secho", "from_markup", "style", "rich_utils"}:
            yield node.attr
        elif isinstance(node, ast.Attribute) and node.attr in {"write", "writelines"}:
            stream = getattr(node.value, "attr", "")
            if stream in {"stdout", "stderr", "__stdout__", "__stderr__"}:
                yield f"{stream}.{node.attr}"


ALLOWED = {
    "terminal.py": {"rich.console", "rich.progress", "rich.table", "rich.text"},
    "cli/output.py": {"echo"},  # of JSON, which has its own escapes
    "bench/timed_process.py": {"stdout.write"},  # JSON for the process that started it
}


def test_nothing_is_printed_but_through_the_two_files_that_make_it_visible():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        outlets = set(_outlets(ast.parse(path.read_text(encoding="utf-8"))))
        if outlets:
            found[path.relative_to(PACKAGE).as_posix()] = outlets
    assert found == ALLOWED


@pytest.mark.parametrize(
    "line",
    [
        "from rich.table import Table",
        "import rich",
        "from rich import print as show",
        "print(name)",
        "typer.echo(name)",
        "typer.secho(name)",
        "sys.stdout.write(name)",
        "sys.stderr.write(name)",
        "Text.from_markup(name)",
        "import click",
    ],
)
def test_another_outlet_would_be_noticed(line):
    assert set(_outlets(ast.parse(line)))
