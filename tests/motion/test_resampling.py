"""Resampling, against cubic convolution written from its definition, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from napari_calcium.errors import InputError
from napari_calcium.motion.resampling import resample, shift_frames
from napari_calcium.shifts import Shifts

FIELD = (37, 53)
GRID_Y = np.array([5, 14.5, 22, 31], np.float32)
GRID_X = np.array([6, 20, 33.25, 47], np.float32)


def rms(error):
    return float(np.sqrt(np.mean(np.square(error))))


def cubic(distance):
    """Keys' kernel, written from its definition."""
    d = np.abs(distance)
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def along(values, place, axis):
    """Oracle: one axis interpolated at places, the border repeated outside."""
    weights = np.zeros((len(place), values.shape[axis]))
    for row, at in zip(weights, place, strict=True):
        for pixel in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            row[np.clip(pixel, 0, len(row) - 1)] += cubic(at - pixel)
    return np.moveaxis(np.tensordot(weights, values.astype(float), axes=(1, axis)), 0, axis)


def resampled(frame, shift):
    """Oracle of a rigid shift, (y, x) or (z, y, x)."""
    for axis, each in enumerate(shift):
        frame = along(frame, np.arange(frame.shape[axis]) - each, axis)
    return frame


def field_of_shifts(nodes, grid_y, grid_x, field):
    """Oracle of the shift at every pixel, (2, y, x): bilinear, constant beyond the outermost."""
    y, x = (np.arange(n) for n in field)
    shift = np.empty((2, *field))
    for axis, values in enumerate(np.moveaxis(nodes, 2, 0)):
        rows = np.stack([np.interp(x, grid_x, row) for row in values])
        shift[axis] = np.stack([np.interp(y, grid_y, column) for column in rows.T], axis=1)
    return shift


