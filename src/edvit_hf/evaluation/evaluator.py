# SPDX-License-Identifier: Apache-2.0
"""One way to measure: `evaluate(predict, batches)` serves torch, ONNX and a live runtime alike. Light: no torch.

Beside it what the figures are made of, and paired intervals.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from edvit_hf.errors import DataError, RecipeError
from edvit_hf.probabilities import expected_calibration_error, softmax
from edvit_hf.strict import number, one_of, whole_number
from edvit_hf.tasks import MAX_SUBSETS

if TYPE_CHECKING:
    import torch


Rival = Literal["replicas", "all_passes", "large", "copies", "device_copies"]
USUAL_RIVALS: tuple[Rival, ...] = ("replicas", "large", "copies")
"""What stands beside the figures of a published recipe."""

# model inputs by name, rows first, as numpy arrays -> (B, L) logits
Predict = Callable[[Mapping[str, np.ndarray]], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What stands beside the ensemble in the results.

    Attributes:
        baselines: Train what the ensemble is compared with: the `rivals`, and a small CNN, or TF-IDF with a linear
            classifier for text. Left out: true for a recipe of the package and where `rivals` or `baseline_epochs` are
            written, else false; the results say what was left out and about what it would take.
        rivals: Only with `baselines`: which plain models. "replicas": one of a device's size, on every device;
            "all_passes": the same, trained as long as all devices together; "large": one of the size of all devices
            together; "copies": one of another seed on each device, votes averaged, trained as long in all as the
            sub-models in all; "device_copies": the same, each trained as long as the plain one. All are kept beside the
            teacher and trained once.
        baseline_epochs: Epochs of a plain model over all items. None: as long as a device trains that sees every item,
            the epochs of distillation, pruning rounds and joint tuning together.
        devices: For how many devices a single sub-model, the same on each, is compared with what else they could carry.
            None: for all of the fleet that hold it. A `strategy` sets it to the number that was asked for.
        max_subsets: At most this many subsets of absent sub-models are measured for each number absent, on test items
            and where validation items decide over a fusion.
        batch_size: Test items per forward pass.
    """

    baselines: bool = True
    rivals: tuple[Rival, ...] = USUAL_RIVALS
    baseline_epochs: int | None = None
    devices: int | None = None
    max_subsets: int = MAX_SUBSETS
    batch_size: int = 256

    def __post_init__(self) -> None:
        for name in ("baseline_epochs", "devices", "max_subsets", "batch_size"):
            value = getattr(self, name)
            if value is not None:
                whole_number(f"evaluate.{name}", value, 1, "nothing would be measured")
        for rival in self.rivals:
            one_of("evaluate.rivals", rival, get_args(Rival), "each names a kind of rival that is trained")
        if len(set(self.rivals)) != len(self.rivals):
            raise RecipeError(
                f"`evaluate.rivals` must name each kind once, got {list(self.rivals)}: a row would stand twice. Remove "
                "what is double."
            )
        object.__setattr__(self, "rivals", tuple(each for each in get_args(Rival) if each in self.rivals))


@dataclass(frozen=True)
class Evaluation:
    """What was measured on one set of items; shares lie in 0..1, None where no item has the class.

    `macro_f1` averages over the classes that occur as label or as prediction (scikit-learn's rule);
    `calibration_error` is the expected calibration error of the softmax, in 15 bins of confidence.
    `seconds` is the time spent inside `predict`, without loading data.
    """

    num_items: int
    accuracy: float
    macro_f1: float
    calibration_error: float
    per_class_accuracy: list[float | None]
    per_group_accuracy: list[float | None] | None
    predictions: np.ndarray
    labels: np.ndarray
    seconds: float

    def to_row(self) -> dict[str, Any]:
        """The figures without the single predictions, ready for JSON."""
        names = [field.name for field in fields(self) if field.name not in ("predictions", "labels")]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class PairedInterval:
    """Difference in accuracy (0..1) of two classifiers on the same items, a minus b, with its interval."""

    difference: float
    low: float
    high: float
    num_items: int


def evaluate(
    predict: Predict,
    batches: Iterable[Mapping[str, Any]],
    *,
    num_labels: int,
    class_groups: Sequence[Sequence[int]] | None = None,
    progress: bool = False,
) -> Evaluation:
    """Run `predict` over all batches and count.

    Args:
        predict: Inputs by name -> (B, num_labels) logits.
        batches: Each with `inputs`, a mapping from the names of the model's arguments to arrays or CPU tensors, and
            `labels` (B,).
        num_labels: Number of logits expected; labels lie in 0..num_labels - 1.
        class_groups: For accuracy per class group.
        progress: Show a progress bar.

    Returns:
        `Evaluation`: The figures and every single prediction.

    Raises:
        ValueError: If there are no items, or logits or labels are not what was promised.
    """
    all_labels, all_logits, seconds = [], [], 0.0
    for batch in _with_bar(batches, is_shown=progress):
        labels = np.asarray(batch["labels"], dtype=np.int64)
        inputs = {name: np.asarray(values) for name, values in batch["inputs"].items()}
        start = time.perf_counter()
        logits = np.asarray(predict(inputs))
        seconds += time.perf_counter() - start
        _check_batch(logits, labels, num_labels)
        all_labels.append(labels)
        all_logits.append(logits)
    if not all_labels:
        raise ValueError("There are no batches to evaluate: a share of nothing is undefined. Check the split.")
    labels, logits = np.concatenate(all_labels), np.concatenate(all_logits)
    predictions = logits.argmax(axis=1)
    counts = confusion_counts(labels, predictions, num_labels)
    return Evaluation(
        num_items=len(labels),
        accuracy=float((labels == predictions).mean()),
        macro_f1=macro_f1(counts),
        calibration_error=expected_calibration_error(softmax(logits), labels),
        per_class_accuracy=[_share(counts[label, label], counts[label].sum()) for label in range(num_labels)],
        per_group_accuracy=None if class_groups is None else group_accuracy(counts, class_groups),
        predictions=predictions,
        labels=labels,
        seconds=seconds,
    )


