"""Splitting: footprints for the parts of a cell, by what its pixels do over time.

Pixels that belong to one part only are the corners of the cone that all pixels' time courses lie
in; they are found by successive projection (Gillis and Vavasis 2014, 10.1109/TPAMI.2013.226) in the
few directions that matter.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy import linalg

from napari_calcium.extraction.noise import pixel_noise
from napari_calcium.footprints import unit

__all__ = ["told_apart"]

CLEAR = 5.0
"""Pixels of so many sd of signal along its main directions tell the parts of a cell apart."""


def told_apart(light: NDArray[np.float32], start: sp.csc_array, alike: bool) -> sp.csc_array:
    """Return a footprint for each part of a cell.

    Parameters
    ----------
    light : ndarray (pixel, bin)
        Without that of other cells; no NaN where the cell is.
    start : scipy.sparse.csc_array (pixel, part)
        Pixels that a part may be told by, all of the cell in one part at least.
    alike : bool
        Whether these are the same for all parts, which are then returned with the clearest first.

    Returns
    -------
    scipy.sparse.csc_array (pixel, part), float32
        Not negative, of unit norm, on any pixel of the cell; empty for a part that has none.

    References
    ----------
    Gillis and Vavasis 2014, 10.1109/TPAMI.2013.226.

    Examples
    --------
    >>> parts = np.array([[1.0, 0], [1, 0], [1, 1], [0, 1]])
    >>> traces = 50 * np.random.default_rng(0).exponential(size=(2, 300)) * [[2], [1]]
    >>> noise = np.random.default_rng(1).normal(size=(4, 300))
    >>> light = np.float32(parts @ traces + noise)
    >>> told_apart(light, sp.csc_array(np.ones((4, 2))), alike=True).toarray().round(1)
    array([[0.6, 0. ],
           [0.6, 0. ],
           [0.6, 0.7],
           [0. , 0.7]], dtype=float32)
    """
    n, inside = start.shape[1], np.flatnonzero(start.sum(axis=1))
    pixels = light[inside] - light[inside].mean(axis=1, keepdims=True)
    noise = np.maximum(pixel_noise(pixels.T), 1e-30).astype(np.float64)
    pixels = pixels / noise[:, None]
    largest = (len(inside) - n, len(inside) - 1)
    power, directions = linalg.eigh(pixels @ pixels.T, subset_by_index=largest)
    scores = directions * np.sqrt(np.maximum(power, 0))  # in sd of noise
    corners = _corners(scores, None if alike else start[inside].toarray() > 0)
    weights = np.maximum(scores @ np.linalg.pinv(corners), 0) * noise[:, None]
    if alike:  # in no order yet: the clearest first
        strength = np.linalg.norm(weights, axis=0) * np.linalg.norm(corners, axis=1)
        weights = weights[:, np.argsort(-strength, kind="stable")]
    image = np.zeros(start.shape, np.float32)
    image[inside] = weights
    return unit(sp.csc_array(image))


def _corners(scores: NDArray[np.float64], masks: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """Return the corners (part, direction) of the cone that pixels lie in.

    By successive projection: each is the pixel of the cone's section that is furthest from the span
    of the others.

    Parameters
    ----------
    scores : ndarray (pixel, direction)
        Each pixel along as many main directions as there are parts.
    masks : ndarray of bool (pixel, part), optional
        Where the corner of each part is looked for; by default anywhere.
    """
    n = scores.shape[1]
    middle = scores.sum(axis=0)
    along = scores @ (middle / max(float(np.linalg.norm(middle)), 1e-30))
    clear = along > min(CLEAR, 0.5 * float(along.max()))
    section = np.where(clear[:, None], scores / np.where(clear, along, 1)[:, None], 0)
    corners = np.zeros((n, n))
    if masks is not None:  # the middles of the parts, until their corners are known
        corners = np.stack([section[mask].mean(axis=0) for mask in masks.T])
    for part in range(n):
        others = np.delete(corners, part, axis=0)
        left = section - section @ np.linalg.pinv(others) @ others
        distance = np.linalg.norm(left, axis=1)
        allowed = distance if masks is None else np.where(masks[:, part], distance, -1)
        corners[part] = section[np.argmax(allowed)]
    return corners
