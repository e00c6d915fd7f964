"""A small recording with known cells that moves, and its session with every stage finished."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run
from napari_calcium.simulation import SimulationParameters, simulate

FIELD = (37, 53)
N_FRAMES = 300
FRAME_RATE = 10.0
RECIPE = {
    "import": {"frame_rate": FRAME_RATE, "pixel_size": 1.5},
    "motion_correction": {"max_shift": 6},
    "summary_images": {"filter_radius": 4.0},
    "source_extraction": {"cell_radius": 4.0},
}
Contents = dict[str, NDArray[Any]]


@pytest.fixture(scope="session")
def frames() -> NDArray[np.uint16]:
    """Five cells that move by up to 2 px; three shards on disk, two tasks of most passes."""
    simulation = simulate(
        SimulationParameters(
            height=FIELD[0],
            width=FIELD[1],
            n_frames=N_FRAMES,
            frame_rate=FRAME_RATE,
            n_cells=5,
            cell_radius=4.0,
            n_out_of_focus=0,
            motion_rigid=2.0,
            motion_piecewise=0.0,
            photons=40.0,
            spike_rate=0.3,
            spike_amplitude=1.5,
            silent_fraction=0.0,
        )
    )
    values: NDArray[np.uint16] = simulation.movie.frames.compute()
    return values


@pytest.fixture(scope="session")
def tiff(frames: NDArray[np.uint16], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording as one TIFF file that does not say its frame rate."""
    path = tmp_path_factory.mktemp("recording") / "movie.tif"
    tifffile.imwrite(path, frames)
    return path


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """What suits the recording."""
    return Recipe(RECIPE)


@pytest.fixture(scope="session")
def finished(tiff: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session with every stage finished, by one worker; not to be changed."""
    path = tmp_path_factory.mktemp("finished") / "session.zarr"
    run(path, [tiff], recipe=recipe, workers=1)
    return path


@pytest.fixture
def session_path(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished session, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "session.zarr"))


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], Contents]:
    """Read every array of a session, by its name."""

    def read(path: Path) -> Contents:
        nodes = sorted(file.parent for file in path.rglob("zarr.json"))
        found = {node: zarr.open(node, mode="r") for node in nodes}
        return {
            node.relative_to(path).as_posix(): np.asarray(array[...])
            for node, array in found.items()
            if isinstance(array, zarr.Array)
        }

    return read


@pytest.fixture(scope="session")
def assert_identical(contents: Callable[[Path], Contents]) -> Callable[[Path, Path], None]:
    """Assert that two sessions hold the same arrays, of the same types, bit for bit."""

    def check(one: Path, other: Path) -> None:
        expected, found = contents(one), contents(other)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert found[name].dtype == values.dtype, name
            assert found[name].shape == values.shape, name
            assert found[name].tobytes() == values.tobytes(), name

    return check
