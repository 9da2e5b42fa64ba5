"""What each objective reads: batches of one epoch, every one a pure function of (seed, epoch, positions)."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from edvit_hf.data import ImageSplit, class_group_indices
from edvit_hf.errors import DataError


class EpochData(Protocol):
    """Items of one epoch at a time. `set_epoch` chooses them, `batch` returns some of them by position."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the items and the view of this epoch (from 0)."""

    def __len__(self) -> int:
        """Number of items in the chosen epoch."""

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The items at these positions, on the CPU."""


def epoch_order(num_items: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the items in one epoch: a permutation that depends on nothing but these arguments."""
    return np.random.default_rng([seed, epoch]).permutation(num_items)


class ClassifyData:
    """All items with their labels; every epoch is a fresh augmented view."""

    def __init__(self, split: ImageSplit) -> None:
        self.split = split
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the view of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """`pixel_values` (B, 3, H, W) and `labels` (B,)."""
        pixel_values = self.split.pixel_values(indices, view=self.epoch)
        return {"pixel_values": pixel_values, "labels": torch.from_numpy(self.split.labels[indices])}


class DistillData:
    """Items for one class group with the teacher's stored logits; epochs replay the stored views in turn.

    Args:
        split (`ImageSplit`): The training split, N items.
        teacher_logits (`np.ndarray`): (V, N, C) float32 as `teacher_logits()` returns them, V stored views.
        class_group (`list[int]`, *optional*): None uses every item in every epoch (a plain model).
        negatives_per_positive (`float`): "Other" items per item of the group, drawn anew every epoch.
        seed (`int`): Seed of that draw.
    """

    def __init__(
        self,
        split: ImageSplit,
        teacher_logits: np.ndarray,
        class_group: list[int] | None,
        *,
        negatives_per_positive: float = 1.0,
        seed: int = 0,
    ) -> None:
        if teacher_logits.ndim != 3 or teacher_logits.shape[1] != len(split):
            raise DataError(
                f"Teacher logits must have the shape (views, {len(split)}, classes), got "
                f"{teacher_logits.shape}. They are looked up by item, so they must come from this very split."
            )
        has_other = class_group is not None and len(class_group) < teacher_logits.shape[2]
        self.split = split
        self.teacher_logits = teacher_logits
        self.class_group = class_group if has_other else None
        self.negatives_per_positive = negatives_per_positive
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the view and draw the "other" items of this epoch."""
        self.view = epoch % len(self.teacher_logits)
        self.items = np.arange(len(self.split))
        if self.class_group is not None:
            self.items = class_group_indices(
                self.split.labels,
                self.class_group,
                negatives_per_positive=self.negatives_per_positive,
                seed=self.seed,
                epoch=epoch,
            )

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """`pixel_values` (B, 3, H, W), global `labels` (B,) and `teacher_logits` (B, C) of the same view."""
        items = self.items[indices]
        return {
            "pixel_values": self.split.pixel_values(items, view=self.view),
            "labels": torch.from_numpy(self.split.labels[items]),
            "teacher_logits": torch.from_numpy(self.teacher_logits[self.view, items]),
        }


class FuseData:
    """Cached features of frozen sub-models; epoch e uses view e modulo the stored views.

    Args:
        features (`np.ndarray`): (V, N, D) or (N, D) float32, all sub-models' features side by side.
        labels (`np.ndarray`): (N,) int64.
        teacher_logits (`np.ndarray`): (V, N, C) or (N, C) float32, of the same views.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, teacher_logits: np.ndarray) -> None:
        self.features = torch.from_numpy(np.ascontiguousarray(_with_views(features)))
        self.teacher_logits = torch.from_numpy(np.ascontiguousarray(_with_views(teacher_logits)))
        self.labels = torch.from_numpy(labels)
        shapes = self.features.shape[:2], self.teacher_logits.shape[:2]
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

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """`features` (B, D), `labels` (B,) and `teacher_logits` (B, C)."""
        chosen = torch.from_numpy(indices)
        return {
            "features": self.features[self.view, chosen],
            "labels": self.labels[chosen],
            "teacher_logits": self.teacher_logits[self.view, chosen],
        }


def _with_views(array: np.ndarray) -> np.ndarray:
    return array[None] if array.ndim == 2 else array
