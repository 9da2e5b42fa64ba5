# SPDX-License-Identifier: Apache-2.0
"""Divides the classes into class groups, one for each sub-model. Light: numpy only.

Comes in: how to divide, the number of classes and, for a division by similarity, what the teacher confuses. Goes out: a
list of class indices for each sub-model. The recipe's split stage calls it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from edvit_hf.errors import RecipeError
from edvit_hf.strict import one_of, whole_number
from edvit_hf.tasks import class_groups_fault

logger = logging.getLogger(__name__)

MAX_CLASSES = 1_000_000
MAX_STARTS = 16
"""Seeded starts of the similarity search; fewer for many classes, where one start already takes seconds."""

Strategy = Literal["balanced", "similarity", "given"]
Similarity = Literal["group", "separate"]
Sizes = Literal["equal", "proportional"]


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How the classes are divided.

    Attributes:
        num_sub_models: Number of class groups, one sub-model each.
        strategy: `balanced` cuts a seeded shuffle of the classes; `similarity` looks at what the teacher confuses;
            `given` takes `class_groups` as written.
        seed: Seed of the shuffle, of the starts of the similarity search and of the items it looks at; at least 0.
        class_groups: Only with `given`: a list of class indices for each sub-model.
        similarity: Only with `similarity`: "group" puts classes that the teacher confuses into one sub-model, which
            then learns to part them; "separate" puts them into different ones.
        sizes: "equal" groups differ by at most one class; "proportional" ones follow the capability of the devices.
        samples_per_class: Only with `similarity`: training items per class on which the teacher's confusions are
            measured. An assumption; no paper says.
    """

    num_sub_models: int
    strategy: Strategy = "balanced"
    seed: int = 0
    class_groups: tuple[tuple[int, ...], ...] | None = None
    similarity: Similarity = "group"
    sizes: Sizes = "equal"
    samples_per_class: int = 200

    def __post_init__(self) -> None:
        whole_number("split.num_sub_models", self.num_sub_models, 1, "each runs on a device")
        for name, options in (("strategy", Strategy), ("similarity", Similarity), ("sizes", Sizes)):
            one_of(f"split.{name}", getattr(self, name), get_args(options), "it decides which classes go together")
        whole_number("split.seed", self.seed, 0, "random generators take no other")
        why = "without items the teacher shows no confusions"
        whole_number("split.samples_per_class", self.samples_per_class, 1, why)
        if (self.strategy == "given") != (self.class_groups is not None):
            raise RecipeError(
                f"`split.class_groups` and `split.strategy: given` go together, got strategy "
                f"{self.strategy!r} and class_groups {self.class_groups!r}. Write both or neither."
            )
        if self.strategy == "given" and self.sizes == "proportional":
            raise RecipeError(
                "`split.sizes: proportional` computes group sizes, but `split.class_groups` gives the groups. "
                "Both cannot hold. Remove one of them."
            )


def split_classes(
    num_classes: int,
    config: SplitConfig,
    *,
    similarity: np.ndarray | None = None,
    capability: Sequence[float] | None = None,
) -> list[list[int]]:
    """Divide the classes into groups.

    Args:
        num_classes (`int`): Number of classes C of the teacher.
        config (`SplitConfig`): Number of groups, strategy and seed.
        similarity (`np.ndarray`, *optional*): (C, C), at least 0: how much the teacher confuses class i with class j,
            in any unit. Only for the strategy `similarity`; both directions count, the diagonal does not.
        capability (`Sequence[float]`, *optional*): One positive number per sub-model, in any unit. Only for
            `sizes: proportional`.

    Returns:
        `list[list[int]]`: Sorted class indices of each group; disjoint and covering.

    Raises:
        RecipeError: More sub-models than classes; given groups that are empty, overlap or leave classes out;
            confusions or capabilities that are asked for and absent, of the wrong size, or no numbers.

    Source: balanced cut as in EC-SNN (IJCAI-24, Algorithm 1, lines 3-5). ED-ViT (2410.11650) says only that the
    workload is divided evenly; the seeded shuffle is an assumption taken from DeViT's code.
    Differs: `similarity` is ours. No paper says whether confusable classes belong together: together, one sub-model
    sees both and can part them; apart, each sub-model has the easier task and the fusion head has the hard one.
    """
    sizes = group_sizes(num_classes, config, capability)
    if config.class_groups is not None:
        return check_class_groups(config.class_groups, num_classes, num_groups=config.num_sub_models)
    if config.strategy == "similarity":
        matrix = check_similarity(similarity, num_classes)
        groups = _similar_groups(matrix if config.similarity == "group" else -matrix, sizes, config.seed)
    else:
        groups = _balanced_groups(sizes, config.seed)
    logger.info("split: %d classes into %d groups of sizes %s", num_classes, len(groups), [len(g) for g in groups])
    return groups


