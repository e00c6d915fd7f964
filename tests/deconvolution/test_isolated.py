"""Time constants of isolated transients."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from napari_calcium.deconvolution.autoregression import (
    coefficients_from_times,
    time_constants,
    transient_height,
)
from napari_calcium.deconvolution.isolated import refined_coefficients


def trace_of(times: tuple[float, float], seed: int, rate: float = 0.005) -> np.ndarray:
    """6000 frames around 20, transients of 12 sd; decay and rise in frames."""
    rng = np.random.default_rng(seed)
    g1, g2 = coefficients_from_times(*times, 1.0)
    calcium = lfilter([1], [1, -g1, -g2], rng.random(6000) < rate)
    return np.asarray(20 + 12 * calcium / transient_height((g1, g2)) + rng.normal(size=6000))


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.7])
def test_a_decay_is_found_from_a_wrong_one(factor: float) -> None:
    """20 frames, to 10 % at the median of six traces."""
    found = []
    for seed in range(6):
        start = np.exp(-1 / (20 * factor))
        g, n_events = refined_coefficients(trace_of((20, 0), seed), start, 1.0)
        assert 5 < n_events <= 30
        found.append(-1 / np.log(g[0]))
    assert np.median(found) == pytest.approx(20, rel=0.1)


def test_a_rise_is_found_from_a_wrong_one() -> None:
    """20 and 4 frames, from 14 and 6: decay to 12 %, rise to 30 %, the median of six."""
    found = []
    for seed in range(6):
        start = coefficients_from_times(14, 6, 1.0)
        g, _ = refined_coefficients(trace_of((20, 4), seed), start, 1.0)
        found.append(time_constants(g[None], 1.0)[0])
    decay, rise = np.median(found, axis=0)
    assert decay == pytest.approx(20, rel=0.12)
    assert rise == pytest.approx(4, rel=0.3)


def test_missing_frames_are_left_out() -> None:
    trace = trace_of((20, 0), 1)
    expected, _ = refined_coefficients(trace, 0.93, 1.0)
    trace[np.random.default_rng(0).random(6000) < 0.1] = np.nan
    found, n_events = refined_coefficients(trace, 0.93, 1.0)
    assert n_events > 5
    assert -1 / np.log(found[0]) == pytest.approx(-1 / np.log(expected[0]), rel=0.1)


@pytest.mark.parametrize("g", [0.9, (1.6, -0.63), 0.0])
def test_without_events_nothing_changes(g: float | tuple[float, float]) -> None:
    for trace in (np.full(200, 5.0), 5 + 0.1 * np.random.default_rng(0).normal(size=200)):
        found, n_events = refined_coefficients(trace, g, 1.0)
        np.testing.assert_array_equal(found, np.atleast_1d(g))
        assert n_events == 0
