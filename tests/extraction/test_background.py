from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from napari_calcium.extraction.background import (
    low_rank_background,
    neuropil_footprints,
    shared_background,
)


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


def images(n: int, seed: int) -> NDArray[np.float32]:
    """Smooth images that overlap, not negative, (n, 37, 53)."""
    noise = np.random.default_rng(seed).normal(size=(n, 37, 53))
    smooth = ndimage.gaussian_filter(noise, 8, axes=(1, 2))
    return np.maximum(smooth / smooth.std(axis=(1, 2), keepdims=True), 0).astype(np.float32)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_low_rank_background_is_explained(n: int, seed: int) -> None:
    """What is left over is the noise: less than 5 % more than what n components cannot fit."""
    rng = np.random.default_rng(seed)
    traces = np.cumsum(rng.normal(size=(n, 200)), axis=1)
    clean = np.einsum("nt,nyx->tyx", traces - traces.mean(axis=1, keepdims=True), images(n, seed))
    frames = (clean + rng.normal(size=clean.shape)).astype(np.float32)
    frames -= frames.mean(axis=0)
    found, activity = low_rank_background(frames, n)
    assert found.shape == (n, 37, 53)
    assert activity.shape == (n, 200)
    assert found.min() >= 0
    np.testing.assert_allclose(np.linalg.norm(found, axis=(1, 2)), 1, rtol=1e-5)
    left = frames - np.einsum("nt,nyx->tyx", activity, found)
    assert left.std() < 1.05


def test_no_more_components_than_there_are() -> None:
    assert low_rank_background(np.zeros((5, 4, 3), np.float32), 2)[0].shape == (0, 4, 3)
    assert low_rank_background(np.zeros((0, 4, 3), np.float32), 2)[0].shape == (0, 4, 3)
    one = np.arange(5, dtype=np.float32)[:, None, None] * np.ones((1, 4, 3), np.float32)
    assert low_rank_background(one, 3)[0].shape == (1, 4, 3)


def test_patches_share_what_they_have_in_common() -> None:
    """Three patches follow one wave, by turns more and less; a fourth another wave."""
    time = np.arange(300)
    first, second = np.sin(time / 20), np.sign(np.sin(time / 7))
    traces = [(k * first)[None].astype(np.float32) for k in (1, 2, 3)]
    traces.append(second[None].astype(np.float32))
    weights = shared_background(traces, 2)
    assert weights.shape == (4, 2)
    strongest = weights.argmax(axis=1)
    assert len(set(strongest[:3])) == 1
    assert strongest[3] != strongest[0]
    np.testing.assert_allclose(
        weights[:3, strongest[0]] / weights[0, strongest[0]], [1, 2, 3], rtol=0.05
    )
