# SPDX-License-Identifier: Apache-2.0
"""Gates that stand open, for gradients alone: what `gates` computes at 1, without its multiplications.

At gate 1 a gate changes nothing, so the forward pass is the stock one. Its gradient is known in closed form from what
passes through; computing that in the backward pass costs neither a second LayerNorm nor copies of the activations.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from edvit_hf.pruning.axes import Architecture, Widths, linear_at, norm_modules
from edvit_hf.pruning.masks import replaced_forward


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Leaves, all ones, that receive the per-row gradients by the gates. Shape letters as in `gates`.

    Attributes:
        residual: (B, D).
        query: One (B, A) per layer, on the query's dimensions.
        output: One (B, A) per layer, on the output projection's input. Removing a head is closing its `output` gates;
            removing an attention dimension closes both (`query` and `output`), so their gradients add up.
        ffn: One (B, F) per layer.
        pooled: (B, P); None without a pooler.
    """

    residual: Tensor
    query: list[Tensor]
    output: list[Tensor]
    ffn: list[Tensor]
    pooled: Tensor | None

    @classmethod
    def open(cls, architecture: Architecture, widths: Widths, rows: int, like: Tensor) -> "Probes":
        """Probes for so many rows, with device and precision of `like`."""

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
        """Gradient of each row of `outputs` (B,) by its own gates, (B, units): axes in the order of `score_shapes`."""
        leaves = [self.residual, *self.query, *self.output, *self.ffn, *([] if self.pooled is None else [self.pooled])]
        # Rows do not mix, so the gradient of the sum holds every row's own gradient.
        found = torch.autograd.grad(outputs.sum(), leaves, retain_graph=keep_graph)
        layers, rows = widths.layers, len(outputs)
        query, output = (torch.cat(found[1 + i * layers : 1 + (i + 1) * layers], dim=1) for i in range(2))
        heads = output.view(rows, layers * widths.heads, widths.head_dim).sum(dim=-1)
        return torch.cat([found[0], heads, query + output, *found[1 + 2 * layers :]], dim=1)


@contextmanager
def probed(model: PreTrainedModel, architecture: Architecture, probes: Probes) -> Iterator[None]:
    """Run the forwards inside the block so that gradients reach the probes. They can be taken once, not twice."""
    with ExitStack() as stack:
        for norm in norm_modules(architecture, model):
            stack.enter_context(replaced_forward(norm, partial(_probed_norm, probe=probes.residual, norm=norm)))
        for layer, probe in enumerate(probes.query):
            query = linear_at(model, architecture.attention_query, layer)
            stack.callback(query.register_forward_hook(_output_hook(probe)).remove)
        for path, per_layer in ((architecture.attention_output, probes.output), (architecture.ffn_output, probes.ffn)):
            for layer, probe in enumerate(per_layer):
                stack.callback(linear_at(model, path, layer).register_forward_pre_hook(_input_hook(probe)).remove)
        if probes.pooled is not None:
            classifier = linear_at(model, architecture.classifier)
            stack.callback(classifier.register_forward_pre_hook(_input_hook(probes.pooled)).remove)
        yield


class _Probe(torch.autograd.Function):
    """values (B, ..., units) * probe (B, units) at probe = 1."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, probe: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (values,) = ctx.saved_tensors
        by_probe = values * grad
        return grad, by_probe.sum(dim=1) if values.ndim == 3 else by_probe


class _NormProbe(torch.autograd.Function):
    """`gates.gated_layer_norm` at gate 1 over (B, T, D)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, probe: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        normal, _, scale = torch.native_layer_norm(hidden, (hidden.shape[-1],), None, None, eps)
        ctx.eps = eps
        ctx.save_for_backward(normal, scale, weight, bias)
        return torch.addcmul(bias, normal, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by hidden, as of LayerNorm, and by the probe.

        With u = grad, x = normal, w = weight, b = bias, r = scale, v = variance, per token:

        d/d probe_j = u_j (w_j x_j + b_j) - x_j / D * sum(u w) - (x_j^2 - v r^2) / 2D * sum(u w x),

        because the mean moves by (hidden_j - mean) / D and the variance by ((hidden_j - mean)^2 - v) / D.
        """
        normal, scale, weight, bias = ctx.saved_tensors
        size = normal.shape[-1]
        by_normal = grad * weight
        product = by_normal * normal
        slope = by_normal.sum(dim=-1, keepdim=True) / size  # (B, T, 1)
        stretch = product.sum(dim=-1, keepdim=True) / size
        by_probe = product.sum(dim=1) + grad.sum(dim=1) * bias
        by_probe -= torch.bmm(slope.transpose(1, 2), normal).squeeze(1)
        by_probe -= torch.bmm(stretch.transpose(1, 2), normal.square()).squeeze(1) / 2
        by_probe += (stretch * (1 - ctx.eps * scale.square())).sum(dim=1) / 2  # v r^2 = 1 - eps r^2
        by_hidden = by_normal.sub_(slope).addcmul_(normal, stretch, value=-1).mul_(scale)
        return by_hidden, by_probe, None, None, None


def _probed_norm(hidden: Tensor, probe: Tensor, norm: nn.LayerNorm) -> Tensor:
    if hidden.ndim == 2:
        return _probed_norm(hidden.unsqueeze(1), probe, norm).squeeze(1)
    return _NormProbe.apply(hidden, probe, norm.weight, norm.bias, norm.eps)


def _input_hook(probe: Tensor) -> Any:
    def attach(_module: nn.Linear, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_Probe.apply(args[0], probe), *args[1:])

    return attach


def _output_hook(probe: Tensor) -> Any:
    def attach(_module: nn.Linear, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return _Probe.apply(output, probe)

    return attach
