"""Percentiles of traces in a running window: exact, linear in time but for one sort.

Frames are sorted once, in runs as long as the window. What the window holds of two runs that
follow each other are two lists in order, one that only loses frames and one that only gains them;
a gain is the undoing of a loss. The percentile is where the two lists are cut. After Suomela 2014,
arXiv:1406.1717.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["running_percentile", "whole_percentile"]

Floats = NDArray[np.float32]


def running_percentile(
    traces: NDArray[np.floating], window: int, percentile: float | NDArray[np.floating]
) -> Floats:
    """Return the exact percentile of each trace in a window around every frame.

    Equal to ``np.percentile`` of ``trace[t - window // 2 : t + (window + 1) // 2]``; at the ends
    the window is what is left of it. One trace costs O(frames log window).

    Parameters
    ----------
    traces : ndarray (cell, time)
        Fluorescence in any unit, taken in single precision. Frames that are NaN or infinite are
        left out.
    window : int
        Length of the window in frames, odd or even; it may exceed the trace.
    percentile : float or ndarray (cell,)
        Percentile, 0 to 100, interpolated linearly between values.

    Returns
    -------
    ndarray (cell, time), float32
        Percentile at each frame; NaN where the window has no frame left.

    Raises
    ------
    ValueError
        If `traces` are not (cell, time), the window is below 1 or a percentile is out of range.

    References
    ----------
    .. [1] Suomela, Median filtering is equivalent to sorting, 2014, arXiv:1406.1717

    Examples
    --------
    >>> import numpy as np
    >>> running_percentile(np.array([[3.0, 1.0, 2.0, 9.0]]), window=3, percentile=50)
    array([[2. , 2. , 2. , 5.5]], dtype=float32)
    """
    rows, fractions = _checked(traces, percentile)
    if window < 1:
        raise ValueError(f"window is {window}; it is at least 1 frame")
    n_frames = rows.shape[1]
    before, after = window // 2, (window + 1) // 2
    if after >= n_frames and before >= n_frames - 1:  # every window holds the whole trace
        return np.repeat(whole_percentile(rows, percentile)[:, None], n_frames, axis=1)
    result = np.empty_like(rows)
    for row, fraction, filled in zip(rows, fractions, result, strict=True):
        values, order = _sorted_runs(row, window)
        _percentile_row(values, order, float(fraction), filled)
    return result


def whole_percentile(
    traces: NDArray[np.floating], percentile: float | NDArray[np.floating]
) -> Floats:
    """Return the percentile of each trace over the whole recording.

    Parameters
    ----------
    traces : ndarray (cell, time)
        Fluorescence in any unit, taken in single precision. Frames that are NaN or infinite are
        left out.
    percentile : float or ndarray (cell,)
        Percentile, 0 to 100, interpolated linearly between values.

    Returns
    -------
    ndarray (cell,), float32
        NaN for a trace without a finite frame.

    Raises
    ------
    ValueError
        If `traces` are not (cell, time) or a percentile is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> whole_percentile(np.array([[3.0, 1.0, 2.0], [5.0, np.nan, 7.0]]), np.array([50, 25]))
    array([2. , 5.5], dtype=float32)
    """
    rows, fractions = _checked(traces, percentile)
    result = np.full(len(rows), np.nan, np.float32)
    for cell, (row, fraction) in enumerate(zip(rows, fractions, strict=True)):
        known = row[np.isfinite(row)].astype(np.float64)
        if len(known):
            result[cell] = np.quantile(known, fraction)
    return result


def _checked(
    traces: NDArray[np.floating], percentile: float | NDArray[np.floating]
) -> tuple[Floats, NDArray[np.float64]]:
    """Return the traces in single precision and the percentile of each as a fraction."""
    traces = np.asarray(traces)
    if traces.ndim != 2:
        raise ValueError(f"traces have {traces.ndim} axes; they are (cell, time)")
    wanted = np.asarray(percentile, np.float64)
    if not np.all((wanted >= 0) & (wanted <= 100)):
        raise ValueError(f"percentile is {percentile}; it is 0 to 100")
    fractions = np.broadcast_to(wanted / 100, traces.shape[:1])
    return np.ascontiguousarray(traces, dtype=np.float32), fractions


def _sorted_runs(trace: Floats, window: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return the trace where the window of frame t starts at t, and the order of each run of it."""
    n_runs = -(-len(trace) // window) + 1
    values = np.full((n_runs, window), np.nan, np.float32)
    values.reshape(-1)[window // 2 : window // 2 + len(trace)] = trace
    values[~np.isfinite(values)] = np.nan  # sorted to the end, and never in a list
    return values.reshape(-1), np.argsort(values, axis=1)


@njit(nogil=True, cache=True)
def _percentile_row(values, order, fraction, result):  # type: ignore[no-untyped-def]
    """Fill the running percentile of one trace.

    What the window holds are two lists: the old run, which loses frames, and the new run, which
    gains them. The `below` lowest frames lie before the cuts, one cut in each list. The loops are
    written out here: as a function of their own they take twice the time.
    """
    n_runs, window = order.shape
    value, after, before, rank, count = _linked(values, order)
    for run in range(n_runs - 1):
        _emptied(value, after, before, (run + 1) * window, (run + 2) * window)
        old, new, below = after[len(values) + run], len(values) + run + 1, 0
        for start in range(run * window, min((run + 1) * window, len(result))):
            place = (count - 1) * fraction
            wanted = min(int(np.floor(place)) + 1, count)
            while below < wanted:
                if value[old] <= value[new]:
                    old = after[old]
                else:
                    new = after[new]
                below += 1
            while below > wanted:
                if _last(value, before, old) >= _last(value, before, new):
                    old = before[old]
                else:
                    new = before[new]
                below -= 1
            result[start] = np.nan
            if count > 0:
                result[start] = _at_cuts(value, before, old, new, place - np.floor(place))
            if not np.isnan(value[start]):  # the first frame of the window leaves it
                count -= 1
                if start == old:
                    old = after[start]
                elif rank[start] < rank[old]:
                    below -= 1
                after[before[start]] = after[start]
                before[after[start]] = before[start]
            gained = start + window
            if not np.isnan(value[gained]):
                count += 1
                after[before[gained]] = gained
                before[after[gained]] = gained
                if rank[gained] < rank[new]:
                    if value[gained] > value[old]:
                        new = gained
                    else:
                        below += 1


@njit(nogil=True, cache=True)
def _last(value, before, cut):  # type: ignore[no-untyped-def]
    """Return the largest value of a list below its cut; -inf where there is none."""
    last = value[before[cut]]
    return last if last < np.inf else -last


@njit(nogil=True, cache=True)
def _at_cuts(value, before, old, new, part):  # type: ignore[no-untyped-def]
    """Interpolate linearly between the values on either side of the cuts, rounded as numpy does."""
    low = np.float64(max(_last(value, before, old), _last(value, before, new)))
    if part == 0:
        return low
    high = np.float64(min(value[old], value[new]))
    if part >= 0.5:
        return high - (high - low) * (1 - part)
    return low + (high - low) * part


@njit(nogil=True, cache=True)
def _linked(values, order):  # type: ignore[no-untyped-def]
    """Return the list of each run's frames in order, and how many frames the first run has.

    A frame is its place in `values`; behind them all is one end for each run, above all its frames
    and, as what lies before the first one, below them.
    """
    n_runs, window = order.shape
    value = np.empty(len(values) + n_runs, np.float32)
    after = np.empty(len(value), np.int32)
    before, rank = np.empty_like(after), np.empty_like(after)
    value[: len(values)] = values
    count = 0
    for run in range(n_runs):
        end = len(values) + run
        value[end], rank[end] = np.inf, window
        last = end
        for position in range(window):
            frame = run * window + order[run, position]
            if np.isnan(values[frame]):
                break
            rank[frame] = position
            after[last], before[frame] = frame, last
            last = frame
            count += run == 0
        after[last], before[end] = end, last
    return value, after, before, rank, count


@njit(nogil=True, cache=True)
def _emptied(value, after, before, start, stop):  # type: ignore[no-untyped-def]
    """Take the frames of a run out of its list, so that each can be put back in turn."""
    for frame in range(stop - 1, start - 1, -1):
        if not np.isnan(value[frame]):
            after[before[frame]] = after[frame]
            before[after[frame]] = before[frame]
