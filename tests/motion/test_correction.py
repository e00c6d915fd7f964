"""Motion correction as a whole: accuracy, lazy graphs, borders, crops, other channels, errors."""

from __future__ import annotations

from dataclasses import replace

import dask
import dask.array as da
import numpy as np
import pytest
from scipy import ndimage

from napari_calcium.errors import InputError
from napari_calcium.motion.correction import (
    MotionCorrectionParameters,
    apply_shifts,
    correct,
    correct_and_measure,
    estimate_motion,
)
from napari_calcium.motion.quality import combine, measure, sampling
from napari_calcium.motion.resampling import resample
from napari_calcium.movie import Movie
from napari_calcium.shifts import Shifts
from napari_calcium.simulation import SimulationParameters, simulate

FIELD = (96, 128)
RIGID = MotionCorrectionParameters(method="rigid", max_shift=10, template_frames=60)
PIECEWISE = replace(RIGID, method="piecewise")
METHODS = [RIGID, PIECEWISE]


def rms(error):
    return float(np.sqrt(np.mean(np.square(error))))


def movie_of(frames, chunks="auto", rate=30.0, **options):
    return Movie(da.from_array(np.asarray(frames), chunks=chunks), rate, **options)


def places(n, seed=0):
    """Places (n, 2) from -4 to 4 px."""
    return np.random.default_rng(seed).uniform(-4, 4, (n, 2))


def some_shifts(n, field, seed=0, piecewise=True):
    """Shifts of up to 5 px, by patches up to 1 px more or less, in float32."""
    rng = np.random.default_rng(seed)
    rigid = rng.uniform(-4, 4, (n, len(field))).astype(np.float32)
    if len(field) == 3:
        rigid[:, 0] = rng.integers(-1, 2, n)
    if not piecewise:
        return Shifts(rigid, field)
    grid_y, grid_x = (np.linspace(10, size - 11, 3).astype(np.float32) for size in field[-2:])
    deviation = rng.uniform(-1, 1, (n, *field[:-2], 3, 3, 2))
    whole = rigid[:, -2:].reshape(n, *(1 for _ in field), 2)
    return Shifts(rigid, field, (whole + deviation).astype(np.float32), grid_y, grid_x)


# --------------------------------------------------------------------------------------- accuracy


def true_shifts(truth, grid_y, grid_x):
    """Return the true shifts (time, grid_y, grid_x, 2) at places of the corrected frame.

    Those of the truth are at places of the frame: what the corrected frame has at c, the frame has
    at c - shift, so that shift = s(c - shift), which is solved by repetition.
    """
    centres = np.stack(np.meshgrid(grid_y, grid_x, indexing="ij"))
    nodes = [np.arange(len(grid)) for grid in (truth.grid_y, truth.grid_x)]
    shifts = np.empty((len(truth.shifts), *centres.shape[1:], 2))
    for known, found in zip(truth.shifts_piecewise, shifts, strict=True):
        found[:] = known.mean((0, 1))
        for _ in range(5):
            y, x = centres - np.moveaxis(found, -1, 0)
            at = np.interp(y, truth.grid_y, nodes[0]), np.interp(x, truth.grid_x, nodes[1])
            for axis in (0, 1):
                found[..., axis] = ndimage.map_coordinates(known[..., axis], at, order=1)
    return shifts


@pytest.mark.parametrize("field", [(96, 128), (120, 170)])
@pytest.mark.parametrize("seed", [0, 1])
def test_motion_of_simulated_movies_is_found(field, seed):
    simulation = simulate(
        SimulationParameters(height=field[0], width=field[1], n_frames=300, seed=seed)
    )
    shifts = estimate_motion(simulation.movie, PIECEWISE).shifts.compute()
    truth = true_shifts(simulation.truth, shifts.grid_y, shifts.grid_x)
    # where the template lies is free, for each patch: the scene may be bent in it for good
    residual, rigid, motion = (
        rms(each - each.mean(axis=0))
        for each in (shifts.piecewise - truth, shifts.rigid[:, None, None] - truth, truth)
    )
    # 12 photons: 0.052 to 0.062 px; the deviation from rigid motion is 0.11 to 0.13 px
    assert residual < 0.08
    assert residual < 0.65 * rigid
    assert rigid < 0.2 * motion
    assert not shifts.flagged.any()


