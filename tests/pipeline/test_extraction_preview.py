"""The preview of source extraction: what a run finds in one patch, and nothing left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.extraction.cnmf import SourceExtractionParameters, extract_sources
from napari_calcium.io.session import Session
from napari_calcium.movie import Movie
from napari_calcium.pipeline import extraction_preview as module
from napari_calcium.pipeline.extraction_preview import (
    corrected_movie,
    patch_at,
    preview_extraction,
    read_extraction_preview,
    warm_up_extraction,
)
from napari_calcium.pipeline.run import Progress

FIELD = (37, 113)
CENTRES = [(9, 12), (25, 40), (12, 70), (28, 98)]
PARAMETERS = SourceExtractionParameters(
    cell_radius=3.5, threshold=8.0, patch_size=64, patch_overlap=14
)


def active(n_frames: int = 300) -> NDArray[np.uint16]:
    """Return four cells in Poisson noise, two in each of the patches of 37 x 56 px."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[: FIELD[0], : FIELD[1]]
    decay = np.exp(-np.arange(50) / 6.0)
    movie = np.full((n_frames, *FIELD), 80.0)
    for centre_y, centre_x in CENTRES:
        trace = 15 + 90 * np.convolve(rng.random(n_frames) < 0.04, decay)[:n_frames]
        disc = np.hypot(y - centre_y, x - centre_x) < 3.5
        movie += trace[:, None, None] * disc
    return rng.poisson(movie).astype(np.uint16)


@pytest.fixture(scope="module")
def movie() -> Movie:
    return Movie(da.from_array(active(), chunks=(70, 20, 113)), 10.0)


def previewed(movie: Movie, folder: Path, point: tuple[float, float], **options: Any) -> Any:
    parameters = options.pop("parameters", PARAMETERS)
    preview_extraction(movie, parameters, point, folder, **options)
    return read_extraction_preview(folder)


def centres(found: Any) -> list[tuple[int, int]]:
    """Return where the cells of a preview are in the field."""
    pixels = found.footprints.argmax(axis=0)
    y, x = np.divmod(np.ravel(pixels), found.shape[1])
    weights = sp.csc_array(found.footprints / found.footprints.sum(axis=0))
    grid = np.indices(found.shape).reshape(2, -1)
    places = (grid @ weights).T + found.offset
    assert len(y) == len(x) == len(places)
    return sorted((round(float(row)), round(float(column))) for row, column in places)


def test_one_patch_is_what_a_run_finds(movie: Movie, tmp_path: Path) -> None:
    parameters = replace(PARAMETERS, patch_size=128)
    found = previewed(movie, tmp_path, (20, 60), parameters=parameters)
    expected = extract_sources(movie, parameters).compute()
    assert found.n_cells == 4
    assert (found.offset, found.shape) == ((0, 0), FIELD)
    np.testing.assert_array_equal(found.footprints.toarray(), expected.footprints.toarray())
    np.testing.assert_array_equal(found.traces, expected.traces)
    assert found.summary.startswith("4 cells of ")


@pytest.mark.parametrize(
    ("point", "expected"),
    [((30.0, 20.0), [(9, 12), (25, 40)]), ((2.0, 80.4), [(12, 70), (28, 98)])],
    ids=["left", "right"],
)
def test_the_patch_of_the_point_is_previewed_where_it_lies(
    movie: Movie, tmp_path: Path, point: tuple[float, float], expected: list[tuple[int, int]]
) -> None:
    found = previewed(movie, tmp_path, point)
    assert centres(found) == expected
    left, right = (0, 70) if point[1] < 56 else (42, 113)
    assert (found.offset, found.shape) == ((0, left), (37, right - left))
    assert found.traces.shape == (2, 300)
    crop = replace(movie, frames=movie.frames[:, :, left:right])
    alone = extract_sources(crop, replace(PARAMETERS, patch_size=0)).compute()
    np.testing.assert_array_equal(found.footprints.toarray(), alone.footprints.toarray())
    np.testing.assert_array_equal(found.traces, alone.traces)


@pytest.mark.parametrize("changed", [{"IN_MEMORY": 0}, {"workers": 1}, {"workers": 3}])
def test_it_does_not_depend_on_memory_or_workers(
    movie: Movie, tmp_path: Path, changed: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = previewed(movie, tmp_path / "a", (9, 9))
    if "IN_MEMORY" in changed:
        monkeypatch.setattr(module, "IN_MEMORY", 0)
    second = previewed(movie, tmp_path / "b", (9, 9), workers=changed.get("workers"))
    np.testing.assert_array_equal(first.footprints.toarray(), second.footprints.toarray())
    np.testing.assert_array_equal(first.traces, second.traces)


def test_a_stretch_of_frames_is_previewed(movie: Movie, tmp_path: Path) -> None:
    found = previewed(movie, tmp_path, (9, 9), time=slice(40, 240))
    assert found.time == slice(40, 240)
    assert found.traces.shape[1] == 200
    whole = previewed(movie, tmp_path, (9, 9))
    assert whole.time == slice(0, 300)


@pytest.mark.parametrize("time", [slice(-1, 20), slice(20, 20), slice(250, 301)])
def test_a_stretch_outside_of_the_movie_is_refused(
    movie: Movie, tmp_path: Path, time: slice
) -> None:
    with pytest.raises(InputError, match="but the movie has 300; give a stretch within it"):
        preview_extraction(movie, PARAMETERS, (9, 9), tmp_path, time=time)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("point", "core"),
    [
        ((-40.0, -3.0), (0, 0)),
        ((36.6, 56.4), (0, 0)),  # the pixel 56 is the last of the first patch
        ((18.0, 56.6), (0, 57)),
        ((500.0, 500.0), (0, 57)),
    ],
)
def test_points_outside_count_for_the_nearest_patch(
    point: tuple[float, float], core: tuple[int, int]
) -> None:
    parameters = SourceExtractionParameters(cell_radius=3.5, patch_size=60, patch_overlap=5)
    patch = patch_at((37, 114), parameters, point)
    assert (patch.core[0].start, patch.core[1].start) == core


