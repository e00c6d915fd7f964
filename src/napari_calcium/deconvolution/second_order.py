"""Deconvolution of calcium that rises and decays: autoregression of order two, solved exactly.

The model of one trace is ``baseline + calcium + noise`` with ``calcium[t] = g1 * calcium[t - 1] +
g2 * calcium[t - 2] + activity[t]`` and ``activity >= 0``: activity of 1 makes calcium of
``(decay**(t + 1) - rise**(t + 1)) / (decay - rise)``, where decay and rise are the roots of
``x**2 - g1 * x - g2``, real and ``0 <= rise <= decay < 1``.

Calcium at the first frame is left over from activity before the recording; it falls by `decay`
per frame, as calcium does long after. The first frame's activity is that calcium, and the second
frame's is ``calcium[1] - decay * calcium[0]``. With ``g2 = 0`` it is the model of `oasis`.

It is solved by an active-set method. Given the frames that may have activity, the best activity,
and also the penalty and the baseline that leave the noise, follow from one elimination from the
last such frame to the first: all that the frames before matter to what comes after is one number,
the calcium left in the frame before an event times `rise`. Frames with negative activity are
taken out, and between any two events the frame is added where activity is worth most, until none
is worth its price.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from napari_calcium.deconvolution.autoregression import MAX_DECAY, MIN_DECAY, _autocovariance
from napari_calcium.deconvolution.oasis import SMALLEST_NOISE, Deconvolution
from napari_calcium.errors import InputError

__all__ = [
    "coefficients_from_times",
    "deconvolve_ar2",
    "deconvolve_second_order",
    "second_order_coefficients",
    "time_constants",
]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

TOLERANCE = 1e-11
"""Activity worth this much more than its price is left out, as a fraction of what frames are
worth without any."""

MAX_STEPS = 300
"""Times that frames are added, at most; four to twenty are usual."""

SPACING = 10
"""Frames between those that the search begins with."""

REACH = 2
"""Events beyond a negative one that step together with it, where steps are careful."""

FORGOTTEN = 40.0
"""Time constants after which nothing is left of calcium, to double precision."""

SMALLEST_ACTIVITY = 1e-12
"""Activity below this fraction of a trace's largest is rounding, and 0."""

ROUNDING = 1e-6
"""Part by which a trace may vary more than its noise and still have no activity."""

UNKNOWN_BASELINE = 1e-10
"""Part of a constant that activity must leave over for the baseline to be told from it."""

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

RUN = np.dtype(
    [
        (name, np.float64)
        for name in ("energy", "mixed", "rest", "sum", "rest_sum", "decayed", "faded", "last")
    ]
)
"""Sums over a run of frames: of the squared transient, of it times what fades by `rise`, of the
square of that, of each; then what is left after the run, and the transient's last value."""

EVENT = np.dtype(
    [("frame", np.int64)]
    + [
        (name, np.float64)
        for name in ("activity", "earlier", "inverse", "mixed", "data", "price", "base")
    ]
)
"""A frame that may have activity: it now, and before the step; and its equation (`_eliminate`)."""


class _Problem(NamedTuple):
    """A trace, and all that does not change while it is solved."""

    trace: Doubles
    matched: Doubles  # the trace correlated with the transient, from each frame on
    fading: Doubles  # and with the powers of rise
    decay: float
    rise: float
    runs: NDArray[np.void]
    limit: float  # sum of squares that the residual is to have; NaN for a given penalty
    free: bool  # whether the baseline is estimated
    square: float  # the trace's sum of squares
    total: float  # and its sum
    least: float  # what frames must be worth beyond the penalty


class _Prices(NamedTuple):
    """What activity costs, above which level, and how good that is (`excess`, then `cost`)."""

    penalty: float
    baseline: float
    excess: float
    cost: float


