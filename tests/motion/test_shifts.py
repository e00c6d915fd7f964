"""Shifts found and applied, against motion that is known because it was made."""

from __future__ import annotations

import numpy as np
import pytest

from napari_calcium.errors import InputError
from napari_calcium.motion.shifts import rigid_shifts, shift_frames

FIELDS = [(96, 128), (128, 96), (37, 53)]


def rms(error):
    return float(np.sqrt(np.mean(np.square(error))))


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("place", [(3, 0), (0, 3), (-4, 0), (0, -4), (2, -5)])
def test_shift_undoes_the_motion_on_its_own_axis_with_its_sign(film, field, place):
    template, frame = film(field, [(0, 0), place])
    (shift,) = rigid_shifts(frame[None], template, max_shift=8)
    # content that lies at +3 must be moved by -3; 0.1 px is far below a swapped axis or sign
    np.testing.assert_allclose(shift, np.negative(place), atol=0.1)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("field", "photons", "tolerance"),
    [
        # without noise: the step of the fine grid is 0.25 px, its parabola is good to 0.01 px
        ((96, 128), None, 0.02),
        ((128, 96), None, 0.02),
        # small field: a sixth of what is under the taper differs between two frames
        ((37, 53), None, 0.12),
        # photon noise: 1.5 times the rms measured over 180 shifts
        ((96, 128), 50, 0.03),
        ((96, 128), 5, 0.08),
        ((96, 128), 2, 0.12),
    ],
)
def test_sub_pixel_shifts_are_recovered(film, field, photons, tolerance, seed):
    places = np.random.default_rng(seed).uniform(-6, 6, size=(30, 2))
    template = film(field, [(0, 0)], seed=seed)[0]
    frames = film(field, places, photons, seed)
    assert rms(rigid_shifts(frames, template, max_shift=8) + places) < tolerance


def test_shifts_are_not_drawn_towards_zero(film):
    places = np.stack([np.linspace(-6, 6, 25), np.linspace(5, -5, 25)], axis=1)
    template = film((96, 128), [(0, 0)])[0]
    shifts = rigid_shifts(film((96, 128), places), template, max_shift=8)
    for axis in (0, 1):
        slope = np.polyfit(places[:, axis], -shifts[:, axis], 1)[0]
        # a taper that stays with the frame costs 1 to 3 % here; borders without any cost 8 %
        assert abs(slope - 1) < 0.003


def test_brightness_and_offset_do_not_matter(film):
    template, frame = film((96, 128), [(0, 0), (1.4, -2.3)])
    plain = rigid_shifts(frame[None], template, max_shift=8)
    changed = rigid_shifts(20 * frame[None] + 1000, template, max_shift=8)
    np.testing.assert_allclose(changed, plain, atol=2 / 1024)  # float32 rounding


def test_a_frame_has_its_shift_whatever_frames_come_with_it(film):
    places = np.random.default_rng(0).uniform(-6, 6, size=(6, 2))
    template, *frames = film((37, 53), [(0, 0), *places])
    together = rigid_shifts(np.stack(frames), template, max_shift=8)
    alone = [rigid_shifts(frame[None], template, max_shift=8)[0] for frame in frames]
    np.testing.assert_array_equal(together, alone)


def test_high_pass_sees_past_light_that_does_not_move(film):
    # one-photon: a vignette fixed to the camera over a scene that moves
    y, x = np.mgrid[-1:1:96j, -1:1:128j]
    light = 300 * np.exp(-(y**2 + x**2))
    places = np.random.default_rng(0).uniform(-6, 6, size=(10, 2))
    template, *frames = film((96, 128), [(0, 0), *places]) + light
    shifts = rigid_shifts(np.stack(frames), template, max_shift=8, high_pass=4.0)
    assert rms(shifts + places) < 0.05


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_unit_does_not_matter(film, scale):
    template, frame = film((37, 53), [(0, 0), (1.4, -2.3)]) * scale
    (shift,) = rigid_shifts(frame[None], template, max_shift=8)
    np.testing.assert_allclose(shift, (-1.4, 2.3), atol=0.1)


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_constant_frames_have_no_shift(film, value):
    template = film((37, 53), [(0, 0)])[0]
    frames = np.full((3, 37, 53), value, np.uint16)
    np.testing.assert_array_equal(rigid_shifts(frames, template, max_shift=8), 0)


