"""The spike rates of all accepted cells over time, with a cursor that follows the time slider."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from qtpy.QtCore import QRectF, Qt, QTimer
from qtpy.QtWidgets import QLabel, QSizePolicy, QVBoxLayout

from napari_calcium.io.export import KINDS
from napari_calcium.io.session import Session
from napari_calcium.napari.decided import RATES, digest_of_these_cells
from napari_calcium.napari.decisions import Decisions, decisions_of, single_shot
from napari_calcium.napari.docking import CellDock, TimeDock
from napari_calcium.napari.following import CellLayers
from napari_calcium.napari.layers import metadata_of
from napari_calcium.napari.rate_image import RateImage, read_rate_image
from napari_calcium.napari.runner import runner_of
from napari_calcium.napari.time_plots import TimePlots

__all__ = ["NO_CELLS", "NO_RATES", "RasterWidget"]

DOCK = "Raster (napari-calcium)"
"""Name that napari gives the dock."""

NO_CELLS = "Find cells first, or open a session that has some"
NO_RATES = "Run spike inference to see the rates of all cells"
NONE_ACCEPTED = "No cell is accepted"
NONE_KNOWN = "The rate of no cell is known"
READING = "Reading the rates"
UNREADABLE = "The rates cannot be read ({}: {})"
TIP = "Click to go to a time and to its cell; scroll to zoom, drag to move, right click for all"

COLOURS = "inferno"
WIDTH_OF_SCALE, WIDTH_OF_LABEL, HEIGHT_OF_TIME = 10, 22, 36
"""Widths of the scale of colours and of its label, and height of the axis of time, px."""

POINTS = "#4fe0f0"
"""Colour of what points to the time and to the cell, to be seen on all colours of the rates."""

MARKER, PLACE_OF_MARKER = 9, 0.0
"""Size of what points to the row of the cell that is looked at, px, and where it is."""

MARGINS, MARGINS_OF_PLOT, HEIGHT = (6, 2, 8, 0), (4, 8, 4, 0), 160
"""Of the row above the image, and around it, and the least height of the dock, px."""

FEWEST_FRAMES, FEWEST_ROWS = 20, 3
"""So much of the time and of the cells is always seen."""

MILLISECONDS_BETWEEN_LOOKS, MILLISECONDS_TO_DRAW = 30, 10

Source = tuple[str, str, float]
"""A session, what identifies its rates, and its frame rate, Hz."""


class RasterWidget(TimeDock):
    """A dock that shows the rates of the accepted cells of a session against time in seconds.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer; the cells are those of the layer of cells that was added or chosen last.

    Attributes
    ----------
    image : RateImage or None
        The rates of all cells; None while they are not read or where there are none.
    rows : ndarray of int (row,)
        The accepted cells, from the top, in the order of the session, as indices.
    plot : pyqtgraph.PlotItem
        Time in seconds, and the rows.
    picture : pyqtgraph.ImageItem
        What is seen of the rates.
    scale : pyqtgraph.ColorBarItem
        The colours of the rates.
    decisions : Decisions or None
        What is decided of the cells; without it all are shown.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(DOCK)
        self.viewer = napari_viewer
        self.layer: Any = None
        self.cell_id: int | None = None
        self.image: RateImage | None = None
        self.rows: NDArray[np.intp] = np.zeros(0, np.intp)
        self.decisions: Decisions | None = None
        self._runner = runner_of(napari_viewer)
        self._frame_rate = 0.0
        self._read: Source | None = None
        self._reading: Future[RateImage | None] | None = None
        self._unreadable = ""
        self._shown = False
        self._title = QLabel(NO_CELLS)
        self._ids = _IdAxis("left")
        self._plots = TimePlots(napari_viewer, "", ("cell",), compact=True, left=[self._ids])
        self.plot, self.cursor = self._plots.plots[0], self._plots.cursors[0]
        self.picture, self.scale = pg.ImageItem(axisOrder="row-major"), _scale()
        self.pointer = _pointer()
        self._lay_out()
        self._connect()
        self._layers = CellLayers(napari_viewer, self, self._on_label)
        self._show()

    @property
    def title(self) -> str:
        """What is written above the image."""
        return str(self._title.text())

    def show_cell(self, layer: Any, cell_id: int) -> None:
        """Point to the row of a cell of a layer of cells."""
        if layer is not self.layer:
            self.follow(layer)
        self.cell_id = cell_id
        self._point()

    def follow(self, layer: Any) -> None:
        """Show the cells of a layer of cells; of none with None."""
        if layer is not self.layer:
            self.layer, self.cell_id = layer, None
        self._renew()

    def show_all(self) -> None:
        """Show all of the time and all accepted cells."""
        if self.image is not None and len(self.rows):
            self._plots.show_span(0, self.image.n_frames / self._frame_rate)
            self.plot.setYRange(-0.5, len(self.rows) - 0.5, padding=0)

    def go_to(self, seconds: float, row: int) -> None:
        """Move the time slider, and show the cell of a row everywhere.

        Parameters
        ----------
        seconds : float
            Time, s.
        row : int
            From the top.
        """
        if self.image is None or not len(self.rows):
            return
        last = (self.image.n_frames - 1) / self._frame_rate
        self._plots.go_to(min(max(seconds, 0.0), last))
        row = min(max(row, 0), len(self.rows) - 1)
        self._select(int(self.image.cell_id[self.rows[row]]))

    def _select(self, cell_id: int) -> None:
        """Select a cell's label, and tell those that hear nothing of a label that was selected."""
        self.layer.selected_label = cell_id + 1
        window = getattr(self.viewer, "__wrapped__", self.viewer).window._qt_window
        for dock in window.findChildren(CellDock):
            if (dock.layer, dock.cell_id) != (self.layer, cell_id):
                dock.show_cell(self.layer, cell_id)
        if self.cell_id != cell_id:  # not in a window
            self.show_cell(self.layer, cell_id)

    # ------------------------------------------------------------------------------- reading

    def _renew(self) -> None:
        """Read the rates that there are now, if they are others than those that are shown."""
        session = "" if self.layer is None else metadata_of(self.layer)["session"]
        self._decide(session)
        wanted = session, *_source(session)
        if wanted != self._read or self._unreadable:
            self._read, self.image, self._unreadable = wanted, None, ""
            self._look.stop()
            self._reading = None
            if wanted[1]:
                self._reading = self._runner.read(read_rate_image, session)
                self._look.start()
        self._show()

    def _take(self) -> None:
        """Take what was read, once it is."""
        if self._reading is None or not self._reading.done():
            return
        self._look.stop()
        reading, self._reading = self._reading, None
        if (error := reading.exception()) is not None:  # as when they are replaced meanwhile
            self._unreadable = UNREADABLE.format(type(error).__name__, error)
        else:
            self.image = reading.result()
        if self.image is not None and self._read is not None:
            self._frame_rate = self._read[2]
            self.scale.setLevels((0.0, self.image.brightest))
        self._show()

    def _decide(self, session: str) -> None:
        """Follow what is decided of the session's cells."""
        decisions = decisions_of(self.viewer, session) if session else None
        if decisions is self.decisions:
            return
        if self.decisions is not None:
            self.decisions.changed.disconnect(self._show)
        self.decisions = decisions
        if decisions is not None:
            decisions.changed.connect(self._show)

    # ------------------------------------------------------------------------------- showing

    def _show(self) -> None:
        """Show the accepted cells: all of the time after nothing, all rows after others."""
        image = self.image
        rows = np.zeros(0, np.intp) if image is None else self._accepted(image)
        changed, self.rows = not np.array_equal(rows, self.rows), rows
        there = image is not None and len(rows) > 0 and bool(image.known[rows].any())
        self._plots.setVisible(there)
        self._plots.follow(self._frame_rate if there else 0.0)
        if image is not None and there:
            self._ids.cell_id = image.cell_id[rows]
            self._limit(image)
            if not self._shown:
                self.show_all()
            elif changed:
                self.plot.setYRange(-0.5, len(rows) - 0.5, padding=0)
        self._shown = there
        self._say()
        self._point()
        self._draw_later()

    def _accepted(self, image: RateImage) -> NDArray[np.intp]:
        """Return the accepted cells, or all where nothing is decided of these."""
        decisions = self.decisions
        if decisions is None or not np.array_equal(decisions.cell_id, image.cell_id):
            return np.arange(len(image.cell_id))
        return np.flatnonzero(decisions.accepted)

    def _limit(self, image: RateImage) -> None:
        """Let nothing be moved or zoomed beyond the rates."""
        seconds, n_rows = image.n_frames / self._frame_rate, len(self.rows)
        self.plot.setLimits(
            xMin=-0.01 * seconds,
            xMax=1.01 * seconds,
            minXRange=min(FEWEST_FRAMES / self._frame_rate, seconds),
            yMin=-0.5,
            yMax=n_rows - 0.5,
            minYRange=min(FEWEST_ROWS, n_rows),
        )

    def _draw_later(self, *event: Any) -> None:
        """Draw once for all that comes until then."""
        if not self._draw_soon.isActive():
            self._draw_soon.start()

    def _draw(self) -> None:
        """Draw what is seen of the rates, with no more pixels than there is room."""
        image, box = self.image, self.plot.getViewBox()
        if image is None or not self._shown:
            self.picture.clear()
            return
        (first, last), (top, bottom) = box.viewRange()
        size = max(1, round(box.height())), max(1, round(box.width()))
        frames = first * self._frame_rate, last * self._frame_rate
        shown = image.stretch(self.rows, (top + 0.5, bottom + 0.5), frames, size)
        height, width = shown.pixels.shape
        self.picture.setImage(shown.pixels, levels=(0, 255), autoLevels=False)
        self.picture.setRect(
            QRectF(
                (shown.first_frame - 0.5) / self._frame_rate,
                shown.first_row - 0.5,
                width * shown.frames_per_column / self._frame_rate,
                height * shown.cells_per_row,
            )
        )
        self._say(shown.cells_per_row, shown.frames_per_column)

    def _point(self) -> None:
        """Point to the row of the cell that is looked at."""
        image, rows = self.image, np.zeros(0, np.intp)
        if image is not None and self.cell_id is not None:
            rows = np.flatnonzero(image.cell_id[self.rows] == self.cell_id)
        self.pointer.setVisible(bool(rows.size))
        if rows.size:
            self.pointer.setValue(int(rows[0]))

    def _say(self, cells_per_row: int = 1, frames_per_column: int = 1) -> None:
        """Write how many cells are shown, and of how many a pixel is the largest."""
        self._title.setText(", ".join((self._said(), *_pooled(cells_per_row, frames_per_column))))
        self._title.setToolTip(TIP if self.image is not None else "")

    def _said(self) -> str:
        image = self.image
        if self.layer is None:
            return NO_CELLS
        if image is None:
            return READING if self._reading is not None else self._unreadable or NO_RATES
        if not len(self.rows):
            return NONE_ACCEPTED
        unknown = int((~image.known[self.rows]).sum())
        if unknown == len(self.rows):
            return NONE_KNOWN
        said = f"{len(self.rows)} accepted cells" if self.decisions else f"{len(self.rows)} cells"
        return f"{said}, {unknown} without a rate" if unknown else said

    # -------------------------------------------------------------------------- what it hears

    def _connect(self) -> None:
        """Follow the viewer until this widget is destroyed."""
        self._look = QTimer(self)
        self._look.setInterval(MILLISECONDS_BETWEEN_LOOKS)
        self._look.timeout.connect(self._take)
        self._draw_soon = single_shot(self, MILLISECONDS_TO_DRAW, self._draw)
        box = self.plot.getViewBox()
        for signal in (box.sigRangeChanged, box.sigResized):
            signal.connect(self._draw_later)
        self._plots.scene().sigMouseClicked.connect(self._on_click)
        self._runner.ended.connect(self._on_ended)

    def _on_label(self, event: Any) -> None:
        if event.source.selected_label > 0:
            self.show_cell(event.source, int(event.source.selected_label) - 1)

    def _on_ended(self, answer: Any) -> None:
        """Take what a run made anew."""
        if "preview" not in answer:
            self._renew()

    def _on_click(self, event: Any) -> None:
        """Go where a person clicked in the image; with the right button show all of it."""
        box = self.plot.getViewBox()
        if not box.sceneBoundingRect().contains(event.scenePos()):
            return
        if event.button() == Qt.MouseButton.RightButton:
            self.show_all()
        elif event.button() == Qt.MouseButton.LeftButton:
            place = box.mapSceneToView(event.scenePos())
            self.go_to(place.x(), round(place.y()))

    # --------------------------------------------------------------------------- its widgets

    def _lay_out(self) -> None:
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(self._title, alignment=Qt.AlignmentFlag.AlignTop)
        layout.addWidget(self._plots, stretch=1)
        self._title.setContentsMargins(*MARGINS)
        self._title.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.setMinimumHeight(HEIGHT)
        self.cursor.setPen(pg.mkPen(POINTS, style=Qt.PenStyle.DashLine))
        self.plot.setMouseEnabled(x=True, y=True)
        self.plot.disableAutoRange()
        self.plot.invertY(True)
        self.plot.setMenuEnabled(False)
        self.plot.addItem(self.picture, ignoreBounds=True)
        self.plot.addItem(self.pointer, ignoreBounds=True)
        self.picture.setZValue(-1)
        self.picture.setLookupTable(_table())
        self._plots.put_beside(0, self.scale)
        self._plots.ci.layout.setContentsMargins(*MARGINS_OF_PLOT)
        for each in (self.plot, self.scale):  # so that both end at the same height
            each.getAxis("bottom").setHeight(HEIGHT_OF_TIME)
        self.scale.getAxis("left").setWidth(WIDTH_OF_LABEL)


