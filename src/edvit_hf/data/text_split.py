# SPDX-License-Identifier: Apache-2.0
"""One split of a text task: token ids in RAM, padded to the longest of each batch."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch

from edvit_hf.data.augmentation import Augmentation
from edvit_hf.data.split import Indices, Inputs, RowSplit


@dataclass(frozen=True)
class SpecialTokens:
    """Ids with a meaning of their own.

    Attributes:
        pad: Fills shorter rows.
        unknown: Takes the place of dropped tokens.
        kept: Never dropped ([CLS], [SEP] and the like).
    """

    pad: int = 0
    unknown: int = 1
    kept: tuple[int, ...] = (0, 2, 3, 4)


class TokenStore:
    """Token ids of all rows, one after the other in one array."""

    def __init__(self, rows: Iterable[np.ndarray]) -> None:
        """Copy the rows into one array.

        Args:
            rows (`Iterable[np.ndarray]`): (n,) integers each, n at least 1.
        """
        parts = [np.asarray(row, np.int32) for row in rows]
        if any(part.ndim != 1 or not len(part) for part in parts):
            raise ValueError("Expected rows of token ids shaped (n,) with n of at least 1.")
        self.lengths = np.fromiter((len(part) for part in parts), np.int64, len(parts))
        self.starts = np.concatenate(([0], np.cumsum(self.lengths)[:-1])) if parts else np.zeros(0, np.int64)
        self.tokens = np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.lengths)


class Rewriting(Protocol):
    """How another tokenizer reads the same texts."""

    @property
    def special(self) -> SpecialTokens:
        """Its tokens with a meaning of their own."""

    def store(self, old: TokenStore, texts: Sequence[str]) -> tuple[TokenStore, np.ndarray]:
        """Its tokens of these texts, and of each the place in `old` of the token whose draw it follows."""
        ...


class TextSplit(RowSplit):
    """Token ids and labels of one split; a `Split`.

    Args:
        store (`TokenStore`): Where the tokens are, special ones included.
        labels (`np.ndarray`): (N,) integers.
        special (`SpecialTokens`): None means [PAD], [UNK], [CLS], [SEP], [MASK] as 0 to 4.
        raw (`Sequence[str]`, *optional*): The texts behind the rows of the store.
        options: `augmentation` and `seed` of `RowSplit`.
    """

    def __init__(
        self,
        store: TokenStore,
        labels: np.ndarray,
        *,
        special: SpecialTokens | None = None,
        raw: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(len(store), labels, **options)
        self._store, self._special, self._raw = store, special or SpecialTokens(), raw
        self._draws: np.ndarray | None = None  # of each token, whose draw it follows; None: its own
        self._num_draws = len(store.tokens)

    @property
    def lengths(self) -> np.ndarray | None:
        """(N,) int64, tokens of each plain item."""
        return self._store.lengths[self._rows]

    def texts(self, indices: Indices) -> list[str]:
        """Return the texts of these items as they were read, for rivals that are no transformers.

        Raises:
            ValueError: The split was made of tokens alone.
        """
        if self._raw is None:
            raise ValueError("This split was made of token ids alone; pass `raw` to have its texts.")
        return [self._raw[row] for row in self._rows[self._checked(indices)]]

    @property
    def tokens(self) -> np.ndarray:
        """(M,) int32, the tokens of all plain items one after the other."""
        width = int(self._store.lengths[self._rows].max(initial=1))
        places = self._store.starts[self._rows][:, None] + np.arange(width)
        return self._store.tokens[places[np.arange(width) < self._store.lengths[self._rows][:, None]]]

    def rewritten(self, change: "Rewriting") -> "TextSplit":
        """The same items as another tokenizer reads them; a view drops of them what it drops of the old tokens.

        Raises:
            ValueError: The split was made of tokens alone.
        """
        if self._raw is None:
            raise ValueError("This split was made of token ids alone; pass `raw` to read its texts again.")
        part = copy.copy(self)
        part._store, part._draws = change.store(self._store, self._raw)
        part._special = change.special
        return part

    def inputs(self, indices: Indices, view: int | None = None) -> Inputs:
        """Return {"input_ids": (B, T) int64, "attention_mask": (B, T) int64}; see `Split.inputs`.

        T is the longest of the batch, and 1 of an empty one. `lengths` are those of the plain items: a view that
        removes tokens is shorter.
        """
        rows = self._rows[self._checked(indices)]
        lengths, width = self._store.lengths[rows], int(self._store.lengths[rows].max(initial=1))
        places = self._store.starts[rows][:, None] + np.arange(width)
        present = np.arange(width) < lengths[:, None]
        places[~present] = 0
        ids = self._store.tokens[places].astype(np.int64)
        if view is not None and self.augmentation.token_dropout and len(rows):
            drawn = places if self._draws is None else self._draws[places]
            gone = dropped(self.augmentation, self._num_draws, view, self.seed)[drawn] & present
            gone &= ~np.isin(ids, self._special.kept)
            if self.augmentation.token_dropout_by == "unknown":
                ids[gone] = self._special.unknown
            else:
                ids, present = _without(ids, present, gone)
        ids[~present] = self._special.pad
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(present.astype(np.int64))}


def _without(ids: np.ndarray, present: np.ndarray, gone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Close the gaps that removed tokens leave; a row of nothing else keeps its first token."""
    left = present & ~gone
    left[:, 0] |= ~left.any(axis=1)
    order = np.argsort(~left, axis=1, kind="stable")[:, : left.sum(axis=1).max()]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(left, order, 1)


@lru_cache(maxsize=8)
def dropped(augmentation: Augmentation, num_tokens: int, view: int, seed: int) -> np.ndarray:
    """Draw which tokens of a whole split are dropped: (num_tokens,) bool.

    All items' tokens stand in one row, one item after the other; the first ones do not depend on how many follow.
    """
    draws = np.random.default_rng([seed, view, 3]).random(num_tokens, np.float32)
    return np.asarray(draws < np.float32(augmentation.token_dropout))
