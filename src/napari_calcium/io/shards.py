"""The frames of a session on disk, read and written a shard at a time by whoever calls.

Zarr does the same in one thread of its own that all callers share and copies a shard several times
over; of a movie of 512 x 512 px that takes two to three times longer than what is done here, and
two workers take hardly less than one. The files are the same: sharded Zarr v3, blosc with
bitshuffle in the chunks, the index at the end. An array that is stored otherwise is read by zarr.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import zarr
from numcodecs import Blosc  # type: ignore[import-untyped]
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, ShardingCodec
from zarr.storage import LocalStore

__all__ = ["COMPRESSOR", "ShardedFrames", "crc32c", "write_frames"]

COMPRESSOR = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")
"""What all arrays of a session are compressed with."""

ENCODER = Blosc(cname="lz4", clevel=5, shuffle=Blosc.BITSHUFFLE)
"""The same, for chunks that are written here."""

EMPTY = 2**64 - 1
"""Place, in the index of a shard, of a chunk that is all fill value."""

POLYNOMIAL = 0x82F63B78
"""Castagnoli's, bits reversed."""

Box = tuple[tuple[int, int], ...]
"""First and behind the last place, on each axis."""


class ShardedFrames:
    """A session's movie on disk as an array, read when it is indexed.

    Boxes, that is whole numbers and slices without steps, are read here, only the chunks that they
    touch; all else is left to zarr. It can be pickled and used by several threads at once.

    Parameters
    ----------
    array : zarr.Array
        A movie of a session, (time, y, x) or (time, z, y, x).

    Examples
    --------
    >>> import tempfile
    >>> array = zarr.create_array(
    ...     tempfile.mkdtemp() + "/frames", shape=(60, 37, 53), dtype="uint16",
    ...     chunks=(32, 32, 32), shards=(32, 64, 64), compressors=COMPRESSOR,
    ... )
    >>> write_frames(array, 32, np.full((28, 37, 53), 7, np.uint16))
    >>> frames = ShardedFrames(array)
    >>> frames[30:34, 36, 50:].tolist()
    [[0, 0, 0], [0, 0, 0], [7, 7, 7], [7, 7, 7]]
    """

    def __init__(self, array: zarr.Array[Any]) -> None:
        self._array = array
        self._known = _is_known(array)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of frames, then the field in pixels."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels, in the machine's byte order."""
        return np.dtype(self._array.dtype)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._array.ndim

    def __getitem__(self, index: Any) -> NDArray[Any]:
        parts = index if isinstance(index, tuple) else (index,)
        parts = (*parts, *[slice(None)] * (self.ndim - len(parts)))
        if not self._known or not all(map(_is_plain, parts)):
            return np.asarray(self._array[index])
        box = tuple(_ends(part, n) for part, n in zip(parts, self.shape, strict=True))
        frames = self._read(box)
        if all(isinstance(part, slice) for part in parts):
            return frames
        return frames[tuple(slice(None) if isinstance(part, slice) else 0 for part in parts)]

    def _read(self, box: Box) -> NDArray[Any]:
        """Return a box, the chunks decoded one after the other into the same buffer."""
        array = self._array
        out = np.empty([stop - start for start, stop in box], array.dtype)
        if not out.size:
            return out
        chunk = np.empty(array.chunks, array.dtype.newbyteorder("<"))
        shards = _shards(array)
        for shard in _touched(box, shards):
            places = list(_touched(_overlap(box, shard, shards), array.chunks))
            for place, encoded in zip(places, _encoded(array, shard, places), strict=True):
                if encoded is None:
                    chunk[...] = array.fill_value
                else:
                    ENCODER.decode(encoded, chunk)
                _copy(chunk, place, box, out)
        return out


