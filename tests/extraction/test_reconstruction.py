from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from dask.delayed import delayed
from numpy.typing import NDArray

from napari_calcium.components import Background, Components
from napari_calcium.errors import InputError
from napari_calcium.extraction import reconstruction
from napari_calcium.extraction.background import neuropil_footprints
from napari_calcium.extraction.reconstruction import (
    background_movie,
    cells_movie,
    model_movie,
    residual_movie,
)
from napari_calcium.movie import Movie

FIELD = (37, 53)
N_FRAMES = 101


@pytest.fixture(params=[0, 1])
def components(request: pytest.FixtureRequest) -> Components:
    """Six overlapping cells, one of them silent, on a static image of 40000 and neuropil."""
    rng = np.random.default_rng(request.param)
    y, x = np.mgrid[: FIELD[0], : FIELD[1]]
    places = rng.uniform((5, 5), (30, 45), (6, 2))
    images = np.array([np.maximum(6 - np.hypot(y - a, x - b), 0).ravel() for a, b in places])
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    traces, residuals, activity = rng.exponential(500, (3, 6, N_FRAMES)) - [[[0]], [[500]], [[0]]]
    traces[2] = 0
    static = sp.csc_array(40000 + rng.normal(size=(37 * 53, 1)))
    neuropil = neuropil_footprints(np.ones(FIELD, np.float32), 20)
    moving = rng.normal(0, 30, (neuropil.shape[1], N_FRAMES))
    background = Background(
        sp.csc_array(sp.hstack([static, neuropil], format="csc")),
        np.concatenate([np.ones((1, N_FRAMES)), moving]),
    )
    footprints = sp.csc_array(images.T)
    return Components(footprints, FIELD, traces, residuals, activity, background, np.arange(6))


def dense(footprints: sp.csc_array, traces: NDArray[np.floating]) -> NDArray[np.float64]:
    """Footprints times traces as frames (time, y, x)."""
    product = footprints.toarray().astype(np.float64) @ traces.astype(np.float64)
    return product.T.reshape(-1, *FIELD)


def parts(components: Components) -> tuple[NDArray[np.float64], ...]:
    """The cells' movie, denoised and raw, and the background's, by dense products."""
    raw = components.traces.astype(np.float64) + components.residuals
    background = components.background
    return (
        dense(components.footprints, components.traces),
        dense(components.footprints, raw),
        dense(background.footprints, background.traces),
    )


def test_movies_are_the_products_of_footprints_and_traces(components: Components) -> None:
    """To 0.02 in 40000: a few roundings of float32."""
    cells, raw, background = parts(components)
    for found, expected in (
        (cells_movie(components), cells),
        (cells_movie(components, raw=True), raw),
        (background_movie(components), background),
        (model_movie(components), cells + background),
        (model_movie(components, raw=True), raw + background),
    ):
        assert found.shape == (N_FRAMES, *FIELD)
        assert found.dtype == np.float32
        frames = found.compute()
        assert frames.dtype == np.float32
        np.testing.assert_allclose(frames, expected, atol=0.02)
    assert np.abs(raw - cells).max() > 100


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_the_residual_is_what_is_left(components: Components, dtype: Any) -> None:
    """To 0.02: counts of 40000 in float32."""
    cells, raw, background = parts(components)
    offset = -40000 if dtype == np.int16 else 0
    noise = np.random.default_rng(2).normal(0, 10, cells.shape)
    image = components.background.footprints.toarray()
    image[:, 0] += offset
    components = replace(
        components, background=Background(sp.csc_array(image), components.background.traces)
    )
    frames = (np.clip(cells + background + noise, 0, 65000) + offset).astype(dtype)
    movie = Movie(da.from_array(frames, chunks=30), 10.0)
    for is_raw, own in ((False, cells), (True, raw)):
        found = residual_movie(movie, components, raw=is_raw)
        expected = frames.astype(np.float64) - own - background - offset
        np.testing.assert_allclose(found.compute(), expected, atol=0.02)
    model = residual_movie(movie, components) + model_movie(components)
    np.testing.assert_allclose(model.compute(), frames, atol=0.02)


def test_lazy_components_make_the_same_residual(components: Components) -> None:
    movie = Movie(da.ones((N_FRAMES, *FIELD), dtype="uint16", chunks=40), 10.0)
    lazy = residual_movie(movie, delayed(components, traverse=False))
    np.testing.assert_array_equal(lazy[7:12].compute(), residual_movie(movie, components)[7:12])


Make = Callable[..., da.Array]
MAKERS: dict[str, Make] = {
    "cells": cells_movie,
    "model": model_movie,
    "background": background_movie,
    "residual": lambda components, **options: residual_movie(
        Movie(da.ones((N_FRAMES, *FIELD), chunks=(40, 10, 53)), 10.0), components, **options
    ),
}


