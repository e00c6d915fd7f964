"""The slow trend of a cell's resting light, which bleaching makes.

The recording is cut into blocks, and what is fitted is the resting level of each: transients are
not in it. Blocks that lie above the trend count less than those below, because activity only adds
light. A polynomial is linear in its coefficients; an exponential is so but for its time constant,
which alone is searched for (variable projection; Golub and Pereyra 1973, 10.1137/0710036).

A trend is not trusted, and the cell says so, where there are fewer than three blocks for each of
its coefficients: it is level then, and removing it does nothing. What light is divided by is held
between a fifth of its mean and five times it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

from napari_calcium.activity.percentile import whole_percentile

__all__ = ["Trend", "exponential_trend", "polynomial_trend", "positive_part"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

MOST_BLOCKS, SHORTEST_BLOCK = 64, 32
"""Blocks a recording is cut into, and the fewest frames of one."""

BLOCKS_PER_COEFFICIENT = 3
"""Blocks that a trend needs for each of its coefficients."""

LEAST_PART = 0.2
"""What light is divided by is not below this part of its mean, nor above 1 / it."""

CONVEX, ROUNDS = 8, 20
"""Rounds of a fit, the first of them with a cost that has one minimum."""

TOLERANCE = 2.0
"""Distance of a level from the trend at which it begins to count less, in usual steps."""

TIMES = np.geomspace(0.02, 3.0, 16)
"""Time constants tried, in lengths of the recording; with the longest a decay is about a line."""

NARROWINGS = 10
"""Times the interval around the best time constant is narrowed, to half a percent of it."""

GOLDEN = (5**0.5 - 1) / 2


class Trend(NamedTuple):
    """Trend of the resting light of each cell.

    Parameters
    ----------
    values : ndarray (cell, time), float32
        In the unit of the light.
    limited : ndarray of bool (cell,)
        Whether the fit could not be trusted, so that the trend is level or held at a bound.
    """

    values: Floats
    limited: NDArray[np.bool_]


class _Levels(NamedTuple):
    """Resting levels of blocks (cell, block), their usual step, (cell,), and the blocks' edges.

    `known` says which blocks have frames; the time is 0 to 1.
    """

    values: Doubles
    known: NDArray[np.bool_]
    step: Doubles
    edges: Doubles
    n_frames: int

    @property
    def centres(self) -> Doubles:
        return (self.edges[1:] + self.edges[:-1]) / 2

    def places(self, cell: int) -> Doubles:
        """Return the time of each frame, held where the cell has no more levels."""
        seen = np.flatnonzero(self.known[cell])
        held = (self.edges[seen[0]], self.edges[seen[-1] + 1]) if len(seen) else (0, 0)
        return np.clip((np.arange(self.n_frames) + 0.5) / self.n_frames, *held)


def polynomial_trend(
    light: NDArray[np.floating], percentiles: float | NDArray[np.floating], order: int = 1
) -> Trend:
    """Fit a polynomial to the resting light of each cell.

    Parameters
    ----------
    light : ndarray (cell, time)
        Fluorescence in any unit. Frames that are NaN or infinite are left out.
    percentiles : float or ndarray (cell,)
        Percentile of a block that is its resting level.
    order : int
        Of the polynomial, at least 1.

    Returns
    -------
    Trend
        Level and `limited` where there are less than 3 blocks of 32 frames for each coefficient.

    Examples
    --------
    >>> import numpy as np
    >>> light = np.linspace(100, 50, 3000)[None]
    >>> light = light + 80 * (np.arange(3000) % 300 < 60)
    >>> trend = polynomial_trend(light, 40)
    >>> trend.values[0, [0, -1]].round(), trend.limited
    (array([100.,  50.], dtype=float32), array([False]))
    """
    levels = _levels(light, percentiles)
    basis = np.asarray(legendre.legvander(2 * levels.centres - 1, order), np.float64)
    coefficients, _ = _fit(levels, basis[None])

    def curve(cell: int) -> Doubles:
        return np.asarray(legendre.legval(2 * levels.places(cell) - 1, coefficients[cell]))

    return _trend(levels, curve, order + 1)


def exponential_trend(
    light: NDArray[np.floating], percentiles: float | NDArray[np.floating]
) -> Trend:
    """Fit an exponential decay towards a constant to the resting light of each cell.

    Parameters
    ----------
    light : ndarray (cell, time)
        Fluorescence in any unit. Frames that are NaN or infinite are left out.
    percentiles : float or ndarray (cell,)
        Percentile of a block that is its resting level.

    Returns
    -------
    Trend
        Level where the light does not decay; level and `limited` where there are less than 9 blocks
        of 32 frames.

    Examples
    --------
    >>> import numpy as np
    >>> decay = 60 + 40 * np.exp(-np.arange(3000) / 600)
    >>> trend = exponential_trend(decay[None] + 80 * (np.arange(3000) % 300 < 60), 40)
    >>> trend.values[0, [0, 600, -1]].round()
    array([100.,  75.,  60.], dtype=float32)
    """
    levels = _levels(light, percentiles)
    times = _best_times(levels)
    coefficients, _ = _fit(levels, _decays(levels.centres, times))
    constant, _ = _fit(levels, np.ones((1, len(levels.centres), 1)))
    falls = coefficients[:, 1] > 0

    def curve(cell: int) -> Doubles:
        if not falls[cell]:
            return np.full(levels.n_frames, constant[cell, 0])
        level, height = coefficients[cell]
        return np.asarray(level + height * np.exp(-levels.places(cell) / times[cell]))

    return _trend(levels, curve, 3)


def positive_part(trend: Trend) -> Trend:
    """Return a trend as a factor of mean 1 that light can be divided by.

    Parameters
    ----------
    trend : Trend
        Of the light.

    Returns
    -------
    Trend
        Held between a fifth and five, and `limited` where that acts; 1 and `limited` where the mean
        is not above 0.

    Examples
    --------
    >>> import numpy as np
    >>> falling = Trend(np.array([[3.0, 1.0, -1.0]]), np.array([False]))
    >>> positive_part(falling)
    Trend(values=array([[3. , 1. , 0.2]], dtype=float32), limited=array([ True]))
    """
    total = np.sum(trend.values, axis=1, keepdims=True, dtype=np.float64)
    mean = total / max(1, trend.values.shape[1])
    usable = np.isfinite(mean) & (mean > 0)
    factor = np.where(usable, trend.values / np.where(usable, mean, 1), 1)
    held = np.clip(factor, LEAST_PART, 1 / LEAST_PART)
    limited = trend.limited | ~usable[:, 0] | np.any(held != factor, axis=1)
    return Trend(held.astype(np.float32), limited)


def _levels(light: NDArray[np.floating], percentiles: float | NDArray[np.floating]) -> _Levels:
    n_frames = np.shape(light)[1]
    count = max(1, min(MOST_BLOCKS, n_frames // SHORTEST_BLOCK))
    edges = np.arange(count + 1) * n_frames // count
    runs = [slice(*pair) for pair in pairwise(edges)]
    levels = [whole_percentile(light[:, run], percentiles) for run in runs]
    values = np.stack(levels, axis=1).astype(np.float64)
    known = np.isfinite(values)
    steps = np.array([_usual_step(row[seen]) for row, seen in zip(values, known, strict=True)])
    return _Levels(np.where(known, values, 0), known, steps, edges / max(n_frames, 1), n_frames)


def _usual_step(levels: Doubles) -> float:
    """Return the usual step from one level to the next, and more than nothing."""
    if len(levels) < 2:
        return 1.0
    usual = 1.0484 * float(np.median(np.abs(np.diff(levels))))  # sd of normal values from it
    return max(usual, 1e-6 * float(np.ptp(levels)), float(np.finfo(np.float32).tiny))


def _fit(levels: _Levels, basis: Doubles) -> tuple[Doubles, Doubles]:
    """Fit curves to levels by reweighted least squares.

    Parameters
    ----------
    levels : _Levels
        Of the cells.
    basis : ndarray (cell or 1, block, coefficient)
        Curves at the blocks' centres.

    Returns
    -------
    coefficients : ndarray (cell, coefficient)
    cost : ndarray (cell,)
        Linear in the distance below the curve and logarithmic above it.
    """
    weights = levels.known.astype(np.float64)
    tiny = np.eye(basis.shape[2]) * 1e-12
    for turn in range(ROUNDS):
        weighted = weights[..., None] * basis
        normal = (weighted[..., :, None] * basis[..., None, :]).sum(axis=1) + tiny
        right = (weighted * levels.values[..., None]).sum(axis=1)
        coefficients = np.linalg.solve(normal, right[..., None])[..., 0]
        away = levels.values - (basis * coefficients[:, None, :]).sum(axis=2)
        away /= TOLERANCE * levels.step[:, None]
        below = 1 / np.maximum(np.abs(away), 1)
        above = below if turn < CONVEX else 1 / (1 + away**2)
        weights = levels.known * np.where(away > 0, above, below)
    far = np.abs(away)
    linear = np.where(far < 1, far**2, 2 * far - 1)
    cost = levels.known * np.where(away > 0, np.log1p(away**2), linear)
    return coefficients, cost.sum(axis=1)


def _decays(centres: Doubles, times: Doubles) -> Doubles:
    """Return a constant and a decay for each cell, (cell, block, 2)."""
    decays = np.exp(-centres / times[:, None])
    return np.stack([np.ones_like(decays), decays], axis=2)


def _best_times(levels: _Levels) -> Doubles:
    """Return the time constant of the least cost for each cell, in lengths of the recording."""
    n_cells = len(levels.values)
    costs = [_fit(levels, _decays(levels.centres, np.full(n_cells, time)))[1] for time in TIMES]
    best = np.argmin(np.array(costs).reshape(len(TIMES), n_cells), axis=0)
    low = np.log(TIMES[np.maximum(best - 1, 0)])
    high = np.log(TIMES[np.minimum(best + 1, len(TIMES) - 1)])
    for _ in range(NARROWINGS):
        width = GOLDEN * (high - low)
        first, second = high - width, low + width
        costs = [_fit(levels, _decays(levels.centres, np.exp(x)))[1] for x in (first, second)]
        better = costs[0] <= costs[1]
        low, high = np.where(better, low, first), np.where(better, second, high)
    return np.asarray(np.exp((low + high) / 2))


def _trend(levels: _Levels, curve: Callable[[int], Doubles], coefficients: int) -> Trend:
    """Return the curve of each cell, or its usual level where it has too few for the curve."""
    enough = levels.known.sum(axis=1) >= BLOCKS_PER_COEFFICIENT * coefficients
    values = np.zeros((len(enough), levels.n_frames), np.float32)
    for cell, known in enumerate(levels.known):
        if enough[cell]:
            values[cell] = curve(cell)
        elif known.any():
            values[cell] = np.median(levels.values[cell, known])
    return Trend(values, ~enough)
