"""`edvit`: thin commands over the library's functions."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from edvit_hf._version import __version__
from edvit_hf.errors import DataError, EDViTError

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
console = Console(width=None if sys.stdout.isatty() else 132)
log_console = Console(stderr=True)


class Precision(StrEnum):
    """Exported variants."""

    fp32 = "fp32"
    int8 = "int8"


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
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        console.print(__version__)
        raise typer.Exit


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors a user can act on become one message and exit code 1; an interruption becomes 130."""
    try:
        yield
    except EDViTError as error:
        log_console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        log_console.print("interrupted: finished work is kept, the same command resumes", markup=False)
        raise typer.Exit(130) from error


def _start_logging(verbose: bool) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("edvit_hf").setLevel(logging.INFO if verbose else logging.WARNING)


def _quiet_transformers() -> None:
    """A trip loads and saves dozens of small models: without the bar that each of them would draw."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2, default=str))


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or the name of a packaged one (`digits`).")],
    work_dir: Annotated[
        Path | None, typer.Option(help="Folder for every stage's result. Default: work/<recipe name>.")
    ] = None,
    stages: Annotated[
        str | None, typer.Option(help="Comma-separated stages to run, e.g. `evaluate,export`. Default: all.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Set every training seed of the recipe.")] = None,
    output: FormatOption = Format.human,
    verbose: VerboseOption = False,
) -> None:
    """Take RECIPE through the whole trip: teacher, split, plan, prune, distill, fuse, evaluate, export, card.

    Finished stages are skipped, an interrupted one resumes, and changing a value re-runs exactly the stages it touches.
    """
    _start_logging(verbose)
    with _plain_errors():
        from edvit_hf.recipe import load_recipe
        from edvit_hf.recipe import run as run_trip
        from edvit_hf.recipe.processes import is_main_process
        from edvit_hf.recipe.running import ensemble_dir, stage_dir

        _quiet_transformers()
        values = load_recipe(recipe)
        folder = work_dir or Path("work") / (values.name if seed is None else f"{values.name}_seed{seed}")
        if seed is not None:
            values = values.with_seed(seed)
        command = _reproducing_command(recipe, values.dataset.local_name, seed)
        records = run_trip(
            values, folder, stages=stages.split(",") if stages else None, command=command,
            observer=_announce if is_main_process() else None,
        )  # fmt: skip
        if not is_main_process():
            return
        # Only what this run made or found up to date: other results in the folder may be of another recipe.
        ran = {record.name for record in records}
        results = stage_dir(folder, "evaluate") / "results.json"
        data = json.loads(results.read_text(encoding="utf-8")) if "evaluate" in ran else None
        ensemble = ensemble_dir(folder) if "card" in ran else None
        if output is Format.json:
            stage_rows = [{"name": r.name, "skipped": r.skipped, "seconds": r.seconds} for r in records]
            _print_json({"ensemble": ensemble, "results": data, "stages": stage_rows})
            return
        if data is not None:
            from edvit_hf.tables import results_tables

            for table in results_tables(data):
                console.print(table)
        if ensemble is not None:
            console.print(f"ensemble: {ensemble}", markup=False, soft_wrap=True)


def _reproducing_command(recipe: str, local_name: str | None, seed: int | None) -> str:
    """The command line that repeats this run, without the folders of this machine."""
    data = "EDVIT_DATA_DIR=... " if local_name and os.environ.get("EDVIT_DATA_DIR") else ""
    path = Path(recipe)
    name = path.name if path.is_absolute() else recipe
    return f"{data}edvit run {name}" + ("" if seed is None else f" --seed {seed}")


def _announce(stage: str, what: str) -> None:
    note = {"skipped": "up to date, skipped", "started": "started", "finished": "done"}[what]
    log_console.print(f"{stage:9s} {note}", markup=False, highlight=False)


@app.command()
def plan(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|REPO|DIR",
            help="Recipe file, or the name of a packaged one; or a published ensemble: its folder or its Hub id.",
        ),
    ],
    fleet: Annotated[
        str | None,
        typer.Option(
            help="Fleet file, or the name of a packaged one. Default: the recipe's. A published ensemble needs one."
        ),
    ] = None,
    placement: Annotated[
        Placement, typer.Option(help="`greedy` is the paper's, `exact` needs scipy, `auto` is the best that is here.")
    ] = Placement.auto,
    num_classes: Annotated[
        int | None, typer.Option(help="Number of classes of a RECIPE that does not tell it.")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw the plan into this PNG file.")] = None,
    destination: Annotated[
        Path | None,
        typer.Option("--output", help="Where a published ensemble's placement is written. Default: placement.json."),
    ] = None,
    output: FormatOption = Format.human,
) -> None:
    """Show what each device of a fleet would carry, without training anything.

    For RECIPE from sizes alone, without a download. For a published ensemble also written as the `placement.json` that
    tells each device which files to load; of a Hub id, only its config and manifest are fetched.
    """
    _start_logging(False)
    with _plain_errors():
        from edvit_hf.recipe.offline_plan import find_fleet
        from edvit_hf.recipe.published_plan import is_published, plan_published

        destination = _checked_outputs(is_published(target), num_classes, fleet, figure, destination)
        fleet_path = None if fleet is None else find_fleet(fleet)
        placed = None
        if fleet_path is not None and is_published(target):
            result, placed = plan_published(target, fleet_path, placement=placement.value)
        else:
            from edvit_hf.recipe import load_recipe
            from edvit_hf.recipe.offline_plan import plan_recipe

            result = plan_recipe(
                load_recipe(target), num_classes=num_classes, fleet=fleet_path, placement=placement.value
            )
        if figure is not None:
            from edvit_hf.plan_figure import save_plan_figure

            save_plan_figure(result, figure)
        written = None if placed is None else placed.save(destination)
        if output is Format.json:
            _print_json(result.to_dict())
            return
        from edvit_hf.tables import plan_device_table, plan_table

        console.print(plan_table(result))
        console.print(plan_device_table(result))
        if written is not None:
            console.print(f"placement: {written}", markup=False, soft_wrap=True)


def _checked_outputs(
    is_published: bool, num_classes: int | None, fleet: str | None, figure: Path | None, destination: Path | None
) -> Path:
    """Refuse options that would be ignored and files that could not be written; the path of the placement."""
    from edvit_hf.placement_file import PLACEMENT_NAME
    from edvit_hf.storage import check_writable

    if is_published and fleet is None:
        raise typer.BadParameter("a published ensemble is placed on your fleet: give --fleet FILE")
    if is_published and num_classes is not None:
        raise typer.BadParameter("--num-classes is for a recipe: a published ensemble knows its classes")
    if not is_published and destination is not None:
        raise typer.BadParameter("--output is for a published ensemble: the plan of a recipe has no placement.json")
    path = destination or Path(PLACEMENT_NAME)
    path = path / PLACEMENT_NAME if path.is_dir() else path
    if is_published:
        check_writable(path, (".json",))
    if figure is not None:
        check_writable(figure, (".png",))
    return path


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A published or finished ensemble folder.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe that names the dataset. Default: the dataset that DIR/results.json records."),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Which exported variant.")] = Precision.fp32,
    max_items: Annotated[int | None, typer.Option(help="Use only the first items of the test split.")] = None,
    output: FormatOption = Format.human,
) -> None:
    """Measure the exported ensemble in DIR on its test split: accuracy and F1, whole and with each sub-model absent."""
    _start_logging(False)
    with _plain_errors():
        from edvit_hf.recipe import load_recipe
        from edvit_hf.recipe.measure import measure_exported

        result = measure_exported(
            folder, load_recipe(recipe) if recipe else None, precision=precision.value, max_items=max_items
        )
        if output is Format.json:
            _print_json(result)
            return
        from edvit_hf.tables import evaluation_table

        console.print(evaluation_table(result))


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A finished ensemble folder.")],
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="An image or sound file, or the text itself; `-`: standard input.")
    ],
    drop: Annotated[
        list[int] | None, typer.Option(help="Index of a sub-model to treat as absent; may be repeated.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Which exported variant.")] = Precision.fp32,
    output: FormatOption = Format.human,
) -> None:
    """Classify INPUT: class, probability, each sub-model's vote, and what changes when a sub-model is absent.

    Needs no torch: this is what a device runs.
    """
    _start_logging(False)
    with _plain_errors():
        from edvit_hf.runtime import LocalEnsemble
        from edvit_hf.tables import prediction_report, prediction_tables

        ensemble = LocalEnsemble.from_pretrained(folder, precision=precision.value)
        item = _read_input(source, is_text=ensemble.task == "text-classification")
        report = prediction_report(ensemble, item, absent=tuple(drop or ()))
        if output is Format.json:
            _print_json(report)
            return
        for table in prediction_tables(report):
            console.print(table)


def _read_input(source: str, *, is_text: bool) -> str | bytes | Path:
    """What the ensemble is asked about: a file's path, the bytes of one on standard input, or a text.

    Raises:
        DataError: If a text ensemble is given the name of a file, whose name would be classified.
    """
    if not is_text:
        return sys.stdin.buffer.read() if source == "-" else Path(source)
    if source == "-":
        return sys.stdin.buffer.read().decode("utf-8", errors="replace")
    if os.path.isfile(source):  # noqa: PTH113  (which does not mind a text longer than any name)
        raise DataError(
            f"Expected a text, got {source!r}, which is a file here. Its name would be classified, not what it says. "
            f"Give its content on standard input: edvit predict DIR - < {source}"
        )
    return source


@app.command()
def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="Do not try to reach the Hub.")] = False,
    output: FormatOption = Format.human,
) -> None:
    """Report versions, cores and threads, known bad pairs of packages and whether the Hub is reachable.

    Exits with 3 when something is broken.
    """
    with _plain_errors():
        from edvit_hf.doctor import examine

        report = examine(check_hub=not offline)
        if output is Format.json:
            _print_json(report)
        else:
            from edvit_hf.tables import doctor_table

            console.print(doctor_table(report))
        if not report["healthy"]:
            raise typer.Exit(3)


@app.command()
def profile(
    file: Annotated[Path, typer.Option("--output", help="Profile file to write, e.g. my_pi5.yaml.")],
    name: Annotated[str | None, typer.Option(help="Name of the profile. Default: the file's name.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the measurement beside that on one thread. Default: all cores.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Timed runs of every encoder. Default: 15, quick: 7.")] = None,
    watts: Annotated[
        float | None, typer.Option(help="Power while computing, from a meter: what energy budgets need.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds instead of a minute; a coarser model.")] = False,
    output: FormatOption = Format.human,
) -> None:
    """Measure this machine and write its device profile: what `edvit plan` needs to predict latencies here.

    Needs onnx and onnxruntime, no torch. Run it on the device itself, with nothing else running.
    """
    _start_logging(False)
    with _plain_errors():
        from edvit_hf.profiles import profile_dict, save_profile
        from edvit_hf.profiling import profile_machine
        from edvit_hf.storage import check_writable

        check_writable(file, (".yaml", ".yml"))
        result = profile_machine(
            file.stem if name is None else name, threads=threads, repeats=repeats, quick=quick, watts=watts,
            progress=log_console.is_terminal,
        )  # fmt: skip
        save_profile(result, file)
        if output is Format.json:
            _print_json(profile_dict(result))
            return
        figures = f"{result.cores} cores, {result.memory_mib} MiB, {result.sustained_gflops} GFLOP/s, {result.isa}"
        console.print(f"{result.name}: {figures}", markup=False, highlight=False)
        for fitted in (result.provenance or {})["fits"]:
            console.print(
                f"latency on {fitted['threads']} thread(s): {len(fitted['measurements'])} encoders, median error "
                f"{fitted['median_relative_error']:.1%}, on encoders left out of the fit "
                f"{fitted['median_relative_error_left_out']:.1%}",
                markup=False, highlight=False,
            )  # fmt: skip
        console.print(f"profile: {file}", markup=False, soft_wrap=True)


def main() -> None:
    """Entry point of the console script."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app()
