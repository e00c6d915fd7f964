from __future__ import annotations

import numpy as np
import pytest

from napari_calcium.spikes.noise import add_noise, noise_level, noise_sd

RATE = 30.0


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rate", [7.5, 30.0, 160.0])
@pytest.mark.parametrize("sd", [0.02, 0.4])
def test_level_of_white_noise(seed: int, rate: float, sd: float) -> None:
    """100 * 0.954 sd over the root of the rate; the median of 40,000 steps is known to 1 %."""
    white = np.random.default_rng(seed).normal(0, sd, 40_000)
    np.testing.assert_allclose(noise_level(white, rate), 95.387 * sd / np.sqrt(rate), rtol=0.02)
    np.testing.assert_allclose(noise_sd(white), sd, rtol=0.02)


def test_level_does_not_see_offset_slow_change_and_few_transients() -> None:
    white = np.random.default_rng(0).normal(0, 0.1, 20_000)
    dff = white + 3 + np.sin(np.arange(20_000) / 3000)
    dff[::200] += 5
    np.testing.assert_allclose(noise_level(dff, RATE), noise_level(white, RATE), rtol=0.02)


def test_level_of_each_cell_is_that_of_numpy() -> None:
    dff = np.random.default_rng(1).normal(0, 1, (3, 4, 101)).astype(np.float32)
    dff[0, 0, 10:60] = dff[1, 2, ::5] = np.nan
    dff[2, 1] = np.nan
    dff[2, 2, 1::2] = np.nan
    found = noise_level(dff, RATE)
    assert found.shape == (3, 4)
    assert np.isnan(found[2, 1])
    assert np.isnan(found[2, 2])
    steps = np.abs(np.diff(dff.astype(np.float64)))
    for place in np.ndindex(3, 4):
        if place not in [(2, 1), (2, 2)]:
            expected = 100 * np.nanmedian(steps[place]) / np.sqrt(RATE)
            np.testing.assert_allclose(found[place], expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(0,), (1,), (4, 1), (4, 0)])
def test_level_of_next_to_nothing_is_unknown(shape: tuple[int, ...]) -> None:
    found = np.asarray(noise_level(np.zeros(shape), RATE))
    assert found.shape == shape[:-1]
    assert np.isnan(found).all()


def trace(seed: int, n_frames: int) -> np.ndarray:
    """Transients of 2 dF/F in noise of level 0.9."""
    random = np.random.default_rng(seed)
    dff = random.normal(0, 0.05, n_frames)
    for start in range(50, n_frames, 150):
        dff[start:] += 2 * np.exp(-np.arange(n_frames - start) / 20)
    return dff


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("level", [1.0, 2.0, 8.0, 20.0])
@pytest.mark.parametrize("n_frames", [600, 9000])
def test_added_noise_reaches_the_level(seed: int, level: float, n_frames: int) -> None:
    """To 1 %, as promised."""
    noisy = add_noise(trace(seed, n_frames), RATE, level, np.random.default_rng(seed + 9))
    assert noisy is not None
    assert abs(float(noise_level(noisy, RATE)) / level - 1) < 0.01


def test_added_noise_is_that_of_photons() -> None:
    """Where a trace is 4 times as bright, the noise is twice as large; 3 % is the sampling."""
    dff = np.zeros(20_000)
    dff[10_000:] = 3.0
    noisy = add_noise(dff, RATE, 4.0, np.random.default_rng(0))
    assert noisy is not None
    dim, bright = np.std((noisy - dff).reshape(2, -1), axis=1)
    np.testing.assert_allclose(bright / dim, 2.0, rtol=0.03)


def test_added_noise_has_no_memory_and_no_mean() -> None:
    noisy = add_noise(np.zeros(20_000), RATE, 4.0, np.random.default_rng(3))
    assert noisy is not None
    sd = np.std(noisy)
    assert abs(noisy.mean()) < 3 * sd / np.sqrt(20_000)
    assert abs(np.corrcoef(noisy[1:], noisy[:-1])[0, 1]) < 0.03


def test_what_is_noisier_already_is_left_out() -> None:
    dff = trace(0, 3000)
    own = float(noise_level(dff, RATE))
    assert add_noise(dff, RATE, 0.99 * own, np.random.default_rng(0)) is None
    assert add_noise(dff, RATE, 1.01 * own, np.random.default_rng(0)) is not None
    assert add_noise(np.full(90, np.nan), RATE, 8.0, np.random.default_rng(0)) is None


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("level", [2.0, 8.0])
def test_what_cannot_become_so_noisy_is_left_out(seed: int, level: float) -> None:
    """Nearly half of the frames black, which have next to no photon noise: most steps are small."""
    dff = np.full(3000, 50.0)
    dff[:1440] = -0.999
    assert add_noise(dff, RATE, level, np.random.default_rng(seed)) is None


def test_the_generator_decides_and_unknown_frames_stay() -> None:
    dff = trace(1, 3000)
    dff[100:150] = np.nan
    first, again = (add_noise(dff, RATE, 3.0, np.random.default_rng(5)) for _ in range(2))
    other = add_noise(dff, RATE, 3.0, np.random.default_rng(6))
    assert first is not None
    assert other is not None
    np.testing.assert_array_equal(first, again)
    assert np.nanmax(np.abs(first - other)) > 0.1
    np.testing.assert_array_equal(np.isnan(first), np.isnan(dff))
    assert abs(float(noise_level(first, RATE)) / 3.0 - 1) < 0.01
