# SPDX-License-Identifier: Apache-2.0
"""Cut a tokenizer's vocabulary to the pieces that some texts need: JSON in, JSON out.

A text whose pieces are all kept is read exactly as before. Any other text is split into kept, smaller pieces, because
what everything can be spelt with stays: single characters (WordPiece: at the start of a word and inside it), the
alphabet of bytes (BPE), and every special or added token. So a word is known as long as each of its characters has a
piece of its own at its place. Where a character has none (WordPiece) the pieces with it stay, but a kept piece may now
end where none of them begins: such a word can become unknown.
"""

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edvit_hf.data.config import as_json
from edvit_hf.errors import DataError

Wanted = int | Literal["seen"]
"""How many pieces stay, or "seen": those that occur."""

CUTTABLE = ("WordPiece", "BPE")
_WRITTEN_BESIDE = ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json")  # tokenizer.json holds them
_WHY = "The word embeddings of every sub-model follow from it."


@dataclass(frozen=True)
class CutVocabulary:
    """A tokenizer with fewer pieces.

    Attributes:
        files: Of the tokenizer: name -> text.
        kept: (K,) int64, ascending: the old id of each new one.
        numbers: (V,) int64: the new id of each old one, -1 of a dropped one.
        num_fallback: How many of them stay whatever the texts hold.
        num_seen: How many pieces of the old vocabulary occur in the texts.
    """

    files: dict[str, str]
    kept: np.ndarray
    numbers: np.ndarray
    num_fallback: int
    num_seen: int


def cut_tokenizer(files: Mapping[str, str], counts: np.ndarray, wanted: Wanted) -> CutVocabulary:
    """Keep the most frequent pieces, those they are made of, and what everything can be spelt with.

    With a number, exactly so many stay (at most all): after the pieces that occur come the others in the order of their
    ids, which are the more frequent ones of what the tokenizer was trained on. New ids are the old ones without gaps,
    in the same order.

    Args:
        files: Text of `tokenizer.json` and, if there are, the files beside it.
        counts: (V,) how often each id occurs in the training texts.
        wanted: How many stay, or "seen".

    Raises:
        DataError: A kind of tokenizer that cannot be cut, one without an unknown token, or a number below the
            fall-back pieces.
    """
    document = json.loads(files["tokenizer.json"])
    pieces = _pieces_of(document["model"])
    added = {int(token["id"]): token["content"] for token in document.get("added_tokens") or []}
    size = max([*pieces.ids.values(), *added], default=-1) + 1
    counts = np.pad(np.asarray(counts, np.int64), (0, max(0, size - len(counts))))[:size]
    stay = pieces.fallback() | set(added) | set(_named_ids(document)) - {-1}
    num_fallback, exists = len(stay), sorted({*pieces.ids.values(), *added})
    if wanted != "seen" and wanted < num_fallback:
        raise DataError(
            f"Expected `prune.vocabulary` of at least {num_fallback} pieces, got {wanted}. So many single characters "
            "and special tokens must stay, or texts that are known today would become unknown. Raise it."
        )
    limit = len(exists) if wanted == "seen" else min(wanted, len(exists))
    for number in sorted(exists, key=lambda number: (-counts[number], number)):
        if len(stay) >= limit or (wanted == "seen" and not counts[number]):
            break
        needed = pieces.needs(number) - stay
        if number not in stay and (wanted == "seen" or len(stay) + len(needed) <= limit):
            stay |= needed
    kept = np.array(sorted(stay), np.int64)
    numbers = np.full(size, -1, np.int64)
    numbers[kept] = np.arange(len(kept))
    cut = {name: text for name, text in files.items() if name not in _WRITTEN_BESIDE}
    cut["tokenizer.json"] = json.dumps(_renumbered(document, pieces, numbers), ensure_ascii=False, indent=1) + "\n"
    if "tokenizer_config.json" in files:
        cut["tokenizer_config.json"] = _settings(files["tokenizer_config.json"], numbers)
    return CutVocabulary(cut, kept, numbers, num_fallback, int((counts > 0).sum()))


