"""Score motion correction on simulated recordings of seeds that nothing was tuned on.

    python benchmarks/score_motion.py [--seeds 301 302 303] [--real FOLDER]

What is left is the root mean square, over frames, patches and both axes, of the difference between
the shift found at a patch's centre and the true one there, a constant for each patch free. "field"
is the same on a grid of 10 px over the whole field, between the patches too. The true shift at a
place of the corrected frame is that of the content which lies there after the correction. All
parameters are the defaults. ``--real`` takes the folder with the TIFF files of a real recording,
moves crops of it by known whole pixels, and says how well these are found.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import dask
import dask.array as da
import numpy as np
from rich.console import Console
from rich.table import Table

from napari_calcium.io.recording import open_recording
from napari_calcium.io.session import Session
from napari_calcium.motion.correction import MotionCorrectionParameters, estimate_motion
from napari_calcium.movie import Movie
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run, save_movie
from napari_calcium.shifts import Shifts
from napari_calcium.simulation import SimulationParameters, simulate
from napari_calcium.truth import Truth

RECORDINGS = {
    "96 x 128 x 1000": {"height": 96, "width": 128, "n_frames": 1000, "n_cells": 30},
    "170 x 170 x 3000": {"height": 170, "width": 170, "n_frames": 3000, "n_cells": 70},
    "200 x 320 x 1000": {"height": 200, "width": 320, "n_frames": 1000, "n_cells": 120},
    "512 x 512 x 2000": {"height": 512, "width": 512, "n_frames": 2000, "n_cells": 342},
}
PHOTONS = (1, 2, 4, 8, 16, 32)
MARGIN, LARGEST = 30, 6
"""What is cut off the real recording on each side, and the largest shift added, px."""


def main() -> None:
    """Print a table for the recordings, one for the photons, and one for a real recording."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[301, 302, 303])
    parser.add_argument("--real", type=Path)
    arguments = parser.parse_args()
    console = Console(width=110)
    head = ("seed", "patches", "field", "with one shift per frame")
    table = Table("recording, 12 photons/px, 1.5 px of motion", *head)
    for title, values in RECORDINGS.items():
        for seed in arguments.seeds:
            table.add_row(title, str(seed), *scored({**values, "photons": 12, "seed": seed}))
    console.print(table)
    table = Table("photons/px, 200 x 320 x 1000", *head)
    for photons in PHOTONS:
        values = {**RECORDINGS["200 x 320 x 1000"], "photons": photons}
        for seed in arguments.seeds:
            table.add_row(str(photons), str(seed), *scored({**values, "seed": seed}))
    console.print(table)
    if arguments.real:
        console.print(injected(arguments.real))


def scored(values: dict) -> list[str]:
    """Simulate and correct one recording; return what is left, px."""
    simulation = simulate(SimulationParameters.from_mapping({"motion_rigid": 1.5, **values}))
    recipe = Recipe({"import": {"frame_rate": 30.0}})
    with tempfile.TemporaryDirectory() as folder:
        save_movie(simulation.movie, Path(folder) / "movie.tif")
        path = Path(folder) / "movie.zarr"
        run(path, [Path(folder) / "movie.tif"], recipe=recipe, until="motion_correction")
        shifts = Session(path).shifts()
    return [f"{value:.3f}" for value in what_is_left(shifts, simulation.truth)]


def what_is_left(shifts: Shifts, truth: Truth) -> tuple[float, float, float]:
    """Return what is left at the patches' centres, over the field, and with one shift a frame."""
    height, width = shifts.field
    y, x = np.arange(5.0, height - 5, 10), np.arange(5.0, width - 5, 10)
    wanted = true_shifts(truth, y, x)
    rigid = rms(shifts.rigid[:, None, None] - wanted)
    along_y, along_x = weights(shifts.grid_y, y), weights(shifts.grid_x, x)
    field = np.einsum("ij,tjkc,lk->tilc", along_y, shifts.piecewise, along_x)
    centres = true_shifts(truth, shifts.grid_y, shifts.grid_x)
    return rms(shifts.piecewise - centres), rms(field - wanted), rigid


def true_shifts(truth: Truth, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the true shifts (time, y, x, 2) at places of the corrected frames."""
    places = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)
    shifts = np.zeros((len(truth.shifts), *places.shape))
    for _ in range(5):  # the content that lies here now lay where the shift has taken it from
        shifts = np.stack([bilinear(truth, f, places - s) for f, s in enumerate(shifts)])
    return shifts


def bilinear(truth: Truth, frame: int, places: np.ndarray) -> np.ndarray:
    """Return one frame's true shifts at places (y, x, 2) of the frame."""
    rows, columns = places[..., 0].ravel(), places[..., 1].ravel()
    along_y, along_x = weights(truth.grid_y, rows), weights(truth.grid_x, columns)
    values = np.einsum("nj,jkc,nk->nc", along_y, truth.shifts_piecewise[frame], along_x)
    return values.reshape(places.shape)


def weights(nodes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return weights (place, node) of linear interpolation, constant beyond the ends."""
    return np.stack([np.interp(places, nodes, unit) for unit in np.eye(len(nodes))], axis=1)


def rms(difference: np.ndarray) -> float:
    """Return the root mean square, a constant over time free."""
    return float(np.sqrt(np.mean((difference - difference.mean(axis=0)) ** 2)))


def injected(folder: Path) -> Table:
    """Move crops of a real recording by known whole px and compare what is found."""
    recording = open_recording(sorted(folder.glob("*.tif")))
    frames = recording.frames.compute()
    random = np.random.default_rng(5)
    shifts = np.rint(np.cumsum(random.normal(0, 1.5, (len(frames), 2)), axis=0))
    shifts = np.rint(LARGEST * np.sin(shifts / 6)).astype(int)
    table = Table("real recording, known whole px added", "rms added", "rms left", "largest left")
    for method in ("rigid", "piecewise"):
        still, moved = (found(crops(frames, each), method) for each in (0 * shifts, shifts))
        left = moved - still - shifts.reshape(len(frames), *[1] * (still.ndim - 2), 2)
        left = left - left.mean(axis=0)
        figures = np.sqrt(np.mean(shifts**2)), rms(left), np.abs(left).max()
        table.add_row(method, *(f"{value:.3f}" for value in figures))
    return table


def crops(frames: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Return crops of frames whose content lies `shifts` too far up and left."""
    height, width = frames.shape[1] - 2 * MARGIN, frames.shape[2] - 2 * MARGIN
    starts = MARGIN + shifts
    moved = [f[y : y + height, x : x + width] for f, (y, x) in zip(frames, starts, strict=True)]
    return np.stack(moved)


def found(frames: np.ndarray, method: str) -> np.ndarray:
    """Return the shifts found, (time, 2) or (time, grid_y, grid_x, 2)."""
    movie = Movie(da.from_array(frames, chunks=(128, *frames.shape[1:])), frame_rate=7.0)
    motion = estimate_motion(movie, MotionCorrectionParameters(method=method))
    (shifts,) = dask.compute(motion.shifts)
    return shifts.rigid if shifts.piecewise is None else shifts.piecewise


if __name__ == "__main__":
    main()
