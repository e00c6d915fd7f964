"""The template, against the scene that the frames were sampled out of."""

from __future__ import annotations

import dask
import dask.array as da
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import ndimage

from napari_calcium.errors import InputError
from napari_calcium.motion.correction import MotionCorrectionParameters
from napari_calcium.motion.template import (
    Reference,
    check_template,
    estimate_reference,
    make_reference,
    mean_of_samples,
    sampled_frames,
    unusable,
)
from napari_calcium.movie import Movie

FIELD = (96, 128)
RIGID = MotionCorrectionParameters(method="rigid", max_shift=10)
PIECEWISE = MotionCorrectionParameters(max_shift=10)
METHODS = [RIGID, PIECEWISE]


def rms(error):
    return float(np.sqrt(np.mean(np.square(error))))


def wander(n, seed=0, largest=5.0):
    """Places (n, 2) that wander and jitter; never further than `largest` px from 0."""
    rng = np.random.default_rng(seed)
    path = ndimage.gaussian_filter1d(rng.normal(size=(n, 2)), 8, axis=0)
    path = 3 * path / path.std(axis=0) + rng.normal(0, 0.5, (n, 2))
    return path.clip(-largest, largest)


def movie_of(frames, chunks="auto"):
    return Movie(da.from_array(np.asarray(frames), chunks=chunks), 30.0)


def sharpness(image):
    return np.hypot(*np.gradient(image))[8:-8, 8:-8].mean()


def shifts_of(reference, parameters, frames):
    return reference.rigid_filter(parameters).shifts(np.asarray(frames)[:, None])[0][:, 1:]


# ---------------------------------------------------------------------------------------- samples


@settings(deadline=None, max_examples=60)
@given(n_frames=st.integers(1, 5000), n=st.integers(1, 300))
def test_samples_are_as_many_as_asked_and_evenly_spread(n_frames, n):
    frames = da.arange(n_frames, chunks=-1).reshape(n_frames, 1, 1)
    parts = [
        part.compute(scheduler="sync").ravel() for part in sampled_frames(Movie(frames, 1.0), n)
    ]
    taken = np.concatenate(parts)
    assert len(parts) <= 10
    assert (np.diff(taken) > 0).all()
    # ten places of 128 frames are read, the last of which may be shorter
    assert len(taken) == min(n, n_frames) or n > 9 * 128
    assert taken[0] >= 0
    assert taken[-1] < n_frames
    # the n-th parts of what is read are taken from ten places that lie a tenth of the movie apart,
    # to a run, so a frame lies at most that far from where it would in a movie read as a whole
    edges = np.concatenate([[-1], taken, [n_frames]])
    assert np.diff(edges).max() <= n_frames / min(n, n_frames) + n_frames / 10 + 2 * 128 + 1


class Counted:
    """A recording that remembers which frames were read."""

    shape, dtype, ndim = (5000, 37, 53), np.dtype("uint16"), 3

    def __init__(self):
        self.read = []

    def __getitem__(self, key):
        times = range(*key[0].indices(self.shape[0]))
        self.read.append(times)
        return np.random.default_rng(times[0]).integers(0, 99, (len(times), *self.shape[1:]), "u2")


def test_only_ten_runs_of_frames_are_read_and_each_once(no_computing):
    source = Counted()
    movie = Movie(da.from_array(source, chunks=(128, 37, 53), name=False), frame_rate=30.0)
    with dask.config.set(scheduler=no_computing):
        reference = estimate_reference(movie, RIGID)
    source.read.clear()
    reference.compute(scheduler="sync")
    assert len(source.read) == 10
    assert {len(times) for times in source.read} == {128}
    assert len({times[0] for times in source.read}) == 10


def test_mean_of_samples_is_the_mean_of_frames_as_they_are():
    frames = np.random.default_rng(0).integers(30000, 65535, (60, 37, 53)).astype(np.uint16)
    mean = mean_of_samples(movie_of(frames), 60).compute()
    np.testing.assert_allclose(mean, frames.mean(axis=0, dtype=np.float64), rtol=1e-6)
    with pytest.raises(InputError, match="the movie has 0 frames"):
        mean_of_samples(movie_of(frames[:0]), 60)


