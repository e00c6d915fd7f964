"""The autoregressive model of calcium: how fast it rises and decays, and how to say so.

Calcium of order one is ``calcium[t] = g1 * calcium[t - 1] + activity[t]``, of order two has ``g2 *
calcium[t - 2]`` besides. The roots of ``x**2 - g1 * x - g2`` are what decay and rise leave of
themselves one frame later, ``exp(-1 / (time constant * frame rate))``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_calcium.errors import InputError
from napari_calcium.traces import noise_level

__all__ = [
    "MAX_DECAY",
    "MIN_DECAY",
    "coefficients_from_times",
    "decay_and_rise",
    "decay_coefficient",
    "noise_level",
    "second_order_coefficients",
    "time_constants",
    "transient_height",
]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

MIN_DECAY = 0.01
"""Smallest coefficient: what is left of calcium one frame later."""

MAX_DECAY = 0.999
"""Largest coefficient: a time constant of 1000 frames."""

SMALLEST_SPREAD = -1e-6
"""Square of the difference of the roots down to which they count as equal, not complex."""

COARSE = 60
"""Decay times first compared with a trace's autocovariance, and twice the rise times for each."""

FINE = np.linspace(-1, 1, 7)
"""Where a step between two of them is looked at more closely."""

ZOOMS = 4
"""How often times are looked for, each time in steps of a third."""

RATIOS = (float(np.log(0.01)), float(np.log(0.99)))
"""Logarithms of the least and the largest ratio of rise time and decay time compared."""


def decay_coefficient(
    traces: NDArray[np.floating], noise: NDArray[np.floating], lags: int = 5
) -> NDArray[np.float32]:
    """Return the coefficient g of ``calcium[t] = g * calcium[t - 1] + activity[t]`` of each trace.

    The autocovariance of such calcium falls by g per lag; g is the least-squares ratio of
    consecutive lags, from 0 to `lags`, after the noise variance is taken from lag 0. The time
    constant is ``-1 / (g's logarithm * frame rate)`` in seconds.

    Parameters
    ----------
    traces : ndarray (cell, time)
        Fluorescence in any unit; any offset. Frames that are NaN or infinite are left out.
    noise : ndarray (cell,)
        Standard deviation of the noise, in the traces' unit.
    lags : int
        Largest lag used, frames (CaImAn: ``lags``).

    Returns
    -------
    ndarray (cell,), float32
        Coefficients, at least `MIN_DECAY` and at most `MAX_DECAY`. A trace without autocovariance
        (constant, too short) has no memory: `MIN_DECAY`.

    Raises
    ------
    ValueError
        If `traces` are not (cell, time), `noise` is not (cell,) or `lags` is below 1.

    References
    ----------
    .. [1] Pnevmatikakis et al., Neuron 2016, doi:10.1016/j.neuron.2015.11.037

    Examples
    --------
    >>> import numpy as np
    >>> trace = 0.9 ** (np.arange(3000) % 1000)
    >>> decay_coefficient(trace[None], np.zeros(1)).round(2)
    array([0.9], dtype=float32)
    """
    traces, noise = np.asarray(traces), np.asarray(noise, np.float64)
    if traces.ndim != 2 or noise.shape != traces.shape[:1]:
        raise ValueError(f"traces {traces.shape} are (cell, time), noise {noise.shape} is (cell,)")
    if lags < 1:
        raise ValueError(f"lags is {lags}; it must be at least 1")
    covariance = _autocovariance(traces, lags)
    covariance[:, 0] = np.maximum(covariance[:, 0] - noise**2, 0)
    earlier, later = covariance[:, :-1], covariance[:, 1:]
    energy = np.sum(earlier**2, axis=1)
    ratio = np.sum(earlier * later, axis=1) / np.where(energy > 0, energy, 1)
    decay: NDArray[np.float32] = np.clip(ratio, MIN_DECAY, MAX_DECAY).astype(np.float32)
    return decay


