"""Deconvolution by pooling adjacent violators (OASIS) for calcium that decays exponentially.

The model of one trace is ``baseline + calcium + noise`` with
``calcium[t] = decay * calcium[t - 1] + activity[t]`` and ``activity >= 0``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from napari_calcium.deconvolution.autoregression import decay_coefficient, noise_level

__all__ = [
    "Deconvolution",
    "Deconvolved",
    "deconvolve",
    "deconvolve_ar1",
    "deconvolve_cells",
    "pool_violators",
]

Floats = NDArray[np.float32]

TOLERANCE = 1e-3
"""How near the residual's variance comes to the noise's, as a fraction of it."""

MAX_STEPS = 50
"""Steps after which a search ends; three or four are usual."""

SMALLEST_NOISE = 1e-3
"""Least noise the search aims at, as a fraction of the trace's standard deviation."""

SMALLEST_SLOPE = 1e-9
"""Least slope a Newton step divides by."""

SMALLEST_POWER = 1e-150
"""Powers of the decay below this are 0; its square is still a normal number."""

SMALLEST_CALCIUM = 1e-37
"""Calcium below this is 0; nearly the smallest normal float32."""


class Deconvolution(NamedTuple):
    """One trace taken apart; ``baseline + calcium`` is the denoised trace."""

    calcium: Floats
    activity: Floats
    baseline: float
    penalty: float


@dataclass(frozen=True)
class Deconvolved:
    """Traces taken apart.

    Parameters
    ----------
    calcium : ndarray (cell, time)
        Denoised fluorescence with its baseline, in the traces' unit.
    activity : ndarray (cell, time)
        Non-negative increments of calcium per frame, in the traces' unit.
    baseline : ndarray (cell,)
        Fluorescence without calcium, in the traces' unit.
    decay : ndarray (cell,)
        What is left of calcium one frame later, 0 to 1.
    noise : ndarray (cell,)
        Standard deviation of the noise, in the traces' unit.
    """

    calcium: Floats
    activity: Floats
    baseline: Floats
    decay: Floats
    noise: Floats


def deconvolve_ar1(
    trace: NDArray[np.floating], g: float, penalty: float = 0.0, baseline: float = 0.0
) -> tuple[Floats, Floats]:
    """Return the calcium and the non-negative activity that fit a trace best.

    Minimises ``sum((trace - baseline - calcium)**2) / 2 + penalty * sum(activity)`` exactly, in
    one pass over the frames.

    Parameters
    ----------
    trace : ndarray (time,)
        Fluorescence in any unit.
    g : float
        What is left of calcium one frame later, at least 0 and below 1.
    penalty : float
        Price of activity, in the trace's unit (OASIS: ``lam``); 0 for the unpenalised fit.
    baseline : float
        Fluorescence without calcium, in the trace's unit (OASIS: ``b``).

    Returns
    -------
    calcium : ndarray (time,), float32
        Denoised fluorescence above the baseline.
    activity : ndarray (time,), float32
        ``calcium[t] - g * calcium[t - 1]``; the first frame's is the calcium at the start. A trace
        with a NaN or infinite frame gives NaN everywhere.

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
    array([0., 0., 4., 0., 0.], dtype=float32)
    """
    trace = _checked(trace, g)
    if not np.isfinite(trace).all():
        return _missing(trace), _missing(trace)
    calcium, activity = _reconstruct(trace, float(g), float(penalty), float(baseline))
    return calcium, activity


def deconvolve(
    trace: NDArray[np.floating],
    g: float,
    noise: float,
    baseline: float | None = None,
    penalized: bool = True,
) -> Deconvolution:
    """Return the least activity that explains a trace up to its noise.

    Minimises ``sum(activity)`` such that the residual's standard deviation is `noise`, over the
    activity and the baseline together. The penalty that does it is found by Newton steps on the
    exact, piecewise quadratic variance of the residual, kept inside a bracket.

    Parameters
    ----------
    trace : ndarray (time,)
        Fluorescence in any unit; any offset.
    g : float
        What is left of calcium one frame later, at least 0 and below 1.
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
        ``calcium, activity = deconvolve_ar1(trace, g, penalty, baseline)``. A trace that varies
        no more than its noise has no activity and its mean for a baseline. The residual comes
        within 0.1 % of the noise. A trace with a NaN or infinite frame gives NaN everywhere.

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
    >>> spikes = np.zeros(200)
    >>> spikes[[50, 120]] = 10
    >>> trace = 300 + np.convolve(spikes, 0.9 ** np.arange(100))[:200]
    >>> trace += np.random.default_rng(0).normal(scale=0.5, size=200)
    >>> calcium, activity, baseline, penalty = deconvolve(trace, g=0.9, noise=0.5)
    >>> np.flatnonzero(activity > 5)
    array([ 50, 120])
    >>> round(baseline)
    300
    """
    trace = _checked(trace, g)
    if not (np.isfinite(trace).all() and np.isfinite(noise)):
        return Deconvolution(_missing(trace), _missing(trace), np.nan, np.nan)
    if trace.size == 0:
        return Deconvolution(trace, trace.copy(), 0.0, 0.0)
    known = np.nan if baseline is None else float(baseline)
    penalty, level = _noise_constrained(trace, float(g), float(noise), known)
    penalty = penalty if penalized else 0.0
    calcium, activity = _reconstruct(trace, float(g), penalty, level)
    return Deconvolution(calcium, activity, level, penalty)


