from __future__ import annotations

from dataclasses import replace
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from napari_calcium.components import Background, Components
from napari_calcium.evaluation.spatial_correlation import (
    correlations,
    transient_weights,
    triggered_images,
)
from napari_calcium.movie import Movie

FIELD = (37, 53)
N_FRAMES = 600
NOISE = 5.0
DECAY_TIME = 0.5


def soma(y: float, x: float, radius: float = 5) -> NDArray[np.float64]:
    rows, columns = np.mgrid[: FIELD[0], : FIELD[1]]
    return np.clip(radius + 0.5 - np.hypot(rows - y, columns - x), 0, 1)


def components_of(images: list[NDArray[Any]], traces: NDArray[Any]) -> Components:
    """Cells of given footprints and traces, with noise in the residuals, on a flat background."""
    flat = np.array(images).reshape(len(images), 37 * 53)
    norms = np.maximum(np.linalg.norm(flat, axis=1), 1e-12)
    residuals = np.random.default_rng(1).normal(0, NOISE, traces.shape)
    return Components(
        footprints=sp.csc_array((flat / norms[:, None]).T),
        shape=FIELD,
        traces=traces * norms[:, None],
        residuals=residuals,
        deconvolved=np.zeros(traces.shape),
        background=Background(sp.csc_array(np.full((37 * 53, 1), 200.0)), np.ones((1, N_FRAMES))),
        cell_id=np.arange(len(images)),
    )


def transients(first: int, every: int, height: float = 40.0) -> NDArray[np.float64]:
    trace = np.zeros(N_FRAMES)
    for start in range(first, N_FRAMES, every):
        trace[start:] += height * 0.8 ** np.arange(N_FRAMES - start)
    return trace


def movie_of(components: Components) -> Movie:
    """The movie that the components describe, with noise."""
    cells = components.footprints @ components.traces
    background = components.background
    pixels = cells + background.footprints @ background.traces
    noise = np.random.default_rng(2).normal(0, NOISE, (N_FRAMES, *FIELD))
    frames = (pixels.T.reshape(N_FRAMES, *FIELD) + noise).round().astype(np.int16)
    return Movie(da.from_array(frames, chunks=(100, 20, 53)), 10.0)


def spatial_correlation(movie: Movie, components: Delayed, decay_time: float) -> Delayed:
    """The score as the stage makes it."""
    images = triggered_images(movie, components, decay_time)
    return delayed(correlations)(components, images)


def scores(movie: Movie, components: Components) -> NDArray[np.float32]:
    lazy = spatial_correlation(movie, delayed(components), DECAY_TIME)
    return np.asarray(lazy.compute(scheduler="synchronous"))


@pytest.fixture(scope="module")
def cells() -> Components:
    """Two that overlap, and one at the corner; one of the neighbours is much brighter."""
    images = [soma(15, 20), soma(17, 27), soma(0, 52)]
    traces = np.stack([transients(10, 70), 3 * transients(40, 60), transients(25, 90)])
    return components_of(images, traces)


def test_a_right_footprint_is_close_to_1(cells: Components) -> None:
    """Noise of 5 in a mean of some 50 frames against a cell of about 30: above 0.95."""
    found = scores(movie_of(cells), cells)
    assert found.dtype == np.float32
    assert (found > 0.95).all()
    assert (found <= 1).all()


def test_a_wrong_footprint_is_close_to_0(cells: Components) -> None:
    """The traces of the cells where no cell is: about 110 px of noise, sd 0.1."""
    images = [soma(30, 10), soma(30, 40), soma(10, 5)]
    wrong = components_of(images, cells.traces.astype(float))
    assert (np.abs(scores(movie_of(cells), wrong)) < 0.4).all()


def test_a_ring_around_the_cell_is_negative_or_low(cells: Components) -> None:
    ring = soma(15, 20, 8) - soma(15, 20, 6)
    images = [ring, soma(17, 27), soma(0, 52)]
    wrong = components_of(images, cells.traces / np.linalg.norm(soma(15, 20)))
    assert scores(movie_of(cells), wrong)[0] < 0.3


def test_the_background_is_taken_away(cells: Components) -> None:
    """A bright gradient under a cell must not decide; without it the score is the same."""
    slope = np.mgrid[: FIELD[0], : FIELD[1]].sum(axis=0) * 20.0
    lit = replace(
        cells, background=Background(sp.csc_array(slope.reshape(-1, 1)), np.ones((1, N_FRAMES)))
    )
    plain = scores(movie_of(cells), cells)
    np.testing.assert_allclose(scores(movie_of(lit), lit), plain, atol=0.01)


def test_chunks_and_workers_do_not_matter(cells: Components) -> None:
    movie = movie_of(cells)
    reference = scores(movie, cells)
    other = replace(movie, frames=movie.frames.rechunk((37, 37, 11)))
    lazy = spatial_correlation(other, delayed(cells), DECAY_TIME)
    np.testing.assert_array_equal(lazy.compute(scheduler="threads", num_workers=2), reference)


