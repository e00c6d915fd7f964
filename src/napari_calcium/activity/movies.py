"""Movies of change, for looking: each pixel relative to its own slow baseline.

All are lazy. The baseline is found at a few knots in time, each from a bounded number of frames out
of the window around it, and lies on straight lines between them, so that looking at one frame reads
a few short runs of frames and not its whole window.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import dask.array as da
import numpy as np
from dask._task_spec import DataNode, Task, TaskRef
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from numba import njit
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.movie import Movie, Reader, blocks, check_one_plane

__all__ = ["detrended_movie", "dff_movie"]

Floats = NDArray[np.float32]

FRAMES_PER_BLOCK = 8
"""Frames of a block by default: looking at one frame makes no more than so many."""

RUNS = 4
"""Runs of frames that are read out of a window."""

LEAST_RUNS = 3
"""Runs of a knot at an end of the recording, where half of its window is missing."""

MOST_FRAMES, LEAST_FRAMES = 32, 8
"""Frames of a run; a power of two, as of the shards on disk, of which a run touches only one."""

MEANS = 4
"""Means over time that a run is reduced to: of 8 frames each where it has 32."""

BLUR = 1.0
"""Standard deviation of the Gaussian by which the means are smoothed before they are ranked, px."""

PART_OF_FIELD, PART_OF_NOISE = 0.1, 0.5
"""Least denominator of dF/F, as a fraction of the field's median F0, and of its median noise."""

KEPT_BYTES = 2**28
"""What is kept of runs and knots, whoever looks at the movie."""

SOME_PIXELS = 128
"""Pixels along an axis, at most, of which a median over the field is taken."""

TILE = 512
"""Pixels that are ranked together: their means stay in the cache."""


def dff_movie(
    movie: Movie,
    window: float = 30.0,
    percentile: float = 8.0,
    *,
    frames_per_block: int = FRAMES_PER_BLOCK,
) -> da.Array:
    """Return lazily the movie as a fraction of its own baseline, for looking at it.

    F0 of a pixel is estimated at knots half a window apart and lies on straight lines between
    them. At a knot, four runs of up to 32 frames out of the window are averaged in parts of up to
    8 frames; F0 is the median of a pixel's means, less how far the wanted percentile lies below the
    median in means smoothed by 1 px. So F0 is as sharp as the movie, and noise does not pull it
    down, as it would the percentile of single pixels.

    Parameters
    ----------
    movie : Movie
        The corrected recording, of one plane, without an offset: what a pixel reads without light
        counts as fluorescence here.
    window : float
        Length of the window around each knot, s (CaImAn: frames_window). 0: the whole recording,
        which has one F0.
    percentile : float
        Percentile of the fluorescence in it that is F0, % (CaImAn: quantileMin).
    frames_per_block : int
        Frames of a block of the array, and of a task.

    Returns
    -------
    dask.array.Array (time, y, x), float32
        ``(Y - F0) / max(F0, floor)``, a fraction: 1 is a doubling. The floor is a tenth of the
        median F0 of the field, or half the median noise of its pixels where that is more, or 1
        where both are 0: dark pixels do not flicker. NaN where the movie is NaN or infinite, and
        never elsewhere; such frames are left out of F0.

    Raises
    ------
    InputError
        If the movie is of volumes, or `window` or `percentile` cannot be used.

    Examples
    --------
    >>> frames = np.full((60, 37, 53), 100, np.uint16)
    >>> frames[40] = 150
    >>> movie = Movie(da.from_array(frames), frame_rate=10.0)
    >>> dff_movie(movie)[39:42, 5, 5].compute()
    array([0. , 0.5, 0. ], dtype=float32)
    """
    return _movie("dff_movie", movie, window, percentile, frames_per_block)


def detrended_movie(
    movie: Movie,
    window: float = 30.0,
    percentile: float = 8.0,
    *,
    frames_per_block: int = FRAMES_PER_BLOCK,
) -> da.Array:
    """Return lazily the movie less its own baseline, for looking at it.

    For recordings with one photon, where most of F0 is light from elsewhere and dF/F means little.

    Parameters
    ----------
    movie, window, percentile, frames_per_block
        See `dff_movie`, also for how F0 is found and for NaN.

    Returns
    -------
    dask.array.Array (time, y, x), float32
        ``Y - F0``, in the movie's unit.

    Raises
    ------
    InputError
        See `dff_movie`.

    Examples
    --------
    >>> movie = Movie(da.full((60, 37, 53), 100, dtype=np.uint16), frame_rate=10.0)
    >>> float(detrended_movie(movie).max().compute())
    0.0
    """
    return _movie("detrended_movie", movie, window, percentile, frames_per_block)


