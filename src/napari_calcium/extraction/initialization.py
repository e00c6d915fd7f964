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

from napari_calcium.extraction.noise import pixel_noise, pixel_noise_of_rows
from napari_calcium.movie import blocks, pixel_major

__all__ = ["Greedy", "greedy", "high_pass"]

Floats = NDArray[np.float32]

ACTIVE = 3.0  # a frame counts as active beyond this many standard deviations
ITERATIONS = 4  # rank-one iterations on one cell
SURPLUS = 1.3  # noise is at most so many times what is known of it
FRAMES_AT_ONCE = 64  # frames that are blurred and turned at a time
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
    sharp: Floats,
    radius: float,
    threshold: float,
    min_pixels: int,
    n_cells: int = 0,
    core: tuple[slice, slice] = (slice(None), slice(None)),
    noise: Floats | None = None,
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
    core : tuple of slice
        Where the cells lie that count towards `n_cells`; those around it are found as well.
    noise : ndarray (y, x), optional
        White noise of the frames before the high-pass, where it is known from frames that were not
        averaged: averaged frames change by calcium too, most of all where a cell is active without
        a pause.

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
    footprints, traces = [np.zeros((0, height, width), np.float32)], [np.zeros((0, n), np.float32)]
    # pixel-major, so that one pixel's trace is contiguous
    pixels, filtered = (np.empty((height, width, n), np.float32) for _ in range(2))
    for run in blocks(n, FRAMES_AT_ONCE):
        for target, part in ((pixels, sharp[run]), (filtered, _blurred(sharp[run], 0.5 * radius))):
            target[..., run] = pixel_major(part).reshape(height, width, -1)
    scale, known = _scale(pixels, filtered, radius, noise)
    if not scale.any():  # fewer than three frames, or nothing that changes
        return Greedy(footprints[0], traces[0], 0, -np.inf)
    scale = np.maximum(scale, 1e-6 * float(scale.max()))
    filtered /= scale[..., None]
    score = np.zeros((height, width), np.float32)
    _score(filtered, score, 0, height, 0, width, ACTIVE)
    most = int(4 * height * width / (np.pi * radius**2)) + 1
    reach = int(np.ceil(2 * radius))
    inside = np.zeros((height, width), bool)
    inside[core] = True
    few_pixels, counted, strongest = 0, 0, -np.inf
    for _ in range(most):
        y, x = np.unravel_index(int(np.argmax(score)), score.shape)
        if score[y, x] <= 0 or (score[y, x] < threshold and not n_cells):
            strongest = float(score[y, x])
            break
        if n_cells and counted == n_cells:
            break
        box = _box(int(y), int(x), reach, height, width)
        seed = filtered[y, x]
        place = int(y) - box[0].start, int(x) - box[1].start
        found = _rank_one(pixels[box], seed, place, None if known is None else known[box])
        if found is None or np.count_nonzero(found[0]) < min_pixels:
            few_pixels += 1
            score[_box(int(y), int(x), int(np.ceil(radius / 2)), height, width)] = -np.inf
            continue
        counted += bool(inside[y, x])
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


def _scale(
    pixels: Floats, filtered: Floats, radius: float, noise: Floats | None
) -> tuple[Floats, Floats | None]:
    """Return the noise of filtered pixels, and that of the pixels themselves where it is known.

    Second differences of averaged frames are not above what the known noise makes of the filter,
    times a factor that most of the patch agrees on: resampled frames have noise that neighbours
    share.
    """
    measured = _changes(filtered)
    if noise is None or not noise.any() or not measured.any():
        return measured, None
    reach = int(3 * 2.5 * radius + 0.5) + int(1.5 * radius + 0.5)
    impulse = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    impulse[reach, reach] = 1
    response = _blurred(high_pass(impulse, radius), 0.5 * radius) ** 2
    variance = cv2.filter2D(noise**2, cv2.CV_32F, response, borderType=cv2.BORDER_REPLICATE)
    expected = np.sqrt(np.maximum(variance, 0))
    usual = float(np.median(measured[expected > 0] / expected[expected > 0]))
    of_pixels = _changes(pixels)
    itself = float(np.median(of_pixels[noise > 0] / noise[noise > 0]))
    return np.minimum(measured, SURPLUS * usual * expected), itself * noise


def _changes(pixels: Floats) -> Floats:
    """Return the standard deviation of the white noise of signals (y, x, bin)."""
    return pixel_noise_of_rows(pixels.reshape(-1, pixels.shape[-1])).reshape(pixels.shape[:2])


def _rank_one(
    pixels: Floats, seed: Floats, centre: tuple[int, int], noise: Floats | None
) -> tuple[Floats, Floats] | None:
    """Return footprint and trace of the cell around `centre` of a box (y, x, bin)."""
    flat = pixels.reshape(-1, pixels.shape[-1])
    trace, most = seed, np.inf if noise is None else SURPLUS
    footprint = np.zeros(pixels.shape[:2], np.float32)
    for _ in range(ITERATIONS):
        active = trace > ACTIVE * min(_spread(trace), most)
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
        if noise is not None:  # of neighbours that share some of their noise
            most = SURPLUS**2 * float(np.linalg.norm(footprint * noise))
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
