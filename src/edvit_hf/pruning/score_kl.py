# SPDX-License-Identifier: Apache-2.0
"""Scores by the distribution over the class group: how far it moves when a unit goes.

`ExactKL` removes one unit at a time from the teacher and measures. `gradient_scores` predicts the same for all units of
the model at once, from the gradients of the answer by per-row masks: rows do not mix, so that the gradients are per
sample without further machinery, and weights get none, which saves half of every backward pass.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from edvit_hf.errors import PruningError
from edvit_hf.pruning.masks import Masks, OpenMasks, layer_input, masked, resumed_at, with_open_masks
from edvit_hf.pruning.models import Inputs, ScoringTask, in_batches, linear_at, num_rows, take

# Logits of `rows` (indices of inputs) when row i runs without unit units[i].
MaskedLogits = Callable[[Tensor, Tensor], Tensor]


class ExactKL:
    """Scores of single units, KL(p || p without the unit) in nats, averaged over the inputs.

    Masked copies of different units share forwards: a row is one (unit, input) pair, `batch_size` rows per
    forward. Attention and FFN units of layer l resume from the cached hidden states that enter layer l, which
    is exact because nothing before it changes; pooled units resume at the classifier.

    Source: UP-ViTs, arXiv 2111.15127 (formula and independent scores); ED-ViT, arXiv 2410.11650 (criterion named).
    Differs: KL of the group's classes and the pooled "other" instead of all labels; whole heads beside single attention
    dimensions; mean instead of sum over the inputs; masks instead of rebuilt models.
    """

    def __init__(self, task: ScoringTask) -> None:
        self.model, self.architecture, self.widths = task.model, task.architecture, task.widths
        self.inputs, self.class_group = task.inputs, task.group
        self.batch_size, self.progress, self.num_inputs = task.batch_size, task.progress, num_rows(task.inputs)
        logits = self._in_batches(lambda batch: self.model(**batch).logits)
        self.log_p = group_log_probabilities(logits, self.class_group)

    @torch.no_grad()
    def residual(self) -> np.ndarray:
        """Scores of the residual channels, (D,): each removed everywhere at once, norms over the rest."""

        def logits(units: Tensor, rows: Tensor) -> Tensor:
            masks = Masks(residual=self._without(units, self.widths.residual))
            with masked(self.model, self.architecture, masks):
                return self.model(**take(self.inputs, rows)).logits

        return self._scores(logits, self.widths.residual, "residual channels")

    @torch.no_grad()
    def heads(self) -> np.ndarray:
        """Scores of whole heads, (layers, H)."""
        return self._per_layer(lambda masks: Masks(heads=masks), self.widths.heads, "heads")

    @torch.no_grad()
    def attention(self) -> np.ndarray:
        """Scores of attention dimensions, (layers, A): each removed from q, k, v and the output projection."""
        return self._per_layer(lambda masks: Masks(attention=masks), self.widths.attention, "attention dimensions")

    @torch.no_grad()
    def ffn(self) -> np.ndarray:
        """Scores of the FFN units, (layers, F)."""
        return self._per_layer(lambda masks: Masks(ffn=masks), self.widths.ffn, "FFN units")

    @torch.no_grad()
    def pooled(self) -> np.ndarray | None:
        """Scores of the pooler's outputs, (P,); None without a pooler."""
        if not self.architecture.has_pooler:
            return None
        classifier = linear_at(self.model, self.architecture.classifier)
        seen: list[Tensor] = []
        handle = classifier.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        try:
            self._in_batches(lambda batch: self.model(**batch).logits)
        finally:
            handle.remove()
        features = torch.cat(seen)

        def logits(units: Tensor, rows: Tensor) -> Tensor:
            return classifier(features[rows] * self._without(units, self.widths.residual))

        return self._scores(logits, self.widths.residual, "pooled units")

    def _per_layer(self, make_masks: Callable[[dict[int, Tensor]], Masks], num_units: int, name: str) -> np.ndarray:
        layers = self.widths.layers
        scores = np.empty((layers, num_units))
        for layer in range(layers):
            hidden = self._in_batches(partial(layer_input, self.model, self.architecture, layer))

            def logits(units: Tensor, rows: Tensor, at: int = layer, hidden: Tensor = hidden) -> Tensor:
                masks = make_masks({at: self._without(units, num_units)})
                with (
                    masked(self.model, self.architecture, masks),
                    resumed_at(self.model, self.architecture, at, hidden[rows]),
                ):
                    return self.model(**take(self.inputs, rows)).logits

            scores[layer] = self._scores(logits, num_units, f"{name}, layer {layer + 1}/{layers}")
        return scores

    def _scores(self, logits: MaskedLogits, num_units: int, name: str) -> np.ndarray:
        device = self.model.device
        totals = torch.zeros(num_units, dtype=torch.float64, device=device)
        pairs = torch.arange(num_units * self.num_inputs, device=device)
        with tqdm(total=len(pairs), desc=f"KL: {name}", unit="row", disable=not self.progress, leave=False) as bar:
            for chunk in pairs.split(self.batch_size):
                units, rows = chunk // self.num_inputs, chunk % self.num_inputs
                log_p, log_q = self.log_p[rows], group_log_probabilities(logits(units, rows), self.class_group)
                totals.index_add_(0, units, _divergence(log_p, log_q))
                bar.update(len(chunk))
        return (totals / self.num_inputs).cpu().numpy()

    @torch.no_grad()
    def _in_batches(self, function: Callable[[Inputs], Tensor]) -> Tensor:
        return torch.cat([function(batch) for batch in in_batches(self.inputs, self.batch_size)])

    def _without(self, units: Tensor, num_units: int) -> Tensor:
        """(B, num_units) masks: ones, but for the one unit that each row goes without."""
        masks = torch.ones(len(units), num_units, dtype=self.model.dtype, device=self.model.device)
        return masks.scatter_(1, units.unsqueeze(1), 0.0)


