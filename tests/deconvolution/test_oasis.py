from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from scipy.signal import lfilter

from napari_calcium.deconvolution.oasis import deconvolve, deconvolve_ar1, deconvolve_cells


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


def test_noisy_spikes_are_found_in_the_right_frames() -> None:
    """Spikes of 8 sd: each gives activity above half its size within one frame, and only it."""
    trace, _, spikes = simulate(3000, 0.005, 8.0, 0.95, seed=2)
    activity = deconvolve(trace, 0.95, 1.0, penalized=False).activity
    near = np.convolve(activity, np.ones(3), "same")
    assert np.all(near[spikes > 0] > 4)
    far = np.convolve(spikes, np.ones(5), "same") == 0
    assert np.mean(activity[far] > 4) < 1e-3


@pytest.mark.parametrize(("rate", "bias"), [(0.003, 0.3), (0.01, 0.3), (0.03, 0.6), (0.1, 2.0)])
def test_noise_constraint_baseline_and_fidelity(rate: float, bias: float) -> None:
    """Residual sd within 0.1 % of the noise; baseline bias grows with activity (sd of noise 1)."""
    trace, calcium, _ = simulate(3000, rate, 4.0, 0.95, seed=3)
    found = deconvolve(trace, 0.95, 1.0)
    residual = trace - found.calcium - found.baseline
    assert residual.std() == pytest.approx(1.0, rel=1e-3)
    assert abs(residual.mean()) < 1e-3
    assert abs(found.baseline - 300) < bias
    assert np.corrcoef(found.calcium, calcium)[0, 1] > 0.97
    again = deconvolve_ar1(trace, 0.95, found.penalty, found.baseline)
    np.testing.assert_array_equal(found.calcium, again[0])
    np.testing.assert_array_equal(found.activity, again[1])


def test_constrained_form_is_the_least_activity() -> None:
    """Against a solver that knows nothing of pools: no feasible point has less activity (1 %)."""
    from scipy.optimize import minimize

    trace, _, _ = simulate(60, 0.05, 6.0, 0.9, seed=4)
    found = deconvolve(trace, 0.9, 0.9)
    matrix = np.column_stack([response(60, 0.9), np.ones(60)])

    def slack(x: np.ndarray) -> float:
        return float(60 * 0.9**2 - np.sum((trace - matrix @ x) ** 2))

    answer = minimize(
        lambda x: np.sum(x[:-1]),
        np.append(found.activity * 0 + 0.5, 300.0),
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
    trace, _, _ = simulate(2000, 0.02, 5.0, 0.95, seed=5)
    found = deconvolve(trace, 0.95, 1.0, baseline=300.0)
    assert found.baseline == 300.0
    assert found.penalty > 0
    assert np.sqrt(np.mean((trace - found.calcium - 300) ** 2)) == pytest.approx(1, rel=1e-3)
    unpenalized = deconvolve(trace, 0.95, 1e-6, baseline=300.0)
    assert unpenalized.penalty == 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=60),
    st.floats(0, 0.999),
    st.floats(0, 500),
    st.sampled_from([None, -2000.0, 0.0, 2000.0]),
)
def test_any_finite_trace_gives_finite_results(
    values: list[float], g: float, noise: float, baseline: float | None
) -> None:
    found = deconvolve(np.array(values), g, noise, baseline)
    assert np.isfinite(found.calcium).all()
    assert np.all(found.activity >= 0)
    assert np.isfinite(found.baseline)
    assert found.penalty >= 0


@pytest.mark.parametrize("n_frames", [5, 20, 300])
@pytest.mark.parametrize("seed", range(20))
def test_noise_constraint_holds_for_short_and_dense_traces(n_frames: int, seed: int) -> None:
    """Whatever the activity, decay and noise asked for: within 0.2 % (0.1 % and float32)."""
    rng = np.random.default_rng(seed)
    g, rate, noise = rng.uniform(0.3, 0.99), 10 ** rng.uniform(-2, -0.3), rng.uniform(0.3, 1.2)
    trace = simulate(n_frames, rate, rng.uniform(1, 20), g, seed)[0].astype(np.float32)
    found = deconvolve(trace, g, noise)
    residual = trace.astype(float) - found.baseline - found.calcium
    assert residual.std() == pytest.approx(min(noise, trace.std()), rel=2e-3)


def test_scale_and_offset_carry_over() -> None:
    """Tolerance: the search ends within 0.1 % of the noise's variance."""
    trace, _, _ = simulate(1000, 0.02, 5.0, 0.95, seed=6)
    first = deconvolve(trace, 0.95, 1.0)
    other = deconvolve(40 * trace + 1000, 0.95, 40.0)
    np.testing.assert_allclose(other.calcium / 40, first.calcium, atol=0.02)
    assert (other.baseline - 1000) / 40 == pytest.approx(first.baseline, abs=0.02)


def test_cells_are_independent_and_baseline_is_included() -> None:
    traces = np.stack([simulate(1500, 0.02, 5.0, 0.95, seed)[0] for seed in (7, 8, 9)])
    together = deconvolve_cells(traces)
    alone = deconvolve_cells(traces[1:2])
    np.testing.assert_array_equal(together.calcium[1], alone.calcium[0])
    assert together.calcium.dtype == together.activity.dtype == np.float32
    assert np.all(np.abs(together.baseline - 300) < 1)
    residual = traces - together.calcium
    np.testing.assert_allclose(residual.std(axis=1), together.noise, rtol=2e-3)
    assert np.all(np.abs(residual.mean(axis=1)) < 1e-2)
    given = deconvolve_cells(traces, np.full(3, 0.95), np.ones(3))
    np.testing.assert_array_equal(given.decay, np.float32(0.95))


@pytest.mark.parametrize("n_frames", [1, 2, 5, 100])
@pytest.mark.parametrize("level", [0.0, -3.0, 400.0])
def test_constant_traces_have_no_activity(n_frames: int, level: float) -> None:
    found = deconvolve_cells(np.full((1, n_frames), level))
    np.testing.assert_array_equal(found.calcium, np.float32(level))
    assert not found.activity.any()
    assert found.baseline[0] == level


def test_noise_alone_has_next_to_no_activity() -> None:
    traces = 300 + np.random.default_rng(10).normal(size=(20, 1000))
    found = deconvolve_cells(traces, decay=np.full(20, 0.95))
    assert np.median(found.calcium.std(axis=1)) < 0.3
    np.testing.assert_allclose(found.baseline, 300, atol=0.3)


def test_missing_frames_and_empty_input() -> None:
    traces = np.stack([simulate(200, 0.02, 5.0, 0.95, seed)[0] for seed in (11, 12)])
    traces[0, 20] = np.nan
    found = deconvolve_cells(traces)
    assert np.isnan(found.calcium[0]).all()
    assert np.isnan(found.activity[0]).all()
    assert np.isfinite(found.calcium[1]).all()
    assert np.isfinite(found.noise).all()
    assert deconvolve_cells(np.zeros((0, 50))).calcium.shape == (0, 50)
    assert deconvolve_cells(np.zeros((2, 0))).activity.shape == (2, 0)
    traces[0, 20] = np.inf
    assert np.isnan(deconvolve_cells(traces).activity[0]).all()


def test_wrong_arguments_raise() -> None:
    with pytest.raises(ValueError, match=r"g is 1\.0"):
        deconvolve_ar1(np.zeros(5), 1.0)
    with pytest.raises(ValueError, match="2 axes"):
        deconvolve(np.zeros((2, 5)), 0.9, 1.0)
    with pytest.raises(ValueError, match="1 axes"):
        deconvolve_cells(np.zeros(5))
