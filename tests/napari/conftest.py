"""A small recording with known cells, its session, and what a window needs to show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from napari_calcium.io.session import Session
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run

FIELD = (37, 53)
N_FRAMES = 200
FRAME_RATE = 10.0
CENTRES = [(9, 12), (12, 38), (27, 17), (26, 42)]
SOFT = {
    "source_extraction": {"cell_radius": 4.0, "threshold": 8.0, "patch_size": 64},
}


def small_movie(n_frames: int = N_FRAMES, field: tuple[int, int] = FIELD) -> NDArray[np.uint16]:
    """Return four cells with transients, that move together, in Poisson noise."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[: field[0], : field[1]]
    decay = np.exp(-np.arange(60) / (0.6 * FRAME_RATE))
    drift = np.round(2 * np.sin(np.arange(n_frames) / 20)).astype(int)
    texture = 20 * np.cos(y / 3.1) * np.cos(x / 4.3)
    movie = np.broadcast_to(120 + texture, (n_frames, *field)).copy()
    for cy, cx in CENTRES:
        spikes = rng.random(n_frames) < 0.03
        trace = 20 + 150 * np.convolve(spikes, decay)[:n_frames]
        blob = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 2.5**2))
        movie += trace[:, None, None] * blob
    moved = np.stack([np.roll(m, d, axis=0) for m, d in zip(movie, drift, strict=True)])
    return rng.poisson(moved).astype(np.uint16)


@pytest.fixture(scope="session")
def movie_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording in a TIFF file that does not say its frame rate."""
    path = tmp_path_factory.mktemp("recording") / "blobs.tif"
    tifffile.imwrite(path, small_movie())
    return path


@pytest.fixture(scope="session")
def finished(movie_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of that recording with all stages finished; not to be changed."""
    path = tmp_path_factory.mktemp("session") / "blobs.zarr"
    recipe = Recipe(SOFT).with_value("import.frame_rate", FRAME_RATE)
    run(path, [movie_path], recipe=recipe)
    return path


@pytest.fixture(scope="session")
def cropped(movie_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of that recording whose corrected movie is cropped; not to be changed."""
    path = tmp_path_factory.mktemp("session") / "cropped.zarr"
    correction = {"borders": "crop", "patch_size": 32, "patch_overlap": 8}
    recipe = Recipe({"import": {"frame_rate": FRAME_RATE}, "motion_correction": correction})
    run(path, [movie_path], recipe=recipe, until="motion_correction")
    return path


@pytest.fixture
def session(finished: Path) -> Session:
    return Session(finished)


@pytest.fixture
def notifications() -> Any:
    """The notifications since the test began, as texts."""
    from napari.utils.notifications import notification_manager

    before = len(notification_manager.records)
    return lambda: [str(record.message) for record in notification_manager.records[before:]]
