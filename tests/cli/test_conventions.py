# SPDX-License-Identifier: Apache-2.0
"""What every command has in common: -h, --quiet and --verbose, examples that parse, a panel, lists of sub-models."""

import json
import shlex
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from edvit_hf.cli import app
from edvit_hf.cli.app import command
from edvit_hf.cli.examples import EXAMPLES, PANELS
from edvit_hf.cli.output import tell
from edvit_hf.space.page import bundled_ensembles, page_folder
from edvit_hf.terminal import is_quiet, progress_bar

PICTURE = page_folder() / "examples" / "digits" / "3_0023.png"


def commands():
    root = typer.main.get_command(app)
    for name, found in root.commands.items():
        inside = getattr(found, "commands", None)
        if inside is None:
            yield name, found
        else:
            yield from ((f"{name} {part}", each) for part, each in inside.items())


COMMANDS = dict(commands())


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_short_help_loudness_examples_and_a_panel(name):
    found = COMMANDS[name]
    options = {option for parameter in found.params for option in parameter.opts}
    assert {"--quiet", "-q", "--verbose"} <= options
    assert EXAMPLES[name]
    assert name.split()[0] in PANELS
    done = invoke(*name.split(), "-h")
    assert done.exit_code == 0
    assert "Examples:" in done.output


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, lines in EXAMPLES.items() for line in lines])
def test_every_example_is_a_command_line_that_is_understood(name, line):
    words = shlex.split(line)
    assert words[: 1 + len(name.split())] == ["edvit", *name.split()]
    COMMANDS[name].make_context(name, words[1 + len(name.split()) :])


def test_help_loads_nothing_that_only_answering_needs():
    code = (
        "import sys\nfrom edvit_hf.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'onnxruntime', 'numpy', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_ensembles_that_ship_are_listed_and_asked_by_name_offline():
    rows = json.loads(invoke("zoo", "--format", "json").stdout)
    assert {row["name"] for row in rows} == set(bundled_ensembles())
    assert all(row["accuracy"] and row["mib_fp32"] for row in rows)
    assert {row["place"] for row in rows} == {f"edvit predict {name} INPUT" for name in bundled_ensembles()}
    by_name = json.loads(invoke("predict", "digits", PICTURE, "--num-threads", 1, "--format", "json").stdout)
    assert by_name["label"] == "3"


@pytest.mark.parametrize("given", [("--absent", "0,1"), ("--drop", "0,1"), ("--absent", "0", "--absent", "1")])
def test_sub_models_are_named_in_a_list_or_one_by_one(given):
    done = invoke("predict", "digits", PICTURE, "--num-threads", 1, "--format", "json", *given)
    assert [vote["missing"] for vote in json.loads(done.stdout)["votes"][:3]] == ["absent", "absent", None]


@pytest.mark.parametrize("wrong", ["a", "0,", "0;1", ""])
def test_what_is_no_list_of_sub_models_is_a_wrong_command_line(wrong):
    assert invoke("predict", "digits", PICTURE, "--sub-model", wrong).exit_code == 2


def test_quiet_leaves_errors_and_results_alone(capsys):
    group = typer.Typer(name="tried")

    @group.callback()
    def _together() -> None:
        pass

    @command(group)
    def try_it() -> None:
        """Say how far it is."""
        assert progress_bar(is_shown=True).disable is is_quiet()
        tell("half of it is done")
        tell("error: it failed", style="red")

    assert "half of it" in CliRunner().invoke(group, ["try-it"]).output
    quiet = CliRunner().invoke(group, ["try-it", "-q"]).output
    assert "half of it" not in quiet
    assert "error: it failed" in quiet
    assert CliRunner().invoke(group, ["try-it", "-q", "-v"]).exit_code == 2
    assert "half of it" in CliRunner().invoke(group, ["try-it"]).output
