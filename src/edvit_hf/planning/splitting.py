# SPDX-License-Identifier: Apache-2.0
"""Divides the classes into class groups, one for each sub-model; groups may overlap. Light: numpy only.

Comes in: how to divide, the number of classes and, for a division by similarity, what the teacher confuses. Goes out: a
list of class indices for each sub-model. The recipe's split stage calls it.

With `coverage` r the classes are first divided into N disjoint base groups, which stand in a circle; sub-model i gets
the base groups i, i + 1, ..., i + r - 1. So every class is known by exactly r sub-models, and with r of at least 2 no
single absent one leaves a class unknown.
"""

import itertools
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
        num_sub_models: Number of class groups, one sub-model each. Left out: as many as the `fleet` has devices, 2
            without one.
        strategy: `balanced` cuts a seeded shuffle of the classes; `similarity` looks at what the teacher confuses;
            `given` takes `class_groups` as written.
        seed: Seed of the shuffle, of the starts of the similarity search and of the items it looks at; at least 0.
        class_groups: Only with `given`: a list of class indices for each sub-model.
        similarity: Only with `similarity`: "group" puts classes that the teacher confuses into one sub-model, which
            then learns to part them; "separate" puts them into different ones.
        sizes: "equal" groups differ by at most one class; "proportional" ones follow the capability of the devices.
        samples_per_class: Only with `similarity`: training items per class on which the teacher's confusions are
            measured. An assumption; no paper says.
        coverage: By how many sub-models every class is known, 1 to `num_sub_models`: 1 divides the classes (ED-ViT),
            2 and more let groups overlap, all of them gives every sub-model all classes.
    """

    num_sub_models: int = 2
    strategy: Strategy = "balanced"
    seed: int = 0
    class_groups: tuple[tuple[int, ...], ...] | None = None
    similarity: Similarity = "group"
    sizes: Sizes = "equal"
    samples_per_class: int = 200
    coverage: int = 1

    def __post_init__(self) -> None:
        whole_number("split.num_sub_models", self.num_sub_models, 1, "each runs on a device")
        for name, options in (("strategy", Strategy), ("similarity", Similarity), ("sizes", Sizes)):
            one_of(f"split.{name}", getattr(self, name), get_args(options), "it decides which classes go together")
        whole_number("split.seed", self.seed, 0, "random generators take no other")
        why = "without items the teacher shows no confusions"
        whole_number("split.samples_per_class", self.samples_per_class, 1, why)
        whole_number("split.coverage", self.coverage, 1, "a class that no sub-model knows is never answered")
        if self.coverage > self.num_sub_models:
            raise RecipeError(
                f"`split.coverage` must be at most `split.num_sub_models` ({self.num_sub_models}), got "
                f"{self.coverage!r:.60}: no class can be known by more sub-models than there are. Lower it, or add "
                "sub-models."
            )
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
        if self.coverage > 1 and self.sizes == "proportional":
            raise RecipeError(
                f"`split.sizes: proportional` gives each device a group of its own size, but with `split.coverage: "
                f"{self.coverage}` neighbours share their classes. Both cannot hold. Use `sizes: equal`; "
                "`prune.keep_heads: per-sub-model` gives bigger devices bigger sub-models."
            )

    @property
    def is_all(self) -> bool:
        """Whether every sub-model knows every class."""
        return self.coverage == self.num_sub_models


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
        `list[list[int]]`: Sorted class indices of each group; every class stands in exactly `config.coverage` of them,
            and sizes differ by at most one where they are equal.

    Raises:
        RecipeError: More sub-models than classes (unless each knows them all); given groups that are empty or in which
            a class stands in more or fewer groups than `coverage` says; confusions or capabilities that are asked for
            and absent, of the wrong size, or no numbers.

    Source: balanced cut as in EC-SNN (IJCAI-24, Algorithm 1, lines 3-5). ED-ViT (2410.11650) says only that the
    workload is divided evenly; the seeded shuffle is an assumption taken from DeViT's code.
    Differs: `similarity` is ours. No paper says whether confusable classes belong together: together, one sub-model
    sees both and can part them; apart, each sub-model has the easier task and the fusion head has the hard one.
    Overlap is ours too. Which base groups are neighbours, and so share sub-models, follows the same wish: "group" makes
    those neighbours that are confused most (a pair that the base groups had to part then still meets in a sub-model),
    "separate" those that are confused least.
    """
    sizes = group_sizes(num_classes, config, capability)
    if config.class_groups is not None:
        given = config.class_groups
        return check_class_groups(given, num_classes, num_groups=config.num_sub_models, coverage=config.coverage)
    if config.is_all:
        groups = [list(range(num_classes)) for _ in range(config.num_sub_models)]
    elif config.strategy == "similarity":
        matrix = check_similarity(similarity, num_classes)
        wish = matrix if config.similarity == "group" else -matrix
        groups = _overlapping(_in_circle(_similar_groups(wish, sizes, config.seed), wish, config), config.coverage)
    else:
        groups = _overlapping(_balanced_groups(sizes, config.seed), config.coverage)
    logger.info("split: %d classes into %d groups of sizes %s", num_classes, len(groups), [len(g) for g in groups])
    return groups


