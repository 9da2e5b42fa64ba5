# SPDX-License-Identifier: Apache-2.0
"""The axis tables, held against live torch models: full coverage, and the modules that gates attach to.

The tables themselves stand in `edvit_hf.architectures.tables`, without torch, because the cost model reads them too.
"""

from typing import TypeVar

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from edvit_hf.architectures.axes import Architecture, Widths, resized
from edvit_hf.architectures.tables import ARCHITECTURES, architecture_of_config, register_architecture
from edvit_hf.errors import PruningError

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Widths",
    "architecture_of",
    "check_coverage",
    "layer_modules",
    "linear_at",
    "norm_modules",
    "register_architecture",
    "resized",
]

Module = TypeVar("Module", bound=nn.Module)


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
            f"{path!r} must be a {kind.__name__}, got {type(module).__name__}. Gates attach to plain float "
            f"modules only; undo quantization or adapters first."
        )
    return module
