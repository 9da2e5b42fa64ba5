"""`edvit card`."""

from pathlib import Path
from typing import Annotated

import typer

from edvit_hf.cli.app import app, console, plain_errors, start_logging


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A finished ensemble folder.")],
    repo_id: Annotated[
        str | None, typer.Option(help="OWNER/NAME it will be pushed to: the card's code then loads from there.")
    ] = None,
) -> None:
    """Render README.md and its figures in DIR again, after `edvit export` or `edvit bench --save` changed the figures.

    Everything comes from DIR/results.json and DIR/manifest.json; nothing is measured.
    """
    start_logging(False)
    with plain_errors():
        from edvit_hf.card.render import CardData, write_card

        given = {} if repo_id is None else {"repo_id": repo_id}
        path = write_card(folder, CardData.from_folder(folder, **given))
        console.print(f"card: {path}", markup=False, highlight=False, soft_wrap=True)
