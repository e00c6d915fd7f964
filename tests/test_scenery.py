from __future__ import annotations

import numpy as np
import pytest

from napari_calcium.scenery import blob, columns, dendrite, shadow, smooth_noise, soma, vessel

FIELD = (37, 53)
PLACE = np.array([20.0, 31.0])


def centre(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.average(np.divmod(pixels, FIELD[1]), axis=1, weights=weights)


@pytest.mark.parametrize("seed", range(5))
def test_a_soma_has_its_place_and_its_size(seed: int) -> None:
    """An outline of up to half a radius of irregularity: centre to 1 px, area to a half."""
    pixels, weights = soma(PLACE, 5.0, 0.0, 0.0, FIELD, np.random.default_rng(seed))
    np.testing.assert_allclose(centre(pixels, weights), PLACE, atol=1.0)
    assert 0.5 < (weights > 0.5).sum() / (np.pi * 25) < 1.5


def test_a_nucleus_is_dark() -> None:
    filled, doughnut = (
        soma(PLACE, 6.0, 0.0, depth, FIELD, np.random.default_rng(1))[1] for depth in (0.0, 1.0)
    )
    assert doughnut.sum() < 0.9 * filled.sum()
    assert doughnut.max() > 0.9 * filled.max()


def test_sizes_differ_as_far_as_is_said() -> None:
    areas = [
        (soma(PLACE, 5.0, spread, 0.0, FIELD, np.random.default_rng(seed))[1] > 0.5).sum()
        for spread in (0.0, 0.4)
        for seed in range(20)
    ]
    assert np.std(areas[20:]) > 2 * np.std(areas[:20])


def test_a_blob_is_a_gaussian() -> None:
    pixels, weights = blob(PLACE, 3.0, FIELD)
    place = np.flatnonzero(pixels == 20 * FIELD[1] + 34)
    assert weights[place] == pytest.approx(np.exp(-0.5))
    np.testing.assert_allclose(centre(pixels, weights), PLACE, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_dendrite_is_long_and_thin(seed: int) -> None:
    pixels, weights = dendrite(PLACE, 5.0, FIELD, np.random.default_rng(seed))
    y, x = np.divmod(pixels[weights > 0.3], FIELD[1])
    extent = np.hypot(np.ptp(y), np.ptp(x))
    assert extent > 8
    assert (weights > 0.3).sum() < 0.4 * extent**2


def test_a_vessel_is_dark_in_its_middle_and_wider_when_it_is_wide() -> None:
    beside = vessel(np.random.default_rng(0), FIELD)
    assert beside.shape == FIELD
    assert (np.diff(beside, axis=1) > 0).all()  # it runs from top to bottom
    dark = shadow(beside)
    assert dark.min() == pytest.approx(0.5, abs=0.01)
    assert (shadow(beside, 1.2) <= dark + 1e-6).all()


def test_noise_has_unit_variance_and_is_smooth() -> None:
    noise = smooth_noise(np.random.default_rng(0), FIELD, 3.0)
    assert noise.std() == pytest.approx(1.0, abs=1e-5)
    assert np.diff(noise, axis=0).std() < 0.5


def test_columns_are_shaded_and_without_faint_ends() -> None:
    shading = np.full(FIELD, 2.0, np.float32)
    pixels, weights = np.array([3, 4, 5]), np.float32([0.5, 0.02, 1.0])
    matrix = columns([(pixels, weights), (pixels[:0], weights[:0])], shading)
    assert matrix.shape == (37 * 53, 2)
    assert matrix.indices.tolist() == [3, 5]
    assert matrix.data.tolist() == [1.0, 2.0]
