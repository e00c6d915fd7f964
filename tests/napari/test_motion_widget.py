"""The form of motion correction in a real window: its plot, the preview, and the comparison."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from napari_calcium.io.session import Session
from napari_calcium.napari.layers import metadata_of
from napari_calcium.napari.motion_plot import HINT
from napari_calcium.napari.viewing import preview_of, shown_layer
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run

PLUGIN = "napari-calcium"
TITLE = "Motion correction"


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any) -> Any:
    return make_napari_viewer_proxy()


@pytest.fixture
def imported(movie_path: Path, tmp_path: Path) -> Path:
    """A session with a movie only."""
    path = tmp_path / "s.zarr"
    recipe = Recipe({"import": {"frame_rate": 10.0}})
    run(path, [movie_path], recipe=recipe, until="import")
    return path


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


def wait_for_title(qtbot: Any, widget: Any, title: str) -> None:
    def shown() -> None:
        assert widget.plot.title == title

    qtbot.waitUntil(shown, timeout=10_000)


def test_the_plot_follows_the_session_and_the_run(
    qtbot: Any, viewer: Any, imported: Path, cropped: Path
) -> None:
    widget = form(viewer, cropped)
    wait_for_title(qtbot, widget, "200 frames")
    assert widget.form.values()["borders"] == "crop"
    widget.session_path = str(imported)
    wait_for_title(qtbot, widget, HINT)
    viewer.open(str(imported), plugin=PLUGIN)
    assert ended(qtbot, widget, widget.run_button)["state"] == "done"
    wait_for_title(qtbot, widget, "200 frames")
    shifts = widget.plot.curves["y"].getOriginalDataset()[1]
    np.testing.assert_array_equal(shifts, Session(imported).shifts().rigid[:, 0])


def test_a_preview_lies_on_its_frames_and_touches_no_session(
    qtbot: Any, viewer: Any, imported: Path, notifications: Any
) -> None:
    widget = form(viewer, imported)
    before = {each: each.stat().st_mtime_ns for each in imported.rglob("*")}
    viewer.layers["recording"].contrast_limits = (90, 333)
    widget.first_frame.setValue(120)
    widget.n_frames.setValue(500)
    widget.form.fields["method"].value = "rigid"
    assert ended(qtbot, widget, widget.preview_button)["state"] == "done"
    assert {each: each.stat().st_mtime_ns for each in imported.rglob("*")} == before
    layer = preview_of(viewer)
    assert layer.name == "preview"
    assert layer.data.shape == (80, 37, 53)
    np.testing.assert_array_equal(layer.translate, (120, 0, 0))
    assert layer.contrast_limits == [90, 333]
    assert [each.name for each in viewer.layers] == ["recording", "preview"]
    assert viewer.dims.point[0] == 120
    assert widget.plot.title == "Preview of frames 120 to 199"
    assert widget.status.text() == "Preview of frames 120 to 199; the session is as it was."
    assert notifications() == []
    # the movie was moved by whole px, of sines of 2 px; its border comes in from the other side
    shifts = widget.plot.curves["y"].getOriginalDataset()[1]
    drift = -np.round(2 * np.sin(np.arange(120, 200) / 20))
    assert np.corrcoef(shifts, drift)[0, 1] > 0.8


def test_a_second_preview_replaces_the_first_and_a_run_removes_it(
    qtbot: Any, viewer: Any, imported: Path
) -> None:
    widget = form(viewer, imported)
    for start in (0, 40):
        widget.first_frame.setValue(start)
        widget.n_frames.setValue(60)
        ended(qtbot, widget, widget.preview_button)
        assert preview_of(viewer).translate[0] == start
        assert len(list(widget._folder.iterdir())) == 1
    assert sum(bool(metadata_of(each).get("preview")) for each in viewer.layers) == 1
    ended(qtbot, widget, widget.run_button)
    assert preview_of(viewer) is None
    assert list(widget._folder.iterdir()) == []
    wait_for_title(qtbot, widget, "200 frames")


def test_a_preview_that_is_removed_gives_the_plot_back(
    qtbot: Any, viewer: Any, cropped: Path
) -> None:
    widget = form(viewer, cropped)
    wait_for_title(qtbot, widget, "200 frames")
    ended(qtbot, widget, widget.preview_button)
    assert widget.plot.title == "Preview of frames 0 to 199"
    offset = viewer.layers["recording"].translate
    np.testing.assert_array_equal(preview_of(viewer).translate, offset)
    assert preview_of(viewer).data.shape == viewer.layers["recording"].data.shape
    viewer.layers.remove(preview_of(viewer))
    wait_for_title(qtbot, widget, "200 frames")


def test_a_recording_is_previewed_before_it_is_imported(
    qtbot: Any, viewer: Any, movie_path: Path
) -> None:
    widget = form(viewer, movie_path)
    widget.n_frames.setValue(50)
    assert ended(qtbot, widget, widget.preview_button)["state"] == "done"
    assert preview_of(viewer).data.shape == (50, 37, 53)
    label = widget.plot.correlation_plot.getAxis("bottom").labelText
    assert label == "frame"  # the file does not say its rate


def test_a_session_that_is_not_open_is_previewed_too(
    qtbot: Any, viewer: Any, imported: Path
) -> None:
    widget = form(viewer)
    widget.session_path = str(imported)
    assert ended(qtbot, widget, widget.preview_button)["state"] == "done"
    assert [each.name for each in viewer.layers] == ["preview"]


def test_volumes_are_previewed(qtbot: Any, viewer: Any, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).poisson(50, (30, 3, 37, 53)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "v.tif", noise, imagej=True, metadata={"axes": "TZYX"})
    widget = form(viewer, tmp_path / "v.tif")
    widget.first_frame.setValue(4)
    assert ended(qtbot, widget, widget.preview_button)["state"] == "done"
    np.testing.assert_array_equal(preview_of(viewer).translate, (4, 0, 0, 0))
    widget.side_button.setChecked(True)
    np.testing.assert_array_equal(viewer.layers["v"].translate, (0, 0, 0, -55))


def test_what_cannot_be_previewed_is_said(
    qtbot: Any, viewer: Any, imported: Path, notifications: Any
) -> None:
    widget = form(viewer)
    widget.preview_button.click()
    assert "no recording is open" in widget.status.text()
    viewer.open(str(imported), plugin=PLUGIN)
    widget.first_frame.setValue(200)
    widget.preview_button.click()
    assert widget.status.text().startswith("from frame is 200 but the recording has 200 frames")
    widget.first_frame.setValue(0)
    widget.form.fields["max_shift"].value = 30
    assert ended(qtbot, widget, widget.preview_button)["state"] == "refused"
    assert widget.status.text().startswith("max_shift is 30 px but the field is 37 x 53 px")
    assert len(notifications()) == 3
    assert preview_of(viewer) is None


def test_one_thing_at_a_time_and_a_preview_can_be_cancelled(
    qtbot: Any, viewer: Any, imported: Path
) -> None:
    widget = form(viewer, imported)
    other = viewer.window.add_plugin_dock_widget(PLUGIN, "Import")[1]
    widget.preview_button.click()
    for each in (widget.preview_button, widget.run_button, other.run_button):
        assert not each.isEnabled()
    assert widget.cancel_button.isEnabled()
    with qtbot.waitSignal(widget.runner.ended, timeout=2_000) as signal:
        widget.cancel_button.click()
    assert signal.args[0]["state"] == "cancelled"
    assert preview_of(viewer) is None
    assert widget.runner.worker.alive  # warm for the next one
    assert ended(qtbot, widget, widget.preview_button)["state"] == "done"


def test_the_worker_is_warm_when_the_form_is_there(qtbot: Any, viewer: Any) -> None:
    worker = form(viewer).runner.worker
    assert worker.alive
    answers: list[Any] = []

    def warm() -> None:
        answers.extend(worker.poll())
        assert {"state": "warm"} in answers

    qtbot.waitUntil(warm, timeout=60_000)


def test_side_by_side_and_back(qtbot: Any, viewer: Any, cropped: Path) -> None:
    widget = form(viewer, cropped)
    recording, corrected = (viewer.layers[name] for name in ("recording", "corrected"))
    place = np.array(recording.translate)
    assert (place[1:] < 0).any()
    widget.side_button.click()
    assert recording.visible
    assert corrected.visible
    np.testing.assert_array_equal(recording.translate - place, (0, 0, -55))
    assert recording.extent.world[1, -1] < corrected.extent.world[0, -1]
    widget.side_button.click()
    np.testing.assert_array_equal(recording.translate, place)
    assert [recording.visible, corrected.visible] == [False, True]


def test_side_by_side_needs_two_movies(viewer: Any, imported: Path) -> None:
    widget = form(viewer, imported)
    widget.side_button.click()
    assert not widget.side_button.isChecked()
    assert widget.status.text().startswith("Nothing to compare yet")
    np.testing.assert_array_equal(viewer.layers["recording"].translate, 0)


def test_a_run_that_crops_moves_the_recording_also_side_by_side(
    qtbot: Any, viewer: Any, cropped: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c.zarr"
    shutil.copytree(cropped, path)
    widget = form(viewer, path)
    recording = viewer.layers["recording"]
    cut = np.array(recording.translate)
    widget.side_button.click()
    widget.form.fields["borders"].value = "nearest"
    assert ended(qtbot, widget, widget.run_button)["state"] == "done"
    np.testing.assert_array_equal(recording.translate, (0, 0, -55))
    assert recording.visible
    widget.side_button.click()
    np.testing.assert_array_equal(recording.translate, 0)
    assert shown_layer(viewer, path, "motion_correction/frames").data.shape[1:] == (37, 53)
    widget.form.fields["borders"].value = "crop"
    assert ended(qtbot, widget, widget.run_button)["state"] == "done"
    np.testing.assert_array_equal(recording.translate, cut)


def test_what_previews_left_on_disk_goes_with_the_form(
    qtbot: Any, viewer: Any, imported: Path
) -> None:
    viewer.open(str(imported), plugin=PLUGIN)
    dock, widget = viewer.window.add_plugin_dock_widget(PLUGIN, TITLE)
    ended(qtbot, widget, widget.preview_button)
    folder = widget._folder
    assert folder.is_dir()
    viewer.window.remove_dock_widget(dock)
    with qtbot.waitSignal(widget.destroyed, timeout=2_000):
        widget.deleteLater()
    assert not folder.exists()
    viewer.layers.remove(preview_of(viewer))


@pytest.mark.parametrize("closed", ["dock", "viewer"])
def test_a_form_that_is_closed_ends_side_by_side(
    qtbot: Any, make_napari_viewer: Any, cropped: Path, closed: str
) -> None:
    viewer = make_napari_viewer()
    viewer.open(str(cropped), plugin=PLUGIN)
    dock, widget = viewer.window.add_plugin_dock_widget(PLUGIN, TITLE)
    recording = viewer.layers["recording"]
    place = np.array(recording.translate)
    widget.side_button.click()
    if closed == "viewer":
        viewer.close()
        return
    viewer.window.remove_dock_widget(dock)
    with qtbot.waitSignal(widget.destroyed, timeout=2_000):
        widget.deleteLater()
    np.testing.assert_array_equal(recording.translate, place)


def test_the_form_and_the_plot_have_room_in_a_small_window(
    qtbot: Any, make_napari_viewer: Any, cropped: Path
) -> None:
    viewer = make_napari_viewer(show=True)
    viewer.window.resize(1280, 800)
    widget = form(viewer, cropped)
    qtbot.wait(300)
    assert viewer.window._qt_window.height() <= 800
    qtbot.waitUntil(lambda: widget.form.native.parentWidget().height() >= 100)
    assert widget.plot.height() >= 230
    assert widget.plot.figures.height() >= widget.plot.figures.heightForWidth(
        widget.plot.figures.width()
    )