class _WordPiece:
    """The longest piece that fits is taken, again and again; a piece needs no other."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        self.ids: dict[str, int] = {piece: int(number) for piece, number in model["vocab"].items()}
        self.prefix = str(model.get("continuing_subword_prefix") or "##")
        unknown = str(model.get("unk_token") or "[UNK]")
        if unknown not in self.ids:
            raise DataError(
                f"Expected a vocabulary with the unknown token {unknown!r}, got one without it. A text with a new "
                "character could not be read at all. Add it, or name another checkpoint."
            )
        self.unknown = self.ids[unknown]

    def fallback(self) -> set[int]:
        """Single characters, and the pieces with a character that has no piece of its own at its place."""
        alone = {piece for piece in self.ids if len(piece.removeprefix(self.prefix)) == 1 or len(piece) == 1}
        return {self.unknown} | {
            number for piece, number in self.ids.items() if piece in alone or not self._is_spelt(piece, alone)
        }

    def _is_spelt(self, piece: str, alone: set[str]) -> bool:
        starts = not piece.startswith(self.prefix)
        text = piece.removeprefix(self.prefix)
        return all((c if starts and not i else self.prefix + c) in alone for i, c in enumerate(text))

    def needs(self, number: int) -> set[int]:
        """The piece itself."""
        return {number}

    def cut(self, model: dict[str, Any], numbers: np.ndarray) -> dict[str, Any]:
        """The model's JSON with the kept pieces alone."""
        return {**model, "vocab": _renumbered_vocabulary(self.ids, numbers)}


class _BytePairs:
    """Neighbours are merged in a fixed order; a piece needs every piece on the way to it."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        self.ids: dict[str, int] = {piece: int(number) for piece, number in model["vocab"].items()}
        self.prefix = str(model.get("continuing_subword_prefix") or "")
        self.suffix = str(model.get("end_of_word_suffix") or "")
        pairs = (tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"])
        self.ranks: dict[tuple[str, ...], int] = {}
        for rank, pair in enumerate(pairs):
            self.ranks.setdefault(pair, rank)
        self.names = {number: piece for piece, number in self.ids.items()}
        self.unknown = self.ids.get(str(model.get("unk_token")))

    def fallback(self) -> set[int]:
        """Single characters in each of their forms, which are all bytes where it works on bytes, and `<0x..>`."""
        found = {number for piece, number in self.ids.items() if len(self._bare(piece)) <= 1 or len(piece) == 1}
        found |= {number for piece, number in self.ids.items() if len(piece) == 6 and piece.startswith("<0x")}
        return found if self.unknown is None else found | {self.unknown}

    def _bare(self, piece: str) -> str:
        return piece.removeprefix(self.prefix).removesuffix(self.suffix)

    def merged(self, first: str, second: str) -> str:
        """The piece that two neighbours become."""
        return first + second.removeprefix(self.prefix)

    def needs(self, number: int) -> set[int]:
        """The piece and all that lie on the way to it, as its own characters are merged."""
        piece, found = self.names.get(number, ""), {number}
        text = self._bare(piece)
        if not text:
            return found
        parts = [
            c if not i and not piece.startswith(self.prefix or "\0") else self.prefix + c for i, c in enumerate(text)
        ]
        if self.suffix and piece.endswith(self.suffix):
            parts[-1] += self.suffix
        way: set[int] = {self.ids[part] for part in parts if part in self.ids}
        while len(parts) > 1:
            ranked = [(self.ranks[pair], i) for i, pair in enumerate(itertools.pairwise(parts)) if pair in self.ranks]
            if not ranked:
                return found  # no merge leads to it: it is taken whole or not at all
            _, place = min(ranked)
            parts[place : place + 2] = [self.merged(parts[place], parts[place + 1])]
            if parts[place] not in self.ids:
                return found
            way.add(self.ids[parts[place]])
        return found | way

    def cut(self, model: dict[str, Any], numbers: np.ndarray) -> dict[str, Any]:
        """The model's JSON with the kept pieces, and the merges between them that lead to a kept one."""
        stay = {piece for piece, number in self.ids.items() if numbers[number] >= 0}
        merges = [
            merge
            for merge, (first, second) in ((m, m.split(" ", 1) if isinstance(m, str) else m) for m in model["merges"])
            if {first, second, self.merged(first, second)} <= stay
        ]
        return {**model, "vocab": _renumbered_vocabulary(self.ids, numbers), "merges": merges}


