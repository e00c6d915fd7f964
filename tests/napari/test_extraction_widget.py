"""The form of source extraction in a real window: choosing, the quilt, seeds, and the preview."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFileDialog

from napari_calcium.extraction.choosing import propose_from_outline
from napari_calcium.extraction.parameters import SourceExtractionParameters
from napari_calcium.io.regions import read_regions
from napari_calcium.io.session import Session
from napari_calcium.napari.extraction_widget import GROUPS, proposal_of
from napari_calcium.napari.runner import Runner
from napari_calcium.napari.viewing import cells_preview_of, preview_of
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run

PLUGIN = "napari-calcium"
TITLE = "Source extraction"
CENTRES = [(9, 12), (12, 38), (27, 17), (26, 42)]
SMALL = {"cell_radius": 2.0, "patch_size": 20, "patch_overlap": 8}
"""Patches of 18 or 19 px: two by three."""


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any) -> Any:
    return make_napari_viewer_proxy()


@pytest.fixture
def session(finished: Path, tmp_path: Path) -> Path:
    """A session with every stage finished, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "s.zarr"))


@pytest.fixture
def _no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no worker in tests that ask it for nothing."""
    monkeypatch.setattr(Runner, "warm_up", lambda *_, **__: None)


def form(viewer: Any, path: Path | None = None) -> Any:
    if path is not None:
        viewer.open(str(path), plugin=PLUGIN)
    return viewer.window.add_plugin_dock_widget(PLUGIN, TITLE)[1]


def ended(qtbot: Any, widget: Any, pressed: Any) -> dict[str, Any]:
    """Press a button and wait for the end."""
    with qtbot.waitSignal(widget.runner.ended, timeout=120_000) as signal:
        pressed.click()
    answer: dict[str, Any] = signal.args[0]
    return answer


def look_at(viewer: Any, y: float, x: float) -> None:
    viewer.scene.camera.center = (0, y, x)


def ellipse(y: float, x: float, height: float, width: float, frame: int = 3) -> Any:
    """Return the corners that napari keeps of an ellipse drawn over a movie."""
    (top, bottom), (left, right) = (y - height, y + height), (x - width, x + width)
    box = [(top, left), (top, right), (bottom, right), (bottom, left)]
    return np.insert(np.array(box), 0, frame, axis=1)


def names(viewer: Any) -> list[str]:
    return [layer.name for layer in viewer.layers]


# ------------------------------------------------------------------------------------ the form


def test_every_parameter_is_in_one_group() -> None:
    grouped = [name for group in GROUPS.values() for name in group]
    known = [parameter.name for parameter in SourceExtractionParameters.describe()]
    assert sorted(grouped) == sorted(known)


@pytest.mark.usefixtures("_no_worker")
def test_the_first_group_is_unfolded_and_headings_count_what_is_changed(
    viewer: Any, finished: Path
) -> None:
    groups = form(viewer, finished).form.groups
    assert list(groups) == list(GROUPS)
    assert [group.content.isHidden() for group in groups.values()] == [False] + [True] * 5
    assert groups["Cells"].header.text() == "Cells (2 changed)"  # radius and threshold
    assert groups["Background"].header.text() == "Background"
    groups["Traces"].header.click()
    assert not groups["Traces"].content.isHidden()


@pytest.mark.usefixtures("_no_worker")
def test_the_form_has_room_in_a_small_window(
    qtbot: Any, make_napari_viewer: Any, finished: Path
) -> None:
    viewer = make_napari_viewer(show=True)
    viewer.window.resize(1280, 800)
    widget = form(viewer, finished)
    qtbot.wait(300)
    assert viewer.window._qt_window.height() <= 800
    qtbot.waitUntil(lambda: widget.form.native.parentWidget().height() >= 100)
    for each in (widget.file_button, widget.quilt_button, widget.n_frames):
        right = each.mapTo(widget, each.rect().topRight()).x()
        assert right <= widget.width()


# ------------------------------------------------------------------------------------- preview


def test_a_preview_shows_the_cells_where_they_are_and_touches_no_session(
    qtbot: Any, viewer: Any, session: Path, notifications: Any
) -> None:
    widget = form(viewer, session)
    before = {each: each.stat().st_mtime_ns for each in session.rglob("*")}
    selected = viewer.layers.selection.active.name
    assert ended(qtbot, widget, widget.preview_button)["state"] == "done"
    assert {each: each.stat().st_mtime_ns for each in session.rglob("*")} == before
    layer = cells_preview_of(viewer)
    assert names(viewer)[-1] == layer.name == "preview of cells"
    assert viewer.layers.selection.active.name == selected
    assert preview_of(viewer) is None  # which is what motion correction removes
    np.testing.assert_array_equal(layer.translate, (0, 0))
    # one patch: the whole field, so the same cells as in the session
    cells = viewer.layers["cells"].data
    np.testing.assert_array_equal(layer.data > 0, cells > 0)
    for y, x in CENTRES:
        assert layer.data[y, x] > 0
    summary = Session(session).summary("source_extraction")
    assert widget.status.text() == (
        f"{summary} Preview of y 0 to 36, x 0 to 52; the session is as it was."
    )
    assert notifications() == []
    assert list(widget._folder.iterdir()) == []


def test_the_patch_in_the_middle_or_the_selected_one_is_previewed(
    qtbot: Any, viewer: Any, session: Path
) -> None:
    widget = form(viewer, session)
    widget.form.set_values(SMALL)
    look_at(viewer, 30, 45)
    ended(qtbot, widget, widget.preview_button)
    assert widget.status.text().endswith("of y 18 to 36, x 35 to 52; the session is as it was.")
    layer = cells_preview_of(viewer)
    np.testing.assert_array_equal(layer.translate, (10, 27))
    assert layer.data.shape == (27, 26)
    widget.quilt_button.click()
    widget._quilt.layer.selected_data = {6 + 1}  # the core of the second of six
    widget.n_frames.setValue(150)
    viewer.dims.set_point(0, 190)
    ended(qtbot, widget, widget.preview_button)
    assert widget.status.text().endswith(
        "of y 0 to 17, x 18 to 34, frames 50 to 199; the session is as it was."
    )
    np.testing.assert_array_equal(cells_preview_of(viewer).translate, (0, 10))
    assert names(viewer).count("preview of cells") == 1


def test_a_preview_lies_on_a_movie_that_was_moved(qtbot: Any, viewer: Any, session: Path) -> None:
    widget = form(viewer, session)
    widget.form.set_values(SMALL)
    movie = viewer.layers["corrected"]
    movie.scale, movie.translate = (1, 2, 2), (0, 30, -10)
    look_at(viewer, 30 + 2 * 30, -10 + 2 * 45)
    ended(qtbot, widget, widget.preview_button)
    layer = cells_preview_of(viewer)
    np.testing.assert_array_equal(layer.translate, (30 + 2 * 10, -10 + 2 * 27))
    np.testing.assert_array_equal(layer.scale, (2, 2))


def test_a_run_or_another_session_removes_the_preview(
    qtbot: Any, viewer: Any, session: Path, cropped: Path
) -> None:
    widget = form(viewer, session)
    ended(qtbot, widget, widget.preview_button)
    assert cells_preview_of(viewer) is not None
    assert ended(qtbot, widget, widget.run_button)["stages"][-1]["skipped"]
    assert cells_preview_of(viewer) is None
    assert widget.status.text().startswith("Done before with these parameters; nothing had to be")
    ended(qtbot, widget, widget.preview_button)
    widget.quilt_button.click()
    widget.session_path = str(cropped)
    assert cells_preview_of(viewer) is None
    assert "patches" not in names(viewer)
    assert not widget.quilt_button.isChecked()


def test_a_preview_of_a_session_that_was_left_is_not_shown(
    qtbot: Any, viewer: Any, session: Path, cropped: Path
) -> None:
    widget = form(viewer, session)
    with qtbot.waitSignal(widget.runner.ended, timeout=120_000):
        widget.preview_button.click()
        widget.session_path = str(cropped)
    assert widget.status.text() == "Another session was chosen; preview again."
    assert cells_preview_of(viewer) is None


@pytest.mark.usefixtures("_no_worker")
def test_what_cannot_be_previewed_is_said(
    qtbot: Any, viewer: Any, movie_path: Path, tmp_path: Path, notifications: Any
) -> None:
    widget = form(viewer)
    widget.preview_button.click()
    assert widget.status.text().startswith("session is not given; import a recording")
    path = tmp_path / "s.zarr"
    run(path, [movie_path], recipe=Recipe({"import": {"frame_rate": 10.0}}), until="import")
    widget.session_path = str(path)
    widget.preview_button.click()
    assert widget.status.text().endswith(
        "has no motion_correction/frames; run motion_correction first"
    )
    widget.form.fields["min_size"].value = 3.0
    widget.preview_button.click()
    assert "max_size is 2.5 discs; it must be above min_size" in widget.status.text()
    assert len(notifications()) == 3
    assert not widget.runner.busy


def test_a_preview_can_be_cancelled_and_leaves_nothing(
    qtbot: Any, viewer: Any, session: Path
) -> None:
    widget = form(viewer, session)
    widget.preview_button.click()
    assert not widget.preview_button.isEnabled()
    with qtbot.waitSignal(widget.runner.ended, timeout=2_000) as signal:
        widget.cancel_button.click()
    assert signal.args[0]["state"] == "cancelled"
    assert cells_preview_of(viewer) is None
    assert list(widget._folder.iterdir()) == []
    assert widget.runner.worker.alive  # warm for the next one
    assert ended(qtbot, widget, widget.preview_button)["state"] == "done"


def test_the_window_answers_while_there_is_a_preview(
    qtbot: Any, viewer: Any, session: Path
) -> None:
    widget = form(viewer, session)
    ticks: list[float] = []
    timer = QTimer()
    timer.timeout.connect(lambda: ticks.append(time.monotonic()))
    timer.start(10)
    ended(qtbot, widget, widget.preview_button)
    timer.stop()
    # napari compiles what it shows labels with, and the worker takes every processor
    assert np.percentile(np.diff(ticks), 99) < 0.2


# ------------------------------------------------------------------------------------ choosing


@pytest.mark.usefixtures("_no_worker")
def test_an_ellipse_around_a_cell_sets_radius_and_patches(viewer: Any, session: Path) -> None:
    widget = form(viewer, session)
    viewer.layers.selection.active = viewer.layers["corrected"]
    widget.outline_button.click()
    assert "no outline is chosen" in widget.status.text()
    drawn = viewer.add_shapes(name="drawn", ndim=3)
    drawn.add_ellipses([ellipse(12, 38, 4.0, 3.0)])
    viewer.layers.selection.active = drawn
    widget.outline_button.click()
    values = widget.form.values()
    # the disc of the same area; 96 points in place of the ellipse
    assert values["cell_radius"] == pytest.approx(np.sqrt(4.0 * 3.0), abs=0.01)
    assert (values["patch_size"], values["patch_overlap"]) == (44, 14)
    assert widget.status.text().startswith("Cells of 3.5 px radius. ")


@pytest.mark.usefixtures("_no_worker")
def test_a_painted_cell_sets_radius_and_patches(viewer: Any, session: Path) -> None:
    widget = form(viewer, session)
    labels = np.zeros((37, 53), int)
    labels[6:13, 9:16] = 4
    viewer.layers.selection.active = viewer.add_labels(labels, name="painted")
    widget.outline_button.click()
    square = [(5.5, 8.5), (5.5, 15.5), (12.5, 15.5), (12.5, 8.5)]
    expected = propose_from_outline(square, (37, 53)).to_mapping()
    # corners of masks are cut off: half a pixel of 49
    found = widget.form.values()
    assert found["cell_radius"] == pytest.approx(expected["cell_radius"], abs=0.03)
    assert found["patch_size"] == expected["patch_size"]


@pytest.mark.usefixtures("_no_worker")
def test_a_patch_of_the_quilt_is_no_outline_of_a_cell(viewer: Any, session: Path) -> None:
    widget = form(viewer, session)
    widget.form.set_values(SMALL)
    widget.quilt_button.click()
    patches = viewer.layers["patches"]
    patches.selected_data = {7}
    viewer.layers.selection.active = patches
    widget.outline_button.click()
    assert "no outline is chosen" in widget.status.text()
    assert widget.form.values()["cell_radius"] == 2.0


@pytest.mark.usefixtures("_no_worker")
def test_the_correlation_image_sets_radius_and_patches(
    qtbot: Any, viewer: Any, session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widget = form(viewer, session)
    expected = proposal_of(str(session))
    widget.guess_button.click()
    assert not widget.guess_button.isEnabled()
    qtbot.waitUntil(widget.guess_button.isEnabled, timeout=20_000)
    assert widget.status.text() == expected.text
    found = widget.form.values()
    assert {name: found[name] for name in expected.to_mapping()} == expected.to_mapping()
    # blobs of sd 2.5 px; what is seen of them depends on the noise
    assert 2 < expected.cell_radius < 6


@pytest.mark.usefixtures("_no_worker")
def test_without_a_correlation_image_nothing_is_guessed(
    qtbot: Any, viewer: Any, cropped: Path, notifications: Any
) -> None:
    widget = form(viewer, cropped)
    widget.guess_button.click()
    qtbot.waitUntil(widget.guess_button.isEnabled, timeout=20_000)
    assert widget.status.text().endswith(
        "has no correlation image yet; run Summary images first, or outline a cell"
    )
    assert notifications() == [widget.status.text()]
    assert widget.form.values()["cell_radius"] == 5.0


# --------------------------------------------------------------------------------------- quilt


@pytest.mark.usefixtures("_no_worker")
def test_the_quilt_follows_the_form(qtbot: Any, viewer: Any, session: Path) -> None:
    widget = form(viewer, session)
    widget.form.set_values(SMALL)
    widget.quilt_button.click()
    assert len(viewer.layers["patches"].data) == 2 * 6
    widget.form.fields["patch_size"].value = 30
    qtbot.waitUntil(lambda: len(viewer.layers["patches"].data) == 2 * 4, timeout=5_000)
    widget.form.fields["cell_radius"].value = 8.0  # patches of at least 8 radii: one
    qtbot.waitUntil(lambda: len(viewer.layers["patches"].data) == 2, timeout=5_000)
    widget.quilt_button.click()
    assert "patches" not in names(viewer)
    widget.quilt_button.click()
    viewer.layers.remove("patches")
    assert not widget.quilt_button.isChecked()


@pytest.mark.usefixtures("_no_worker")
def test_the_quilt_lies_where_a_corrected_movie_would_that_is_not_shown(
    viewer: Any, cropped: Path
) -> None:
    widget = form(viewer, cropped)
    viewer.layers.remove("corrected")
    assert (viewer.layers["recording"].translate[1:] < 0).any()  # its borders were cut off
    widget.quilt_button.click()
    np.testing.assert_array_equal(viewer.layers["patches"].translate, (0, 0))


@pytest.mark.usefixtures("_no_worker")
def test_a_quilt_without_a_movie_or_of_too_many_patches_is_refused(
    viewer: Any, session: Path, monkeypatch: pytest.MonkeyPatch, notifications: Any
) -> None:
    widget = form(viewer)
    widget.quilt_button.click()
    assert not widget.quilt_button.isChecked()
    assert "session is not given" in widget.status.text()
    widget.session_path = str(session)
    widget.form.set_values(SMALL)
    monkeypatch.setattr("napari_calcium.napari.extraction_widget.MOST_TILES", 5)
    widget.quilt_button.click()
    assert not widget.quilt_button.isChecked()
    assert "patch_size is 20 px, which makes 6 patches, too many to draw" in widget.status.text()
    assert "patches" not in names(viewer)
    assert len(notifications()) == 2


@pytest.mark.usefixtures("_no_worker")
@pytest.mark.parametrize("closed", ["dock", "viewer"])
def test_the_quilt_goes_with_the_form(
    qtbot: Any, make_napari_viewer: Any, session: Path, closed: str
) -> None:
    viewer = make_napari_viewer()
    viewer.open(str(session), plugin=PLUGIN)
    dock, widget = viewer.window.add_plugin_dock_widget(PLUGIN, TITLE)
    widget.quilt_button.click()
    if closed == "viewer":
        viewer.close()
        return
    viewer.window.remove_dock_widget(dock)
    with qtbot.waitSignal(widget.destroyed, timeout=2_000):
        widget.deleteLater()
    assert "patches" not in names(viewer)
    viewer.add_labels(np.zeros((37, 53), int))  # nobody hears of it


# --------------------------------------------------------------------------------------- seeds


def test_only_what_a_person_drew_is_listed_for_seeds(
    qtbot: Any, viewer: Any, session: Path
) -> None:
    widget = form(viewer, session)
    line = widget.seeds_line

    def listed() -> list[str]:
        return [line.itemText(index) for index in range(line.count())]

    ended(qtbot, widget, widget.preview_button)
    widget.quilt_button.click()
    assert {"cells", "outlines", "patches", "preview of cells"} <= set(names(viewer))
    assert listed() == []
    widget.seeds_button.click()
    assert "no seeds are chosen" in widget.status.text()
    first = viewer.add_labels(np.zeros((37, 53), int), name="first")
    viewer.add_shapes(name="second")
    assert listed() == ["first", "second"]
    line.setCurrentText("second")
    viewer.add_labels(np.zeros((37, 53), int), name="third")
    assert (listed(), line.currentText()) == (["first", "second", "third"], "second")
    first.name = "other"
    assert listed() == ["other", "second", "third"]
    viewer.layers.remove("second")
    assert listed() == ["other", "third"]


def test_painted_cells_become_seeds_that_are_run(qtbot: Any, viewer: Any, session: Path) -> None:
    widget = form(viewer, session)
    film = np.zeros((200, 37, 53), np.uint8)  # as napari makes them over a movie
    y, x = np.mgrid[:37, :53]
    for label, (cy, cx) in enumerate(CENTRES[:3], 5):
        film[60][np.hypot(y - cy, x - cx) < 3] = label
    viewer.add_labels(film, name="painted")
    viewer.dims.set_point(0, 10)
    widget.seeds_button.click()
    assert "holds no label in the field in the frame that is shown" in widget.status.text()
    assert widget.form.values()["initialization"] == "greedy"
    viewer.dims.set_point(0, 60)
    widget.seeds_button.click()
    path = session.with_name("s_seeds.tif")
    assert widget.status.text() == "3 cells written to s_seeds.tif; press Preview or Run."
    np.testing.assert_array_equal(tifffile.imread(path), film[60])
    values = widget.form.values()
    assert values["initialization"] == "seeds"
    assert (values["seeds_file"], values["seeds_kind"]) == (str(path), "regions")
    assert ended(qtbot, widget, widget.preview_button)["state"] == "done"
    assert cells_preview_of(viewer).data.max() == 3
    assert ended(qtbot, widget, widget.run_button)["state"] == "done"
    assert Session(session).components().n_cells == 3
    said = widget.status.text()
    assert said.startswith("Done in ")
    assert " s. 3 cells of 3 candidates. Run again, their inputs have changed: " in said


@pytest.mark.usefixtures("_no_worker")
def test_outlines_become_seeds_in_the_pixels_of_the_movie(viewer: Any, session: Path) -> None:
    widget = form(viewer, session)
    movie = viewer.layers["corrected"]
    movie.scale, movie.translate = (1, 2, 2), (0, 30, -10)
    drawn = viewer.add_shapes(name="drawn", ndim=3)
    corners = ellipse(27, 17, 3, 5)
    drawn.add_ellipses([corners * (1, 2, 2) + (0, 30, -10)])
    widget.seeds_button.click()
    assert widget.status.text() == "1 cell written to s_seeds.zip; press Preview or Run."
    found = read_regions(session.with_name("s_seeds.zip"), (37, 53)).toarray().reshape(37, 53)
    y, x = np.nonzero(found)
    assert (y.min(), y.max(), x.min(), x.max()) == (24, 30, 12, 22)
    assert (y.mean(), x.mean()) == (27, 17)


@pytest.mark.usefixtures("_no_worker")
def test_a_file_of_seeds_is_chosen(
    viewer: Any, session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widget = form(viewer, session)
    answers = iter(["", "/data/structure.tif"])
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (next(answers), ""))
    widget.form.fields["seeds_kind"].value = "structure"
    widget.file_button.click()
    assert widget.form.values()["initialization"] == "greedy"
    widget.file_button.click()
    values = widget.form.values()
    assert (values["initialization"], values["seeds_file"]) == ("seeds", "/data/structure.tif")
    assert values["seeds_kind"] == "structure"


def test_a_run_without_cells_says_why(qtbot: Any, viewer: Any, session: Path) -> None:
    widget = form(viewer, session)
    widget.form.fields["threshold"].value = 1000.0
    assert ended(qtbot, widget, widget.run_button)["state"] == "done"
    assert " s. No cells: no place reached the threshold of 1000 sd" in widget.status.text()
