# SPDX-License-Identifier: Apache-2.0
"""Scores that say how much the teacher's answer on a class group depends on each unit."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from edvit_hf.errors import PruningError
from edvit_hf.pruning.axes import Architecture, Axis, Widths, architecture_of
from edvit_hf.pruning.config import ImportanceMethod
from edvit_hf.pruning.distribution import check_class_group
from edvit_hf.pruning.exact_kl import ExactKL
from edvit_hf.pruning.fisher import gate_scores

logger = logging.getLogger(__name__)

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class UnitScores:
    """Importance of every unit; larger means keep.

    Attributes:
        residual: (d,) float64.
        heads: (layers, heads) float64.
        ffn: (layers, FFN units) float64.
        method: How they were made. Units: nats per sample, except "magnitude" (L2 norm) and "random" (none).
        num_samples: Images that were scored.
    """

    residual: np.ndarray
    heads: np.ndarray
    ffn: np.ndarray
    method: str
    num_samples: int

    def __post_init__(self) -> None:
        for name, scores, ndim in (
            ("residual", self.residual, 1),
            ("heads", self.heads, 2),
            ("ffn", self.ffn, 2),
        ):
            if scores.ndim != ndim or scores.size == 0:
                raise PruningError(f"`{name}` scores must be a non-empty {ndim}-dimensional array, got {scores.shape}.")
            if not np.isfinite(scores).all():
                raise PruningError(
                    f"{np.count_nonzero(~np.isfinite(scores))} of {scores.size} {name} scores "
                    f"({self.method}) are not finite, so the cut would be arbitrary. The teacher's answers "
                    f"overflow or its weights are damaged; check it on the same images, in float32."
                )


def unit_scores(
    model: PreTrainedModel,
    pixel_values: Tensor | np.ndarray,
    class_group: Sequence[int],
    *,
    method: ImportanceMethod,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> UnitScores:
    """Score every residual channel, attention head and FFN unit of a teacher for one class group.

    The scored quantity is KL(p || p without the unit), one unit removed at a time from the original teacher,
    of the distribution over the group's classes and the pooled "other" class, averaged over the images.

    - "kl": exact, a forward per unit and image (`ExactKL`).
    - "fisher": second-order approximation at once for all units (`gate_scores`).
    - "linear": exact KL of first-order logits, at once for all units, one backward per label (`gate_scores`).
    - "hybrid": exact for residual channels and heads, Fisher for FFN units: exact where units are few or
      their removal is no small step, cheap where there are many. benchmarks/importance_agreement.py measures
      the agreement.
    - "magnitude": L2 norm of all the weights of the unit. "random": uniform numbers from `seed`.

    Args:
        model: Stock teacher; its weights and mode are left unchanged. Dropout is off while scoring.
        pixel_values: (n, 3, H, W) normalised training images of the group's classes. Groups share no
            forwards, because each is scored on its own images.
        class_group: The teacher's labels that the sub-model keeps; all of them: there is no "other".
        method: See above.
        batch_size: Rows per forward, one row being one image with one mask; bounds the memory.
        seed: Of "random". The other methods draw nothing.
        progress: Show progress bars.

    Raises:
        PruningError: No images, scores that are not finite, a bad class group, an unknown method or
            architecture.

    Source: ED-ViT, arXiv 2410.11650 (KL criterion named, formula not given); formula as in UP-ViTs, arXiv
    2111.15127.
    Differs: whole heads instead of dimensions inside heads, because a sub-model keeps heads of the teacher's
    size; mean instead of sum; pooled "other". "fisher", "linear" and "hybrid" are this library's.
    """
    if method not in get_args(ImportanceMethod):
        raise PruningError(f"`method` must be one of {', '.join(get_args(ImportanceMethod))}, got {method!r}.")
    if batch_size < 1:
        raise PruningError(f"`batch_size` must be at least 1, got {batch_size}. It counts rows per forward.")
    architecture = architecture_of(model)
    widths = architecture.widths(model.config)
    group = check_class_group(class_group, widths.labels)
    inputs = _as_inputs(model, pixel_values)
    start = time.perf_counter()
    with _frozen_eval(model):
        arrays = _scores(model, architecture, widths, inputs, group, method, batch_size, seed, progress)
    seconds = time.perf_counter() - start
    num_units = sum(array.size for array in arrays)
    logger.info("importance: %s of %d units on %d images in %.1f s", method, num_units, len(inputs), seconds)
    return UnitScores(*arrays, method=method, num_samples=len(inputs))


def _scores(
    model: PreTrainedModel,
    architecture: Architecture,
    widths: Widths,
    inputs: Tensor,
    group: list[int],
    method: ImportanceMethod,
    batch_size: int,
    seed: int,
    progress: bool,
) -> Arrays:
    if method == "random":
        return _random(widths, seed)
    if method == "magnitude":
        return _magnitude(model, architecture, widths)
    if method in ("fisher", "linear"):
        cheap = gate_scores(
            model, architecture, widths, inputs, group, kind=method, batch_size=batch_size, progress=progress
        )
        return cheap.residual, cheap.heads, cheap.ffn
    exact = ExactKL(model, architecture, inputs, group, batch_size=batch_size, progress=progress)
    if method == "kl":
        return exact.residual(widths), exact.heads(widths), exact.ffn(widths)
    cheap = gate_scores(
        model, architecture, widths, inputs, group, kind="fisher", batch_size=batch_size, progress=progress
    )
    return exact.residual(widths), exact.heads(widths), cheap.ffn


def _random(widths: Widths, seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    shapes = ((widths.residual,), (widths.layers, widths.heads), (widths.layers, widths.ffn))
    residual, heads, ffn = (generator.random(shape) for shape in shapes)
    return residual, heads, ffn


def _magnitude(model: PreTrainedModel, architecture: Architecture, widths: Widths) -> Arrays:
    """L2 norm over every weight that would go with the unit, read off the axis table."""
    residual = np.zeros(widths.residual)
    attention, ffn = np.zeros((widths.layers, widths.attention)), np.zeros((widths.layers, widths.ffn))
    for name, parameter in model.named_parameters():
        axes, layer = architecture.locate(name)
        squares = parameter.detach().double().square().cpu()
        for dim, axis in enumerate(axes):
            totals: dict[Axis, np.ndarray] = {"residual": residual}
            if layer is not None:
                totals |= {"attention": attention[layer], "ffn": ffn[layer]}
            if axis in totals:
                totals[axis] += squares.movedim(dim, 0).reshape(squares.shape[dim], -1).sum(dim=1).numpy()
    heads = attention.reshape(widths.layers, widths.heads, -1).sum(axis=-1)
    return np.sqrt(residual), np.sqrt(heads), np.sqrt(ffn)


def _as_inputs(model: PreTrainedModel, pixel_values: Tensor | np.ndarray) -> Tensor:
    inputs = torch.as_tensor(pixel_values)
    if inputs.ndim != 4 or len(inputs) == 0:
        raise PruningError(
            f"Scoring needs images of shape (n, 3, H, W) with n of at least 1, got {tuple(inputs.shape)}. "
            f"Without images every score would be zero and the cut arbitrary. Pass training images of the "
            f"group's classes."
        )
    return inputs.to(device=model.device, dtype=model.dtype)


@contextmanager
def _frozen_eval(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode inside the block, every module's own mode after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