GradientMethod = Literal["fisher", "linear", "taylor"]
Gradients = Callable[[Tensor, bool], Tensor]  # outputs (B,), keep the graph? -> (B, units)

_MAX_JACOBIAN_ENTRIES = 2**26  # of the (rows, units, labels) slopes of one forward
_MAX_SAVED_BYTES = 2**31  # that one forward keeps for its backward passes


def gradient_scores(task: ScoringTask, method: GradientMethod) -> dict[str, np.ndarray]:
    """Scores of every unit from gradients at all masks = 1, averaged over the inputs.

    "fisher": the second-order Taylor term of KL(p || p without the unit), 1/2 * sum_k p_k * (d log p_k / d m)^2 over
    the K + 1 outcomes of the group: one forward and K backward passes. The zeroth and first order vanish at m = 1.

    "linear": the exact KL after the first-order change of the logits, KL(p || pooled softmax(z - dz/dm)), with one
    backward pass per label. A trained teacher is confident, and removing a head or a channel is no small step: there
    the Fisher term is far below the KL, mostly because a class hidden in the pooled "other" with p near 0 adds
    nothing to it however fast its logit rises. Linear logits keep that class visible.

    "taylor": |m * dL/dm| per sample at m = 1, L = -log p_k of the teacher's own most probable outcome k: one backward
    pass, no labels. Source: Molchanov et al., arXiv 1611.06440 (first-order term of the loss). Differs: the
    teacher's answer instead of the true label; absolute value per sample and mask, so that samples cannot cancel.

    Args:
        task: Its teacher in eval mode, whose parameters should not require gradients. Its batches are smaller where the
            saved activations would exceed 2 GiB.
        method: Which of the three.

    Returns:
        Axis -> scores, as `unit_shapes` says.
    """
    shapes = task.architecture.unit_shapes(task.widths)
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    limit = _MAX_SAVED_BYTES // _saved_bytes(task)
    if method == "linear":
        limit = min(limit, _MAX_JACOBIAN_ENTRIES // (sum(sizes) * task.widths.labels))
    score = {"fisher": _fisher, "linear": _linear, "taylor": _taylor}[method]
    total = torch.zeros(sum(sizes), dtype=torch.float64, device=task.model.device)
    count = num_rows(task.inputs)
    with tqdm(total=count, desc=method, unit="sample", disable=not task.progress, leave=False) as bar:
        for batch in in_batches(task.inputs, min(task.batch_size, max(1, limit))):
            rows = num_rows(batch)
            masks = OpenMasks.of(task.architecture, task.widths, rows, like=next(task.model.parameters()))
            with torch.enable_grad():
                with with_open_masks(task.model, task.architecture, masks):
                    logits = task.model(**batch).logits

                def gradients(outputs: Tensor, keep_graph: bool, masks: OpenMasks = masks) -> Tensor:
                    return masks.gradients(outputs, task.widths, keep_graph=keep_graph)

                total += score(logits, gradients, task.group)
            bar.update(rows)
    parts = np.split((total / count).cpu().numpy(), np.cumsum(sizes)[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _saved_bytes(task: ScoringTask) -> int:
    """Rough size of what one row's forward keeps for the backward: norms, q, k, v, attention output, FFN twice."""
    widths = task.widths
    with torch.no_grad():
        tokens = layer_input(task.model, task.architecture, 0, take(task.inputs, slice(0, 1))).shape[1]
    floats = tokens * (2 * widths.residual + 6 * widths.attention + 3 * widths.ffn)
    if task.model.config._attn_implementation == "eager":
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
        total += _divergence(row_log_p, log_q)
    return total


def group_log_probabilities(logits: Tensor, class_group: Sequence[int]) -> Tensor:
    """Log-probabilities of the group's classes and of the pooled "other" class.

    Args:
        logits: (B, L) of the teacher.
        class_group: K distinct labels. All L of them: there is no "other".

    Returns:
        (B, K + 1) float64, or (B, L) when the group holds every class; rows sum to 1 after exp.

    Raises:
        PruningError: Logits that are not finite.
    """
    if not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits)).any(dim=-1).sum())
        raise PruningError(
            f"The teacher's logits are not finite for {bad} of {len(logits)} rows, so no score would mean anything. "
            "Its weights are damaged, or it overflows in half precision. Check it on the same samples, in float32."
        )
    log_p = logits.double().log_softmax(dim=-1)
    others = [label for label in range(logits.shape[-1]) if label not in set(class_group)]
    kept = log_p[:, list(class_group)]
    if not others:
        return kept
    return torch.cat([kept, log_p[:, others].logsumexp(dim=-1, keepdim=True)], dim=-1)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last dimension."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)
