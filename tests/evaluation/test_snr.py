from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_calcium.errors import InputError
from napari_calcium.evaluation.snr import half_sample_mode, trace_snr


def noise(n_cells: int, n_frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_cells, n_frames))


def transient(n_frames: int, start: int) -> np.ndarray:
    after = np.arange(n_frames) - start
    return np.where(after >= 0, 0.95 ** np.maximum(after, 0), 0.0)


def test_white_noise_scores_low() -> None:
    """In units of 3 sd over 12 frames: half below 0.5, all below the usual threshold's half."""
    scores = trace_snr(noise(200, 3000), 30.0, 0.4)
    assert 0.2 < np.median(scores) < 0.5
    assert scores.max() < 1.0


@pytest.mark.parametrize(("size", "low", "high"), [(5, 0.8, 1.9), (10, 1.9, 3.4), (20, 4, 6.5)])
def test_score_follows_the_size_of_the_transient(size: float, low: float, high: float) -> None:
    """A transient of 20 sd holds 15 sd over its 12 frames: 15 / 3 = 5, spread by the mode's."""
    traces = noise(100, 3000, seed=1) + size * transient(3000, 1000)
    scores = trace_snr(traces, 30.0, 0.4)
    assert np.percentile(scores, 10) > low
    assert np.percentile(scores, 90) < high


def test_clear_transients_pass_three() -> None:
    traces = 200 + 5 * (noise(50, 2000, seed=2) + 20 * transient(2000, 700))
    assert trace_snr(traces, 30.0, 0.4).min() > 3


def test_slow_drift_is_not_a_transient() -> None:
    ramp = np.linspace(0, 100, 3000)
    traces = noise(50, 3000, seed=3)
    np.testing.assert_allclose(
        np.median(trace_snr(traces + ramp, 30.0, 0.4)),
        np.median(trace_snr(traces, 30.0, 0.4)),
        atol=0.1,
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.floats(1e-3, 1e4), st.floats(-1e4, 1e4), st.integers(0, 1000))
def test_scale_and_offset_do_not_matter(scale: float, offset: float, seed: int) -> None:
    """To 1e-4: an offset of 1e7 noise levels costs that many digits of a double."""
    trace = noise(1, 400, seed) + 5 * transient(400, 150)
    expected = trace_snr(trace, 30.0, 0.4)
    np.testing.assert_allclose(trace_snr(scale * trace + offset, 30.0, 0.4), expected, atol=1e-4)


def test_enormous_transients_stay_finite() -> None:
    """Probabilities far below the smallest double: 1e7 sd scores about 1e7 / 3 * 0.78."""
    trace = noise(1, 3000, seed=4) + 1e7 * transient(3000, 1000)
    assert trace_snr(trace, 30.0, 0.4)[0] == pytest.approx(1e7 / 3 * 0.78, rel=0.25)
    assert np.isfinite(trace_snr(1e37 * (trace > 1e6), 30.0, 0.4)).all()


def test_constant_missing_and_empty() -> None:
    holed = noise(1, 500, seed=5) + 20 * transient(500, 100)
    expected = trace_snr(holed, 30.0, 0.4)
    holed[0, [0, 1, 2, 300, 499]] = [np.nan, np.nan, np.inf, np.nan, -np.inf]
    np.testing.assert_allclose(trace_snr(holed, 30.0, 0.4), expected, rtol=0.2)
    for trace in (np.full(500, 7.1), np.zeros(500), np.full(500, np.nan), np.ones(1), np.ones(0)):
        assert trace_snr(trace[None], 30.0, 0.4).tolist() == [0]
    assert trace_snr(np.zeros((0, 50)), 30.0, 0.4).shape == (0,)
    assert trace_snr(holed, 30.0, 0.4).dtype == np.float32


def test_transient_longer_than_the_recording() -> None:
    assert np.isfinite(trace_snr(noise(3, 20, seed=6), 30.0, 5.0)).all()


def test_wrong_arguments_raise() -> None:
    with pytest.raises(InputError, match=r"frame_rate is 0\.0 Hz"):
        trace_snr(np.zeros((1, 5)), 0.0, 0.4)
    with pytest.raises(InputError, match=r"decay_time is -1\.0 s"):
        trace_snr(np.zeros((1, 5)), 30.0, -1.0)
    with pytest.raises(ValueError, match="1 axes"):
        trace_snr(np.zeros(5), 30.0, 0.4)


def test_mode_of_skewed_values() -> None:
    """Resting values with 30 % of large positive ones: mode near 0 while the mean is 1.5."""
    rng = np.random.default_rng(7)
    modes = []
    for _ in range(30):
        values = np.append(rng.normal(size=700), rng.exponential(5, size=300))
        modes.append(half_sample_mode(values))
    assert abs(np.median(modes)) < 0.3


@pytest.mark.parametrize(
    ("values", "mode"),
    [([4.0], 4.0), ([4.0, 5.0], 4.5), ([1.0, 2.0, 4.0], 1.5), ([1.0, 2.0, 3.0], 2.0)],
)
def test_mode_of_few_values(values: list[float], mode: float) -> None:
    assert half_sample_mode(np.array(values)) == mode


def test_mode_of_nothing_raises() -> None:
    with pytest.raises(ValueError, match="at least one"):
        half_sample_mode(np.zeros(0))
