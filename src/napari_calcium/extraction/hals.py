"""Non-negative traces and footprints by HALS, hierarchical alternating least squares.

The movie is footprints times traces; with one of the two known, the other is the non-negative least
squares solution of every frame, or of every pixel. HALS comes to it by giving each component in
turn its best non-negative values while the others are held (Cichocki and Phan 2009,
10.1587/transfun.E92.A.708). It needs no pixels, only products with them, which are one pass over
the movie, and the small Gram matrix, so that any movie can be larger than memory.

For those who know CaImAn: `hals_traces` is ``HALS4activity``, `hals_footprints` ``HALS4shapes``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from dask.delayed import Delayed, delayed
from numba import njit
from numpy.typing import NDArray

from napari_calcium.extraction.spatial import update_footprints
from napari_calcium.movie import Movie, project, weighted_sums

__all__ = ["hals_footprints", "hals_traces", "movie_footprints", "movie_traces"]

Floats = NDArray[np.float32]

SWEEPS = 20
"""Times that each trace is updated: 1e-3 of the solution for somata that overlap by a half."""

FRAMES_AT_ONCE = 256
"""Frames whose traces stay in the cache while they are swept over."""


def hals_traces(
    products: NDArray[np.floating],
    gram: NDArray[np.floating] | sp.sparray,
    traces: NDArray[np.floating] | None = None,
    *,
    sweeps: int = SWEEPS,
    nonnegative: bool = True,
) -> Floats:
    """Return the traces that fit the movie best, given the footprints (CaImAn: HALS4activity).

    Minimises ``sum((Y - A @ C) ** 2)`` over the traces ``C``, of which no sweep makes it larger.

    Parameters
    ----------
    products : ndarray (cell, time)
        ``A.T @ Y``, as `napari_calcium.movie.project` gives.
    gram : ndarray or sparse array (cell, cell)
        ``A.T @ A``; as many steps are made as it has stored entries.
    traces : ndarray (cell, time), optional
        Where to start, left as it is; by default where no two footprints overlap.
    sweeps : int
        Times that each trace is updated.
    nonnegative : bool
        Whether traces are kept at 0 or above; if not, this is least squares without bounds
        (Gauss-Seidel), which `napari_calcium.extraction.temporal.demixed_traces` solves at once.

    Returns
    -------
    ndarray (cell, time), float32
        A component without pixels gets zeros; a frame with NaN products gives NaN in the components
        that overlap.

    Raises
    ------
    ValueError
        If products, Gram matrix and traces are not of the same cells and frames.

    References
    ----------
    Cichocki and Phan 2009, 10.1587/transfun.E92.A.708.

    Examples
    --------
    >>> footprints = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> movie = footprints @ np.array([[1.0, 2.0], [5.0, 0.0]])
    >>> hals_traces(footprints.T @ movie, footprints.T @ footprints).round(3)
    array([[1., 2.],
           [5., 0.]], dtype=float32)
    """
    columns = sp.csc_array(gram, dtype=np.float64)
    products = np.ascontiguousarray(products)
    if products.ndim != 2 or columns.shape != (len(products), len(products)):
        raise ValueError(f"products {products.shape} are (cell, time), the gram {columns.shape}")
    energy = columns.diagonal()
    start = _alone(products, energy) if traces is None else np.asarray(traces)
    if start.shape != products.shape:
        raise ValueError(f"traces {start.shape} and products {products.shape} differ in shape")
    solved = np.array(start, np.float32, order="C")
    parts = (columns.data, columns.indices, columns.indptr, energy)
    _sweep(products, *parts, solved, sweeps, nonnegative, FRAMES_AT_ONCE)
    return solved


def _alone(products: NDArray[np.floating], energy: NDArray[np.float64]) -> NDArray[np.floating]:
    """Return the traces of components that do not overlap."""
    return products / np.where(energy > 0, energy, np.inf)[:, None]


@njit(nogil=True, cache=True, error_model="numpy")
def _sweep(  # type: ignore[no-untyped-def]
    products, data, indices, indptr, energy, traces, sweeps, nonnegative, size
):
    """Update each row of the traces in turn, a few frames at a time, each frame by itself."""
    n_cells, n_frames = traces.shape
    local, total = np.empty((n_cells, size)), np.empty(size)
    floor = 0.0 if nonnegative else -np.inf
    for first in range(0, n_frames, size):
        n = min(size, n_frames - first)
        for cell in range(n_cells):
            _start(local[cell, :n], traces[cell, first : first + n], energy[cell], floor)
        for _ in range(sweeps):
            for cell in range(n_cells):
                if energy[cell] > 0:
                    total[:n] = products[cell, first : first + n]
                    for entry in range(indptr[cell], indptr[cell + 1]):
                        if indices[entry] != cell:
                            _subtract(total[:n], local[indices[entry], :n], data[entry])
                    _take(local[cell, :n], total[:n], energy[cell], floor)
        for cell in range(n_cells):
            traces[cell, first : first + n] = local[cell, :n]


@njit(nogil=True, cache=True)
def _start(row, trace, energy, floor):  # type: ignore[no-untyped-def]
    """Fill a row with the trace above the floor, or with zeros if there are no pixels."""
    for frame in range(len(row)):
        row[frame] = max(trace[frame], floor) if energy > 0 else 0.0


@njit(nogil=True, cache=True)
def _subtract(total, row, factor):  # type: ignore[no-untyped-def]
    for frame in range(len(total)):
        total[frame] -= factor * row[frame]


@njit(nogil=True, cache=True, error_model="numpy")
def _take(row, total, energy, floor):  # type: ignore[no-untyped-def]
    """Fill a row with what is best for it, the others held; NaN stays NaN."""
    for frame in range(len(row)):
        value = total[frame] / energy
        row[frame] = floor if value < floor else value


def hals_footprints(
    sums: sp.csc_array,
    gram: NDArray[np.floating],
    penalty: NDArray[np.floating] | None = None,
) -> sp.csc_array:
    """Return the footprints that fit the movie best, given the traces (CaImAn: HALS4shapes).

    Minimises ``sum((Y - A @ C) ** 2)`` over the footprints ``A``, at the pixels of their support.

    Parameters
    ----------
    sums : scipy.sparse.csc_array (pixel, cell)
        ``Y @ C.T`` on the support, as `napari_calcium.movie.weighted_sums` gives.
    gram : ndarray (cell, cell)
        ``C @ C.T``.
    penalty : ndarray (entry,), optional
        For each stored entry of `sums` how much the product is lowered (L1); 0 by default.

    Returns
    -------
    scipy.sparse.csc_array (pixel, cell), float32
        Not negative, not scaled to unit norm; zeros for a trace that is 0 throughout.

    References
    ----------
    Cichocki and Phan 2009, 10.1587/transfun.E92.A.708.

    Examples
    --------
    >>> traces = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0]])
    >>> movie = np.array([[2.0, 0.0], [1.0, 3.0]]) @ traces
    >>> hals_footprints(sp.csc_array(movie @ traces.T), traces @ traces.T).toarray().round(2)
    array([[2., 0.],
           [1., 3.]], dtype=float32)
    """
    price = np.zeros(sums.nnz) if penalty is None else np.asarray(penalty, np.float64)
    return update_footprints(sums, np.asarray(gram, np.float64), price)


def movie_traces(
    movie: Movie,
    footprints: sp.csc_array | Delayed,
    *,
    sweeps: int = SWEEPS,
    nonnegative: bool = True,
) -> Delayed:
    """Return lazily the traces of given footprints, one pass over the movie.

    Parameters
    ----------
    movie : Movie
        The recording, of one plane.
    footprints : scipy.sparse.csc_array (pixel, cell), or Delayed of it
        Weights, pixel = y * width + x. They must explain the whole movie: a cell's light is told
        from the background's only where the background, its static image too, is among them.
    sweeps, nonnegative
        See `hals_traces`.

    Returns
    -------
    Delayed of ndarray (cell, time), float32

    Examples
    --------
    >>> import dask.array as da
    >>> footprints = sp.csc_array(np.array([[2.0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]]).T)
    >>> frames = np.outer([4, 5, 6], footprints[:, [0]].toarray()).reshape(3, 2, 3)
    >>> movie_traces(Movie(da.from_array(frames), 10.0), footprints).compute()
    array([[4., 5., 6.],
           [0., 0., 0.]], dtype=float32)
    """
    once = delayed(footprints, traverse=False)  # one key: not a copy in every task
    products = project(movie, once)
    return delayed(_solved_traces)(products, once, sweeps, nonnegative)


def _solved_traces(
    products: Floats, footprints: sp.csc_array, sweeps: int, nonnegative: bool
) -> Floats:
    exact = sp.csc_array(footprints, dtype=np.float64)
    return hals_traces(products, exact.T @ exact, sweeps=sweeps, nonnegative=nonnegative)


def movie_footprints(
    movie: Movie,
    traces: NDArray[np.floating] | Delayed,
    support: sp.csc_array | Delayed,
    penalty: NDArray[np.floating] | Delayed | None = None,
) -> Delayed:
    """Return lazily the footprints of given traces, one pass over the movie.

    Parameters
    ----------
    movie : Movie
        The recording, of one plane.
    traces : ndarray (cell, time), or Delayed of it
        Activity, the background's too; the static image is a component whose trace is 1.
    support : scipy.sparse.csc_array (pixel, cell), or Delayed of it
        Where each component may have weight; only its pattern is used.
    penalty
        See `hals_footprints`.

    Returns
    -------
    Delayed of scipy.sparse.csc_array (pixel, cell), float32

    Examples
    --------
    >>> import dask.array as da
    >>> traces, image = np.array([[4.0, 5.0, 6.0]]), np.array([2.0, 0, 0, 0, 0, 1])
    >>> movie = Movie(da.from_array(np.outer(traces, image).reshape(3, 2, 3)), 10.0)
    >>> movie_footprints(movie, traces, sp.csc_array(np.ones((6, 1)))).compute().toarray().ravel()
    array([2., 0., 0., 0., 0., 1.], dtype=float32)
    """
    once = delayed(traces, traverse=False)
    sums = weighted_sums(movie, once, delayed(support, traverse=False))
    return delayed(_solved_footprints)(sums, once, penalty)


def _solved_footprints(
    sums: sp.csc_array, traces: NDArray[np.floating], penalty: Any = None
) -> sp.csc_array:
    exact = np.asarray(traces, np.float64)
    return hals_footprints(sums, exact @ exact.T, penalty)
