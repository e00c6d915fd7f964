"""Crops of footprints as the classifier sees them: centred, and every cell equally large.

After Giovannucci et al. 2019, 10.7554/eLife.38173: the classifier sees the footprint alone.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp
from numba import njit
from numpy.typing import NDArray

__all__ = ["RADIUS", "SIDE", "footprint_crops"]

SIDE = 40
"""Height and width of a crop, px."""

RADIUS = 7.0
"""Radius that a soma of the expected size has in a crop, px."""


def footprint_crops(
    footprints: sp.csc_array, shape: tuple[int, int], cell_radius: float
) -> NDArray[np.float32]:
    """Cut every footprint out, centred on its weighted centroid and scaled to one size of cell.

    Each pixel is spread over the crop by a triangle as wide as the coarser of the two grids,
    averaged over the finer one: an interpolation where the footprint grows, a filter against
    aliasing where it shrinks. A flat footprint stays flat, its area and centroid stay true.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
        Weights, pixel = y * width + x. What is negative, NaN or infinite is left out.
    shape : tuple of int
        Field of view, (y, x), px.
    cell_radius : float
        Radius of a soma in the field, px (CaImAn: about twice ``gSig``); it becomes `RADIUS`.

    Returns
    -------
    ndarray (cell, SIDE, SIDE), float32
        Of unit Euclidean norm, the centroid between the four middle pixels; 0 beyond the field.
        An empty footprint is all zeros.

    Raises
    ------
    ValueError
        If the footprints have other pixels than the field, or the radius is not above 0.

    Examples
    --------
    >>> y, x = np.mgrid[:37, :53]
    >>> disc = np.float32((y - 3) ** 2 + (x - 30) ** 2 < 3.5**2)  # at the border, half as large
    >>> crop = footprint_crops(sp.csc_array(disc.reshape(-1, 1)), (37, 53), cell_radius=3.5)[0]
    >>> crop.shape, int((crop > crop.max() / 2).sum()), round(np.pi * RADIUS**2)
    ((40, 40), 148, 154)
    """
    if footprints.shape[0] != shape[0] * shape[1]:
        raise ValueError(f"footprints of {footprints.shape[0]} pixels in a field of {shape}")
    if not (cell_radius > 0 and math.isfinite(cell_radius)):
        raise ValueError(f"cell_radius is {cell_radius} px; it is above 0")
    columns = sp.csc_array(footprints)
    return np.asarray(
        _crops(
            columns.data.astype(np.float64),
            columns.indices.astype(np.int64),
            columns.indptr.astype(np.int64),
            shape[1],
            RADIUS / cell_radius,
        )
    )


@njit(nogil=True, cache=True)
def _crops(data, indices, indptr, width, scale):  # type: ignore[no-untyped-def]
    """Spread the entries of every column over its crop."""
    crops = np.zeros((len(indptr) - 1, SIDE, SIDE), np.float32)
    crop = np.empty((SIDE, SIDE))
    rows, columns = np.empty(SIDE), np.empty(SIDE)
    for cell in range(len(crops)):
        start, stop = indptr[cell], indptr[cell + 1]
        total, middle_y, middle_x = _centroid(data[start:stop], indices[start:stop], width)
        if total == 0:
            continue
        crop[:] = 0
        for entry in range(start, stop):
            weight = data[entry]
            if not 0 < weight < np.inf:
                continue
            y, x = divmod(indices[entry], width)
            top, bottom = _spread((y - middle_y) * scale, scale, rows)
            left, right = _spread((x - middle_x) * scale, scale, columns)
            for i in range(top, bottom):
                share = weight * rows[i]
                for j in range(left, right):
                    crop[i, j] += share * columns[j]
        norm = math.sqrt((crop * crop).sum())
        if norm > 0:
            crops[cell] = crop / norm
    return crops


@njit(nogil=True, cache=True)
def _centroid(data, indices, width):  # type: ignore[no-untyped-def]
    """Return the sum of the weights and their centroid, (y, x)."""
    total, sum_y, sum_x = 0.0, 0.0, 0.0
    for entry in range(len(data)):
        weight = data[entry]
        if 0 < weight < np.inf:
            y, x = divmod(indices[entry], width)
            total += weight
            sum_y += weight * y
            sum_x += weight * x
    if total == 0:
        return 0.0, 0.0, 0.0
    return total, sum_y / total, sum_x / total


@njit(nogil=True, cache=True)
def _spread(offset, scale, shares):  # type: ignore[no-untyped-def]
    """Fill in the shares of a crop's rows in a pixel this far from its middle; say which rows."""
    place = offset + (SIDE - 1) / 2
    half, box = max(1.0, scale), min(1.0, scale)
    reach = half + box / 2
    first = max(0, math.ceil(place - reach))
    last = min(SIDE, math.floor(place + reach) + 1)
    for i in range(first, last):
        far = _triangle_integral((i - place + box / 2) / half)
        shares[i] = (far - _triangle_integral((i - place - box / 2) / half)) * half
    return first, last


@njit(nogil=True, cache=True)
def _triangle_integral(z):  # type: ignore[no-untyped-def]
    """Integrate a triangle of unit area over -1 to 1, from its left end to z."""
    if z <= -1:
        return 0.0
    if z <= 0:
        return (1 + z) ** 2 / 2
    if z < 1:
        return 1 - (1 - z) ** 2 / 2
    return 1.0
