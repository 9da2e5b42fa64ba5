# SPDX-License-Identifier: Apache-2.0
"""Cheap approximations of the class-wise KL, from the gradients of the answer by per-sample gates.

One forward and one backward per outcome score every unit of the model at once. Gates have a batch dimension,
so the gradients are per sample without further machinery.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from edvit_hf.pruning.axes import Architecture, Widths
from edvit_hf.pruning.distribution import group_log_probabilities
from edvit_hf.pruning.gates import Gates, gated

# Entries of the (rows, units, labels) Jacobian of one forward, float32: 256 MiB.
_MAX_JACOBIAN_ENTRIES = 2**26


@dataclass(frozen=True, eq=False)
class GateScores:
    """Approximate KL per unit in nats: residual (D,), heads (layers, H), ffn (layers, F)."""

    residual: np.ndarray
    heads: np.ndarray
    ffn: np.ndarray


def gate_scores(
    model: PreTrainedModel,
    architecture: Architecture,
    widths: Widths,
    inputs: Tensor,
    class_group: Sequence[int],
    *,
    kind: Literal["fisher", "linear"],
    batch_size: int,
    progress: bool,
) -> GateScores:
    """Approximate KL(p || p without the unit) from gradients at all gates = 1.

    "fisher": the second-order Taylor term, 1/2 * sum_k p_k * (d log p_k / d g)^2 over the K + 1 outcomes of
    the group (K + 1 backward passes). The zeroth and first order of the KL vanish at g = 1.

    "linear": the exact KL after the first-order change of the logits, KL(p || pooled softmax(z - dz/dg)),
    with one backward pass per label. A trained teacher is confident, and removing a head or a channel is no
    small step: there the Fisher term is far below the KL, mostly because a class hidden in the pooled "other"
    with p near 0 adds nothing to it however fast its logit rises. Linear logits keep that class visible.

    Args:
        model: Teacher in eval mode.
        architecture: Its axis table.
        widths: Its sizes.
        inputs: (n, 3, H, W).
        class_group: Labels that stay apart; all others are pooled.
        kind: Which of the two.
        batch_size: Inputs per forward at most.
        progress: Show a progress bar.
    """
    num_units = widths.residual + widths.layers * (widths.heads + widths.ffn)
    if kind == "linear":
        batch_size = min(batch_size, max(1, _MAX_JACOBIAN_ENTRIES // (num_units * widths.labels)))
    sizes = [widths.residual, widths.layers * widths.heads, widths.layers * widths.ffn]
    total = torch.zeros(num_units, dtype=torch.float64, device=inputs.device)
    with tqdm(total=len(inputs), desc=f"KL ({kind})", unit="image", disable=not progress, leave=False) as bar:
        for batch in inputs.split(batch_size):
            gates = _open_gates(widths, batch)
            with torch.enable_grad(), gated(model, architecture, gates):
                logits = model(batch).logits
            score = _fisher_kl if kind == "fisher" else _linear_kl
            total += score(logits, _in_order(gates), class_group)
            bar.update(len(batch))
    residual, heads, ffn = np.split((total / len(inputs)).cpu().numpy(), np.cumsum(sizes)[:-1])
    return GateScores(residual, heads.reshape(widths.layers, -1), ffn.reshape(widths.layers, -1))


def _open_gates(widths: Widths, batch: Tensor) -> Gates:
    def ones(size: int) -> Tensor:
        return torch.ones(len(batch), size, dtype=batch.dtype, device=batch.device, requires_grad=True)

    return Gates(
        residual=ones(widths.residual),
        heads={layer: ones(widths.heads) for layer in range(widths.layers)},
        ffn={layer: ones(widths.ffn) for layer in range(widths.layers)},
    )


def _in_order(gates: Gates) -> list[Tensor]:
    assert gates.residual is not None
    return [gates.residual, *gates.heads.values(), *gates.ffn.values()]


def _gradients(outputs: Tensor, gates: list[Tensor]) -> Iterator[Tensor]:
    """Per column k of `outputs` (B, K), its gradient with respect to all gates side by side, (B, units)."""
    num_outputs = outputs.shape[1]
    for k in range(num_outputs):
        # Rows do not mix, so the gradient of the sum holds every row's own gradient.
        grads = torch.autograd.grad(outputs[:, k].sum(), gates, retain_graph=k + 1 < num_outputs)
        yield torch.cat(grads, dim=1)


def _fisher_kl(logits: Tensor, gates: list[Tensor], class_group: Sequence[int]) -> Tensor:
    log_p = group_log_probabilities(logits, class_group)
    p = log_p.detach().exp()
    terms = [p[:, k] @ gradient.double().square() for k, gradient in enumerate(_gradients(log_p, gates))]
    return 0.5 * torch.stack(terms).sum(dim=0)


def _linear_kl(logits: Tensor, gates: list[Tensor], class_group: Sequence[int]) -> Tensor:
    slopes = torch.stack(list(_gradients(logits, gates)), dim=-1)  # (rows, units, labels)
    total = torch.zeros(slopes.shape[1], dtype=torch.float64, device=logits.device)
    for row, row_slopes in zip(logits.detach(), slopes, strict=True):
        log_p = group_log_probabilities(row[None], class_group)
        log_q = group_log_probabilities(row - row_slopes, class_group)
        total += (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    return total
