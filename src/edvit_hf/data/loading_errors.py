# SPDX-License-Identifier: Apache-2.0
"""What to say where a dataset cannot be loaded."""

from collections.abc import Sequence
from pathlib import Path

from edvit_hf.data.config import DatasetConfig
from edvit_hf.errors import DataError


class NoSplitError(DataError):
    """A split is not there."""


def no_split(config: DatasetConfig, name: str, found: Sequence[str], where: str) -> NoSplitError:
    """The error for a split that is not there."""
    if len(found) == 1:
        remedy = (
            f"Write `train_split: {found[0]}` and `test_split: null`, which holds out `test_fraction` of its rows; "
            "one split cannot be both."
        )
        if name == config.test_split:
            remedy += f" To measure a finished ensemble on all of them, write `test_split: {found[0]}`."
    else:
        held_out = ", or `test_split: null` to hold out training rows" if name == config.test_split else ""
        remedy = f"Set `train_split`, `test_split` and `validation_split` each to another of these{held_out}."
    return NoSplitError(
        f"Expected a split named {name!r} in {where}, got only: {', '.join(found) or 'none'}. "
        f"Training, validation and test rows must be told apart. {remedy}"
    )


def load_error(config: DatasetConfig, folder: Path | None, error: Exception) -> DataError:
    """The error for files that cannot be read, or a dataset that does not come from the Hub."""
    reason = f"{error} ({error.__cause__})" if error.__cause__ is not None else str(error)
    if "torchcodec" in reason:
        return DataError(
            f"Expected sounds that are stored as encoded files in parquet, got another layout in {config.path!r}, for "
            "which `datasets` needs the package torchcodec. Name the parquet copy that the Hub keeps (`revision: "
            "refs/convert/parquet`), or download the sound files and give their folder as `data_dir`."
        )
    if folder is not None:
        return DataError(
            f"Expected a readable dataset in {folder}, got: {reason}. Every file of the folder must be "
            "whole. Fetch the damaged file again or remove it."
        )
    local_name = config.local_name or "<local_name>"
    return DataError(
        f"Expected the dataset {config.path!r} from the Hub, got: {reason}. If this machine is offline, put the "
        f"parquet files into a folder and either set `data_dir` to it or call it {local_name} (`local_name`) and set "
        "the environment variable EDVIT_DATA_DIR to its parent. If not, check the id, `name` and `revision`, and "
        "whether the dataset asks for a login or runs a loading script (no longer supported)."
    )
