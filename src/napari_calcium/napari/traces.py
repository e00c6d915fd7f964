"""The traces of the cell that was clicked on, with a cursor that follows the time slider."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyqtgraph as pg
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import QCheckBox, QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout

from napari_calcium.io.export import KINDS, kind_of_change
from napari_calcium.io.session import Session
from napari_calcium.napari.cell_traces import CellTraces, read_cell
from napari_calcium.napari.clicking import shown_where_clicked
from napari_calcium.napari.decisions import Decisions, decisions_of
from napari_calcium.napari.docking import TimeDock
from napari_calcium.napari.layers import CELLS, metadata_of
from napari_calcium.napari.time_plots import TimePlots

__all__ = ["CURVES", "Curve", "TracesWidget"]

HINT = "Click on a cell to see its traces"
DOCK = "Traces (napari-calcium)"
"""Name that napari gives the dock."""

ABOVE_REST, TOTAL, CHANGE, ACTIVITY, RATE = range(5)
"""Places of the plots, from the top."""

LABELS = {
    ABOVE_REST: f"F above rest ({KINDS['raw'].unit})",
    TOTAL: f"F and F0 ({KINDS['f0'].unit})",
    CHANGE: KINDS["dff"].label,
    ACTIVITY: KINDS["deconvolved"].label,
    RATE: KINDS["spike_rate"].label,
}

MARGINS, SPACING = (6, 2, 8, 0), 10
"""Of the row above the plots, px."""

HEIGHT, HEIGHT_OF_A_PLOT = 40, 60
"""Least heights of all that is no plot, and of a plot, px."""

LENGTH_OF_A_KEY = 12
"""Length of the piece of a curve beside its name, px."""


@dataclass(frozen=True)
class Curve:
    """How one kind of trace is drawn.

    Parameters
    ----------
    colour : str
        As ``#rrggbb``, to be seen on dark and on light.
    width : int
        Width of the line, px.
    plot : int
        Place of its plot, from the top.
    ticked : bool
        Whether it is shown before anyone has chosen.
    tip : str
        What it is.
    """

    colour: str
    width: int
    plot: int
    ticked: bool
    tip: str


CURVES = {
    "raw": Curve(
        "#8a8f98", 1, ABOVE_REST, True, "Fluorescence above rest, with its noise (counts)"
    ),
    "denoised": Curve(
        "#f07f2e", 2, ABOVE_REST, True, "Fluorescence above rest, without noise (counts)"
    ),
    "f0": Curve(
        "#2fae6b", 2, TOTAL, False, "Running baseline (counts), below what it is the baseline of"
    ),
    "dff": Curve("#3a9fef", 1, CHANGE, True, "Change of fluorescence as a fraction of F0"),
    "deconvolved": Curve(
        "#b07af0", 1, ACTIVITY, False, "Activity: what each frame adds to the trace (counts/frame)"
    ),
    "spike_rate": Curve(
        "#e8589c", 1, RATE, True, "Rate of spikes that was inferred from dF/F (Hz), smoothed"
    ),
}
"""The curves that can be chosen, by the names of `CellTraces`."""

DETRENDED = "Fluorescence less F0 (counts): one-photon recordings have no dF/F"


class TracesWidget(TimeDock):
    """A dock that shows the traces of one cell against time in seconds.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer; every layer of cells in it can be clicked on.

    Attributes
    ----------
    boxes : dict of str to QCheckBox
        Which traces are wanted, by the names of `CellTraces`; they stay while cells change.
    curves : dict of str to pyqtgraph.PlotDataItem
        The traces by those names, and "fluorescence" beside "f0"; empty where not wanted or not
        known.
    plots : list of pyqtgraph.PlotItem
        Fluorescence above rest, in total, its change, activity, and rate of spikes; those without
        any trace are hidden.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(DOCK)
        self.viewer = napari_viewer
        self.layer: Any = None
        self.cell_id: int | None = None
        self.cell: CellTraces | None = None
        self.decisions: Decisions | None = None
        self._digest = ""
        self._title = QLabel(HINT)
        self._plots = TimePlots(napari_viewer, "", tuple(LABELS.values()), compact=True)
        self.plots, self.cursors = self._plots.plots, self._plots.cursors
        self.boxes = {name: _box(name, curve) for name, curve in CURVES.items()}
        self._lay_out()
        self.curves = self._curves()
        self._draw()
        self._connect()

    @property
    def title(self) -> str:
        """What is written above the traces."""
        return str(self._title.text())

    def show_cell(self, layer: Any, cell_id: int) -> None:
        """Show a cell of a layer of cells; a cell that does not exist clears the plots."""
        about = metadata_of(layer)
        session = Session(about["session"])
        self._digest = about["digest"]
        self.layer, self.cell_id = layer, cell_id
        self._follow(decisions_of(self.viewer, about["session"]))
        self.cell = read_cell(session, cell_id, self._why())
        self._draw()
        if self.cell:
            self._plots.show_span(0, self.cell.seconds[-1])
        self._plots.follow(session.frame_rate)

    def _draw(self) -> None:
        """Draw the traces that are ticked, and show the plots in which there are any."""
        cell = self.cell
        names = [name for name, box in self.boxes.items() if box.isChecked()]
        names += ["fluorescence"] if "f0" in names else []
        traces = cell.known(names) if cell else {}
        for name, curve in self.curves.items():
            curve.setData(*((cell.seconds, traces[name]) if cell and name in traces else ([], [])))
        places = {CURVES[name].plot for name in traces if name in CURVES}
        self._plots.show_only([place in places for place in range(len(self.plots))])
        self.setMinimumHeight(HEIGHT + HEIGHT_OF_A_PLOT * max(2, len(places)))
        self._say(cell)

    def _say(self, cell: CellTraces | None) -> None:
        """Write which cell it is, what is known of it, and what its change of fluorescence is."""
        self._title.setText(cell.title if cell else HINT)
        self._title.setToolTip("\n".join((cell.title, self._figures())).strip() if cell else "")
        for name, box in self.boxes.items():
            box.setEnabled(cell is None or getattr(cell, name) is not None)
        self.boxes["spike_rate"].setVisible(cell is not None and cell.spike_rate is not None)
        self._name_change(cell.dff_kind if cell else "dff")
        self.curves["fluorescence"].setPen(_pen(cell.output if cell else "raw"))

    def _name_change(self, kind: str) -> None:
        """Say of which kind the change of fluorescence is."""
        self.boxes["dff"].setText(KINDS[kind].title)
        self.boxes["dff"].setToolTip(CURVES["dff"].tip if kind == "dff" else DETRENDED)
        self._plots.name(CHANGE, KINDS[kind].label)

    def _follow(self, decisions: Decisions | None) -> None:
        """Hear what is decided of the cells of a session, and have this cell's outline marked."""
        if decisions is not self.decisions:
            if self.decisions is not None:
                self.decisions.changed.disconnect(self._on_decided)
                self.decisions.mark(())
            if decisions is not None:
                decisions.changed.connect(self._on_decided)
            self.decisions = decisions
        if decisions is not None and self.cell_id is not None:
            decisions.mark((self.cell_id,))

    def _row(self) -> int | None:
        """Return the place of the cell among those that are decided."""
        if self.decisions is None:
            return None
        cells = [int(each) for each in self.decisions.cell_id]
        return cells.index(self.cell_id) if self.cell_id in cells else None

    def _why(self) -> str | None:
        """Say why the cell is accepted or rejected, as the layers show it; None if not known."""
        row = self._row()
        return None if row is None or self.decisions is None else self.decisions.why(row)

    def _figures(self) -> str:
        """Say the scores of the cell."""
        row = self._row()
        return "" if row is None or self.decisions is None else self.decisions.decided.figures(row)

    def _on_decided(self) -> None:
        """Say what is decided of the cell now."""
        why = self._why()
        if self.cell is not None and why is not None:
            self.cell = replace(self.cell, decision=why)
            self._say(self.cell)

    def _lay_out(self) -> None:
        layout, row = QVBoxLayout(self), QHBoxLayout()
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addLayout(row)
        layout.addWidget(self._plots, stretch=1)
        self._title.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        row.setContentsMargins(*MARGINS)
        row.setSpacing(SPACING)
        row.addWidget(self._title, stretch=1)
        for box in self.boxes.values():
            row.addWidget(box)
            box.toggled.connect(self._draw)

    def _curves(self) -> dict[str, Any]:
        total = self.plots[TOTAL].plot(connect="finite")
        chosen = {
            name: self.plots[curve.plot].plot(pen=_pen(name), connect="finite")
            for name, curve in CURVES.items()
        }
        return {**chosen, "fluorescence": total}

    def _connect(self) -> None:
        """Follow the viewer until this widget is destroyed."""
        events = self.viewer.layers.events
        pairs = [(events.inserted, self._on_inserted), (events.removed, self._on_removed)]
        callbacks = self.viewer.mouse_drag_callbacks
        on_click = shown_where_clicked(self._on_clicked)
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
            if self.cell is None:
                self._name_change(kind_of_change(Session(metadata_of(layer)["session"])))
            layer.events.selected_label.connect(self._on_selected)
            layer.events.features.connect(self._on_renewed)

    def _on_inserted(self, event: Any) -> None:
        self._attach(event.value)

    def _on_removed(self, event: Any) -> None:
        if event.value is self.layer:
            self.layer = self.cell_id = self.cell = None
            self._plots.follow(0)
            self._draw()
            self._follow(None)

    def _on_selected(self, event: Any) -> None:
        if event.source.selected_label > 0:
            self.show_cell(event.source, int(event.source.selected_label) - 1)

    def _on_renewed(self, event: Any) -> None:
        """Read the cell again where its session was computed anew, and not where it was judged."""
        if event.source is not self.layer or self.cell_id is None:
            return
        if metadata_of(self.layer)["digest"] != self._digest:
            self.show_cell(self.layer, self.cell_id)

    def _on_clicked(self, layer: Any, cell_id: int) -> None:
        """Show the cell that was clicked on, also where its label was selected already."""
        layer.selected_label = cell_id + 1
        if (self.layer, self.cell_id) != (layer, cell_id):
            self.show_cell(layer, cell_id)


def _box(name: str, curve: Curve) -> QCheckBox:
    """Return what shows or hides a curve, with a piece of it for a key."""
    piece = QPixmap(LENGTH_OF_A_KEY, curve.width + 1)
    piece.fill(QColor(curve.colour))
    box = QCheckBox(KINDS[name].title)
    box.setIcon(QIcon(piece))
    box.setToolTip(curve.tip)
    box.setChecked(curve.ticked)
    return box


def _pen(name: str) -> Any:
    return pg.mkPen(CURVES[name].colour, width=CURVES[name].width)
