"""Make ``images/window.png``, ``traces.png``, ``evaluation.png`` and ``spikes.png`` of the sample.

Without a screen: ``xvfb-run -a -s "-screen 0 1600x1000x24" python docs/make_screenshot.py``; with
names behind it, such as ``spikes``, only those pictures.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from napari.viewer import Viewer
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from napari_calcium.io.sample import SAMPLE_FRAME_RATE, sample_recording
from napari_calcium.napari.docking import dock_of, put_at_bottom
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run

PLUGIN = "napari-calcium"
SIZE = (1280, 800)


def window(session: Path) -> Any:
    """Return a viewer with a session, the form of source extraction, and a cell's traces."""
    viewer = Viewer(show_welcome_screen=False)
    viewer.window.resize(*SIZE)
    viewer.open(str(session), plugin=PLUGIN)
    for title in ("Motion correction", "Source extraction"):
        viewer.window.add_plugin_dock_widget(PLUGIN, title)
    _, traces = viewer.window.add_plugin_dock_widget(PLUGIN, "Traces")
    put_at_bottom(traces)
    cells = viewer.layers["cells"]
    best = cells.features.sort_values("snr").iloc[-5]
    cells.selected_label = int(best["index"])
    traces.show_cell(cells, int(best["cell_id"]))  # also where that label was selected already
    viewer.layers["mean"].visible = True
    viewer.layers.selection = {cells}
    viewer.dims.set_current_step(0, int(traces.cell.raw.argmax()))
    QTest.qWait(500)
    viewer.reset_view(margin=0.02)
    QTest.qWait(1500)
    return viewer


def save_traces(viewer: Any, path: Path) -> None:
    """Write the picture of the trace dock with everything it can show."""
    dock = next(each for name, each in viewer.window.dock_widgets.items() if "Traces" in name)
    for box in dock.boxes.values():
        box.setChecked(True)
    QTest.qWait(1000)
    dock.grab().save(str(path))


def evaluation_window(session: Path) -> Any:
    """Return a viewer in which strict thresholds are tried, and a rejected cell is looked at."""
    viewer = Viewer(show_welcome_screen=False)
    viewer.window.resize(*SIZE)
    viewer.open(str(session), plugin=PLUGIN)
    _, form = viewer.window.add_plugin_dock_widget(PLUGIN, "Component evaluation")
    _, listed = viewer.window.add_plugin_dock_widget(PLUGIN, "Cells")
    QTest.qWait(1000)
    decisions = form.decisions
    strict = {"snr_upper": 6.0, "snr_lower": 3.0, "correlation_upper": 0.96}
    decisions.set_parameters(replace(decisions.parameters, **strict))
    rejected = int(decisions.cell_id[np.flatnonzero(~decisions.accepted)[-1]])
    cells = viewer.layers["cells"]
    viewer.layers["mean"].visible = True
    viewer.layers.selection = {cells}
    QTest.qWait(500)
    viewer.reset_view(margin=0.02)
    listed.show_cell(cells, rejected)
    QTest.qWait(2000)
    return viewer


def spikes_window(session: Path) -> Any:
    """Return a viewer with the form of spike inference, a cell's rate and those of all cells."""
    viewer = Viewer(show_welcome_screen=False)
    viewer.window.resize(*SIZE)
    viewer.open(str(session), plugin=PLUGIN)
    form_dock, form = viewer.window.add_plugin_dock_widget(PLUGIN, "Spike inference")
    _, traces = viewer.window.add_plugin_dock_widget(PLUGIN, "Traces")
    _, raster = viewer.window.add_plugin_dock_widget(PLUGIN, "Raster")
    QTest.qWait(1000)
    main: Any = viewer.window._qt_window
    dock: Any = dock_of(raster)
    main.removeDockWidget(dock)  # it is a tab of the traces
    main.addDockWidget(Qt.DockWidgetArea.BottomDockWidgetArea, dock, Qt.Orientation.Horizontal)
    dock.show()
    main.resizeDocks([dock_of(traces), dock], [500, 500], Qt.Orientation.Horizontal)
    main.resizeDocks([dock], [220], Qt.Orientation.Vertical)
    main.resizeDocks([form_dock], [400], Qt.Orientation.Horizontal)
    for name, box in traces.boxes.items():
        box.setChecked(name in ("dff", "spike_rate"))
    cells = viewer.layers["cells"]
    best = cells.features.sort_values("snr").iloc[-3]
    cells.selected_label = int(best["index"])
    for shown in (traces, raster):
        shown.show_cell(cells, int(best["cell_id"]))
    viewer.layers["mean"].visible = True
    viewer.layers.selection = {cells}
    viewer.dims.set_current_step(0, int(np.nanargmax(traces.cell.spike_rate)))
    while form.looking:
        QTest.qWait(100)
    viewer.reset_view(margin=0.02)
    QTest.qWait(2000)
    return viewer


WINDOWS = {"window": window, "evaluation": evaluation_window, "spikes": spikes_window}
"""What makes the window of each picture."""


def make_screenshots(images: Path, names: Collection[str]) -> None:
    """Analyse the sample in a temporary folder and write the pictures of these names."""
    images.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        session = Path(folder) / "sample.zarr"
        recipe = Recipe().with_value("import.frame_rate", SAMPLE_FRAME_RATE)
        run(session, [sample_recording()], recipe=recipe)
        for name in names:
            viewer = WINDOWS[name](session)
            path = images / f"{name}.png"
            viewer.window.screenshot(str(path), canvas_only=False, flash=False)
            if name == "window":
                save_traces(viewer, images / "traces.png")
            viewer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(WINDOWS)}; all if none is given")
    arguments = parser.parse_args()
    for unknown in set(arguments.names) - set(WINDOWS):
        parser.error(f"there is no picture {unknown}")
    make_screenshots(Path(__file__).parent / "images", arguments.names or list(WINDOWS))
