"""Spatial correlation: whether the movie looks like the footprint when the cell is active.

After Giovannucci et al. 2019, 10.7554/eLife.38173: the footprint is compared with the mean of the
movie at the cell's largest transients, without the background and the neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from dask.delayed import Delayed, delayed
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage

from napari_calcium.components import Components
from napari_calcium.footprints import cosines, dilated_support
from napari_calcium.movie import Movie, summed

__all__ = ["correlations", "transient_weights", "triggered_images"]

TRANSIENTS = 10
OVERLAP = 0.1  # cosine above which another cell counts as a neighbour
DILATION = 2  # px around the footprint that are compared too


def triggered_images(movie: Movie, components: Delayed, decay_time: float) -> Delayed:
    """Average the movie at each cell's largest transients, in one pass for all cells.

    Parameters
    ----------
    movie : Movie
        The registered movie the cells were found in.
    components : Delayed of Components
        The cells.
    decay_time : float
        Time a transient lasts, s; its frames are averaged.

    Returns
    -------
    Delayed of scipy.sparse.csc_array (pixel, cell), float32
        In the movie's unit, without what background and other cells explain, on the pixels within
        two of the footprint; 0 for a cell without a transient. A task holds one run of frames in
        the type they were recorded in.
    """
    window = max(1, round(decay_time * movie.frame_rate))
    weights = delayed(transient_weights, pure=True)(components, window)
    support = delayed(_support, pure=True)(components)
    parts = [
        movie.apply(_sums_block, weights, block.start, support, time=block)
        for block in movie.blocks()
    ]
    return delayed(_unexplained, pure=True)(components, weights, support, summed(parts))


def transient_weights(components: Components, window: int) -> sp.csr_array:
    """Return the frames of each cell's largest transients as weights that sum to 1.

    Frames in which an overlapping cell is active are left out, unless nothing else is left.

    Parameters
    ----------
    components : Components
        The cells.
    window : int
        Frames taken of each transient.

    Returns
    -------
    scipy.sparse.csr_array (cell, time), float32
        With sorted indices; a row without any for a cell that has no transient.
    """
    overlap = sp.csr_array(cosines(components.footprints))
    noise = np.std(components.residuals, axis=1, keepdims=True)
    active = components.traces > 2 * noise
    rows = []
    for cell in range(components.n_cells):
        raw = components.traces[cell] + components.residuals[cell]
        smooth = ndimage.uniform_filter1d(raw, window, mode="nearest", origin=-(window // 2))
        row = slice(*overlap.indptr[cell : cell + 2])
        others = overlap.indices[row][overlap.data[row] > OVERLAP]
        others = others[others != cell]
        free = ~active[others].any(axis=0)
        rows.append(_largest(smooth, free if free.any() else np.ones_like(free), window))
    return _stacked(rows, components.traces.shape[1])


def correlations(components: Components, images: sp.csc_array) -> NDArray[np.float32]:
    """Correlate footprints with images of the same cells, each on the pixels of its image.

    Parameters
    ----------
    components : Components
        The cells.
    images : scipy.sparse.csc_array (pixel, cell)
        As `triggered_images` makes them; a pixel counts where an entry is stored.

    Returns
    -------
    ndarray (cell,), float32
        Pearson's correlation, -1 to 1; 0 where there is nothing to correlate.
    """
    found = np.zeros(components.n_cells, np.float32)
    for cell in range(components.n_cells):
        entries = slice(*images.indptr[cell : cell + 2])
        footprint = components.footprint(cell).ravel()[images.indices[entries]]
        found[cell] = _pearson(footprint, images.data[entries])
    return found


def _largest(
    trace: NDArray[np.float32], free: NDArray[np.bool_], window: int
) -> NDArray[np.float32]:
    """Weigh the free frames of the windows with the largest values, none overlapping another."""
    left = np.where(free, trace, -np.inf)
    weights = np.zeros(len(trace), np.float32)
    for _ in range(TRANSIENTS):
        peak = int(np.argmax(left))
        if not left[peak] > 0:
            break
        weights[peak : peak + window] += 1
        left[max(0, peak - window) : peak + window] = -np.inf
    weights *= free
    return weights / max(float(weights.sum()), 1.0)


def _stacked(rows: list[NDArray[np.float32]], n_frames: int) -> sp.csr_array:
    indices = [np.flatnonzero(row) for row in rows]
    indptr = np.cumsum([0, *map(len, indices)])
    data = [row[kept] for row, kept in zip(rows, indices, strict=True)]
    empty = np.zeros(0, np.float32)
    parts = (np.concatenate([empty, *data]), np.concatenate([empty, *indices]).astype(int), indptr)
    return sp.csr_array(parts, shape=(len(rows), n_frames))


def _support(components: Components) -> sp.csc_array:
    return dilated_support(components.footprints, components.shape, DILATION)


def _sums_block(
    frames: NDArray[Any], weights: sp.csr_array, start: int, support: sp.csc_array
) -> NDArray[np.float64]:
    """Sum the weighted frames of one run at the pixels of each cell's support."""
    native = np.ascontiguousarray(frames, frames.dtype.newbyteorder("="))
    sums = np.zeros(support.nnz)
    parts = (weights.data, weights.indices, weights.indptr, support.indices, support.indptr)
    _add_frames(native.reshape(len(frames), -1), start, *parts, sums)
    return sums


@njit(nogil=True, cache=True)
def _add_frames(frames, start, weights, times, rows, pixels, columns, sums):  # type: ignore[no-untyped-def]
    """Add each cell's frames (time, pixel) to its sums, where they are of this run."""
    for cell in range(len(rows) - 1):
        for entry in range(rows[cell], rows[cell + 1]):
            frame = times[entry] - start
            if 0 <= frame < len(frames):
                row, weight = frames[frame], np.float64(weights[entry])
                for place in range(columns[cell], columns[cell + 1]):
                    sums[place] += weight * row[pixels[place]]


def _unexplained(
    components: Components, weights: sp.csr_array, support: sp.csc_array, sums: NDArray[np.float64]
) -> sp.csc_array:
    """Return the images less what background and other cells explain of them."""
    background = components.background
    parts = sp.hstack([components.footprints, background.footprints], format="csr")
    near = sp.csr_array(support.T @ parts)  # cell and what overlaps with it
    near.sort_indices()
    images = np.zeros(support.nnz, np.float32)
    for cell in range(components.n_cells):
        row = slice(*weights.indptr[cell : cell + 2])
        frames, weight = weights.indices[row], weights.data[row]
        others = near.indices[slice(*near.indptr[cell : cell + 2])]
        explained = np.zeros(parts.shape[1])
        explained[others] = _activity(components, others, frames) @ weight
        explained[cell] = 0
        entries = slice(*support.indptr[cell : cell + 2])
        images[entries] = sums[entries] - parts[support.indices[entries]] @ explained
    return sp.csc_array((images, support.indices, support.indptr), shape=support.shape)


def _activity(
    components: Components, parts: NDArray[np.integer], frames: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Return raw traces of cells, and traces of the background numbered after them, at frames."""
    cells = parts[parts < components.n_cells]
    raw = components.traces[np.ix_(cells, frames)] + components.residuals[np.ix_(cells, frames)]
    rest = np.ix_(parts[parts >= components.n_cells] - components.n_cells, frames)
    return np.concatenate([raw, components.background.traces[rest]])


def _pearson(first: NDArray[np.float32], second: NDArray[np.float64]) -> float:
    if first.size < 2:
        return 0.0
    a, b = first - first.mean(), second - second.mean()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else 0.0
