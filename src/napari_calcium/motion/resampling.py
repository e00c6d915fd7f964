"""Resampling: frames moved by their shifts, each value interpolated once.

``corrected[y, x] = frame[y - shift_y, x - shift_x]``, with the shift at the place (y, x) of the
corrected frame. The kernels go through memory in rows, because that is what compilers turn into
vector instructions: a frame moved as a whole is interpolated along y and then along x; where the
shift differs from place to place, 16 pixels of a row at a time read the same five rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.shifts import Shifts

__all__ = ["resample", "shift_frames"]

RUN = 16
"""Pixels of a row that are interpolated together where the shift differs from place to place."""

MARGIN = RUN + 4
"""Copies of the border's pixel beside each row, so that a run may lie wholly outside, px."""

ONE, TWO, THREE, FOUR = np.uintp(1), np.uintp(2), np.uintp(3), np.uintp(4)
"""Offsets without a sign: with one, Numba looks for indices from the end, pixel by pixel."""


def resample(frames: NDArray[Any], shifts: Shifts, fill: float | None = None) -> NDArray[Any]:
    """Return the frames with their motion undone, each by one bicubic resampling.

    Cubic convolution in y and x (Keys 1981, a = -1/2), with the shift at every pixel bilinear
    between the places of a piecewise grid. In volumes, planes are first interpolated along z in
    the same way by the rigid shift along z, in floating point; values are rounded once.

    Parameters
    ----------
    frames : ndarray (n, y, x) or (n, z, y, x)
        Frames in any integer or floating type. A NaN spreads over the pixels that are interpolated
        from it, up to 4 along each axis.
    shifts : Shifts
        One shift, or grid of shifts, for each frame, px; its field is that of the frames.
    fill : float, optional
        Value of the pixels that come from outside of the field, rounded and kept within the
        range of an integer type. By default they are copies of the nearest pixel of the border,
        never of the opposite side.

    Returns
    -------
    ndarray, shape of `frames`
        In the type of `frames` and native byte order. Integers are rounded and kept within the
        type's range. A shift by whole pixels, the same everywhere, copies values exactly; a
        piecewise shift that is the same everywhere gives what the rigid one gives.

    Raises
    ------
    ValueError
        If frames and shifts do not have the same number, field or axes.
    InputError
        If `fill` is NaN and the frames are integers.

    References
    ----------
    Keys 1981, doi:10.1109/TASSP.1981.1163711 (cubic convolution).

    Examples
    --------
    >>> frames = np.arange(12, dtype=np.uint16).reshape(1, 3, 4)
    >>> shifts = Shifts(np.array([[1.0, -2.0]], np.float32), field=(3, 4))
    >>> resample(frames, shifts)[0]
    array([[2, 3, 3, 3],
           [2, 3, 3, 3],
           [6, 7, 7, 7]], dtype=uint16)
    >>> resample(frames, shifts, fill=99)[0]
    array([[99, 99, 99, 99],
           [ 2,  3, 99, 99],
           [ 6,  7, 99, 99]], dtype=uint16)
    """
    if frames.shape != (shifts.n_frames, *shifts.field):
        raise ValueError(f"frames {frames.shape} and shifts of {shifts.n_frames} x {shifts.field}")
    source = _for_numba(frames)
    moved = np.empty_like(source)
    planes = (shifts.n_frames, math.prod(shifts.field[:-2]), *shifts.field[-2:])
    grid = _Grid.of(shifts, source.dtype)
    value = None if fill is None else _fill_value(fill, source.dtype)
    rigid = shifts.rigid.astype(np.float64)
    for time, (volume, out) in enumerate(
        zip(source.reshape(planes), moved.reshape(planes), strict=True)
    ):
        _resample_volume(volume, rigid[time], grid.nodes[time] if grid else None, grid, value, out)
    return moved.astype(frames.dtype.newbyteorder("="), copy=False)


