# SPDX-License-Identifier: Apache-2.0
"""What a dataset's preprocessing fixes in the config of every model that reads it. Light: no torch."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from edvit_hf.data.modalities import AudioConfig, TextConfig
from edvit_hf.tasks import Task


def input_sizes(task: Task, dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a stock config that follow from the `dataset` section of a recipe.

    Images have three channels whatever the files hold. A text model has a row for every token that the tokenizer may
    have, used or not, so that sizes are known before a tokenizer is trained.

    Args:
        task: Of the recipe.
        dataset: The section as plain data; a missing `audio` or `text` part takes the defaults.
    """
    if task == "image-classification":
        return {"image_size": dataset["image_size"], "num_channels": 3}
    if task == "audio-classification":
        audio = dataset.get("audio") or dataclasses.asdict(AudioConfig())
        return {"num_mel_bins": audio["num_mel_bins"], "max_length": audio["max_length"]}
    text = dataset.get("text") or dataclasses.asdict(TextConfig())
    return {"vocab_size": text["vocab_size"], "max_position_embeddings": text["max_length"]}
