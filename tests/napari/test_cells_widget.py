"""The dock of cells: table, card, canvas and traces show the same cell, and a person judges it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt

from napari_calcium.io.choices import read_choices
from napari_calcium.io.session import Session
from napari_calcium.napari.cells_widget import FOUND_ANEW, NO_CELLS, NOT_EVALUATED, CellsWidget
from napari_calcium.napari.decisions import decisions_of
from napari_calcium.napari.runner import runner_of
from napari_calcium.napari.traces import TracesWidget
from napari_calcium.napari.viewing import changes, show_changes, shown_digests
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run

PLUGIN = "napari-calcium"
LEFT = Qt.MouseButton.LeftButton


@pytest.fixture
def path(finished: Path, tmp_path: Path) -> Path:
    """A session that may be changed."""
    return Path(shutil.copytree(finished, tmp_path / "cells.zarr"))


@pytest.fixture
def ids(session: Session) -> list[int]:
    return [int(cell_id) for cell_id in session.read("source_extraction/cell_id")]


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any, path: Path) -> Any:
    viewer = make_napari_viewer_proxy()
    viewer.open(str(path), plugin=PLUGIN)
    return viewer


def dock_of_cells(viewer: Any) -> CellsWidget:
    widget = CellsWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Cells")
    return widget


@pytest.fixture
def dock(viewer: Any) -> CellsWidget:
    return dock_of_cells(viewer)


def click_row(qtbot: Any, dock: CellsWidget, cell_id: int, key: Any = None) -> None:
    view, model = dock.table.view, dock.table.model
    index = model.index(int(np.flatnonzero(model.cell_ids == cell_id)[0]), 0)
    view.scrollTo(index)
    modifiers = Qt.KeyboardModifier.NoModifier if key is None else key
    qtbot.mouseClick(view.viewport(), LEFT, modifiers, view.visualRect(index).center())


def place_of(session: Session, row: int) -> tuple[float, float]:
    components = session.components()
    y, x = np.unravel_index(np.argmax(components.footprint(row)), components.shape)
    return float(y), float(x)


def click(viewer: Any, position: tuple[float, ...], moved: int = 0) -> None:
    """Press, move by some pixels and release the mouse over a place in the field."""
    event = SimpleNamespace(
        type="mouse_press",
        pos=(100, 100),
        position=(0.0, *position),
        view_direction=None,
        modifiers=(),
        dims_displayed=list(viewer.dims.displayed),
    )
    running = [callback(viewer, event) for callback in viewer.mouse_drag_callbacks]
    for step in ["mouse_press", *(["mouse_move"] * bool(moved)), "mouse_release"]:
        event.type, event.pos = step, (100 if step == "mouse_press" else 100 + moved, 100)
        for generator in running:
            next(generator, None)


def agrees(dock: CellsWidget, cell_id: int) -> bool:
    """Whether everything in the dock and the layer is about one cell."""
    return (
        dock.cell_id == dock.card.cell_id == cell_id
        and dock.table.selected_ids() == [cell_id]
        and dock.layer.selected_label == cell_id + 1
    )


# -------------------------------------------------------------------------------- linking


def test_it_lists_the_cells_of_the_session(
    dock: CellsWidget, session: Session, ids: list[int]
) -> None:
    assert list(dock.table.model.cell_ids) == ids
    assert dock.cell_id is None
    accepted = session.quality().accepted
    assert dock.counted == f"{accepted.sum()} accepted, {(~accepted).sum()} rejected"
    assert not any(each.isEnabled() for each in dock.buttons.values())


def test_a_row_shows_its_cell_everywhere(
    qtbot: Any, viewer: Any, dock: CellsWidget, ids: list[int]
) -> None:
    traces = TracesWidget(viewer)
    viewer.window.add_dock_widget(traces, name="Traces")
    assert ids[0] == 0  # its label, 1, is selected in a new layer, and napari would say nothing
    for cell_id in (*ids, ids[0]):
        click_row(qtbot, dock, cell_id)
        assert agrees(dock, cell_id)
        assert (traces.layer, traces.cell_id) == (dock.layer, cell_id)
        outlines = viewer.layers["outlines"]
        white = (outlines.edge_color == 1).all(axis=1)
        assert list(outlines.features["cell_id"][white]) == [cell_id]
    assert all(each.isEnabled() for each in dock.buttons.values())


def test_traces_are_read_once(
    qtbot: Any, viewer: Any, dock: CellsWidget, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = TracesWidget(viewer)
    viewer.window.add_dock_widget(traces, name="Traces")
    shown: list[int] = []
    original = TracesWidget.show_cell

    def counted(self: Any, layer: Any, cell_id: int) -> None:
        shown.append(cell_id)
        original(self, layer, cell_id)

    monkeypatch.setattr(TracesWidget, "show_cell", counted)
    for cell_id in ids[:3]:
        click_row(qtbot, dock, cell_id)
    assert shown == ids[:3]


def test_a_click_on_a_cell_selects_its_row(
    viewer: Any, dock: CellsWidget, session: Session, ids: list[int]
) -> None:
    for row in (0, 2, 1, 0):  # without a dock of traces, that would hear of clicks too
        click(viewer, place_of(session, row))
        assert agrees(dock, ids[row])
    click(viewer, place_of(session, 2), moved=40)
    assert agrees(dock, ids[0])
    y, x = np.argwhere(viewer.layers["cells"].data == 0)[0]
    click(viewer, (float(y), float(x)))
    assert agrees(dock, ids[0])


def test_a_selected_label_selects_its_row(viewer: Any, dock: CellsWidget, ids: list[int]) -> None:
    viewer.layers["cells"].selected_label = ids[2] + 1
    assert agrees(dock, ids[2])
    viewer.layers["cells"].selected_label = 5000
    assert dock.table.selected_ids() == []
    assert dock.card.cell_id == 4999
    viewer.layers["cells"].selected_label = 0
    assert dock.card.cell_id == 4999


def test_a_new_colormap_does_not_take_the_selection_away(
    qtbot: Any, viewer: Any, dock: CellsWidget, ids: list[int]
) -> None:
    click_row(qtbot, dock, ids[0])
    click_row(qtbot, dock, ids[2], Qt.KeyboardModifier.ControlModifier)
    viewer.layers["cells"].new_colormap()  # which napari says as if a label was selected
    assert dock.table.selected_ids() == [ids[0], ids[2]]
    assert dock.cell_id == ids[2]


def test_clicks_and_the_mouse_in_a_real_window(
    qtbot: Any, make_napari_viewer: Any, path: Path, session: Session, ids: list[int]
) -> None:
    viewer = make_napari_viewer(show=True)
    viewer.open(str(path), plugin=PLUGIN)
    dock = dock_of_cells(viewer)
    qtbot.wait(200)
    viewer.reset_view()
    qtbot.wait(200)
    canvas = viewer.window._qt_viewer.canvas.native
    camera = viewer.scene.camera
    scale = camera.zoom / canvas.devicePixelRatio()
    y, x = place_of(session, 1)
    place = QPoint(
        round(canvas.width() / 2 + (x - camera.center[2]) * scale),
        round(canvas.height() / 2 + (y - camera.center[1]) * scale),
    )
    qtbot.mouseClick(canvas, LEFT, pos=place)
    assert agrees(dock, ids[1])
    # a cell that is seen leaves the view as it is; one that is not seen comes into the middle
    centre = camera.center
    click_row(qtbot, dock, ids[2])
    assert camera.center == centre
    camera.zoom *= 8
    camera.center = (0.0, *place_of(session, 0))
    qtbot.wait(200)
    click_row(qtbot, dock, ids[3])
    expected = np.argwhere(viewer.layers["cells"].data == ids[3] + 1).mean(axis=0)
    np.testing.assert_allclose(camera.center[1:], expected, atol=1e-6)
    qtbot.wait(200)
    centre = camera.center
    click_row(qtbot, dock, ids[3])
    assert camera.center == centre


def test_the_card_is_beside_the_table_or_below_it(qtbot: Any, dock: CellsWidget) -> None:
    dock.setParent(None)
    qtbot.addWidget(dock)
    dock.show()
    for size, orientation in (
        ((900, 300), Qt.Orientation.Horizontal),
        ((340, 800), Qt.Orientation.Vertical),
    ):
        dock.resize(*size)
        assert dock.splitter.orientation() == orientation


# -------------------------------------------------------------------------------- judging


def counts(dock: CellsWidget) -> tuple[int, int]:
    """Return how many cells are accepted and rejected, as the dock says."""
    words = dock.counted.replace(",", "").split()
    return int(words[0]), int(words[2])


def stored(qtbot: Any, path: Path, wanted: dict[int, bool]) -> None:
    qtbot.waitUntil(lambda: read_choices(Session(path)) == wanted, timeout=5_000)


def test_buttons_judge_the_selected_cells(
    qtbot: Any, viewer: Any, dock: CellsWidget, path: Path, ids: list[int]
) -> None:
    before = counts(dock)
    click_row(qtbot, dock, ids[0])
    click_row(qtbot, dock, ids[2], Qt.KeyboardModifier.ControlModifier)
    qtbot.mouseClick(dock.buttons["Reject"], LEFT)
    stored(qtbot, path, {ids[0]: False, ids[2]: False})
    decisions = decisions_of(viewer, str(path))
    assert decisions is dock.decisions
    assert not decisions.accepted[[0, 2]].any()
    assert counts(dock) == (decisions.accepted.sum(), (~decisions.accepted).sum())
    assert dock.counted.endswith("2 by hand")
    assert "rejected by hand" in dock.card.text
    assert list(dock.layer.features["accepted"]) == list(decisions.accepted)
    assert dock.table.selected_ids() == [ids[0], ids[2]]
    qtbot.mouseClick(dock.buttons["Accept"], LEFT)
    stored(qtbot, path, {ids[0]: True, ids[2]: True})
    qtbot.mouseClick(dock.buttons["As scored"], LEFT)
    stored(qtbot, path, {})
    assert counts(dock) == before
    assert "by hand" not in dock.card.text


def test_keys_judge_while_the_table_has_the_focus(
    qtbot: Any, make_napari_viewer: Any, path: Path, ids: list[int]
) -> None:
    viewer = make_napari_viewer(show=True)
    viewer.open(str(path), plugin=PLUGIN)
    dock = dock_of_cells(viewer)
    qtbot.wait(200)
    viewer.window._qt_window.activateWindow()
    click_row(qtbot, dock, ids[0])
    dock.table.view.setFocus()
    qtbot.waitUntil(dock.table.view.hasFocus, timeout=3_000)
    expected = {}
    for cell_id, key, accepted in zip(ids, "RAR", (False, True, False), strict=False):
        assert dock.cell_id == cell_id
        qtbot.keyClick(dock.table.view, key)
        qtbot.keyClick(dock.table.view, Qt.Key.Key_Down)
        expected[cell_id] = accepted
    stored(qtbot, path, expected)
    click_row(qtbot, dock, ids[1])
    qtbot.keyClick(dock.table.view, "u")
    expected.pop(ids[1])
    stored(qtbot, path, expected)
    canvas = viewer.window._qt_viewer.canvas.native
    canvas.setFocus()
    qtbot.keyClick(canvas, "a")  # somewhere else it is not the dock's key
    qtbot.wait(100)
    assert read_choices(Session(path)) == expected


def test_a_cell_that_leaves_the_list_makes_room_for_the_next(
    qtbot: Any, dock: CellsWidget, path: Path, ids: list[int]
) -> None:
    for cell_id in ids[:3]:
        click_row(qtbot, dock, cell_id)
        dock.choose(True)
    dock.table.filter_box.setCurrentText("Accepted")
    click_row(qtbot, dock, ids[0])
    following = int(dock.table.model.cell_ids[1])
    dock.choose(False)
    assert ids[0] not in dock.table.model.cell_ids
    assert agrees(dock, following)
    stored(qtbot, path, {ids[0]: False, ids[1]: True, ids[2]: True})


def test_a_cell_that_is_not_listed_can_be_judged(
    qtbot: Any, viewer: Any, dock: CellsWidget, path: Path, session: Session, ids: list[int]
) -> None:
    dock.table.filter_box.setCurrentText("By hand")
    assert dock.table.model.rowCount() == 0
    click(viewer, place_of(session, 1))
    assert dock.card.cell_id == ids[1]
    dock.choose(False)
    stored(qtbot, path, {ids[1]: False})
    assert list(dock.table.model.cell_ids) == [ids[1]]


def test_thresholds_that_move_are_seen(viewer: Any, dock: CellsWidget, path: Path) -> None:
    decisions = decisions_of(viewer, str(path))
    assert decisions is not None
    dock.show_cell(viewer.layers["cells"], 0)
    before = counts(dock)
    none = {"snr_upper": 1e6, "correlation_upper": 1.0, "cnn_upper": 1.0}
    decisions.set_parameters(replace(decisions.parameters, **none))
    assert counts(dock) == (0, sum(before))
    assert "rejected" in dock.card.text


@pytest.mark.parametrize("known", [True, False])
def test_cells_that_are_not_seen_are_not_judged(
    qtbot: Any,
    viewer: Any,
    dock: CellsWidget,
    path: Path,
    ids: list[int],
    notifications: Any,
    known: bool,
) -> None:
    """Another program finds the cells anew; identities are the same numbers, of other cells."""
    dock.show_cell(viewer.layers["cells"], ids[0])
    recipe = Recipe.of_session(Session(path)).with_value("source_extraction.threshold", 9.0)
    run(path, recipe=recipe, until="component_evaluation")
    if known:
        dock.follow(dock.layer)
        assert dock.counted == FOUND_ANEW
        assert not any(each.isEnabled() for each in dock.buttons.values())
    with qtbot.waitSignal(dock.decisions.refused, timeout=5_000):
        dock.choose(False)
    assert read_choices(Session(path)) == {}
    assert "found anew" in notifications()[0]
    assert dock.counted == FOUND_ANEW
    viewer.open(str(path), plugin=PLUGIN)
    dock.show_cell(dock.layer, ids[0])
    dock.choose(False)
    stored(qtbot, path, {ids[0]: False})


# ------------------------------------------------------------------------ coming and going


def test_without_cells_it_says_what_to_do(make_napari_viewer_proxy: Any, path: Path) -> None:
    viewer = make_napari_viewer_proxy()
    dock = dock_of_cells(viewer)
    assert dock.counted == NO_CELLS
    dock.choose(True)
    viewer.open(str(path), plugin=PLUGIN)
    assert dock.table.model.rowCount() > 0
    assert dock.decisions is not None
    viewer.layers.clear()
    assert dock.counted == NO_CELLS
    assert dock.table.model.rowCount() == 0
    assert dock.cell_id is None
    assert dock.decisions is None


def test_without_scores_cells_are_shown_but_not_judged(
    qtbot: Any, make_napari_viewer_proxy: Any, path: Path, ids: list[int]
) -> None:
    shutil.rmtree(path / "component_evaluation")
    viewer = make_napari_viewer_proxy()
    viewer.open(str(path), plugin=PLUGIN)
    dock = dock_of_cells(viewer)
    click_row(qtbot, dock, ids[1])
    assert agrees(dock, ids[1])
    assert dock.counted == NOT_EVALUATED
    assert not any(each.isEnabled() for each in dock.buttons.values())
    dock.choose(True)
    assert read_choices(Session(path)) == {}


def test_it_follows_the_session_that_is_looked_at(
    qtbot: Any, viewer: Any, dock: CellsWidget, path: Path, tmp_path: Path, ids: list[int]
) -> None:
    first = dock.layer
    click_row(qtbot, dock, ids[1])
    other = Path(shutil.copytree(path, tmp_path / "other.zarr"))
    viewer.open(str(other), plugin=PLUGIN)
    second = dock.layer
    assert second is not first
    assert dock.decisions is decisions_of(viewer, str(other))
    assert dock.cell_id is None
    viewer.layers.selection.active = first
    assert dock.layer is first
    assert dock.decisions is decisions_of(viewer, str(path))
    second.selected_label = ids[2] + 1
    assert dock.layer is second
    assert agrees(dock, ids[2])
    dock.choose(False)
    stored(qtbot, other, {ids[2]: False})
    assert read_choices(Session(path)) == {}
    viewer.layers.remove(second)
    assert dock.layer is first
    assert dock.cell_id is None


def test_after_a_run_it_is_up_to_date(
    viewer: Any, dock: CellsWidget, path: Path, ids: list[int]
) -> None:
    dock.show_cell(viewer.layers["cells"], ids[1])
    shutil.rmtree(path / "component_evaluation")
    show_changes(viewer, changes(path, shown_digests(viewer, path)))
    runner_of(viewer).ended.emit({"state": "done", "stages": []})
    assert dock.decisions is None
    assert dock.counted == NOT_EVALUATED
    assert agrees(dock, ids[1])


def test_a_dock_that_was_closed_leaves_the_viewer_be(
    qtbot: Any, viewer: Any, ids: list[int]
) -> None:
    layer = viewer.layers["cells"]
    emitters = [layer.events.selected_label, layer.events.features, viewer.layers.events.inserted]
    emitters += [viewer.layers.events.removed, viewer.layers.selection.events.active]
    decisions_of(viewer, str(viewer.layers["cells"].metadata["napari_calcium"]["session"]))
    before = [len(each.callbacks) for each in emitters]
    clicks = len(viewer.mouse_drag_callbacks)
    widget = CellsWidget(viewer)
    dock = viewer.window.add_dock_widget(widget, name="Cells")
    assert len(viewer.mouse_drag_callbacks) == clicks + 1
    viewer.window.remove_dock_widget(dock)
    with qtbot.waitSignal(widget.destroyed, timeout=2_000):
        widget.deleteLater()
    assert [len(each.callbacks) for each in emitters] == before
    assert len(viewer.mouse_drag_callbacks) == clicks
    layer.selected_label = ids[1] + 1
    viewer.layers.clear()
