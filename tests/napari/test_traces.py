"""The trace dock: clicks, the time slider, and what a new run changes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt

from napari_calcium.io.session import Session
from napari_calcium.napari.cell_traces import read_cell
from napari_calcium.napari.traces import HINT

PLUGIN = "napari-calcium"


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any, finished: Path) -> Any:
    viewer = make_napari_viewer_proxy()
    viewer.open(str(finished), plugin=PLUGIN)
    return viewer


@pytest.fixture
def dock(viewer: Any) -> Any:
    return viewer.window.add_plugin_dock_widget(PLUGIN, "Traces")[1]


def click(viewer: Any, position: tuple[float, ...], moved: int = 0) -> None:
    """Press, move by some pixels and release the mouse over a place in the field."""
    event = SimpleNamespace(
        type="mouse_press",
        pos=(100, 100),
        position=position,
        view_direction=None,
        modifiers=(),
        dims_displayed=list(viewer.dims.displayed),
    )
    running = [callback(viewer, event) for callback in viewer.mouse_drag_callbacks]
    steps = ["mouse_press", *(["mouse_move"] * bool(moved)), "mouse_release"]
    for step in steps:
        event.type, event.pos = step, (100 if step == "mouse_press" else 100 + moved, 100)
        for generator in running:
            next(generator, None)


def place_of(session: Session, row: int) -> tuple[float, ...]:
    components = session.components()
    y, x = np.unravel_index(np.argmax(components.footprint(row)), components.shape)
    return 0.0, float(y), float(x)


def test_a_click_shows_the_cell_that_is_there(viewer: Any, dock: Any, session: Session) -> None:
    assert dock.title == HINT
    for row, cell_id in enumerate(session.read("source_extraction/cell_id")[:3]):
        click(viewer, place_of(session, row))
        cell = read_cell(session, int(cell_id))
        assert dock.title == cell.title
        seconds, raw = dock.curves["raw"].getOriginalDataset()
        np.testing.assert_array_equal(raw, cell.raw)
        np.testing.assert_allclose(seconds[-1], 19.9)
        np.testing.assert_array_equal(dock.curves["dff"].getOriginalDataset()[1], cell.dff)
        assert viewer.layers["cells"].selected_label == cell_id + 1


def test_the_outline_of_the_cell_is_marked(viewer: Any, dock: Any, session: Session) -> None:
    outlines = viewer.layers["accepted outlines"]
    before = outlines.edge_color.copy()
    for row in (1, 0):
        viewer.layers["cells"].selected_label = int(outlines.features["cell_id"][row]) + 1
        changed = np.flatnonzero((outlines.edge_color != before).any(axis=1))
        np.testing.assert_array_equal(changed, [row])
        np.testing.assert_array_equal(outlines.edge_color[row], [1, 1, 1, 1])


def test_a_drag_shows_no_cell_and_a_click_beside_keeps_it(
    viewer: Any, dock: Any, session: Session
) -> None:
    click(viewer, place_of(session, 0), moved=40)
    assert dock.title == HINT
    click(viewer, place_of(session, 0), moved=1)
    title = dock.title
    assert title != HINT
    y, x = np.argwhere(viewer.layers["cells"].data == 0)[0]
    click(viewer, (0.0, float(y), float(x)))
    assert dock.title == title


def test_a_click_with_the_mouse_in_the_window_shows_the_cell(
    qtbot: Any, make_napari_viewer: Any, finished: Path, session: Session
) -> None:
    viewer = make_napari_viewer(show=True)
    viewer.open(str(finished), plugin=PLUGIN)
    _, dock = viewer.window.add_plugin_dock_widget(PLUGIN, "Traces")
    viewer.reset_view()
    qtbot.wait(200)
    canvas = viewer.window._qt_viewer.canvas.native
    _, y, x = place_of(session, 0)
    camera = viewer.scene.camera
    scale = camera.zoom / canvas.devicePixelRatio()
    from_centre = [(y - camera.center[1]) * scale, (x - camera.center[2]) * scale]
    place = QPoint(
        round(canvas.width() / 2 + from_centre[1]), round(canvas.height() / 2 + from_centre[0])
    )
    qtbot.mouseClick(canvas, Qt.MouseButton.LeftButton, pos=place)
    assert dock.title == read_cell(session, int(session.read("source_extraction/cell_id")[0])).title


def test_a_selected_label_shows_its_cell(viewer: Any, dock: Any, session: Session) -> None:
    cell_id = int(session.read("source_extraction/cell_id")[1])
    viewer.layers["cells"].selected_label = cell_id + 1
    assert dock.cell_id == cell_id
    viewer.layers["cells"].selected_label = 5000
    assert dock.title == HINT


def test_the_cursor_follows_the_slider_and_the_slider_the_cursor(
    viewer: Any, dock: Any, session: Session
) -> None:
    click(viewer, place_of(session, 0))
    viewer.dims.set_current_step(0, 120)
    assert [cursor.value() for cursor in dock.cursors] == [12.0, 12.0]
    dock.cursors[1].setValue(7.53)
    dock.cursors[1].sigDragged.emit(dock.cursors[1])
    assert viewer.dims.current_step[0] == 75


def test_the_dock_finds_cells_that_come_later_and_forgets_those_that_go(
    make_napari_viewer_proxy: Any, finished: Path, session: Session
) -> None:
    viewer = make_napari_viewer_proxy()
    _, dock = viewer.window.add_plugin_dock_widget(PLUGIN, "Traces")
    viewer.open(str(finished), plugin=PLUGIN)
    click(viewer, place_of(session, 0))
    assert dock.title != HINT
    viewer.layers.clear()
    assert dock.title == HINT
    assert dock.cell is None


def test_the_dock_goes_below_the_canvas_and_forms_become_tabs(
    qtbot: Any, make_napari_viewer: Any
) -> None:
    viewer = make_napari_viewer(show=True)
    docks = [
        viewer.window.add_plugin_dock_widget(PLUGIN, title)[0]
        for title in ("Traces", "Import", "dF/F")
    ]
    window = docks[0].parentWidget()
    area = Qt.DockWidgetArea.BottomDockWidgetArea
    qtbot.waitUntil(lambda: window.dockWidgetArea(docks[0]) == area, timeout=2_000)
    qtbot.waitUntil(lambda: docks[2] in window.tabifiedDockWidgets(docks[1]), timeout=2_000)


def test_a_dock_that_was_closed_leaves_the_viewer_be(
    qtbot: Any, viewer: Any, session: Session
) -> None:
    callbacks = len(viewer.mouse_drag_callbacks)
    dock, widget = viewer.window.add_plugin_dock_widget(PLUGIN, "Traces")
    assert len(viewer.mouse_drag_callbacks) == callbacks + 1
    viewer.window.remove_dock_widget(dock)
    with qtbot.waitSignal(widget.destroyed, timeout=2_000):
        widget.deleteLater()
    assert len(viewer.mouse_drag_callbacks) == callbacks
    viewer.dims.set_current_step(0, 3)
    viewer.layers["cells"].selected_label = 2
