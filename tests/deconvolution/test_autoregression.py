from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from napari_calcium.deconvolution.autoregression import (
    MAX_DECAY,
    MIN_DECAY,
    coefficients_from_times,
    decay_and_rise,
    decay_coefficient,
    noise_level,
    second_order_coefficients,
    time_constants,
    transient_height,
)
from napari_calcium.errors import InputError

USUAL = (0.946, 0.717)
"""Decay and rise of 0.6 and 0.1 s at 30 Hz."""


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
    with pytest.raises(ValueError, match=r"\(cell, time\)"):
        second_order_coefficients(np.zeros(5))
    with pytest.raises(ValueError, match=r"noise \(3,\)"):
        second_order_coefficients(np.zeros((2, 5)), np.zeros(3))
    with pytest.raises(ValueError, match="lags is 2"):
        second_order_coefficients(np.zeros((1, 5)), lags=2)
    with pytest.raises(ValueError, match="order 0 to 2"):
        time_constants(np.zeros((4, 3)), 30.0)
    with pytest.raises(ValueError, match="must be real"):
        decay_and_rise((1.0, -0.5))


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_frames_missing_at_random_do_not_bias_the_decay(share: float) -> None:
    """Median over 40 traces, to the same 0.015 as without gaps."""
    rng = np.random.default_rng(12)
    traces = 300 + calcium(0.95, (40, 5000), seed=6) + rng.normal(size=(40, 5000))
    traces[rng.random(traces.shape) < share] = np.nan
    found = decay_coefficient(traces, np.ones(40))
    assert abs(float(np.median(found)) - 0.95) < 0.015


@pytest.mark.parametrize(("decay", "rise"), [(0.95, 0.0), (0.95, 0.7), (0.9, 0.9), (0.99, 0.98)])
def test_the_height_of_a_transient(decay: float, rise: float) -> None:
    shape = convolved(np.eye(1, 2000, 1)[0], decay, rise)
    assert transient_height(coefficients(decay, rise)) == pytest.approx(shape.max(), rel=1e-12)


def coefficients(decay: float, rise: float) -> tuple[float, float]:
    return decay + rise, -decay * rise


def convolved(activity: np.ndarray, decay: float, rise: float) -> np.ndarray:
    """Calcium that activity makes; the first frame's only decays."""
    g1, g2 = coefficients(decay, rise)
    spikes = np.array(activity, float)
    first, spikes[..., 0] = spikes[..., :1].copy(), 0
    left = first * decay ** np.arange(spikes.shape[-1])
    return np.asarray(lfilter([1], [1, -g1, -g2], spikes) + left)


