"""A plot of a recording's motion over time, and how much of it was undone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

from napari_calcium.napari.band import Band
from napari_calcium.napari.motion_traces import Figure, MotionTraces
from napari_calcium.napari.time_plots import TimePlots

__all__ = ["HINT", "MotionPlot"]

HINT = "Run or preview to see the motion"
AXES = {"z": "#7fd17f", "y": "#4fb3ff", "x": "#ff8f3f"}
BEFORE, AFTER, FLAGGED = "#8a8f98", "#5fd38d", "#ff5f5f"
SHADE = 60
"""Opacity of the range of the patches, of 255."""

HEIGHT_OF_A_FLAG = 0.08
"""Length of the mark of a flagged frame, as a part of the plot's height."""

LINES = 2
"""Room for the figures."""

MEANINGS = {
    "crispness": "Gradient of the mean image relative to its contrast, 1/px: higher is better",
    "residual flow": "Optical flow between the means of parts of the recording: lower is better",
    "principal motion": "Motion along the principal components of the frames, their mean: "
    "lower is better",
    "correlation": "Correlation of the frames with the template, their mean: higher is better",
}


class MotionPlot(QWidget):  # type: ignore[misc]
    """Shifts above, correlation with the template below, and beneath both a line of figures.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer whose time slider is linked with the cursor.

    Attributes
    ----------
    curves : dict of str to pyqtgraph.PlotDataItem
        The shifts along "z", "y" and "x", and the correlation "before" and "after".
    bands : dict of str to Band
        The range of the patches' shifts along "y" and "x".
    flags : list of pyqtgraph.VTickGroup
        The marks of flagged frames.
    """

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self.motion: MotionTraces | None = None
        self._time_plots = TimePlots(viewer, "", ("shift (px)", "correlation"))
        self.shift_plot, self.correlation_plot = self._time_plots.plots
        self.cursors = self._time_plots.cursors
        self.bands = {axis: self._band(axis) for axis in ("y", "x")}
        self.curves = self._curves()
        self.flags = [self._flags(plot) for plot in self._time_plots.plots]
        self.figures = QLabel()
        self.figures.setWordWrap(True)
        self.figures.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._lay_out()
        self.show_motion(None)

    @property
    def title(self) -> str:
        """What is written above the plots."""
        return self._time_plots.title

    def show_motion(self, motion: MotionTraces | None) -> None:
        """Show the motion of a recording or of a preview; None clears the plots."""
        self.motion = motion
        self._time_plots.title = motion.title if motion else HINT
        self._time_plots.key.setText(_key(motion) if motion else "")
        for plot in self._time_plots.plots:
            plot.setVisible(motion is not None)
        self._show_shifts(motion)
        self._show_correlation(motion)
        self._show_flagged(motion)
        self.figures.setText(_sentence(motion.figures, motion.advice) if motion else "")
        self.figures.setToolTip(_meanings(motion.figures) if motion else "")
        if motion is None:
            self._time_plots.follow(0)
            return
        label = "time (s)" if motion.frame_rate else "frame"
        self._time_plots.label_time(self.correlation_plot, label)
        self.shift_plot.setXRange(motion.times[0], motion.times[-1], padding=0.01)
        self._time_plots.follow(motion.frame_rate or 1.0, motion.ndim)

    def _show_shifts(self, motion: MotionTraces | None) -> None:
        for axis in AXES:
            values = motion.shifts.get(axis) if motion else None
            _set(self.curves[axis], motion, values)
        for axis, band in self.bands.items():
            if motion and axis in motion.ranges:
                band.show(motion.times, *motion.ranges[axis])
            else:
                band.clear()

    def _show_correlation(self, motion: MotionTraces | None) -> None:
        for name in ("before", "after"):  # without flagged frames, which would set the scale
            values = None
            if motion:
                values = np.where(motion.flagged, np.float32(np.nan), getattr(motion, name))
            _set(self.curves[name], motion, values)

    def _show_flagged(self, motion: MotionTraces | None) -> None:
        times = motion.times[motion.flagged] if motion else np.zeros(0)
        for flags in self.flags:
            flags.setXVals(times)

    def _curves(self) -> dict[str, Any]:
        curves = {
            axis: self.shift_plot.plot(pen=pg.mkPen(colour, width=1))
            for axis, colour in AXES.items()
        }
        for name, colour in {"before": BEFORE, "after": AFTER}.items():
            curves[name] = self.correlation_plot.plot(pen=pg.mkPen(colour, width=1))
        return curves

    def _band(self, axis: str) -> Band:
        shade = pg.mkColor(AXES[axis])
        shade.setAlpha(SHADE)
        return Band(self.shift_plot, shade)

    def _flags(self, plot: Any) -> Any:
        flags = pg.VTickGroup(yrange=[0, HEIGHT_OF_A_FLAG], pen=pg.mkPen(FLAGGED))
        plot.addItem(flags, ignoreBounds=True)
        return flags

    def _lay_out(self) -> None:
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(self._time_plots, stretch=1)
        layout.addWidget(self.figures)
        self.figures.setMinimumHeight(LINES * self.figures.fontMetrics().lineSpacing())
        self.figures.setAlignment(Qt.AlignmentFlag.AlignTop)


def _set(curve: Any, motion: MotionTraces | None, values: NDArray[Any] | None) -> None:
    """Show values over time; nothing where there are none, or none is finite."""
    if motion is None or values is None or not np.isfinite(values).any():
        curve.setData([], [])
    else:
        curve.setData(motion.times, values)


def _key(motion: MotionTraces) -> str:
    """Say what the colours mean."""
    named = {axis: AXES[axis] for axis in motion.shifts}
    named |= {"before": BEFORE, "after": AFTER}
    if motion.flagged.any():
        named["flagged"] = FLAGGED
    return "&nbsp;".join(
        f'<span style="color: {each}">{name}</span>' for name, each in named.items()
    )


def _sentence(figures: tuple[Figure, ...], advice: str = "") -> str:
    """Return the figures, before and after, in a line, and what to do.

    Examples
    --------
    >>> _sentence((Figure("residual flow", "px", 0.51, 0.125), Figure("crispness", "", 1, 1.25)))
    'residual flow 0.51 → 0.125 px, crispness 1 → 1.25'
    """
    said = (
        f"{each.name} {_number(each.before)} → {_number(each.after)} {each.unit}".strip()
        for each in figures
    )
    return ". ".join(part for part in (", ".join(said), advice) if part)


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "?"


def _meanings(figures: tuple[Figure, ...]) -> str:
    return "\n".join(f"{each.name}: {MEANINGS[each.name]}" for each in figures)
