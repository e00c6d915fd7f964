"""The most likely times of single spikes, given a rate of spikes: for excellent recordings only."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

__all__ = ["WARNING", "discrete_spikes"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

WARNING = (
    "Single spike times are a guess: except in recordings of excellent quality most of them are "
    "wrong, while the rate they are made from is right on average; use the rate if you can."
)
"""What to tell whoever asks for single spikes."""

SUPPORT = 0.05
"""Part of one smoothed spike's height below which a rate is taken for none."""

STARTS = 2
"""Placements drawn at random for each piece, beside the greedy one."""

SMALL_TAP = 1e-4
"""Taps at the ends of the kernel below this part of the largest are left out."""

SEEN = 0.5
"""Part of a spike's smoothed square that has to be in known frames for it to be placed there."""

LEAST_GAIN = 1e-9
"""Improvements of the squared error smaller than this are rounding, spikes^2."""


def discrete_spikes(rate: ArrayLike, frame_rate: float, kernel: ArrayLike, seed: int = 0) -> Floats:
    """Return the spike times whose smoothed rate is nearest to a given one.

    Discouraged: of all but excellent recordings the times are guesses (see `WARNING`), and the
    rate says all that is known.

    The rate is cut into pieces that are above nothing. In each, the spikes that its integral
    stands for are placed, once greedily and twice at random with the rate for a density; then
    single spikes are moved, added and taken away until none of that makes the squared error
    smaller. The best of the three is kept.

    Parameters
    ----------
    rate : array_like (time,)
        Of one cell, Hz; NaN where it is not known. Negative rates count as 0.
    frame_rate : float
        Hz.
    kernel : array_like (2 n + 1,)
        What one spike is smoothed with, of sum 1; the middle tap belongs to the spike's own frame.
    seed : int
        Of the random placements. The same seed gives the same times, whatever the other cells.

    Returns
    -------
    ndarray of float64 (spike,)
        s from the first frame, in order. Times are those of frames: the kernel says nothing
        finer. Several spikes in a frame are as many equal times. None is placed where the rate is
        not known, nor where less than half of what it would look like is known.

    Raises
    ------
    ValueError
        If the rate has more than one axis, or the kernel no middle.

    References
    ----------
    .. [1] Rupprecht et al., Nature Neuroscience 2021, doi:10.1038/s41593-021-00895-5

    Examples
    --------
    >>> spikes = np.zeros(90)
    >>> spikes[[30, 33, 60]] = 1
    >>> kernel = np.array([0.05, 0.25, 0.4, 0.25, 0.05])
    >>> discrete_spikes(30 * np.convolve(spikes, kernel, "same"), 30.0, kernel)
    array([1. , 1.1, 2. ])
    """
    expected = np.asarray(rate, np.float64) / frame_rate
    taps = np.asarray(kernel, np.float64)
    if expected.ndim != 1:
        raise ValueError(f"rate is (time,), not {expected.shape}")
    if taps.ndim != 1 or len(taps) % 2 == 0:
        raise ValueError(f"kernel has an odd number of taps, not {taps.shape}")
    taps = _trimmed(taps)
    known = np.isfinite(expected)
    expected = np.where(known, np.maximum(np.where(known, expected, 0), 0), 0)
    pieces = _pieces(expected, known, taps)
    n_spikes = np.array([round(expected[a:b].sum()) for a, b in pieces], np.int64)
    uniform = np.random.default_rng(seed).random(STARTS * int(n_spikes.sum()))
    counts = _placed(expected, known, taps, pieces, n_spikes, uniform)
    return np.asarray(np.repeat(np.arange(len(counts)), counts) / frame_rate)


