# SPDX-License-Identifier: Apache-2.0
"""Gates on the units of a stock model, by hooks: 1 leaves a unit alone, 0 removes it exactly.

Shape letters: B rows (a row is one input with its own gates), T tokens, D residual channels, H heads, F FFN
units.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from edvit_hf.pruning.axes import Architecture


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Gates in [0, 1], one per row and unit, or one row for all. What is absent is not gated.

    Attributes:
        residual: (B, D).
        heads: layer -> (B, H).
        ffn: layer -> (B, F).
    """

    residual: Tensor | None = None
    heads: Mapping[int, Tensor] = field(default_factory=dict)
    ffn: Mapping[int, Tensor] = field(default_factory=dict)


@contextmanager
def gated(model: PreTrainedModel, architecture: Architecture, gates: Gates) -> Iterator[None]:
    """Run the forwards inside the block with `gates`; the model's weights and class are left as they are."""
    handles: list[RemovableHandle] = []
    try:
        if gates.residual is not None:
            for norm in architecture.norm_modules(model):
                handles.append(norm.register_forward_hook(_norm_hook(gates.residual)))
        for layer, gate in gates.heads.items():
            module = architecture.attention_output_module(model, layer)
            handles.append(module.register_forward_pre_hook(_unit_hook(gate)))
        for layer, gate in gates.ffn.items():
            module = architecture.ffn_output_module(model, layer)
            handles.append(module.register_forward_pre_hook(_unit_hook(gate)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def resumed_at(model: PreTrainedModel, architecture: Architecture, layer: int, hidden: Tensor) -> Iterator[None]:
    """Start the forwards inside the block at `layer` from `hidden` (B, T, D); earlier layers do nothing."""
    layers = architecture.layer_modules(model)

    def replace_input(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (hidden, *args[1:])

    with ExitStack() as stack:
        for module in layers[:layer]:
            stack.enter_context(_bypassed(module))
        stack.callback(layers[layer].register_forward_pre_hook(replace_input).remove)
        yield


@contextmanager
def _bypassed(module: nn.Module) -> Iterator[None]:
    """A forward on the instance hides the one of the class until it is deleted."""
    module.forward = lambda hidden_states, *_args, **_kwargs: hidden_states
    try:
        yield
    finally:
        del module.forward


def layer_input(model: PreTrainedModel, architecture: Architecture, layer: int, inputs: Tensor) -> Tensor:
    """Hidden states that enter `layer`, (B, T, D)."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])

    handle = architecture.layer_modules(model)[layer].register_forward_pre_hook(keep)
    try:
        model(inputs)
    finally:
        handle.remove()
    return seen[0]


def _norm_hook(gate: Tensor) -> Any:
    def normalise(module: nn.LayerNorm, args: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        return gated_layer_norm(args[0], gate, module)

    return normalise


def gated_layer_norm(hidden: Tensor, gate: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm whose mean and variance weigh each channel by its gate, and whose output is gated.

    With gates in {0, 1} this is the LayerNorm of the model without the channels gated 0: statistics over the
    others alone, nothing written to the removed ones. In between it is smooth, so that gates have gradients.

    Args:
        hidden: (B, T, D).
        gate: (B, D) or (1, D).
        norm: Over D channels.
    """
    weights = gate.unsqueeze(2).expand(len(hidden), -1, -1)  # (B, D, 1): sums over D as matrix products
    total = gate.sum(dim=1)[:, None, None]
    centred = hidden - torch.bmm(hidden, weights) / total
    variance = torch.bmm(centred.square(), weights) / total
    normal = centred * (variance + norm.eps).rsqrt()
    return torch.addcmul(norm.bias, normal, norm.weight) * gate.unsqueeze(1)


def _unit_hook(gate: Tensor) -> Any:
    """Multiply the input of a Linear, (B, T, units * size): each unit owns `size` neighbouring entries."""

    def multiply(_module: nn.Linear, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        units = args[0].unflatten(-1, (gate.shape[-1], -1))
        return ((units * gate[:, None, :, None]).flatten(-2), *args[1:])

    return multiply
