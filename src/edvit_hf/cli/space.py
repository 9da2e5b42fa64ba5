# SPDX-License-Identifier: Apache-2.0
"""`edvit space`: the page, run here, written as a folder, or published on the Hub."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edvit_hf.cli.app import FolderArgument, FormatOption, app, command
from edvit_hf.cli.examples import PANELS
from edvit_hf.cli.output import print_files, print_json, say

if TYPE_CHECKING:
    from edvit_hf.space.assembling import Library

space = typer.Typer(
    name="space", help="The page that shows ensembles: run it here, or publish it as a Space.", no_args_is_help=True
)
app.add_typer(space, name="space", rich_help_panel=PANELS["space"])

EnsembleOption = Annotated[
    list[str] | None,
    typer.Option("--ensemble", metavar="NAME=DIR", help="May be repeated. Default: the ones that ship with the page."),
]
WheelOption = Annotated[
    Path | None,
    typer.Option(
        "--wheel", metavar="FILE", help="Wheel of the library. Default: built from the checkout, if this is one."
    ),
]
ReleasedOption = Annotated[bool, typer.Option("--released", help="Name the library's released version; no wheel.")]


@command(space)
def run(
    source: Annotated[
        str | None, typer.Argument(metavar="[DIR|REPO]", help="An exported ensemble. Default: the bundled ones.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: 7860, or the next free one.")] = None,
) -> None:
    """Serve the page on 127.0.0.1, for the bundled ensembles or the one in DIR or REPO, until Ctrl-C."""
    from edvit_hf.space import run_page

    run_page(source, port=port)


@command(space)
def bundle(
    folder: FolderArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The bundle, such as space_app/model/digits.")],
) -> None:
    """Write what the page needs of the ensemble in DIR into OUT: graphs, card, figures, results."""
    from edvit_hf.hub.checks import list_files
    from edvit_hf.space import bundle as write

    print_files(list_files(write(folder, out)), str(out))


@command(space)
def assemble(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new folder.")],
    ensemble: EnsembleOption = None,
    wheel: WheelOption = None,
    released: ReleasedOption = False,
) -> None:
    """Write a whole Space into OUT: the page, its ensembles, their examples and the library."""
    from edvit_hf.hub.checks import list_files
    from edvit_hf.space import assemble as write
    from edvit_hf.space import named_ensembles

    write(out, named_ensembles(ensemble) if ensemble else None, library=_library(wheel, released))
    print_files(list_files(out), str(out))


@command(space)
def push(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Where to: OWNER/NAME.")],
    ensemble: EnsembleOption = None,
    wheel: WheelOption = None,
    released: ReleasedOption = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new Space private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Assemble, check and print only; no network.")] = False,
    output: FormatOption = "human",
) -> None:
    """Assemble the Space and publish it in one commit, after checking it: settings, sizes, hashes, library, token."""
    with tempfile.TemporaryDirectory() as place:
        from edvit_hf.hub.checks import list_files
        from edvit_hf.space import assemble as write
        from edvit_hf.space import files_address, named_ensembles, permitted, publish

        address = files_address(repo)
        api = None if dry_run else permitted(repo)
        root = write(
            Path(place) / "space",
            named_ensembles(ensemble) if ensemble else None,
            library=_library(wheel, released),
            address=address,
        )
        files = list_files(root)
        if output == "human":
            print_files(files, repo)
        done = publish(root, repo, dry_run=dry_run, private=private, api=api)
        if output == "json":
            total = sum(file.bytes for file in files)
            print_json({"repo": repo, "files": [asdict(file) for file in files], "bytes": total, **asdict(done)})
            return
        for path in done.removed:
            say(f"removed, stale: {path}")
        if dry_run:
            say(f"dry run: ready for {done.url}, nothing was sent", highlight=True)
        elif not done.changed:
            say(f"{done.url} holds all of this already: {done.commit}", highlight=True)
        else:
            say(f"pushed: {done.url} (the Hub builds it now)")


def _library(wheel: Path | None, released: bool) -> "Library":
    if wheel is not None and released:
        raise typer.BadParameter("name either --wheel FILE or --released")
    return "released" if released else wheel or "auto"