def confusion_counts(labels: np.ndarray, predictions: np.ndarray, num_labels: int) -> np.ndarray:
    """(num_labels, num_labels) int64: row is the label, column the prediction."""
    flat = np.bincount(labels * num_labels + predictions, minlength=num_labels**2)
    return flat.reshape(num_labels, num_labels)


def macro_f1(counts: np.ndarray) -> float:
    """Mean F1 over the classes that occur as label or as prediction."""
    total = counts.sum(axis=0) + counts.sum(axis=1)
    occurs = total > 0
    return float((2 * counts.diagonal()[occurs] / total[occurs]).mean())


def group_accuracy(counts: np.ndarray, class_groups: Sequence[Sequence[int]]) -> list[float | None]:
    """Share of the items of each class group that get their exact class, from confusion counts."""
    groups = [np.asarray(list(group), dtype=np.int64) for group in class_groups]
    return [_share(counts[group, group].sum(), counts[group].sum()) for group in groups]


def torch_predict(model: "torch.nn.Module", **forward_kwargs: Any) -> Predict:
    """`predict` for a torch classifier, on the device where the model is, in eval mode.

    Args:
        model: Takes the inputs by name, returns an object with `.logits`.
        forward_kwargs: Passed to every forward call, for example `sub_model_mask`.
    """
    import torch

    def predict(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        was_training = model.training
        model.eval()
        device = next(model.parameters()).device
        try:
            with torch.inference_mode():
                tensors = {k: torch.from_numpy(np.ascontiguousarray(v)).to(device) for k, v in inputs.items()}
                return model(**tensors, **forward_kwargs).logits.float().cpu().numpy()
        finally:
            model.train(was_training)

    return predict


def paired_interval(
    correct_a: np.ndarray, correct_b: np.ndarray, *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> PairedInterval:
    """Percentile bootstrap over items of accuracy a minus accuracy b.

    The difference of an item takes few values (-1, 0 or +1; more where a share over subsets stands for right or wrong),
    so drawing N items with replacement is one multinomial draw of their counts: exact, and independent of N in time and
    memory.

    Args:
        correct_a: (N,) bool, whether a is right on each item; or in 0..1, the share of several answers that are.
        correct_b: (N,) of the same kind, for the same items in the same order.
        level: Coverage in (0, 1).
        num_resamples: Bootstrap draws.
        seed: Seed of the draws.

    Raises:
        ValueError: Other shapes, values outside 0..1, or an argument out of range.
    """
    correct_a, correct_b = np.asarray(correct_a, dtype=np.float64), np.asarray(correct_b, dtype=np.float64)
    if correct_a.shape != correct_b.shape or correct_a.ndim != 1 or len(correct_a) == 0:
        raise ValueError(
            f"`correct_a` and `correct_b` must be vectors over the same items, got {correct_a.shape} and "
            f"{correct_b.shape}: a paired interval compares item by item."
        )
    if not all(((each >= 0) & (each <= 1)).all() for each in (correct_a, correct_b)):  # also where one is no number
        raise ValueError(
            "`correct_a` and `correct_b` must lie in 0..1: they say whether, or how often, an item's answer is right."
        )
    number("level", level, "(0, 1)", "it is the share of draws inside the interval", DataError)
    whole_number("num_resamples", num_resamples, 1, "quantiles need draws", DataError)
    num_items = len(correct_a)
    own, own_counts = np.unique(np.round(correct_a - correct_b, 9), return_counts=True)
    values = np.union1d(own, [-1.0, 0.0, 1.0])
    values = values[np.lexsort((-values, -np.abs(values)))]  # better, worse, the same: the order of the draws
    of = dict(zip(own.tolist(), own_counts.tolist(), strict=True))
    shares = np.array([of.get(value, 0) for value in values.tolist()]) / num_items
    counts = np.random.default_rng(seed).multinomial(num_items, shares, size=num_resamples)
    differences = counts @ values / num_items
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return PairedInterval(float(own_counts @ own / num_items), float(low), float(high), num_items)


def _with_bar(batches: Iterable[Mapping[str, Any]], *, is_shown: bool) -> Iterable[Mapping[str, Any]]:
    if not is_shown:
        return batches
    from tqdm.auto import tqdm

    return tqdm(batches, desc="evaluate", unit="batch")


def _check_batch(logits: np.ndarray, labels: np.ndarray, num_labels: int) -> None:
    if logits.shape != (len(labels), num_labels):
        raise ValueError(
            f"`predict` returned logits of shape {logits.shape}, expected {(len(labels), num_labels)}: one "
            "row per item and one column per label. Check that model and dataset belong together."
        )
    if not np.isfinite(logits).all():
        raise ValueError("`predict` returned logits that are not finite: their argmax would be an arbitrary class.")
    if labels.size and not 0 <= labels.min() <= labels.max() < num_labels:
        raise ValueError(f"Labels must lie in 0..{num_labels - 1}, got {labels.min()}..{labels.max()}.")


def _share(part: np.integer, whole: np.integer) -> float | None:
    return float(part / whole) if whole else None
