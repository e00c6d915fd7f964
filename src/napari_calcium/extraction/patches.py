"""The field of view cut into patches, each with a halo, and their reading."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_calcium.movie import Box, Movie, blocks

__all__ = ["Patch", "bin_frames", "boxes", "cut", "read_binned"]

FRAMES_PER_READ = 2048
"""About as many frames of a patch are in memory before they are averaged."""


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


def boxes(movie: Movie, patch: Patch, frames_per_bin: int) -> tuple[Box, ...]:
    """Cut a patch with its halo into runs of whole bins, to be read one after the other."""
    run = frames_per_bin * max(1, FRAMES_PER_READ // frames_per_bin)
    return tuple(movie.box(block, *patch.halo) for block in blocks(movie.n_frames, run))


def read_binned(runs: Sequence[Box], frames_per_bin: int) -> NDArray[np.float32]:
    """Return a patch's frames averaged in bins of time, (bin, y, x).

    Frames left over at the end, fewer than a bin, make a last bin of their own.
    """
    return np.concatenate([bin_frames(run.read(), frames_per_bin) for run in runs])


def bin_frames(frames: NDArray[Any], size: int) -> NDArray[np.float32]:
    """Average runs of `size` frames (time, y, x); the last run may be shorter.

    Examples
    --------
    >>> bin_frames(np.arange(5).reshape(5, 1, 1), 2).ravel()
    array([0.5, 2.5, 4. ], dtype=float32)
    """
    means = frames[::size].astype(np.float32)
    for step in range(1, min(size, len(frames))):
        frames_of_bins = frames[step::size]
        sums = means[: len(frames_of_bins)]
        np.add(sums, frames_of_bins, out=sums, dtype=np.float32)
    starts = np.arange(0, len(frames), size)
    counts = np.diff(np.append(starts, len(frames))).astype(np.float32)
    means /= counts[:, None, None]
    return means
