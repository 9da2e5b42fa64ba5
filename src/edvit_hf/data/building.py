"""Turn the chosen rows into splits: pixels, spectrograms or tokens, and the processor that makes them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edvit_hf.data.audio_split import AudioSplit
from edvit_hf.data.augmentation import Augmentation
from edvit_hf.data.columns import KINDS
from edvit_hf.data.config import DatasetConfig, as_json
from edvit_hf.data.decoding import DecodedOnAccess, RowsToDecode
from edvit_hf.data.image_split import ImageSplit
from edvit_hf.data.modalities import AudioConfig, TextConfig
from edvit_hf.data.roles import Role
from edvit_hf.data.split import ArrayStore, Split, Store
from edvit_hf.data.text_split import TextSplit, TokenStore
from edvit_hf.errors import DataError
from edvit_hf.tasks import Task
from edvit_hf.transforms import AudioTransform, ImageTransform

_TOGETHER = 256  # rows looked at together


@dataclass(frozen=True)
class PreparedSplits:
    """What a kind of input gives.

    Attributes:
        splits: By role.
        processor: Files of the stock processor: name -> text.
        vocab_size: Entries of the tokenizer; None without one.
        pad_token_id: Id of its padding; None without one.
    """

    splits: dict[str, Split]
    processor: dict[str, str]
    vocab_size: int | None = None
    pad_token_id: int | None = None


@dataclass(frozen=True)
class SplitRequest:
    """What is to be built.

    Attributes:
        config: The dataset.
        task: What the inputs are.
        roles: Rows by role.
        augmentation: Of the training rows; the others have none.
        processor_dir: Folder of a tokenizer to use; None trains one.
    """

    config: DatasetConfig
    task: Task
    roles: dict[str, Role]
    augmentation: Augmentation
    processor_dir: Path | None = None

    def wanted(self) -> Iterator[tuple[str, RowsToDecode]]:
        """Each role with the rows that it wants decoded."""
        for name, role in self.roles.items():
            yield name, RowsToDecode(name, role.split, role.rows, KINDS[self.task], self.config.on_error)

    def options(self, name: str, kept: np.ndarray) -> dict[str, Any]:
        """Arguments that all splits take, for the rows of a role that are whole."""
        role = self.roles[name]
        return {
            "labels": role.labels[np.isin(role.rows, kept, assume_unique=True)],
            "augmentation": self.augmentation if name == "train" else Augmentation(),
            "seed": self.config.seed,
        }


def build_images(request: SplitRequest) -> PreparedSplits:
    """Images: resized RGB bytes, normalised when they are read.

    Raises:
        DataError: An image that cannot be decoded with `on_error` "raise", or none that can.
    """
    config = request.config
    shape = (3, config.image_size, config.image_size)
    transform = ImageTransform(size=shape[1:], mean=config.mean, std=config.std)

    def decode(source: Any) -> np.ndarray:
        return transform.pixels(source).transpose(2, 0, 1)

    splits: dict[str, Split] = {}
    for name, want in request.wanted():
        cache, kept = want.cache(shape, np.uint8, decode)
        store: Store
        store = DecodedOnAccess(want, kept, shape, np.uint8, decode) if cache is None else ArrayStore(_grey(cache))
        splits[name] = ImageSplit(store, mean=config.mean, std=config.std, **request.options(name, kept))
    return PreparedSplits(splits, {"preprocessor_config.json": as_json(config.preprocessor())})


def _grey(pixels: np.ndarray) -> np.ndarray:
    """One channel where all images are grey: a third of the memory and of the augmentation's time."""
    for start in range(0, len(pixels), _TOGETHER):
        part = pixels[start : start + _TOGETHER]
        if (part[:, 0] != part[:, 1]).any() or (part[:, 0] != part[:, 2]).any():
            return pixels
    return np.ascontiguousarray(pixels[:, :1])


def build_sounds(request: SplitRequest) -> PreparedSplits:
    """Sounds: normalised log-mel features.

    Raises:
        DataError: A sound that cannot be decoded with `on_error` "raise", or none that can.
    """
    audio = request.config.audio or AudioConfig()
    transform = AudioTransform.from_preprocessor(audio.preprocessor())
    shape = (audio.max_length, audio.num_mel_bins)

    def decode(source: Any) -> np.ndarray:
        return transform.features(transform.waveform(source))

    splits: dict[str, Split] = {}
    for name, want in request.wanted():
        cache, kept = want.cache(shape, np.float32, decode)
        store: Store
        store = DecodedOnAccess(want, kept, shape, np.float32, decode) if cache is None else ArrayStore(cache)
        splits[name] = AudioSplit(store, mean=audio.mean, std=audio.std, **request.options(name, kept))
    return PreparedSplits(splits, {"preprocessor_config.json": as_json(audio.preprocessor())})


def build_texts(request: SplitRequest) -> PreparedSplits:
    """Texts: token ids. The tokenizer is the one in `processor_dir`, or learnt from the training rows alone.

    Raises:
        DataError: An empty cell with `on_error` "raise", no text at all, or a damaged tokenizer.
    """
    from edvit_hf.data.tokenizer import read_tokenizer, special_tokens_of, train_tokenizer, transform_of

    config = request.config
    texts = {name: dict(want.decoded(_text)) for name, want in request.wanted()}
    if request.processor_dir is not None:
        transform, files = read_tokenizer(request.processor_dir, config.text)
    else:
        files = train_tokenizer(list(texts["train"].values()), config.text or TextConfig())
        transform = transform_of(files)
    special = special_tokens_of(files, transform)
    splits: dict[str, Split] = {}
    for name, by_row in texts.items():
        values, kept = list(by_row.values()), np.fromiter(by_row, np.int64, len(by_row))
        parts = (transform.encode(values[start : start + _TOGETHER]) for start in range(0, len(values), _TOGETHER))
        store = TokenStore(row for part in parts for row in part)
        splits[name] = TextSplit(store, special=special, raw=values, **request.options(name, kept))
    return PreparedSplits(splits, files, transform.vocab_size, transform.pad_id)


def _text(source: Any) -> str:
    if not isinstance(source, str):
        raise DataError(f"Expected a text, got {type(source).__name__}. A tokenizer reads strings only. Decode it.")
    return source


BUILDERS: dict[Task, Callable[[SplitRequest], PreparedSplits]] = {
    "image-classification": build_images,
    "audio-classification": build_sounds,
    "text-classification": build_texts,
}
"""What builds the splits of each task."""
