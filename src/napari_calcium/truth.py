"""The truth of a simulated recording, its file, and scores of what was found against it."""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from napari_calcium.errors import InputError

__all__ = ["Score", "Truth", "load_truth", "save_truth", "score_cells"]

Floats = NDArray[np.float32]

UNREADABLE = (
    AttributeError,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading a file of another kind, or a damaged one, can raise."""

CSC_PARTS = ("data", "indices", "indptr")
"""Arrays of a sparse matrix as they are named in a file of truth."""


@dataclass(frozen=True)
class Truth:
    """What really happened in a simulated recording.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
        Non-negative weights of unit Euclidean norm, pixel = y * width + x.
    shape : tuple of int
        Field of view, (y, x), in pixels.
    traces : ndarray (cell, time)
        Fluorescence without noise and with the cell's resting brightness, in the movie's unit times
        pixels: ``footprints @ traces`` is the cells' part of the movie without motion.
    spikes : ndarray of int32 (cell, time)
        Number of spikes in each frame.
    template : ndarray (y, x)
        The field at rest, without motion and noise, in the movie's unit.
    shifts : ndarray (time, 2)
        Mean over the frame of `shifts_piecewise`, (y, x), px.
    shifts_piecewise : ndarray (time, grid_y, grid_x, 2)
        What must be added to the position of a frame's content to undo the motion, (y, x), px;
        bilinear between the places of the grid.
    grid_y, grid_x : ndarray (grid_y,), (grid_x,)
        Places of the grid in the frame, px.
    frame_rate : float
        Frames per second, Hz.

    Raises
    ------
    ValueError
        If the parts do not have the same cells, frames, pixels or places.
    """

    footprints: sp.csc_array
    shape: tuple[int, int]
    traces: Floats
    spikes: NDArray[np.int32]
    template: Floats
    shifts: Floats
    shifts_piecewise: Floats
    grid_y: Floats
    grid_x: Floats
    frame_rate: float

    def __post_init__(self) -> None:
        pixels, cells = self.footprints.shape
        time = len(self.shifts)
        grid = (len(self.grid_y), len(self.grid_x))
        if pixels != self.shape[0] * self.shape[1] or self.template.shape != self.shape:
            raise ValueError(f"footprints have {pixels} pixels but the field is {self.shape}")
        if not self.traces.shape == self.spikes.shape == (cells, time):
            raise ValueError("footprints, traces, spikes and shifts differ in cells or frames")
        if self.shifts.shape != (time, 2) or self.shifts_piecewise.shape != (time, *grid, 2):
            raise ValueError("shifts are (time, 2) and (time, grid_y, grid_x, 2)")

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.footprints.shape[1])


@dataclass(frozen=True)
class Score:
    """How well found cells agree with the truth: see `score_cells`.

    Parameters
    ----------
    f1 : float
        Harmonic mean of precision and recall, 0 to 1.
    precision : float
        Part of the found cells that are true, 0 to 1.
    recall : float
        Part of the true cells that are found, 0 to 1.
    trace_correlation : float
        Median correlation of found with true traces over the matches; NaN if there is none.
    matches : ndarray of int64 (match, 2)
        Index of the found and of the true cell.
    """

    f1: float
    precision: float
    recall: float
    trace_correlation: float
    matches: NDArray[np.int64]


def save_truth(truth: Truth, path: str | Path) -> None:
    """Write a truth as a compressed .npz file of plain arrays.

    Parameters
    ----------
    truth : Truth
        What is written; equal truths make equal bytes.
    path : str or pathlib.Path
        The file, replaced if it exists.

    Examples
    --------
    >>> import tempfile
    >>> from napari_calcium.simulation import SimulationParameters, simulate
    >>> small = SimulationParameters(height=37, width=53, n_frames=9, n_cells=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_truth(simulate(small).truth, Path(folder) / "truth.npz")
    ...     load_truth(Path(folder) / "truth.npz").traces.shape
    (2, 9)
    """
    arrays = {f.name: getattr(truth, f.name) for f in fields(Truth) if f.name != "footprints"}
    parts = {f"footprints_{name}": getattr(truth.footprints, name) for name in CSC_PARTS}
    with Path(path).open("wb") as file:
        np.savez_compressed(file, **parts, **arrays)


def load_truth(path: str | Path) -> Truth:
    """Read a truth that `save_truth` wrote.

    Parameters
    ----------
    path : str or pathlib.Path
        The .npz file.

    Returns
    -------
    Truth
        Equal to the one that was saved.

    Raises
    ------
    InputError
        If there is no such file or it is not the truth of a simulation.
    """
    if not Path(path).is_file():
        raise InputError(f"truth is {str(path)!r}; there is no such file, give an existing .npz")
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored.items())
        parts = tuple(arrays.pop(f"footprints_{name}") for name in CSC_PARTS)
        y, x = map(int, arrays.pop("shape"))
        footprints = sp.csc_array(parts, shape=(y * x, len(parts[2]) - 1))
        frame_rate = float(arrays.pop("frame_rate"))
        return Truth(footprints=footprints, shape=(y, x), frame_rate=frame_rate, **arrays)
    except UNREADABLE:
        raise InputError(
            f"truth is {str(path)!r}, which is not the truth of a simulation; "
            "give the .npz written beside a simulated movie"
        ) from None


# ---------------------------------------------------------------------------------------- score


def score_cells(
    footprints: sp.csc_array,
    traces: Floats,
    truth: Truth,
    threshold: float = 0.5,
    min_spikes: int = 3,
) -> Score:
    """Compare found cells with the true ones.

    Found and true cells are matched one to one so that the sum of the cosines between their
    footprints is largest, among pairs of at least `threshold`. A true cell of fewer than
    `min_spikes` spikes counts neither as hit nor as miss, and what is matched to it not as false.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
        Found weights of any norm, pixel = y * width + x.
    traces : ndarray (cell, time)
        Found traces, of any scale; a trace that is flat or has NaN correlates with 0.
    truth : Truth
        The true cells.
    threshold : float
        Smallest cosine between two footprints that are the same cell, 0 to 1.
    min_spikes : int
        Spikes a true cell needs to be counted.

    Returns
    -------
    Score
        F1, precision, recall, median trace correlation and the matches that are hits, in the order
        of the found cells. Precision, recall and F1 are 0 where there is nothing to count.

    Raises
    ------
    InputError
        If the found cells are of another field or recording than the truth.

    Examples
    --------
    >>> from napari_calcium.simulation import SimulationParameters, simulate
    >>> truth = simulate(SimulationParameters(height=37, width=53, n_cells=4)).truth
    >>> score = score_cells(truth.footprints, truth.traces, truth)
    >>> score.f1, round(score.trace_correlation, 6)
    (1.0, 1.0)
    """
    _check_found(footprints, traces, truth)
    cosines = np.asarray((_unit_columns(footprints).T @ _unit_columns(truth.footprints)).todense())
    cosines = np.where(cosines >= threshold, cosines, 0)
    found, true = linear_sum_assignment(cosines, maximize=True)
    matches = np.stack((found, true), axis=1)[cosines[found, true] > 0].astype(np.int64)
    counted = truth.spikes.sum(1) >= min_spikes
    hits = matches[counted[matches[:, 1]]]
    precision = _ratio(len(hits), footprints.shape[1] - (len(matches) - len(hits)))
    recall = _ratio(len(hits), int(counted.sum()))
    pairs = [_correlation(traces[i], truth.traces[j]) for i, j in hits]
    return Score(
        f1=_ratio(2 * precision * recall, precision + recall),
        precision=precision,
        recall=recall,
        trace_correlation=float(np.median(pairs)) if pairs else math.nan,
        matches=hits,
    )


def _check_found(footprints: sp.csc_array, traces: Floats, truth: Truth) -> None:
    pixels, cells = footprints.shape
    if pixels != truth.footprints.shape[0]:
        raise InputError(
            f"footprints have {pixels} pixels but the truth's field is {truth.shape} px; "
            "give the truth of the same movie"
        )
    if traces.shape != (cells, truth.traces.shape[1]):
        raise InputError(
            f"traces are {traces.shape} but there are {cells} footprints and "
            f"{truth.traces.shape[1]} true frames; give the truth of the same movie"
        )


def _unit_columns(matrix: sp.csc_array) -> sp.csc_array:
    columns = sp.csc_array(matrix, dtype=np.float64)
    norms = np.sqrt(np.asarray(columns.multiply(columns).sum(0))).ravel()
    return sp.csc_array(columns @ sp.diags_array(1 / np.where(norms > 0, norms, 1)))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _correlation(first: Floats, second: Floats) -> float:
    """Return Pearson's correlation; 0 where a trace is flat or has NaN."""
    a, b = (
        np.asarray(trace, np.float64) - np.mean(trace, dtype=float) for trace in (first, second)
    )
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0 else 0.0
