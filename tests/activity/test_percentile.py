from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_calcium.activity.percentile import running_percentile, whole_percentile


def brute_force(trace: np.ndarray, window: int, percentile: float) -> np.ndarray:
    result = np.full(len(trace), np.nan, np.float32)
    for t in range(len(trace)):
        values = trace[max(t - window // 2, 0) : t + (window + 1) // 2].astype(np.float64)
        values = values[np.isfinite(values)]
        if len(values):
            result[t] = np.percentile(values, percentile)
    return result


values = st.one_of(
    st.floats(-1e6, 1e6, width=32),
    st.integers(-3, 3).map(float),
    st.sampled_from([np.nan, np.inf, -np.inf]),
)
percentiles = st.one_of(st.floats(0, 100), st.sampled_from([0, 8, 50, 100]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(values, min_size=1, max_size=60), st.integers(1, 140), percentiles)
def test_percentile_equals_brute_force(trace: list[float], window: int, percentile: float) -> None:
    """Bit by bit after rounding to float32; NaN and infinite frames are left out."""
    row = np.array(trace, np.float32)
    found = running_percentile(row[None], window, percentile)[0]
    np.testing.assert_array_equal(found, brute_force(row, window, percentile))


@pytest.mark.parametrize("window", [1, 2, 7, 100, 199, 499, 500, 600, 998, 999, 5000])
@pytest.mark.parametrize("seed", [0, 1])
def test_many_windows_in_a_row(window: int, seed: int) -> None:
    """Noise, whole numbers with many ties, a drift, a switch between two levels, and gaps."""
    rng = np.random.default_rng(seed)
    traces = rng.normal(size=(5, 500)).astype(np.float32)
    traces[1] = np.round(traces[1])
    traces[2] += 0.1 * np.arange(500)
    traces[3] += 100 * (np.arange(500) // 37 % 2)
    traces[4, rng.random(500) < 0.3] = np.nan
    traces[4, 150:350] = np.nan
    each = rng.uniform(0, 100, size=5)
    found = running_percentile(traces, window, each)
    for row, trace, percentile in zip(found, traces, each, strict=True):
        np.testing.assert_array_equal(row, brute_force(trace, window, percentile))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(-1000, 1000), min_size=1, max_size=80),
    st.integers(1, 90),
    st.floats(0, 100),
    st.integers(-20, 20),
    st.integers(-5000, 5000),
)
def test_scale_and_offset(
    trace: list[int], window: int, percentile: float, power: int, offset: int
) -> None:
    """A power of two is exact; an offset within the rounding of values below 6000."""
    row = np.array([trace], np.float32)
    found = running_percentile(row, window, percentile)
    scaled = running_percentile(row * 2.0**power, window, percentile)
    np.testing.assert_array_equal(scaled, found * np.float32(2.0**power))
    moved = running_percentile(row + offset, window, percentile)
    np.testing.assert_allclose(moved, found + offset, atol=1e-3)
    turned = running_percentile(-row, window, 100 - percentile)
    np.testing.assert_allclose(turned, -found, atol=1e-3)


def test_percentile_runs_along_time() -> None:
    """Each cell by itself: a constant per cell comes back, whatever the other cells are."""
    levels = np.arange(37.0)[:, None] * np.ones((1, 53))
    np.testing.assert_array_equal(running_percentile(levels, 9, 8.0), levels)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(values, min_size=1, max_size=60), percentiles)
def test_whole_percentile_is_that_of_a_window_over_all(
    trace: list[float], percentile: float
) -> None:
    rows = np.array([trace, trace[::-1]], np.float32)
    found = whole_percentile(rows, np.array([percentile, 50]))
    running = running_percentile(rows, 2 * len(trace) + 1, np.array([percentile, 50]))
    np.testing.assert_array_equal(running, np.repeat(found[:, None], len(trace), axis=1))
    np.testing.assert_array_equal(running[0], brute_force(rows[0], 2 * len(trace), percentile))


def test_shapes_and_errors() -> None:
    for function in (lambda *a: running_percentile(a[0], 3, a[1]), whole_percentile):
        assert len(function(np.zeros((0, 9)), 8)) == 0
        assert len(function(np.zeros((3, 0)), 8)) == 3
        with pytest.raises(ValueError, match="percentile is 101"):
            function(np.zeros((1, 9)), 101)
        with pytest.raises(ValueError, match="percentile is nan"):
            function(np.zeros((1, 9)), np.nan)
        with pytest.raises(ValueError, match="1 axes"):
            function(np.zeros(9), 8)
    with pytest.raises(ValueError, match="window is 0"):
        running_percentile(np.zeros((1, 9)), 0, 8)
    assert running_percentile(np.zeros((3, 0)), 3, 8).shape == (3, 0)
