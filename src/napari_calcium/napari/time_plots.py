"""Plots over time, with a cursor that follows the time slider and moves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import pyqtgraph as pg
from napari.utils.theme import get_theme
from qtpy.QtCore import Qt

__all__ = ["CURSOR", "TimePlots"]

CURSOR = "#e3ab00"
GAP = 4
"""Between the parts of plots that save room, px."""

WIDTH_OF_AXIS = 64
WIDTH_OF_NUMBERS = 48
"""Widths of an axis with its label and without, px."""


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
    compact : bool
        For a low dock: no title, and what plots show is written level, left of them.
    left : sequence of pyqtgraph.AxisItem
        Left axes of the plots, from the top, where they are no plain ones.

    Attributes
    ----------
    plots : list of pyqtgraph.PlotItem
        The plots.
    cursors : list of pyqtgraph.InfiniteLine
        One in each plot.
    """

    def __init__(
        self,
        viewer: Any,
        key: str,
        labels: Sequence[str],
        *,
        compact: bool = False,
        left: Sequence[Any] = (),
    ) -> None:
        super().__init__()
        self._viewer = viewer
        self._frame_rate = 0.0
        self._ndim = 3
        self._axes: list[Any] = []
        self._title = self.addLabel("", row=0, col=0, justify="left")
        self.key = self.addLabel(key, row=0, col=1, justify="right")
        rows = range(1, len(labels) + 1)
        self._names = [self.addLabel("", row, col=0, justify="left") for row in rows if compact]
        self.plots = [
            self._plot(row, {"left": axis} if axis is not None else {})
            for row, axis in zip_longest(rows, left)
        ]
        if compact:
            self._save_room()
        for place, label in enumerate(labels):
            self.name(place, label)
        self.cursors = [self._cursor(plot) for plot in self.plots]
        self._top = self.plots[0]
        for plot in self.plots[1:]:
            plot.setXLink(self._top)
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

    def name(self, place: int, label: str) -> None:
        """Write what a plot shows."""
        if self._names:
            self._names[place].setText(label.replace(" (", "<br>("))
        else:
            self.plots[place].setLabel("left", label)

    def show_only(self, shown: Sequence[bool]) -> None:
        """Show some of the plots, from the top; the lowest of them carries the time.

        They are linked with each other only: one that is hidden has no width to go by.
        """
        there = [plot for plot, is_shown in zip(self.plots, shown, strict=True) if is_shown]
        span = self._top.viewRange()[0]
        for plot in self.plots:
            plot.setVisible(plot in there)
            plot.setXLink(None)
        for name, is_shown in zip(self._names, shown, strict=False):
            name.setVisible(is_shown)
        if there:
            self._top = there[0]
            for plot in there[1:]:
                plot.setXLink(self._top)
            self._top.setXRange(*span, padding=0)
            self.label_time(there[-1])
        self.ci.layout.activate()
        self.ci.setGeometry(self.range)  # which was bounded while no plot was to be seen

    def show_span(self, first: float, last: float) -> None:
        """Show the time from one second to another."""
        self._top.setXRange(first, last, padding=0.01)

    def follow(self, frame_rate: float, ndim: int = 3) -> None:
        """Follow the slider of a movie, of so many axes; of none with a frame rate of 0."""
        self._frame_rate, self._ndim = frame_rate, ndim
        self._follow_slider()

    def go_to(self, seconds: float) -> None:
        """Move the slider to the frame nearest to a time, s; the cursors follow."""
        axis = self._time_axis()
        if axis is not None:
            self._viewer.dims.set_point(axis, round(seconds * self._frame_rate))

    def put_beside(self, place: int, scale: Any) -> None:
        """Put a scale of colours right of a plot.

        Parameters
        ----------
        place : int
            Of the plot, from the top.
        scale : pyqtgraph.ColorBarItem
        """
        self.addItem(scale, row=1 + place, col=2)
        self._axes += [scale.getAxis(side) for side in ("left", "right", "top", "bottom")]
        self._show_theme()

    def _save_room(self) -> None:
        """Take the title away, and most of what is between the plots."""
        for label in (self._title, self.key):
            label.hide()
        self.ci.layout.setSpacing(GAP)
        self.ci.layout.setContentsMargins(GAP, 0, GAP, 0)

    def _plot(self, row: int, axes: Mapping[str, Any]) -> Any:
        first = 1 if self._names else 0
        plot = self.addPlot(row=row, col=first, colspan=2 - first, axisItems=dict(axes))
        plot.setDownsampling(auto=True, mode="peak")
        plot.setClipToView(True)
        plot.setMouseEnabled(x=True, y=False)
        plot.enableAutoRange(axis="y")
        plot.hideButtons()
        for side in ("left", "bottom"):
            plot.getAxis(side).enableAutoSIPrefix(False)
        plot.getAxis("left").setWidth(WIDTH_OF_NUMBERS if self._names else WIDTH_OF_AXIS)
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
        self.go_to(cursor.value())

    def _show_theme(self, event: Any = None) -> None:
        theme = get_theme(self._viewer.theme)
        text = theme.text.as_hex()
        self.setBackground(theme.background.as_hex())
        for label in (self._title, *self._names):
            label.setText(label.text, color=text)
        sides = [plot.getAxis(side) for plot in self.plots for side in ("left", "bottom")]
        for axis in (*sides, *self._axes):
            axis.setPen(text)
            axis.setTextPen(text)
