"""Zarr movies against the arrays they were written from; equality is exact throughout."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import zarr

from napari_calcium.errors import InputError
from napari_calcium.io.recording import open_recording
from napari_calcium.io.zarr import read_zarr

SHAPE = (23, 37, 53)


def noise(dtype="uint16", shape=SHAPE):
    info = np.iinfo(dtype)
    values = np.random.default_rng(0).integers(info.min, info.max, shape, dtype, endpoint=True)
    values.flat[:2] = info.min, info.max
    return values


def write(path, movie, **options):
    array = zarr.create_array(
        path, shape=movie.shape, dtype=movie.dtype, **{"chunks": (5, 16, 16), **options}
    )
    array[:] = movie
    return array


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", ">u2"])
@pytest.mark.parametrize(
    "options",
    [
        {"zarr_format": 2},
        {"zarr_format": 3},
        {"zarr_format": 3, "shards": (10, 32, 64)},
        {"zarr_format": 2, "compressors": None},
    ],
    ids=["v2", "v3", "shards", "raw"],
)
def test_every_pixel_is_read_as_written(tmp_path, options, dtype):
    movie = noise(dtype.replace(">u2", "uint16")).astype(dtype)
    write(tmp_path / "movie.zarr", movie, **options)
    frames = read_zarr(tmp_path / "movie.zarr").frames
    assert frames.shape == SHAPE
    assert frames.dtype == frames[:].dtype
    assert frames.dtype.isnative
    np.testing.assert_array_equal(frames[:], movie)


@pytest.mark.parametrize("shape", [SHAPE, (23, 1, 1, 37, 53), (1, 23, 37, 53)])
def test_any_box_is_read_as_numpy_cuts_it(tmp_path, shape):
    movie = noise(shape=shape)
    write(tmp_path / "movie.zarr", movie, chunks=(*[4] * (len(shape) - 2), 16, 16))
    frames, truth = read_zarr(tmp_path / "movie.zarr").frames, movie.reshape(SHAPE)
    rng = np.random.default_rng(1)
    for _ in range(80):
        index = tuple(
            int(rng.integers(-n, n))
            if rng.random() < 0.3
            else slice(*rng.integers(-n - 2, n + 2, 2), rng.choice([1, 2, 5, -1, -3]))
            for n in SHAPE
        )[: rng.integers(1, 4)]
        np.testing.assert_array_equal(frames[index], truth[index])
    np.testing.assert_array_equal(frames[[20, 3, -1, 3], ::-2], truth[[20, 3, -1, 3], ::-2])
    np.testing.assert_array_equal(frames[4, 5:9, [50, 1]], truth[4, 5:9][:, [50, 1]])


def test_lazy_blocks_are_whole_chunks_and_can_be_pickled(tmp_path):
    movie = noise(shape=(300, 37, 53))
    write(tmp_path / "movie.zarr", movie, chunks=(50, 16, 16))
    frames = open_recording([tmp_path / "movie.zarr"]).frames
    assert frames.chunks == ((150, 150), (37,), (53,))
    np.testing.assert_array_equal(frames.compute(scheduler="threads", num_workers=2), movie)
    copy = pickle.loads(pickle.dumps(frames))
    np.testing.assert_array_equal(copy[140:160, 3:5].compute(), movie[140:160, 3:5])


def test_opening_reads_no_chunk(tmp_path):
    write(tmp_path / "movie.zarr", noise(), zarr_format=2)
    for chunk in (tmp_path / "movie.zarr").glob("[0-9]*"):
        chunk.write_bytes(b"no chunk")
    assert open_recording([tmp_path / "movie.zarr"]).frames.shape == SHAPE


def test_group_of_one_movie_beside_other_arrays(tmp_path):
    group = zarr.open_group(tmp_path / "video.zarr", mode="w")
    array = group.create_array(
        "varr", shape=SHAPE, dtype="uint8", dimension_names=("frame", "height", "width")
    )
    array[:] = noise("uint8")
    group.create_array("frame", shape=SHAPE[:1], dtype="int64")
    group.attrs.update(frame_rate=20, pixel_size=1.5)
    movie = read_zarr(tmp_path / "video.zarr")
    np.testing.assert_array_equal(movie.frames[:], noise("uint8"))
    assert (movie.frame_rate, movie.pixel_size) == (20.0, 1.5)


def ome_zarr(path, shape, names, version):
    units = {"t": "millisecond", "y": "micrometer", "x": "micrometer"}
    image = {
        "axes": [{"name": n} | ({"unit": units[n]} if n in units else {}) for n in names],
        "datasets": [
            {
                "path": str(level),
                "coordinateTransformations": [
                    {
                        "type": "scale",
                        "scale": [{"t": 50.0, "y": 0.7, "x": 0.7}.get(n, 1.0) for n in names],
                    }
                ],
            }
            for level in (0, 1)
        ],
    }
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    group.attrs.update(
        {"multiscales": [image]} if version == "0.4" else {"ome": {"multiscales": [image]}}
    )
    movie = noise(shape=shape)
    group.create_array("0", data=movie)
    group.create_array("1", data=movie[..., ::2, ::2])
    return movie


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(("shape", "names"), [((23, 1, 1, 37, 53), "tczyx"), (SHAPE, "tyx")])
def test_ome_zarr(tmp_path, shape, names, version):
    movie = ome_zarr(tmp_path / "image", shape, names, version)
    recording = open_recording([tmp_path / "image"])
    np.testing.assert_array_equal(recording.frames.compute(), movie.reshape(SHAPE))
    assert recording.frame_rate == pytest.approx(20.0)
    assert recording.pixel_size == pytest.approx(0.7)


def refused(path, *words):
    """Check that a folder is refused with one sentence that names it and has the words."""
    with pytest.raises(InputError) as error:
        open_recording([path])
    text = str(error.value)
    assert str(path) in text
    assert "\n" not in text
    assert not [word for word in words if word not in text], text


@pytest.mark.parametrize(
    ("shape", "names"),
    [((5, 2, 1, 37, 53), "tczyx"), ((5, 2, 4, 37, 53), "tczyx"), ((9, 37, 53), "cyx")],
)
def test_several_channels(tmp_path, shape, names):
    ome_zarr(tmp_path / "image.zarr", shape, names, "0.5")
    refused(tmp_path / "image.zarr", "channels are not supported yet", "Y 37, X 53", "split")


VOLUMES = (9, 3, 37, 53)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    ("shape", "names"),
    [(VOLUMES, "tzyx"), ((9, 1, 3, 37, 53), "tczyx"), ((3, 9, 37, 53), "ztyx")],
)
def test_volumes_of_ome_zarr(tmp_path, shape, names, version):
    movie = ome_zarr(tmp_path / "image", shape, names, version)
    movie = movie.swapaxes(0, 1) if names[0] == "z" else movie.reshape(VOLUMES)
    recording = open_recording([tmp_path / "image"])
    np.testing.assert_array_equal(recording.frames.compute(), movie)
    assert (recording.frame_rate, recording.pixel_size) == pytest.approx((20.0, 0.7))
    said = "Zarr, 9 volumes of 3 planes of 37 x 53 px (y, x), uint16, in this order: image"
    assert recording.understood() == said


@pytest.mark.parametrize("names", [("time", "z", "y", "x"), ("frame", "plane", "y", "x"), None])
def test_volumes_of_an_array_or_a_group(tmp_path, names):
    movie = noise(shape=VOLUMES)
    group = zarr.open_group(tmp_path / "video.zarr", mode="w")
    group.create_array("frames", data=movie, chunks=(4, 1, 16, 16), dimension_names=names)
    group.create_array("times", shape=(9,), dtype="int64")
    for path in (tmp_path / "video.zarr", tmp_path / "video.zarr" / "frames"):
        recording = open_recording([path])
        np.testing.assert_array_equal(recording.frames.compute(), movie)
        read_as = f"{path} does not name its axes; they are read as (time, z, y, x)"
        assert recording.notes == (() if names else (read_as,))


@pytest.mark.parametrize("shape", [VOLUMES, (9, 1, 3, 37, 53), (3, 9, 37, 53)])
def test_any_box_of_volumes_is_read_as_numpy_cuts_it(tmp_path, shape):
    names = {VOLUMES: "tzyx", (3, 9, 37, 53): "ztyx"}.get(shape, "tczyx")
    movie = noise(shape=shape)
    write(
        tmp_path / "m.zarr",
        movie,
        chunks=(*[2] * (len(shape) - 2), 16, 16),
        dimension_names=tuple(names),
    )
    truth = movie.swapaxes(0, 1) if names[0] == "z" else movie.reshape(VOLUMES)
    frames = read_zarr(tmp_path / "m.zarr").frames
    assert (frames.shape, frames.ndim, frames.chunks) == (VOLUMES, 4, (2, 2, 16, 16))
    rng = np.random.default_rng(1)
    for _ in range(60):
        index = tuple(
            int(rng.integers(-n, n))
            if rng.random() < 0.3
            else slice(*rng.integers(-n - 2, n + 2, 2), rng.choice([1, 2, -1]))
            for n in VOLUMES
        )[: rng.integers(1, 5)]
        np.testing.assert_array_equal(frames[index], truth[index])
    np.testing.assert_array_equal(frames[[7, 3, -1], 1], truth[[7, 3, -1], 1])


def test_only_planes_or_an_axis_of_another_name_is_time(tmp_path):
    for name, axes, shape in (
        ("z", "zyx", SHAPE),
        ("q", "qyx", SHAPE),
        ("one", "tzyx", (1, *SHAPE)),
    ):
        write(
            tmp_path / name,
            noise(shape=shape),
            chunks=(*[1] * (len(shape) - 2), 16, 16),
            dimension_names=tuple(axes),
        )
        assert open_recording([tmp_path / name]).frames.shape == SHAPE


def test_names_that_mean_the_same_drop_no_axis(tmp_path):
    names = ("frame", "time", "y", "x")
    write(tmp_path / "m.zarr", noise(shape=VOLUMES), chunks=(1, 1, 16, 16), dimension_names=names)
    refused(tmp_path / "m.zarr", "FRAME 9, TIME 3", "not supported yet")


def test_arrays_that_are_no_movie(tmp_path):
    write(tmp_path / "picture.zarr", noise(shape=(37, 53)), chunks=(16, 16))
    refused(tmp_path / "picture.zarr", "2 axes", "(time, y, x)")
    write(tmp_path / "one.zarr", noise(shape=(1, 37, 53)))
    refused(tmp_path / "one.zarr", "1 x 37 x 53", "at least 2 frames")
    write(tmp_path / "float.zarr", np.zeros(SHAPE, "float32"))
    refused(tmp_path / "float.zarr", "float32", "integers")
    write(tmp_path / "last.zarr", noise(), dimension_names=("y", "x", "time"))
    refused(tmp_path / "last.zarr", "(y, x, time)", "save it")


def test_groups_without_exactly_one_movie(tmp_path):
    group = zarr.open_group(tmp_path / "group.zarr", mode="w")
    refused(tmp_path / "group.zarr", "0 arrays of three or four axes")
    for name in ("red", "green"):
        group.create_array(name, shape=SHAPE, dtype="uint8")
    refused(tmp_path / "group.zarr", "2 arrays of three or four axes (green, red)")


def test_folders_that_cannot_be_read(tmp_path):
    empty = tmp_path / "empty.zarr"
    empty.mkdir()
    refused(empty, "cannot be read as Zarr", "copy the folder again")
    for name, change in (
        ("text", lambda text: "no json"),
        ("cut", lambda text: text[: len(text) // 2]),
        ("codec", lambda text: text.replace("zstd", "martian")),
        ("type", lambda text: json.dumps({**json.loads(text), "data_type": "uint13"})),
    ):
        path = tmp_path / f"{name}.zarr"
        write(path, noise())
        metadata = path / "zarr.json"
        metadata.write_text(change(metadata.read_text()))
        refused(path, "cannot be read as Zarr")
