"""Shifts of patches, against a scene that was bent, and what is left of them without noise."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings
from scipy import ndimage

from napari_calcium.motion.correlation import Band
from napari_calcium.motion.piecewise import Grid, PiecewiseFilter, without_noise

FIELD = (120, 170)


def rms(error):
    return float(np.sqrt(np.mean(np.square(error))))


def white(template, grid, variance, max_deviation=3.0, **options):
    """Return the filter of a template (z, y, x) or (y, x) under noise of a variance per pixel."""
    volume = template if template.ndim == 3 else template[None]
    band = Band.of(grid.size)
    power = np.full(band.weights.shape, variance * band.taper.size, np.float32)
    return PiecewiseFilter.of(volume.astype(np.float32), grid, max_deviation, power, **options)


def nearest_whole(place):
    """Return the shift (1, 3) of a frame that lies at a place (y, x), to the nearest px."""
    return np.array([[0, *np.rint(np.negative(place))]], np.float32)


# ------------------------------------------------------------------------------------------- grid


@settings(deadline=None)
@given(
    height=st.integers(8, 700),
    width=st.integers(8, 700),
    patch=st.integers(24, 128),
    part=st.floats(0, 0.9),
    planes=st.integers(1, 3),
)
@example(height=37, width=53, patch=64, part=0.25, planes=1)
@example(height=64, width=65, patch=64, part=0, planes=1)
def test_patches_cover_the_field_evenly(height, width, patch, part, planes):
    overlap = int(part * patch)
    grid = Grid.over((planes, height, width), patch, overlap)
    assert grid.size == (min(patch, height), min(patch, width))
    assert grid.shape == (planes, len(grid.tops), len(grid.lefts))
    for starts, size, n in zip((grid.tops, grid.lefts), grid.size, (height, width), strict=True):
        assert starts[0] == 0
        assert starts[-1] + size == n
        steps = np.diff(starts)
        if len(steps):
            assert steps.min() > 0
            assert steps.max() <= size - overlap
            assert np.ptp(steps) <= 1
            fewest = (n - size) / (size - overlap)  # with one patch less some would not overlap
            assert len(steps) - 1 < fewest <= len(steps)


@pytest.mark.parametrize("planes", [1, 2])
def test_centres_are_those_of_the_windows(planes):
    grid = Grid.over((planes, 96, 128), 50, 11)
    windows = grid.windows
    assert len(windows.tops) == np.prod(grid.shape)
    index = 0
    for plane in range(planes):
        for y in grid.y:
            for x in grid.x:
                middle_y = windows.tops[index] + np.arange(50).mean()
                middle_x = windows.lefts[index] + np.arange(50).mean()
                assert (windows.planes[index], middle_y, middle_x) == (plane, y, x)
                index += 1


def test_neighbours_touch_and_are_of_one_plane():
    taken = Grid.over((2, 150, 200), 64, 16).neighbours().reshape(2, 3, 4, 2, 3, 4)
    assert not taken[0, :, :, 1].any()
    assert not taken[1, :, :, 0].any()
    straight, across = 0.5, 0.25
    expected = np.zeros((3, 4))
    expected[:2, :3] = [
        [across, straight, across],
        [straight, 1, straight],
    ]
    np.testing.assert_array_equal(taken[0, 1, 1, 0], np.vstack([expected[:2], expected[:1]]))
    expected = np.zeros((3, 4))
    expected[:2, :2] = [[1, straight], [straight, across]]
    np.testing.assert_array_equal(taken[1, 0, 0, 1], expected)


def test_shared_noise_is_that_of_white_noise_under_the_tapers():
    grid = Grid.over((1, 60, 90), 40, 15)
    taper = Band.of(grid.size).taper.astype(np.float64)
    weights = np.zeros((len(grid.windows.tops), 60, 90))
    for weight, top, left in zip(weights, grid.windows.tops, grid.windows.lefts, strict=True):
        weight[top : top + 40, left : left + 40] = taper**2
    flat = weights.reshape(len(weights), -1)
    expected = flat @ flat.T / (flat[0] @ flat[0])
    np.testing.assert_allclose(grid.shared_noise(taper), expected, atol=1e-6)
    two = Grid.over((2, 60, 90), 40, 15).shared_noise(taper)
    np.testing.assert_allclose(two, expected, atol=1e-6)  # those of one plane, which share none


# ----------------------------------------------------------------------------------------- shifts


def bent(field, seed, largest):
    """Return a smooth field of shifts (2, y, x) at places of the corrected frame."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(field) / np.reshape(field, (2, 1, 1))
    waves = np.stack([np.cos(np.pi * y), np.cos(np.pi * x), np.cos(np.pi * y) * np.cos(np.pi * x)])
    shifts = np.tensordot(rng.normal(size=(2, 3)) * (1, 1, 0.5), waves, 1)
    return shifts * (largest / np.abs(shifts).max())


