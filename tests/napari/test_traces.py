"""The trace dock: clicks, the time slider, and what a new run changes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
from qtpy.QtCore import QPoint, Qt

from napari_calcium.io.session import Session
from napari_calcium.napari import traces
from napari_calcium.napari.cell_traces import read_cell
from napari_calcium.napari.decisions import decisions_of
from napari_calcium.napari.layers import KEY, metadata_of
from napari_calcium.napari.traces import CURVES, HINT

PLUGIN = "napari-calcium"
WITHOUT_RATES = tuple(name for name in CURVES if name != "spike_rate")


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


def test_a_click_reads_the_cell_once(
    viewer: Any, dock: Any, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long recordings take a while; also of the label that is selected from the start."""
    asked: list[int] = []

    def counted(session: Session, cell_id: int, *rest: Any) -> Any:
        asked.append(cell_id)
        return read_cell(session, cell_id, *rest)

    monkeypatch.setattr("napari_calcium.napari.traces.read_cell", counted)
    wanted = session.read("source_extraction/cell_id")[:3].tolist()
    for row in range(3):
        click(viewer, place_of(session, row))
    assert asked == wanted


def test_plots_that_appear_fill_the_dock(
    make_napari_viewer: Any, qtbot: Any, finished: Path, session: Session
) -> None:
    """Shown first without a cell, when no plot is there to give the layout a width."""
    viewer = make_napari_viewer(show=True)
    viewer.open(str(finished), plugin=PLUGIN)
    widget = viewer.window.add_plugin_dock_widget(PLUGIN, "Traces")[1]
    widget.setMinimumHeight(400)
    widget.setMinimumHeight = lambda height: None  # nothing else is to lay the plots out anew
    qtbot.wait(300)
    assert not any(plot.isVisible() for plot in widget.plots)
    viewer.layers["cells"].selected_label = int(session.read("source_extraction/cell_id")[1]) + 1
    for box in widget.boxes.values():
        box.setChecked(True)
    qtbot.wait(300)
    whole = widget._plots.ci.geometry()
    assert whole.width() == pytest.approx(widget._plots.width(), abs=2)
    assert whole.height() == pytest.approx(widget._plots.height(), abs=2)
    widths = [plot.vb.width() for plot in widget.plots]
    assert min(widths) > 0.6 * widget._plots.width()


def test_the_outline_of_the_cell_is_marked(viewer: Any, dock: Any, session: Session) -> None:
    outlines = viewer.layers["outlines"]
    before = outlines.edge_color.copy()
    for row in (1, 0):
        viewer.layers["cells"].selected_label = int(outlines.features["cell_id"][row]) + 1
        changed = np.flatnonzero((outlines.edge_color != before).any(axis=1))
        np.testing.assert_array_equal(changed, [row])
        np.testing.assert_array_equal(outlines.edge_color[row], [1, 1, 1, 1])


def test_outlines_that_nobody_looks_at_are_in_the_colours_of_the_decision(
    viewer: Any, dock: Any, session: Session
) -> None:
    outlines = viewer.layers["outlines"]
    before = outlines.edge_color.copy()
    viewer.layers["cells"].selected_label = int(outlines.features["cell_id"][1]) + 1
    viewer.layers.remove("cells")
    np.testing.assert_array_equal(outlines.edge_color, before)


def test_a_click_on_a_rejected_cell_says_why_it_was_rejected(
    viewer: Any, dock: Any, session: Session
) -> None:
    decisions = decisions_of(viewer, str(session.path))
    row = int(np.flatnonzero(~decisions.accepted)[0])
    viewer.layers["cells"].selected_label = int(decisions.cell_id[row]) + 1
    assert dock.title == f"cell {decisions.cell_id[row]}, {decisions.why(row)}"
    assert ", rejected: " in dock.title
    tip = dock._title.toolTip()
    assert tip.startswith(dock.title + "\nTrace SNR ")
    assert f"Spatial correlation {decisions.quality.spatial_correlation[row]:.3g}" in tip


