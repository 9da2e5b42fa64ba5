# SPDX-License-Identifier: Apache-2.0
"""What a tokenizer.json may hold before the `tokenizers` library builds anything of it.

A tokenizer is a small program: patterns that search, replacements that lengthen a text, steps one after the other. What
no honest one needs is refused here, whoever wrote it. How long a pattern searches cannot be told from it: whoever runs
a stranger's tokenizer does so in a child process (`isolation`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from edvit_hf.errors import DataError
from edvit_hf.strict import parse_json

MAX_TOKENIZER_BYTES = 1 << 26
"""Of a tokenizer.json: 64 MiB. The largest in use, of 256,000 tokens in all languages, have half of it."""
MAX_STEPS = 64
"""Of normalising and splitting a text, one after the other."""
MAX_PATTERN = 4000
"""Characters of a pattern."""
MAX_GROWTH = 4096.0
"""How many times as long the replacements may make a text, all together."""


def check_tokenizer(content: str, where: str) -> None:
    """Raise DataError for the text of a tokenizer.json that no honest tokenizer has.

    What is no tokenizer at all is left to the library, which says what is wrong with it.
    """
    if len(content) > MAX_TOKENIZER_BYTES:
        raise _refused(where, f"at most {MAX_TOKENIZER_BYTES >> 20} MiB", "more", "Reading it could exhaust the memory")
    try:
        document = parse_json(content)
    except ValueError as error:
        raise DataError(
            f"Expected the JSON of a tokenizer in {where}, got {error}. Without it the model's words are unknown. "
            "Export or download the folder again."
        ) from error
    if not isinstance(document, Mapping):
        return
    steps = [step for name in ("normalizer", "pre_tokenizer") for step in _steps(document.get(name))]
    if len(steps) > MAX_STEPS:
        raise _refused(where, f"at most {MAX_STEPS} steps", len(steps), "Every text would go through all of them")
    growth = 1.0
    for step in steps:
        pattern, is_regex = _pattern(step.get("pattern"))
        if len(pattern) > MAX_PATTERN:
            raise _refused(
                where, f"patterns of at most {MAX_PATTERN} characters", len(pattern), "Nobody could tell what it does"
            )
        content_of = step.get("content")
        if step.get("type") == "Replace" and isinstance(content_of, str):
            # A regular expression may match between any two characters, and leave both.
            growth *= _growth(pattern, is_regex, content_of)
        if growth > MAX_GROWTH:
            raise _refused(
                where,
                f"replacements that make a text at most {MAX_GROWTH:g} times as long",
                "more",
                "A short text could exhaust the memory",
            )


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """The single steps of a normalizer or pre-tokenizer, however they are nested."""
    waiting = [part]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            yield each
            waiting += [value for value in each.values() if isinstance(value, list)]
        elif isinstance(each, list):
            waiting += each


def _pattern(value: Any) -> tuple[str, bool]:
    """A pattern, and whether it is a regular expression."""
    if isinstance(value, Mapping):
        regex = value.get("Regex")
        return (regex, True) if isinstance(regex, str) else (str(value.get("String", "")), False)
    return "", False


def _growth(pattern: str, is_regex: bool, content: str) -> float:
    """How many times as long a replacement may make a text: at every place, and between two of them."""
    if is_regex or not pattern:
        return 2.0 * len(content) or 1.0
    return max(1.0, len(content) / len(pattern))


def _refused(where: str, expected: str, got: Any, why: str) -> DataError:
    return DataError(
        f"Expected a tokenizer with {expected} in {where}, got {got}. {why}. Export the folder again with a stock "
        "tokenizer."
    )
