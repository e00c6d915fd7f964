"""A recording: frames as a Dask array, with the rate and the scale they were taken at."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import scipy.sparse as sp
from dask._task_spec import Task
from dask.core import flatten, get
from dask.delayed import Delayed, delayed
from numba import njit
from numpy.typing import NDArray

from napari_calcium.errors import InputError

__all__ = [
    "Box",
    "Movie",
    "Reader",
    "blocks",
    "check_one_plane",
    "pixel_major",
    "project",
    "summed",
    "weighted_sums",
]

FRAMES_PER_TASK = 256
"""Frames one task of a pass over the movie takes; the cut of the work, whatever the chunks."""

PIXELS_PER_TASK = 2**26
"""A task takes fewer frames where they would be more pixels than this; 256 of 512 x 512."""

FRAMES_PER_PRODUCT = 32
"""Frames turned into pixel-major floats at a time, so that they stay few."""


_READ = "read"
"""Key of the only task of a box that is read from where frames are stored."""

TILE = 32
"""Side of the tiles in which frames are transposed."""


@dataclass(frozen=True)
class Movie:
    """Frames, never computed, and what turns them into seconds and micrometres.

    Parameters
    ----------
    frames : dask.array.Array (time, y, x) or (time, z, y, x)
        The recording, in the type it was recorded in; a frame of several planes is a volume.
    frame_rate : float
        Frames per second, Hz; of volumes, volumes per second.
    pixel_size : float, optional
        Length of a pixel's side, um; 0 where unknown.

    Raises
    ------
    ValueError
        If `frames` is not a Dask array of three or four axes or the frame rate is not above 0.

    Examples
    --------
    >>> import dask.array as da
    >>> movie = Movie(da.zeros((60, 37, 53), dtype="uint16"), frame_rate=30.0)
    >>> movie.n_frames, movie.field, movie.duration
    (60, (37, 53), 2.0)
    >>> volumes = Movie(da.zeros((60, 5, 37, 53), dtype="uint16"), frame_rate=6.0)
    >>> volumes.field, volumes.n_planes, volumes.plane
    ((5, 37, 53), 5, (37, 53))
    """

    frames: da.Array
    frame_rate: float
    pixel_size: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.frames, da.Array) or self.frames.ndim not in (3, 4):
            raise ValueError(
                "frames must be a dask array of the axes (time, y, x) or (time, z, y, x)"
            )
        if not self.frame_rate > 0:
            raise ValueError(f"frame_rate is {self.frame_rate} Hz; it must be above 0 Hz")

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return int(self.frames.shape[0])

    @property
    def field(self) -> tuple[int, ...]:
        """Field of view, (y, x), or (z, y, x) of volumes, in pixels."""
        return tuple(int(size) for size in self.frames.shape[1:])

    @property
    def plane(self) -> tuple[int, int]:
        """Field of view of one plane, (y, x), in pixels."""
        return int(self.frames.shape[-2]), int(self.frames.shape[-1])

    @property
    def is_volume(self) -> bool:
        """Whether the frames are volumes, (z, y, x)."""
        return bool(self.frames.ndim == 4)

    @property
    def n_planes(self) -> int:
        """Number of planes of a frame."""
        return int(self.frames.shape[1]) if self.is_volume else 1

    @property
    def duration(self) -> float:
        """Length of the recording in seconds."""
        return self.n_frames / self.frame_rate

    def blocks(self) -> Iterator[slice]:
        """Cut the frames for one pass; the larger the field, the fewer frames in a task.

        Examples
        --------
        >>> movie = Movie(da.zeros((500, 37, 53), dtype="uint16"), frame_rate=30.0)
        >>> list(movie.blocks())
        [slice(0, 256, None), slice(256, 500, None)]
        """
        fit = max(1, PIXELS_PER_TASK // max(1, math.prod(self.field)))
        power_of_two = 1 << (fit.bit_length() - 1)  # as in shards on disk: none is read twice
        return blocks(self.n_frames, min(FRAMES_PER_TASK, power_of_two))

    def read(
        self,
        time: slice,
        y: slice = slice(None),
        x: slice = slice(None),
        z: slice | None = None,
    ) -> Delayed:
        """Return a lazy ndarray of one box, which reads no more than that box.

        The box is cut out of the graph before it runs, so a tile of a movie on disk is read chunk
        by chunk and other parts of its blocks are never in memory. What is read stays in memory
        until all that use the same box have run; a pass over the movie takes `apply` instead.
        Only volumes have a `z`; all planes if it is not given.
        """
        return delayed(np.asarray, pure=True)(self._part(time, y, x, z))

    def _part(self, time: slice, y: slice, x: slice, z: slice | None) -> da.Array:
        if z is not None and not self.is_volume:
            raise ValueError(f"the planes {z} are asked for, but the frames have only one")
        planes = () if not self.is_volume else (slice(None),) if z is None else (z,)
        return self.frames[(time, *planes, y, x)]

    def box(
        self,
        time: slice,
        y: slice = slice(None),
        x: slice = slice(None),
        z: slice | None = None,
    ) -> Box:
        """Return one box that a task can read itself."""
        if (stored := _stored(self.frames)) is not None:  # nothing to work out: it is only read
            planes = () if not self.is_volume else (slice(None),) if z is None else (z,)
            parts = tuple(
                slice(*part.indices(n))
                for part, n in zip((time, *planes, y, x), self.frames.shape, strict=True)
            )
            shape = tuple(max(part.stop - part.start, 0) for part in parts)
            graph = {_READ: Task(_READ, operator.getitem, stored, parts)}
            return Box(graph, _READ, shape, (self.frames.name, str(parts)))
        (part,) = dask.optimize(self._part(time, y, x, z))
        if part.npartitions == 1:  # as most are: nothing has to be put together
            key = next(flatten(part.__dask_keys__()))
            return Box(part.dask.cull({key}).to_dict(), key, part.shape, key)
        read = self.read(time, y, x, z)
        return Box(read.dask.cull({read.key}).to_dict(), read.key, part.shape, read.key)

    def apply(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        time: slice,
        y: slice = slice(None),
        x: slice = slice(None),
        z: slice | None = None,
    ) -> Delayed:
        """Return lazily a function of the frames of one box, which are read in the same task.

        So frames are never read before they are used nor kept for another pass, and a pass over a
        movie holds one box per worker. Frames that are costly to make are made again by each pass;
        store them first.

        Parameters
        ----------
        function : callable
            A kernel of the frames, an ndarray (time, y, x) or (time, z, y, x), and of `arguments`.
        *arguments : object
            Its other arguments, lazy or not.
        time, y, x, z : slice
            The box; only volumes have a `z`.

        Examples
        --------
        >>> movie = Movie(da.ones((60, 37, 53), chunks=20), frame_rate=30.0)
        >>> float(movie.apply(np.mean, time=slice(10, 30), x=slice(5)).compute())
        1.0
        """
        return delayed(_on_box, pure=True)(function, self.box(time, y, x, z), *arguments)


class Box:
    """A box of a movie that is read by the task that has it: not a Dask collection itself."""

    def __init__(self, graph: dict[Any, Any], key: Any, shape: tuple[int, ...], token: Any) -> None:
        self._graph = graph
        self._key = key
        self._token = token
        self.shape = shape

    def __dask_tokenize__(self) -> Any:
        return self._token

    def read(self) -> NDArray[Any]:
        """Return the frames (time, y, x) or (time, z, y, x), the task's own to write in."""
        frames = np.asarray(get(self._graph, [self._key])[0])
        return frames if frames.flags.owndata and self._key == _READ else frames.copy()


