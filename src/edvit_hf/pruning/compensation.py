# SPDX-License-Identifier: Apache-2.0
"""Compensation: fold the least-squares prediction of what was cut off into the weights that stay.

Shape letters: n inputs, B of a batch, T tokens, R fitted rows (tokens; after pooling: inputs), I inputs and O outputs
of the Linears of one step.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from edvit_hf.architectures.axes import Architecture
from edvit_hf.errors import PruningError
from edvit_hf.pruning.compensation_steps import Step, trace, values_at
from edvit_hf.pruning.cut import cut_tensors, kept_indices, label_names
from edvit_hf.pruning.models import (
    AnyInputs,
    Inputs,
    architecture_of,
    check_readable,
    eval_mode,
    named_inputs,
    num_rows,
    take,
)
from edvit_hf.pruning.plan import PruningPlan, check_plan_fits
from edvit_hf.strict import number, whole_number
from edvit_hf.tasks import check_class_group, num_labels_of

logger = logging.getLogger(__name__)

_ROWS_PER_INPUT = 2  # fewer: the fit follows the noise, and the ridge is raised
_MAX_ROWS = 16_384  # tokens that are fitted on; of longer inputs some, drawn once
_TARGET_BYTES = 2**30  # of the teacher's answers held at a time; more steps take more passes of the teacher
_FEATURE_SHARE = 0.3  # of the total weight for the tokens that the classifier reads, of which there are few
_SEED = 0


@dataclass(frozen=True)
class FitSamples:
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
        """R: how many rows a step is fitted on."""
        return int(self.chosen.sum()) if step.per_token else len(self.chosen)


@dataclass(frozen=True)
class Targets:
    """Reads the teacher's answers, restricted to what the pruned model still has."""

    teacher: PreTrainedModel
    architecture: Architecture
    plan: PruningPlan
    group: list[int]

    def collect(self, samples: FitSamples, steps: Sequence[Step]) -> dict[Step, list[Tensor]]:
        """Step -> one (R of the batch, O) tensor per batch; one pass of the teacher."""
        targets: dict[Step, list[Tensor]] = {step: [] for step in steps}
        names = {probe: name for step in steps for name, probe in zip(step.names, step.probes, strict=True)}
        for inputs, chosen, _ in samples.batches():
            probes = {probe: partial(self._restrict, name, chosen) for probe, name in names.items()}
            found = values_at(self.teacher, inputs, probes)
            for step in steps:
                targets[step].append(torch.cat([found.pop(probe) for probe in step.probes], dim=-1))
        return targets

    def windows(self, samples: FitSamples, steps: Sequence[Step]) -> Iterator[list[Step]]:
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


def choose_tokens(inputs: Inputs, architecture: Architecture, num_tokens: int, batch_size: int) -> FitSamples:
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
    return FitSamples(inputs, chosen.to(device), weights.to(device), batch_size)


def chosen_rows(values: Tensor, chosen: Tensor) -> Tensor:
    """(B, T, O) -> the chosen tokens, (R, O); (B, O) stays."""
    return values[chosen] if values.ndim == 3 else values


