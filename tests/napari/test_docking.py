"""Docks take no more room than the window has."""

from __future__ import annotations

from typing import Any

import pytest
from qtpy.QtCore import QSize

from napari_calcium.napari.docking import shrink, window_size


@pytest.mark.parametrize("pause", [0, 300])
def test_forms_that_become_tabs_do_not_make_the_window_higher(
    qtbot: Any, make_napari_viewer_proxy: Any, pause: int
) -> None:
    """By themselves they would, by the height of the form that is opened second.

    Whether a person opens one after the other, or a start of napari all at once.
    """
    titles = ("Motion correction", "Source extraction", "dF/F")
    viewer = make_napari_viewer_proxy(show=True)
    window = viewer.__wrapped__.window._qt_window
    window.resize(1200, 800)
    qtbot.wait(200)
    before = window.height()
    for title in titles:
        viewer.window.add_plugin_dock_widget("napari-calcium", title)
        qtbot.wait(pause)
    qtbot.wait(300)
    assert window.height() <= before


@pytest.mark.parametrize("size", [QSize(900, 650), QSize(5000, 5000)])
def test_a_window_is_only_made_smaller(
    qtbot: Any, make_napari_viewer_proxy: Any, size: QSize
) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    viewer.__wrapped__.window._qt_window.resize(1100, 800)
    dock, widget = viewer.window.add_plugin_dock_widget("napari-calcium", "Summary images")
    qtbot.wait(200)
    before = window_size(viewer)
    shrink(widget, size)
    assert window_size(viewer) == before.boundedTo(size)
    dock.setFloating(True)
    shrink(widget, QSize(700, 500))
    assert window_size(viewer) == before.boundedTo(size)
