"""Score dF/F on simulated recordings, whose light at rest and whose offset are known.

    python benchmarks/score_dff.py [--seeds 401 402 403]

Each recording of 170 x 170 px, 3000 frames at 30 Hz and 70 cells, bleached by 30 %, is analysed
with the defaults; then dF/F is taken of its accepted cells in several ways. True is a cell's change
of light, as a fraction of all light at rest in its footprint. Slope is that of dF/F over it (1 is
right; median and the tenths of the cells beyond which it lies), r their correlation, and rest the
median of dF/F where the truth is below a hundredth.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from dask.delayed import delayed
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from napari_calcium.activity.dff import DffParameters, dff_components
from napari_calcium.io.session import Session
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run, save_movie
from napari_calcium.simulation import SimulationParameters, simulate
from napari_calcium.truth import Truth

BLEACHING, OFFSET = 0.3, 200.0
RECORDING = {"height": 170, "width": 170, "n_frames": 3000, "n_cells": 70, "bleaching": BLEACHING}
ALIKE = 0.7
"""Cosine of footprints above which a cell is the true one."""

KNOWN = {"dark_level": OFFSET}
WAYS = {
    "defaults, offset not given": {},
    "offset given": KNOWN,
    "denoised": {**KNOWN, "output": "denoised"},
    "8th percentile": {**KNOWN, "percentile": 8.0},
    "whole recording": {**KNOWN, "window": 0.0},
    "whole recording, exponential": {**KNOWN, "window": 0.0, "bleaching": "exponential"},
    "whole recording, polynomial": {**KNOWN, "window": 0.0, "bleaching": "polynomial"},
    "ring": {**KNOWN, "neuropil": "ring"},
}
Doubles = NDArray[np.float64]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[401, 402, 403])
    arguments = parser.parse_args()
    found: dict[str, list[Doubles]] = {way: [] for way in WAYS}
    for seed in arguments.seeds:
        for way, scores in scores_of(seed).items():
            found[way].append(scores)
    table = Table(title=f"dF/F, seeds {' '.join(map(str, arguments.seeds))}")
    for heading in ("", "cells", "slope", "tenths", "r", "rest"):
        table.add_column(heading)
    for way, scores in found.items():
        slope, r, rest = np.concatenate(scores, axis=1)
        low, middle, high = np.percentile(slope, (10, 50, 90))
        spread = f"{low:.2f} to {high:.2f}"
        medians = f"{np.median(r):.3f}", f"{np.median(rest):+.4f}"
        table.add_row(way, str(slope.size), f"{middle:.2f}", spread, *medians)
    Console().print(table)


def scores_of(seed: int) -> dict[str, Doubles]:
    """Analyse a recording, and return slope, correlation and rest (3, cell) for each way."""
    simulation = simulate(SimulationParameters(**RECORDING, offset=OFFSET, seed=seed))
    with tempfile.TemporaryDirectory() as folder:
        tiff, path = Path(folder) / "movie.tif", Path(folder) / "movie.zarr"
        save_movie(simulation.movie, tiff)
        recipe = Recipe({"import": {"frame_rate": simulation.movie.frame_rate}})
        run(path, [tiff], recipe=recipe, until="component_evaluation")
        session = Session(path)
        components, accepted = session.components(), session.quality().accepted
        cells, true = matched(simulation.truth, components.footprints, accepted)
        movie = session.movie("motion_correction/frames")
        return {
            way: scored(
                dff_components(
                    movie, delayed(components), movie.frame_rate, DffParameters(**values)
                )
                .compute()
                .traces[cells],
                true,
            )
            for way, values in WAYS.items()
        }


def matched(
    truth: Truth, footprints: object, accepted: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], Doubles]:
    """Return the accepted cells that are true ones, and the true dF/F of each (cell, time)."""
    cosine = (footprints.T @ truth.footprints).toarray()
    best = cosine.argmax(axis=1)
    cells = np.flatnonzero(accepted & (cosine.max(axis=1) > ALIKE))
    n_frames = truth.traces.shape[1]
    left = (1 - BLEACHING) ** np.linspace(0, 1, n_frames)
    light = truth.traces.astype(np.float64) / left
    at_rest = truth.footprints.T @ (truth.template.ravel().astype(np.float64) - OFFSET)
    change = (light - light.min(axis=1, keepdims=True)) / at_rest[:, None]
    return cells, change[best[cells]]


def scored(found: NDArray[np.float32], true: Doubles) -> Doubles:
    """Return slope, correlation and rest (3, cell)."""
    scores = []
    for one, other in zip(found.astype(np.float64), true, strict=True):
        slope = np.polyfit(other, one, 1)[0]
        rest = np.median(one[other < 0.01]) if np.any(other < 0.01) else np.nan
        scores.append((slope, np.corrcoef(one, other)[0, 1], rest))
    return np.array(scores).T


if __name__ == "__main__":
    main()
