"""The light behind cells: the background under each, or a ring around it.

Source extraction has taken neighbours and background away from a cell's trace, so the background
under its footprint is put back into F0. The ring is the older way: the mean of a cell's pixels
less a part of the mean of the pixels around it (Kerlin et al. 2010, 10.1016/j.neuron.2010.08.002).
It needs the movie, and neighbours' light stays in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray
from scipy import ndimage

from napari_calcium.components import Components
from napari_calcium.errors import InputError
from napari_calcium.footprints import cropped
from napari_calcium.movie import Movie, project

__all__ = [
    "Fluorescence",
    "above_background",
    "above_ring",
    "background_under_cells",
    "ring_corrected",
    "ring_weights",
    "rings",
]

Floats = NDArray[np.float32]

EVERY_CELL = slice(None)


class Fluorescence(NamedTuple):
    """Light of cells, in one unit.

    Parameters
    ----------
    raw : ndarray (cell, time)
        With its noise.
    denoised : ndarray (cell, time)
        Without it; of another offset.
    behind : ndarray (cell, time), optional
        What `raw` is without but F0 is to have: the background under the cell. None: `raw` is
        complete.
    """

    raw: NDArray[np.floating]
    denoised: NDArray[np.floating]
    behind: NDArray[np.floating] | None = None


def background_under_cells(components: Components, cells: slice = EVERY_CELL) -> Floats:
    """Return the background's fluorescence in each footprint, in the unit of the traces.

    The coefficient a cell would need to explain the background in its own pixels,
    ``footprint @ background / (footprint @ footprint)``; footprints are of unit norm, so the
    background is weighted exactly as the cell's own fluorescence is.

    Parameters
    ----------
    components : Components
        Cells and background.
    cells : slice, optional
        Of which cells.

    Returns
    -------
    ndarray (cell, time), float32
        Background under each cell; 0 for a footprint that is 0 everywhere.

    Examples
    --------
    >>> import numpy as np, scipy.sparse as sp
    >>> from napari_calcium.components import Background
    >>> footprint = sp.csc_array(np.array([[0.6], [0.8], [0.0]]))
    >>> background = Background(sp.csc_array(np.ones((3, 1))), np.full((1, 2), 10.0))
    >>> zeros = np.zeros((1, 2))
    >>> cells = Components(footprint, (1, 3), zeros, zeros, zeros, background, np.arange(1))
    >>> background_under_cells(cells).round(3)
    array([[14., 14.]], dtype=float32)
    """
    footprints = components.footprints[:, cells]
    _, energy = _sums(footprints)
    overlap = sp.csr_array(footprints.T @ components.background.footprints).astype(np.float64)
    overlap.sort_indices()  # sparse, in order: each cell is summed as if it were alone
    overlap.data = overlap.data / np.repeat(
        np.where(energy > 0, energy, 1), np.diff(overlap.indptr)
    )
    return np.asarray(overlap.astype(np.float32) @ components.background.traces, np.float32)


def above_background(
    components: Components, cells: slice = EVERY_CELL, dark_level: float = 0.0
) -> Fluorescence:
    """Return the light of cells above their background, and the background under them.

    Parameters
    ----------
    components : Components
        Cells and background.
    cells : slice, optional
        Of which cells.
    dark_level : float
        What a pixel reads without light, counts; it is no part of the background.

    Returns
    -------
    Fluorescence
        In the unit of the traces: counts times pixels of a footprint of unit norm.

    Examples
    --------
    >>> from napari_calcium.components import Background
    >>> nothing = Background(sp.csc_array((1, 0)), np.zeros((0, 2)))
    >>> footprint, trace, ones = sp.csc_array([[1.0]]), np.array([[0.0, 5.0]]), np.ones((1, 2))
    >>> cells = Components(footprint, (1, 1), trace, ones, trace, nothing, np.arange(1))
    >>> above_background(cells).raw
    array([[1., 6.]], dtype=float32)
    """
    denoised = components.traces[cells]
    behind = background_under_cells(components, cells)
    if dark_level:
        total, energy = _sums(components.footprints[:, cells])
        behind -= (dark_level * total / np.where(energy > 0, energy, 1)).astype(np.float32)[:, None]
    with np.errstate(over="ignore", invalid="ignore"):  # then it is not known
        raw = denoised + components.residuals[cells]
    return Fluorescence(raw, denoised, behind)


def above_ring(
    components: Components,
    corrected: Floats,
    cells: slice = EVERY_CELL,
    dark_level: float = 0.0,
) -> Fluorescence:
    """Return the light of cells less that of their rings, counts per pixel.

    Parameters
    ----------
    components : Components
        Cells.
    corrected : ndarray (cell, time)
        What `ring_corrected` gave, of all cells.
    cells : slice, optional
        Of which cells.
    dark_level : float
        What of `corrected` is no light, counts.

    Returns
    -------
    Fluorescence
        The denoised traces in counts per pixel: what a footprint w of trace C adds to the mean
        weighted by w is ``C * sum(w**2) / sum(w)``.

    Examples
    --------
    >>> from napari_calcium.components import Background
    >>> nothing = Background(sp.csc_array((2, 0)), np.zeros((0, 1)))
    >>> footprint, trace = sp.csc_array([[0.6], [0.8]]), np.array([[14.0]])
    >>> cells = Components(footprint, (1, 2), trace, trace, trace, nothing, np.arange(1))
    >>> above_ring(cells, np.array([[10.0]])).denoised
    array([[10.]], dtype=float32)
    """
    total, energy = _sums(components.footprints[:, cells])
    scale = (energy / np.where(total > 0, total, 1)).astype(np.float32)
    light = corrected[cells] - np.float32(dark_level) if dark_level else corrected[cells]
    return Fluorescence(light, components.traces[cells] * scale[:, None])


def ring_corrected(
    movie: Movie, components: Delayed, factor: float, gap: int, n_pixels: int
) -> Delayed:
    """Return lazily the mean of each cell's pixels less a part of its ring's.

    Parameters
    ----------
    movie : Movie
        The registered recording, of one plane.
    components : Delayed of Components
        Cells.
    factor : float
        Part of the ring's mean that is taken away (Suite2p: neucoeff).
    gap, n_pixels : int
        See `rings`.

    Returns
    -------
    Delayed of ndarray (cell, time), float32
        ``sum(w * movie) / sum(w) - factor * mean(ring)``, counts per pixel; 0 for a footprint that
        is 0 everywhere. One pass over the movie.
    """
    weights = delayed(ring_weights, pure=True)(components, factor, gap, n_pixels)
    return project(movie, weights)


def ring_weights(components: Components, factor: float, gap: int, n_pixels: int) -> sp.csc_array:
    """Return by what pixels are weighted for the light of a cell less that of its ring.

    Parameters
    ----------
    components : Components
        Cells.
    factor : float
        Part of the ring's mean that is taken away (Suite2p: neucoeff).
    gap, n_pixels : int
        See `rings`.

    Returns
    -------
    scipy.sparse.csc_array (pixel, cell), float32
        Of the sum ``1 - factor``; nothing for a footprint that is 0 everywhere.

    Raises
    ------
    InputError
        If footprints cover the whole field.

    Examples
    --------
    >>> from napari_calcium.components import Background
    >>> nothing = Background(sp.csc_array((5, 0)), np.zeros((0, 1)))
    >>> image, trace = sp.csc_array(np.array([[0, 1.0, 0, 0, 0]]).T), np.zeros((1, 1))
    >>> cells = Components(image, (1, 5), trace, trace, trace, nothing, np.arange(1))
    >>> ring_weights(cells, factor=0.5, gap=1, n_pixels=2).toarray()[:, 0]
    array([ 0.  ,  1.  ,  0.  , -0.25, -0.25], dtype=float32)
    """
    total, _ = _sums(components.footprints)
    inverse = sp.diags_array(np.where(total > 0, 1 / np.where(total > 0, total, 1), 0))
    around = rings(components.footprints, components.shape, gap, n_pixels)
    sizes = np.maximum(np.diff(around.indptr), 1)
    weights = components.footprints @ inverse - around @ sp.diags_array(factor / sizes)
    return sp.csc_array(weights, dtype=np.float32)


def rings(
    footprints: sp.csc_array, shape: tuple[int, int], gap: int, n_pixels: int
) -> sp.csc_array:
    """Return the ring around each cell: the nearest pixels that are of no cell.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
        Pixels of a weight above 0 are of a cell.
    shape : tuple of int
        Field of view, (y, x), px.
    gap : int
        Pixels of at most this distance from the cell are left out (Suite2p:
        inner_neuropil_radius), px; they are taken only where there are no others.
    n_pixels : int
        Pixels a ring has at least (Suite2p: min_neuropil_pixels): it is as wide as that takes, the
        same in all directions. Fewer if the field has no more.

    Returns
    -------
    scipy.sparse.csc_array (pixel, cell), float32
        Ones; nothing for a footprint that is 0 everywhere.

    Raises
    ------
    InputError
        If footprints cover the whole field.

    Examples
    --------
    >>> cell = sp.csc_array((np.ones(1), (np.array([3 * 9 + 4]), np.zeros(1, int))), shape=(63, 1))
    >>> print(rings(cell, (7, 9), gap=1, n_pixels=8).toarray().reshape(7, 9)[1:6, 2:7].astype(int))
    [[0 0 1 0 0]
     [0 1 0 1 0]
     [1 0 0 0 1]
     [0 1 0 1 0]
     [0 0 1 0 0]]
    """
    free = np.ones(shape[0] * shape[1], bool)
    free[footprints.indices[footprints.data > 0]] = False
    if not free.any() and footprints.nnz:
        raise InputError(
            "neuropil is 'ring' but every pixel of the field belongs to a footprint; "
            "set neuropil to 'background'"
        )
    around = [
        _ring(footprints, shape, index, free.reshape(shape), gap, n_pixels)
        for index in range(footprints.shape[1])
    ]
    indptr = np.cumsum([0, *map(len, around)])
    pixels = np.concatenate([np.zeros(0, np.int64), *around])
    return sp.csc_array((np.ones(len(pixels), np.float32), pixels, indptr), footprints.shape)


def _ring(
    footprints: sp.csc_array,
    shape: tuple[int, int],
    index: int,
    free: NDArray[np.bool_],
    gap: int,
    n_pixels: int,
) -> NDArray[np.int64]:
    """Return the pixels of one ring, looked for in a box that grows until they are complete."""
    margin = gap + int(np.ceil(np.sqrt(n_pixels)))
    while True:
        box, image = cropped(footprints, shape, index, margin)
        if not image.any():
            return np.zeros(0, np.int64)
        distance = np.where(free[box], ndimage.distance_transform_edt(image <= 0), np.inf)
        beyond = np.sort(distance[(distance > gap) & (distance < np.inf)])
        complete = len(beyond) >= n_pixels and beyond[n_pixels - 1] <= margin
        if complete or image.shape == shape:  # what is nearer than the margin is in the box
            break
        margin *= 2
    if not len(beyond):
        gap, beyond = 0, np.sort(distance[distance < np.inf])
    reach = beyond[min(n_pixels, len(beyond)) - 1]
    y, x = np.nonzero((distance > gap) & (distance <= reach))
    return np.asarray((y + box[0].start) * shape[1] + x + box[1].start, np.int64)


def _sums(footprints: sp.csc_array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sum and the sum of squares of each footprint."""
    doubles = sp.csc_array(footprints, dtype=np.float64)
    total: NDArray[np.float64] = np.asarray(doubles.sum(axis=0)).ravel()
    return total, np.asarray(doubles.power(2).sum(axis=0)).ravel()