def test_constant_template_gives_no_shift(film):
    frames = film((37, 53), [(0, 0), (1, 2)])
    flat = np.full((37, 53), 0.1, np.float32)
    np.testing.assert_array_equal(rigid_shifts(frames, flat, max_shift=8), 0)


def test_a_still_movie_has_no_shift(film):
    frames = np.repeat(film((37, 53), [(0, 0)], photons=5), 4, axis=0)
    np.testing.assert_array_equal(rigid_shifts(frames, frames[0], max_shift=8), 0)


def test_nan_borders_and_empty_frames(film):
    template, frame, empty = film((96, 128), [(0, 0), (2.5, -1.5), (0, 0)])
    frame[:3] = np.nan
    frame[:, -3:] = np.inf
    empty[:] = np.nan
    shifts = rigid_shifts(np.stack([frame, empty]), template, max_shift=8)
    np.testing.assert_allclose(shifts[0], (-2.5, 1.5), atol=0.1)  # a taper covers the border
    np.testing.assert_array_equal(shifts[1], 0)


def test_shifts_stay_within_max_shift(film):
    frames = film((37, 53), np.random.default_rng(0).uniform(-9, 9, (20, 2)), photons=1)
    shifts = rigid_shifts(frames, frames[0], max_shift=3)
    assert np.abs(shifts).max() <= 3


def test_max_shift_beyond_half_the_field_is_an_error():
    frame = np.zeros((37, 53))
    assert rigid_shifts(frame[None], frame, max_shift=18).shape == (1, 2)
    with pytest.raises(InputError, match=r"max_shift is 19 px .* 37 x 53 px; .* at most 18 px"):
        rigid_shifts(frame[None], frame, max_shift=19)


