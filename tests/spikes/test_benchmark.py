from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_calcium.spikes.benchmark import (
    Condition,
    Trial,
    prepare,
    score,
    score_dataset,
)
from napari_calcium.spikes.ground_truth import (
    Dataset,
    Recording,
    causal_kernel,
    gaussian_kernel,
    smooth,
    spikes_per_frame,
)
from napari_calcium.spikes.noise import noise_level

CONDITION = Condition()
"""30 Hz, noise level 2, Gaussian of 50 ms."""

Simulate = Callable[..., Recording]


def trial(seed: int, neuron: str = "a", n_frames: int = 900) -> Trial:
    """Spikes at random, none near the ends; the trace is not looked at."""
    spikes = np.zeros(n_frames, np.float32)
    middle = slice(60, n_frames - 60)
    spikes[middle] = np.random.default_rng(seed).random(n_frames - 120) < 0.03
    return Trial(neuron, np.zeros(n_frames, np.float32), spikes)


def smoothed(one: Trial, condition: Condition = CONDITION) -> NDArray[np.float64]:
    return smooth(one.spikes, condition.taps)


# ------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("kernel", ["gaussian", "causal"])
def test_what_is_perfect(kernel: Any) -> None:
    condition = Condition(kernel=kernel)
    trials = [trial(seed, f"{seed}") for seed in range(3)]
    scores = score(trials, [smoothed(one, condition) for one in trials], condition)
    np.testing.assert_allclose(scores.correlation, 1)
    np.testing.assert_allclose(scores.best_correlation, 1)
    np.testing.assert_allclose(scores.error, 0, atol=1e-9)
    np.testing.assert_allclose(scores.bias, 0, atol=1e-9)
    assert scores.lag == 0
    medians = scores.medians()
    assert (medians["n_neurons"], medians["lag"]) == (3, 0)
    assert medians["correlation"] == pytest.approx(1)


@pytest.mark.parametrize("frames", [-7, -1, 2, 15])
def test_a_known_lag_is_found(frames: int) -> None:
    """Positive where what is inferred comes too early; the trials are empty near their ends."""
    trials = [trial(seed, f"{seed}") for seed in range(3)]
    early = [np.roll(smoothed(one), -frames) for one in trials]
    scores = score(trials, early, CONDITION)
    assert scores.lag == pytest.approx(frames / 30)
    np.testing.assert_allclose(scores.best_correlation, 1, atol=1e-6)
    apart = np.corrcoef(np.roll(smoothed(trials[0]), -frames), smoothed(trials[0]))[0, 1]
    np.testing.assert_allclose(scores.correlation[0], apart)
    assert (scores.correlation < 0.95).all()
    np.testing.assert_allclose(scores.bias, 0, atol=1e-9)


def test_a_lag_that_is_too_long_is_not_found() -> None:
    trials = [trial(0)]
    scores = score(trials, [np.roll(smoothed(trials[0]), -20)], CONDITION)
    assert abs(scores.lag) <= 0.5
    assert scores.best_correlation[0] < 0.9


@pytest.mark.parametrize("factor", [0.0, 0.4, 3.0])
def test_too_many_and_too_few_spikes(factor: float) -> None:
    trials = [trial(seed, f"{seed}") for seed in range(3)]
    scores = score(trials, [factor * smoothed(one) for one in trials], CONDITION)
    np.testing.assert_allclose(scores.bias, factor - 1, atol=1e-9)
    np.testing.assert_allclose(scores.error, abs(factor - 1), atol=1e-9)
    np.testing.assert_allclose(scores.correlation, 1 if factor else 0)


