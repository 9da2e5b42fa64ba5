# SPDX-License-Identifier: Apache-2.0
"""What each objective reads: batches of one epoch, every one a pure function of (seed, epoch, positions)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from edvit_hf.data import class_group_indices
from edvit_hf.errors import DataError
from edvit_hf.training.config import SEED_STRIDE

if TYPE_CHECKING:
    from edvit_hf.data.split import Split

# {"inputs": {argument of the forward: tensor, rows first}, "labels": (B,) int64, ...}
Batch = dict[str, Any]


class EpochData(Protocol):
    """Items of one epoch at a time. `set_epoch` chooses them, `batch` returns some of them by position.

    Attributes:
        lengths: (len(self),) lengths of the chosen epoch's items, whose batches are padded; None where all inputs
            have one size.
    """

    @property
    def lengths(self) -> np.ndarray | None:
        """Lengths of the items in the chosen epoch, or None."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the items and the view of this epoch (from 0)."""

    def __len__(self) -> int:
        """Number of items in the chosen epoch."""

    def batch(self, indices: np.ndarray) -> Batch:
        """The items at these positions, on the CPU."""


class _SplitItems:
    """Items of a split in fresh views, or with what the teacher said of them in V stored views, replayed in turn.

    Args:
        split (`Split`): The training split, N items.
        stored: Name in a batch -> (V, N, D) float32, of the same V views; none: every epoch is a view of its own.
    """

    def __init__(self, split: "Split", **stored: np.ndarray) -> None:
        for name, array in stored.items():
            last = "classes" if name == "teacher_logits" else "features"
            if array.ndim != 3 or array.shape[1] != len(split):
                raise DataError(
                    f"{name.replace('_', ' ').capitalize()} must have the shape (views, {len(split)}, {last}), got "
                    f"{array.shape}. They are looked up by item, so they must come from this very split."
                )
        self.split, self.stored = split, stored
        self.set_epoch(0)

    @property
    def lengths(self) -> np.ndarray | None:
        """Lengths of this epoch's items, or None."""
        lengths = self.split.lengths
        return None if lengths is None else lengths[self.items]

    def set_epoch(self, epoch: int) -> None:
        """Choose the view and the items of this epoch."""
        self.view = epoch % len(next(iter(self.stored.values()))) if self.stored else epoch
        self.items = self.items_of(epoch)

    def items_of(self, epoch: int) -> np.ndarray:
        """The items of an epoch, as positions in the split: all of them, in order."""
        return np.arange(len(self.split))

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, indices: np.ndarray) -> Batch:
        """`inputs`, global `labels` (B,) and what is stored of the same view, (B, D) each."""
        items = self.items[indices]
        return {
            "inputs": self.split.inputs(items, view=self.view),
            "labels": torch.from_numpy(self.split.labels[items]),
            **{name: torch.from_numpy(array[self.view, items]) for name, array in self.stored.items()},
        }


class ClassifyData(_SplitItems):
    """All items with their labels; every epoch is a fresh augmented view.

    Args:
        split (`Split`): The training split.
        mixup_alpha (`float`): Of Mixup's Beta distribution; 0: off.
        cutmix_alpha (`float`): Of CutMix's Beta distribution; 0: off. With both on, each batch takes one by a toss.
        num_labels (`int`, *optional*): Number of classes, needed to mix.
        seed (`int`): Of the mixing.

    Raises:
        DataError: If mixing is asked for without `num_labels`.
    """

    def __init__(
        self,
        split: "Split",
        *,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        num_labels: int | None = None,
        seed: int = 0,
    ) -> None:
        self.mixes = mixup_alpha > 0 or cutmix_alpha > 0
        if self.mixes and num_labels is None:
            raise DataError(
                f"Mixing items (mixup_alpha={mixup_alpha}, cutmix_alpha={cutmix_alpha}) needs `num_labels`, got None: "
                "mixed labels are shares of every class. Pass the number of classes, or set both to 0."
            )
        self.mixup_alpha, self.cutmix_alpha, self.num_labels = mixup_alpha, cutmix_alpha, num_labels or 0
        self.seed = seed
        super().__init__(split)

    def batch(self, indices: np.ndarray) -> Batch:
        """`inputs` and `labels` (B,); mixed ones also have `targets` (B, C), the labels' shares."""
        batch = super().batch(indices)
        if not self.mixes:
            return batch
        from edvit_hf.data.mix import mix_batch

        # A batch is known by its first item, so that each process of several mixes its share in its own way.
        alphas, position = {"mixup_alpha": self.mixup_alpha, "cutmix_alpha": self.cutmix_alpha}, int(indices[0])
        inputs, labels = batch["inputs"], batch["labels"]
        batch["inputs"], batch["targets"] = mix_batch(
            inputs, labels, self.num_labels, **alphas, seed=self.seed, epoch=self.view, position=position
        )
        return batch


