"""The stages run from their forms, in a real window with a real worker."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from qtpy.QtCore import QSize, QTimer

from napari_calcium.errors import InputError
from napari_calcium.io.session import Session
from napari_calcium.napari.docking import shrink, window_size
from napari_calcium.napari.layers import metadata_of
from napari_calcium.napari.viewing import outdated_stages, shown_layer
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run
from napari_calcium.pipeline.stages import STAGES

PLUGIN = "napari-calcium"
SOFT = {"cell_radius": 4.0, "threshold": 8.0}


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any) -> Any:
    return make_napari_viewer_proxy()


def form(viewer: Any, title: str) -> Any:
    return viewer.window.add_plugin_dock_widget(PLUGIN, title)[1]


def finish(qtbot: Any, widget: Any, milliseconds: int = 120_000) -> dict[str, Any]:
    """Press Run and wait for the end."""
    with qtbot.waitSignal(widget.runner.ended, timeout=milliseconds) as signal:
        widget.run_button.click()
    answer: dict[str, Any] = signal.args[0]
    return answer


@pytest.fixture
def long_movie(tmp_path: Path) -> Path:
    """A recording that is analysed for several seconds."""
    path = tmp_path / "long.tif"
    noise = np.random.default_rng(0).poisson(50, (900, 137, 153)).astype(np.uint16)
    tifffile.imwrite(path, noise)
    return path


def test_a_recording_is_analysed_from_the_forms(
    qtbot: Any, viewer: Any, movie_path: Path, finished: Path, tmp_path: Path, notifications: Any
) -> None:
    viewer.open(str(movie_path), plugin=PLUGIN)
    widgets = {stage.name: form(viewer, stage.title) for stage in STAGES}
    importing = widgets["import"]
    assert importing.sources() == [str(movie_path)]
    assert importing.session_path == str(movie_path.with_suffix(".zarr"))
    assert "200 frames of 37 x 53 px" in importing.status.text()
    path = importing.session_path = str(tmp_path / "s.zarr")
    importing.form.fields["frame_rate"].value = 10.0
    for name, value in SOFT.items():
        widgets["source_extraction"].form.fields[name].value = value
    for stage in STAGES:
        assert widgets[stage.name].session_path == path or stage.name == "import"
        answer = finish(qtbot, widgets[stage.name])
        assert answer["state"] == "done"
        assert widgets[stage.name].status.text().startswith("Done in ")
    assert notifications() == []
    names = [layer.name for layer in viewer.layers]
    assert names == [
        "blobs",
        "recording",
        "corrected",
        "mean",
        "max",
        "std",
        "correlation",
        "max correlation",
        "cells",
        "outlines",
    ]
    visible = [layer.name for layer in viewer.layers if layer.visible]
    assert visible == ["corrected", "cells", "outlines"]
    assert "tensorflow" not in sys.modules
    # the same run headless: the same recipe gives the same arrays
    for name in ("motion_correction/frames", "source_extraction/traces", "dff/traces"):
        np.testing.assert_array_equal(Session(path).read(name), Session(finished).read(name))


def test_a_run_does_not_block_the_window(
    qtbot: Any, viewer: Any, movie_path: Path, tmp_path: Path
) -> None:
    viewer.open(str(movie_path), plugin=PLUGIN)
    importing, extraction = form(viewer, "Import"), form(viewer, "Source extraction")
    importing.session_path = str(tmp_path / "s.zarr")
    importing.form.fields["frame_rate"].value = 10.0
    ticks: list[float] = []
    timer = QTimer()
    timer.timeout.connect(lambda: ticks.append(time.monotonic()))
    timer.start(10)
    finish(qtbot, importing)
    finish(qtbot, extraction)
    timer.stop()
    # napari compiles and draws new layers in between, and the worker takes every processor, so
    # the longest wait is bounded generously; a run in the window's own process takes all of it.
    assert max(np.diff(ticks)) < 2.0
    assert np.percentile(np.diff(ticks), 99) < 0.2


def test_progress_is_shown_and_only_one_run_goes_on(
    qtbot: Any, viewer: Any, long_movie: Path, tmp_path: Path
) -> None:
    viewer.open(str(long_movie), plugin=PLUGIN)
    importing, correction = form(viewer, "Import"), form(viewer, "Motion correction")
    importing.session_path = str(tmp_path / "s.zarr")
    importing.form.fields["frame_rate"].value = 10.0
    texts: list[str] = []
    importing.runner.progressed.connect(lambda _: texts.append(importing.progress_bar.text()))
    importing.run_button.click()
    for widget in (importing, correction, form(viewer, "dF/F")):
        assert not widget.run_button.isEnabled()
        assert widget.cancel_button.isEnabled() == (widget is importing)
    with qtbot.waitSignal(importing.runner.ended, timeout=60_000):
        pass
    assert any("Import, " in text and " left" in text for text in texts)
    assert importing.run_button.isEnabled()
    assert not importing.cancel_button.isEnabled()
    assert correction.run_button.isEnabled()


def test_cancel_acts_within_a_second_and_a_new_run_finishes(
    qtbot: Any, viewer: Any, long_movie: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s.zarr"
    recipe = Recipe().with_value("import.frame_rate", 10.0)
    run(path, [long_movie], recipe=recipe, until="motion_correction")
    viewer.open(str(path), plugin=PLUGIN)
    widget = form(viewer, "Source extraction")
    before = Session(path).record("motion_correction")
    with qtbot.waitSignal(widget.runner.progressed, timeout=60_000):
        widget.run_button.click()
    process = widget.runner.worker._running.process
    start = time.monotonic()
    with qtbot.waitSignal(widget.runner.ended, timeout=5_000):
        widget.cancel_button.click()
    assert time.monotonic() - start < 1
    assert process.poll() is not None  # another one is warm for the next run
    assert widget.status.text() == "Cancelled; what was finished is kept."
    assert Session(path).record("motion_correction") == before
    assert Session(path).record("source_extraction") is None
    widget.form.fields["threshold"].value = 1000.0
    assert finish(qtbot, widget)["state"] == "done"
    assert Session(path).record("source_extraction") is not None


def test_a_run_waits_for_what_is_being_stored_and_the_window_does_not(
    qtbot: Any, viewer: Any, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copytree(finished, tmp_path / "s.zarr")
    viewer.open(str(path), plugin=PLUGIN)
    widget = form(viewer, "dF/F")
    runner, go = widget.runner, threading.Event()
    asked, request = [], runner.worker.request
    monkeypatch.setattr(runner.worker, "request", lambda m: (asked.append(m), request(m)))
    write = runner.write(go.wait, 20)
    start = time.monotonic()
    widget.run_button.click()
    assert time.monotonic() - start < 1
    qtbot.wait(200)
    assert runner.busy
    assert asked == []
    assert not write.done()
    widget.cancel_button.click()  # before it began
    qtbot.waitUntil(lambda: not runner.busy, timeout=5_000)
    assert asked == []
    widget.run_button.click()
    with qtbot.waitSignal(runner.ended, timeout=60_000) as ended:
        go.set()
    assert ended.args[0]["state"] == "done"
    assert [message["until"] for message in asked] == ["dff"]


def test_a_cancelled_import_can_be_run_again(
    qtbot: Any, viewer: Any, long_movie: Path, tmp_path: Path
) -> None:
    viewer.open(str(long_movie), plugin=PLUGIN)
    widget = form(viewer, "Import")
    widget.session_path = str(tmp_path / "s.zarr")
    widget.form.fields["frame_rate"].value = 10.0
    with qtbot.waitSignal(widget.runner.progressed, timeout=60_000):
        widget.run_button.click()
    with qtbot.waitSignal(widget.runner.ended, timeout=5_000):
        widget.cancel_button.click()
    assert [layer.name for layer in viewer.layers] == ["long"]
    assert finish(qtbot, widget)["state"] == "done"
    assert [layer.name for layer in viewer.layers] == ["long", "recording"]


def test_a_frame_rate_left_at_0_is_refused_as_on_the_command_line(
    viewer: Any, movie_path: Path, tmp_path: Path, notifications: Any
) -> None:
    with pytest.raises(InputError) as error:
        run(tmp_path / "s.zarr", [movie_path], recipe=Recipe({"import": {"frame_rate": 0}}))
    viewer.open(str(movie_path), plugin=PLUGIN)
    widget = form(viewer, "Import")
    widget.session_path = str(tmp_path / "s.zarr")
    widget.run_button.click()
    assert notifications() == [str(error.value)]
    assert widget.status.text() == str(error.value)
    assert not widget.runner.busy
    assert not (tmp_path / "s.zarr").exists()


def test_what_the_worker_refuses_is_told(
    qtbot: Any, viewer: Any, movie_path: Path, tmp_path: Path, notifications: Any
) -> None:
    (tmp_path / "taken.zarr").write_text("a file")
    viewer.open(str(movie_path), plugin=PLUGIN)
    widget = form(viewer, "Import")
    widget.session_path = str(tmp_path / "taken.zarr")
    widget.form.fields["frame_rate"].value = 10.0
    answer = finish(qtbot, widget)
    assert answer["state"] == "refused"
    assert "exists and is not a session" in answer["message"]
    assert notifications() == [answer["message"]]
    assert widget.status.text() == answer["message"]
    assert widget.run_button.isEnabled()


@pytest.mark.parametrize("title", ["Import", "Motion correction"])
def test_a_form_without_a_session_says_what_to_do(
    viewer: Any, notifications: Any, title: str
) -> None:
    widget = form(viewer, title)
    widget.run_button.click()
    (message,) = notifications()
    assert "is not given" in message or "is given" in message


def test_a_form_shows_the_parameters_a_stage_was_run_with(viewer: Any, finished: Path) -> None:
    viewer.open(str(finished), plugin=PLUGIN)
    widget = form(viewer, "Source extraction")
    assert widget.session_path == str(finished)
    assert widget.form.values() == dict(Session(finished).record("source_extraction").parameters)
    assert form(viewer, "Import").form.values()["frame_rate"] == 10.0


def test_a_form_follows_the_session_that_is_opened_after_it(viewer: Any, finished: Path) -> None:
    widget = form(viewer, "Source extraction")
    assert widget.session_path == ""
    viewer.open(str(finished), plugin=PLUGIN)
    assert widget.session_path == str(finished)
    assert widget.form.values()["cell_radius"] == 4.0


def test_a_new_run_renews_the_layers_and_names_what_is_outdated(
    qtbot: Any, viewer: Any, movie_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s.zarr"
    tables = {"import": {"frame_rate": 10.0}, "source_extraction": SOFT}
    tables["component_evaluation"] = {"classifier": "off"}  # no TensorFlow beside OpenGL
    run(path, [movie_path], recipe=Recipe(tables))
    viewer.open(str(path), plugin=PLUGIN)
    cells = shown_layer(viewer, path, "cells")
    cells.opacity = 0.9
    old = metadata_of(cells)["digest"]
    widget = form(viewer, "Source extraction")
    widget.form.fields["cell_radius"].value = 3.0
    assert finish(qtbot, widget)["state"] == "done"
    assert metadata_of(cells)["digest"] != old
    assert cells.opacity == 0.9
    assert list(cells.features) == ["index", "cell_id"]
    assert shown_layer(viewer, path, "outlines") is None
    outdated = [stage.name for stage in outdated_stages(Session(path))]
    assert outdated == ["component_evaluation", "dff", "spike_inference"]
    assert widget.status.text().endswith("changed: Component evaluation, dF/F, Spike inference.")
    assert finish(qtbot, form(viewer, "Component evaluation"))["state"] == "done"
    assert shown_layer(viewer, path, "outlines") is not None
    assert finish(qtbot, widget)["stages"][-1]["skipped"]
    assert widget.status.text().startswith("Done before with these parameters")


def test_the_worker_ends_with_the_window(
    qtbot: Any, make_napari_viewer: Any, movie_path: Path, tmp_path: Path
) -> None:
    viewer = make_napari_viewer()
    viewer.open(str(movie_path), plugin=PLUGIN)
    widget = form(viewer, "Import")
    widget.session_path = str(tmp_path / "s.zarr")
    widget.form.fields["frame_rate"].value = 10.0
    finish(qtbot, widget)
    worker = widget.runner.worker
    assert worker.alive
    viewer.close()
    qtbot.waitUntil(lambda: not worker.alive, timeout=2_000)


def test_a_form_that_was_closed_leaves_the_others_be(
    qtbot: Any, viewer: Any, movie_path: Path
) -> None:
    dock, widget = viewer.window.add_plugin_dock_widget(PLUGIN, "dF/F")
    other = form(viewer, "Import")
    viewer.window.remove_dock_widget(dock)
    with qtbot.waitSignal(widget.destroyed, timeout=2_000):
        widget.deleteLater()
    viewer.open(str(movie_path), plugin=PLUGIN)
    assert other.sources() == [str(movie_path)]


def test_a_recording_marked_elsewhere_is_not_marked_back(
    viewer: Any, finished: Path, tmp_path: Path
) -> None:
    """The form of the import shows the mark as it is, not as it was at the import."""
    path = tmp_path / "s.zarr"
    shutil.copytree(finished, path)
    Session(path).update_attrs({"modality": "one-photon"})
    viewer.open(str(path), plugin=PLUGIN)
    widget = form(viewer, "Import")
    widget.session_path = str(path)
    widget.show_recorded()
    assert widget.form.values()["modality"] == "one-photon"
    assert widget.form.values()["frame_rate"] == 10.0


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
    _, widget = viewer.window.add_plugin_dock_widget("napari-calcium", "Summary images")
    qtbot.wait(200)
    before = window_size(viewer)
    shrink(widget, size)
    assert window_size(viewer) == before.boundedTo(size)
