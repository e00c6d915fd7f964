"""The cells of a session as a table that can be sorted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import (
    QAbstractTableModel,
    QItemSelection,
    QItemSelectionModel,
    QModelIndex,
    QSize,
    Qt,
    Signal,
)
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from napari_calcium.napari.decided import COLOURS

__all__ = ["COLUMNS", "FILTERS", "CellTable", "CellTableModel", "Column", "sorting_key"]

Table = dict[str, NDArray[Any]]
Rows = NDArray[np.int64]

ASCENDING, DESCENDING = Qt.SortOrder.AscendingOrder, Qt.SortOrder.DescendingOrder
LEFT = Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
RIGHT = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
NO_INDEX = QModelIndex()
WIDTH, PADDING, ROW_PADDING, SPOT = 40, 14, 6, 9
"""Least width of a column, room around what is in a column and in a row, and size of the spot of
colour beside a decision, px."""


MANY = 100
"""So many rows that differ are drawn with all between them."""


def _text(value: Any) -> str:
    return "" if _missing(value) else str(value)


def _figure(value: Any) -> str:
    """Return a score with three digits that count, or two behind the point.

    Examples
    --------
    >>> _figure(38.123), _figure(0.8567), _figure(1234.5), _figure(np.nan)
    ('38.1', '0.86', '1234', '')
    """
    if _missing(value):
        return ""
    decimals = 2 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    return f"{value:.{decimals}f}"


def _decision(value: Any) -> str:
    return "" if _missing(value) else WORDS.get(value, str(value))


def _floored(value: Any) -> str:
    return "" if _missing(value) or not value else "floored"


def _missing(value: Any) -> bool:
    """Whether a value is None or NaN."""
    return value is None or value != value


WORDS = {True: "accepted", False: "rejected", "accept": "accepted", "reject": "rejected"}


@dataclass(frozen=True)
class Column:
    """How one of a layer's features is shown.

    Parameters
    ----------
    heading : str
    tip : str
        What it is.
    write : callable
        Makes a text of a value.
    number : bool
        Whether it stands at the right.
    """

    heading: str
    tip: str
    write: Callable[[Any], str] = _figure
    number: bool = True


COLUMNS: dict[str, Column] = {
    "cell_id": Column("cell", "Identity of the cell; its label is one more", _text),
    "snr": Column("SNR", "Trace SNR: of the largest transient, in units of 3 sd of the noise"),
    "spatial_correlation": Column(
        "r", "Spatial correlation: of the footprint with the movie at the cell's transients"
    ),
    "cnn_probability": Column("classifier", "Probability by a neural network that it is a soma"),
    "size": Column("size", "Area above a fifth of the maximum, in discs of the typical radius"),
    "accepted": Column(
        "decision", "Accepted or rejected: by a person where one has chosen", _decision, False
    ),
    "choice": Column("by hand", "What a person chose, which counts more", _decision, False),
    "reason": Column("reason", "Why the scores reject it", _text, False),
    "f0_floored": Column(
        "F0", "Floored: F0 was raised to its floor, so dF/F is not to be trusted", _floored, False
    ),
    "noise_level": Column(
        "noise", "Noise level of dF/F: median step between frames, % per root of the frame rate"
    ),
    "spike_marks": Column(
        "spike rate", "What speaks against the rate of spikes; empty if nothing", _text, False
    ),
}
"""The features that have a column, by name."""

FILTERS: dict[str, tuple[str, Callable[[NDArray[Any]], NDArray[np.bool_]]]] = {
    "All cells": ("", lambda values: np.ones(len(values), bool)),
    "Accepted": ("accepted", lambda values: values.astype(bool)),
    "Rejected": ("accepted", lambda values: ~values.astype(bool)),
    "By hand": ("choice", lambda values: _known(values)),
}
"""What may be listed: by the values of which column, and which of them."""


class CellTableModel(QAbstractTableModel):  # type: ignore[misc]
    """Rows of a table in some order, perhaps not all of them.

    Attributes
    ----------
    table : dict of str to ndarray (cell,)
        Every cell, by column.
    rows : ndarray of int (row,)
        The cells that are listed, from the top, as indices into the table.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table: Table = {}
        self.names: list[str] = []
        self.rows: Rows = np.zeros(0, np.int64)
        self.sorted_by: tuple[str, bool] | None = None
        self.filter = next(iter(FILTERS))

    @property
    def cell_ids(self) -> NDArray[np.int64]:
        """Identities of the cells that are listed, from the top."""
        return _ids(self.table)[self.rows]

    def arranged(self, table: Table) -> Rows:
        """Return the rows of a table that are to be listed, in their order."""
        rows = np.arange(len(_ids(table)))
        name, keeps = FILTERS[self.filter]
        if name in table:
            rows = np.flatnonzero(keeps(table[name]))
        if self.sorted_by is not None and self.sorted_by[0] in table:
            name, ascending = self.sorted_by
            key = sorting_key(table[name])[rows]
            rows = rows[np.argsort(key if ascending else -key, kind="stable")]
        return rows

    def replace(self, table: Table) -> None:
        """Take other values of the same cells in the same order; only what differs is drawn anew.

        With a style sheet such as napari's, drawing a row takes Qt 1 ms.
        """
        changed = np.zeros(len(self.rows), bool)
        for name in self.names:
            old, new = self.table[name][self.rows], table[name][self.rows]
            changed |= (old != new) & ((old == old) | (new == new))
        self.table = table
        rows, last = np.flatnonzero(changed), len(self.names) - 1
        for run in _runs(rows) if len(rows) < MANY else [rows]:
            self.dataChanged.emit(self.index(int(run[0]), 0), self.index(int(run[-1]), last))

    def rowCount(self, parent: QModelIndex = NO_INDEX) -> int:  # noqa: N802 - Qt's name
        """Return the number of cells that are listed."""
        return 0 if parent.isValid() else len(self.rows)

    def columnCount(self, parent: QModelIndex = NO_INDEX) -> int:  # noqa: N802 - Qt's name
        """Return the number of columns."""
        return 0 if parent.isValid() else len(self.names)

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return what one field of the table shows."""
        name = self.names[index.column()]
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.ToolTipRole):
            text = COLUMNS[name].write(self.table[name][self.rows[index.row()]])
            return text or None
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return RIGHT if COLUMNS[name].number else LEFT
        if role == Qt.ItemDataRole.DecorationRole and name == "accepted":
            return self._colour(self.rows[index.row()])
        return None

    def _colour(self, row: int) -> QColor:
        """Return the colour in which a cell is shown on the canvas."""
        chosen = "choice" in self.table and bool(self.table["choice"][row])
        return QColor(COLOURS[bool(self.table["accepted"][row]), chosen])

    def headerData(  # noqa: N802 - Qt's name
        self,
        section: int,
        orientation: Qt.Orientation,
        role: int = Qt.ItemDataRole.DisplayRole,
    ) -> Any:
        """Return a heading, and what it means."""
        if orientation != Qt.Orientation.Horizontal or not 0 <= section < len(self.names):
            return None
        column = COLUMNS[self.names[section]]
        if role == Qt.ItemDataRole.DisplayRole:
            return column.heading
        if role == Qt.ItemDataRole.ToolTipRole:
            return column.tip
        return LEFT if role == Qt.ItemDataRole.TextAlignmentRole else None


class CellTable(QWidget):  # type: ignore[misc]
    """A table of the cells of a Labels layer, from the layer's features.

    Attributes
    ----------
    view : QTableView
        The table; several rows can be selected, and a click on a heading sorts by it.
    model : CellTableModel
        What is in it.
    filter_box : QComboBox
        Which cells are listed.

    Signals
    -------
    selected(list of int)
        A person selected other rows: the identities of their cells, from the top.
    """

    selected = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self.layer: Any = None
        self.model, self.view = CellTableModel(), QTableView()
        self.filter_box, self._count = QComboBox(), QLabel()
        self._followed: list[tuple[Any, Callable[..., None]]] = []
        self._quiet = False
        self._set_up_view()
        self._lay_out()
        self.filter_box.addItems(list(FILTERS))
        self.filter_box.setToolTip("Which cells are listed")
        self.filter_box.currentTextChanged.connect(self._filter)
        followed = self._followed
        self.destroyed.connect(lambda: _forget(followed))

    def show_layer(self, layer: Any) -> None:
        """Show the features of a Labels layer and follow them; None empties the table."""
        if layer is self.layer:
            return
        _forget(self._followed)
        self.layer = layer
        if layer is not None:
            layer.events.features.connect(self.renew)
            self._followed.append((layer.events.features, self.renew))
        self.renew()

    def renew(self, event: Any = None) -> None:
        """Show the layer's features as they are now; order and selection stay."""
        table = _columns(self.layer.features) if self.layer is not None else {}
        self._arrange(table)

    def selected_ids(self) -> list[int]:
        """Return the identities of the cells that are selected, from the top."""
        ranges = self.view.selectionModel().selection()
        rows = sorted({row for each in ranges for row in range(each.top(), each.bottom() + 1)})
        return [int(cell_id) for cell_id in self.model.cell_ids[rows]]

    def current_id(self) -> int | None:
        """Return the cell that was selected last; None where none is."""
        row = self.view.currentIndex().row()
        chosen = self.selected_ids()
        ids = self.model.cell_ids
        if 0 <= row < len(ids) and int(ids[row]) in chosen:
            return int(ids[row])
        return chosen[0] if chosen else None

    def select(self, cell_ids: Iterable[int]) -> None:
        """Select cells and scroll to the first; emits nothing. Those not listed are left out."""
        rows = np.flatnonzero(np.isin(self.model.cell_ids, list(cell_ids)))
        self._select_rows(rows)
        if rows.size:
            index = self.model.index(int(rows[0]), 0)
            self.view.scrollTo(index, QAbstractItemView.ScrollHint.EnsureVisible)

    def below(self, cell_id: int) -> int | None:
        """Return the cell that is listed after one, or before it where it is the last."""
        ids = self.model.cell_ids
        rows = np.flatnonzero(ids == cell_id)
        if not rows.size or len(ids) < 2:
            return None
        row = int(rows[0])
        return int(ids[row + 1 if row + 1 < len(ids) else row - 1])

    def _arrange(self, table: Table) -> None:
        """Show a table in the order that is chosen, and do no more than is needed for that."""
        model, rows = self.model, self.model.arranged(table)
        names = [name for name in COLUMNS if name in table and _known(table[name]).any()]
        same = names == model.names and np.array_equal(model.rows, rows)
        if same and np.array_equal(_ids(table), _ids(model.table)):
            model.replace(table)
            return
        chosen, current = self.selected_ids(), self.current_id()
        self._quiet = True
        model.beginResetModel()
        model.table, model.rows = table, rows
        new_columns, model.names = names != model.names, names
        model.endResetModel()
        self._quiet = False
        if new_columns:
            self._fit_columns()
        self._select_rows(np.flatnonzero(np.isin(model.cell_ids, chosen)), current)
        self._say()
        if len(self.selected_ids()) < len(chosen):
            self.selected.emit(self.selected_ids())

    def _select_rows(self, rows: Rows, current: int | None = None) -> None:
        """Select some rows and no others, without a signal."""
        self._quiet = True
        flags = QItemSelectionModel.SelectionFlag
        model, selection = self.view.selectionModel(), QItemSelection()
        last = len(self.model.names) - 1
        for run in _runs(rows):
            selection.select(self.model.index(int(run[0]), 0), self.model.index(int(run[-1]), last))
        model.select(selection, flags.ClearAndSelect | flags.Rows)
        at = np.flatnonzero(self.model.cell_ids == current) if current is not None else rows
        if at.size:
            model.setCurrentIndex(self.model.index(int(at[0]), 0), flags.NoUpdate)
        self._quiet = False

    def _filter(self, text: str) -> None:
        self.model.filter = text
        self._arrange(self.model.table)

    def _sort(self, section: int, order: Qt.SortOrder) -> None:
        if 0 <= section < len(self.model.names):
            self.model.sorted_by = self.model.names[section], order == ASCENDING
            self._arrange(self.model.table)
            if (current := self.current_id()) is not None:
                row = int(np.flatnonzero(self.model.cell_ids == current)[0])
                self.view.scrollTo(self.model.index(row, 0))

    def _on_selection(self, *event: Any) -> None:
        if not self._quiet:
            self._say()
            self.selected.emit(self.selected_ids())

    def _say(self) -> None:
        """Say how many cells are listed, and how many of them are selected."""
        n, all_cells = len(self.model.rows), len(_ids(self.model.table))
        text = f"{n}" if n == all_cells else f"{n} of {all_cells}"
        chosen = len(self.selected_ids())
        self._count.setText(f"{text}, {chosen} selected" if chosen > 1 else text)

    def _set_up_view(self) -> None:
        view, header = self.view, self.view.horizontalHeader()
        view.setModel(self.model)
        view.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        view.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        view.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        view.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        view.setShowGrid(False)
        view.setWordWrap(False)
        view.setIconSize(QSize(SPOT, SPOT))
        view.setTabKeyNavigation(False)
        rows = view.verticalHeader()
        rows.setVisible(False)
        rows.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        rows.setDefaultSectionSize(view.fontMetrics().height() + ROW_PADDING)
        header.setSectionsClickable(True)
        header.setSortIndicatorShown(True)
        header.setSortIndicator(-1, ASCENDING)
        header.setStretchLastSection(True)
        header.setMinimumSectionSize(30)
        header.sortIndicatorChanged.connect(self._sort)
        view.selectionModel().selectionChanged.connect(self._on_selection)

    def _fit_columns(self) -> None:
        """Make columns as wide as their headings and what is in the first rows."""
        header, metrics = self.view.horizontalHeader(), self.view.fontMetrics()
        for place, name in enumerate(self.model.names):
            column, values = COLUMNS[name], self.model.table[name]
            texts = [f"{column.heading} ^", *(column.write(value) for value in values[:50])]
            widest = max(metrics.horizontalAdvance(text) for text in texts)
            header.resizeSection(place, max(WIDTH, widest + PADDING))
        self._point_to_order()

    def _point_to_order(self) -> None:
        """Have the heading say by which column the table is sorted, wherever that stands now."""
        name, ascending = self.model.sorted_by or ("", True)
        header, names = self.view.horizontalHeader(), self.model.names
        header.blockSignals(True)
        header.setSortIndicator(
            names.index(name) if name in names else -1, ASCENDING if ascending else DESCENDING
        )
        header.blockSignals(False)

    def _lay_out(self) -> None:
        layout, row = QVBoxLayout(self), QHBoxLayout()
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        row.addWidget(self.filter_box)
        row.addWidget(self._count)
        row.addStretch()
        layout.addLayout(row)
        layout.addWidget(self.view, stretch=1)


