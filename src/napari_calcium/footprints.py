"""Footprints: sparse images of cells, one column each, pixel = y * width + x."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import find_contours

__all__ = [
    "areas",
    "at_border",
    "cosines",
    "cropped",
    "dilated_support",
    "elliptic_support",
    "masks",
    "outlines",
    "spreads",
    "trimmed_footprints",
    "unit",
]


def unit(footprints: sp.csc_array) -> sp.csc_array:
    """Scale every footprint to unit norm."""
    norms = np.sqrt(np.asarray(footprints.multiply(footprints).sum(axis=0)))
    return sp.csc_array(footprints @ sp.diags_array(1 / np.maximum(norms, 1e-12)))


def cosines(footprints: sp.csc_array) -> sp.csc_array:
    """Return the cosine of every pair of footprints, sparse (cell, cell)."""
    scaled = unit(footprints)
    return sp.csc_array(scaled.T @ scaled)


def areas(footprints: sp.csc_array) -> NDArray[np.int64]:
    """Return the number of pixels of each footprint above a fifth of its maximum."""
    return np.diff(masks(footprints).indptr).astype(np.int64)


def at_border(footprints: sp.csc_array, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which footprints reach the border of the field, (cell,): part of them may be beyond.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
        Weights; the pixels above a fifth of a footprint's maximum count.
    shape : tuple of int
        Field of view, (y, x), px.

    Examples
    --------
    >>> images = np.zeros((3, 4, 5))
    >>> images[0, 1, 2] = images[1, 2, 4] = images[2, 0, 1] = 1
    >>> at_border(sp.csc_array(images.reshape(3, -1).T), (4, 5))
    array([False,  True,  True])
    """
    inside = masks(footprints)
    y, x = np.divmod(inside.indices, shape[1])
    outermost = (y == 0) | (y == shape[0] - 1) | (x == 0) | (x == shape[1] - 1)
    cell = np.repeat(np.arange(inside.shape[1]), np.diff(inside.indptr))
    return np.bincount(cell, outermost, inside.shape[1]) > 0


