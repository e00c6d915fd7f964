"""Where a dock goes when it is opened: napari puts each below the last."""

from __future__ import annotations

from typing import Any

from napari.settings import get_settings
from qtpy.QtCore import QSize, Qt, QTimer
from qtpy.QtWidgets import QDockWidget, QMainWindow, QWidget

__all__ = [
    "BottomDock",
    "CellDock",
    "TimeDock",
    "dock_of",
    "put_at_bottom",
    "shrink",
    "stack",
    "window_size",
]


def dock_of(widget: QWidget) -> QDockWidget | None:
    """Return the dock that a widget is in, if it is in one of a main window."""
    parent = widget.parentWidget()
    while parent is not None and not isinstance(parent, QDockWidget):
        parent = parent.parentWidget()
    return parent if parent and isinstance(parent.parentWidget(), QMainWindow) else None


def stack(widget: QWidget, kind: type[QWidget]) -> None:
    """Make a widget's dock a tab of the docks of others of its kind, and raise it."""
    dock = dock_of(widget)
    if dock is None:
        return
    window = dock.parentWidget()
    docks = (dock_of(other) for other in window.findChildren(kind) if other is not widget)
    others = [each for each in docks if each is not None and not each.isFloating()]
    tabs = window.tabifiedDockWidgets(dock)
    if others and not any(other in tabs for other in others):  # twice would part it from its tabs
        window.tabifyDockWidget(others[0], dock)
    dock.raise_()


def window_size(viewer: Any) -> QSize:
    """Return how large a viewer's window is."""
    viewer = getattr(viewer, "__wrapped__", viewer)  # napari hands plugins a proxy
    size: QSize = viewer.window._qt_window.size()
    return size


def shrink(widget: QWidget, size: QSize) -> None:
    """Make a widget's window no larger than it was before its dock had made it so.

    Qt makes room for a dock as soon as it is added, and gives none back when it becomes a tab.
    """
    dock = dock_of(widget)
    if dock is None or dock.isFloating():
        return
    window = dock.parentWidget()
    if not (window.isMaximized() or window.isFullScreen()):
        window.resize(window.size().boundedTo(size))


class BottomDock(QWidget):  # type: ignore[misc]
    """A widget whose dock goes below the canvas, unless a person ever put it elsewhere.

    Parameters
    ----------
    title : str
        Name that napari gives the dock.
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self._unplaced = title not in get_settings().application.plugin_widget_positions

    def showEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        """Go to its place when it is shown first."""
        super().showEvent(event)
        if self._unplaced:
            self._unplaced = False
            QTimer.singleShot(0, self._place)

    def _place(self) -> None:
        put_at_bottom(self)


class CellDock(BottomDock):
    """A dock that shows the cell that is looked at, or where it is among others.

    Attributes
    ----------
    layer : napari.layers.Labels or None
        The layer of cells.
    cell_id : int or None
        The cell.
    """

    layer: Any = None
    cell_id: int | None = None

    def show_cell(self, layer: Any, cell_id: int) -> None:
        """Show a cell of a layer of cells."""
        raise NotImplementedError


class TimeDock(CellDock):
    """A dock over time, which becomes a tab of the others of its kind; each can be drawn out."""

    def _place(self) -> None:
        super()._place()
        QTimer.singleShot(0, self._stack)  # when those that were opened with it are placed, too

    def _stack(self) -> None:
        stack(self, TimeDock)


def put_at_bottom(widget: QWidget) -> None:
    """Move a widget's dock below the canvas."""
    dock = dock_of(widget)
    if dock is not None and not dock.isFloating():
        dock.parentWidget().addDockWidget(Qt.DockWidgetArea.BottomDockWidgetArea, dock)