def second_order_coefficients(
    traces: NDArray[np.floating], noise: NDArray[np.floating] | None = None, lags: int = 15
) -> Floats:
    """Return g1 and g2 of each trace.

    The autocovariance of such calcium is known, ``decay**(lag + 1) / (1 - decay**2) -
    rise**(lag + 1) / (1 - rise**2)`` times a constant; decay and rise are those whose
    autocovariance comes nearest to the trace's, by least squares over the lags. The ratios of
    lags (Yule-Walker) would be biased: each is as noisy as what it is to explain. Spikes that come
    in bursts make the autocovariance longer, and the decay with it.

    Parameters
    ----------
    traces : ndarray (cell, time)
        Fluorescence in any unit; any offset. Frames that are NaN or infinite are left out.
    noise : ndarray (cell,), optional
        Standard deviation of the noise, in the traces' unit, if it is known well: its variance is
        taken from lag 0. Otherwise lag 0 is left out. (`noise_level` is a few percent too high
        where spikes are frequent, which makes the rise of fast indicators too slow.)
    lags : int
        Largest lag used, frames (CaImAn: ``lags``).

    Returns
    -------
    ndarray (cell, 2), float32
        Coefficients with real roots ``0 <= rise <= decay``, `MIN_DECAY` at least and `MAX_DECAY`
        at most; g2 is 0 where the rise is too fast to be seen. A trace without autocovariance
        (constant, too short) has no memory: `MIN_DECAY` and 0.

    Raises
    ------
    ValueError
        If `traces` are not (cell, time), `noise` is not (cell,) or `lags` is below 3.

    References
    ----------
    .. [1] Pnevmatikakis et al., Neuron 2016, doi:10.1016/j.neuron.2015.11.037

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.signal import lfilter
    >>> spikes = np.random.default_rng(0).poisson(0.03, (1, 20000))
    >>> g = second_order_coefficients(lfilter([1], [1, -1.6625, 0.6778], spikes))
    >>> time_constants(g, frame_rate=30.0).round(1)
    array([[0.6, 0.1]])
    """
    traces = np.asarray(traces)
    known = np.zeros(len(traces)) if noise is None else np.asarray(noise, np.float64)
    if traces.ndim != 2 or known.shape != traces.shape[:1]:
        raise ValueError(f"traces {traces.shape} are (cell, time), noise {known.shape} is (cell,)")
    if lags < 3:
        raise ValueError(f"lags is {lags}; it must be at least 3")
    covariance = _autocovariance(traces, lags)
    covariance[:, 0] = np.maximum(covariance[:, 0] - known**2, 0)
    first = 1 if noise is None else 0
    roots = np.array([_nearest(each[first:], first) for each in covariance]).reshape(-1, 2)
    decay, rise = roots[:, 0], np.where(roots[:, 1] < MIN_DECAY, 0, roots[:, 1])
    return np.stack([decay + rise, -decay * rise], axis=1).astype(np.float32)


def time_constants(coefficients: ArrayLike, frame_rate: float) -> Doubles:
    """Return how long calcium takes to decay and to rise.

    Parameters
    ----------
    coefficients : ndarray (cell, order)
        g1 and g2 of each cell; order 1 is calcium that only decays, order 0 has no memory.
    frame_rate : float
        Hz.

    Returns
    -------
    ndarray (cell, 2), float64
        Time constants of decay and rise, s; NaN where there is none.

    Raises
    ------
    ValueError
        If the coefficients are not (cell, order) with an order up to 2.

    Examples
    --------
    >>> time_constants([[1.66249, -0.67779], [0.94596, 0.0]], frame_rate=30.0).round(2)
    array([[0.6, 0.1],
           [0.6, nan]])
    """
    coefficients = np.asarray(coefficients, np.float64)
    if coefficients.ndim != 2 or coefficients.shape[1] > 2:
        raise ValueError(f"coefficients {coefficients.shape} are (cell, order), order 0 to 2")
    missing = np.zeros((len(coefficients), 2 - coefficients.shape[1]))
    roots = np.stack(_roots(*np.hstack([coefficients, missing]).T), axis=1)
    known = (roots > 0) & (roots < 1)
    return np.where(known, -1 / (frame_rate * np.log(np.where(known, roots, 0.5))), np.nan)


def coefficients_from_times(
    decay_time: ArrayLike, rise_time: ArrayLike, frame_rate: float
) -> Doubles:
    """Return g1 and g2 of calcium with known time constants.

    Parameters
    ----------
    decay_time : float or ndarray (cell,)
        Time constant of the decay, s.
    rise_time : float or ndarray (cell,)
        Time constant of the rise, s, at most the decay's (not the time to the peak); 0 or NaN for
        calcium that rises within a frame.
    frame_rate : float
        Hz.

    Returns
    -------
    ndarray (2,) or (cell, 2), float64
        Coefficients g1 and g2.

    Raises
    ------
    InputError
        If a time constant or the frame rate is not positive, or the rise is the slower one.

    Examples
    --------
    >>> coefficients_from_times(0.6, 0.1, frame_rate=30.0).round(4)
    array([ 1.6625, -0.6778])
    """
    decay_time, rise_time = np.asarray(decay_time, np.float64), np.asarray(rise_time, np.float64)
    rise_time = np.where(np.isnan(rise_time), 0, rise_time)
    if not frame_rate > 0:
        raise InputError(f"frame_rate is {frame_rate} Hz; give the frames recorded per second")
    if not np.all(decay_time > 0):
        raise InputError(f"decay_time is {decay_time} s; give a time above 0 s")
    if not np.all((rise_time >= 0) & (rise_time <= decay_time)):
        raise InputError(
            f"rise_time is {rise_time} s and decay_time {decay_time} s; give a rise of at least "
            "0 s that is not slower than the decay"
        )
    decay = np.exp(-1 / (decay_time * frame_rate))
    rises = rise_time > 0
    rise = np.where(rises, np.exp(-1 / (np.where(rises, rise_time, 1) * frame_rate)), 0)
    return np.stack([decay + rise, -decay * rise], axis=-1)