def warped(frame, shift):
    """Oracle of a shift (2, y, x) that differs: each pixel as the sum over its 4 x 4 neighbours."""
    height, width = frame.shape
    y, x = np.mgrid[:height, :width] - shift
    total = np.zeros(frame.shape)
    for i in range(-1, 3):
        for j in range(-1, 3):
            row, column = np.floor(y).astype(int) + i, np.floor(x).astype(int) + j
            values = frame[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
            total += cubic(y - row) * cubic(x - column) * values
    return total


def rigid(shifts, field=FIELD):
    return Shifts(np.asarray(shifts, np.float32), field=field)


def piecewise(nodes, field=FIELD, grid_y=GRID_Y, grid_x=GRID_X):
    """Shifts of one frame by a grid (grid_y, grid_x, 2)."""
    nodes = np.asarray(nodes, np.float32)[None]
    whole = nodes.reshape(1, -1, 2).mean(1)
    if len(field) == 3:
        whole = np.insert(whole, 0, 0, axis=1)
    return Shifts(whole, field, nodes, grid_y, grid_x)


def random_nodes(seed=0, whole=(7.3, -11.6), deviation=1.0, shape=(4, 4)):
    return np.array(whole) + np.random.default_rng(seed).uniform(-deviation, deviation, (*shape, 2))


@pytest.mark.parametrize("shift", [(0.3, -1.7), (-2.5, 0), (0, 3.25), (-7.9, 8.1)])
def test_moved_frames_equal_the_cubic_convolution(shift):
    frame = np.random.default_rng(0).normal(size=FIELD)
    moved = shift_frames(frame[None], np.array([shift]))[0]
    np.testing.assert_allclose(moved, resampled(frame, shift), atol=1e-12)  # float64 rounding
    single = shift_frames(frame[None].astype(np.float32), np.array([shift]))[0]
    np.testing.assert_allclose(single, moved, atol=2e-6)  # float32 rounding


def test_moved_frames_show_what_the_scene_has_there(film):
    still, *frames = film(FIELD, [(0, 0), (2.3, -3.6), (-1.5, 0.5)])
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
MOST_USED = [TYPES[0], TYPES[1], TYPES[2], TYPES[3], TYPES[6]]


@pytest.mark.parametrize(("kind", "low", "high"), TYPES)
def test_whole_shifts_copy_integers_exactly(kind, low, high):
    rng = np.random.default_rng(0)
    native = np.dtype(kind).newbyteorder("=")
    frames = rng.integers(low, high, size=(2, *FIELD), dtype=native)
    frames[:, 10, 20], frames[:, 20, 10] = low, high
    frames = frames.astype(kind)
    still, moved = shift_frames(frames, np.array([(0, 0), (3, -5)]))
    np.testing.assert_array_equal(still, frames[0])
    np.testing.assert_array_equal(moved[3:, :-5], frames[1, :-3, 5:])
    assert still.dtype == native
    assert (still.min(), still.max()) == (low, high)
    np.testing.assert_array_equal(resample(frames, rigid([(0, 0), (3, -5)])), [still, moved])


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_whole_shifts_copy_floats_exactly(kind):
    frames = np.random.default_rng(0).random((2, *FIELD)).astype(kind)
    frames[:, 20, 10] = np.nan
    still, moved = shift_frames(frames, np.array([(0, 0), (-3, 5)]))
    np.testing.assert_array_equal(still, frames[0])
    np.testing.assert_array_equal(moved[:-3, 5:], frames[1, 3:, :-5])
    assert still.dtype == kind


@pytest.mark.parametrize(("kind", "low", "high"), TYPES)
def test_integers_do_not_overflow_where_the_interpolation_overshoots(kind, low, high):
    frames = np.full((1, *FIELD), low, dtype=kind)
    frames[:, 10:20, 20:40] = high
    moved = shift_frames(frames, np.array([(0.5, 0.5)]))[0]
    assert moved[5, 5] == low
    assert moved[15, 30] >= high * (1 - 1e-15)  # int64: the next float64 below the limit
    assert moved.min() == low


@pytest.mark.parametrize(("kind", "low", "high"), MOST_USED)
def test_integers_do_not_overflow_in_a_piecewise_field(kind, low, high):
    frames = np.full((1, *FIELD), low, dtype=kind)
    frames[:, 10:20, 20:40] = high
    nodes = random_nodes(whole=(0.5, 0.5), deviation=0.3)
    moved = resample(frames, piecewise(nodes))[0]
    truth = warped(frames[0].astype(float), field_of_shifts(nodes, GRID_Y, GRID_X, FIELD))
    step = max(1, (high - low) * 2e-6)  # a count, or float32 rounding of the shifts
    assert np.abs(moved.astype(float) - truth.clip(low, high)).max() <= step
    assert (moved.min(), moved.max()) == (low, high)


def test_integers_are_rounded_to_the_nearest():
    frames = np.array([[[10, 10, 10, 11, 11, 11]] * 4], np.int16)
    left, right = shift_frames(np.repeat(frames, 2, 0), np.array([(0, 0.4), (0, 0.6)]))
    np.testing.assert_array_equal(left[0], [10, 10, 10, 11, 11, 11])
    np.testing.assert_array_equal(right[0], [10, 10, 10, 10, 11, 11])


def shifts_along(axis, shift, kind):
    """The same shift along one axis, as a whole or by a field that is nearly the same."""
    both = np.zeros(2)
    both[axis] = shift
    if kind == "rigid":
        return rigid([both])
    return piecewise(both + random_nodes(whole=(0, 0), deviation=0.05))


@pytest.mark.parametrize("kind", ["rigid", "piecewise"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shift", [-9, -2, 3, 12])
def test_each_axis_moves_with_its_own_sign(kind, axis, shift):
    frame = np.zeros((1, *FIELD), np.uint16)
    frame[0, 18, 26] = 40000
    place = np.array([18, 26])
    place[axis] += shift
    moved = resample(frame, shifts_along(axis, shift, kind))[0]
    assert np.unravel_index(np.argmax(moved), FIELD) == tuple(place)


@pytest.mark.parametrize("kind", ["rigid", "piecewise"])
@pytest.mark.parametrize("part", [0, 0.4])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_nothing_comes_in_from_the_opposite_edge(kind, axis, sign, part):
    frame = np.zeros(FIELD, np.uint16)
    far = slice(-8, None) if sign > 0 else slice(None, 8)
    near = slice(None, 5) if sign > 0 else slice(-5, None)
    np.moveaxis(frame, axis, 0)[far] = 50000
    moved = resample(frame[None], shifts_along(axis, sign * (5 + part), kind))[0]
    assert not np.moveaxis(moved, axis, 0)[near].any()


BEYOND = [(100.0, 0.0), (0.5, -200.5), (-99.5, 99.5)]


@pytest.mark.parametrize("shift", BEYOND)
def test_shifts_beyond_the_field_leave_copies_of_the_border(shift):
    frame = np.random.default_rng(0).integers(0, 65535, FIELD).astype(np.uint16)
    moved = resample(frame[None], rigid([shift]))[0]
    if abs(shift[0]) > 37:
        assert (moved == moved[0]).all()
    if abs(shift[1]) > 53:
        np.testing.assert_array_equal(moved, np.repeat(moved[:, :1], 53, axis=1))


@pytest.mark.parametrize("shift", BEYOND)
def test_fields_of_shifts_beyond_the_field_do_too(shift):
    frame = np.random.default_rng(0).integers(0, 65535, FIELD).astype(np.uint16)
    nodes = random_nodes(whole=shift, deviation=0.2).astype(np.float32)
    truth = warped(frame, field_of_shifts(nodes, GRID_Y, GRID_X, FIELD)).clip(0, 65535)
    moved = resample(frame[None], piecewise(nodes))[0]
    # rounding, and 200 px in float32: 1e-5 px of noise that changes by up to 1e5 per px
    np.testing.assert_allclose(moved, truth, atol=0.5 + 2)
    assert not resample(frame[None], piecewise(nodes), fill=0).any()


@pytest.mark.parametrize(
    ("field", "whole", "deviation"),
    [
        (FIELD, (7.3, -11.6), 1.0),
        (FIELD, (0, 0), 0.2),
        (FIELD, (-30.2, 45.7), 3.0),  # mostly outside
        (FIELD, (0.5, -0.5), 20.0),  # folds: neighbours come from far apart
        ((5, 7), (0.4, -1.3), 0.5),  # less than a run of pixels
        ((53, 37), (3.3, 2.6), 1.0),
    ],
)
def test_piecewise_equals_the_cubic_convolution_at_every_pixel(field, whole, deviation):
    frame = np.random.default_rng(1).normal(size=field)
    nodes = random_nodes(whole=whole, deviation=deviation).astype(np.float32)
    truth = warped(frame, field_of_shifts(nodes, GRID_Y, GRID_X, field))
    moved = resample(frame[None], piecewise(nodes, field))[0]
    np.testing.assert_allclose(moved, truth, atol=1e-11)  # float64 rounding
    single = resample(frame[None].astype(np.float32), piecewise(nodes, field))[0]
    # float32: shifts of 10 px are known to 1e-6 px, white noise changes by up to 5 per px
    np.testing.assert_allclose(single, truth, atol=3e-5)


def test_error_of_a_realistic_field_is_far_below_the_noise():
    """0.02 px per px, shifts of 15 px: integers differ from the oracle by their rounding only."""
    field = (96, 128)
    scene = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=field), 2.0)
    frame = (2000 + 500 * scene / scene.std()).astype(np.uint16)
    y, x = np.meshgrid([12, 48, 84], [16, 64, 112], indexing="ij")
    nodes = np.stack([15 + 0.02 * (y - x), -14 + 0.02 * (y + x)], axis=-1).astype(np.float32)
    grid = np.array([12, 48, 84], np.float32), np.array([16, 64, 112], np.float32)
    truth = warped(frame, field_of_shifts(nodes, *grid, field))
    moved = resample(frame[None], piecewise(nodes, field, *grid))[0]
    assert np.abs(moved - truth).max() <= 0.5 + 0.01  # rounding; 0.01 counts of 500 of contrast
    assert rms(moved - truth) < 0.001 * frame.std()


@pytest.mark.parametrize("shift", [(0, 0), (3, -5), (0.3, -1.7), (-7.9, 8.1)])
@pytest.mark.parametrize("kind", ["uint16", "float32"])
@pytest.mark.parametrize("fill", [None, 7])
def test_a_constant_field_moves_as_the_rigid_shift(shift, kind, fill):
    frame = np.random.default_rng(0).integers(0, 60000, (1, *FIELD)).astype(kind)
    constant = np.tile(np.array(shift, float), (4, 4, 1))
    moved = resample(frame, rigid([shift]), fill)
    np.testing.assert_array_equal(resample(frame, piecewise(constant), fill), moved)
    constant[0, 0] += 1e-6  # the kernel for fields that differ
    nearly = resample(frame, piecewise(constant), fill).astype(float)
    inside = (slice(None), slice(9, -9), slice(9, -9))  # a fill begins a pixel sooner or later
    np.testing.assert_allclose(nearly[inside], moved[inside].astype(float), atol=1)


def test_one_place_along_an_axis_is_constant_along_it():
    frame = np.random.default_rng(0).normal(size=FIELD)
    nodes = random_nodes(shape=(1, 4)).astype(np.float32)
    shifts = piecewise(nodes, grid_y=np.array([18], np.float32))
    truth = warped(frame, field_of_shifts(nodes, [18], GRID_X, FIELD))
    np.testing.assert_allclose(resample(frame[None], shifts)[0], truth, atol=1e-11)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("field_kind", ["rigid", "piecewise"])
def test_fill_is_where_pixels_come_from_outside_and_nowhere_else(kind, field_kind):
    frame = np.random.default_rng(0).integers(1, 100, (1, *FIELD)).astype(kind)
    nodes = random_nodes(seed=3, deviation=1.0 if field_kind == "piecewise" else 0.0)
    nodes = nodes.astype(np.float32)
    shifts = piecewise(nodes) if field_kind == "piecewise" else rigid([nodes[0, 0]])
    y, x = np.mgrid[:37, :53] - field_of_shifts(nodes.astype(float), GRID_Y, GRID_X, FIELD)
    outside = (y < 0) | (y > 36) | (x < 0) | (x > 52)
    plain, filled = resample(frame, shifts)[0], resample(frame, shifts, fill=0)[0]
    np.testing.assert_array_equal(filled, np.where(outside, 0, plain))


@pytest.mark.parametrize("shift", [(3, -5), (-4, 0), (0, 6)])
def test_fill_of_whole_shifts_keeps_the_border_itself(shift):
    frame = np.ones((1, *FIELD), np.uint16)
    moved = resample(frame, rigid([shift]), fill=0)[0]
    assert moved.sum() == (37 - abs(shift[0])) * (53 - abs(shift[1]))
    shifts = rigid([shift])
    assert moved[shifts.valid_region()].all()


@pytest.mark.parametrize(
    ("kind", "fill", "stored"),
    [
        ("uint8", -3.0, 0),
        ("uint8", 1e9, 255),
        ("uint16", 7.6, 8),
        ("int16", -np.inf, -32768),
        ("int64", 1e300, 2**63 - 1),
        ("float32", 0.5, 0.5),
    ],
)
def test_fill_is_rounded_and_kept_within_the_type(kind, fill, stored):
    frame = np.ones((1, *FIELD), kind)
    assert resample(frame, rigid([(1.5, 0)]), fill)[0, 0, 0] == stored


def test_nan_fills_floats_only():
    frame = np.ones((1, *FIELD), np.float32)
    assert np.isnan(resample(frame, rigid([(1.5, 0)]), np.nan)[0, :2]).all()
    with pytest.raises(InputError, match="fill is nan but the frames are uint16"):
        resample(frame.astype(np.uint16), rigid([(1.5, 0)]), np.nan)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("field_kind", ["rigid", "piecewise"])
def test_nan_spreads_only_over_the_pixels_interpolated_from_it(kind, field_kind):
    frame = np.random.default_rng(0).random((1, *FIELD)).astype(kind)
    frame[0, 18, 26] = np.nan
    nodes = random_nodes(whole=(2.4, -3.3), deviation=0.8 if field_kind == "piecewise" else 0.0)
    shifts = piecewise(nodes) if field_kind == "piecewise" else rigid([nodes[0, 0]])
    y, x = np.mgrid[:37, :53] - field_of_shifts(nodes, GRID_Y, GRID_X, FIELD)
    near = (np.abs(y - 18) < 2) & (np.abs(x - 26) < 2)
    np.testing.assert_array_equal(np.isnan(resample(frame, shifts)[0]), near)


def test_a_frame_has_its_result_whatever_frames_come_with_it():
    frames = np.random.default_rng(0).integers(0, 60000, (5, *FIELD)).astype(np.uint16)
    nodes = np.stack([random_nodes(seed) for seed in range(5)]).astype(np.float32)
    shifts = Shifts(nodes.mean((1, 2)), FIELD, nodes, GRID_Y, GRID_X)
    together = resample(frames, shifts)
    for time in range(5):
        one = slice(time, time + 1)
        alone = resample(frames[one], shifts.of_frames(one))
        np.testing.assert_array_equal(alone[0], together[time])


def test_frames_that_are_not_contiguous():
    frames = np.random.default_rng(0).random((53, 37, 3))
    moved = resample(frames.T, rigid([(0.5, 1.5)] * 3))
    np.testing.assert_array_equal(moved, resample(frames.T.copy(), rigid([(0.5, 1.5)] * 3)))


@pytest.mark.parametrize("shape", [(2, 37, 53), (1, 53, 37), (1, 4, 37, 53)])
def test_frames_that_are_not_of_the_shifts_are_an_error(shape):
    with pytest.raises(ValueError, match=r"frames .* and shifts"):
        resample(np.zeros(shape), rigid([(0, 0)]))


def test_no_frames():
    assert resample(np.zeros((0, *FIELD), np.uint16), rigid(np.zeros((0, 2)))).shape == (0, *FIELD)


VOLUME = (5, 37, 53)


@pytest.mark.parametrize("shift", [(0.4, 0, 0), (-1.3, 2, -3), (0.6, -1.7, 2.2), (0, 0.5, -4.25)])
def test_volumes_equal_the_cubic_convolution_along_each_axis(shift):
    volume = np.random.default_rng(0).normal(size=VOLUME)
    moved = resample(volume[None], rigid([shift], VOLUME))[0]
    truth = resampled(volume, np.float32(shift).astype(float))
    np.testing.assert_allclose(moved, truth, atol=1e-12)
    counts = (1000 + 100 * volume).astype(np.uint16)
    moved = resample(counts[None], rigid([shift], VOLUME))[0]
    # rounded once: half a count, and float32 rounding of 1000 counts
    assert np.abs(moved - resampled(counts, np.float32(shift).astype(float))).max() <= 0.501


@pytest.mark.parametrize("kind", ["uint16", "int32", "float64"])
@pytest.mark.parametrize("fill", [None, 0])
def test_whole_shifts_of_volumes_copy_exactly(kind, fill):
    volume = np.random.default_rng(0).integers(1, 65535, VOLUME).astype(kind)
    moved = resample(volume[None], rigid([(2, -3, 4)], VOLUME), fill)[0]
    np.testing.assert_array_equal(moved[2:, :-3, 4:], volume[:-2, 3:, :-4])
    if fill is None:
        np.testing.assert_array_equal(moved[0], moved[2])
    else:
        assert not moved[:2].any()


@pytest.mark.parametrize("along_z", [0, 0.3, -2])
def test_one_plane_is_a_frame(along_z):
    plane = np.random.default_rng(0).integers(0, 65535, (1, *FIELD)).astype(np.uint16)
    moved = resample(plane[:, None], rigid([(along_z, 0.5, -1.5)], (1, *FIELD)))[0]
    np.testing.assert_array_equal(moved, resample(plane, rigid([(0.5, -1.5)])))


def test_planes_from_outside_are_filled():
    volume = np.ones((1, *VOLUME), np.uint16)
    moved = resample(volume, rigid([(1.5, 0, 0)], VOLUME), fill=9)[0]
    np.testing.assert_array_equal(moved[:, 18, 26], [9, 9, 1, 1, 1])


def test_nan_in_a_volume_stays_in_its_column_if_the_shift_is_along_z():
    volume = np.random.default_rng(0).random((1, *VOLUME))
    volume[0, 2, 18, 26] = np.nan
    moved = resample(volume, rigid([(0.5, 3, -2)], VOLUME))[0]
    assert sorted(set(zip(*np.nonzero(np.isnan(moved))[1:], strict=True))) == [(21, 24)]


@pytest.mark.parametrize("along_z", [0, 0.4])
def test_planes_of_a_volume_have_their_own_grids(along_z):
    volume = np.random.default_rng(0).normal(size=VOLUME)
    nodes = np.stack([random_nodes(seed) for seed in range(5)]).astype(np.float32)
    shifts = Shifts(np.array([[along_z, 7, -11]], np.float32), VOLUME, nodes[None], GRID_Y, GRID_X)
    between = along(volume, np.arange(5) - np.float64(np.float32(along_z)), 0)
    truth = [
        warped(plane, field_of_shifts(grid, GRID_Y, GRID_X, FIELD))
        for plane, grid in zip(between, nodes, strict=True)
    ]
    np.testing.assert_allclose(resample(volume[None], shifts)[0], truth, atol=1e-11)
