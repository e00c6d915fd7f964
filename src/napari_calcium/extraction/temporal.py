"""Temporal update: the traces that fit the movie best, given the footprints."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy import linalg

__all__ = ["demixed_traces"]

RIDGE = 1e-6


def demixed_traces(footprints: sp.csc_array, products: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the least-squares traces of footprints that may overlap.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, component)
        Cells and background.
    products : ndarray (component, time)
        ``footprints.T @ pixels``, as `napari_calcium.movie.project` gives.

    Returns
    -------
    ndarray (component, time), float32
        Unconstrained, so that noise stays unbiased; a component without pixels gets zeros.

    Examples
    --------
    >>> footprints = sp.csc_array(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    >>> traces = np.array([[1.0, 2.0], [5.0, 0.0]])
    >>> demixed_traces(footprints, footprints.T @ (footprints @ traces)).round(3)
    array([[1., 2.],
           [5., 0.]], dtype=float32)
    """
    if footprints.shape[1] == 0:
        return np.zeros(products.shape, np.float32)
    doubles = footprints.astype(np.float64)
    gram = (doubles.T @ doubles).toarray()
    energy = np.sqrt(np.diagonal(gram))
    scale = np.where(energy > 0, 1 / np.maximum(energy, 1e-30), 0)
    unit = gram * scale[:, None] * scale + RIDGE * np.eye(len(gram))
    factor = linalg.cho_factor(unit)
    solved = linalg.cho_solve(factor, products * scale[:, None])
    return np.ascontiguousarray(solved * scale[:, None], dtype=np.float32)
