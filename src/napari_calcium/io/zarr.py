"""Zarr movies: one array of format 2 or 3, alone, in a group, or as the first level of OME-Zarr."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from napari_calcium.errors import InputError

__all__ = ["METADATA", "ZarrFrames", "ZarrMovie", "is_zarr", "read_zarr"]

METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError)
"""What zarr raises on a damaged or foreign folder."""

MICROMETRES = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3}
SECONDS = {"second": 1.0, "millisecond": 1e-3, "minute": 60.0}

LETTERS = {
    **dict.fromkeys(("TIME", "FRAME", "FRAMES"), "T"),
    **dict.fromkeys(("PLANE", "PLANES", "DEPTH", "SLICE", "SLICES"), "Z"),
    **dict.fromkeys(("CHANNEL", "CHANNELS"), "C"),
}
"""Other names of axes."""


@dataclass(frozen=True)
class ZarrFrames:
    """A Zarr array as frames (time, y, x) or (time, z, y, x), in the machine's byte order.

    Parameters
    ----------
    array : zarr.Array
        Axes ..., y, x; of the others only time and planes may be longer than 1.
    time : int
        Which axis is time.
    plane : int, optional
        Which axis is planes; without one the frames have no axis z.

    Examples
    --------
    >>> import zarr
    >>> frames = ZarrFrames(zarr.zeros((60, 1, 37, 53), dtype="uint16"), time=0)
    >>> frames.shape, frames[::-7, 3].shape
    ((60, 37, 53), (9, 53))
    """

    array: Any
    time: int
    plane: int | None = None

    @property
    def _axes(self) -> tuple[int, ...]:
        return (self.time, *([] if self.plane is None else [self.plane]), -2, -1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of frames, then the field (y, x) or (z, y, x) in pixels."""
        return tuple(int(self.array.shape[axis]) for axis in self._axes)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels, in the machine's byte order."""
        stored: np.dtype[Any] = self.array.dtype
        return stored.newbyteorder("=")

    @property
    def ndim(self) -> int:
        """Number of axes: 3, or 4 of volumes."""
        return len(self._axes)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of the smallest piece that is read from disk at once, its axes as in `shape`."""
        return tuple(int(self.array.chunks[axis]) for axis in self._axes)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        parts = index if isinstance(index, tuple) else (index,)
        parts = (*parts, *[slice(None)] * (self.ndim - len(parts)))
        where: list[Any] = [0] * len(self.array.shape)
        for axis, part, n in zip(self._axes, parts, self.shape, strict=True):
            where[axis] = _ahead(part, n)
        box = np.asarray(self.array.oindex[tuple(where)], self.dtype)
        kept = [isinstance(part, slice | list | np.ndarray) for part in parts]
        if self.plane is not None and self.plane < self.time and all(kept[:2]):
            box = box.swapaxes(0, 1)
        used = (part for part, keep in zip(parts, kept, strict=True) if keep)
        return box[tuple(slice(None, None, _direction(part)) for part in used)]


@dataclass(frozen=True)
class ZarrMovie:
    """What a Zarr holds: see `read_zarr`.

    Parameters
    ----------
    frames : ZarrFrames
        The movie, not read.
    axes : mapping of str to int
        Size of each axis before y and x, by its name.
    frame_rate : float, optional
        Frames per second, Hz.
    pixel_size : float, optional
        Length of a pixel's side along x, um.
    notes : tuple of str
        What a person should know of the array, a sentence each.
    """

    frames: ZarrFrames
    axes: Mapping[str, int]
    frame_rate: float | None = None
    pixel_size: float | None = None
    notes: tuple[str, ...] = ()


def is_zarr(path: Path) -> bool:
    """Return whether a folder is, or is named as, a Zarr.

    Examples
    --------
    >>> is_zarr(Path("no such folder"))
    False
    """
    named = path.suffix.lower() == ".zarr" or any((path / name).is_file() for name in METADATA)
    return path.is_dir() and named


def read_zarr(path: Path) -> ZarrMovie:
    """Read the metadata of a Zarr movie, and none of its frames.

    Parameters
    ----------
    path : Path
        An array (time, y, x) or (time, z, y, x); or a group with one such array; or an OME-Zarr
        image, of which the first, full level is taken. Further axes of length 1 are dropped, and a
        single axis of another name is time. A frame rate and a pixel
        size are taken from the attributes ``frame_rate`` (Hz) and ``pixel_size`` (um), or from the
        scale of the OME-Zarr axes where these have units.

    Returns
    -------
    ZarrMovie
        The movie in the type it was recorded in.

    Raises
    ------
    InputError
        If the folder cannot be read as Zarr, or holds no movie or more than one.
    """
    try:
        node = zarr.open(path, mode="r")
        attributes = dict(node.attrs)
        if isinstance(node, zarr.Array):
            return _movie(path, node, attributes, {})
        image = _image(attributes)
        array = node[image["datasets"][0]["path"]] if image else _only_movie(path, node)
        return _movie(path, array, attributes | dict(array.attrs), image)
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(
            f"{path} cannot be read as Zarr; copy the folder again, with the files whose names "
            "begin with a dot, or export it anew"
        ) from error


def _only_movie(path: Path, group: zarr.Group) -> Any:
    if group.attrs.get("format") == "napari-calcium session":
        raise InputError(
            f"{path} is a session, not a recording; go on with it by napari-calcium run --session"
        )
    several = dict(group.arrays())
    planes, volumes = (
        {name: array for name, array in several.items() if len(array.shape) == n} for n in (3, 4)
    )
    arrays = planes or volumes
    if len(arrays) != 1:
        known = f" ({', '.join(sorted(arrays))})" if arrays else ""
        raise InputError(
            f"{path} holds {len(arrays)} arrays of three or four axes{known}; "
            "give the path of the one array (time, y, x) or (time, z, y, x) that is the movie"
        )
    return next(iter(arrays.values()))


def _movie(
    path: Path, array: Any, attributes: Mapping[str, Any], image: Mapping[str, Any]
) -> ZarrMovie:
    shape = array.shape
    if len(shape) < 3:
        raise InputError(f"{path} has {len(shape)} axes; give an array of the axes (time, y, x)")
    names = _names(array, attributes, image)
    if {"T", "TIME", "FRAME", "FRAMES"} & set(names[-2:]):
        order = ", ".join(names).lower()
        raise InputError(f"{path} has the axes ({order}); save it with the axes (time, y, x)")
    names = _letters(names[:-2])
    axes = dict(zip(names, shape[:-2], strict=True))
    volumes = min(axes.get("T", 1), axes.get("Z", 1)) > 1
    scale = _scale(image)
    interval = scale[names.index("T")] if scale and "T" in names else None
    return ZarrMovie(
        frames=ZarrFrames(
            array,
            time=names.index("T") if volumes else names.index(max(names, key=axes.__getitem__)),
            plane=names.index("Z") if volumes else None,
        ),
        axes=axes,
        frame_rate=_positive(attributes.get("frame_rate")) or (1 / interval if interval else None),
        pixel_size=_positive(attributes.get("pixel_size")) or (scale[-1] if scale else None),
        notes=(f"{path} does not name its axes; they are read as (time, z, y, x)",)
        if volumes and not _named(array, attributes, image)
        else (),
    )


def _image(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the description of an OME-Zarr image, format 0.4 or 0.5; empty where there is none."""
    images = attributes.get("ome", attributes).get("multiscales") or [{}]
    image: Mapping[str, Any] = images[0]
    return image


