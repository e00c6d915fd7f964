from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from dask.delayed import delayed

from napari_calcium.activity.neuropil import (
    above_background,
    above_ring,
    background_under_cells,
    ring_corrected,
    ring_weights,
    rings,
)
from napari_calcium.components import Background, Components
from napari_calcium.errors import InputError
from napari_calcium.movie import Movie

SHAPE = (37, 53)
CENTRES = [(8, 10), (10, 17), (0, 52), (30, 30), (20, 40)]


def components(n_frames: int = 40, seed: int = 0) -> Components:
    """Round cells, two that touch and one in a corner, on a background of two components."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    images = [np.maximum(0, 16 - (y - v) ** 2 - (x - h) ** 2) for v, h in CENTRES]
    dense = np.stack([image.ravel() / np.linalg.norm(image) for image in images], axis=1)
    background = Background(
        sp.csc_array(rng.random((dense.shape[0], 2))), 50 + 10 * rng.random((2, n_frames))
    )
    traces = 100 * rng.random((len(CENTRES), n_frames))
    residuals = rng.normal(size=traces.shape)
    identity = np.arange(len(CENTRES))
    return Components(sp.csc_array(dense), SHAPE, traces, residuals, traces, background, identity)


def film(cells: Components, dtype: str = "float32") -> np.ndarray:
    """The movie that the components describe, without residuals."""
    pixels = cells.footprints @ cells.traces
    pixels += cells.background.footprints @ cells.background.traces
    return pixels.T.reshape(-1, *cells.shape).astype(dtype)


def brute_force_ring(footprints: np.ndarray, index: int, gap: int, n_pixels: int) -> np.ndarray:
    """Every pixel's distance to every pixel of the cell."""
    y, x = np.divmod(np.arange(len(footprints)), SHAPE[1])
    own = np.flatnonzero(footprints[:, index] > 0)
    distance = np.hypot(y[:, None] - y[own], x[:, None] - x[own]).min(axis=1)
    allowed = ~(footprints > 0).any(axis=1) & (distance > gap)
    if not allowed.any():
        allowed = ~(footprints > 0).any(axis=1)
    reach = np.sort(distance[allowed])[min(n_pixels, allowed.sum()) - 1]
    return np.flatnonzero(allowed & (distance <= reach + 1e-9))


def test_background_in_the_unit_of_the_traces() -> None:
    """The trace a cell would have if the background were the only light: least squares."""
    cells = components()
    movie = cells.background.footprints @ cells.background.traces
    footprints = cells.footprints.toarray()
    expected = [np.linalg.lstsq(footprints[:, [i]], movie)[0][0] for i in range(cells.n_cells)]
    np.testing.assert_allclose(background_under_cells(cells), expected, rtol=1e-4)


def test_background_of_some_cells_is_that_of_all() -> None:
    cells = components()
    expected = background_under_cells(cells)
    for part in (slice(0, 1), slice(2, 5), slice(3, 3)):
        np.testing.assert_array_equal(background_under_cells(cells, part), expected[part])
        light = above_background(cells, part)
        np.testing.assert_array_equal(light.raw, (cells.traces + cells.residuals)[part])
        np.testing.assert_array_equal(light.denoised, cells.traces[part])


def test_empty_footprint_and_no_background() -> None:
    empty = sp.csc_array((35, 1), dtype=np.float32)
    nothing = Background(sp.csc_array((35, 0), dtype=np.float32), np.zeros((0, 10)))
    ones = np.ones((1, 10))
    cells = Components(empty, (5, 7), ones, ones, ones, nothing, np.arange(1))
    np.testing.assert_array_equal(background_under_cells(cells), np.zeros((1, 10)))
    assert ring_weights(cells, 0.7, 2, 10).nnz == 0
    np.testing.assert_array_equal(above_ring(cells, ones).denoised, np.zeros((1, 10)))


