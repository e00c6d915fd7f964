"""The background: a static image, and neuropil that varies smoothly over the field."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy import linalg

__all__ = ["low_rank_background", "neuropil_footprints", "shared_background"]

Floats = NDArray[np.float32]

SWEEPS = 30
"""Times that images and traces of a low-rank background are improved in turn."""


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


def low_rank_background(frames: Floats, n: int) -> tuple[Floats, Floats]:
    """Factorize what varies in some frames into non-negative images and their traces.

    Semi-non-negative factorization, from the largest singular vectors: an image's weights are not
    negative, its trace is about its mean.

    Parameters
    ----------
    frames : ndarray (bin, y, x), float32
        About their mean, cells taken out.
    n : int
        Components; fewer where the frames have no more.

    Returns
    -------
    images : ndarray (n, y, x)
        Of unit norm.
    traces : ndarray (n, bin)

    References
    ----------
    Ding, Li and Jordan 2010, 10.1109/TPAMI.2008.277 (semi-NMF).

    Examples
    --------
    >>> frames = np.sin(np.arange(40, dtype=np.float32))[:, None, None] * np.ones((1, 37, 53))
    >>> images, traces = low_rank_background(frames.astype(np.float32), 1)
    >>> bool(np.allclose(traces[0, :, None, None] * images[0], frames, atol=1e-3))
    True
    """
    flat = frames.reshape(len(frames), math.prod(frames.shape[1:]))
    if not flat.any():
        return np.zeros((0, *frames.shape[1:]), np.float32), np.zeros((0, len(frames)), np.float32)
    values, vectors = linalg.eigh((flat @ flat.T).astype(np.float64))
    order = np.argsort(-values)[: min(n, int((values > 1e-6 * values[-1]).sum()))]
    traces = vectors[:, order].T.astype(np.float32)
    images = flat.T @ traces.T  # (pixel, n): the singular vectors, to be made non-negative
    traces *= np.sign(images.sum(axis=0) + 1e-30)[:, None]
    images = np.maximum(images * np.sign(images.sum(axis=0) + 1e-30), 0)
    for _ in range(SWEEPS):
        traces = _traces_of(images, flat)
        _improve(images, flat.T @ traces.T, traces @ traces.T)
    norms = np.maximum(np.linalg.norm(images, axis=0), 1e-30)
    traces = _traces_of(images, flat) * norms[:, None]
    return (images / norms).T.reshape(-1, *frames.shape[1:]).astype(np.float32), traces


def shared_background(traces: Sequence[Floats], n: int) -> Floats:
    """Say how the backgrounds of patches make up a few that all of the field shares.

    Parameters
    ----------
    traces : sequence of ndarray (n, bin)
        Of each patch.
    n : int
        Components of the field.

    Returns
    -------
    ndarray (component of a patch, component of the field)
        Weights, not negative.

    Examples
    --------
    >>> shared_background([np.array([[1, -1, 0]], np.float32)] * 3, 1).round(2).ravel()
    array([0.58, 0.58, 0.58], dtype=float32)
    """
    stacked = np.concatenate(list(traces)).T[:, :, None]  # each component is a pixel
    weights, _ = low_rank_background(np.ascontiguousarray(stacked), n)
    return np.asarray(weights[:, :, 0].T)


def _traces_of(images: Floats, flat: Floats) -> Floats:
    """Return the traces that fit the frames best, the images given."""
    gram = (images.T @ images).astype(np.float64)
    gram += 1e-6 * max(float(np.trace(gram)), 1e-30) * np.eye(len(gram))
    solved = linalg.solve(gram, (images.T @ flat.T).astype(np.float64), assume_a="pos")
    return np.asarray(solved, np.float32)


def _improve(images: Floats, products: Floats, gram: Floats) -> None:
    """One sweep over the images, each given the others."""
    for k in range(images.shape[1]):
        slope = products[:, k] - images @ gram[:, k]
        images[:, k] = np.maximum(images[:, k] + slope / max(float(gram[k, k]), 1e-30), 0)
