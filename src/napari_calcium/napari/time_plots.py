"""Plots over time, with a cursor that follows the time slider and moves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyqtgraph as pg
from napari.utils.theme import get_theme
from qtpy.QtCore import Qt

__all__ = ["CURSOR", "TimePlots"]

CURSOR = "#ffd84d"
WIDTH_OF_AXIS = 64


class TimePlots(pg.GraphicsLayoutWidget):  # type: ignore[misc]
    """Plots over time in seconds, one above the other, in the colours of the viewer's theme.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer whose time slider is followed.
    key : str
        What the colours mean, as rich text, beside the title.
    labels : sequence of str
        What each plot shows, from the top.

    Attributes
    ----------
    plots : list of pyqtgraph.PlotItem
        The plots.
    cursors : list of pyqtgraph.InfiniteLine
        One in each plot.
    """

    def __init__(self, viewer: Any, key: str, labels: Sequence[str]) -> None:
        super().__init__()
        self._viewer = viewer
        self._frame_rate = 0.0
        self._ndim = 3
        self._title = self.addLabel("", row=0, col=0, justify="left")
        self.key = self.addLabel(key, row=0, col=1, justify="right")
        self.plots = [self._plot(row, label) for row, label in enumerate(labels, start=1)]
        self.cursors = [self._cursor(plot) for plot in self.plots]
        for plot in self.plots[1:]:
            plot.setXLink(self.plots[0])
        self.label_time(self.plots[-1])
        self._connect()
        self._show_theme()

    @property
    def title(self) -> str:
        """What is written above the plots."""
        return str(self._title.text)

    @title.setter
    def title(self, text: str) -> None:
        self._title.setText(text)

    def label_time(self, lowest: Any, label: str = "time (s)") -> None:
        """Write the time below one of the plots, the lowest that is to be seen."""
        for plot in self.plots:
            plot.setLabel("bottom", label)
            plot.showLabel("bottom", plot is lowest)
            plot.getAxis("bottom").setStyle(showValues=plot is lowest)

    def follow(self, frame_rate: float, ndim: int = 3) -> None:
        """Follow the slider of a movie, of so many axes; of none with a frame rate of 0."""
        self._frame_rate, self._ndim = frame_rate, ndim
        self._follow_slider()

    def _plot(self, row: int, label: str) -> Any:
        plot = self.addPlot(row=row, col=0, colspan=2)
        plot.setLabel("left", label)
        plot.setDownsampling(auto=True, mode="peak")
        plot.setClipToView(True)
        plot.setMouseEnabled(x=True, y=False)
        plot.enableAutoRange(axis="y")
        plot.hideButtons()
        for side in ("left", "bottom"):
            plot.getAxis(side).enableAutoSIPrefix(False)
        plot.getAxis("left").setWidth(WIDTH_OF_AXIS)
        return plot

    def _cursor(self, plot: Any) -> Any:
        pen = pg.mkPen(CURSOR, width=1, style=Qt.PenStyle.DashLine)
        cursor = pg.InfiniteLine(0, movable=True, pen=pen)
        plot.addItem(cursor, ignoreBounds=True)
        cursor.sigDragged.connect(self._move_slider)
        return cursor

    def _connect(self) -> None:
        """Follow the viewer until this widget is destroyed."""
        pairs = [
            (self._viewer.dims.events.current_step, self._follow_slider),
            (self._viewer.events.theme, self._show_theme),
        ]
        for emitter, callback in pairs:
            emitter.connect(callback)

        def disconnect() -> None:
            for emitter, callback in pairs:
                emitter.disconnect(callback)

        self.destroyed.connect(disconnect)

    def _time_axis(self) -> int | None:
        """Return the axis of the slider; None where there is nothing to follow."""
        axis = self._viewer.dims.ndim - self._ndim
        return axis if self._frame_rate > 0 and axis >= 0 else None

    def _follow_slider(self, event: Any = None) -> None:
        """Put the cursors at the frame that the viewer shows."""
        axis = self._time_axis()
        if axis is not None:
            for cursor in self.cursors:
                cursor.setValue(self._viewer.dims.point[axis] / self._frame_rate)

    def _move_slider(self, cursor: Any) -> None:
        axis = self._time_axis()
        if axis is not None:
            self._viewer.dims.set_point(axis, round(cursor.value() * self._frame_rate))

    def _show_theme(self, event: Any = None) -> None:
        theme = get_theme(self._viewer.theme)
        text = theme.text.as_hex()
        self.setBackground(theme.background.as_hex())
        self._title.setText(self._title.text, color=text)
        for plot in self.plots:
            for side in ("left", "bottom"):
                plot.getAxis(side).setPen(text)
                plot.getAxis(side).setTextPen(text)
