"""Time what a window does at one step of a dragged threshold, with many cells.

    xvfb-run -a -s "-screen 0 1600x1000x24" python benchmarks/bench_deciding.py [--cells 1000]

A session with made-up scores is shown in a window of 1400 x 900 px over an image of 512 x 512 px;
the upper threshold of the trace SNR goes up and down. Under Xvfb the canvas is drawn by the
processor; the row "canvas alone" is what drawing takes where nothing has changed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from rich.console import Console
from rich.table import Table

from napari_calcium.components import Background, Components, Quality
from napari_calcium.evaluation.decision import decide
from napari_calcium.evaluation.evaluation import ComponentEvaluationParameters
from napari_calcium.io.session import (
    Session,
    StageRecord,
    components_attrs,
    components_to_arrays,
    quality_attrs,
    quality_to_arrays,
)
from napari_calcium.pipeline.deciding import decide_again

FIELD, RADIUS, N_FRAMES = (512, 512), 6.0, 50
STEPS = 15


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = make_session(Path(folder) / "cells.zarr", arguments.cells)
        show(arguments.cells, measure(path))


def make_session(path: Path, n_cells: int) -> Path:
    """Return a session of cells on a grid, with scores by chance."""
    rng = np.random.default_rng(0)
    nothing = np.zeros((n_cells, N_FRAMES), np.float32)
    background = Background(sp.csc_array((FIELD[0] * FIELD[1], 0)), nothing[:0])
    ids, footprints = np.arange(n_cells), footprints_on_a_grid(rng, n_cells)
    components = Components(footprints, FIELD, nothing, nothing, nothing, background, ids)
    scores = Quality(
        snr=rng.gamma(2, 1.5, n_cells),
        spatial_correlation=1 - rng.gamma(1.5, 0.06, n_cells),
        cnn_probability=rng.beta(0.5, 0.5, n_cells),
        accepted=np.zeros(n_cells, bool),
        size=rng.gamma(20, 0.05, n_cells),
        pairs=np.stack([ids[:-1], ids[1:]], axis=1)[::5],
        overlap=rng.random(n_cells - 1)[::5],
        triggered=footprints,
    )
    parameters = ComponentEvaluationParameters(correlation_lower=0.5)
    session = Session.create(path, {"recipe": {}})
    write(session, components, decide(scores, parameters), parameters)
    return path


def footprints_on_a_grid(rng: np.random.Generator, n_cells: int) -> sp.csc_array:
    """Return the footprints of cells side by side, (pixel, cell)."""
    side = int(np.ceil(np.sqrt(n_cells)))
    y, x = np.mgrid[: FIELD[0], : FIELD[1]]
    columns = []
    for cell in range(n_cells):
        at = (np.array(divmod(cell, side)) + 0.5) * FIELD[0] / side + rng.uniform(-2, 2, 2)
        sd = rng.uniform(0.8, 1.2, 2) * 0.6 * RADIUS
        box = tuple(slice(int(max(0, each - 20)), int(each + 21)) for each in at)
        weights = np.zeros(FIELD, np.float32)
        distance = ((y[box] - at[0]) / sd[0]) ** 2 + ((x[box] - at[1]) / sd[1]) ** 2
        weights[box] = np.where(distance < 6, np.exp(-distance / 2), 0)
        columns.append(sp.csc_array(weights.reshape(-1, 1) / np.linalg.norm(weights)))
    return sp.hstack(columns, format="csc")


def write(
    session: Session,
    components: Components,
    quality: Quality,
    parameters: ComponentEvaluationParameters,
) -> None:
    """Store the stages that the window shows."""
    with session.writing("source_extraction") as writer:
        for name, values in components_to_arrays(components).items():
            writer.write(name, values)
        for name, attrs in components_attrs(components).items():
            writer.attrs(name, attrs)
        writer.commit(StageRecord("source_extraction", {}, {}, "cells", {}))
    inputs = {"source_extraction": "cells", "modality": "two-photon"}
    with session.writing("component_evaluation") as writer:
        for name, values in quality_to_arrays(quality).items():
            writer.write(name, values)
        for name, attrs in quality_attrs(quality).items():
            writer.attrs(name, attrs)
        record = ("component_evaluation", parameters.to_mapping(), inputs, "scores", {})
        writer.commit(StageRecord(*record))


def measure(path: Path) -> dict[str, list[float]]:
    """Return the times of each part of a step, ms."""
    import napari
    from qtpy.QtWidgets import QApplication

    from napari_calcium.napari.evaluation_widget import ComponentEvaluationWidget

    viewer = napari.Viewer()
    viewer.window.resize(1400, 900)
    viewer.add_image(np.random.default_rng(0).random(FIELD))
    times = add_layers(viewer, path)
    widget = ComponentEvaluationWidget(viewer)
    viewer.window.add_dock_widget(widget)
    decisions = widget.decisions
    application, canvas = QApplication.instance(), viewer.window._qt_viewer.canvas._scene_canvas
    drawn = Drawn(application, canvas)

    def parameters(step: int) -> ComponentEvaluationParameters:
        return replace(decisions.parameters, snr_upper=threshold(step))

    def decided(step: int) -> None:
        decisions.decided = decisions.decided.by(parameters(step))

    def drag(step: int) -> None:
        widget._on_dragged({"snr_upper": threshold(step)})
        canvas.update()  # also where the step changes no cell
        drawn.wait()

    def redraw(step: int) -> None:
        canvas.update()
        drawn.wait()

    def store(step: int) -> None:
        decide_again(path, parameters(step))

    parts: dict[str, tuple[Callable[[int], Any], Callable[[int], Any]]] = {
        "decide": (drawn.settle, lambda step: decide(decisions.quality, parameters(step))),
        "colours of cells and outlines": (decided, lambda _: decisions.paint()),
        "table of cells": (decided, lambda _: decisions.tabulate()),
        "canvas alone": (drawn.settle, redraw),
        "a step of the drag, drawn": (drawn.settle, drag),
        "stored, in a thread": (drawn.settle, store),
    }
    drawn.settle()
    for name, (before, timed) in parts.items():
        times[name] = []
        for step in range(STEPS):
            before(step)
            times[name].append(milliseconds(lambda: timed(step)))  # noqa: B023 - called at once
    viewer.close()
    return times


def add_layers(viewer: Any, path: Path) -> dict[str, list[float]]:
    """Show a session, and return how long that takes, ms, without what napari compiles."""
    from napari_calcium.napari.layers import session_layers
    from napari_calcium.napari.viewing import warm_up

    warm_up()
    layers: list[Any] = []
    reading = milliseconds(lambda: layers.extend(session_layers(Session(path))))

    def add() -> None:
        for layer in layers:
            viewer._add_layer_from_data(*layer)

    return {"reading the layers": [reading], "adding the layers": [milliseconds(add)]}


def threshold(step: int) -> float:
    """Return where the threshold is at a step: up and down, never twice the same."""
    return 3 + 0.1 * abs(step % 10 - 5) + 0.01 * (step % 7)


def milliseconds(function: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)


class Drawn:
    """Lets an application go on until its canvas is drawn, or it has nothing to do."""

    def __init__(self, application: Any, canvas: Any) -> None:
        self._application, self._count = application, 0
        canvas.events.draw.connect(self._on_draw, position="last")

    def _on_draw(self, event: Any) -> None:
        self._count += 1

    def wait(self) -> None:
        """Wait until the canvas is drawn once more."""
        count = self._count
        while self._count == count:
            self._application.processEvents()

    def settle(self, step: int = 0) -> None:
        """Wait until nothing more is to be done."""
        for _ in range(25):
            self._application.processEvents()
            time.sleep(0.01)


def show(n_cells: int, times: dict[str, list[float]]) -> None:
    """Print the medians."""
    table = Table("part", "median, ms", "worst, ms", title=f"{n_cells} cells")
    for name, each in times.items():
        table.add_row(name, f"{statistics.median(each):.1f}", f"{max(each):.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
