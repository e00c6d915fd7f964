from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from napari_calcium.spikes.features import (
    AROUND,
    LAGS,
    LEAST_NOISE,
    N_FEATURES,
    Features,
    channels,
    trace_features,
)
from napari_calcium.spikes.ground_truth import Recording

RATE = 30.0
SIGNAL = 3
"""Where the logarithm of the variance without noise is, over 0.05."""
COVARIANCE = slice(4, 4 + len(LAGS))
SHAPE = slice(-2 - len(AROUND), -2)
IN_NOISE, AS_FRACTION = -2, -1
"""Where the height of the mean transient is, as arcsinh of a half of it, or of five times it."""

Simulate = Callable[..., Recording]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("sd", [0.02, 0.3])
@pytest.mark.parametrize("rest", [0.0, -0.4, 1.5])
def test_white_noise(seed: int, sd: float, rest: float) -> None:
    """Noise to 3 % (10,000 steps), the baseline to 5 % of the noise."""
    found = trace_features(np.random.default_rng(seed).normal(rest, sd, 10_000), RATE)
    np.testing.assert_allclose(found.noise, sd, rtol=0.03)
    np.testing.assert_allclose(found.baseline, rest, atol=0.05 * sd)
    values = found.values
    assert values.shape == (N_FEATURES,)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[0], np.log(RATE / 15), rtol=1e-6)
    np.testing.assert_allclose(values[1], np.log(sd / 0.1), atol=0.03)
    np.testing.assert_allclose(values[2], 0, atol=0.1)  # all of the variance is noise


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("period", [4.0, 9.0])
@pytest.mark.parametrize("noise", [0.1, 0.2])
def test_autocovariance_of_a_sine(seed: int, period: float, noise: float) -> None:
    """A cosine; to 5 %, as steps of the sine count as noise."""
    n_frames = int(100 * period * RATE)
    sine = 0.5 * np.sin(2 * np.pi * np.arange(n_frames) / RATE / period)
    trace = sine + np.random.default_rng(seed).normal(0, noise, n_frames)
    found = trace_features(trace, RATE)
    expected = np.cos(2 * np.pi * np.array(LAGS) / period)
    np.testing.assert_allclose(found.values[COVARIANCE], expected, atol=0.05)
    np.testing.assert_allclose(found.values[SIGNAL], np.log(0.125 / 0.05), atol=0.05)
    np.testing.assert_allclose(found.noise, noise, rtol=0.05)


def test_lags_between_frames_are_interpolated() -> None:
    """At 7.5 Hz 0.4 s are 3 frames and 0.1 s less than one, which is taken for one."""
    random = np.random.default_rng(0)
    trace = np.convolve(random.normal(0, 1, 20_003), np.ones(4) / 2, "valid")  # 3/4, 1/2, 1/4, 0
    values = trace_features(trace + 10, 7.5).values[COVARIANCE]
    found = values / values[0]
    expected = [3 / 4, 1 / 2 + 1 / 8, 1 / 4, 0, 0, 0]  # of 1, 1.5, 3, 6, 12 and 24 frames
    np.testing.assert_allclose(found, np.array(expected) / 0.75, atol=0.05)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_unknown_frames_are_as_if_they_were_not_there(simulated: Simulate, seed: int) -> None:
    """Around the trace to rounding; among it to what chance does.

    A tenth of the frames missing leaves half of the rises whole, about fifteen.
    """
    dff = simulated(seed).dff.astype(np.float64)
    alone = trace_features(dff, RATE)
    around = trace_features(np.pad(dff, (50, 70), constant_values=np.nan), RATE)
    np.testing.assert_allclose(around.values, alone.values, rtol=1e-5, atol=1e-6)
    assert (around.noise, around.baseline) == (alone.noise, alone.baseline)
    infinite = np.pad(dff, (50, 70), constant_values=np.inf)
    np.testing.assert_array_equal(trace_features(infinite, RATE).values, around.values)
    holes = dff.copy()
    holes[np.random.default_rng(seed).random(len(dff)) < 0.1] = np.nan
    among = trace_features(holes, RATE)
    np.testing.assert_allclose(among.noise, alone.noise, rtol=0.1)
    off = np.abs(among.values - alone.values)
    assert off[SHAPE].max() < 0.4
    assert np.delete(off, np.arange(N_FEATURES)[SHAPE]).max() < 0.2