def _pieces_of(model: Mapping[str, Any]) -> _WordPiece | _BytePairs:
    kind = model.get("type") or ("BPE" if "merges" in model else "WordPiece" if "unk_token" in model else "unknown")
    if kind == "WordPiece":
        return _WordPiece(model)
    if kind == "BPE":
        return _BytePairs(model)
    raise DataError(
        f"Expected a tokenizer of the kind {' or '.join(CUTTABLE)}, got {kind}. {_WHY} Of the others it is not known "
        "what a text becomes without some pieces. Remove `prune.vocabulary`, or name a checkpoint with another "
        "tokenizer."
    )


def _renumbered_vocabulary(ids: Mapping[str, int], numbers: np.ndarray) -> dict[str, int]:
    stay = ((piece, int(numbers[number])) for piece, number in ids.items() if numbers[number] >= 0)
    return dict(sorted(stay, key=lambda item: item[1]))


def _renumbered(document: dict[str, Any], pieces: _WordPiece | _BytePairs, numbers: np.ndarray) -> dict[str, Any]:
    """The whole tokenizer.json with the new ids, wherever it states one."""
    changed = {**document, "model": pieces.cut(document["model"], numbers)}
    changed["added_tokens"] = [
        {**token, "id": int(numbers[int(token["id"])])} for token in document.get("added_tokens") or []
    ]
    if document.get("padding"):
        padding = document["padding"]
        changed["padding"] = {**padding, "pad_id": int(numbers[int(padding.get("pad_id", 0))])}
    if document.get("post_processor"):
        changed["post_processor"] = _renumbered_template(document["post_processor"], numbers)
    return changed


def _renumbered_template(part: dict[str, Any], numbers: np.ndarray) -> dict[str, Any]:
    changed = dict(part)
    if part.get("processors"):
        changed["processors"] = [_renumbered_template(each, numbers) for each in part["processors"]]
    for name in ("sep", "cls"):
        if isinstance(part.get(name), list):
            changed[name] = [part[name][0], int(numbers[part[name][1]])]
    if isinstance(part.get("special_tokens"), dict):
        changed["special_tokens"] = {
            name: {**token, "ids": [int(numbers[number]) for number in token["ids"]]}
            for name, token in part["special_tokens"].items()
        }
    return changed


def _named_ids(document: Mapping[str, Any]) -> Iterable[int]:
    """Ids that the padding and the template of special tokens state."""
    if document.get("padding"):
        yield int(document["padding"].get("pad_id", 0))
    waiting = [document.get("post_processor") or {}]
    while waiting:
        part = waiting.pop()
        waiting += part.get("processors") or []
        yield from (part[name][1] for name in ("sep", "cls") if isinstance(part.get(name), list))
        for token in (
            (part.get("special_tokens") or {}).values() if isinstance(part.get("special_tokens"), dict) else ()
        ):
            yield from token["ids"]


def _settings(text: str, numbers: np.ndarray) -> str:
    """tokenizer_config.json with the new ids of its added tokens."""
    settings = json.loads(text)
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        known = {number: token for number, token in decoder.items() if int(number) < len(numbers)}
        settings["added_tokens_decoder"] = {
            str(int(numbers[int(number)])): token for number, token in known.items() if numbers[int(number)] >= 0
        }
    return as_json(settings)
