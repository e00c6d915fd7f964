from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_calcium.activity.bleaching import (
    Trend,
    exponential_trend,
    polynomial_trend,
    positive_part,
)

N_FRAMES = 6000
TIME = (np.arange(N_FRAMES) + 0.5) / N_FRAMES


def recorded(trend: np.ndarray, seed: int, noise: float = 2.0, rate: float = 1 / 150) -> np.ndarray:
    """Light that rests at a trend, with noise and transients of 30 % of it."""
    rng = np.random.default_rng(seed)
    active = np.convolve(rng.random(len(trend)) < rate, np.exp(-np.arange(90) / 18))
    return trend * (1 + 0.3 * active[: len(trend)]) + noise * rng.normal(size=len(trend))


def form(trend: np.ndarray) -> np.ndarray:
    return trend / trend.mean()


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_polynomial_is_recovered(order: int, seed: int) -> None:
    """The form of a trend that loses 40 % within 3 %, 1 % on the mean.

    Its level is as good as the percentile.
    """
    shape = 100 - 40 * TIME + (10 * np.sin(np.pi * order * TIME) / order if order > 1 else 0)
    truth = np.polynomial.Polynomial.fit(TIME, shape, order)(TIME)
    found = polynomial_trend(recorded(truth, seed)[None], 42, order)
    away = np.abs(form(found.values[0]) - form(truth))
    assert away.max() < 0.03
    assert away.mean() < 0.01
    assert not found.limited[0]


@pytest.mark.parametrize("time_constant", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_decay_is_recovered(time_constant: float, seed: int) -> None:
    truth = 60 + 40 * np.exp(-TIME / time_constant)
    found = exponential_trend(recorded(truth, seed)[None], 42)
    away = np.abs(form(found.values[0]) - form(truth))
    assert away[100:].max() < 0.03
    assert away.mean() < 0.01


def test_without_noise_a_decay_is_exact() -> None:
    """To a thousandth of its height: the level of a block is not quite that of its centre."""
    truth = 60 + 40 * np.exp(-TIME / 0.3)
    found = exponential_trend(truth[None], 50)
    assert np.abs(found.values[0] - truth)[100:-100].max() < 0.04
    line = 100 - 30 * TIME
    np.testing.assert_allclose(polynomial_trend(line[None], 50).values[0], line, atol=1e-3)


@pytest.mark.parametrize("length", [0.1, 0.2])
@pytest.mark.parametrize("start", [0.1, 0.4, 0.75])
def test_slow_activity_is_left(start: float, length: float) -> None:
    """A plateau of a tenth and a fifth of the recording keeps nine tenths of its height."""
    plateau = 40.0 * ((start < TIME) & (start + length > TIME))
    truth = 100 - 20 * TIME
    light = truth + plateau + np.random.default_rng(0).normal(size=N_FRAMES)
    for found in (polynomial_trend(light[None], 45), exponential_trend(light[None], 45)):
        left = (light - found.values[0])[plateau > 0].mean()
        assert 36 < left < 44
        assert np.abs(found.values[0] - truth).max() < 4


def test_light_that_rises_is_not_bleaching() -> None:
    found = exponential_trend(recorded(80 + 20 * TIME, 0)[None], 42)
    assert np.ptp(found.values) == 0
    assert not found.limited[0]


def test_too_short_for_a_trend() -> None:
    """Three blocks of 32 frames for each coefficient, or the level is all there is."""
    light = np.linspace(100, 50, 6 * 32)[None]
    assert not polynomial_trend(light, 50, 1).limited[0]
    for found in (
        polynomial_trend(light[:, :-1], 50, 1),
        polynomial_trend(light, 50, 2),
        exponential_trend(light, 50),
    ):
        assert found.limited[0]
        assert np.ptp(found.values) == 0
        assert 70 < found.values[0, 0] < 80


def test_gaps_are_not_extrapolated() -> None:
    light = recorded(100 - 40 * TIME, 0)[None]
    light[0, :2000] = np.nan
    found = polynomial_trend(light, 42)
    truth = 100 - 40 * np.maximum(TIME, 1 / 3)
    assert np.abs(found.values[0] - truth).max() < 2
    nothing = polynomial_trend(np.full((1, N_FRAMES), np.nan), 42)
    assert nothing.limited[0]
    np.testing.assert_array_equal(nothing.values, 0)


def test_what_light_is_divided_by_is_held() -> None:
    values = np.array([[3.0, 1.0], [1.0, 0.0], [-1.0, -3.0], [np.nan, 1.0], [19.0, 1.0]])
    found = positive_part(Trend(values.astype(np.float32), np.zeros(5, bool)))
    expected = [[1.5, 0.5], [2.0, 0.2], [1.0, 1.0], [1.0, 1.0], [1.9, 0.2]]
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    assert found.limited.tolist() == [False, True, True, True, True]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.lists(
        st.one_of(st.floats(-(2.0**99), 2.0**99, width=32), st.sampled_from([np.nan, np.inf, 0.0])),
        max_size=12,
    ),
    st.sampled_from([1, 31, 40]),
    st.integers(1, 5),
)
def test_any_trace_has_a_finite_trend(values: list[float], times: int, order: int) -> None:
    light = np.repeat(np.array([values], np.float32), times, axis=1)
    for found in (polynomial_trend(light, 8, order), exponential_trend(light, 8)):
        assert np.isfinite(found.values).all()
        factor = positive_part(found).values
        assert np.all((factor >= np.float32(0.2)) & (factor <= 5))


def test_each_cell_by_itself() -> None:
    light = np.stack([recorded(100 - 10 * i * TIME, i)[:2000] for i in range(5)])
    percentiles = np.array([10.0, 20, 30, 40, 50])
    for fit in (polynomial_trend, exponential_trend):
        alone = [fit(row[None], p).values[0] for row, p in zip(light, percentiles, strict=True)]
        np.testing.assert_array_equal(fit(light, percentiles).values, alone)
        assert fit(light[:0], percentiles[:0]).values.shape == (0, 2000)


@pytest.mark.parametrize("fit", [polynomial_trend, exponential_trend])
def test_scale_and_offset(fit: type) -> None:
    """Within rounding; a time constant is found to a thousandth, where the cost is flat."""
    light = recorded(60 + 40 * np.exp(-TIME / 0.3), 3)[None]
    found = fit(light, 42).values
    np.testing.assert_allclose(fit(8 * light, 42).values, 8 * found, rtol=1e-4)
    np.testing.assert_allclose(fit(light - 500, 42).values, found - 500, atol=0.05)
