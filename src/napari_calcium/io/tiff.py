"""TIFF stacks: where each frame lies in a file, and frames read only when asked for.

The chain of pages is walked once, when a file is opened; from then on a frame is reached directly,
by a memory map where its pixels are stored plainly, else by decoding its one page.
"""

from __future__ import annotations

import itertools
import lzma
import math
import mmap
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_calcium.errors import InputError

__all__ = ["EXTENSIONS", "TiffFrames", "TiffMetadata", "TiffStack", "in_volumes", "read_stack"]

EXTENSIONS = (".tif", ".tiff", ".btf")

STRIPS, TILES = (273, 279), (324, 325)
"""Tags that say where the strips or tiles of a page are, and how many bytes each has."""

DESCRIPTION = 270

LAYOUT = (256, 257, 258, 259, 266, 277, 278, 284, 317, 322, 323, 339)
"""Tags that decide how the pixels of a page are stored; every frame of a stack has the same."""

UNSIGNED = {3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}

MICROMETRES = {"um": 1.0, "\u00b5m": 1.0, "\u03bcm": 1.0, "\\u00b5m": 1.0, "micron": 1.0}
MICROMETRES |= {"microns": 1.0, "micrometer": 1.0, "micrometers": 1.0, "nm": 1e-3, "mm": 1e3}
SECONDS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3, "min": 60.0}

Places = range | list[int]
Cut = slice | list[int]

UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError),
    *(ArithmeticError, MemoryError, EOFError, struct.error, zlib.error, lzma.LZMAError),
)
"""What tifffile raises on a damaged file."""


@dataclass(frozen=True)
class TiffMetadata:
    """What the description of a TIFF says of its movie.

    Parameters
    ----------
    axes : mapping of str to int
        Size of each axis before y and x, by its letter: T time, Z plane, C channel; the first is
        the one that changes most slowly from page to page.
    declared : int
        Frames the description speaks of; 0 where it does not say.
    frame_rate : float, optional
        Frames per second, Hz.
    pixel_size : float, optional
        Length of a pixel's side along x, um.
    in_order : bool
        Whether the file holds all pages the description speaks of, in the order of its axes.
    """

    axes: Mapping[str, int] = field(default_factory=dict)
    declared: int = 0
    frame_rate: float | None = None
    pixel_size: float | None = None
    in_order: bool = True

    @property
    def n_planes(self) -> int:
        """Planes of a volume, if the movie is one of volumes."""
        return self.axes.get("Z", 1)

    @property
    def is_volume(self) -> bool:
        """Whether there are several planes at each of several times."""
        return min(self.axes.get("T", 1), self.n_planes) > 1


