"""The autoregressive model of calcium: how fast it decays, how much of a trace is noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_calcium.traces import noise_level

__all__ = ["MAX_DECAY", "MIN_DECAY", "decay_coefficient", "noise_level"]

MIN_DECAY = 0.01
"""Smallest coefficient: what is left of calcium one frame later."""

MAX_DECAY = 0.999
"""Largest coefficient: a time constant of 1000 frames."""


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


def _autocovariance(traces: NDArray[np.floating], lags: int) -> NDArray[np.float64]:
    """Autocovariance (cell, lag) at lags 0 to `lags`; missing frames count as the mean."""
    covariance = np.zeros((len(traces), lags + 1))
    n_frames = traces.shape[1]
    for cell, row in enumerate(traces):  # a row at a time: no copy of all traces in float64
        known = np.isfinite(row)
        if known.any():
            trace = np.where(known, row - row[known].mean(dtype=np.float64), 0.0)
            for lag in range(min(lags + 1, n_frames)):
                covariance[cell, lag] = trace[: n_frames - lag] @ trace[lag:] / n_frames
    return covariance