@pytest.mark.parametrize(("parameters", "expected"), [(RIGID, 0.15), (PIECEWISE, 0.11)])
def test_motion_of_dim_movies_is_found(parameters, expected):
    simulation = simulate(SimulationParameters(n_frames=300, photons=3.0))
    shifts = estimate_motion(simulation.movie, parameters).shifts.compute()
    grid = ([31.5, 63.5], [31.5, 63.5, 95.5])
    truth = true_shifts(simulation.truth, *grid)
    found = shifts.rigid[:, None, None] if shifts.piecewise is None else shifts.piecewise
    error = found - truth
    assert rms(error - error.mean(axis=0)) < expected  # 0.12 and 0.083 px


@pytest.mark.parametrize("parameters", METHODS)
def test_the_corrected_movie_is_still_and_as_sharp_as_the_scene(film, parameters):
    moved = places(80)
    corrected, _ = correct(movie_of(film(FIELD, moved)), parameters)
    frames = corrected.frames.compute()[:, 12:-12, 12:-12]
    expected = film(FIELD, [np.median(moved, axis=0)])[0][12:-12, 12:-12]
    # what bicubic resampling leaves, 1 to 2 % of the contrast
    assert frames.std(axis=0).mean() < 0.05 * expected.std()
    mean = frames.mean(axis=0)
    assert rms(mean - expected) < 0.05 * expected.std()


@pytest.mark.parametrize("method", ["rigid", "piecewise"])
def test_high_pass_sees_past_light_that_does_not_move(film, method):
    # one-photon: dust and uneven light fixed to the camera, 100 times the contrast of the scene
    dust = ndimage.gaussian_filter(np.random.default_rng(9).normal(size=FIELD), 5.0)
    light = 100 * (dust - dust.min()) / dust.std()
    moved = places(60)
    frames = (film(FIELD, moved) + light).astype(np.float32)
    errors = []
    for high_pass in (0, 2):
        parameters = replace(RIGID, method=method, high_pass=high_pass)
        error = estimate_motion(movie_of(frames), parameters).shifts.compute().rigid + moved
        errors.append(rms(error - error.mean(axis=0)))
    assert errors[0] > 1
    assert errors[1] < 0.15


@pytest.mark.parametrize(
    ("kind", "gain", "offset"), [("uint8", 30, 5), ("uint16", 800, 33000), ("int16", 500, -9000)]
)
@pytest.mark.parametrize("parameters", METHODS)
def test_type_gain_and_offset_do_not_matter(film, parameters, kind, gain, offset):
    moved = places(40)
    frames = (gain * film(FIELD, moved, contrast=0.4).clip(0, 5) + offset).astype(kind)
    corrected, motion = correct(movie_of(frames), parameters)
    got, shifts = dask.compute(corrected.frames, motion.shifts)
    assert got.dtype == kind
    error = shifts.rigid + moved
    assert rms(error - error.mean(axis=0)) < 0.05
    still = got[:, 12:-12, 12:-12].astype(float)
    assert still.std(axis=0).mean() < 0.1 * still.mean(axis=0).std()  # uint8 is rounded by 1 in 20


def test_shifts_found_in_one_channel_move_another(film):
    moved = places(60)
    first = movie_of(film(FIELD, moved, seed=0))
    second = movie_of(film(FIELD, moved, seed=5), rate=15.0, pixel_size=2.0)
    result = apply_shifts(second, estimate_motion(first, PIECEWISE).shifts)
    frames = result.frames.compute()[:, 12:-12, 12:-12]
    # what varies in time is what bicubic resampling leaves, 3 % of the scene's contrast
    assert frames.std(axis=0).mean() < 0.05 * frames.mean(axis=0).std()
    assert (result.frame_rate, result.pixel_size) == (15.0, 2.0)


