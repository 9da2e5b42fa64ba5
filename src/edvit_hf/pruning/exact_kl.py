# SPDX-License-Identifier: Apache-2.0
"""Exact class-wise KL: remove one unit at a time from the teacher and measure how its answer moves."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from edvit_hf.pruning.axes import Architecture, Widths, linear_at
from edvit_hf.pruning.distribution import group_log_probabilities
from edvit_hf.pruning.inputs import Inputs, in_batches, num_rows, take
from edvit_hf.pruning.masks import Gates, gated, layer_input, resumed_at

# Logits of `rows` (indices of inputs) when row i runs without unit units[i].
MaskedLogits = Callable[[Tensor, Tensor], Tensor]


class ExactKL:
    """Scores of single units, KL(p || p without the unit) in nats, averaged over the inputs.

    Masked copies of different units share forwards: a row is one (unit, input) pair, `batch_size` rows per
    forward. Attention and FFN units of layer l resume from the cached hidden states that enter layer l, which
    is exact because nothing before it changes; pooled units resume at the classifier.

    Source: UP-ViTs, arXiv 2111.15127 (formula and independent scores); ED-ViT, arXiv 2410.11650 (criterion
    named).
    Differs: KL of the group's classes and the pooled "other" instead of all labels; whole heads beside single
    attention dimensions; mean instead of sum over the inputs; masks instead of rebuilt models.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        widths: Widths,
        inputs: Mapping[str, Tensor],
        class_group: Sequence[int],
        *,
        batch_size: int,
        progress: bool,
    ) -> None:
        self.model, self.architecture, self.widths, self.inputs = model, architecture, widths, inputs
        self.class_group, self.batch_size, self.progress = class_group, batch_size, progress
        self.num_inputs = num_rows(inputs)
        self.log_p = group_log_probabilities(self._in_batches(lambda batch: model(**batch).logits), class_group)

    @torch.no_grad()
    def residual(self) -> np.ndarray:
        """Scores of the residual channels, (D,): each removed everywhere at once, norms over the rest."""

        def logits(units: Tensor, rows: Tensor) -> Tensor:
            gates = Gates(residual=self._without(units, self.widths.residual))
            with gated(self.model, self.architecture, gates):
                return self.model(**take(self.inputs, rows)).logits

        return self._scores(logits, self.widths.residual, "residual channels")

    @torch.no_grad()
    def heads(self) -> np.ndarray:
        """Scores of whole heads, (layers, H)."""
        return self._per_layer(lambda gates: Gates(heads=gates), self.widths.heads, "heads")

    @torch.no_grad()
    def attention(self) -> np.ndarray:
        """Scores of attention dimensions, (layers, A): each removed from q, k, v and the output projection."""
        return self._per_layer(lambda gates: Gates(attention=gates), self.widths.attention, "attention dimensions")

    @torch.no_grad()
    def ffn(self) -> np.ndarray:
        """Scores of the FFN units, (layers, F)."""
        return self._per_layer(lambda gates: Gates(ffn=gates), self.widths.ffn, "FFN units")

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

    def _per_layer(self, make_gates: Callable[[dict[int, Tensor]], Gates], num_units: int, name: str) -> np.ndarray:
        layers = self.widths.layers
        scores = np.empty((layers, num_units))
        for layer in range(layers):
            hidden = self._in_batches(partial(layer_input, self.model, self.architecture, layer))

            def logits(units: Tensor, rows: Tensor, at: int = layer, hidden: Tensor = hidden) -> Tensor:
                gates = make_gates({at: self._without(units, num_units)})
                with (
                    gated(self.model, self.architecture, gates),
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
                totals.index_add_(0, units, (log_p.exp() * (log_p - log_q)).sum(dim=-1))
                bar.update(len(chunk))
        return (totals / self.num_inputs).cpu().numpy()

    @torch.no_grad()
    def _in_batches(self, function: Callable[[Inputs], Tensor]) -> Tensor:
        return torch.cat([function(batch) for batch in in_batches(self.inputs, self.batch_size)])

    def _without(self, units: Tensor, num_units: int) -> Tensor:
        """(B, num_units) gates: ones, but for the one unit that each row goes without."""
        gates = torch.ones(len(units), num_units, dtype=self.model.dtype, device=self.model.device)
        return gates.scatter_(1, units.unsqueeze(1), 0.0)