@pytest.mark.parametrize("field", [(37, 53), (300, 400), (3, 37, 53)])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32"])
def test_frames_that_show_nothing_are_known(field, kind):
    rng = np.random.default_rng(0)
    frames = rng.integers(3, 120, (7, *field)).astype(kind)
    frames[1] = 7  # blank
    frames[2][rng.random(field) < 0.4] = 121  # saturated
    frames[3] = frames[3] > 100  # two values: coarse, not saturated
    frames[4] = 0
    frames[4, ..., 1, 1] = 1  # a single photon
    frames[5][rng.random(field) < 0.1] = 121  # bright cells
    expected = [False, True, True, False, False, False, False]
    if kind == "float32":
        frames[6] = np.nan
        frames[0, ..., :4, :] = np.nan
        expected[6] = True
    assert unusable(frames).tolist() == expected
    assert unusable(frames[:0]).tolist() == []


# --------------------------------------------------------------------------------------- template


@pytest.mark.parametrize("parameters", METHODS)
@pytest.mark.parametrize("seed", [0, 1])
def test_template_is_the_scene(film, parameters, seed):
    places = wander(80, seed)
    frames = film(FIELD, places, seed=seed)
    template = make_reference([frames], parameters).template
    # the median shift is 0, so the scene lies where it is in the frame of the median place
    expected = film(FIELD, [np.median(places, axis=0)], seed=seed)[0]
    inside = (slice(8, -8), slice(8, -8))
    # bicubic resampling leaves 1 to 2 % of the contrast, a shift of 0.02 px of the whole another 1
    assert rms((template - expected)[inside]) < 0.05 * expected.std()
    assert rms((frames.mean(axis=0) - expected)[inside]) > 0.4 * expected.std()
    assert sharpness(template) > 0.95 * sharpness(expected)


@pytest.mark.parametrize("parameters", METHODS)
@pytest.mark.parametrize("photons", [5, 30])
def test_template_of_noisy_frames_is_the_scene_and_serves_to_register_them(
    film, parameters, photons
):
    places = wander(100)
    frames = film(FIELD, places, photons)
    reference = make_reference(np.array_split(frames, 7), parameters)
    expected = film(FIELD, [np.median(places, axis=0)])[0]
    expected *= photons / expected.mean()
    inside = (slice(8, -8), slice(8, -8))
    found = reference.template[inside], expected[inside]
    # of 100 frames photon noise leaves sqrt(mean / 100) in each pixel, of a contrast of 0.8 mean
    noise = np.sqrt(photons / 100)
    assert (
        rms(found[0] * found[1].mean() / found[0].mean() - found[1])
        < 1.5 * noise + 0.05 * found[1].std()
    )
    error = shifts_of(reference, parameters, frames) + places
    assert error.std(axis=0).max() < (0.1 if photons < 10 else 0.05)  # the whole's place is free


@pytest.mark.parametrize("parameters", METHODS)
def test_the_median_shift_is_zero(film, parameters):
    places = wander(80, 1) - (3, -4)
    frames = film(FIELD, places, photons=30)
    reference = make_reference([frames], parameters)
    shifts = shifts_of(reference, parameters, frames)
    # 0.01 px: the mean is made after the last shifts are taken
    np.testing.assert_allclose(np.median(shifts, axis=0), 0, atol=0.03)


@pytest.mark.parametrize("parameters", METHODS)
def test_a_still_movie_is_its_own_template(film, parameters):
    frame = film((37, 53), [(0, 0)], photons=5)
    reference = make_reference([frame] * 12, parameters)
    np.testing.assert_allclose(reference.template, frame[0], rtol=1e-6)


@pytest.mark.parametrize("parameters", METHODS)
def test_frames_that_show_nothing_do_not_count(film, parameters):
    frames = film(FIELD, wander(40), photons=30).astype(np.float32)
    expected = make_reference([frames], parameters)
    rng = np.random.default_rng(0)
    bad = np.zeros((4, *FIELD), np.float32)
    bad[1] = np.nan
    bad[2] = np.where(rng.random(FIELD) < 0.6, 4095, rng.integers(0, 4095, FIELD))
    bad[3] = 4095
    mixed = np.concatenate([bad[:2], frames[:25], bad[2:], frames[25:]])
    found = make_reference([mixed], parameters)
    np.testing.assert_array_equal(found.template, expected.template)
    np.testing.assert_array_equal(found.rigid_noise, expected.rigid_noise)


