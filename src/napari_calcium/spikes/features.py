"""What a network is told of a trace: the trace in two units, and the trace's own statistics.

A network that sees two seconds of a trace cannot know how fast its indicator is or how much one
spike brightens it. The statistics of the whole trace say much of this: its noise, how long its
fluctuations last, and how large they get.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_calcium.spikes.noise import noise_sd

__all__ = ["LAGS", "N_FEATURES", "Features", "channels", "trace_features"]

Floats = NDArray[np.float64]

LAGS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Lags at which the autocovariance is taken, s."""

QUANTILES = (0.2, 0.5, 0.9, 0.99, 0.998)
"""The first two say where the baseline is, the others how large transients get."""

AROUND = (-0.3, -0.15, -0.07, 0.0, 0.07, 0.15, 0.3, 0.6, 1.2)
"""Times before and after a rise at which the mean transient is taken, s."""

RISE = 0.07
"""Rises are looked for between two means of so many seconds, or of one frame."""

STEEP = 2.5
"""A rise of more noise sd than this counts, by how much it is more."""

N_FEATURES = 4 + len(LAGS) + 4 + 3 + len(AROUND) + 2

N_PLAIN = 4
"""The first statistics, which say little of the indicator: frame rate, noise, and variances."""

LEAST_NOISE = 1e-4
"""Noise of a trace is taken to be at least so large, as a fraction."""

BELOW_MEDIAN = 0.8416
"""Of normal noise the first of `QUANTILES` is so many sd below the median."""


@dataclass(frozen=True)
class Features:
    """Statistics of one trace.

    Parameters
    ----------
    values : ndarray of float32 (feature,)
        What the network is told.
    noise : float
        Sd of the noise of a frame, as a fraction.
    baseline : float
        Where the trace is at rest, as a fraction; 0 in an ideal dF/F.
    """

    values: NDArray[np.float32]
    noise: float
    baseline: float


def trace_features(dff: NDArray[np.floating], frame_rate: float) -> Features:
    """Return the statistics of a trace.

    Parameters
    ----------
    dff : ndarray (time,)
        dF/F as a fraction; NaN is left out. At least two neighbouring frames are finite.
    frame_rate : float
        Hz.

    Returns
    -------
    Features
        Logarithms of the frame rate, the noise, the variance over that of the noise, and the
        variance without it; the autocovariance at `LAGS` over the variance without noise; the
        quantiles of the trace in sd of its noise, and the upper ones as a fraction; the mean
        transient at the times `AROUND` as a part of its height, and the height in both units.

    Examples
    --------
    >>> white = np.random.default_rng(0).normal(0.5, 0.1, 10_000)
    >>> features = trace_features(white, 30.0)
    >>> round(features.noise, 2), round(features.baseline, 1), features.values.shape
    (0.1, 0.5, (28,))
    """
    trace = np.asarray(dff, np.float64)
    known = np.isfinite(trace)
    noise = max(float(noise_sd(np.where(known, trace, np.nan))), LEAST_NOISE)
    quantiles = np.quantile(trace[known], QUANTILES)
    baseline = float(min(quantiles[0] + BELOW_MEDIAN * noise, quantiles[1]))
    rest = np.where(known, np.maximum(trace - baseline, -5 * noise), 0)
    rest = np.where(known, rest - rest.sum() / known.sum(), 0)
    variance = float(rest @ rest) / int(known.sum())
    signal = max(variance - noise**2, 0.05 * noise**2)
    above = quantiles - baseline
    shape, height = _mean_transient(trace - baseline, known, noise, frame_rate)
    values = [
        np.log(frame_rate / 15),
        np.log(noise / 0.1),
        np.log(max(variance, 1e-12) / noise**2),
        np.log(signal / 0.05),
        *np.clip(_autocovariance(rest, known, frame_rate) / signal, -1, 1.5),
        *np.arcsinh(above[1:] / noise / 2),
        *np.arcsinh(5 * above[2:]),
        *shape,
        np.arcsinh(height / noise / 2),
        np.arcsinh(5 * height),
    ]
    return Features(np.array(values, np.float32), noise, baseline)


def channels(dff: NDArray[np.floating], features: Features) -> NDArray[np.float32]:
    """Return a trace as the network sees it.

    Parameters
    ----------
    dff : ndarray (time,)
        dF/F as a fraction, finite.
    features : Features
        Of the whole trace, of which this may be a part.

    Returns
    -------
    ndarray of float32 (time, 2)
        Above the baseline, in sd of the noise and as a fraction, the large ones compressed.
    """
    above = np.asarray(dff, np.float32) - np.float32(features.baseline)
    in_noise = np.arcsinh(above * np.float32(0.5 / features.noise))
    as_fraction = np.arcsinh(above * np.float32(5)) * np.float32(0.5)
    return np.stack((in_noise, as_fraction), axis=-1)


def _autocovariance(rest: Floats, known: NDArray[np.bool_], frame_rate: float) -> Floats:
    """Return the autocovariance at `LAGS`, between frames interpolated, at least one frame."""
    n_frames = len(rest)
    lags = np.clip(np.array(LAGS) * frame_rate, 1, n_frames - 1)
    low = np.minimum(lags.astype(int), n_frames - 2) if n_frames > 2 else np.ones(len(lags), int)
    both = [_covariance_at(rest, known, lag) for lag in np.stack((low, low + 1)).ravel()]
    below, beyond = np.array(both).reshape(2, -1)
    return np.asarray(below + (lags - low) * (beyond - below))


def _covariance_at(rest: Floats, known: NDArray[np.bool_], lag: int) -> float:
    pairs = int((known[lag:] & known[:-lag]).sum())
    return float(rest[lag:] @ rest[:-lag]) / pairs if pairs else 0.0


def _mean_transient(
    above: Floats, known: NDArray[np.bool_], noise: float, frame_rate: float
) -> tuple[Floats, float]:
    """Return the mean trace around its steepest rises, over its height; and the height.

    How fast it rises and falls is told by the indicator, how high it gets by what it gives for a
    few spikes.
    """
    n = max(1, round(RISE * frame_rate))
    above = np.where(known, above, 0)
    weights = _rises(above, known, n, STEEP * noise * np.sqrt(2 / n))
    at = np.flatnonzero(weights)
    means = []
    for time in AROUND:
        there = at + round(time * frame_rate)
        inside = (there >= 0) & (there < len(above))
        weight = weights[at[inside]] * known[there[inside]]
        total = float(weight.sum())
        means.append(float(weight @ above[there[inside]]) / total if total else 0.0)
    height = max(max(means) - means[0], 1e-3 * noise)
    return np.clip((np.array(means) - means[0]) / height, -1, 1.5), height


def _rises(above: Floats, known: NDArray[np.bool_], n: int, least: float) -> Floats:
    """Return by how much each frame's rise over ``n`` frames is more than the least that counts.

    0 but where the rise is the steepest of its neighbours; the highest tenth counts alike.
    """
    weights = np.zeros(len(above))
    if len(above) <= 2 * n:
        return weights
    mean = np.convolve(above, np.full(n, 1 / n), "same")
    whole = np.convolve(known, np.ones(n), "same") > n - 0.5
    rises = np.where(whole[n:] & whole[:-n], mean[n:] - mean[:-n], 0)
    weights[n:] = np.maximum(rises - least, 0)
    if not weights.any():
        return weights
    most = np.quantile(weights[weights > 0], 0.9)
    steepest = np.ones(len(above), bool)
    steepest[1:] &= weights[1:] >= weights[:-1]
    steepest[:-1] &= weights[:-1] > weights[1:]
    return np.where(steepest, np.minimum(weights, most), 0)
