"""Movies of what source extraction found: its cells, its background, and what it leaves over.

All are lazy, made block by block from the sparse footprints and a slice of the traces when they are
looked at; nothing as large as pixels times cells or pixels times frames is ever held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import scipy.sparse as sp
from dask.delayed import Delayed, delayed
from numba import njit
from numpy.typing import NDArray

from napari_calcium.components import Components
from napari_calcium.errors import InputError
from napari_calcium.movie import Movie, Reader, blocks, check_one_plane

__all__ = [
    "background_movie",
    "cells_movie",
    "check_same_movie",
    "model_movie",
    "residual_movie",
]

Floats = NDArray[np.float32]

FRAMES_PER_BLOCK = 8
"""Frames of a block by default: looking at one frame costs no more than so many, 20 ms at most for
512 x 512 px and 300 cells."""


def cells_movie(
    components: Components, *, raw: bool = False, frames_per_block: int = FRAMES_PER_BLOCK
) -> da.Array:
    """Return lazily the movie of the cells alone, footprints times traces (CaImAn: ``A C``).

    Parameters
    ----------
    components : Components
        What source extraction found.
    raw : bool
        Take the raw traces, ``traces + residuals``, in place of the denoised ones.
    frames_per_block : int
        Frames of a block of the array, and of a task.

    Returns
    -------
    dask.array.Array (time, y, x), float32
        In the movie's unit, above rest; frames where the trace of a cell is NaN are NaN in its
        footprint.

    Examples
    --------
    >>> from napari_calcium.components import Background
    >>> footprints = sp.csc_array(np.array([[0, 0, 0.6, 0.8, 0, 0]]).T)
    >>> traces, none = np.array([[5, 10.0]]), np.zeros((1, 2))
    >>> still = Background(sp.csc_array(np.ones((6, 1))), np.ones((1, 2)))
    >>> found = Components(footprints, (2, 3), traces, none, none, still, np.arange(1))
    >>> cells_movie(found)[1].compute()
    array([[0., 0., 6.],
           [8., 0., 0.]], dtype=float32)
    """
    return _movie(components, frames_per_block, cells=True, raw=raw)


def background_movie(
    components: Components, *, frames_per_block: int = FRAMES_PER_BLOCK
) -> da.Array:
    """Return lazily the movie of the static image and the neuropil (CaImAn: ``b f``).

    Parameters
    ----------
    components, frames_per_block
        See `cells_movie`.

    Returns
    -------
    dask.array.Array (time, y, x), float32
        In the movie's unit.
    """
    return _movie(components, frames_per_block, background=True)


def model_movie(
    components: Components, *, raw: bool = False, frames_per_block: int = FRAMES_PER_BLOCK
) -> da.Array:
    """Return lazily the movie as the model has it, without noise (CaImAn: ``A C + b f``).

    Parameters
    ----------
    components, raw, frames_per_block
        See `cells_movie`.

    Returns
    -------
    dask.array.Array (time, y, x), float32
        In the movie's unit.
    """
    return _movie(components, frames_per_block, cells=True, background=True, raw=raw)


def residual_movie(
    movie: Movie,
    components: Components | Delayed,
    *,
    raw: bool = False,
    frames_per_block: int = FRAMES_PER_BLOCK,
) -> da.Array:
    """Return lazily what the model leaves of the movie: noise, and what was not found.

    Parameters
    ----------
    movie : Movie
        The recording that the components were found in, of one plane.
    components : Components or Delayed of Components
        What source extraction found.
    raw, frames_per_block
        See `cells_movie`. A block reads its frames itself, so one as long as the chunks on disk,
        `Movie.blocks`, is better where the whole movie is gone through.

    Returns
    -------
    dask.array.Array (time, y, x), float32
        ``Y - A C - b f``, in the movie's unit; NaN where the movie is.

    Raises
    ------
    InputError
        If the components are of another movie; in the task if they are lazy.

    Examples
    --------
    >>> from napari_calcium.components import Background
    >>> none, still = sp.csc_array((6, 0)), sp.csc_array(np.full((6, 1), 3.0))
    >>> empty, background = np.zeros((0, 4)), Background(still, np.ones((1, 4)))
    >>> found = Components(none, (2, 3), empty, empty, empty, background, np.arange(0))
    >>> left = residual_movie(Movie(da.full((4, 2, 3), 5), frame_rate=10.0), found)
    >>> float(left.max().compute())
    2.0
    """
    check_one_plane(movie.frames.shape, "residual_movie")
    if isinstance(components, Components):
        check_same_movie(movie.frames.shape, components)
    reader = delayed(Reader(movie), traverse=False)
    return _blockwise(
        _residual_block, movie.frames.shape, frames_per_block, components, raw=raw, reader=reader
    )


def check_same_movie(shape: Sequence[int], components: Components) -> None:
    """Raise `InputError` for components that are of another movie.

    Parameters
    ----------
    shape : sequence of int
        Of the movie, (time, y, x).
    components : Components
        What source extraction found.
    """
    own = (components.traces.shape[1], *components.shape)
    if tuple(shape) != own:
        raise InputError(
            f"the movie is {' x '.join(map(str, shape))} (time, y, x) but the cells are of one of "
            f"{' x '.join(map(str, own))}; give the movie they were found in"
        )


def _movie(
    components: Components,
    frames_per_block: int,
    cells: bool = False,
    background: bool = False,
    raw: bool = False,
) -> da.Array:
    shape = (components.traces.shape[1], *components.shape)
    flags = {"cells": cells, "background": background, "raw": raw}
    return _blockwise(_model_block, shape, frames_per_block, components, **flags)


def _blockwise(
    kernel: Any, shape: Sequence[int], frames_per_block: int, components: Any, **arguments: Any
) -> da.Array:
    """Build an array of whole frames, all of its tasks on one key of the components."""
    if frames_per_block < 1:
        raise ValueError(f"frames_per_block is {frames_per_block}; it must be at least 1")
    lengths = tuple(cut.stop - cut.start for cut in blocks(shape[0], frames_per_block))
    return da.map_blocks(
        kernel,
        frames_per_block=frames_per_block,
        components=delayed(components, traverse=False),
        chunks=(lengths, (shape[1],), (shape[2],)),
        dtype=np.float32,
        meta=np.empty((0, 0, 0), np.float32),
        **arguments,
    )


def _model_block(
    components: Components,
    frames_per_block: int,
    cells: bool,
    background: bool,
    raw: bool,
    block_id: tuple[int, int, int] = (0, 0, 0),
) -> Floats:
    """Return the frames of one block."""
    time = _frames_of(block_id, components, frames_per_block)
    frames = np.zeros((time.stop - time.start, *components.shape), np.float32)
    if background:
        _add_background(frames, components, time, 1.0)
    if cells:
        _add_cells(frames, components, time, raw, 1.0)
    return frames


def _residual_block(
    components: Components,
    frames_per_block: int,
    raw: bool,
    reader: Reader,
    block_id: tuple[int, int, int] = (0, 0, 0),
) -> Floats:
    """Return the frames of one block less the model, the static image first."""
    check_same_movie(reader.shape, components)
    time = _frames_of(block_id, components, frames_per_block)
    frames = reader.read(time).astype(np.float32)
    _add_background(frames, components, time, -1.0)
    _add_cells(frames, components, time, raw, -1.0)
    return frames


def _frames_of(
    block_id: tuple[int, int, int], components: Components, frames_per_block: int
) -> slice:
    start = block_id[0] * frames_per_block
    return slice(start, min(start + frames_per_block, components.traces.shape[1]))


def _add_background(frames: Floats, components: Components, time: slice, factor: float) -> None:
    background = components.background
    _add(frames, background.footprints, background.traces[:, time], factor)


def _add_cells(
    frames: Floats, components: Components, time: slice, raw: bool, factor: float
) -> None:
    traces = components.traces[:, time]
    traces = traces + components.residuals[:, time] if raw else traces
    _add(frames, components.footprints, traces, factor)


def _add(frames: Floats, footprints: sp.csc_array, traces: Floats, factor: float) -> None:
    """Add to frames (time, y, x) a multiple of footprints times traces (cell, time)."""
    weights = np.ascontiguousarray(traces.T, dtype=np.float32) * np.float32(factor)
    pixels = frames.reshape(len(frames), -1)
    _scatter(pixels, footprints.data, footprints.indices, footprints.indptr, weights)


@njit(nogil=True, cache=True)
def _scatter(frames, data, indices, indptr, weights):  # type: ignore[no-untyped-def]
    """Add sparse columns (pixel, cell) times weights (time, cell) to frames (time, pixel)."""
    for time in range(len(frames)):
        frame = frames[time]
        for cell in range(len(indptr) - 1):
            weight = weights[time, cell]
            if weight != 0:
                for entry in range(indptr[cell], indptr[cell + 1]):
                    frame[indices[entry]] += weight * data[entry]
