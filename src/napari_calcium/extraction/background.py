"""The background: a static image, and neuropil that varies smoothly over the field."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

__all__ = ["neuropil_footprints"]


def neuropil_footprints(image: NDArray[np.float32], spacing: float) -> sp.csc_array:
    """Return overlapping neuropil components, one around each node of a grid.

    Each is the image under a bilinear window that is 1 at its node and 0 at the next ones, so that
    together they make the image, and neuropil that changes over the field is followed.

    Parameters
    ----------
    image : ndarray (y, x)
        Brightness of the neuropil, not negative.
    spacing : float
        Distance of the nodes, px; at least one component.

    Returns
    -------
    scipy.sparse.csc_array (pixel, n), float32

    Examples
    --------
    >>> footprints = neuropil_footprints(np.ones((37, 53), np.float32), 30)
    >>> footprints.shape, bool(np.allclose(footprints.sum(axis=1), 1))
    ((1961, 6), True)
    """
    rows, columns = (_windows(size, spacing) for size in image.shape)
    windows = sp.coo_array(sp.kron(sp.coo_array(rows), sp.coo_array(columns)))
    node, pixel = windows.coords
    weights = (windows.data * image.ravel()[pixel]).astype(np.float32)
    footprints = sp.csc_array((weights, (pixel, node)), shape=windows.shape[::-1])
    footprints.eliminate_zeros()
    return footprints


def _windows(size: int, spacing: float) -> NDArray[np.float64]:
    """Return triangular windows over an axis that sum to 1 everywhere."""
    nodes = np.linspace(0, size - 1, max(1, round(size / spacing)) + 1)
    if len(nodes) == 2 and size < spacing:
        return np.ones((1, size))
    step = nodes[1] - nodes[0]
    windows: NDArray[np.float64] = np.maximum(
        0, 1 - np.abs(np.arange(size) - nodes[:, None]) / step
    )
    return windows
