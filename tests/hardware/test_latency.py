# SPDX-License-Identifier: Apache-2.0
"""The latency model: what it sums up, how it is fitted, what it predicts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.errors import ManifestError
from edvit_hf.hardware.latency import features, fit, fit_quality, non_negative_least_squares, predicted_ms, total_ms
from edvit_hf.hardware.profiles import FIGURES, LATENCY_FEATURES, DeviceProfile
from edvit_hf.hardware.profiling_graphs import encoder_shape, shapes_to_measure

VIT_BASE = {"model_type": "vit", "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
TRUE = dict(zip(LATENCY_FEATURES, (0.01, 0.02, 8, 10, 0.2, 1.5, 0.7, 0.4), strict=True))


def profile(**changes):
    return DeviceProfile(name="x", isa="avx2", quantization="avx2", sources=dict.fromkeys(FIGURES, "a test"), **changes)


def test_the_features_of_vit_base_by_hand():
    assert features(ModelShape.from_config(VIT_BASE, num_labels=10)) == pytest.approx(
        {
            "constant": 1,
            "layers": 12,
            "linear_gmacs": (196 * 768 * 768 + 12 * 197 * 12 * 768**2 + 768 * 10) / 1e9,
            "attention_gmacs": 12 * 2 * 197**2 * 768 / 1e9,
            "weight_millions": 12 * 12 * 768**2 / 1e6,
            "stream_millions": 12 * 197 * 2 * 768 / 1e6,
            "ffn_millions": 12 * 197 * 3072 / 1e6,
            "softmax_millions": 12 * 12 * 197**2 / 1e6,
        }
    )


@pytest.mark.parametrize("model_type", ["vit", "deit", "audio-spectrogram-transformer", "bert", "distilbert"])
def test_every_architecture_has_all_features(model_type):
    values = features(ModelShape.from_config({"model_type": model_type}, num_labels=4))
    assert tuple(values) == LATENCY_FEATURES
    assert all(value > 0 for value in values.values())


@pytest.mark.parametrize("quick", [False, True])
def test_the_fit_recovers_known_coefficients_from_the_shapes_that_are_measured(quick):
    shapes = shapes_to_measure(quick=quick)
    found = fit(shapes, [total_ms(shape, TRUE) for shape in shapes])
    assert found == pytest.approx(TRUE, rel=1e-3)


def test_the_fit_weighs_relative_errors():
    small, large = encoder_shape(16, 1, 16, 16, 1, 2, 2), encoder_shape(704, 11, 64, 2816, 3, 12, 15)
    shapes = [*shapes_to_measure(), small]
    truth = [total_ms(shape, TRUE) for shape in shapes]
    noise = np.random.default_rng(0).uniform(0.95, 1.05, len(shapes))
    found = fit(shapes, [ms * factor for ms, factor in zip(truth, noise, strict=True)])
    for shape in (small, large):
        assert total_ms(shape, found) == pytest.approx(total_ms(shape, TRUE), rel=0.06)


def test_the_quality_of_a_perfect_fit_and_of_a_noisy_one():
    shapes = shapes_to_measure()
    perfect = fit_quality(shapes, [total_ms(shape, TRUE) for shape in shapes])
    assert max(perfect.values()) < 1e-3
    noisy = fit_quality(shapes, [total_ms(s, TRUE) * (1.3 if i % 2 else 0.8) for i, s in enumerate(shapes)])
    assert noisy["max_relative_error"] >= noisy["median_relative_error"] > 0.05
    assert noisy["median_relative_error_left_out"] > noisy["median_relative_error"]
    assert "median_relative_error_left_out" not in fit_quality(shapes[:1], [1.0])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 2**31), st.booleans())
def test_non_negative_least_squares_equals_scipy(rows, columns, seed, is_degenerate):
    generator = np.random.default_rng(seed)
    matrix, targets = generator.normal(size=(rows, columns)), generator.normal(size=rows)
    if is_degenerate:
        matrix[:, -1] = 2 * matrix[:, 0]
        matrix[:, columns // 2] = 0
    ours = non_negative_least_squares(matrix, targets)
    assert (ours >= 0).all()
    expected = np.linalg.norm(matrix @ nnls(matrix, targets)[0] - targets)
    assert np.linalg.norm(matrix @ ours - targets) == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_units_of_very_different_size_do_not_disturb_the_fit():
    matrix = np.abs(np.random.default_rng(1).normal(size=(20, 3))) * [1e-6, 1.0, 1e9]
    wanted = np.array([2e6, 0.5, 3e-9])
    np.testing.assert_allclose(non_negative_least_squares(matrix, matrix @ wanted), wanted, rtol=1e-8)


@pytest.mark.parametrize("latencies", [[], [1.0], [1.0, -1.0], [1.0, float("nan")], [0.0, 1.0]])
def test_latencies_that_cannot_be_are_refused(latencies):
    with pytest.raises(ManifestError, match="one positive, finite latency per shape"):
        fit(shapes_to_measure()[:2], latencies)


coefficients = st.fixed_dictionaries({name: st.floats(0, 100) for name in LATENCY_FEATURES})


@settings(max_examples=40, deadline=None)
@given(
    coefficients,
    st.sampled_from(["residual", "heads", "head_dim", "ffn", "layers", "labels"]),
    st.sampled_from(["vit", "audio-spectrogram-transformer", "bert"]),
)
def test_predictions_are_never_negative_and_grow_with_every_width(latency, axis, model_type):
    shape = ModelShape.from_config({"model_type": model_type}, num_labels=4)
    wider = shape.resized(replace(shape.widths, **{axis: getattr(shape.widths, axis) + 1}))
    device = profile(latency=latency)
    assert 0 <= predicted_ms(shape, device) <= predicted_ms(wider, device)


def test_a_device_without_coefficients_is_predicted_from_its_gflops_or_not_at_all():
    shape = ModelShape.from_config(VIT_BASE, num_labels=10)
    assert predicted_ms(shape, profile()) is None
    assert predicted_ms(shape, profile(sustained_gflops=10.0)) == pytest.approx(2 * shape.macs / 10e9 * 1e3)
    assert predicted_ms(shape, profile(sustained_gflops=10.0), all_cores=True) == predicted_ms(
        shape, profile(sustained_gflops=10.0)
    )
    measured = profile(sustained_gflops=10.0, latency=TRUE)
    assert predicted_ms(shape, measured) == pytest.approx(total_ms(shape, TRUE))
    assert predicted_ms(shape, measured, all_cores=True) == predicted_ms(shape, measured)
    both = profile(latency=TRUE, latency_all_cores={name: value / 2 for name, value in TRUE.items()})
    assert predicted_ms(shape, both, all_cores=True) == pytest.approx(total_ms(shape, TRUE) / 2)
