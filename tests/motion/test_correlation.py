"""Spectra, correlation and its peaks, against sums over pixels and against known lags."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from napari_calcium.motion.correlation import Band, MatchedFilter, Windows, finite, for_numba

FIELDS = [(37, 53), (64, 48), (96, 128)]


def rms(error):
    return float(np.sqrt(np.mean(np.square(error))))


def lags(matched, frame, tops=0, lefts=0):
    products = matched.spectra(frame, tops, lefts) * matched.filters
    return matched.peaks(products, matched.maps(products))


def whole(template, max_lag=6, taper=0.25, noise=None, **passed):
    """Return the filter of a template (y, x); `noise` is a variance per pixel."""
    band = Band.of(template.shape, taper=taper, **passed)
    power = None if noise is None else np.full(band.weights.shape, noise * template.size)
    windows = Windows.whole((1, *template.shape))
    return MatchedFilter.of(template[None].astype(np.float32), windows, band, max_lag, power)


def ramped(image, place):
    """Move the content of a periodic image by a phase ramp: exact, between pixels too."""
    y, x = np.fft.fftfreq(image.shape[0])[:, None], np.fft.fftfreq(image.shape[1])
    return np.fft.ifft2(
        np.fft.fft2(image) * np.exp(-2j * np.pi * (y * place[0] + x * place[1]))
    ).real


def periodic(scene, field, contrast=0.7):
    """Return a scene that goes on at the opposite edge: four of it, mirrored."""
    quarter = scene(tuple(-(-n // 2) for n in field), contrast=contrast)
    half = np.concatenate([quarter, quarter[::-1]])[: field[0]]
    return np.concatenate([half, half[:, ::-1]], axis=1)[:, : field[1]]


def raised_cosine(n):
    """Weights that rise over a quarter of the side at either end, from its definition."""
    centres = (np.arange(n) + 0.5) / n
    rise = np.clip(np.minimum(centres, 1 - centres) / 0.25, 0, 1)
    return np.sin(np.pi / 2 * rise) ** 2


@pytest.mark.parametrize("size", FIELDS)
def test_a_band_has_the_low_frequencies_and_a_taper(size):
    band = Band.of(size)
    taper = np.outer(raised_cosine(size[0]), raised_cosine(size[1]))
    np.testing.assert_allclose(band.taper, taper / np.sqrt(np.mean(taper**2)), rtol=1e-5)
    np.testing.assert_allclose(band.y, np.fft.fftfreq(size[0])[band.rows], rtol=1e-6)
    np.testing.assert_allclose(band.x, np.arange(len(band.x)) / size[1], rtol=1e-6)
    every_y, every_x = np.meshgrid(*(np.fft.fftfreq(n) for n in size), indexing="ij")
    kept = np.hypot(every_y, every_x) < 0.35
    kept[0, 0] = False
    assert band.weights.sum() == kept.sum()  # what stands for two frequencies counts twice
    assert band.weights[0, 0] == 0


@pytest.mark.parametrize("name", ["high_pass", "smoothing"])
def test_gaussians_are_those_of_their_standard_deviation(name):
    size, sigma = (96, 128), 2.5
    plain, passed = Band.of(size), Band.of(size, **{name: sigma})
    point = np.zeros(size)
    point[0, 0] = 1
    blurred = np.fft.rfft2(ndimage.gaussian_filter(point, sigma, mode="wrap", truncate=8)).real
    left = blurred if name == "smoothing" else 1 - blurred  # of an amplitude
    kept = left[passed.rows, : len(passed.x)] ** 2
    np.testing.assert_allclose(passed.weights, plain.weights * kept, atol=1e-4)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("size", [(24, 32), (25, 31)])
def test_spectra_are_those_of_windows_without_their_mean(kind, size):
    rng = np.random.default_rng(0)
    low = {"uint8": 0, "uint16": 30000, "int16": -30000}.get(kind, -500)
    frame = rng.integers(low, low + 255, (2, 37, 53)).astype(kind)
    # inside, flush with the border, and beyond every border, also by more than the window
    tops, lefts = np.array([3, 13, -7, 30, -40, 60]), np.array([5, 22, 40, -9, 60, -70])
    windows = Windows(np.array([0, 1, 0, 1, 0, 1]), tops, lefts, size)
    band = Band.of(size)
    spectra = band.spectra(frame, windows, float(frame.mean()))
    taper = band.taper.astype(np.float64)
    for plane, top, left, spectrum in zip(windows.planes, tops, lefts, spectra, strict=True):
        y = np.clip(np.arange(top, top + size[0]), 0, 36)
        x = np.clip(np.arange(left, left + size[1]), 0, 52)
        cut = frame[plane][np.ix_(y, x)].astype(np.float64)
        cut -= (taper * cut).sum() / taper.sum()
        expected = np.fft.rfft2(taper * cut)[band.rows, : len(band.x)]
        # float32: 1e-6 of the sum of about 1000 values of 100
        np.testing.assert_allclose(spectrum, expected, atol=0.1)


@pytest.mark.parametrize("size", FIELDS)
def test_maps_are_sums_over_pixels_at_whole_lags(scene, size):
    template, frame = scene(size, seed=0), scene(size, seed=1)
    matched = whole(template, max_lag=5)
    band = matched.band
    products = (
        matched.spectra(frame[None]) * np.conj(matched.spectra(template[None])) * band.weights
    )
    found = matched.maps(products)[0] / template.size
    y, x = (np.fft.fftfreq(n) for n in size)
    kept = np.hypot(y[:, None], x) < 0.35
    taper = band.taper.astype(np.float64)
    seen = []
    for image in (template, frame):
        spectrum = np.fft.fft2(taper * (image - (taper * image).sum() / taper.sum()))
        seen.append(np.fft.ifft2(spectrum * kept).real)
    lagging = range(-5, 6)
    expected = [
        [(np.roll(seen[0], (i, j), (0, 1)) * seen[1]).sum() for j in lagging] for i in lagging
    ]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())  # float32


@pytest.mark.parametrize("noise", [None, 0.05])
@pytest.mark.parametrize("field", FIELDS)
def test_peaks_lie_where_a_phase_ramp_moves_the_content(scene, field, noise):
    image = periodic(scene, field)
    matched = whole(image, taper=0, noise=noise)
    places = np.random.default_rng(0).uniform(-5.4, 5.4, (40, 2))
    found = [lags(matched, ramped(image, place)[None])[0] for place in places]
    # one Newton step from a parabola leaves less than 0.005 px
    np.testing.assert_allclose(found, places, atol=0.005)


@pytest.mark.parametrize(
    ("field", "tolerance"),
    # what comes into the window and leaves it is under the taper; it weighs less in larger fields
    [((96, 128), 0.005), ((64, 48), 0.01), ((37, 53), 0.03)],
)
def test_peaks_of_fields_that_see_new_content(scene, view, field, tolerance):
    image = scene(tuple(n + 32 for n in field))
    matched = whole(view(image, field), noise=0.05)
    places = np.random.default_rng(0).uniform(-0.5, 0.5, (30, 2))
    found = [lags(matched, view(image, field, place)[None])[0] for place in places]
    assert rms(found - places) < tolerance


@pytest.mark.parametrize("axis", [0, 1])
def test_each_axis_has_its_own_sign(scene, view, axis):
    image = scene((69, 85))
    matched = whole(view(image, (37, 53)), noise=0.05)
    place = np.zeros(2)
    place[axis] = -3
    found = lags(matched, view(image, (37, 53), place)[None])[0]
    np.testing.assert_allclose(
        found, place, atol=0.3
    )  # the taper draws to 0; the sign is the thing


@pytest.mark.parametrize("sigma", [0.5, 1.0])
@pytest.mark.parametrize("field", FIELDS)
def test_variance_predicts_the_scatter_under_gaussian_noise(scene, field, sigma):
    rng = np.random.default_rng(0)
    image = periodic(scene, field)
    matched = whole(image, noise=sigma**2)
    power = np.full(matched.band.weights.shape, sigma**2 * image.size)
    frames = (image + sigma * rng.normal(size=(200, 1, *field))).astype(np.float32)
    scatter = np.concatenate([lags(matched, frame) for frame in frames]).std(axis=0)
    predicted = np.sqrt(np.diagonal(matched.variance(power)[0]))
    # 200 frames give a standard deviation to 5 %; prediction and scatter agree to 8 %
    np.testing.assert_allclose(scatter, predicted, rtol=0.2)


@pytest.mark.parametrize("passed", [{"high_pass": 2.0}, {"smoothing": 1.0}])
def test_variance_knows_what_a_band_takes_away(scene, passed):
    rng = np.random.default_rng(0)
    image = periodic(scene, (64, 48))
    matched = whole(image, noise=0.25, **passed)
    power = np.full(matched.band.weights.shape, 0.25 * image.size)
    frames = (image + 0.5 * rng.normal(size=(200, 1, *image.shape))).astype(np.float32)
    scatter = np.concatenate([lags(matched, frame) for frame in frames]).std(axis=0)
    predicted = np.sqrt(np.diagonal(matched.variance(power)[0]))
    np.testing.assert_allclose(scatter, predicted, rtol=0.2)


@pytest.mark.parametrize("photons", [8, 40])
def test_variance_predicts_the_scatter_under_photon_noise(scene, photons):
    rng = np.random.default_rng(0)
    image = photons * periodic(scene, (96, 128), contrast=0.2)
    matched = whole(image, noise=image.mean())
    power = np.full(matched.band.weights.shape, image.mean() * image.size)
    frames = rng.poisson(image, (200, 1, *image.shape)).astype(np.uint16)
    scatter = np.concatenate([lags(matched, frame) for frame in frames]).std(axis=0)
    predicted = np.sqrt(np.diagonal(matched.variance(power)[0]))
    # noise is stronger where the scene is bright, which one power for all pixels does not know
    np.testing.assert_allclose(scatter, predicted, rtol=0.25)


def test_variance_of_any_other_noise_than_the_filters_own(scene):
    # the filter takes noise for white, but it is twice as strong in y; the prediction must follow
    field, rng = (64, 48), np.random.default_rng(0)
    image = periodic(scene, field)
    matched = whole(image, noise=0.3)
    y, x = np.fft.fftfreq(field[0])[:, None], np.fft.fftfreq(field[1])
    gain = np.where(np.abs(y) > np.abs(x), 2.0, 0.5)
    power = 0.3 * image.size * gain[matched.band.rows, : len(matched.band.x)] ** 2
    noise = np.sqrt(0.3) * rng.normal(size=(300, *field))
    coloured = np.fft.ifft2(np.fft.fft2(noise) * gain).real
    frames = (image + coloured).astype(np.float32)[:, None]
    scatter = np.concatenate([lags(matched, frame) for frame in frames]).std(axis=0)
    predicted = np.sqrt(np.diagonal(matched.variance(power)[0]))
    np.testing.assert_allclose(scatter, predicted, rtol=0.2)
    assert scatter[0] > 1.3 * scatter[1]


@pytest.mark.parametrize("level", [0, 30000])
def test_gain_and_offset_do_not_matter(scene, view, level):
    image = scene((69, 85), contrast=0.4)
    counts = [np.rint(1000 * view(image, (37, 53), place)) for place in [(0, 0), (0.4, -0.3)]]
    expected = lags(whole(counts[0]), counts[1][None])
    template, frame = ((3 * each + level).astype(np.uint16) for each in counts)
    np.testing.assert_allclose(lags(whole(template), frame[None]), expected, atol=1e-3)  # float32
    darker = counts[1].astype(np.uint16)  # the template's gain and offset are not the frame's
    np.testing.assert_allclose(lags(whole(template), darker[None]), expected, atol=1e-3)


def test_windows_laid_over_the_template_find_what_is_left(scene, view):
    image = scene((69, 85))
    matched = whole(view(image, (37, 53)), noise=0.05)
    frame = view(image, (37, 53), (-4.3, 3.2))
    found = lags(matched, frame[None], -4, 3)[0]
    # a tenth of the window is copies of its border by then
    np.testing.assert_allclose(found, (-0.3, 0.2), atol=0.1)


def test_turned_spectra_are_those_of_rolled_windows(scene):
    image = np.stack([scene((37, 53), seed) for seed in (0, 1)]).astype(np.float32)
    band = Band.of((37, 53), taper=0)
    matched = MatchedFilter.of(image, Windows.whole(image.shape), band, 4)
    y, x = np.array([3, 0]), np.array([-5, 0])
    spectra = matched.spectra(image)
    turned = matched.turned(spectra, y, x)
    rolled = np.stack([np.roll(image[0], (3, -5), (0, 1)), image[1]])
    np.testing.assert_allclose(turned, matched.spectra(rolled), atol=1e-3 * np.abs(spectra).max())
    np.testing.assert_array_equal(spectra, matched.spectra(image))  # left as they were


def test_a_template_agrees_with_itself_wholly(scene):
    image = scene((37, 53))
    matched = whole(image, noise=0.2)
    spectra = matched.spectra(image[None])
    top = matched.maps(spectra * matched.filters).max()
    assert top == pytest.approx(matched.norm[0] * matched.norms(spectra)[0], rel=1e-4)


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_a_constant_window_has_no_spectrum(scene, value):
    matched = whole(scene((37, 53)), noise=0.2)
    spectra = matched.spectra(np.full((1, 37, 53), value, np.uint16))
    # float32: 1e-6 of the sum of the pixels
    assert np.abs(spectra).max() <= 1e-6 * max(value, 1) * 37 * 53


def test_finite_fills_with_the_mean_of_the_frame():
    frames = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    frames[0, 0, 0], frames[0, 1, 2], frames[1] = np.nan, np.inf, np.nan
    filled = finite(frames)
    np.testing.assert_array_equal(filled[0], [[2.5, 1, 2], [3, 4, 2.5]])
    np.testing.assert_array_equal(filled[1], 0)
    assert np.isnan(frames[0, 0, 0])
    whole_numbers = np.ones((2, 3, 4), np.int16)
    assert finite(whole_numbers) is whole_numbers


@pytest.mark.parametrize(
    ("kind", "known"), [(">u2", "uint16"), ("float16", "float32"), ("int8", "int8")]
)
def test_numba_gets_types_and_an_order_it_knows(kind, known):
    frames = np.arange(24).reshape(2, 3, 4).astype(kind)[:, ::-1]
    given = for_numba(frames)
    assert given.dtype == np.dtype(known)
    assert given.flags.c_contiguous
    np.testing.assert_array_equal(given, frames)
