"""Shifts of whole frames, against how far the scene was moved."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from napari_calcium.motion.rigid import RigidFilter, chance_agreement

FIELDS = [(96, 128), (37, 53), (257, 301)]  # the last is compared at half the resolution


def rms(error):
    return float(np.sqrt(np.mean(np.square(error))))


def white(template, max_shift, variance, **options):
    """Return the filter of a template (z, y, x) or (y, x) under noise of a variance per pixel."""
    volume = template if template.ndim == 3 else template[None]
    volume = volume.astype(np.float32)
    band = RigidFilter.of(volume, max_shift).matched.band
    power = np.full(band.weights.shape, variance * band.taper.size)
    return RigidFilter.of(volume, max_shift, power, **options)


def found_in(matched, frames):
    """Return the shifts (n, 2) of frames (n, y, x)."""
    return matched.shifts(np.asarray(frames)[:, None])[0][:, 1:]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("place", [(3, 0), (0, 3), (-4, 0), (0, -4), (2, -5), (2.5, 0), (0, -1.25)])
def test_each_axis_has_its_own_sign(film, field, place):
    template, frame = film(field, [(0, 0), place])
    (shift,) = found_in(white(template, 8, 0.05), [frame])
    # content that lies at +3 must be moved by -3; a tenth of the small field is new content
    np.testing.assert_allclose(shift, np.negative(place), atol=0.1)


@pytest.mark.parametrize(
    ("kind", "gain", "offset"),
    [
        ("uint8", 40, 0),
        ("uint16", 900, 33000),
        ("int16", 500, -9000),
        ("int32", 5000, 10**6),
        ("float32", 0.01, 0),
        ("float64", 1e6, 1e9),
        (">u2", 900, 33000),
    ],
)
@pytest.mark.parametrize("field", [(37, 53), (257, 301)])
def test_gain_offset_and_type_do_not_matter(film, field, kind, gain, offset):
    template, *frames = film(field, [(0, 0), (1.4, -2.3), (-3, 0.6)], contrast=0.4)
    expected = found_in(white(template, 8, 0.05), frames)
    np.testing.assert_allclose(expected, [(-1.4, 2.3), (3, -0.6)], atol=0.1)
    stored = [(gain * each.clip(0, 5) + offset).astype(kind) for each in (template, *frames)]
    shifts = found_in(white(stored[0], 8, 0.05 * gain**2), stored[1:])
    # uint8 is the coarsest: steps of 1 / 40 of the scene's mean
    np.testing.assert_allclose(shifts, expected, atol=0.02)


@pytest.mark.parametrize("field", [(96, 128), (257, 301)])
@pytest.mark.parametrize("seed", [0, 1])
def test_shifts_half_way_between_whole_lags(film, field, seed):
    # where two lags are equally good either may be taken first, at half the resolution too
    halves = (-5, -3, -2.5, -1, -0.5, 0.5, 1, 1.5, 3, 4.5, 5)
    places = [(half, 0) for half in halves] + [(0, half) for half in halves]
    template, *frames = film(field, [(0, 0), *places], seed=seed)
    shifts = found_in(white(template, 8, 0.05), frames)
    np.testing.assert_allclose(shifts, np.negative(places), atol=0.02)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("noise", [None, 0.05, 1.0])
def test_shifts_are_neither_biased_nor_drawn_to_zero(scene, view, noise, seed):
    field, most = (96, 128), 15
    image = scene(tuple(n + 2 * most + 8 for n in field), seed)
    places = np.random.default_rng(seed).uniform(-most, most, (40, 2))
    template = view(image, field)
    found = RigidFilter.of(template[None].astype(np.float32), most)
    found = found if noise is None else white(template, most, noise)
    shifts = found_in(found, [view(image, field, place) for place in places])
    assert rms(shifts + places) < 0.05  # 0.04 px where the template is whitened, else 0.02
    for axis in (0, 1):
        slope = np.polyfit(places[:, axis], -shifts[:, axis], 1)[0]
        assert abs(slope - 1) < 0.005  # a taper that stays with the frame costs 1 to 3 %


@pytest.mark.parametrize(
    ("field", "photons", "tolerance"),
    # 1.3 times the rms measured over 3 x 40 frames
    [((96, 128), 20, 0.04), ((96, 128), 4, 0.06), ((257, 301), 4, 0.023), ((37, 53), 20, 0.09)],
)
def test_sub_pixel_shifts_under_photon_noise(film, field, photons, tolerance):
    places = np.random.default_rng(0).uniform(-6, 6, (40, 2))
    template = photons * film(field, [(0, 0)], contrast=0.5)[0]
    frames = film(field, places, photons, contrast=0.5)
    assert rms(found_in(white(template, 8, photons), frames) + places) < tolerance


@pytest.mark.parametrize("field", FIELDS)
def test_shifts_are_multiples_of_the_step_asked_for(film, field):
    template, *frames = film(field, [(0, 0), (1.43, -2.31), (-3.08, 0.66)])
    fine = found_in(white(template, 8, 0.05), frames)
    coarse = found_in(white(template, 8, 0.05, upsampling=10), frames)
    np.testing.assert_array_equal(coarse, np.rint(coarse * 10).astype(np.float32) / np.float32(10))
    np.testing.assert_allclose(coarse, fine, atol=0.0501)


@pytest.mark.parametrize("field", [(96, 128), (257, 301)])
def test_shifts_stay_within_max_shift(film, field):
    template, *frames = film(field, [(0, 0), (4.5, -5.5), (-9, 9), (3, -3)], photons=5)
    shifts = found_in(white(template, 3, 5), frames)
    assert np.abs(shifts).max() <= 3
    np.testing.assert_allclose(shifts[2], (-3, 3), atol=0.2)  # the largest one is still found


def test_pixels_that_are_not_finite(film):
    template, frame, holed, empty = film((96, 128), [(0, 0), (2.5, -1.5), (2.5, -1.5), (0, 0)])
    frame[:3], frame[:, -3:] = np.nan, np.inf
    holed[40:44, 60:65] = -np.inf
    empty[:] = np.nan
    found = white(template, 8, 0.05)
    shifts, agreement = found.shifts(np.stack([frame, holed, empty])[:, None])
    np.testing.assert_allclose(shifts[:2, 1:], [(-2.5, 1.5)] * 2, atol=0.05)
    assert agreement[:2].min() > 0.5
    np.testing.assert_array_equal(shifts[2], 0)
    assert agreement[2] == 0


@pytest.mark.parametrize("field", [(37, 53), (257, 301)])
@pytest.mark.parametrize(
    ("kind", "value"), [("uint16", 0), ("uint16", 7), ("uint16", 65535), ("float32", 0.1)]
)
def test_constant_frames_have_no_shift(film, field, kind, value):
    found = white(film(field, [(0, 0)])[0], 8, 0.05)
    shifts, agreement = found.shifts(np.full((2, 1, *field), value, kind))
    np.testing.assert_array_equal(shifts, 0)
    np.testing.assert_array_equal(agreement, 0)


@pytest.mark.parametrize("value", [0, 0.1, 40000.1])
def test_a_constant_template_gives_no_shift(film, value):
    flat = np.full((1, 37, 53), value, np.float32)
    shifts, agreement = RigidFilter.of(flat, 8).shifts(film((37, 53), [(0, 0), (1, 2)])[:, None])
    np.testing.assert_array_equal(shifts, 0)
    np.testing.assert_array_equal(agreement, 0)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_unit_does_not_matter(film, scale):
    template, frame = film((37, 53), [(0, 0), (1.4, -2.3)]) * np.float32(scale)
    (shift,) = found_in(white(template, 8, 0.05 * scale**2), [frame])
    np.testing.assert_allclose(shift, (-1.4, 2.3), atol=0.1)


@pytest.mark.parametrize("field", FIELDS)
def test_the_template_itself_has_no_shift_and_agrees_wholly(film, field):
    frame = film(field, [(0, 0)], photons=5)
    shifts, agreement = white(frame[0], 8, 5).shifts(frame[:, None])
    np.testing.assert_array_equal(shifts, 0)
    np.testing.assert_allclose(agreement, 1, atol=1e-3)


def test_a_frame_has_its_shift_whatever_frames_come_with_it(film):
    places = np.random.default_rng(0).uniform(-6, 6, (6, 2))
    template, *frames = film((37, 53), [(0, 0), *places], photons=20)
    found = white(template, 8, 20)
    together = found_in(found, frames)
    alone = [found_in(found, [frame])[0] for frame in frames]
    np.testing.assert_array_equal(together, alone)
    turned = np.stack(frames).transpose(0, 2, 1).copy().transpose(0, 2, 1)  # in Fortran's order
    np.testing.assert_array_equal(found_in(found, turned), together)


@pytest.mark.parametrize(("field", "photons"), [((37, 53), 10), ((96, 128), 2), ((257, 301), 0.5)])
def test_noise_agrees_less_than_chance_and_frames_more(film, field, photons):
    rng = np.random.default_rng(0)
    template = photons * film(field, [(0, 0)])[0]
    found = white(template, 8, photons)
    _, agreement = found.shifts(rng.poisson(photons, (60, 1, *field)).astype(np.uint16))
    assert (agreement > chance_agreement(found)).sum() <= 2  # one of 100 is allowed to
    places = rng.uniform(-6, 6, (20, 2))
    _, agreement = found.shifts(film(field, places, photons)[:, None])
    assert agreement.min() > chance_agreement(found)


def test_high_pass_sees_past_light_that_does_not_move(film):
    # one-photon: dust and uneven light fixed to the camera, 30 times the contrast of the scene
    dust = ndimage.gaussian_filter(np.random.default_rng(9).normal(size=(96, 128)), 6.0)
    light = 30 * (dust - dust.min()) / dust.std()
    places = np.random.default_rng(0).uniform(-6, 6, (10, 2))
    template, *frames = (film((96, 128), [(0, 0), *places]) + light).astype(np.float32)
    assert rms(found_in(white(template, 8, 1.0), frames) + places) > 1
    # 0.08 px: what is left of the light draws to 0 a little
    assert rms(found_in(white(template, 8, 1.0, high_pass=2.0), frames) + places) < 0.12


# ---------------------------------------------------------------------------------------- volumes


def volumes(scene, places, planes=6, field=(37, 53), photons=None):
    """Frames (n, z, y, x) of a scene whose content lies at `places` (n, 3): z, y, x."""
    margin = (4, 10, 10)
    sizes = tuple(n + 2 * m for n, m in zip((planes, *field), margin, strict=True))
    larger = ndimage.gaussian_filter1d(scene(sizes), 0.8, axis=0)
    inside = tuple(slice(m, m + n) for n, m in zip((planes, *field), margin, strict=True))
    return np.stack([ndimage.shift(larger, place, order=3)[inside] for place in places])


@pytest.mark.parametrize("planes", [1, 2, 6])
@pytest.mark.parametrize("place", [(0, 3, 0), (0, 0, -4), (0, -2.5, 1.25)])
def test_volumes_that_move_within_their_planes(scene, planes, place):
    template, frame = volumes(scene, [(0, 0, 0), place], planes)
    shifts, agreement = white(template, 8, 0.05, max_shift_z=2).shifts(frame[None])
    np.testing.assert_allclose(shifts[0], np.negative(place), atol=0.15)
    assert agreement[0] > 0.5


@pytest.mark.parametrize("place", [(1, 0, 0), (-2, 0, 0), (2, 3, 0), (-1, 0, -4)])
def test_volumes_that_move_by_whole_planes(scene, place):
    template, frame = volumes(scene, [(0, 0, 0), place])
    shifts, _ = white(template, 8, 0.05, max_shift_z=2).shifts(frame[None])
    np.testing.assert_allclose(shifts[0], np.negative(place), atol=0.15)


def test_volumes_that_move_by_parts_of_a_plane(scene):
    places = np.array([(z, 0, 0) for z in np.linspace(-1.5, 1.5, 13)])
    template, *frames = volumes(scene, [(0, 0, 0), *places], planes=8)
    shifts, _ = white(template, 8, 0.05, max_shift_z=3).shifts(np.stack(frames))
    # a parabola through three planes of sharp optical sections
    assert rms(shifts[:, 0] + places[:, 0]) < 0.15
    assert np.abs(shifts[:, 0] + places[:, 0]).max() < 0.3


def test_shifts_along_z_stay_within_their_limit(scene):
    template, *frames = volumes(scene, [(0, 0, 0), (2, 0, 0), (-3, 0, 0)])
    none, one = (white(template, 8, 0.05, max_shift_z=most) for most in (0, 1))
    np.testing.assert_array_equal(none.shifts(np.stack(frames))[0][:, 0], 0)
    np.testing.assert_array_equal(one.shifts(np.stack(frames))[0][:, 0], [-1, 1])
    # more planes than there are
    assert np.isfinite(white(template, 8, 0.05, max_shift_z=9).shifts(frames[0][None])[0]).all()


@pytest.mark.parametrize("field", [(24, 200), (200, 24), (32, 64)])
def test_short_axes_are_not_underestimated(film, field):
    # the taper hides other parts of the scene in a frame that lies elsewhere: looked at once, the
    # gain along an axis of 24 px is 0.6
    places = np.random.default_rng(0).uniform(-4, 4, (60, 2))
    template, *frames = film(field, [(0, 0), *places], contrast=0.7)
    found = found_in(white(template, 8, 0.05), frames)
    for axis in (0, 1):
        gain = np.polyfit(-places[:, axis], found[:, axis], 1)[0]
        assert gain == pytest.approx(1, abs=0.1)
