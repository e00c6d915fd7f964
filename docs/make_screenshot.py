"""Make ``images/window.png``, ``traces.png`` and ``evaluation.png`` of the analysed sample.

Without a screen: ``xvfb-run -a -s "-screen 0 1600x1000x24" python docs/make_screenshot.py``.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from napari.viewer import Viewer
from qtpy.QtTest import QTest

from napari_calcium.io.sample import SAMPLE_FRAME_RATE, sample_recording
from napari_calcium.napari.docking import put_at_bottom
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


def make_screenshots(images: Path) -> None:
    """Analyse the sample in a temporary folder and write the pictures."""
    images.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        session = Path(folder) / "sample.zarr"
        recipe = Recipe().with_value("import.frame_rate", SAMPLE_FRAME_RATE)
        run(session, [sample_recording()], recipe=recipe)
        viewer = window(session)
        viewer.window.screenshot(str(images / "window.png"), canvas_only=False, flash=False)
        save_traces(viewer, images / "traces.png")
        viewer.close()
        viewer = evaluation_window(session)
        viewer.window.screenshot(str(images / "evaluation.png"), canvas_only=False, flash=False)
        viewer.close()


if __name__ == "__main__":
    make_screenshots(Path(__file__).parent / "images")