@dataclass(frozen=True)
class TiffStack:
    """Where the frames of one TIFF file are.

    Parameters
    ----------
    path : Path
        The file.
    size : int
        Its length in bytes.
    offsets : sequence of int
        Position of each frame in the file: of its pixels if `mapped`, else of its page.
    shape : tuple of int
        Field of view, (y, x), in pixels.
    dtype : numpy.dtype
        Type of the pixels as stored, with their byte order.
    mapped : bool
        Whether the pixels are stored plainly, row by row.
    metadata : TiffMetadata
        What the description says.
    notes : tuple of str
        What a person should know of the file, a sentence each.
    """

    path: Path
    size: int
    offsets: Sequence[int]
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    mapped: bool
    metadata: TiffMetadata
    notes: tuple[str, ...] = ()

    def read(self, frames: Iterable[tuple[int, int]], y: Cut, x: Cut, out: Any) -> None:
        """Write the box (y, x) of frame ``j`` to ``out[i]`` for each pair (i, j).

        Raises
        ------
        InputError
            If the file is gone, has changed since it was opened, or cannot be decoded.
        """
        try:
            changed = self.path.stat().st_size != self.size
            if not changed:
                (self._map if self.mapped else self._decode)(frames, y, x, out)
        except UNREADABLE as error:
            raise InputError(
                f"{self.path} can no longer be read ({error}); check the disk, then open it again"
            ) from error
        if changed:
            raise InputError(f"{self.path} has changed since it was opened; open it again")

    def _map(self, frames: Iterable[tuple[int, int]], y: Cut, x: Cut, out: Any) -> None:
        with (
            self.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            for place, frame in frames:
                start = int(self.offsets[frame])
                out[place] = np.ndarray(self.shape, self.dtype, data, start)[y][:, x]

    def _decode(self, frames: Iterable[tuple[int, int]], y: Cut, x: Cut, out: Any) -> None:
        with tifffile.TiffFile(self.path, is_scanimage=False) as file:
            for place, frame in frames:
                file.filehandle.seek(int(self.offsets[frame]))
                picture = tifffile.TiffPage(file, frame).asarray(maxworkers=1)
                out[place] = picture.reshape(self.shape)[y][:, x]


@dataclass(frozen=True)
class TiffFrames:
    """The frames of a series of TIFF files as one array, read when it is indexed.

    Each axis is indexed with a whole number, a slice or a list of places; what comes is an ndarray
    in the machine's byte order, and only the frames asked for are read. It can be pickled and used
    by several threads at once.

    Parameters
    ----------
    stacks : tuple of TiffStack
        The files in order, all of the same field and type.
    n_planes : int
        Pages of a frame, one after the other (see `in_volumes`); above 1 the frames are volumes.

    Examples
    --------
    >>> import numpy as np, tempfile, tifffile
    >>> path = Path(tempfile.mkdtemp()) / "movie.tif"
    >>> tifffile.imwrite(path, np.arange(5 * 37 * 53, dtype="uint16").reshape(5, 37, 53))
    >>> frames = TiffFrames((read_stack(path),))
    >>> frames.shape, int(frames[1, 0, 2]), frames[::2, :5].shape
    ((5, 37, 53), 1963, (3, 5, 53))
    """

    stacks: tuple[TiffStack, ...]
    n_planes: int = 1

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Number of frames, then the field (y, x) or (z, y, x) in pixels."""
        planes = (self.n_planes,) if self.n_planes > 1 else ()
        return (self._ends[-1] // self.n_planes, *planes, *self.stacks[0].shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels, in the machine's byte order."""
        return self.stacks[0].dtype.newbyteorder("=")

    @property
    def ndim(self) -> int:
        """Number of axes: 3, or 4 of volumes."""
        return len(self.shape)

    @cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(len(stack.offsets) for stack in self.stacks))

    def __getitem__(self, index: Any) -> NDArray[Any]:
        (time, *planes, y, x), drop = _box(index, self.shape)
        out = np.empty([len(axis) for axis in (time, *planes, y, x)], self.dtype)
        if out.size:
            pictures = out.reshape(-1, len(y), len(x))
            pages = (self.n_planes * t + z for t in time for z in (planes or [range(1)])[0])
            for file, places in itertools.groupby(enumerate(pages), self._file_of):
                stack = self.stacks[file]
                start = self._ends[file] - len(stack.offsets)
                frames = ((place, page - start) for place, page in places)
                stack.read(frames, _index(y), _index(x), pictures)
        return out[drop]

    def _file_of(self, pair: tuple[int, int]) -> int:
        return bisect_right(self._ends, pair[1])


def read_stack(path: Path) -> TiffStack:
    """Read the headers of a TIFF file, and none of its pixels.

    Classic and BigTIFF of either byte order, ImageJ, OME and ScanImage among them. Each page is a
    frame; in a file of one page whose description speaks of several frames (ImageJ above 4 GB) the
    number of frames is what the bytes hold.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    TiffStack
        Where the frames are, of the type they were recorded in.

    Raises
    ------
    InputError
        If the file is no TIFF or damaged, a colour picture, not of integers up to 32 bit, if its
        pages differ, or if they are compressed in a way that needs a package not installed.
    """
    try:
        with tifffile.TiffFile(path, is_scanimage=False) as file:
            page = file.pages.first
            _check_picture(path, page)
            return _stack(path, file, page)
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"{path} may not be read; ask for permission to read it") from None
    except UNREADABLE as error:
        raise InputError(
            f"{path} is not a TIFF file or is damaged; copy it again or export it anew as TIFF"
        ) from error


