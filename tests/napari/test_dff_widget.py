"""The movie of dF/F from its form, in a real window."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from qtpy.QtCore import QTimer

from napari_calcium.activity.movies import detrended_movie, dff_movie
from napari_calcium.errors import InputError
from napari_calcium.io.session import Session
from napari_calcium.movie import Movie
from napari_calcium.napari.dff_widget import (
    GROUPS,
    DffWidget,
    _show,
    change_movie,
    change_movie_of,
)
from napari_calcium.napari.layers import metadata_of
from napari_calcium.napari.viewing import changes, show_changes, shown_digests
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run
from napari_calcium.pipeline.stages import stage_named

PLUGIN = "napari-calcium"
CORRECTED = "motion_correction/frames"


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any) -> Any:
    return make_napari_viewer_proxy()


def form(viewer: Any, path: Path | None = None) -> DffWidget:
    if path is not None:
        viewer.open(str(path), plugin=PLUGIN)
    widget = DffWidget(viewer)
    viewer.window.add_dock_widget(widget, name="dF/F")
    return widget


def shown(qtbot: Any, widget: DffWidget) -> Any:
    """Press the button and wait for the layer."""
    widget.movie_button.click()
    assert not widget.movie_button.isEnabled()
    qtbot.waitUntil(widget.movie_button.isEnabled, timeout=30_000)
    return change_movie_of(widget.viewer, widget.session_path)


def names(viewer: Any) -> list[str]:
    return [layer.name for layer in viewer.layers]


# --------------------------------------------------------------------------------------- layer


def test_the_movie_is_shown_over_the_corrected_one(
    qtbot: Any, viewer: Any, finished: Path, session: Session
) -> None:
    widget = form(viewer, finished)
    before, selected = names(viewer), set(viewer.layers.selection)
    layer = shown(qtbot, widget)
    assert layer.name == "dF/F movie"
    assert names(viewer) == [*before[:-2], "dF/F movie", "cells", "outlines"]
    assert viewer.layers.selection == selected
    assert layer.visible
    assert layer.axis_labels == ("time", "y", "x")
    expected = dff_movie(session.movie(CORRECTED))
    assert layer.data.shape == expected.shape
    np.testing.assert_array_equal(layer.data[100].compute(), expected[100].compute())
    low, high = layer.contrast_limits
    assert low == -high
    # photon noise of 9 % and cells that double: few pixels are brighter
    assert 0.2 < high < 3
    assert layer.colormap.map(np.array([0.5]))[0, :3].max() < 0.02  # no change is black
    assert widget.status.text() == (
        "dF/F movie is shown, for looking: each pixel's baseline is the 8 % percentile in 30 s."
    )


def test_it_lies_on_a_movie_that_was_moved(qtbot: Any, viewer: Any, finished: Path) -> None:
    widget = form(viewer, finished)
    movie = viewer.layers["corrected"]
    movie.scale, movie.translate = (1, 2, 2), (0, 30, -10)
    layer = shown(qtbot, widget)
    for corner in ((0, 0, 0), (7, 36, 52)):
        np.testing.assert_array_equal(layer.data_to_world(corner), movie.data_to_world(corner))
    movie.translate = (0, 5, 5)
    assert shown(qtbot, widget) is layer
    np.testing.assert_array_equal(layer.translate, movie.translate)


def test_without_the_corrected_layer_it_lies_at_0(qtbot: Any, viewer: Any, finished: Path) -> None:
    widget = form(viewer)
    widget.session_path = finished
    layer = shown(qtbot, widget)
    assert names(viewer) == ["dF/F movie"]
    np.testing.assert_array_equal(layer.data_to_world((3, 4, 5)), (3, 4, 5))


def test_pressing_again_renews_it_and_leaves_the_contrast(
    qtbot: Any, viewer: Any, finished: Path, session: Session
) -> None:
    widget = form(viewer, finished)
    layer = shown(qtbot, widget)
    layer.contrast_limits, layer.visible, before = (-0.1, 0.4), False, names(viewer)
    widget.form.set_values({"window": 5.0, "percentile": 50.0})
    assert shown(qtbot, widget) is layer
    assert names(viewer) == before
    assert layer.visible
    assert layer.contrast_limits == [-0.1, 0.4]
    expected = dff_movie(session.movie(CORRECTED), 5.0, 50.0)
    np.testing.assert_array_equal(layer.data[50].compute(), expected[50].compute())
    assert "50 % percentile in 5 s" in widget.status.text()


def test_another_movie_of_the_session_is_shown_when_there_is_one(
    qtbot: Any, viewer: Any, finished: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(finished, tmp_path / "s.zarr"))
    widget = form(viewer, path)
    layer = shown(qtbot, widget)
    first = metadata_of(layer)["digest"]
    widget.runner.ended.emit({"state": "refused", "message": "No."})
    assert widget.movie_button.isEnabled()  # nothing has changed
    recipe = Recipe.of_session(Session(path)).with_value("motion_correction.max_shift", 5.0)
    run(path, recipe=recipe, until="motion_correction")
    widget.runner.ended.emit({"state": "died", "message": "No."})
    assert not widget.movie_button.isEnabled()
    qtbot.waitUntil(widget.movie_button.isEnabled, timeout=30_000)
    assert metadata_of(layer)["digest"] == Session(path).record("motion_correction").digest != first
    assert change_movie_of(viewer, str(path)) is layer
    shutil.rmtree(path / "motion_correction")
    widget.runner.ended.emit({"state": "died", "message": "No."})
    assert change_movie_of(viewer, str(path)) is None


def test_it_stays_when_the_session_s_layers_are_renewed(
    qtbot: Any, viewer: Any, finished: Path
) -> None:
    layer = shown(qtbot, form(viewer, finished))
    found = changes(finished, shown_digests(viewer, finished))
    assert found is not None
    show_changes(viewer, replace(found, names=()))  # as if nothing of the session were left
    assert list(viewer.layers) == [layer]


# ------------------------------------------------------------------------------------ one photon


@pytest.fixture
def _one_photon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "modality", property(lambda _: "one-photon"), raising=False)


@pytest.mark.usefixtures("_one_photon")
def test_one_photon_recordings_have_a_detrended_movie_in_counts(
    qtbot: Any, viewer: Any, finished: Path, session: Session
) -> None:
    widget = form(viewer, finished)
    assert widget.movie_button.text() == "Show detrended movie"
    assert "dF/F" not in widget.movie_button.toolTip()
    layer = shown(qtbot, widget)
    assert layer.name == "detrended movie (counts)"
    expected = detrended_movie(session.movie(CORRECTED))
    np.testing.assert_array_equal(layer.data[100].compute(), expected[100].compute())
    assert 20 < layer.contrast_limits[1] < 500  # counts: noise of 11, and cells
    assert "dF/F" not in widget.status.text()


def test_a_recording_marked_otherwise_has_its_movie_renamed(
    viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    """Whatever run it was that marked it: the button and the layer do not say dF/F any more."""
    widget = form(viewer, finished)
    assert shown(qtbot, widget).name == "dF/F movie"
    monkeypatch.setattr(Session, "modality", property(lambda _: "one-photon"))
    widget._on_ended({"state": "done", "stages": []})
    assert widget.movie_button.text() == "Show detrended movie"
    qtbot.waitUntil(lambda: names(viewer)[-1] != "dF/F movie" and widget._reading is None)
    assert "dF/F movie" not in names(viewer)
    assert "detrended movie (counts)" in names(viewer)


def test_another_kind_is_named_and_scaled_anew(viewer: Any, finished: Path) -> None:
    values = {"window": 30.0, "percentile": 0.0}
    found = {kind: change_movie(str(finished), kind, values, 0) for kind in ("dff", "detrended")}
    for kind, name in (("dff", "dF/F movie"), ("detrended", "detrended movie (counts)")):
        _show(viewer, found[kind])
        assert names(viewer) == [name]
        assert viewer.layers[0].contrast_limits == [-found[kind].limit, found[kind].limit]


# ---------------------------------------------------------------------- what cannot be, and time


def test_why_there_is_no_movie_is_said(
    qtbot: Any, viewer: Any, movie_path: Path, tmp_path: Path, notifications: Any
) -> None:
    widget = form(viewer)
    assert shown(qtbot, widget) is None
    assert widget.status.text().startswith("session is not given; ")
    widget.session_path = tmp_path / "none.zarr"
    assert shown(qtbot, widget) is None
    assert "is not a napari-calcium session" in widget.status.text()
    path = tmp_path / "s.zarr"
    recipe = Recipe().with_value("import.frame_rate", 10.0)
    run(path, [movie_path], recipe=recipe, until="import")
    widget.session_path = path
    assert shown(qtbot, widget) is None
    assert widget.status.text().endswith("run motion_correction first")
    assert len(notifications()) == 3


def test_a_value_that_cannot_be_used_is_said(finished: Path) -> None:
    with pytest.raises(InputError, match="window is -1 s"):
        change_movie(str(finished), "dff", {"window": -1.0, "percentile": 8.0}, 0)


def test_volumes_have_no_such_movie(
    qtbot: Any, viewer: Any, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = Movie(da.zeros((20, 3, 37, 53), dtype=np.uint16), 10.0)
    widget = form(viewer, finished)
    monkeypatch.setattr(Session, "movie", lambda *_: volumes)
    assert shown(qtbot, widget) is None
    assert "takes movies of one plane" in widget.status.text()


def test_the_movie_of_a_session_that_was_left_is_not_shown(
    qtbot: Any, viewer: Any, finished: Path, tmp_path: Path
) -> None:
    widget = form(viewer, finished)
    widget.movie_button.click()
    widget.session_path = tmp_path / "other.zarr"
    qtbot.waitUntil(widget.movie_button.isEnabled, timeout=30_000)
    assert change_movie_of(viewer, str(finished)) is None
    assert widget.status.text().startswith("Another session was chosen")


def test_the_window_is_not_blocked_while_frames_are_looked_at(
    qtbot: Any, viewer: Any, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work takes 0.5 s more in its thread; the window waits for the layer alone."""
    from napari_calcium.napari import dff_widget

    def slow(*arguments: Any) -> Any:
        time.sleep(0.5)
        return change_movie(*arguments)

    monkeypatch.setattr(dff_widget, "change_movie", slow)
    widget = form(viewer, finished)
    ticks: list[float] = []
    timer = QTimer()
    timer.timeout.connect(lambda: ticks.append(time.monotonic()))
    timer.start(10)
    assert shown(qtbot, widget) is not None
    timer.stop()
    assert len(ticks) > 20
    assert np.percentile(np.diff(ticks), 90) < 0.1


# ---------------------------------------------------------------------------------------- groups


def test_every_parameter_stands_under_one_heading() -> None:
    known = [each.name for each in stage_named("dff").parameters.describe()]
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(known)
