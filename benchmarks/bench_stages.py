"""Time every stage on simulated recordings, beside the time to read the movie once from Zarr.

    python benchmarks/bench_stages.py [--frames 2000]

Each recording runs in a process of its own with a cold session; the floor is one pass over
``movie/frames`` in the blocks the stages use, timed in the same process after the run. Quote the
ratios: absolute times depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

FIELDS = {"170 x 170, 70 cells": (170, 170, 70), "512 x 512, 342 cells": (512, 512, 342)}


def main() -> None:
    """Print one table per recording."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments.one, arguments.frames)
        return
    for title in FIELDS:
        command = [sys.executable, __file__, "--one", title, "--frames", str(arguments.frames)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        show(title, json.loads(done.stdout))


def measure(title: str, n_frames: int) -> None:
    """Simulate, warm the compiled kernels, run, and print the figures as JSON."""
    from napari_calcium.io.session import Session
    from napari_calcium.movie import blocks
    from napari_calcium.pipeline.recipe import Recipe
    from napari_calcium.pipeline.run import run, save_movie
    from napari_calcium.simulation import SimulationParameters, simulate
    from napari_calcium.truth import score_cells

    height, width, n_cells = FIELDS[title]
    recipe = Recipe({"import": {"frame_rate": 30.0}})
    with tempfile.TemporaryDirectory() as folder:
        small = simulate(SimulationParameters(n_frames=200, seed=9)).movie
        save_movie(small, Path(folder) / "small.tif")
        run(Path(folder) / "small.zarr", [Path(folder) / "small.tif"], recipe=recipe)
        parameters = SimulationParameters(
            height=height, width=width, n_frames=n_frames, n_cells=n_cells, seed=11
        )
        simulation = simulate(parameters)
        save_movie(simulation.movie, Path(folder) / "movie.tif")
        path = Path(folder) / "movie.zarr"
        report = run(path, [Path(folder) / "movie.tif"], recipe=recipe)
        session = Session(path)
        array = session.array("movie/frames")
        start = time.perf_counter()
        for block in blocks(array.shape[0]):
            array[block]
        floor = time.perf_counter() - start
        components, quality = session.components(), session.quality()
    raw = components.traces + components.residuals
    kept = quality.accepted
    score = score_cells(components.footprints[:, kept], raw[kept], simulation.truth)
    figures = {
        "recording": n_frames / 30.0,
        "floor": floor,
        "stages": {stage.stage: stage.seconds for stage in report.stages},
        "peak_memory": report.peak_memory,
        "f1": score.f1,
        "trace_correlation": score.trace_correlation,
    }
    sys.stdout.write(json.dumps(figures))


def show(title: str, figures: dict) -> None:
    """Print the figures of one recording."""
    table = Table("stage", "seconds", "times one read", title=title)
    total = sum(figures["stages"].values())
    rows = {**figures["stages"], "all stages": total, "one read": figures["floor"]}
    for name, seconds in rows.items():
        table.add_row(name, f"{seconds:.2f}", f"{seconds / figures['floor']:.1f}")
    console = Console()
    console.print(table)
    console.print(
        f"recording lasts {figures['recording']:.0f} s, analysed in {total:.1f} s; peak memory "
        f"{figures['peak_memory'] / 1e9:.2f} GB (simulation included); F1 {figures['f1']:.2f}, "
        f"median trace correlation {figures['trace_correlation']:.3f}"
    )


if __name__ == "__main__":
    main()
