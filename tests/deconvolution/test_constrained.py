"""Deconvolution at a known noise, above a baseline that is estimated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.signal import lfilter

from napari_calcium.deconvolution.active_set import deconvolve_ar2
from napari_calcium.deconvolution.constrained import deconvolve
from napari_calcium.deconvolution.oasis import deconvolve_ar1

USUAL = (0.946, 0.717)
"""Decay and rise of 0.6 and 0.1 s at 30 Hz."""

PENALTIES = ("l1", "none", "l0")


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


def test_noisy_spikes_are_found_in_the_right_frames() -> None:
    """Spikes of 8 sd: each gives most of its activity within a frame, and nothing else does."""
    trace, _, spikes = simulate(3000, 0.005, 8.0, seed=2)
    size = spikes.max()
    activity = deconvolve(trace, coefficients(*USUAL), 1.0, penalty="none").activity
    near = np.convolve(activity, np.ones(3), "same")
    assert np.all(near[spikes > 0] > 0.5 * size)
    far = np.convolve(spikes, np.ones(7), "same") == 0
    assert np.mean(activity[far] > 0.5 * size) < 1e-3


def test_the_rise_is_worth_modelling() -> None:
    """Without it each spike of 8 sd looks like several, and the first of them comes late."""
    trace, calcium, spikes = simulate(3000, 0.01, 8.0, seed=3)
    first = deconvolve(trace, USUAL[0], 1.0)
    second = deconvolve(trace, coefficients(*USUAL), 1.0)
    errors = [np.mean((each.calcium - calcium) ** 2) for each in (first, second)]
    assert errors[1] < 0.7 * errors[0]
    matches = [np.corrcoef(each.activity, spikes)[0, 1] for each in (first, second)]
    assert matches[1] > matches[0] + 0.2


@pytest.mark.parametrize(("rate", "bias"), [(0.003, 0.3), (0.01, 0.4), (0.03, 0.8), (0.1, 2.5)])
def test_noise_constraint_baseline_and_fidelity(rate: float, bias: float) -> None:
    """Residual sd is the noise to float32; baseline bias grows with activity (sd of noise 1)."""
    trace, calcium, _ = simulate(3000, rate, 5.0, seed=3)
    g = coefficients(*USUAL)
    found = deconvolve(trace, g, 1.0)
    residual = trace - found.calcium - found.baseline
    assert residual.std() == pytest.approx(1.0, rel=1e-4)
    assert abs(residual.mean()) < 1e-4
    assert abs(found.baseline - 300) < bias
    assert np.corrcoef(found.calcium, calcium)[0, 1] > 0.97
    again = deconvolve_ar2(trace, g, found.penalty, found.baseline)
    np.testing.assert_allclose(again[0], found.calcium, atol=1e-4)
    np.testing.assert_allclose(again[1], found.activity, atol=2e-4)


def test_constrained_form_is_the_least_activity() -> None:
    """Against a solver that knows nothing of events: no feasible point has less (1 %)."""
    trace, _, _ = simulate(60, 0.05, 6.0, seed=4)
    found = deconvolve(trace, coefficients(*USUAL), 0.9)
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
    found = deconvolve(trace, g, 1.0, baseline=300.0)
    assert found.baseline == 300.0
    assert found.penalty > 0
    assert np.sqrt(np.mean((trace - found.calcium - 300) ** 2)) == pytest.approx(1, rel=1e-4)
    least = deconvolve(trace, g, 1e-6, baseline=300.0)
    assert least.penalty == 0
    np.testing.assert_allclose(least.calcium, deconvolve_ar2(trace, g, 0, 300)[0], atol=1e-4)


def test_the_unpenalized_fit_is_above_the_same_baseline() -> None:
    trace, _, _ = simulate(2000, 0.02, 5.0, seed=6)
    g = coefficients(*USUAL)
    shrunk = deconvolve(trace, g, 1.0)
    found = deconvolve(trace, g, 1.0, penalty="none")
    assert (found.penalty, found.baseline) == (0, shrunk.baseline)
    expected = deconvolve_ar2(trace, g, 0.0, shrunk.baseline)
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
    found = deconvolve(np.array(values), g, noise, baseline)
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
    found = deconvolve(trace, coefficients(*roots), noise)
    residual = trace - found.baseline - found.calcium
    assert residual.std() == pytest.approx(min(noise, trace.std()), rel=1e-3)


def test_scale_offset_and_type_carry_over() -> None:
    """To the float32 of a trace of 13000."""
    trace, _, _ = simulate(1000, 0.02, 5.0, seed=6)
    g = coefficients(*USUAL)
    first = deconvolve(trace, g, 1.0)
    other = deconvolve(40 * trace + 1000, g, 40.0)
    np.testing.assert_allclose(other.calcium / 40, first.calcium, atol=1e-3)
    assert (other.baseline - 1000) / 40 == pytest.approx(first.baseline, abs=1e-3)
    single = deconvolve(trace.astype(np.float32), np.array(g, np.float32), 1.0)
    np.testing.assert_allclose(single.calcium, first.calcium, atol=1e-3)
    counts = np.round(40 * trace).astype(np.uint16)
    whole = deconvolve(counts, g, 40.0).calcium
    np.testing.assert_array_equal(whole, deconvolve(counts.astype(np.float32), g, 40.0).calcium)


@pytest.mark.parametrize("n_frames", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("level", [0.0, -3.0, 400.0])
def test_constant_traces_have_no_activity(n_frames: int, level: float) -> None:
    trace, g = np.full(n_frames, level), coefficients(*USUAL)
    for noise in (0.0, 1.0):
        for penalty in PENALTIES:
            found = deconvolve(trace, g, noise, penalty=penalty)
            assert found.calcium.shape == found.activity.shape == (n_frames,)
            assert not found.calcium.any()
            assert not found.activity.any()
            assert found.baseline == (level if n_frames else 0)
    calcium, activity = deconvolve_ar2(trace, g, baseline=level)
    assert not calcium.any()
    assert not activity.any()


def test_a_trace_that_varies_no_more_than_its_noise_has_no_activity() -> None:
    """And the penalty given is one at which the plain fit has none either."""
    trace, g = 300 + np.random.default_rng(10).normal(size=1000), coefficients(*USUAL)
    for noise in (1.2, float(trace.astype(np.float32).astype(float).std())):
        found = deconvolve(trace, g, noise)
        assert not found.activity.any()
        assert found.baseline == pytest.approx(trace.mean(), abs=1e-4)
        assert not deconvolve_ar2(trace, g, found.penalty, found.baseline)[1].any()


def test_noise_alone_has_next_to_no_activity() -> None:
    for seed in range(10):
        trace = 300 + np.random.default_rng(seed).normal(size=1000)
        found = deconvolve(trace, coefficients(*USUAL), 1.0)
        assert found.calcium.std() < 0.3
        assert found.baseline == pytest.approx(300, abs=0.3)


def simulate_first(
    n_frames: int, rate: float, size: float, g: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of calcium that rises at once."""
    return simulate(n_frames, rate, size, seed, (g, 0.0))


