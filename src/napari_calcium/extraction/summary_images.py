"""Summary images of a movie: what a person looks at first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import cv2
import numpy as np
from dask.delayed import Delayed, delayed
from numba import njit
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.movie import Movie, blocks, check_one_plane
from napari_calcium.parameters import Parameters, parameter

__all__ = ["SummaryImagesParameters", "correlation_pnr", "summary_images"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Offsets = tuple[tuple[int, int], ...]

OFFSETS_8 = ((0, 1), (1, -1), (1, 0), (1, 1))  # half of the neighbours; the rest by symmetry
OFFSETS_4 = ((0, 1), (1, 0))

SHORTEST_BIN = 3
"""Frames of the shortest bin; the correlation of two is 1 or -1."""

FRAMES_PER_FILTER = 32
"""Frames filtered at a time, so that those in float are few."""

ACTIVE = 3.0
"""What a filtered pixel must exceed, in sd of its noise, to count in the correlation."""


@dataclass(frozen=True)
class SummaryImagesParameters(Parameters):
    """Parameters of `summary_images`.

    Parameters
    ----------
    neighbours : int
        Neighbours of a pixel that the correlation images take, 4 or 8. CaImAn: eight_neighbours.
    bin_length : float
        Length of the bins of time of the maximum correlation, s: the shorter, the better a cell
        shows that is active once, and the more noise does; a bin has at least 3 frames. CaImAn:
        bin_size of max_correlation_image, in frames.
    filter_radius : float
        Radius of a cell, px, for the images ``correlation_filtered`` and ``pnr``, which show cells
        in front of a strong background, as in one-photon movies; 0 leaves them out, as they take
        two more passes over the movie. CaImAn: twice the gSig of correlation_pnr.
    """

    neighbours: int = parameter(8, minimum=4, maximum=8)
    bin_length: float = parameter(30.0, unit="s", above=0)
    filter_radius: float = parameter(0.0, unit="px", minimum=0, maximum=100)

    @property
    def offsets(self) -> Offsets:
        """Steps (y, x) to one neighbour of each pair, px."""
        return OFFSETS_8 if self.neighbours == 8 else OFFSETS_4

    def check(self) -> None:
        """Raise `InputError` for a number of neighbours between 4 and 8."""
        if self.neighbours not in (4, 8):
            raise InputError(f"neighbours is {self.neighbours}; it must be 4 or 8")

    def check_movie(self, shape: tuple[int, ...]) -> None:
        """Raise `InputError` for a movie of volumes, or if a cell does not fit into the field."""
        check_one_plane(shape, "summary_images")
        if min(shape[1:]) < 2 * self.filter_radius:
            raise InputError(
                f"filter_radius is {self.filter_radius:g} px but the field is only {shape[1]} x "
                f"{shape[2]} px; give a smaller filter_radius"
            )


class Sums(NamedTuple):
    """Sums over a run of frames; `products` are those with a neighbour, one per offset."""

    frames: int
    total: Doubles
    squares: Doubles
    products: Doubles
    largest: NDArray[Any]


class Bins(NamedTuple):
    """The movie's frames in bins of `size`; the last is longer, by less than `size`."""

    n_frames: int
    size: int

    def length(self, number: int) -> int:
        """Return the number of frames of a bin."""
        last = max(1, self.n_frames // self.size) - 1
        return self.size if number < last else self.n_frames - last * self.size

    def cut(self, frames: slice) -> Iterator[tuple[int, slice]]:
        """Yield the bins that a run of frames touches, and their part of it, from its start."""
        start = frames.start
        while start < frames.stop:
            number = min(start // self.size, max(1, self.n_frames // self.size) - 1)
            stop = min(number * self.size + self.length(number), frames.stop)
            yield number, slice(start - frames.start, stop - frames.start)
            start = stop


class Binned(NamedTuple):
    """What is known of the bins after a run of frames.

    `whole` are the sums over the bins that lie in it whole, `highest` is the largest correlation in
    one of them, and `parts` are the sums of the bins, two at most, that it has a part of.
    """

    whole: Sums | None
    highest: Floats | None
    parts: dict[int, Sums]


class Peaks(NamedTuple):
    """What is known of filtered frames after a run of them.

    `bends` are the sums of the squared second differences; `first` and `last` are its two outermost
    frames at either end, for those across the border to the next run.
    """

    frames: int
    total: Doubles
    largest: Floats
    bends: Doubles
    first: Floats
    last: Floats


def summary_images(movie: Movie, parameters: SummaryImagesParameters) -> Delayed:
    """Return lazily the mean, maximum, standard deviation and local correlations over time.

    Parameters
    ----------
    movie : Movie
        One pass is made over it, three if `filter_radius` is above 0.
    parameters : SummaryImagesParameters
        See there.

    Returns
    -------
    Delayed of dict of str to ndarray (y, x), float32
        ``mean``, ``max`` and ``std``; ``correlation``, the mean of a pixel's correlations with its
        neighbours; ``max_correlation``, the largest of those in bins of time, of which the last may
        be up to twice as long; and if `filter_radius` is above 0 those of `correlation_pnr`. The
        correlation of a pixel that never changes is 0. A pixel with NaN is NaN, and no neighbour
        in the bins in which it has any.

    References
    ----------
    Smith and Hausser 2010, 10.1038/nn.2620 (local correlation).

    Examples
    --------
    >>> import dask.array as da
    >>> movie = Movie(da.arange(60).reshape(10, 2, 3), frame_rate=10)
    >>> images = summary_images(movie, SummaryImagesParameters(bin_length=0.5))
    >>> images["mean"].compute()[0, 0], images["max_correlation"].compute().min().round(3)
    (np.float32(27.0), np.float32(1.0))
    """
    reference, offsets = movie.read(slice(0, 1)), parameters.offsets
    longest = min(parameters.bin_length, movie.duration)
    bins = Bins(movie.n_frames, max(SHORTEST_BIN, round(longest * movie.frame_rate)))
    parts = [
        movie.apply(_binned_sums, run, bins, reference, offsets, time=run) for run in movie.blocks()
    ]
    binned = _tree(parts, _join_bins, bins, offsets)
    images = delayed(_images, pure=True)(binned, reference, offsets)
    if not parameters.filter_radius:
        return images
    return delayed(_merged, pure=True)(images, correlation_pnr(movie, parameters))


def correlation_pnr(movie: Movie, parameters: SummaryImagesParameters) -> Delayed:
    """Return lazily the local correlation and the peak-to-noise ratio of the filtered movie.

    Each frame is filtered by a Gaussian of a cell's size, of sd `filter_radius` / 2, less its mean
    over the square of half side 1.5 `filter_radius`: what is smooth over more than a cell is gone.

    Parameters
    ----------
    movie : Movie
        Two passes are made over it.
    parameters : SummaryImagesParameters
        `filter_radius`, above 0, and `neighbours`.

    Returns
    -------
    Delayed of dict of str to ndarray (y, x), float32
        ``pnr``, the maximum over time less the mean, in sd of the pixel's white noise (see
        `pixel_noise`), and ``correlation_filtered``, the local correlation of what is left above
        the mean when all that is below 3 sd of the noise is set to 0. A cell is high in both:
        filtered noise is smooth, so it correlates too where it exceeds 3 sd by chance. Both are 0
        where nothing ever changes and for fewer than three frames. A pixel with NaN is NaN; frames
        are filtered without the pixels that are NaN in them.

    Raises
    ------
    InputError
        If `filter_radius` is 0.

    References
    ----------
    Zhou et al. 2018, 10.7554/eLife.28728 (how cells are found in one-photon movies).

    Examples
    --------
    >>> import dask.array as da
    >>> frames = np.random.default_rng(0).normal(size=(400, 37, 53))
    >>> frames += 50 * np.random.default_rng(1).normal(size=(400, 1, 1))  # of the whole field
    >>> frames[40:50, 15:20, 30:35] += 9
    >>> movie = Movie(da.from_array(frames), frame_rate=10)
    >>> images = correlation_pnr(movie, SummaryImagesParameters(filter_radius=3)).compute()
    >>> for name, image in images.items():
    ...     print(f"{name}: {image[17, 32]:.1f}, elsewhere {np.median(image):.1f}")
    correlation_filtered: 1.0, elsewhere 0.0
    pnr: 20.7, elsewhere 2.9
    """
    if not parameters.filter_radius:
        raise InputError("filter_radius is 0 px; give the radius of the cells")
    radius, offsets = parameters.filter_radius, parameters.offsets
    reference, runs = movie.read(slice(0, 1)), list(movie.blocks())
    parts = [movie.apply(_peaks, reference, radius, time=run) for run in runs]
    peaks = _tree(parts, _join_peaks)
    parts = [movie.apply(_active_sums, reference, radius, peaks, offsets, time=run) for run in runs]
    return delayed(_pair, pure=True)(peaks, _tree(parts, _add_sums), offsets)


def _tree(parts: list[Delayed], join: Callable[..., Any], *arguments: Any) -> Delayed:
    """Join two and two, in a tree of fixed shape: the same rounding whatever the workers."""
    joined = delayed(join, pure=True)
    while len(parts) > 1:
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        parts = [joined(*pair, *arguments) if len(pair) == 2 else pair[0] for pair in pairs]
    return parts[0]


def _binned_sums(
    frames: NDArray[Any], run: slice, bins: Bins, reference: NDArray[Any], offsets: Offsets
) -> Binned:
    """Sum the frames of each bin; `run` is their place in the movie."""
    binned = Binned(None, None, {})
    for number, part in bins.cut(run):
        sums = _sums(frames[part], reference, offsets)
        binned = _join_bins(binned, Binned(None, None, {number: sums}), bins, offsets)
    return binned


def _sums(frames: NDArray[Any], reference: NDArray[Any], offsets: Offsets) -> Sums:
    """Sum a run of frames, each less a reference frame so that squares keep their digits."""
    sums = _no_sums(frames, offsets)
    native = frames.astype(frames.dtype.newbyteorder("="), copy=False)
    steps = np.array(offsets, np.int64)
    _add_frames(native, _finite(reference[0]), steps, sums.total, sums.squares, sums.products)
    return sums._replace(largest=native.max(axis=0))


def _no_sums(frames: NDArray[Any], offsets: Offsets) -> Sums:
    field = frames.shape[1:]
    products = np.zeros((len(offsets), *field))
    return Sums(len(frames), np.zeros(field), np.zeros(field), products, np.zeros(field, "f4"))


def _finite(image: NDArray[Any]) -> Doubles:
    return np.where(np.isfinite(image), image, 0).astype(np.float64)


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


def _add_sums(first: Sums, second: Sums) -> Sums:
    return Sums(
        first.frames + second.frames,
        first.total + second.total,
        first.squares + second.squares,
        first.products + second.products,
        np.maximum(first.largest, second.largest),
    )


def _join_bins(first: Binned, second: Binned, bins: Bins, offsets: Offsets) -> Binned:
    """Join two runs that follow each other; a bin that is whole now is added to the others."""
    whole = _of_both(_add_sums, first.whole, second.whole)
    highest = _of_both(np.maximum, first.highest, second.highest)
    parts = dict(first.parts)
    for number, sums in second.parts.items():
        parts[number] = _of_both(_add_sums, parts.get(number), sums)
    for number in sorted(parts):
        if parts[number].frames == bins.length(number):
            sums = parts.pop(number)
            whole = _of_both(_add_sums, whole, sums)
            highest = _of_both(np.maximum, highest, _correlation(sums, offsets))
    return Binned(whole, highest, parts)


def _of_both(join: Callable[..., Any], first: Any, second: Any) -> Any:
    if first is None or second is None:
        return second if first is None else first
    return join(first, second)


def _images(binned: Binned, reference: NDArray[Any], offsets: Offsets) -> dict[str, Floats]:
    sums, highest, _ = binned
    assert sums is not None
    assert highest is not None
    mean, std = _moments(sums)
    return {
        "mean": (mean + _finite(reference[0])).astype(np.float32),
        "max": sums.largest.astype(np.float32),
        "std": std.astype(np.float32),
        "correlation": _correlation(sums, offsets),
        "max_correlation": highest,
    }


def _moments(sums: Sums) -> tuple[Doubles, Doubles]:
    """Return mean and standard deviation, this 0 where it is no more than rounding."""
    with np.errstate(invalid="ignore"):  # infinite pixels
        mean, square = sums.total / sums.frames, sums.squares / sums.frames
        variance = np.maximum(square - mean**2, 0)
    std = np.sqrt(variance)
    std[variance < 1e-9 * np.maximum(square, 1e-30)] = 0
    return mean, std


def _correlation(sums: Sums, offsets: Offsets) -> Floats:
    """Return the mean of each pixel's correlations with its neighbours, those with NaN left out."""
    mean, std = _moments(sums)
    known, steps = np.isfinite(std), np.array(offsets, np.int64)
    total, count = np.zeros_like(mean), np.zeros(mean.shape, np.uint8)
    _add_pairs(sums.products, sums.frames, mean, std, known, steps, total, count)
    image: Floats = (total / np.maximum(count, 1)).astype(np.float32)
    image[~known] = np.nan
    return image


@njit(nogil=True, cache=True)
def _add_pairs(products, frames, mean, std, known, offsets, total, count):  # type: ignore[no-untyped-def]
    """Add the correlation of two neighbours to both, row by row, and count the neighbours."""
    height, width = total.shape
    pairs = np.empty(width)
    for y in range(height):
        for k in range(len(offsets)):
            below, right = y + offsets[k, 0], offsets[k, 1]
            if below < height:
                first, last = max(0, -right), width - max(0, right)
                here, there = slice(first, last), slice(first + right, last + right)
                pair, means, stds = pairs[here], mean[below, there], std[below, there]
                pair[:] = products[k, y, here]
                _correlate(pair, frames, mean[y, here], means, std[y, here], stds)
                _add(pair, total[y, here])
                _add(pair, total[below, there])
                _add(known[below, there], count[y, here])
                _add(known[y, here], count[below, there])


@njit(nogil=True, cache=True, error_model="numpy")
def _correlate(pair, frames, mean, other_mean, std, other_std):  # type: ignore[no-untyped-def]
    """Turn a row of sums of products into correlations; 0 for a constant pixel, and for NaN."""
    for x in range(len(pair)):
        spread = std[x] * other_std[x]
        covariance = pair[x] / frames - mean[x] * other_mean[x]
        pair[x] = covariance / spread if spread > 0 else 0.0


@njit(nogil=True, cache=True)
def _add(values, total):  # type: ignore[no-untyped-def]
    for x in range(len(total)):
        total[x] += values[x]


def _peaks(frames: NDArray[Any], reference: NDArray[Any], radius: float) -> Peaks:
    """Filter a run of frames and keep what the peak-to-noise ratio needs of it."""
    parts = (frames[part] for part in blocks(len(frames), FRAMES_PER_FILTER))
    return reduce(_join_peaks, (_peaks_of(_filtered(part, reference, radius)) for part in parts))


def _peaks_of(filtered: Floats) -> Peaks:
    field = filtered.shape[1:]
    total, bends, largest = np.zeros(field), np.zeros(field), filtered[0].copy()
    _add_filtered(filtered, total, bends, largest)
    return Peaks(len(filtered), total, largest, bends, filtered[:2].copy(), filtered[-2:].copy())


def _join_peaks(first: Peaks, second: Peaks) -> Peaks:
    """Join two runs that follow each other, with the second differences across their border."""
    across = np.concatenate((first.last, second.first))
    return Peaks(
        first.frames + second.frames,
        first.total + second.total,
        np.maximum(first.largest, second.largest),
        first.bends + second.bends + _peaks_of(across).bends,
        np.concatenate((first.first, second.first))[:2],
        np.concatenate((first.last, second.last))[-2:],
    )


@njit(nogil=True, cache=True)
def _add_filtered(frames, total, bends, largest):  # type: ignore[no-untyped-def]
    """Add to the sums, row by row, so that the sums of a row stay in the cache."""
    for y in range(frames.shape[1]):
        for time in range(len(frames)):
            now = frames[time, y]
            _add_and_compare(now, total[y], largest[y])
            if time > 1:
                _add_bend(frames[time - 2, y], frames[time - 1, y], now, bends[y])


@njit(nogil=True, cache=True)
def _add_and_compare(now, total, largest):  # type: ignore[no-untyped-def]
    for x in range(len(now)):
        total[x] += now[x]
        largest[x] = max(largest[x], now[x])


@njit(nogil=True, cache=True)
def _add_bend(before, now, after, total):  # type: ignore[no-untyped-def]
    """Add the square of a row less the mean of the two beside it; see `pixel_noise`."""
    for x in range(len(total)):
        change = now[x] - np.float32(0.5) * (before[x] + after[x])
        total[x] += change * change


def _noise(peaks: Peaks) -> Doubles:
    """Return the standard deviation of the white noise; 0 for fewer than three frames."""
    noise: Doubles = np.sqrt(peaks.bends / (1.5 * max(1, peaks.frames - 2)))
    return noise


def _active_sums(
    frames: NDArray[Any],
    reference: NDArray[Any],
    radius: float,
    peaks: Peaks,
    offsets: Offsets,
) -> Sums:
    """Sum filtered frames less their mean, set to 0 where they are not above the noise."""
    sums, steps = _no_sums(frames, offsets), np.array(offsets, np.int64)
    nothing = np.zeros(frames.shape[1:])
    mean, noise = (peaks.total / peaks.frames).astype(np.float32), _noise(peaks)
    least = np.where(noise == 0, np.inf, ACTIVE * noise).astype(np.float32)
    for part in blocks(len(frames), FRAMES_PER_FILTER):
        filtered = _filtered(frames[part], reference, radius)
        filtered -= mean
        filtered[filtered < least] = 0  # NaN stays
        _add_frames(filtered, nothing, steps, sums.total, sums.squares, sums.products)
    return sums


def _pair(peaks: Peaks, sums: Sums, offsets: Offsets) -> dict[str, Floats]:
    mean, noise = peaks.total / peaks.frames, _noise(peaks)
    pnr = np.divide(peaks.largest - mean, noise, out=np.zeros_like(mean), where=noise != 0)
    pnr[np.isnan(mean)] = np.nan
    return {"correlation_filtered": _correlation(sums, offsets), "pnr": pnr.astype(np.float32)}


def _merged(first: dict[str, Floats], second: dict[str, Floats]) -> dict[str, Floats]:
    return {**first, **second}


def _filtered(frames: NDArray[Any], reference: NDArray[Any], radius: float) -> Floats:
    """Filter what each frame has more than the reference, which changes a pixel by a constant."""
    wide = np.result_type(frames.dtype, np.float32)
    with np.errstate(invalid="ignore"):  # infinite pixels
        filtered: Floats = np.subtract(frames, reference, dtype=wide).astype(np.float32)
    for image in filtered:
        image[...] = _zero_mean_gaussian(image, radius)
    return filtered


def _zero_mean_gaussian(image: Floats, radius: float) -> Floats:
    """Return the Gaussian less the flat mean around each pixel, over the pixels that are finite."""
    known = np.isfinite(image)
    means = _means(image if known.all() else np.where(known, image, 0), radius)
    if not known.all():
        means[:, ~known] = np.nan
        means[:, known] /= _means(known.astype(np.float32), radius)[:, known]
    filtered: Floats = means[0] - means[1]
    return filtered


def _means(image: Floats, radius: float) -> Floats:
    """Return the mean around each pixel of an image, weighted by a Gaussian and by a square."""
    half = int(np.ceil(1.5 * radius))
    gaussian = np.exp(-2 * (np.arange(-half, half + 1) / radius) ** 2)
    means = np.empty((2, *image.shape), np.float32)
    for mean, weights in zip(means, (gaussian, np.ones_like(gaussian)), strict=True):
        weights /= weights.sum()
        cv2.sepFilter2D(image, -1, weights, weights, mean, borderType=cv2.BORDER_REFLECT)
    return means