def _trimmed(taps: Floats) -> Floats:
    """Leave out what is next to nothing at both ends, as much on either side."""
    lags = np.abs(np.arange(len(taps)) - len(taps) // 2)
    reach = int(lags[np.abs(taps) >= SMALL_TAP * np.abs(taps).max()].max())
    middle = len(taps) // 2
    return np.ascontiguousarray(taps[middle - reach : middle + reach + 1])


def _pieces(expected: Floats, known: NDArray[np.bool_], taps: Floats) -> Counts:
    """Return first frame and end (piece, 2) of the runs where spikes may be.

    They are those where the rate is above nothing, longer by the kernel's reach at either end, and
    joined where a spike of one could overlap a spike of the next.
    """
    reach = len(taps) // 2
    above = np.flatnonzero(known & (expected > SUPPORT * taps.max()))
    if not len(above):
        return np.zeros((0, 2), np.int64)
    breaks = np.flatnonzero(np.diff(above) > 4 * reach + 1)
    first = above[np.append(0, breaks + 1)] - reach
    last = above[np.append(breaks, len(above) - 1)] + reach
    bounds = np.stack((np.maximum(first, 0), np.minimum(last + 1, len(expected))), axis=1)
    return np.ascontiguousarray(bounds, np.int64)


@njit(nogil=True, cache=True)
def _placed(expected, known, taps, pieces, n_spikes, uniform):  # type: ignore[no-untyped-def]
    """Return the number of spikes in each frame."""
    overlap = _overlaps(taps)
    size, fit, whole = _fits(expected, known, taps)
    allowed = known & (size >= SEEN * overlap[0])
    counts = np.zeros(len(expected), np.int64)
    state = (counts, fit, size, allowed, whole, known, taps, overlap)
    drawn = 0
    for piece in range(len(pieces)):
        first, end = pieces[piece]
        best, best_gain = counts[first:end].copy(), 0.0
        for start in range(STARTS + 1):
            if start == 0:
                gain = _greedy(state, first, end, n_spikes[piece])
            else:
                draws = uniform[drawn : drawn + n_spikes[piece]]
                drawn += n_spikes[piece]
                gain = _at_random(state, expected, first, end, draws)
            gain += _improved(state, first, end)
            if gain > best_gain + LEAST_GAIN:
                best, best_gain = counts[first:end].copy(), gain
            for frame in range(first, end):
                _change(state, frame, -counts[frame])
        for frame in range(first, end):
            _change(state, frame, best[frame - first])
    return counts


@njit(nogil=True, cache=True)
def _overlaps(taps):  # type: ignore[no-untyped-def]
    """Return the product of two spikes' taps, by their distance in frames."""
    found = np.zeros(len(taps))
    for lag in range(len(taps)):
        for i in range(len(taps) - lag):
            found[lag] += taps[i] * taps[i + lag]
    return found


@njit(nogil=True, cache=True)
def _fits(expected, known, taps):  # type: ignore[no-untyped-def]
    """Return a spike's square, its product with the rate, and if all of it is known, by frame."""
    n_frames, reach = len(expected), len(taps) // 2
    size, fit = np.zeros(n_frames), np.zeros(n_frames)
    whole = np.ones(n_frames, np.bool_)
    for frame in range(n_frames):
        for i in range(len(taps)):
            at = frame + i - reach
            if 0 <= at < n_frames and known[at]:
                size[frame] += taps[i] ** 2
                fit[frame] += taps[i] * expected[at]
            else:
                whole[frame] = False
    return size, fit, whole


@njit(nogil=True, cache=True)
def _change(state, frame, n):  # type: ignore[no-untyped-def]
    """Add spikes to a frame, and take what they explain out of the fit of all near it."""
    counts, fit, _, _, whole, known, taps, overlap = state
    if n == 0:
        return
    counts[frame] += n
    reach = len(taps) // 2
    for other in range(max(0, frame - 2 * reach), min(len(fit), frame + 2 * reach + 1)):
        shared = overlap[abs(other - frame)]
        if not whole[frame]:
            shared = 0.0
            first = max(frame, other) - reach
            for at in range(max(0, first), min(len(fit), min(frame, other) + reach + 1)):
                if known[at]:
                    shared += taps[at - frame + reach] * taps[at - other + reach]
        fit[other] -= n * shared


@njit(nogil=True, cache=True)
def _best(state, first, end):  # type: ignore[no-untyped-def]
    """Return where one more spike makes the squared error least, and by how much less."""
    _, fit, size, allowed, _, _, _, _ = state
    place, most = -1, -np.inf
    for frame in range(first, end):
        gain = 2 * fit[frame] - size[frame]
        if allowed[frame] and gain > most:
            place, most = frame, gain
    return place, most


@njit(nogil=True, cache=True)
def _greedy(state, first, end, n):  # type: ignore[no-untyped-def]
    """Place spikes one by one where each helps most; return by how much the error is less."""
    total = 0.0
    for _ in range(n):
        place, gain = _best(state, first, end)
        if place < 0:
            break
        total += gain
        _change(state, place, 1)
    return total


@njit(nogil=True, cache=True)
def _at_random(state, expected, first, end, uniform):  # type: ignore[no-untyped-def]
    """Place spikes with the rate for a density; return by how much the error is less."""
    _, fit, size, allowed, _, _, _, _ = state
    sums = np.cumsum(np.where(allowed[first:end], expected[first:end], 0.0))
    total = 0.0
    if sums[-1] > 0:
        for place in first + np.searchsorted(sums, uniform * sums[-1], side="right"):
            total += 2 * fit[place] - size[place]
            _change(state, place, 1)
    return total


@njit(nogil=True, cache=True)
def _improved(state, first, end):  # type: ignore[no-untyped-def]
    """Move, take away and add single spikes until nothing helps; return how much they helped.

    A spike that is moved so far that it overlaps no more with where it was is one taken away and
    one added, each of which is tried: only places near are.
    """
    counts, fit, size, _, _, _, taps, _ = state
    near = 2 * (len(taps) // 2)
    total, helped = 0.0, True
    while helped:
        helped = False
        for frame in range(first, end):
            while counts[frame]:
                _change(state, frame, -1)
                own = 2 * fit[frame] - size[frame]
                place, gain = _best(state, max(first, frame - near), min(end, frame + near + 1))
                if max(gain, 0.0) <= own + LEAST_GAIN:
                    _change(state, frame, 1)
                    break
                helped = True
                total += max(gain, 0.0) - own
                if gain > 0:
                    _change(state, place, 1)
        place, gain = _best(state, first, end)
        while gain > LEAST_GAIN:
            helped = True
            total += gain
            _change(state, place, 1)
            place, gain = _best(state, first, end)
    return total
