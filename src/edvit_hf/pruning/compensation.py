# SPDX-License-Identifier: Apache-2.0
"""Compensation: fold the least-squares prediction of what was cut off into the weights that stay.

Shape letters: n inputs, T tokens, R fitted rows (tokens; after pooling: inputs), I inputs and O outputs of the
Linears of one step.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from edvit_hf.errors import PruningError
from edvit_hf.pruning.axes import Architecture, architecture_of
from edvit_hf.pruning.distribution import check_class_group
from edvit_hf.pruning.inputs import AnyInputs, Inputs, named_inputs, num_rows, take
from edvit_hf.pruning.plan import PruningPlan, check_plan_fits

logger = logging.getLogger(__name__)

_MAX_ROWS = 16_384  # tokens that are fitted on; of longer inputs some, drawn once
_TARGET_BYTES = 2**30  # of the teacher's answers held at a time; more steps take more passes of the teacher
_FEATURE_SHARE = 0.3  # of the total weight for the tokens that the classifier reads, of which there are few
_ROWS_PER_INPUT = 2  # fewer: the fit follows the noise
_SEED = 0

Probe = tuple[str, bool]  # a module, and whether its input is read (else its output)


@dataclass(frozen=True)
class _Step:
    """Linears that read the same input, fitted together, in the order of the forward.

    Attributes:
        names: Their paths, the same in the pruned model and the teacher.
        probes: Where the fit looks: at their outputs, or at the residual stream that the only one writes into.
        num_inputs: I.
        num_outputs: O, of all of them.
        per_token: Whether their input is (B, T, I); else (B, I).
    """

    names: tuple[str, ...]
    probes: tuple[Probe, ...]
    num_inputs: int
    num_outputs: int
    per_token: bool


@dataclass(frozen=True)
class _Samples:
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

    def num_rows(self, step: _Step) -> int:
        """R of a step."""
        return int(self.chosen.sum()) if step.per_token else len(self.chosen)


@dataclass(frozen=True)
class _Targets:
    """Reads the teacher's answers, restricted to what the pruned model still has."""

    teacher: PreTrainedModel
    architecture: Architecture
    plan: PruningPlan
    group: list[int]

    def collect(self, samples: _Samples, steps: Sequence[_Step]) -> dict[_Step, list[Tensor]]:
        """Step -> one (R of the batch, O) tensor per batch; one pass of the teacher."""
        targets: dict[_Step, list[Tensor]] = {step: [] for step in steps}
        for inputs, chosen, _ in samples.batches():
            found = _values(self.teacher, inputs, {probe for step in steps for probe in step.probes})
            for step in steps:
                parts = [
                    self._restrict(_rows(found[probe], chosen), name)
                    for name, probe in zip(step.names, step.probes, strict=True)
                ]
                targets[step].append(torch.cat(parts, dim=-1))
        return targets

    def _restrict(self, values: Tensor, name: str) -> Tensor:
        """(R, all outputs) of the teacher's Linear `name`, or of its stream -> (R, the kept ones)."""
        (axis, _), layer = self.architecture.locate(f"{name}.weight")
        if axis == "label":
            others = [label for label in range(values.shape[-1]) if label not in set(self.group)]
            kept = values[:, self.group]
            return torch.cat([kept, values[:, others].logsumexp(-1, keepdim=True)], dim=-1) if others else kept
        indices = _kept(axis, layer, self.plan)
        if indices is None:
            return values
        values = values[:, torch.tensor(indices, device=values.device)]
        if layer is not None and name == self.architecture.attention_query.format(layer=layer):
            # the pruned model divides by the root of its own head size
            return values * math.sqrt(self.plan.widths_after.head_dim / self.plan.widths_before.head_dim)
        return values


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
    times the number of rows, and a bias takes part without penalty. E is what is missing:

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
        inputs: A few hundred training inputs, (n, 3, H, W) or by name; best half from the group, half from outside.
        batch_size: Inputs per forward; bounds the memory, beside at most 1 GiB of the teacher's answers.
        ridge: Pull towards the cut weights, relative to the mean square of the inputs; above 0.
        progress: Show a progress bar.

    Raises:
        PruningError: Models, plan and group do not belong together; fewer than two rows (tokens; for the head:
            inputs) for every input of a Linear; activations that are not finite; a bad `ridge` or `batch_size`. The
            first three leave `pruned` unchanged.

    Source: the least-squares reconstruction of pruned layers is old (ThiNet, arXiv 1707.06342; He et al., arXiv
        1707.06168); SparseGPT (arXiv 2301.00774) made it common for transformers.
    Differs: whole widths of a transformer at once, residual channels included; errors of earlier layers are fed back
        through the stream; "other" and the class group are targets of their own.
    """
    architecture = architecture_of(teacher)
    check_plan_fits(plan, architecture, teacher.config)
    group = check_class_group(range(teacher.config.num_labels) if class_group is None else class_group,
                              teacher.config.num_labels)  # fmt: skip
    _check_pruned(pruned, architecture, plan, len(group) + (len(group) < teacher.config.num_labels))
    _check_values(ridge, batch_size)
    named = named_inputs(pruned, architecture, inputs)
    start = time.perf_counter()
    with torch.no_grad(), _in_eval_mode(pruned, teacher):
        steps, num_tokens = _trace(pruned, architecture, take(named, slice(0, 2)))
        samples = _choose_tokens(named, architecture, num_tokens, batch_size)
        _check_rows(samples, steps)
        targets = _Targets(teacher, architecture, plan, group)
        with tqdm(total=len(steps), desc="compensating", unit="step", disable=None if progress else True) as bar:
            for window in _windows(samples, steps):
                collected = targets.collect(samples, window)
                for step in window:
                    _apply(pruned, step, *_normal_equations(pruned, samples, step, collected.pop(step)), ridge)
                    bar.update()
    logger.info("compensate: %d steps on %d inputs in %.1f s", len(steps), num_rows(named), time.perf_counter() - start)


def _trace(model: PreTrainedModel, architecture: Architecture, inputs: Inputs) -> tuple[list[_Step], int]:
    """The steps in the order of the forward, and T."""
    modules = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.LayerNorm)}
    events: list[tuple[str, Tensor]] = []  # holding the inputs keeps `is` below meaningful

    def see(name: str, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        events.append((name, args[0]))

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(partial(see, name)).remove)
        model(**inputs)
    is_linear = {name: isinstance(module, nn.Linear) for name, module in modules.items()}
    starts = [
        i for i, (name, value) in enumerate(events)
        if is_linear[name] and not (i and is_linear[events[i - 1][0]] and events[i - 1][1] is value)
    ]  # fmt: skip
    steps = []
    for start, end in pairwise([*starts, len(events)]):
        names = tuple(name for name, _ in events[start:end] if is_linear[name])
        probes: tuple[Probe, ...] = tuple((name, False) for name in names)
        norm = next((name for name, _ in events[start:end] if not is_linear[name]), None)
        (axis, _), _layer = architecture.locate(f"{names[0]}.weight")
        if axis == "residual" and norm is not None and _is_added(model, inputs, names[0], norm):
            probes = ((norm, True),)
        linears = [model.get_submodule(name) for name in names]
        value = events[start][1]
        steps.append(_Step(names, probes, value.shape[-1], sum(m.out_features for m in linears), value.ndim == 3))
    return steps, next(value.shape[1] for _, value in events if value.ndim == 3)


def _is_added(model: PreTrainedModel, inputs: Inputs, name: str, norm: str) -> bool:
    """Whether the output of Linear `name` arrives in the input of `norm` as a plain summand (no layer scale)."""
    before = _values(model, inputs, {(norm, True)})[norm, True]
    handle = model.get_submodule(name).register_forward_hook(lambda _module, _args, output: output + 1)
    try:
        after = _values(model, inputs, {(norm, True)})[norm, True]
    finally:
        handle.remove()
    return before.shape == after.shape and bool(((after - before - 1).abs() < 1e-2).all())


def _choose_tokens(inputs: Inputs, architecture: Architecture, num_tokens: int, batch_size: int) -> _Samples:
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
    return _Samples(inputs, chosen.to(device), weights.to(device), batch_size)


def _windows(samples: _Samples, steps: Sequence[_Step]) -> Iterator[list[_Step]]:
    """Consecutive steps whose targets fit into `_TARGET_BYTES` together; at least one at a time."""
    window: list[_Step] = []
    held = 0
    for step in steps:
        size = samples.num_rows(step) * step.num_outputs * 4
        if window and held + size > _TARGET_BYTES:
            yield window
            window, held = [], 0
        window.append(step)
        held += size
    yield window


class _AllSeen(Exception):  # noqa: N818 - ends a forward, no error
    """Every probe has its value."""


def _values(model: PreTrainedModel, inputs: Inputs, probes: set[Probe]) -> dict[Probe, Tensor]:
    """What one forward shows at the probes; it ends with the last of them."""
    found: dict[Probe, Tensor] = {}

    def see(probe: Probe, value: Tensor) -> None:
        found[probe] = value
        if len(found) == len(probes):
            raise _AllSeen

    def see_input(probe: Probe, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        see(probe, args[0])

    def see_output(probe: Probe, _module: nn.Module, _args: Any, output: Tensor) -> None:
        see(probe, output)

    with ExitStack() as stack:
        for probe in probes:
            module = model.get_submodule(probe[0])
            if probe[1]:
                stack.callback(module.register_forward_pre_hook(partial(see_input, probe)).remove)
            else:
                stack.callback(module.register_forward_hook(partial(see_output, probe)).remove)
        with suppress(_AllSeen):
            model(**inputs)
    return found


def _rows(values: Tensor, chosen: Tensor) -> Tensor:
    """(B, T, O) -> the chosen tokens, (R, O); (B, O) stays."""
    return values[chosen] if values.ndim == 3 else values


def _normal_equations(
    pruned: PreTrainedModel, samples: _Samples, step: _Step, targets: list[Tensor]
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
        found = _values(pruned, inputs, {read, *step.probes})
        present = torch.cat([_rows(found[probe], chosen) for probe in step.probes], dim=-1)
        x = nn.functional.pad(_rows(found[read], chosen).double(), (0, 1), value=1.0)
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


def _apply(pruned: PreTrainedModel, step: _Step, gram: Tensor, cross: Tensor, ridge: float) -> None:
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


def _kept(axis: str, layer: int | None, plan: PruningPlan) -> list[int] | None:
    """Outputs of a Linear that the cut left; None: all."""
    if layer is not None and axis in ("attention", "ffn"):
        return (plan.kept_attention if axis == "attention" else plan.kept_ffn)[layer]
    return {"residual": plan.kept_residual, "pooled": plan.kept_pooled}.get(axis)


def _check_pruned(pruned: PreTrainedModel, architecture: Architecture, plan: PruningPlan, num_labels: int) -> None:
    found = architecture_of(pruned).widths(pruned.config)
    expected = replace(plan.widths_after, labels=num_labels)
    if found != expected or architecture_of(pruned).model_type != architecture.model_type:
        raise PruningError(
            f"The pruned model should have {expected}, as plan and class group say, got {found}. Its weights would be "
            "fitted to other units. Pass what `prune` gave for this plan and class group."
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


def _check_rows(samples: _Samples, steps: Sequence[_Step]) -> None:
    for step in steps:
        needed, found = _ROWS_PER_INPUT * step.num_inputs, samples.num_rows(step)
        if found < needed:
            unit = "tokens" if step.per_token else "samples"
            raise PruningError(
                f"Compensating {step.names[0]!r} needs at least {needed} {unit}, twice its inputs, got {found}. With "
                f"fewer the fit follows the noise. Pass more samples (recipe: `prune.compensation_samples`, at least "
                f"{math.ceil(needed * len(samples.chosen) / found)}), or do not compensate."
            )


@contextmanager
def _in_eval_mode(*models: nn.Module) -> Iterator[None]:
    """Eval mode inside the block, every module's own mode after it."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
