from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_calcium.activity.level import resting_percentiles
from napari_calcium.activity.percentile import running_percentile

RATE, WINDOW = 30.0, 900


def cell(
    seed: int, rate: float, snr: float, n_frames: int = 9000, slow_noise: float = 0.0
) -> tuple[np.ndarray, np.ndarray, float]:
    """Fluorescence, its resting level, and the noise: bursts of spikes, a slow drift of 10 %."""
    rng = np.random.default_rng([seed, 7])
    state = _wander(rng, n_frames, 1.5)
    spikes = rng.poisson(rate / RATE * np.exp(1.2 * state - 0.72))
    decay, rise = np.exp(-1 / (np.array([0.6, 0.05]) * RATE))
    lags = np.arange(1, 200)
    peak = np.max((decay**lags - rise**lags) / (decay - rise))
    active = scipy.signal.lfilter([30 / peak], [1, -(decay + rise), decay * rise], spikes)
    rest = 100 + 10 * np.sin(2 * np.pi * np.arange(n_frames) / (300 * RATE) + seed)
    noise = 30 / snr
    light = rest + active + noise * rng.standard_normal(n_frames)
    return light + slow_noise * noise * _wander(rng, n_frames, 1.0), rest, noise


def _wander(rng: np.random.Generator, n_frames: int, seconds: float) -> np.ndarray:
    memory = np.exp(-1 / (seconds * RATE))
    white = rng.standard_normal(n_frames) * np.sqrt(1 - memory**2)
    return scipy.signal.lfilter([1.0], [1.0, -memory], white)


@pytest.mark.parametrize(
    ("rate", "below", "above"),
    [(0.0, -0.2, 0.2), (0.05, -0.2, 0.2), (0.2, -0.2, 0.3), (0.5, -0.2, 0.5), (1.0, -0.2, 0.8)],
)
@pytest.mark.parametrize("snr", [2.0, 5.0])
def test_baseline_is_hardly_biased(rate: float, below: float, above: float, snr: float) -> None:
    """In sd of the noise, over four cells; the 8th percentile is 1.4 sd low of a quiet cell."""
    bias, of_eighth = [], []
    for seed in range(10, 14):
        light, rest, noise = cell(seed, rate, snr)
        level = resting_percentiles(light[None], WINDOW)
        for found, percentile in ((bias, level), (of_eighth, 8.0)):
            baseline = running_percentile(light[None], WINDOW, percentile)[0]
            found.append(np.mean(baseline - rest) / noise)
    assert below < np.mean(bias) < above
    assert np.mean(np.abs(bias)) < np.mean(np.abs(of_eighth))


@pytest.mark.parametrize("slow_noise", [0.3, 0.6, 1.0])
def test_slow_noise_does_not_pass_for_activity(slow_noise: float) -> None:
    """Within 0.3 sd; a flank followed by the white noise alone would end 1 sd low."""
    for seed in range(3):
        light, rest, noise = cell(seed, 0.05, 5.0, slow_noise=slow_noise)
        level = resting_percentiles(light[None], WINDOW)
        baseline = running_percentile(light[None], WINDOW, level)[0]
        assert abs(np.mean(baseline - rest)) / noise < 0.3


@pytest.mark.parametrize("part", [0.3, 0.5, 0.8])
def test_two_levels(part: float) -> None:
    """Active for a part of the time, even for most: the middle of what is at rest."""
    rng = np.random.default_rng(4)
    light = rng.normal(size=(1, 9000)) + 12 * ((np.arange(9000) % 300) < 300 * part)
    expected = 50 * (1 - part)
    assert resting_percentiles(light, WINDOW)[0] == pytest.approx(expected, abs=3)
    assert resting_percentiles(light, 0)[0] == pytest.approx(expected, abs=3)


def test_the_whole_trace_counts() -> None:
    """A first window that is all active, as a first window without any, says little."""
    light = np.random.default_rng(5).normal(size=(2, 18000))
    light[0, :900] += 15
    light[1, 900:] += 12 * ((np.arange(17100) % 300) < 150)
    quiet, active = resting_percentiles(light, WINDOW)
    assert 44 < quiet <= 50
    assert 22 < active < 29