def _stored(frames: da.Array) -> Any:
    """Return what frames are read from block by block, if nothing else is done with it."""
    layers = getattr(frames.dask, "layers", {})
    original = f"original-{frames.name}"
    if set(layers) != {original, frames.name}:
        return None
    stored = layers[original][original]
    return None if isinstance(stored, np.ndarray) else stored


class Reader:
    """A movie that a task cuts its own boxes out of: not a Dask collection itself.

    For tasks that know where to read only when they run; where it is known before, it is
    `Movie.apply` that reads inside the task.

    Parameters
    ----------
    movie : Movie
        The recording.

    Examples
    --------
    >>> movie = Movie(da.ones((60, 37, 53), chunks=20), frame_rate=30.0)
    >>> Reader(movie).read(slice(10, 30), slice(5), slice(9)).shape
    (20, 5, 9)
    """

    def __init__(self, movie: Movie) -> None:
        self._movie = movie
        self.shape: tuple[int, ...] = (movie.n_frames, *movie.field)

    def __dask_tokenize__(self) -> Any:
        return self._movie.frames.name

    def read(self, time: slice, y: slice = slice(None), x: slice = slice(None)) -> NDArray[Any]:
        """Return the frames of one box, all planes of volumes, the task's own to write in."""
        return self._movie.box(time, y, x).read()


def _on_box(function: Callable[..., Any], box: Box, *arguments: Any) -> Any:
    return function(box.read(), *arguments)


