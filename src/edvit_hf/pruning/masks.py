# SPDX-License-Identifier: Apache-2.0
"""Masks on the units of a stock model, by hooks: 1 leaves a unit alone, 0 removes it exactly.

`masked` multiplies units by their masks. `with_open_masks` is for gradients alone: at mask 1 the forward pass is the
stock one, and the gradient by the mask is known in closed form from what passes through. Computing that in the backward
pass costs neither a second LayerNorm nor copies of the activations.

Shape letters: B rows (a row is one input with its own masks), T tokens, D residual channels, H heads, A attention
dimensions, F FFN units, P outputs of the pooler.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from edvit_hf.architectures.axes import Architecture, Widths
from edvit_hf.pruning.models import layer_modules, linear_at, norm_modules

PerLayer = Iterable[tuple[int, Tensor]]  # layer, masks


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Masks in [0, 1], one per row and unit, or one row for all. What is absent is not masked.

    Attributes:
        residual: (B, D). A mask closes a channel in every norm: in its statistics and in its output.
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


@dataclass(frozen=True, kw_only=True)
class OpenMasks:
    """Leaves, all ones, that receive the per-row gradients by the masks."""

    residual: Tensor  # (B, D)
    query: list[Tensor]  # one (B, A) per layer, on the query's dimensions
    # One (B, A) per layer, on the output projection's input. Removing a head is closing its `output` masks; removing an
    # attention dimension closes both (`query` and `output`), so their gradients add up.
    output: list[Tensor]
    ffn: list[Tensor]  # one (B, F) per layer
    pooled: Tensor | None  # (B, P); None without a pooler

    @classmethod
    def of(cls, architecture: Architecture, widths: Widths, rows: int, like: Tensor) -> "OpenMasks":
        """Masks for so many rows, with device and precision of `like`."""

        def ones(size: int) -> Tensor:
            return torch.ones(rows, size, dtype=like.dtype, device=like.device, requires_grad=True)

        layers = range(widths.layers)
        return cls(
            residual=ones(widths.residual),
            query=[ones(widths.attention) for _ in layers],
            output=[ones(widths.attention) for _ in layers],
            ffn=[ones(widths.ffn) for _ in layers],
            pooled=ones(widths.residual) if architecture.has_pooler else None,
        )

    def gradients(self, outputs: Tensor, widths: Widths, *, keep_graph: bool) -> Tensor:
        """Gradient of each row of `outputs` (B,) by its own masks, (B, units): axes in the order of `unit_shapes`."""
        leaves = [self.residual, *self.query, *self.output, *self.ffn, *([] if self.pooled is None else [self.pooled])]
        # Rows do not mix, so the gradient of the sum holds every row's own gradient.
        found = torch.autograd.grad(outputs.sum(), leaves, retain_graph=keep_graph)
        layers, rows = widths.layers, len(outputs)
        query, output = (torch.cat(found[1 + i * layers : 1 + (i + 1) * layers], dim=1) for i in range(2))
        heads = output.view(rows, layers * widths.heads, widths.head_dim).sum(dim=-1)
        return torch.cat([found[0], heads, query + output, *found[1 + 2 * layers :]], dim=1)


@contextmanager
def masked(model: PreTrainedModel, architecture: Architecture, masks: Masks) -> Iterator[None]:
    """Run the forwards inside the block with `masks`; the model's weights and class are left as they are."""
    inputs = [
        (architecture.attention_output, masks.heads.items()),
        (architecture.attention_output, masks.attention.items()),
    ]
    inputs.append((architecture.ffn_output, masks.ffn.items()))
    with ExitStack() as stack:
        if masks.residual is not None:
            for norm in norm_modules(architecture, model):
                forward = partial(masked_layer_norm, mask=masks.residual, norm=norm)
                stack.enter_context(replaced_forward(norm, forward))
        _attach(stack, model, architecture, masks.attention.items(), inputs, masks.pooled, _multiplied)
        yield


@contextmanager
def with_open_masks(model: PreTrainedModel, architecture: Architecture, masks: OpenMasks) -> Iterator[None]:
    """Run the forwards inside the block so that gradients reach the masks. They can be taken once, not twice."""
    inputs = [(architecture.attention_output, enumerate(masks.output)), (architecture.ffn_output, enumerate(masks.ffn))]
    with ExitStack() as stack:
        for norm in norm_modules(architecture, model):
            stack.enter_context(replaced_forward(norm, partial(_open_norm, mask=masks.residual, norm=norm)))
        _attach(stack, model, architecture, enumerate(masks.query), inputs, masks.pooled, _OpenMask.apply)
        yield


