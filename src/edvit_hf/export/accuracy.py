"""The accuracy gate: what an int8 or fp16 variant may lose against fp32, overall and in any one class group."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edvit_hf.errors import DataError
from edvit_hf.export.gates import Predict

_MIN_FLIPS = 3  # net right-to-wrong flips below which a loss of accuracy is not told from chance

FiguresByVariant = dict[str, dict[str, Any]]  # by its name


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What one predictor answered on every item of a split.

    Attributes:
        split: Name of the split.
        labels: (N,) right class of each item.
        predictions: (N,) answered class.
        figures: What else was measured, JSON-able, for the manifest.
    """

    split: str
    labels: np.ndarray
    predictions: np.ndarray
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """One answer for each of at least one item."""
        if self.labels.ndim != 1 or self.labels.shape != self.predictions.shape or not len(self.labels):
            raise DataError(
                f"Expected one prediction for each label, and at least one, got {self.predictions.shape} predictions "
                f"and {self.labels.shape} labels. A gate compares item by item. Correct what judges."
            )

    @property
    def correct(self) -> np.ndarray:
        """(N,) whether each item got its class."""
        return self.labels == self.predictions

    @property
    def accuracy(self) -> float:
        """Share of the items that got their class, in 0..1."""
        return float(self.correct.mean())

    def to_row(self) -> dict[str, Any]:
        """The figures without the single items."""
        row = {"split": self.split, "num_items": len(self.labels), "accuracy": self.accuracy}
        return {**row, **self.figures, **row}


class Judge(Protocol):
    """Measures anything that predicts on one split, always on the same items in the same order."""

    def __call__(self, predict: Predict, class_group: Sequence[int] | None = None) -> Judgement:
        """Judge the whole ensemble's logits, or a sub-model's vote over `class_group` and "other" (last)."""
        ...


def accuracy_gate(
    fp32: Judgement,
    other: Judgement,
    *,
    precision: str,
    class_groups: Sequence[Sequence[int]],
    max_loss: float,
    max_group_loss: float,
) -> dict[str, Any]:
    """Judge a variant by fp32, item by item: the rule as it really binds, its figures and the verdict.

    A loss counts only if at least three items, on balance, turned from right to wrong: with few items a single
    flip can exceed any percentage. `tolerance` is the loss that this allows on so many items; with few of them
    it is larger than the loss that was set.

    Args:
        fp32 (`Judgement`): Of the fp32 ensemble.
        other (`Judgement`): Of the variant, on the same items.
        precision (`str`): "int8" or "fp16", which names its figure.
        class_groups (`Sequence[Sequence[int]]`): Classes of each sub-model; an item counts for its label's group.
        max_loss (`float`): Allowed loss overall, a fraction.
        max_group_loss (`float`): Allowed loss in any one class group.

    Returns:
        `dict`: For the manifest, JSON-able; "passed" is the verdict, "groups" holds the same for each class group.

    Raises:
        DataError: If the two were not measured on the same items.
    """
    if fp32.split != other.split or not np.array_equal(fp32.labels, other.labels):
        raise DataError(
            f"Expected {precision} and fp32 to be measured on the same items, got {len(other.labels)} of "
            f"{other.split!r} and {len(fp32.labels)} of {fp32.split!r} with other labels or in another order. Their "
            "difference would say nothing. Give one split."
        )
    flips = fp32.correct.astype(np.int64) - other.correct.astype(np.int64)
    groups = [_bound(flips[np.isin(fp32.labels, list(group))], max_group_loss) for group in class_groups]
    overall = _bound(flips, max_loss)
    return {
        "split": fp32.split,
        **overall,
        "accuracy_fp32": fp32.accuracy,
        f"accuracy_{precision}": other.accuracy,
        "max_loss": max_loss,
        "max_group_loss": max_group_loss,
        "groups": groups,
        "rule": f"refused if more than max_loss of the items, or more than max_group_loss of a class group's items, "
        f"and at least {_MIN_FLIPS}, turn wrong on balance",
        "passed": overall["passed"] and all(group["passed"] for group in groups),
    }


def _bound(flips: np.ndarray, max_loss: float) -> dict[str, Any]:
    """Net flips among some items (N,), how many are allowed, and whether they are that few."""
    num_items, net = len(flips), int(flips.sum())
    allowed = max(_MIN_FLIPS - 1, math.floor(max_loss * num_items + 1e-9))
    return {
        "num_items": num_items,
        "net_flips": net,
        "max_net_flips": allowed,
        "tolerance": allowed / num_items if num_items else None,
        "passed": net <= allowed,
    }


def worst_group(gate: Mapping[str, Any]) -> int:
    """Index of the class group that lost the largest share of its items, from the record of `accuracy_gate`."""
    losses = [group["net_flips"] / max(1, group["num_items"]) for group in gate["groups"]]
    return int(np.argmax(losses))


def loss_message(name: str, precision: str, gate: Mapping[str, Any], group_names: Sequence[str]) -> str:
    """Why a variant's accuracy is not acceptable, and what to do.

    Args:
        name (`str`): Of the variant, "qint8_arm64".
        precision (`str`): "int8" or "fp16".
        gate (`Mapping`): From `accuracy_gate`.
        group_names (`Sequence[str]`): What each class group is called, for people.
    """
    index = worst_group(gate)
    group, before, after = gate["groups"][index], gate["accuracy_fp32"], gate[f"accuracy_{precision}"]
    remedy = "Leave it out (`precisions`), or allow a larger loss."
    if precision == "int8":
        remedy = "Let the export find what must stay float (`--auto`, in a recipe `auto: true`). Or l" + remedy[1:]
    return (
        f"{name}: expected at most {gate['max_net_flips']} more of {gate['num_items']} {gate['split']} items wrong "
        f"than fp32 (`max_accuracy_loss` {gate['max_loss']:.2%}) and at most {group['max_net_flips']} of the "
        f"{group['num_items']} of class group {index}, the worst ({group_names[index]}; `max_group_accuracy_loss` "
        f"{gate['max_group_loss']:.2%}), got {gate['net_flips']} ({before:.2%} -> {after:.2%}) and "
        f"{group['net_flips']}. Devices would answer worse than the ensemble that was measured. {remedy}"
    )
