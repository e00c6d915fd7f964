from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from napari_calcium.components import Background, Components
from napari_calcium.extraction import local_fit
from napari_calcium.extraction.edit import Edit
from napari_calcium.extraction.local_fit import Window, affected_traces, with_fitted_footprints
from napari_calcium.movie import Movie, Reader

FIELD = (37, 53)
SEEDS = [0, 1, 2]


class Case:
    """Four cells whose model is the movie but for noise of 2 counts; cells 0 and 1 overlap.

    Neuropil of 60 counts at the right edge, with its own trace, fades to the left.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[: FIELD[0], : FIELD[1]]
        centres = [(10, 10), (12, 15), (28, 20), (20, 40)]
        images = [np.maximum(5 - np.hypot(y - row, x - column), 0) for row, column in centres]
        footprints = np.stack([image.ravel() / np.linalg.norm(image) for image in images], axis=1)
        spikes = rng.random((4, 500)) < 0.03
        kernel = 200 * 0.9 ** np.arange(50)
        self.traces = np.stack([np.convolve(row, kernel)[:500] for row in spikes])
        still = 300 + 20 * rng.random((37 * 53, 1))
        slope = (x / 53).reshape(-1, 1)
        both, none = np.concatenate([still, slope], axis=1), np.zeros((4, 500))
        moving = np.concatenate([np.ones((1, 500)), rng.normal(0, 60, (1, 500))])
        pixels = footprints @ self.traces + both @ moving + rng.normal(0, 2, (37 * 53, 500))
        self.frames = pixels.T.reshape(500, *FIELD).astype(np.float32)
        self.cells = Components(
            footprints=sp.csc_array(footprints),
            shape=FIELD,
            traces=self.traces,
            residuals=none,
            deconvolved=none,
            background=Background(sp.csc_array(both), moving),
            cell_id=np.arange(4),
        )

    def movie(self, chunks: Any = 100) -> Movie:
        return Movie(da.from_array(self.frames, chunks=chunks), 15.0)

    def changed(self, *cells: int) -> Edit:
        return Edit(self.cells, self.cells.footprints[:, :0], changed=np.array(cells))

    def missing(self, index: int) -> Edit:
        """Of the cells without one, which comes anew: fitted from a square in its place."""
        kept = np.setdiff1d(np.arange(4), index)
        parts = {n: getattr(self.cells, n)[kept] for n in ("traces", "residuals", "deconvolved")}
        others = Components(
            footprints=self.cells.footprints[:, kept],
            shape=FIELD,
            background=self.cells.background,
            cell_id=kept,
            **parts,
        )
        image = self.cells.footprint(index)
        y, x = np.unravel_index(np.argmax(image), FIELD)
        start, reach = np.zeros((2, *FIELD), np.float32)
        start[y - 2 : y + 3, x - 2 : x + 3] = 0.2
        reach[y - 7 : y + 8, x - 7 : x + 8] = 1
        start, reach = (sp.csc_array(image.reshape(-1, 1)) for image in (start, reach))
        return Edit(others, start, support=reach)


@pytest.fixture(scope="module", params=SEEDS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture(scope="module")
def first() -> Case:
    return Case(SEEDS[0])


def lazy(edit: Edit) -> Delayed:
    return delayed(edit, traverse=False)


# ---------------------------------------------------------------------------------------- window


def test_a_window_holds_the_pixels_of_footprints(first: Case) -> None:
    some = sp.csc_array(first.cells.footprints[:, [1, 3]])
    window = Window.around(some, first.cells)
    has = some.toarray().any(axis=1).reshape(FIELD)
    y, x = np.nonzero(has)
    assert (window.rows, window.columns) == (slice(8, 25), slice(11, 45))
    np.testing.assert_array_equal(window.pixels, np.flatnonzero(has))
    np.testing.assert_array_equal(
        has[window.rows, window.columns].ravel().nonzero()[0], window.inside
    )
    light = window.light(Reader(first.movie()), slice(7, 12))
    still = first.cells.background.footprints[:, [0]].toarray().reshape(FIELD)
    expected = (first.frames[7:12] - still.astype(np.float32))[:, y, x].T
    np.testing.assert_allclose(light, expected, atol=1e-4)  # counts of 300 in float32


def test_a_part_is_placed_where_it_was(first: Case) -> None:
    footprints = first.cells.footprints
    window = Window.around(footprints, first.cells)
    part = window.part(footprints)
    assert part.shape == (len(window.pixels), 4)
    np.testing.assert_array_equal(window.placed(part).toarray(), footprints.toarray())
    which = window.pixels % 2 == 0
    some = window.only(which)
    np.testing.assert_array_equal(some.part(footprints).toarray(), part.toarray()[which])
    reader = Reader(first.movie())
    light = window.light(reader, slice(9))
    np.testing.assert_array_equal(some.light(reader, slice(9)), light[which])


# ---------------------------------------------------------------------------------------- traces


@pytest.mark.parametrize("cells", [[0], [2, 3], [0, 1, 2, 3]])
def test_traces_are_least_squares_with_all_else_as_it_is(case: Case, cells: list[int]) -> None:
    """Against dense least squares; 1e-3 of the noise: float32 and a ridge of 1e-6 of 400."""
    found = affected_traces(case.movie(), lazy(case.changed(*cells))).compute()
    near = sorted({*cells, *({0, 1} if {0, 1} & set(cells) else ())})
    footprints = case.cells.footprints.toarray().astype(float)
    background = case.cells.background
    left = case.frames.reshape(500, -1).T - background.footprints @ background.traces.astype(float)
    rest = np.setdiff1d(np.arange(4), near)
    left -= footprints[:, rest] @ case.traces[rest]
    expected = np.linalg.lstsq(footprints[:, near], left)[0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.abs(found - case.traces[near]).max() < 15  # 9 on 12 seeds


def test_a_missing_pixel_is_at_rest(first: Case) -> None:
    """In the frame in which it is NaN, and nothing else changes."""
    frames = first.frames.copy()
    frames[33, 28, 20] = np.nan
    edit = lazy(first.changed(2))
    found = affected_traces(Movie(da.from_array(frames), 15.0), edit).compute()
    usual = affected_traces(first.movie(), edit).compute()
    still = first.cells.background.footprints[:, [0]].toarray().reshape(FIELD)[28, 20]
    weight = first.cells.footprint(2)[28, 20]
    expected = weight * (first.frames[33, 28, 20] - still)
    assert usual[0, 33] - found[0, 33] == pytest.approx(expected, abs=1e-3)
    np.testing.assert_array_equal(np.delete(found, 33, axis=1), np.delete(usual, 33, axis=1))


def test_nothing_affected_has_no_traces(first: Case) -> None:
    edit = Edit(first.cells, first.cells.footprints[:, :0], removed=np.array([2]))
    assert affected_traces(first.movie(), lazy(edit)).compute().shape == (0, 500)


# ------------------------------------------------------------------------------------ footprints


@pytest.mark.parametrize("cell", [0, 1, 3])
def test_a_missing_footprint_is_fitted(case: Case, cell: int) -> None:
    """From a square of 5 px, whose cosine with the truth is 0.86; measured: 0.999 on 12 seeds."""
    edit = case.missing(cell)
    found = with_fitted_footprints(case.movie(), lazy(edit)).compute()
    true = case.cells.footprints[:, [cell]]
    assert (edit.footprints.T @ true).toarray()[0, 0] < 0.9
    assert (found.footprints.T @ true).toarray()[0, 0] > 0.99
    assert found.reach is found.footprints
    assert not found.footprints.toarray()[edit.reach.toarray() == 0].any()


def test_pixels_that_are_missing_are_in_no_footprint(first: Case) -> None:
    frames = first.frames.copy()
    frames[33, 18:20, 38:43] = np.nan
    movie = Movie(da.from_array(frames), 15.0)
    found = with_fitted_footprints(movie, lazy(first.missing(3))).compute().footprints
    image = found.toarray().reshape(FIELD)
    true = first.cells.footprint(3).copy()
    true[18:20, 38:43] = 0
    assert not image[18:20, 38:43].any()
    assert image.ravel() @ true.ravel() / np.linalg.norm(true) > 0.98


# ------------------------------------------------------------------------------------- all graphs


def test_it_does_not_depend_on_chunks_or_workers(first: Case) -> None:
    results = []
    for chunks, workers in ((500, 1), ((64, 37, 53), 2), ((190, 10, 20), 4)):
        movie = first.movie(chunks)
        edit = with_fitted_footprints(movie, lazy(first.missing(1)))
        both = dask.compute(
            edit, affected_traces(movie, edit), scheduler="threads", num_workers=workers
        )
        results.append((both[0].footprints.toarray(), both[1]))
    for other in results[1:]:
        for expected, found in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_building_computes_nothing(first: Case) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the builder computed")

    with dask.config.set(scheduler=refuse):
        edit = with_fitted_footprints(first.movie(), lazy(first.missing(1)))
        affected_traces(first.movie(), edit)


def test_one_reader_is_in_the_graph(first: Case) -> None:
    movie = first.movie()
    edit = with_fitted_footprints(movie, lazy(first.missing(1)))
    graph = dict(affected_traces(movie, edit).dask)
    readers = [key for key, node in graph.items() if isinstance(getattr(node, "value", 0), Reader)]
    assert len(readers) == 1


# ------------------------------------------------------------------------------------------- bins


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("at_once", [1, 3, 2**22])
def test_bins_are_means_of_frames(
    first: Case, monkeypatch: pytest.MonkeyPatch, size: int, at_once: int
) -> None:
    """However few frames are read at a time; 37 frames leave one over, which is a bin."""
    monkeypatch.setattr(local_fit, "_frames_per_bin", lambda *_: size)
    window = Window.around(first.cells.footprints[:, [0]], first.cells)
    area = (window.rows.stop - window.rows.start) * (window.columns.stop - window.columns.start)
    monkeypatch.setattr(local_fit, "PIXELS_AT_ONCE", at_once * area)
    found = local_fit._binned(Reader(first.movie()), window, slice(64, 101))
    has = first.cells.footprint(0).ravel() > 0
    pixels = first.frames[64:101].reshape(37, -1)[:, has].T
    rest = first.cells.background.footprints[:, [0]].toarray()[has]
    cuts = range(0, 37, size)
    expected = np.stack([(pixels[:, a : a + size] - rest).mean(axis=1) for a in cuts], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(("limit", "expected"), [(500, 1), (499, 2), (100, 8), (1, 512)])
def test_bins_are_powers_of_two(monkeypatch: pytest.MonkeyPatch, limit: int, expected: int) -> None:
    monkeypatch.setattr(local_fit, "MOST_BINS", limit)
    assert local_fit._frames_per_bin(500, 100) == expected
    monkeypatch.setattr(local_fit, "MOST_VALUES", 50)
    assert local_fit._frames_per_bin(500, 100) == 1024


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_is_not_active_and_a_transient_is(seed: int) -> None:
    """Fifty traces of noise, and the same with one transient of 15 sd in 500 frames."""
    noise: NDArray[np.float32] = np.random.default_rng(seed).normal(5, 2, (50, 500))
    noise = noise.astype(np.float32)
    assert not local_fit._is_active(noise).any()
    noise[:, 100:110] += 30 * 0.8 ** np.arange(10)
    assert local_fit._is_active(noise).all()