@pytest.mark.parametrize("name", list(MAKERS))
def test_frames_do_not_depend_on_how_they_are_cut(components: Components, name: str) -> None:
    whole = MAKERS[name](components, frames_per_block=N_FRAMES)
    cut = MAKERS[name](components, frames_per_block=7)
    assert whole.numblocks == (1, 1, 1)
    assert cut.chunks == ((7,) * 14 + (3,), (37,), (53,))
    frames = whole.compute(scheduler="synchronous")
    np.testing.assert_array_equal(cut.compute(scheduler="threads", num_workers=4), frames)
    np.testing.assert_array_equal(cut[100].compute(), frames[100])
    np.testing.assert_array_equal(cut[3:90:13, 5, 7:9].compute(), frames[3:90:13, 5, 7:9])


@pytest.mark.parametrize("name", list(MAKERS))
def test_one_frame_costs_its_block(
    components: Components, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other frame is made, and none is read."""
    made = []
    add = reconstruction._add

    def noted(frames: NDArray[np.float32], *arguments: Any) -> None:
        made.append(len(frames))
        add(frames, *arguments)

    monkeypatch.setattr(reconstruction, "_add", noted)
    np.asarray(MAKERS[name](components, frames_per_block=8)[50].compute())
    assert set(made) == {8}
    assert len(made) <= 2


def test_only_the_frames_of_a_block_are_read(components: Components) -> None:
    seen = []

    def noted(block: NDArray[Any], block_info: Any = None) -> NDArray[Any]:
        seen.append(block_info[0]["chunk-location"])
        return block

    frames = da.ones((N_FRAMES, *FIELD), chunks=10).map_blocks(
        noted, dtype=np.float64, meta=np.empty((0, 0, 0))
    )
    left = residual_movie(Movie(frames[:, :, :], 10.0), components, frames_per_block=10)
    left[57].compute()
    assert {place[0] for place in seen} == {5}


@pytest.mark.parametrize("name", list(MAKERS))
def test_nothing_is_computed_and_the_graph_holds_the_cells_once(name: str) -> None:
    """A hundred thousand frames are a layer of blocks that are not written out."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the builder computed")

    n = 100_000
    empty, none = np.zeros((0, n), np.float32), sp.csc_array((4, 0))
    background = Background(sp.csc_array(np.ones((4, 1))), np.ones((1, n)))
    cells = Components(none, (2, 2), empty, empty, empty, background, np.arange(0))
    make = MAKERS[name]
    if name == "residual":
        movie = Movie(da.zeros((n, 2, 2), chunks=1000), 10.0)
        make = lambda cells: residual_movie(movie, cells)  # noqa: E731
    with dask.config.set(scheduler=refuse):
        found = make(cells)
    assert found.npartitions == 12_500
    graph = found.dask
    held = [
        key
        for layer in graph.layers.values()
        if layer.is_materialized()
        for key, node in dict(layer).items()
        if isinstance(getattr(node, "value", node), Components)
    ]
    assert len(held) == 1
    assert sum(layer.is_materialized() for layer in graph.layers.values()) <= 2


def test_nan_shows_where_it_is(components: Components) -> None:
    """In the footprint of the cell whose trace is NaN, and in the pixel that is."""
    traces = components.traces.copy()
    traces[0, 11] = np.nan
    found = model_movie(replace(components, traces=traces))[10:12].compute()
    np.testing.assert_array_equal(np.isnan(found[1]), components.footprint(0) > 0)
    assert np.isfinite(found[0]).all()
    frames = np.ones((N_FRAMES, *FIELD), np.float32)
    frames[3, 4, 5] = np.nan
    left = residual_movie(Movie(da.from_array(frames), 10.0), components).compute()
    assert np.argwhere(np.isnan(left)).tolist() == [[3, 4, 5]]


def test_no_cells(components: Components) -> None:
    none = replace(
        components,
        footprints=components.footprints[:, :0],
        cell_id=np.arange(0),
        **{name: np.zeros((0, N_FRAMES)) for name in ("traces", "residuals", "deconvolved")},
        baseline=None,
        noise=None,
        time_constants=None,
    )
    assert not cells_movie(none).compute().any()
    np.testing.assert_array_equal(model_movie(none), background_movie(components))


def test_another_movie_is_refused(components: Components) -> None:
    other = Movie(da.zeros((N_FRAMES, 53, 37)), 10.0)
    with pytest.raises(InputError, match=r"101 x 53 x 37 .* one of 101 x 37 x 53; give the movie"):
        residual_movie(other, components)
    with pytest.raises(InputError, match="give the movie they were found in"):
        residual_movie(other, delayed(components, traverse=False)).compute()
    with pytest.raises(InputError, match="one plane"):
        residual_movie(Movie(da.zeros((N_FRAMES, 2, *FIELD)), 10.0), components)
    with pytest.raises(ValueError, match="at least 1"):
        cells_movie(components, frames_per_block=0)
