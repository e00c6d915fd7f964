from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import ndimage

from napari_calcium.evaluation.crops import RADIUS, SIDE, footprint_crops

SHAPE = (137, 153)
MIDDLE = (SIDE - 1) / 2


def discs(radius: float, places: list[tuple[float, float]], shape: tuple[int, int] = SHAPE):
    """Discs with edges in part, as columns."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    images = [np.clip(radius + 0.5 - np.hypot(y - a, x - b), 0, 1) for a, b in places]
    return sp.csc_array(np.stack(images, -1).reshape(-1, len(places)).astype(np.float32))


def centroids(crops: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    mass = crops.sum(axis=(1, 2))
    return np.stack([(crops * y).sum(axis=(1, 2)), (crops * x).sum(axis=(1, 2))]) / mass


def areas(crops: np.ndarray) -> np.ndarray:
    return (crops / np.median(crops[:, 18:22, 18:22], axis=(1, 2), keepdims=True)).sum(axis=(1, 2))


@pytest.mark.parametrize("radius", [2.5, 3.5, 5.0, 7.0, 9.0, 14.0, 20.0])
def test_a_disc_of_the_cells_radius_becomes_one_of_the_same_size(radius: float) -> None:
    """The area to 0.1 % of that drawn, which is within 2 % of a disc's where pixels are coarse."""
    rng = np.random.default_rng(0)
    columns = discs(radius, [(60 + a, 70 + b) for a, b in rng.random((10, 2))])
    crops = footprint_crops(columns, SHAPE, radius)
    assert crops.shape == (10, SIDE, SIDE)
    assert crops.dtype == np.float32
    drawn = columns.sum(axis=0) * (RADIUS / radius) ** 2
    np.testing.assert_allclose(areas(crops), drawn, rtol=1e-3)
    np.testing.assert_allclose(areas(crops), np.pi * RADIUS**2, rtol=0.02)
    np.testing.assert_allclose(centroids(crops), MIDDLE, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(crops, axis=(1, 2)), 1, rtol=1e-6)


@pytest.mark.parametrize("radius", [2.0, 4.3, 6.1, 7.0, 9.7, 11.0])
def test_what_is_flat_stays_flat(radius: float) -> None:
    """No moire where the grids differ: in the middle all pixels are equal to single precision."""
    crops = footprint_crops(discs(2 * radius, [(60.3, 70.8)]), SHAPE, radius)
    inner = crops[0, 15:25, 15:25]
    np.testing.assert_allclose(inner, inner[5, 5], rtol=2e-6)


def test_it_is_the_disc_that_was_drawn_in_the_crop() -> None:
    """An oracle: the same disc drawn with 8 x 8 samples per pixel, to a tenth."""
    fine = (np.arange(SIDE * 8) + 0.5) / 8 - 0.5 - MIDDLE
    drawn = np.hypot(fine[:, None], fine[None]) < RADIUS
    drawn = drawn.reshape(SIDE, 8, SIDE, 8).mean(axis=(1, 3))
    crop = footprint_crops(discs(10.0, [(60.2, 70.9)]), SHAPE, 10.0)[0]
    assert np.corrcoef(crop.ravel(), drawn.ravel())[0, 1] > 0.99
    blurred = ndimage.gaussian_filter(drawn, 0.6)
    np.testing.assert_allclose(crop / crop.max(), blurred / blurred.max(), atol=0.1)


@pytest.mark.parametrize("place", [(0.0, 70.0), (136.0, 152.0), (60.0, 1.0)])
def test_at_a_border_the_crop_is_of_what_is_in_the_field(place: tuple[float, float]) -> None:
    part = footprint_crops(discs(7.0, [place]), SHAPE, 7.0)
    wide = discs(7.0, [(place[0] + 20, place[1] + 30)], (177, 213)).toarray().reshape(177, 213)
    wide[:20], wide[157:], wide[:, :30], wide[:, 183:] = 0, 0, 0, 0
    np.testing.assert_allclose(
        part, footprint_crops(sp.csc_array(wide.reshape(-1, 1)), (177, 213), 7.0), atol=1e-6
    )


def test_turned_and_mirrored_footprints_give_turned_and_mirrored_crops() -> None:
    """The crop's middle is exactly between its pixels, or training by turns would be a lie."""
    rng = np.random.default_rng(1)
    image = np.zeros((37, 53), np.float32)
    image[10:22, 20:33] = rng.random((12, 13))
    crop = footprint_crops(sp.csc_array(image.reshape(-1, 1)), (37, 53), 5.3)[0]
    for turned, expected in (
        (image[::-1], crop[::-1]),
        (image[:, ::-1], crop[:, ::-1]),
        (np.rot90(image), np.rot90(crop)),
    ):
        column = sp.csc_array(np.ascontiguousarray(turned).reshape(-1, 1))
        np.testing.assert_allclose(
            footprint_crops(column, turned.shape, 5.3)[0], expected, atol=1e-6
        )


def test_what_is_too_large_for_the_crop_is_cut() -> None:
    line = np.zeros((37, 153), np.float32)
    line[18, 10:140] = 1
    crop = footprint_crops(sp.csc_array(line.reshape(-1, 1)), (37, 153), 7.0)[0]
    assert (crop[18:22] > 0).any(axis=0).all()
    assert np.linalg.norm(crop) == pytest.approx(1)


def test_empty_and_useless_weights_are_left_out() -> None:
    columns = discs(5.0, [(60, 70)] * 4).toarray()
    columns[:, 1] = 0
    columns[0, 2] = np.nan
    columns[1, 2] = np.inf
    columns[2, 2] = -3
    columns[:, 3] *= 1e-20
    crops = footprint_crops(sp.csc_array(columns), SHAPE, 5.0)
    assert not crops[1].any()
    np.testing.assert_array_equal(crops[2], crops[0])
    np.testing.assert_allclose(crops[3], crops[0], atol=1e-6)
    none = footprint_crops(sp.csc_array((37 * 53, 0), dtype=np.float32), (37, 53), 5.0)
    assert none.shape == (0, SIDE, SIDE)


def test_what_does_not_fit_is_refused() -> None:
    columns = sp.csc_array((37 * 53, 1), dtype=np.float32)
    with pytest.raises(ValueError, match="1961 pixels"):
        footprint_crops(columns, (37, 52), 5.0)
    for radius in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="above 0"):
            footprint_crops(columns, (37, 53), radius)


def test_a_thousand_cells_take_a_fraction_of_a_second() -> None:
    """0.02 s; 0.3 s leaves room for a busy machine."""
    one = discs(7.0, [(60.2, 70.9)])
    many = sp.csc_array(sp.hstack([one] * 1000, format="csc"))
    footprint_crops(one, SHAPE, 5.0)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        footprint_crops(many, SHAPE, 5.0)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.3