def test_a_patch_too_large_for_a_preview_is_previewed_in_part() -> None:
    large = SourceExtractionParameters(cell_radius=5, patch_size=400)
    patch = patch_at((300, 700), large, (290, 349))
    assert patch.core == (slice(172, 300), slice(222, 350))  # two patches of 350 px
    assert patch.halo == (slice(152, 300), slice(202, 370))
    cells = replace(large, cell_radius=20.0)
    assert patch_at((300, 700), cells, (100, 100)).core == (slice(0, 256), slice(0, 256))
    counted = replace(large, n_cells=7)  # so many in each whole patch
    assert patch_at((300, 700), counted, (290, 349)).core == (slice(0, 300), slice(0, 350))


def test_seeds_in_the_patch_are_taken(movie: Movie, tmp_path: Path) -> None:
    y, x = np.mgrid[: FIELD[0], : FIELD[1]]
    images = [np.hypot(y - cy, x - cx) < 3 for cy, cx in CENTRES]
    seeds = sp.csc_array(np.reshape(images, (4, -1)).T.astype(np.float32))
    parameters = replace(
        PARAMETERS, initialization="seeds", seeds_file="drawn.zip", patch_overlap=10
    )
    found = previewed(movie, tmp_path, (9, 9), parameters=parameters, seeds=seeds)
    assert centres(found) == CENTRES[:2]
    first, other = sp.csc_array(seeds[:, :1]), sp.csc_array((7, 1), dtype=np.float32)
    with pytest.raises(InputError, match="no seed lies at y 0 to 36, x 46 to 112 px"):
        preview_extraction(movie, parameters, (9, 99), tmp_path, seeds=first)
    with pytest.raises(InputError, match="seeds have 7 pixels but the field is 37 x 113 px"):
        preview_extraction(movie, parameters, (9, 9), tmp_path, seeds=other)
    with pytest.raises(InputError, match="initialization is 'greedy' but seeds are given"):
        preview_extraction(movie, PARAMETERS, (9, 9), tmp_path, seeds=seeds)


def test_no_cells_is_a_preview_that_says_why(movie: Movie, tmp_path: Path) -> None:
    high = replace(PARAMETERS, threshold=1000.0)
    found = previewed(movie, tmp_path, (9, 9), parameters=high)
    assert found.n_cells == 0
    assert found.traces.shape == (0, 300)
    assert found.summary.startswith("No cells: no place reached the threshold of 1000 sd")


def test_what_cannot_be_previewed_is_said(movie: Movie, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match=r"the preview cannot be written to .*taken"):
        preview_extraction(movie, PARAMETERS, (9, 9), tmp_path / "taken")
    with pytest.raises(InputError, match="cell_radius is 20 px but the field is only 37 x 113"):
        preview_extraction(movie, replace(PARAMETERS, cell_radius=20.0), (9, 9), tmp_path)
    volumes = Movie(da.zeros((20, 3, 37, 53), dtype="uint16"), 10.0)
    with pytest.raises(InputError, match="takes movies of one plane but the recording has 3"):
        preview_extraction(volumes, PARAMETERS, (9, 9), tmp_path)


def test_the_session_stays_as_it_is(finished: Path, tmp_path: Path) -> None:
    files = {each: each.stat().st_mtime_ns for each in finished.rglob("*")}
    reports: list[Progress] = []
    movie = corrected_movie(finished)
    found = previewed(movie, tmp_path, (18, 26), progress=reports.append)
    assert {each: each.stat().st_mtime_ns for each in finished.rglob("*")} == files
    assert found.shape == (37, 53)
    assert {report.stage for report in reports} == {"source_extraction"}
    assert reports[-1].done == reports[-1].total


def test_a_session_without_a_corrected_movie_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="session is not given; import a recording"):
        corrected_movie("")
    empty = Session.create(tmp_path / "s.zarr", {})
    with pytest.raises(InputError, match="has no motion_correction/frames; run motion_correction"):
        corrected_movie(empty.path)


def test_warming_up_needs_no_session() -> None:
    warm_up_extraction()
