"""Score the whole analysis on simulated recordings of seeds that nothing was tuned on.

    python benchmarks/score_simulations.py [--seeds 201 202 203]

Cells are matched one to one (Hungarian) at a footprint cosine of 0.5; true cells with fewer than
three spikes count neither as hit nor as miss. Parameters are the defaults.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from napari_calcium.io.session import Session
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run, save_movie
from napari_calcium.simulation import SimulationParameters, simulate
from napari_calcium.truth import Truth, score_cells

RECORDINGS = {
    "96 x 128 x 800, 15 Hz, 28 cells": {
        "height": 96,
        "width": 128,
        "n_frames": 800,
        "frame_rate": 15,
        "n_cells": 28,
    },
    "170 x 170 x 3000, 30 Hz, 70 cells": {
        "height": 170,
        "width": 170,
        "n_frames": 3000,
        "n_cells": 70,
    },
    "120 x 180 x 2000, 30 Hz, 50 cells, half the photons": {
        "height": 120,
        "width": 180,
        "n_frames": 2000,
        "n_cells": 50,
        "photons": 6,
    },
}


def main() -> None:
    """Print a row for each recording."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[201, 202, 203])
    seeds = parser.parse_args().seeds
    table = Table(
        "recording", "seed", "F1", "precision", "recall", "r raw", "r denoised", "motion rms (px)"
    )
    for title, values in RECORDINGS.items():
        for seed in seeds:
            figures = scored(SimulationParameters.from_mapping({**values, "seed": seed}))
            table.add_row(title, str(seed), *figures)
    Console(width=140).print(table)


def scored(parameters: SimulationParameters) -> list[str]:
    """Simulate, analyse and score one recording."""
    simulation = simulate(parameters)
    recipe = Recipe({"import": {"frame_rate": parameters.frame_rate}})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "movie.zarr"
        save_movie(simulation.movie, Path(folder) / "movie.tif")
        run(path, [Path(folder) / "movie.tif"], recipe=recipe)
        session = Session(path)
        cells, accepted = session.components(), session.quality().accepted
        shifts = session.read("motion_correction/shifts_rigid")
    footprints, denoised = cells.footprints[:, accepted], cells.traces[accepted]
    score = score_cells(footprints, denoised + cells.residuals[accepted], simulation.truth)
    clean = score_cells(footprints, denoised, simulation.truth)
    figures = (score.f1, score.precision, score.recall, score.trace_correlation)
    residual = motion_residual(shifts, simulation.truth)
    return [f"{value:.3f}" for value in (*figures, clean.trace_correlation, residual)]


def motion_residual(shifts: np.ndarray, truth: Truth) -> float:
    """Return the rms difference of the shifts from the true rigid ones, a constant free."""
    difference = shifts - truth.shifts
    return float(np.sqrt(np.mean((difference - difference.mean(axis=0)) ** 2)))


if __name__ == "__main__":
    main()
