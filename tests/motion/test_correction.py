"""Motion correction as a graph: lazy, the same whatever the chunks and workers, and right."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest

from napari_calcium.errors import InputError
from napari_calcium.motion.correction import (
    MotionCorrectionParameters,
    apply_shifts,
    correct,
)
from napari_calcium.motion.shifts import estimate_shifts, shift_frames
from napari_calcium.movie import Movie

PARAMETERS = MotionCorrectionParameters(max_shift=10, template_frames=40, template_passes=3)


def raises(*args, **kwargs):
    raise AssertionError("the builder computed")


def computed(correction):
    return dask.compute(correction.movie.frames, correction.shifts, correction.template)


@pytest.fixture
def places():
    rng = np.random.default_rng(1)
    return (0.3 * rng.normal(size=(300, 2)) + rng.normal(size=(1, 2))).cumsum(axis=0) % 8 - 4


@pytest.fixture
def recording(film, places):
    return film((37, 53), places, photons=40)


def test_motion_is_undone(film, places):
    frames = film((96, 128), places[:80], photons=20)
    still = film((96, 128), [(0, 0)])[0]
    corrected, shifts, _ = computed(correct(Movie(da.from_array(frames), 30.0), PARAMETERS))
    error = shifts + places[:80]
    # 0.04 px per axis of photon noise for a known template; the whole's place is free
    assert error.std(axis=0).max() < 0.06
    place = -error.mean(axis=0, keepdims=True)
    expected = shift_frames(still[None], -place)[0][10:-10, 10:-10]
    mean = corrected.mean(axis=0)[10:-10, 10:-10]
    assert np.corrcoef(mean.ravel(), expected.ravel())[0, 1] > 0.99
    assert np.corrcoef(frames.mean(axis=0)[10:-10, 10:-10].ravel(), expected.ravel())[0, 1] < 0.95


def test_a_second_channel_is_moved_by_the_shifts_of_the_first(film, places):
    first = Movie(da.from_array(film((96, 128), places[:40], seed=0)), 30.0)
    second = Movie(da.from_array(film((96, 128), places[:40], seed=5)), 15.0, pixel_size=2.0)
    moved = apply_shifts(second, correct(first, PARAMETERS).shifts)
    frames = moved.frames.compute()[:, 12:-12, 12:-12]
    # what varies in time is what cubic resampling leaves, 3 % of the scene's contrast
    assert frames.std(axis=0).mean() < 0.05 * frames.mean(axis=0).std()
    assert (moved.frame_rate, moved.pixel_size) == (15.0, 2.0)


@pytest.mark.parametrize("chunks", [(1, 37, 53), (77, 20, 53), (300, 37, 10)])
def test_the_result_does_not_depend_on_the_chunks(recording, chunks):
    whole = computed(correct(Movie(da.from_array(recording), 30.0), PARAMETERS))
    cut = computed(correct(Movie(da.from_array(recording, chunks=chunks), 30.0), PARAMETERS))
    for expected, got in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_the_result_does_not_depend_on_the_workers(recording):
    correction = correct(Movie(da.from_array(recording, chunks=(50, 37, 53)), 30.0), PARAMETERS)
    with dask.config.set(scheduler="sync"):
        expected = computed(correction)
    for workers in (1, 2):
        with dask.config.set(scheduler="threads", num_workers=workers):
            for one, other in zip(expected, computed(correction), strict=True):
                np.testing.assert_array_equal(other, one)


def test_blocks_of_the_result_are_the_callers(recording):
    movie = Movie(da.from_array(recording, chunks=(70, 20, 53)), 30.0)
    shifts = estimate_shifts(movie, dask.delayed(recording[0]), PARAMETERS)
    default, aligned = apply_shifts(movie, shifts).frames, apply_shifts(movie, shifts, 90).frames
    assert default.chunks == ((128, 128, 44), (37,), (53,))
    assert aligned.chunks == ((90, 90, 90, 30), (37,), (53,))
    np.testing.assert_array_equal(default.compute(), aligned.compute())


@pytest.mark.parametrize("method", ["rigid", "none"])
def test_building_computes_nothing(recording, method):
    movie = Movie(da.from_array(recording, chunks=(50, 37, 53)), 30.0)
    with dask.config.set(scheduler=raises):
        correction = correct(movie, MotionCorrectionParameters(method=method, max_shift=10))
    assert correction.movie.frames.shape == recording.shape
    assert correction.shifts.shape == (300, 2)
    assert correction.shifts.dtype == np.float32


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("uint16", 33000, 65535), ("int16", -32768, -5), ("float32", 0, 1)]
)
def test_method_none_changes_nothing(kind, low, high):
    rng = np.random.default_rng(0)
    frames = rng.uniform(low, high, size=(300, 37, 53)).astype(kind)
    parameters = MotionCorrectionParameters(method="none", template_frames=300)
    got, shifts, template = computed(correct(Movie(da.from_array(frames), 30.0), parameters))
    np.testing.assert_array_equal(got, frames)
    assert got.dtype == kind
    np.testing.assert_array_equal(shifts, np.zeros((300, 2), np.float32))
    np.testing.assert_allclose(template, frames.mean(axis=0, dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize(("kind", "value"), [("uint16", 65535), ("int16", -300), ("float32", 0.1)])
def test_constant_movies_stay_as_they_are(kind, value):
    frames = np.full((20, 37, 53), value, kind)
    got, shifts, template = computed(correct(Movie(da.from_array(frames), 30.0), PARAMETERS))
    np.testing.assert_array_equal(got, frames)
    np.testing.assert_array_equal(shifts, 0)
    np.testing.assert_allclose(template, value, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "scale", "offset"), [("uint16", 100, 33000), ("int16", 40, -9000)]
)
def test_a_still_movie_keeps_its_type_and_values(film, kind, scale, offset):
    frame = (film((37, 53), [(0, 0)]) * scale + offset).astype(kind)
    frames = np.repeat(frame, 30, axis=0)
    got, shifts, _ = computed(correct(Movie(da.from_array(frames), 30.0), PARAMETERS))
    np.testing.assert_array_equal(got, frames)
    np.testing.assert_array_equal(shifts, 0)
    assert got.dtype == kind


def test_one_frame_is_a_movie():
    frames = np.random.default_rng(0).integers(0, 100, (1, 37, 53)).astype(np.uint16)
    got, shifts, _ = computed(correct(Movie(da.from_array(frames), 30.0), PARAMETERS))
    np.testing.assert_array_equal(got, frames)
    np.testing.assert_array_equal(shifts, 0)


@pytest.mark.parametrize("method", ["rigid", "none"])
def test_a_movie_without_frames_is_an_error(method):
    movie = Movie(da.zeros((0, 37, 53), dtype="uint16"), 30.0)
    with pytest.raises(InputError, match="0 frames"):
        correct(movie, MotionCorrectionParameters(method=method, max_shift=10))


def test_too_large_a_max_shift_is_an_error_before_anything_runs():
    movie = Movie(da.zeros((10, 20, 53), dtype="uint16"), 30.0)
    with pytest.raises(InputError, match=r"max_shift is 15 px .* 20 x 53 px; .* at most 10 px"):
        correct(movie, MotionCorrectionParameters())


def test_shifts_of_another_movie_are_refused():
    movie = Movie(da.zeros((10, 20, 53), dtype="uint16"), 30.0)
    with pytest.raises(ValueError, match=r"\(9, 2\), not \(10, 2\)"):
        apply_shifts(movie, da.zeros((9, 2)))


def test_parameters_name_the_keys_of_other_tools():
    described = {p.name: p.description for p in MotionCorrectionParameters.describe()}
    assert all("CaImAn" in text or "Suite2p" in text for text in described.values())
    with pytest.raises(InputError, match="did you mean 'max_shift'"):
        MotionCorrectionParameters.from_mapping({"max_shifts": 6})