def spreads(footprints: sp.csc_array, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return how far each footprint is spread out: 1 for a disc, more for a ragged shape.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
    shape : tuple of int
        Field of view, (y, x), px.

    Returns
    -------
    ndarray (cell,)
        Mean squared distance of the pixels above a fifth of the maximum from their centre, over
        that of a disc of the same area; 0 for an empty footprint.

    Examples
    --------
    >>> line = np.zeros((37, 53), np.float32)
    >>> line[5, 10:30] = 1
    >>> y, x = np.mgrid[:37, :53]
    >>> disc = np.float32((y - 18) ** 2 + (x - 30) ** 2 < 49)
    >>> both = sp.csc_array(np.stack([line.ravel(), disc.ravel()], axis=1))
    >>> spreads(both, (37, 53)).round(1)
    array([10.4,  1. ])
    """
    inside = masks(footprints)
    area = np.maximum(np.diff(inside.indptr), 1)
    total = np.zeros(inside.shape[1])
    for place in np.divmod(np.arange(inside.shape[0]), shape[1]):
        mean = inside.T @ place / area
        total += inside.T @ place**2 / area - mean**2
    return np.asarray(total * 2 * np.pi / area)


def masks(footprints: sp.csc_array, edge: float = 0.2) -> sp.csc_array:
    """Return ones where a footprint is above a part of its maximum, (pixel, cell).

    Examples
    --------
    >>> masks(sp.csc_array(np.array([[1.0, 0.0], [0.1, 2.0]]))).toarray()
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    counts = np.diff(footprints.indptr)
    largest = np.zeros(footprints.shape[1], footprints.dtype)
    full = np.flatnonzero(counts)
    if len(full):
        largest[full] = np.maximum.reduceat(footprints.data, footprints.indptr[:-1][full])
    inside = (footprints.data > edge * np.repeat(largest, counts)).astype(np.float32)
    parts = (inside, footprints.indices.copy(), footprints.indptr.copy())
    cut = sp.csc_array(parts, shape=footprints.shape)
    cut.eliminate_zeros()
    return cut


def dilated_support(footprints: sp.csc_array, shape: tuple[int, int], radius: int) -> sp.csc_array:
    """Return footprints of ones where a cell may reach: its footprint dilated by a disc."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = y * y + x * x <= radius * radius
    columns = []
    for index in range(footprints.shape[1]):
        box, image = cropped(footprints, shape, index, radius)
        grown = ndimage.binary_dilation(image > 0, disc)
        columns.append((grown.astype(np.float32), box))
    return placed(columns, shape)


def elliptic_support(footprints: sp.csc_array, shape: tuple[int, int], radius: int) -> sp.csc_array:
    """Return footprints of ones in the ellipse of each cell, grown by a radius.

    The ellipse has the centre, the directions and the second moments of the footprint: that of a
    disc is the disc.

    Examples
    --------
    >>> y, x = np.mgrid[:37, :53]
    >>> image = np.float32((y - 18) ** 2 / 64 + (x - 30) ** 2 / 16 < 1)
    >>> grown = elliptic_support(sp.csc_array(image.reshape(-1, 1)), (37, 53), 2)
    >>> [int(np.ptp(place)) for place in np.divmod(grown.indices, 53)]
    [18, 10]
    """
    columns = []
    for index in range(footprints.shape[1]):
        box, image = cropped(footprints, shape, index, radius + 2)
        columns.append((_ellipse(image, radius), box))
    return placed(columns, shape)


def _ellipse(image: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """Return ones in the ellipse of an image's pixels above a fifth of its maximum."""
    if not image.any():
        return image
    inside = np.stack(np.nonzero(image > 0.2 * image.max())).astype(np.float64)
    centre = inside.mean(axis=1)
    variances, axes = np.linalg.eigh(np.cov(inside, bias=True) + np.eye(2) / 12)
    offsets = np.indices(image.shape).reshape(2, -1) - centre[:, None]
    along = (axes.T @ offsets) / (2 * np.sqrt(variances) + radius)[:, None]
    return np.asarray(((along**2).sum(axis=0) <= 1).reshape(image.shape), np.float32)


def trimmed_footprints(
    footprints: sp.csc_array,
    shape: tuple[int, int],
    edge: float = 0.1,
    energy: float | None = None,
    connected: bool = True,
) -> sp.csc_array:
    """Keep of each footprint what stands out: its bright pixels, in one piece.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
    shape : tuple of int
        Field of view, (y, x), px.
    edge : float
        Weights above this part of the largest are kept, single bright pixels left out of account
        (median of 3 x 3).
    energy : float, optional
        Instead, the largest weights are kept that have this part of the sum of squares.
    connected : bool
        Whether only the part with the most weight is kept; thin parts stay where it is not.

    Examples
    --------
    >>> line = np.float32([[0, 5, 5, 0, 0, 3, 3, 0, 1, 0]])
    >>> column = sp.csc_array(line.T)
    >>> trimmed_footprints(column, (1, 10), 0.3, connected=False).toarray().ravel()
    array([0., 5., 5., 0., 0., 3., 3., 0., 0., 0.], dtype=float32)
    >>> trimmed_footprints(column, (1, 10), energy=0.9).toarray().ravel()
    array([0., 5., 5., 0., 0., 0., 0., 0., 0., 0.], dtype=float32)
    """
    columns = []
    for index in range(footprints.shape[1]):
        box, image = cropped(footprints, shape, index, 0)
        if image.size and image.max() > 0:
            kept = _bright(image, edge, connected) if energy is None else _strong(image, energy)
            kept = _heaviest_part(image, kept) if connected else kept
            image = np.where(kept, image, 0).astype(np.float32)
        columns.append((image, box))
    return placed(columns, shape)


def _bright(image: NDArray[np.float32], edge: float, connected: bool) -> NDArray[np.bool_]:
    """Say which pixels are above a part of the largest."""
    smooth = ndimage.median_filter(image, 3, mode="nearest") if connected else image
    if not smooth.max() > 0:
        return np.asarray(image > 0)
    return np.asarray((smooth >= edge * smooth.max()) & (smooth > 0))


def _strong(image: NDArray[np.float32], energy: float) -> NDArray[np.bool_]:
    """Say which are the largest pixels that have a part of the energy together."""
    ordered = np.sort(image.ravel().astype(np.float64))[::-1]
    sums = np.cumsum(ordered**2)
    last = min(int(np.searchsorted(sums, energy * sums[-1])), len(ordered) - 1)
    return np.asarray((image >= ordered[last]) & (image > 0))


def _heaviest_part(image: NDArray[np.float32], kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, count = ndimage.label(kept)
    weight = ndimage.sum_labels(image, labels, np.arange(1, count + 1))
    return np.asarray(labels == 1 + int(np.argmax(weight)))


def cropped(
    footprints: sp.csc_array, shape: tuple[int, int], index: int, margin: int
) -> tuple[tuple[slice, slice], NDArray[np.float32]]:
    """Return the box around one footprint, grown by a margin, and the footprint in it."""
    start, stop = footprints.indptr[index : index + 2]
    entries = footprints.data[start:stop] > 0
    y, x = np.divmod(footprints.indices[start:stop][entries], shape[1])
    if not len(y):
        return (slice(0, 0), slice(0, 0)), np.zeros((0, 0), np.float32)
    box = (
        slice(max(int(y.min()) - margin, 0), min(int(y.max()) + margin + 1, shape[0])),
        slice(max(int(x.min()) - margin, 0), min(int(x.max()) + margin + 1, shape[1])),
    )
    image = np.zeros((box[0].stop - box[0].start, box[1].stop - box[1].start), np.float32)
    image[y - box[0].start, x - box[1].start] = footprints.data[start:stop][entries]
    return box, image


def placed(
    images: Iterable[tuple[NDArray[np.float32], tuple[slice, slice]]], shape: tuple[int, int]
) -> sp.csc_array:
    """Return footprints given as images, each with its box in the field.

    Examples
    --------
    >>> image = np.array([[0.0, 2.0]], np.float32)
    >>> placed([(image, (slice(1, 2), slice(0, 2)))], (2, 3)).toarray().ravel()
    array([0., 0., 0., 0., 2., 0.], dtype=float32)
    """
    data, pixels = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
    for image, (rows, columns) in images:
        y, x = np.nonzero(image)
        data.append(image[y, x])
        pixels.append((y + rows.start) * shape[1] + x + columns.start)
    indptr = np.cumsum([len(part) for part in pixels])
    parts = (np.concatenate(data), np.concatenate(pixels), indptr)
    return sp.csc_array(parts, shape=(shape[0] * shape[1], len(indptr) - 1))


def outlines(footprint: NDArray[np.float32], level: float = 0.25) -> list[NDArray[np.float64]]:
    """Return the closed outlines of one footprint, the longest first.

    Parameters
    ----------
    footprint : ndarray (y, x)
        One footprint as an image.
    level : float
        Part of the maximum at which the outline runs.

    Returns
    -------
    list of ndarray (point, 2)
        Points (y, x) in px, the last equal to the first; empty for an empty footprint.

    Examples
    --------
    >>> image = np.zeros((5, 7), np.float32)
    >>> image[2, 3] = 1
    >>> outlines(image, level=0.5)[0].mean(axis=0).round(1)
    array([2.1, 3. ])
    """
    if not footprint.any():
        return []
    lines = find_contours(np.pad(footprint, 1), level * float(footprint.max()))
    return sorted((line - 1 for line in lines), key=len, reverse=True)
