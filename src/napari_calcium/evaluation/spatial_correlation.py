"""Spatial correlation: whether the movie looks like the footprint when the cell is active.

After Giovannucci et al. 2019, 10.7554/eLife.38173: the footprint is compared with the mean of the
movie at the cell's largest transients, without the background and the neighbours.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray
from scipy import ndimage

from napari_calcium.components import Components
from napari_calcium.footprints import cosines, dilated_support
from napari_calcium.movie import Movie, weighted_sums

__all__ = ["spatial_correlation"]

TRANSIENTS = 10
OVERLAP = 0.1  # cosine above which another cell counts as a neighbour
DILATION = 2  # px around the footprint that are compared too


def spatial_correlation(movie: Movie, components: Delayed, decay_time: float) -> Delayed:
    """Correlate every footprint with the movie at its cell's transients, in one pass.

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
    Delayed of ndarray (cell,), float32
        -1 to 1; 0 for a cell without a transient or without pixels.
    """
    window = max(1, round(decay_time * movie.frame_rate))
    weights = delayed(transient_weights, pure=True)(components, window)
    support = delayed(_support, pure=True)(components)
    sums = weighted_sums(movie, weights, support)
    return delayed(_correlations, pure=True)(components, weights, sums)


def transient_weights(components: Components, window: int) -> NDArray[np.float32]:
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
    ndarray (cell, time), float32
    """
    raw = components.traces + components.residuals
    smooth = ndimage.uniform_filter1d(raw, window, axis=1, mode="nearest", origin=-(window // 2))
    overlap = sp.csr_array(cosines(components.footprints))
    noise = np.std(components.residuals, axis=1, keepdims=True)
    active = components.traces > 2 * noise
    weights = np.zeros(raw.shape, np.float32)
    for cell, trace in enumerate(smooth):
        row = slice(*overlap.indptr[cell : cell + 2])
        others = overlap.indices[row][overlap.data[row] > OVERLAP]
        others = others[others != cell]
        free = ~active[others].any(axis=0)
        weights[cell] = _largest(trace, free if free.any() else np.ones_like(free), window)
    return weights


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


def _support(components: Components) -> sp.csc_array:
    return dilated_support(components.footprints, components.shape, DILATION)


def _correlations(
    components: Components, weights: NDArray[np.float32], sums: sp.csc_array
) -> NDArray[np.float32]:
    """Correlate footprints with the images, less what background and neighbours explain."""
    parts = sp.hstack([components.footprints, components.background.footprints], format="csr")
    raw = components.traces + components.residuals
    explained = np.concatenate([raw, components.background.traces]) @ weights.T
    correlations = np.zeros(components.n_cells, np.float32)
    for cell in range(components.n_cells):
        entries = slice(*sums.indptr[cell : cell + 2])
        pixels = sums.indices[entries]
        others = explained[:, cell].copy()
        others[cell] = 0
        image = sums.data[entries] - parts[pixels] @ others
        footprint = components.footprint(cell).ravel()[pixels]
        correlations[cell] = _pearson(footprint, image)
    return correlations


def _pearson(first: NDArray[np.float32], second: NDArray[np.float64]) -> float:
    if first.size < 2:
        return 0.0
    a, b = first - first.mean(), second - second.mean()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else 0.0