def deconvolve_ar2(
    trace: NDArray[np.floating],
    g1: float,
    g2: float,
    penalty: float = 0.0,
    baseline: float = 0.0,
) -> tuple[Floats, Floats]:
    """Return the calcium and the non-negative activity that fit a trace best.

    Minimises ``sum((trace - baseline - calcium)**2) / 2 + penalty * sum(activity)``. What remains
    is rounding: the slope of that over any frame's activity is 0, or above 0 where there is none,
    to 1e-9 of the steepest slope without any activity; and the results are float32.

    Parameters
    ----------
    trace : ndarray (time,)
        Fluorescence in any unit.
    g1, g2 : float
        Coefficients of the calcium one and two frames earlier (CaImAn: ``g``); the roots of
        ``x**2 - g1 * x - g2`` are real, at least 0 and below 1. See `coefficients_from_times`.
    penalty : float
        Price of activity, in the trace's unit (OASIS: ``lam``); 0 for the unpenalised fit.
    baseline : float
        Fluorescence without calcium, in the trace's unit (OASIS: ``b``).

    Returns
    -------
    calcium : ndarray (time,), float32
        Denoised fluorescence above the baseline.
    activity : ndarray (time,), float32
        ``calcium[t] - g1 * calcium[t - 1] - g2 * calcium[t - 2]``. The first frame's is the
        calcium at the start, which only decays (CaImAn: ``c1``), the second's what its calcium
        has above that. A trace with a NaN or infinite frame gives NaN everywhere.

    Raises
    ------
    ValueError
        If the trace has more than one axis or the coefficients are out of range.

    References
    ----------
    .. [1] Friedrich, Zhou & Paninski, PLoS Comput. Biol. 2017, doi:10.1371/journal.pcbi.1005423
    .. [2] Lawson & Hanson, Solving Least Squares Problems, 1974 (active sets)

    Examples
    --------
    >>> import numpy as np
    >>> trace = np.array([0.0, 0.0, 4.0, 4.0, 3.0, 2.0, 1.25])
    >>> calcium, activity = deconvolve_ar2(trace, g1=1.0, g2=-0.25)
    >>> activity
    array([0., 0., 4., 0., 0., 0., 0.], dtype=float32)
    """
    trace, decay, rise = _checked(trace, g1, g2)
    if not (np.isfinite(trace).all() and np.isfinite(penalty) and np.isfinite(baseline)):
        return _missing(trace), _missing(trace)
    above = trace.astype(np.float64) - baseline
    problem = _problem(above, decay, rise)
    calcium, activity, _, _ = _fit(problem, _spaced(trace), float(penalty))
    return calcium.astype(np.float32), activity.astype(np.float32)


