# SPDX-License-Identifier: Apache-2.0
"""Decode the rows of a role one after the other; damaged ones are refused by number, or skipped and counted."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edvit_hf.data.columns import RawItems, RawSplit
from edvit_hf.errors import DataError, MissingExtraError

logger = logging.getLogger(__name__)

CACHE_LIMIT_BYTES = 1 << 30
"""A split is decoded into RAM once when its inputs fit in this many bytes, else on each access."""

_READ_ROWS = 512  # encoded items held in memory at a time


@dataclass(frozen=True)
class RowsToDecode:
    """Rows that a role wants decoded.

    Attributes:
        role: "train", "validation" or "test".
        split: Where they come from.
        rows: (N,) int64, in the numbering of that split.
        kind: What an item is called: "image", "audio", "text".
        on_error: What a damaged row does.
    """

    role: str
    split: RawSplit
    rows: np.ndarray
    kind: str
    on_error: Literal["raise", "skip"]

    def fits(self, bytes_each: int) -> bool:
        """Whether all of them fit into the cache."""
        return len(self.rows) * bytes_each <= CACHE_LIMIT_BYTES

    def cache(self, shape: tuple[int, ...], dtype: type[np.generic], decode: Callable[[Any], np.ndarray]) -> Any:
        """Decode into RAM if it fits; with `on_error` "skip" decode everything once in any case, to find the damage.

        Returns:
            `tuple`: Inputs (M, *shape) or None where they do not fit, and the M rows that are whole.
        """
        fits = self.fits(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        if not fits and self.on_error == "raise":
            logger.info(
                "data: %s: %d rows are decoded on access: they do not fit into the cache", self.role, len(self.rows)
            )
            return None, self.rows
        cache = np.empty((len(self.rows) if fits else 0, *shape), dtype)
        kept: list[int] = []
        for row, value in self.decoded(decode):
            if fits:
                cache[len(kept)] = value
            kept.append(row)
        return (cache[: len(kept)] if fits else None), np.asarray(kept, np.int64)

    def decoded(self, decode: Callable[[Any], Any]) -> Iterator[tuple[int, Any]]:
        """Yield (row, decoded item) of every whole row, with a progress bar on a terminal.

        Raises:
            DataError: A damaged row with `on_error` "raise", or no whole row at all.
        """
        start, whole = time.perf_counter(), 0
        bad: list[str] = []
        for row, source in _each_item(self.split.items, self.rows, f"decoding {self.role}", self.kind):
            try:
                value = decode_row(decode, source, self.kind, self.split.name, row)
            except DataError as error:
                if self.on_error == "raise":
                    raise
                bad.append(str(error))
                continue
            whole += 1
            yield row, value
        if bad:
            logger.warning(
                "data: %s: skipped %d of %d rows; the first: %s", self.role, len(bad), len(self.rows), bad[0]
            )
        if not whole:
            raise DataError(
                f"Expected {self.kind}s for {self.role}, got none: all {len(self.rows)} rows are damaged. The first: "
                f"{bad[0] if bad else 'none'}"
            )
        logger.info("data: %s: %d rows decoded in %.1f s", self.role, whole, time.perf_counter() - start)


@dataclass(frozen=True)
class DecodedOnAccess:
    """A `Store` for splits that do not fit into RAM."""

    wanted: RowsToDecode
    rows: np.ndarray
    shape: tuple[int, ...]
    dtype: type[np.generic]
    decode: Callable[[Any], np.ndarray]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return (B, *shape), a new array.

        Raises:
            DataError: A row is damaged.
        """
        source_rows, split = self.rows[rows], self.wanted.split
        result = np.empty((len(rows), *self.shape), self.dtype)
        for index, source in enumerate(split.items.read(source_rows)):
            row = int(source_rows[index])
            result[index] = decode_row(self.decode, source, self.wanted.kind, split.name, row)
        return result


def decode_row(decode: Callable[[Any], Any], source: Any, kind: str, split_name: str, row: int) -> Any:
    """Decode one item; errors name its row.

    Raises:
        DataError: The cell is empty or the item damaged.
    """
    try:
        if source is None:
            raise DataError(f"Expected {kind}, got an empty cell.")
        return decode(source)
    except DataError as error:
        raise DataError(f"Row {row} of split {split_name!r}: {error} Or set `on_error: skip`.") from error


def _each_item(items: RawItems, rows: np.ndarray, description: str, kind: str) -> Iterator[tuple[int, Any]]:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise MissingExtraError("Loading a dataset", "train", "tqdm") from error
    with tqdm(total=len(rows), desc=description, unit=kind, disable=None) as bar:
        for start in range(0, len(rows), _READ_ROWS):
            part = rows[start : start + _READ_ROWS]
            yield from zip(part.tolist(), items.read(part), strict=True)
            bar.update(len(part))