def shift_frames(frames: NDArray[Any], shifts: NDArray[Any]) -> NDArray[Any]:
    """Return the frames moved as a whole by their shifts, each by one bicubic resampling.

    ``moved[y, x] = frame[y - shift_y, x - shift_x]``. What comes in from outside of the field is
    a copy of the nearest pixel of the border, never of the opposite side.

    Parameters
    ----------
    frames : ndarray (n, y, x)
        Frames in any integer or floating type. A NaN spreads over the up to 4 x 4 pixels that
        are interpolated from it.
    shifts : ndarray (n, 2)
        Shifts in px, order (y, x), finite.

    Returns
    -------
    ndarray (n, y, x)
        In the type of `frames` and native byte order. Integers are rounded and kept within the
        type's range. A shift by whole pixels copies values exactly.

    Raises
    ------
    ValueError
        If there is not one shift for each frame.

    References
    ----------
    Keys 1981, doi:10.1109/TASSP.1981.1163711 (cubic convolution).

    Examples
    --------
    >>> frames = np.arange(12, dtype=np.uint16).reshape(1, 3, 4)
    >>> shift_frames(frames, np.array([[1.0, -2.0]]))[0]
    array([[2, 3, 3, 3],
           [2, 3, 3, 3],
           [6, 7, 7, 7]], dtype=uint16)
    """
    source = _for_numba(frames)
    moved = np.empty_like(source)
    for frame, shift, out in zip(source, np.asarray(shifts, np.float64), moved, strict=True):
        _move(frame, shift, out)
    return moved.astype(frames.dtype.newbyteorder("="), copy=False)


