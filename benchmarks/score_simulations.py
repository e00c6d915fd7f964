"""Score the whole analysis on simulated recordings of seeds that nothing was tuned on.

    python benchmarks/score_simulations.py [--seeds 401 402 403] [--ways]

Cells are matched one to one (Hungarian) at a footprint cosine of 0.5; true cells with fewer than
three spikes count neither as hit nor as miss. Parameters are the defaults. With ``--ways`` the ways
of source extraction are compared instead, on the recording of 170 x 170 px.
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
    "512 x 512 x 2000, 30 Hz, 342 cells": {
        "height": 512,
        "width": 512,
        "n_frames": 2000,
        "n_cells": 342,
    },
    "170 x 170 x 3000, 30 Hz, 130 cells": {
        "height": 170,
        "width": 170,
        "n_frames": 3000,
        "n_cells": 130,
    },
    "170 x 170 x 3000, 30 Hz, 70 cells, a quarter of the photons": {
        "height": 170,
        "width": 170,
        "n_frames": 3000,
        "n_cells": 70,
        "photons": 3,
    },
    "120 x 180 x 2000, 30 Hz, 50 cells, half the photons": {
        "height": 120,
        "width": 180,
        "n_frames": 2000,
        "n_cells": 50,
        "photons": 6,
    },
}

WAYS: tuple[dict[str, object], ...] = (
    {},
    {"initialization": "sparse_nmf"},
    {"initialization": "graph_nmf"},
    {"initialization": "pca_ica"},
    {"patch_size": 0},
    {"decimate_space": 2},
    {"background": "patches"},
    {"background": "low_rank"},
    {"background": "low_rank", "n_background": 4},
    {"background": "none"},
    {"support": "ellipse"},
    {"footprint_edge": "energy"},
    {"connected": False},
    {"ar_order": 0},
    {"ar_order": 2},
    {"penalized": True},
    {"merge": False},
    {"refinements": 0},
)
"""What is compared with ``--ways``."""


def main() -> None:
    """Print a row for each recording."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[401, 402, 403])
    parser.add_argument("--ways", action="store_true")
    parser.add_argument("--only", default="", help="part of the names of the recordings")
    arguments = parser.parse_args()
    seeds = arguments.seeds
    if arguments.ways:
        Console(width=140).print(compared(seeds))
        return
    table = Table(
        "recording", "seed", "F1", "precision", "recall", "r raw", "r denoised", "motion rms (px)"
    )
    for title, values in RECORDINGS.items():
        for seed in seeds if arguments.only in title else ():
            figures = scored(SimulationParameters.from_mapping({**values, "seed": seed}))
            table.add_row(title, str(seed), *figures)
    Console(width=140).print(table)


def compared(seeds: list[int]) -> Table:
    """Return a row for each way of source extraction, a figure for each seed."""
    figures: dict[str, list[list[str]]] = {}
    values = RECORDINGS["170 x 170 x 3000, 30 Hz, 70 cells"]
    for seed in seeds:
        simulation = simulate(SimulationParameters.from_mapping({**values, "seed": seed}))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "movie.zarr"
            save_movie(simulation.movie, Path(folder) / "movie.tif")
            for way in WAYS:
                recipe = Recipe({"import": {"frame_rate": 30.0}, "source_extraction": way})
                source = [Path(folder) / "movie.tif"]
                run(path, source, recipe=recipe, until="component_evaluation")
                name = ", ".join(f"{key} {value}" for key, value in way.items()) or "defaults"
                figures.setdefault(name, []).append(score_row(Session(path), simulation.truth))
    table = Table("way", "F1", "r raw", "r denoised", title="accepted cells, one figure per seed")
    for name, rows in figures.items():
        table.add_row(name, *[", ".join(row[column] for row in rows) for column in (0, 3, 4)])
    return table


def scored(parameters: SimulationParameters) -> list[str]:
    """Simulate, analyse and score one recording."""
    simulation = simulate(parameters)
    recipe = Recipe({"import": {"frame_rate": parameters.frame_rate}})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "movie.zarr"
        save_movie(simulation.movie, Path(folder) / "movie.tif")
        run(path, [Path(folder) / "movie.tif"], recipe=recipe)
        shifts = Session(path).read("motion_correction/shifts_rigid")
        row = score_row(Session(path), simulation.truth)
    return [*row, f"{motion_residual(shifts, simulation.truth):.3f}"]


def score_row(session: Session, truth: Truth) -> list[str]:
    """Return F1, precision, recall and the correlations of raw and denoised traces."""
    cells, accepted = session.components(), session.quality().accepted
    footprints, denoised = cells.footprints[:, accepted], cells.traces[accepted]
    score = score_cells(footprints, denoised + cells.residuals[accepted], truth)
    clean = score_cells(footprints, denoised, truth)
    figures = (score.f1, score.precision, score.recall, score.trace_correlation)
    return [f"{value:.3f}" for value in (*figures, clean.trace_correlation)]


def motion_residual(shifts: np.ndarray, truth: Truth) -> float:
    """Return the rms difference of the shifts from the true rigid ones, a constant free."""
    difference = shifts - truth.shifts
    return float(np.sqrt(np.mean((difference - difference.mean(axis=0)) ** 2)))


if __name__ == "__main__":
    main()