def _names(array: Any, attributes: Mapping[str, Any], image: Mapping[str, Any]) -> list[str]:
    """Return the names of the axes in capitals, made up where none are given."""
    n = len(array.shape)
    made_up = ["T", "Z"] if n == 4 else [*(f"axis {i}" for i in range(n - 3)), "T"]
    axes = _named(array, attributes, image) or [*made_up, "Y", "X"]
    return [str(axis).upper() for axis in axes]


def _named(array: Any, attributes: Mapping[str, Any], image: Mapping[str, Any]) -> list[Any]:
    """Return the names of the axes as they are given; none where one is missing or twice there."""
    axes = [axis["name"] if isinstance(axis, dict) else axis for axis in image.get("axes", [])]
    axes = axes or list(getattr(array.metadata, "dimension_names", None) or [])
    axes = axes or list(attributes.get("_ARRAY_DIMENSIONS", []))
    n = len(array.shape)
    return axes if len(axes) == len(set(axes)) == n and None not in axes else []


def _letters(names: list[str]) -> list[str]:
    """Return T, Z and C for other names of these axes, where that leaves all names different."""
    letters = [LETTERS.get(name, name) for name in names]
    return letters if len(set(letters)) == len(letters) else names


def _scale(image: Mapping[str, Any]) -> list[float | None]:
    """Return the step along each axis of an OME-Zarr image, s or um; None without a unit."""
    axes = image.get("axes", [])
    steps = [1.0] * len(axes)
    for part in (image, (image.get("datasets") or [{}])[0]):
        for transform in part.get("coordinateTransformations", []):
            if transform.get("type") == "scale" and len(transform["scale"]) == len(axes):
                steps = [step * by for step, by in zip(steps, transform["scale"], strict=True)]
    units = MICROMETRES | SECONDS
    known = [units.get(axis.get("unit", "")) if isinstance(axis, dict) else None for axis in axes]
    return [_positive(step * (unit or 0)) for step, unit in zip(steps, known, strict=True)]


def _positive(value: Any) -> float | None:
    """Return a number above 0, or None."""
    if isinstance(value, int | float) and math.isfinite(value) and value > 0:
        return float(value)
    return None


def _ahead(part: Any, n: int) -> Any:
    """Return an index with the same places, in rising order where it is a slice."""
    if isinstance(part, list | np.ndarray):
        return np.array([range(n)[place] for place in part], dtype=int)
    if not isinstance(part, slice):
        return range(n)[part]
    places = range(n)[part]
    if not places:
        return slice(0, 0)
    first, last = min(places[0], places[-1]), max(places[0], places[-1])
    return slice(first, last + 1, abs(places.step))


def _direction(part: Any) -> int:
    """Return -1 for a slice that runs backwards, else 1."""
    return -1 if isinstance(part, slice) and (part.step or 1) < 0 else 1