@dataclass(frozen=True)
class _Grid:
    """Shifts at the places of the grid, and between which of them every pixel lies."""

    nodes: NDArray[np.float32]  # (time, z, grid_y, grid_x, 2)
    rows: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[Any]]  # before, after, weight (y,)
    columns: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[Any]]  # (x, filled up to runs)
    scratch: NDArray[Any]  # (y, x with margins): one plane

    @classmethod
    def of(cls, shifts: Shifts, dtype: np.dtype[Any]) -> _Grid | None:
        """Return the grid for all frames, None where they move as a whole."""
        if shifts.piecewise is None or shifts.grid_y is None or shifts.grid_x is None:
            return None
        kind = _limits(dtype)[0].dtype
        height, width = shifts.field[-2:]
        depth = math.prod(shifts.field[:-2])
        nodes = shifts.piecewise
        return cls(
            nodes.reshape(shifts.n_frames, depth, *nodes.shape[-3:]),
            _between(shifts.grid_y, height, kind),
            _between(shifts.grid_x, -(-width // RUN) * RUN, kind),
            np.empty((height, width + 2 * MARGIN), kind),
        )

    def along_x(self, nodes: NDArray[np.float32]) -> NDArray[Any]:
        """Shifts (y or x, grid_y, x) at every column of the rows of places."""
        before, after, weight = self.columns
        parts = np.ascontiguousarray(np.moveaxis(nodes, -1, 0), weight.dtype)
        first, second = parts.take(before, axis=2), parts.take(after, axis=2)
        shifts: NDArray[Any] = first + weight * (second - first)
        return shifts


def _between(
    places: NDArray[Any], n: int, kind: np.dtype[Any]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[Any]]:
    """Places before and after each of n pixels, and the weight 0 to 1 of the one after."""
    pixels = np.arange(n)
    before = np.searchsorted(places, pixels, "right") - 1
    before = np.clip(before, 0, max(len(places) - 2, 0))
    after = np.minimum(before + 1, len(places) - 1)
    start = places[before].astype(np.float64)
    gap = places[after] - start
    weight = np.clip((pixels - start) / np.where(gap > 0, gap, 1), 0, 1)
    return before, after, weight.astype(kind)


def _resample_volume(
    volume: NDArray[Any],
    rigid: NDArray[np.float64],
    nodes: NDArray[np.float32] | None,
    grid: _Grid | None,
    value: Any,
    out: NDArray[Any],
) -> None:
    """Move the planes (z, y, x) of one frame; a frame without a z axis is one plane."""
    along_z = rigid[0] if len(rigid) == 3 else 0.0
    for z, moved in enumerate(out):
        place = z - along_z
        if value is not None and not 0 <= place <= len(volume) - 1:
            moved[:] = value
            continue
        plane = _plane(volume, place)
        if nodes is None or grid is None:
            _move(plane, rigid[-2:], moved, value)
        elif (nodes[z] == nodes[z, 0, 0]).all():
            _move(plane, nodes[z, 0, 0].astype(np.float64), moved, value)
        else:
            _warp(plane, nodes[z], grid, moved, value)


def _plane(volume: NDArray[Any], place: float) -> NDArray[Any]:
    """Plane at a place along z: one of the volume's own, or between them in floating point."""
    whole = math.floor(place)
    near = np.clip(np.arange(whole - 1, whole + 3), 0, len(volume) - 1)
    if place == whole or near[0] == near[-1]:
        plane: NDArray[Any] = volume[near[1]]
        return plane
    kind = _limits(volume.dtype)[0].dtype
    between = np.empty(volume.shape[1:], kind)
    weights = _cubic_weights(np.array([place - whole]))[0].astype(kind)
    _between_planes(volume, near, weights, between)
    return between


def _move(
    plane: NDArray[Any], shift: NDArray[np.float64], out: NDArray[Any], value: Any = None
) -> None:
    """Move a plane as a whole by (y, x)."""
    lowest, highest = _limits(out.dtype)
    whole = np.floor(-shift)
    part = -shift - whole
    if part.any():
        weights = _cubic_weights(part).astype(lowest.dtype)
        _interpolate(plane, int(whole[0]), int(whole[1]), weights, lowest, highest, out)
    else:
        _copy(_stored(plane, out.dtype), int(whole[0]), int(whole[1]), out)
    if value is not None:
        for axis in (0, 1):
            rows = np.moveaxis(out, axis, 0)
            start = min(max(math.ceil(shift[axis]), 0), len(rows))
            stop = min(max(math.floor(len(rows) - 1 + shift[axis]) + 1, 0), len(rows))
            rows[:start] = value
            rows[stop:] = value


def _stored(plane: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Plane in the type of the frames: rounded if it is from between two."""
    if plane.dtype == dtype:
        return plane
    stored = np.empty(plane.shape, dtype)
    _store(plane.reshape(-1), *_limits(dtype), stored.reshape(-1))
    return stored


def _warp(
    plane: NDArray[Any], nodes: NDArray[np.float32], grid: _Grid, out: NDArray[Any], value: Any
) -> None:
    """Move every pixel of a plane by the shift between the places around it."""
    lowest, highest = _limits(out.dtype)
    shift_y, shift_x = grid.along_x(nodes)
    _with_margins(plane, grid.scratch)
    filled = value is not None
    fill = value if filled else out.dtype.type(0)
    _interpolate_each(
        grid.scratch, shift_y, shift_x, *grid.rows, lowest, highest, filled, fill, out
    )


def _fill_value(fill: float, dtype: np.dtype[Any]) -> Any:
    """Value in the type of the frames, within its range."""
    if dtype.kind == "f":
        return dtype.type(fill)
    if math.isnan(fill):
        raise InputError(f"fill is nan but the frames are {dtype}; give a number or no fill")
    info = np.iinfo(dtype)
    return dtype.type(round(min(max(fill, int(info.min)), int(info.max))))


def _for_numba(frames: NDArray[Any]) -> NDArray[Any]:
    """Frames in C order, native byte order and a type that Numba knows."""
    kind = np.float32 if frames.dtype == np.float16 else frames.dtype.newbyteorder("=")
    return np.ascontiguousarray(frames, dtype=kind)


def _limits(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """Range of values, in the floating type that the arithmetic needs to be exact."""
    if dtype.kind == "f":
        return dtype.type(-np.inf), dtype.type(np.inf)
    kind = np.float32 if dtype.itemsize <= 2 else np.float64
    info = np.iinfo(dtype)
    highest = kind(info.max)
    return kind(info.min), highest if int(highest) <= info.max else np.nextafter(highest, kind(0))


def _cubic_weights(part: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (axis, 4) of the pixels -1, 0, 1 and 2 at a point between pixels 0 and 1."""
    t = part[:, None]
    return np.hstack(
        [
            ((2 - t) * t - 1) * t / 2,
            ((3 * t - 5) * t * t + 2) / 2,
            ((4 - 3 * t) * t + 1) * t / 2,
            (t - 1) * t * t / 2,
        ]
    )


@njit(nogil=True, cache=True)
def _between_planes(volume, near, weights, out):  # type: ignore[no-untyped-def]
    """Weighted sum of four planes."""
    for y in range(len(out)):
        a, b = volume[near[0], y], volume[near[1], y]
        c, d = volume[near[2], y], volume[near[3], y]
        row = out[y]
        for x in range(len(row)):
            row[x] = weights[0] * a[x] + weights[1] * b[x] + weights[2] * c[x] + weights[3] * d[x]


@njit(nogil=True, cache=True)
def _interpolate(frame, dy, dx, weights, lowest, highest, out):  # type: ignore[no-untyped-def]
    """Cubic interpolation at (y + dy, x + dx) plus a part of a px, over slices of rows."""
    height, width = frame.shape
    column = np.empty(width, weights.dtype)
    line = np.empty(width + 3, weights.dtype)
    for y in range(height):
        _across_rows(frame, y + dy, weights[0], column)
        _shifted_row(column, dx - 1, line)
        _along_row(line, weights[1], column)
        _store(column, lowest, highest, out[y])


@njit(nogil=True, cache=True)
def _across_rows(frame, y, weights, out):  # type: ignore[no-untyped-def]
    """Weighted sum of the rows y - 1 to y + 2, the border's row repeated outside."""
    bottom = len(frame) - 1
    a, b = frame[min(max(y - 1, 0), bottom)], frame[min(max(y, 0), bottom)]
    c, d = frame[min(max(y + 1, 0), bottom)], frame[min(max(y + 2, 0), bottom)]
    wa, wb, wc, wd = weights[0], weights[1], weights[2], weights[3]
    for x in range(len(out)):
        out[x] = wa * a[x] + wb * b[x] + wc * c[x] + wd * d[x]


@njit(nogil=True, cache=True)
def _along_row(line, weights, out):  # type: ignore[no-untyped-def]
    """Weighted sum of four neighbours in a row that is 3 px longer than the output."""
    n = len(out)
    a, b, c, d = line[:n], line[1 : n + 1], line[2 : n + 2], line[3 : n + 3]
    wa, wb, wc, wd = weights[0], weights[1], weights[2], weights[3]
    for x in range(n):
        out[x] = wa * a[x] + wb * b[x] + wc * c[x] + wd * d[x]


@njit(nogil=True, cache=True)
def _shifted_row(row, dx, out):  # type: ignore[no-untyped-def]
    """Copy row[x + dx] to out[x], the border's pixel repeated outside."""
    first = min(max(-dx, 0), len(out))
    last = max(first, min(len(row) - dx, len(out)))
    out[:first] = row[0]
    out[first:last] = row[first + dx : last + dx]
    out[last:] = row[-1]


@njit(nogil=True, cache=True)
def _store(row, lowest, highest, out):  # type: ignore[no-untyped-def]
    """Store values as they are, or as whole numbers within the range if it has limits."""
    if lowest > -np.inf:
        for x in range(len(out)):
            out[x] = min(max(np.rint(row[x]), lowest), highest)
    else:
        for x in range(len(out)):
            out[x] = row[x]


@njit(nogil=True, cache=True)
def _copy(frame, dy, dx, out):  # type: ignore[no-untyped-def]
    """Copy frame[y + dy, x + dx] to out[y, x], the border's pixel repeated outside."""
    bottom = len(frame) - 1
    for y in range(len(frame)):
        _shifted_row(frame[min(max(y + dy, 0), bottom)], dx, out[y])


@njit(nogil=True, cache=True)
def _with_margins(frame, out):  # type: ignore[no-untyped-def]
    """Copy into floating point, with copies of the border's pixel to the left and right."""
    width = frame.shape[1]
    for y in range(len(frame)):
        row, middle = frame[y], out[y, MARGIN : MARGIN + width]
        for x in range(width):
            middle[x] = row[x]
        out[y, :MARGIN] = middle[0]
        out[y, MARGIN + width :] = middle[-1]


@njit(nogil=True, cache=True)
def _interpolate_each(  # type: ignore[no-untyped-def]
    padded, shift_y, shift_x, before, after, weight, lowest, highest, filled, fill, out
):
    """Cubic interpolation at (y - shift_y, x - shift_x), shifts (place, x) blended row by row."""
    half = padded.dtype.type(0.5)
    n, bottom, stride = shift_y.shape[1], len(padded) - 1, padded.shape[1]
    whole_y, whole_x = np.empty(n, np.int32), np.empty(n, np.int32)
    part_y, part_x = np.empty(n, padded.dtype), np.empty(n, padded.dtype)
    line, pixels = np.empty(n, padded.dtype), padded.reshape(-1)
    places = (whole_y, part_y, whole_x, part_x)
    for y in range(len(out)):
        _places(shift_y[before[y]], shift_y[after[y]], weight[y], whole_y, part_y)
        _places(shift_x[before[y]], shift_x[after[y]], weight[y], whole_x, part_x)
        for x in range(0, n, RUN):
            if not _run(pixels, bottom, stride, y, x, places, half, line):
                for each in range(x, x + RUN):
                    _pixel(pixels, bottom, stride, y, each, places, half, line)
        _store(line, lowest, highest, out[y])
        if filled:
            _fill_outside(y, len(out), places, fill, out[y])


@njit(nogil=True, cache=True)
def _places(first, second, weight, whole, part):  # type: ignore[no-untyped-def]
    """Where each pixel of a row comes from, relative to itself: whole px and the part above."""
    for x in range(len(part)):
        place = -(first[x] + weight * (second[x] - first[x]))
        floor = np.floor(place)
        whole[x] = np.int32(floor)
        part[x] = place - floor


@njit(nogil=True, cache=True)
def _start(row, column, bottom, stride):  # type: ignore[no-untyped-def]
    """Index of a pixel, that of the nearest row or column of margin if it is outside."""
    row = min(max(row, 0), bottom)
    return np.uintp(row * stride + min(max(column + MARGIN, 0), stride - MARGIN - 1))


@njit(nogil=True, inline="always")
def _run(pixels, bottom, stride, y, x, places, half, line):  # type: ignore[no-untyped-def]
    """Interpolate the pixels x to x + RUN of row y; False if they are not within 5 rows.

    All read the same 5 rows, and the same 5 columns beside themselves, of which the first or the
    last 4 are used. Selecting values, not weights, keeps NaN where it belongs.
    """
    whole_y, part_y, whole_x, part_x = places
    dy = min(whole_y[x], whole_y[x + RUN - 1])
    dx = min(whole_x[x], whole_x[x + RUN - 1])
    row, column = y + dy - 1, x + dx - 1
    a, b = _start(row, column, bottom, stride), _start(row + 1, column, bottom, stride)
    c, d = _start(row + 2, column, bottom, stride), _start(row + 3, column, bottom, stride)
    e = _start(row + 4, column, bottom, stride)
    beyond = np.int32(0)
    for each in range(RUN):
        i = np.uintp(each)
        k = np.uintp(x) + i
        right, below, t = whole_x[k] - dx, whole_y[k] - dy, part_x[k]
        beyond |= right | below
        ha, hb = _in_row(pixels, a + i, right, t, half), _in_row(pixels, b + i, right, t, half)
        hc, hd = _in_row(pixels, c + i, right, t, half), _in_row(pixels, d + i, right, t, half)
        he = _in_row(pixels, e + i, right, t, half)
        line[k] = _one_of_two(ha, hb, hc, hd, he, below, part_y[k], half)
    return beyond >> 1 == 0


@njit(nogil=True, cache=True)
def _in_row(pixels, start, right, t, half):  # type: ignore[no-untyped-def]
    """Interpolate between the first four or the last four of five neighbours in a row."""
    a, b, c = pixels[start], pixels[start + ONE], pixels[start + TWO]
    return _one_of_two(a, b, c, pixels[start + THREE], pixels[start + FOUR], right, t, half)


@njit(nogil=True, cache=True)
def _one_of_two(a, b, c, d, e, last, t, half):  # type: ignore[no-untyped-def]
    """Interpolate between the first four or the last four values."""
    first = last == 0
    return _cubic(
        a if first else b, b if first else c, c if first else d, d if first else e, t, half
    )


@njit(nogil=True, cache=True)
def _cubic(a, b, c, d, t, half):  # type: ignore[no-untyped-def]
    """Keys' cubic at t between b and c: the straight line, and what bends it."""
    one = half + half
    u = one - t
    bend_c = t + t + t - one
    return u * b + t * c + half * t * u * ((one - bend_c) * b + bend_c * c - u * a - t * d)


@njit(nogil=True, cache=True)
def _pixel(pixels, bottom, stride, y, x, places, half, line):  # type: ignore[no-untyped-def]
    """Interpolate one pixel by itself, for shifts that differ much between neighbours."""
    whole_y, part_y, whole_x, part_x = places
    row, column, t = y + whole_y[x] - 1, x + whole_x[x] - 1, part_x[x]
    a = _in_row(pixels, _start(row, column, bottom, stride), 0, t, half)
    b = _in_row(pixels, _start(row + 1, column, bottom, stride), 0, t, half)
    c = _in_row(pixels, _start(row + 2, column, bottom, stride), 0, t, half)
    d = _in_row(pixels, _start(row + 3, column, bottom, stride), 0, t, half)
    line[x] = _cubic(a, b, c, d, part_y[x], half)


@njit(nogil=True, cache=True)
def _fill_outside(y, height, places, fill, out):  # type: ignore[no-untyped-def]
    """Overwrite what comes from outside of the field in row y."""
    whole_y, part_y, whole_x, part_x = places
    width = len(out)
    for x in range(width):
        row, column = y + whole_y[x], x + whole_x[x]
        beyond = (row + (part_y[x] > 0) >= height) | (column + (part_x[x] > 0) >= width)
        out[x] = fill if (row < 0) | (column < 0) | beyond else out[x]