def in_volumes(stack: TiffStack) -> TiffStack:
    """Return a stack of volumes with the pages in the order of time, and of planes at each time.

    Parameters
    ----------
    stack : TiffStack
        A file whose description speaks of several planes.

    Returns
    -------
    TiffStack
        The same file; a volume at its end that has not all planes is left out, with a note.

    Raises
    ------
    InputError
        If the file does not hold the pages in the order of its axes.
    """
    said, n_pages, n_planes = stack.metadata, len(stack.offsets), stack.metadata.n_planes
    planes_first = [name for name in said.axes if name in "TZ"] == ["Z", "T"] and said.is_volume
    if not said.in_order or (planes_first and n_pages != said.axes["T"] * n_planes):
        raise InputError(
            f"{stack.path} does not hold volume after volume of {n_planes} planes; "
            "save the recording anew as one TIFF with the axes T, Z, Y, X"
        )
    order = np.arange(n_pages - n_pages % n_planes)
    if planes_first:
        order = order.reshape(n_planes, -1).T.ravel()
    left_out = (
        f"{stack.path} ends within a volume; its last {n_pages % n_planes} planes are left out"
    )
    return replace(
        stack,
        offsets=_compact([stack.offsets[page] for page in order.tolist()]),
        notes=(*stack.notes, left_out) if n_pages % n_planes else stack.notes,
    )


def _check_picture(path: Path, page: Any) -> None:
    """Raise unless a page is one grey picture of integers that can be decoded here."""
    if page.samplesperpixel > 1 or page.photometric in (2, 6):
        raise InputError(
            f"{path} is a colour picture of {page.samplesperpixel} samples per pixel; "
            "save it in grey levels, one channel per file"
        )
    if page.imagedepth > 1 or page.is_stk:
        raise InputError(f"{path} stores several planes in a page; save it as one page per frame")
    if page.dtype is None or page.dtype.kind not in "ui" or page.dtype.itemsize > 4:
        kind = page.dtype or f"{page.bitspersample} bit"
        raise InputError(f"{path} has pixels of type {kind}; save it as 8, 16 or 32 bit integers")
    if page.compression not in tifffile.TIFF.DECOMPRESSORS or (
        page.predictor != 1 and page.predictor not in tifffile.TIFF.UNPREDICTORS
    ):
        name = getattr(page.compression, "name", page.compression)
        raise InputError(
            f"{path} is compressed with {name}; install the package imagecodecs to read it, "
            "or save it uncompressed"
        )


def _stack(path: Path, file: Any, page: Any) -> TiffStack:
    metadata = _metadata(page)
    size = path.stat().st_size
    with path.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
        pages = _pages(path, file, data)
    starts = _plain_starts(pages, page)
    if starts is not None and len(pages) == 1 and metadata.declared > 1:
        starts = _run(starts[0], page, size)
    if starts is not None and (not starts or max(starts) + page.nbytes > size):
        raise InputError(f"{path} is cut off, its last frame lies outside it; copy it again")
    offsets = [position for position, _ in pages] if starts is None else starts
    return TiffStack(
        path=path,
        size=size,
        offsets=_compact(offsets),
        shape=(int(page.imagelength), int(page.imagewidth)),
        dtype=np.dtype(page.dtype).newbyteorder(file.byteorder),
        mapped=starts is not None,
        metadata=metadata,
        notes=tuple(_notes(path, page, len(offsets), len(pages), metadata.declared)),
    )


