"""The preview of motion correction: the same numbers as the stage, and nothing left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from napari_calcium.errors import InputError
from napari_calcium.io.session import Session
from napari_calcium.motion.correction import MotionCorrectionParameters, correct
from napari_calcium.movie import Movie
from napari_calcium.pipeline import preview as module
from napari_calcium.pipeline.preview import preview, read_preview, recorded_movie, warm_up
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import Progress, run

FIELD = (37, 53)
START, STOP = 11, 71
PARAMETERS = MotionCorrectionParameters(max_shift=6, patch_size=32, patch_overlap=8)


def shaken(n_frames: int = 90, planes: int = 0) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Return a movie cropped from a larger scene that moves, and by what (time, (y, x))."""
    rng = np.random.default_rng(5)
    margin, depth = 8, max(1, planes)
    size = (depth, FIELD[0] + 2 * margin, FIELD[1] + 2 * margin)
    scene = 300 + 900 * gaussian_filter(rng.normal(size=size), (0.5, 1.5, 1.5))
    motion = rng.integers(-3, 4, (n_frames, 2))
    frames = np.stack(
        [
            scene[:, margin - y : margin - y + FIELD[0], margin - x : margin - x + FIELD[1]]
            for y, x in motion
        ]
    )
    noisy = rng.poisson(np.maximum(frames, 0)).astype(np.uint16)
    return (noisy if planes else noisy[:, 0]), motion


@pytest.fixture(scope="module")
def movie() -> Movie:
    return Movie(da.from_array(shaken()[0], chunks=(17, 20, 53)), 10.0)


@pytest.mark.parametrize("method", ["piecewise", "rigid", "none"])
def test_a_preview_is_what_correction_makes_of_the_stretch(
    movie: Movie, tmp_path: Path, method: Any
) -> None:
    parameters = replace(PARAMETERS, method=method)
    preview(movie, parameters, START, STOP, tmp_path)
    found = read_preview(tmp_path)
    stretch = replace(movie, frames=movie.frames[START:STOP])
    corrected, motion = correct(stretch, parameters)
    frames, shifts, quality = dask.compute(corrected.frames, motion.shifts, motion.quality)
    assert found.start == START
    assert found.frames.dtype == np.uint16
    np.testing.assert_array_equal(found.frames, frames)
    for name in ("rigid", "piecewise", "grid_y", "grid_x", "flagged"):
        np.testing.assert_array_equal(getattr(found.shifts, name), getattr(shifts, name))
    np.testing.assert_array_equal(found.before.correlation, quality.correlation)
    # the mean is summed in runs of another length: equal to rounding
    np.testing.assert_allclose(found.before.crispness, quality.crispness, rtol=1e-6)


def test_the_motion_is_undone(movie: Movie, tmp_path: Path) -> None:
    preview(movie, replace(PARAMETERS, method="rigid"), START, STOP, tmp_path)
    found = read_preview(tmp_path)
    truth = -shaken()[1][START:STOP]
    apart = found.shifts.rigid - truth
    # up to a constant, where the template lies; noise of 4 % of the contrast moves less than 0.1 px
    assert np.abs(apart - np.median(apart, axis=0)).max() < 0.1
    assert found.after.correlation.mean() > 0.9 > found.before.correlation.mean()
    assert found.after.crispness > found.before.crispness


