"""The template, against the scene that the frames were cropped from."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest

from napari_calcium.errors import InputError
from napari_calcium.motion.correction import MotionCorrectionParameters
from napari_calcium.motion.shifts import rigid_shifts
from napari_calcium.motion.template import aligned_mean, estimate_template, sampled_frames
from napari_calcium.movie import Movie


def raises(*args, **kwargs):
    raise AssertionError("the builder computed")


def sharpness(image):
    return np.hypot(*np.gradient(image))[8:-8, 8:-8].mean()


@pytest.mark.parametrize("seed", [0, 1])
def test_template_is_as_sharp_as_the_scene(film, seed):
    places = np.random.default_rng(seed).normal(0, 2.5, size=(60, 2)).clip(-7, 7)
    still = film((96, 128), [(0, 0)], seed=seed)[0]
    frames = film((96, 128), places, seed=seed)
    template = aligned_mean([frames], max_shift=12, passes=4)
    blurred = frames.mean(axis=0)
    assert sharpness(blurred) < 0.7 * sharpness(still)
    # cubic resampling costs a few per cent of the finest detail
    assert sharpness(template) > 0.95 * sharpness(still)


def test_template_of_noisy_frames_serves_to_register_them(film):
    places = np.random.default_rng(0).normal(0, 2.5, size=(60, 2)).clip(-7, 7)
    frames = film((96, 128), places, photons=5)
    template = aligned_mean([frames], max_shift=12, passes=4)
    error = rigid_shifts(frames, template, max_shift=12) + places
    # the place of the whole is free; 0.08 px is what the noiseless template allows
    assert error.std(axis=0).max() < 0.1


def test_template_lies_in_the_middle_of_the_motion(film):
    places = np.array([(0, 0)] * 5 + [(6, -6)] * 20)
    frames = film((96, 128), places)
    template = aligned_mean([frames], max_shift=12, passes=2)
    shifts = rigid_shifts(frames, template, max_shift=12)
    np.testing.assert_allclose(np.median(shifts, axis=0), 0, atol=0.1)


def test_a_still_movie_is_its_own_template(film):
    frame = film((37, 53), [(0, 0)], photons=5)
    template = aligned_mean([frame] * 7, max_shift=8, passes=4)
    np.testing.assert_allclose(template, frame[0], rtol=1e-6)


@pytest.mark.parametrize("value", [0, 40000])
def test_a_constant_movie_has_a_constant_template(value):
    frames = np.full((9, 37, 53), value, np.uint16)
    np.testing.assert_array_equal(aligned_mean([frames], max_shift=8, passes=4), value)


def test_nan_borders_leave_no_nan(film):
    frames = film((37, 53), [(0, 0), (1, 1), (0, 1)])
    frames[:, :2] = np.nan
    frames[1] = np.nan
    given = frames.copy()
    assert np.isfinite(aligned_mean([frames], max_shift=8, passes=2)).all()
    np.testing.assert_array_equal(frames, given)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_short_movies_have_a_template(film, n):
    movie = Movie(da.from_array(film((37, 53), [(0, 0)] * n)), frame_rate=30.0)
    template = estimate_template(movie, MotionCorrectionParameters(max_shift=8)).compute()
    np.testing.assert_allclose(template, movie.frames[0].compute(), rtol=1e-6)


class Counted:
    """A recording that remembers which frames were read."""

    shape, dtype, ndim = (5000, 37, 53), np.dtype("uint16"), 3

    def __init__(self):
        self.read = []

    def __getitem__(self, key):
        times = range(*key[0].indices(self.shape[0]))
        self.read.append(times)
        return np.full((len(times), *self.shape[1:]), times[0], self.dtype)


def test_only_the_sampled_frames_are_read():
    source = Counted()
    movie = Movie(da.from_array(source, chunks=(100, 37, 53), name=False), frame_rate=30.0)
    parameters = MotionCorrectionParameters(max_shift=8, template_frames=20, template_passes=1)
    with dask.config.set(scheduler=raises):
        template = estimate_template(movie, parameters)
    source.read.clear()
    template.compute(scheduler="sync")
    assert sorted(times[0] for times in source.read) == list(range(125, 5000, 250))
    assert {len(times) for times in source.read} == {1}


def test_errors_name_what_is_wrong():
    empty = Movie(da.zeros((0, 37, 53)), frame_rate=30.0)
    with pytest.raises(InputError, match="0 frames"):
        sampled_frames(empty, 5)
    with pytest.raises(InputError, match="max_shift is 30 px"):
        estimate_template(
            Movie(da.zeros((5, 37, 53)), 30.0), MotionCorrectionParameters(max_shift=30)
        )
