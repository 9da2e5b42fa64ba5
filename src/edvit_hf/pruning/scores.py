# SPDX-License-Identifier: Apache-2.0
"""What every importance method returns: one number per unit, checked."""

import logging
from dataclasses import dataclass

import numpy as np

from edvit_hf.errors import PruningError
from edvit_hf.pruning.axes import Architecture, Widths

logger = logging.getLogger(__name__)

_NDIM = {"residual": 1, "heads": 2, "attention": 2, "ffn": 2, "pooled": 1}


@dataclass(frozen=True, eq=False)
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
    pooled: np.ndarray | None
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


def score_shapes(architecture: Architecture, widths: Widths) -> dict[str, tuple[int, ...]]:
    """Axis -> shape of its scores, in the order in which flat arrays hold them."""
    shapes: dict[str, tuple[int, ...]] = {
        "residual": (widths.residual,),
        "heads": (widths.layers, widths.heads),
        "attention": (widths.layers, widths.attention),
        "ffn": (widths.layers, widths.ffn),
    }
    return shapes | {"pooled": (widths.residual,)} if architecture.has_pooler else shapes


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
        "importance: all units have the same score (%s, %d samples) in: %s. What stays there is arbitrary: the lowest "
        "indices. %s",
        scores.method, scores.num_samples, "; ".join(alike), remedy,
    )  # fmt: skip