def test_errors_on_both_sides_do_not_cancel() -> None:
    """One spike is missed and one made up, far apart: an error of 2 in 4 and no bias."""
    spikes = np.zeros(900, np.float32)
    spikes[[200, 400, 600, 700]] = 1
    other = spikes.copy()
    other[200], other[300] = 0, 1
    given = smooth(other, CONDITION.taps)
    scores = score([Trial("a", spikes, spikes)], [given], CONDITION)
    np.testing.assert_allclose(scores.error, 0.5, rtol=1e-3)  # kernels are cut off at 4 sd
    np.testing.assert_allclose(scores.bias, 0, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_unknown_frames_are_left_out(seed: int) -> None:
    """Whatever would have been there; what is known is perfect."""
    one = trial(seed)
    given = smoothed(one)
    given[:40] = given[-40:] = np.nan
    given[300:350] = np.nan
    scores = score([one], [given], CONDITION)
    np.testing.assert_allclose(scores.correlation, 1)
    np.testing.assert_allclose(scores.error, 0, atol=1e-9)
    assert scores.lag == 0
    unknown = score([one], [np.full(900, np.nan)], CONDITION)
    np.testing.assert_array_equal(unknown.correlation, [0])
    assert np.isnan(unknown.error).all()
    assert np.isnan(unknown.bias).all()
    both = score([one, trial(9, "b")], [np.full(900, np.nan), smoothed(trial(9))], CONDITION)
    medians = both.medians()
    assert (medians["n_neurons"], medians["correlation"]) == (2, pytest.approx(0.5))
    assert medians["error"] == pytest.approx(0, abs=1e-9)


def test_trials_of_a_neuron_count_together() -> None:
    """As one recording of the whole; the neurons in the order in which they come."""
    trials = [trial(0, "b"), trial(1, "a"), trial(2, "b")]
    random = np.random.default_rng(0)
    given = [smoothed(one) + random.normal(0, 0.05, 900) for one in trials]
    scores = score(trials, given, CONDITION)
    both = np.concatenate([given[0], given[2]])
    truth = np.concatenate([smoothed(trials[0]), smoothed(trials[2])])
    np.testing.assert_allclose(scores.correlation[0], np.corrcoef(both, truth)[0, 1])
    alone = score([trials[1]], [given[1]], CONDITION)
    np.testing.assert_allclose(scores.correlation[1], alone.correlation[0])
    np.testing.assert_allclose(scores.error[1], alone.error[0])
    n_spikes = [trials[i].spikes.sum() for i in (0, 2)]
    errors = [score([trials[i]], [given[i]], CONDITION).error[0] for i in (0, 2)]
    np.testing.assert_allclose(scores.error[0], np.average(errors, weights=n_spikes))


def test_neurons_without_spikes_are_left_out() -> None:
    silent = Trial("silent", np.zeros(900, np.float32), np.zeros(900, np.float32))
    trials = [silent, trial(0)]
    scores = score(trials, [np.ones(900), smoothed(trials[1])], CONDITION)
    assert len(scores.correlation) == len(scores.error) == 1
    none = score([silent], [np.ones(900)], CONDITION)
    assert len(none.correlation) == 0
    assert none.lag == 0
    medians = none.medians()
    assert medians["n_neurons"] == 0
    assert np.isnan(medians["correlation"])
    assert score([], [], CONDITION).medians()["n_neurons"] == 0


@pytest.mark.parametrize("frame_rate", [7.5, 15.0, 30.0])
@pytest.mark.parametrize("kernel", ["gaussian", "causal"])
@pytest.mark.parametrize("frame", [0, 100, 299])
def test_one_spike_is_enough(frame_rate: float, kernel: Any, frame: int) -> None:
    """Wherever it is: the sum of its kernel may be less than 1, by rounding or at an end."""
    condition = Condition(frame_rate=frame_rate, kernel=kernel)
    spikes = np.zeros(300, np.float32)
    spikes[frame] = 1
    one = Trial("a", spikes, spikes)
    scores = score([one], [2 * smoothed(one, condition)], condition)
    np.testing.assert_allclose(scores.correlation, [1])
    np.testing.assert_allclose(scores.bias, [1])


# ------------------------------------------------------------------------------- what is given


@pytest.mark.parametrize("frame_rate", [7.5, 15.0, 30.0])
@pytest.mark.parametrize("noise", [2.0, 5.0])
def test_trials_have_the_rate_and_noise(
    simulated: Simulate, frame_rate: float, noise: float
) -> None:
    """The level to 3 %: some hundred frames and more."""
    recordings = tuple(simulated(seed, 30.0, neuron=f"{seed}") for seed in range(3))
    trials = prepare(Dataset("A", recordings), Condition(frame_rate=frame_rate, noise=noise))
    assert [one.neuron for one in trials] == ["0", "1", "2"]
    for one, recording in zip(trials, recordings, strict=True):
        assert len(one.dff) == len(one.spikes) == round(60 * frame_rate)
        assert one.dff.dtype == one.spikes.dtype == np.float32
        np.testing.assert_allclose(noise_level(one.dff, frame_rate), noise, rtol=0.03)
        assert one.spikes.sum() == spikes_per_frame(recording).sum()


def test_what_is_too_slow_noisy_short_or_unknown_is_not_used(simulated: Simulate) -> None:
    broken = simulated(0, neuron="broken")
    broken.dff[3] = np.nan
    recordings = (
        simulated(0, 15.0, neuron="slow"),
        simulated(0, noise=0.3, neuron="noisy"),
        simulated(0, seconds=2, neuron="short"),
        broken,
        simulated(0, 29.0, neuron="good"),
    )
    dataset = Dataset("A", recordings)
    assert [one.neuron for one in prepare(dataset, CONDITION)] == ["good"]
    every = prepare(dataset, CONDITION, upsampled=True)
    assert [one.neuron for one in every] == ["slow", "good"]


def test_noise_is_that_of_the_seed(simulated: Simulate) -> None:
    """And of the recording: whether others are used does not change it."""
    recordings = tuple(simulated(seed, neuron=f"{seed}") for seed in range(2))
    noisy = simulated(0, noise=0.5, neuron="0")
    first, again, other = (prepare(Dataset("A", recordings), CONDITION, seed) for seed in (0, 0, 1))
    without = prepare(Dataset("A", (noisy, recordings[1])), CONDITION)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.dff, two.dff)
    assert (first[0].dff != other[0].dff).any()
    np.testing.assert_array_equal(without[0].dff, first[1].dff)


def test_a_method_is_given_what_is_prepared(simulated: Simulate) -> None:
    dataset = Dataset("A", tuple(simulated(seed, neuron=f"{seed}") for seed in range(2)))
    trials = prepare(dataset, CONDITION, seed=4)
    seen: list[NDArray[np.float32]] = []

    def method(dff: NDArray[np.float32], frame_rate: float) -> NDArray[np.float64]:
        assert frame_rate == 30.0
        seen.append(dff)
        return smoothed(trials[len(seen) - 1])

    scores = score_dataset(method, dataset, CONDITION, seed=4)
    np.testing.assert_allclose(scores.correlation, [1, 1])
    for dff, one in zip(seen, trials, strict=True):
        np.testing.assert_array_equal(dff, one.dff)


def test_smoothing_of_a_condition() -> None:
    assert CONDITION.seconds == 0.05
    slow = Condition(frame_rate=7.5)
    assert slow.seconds == pytest.approx(0.2)
    np.testing.assert_array_equal(slow.taps, gaussian_kernel(0.2, 7.5))
    causal = Condition(kernel="causal", smoothing=0.1)
    np.testing.assert_array_equal(causal.taps, causal_kernel(0.1, 30.0))