def deconvolve_second_order(
    trace: NDArray[np.floating],
    g: Sequence[float] | NDArray[np.floating],
    noise: float,
    baseline: float | None = None,
    penalized: bool = True,
) -> Deconvolution:
    """Return the least activity that explains a trace up to its noise.

    Minimises ``sum(activity)`` such that the residual's standard deviation is `noise`, over the
    activity and the baseline together, like `oasis.deconvolve` does with calcium that only decays.
    Penalty and baseline are solved for together with the activity, not searched for.

    Parameters
    ----------
    trace : ndarray (time,)
        Fluorescence in any unit; any offset.
    g : (g1, g2)
        Coefficients of the calcium one and two frames earlier (CaImAn: ``g``).
    noise : float
        Standard deviation of the noise, in the trace's unit.
    baseline : float, optional
        Fluorescence without calcium where it is known; estimated otherwise.
    penalized : bool
        If false, calcium and activity are fitted once more above the baseline found, with penalty
        0: not shrunk, but with more small events.

    Returns
    -------
    Deconvolution
        ``calcium, activity = deconvolve_ar2(trace, *g, penalty, baseline)``. A trace that varies
        no more than its noise has no activity and its mean for a baseline. Otherwise the
        residual's variance is the noise's to 0.1 %, with two exceptions: a known baseline may
        leave more than the noise even without any penalty, and so may a trace that is shorter
        than a few time constants, where baseline and activity cannot be told apart. Noise below
        a thousandth of the trace's standard deviation counts as that. A trace with a NaN or
        infinite frame gives NaN everywhere.

    Raises
    ------
    ValueError
        If the trace has more than one axis or the coefficients are out of range.

    References
    ----------
    .. [1] Pnevmatikakis et al., Neuron 2016, doi:10.1016/j.neuron.2015.11.037

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.signal import lfilter
    >>> g1, g2 = coefficients_from_times(decay_time=0.6, rise_time=0.1, frame_rate=30.0)
    >>> spikes = np.zeros(200)
    >>> spikes[[50, 120]] = 5
    >>> trace = 300 + lfilter([1], [1, -g1, -g2], spikes)
    >>> trace += np.random.default_rng(0).normal(scale=0.5, size=200)
    >>> calcium, activity, baseline, penalty = deconvolve_second_order(trace, (g1, g2), noise=0.5)
    >>> np.flatnonzero(activity > 2.5)
    array([ 50, 120])
    >>> round(baseline)
    300
    """
    trace, decay, rise = _checked(trace, *g)
    known = 0.0 if baseline is None else float(baseline)
    if not (np.isfinite(trace).all() and np.isfinite(noise) and np.isfinite(known)):
        return Deconvolution(_missing(trace), _missing(trace), np.nan, np.nan)
    if trace.size == 0:
        return Deconvolution(trace, trace.copy(), known, 0.0)
    level = float(np.mean(trace, dtype=np.float64)) if baseline is None else known
    above = trace.astype(np.float64) - level
    spread = float(np.mean(above**2))
    target = max(noise**2, spread * SMALLEST_NOISE**2)
    if spread <= target * (1 + ROUNDING):
        nothing = np.zeros_like(trace)
        most = max(float(above.max()), 0.0) / ((1 - decay) * (1 - rise))
        return Deconvolution(nothing, nothing.copy(), level, most)
    problem = _problem(above, decay, rise, target * len(trace), baseline is None)
    calcium, activity, penalty, rest = _fit(problem, _spaced(trace), float(noise))
    if not penalized:
        problem, penalty = _problem(above - rest, decay, rise), 0.0
        calcium, activity, _, _ = _fit(problem, np.flatnonzero(activity), penalty)
    return Deconvolution(
        calcium.astype(np.float32), activity.astype(np.float32), level + rest, penalty
    )


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


def _checked(trace: NDArray[np.floating], g1: float, g2: float) -> tuple[Floats, float, float]:
    """Return the trace in float32, and decay and rise."""
    trace = np.ascontiguousarray(trace, dtype=np.float32)
    if trace.ndim != 1:
        raise ValueError(f"the trace has {trace.ndim} axes; it is (time,)")
    decay, rise = (float(root) for root in _roots(np.float64(g1), np.float64(g2)))
    if not 0 <= rise <= decay < 1:
        raise ValueError(
            f"g1 is {g1} and g2 is {g2}; the roots of x**2 - g1 * x - g2 must be real, "
            "at least 0 and below 1"
        )
    return trace, decay, rise


def _roots(g1: np.floating | Doubles, g2: np.floating | Doubles) -> tuple[Doubles, Doubles]:
    """Return the larger and the smaller root; NaN where they are complex."""
    square = g1**2 + 4 * g2
    spread = np.sqrt(np.where(square > SMALLEST_SPREAD, np.maximum(square, 0), np.nan))
    return (g1 + spread) / 2, (g1 - spread) / 2


def _missing(trace: Floats) -> Floats:
    return np.full_like(trace, np.nan)


def _spaced(trace: Floats) -> NDArray[np.int64]:
    return np.arange(0, len(trace), SPACING)


def _problem(
    trace: Doubles, decay: float, rise: float, limit: float = np.nan, free: bool = False
) -> _Problem:
    longest = min(len(trace), int(FORGOTTEN / (1 - decay)) + 2)
    runs = np.zeros(longest + 1, RUN)
    _fill(runs, decay, rise)
    matched, fading = np.zeros(len(trace) + 1), np.zeros(len(trace) + 1)
    _correlate(trace, decay, rise, matched, fading)
    square, total = float(trace @ trace), float(trace.sum())
    least = TOLERANCE * float(np.abs(matched).max())
    return _Problem(trace, matched, fading, decay, rise, runs, limit, free, square, total, least)


