# SPDX-License-Identifier: Apache-2.0
"""`edvit recipe`: check a recipe without running it, and the schema by which an editor checks it."""

from pathlib import Path
from typing import Annotated

import typer

from edvit_hf.cli.app import app, command
from edvit_hf.cli.examples import PANELS
from edvit_hf.cli.output import print_json, say
from edvit_hf.cli.trip import OverridesArgument

recipe = typer.Typer(
    name="recipe", help="Check a recipe, or write the schema that editors check it by.", no_args_is_help=True
)
app.add_typer(recipe, name="recipe", rich_help_panel=PANELS["recipe"])


@command(recipe)
def check(
    source: Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe file, or the name of a packaged one.")],
    overrides: OverridesArgument = None,
) -> None:
    """Read RECIPE as `edvit run` does and tell everything that does not fit at once, each with its line.

    Data and checkpoints are not opened.
    """
    from edvit_hf.recipe.schema import load_recipe

    found = load_recipe(source, overrides or ())
    devices = "a device for each" if found.fleet is None else f"fleet {found.fleet}"
    say(f"{found.name}: {found.task}, {found.split.num_sub_models} sub-models, {devices}, strategy {found.strategy}")


@command(recipe)
def schema(
    destination: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Where to write it. Default: standard output.")
    ] = None,
) -> None:
    """Write the JSON Schema of a recipe.

    An editor with the YAML language server takes it from a first line `# yaml-language-server: $schema=FILE`.
    """
    from edvit_hf.recipe.json_schema import recipe_json_schema
    from edvit_hf.storage import write_json

    if destination is None:
        print_json(recipe_json_schema())
        return
    write_json(destination, recipe_json_schema())
    say(f"schema: {destination}", highlight=True)