def place_in_frame(shifts):
    """Return where content lies in the frame, given the shifts at places of the corrected one.

    What the corrected frame has at c, the frame has at p = c - shift(c), so place(p) = -shift(c).
    """
    place = -shifts
    for _ in range(30):
        at = np.indices(shifts.shape[1:]) - place
        place = -np.stack([ndimage.map_coordinates(s, at, order=1, mode="nearest") for s in shifts])
    return place


def at_centres(shifts, grid):
    at = np.meshgrid(grid.y, grid.x, indexing="ij")
    return np.stack([ndimage.map_coordinates(each, at, order=1) for each in shifts], axis=-1)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("largest", "tolerance"),
    # within a patch of 64 px the shift varies by a third of its range, and the patch takes what
    # its structure says: 0.04 and 0.08 px rms without any noise, up to 0.11 for one scene
    [(0.5, 0.05), (1.5, 0.12)],
)
def test_a_bent_scene_is_followed(scene, view, largest, tolerance, seed):
    image = scene(tuple(n + 32 for n in FIELD), seed)
    grid = Grid.over((1, *FIELD), 64, 16)
    found = white(view(image, FIELD), grid, 0.05)
    whole = np.array([1.3, -2.2])
    shifts = bent(FIELD, seed, largest) + whole[:, None, None]
    frame = view(image, FIELD, place_in_frame(shifts)).astype(np.float32)
    patches = found.shifts(frame[None, None], np.array([[0, *whole]], np.float32))
    assert patches.shape == (1, 1, 3, 4, 2)
    truth = at_centres(shifts, grid)
    assert rms(patches[0, 0] - truth) < tolerance
    assert rms(patches[0, 0] - truth) < 0.3 * rms(truth - whole)  # against the rigid shift


@pytest.mark.parametrize("place", [(0, 0), (0.4, -0.3), (6.5, 0), (0, -7.2), (-4.7, 5.5)])
def test_a_scene_that_moves_as_a_whole_has_one_shift(scene, view, place):
    image = scene(tuple(n + 32 for n in FIELD))
    found = white(view(image, FIELD), Grid.over((1, *FIELD), 64, 16), 0.05)
    frame = view(image, FIELD, place).astype(np.float32)
    patches = found.shifts(frame[None, None], nearest_whole(place))[0, 0]
    inner = patches[1, 1:-1]  # these saw nothing from outside of the field
    np.testing.assert_allclose(inner, np.broadcast_to(np.negative(place), inner.shape), atol=0.02)
    # of those at the border up to a tenth is copies of it
    np.testing.assert_allclose(
        patches, np.broadcast_to(np.negative(place), patches.shape), atol=0.35
    )


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32", ">u2"])
def test_gain_offset_and_type_do_not_matter(scene, view, kind):
    gain, offset = {"uint16": (900, 33000), "int16": (500, -9000)}.get(kind, (40, 0))
    image = scene((128, 160), contrast=0.4).clip(0, 5)
    grid, place = Grid.over((1, 96, 128), 64, 16), (0.4, -1.3)
    template, frame = view(image, (96, 128)), view(image, (96, 128), place)
    expected = white(template, grid, 0.05).shifts(frame[None, None], nearest_whole(place))
    stored = [(gain * each.clip(0) + offset).astype(kind) for each in (template, frame)]
    found = white(stored[0].astype(np.float32), grid, 0.05 * gain**2)
    shifts = found.shifts(stored[1][None, None], nearest_whole(place))
    np.testing.assert_allclose(shifts, expected, atol=0.02)  # steps of a fortieth


