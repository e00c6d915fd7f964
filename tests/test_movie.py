from __future__ import annotations

import pickle
import tracemalloc
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from dask.delayed import delayed
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from napari_calcium.movie import Movie, Reader, blocks, pixel_major, project, weighted_sums

FIELD = (37, 53)
CHUNKS = [(100, 16, 20), (7, 37, 53), (600, 37, 53), (256, 10, 53)]


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint16]:
    return np.random.default_rng(0).integers(0, 2**16, (600, *FIELD), dtype=np.uint16)


@pytest.fixture(scope="module")
def footprints() -> sp.csc_array:
    random = sp.random_array((37 * 53, 6), density=0.02, dtype=np.float32, rng=1)
    return sp.csc_array(sp.hstack([random, sp.csc_array((37 * 53, 1), dtype=np.float32)]))


class Recorder:
    """Frames on a pretended disk; knows which boxes were read."""

    def __init__(self, frames: NDArray[Any]) -> None:
        self.frames = frames
        self.shape, self.dtype, self.ndim = frames.shape, frames.dtype, frames.ndim
        self.boxes: list[tuple[slice, ...]] = []

    def __getitem__(self, box: tuple[slice, ...]) -> NDArray[Any]:
        self.boxes.append(box)
        return self.frames[box].copy()

    def movie(self, chunks: tuple[int, ...]) -> Movie:
        meta = np.empty((0,) * self.ndim, self.dtype)
        return Movie(da.from_array(self, chunks=chunks, name="recorder", meta=meta), 30.0)

    def pixels(self) -> int:
        return sum(self.frames[box].size for box in self.boxes)


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("the builder computed")


def movie_of(frames: NDArray[Any], chunks: tuple[int, int, int] = (100, 16, 20)) -> Movie:
    return Movie(da.from_array(frames, chunks=chunks), 30.0)


def test_its_properties() -> None:
    movie = Movie(da.zeros((90, *FIELD), dtype="int16"), frame_rate=30, pixel_size=0.8)
    assert (movie.n_frames, movie.field, movie.duration) == (90, FIELD, 3.0)


def test_the_properties_of_volumes() -> None:
    movie = Movie(da.zeros((90, 5, *FIELD), dtype="int16"), frame_rate=6)
    assert (movie.field, movie.plane, movie.n_planes, movie.is_volume) == ((5, *FIELD), FIELD, 5, 1)
    one = Movie(da.zeros((90, *FIELD), dtype="int16"), frame_rate=6)
    assert (one.field, one.plane, one.n_planes, one.is_volume) == (FIELD, FIELD, 1, 0)


@pytest.mark.parametrize("frames", [np.zeros((3, 4, 5)), da.zeros((4, 5)), da.zeros([2] * 5)])
def test_frames_are_a_dask_array_of_three_or_four_axes(frames: Any) -> None:
    with pytest.raises(ValueError, match=r"frames must be a dask array of the axes \(time, y, x\)"):
        Movie(frames, 30.0)


@pytest.mark.parametrize("frame_rate", [0, -1, float("nan")])
def test_the_frame_rate_is_above_0(frame_rate: float) -> None:
    with pytest.raises(ValueError, match="it must be above 0 Hz"):
        Movie(da.zeros((2, 3, 4)), frame_rate)


