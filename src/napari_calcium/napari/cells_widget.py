"""The cells of a session as a table and as a card, where a person accepts and rejects them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QKeySequence, QShortcut
from qtpy.QtWidgets import QLabel, QScrollArea, QSizePolicy, QSplitter, QVBoxLayout

from napari_calcium.napari.cell_card import CellCard
from napari_calcium.napari.cell_table import CellTable
from napari_calcium.napari.clicking import shown_where_clicked
from napari_calcium.napari.decided import Decided
from napari_calcium.napari.decisions import Decisions, decisions_of
from napari_calcium.napari.docking import CellDock
from napari_calcium.napari.following import CellLayers
from napari_calcium.napari.layers import metadata_of
from napari_calcium.napari.runner import runner_of
from napari_calcium.napari.stage_form import button, row

__all__ = ["BUTTONS", "CellsWidget", "place_of_label"]

DOCK = "Cells (napari-calcium)"
"""Name that napari gives the dock."""

BUTTONS: dict[str, tuple[bool | None, str, str]] = {
    "Accept": (True, "A", "Accept the selected cells by hand, whatever their scores (A)"),
    "Reject": (False, "R", "Reject the selected cells by hand, whatever their scores (R)"),
    "As scored": (None, "U", "Leave the selected cells to their scores again (U)"),
}
"""By their texts what buttons choose, their keys and their meanings."""

NO_CELLS = "Find cells first, or open a session that has some"
NOT_EVALUATED = "Run component evaluation to accept and reject cells"
FOUND_ANEW = "The cells were found anew since; open the session again"
WIDER = 1.2
"""How much wider than high the dock is if the card is beside the table and not below it."""

SIZE, HEIGHT_OF_CARD, WIDTH_OF_CARD = (420, 700), 355, 345
"""Size of the dock at first, height of the card below the table, and its width at least, px."""


class CellsWidget(CellDock):
    """A dock with a table of a session's cells and what is known of the one that is looked at.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer; the cells are those of the layer of cells that was added or clicked on last.

    Attributes
    ----------
    table : CellTable
    card : CellCard
    buttons : dict of str to QPushButton
        By their texts.
    layer : napari.layers.Labels or None
        The layer of cells.
    cell_id : int or None
        The cell that is looked at.
    decisions : Decisions or None
        What is decided of the session's cells.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(DOCK)
        self.viewer = napari_viewer
        self.layer: Any = None
        self.cell_id: int | None = None
        self.decisions: Decisions | None = None
        self.table, self.card = CellTable(), CellCard(napari_viewer)
        self.splitter = QSplitter(Qt.Orientation.Vertical)
        self.buttons = {text: self._button(text) for text in BUTTONS}
        self._counted = QLabel()
        self._divided = False
        self._lay_out()
        self._connect()
        leave = partial(self._look_at, None)
        self._layers = CellLayers(napari_viewer, self, self._on_label, leave)
        self._say()

    @property
    def counted(self) -> str:
        """How many cells are accepted and rejected, as it is written."""
        return str(self._counted.text())

    def follow(self, layer: Any) -> None:
        """Show the cells of a layer of cells; of none with None."""
        if layer is not self.layer:
            self.layer, self.cell_id = layer, None
            self.table.show_layer(layer)
        self._decide()
        self._say()

    def show_cell(self, layer: Any, cell_id: int) -> None:
        """Show a cell in the table, on the card, and in the other docks.

        Parameters
        ----------
        layer : napari.layers.Labels
            A layer of cells.
        cell_id : int
            Identity of the cell.
        """
        if layer is not self.layer:
            self.follow(layer)
        if cell_id not in self.table.selected_ids() or cell_id != self.table.current_id():
            self.table.select([cell_id])
        self._look_at(cell_id)

    def choose(self, accepted: bool | None) -> None:
        """Accept or reject the cells that are selected, or leave them to their scores with None.

        Where they are no longer listed, the cell below them is shown.
        """
        cell_ids = self._chosen_ids()
        if self.decisions is None or not cell_ids:
            return
        following = self.table.below(cell_ids[-1])
        self.decisions.choose(cell_ids, accepted, metadata_of(self.layer)["digest"])
        self.decisions.tabulate()
        listed = self.table.model.cell_ids
        if following in listed and not np.isin(cell_ids, listed).any():
            self.show_cell(self.layer, int(following or 0))

    def _chosen_ids(self) -> list[int]:
        """Return the cells that buttons are about: the selected rows, or the cell looked at."""
        return self.table.selected_ids() or ([] if self.cell_id is None else [self.cell_id])

    def _look_at(self, cell_id: int | None) -> None:
        """Show a cell wherever it is to be seen but in the table."""
        self.cell_id = cell_id
        self.card.show_cell(self.layer, cell_id, self._decided)
        self._enable()
        if cell_id is None or self.layer is None:
            return
        self.layer.selected_label = cell_id + 1
        for dock in self._window.findChildren(CellDock):  # no event told of label 1
            if (dock.layer, dock.cell_id) != (self.layer, cell_id):
                dock.show_cell(self.layer, cell_id)
        if self.decisions is not None:
            self.decisions.mark(self._chosen_ids())

    def _move_to(self, cell_id: int) -> None:
        """Move the view to a cell that is not seen."""
        place = place_of_label(self.layer.data, cell_id + 1)
        if place is None or self.viewer.dims.ndisplay != 2:
            return
        first, last = np.asarray(self.layer.corner_pixels)[:, -2:]
        if (first < last).all() and ((place < first) | (place > last)).any():
            world = self.layer.data_to_world(place)
            camera = self.viewer.scene.camera
            camera.center = (camera.center[0], *map(float, world[-2:]))

    # ---------------------------------------------------------------------------- decisions

    @property
    def _decided(self) -> Decided | None:
        """What is decided of the cells that the layer shows; None if that is of other cells."""
        if self.decisions is None or self.layer is None:
            return None
        decided = self.decisions.decided
        return decided if decided.is_of(metadata_of(self.layer)["digest"]) else None

    def _decide(self) -> None:
        """Follow what is decided of the layer's cells."""
        session = "" if self.layer is None else metadata_of(self.layer)["session"]
        decisions = decisions_of(self.viewer, session) if session else None
        if decisions is self.decisions:
            return
        if self.decisions is not None:
            self.decisions.changed.disconnect(self._on_changed)
        self.decisions = decisions
        if decisions is not None:
            decisions.changed.connect(self._on_changed)

    def _on_changed(self) -> None:
        self.card.show_decided(self._decided)
        self._say()

    def _say(self) -> None:
        """Say how many cells are accepted, and enable what can be pressed."""
        decided = self._decided
        if decided is None:
            unscored = NOT_EVALUATED if self.decisions is None else FOUND_ANEW
            self._counted.setText(NO_CELLS if self.layer is None else unscored)
            self._counted.setToolTip("")
        else:
            accepted, by_hand = int(decided.accepted.sum()), int(decided.chosen.sum())
            text = f"{accepted} accepted, {len(decided.accepted) - accepted} rejected"
            self._counted.setText(f"{text}, {by_hand} by hand" if by_hand else text)
            self._counted.setToolTip(decided.counted())
        self._enable()

    def _enable(self) -> None:
        for each in self.buttons.values():
            each.setEnabled(self._decided is not None and bool(self._chosen_ids()))

    # ------------------------------------------------------------------------- what it hears

    @property
    def _window(self) -> Any:
        return getattr(self.viewer, "__wrapped__", self.viewer).window._qt_window

    def _connect(self) -> None:
        """Follow the viewer until this widget is destroyed."""
        self.table.selected.connect(self._on_rows)
        runner_of(self.viewer).ended.connect(self._on_ended)
        callbacks, on_click = (
            self.viewer.mouse_drag_callbacks,
            shown_where_clicked(self.show_cell),
        )
        callbacks.append(on_click)
        self.destroyed.connect(lambda: callbacks.remove(on_click))

    def _on_ended(self, answer: Any) -> None:
        """Take what a run made anew."""
        if "preview" not in answer:
            self.follow(self.layer)
            self.card.show_decided(self._decided)

    def _on_label(self, event: Any) -> None:
        """Show the cell whose label was selected; a new colormap also says that one was."""
        label = int(event.source.selected_label)
        if label > 0 and (event.source is not self.layer or label - 1 != self.cell_id):
            self.show_cell(event.source, label - 1)

    def _on_rows(self, cell_ids: list[int]) -> None:
        """Show the row that was selected last; where there is none any more, the cell stays."""
        current = self.table.current_id()
        if current is None and self.cell_id in self.table.model.table.get("cell_id", ()):
            current = self.cell_id
        self._look_at(current)
        if cell_ids and current is not None:
            self._move_to(current)

    # -------------------------------------------------------------------------- its widgets

    def resizeEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        """Put the card beside the table where there is more room than below it."""
        super().resizeEvent(event)
        beside = self.width() > WIDER * self.height()
        wanted = Qt.Orientation.Horizontal if beside else Qt.Orientation.Vertical
        if self.splitter.orientation() != wanted or not self._divided:
            self._divided = True
            self.splitter.setOrientation(wanted)
            length = self.width() if beside else self.height()
            card = WIDTH_OF_CARD if beside else min(HEIGHT_OF_CARD, length // 2)
            self.splitter.setSizes([length - card, card])

    def sizeHint(self) -> QSize:  # noqa: N802 - Qt's name
        """Return a size in which most of what is known of a cell is seen."""
        return QSize(*SIZE)

    def _button(self, text: str) -> Any:
        accepted, key, tip = BUTTONS[text]
        made = button(text, tip, lambda: self.choose(accepted))
        made.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # so that the table's keys go on working
        shortcut = QShortcut(QKeySequence(key), self)
        shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
        shortcut.activated.connect(made.click)
        return made

    def _lay_out(self) -> None:
        layout = QVBoxLayout(self)
        layout.setContentsMargins(4, 4, 4, 4)
        layout.setSpacing(4)
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setFrameShape(QScrollArea.Shape.NoFrame)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setMinimumWidth(WIDTH_OF_CARD)
        area.setWidget(self.card)
        self.splitter.addWidget(self.table)
        self.splitter.addWidget(area)
        self.splitter.setStretchFactor(0, 1)
        self.splitter.setStretchFactor(1, 0)
        self.splitter.setChildrenCollapsible(False)
        layout.addWidget(self.splitter, stretch=1)
        layout.addLayout(row(*self.buttons.values()))
        layout.addWidget(self._counted)
        self._counted.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)


def place_of_label(labels: NDArray[np.integer], label: int) -> NDArray[np.float64] | None:
    """Return the mean place (y, x) of a label's pixels, px; None where it has none.

    Examples
    --------
    >>> place_of_label(np.array([[0, 3, 3], [0, 3, 3]]), 3), place_of_label(np.eye(2), 7)
    (array([0.5, 1.5]), None)
    """
    places = np.nonzero(np.asarray(labels) == label)
    return np.array([place.mean() for place in places]) if places[0].size else None