def deconvolve_cells(
    traces: NDArray[np.floating],
    decay: NDArray[np.floating] | None = None,
    noise: NDArray[np.floating] | None = None,
    penalized: bool = True,
) -> Deconvolved:
    """Deconvolve each trace, with its own noise, decay and baseline; see `deconvolve`.

    Parameters
    ----------
    traces : ndarray (cell, time)
        Fluorescence in any unit; any offset.
    decay : ndarray (cell,), optional
        What is left of calcium one frame later; by default from `decay_coefficient`.
    noise : ndarray (cell,), optional
        Standard deviation of the noise; by default from `noise_level`.
    penalized : bool
        Whether activity is shrunk by the penalty that the noise calls for.

    Returns
    -------
    Deconvolved
        A trace with a NaN or infinite frame gives NaN calcium, activity and baseline.

    Examples
    --------
    >>> import numpy as np
    >>> deconvolve_cells(np.full((2, 40), 7.0)).calcium[:, 0]
    array([7., 7.], dtype=float32)
    """
    traces = np.asarray(traces)
    if traces.ndim != 2:
        raise ValueError(f"traces have {traces.ndim} axes; they are (cell, time)")
    noise = noise_level(traces) if noise is None else np.asarray(noise, np.float32)
    decay = decay_coefficient(traces, noise) if decay is None else np.asarray(decay, np.float32)
    calcium, activity = np.empty(traces.shape, np.float32), np.empty(traces.shape, np.float32)
    baseline = np.empty(len(traces), np.float32)
    for cell, trace in enumerate(traces):
        found = deconvolve(trace, float(decay[cell]), float(noise[cell]), penalized=penalized)
        calcium[cell] = found.calcium + np.float32(found.baseline)
        activity[cell], baseline[cell] = found.activity, found.baseline
    return Deconvolved(calcium, activity, baseline, decay, noise)


def _checked(trace: NDArray[np.floating], g: float) -> Floats:
    trace = np.ascontiguousarray(trace, dtype=np.float32)
    if trace.ndim != 1:
        raise ValueError(f"the trace has {trace.ndim} axes; it is (time,)")
    if not 0 <= g < 1:
        raise ValueError(f"g is {g}; it must be at least 0 and below 1")
    return trace


def _missing(trace: Floats) -> Floats:
    return np.full_like(trace, np.nan)


@njit(nogil=True, cache=True)
def pool_violators(trace, g, penalty, baseline, value, power, length):  # type: ignore[no-untyped-def]
    """Pool adjacent violators of a trace above its baseline, less the price of calcium.

    Activity costs what the calcium after it costs: ``1 - g`` of the penalty per frame, and the
    rest in the last one. Fills, for each pool, the calcium at its start (below 0 where it is to be
    clipped), g to the power of its length, and the length; returns the number of pools.
    """
    one, offset = 1.0 - g * g, baseline + penalty * (1.0 - g)
    n = 0
    for frame in range(len(trace)):
        value[n], power[n], length[n] = trace[frame] - offset, g, 1
        if frame == len(trace) - 1:
            value[n] -= penalty * g
        while n > 0 and value[n] < power[n - 1] * value[n - 1]:
            p, q = power[n - 1], power[n]
            own, other = (1.0 - p * p) / one, p * (1.0 - q * q) / one
            value[n - 1] = (own * value[n - 1] + other * value[n]) / (own + p * other)
            power[n - 1] = p * q if p * q > SMALLEST_POWER else 0.0
            length[n - 1] += length[n]
            n -= 1
        n += 1
    return n