@pytest.mark.parametrize("noise", [0.2, 0.5, 0.8, 1.0, 4.0])
@pytest.mark.parametrize("rest", [100.0, 100.3, 100.5])
def test_whole_numbers(noise: float, rest: float) -> None:
    """Counts of a cell that is active for a fifth: 40 %, within what a count holds of them.

    A density of the single counts would have its first peak below, at 7 to 30 %.
    """
    light = np.round(rest + noise * np.random.default_rng(6).normal(size=(1, 9000)))
    light += 40 * ((np.arange(9000) % 300) < 60)
    assert resting_percentiles(light, WINDOW)[0] == pytest.approx(40, abs=3)


@pytest.mark.parametrize("loss", [20.0, 100.0])
def test_a_drift_that_the_window_follows_does_not_count(loss: float) -> None:
    """A cell at rest whose light falls by a hundred times its noise still rests at the median."""
    light = np.linspace(200, 200 - loss, 9000) + np.random.default_rng(8).normal(size=(1, 9000))
    light += 12 * ((np.arange(9000) % 300) < 60)
    assert resting_percentiles(light, WINDOW)[0] == pytest.approx(40, abs=4)


def test_constant_and_short_traces_take_the_median() -> None:
    traces = np.zeros((4, 600))
    traces[1] = 7
    traces[2] = np.nan
    traces[3, 15:] = np.nan
    traces[3, :15] = np.arange(15)
    np.testing.assert_array_equal(resting_percentiles(traces, 90), 50)
    assert resting_percentiles(np.zeros((0, 9)), 3).shape == (0,)
    np.testing.assert_array_equal(resting_percentiles(np.zeros((3, 0)), 3), [50] * 3)


def test_outliers_and_gaps_change_little() -> None:
    light, _, _ = cell(0, 0.2, 5.0)
    expected = resting_percentiles(light[None], WINDOW)[0]
    spoilt = light.copy()
    spoilt[[10, 5000]] = [1e30, -1e30]
    spoilt[2000:2500] = np.nan
    spoilt[6000] = np.inf
    assert resting_percentiles(spoilt[None], WINDOW)[0] == pytest.approx(expected, abs=3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.one_of(
            st.floats(-(2.0**99), 2.0**99, width=32),
            st.integers(-3, 3).map(float),
            st.sampled_from([np.nan, np.inf, 1e-42, 0.0]),
        ),
        max_size=200,
    ),
    st.integers(0, 300),
)
def test_always_a_percentile(trace: list[float], window: int) -> None:
    (level,) = resting_percentiles(np.array([trace], np.float32), window)
    assert 0 <= level <= 50


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.integers(-20, 20), st.integers(-4000, 4000))
def test_scale_and_offset_do_not_change_it(seed: int, power: int, offset: int) -> None:
    """Exactly, where neither is rounded: powers of two, and whole numbers in steps of 1/8."""
    rng = np.random.default_rng(seed)
    light = np.round(80 * rng.gamma(2.0, size=(1, 700))) / 8
    expected = resting_percentiles(light, 256)
    np.testing.assert_array_equal(resting_percentiles(light * 2.0**power, 256), expected)
    moved = resting_percentiles(light + offset, 256)
    np.testing.assert_allclose(moved, expected, atol=0.5)  # the density's bins may start anew


def test_each_cell_by_itself() -> None:
    traces = np.stack([cell(seed, 0.5, 3.0, 1800)[0] for seed in range(5)])
    alone = [resting_percentiles(trace[None], 300)[0] for trace in traces]
    np.testing.assert_array_equal(resting_percentiles(traces, 300), alone)


def test_wrong_arguments_raise() -> None:
    with pytest.raises(ValueError, match="1 axes"):
        resting_percentiles(np.zeros(9), 3)
    with pytest.raises(ValueError, match="window is -1"):
        resting_percentiles(np.zeros((1, 9)), -1)