@pytest.mark.parametrize(("rate", "bias"), [(0.003, 0.3), (0.01, 0.3), (0.03, 0.6), (0.1, 2.0)])
def test_noise_constraint_of_the_first_order(rate: float, bias: float) -> None:
    """Residual sd is the noise; baseline bias grows with activity (sd of noise 1)."""
    trace, calcium, _ = simulate_first(3000, rate, 4.0, 0.95, seed=3)
    found = deconvolve(trace, 0.95, 1.0)
    residual = trace - found.calcium - found.baseline
    assert residual.std() == pytest.approx(1.0, rel=1e-6)
    assert abs(residual.mean()) < 1e-6
    assert abs(found.baseline - 300) < bias
    assert np.corrcoef(found.calcium, calcium)[0, 1] > 0.97
    again = deconvolve_ar1(trace, 0.95, found.penalty, found.baseline)
    np.testing.assert_allclose(found.calcium, again[0], atol=1e-8)
    np.testing.assert_allclose(found.activity, again[1], atol=1e-8)


@pytest.mark.parametrize("g", [(0.95,), (USUAL[0] + USUAL[1], -USUAL[0] * USUAL[1])])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("seed", range(3))
def test_a_tenth_of_the_frames_missing_changes_little(
    g: tuple[float, ...], penalty: str, seed: int
) -> None:
    """Besides a gap of 60 frames, as long as no spike is in or just before what is missing.

    The error of calcium is at most 15 % larger, for there is less to see it by.
    """
    roots = USUAL if len(g) == 2 else (0.95, 0.0)
    trace, calcium, spikes = simulate(3000, 0.01, 8.0, seed, roots)
    missing = np.random.default_rng(seed).random(3000) < 0.1
    missing[:5] = missing[1000:1060] = True
    missing &= np.convolve(spikes, np.ones(9), "same") == 0
    gappy = np.where(missing, np.nan, trace)
    found = deconvolve(gappy, g, 1.0, penalty=penalty, min_spike=4.0)
    np.testing.assert_array_equal(np.isnan(found.calcium), missing)
    np.testing.assert_array_equal(np.isnan(found.activity), missing)
    assert found.baseline == pytest.approx(300, abs=0.4)
    whole = deconvolve(trace, g, 1.0, penalty=penalty, min_spike=4.0)
    known = ~missing
    error, usual = ((each.calcium - calcium)[known].std() for each in (found, whole))
    assert error < 1.15 * usual
    if penalty == "l1":
        residual = (trace - found.calcium - found.baseline)[known]
        assert residual.std() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("g", [(0.95,), (USUAL[0] + USUAL[1], -USUAL[0] * USUAL[1])])
