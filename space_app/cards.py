"""A model card as the page shows it: its text without settings, pictures and HTML, and the licence it states."""

import re
from pathlib import Path
from typing import Any

import yaml

CARD_NAMES = ("MODEL_CARD.md", "README.md")  # in the Space's own folder README.md holds its settings
MAX_CHARACTERS = 60_000
_FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)
# A picture of another host would tell it who visits this page; HTML could do more.
_IMAGE = re.compile(r"!\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])?")
_HTML = re.compile(r"<!--.*?-->|</?[A-Za-z][^>]*>", re.DOTALL)


def read_card(folder: Path) -> tuple[str, str]:
    """The card's text as markdown and the name of its licence; empty where there is none."""
    for name in CARD_NAMES:
        path = folder / name
        try:
            if path.is_file():
                return _parts(path.read_text(encoding="utf-8", errors="replace")[:MAX_CHARACTERS])
        except OSError:
            continue
    return "", ""


def _parts(text: str) -> tuple[str, str]:
    front = _FRONT.match(text)
    body = text if front is None else text[front.end() :]
    return _HTML.sub("", _IMAGE.sub("", body)).strip(), _licence(front[1]) if front else ""


def _licence(front: str) -> str:
    try:
        settings: Any = yaml.safe_load(front)
    except (yaml.YAMLError, ValueError, RecursionError):
        return ""
    found = settings.get("license") if isinstance(settings, dict) else None
    return found[:60] if isinstance(found, str) else ""
