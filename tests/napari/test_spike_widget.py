"""The form of spike inference in a real window with a real worker."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from qtpy.QtCore import QTimer

from napari_calcium.io.session import Session
from napari_calcium.napari import spike_widget
from napari_calcium.napari.raster import RasterWidget
from napari_calcium.napari.spike_widget import GROUPS, LOOKING, RUN_DFF, SpikeInferenceWidget, see
from napari_calcium.napari.stage_widget import SpikeInferenceWidget as Exported
from napari_calcium.napari.trace_noise import read_noise
from napari_calcium.napari.traces import TracesWidget
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run
from napari_calcium.pipeline.stages import stage_named
from napari_calcium.spikes.inference import SpikeInferenceParameters

PLUGIN = "napari-calcium"


@pytest.fixture
def path(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "s.zarr"))


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any) -> Any:
    return make_napari_viewer_proxy()


def form(qtbot: Any, viewer: Any, path: Path | None = None) -> SpikeInferenceWidget:
    if path is not None:
        viewer.open(str(path), plugin=PLUGIN)
    widget = SpikeInferenceWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Spike inference")
    return settled(qtbot, widget)


def settled(qtbot: Any, widget: SpikeInferenceWidget) -> SpikeInferenceWidget:
    qtbot.waitUntil(lambda: not widget.looking, timeout=20_000)
    return widget


def finish(qtbot: Any, widget: SpikeInferenceWidget) -> dict[str, Any]:
    """Press Run and wait for the end."""
    with qtbot.waitSignal(widget.runner.ended, timeout=120_000) as signal:
        widget.run_button.click()
    settled(qtbot, widget)
    answer: dict[str, Any] = signal.args[0]
    return answer


def test_it_is_the_form_of_the_stage() -> None:
    assert Exported is SpikeInferenceWidget
    known = [each.name for each in stage_named("spike_inference").parameters.describe()]
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(known)


# ------------------------------------------------------------------------------------- a run


def test_rates_are_inferred_from_the_form(
    qtbot: Any, viewer: Any, path: Path, notifications: Any
) -> None:
    """And all docks show them; the same headless gives the same arrays."""
    widget = form(qtbot, viewer, path)
    raster, traces = RasterWidget(viewer), TracesWidget(viewer)
    for dock in (raster, traces):
        viewer.window.add_dock_widget(dock, name=type(dock).__name__)
    widget.form.fields["smoothing"].value = 0.2
    texts: list[str] = []
    widget.runner.progressed.connect(lambda _: texts.append(widget.progress_bar.text()))
    answer = finish(qtbot, widget)
    assert answer["state"] == "done"
    assert widget.status.text().startswith("Done in ")
    assert {text.split(",")[0] for text in texts} - {""} == {"Spike inference"}, texts
    session = Session(path)
    assert session.record("spike_inference").parameters["smoothing"] == 0.2
    assert session.summary("spike_inference") in widget.status.text()
    warnings = list(session.warnings("spike_inference"))
    assert notifications() == warnings
    assert all(warning in widget.status.text() for warning in warnings)
    qtbot.waitUntil(lambda: raster.image is not None, timeout=10_000)
    traces.show_cell(viewer.layers["cells"], int(raster.image.cell_id[0]))
    np.testing.assert_array_equal(traces.cell.spike_rate, session.spike_rate()[0])
    table = viewer.layers["cells"].features
    np.testing.assert_allclose(table["noise_level"], session.spike_noise_level())
    rate = session.spike_rate()
    run(path, recipe=Recipe.of_session(session).with_value("spike_inference.smoothing", 0.1))
    run(path, recipe=Recipe.of_session(session).with_value("spike_inference.smoothing", 0.2))
    np.testing.assert_array_equal(Session(path).spike_rate(), rate)
    assert "tensorflow" not in sys.modules


def test_a_run_is_cancelled_within_a_second(qtbot: Any, viewer: Any, path: Path) -> None:
    widget = form(qtbot, viewer, path)
    widget.run_button.click()
    assert widget.cancel_button.isEnabled()
    assert not widget.run_button.isEnabled()
    start = time.monotonic()
    with qtbot.waitSignal(widget.runner.ended, timeout=5_000):
        widget.cancel_button.click()
    assert time.monotonic() - start < 1
    assert widget.status.text() == "Cancelled; what was finished is kept."
    assert widget.run_button.isEnabled()
    settled(qtbot, widget)


def test_a_run_is_cancelled_within_a_second_also_while_noise_is_measured(
    qtbot: Any, viewer: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes 9 s of 2000 cells in 20 000 frames."""
    measured = threading.Event()

    def slow(path: str) -> Any:
        measured.wait(timeout=60)
        return read_noise(path)

    widget = form(qtbot, viewer)
    monkeypatch.setattr(spike_widget, "read_noise", slow)
    widget.session_path = path
    qtbot.waitUntil(lambda: widget._reading is not None)
    try:
        widget.run_button.click()
        with qtbot.waitSignal(widget.runner.ended, timeout=5_000):
            widget.cancel_button.click()
    finally:
        measured.set()
    settled(qtbot, widget)
    assert widget.seen.noise is not None


