# SPDX-License-Identifier: Apache-2.0
"""Text of data inside markdown: names of classes, data, files and machines stand there as they are, never as markup."""

import re

from edvit_hf.terminal import visible

# What markdown reads inside a line; an underscore only at the edge of a word. Links are made of addresses alone, too.
_INLINE = re.compile(r"[\\`*\[\]~$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.")
# What begins a heading, a list or a line where it stands first.
_BLOCK = re.compile(r"^(?:(?:#{1,6}|[+-])(?=\s|$)|(?:- ?){2,}$|=+$|\d+(?=[.)](?:\s|$)))")


def plain(text: object) -> str:
    """A text as markdown that shows it: in one line, with nothing in it read as markup, HTML or a link.

    Pipes are left: `tables.markdown_table` writes them in the way of a table.
    """
    shown = _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = _INLINE.sub(lambda found: f"\\{found[0]}", shown)
    first = _BLOCK.match(shown)
    if first is None:
        return shown
    place = 0 if not first[0][0].isdigit() else first.end()
    return f"{shown[:place]}\\{shown[place:]}"


def code(text: object) -> str:
    """A text in code style, whatever backticks it has."""
    shown = _one_line(text)
    if not shown or ("\\" in shown and "|" in shown):  # in a table nothing tells such a pipe from an escaped one
        return plain(shown)
    fence = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    edge = " " if shown[0] == "`" or shown[-1] == "`" else ""
    return f"{fence}{edge}{shown}{edge}{fence}"


def _one_line(text: object) -> str:
    return " ".join(visible(" ".join(str(text).split())).split())