@njit(nogil=True, cache=True)
def _fill(runs, decay, rise):  # type: ignore[no-untyped-def]
    """Fill in the sums over runs of 0, 1, 2 ... frames."""
    transient, rest, decayed = 0.0, 1.0, 1.0
    runs[0].decayed = runs[0].faded = 1.0
    for n in range(1, len(runs)):
        before, now = runs[n - 1], runs[n]
        transient = decay * transient + rest
        now.energy = before.energy + transient * transient
        now.mixed = before.mixed + transient * rest
        now.rest = before.rest + rest * rest
        now.sum = before.sum + transient
        now.rest_sum = before.rest_sum + rest
        decayed, rest = decayed * decay, rest * rise
        now.decayed, now.faded, now.last = decayed, rest, transient


@njit(nogil=True, cache=True)
def _correlate(trace, decay, rise, matched, fading):  # type: ignore[no-untyped-def]
    """Correlate a trace with the transient and the powers of rise, from each frame to the end."""
    for frame in range(len(trace) - 1, -1, -1):
        fading[frame] = rise * fading[frame + 1] + trace[frame]
        matched[frame] = decay * matched[frame + 1] + fading[frame]


@njit(nogil=True, cache=True)
def _fit(problem, frames, penalty):  # type: ignore[no-untyped-def]
    """Calcium, activity, penalty and baseline, looked for from some frames on."""
    n_frames = len(problem.trace)
    events, kept = np.zeros(n_frames, EVENT), np.zeros(n_frames, EVENT)
    calcium, added = np.zeros(n_frames), np.zeros(n_frames, np.int64)
    n, n_kept, reach = len(frames), 0, 0
    for k in range(n):
        events[k].frame = frames[k]
    best = _Prices(penalty, 0.0, np.inf, np.inf)
    for _ in range(MAX_STEPS):
        n, prices = _settle(problem, events, n, reach, best)
        if _better(prices, best):
            best, n_kept = prices, _copy(events, n, kept)
        elif reach < n_frames:
            reach = REACH if reach == 0 else n_frames
            n, prices = _settle(problem, events, _copy(kept, n_kept, events), reach, best)
        else:
            break
        _convolve(problem, events, n, calcium)
        more = _worthwhile(problem, events, n, calcium, prices, added)
        if more == 0:
            break
        n = _merge(events, n, added, more)
    n, prices = _settle(problem, events, _copy(kept, n_kept, events), reach, best)
    _convolve(problem, events, n, calcium)
    return calcium, _activity(events, n, n_frames), prices.penalty, prices.baseline


@njit(nogil=True, cache=True)
def _better(prices, best):  # type: ignore[no-untyped-def]
    return prices.excess < best.excess or (prices.excess == best.excess and prices.cost < best.cost)


@njit(nogil=True, cache=True)
def _copy(events, n, to):  # type: ignore[no-untyped-def]
    for k in range(n):
        to[k].frame, to[k].activity = events[k].frame, events[k].activity
        to[k].earlier = events[k].activity
    return n


@njit(nogil=True, cache=True)
def _activity(events, n, n_frames):  # type: ignore[no-untyped-def]
    activity, least = np.zeros(n_frames), 0.0
    for k in range(n):
        least = max(least, SMALLEST_ACTIVITY * events[k].activity)
    for k in range(n):
        if events[k].activity > least:
            activity[events[k].frame] = events[k].activity
    return activity


@njit(nogil=True, cache=True)
def _settle(problem, events, n, reach, prices):  # type: ignore[no-untyped-def]
    """Solve for the events, and take negative ones out until there is none."""
    while True:
        prices = _choose(problem, _eliminate(problem, events, n), prices)
        negative, total = _substitute(problem, events, n, prices)
        if negative == 0:
            cost = prices.cost if np.isnan(problem.limit) else total
            return n, _Prices(prices.penalty, prices.baseline, prices.excess, cost)
        n = _step(events, n, reach) if reach > 0 else _drop(events, n)


