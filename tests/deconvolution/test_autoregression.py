from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from napari_calcium.deconvolution.autoregression import (
    MAX_DECAY,
    MIN_DECAY,
    decay_coefficient,
    noise_level,
)


def calcium(g: float, shape: tuple[int, int], seed: int) -> np.ndarray:
    spikes = 6.0 * np.random.default_rng(seed).poisson(0.01, shape)
    return np.asarray(lfilter([1], [1, -g], spikes, axis=1))


@pytest.mark.parametrize(("g", "tolerance"), [(0.7, 0.1), (0.9, 0.04), (0.95, 0.015), (0.98, 0.01)])
def test_known_decay_is_recovered_from_noisy_traces(g: float, tolerance: float) -> None:
    """Median over 40 traces; fast transients reach into the noise band and bias it upwards."""
    noise = np.random.default_rng(5).normal(size=(40, 5000))
    traces = 300 + calcium(g, (40, 5000), seed=6) + noise
    found = decay_coefficient(traces, noise_level(traces))
    assert abs(float(np.median(found)) - g) < tolerance


def test_noise_correction_matters() -> None:
    """At 3 sd of noise the uncorrected ratio is far too small; the corrected is within 0.05."""
    noise = np.random.default_rng(7).normal(scale=3, size=(20, 5000))
    traces = calcium(0.95, (20, 5000), seed=8) + noise
    right = np.median(decay_coefficient(traces, np.full(20, 3.0)))
    wrong = np.median(decay_coefficient(traces, np.zeros(20), lags=1))
    assert abs(float(right) - 0.95) < 0.05
    assert wrong < 0.7


def test_offset_and_scale_do_not_matter() -> None:
    traces = calcium(0.9, (3, 1000), seed=9)
    noise = np.full(3, 0.1)
    expected = decay_coefficient(traces, noise)
    np.testing.assert_allclose(decay_coefficient(500 + 8 * traces, 8 * noise), expected, rtol=1e-6)


def test_degenerate_traces_stay_in_the_open_interval() -> None:
    flat = np.full((1, 100), 7.0)
    ramp = np.arange(100.0)[None]
    flicker = np.resize([1.0, -1.0], (1, 100))
    missing = np.full((1, 100), np.nan)
    traces = np.concatenate([flat, ramp, flicker, missing])
    found = decay_coefficient(traces, np.zeros(4))
    assert np.all((found > 0) & (found < 1))
    np.testing.assert_allclose(found[[0, 2, 3]], MIN_DECAY)
    assert found[1] <= MAX_DECAY
    assert decay_coefficient(np.ones((2, 1)), np.zeros(2)) == pytest.approx(MIN_DECAY)
    assert decay_coefficient(np.zeros((0, 9)), np.zeros(0)).shape == (0,)


def test_a_missing_frame_changes_little() -> None:
    traces = calcium(0.9, (1, 3000), seed=10)
    holed = traces.copy()
    holed[0, 100] = np.nan
    expected = decay_coefficient(traces, np.zeros(1))
    np.testing.assert_allclose(decay_coefficient(holed, np.zeros(1)), expected, atol=0.01)


def test_wrong_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r"\(cell, time\)"):
        decay_coefficient(np.zeros(5), np.zeros(5))
    with pytest.raises(ValueError, match="lags is 0"):
        decay_coefficient(np.zeros((1, 5)), np.zeros(1), lags=0)
