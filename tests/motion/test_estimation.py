"""Shifts of all frames of a movie: flagged frames, and the same whatever the chunks and workers."""

from __future__ import annotations

from dataclasses import replace

import dask
import dask.array as da
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from napari_calcium.errors import InputError
from napari_calcium.motion.correction import MotionCorrectionParameters
from napari_calcium.motion.estimation import estimate_block, estimate_shifts, joined_shifts
from napari_calcium.motion.template import Reference, estimate_reference, make_reference
from napari_calcium.movie import Movie

FIELD = (96, 128)
RIGID = MotionCorrectionParameters(method="rigid", max_shift=10)
PIECEWISE = MotionCorrectionParameters(max_shift=10)
NONE = MotionCorrectionParameters(method="none")
METHODS = [RIGID, PIECEWISE]


def places(n, seed=0):
    """Places (n, 2) from -4 to 4 px."""
    return np.random.default_rng(seed).uniform(-4, 4, (n, 2))


def estimated(frames, parameters, template=None, chunks="auto"):
    """Return the shifts of frames laid over a template, made from them if not given."""
    movie = Movie(da.from_array(np.asarray(frames), chunks=chunks), 30.0)
    reference = estimate_reference(movie, parameters, template)
    return estimate_shifts(movie, reference, parameters)[0].compute()


def parts_of(shifts):
    parts = (shifts.rigid, shifts.piecewise, shifts.grid_y, shifts.grid_x, shifts.flagged)
    return [part for part in parts if part is not None]


@pytest.mark.parametrize("parameters", METHODS)
def test_shifts_undo_the_motion(film, parameters):
    moved = places(150)
    frames = film(FIELD, moved, photons=30)
    template = film(FIELD, [(0, 0)])[0]
    template *= frames.mean() / template.mean()
    shifts = estimated(frames, parameters, template)
    assert shifts.field == FIELD
    assert not shifts.flagged.any()
    # 0.02 px rms by the photons, and 0.04 px for patches, which have a third of the frame each
    np.testing.assert_allclose(shifts.rigid, -moved, atol=0.1)
    if parameters.method == "rigid":
        assert shifts.piecewise is None
    else:
        assert shifts.piecewise.shape == (150, 2, 3, 2)
        error = shifts.piecewise + moved[:, None, None]
        assert np.sqrt(np.mean(error**2)) < 0.08
        np.testing.assert_array_equal(shifts.grid_y, [31.5, 63.5])
        np.testing.assert_array_equal(shifts.grid_x, [31.5, 63.5, 95.5])


@pytest.mark.parametrize("parameters", METHODS)
@pytest.mark.parametrize("gain", [0.02, 1, 50])
def test_the_unit_of_a_given_template_does_not_matter(film, parameters, gain):
    moved = places(60)
    frames = film(FIELD, moved, photons=10)
    template = film(FIELD, [(0, 0)])[0]
    template *= gain * frames.mean() / template.mean()
    shifts = estimated(frames, parameters, template)
    found = shifts.rigid[:, None, None] if shifts.piecewise is None else shifts.piecewise
    error = found + moved[:, None, None]
    assert np.sqrt(np.mean(error**2)) < 0.08  # 0.03 px, and 0.06 px for patches


@pytest.mark.parametrize("upsampling", [1, 10, 1024])
def test_shifts_are_multiples_of_the_step_asked_for(film, upsampling):
    frames = film(FIELD, places(30), photons=30)
    frames[7] = 0  # interpolated between two
    shifts = estimated(frames, replace(PIECEWISE, upsampling=upsampling))
    for values in (shifts.rigid, shifts.piecewise):
        steps = np.rint(values * upsampling).astype(np.float32)
        np.testing.assert_array_equal(values, steps / np.float32(upsampling))


@pytest.mark.parametrize("parameters", METHODS)
def test_frames_that_show_nothing_are_flagged_and_interpolated(film, parameters):
    moved = places(60)
    frames = film(FIELD, moved, photons=30).astype(np.float32)
    known = estimated(frames, parameters, frames[0])
    rng = np.random.default_rng(0)
    frames[0] = 0
    frames[20] = np.nan
    frames[21] = np.where(rng.random(FIELD) < 0.5, 4095, rng.integers(0, 4095, FIELD))
    frames[59] = 4095
    template = film(FIELD, moved[:1], photons=30)[0].astype(np.float32)
    shifts = estimated(frames, parameters, template)
    assert np.flatnonzero(shifts.flagged).tolist() == [0, 20, 21, 59]
    step = 1.01 / parameters.upsampling  # all four are rounded
    for values in (shifts.rigid, shifts.piecewise):
        if values is not None:
            np.testing.assert_array_equal(values[0], values[1])
            np.testing.assert_array_equal(values[59], values[58])
            third = (values[22] - values[19]) / 3
            np.testing.assert_allclose(values[20], values[19] + third, atol=step)
            np.testing.assert_allclose(values[21], values[19] + 2 * third, atol=step)
    # the others keep the shifts they would have: noise is learnt from 4 frames less
    left = ~shifts.flagged
    np.testing.assert_allclose(shifts.rigid[left], known.rigid[left], atol=0.05)


