# SPDX-License-Identifier: Apache-2.0
"""How sounds become spectrograms and texts become tokens: the `audio` and `text` parts of a dataset."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edvit_hf.errors import DataError
from edvit_hf.strict import number, whole_number
from edvit_hf.tasks import Task


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """Log-mel spectrograms as the stock `ASTFeatureExtractor` makes them: frames of 25 ms, every 10 ms.

    Attributes:
        sampling_rate: In Hz; sounds at another rate are resampled.
        num_mel_bins: Mel bins F of a frame.
        max_length: Frames T of an input: longer sounds are cut at the end, shorter ones padded. 100 are one second.
        mean: Subtracted from the log-mel values; measure it on the training split.
        std: They are divided by twice this.
    """

    sampling_rate: int = 16_000
    num_mel_bins: int = 128
    max_length: int = 1024
    mean: float = -4.2677393
    std: float = 4.5689974

    def __post_init__(self) -> None:
        for name, least in (("sampling_rate", 1000), ("num_mel_bins", 4), ("max_length", 2)):
            whole_number(f"audio.{name}", getattr(self, name), least, "with less a sound has no features", DataError)
        number("audio.mean", self.mean, "(-inf, inf)", "it is subtracted from spectrograms", DataError)
        number("audio.std", self.std, "(0, inf)", "spectrograms are divided by it", DataError)

    def preprocessor(self) -> dict[str, Any]:
        """Return the content of `preprocessor_config.json`, as a stock `ASTFeatureExtractor` saves it."""
        return {
            "do_normalize": True,
            "feature_extractor_type": "ASTFeatureExtractor",
            "feature_size": 1,
            "max_length": self.max_length,
            "mean": self.mean,
            "num_mel_bins": self.num_mel_bins,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
            "sampling_rate": self.sampling_rate,
            "std": self.std,
        }


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Tokens of a text.

    Attributes:
        max_length: Most tokens of an input, [CLS] and [SEP] among them; what follows is cut off.
        vocab_size: Most entries of a tokenizer trained here; not read where a teacher brings its own.
        lowercase: Whether a tokenizer trained here lowers the case and strips accents.
    """

    max_length: int = 128
    vocab_size: int = 8000
    lowercase: bool = True

    def __post_init__(self) -> None:
        for name, least in (("max_length", 3), ("vocab_size", 64)):
            whole_number(f"text.{name}", getattr(self, name), least, "with less a text has no tokens", DataError)


def input_sizes(task: Task, dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a stock config that follow from the `dataset` section of a recipe, as plain data.

    Images have three channels whatever the files hold. A text model has a row for every token that the tokenizer may
    have, used or not, so that sizes are known before a tokenizer is trained.
    """
    if task == "image-classification":
        return {"image_size": dataset["image_size"], "num_channels": 3}
    if task == "audio-classification":
        audio = dataset.get("audio") or dataclasses.asdict(AudioConfig())
        return {"num_mel_bins": audio["num_mel_bins"], "max_length": audio["max_length"]}
    text = dataset.get("text") or dataclasses.asdict(TextConfig())
    return {"vocab_size": text["vocab_size"], "max_position_embeddings": text["max_length"]}