# ------------------------------------------------------------------------------------ lazy graphs


def computed(result):
    movie, motion = result
    frames, shifts, template = dask.compute(movie.frames, motion.shifts, motion.template)
    return [frames, shifts.rigid, template] + [shifts.piecewise] * (shifts.piecewise is not None)


@pytest.mark.parametrize("parameters", METHODS)
@pytest.mark.parametrize("chunks", [(7, 37, 53), (77, 20, 53), (300, 37, 10)])
def test_the_result_does_not_depend_on_the_chunks(film, parameters, chunks):
    frames = film((37, 53), places(300), photons=40)
    whole = computed(correct(movie_of(frames, -1), parameters))
    cut = computed(correct(movie_of(frames, chunks), parameters))
    for expected, got in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("parameters", METHODS)
def test_the_result_does_not_depend_on_the_workers(film, parameters):
    frames = film((37, 53), places(300), photons=40)
    result = correct(movie_of(frames, (50, 37, 53)), parameters)
    with dask.config.set(scheduler="sync"):
        expected = computed(result)
    for workers in (1, 2):
        with dask.config.set(scheduler="threads", num_workers=workers):
            for one, other in zip(expected, computed(result), strict=True):
                np.testing.assert_array_equal(other, one)


@pytest.mark.parametrize("method", ["rigid", "piecewise", "none"])
def test_building_computes_nothing(film, method, no_computing):
    frames = film((37, 53), places(300), photons=40)
    parameters = MotionCorrectionParameters(method=method, max_shift=10)
    with dask.config.set(scheduler=no_computing):
        corrected, _ = correct(movie_of(frames, (50, 37, 53)), parameters)
        shifts = some_shifts(300, (37, 53))
        correct_and_measure(movie_of(frames, (50, 37, 53)), shifts, frames[0], "crop")
    assert corrected.frames.shape == frames.shape
    assert corrected.frames.dtype == frames.dtype


@pytest.mark.parametrize("borders", ["nearest", "minimum"])
@pytest.mark.parametrize("piecewise", [True, False])
def test_lazy_shifts_move_as_computed_ones(film, borders, piecewise):
    movie = movie_of(film((37, 53), places(150), photons=40), (70, 20, 53))
    shifts = some_shifts(150, (37, 53), piecewise=piecewise)
    expected = apply_shifts(movie, shifts, borders).frames.compute()
    lazy = apply_shifts(movie, dask.delayed(shifts), borders).frames.compute()
    np.testing.assert_array_equal(lazy, expected)


def test_blocks_of_the_result_are_the_callers(film):
    movie = movie_of(film((37, 53), places(300), photons=40), (70, 20, 53))
    shifts = some_shifts(300, (37, 53))
    default = apply_shifts(movie, shifts).frames
    aligned = apply_shifts(movie, shifts, frames_per_block=90).frames
    assert default.chunks == ((128, 128, 44), (37,), (53,))
    assert aligned.chunks == ((90, 90, 90, 30), (37,), (53,))
    np.testing.assert_array_equal(default.compute(), aligned.compute())
    frames = movie.frames.compute()
    np.testing.assert_array_equal(default.compute(), resample(frames, shifts))


