# SPDX-License-Identifier: Apache-2.0
"""A text task as sub-models with a smaller vocabulary read it: the same rows, labels and views, other tokens.

Sub-models learn what the teacher said of a view, so both must see the same one: where a view drops a token of the
teacher's, it drops whatever the smaller vocabulary made of it.
"""

import dataclasses
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edvit_hf.data.roles import ROLES
from edvit_hf.data.task import TaskData
from edvit_hf.data.text_split import SpecialTokens, TextSplit, TokenStore
from edvit_hf.data.tokenizer import special_tokens_of
from edvit_hf.data.vocabulary import CutVocabulary, Wanted, cut_tokenizer
from edvit_hf.transforms import TextTransform

logger = logging.getLogger(__name__)

_TOGETHER = 256  # texts read together


def with_vocabulary(data: TaskData, wanted: Wanted) -> TaskData:
    """The same task with the tokenizer cut to the pieces of its training texts; see `cut_tokenizer`.

    A row of kept pieces alone gets their new numbers; every other row is read again by the cut tokenizer.

    Raises:
        DataError: As `cut_tokenizer`.
    """
    train = data.train
    assert isinstance(train, TextSplit)
    before = _transform_of(data.processor)
    cut = cut_tokenizer(data.processor, np.bincount(train.tokens, minlength=before.vocab_size), wanted)
    after = _transform_of(cut.files)
    change = _Change(cut, before, after, special_tokens_of(cut.files, after))
    splits = {name: getattr(data, name).rewritten(change) for name in ROLES}
    shares = [len(splits[name].tokens) / max(1, len(getattr(data, name).tokens)) for name in ROLES]
    logger.info(
        "data: %d of %d pieces of the vocabulary kept (%d occur in training texts, %d stay whatever they hold); texts "
        "have %s times as many tokens",
        *(len(cut.kept), len(cut.numbers), cut.num_seen, cut.num_fallback),
        ", ".join(f"{share:.3f} ({name})" for share, name in zip(shares, ROLES, strict=True)),
    )
    return dataclasses.replace(
        data,
        processor=cut.files,
        vocab_size=len(cut.kept),
        pad_token_id=after.pad_id,
        input_sizes={**data.input_sizes, "vocab_size": len(cut.kept)},
        kept_pieces=cut.kept,
        **splits,
    )


def _transform_of(files: dict[str, str]) -> TextTransform:
    """How the files of a tokenizer read a text, as a device builds it."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        length = json.loads(files.get("tokenizer_config.json", "{}")).get("model_max_length")
        return TextTransform.from_file(folder, length)


@dataclass(frozen=True)
class _Change:
    """A `Rewriting` from a tokenizer to its cut one."""

    cut: CutVocabulary
    before: TextTransform
    after: TextTransform
    special: SpecialTokens

    def store(self, old: TokenStore, texts: Sequence[str]) -> tuple[TokenStore, np.ndarray]:
        """Tokens of the texts with the cut tokenizer, and whose draw each follows; see `TextSplit.rewritten`."""
        numbered = self.cut.numbers[old.tokens]
        # A text that is cut at its start may begin inside another word than before.
        is_cut = (old.lengths >= self.before.max_length) & (self.before.options["truncation_side"] == "left")
        is_lost = np.minimum.reduceat(numbered, old.starts) < 0 if len(old) else is_cut
        changed = np.flatnonzero(is_cut | is_lost)
        rows = np.split(numbered, old.starts[1:])
        draws = np.split(np.arange(len(numbered)), old.starts[1:])
        for start in range(0, len(changed), _TOGETHER):
            chosen = changed[start : start + _TOGETHER]
            some = [texts[row] for row in chosen]
            both = zip(self.before.encode_with_starts(some), self.after.encode_with_starts(some), strict=True)
            for row, ((_, earlier), (ids, later)) in zip(chosen, both, strict=True):
                rows[row] = ids
                draws[row] = old.starts[row] + _followed(earlier, later)
        return TokenStore(rows), np.concatenate(draws) if draws else np.zeros(0, np.int64)


def _followed(earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
    """Of each new token, the place of the old one in which it starts; of those that are no text, the first.

    Args:
        earlier: (n,) characters at which the old tokens start, -1 of special ones.
        later: (m,) the same of the new tokens.
    """
    places = np.flatnonzero(earlier >= 0)
    if not len(places):
        return np.zeros(len(later), np.int64)
    found = np.searchsorted(earlier[places], later, side="right") - 1
    return np.where(later < 0, 0, places[np.maximum(found, 0)])