def sorting_key(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return numbers in the order of some values; NaN for what is missing, so that it comes last.

    Parameters
    ----------
    values : ndarray (cell,)
        Numbers, whether something holds, or texts; None, NaN and "" are missing.

    Returns
    -------
    ndarray (cell,)

    Examples
    --------
    >>> sorting_key(np.array(["small", "", "large", "small"], object))
    array([ 1., nan,  0.,  1.])
    >>> sorting_key(np.array([True, False]))
    array([1., 0.])
    """
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    key, known = np.full(len(values), np.nan), _known(values)
    key[known] = np.unique(values[known].astype(str), return_inverse=True)[1]
    return key


def _known(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Say which values are neither None nor NaN nor an empty text."""
    if values.dtype.kind == "f":
        return np.asarray(~np.isnan(values))
    if values.dtype.kind in "biu":
        return np.ones(len(values), bool)
    return np.fromiter((not (_missing(v) or v == "") for v in values), bool, len(values))


def _columns(features: Mapping[str, Any]) -> Table:
    """Return a layer's features as arrays, those that have a column; none without identities."""
    if "cell_id" not in features:
        return {}
    return {name: np.asarray(features[name]) for name in COLUMNS if name in features}


def _runs(rows: Rows) -> list[Rows]:
    """Return rows, in their order, as runs without a gap.

    Examples
    --------
    >>> [run.tolist() for run in _runs(np.array([2, 3, 4, 8]))], _runs(np.array([], int))
    ([[2, 3, 4], [8]], [])
    """
    return np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1) if len(rows) else []


def _ids(table: Table) -> NDArray[np.int64]:
    return np.asarray(table.get("cell_id", ()), np.int64)


def _forget(followed: list[tuple[Any, Callable[..., None]]]) -> None:
    """Disconnect what was connected."""
    while followed:
        emitter, callback = followed.pop()
        emitter.disconnect(callback)