def test_a_patch_without_structure_moves_as_its_neighbours(scene, view):
    photons, rng = 10, np.random.default_rng(0)
    image = scene(tuple(n + 32 for n in FIELD))
    y, x = np.indices(image.shape)
    flat = ndimage.gaussian_filter(((y > 60) & (x > 110)).astype(float), 4)  # one corner
    image = photons * (image * (1 - flat) + flat)
    grid = Grid.over((1, *FIELD), 64, 16)
    found = white(view(image, FIELD), grid, photons)
    for place in rng.uniform(-3, 3, (15, 2)):
        frame = rng.poisson(view(image, FIELD, place).clip(0)).astype(np.uint16)
        patches = found.shifts(frame[None, None], nearest_whole(place))[0, 0]
        # alone it is 2.4 px off, as any lag is as good; with its neighbours 0.06 px
        assert rms(patches[-1, -1] + place) < 0.3
        assert rms(patches + place) < 0.15


def test_patches_stay_near_their_frame(scene, view):
    image = scene(tuple(n + 32 for n in FIELD))
    found = white(view(image, FIELD), Grid.over((1, *FIELD), 64, 16), 0.05, max_deviation=1.5)
    frame = view(image, FIELD, (2.9, -2.9)).astype(np.float32)
    rigid = np.array([[0, 0.25, -0.25]], np.float32)
    patches = found.shifts(frame[None, None], rigid)[0, 0]
    assert np.abs(patches - rigid[0, 1:]).max() <= 1.5
    rng = np.random.default_rng(0)
    noise = found.shifts(rng.normal(size=(5, 1, *FIELD)), np.repeat(rigid, 5, axis=0))
    assert np.abs(noise - rigid[0, 1:]).max() <= 1.5


@pytest.mark.parametrize("field", [(37, 53), (24, 200)])
def test_small_fields_have_few_patches(scene, view, field):
    image = scene(tuple(n + 32 for n in field))
    grid = Grid.over((1, *field), 64, 16)
    found = white(view(image, field), grid, 0.05)
    frame = view(image, field, (1.3, -0.8)).astype(np.float32)
    patches = found.shifts(frame[None, None], np.array([[0, -1.3, 0.8]], np.float32))
    assert patches.shape == (1, 1, *grid.shape[1:], 2)
    assert rms(patches - (-1.3, 0.8)) < 0.2


def test_frames_without_anything_and_pixels_that_are_not_finite(scene, view):
    image = scene(tuple(n + 32 for n in FIELD))
    found = white(view(image, FIELD), Grid.over((1, *FIELD), 64, 16), 0.05)
    frame = view(image, FIELD, (0.4, -0.3)).astype(np.float32)
    holed = frame.copy()
    holed[60:64, 80:85] = np.nan
    rigid = np.array([[0, -0.4, 0.3]] * 3, np.float32)
    empty = np.full_like(frame, np.nan)
    patches = found.shifts(np.stack([holed, empty, np.full_like(frame, 7)])[:, None], rigid)
    assert np.isfinite(patches).all()
    assert rms(patches[0] + (0.4, -0.3)) < 0.1
    assert np.abs(patches - rigid[0, 1:]).max() <= 3


def test_planes_of_volumes_have_their_own_shifts(scene, view):
    field = (96, 128)
    images = [scene((128, 160), seed) for seed in range(3)]
    grid = Grid.over((3, *field), 64, 16)
    found = white(np.stack([view(image, field) for image in images]), grid, 0.05)
    places = [(0.4, -0.3), (-1.2, 0.5), (0, 1.7)]
    frame = np.stack([view(i, field, p) for i, p in zip(images, places, strict=True)])
    patches = found.shifts(frame[None].astype(np.float32), np.zeros((1, 3), np.float32))
    assert patches.shape == (1, 3, 2, 3, 2)
    for plane, place in zip(patches[0], places, strict=True):
        assert rms(plane + place) < 0.05
    # content one plane further up: the first two planes are found there
    up = np.concatenate([frame[1:], frame[-1:]])
    patches = found.shifts(up[None].astype(np.float32), np.array([[1, 0, 0]], np.float32))
    assert rms(patches[0, 1] + places[1]) < 0.05
    assert rms(patches[0, 2] + places[2]) < 0.05


