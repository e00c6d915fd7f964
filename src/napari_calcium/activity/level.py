"""At which percentile of its fluorescence a cell rests.

A cell without activity rests at the median, one that is active half of the time well below. The
level is read from the density of the whole trace, freed of slow drift. In a quiet cell it is the
mode, as CaImAn takes it (flag_auto). Where transients follow each other the mode lies in the
activity, so the lower flank is followed: light of value x that has normal noise of standard
deviation s came, on the mean, from x + s^2 (log density)'(x) (Tweedie's formula; Robbins 1956,
Efron 2011, 10.1198/jasa.2011.tm11181), and the least of that over the flank is the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from napari_calcium.movie import blocks
from napari_calcium.traces import noise_level

__all__ = ["resting_percentiles"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

MEDIAN = 50.0
"""Level of a trace of which nothing is known, and the highest there is, %."""

FEWEST_FRAMES = 16
"""Frames below which no density is estimated."""

SHORTEST_BLOCK = 64
"""Fewest frames over which a slow drift is measured."""

DRIFT_PERCENTILE = 30.0
"""Percentile of the blocks whose change is the drift."""

SPAN = (0.5, 97.0)
"""Percentiles between which the density is drawn: outliers cost nothing."""

BANDWIDTH, BINS_PER_BANDWIDTH, MOST_BINS = 0.5, 8, 2**14
"""Smoothing of the density in sd of the noise, and how finely it is drawn."""

HEIGHT, PROMINENCE = 0.15, 0.1
"""What a peak of the density needs to be a mode, as parts of the highest."""

FLANK = 2.0
"""Where the flank begins, %: below, the density is of too few frames."""

FAR = 10.0
"""Distance from the quartiles, in distances of the quartiles, beyond which light is no noise."""

NORMAL_QUARTER = 0.6745
"""Distance of the quartiles of normally distributed values from their mean, sd."""

BUSY, QUIET = 30.0, 48.0
"""Percentile of the mode of a cell that is active all the time, and of one that is not, %."""


class _Density(NamedTuple):
    """Density of a trace: places, their distance, frames per place, the percentile of each."""

    places: Doubles
    step: float
    frames: Doubles
    percentiles: Doubles


def resting_percentiles(traces: NDArray[np.floating], window: int) -> Floats:
    """Return the percentile of each trace, in windows of a length, that is its resting level.

    Parameters
    ----------
    traces : ndarray (cell, time)
        Fluorescence in any unit, any offset. Frames that are NaN or infinite are left out.
    window : int
        Frames of the window in which the percentile will be taken: a drift that such a window
        follows does not count. 0: the whole recording.

    Returns
    -------
    ndarray (cell,), float32
        Percentile, above 0 and at most 50; 50 for a trace that is constant or of fewer than 16
        frames.

    Raises
    ------
    ValueError
        If `traces` are not (cell, time) or the window is negative.

    Notes
    -----
    Scaling a trace or adding an offset leaves the percentile as it is.

    References
    ----------
    .. [1] Giovannucci et al., eLife 2019, doi:10.7554/eLife.38173
    .. [2] Efron, J. Am. Stat. Assoc. 2011, doi:10.1198/jasa.2011.tm11181

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> traces = rng.normal(size=(2, 9000))
    >>> traces[1] += 20 * (np.sin(np.arange(9000) / 50) > 0)  # half of the time
    >>> resting_percentiles(traces, window=900).round(-1)
    array([50., 20.], dtype=float32)
    """
    traces = np.asarray(traces)
    if traces.ndim != 2:
        raise ValueError(f"traces have {traces.ndim} axes; they are (cell, time)")
    if window < 0:
        raise ValueError(f"window is {window}; it is at least 0 frames")
    found = [_resting_percentile(trace.astype(np.float64), window) for trace in traces]
    return np.array(found, np.float32)


def _resting_percentile(trace: Doubles, window: int) -> float:
    known = np.isfinite(trace)
    if np.count_nonzero(known) < FEWEST_FRAMES:
        return MEDIAN
    steady = (trace - _drift(trace, window))[known]
    ordered = np.sort(steady)
    noise = float(noise_level(_without_outliers(steady, ordered)))
    bandwidth = max(BANDWIDTH * noise, _usual_bandwidth(ordered), _grain(trace[known]))
    if not bandwidth > 0:
        return MEDIAN
    density = _density(ordered, bandwidth)
    level = _rest(density, ordered, noise, bandwidth)
    return float(min(np.interp(level, density.places, density.percentiles), MEDIAN))


def _drift(trace: Doubles, window: int) -> Doubles:
    """Return a low percentile of blocks of half a window, interpolated between their centres."""
    size = max(window // 2, SHORTEST_BLOCK)
    if window == 0 or size >= len(trace):
        return np.zeros(len(trace))
    centres, levels = [], []
    for block in blocks(len(trace), size):
        values = trace[block]
        values = values[np.isfinite(values)]
        if len(values) >= FEWEST_FRAMES:
            centres.append((block.start + block.stop - 1) / 2)
            levels.append(_percentile(np.sort(values), DRIFT_PERCENTILE))
    if not levels:
        return np.zeros(len(trace))
    return np.interp(np.arange(len(trace)), centres, levels)


def _percentile(ordered: Doubles, percentile: float) -> float:
    """Return a percentile of values in order, interpolated linearly."""
    place = (len(ordered) - 1) * percentile / 100
    low = int(place)
    first, second = ordered[low], ordered[min(low + 1, len(ordered) - 1)]
    return float(first + (second - first) * (place - low))


def _without_outliers(values: Doubles, ordered: Doubles) -> Doubles:
    low, high = _percentile(ordered, 25), _percentile(ordered, 75)
    far = FAR * (high - low)
    return np.clip(values, low - far, high + far) if far > 0 else values


def _usual_bandwidth(ordered: Doubles) -> float:
    """Return the bandwidth for the density of normal values, outliers not counted (Silverman)."""
    quartiles = _percentile(ordered, 75) - _percentile(ordered, 25)
    return float(0.9 * quartiles / (2 * NORMAL_QUARTER) * len(ordered) ** -0.2)


def _grain(values: Doubles) -> float:
    """Return the usual distance of neighbouring values: 1 for whole numbers."""
    distances = np.diff(np.sort(values))
    distances = np.sort(distances[distances > 0])
    return float(distances[len(distances) // 2]) if len(distances) else 0.0


def _density(ordered: Doubles, bandwidth: float) -> _Density:
    """Return the density of values in order, drawn from counts that are blurred by a Gaussian."""
    low, high = (_percentile(ordered, percentile) for percentile in SPAN)
    step = max(bandwidth / BINS_PER_BANDWIDTH, (high - low) / MOST_BINS)
    margin = int(np.ceil(4 * bandwidth / step))
    below = int(np.searchsorted(ordered, low))
    inside = ordered[below : np.searchsorted(ordered, high, side="right")]
    bins = ((inside - low) / step + 0.5).astype(np.int64) + margin
    counts = np.bincount(bins, minlength=int(bins[-1]) + 1 + margin).astype(np.float64)
    frames: Doubles = ndimage.gaussian_filter1d(counts, bandwidth / step, mode="constant")
    percentiles = 100 * (below + np.cumsum(frames) - frames / 2) / len(ordered)
    places = np.asarray(low + step * (np.arange(len(frames)) - margin), np.float64)
    return _Density(places, step, frames, percentiles)


def _rest(density: _Density, ordered: Doubles, noise: float, bandwidth: float) -> float:
    """Return the resting level: the mode of a quiet cell, the foot of the flank of a busy one."""
    highest = density.frames.max()
    modes, _ = signal.find_peaks(
        density.frames, height=HEIGHT * highest, prominence=PROMINENCE * highest
    )
    mode = int(modes[0]) if len(modes) else int(np.argmax(density.frames))
    lower = ordered[: np.searchsorted(ordered, density.places[mode])]
    spread = density.places[mode] - lower[len(lower) // 2] if len(lower) else 0.0
    quiet = np.clip((density.percentiles[mode] - BUSY) / (QUIET - BUSY), 0, 1)
    variance = (1 - quiet) * noise**2 + quiet * max(spread / NORMAL_QUARTER, noise) ** 2
    variance += bandwidth**2
    first = min(int(np.searchsorted(density.percentiles, FLANK)), mode)
    flank = slice(first, mode + 1)
    slope = np.gradient(np.log(np.maximum(density.frames, 1e-9)), density.step)[flank]
    return float(np.min(density.places[flank] + variance * np.maximum(slope, 0)))