def placeholder_groups(
    num_classes: int, config: SplitConfig, *, capability: Sequence[float] | None = None
) -> tuple[list[list[int]], str | None]:
    """The groups as far as they are known before the teacher is trained, and a note if they stand in for others.

    Groups by `similarity` wait for the teacher's confusions: balanced ones of the same sizes stand in, which cost
    the same.
    """
    if config.strategy != "similarity":
        return split_classes(num_classes, config, capability=capability), None
    return _balanced_groups(group_sizes(num_classes, config, capability), config.seed), (
        "class groups are placeholders of the right sizes: `split.strategy: similarity` chooses them by the "
        "confusions of the trained teacher"
    )


def group_sizes(num_classes: int, config: SplitConfig, capability: Sequence[float] | None = None) -> list[int]:
    """Number of classes of each group; at least one each, together `num_classes`.

    Proportional sizes follow the largest-remainder method after every group has its first class.

    Raises:
        RecipeError: More sub-models than classes, no whole number of classes, or capabilities that are absent or no
            positive numbers.
    """
    count = config.num_sub_models
    num_classes = int(num_classes) if isinstance(num_classes, np.integer) else num_classes
    whole_number("num_classes", num_classes, 1, "every class goes to one group")
    if num_classes > MAX_CLASSES:
        raise RecipeError(
            f"Expected at most {MAX_CLASSES} classes, got {num_classes}. Every one is a row of the teacher's head and "
            "of the fusion head. Check `dataset.num_labels` (or --num-classes)."
        )
    if count > num_classes:
        raise RecipeError(
            f"`split.num_sub_models` is {count}, but the dataset has only {num_classes} classes. "
            f"A sub-model without a class has nothing to learn. Use at most {num_classes} sub-models."
        )
    if config.sizes == "equal":
        least, more = divmod(num_classes, count)
        return [least + 1] * more + [least] * (count - more)
    if capability is None or len(capability) != count or not all(np.isfinite(c) and c > 0 for c in capability):
        raise RecipeError(
            f"`split.sizes: proportional` needs one positive number per sub-model ({count}), the capability of its "
            f"device, got {None if capability is None else list(capability)}. Group sizes follow from it. Give the "
            "devices of the fleet a figure, or use `sizes: equal`."
        )
    shares = np.asarray(capability, np.float64) / max(capability)
    quotas = np.maximum(shares / shares.sum() * num_classes, 1.0)
    # Groups lifted to one class take it from the others, whose quotas shrink until all add up.
    while quotas.sum() > num_classes + 1e-9:
        free = quotas > 1.0
        quotas[free] *= (num_classes - (~free).sum()) / quotas[free].sum()
        quotas = np.maximum(quotas, 1.0)
    sizes = np.floor(quotas + 1e-9).astype(int)
    order = np.argsort(-(quotas - sizes), kind="stable")  # equal remainders: the lower index first
    sizes[order[: num_classes - sizes.sum()]] += 1
    return [int(size) for size in sizes]


