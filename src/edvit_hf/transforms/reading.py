# SPDX-License-Identifier: Apache-2.0
"""What reading images, sounds and texts has in common: processor files, paths of inputs, values that are not finite."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edvit_hf.errors import DataError


def read_json_object(path: Path, what: str, why: str) -> dict[str, Any]:
    """Return the object that a JSON file of a model's folder holds.

    Args:
        path: The file.
        what: What it should hold, for the message, for example "an image preprocessor".
        why: A sentence saying what cannot be known without it.

    Raises:
        DataError: The file is missing, cannot be read, or does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"Expected the JSON of {what} in {path}, got: {error}. {why} Export or download the folder again."
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"Expected a JSON object ({what}) in {path}, got {type(content).__name__}. {why} Export the folder again."
        )
    return content


def read_preprocessor(path: str | Path, what: str, why: str) -> dict[str, Any]:
    """Return the content of a `preprocessor_config.json`, given the file or the folder that holds it."""
    path = Path(path)
    return read_json_object(path / "preprocessor_config.json" if path.is_dir() else path, what, why)


@contextmanager
def open_input(path: str | Path, kind: str, what_to_do: str) -> Iterator[BinaryIO]:
    """Open the file of a raw input; errors name the kind, "image" or "audio". Raises DataError."""
    try:
        with Path(path).open("rb") as file:
            yield file
    except (OSError, ValueError) as error:  # a name that no file can have is a ValueError
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"Expected the path of a readable {kind} file, got {str(path)[:200]!r} "
            f"({getattr(error, 'strerror', None) or error}). Check the path; download a URL first. {what_to_do}"
        ) from error


def not_finite(values: np.ndarray, what: str, where: str, item: str) -> DataError:
    """The error for values that are NaN or infinite."""
    return DataError(
        f"Expected finite {what}, got {int((~np.isfinite(values)).sum())} NaN or infinite ones{where}. "
        f"They would make every answer NaN. Repair or drop the {item}."
    )