def simulate(
    n_frames: int, rate: float, snr: float, seed: int, roots: tuple[float, float] = USUAL
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trace with offset 300 and noise 1, its calcium and its spikes, `snr` high each."""
    rng = np.random.default_rng(seed)
    spikes = 1.0 * (rng.random(n_frames) < rate)
    spikes *= snr / convolved(np.eye(1, 3000, 1)[0], *roots).max()
    calcium = convolved(spikes, *roots)
    return 300 + calcium + rng.normal(size=n_frames), calcium, spikes


@pytest.mark.parametrize(
    ("decay_time", "rise_time", "frame_rate", "decay_bias", "rise_bias"),
    [
        (0.6, 0.1, 30.0, 0.12, 0.15),
        (0.6, 0.1, 100.0, 0.15, 0.2),
        (1.0, 0.2, 10.0, 0.12, 0.15),
        (1.5, 0.3, 30.0, 0.15, 0.2),
    ],
)
@pytest.mark.parametrize("with_noise", [False, True])
def test_known_times_are_recovered_from_noisy_traces(
    decay_time: float,
    rise_time: float,
    frame_rate: float,
    decay_bias: float,
    rise_bias: float,
    with_noise: bool,
) -> None:
    """Median over 40 traces of 6000 frames, 3 sd high, 1 Hz; the mean taken away shortens decay."""
    g = coefficients_from_times(decay_time, rise_time, frame_rate)
    decay, rise = (float(np.exp(-1 / (time * frame_rate))) for time in (decay_time, rise_time))
    np.testing.assert_allclose(g, coefficients(decay, rise))
    traces = np.stack(
        [simulate(6000, 1 / frame_rate, 3.0, seed, (decay, rise))[0] for seed in range(40)]
    )
    found = second_order_coefficients(traces, np.ones(40) if with_noise else None)
    assert found.dtype == np.float32
    assert found.shape == (40, 2)
    times = np.nanmedian(time_constants(found, frame_rate), axis=0)
    assert times[0] == pytest.approx(decay_time, rel=decay_bias)
    assert times[1] == pytest.approx(rise_time, rel=rise_bias)


def test_a_rise_too_fast_to_see_is_none() -> None:
    """Calcium that rises within a frame, without noise: less than a frame or none, decay to 4 %."""
    spikes = np.random.default_rng(1).poisson(0.02, (20, 20000))
    found = second_order_coefficients(lfilter([1], [1, -0.9], spikes), np.zeros(20))
    times = time_constants(found, frame_rate=1.0)
    none = np.isnan(times[:, 1])
    assert 4 < none.sum() < 20
    assert np.all(times[~none, 1] < 0.8)
    assert np.all(found[none, 1] == 0)
    assert np.median(times[:, 0]) == pytest.approx(-1 / np.log(0.9), rel=0.04)


def test_offset_scale_and_a_missing_frame_matter_little() -> None:
    traces = np.stack([simulate(6000, 0.03, 10.0, seed)[0] for seed in (7, 8)])
    expected = second_order_coefficients(traces)
    np.testing.assert_allclose(second_order_coefficients(500 + 8 * traces), expected, atol=1e-5)
    traces[0, 100] = np.nan
    np.testing.assert_allclose(second_order_coefficients(traces), expected, atol=0.02)


def test_degenerate_traces_have_real_roots() -> None:
    flat = np.full((1, 100), 7.0)
    ramp = np.arange(100.0)[None]
    flicker = np.resize([1.0, -1.0], (1, 100))
    missing = np.full((1, 100), np.nan)
    found = second_order_coefficients(np.concatenate([flat, ramp, flicker, missing]))
    np.testing.assert_allclose(found[[0, 3]], [[MIN_DECAY, 0]] * 2)
    for g in found.astype(float):
        roots = np.roots([1, *-g])
        assert np.all(np.isreal(roots))
        assert np.all((roots > -1e-6) & (roots <= MAX_DECAY + 1e-6))
    assert second_order_coefficients(np.ones((2, 1))).tolist() == found[[0, 0]].tolist()
    assert second_order_coefficients(np.zeros((0, 9))).shape == (0, 2)


def test_times_and_coefficients_are_inverses() -> None:
    decay_time, rise_time = np.array([0.6, 2.0, 0.1, 0.5]), np.array([0.1, 0.02, 0.0999, np.nan])
    g = coefficients_from_times(decay_time, rise_time, 30.0)
    assert g.shape == (4, 2)
    found = time_constants(g, 30.0)
    np.testing.assert_allclose(found, np.stack([decay_time, rise_time], axis=1), rtol=1e-6)
    single = time_constants(g.astype(np.float32), 30.0)
    np.testing.assert_allclose(single[[0, 1, 3]], found[[0, 1, 3]], rtol=1e-3)
    np.testing.assert_array_equal(time_constants(g[3:, :1], 30.0), time_constants(g[3:], 30.0))
    assert np.isnan(time_constants(np.zeros((2, 0)), 30.0)).all()
    assert time_constants(np.zeros((0, 2)), 30.0).shape == (0, 2)


def test_equal_times_are_allowed_and_wrong_ones_are_named() -> None:
    g = coefficients_from_times(0.3, 0.3, 30.0)
    np.testing.assert_allclose(time_constants(g[None], 30.0), [[0.3, 0.3]], rtol=1e-3)
    assert decay_and_rise(np.float32(g))[0] < 1
    with pytest.raises(InputError, match=r"rise_time is 0\.7 s"):
        coefficients_from_times(0.6, 0.7, 30.0)
    with pytest.raises(InputError, match=r"decay_time is 0\.0 s"):
        coefficients_from_times(0.0, 0.0, 30.0)
    with pytest.raises(InputError, match="frame_rate is 0 Hz"):
        coefficients_from_times(0.6, 0.1, 0)
