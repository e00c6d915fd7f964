"""How fast calcium decays, from the traces themselves: the decay that predicts them best.

The autocovariance of a trace is that of calcium only where spikes do not depend on each other;
bursts make it longer, by a factor of two and more. The decay is therefore chosen by how well the
deconvolved trace would predict the same calcium under new noise, for which the residual and the
number of spikes together are an unbiased estimate (Stein 1981, 10.1214/aos/1176345632). A decay too
short needs more spikes, one too long leaves more residual.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from napari_calcium.deconvolution.autoregression import (
    MAX_DECAY,
    coefficients_from_times,
    decay_coefficient,
    noise_level,
)
from napari_calcium.deconvolution.constrained import deconvolve
from napari_calcium.deconvolution.oasis import pool_violators

__all__ = ["SLOWEST_RISE", "fitted_decay", "fitted_rise", "noise_left"]

Doubles = NDArray[np.float64]

SHORTEST, LONGEST, FACTOR = 0.8, 1000.0, 1.2
"""Time constants that are tried, frames; each is `FACTOR` times the one before."""

NEAR = 4.0
"""Cells of one recording have time constants within this factor of what is usual in it."""

MOST_FRAMES = 2**14
"""Frames of a trace that are fitted, at most."""

TELLING = 40
"""So many cells, those that vary most against their noise, say where the usual one lies."""

ANCHORS = 1.7
"""Factor between time constants at which the baseline is worked out; interpolated between."""

RISES = (0.0, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0)
"""Time constants of the rise that are tried, frames."""

SLOWEST_RISE = 0.9
"""Largest time constant of a rise, as a part of the decay's."""

SHORTER = (1.0, 0.92, 0.84, 0.7)
"""Factors by which the decay of a model without rise may be too long."""

ROUNDS = 3
"""Times the noise is estimated, from the spectrum first and then from what the fits leave."""

SMALLEST_NOISE = 0.1
"""Least noise that is estimated from what the fits leave, as a part of the spectrum's."""

LEAST_EXCESS = 0.02
"""Part by which a trace's variance must exceed its noise's, beyond chance, to show anything."""

LEAST_SPREAD = 0.05
"""Least standard deviation of the time constants' logarithm that cells are taken to differ by."""


def fitted_decay(
    traces: NDArray[np.floating],
    noise: NDArray[np.floating] | None = None,
    shared: bool = False,
    slowest: float = LONGEST,
) -> NDArray[np.float32]:
    """Return the coefficient g of ``calcium[t] = g * calcium[t - 1] + activity[t]`` of each trace.

    Cells of one recording have the same indicator: what all of them say is each one's prior, and
    the more a trace shows, the less it is drawn to the others.

    Parameters
    ----------
    traces : ndarray (cell, time)
        Fluorescence in any unit; any offset; NaN where it is not known.
    noise : ndarray (cell,), optional
        Standard deviation of the noise, in the traces' unit; by default from `noise_level`.
    shared : bool
        Whether all get the same, what is usual among the cells that show most; several times
        faster.
    slowest : float
        Largest time constant, frames: a drift is not to be taken for calcium.

    Returns
    -------
    ndarray (cell,), float32
        Coefficients, above 0 and at most `MAX_DECAY`. Traces that show nothing get what the others
        say; where none shows anything, the autocovariance decides (`decay_coefficient`).

    Raises
    ------
    ValueError
        If `traces` are not (cell, time) or `noise` is not (cell,).

    References
    ----------
    .. [1] Stein, Ann. Statist. 1981, doi:10.1214/aos/1176345632
    .. [2] Zou, Hastie & Tibshirani, Ann. Statist. 2007, doi:10.1214/009053607000000127 (degrees of
       freedom)

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> spikes = 8.0 * (rng.random((5, 3000)) < 0.02)
    >>> kernel = 0.95 ** np.arange(200)
    >>> calcium = np.stack([np.convolve(each, kernel)[:3000] for each in spikes])
    >>> fitted_decay(calcium + rng.normal(size=calcium.shape)).round(2)
    array([0.95, 0.95, 0.95, 0.95, 0.95], dtype=float32)
    """
    traces = np.asarray(traces, np.float32)
    traces = np.where(np.isfinite(traces), traces, np.float32(np.nan))
    noise = noise_level(traces) if noise is None else np.asarray(noise, np.float32)
    start = decay_coefficient(traces, noise)
    start = np.minimum(start, np.exp(-1 / slowest)).astype(np.float32)
    shows = _that_show(traces, noise)
    if len(shows) == 0:
        return start
    seen, sd = _liveliest(traces[shows]), noise[shows].astype(np.float64)
    telling = np.argsort(-np.nanstd(seen, axis=1, dtype=np.float64) / sd, kind="stable")[:TELLING]
    longest = max(SHORTEST, slowest)
    usual = np.median(_fitted(seen[telling], sd[telling], SHORTEST, LONGEST, longest))
    chosen = np.full(len(traces), usual)
    if not shared:
        near = max(SHORTEST, usual / NEAR), min(LONGEST, usual * NEAR)
        chosen[shows] = _fitted(seen, sd, *near, longest)
        chosen[np.setdiff1d(np.arange(len(traces)), shows)] = np.median(chosen[shows])
    return np.exp(-1 / np.minimum(chosen, longest)).astype(np.float32)


