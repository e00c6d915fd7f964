"""Summary images of a movie: what a person looks at first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from dask.delayed import Delayed, delayed
from numba import njit
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.movie import Movie, check_one_plane
from napari_calcium.parameters import Parameters, parameter

__all__ = ["SummaryImagesParameters", "summary_images"]

Doubles = NDArray[np.float64]

OFFSETS_8 = ((0, 1), (1, -1), (1, 0), (1, 1))  # half of the neighbours; the rest by symmetry
OFFSETS_4 = ((0, 1), (1, 0))


@dataclass(frozen=True)
class SummaryImagesParameters(Parameters):
    """Parameters of `summary_images`.

    Parameters
    ----------
    neighbours : int
        Neighbours of a pixel that the correlation image takes, 4 or 8. CaImAn: eight_neighbours.
    """

    neighbours: int = parameter(8, minimum=4, maximum=8)

    def check(self) -> None:
        """Raise `InputError` for a number of neighbours between 4 and 8."""
        if self.neighbours not in (4, 8):
            raise InputError(f"neighbours is {self.neighbours}; it must be 4 or 8")

    def check_movie(self, shape: tuple[int, ...]) -> None:
        """Raise `InputError` for a movie of volumes."""
        check_one_plane(shape, "summary_images")


class Sums(NamedTuple):
    """Sums over a run of frames; `products` are those with a neighbour, one per offset."""

    frames: int
    total: Doubles
    squares: Doubles
    products: Doubles
    largest: NDArray[Any]


def summary_images(movie: Movie, parameters: SummaryImagesParameters) -> Delayed:
    """Return lazily the mean, maximum, standard deviation and local correlation over time.

    Parameters
    ----------
    movie : Movie
        One pass is made over it.
    parameters : SummaryImagesParameters
        See there.

    Returns
    -------
    Delayed of dict of str to ndarray (y, x), float32
        ``mean``, ``max``, ``std`` and ``correlation``; the correlation of a pixel that never
        changes is 0.

    References
    ----------
    Smith and Hausser 2010, 10.1038/nn.2620 (local correlation).

    Examples
    --------
    >>> import dask.array as da
    >>> movie = Movie(da.arange(60).reshape(10, 2, 3), frame_rate=10)
    >>> images = summary_images(movie, SummaryImagesParameters()).compute()
    >>> images["mean"][0, 0], images["correlation"].min().round(3)
    (np.float32(27.0), np.float32(1.0))
    """
    offsets = OFFSETS_8 if parameters.neighbours == 8 else OFFSETS_4
    reference = movie.read(slice(0, 1))
    parts = [movie.apply(_sums, reference, offsets, time=block) for block in movie.blocks()]
    while len(parts) > 1:
        parts = [delayed(_joined, pure=True)(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return delayed(_images, pure=True)(parts[0], reference, offsets)


def _sums(
    frames: NDArray[Any], reference: NDArray[Any], offsets: tuple[tuple[int, int], ...]
) -> Sums:
    """Sum a run of frames, each less a reference frame so that squares keep their digits."""
    field = frames.shape[1:]
    total, squares, products = np.zeros(field), np.zeros(field), np.zeros((len(offsets), *field))
    native = frames.astype(frames.dtype.newbyteorder("="), copy=False)
    steps = np.array(offsets, np.int64)
    _add_frames(native, reference[0].astype(np.float64), steps, total, squares, products)
    return Sums(len(frames), total, squares, products, native.max(axis=0))


@njit(nogil=True, cache=True)
def _add_frames(frames, reference, offsets, total, squares, products):  # type: ignore[no-untyped-def]
    """Add to the sums, row by row, so that the sums of a row stay in the cache."""
    height, width = reference.shape
    here, below = np.empty(width), np.empty(width)
    for y in range(height):
        following = min(y + 1, height - 1)
        for time in range(len(frames)):
            _subtract(frames[time, y], reference[y], here)
            _subtract(frames[time, following], reference[following], below)
            total[y] += here
            _add_product(here, here, squares[y])
            for k in range(len(offsets)):
                down, right = offsets[k]
                if y + down < height:
                    first, last = max(0, -right), width - max(0, right)
                    there = (below if down else here)[first + right : last + right]
                    _add_product(here[first:last], there, products[k, y, first:last])


@njit(nogil=True, cache=True)
def _subtract(first, second, difference):  # type: ignore[no-untyped-def]
    for x in range(len(difference)):
        difference[x] = first[x] - second[x]


@njit(nogil=True, cache=True)
def _add_product(first, second, total):  # type: ignore[no-untyped-def]
    for x in range(len(total)):
        total[x] += first[x] * second[x]


def _joined(first: Sums, second: Sums | None = None) -> Sums:
    if second is None:
        return first
    return Sums(
        first.frames + second.frames,
        first.total + second.total,
        first.squares + second.squares,
        first.products + second.products,
        np.maximum(first.largest, second.largest),
    )


def _images(
    sums: Sums, reference: NDArray[Any], offsets: tuple[tuple[int, int], ...]
) -> dict[str, NDArray[np.float32]]:
    mean = sums.total / sums.frames
    variance = np.maximum(sums.squares / sums.frames - mean**2, 0)
    std = np.sqrt(variance)
    std[variance < 1e-9 * np.maximum(sums.squares / sums.frames, 1e-30)] = 0
    correlation, neighbours = np.zeros_like(mean), np.zeros_like(mean)
    for product, offset in zip(sums.products, offsets, strict=True):
        here, there = _neighbours(offset, mean.shape)
        covariance = product[here] / sums.frames - mean[here] * mean[there]
        spread = std[here] * std[there]
        value = np.divide(covariance, spread, out=np.zeros_like(spread), where=spread > 0)
        for place in (here, there):
            correlation[place] += value
            neighbours[place] += 1
    return {
        "mean": (mean + reference[0]).astype(np.float32),
        "max": sums.largest.astype(np.float32),
        "std": std.astype(np.float32),
        "correlation": (correlation / np.maximum(neighbours, 1)).astype(np.float32),
    }


def _neighbours(
    offset: tuple[int, int], shape: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the pixels that have a neighbour at an offset, and those neighbours."""
    here, there = [], []
    for step, size in zip(offset, shape, strict=True):
        here.append(slice(max(0, -step), size - max(0, step)))
        there.append(slice(max(0, step), size - max(0, -step)))
    return (here[0], here[1]), (there[0], there[1])
