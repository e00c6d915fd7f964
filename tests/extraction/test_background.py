from __future__ import annotations

import numpy as np
import pytest

from napari_calcium.extraction.background import neuropil_footprints


@pytest.mark.parametrize(
    ("spacing", "n"), [(10, 5 * 6), (18, 3 * 4), (30, 2 * 3), (40, 1 * 2), (100, 1)]
)
def test_the_parts_make_the_image(spacing: float, n: int) -> None:
    image = np.random.default_rng(0).uniform(0.5, 2, (37, 53)).astype(np.float32)
    footprints = neuropil_footprints(image, spacing)
    assert footprints.shape == (37 * 53, n)
    np.testing.assert_allclose(footprints.sum(axis=1), image.ravel(), rtol=1e-6)
    assert (footprints.data > 0).all()


def test_each_part_is_a_window_around_its_node() -> None:
    """Nodes of a 3 x 4 grid in the order of rows; 1 at the node, 0 at the next ones."""
    footprints = neuropil_footprints(np.ones((37, 55), np.float32), 18)
    parts = footprints.toarray().T.reshape(3, 4, 37, 55)
    for row, y in enumerate((0, 18, 36)):
        for column, x in enumerate((0, 18, 36, 54)):
            part = parts[row, column]
            assert part[y, x] == 1
            rows, columns = np.mgrid[:37, :55]
            expected = np.maximum(0, 1 - np.abs(rows - y) / 18) * np.maximum(
                0, 1 - np.abs(columns - x) / 18
            )
            np.testing.assert_allclose(part, expected, atol=1e-6)


def test_dark_pixels_are_in_no_part() -> None:
    image = np.ones((20, 30), np.float32)
    image[3, 4] = 0
    assert neuropil_footprints(image, 10)[[3 * 30 + 4]].nnz == 0
