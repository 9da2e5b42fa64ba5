# SPDX-License-Identifier: Apache-2.0
"""Turn a text into a model's input with the `tokenizers` library alone, equal to the stock fast tokenizers.

Devices and training read texts through this one module, so both see the same tokens.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edvit_hf.errors import DataError, named_extra
from edvit_hf.storage import read_bytes, read_json_object
from edvit_hf.tasks import Task
from edvit_hf.transforms.tokenizer_files import MAX_TOKENIZER_BYTES, check_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NO_LENGTH = 1_000_000
"""A `model_max_length` above this is a stock file's way to say that none is set (it writes 10**30)."""

# The stock classes that build BERT's normaliser from tokenizer_config.json and ignore the one of tokenizer.json.
_BERT_CLASSES = {"BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer"}
_CHARACTERS_A_TOKEN = 6  # English has four to five, spaces included
_SLACK = 256
_WHY = "Without it the model's words are unknown. Export or download the folder again."
_OURS = (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)


class TextTransform:
    """What a stock fast tokenizer does with single texts, truncated and padded, without transformers.

    * Truncated to `max_length` tokens, special ones included; padded behind them.
    * Long texts: only as many characters are looked at as the first `max_length` tokens need. A token counts as
      certain if it ends 256 characters before the cut; while there are too few of them, four times as many characters
      are looked at. The result is that of the whole text unless a tokenizer decides about a token by what comes
      later than that (BERT's looks 100 characters ahead, to the end of the longest word that it splits).
    * Lone surrogates (halves of a character, which UTF-8 cannot write) become U+FFFD; the stock tokenizer fails.
    * The empty text: the special tokens alone; one padding token where the tokenizer adds none. See `says_nothing`.
    * "[SEP]" and the like written in a text become the special token, as in the stock tokenizer.

    The tokenizer given to it is taken over: its truncation and padding are set here.

    Attributes:
        max_length: Most tokens of a row.
        pad_id: The token that fills shorter rows of a batch.
    """

    def __init__(
        self, tokenizer: "Tokenizer", *, max_length: int, pad_id: int = 0, truncation_side: str = "right"
    ) -> None:
        special = tokenizer.num_special_tokens_to_add(False)
        if type(max_length) is not int or not special < max_length <= NO_LENGTH:
            raise DataError(
                f"Expected a `max_length` of {special + 1}..{NO_LENGTH} tokens, got {max_length!r}. "
                f"{special} special tokens and one of the text must fit. Set `model_max_length` in "
                "tokenizer_config.json to what the model can read."
            )
        if truncation_side not in ("left", "right"):
            raise DataError(
                f"Expected `truncation_side` to be left or right, got {truncation_side!r}. Tokens would be lost on the "
                "wrong side. Correct tokenizer_config.json."
            )
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length, direction=truncation_side)
        self._tokenizer = tokenizer
        self._cuts = truncation_side == "right"
        self.max_length = max_length
        self.pad_id = pad_id

    @classmethod
    def from_file(
        cls, path: str | Path, max_length: int | None = None, *, otherwise: int | None = None
    ) -> "TextTransform":
        """Build it from a `tokenizer.json` or the folder that holds one, and the `tokenizer_config.json` beside it.

        Args:
            path: The file or the folder.
            max_length: Most tokens of a row; at most the files' own. None takes the files' own.
            otherwise: Most tokens of a row where nothing else says it.

        Raises:
            DataError: A file is missing or damaged, no length is given or found, no padding token is found, or padding
                stands before the text: models answer from the first token.
            MissingExtraError: tokenizers is not installed.
        """
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        tokenizer = _tokenizer(path)
        config_file = path.parent / "tokenizer_config.json"
        what = "a tokenizer's settings"
        config = read_json_object(config_file, what, _WHY, error=DataError) if config_file.exists() else {}
        _check_padding_side(tokenizer, config, path)
        _follow_config(tokenizer, config, config_file)
        return cls(
            tokenizer,
            max_length=_max_length(tokenizer, config, max_length, path, otherwise),
            pad_id=_pad_id(tokenizer, config, path),
            truncation_side=config.get("truncation_side", "right"),
        )

    @classmethod
    def from_serialised(cls, content: str, **options: Any) -> "TextTransform":
        """Build it again from `serialised` and `options`, in another process say. Raises what `from_file` raises."""
        return cls(_parsed(content, "the given text"), **options)

    @property
    def serialised(self) -> str:
        """The tokenizer as the text of a tokenizer.json; what the files beside it changed is in it."""
        return str(self._tokenizer.to_str())

    @property
    def options(self) -> dict[str, Any]:
        """What else it was built with."""
        side = "right" if self._cuts else "left"
        return {"max_length": self.max_length, "pad_id": self.pad_id, "truncation_side": side}

    @property
    def task(self) -> Task:
        """The task whose models this feeds."""
        return "text-classification"

    @property
    def vocab_size(self) -> int:
        """How many tokens there are; ids lie below it."""
        return int(self._tokenizer.get_vocab_size())

    @property
    def lowers_case(self) -> bool:
        """Whether capital letters are read as small ones."""
        normalizer = self._tokenizer.normalizer
        return normalizer is not None and "A" not in normalizer.normalize_str("A")

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text: (n,) int64 each, 1 <= n <= `max_length`, special tokens included, not padded.

        Raises:
            DataError: Not a sequence of strings, or the tokenizer cannot handle a text.
        """
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise DataError(
                f"Expected a list of texts, got one {type(texts).__name__}. Each letter would be a text of its own. "
                "Pass [text]."
            )
        return [np.array(encoding.ids or [self.pad_id], np.int64) for encoding in self._encodings(texts)]

    def encode_with_starts(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """What `encode` returns, and at which character of the text each token starts: (n,) int64 both.

        A token that stands for nothing in the text (a special one) has -1.
        """
        found = []
        for encoding in self._encodings(texts):
            starts = [
                -1 if is_special or start == end else start
                for is_special, (start, end) in zip(encoding.special_tokens_mask, encoding.offsets, strict=True)
            ]
            found.append((np.array(encoding.ids or [self.pad_id], np.int64), np.array(starts or [-1], np.int64)))
        return found

    def _encodings(self, texts: Sequence[str]) -> list[Any]:
        valid = [_valid(text, row) for row, text in enumerate(texts)]
        rows: list[Any] = [None] * len(valid)
        waiting: list[int] = list(range(len(valid)))
        seen = _CHARACTERS_A_TOKEN * self.max_length + _SLACK if self._cuts else max(map(len, valid), default=0)
        while waiting:
            uncertain = []
            encodings = self._run([valid[row][:seen] for row in waiting])
            for row, encoding in zip(waiting, encodings, strict=True):
                if len(valid[row]) > seen and not self._is_certain(encoding, seen):
                    uncertain.append(row)
                else:
                    rows[row] = encoding
            waiting = uncertain
            seen *= 4
        return rows

    def pad(self, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Make a batch of encoded texts, as long as its longest row.

        Args:
            rows: What `encode` returns, at least one.

        Returns:
            {"input_ids": (B, T), "attention_mask": (B, T)}, both int64; the mask is 0 on padding.

        Raises:
            DataError: No rows, or an empty one.
        """
        if not len(rows) or not all(map(len, rows)):
            raise DataError(
                f"Expected rows of token ids, at least one long, got {len(rows)} rows, the shortest of "
                f"{min(map(len, rows), default=0)}. Attention over nothing is NaN. Pass what `encode` returns."
            )
        width = max(map(len, rows))
        ids = np.full((len(rows), width), self.pad_id, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def tokens(self, ids: Sequence[int] | np.ndarray) -> tuple[str, ...]:
        """Token ids as the vocabulary writes them, special and unknown ones included; "" where it has no such id."""
        return tuple(self._tokenizer.id_to_token(int(number)) or "" for number in ids)

    def says_nothing(self, text: str, ids: Sequence[int] | np.ndarray) -> bool:
        """Whether nothing of a text is known: it is blank, or its tokens are all special, padding or unknown ones.

        A model answers such a text like any other, with whatever it says of empty ones. Training and measuring take
        data as they are; whoever answers a person asks this first.

        Args:
            text: The text.
            ids: What `encode` made of it: of a long text, what follows these tokens is not read.
        """
        return not text.strip() or self._empty_ids.issuperset(map(int, ids))

    @cached_property
    def _empty_ids(self) -> frozenset[int]:
        """Ids of the tokens that stand for nothing in a text."""
        tokenizer = self._tokenizer
        unknown = ("[UNK]", "<unk>", str(getattr(tokenizer.model, "unk_token", None) or "[UNK]"))
        found = (tokenizer.token_to_id(name) for name in unknown)
        special = (number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special)
        existing = (number for number in found if number is not None)
        return frozenset({self.pad_id, *existing, *special, *tokenizer.encode("").ids})

    def inputs(self, text: str) -> dict[str, np.ndarray]:
        """Return the model's input: {"input_ids": (1, T), "attention_mask": (1, T)}. Raises what `encode` raises."""
        return self.pad(self.encode([text]))

    def _run(self, texts: list[str]) -> list[Any]:
        try:
            return self._tokenizer.encode_batch(texts)
        except _OURS:
            raise
        except BaseException as error:  # the library raises bare exceptions, and its panics are none
            raise DataError(
                f"Expected texts that the tokenizer can split, got an error: {error}. The model would see nothing. "
                "Its tokenizer.json may lack the unknown token: export the folder again."
            ) from error

    def _is_certain(self, encoding: Any, seen: int) -> bool:
        """Whether the tokens of a cut text are full in number and end far enough before the cut."""
        ends = (end for _, end in encoding.offsets)
        return len(encoding.ids) == self.max_length and max(ends) <= seen - _SLACK


def _valid(text: Any, row: int) -> str:
    if not isinstance(text, str):
        raise DataError(
            f"Expected a text, got {type(text).__name__} in row {row}. A tokenizer reads strings only. "
            "Decode bytes first; replace a missing text by an empty one or drop the row."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # Halves that belong together become the character that they are halves of.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _tokenizer(path: Path) -> "Tokenizer":
    try:
        content = read_bytes(path, MAX_TOKENIZER_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"Expected the UTF-8 text of a tokenizer in {path}, got: {error}. {_WHY}") from error
    return _parsed(content, str(path))


def _parsed(content: str, where: str) -> "Tokenizer":
    with named_extra("Reading a text", "device"):
        from tokenizers import Tokenizer
    try:
        check_tokenizer(content, where)
        return Tokenizer.from_str(content)
    except (DataError, *_OURS):
        raise
    except BaseException as error:  # the library raises bare exceptions, and its panics are none
        raise DataError(f"Expected a tokenizer of the `tokenizers` library in {where}, got: {error}. {_WHY}") from error


def _check_padding_side(tokenizer: "Tokenizer", config: Mapping[str, Any], path: Path) -> None:
    own = (tokenizer.padding or {}).get("direction", "right")
    side = config.get("padding_side", own)  # the stock tokenizer asks in this order too
    if side != "right":
        raise DataError(
            f"Expected `padding_side` to be right, got {side!r} in {path} or the tokenizer_config.json beside it. Of "
            "every model here the first token answers, and in a batch that would be padding. Set `padding_side` to "
            "right in tokenizer_config.json: a single text is the same on either side."
        )


def _follow_config(tokenizer: "Tokenizer", config: Mapping[str, Any], config_file: Path) -> None:
    """Let tokenizer_config.json have the last word on case and accents where the stock class does."""
    from tokenizers import models, normalizers, pre_tokenizers

    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    if kind in _BERT_CLASSES and isinstance(tokenizer.model, models.WordPiece):
        for name in ("tokenize_chinese_chars", "strip_accents", "do_lower_case"):
            value = config.get(name, True)
            if not (isinstance(value, bool) or (value is None and name == "strip_accents")):
                raise DataError(
                    f"Expected `{name}` to be true or false, got {value!r} in {config_file}. Words would be looked up "
                    "in another form than the model learnt. Correct it, or export the folder again."
                )
        tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=config.get("tokenize_chinese_chars", True),
            strip_accents=config.get("strip_accents"),
            lowercase=config.get("do_lower_case", True),
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def _max_length(
    tokenizer: "Tokenizer", config: Mapping[str, Any], wanted: int | None, path: Path, otherwise: int | None
) -> int:
    own = _own_length(tokenizer, config, path)
    own = otherwise if own is None and wanted is None else own
    if own is None and wanted is None:
        raise DataError(
            f"Expected `model_max_length` in tokenizer_config.json beside {path}, got none that says anything. A text "
            "could be longer than the model can read. Set it to the model's `max_position_embeddings`, or pass "
            "`max_length`."
        )
    if own is not None and wanted is not None and wanted > own:
        raise DataError(
            f"Expected a `max_length` of at most {own} tokens, got {wanted}. The files beside {path} say that the "
            "model cannot read more. Choose a smaller one."
        )
    return wanted if wanted is not None else own  # type: ignore[return-value]


def _own_length(tokenizer: "Tokenizer", config: Mapping[str, Any], path: Path) -> int | None:
    """The length limit that the tokenizer's files state; None if they state none."""
    own = config.get("model_max_length")
    is_number = isinstance(own, (int, float)) and not isinstance(own, bool)
    if own is None or (is_number and own > NO_LENGTH):
        found: int | None = (tokenizer.truncation or {}).get("max_length")
        return found
    if not is_number or not math.isfinite(own) or own != int(own) or own < 1:
        raise DataError(
            f"Expected `model_max_length` to be a whole number of at least 1, got {own!r} in tokenizer_config.json "
            f"beside {path}. A text could be longer than the model can read. Set it to the model's "
            "`max_position_embeddings`."
        )
    return int(own)


def _pad_id(tokenizer: "Tokenizer", config: Mapping[str, Any], path: Path) -> int:
    """The padding token by tokenizer_config.json, special_tokens_map.json, tokenizer.json, or the usual names."""
    special_file = path.parent / "special_tokens_map.json"
    what, is_there = "special tokens", special_file.exists()
    special = read_json_object(special_file, what, _WHY, error=DataError) if is_there else {}
    names = [config.get("pad_token"), special.get("pad_token"), (tokenizer.padding or {}).get("pad_token")]
    names = [name.get("content") if isinstance(name, Mapping) else name for name in names]
    for name in [*filter(None, names), "[PAD]", "<pad>"]:
        found = tokenizer.token_to_id(str(name))
        if found is not None:
            return int(found)
        if name in names:
            break
    raise DataError(
        f"Expected a padding token that {path} knows, got {next(filter(None, names), None)!r}. Texts of one batch "
        "differ in length. Set `pad_token` in tokenizer_config.json."
    )
