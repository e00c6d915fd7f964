from __future__ import annotations

import itertools

import numpy as np
import pytest

from napari_calcium.spikes.discrete import WARNING, discrete_spikes
from napari_calcium.spikes.ground_truth import causal_kernel, gaussian_kernel, smooth

RATE = 30.0
KERNELS = {
    "gaussian": gaussian_kernel(0.05, RATE),
    "causal": causal_kernel(0.05, RATE),
    "narrow": np.ones(1),
}


def counted(times: np.ndarray, n_frames: int) -> np.ndarray:
    return np.bincount(np.rint(times * RATE).astype(int), minlength=n_frames)


def error(rate: np.ndarray, counts: np.ndarray, kernel: np.ndarray) -> float:
    """Squared error where the rate is known, spikes^2, as `np.convolve` has it."""
    left = np.maximum(rate, 0) / RATE - smooth(counts.astype(float), kernel)
    return float(np.nansum(left**2))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_spikes_apart_are_found(name: str, seed: int) -> None:
    """Exactly, from their smoothed rate, several in a frame too."""
    random = np.random.default_rng(seed)
    spikes = np.zeros(3000)
    spikes[20:-20:40] = random.integers(0, 4, len(spikes[20:-20:40]))
    found = discrete_spikes(RATE * smooth(spikes, KERNELS[name]), RATE, KERNELS[name])
    np.testing.assert_array_equal(counted(found, 3000), spikes)
    assert found.dtype == np.float64
    assert (np.diff(found) >= 0).all()


@pytest.mark.parametrize("name", ["gaussian", "causal"])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_single_makes_it_better(name: str, seed: int) -> None:
    """Every spike added, taken away or moved anywhere makes the squared error larger or equal."""
    random, kernel = np.random.default_rng(seed), KERNELS[name]
    rate = RATE * smooth(random.poisson(0.15, 120), kernel) + random.normal(0, 0.5, 120)
    rate[40:45] = np.nan
    counts = counted(discrete_spikes(rate, RATE, kernel), 120)
    assert counts.sum() > 5
    least = error(rate, counts, kernel) - 1e-8
    middle = [frame for frame in range(16, 104) if not 20 < frame < 65]  # whole kernels are known
    for frame in middle:
        more = counts.copy()
        more[frame] += 1
        assert error(rate, more, kernel) >= least
    for frame in np.flatnonzero(counts):
        fewer = counts.copy()
        fewer[frame] -= 1
        assert error(rate, fewer, kernel) >= least
        for other in middle:
            moved = fewer.copy()
            moved[other] += 1
            assert error(rate, moved, kernel) >= least


@pytest.mark.parametrize("seed", range(4))
def test_near_the_best_of_all(seed: int) -> None:
    """Against every placement of up to 4 spikes in 8 frames; rounding is all that differs in 3."""
    random, kernel = np.random.default_rng(seed), KERNELS["gaussian"]
    spikes = np.zeros(40)
    spikes[random.integers(16, 24, 3)] += 1
    rate = RATE * smooth(spikes, kernel)
    best = np.inf
    for n in range(5):
        for frames in itertools.combinations_with_replacement(range(16, 24), n):
            trial = np.bincount(np.array(frames, int), minlength=40)
            best = min(best, error(rate, trial, kernel))
    found = error(rate, counted(discrete_spikes(rate, RATE, kernel), 40), kernel)
    nothing = error(rate, np.zeros(40), kernel)
    assert found <= best + 0.01 * nothing


@pytest.mark.parametrize("seed", [0, 1])
def test_number_is_near_the_integral(seed: int) -> None:
    """In noise of 1 Hz, within 10 % of the spikes that there were."""
    random, kernel = np.random.default_rng(seed), KERNELS["gaussian"]
    spikes = random.poisson(1 / RATE, 6000)
    rate = RATE * smooth(spikes, kernel) + random.normal(0, 1.0, 6000)
    assert abs(len(discrete_spikes(rate, RATE, kernel)) - spikes.sum()) < 0.1 * spikes.sum()


def test_the_seed_decides_and_nothing_else() -> None:
    random, kernel = np.random.default_rng(5), KERNELS["gaussian"]
    rate = RATE * smooth(random.poisson(0.2, 900), kernel) + random.normal(0, 0.5, 900)
    first = discrete_spikes(rate, RATE, kernel, seed=3)
    discrete_spikes(rate[::-1], RATE, kernel, seed=8)
    np.testing.assert_array_equal(discrete_spikes(rate, RATE, kernel, seed=3), first)
    others = [discrete_spikes(rate, RATE, kernel, seed=seed) for seed in range(5)]
    assert any(len(other) != len(first) or (other != first).any() for other in others)


def test_gaps_get_no_spikes() -> None:
    """Nor frames whose spike would be all but unseen; what is beyond the gap is found."""
    kernel = KERNELS["gaussian"]
    spikes = np.zeros(300)
    spikes[[50, 90, 250]] = 1
    rate = RATE * smooth(spikes, kernel)
    rate[:30] = rate[85:200] = rate[290:] = np.nan
    times = discrete_spikes(rate, RATE, kernel)
    np.testing.assert_allclose(times, np.array([50, 250]) / RATE)
    noisy = rate + np.random.default_rng(0).normal(0, 2.0, 300)
    frames = np.rint(discrete_spikes(noisy, RATE, kernel) * RATE).astype(int)
    assert len(frames) >= 2
    assert np.isfinite(rate[frames]).all()


@pytest.mark.parametrize("rate", [np.zeros(100), np.full(100, np.nan), np.zeros(0), -np.ones(100)])
def test_nothing_gives_nothing(rate: np.ndarray) -> None:
    assert discrete_spikes(rate, RATE, KERNELS["gaussian"]).shape == (0,)


def test_a_short_recording_and_a_wide_kernel() -> None:
    kernel = gaussian_kernel(1.0, RATE)
    assert discrete_spikes(np.full(5, 3.0), RATE, kernel).ndim == 1


def test_misuse() -> None:
    with pytest.raises(ValueError, match="time"):
        discrete_spikes(np.zeros((2, 9)), RATE, np.ones(1))
    with pytest.raises(ValueError, match="odd"):
        discrete_spikes(np.zeros(9), RATE, np.ones(2))


def test_the_warning_is_a_sentence() -> None:
    assert WARNING.endswith(".")
    assert "guess" in WARNING