@njit(nogil=True, cache=True)
def _reconstruct(trace, g, penalty, baseline):  # type: ignore[no-untyped-def]
    """Calcium and activity of one finite trace."""
    n_frames = len(trace)
    value, power = np.empty(n_frames), np.empty(n_frames)
    length = np.empty(n_frames, np.int64)
    n = pool_violators(trace, g, penalty, baseline, value, power, length)
    calcium, activity = np.zeros(n_frames, np.float32), np.zeros(n_frames, np.float32)
    start, before = 0, 0.0
    for pool in range(n):
        level = max(value[pool], 0.0)
        activity[start] = max(level - before, 0.0)
        before = level * power[pool]
        for frame in range(start, start + length[pool]):
            calcium[frame] = level
            level = level * g if level > SMALLEST_CALCIUM else 0.0
        start += length[pool]
    return calcium, activity


@njit(nogil=True, cache=True)
def _moments(trace, g, penalty, baseline, pools):  # type: ignore[no-untyped-def]
    """Mean and mean square of the residual, and what changes them, all per frame.

    As long as the pools stay the same, the mean's slope is ``of_baseline - 1`` over the baseline
    and ``mixed`` over the penalty, and the mean square's ``2 * penalty`` times ``mixed`` (where
    the mean is 0) and ``of_penalty``.
    """
    value, power, length = pools
    n = pool_violators(trace, g, penalty, baseline, value, power, length)
    total = square = of_baseline = mixed = of_penalty = 0.0
    for frame in range(len(trace)):
        above = trace[frame] - baseline
        total += above
        square += above * above
    for pool in range(n):
        if value[pool] > 0:
            calcium = (1.0 - power[pool]) / (1.0 - g)  # sum over the pool, if it starts at 1
            energy = (1.0 - power[pool] ** 2) / (1.0 - g * g)
            price = 1.0 - power[pool] if pool < n - 1 else 1.0  # the activity it ends with is paid
            total -= value[pool] * calcium
            square -= value[pool] * (value[pool] * energy + 2.0 * penalty * price)
            of_baseline += calcium * calcium / energy
            mixed += calcium * price / energy
            of_penalty += price * price / energy
    share = 1.0 / len(trace)
    return total * share, square * share, of_baseline * share, mixed * share, of_penalty * share


@njit(nogil=True, cache=True)
def _noise_constrained(trace, g, noise, known):  # type: ignore[no-untyped-def]
    """Penalty and baseline at which the residual's variance is the noise's.

    `known` is the baseline, NaN to estimate it. The variance grows with the penalty, with its
    square as long as the pools stay the same: Newton steps, halving where they leave the bracket.
    """
    free = np.isnan(known)
    baseline = np.mean(trace.astype(np.float64)) if free else known
    spread = np.mean((trace - baseline) ** 2)
    target = max(noise * noise, spread * SMALLEST_NOISE**2)
    low, high = 0.0, max(float(np.max(trace)) - baseline, 0.0) / (1.0 - g)
    if spread <= target:
        return high, baseline
    pools = (np.empty(len(trace)), np.empty(len(trace)), np.empty(len(trace), np.int64))
    penalty = 0.0
    if free:
        penalty = -_moments(trace, g, 0.0, baseline, pools)[0] / (1.0 - g)
        baseline -= penalty * (1.0 - g)
    for _ in range(MAX_STEPS):
        if free:
            baseline = _balance(trace, g, penalty, baseline, np.sqrt(target), pools)
        _, variance, of_baseline, mixed, of_penalty = _moments(trace, g, penalty, baseline, pools)
        if abs(variance - target) <= TOLERANCE * target:
            break
        if variance > target:
            high = penalty
        else:
            low = penalty
        if high <= low:  # a known baseline leaves more than the noise, without any penalty
            break
        follow = mixed / max(1.0 - of_baseline, SMALLEST_SLOPE) if free else 0.0
        growth = of_penalty + mixed * follow
        squared = penalty * penalty + (target - variance) / growth if growth > 0 else -1.0
        there = np.sqrt(squared) if squared > 0 else -1.0
        there = there if low < there < high else 0.5 * (low + high)
        baseline += follow * (there - penalty)
        penalty = there
    return penalty, baseline


@njit(nogil=True, cache=True)
def _balance(trace, g, penalty, baseline, noise, pools):  # type: ignore[no-untyped-def]
    """Baseline above which the residual has mean 0, by Newton steps on its piecewise line."""
    low, high = -np.inf, float(np.max(trace))
    for _ in range(MAX_STEPS):
        mean, _, of_baseline, _, _ = _moments(trace, g, penalty, baseline, pools)
        if abs(mean) <= TOLERANCE * noise:
            break
        if mean > 0:
            low = baseline
        else:
            high = baseline
        there = baseline + mean / max(1.0 - of_baseline, SMALLEST_SLOPE)
        baseline = there if low < there < high else 0.5 * (low + high)
    return baseline
