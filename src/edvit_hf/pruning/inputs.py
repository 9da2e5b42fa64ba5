# SPDX-License-Identifier: Apache-2.0
"""Model inputs by name: rows, batches, and the refusal of none."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from edvit_hf.errors import PruningError
from edvit_hf.pruning.axes import Architecture

# What callers may pass: arrays by name of the forward's arguments, or the main input alone. Rows are dimension 0.
AnyInputs = Tensor | np.ndarray | Mapping[str, Tensor]
Inputs = dict[str, Tensor]


def named_inputs(model: PreTrainedModel, architecture: Architecture, inputs: AnyInputs) -> Inputs:
    """The inputs by name, on the model's device, floats in its precision.

    Args:
        model: Who is going to read them.
        architecture: Its axis table; names the main input.
        inputs: n rows, e.g. (n, 3, H, W) pixel values, or {"input_ids": (n, T), "attention_mask": (n, T)}.

    Raises:
        PruningError: There are no rows, the main input is missing, or entries have different numbers of rows.
    """
    named = inputs if isinstance(inputs, Mapping) else {architecture.main_input: inputs}
    main = architecture.main_input
    if main not in named:
        raise PruningError(
            f"Inputs of a {architecture.model_type} need the entry {main!r}, got {sorted(named)}. Without it the model "
            f"has nothing to read. Pass a dict with {main!r} (text: with its attention mask)."
        )
    tensors = {name: torch.as_tensor(value) for name, value in named.items()}
    sizes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if tensors[main].ndim < 2 or len(tensors[main]) == 0:
        raise PruningError(
            f"Scoring needs inputs of n rows with n of at least 1, got {main!r} of shape {sizes[main]}. Without "
            "samples every score would be zero and the cut arbitrary. Pass training samples of the group's classes."
        )
    if len({len(tensor) for tensor in tensors.values()}) > 1:
        raise PruningError(
            f"All inputs must have the same number of rows, got {sizes}. Rows would be paired wrongly. "
            "Pass the entries of the same samples."
        )
    return {
        name: tensor.to(device=model.device, dtype=model.dtype if tensor.is_floating_point() else None)
        for name, tensor in tensors.items()
    }


def check_readable(model: PreTrainedModel, architecture: Architecture, inputs: Mapping[str, Tensor]) -> None:
    """Run the first row alone, so that inputs of a wrong shape are refused before any work.

    Raises:
        PruningError: The model cannot read them.
    """
    try:
        with torch.no_grad():
            model(**take(inputs, slice(0, 1)))
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        raise PruningError(
            f"This {architecture.model_type} cannot read inputs of the shapes {shapes}: {error} Nothing was scored or "
            f"fitted. Pass {architecture.main_input!r} as the model's own preprocessor makes it, rows first."
        ) from error


def num_rows(inputs: Mapping[str, Tensor]) -> int:
    """Rows of named inputs."""
    return len(next(iter(inputs.values())))


def take(inputs: Mapping[str, Tensor], rows: Tensor | slice) -> Inputs:
    """Some rows of every entry."""
    return {name: tensor[rows] for name, tensor in inputs.items()}


def in_batches(inputs: Mapping[str, Tensor], batch_size: int) -> Iterator[Inputs]:
    """Consecutive rows, `batch_size` at a time."""
    for start in range(0, num_rows(inputs), batch_size):
        yield take(inputs, slice(start, start + batch_size))
