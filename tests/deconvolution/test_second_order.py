from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls
from scipy.signal import lfilter

from napari_calcium.deconvolution.autoregression import MAX_DECAY, MIN_DECAY
from napari_calcium.deconvolution.oasis import deconvolve, deconvolve_ar1
from napari_calcium.deconvolution.second_order import (
    coefficients_from_times,
    deconvolve_ar2,
    deconvolve_second_order,
    second_order_coefficients,
    time_constants,
)
from napari_calcium.errors import InputError

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
    calcium, activity = deconvolve_ar2(trace, *coefficients(*roots), penalty, 299.5)
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
    calcium, activity = deconvolve_ar2(trace, *coefficients(decay, rise), penalty)
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
    calcium, activity = deconvolve_ar2(trace, *coefficients(*roots), penalty, 300.0)
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
    found = deconvolve_ar2(trace, g, 0.0, penalty, 300.0)
    np.testing.assert_allclose(found[0], expected[0], atol=2e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=4e-5)


def test_without_rise_the_noise_constrained_fit_is_the_first_order_one() -> None:
    """Which ends its search within 0.1 % of the noise's variance: 0.5 % of penalty and 0.01 sd."""
    trace, _, _ = simulate(3000, 0.02, 5.0, 0, (0.95, 0.0))
    expected, found = deconvolve(trace, 0.95, 1.0), deconvolve_second_order(trace, (0.95, 0), 1.0)
    assert found.penalty == pytest.approx(expected.penalty, rel=5e-3)
    assert found.baseline == pytest.approx(expected.baseline, abs=0.01)
    np.testing.assert_allclose(found.calcium, expected.calcium, atol=0.03)


def test_calcium_is_the_activity_convolved() -> None:
    trace, _, _ = simulate(2000, 0.03, 5.0, seed=1)
    calcium, activity = deconvolve_ar2(trace, *coefficients(*USUAL), 1.0, 299.0)
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
    calcium, activity = deconvolve_ar2(trace, *coefficients(*roots), 0.0, 300.0)
    np.testing.assert_allclose(calcium, trace - 300, atol=1e-4)
    np.testing.assert_allclose(activity, spikes, atol=1e-3)


def test_calcium_from_before_the_recording_only_decays() -> None:
    """A spike 20 frames before the first is told from the first frame alone (float32 of 300)."""
    spikes = np.zeros(220)
    spikes[0] = 10
    calcium = convolved(spikes, *USUAL) + 10 * USUAL[1] * convolved(np.eye(1, 220, 1)[0], *USUAL)
    trace = calcium[20:]
    found, activity = deconvolve_ar2(trace, *coefficients(*USUAL))
    np.testing.assert_allclose(found, trace, atol=0.02)
    assert activity[0] == pytest.approx(trace[0], rel=1e-3)
    assert activity[1:].sum() < 1e-3 * trace[0]


def test_noisy_spikes_are_found_in_the_right_frames() -> None:
    """Spikes of 8 sd: each gives most of its activity within a frame, and nothing else does."""
    trace, _, spikes = simulate(3000, 0.005, 8.0, seed=2)
    size = spikes.max()
    activity = deconvolve_second_order(trace, coefficients(*USUAL), 1.0, penalized=False).activity
    near = np.convolve(activity, np.ones(3), "same")
    assert np.all(near[spikes > 0] > 0.5 * size)
    far = np.convolve(spikes, np.ones(7), "same") == 0
    assert np.mean(activity[far] > 0.5 * size) < 1e-3


def test_the_rise_is_worth_modelling() -> None:
    """Without it each spike of 8 sd looks like several, and the first of them comes late."""
    trace, calcium, spikes = simulate(3000, 0.01, 8.0, seed=3)
    first = deconvolve(trace, USUAL[0], 1.0)
    second = deconvolve_second_order(trace, coefficients(*USUAL), 1.0)
    errors = [np.mean((each.calcium - calcium) ** 2) for each in (first, second)]
    assert errors[1] < 0.7 * errors[0]
    matches = [np.corrcoef(each.activity, spikes)[0, 1] for each in (first, second)]
    assert matches[1] > matches[0] + 0.2


@pytest.mark.parametrize(("rate", "bias"), [(0.003, 0.3), (0.01, 0.4), (0.03, 0.8), (0.1, 2.5)])
def test_noise_constraint_baseline_and_fidelity(rate: float, bias: float) -> None:
    """Residual sd is the noise to float32; baseline bias grows with activity (sd of noise 1)."""
    trace, calcium, _ = simulate(3000, rate, 5.0, seed=3)
    g = coefficients(*USUAL)
    found = deconvolve_second_order(trace, g, 1.0)
    residual = trace - found.calcium - found.baseline
    assert residual.std() == pytest.approx(1.0, rel=1e-4)
    assert abs(residual.mean()) < 1e-4
    assert abs(found.baseline - 300) < bias
    assert np.corrcoef(found.calcium, calcium)[0, 1] > 0.97
    again = deconvolve_ar2(trace, *g, found.penalty, found.baseline)
    np.testing.assert_allclose(again[0], found.calcium, atol=1e-4)
    np.testing.assert_allclose(again[1], found.activity, atol=2e-4)


