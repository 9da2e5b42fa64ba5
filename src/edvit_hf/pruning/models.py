# SPDX-License-Identifier: Apache-2.0
"""A live torch model beside its axis table: full coverage, the modules that masks attach to, inputs by name, modes.

The tables themselves stand in `edvit_hf.architectures.tables`, without torch, because the cost model reads them too.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from edvit_hf.architectures.axes import Architecture, Widths
from edvit_hf.architectures.tables import ARCHITECTURES as ARCHITECTURES
from edvit_hf.architectures.tables import architecture_of_config
from edvit_hf.errors import PruningError

Module = TypeVar("Module", bound=nn.Module)
# What callers may pass: arrays by name of the forward's arguments, or the main input alone. Rows are dimension 0.
AnyInputs = Tensor | np.ndarray | Mapping[str, Tensor]
Inputs = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ScoringTask:
    """What every method of scoring is given: a teacher with its table and sizes, inputs and the class group."""

    model: PreTrainedModel
    architecture: Architecture
    widths: Widths
    inputs: Inputs
    group: list[int]
    batch_size: int
    seed: int
    progress: bool


def architecture_of(model_or_config: PreTrainedModel | PreTrainedConfig) -> Architecture:
    """Find the table of a stock model (checked for full coverage) or of a stock config.

    Raises:
        PruningError: If there is no table for its `model_type`, or the model is not fully described by it.
    """
    if isinstance(model_or_config, PreTrainedConfig):
        return architecture_of_config(model_or_config)
    architecture = architecture_of_config(model_or_config.config)
    check_coverage(architecture, model_or_config)
    return architecture


def check_coverage(architecture: Architecture, model: PreTrainedModel) -> None:
    """Refuse a model that its table does not describe completely.

    Raises:
        PruningError: Naming the first parameter that is not listed, missing, or not of the size its axes promise.
    """
    state = model.state_dict()
    for name in state:
        architecture.locate(name)
    promised = architecture.shapes(model.config, architecture.widths(model.config))
    for name, tensor in state.items():
        if promised.get(name) != tuple(tensor.shape):
            raise PruningError(
                f"{name!r} has shape {tuple(tensor.shape)}, but its axes {architecture.locate(name)[0]} and the "
                f"config promise {promised.get(name, 'no such parameter')}. The model does not follow its own config; "
                f"load it again or correct the config."
            )
    missing = sorted(promised.keys() - state.keys())
    if missing:
        raise PruningError(
            f"The {architecture.model_type} table expects {missing[0]!r}, which this {type(model).__name__} does "
            f"not have ({len(missing)} missing in all). Use a stock {architecture.model_class} with a classifier."
        )


def norm_modules(architecture: Architecture, model: nn.Module) -> list[nn.LayerNorm]:
    """All LayerNorms over the residual channels."""
    layers = range(len(layer_modules(architecture, model)))
    paths = [path.format(layer=i) for path in architecture.norms for i in (layers if "{layer}" in path else (0,))]
    return [_module_at(model, path, nn.LayerNorm) for path in paths]


def layer_modules(architecture: Architecture, model: nn.Module) -> nn.ModuleList:
    """The encoder layers."""
    return _module_at(model, architecture.layers, nn.ModuleList)


def linear_at(model: nn.Module, path: str, layer: int | None = None) -> nn.Linear:
    """The Linear at a path of the table, `{layer}` filled in."""
    return _module_at(model, path if layer is None else path.format(layer=layer), nn.Linear)


def _module_at(model: nn.Module, path: str, kind: type[Module]) -> Module:
    module = model.get_submodule(path)
    if not isinstance(module, kind):
        raise PruningError(
            f"{path!r} must be a {kind.__name__}, got {type(module).__name__}. Masks attach to plain float "
            f"modules only; undo quantization or adapters first."
        )
    return module


def named_inputs(model: PreTrainedModel, architecture: Architecture, inputs: AnyInputs) -> Inputs:
    """The inputs by name, on the model's device, floats in its precision; a bare array is the main input.

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


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Eval mode inside the block, every module's own mode after it."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Weights without gradients inside the block, every weight's own choice after it."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