@pytest.mark.parametrize("parameters", METHODS)
def test_frames_of_noise_do_not_count(film, parameters):
    frames = film(FIELD, wander(40), photons=30)
    expected = make_reference([frames], parameters).template
    noise = np.random.default_rng(0).poisson(30, (4, *FIELD)).astype(np.uint16)
    mixed = np.concatenate([frames[:20], noise, frames[20:]])
    found = make_reference([mixed], parameters).template
    # 4 of 44 frames without the scene would take a tenth of its contrast
    inside = (slice(8, -8), slice(8, -8))
    slope = np.polyfit(expected[inside].ravel(), found[inside].ravel(), 1)[0]
    assert slope == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("parameters", METHODS)
def test_pixels_that_are_not_finite_leave_none(film, parameters):
    frames = film(FIELD, wander(20))
    frames[:, :2] = np.nan
    frames[3, 40:50, 60:70] = np.inf
    given_frames = frames.copy()
    reference = make_reference([frames], parameters)
    assert np.isfinite(reference.template).all()
    assert np.isfinite(reference.rigid_noise).all()
    np.testing.assert_array_equal(frames, given_frames)


@pytest.mark.parametrize("field", [(37, 53), (3, 37, 53)])
@pytest.mark.parametrize("parameters", METHODS)
def test_template_has_the_shape_of_the_field_and_noise_is_power(field, parameters):
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(12, *field)) + 5 * rng.normal(size=field)
    reference = make_reference([frames.astype(np.float32)], parameters)
    assert reference.template.shape == field
    assert reference.template.dtype == np.float32
    # white noise of variance 1: its power is the number of pixels, where none is taken for motion
    power = np.median(reference.rigid_noise) / (37 * 53)
    assert 0.6 < power < 1.4
    assert (reference.rigid_noise.ravel()[1:] > 0).all()  # all but the mean, which does not count
    assert (reference.patch_noise is None) == (parameters.method == "rigid")
    if reference.patch_noise is not None:
        assert (reference.patch_noise.ravel()[1:] > 0).all()


@pytest.mark.parametrize("parameters", METHODS)
@pytest.mark.parametrize("gain", [1, 1e-3, 50])
def test_a_given_template_stays_and_its_place_and_unit_count(film, parameters, gain):
    places = wander(40)
    frames = film(FIELD, places, photons=4)
    template = film(FIELD, [(2, -3)])[0]
    template = (4 * gain * template / template.mean()).astype(np.float32)
    reference = make_reference([frames], parameters, template)
    np.testing.assert_array_equal(reference.template, template)
    # not centred: the frames are to lie as the template does
    error = shifts_of(reference, parameters, frames) + places - (2, -3)
    assert rms(error) < 0.1  # 0.05 px by the photons


def test_a_given_template_with_pixels_unknown(film):
    template, *frames = film(FIELD, [(0, 0), *wander(20)])
    template[:2] = np.nan
    reference = make_reference([np.stack(frames)], RIGID, template)
    assert np.isfinite(reference.template).all()
    np.testing.assert_array_equal(reference.template[2:], template[2:])


# --------------------------------------------------------------------------------- as lazy graphs


@pytest.mark.parametrize("parameters", METHODS)
def test_building_computes_nothing_and_chunks_do_not_matter(film, parameters, no_computing):
    frames = film((37, 53), wander(300), photons=30)
    references = []
    for chunks in [(300, 37, 53), (77, 20, 53), (7, 37, 53)]:
        with dask.config.set(scheduler=no_computing):
            lazy = estimate_reference(movie_of(frames, chunks), parameters)
        references.append(lazy.compute())
    for reference in references[1:]:
        np.testing.assert_array_equal(reference.template, references[0].template)
        np.testing.assert_array_equal(reference.rigid_noise, references[0].rigid_noise)