def write_frames(array: zarr.Array[Any], start: int, frames: NDArray[Any]) -> None:
    """Write a run of whole frames that fills shards of its own.

    Parameters
    ----------
    array : zarr.Array
        The movie, its shards as large as its field, compressed with `COMPRESSOR`.
    start : int
        The first of the frames, also the first of a shard.
    frames : ndarray (time, y, x) or (time, z, y, x)
        The frames, up to the end of a shard or of the movie.

    Raises
    ------
    ValueError
        If the frames are not the array's or do not fall together with its shards.
    """
    shards = _shards(array)
    stop = start + len(frames)
    if frames.shape[1:] != array.shape[1:] or any(
        shard < size for shard, size in zip(shards[1:], array.shape[1:], strict=True)
    ):
        raise ValueError(f"frames of {frames.shape} do not fill shards of {shards}")
    if start % shards[0] or (stop % shards[0] and stop != array.shape[0]):
        raise ValueError(f"frames {start} to {stop} are not aligned with shards of {shards}")
    for first in range(start, stop, shards[0]):
        path = _shard_path(array, (first // shards[0], *[0] * (array.ndim - 1)))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            run = frames[first - start : first - start + shards[0]]
            _write_shard(file, array, run)


def _write_shard(file: BinaryIO, array: zarr.Array[Any], frames: NDArray[Any]) -> None:
    """Write the chunks one after the other, then where each lies, then the check of that."""
    grid, chunks = _grid(array), array.chunks
    index = np.empty((*grid, 2), "<u8")
    chunk = np.zeros(chunks, array.dtype.newbyteorder("<"))
    position = 0
    for place in np.ndindex(grid):
        part = frames[tuple(slice(p * n, (p + 1) * n) for p, n in zip(place, chunks, strict=True))]
        if part.shape != chunk.shape:
            chunk[...] = 0
        chunk[tuple(map(slice, part.shape))] = part
        encoded = ENCODER.encode(chunk)
        file.write(encoded)
        index[place] = position, len(encoded)
        position += len(encoded)
    file.write(index.tobytes())
    file.write(crc32c(index.tobytes()).to_bytes(4, "little"))


def _encoded(
    array: zarr.Array[Any], shard: tuple[int, ...], places: Sequence[tuple[int, ...]]
) -> Iterator[NDArray[np.uint8] | None]:
    """Yield the bytes of chunks of a shard, in a buffer that the next ones overwrite, or None."""
    grid = _grid(array)
    try:
        file = _shard_path(array, shard).open("rb")
    except FileNotFoundError:
        yield from itertools.repeat(None, len(places))
        return
    with file:
        index = _index(file, grid)
        found = [[int(n) for n in index[tuple(np.mod(place, grid))]] for place in places]
        lengths = [length for start, length in found if start != EMPTY]
        buffer = np.empty(max(lengths, default=0), np.uint8)
        for start, length in found:
            if start == EMPTY:
                yield None
                continue
            file.seek(start)
            if file.readinto(buffer[:length].data) != length:
                raise ValueError(f"{file.name} is damaged: a chunk is cut off")
            yield buffer[:length]


def _index(file: BinaryIO, grid: tuple[int, ...]) -> NDArray[np.uint64]:
    """Return where each chunk of a shard begins, and its length."""
    size = 16 * math.prod(grid)
    file.seek(-min(size + 4, file.seek(0, 2)), 2)
    end = file.read()
    if end[size:] != crc32c(end[:size]).to_bytes(4, "little"):
        raise ValueError(f"{file.name} is damaged: its index does not have its checksum")
    return np.frombuffer(end, "<u8", size // 8).reshape(*grid, 2)


def _copy(chunk: NDArray[Any], place: tuple[int, ...], box: Box, out: NDArray[Any]) -> None:
    """Copy what a chunk and a box have in common."""
    source, target = [], []
    for number, size, (start, stop) in zip(place, chunk.shape, box, strict=True):
        low, high = max(start, number * size), min(stop, (number + 1) * size)
        source.append(slice(low - number * size, high - number * size))
        target.append(slice(low - start, high - start))
    out[tuple(target)] = chunk[tuple(source)]


def _touched(box: Box, sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the places, in a grid of pieces of one size, of those that a box touches."""
    ranges = (
        range(start // size, -(-stop // size))
        for (start, stop), size in zip(box, sizes, strict=True)
    )
    return itertools.product(*ranges)


def _overlap(box: Box, place: tuple[int, ...], sizes: Sequence[int]) -> Box:
    return tuple(
        (max(start, number * size), min(stop, (number + 1) * size))
        for (start, stop), number, size in zip(box, place, sizes, strict=True)
    )


def _ends(part: slice | int, n: int) -> tuple[int, int]:
    if not isinstance(part, slice):
        return range(n)[part], range(n)[part] + 1
    start, stop, _ = part.indices(n)
    return start, max(start, stop)


def _is_plain(part: Any) -> bool:
    if isinstance(part, slice):
        return part.step in (None, 1)
    return isinstance(part, int | np.integer)


def _grid(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Return the number of chunks of a shard along each axis."""
    return tuple(s // n for s, n in zip(_shards(array), array.chunks, strict=True))


def _shards(array: zarr.Array[Any]) -> tuple[int, ...]:
    if array.shards is None:
        raise ValueError(f"{array} has no shards")
    return array.shards


def _shard_path(array: zarr.Array[Any], place: Sequence[int]) -> Path:
    assert isinstance(array.store, LocalStore)
    return array.store.root / array.path / "c" / "/".join(map(str, place))


def _is_known(array: zarr.Array[Any]) -> bool:
    """Whether an array is stored as `write_frames` does it."""
    metadata = array.metadata.to_dict()
    sharding = next(iter(getattr(array.metadata, "codecs", ())), None)
    return (
        isinstance(array.store, LocalStore)
        and isinstance(sharding, ShardingCodec)
        and sharding.index_location.value == "end"
        and [type(codec) for codec in sharding.codecs] == [BytesCodec, BloscCodec]
        and [codec.to_dict()["name"] for codec in sharding.index_codecs] == ["bytes", "crc32c"]
        and metadata["chunk_key_encoding"]
        == {"name": "default", "configuration": {"separator": "/"}}
    )


def crc32c(data: bytes) -> int:
    """Return the checksum of RFC 3720 that the index of a shard ends with.

    Examples
    --------
    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    table, value = _crc_table(), 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)
