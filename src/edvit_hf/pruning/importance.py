# SPDX-License-Identifier: Apache-2.0
"""Scores that say how much the teacher's answer on a class group depends on each unit.

The KL methods score KL(p || p without the unit), one unit removed at a time from the original teacher, of the
distribution over the group's classes and the pooled "other" class, averaged over the samples:

- "kl": exact, a forward per unit and sample (`exact_kl.ExactKL`): the reference.
- "fisher": second-order approximation, at once for all units (`fisher.gate_scores`): the default.
- "linear": exact KL of first-order logits, at once for all units, one backward per label (`fisher.gate_scores`).
- "hybrid": exact for residual channels, heads and pooled units, Fisher for attention dimensions and FFN units: exact
  where units are few or their removal is no small step, cheap where there are many. A forward per channel and head
  still takes hours at the size of ViT-Base.

benchmarks/pruning/importance_agreement.py measures how well they agree, importance_distilled.py beside it what is left
of the differences after retraining.

The others know no distribution:

- "taylor": first-order change of -log p of the teacher's own answer (`fisher.gate_scores`).
- "apoz", "hsic": statistics of activations (`activations`).
- "magnitude": L2 norm of all the weights of the unit. "random": uniform numbers from a seed.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from edvit_hf.errors import PruningError
from edvit_hf.pruning.activations import apoz_scores, hsic_scores
from edvit_hf.pruning.axes import Architecture, Widths, architecture_of
from edvit_hf.pruning.config import ImportanceMethod
from edvit_hf.pruning.exact_kl import ExactKL
from edvit_hf.pruning.fisher import GradientMethod, gate_scores
from edvit_hf.pruning.inputs import AnyInputs, check_readable, named_inputs, num_rows
from edvit_hf.pruning.modes import eval_mode, frozen
from edvit_hf.pruning.scores import UnitScores, check_informative, score_shapes
from edvit_hf.tasks import check_class_group

__all__ = ["UnitScores", "unit_scores"]

logger = logging.getLogger(__name__)

Scores = dict[str, np.ndarray]  # axis -> scores, as `score_shapes` says


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What every method is given."""

    model: PreTrainedModel
    architecture: Architecture
    widths: Widths
    inputs: Mapping[str, Tensor]
    group: list[int]
    batch_size: int
    seed: int
    progress: bool