@pytest.mark.parametrize("planes", [1, 2])
def test_covariance_is_symmetric_and_positive(scene, planes):
    grid = Grid.over((planes, 96, 128), 64, 16)
    template = np.stack([scene((96, 128), seed) for seed in range(planes)])
    for found in (
        white(template, grid, 0.5),
        PiecewiseFilter.of(template.astype(np.float32), grid, 3.0),
        PiecewiseFilter.of(np.ones_like(template, np.float32), grid, 3.0),  # no structure at all
    ):
        for plane in range(planes):
            covariance = found.covariance(plane)
            assert covariance.shape == (12, 12)
            largest = np.abs(covariance).max()
            np.testing.assert_allclose(covariance, covariance.T, atol=1e-12 * largest)
            assert np.linalg.eigvalsh(covariance).min() > 0


def test_each_plane_has_a_covariance_of_its_own(scene):
    template = np.stack([scene((96, 128), seed) for seed in range(2)])
    both = white(template, Grid.over((2, 96, 128), 64, 16), 0.5)
    power = both.noise
    for plane in range(2):
        grid = Grid.over((1, 96, 128), 64, 16)
        alone = PiecewiseFilter.of(template[plane : plane + 1].astype(np.float32), grid, 3.0, power)
        # float32 products of two planes' spectra against one's; what the template adds to the noise
        # is a mean over the planes
        np.testing.assert_allclose(both.covariance(plane), alone.covariance(), rtol=0.05, atol=1e-4)
    assert not np.allclose(both.covariance(0), both.covariance(1), rtol=0.05, atol=1e-4)


def test_covariance_is_that_of_the_shifts_of_noisy_frames(scene):
    rng, grid = np.random.default_rng(0), Grid.over((1, 96, 128), 64, 16)
    template = 20 * scene((96, 128), contrast=0.3)
    found = white(template, grid, template.mean())
    frames = rng.poisson(template, (250, 1, 96, 128)).astype(np.uint16)
    shifts = found.shifts(frames, np.zeros((250, 3), np.float32)).reshape(250, -1)
    scatter, predicted = np.cov(shifts.T), found.covariance()
    # a standard deviation is known to 5 % from 250 frames, and 8 % are too few as photon noise is
    # stronger where the scene is bright
    np.testing.assert_allclose(np.sqrt(np.diag(predicted)), np.sqrt(np.diag(scatter)), rtol=0.25)
    # correlations from 250 frames have a standard error of 0.06; neighbours share 0.3
    of_scatter, of_predicted = (
        each / np.sqrt(np.outer(np.diag(each), np.diag(each))) for each in (scatter, predicted)
    )
    assert rms(of_scatter - of_predicted) < 0.1


# ---------------------------------------------------------------------------------- without noise

GRID = Grid.over((1, 256, 300), 64, 16)
SIZE = 2 * GRID.shape[1] * GRID.shape[2]


def noise_covariance(deviation=0.1):
    """Covariance of the shifts of overlapping patches that are less certain along y."""
    shared = GRID.shared_noise(Band.of(GRID.size).taper)
    return deviation**2 * np.kron(shared, [[1.2, 0.1], [0.1, 0.8]])


