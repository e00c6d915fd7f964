"""Deconvolution of calcium that rises and decays, solved exactly by active sets.

The model of one trace is ``baseline + calcium + noise`` with ``calcium[t] = g1 * calcium[t - 1] +
g2 * calcium[t - 2] + activity[t]`` and ``activity >= 0``: activity of 1 makes calcium of
``(decay**(t + 1) - rise**(t + 1)) / (decay - rise)``, where decay and rise are the roots of
``x**2 - g1 * x - g2``, real and ``0 <= rise <= decay < 1``.

Calcium at the first frame is left over from activity before the recording; it falls by `decay`
per frame, as calcium does long after. The first frame's activity is that calcium, and the second
frame's is ``calcium[1] - decay * calcium[0]``. With ``g2 = 0`` it is the model of `oasis`.

Given the frames that may have activity, the best activity, and also the penalty and the baseline
that leave the noise, follow from one elimination from the last such frame to the first: all that
the frames before matter to what comes after is one number, the calcium left in the frame before an
event times `rise`. Frames with negative activity are taken out, and between any two events the
frame is added where activity is worth most, until none is worth its price. Sums over the frames
from one event to the next depend on their number alone, less the sums over what is missing of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from napari_calcium.deconvolution.autoregression import decay_and_rise
from napari_calcium.deconvolution.oasis import Trace, as_trace, known_part

__all__ = ["Fit", "deconvolve_ar2", "fit_constrained", "fit_large", "fit_penalized"]

Doubles = NDArray[np.float64]
Frames = NDArray[np.int64]

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

UNKNOWN_BASELINE = 1e-10
"""Part of a constant that activity must leave over for the baseline to be told from it."""

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


class Fit(NamedTuple):
    """A trace taken apart, from its first known frame on."""

    calcium: Doubles
    activity: Doubles
    penalty: float
    baseline: float


class _Problem(NamedTuple):
    """A trace, 0 where it is missing, and all that does not change while it is solved."""

    trace: Doubles
    known: NDArray[np.bool_]
    gaps: Frames  # (gap, 2), where each missing run starts and stops
    n_known: int
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
    trace: NDArray[np.floating], g: ArrayLike, penalty: float = 0.0, baseline: float = 0.0
) -> tuple[Trace, Trace]:
    """Return the calcium and the non-negative activity that fit a trace best.

    Minimises ``sum((trace - baseline - calcium)**2) / 2 + penalty * sum(activity)``; the first sum
    is over the frames that are known.

    Parameters
    ----------
    trace : ndarray (time,)
        Fluorescence in any unit, NaN (or infinite) where it is not known.
    g : (g1, g2)
        Coefficients of the calcium one and two frames earlier (CaImAn: ``g``); the roots of
        ``x**2 - g1 * x - g2`` are real, at least 0 and below 1. See `coefficients_from_times`.
    penalty : float
        Price of activity, in the trace's unit (OASIS: ``lam``); 0 for the unpenalised fit.
    baseline : float
        Fluorescence without calcium, in the trace's unit (OASIS: ``b``).

    Returns
    -------
    calcium : ndarray (time,)
        Denoised fluorescence above the baseline, float64 if the trace is and float32 otherwise.
    activity : ndarray (time,)
        ``calcium[t] - g1 * calcium[t - 1] - g2 * calcium[t - 2]``. The first frame's is the
        calcium at the start, which only decays (CaImAn: ``c1``), the second's what its calcium
        has above that. Both are NaN in the frames that are not known, through which calcium goes
        on: what happened there shows in the first frame after them.

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
    >>> calcium, activity = deconvolve_ar2(trace, (1.0, -0.25))
    >>> activity
    array([0., 0., 4., 0., 0., 0., 0.])
    """
    trace, roots = as_trace(trace), decay_and_rise(g)
    part = known_part(trace)
    calcium, activity = np.full_like(trace, np.nan), np.full_like(trace, np.nan)
    if part.stop:
        above = trace[part].astype(np.float64) - baseline
        calcium[part], activity[part], _, _ = fit_penalized(above, *roots, penalty)
        calcium[np.isnan(trace)] = activity[np.isnan(trace)] = np.nan
    return calcium, activity


def fit_penalized(
    trace: Doubles, decay: float, rise: float, penalty: float = 0.0, frames: Frames | None = None
) -> Fit:
    """Minimise ``sum((trace - calcium)**2) / 2 + penalty * sum(activity)``.

    What remains is rounding: the slope of that over any frame's activity is 0, or above 0 where
    there is none, to 1e-9 of the steepest slope without any activity.

    Parameters
    ----------
    trace : ndarray (time,), float64
        Fluorescence above its baseline; NaN where not known, but not in the first and last frame.
    decay, rise : float
        Roots of the model, ``0 <= rise <= decay < 1``.
    penalty : float
        Price of activity, in the trace's unit.
    frames : ndarray of int64, optional
        Where the search begins: known frames that are likely to have activity.

    Returns
    -------
    Fit
        Calcium goes on through frames that are not known; they have no activity.
    """
    problem = _problem(trace, decay, rise)
    return Fit(*_fit(problem, _spaced(trace) if frames is None else frames, float(penalty)))


def fit_constrained(
    trace: Doubles, decay: float, rise: float, limit: float, penalty: float, free: bool
) -> Fit:
    """Minimise ``sum(activity)`` such that the residual's sum of squares is a limit.

    Parameters
    ----------
    trace, decay, rise
        As for `fit_penalized`.
    limit : float
        Sum of squares of the residual.
    penalty : float
        Where its search begins.
    free : bool
        Whether the baseline is estimated, too; 0 otherwise.

    Returns
    -------
    Fit
        Its baseline is relative to the trace's 0.
    """
    return Fit(*_fit(_problem(trace, decay, rise, limit, free), _spaced(trace), penalty))


def fit_large(trace: Doubles, decay: float, rise: float, least: float, frames: Frames) -> Fit:
    """Fit a trace with activity of no less than a size wherever there is any.

    From the unpenalised fit, activity that is too small, and smaller than that before and after
    it, is taken out and the rest fitted again, until none is: the nearest larger ones take over
    what it explained. Calcium left over from before the first frame may be of any size.

    Parameters
    ----------
    trace, decay, rise
        As for `fit_penalized`.
    least : float
        Smallest activity, in the trace's unit.
    frames : ndarray of int64
        Frames with activity in the unpenalised fit.

    Returns
    -------
    Fit
        Not the only local optimum, but one in which no activity can be changed for the better.
    """
    return Fit(*_fit_large(_problem(trace, decay, rise), frames, float(least)))


def _spaced(trace: Doubles) -> Frames:
    frames = np.arange(0, len(trace), SPACING)
    return frames[~np.isnan(trace[frames])]


def _problem(
    trace: Doubles, decay: float, rise: float, limit: float = np.nan, free: bool = False
) -> _Problem:
    missing = np.isnan(trace)
    edges = np.flatnonzero(np.diff(missing, prepend=False, append=False))
    trace = np.where(missing, 0.0, trace)
    longest = min(len(trace), int(FORGOTTEN / (1 - decay)) + 2)
    runs = np.zeros(longest + 1, RUN)
    _fill(runs, decay, rise)
    matched, fading = np.zeros(len(trace) + 1), np.zeros(len(trace) + 1)
    _correlate(trace, decay, rise, matched, fading)
    return _Problem(
        trace=trace,
        known=~missing,
        gaps=edges.reshape(-1, 2),
        n_known=len(trace) - int(np.count_nonzero(missing)),
        matched=matched,
        fading=fading,
        decay=decay,
        rise=rise,
        runs=runs,
        limit=limit,
        free=free,
        square=float(trace @ trace),
        total=float(trace.sum()),
        least=TOLERANCE * float(np.abs(matched).max()),
    )


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
def _fit_large(problem, frames, least):  # type: ignore[no-untyped-def]
    """Calcium and activity that is 0 or of a size, above a baseline of 0 and without a penalty."""
    n, left, n_frames = len(frames), -1, len(problem.trace)
    events, calcium = np.zeros(n, EVENT), np.zeros(n_frames)
    for k in range(n):
        events[k].frame = frames[k]
    prices = _Prices(0.0, 0.0, 0.0, 0.0)
    while n != left:
        n, prices = _settle(problem, events, n, 0, prices)
        left = n
        n = _drop_small(events, n, least)
    _convolve(problem, events, n, calcium)
    return calcium, _activity(events, n, n_frames), 0.0, 0.0


@njit(nogil=True, cache=True)
def _drop_small(events, n, least):  # type: ignore[no-untyped-def]
    """Take events out that are too small and the smallest around; returns how many are left."""
    left, before = 0, np.inf
    for k in range(n):
        own = events[k].activity
        after = events[k + 1].activity if k + 1 < n else np.inf
        if own >= least or own > before or own >= after or events[k].frame == 0:
            events[left].frame, events[left].activity = events[k].frame, own
            left += 1
        before = own if events[k].frame > 0 else np.inf
    return left


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
    later, end, gap = (0.0, 0.0, 0.0, 0.0), len(problem.trace), len(problem.gaps) - 1
    for k in range(n - 1, -1, -1):
        event = events[k]
        sums, gap = _sums(problem, event.frame, end, gap)
        own, left = _equation(problem, event.frame, end, sums, later)
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
def _sums(problem, frame, end, gap):  # type: ignore[no-untyped-def]
    """Sums over the known frames from an event to the next, and the last gap before it."""
    runs, longest = problem.runs, len(problem.runs) - 1
    run = runs[min(end - frame, longest)]
    energy, mixed, rest, total, rest_total = run.energy, run.mixed, run.rest, run.sum, run.rest_sum
    while gap >= 0 and problem.gaps[gap, 0] > frame:
        first = runs[min(problem.gaps[gap, 0] - frame, longest)]
        past = runs[min(problem.gaps[gap, 1] - frame, longest)]
        energy -= past.energy - first.energy
        mixed -= past.mixed - first.mixed
        rest -= past.rest - first.rest
        total -= past.sum - first.sum
        rest_total -= past.rest_sum - first.rest_sum
        gap -= 1
    return (energy, mixed, rest, total, rest_total), gap


@njit(nogil=True, cache=True)
def _equation(problem, frame, end, sums, later):  # type: ignore[no-untyped-def]
    """Terms of the run from an event to the next, given its sums, and of all `later`.

    Returns those of the event's level (squared, data, price, base) and of the rest before it
    (times the level, squared, data, price, base).
    """
    bend, data, price, base = later
    energy, mixed, rest, total, rest_total = sums
    run = problem.runs[min(end - frame, len(problem.runs) - 1)]
    up, down = problem.rise * run.last, run.faded
    paid = run.decayed if end < len(problem.trace) else 0.0
    matched, fading = problem.matched, problem.fading
    own = (
        energy + bend * up * up,
        matched[frame] - run.decayed * matched[end] - up * fading[end] + data * up,
        price * up + paid,
        base * up - total,
    )
    left = (
        mixed + bend * up * down,
        rest + bend * down * down,
        fading[frame] - down * fading[end] + data * down,
        price * down,
        base * down - rest_total,
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
    square = problem.square - dd
    linear = problem.total + db
    curved = problem.n_known - bb
    if problem.free and curved > UNKNOWN_BASELINE * problem.n_known:
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
    for gap in range(len(problem.gaps)):
        residual[problem.gaps[gap, 0] : problem.gaps[gap, 1]] = 0.0
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
            if worth > most and problem.known[later]:
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
