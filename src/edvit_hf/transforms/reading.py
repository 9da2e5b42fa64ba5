# SPDX-License-Identifier: Apache-2.0
"""What reading images, sounds and texts has in common: processor files, paths of inputs, values that are not finite."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edvit_hf.errors import DataError
from edvit_hf.storage import read_json_object


def read_preprocessor(path: str | Path, what: str, why: str) -> dict[str, Any]:
    """Return the content of a `preprocessor_config.json`, given the file or the folder that holds it."""
    path = Path(path)
    path = path / "preprocessor_config.json" if path.is_dir() else path
    return read_json_object(path, what, f"{why} Export or download the folder again.", error=DataError)


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
