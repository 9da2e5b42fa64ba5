"""Classes -> class groups: which sub-model answers for which classes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edvit_hf.errors import RecipeError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How the classes are divided.

    Attributes:
        num_sub_models: Number of class groups, one sub-model each.
        strategy: `balanced` cuts a seeded shuffle of the classes; `given` takes `class_groups` as written.
        seed: Seed of the shuffle.
        class_groups: Only with `given`: a list of class indices for each sub-model.
    """

    num_sub_models: int
    strategy: Literal["balanced", "given"] = "balanced"
    seed: int = 0
    class_groups: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        if self.num_sub_models < 1:
            raise RecipeError(
                f"`split.num_sub_models` must be at least 1, got {self.num_sub_models}: each runs on a device."
            )
        if (self.strategy == "given") != (self.class_groups is not None):
            raise RecipeError(
                f"`split.class_groups` and `split.strategy: given` go together, got strategy "
                f"{self.strategy!r} and class_groups {self.class_groups!r}. Write both or neither."
            )


def split_classes(num_classes: int, config: SplitConfig) -> list[list[int]]:
    """Divide the classes into groups whose sizes differ by at most one (unless given by hand).

    Args:
        num_classes (`int`): Number of classes of the teacher.
        config (`SplitConfig`): Number of groups, strategy and seed.

    Returns:
        `list[list[int]]`: Sorted class indices of each group; disjoint and covering.

    Raises:
        RecipeError: More sub-models than classes, or given groups that are empty, overlap or leave classes out.

    Source: balanced cut as in EC-SNN (IJCAI-24, Algorithm 1, lines 3-5). ED-ViT (2410.11650) says only that the
    workload is divided evenly; the seeded shuffle is an assumption taken from DeViT's code.
    """
    if config.num_sub_models > num_classes:
        raise RecipeError(
            f"`split.num_sub_models` is {config.num_sub_models}, but the dataset has only {num_classes} classes. "
            f"A sub-model without a class has nothing to learn. Use at most {num_classes} sub-models."
        )
    if config.class_groups is not None:
        return check_class_groups(config.class_groups, num_classes, num_groups=config.num_sub_models)
    order = np.random.default_rng(config.seed).permutation(num_classes)
    groups = [sorted(int(c) for c in part) for part in np.array_split(order, config.num_sub_models)]
    logger.info("split: %d classes into %d groups of sizes %s", num_classes, len(groups), [len(g) for g in groups])
    return groups


def check_class_groups(
    class_groups: Sequence[Sequence[int]], num_classes: int, *, num_groups: int | None = None
) -> list[list[int]]:
    """Return the groups, each sorted, or raise `RecipeError` if they are not a partition of the classes."""
    groups = [sorted(int(c) for c in group) for group in class_groups]
    if num_groups is not None and len(groups) != num_groups:
        raise RecipeError(
            f"`split.class_groups` holds {len(groups)} groups, but `split.num_sub_models` is {num_groups}. "
            "Each sub-model needs exactly one group. Make the two agree."
        )
    owners: dict[int, int] = {}
    for index, group in enumerate(groups):
        if not group:
            raise RecipeError(
                f"class group {index} is empty. A sub-model without a class has nothing to learn. "
                "Give it at least one class or remove the group."
            )
        for class_index in group:
            if not 0 <= class_index < num_classes:
                raise RecipeError(
                    f"class group {index} names class {class_index}; classes run from 0 to {num_classes - 1}. "
                    "Correct the index."
                )
            if class_index in owners:
                raise RecipeError(
                    f"class {class_index} stands in group {owners[class_index]} and in group {index}. "
                    "Every class belongs to exactly one sub-model. Remove it from one of them."
                )
            owners[class_index] = index
    missing = sorted(set(range(num_classes)) - set(owners))
    if missing:
        raise RecipeError(
            f"classes {missing} stand in no class group. No sub-model would answer for them. Add them to a group."
        )
    return groups