class DistillData(_SplitItems):
    """Items for one class group with the teacher's stored logits.

    Args:
        split (`Split`): The training split, N items.
        teacher_logits (`np.ndarray`): (V, N, C) float32 as `teacher_outputs()` returns them, V stored views.
        class_group (`list[int]`, *optional*): None uses every item in every epoch (a plain model).
        negatives_per_positive (`float`): "Other" items per item of the group, drawn anew every epoch.
        seed (`int`): Seed of that draw.
        teacher_features (`np.ndarray`, *optional*): (V, N, W) float32 of the same views, where its feature is learnt
            from too; a batch then holds them.
    """

    def __init__(
        self,
        split: "Split",
        teacher_logits: np.ndarray,
        class_group: list[int] | None,
        *,
        negatives_per_positive: float = 1.0,
        seed: int = 0,
        teacher_features: np.ndarray | None = None,
    ) -> None:
        self.class_group, self.negatives_per_positive, self.seed = class_group, negatives_per_positive, seed
        features = {} if teacher_features is None else {"teacher_features": teacher_features}
        _check_views(teacher_logits, teacher_features)
        super().__init__(split, teacher_logits=teacher_logits, **features)

    def items_of(self, epoch: int) -> np.ndarray:
        """The items of the class group and a fresh sample of the others; all items where there are no others."""
        group, ratio = self.class_group, self.negatives_per_positive
        if group is None or len(group) == self.stored["teacher_logits"].shape[2]:
            return super().items_of(epoch)
        return class_group_indices(self.split.labels, group, negatives_per_positive=ratio, seed=self.seed, epoch=epoch)


class LockstepData(_SplitItems):
    """The items that any of several sub-models needs in an epoch, each marked with those who need it.

    Every sub-model gets the very items that `DistillData` would give it; an item that several need comes once. A batch
    of `batch_size` counts items of this union, so a sub-model sees fewer rows per step than in a run of its own.

    Where several vote over the same classes, that would make them one model: they would take the same steps. Then every
    sub-model goes through its items in an order of its own, and a batch counts the items of one: it holds up to S times
    as many, and so do the teacher's passes.

    Args:
        split (`Split`): The training split, N items.
        teacher_logits (`np.ndarray`): (V, N, C) float32, V stored views.
        class_groups (`Sequence[list[int] | None]`): One per sub-model, S of them; None takes every item.
        negatives_per_positive (`float`): As of `DistillData`.
        seed (`int`): As of `DistillData`, for the first of those that vote over the same classes.
    """

    def __init__(
        self,
        split: "Split",
        teacher_logits: np.ndarray,
        class_groups: Sequence[list[int] | None],
        *,
        negatives_per_positive: float = 1.0,
        seed: int = 0,
    ) -> None:
        voted = [None if group is None else sorted(group) for group in class_groups]
        earlier = [voted[:index].count(group) for index, group in enumerate(voted)]
        self.has_own_orders, self.seed = any(earlier), seed
        self.sub_models = [
            DistillData(
                split,
                teacher_logits,
                group,
                negatives_per_positive=negatives_per_positive,
                seed=seed + SEED_STRIDE * number,
            )
            for group, number in zip(class_groups, earlier, strict=True)
        ]
        super().__init__(split, teacher_logits=teacher_logits)

    @property
    def lengths(self) -> np.ndarray | None:
        """Lengths of this epoch's items, of the longest where each sub-model has its own; or None."""
        lengths = self.split.lengths
        if lengths is None or not self.has_own_orders:
            return super().lengths
        return np.where(self.orders >= 0, lengths[self.orders], 0).max(axis=1)

    def items_of(self, epoch: int) -> np.ndarray:
        """The union of every sub-model's items; notes in `membership` (M, S) whose they are.

        With own orders it notes `orders` (M, S) instead: each sub-model's item at each position, -1 for none.
        """
        found = [data.items_of(epoch) for data in self.sub_models]
        if self.has_own_orders:
            self.orders = np.full((max(map(len, found)), len(found)), -1)
            for column, items in enumerate(found):
                random = np.random.default_rng([self.seed, epoch, 2, column])  # no stream of the loop
                places = random.permutation(len(self.orders))[: len(items)]
                self.orders[places, column] = items
            return np.arange(len(self.split))
        is_member = np.zeros((len(self.split), len(found)), dtype=bool)
        for column, items in enumerate(found):
            is_member[items, column] = True
        items = np.flatnonzero(is_member.any(axis=1))
        self.membership = is_member[items]
        return items

    def __len__(self) -> int:
        return len(self.orders) if self.has_own_orders else super().__len__()

    def batch(self, indices: np.ndarray) -> Batch:
        """`inputs`, global `labels` (B,), `teacher_logits` (B, C) of the same view and `membership` (B, S) bool.

        B is the number of indices; with own orders, that of the different items at these positions.
        """
        if not self.has_own_orders:
            return {**super().batch(indices), "membership": torch.from_numpy(self.membership[indices])}
        chosen = self.orders[indices]
        items = np.unique(chosen[chosen >= 0])
        membership = np.stack([np.isin(items, column) for column in chosen.T], axis=1)
        return {**super().batch(items), "membership": torch.from_numpy(membership)}


