from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_calcium.extraction.noise import pixel_noise
from napari_calcium.extraction.patches import bin_frames, cut, read_averaged
from napari_calcium.movie import Movie, Reader


@given(
    height=st.integers(1, 150), width=st.integers(1, 150), size=st.integers(16, 64),
    halo=st.integers(0, 30),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_cores_cover_the_field_once(height: int, width: int, size: int, halo: int) -> None:
    covered = np.zeros((height, width), int)
    for patch in cut((height, width), size, halo):
        covered[patch.core] += 1
        inside = np.zeros((height, width), bool)
        inside[patch.core] = True
        assert inside[patch.core].shape <= (size, size)
        np.testing.assert_array_equal(inside[patch.halo][patch.core_in_halo], True)
        assert inside[patch.halo].shape == patch.shape
        assert inside[patch.halo].sum() == inside.sum()
    np.testing.assert_array_equal(covered, 1)


def test_the_halo_ends_at_the_border() -> None:
    first, *_, last = cut((37, 53), 20, 6)
    assert (first.core, first.halo) == ((slice(0, 18), slice(0, 18)), (slice(0, 24), slice(0, 24)))
    assert last.halo == (slice(12, 37), slice(29, 53))


@pytest.mark.parametrize("size", [1, 3, 7, 50])
@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("uint8", 0, 2**8),
        ("uint16", 2**15, 2**16),
        ("int16", -(2**15), 2**15),
        ("int32", -(10**6), 10**6),
        ("float32", -5, 5),
        (">u2", 2**15, 2**16),
    ],
)
def test_bins_are_means(dtype: str, low: int, high: int, size: int) -> None:
    """To 1e-6: a few roundings of float32, and no integer that overflows."""
    frames = np.random.default_rng(0).integers(low, high, (44, 5, 7)).astype(dtype)
    expected = [frames[i : i + size].mean(axis=0, dtype=float) for i in range(0, 44, size)]
    found = bin_frames(frames, size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * high)


def test_bins_leave_the_frames_alone() -> None:
    frames = np.ones((6, 2, 3), np.float32)
    bin_frames(frames, 3)
    bin_frames(frames, 1)[:] = 5
    np.testing.assert_array_equal(frames, 1)


@pytest.mark.parametrize("frames_per_bin", [1, 7, 3000])
@pytest.mark.parametrize("chunks", [(99, 2, 3), (430, 2, 3), (128, 1, 2)])
def test_a_patch_is_read_in_whole_bins(frames_per_bin: int, chunks: tuple[int, int, int]) -> None:
    """The runs that are read must not show: the same as all frames at once."""
    frames = np.random.default_rng(1).integers(0, 4000, (430, 2, 3), dtype=np.uint16)
    (patch,) = cut((2, 3), 16, 4)
    reader = Reader(Movie(da.from_array(frames, chunks=chunks), 30.0))
    read = read_averaged(reader, patch, frames_per_bin)
    np.testing.assert_array_equal(read.frames, bin_frames(frames, frames_per_bin))
    np.testing.assert_allclose(read.mean, frames.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(read.noise, pixel_noise(frames.astype(np.float32)), rtol=1e-5)


@pytest.mark.parametrize("n_frames", [1, 2, 3, 129])
def test_few_frames(n_frames: int) -> None:
    frames = np.random.default_rng(2).normal(500, 10, (n_frames, 5, 7)).astype(np.float32)
    (patch,) = cut((5, 7), 16, 4)
    read = read_averaged(Reader(Movie(da.from_array(frames), 30.0)), patch, 4)
    assert read.frames.shape == (-(-n_frames // 4), 5, 7)
    np.testing.assert_allclose(read.mean, frames.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(read.noise, pixel_noise(frames), rtol=1e-4)


def test_pixels_are_averaged_while_they_are_read() -> None:
    """In squares of 3, cut off at the border; mean and noise stay those of single pixels."""
    frames = np.random.default_rng(3).integers(0, 4000, (300, 11, 16), dtype=np.uint16)
    (patch,) = cut((11, 16), 16, 4)
    read = read_averaged(Reader(Movie(da.from_array(frames), 30.0)), patch, 5, pixels=3)
    assert read.frames.shape == (60, 4, 6)
    bins = frames.reshape(60, 5, 11, 16).mean(axis=1)
    np.testing.assert_allclose(read.frames[:, 1, 2], bins[:, 3:6, 6:9].mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(read.frames[:, 3, 5], bins[:, 9:, 15:].mean(axis=(1, 2)), rtol=1e-5)
    assert read.mean.shape == read.noise.shape == (11, 16)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("frame", [0, 128, 199])
def test_pixels_that_are_not_always_finite_are_missing(frame: int, value: float) -> None:
    frames = np.random.default_rng(4).normal(500, 10, (200, 5, 7)).astype(np.float32)
    frames[frame, 2, 3] = value
    (patch,) = cut((5, 7), 16, 4)
    read = read_averaged(Reader(Movie(da.from_array(frames), 30.0)), patch, 4)
    expected = np.zeros((5, 7), bool)
    expected[2, 3] = True
    np.testing.assert_array_equal(np.isnan(read.mean), expected)
    np.testing.assert_array_equal(np.isnan(read.noise), expected)
