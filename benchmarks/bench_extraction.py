"""Time source extraction by length and by area, beside one read of the movie from Zarr.

    python benchmarks/bench_extraction.py [--frames 1000 2000 4000 8000]

Recordings of 30 Hz with the density of cells of 342 in 512 x 512 px are simulated, still, into
sessions. Then the stage is run as users run it, by two workers and with its defaults, each time in
a process of its own: seconds, seconds per thousand frames and megapixel, multiples of one read of
the corrected movie in the blocks that the stages use, timed in the same process, and the process's
peak memory. Quote the ratios.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DENSITY = 342 / 512**2
"""Cells per pixel."""

FIELDS = ((256, 256), (512, 512), (512, 1024))
LENGTH = 2000
"""Frames of the recordings of different fields."""

WORKERS = 2


def main() -> None:
    """Print a row for each recording."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[1000, 2000, 4000, 8000])
    parser.add_argument("--write", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        height, width, frames = map(int, arguments.write[:3])
        write_session(height, width, frames, Path(arguments.write[3]))
        return
    if arguments.measure:
        measure(Path(arguments.measure))
        return
    recordings = [(512, 512, frames) for frames in arguments.frames]
    recordings += [(*field, LENGTH) for field in FIELDS if (*field, LENGTH) not in recordings]
    table = Table(
        "y x x x t", "cells", "s", "s per 1000 frames and Mpx", "times one read", "peak MB"
    )
    for recording in recordings:
        table.add_row(*row(recording, measured(recording)))
    Console(width=110).print(table)


def row(recording: tuple[int, int, int], figures: dict[str, float]) -> list[str]:
    """Return the cells of one row of the table."""
    height, width, frames = recording
    amount = frames / 1000 * height * width / 1e6
    seconds = figures["seconds"]
    return [
        f"{height} x {width} x {frames}",
        str(figures["cells"]),
        f"{seconds:.1f}",
        f"{seconds / amount:.1f}",
        f"{seconds / figures['read']:.1f}",
        f"{figures['peak']:.0f}",
    ]


def measured(recording: tuple[int, int, int]) -> dict[str, float]:
    """Simulate a recording and time the stage on it, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        here = [sys.executable, __file__]
        subprocess.run([*here, "--write", *map(str, recording), folder], check=True)
        done = subprocess.run(
            [*here, "--measure", folder], check=True, stdout=subprocess.PIPE, text=True
        )
        return json.loads(done.stdout)


def write_session(height: int, width: int, frames: int, folder: Path) -> None:
    """Write the session of a simulated recording, and a small one to compile the kernels with."""
    from napari_calcium.pipeline.recipe import Recipe
    from napari_calcium.pipeline.run import run, save_movie
    from napari_calcium.simulation import SimulationParameters, simulate

    recipe = Recipe({"import": {"frame_rate": 30.0}, "motion_correction": {"method": "none"}})
    still = {"motion_rigid": 0.0, "motion_piecewise": 0.0, "seed": 11}
    n_cells = round(DENSITY * height * width)
    for name, values in {
        "small": {"n_frames": 300},
        "movie": {"height": height, "width": width, "n_frames": frames, "n_cells": n_cells},
    }.items():
        movie = simulate(SimulationParameters.from_mapping({**still, **values})).movie
        source = folder / f"{name}_source.zarr"
        save_movie(movie, source)
        run(folder / f"{name}.zarr", [source], recipe=recipe, until="motion_correction")


def measure(folder: Path) -> None:
    """Run the stage, time one read, and print the figures as JSON."""
    from napari_calcium.io.session import Session
    from napari_calcium.pipeline.recipe import Recipe
    from napari_calcium.pipeline.run import run

    recipe = Recipe({"import": {"frame_rate": 30.0}, "motion_correction": {"method": "none"}})
    for name in ("small", "movie"):
        report = run(
            folder / f"{name}.zarr", recipe=recipe, until="source_extraction", workers=WORKERS
        )
    frames = Session(folder / "movie.zarr").movie("motion_correction/frames")
    start = time.perf_counter()
    for block in frames.blocks():
        frames.box(block).read()
    read = time.perf_counter() - start
    figures = {
        "seconds": report.stages[-1].seconds,
        "read": read,
        "peak": report.peak_memory / 1e6,
        "cells": Session(folder / "movie.zarr").components().n_cells,
    }
    sys.stdout.write(json.dumps(figures))


if __name__ == "__main__":
    main()
