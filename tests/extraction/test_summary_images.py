from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from napari_calcium.errors import InputError
from napari_calcium.extraction.summary_images import (
    SummaryImagesParameters,
    correlation_pnr,
    summary_images,
)
from napari_calcium.movie import Movie

FIELD = (13, 21)
FRAME_RATE = 30.0
RADIUS = 2.5
PLAIN = ["mean", "max", "std", "correlation", "max_correlation"]
FILTERED = ["correlation_filtered", "pnr"]
Doubles = NDArray[np.float64]
DTYPES = pytest.mark.parametrize(
    ("dtype", "offset"),
    [
        ("uint8", 128),
        ("int16", -120),
        ("int16", 32000),
        ("uint16", 60000),
        (">u2", 40000),
        ("int32", 10**6),
        ("float32", 0),
    ],
)


def correlated(n_frames: int = 600, seed: int = 0, field: tuple[int, int] = FIELD) -> Doubles:
    """Noise of sd 10 that neighbours share in part."""
    height, width = field
    raw = np.random.default_rng(seed).normal(size=(n_frames, height + 2, width + 2))
    return 10 * (raw[:, 1:-1, 1:-1] + raw[:, :-2, 1:-1] + 0.5 * raw[:, 1:-1, 2:])


def images(
    frames: NDArray[Any],
    chunks: tuple[int, int, int] = (100, 5, 21),
    workers: int = 2,
    **parameters: Any,
) -> dict[str, NDArray[np.float32]]:
    movie = Movie(da.from_array(frames, chunks=chunks), FRAME_RATE)
    lazy = summary_images(movie, SummaryImagesParameters(**parameters))
    return dict(lazy.compute(scheduler="threads", num_workers=workers))


def correlation_image(frames: NDArray[Any], neighbours: int = 8) -> Doubles:
    """Mean of np.corrcoef with the neighbours; a constant's is 0, those with NaN do not count."""
    n_frames, height, width = frames.shape
    pixels = frames.reshape(n_frames, -1).T.astype(float)
    known, varies = np.isfinite(pixels).all(axis=1), pixels.max(axis=1) > pixels.min(axis=1)
    table = np.zeros((len(pixels), len(pixels)))
    if varies.any():
        with np.errstate(invalid="ignore"):
            table[np.ix_(varies, varies)] = np.corrcoef(pixels[varies])
    y, x = np.unravel_index(np.arange(len(pixels)), (height, width))
    down, right = abs(np.subtract.outer(y, y)), abs(np.subtract.outer(x, x))
    near = np.maximum(down, right) == 1 if neighbours == 8 else down + right == 1
    near &= known & known[:, None]
    image = np.where(near, table, 0).sum(axis=1) / np.maximum(near.sum(axis=1), 1)
    return np.where(known, image, np.nan).reshape(height, width)