def noise_left(
    traces: NDArray[np.floating],
    denoised: NDArray[np.floating],
    activity: NDArray[np.floating],
    noise: NDArray[np.floating],
) -> NDArray[np.float32]:
    """Return the noise of traces by what an unpenalised fit leaves of them.

    Where transients are bright and fast the spectrum takes their onsets for noise.

    Parameters
    ----------
    traces, denoised, activity : ndarray (cell, time)
        The traces, the fit to them, and its activity, of which every event has fitted some noise.
    noise : ndarray (cell,)
        By the spectrum; the result is not above it, nor below a tenth, and the same where a trace
        shows nothing else.

    Returns
    -------
    ndarray (cell,), float32
        In the traces' unit.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> fit = 20.0 * (np.arange(5000)[None] % 20 < 5)
    >>> traces, events = fit + rng.normal(scale=3, size=fit.shape), np.zeros(fit.shape)
    >>> noise_left(traces, fit, events, np.array([5.0])).round(1)
    array([3.], dtype=float32)
    """
    residual = np.asarray(traces, np.float64) - denoised
    free = np.maximum(_known(residual) - np.count_nonzero(activity > 0, axis=1), 1)
    left = np.maximum(np.sqrt(np.nansum(residual**2, axis=1) / free), SMALLEST_NOISE * noise)
    believed = np.array(noise, np.float32)
    shows = _that_show(traces, noise)  # a fit to mere noise takes some of it away
    believed[shows] = np.minimum(left, noise)[shows]
    return believed


def fitted_rise(
    traces: NDArray[np.floating],
    noise: NDArray[np.floating],
    constants: NDArray[np.floating],
    slowest: float = RISES[-1],
) -> tuple[float, NDArray[np.float64]]:
    """Return the rise that the traces have in common, and their decays given that they rise.

    Parameters
    ----------
    traces : ndarray (cell, time)
        Fluorescence in any unit; any offset; NaN where it is not known.
    noise : ndarray (cell,)
        Standard deviation of the noise, in the traces' unit.
    constants : ndarray (cell,)
        Time constants of the decay without a rise, frames, as of `fitted_decay`.
    slowest : float
        Largest time constant of the rise, frames.

    Returns
    -------
    rise : float
        Time constant, frames; 0 where none can be seen.
    decay : ndarray (cell,)
        Time constants, frames: all shorter by the same factor, for a rise makes transients longer.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> frames = np.arange(200)
    >>> kernel = np.exp(-frames / 20) - np.exp(-frames / 3)
    >>> spikes = 20.0 * (rng.random((5, 3000)) < 0.02)
    >>> traces = np.stack([np.convolve(each, kernel)[:3000] for each in spikes])
    >>> rise, _ = fitted_rise(traces + rng.normal(size=traces.shape), np.ones(5), np.full(5, 22.0))
    >>> rise
    3.0
    """
    decay: Doubles = np.asarray(constants, np.float64)
    shows = _that_show(traces, noise)
    if len(shows) == 0:
        return 0.0, decay
    brightness = np.nanstd(traces[shows], axis=1, dtype=np.float64) / noise[shows]
    telling = shows[np.argsort(-brightness, kind="stable")[:TELLING]]
    seen = _liveliest(traces[telling])
    rises = [rise for rise in RISES if rise <= slowest]
    tried = [(rise, factor) for rise in rises for factor in SHORTER if rise or factor == 1]
    risks = [
        sum(
            _risk(trace, float(sd), factor * tau, rise)
            for trace, sd, tau in zip(seen, noise[telling], decay[telling], strict=True)
        )
        for rise, factor in tried
    ]
    rise, factor = tried[int(np.argmin(risks))]
    return rise, factor * decay


def _risk(trace: NDArray[np.floating], noise: float, decay: float, rise: float) -> float:
    """Squared residual in units of the noise's variance plus twice the spikes, of one trace."""
    g = coefficients_from_times(decay, min(rise, SLOWEST_RISE * decay), 1.0)
    found = deconvolve(trace, g, noise, penalty="none")
    residual = np.asarray(trace - found.calcium - found.baseline, np.float64)
    return float(np.nansum(residual**2)) / noise**2 + 2.0 * np.count_nonzero(found.activity > 0)


def _that_show(traces: NDArray[np.floating], noise: NDArray[np.floating]) -> NDArray[np.intp]:
    """Return the traces that vary more than noise of their size does, by chance or by itself."""
    excess = np.full(len(traces), -np.inf)
    n_known = np.maximum(_known(traces), 1)
    for cell in np.flatnonzero((n_known >= 3) & (noise > 0)):
        variance = np.var(traces[cell], dtype=np.float64, where=np.isfinite(traces[cell]))
        excess[cell] = variance / float(noise[cell]) ** 2 - 1
    return np.flatnonzero(excess > LEAST_EXCESS + 4 * np.sqrt(2 / n_known))


