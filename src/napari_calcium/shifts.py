"""Shifts: how far every frame, or every part of it, has to be moved to undo its motion."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_calcium.errors import InputError

__all__ = ["Shifts"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Shifts:
    """The motion of a recording, and what undoes it.

    A shift is what must be added to the position of a frame's content to undo its motion, in px,
    order (y, x), or (z, y, x) for a volume: ``corrected[y, x] = frame[y - shift_y, x - shift_x]``
    with the shift at the place (y, x) of the corrected frame.

    Parameters
    ----------
    rigid : ndarray (time, axis), float32
        Shift of each frame as a whole, px; 2 axes (y, x), or 3 (z, y, x) for a volume.
    field : tuple of int
        Field of view that the shifts are for, (y, x) or (z, y, x), px.
    piecewise : ndarray (time, grid_y, grid_x, 2), float32, optional
        Whole shift (y, x) at the places of the grid, px: bilinear between them and constant beyond
        the outermost. (time, z, grid_y, grid_x, 2) for a volume, one grid for each plane; the
        shift along z is always that of `rigid`. None where frames move as a whole.
    grid_y, grid_x : ndarray (grid_y,), (grid_x,), float32, optional
        Places of the grid, the centres of the patches, px, increasing.
    flagged : ndarray of bool (time,), optional
        Frames in which no motion could be seen, as blank, saturated or unlike all others; their
        shifts are interpolated in time. None flagged if not given.

    Raises
    ------
    ValueError
        If the parts do not have the same frames, axes or places, or a shift is not finite.

    Examples
    --------
    >>> shifts = Shifts(np.array([[0.5, -2.0], [1.5, 0.0]], np.float32), field=(37, 53))
    >>> shifts.n_frames, shifts.valid_region()
    (2, (slice(2, 37, None), slice(0, 51, None)))
    """

    rigid: Floats
    field: tuple[int, ...]
    piecewise: Floats | None = None
    grid_y: Floats | None = None
    grid_x: Floats | None = None
    flagged: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "field", tuple(int(size) for size in self.field))
        if self.flagged is None:
            object.__setattr__(self, "flagged", np.zeros(len(self.rigid), bool))
        if len(self.field) not in (2, 3) or self.rigid.shape != (self.n_frames, len(self.field)):
            raise ValueError(f"rigid has the shape {self.rigid.shape}, the field is {self.field}")
        if self.flagged.shape != (self.n_frames,):  # type: ignore[union-attr]
            raise ValueError("flagged and rigid differ in frames")
        if self.piecewise is not None:
            self._check_grid(self.piecewise)
        if not all(
            np.isfinite(part).all() for part in (self.rigid, self.piecewise) if part is not None
        ):
            raise ValueError("shifts must be finite")

    def _check_grid(self, piecewise: Floats) -> None:
        if self.grid_y is None or self.grid_x is None:
            raise ValueError("piecewise shifts need grid_y and grid_x")
        grid = (len(self.grid_y), len(self.grid_x))
        if piecewise.shape != (self.n_frames, *self.field[:-2], *grid, 2):
            raise ValueError(f"piecewise has the shape {piecewise.shape}, the grid is {grid}")
        for places in (self.grid_y, self.grid_x):
            if not len(places) or (np.diff(places) <= 0).any():
                raise ValueError("grid_y and grid_x must increase")

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self.rigid)

    def of_frames(self, time: slice | NDArray[np.bool_]) -> Shifts:
        """Return the shifts of some of the frames."""
        assert self.flagged is not None
        piecewise = None if self.piecewise is None else self.piecewise[time]
        return replace(
            self, rigid=self.rigid[time], piecewise=piecewise, flagged=self.flagged[time]
        )

    def crop(self, y: slice, x: slice) -> Shifts:
        """Return the shifts of a crop of the field.

        Parameters
        ----------
        y, x : slice
            The crop, px of the field; steps are not allowed.

        Raises
        ------
        InputError
            If the crop is empty.

        Examples
        --------
        >>> grid = np.array([10.0, 30.0], np.float32)
        >>> still = np.zeros((1, 2, 2, 2), np.float32)
        >>> shifts = Shifts(still[:, 0, 0], (37, 53), still, grid, grid)
        >>> cropped = shifts.crop(slice(5, 25), slice(3, 33))
        >>> cropped.field, cropped.grid_y.tolist(), cropped.grid_x.tolist()
        ((20, 30), [5.0, 25.0], [7.0, 27.0])
        """
        places = [each.indices(n) for each, n in zip((y, x), self.field[-2:], strict=True)]
        sizes = tuple(stop - start for start, stop, _ in places)
        if min(sizes) < 1 or any(step != 1 for _, _, step in places):
            raise InputError(
                f"the crop {y}, {x} of a field of {self.field[-2]} x {self.field[-1]} px is "
                "empty or has a step; give a start below each stop"
            )
        field = (*self.field[:-2], *sizes)
        if self.grid_y is None or self.grid_x is None:
            return replace(self, field=field)
        return replace(
            self,
            field=field,
            grid_y=self.grid_y - np.float32(places[0][0]),
            grid_x=self.grid_x - np.float32(places[1][0]),
        )

    def valid_region(self) -> tuple[slice, slice]:
        """Return the part (y, x) of the field that every frame saw, the flagged ones left out.

        Empty slices where no part was seen by all.
        """
        assert self.flagged is not None
        largest = self.rigid[:, -2:] if self.piecewise is None else self.piecewise
        seen = largest[~self.flagged].reshape(-1, 2)
        return tuple(_valid(n, seen[:, axis]) for axis, n in enumerate(self.field[-2:]))  # type: ignore[return-value]


def _valid(n: int, shifts: NDArray[Any]) -> slice:
    """Return the pixels of an axis that are inside of every frame moved by one of the shifts."""
    if not len(shifts):
        return slice(0, n)
    start = min(n, max(0, math.ceil(float(shifts.max()))))
    return slice(start, max(start, min(n, math.floor(n - 1 + float(shifts.min())) + 1)))