def max_correlation_image(frames: NDArray[Any], size: int, neighbours: int = 8) -> Doubles:
    """Largest correlation in bins of `size` frames, the last one with what is left over."""
    starts = list(range(0, len(frames), size))[: max(1, len(frames) // size)]
    parts = np.split(frames, starts[1:])
    return np.max([correlation_image(part, neighbours) for part in parts], axis=0)


def filtered(frames: NDArray[Any], radius: float = RADIUS) -> Doubles:
    """Gaussian less flat mean as one two-dimensional kernel, in double precision."""
    half = int(np.ceil(1.5 * radius))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    gaussian = np.exp(-(y**2 + x**2) / (2 * (radius / 2) ** 2))
    kernel = gaussian / gaussian.sum() - 1 / gaussian.size
    return np.stack([ndimage.convolve(each.astype(float), kernel) for each in frames])


def pair(sharp: Doubles, neighbours: int = 8) -> dict[str, Doubles]:
    """Correlation above the noise, and peak-to-noise ratio, of a filtered movie."""
    bends = sharp[1:-1] - (sharp[:-2] + sharp[2:]) / 2
    noise = np.sqrt((bends**2).mean(axis=0) / 1.5)
    above = sharp - sharp.mean(axis=0)
    active = np.where(above < 3 * noise, 0, above)
    return {
        "correlation_filtered": correlation_image(active, neighbours),
        "pnr": above.max(axis=0) / noise,
    }


@pytest.mark.parametrize("neighbours", [4, 8])
@DTYPES
def test_they_are_those_of_numpy(dtype: str, offset: int, neighbours: int) -> None:
    """To 1e-6, the rounding to float32: sums are of float64 and over several blocks of frames."""
    frames = (correlated() + offset).round().astype(dtype)
    found = images(frames, neighbours=neighbours)
    assert list(found) == PLAIN
    assert {image.dtype for image in found.values()} == {np.dtype("float32")}
    np.testing.assert_allclose(found["mean"], frames.mean(axis=0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(found["std"], frames.std(axis=0, dtype=float), rtol=1e-6)
    np.testing.assert_array_equal(found["max"], frames.max(axis=0).astype(np.float32))
    expected = correlation_image(frames, neighbours)
    np.testing.assert_allclose(found["correlation"], expected, atol=1e-6)


@pytest.mark.parametrize("neighbours", [4, 8])
@pytest.mark.parametrize(
    ("bin_length", "size"), [(1e-3, 3), (0.5, 15), (3.3, 99), (8.53, 256), (9.9, 297), (1e300, 700)]
)
def test_the_largest_correlation_is_that_of_the_bins(
    bin_length: float, size: int, neighbours: int
) -> None:
    """Bins within, across and over several tasks of 256 frames; 1e-6 is the rounding to float32."""
    frames = (correlated(700, size) + 500).round().astype("uint16")
    found = images(frames, bin_length=bin_length, neighbours=neighbours)
    expected = max_correlation_image(frames, size, neighbours)
    np.testing.assert_allclose(found["max_correlation"], expected, atol=1e-6)
    np.testing.assert_allclose(
        found["correlation"], correlation_image(frames, neighbours), atol=1e-6
    )


def test_the_last_bin_takes_what_is_left_over() -> None:
    """Two bins of 100 and 199 frames; with the rest as a bin of 99 the image would be another."""
    frames = (correlated(299) + 500).round().astype("uint16")
    found = images(frames, bin_length=100 / FRAME_RATE)["max_correlation"]
    two, three = (np.split(frames, cuts) for cuts in ([100], [100, 200]))
    np.testing.assert_allclose(found, np.max([correlation_image(p) for p in two], 0), atol=1e-6)
    assert abs(found - np.max([correlation_image(p) for p in three], 0)).max() > 0.01


@pytest.mark.parametrize(
    ("dtype", "offset", "neighbours"),
    [("uint8", 128, 8), (">u2", 40000, 4), ("int32", 10**9, 8), ("float32", 0, 8)],
)
def test_the_filtered_pair_is_that_of_numpy(dtype: str, offset: int, neighbours: int) -> None:
    """Filtered in float32, where an average of 30 counts keeps 1e-5 of the noise of 3 counts."""
    frames = (correlated(300, 3) + offset).round().astype(dtype)
    found = images(frames, filter_radius=RADIUS, neighbours=neighbours)
    assert list(found) == PLAIN + FILTERED
    for name, expected in pair(filtered(frames), neighbours).items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4)
    for name, image in images(frames, neighbours=neighbours).items():
        np.testing.assert_array_equal(found[name], image)


@pytest.mark.parametrize("radius", [0.3, 1.0, 6.5])
def test_the_filter_may_be_small_or_as_large_as_the_field(radius: float) -> None:
    frames = (correlated(100, 4) + 500).round().astype("uint16")
    found = images(frames, filter_radius=radius)
    for name, expected in pair(filtered(frames, radius)).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4)


def test_the_pair_can_be_had_alone() -> None:
    frames = (correlated(100, 4) + 500).round().astype("uint16")
    parameters = SummaryImagesParameters(filter_radius=RADIUS)
    alone = correlation_pnr(Movie(da.from_array(frames), FRAME_RATE), parameters).compute()
    both = images(frames, filter_radius=RADIUS)
    assert list(alone) == FILTERED
    for name, image in alone.items():
        np.testing.assert_array_equal(image, both[name])


def test_a_flash_in_the_first_frame_costs_no_digits() -> None:
    """Differences from an untypical first frame are large; their squares must keep the noise."""
    frames = (correlated() + 500).round().astype("uint16")
    frames[0] = 65535
    found = images(frames, bin_length=5)
    np.testing.assert_allclose(found["std"], frames.std(axis=0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(found["correlation"], correlation_image(frames, 8), atol=1e-6)
    expected = max_correlation_image(frames, 150)
    np.testing.assert_allclose(found["max_correlation"], expected, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_they_do_not_depend_on_the_chunks_or_the_workers(seed: int) -> None:
    frames = (correlated(600, seed) + 500).round().astype("uint16")
    given = {"bin_length": 3.3, "filter_radius": RADIUS}
    reference = images(frames, (600, *FIELD), **given)
    for chunks, workers in (((7, 13, 21), 1), ((256, 4, 6), 4)):
        for name, image in images(frames, chunks, workers, **given).items():
            np.testing.assert_array_equal(image, reference[name])


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_they_do_not_depend_on_the_tasks(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of whole numbers are exact; those of filtered frames round, in float64."""
    frames = (correlated(67) + 500).round().astype("uint16")
    given = {"bin_length": 1.1, "filter_radius": RADIUS}
    reference = images(frames, **given)
    monkeypatch.setattr("napari_calcium.movie.FRAMES_PER_TASK", size)
    found = images(frames, **given)
    for name in PLAIN:
        np.testing.assert_array_equal(found[name], reference[name])
    for name in FILTERED:
        np.testing.assert_allclose(found[name], reference[name], rtol=1e-6, atol=1e-6)


def test_a_constant_pixel_correlates_with_nothing() -> None:
    frames = (correlated(300) + 60000).round().astype("uint16")
    frames[:, 4, 7] = 61234
    found = images(frames, bin_length=2)
    assert found["std"][4, 7] == 0
    assert found["correlation"][4, 7] == found["max_correlation"][4, 7] == 0
    np.testing.assert_allclose(found["correlation"], correlation_image(frames, 8), atol=1e-6)


def test_where_nothing_changes_nothing_is_seen() -> None:
    """Below a saturated area the filter must not leave rounding, which would correlate."""
    frames = (correlated(300, field=(37, 53)) + 60000).round().astype("uint16")
    frames[:, 10:30, 15:40] = 65535
    found = images(frames, filter_radius=RADIUS)
    for name in ("std", "correlation", "max_correlation"):
        assert not found[name][11:29, 16:39].any()
    for name in FILTERED:
        assert not found[name][15:25, 20:35].any()  # farther than the kernel reaches
        assert found[name][:8].any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_pixel_with_nan_is_nan_and_no_neighbour(value: float) -> None:
    """One with NaN in the first frame, in one frame of the second bin, always; 1e-6 as above."""
    frames = correlated(600, 5).astype(np.float32)
    frames[0, 3, 4] = frames[400, 8, 15] = value
    frames[:, 12, 20] = value
    found = images(frames, bin_length=10, filter_radius=RADIUS)
    bad = ~np.isfinite(frames).all(axis=0)
    for name, image in found.items():
        sum_of_infinite = np.isinf(value) and name in ("mean", "max")
        np.testing.assert_array_equal((np.isinf if sum_of_infinite else np.isnan)(image), bad)
    np.testing.assert_allclose(found["std"][~bad], frames[:, ~bad].std(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["correlation"], correlation_image(frames), atol=1e-6)
    expected = np.where(bad, np.nan, np.fmax(*map(correlation_image, np.split(frames, [300]))))
    np.testing.assert_allclose(found["max_correlation"], expected, atol=1e-6)


def test_pixels_with_nan_leave_the_filter_of_others_as_it_was() -> None:
    """Far from them bit for bit; beside them the filter lacks 1 of 49 weights in 1 frame of 400."""
    frames = correlated(400, 5, (37, 53)).astype(np.float32)
    whole = images(frames, filter_radius=RADIUS)
    frames[100, 20, 30] = np.nan
    found = images(frames, filter_radius=RADIUS)
    y, x = np.mgrid[:37, :53]
    distance = np.maximum(abs(y - 20), abs(x - 30))
    for name in FILTERED:
        np.testing.assert_array_equal(np.isnan(found[name]), distance == 0)
        np.testing.assert_array_equal(found[name][distance > 5], whole[name][distance > 5])
    near = (distance > 0) & (distance < 5)
    np.testing.assert_allclose(found["pnr"][near], whole["pnr"][near], rtol=0.05)


def test_a_filter_without_pixels_is_that_of_their_means() -> None:
    """By hand: of a field whose left half is NaN the right half is filtered as if by weights."""
    frames = correlated(60, 6).astype(np.float32)
    frames[:, :, :10] = np.nan
    half = int(np.ceil(1.5 * RADIUS))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    gaussian, known = np.exp(-(y**2 + x**2) / (2 * (RADIUS / 2) ** 2)), np.isfinite(frames[0])
    change = np.where(known, frames - frames[0], 0).astype(float)
    smooth, flat = (
        np.stack([ndimage.convolve(each, weights) for each in change])
        / np.maximum(ndimage.convolve(known.astype(float), weights), 1e-9)
        for weights in (gaussian, np.ones_like(gaussian))
    )
    expected = pair(np.where(known, smooth - flat, np.nan))
    found = images(frames, filter_radius=RADIUS)
    for name in FILTERED:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 5, 7), (300, 1, 1), (40, 1, 9), (40, 9, 1)])
def test_small_movies(shape: tuple[int, int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 99, shape, dtype=np.int16)
    found = images(frames, filter_radius=0.5)
    np.testing.assert_allclose(found["std"], frames.std(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["correlation"], correlation_image(frames), atol=1e-6)
    np.testing.assert_allclose(found["max_correlation"], correlation_image(frames), atol=1e-6)
    if shape[0] == 1:
        assert not any(found[name].any() for name in FILTERED)
    elif shape[1:] != (1, 1):  # where the filter leaves nothing but rounding
        for name, expected in pair(filtered(frames, 0.5)).items():  # 3 x 3 px, beyond the field
            np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_frames", [1, 2, 3, 4])
def test_short_movies(n_frames: int) -> None:
    frames = (correlated(n_frames, field=(37, 53)) + 500).round().astype("uint16")
    found = images(frames, filter_radius=RADIUS)
    np.testing.assert_allclose(found["correlation"], correlation_image(frames), atol=1e-6)
    np.testing.assert_array_equal(found["max_correlation"], found["correlation"])
    if n_frames < 3:  # no second difference, so nothing is known of the noise
        assert not any(found[name].any() for name in FILTERED)
    else:
        expected = pair(filtered(frames))["pnr"]
        np.testing.assert_allclose(found["pnr"], expected, rtol=1e-3)


def scene(seed: int, background: float = 40.0) -> tuple[NDArray[np.uint16], NDArray[np.intp]]:
    """Four cells that fire now and then before a background that brightens, wide and uneven."""
    rng, n_frames, (height, width) = np.random.default_rng(seed), 900, (37, 53)
    y, x = np.mgrid[:height, :width]
    places = np.array([(9, 11), (10, 38), (27, 15), (26, 41)])
    kernel = np.exp(-np.arange(60) / 12)
    slow = ndimage.gaussian_filter1d(rng.normal(size=(2, n_frames)), 8, axis=1)
    wide = np.stack([np.exp(-((x - at) ** 2 + (y - 18) ** 2) / (2 * 40**2)) for at in (5, 48)])
    light = 300 + background * np.tensordot(slow / slow.std(), wide, (0, 0))
    for cy, cx in places:
        trace = np.convolve(rng.random(n_frames) < 0.004, kernel)[:n_frames]
        trace[100:160] += kernel  # so that each is seen
        blob = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 2**2))
        light += 60 * trace[:, None, None] * blob
    return (light + rng.normal(0, 10, light.shape)).round().astype("uint16"), places


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_filter_shows_cells_before_a_strong_background(seed: int) -> None:
    """Measured on seeds 0 to 5: plain 0.93 outside; filtered 0.97 and 0.36, PNR 11.6 and 6.1."""
    frames, places = scene(seed)
    found = images(frames, filter_radius=4.0)
    y, x = np.mgrid[:37, :53]
    distance = np.min([np.hypot(y - cy, x - cx) for cy, cx in places], axis=0)
    inside, outside = distance < 1.5, distance > 8
    assert found["correlation"][outside].min() > 0.9
    assert found["correlation_filtered"][inside].min() > 0.95
    assert np.median(found["correlation_filtered"][outside]) < 0.45
    assert found["pnr"][inside].min() > 10
    assert found["pnr"][outside].max() < 8


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_largest_correlation_shows_a_cell_that_was_active_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = rng.normal(0, 10, (3000, *FIELD))
    frames[1000:1060, 5:8, 9:12] += 40 * np.exp(-np.arange(60) / 20)[:, None, None]
    found = images(frames.astype(np.float32), bin_length=4)
    rest = np.ones(FIELD, bool)
    rest[4:9, 8:13] = False
    assert found["max_correlation"][6, 10] > 0.4
    assert found["max_correlation"][rest].max() < 0.3
    assert found["correlation"][6, 10] < 0.1


@pytest.mark.parametrize("neighbours", [5, 6, 7])
def test_neighbours_are_4_or_8(neighbours: int) -> None:
    with pytest.raises(InputError, match=f"^neighbours is {neighbours}; it must be 4 or 8$"):
        SummaryImagesParameters(neighbours=neighbours)


@pytest.mark.parametrize("neighbours", [3, 9])
def test_neighbours_beyond_are_refused(neighbours: int) -> None:
    with pytest.raises(InputError, match=f"neighbours is {neighbours}; it must be at"):
        SummaryImagesParameters(neighbours=neighbours)


def test_a_bin_has_a_length() -> None:
    with pytest.raises(InputError, match=r"^bin_length is 0 s; it must be above 0 s$"):
        SummaryImagesParameters(bin_length=0)


def test_the_pair_needs_a_radius() -> None:
    with pytest.raises(InputError, match=r"^filter_radius is 0 px; give the radius of the cells$"):
        correlation_pnr(Movie(da.zeros((9, *FIELD)), FRAME_RATE), SummaryImagesParameters())


def test_a_cell_fits_into_the_field() -> None:
    parameters = SummaryImagesParameters(filter_radius=20)
    parameters.check_movie((100, 40, 53))
    said = "^filter_radius is 20 px but the field is only 37 x 53 px; give a smaller filter_radius$"
    with pytest.raises(InputError, match=said):
        parameters.check_movie((100, 37, 53))


def test_volumes_are_refused() -> None:
    with pytest.raises(InputError, match="summary_images takes movies of one plane"):
        SummaryImagesParameters().check_movie((100, 5, 37, 53))


@pytest.mark.parametrize("filter_radius", [0.0, 2.5])
def test_the_builder_does_not_compute(filter_radius: float) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the builder computed")

    with dask.config.set(scheduler=refuse):
        movie = Movie(da.zeros((600, *FIELD)), FRAME_RATE)
        summary_images(movie, SummaryImagesParameters(filter_radius=filter_radius))
