"""The noise level of a dF/F trace, comparable between frame rates, and noise of a wanted level.

The noise level of Rupprecht et al. 2021, doi:10.1038/s41593-021-00895-5, is the median step from
frame to frame, in percent, over the square root of the frame rate.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

__all__ = ["MEDIAN_STEP", "add_noise", "noise_level", "noise_sd"]

Floats = NDArray[np.float64]

MEDIAN_STEP = 0.9538725524
"""Median absolute difference of two normal numbers of sd 1: 0.6745 times the root of 2."""

SIZES = 9
"""Sizes of noise that are tried, between which the right one is interpolated."""

ROUNDS = 2
"""How often they are tried, each time closer together."""


def noise_level(dff: ArrayLike, frame_rate: float) -> Floats:
    """Return the noise level of dF/F traces.

    Parameters
    ----------
    dff : array_like (..., time)
        dF/F as a fraction. Steps to and from NaN are left out.
    frame_rate : float
        Hz.

    Returns
    -------
    ndarray (...,)
        % per root Hz (s^0.5): 100 times the median absolute step over the root of the frame rate.
        White noise of sd s has 95.4 s over the root of the frame rate. NaN without two
        neighbouring frames that are finite. Cascade: noise level, nu.

    References
    ----------
    .. [1] Rupprecht et al., Nature Neuroscience 2021, doi:10.1038/s41593-021-00895-5

    Examples
    --------
    >>> white = np.random.default_rng(0).normal(0, 0.1, 100_000)
    >>> noise_level(white, 30.0).round(2)
    np.float64(1.74)
    """
    steps = np.abs(np.diff(np.asarray(dff, np.float64), axis=-1))
    return np.asarray(100 * _nan_median(steps) / np.sqrt(frame_rate))[()]


def noise_sd(dff: ArrayLike) -> Floats:
    """Return the sd of the white noise of dF/F traces, by their median absolute step.

    Parameters
    ----------
    dff : array_like (..., time)
        As in `noise_level`.

    Returns
    -------
    ndarray (...,)
        In the units of `dff`; NaN as in `noise_level`.

    Examples
    --------
    >>> white = np.random.default_rng(0).normal(0, 0.1, 100_000)
    >>> noise_sd(white).round(3)
    np.float64(0.1)
    """
    steps = np.abs(np.diff(np.asarray(dff, np.float64), axis=-1))
    return np.asarray(_nan_median(steps) / MEDIAN_STEP)[()]


def add_noise(dff: ArrayLike, frame_rate: float, level: float, random: Generator) -> Floats | None:
    """Add noise to a trace until it has a wanted noise level.

    The noise is that of photons: its sd goes with the root of the brightness, 1 + dF/F. Its size is
    found by measuring the noise level with several sizes.

    Parameters
    ----------
    dff : array_like (time,)
        dF/F as a fraction; NaN stays NaN.
    frame_rate : float
        Hz.
    level : float
        Wanted noise level, % per root Hz.
    random : numpy.random.Generator
        Where the noise is from.

    Returns
    -------
    ndarray (time,) or None
        The noisy trace, its level within 1 % of what is wanted wherever it has hundreds of frames;
        None where the trace is noisier than that to begin with, or stays below the level with
        twice the noise that white noise of it has, as where nearly half of the frames are black.

    Examples
    --------
    >>> quiet = np.zeros(10_000)
    >>> noisy = add_noise(quiet, 30.0, 2.0, np.random.default_rng(0))
    >>> noise_level(noisy, 30.0).round(2)
    np.float64(2.0)
    """
    trace = np.asarray(dff, np.float64)
    own = noise_level(trace, frame_rate)
    if not own <= level:
        return None
    white = random.standard_normal(trace.shape) * _photon_noise(trace)
    unit = level * np.sqrt(frame_rate) / (100 * MEDIAN_STEP)  # the sd if there were no noise yet
    low, high = 0.0, 2 * unit
    for _ in range(ROUNDS):
        sizes = np.linspace(low, high, SIZES)
        levels = np.array([noise_level(trace + size * white, frame_rate) for size in sizes])
        if not (levels >= level).any():
            return None
        past = int(np.argmax(levels >= level))
        low, high = sizes[max(past - 1, 0)], sizes[past]
        share = _share(level, levels[max(past - 1, 0)], levels[past])
    return np.asarray(trace + (low + share * (high - low)) * white)


def _photon_noise(trace: Floats) -> Floats:
    """Return how large the noise of each frame is beside that of the median frame."""
    brightness = np.sqrt(np.abs(trace + 1))
    middle = np.nanmedian(brightness)
    return brightness / middle if middle > 0 else np.ones_like(trace)


def _share(value: float, low: float, high: float) -> float:
    return float(np.clip((value - low) / (high - low), 0, 1)) if high > low else 1.0


def _nan_median(values: Floats) -> Floats:
    """Return the median along the last axis, NaN left out and without a warning."""
    if values.shape[-1] == 0:
        return np.full(values.shape[:-1], np.nan)
    if not np.isnan(values).any():
        return np.asarray(np.median(values, axis=-1))
    ordered = np.sort(values, axis=-1)  # NaN last
    n = np.sum(~np.isnan(values), axis=-1)
    low, high = (np.maximum(part, 0)[..., None] for part in ((n - 1) // 2, n // 2))
    below = np.take_along_axis(ordered, low, axis=-1)[..., 0]
    above = np.take_along_axis(ordered, np.minimum(high, values.shape[-1] - 1), axis=-1)[..., 0]
    return np.where(n > 0, (below + above) / 2, np.nan)