@pytest.mark.parametrize("parameters", METHODS)
def test_frames_of_noise_are_flagged_in_a_clear_movie(film, parameters):
    frames = film(FIELD, places(80), photons=30)
    noise = [3, 40, 41, 42, 79]
    frames[noise] = np.random.default_rng(0).poisson(30, (5, *FIELD))
    shifts = estimated(frames, parameters)
    assert np.flatnonzero(shifts.flagged).tolist() == noise
    between = shifts.rigid[39] + (shifts.rigid[43] - shifts.rigid[39]) / 2
    np.testing.assert_allclose(shifts.rigid[41], between, atol=1e-3)


@pytest.mark.parametrize("parameters", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_where_all_is_noise_all_is_flagged_and_nothing_moved(film, parameters, seed):
    random = np.random.default_rng(seed)
    for photons in (0.1, 1, 30):
        frames = random.poisson(photons, (60, *FIELD)).astype(np.uint16)
        shifts = estimated(frames, parameters)
        assert shifts.flagged.all()
        assert (shifts.rigid == 0).all()
        assert (shifts.piecewise is None) == (parameters.method == "rigid")
        assert shifts.piecewise is None or (shifts.piecewise == 0).all()
    with pytest.raises(
        InputError, match="the template agrees with the frames no better than noise"
    ):
        estimated(frames, parameters, film(FIELD, [(0, 0)])[0])


@pytest.mark.parametrize("parameters", METHODS)
def test_in_dim_light_nothing_is_flagged(film, parameters):
    moved = places(150)
    frames = film(FIELD, moved, photons=1)
    shifts = estimated(frames, parameters)
    assert not shifts.flagged.any()
    error = shifts.rigid + moved
    error -= np.median(error, axis=0)
    assert np.sqrt(np.mean(error**2)) < 0.2  # 0.1 px by the photons


@pytest.mark.parametrize("field", [(37, 53), (64, 70)])
@pytest.mark.parametrize("photons", [1, 30])
def test_any_image_of_a_small_field_will_do_as_a_template(film, field, photons):
    moved = places(60)
    frames = film(field, moved, photons=photons)
    mean = frames.mean(axis=0)
    for template in (mean, gaussian_filter(mean, 2.0), frames[3].astype(np.float32)):
        shifts = estimated(frames, RIGID, template)
        # the noise of a dim small field: 0.4 px; what is not found is off by 5 px, rms
        error = shifts.rigid + moved
        error -= np.median(error, axis=0)
        assert np.sqrt(np.mean(error**2)) < 0.6
    other = film(field, [(0, 0)], seed=9)[0]
    with pytest.raises(
        InputError, match="the template agrees with the frames no better than noise"
    ):
        estimated(frames, RIGID, other)


@pytest.mark.parametrize("parameters", METHODS)
def test_a_template_blurred_by_motion_costs_no_accuracy(film, parameters):
    moved = places(150)
    frames = film(FIELD, moved, photons=30)
    blurred = frames[:50].mean(axis=0)  # spread by 2.3 px, rms
    error = estimated(frames, parameters, blurred).rigid + moved
    error -= np.median(error, axis=0)
    # 0.02 px by the photons, as without; compared with the blurred image itself 0.5 px and more
    assert np.sqrt(np.mean(error**2)) < 0.05


@pytest.mark.parametrize("parameters", METHODS)
def test_all_frames_blank_is_an_error(film, parameters):
    blank = np.full((40, 37, 53), 7, np.uint16)
    movie = Movie(da.from_array(blank), 30.0)
    reference = dask.delayed(Reference)(film((37, 53), [(0, 0)])[0])
    lazy, _ = estimate_shifts(movie, reference, parameters)
    with pytest.raises(InputError, match=r"all 40 frames are blank.*set method to none"):
        lazy.compute()


def test_method_none_has_shifts_of_zero(film):
    frames = film((37, 53), places(300))
    frames[5] = np.nan
    movie = Movie(da.from_array(frames), 30.0)
    shifts, measurements = estimate_shifts(movie, dask.delayed(Reference)(frames[0]), NONE)
    shifts = shifts.compute()
    assert shifts.rigid.shape == (300, 2)
    assert not shifts.rigid.any()
    assert not shifts.flagged.any()
    assert shifts.piecewise is None
    assert [len(part.compute().correlation) for part in measurements] == [128, 128, 44]


@pytest.mark.parametrize("parameters", METHODS)
@pytest.mark.parametrize("chunks", [(7, 37, 53), (77, 20, 53), (300, 37, 10)])
def test_the_result_does_not_depend_on_the_chunks(film, parameters, chunks):
    frames = film((37, 53), places(300), photons=40)
    frames[100:103] = 0
    parameters = replace(parameters, template_frames=40)
    whole = estimated(frames, parameters, chunks=-1)
    cut = estimated(frames, parameters, chunks=chunks)
    for expected, got in zip(parts_of(whole), parts_of(cut), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("parameters", METHODS)
def test_the_result_does_not_depend_on_the_workers(film, parameters):
    frames = film((37, 53), places(300), photons=40)
    parameters = replace(parameters, template_frames=40, template_updates=1)
    with dask.config.set(scheduler="sync"):
        expected = estimated(frames, parameters, chunks=(50, 37, 53))
    for workers in (1, 2):
        with dask.config.set(scheduler="threads", num_workers=workers):
            found = estimated(frames, parameters, chunks=(50, 37, 53))
        for one, other in zip(parts_of(expected), parts_of(found), strict=True):
            np.testing.assert_array_equal(other, one)


@pytest.mark.parametrize("parameters", METHODS)
def test_a_run_of_frames_has_its_shifts_by_itself(film, parameters):
    frames = film(FIELD, places(40), photons=30)
    reference = make_reference([frames], parameters)
    runs = [estimate_block(frames[run], reference, parameters, run.start, 1) for run in RUNS]
    whole = estimate_block(frames, reference, parameters, 0, 1)
    np.testing.assert_array_equal(np.concatenate([run.rigid for run in runs]), whole.rigid)
    np.testing.assert_array_equal(np.concatenate([run.agreement for run in runs]), whole.agreement)
    assert whole.rigid.shape == (40, 3)
    assert not whole.rigid[:, 0].any()
    if parameters.method == "piecewise":
        np.testing.assert_array_equal(np.concatenate([run.patches for run in runs]), whole.patches)
    joined = [joined_shifts(parts, reference, parameters) for parts in (runs, [whole])]
    for one, other in zip(*map(parts_of, joined), strict=True):
        np.testing.assert_array_equal(one, other)


RUNS = [slice(0, 1), slice(1, 14), slice(14, 40)]


@pytest.mark.parametrize("parameters", METHODS)
def test_building_computes_nothing(film, parameters, no_computing):
    movie = Movie(da.from_array(film((37, 53), places(20)), chunks=(7, 37, 53)), 30.0)
    with dask.config.set(scheduler=no_computing):
        reference = estimate_reference(movie, parameters)
        shifts, measurements = estimate_shifts(movie, reference, parameters)
    assert shifts.compute().n_frames == 20
    assert len(measurements) == 1


ALONG_Z = np.array([0, 1, -1, 2, -2, 0, 0, 1, 0, -1, 0, 0, 0, 0])


@pytest.fixture
def volumes(scene):
    """Frames (14, 8, 64, 80) that move along z only, and their template.

    Twelve planes of which eight are seen, one or two further up or down.
    """
    larger = 10 * np.stack([scene((64, 80), seed) for seed in range(12)])
    frames = np.stack([larger[2 - z : 10 - z] for z in ALONG_Z])
    return np.random.default_rng(0).poisson(frames).astype(np.uint16), larger[2:10]


@pytest.mark.parametrize("parameters", METHODS)
def test_volumes_have_shifts_along_z_too(volumes, parameters):
    frames, template = volumes
    shifts = estimated(frames, parameters, template.astype(np.float32))
    assert shifts.field == (8, 64, 80)
    assert shifts.rigid.shape == (14, 3)
    np.testing.assert_allclose(shifts.rigid[:, 0], -ALONG_Z, atol=0.1)
    np.testing.assert_allclose(shifts.rigid[:, 1:], 0, atol=0.08)  # 0.02 px rms
    if parameters.method == "piecewise":
        assert shifts.piecewise.shape == (14, 8, 1, 2, 2)
        seen = shifts.piecewise[:, 2:-2]  # by all frames
        assert np.sqrt(np.mean(seen**2)) < 0.08  # 0.03 px


def test_planes_from_outside_of_a_volume_move_as_their_frame(volumes):
    frames, template = volumes
    shifts = estimated(frames, PIECEWISE, template.astype(np.float32))
    # there is nothing to be seen of them, so they have no motion of their own
    assert np.abs(shifts.piecewise - shifts.rigid[:, None, None, None, 1:]).max() < 0.5