def cubic(distance):
    """Keys' kernel, written from its definition."""
    d = np.abs(distance)
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def resampled(frame, shift):
    """Oracle: every output pixel as the sum over a padded frame, one axis after the other."""
    pad = 12
    for axis in (0, 1):
        padded = np.pad(frame, [(pad, pad) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        source = np.arange(frame.shape[axis])[:, None] - shift[axis]
        weights = cubic(source - (np.arange(padded.shape[axis]) - pad)[None, :])
        frame = np.moveaxis(np.tensordot(weights, padded, axes=(1, axis)), 0, axis)
    return frame


@pytest.mark.parametrize("shift", [(0.3, -1.7), (-2.5, 0), (0, 3.25), (-7.9, 8.1)])
def test_moved_frames_equal_the_cubic_convolution(shift):
    frame = np.random.default_rng(0).normal(size=(37, 53))
    moved = shift_frames(frame[None], np.array([shift]))[0]
    np.testing.assert_allclose(moved, resampled(frame, shift), atol=1e-12)  # float64 rounding
    single = shift_frames(frame[None].astype(np.float32), np.array([shift]))[0]
    np.testing.assert_allclose(single, moved, atol=2e-6)  # float32 rounding


def test_moved_frames_show_what_the_scene_has_there(film):
    still, *frames = film((37, 53), [(0, 0), (2.3, -3.6), (-1.5, 0.5)])
    moved = shift_frames(np.stack(frames), np.array([(-2.3, 3.6), (1.5, -0.5)]))
    inside = (slice(None), slice(6, -6), slice(6, -6))
    # cubic convolution of detail that is 2 px small: 1.3 % of its contrast was measured
    assert rms((moved - still)[inside]) < 0.02 * still.std()


TYPES = [
    ("uint8", 0, 255),
    ("uint16", 0, 65535),
    ("int16", -32768, 32767),
    ("int32", -(2**31), 2**31 - 1),
    ("uint32", 0, 2**32 - 1),
    ("int64", -(2**63), 2**63 - 1),
    (">u2", 0, 65535),
]


@pytest.mark.parametrize(("kind", "low", "high"), TYPES)
def test_whole_shifts_copy_integers_exactly(kind, low, high):
    rng = np.random.default_rng(0)
    frames = rng.integers(low, high, size=(2, 37, 53), dtype=np.dtype(kind).newbyteorder("="))
    frames[:, 10, 20], frames[:, 20, 10] = low, high
    frames = frames.astype(kind)
    still, moved = shift_frames(frames, np.array([(0, 0), (3, -5)]))
    np.testing.assert_array_equal(still, frames[0])
    np.testing.assert_array_equal(moved[3:, :-5], frames[1, :-3, 5:])
    assert still.dtype.newbyteorder("=") == np.dtype(kind).newbyteorder("=")
    assert (still.min(), still.max()) == (low, high)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_whole_shifts_copy_floats_exactly(kind):
    frames = np.random.default_rng(0).random((2, 37, 53)).astype(kind)
    frames[:, 20, 10] = np.nan
    still, moved = shift_frames(frames, np.array([(0, 0), (-3, 5)]))
    np.testing.assert_array_equal(still, frames[0])
    np.testing.assert_array_equal(moved[:-3, 5:], frames[1, 3:, :-5])
    assert still.dtype == kind


@pytest.mark.parametrize(("kind", "low", "high"), TYPES)
def test_integers_do_not_overflow_where_the_interpolation_overshoots(kind, low, high):
    frames = np.full((1, 37, 53), low, dtype=kind)
    frames[:, 10:20, 20:40] = high
    moved = shift_frames(frames, np.array([(0.5, 0.5)]))[0]
    assert moved[5, 5] == low
    assert moved[15, 30] >= high * (1 - 1e-15)  # int64: the next float64 below the limit
    assert moved.min() == low


def test_integers_are_rounded_to_the_nearest():
    frames = np.array([[[10, 10, 10, 11, 11, 11]] * 4], np.int16)
    left, right = shift_frames(np.repeat(frames, 2, 0), np.array([(0, 0.4), (0, 0.6)]))
    np.testing.assert_array_equal(left[0], [10, 10, 10, 11, 11, 11])
    np.testing.assert_array_equal(right[0], [10, 10, 10, 10, 11, 11])


@pytest.mark.parametrize("part", [0, 0.4])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_nothing_comes_in_from_the_opposite_edge(axis, sign, part):
    frame = np.zeros((37, 53), np.uint16)
    far = slice(-8, None) if sign > 0 else slice(None, 8)
    near = slice(None, 5) if sign > 0 else slice(-5, None)
    np.moveaxis(frame, axis, 0)[far] = 50000
    shift = np.zeros(2)
    shift[axis] = sign * (5 + part)
    moved = shift_frames(frame[None], shift[None])[0]
    assert not np.moveaxis(moved, axis, 0)[near].any()


@pytest.mark.parametrize("shift", [(100.0, 0.0), (0.5, -200.5), (-99.5, 99.5)])
def test_shifts_beyond_the_field_leave_copies_of_the_border(shift):
    frame = np.random.default_rng(0).integers(0, 65535, (37, 53)).astype(np.uint16)
    moved = shift_frames(frame[None], np.array([shift]))[0]
    if abs(shift[0]) > 37:
        border = moved == (moved[0] if shift[0] > 0 else moved[-1])
        assert border.all()
    if abs(shift[1]) > 53:
        np.testing.assert_array_equal(moved, np.repeat(moved[:, :1], 53, axis=1))
