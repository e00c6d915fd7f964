"""Greedy initialization: cells found one by one in a patch, until what is left is noise.

The patch is filtered so that cells stand out (a Gaussian of the cell's size less the surround),
scored by how much activity beyond noise each pixel shows, and the best place is explained by a
footprint times a trace, which is subtracted; then the next. After Pnevmatikakis et al. 2016,
10.1016/j.neuron.2015.11.037 (greedy initialization), with a stop at the noise in place of a number
of cells given beforehand.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage

from napari_calcium.extraction.noise import pixel_noise

__all__ = ["Greedy", "greedy", "high_pass"]

Floats = NDArray[np.float32]

ACTIVE = 3.0  # a frame counts as active beyond this many standard deviations
ITERATIONS = 4  # rank-one iterations on one cell
EDGE = 0.2  # a footprint ends where it falls below this part of its maximum


class Greedy(NamedTuple):
    """Cells that `greedy` found, and what it passed over.

    Parameters
    ----------
    footprints : ndarray (cell, y, x)
        Of unit norm.
    traces : ndarray (cell, bin)
    few_pixels : int
        Places that were active enough but had too few pixels.
    strongest : float
        Largest score that was not enough; -inf where nothing is left.
    """

    footprints: Floats
    traces: Floats
    few_pixels: int
    strongest: float


def high_pass(frames: Floats, radius: float) -> Floats:
    """Subtract from each frame its surround, a Gaussian wide against a cell."""
    return frames - _surround(frames, radius)


def _surround(frames: Floats, radius: float) -> Floats:
    return _blurred(frames, 2.5 * radius)


def _blurred(frames: Floats, sigma: float) -> Floats:
    """Blur images (..., y, x) by a Gaussian cut at three sigma, borders repeated."""
    reach = int(3 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    blurred = np.empty_like(frames)
    images, targets = (each.reshape(-1, *frames.shape[-2:]) for each in (frames, blurred))
    for image, target in zip(images, targets, strict=True):
        cv2.sepFilter2D(image, cv2.CV_32F, kernel, kernel, target, borderType=cv2.BORDER_REPLICATE)
    return blurred


def greedy(
    sharp: Floats, radius: float, threshold: float, min_pixels: int, n_cells: int = 0
) -> Greedy:
    """Explain a high-passed patch by cells, one after the other.

    Parameters
    ----------
    sharp : ndarray (bin, y, x), float32
        High-passed frames of zero median; see `high_pass`.
    radius : float
        Radius of a cell, px.
    threshold : float
        Smallest score of a cell: root of the summed squared activity, in standard deviations of
        its noise.
    min_pixels : int
        Footprints of fewer pixels are dropped.
    n_cells : int
        Cells to find, whatever their score; 0: all of at least `threshold`.

    Returns
    -------
    Greedy
        The strongest first.

    References
    ----------
    Pnevmatikakis et al. 2016, 10.1016/j.neuron.2015.11.037.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> frames = rng.normal(size=(200, 37, 53)).astype(np.float32)
    >>> len(greedy(frames, 3, 12, 8).traces)
    0
    >>> frames[50:60, 10:16, 30:36] += 4
    >>> footprint = greedy(frames, 3, 12, 8).footprints[0]
    >>> [int(round(float(place.mean()))) for place in np.nonzero(footprint)]
    [12, 32]
    """
    n, height, width = sharp.shape
    smooth = _blurred(sharp, 0.5 * radius)
    scale = pixel_noise(smooth)
    footprints, traces = [np.zeros((0, height, width), np.float32)], [np.zeros((0, n), np.float32)]
    if not scale.any():  # fewer than three frames, or nothing that changes
        return Greedy(footprints[0], traces[0], 0, -np.inf)
    scale = np.maximum(scale, 1e-6 * float(scale.max()))
    smooth /= scale
    # pixel-major, so that one pixel's trace is contiguous
    pixels = np.ascontiguousarray(sharp.transpose(1, 2, 0))
    filtered = np.ascontiguousarray(smooth.transpose(1, 2, 0))
    del smooth  # as large as the patch, and no longer needed
    score = np.zeros((height, width), np.float32)
    _score(filtered, score, 0, height, 0, width, ACTIVE)
    most = int(4 * height * width / (np.pi * radius**2)) + 1
    reach = int(np.ceil(2 * radius))
    few_pixels, strongest = 0, -np.inf
    for _ in range(most):
        y, x = np.unravel_index(int(np.argmax(score)), score.shape)
        if score[y, x] <= 0 or (score[y, x] < threshold and not n_cells):
            strongest = float(score[y, x])
            break
        if n_cells and len(traces) > n_cells:
            break
        box = _box(int(y), int(x), reach, height, width)
        seed = filtered[y, x]
        found = _rank_one(pixels[box], seed, (int(y) - box[0].start, int(x) - box[1].start))
        if found is None or np.count_nonzero(found[0]) < min_pixels:
            few_pixels += 1
            score[_box(int(y), int(x), int(np.ceil(radius / 2)), height, width)] = -np.inf
            continue
        footprint = np.zeros((height, width), np.float32)
        footprint[box] = found[0]
        footprints.append(footprint[None])
        traces.append(found[1][None])
        _subtract(pixels, filtered, score, scale, footprint, found[1], radius, box)
    return Greedy(np.concatenate(footprints), np.concatenate(traces), few_pixels, strongest)


def _box(y: int, x: int, reach: int, height: int, width: int) -> tuple[slice, slice]:
    return (
        slice(max(y - reach, 0), min(y + reach + 1, height)),
        slice(max(x - reach, 0), min(x + reach + 1, width)),
    )


def _rank_one(
    pixels: Floats, seed: Floats, centre: tuple[int, int]
) -> tuple[Floats, Floats] | None:
    """Return footprint and trace of the cell around `centre` of a box (y, x, bin)."""
    flat = pixels.reshape(-1, pixels.shape[-1])
    trace = seed
    footprint = np.zeros(pixels.shape[:2], np.float32)
    for _ in range(ITERATIONS):
        active = trace > ACTIVE * _spread(trace)
        if not active.any():
            return None
        weights = trace[active]
        image = (flat[:, active] @ weights / (weights @ weights)).reshape(footprint.shape)
        footprint = _connected(image, centre)
        norm = float(np.linalg.norm(footprint))
        if norm == 0:
            return None
        footprint /= norm
        trace = footprint.ravel() @ flat
    return footprint, trace


def _spread(trace: Floats) -> float:
    """Return the standard deviation of the noise of a trace."""
    return float(pixel_noise(trace[:, None])[0])


def _connected(image: Floats, centre: tuple[int, int]) -> Floats:
    """Keep the part of an image that hangs together with its maximum near the centre."""
    y, x = centre
    near = image[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
    peak = float(near.max())
    if peak <= 0:
        return np.zeros_like(image)
    labels, _ = ndimage.label(image > EDGE * peak)
    inside = labels[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
    label = inside[np.unravel_index(int(np.argmax(near)), near.shape)]
    return np.where(labels == label, image, 0).astype(np.float32)


def _subtract(
    pixels: Floats,
    filtered: Floats,
    score: Floats,
    scale: Floats,
    footprint: Floats,
    trace: Floats,
    radius: float,
    box: tuple[slice, slice],
) -> None:
    """Take an explained cell out of the patch, of its filtered version and of the score."""
    height, width = footprint.shape
    grown = (
        slice(max(box[0].start - int(2 * radius), 0), min(box[0].stop + int(2 * radius), height)),
        slice(max(box[1].start - int(2 * radius), 0), min(box[1].stop + int(2 * radius), width)),
    )
    sharp = high_pass(footprint, radius)
    smooth = _blurred(sharp, 0.5 * radius) / scale
    rows, columns = grown
    bounds = (rows.start, rows.stop, columns.start, columns.stop)
    _take(pixels, sharp, trace, *bounds)
    _take(filtered, smooth.astype(np.float32), trace, *bounds)
    _score(filtered, score, *bounds, ACTIVE)


@njit(nogil=True, cache=True)
def _take(pixels, image, trace, top, bottom, left, right):  # type: ignore[no-untyped-def]
    """Subtract the outer product of an image and a trace."""
    for y in range(top, bottom):
        for x in range(left, right):
            weight = image[y, x]
            row = pixels[y, x]
            for t in range(len(row)):
                row[t] -= weight * trace[t]


@njit(nogil=True, cache=True)
def _score(filtered, score, top, bottom, left, right, active):  # type: ignore[no-untyped-def]
    """Root of the summed squares of each pixel's activity beyond noise; -inf stays."""
    for y in range(top, bottom):
        for x in range(left, right):
            if score[y, x] == -np.inf:
                continue
            row = filtered[y, x]
            total = 0.0
            for t in range(len(row)):
                if row[t] > active:
                    total += row[t] * row[t]
            score[y, x] = np.sqrt(total)
