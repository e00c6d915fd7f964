"""The field of view cut into patches, each with a halo, and their reading."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from napari_calcium.movie import Box, Movie, blocks

__all__ = ["Patch", "bin_frames", "boxes", "cut", "read_binned"]


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


def boxes(movie: Movie, patch: Patch) -> tuple[Box, ...]:
    """Cut a patch with its halo into runs of frames, to be read one after the other."""
    return tuple(movie.box(run, *patch.halo) for run in blocks(movie.n_frames, FRAMES_PER_READ))


def read_binned(runs: Sequence[Box], frames_per_bin: int) -> NDArray[np.float32]:
    """Return a patch's frames averaged in bins of time, (bin, y, x).

    One run of frames is in memory at a time. Frames left over at the end, fewer than a bin, make a
    last bin of their own.
    """
    n_frames = sum(run.shape[0] for run in runs)
    sums = np.zeros((-(-n_frames // frames_per_bin), *runs[0].shape[1:]), np.float32)
    start = 0
    for run in runs:
        frames = run.read()
        _add_to_bins(_native(frames), start, frames_per_bin, sums)
        start += len(frames)
    return _means(sums, n_frames, frames_per_bin)


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
def _add_to_bins(frames, start, size, sums):  # type: ignore[no-untyped-def]
    """Add frames, the first of which has the number `start`, to the sums of their bins."""
    for i in range(len(frames)):
        total = sums[(start + i) // size]
        for y in range(frames.shape[1]):
            row, into = frames[i, y], total[y]
            for x in range(len(row)):
                into[x] += np.float32(row[x])
