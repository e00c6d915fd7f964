"""Active sets: against non-negative least squares, with and without gaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from scipy.signal import lfilter

from napari_calcium.deconvolution.active_set import deconvolve_ar2, fit_large
from napari_calcium.deconvolution.oasis import deconvolve_ar1

USUAL = (0.946, 0.717)
"""Decay and rise of 0.6 and 0.1 s at 30 Hz."""


def coefficients(decay: float, rise: float) -> tuple[float, float]:
    return decay + rise, -decay * rise


def convolved(activity: np.ndarray, decay: float, rise: float) -> np.ndarray:
    """Calcium that activity makes; the first frame's only decays."""
    g1, g2 = coefficients(decay, rise)
    spikes = np.array(activity, float)
    first, spikes[..., 0] = spikes[..., :1].copy(), 0
    left = first * decay ** np.arange(spikes.shape[-1])
    return np.asarray(lfilter([1], [1, -g1, -g2], spikes) + left)


def response(n_frames: int, decay: float, rise: float) -> np.ndarray:
    """Matrix that turns activity into calcium."""
    return convolved(np.eye(n_frames), decay, rise).T


def simulate(
    n_frames: int, rate: float, snr: float, seed: int, roots: tuple[float, float] = USUAL
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trace with offset 300 and noise 1, its calcium and its spikes, `snr` high each."""
    rng = np.random.default_rng(seed)
    spikes = 1.0 * (rng.random(n_frames) < rate)
    spikes *= snr / convolved(np.eye(1, 3000, 1)[0], *roots).max()
    calcium = convolved(spikes, *roots)
    return 300 + calcium + rng.normal(size=n_frames), calcium, spikes


def slopes(
    trace: np.ndarray, calcium: np.ndarray, penalty: float, decay: float, rise: float
) -> np.ndarray:
    """What activity in each frame is worth beyond its price."""
    residual = trace.astype(float) - calcium
    fading = lfilter([1], [1, -rise], residual[::-1])
    worth = lfilter([1], [1, -decay], fading)[::-1].copy()
    worth[0] -= rise * (worth[1] if len(trace) > 1 else 0)
    return np.asarray(worth - penalty)


@pytest.mark.parametrize(
    "roots", [USUAL, (0.9, 0.0), (0.3, 0.1), (0.0, 0.0), (0.9, 0.9), (0.97, 0.93)]
)
@pytest.mark.parametrize("penalty", [0.0, 0.7, 20.0])
@pytest.mark.parametrize(("n_frames", "seed"), [(1, 0), (2, 1), (3, 2), (150, 3), (300, 4)])
def test_equals_nonnegative_least_squares(
    roots: tuple[float, float], penalty: float, n_frames: int, seed: int
) -> None:
    """Active-set NNLS is exact; 2e-5 is what float32 results of size 30 allow.

    Activity follows from calcium's second differences: 4 times that.
    """
    trace = simulate(n_frames, 0.05, 6.0, seed, USUAL)[0].astype(np.float32)
    matrix = response(n_frames, *roots)
    target = trace - 299.5 - np.linalg.solve(matrix.T, np.full(n_frames, penalty))
    expected = nnls(matrix, target)[0]
    calcium, activity = deconvolve_ar2(trace, coefficients(*roots), penalty, 299.5)
    assert calcium.dtype == activity.dtype == np.float32
    np.testing.assert_allclose(calcium, matrix @ expected, atol=2e-5)
    np.testing.assert_allclose(activity, expected, atol=8e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40),
    st.floats(0, 0.995),
    st.floats(0, 1),
    st.floats(0, 50),
)
def test_optimality_conditions(
    values: list[float], decay: float, share: float, penalty: float
) -> None:
    """At the optimum no activity is worth adding and none in use worth changing.

    1e-6 of the greatest slope that values of 100 could have is what float32 calcium allows.
    """
    trace, rise = np.array(values, np.float32), decay * share
    calcium, activity = deconvolve_ar2(trace, coefficients(decay, rise), penalty)
    worth = slopes(trace, calcium, penalty, decay, rise)
    steepest = 100 * response(len(trace), decay, rise).sum(axis=0).max()
    assert np.all(activity >= 0)
    assert np.all(worth < 1e-6 * steepest)
    assert np.all(np.abs(worth[activity > 1e-3]) < 1e-6 * steepest)


@pytest.mark.parametrize("roots", [(0.968, 0.913), (0.995, 0.983), (0.991, 0.9894)])
@pytest.mark.parametrize("penalty", [0.3, 30.0])
@pytest.mark.parametrize("seed", range(4))
def test_slow_rises_need_careful_steps(
    roots: tuple[float, float], penalty: float, seed: int
) -> None:
    """Neighbouring transients are nearly the same: taking all negatives out would go in circles.

    3000 frames; slopes are 0 to what float32 calcium of size 100 adds up to over a transient.
    """
    trace, _, _ = simulate(3000, 0.01, 10.0, seed, roots)
    calcium, activity = deconvolve_ar2(trace, coefficients(*roots), penalty, 300.0)
    worth = slopes(trace.astype(np.float32) - 300.0, calcium, penalty, *roots)
    allowed = 1e-5 * response(400, *roots)[:, 1].sum()
    assert np.all(worth < allowed)
    assert np.all(np.abs(worth[activity > 1e-3]) < allowed)


@pytest.mark.parametrize("g", [0.3, 0.9, 0.98])
@pytest.mark.parametrize("penalty", [0.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_without_rise_it_is_the_first_order_model(g: float, penalty: float, seed: int) -> None:
    """To float32 (results of size 30)."""
    trace, _, _ = simulate(2000, 0.03, 6.0, seed, (0.95, 0.0))
    expected = deconvolve_ar1(trace, g, penalty, 300.0)
    found = deconvolve_ar2(trace, (g, 0.0), penalty, 300.0)
    np.testing.assert_allclose(found[0], expected[0], atol=2e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=4e-5)


def test_calcium_is_the_activity_convolved() -> None:
    trace, _, _ = simulate(2000, 0.03, 5.0, seed=1)
    calcium, activity = deconvolve_ar2(trace, coefficients(*USUAL), 1.0, 299.0)
    assert activity[0] > 0
    np.testing.assert_allclose(convolved(activity, *USUAL), calcium, atol=1e-4)


@pytest.mark.parametrize("roots", [USUAL, (0.5, 0.2), (0.98, 0.98)])
def test_known_spikes_are_recovered(roots: tuple[float, float]) -> None:
    """Without noise, to the float32 of a trace of 300 and second differences of its rounding.

    With the fastest indicator there are silences of more frames than calcium is followed for.
    """
    spikes = np.zeros(1500)
    spikes[[0, 50, 51, 200, 1490, 1499]] = [8, 5, 10, 5, 15, 4]
    trace = 300 + convolved(spikes, *roots)
    calcium, activity = deconvolve_ar2(trace, coefficients(*roots), 0.0, 300.0)
    np.testing.assert_allclose(calcium, trace - 300, atol=1e-4)
    np.testing.assert_allclose(activity, spikes, atol=1e-3)


def test_calcium_from_before_the_recording_only_decays() -> None:
    """A spike 20 frames before the first is told from the first frame alone (float32 of 300)."""
    spikes = np.zeros(220)
    spikes[0] = 10
    calcium = convolved(spikes, *USUAL) + 10 * USUAL[1] * convolved(np.eye(1, 220, 1)[0], *USUAL)
    trace = calcium[20:]
    found, activity = deconvolve_ar2(trace, coefficients(*USUAL))
    np.testing.assert_allclose(found, trace, atol=0.02)
    assert activity[0] == pytest.approx(trace[0], rel=1e-3)
    assert activity[1:].sum() < 1e-3 * trace[0]


@pytest.mark.parametrize("roots", [USUAL, (0.9, 0.0), (0.9, 0.9), (0.3, 0.1)])
@pytest.mark.parametrize("penalty", [0.0, 2.0])
@pytest.mark.parametrize("seed", range(6))
def test_gaps_equal_least_squares_over_the_frames_that_are_known(
    roots: tuple[float, float], penalty: float, seed: int
) -> None:
    """NNLS with the rows of missing frames left out and no activity in them.

    To 1e-7: double roots are badly conditioned.
    """
    trace, rng = simulate(150, 0.05, 6.0, seed)[0] - 300, np.random.default_rng(seed)
    missing = rng.random(150) < 0.15
    missing[40:60], missing[[0, -1]] = True, False
    known = np.flatnonzero(~missing)
    matrix = response(150, *roots)[np.ix_(known, known)]
    target = trace[known] - np.linalg.solve(matrix.T, np.full(len(known), penalty))
    expected = nnls(matrix, target, maxiter=5000)[0]
    gappy = np.where(missing, np.nan, trace)
    calcium, activity = deconvolve_ar2(gappy, coefficients(*roots), penalty)
    np.testing.assert_array_equal(np.isnan(calcium), missing)
    np.testing.assert_array_equal(np.isnan(activity), missing)
    np.testing.assert_allclose(activity[known], expected, atol=1e-7)
    np.testing.assert_allclose(calcium[known], matrix @ expected, atol=1e-7)


def test_missing_ends_are_as_if_they_had_not_been_recorded() -> None:
    trace = simulate(300, 0.05, 6.0, 3)[0]
    expected = deconvolve_ar2(trace[20:250], coefficients(*USUAL), 1.0, 300.0)
    trace[:20] = trace[250:] = np.nan
    for found, inside in zip(
        deconvolve_ar2(trace, coefficients(*USUAL), 1.0, 300.0), expected, strict=True
    ):
        np.testing.assert_array_equal(found[20:250], inside)
        assert np.isnan(found[:20]).all()
        assert np.isnan(found[250:]).all()


@pytest.mark.parametrize("roots", [USUAL, (0.95, 0.0)])
@pytest.mark.parametrize("least", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_large_activity_is_large_and_fitted(
    roots: tuple[float, float], least: float, seed: int
) -> None:
    """No activity below the size but what was left from before; the slope of the rest is 0."""
    trace = simulate(2000, 0.02, 6.0, seed, roots)[0] - 300
    start = deconvolve_ar2(trace, coefficients(*roots))[1]
    found = fit_large(trace, *roots, least, np.flatnonzero(start))
    used = np.flatnonzero(found.activity)
    assert np.all(found.activity[used[used > 0]] >= least)
    assert len(used) < np.count_nonzero(start)
    worth = slopes(trace, found.calcium, 0.0, *roots)
    assert np.all(np.abs(worth[used]) < 1e-7 * np.abs(worth).max())
    np.testing.assert_allclose(convolved(found.activity, *roots), found.calcium, atol=1e-9)


def test_only_the_true_spikes_are_large() -> None:
    """Spikes of 10 sd, the least size half of that: one event for each, within a frame."""
    for seed in range(3):
        trace, _, spikes = simulate(3000, 0.005, 10.0, seed, (0.95, 0.0))
        start = deconvolve_ar1(trace, 0.95, baseline=300.0)[1]
        found = fit_large(trace - 300, 0.95, 0.0, 5.0, np.flatnonzero(start))
        events, true = np.flatnonzero(found.activity[1:]) + 1, np.flatnonzero(spikes)
        assert len(events) == len(true)
        assert np.abs(events - true).max() <= 1


@pytest.mark.parametrize(
    "g", [(1.0, 0.0), (1.0, -0.5), (0.5, 0.6), (-0.5, 0.0), (2.0, -1.0), (np.nan, 0.0)]
)
def test_coefficients_without_real_roots_raise(g: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="must be real"):
        deconvolve_ar2(np.zeros(5), g)


def test_wrong_arguments_raise() -> None:
    with pytest.raises(ValueError, match="2 axes"):
        deconvolve_ar2(np.zeros((2, 5)), (0.9, 0.0))
    with pytest.raises(ValueError, match=r"coefficients \(3,\)"):
        deconvolve_ar2(np.zeros(5), (0.9, 0.0, 0.0))
