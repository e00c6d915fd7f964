"""Deconvolution of a trace whose noise is known, above a baseline that need not be."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_calcium.deconvolution.active_set import fit_constrained, fit_large, fit_penalized
from napari_calcium.deconvolution.autoregression import decay_and_rise, transient_height
from napari_calcium.deconvolution.oasis import Trace, as_trace, deconvolve_ar1, known_part

__all__ = ["Deconvolution", "Penalty", "deconvolve"]

Doubles = NDArray[np.float64]

Penalty = Literal["none", "l1", "l0"]
"""What activity costs: nothing, its size, or that it be no smaller than a size."""

SMALLEST_NOISE = 1e-3
"""Least noise that is aimed at, as a fraction of the trace's standard deviation."""

ROUNDING = 1e-6
"""Part by which a trace may vary more than its noise and still have no activity."""

LEVELS = 3
"""Times the baseline below large activity is put where the residual's mean is."""


class Deconvolution(NamedTuple):
    """One trace taken apart; ``baseline + calcium`` is the denoised trace."""

    calcium: Trace
    activity: Trace
    baseline: float
    penalty: float


def deconvolve(
    trace: NDArray[np.floating],
    g: ArrayLike,
    noise: float,
    baseline: float | None = None,
    penalty: Penalty = "l1",
    min_spike: float = 0.0,
) -> Deconvolution:
    """Return the activity that explains a trace up to its noise.

    Parameters
    ----------
    trace : ndarray (time,)
        Fluorescence in any unit; any offset; NaN (or infinite) where it is not known.
    g : float or (g1,) or (g1, g2)
        Coefficients of the calcium one and two frames earlier (CaImAn: ``g``). Their roots are
        real, at least 0 and below 1.
    noise : float
        Standard deviation of the noise, in the trace's unit.
    baseline : float, optional
        Fluorescence without calcium where it is known; estimated otherwise.
    penalty : {"l1", "none", "l0"}
        "l1" is the least activity, ``sum(activity)``, that leaves the noise: the price of activity,
        and the baseline, are solved for together with it. "none" fits calcium and activity once
        more above that baseline, without a price: not shrunk, but with more small events. "l0"
        takes those away that are smaller than `min_spike`, and fits the rest.
    min_spike : float
        Height of the smallest transient for "l0", in the trace's unit (OASIS: ``s_min``, with
        order 1 the same).

    Returns
    -------
    Deconvolution
        Calcium and activity, float64 if the trace is and float32 otherwise, and the price. With
        "l1" the residual's variance is the noise's, to rounding, except where even without a price
        more than the noise is left: above a known baseline, of a trace that is shorter than a few
        time constants, or where the coefficients are wrong: with a rise slower than the true one,
        the baseline that fits best is far below the trace. A
        trace that varies no more than its noise has no activity and its mean for a baseline.
        Noise below a thousandth of the trace's standard deviation counts as that. Frames that
        are not known are NaN; calcium decays through them, and what happened there shows in the
        first frame after them. Where none is known, or the noise is NaN, all is NaN.

    Raises
    ------
    ValueError
        If the trace has more than one axis or the coefficients are out of range.

    References
    ----------
    .. [1] Pnevmatikakis et al., Neuron 2016, doi:10.1016/j.neuron.2015.11.037
    .. [2] Friedrich, Zhou & Paninski, PLoS Comput. Biol. 2017, doi:10.1371/journal.pcbi.1005423
    .. [3] Lawson & Hanson, Solving Least Squares Problems, 1974 (active sets)

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
    trace, roots, noise = as_trace(trace), decay_and_rise(g), float(noise)
    if trace.size == 0:
        return Deconvolution(trace, trace.copy(), baseline or 0.0, 0.0)
    calcium, activity = np.full_like(trace, np.nan), np.full_like(trace, np.nan)
    part = known_part(trace)
    if not (part.stop and np.isfinite([noise, baseline or 0.0]).all()):
        return Deconvolution(calcium, activity, np.nan, np.nan)
    whole = trace[part].astype(np.float64)
    calcium[part], activity[part], level, price = _deconvolved(
        whole, roots, noise, baseline, penalty, min_spike
    )
    calcium[np.isnan(trace)] = activity[np.isnan(trace)] = np.nan
    return Deconvolution(calcium, activity, level, price)


def _deconvolved(
    trace: Doubles,
    roots: tuple[float, float],
    noise: float,
    baseline: float | None,
    penalty: Penalty,
    min_spike: float,
) -> tuple[Doubles, Doubles, float, float]:
    """Calcium, activity, baseline and price of a trace that is known at its ends."""
    level = float(np.nanmean(trace)) if baseline is None else float(baseline)
    likely = None
    spread = float(np.nanmean((trace - level) ** 2))
    n_known = np.count_nonzero(~np.isnan(trace))
    target = max(noise**2, float(np.nanvar(trace)) * SMALLEST_NOISE**2)
    if spread <= target * (1 + ROUNDING):
        most = max(float(np.nanmax(trace)) - level, 0.0) / ((1 - roots[0]) * (1 - roots[1]))
        return np.zeros_like(trace), np.zeros_like(trace), level, most if penalty == "l1" else 0.0
    if penalty == "l1" or baseline is None:
        least = fit_constrained(trace - level, *roots, target * n_known, noise, baseline is None)
        level += least.baseline
        if penalty == "l1":
            return least.calcium, least.activity, level, least.penalty
        likely = np.flatnonzero(least.activity)
    calcium, activity = _unpenalized(trace - level, roots, likely)
    if penalty == "l0":
        return _large(trace, roots, level, activity, min_spike, baseline is None)
    return calcium, activity, level, 0.0


def _unpenalized(
    trace: Doubles, roots: tuple[float, float], likely: NDArray[np.int64] | None
) -> tuple[Doubles, Doubles]:
    """Calcium and activity without a price; faster from frames that are likely to have any."""
    if roots[1] == 0:
        calcium, activity = deconvolve_ar1(trace, roots[0])
        return np.asarray(calcium, np.float64), np.asarray(activity, np.float64)
    fit = fit_penalized(trace, *roots, frames=likely)
    return fit.calcium, fit.activity


def _large(
    trace: Doubles,
    roots: tuple[float, float],
    level: float,
    activity: Doubles,
    min_spike: float,
    free: bool,
) -> tuple[Doubles, Doubles, float, float]:
    """Take away what is too small, and put the baseline where the rest wants it."""
    least = min_spike / transient_height((roots[0] + roots[1], -roots[0] * roots[1]))
    for _ in range(LEVELS):
        fit = fit_large(trace - level, *roots, least, np.flatnonzero(activity > 0))
        if not free:
            break
        level += float(np.nanmean(trace - level - fit.calcium))
        activity = _unpenalized(trace - level, roots, np.flatnonzero(fit.activity))[1]
    return fit.calcium, fit.activity, level, 0.0
