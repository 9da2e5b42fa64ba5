# SPDX-License-Identifier: Apache-2.0
"""Cheap scores from the gradients of the answer by per-sample gates: all units of the model at once.

Gates have a row dimension, so the gradients are per sample without further machinery; weights get none, which saves
half of every backward pass.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from edvit_hf.pruning.axes import Architecture, Widths
from edvit_hf.pruning.distribution import group_log_probabilities
from edvit_hf.pruning.inputs import in_batches, num_rows, take
from edvit_hf.pruning.masks import layer_input
from edvit_hf.pruning.probes import Probes, probed
from edvit_hf.pruning.scores import score_shapes

GradientMethod = Literal["fisher", "linear", "taylor"]
Gradients = Callable[[Tensor, bool], Tensor]  # outputs (B,), keep the graph? -> (B, units)

_MAX_JACOBIAN_ENTRIES = 2**26  # of the (rows, units, labels) slopes of one forward
_MAX_SAVED_BYTES = 2**31  # that one forward keeps for its backward passes


def gate_scores(
    model: PreTrainedModel,
    architecture: Architecture,
    widths: Widths,
    inputs: Mapping[str, Tensor],
    class_group: Sequence[int],
    *,
    method: GradientMethod,
    batch_size: int,
    progress: bool,
) -> dict[str, np.ndarray]:
    """Scores of every unit from gradients at all gates = 1, averaged over the inputs.

    "fisher": the second-order Taylor term of KL(p || p without the unit), 1/2 * sum_k p_k * (d log p_k / d g)^2 over
    the K + 1 outcomes of the group: one forward and K backward passes. The zeroth and first order vanish at g = 1.

    "linear": the exact KL after the first-order change of the logits, KL(p || pooled softmax(z - dz/dg)), with one
    backward pass per label. A trained teacher is confident, and removing a head or a channel is no small step: there
    the Fisher term is far below the KL, mostly because a class hidden in the pooled "other" with p near 0 adds
    nothing to it however fast its logit rises. Linear logits keep that class visible.

    "taylor": |g * dL/dg| per sample at g = 1, L = -log p_k of the teacher's own most probable outcome k: one backward
    pass, no labels. Source: Molchanov et al., arXiv 1611.06440 (first-order term of the loss). Differs: the
    teacher's answer instead of the true label; absolute value per sample and gate, so that samples cannot cancel.

    Args:
        model: Teacher in eval mode; its parameters should not require gradients.
        architecture: Its axis table.
        widths: Its sizes.
        inputs: n rows by name.
        class_group: Labels that stay apart; all others are pooled.
        method: Which of the three.
        batch_size: Inputs per forward at most; fewer where their saved activations would exceed 2 GiB.
        progress: Show a progress bar.

    Returns:
        Axis -> scores, as `score_shapes` says.
    """
    shapes = score_shapes(architecture, widths)
    num_units = sum(int(np.prod(shape)) for shape in shapes.values())
    limit = _MAX_SAVED_BYTES // _saved_bytes(model, architecture, widths, inputs)
    if method == "linear":
        limit = min(limit, _MAX_JACOBIAN_ENTRIES // (num_units * widths.labels))
    score = {"fisher": _fisher, "linear": _linear, "taylor": _taylor}[method]
    total = torch.zeros(num_units, dtype=torch.float64, device=model.device)
    size = min(batch_size, max(1, limit))
    with tqdm(total=num_rows(inputs), desc=method, unit="sample", disable=not progress, leave=False) as bar:
        for batch in in_batches(inputs, size):
            rows = num_rows(batch)
            probes = Probes.open(architecture, widths, rows, like=next(model.parameters()))
            with torch.enable_grad():
                with probed(model, architecture, probes):
                    logits = model(**batch).logits

                def gradients(outputs: Tensor, keep_graph: bool, probes: Probes = probes) -> Tensor:
                    return probes.gradients(outputs, widths, keep_graph=keep_graph)

                total += score(logits, gradients, class_group)
            bar.update(rows)
    flat = (total / num_rows(inputs)).cpu().numpy()
    parts = np.split(flat, np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _saved_bytes(
    model: PreTrainedModel, architecture: Architecture, widths: Widths, inputs: Mapping[str, Tensor]
) -> int:
    """Rough size of what one row's forward keeps for the backward: norms, q, k, v, attention output, FFN twice."""
    with torch.no_grad():
        tokens = layer_input(model, architecture, 0, take(inputs, slice(0, 1))).shape[1]
    floats = tokens * (2 * widths.residual + 6 * widths.attention + 3 * widths.ffn)
    if model.config._attn_implementation == "eager":
        floats += 3 * widths.heads * tokens**2
    return 4 * widths.layers * floats


def _fisher(logits: Tensor, gradients: Gradients, class_group: Sequence[int]) -> Tensor:
    """Half the Fisher information, (units,), summed over the rows.

    Outcomes are taken one against all that follow, so that K + 1 of them need K backward passes and no division by a
    p near 0: with S_k = sum of p_l over l > k and c_k = log p_k - log S_k,
    sum_k p_k (d log p_k)^2 = sum_{k <= K} p_k S_k / (p_k + S_k) (d c_k)^2, a chain of yes-or-no questions.
    """
    log_p = group_log_probabilities(logits, class_group)
    last = log_p.shape[1] - 1
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for k in range(last):
        rest = log_p[:, k + 1 :].logsumexp(dim=1)
        weights = (log_p[:, k] + rest - log_p[:, k:].logsumexp(dim=1)).detach().exp()
        total = total + weights @ gradients(log_p[:, k] - rest, k + 1 < last).double().square()
    return 0.5 * total


def _taylor(logits: Tensor, gradients: Gradients, class_group: Sequence[int]) -> Tensor:
    likeliest = group_log_probabilities(logits, class_group).max(dim=-1).values
    return gradients(likeliest, False).double().abs().sum(dim=0)


def _linear(logits: Tensor, gradients: Gradients, class_group: Sequence[int]) -> Tensor:
    log_p = group_log_probabilities(logits.detach(), class_group)
    last = logits.shape[1] - 1
    slopes = torch.stack([gradients(logits[:, k], k < last) for k in range(last + 1)], dim=-1)  # (rows, units, labels)
    total = torch.zeros(slopes.shape[1], dtype=torch.float64, device=logits.device)
    for row, row_slopes, row_log_p in zip(logits.detach(), slopes, log_p, strict=True):
        log_q = group_log_probabilities(row - row_slopes, class_group)
        total += (row_log_p.exp() * (row_log_p - log_q)).sum(dim=-1)
    return total