class _IdAxis(pg.AxisItem):  # type: ignore[misc]
    """An axis that names rows by the identities of their cells."""

    cell_id: NDArray[np.int64] = np.zeros(0, np.int64)

    def tickValues(  # noqa: N802 - pyqtgraph's name
        self,
        minVal: float,
        maxVal: float,
        size: float,
    ) -> list[tuple[float, list[float]]]:
        """Return the rows that are named: whole ones."""
        steps = super().tickValues(minVal, maxVal, size)
        return [(step, [v for v in values if v == round(v)]) for step, values in steps if step >= 1]

    def tickStrings(  # noqa: N802
        self, values: Sequence[float], scale: float, spacing: float
    ) -> list[str]:
        """Return the identities of the cells of some rows."""
        n = len(self.cell_id)
        return [str(self.cell_id[int(v)]) if 0 <= v < n else "" for v in values]


def _pooled(cells_per_row: int, frames_per_column: int) -> list[str]:
    """Say of how many cells and frames a pixel shows the largest rate; nothing where of one.

    Examples
    --------
    >>> _pooled(1, 8), _pooled(1, 1), _pooled(3, 8)
    (['each pixel the highest of 8 frames'], [], ['each pixel the highest of 3 cells x 8 frames'])
    """
    of = [f"{cells_per_row} cells"] if cells_per_row > 1 else []
    of += [f"{frames_per_column} frames"] if frames_per_column > 1 else []
    return [f"each pixel the highest of {' x '.join(of)}"] if of else []


def _table() -> NDArray[np.uint8]:
    """Return the colour of each step, (256, 4): clear where nothing is known."""
    table = np.zeros((256, 4), np.uint8)
    table[1:] = pg.colormap.get(COLOURS).getLookupTable(nPts=255, alpha=True)
    return table


def _scale() -> Any:
    return pg.ColorBarItem(
        (0.0, 1.0),
        width=WIDTH_OF_SCALE,
        colorMap=COLOURS,
        label=KINDS["spike_rate"].label,
        interactive=False,
    )


def _pointer() -> Any:
    line = pg.InfiniteLine(0, angle=0, pen=pg.mkPen(POINTS, style=Qt.PenStyle.DotLine))
    line.addMarker("|>", position=PLACE_OF_MARKER, size=MARKER)
    return line


def _source(path: str) -> tuple[str, float]:
    """Return what identifies the rates of a session's cells, empty where there are none, and Hz."""
    if not Session.is_session(path):
        return "", 0.0
    session = Session(path)
    digest = digest_of_these_cells(session, RATES)
    return (digest, session.frame_rate) if digest and session.record("movie") else ("", 0.0)