@given(n=st.integers(0, 2000), size=st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_blocks_cover_all_once(n: int, size: int) -> None:
    cut = list(blocks(n, size))
    assert [i for block in cut for i in range(n)[block]] == list(range(n))
    assert all(block.stop - block.start == size for block in cut[:-1])


@pytest.mark.parametrize(
    ("field", "size"),
    [
        ((37, 53), 256),
        ((512, 512), 256),
        ((1024, 2048), 32),
        ((9999, 9999), 1),
        ((5, 37, 53), 256),
        ((20, 512, 512), 8),
        ((700, 700), 128),
    ],
)
def test_a_task_takes_fewer_frames_of_a_large_field(field: tuple[int, ...], size: int) -> None:
    assert next(Movie(da.zeros((1000, *field)), 30.0).blocks()) == slice(0, size)


def test_only_the_box_asked_for_is_read(frames: NDArray[np.uint16]) -> None:
    box = (slice(90, 130), slice(5, 20), slice(18, 23))
    recorder = Recorder(frames)
    read = recorder.movie((100, 16, 20)).read(*box).compute(scheduler="synchronous")
    np.testing.assert_array_equal(read, frames[box])
    assert read.dtype == np.uint16
    assert recorder.pixels() == read.size


def test_of_volumes_only_the_planes_asked_for_are_read(frames: NDArray[np.uint16]) -> None:
    volumes = frames.reshape(150, 4, *FIELD)
    recorder = Recorder(volumes)
    movie = recorder.movie((40, 2, 16, 20))
    time, y, x, z = slice(35, 90), slice(5, 20), slice(18, 23), slice(1, 3)
    read = movie.read(time, y, x, z).compute(scheduler="synchronous")
    np.testing.assert_array_equal(read, volumes[time, z, y, x])
    assert recorder.pixels() == read.size
    np.testing.assert_array_equal(movie.box(time, y).read(), volumes[time, :, y])
    mean = movie.apply(np.mean, (2, 3), time=time, z=z).compute(scheduler="synchronous")
    np.testing.assert_array_equal(mean, volumes[time, z].mean(axis=(2, 3)))


def test_frames_of_one_plane_have_no_others(frames: NDArray[np.uint16]) -> None:
    with pytest.raises(ValueError, match="asked for, but the frames have only one"):
        movie_of(frames).read(slice(0, 3), z=slice(0, 1))


def test_a_box_reads_itself_even_in_another_process(frames: NDArray[np.uint16]) -> None:
    box = (slice(250, 260), slice(5, 20), slice(18, 53))
    sent = pickle.loads(pickle.dumps(movie_of(frames).box(*box)))
    np.testing.assert_array_equal(sent.read(), frames[box])


def test_a_reader_reads_no_more_than_its_box(frames: NDArray[np.uint16]) -> None:
    """Its own to write in, in another process too."""
    box = (slice(90, 130), slice(5, 20), slice(18, 23))
    recorder = Recorder(frames)
    reader = Reader(recorder.movie((100, 16, 20)))
    assert reader.shape == (600, *FIELD)
    read = reader.read(*box)
    np.testing.assert_array_equal(read, frames[box])
    assert recorder.pixels() == read.size
    reader = pickle.loads(pickle.dumps(Reader(movie_of(frames))))
    reader.read(slice(2, 3))[...] = 0
    np.testing.assert_array_equal(reader.read(slice(2, 3)), frames[2:3])
    volumes = Reader(Movie(da.from_array(frames.reshape(150, 4, *FIELD)), 30.0))
    np.testing.assert_array_equal(volumes.read(slice(3), slice(9)).ravel(), frames[:12, :9].ravel())


def test_readers_of_the_same_frames_have_one_key(frames: NDArray[np.uint16]) -> None:
    keys = [
        delayed(Reader(movie_of(each)), pure=True, traverse=False).key
        for each in (frames[:9], frames[:9], frames[:9] + 1)
    ]
    assert keys[0] == keys[1] != keys[2]


def test_apply_reads_and_computes_in_one_task(frames: NDArray[np.uint16]) -> None:
    """As a task of its own the reading could run ahead, and fill the memory with frames."""
    recorder = Recorder(frames)
    with dask.config.set(scheduler=refuse):
        mean = recorder.movie((7, 16, 20)).apply(np.mean, (1, 2), time=slice(10, 30), x=slice(9))
    assert len(dict(mean.dask)) == 1
    result = mean.compute(scheduler="synchronous")
    np.testing.assert_array_equal(result, frames[10:30, :, :9].mean(axis=(1, 2)))
    assert recorder.pixels() == 20 * 37 * 9


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("workers", [1, 2])
def test_project_is_the_product(
    frames: NDArray[np.uint16],
    footprints: sp.csc_array,
    chunks: tuple[int, int, int],
    workers: int,
) -> None:
    """To 1e-6, some roundings of float32, and bit for bit the same however it is cut."""
    dense = footprints.toarray().astype(float).T @ frames.reshape(600, -1).T
    reference = project(movie_of(frames, (600, *FIELD)), delayed(footprints)).compute(
        scheduler="synchronous"
    )
    lazy = project(movie_of(frames, chunks), delayed(footprints))
    result = lazy.compute(scheduler="threads", num_workers=workers)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, dense, rtol=1e-6)
    np.testing.assert_array_equal(result, reference)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("workers", [1, 2])