def test_constrained_form_is_the_least_activity() -> None:
    """Against a solver that knows nothing of events: no feasible point has less (1 %)."""
    trace, _, _ = simulate(60, 0.05, 6.0, seed=4)
    found = deconvolve_second_order(trace, coefficients(*USUAL), 0.9)
    matrix = np.column_stack([response(60, *USUAL), np.ones(60)])

    def slack(x: np.ndarray) -> float:
        return float(60 * 0.9**2 - np.sum((trace - matrix @ x) ** 2))

    answer = minimize(
        lambda x: np.sum(x[:-1]),
        np.append(np.full(60, 0.5), 300.0),
        jac=lambda x: np.append(np.ones(60), 0.0),
        bounds=[(0, None)] * 60 + [(None, None)],
        constraints={
            "type": "ineq",
            "fun": slack,
            "jac": lambda x: 2 * matrix.T @ (trace - matrix @ x),
        },
        method="SLSQP",
        options={"maxiter": 500},
    )
    assert answer.success
    assert float(found.activity.sum()) == pytest.approx(answer.fun, rel=0.01)


def test_a_known_baseline_is_kept() -> None:
    trace, _, _ = simulate(2000, 0.02, 5.0, seed=5)
    g = coefficients(*USUAL)
    found = deconvolve_second_order(trace, g, 1.0, baseline=300.0)
    assert found.baseline == 300.0
    assert found.penalty > 0
    assert np.sqrt(np.mean((trace - found.calcium - 300) ** 2)) == pytest.approx(1, rel=1e-4)
    least = deconvolve_second_order(trace, g, 1e-6, baseline=300.0)
    assert least.penalty == 0
    np.testing.assert_allclose(least.calcium, deconvolve_ar2(trace, *g, 0, 300)[0], atol=1e-4)


def test_the_unpenalized_fit_is_above_the_same_baseline() -> None:
    trace, _, _ = simulate(2000, 0.02, 5.0, seed=6)
    g = coefficients(*USUAL)
    shrunk = deconvolve_second_order(trace, g, 1.0)
    found = deconvolve_second_order(trace, g, 1.0, penalized=False)
    assert (found.penalty, found.baseline) == (0, shrunk.baseline)
    expected = deconvolve_ar2(trace, *g, 0.0, shrunk.baseline)
    np.testing.assert_allclose(found.calcium, expected[0], atol=1e-4)
    np.testing.assert_allclose(found.activity, expected[1], atol=4e-4)
    assert found.activity.sum() > shrunk.activity.sum()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=60),
    st.floats(0, 0.999),
    st.floats(0, 1),
    st.floats(0, 500),
    st.sampled_from([None, -2000.0, 0.0, 2000.0]),
)
def test_any_finite_trace_gives_finite_results(
    values: list[float], decay: float, share: float, noise: float, baseline: float | None
) -> None:
    g = coefficients(decay, decay * share)
    found = deconvolve_second_order(np.array(values), g, noise, baseline)
    assert np.isfinite(found.calcium).all()
    assert np.all(found.activity >= 0)
    assert np.isfinite(found.baseline)
    assert found.penalty >= 0


@pytest.mark.parametrize("n_frames", [5, 20, 300])
@pytest.mark.parametrize("seed", range(20))
def test_noise_constraint_holds_for_short_and_dense_traces(n_frames: int, seed: int) -> None:
    """Whatever the activity, times and noise asked for: within 0.1 % (float32 of 300)."""
    rng = np.random.default_rng(seed)
    decay = rng.uniform(0.3, 0.97)
    roots = decay, decay * rng.uniform(0, 0.9)
    trace = simulate(n_frames, 10 ** rng.uniform(-2, -0.3), rng.uniform(1, 20), seed, roots)[0]
    noise = rng.uniform(0.3, 1.2)
    found = deconvolve_second_order(trace, coefficients(*roots), noise)
    residual = trace - found.baseline - found.calcium
    assert residual.std() == pytest.approx(min(noise, trace.std()), rel=1e-3)