def _attach(
    stack: ExitStack,
    model: PreTrainedModel,
    architecture: Architecture,
    query: PerLayer,
    inputs: Iterable[tuple[str, PerLayer]],
    pooled: Tensor | None,
    multiply: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Multiply the queries, the inputs of Linears (by their path) and the classifier's input, until `stack` closes."""

    def input_hook(mask: Tensor) -> Any:
        return lambda _module, args: (multiply(args[0], mask), *args[1:])

    def output_hook(mask: Tensor) -> Any:
        return lambda _module, _args, output: multiply(output, mask)

    for layer, mask in query:
        linear = linear_at(model, architecture.attention_query, layer)
        stack.callback(linear.register_forward_hook(output_hook(mask)).remove)
    for path, per_layer in inputs:
        for layer, mask in per_layer:
            stack.callback(linear_at(model, path, layer).register_forward_pre_hook(input_hook(mask)).remove)
    if pooled is not None:
        classifier = linear_at(model, architecture.classifier)
        stack.callback(classifier.register_forward_pre_hook(input_hook(pooled)).remove)


def masked_layer_norm(hidden: Tensor, mask: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm whose mean and variance weigh each channel by its mask, and whose output is masked.

    With masks in {0, 1} this is the LayerNorm of the model without the channels masked 0: statistics over the others
    alone, nothing written to the removed ones. In between it is smooth, so that masks have gradients.

    Args:
        hidden: (B, T, D), or (B, D) where a norm follows the pooling of tokens.
        mask: (B, D) or (1, D).
        norm: Over D channels.
    """
    if hidden.ndim == 2:
        return masked_layer_norm(hidden.unsqueeze(1), mask, norm).squeeze(1)
    weights = mask.unsqueeze(2).expand(len(hidden), -1, -1)  # (B, D, 1): sums over D as matrix products
    total = mask.sum(dim=1)[:, None, None]
    centred = hidden - torch.bmm(hidden, weights) / total
    variance = torch.bmm(centred.square(), weights) / total
    normal = centred * (variance + norm.eps).rsqrt()
    return torch.addcmul(norm.bias, normal, norm.weight) * mask.unsqueeze(1)


def _multiplied(values: Tensor, mask: Tensor) -> Tensor:
    """Multiply (B, T, units * size) or (B, units * size): each unit owns `size` neighbouring entries."""
    if mask.shape[-1] != values.shape[-1]:
        mask = mask.repeat_interleave(values.shape[-1] // mask.shape[-1], dim=-1)
    return values * (mask if values.ndim == 2 else mask.unsqueeze(1))


class _OpenMask(torch.autograd.Function):
    """values (B, ..., units) * mask (B, units) at mask = 1."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (values,) = ctx.saved_tensors
        by_mask = values * grad
        return grad, by_mask.sum(dim=1) if values.ndim == 3 else by_mask


class _OpenNormMask(torch.autograd.Function):
    """`masked_layer_norm` at mask 1 over (B, T, D)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        normal, _, scale = torch.native_layer_norm(hidden, (hidden.shape[-1],), None, None, eps)
        ctx.eps = eps
        ctx.save_for_backward(normal, scale, weight, bias)
        return torch.addcmul(bias, normal, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by hidden, as of LayerNorm, and by the mask.

        With u = grad, x = normal, w = weight, b = bias, r = scale, v = variance, per token:

        d/d mask_j = u_j (w_j x_j + b_j) - x_j / D * sum(u w) - (x_j^2 - v r^2) / 2D * sum(u w x),

        because the mean moves by (hidden_j - mean) / D and the variance by ((hidden_j - mean)^2 - v) / D.
        """
        normal, scale, weight, bias = ctx.saved_tensors
        size = normal.shape[-1]
        by_normal = grad * weight
        product = by_normal * normal
        slope = by_normal.sum(dim=-1, keepdim=True) / size  # (B, T, 1)
        stretch = product.sum(dim=-1, keepdim=True) / size
        by_mask = product.sum(dim=1) + grad.sum(dim=1) * bias
        by_mask -= torch.bmm(slope.transpose(1, 2), normal).squeeze(1)
        by_mask -= torch.bmm(stretch.transpose(1, 2), normal.square()).squeeze(1) / 2
        by_mask += (stretch * (1 - ctx.eps * scale.square())).sum(dim=1) / 2  # v r^2 = 1 - eps r^2
        by_hidden = by_normal.sub_(slope).addcmul_(normal, stretch, value=-1).mul_(scale)
        return by_hidden, by_mask, None, None, None


def _open_norm(hidden: Tensor, mask: Tensor, norm: nn.LayerNorm) -> Tensor:
    if hidden.ndim == 2:
        return _open_norm(hidden.unsqueeze(1), mask, norm).squeeze(1)
    return _OpenNormMask.apply(hidden, mask, norm.weight, norm.bias, norm.eps)


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


def _first_argument(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return hidden_states
