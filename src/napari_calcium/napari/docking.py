"""Where a dock goes when it is opened: napari puts each below the last."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDockWidget, QMainWindow, QWidget

__all__ = ["dock_of", "put_at_bottom", "stack"]


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


def put_at_bottom(widget: QWidget) -> None:
    """Move a widget's dock below the canvas."""
    dock = dock_of(widget)
    if dock is not None and not dock.isFloating():
        dock.parentWidget().addDockWidget(Qt.DockWidgetArea.BottomDockWidgetArea, dock)
