"""Read the JSON file that says how a raw input becomes a model's input."""

import json
from pathlib import Path
from typing import Any

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
