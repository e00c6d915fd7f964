"""Deconvolution by pooling adjacent violators (OASIS) for calcium that decays exponentially.

The model of one trace is ``baseline + calcium + noise`` with
``calcium[t] = g * calcium[t - 1] + activity[t]`` and ``activity >= 0``.

A pool is a run of frames without activity after its first. All that matters of it are four
numbers, of which two pools that become one have the sum, the later one scaled: what its frames are
worth (the trace times the powers of g), the sum of these powers squared, g to the power of its
length, and where it starts. Pools are compared by products, so that no frame needs a division.
Frames that are missing lengthen the pool they fall into and add nothing to it.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["as_trace", "deconvolve_ar1", "known_part", "pool_violators"]

Trace = NDArray[np.floating]

SMALLEST_POWER = 1e-150
"""Powers of g below this are 0; the square of what is above is still a normal number."""

SMALLEST_CALCIUM = 1e-37
"""Calcium below this is 0; nearly the smallest normal float32."""


def deconvolve_ar1(
    trace: NDArray[np.floating], g: float, penalty: float = 0.0, baseline: float = 0.0
) -> tuple[Trace, Trace]:
    """Return the calcium and the non-negative activity that fit a trace best.

    Minimises ``sum((trace - baseline - calcium)**2) / 2 + penalty * sum(activity)`` exactly, in
    one pass over the frames; the first sum is over the frames that are known.

    Parameters
    ----------
    trace : ndarray (time,)
        Fluorescence in any unit, NaN (or infinite) where it is not known.
    g : float
        What is left of calcium one frame later, at least 0 and below 1.
    penalty : float
        Price of activity, in the trace's unit (OASIS: ``lam``); 0 for the unpenalised fit.
    baseline : float
        Fluorescence without calcium, in the trace's unit (OASIS: ``b``).

    Returns
    -------
    calcium : ndarray (time,)
        Denoised fluorescence above the baseline, float64 if the trace is and float32 otherwise.
    activity : ndarray (time,)
        ``calcium[t] - g * calcium[t - 1]``; the first frame's is the calcium at the start. Both are
        NaN in the frames that are not known, through which calcium decays: what happened there
        shows in the first frame after them.

    Raises
    ------
    ValueError
        If the trace has more than one axis or g is out of range.

    References
    ----------
    .. [1] Friedrich, Zhou & Paninski, PLoS Comput. Biol. 2017, doi:10.1371/journal.pcbi.1005423

    Examples
    --------
    >>> import numpy as np
    >>> calcium, activity = deconvolve_ar1(np.array([0.0, 0.0, 4.0, 2.0, 1.0]), g=0.5)
    >>> activity
    array([0., 0., 4., 0., 0.])
    >>> deconvolve_ar1(np.array([8.0, np.nan, 2.0, 6.0]), g=0.5)[1]
    array([ 8., nan,  0.,  5.])
    """
    trace = as_trace(trace)
    if not 0 <= g < 1:
        raise ValueError(f"g is {g}; it must be at least 0 and below 1")
    calcium, activity = np.full_like(trace, np.nan), np.full_like(trace, np.nan)
    _reconstruct(trace, float(g), float(penalty), float(baseline), calcium, activity)
    return calcium, activity


def as_trace(trace: NDArray[np.floating]) -> Trace:
    """Return a trace in float64, or float32 where it is of another type, without infinities.

    Examples
    --------
    >>> as_trace(np.array([1, 2], np.uint16)).dtype, as_trace([1.0, np.inf])
    (dtype('float32'), array([ 1., nan]))
    """
    trace = np.asarray(trace)
    known: Trace = np.ascontiguousarray(
        trace, np.float64 if trace.dtype == np.float64 else np.float32
    )
    if known.ndim != 1:
        raise ValueError(f"the trace has {known.ndim} axes; it is (time,)")
    infinite = np.isinf(known)
    return np.where(infinite, np.nan, known).astype(known.dtype) if infinite.any() else known


def known_part(trace: Trace) -> slice:
    """Return the frames from the first that is known to the last.

    Examples
    --------
    >>> known_part(np.array([np.nan, 1.0, np.nan, 2.0, np.nan]))
    slice(1, 4, None)
    """
    known = np.flatnonzero(~np.isnan(trace))
    return slice(int(known[0]), int(known[-1]) + 1) if known.size else slice(0, 0)


@njit(nogil=True, cache=True)
def pool_violators(trace, g, penalty, baseline, data, energy, power, start):  # type: ignore[no-untyped-def]
    """Pool adjacent violators of a trace above its baseline, less the price of calcium.

    Activity costs what the calcium after it costs: ``1 - g`` of the penalty per frame, and the
    rest in the last one. Fills, for each pool, what its frames are worth, the sum of the squared
    powers of g, g to the power of its length, and its first frame; returns the number of pools.
    Calcium at a pool's start is ``data / energy``, to be clipped where it is below 0.
    """
    offset = baseline + penalty * (1.0 - g)
    last = -1  # the latest pool's numbers are kept here until there is a later one
    worth = square = left = 0.0
    for frame in range(len(trace)):
        value = trace[frame] - offset
        if value * square >= left * worth:
            if last >= 0:
                data[last], energy[last], power[last] = worth, square, left
            last += 1
            worth, square, left = value, 1.0, g
            start[last] = frame
            continue
        if np.isnan(value):
            worth -= penalty * left * (1.0 - g)
        else:
            worth += left * value
            square += left * left
        left = left * g if left > SMALLEST_POWER else 0.0
        last, worth, square, left = _pooled(last, worth, square, left, data, energy, power)
    if last >= 0:
        worth -= penalty * left
        last, worth, square, left = _pooled(last, worth, square, left, data, energy, power)
        data[last], energy[last], power[last] = worth, square, left
    return last + 1


@njit(nogil=True, cache=True)
def _pooled(last, worth, square, left, data, energy, power):  # type: ignore[no-untyped-def]
    """Join the latest pool with those before it as long as it begins below where they end."""
    while last > 0 and worth * energy[last - 1] < power[last - 1] * data[last - 1] * square:
        last -= 1
        before = power[last]
        worth = data[last] + before * worth
        square = energy[last] + before * before * square
        left = before * left if before * left > SMALLEST_POWER else 0.0
    return last, worth, square, left


@njit(nogil=True, cache=True)
def _reconstruct(trace, g, penalty, baseline, calcium, activity):  # type: ignore[no-untyped-def]
    """Fill in calcium and activity where the trace is known."""
    n_frames = len(trace)
    data, energy, power = np.empty(n_frames), np.empty(n_frames), np.empty(n_frames)
    start = np.empty(n_frames + 1, np.int64)
    n = pool_violators(trace, g, penalty, baseline, data, energy, power, start)
    start[n] = n_frames
    before = 0.0
    for pool in range(n):
        level = max(data[pool] / energy[pool], 0.0)
        first = start[pool]
        jump = max(level - before, 0.0)
        before = level * power[pool]
        for frame in range(first, start[pool + 1]):
            if not np.isnan(trace[frame]):
                calcium[frame] = level
                activity[frame] = 0.0
            level = level * g if level > SMALLEST_CALCIUM else 0.0
        activity[first] = jump
