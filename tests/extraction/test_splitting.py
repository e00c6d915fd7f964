from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray

from napari_calcium.extraction import splitting
from napari_calcium.extraction.splitting import told_apart

FIELD = (11, 17)
SEEDS = [0, 1, 2]


def two_cells(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The light (pixel, bin) of two discs that overlap, the first the stronger, and the discs.

    Pixels have noise of 1 to 3; half of a disc's are its own.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: FIELD[0], : FIELD[1]]
    discs = [np.maximum(1 - np.hypot(y - 5, x - column) / 5, 0).ravel() for column in (5, 10)]
    images = np.stack(discs, axis=1)
    traces = rng.exponential(size=(2, 800)) * (rng.random((2, 800)) < 0.1) * [[120], [60]]
    noise = rng.uniform(1, 3, (images.shape[0], 1)) * rng.normal(size=(images.shape[0], 800))
    return np.float32(images @ traces + noise), images / np.linalg.norm(images, axis=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_cells_that_overlap_are_told_apart_the_clearer_first(seed: int) -> None:
    """Cosines with the truth of 0.995 and more, measured on 40 seeds; of the two discs, 0.23."""
    light, images = two_cells(seed)
    whole = sp.csc_array(np.repeat(images.sum(axis=1, keepdims=True) > 0, 2, axis=1), dtype=float)
    found = told_apart(light, whole, alike=True).toarray()
    assert (found >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), 1, rtol=1e-5)
    assert not found[images.sum(axis=1) == 0].any()
    cosines = images.T @ found
    assert np.diagonal(cosines).min() > 0.98


@pytest.mark.parametrize("seed", SEEDS)
def test_parts_come_in_the_order_of_their_masks(seed: int) -> None:
    light, images = two_cells(seed)
    left = (images.sum(axis=1) > 0) & (np.arange(images.shape[0]) % FIELD[1] < 8)
    right = (images.sum(axis=1) > 0) & ~left
    start = sp.csc_array(np.stack([right, left], axis=1), dtype=np.float32)
    found = told_apart(light, start, alike=False).toarray()
    assert np.diagonal(images[:, ::-1].T @ found).min() > 0.95
    assert found[left, 0].any()  # each on the pixels of the other too, where they overlap


def test_a_mask_may_hold_pixels_of_the_other_part() -> None:
    """80 pixels of one part, 20 of another, and 1 of the other in the first one's mask."""
    scores = np.repeat([[30.0, 0.0], [0.0, 30.0]], [80, 21], axis=0)
    masks = np.arange(101)[:, None] < 81
    found = splitting._corners(scores, np.concatenate([masks, ~masks], axis=1))
    assert found[0, 0] > 0
    assert found[1, 1] > 0
    np.testing.assert_array_equal(found == 0, [[False, True], [True, False]])