def motion(n, largest, seed):
    """Return motion of few kinds (n, size), its covariance, and a place of each patch (size)."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(GRID.y / GRID.y[-1], GRID.x / GRID.x[-1], indexing="ij")
    waves = [np.ones_like(y), np.cos(np.pi * y), np.cos(np.pi * x)]
    kinds = np.stack(
        [np.stack(pair, -1).ravel() for w in waves for pair in ((w, 0 * w), (0 * w, w))]
    )
    sizes = largest * np.repeat([1.0, 0.5, 0.2], 2)
    paths = ndimage.gaussian_filter1d(rng.normal(size=(n, len(kinds))), 3, axis=0)
    paths *= sizes / paths.std(axis=0)
    return paths @ kinds, (kinds.T * sizes**2) @ kinds, rng.normal(0, 0.5, SIZE)


def cleaned(shifts, covariance, usable=None):
    shaped = shifts.reshape(len(shifts), *GRID.shape, 2).astype(np.float32)
    usable = np.ones(len(shifts), bool) if usable is None else usable
    return without_noise(shaped, covariance, usable).reshape(len(shifts), -1)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("largest", [0.2, 1.0])
@pytest.mark.parametrize(("n", "part"), [(300, 1.2), (1000, 1.1)])
def test_noise_is_removed_as_by_one_who_knew_the_motion(n, part, largest, seed):
    covariance = noise_covariance()
    moved, moves, place = motion(n, largest, seed)
    noise = np.random.default_rng(seed + 10).multivariate_normal(np.zeros(SIZE), covariance, n)
    found = cleaned(moved + place + noise, covariance) - moved - place
    # Wiener's filter, given the covariance of the motion and the places of the patches
    oracle = (moved + noise) @ np.linalg.solve(moves + covariance, moves) - moved
    assert rms(found) < 0.5 * rms(noise)
    assert rms(found) < part * rms(oracle)  # the fewer the frames, the less of it is known


@pytest.mark.parametrize("n", [100, 1000])
def test_noise_alone_is_removed_nearly_wholly(n):
    covariance = noise_covariance()
    noise = np.random.default_rng(0).multivariate_normal(np.zeros(SIZE), covariance, n)
    found = cleaned(noise, covariance)
    # what is left is the median, 1.25 / sqrt(n) of the noise, and what a frame in a hundred is
    # taken for motion
    assert rms(found) < 2 / np.sqrt(n) * rms(noise)


@pytest.mark.parametrize("largest", [0.0, 0.5])
@pytest.mark.parametrize("jump", [0.5, 2.0])
def test_a_frame_that_moves_as_no_other_keeps_its_motion(jump, largest):
    covariance, n = noise_covariance(), 500
    moved, _, place = motion(n, max(largest, 1e-9), 0)
    noise = np.random.default_rng(1).multivariate_normal(np.zeros(SIZE), covariance, n)
    jumped = jump * np.random.default_rng(2).choice([-1, 1], SIZE)
    moved[77] += jumped
    found = cleaned(moved + place + noise, covariance)[77] - place
    kept = (found @ jumped) / (moved[77] @ jumped)
    assert 0.9 < kept < 1.1
    # and the others do not get any of it
    others = np.delete(cleaned(moved + place + noise, covariance) - moved - place, 77, axis=0)
    assert rms(others) < 0.6 * rms(noise)


def test_frames_that_are_not_usable_teach_nothing():
    covariance, n = noise_covariance(), 300
    moved, _, place = motion(n, 0.5, 0)
    noise = np.random.default_rng(1).multivariate_normal(np.zeros(SIZE), covariance, n)
    shifts = moved + place + noise
    usable = np.arange(n) % 3 > 0
    expected = cleaned(shifts, covariance, usable)[usable]
    shifts[~usable] = np.random.default_rng(2).normal(0, 50, (n - usable.sum(), SIZE))
    found = cleaned(shifts, covariance, usable)
    np.testing.assert_array_equal(found[usable], expected)


@pytest.mark.parametrize("n_usable", [0, 1, 2, 3, 59, 60, 61])
def test_few_usable_frames(n_usable):
    covariance, n = noise_covariance(), 80
    moved, _, place = motion(n, 0.5, 0)
    shifts = (moved + place).reshape(n, *GRID.shape, 2).astype(np.float32)
    given_shifts = shifts.copy()
    found = without_noise(shifts, covariance, np.arange(n) < n_usable)
    assert found.shape == shifts.shape
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(shifts, given_shifts)
    if n_usable < 2:
        np.testing.assert_array_equal(found, shifts)


def test_one_patch_and_no_frames():
    covariance = 0.01 * np.eye(2)
    paths = np.random.default_rng(0).normal(size=(200, 1, 1, 1, 2)).astype(np.float32)
    found = without_noise(paths, covariance, np.ones(200, bool))
    np.testing.assert_allclose(found, paths, atol=0.1)  # the motion is ten times the noise
    assert without_noise(paths[:0], covariance, np.ones(0, bool)).shape == (0, 1, 1, 1, 2)


def test_a_still_recording_stays_still():
    shifts = np.full((50, *GRID.shape, 2), 0.25, np.float32)
    found = without_noise(shifts, noise_covariance(), np.ones(50, bool))
    np.testing.assert_allclose(found, 0.25, atol=1e-6)
