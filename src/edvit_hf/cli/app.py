"""The application that all commands hang on, and what they share: options, errors, logging, output."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console

from edvit_hf._version import __version__
from edvit_hf.errors import EDViTError

app = typer.Typer(
    name="edvit",
    help="Split a Vision-Transformer classifier by classes into small sub-models that run together on edge devices.",
    epilog="Exit codes: 0 done, 1 an error of the input or of the machine (the message says what to do), "
    "2 wrong command line, 3 `doctor` found a fault, 130 interrupted (the same command resumes).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
# Tables need more than the 80 columns that a pipe is taken to have.
console = Console(width=None if sys.stdout is not None and sys.stdout.isatty() else 132)
log_console = Console(stderr=True)


class Precision(StrEnum):
    """Exported variants."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class ExportPrecision(StrEnum):
    """What an export can write: fp32 always is, `int8` is the dynamic one."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"
    int8_static = "int8_static"


class Calibration(StrEnum):
    """How the range of an activation is found."""

    minmax = "minmax"
    entropy = "entropy"
    percentile = "percentile"


class Placement(StrEnum):
    """How sub-models are placed on devices."""

    auto = "auto"
    exact = "exact"
    greedy = "greedy"


class Format(StrEnum):
    """Output formats of every command."""

    human = "human"
    json = "json"


FormatOption = Annotated[Format, typer.Option("--format", help="`human` prints tables, `json` one JSON document.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log what each stage does.")]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        console.print(__version__)
        raise typer.Exit


@contextmanager
def plain_errors() -> Iterator[None]:
    """Errors a user can act on become one message and exit code 1; an interruption becomes 130."""
    try:
        yield
    except EDViTError as error:
        log_console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        log_console.print("interrupted: finished work is kept, the same command resumes", markup=False)
        raise typer.Exit(130) from error


def start_logging(verbose: bool = False) -> None:
    """Warnings to standard error; with `verbose` also what each step does."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("edvit_hf").setLevel(logging.INFO if verbose else logging.WARNING)


def quiet_transformers() -> None:
    """A trip loads and saves dozens of small models: without the bar that each of them would draw."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(data, indent=2, default=str))
