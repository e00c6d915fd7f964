"""Fluorescence as a fraction of its own baseline, dF/F."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from dask.delayed import Delayed, delayed
from numba import njit
from numpy.typing import NDArray

from napari_calcium.components import Components
from napari_calcium.errors import InputError
from napari_calcium.movie import blocks
from napari_calcium.parameters import Parameters, parameter
from napari_calcium.traces import noise_level

__all__ = [
    "Dff",
    "DffParameters",
    "background_under_cells",
    "dff",
    "dff_components",
    "running_percentile",
]

Floats = NDArray[np.float32]

LEAST_FLOOR = 1e-30
"""F0 relative to the largest fluorescence below which dF/F would not be a number."""

SMALLEST_F0 = 1e-6
"""Least F0 of a trace without noise, as a fraction of its largest value."""

SHORTEST_PART = 512
"""Fewest frames ranked together by the running percentile."""


@dataclass(frozen=True)
class DffParameters(Parameters):
    """How F0 is found.

    Parameters
    ----------
    window : float
        Length of the running window whose percentile is the baseline, s; several times longer
        than a transient (CaImAn: frames_window).
    percentile : float
        Percentile of the fluorescence in the window that is the baseline, % (CaImAn: quantileMin).
    floor : float
        Smallest F0, as a multiple of the trace's noise. F0 near or below zero would give wild
        values; a cell whose F0 was raised to this is flagged.
    """

    window: float = parameter(30.0, unit="s", above=0)
    percentile: float = parameter(8.0, unit="%", minimum=0, maximum=100)
    floor: float = parameter(1.0, unit="noise sd", minimum=0)


@dataclass(frozen=True)
class Dff:
    """Relative changes of fluorescence.

    Parameters
    ----------
    traces : ndarray (cell, time)
        dF/F as a fraction: 1 is a doubling.
    baseline : ndarray (cell, time)
        F0, what the change was divided by, in the unit of the fluorescence; above 0.
    floored : ndarray of bool (cell,)
        Whether F0 had to be raised to its floor in any frame: dF/F is not to be trusted.
    """

    traces: Floats
    baseline: Floats
    floored: NDArray[np.bool_]

    def __post_init__(self) -> None:
        object.__setattr__(self, "traces", np.ascontiguousarray(self.traces, np.float32))
        object.__setattr__(self, "baseline", np.ascontiguousarray(self.baseline, np.float32))
        object.__setattr__(self, "floored", np.ascontiguousarray(self.floored, bool))
        if self.traces.ndim != 2 or self.traces.shape != self.baseline.shape:
            raise ValueError(f"traces {self.traces.shape} and baseline {self.baseline.shape}")
        if self.floored.shape != self.traces.shape[:1]:
            raise ValueError(f"{len(self.traces)} traces but {self.floored.shape} flags")


def running_percentile(
    traces: NDArray[np.floating], window: int, percentile: float
) -> NDArray[np.float32]:
    """Return the exact percentile of each trace in a window around every frame.

    Equal to ``np.percentile`` of ``trace[t - window // 2 : t + (window + 1) // 2]``; at the ends
    the window is what is left of it. Costs O(log window) per frame.

    Parameters
    ----------
    traces : ndarray (cell, time)
        Fluorescence in any unit. Frames that are NaN or infinite are left out.
    window : int
        Length of the window in frames, odd or even; it may exceed the trace.
    percentile : float
        Percentile, 0 to 100, interpolated linearly between values.

    Returns
    -------
    ndarray (cell, time), float32
        Percentile at each frame; NaN where the window has no frame left.

    Raises
    ------
    ValueError
        If `traces` are not (cell, time), the window is below 1 or the percentile is out of range.

    References
    ----------
    .. [1] Fenwick, Softw. Pract. Exp. 1994, doi:10.1002/spe.4380240306

    Examples
    --------
    >>> import numpy as np
    >>> running_percentile(np.array([[3.0, 1.0, 2.0, 9.0]]), window=3, percentile=50)
    array([[2. , 2. , 2. , 5.5]], dtype=float32)
    """
    traces = np.asarray(traces)
    if traces.ndim != 2:
        raise ValueError(f"traces have {traces.ndim} axes; they are (cell, time)")
    if window < 1 or not 0 <= percentile <= 100:
        raise ValueError(f"window {window} is at least 1, percentile {percentile} 0 to 100")
    rows = np.ascontiguousarray(traces, dtype=np.float32)
    result = np.empty_like(rows)
    window = min(int(window), 2 * rows.shape[1] + 1)
    for row, filled in zip(rows, result, strict=True):
        _percentile_row(row, window, percentile / 100, filled)
    return result


def dff(
    traces: NDArray[np.floating],
    residuals: NDArray[np.floating],
    background_under_cell: NDArray[np.floating],
    parameters: DffParameters,
    frame_rate: float,
) -> Dff:
    """Return dF/F of each cell.

    With F = traces + residuals, B the background under the cell and P the running percentile,
    F0 = P(F) + P(B), not below its floor, and dF/F = (F - P(F)) / F0.

    Parameters
    ----------
    traces, residuals : ndarray (cell, time)
        Denoised fluorescence and what the denoising took away, in the same unit.
    background_under_cell : ndarray (cell, time)
        Fluorescence of the background in the footprint, in that unit; see
        `background_under_cells`.
    parameters : DffParameters
        Window, percentile and floor.
    frame_rate : float
        Frames per second, Hz.

    Returns
    -------
    Dff
        Never infinite; NaN only in frames where the fluorescence is NaN or infinite, or where
        the background is throughout the window.

    Raises
    ------
    InputError
        If the frame rate is not above 0 Hz.
    ValueError
        If the arrays differ in shape.

    References
    ----------
    .. [1] Giovannucci et al., eLife 2019, doi:10.7554/eLife.38173

    Examples
    --------
    >>> import numpy as np
    >>> traces = np.full((1, 90), 60.0)
    >>> traces[0, 40] = 100.0
    >>> zeros = np.zeros_like(traces)
    >>> result = dff(traces, zeros, zeros + 20, DffParameters(), frame_rate=30.0)
    >>> result.traces[0, 39:42], result.baseline[0, 0], result.floored
    (array([0. , 0.5, 0. ], dtype=float32), np.float32(80.0), array([False]))
    """
    _check_frame_rate(frame_rate)
    fluorescence = np.asarray(traces, np.float32) + np.asarray(residuals, np.float32)
    background = np.asarray(background_under_cell, np.float32)
    if fluorescence.shape != np.shape(traces) or background.shape != fluorescence.shape:
        raise ValueError("traces, residuals and background differ in shape")
    window = max(1, round(parameters.window * frame_rate))
    resting = running_percentile(fluorescence, window, parameters.percentile)
    behind = running_percentile(background, window, parameters.percentile)
    floor = _f0_floor(fluorescence, parameters.floor)[:, None]
    with np.errstate(invalid="ignore"):  # a frame without fluorescence: NaN stays NaN
        f0 = resting + behind
        floored = np.any(f0 < floor, axis=1)
        f0 = np.maximum(f0, floor)
        change = np.where(np.isfinite(fluorescence), (fluorescence - resting) / f0, np.nan)
    return Dff(change, f0, floored)


def background_under_cells(components: Components) -> Floats:
    """Return the background's fluorescence in each footprint, in the unit of the traces.

    The coefficient a cell would need to explain the background in its own pixels,
    ``footprint @ background / (footprint @ footprint)``; footprints are of unit norm, so the
    background is weighted exactly as the cell's own fluorescence is.

    Parameters
    ----------
    components : Components
        Cells and background.

    Returns
    -------
    ndarray (cell, time), float32
        Background under each cell; 0 for a footprint that is 0 everywhere.

    Examples
    --------
    >>> import numpy as np, scipy.sparse as sp
    >>> from napari_calcium.components import Background
    >>> footprint = sp.csc_array(np.array([[0.6], [0.8], [0.0]]))
    >>> background = Background(sp.csc_array(np.ones((3, 1))), np.full((1, 2), 10.0))
    >>> zeros = np.zeros((1, 2))
    >>> cells = Components(footprint, (1, 3), zeros, zeros, zeros, background, np.arange(1))
    >>> background_under_cells(cells).round(3)
    array([[14., 14.]], dtype=float32)
    """
    footprints = components.footprints
    energy = np.asarray(footprints.power(2).sum(axis=0), np.float64).ravel()
    overlap = (footprints.T @ components.background.footprints).toarray()
    weights = overlap / np.where(energy > 0, energy, 1)[:, None]
    return np.asarray(weights.astype(np.float32) @ components.background.traces, np.float32)


def dff_components(
    components: Delayed, frame_rate: float, parameters: DffParameters | None = None
) -> Delayed:
    """Return lazily the dF/F of components; nothing is computed here.

    Parameters
    ----------
    components : Delayed of Components
        Cells and background of a recording.
    frame_rate : float
        Frames per second, Hz.
    parameters : DffParameters, optional
        Window, percentile and floor.

    Returns
    -------
    Delayed of Dff
        One task: traces are small beside the movie they come from.

    Raises
    ------
    InputError
        If the frame rate is not above 0 Hz.
    """
    _check_frame_rate(frame_rate)
    return delayed(_dff_of, pure=True)(components, parameters or DffParameters(), frame_rate)


def _dff_of(components: Components, parameters: DffParameters, frame_rate: float) -> Dff:
    background = background_under_cells(components)
    return dff(components.traces, components.residuals, background, parameters, frame_rate)


def _check_frame_rate(frame_rate: float) -> None:
    if not (frame_rate > 0 and math.isfinite(frame_rate)):
        raise InputError(f"frame_rate is {frame_rate} Hz; give the frames recorded per second")


def _f0_floor(fluorescence: Floats, multiple: float) -> Floats:
    """Smallest F0 (cell,), above 0 even for a trace without noise."""
    floor = multiple * noise_level(fluorescence)
    known, tiny = np.isfinite(fluorescence), np.finfo(np.float32).tiny
    largest = np.max(np.abs(fluorescence), axis=1, initial=0, where=known)
    silent = np.where(largest > 0, SMALLEST_F0 * largest, 1).astype(np.float32)
    return np.maximum(np.where(floor > 0, np.maximum(floor, LEAST_FLOOR * largest), silent), tiny)


def _percentile_row(trace: Floats, window: int, fraction: float, result: Floats) -> None:
    """Fill the running percentile of one trace, ranked in parts about as long as the window."""
    before, after = window // 2, (window + 1) // 2
    for part in blocks(len(trace), max(window, SHORTEST_PART)):
        first = max(part.start - before, 0)
        piece = trace[first : part.stop + after]
        order = np.argsort(piece)
        start, stop = part.start - first, part.stop - first
        _percentile_part(piece, order, start, stop, before, after, fraction, result[part])


@njit(nogil=True, cache=True)
def _percentile_part(  # type: ignore[no-untyped-def]
    piece, order, start, stop, before, after, fraction, result
):
    """Running percentile of frames `start` to `stop` of a piece that holds their windows."""
    rank = np.empty(len(piece), np.int64)
    rank[order] = np.arange(len(piece))
    tree = np.zeros(len(piece) + 1, np.int64)
    top = 1
    while 2 * top <= len(piece):
        top *= 2
    left = right = count = 0
    for frame in range(start, stop):
        while right < min(frame + after, len(piece)):
            count += _add(tree, rank, piece, right, 1)
            right += 1
        while left < frame - before:
            count += _add(tree, rank, piece, left, -1)
            left += 1
        result[frame - start] = _quantile(tree, top, order, piece, count, fraction)


@njit(nogil=True, cache=True)
def _add(tree, rank, piece, frame, amount):  # type: ignore[no-untyped-def]
    """Count a frame in the tree of ranks, or no longer; returns the change of the count."""
    if not np.isfinite(piece[frame]):
        return 0
    node = rank[frame] + 1
    while node < len(tree):
        tree[node] += amount
        node += node & -node
    return amount


@njit(nogil=True, cache=True)
def _quantile(tree, top, order, piece, count, fraction):  # type: ignore[no-untyped-def]
    """Linear interpolation between the two ranked values, rounded as numpy does."""
    if count == 0:
        return np.nan
    place = (count - 1) * fraction
    whole = min(int(np.floor(place)), count - 1)
    low = np.float64(piece[order[_select(tree, top, whole)]])
    if whole == count - 1 or place == whole:
        return low
    high = np.float64(piece[order[_select(tree, top, whole + 1)]])
    part = place - whole
    if part >= 0.5:
        return high - (high - low) * (1 - part)
    return low + (high - low) * part


@njit(nogil=True, cache=True)
def _select(tree, top, index):  # type: ignore[no-untyped-def]
    """Rank of the entry before which there are `index` entries."""
    node, step = 0, top
    while step > 0:
        if node + step < len(tree) and tree[node + step] <= index:
            node += step
            index -= tree[node]
        step //= 2
    return node
