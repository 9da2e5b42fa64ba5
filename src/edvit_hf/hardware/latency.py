# SPDX-License-Identifier: Apache-2.0
"""How long a model takes on a device: a sum of few terms with coefficients that `edvit profile` measured there.

numpy alone, so that a device can fit its own profile. See `edvit_hf.hardware.profiling` for the measurement.
"""

from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.errors import ManifestError
from edvit_hf.hardware.profiles import LATENCY_FEATURES, DeviceProfile

_TOLERANCE = 1e-10  # of the gradient, against columns and targets of about unit length


def features(shape: ModelShape) -> dict[str, float]:
    """What an inference of one input consists of; each term only grows with every width, with layers and tokens.

    Returns:
        By name (`LATENCY_FEATURES`): 1; layers (the calls of about 30 operators each); 10^9 multiply-accumulates of
        the linear maps, and of the two attention products; 10^6 weights of the layers (read once per input,
        from memory if they exceed the cache); 10^6 values per input in the residual stream and the attention
        dimensions (norms, additions, biases, transpositions), in the FFN (bias, Gelu), in the attention maps (softmax).
    """
    w, tokens = shape.widths, shape.tokens
    return {
        "constant": 1.0,
        "layers": float(w.layers),
        "linear_gmacs": shape.linear_macs / 1e9,
        "attention_gmacs": shape.attention_macs / 1e9,
        "weight_millions": w.layers * w.residual * (4 * w.attention + 2 * w.ffn) / 1e6,
        "stream_millions": w.layers * tokens * (w.residual + w.attention) / 1e6,
        "ffn_millions": w.layers * tokens * w.ffn / 1e6,
        "softmax_millions": w.layers * w.heads * tokens**2 / 1e6,
    }


def feature_matrix(shapes: Sequence[ModelShape]) -> np.ndarray:
    """Features of N shapes, (N, F), columns in the order of `LATENCY_FEATURES`."""
    rows = [features(shape) for shape in shapes]
    return np.array([[row[name] for name in LATENCY_FEATURES] for row in rows], dtype=np.float64)


def fit(shapes: Sequence[ModelShape], milliseconds: Sequence[float]) -> dict[str, float]:
    """Coefficients in ms per unit of each feature, none negative, that minimise the squared relative error.

    Raises:
        ManifestError: If there is nothing to fit, or a latency is not positive and finite.
    """
    targets = np.asarray(milliseconds, dtype=np.float64)
    if len(shapes) != len(targets) or not len(targets) or not (np.isfinite(targets) & (targets > 0)).all():
        raise ManifestError(
            f"Fitting a latency model needs one positive, finite latency per shape; got {len(shapes)} shapes and "
            f"{list(milliseconds)!r:.120}. Predictions would be meaningless. Measure again."
        )
    matrix = feature_matrix(shapes) / targets[:, None]
    solution = non_negative_least_squares(matrix, np.ones(len(targets)))
    return {name: float(value) for name, value in zip(LATENCY_FEATURES, solution, strict=True)}


def non_negative_least_squares(matrix: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The x >= 0, (F,), that minimises |matrix @ x - targets|, for a matrix (N, F) and targets (N,).

    Source: Lawson and Hanson, Solving Least Squares Problems (1974), algorithm NNLS (23.10).
    Differs: columns are brought to unit length first, so that one tolerance suits features of any unit.
    """
    lengths = np.linalg.norm(matrix, axis=0)
    scaled = matrix / np.where(lengths > 0, lengths, 1.0)
    count = scaled.shape[1]
    x, active = np.zeros(count), np.zeros(count, dtype=bool)
    refused = np.zeros(count, dtype=bool)  # rounding alone made these look useful; until x changes
    limit = _TOLERANCE * max(1.0, float(np.linalg.norm(targets)))
    for _ in range(30 * count):
        gradient = np.where(active | refused, -np.inf, scaled.T @ (targets - scaled @ x))
        if gradient.max(initial=-np.inf) <= limit:
            break
        newest = int(gradient.argmax())
        active[newest] = True
        if _least_squares(scaled, targets, active)[newest] <= 0:
            active[newest], refused[newest] = False, True
            continue
        x, refused[:] = _feasible(scaled, targets, x, active), False
    return x / np.where(lengths > 0, lengths, 1.0)


def _least_squares(matrix: np.ndarray, targets: np.ndarray, active: np.ndarray) -> np.ndarray:
    """The unconstrained solution in the active columns, zero elsewhere."""
    solution = np.zeros(matrix.shape[1])
    solution[active] = np.linalg.lstsq(matrix[:, active], targets, rcond=None)[0]
    return solution


def _feasible(matrix: np.ndarray, targets: np.ndarray, x: np.ndarray, active: np.ndarray) -> np.ndarray:
    """The next x: towards the active columns' solution, leaving out (in `active`) what would turn negative."""
    candidate = _least_squares(matrix, targets, active)
    while (blocked := active & (candidate <= 0)).any():
        where = np.flatnonzero(blocked)
        steps = x[where] / (x[where] - candidate[where] + np.finfo(float).tiny)
        x = x + steps.min() * (candidate - x)
        active[where[steps.argmin()]] = False
        x[~active] = 0.0
        candidate = _least_squares(matrix, targets, active)
    return candidate


def predicted_ms(shape: ModelShape, profile: DeviceProfile, *, all_cores: bool = False) -> float | None:
    """Milliseconds of one fp32 input on a device: by its coefficients, else from its GFLOP/s, else None.

    Only what `edvit profile` wrote has coefficients. `all_cores` takes those for all cores where there are some, not
    those for one thread; `sustained_gflops` is a figure of all cores anyway.
    """
    coefficients = profile.latency_all_cores if all_cores and profile.latency_all_cores else profile.latency
    if coefficients is not None:
        return total_ms(shape, coefficients)
    return ms_at(shape.macs, profile.sustained_gflops)


@overload
def ms_at(macs: int, gflops: float) -> float: ...


@overload
def ms_at(macs: int, gflops: float | None) -> float | None: ...


def ms_at(macs: int, gflops: float | None) -> float | None:
    """Milliseconds of so many multiply-accumulates, two operations each, at a sustained speed; None without one."""
    return None if gflops is None else 2 * macs / gflops / 1e6


def total_ms(shape: ModelShape, coefficients: Mapping[str, float]) -> float:
    """The sum of the features, each with its coefficient."""
    values = features(shape)
    return sum(coefficients[name] * values[name] for name in LATENCY_FEATURES)


def fit_quality(shapes: Sequence[ModelShape], milliseconds: Sequence[float]) -> dict[str, Any]:
    """Relative errors of the fit on its own shapes, and on each shape when it is left out of the fit."""
    coefficients = fit(shapes, milliseconds)
    own = [abs(total_ms(s, coefficients) / t - 1) for s, t in zip(shapes, milliseconds, strict=True)]
    left_out = []
    for i in range(len(shapes) if len(shapes) > 1 else 0):
        others = fit([*shapes[:i], *shapes[i + 1 :]], [*milliseconds[:i], *milliseconds[i + 1 :]])
        left_out.append(abs(total_ms(shapes[i], others) / milliseconds[i] - 1))
    quality = {"median_relative_error": float(np.median(own)), "max_relative_error": max(own)}
    if left_out:
        quality["median_relative_error_left_out"] = float(np.median(left_out))
    return {name: round(value, 4) for name, value in quality.items()}
