# SPDX-License-Identifier: Apache-2.0
"""Tiny sounds and texts whose classes can be told apart, on disk, and the smallest recipes that read them."""

import copy
import csv
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from edvit_hf.recipe import Recipe, load_recipe
from support.tiny_recipe import FLEET, VALUES

SAMPLING_RATE = 2000
WORDS = {
    "animals": ["cat", "dog", "cow", "owl"],
    "colours": ["red", "blue", "green", "pink"],
    "numbers": ["one", "two", "six", "nine"],
    "weather": ["rain", "snow", "wind", "storm"],
}


def write_sounds(folder: Path, *, per_class: int = 24, classes: int = 4, seed: int = 0) -> Path:
    """Class folders of WAV files below train/ and test/: tones of another pitch for every class, in noise."""
    generator = np.random.default_rng(seed)
    for label in range(classes):
        for item in range(per_class):
            split = "test" if item % 4 == 0 else "train"
            samples = 700 + int(generator.integers(0, 300))
            time = np.arange(samples) / SAMPLING_RATE
            sound = np.sin(2 * np.pi * (150 + 180 * label) * time + generator.uniform(0, 6))
            sound = 0.4 * sound + 0.02 * generator.standard_normal(samples)
            target = folder / split / f"tone_{label}" / f"{item:03d}.wav"
            target.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(target, sound, SAMPLING_RATE, subtype="PCM_16")
    return folder


def write_texts(folder: Path, *, per_class: int = 40, seed: int = 0) -> Path:
    """train.csv and test.csv with the columns text and label: words of the class among words of none."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for item in range(per_class):
        for label, words in WORDS.items():
            said = [*generator.choice(words, 2), *generator.choice(["the", "a", "is", "and", "what"], 1 + item % 4)]
            generator.shuffle(said)
            rows["test" if item % 4 == 0 else "train"].append((" ".join(said), label))
    for split, content in rows.items():
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(content)
    return folder


_SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 64}
AUDIO: dict[str, Any] = {
    "task": "audio-classification",
    "dataset": {
        "path": "audiofolder",
        "num_labels": 4,
        "audio": {"sampling_rate": SAMPLING_RATE, "num_mel_bins": 16, "max_length": 8, "mean": -4.0, "std": 3.0},
    },
    "augmentation": {"time_shift": 0.1, "frequency_masks": 1, "frequency_mask_bins": 2},
    "teacher": {
        "from_scratch": {
            "model_type": "audio-spectrogram-transformer",
            **_SIZES,
            "patch_size": 4,
            "frequency_stride": 4,
            "time_stride": 4,
            "initializer_range": 0.1,
        },
        "epochs": 12,
        "batch_size": 16,
        "learning_rate": 0.003,
    },
}
TEXT: dict[str, Any] = {
    "task": "text-classification",
    "dataset": {
        **{"path": "csv", "num_labels": 4, "text": {"max_length": 16, "vocab_size": 128}},
        "on_overlap": "keep",  # so few words make some texts twice
    },
    "augmentation": {"token_dropout": 0.1},
    "teacher": {
        "from_scratch": {
            "model_type": "distilbert",
            "dim": 32,
            "n_heads": 4,
            "n_layers": 2,
            "hidden_dim": 64,
            "initializer_range": 0.1,
        },
        "epochs": 12,
        "batch_size": 16,
        "learning_rate": 0.003,
    },
}


def task_recipe(folder: Path, task: dict[str, Any], **changes: dict[str, Any]) -> Recipe:
    """Write the data and a recipe for `AUDIO` or `TEXT`; `changes` update sections as in `tiny_recipe`."""
    write = write_sounds if task is AUDIO else write_texts
    if not (folder / "data").is_dir():
        write(folder / "data")
    values = copy.deepcopy(VALUES) | copy.deepcopy(task)
    values["dataset"]["data_dir"] = str(folder / "data")
    for section, update in changes.items():
        values.setdefault(section, {}).update(update)
    (folder / "fleet.yaml").write_text(yaml.safe_dump(FLEET))
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_recipe(path)