class FuseData:
    """Cached features of frozen sub-models; epoch e uses view e modulo the stored views.

    Args:
        features (`np.ndarray`): (V, N, D) or (N, D) float32, all sub-models' features side by side.
        labels (`np.ndarray`): (N,) int64.
        teacher_logits (`np.ndarray`): (V, N, C) or (N, C) float32, of the same views.
        logits (`np.ndarray`, *optional*): Votes side by side, of the same views and items, for a fusion that asks them.
    """

    lengths = None

    def __init__(
        self, features: np.ndarray, labels: np.ndarray, teacher_logits: np.ndarray, logits: np.ndarray | None = None
    ) -> None:
        self.logits = None if logits is None else torch.from_numpy(np.ascontiguousarray(_with_views(logits)))
        self.features = torch.from_numpy(np.ascontiguousarray(_with_views(features)))
        self.teacher_logits = torch.from_numpy(np.ascontiguousarray(_with_views(teacher_logits)))
        self.labels = torch.from_numpy(labels)
        shapes = self.features.shape[:2], self.teacher_logits.shape[:2]
        if self.logits is not None and self.logits.shape[:2] != shapes[0]:
            raise DataError(
                f"Votes {tuple(self.logits.shape)} and features {tuple(features.shape)} must agree in views and items: "
                "they are paired by position."
            )
        if shapes[0] != shapes[1] or shapes[0][1] != len(labels):
            raise DataError(
                f"Features {tuple(features.shape)}, teacher logits {tuple(teacher_logits.shape)} and labels "
                f"({len(labels)},) must agree in views and items: they are paired by position."
            )
        self.view = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the view of this epoch."""
        self.view = epoch % len(self.features)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray) -> Batch:
        """`features` (B, D), `labels` (B,), `teacher_logits` (B, C) and, where there are votes, `logits` (B, V)."""
        chosen = torch.from_numpy(indices)
        votes = {} if self.logits is None else {"logits": self.logits[self.view, chosen]}
        return votes | {
            "features": self.features[self.view, chosen],
            "labels": self.labels[chosen],
            "teacher_logits": self.teacher_logits[self.view, chosen],
        }


class JointData(_SplitItems):
    """All items with the teacher's stored logits and features.

    Args:
        split (`Split`): The training split, N items.
        teacher_logits (`np.ndarray`): (V, N, C) float32 as `teacher_outputs()` returns them.
        teacher_features (`np.ndarray`): (V, N, D) float32, of the same views.
    """

    def __init__(self, split: "Split", teacher_logits: np.ndarray, teacher_features: np.ndarray) -> None:
        _check_views(teacher_logits, teacher_features)
        super().__init__(split, teacher_logits=teacher_logits, teacher_features=teacher_features)


def _check_views(teacher_logits: np.ndarray, teacher_features: np.ndarray | None) -> None:
    if teacher_features is not None and len(teacher_logits) != len(teacher_features):
        raise DataError(
            f"Teacher logits of {len(teacher_logits)} views and features of {len(teacher_features)} do not fit: "
            "they are paired by view. Pass the same views of both."
        )


def _with_views(array: np.ndarray) -> np.ndarray:
    return array[None] if array.ndim == 2 else array