def test_weighted_sums_are_the_product_at_the_support(
    frames: NDArray[np.uint16],
    footprints: sp.csc_array,
    chunks: tuple[int, int, int],
    workers: int,
) -> None:
    """To 1e-5 of the largest sum: float32 within a block, whose terms cancel."""
    weights = np.random.default_rng(2).normal(size=(7, 600)).astype(np.float32)
    dense = frames.reshape(600, -1).T @ weights.T.astype(float)
    lazy, reference = (
        weighted_sums(movie_of(frames, cut), delayed(weights), delayed(footprints))
        for cut in (chunks, (600, *FIELD))
    )
    result = lazy.compute(scheduler="threads", num_workers=workers)
    expected = dense * (footprints.toarray() != 0)
    np.testing.assert_allclose(result.toarray(), expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(result.indices, footprints.indices)
    np.testing.assert_array_equal(result.data, reference.compute(scheduler="synchronous").data)


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint8", ">i2", "float32"])
def test_other_types(footprints: sp.csc_array, dtype: str) -> None:
    low = 0 if dtype == "uint8" else -120
    frames = np.random.default_rng(3).integers(low, 120, (50, *FIELD)).astype(dtype)
    dense = footprints.toarray().T @ frames.reshape(50, -1).T.astype(float)
    result = project(movie_of(frames), delayed(footprints)).compute()
    np.testing.assert_allclose(result, dense, rtol=1e-5, atol=1e-3)
    weights = np.eye(7, 50, dtype=np.float32)
    sums = weighted_sums(movie_of(frames), delayed(weights), delayed(footprints)).compute()
    expected = frames[:7].reshape(7, -1).T * (footprints.toarray() != 0)
    np.testing.assert_array_equal(sums.toarray(), expected)


def test_no_footprints_give_no_rows(frames: NDArray[np.uint16]) -> None:
    none = delayed(sp.csc_array((37 * 53, 0), dtype=np.float32))
    assert project(movie_of(frames), none).compute().shape == (0, 600)
    no_weights = delayed(np.zeros((0, 600), np.float32))
    assert weighted_sums(movie_of(frames), no_weights, none).compute().shape == (37 * 53, 0)


def test_builders_do_not_compute(frames: NDArray[np.uint16], footprints: sp.csc_array) -> None:
    weights = delayed(np.ones((7, 600), np.float32))
    with dask.config.set(scheduler=refuse):
        project(movie_of(frames), delayed(footprints))
        weighted_sums(movie_of(frames), weights, delayed(footprints))


def test_two_passes_do_not_keep_the_movie(footprints: sp.csc_array) -> None:
    """The frames of one pass must not wait in memory for the next: 16 MB here, 1 MB a block."""
    movie = Movie(da.ones((4096, *FIELD), dtype="uint16", chunks=(256, *FIELD)), 30.0)
    support = delayed(footprints)
    passes = weighted_sums(movie, project(movie, support), support)
    passes.compute(scheduler="synchronous")  # compiles
    tracemalloc.start()
    try:
        passes.compute(scheduler="threads", num_workers=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < movie.frames.nbytes / 2


@pytest.mark.parametrize("dtype", ["uint16", ">u2", "int16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 37, 53), (70, 3, 40), (0, 4, 5), (5, 0, 3)])
def test_pixel_major_is_the_transpose(shape: tuple[int, int, int], dtype: str) -> None:
    """Also of frames that are a part of others, and at the edges of the tiles."""
    frames = np.random.default_rng(0).integers(0, 30000, shape).astype(dtype)
    turned = pixel_major(frames)
    assert turned.dtype == np.float32
    assert turned.flags.c_contiguous
    pixels = shape[1] * shape[2]
    np.testing.assert_array_equal(turned, frames.reshape(shape[0], pixels).T)
    half = frames[::2, :, : shape[2] // 2]
    pixels = shape[1] * (shape[2] // 2)
    np.testing.assert_array_equal(pixel_major(half), half.reshape(len(half), pixels).T)


def test_what_a_box_reads_is_the_tasks_own(frames: NDArray[np.uint16]) -> None:
    """Also where it is the whole of a movie in memory: a second read sees what was there."""
    movie = Movie(da.from_array(frames, chunks=frames.shape), 30.0)
    box = movie.box(slice(0, len(frames)))
    box.read()[:] = 0
    np.testing.assert_array_equal(box.read(), frames)
