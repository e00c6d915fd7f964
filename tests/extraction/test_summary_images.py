from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.extraction.summary_images import SummaryImagesParameters, summary_images
from napari_calcium.movie import Movie

FIELD = (13, 21)


def correlated(n_frames: int = 600, seed: int = 0) -> NDArray[np.float64]:
    """Noise of sd 10 that neighbours share in part."""
    raw = np.random.default_rng(seed).normal(size=(n_frames, 15, 23))
    return 10 * (raw[:, 1:-1, 1:-1] + raw[:, :-2, 1:-1] + 0.5 * raw[:, 1:-1, 2:])


def images(
    frames: NDArray[Any], chunks: tuple[int, int, int] = (100, 5, 21), neighbours: int = 8
) -> dict[str, NDArray[np.float32]]:
    movie = Movie(da.from_array(frames, chunks=chunks), 30.0)
    lazy = summary_images(movie, SummaryImagesParameters(neighbours=neighbours))
    return dict(lazy.compute(scheduler="threads", num_workers=2))


def correlation_image(frames: NDArray[Any], neighbours: int) -> NDArray[np.float64]:
    """Mean of the correlations with the neighbours, pair by pair; a constant's is 0."""
    height, width = frames.shape[1:]
    centred = frames.astype(float) - frames.mean(axis=0, dtype=float)
    norms = np.sqrt((centred**2).sum(axis=0))
    image = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            values = []
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    near = abs(down) + abs(right) in ((1, 2) if neighbours == 8 else (1,))
                    if near and 0 <= y + down < height and 0 <= x + right < width:
                        scale = norms[y, x] * norms[y + down, x + right]
                        product = centred[:, y, x] @ centred[:, y + down, x + right]
                        values.append(product / scale if scale > 0 else 0.0)
            image[y, x] = np.mean(values)
    return image


@pytest.mark.parametrize("neighbours", [4, 8])
@pytest.mark.parametrize(
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
def test_they_are_those_of_numpy(dtype: str, offset: int, neighbours: int) -> None:
    """To 1e-6, the rounding to float32: sums are of float64 and over several blocks of frames."""
    frames = (correlated() + offset).round().astype(dtype)
    found = images(frames, neighbours=neighbours)
    assert {image.dtype for image in found.values()} == {np.dtype("float32")}
    np.testing.assert_allclose(found["mean"], frames.mean(axis=0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(found["std"], frames.std(axis=0, dtype=float), rtol=1e-6)
    np.testing.assert_array_equal(found["max"], frames.max(axis=0).astype(np.float32))
    expected = correlation_image(frames, neighbours)
    np.testing.assert_allclose(found["correlation"], expected, atol=1e-6)


def test_a_flash_in_the_first_frame_costs_no_digits() -> None:
    """Differences from an untypical first frame are large; their squares must keep the noise."""
    frames = (correlated() + 500).round().astype("uint16")
    frames[0] = 65535
    found = images(frames)
    np.testing.assert_allclose(found["std"], frames.std(axis=0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(found["correlation"], correlation_image(frames, 8), atol=1e-6)


def test_they_do_not_depend_on_the_chunks_or_the_workers() -> None:
    frames = (correlated() + 500).round().astype("uint16")
    reference = images(frames, (600, *FIELD))
    for chunks in ((7, 13, 21), (256, 4, 6)):
        for name, image in images(frames, chunks).items():
            np.testing.assert_array_equal(image, reference[name])


def test_a_constant_pixel_correlates_with_nothing() -> None:
    frames = (correlated(300) + 60000).round().astype("uint16")
    frames[:, 4, 7] = 61234
    found = images(frames)
    assert found["std"][4, 7] == 0
    assert found["correlation"][4, 7] == 0
    np.testing.assert_allclose(found["correlation"], correlation_image(frames, 8), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 5, 7), (300, 1, 1), (40, 1, 9), (40, 9, 1)])
def test_small_movies(shape: tuple[int, int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 99, shape, dtype=np.int16)
    found = images(frames)
    np.testing.assert_allclose(found["std"], frames.std(axis=0), rtol=1e-5)
    if shape[1:] == (1, 1):
        assert found["correlation"] == 0
    else:
        np.testing.assert_allclose(found["correlation"], correlation_image(frames, 8), atol=1e-6)


@pytest.mark.parametrize("neighbours", [5, 6, 7])
def test_neighbours_are_4_or_8(neighbours: int) -> None:
    with pytest.raises(InputError, match=f"^neighbours is {neighbours}; it must be 4 or 8$"):
        SummaryImagesParameters(neighbours=neighbours)


@pytest.mark.parametrize("neighbours", [3, 9])
def test_neighbours_beyond_are_refused(neighbours: int) -> None:
    with pytest.raises(InputError, match=f"neighbours is {neighbours}; it must be at"):
        SummaryImagesParameters(neighbours=neighbours)


def test_the_builder_does_not_compute() -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the builder computed")

    with dask.config.set(scheduler=refuse):
        summary_images(Movie(da.zeros((600, *FIELD)), 30.0), SummaryImagesParameters())