@pytest.mark.parametrize("seed", [0, 1])
def test_a_baseline_that_is_elsewhere_changes_nothing(simulated: Simulate, seed: int) -> None:
    """To rounding of single precision, of dF/F of up to 3 over a noise of 0.05."""
    dff = simulated(seed).dff.astype(np.float64)
    here, there = trace_features(dff, RATE), trace_features(dff + 0.7, RATE)
    np.testing.assert_allclose(there.baseline - here.baseline, 0.7, atol=1e-9)
    np.testing.assert_allclose(there.values, here.values, atol=1e-5)
    first, second = channels(dff, here), channels(dff + 0.7, there)
    np.testing.assert_allclose(first, second, atol=1e-4)
    assert first.shape == (len(dff), 2)
    assert first.dtype == np.float32


def test_channels_of_known_values() -> None:
    features = Features(np.zeros(N_FEATURES, np.float32), noise=0.1, baseline=0.5)
    found = channels(np.array([0.5, 0.6, 0.3]), features)
    expected = [
        [0, 0],
        [np.arcsinh(0.5), np.arcsinh(0.5) / 2],
        [-np.arcsinh(1), -np.arcsinh(1) / 2],
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_baseline_of_a_busy_trace_is_below_its_median(simulated: Simulate) -> None:
    """Less than half of the way up to the mean, of a trace that is seldom at rest."""
    dff = simulated(0, seconds=300, spike_rate=1.0, noise=0.05).dff
    found = trace_features(dff, RATE)
    assert -0.05 < found.baseline < 0.5 * dff.mean()
    assert found.baseline < np.median(dff)


@pytest.mark.parametrize("dff", [[0.1, 0.2], [0.0, 0.0, 0.0], np.zeros(500), np.full(300, 7.0)])
def test_short_and_flat_traces_have_finite_statistics(dff: list[float]) -> None:
    found = trace_features(np.array(dff), RATE)
    assert np.isfinite(found.values).all()
    assert found.noise >= LEAST_NOISE
    assert np.isfinite(channels(np.array(dff), found)).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("decay", "frame_rate"), [(0.3, 30.0), (1.0, 30.0), (1.0, 60.0)])
def test_mean_transient_of_single_spikes(
    simulated: Simulate, seed: int, decay: float, frame_rate: float
) -> None:
    """The transient itself, of spikes 5 s apart that stand 20 times above the noise.

    To 0.1 of its height: the rise is found to a frame, and the peak lies between frames.
    """
    times = np.arange(3.0, 290, 5)
    kinetics = {"rise": 0.02, "decay": decay, "amplitude": 0.6, "noise": 0.03}
    dff = simulated(seed, frame_rate, 300.0, times=times, **kinetics).dff
    values = trace_features(dff, frame_rate).values
    since = np.array(AROUND) + 0.05  # s from the spike: the rise ends within two or three frames
    transient = np.where(since > 0, (1 - np.exp(-since / 0.02)) * np.exp(-since / decay), 0)
    expected = transient / transient.max()
    late = np.array(AROUND) >= 0.07
    np.testing.assert_allclose(values[SHAPE][late], expected[late], atol=0.1)
    np.testing.assert_allclose(values[SHAPE][:2], 0, atol=0.1)  # 0.3 and 0.15 s before
    height = np.sinh(values[AS_FRACTION]) / 5
    assert 0.75 < height / 0.6 < 1
    np.testing.assert_allclose(np.sinh(values[IN_NOISE]) * 2 * 0.03, height, rtol=0.1)


def test_mean_transient_leaves_out_what_is_not_known(simulated: Simulate) -> None:
    """A jump across a gap is no rise, and frames that are not known are in no mean."""
    times = np.arange(3.0, 110, 5)
    dff = simulated(0, seconds=120.0, times=times, noise=0.02).dff.astype(np.float64)
    whole = trace_features(dff, RATE).values
    dff[45::450] = np.nan
    dff[1000:1200] = np.nan
    dff[1200:1260] += 4
    gaps = trace_features(dff[:1800], RATE).values
    assert np.sinh(gaps[AS_FRACTION]) / 5 < 1.5 * np.sinh(whole[AS_FRACTION]) / 5
    np.testing.assert_allclose(gaps[SHAPE], whole[SHAPE], atol=0.1)


def test_no_rise_has_no_transient() -> None:
    values = trace_features(np.linspace(0, 1, 500), RATE).values
    np.testing.assert_array_equal(values[SHAPE], 0)
    assert values[AS_FRACTION] < 1e-3