def _movie(
    name: str, movie: Movie, window: float, percentile: float, frames_per_block: int
) -> da.Array:
    """Build an array of whole frames, all of its tasks on the knots of one baseline."""
    check_one_plane(movie.frames.shape, name)
    if frames_per_block < 1:
        raise ValueError(f"frames_per_block is {frames_per_block}; it must be at least 1")
    baseline = Baseline(Reader(movie), _in_frames(window, movie), _fraction(percentile))
    frames = movie.frames.rechunk((frames_per_block, *movie.field))
    divide = name == "dff_movie"
    name = f"{name}-{tokenize(frames.name, baseline)}"
    graph = _graph(name, frames, baseline, divide)
    layers = HighLevelGraph.from_collections(name, graph, dependencies=[frames])
    return da.Array(layers, name, frames.chunks, dtype=np.float32)


def _graph(name: str, frames: da.Array, baseline: Baseline, divide: bool) -> dict[Any, Any]:
    """Return the tasks: the baseline itself, its knots, and the blocks between them."""
    whole, knot = (f"{part}-{tokenize(baseline)}" for part in ("baseline", "knot"))
    graph: dict[Any, Any] = {whole: DataNode(whole, baseline)}
    for index in range(baseline.n_knots):
        graph[knot, index] = Task((knot, index), Baseline.knot, TaskRef(whole), index)
    start = 0
    for number, length in enumerate(frames.chunks[0]):
        needed = baseline.knots_of(start, start + length)
        knots = [TaskRef((knot, index)) for index in needed]
        place = baseline.places(start, start + length)
        block, key = TaskRef((frames.name, number, 0, 0)), (name, number, 0, 0)
        graph[key] = Task(key, _block, block, place - needed.start, divide, *knots)
        start += length
    return graph


def _in_frames(window: float, movie: Movie) -> int:
    """Return the window in frames, twice the recording where all of it is in every window."""
    if not (window >= 0 and math.isfinite(window)):
        raise InputError(f"window is {window:g} s; it must be at least 0 s")
    whole = 2 * movie.n_frames
    return max(1, round(min(window * movie.frame_rate, whole))) if window else whole


def _fraction(percentile: float) -> float:
    if not 0 <= percentile <= 100:
        raise InputError(f"percentile is {percentile:g} %; it must be 0 to 100 %")
    return percentile / 100


@dataclass(frozen=True)
class Knot:
    """The baseline at one frame.

    Parameters
    ----------
    f0 : ndarray (y, x), float32
        F0, counts; NaN where a pixel is NaN in all frames that were read.
    level : float
        Its median over the field, counts.
    floor : float
        Least denominator of dF/F, counts; above 0.
    """

    f0: Floats
    level: float
    floor: float

    @property
    def nbytes(self) -> int:
        """What it takes to keep it, for caches."""
        return self.f0.nbytes


@dataclass(frozen=True)
class Run:
    """A run of frames, reduced.

    Parameters
    ----------
    means : ndarray (part, y, x), float32
        Mean over each part, counts; NaN where a pixel is NaN throughout.
    noise : float
        Standard deviation of a frame's noise, the median over the field, counts.
    """

    means: Floats
    noise: float

    @property
    def nbytes(self) -> int:
        """What it takes to keep it, for caches."""
        return self.means.nbytes