def _notes(path: Path, page: Any, held: int, pages: int, declared: int) -> Iterator[str]:
    if held < declared or (pages == 1 and 1 < declared < held):
        yield f"{path} speaks of {declared} frames but holds {held}"
    if page.photometric == 0:
        yield f"{path} says that 0 is white; its values are read as they are"


def _pages(path: Path, file: Any, data: mmap.mmap) -> list[tuple[int, NDArray[Any]]]:
    """Return the position of each page and of its strips or tiles."""
    plain = file.pages.first.is_final
    pages: list[tuple[int, NDArray[Any]]] = []
    first: dict[int, bytes] = {}
    for position, tags in _directories(path, file, data):
        first = first or tags
        if DESCRIPTION in first and DESCRIPTION not in file.pages.first.tags:
            raise InputError(f"{path} is cut off, its description is missing; copy it again")
        if any(tags.get(tag) != first.get(tag) for tag in LAYOUT):
            _check_alike(path, file, position, len(pages))
        where, length = TILES if TILES[0] in tags else STRIPS
        offsets = _values(file, data, tags[where])
        last = int(offsets.argmax())
        count = 1 if plain else int(_values(file, data, tags[length])[last])
        if not 0 < offsets[last] <= len(data) - count:
            raise InputError(f"{path} is cut off at frame {len(pages)}; copy it again")
        pages.append((position, offsets))
    return pages


