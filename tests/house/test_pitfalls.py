# SPDX-License-Identifier: Apache-2.0
"""Every known pitfall of model classes on Transformers has a test that says which one it guards against."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PITFALLS = {f"P-{n}" for n in range(1, 15)}
MARKED = re.compile(r"^# (P-\d+): (.+)\n(?=(?:(?:# P-|@| |\)|\]).*\n)*def test_)", re.MULTILINE)


def marks(text):
    """The pitfalls named in comments right above a test function or its decorators, with what they say."""
    return [(match[1], match[2]) for match in MARKED.finditer(text)]


def test_each_pitfall_of_the_model_classes_is_named_at_a_test_in_words():
    found = [mark for path in sorted(TESTS.rglob("test_*.py")) for mark in marks(path.read_text(encoding="utf-8"))]
    assert {name for name, _ in found} == PITFALLS
    assert all(len(words.split()) > 4 for _, words in found)


def test_a_comment_that_stands_at_no_test_does_not_count():
    words = "# P-1: five words about a pitfall"
    assert marks(f"{words}\n@mark(\n    [1],\n)\ndef test_it():\n") == [("P-1", words[7:])]
    assert marks(f"{words}\n{words}\ndef test_it():\n") == [("P-1", words[7:])] * 2
    for text in (f"{words}\n\ndef test_it():\n", f"{words}\ndef helper():\n", f"{words}\n"):
        assert marks(text) == []