# ------------------------------------------------------------------------------- borders and crops


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32", ">u2"])
@pytest.mark.parametrize("piecewise", [True, False])
@pytest.mark.parametrize("field", [(37, 53), (3, 37, 53)])
def test_borders_differ_only_outside_of_what_each_frame_saw(field, piecewise, kind):
    rng = np.random.default_rng(0)
    low = {"uint16": 33000, ">u2": 33000, "int16": -9000}.get(kind, 5)
    frames = rng.integers(low, low + 200, (6, *field)).astype(kind)
    shifts = some_shifts(6, field, piecewise=piecewise)
    if len(field) == 3:
        shifts.rigid[:, 0] = 0  # along z whole planes come from outside
    movie = movie_of(frames)
    nearest, minimum, crop = (
        apply_shifts(movie, shifts, borders).frames for borders in ("nearest", "minimum", "crop")
    )
    region = shifts.valid_region()
    assert nearest.dtype == minimum.dtype == crop.dtype == np.dtype(kind).newbyteorder("=")
    assert crop.shape == (6, *field[:-2], *(part.stop - part.start for part in region))
    nearest, minimum, crop = dask.compute(nearest, minimum, crop)
    np.testing.assert_array_equal(crop, nearest[..., *region])
    np.testing.assert_array_equal(crop, minimum[..., *region])
    for frame, before, after, one in zip(frames, nearest, minimum, range(6), strict=True):
        changed = before != after
        assert (after[changed] == frame.min()).all()
        (y, x) = shifts.of_frames(slice(one, one + 1)).valid_region()
        assert not changed[..., y, x].any()
        outside = np.ones(field[-2:], bool)
        outside[1:-1, 1:-1] = False  # all around is from outside where the frame moved that way
        assert changed[..., outside].any()


def test_minimum_is_that_of_what_is_known():
    frames = np.random.default_rng(0).uniform(5, 6, (3, 37, 53)).astype(np.float32)
    frames[0, 20, 20], frames[1, 7, 7] = np.nan, -np.inf
    frames[2] = np.nan
    shifts = Shifts(np.full((3, 2), 3, np.float32), (37, 53))
    moved = apply_shifts(movie_of(frames), shifts, "minimum").frames.compute()
    np.testing.assert_array_equal(moved[0, :3], np.nanmin(frames[0]))
    np.testing.assert_array_equal(moved[1, :, :3], frames[1][np.isfinite(frames[1])].min())
    assert np.isnan(moved[2]).all()


def test_crop_keeps_what_every_frame_saw_and_leaves_flagged_frames_out():
    frames = np.arange(3 * 37 * 53, dtype=np.uint16).reshape(3, 37, 53)
    rigid = np.array([(3, 0), (0, -4), (30, 30)], np.float32)
    shifts = Shifts(rigid, (37, 53), flagged=np.array([False, False, True]))
    cropped = apply_shifts(movie_of(frames), shifts, "crop").frames.compute()
    np.testing.assert_array_equal(cropped[0], frames[0, :34, :49])
    np.testing.assert_array_equal(cropped[1], frames[1, 3:, 4:])


@pytest.mark.parametrize("piecewise", [True, False])
def test_a_crop_of_the_movie_moves_by_a_crop_of_the_shifts(piecewise):
    field, n = (96, 128), 7
    frames = np.random.default_rng(0).integers(0, 4000, (n, *field)).astype(np.uint16)
    shifts = some_shifts(n, field, piecewise=piecewise)
    y, x = slice(20, 80), slice(33, 120)
    whole = apply_shifts(movie_of(frames), shifts).frames.compute()
    part = apply_shifts(movie_of(frames[:, y, x]), shifts.crop(y, x)).frames.compute()
    # away from its borders: by the shift, up to 5 px, and 2 px of the interpolation
    inside = (slice(None), slice(7, -7), slice(7, -7))
    np.testing.assert_array_equal(part[inside], whole[:, y, x][inside])


def test_planes_of_volumes_move_by_their_own_grids():
    field, n = (3, 37, 53), 4
    frames = np.random.default_rng(0).integers(0, 4000, (n, *field)).astype(np.int16)
    shifts = some_shifts(n, field)
    shifts.rigid[:, 0] = 0
    moved = apply_shifts(movie_of(frames), shifts).frames.compute()
    for z in range(3):
        plane = Shifts(
            shifts.rigid[:, 1:], field[1:], shifts.piecewise[:, z], shifts.grid_y, shifts.grid_x
        )
        expected = apply_shifts(movie_of(frames[:, z]), plane).frames.compute()
        np.testing.assert_array_equal(moved[:, z], expected)


