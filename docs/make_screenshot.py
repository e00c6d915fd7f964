"""Make ``images/window.png``: the sample analysed, its cells, and the traces of one of them.

Without a screen: ``xvfb-run -a -s "-screen 0 1600x1000x24" python docs/make_screenshot.py``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

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
    viewer.layers["mean"].visible = True
    viewer.layers.selection = {cells}
    viewer.dims.set_current_step(0, int(traces.cell.raw.argmax()))
    QTest.qWait(500)
    viewer.reset_view(margin=0.02)
    QTest.qWait(1500)
    return viewer


def make_screenshot(path: Path) -> None:
    """Analyse the sample in a temporary folder and write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        session = Path(folder) / "sample.zarr"
        recipe = Recipe().with_value("import.frame_rate", SAMPLE_FRAME_RATE)
        run(session, [sample_recording()], recipe=recipe)
        viewer = window(session)
        path.parent.mkdir(exist_ok=True)
        viewer.window.screenshot(str(path), canvas_only=False, flash=False)
        viewer.close()


if __name__ == "__main__":
    make_screenshot(Path(__file__).parent / "images" / "window.png")
