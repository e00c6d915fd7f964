from __future__ import annotations

import numpy as np
import pytest

from napari_calcium.traces import noise_level


@pytest.mark.parametrize(
    ("n_frames", "spread"), [(20, 0.5), (31, 0.4), (40, 0.35), (63, 0.3), (3000, 0.05)]
)
def test_white_noise_is_measured_at_any_length(n_frames: int, spread: float) -> None:
    """Mean over 500 traces within 4 % (a root is biased low); 9 in 10 within `spread`."""
    traces = 500 + 7 * np.random.default_rng(0).normal(size=(500, n_frames))
    noise = noise_level(traces) / 7
    assert abs(noise.mean() - 1) < 0.04
    assert np.percentile(np.abs(noise - 1), 90) < spread


def test_drift_and_steps_do_not_leak() -> None:
    """A ramp of 100 sd changes the estimate by less than 1 %, a step of 30 sd by less than 35 %."""
    noise = np.random.default_rng(1).normal(size=2000)
    ramp = np.linspace(0, 100, 2000)
    step = 30.0 * (np.arange(2000) > 1000)
    assert noise_level(noise + ramp) == pytest.approx(noise_level(noise), rel=0.01)
    assert noise_level(noise + step) < 1.35 * noise_level(noise)


def test_slow_transients_change_little() -> None:
    rng = np.random.default_rng(2)
    spikes = 5.0 * (rng.random(3000) < 0.01)
    calcium = np.convolve(spikes, 0.95 ** np.arange(200))[:3000]
    noise = rng.normal(size=3000)
    assert noise_level(noise + calcium) == pytest.approx(noise_level(noise), rel=0.08)


def test_one_trace_and_several_agree() -> None:
    traces = np.random.default_rng(3).normal(size=(3, 100)).astype(np.float32)
    assert noise_level(traces[1]).shape == ()
    assert noise_level(traces[1]) == noise_level(traces)[1]


def test_empty_flat_and_missing() -> None:
    assert noise_level(np.zeros((0, 50))).shape == (0,)
    assert noise_level(np.full((2, 1), 5.0)).tolist() == [0, 0]
    assert noise_level(np.full((1, 70), 5.0)).tolist() == [0]
    assert noise_level(np.full((1, 70), np.nan)).tolist() == [0]
    trace = np.random.default_rng(4).normal(size=400)
    holed = np.insert(trace, [10, 200], [np.nan, np.inf])
    assert noise_level(holed) == noise_level(trace)


def test_axes_are_checked() -> None:
    with pytest.raises(ValueError, match="3 axes"):
        noise_level(np.zeros((2, 3, 4)))
