"""The spike rates of all cells as an image that is small enough to hold and fast to draw."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_calcium.io.session import Session
from napari_calcium.napari.decided import RATES, of_these_cells

__all__ = ["LARGEST", "STEPS", "UNKNOWN", "RateImage", "Stretch", "rate_image", "read_rate_image"]

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

LARGEST = 2**25
"""Most pixels of the image, cells times columns: 32 MiB, and half as much again for the coarser."""

UNKNOWN, STEPS = 0, 254
"""The pixel of what is not known, and how many steps there are from 0 Hz, which is 1."""

BRIGHTEST = 99.8
"""Percentile of the rates that is shown brightest."""

ENOUGH = 2**20
"""Of the rates, so many are looked at for that."""

ROWS = 64
"""Cells that are read at once, as they lie on disk."""

COLUMNS_ENOUGH = 256
"""The coarsest image has about so many columns."""


@dataclass(frozen=True)
class Stretch:
    """What is to be drawn of some time and some cells.

    Parameters
    ----------
    pixels : ndarray of uint8 (row, column)
        `UNKNOWN`, or 1 at 0 Hz to 255 at the brightest.
    first_row, first_frame : int
        Where the first row and the first column begin, in cells and in frames.
    cells_per_row, frames_per_column : int
        Of so many, a pixel is the largest.
    """

    pixels: Pixels
    first_row: int
    first_frame: int
    cells_per_row: int
    frames_per_column: int


@dataclass(frozen=True)
class RateImage:
    """The rates of all cells of a session, and the same coarser in time.

    Parameters
    ----------
    levels : tuple of ndarray of uint8 (cell, column)
        Each has half the columns of the one before: the larger of two.
    n_frames : int
        Frames of the recording.
    frames_per_column : int
        Of the first level.
    brightest : float
        The rate of pixels of 255, and of all above, Hz.
    cell_id : ndarray of int64 (cell,)
        Identity of each cell.
    """

    levels: tuple[Pixels, ...]
    n_frames: int
    frames_per_column: int
    brightest: float
    cell_id: NDArray[np.int64]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Of which cells any rate is known, (cell,)."""
        return np.asarray(self.levels[-1].any(axis=1))

    def stretch(
        self,
        cells: NDArray[np.intp],
        rows: tuple[float, float],
        frames: tuple[float, float],
        size: tuple[int, int],
    ) -> Stretch:
        """Return what is drawn of some cells in some time, with no more pixels than there is room.

        Nothing is left out: a pixel is the largest rate of the cells and frames that it stands for.

        Parameters
        ----------
        cells : ndarray of int (row,)
            The cells from the top, as indices.
        rows, frames : tuple of float
            What is seen of them and of the time.
        size : tuple of int
            The room, (y, x), px.

        Examples
        --------
        >>> image = rate_image(np.float32([[0, 0, 2, 0], [np.nan, 1, 0, 0]]), np.array([3, 7]))
        >>> image.stretch(np.arange(2), (0, 2), (0, 4), (2, 4)).pixels.tolist()
        [[1, 1, 255, 1], [0, 128, 1, 1]]
        >>> image.stretch(np.arange(2), (0, 2), (1, 3), (1, 4)).pixels.tolist()
        [[128, 255]]
        """
        level, per_column = self._level((frames[1] - frames[0]) / max(1, size[1]))
        start, stop = _within(frames, per_column, level.shape[1])
        per_row = max(1, math.ceil((rows[1] - rows[0]) / max(1, size[0])))
        top, bottom = _within(rows, per_row, -(-len(cells) // per_row))
        chosen = level[cells[top * per_row : bottom * per_row], start:stop]
        return Stretch(
            _largest_rows(chosen, per_row), top * per_row, start * per_column, per_row, per_column
        )

    def _level(self, frames_per_pixel: float) -> tuple[Pixels, int]:
        """Return the finest level with at most one column for a pixel; else the coarsest."""
        per_column = self.frames_per_column
        for level in self.levels[:-1]:
            if per_column >= frames_per_pixel:
                return level, per_column
            per_column *= 2
        return self.levels[-1], per_column


def read_rate_image(path: str) -> RateImage | None:
    """Read the rates of a session; to be called in a thread.

    Returns
    -------
    RateImage or None
        None where there is no session, or no rates of the cells that it holds now.
    """
    if not Session.is_session(path) or not of_these_cells(Session(path), RATES):
        return None
    session = Session(path)
    array = session.array(f"{RATES}/rate")
    n_cells, n_frames = array.shape
    factor = max(1, math.ceil(n_cells * n_frames / LARGEST))
    held = np.full((n_cells, -(-n_frames // factor)), np.nan, np.float32)
    for start in range(0, n_cells, ROWS):
        rows = slice(start, min(start + ROWS, n_cells))
        held[rows] = pooled(np.asarray(array[rows], np.float32), factor)
    image = rate_image(held, session.read("source_extraction/cell_id"))
    return RateImage(image.levels, n_frames, factor, image.brightest, image.cell_id)


def rate_image(rates: Floats, cell_id: NDArray[np.int64]) -> RateImage:
    """Return the image of some rates (cell, time), Hz; NaN where they are not known."""
    brightest = _brightest(rates)
    levels = [_steps(rates, brightest)]
    while levels[-1].shape[1] > COLUMNS_ENOUGH:
        levels.append(_halved(levels[-1]))
    return RateImage(tuple(levels), rates.shape[1], 1, brightest, np.asarray(cell_id, np.int64))


def pooled(values: Floats, factor: int) -> Floats:
    """Return the largest of every so many values along the last axis, NaN left out.

    Examples
    --------
    >>> pooled(np.float32([[1, 2, np.nan, 5, 4]]), 2).tolist(), pooled(np.ones((1, 3)), 1).shape
    ([[2.0, 5.0, 4.0]], (1, 3))
    """
    largest = values[:, ::factor].copy()
    for start in range(1, factor):
        other = values[:, start::factor]
        part = largest[:, : other.shape[1]]
        np.fmax(part, other, out=part)
    return largest


def _steps(rates: Floats, brightest: float) -> Pixels:
    """Return rates in steps from 1, a few cells at a time."""
    steps = np.empty(rates.shape, np.uint8)
    for start in range(0, len(rates), ROWS):
        rows = rates[start : start + ROWS]
        bright = np.clip(rows * (STEPS / brightest), 0, STEPS) + 1
        steps[start : start + ROWS] = np.round(np.nan_to_num(bright, nan=UNKNOWN))
    return steps


def _brightest(rates: Floats) -> float:
    """Return the rate that few exceed, with two digits; 1 Hz where all are 0 or unknown."""
    flat = rates.ravel()
    flat = flat[:: max(1, flat.size // ENOUGH)]
    known = flat[np.isfinite(flat)]
    high = float(np.percentile(known, BRIGHTEST)) if known.size else 0.0
    return float(f"{high:.2g}") if high > 0 else _highest(rates)


def _highest(rates: Floats) -> float:
    """Return the largest rate, where hardly any is above 0."""
    high = float(np.fmax.reduce(rates, axis=None, initial=0.0))
    return float(f"{high:.2g}") if high > 0 else 1.0


def _halved(level: Pixels) -> Pixels:
    half = level[:, ::2].copy()
    odd = level[:, 1::2]
    np.maximum(half[:, : odd.shape[1]], odd, out=half[:, : odd.shape[1]])
    return half


def _largest_rows(pixels: Pixels, n: int) -> Pixels:
    """Return the largest of every so many rows."""
    largest = np.ascontiguousarray(pixels[::n])
    for start in range(1, n):
        other = pixels[start::n]
        np.maximum(largest[: len(other)], other, out=largest[: len(other)])
    return largest


def _within(span: tuple[float, float], step: int, n: int) -> tuple[int, int]:
    """Return the first and the last of so many steps that lie in a span, at least one of them."""
    first = min(max(math.floor(span[0] / step), 0), max(n - 1, 0))
    return first, min(max(math.ceil(span[1] / step), first + 1), n)