@njit(nogil=True, cache=True)
def _eliminate(problem, events, n):  # type: ignore[no-untyped-def]
    """Set up each event's equation, from the last to the first.

    Between two events calcium is ``level * transient + rest * powers of rise``. Each event's level
    is ``inverse * (data + penalty * price + baseline * base - mixed * rest)``, where the event
    before left the rest. Returns the sums of products of data, price and base over the inverses.
    """
    dd = dp = db = pp = pb = bb = 0.0
    later, end = (0.0, 0.0, 0.0, 0.0), len(problem.trace)
    for k in range(n - 1, -1, -1):
        event = events[k]
        own, left = _equation(problem, event.frame, end, later)
        energy, data, price, base = own
        mixed, rest, data_left, price_left, base_left = left
        if event.frame == 0 and problem.decay > 0:
            share = problem.rise / problem.decay
            energy += share * (2 * (mixed - energy) + share * (energy - 2 * mixed + rest))
            data += share * (data_left - data)
            price += share * (price_left - price)
            base += share * (base_left - base)
            mixed = 0.0
        price -= 1.0
        inverse = 1.0 / energy
        event.inverse, event.mixed = inverse, mixed
        event.data, event.price, event.base = data, price, base
        dd, dp, db = dd + data**2 * inverse, dp + data * price * inverse, db + data * base * inverse
        pp, pb = pp + price**2 * inverse, pb + price * base * inverse
        bb += base**2 * inverse
        part = mixed * inverse
        later = (
            max(rest - part * mixed, 0.0),
            data_left - part * data,
            price_left - part * price,
            base_left - part * base,
        )
        end = event.frame
    return dd, dp, db, pp, pb, bb


@njit(nogil=True, cache=True)
def _equation(problem, frame, end, later):  # type: ignore[no-untyped-def]
    """Terms of the run from an event to the next and of all `later`.

    Returns those of the event's level (squared, data, price, base) and of the rest before it
    (times the level, squared, data, price, base).
    """
    bend, data, price, base = later
    run = problem.runs[min(end - frame, len(problem.runs) - 1)]
    up, down = problem.rise * run.last, run.faded
    paid = run.decayed if end < len(problem.trace) else 0.0
    matched, fading = problem.matched, problem.fading
    own = (
        run.energy + bend * up * up,
        matched[frame] - run.decayed * matched[end] - up * fading[end] + data * up,
        price * up + paid,
        base * up - run.sum,
    )
    left = (
        run.mixed + bend * up * down,
        run.rest + bend * down * down,
        fading[frame] - down * fading[end] + data * down,
        price * down,
        base * down - run.rest_sum,
    )
    return own, left


@njit(nogil=True, cache=True)
def _choose(problem, sums, prices):  # type: ignore[no-untyped-def]
    """Penalty and baseline for the events in use."""
    dd, dp, db, pp, pb, bb = sums
    penalty, baseline = prices.penalty, prices.baseline
    if np.isnan(problem.limit):
        cost = -(dd + penalty * (2 * dp + penalty * pp))
        return _Prices(penalty, baseline, 0.0, cost)
    n_frames = len(problem.trace)
    square = problem.square - dd
    linear = problem.total + db
    curved = n_frames - bb
    if problem.free and curved > UNKNOWN_BASELINE * n_frames:
        least = square - linear * linear / curved
        growth = pp + pb * pb / curved
        penalty = np.sqrt(max(problem.limit - least, 0.0) / growth) if growth > 0 else 0.0
        baseline = (linear + penalty * pb) / curved
    else:
        least = square - baseline * (2 * linear - baseline * curved)
        penalty = np.sqrt(max(problem.limit - least, 0.0) / pp) if pp > 0 else 0.0
    return _Prices(penalty, baseline, max(least - problem.limit, 0.0), 0.0)


@njit(nogil=True, cache=True)
def _substitute(problem, events, n, prices):  # type: ignore[no-untyped-def]
    """Activity of the events, from the first to the last; how many have none, and its sum."""
    n_frames, runs = len(problem.trace), problem.runs
    rest = decayed = total = 0.0
    negative = 0
    for k in range(n):
        event = events[k]
        end = events[k + 1].frame if k + 1 < n else n_frames
        run = runs[min(end - event.frame, len(runs) - 1)]
        level = event.data + prices.penalty * event.price + prices.baseline * event.base
        level = (level - event.mixed * rest) * event.inverse
        event.activity = level - decayed
        if event.frame == 0:
            rest = level * problem.rise / problem.decay if problem.decay > 0 else 0.0
            level -= rest
        negative += event.activity <= 0
        total += event.activity
        decayed = level * run.decayed
        rest = problem.rise * run.last * level + run.faded * rest
    return negative, total


