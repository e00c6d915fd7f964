from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray

from napari_calcium.footprints import (
    areas,
    at_border,
    cosines,
    cropped,
    dilated_support,
    elliptic_support,
    masks,
    outlines,
    placed,
    spreads,
    trimmed_footprints,
    unit,
)

SHAPE = (37, 53)


def matrix(*images: NDArray[np.floating]) -> sp.csc_array:
    return sp.csc_array(np.stack([i.ravel() for i in images], axis=1).astype(np.float32))


def disc(y: float, x: float, radius: float) -> NDArray[np.float32]:
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).astype(np.float32)


@pytest.fixture
def footprints() -> sp.csc_array:
    """A cell, one at the corner, one that overlaps the first, and one without pixels."""
    return matrix(
        3 * disc(18, 30, 5), disc(0, 52, 4), 2 * disc(20, 34, 4), np.zeros(SHAPE, np.float32)
    )


def images(footprints: sp.csc_array) -> NDArray[np.float32]:
    return footprints.toarray().T.reshape(-1, *SHAPE)


def test_unit_footprints_have_norm_1(footprints: sp.csc_array) -> None:
    norms = np.linalg.norm(unit(footprints).toarray(), axis=0)
    np.testing.assert_allclose(norms, [1, 1, 1, 0], rtol=1e-6)


def test_cosines_are_those_of_the_images(footprints: sp.csc_array) -> None:
    flat = footprints.toarray().T.astype(float)
    norms = np.maximum(np.linalg.norm(flat, axis=1), 1e-12)
    expected = (flat @ flat.T) / norms[:, None] / norms
    np.testing.assert_allclose(cosines(footprints).toarray(), expected, atol=1e-6)


def test_areas_and_masks_cut_at_a_part_of_the_maximum(footprints: sp.csc_array) -> None:
    dim = images(footprints) * np.where(np.arange(53) < 30, 0.15, 1).astype(np.float32)
    expected = [image > 0.2 * image.max() for image in dim]
    np.testing.assert_array_equal(images(masks(matrix(*dim))), expected)
    np.testing.assert_array_equal(areas(matrix(*dim)), np.sum(expected, axis=(1, 2)))
    assert areas(matrix(*dim))[3] == 0


def test_no_footprints_at_all() -> None:
    none = sp.csc_array((37 * 53, 0), dtype=np.float32)
    assert areas(none).shape == (0,)
    assert spreads(none, SHAPE).shape == (0,)
    assert cosines(none).shape == (0, 0)
    assert unit(none).shape == none.shape
    assert dilated_support(none, SHAPE, 2).shape == none.shape
    assert trimmed_footprints(none, SHAPE, 0.1).shape == none.shape


def test_the_spread_is_1_for_a_disc_and_more_for_a_line() -> None:
    line = np.zeros(SHAPE)
    line[7, 11:41] = 1
    found = spreads(matrix(disc(18, 30, 8), line), SHAPE)
    mean_square = np.mean((np.arange(30) - 14.5) ** 2)
    np.testing.assert_allclose(found, [1, mean_square * 2 * np.pi / 30], rtol=0.02)
    assert spreads(matrix(np.zeros(SHAPE)), SHAPE)[0] == 0


def test_support_reaches_a_radius_further_but_not_over_the_border() -> None:
    points = np.zeros((2, *SHAPE), np.float32)
    points[0, 18, 30] = 0.5
    points[1, 36, 0] = 2
    support = images(dilated_support(matrix(*points), SHAPE, 3))
    np.testing.assert_array_equal(support[0], disc(18, 30, 3))
    np.testing.assert_array_equal(support[1], disc(36, 0, 3))


def test_support_of_nothing_is_nothing(footprints: sp.csc_array) -> None:
    assert dilated_support(footprints, SHAPE, 3)[:, [3]].nnz == 0


def test_the_strongest_connected_part_is_kept() -> None:
    small_but_bright, large = 3 * disc(8, 10, 3), disc(25, 40, 6)
    (kept,) = images(trimmed_footprints(matrix(small_but_bright + large), SHAPE, 0.1))
    assert kept[25, 40] == 1  # 113 px of 1 outweigh 29 px of 3
    assert kept[8, 10] == 0


def test_single_bright_pixels_are_no_part() -> None:
    speckled = disc(18, 30, 5)
    speckled[2, 2] = speckled[30, 50] = 5
    (kept,) = images(trimmed_footprints(matrix(speckled), SHAPE, 0.1))
    assert kept[2, 2] == kept[30, 50] == 0
    assert np.count_nonzero(kept) > 0.9 * disc(18, 30, 5).sum()


def test_footprints_smaller_than_the_filter_survive_whole() -> None:
    point = np.zeros(SHAPE, np.float32)
    point[36, 52] = 2
    found = images(trimmed_footprints(matrix(point, np.zeros(SHAPE)), SHAPE, 0.1))
    np.testing.assert_array_equal(found, [point, np.zeros(SHAPE)])


