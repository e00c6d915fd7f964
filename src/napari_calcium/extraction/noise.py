"""Noise of pixels."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["pixel_noise", "pixel_noise_of_rows"]


def pixel_noise(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the standard deviation of each pixel's white noise.

    Taken from the second differences in time, in which calcium, being slow, hardly shows.

    Parameters
    ----------
    frames : ndarray (time, ...)
        Signals; NaN gives NaN.

    Returns
    -------
    ndarray (...), float32
        In the unit of `frames`; 0 for fewer than three frames.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(0, 3, (20000, 1)).astype(np.float32)
    >>> bool(abs(pixel_noise(noise)[0] - 3) < 0.1)
    True
    """
    if len(frames) < 3:
        return np.zeros(frames.shape[1:], np.float32)
    total = _squared_differences(frames.reshape(len(frames), -1))
    noise: NDArray[np.float64] = np.sqrt(total / (1.5 * (len(frames) - 2)))
    return noise.reshape(frames.shape[1:]).astype(np.float32)


def pixel_noise_of_rows(signals: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the same of signals (pixel, time).

    Examples
    --------
    >>> frames = np.random.default_rng(0).normal(size=(90, 7)).astype(np.float32)
    >>> rows = np.ascontiguousarray(frames.T)
    >>> bool(np.allclose(pixel_noise_of_rows(rows), pixel_noise(frames), rtol=1e-5))
    True
    """
    n_frames = signals.shape[1]
    if n_frames < 3:
        return np.zeros(len(signals), np.float32)
    total = np.empty(len(signals))
    _squared_differences_of_rows(signals, total)
    return np.asarray(np.sqrt(total / (1.5 * (n_frames - 2))), np.float32)


@njit(nogil=True, cache=True, fastmath=True)
def _squared_differences_of_rows(signals, total):  # type: ignore[no-untyped-def]
    for pixel in range(len(signals)):
        row = signals[pixel]
        squares = np.float32(0.0)
        for time in range(1, len(row) - 1):
            change = row[time] - np.float32(0.5) * (row[time - 1] + row[time + 1])
            squares += change * change
        total[pixel] = squares


@njit(nogil=True, cache=True)
def _squared_differences(frames):  # type: ignore[no-untyped-def]
    """Sum of squares of each frame less the mean of the two beside it."""
    total = np.zeros(frames.shape[1])
    for time in range(1, len(frames) - 1):
        before, now, after = frames[time - 1], frames[time], frames[time + 1]
        for pixel in range(len(total)):
            change = now[pixel] - np.float32(0.5) * (before[pixel] + after[pixel])
            total[pixel] += change * change
    return total
