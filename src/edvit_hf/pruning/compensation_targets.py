# SPDX-License-Identifier: Apache-2.0
"""What a compensation is fitted on: the tokens that count, and the teacher's answers there.

Shape letters as in `compensation`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from edvit_hf.pruning.axes import Architecture
from edvit_hf.pruning.compensation_steps import Step, values_at
from edvit_hf.pruning.inputs import Inputs, num_rows, take
from edvit_hf.pruning.plan import PruningPlan
from edvit_hf.pruning.surgery import kept_indices

_MAX_ROWS = 16_384  # tokens that are fitted on; of longer inputs some, drawn once
_TARGET_BYTES = 2**30  # of the teacher's answers held at a time; more steps take more passes of the teacher
_FEATURE_SHARE = 0.3  # of the total weight for the tokens that the classifier reads, of which there are few
_SEED = 0


@dataclass(frozen=True)
class Samples:
    """The inputs, and the tokens of them that are fitted on: `chosen` (n, T) bool, `weights` (n, T)."""

    inputs: Inputs
    chosen: Tensor
    weights: Tensor
    batch_size: int

    def batches(self) -> Iterator[tuple[Inputs, Tensor, Tensor]]:
        """Inputs, chosen tokens and weights of `batch_size` rows at a time."""
        for start in range(0, len(self.chosen), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield take(self.inputs, part), self.chosen[part], self.weights[part]

    def num_rows(self, step: Step) -> int:
        """R of a step."""
        return int(self.chosen.sum()) if step.per_token else len(self.chosen)


@dataclass(frozen=True)
class Targets:
    """Reads the teacher's answers, restricted to what the pruned model still has."""

    teacher: PreTrainedModel
    architecture: Architecture
    plan: PruningPlan
    group: list[int]

    def collect(self, samples: Samples, steps: Sequence[Step]) -> dict[Step, list[Tensor]]:
        """Step -> one (R of the batch, O) tensor per batch; one pass of the teacher."""
        targets: dict[Step, list[Tensor]] = {step: [] for step in steps}
        names = {probe: name for step in steps for name, probe in zip(step.names, step.probes, strict=True)}
        for inputs, chosen, _ in samples.batches():
            probes = {probe: partial(self._restrict, name, chosen) for probe, name in names.items()}
            found = values_at(self.teacher, inputs, probes)
            for step in steps:
                targets[step].append(torch.cat([found.pop(probe) for probe in step.probes], dim=-1))
        return targets

    def windows(self, samples: Samples, steps: Sequence[Step]) -> Iterator[list[Step]]:
        """Consecutive steps whose targets fit into `_TARGET_BYTES` together; at least one at a time."""
        window: list[Step] = []
        held = 0
        for step in steps:
            size = samples.num_rows(step) * step.num_outputs * self.teacher.dtype.itemsize
            if window and held + size > _TARGET_BYTES:
                yield window
                window, held = [], 0
            window.append(step)
            held += size
        yield window

    def _restrict(self, name: str, chosen: Tensor, values: Tensor) -> Tensor:
        """All outputs of the teacher's Linear `name`, or of its stream -> (R, the kept ones)."""
        (axis, _), layer = self.architecture.locate(f"{name}.weight")
        values = chosen_rows(values, chosen)
        if axis == "label":
            others = [label for label in range(values.shape[-1]) if label not in set(self.group)]
            kept = values[:, self.group]
            return torch.cat([kept, values[:, others].logsumexp(-1, keepdim=True)], dim=-1) if others else kept
        indices = kept_indices(axis, layer, self.plan)
        if indices is None:
            return values
        values = values[:, torch.tensor(indices, device=values.device)]
        if layer is not None and name == self.architecture.attention_query.format(layer=layer):
            # the pruned model divides by the root of its own head size
            return values * math.sqrt(self.plan.widths_after.head_dim / self.plan.widths_before.head_dim)
        return values


def choose_tokens(inputs: Inputs, architecture: Architecture, num_tokens: int, batch_size: int) -> Samples:
    """Draw at most `_MAX_ROWS` tokens, evenly over the inputs, those that the classifier reads first."""
    count, features = num_rows(inputs), list(architecture.feature_tokens)
    order = torch.rand(count, num_tokens, generator=torch.Generator().manual_seed(_SEED))
    order[:, features] = -1.0
    mask = inputs.get("attention_mask")
    is_real = torch.ones(count, num_tokens, dtype=torch.bool) if mask is None else mask.cpu().bool()
    order[~is_real] = 2.0
    per_input = min(num_tokens, max(len(features) + 1, _MAX_ROWS // count))
    chosen = torch.zeros(count, num_tokens, dtype=torch.bool)
    chosen = chosen.scatter_(1, order.argsort(dim=1)[:, :per_input], True) & is_real
    weights = torch.ones(count, num_tokens, dtype=torch.float64)
    num_features = int(chosen[:, features].sum())
    num_others = int(chosen.sum()) - num_features
    if num_features and num_others:
        weights[:, features] = _FEATURE_SHARE / (1 - _FEATURE_SHARE) * num_others / num_features
    device = next(iter(inputs.values())).device
    return Samples(inputs, chosen.to(device), weights.to(device), batch_size)


def chosen_rows(values: Tensor, chosen: Tensor) -> Tensor:
    """(B, T, O) -> the chosen tokens, (R, O); (B, O) stays."""
    return values[chosen] if values.ndim == 3 else values
