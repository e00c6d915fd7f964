"""AR(1): against non-negative least squares, with and without gaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from scipy.signal import lfilter

from napari_calcium.deconvolution.oasis import deconvolve_ar1


def simulate(
    n_frames: int, rate: float, size: float, g: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trace with offset 300 and noise 1, its calcium and its spikes."""
    rng = np.random.default_rng(seed)
    spikes = size * (rng.random(n_frames) < rate)
    calcium = np.asarray(lfilter([1], [1, -g], spikes))
    return 300 + calcium + rng.normal(size=n_frames), calcium, spikes


def response(n_frames: int, g: float) -> np.ndarray:
    """Matrix that turns activity into calcium."""
    lag = np.subtract.outer(np.arange(n_frames), np.arange(n_frames))
    return np.where(lag >= 0, float(g) ** np.maximum(lag, 0), 0.0)


@pytest.mark.parametrize("g", [0.0, 0.3, 0.9, 0.98])
@pytest.mark.parametrize("penalty", [0.0, 0.7, 5.0])
@pytest.mark.parametrize("n_frames", [1, 2, 3, 150])
def test_equals_nonnegative_least_squares(g: float, penalty: float, n_frames: int) -> None:
    """Active-set NNLS is exact; 2e-5 is what float32 results of size 30 allow."""
    trace = simulate(n_frames, 0.05, 6.0, 0.9, seed=0)[0].astype(np.float32)
    matrix = response(n_frames, g)
    target = trace - 299.5 - np.linalg.solve(matrix.T, np.full(n_frames, penalty))
    expected = nnls(matrix, target)[0]
    calcium, activity = deconvolve_ar1(trace, g, penalty, 299.5)
    assert calcium.dtype == activity.dtype == np.float32
    np.testing.assert_allclose(activity, expected, atol=2e-5)
    np.testing.assert_allclose(calcium, matrix @ expected, atol=2e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40),
    st.floats(0, 0.995),
    st.floats(0, 50),
)
def test_optimality_conditions(values: list[float], g: float, penalty: float) -> None:
    """At the optimum no spike is worth adding and none in use worth changing (1e-3 of 100)."""
    trace = np.array(values, np.float32)
    calcium, activity = deconvolve_ar1(trace, g, penalty)
    worth = response(len(trace), g).T @ (trace.astype(float) - calcium) - penalty
    assert np.all(activity >= 0)
    assert np.all(worth < 1e-3 * len(trace))
    assert np.all(np.abs(worth[activity > 1e-3]) < 1e-3 * len(trace))


def test_calcium_is_the_activity_convolved() -> None:
    trace = simulate(2000, 0.03, 5.0, 0.95, seed=1)[0]
    calcium, activity = deconvolve_ar1(trace, 0.95, 1.0, 300.0)
    np.testing.assert_allclose(lfilter([1], [1, -0.95], activity), calcium, atol=1e-4)


def test_known_spikes_are_recovered() -> None:
    """Without noise, to float32; the trace is 300 with steps of 5."""
    spikes = np.zeros(500)
    spikes[[50, 51, 200, 430]] = [5, 10, 5, 15]
    trace = 300 + lfilter([1], [1, -0.93], spikes)
    activity = deconvolve_ar1(trace, 0.93, 0.0, 300.0)[1]
    np.testing.assert_allclose(activity, spikes, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16])
def test_results_are_of_the_type_of_the_trace(dtype: type) -> None:
    """Float64 to 1e-9 of the oracle, which float32 could not hold; whole numbers are float32."""
    trace = np.round(simulate(150, 0.05, 60.0, 0.9, seed=1)[0], 0 if dtype is np.uint16 else 9)
    calcium, activity = deconvolve_ar1(trace.astype(dtype), 0.9, 2.0, 300.0)
    assert calcium.dtype == activity.dtype == (np.float64 if dtype is np.float64 else np.float32)
    matrix = response(150, 0.9)
    expected = nnls(matrix, trace - 300 - np.linalg.solve(matrix.T, np.full(150, 2.0)))[0]
    tolerance = 1e-9 if dtype is np.float64 else 1e-4
    np.testing.assert_allclose(activity, expected, atol=tolerance)


@pytest.mark.parametrize("g", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("penalty", [0.0, 2.0])
@pytest.mark.parametrize("seed", range(6))
def test_gaps_equal_least_squares_over_the_frames_that_are_known(
    g: float, penalty: float, seed: int
) -> None:
    """NNLS with the rows of missing frames left out and no activity in them, to 1e-9."""
    trace, rng = simulate(150, 0.05, 6.0, 0.95, seed)[0] - 300, np.random.default_rng(seed)
    missing = rng.random(150) < 0.15
    missing[40:60], missing[[0, -1]] = True, bool(seed % 2)
    known = np.flatnonzero(~missing)
    matrix = response(150, g)[np.ix_(known, known)]
    target = trace[known] - np.linalg.solve(matrix.T, np.full(len(known), penalty))
    expected = nnls(matrix, target)[0]
    calcium, activity = deconvolve_ar1(np.where(missing, np.nan, trace), g, penalty)
    np.testing.assert_array_equal(np.isnan(calcium), missing)
    np.testing.assert_array_equal(np.isnan(activity), missing)
    np.testing.assert_allclose(activity[known], expected, atol=1e-9)
    np.testing.assert_allclose(calcium[known], matrix @ expected, atol=1e-9)


def test_infinite_frames_are_missing_ones() -> None:
    trace = simulate(100, 0.05, 6.0, 0.95, 0)[0]
    trace[[3, 50]] = np.nan
    expected = deconvolve_ar1(trace, 0.9, baseline=300.0)
    trace[3], trace[50] = np.inf, -np.inf
    np.testing.assert_array_equal(deconvolve_ar1(trace, 0.9, baseline=300.0), expected)


@pytest.mark.parametrize("n_frames", [0, 1, 5])
def test_nothing_known_gives_nothing(n_frames: int) -> None:
    calcium, activity = deconvolve_ar1(np.full(n_frames, np.nan), 0.9)
    assert calcium.shape == activity.shape == (n_frames,)
    assert np.isnan(calcium).all()
    assert np.isnan(activity).all()


def test_long_silence_and_long_traces_underflow_quietly() -> None:
    """One spike, then 200,000 silent frames: calcium is 0, not a denormal number or NaN."""
    trace = np.zeros(200_000)
    trace[10] = 1e6
    calcium, activity = deconvolve_ar1(trace, 0.99)
    assert np.isfinite(calcium).all()
    assert activity[10] > 0
    assert calcium[-1] == 0
    assert np.count_nonzero(activity) == 1


def test_wrong_arguments_raise() -> None:
    with pytest.raises(ValueError, match=r"g is 1\.0"):
        deconvolve_ar1(np.zeros(5), 1.0)
    with pytest.raises(ValueError, match="2 axes"):
        deconvolve_ar1(np.zeros((2, 5)), 0.9)
