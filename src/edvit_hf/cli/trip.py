# SPDX-License-Identifier: Apache-2.0
"""`edvit run` and `edvit plan`: take a recipe through its stages, and show what each device would carry."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from edvit_hf.cli.app import FormatOption, command, quiet_transformers
from edvit_hf.cli.output import console, print_json, say, tell

OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Values in place of the recipe's, as `distill.epochs=3`."),
]


@command()
def run(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or the name of a packaged one (`digits`).")],
    overrides: OverridesArgument = None,
    work_dir: Annotated[
        Path | None, typer.Option(help="Folder for every stage's result. Default: work/<recipe name>.")
    ] = None,
    stages: Annotated[
        str | None, typer.Option(help="Comma-separated stages to run, e.g. `evaluate,export`. Default: all.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Set every training seed of the recipe.")] = None,
    output: FormatOption = "human",
) -> None:
    """Take RECIPE through the whole trip: teacher, split, plan, prune, distill, fuse, evaluate, export, card.

    Finished stages are skipped, an interrupted one resumes, and changing a value re-runs exactly the stages it touches.
    """
    from edvit_hf.recipe import load_recipe

    values = load_recipe(recipe, overrides or ())  # before torch is imported: its faults are told at once

    from edvit_hf.recipe import run as run_trip
    from edvit_hf.recipe.running import ensemble_dir, stage_dir
    from edvit_hf.storage import read_json
    from edvit_hf.training.processes import is_main_process

    quiet_transformers()
    folder = work_dir or Path("work") / (values.name if seed is None else f"{values.name}_seed{seed}")
    if seed is not None:
        values = values.with_seed(seed)
    command = _reproducing_command(recipe, values.dataset.local_name, seed, overrides or ())
    records = run_trip(
        values,
        folder,
        stages=stages.split(",") if stages else None,
        command=command,
        observer=_announce if is_main_process() else None,
    )
    if not is_main_process():
        return
    # Only what this run made or found up to date: other results in the folder may be of another recipe.
    ran = {record.name for record in records}
    results = stage_dir(folder, "evaluate") / "results.json"
    data = read_json(results) if "evaluate" in ran else None
    ensemble = ensemble_dir(folder) if "card" in ran else None
    if output == "json":
        stage_rows = [{"name": r.name, "skipped": r.skipped, "seconds": r.seconds} for r in records]
        print_json({"ensemble": ensemble, "results": data, "stages": stage_rows})
        return
    if data is not None:
        from edvit_hf.card.rows import left_out, no_verdict, verdict
        from edvit_hf.cli.tables import results_tables

        for table in results_tables(data):
            console.print(table)
        for said in filter(None, (left_out(data), verdict(data) or no_verdict(data))):
            say(said)
    if ensemble is not None:
        say(f"ensemble: {ensemble}", highlight=True)


def _reproducing_command(recipe: str, local_name: str | None, seed: int | None, overrides: Sequence[str]) -> str:
    """The command line that repeats this run, without the folders of this machine."""
    data = "EDVIT_DATA_DIR=... " if local_name and os.environ.get("EDVIT_DATA_DIR") else ""
    path = Path(recipe)
    name = path.name if path.is_absolute() else recipe
    words = [name, *map(shlex.quote, overrides)]
    return f"{data}edvit run {' '.join(words)}" + ("" if seed is None else f" --seed {seed}")


def _announce(stage: str, what: str) -> None:
    note = {"skipped": "up to date, skipped", "started": "started", "finished": "done"}[what]
    tell(f"{stage:9s} {note}")


_NumClasses = Annotated[
    int | None, typer.Option(max=100_000, help="Number of classes of a RECIPE that does not tell it.")
]
_FromStatus = Annotated[
    Path | None,
    typer.Option(
        metavar="STATUS.json",
        help="Of a published ensemble: place by times that its running fleet was seen to need: `edvit fleet status "
        "--format json`.",
    ),
]


@command()
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
            help="Fleet file, or the name of a packaged one. Default: the recipe's, or a device for each sub-model."
        ),
    ] = None,
    placement: Annotated[
        Literal["auto", "exact", "greedy"],
        typer.Option(help="`greedy` is the paper's, `exact` needs scipy, `auto` is the best that is here."),
    ] = "auto",
    objective: Annotated[
        Literal["latency", "spread"] | None,
        typer.Option(
            help="`latency`: the fastest placement; `spread`: as few sub-models per device as possible, so that a "
            "failure costs little, then the fastest. Default: the fleet's, which is `latency` unless it says otherwise."
        ),
    ] = None,
    num_classes: _NumClasses = None,
    from_status: _FromStatus = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw the plan into this PNG file.")] = None,
    destination: Annotated[
        Path | None,
        typer.Option("--output", help="Where a published ensemble's placement is written. Default: placement.json."),
    ] = None,
    output: FormatOption = "human",
) -> None:
    """Show what each device of a fleet would carry, without training anything.

    For RECIPE from sizes alone, without a download. For a published ensemble also written as the `placement.json` that
    tells each device which files to load; of a Hub id, only its config and manifest are fetched.
    """
    from edvit_hf.planning.observed import read_observed
    from edvit_hf.published.plan import is_published, plan_published
    from edvit_hf.recipe.schema import find_fleet

    destination = _checked_outputs(is_published(target), num_classes, figure, destination)
    fleet_path = None if fleet is None else find_fleet(fleet)
    placed = None
    if is_published(target):
        observed = [] if from_status is None else read_observed(from_status)
        result, placed = plan_published(target, fleet_path, placement=placement, objective=objective, observed=observed)
    else:
        from edvit_hf.recipe import load_recipe
        from edvit_hf.recipe.stages.plan import plan_recipe

        result = plan_recipe(
            load_recipe(target), num_classes=num_classes, fleet=fleet_path, placement=placement, objective=objective
        )
    if figure is not None:
        from edvit_hf.planning.figure import save_plan_figure

        save_plan_figure(result, figure)
    written = None if placed is None else placed.save(destination)
    if output == "json":
        print_json(result.to_dict())
        return
    from edvit_hf.cli.tables import plan_device_table, plan_table

    console.print(plan_table(result))
    console.print(plan_device_table(result))
    if written is not None:
        say(f"placement: {written}", highlight=True)


def _checked_outputs(
    is_published: bool, num_classes: int | None, figure: Path | None, destination: Path | None
) -> Path:
    """Refuse options that would be ignored and files that could not be written; the path of the placement."""
    from edvit_hf.manifest.placement import PLACEMENT_NAME
    from edvit_hf.storage import check_writable

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
