"""The plot of the motion: curves, band, marks, figures and cursor."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_calcium.napari.motion_plot import HINT, MotionPlot
from napari_calcium.napari.motion_traces import Figure, MotionTraces, read_motion


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any, cropped: Path) -> Any:
    viewer = make_napari_viewer_proxy()
    viewer.open(str(cropped), plugin="napari-calcium")
    return viewer


@pytest.fixture
def plot(viewer: Any) -> MotionPlot:
    plot = MotionPlot(viewer)
    viewer.window.add_dock_widget(plot)
    return plot


def long_motion(n_frames: int) -> MotionTraces:
    rng = np.random.default_rng(0)
    shifts = rng.normal(size=(n_frames, 2)).cumsum(axis=0).astype(np.float32) / 100
    spread = rng.random(n_frames).astype(np.float32)
    columns = {"y": shifts[:, 0], "x": shifts[:, 1]}
    return MotionTraces(
        title=f"{n_frames} frames",
        start=0,
        frame_rate=30.0,
        ndim=3,
        shifts=columns,
        ranges={axis: (each - spread, each + spread) for axis, each in columns.items()},
        before=rng.random(n_frames).astype(np.float32),
        after=rng.random(n_frames).astype(np.float32),
        flagged=rng.random(n_frames) < 0.01,
        figures=(Figure("crispness", "", 0.5, 0.75),),
    )


def test_the_motion_is_shown_over_seconds(plot: MotionPlot, cropped: Path) -> None:
    assert plot.title == HINT
    assert not plot.shift_plot.isVisible()
    motion = read_motion(cropped)
    assert motion is not None
    plot.show_motion(motion)
    assert plot.title == "200 frames"
    assert plot.shift_plot.isVisible()
    for axis in ("y", "x"):
        seconds, values = plot.curves[axis].getOriginalDataset()
        np.testing.assert_allclose(seconds[-1], 19.9)
        np.testing.assert_array_equal(values, motion.shifts[axis])
        np.testing.assert_array_equal(plot.bands[axis].values[2], motion.ranges[axis][1])
    np.testing.assert_array_equal(plot.curves["after"].getOriginalDataset()[1], motion.after)
    assert plot.figures.text().startswith("crispness 0.")
    assert "principal motion" in plot.figures.text()
    plot.show_motion(None)
    assert plot.title == HINT
    assert plot.figures.text() == ""
    assert plot.curves["y"].getOriginalDataset() == (None, None)


def test_flagged_frames_are_marked_and_do_not_set_the_scale(plot: MotionPlot) -> None:
    motion = long_motion(100)
    flagged = np.zeros(100, bool)
    flagged[[3, 60]] = True
    motion.before[3] = -40
    plot.show_motion(replace(motion, flagged=flagged))
    for flags in plot.flags:
        np.testing.assert_allclose(flags.xvals, [0.1, 2])
    low, high = plot.correlation_plot.viewRange()[1]
    assert -1 < low < high < 2
    assert "flagged" in plot._time_plots.key.text


def test_the_cursor_and_the_slider_are_linked(viewer: Any, plot: MotionPlot, cropped: Path) -> None:
    viewer.dims.set_point(0, 31)
    plot.show_motion(read_motion(cropped))
    assert [cursor.value() for cursor in plot.cursors] == [3.1, 3.1]
    viewer.dims.set_point(0, 120)
    assert [cursor.value() for cursor in plot.cursors] == [12, 12]
    plot.cursors[0].setValue(7.53)
    plot.cursors[0].sigDragged.emit(plot.cursors[0])
    assert viewer.dims.point[0] == 75
    plot.show_motion(None)
    viewer.dims.set_point(0, 3)
    assert plot.cursors[0].value() == 7.5


def test_volumes_have_a_shift_along_z_and_another_time_axis(
    make_napari_viewer_proxy: Any,
) -> None:
    viewer = make_napari_viewer_proxy()
    viewer.add_image(np.zeros((50, 3, 7, 9)))
    plot = MotionPlot(viewer)
    viewer.window.add_dock_widget(plot)
    motion = long_motion(50)
    shifts = {"z": np.ones(50, np.float32), **motion.shifts}
    plot.show_motion(replace(motion, ndim=4, shifts=shifts, frame_rate=0.0))
    viewer.dims.set_point(0, 20)
    assert plot.cursors[0].value() == 20
    assert plot.curves["z"].getOriginalDataset()[1].sum() == 50
    assert ">z<" in plot._time_plots.key.text
    assert plot.correlation_plot.getAxis("bottom").labelText == "frame"


def test_values_that_are_no_numbers_are_left_out(plot: MotionPlot) -> None:
    motion = long_motion(100)
    motion.before[10:20] = np.nan
    unknown = np.full(100, np.nan, np.float32)
    figures = (Figure("crispness", "", 1.0, np.nan),)
    plot.show_motion(replace(motion, after=unknown, figures=figures))
    assert plot.curves["after"].getOriginalDataset() == (None, None)
    assert plot.figures.text() == "crispness 1 → ?"
    plot.grab()


def test_a_long_recording_stays_fluid(viewer: Any, plot: MotionPlot) -> None:
    motion = long_motion(100_000)
    plot.resize(400, 300)
    plot.show_motion(motion)
    plot.grab()
    seconds = []
    for step in range(12):
        start = time.perf_counter()
        plot.shift_plot.setXRange(step, 3000 - 40 * step)
        plot.grab()
        seconds.append(time.perf_counter() - start)
    # 20 ms on an idle machine; 2 s if every frame of the band were drawn
    assert np.median(seconds) < 0.3