def compensate(
    pruned: PreTrainedModel,
    teacher: PreTrainedModel,
    plan: PruningPlan,
    class_group: Sequence[int] | None,
    inputs: AnyInputs,
    *,
    batch_size: int = 64,
    ridge: float = 1e-3,
    progress: bool = True,
) -> None:
    """Change the weights of a freshly pruned model, in place, so that it answers as the teacher does. No labels.

    Its Linears are walked in the order of the forward; those that read the same input (queries, keys and values)
    are one step. A step's weights W become W + D with D = argmin ||X D - E||^2 + ridge * s * ||D||^2, where X are
    the step's inputs in the pruned model, earlier steps already compensated, s is the mean square of X's columns
    times the number of rows, and a bias takes part without penalty. A step with R < 2 I rows, which would follow the
    noise, gets 2 I / R times the ridge. E is what is missing:

    - of a Linear: the teacher's output, at the kept units, less the present one (queries: times the rescaling of
      `prune`);
    - of a Linear that is added to the residual stream: the teacher's stream after it less the present one, at the
      kept channels. It so corrects the error of earlier layers as well, which regressing its own output cannot;
    - of the classifier: the teacher's logits, and logsumexp of those pooled in "other".

    D = 0 is always allowed, so that no step's error on `inputs` (weighted, see below) grows, rounding aside. Tokens
    that the classifier reads weigh 30 % of the total. Padding (attention_mask 0) is left out. Of more than 16,384
    tokens some are drawn, the same in every call.

    Args:
        pruned: What `prune(teacher, plan, class_group)` gave.
        teacher: Left unchanged.
        plan: Of the cut.
        class_group: Of the cut; None: all classes.
        inputs: Some hundred training inputs, at least two, (n, 3, H, W) or by name; best half from the group, half from
            outside, and twice as many as residual channels stay.
        batch_size: Inputs per forward; bounds the memory, beside at most 1 GiB of the teacher's answers (or those of
            one step where they are more).
        ridge: Pull towards the cut weights, relative to the mean square of the inputs; above 0.
        progress: Show a progress bar.

    Raises:
        PruningError: Models, plan and group do not belong together, or `pruned` has been changed since the cut; one
            input alone, or inputs that the models cannot read; a bad `ridge` or `batch_size`; activations that are not
            finite. All but the last leave `pruned` unchanged.

    Source: the least-squares reconstruction of pruned layers is old (ThiNet, arXiv 1707.06342; He et al., arXiv
        1707.06168); SparseGPT (arXiv 2301.00774) made it common for transformers.
    Differs: whole widths of a transformer at once, residual channels included; errors of earlier layers are fed back
        through the stream; "other" and the class group are targets of their own.
    """
    architecture, labels = architecture_of(teacher), teacher.config.num_labels
    check_plan_fits(plan, architecture, teacher.config)
    group = check_class_group(range(labels) if class_group is None else class_group, labels, PruningError)
    number("ridge", ridge, "(0, inf)", "without it inputs that hang together leave weights undetermined", PruningError)
    whole_number("batch_size", batch_size, 1, "it counts inputs per forward", PruningError)
    _check_pruned(pruned, teacher, architecture, plan, group)
    named = named_inputs(pruned, architecture, inputs)
    if num_rows(named) < 2:
        raise PruningError(
            f"Compensating needs at least 2 inputs, got {num_rows(named)}. One alone says nothing about how units go "
            "together. Pass some hundred training inputs, or do not compensate."
        )
    start = time.perf_counter()
    with torch.no_grad(), eval_mode(pruned, teacher):
        check_readable(pruned, architecture, named)
        steps, num_tokens = trace(pruned, architecture, take(named, slice(0, 2)))
        samples = choose_tokens(named, architecture, num_tokens, batch_size)
        _fit(pruned, Targets(teacher, architecture, plan, group), samples, _ridges(samples, steps, ridge), progress)
    logger.info("compensate: %d steps on %d inputs in %.1f s", len(steps), num_rows(named), time.perf_counter() - start)


def _fit(
    pruned: PreTrainedModel, targets: Targets, samples: FitSamples, ridges: dict[Step, float], progress: bool
) -> None:
    """Fit one step after the other, each with its ridge."""
    with tqdm(total=len(ridges), desc="compensating", unit="step", disable=None if progress else True) as bar:
        for window in targets.windows(samples, list(ridges)):
            collected = targets.collect(samples, window)
            for step in window:
                _apply(pruned, step, *_normal_equations(pruned, samples, step, collected.pop(step)), ridges[step])
                bar.update()


def _ridges(samples: FitSamples, steps: Sequence[Step], ridge: float) -> dict[Step, float]:
    """The ridge of every step, raised where rows are few."""
    factors = {step: max(1.0, _ROWS_PER_INPUT * step.num_inputs / samples.num_rows(step)) for step in steps}
    raised = [step for step, factor in factors.items() if factor > 1]
    if raised:
        worst = max(raised, key=factors.__getitem__)
        logger.info(
            f"compensate: {len(raised)} of {len(steps)} steps have fewer than {_ROWS_PER_INPUT} rows per input and "
            f"stay closer to the cut weights ({worst.names[0]}: {samples.num_rows(worst)} rows for {worst.num_inputs} "
            "inputs); more samples would fit them better"
        )
    return {step: ridge * factor for step, factor in factors.items()}


