"""The field of view cut into patches, each with a halo, and their reading."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from napari_calcium.movie import Reader, blocks

__all__ = ["Averaged", "Patch", "averaged_pixels", "bin_frames", "cut", "read_averaged"]


FRAMES_PER_READ = 128
"""Frames of a patch that are in memory before they are averaged: as many as a chunk on disk has."""


@dataclass(frozen=True)
class Patch:
    """A rectangle of the field: its core, and the core with a halo around it, in pixels.

    The cores of all patches cover the field once; a cell belongs to the patch whose core holds its
    centre.
    """

    core: tuple[slice, slice]
    halo: tuple[slice, slice]

    @property
    def core_in_halo(self) -> tuple[slice, slice]:
        """The core in coordinates of the halo."""
        y, x = (
            slice(core.start - halo.start, core.stop - halo.start)
            for core, halo in zip(self.core, self.halo, strict=True)
        )
        return y, x

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width with the halo."""
        y, x = self.halo
        return y.stop - y.start, x.stop - x.start


def cut(field: tuple[int, int], size: int, halo: int) -> tuple[Patch, ...]:
    """Cut a field (y, x) into patches of about equal core, none larger than `size`.

    Examples
    --------
    >>> [patch.core for patch in cut((37, 54), 40, 4)]
    [(slice(0, 37, None), slice(0, 27, None)), (slice(0, 37, None), slice(27, 54, None))]
    """
    edges = [np.linspace(0, n, -(-n // size) + 1).round().astype(int).tolist() for n in field]
    spans = [[slice(*pair) for pair in itertools.pairwise(e)] for e in edges]
    return tuple(
        Patch((y, x), (_grown(y, halo, field[0]), _grown(x, halo, field[1])))
        for y in spans[0]
        for x in spans[1]
    )


def _grown(span: slice, halo: int, size: int) -> slice:
    return slice(max(span.start - halo, 0), min(span.stop + halo, size))


@dataclass(frozen=True)
class Averaged:
    """A patch averaged for the search, and what single frames say of its pixels.

    Parameters
    ----------
    frames : ndarray (bin, y, x), float32
        Averages over runs of frames and, where cells are large, over squares of pixels.
    mean, noise : ndarray (y, x), float32
        Of single frames and pixels; NaN where a pixel is not finite in every frame.
    """

    frames: NDArray[np.float32]
    mean: NDArray[np.float32]
    noise: NDArray[np.float32]


def read_averaged(reader: Reader, patch: Patch, frames_per_bin: int, pixels: int = 1) -> Averaged:
    """Read a patch with its halo and average it, one run of frames in memory at a time.

    Parameters
    ----------
    reader : Reader
        The movie.
    patch : Patch
        Which part of it.
    frames_per_bin : int
        Frames left over at the end, fewer than that, make a last bin of their own.
    pixels : int
        Side of the squares of pixels that are averaged.
    """
    n_frames, size = reader.shape[0], patch.shape
    small = tuple(-(-n // pixels) for n in size)
    sums = np.zeros((-(-n_frames // frames_per_bin), *small), np.float32)
    total, squares = np.zeros(size), np.zeros(size)
    last = np.zeros((2, *size), np.float32)
    start = 0
    for run in blocks(n_frames, FRAMES_PER_READ):
        frames = _native(reader.read(run, *patch.halo))
        _add_changes(frames, start, last, total, squares)
        _add_to_bins(averaged_pixels(frames, pixels), start, frames_per_bin, sums)
        start += len(frames)
    noise = np.sqrt(squares / (1.5 * max(n_frames - 2, 1)))
    mean = total / n_frames
    missing = ~(np.isfinite(mean) & np.isfinite(noise))
    mean[missing] = noise[missing] = np.nan
    averages = _means(sums, n_frames, frames_per_bin)
    return Averaged(averages, mean.astype(np.float32), noise.astype(np.float32))


def averaged_pixels(frames: NDArray[Any], size: int) -> NDArray[Any]:
    """Average squares of pixels; those cut off at the border are averaged over what they have.

    Examples
    --------
    >>> averaged_pixels(np.arange(6.0).reshape(1, 2, 3), 2)
    array([[[2. , 3.5]]], dtype=float32)
    """
    if size == 1:
        return frames
    rows, columns = (np.arange(0, n, size) for n in frames.shape[1:])
    sums = np.add.reduceat(frames.astype(np.float32), rows, axis=1)
    sums = np.add.reduceat(sums, columns, axis=2)
    heights, widths = (
        np.diff(np.append(starts, n))
        for starts, n in zip((rows, columns), frames.shape[1:], strict=True)
    )
    return np.asarray(sums / (heights[:, None] * widths), np.float32)


def bin_frames(frames: NDArray[Any], size: int) -> NDArray[np.float32]:
    """Average runs of `size` frames (time, y, x); the last run may be shorter.

    Examples
    --------
    >>> bin_frames(np.arange(5).reshape(5, 1, 1), 2).ravel()
    array([0.5, 2.5, 4. ], dtype=float32)
    """
    sums = np.zeros((-(-len(frames) // size), *frames.shape[1:]), np.float32)
    _add_to_bins(_native(frames), 0, size, sums)
    return _means(sums, len(frames), size)


def _native(frames: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(frames, frames.dtype.newbyteorder("="))


def _means(sums: NDArray[np.float32], n_frames: int, size: int) -> NDArray[np.float32]:
    counts = np.minimum(size, n_frames - np.arange(0, n_frames, size)).astype(np.float32)
    sums /= counts[:, None, None]
    return sums


@njit(nogil=True, cache=True)
def _add_changes(frames, start, last, total, squares):  # type: ignore[no-untyped-def]
    """Add frames to their sum, and squares of each less the mean of the two beside it.

    `start` is the number of the first; `last` has the two frames before, and then the last two.
    """
    height, width = frames.shape[1:]
    for i in range(len(frames)):
        for y in range(height):
            row, sums, changes = frames[i, y], total[y], squares[y]
            before, now = last[0, y], last[1, y]
            if start + i > 1:
                for x in range(width):
                    change = now[x] - np.float32(0.5) * (before[x] + np.float32(row[x]))
                    changes[x] += change * change
            for x in range(width):
                sums[x] += row[x]
                before[x] = now[x]
                now[x] = row[x]


@njit(nogil=True, cache=True)
def _add_to_bins(frames, start, size, sums):  # type: ignore[no-untyped-def]
    """Add frames, the first of which has the number `start`, to the sums of their bins."""
    for i in range(len(frames)):
        total = sums[(start + i) // size]
        for y in range(frames.shape[1]):
            row, into = frames[i, y], total[y]
            for x in range(len(row)):
                into[x] += np.float32(row[x])
