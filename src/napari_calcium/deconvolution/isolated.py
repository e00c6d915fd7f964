"""Time constants refined on isolated events: the transients that nothing else falls into."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from napari_calcium.deconvolution.autoregression import MAX_DECAY, decay_and_rise
from napari_calcium.deconvolution.constrained import deconvolve
from napari_calcium.deconvolution.oasis import as_trace

__all__ = ["refined_coefficients"]

Doubles = NDArray[np.float64]

MIN_SPIKE = 4.0
"""Height of the smallest event that is looked at, in sd of the noise."""

LARGEST = 30
"""Events that are fitted, at most."""

ALONE, LONGEST = 1.5, 5.0
"""Decay times until the next event, at least, and that are fitted of a transient, at most."""

SHORTEST = 4
"""Fewest frames that are fitted of a transient."""

BOUND = 3.0
"""Factor by which a time constant may change."""

ROUNDS = 2
"""Times that events are looked for and fitted."""


def refined_coefficients(
    trace: NDArray[np.floating], coefficients: ArrayLike, noise: float
) -> tuple[Doubles, int]:
    """Return coefficients that fit the isolated transients of a trace best.

    Events are found with the coefficients given (`deconvolve` with penalty "l0"). Of those that no
    other follows for 1.5 decay times, the 30 largest are fitted together, up to the next event or
    for 5 decay times: a height and a remainder of earlier calcium for each, a baseline and the
    time constants for all. That is done twice.

    Parameters
    ----------
    trace : ndarray (time,)
        Fluorescence in any unit; any offset; NaN where it is not known.
    coefficients : float or (g1,) or (g1, g2)
        Where to begin (CaImAn: ``g``); time constants change by no more than a factor of 3.
    noise : float
        Standard deviation of the noise, in the trace's unit.

    Returns
    -------
    coefficients : ndarray (order,)
        The same ones where there is no isolated event.
    n_events : int
        Isolated events fitted (CaImAn: ``optimize_g``, which is to be their number at most).

    References
    ----------
    .. [1] Friedrich, Zhou & Paninski, PLoS Comput. Biol. 2017, doi:10.1371/journal.pcbi.1005423

    Examples
    --------
    >>> trace = 9.0 * 0.9 ** (np.arange(600) % 60)
    >>> trace += np.random.default_rng(0).normal(scale=0.5, size=600)
    >>> refined, n_events = refined_coefficients(trace, 0.93, noise=0.5)
    >>> refined.round(2), n_events
    (array([0.9]), 9)
    """
    trace = as_trace(trace)
    g: Doubles = np.atleast_1d(np.asarray(coefficients, np.float64))
    n_events = 0
    for _ in range(ROUNDS):
        found = deconvolve(trace, g, noise, penalty="l0", min_spike=MIN_SPIKE * noise)
        decay, rise = decay_and_rise(g)
        windows = _windows(trace - found.baseline, found.activity, decay)
        if not windows:
            break
        n_events = len(windows)
        decay, rise = _fitted(windows, decay, rise)
        g = np.array([decay + rise, -decay * rise][: len(g)])
    return g, n_events


def _windows(
    above: NDArray[np.floating], activity: NDArray[np.floating], decay: float
) -> list[tuple[NDArray[np.intp], Doubles]]:
    """Return the frames since their event, and the trace in them, of isolated transients."""
    events = np.flatnonzero(activity[1:] > 0) + 1
    if not len(events):
        return []
    constant = -1 / np.log(decay) if decay > 0 else 0.0
    stops = np.minimum(np.append(events[1:], len(above)), events + int(LONGEST * constant) + 1)
    alone = np.flatnonzero(stops - events >= max(SHORTEST, ALONE * constant))
    kept = alone[np.argsort(-activity[events[alone]], kind="stable")[:LARGEST]]
    windows = []
    for start, stop in zip(events[kept], stops[kept], strict=True):
        part = np.asarray(above[start:stop], np.float64)
        since = np.flatnonzero(~np.isnan(part))
        if len(since) >= SHORTEST:
            windows.append((since, part[since]))
    return windows


def _fitted(
    windows: list[tuple[NDArray[np.intp], Doubles]], decay: float, rise: float
) -> tuple[float, float]:
    """Return the decay and the rise that leave least of the transients."""
    begin = np.log([-1 / np.log(each) for each in (decay, rise) if each > 0])

    def roots(logarithms: Doubles) -> tuple[float, float]:
        times = np.exp(np.clip(logarithms, begin - np.log(BOUND), begin + np.log(BOUND)))
        slow, *fast = (float(np.exp(-1 / each)) for each in times)
        slow = min(slow, MAX_DECAY)
        return slow, min(fast[0], slow) if fast else 0.0

    def cost(logarithms: Doubles) -> float:
        return _misfit(windows, *roots(logarithms))

    if not len(begin):  # calcium without memory
        return decay, rise
    return roots(minimize(cost, begin, method="Nelder-Mead", options={"xatol": 1e-3}).x)


def _misfit(windows: list[tuple[NDArray[np.intp], Doubles]], decay: float, rise: float) -> float:
    """Squared residual of transients of these roots above one baseline."""
    longest = max(int(since[-1]) for since, _ in windows) + 1
    fall = decay ** np.arange(longest)
    shapes = [fall]
    if rise > 0:
        shapes.append(np.convolve(fall, rise ** np.arange(longest))[:longest])
    squared = constant = mixed = 0.0
    for since, part in windows:
        basis, _ = np.linalg.qr(np.stack([shape[since] for shape in shapes], axis=1))
        rest = part - basis @ (basis.T @ part)
        level = 1 - basis @ basis.sum(axis=0)  # what the transient leaves of the baseline
        squared += float(rest @ rest)
        constant += float(level @ level)
        mixed += float(level @ rest)
    return squared - mixed**2 / constant if constant > 0 else squared
