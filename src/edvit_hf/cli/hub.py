# SPDX-License-Identifier: Apache-2.0
"""`edvit push`, `edvit pull` and `edvit zoo`: publish an ensemble, fetch a device's share, compare several."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edvit_hf.cli.app import FolderArgument, FormatOption, Precision, command, index_option
from edvit_hf.cli.output import console, print_files, print_json, say, tell
from edvit_hf.terminal import new_table

if TYPE_CHECKING:
    from edvit_hf.hub import Pulled


@command()
def push(
    folder: FolderArgument,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Where to: OWNER/NAME.")],
    profile: Annotated[
        str | None, typer.Option(help="Add only this kind of hardware's files to an ensemble that is there already.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print only; no network.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    tag: Annotated[str | None, typer.Option(help="Name for this version, e.g. v1.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch; made if it does not exist. Default: main.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose it as a pull request.")] = False,
    output: FormatOption = "human",
) -> None:
    """Publish the ensemble in DIR in one commit, after checking it: hashes, weights, gates, card, token.

    Refused before anything is sent when a gate was missed, the card has blanks, a file is altered or must not be
    published, or the token may not write.
    """
    from edvit_hf.hub import prepare_push
    from edvit_hf.hub import push as send

    prepared = prepare_push(folder, repo, profile=profile)
    if output == "human":
        print_files(prepared.files, prepared.repo)
    done = send(prepared, dry_run=dry_run, private=private, tag=tag, revision=revision, create_pr=create_pr)
    if output == "json":
        files = [asdict(file) for file in prepared.files]
        print_json({"repo": repo, "files": files, "bytes": prepared.bytes, **asdict(done)})
        return
    for remark in done.remarks:
        say(f"note: {remark}")
    for path in done.removed:
        say(f"removed, stale: {path}")
    if dry_run:
        say("dry run: the folder is ready to publish, nothing was sent")
    elif not done.changed:
        say(f"{repo} holds all of this already: {done.commit}", highlight=True)
    else:
        say(f"pushed: {done.url}")
    if done.tag:
        say(f"tag: {done.tag}")


@command()
def pull(
    repo: Annotated[str, typer.Argument(metavar="REPO|DIR", help="A published ensemble: Hub id or folder.")],
    sub_model: Annotated[list[int] | None, index_option("--sub-model", text="Fetch these.")] = None,
    profile: Annotated[str | None, typer.Option(help="Kind of hardware the files are for.")] = None,
    placement: Annotated[
        Path | None, typer.Option(help="placement.json that says what each device holds, with --device.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Name of this device in the placement.")] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Default: int8, and an error where none suits the profile.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--with-preprocessing", help="The files that prepare their inputs themselves.")
    ] = False,
    fusion: Annotated[
        bool,
        typer.Option(
            "--fusion", help="The fusion head too. A coordinator (without one: every device) of a placement gets it."
        ),
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit. Default: main.")] = None,
    destination: Annotated[
        Path | None, typer.Option("--output", help="Folder. Default: named after repository and device or sub-models.")
    ] = None,
    output: FormatOption = "human",
) -> None:
    """Fetch only what one device needs: its graphs, their configs, what prepares inputs, and the manifest.

    Hashes are verified and the folder appears whole. Needs no torch; a second call fetches only what has changed.
    """
    from edvit_hf.hub import pull as fetch

    done = fetch(
        repo,
        sub_models=tuple(sub_model or ()),
        profile=profile,
        placement=placement,
        device=device,
        precision=precision,
        raw_inputs=raw,
        fusion=fusion,
        revision=revision,
        output=destination,
    )
    if output == "json":
        print_json(_pulled_json(done))
        return
    for needed in done.selection.files:
        say(f"{needed.bytes:>12,}  {needed.file}")
    beside = (done.bytes_on_disk - done.selection.graph_bytes) / 1024
    total = f"{done.bytes_on_disk:>12,}  bytes with the manifest: graphs and {beside:.1f} KiB beside them"
    say(total)
    state = "up to date" if done.unchanged else f"fetched {done.bytes_fetched:,} bytes"
    at = f" at {done.revision}" if done.revision else ""
    say(f"{done.folder}: {state} from {done.source}{at}")


def _pulled_json(done: "Pulled") -> dict[str, object]:
    told = ("source", "revision", "content_hash", "unchanged", "bytes_on_disk", "bytes_fetched")
    data = {"folder": str(done.folder), **{name: getattr(done, name) for name in told}}
    return data | {"graph_bytes": done.selection.graph_bytes, "files": [asdict(each) for each in done.selection.files]}


@command()
def zoo(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="A folder of ensemble folders, or of work directories.")
    ] = None,
    org: Annotated[str | None, typer.Option(help="An owner on the Hub, instead of a folder.")] = None,
    output: FormatOption = "human",
) -> None:
    """Ensembles side by side: task, dataset, sub-models, accuracy, MiB per device, milliseconds.

    Without a folder or an owner those that ship with the package: `edvit predict NAME INPUT` asks one, offline.
    """
    if folder is not None and org is not None:
        raise typer.BadParameter("name either a folder or --org OWNER")
    from edvit_hf.card.zoo import ZOO_HEADER, ZOO_NOTE, zoo_cells, zoo_of_folder, zoo_of_hub
    from edvit_hf.space.page import MODEL, page_folder

    rows = zoo_of_hub(org) if org is not None else zoo_of_folder(folder or page_folder() / MODEL)
    if folder is None and org is None:
        rows = [replace(row, place=f"edvit predict {row.name} INPUT") for row in rows]
    if output == "json":
        print_json([asdict(row) for row in rows])
        return
    columns = (f">{name}" if name.startswith(("N", "MiB", "ms")) else name for name in ZOO_HEADER)
    table = new_table(columns, caption=[ZOO_NOTE])
    for row in rows:
        table.add_row(*zoo_cells(row))
    console.print(table)
    tell(f"{len(rows)} ensembles")