def _liveliest(traces: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return of each trace the stretch that varies most: long ones need not be fitted whole."""
    n_frames = traces.shape[1]
    if n_frames <= MOST_FRAMES:
        return np.ascontiguousarray(traces, np.float32)
    starts = np.linspace(0, n_frames - MOST_FRAMES, 2 * -(-n_frames // MOST_FRAMES), dtype=np.int64)
    stretches = [slice(start, start + MOST_FRAMES) for start in starts]
    spread = np.stack([_spread(traces[:, stretch]) for stretch in stretches])
    best = np.argmax(spread, axis=0)
    return np.stack([trace[stretches[i]] for trace, i in zip(traces, best, strict=True)])


def _spread(traces: NDArray[np.floating]) -> Doubles:
    known = np.isfinite(traces)
    few = known.sum(axis=1) < MOST_FRAMES // 2
    values = [
        0.0 if little else np.nanstd(trace, dtype=np.float64)
        for trace, little in zip(traces, few, strict=True)
    ]
    return np.array(values)


def _known(traces: NDArray[np.floating]) -> NDArray[np.intp]:
    return np.asarray(np.count_nonzero(np.isfinite(traces), axis=1))


def _fitted(
    traces: NDArray[np.float32], noise: Doubles, shortest: float, longest: float, limit: float
) -> Doubles:
    """Return the time constant of each trace, frames; those tried do not depend on the limit."""
    tried, anchors = _spaced(shortest, longest, FACTOR), _spaced(shortest, longest, ANCHORS)
    tried = tried[: max(2, np.searchsorted(tried, limit, side="right"))]
    anchors = anchors[: np.searchsorted(anchors, tried[-1]) + 1]
    baseline = np.empty((len(traces), len(anchors)))
    for cell, trace in enumerate(traces):
        for i, decay in enumerate(_coefficients(anchors)):
            baseline[cell, i] = deconvolve(trace, float(decay), float(noise[cell])).baseline
    places = np.log(tried)
    known = np.array([np.interp(places, np.log(anchors), levels) for levels in baseline])
    residual, spikes = _residuals(traces, known, _coefficients(tried))
    variance = noise**2
    for _ in range(ROUNDS):  # the noise of fast transients is taken for larger than it is at first
        risk = residual / variance[:, None] + 2 * spikes
        best = np.argmin(risk, axis=1)[:, None]
        left, taken = (np.take_along_axis(each, best, 1)[:, 0] for each in (residual, spikes))
        variance = np.minimum(variance, left / np.maximum(_known(traces) - taken, 1))
        variance = np.maximum(variance, (SMALLEST_NOISE * noise) ** 2)
    return np.exp(_chosen(risk, places))


def _spaced(shortest: float, longest: float, factor: float) -> Doubles:
    steps = max(2, 1 + round(np.log(longest / shortest) / np.log(factor)))
    return np.geomspace(shortest, longest, steps)


def _coefficients(frames: Doubles) -> Doubles:
    return np.minimum(np.exp(-1 / frames), MAX_DECAY)


def _chosen(risk: Doubles, places: Doubles) -> Doubles:
    """Return each cell's place of least risk, drawn to where the cells' usual one lies.

    Half the risk counts as a negative log likelihood; the logarithms of the time constants are
    taken for normally distributed over cells, with mean and spread found from all of them.
    """
    evidence = np.exp(-0.5 * (risk - risk.min(axis=1, keepdims=True)))
    mean, spread = float(np.average(places, weights=evidence.sum(axis=0))), float(np.ptp(places))
    for _ in range(50):
        posterior = evidence * np.exp(-0.5 * ((places - mean) / spread) ** 2)
        posterior /= np.maximum(posterior.sum(axis=1, keepdims=True), 1e-300)
        share = posterior.mean(axis=0)
        mean = float(share @ places / share.sum())
        spread = max(float(np.sqrt(share @ (places - mean) ** 2 / share.sum())), LEAST_SPREAD)
    chosen: Doubles = posterior @ places
    return chosen


@njit(nogil=True, cache=True)
def _residuals(traces, baseline, tried):  # type: ignore[no-untyped-def]
    """Squared residual and number of spikes of unpenalised fits, each (cell, decay)."""
    n_frames = traces.shape[1]
    data, energy, power = np.empty(n_frames), np.empty(n_frames), np.empty(n_frames)
    start = np.empty(n_frames, np.int64)
    residual = np.zeros((len(traces), len(tried)))
    spikes = np.zeros((len(traces), len(tried)))
    for cell in range(len(traces)):
        trace = traces[cell]
        for i in range(len(tried)):
            level = baseline[cell, i]
            for frame in range(n_frames):
                if not np.isnan(trace[frame]):
                    residual[cell, i] += (trace[frame] - level) ** 2
            n = pool_violators(trace, tried[i], 0.0, level, data, energy, power, start)
            for k in range(n):
                if data[k] > 0:
                    residual[cell, i] -= data[k] ** 2 / energy[k]
                    spikes[cell, i] += 1
    return residual, spikes
