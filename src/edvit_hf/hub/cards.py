"""Whether a model card is ready to be read by others: no blanks, no missing figures."""

import re
from collections.abc import Iterator, Set
from pathlib import PurePosixPath
from typing import Any

import yaml

LOCAL_FOLDER = "path/to/this/folder"  # what a card rendered without a repository id calls the place it lies in
_BLANKS = (
    (re.compile(r"\[?more information needed\]?", re.IGNORECASE), "the template's placeholder"),
    (re.compile(r"\b(TODO|FIXME|TBD|XXX)\b"), "a note to the author"),
    (re.compile(r"\{\{.*?\}\}|\{%.*?%\}"), "a piece of the template"),
    (re.compile(r"<(?:your|insert|fill)[^>\n]*>", re.IGNORECASE), "a placeholder"),
)
_BLOCK = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)
_FIGURE = re.compile(r"!\[[^\]]*\]\(\s*<?([^)\s>]+)[^)]*\)|<img[^>]+src=[\"']([^\"']+)")
_TITLE = re.compile(r"^# +(\S.*)$", re.MULTILINE)


def filled_card(text: str, repo: str) -> str:
    """The card as it is published: code that loads from "this folder" loads from the repository it lies in."""
    return text.replace(LOCAL_FOLDER, repo)


def card_faults(text: str | None, files: Set[str]) -> Iterator[str]:
    """Blanks of a card, one sentence each.

    Args:
        text (`str`): README.md; None if there is none.
        files (`Set[str]`): Paths of what is published with it.
    """
    if text is None:
        yield "README.md is missing: nobody could tell what the ensemble is. Run the `card` stage."
        return
    block = _BLOCK.match(text)
    if block is None:
        yield "README.md does not begin with a metadata block (`---`): the Hub could not file it. Render it anew."
    else:
        yield from _metadata_faults(block.group(1))
    body = text[block.end() :] if block else text
    if _TITLE.search(_without_code(body)) is None:
        yield "README.md has no title (`# ...`). Give the recipe's card one."
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, what in _BLANKS:
            if found := pattern.search(line):
                yield f"README.md, line {number}, holds {what}: {found.group(0)!r}. Fill it in or leave it out."
    for match in _FIGURE.finditer(body):
        target = match.group(1) or match.group(2)
        if "://" not in target and PurePosixPath(target.removeprefix("./").partition("#")[0]).as_posix() not in files:
            yield f"README.md shows {target}, which is not there. Render the card anew."


def _metadata_faults(block: str) -> Iterator[str]:
    try:
        data: Any = yaml.safe_load(block)
    except yaml.YAMLError as error:
        yield f"README.md: the metadata block is no YAML ({str(error).splitlines()[0]}). Render it anew."
        return
    if not isinstance(data, dict):
        yield "README.md: the metadata block is empty. Render it anew."
        return
    for key in ("license", "pipeline_tag", "tags"):
        value = data.get(key)
        if not value or (isinstance(value, str) and not value.strip()):
            yield f"README.md: `{key}` of the metadata block is missing or empty. Give it in the recipe's card."
    try:
        from huggingface_hub import ModelCard

        ModelCard(f"---\n{block}\n---\n")
    except ImportError:
        return  # the block is then checked by the Hub alone
    except ValueError as error:
        yield f"README.md: the metadata block is not what the Hub takes ({str(error).splitlines()[0]}). Correct it."


def _without_code(text: str) -> str:
    """Without fenced code, whose comments look like titles."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
