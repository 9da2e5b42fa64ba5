# SPDX-License-Identifier: Apache-2.0
"""The gates of an export: parity with torch for fp32, and accuracy against fp32 for int8 and fp16.

An exported file must answer like torch before anybody may load it; a variant may lose so much accuracy, overall and in
any one class group.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime

from edvit_hf.errors import DataError, ExportGateError
from edvit_hf.hardware.timing import quiet_options
from edvit_hf.manifest import Parity
from edvit_hf.tasks import ANSWERS

Arrays = Mapping[str, np.ndarray]
Predict = Callable[[Arrays], np.ndarray]  # model inputs by name, rows first -> logits (B, L)


# Batches of 1 and 2 are where a graph that froze its batch size shows; 5 is no power of two.
_TRIAL_BATCHES = (1, 2, 5)
_BATCH = 64
MIN_ITEMS = sum(_TRIAL_BATCHES)


class GraphSession:
    """One ONNX file on onnxruntime's CPU provider.

    Raises:
        ExportGateError: If onnxruntime cannot open it.
    """

    def __init__(self, path: Path) -> None:
        try:
            options = quiet_options(0, spin=True)  # an export has the machine to itself
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's, which have no common class
            reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
            raise ExportGateError(
                f"{path.name}: expected a graph that runs, but onnxruntime {onnxruntime.__version__} cannot open it: "
                f"{reason}. No device with it could either. Export with a lower opset, or leave this kind of file out "
                "(`precisions`)."
            ) from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run one batch: outputs by name."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))


class OnnxEnsemble:
    """Exported sub-models and fusion head, run in turn: inputs -> logits."""

    def __init__(self, sub_models: Sequence[Path], fusion: Path) -> None:
        self.sub_models = [GraphSession(path) for path in sub_models]
        self.fusion = GraphSession(fusion)

    def __call__(self, inputs: Arrays, absent: Sequence[int] = ()) -> np.ndarray:
        """Logits (B, L) of inputs by name, rows first, with the named sub-models absent."""
        return self.fuse(self.answers(inputs), absent)

    def answers(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """`features` (B, D) and `votes` (B, V) of all sub-models side by side."""
        feeds = as_feeds(inputs)
        return side_by_side([run(**feeds) for run in self.sub_models])

    def fuse(self, answers: Arrays, absent: Sequence[int] = ()) -> np.ndarray:
        """Logits (B, L) of what `answers` gave, with the named sub-models absent."""
        return self.fusion(**answers, mask=mask_without(absent, answers, len(self.sub_models)))["logits"]


def side_by_side(answers: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """`features` (B, D) and `votes` (B, V) of all sub-models from the `features` and `logits` of each."""
    return {name: np.concatenate([each[of] for each in answers], axis=1) for name, of in ANSWERS.items()}


def mask_without(absent: Sequence[int], answers: Arrays, num_sub_models: int) -> np.ndarray:
    """Mask (B, S) float32 for as many rows as there are answers: 0 for the sub-models that are named."""
    mask = np.ones((len(answers["features"]), num_sub_models), np.float32)
    mask[:, list(absent)] = 0.0
    return mask


def as_feeds(inputs: Arrays) -> dict[str, np.ndarray]:
    """Inputs as graphs take them: numbers as float32, token ids and masks as int64, contiguous."""
    dtypes = {name: np.float32 if values.dtype.kind == "f" else np.int64 for name, values in inputs.items()}
    return {name: np.ascontiguousarray(values, dtype=dtypes[name]) for name, values in inputs.items()}


def run_batches(run: Callable[..., Arrays], inputs: Arrays) -> dict[str, np.ndarray]:
    """Run all items in batches of 1, 2, 5 and then 64, and join the outputs."""
    num_items = len(next(iter(inputs.values())))
    starts = [0, *np.cumsum(_TRIAL_BATCHES)]
    starts = [s for s in [*starts, *range(MIN_ITEMS + _BATCH, num_items, _BATCH)] if s < num_items]
    stops = [*starts[1:], num_items]
    return _joined([run(**{k: v[a:b] for k, v in inputs.items()}) for a, b in zip(starts, stops, strict=True)])


def run_rounds(run: Callable[..., Arrays], rounds: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Run every round in the batches of `run_batches`, and join the outputs."""
    return _joined([run_batches(run, inputs) for inputs in rounds])