def test_scale_offset_and_type_carry_over() -> None:
    """To the float32 of a trace of 13000."""
    trace, _, _ = simulate(1000, 0.02, 5.0, seed=6)
    g = coefficients(*USUAL)
    first = deconvolve_second_order(trace, g, 1.0)
    other = deconvolve_second_order(40 * trace + 1000, g, 40.0)
    np.testing.assert_allclose(other.calcium / 40, first.calcium, atol=1e-3)
    assert (other.baseline - 1000) / 40 == pytest.approx(first.baseline, abs=1e-3)
    single = deconvolve_second_order(trace.astype(np.float32), np.array(g, np.float32), 1.0)
    np.testing.assert_allclose(single.calcium, first.calcium, atol=1e-3)
    counts = np.round(40 * trace).astype(np.uint16)
    whole = deconvolve_second_order(counts, g, 40.0).calcium
    np.testing.assert_array_equal(
        whole, deconvolve_second_order(counts.astype(float), g, 40.0).calcium
    )


@pytest.mark.parametrize("n_frames", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("level", [0.0, -3.0, 400.0])
def test_constant_traces_have_no_activity(n_frames: int, level: float) -> None:
    trace, g = np.full(n_frames, level), coefficients(*USUAL)
    for noise in (0.0, 1.0):
        for penalized in (True, False):
            found = deconvolve_second_order(trace, g, noise, penalized=penalized)
            assert found.calcium.shape == found.activity.shape == (n_frames,)
            assert not found.calcium.any()
            assert not found.activity.any()
            assert found.baseline == (level if n_frames else 0)
    calcium, activity = deconvolve_ar2(trace, *g, baseline=level)
    assert not calcium.any()
    assert not activity.any()


def test_a_trace_that_varies_no_more_than_its_noise_has_no_activity() -> None:
    """And the penalty given is one at which the plain fit has none either."""
    trace, g = 300 + np.random.default_rng(10).normal(size=1000), coefficients(*USUAL)
    for noise in (1.2, float(trace.astype(np.float32).astype(float).std())):
        found = deconvolve_second_order(trace, g, noise)
        assert not found.activity.any()
        assert found.baseline == pytest.approx(trace.mean(), abs=1e-4)
        assert not deconvolve_ar2(trace, *g, found.penalty, found.baseline)[1].any()


def test_noise_alone_has_next_to_no_activity() -> None:
    for seed in range(10):
        trace = 300 + np.random.default_rng(seed).normal(size=1000)
        found = deconvolve_second_order(trace, coefficients(*USUAL), 1.0)
        assert found.calcium.std() < 0.3
        assert found.baseline == pytest.approx(300, abs=0.3)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_missing_frames_give_nan_everywhere(wrong: float) -> None:
    trace, g = simulate(200, 0.02, 5.0, seed=11)[0], coefficients(*USUAL)
    trace[20] = wrong
    found = deconvolve_second_order(trace, g, 1.0)
    assert all(np.isnan(each).all() for each in found)
    assert all(np.isnan(each).all() for each in deconvolve_ar2(trace, *g))
    assert np.isnan(deconvolve_second_order(np.ones(9), g, np.nan).calcium).all()


@pytest.mark.parametrize(
    ("g1", "g2"), [(1.0, 0.0), (1.0, -0.5), (0.5, 0.1), (-0.5, 0.0), (2.0, -1.0), (np.nan, 0.0)]
)
def test_coefficients_without_real_roots_raise(g1: float, g2: float) -> None:
    with pytest.raises(ValueError, match="must be real"):
        deconvolve_ar2(np.zeros(5), g1, g2)
    with pytest.raises(ValueError, match="must be real"):
        deconvolve_second_order(np.zeros(5), (g1, g2), 1.0)


def test_wrong_arguments_raise() -> None:
    with pytest.raises(ValueError, match="2 axes"):
        deconvolve_ar2(np.zeros((2, 5)), 0.9, 0.0)
    with pytest.raises(ValueError, match=r"\(cell, time\)"):
        second_order_coefficients(np.zeros(5))
    with pytest.raises(ValueError, match=r"noise \(3,\)"):
        second_order_coefficients(np.zeros((2, 5)), np.zeros(3))
    with pytest.raises(ValueError, match="lags is 2"):
        second_order_coefficients(np.zeros((1, 5)), lags=2)
    with pytest.raises(ValueError, match="order 0 to 2"):
        time_constants(np.zeros((4, 3)), 30.0)


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
    deconvolve_ar2(np.zeros(5), *np.float32(g))
    with pytest.raises(InputError, match=r"rise_time is 0\.7 s"):
        coefficients_from_times(0.6, 0.7, 30.0)
    with pytest.raises(InputError, match=r"decay_time is 0\.0 s"):
        coefficients_from_times(0.0, 0.0, 30.0)
    with pytest.raises(InputError, match="frame_rate is 0 Hz"):
        coefficients_from_times(0.6, 0.1, 0)