@pytest.mark.parametrize("seed", range(4))
def test_a_smallest_spike_leaves_the_true_ones(g: tuple[float, ...], seed: int) -> None:
    """Spikes 8 sd high, the smallest half of that: 9 in 10 are one event near by, few others are.

    The baseline is unbiased: within 0.1 sd.
    """
    roots = USUAL if len(g) == 2 else (0.95, 0.0)
    trace, _, spikes = simulate(6000, 0.004, 8.0, seed, roots)
    found = deconvolve(trace, g, 1.0, penalty="l0", min_spike=4.0)
    events, true = np.flatnonzero(found.activity[1:]) + 1, np.flatnonzero(spikes)
    distance = np.abs(events[:, None] - true)
    assert np.mean(distance.min(axis=0) <= 2) > 0.9
    assert len(events) <= 1.35 * len(true)
    assert found.baseline == pytest.approx(300, abs=0.1)
    least = deconvolve(trace, g, 1.0, penalty="none")
    assert np.count_nonzero(least.activity) > 5 * len(events)


def test_no_smallest_spike_is_the_unpenalized_fit() -> None:
    trace = simulate(1000, 0.02, 6.0, 1)[0]
    g = coefficients(*USUAL)
    expected = deconvolve(trace, g, 1.0, 300.0, "none")
    found = deconvolve(trace, g, 1.0, 300.0, "l0", 0.0)
    np.testing.assert_allclose(found.calcium, expected.calcium, atol=1e-7)
    np.testing.assert_allclose(found.activity, expected.activity, atol=1e-7)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_what_is_not_known(penalty: str) -> None:
    g = coefficients(*USUAL)
    for trace, noise in ((np.full(9, np.nan), 1.0), (np.ones(9), np.nan)):
        found = deconvolve(trace, g, noise, penalty=penalty, min_spike=1.0)
        assert all(np.isnan(each).all() for each in found)
    one = deconvolve(np.array([np.nan, 5.0, np.nan]), g, 1.0, penalty=penalty, min_spike=1.0)
    np.testing.assert_array_equal(one.calcium, [np.nan, 0, np.nan])
    assert one.baseline == 5


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-1000, 1000) | st.just(np.nan) | st.just(np.inf), min_size=1, max_size=60),
    st.floats(0, 0.999),
    st.floats(0, 1),
    st.floats(0, 500),
    st.sampled_from(PENALTIES),
    st.floats(0, 500),
)
def test_any_trace_gives_numbers_where_it_has_them(
    values: list[float], decay: float, share: float, noise: float, penalty: str, least: float
) -> None:
    trace = np.array(values)
    found = deconvolve(trace, coefficients(decay, decay * share), noise, None, penalty, least)
    known = np.isfinite(trace)
    np.testing.assert_array_equal(np.isfinite(found.calcium), known)
    np.testing.assert_array_equal(np.isfinite(found.activity), known)
    assert np.all(found.activity[known] >= 0)
    assert np.isfinite(found.baseline) == known.any()


@pytest.mark.parametrize("distance", [0.0, 5000.0])
def test_the_noise_is_reached_above_a_baseline_far_away(distance: float) -> None:
    """The least noise is a part of the trace's own variation, wherever the baseline is."""
    trace = simulate_first(3000, 0.02, 5.0, 0.95, seed=5)[0]
    found = deconvolve(trace, 0.95, 1.0, baseline=300.0 - distance)
    residual = trace - found.calcium - found.baseline
    assert np.sqrt(np.mean(residual**2)) == pytest.approx(1.0, rel=1e-3)


def test_wrong_arguments_raise() -> None:
    with pytest.raises(ValueError, match="must be real"):
        deconvolve(np.zeros(5), (1.0, -0.5), 1.0)
    with pytest.raises(ValueError, match="2 axes"):
        deconvolve(np.zeros((2, 5)), 0.9, 1.0)
