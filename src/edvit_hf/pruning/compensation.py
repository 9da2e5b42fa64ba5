# SPDX-License-Identifier: Apache-2.0
"""Compensation: fold the least-squares prediction of what was cut off into the weights that stay.

Shape letters: n inputs, B of a batch, T tokens, R fitted rows (tokens; after pooling: inputs), I inputs and O outputs
of the Linears of one step.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from edvit_hf.errors import PruningError
from edvit_hf.pruning.axes import Architecture, architecture_of
from edvit_hf.pruning.compensation_steps import Step, trace, values_at
from edvit_hf.pruning.compensation_targets import Samples, Targets, choose_tokens, chosen_rows
from edvit_hf.pruning.inputs import AnyInputs, check_readable, named_inputs, num_rows, take
from edvit_hf.pruning.modes import eval_mode
from edvit_hf.pruning.plan import PruningPlan, check_plan_fits
from edvit_hf.pruning.surgery import cut_tensors, label_names
from edvit_hf.tasks import check_class_group, num_labels_of

logger = logging.getLogger(__name__)

_ROWS_PER_INPUT = 2  # fewer: the fit follows the noise, and the ridge is raised


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
        inputs: Some hundred training inputs, at least two, (n, 3, H, W) or by name; best half from the group, half
            from outside, and twice as many as residual channels stay.
        batch_size: Inputs per forward; bounds the memory, beside at most 1 GiB of the teacher's answers (or those of
            one step where they are more).
        ridge: Pull towards the cut weights, relative to the mean square of the inputs; above 0.
        progress: Show a progress bar.

    Raises:
        PruningError: Models, plan and group do not belong together, or `pruned` has been changed since the cut; one
            input alone, or inputs that the models cannot read; a bad `ridge` or `batch_size`; activations that are
            not finite. All but the last leave `pruned` unchanged.

    Source: the least-squares reconstruction of pruned layers is old (ThiNet, arXiv 1707.06342; He et al., arXiv
        1707.06168); SparseGPT (arXiv 2301.00774) made it common for transformers.
    Differs: whole widths of a transformer at once, residual channels included; errors of earlier layers are fed back
        through the stream; "other" and the class group are targets of their own.
    """
    architecture = architecture_of(teacher)
    check_plan_fits(plan, architecture, teacher.config)
    labels = teacher.config.num_labels
    group = check_class_group(range(labels) if class_group is None else class_group, labels, PruningError)
    _check_values(ridge, batch_size)
    _check_pruned(pruned, teacher, architecture, plan, group)
    named = named_inputs(pruned, architecture, inputs)
    _check_count(num_rows(named))
    start = time.perf_counter()
    with torch.no_grad(), eval_mode(pruned, teacher):
        check_readable(pruned, architecture, named)
        steps, num_tokens = trace(pruned, architecture, take(named, slice(0, 2)))
        samples = choose_tokens(named, architecture, num_tokens, batch_size)
        _fit(pruned, Targets(teacher, architecture, plan, group), samples, _ridges(samples, steps, ridge), progress)
    logger.info("compensate: %d steps on %d inputs in %.1f s", len(steps), num_rows(named), time.perf_counter() - start)


def _fit(
    pruned: PreTrainedModel, targets: Targets, samples: Samples, ridges: dict[Step, float], progress: bool
) -> None:
    """One step after the other, each with its ridge."""
    with tqdm(total=len(ridges), desc="compensating", unit="step", disable=None if progress else True) as bar:
        for window in targets.windows(samples, list(ridges)):
            collected = targets.collect(samples, window)
            for step in window:
                _apply(pruned, step, *_normal_equations(pruned, samples, step, collected.pop(step)), ridges[step])
                bar.update()


def _ridges(samples: Samples, steps: Sequence[Step], ridge: float) -> dict[Step, float]:
    """The ridge of every step, raised where rows are few."""
    factors = {step: max(1.0, _ROWS_PER_INPUT * step.num_inputs / samples.num_rows(step)) for step in steps}
    raised = [step for step, factor in factors.items() if factor > 1]
    if raised:
        worst = max(raised, key=factors.__getitem__)
        logger.info(
            "compensate: %d of %d steps have fewer than %d rows per input and stay closer to the cut weights (%s: %d "
            "rows for %d inputs); more samples would fit them better",
            len(raised), len(steps), _ROWS_PER_INPUT, worst.names[0], samples.num_rows(worst), worst.num_inputs,
        )  # fmt: skip
    return {step: ridge * factor for step, factor in factors.items()}


def _normal_equations(
    pruned: PreTrainedModel, samples: Samples, step: Step, targets: list[Tensor]
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


def _check_values(ridge: float, batch_size: int) -> None:
    if not (0 < ridge < math.inf):
        raise PruningError(
            f"`ridge` must be above 0, got {ridge!r}. Without it inputs that hang together leave the weights "
            "undetermined. Leave it out when in doubt."
        )
    if batch_size < 1:
        raise PruningError(
            f"`batch_size` must be at least 1, got {batch_size}. It counts inputs per forward; raise it."
        )


def _check_count(num_inputs: int) -> None:
    if num_inputs < 2:
        raise PruningError(
            f"Compensating needs at least 2 inputs, got {num_inputs}. One alone says nothing about how units go "
            "together. Pass some hundred training inputs, or do not compensate."
        )