def _joined(parts: Sequence[Arrays]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def measure_parity(reference: Arrays, got: Arrays, *, what: str) -> Parity:
    """Compare outputs with torch's on the same inputs; "logits" (N, L) are among them.

    Returns:
        `Parity`: The worst output counts; each is measured against its own largest absolute value.

    Raises:
        ExportGateError: If a value is not finite or a shape differs.
    """
    worst_abs = worst_relative = 0.0
    for name, expected in reference.items():
        found = got[name]
        if found.shape != expected.shape or not np.isfinite(found).all():
            raise ExportGateError(
                f"{what}: expected finite {name} of shape {expected.shape}, got shape {found.shape} with "
                f"{int((~np.isfinite(found)).sum())} values that are not finite. Such a file answers nonsense; the "
                "export is at fault, or the torch model itself overflows."
            )
        difference = float(np.abs(found - expected).max())
        worst_abs = max(worst_abs, difference)
        worst_relative = max(worst_relative, difference / max(float(np.abs(expected).max()), 1e-30))
    same = reference["logits"].argmax(axis=1) == got["logits"].argmax(axis=1)
    return Parity(
        max_abs=worst_abs,
        relative_to_largest_logit=worst_relative,
        argmax_agreement=float(same.mean()),
        num_items=len(same),
    )


def check_parity(parity: Parity, reference: Arrays, got: Arrays, *, tolerance: float, atol: float, what: str) -> None:
    """Refuse an fp32 graph that differs from torch by more than `tolerance` of the largest value, and more than `atol`.

    Raises:
        ExportGateError: If the difference is larger, or an answer changed that torch was sure of.
    """
    if parity.relative_to_largest_logit > tolerance and parity.max_abs > atol:
        raise ExportGateError(
            f"{what}: expected a difference from torch of at most {tolerance:.1e} of the largest value, got "
            f"{parity.relative_to_largest_logit:.1e} (absolute {parity.max_abs:.1e}) over {parity.num_items} items. "
            "The file is not the trained model. Export with the versions in constraints.txt, or raise "
            "`max_relative_difference`."
        )
    logits = reference["logits"]
    changed = logits.argmax(axis=1) != got["logits"].argmax(axis=1)
    if logits.shape[1] < 2 or not changed.any():
        return
    top_two = np.sort(logits, axis=1)[:, -2:]
    margin = (top_two[:, 1] - top_two[:, 0])[changed]
    allowed = max(atol, tolerance * float(np.abs(logits).max()))
    if (margin > allowed).any():
        raise ExportGateError(
            f"{what}: {int((margin > allowed).sum())} of {parity.num_items} answers differ from torch where its two "
            f"best labels are more than {allowed:.1e} apart (up to {margin.max():.1e}). The file is not the trained "
            "model. Export with the versions in constraints.txt."
        )


_MIN_FLIPS = 3  # net right-to-wrong flips below which a loss of accuracy is not told from chance

FiguresByVariant = dict[str, dict[str, Any]]  # by its name


@dataclass(frozen=True, kw_only=True)
class SplitAnswers:
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
                f"and {self.labels.shape} labels. A gate compares item by item. Correct what measures."
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


class SplitMeasure(Protocol):
    """Measures anything that predicts on one split, always on the same items in the same order."""

    def __call__(self, predict: Predict, class_group: Sequence[int] | None = None) -> SplitAnswers:
        """Answer every item of the split: the whole ensemble, or a sub-model over `class_group` and "other" (last)."""
        ...


def accuracy_gate(
    fp32: SplitAnswers,
    other: SplitAnswers,
    *,
    precision: str,
    class_groups: Sequence[Sequence[int]],
    max_loss: float,
    max_group_loss: float,
) -> dict[str, Any]:
    """Compare a variant with fp32 item by item, and judge whether it may lose that much.

    A loss counts only if at least three items, on balance, turned from right to wrong: with few items a single
    flip can exceed any percentage. `tolerance` is the loss that this allows on so many items; with few of them
    it is larger than the loss that was set. An item counts for the class group of its label. `precision` names the
    figure of the variant; losses are fractions.

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
    """Count the net flips among items (N,), the number allowed, and whether they pass."""
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
    """Why a variant's accuracy is not acceptable, and what to do."""
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
