"""Noise of pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["pixel_noise"]


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
    total = np.zeros(frames.shape[1:])
    for before, now, after in zip(frames[:-2], frames[1:-1], frames[2:], strict=True):
        total += np.square(now - 0.5 * (before + after))
    return np.sqrt(total / (1.5 * (len(frames) - 2))).astype(np.float32)
