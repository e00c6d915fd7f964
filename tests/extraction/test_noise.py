from __future__ import annotations

import numpy as np
import pytest

from napari_calcium.extraction.noise import pixel_noise


def test_white_noise_is_measured() -> None:
    """Second differences of 5000 frames give the sd to about 1.4 %: 5 % is over 3 sigma."""
    sd = np.linspace(1, 30, 35).reshape(5, 7)
    frames = np.random.default_rng(0).normal(500, sd, (5000, 5, 7)).astype(np.float32)
    np.testing.assert_allclose(pixel_noise(frames), sd, rtol=0.05)


def test_calcium_hardly_shows() -> None:
    """A transient 20 times the noise, decaying in 15 frames, adds less than a tenth."""
    frames = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    quiet = pixel_noise(frames)
    for start in range(100, 3000, 300):
        frames[start:] += 20 * np.exp(-np.arange(3000 - start) / 15)[:, None].astype(np.float32)
    assert (pixel_noise(frames) < 1.5 * quiet).all()


def test_it_is_the_formula() -> None:
    frames = np.random.default_rng(1).normal(size=(50, 37, 53)).astype(np.float32)
    changes = frames[1:-1] - (frames[:-2] + frames[2:]) / 2
    expected = np.sqrt((changes.astype(float) ** 2).mean(axis=0) / 1.5)
    np.testing.assert_allclose(pixel_noise(frames), expected, rtol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_frames_have_none(n: int) -> None:
    np.testing.assert_array_equal(pixel_noise(np.ones((n, 3, 4), np.float32)), np.zeros((3, 4)))


def test_a_constant_has_none_and_nan_gives_nan() -> None:
    frames = np.full((20, 3), 7e4, np.float32)
    frames[5, 1] = np.nan
    np.testing.assert_array_equal(pixel_noise(frames), [0, np.nan, 0])


def test_views_that_are_not_contiguous() -> None:
    frames = np.random.default_rng(2).normal(size=(6, 4, 40)).astype(np.float32)
    view = frames.transpose(2, 1, 0)[::2]
    np.testing.assert_array_equal(pixel_noise(view), pixel_noise(view.copy()))