@pytest.mark.parametrize(
    ("gap", "n_pixels"), [(0, 1), (2, 30), (2, 350), (5, 60), (2, 1900), (2, 5000), (70, 20)]
)
def test_rings_equal_brute_force(gap: int, n_pixels: int) -> None:
    """Up to rings of the whole field, and a gap that leaves nothing beyond it."""
    footprints = components().footprints
    found = rings(footprints, SHAPE, gap, n_pixels)
    dense = footprints.toarray()
    for index in range(len(CENTRES)):
        pixels = found.indices[found.indptr[index] : found.indptr[index + 1]]
        np.testing.assert_array_equal(pixels, brute_force_ring(dense, index, gap, n_pixels))
        assert not (dense[pixels] > 0).any()


@pytest.mark.parametrize("n_pixels", [3, 20, 60])
@pytest.mark.parametrize("border", [40, 44, 47, 50])
def test_a_ring_far_away_equals_brute_force(border: int, n_pixels: int) -> None:
    """Free pixels only beyond a diagonal of the field: in the corner of a box first."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    small = (abs(y - 8) < 3) & (abs(x - 10) < 3)
    large = (y + x < border) & ~small
    dense = np.stack([small.ravel(), large.ravel()], axis=1).astype(np.float64)
    found = rings(sp.csc_array(dense), SHAPE, 2, n_pixels)
    for index in range(2):
        pixels = found.indices[found.indptr[index] : found.indptr[index + 1]]
        np.testing.assert_array_equal(pixels, brute_force_ring(dense, index, 2, n_pixels))


def test_a_field_without_free_pixels_has_no_rings() -> None:
    full = sp.csc_array(np.ones((35, 1)))
    with pytest.raises(InputError, match="set neuropil to 'background'"):
        rings(full, (5, 7), 2, 10)
    assert rings(sp.csc_array((35, 0)), (5, 7), 2, 10).shape == (35, 0)


def test_weights_are_a_mean_less_a_part_of_a_mean() -> None:
    cells = components()
    weights = ring_weights(cells, 0.7, 2, 50)
    np.testing.assert_allclose(np.asarray(weights.sum(axis=0)).ravel(), 0.3, rtol=1e-5)
    around = rings(cells.footprints, SHAPE, 2, 50).toarray() > 0
    dense = weights.toarray()
    assert np.all(dense[around] < 0)
    np.testing.assert_allclose(dense.clip(None, 0).sum(axis=0), -0.7, rtol=1e-5)


@pytest.mark.parametrize("chunks", [(7, 37, 53), (40, 10, 20)])
@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_corrected_traces_equal_brute_force(chunks: tuple[int, ...], dtype: str) -> None:
    cells = components()
    frames = film(cells, dtype)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed while building")

    with dask.config.set(scheduler=refuse):
        movie = Movie(da.from_array(frames, chunks=chunks), frame_rate=30.0)
        lazy = ring_corrected(movie, delayed(cells), 0.7, 2, 60)
    found = lazy.compute(scheduler="sync")
    assert found.dtype == np.float32
    pixels = frames.reshape(len(frames), -1).astype(np.float64)
    dense = cells.footprints.toarray().astype(np.float64)
    for index, trace in enumerate(found):
        inside = pixels @ dense[:, index] / dense[:, index].sum()
        ring = pixels[:, brute_force_ring(dense, index, 2, 60)].mean(axis=1)
        np.testing.assert_allclose(trace, inside - 0.7 * ring, atol=2e-3)  # of sums up to 150


def test_denoised_traces_have_the_unit_of_the_corrected_ones() -> None:
    """A lone cell without background is its own mean: both are the same, counts per pixel."""
    rng = np.random.default_rng(1)
    image = np.zeros(SHAPE)
    image[10:15, 20:27] = rng.random((5, 7))
    footprint = sp.csc_array(image.reshape(-1, 1) / np.linalg.norm(image))
    dark = Background(sp.csc_array((image.size, 0)), np.zeros((0, 30)))
    traces = 100 * rng.random((1, 30))
    cells = Components(footprint, SHAPE, traces, traces, traces, dark, np.arange(1))
    movie = Movie(da.from_array(film(cells)), frame_rate=30.0)
    corrected = ring_corrected(movie, delayed(cells), 0.7, 2, 60).compute(scheduler="sync")
    light = above_ring(cells, corrected)
    assert light.behind is None
    np.testing.assert_allclose(light.denoised, light.raw, rtol=1e-5)
