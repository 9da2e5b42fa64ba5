# SPDX-License-Identifier: Apache-2.0
"""Take the first rows of a streamed dataset."""

from pathlib import Path
from typing import Any

from edvit_hf.data.columns import input_column
from edvit_hf.data.config import DatasetConfig
from edvit_hf.data.loading_errors import load_error
from edvit_hf.errors import DataError
from edvit_hf.tasks import Task

SHUFFLE_BUFFER = 10_000
"""Encoded rows from which a streamed dataset is drawn."""


def first_rows(rows: Any, name: str, config: DatasetConfig, task: Task, folder: Path | None = None) -> Any:
    """Take the first rows of a shuffled stream into RAM, undecoded; what is no stream stays as it is."""
    import datasets

    if not isinstance(rows, datasets.IterableDataset):
        return rows
    try:
        features = rows.features or datasets.Dataset.from_list(list(rows.take(100))).features  # csv: known when read
        column = config.input_column or input_column(features, config.label_column, task)
        # Audio as plain bytes: the feature would ask for the package that decodes it even where it does not decode.
        struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        for kind, plain in ((datasets.Image, datasets.Image(decode=False)), (datasets.Audio, struct)):
            if isinstance(features.get(column), kind):
                rows = rows.cast_column(column, plain)
                features = datasets.Features({**features, column: plain})
        limit = config.max_train_samples if name == config.train_split else config.max_test_samples
        taken = list(rows.shuffle(seed=config.seed, buffer_size=SHUFFLE_BUFFER).take(limit))
        return datasets.Dataset.from_list(taken, features=features)
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        raise load_error(config, folder, error) from error