@pytest.mark.parametrize("changed", [{"IN_MEMORY": 0}, {"workers": 1}, {"workers": 3}])
def test_it_does_not_depend_on_memory_or_workers(
    movie: Movie, tmp_path: Path, changed: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    preview(movie, PARAMETERS, START, STOP, tmp_path / "a")
    if "IN_MEMORY" in changed:
        monkeypatch.setattr(module, "IN_MEMORY", 0)
    preview(movie, PARAMETERS, START, STOP, tmp_path / "b", workers=changed.get("workers"))
    first, second = (read_preview(tmp_path / name) for name in "ab")
    np.testing.assert_array_equal(first.frames, second.frames)
    np.testing.assert_array_equal(first.shifts.piecewise, second.shifts.piecewise)


def test_crop_is_previewed_over_the_whole_field(movie: Movie, tmp_path: Path) -> None:
    for borders in ("nearest", "crop"):
        cropped = replace(PARAMETERS, borders=borders)
        preview(movie, cropped, START, STOP, tmp_path / borders)
    nearest, crop = (read_preview(tmp_path / each).frames for each in ("nearest", "crop"))
    assert crop.shape == (STOP - START, *FIELD)
    np.testing.assert_array_equal(nearest, crop)


def test_a_template_file_is_laid_under(movie: Movie, tmp_path: Path) -> None:
    moved = np.roll(np.asarray(movie.frames[START]), (2, -1), (0, 1))
    np.save(tmp_path / "template.npy", moved)
    given = replace(PARAMETERS, method="rigid", template_file=str(tmp_path / "template.npy"))
    preview(movie, given, START, STOP, tmp_path)
    shifts = read_preview(tmp_path).shifts.rigid
    np.testing.assert_allclose(shifts[0], (2, -1), atol=0.1)


def test_volumes_are_previewed(tmp_path: Path) -> None:
    frames, motion = shaken(40, planes=3)
    movie = Movie(da.from_array(frames, chunks=20), 5.0)
    preview(movie, replace(PARAMETERS, max_shift_z=1), 3, 40, tmp_path)
    found = read_preview(tmp_path)
    assert found.frames.shape == (37, 3, *FIELD)
    assert found.shifts.rigid.shape == (37, 3)
    apart = found.shifts.rigid[:, 1:] + motion[3:]
    assert np.abs(apart - np.median(apart, axis=0)).max() < 0.2


def test_a_stretch_too_short_for_a_template_is_refused(movie: Movie, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="the preview is of 0 frames from 20 on; choose at least 1"
    ):
        preview(movie, PARAMETERS, 20, 20, tmp_path)
    with pytest.raises(InputError, match="of 9 frames but makes its template from at least 10"):
        preview(movie, PARAMETERS, 20, 29, tmp_path)
    preview(movie, replace(PARAMETERS, method="none"), 20, 21, tmp_path)
    assert len(read_preview(tmp_path).frames) == 1


@pytest.mark.parametrize(("start", "stop"), [(-1, 20), (80, 91)], ids=["before", "after"])
def test_a_stretch_outside_of_the_recording_is_refused(
    movie: Movie, tmp_path: Path, start: int, stop: int
) -> None:
    with pytest.raises(InputError, match="the recording has 90; give a stretch within it"):
        preview(movie, PARAMETERS, start, stop, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(movie: Movie, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match=r"the preview cannot be written to .*taken"):
        preview(movie, PARAMETERS, START, STOP, tmp_path / "taken")


def test_the_session_stays_as_it_is(tmp_path: Path) -> None:
    path, session = tmp_path / "m.tif", tmp_path / "s.zarr"
    tifffile.imwrite(path, shaken()[0])
    run(session, [path], recipe=Recipe({"import": {"frame_rate": 10.0}}), until="import")
    files = {each: each.stat().st_mtime_ns for each in session.rglob("*")}
    reports: list[Progress] = []
    movie = recorded_movie(session, ["not looked at"])
    preview(movie, PARAMETERS, START, STOP, tmp_path / "p", progress=reports.append)
    assert {each: each.stat().st_mtime_ns for each in session.rglob("*")} == files
    assert {report.stage for report in reports} == {"motion_correction"}
    assert reports[-1].done == reports[-1].total
    assert Session(session).record("motion_correction") is None


def test_a_recording_that_is_not_imported_is_read_from_its_files(tmp_path: Path) -> None:
    frames = shaken()[0]
    tifffile.imwrite(tmp_path / "m.tif", frames)
    movie = recorded_movie(tmp_path / "none.zarr", [tmp_path / "m.tif"])
    np.testing.assert_array_equal(movie.frames[5].compute(), frames[5])
    with pytest.raises(InputError, match="holds no movie; open or import a recording"):
        recorded_movie("")


def test_a_second_preview_in_a_folder_leaves_the_first_as_it_was(
    movie: Movie, tmp_path: Path
) -> None:
    preview(movie, PARAMETERS, START, STOP, tmp_path)
    first = read_preview(tmp_path)
    seen = np.array(first.frames)
    preview(movie, PARAMETERS, 0, 30, tmp_path)
    np.testing.assert_array_equal(first.frames, seen)
    assert read_preview(tmp_path).frames.shape == (30, *FIELD)


def test_warming_up_needs_no_session() -> None:
    warm_up()
    warm_up("no session")