@njit(nogil=True, cache=True)
def _drop(events, n):  # type: ignore[no-untyped-def]
    """Take all negative events out; returns how many are left."""
    left = 0
    for k in range(n):
        if events[k].activity > 0:
            events[left].frame = events[k].frame
            left += 1
    return left


@njit(nogil=True, cache=True)
def _step(events, n, reach):  # type: ignore[no-untyped-def]
    """Step from the earlier activity towards the new one as far as none is negative.

    Events step in groups. Those that keep a group from going on are taken out; returns how many
    are left.
    """
    left = start = 0
    while start < n:
        stop, fraction = _group(events, start, n, reach)
        for k in range(start, stop):
            event = events[k]
            if event.activity > 0 or _fraction(event) > fraction:
                change = fraction * (event.activity - event.earlier)
                earlier = max(event.earlier + change, 0.0)
                events[left].frame, events[left].earlier = event.frame, earlier
                left += 1
        start = stop
    return left


@njit(nogil=True, cache=True)
def _group(events, start, n, reach):  # type: ignore[no-untyped-def]
    """Where the group that starts here stops, and how far it can step, 0 to 1."""
    fraction, positive = 1.0, 0
    for k in range(start, n):
        positive += 1
        if events[k].activity <= 0:
            fraction, positive = min(fraction, _fraction(events[k])), 0
        elif positive == reach:
            return k + 1, fraction
    return n, fraction


@njit(nogil=True, cache=True)
def _fraction(event):  # type: ignore[no-untyped-def]
    """Fraction of the step after which a negative event is 0."""
    return event.earlier / (event.earlier - event.activity) if event.earlier > 0 else 0.0


@njit(nogil=True, cache=True)
def _convolve(problem, events, n, calcium):  # type: ignore[no-untyped-def]
    """Fill in the calcium that the events make."""
    decay, rise = problem.decay, problem.rise
    level = now = 0.0
    calcium[:] = 0.0
    for k in range(n):
        frame, activity = events[k].frame, events[k].activity
        stop = events[k + 1].frame if k + 1 < n else len(calcium)
        level = decay * level + activity
        now = rise * now + level
        calcium[frame] = now
        if frame == 0 and decay > 0:
            level -= activity * rise / decay
        for later in range(frame + 1, min(stop, frame + len(problem.runs))):
            level *= decay
            now = rise * now + level
            calcium[later] = now


@njit(nogil=True, cache=True)
def _worthwhile(problem, events, n, calcium, prices, added):  # type: ignore[no-untyped-def]
    """Find the frame between each two events where activity is worth most, if more than its price.

    Fills in the frames, the last first, and returns how many.
    """
    decay, rise = problem.decay, problem.rise
    residual = problem.trace - prices.baseline - calcium
    fading = worth = 0.0
    more, stop = 0, len(residual)
    for k in range(n - 1, -2, -1):
        if stop == 0:
            break
        frame, most, where = 0, prices.penalty + problem.least, -1
        if k >= 0:
            frame = events[k].frame
        for later in range(stop - 1, frame, -1):
            fading = rise * fading + residual[later]
            worth = decay * worth + fading
            if worth > most:
                most, where = worth, later
        fading = rise * fading + residual[frame]
        worth = (decay if frame > 0 else decay - rise) * worth + fading
        if k < 0 and worth > most:
            where = frame
        if where >= 0:
            added[more] = where
            more += 1
        stop = frame
    return more


@njit(nogil=True, cache=True)
def _merge(events, n, added, more):  # type: ignore[no-untyped-def]
    """Put frames, the last first, among the events; returns how many there are then."""
    k, total, taken = n - 1, n + more, 0
    for place in range(total - 1, -1, -1):
        if taken < more and (k < 0 or added[taken] > events[k].frame):
            events[place].frame, events[place].earlier = added[taken], 0.0
            taken += 1
        else:
            events[place].frame, events[place].earlier = events[k].frame, events[k].activity
            k -= 1
    return total