def check_similarity(similarity: np.ndarray | None, num_classes: int) -> np.ndarray:
    """Return the confusions symmetrised, with a zero diagonal, (C, C) float64.

    Raises:
        RecipeError: Absent, of another shape, with NaN, infinite or negative entries.
    """
    if similarity is None:
        raise RecipeError(
            "`split.strategy: similarity` needs the teacher's confusions, a (classes, classes) matrix, got none. "
            "They say which classes belong together. Pass `similarity`, or use `strategy: balanced`."
        )
    matrix = np.asarray(similarity, np.float64)
    if matrix.shape != (num_classes, num_classes):
        raise RecipeError(
            f"the confusions must have the shape ({num_classes}, {num_classes}), got {matrix.shape}. They belong to "
            "another teacher. Measure this one."
        )
    broken = ~np.isfinite(matrix) | (matrix < 0)
    if broken.any():
        row, column = (int(i) for i in np.argwhere(broken)[0])
        raise RecipeError(
            f"the confusions must be finite and at least 0, but class {row} with class {column} has "
            f"{matrix[row, column]}. Groups would be arbitrary. Check the teacher's answers on these classes."
        )
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 0.0)
    return matrix


def similarity_within(class_groups: Sequence[Sequence[int]], similarity: np.ndarray) -> float:
    """Share of all confusions between two classes that fall inside a group, in 0..1; 0 if there are none."""
    matrix = check_similarity(similarity, len(similarity))
    total = float(matrix.sum())
    return sum(float(matrix[np.ix_(g, g)].sum()) for g in class_groups) / total if total > 0 else 0.0


def _balanced_groups(sizes: Sequence[int], seed: int) -> list[list[int]]:
    """Groups of these sizes from a seeded shuffle of the classes."""
    order = np.random.default_rng(seed).permutation(sum(sizes))
    return [sorted(int(c) for c in part) for part in np.split(order, np.cumsum(sizes)[:-1])]


def _similar_groups(matrix: np.ndarray, sizes: Sequence[int], seed: int) -> list[list[int]]:
    """Groups of these sizes with the most of `matrix` inside them: the best of several seeded local searches."""
    num_classes, best, best_inside = len(matrix), np.empty(0, int), -np.inf
    random = np.random.default_rng(seed)
    for _ in range(max(1, min(MAX_STARTS, 2000 // num_classes))):
        labels = np.empty(num_classes, int)
        labels[random.permutation(num_classes)] = np.repeat(np.arange(len(sizes)), sizes)
        _swap_to_optimum(matrix, labels)
        inside = float(matrix[labels[:, None] == labels].sum())
        if inside > best_inside + 1e-12 * abs(inside):
            best, best_inside = labels, inside
    return [[int(c) for c in np.flatnonzero(best == index)] for index in range(len(sizes))]


def _swap_to_optimum(matrix: np.ndarray, labels: np.ndarray) -> None:
    """Swap two classes of different groups, the best pair first, until no swap gains; changes `labels` (C,)."""
    num_groups, everyone = int(labels.max()) + 1, np.arange(len(labels))
    smallest = 1e-12 * max(float(np.abs(matrix).max()), 1e-300)  # below it a gain is rounding
    member = np.zeros((len(labels), num_groups))
    member[everyone, labels] = 1.0
    while True:
        reach = matrix @ member  # (C, groups): what a class shares with each group
        own = reach[everyone, labels]
        move = reach[:, labels] - own[:, None]  # (C, C): class i joins the group of class j, which leaves
        gain = move + move.T - 2 * matrix
        gain[labels[:, None] == labels] = -np.inf
        i, j = divmod(int(gain.argmax()), len(labels))
        if not gain[i, j] > smallest:
            return
        member[[i, j]] = member[[j, i]]
        labels[[i, j]] = labels[[j, i]]


def check_class_groups(
    class_groups: Sequence[Sequence[int]], num_classes: int, *, num_groups: int | None = None
) -> list[list[int]]:
    """Return the groups, each sorted, or raise `RecipeError` if they are not a partition of the classes."""
    if num_groups is not None and len(class_groups) != num_groups:
        raise RecipeError(
            f"`split.class_groups` holds {len(class_groups)} groups, but `split.num_sub_models` is {num_groups}. "
            "Each sub-model needs exactly one group. Make the two agree."
        )
    fault = class_groups_fault(class_groups, num_classes, is_disjoint=True)
    if fault is not None:
        raise RecipeError(f"{fault} Every class belongs to exactly one sub-model. Correct `split.class_groups`.")
    return [sorted(int(label) for label in group) for group in class_groups]
