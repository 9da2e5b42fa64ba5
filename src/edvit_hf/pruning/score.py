# SPDX-License-Identifier: Apache-2.0
"""Scores that say how much the teacher's answer on a class group depends on each unit.

The KL methods score KL(p || p without the unit), one unit removed at a time from the original teacher, of the
distribution over the group's classes and the pooled "other" class, averaged over the samples:

- "kl": exact, a forward per unit and sample (`score_kl.ExactKL`): the reference.
- "fisher": second-order approximation, at once for all units (`score_kl.gradient_scores`): the default.
- "linear": exact KL of first-order logits, at once for all units, one backward per label (`score_kl.gradient_scores`).
- "hybrid": exact for residual channels, heads and pooled units, Fisher for attention dimensions and FFN units: exact
  where units are few or their removal is no small step, cheap where there are many. A forward per channel and head
  still takes hours at the size of ViT-Base.

benchmarks/pruning/importance_agreement.py measures how well they agree, importance_distilled.py beside it what is left
of the differences after retraining.

The others know no distribution:

- "taylor": first-order change of -log p of the teacher's own answer (`score_kl.gradient_scores`).
- "apoz", "hsic": statistics of activations (`score_activations`).
- "magnitude": L2 norm of all the weights of the unit. "random": uniform numbers from a seed.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np
import torch
from transformers import PreTrainedModel

from edvit_hf.errors import PruningError
from edvit_hf.pruning.config import ImportanceMethod
from edvit_hf.pruning.models import (
    AnyInputs,
    ScoringTask,
    architecture_of,
    check_readable,
    eval_mode,
    frozen,
    named_inputs,
    num_rows,
)
from edvit_hf.pruning.score_activations import apoz_scores, hsic_scores
from edvit_hf.pruning.score_kl import ExactKL, GradientMethod, gradient_scores
from edvit_hf.strict import whole_number
from edvit_hf.tasks import check_class_group

logger = logging.getLogger(__name__)

Scores = dict[str, np.ndarray]  # axis -> scores, as `unit_shapes` says


@dataclass(frozen=True, eq=False, kw_only=True)
class UnitScores:
    """Importance of every unit; larger means keep.

    Attributes:
        residual: (D,) float64.
        heads: (layers, H) float64, of whole heads.
        attention: (layers, A) float64, of the single dimensions inside heads, head after head.
        ffn: (layers, F) float64.
        pooled: (P,) float64; None without a pooler.
        method: How they were made. Units: nats per sample of the KL methods; of the others see `unit_scores`.
        num_samples: Inputs that were scored.
    """

    residual: np.ndarray
    heads: np.ndarray
    attention: np.ndarray
    ffn: np.ndarray
    pooled: np.ndarray | None = None
    method: str
    num_samples: int

    def __post_init__(self) -> None:
        for name, scores in self.by_axis().items():
            ndim = _NDIM[name]
            if scores.ndim != ndim or scores.size == 0:
                raise PruningError(f"`{name}` scores must be a non-empty {ndim}-dimensional array, got {scores.shape}.")
            if not np.isfinite(scores).all():
                raise PruningError(
                    f"{np.count_nonzero(~np.isfinite(scores))} of {scores.size} {name} scores "
                    f"({self.method}) are not finite, so the cut would be arbitrary. The teacher's answers "
                    f"overflow or its weights are damaged; check it on the same samples, in float32."
                )

    def by_axis(self) -> dict[str, np.ndarray]:
        """Axis -> its scores; "pooled" only where there is a pooler."""
        found = {"residual": self.residual, "heads": self.heads, "attention": self.attention, "ffn": self.ffn}
        return found if self.pooled is None else found | {"pooled": self.pooled}


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
            forward's arguments (text: input_ids and attention_mask). Groups share no forwards, because each is scored
            on its own samples.
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
    task = ScoringTask(
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
    result = UnitScores(**scores, method=method, num_samples=num_samples)
    check_informative(result)
    return result


def _check(method: str, batch_size: int, seed: int) -> None:
    if method not in get_args(ImportanceMethod):
        raise PruningError(
            f"`method` must be one of {', '.join(get_args(ImportanceMethod))}, got {method!r}. Nothing was scored. "
            'Take "fisher" when in doubt.'
        )
    whole_number("batch_size", batch_size, 1, "it counts rows per forward", PruningError)
    whole_number("seed", seed, 0, "random generators take no other", PruningError)


def _check_gradients(model: PreTrainedModel, method: str) -> None:
    """Refuse what would end in an error of autograd, deep inside."""
    is_inference = torch.is_inference_mode_enabled() or any(p.is_inference() for p in model.parameters())
    if is_inference and method in ("hybrid", *get_args(GradientMethod)):
        raise PruningError(
            f"{method!r} scores need gradients, but torch.inference_mode() is on, or the model was made under it. No "
            "gradient can flow there. Score outside of it (torch.no_grad() does no harm), with a model made outside."
        )


def _kl(task: ScoringTask) -> Scores:
    exact = ExactKL(task)
    return _few(exact) | {"attention": exact.attention(), "ffn": exact.ffn()}


def _hybrid(task: ScoringTask) -> Scores:
    return gradient_scores(task, "fisher") | _few(ExactKL(task))


def _few(exact: ExactKL) -> Scores:
    """Exact scores of the axes with few units: residual channels, heads, pooler outputs."""
    scores, pooled = {"residual": exact.residual(), "heads": exact.heads()}, exact.pooled()
    return scores if pooled is None else scores | {"pooled": pooled}


def _random(task: ScoringTask) -> Scores:
    generator = np.random.default_rng(task.seed)
    return {axis: generator.random(shape) for axis, shape in task.architecture.unit_shapes(task.widths).items()}


def _magnitude(task: ScoringTask) -> Scores:
    """L2 norm over every weight that would go with the unit, read off the axis table."""
    widths = task.widths
    squares = {axis: np.zeros(shape) for axis, shape in task.architecture.unit_shapes(widths).items()}
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


_METHODS: dict[ImportanceMethod, Callable[[ScoringTask], Scores]] = {
    "kl": _kl,
    "fisher": partial(gradient_scores, method="fisher"),
    "linear": partial(gradient_scores, method="linear"),
    "hybrid": _hybrid,
    "taylor": partial(gradient_scores, method="taylor"),
    "magnitude": _magnitude,
    "apoz": apoz_scores,
    "hsic": hsic_scores,
    "random": _random,
}


_NDIM = {"residual": 1, "heads": 2, "attention": 2, "ffn": 2, "pooled": 1}


def check_informative(scores: UnitScores) -> None:
    """Say where all units of an axis, or of a layer of it, have one score: what stays there is arbitrary.

    Raises:
        PruningError: It is so everywhere.
    """
    alike: list[str] = []
    num_lists = 0
    for axis, found in scores.by_axis().items():
        per_layer = found if found.ndim == 2 else found[None]
        if per_layer.shape[1] == 1:
            continue  # a single unit has no rival
        num_lists += len(per_layer)
        layers = [layer for layer, row in enumerate(per_layer) if np.ptp(row) == 0]
        if layers:
            num_lists -= len(layers)
            alike.append(axis if len(layers) == len(per_layer) else f"{axis} of layers {layers}")
    if not alike:
        return
    remedy = (
        "Show other or more samples, check that the teacher's answer on this class group varies, or take another "
        "method (`magnitude` needs no answer)."
    )
    if num_lists == 0:
        raise PruningError(
            f"All units of every axis have the same score ({scores.method}, {scores.num_samples} samples), so the cut "
            f"would be arbitrary. {remedy}"
        )
    logger.warning(
        f"importance: all units have the same score ({scores.method}, {scores.num_samples} samples) in: "
        f"{'; '.join(alike)}. What stays there is arbitrary: the lowest indices. {remedy}"
    )