def test_weights_are_on_the_frames_of_the_largest_transients(cells: Components) -> None:
    weights = transient_weights(cells, 5).toarray()
    assert weights.shape == (3, N_FRAMES)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    assert (weights >= 0).all()
    starts = np.arange(25, N_FRAMES, 90)  # of the cell that has no neighbour
    weighted = np.flatnonzero(weights[2] * (cells.traces[2] > 2 * NOISE))
    assert set(starts) <= set(weighted.tolist())
    assert np.count_nonzero(weights[2]) <= 10 * 5


def test_a_window_takes_the_frames_that_follow() -> None:
    one = components_of([soma(15, 20)], np.zeros((1, N_FRAMES)))
    raw = np.zeros((1, N_FRAMES))
    raw[0, 200:204], raw[0, 598:] = 7, 9
    weights = transient_weights(replace(one, traces=raw, residuals=0 * raw), 4).toarray()
    assert np.flatnonzero(weights[0]).tolist() == [200, 201, 202, 203, 598, 599]


def test_frames_in_which_a_neighbour_is_active_are_left_out(cells: Components) -> None:
    """All of them, also those within a window that starts before the neighbour does."""
    weights = transient_weights(cells, 8).toarray()
    noise = cells.residuals.std(axis=1, keepdims=True)
    active = cells.traces > 2 * noise
    assert weights[0][active[1]].sum() == 0
    assert weights[1][active[0]].sum() == 0
    assert weights[2][active[0]].sum() > 0  # no neighbour: they do not matter


def test_a_neighbour_that_is_always_active_leaves_all_frames(cells: Components) -> None:
    busy = replace(cells, traces=cells.traces + np.array([[0], [500], [0]], np.float32))
    weights = transient_weights(busy, 5).toarray()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)


def test_cells_without_transients_or_pixels_score_0() -> None:
    images = [soma(15, 20), np.zeros(FIELD), soma(30, 40)]
    traces = np.stack([transients(10, 70), transients(20, 70), np.zeros(N_FRAMES)])
    some = components_of(images, traces)
    residuals = some.residuals.copy()
    residuals[2] = 0
    found = scores(movie_of(some), replace(some, residuals=residuals))
    assert found[0] > 0.95
    assert found[1] == 0
    assert found[2] == 0


def test_no_cells() -> None:
    none = components_of([], np.zeros((0, N_FRAMES)))
    movie = Movie(da.zeros((N_FRAMES, *FIELD), dtype="uint16"), 10.0)
    assert scores(movie, none).shape == (0,)


def test_the_builder_does_not_compute(cells: Components) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the builder computed")

    with dask.config.set(scheduler=refuse):
        spatial_correlation(movie_of(cells), delayed(cells), DECAY_TIME)


@pytest.mark.parametrize("seed", [5, 6])
def test_like_dense_algebra(cells: Components, seed: int) -> None:
    """Every image told in one line of dense algebra; to float32 of frames of some 1,000 counts."""
    movie = movie_of(cells)
    rng = np.random.default_rng(seed)
    neuropil = sp.csc_array(rng.random((37 * 53, 2)).astype(np.float32))
    background = Background(
        sp.hstack([cells.background.footprints, neuropil], format="csc"),
        np.concatenate([np.ones((1, N_FRAMES)), rng.normal(size=(2, N_FRAMES))]),
    )
    model = replace(cells, background=background)
    window = round(DECAY_TIME * movie.frame_rate)
    weights = transient_weights(model, window).toarray()
    pixels = movie.frames.compute().reshape(N_FRAMES, -1).T.astype(float)
    raw = model.traces + model.residuals
    rest = background.footprints.toarray() @ background.traces
    images = triggered_images(movie, delayed(model), DECAY_TIME).compute()
    footprints = model.footprints.toarray()
    for cell in range(model.n_cells):
        others = [other for other in range(model.n_cells) if other != cell]
        left = pixels - footprints[:, others] @ raw[others] - rest
        inside = images.indices[slice(*images.indptr[cell : cell + 2])]
        expected = (left @ weights[cell])[inside]
        found = images.data[slice(*images.indptr[cell : cell + 2])]
        np.testing.assert_allclose(found, expected, atol=1e-3)
        reference = np.corrcoef(expected, footprints[inside, cell])[0, 1]
        assert correlations(model, images)[cell] == pytest.approx(reference, abs=1e-5)


def test_one_pass_for_all_cells(cells: Components) -> None:
    """Every pixel of every frame is read once."""
    frames, read = movie_of(cells).frames.compute(), []

    class Disk:
        shape, dtype, ndim = frames.shape, frames.dtype, 3

        def __getitem__(self, box: tuple[slice, ...]) -> NDArray[Any]:
            read.append(frames[box].size)
            return np.asarray(frames[box])

    meta = np.empty((0, 0, 0), frames.dtype)
    lazy = da.from_array(Disk(), chunks=(100, 37, 53), name="disk", meta=meta)
    spatial_correlation(Movie(lazy, 10.0), delayed(cells), DECAY_TIME).compute()
    assert sum(read) == frames.size


@pytest.mark.parametrize("dtype", ["int16", ">i2", "uint16", "float32"])
def test_every_type_of_frames(cells: Components, dtype: str) -> None:
    movie = movie_of(cells)
    other = replace(movie, frames=movie.frames.astype(dtype))
    np.testing.assert_allclose(scores(other, cells), scores(movie, cells), atol=1e-6)
