"""What is known of a recording's motion over time: shifts and correlations, and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_calcium.io.session import Session
from napari_calcium.movie import blocks
from napari_calcium.pipeline.preview import Preview

__all__ = ["Figure", "MotionTraces", "motion_of_preview", "read_motion"]

Floats = NDArray[np.float32]

GROUP = "motion_correction"
FRAMES_PER_READ = 4096
"""Frames whose piecewise shifts are in memory at a time."""


@dataclass(frozen=True)
class Figure:
    """One measure of motion, before and after; NaN where it was not taken."""

    name: str
    unit: str
    before: float
    after: float


@dataclass(frozen=True)
class MotionTraces:
    """Motion over time.

    Parameters
    ----------
    title : str
        What it is of.
    start : int
        Number of its first frame.
    frame_rate : float
        Hz; 0 where unknown.
    ndim : int
        Axes of the movie.
    shifts : dict of str to ndarray (time,)
        Rigid shifts by axis, px, of volumes along z in planes.
    ranges : dict of str to (ndarray (time,), ndarray (time,))
        The smallest and the largest of the patches' shifts by axis, px; empty where frames moved
        as a whole.
    before, after : ndarray (time,)
        Correlation of the frames with the template.
    flagged : ndarray of bool (time,)
        Frames without visible motion.
    figures : tuple of Figure
        The measures that are one number.
    advice : str
        What to do, if anything.
    """

    title: str
    start: int
    frame_rate: float
    ndim: int
    shifts: Mapping[str, Floats]
    ranges: Mapping[str, tuple[Floats, Floats]]
    before: Floats
    after: Floats
    flagged: NDArray[np.bool_]
    figures: tuple[Figure, ...]
    advice: str = ""

    @property
    def times(self) -> NDArray[np.float64]:
        """Time of each frame, s; its number where the frame rate is unknown."""
        return (self.start + np.arange(len(self.flagged))) / (self.frame_rate or 1.0)


def read_motion(path: str | Path) -> MotionTraces | None:
    """Read the motion of a session.

    Parameters
    ----------
    path : path
        A session, or anything else.

    Returns
    -------
    MotionTraces or None
        None where there is no session, or motion correction has not run.
    """
    if not Session.is_session(path) or Session(path).record(GROUP) is None:
        return None
    session = Session(path)
    rigid = session.read(f"{GROUP}/shifts_rigid")
    flagged = _read(session, "flagged", np.zeros(len(rigid), bool)).astype(bool)
    unknown = np.full(len(rigid), np.nan, np.float32)
    return MotionTraces(
        title=_counted(flagged),
        start=0,
        frame_rate=session.frame_rate,
        ndim=rigid.shape[1] + 1,
        shifts=_by_axis(rigid),
        ranges=_read_ranges(session),
        before=_read(session, "correlation_before", unknown),
        after=_read(session, "correlation_after", unknown),
        flagged=flagged,
        figures=_figures(_measures(session, "before"), _measures(session, "after")),
        advice=session.motion_advice(),
    )


def motion_of_preview(preview: Preview, frame_rate: float) -> MotionTraces:
    """Return the motion of a preview.

    Parameters
    ----------
    preview : Preview
        The preview.
    frame_rate : float
        Hz; 0 where unknown.
    """
    shifts, flagged = preview.shifts, np.asarray(preview.shifts.flagged)
    last = preview.start + len(flagged) - 1
    ranges = {} if shifts.piecewise is None else _ranges([shifts.piecewise])
    before, after = (
        {"crispness": each.crispness, "correlation": float(np.nanmean(each.correlation))}
        for each in (preview.before, preview.after)
    )
    return MotionTraces(
        title=f"Preview of frames {preview.start} to {last}",
        start=preview.start,
        frame_rate=frame_rate,
        ndim=preview.frames.ndim,
        shifts=_by_axis(shifts.rigid),
        ranges=ranges,
        before=preview.before.correlation,
        after=preview.after.correlation,
        flagged=flagged,
        figures=_figures(before, after),
    )


def _by_axis(rigid: Floats) -> dict[str, Floats]:
    axes = ("z", "y", "x")[-rigid.shape[1] :]
    return {axis: rigid[:, column] for column, axis in enumerate(axes)}


def _counted(flagged: NDArray[np.bool_]) -> str:
    """Say how many frames were flagged.

    Examples
    --------
    >>> _counted(np.array([False, True, False]))
    '1 of 3 frames flagged'
    >>> _counted(np.zeros(3, bool))
    '3 frames'
    """
    n, bad = len(flagged), int(flagged.sum())
    return f"{bad} of {n} frames flagged" if bad else f"{n} frames"


def _read(session: Session, name: str, default: NDArray[Any]) -> NDArray[Any]:
    """Read an array that sessions of earlier versions do not have."""
    return session.read(f"{GROUP}/{name}") if f"{GROUP}/{name}" in session else default


def _read_ranges(session: Session) -> dict[str, tuple[Floats, Floats]]:
    """Read the smallest and the largest shifts of patches, a part of the recording at a time."""
    name = f"{GROUP}/shifts_piecewise"
    if name not in session:
        return {}
    array = session.array(name)
    runs = blocks(array.shape[0], FRAMES_PER_READ)
    return _ranges(np.asarray(array[run.start : run.stop]) for run in runs)


def _ranges(parts: Any) -> dict[str, tuple[Floats, Floats]]:
    """Return, by axis, the range of patches' shifts (time, ..., grid_y, grid_x, 2)."""
    found = [
        (
            part.min(axis=tuple(range(1, part.ndim - 1))),
            part.max(axis=tuple(range(1, part.ndim - 1))),
        )
        for part in parts
    ]
    low, high = (np.concatenate(each) for each in zip(*found, strict=True))
    return {axis: (low[:, column], high[:, column]) for column, axis in enumerate("yx")}


def _measures(session: Session, when: str) -> dict[str, float]:
    attrs = session.group_attrs(GROUP)
    measures = {
        name: float(attrs[f"{name}_{when}"])
        for name in ("crispness", "residual_flow")
        if attrs.get(f"{name}_{when}") is not None
    }
    principal = _read(session, f"principal_motion_{when}", np.zeros(0))
    if principal.size:
        measures["principal_motion"] = float(np.mean(principal))
    return measures


def _figures(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[Figure, ...]:
    units = {"crispness": "", "correlation": "", "residual_flow": "px", "principal_motion": "px"}
    return tuple(
        Figure(name.replace("_", " "), unit, before.get(name, math.nan), after.get(name, math.nan))
        for name, unit in units.items()
        if name in before or name in after
    )
