# SPDX-License-Identifier: Apache-2.0
"""`edvit init`: a commented recipe and a fleet for data and a checkpoint that nobody has described."""

from pathlib import Path
from typing import Annotated

import typer

from edvit_hf.cli.app import command
from edvit_hf.cli.output import say


@command()
def init(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Folder of CLASS/FILE or SPLIT/CLASS/FILE, of csv or parquet files, one such file, or a Hub id.",
        ),
    ],
    teacher: Annotated[
        str,
        typer.Option(metavar="CHECKPOINT|none", help="Folder or Hub id of a stock classifier; `none`: from scratch."),
    ] = "none",
    devices: Annotated[
        str, typer.Option(help="How many devices, or their kinds: `raspberry-pi-5,raspberry-pi-5`.")
    ] = "2",
    fleet: Annotated[str | None, typer.Option(help="Fleet file to use instead of one that is written.")] = None,
    destination: Annotated[Path, typer.Option("--output", metavar="FILE", help="The recipe.")] = Path("my_recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Look at DATA and a checkpoint, and write a commented recipe and a fleet that split over the devices.

    Looks at splits, classes, columns that hold groups, the checkpoint's labels and its processor. Where there is no
    test split, a part is held out, by group where a group shows. Nothing is trained.
    """
    from edvit_hf.recipe.starting import start

    done = start(data, teacher, devices=devices, fleet=fleet, recipe=destination, replace=force)
    for line in done.said:
        say(line)
    say(f"recipe: {done.recipe}", highlight=True)
    if done.fleet is not None:
        say(f"fleet: {done.fleet}", highlight=True)
    say(f"next: edvit plan {done.recipe}; edvit run {done.recipe}")
