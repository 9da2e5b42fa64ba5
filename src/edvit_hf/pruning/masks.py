# SPDX-License-Identifier: Apache-2.0
"""Gates on the units of a stock model, by hooks: 1 leaves a unit alone, 0 removes it exactly.

Shape letters: B rows (a row is one input with its own gates), T tokens, D residual channels, H heads, A attention
dimensions, F FFN units, P outputs of the pooler.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edvit_hf.pruning.axes import Architecture, layer_modules, linear_at, norm_modules


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Gates in [0, 1], one per row and unit, or one row for all. What is absent is not gated.

    Attributes:
        residual: (B, D). A gate closes a channel in every norm: in its statistics and in its output.
        heads: layer -> (B, H), on what the heads hand to the output projection.
        attention: layer -> (B, A), on the query's dimension and on the output projection's input: what removing the
            dimension from q, k and v does (UP-ViTs). The stock scale `head_dim^-0.5` of the full head stays.
        ffn: layer -> (B, F).
        pooled: (B, P), on the classifier's input; only where a pooler stands before it.
    """

    residual: Tensor | None = None
    heads: Mapping[int, Tensor] = field(default_factory=dict)
    attention: Mapping[int, Tensor] = field(default_factory=dict)
    ffn: Mapping[int, Tensor] = field(default_factory=dict)
    pooled: Tensor | None = None


@contextmanager
def gated(model: PreTrainedModel, architecture: Architecture, gates: Gates) -> Iterator[None]:
    """Run the forwards inside the block with `gates`; the model's weights and class are left as they are."""
    with ExitStack() as stack:
        if gates.residual is not None:
            for norm in norm_modules(architecture, model):
                stack.enter_context(replaced_forward(norm, partial(gated_layer_norm, gate=gates.residual, norm=norm)))
        for layer, gate in gates.attention.items():
            query = linear_at(model, architecture.attention_query, layer)
            stack.callback(query.register_forward_hook(_output_hook(gate)).remove)
        for path, per_layer in (
            (architecture.attention_output, gates.heads),
            (architecture.attention_output, gates.attention),
            (architecture.ffn_output, gates.ffn),
        ):
            for layer, gate in per_layer.items():
                stack.callback(linear_at(model, path, layer).register_forward_pre_hook(_input_hook(gate)).remove)
        if gates.pooled is not None:
            classifier = linear_at(model, architecture.classifier)
            stack.callback(classifier.register_forward_pre_hook(_input_hook(gates.pooled)).remove)
        yield


@contextmanager
def resumed_at(model: PreTrainedModel, architecture: Architecture, layer: int, hidden: Tensor) -> Iterator[None]:
    """Start the forwards inside the block at `layer` from `hidden` (B, T, D); earlier layers do nothing.

    The model is still called with inputs of the same rows: it makes its attention mask from them.
    """
    layers = layer_modules(architecture, model)

    def replace_input(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (hidden, *args[1:])

    with ExitStack() as stack:
        for module in layers[:layer]:
            stack.enter_context(replaced_forward(module, _first_argument))
        stack.callback(layers[layer].register_forward_pre_hook(replace_input).remove)
        yield


def layer_input(model: PreTrainedModel, architecture: Architecture, layer: int, inputs: Mapping[str, Tensor]) -> Tensor:
    """Hidden states that enter `layer`, (B, T, D)."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])

    handle = layer_modules(architecture, model)[layer].register_forward_pre_hook(keep)
    try:
        model(**inputs)
    finally:
        handle.remove()
    return seen[0]


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Let `module` compute something else inside the block; hooks on it still run."""
    before = vars(module).get("forward")  # a forward on the instance hides the one of the class
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def gated_layer_norm(hidden: Tensor, gate: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm whose mean and variance weigh each channel by its gate, and whose output is gated.

    With gates in {0, 1} this is the LayerNorm of the model without the channels gated 0: statistics over the
    others alone, nothing written to the removed ones. In between it is smooth, so that gates have gradients.

    Args:
        hidden: (B, T, D), or (B, D) where a norm follows the pooling of tokens.
        gate: (B, D) or (1, D).
        norm: Over D channels.
    """
    if hidden.ndim == 2:
        return gated_layer_norm(hidden.unsqueeze(1), gate, norm).squeeze(1)
    weights = gate.unsqueeze(2).expand(len(hidden), -1, -1)  # (B, D, 1): sums over D as matrix products
    total = gate.sum(dim=1)[:, None, None]
    centred = hidden - torch.bmm(hidden, weights) / total
    variance = torch.bmm(centred.square(), weights) / total
    normal = centred * (variance + norm.eps).rsqrt()
    return torch.addcmul(norm.bias, normal, norm.weight) * gate.unsqueeze(1)


def _first_argument(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return hidden_states


def _multiplied(values: Tensor, gate: Tensor) -> Tensor:
    """Multiply (B, T, units * size) or (B, units * size): each unit owns `size` neighbouring entries."""
    if gate.shape[-1] != values.shape[-1]:
        gate = gate.repeat_interleave(values.shape[-1] // gate.shape[-1], dim=-1)
    return values * (gate if values.ndim == 2 else gate.unsqueeze(1))


def _input_hook(gate: Tensor) -> Any:
    def multiply(_module: nn.Linear, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_multiplied(args[0], gate), *args[1:])

    return multiply


def _output_hook(gate: Tensor) -> Any:
    def multiply(_module: nn.Linear, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return _multiplied(output, gate)

    return multiply
