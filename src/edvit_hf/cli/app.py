# SPDX-License-Identifier: Apache-2.0
"""The application that all commands hang on, and what they share: options, errors, logging."""

import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from edvit_hf import __version__
from edvit_hf.cli.output import console, log_console
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

Precision = Literal["fp32", "fp16", "int8"]
Format = Literal["human", "json"]
Schedule = Literal["auto", "in_turn", "in_turn_spinning", "per_core", "workers"]
FormatOption = Annotated[Format, typer.Option("--format", help="`human` prints tables, `json` one JSON document.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log what each stage does.")]
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A finished ensemble folder.")]
EnsembleArgument = Annotated[
    str, typer.Argument(metavar="DIR|REPO", help="A finished ensemble: its folder or its Hub id.")
]
RecipeOption = Annotated[
    str | None, typer.Option(help="Recipe that names the dataset. Default: the dataset that DIR/results.json records.")
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of REPO. Default: main.")]
PrecisionOption = Annotated[Precision, typer.Option(help="Which exported variant.")]
ProfileOption = Annotated[str | None, typer.Option(help="Kind of hardware. Default: this one.")]
SubModelOption = Annotated[
    list[int] | None, typer.Option("--sub-model", help="Load only this one; may be repeated. Default: all.")
]
NumThreadsOption = Annotated[int | None, typer.Option(help="Threads of onnxruntime. Default: as cores.")]
ScheduleOption = Annotated[Schedule, typer.Option(help="How sub-models share the cores; `auto` tries for a second.")]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        console.print(__version__)
        raise typer.Exit


def command(group: typer.Typer = app) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command.

    Errors a user can act on become one message and exit code 1, an interruption becomes 130. Warnings go to standard
    error; with the option `verbose` also what each step does.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*arguments: Any, **options: Any) -> None:
            logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
            logging.getLogger("edvit_hf").setLevel(logging.INFO if options.get("verbose") else logging.WARNING)
            try:
                function(*arguments, **options)
            except EDViTError as error:
                log_console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
                raise typer.Exit(1) from error
            except KeyboardInterrupt as error:
                log_console.print("interrupted: finished work is kept, the same command resumes", markup=False)
                raise typer.Exit(130) from error

        return group.command()(run)

    return register


def quiet_transformers() -> None:
    """A trip loads and saves dozens of small models: without the bar that each of them would draw."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
