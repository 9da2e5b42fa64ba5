"""A model card as the page shows it: its text without settings, pictures and HTML, and the licence it states."""

import re
from pathlib import Path

CARD_NAMES = ("MODEL_CARD.md", "README.md")  # in the Space's own folder README.md holds its settings
MAX_CHARACTERS = 60_000
_FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)
# By its line alone: a stranger's YAML can ask for more memory than there is (merge keys within merge keys).
_LICENCE = re.compile(r"^license:[ \t]*[\"']?([\w.+-]{1,60})[\"']?[ \t]*(?:#.*)?\r?$", re.MULTILINE)
# No piece of these reaches over the start of the next one, so that a text of such starts alone takes no longer.
_IMAGE = re.compile(r"!\[[^\[\]]*\](?:\([^()]*\)|\[[^\[\]]*\])?")
_HTML = re.compile(r"</?[A-Za-z][^<>]*>")
_IMAGE_START = re.compile(r"!+\[")
_TAG_START = re.compile(r"<(?=[A-Za-z/!?])")


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
    licence = None if front is None else _LICENCE.search(front[1])
    return plain_markdown(body).strip(), licence[1] if licence else ""


def plain_markdown(text: str) -> str:
    """Markdown without pictures, tags and comments: a picture of another host would tell it who visits this page.

    What looks like a picture after the rest was taken out becomes a link, which loads nothing until it is clicked, and
    a space follows what would begin a tag.
    """
    first, *others = text.split("<!--")
    text = first + "".join(part.partition("-->")[2] for part in others)
    return _TAG_START.sub("< ", _IMAGE_START.sub("[", _IMAGE.sub("", _HTML.sub("", text))))
