"""How exceptional a cell's largest transient is."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtri_exp

from napari_calcium.errors import InputError

__all__ = ["half_sample_mode", "trace_snr"]

BASELINE_PERCENTILE = 8
"""Percentile of a block that is its baseline."""

BASELINE_BLOCK = 30.0
"""Longest blocks the slow baseline is taken from, s."""

BLOCKS_PER_TRACE = 5
"""A short trace has about this many blocks."""

TRANSIENTS_PER_BLOCK = 10
"""A block is at least this many transients long, or it would take them for baseline."""

UNITS_PER_SD = 3.0
"""The score counts in units of this many standard deviations of the noise."""

LARGEST_Z = 1e30
"""Largest z value; its log probability is still finite."""


def trace_snr(
    traces_raw: NDArray[np.floating], frame_rate: float, decay_time: float
) -> NDArray[np.float32]:
    """Return how exceptional each trace's largest transient is, if the trace were noise only.

    A slow baseline is removed; the mode is the trace's resting level and the values below it give
    the noise; ``z = (trace - mode) / (3 * noise)`` is turned into log probabilities, which are
    summed over the length of a transient; the least probable stretch, per frame and turned back
    into a z value, is the score.

    Parameters
    ----------
    traces_raw : ndarray (cell, time)
        Raw fluorescence (denoised traces plus residuals), in any unit. Frames that are NaN or
        infinite are left out.
    frame_rate : float
        Frames per second, Hz.
    decay_time : float
        Length of a typical transient, s (CaImAn: ``decay_time``).

    Returns
    -------
    ndarray (cell,), float32
        Scores. Their unit is three standard deviations of the noise, held over a transient: the
        usual thresholds (2.0 to 2.5 to accept, 0.5 to reject) are in this unit. White noise
        scores below 1. A constant trace scores 0, as does one without a frame. Never NaN.

    Raises
    ------
    InputError
        If the frame rate or the decay time is not above 0.

    References
    ----------
    .. [1] Giovannucci et al., eLife 2019, doi:10.7554/eLife.38173
    .. [2] Bickel & Fruehwirth, Comput. Stat. Data Anal. 2006, doi:10.1016/j.csda.2005.07.011

    Examples
    --------
    >>> import numpy as np
    >>> traces = np.random.default_rng(0).normal(size=(2, 2000)) + 100
    >>> traces[1, 500:550] += 20 * np.exp(-np.arange(50) / 12)
    >>> trace_snr(traces, frame_rate=30.0, decay_time=0.4) > 2.5
    array([False,  True])
    """
    for name, value, unit in (("frame_rate", frame_rate, "Hz"), ("decay_time", decay_time, "s")):
        if not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name} is {value} {unit}; it must be above 0 {unit}")
    traces = np.asarray(traces_raw)
    if traces.ndim != 2:
        raise ValueError(f"traces have {traces.ndim} axes; they are (cell, time)")
    length = math.ceil(frame_rate * decay_time)
    block = min(round(BASELINE_BLOCK * frame_rate), traces.shape[1] // BLOCKS_PER_TRACE)
    block = max(block, TRANSIENTS_PER_BLOCK * length)
    return np.array([_score(trace, length, block) for trace in traces], np.float32)


def half_sample_mode(values: NDArray[np.floating]) -> float:
    """Return the mode of a sample: its densest half, of that the densest half, and so on.

    Parameters
    ----------
    values : ndarray (n,)
        Finite values in any order; at least one.

    Returns
    -------
    float
        The mode, in the values' unit.

    Raises
    ------
    ValueError
        If there is no value.

    References
    ----------
    .. [1] Bickel & Fruehwirth, Comput. Stat. Data Anal. 2006, doi:10.1016/j.csda.2005.07.011

    Examples
    --------
    >>> half_sample_mode(np.array([9.0, 1.0, 1.5, 5.0, 1.25]))
    1.25
    """
    if len(values) == 0:
        raise ValueError("a mode needs at least one value")
    return float(_mode_of_sorted(np.sort(np.asarray(values, np.float64))))


def _score(trace: NDArray[np.floating], length: int, block: int) -> float:
    """Score of one trace, 0 where nothing can be said."""
    known = np.isfinite(trace)
    if not known.any():
        return 0.0
    raw = trace.astype(np.float64)
    detrended = (raw - _slow_baseline(raw, known, block))[known]
    deviation = detrended - half_sample_mode(detrended)
    below = deviation[deviation < 0]
    noise = math.sqrt(np.mean((below if below.size else deviation) ** 2))
    if noise == 0:
        return 0.0
    evidence = np.zeros(len(trace))  # a frame that is not known says nothing
    z = deviation / (UNITS_PER_SD * noise)
    evidence[known] = log_ndtr(-np.clip(z, -LARGEST_Z, LARGEST_Z))
    least = np.convolve(evidence, np.ones(length))[: len(trace)].min()
    return max(0.0, -float(ndtri_exp(least / length)))


def _slow_baseline(
    trace: NDArray[np.float64], known: NDArray[np.bool_], block: int
) -> NDArray[np.float64]:
    """Low percentile of blocks of equal length, interpolated between the blocks' centres."""
    n_blocks = max(1, len(trace) // block)
    edges = np.linspace(0, len(trace), n_blocks + 1).round().astype(int)
    spans = [slice(a, b) for a, b in pairwise(edges) if known[a:b].any()]
    levels = [np.percentile(trace[span][known[span]], BASELINE_PERCENTILE) for span in spans]
    centres = [(span.start + span.stop - 1) / 2 for span in spans]
    return _interpolate(len(trace), centres, levels)


def _interpolate(
    n_frames: int, centres: list[float], levels: list[np.float64]
) -> NDArray[np.float64]:
    """Straight lines between the centres, the outer two continued to the ends of the trace."""
    frames = np.arange(n_frames)
    baseline: NDArray[np.float64] = np.interp(frames, centres, levels)
    if len(centres) > 1:
        first = (levels[1] - levels[0]) / (centres[1] - centres[0])
        last = (levels[-1] - levels[-2]) / (centres[-1] - centres[-2])
        baseline += first * np.minimum(frames - centres[0], 0)
        baseline += last * np.maximum(frames - centres[-1], 0)
    return baseline


@njit(nogil=True, cache=True)
def _mode_of_sorted(values):  # type: ignore[no-untyped-def]
    """Half-sample mode of ascending values."""
    start, size = 0, len(values)
    while size > 3:
        half = (size + 1) // 2
        best = start
        for i in range(start, start + size - half + 1):
            if values[i + half - 1] - values[i] < values[best + half - 1] - values[best]:
                best = i
        start, size = best, half
    if size == 3:
        low = values[start + 1] - values[start]
        high = values[start + 2] - values[start + 1]
        if low == high:
            return values[start + 1]
        return values[start + 1] + (-low if low < high else high) / 2
    return (values[start] + values[start + size - 1]) / 2
