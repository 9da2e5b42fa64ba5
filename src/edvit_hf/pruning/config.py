# SPDX-License-Identifier: Apache-2.0
"""The values of the pruning stage. Light: no torch."""

from dataclasses import dataclass
from typing import Literal, get_args

from edvit_hf.errors import PruningError

ImportanceMethod = Literal["kl", "fisher", "linear", "hybrid", "magnitude", "random"]


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """How the pruning stage chooses what stays.

    Attributes:
        keep_heads: Heads kept in every layer; residual channels and FFN units follow in the same ratio.
            "auto" leaves the number to the planner.
        importance: Score of a unit; see `edvit_hf.pruning.unit_scores`.
        samples_per_class: Training images per class of the group that are shown to the teacher while scoring.
            An
            assumption: ED-ViT (arXiv 2410.11650) does not say; UP-ViTs (arXiv 2111.15127) takes 2 to 5.
        batch_size: Rows per forward (one row = one image with one mask); bounds the memory.
        seed: Draws the scored images, and the scores of "random".
    """

    keep_heads: int | Literal["auto"] = "auto"
    importance: ImportanceMethod = "hybrid"
    samples_per_class: int = 16
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.keep_heads != "auto" and (not _is_count(self.keep_heads) or self.keep_heads < 1):
            raise PruningError(
                f'`keep_heads` must be "auto" or a whole number of at least 1, got {self.keep_heads!r}. '
                f"It counts the heads that stay in every layer, not those that go."
            )
        if self.importance not in get_args(ImportanceMethod):
            raise PruningError(
                f"`importance` must be one of {', '.join(get_args(ImportanceMethod))}, got "
                f"{self.importance!r}. "
                f'Use "hybrid" when in doubt.'
            )
        for name, value in (("samples_per_class", self.samples_per_class), ("batch_size", self.batch_size)):
            if not _is_count(value) or value < 1:
                raise PruningError(
                    f"`{name}` must be a whole number of at least 1, got {value!r}. "
                    f"Without images there is nothing to score with; raise it."
                )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
