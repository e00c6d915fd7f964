"""The traces of the cell that was clicked on, with a cursor that follows the time slider."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyqtgraph as pg
from napari.settings import get_settings
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_calcium.io.session import VARIABLES, Session
from napari_calcium.napari.cell_traces import CellTraces, read_cell
from napari_calcium.napari.docking import put_at_bottom
from napari_calcium.napari.layers import ACCEPTED_OUTLINES, CELLS, metadata_of
from napari_calcium.napari.time_plots import TimePlots
from napari_calcium.napari.viewing import shown_layer

__all__ = ["TracesWidget"]

RAW, DENOISED, DFF = "#8a8f98", "#ff8f3f", "#4fb3ff"
MARK = (1.0, 1.0, 1.0, 1.0)
PIXELS_OF_A_CLICK = 3
HINT = "Click on a cell to see its traces"
DOCK = "Traces (napari-calcium)"
"""Name that napari gives the dock."""

KEY_TO_COLOURS = "&nbsp;&nbsp;".join(
    f'<span style="color: {colour}">{name}</span>'
    for name, colour in {"raw": RAW, "denoised": DENOISED}.items()
)


class TracesWidget(QWidget):  # type: ignore[misc]
    """A dock that shows the fluorescence and dF/F of one cell against time in seconds.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer; every layer of cells in it can be clicked on.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.layer: Any = None
        self.cell_id: int | None = None
        self.cell: CellTraces | None = None
        self._marked: tuple[Any, int, Any] | None = None
        units = VARIABLES["source_extraction/traces"].units
        self._plots = TimePlots(napari_viewer, KEY_TO_COLOURS, (f"F ({units})", "dF/F"))
        self._plots.title = HINT
        self.fluorescence, self.dff = self._plots.plots
        self.cursors = self._plots.cursors
        self._unplaced = DOCK not in get_settings().application.plugin_widget_positions
        self._lay_out()
        self.curves = self._curves()
        self._connect()

    @property
    def title(self) -> str:
        """What is written above the traces."""
        return self._plots.title

    def show_cell(self, layer: Any, cell_id: int) -> None:
        """Show a cell of a layer of cells; a cell that does not exist clears the plots."""
        session = Session(metadata_of(layer)["session"])
        self.layer, self.cell_id = layer, cell_id
        self.cell = read_cell(session, cell_id)
        cell = self.cell
        self._plots.title = cell.title if cell else HINT
        for name, curve in self.curves.items():
            values = getattr(cell, name) if cell else None
            curve.setData(*((cell.seconds, values) if cell and values is not None else ([], [])))
        self._show_dff(cell is not None and cell.dff is not None)
        self._mark()
        if cell:
            self.fluorescence.setXRange(0, cell.seconds[-1], padding=0.01)
        self._plots.follow(session.frame_rate)

    def _mark(self) -> None:
        """Outline the cell in white, and the one before as it was."""
        if self._marked is not None:
            _recolour(*self._marked)
            self._marked = None
        outlines = None
        if self.layer is not None:
            session = metadata_of(self.layer)["session"]
            outlines = shown_layer(self.viewer, session, ACCEPTED_OUTLINES)
        if outlines is not None:
            for row in np.flatnonzero(outlines.features["cell_id"] == self.cell_id):
                self._marked = outlines, int(row), outlines.edge_color[row].copy()
                _recolour(outlines, int(row), MARK)

    def showEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        """Go below the canvas, unless the dock was ever put elsewhere."""
        super().showEvent(event)
        if self._unplaced:
            self._unplaced = False
            QTimer.singleShot(0, self._place)

    def _place(self) -> None:
        put_at_bottom(self)

    def _show_dff(self, there: bool) -> None:
        """Show the lower plot, and the time below whichever plot is the lowest."""
        self.dff.setVisible(there)
        self._plots.label_time(self.dff if there else self.fluorescence)

    def _lay_out(self) -> None:
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._plots)
        self.setMinimumHeight(180)
        self._show_dff(False)

    def _curves(self) -> dict[str, Any]:
        """Return the curves by the names of `CellTraces`."""
        return {
            "raw": self.fluorescence.plot(pen=pg.mkPen(RAW, width=1)),
            "denoised": self.fluorescence.plot(pen=pg.mkPen(DENOISED, width=2)),
            "dff": self.dff.plot(pen=pg.mkPen(DFF, width=1)),
        }

    def _connect(self) -> None:
        """Follow the viewer until this widget is destroyed."""
        events = self.viewer.layers.events
        pairs = [(events.inserted, self._on_inserted), (events.removed, self._on_removed)]
        callbacks, on_click = self.viewer.mouse_drag_callbacks, self._on_click
        callbacks.append(on_click)
        for emitter, callback in pairs:
            emitter.connect(callback)
        for layer in self.viewer.layers:
            self._attach(layer)

        def disconnect() -> None:
            callbacks.remove(on_click)
            for emitter, callback in pairs:
                emitter.disconnect(callback)

        self.destroyed.connect(disconnect)

    def _attach(self, layer: Any) -> None:
        if metadata_of(layer).get("layer") == CELLS:
            layer.events.selected_label.connect(self._on_selected)
            layer.events.features.connect(self._on_renewed)

    def _on_inserted(self, event: Any) -> None:
        self._attach(event.value)
        if metadata_of(event.value).get("layer") == ACCEPTED_OUTLINES:
            self._marked = None
            self._mark()

    def _on_removed(self, event: Any) -> None:
        if event.value is self.layer:
            self.layer = self.cell_id = self.cell = None
            self._plots.follow(0)
            self._plots.title = HINT
            for curve in self.curves.values():
                curve.setData([], [])
            self._mark()

    def _on_selected(self, event: Any) -> None:
        if event.source.selected_label > 0:
            self.show_cell(event.source, int(event.source.selected_label) - 1)

    def _on_renewed(self, event: Any) -> None:
        """Read the cell again where its session was computed anew."""
        if event.source is self.layer and self.cell_id is not None:
            self.show_cell(self.layer, self.cell_id)

    def _on_click(self, viewer: Any, event: Any) -> Iterator[None]:
        """Show the cell under the pointer when the button is let go where it was pressed."""
        start = tuple(event.pos)
        yield
        while event.type == "mouse_move":
            yield
        if max(abs(a - b) for a, b in zip(start, event.pos, strict=True)) <= PIXELS_OF_A_CLICK:
            self._pick(event)

    def _pick(self, event: Any) -> None:
        for layer in reversed(list(self.viewer.layers)):
            if metadata_of(layer).get("layer") != CELLS or not layer.visible:
                continue
            label = layer.get_value(
                event.position,
                view_direction=event.view_direction,
                dims_displayed=event.dims_displayed,
                world=True,
            )
            if label and layer.mode == "pan_zoom":
                layer.selected_label = int(label)
                self.show_cell(layer, int(label) - 1)
                return


def _recolour(outlines: Any, row: int, colour: Any) -> None:
    """Give one outline a colour; nothing where the layer has other outlines by now."""
    if row < len(outlines.edge_color):
        colours = outlines.edge_color.copy()
        colours[row] = colour
        outlines.edge_color = colours
