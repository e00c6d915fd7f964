"""Make the sample recording and its truth, both beside this script.

The files are the same bytes each time: they hold no date and no name of software.
"""

from __future__ import annotations

from pathlib import Path

import tifffile

from napari_calcium.simulation import SimulationParameters, simulate
from napari_calcium.truth import save_truth

SAMPLE = SimulationParameters(
    height=96,
    width=128,
    n_frames=800,
    frame_rate=15.0,
    n_cells=28,
    spike_amplitude=0.8,
    motion_rigid=3.0,
    motion_piecewise=0.6,
    photons=13.0,
    gain=2.0,
    read_noise=2.0,
    offset=50.0,
    seed=5,
)


def make_sample(folder: Path) -> None:
    """Write ``sample.tif`` (time, y, x) and ``sample_truth.npz`` into a folder."""
    simulation = simulate(SAMPLE)
    tifffile.imwrite(
        folder / "sample.tif",
        simulation.movie.frames.compute(),
        imagej=True,
        compression="zlib",
        compressionargs={"level": 9},
        software=False,
        datetime=None,
        metadata={"axes": "TYX", "finterval": 1 / SAMPLE.frame_rate, "unit": "pixel"},
    )
    save_truth(simulation.truth, folder / "sample_truth.npz")


if __name__ == "__main__":
    make_sample(Path(__file__).parent)