@pytest.mark.parametrize("parameters", METHODS)
def test_volumes_are_corrected(film, parameters):
    moved = places(40)
    frames = np.stack([film((64, 80), moved, seed=seed) for seed in range(3)], axis=1)
    corrected, motion = correct(movie_of(frames), parameters)
    got, shifts = dask.compute(corrected.frames, motion.shifts)
    assert got.shape == frames.shape
    assert shifts.rigid.shape == (40, 3)
    still = got[:, :, 12:-12, 12:-12]
    assert still.std(axis=0).mean() < 0.06 * still.mean(axis=0).std()


# ---------------------------------------------------------------------------------------- measures


@pytest.mark.parametrize("borders", ["nearest", "crop"])
@pytest.mark.parametrize("field", [(37, 53), (3, 37, 53)])
def test_measures_are_those_of_the_corrected_movie(borders, field):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 4000, (200, *field)).astype(np.uint16)
    shifts = some_shifts(200, field)
    template = rng.normal(size=field).astype(np.float32)
    movie = movie_of(frames, (70, *field))
    corrected = correct_and_measure(movie, shifts, template, borders)
    got, quality = dask.compute(corrected.movie.frames, corrected.quality)
    np.testing.assert_array_equal(got, apply_shifts(movie, shifts, borders).frames.compute())
    region = shifts.valid_region()
    seen = np.full_like(template, np.nan)
    seen[..., *region] = template[..., *region]
    seen = seen if borders == "nearest" else seen[..., *region].copy()
    parts = [
        measure(got[run], seen, run.start, sampling(200))
        for run in (slice(0, 128), slice(128, 200))
    ]
    expected = combine(parts, seen)
    np.testing.assert_array_equal(quality.correlation, expected.correlation)
    assert quality.crispness == expected.crispness
    assert quality.residual_flow == expected.residual_flow
    assert quality.correlation.shape == (200,)


@pytest.mark.parametrize("parameters", METHODS)
def test_correction_makes_every_measure_better(film, parameters):
    movie = movie_of(film(FIELD, places(150), photons=20))
    shifts, template, before = dask.compute(
        *(getattr(estimate_motion(movie, parameters), name) for name in NAMES)
    )
    after = correct_and_measure(movie, shifts, template).quality.compute()
    assert np.median(after.correlation) > np.median(before.correlation) + 0.1
    assert after.crispness > 1.2 * before.crispness
    assert after.principal_motion[0] < before.principal_motion[0]


NAMES = ("shifts", "template", "quality")


# --------------------------------------------------------------------------------- what stays still


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("uint16", 33000, 65535), ("int16", -32768, -5), ("float32", 0, 1)]
)
def test_method_none_changes_nothing(kind, low, high):
    frames = np.random.default_rng(0).uniform(low, high, (256, 37, 53)).astype(kind)
    parameters = MotionCorrectionParameters(method="none", template_frames=256)
    got, shifts, template = computed(correct(movie_of(frames), parameters))
    np.testing.assert_array_equal(got, frames)
    assert got.dtype == kind
    np.testing.assert_array_equal(shifts, np.zeros((256, 2), np.float32))
    np.testing.assert_allclose(template, frames.mean(axis=0, dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "scale", "offset"), [("uint16", 100, 33000), ("int16", 40, -9000)]
)
@pytest.mark.parametrize("parameters", METHODS)
def test_a_still_movie_keeps_its_type_and_values(film, parameters, kind, scale, offset):
    frame = (film((37, 53), [(0, 0)]) * scale + offset).astype(kind)
    frames = np.repeat(frame, 30, axis=0)
    got, *shifts_and_template = computed(correct(movie_of(frames), parameters))
    np.testing.assert_array_equal(got, frames)
    np.testing.assert_array_equal(shifts_and_template[0], 0)
    assert got.dtype == kind


@pytest.mark.parametrize("value", [0, 65535])
@pytest.mark.parametrize("parameters", METHODS)
def test_a_constant_movie_is_an_error_when_it_is_computed(parameters, value):
    corrected, motion = correct(movie_of(np.full((20, 37, 53), value, np.uint16)), parameters)
    with pytest.raises(InputError, match=r"all 20 frames .* blank.*method to none"):
        corrected.frames.compute()
    with pytest.raises(InputError, match="all 20 frames"):
        motion.shifts.compute()