def placeholder_groups(
    num_classes: int, config: SplitConfig, *, capability: Sequence[float] | None = None
) -> tuple[list[list[int]], str | None]:
    """The groups as far as they are known before the teacher is trained, and a note if they stand in for others.

    Groups by `similarity` wait for the teacher's confusions: balanced ones of the same sizes stand in, which cost
    the same.
    """
    if config.strategy != "similarity" or config.is_all:
        return split_classes(num_classes, config, capability=capability), None
    base = _balanced_groups(group_sizes(num_classes, config, capability), config.seed)
    return _overlapping(base, config.coverage), (
        "class groups are placeholders of the right sizes: `split.strategy: similarity` chooses them by the "
        "confusions of the trained teacher"
    )


def group_sizes(num_classes: int, config: SplitConfig, capability: Sequence[float] | None = None) -> list[int]:
    """Number of classes of each base group; at least one each (unless all know all), together `num_classes`.

    Proportional sizes follow the largest-remainder method after every group has its first class. With overlap the
    larger base groups stand as evenly in the circle as they can, so that any `coverage` neighbours together differ from
    any others by at most one class.

    Raises:
        RecipeError: More sub-models than classes (unless each knows them all), no whole number of classes, or
            capabilities that are absent or no positive numbers.
    """
    count = config.num_sub_models
    num_classes = int(num_classes) if isinstance(num_classes, np.integer) else num_classes
    whole_number("num_classes", num_classes, 1, "every class goes to one group")
    if num_classes > MAX_CLASSES:
        raise RecipeError(
            f"Expected at most {MAX_CLASSES} classes, got {num_classes}. Every one is a row of the teacher's head and "
            "of the fusion head. Check `dataset.num_labels` (or --num-classes)."
        )
    if count > num_classes and not config.is_all:
        raise RecipeError(
            f"`split.num_sub_models` is {count}, but the dataset has only {num_classes} classes. "
            f"A sub-model without a class has nothing to learn. Use at most {num_classes} sub-models, or `coverage: "
            f"{count}`, which lets every sub-model know all classes."
        )
    if config.sizes == "equal":
        if config.coverage > 1:
            ends = [index * num_classes // count for index in range(count + 1)]
            return [end - start for start, end in itertools.pairwise(ends)]
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
    """Share of all confusions between two classes that stand in a group together, in 0..1; 0 if there are none."""
    matrix = check_similarity(similarity, len(similarity))
    total, together = float(matrix.sum()), np.zeros(matrix.shape, bool)
    for group in class_groups:
        together[np.ix_(group, group)] = True
    return float(matrix[together].sum()) / total if total > 0 else 0.0


def _balanced_groups(sizes: Sequence[int], seed: int) -> list[list[int]]:
    """Groups of these sizes from a seeded shuffle of the classes."""
    order = np.random.default_rng(seed).permutation(sum(sizes))
    return [sorted(int(c) for c in part) for part in np.split(order, np.cumsum(sizes)[:-1])]


def _overlapping(base: Sequence[Sequence[int]], coverage: int) -> list[list[int]]:
    """The classes of each sub-model: those of its own base group and of the next `coverage` - 1 in the circle."""
    count = len(base)
    return [sorted(c for step in range(coverage) for c in base[(i + step) % count]) for i in range(count)]


def _shared(count: int, coverage: int) -> np.ndarray:
    """(count, count): how many sub-models know both base group a and base group b of the circle."""
    knows = np.zeros((count, count))  # (sub-models, base groups)
    for step in range(coverage):
        knows[np.arange(count), (np.arange(count) + step) % count] = 1.0
    return knows.T @ knows


def _similar_groups(matrix: np.ndarray, sizes: Sequence[int], seed: int) -> list[list[int]]:
    """Groups of these sizes with the most of `matrix` inside them."""
    labels = _best_labels(matrix, np.repeat(np.arange(len(sizes)), sizes), np.eye(len(sizes)), seed)
    return [[int(c) for c in np.flatnonzero(labels == index)] for index in range(len(sizes))]


def _in_circle(base: list[list[int]], matrix: np.ndarray, config: SplitConfig) -> list[list[int]]:
    """The base groups in the order in which sub-models see the most of `matrix`; sizes keep their places."""
    if config.coverage == 1:
        return base
    between = np.array([[float(matrix[np.ix_(a, b)].sum()) for b in base] for a in base])
    np.fill_diagonal(between, 0.0)
    sizes = np.array([len(group) for group in base])
    shared = _shared(len(base), config.coverage)
    places = _best_labels(between, np.arange(len(base)), shared, config.seed, alike=sizes)
    return [base[index] for index in np.argsort(places)]


def _best_labels(
    matrix: np.ndarray, labels: np.ndarray, worth: np.ndarray, seed: int, *, alike: np.ndarray | None = None
) -> np.ndarray:
    """Labels (C,) with the largest sum of `matrix`[i, j] x `worth`[label i, label j]: the best of several searches.

    Only members with equal `alike` (C,) trade their labels; None: all may.
    """
    count, best, best_inside = len(matrix), labels, -np.inf
    kinds = np.zeros(count, int) if alike is None else alike
    random = np.random.default_rng(seed)
    for _ in range(max(1, min(MAX_STARTS, 2000 // count))):
        trial = np.empty(count, int)
        for kind in np.unique(kinds):
            members = np.flatnonzero(kinds == kind)
            trial[random.permutation(members)] = labels[members]
        _swap_to_optimum(matrix, trial, worth, kinds)
        inside = float((matrix * worth[trial[:, None], trial]).sum())
        if inside > best_inside + 1e-12 * abs(inside):
            best, best_inside = trial, inside
    return best


def _swap_to_optimum(matrix: np.ndarray, labels: np.ndarray, worth: np.ndarray, kinds: np.ndarray) -> None:
    """Swap the labels of two members of a kind, the best pair first, until no swap gains; changes `labels` (C,)."""
    everyone, diagonal = np.arange(len(labels)), np.diag(worth)
    smallest = 1e-12 * max(float(np.abs(matrix).max()), 1e-300)  # below it a gain is rounding
    can_swap = kinds[:, None] == kinds
    while True:
        reach = matrix @ worth[labels]  # (C, labels): what a member shares with all others under each label
        own = reach[everyone, labels]
        move = reach[:, labels] - own[:, None]  # (C, C): member i takes the label of member j, who gives it up
        both = diagonal[labels][:, None] + diagonal[labels] - 2 * worth[labels[:, None], labels]
        gain = np.where(can_swap & (labels[:, None] != labels), move + move.T - matrix * both, -np.inf)
        i, j = divmod(int(gain.argmax()), len(labels))
        if not gain[i, j] > smallest:
            return
        labels[[i, j]] = labels[[j, i]]


def check_class_groups(
    class_groups: Sequence[Sequence[int]], num_classes: int, *, num_groups: int | None = None, coverage: int = 1
) -> list[list[int]]:
    """Return the groups, each sorted.

    Raises:
        RecipeError: Another number of groups; one that is empty, repeats a class or names one that does not exist; or a
            class that stands in more or fewer groups than `coverage` says.
    """
    if num_groups is not None and len(class_groups) != num_groups:
        raise RecipeError(
            f"`split.class_groups` holds {len(class_groups)} groups, but `split.num_sub_models` is {num_groups}. "
            "Each sub-model needs exactly one group. Make the two agree."
        )
    fault = class_groups_fault(class_groups, num_classes)
    if fault is not None:
        raise RecipeError(f"{fault} Correct `split.class_groups`.")
    owners: list[list[int]] = [[] for _ in range(num_classes)]
    for index, group in enumerate(class_groups):
        for label in group:
            owners[label].append(index)
    counts = {len(own) for own in owners}
    wrong = next((label for label, own in enumerate(owners) if len(own) != coverage), None)
    if wrong is not None:
        own = owners[wrong]
        where = " and ".join(f"in group {index}" for index in own[:4])
        more = f" and {len(own) - 4} groups more" if len(own) > 4 else ""
        agreeing = f", or write `coverage: {counts.pop()}`" if len(counts) == 1 else ""
        raise RecipeError(
            f"`split.class_groups` contradicts `split.coverage: {coverage}`: class {wrong} stands {where}{more}, and "
            f"every class belongs to exactly {coverage} sub-model{'s' if coverage > 1 else ''}. Correct the "
            f"groups{agreeing}."
        )
    return [sorted(int(label) for label in group) for group in class_groups]