@pytest.mark.parametrize("method", ["rigid", "piecewise"])
def test_updates_take_in_all_frames(film, method):
    places = wander(256, largest=4)
    movie = movie_of(film((64, 80), places, photons=4))
    expected = film((64, 80), [(0, 0)])[0]
    expected *= 4 / expected.mean()
    errors = []
    for updates in (0, 1, 2):
        parameters = MotionCorrectionParameters(
            method=method, max_shift=10, template_frames=20, template_updates=updates
        )
        template = estimate_reference(movie, parameters).compute().template
        errors.append(least_difference(template, expected))
    # 20 frames leave a noise of sqrt(4 / 20) = 0.45, 256 frames 0.13
    assert errors[0] > 0.3
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.6 * errors[0]


def least_difference(template, expected):
    """Return the rms difference where an image lies nearest to the template."""
    best = np.zeros(2)
    for step in (1.0, 0.5, 0.2):
        around = [best + step * np.array((y, x)) for y in range(-3, 4) for x in range(-3, 4)]
        moved = [ndimage.shift(expected, place, order=3) for place in around]
        errors = [rms((template - each)[12:-12, 12:-12]) for each in moved]
        best = around[int(np.argmin(errors))]
    return min(errors)


def test_updates_leave_a_given_template_and_skip_what_shows_nothing(film):
    frames = film((37, 53), wander(300, largest=3), photons=30)
    frames[:128] = 0  # the first part of the recording as a whole
    parameters = MotionCorrectionParameters(method="rigid", max_shift=8, template_updates=1)
    template = frames[200].astype(np.float32)
    kept = estimate_reference(movie_of(frames), parameters, template).compute()
    np.testing.assert_array_equal(kept.template, template)
    made = estimate_reference(movie_of(frames), parameters).compute()
    assert np.isfinite(made.template).all()
    assert made.template.mean() == pytest.approx(frames[128:].mean(), rel=0.05)


@pytest.mark.parametrize("parameters", METHODS)
def test_volumes_have_templates(film, parameters):
    places = wander(30, largest=4)
    planes = [film((64, 80), places, seed=seed) for seed in range(3)]
    template = make_reference([np.stack(planes, axis=1)], parameters).template
    assert template.shape == (3, 64, 80)
    for seed, plane in enumerate(template):
        expected = film((64, 80), [np.median(places, axis=0)], seed=seed)[0]
        assert rms((plane - expected)[8:-8, 8:-8]) < 0.07 * expected.std()


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(("n", "said"), [(1, "1 frame but"), (9, "9 frames but")])
def test_too_few_frames_for_a_template(n, said):
    movie = movie_of(np.zeros((n, 37, 53)))
    with pytest.raises(InputError, match=f"{said}.* at least 10"):
        estimate_reference(movie, RIGID)
    check_template(movie, np.eye(37, 53))  # enough for a template that is given
    check_template(movie_of(np.zeros((10, 37, 53))), None)


@pytest.mark.parametrize("field", [(53, 37), (37, 54), (1, 37, 53)])
def test_a_template_of_another_field(field):
    with pytest.raises(InputError, match="field is 37 x 53 px; give a template of the same"):
        estimate_reference(movie_of(np.zeros((20, 37, 53))), RIGID, np.zeros(field))


@pytest.mark.parametrize("value", [0, 7, np.nan])
def test_a_template_that_is_the_same_everywhere(value):
    template = np.full((37, 53), value, np.float32)
    with pytest.raises(InputError, match="the template is the same everywhere"):
        estimate_reference(movie_of(np.zeros((20, 37, 53))), RIGID, template)


@pytest.mark.parametrize("parameters", METHODS)
@pytest.mark.parametrize("value", [0, 40000, 65535])
def test_all_frames_blank(parameters, value):
    movie = movie_of(np.full((20, 37, 53), value, np.uint16))
    lazy = estimate_reference(movie, parameters)
    with pytest.raises(InputError, match=r"all 20 frames .* blank.*method to none"):
        lazy.compute()


def test_filters_follow_the_parameters(film):
    template = film((128, 170), [(0, 0)])[0]
    parameters = MotionCorrectionParameters(
        max_shift=7, patch_size=50, patch_overlap=10, max_deviation=2.0, upsampling=10
    )
    reference = Reference(template)
    rigid, patches = reference.rigid_filter(parameters), reference.piecewise_filter(parameters)
    assert (rigid.max_shift, rigid.max_shift_z, rigid.upsampling) == (7, 2, 10)
    assert patches.grid.size == (50, 50)
    assert patches.max_deviation == 2.0
    assert reference.volume.shape == (1, 128, 170)