# ----------------------------------------------------------------------------------------- errors


def test_shifts_of_another_number_of_frames_or_another_field():
    movie = movie_of(np.zeros((10, 37, 53), np.uint16))
    with pytest.raises(InputError, match="the shifts are of 9 frames but the movie has 10"):
        apply_shifts(movie, some_shifts(9, (37, 53)))
    with pytest.raises(InputError, match="a field of 53 x 37 px but the movie's is 37 x 53 px"):
        apply_shifts(movie, some_shifts(10, (53, 37)))
    with pytest.raises(InputError, match="a field of 1 x 37 x 53 px"):
        correct_and_measure(movie, some_shifts(10, (1, 37, 53)), np.zeros((37, 53)))


def test_crop_needs_computed_shifts_and_something_left():
    movie = movie_of(np.zeros((10, 37, 53), np.uint16))
    shifts = some_shifts(10, (37, 53))
    with pytest.raises(InputError, match=r"borders is 'crop'.*compute the shifts first"):
        apply_shifts(movie, dask.delayed(shifts), "crop")
    with pytest.raises(InputError, match="borders is 'crop'"):
        correct(movie, replace(PIECEWISE, borders="crop"))
    apart = np.zeros((10, 2), np.float32)
    apart[0], apart[1] = (20, 0), (-20, 0)
    with pytest.raises(InputError, match="no pixel was seen by every frame"):
        apply_shifts(movie, Shifts(apart, (37, 53)), "crop")


@pytest.mark.parametrize("method", ["rigid", "piecewise", "none"])
def test_a_movie_without_frames_is_an_error(method):
    movie = Movie(da.zeros((0, 37, 53), dtype="uint16"), 30.0)
    with pytest.raises(InputError, match="0 frames"):
        correct(movie, MotionCorrectionParameters(method=method, max_shift=10))


def test_too_large_a_max_shift_is_an_error_before_anything_runs():
    movie = Movie(da.zeros((10, 20, 53), dtype="uint16"), 30.0)
    with pytest.raises(InputError, match=r"max_shift is 15 px .* 20 x 53 px; .* at most 10 px"):
        correct(movie, MotionCorrectionParameters())
    correct(movie, MotionCorrectionParameters(max_shift=10))
    correct(movie, MotionCorrectionParameters(method="none"))


def test_patches_overlap_by_half_at_most_and_move_by_a_quarter():
    with pytest.raises(
        InputError, match="patch_overlap is 33 px; it must be at most half of patch"
    ):
        MotionCorrectionParameters(patch_overlap=33)
    with pytest.raises(InputError, match="max_deviation is 17 px; it must be at most a quarter of"):
        MotionCorrectionParameters(max_deviation=17)
    with pytest.raises(InputError, match="patch_size is 20 px; it must be at least 32 px"):
        MotionCorrectionParameters(patch_size=20)
    with pytest.raises(InputError, match="smoothing is 11 px; it must be at most 10 px"):
        MotionCorrectionParameters(smoothing=11)


def test_patches_are_not_too_many():
    small = MotionCorrectionParameters(patch_size=32, patch_overlap=16, max_deviation=3)
    small.check_movie((100, 512, 512))
    with pytest.raises(InputError, match="patch_size is 32 px and cuts the field of 1024 x 2048"):
        small.check_movie((100, 1024, 2048))


def test_a_template_that_is_given_counts_as_a_file():
    assert MotionCorrectionParameters().files() == ()
    assert MotionCorrectionParameters(template_file="mean.tif").files() == ("mean.tif",)


def test_parameters_name_the_keys_of_other_tools():
    described = {p.name: p.description for p in MotionCorrectionParameters.describe()}
    known = {name for name, text in described.items() if "CaImAn" in text or "Suite2p" in text}
    assert set(described) - known <= {"max_shift_z", "template_updates"}
    with pytest.raises(InputError, match="did you mean 'max_shift'"):
        MotionCorrectionParameters.from_mapping({"max_shifts": 6})