class Baseline:
    """The slow baseline of each pixel, found at knots when it is asked for.

    What was found is kept, up to `KEPT_BYTES`, so that the next frame that is looked at costs
    little; it can be used by several threads, and pickles without what it keeps.

    Parameters
    ----------
    reader : Reader
        The movie, (time, y, x).
    window : int
        Frames around a knot that F0 is estimated from.
    fraction : float
        Part of the means in the window that lie below F0.

    Attributes
    ----------
    runs : list of slice
        Frames that are read, about `RUNS` in a window.
    n_knots : int
        Knots from the first frame to the last, at most half a window apart.
    """

    def __init__(self, reader: Reader, window: int, fraction: float) -> None:
        self.window, self.fraction = window, fraction
        self._reader, n_frames = reader, reader.shape[0]
        self.runs = _runs(n_frames, window)
        self.n_knots = 1 + math.ceil((n_frames - 1) / max(1, window // 2))
        self._step = max(1.0, (n_frames - 1) / max(1, self.n_knots - 1))
        self._kept = Kept(KEPT_BYTES)

    def __dask_tokenize__(self) -> Any:
        return "Baseline", self._reader.__dask_tokenize__(), self.window, self.fraction

    def places(self, start: int, stop: int) -> NDArray[np.float64]:
        """Return where frames lie between the knots (time,), the first knot being 0."""
        return np.arange(start, stop) / self._step

    def knots_of(self, start: int, stop: int) -> range:
        """Return the knots that frames lie between."""
        last = min(math.floor((stop - 1) / self._step) + 1, self.n_knots - 1)
        return range(min(math.floor(start / self._step), last), last + 1)

    def knot(self, index: int) -> Knot:
        """Return the baseline at a knot."""
        found = self._kept.get(("knot", index), functools.partial(self._knot, index))
        assert isinstance(found, Knot)
        return found

    def _knot(self, index: int) -> Knot:
        runs = [self._run(run) for run in self._runs_of(index)]
        f0 = _f0(np.concatenate([run.means for run in runs]), self.fraction)
        level = _median(f0)
        noise = float(np.median([run.noise for run in runs]))
        floor = max(PART_OF_FIELD * level, PART_OF_NOISE * noise)
        return Knot(f0, level, floor if floor > 0 else 1.0)

    def _run(self, run: slice) -> Run:
        read = functools.partial(_reduced, self._reader, run)
        found = self._kept.get(("run", run.start), read)
        assert isinstance(found, Run)
        return found

    def _runs_of(self, index: int) -> list[slice]:
        """Return the runs within half a window of a knot, or the few that are nearest."""
        knot = index * self._step
        away = np.array([abs((run.start + run.stop) / 2 - knot) for run in self.runs])
        n = max(LEAST_RUNS, int(np.sum(away <= self.window / 2)))
        return [self.runs[place] for place in sorted(np.argsort(away, kind="stable")[:n])]


class Kept:
    """What was made last, up to so many bytes; each is made once, whoever asks for it.

    Examples
    --------
    >>> kept = Kept(KEPT_BYTES)
    >>> kept.get("knot", lambda: np.ones(3)) is kept.get("knot", lambda: np.zeros(3))
    True
    """

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._lock = threading.Lock()
        self._slots: OrderedDict[Any, _Slot] = OrderedDict()

    def __reduce__(self) -> Any:
        return Kept, (self._nbytes,)

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what is kept under a key, or make it."""
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
        with slot.lock:
            if slot.value is None:
                slot.value = make()
        with self._lock:
            self._drop()
        return slot.value

    def _drop(self) -> None:
        """Drop what was asked for longest ago."""
        kept = sum(slot.nbytes for slot in self._slots.values())
        for key, slot in list(self._slots.items())[:-1]:
            if kept <= self._nbytes:
                return
            if slot.nbytes:  # being made otherwise
                del self._slots[key]
                kept -= slot.nbytes


@dataclass
class _Slot:
    """A place for one thing, which one thread at a time may fill."""

    lock: Any = field(default_factory=threading.Lock)
    value: Any = None

    @property
    def nbytes(self) -> int:
        return 0 if self.value is None else int(self.value.nbytes)


def _runs(n_frames: int, window: int) -> list[slice]:
    """Return the frames that are read, `RUNS` short runs in a window.

    Examples
    --------
    >>> [(run.start, run.stop) for run in _runs(700, 900)]
    [(0, 32), (160, 192), (320, 352), (512, 544), (668, 700)]
    >>> _runs(5, 900)
    [slice(0, 5, None)]
    """
    spacing = max(LEAST_FRAMES, min(window, n_frames) // RUNS)
    length = min(MOST_FRAMES, 1 << (spacing.bit_length() - 1))
    last = n_frames - length
    if last < 0:
        return [slice(0, n_frames)]
    starts = {start // length * length for start in range(0, last, spacing)} | {last}
    return [slice(start, start + length) for start in sorted(starts)]


def _reduced(reader: Reader, run: slice) -> Run:
    """Read a run of frames, and take the means of its parts and the noise."""
    frames = reader.read(run)
    parts = blocks(len(frames), max(1, len(frames) // MEANS))
    return Run(np.stack([_mean(frames[part]) for part in parts]), _noise(frames))


def _mean(frames: NDArray[Any]) -> Floats:
    """Return the mean (y, x) over time of what is finite, NaN where nothing is."""
    if frames.dtype.kind != "f":
        return np.asarray(np.mean(frames, axis=0, dtype=np.float32))
    known = np.isfinite(frames)
    total = np.sum(frames, axis=0, dtype=np.float64, where=known)
    count = known.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _noise(frames: NDArray[Any]) -> float:
    """Return the noise of a frame, from what changes between neighbours in time."""
    some = frames[(slice(None), *_some(frames.shape[1:]))].astype(np.float64)
    some[~np.isfinite(some)] = np.nan
    squared = np.diff(some, axis=0) ** 2 / 2
    known = np.isfinite(squared)
    count = known.sum(axis=0)
    variance = np.sum(squared, axis=0, where=known) / np.maximum(count, 1)
    return float(np.sqrt(np.median(variance[count > 0]))) if count.any() else 0.0


def _some(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return every so many pixels of a field."""
    return tuple(slice(None, None, -(-size // SOME_PIXELS)) for size in shape)


def _median(image: Floats) -> float:
    """Return the median over the field of what is finite, 0 where nothing is."""
    some = image[_some(image.shape)]
    known = some[np.isfinite(some)]
    return float(np.median(known)) if known.size else 0.0


def _f0(means: Floats, fraction: float) -> Floats:
    """Return the baseline (y, x) of means (part, y, x), some of them NaN."""
    middle = _quantile(means, 0.5)
    changes = np.stack([_smoothed(image - middle) for image in means])
    return middle + _quantile(changes, fraction)


def _smoothed(image: Floats) -> Floats:
    """Smooth an image (y, x) by a Gaussian; what is NaN is left out and stays NaN."""
    known = np.isfinite(image)
    if known.all():
        return _blur(image)
    weight = _blur(known.astype(np.float32))
    with np.errstate(invalid="ignore", divide="ignore"):
        smooth = _blur(np.where(known, image, 0)) / weight
    return np.where(known, smooth, np.float32(np.nan))


def _blur(image: Floats) -> Floats:
    blurred = cv2.GaussianBlur(image, (0, 0), BLUR, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred, np.float32)


def _quantile(images: Floats, fraction: float) -> Floats:
    """Return the quantile of each pixel over images (n, y, x), as numpy's nanquantile."""
    n, *field = images.shape
    result = np.empty(math.prod(field), np.float32)
    _rank(images.reshape(n, -1), _network(n), fraction, result)
    return result.reshape(field)


@functools.cache
def _network(n: int) -> NDArray[np.int64]:
    """Return the comparisons (comparison, 2) that sort n values, Batcher's odd-even merge sort.

    References
    ----------
    .. [1] Batcher, AFIPS 1968, doi:10.1145/1468075.1468121
    """
    pairs = []
    p = 1
    while p < n:
        k = p
        while k:
            for j in range(k % p, n - k, 2 * k):
                for i in range(j, min(j + k, n - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        pairs.append((i, i + k))
            k //= 2
        p *= 2
    return np.array(pairs, np.int64).reshape(-1, 2)


@njit(nogil=True, cache=True)
def _rank(values, network, fraction, result):  # type: ignore[no-untyped-def]
    """Quantiles of the columns of values (n, pixel); a network sorts many columns at once."""
    n, size = values.shape
    tile = np.empty((n, TILE), np.float32)
    known = np.empty(TILE, np.int64)
    for start in range(0, size, TILE):
        width = min(TILE, size - start)
        known[:] = 0
        for row in range(n):
            for column in range(width):
                value = values[row, start + column]
                is_known = value == value
                known[column] += is_known
                tile[row, column] = value if is_known else np.float32(np.inf)
        for step in range(len(network)):
            first, second = tile[network[step, 0]], tile[network[step, 1]]
            for column in range(width):
                low, high = first[column], second[column]
                first[column] = low if low < high else high
                second[column] = high if low < high else low
        for column in range(width):
            result[start + column] = _between(tile, column, known[column], fraction)


@njit(nogil=True, cache=True)
def _between(tile, column, known, fraction):  # type: ignore[no-untyped-def]
    """Quantile of a sorted column, whose first values are known."""
    if known == 0:
        return np.float32(np.nan)
    place = (known - 1) * fraction
    whole = min(int(place), known - 1)
    low, high = tile[whole, column], tile[min(whole + 1, known - 1), column]
    return low + (high - low) * np.float32(place - whole)


def _block(frames: NDArray[Any], places: NDArray[np.float64], divide: bool, *knots: Knot) -> Floats:
    """Return frames (time, y, x) relative to the baseline, which knots lie around."""
    result = np.asarray(frames, np.float32)
    result = result if result is not frames else result.copy()
    for frame, place in zip(result, places, strict=True):
        before = min(int(place), len(knots) - 1)
        first, second = knots[before], knots[min(before + 1, len(knots) - 1)]
        weight = float(place - before)
        level = first.level + weight * (second.level - first.level)
        floor = first.floor + weight * (second.floor - first.floor)
        _relate(frame, first.f0, second.f0, weight, level, floor, divide)
    return result


@njit(nogil=True, cache=True, error_model="numpy")
def _relate(frame, before, after, weight, level, floor, divide):  # type: ignore[no-untyped-def]
    """Take the baseline off a frame (y, x), and divide by it if that is wanted."""
    weight, level, floor = np.float32(weight), np.float32(level), np.float32(floor)
    for y in range(frame.shape[0]):
        for x in range(frame.shape[1]):
            f0 = before[y, x] + weight * (after[y, x] - before[y, x])
            if not np.isfinite(f0):
                f0 = after[y, x] if np.isfinite(after[y, x]) else before[y, x]
                f0 = f0 if np.isfinite(f0) else level
            value = frame[y, x] - f0
            value = value / max(f0, floor) if divide else value
            frame[y, x] = value if np.isfinite(value) else np.float32(np.nan)