def _directories(path: Path, file: Any, data: mmap.mmap) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Walk the chain of pages: the position of each, and its tags undecoded."""
    tiff, seen, position = file.tiff, set[int](), file.pages.first.offset
    code = struct.Struct(file.byteorder + "H")
    while position:
        (count,) = struct.unpack_from(tiff.tagnoformat, data, position)
        start = position + tiff.tagnosize
        block = data[start : start + count * tiff.tagsize + tiff.offsetsize]
        if position in seen or len(block) < count * tiff.tagsize + tiff.offsetsize:
            raise InputError(f"{path} is cut off after frame {len(seen)}; copy it again")
        seen.add(position)
        entries = range(0, count * tiff.tagsize, tiff.tagsize)
        yield (
            position,
            {code.unpack_from(block, i)[0]: block[i : i + tiff.tagsize] for i in entries},
        )
        (position,) = struct.unpack(tiff.offsetformat, block[-tiff.offsetsize :])
        if position + tiff.tagnosize > len(data):
            raise InputError(f"{path} is cut off after frame {len(seen)}; copy it again")


def _values(file: Any, data: mmap.mmap, entry: bytes) -> NDArray[Any]:
    """Return the whole numbers of a tag."""
    wide = file.tiff.offsetsize == 8
    kind, count = struct.unpack_from(file.byteorder + ("HQ" if wide else "HI"), entry, 2)
    dtype = np.dtype(file.byteorder + UNSIGNED[kind])
    place = 12 if wide else 8
    if count * dtype.itemsize <= file.tiff.offsetsize:
        return np.frombuffer(entry, dtype, count, place)
    (start,) = struct.unpack_from(file.tiff.offsetformat, entry, place)
    return np.frombuffer(data[start : start + count * dtype.itemsize], dtype, count)


def _check_alike(path: Path, file: Any, position: int, frame: int) -> None:
    """Raise unless a page that is written otherwise than the first one means the same."""
    first = file.pages.first
    file.filehandle.seek(position)
    page = tifffile.TiffPage(file, frame)
    one, other = (f"{p.imagelength} x {p.imagewidth} px of {p.dtype}" for p in (first, page))
    if one != other:
        raise InputError(
            f"frame {frame} of {path} is {other} but the first is {one}; "
            "split the file so that all frames of a file are alike"
        )
    if first.hash != page.hash:
        raise InputError(
            f"frame {frame} of {path} is compressed or cut otherwise than the first; "
            "save the movie anew as one TIFF"
        )


def _plain_starts(pages: list[tuple[int, NDArray[Any]]], page: Any) -> list[int] | None:
    """Return where the pixels of each page begin; None where they are not stored plainly."""
    if not page.is_final:
        return None
    steps = np.cumsum([0, *page.databytecounts[:-1]])
    starts = []
    for _, offsets in pages:
        if len(offsets) > 1 and not np.array_equal(offsets - offsets[0], steps):
            return None
        starts.append(int(offsets[0]))
    return starts


def _run(start: int, page: Any, size: int) -> list[int]:
    """Return where each frame begins in a run of frames that only the first page speaks of."""
    structure = [page.offset, *(tag.valueoffset for tag in page.tags)]
    end = min([size, *(position for position in structure if position > start)])
    return [start + i * page.nbytes for i in range((end - start) // page.nbytes)]


def _compact(offsets: list[int]) -> Sequence[int]:
    """Return the same numbers as a range where they are evenly spaced, else as a tuple."""
    step = offsets[1] - offsets[0] if len(offsets) > 1 else 1
    even = range(offsets[0], offsets[0] + len(offsets) * step, step) if step else range(0)
    return even if list(even) == offsets else tuple(offsets)


def _metadata(page: Any) -> TiffMetadata:
    """Return what the description says; nothing where it cannot be understood."""
    try:
        if page.is_ome:
            return _ome(page)
        if page.is_imagej:
            return _imagej(page)
        if page.is_scanimage:
            return _scanimage(page)
        if page.is_shaped:
            return _shaped(page)
        return TiffMetadata(pixel_size=_resolution(page))
    except (ValueError, KeyError, TypeError, ElementTree.ParseError):
        return TiffMetadata()


def _imagej(page: Any) -> TiffMetadata:
    said = _settings(page.imagej_description)
    axes = {
        letter: int(_positive(said.get(name)) or 1)
        for letter, name in (("T", "frames"), ("Z", "slices"), ("C", "channels"))
    }
    images = int(_positive(said.get("images")) or 1)
    declared = max(images, math.prod(axes.values()))
    if math.prod(axes.values()) == 1:
        axes["T"] = images
    interval = _positive(said.get("finterval"), SECONDS.get(said.get("tunit", "s").lower()))
    return TiffMetadata(
        axes=axes,
        declared=declared,
        frame_rate=1 / interval if interval else _positive(said.get("fps")),
        pixel_size=_resolution(page, MICROMETRES.get(said.get("unit", "").lower())),
    )


def _ome(page: Any) -> TiffMetadata:
    root = ElementTree.fromstring(page.description)
    pixels = next((part for part in root.iter() if part.tag.endswith("Pixels")), None)
    if pixels is None:
        return TiffMetadata()
    order = [letter for letter in reversed(pixels.get("DimensionOrder", "")) if letter in "TZC"]
    letters = order if sorted(order) == ["C", "T", "Z"] else "TZC"
    axes = {letter: int(_positive(pixels.get(f"Size{letter}")) or 1) for letter in letters}
    shared = any(part.tag.endswith("UUID") and part.get("FileName") for part in root.iter())
    interval = _positive(
        pixels.get("TimeIncrement"), SECONDS.get(pixels.get("TimeIncrementUnit", "s"))
    )
    unit = MICROMETRES.get(pixels.get("PhysicalSizeXUnit", "um"))
    return TiffMetadata(
        axes=axes,
        declared=0 if shared else math.prod(axes.values()),
        frame_rate=1 / interval if interval else None,
        pixel_size=_positive(pixels.get("PhysicalSizeX"), unit),
        in_order=axes["Z"] == 1 or (not shared and _ome_in_order(pixels, axes)),
    )


def _ome_in_order(pixels: ElementTree.Element, axes: Mapping[str, int]) -> bool:
    """Whether each page lies where the order of the axes puts it."""
    for part in pixels:
        if not part.tag.endswith("TiffData"):
            continue
        place = 0
        for letter, size in axes.items():
            place = place * size + int(_positive(part.get(f"First{letter}")) or 0)
        if int(_positive(part.get("IFD")) or 0) != place:
            return False
    return True


def _scanimage(page: Any) -> TiffMetadata:
    said = _settings(f"{page.software}\n{page.description}")
    channels = re.findall(r"\d+", said.get("hChannels.channelSave", said.get("channelsSave", "1")))
    stack = {"true", "1"} & {said.get("hStackManager.enable"), said.get("hFastZ.enable")}
    slices = said.get("hStackManager.numSlices", said.get("stackNumSlices"))
    old = _positive(said.get("acq.numberOfChannelsSave"))
    names = ("hRoiManager.scanFrameRate", "scanFrameRate", "acq.frameRate")
    rates = [_positive(said.get(name)) for name in (*names, "hRoiManager.scanVolumeRate")]
    averaged = _positive(said.get("hScan2D.logAverageFactor")) or 1
    return TiffMetadata(
        axes={"Z": int(_positive(slices) or 1) if stack else 1, "C": int(old or len(channels))},
        frame_rate=next((rate / averaged for rate in rates if rate), None),
        pixel_size=_resolution(page),
    )


def _shaped(page: Any) -> TiffMetadata:
    said = tifffile.tifffile.shaped_description_metadata(page.shaped_description)
    shape, names = list(said["shape"]), str(said.get("axes", "")).upper()
    while len(shape) > 2 and shape[-1] == 1 and shape[-2:] != [page.imagelength, page.imagewidth]:
        shape, names = shape[:-1], names[:-1]
    leading, letters = shape[:-2], list(names[:-2])
    if not len(leading) == len(letters) == len(set(letters)):
        letters = ["T"] if len(leading) == 1 else [f"axis {i}" for i in range(len(leading))]
    interval = _positive(said.get("finterval", said.get("TimeIncrement")))
    return TiffMetadata(
        axes=dict(zip(letters, leading, strict=True)),
        declared=math.prod(leading),
        frame_rate=1 / interval if interval else _positive(said.get("fps")),
        pixel_size=_resolution(page) or _positive(said.get("PhysicalSizeX")),
    )


def _resolution(page: Any, unit: float | None = None) -> float | None:
    """Return the pixel size of the resolution tags, um; the unit is a tag's unless given."""
    unit = unit or {4: 1e3, 5: 1.0}.get(int(page.tags.valueof(296, 1)))
    pixels, units = page.tags.valueof(282, (0, 0))
    return unit * units / pixels if unit and pixels and units else None


