"""A recording: frames as a Dask array, with the rate and the scale they were taken at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import scipy.sparse as sp
from dask.delayed import Delayed, delayed
from numba import njit
from numpy.typing import NDArray

__all__ = ["Movie", "blocks", "project", "weighted_sums"]

FRAMES_PER_TASK = 256
"""Frames one task of a pass over the movie takes; the cut of the work, whatever the chunks."""


@dataclass(frozen=True)
class Movie:
    """Frames, never computed, and what turns them into seconds and micrometres.

    Parameters
    ----------
    frames : dask.array.Array (time, y, x)
        The recording, in the type it was recorded in.
    frame_rate : float
        Frames per second, Hz.
    pixel_size : float, optional
        Length of a pixel's side, um; 0 where unknown.

    Raises
    ------
    ValueError
        If `frames` is not a Dask array of three axes or the frame rate is not above 0.

    Examples
    --------
    >>> import dask.array as da
    >>> movie = Movie(da.zeros((60, 37, 53), dtype="uint16"), frame_rate=30.0)
    >>> movie.n_frames, movie.field, movie.duration
    (60, (37, 53), 2.0)
    """

    frames: da.Array
    frame_rate: float
    pixel_size: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.frames, da.Array) or self.frames.ndim != 3:
            raise ValueError("frames must be a dask array of the axes (time, y, x)")
        if not self.frame_rate > 0:
            raise ValueError(f"frame_rate is {self.frame_rate} Hz; it must be above 0 Hz")

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return int(self.frames.shape[0])

    @property
    def field(self) -> tuple[int, int]:
        """Field of view, (y, x), in pixels."""
        return int(self.frames.shape[1]), int(self.frames.shape[2])

    @property
    def duration(self) -> float:
        """Length of the recording in seconds."""
        return self.n_frames / self.frame_rate

    def read(self, time: slice, y: slice = slice(None), x: slice = slice(None)) -> Delayed:
        """Return a lazy ndarray of one box, which reads no more than that box.

        The box is cut out of the graph before it runs (`dask.optimize`), so a tile of a movie on
        disk is read chunk by chunk and other parts of its blocks are never in memory.
        """
        (box,) = dask.optimize(self.frames[time, y, x])
        return delayed(np.asarray, pure=True)(box)


def blocks(n: int, size: int = FRAMES_PER_TASK) -> Iterator[slice]:
    """Cut ``range(n)`` into consecutive slices of `size`, the last one shorter.

    Examples
    --------
    >>> list(blocks(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def project(movie: Movie, footprints: Delayed) -> Delayed:
    """Return the lazy product of footprints and movie, ``footprints.T @ pixels``.

    Parameters
    ----------
    movie : Movie
        The recording.
    footprints : Delayed of scipy.sparse.csc_array (pixel, cell)
        Weights, pixel = y * width + x.

    Returns
    -------
    Delayed of ndarray (cell, time), float32
        One pass over the movie, a task per `FRAMES_PER_TASK` frames.
    """
    parts = [
        delayed(_project_block, pure=True)(movie.read(block), footprints)
        for block in blocks(movie.n_frames)
    ]
    return delayed(_join_time, pure=True)(parts)


def weighted_sums(movie: Movie, weights: Delayed, support: Delayed) -> Delayed:
    """Return lazily, for each cell, the weighted sum of frames at the pixels of its support.

    Parameters
    ----------
    movie : Movie
        The recording.
    weights : Delayed of ndarray (cell, time)
        Weight of each frame for each cell.
    support : Delayed of scipy.sparse.csc_array (pixel, cell)
        Where a value is wanted; only its pattern is used.

    Returns
    -------
    Delayed of scipy.sparse.csc_array (pixel, cell), float32
        ``pixels @ weights.T`` at the support's pattern; one pass over the movie.
    """
    parts = [
        delayed(_sums_block, pure=True)(movie.read(block), weights, block.start, support)
        for block in blocks(movie.n_frames)
    ]
    while len(parts) > 1:  # a tree of fixed shape: the same rounding whatever the workers
        parts = [delayed(_add, pure=True)(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return delayed(_with_data, pure=True)(support, parts[0])


def _project_block(frames: NDArray[Any], footprints: sp.csc_array) -> NDArray[np.float32]:
    pixels = frames.reshape(len(frames), -1).astype(np.float32)
    return np.ascontiguousarray((pixels @ footprints).T, dtype=np.float32)


def _join_time(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate(parts, axis=1)


def _sums_block(
    frames: NDArray[Any], weights: NDArray[np.float32], start: int, support: sp.csc_array
) -> NDArray[np.float64]:
    pixels = np.ascontiguousarray(frames.reshape(len(frames), -1).T, dtype=np.float32)
    local = np.ascontiguousarray(weights[:, start : start + len(frames)], dtype=np.float32)
    sums = np.zeros(support.nnz)
    _sparse_dot(pixels, local, support.indptr, support.indices, sums)
    return sums


@njit(nogil=True, cache=True, fastmath=True)
def _sparse_dot(pixels, weights, indptr, indices, sums):  # type: ignore[no-untyped-def]
    """Dot products of pixel rows with weight rows at the pattern (indices, indptr)."""
    for cell in range(len(indptr) - 1):
        weight = weights[cell]
        for entry in range(indptr[cell], indptr[cell + 1]):
            row = pixels[indices[entry]]
            total = np.float32(0.0)
            for frame in range(len(weight)):
                total += row[frame] * weight[frame]
            sums[entry] = total


def _add(first: NDArray[np.float64], second: NDArray[np.float64] | None = None) -> Any:
    return first if second is None else first + second


def _with_data(support: sp.csc_array, data: NDArray[np.float64]) -> sp.csc_array:
    parts = (data.astype(np.float32), support.indices, support.indptr)
    return sp.csc_array(parts, shape=support.shape)
