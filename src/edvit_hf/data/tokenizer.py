# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a text task: a teacher's own, or a WordPiece vocabulary learnt from the training texts."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edvit_hf.data.config import as_json
from edvit_hf.data.modalities import TextConfig
from edvit_hf.data.text_split import SpecialTokens
from edvit_hf.errors import DataError, named_extra
from edvit_hf.storage import read_json_object
from edvit_hf.tasks import PROCESSOR_FILES
from edvit_hf.transforms import TextTransform

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Ids 0 to 4 of a tokenizer that is trained here."""

_PREFIX = "##"
_MOST_CHARACTERS = 1000  # as the trainer's own limit in BERT's recipe


def train_tokenizer(texts: Sequence[str], config: TextConfig) -> dict[str, str]:
    """Learn a WordPiece vocabulary: equal texts give an equal tokenizer, byte for byte.

    The stock trainer numbers the continuing characters ("##a") in the order of a hash table, which is another one in
    every process, and breaks ties between merges by these numbers. So they are handed to it in a fixed order first.

    `texts` are training rows only: a vocabulary tells something of what it was learnt from.

    Returns:
        `dict[str, str]`: Text of `tokenizer.json` and `tokenizer_config.json`, as `AutoTokenizer` reads them.

    Raises:
        DataError: The texts hold no character to learn from.
        MissingExtraError: tokenizers is not installed.
    """
    with named_extra("Training a tokenizer", "train"):
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    unknown = SPECIAL_TOKENS[1]
    learner = Tokenizer(models.WordPiece(unk_token=unknown))
    config = config.filled()
    assert config.vocab_size is not None
    assert config.lowercase is not None
    learner.normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    first, continuing = _alphabet(texts, learner, min(_MOST_CHARACTERS, config.vocab_size // 4))
    if not first:
        raise DataError(
            f"Expected texts to learn a tokenizer from, got {len(texts)} without a single character. Check "
            "`input_column`."
        )
    alphabet: dict[str, Any] = {"initial_alphabet": first, "limit_alphabet": len(first)}
    special = [*SPECIAL_TOKENS, *first, *continuing]
    learner.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=config.vocab_size, special_tokens=special, show_progress=False, **alphabet
        ),
    )
    # A fresh one, in which the characters above are pieces and not special.
    trained = Tokenizer(models.WordPiece(learner.get_vocab(), unk_token=unknown, continuing_subword_prefix=_PREFIX))
    trained.normalizer, trained.pre_tokenizer = learner.normalizer, learner.pre_tokenizer
    trained.add_special_tokens(list(SPECIAL_TOKENS))
    begin, end = ((name, SPECIAL_TOKENS.index(name)) for name in ("[CLS]", "[SEP]"))
    trained.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[begin, end]
    )
    return {"tokenizer.json": trained.to_str(pretty=True) + "\n", "tokenizer_config.json": _settings(config)}


def read_tokenizer(folder: Path, config: TextConfig | None) -> tuple[TextTransform, dict[str, str]]:
    """Read a teacher's own tokenizer; `model_max_length` in the returned files is the length that is used.

    `config.max_length` cuts rows shorter than the files say. A folder that holds the files of an earlier tokenizer
    alone (`vocab.txt`) is read by the stock class, which makes a `tokenizer.json` of them.

    Raises:
        DataError: Damaged files, padding on the left, a `max_length` above what the teacher can read, or a `lowercase`
            that is not what the tokenizer does.
    """
    if not (folder / "tokenizer.json").is_file() and (folder / "tokenizer_config.json").is_file():
        with tempfile.TemporaryDirectory() as made:
            _convert(folder, Path(made))
            return read_tokenizer(Path(made), config)
    length = None if config is None else config.max_length
    transform = TextTransform.from_file(folder, length, otherwise=_positions(folder))
    files = {
        name: (folder / name).read_text(encoding="utf-8")
        for name in PROCESSOR_FILES
        if name != "preprocessor_config.json" and (folder / name).is_file()
    }
    settings = json.loads(files.get("tokenizer_config.json", "{}"))
    if config is not None and config.lowercase not in (None, transform.lowers_case):
        does = "lowers the case" if transform.lowers_case else "keeps the case"
        raise DataError(
            f"`dataset.text.lowercase` is {config.lowercase}, the model's own tokenizer ({folder}) {does}. Its words "
            "are numbered by it, and others would be unknown to it. Leave `lowercase` out, or name another checkpoint."
        )
    settings["model_max_length"] = transform.max_length
    files["tokenizer_config.json"] = as_json(settings)
    return transform, files


def _positions(folder: Path) -> int | None:
    """How many tokens the model beside the tokenizer can read, as its config.json says."""
    path = folder / "config.json"
    found = (
        read_json_object(path, "a model's config", "Its length is not known.", error=DataError)
        if path.is_file()
        else {}
    )
    number = found.get("max_position_embeddings")
    return number if type(number) is int and number > 0 else None


def _convert(folder: Path, target: Path) -> None:
    """Write the files of a tokenizer without `tokenizer.json` as the stock class reads them."""
    with named_extra("Reading this tokenizer", "train"):
        from transformers import AutoTokenizer
    if (folder / "config.json").is_file():  # a length that only it states
        shutil.copyfile(folder / "config.json", target / "config.json")
    try:
        AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False).save_pretrained(target)
    except Exception as error:  # the stock classes raise nearly every type on files that do not fit
        raise DataError(
            f"Expected a tokenizer in {folder}, got one that the stock classes cannot read: {error}. Without it the "
            "model's words are unknown. Save it with `save_pretrained` of its own tokenizer again."
        ) from error
    if not (target / "tokenizer.json").is_file():
        raise DataError(
            f"Expected a tokenizer in {folder} that can be written as tokenizer.json, got one that cannot. Devices "
            "read no other. Use a checkpoint with a fast tokenizer."
        )


def transform_of(files: dict[str, str]) -> TextTransform:
    """The transform of a tokenizer that `train_tokenizer` made."""
    with named_extra("Reading a text", "train"):
        from tokenizers import Tokenizer

    length = int(json.loads(files["tokenizer_config.json"])["model_max_length"])
    return TextTransform(Tokenizer.from_str(files["tokenizer.json"]), max_length=length, pad_id=0)


def special_tokens_of(files: dict[str, str], transform: TextTransform) -> SpecialTokens:
    """Which ids token dropout must leave alone, and what it puts in place of the others.

    Without an unknown token the mask or else the padding token takes its place.
    """
    tokenizer, settings = json.loads(files["tokenizer.json"]), json.loads(files["tokenizer_config.json"])
    added = {token["content"]: int(token["id"]) for token in tokenizer.get("added_tokens", []) if token.get("special")}
    model = tokenizer.get("model", {})
    named = (_content(settings.get("unk_token")), model.get("unk_token"), _content(settings.get("mask_token")))
    unknown = next((added[name] for name in named if name in added), transform.pad_id)
    kept = tuple(sorted(set(added.values()) - {unknown}))
    return SpecialTokens(pad=transform.pad_id, unknown=unknown, kept=kept)


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _settings(config: TextConfig) -> str:
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL_TOKENS, strict=True))
    return as_json(
        {
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": config.max_length,
            "padding_side": "right",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "truncation_side": "right",
            **{f"{name}_token": token for name, token in names.items()},
        }
    )


def _alphabet(texts: Sequence[str], learner: Any, limit: int) -> tuple[list[str], list[str]]:
    """The most frequent characters after normalisation, and those of them that can continue a word, with prefix."""
    counts: dict[str, int] = {}
    numbers = np.bincount(np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32), minlength=1)
    for code in np.flatnonzero(numbers).tolist():
        for character in learner.normalizer.normalize_str(chr(code)):
            if not character.isspace():
                counts[character] = counts.get(character, 0) + int(numbers[code])
    frequent = sorted(counts, key=lambda character: (-counts[character], character))[:limit]
    first = sorted(frequent)
    continuing = [c for c in first if _continues(c, learner)]
    return first, [_PREFIX + character for character in continuing]


def _continues(character: str, learner: Any) -> bool:
    normalized = learner.normalizer.normalize_str(f"a{character}")
    return [piece for piece, _ in learner.pre_tokenizer.pre_tokenize_str(normalized)] == [f"a{character}"]