def blocks(n: int, size: int = FRAMES_PER_TASK) -> Iterator[slice]:
    """Cut ``range(n)`` into consecutive slices of `size`, the last one shorter.

    Examples
    --------
    >>> list(blocks(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def check_one_plane(shape: tuple[int, ...], stage: str) -> None:
    """Raise `InputError` for a movie of volumes, which a stage cannot take.

    Parameters
    ----------
    shape : tuple of int
        Of the movie, (time, y, x) or (time, z, y, x).
    stage : str
        Name of the stage, the sentence's first word.

    Examples
    --------
    >>> check_one_plane((60, 37, 53), "summary_images")
    >>> check_one_plane((60, 5, 37, 53), "summary_images")
    Traceback (most recent call last):
    ...
    napari_calcium.errors.InputError: summary_images takes movies of one plane but the recording
    has 5 planes; run motion_correction only (--until motion_correction)
    """
    if len(shape) > 3:
        raise InputError(
            f"{stage} takes movies of one plane but the recording has {shape[1]} planes; "
            "run motion_correction only (--until motion_correction)"
        )


def project(movie: Movie, footprints: Delayed, level: Delayed | None = None) -> Delayed:
    """Return the lazy product of footprints and movie, ``footprints.T @ pixels``.

    Parameters
    ----------
    movie : Movie
        The recording, of one plane.
    footprints : Delayed of scipy.sparse.csc_array (pixel, cell)
        Weights, pixel = y * width + x.
    level : Delayed of ndarray (pixel,), optional
        Taken off the pixels first, such as the mean image: the sums of large footprints keep the
        digits of what changes.

    Returns
    -------
    Delayed of ndarray (cell, time), float32
        One pass over the movie, a task for each of `Movie.blocks`.
    """
    parts = [movie.apply(_project_block, footprints, level, time=block) for block in movie.blocks()]
    return delayed(_join_time, pure=True)(*parts)


def weighted_sums(movie: Movie, weights: Delayed, support: Delayed) -> Delayed:
    """Return lazily, for each cell, the weighted sum of frames at the pixels of its support.

    Parameters
    ----------
    movie : Movie
        The recording.
    weights : Delayed of ndarray (cell, time)
        Weight of each frame for each cell.
    support : Delayed of scipy.sparse.csc_array (pixel, cell)
        Where a value is wanted; only its pattern is used.

    Returns
    -------
    Delayed of scipy.sparse.csc_array (pixel, cell), float32
        ``pixels @ weights.T`` at the support's pattern; one pass over the movie.
    """
    parts = [
        movie.apply(_sums_block, weights, block.start, support, time=block)
        for block in movie.blocks()
    ]
    return delayed(_with_data, pure=True)(support, summed(parts))


def summed(parts: Sequence[Delayed]) -> Delayed:
    """Return the sum of arrays lazily, in a tree of fixed shape: whatever the workers, the same.

    Examples
    --------
    >>> summed([delayed(np.float64(value)) for value in (1, 2, 4)]).compute()
    np.float64(7.0)
    """
    parts = list(parts)
    while len(parts) > 1:
        parts = [delayed(_add, pure=True)(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return parts[0]


def _project_block(
    frames: NDArray[Any], footprints: sp.csc_array, level: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    by_cell = sp.csr_array(footprints.T)
    parts = [np.empty((by_cell.shape[0], 0), np.float32)]
    for run in blocks(len(frames), FRAMES_PER_PRODUCT):
        pixels = pixel_major(frames[run])
        if level is not None:
            pixels -= level[:, None]
        parts.append(by_cell @ pixels)
    return np.concatenate(parts, axis=1, dtype=np.float32)


def pixel_major(frames: NDArray[Any]) -> NDArray[np.float32]:
    """Return frames (time, y, x) as (pixel, time), so that a pixel's signal is contiguous.

    Examples
    --------
    >>> pixel_major(np.arange(6, dtype=np.uint16).reshape(3, 1, 2))
    array([[0., 2., 4.],
           [1., 3., 5.]], dtype=float32)
    """
    native = np.ascontiguousarray(frames, frames.dtype.newbyteorder("="))
    flat = native.reshape(len(frames), math.prod(frames.shape[1:]))
    turned = np.empty(flat.shape[::-1], np.float32)
    _turn(flat, turned)
    return turned


@njit(nogil=True, cache=True)
def _turn(rows, columns):  # type: ignore[no-untyped-def]
    """Transpose in tiles that stay in the cache."""
    height, width = rows.shape
    tile = np.empty((TILE, TILE), np.float32)
    for top in range(0, height, TILE):
        down = min(TILE, height - top)
        for left in range(0, width, TILE):
            across = min(TILE, width - left)
            for y in range(down):
                row = rows[top + y, left : left + across]
                for x in range(across):
                    tile[x, y] = row[x]
            for x in range(across):
                columns[left + x, top : top + down] = tile[x, :down]


def _join_time(*parts: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate(parts, axis=1)


def _sums_block(
    frames: NDArray[Any], weights: NDArray[np.float32], start: int, support: sp.csc_array
) -> NDArray[np.float64]:
    pixels = pixel_major(frames)
    local = np.ascontiguousarray(weights[:, start : start + len(frames)], dtype=np.float32)
    sums = np.zeros(support.nnz)
    _sparse_dot(pixels, local, support.indptr, support.indices, sums)
    return sums


@njit(nogil=True, cache=True, fastmath=True)
def _sparse_dot(pixels, weights, indptr, indices, sums):  # type: ignore[no-untyped-def]
    """Dot products of pixel rows with weight rows at the pattern (indices, indptr)."""
    for cell in range(len(indptr) - 1):
        weight = weights[cell]
        for entry in range(indptr[cell], indptr[cell + 1]):
            row = pixels[indices[entry]]
            total = np.float32(0.0)
            for frame in range(len(weight)):
                total += row[frame] * weight[frame]
            sums[entry] = total


def _add(first: NDArray[np.float64], second: NDArray[np.float64] | None = None) -> Any:
    return first if second is None else first + second


def _with_data(support: sp.csc_array, data: NDArray[np.float64]) -> sp.csc_array:
    parts = (data.astype(np.float32), support.indices, support.indptr)
    return sp.csc_array(parts, shape=support.shape)
