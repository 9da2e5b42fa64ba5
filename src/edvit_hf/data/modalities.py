# SPDX-License-Identifier: Apache-2.0
"""How sounds become spectrograms and texts become tokens: the `audio` and `text` parts of a dataset."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edvit_hf.errors import DataError
from edvit_hf.strict import number, whole_number
from edvit_hf.tasks import Task

# What holds where neither a recipe nor a checkpoint says another value.
IMAGES: dict[str, Any] = {"image_size": 224, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
AUDIO: dict[str, Any] = {
    "sampling_rate": 16_000,
    "num_mel_bins": 128,
    "max_length": 1024,
    "mean": -4.2677393,
    "std": 4.5689974,
}
TEXT: dict[str, Any] = {"max_length": 128, "vocab_size": 8000, "lowercase": True}


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """Log-mel spectrograms as the stock `ASTFeatureExtractor` makes them: frames of 25 ms, every 10 ms.

    A value that is None is what the processor of a checkpoint says; without one it is the number given here. A value
    that says otherwise than that processor is refused.

    Attributes:
        sampling_rate: In Hz; sounds at another rate are resampled. 16,000.
        num_mel_bins: Mel bins F of a frame. 128.
        max_length: Frames T of an input: longer sounds are cut at the end, shorter ones padded. 100 are one second.
            1,024.
        mean: Subtracted from the log-mel values; measure it on the training split. -4.2677393.
        std: They are divided by twice this. 4.5689974.
    """

    sampling_rate: int | None = None
    num_mel_bins: int | None = None
    max_length: int | None = None
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("sampling_rate", 1000), ("num_mel_bins", 4), ("max_length", 2)):
            if getattr(self, name) is not None:
                whole_number(
                    f"audio.{name}", getattr(self, name), least, "with less a sound has no features", DataError
                )
        if self.mean is not None:
            number("audio.mean", self.mean, "(-inf, inf)", "it is subtracted from spectrograms", DataError)
        if self.std is not None:
            number("audio.std", self.std, "(0, inf)", "spectrograms are divided by it", DataError)

    def filled(self) -> "AudioConfig":
        """The same with the defaults in place of None."""
        return AudioConfig(**_filled(self, AUDIO))

    def preprocessor(self) -> dict[str, Any]:
        """Return the content of `preprocessor_config.json`, as a stock `ASTFeatureExtractor` saves it."""
        return {
            "do_normalize": True,
            "feature_extractor_type": "ASTFeatureExtractor",
            "feature_size": 1,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
            **_filled(self, AUDIO),
        }


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Tokens of a text.

    A value that is None is what the tokenizer of a checkpoint says; of one that is trained here it is the one given
    here.

    Attributes:
        max_length: Most tokens of an input, [CLS] and [SEP] among them; what follows is cut off. 128. At most what a
            checkpoint's tokenizer says.
        vocab_size: Most entries of a tokenizer trained here, 8,000; of a checkpoint its own number.
        lowercase: Whether a tokenizer trained here lowers the case and strips accents, which is so; of a checkpoint
            what its tokenizer does.
    """

    max_length: int | None = None
    vocab_size: int | None = None
    lowercase: bool | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_length", 3), ("vocab_size", 64)):
            if getattr(self, name) is not None:
                whole_number(f"text.{name}", getattr(self, name), least, "with less a text has no tokens", DataError)

    def filled(self) -> "TextConfig":
        """The same with the defaults in place of None."""
        return TextConfig(**_filled(self, TEXT))


def _filled(config: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {n: default if getattr(config, n) is None else getattr(config, n) for n, default in defaults.items()}


def input_sizes(task: Task, dataset: Mapping[str, Any], *, complete: bool = True) -> dict[str, Any]:
    """Values of a stock config that follow from the `dataset` section of a recipe, as plain data.

    Images have three channels whatever the files hold. A text model has a row for every token that the tokenizer may
    have, used or not, so that sizes are known before a tokenizer is trained.

    Args:
        task: What the inputs are.
        dataset: The section; what it leaves open is None or absent.
        complete: Whether what it leaves open has its default; else it is left out, because a checkpoint says it.
    """
    if task == "image-classification":
        sizes = {"image_size": dataset.get("image_size"), "num_channels": 3}
        defaults = {"image_size": IMAGES["image_size"]}
    elif task == "audio-classification":
        audio = dataset.get("audio") or {}
        defaults = {name: AUDIO[name] for name in ("num_mel_bins", "max_length")}
        sizes = {name: audio.get(name) for name in defaults}
    else:
        text = dataset.get("text") or {}
        defaults = {"vocab_size": TEXT["vocab_size"], "max_position_embeddings": TEXT["max_length"]}
        sizes = {"vocab_size": text.get("vocab_size"), "max_position_embeddings": text.get("max_length")}
    if not complete:
        return {name: value for name, value in sizes.items() if value is not None}
    return {name: defaults[name] if value is None else value for name, value in sizes.items()}
