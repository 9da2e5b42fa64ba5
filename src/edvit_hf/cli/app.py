# SPDX-License-Identifier: Apache-2.0
"""The application that all commands hang on, and what they share: options, errors, logging."""

import contextlib
import functools
import inspect
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from edvit_hf import __version__
from edvit_hf.cli.examples import EXAMPLES, PANELS
from edvit_hf.cli.output import say, tell
from edvit_hf.errors import EDViTError, named_extra
from edvit_hf.strict import is_folder
from edvit_hf.terminal import log_to_standard_error, set_quiet, visible

_INTERRUPTED = 128 + signal.SIGINT
UsageError: Any = typer.BadParameter.__base__  # of click, which newer releases of typer hold within


class Ended(KeyboardInterrupt):
    """A signal that ends the process came in: it ends as it does at Ctrl-C, with what is half-done taken back."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Ended` for as long as the block runs, unless `nohup` or the like has them ignored."""
    came: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        came.append(number)
        raise Ended(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    except SystemExit as error:
        if came and error.code == _INTERRUPTED:  # outside of our commands, where typer took it for Ctrl-C
            raise SystemExit(128 + came[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Group(TyperGroup):
    """Commands whose usage errors quote the command line as a terminal may show it."""

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        """See `click.Command`: what is wrong before the name of a command."""
        with _visible_usage_errors():
            return super().make_context(*arguments, **settings)

    def invoke(self, ctx: Any) -> Any:
        """See `click.Command`: what is wrong after it."""
        with _visible_usage_errors():
            return super().invoke(ctx)


@contextlib.contextmanager
def _visible_usage_errors() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        error.message = visible(error.message, keep="\n")
        raise


app = typer.Typer(
    name="edvit",
    help="Split a Vision-Transformer classifier by classes into small sub-models that run together on edge devices.",
    epilog="Exit codes: 0 done, 1 an error of the input or of the machine (the message says what to do), "
    "2 wrong command line, 3 `doctor` found a fault, 130 interrupted, 129 or 143 ended by SIGHUP or SIGTERM "
    "(the same command resumes).",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Precision = Literal["fp32", "fp16", "int8"]
Format = Literal["human", "json"]
Schedule = Literal["auto", "in_turn", "in_turn_spinning", "per_core", "workers"]
FormatOption = Annotated[Format, typer.Option("--format", help="`human` prints tables, `json` one JSON document.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log what each step does.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No bars, warnings or steps, errors alone.")]
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A finished ensemble folder.")]


def named_ensemble(text: str) -> str:
    """The folder of an ensemble that ships with the package, by its name; anything else as it is."""
    if "/" in text or is_folder(text):
        return text
    from edvit_hf.space.page import bundled_ensembles

    with contextlib.suppress(EDViTError):  # an installation without the page's files
        return str(bundled_ensembles().get(text, text))
    return text


EnsembleArgument = Annotated[
    str,
    typer.Argument(
        metavar="DIR|REPO|NAME",
        parser=named_ensemble,
        help="A finished ensemble: its folder, its Hub id, or the name of one that ships (`edvit zoo`).",
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        help="Recipe that names the dataset, or a file with its `dataset` section alone. Default: the dataset that "
        "DIR/results.json records."
    ),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        help="Local folder of the data, where the one that is recorded or named is not here.",
    ),
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of REPO. Default: main.")]
PrecisionOption = Annotated[Precision, typer.Option(help="Which exported variant.")]
HeldPrecisionOption = Annotated[
    Precision | None, typer.Option(help="Which exported variant. Default: what DIR holds, fp32 first; of REPO fp32.")
]
ProfileOption = Annotated[str | None, typer.Option(help="Kind of hardware. Default: this one.")]


def _indices(text: str) -> tuple[int, ...]:
    """The numbers of `0,1`; the command gets those of all repetitions in one list."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of sub-models like 0 or 0,1") from error


def index_option(*names: str, text: str) -> Any:
    """An option that takes numbers of sub-models, as `0,1` or repeated."""
    return typer.Option(*names, metavar="0,1,...", parser=_indices, help=text)


SubModelOption = Annotated[list[int] | None, index_option("--sub-model", text="Load only these. Default: all.")]
AbsentOption = Annotated[list[int] | None, index_option("--absent", "--drop", text="Sub-models to treat as absent.")]
NumThreadsOption = Annotated[int | None, typer.Option(help="Threads of onnxruntime. Default: as cores.")]
ScheduleOption = Annotated[Schedule, typer.Option(help="How sub-models share the cores; `auto` tries for a second.")]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        say(__version__)
        raise typer.Exit


def command(group: typer.Typer = app) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command.

    Errors a user can act on become one message and exit code 1; so does what the system refuses (a file that cannot be
    read, no memory), because no code of ours can mend it. An interruption becomes 130, SIGTERM 143. Warnings go to
    standard error. Every command gets --quiet and --verbose, its panel in `edvit --help` and its examples.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        name = function.__name__ if group is app else f"{group.info.name} {function.__name__}"

        @functools.wraps(function)
        def run(*arguments: Any, **options: Any) -> None:
            _set_loudness(quiet=options["quiet"], verbose=options["verbose"])
            options = {key: _flat(value) for key, value in options.items() if key in signature.parameters}
            try:
                with named_extra(f"`edvit {function.__name__}`", "all"):  # where the library names none that is less
                    function(*arguments, **options)
            except EDViTError as error:
                tell(f"error: {error}", style="red")
                raise typer.Exit(1) from error
            except RuntimeError as error:
                if not str(error).startswith("Symlink loop"):  # as pathlib says it before Python 3.13
                    raise
                tell(f"error: {_refusal(OSError(str(error)))}", style="red")
                raise typer.Exit(1) from error
            except (OSError, MemoryError) as error:
                tell(f"error: {_refusal(error)}", style="red")
                raise typer.Exit(1) from error
            except KeyboardInterrupt as error:
                by = f"ended by {error}" if isinstance(error, Ended) else "interrupted"
                tell(f"{by}: finished work is kept, the same command resumes")
                raise typer.Exit(128 + error.number if isinstance(error, Ended) else _INTERRUPTED) from error

        run.__signature__ = _with_loudness(signature)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in run.__signature__.parameters.values()}  # type: ignore[attr-defined]
        shown = "".join(f"\n\n{line}" for line in EXAMPLES.get(name, ()))
        return group.command(epilog=f"Examples:{shown}" if shown else None, rich_help_panel=PANELS.get(name))(run)

    return register


def _with_loudness(signature: inspect.Signature) -> inspect.Signature:
    """The same options and --quiet and --verbose, unless the command has its own."""
    kind = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(name, kind, default=False, annotation=type_)
        for name, type_ in (("quiet", QuietOption), ("verbose", VerboseOption))
        if name not in signature.parameters
    ]
    return inspect.Signature([*(each.replace(kind=kind) for each in signature.parameters.values()), *added])


def _set_loudness(*, quiet: bool, verbose: bool) -> None:
    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose contradict each other")
    set_quiet(quiet)
    log_to_standard_error(logging.WARNING)
    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    logging.getLogger("edvit_hf").setLevel(level)


def _flat(value: Any) -> Any:
    """A list of what `_indices` made, as one list; anything else as it is."""
    if isinstance(value, list) and value and all(isinstance(each, tuple) for each in value):
        return [number for each in value for number in each]
    return value


def _refusal(error: OSError | MemoryError) -> str:
    """What the system would not do, in one message."""
    if isinstance(error, MemoryError):
        return (
            "Expected enough memory, got none when more was asked for. The command cannot go on. Close other programs, "
            "give it less at once, or take a machine with more."
        )
    name = "" if error.filename is None else f": {error.filename}"
    return (
        f"Expected the system to do what the command needs, got `{error.strerror or error}`{name}. It cannot go on. "
        "Check that the file or folder exists, that you may read or write it, and that there is space left."
    )


def check_current_folder() -> None:
    """Refuse to work where there is nothing: relative paths lead nowhere, and libraries fail to load.

    Raises:
        SystemExit: The current folder was deleted.
    """
    try:
        Path.cwd()
    except OSError as error:
        tell(
            "error: Expected a current folder, got one that was deleted. Paths lead nowhere from there, and libraries "
            "fail to load. Change to another: cd"
        )
        raise SystemExit(1) from error


def quiet_transformers() -> None:
    """A trip loads and saves dozens of small models: without the bar that each of them would draw."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
