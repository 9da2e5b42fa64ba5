"""Parity: an exported file must answer like torch before anybody may load it. Accuracy has its own gate."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from edvit_hf.errors import ExportGateError, MissingExtraError
from edvit_hf.manifest import Parity

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
        MissingExtraError: If onnxruntime is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("Checking an export", "export", "onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
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
        return self.fuse(self.features(inputs), absent)

    def features(self, inputs: Arrays) -> np.ndarray:
        """Features (B, D) of all sub-models side by side."""
        feeds = as_feeds(inputs)
        return np.concatenate([run(**feeds)["features"] for run in self.sub_models], axis=1)

    def fuse(self, features: np.ndarray, absent: Sequence[int] = ()) -> np.ndarray:
        """Logits (B, L) of features (B, D) with the named sub-models absent."""
        mask = np.ones((len(features), len(self.sub_models)), np.float32)
        mask[:, list(absent)] = 0.0
        return self.fusion(features=features, mask=mask)["logits"]


def as_feeds(inputs: Arrays) -> dict[str, np.ndarray]:
    """Inputs as graphs take them: numbers as float32, token ids and masks as int64, contiguous."""
    dtypes = {name: np.float32 if values.dtype.kind == "f" else np.int64 for name, values in inputs.items()}
    return {name: np.ascontiguousarray(values, dtype=dtypes[name]) for name, values in inputs.items()}


def parity_rounds(inputs: Arrays) -> list[Arrays]:
    """The inputs that parity is measured on: as they are and, of texts, cut to half their length as well.

    A graph that froze its number of tokens shows only at another one.
    """
    if "input_ids" not in inputs:
        return [inputs]
    num_tokens = inputs["input_ids"].shape[1]
    return [inputs, {name: values[:, : (num_tokens + 1) // 2] for name, values in inputs.items()}]


def run_batches(run: Callable[..., Arrays], inputs: Arrays) -> dict[str, np.ndarray]:
    """Run all items in batches of 1, 2, 5 and then 64, and join the outputs."""
    num_items = len(next(iter(inputs.values())))
    starts = [0, *np.cumsum(_TRIAL_BATCHES)]
    starts = [s for s in [*starts, *range(MIN_ITEMS + _BATCH, num_items, _BATCH)] if s < num_items]
    stops = [*starts[1:], num_items]
    parts = [run(**{k: v[a:b] for k, v in inputs.items()}) for a, b in zip(starts, stops, strict=True)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def run_rounds(run: Callable[..., Arrays], rounds: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Run every round in the batches of `run_batches`, and join the outputs."""
    parts = [run_batches(run, inputs) for inputs in rounds]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def measure_parity(reference: Arrays, got: Arrays, *, what: str) -> Parity:
    """Compare outputs with torch's on the same inputs.

    Args:
        reference (`dict[str, np.ndarray]`): torch's outputs; "logits" (N, L) among them.
        got (`dict[str, np.ndarray]`): The exported graph's.
        what (`str`): Named in errors.

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
                f"{int((~np.isfinite(found)).sum())} values that are not finite. Such a file answers "
                f"nonsense; the "
                f"export is at fault, or the torch model itself overflows."
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
    """Refuse an fp32 graph that differs from torch.

    Args:
        parity (`Parity`): Of these arrays.
        reference (`dict[str, np.ndarray]`): torch's outputs.
        got (`dict[str, np.ndarray]`): The exported graph's.
        tolerance (`float`): Allowed difference over the largest value.
        atol (`float`): Difference that is always allowed.
        what (`str`): Named in errors.

    Raises:
        ExportGateError: If the difference is larger, or an answer changed that torch was sure of.
    """
    if parity.relative_to_largest_logit > tolerance and parity.max_abs > atol:
        raise ExportGateError(
            f"{what}: expected a difference from torch of at most {tolerance:.1e} of the largest value, got "
            f"{parity.relative_to_largest_logit:.1e} (absolute {parity.max_abs:.1e}) over "
            f"{parity.num_items} items. "
            f"The file is not the trained model. Export with the versions in constraints.txt, or raise "
            f"`max_relative_difference`."
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
            f"{what}: {int((margin > allowed).sum())} of {parity.num_items} answers differ from torch "
            f"where its two "
            f"best labels are more than {allowed:.1e} apart (up to {margin.max():.1e}). The file is not "
            f"the trained "
            f"model. Export with the versions in constraints.txt."
        )