def _normal_equations(
    pruned: PreTrainedModel, samples: FitSamples, step: Step, targets: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """X'X (I + 1, I + 1) and X'E (I + 1, O), float64, the last input being the constant 1.

    Raises:
        PruningError: They are not finite.
    """
    device, size = targets[0].device, step.num_inputs + 1
    gram = torch.zeros(size, size, dtype=torch.float64, device=device)
    cross = torch.zeros(size, step.num_outputs, dtype=torch.float64, device=device)
    read = (step.names[0], True)
    for (inputs, chosen, weights), target in zip(samples.batches(), targets, strict=True):
        rows_of = partial(chosen_rows, chosen=chosen)
        found = values_at(pruned, inputs, dict.fromkeys((read, *step.probes), rows_of))
        present = torch.cat([found[probe] for probe in step.probes], dim=-1)
        x = nn.functional.pad(found[read].double(), (0, 1), value=1.0)
        weighted = x * weights[chosen][:, None] if step.per_token else x
        gram += weighted.T @ x
        cross += weighted.T @ (target.double() - present.double())
    if not (gram.isfinite().all() and cross.isfinite().all()):
        raise PruningError(
            f"Activations around {step.names[0]!r} are not finite, in the teacher or in the pruned model, so that "
            "nothing can be fitted. A damaged input, damaged weights or an overflow in half precision. Check the "
            "inputs and both models, in float32."
        )
    return gram, cross


def _apply(pruned: PreTrainedModel, step: Step, gram: Tensor, cross: Tensor, ridge: float) -> None:
    """Solve for D and add it to the weights and biases of the step."""
    scale = gram.diagonal()[:-1].mean()
    if scale == 0:
        return  # all inputs are zero: nothing to predict from
    gram.diagonal()[:-1].add_(ridge * scale)
    start = 0
    for name in step.names:
        linear = pruned.get_submodule(name)
        size = len(gram) - (linear.bias is None)
        columns = cross[:size, start : start + linear.out_features]
        update = torch.linalg.solve(gram[:size, :size], columns)
        linear.weight.add_(update[: step.num_inputs].T.to(linear.weight.dtype))
        if linear.bias is not None:
            linear.bias.add_(update[-1].to(linear.bias.dtype))
        start += linear.out_features


def _check_pruned(
    pruned: PreTrainedModel, teacher: PreTrainedModel, architecture: Architecture, plan: PruningPlan, group: list[int]
) -> None:
    """Refuse another model than the cut of `teacher` by `plan` for `group`, as it left `prune`."""
    found = architecture_of(pruned).widths(pruned.config)
    expected = replace(plan.widths_after, labels=num_labels_of(group, teacher.config.num_labels))
    if found != expected or architecture_of(pruned).model_type != architecture.model_type:
        raise PruningError(
            f"The pruned model should have {expected}, as plan and class group say, got {found}. Its weights would be "
            "fitted to other units. Pass what `prune` gave for this plan and class group."
        )
    labels = [pruned.config.id2label[label] for label in range(found.labels)]
    if labels != label_names(teacher.config, group):
        raise PruningError(
            f"The pruned model answers with {labels}, the class group {group} with {label_names(teacher.config, group)}"
            ". It would be fitted to the answers for other classes. Pass the class group of the cut."
        )
    state = pruned.state_dict()
    for name, cut in cut_tensors(teacher, architecture, plan, group):
        own = state[name]
        if not torch.allclose(own, cut.to(own.device, own.dtype), rtol=1e-2, atol=1e-5, equal_nan=True):
            raise PruningError(
                f"{name!r} of the pruned model is not what the plan cuts from this teacher: another plan or teacher, "
                "or the model was trained or compensated since. Its weights would be fitted to other units. Pass what "
                "`prune` gave for this plan and class group."
            )
