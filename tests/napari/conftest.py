"""A small recording with known cells, its session, and what a window needs to show them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import tifffile
from numpy.typing import NDArray

from napari_calcium.components import Background, Components
from napari_calcium.io.session import (
    Session,
    StageRecord,
    components_attrs,
    components_to_arrays,
    stage_digest,
)
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run
from napari_calcium.spikes.guards import Mark, mark_words

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
    """A session of that recording up to dF/F, without spikes; not to be changed."""
    path = tmp_path_factory.mktemp("session") / "blobs.zarr"
    recipe = Recipe(SOFT).with_value("import.frame_rate", FRAME_RATE)
    for until in ("summary_images", "component_evaluation", "dff"):
        run(path, [movie_path], recipe=recipe, until=until)
    return path


@pytest.fixture(scope="session")
def cropped(movie_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of that recording whose corrected movie is cropped; not to be changed."""
    path = tmp_path_factory.mktemp("session") / "cropped.zarr"
    correction = {"borders": "crop", "patch_size": 32, "patch_overlap": 8}
    recipe = Recipe({"import": {"frame_rate": FRAME_RATE}, "motion_correction": correction})
    run(path, [movie_path], recipe=recipe, until="motion_correction")
    return path


def write_stage(
    path: Path, stage: str, needs: tuple[str, ...], arrays: Any, attrs: Any = None, **given: Any
) -> None:
    """Write a stage's group as if it had run."""
    session, groups = Session(path), {"import": "movie"}
    inputs = {need: session.record(groups.get(need, need)).digest for need in needs}
    digest = stage_digest(stage, {**given, "shapes": str(attrs)[:200]}, inputs)
    with session.writing(groups.get(stage, stage)) as writer:
        for name, values in arrays.items():
            writer.write(name, values)
        for name, values in (attrs or {}).items():
            writer.attrs(name, values)
        writer.commit(StageRecord(stage, given, inputs or {"source": "none"}, digest, {}))


def write_rates(
    path: Path, rate: Any, noise_level: Any, marks: Any = None, **attrs: Any
) -> Session:
    """Write what spike inference would find, made of `dff` as it is now."""
    marks = np.zeros(len(rate), np.uint8) if marks is None else np.asarray(marks, np.uint8)
    arrays = {
        "rate": np.asarray(rate, np.float32),
        "noise_level": np.asarray(noise_level, np.float32),
        "marks": marks,
    }
    about = {"model": "excitatory", "noise_levels": [1.0, 8.0], "frame_rates": [5.0, 60.0]}
    meanings = {str(int(mark)): mark_words(mark) for mark in Mark}
    said = {"": {**about, **attrs}, "marks": {"meanings": meanings}}
    write_stage(path, "spike_inference", ("dff",), arrays, said)
    return Session(path)


def many_cells(path: Path, n_cells: int, n_frames: int) -> Path:
    """Make a session of many cells with rates and without a movie; none was judged."""
    side = int(np.ceil(np.sqrt(n_cells)))
    field = (4 * side, 4 * side + 7)
    y, x = (4 * each for each in np.divmod(np.arange(n_cells), side))
    pixels = np.stack([(y + dy) * field[1] + x + dx for dy in (0, 1) for dx in (0, 1)])
    columns = np.tile(np.arange(n_cells), (4, 1))
    weights = np.full(pixels.size, 0.5, np.float32)
    shape = (field[0] * field[1], n_cells)
    footprints = sp.csc_array((weights, (pixels.ravel(), columns.ravel())), shape)
    rng = np.random.default_rng(0)
    none = np.zeros((n_cells, n_frames), np.float32)
    still = Background(sp.csc_array(np.ones((shape[0], 1))), np.ones((1, n_frames), np.float32))
    cells = Components(footprints, field, none, none, none, still, np.arange(n_cells))
    Session.create(path, {"source": []})
    write_stage(path, "import", (), {}, frame_rate=FRAME_RATE, pixel_size=0.0)
    arrays, attrs = components_to_arrays(cells), components_attrs(cells)
    write_stage(path, "source_extraction", (), arrays, attrs, cell_radius=2.0)
    change = {"traces": 0.1 * rng.standard_normal(none.shape, np.float32)}
    change |= {"baseline": none + 100, "floored": np.zeros(n_cells, bool)}
    write_stage(path, "dff", ("source_extraction",), change)
    rate = rng.exponential(2.0, none.shape) * (rng.random(none.shape) < 0.05)
    rate[:, :8] = rate[:, n_frames - 8 :] = np.nan
    write_rates(path, rate, rng.uniform(1, 9, n_cells))
    return path


@pytest.fixture(name="write_rates")
def _write_rates() -> Any:
    return write_rates


@pytest.fixture(name="many_cells")
def _many_cells() -> Any:
    return many_cells


@pytest.fixture
def rated(finished: Path, tmp_path: Path) -> Session:
    """A copy of that session with rates that are known, and of which the ends are not."""
    path = Path(shutil.copytree(finished, tmp_path / "rated.zarr"))
    n_cells, n_frames = Session(path).array("dff/traces").shape
    rate = np.random.default_rng(2).exponential(size=(n_cells, n_frames))
    rate[:, :8] = rate[:, n_frames - 8 :] = np.nan
    noise_level = np.linspace(2, 9, n_cells)
    return write_rates(path, rate, noise_level, Mark.TOO_NOISY * (noise_level > 8))


@pytest.fixture
def session(finished: Path) -> Session:
    return Session(finished)


@pytest.fixture
def notifications() -> Any:
    """The notifications since the test began, as texts."""
    from napari.utils.notifications import notification_manager

    before = len(notification_manager.records)
    return lambda: [str(record.message) for record in notification_manager.records[before:]]