def _settings(text: str) -> dict[str, str]:
    """Return the lines ``key = value`` of a description, without ScanImage's prefixes."""
    lines = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    prefix = re.compile(r"^(scanimage\.)?(SI\d?|state)\.")
    return {prefix.sub("", key.strip()): value.strip(" ;\0") for key, value in lines}


def _positive(text: Any, unit: float | None = 1.0) -> float | None:
    """Return a number above 0, or None."""
    try:
        value = float(text) * (unit or 0.0)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def _box(index: Any, shape: Sequence[int]) -> tuple[list[Places], tuple[slice | int, ...]]:
    """Return the places an index means on each axis, and what drops the axes it removes."""
    parts = index if isinstance(index, tuple) else (index,)
    parts = (*parts, *[slice(None)] * (len(shape) - len(parts)))
    places: list[Places] = []
    for part, n in zip(parts, shape, strict=True):
        if isinstance(part, slice):
            places.append(range(n)[part])
        elif isinstance(part, list | np.ndarray):
            places.append([range(n)[place] for place in part])
        else:
            places.append([range(n)[part]])
    kept = (isinstance(part, slice | list | np.ndarray) for part in parts)
    return places, tuple(slice(None) if keep else 0 for keep in kept)


def _index(places: Places) -> Cut:
    """Return the index that picks the places of one axis; a range may run backwards."""
    if isinstance(places, list):
        return places
    stop = places.stop if places.stop >= 0 else None
    return slice(places.start, stop, places.step)