@pytest.mark.parametrize(
    ("index", "margin", "box"),
    [
        (0, 0, (slice(13, 24), slice(25, 36))),
        (0, 2, (slice(11, 26), slice(23, 38))),
        (1, 3, (slice(0, 8), slice(45, 53))),
        (3, 3, (slice(0, 0), slice(0, 0))),
    ],
)
def test_the_box_around_a_footprint(
    footprints: sp.csc_array, index: int, margin: int, box: tuple[slice, slice]
) -> None:
    found, image = cropped(footprints, SHAPE, index, margin)
    assert found == box
    np.testing.assert_array_equal(image, images(footprints)[index][box])


def test_placed_undoes_cropped(footprints: sp.csc_array) -> None:
    pieces = [cropped(footprints, SHAPE, i, i)[::-1] for i in range(4)]
    again = placed(pieces, SHAPE)
    np.testing.assert_array_equal(again.toarray(), footprints.toarray())
    assert placed([], SHAPE).shape == (37 * 53, 0)


def test_outlines_run_around_the_footprint() -> None:
    (line,) = outlines(disc(18, 30, 6), level=0.5)
    np.testing.assert_array_equal(line[0], line[-1])
    distance = np.hypot(line[:, 0] - 18, line[:, 1] - 30)
    assert distance.min() > 5.4
    assert distance.max() < 6.6


def test_outlines_close_at_the_border() -> None:
    (line,) = outlines(disc(0, 52, 4))
    np.testing.assert_array_equal(line[0], line[-1])
    assert line.min() >= -1
    assert (line.max(axis=0) <= SHAPE).all()


def test_outlines_longest_first_and_none_of_nothing() -> None:
    first, second = outlines(disc(8, 10, 3) + disc(25, 40, 6))
    assert len(first) > len(second)
    assert outlines(np.zeros(SHAPE, np.float32)) == []


@pytest.mark.parametrize("radius", [1, 4])
def test_elliptic_support_of_a_disc_is_a_larger_disc(radius: int) -> None:
    """To a pixel of its edge; also at the border, where it ends."""
    (grown,) = images(elliptic_support(matrix(disc(18, 30, 7)), SHAPE, radius))
    assert not (grown > disc(18, 30, 7 + radius + 1)).any()
    assert not (disc(18, 30, 7 + radius - 1) > grown).any()
    (cut,) = images(elliptic_support(matrix(disc(0, 52, 7)), SHAPE, radius))
    assert cut[0, 52] == 1


def test_elliptic_support_follows_the_direction() -> None:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] - np.array([18, 26])[:, None, None]
    slanted = ((y + x) ** 2 / 400 + (y - x) ** 2 / 40 < 1).astype(np.float32)
    (grown,) = images(elliptic_support(matrix(slanted), SHAPE, 2))
    assert not (slanted > grown).any()
    assert grown.sum() < 2.2 * slanted.sum()
    assert elliptic_support(matrix(np.zeros(SHAPE)), SHAPE, 2).nnz == 0
    point = np.zeros(SHAPE)
    point[5, 7] = 1
    assert images(elliptic_support(matrix(point), SHAPE, 2))[0][5, 7] == 1


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 1.0])
def test_the_largest_weights_have_the_energy(energy: float) -> None:
    """No fewer would do; a bump falls off in all directions, so what is kept is in one piece."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    bump = np.exp(-((y - 18) ** 2 / 30 + (x - 30) ** 2 / 20))
    (kept,) = images(trimmed_footprints(matrix(bump), SHAPE, energy=energy))
    total = (bump.astype(np.float32) ** 2).sum(dtype=float)
    assert (kept**2).sum(dtype=float) >= (energy - 1e-6) * total
    fewer = np.sort(kept[kept > 0])[8:]  # some pixels are alike
    assert (fewer**2).sum(dtype=float) < energy * total


def test_parts_stay_where_footprints_need_not_be_connected() -> None:
    """Lines of one pixel too, which the median filter would remove."""
    line = np.zeros(SHAPE, np.float32)
    line[10, 5:45] = 1
    line[5:30, 48] = 0.5
    (kept,) = images(trimmed_footprints(matrix(line), SHAPE, 0.1, connected=False))
    np.testing.assert_array_equal(kept, line)
    (kept,) = images(trimmed_footprints(matrix(line), SHAPE, 0.6, connected=False))
    assert not kept[:, 48].any()


def test_an_edge_at_the_maximum_keeps_the_brightest() -> None:
    found = images(trimmed_footprints(matrix(disc(18, 30, 5), np.zeros(SHAPE)), SHAPE, 1.0))
    assert found[0][18, 30] == 1
    assert not found[1].any()


@pytest.mark.parametrize(
    ("y", "x", "touches"),
    [(18, 26, False), (0, 26, True), (36, 26, True), (18, 0, True), (18, 52, True), (1, 51, False)],
)
def test_what_reaches_the_border_is_told(y: int, x: int, touches: bool) -> None:
    """A bright pixel there, and a faint one beyond, below a fifth, which does not count."""
    image = np.zeros((37, 53))
    image[y, x] = 1
    image[0, 10] += 0.1
    empty = np.zeros(37 * 53)
    both = sp.csc_array(np.stack([image.ravel(), empty], axis=1))
    assert at_border(both, (37, 53)).tolist() == [touches, False]
