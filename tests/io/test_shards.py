"""Shards against zarr itself, which reads what is written here and writes what is read here."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, ZstdCodec

from napari_calcium.io.session import frames_layout
from napari_calcium.io.shards import COMPRESSOR, ShardedFrames, crc32c, write_frames

SHAPES = [(300, 37, 53), (140, 150, 137), (9, 3, 37, 53), (130, 2, 37, 140)]
Frames = NDArray[Any]


def noise(shape: tuple[int, ...], dtype: str = "uint16") -> Frames:
    ends = np.iinfo(dtype)
    rng = np.random.default_rng(0)
    return rng.integers(ends.min, ends.max, shape, dtype, endpoint=True)


def create(path: Path, frames: Frames, **options: Any) -> zarr.Array[Any]:
    chunks, shards = frames_layout(frames.shape, frames.dtype.itemsize)
    options = {"chunks": chunks, "shards": shards, "compressors": COMPRESSOR} | options
    return zarr.create_array(path, shape=frames.shape, dtype=frames.dtype, **options)


def written(path: Path, frames: Frames) -> zarr.Array[Any]:
    """Return an array that was written here, shard by shard."""
    array = create(path, frames)
    assert array.shards is not None
    for start in range(0, len(frames), array.shards[0]):
        write_frames(array, start, frames[start : start + array.shards[0]])
    return array


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32"])
def test_zarr_reads_what_is_written(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    """With the checksum of each shard's index, which zarr verifies."""
    frames = noise(shape, dtype)
    written(tmp_path / "a", frames)
    found = zarr.open_array(tmp_path / "a", mode="r")
    np.testing.assert_array_equal(found[...], frames)
    np.testing.assert_array_equal(found[3:8, ..., 30:, 40:50], frames[3:8, ..., 30:, 40:50])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_files_are_as_large_as_zarrs(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """The same chunks and index; their order within a file may differ."""
    frames = noise(shape) // 256
    written(tmp_path / "a", frames)
    create(tmp_path / "b", frames)[...] = frames
    one, other = (
        {
            file.relative_to(folder): file.stat().st_size
            for file in (folder / "c").rglob("*")
            if file.is_file()
        }
        for folder in (tmp_path / "a", tmp_path / "b")
    )
    assert one == other


@pytest.mark.parametrize("shape", SHAPES)
def test_any_box_is_read_as_numpy_cuts_it(tmp_path: Path, shape: tuple[int, ...]) -> None:
    frames = noise(shape)
    create(tmp_path / "a", frames)[...] = frames
    found = ShardedFrames(zarr.open_array(tmp_path / "a", mode="r"))
    assert (found.shape, found.dtype, found.ndim) == (shape, np.uint16, len(shape))
    rng = np.random.default_rng(1)
    for _ in range(60):
        index = tuple(
            int(rng.integers(-n, n))
            if rng.random() < 0.2
            else slice(*rng.integers(-n - 2, n + 2, 2), rng.choice([None, 1, 3], p=[0.6, 0.3, 0.1]))
            for n in shape
        )[: rng.integers(1, len(shape) + 1)]
        np.testing.assert_array_equal(found[index], frames[index])
    np.testing.assert_array_equal(found[[7, 3, 8], 1], frames[[7, 3, 8], 1])
    np.testing.assert_array_equal(found[5], frames[5])
    np.testing.assert_array_equal(found[:], frames)


def test_what_was_never_written_is_the_fill_value(tmp_path: Path) -> None:
    """Zarr leaves out shards, and chunks of a shard, that are nothing but it."""
    frames = np.full((300, 150, 53), 7, np.uint16)
    frames[5, 140, 20] = 9
    array = create(tmp_path / "a", frames, fill_value=7)
    array[...] = frames
    assert [file.name for file in (tmp_path / "a" / "c").iterdir()] == ["0"]
    np.testing.assert_array_equal(ShardedFrames(array)[100:290], frames[100:290])
    np.testing.assert_array_equal(ShardedFrames(array)[:20], frames[:20])


@pytest.mark.parametrize(
    "options",
    [
        {"shards": None},
        {"compressors": ZstdCodec()},
        {"compressors": None},
        {"compressors": BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")},
        {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}}},
        {"shards": {"shape": (128, 37, 53), "index_location": "start"}},
        {"chunk_key_encoding": {"name": "v2", "configuration": {"separator": "/"}}},
        {"shards": None, "zarr_format": 2},
    ],
)
def test_what_is_stored_otherwise_is_read_too(tmp_path: Path, options: Any) -> None:
    frames = noise((140, 37, 53))
    if options.get("zarr_format") == 2:
        options = options | {"compressors": None}
    array = create(tmp_path / "a", frames, **options)
    array[...] = frames
    np.testing.assert_array_equal(ShardedFrames(array)[120:, 3:9], frames[120:, 3:9])


def test_threads_and_other_processes_read_the_same(tmp_path: Path) -> None:
    frames = noise((300, 37, 53))
    found = pickle.loads(pickle.dumps(ShardedFrames(written(tmp_path / "a", frames))))
    with ThreadPoolExecutor(4) as pool:
        for start, part in enumerate(pool.map(lambda start: found[start : start + 140], range(60))):
            np.testing.assert_array_equal(part, frames[start : start + 140])


def test_frames_that_do_not_fall_on_shards_are_refused(tmp_path: Path) -> None:
    array = create(tmp_path / "a", frames := noise((300, 37, 53)))
    for start, stop in ((0, 100), (64, 192), (128, 200)):
        with pytest.raises(ValueError, match=f"frames {start} to {stop} are not aligned"):
            write_frames(array, start, frames[start:stop])
    with pytest.raises(ValueError, match="do not fill"):
        write_frames(array, 0, frames[:128, :20])
    tiles = create(tmp_path / "b", frames, chunks=(128, 16, 16), shards=(128, 32, 32))
    with pytest.raises(ValueError, match="do not fill"):
        write_frames(tiles, 0, frames[:128])
    assert not (tmp_path / "a" / "c").exists()
    write_frames(array, 0, frames[:256])
    np.testing.assert_array_equal(array[:256], frames[:256])


def test_damage_is_noticed(tmp_path: Path) -> None:
    """Every byte of the index counts, and nothing is read of a file that is cut off."""
    array = written(tmp_path / "a", noise((140, 150, 53)))
    shard = tmp_path / "a" / "c" / "0" / "0" / "0"
    whole = shard.read_bytes()
    for place in range(1, 2 * 16 + 5):
        shard.write_bytes(
            whole[:-place] + bytes([whole[-place] ^ 1]) + whole[len(whole) - place + 1 :]
        )
        with pytest.raises(ValueError, match="is damaged: its index"):
            ShardedFrames(array)[3]
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is damaged"):
            ShardedFrames(array)[3]
    index = whole[-36:]
    shard.write_bytes(whole[:100] + index)
    with pytest.raises(ValueError, match="is damaged: a chunk is cut off"):
        ShardedFrames(array)[3, 140]


@pytest.mark.parametrize(
    ("data", "value"),
    [(b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43)],
)
def test_the_checksum_is_that_of_rfc_3720(data: bytes, value: int) -> None:
    assert crc32c(data) == value
