# SPDX-License-Identifier: Apache-2.0
"""Exact class-wise KL: remove one unit at a time from the teacher and measure how its answer moves."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from edvit_hf.pruning.axes import Architecture, Widths
from edvit_hf.pruning.distribution import group_log_probabilities
from edvit_hf.pruning.gates import Gates, gated, layer_input, resumed_at

# Logits of `rows` (indices of inputs) when row i runs without unit units[i].
MaskedLogits = Callable[[Tensor, Tensor], Tensor]


class ExactKL:
    """Scores of single units, KL(p || p without the unit) in nats, averaged over the inputs.

    Masked copies of different units share forwards: a row is one (unit, input) pair, `batch_size` rows per
    forward. Attention and FFN units of layer l resume from the cached hidden states that enter layer l, which
    is exact because nothing before it changes.

    Source: UP-ViTs, arXiv 2111.15127 (formula and independent scores); ED-ViT, arXiv 2410.11650 (criterion
    named).
    Differs: KL of the group's classes and the pooled "other" instead of all labels; whole heads instead of
    single attention dimensions; mean instead of sum over the inputs; masks instead of rebuilt models.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        inputs: Tensor,
        class_group: Sequence[int],
        *,
        batch_size: int,
        progress: bool,
    ) -> None:
        self.model, self.architecture, self.inputs = model, architecture, inputs
        self.class_group, self.batch_size, self.progress = class_group, batch_size, progress
        self.log_p = group_log_probabilities(self._in_batches(lambda x: model(x).logits), class_group)

    @torch.no_grad()
    def residual(self, widths: Widths) -> np.ndarray:
        """Scores of the residual channels, (D,): each removed everywhere at once, norms over the rest."""

        def logits(units: Tensor, rows: Tensor) -> Tensor:
            gates = Gates(residual=self._without(units, widths.residual))
            with gated(self.model, self.architecture, gates):
                return self.model(self.inputs[rows]).logits

        return self._scores(logits, widths.residual, "residual channels")

    @torch.no_grad()
    def heads(self, widths: Widths) -> np.ndarray:
        """Scores of whole heads, (layers, H)."""

        def gates(layer: int, units: Tensor) -> Gates:
            return Gates(heads={layer: self._without(units, widths.heads)})

        return self._per_layer(gates, widths.layers, widths.heads, "heads")

    @torch.no_grad()
    def ffn(self, widths: Widths) -> np.ndarray:
        """Scores of the FFN units, (layers, F)."""

        def gates(layer: int, units: Tensor) -> Gates:
            return Gates(ffn={layer: self._without(units, widths.ffn)})

        return self._per_layer(gates, widths.layers, widths.ffn, "FFN units")

    def _per_layer(
        self, make_gates: Callable[[int, Tensor], Gates], num_layers: int, num_units: int, name: str
    ) -> np.ndarray:
        scores = np.empty((num_layers, num_units))
        for layer in range(num_layers):
            hidden = self._in_batches(partial(layer_input, self.model, self.architecture, layer))

            def logits(units: Tensor, rows: Tensor, at: int = layer, hidden: Tensor = hidden) -> Tensor:
                with (
                    gated(self.model, self.architecture, make_gates(at, units)),
                    resumed_at(self.model, self.architecture, at, hidden[rows]),
                ):
                    return self.model(self.inputs[rows]).logits

            scores[layer] = self._scores(logits, num_units, f"{name}, layer {layer + 1}/{num_layers}")
        return scores

    def _scores(self, logits: MaskedLogits, num_units: int, name: str) -> np.ndarray:
        num_inputs = len(self.inputs)
        totals = torch.zeros(num_units, dtype=torch.float64, device=self.inputs.device)
        pairs = torch.arange(num_units * num_inputs, device=self.inputs.device)
        with tqdm(total=len(pairs), desc=f"KL: {name}", unit="row", disable=not self.progress, leave=False) as bar:
            for chunk in pairs.split(self.batch_size):
                units, rows = chunk // num_inputs, chunk % num_inputs
                log_p, log_q = (
                    self.log_p[rows],
                    group_log_probabilities(logits(units, rows), self.class_group),
                )
                totals.index_add_(0, units, (log_p.exp() * (log_p - log_q)).sum(dim=-1))
                bar.update(len(chunk))
        return (totals / num_inputs).cpu().numpy()

    @torch.no_grad()
    def _in_batches(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([function(batch) for batch in self.inputs.split(self.batch_size)])

    def _without(self, units: Tensor, num_units: int) -> Tensor:
        """(B, num_units) gates: ones, but for the one unit that each row goes without."""
        gates = torch.ones(len(units), num_units, dtype=self.inputs.dtype, device=self.inputs.device)
        return gates.scatter_(1, units.unsqueeze(1), 0.0)