def decay_and_rise(coefficients: ArrayLike) -> tuple[float, float]:
    """Return the roots of a model of order one or two: what one frame leaves of each.

    Parameters
    ----------
    coefficients : float or (g1,) or (g1, g2)
        Of the calcium one and two frames earlier (CaImAn: ``g``).

    Returns
    -------
    decay, rise : float
        The larger and the smaller root; rise is 0 for order one.

    Raises
    ------
    ValueError
        If there are more than two, or the roots are not real, at least 0 and below 1.

    Examples
    --------
    >>> decay_and_rise(0.95)
    (0.95, 0.0)
    >>> decay_and_rise((1.0, -0.25))
    (0.5, 0.5)
    """
    g = np.atleast_1d(np.asarray(coefficients, np.float64))
    if g.shape not in ((1,), (2,)):
        raise ValueError(f"coefficients {g.shape} are g1, or g1 and g2")
    decay, rise = (float(root) for root in _roots(g[0], g[1] if len(g) == 2 else np.float64(0)))
    if not 0 <= rise <= decay < 1:
        raise ValueError(
            f"the coefficients are {g.tolist()}; the roots of x**2 - g1 * x - g2 must be real, "
            "at least 0 and below 1"
        )
    return decay, rise


def transient_height(coefficients: ArrayLike) -> float:
    """Return the peak of the transient that activity of 1 makes.

    Parameters
    ----------
    coefficients : float or (g1,) or (g1, g2)
        See `decay_and_rise`.

    Examples
    --------
    >>> transient_height(0.95)
    1.0
    >>> round(transient_height((1.7, -0.712)), 2)
    2.83
    """
    decay, rise = decay_and_rise(coefficients)
    level = height = 1.0
    while rise > 0:
        level *= decay
        after = rise * height + level
        if after <= height:
            break
        height = after
    return height


def _nearest(covariance: Doubles, first: int) -> tuple[float, float]:
    """Return decay and rise of the autocovariance nearest to one (lag,) that begins at `first`."""
    lag = np.arange(first, first + len(covariance))
    low, high = (float(np.log(-1 / np.log(each))) for each in (MIN_DECAY, MAX_DECAY))
    times, ratios = np.linspace(low, high, COARSE), np.linspace(*RATIOS, COARSE // 2)
    steps = np.array([times[1] - times[0], ratios[1] - ratios[0]])
    ratios = np.append(ratios, -np.inf)
    for _ in range(ZOOMS):
        grid = np.stack(np.meshgrid(times, ratios, indexing="ij"), axis=-1).reshape(-1, 2)
        decay, rise = _from_logarithms(grid)
        near = decay ** (lag + 1) / (1 - decay**2) - rise ** (lag + 1) / (1 - rise**2)
        score = near @ covariance / np.sqrt(np.sum(near**2, axis=1))
        best = int(np.argmax(score))
        if score[best] <= 0:
            return MIN_DECAY, 0.0
        time, ratio = grid[best]
        times = np.clip(time + steps[0] * FINE, low, high)
        ratios = np.clip(ratio + steps[1] * FINE, None, RATIOS[1])
        steps = steps * (FINE[1] - FINE[0])
    return float(decay[best, 0]), float(rise[best, 0])


def _from_logarithms(grid: Doubles) -> tuple[Doubles, Doubles]:
    """Return decay and rise (n, 1) from the logarithms of decay time, frames, and rise by it."""
    decay_time = np.exp(grid[:, :1])
    rise_time = decay_time * np.exp(grid[:, 1:])
    rises = rise_time > 0
    return np.exp(-1 / decay_time), np.where(rises, np.exp(-1 / np.where(rises, rise_time, 1)), 0)


def _roots(g1: np.floating | Doubles, g2: np.floating | Doubles) -> tuple[Doubles, Doubles]:
    """Return the larger and the smaller root; NaN where they are complex."""
    square = g1**2 + 4 * g2
    spread = np.sqrt(np.where(square > SMALLEST_SPREAD, np.maximum(square, 0), np.nan))
    return (g1 + spread) / 2, (g1 - spread) / 2


def _autocovariance(traces: NDArray[np.floating], lags: int) -> Doubles:
    """Autocovariance (cell, lag) at lags 0 to `lags`, from the pairs of frames that are known."""
    covariance = np.zeros((len(traces), lags + 1))
    n_frames = traces.shape[1]
    for cell, row in enumerate(traces):  # a row at a time: no copy of all traces in float64
        known = np.isfinite(row)
        if known.any():
            trace = np.where(known, row - row[known].mean(dtype=np.float64), 0.0)
            for lag in range(min(lags + 1, n_frames)):
                pairs = max(np.count_nonzero(known[: n_frames - lag] & known[lag:]), 1)
                total = trace[: n_frames - lag] @ trace[lag:]
                covariance[cell, lag] = total * ((n_frames - lag) / pairs) / n_frames
    return covariance