def test_the_title_follows_the_thresholds_and_nothing_is_read_for_it(
    qtbot: Any, viewer: Any, dock: Any, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def reading(*arguments: Any) -> Any:
        read.append(arguments[1])
        return read_cell(*arguments)

    monkeypatch.setattr(traces, "read_cell", reading)
    decisions = decisions_of(viewer, str(session.path))
    best = int(np.argmax(decisions.quality.snr))
    cell_id = int(decisions.cell_id[best])
    viewer.layers["cells"].selected_label = cell_id + 1
    before = len(read)
    assert before >= 1
    assert ", accepted: " in dock.title
    for snr_lower in (2.0, 5.0, 1e3):
        parameters = replace(decisions.parameters, snr_lower=snr_lower, snr_upper=2e3)
        decisions.set_parameters(parameters)
        assert dock.title == f"cell {cell_id}, {decisions.why(best)}"
    assert "is not above 1000" in dock.title
    qtbot.wait(300)
    assert not viewer.layers["cells"].features["accepted"].any()
    np.testing.assert_array_equal(dock.curves["raw"].getOriginalDataset()[1], dock.cell.raw)
    assert len(read) == before


def test_a_cell_is_read_again_where_its_session_was_computed_anew(
    viewer: Any, dock: Any, session: Session
) -> None:
    cells = viewer.layers["cells"]
    cells.selected_label = int(session.read("source_extraction/cell_id")[1]) + 1
    shown = dock.cell
    cells.features = cells.features
    assert dock.cell is shown
    about = metadata_of(cells)
    cells.metadata = {**cells.metadata, KEY: {**about, "digest": "another"}}
    cells.features = cells.features
    assert dock.cell is not shown
    np.testing.assert_array_equal(dock.cell.raw, shown.raw)


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
    assert [cursor.value() for cursor in dock.cursors] == [12.0] * 5
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


def tick(dock: Any, *names: str) -> None:
    for name, box in dock.boxes.items():
        box.setChecked(name in names)


def drawn(dock: Any) -> dict[str, Any]:
    """Return what is drawn, by name."""
    data = {name: curve.getOriginalDataset()[1] for name, curve in dock.curves.items()}
    return {name: values for name, values in data.items() if values is not None and len(values)}


def said(dock: Any) -> list[str]:
    """Return what is written beside the plots that are to be seen, from the top."""
    plots = dock._plots
    shown = zip(plots._names, plots.plots, strict=True)
    return [name.text.replace("<br>", " ") for name, plot in shown if plot.isVisible()]


def with_times(dock: Any) -> list[bool]:
    """Return which of the plots have numbers below them."""
    return [plot.getAxis("bottom").style["showValues"] for plot in dock.plots]


class TestWhatIsShown:
    """Check boxes choose the traces, and the plots say what is in them."""

    def test_raw_denoised_and_dff_before_anyone_has_chosen(
        self, viewer: Any, dock: Any, session: Session
    ) -> None:
        assert said(dock) == []
        click(viewer, place_of(session, 0))
        assert set(drawn(dock)) == {"raw", "denoised", "dff"}
        assert said(dock) == ["F above rest (counts)", "dF/F (fraction)"]

    @pytest.mark.parametrize(
        ("names", "labels"),
        [
            (
                WITHOUT_RATES,
                [
                    "F above rest (counts)",
                    "F and F0 (counts)",
                    "dF/F (fraction)",
                    "deconvolved (counts/frame)",
                ],
            ),
            (("f0", "denoised"), ["F above rest (counts)", "F and F0 (counts)"]),
            (("dff", "f0"), ["F and F0 (counts)", "dF/F (fraction)"]),
            (("deconvolved",), ["deconvolved (counts/frame)"]),
            ((), []),
        ],
    )
    def test_what_is_ticked(
        self, names: Any, labels: list[str], viewer: Any, dock: Any, session: Session
    ) -> None:
        click(viewer, place_of(session, 0))
        tick(dock, *names)
        cell = read_cell(session, dock.cell_id)
        found = drawn(dock)
        assert set(found) == {*names, *(["fluorescence"] if "f0" in names else [])}
        for name, values in found.items():
            np.testing.assert_array_equal(values, getattr(cell, name))
        assert said(dock) == labels
        places = {CURVES[name].plot for name in names}
        assert [plot.isVisible() for plot in dock.plots] == [n in places for n in range(5)]
        assert not places or with_times(dock) == [n == max(places) for n in range(5)]

    def test_boxes_stay_while_cells_change(self, viewer: Any, dock: Any, session: Session) -> None:
        tick(dock, "raw", "deconvolved")
        for row in (0, 1):
            click(viewer, place_of(session, row))
            assert set(drawn(dock)) == {"raw", "deconvolved"}
        viewer.layers.clear()
        assert drawn(dock) == {}
        assert [n for n, box in dock.boxes.items() if box.isChecked()] == ["raw", "deconvolved"]

    def test_boxes_have_the_colours_of_their_curves(self, dock: Any) -> None:
        for name, box in dock.boxes.items():
            piece = box.icon().pixmap(12, 12).toImage()
            found = piece.pixelColor(piece.width() // 2, piece.height() // 2)
            colour = dock.curves[name].opts["pen"].color()
            assert colour.name() == CURVES[name].colour
            np.testing.assert_allclose(  # screens of 16 bit have steps of 8
                found.getRgb(), colour.getRgb(), atol=8
            )
            assert len(box.toolTip()) > 20

    def test_the_same_time_is_shown_by_all_where_the_upper_plot_is_hidden(
        self, qtbot: Any, make_napari_viewer: Any, finished: Path, session: Session
    ) -> None:
        viewer = make_napari_viewer(show=True)
        viewer.open(str(finished), plugin=PLUGIN)
        _, dock = viewer.window.add_plugin_dock_widget(PLUGIN, "Traces")
        click(viewer, place_of(session, 0))
        tick(dock, "dff", "deconvolved")
        viewer.window.resize(1000, 900)
        qtbot.wait(100)
        dock.plots[2].setXRange(5, 9, padding=0)
        assert dock.plots[3].viewRange()[0] == pytest.approx([5, 9])
        tick(dock, "raw", "deconvolved")
        for place in (0, 3):
            assert dock.plots[place].viewRange()[0] == pytest.approx([5, 9])
        dock.plots[3].setXRange(3, 4, padding=0)
        assert dock.plots[0].viewRange()[0] == pytest.approx([3, 4])


class TestOtherSessions:
    """What a session says of the stage dff is what the dock says."""

    @pytest.fixture
    def copied(self, finished: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(finished, tmp_path / "copied.zarr"))

    def show(self, path: Path, make_napari_viewer_proxy: Any) -> Any:
        """Return the dock with the first cell of a session."""
        viewer = make_napari_viewer_proxy()
        viewer.open(str(path), plugin=PLUGIN)
        _, dock = viewer.window.add_plugin_dock_widget(PLUGIN, "Traces")
        click(viewer, place_of(Session(path), 0))
        return dock

    def test_detrended_traces_are_called_so(
        self, copied: Path, make_napari_viewer_proxy: Any
    ) -> None:
        group = zarr.open_group(copied, path="dff", mode="r+")
        group.attrs["kind"] = "detrended"
        group["traces"].attrs["units"] = "counts"
        group["traces"][...] = group["traces"][...] * group["baseline"][...]
        dock = self.show(copied, make_napari_viewer_proxy)
        assert said(dock) == ["F above rest (counts)", "detrended (counts)"]
        assert dock.boxes["dff"].text() == "detrended"
        tick(dock, *CURVES)
        found = drawn(dock)
        np.testing.assert_allclose(
            found["fluorescence"] - found["f0"], found["dff"], atol=1e-2
        )  # float32 of some 1000 counts
        words = [*said(dock), *(box.text() for box in dock.boxes.values())]
        assert not any("dF/F" in word for word in words)
        assert "have no dF/F" in dock.boxes["dff"].toolTip()

    def test_before_a_cell_is_chosen_nothing_says_dff_of_a_one_photon_session(
        self, copied: Path, make_napari_viewer_proxy: Any
    ) -> None:
        shutil.rmtree(copied / "dff")
        Session(copied).update_attrs({"modality": "one-photon"})
        viewer = make_napari_viewer_proxy()
        viewer.open(str(copied), plugin=PLUGIN)
        dock = viewer.window.add_plugin_dock_widget(PLUGIN, "Traces")[1]
        assert dock.boxes["dff"].text() == "detrended"

    @pytest.mark.parametrize("output", ["raw", "denoised"])
    def test_fluorescence_has_the_colour_of_the_trace_that_it_is(
        self, output: str, copied: Path, make_napari_viewer_proxy: Any
    ) -> None:
        zarr.open_group(copied, path="dff", mode="r+").attrs["output"] = output
        dock = self.show(copied, make_napari_viewer_proxy)
        pen = dock.curves["fluorescence"].opts["pen"]
        assert pen.color().name() == CURVES[output].colour

    def test_without_the_stage_its_boxes_are_grey(
        self, copied: Path, make_napari_viewer_proxy: Any
    ) -> None:
        shutil.rmtree(copied / "dff")
        dock = self.show(copied, make_napari_viewer_proxy)
        assert said(dock) == ["F above rest (counts)"]
        grey = [name for name, box in dock.boxes.items() if not box.isEnabled()]
        assert grey == ["f0", "dff", "spike_rate"]
        tick(dock, *CURVES)
        assert said(dock) == ["F above rest (counts)", "deconvolved (counts/frame)"]

    def test_nan_is_a_gap_and_a_floored_cell_is_named(
        self, copied: Path, make_napari_viewer_proxy: Any
    ) -> None:
        group = zarr.open_group(copied, path="dff", mode="r+")
        group["traces"][0, 70:90] = np.nan
        group["floored"][0] = True
        dock = self.show(copied, make_napari_viewer_proxy)
        assert dock.title.endswith(", F0 floored")
        x, y = dock.curves["dff"].curve.getData()
        assert (len(x), np.isnan(y).sum()) == (200, 20)
        path = dock.curves["dff"].curve.getPath()
        elements = [path.elementAt(n) for n in range(path.elementCount())]
        reached = {round(10 * element.x) for element in elements if element.isLineTo()}  # 10 Hz
        assert reached == set(range(1, 70)) | set(range(91, 200))


class TestRates:
    """Rates of spikes have a plot and a box where there are any."""

    @pytest.fixture
    def dock(self, rated: Session, make_napari_viewer_proxy: Any) -> Any:
        viewer = make_napari_viewer_proxy()
        viewer.open(str(rated.path), plugin=PLUGIN)
        dock = viewer.window.add_plugin_dock_widget(PLUGIN, "Traces")[1]
        click(viewer, place_of(rated, 1))
        return dock

    def test_a_rate_is_drawn_in_hz_where_it_is_known(self, dock: Any, rated: Session) -> None:
        assert set(drawn(dock)) == {"raw", "denoised", "dff", "spike_rate"}
        assert said(dock) == ["F above rest (counts)", "dF/F (fraction)", "spike rate (Hz)"]
        np.testing.assert_array_equal(drawn(dock)["spike_rate"], rated.spike_rate()[1])
        path = dock.curves["spike_rate"].curve.getPath()
        elements = [path.elementAt(n) for n in range(path.elementCount())]
        reached = {round(10 * element.x) for element in elements if element.isLineTo()}  # 10 Hz
        assert reached == set(range(9, 192))
        tick(dock, "dff")
        assert said(dock) == ["dF/F (fraction)"]

    def test_its_box_is_hidden_without_it(self, dock: Any, rated: Session) -> None:
        box = dock.boxes["spike_rate"]
        assert not box.isHidden()
        assert box.text() == "spike rate"
        dock.viewer.layers.clear()
        assert box.isHidden()

    def test_of_earlier_traces_it_is_not_shown(
        self, rated: Session, make_napari_viewer_proxy: Any
    ) -> None:
        file, record = rated.path / "dff" / "zarr.json", rated.record("dff")
        file.write_text(file.read_text().replace(record.digest, "another"))
        viewer = make_napari_viewer_proxy()
        viewer.open(str(rated.path), plugin=PLUGIN)
        dock = viewer.window.add_plugin_dock_widget(PLUGIN, "Traces")[1]
        click(viewer, place_of(rated, 1))
        assert "spike_rate" not in drawn(dock)
        assert dock.boxes["spike_rate"].isHidden()

    def test_what_speaks_against_it_is_in_the_title(
        self, rated: Session, make_napari_viewer_proxy: Any, write_rates: Any
    ) -> None:
        rate = np.full_like(rated.spike_rate(), np.nan)
        write_rates(rated.path, rate, rate[:, 0], np.full(len(rate), 8))
        viewer = make_napari_viewer_proxy()
        viewer.open(str(rated.path), plugin=PLUGIN)
        dock = viewer.window.add_plugin_dock_widget(PLUGIN, "Traces")[1]
        click(viewer, place_of(rated, 1))
        assert dock.title.endswith(", spike rate: dF/F in percent")
        assert said(dock) == ["F above rest (counts)", "dF/F (fraction)"]
