# SPDX-License-Identifier: Apache-2.0
"""Render the cards of measured recipes into this folder, and the zoo table of its README from them.

python model_cards/render.py WORK_DIR [WORK_DIR ...]

Each is a finished work directory, or the ensemble folder in one. A card is called like its recipe; figures go to
`assets/<recipe>/`. Cards that are not named stay, with their rows of the table.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from edvit_hf.card.data import RESULTS_NAME
from edvit_hf.card.figures import draw_figures
from edvit_hf.card.render import CardData, render_card
from edvit_hf.card.zoo import ZOO_NOTE, ZooRow, zoo_row, zoo_table_markdown
from edvit_hf.errors import EDViTError
from edvit_hf.manifest import MANIFEST_NAME, Manifest
from edvit_hf.storage import read_json

HERE = Path(__file__).resolve().parent
ENSEMBLE = Path("09_card") / "ensemble"  # where a finished work directory keeps its ensemble
BEGIN, END = "<!-- zoo: written by render.py -->", "<!-- end of the zoo -->"
_LINKED = re.compile(r"^\| \[([^]]+)\]\(([^)]+)\) \|")
_MACHINE_PATH = re.compile(r"(?<![\w.:/~])(?:/(?:home|root|tmp|mnt|work|Users|var|opt|data)/|[A-Za-z]:\\)\S*")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="WORK_DIR")
    parser.add_argument("--output", type=Path, default=HERE, help="Folder of the cards. Default: %(default)s")
    chosen = parser.parse_args(arguments)
    try:
        rows = [render(folder, chosen.output) for folder in tqdm(chosen.folders, desc="cards", unit="card")]
        write_zoo(chosen.output / "README.md", rows)
    except EDViTError as error:
        sys.stderr.write(f"render.py: {error}\n")
        return 1
    return 0


def render(folder: Path, output: Path) -> ZooRow:
    """Write one recipe's card and figures into `output`; returns its row of the zoo.

    Raises:
        EDViTError: The folder holds no finished ensemble, or its card would name a path of this machine.
    """
    root = folder / ENSEMBLE if (folder / ENSEMBLE).is_dir() else folder
    card = CardData.from_folder(root)
    name = str(card.run.results.get("recipe") or root.name)
    if not re.fullmatch(r"[\w.-]+", name):
        raise EDViTError(
            f"Expected the name of a recipe in {root / RESULTS_NAME}, got {name!r}. The card's file is called like it. "
            "Correct `recipe` there."
        )
    content = render_card(card)
    leaks = sorted(set(_MACHINE_PATH.findall(content)))
    if leaks:
        raise EDViTError(
            f"Expected the card of {name} to be the same on every machine, found the paths {', '.join(leaks)}. Readers "
            f"cannot use them. Correct {RESULTS_NAME} or {MANIFEST_NAME} in {root}."
        )
    assets = output / "assets" / name
    figures = draw_figures(card.run.results, assets, card.run.manifest)
    content = render_card(card, figures={k: path.relative_to(output).as_posix() for k, path in figures.items()})
    _write(output / f"{name}.md", content)
    return zoo_row(Manifest.load(root), read_json(root / RESULTS_NAME), name)


def write_zoo(readme: Path, rows: Sequence[ZooRow]) -> None:
    """Put these rows into the table between the marks of a README; rows of other cards that exist stay.

    Raises:
        EDViTError: The README has no marks.
    """
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not begin or not end:
        raise EDViTError(
            f"Expected the marks {BEGIN!r} and {END!r} in {readme}, found none. The table has no place. Add both."
        )
    new = zoo_table_markdown(rows, link="{}.md").splitlines()
    head = [line for line in new if not _LINKED.match(line)]
    lines = {line.split("|")[1]: line for line in old.splitlines() if _keeps(line, readme.parent, head)}
    lines |= {line.split("|")[1]: line for line in new if _LINKED.match(line)}
    table = sorted(lines.values(), key=lambda line: (line.split("|")[2], line.split("|")[1]))
    block = "\n".join([begin, "", *head, *table, "", ZOO_NOTE, "", end])
    _write(readme, before + block + after)


def _keeps(line: str, folder: Path, head: Sequence[str]) -> bool:
    """Whether an old row stays: its card exists and it has the columns of today's table."""
    found = _LINKED.match(line)
    return found is not None and (folder / found.group(2)).is_file() and line.count("|") == head[0].count("|")


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