def unit_scores(
    model: PreTrainedModel,
    inputs: AnyInputs,
    class_group: Sequence[int],
    *,
    method: ImportanceMethod,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> UnitScores:
    """Score every unit of a teacher for one class group: residual channels, heads, attention dimensions, FFN, pooled.

    Args:
        model: Stock teacher; its weights and mode are left unchanged. Dropout is off while scoring.
        inputs: n training samples of the group's classes: (n, 3, H, W) pixel values, or arrays by the name of the
            forward's arguments (text: input_ids and attention_mask). Groups share no forwards, because each is
            scored on its own samples.
        class_group: The teacher's labels that the sub-model keeps; all of them: there is no "other".
        method: See the top of this module.
        batch_size: Rows per forward, one row being one sample with one mask; bounds the memory. Gradient methods take
            fewer where the activations that they keep would exceed 2 GiB.
        seed: Of "random" and of the shuffling in "hsic", at least 0. The other methods draw nothing.
        progress: Show progress bars.

    Raises:
        PruningError: No samples, or samples that the model cannot read; scores or logits that are not finite; scores
            that are all alike; a bad class group or seed; an unknown method or architecture; gradients asked for in
            inference mode.

    Source: ED-ViT, arXiv 2410.11650 (KL criterion named, formula not given); formula as in UP-ViTs, arXiv
    2111.15127.
    Differs: whole heads beside the dimensions inside them; mean instead of sum; pooled "other". "fisher", "linear" and
    "hybrid" are this library's.
    """
    _check(method, batch_size, seed)
    _check_gradients(model, method)
    architecture = architecture_of(model)
    widths = architecture.widths(model.config)
    task = _Task(
        model=model,
        architecture=architecture,
        widths=widths,
        inputs=named_inputs(model, architecture, inputs),
        group=check_class_group(class_group, widths.labels, PruningError),
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    start = time.perf_counter()
    with eval_mode(model), frozen(model):
        check_readable(model, architecture, task.inputs)
        scores = _METHODS[method](task)
    num_samples, num_units = num_rows(task.inputs), sum(array.size for array in scores.values())
    seconds = time.perf_counter() - start
    logger.info("importance: %s of %d units on %d samples in %.1f s", method, num_units, num_samples, seconds)
    result = UnitScores(
        residual=scores["residual"],
        heads=scores["heads"],
        attention=scores["attention"],
        ffn=scores["ffn"],
        pooled=scores.get("pooled"),
        method=method,
        num_samples=num_samples,
    )
    check_informative(result)
    return result


def _check(method: str, batch_size: int, seed: int) -> None:
    if method not in get_args(ImportanceMethod):
        raise PruningError(
            f"`method` must be one of {', '.join(get_args(ImportanceMethod))}, got {method!r}. Nothing was scored. "
            'Take "fisher" when in doubt.'
        )
    if batch_size < 1:
        raise PruningError(
            f"`batch_size` must be at least 1, got {batch_size}. It counts rows per forward; raise it as far as the "
            "memory allows."
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise PruningError(
            f"`seed` must be a whole number of at least 0, got {seed!r}. Random generators take no other; change it."
        )


def _check_gradients(model: PreTrainedModel, method: str) -> None:
    """Refuse what would end in an error of autograd, deep inside."""
    is_inference = torch.is_inference_mode_enabled() or any(p.is_inference() for p in model.parameters())
    if is_inference and method in ("hybrid", *get_args(GradientMethod)):
        raise PruningError(
            f"{method!r} scores need gradients, but torch.inference_mode() is on, or the model was made under it. No "
            "gradient can flow there. Score outside of it (torch.no_grad() does no harm), with a model made outside."
        )


def _exact(task: _Task) -> ExactKL:
    return ExactKL(
        task.model, task.architecture, task.widths, task.inputs, task.group,
        batch_size=task.batch_size, progress=task.progress,
    )  # fmt: skip


def _kl(task: _Task) -> Scores:
    exact = _exact(task)
    return _few(exact) | {"attention": exact.attention(), "ffn": exact.ffn()}


def _hybrid(task: _Task) -> Scores:
    return _gradient("fisher")(task) | _few(_exact(task))


def _few(exact: ExactKL) -> Scores:
    """The axes with few units."""
    scores, pooled = {"residual": exact.residual(), "heads": exact.heads()}, exact.pooled()
    return scores if pooled is None else scores | {"pooled": pooled}


def _gradient(method: GradientMethod) -> Callable[[_Task], Scores]:
    def scores(task: _Task) -> Scores:
        return gate_scores(
            task.model, task.architecture, task.widths, task.inputs, task.group,
            method=method, batch_size=task.batch_size, progress=task.progress,
        )  # fmt: skip

    return scores


def _apoz(task: _Task) -> Scores:
    return apoz_scores(
        task.model, task.architecture, task.widths, task.inputs, batch_size=task.batch_size, progress=task.progress
    )


def _hsic(task: _Task) -> Scores:
    return hsic_scores(
        task.model, task.architecture, task.widths, task.inputs, task.group,
        batch_size=task.batch_size, seed=task.seed, progress=task.progress,
    )  # fmt: skip


def _random(task: _Task) -> Scores:
    generator = np.random.default_rng(task.seed)
    return {axis: generator.random(shape) for axis, shape in score_shapes(task.architecture, task.widths).items()}


def _magnitude(task: _Task) -> Scores:
    """L2 norm over every weight that would go with the unit, read off the axis table."""
    widths = task.widths
    squares = {axis: np.zeros(shape) for axis, shape in score_shapes(task.architecture, widths).items()}
    for name, parameter in task.model.named_parameters():
        axes, layer = task.architecture.locate(name)
        values = parameter.detach().double().square().cpu()
        for dim, axis in enumerate(axes):
            axis_name, _, times = axis.partition("*")
            if axis_name in squares:
                of_entries = values.movedim(dim, 0).flatten(1).sum(dim=1) if values.ndim > 1 else values
                of_units = of_entries.unflatten(0, (int(times or 1), -1)).sum(dim=0).numpy()
                np.atleast_2d(squares[axis_name])[0 if axis_name in ("residual", "pooled") else layer] += of_units
    squares["heads"] = squares["attention"].reshape(widths.layers, widths.heads, -1).sum(axis=-1)
    return {axis: np.sqrt(array) for axis, array in squares.items()}


_METHODS: dict[ImportanceMethod, Callable[[_Task], Scores]] = {
    "kl": _kl,
    "fisher": _gradient("fisher"),
    "linear": _gradient("linear"),
    "hybrid": _hybrid,
    "taylor": _gradient("taylor"),
    "magnitude": _magnitude,
    "apoz": _apoz,
    "hsic": _hsic,
    "random": _random,
}