def test_a_model_that_cannot_be_used_is_refused(
    qtbot: Any, viewer: Any, path: Path, tmp_path: Path, notifications: Any
) -> None:
    widget = form(qtbot, viewer, path)
    levels = widget.counts.text()
    widget.form.fields["model_file"].value = str(tmp_path)
    settled(qtbot, widget)
    assert "holds no model for spike inference; give a folder" in widget.model_line.text()
    assert not widget.histogram.isHidden()
    assert not widget.histogram.shade.isVisible()
    assert widget.counts.text() != levels
    answer = finish(qtbot, widget)
    assert answer["state"] == "refused"
    assert "holds no model" in widget.status.text()
    assert notifications() == [widget.status.text()]
    assert Session(path).record("spike_inference") is None


# ------------------------------------------------------------------------------ what it shows


def test_before_a_run_noise_and_fit_are_seen(
    qtbot: Any, viewer: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widget = form(qtbot, viewer, path)
    expected = see(str(path), widget.form.values())
    assert widget.model_line.text() == expected.fit.said
    assert "Recommended at the 10 Hz" in widget.model_line.text()
    assert widget.counts.text() == expected.noise.said(expected.fit.noise_levels)
    assert widget.histogram.shade.getRegion() == expected.fit.noise_levels
    assert not widget.histogram.isHidden()
    monkeypatch.setattr(spike_widget, "read_noise", None)  # traces are not read again
    widget.form.fields["model"].value = "interneurons"
    settled(qtbot, widget)
    assert widget.model_line.text().startswith("For interneurons")
    widget.form.fields["smoothing"].value = 0.4
    settled(qtbot, widget)
    assert "400 ms" in widget.model_line.text()


def test_marked_cells_are_counted(qtbot: Any, viewer: Any, path: Path) -> None:
    group = zarr.open_group(path, path="dff", mode="r+")
    n_cells, n_frames = group["traces"].shape
    noise = np.random.default_rng(0).normal(0, 0.1, (n_cells, n_frames))
    noise[0] *= 6  # 10 Hz: 18 % per root Hz, more than 12
    group["traces"][...] = noise.astype(np.float32)
    widget = form(qtbot, viewer, path)
    assert widget.counts.text().startswith(f"1 of {n_cells} cells is noisier than the model")


def test_it_shows_the_parameters_of_the_session(qtbot: Any, viewer: Any, rated: Session) -> None:
    group = zarr.open_group(rated.path, path="spike_inference", mode="r+")
    parameters = {"model": "interneurons", "threshold": "one_spike"}
    group.attrs["parameters"] = parameters
    rated.update_attrs({"recipe": {**rated.attrs["recipe"], "spike_inference": parameters}})
    widget = form(qtbot, viewer, rated.path)
    assert widget.form.values()["model"] == "interneurons"
    assert widget.form.values()["threshold"] == "one_spike"
    assert widget.model_line.text().startswith("For interneurons")
    np.testing.assert_array_equal(widget.seen.noise.noise_level, rated.spike_noise_level())


def test_without_traces_it_says_what_to_do(
    qtbot: Any, viewer: Any, finished: Path, tmp_path: Path
) -> None:
    widget = form(qtbot, viewer)
    assert widget.counts.text() == ""
    assert widget.model_line.text().startswith("For excitatory neurons")
    assert widget.histogram.isHidden()
    path = shutil.copytree(finished, tmp_path / "s.zarr", ignore=lambda *_: ["dff"])
    widget.session_path = path
    settled(qtbot, widget)
    assert widget.counts.text() == RUN_DFF
    assert widget.histogram.isHidden()


def test_of_a_session_that_was_left_nothing_is_shown(
    qtbot: Any, viewer: Any, path: Path, tmp_path: Path
) -> None:
    widget = form(qtbot, viewer, path)
    widget._see()
    widget.session_path = tmp_path / "other.zarr"
    settled(qtbot, widget)
    assert widget.counts.text() == RUN_DFF
    assert widget.seen.key[0] == str(tmp_path / "other.zarr")


def test_while_another_session_is_read_nothing_of_the_last_is_shown(
    qtbot: Any, viewer: Any, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any) -> Any:
        time.sleep(0.5)
        return see(*arguments)

    other = shutil.copytree(path, tmp_path / "other.zarr")
    widget = form(qtbot, viewer, path)
    said = widget.counts.text()
    monkeypatch.setattr(spike_widget, "see", slow)
    widget._see()  # of the same: what is known of it stays until there is something else
    assert widget.counts.text() == said
    assert not widget.histogram.isHidden()
    settled(qtbot, widget)
    widget.session_path = other
    qtbot.waitUntil(lambda: widget._reading is not None)
    assert widget.counts.text() == LOOKING
    assert widget.histogram.isHidden()
    settled(qtbot, widget)
    assert widget.counts.text() == said
    assert not widget.histogram.isHidden()


@pytest.mark.parametrize("what", ["cells", "mark"])
def test_noise_of_traces_of_other_cells_is_not_shown(
    what: str, qtbot: Any, viewer: Any, path: Path
) -> None:
    """As after a run up to source extraction, or when the recording was marked otherwise."""
    widget = form(qtbot, viewer, path)
    values, earlier = widget.form.values(), widget.seen
    assert earlier.noise is not None
    if what == "cells":
        record, cells = Session(path).record("source_extraction"), path / "source_extraction"
        about = (cells / "zarr.json").read_text("utf-8").replace(record.digest, "another")
        (cells / "zarr.json").write_text(about, "utf-8")
    else:
        Session(path).update_attrs({"modality": "one-photon"})
    assert see(str(path), values, earlier) == see(str(path), values)
    widget.runner.ended.emit({"state": "done", "stages": []})
    settled(qtbot, widget)
    assert widget.seen.noise is None
    assert widget.counts.text() == RUN_DFF
    assert widget.histogram.isHidden()


def test_noise_of_another_frame_rate_is_measured_anew(path: Path) -> None:
    values = SpikeInferenceParameters().to_mapping()
    earlier = see(str(path), values)
    movie = path / "movie" / "zarr.json"
    about = json.loads(movie.read_text("utf-8"))
    about["attributes"]["parameters"]["frame_rate"] = 40.0
    about["attributes"]["digest"] = "another"
    movie.write_text(json.dumps(about), "utf-8")
    found = see(str(path), values, earlier).noise.noise_level
    np.testing.assert_allclose(found, earlier.noise.noise_level / 2, rtol=1e-6)  # float32


def test_what_cannot_be_read_is_said(
    qtbot: Any, viewer: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when traces are replaced, or the session is removed, while they are read."""

    def fails(*arguments: Any) -> Any:
        raise FileNotFoundError("traces")

    widget = form(qtbot, viewer, path)
    said = widget.counts.text()
    with monkeypatch.context() as patched:
        patched.setattr(spike_widget, "see", fails)
        widget._see()
        widget._see()  # what came meanwhile is read, too
        settled(qtbot, widget)
    assert widget.counts.text() == (
        "The traces or the model cannot be read (FileNotFoundError: traces); choose them again."
    )
    assert widget.histogram.isHidden()
    widget._see()
    settled(qtbot, widget)
    assert widget.counts.text() == said
    assert not widget.histogram.isHidden()


def test_the_folder_of_a_model_is_chosen(
    qtbot: Any, viewer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widget = form(qtbot, viewer)
    chosen = str(tmp_path)
    monkeypatch.setattr(spike_widget.QFileDialog, "getExistingDirectory", lambda *_: chosen)
    widget.model_button.click()
    assert widget.form.values()["model_file"] == chosen
    settled(qtbot, widget)


def test_the_window_is_not_blocked_while_traces_are_read(
    qtbot: Any, viewer: Any, tmp_path: Path, many_cells: Any
) -> None:
    """Of 1000 cells in 10 000 frames without rates: their noise is measured in a thread."""
    path = many_cells(tmp_path / "many.zarr", 1000, 10_000)
    shutil.rmtree(path / "spike_inference")
    widget = form(qtbot, viewer)
    ticks: list[float] = []
    timer = QTimer()
    timer.timeout.connect(lambda: ticks.append(time.perf_counter()))
    timer.start(5)
    widget.session_path = path
    settled(qtbot, widget)
    timer.stop()
    assert len(widget.seen.noise.noise_level) == 1000
    assert len(ticks) > 30
    # processors are shared in tests: nine of ten waits, and the longest generously
    assert np.percentile(np.diff(ticks), 90) < 0.1
    assert max(np.diff(ticks)) < 1
