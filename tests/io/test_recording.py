"""Opening recordings: order, laziness, what is understood, and what is refused."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import pytest
import tifffile
import zarr

from napari_calcium.errors import InputError
from napari_calcium.io import recording as recording_module
from napari_calcium.io.recording import file_digest, folder_digest, open_recording
from napari_calcium.io.tiff import TiffStack
from napari_calcium.movie import Movie

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def noise(n=10, dtype="uint16", seed=0, field=(37, 53)):
    return np.random.default_rng(seed).integers(0, 2**16, (n, *field)).astype(dtype)


def write(path, movie, **options):
    tifffile.imwrite(path, movie, photometric="minisblack", **options)
    return path


@pytest.fixture
def reads(monkeypatch):
    """Frames that were read, in the order they were asked for."""
    seen = []
    read = TiffStack.read

    def counted(self, frames, y, x, out):
        frames = list(frames)
        seen.extend(frame for _, frame in frames)
        read(self, frames, y, x, out)

    monkeypatch.setattr(TiffStack, "read", counted)
    return seen


def test_files_come_in_natural_order_whatever_the_order_given(tmp_path):
    names = ["file_1.tif", "file_2.tif", "file_10.tif", "file_11.tif"]
    movies = {name: noise(3 + i, seed=i) for i, name in enumerate(names)}
    for name in reversed(names):
        write(tmp_path / name, movies[name])
    truth = np.concatenate([movies[name] for name in names])
    for given in (names, sorted(names), names[::-1]):
        recording = open_recording([tmp_path / name for name in given])
        assert [file.path.name for file in recording.files] == names
        assert [file.n_frames for file in recording.files] == [3, 4, 5, 6]
        np.testing.assert_array_equal(recording.frames.compute(), truth)
    assert open_recording([tmp_path]).frames.name == recording.frames.name


@pytest.mark.parametrize(
    "names",
    [
        ["movie.tif", "movie (1).tif", "movie (2).tif", "movie (10).tif"],
        ["pos.ome.tif", "pos_1.ome.tif", "pos_2.ome.tif", "pos_10.ome.tif"],
        ["a2/1.tif", "a2/3.tif", "a10/1.tif", "a10/2.tif"],
        ["1.tif", "01.tif", "2.TIF", "3.tiff", "10.btf"],
    ],
)
def test_natural_order_of_real_names(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, noise(2), metadata=None, ome=False)
    given = sorted((tmp_path / name for name in names), key=lambda path: hash(str(path)))
    found = [path.path.relative_to(tmp_path).as_posix() for path in open_recording(given).files]
    assert found == (names if "01.tif" not in names else ["01.tif", "1.tif", *names[2:]])


def test_folder_of_thousands_of_single_pages(tmp_path, reads):
    movie = noise(2000, "uint16", field=(6, 11))
    for i, picture in enumerate(movie):
        tifffile.imwrite(tmp_path / f"img {i}.tif", picture, metadata=None)
    (tmp_path / "._img 0.tif").write_bytes(b"what macOS leaves on a network drive")
    (tmp_path / "notes.txt").write_text("not a frame")
    begin = time.perf_counter()
    recording = open_recording([tmp_path])
    assert time.perf_counter() - begin < 10, "about a millisecond a file"
    assert recording.frames.shape == movie.shape
    assert recording.frames.chunks[0] == (*[128] * 15, 80)
    assert not reads
    np.testing.assert_array_equal(recording.frames.compute(), movie)


def test_nothing_is_read_until_asked_and_then_only_that(tmp_path, reads):
    movies = [noise(150, seed=1), noise(100, seed=2)]
    paths = [write(tmp_path / f"{i}.tif", movie) for i, movie in enumerate(movies)]
    movie = Movie(open_recording(paths).frames, frame_rate=30.0)
    assert not reads
    box = movie.read(slice(148, 153), slice(3, 9), slice(20, 50)).compute(scheduler="sync")
    np.testing.assert_array_equal(box, np.concatenate(movies)[148:153, 3:9, 20:50])
    assert reads == [148, 149, 0, 1, 2]
    reads.clear()
    movie.frames[200].compute(scheduler="sync")
    assert reads == [50]


def test_opening_a_sparse_file_of_gigabytes_is_quick(tmp_path):
    path = tmp_path / "large.tif"
    shape = (3000, 512, 512)
    tifffile.imwrite(path, shape=shape, dtype="uint16", photometric="minisblack")
    assert path.stat().st_size > 1.5e9
    begin = time.perf_counter()
    recording = open_recording([path])
    assert time.perf_counter() - begin < 3, "reading it would take longer"
    assert recording.frames.shape == shape
    assert recording.summary()["bytes"] == 3000 * 512 * 512 * 2
    path.unlink()


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}], ids=["mapped", "decoded"])
def test_threads_and_processes_read_the_same(tmp_path, options):
    movie = noise(300)
    frames = open_recording([write(tmp_path / "movie.tif", movie, **options)]).frames
    assert frames.chunks == ((128, 128, 44), (37,), (53,))
    np.testing.assert_array_equal(frames.compute(scheduler="threads", num_workers=2), movie)
    np.testing.assert_array_equal(frames.compute(scheduler="processes", num_workers=2), movie)


def test_random_boxes_of_the_lazy_array(tmp_path):
    movie = noise(290)
    paths = [write(tmp_path / f"{i}.tif", part) for i, part in enumerate(np.split(movie, [7, 150]))]
    frames = open_recording(paths).frames
    rng = np.random.default_rng(3)
    for _ in range(20):
        index = tuple(slice(*sorted(rng.integers(0, n + 1, 2)), 2) for n in movie.shape)
        np.testing.assert_array_equal(frames[index].compute(scheduler="sync"), movie[index])
    np.testing.assert_array_equal(frames[200].compute(), movie[200])
    np.testing.assert_array_equal(frames[[280, 5, 149, 5], 4].compute(), movie[[280, 5, 149, 5], 4])


def test_graph_is_built_without_computing(tmp_path):
    path = write(tmp_path / "movie.tif", noise())

    def refuse(*args, **options):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        open_recording([path])


def test_spaces_unicode_and_read_only(tmp_path):
    folder = tmp_path / "Mäuse 小鼠 🐁"
    folder.mkdir()
    movie = noise(5)
    path = write(folder / "run 1, día.tif", movie)
    path.chmod(0o444)
    folder.chmod(0o555)
    try:
        recording = open_recording([str(folder)])
        np.testing.assert_array_equal(recording.frames.compute(), movie)
        assert recording.summary()["files"][0]["path"] == str(path)
        assert os.listdir(folder) == [path.name]
    finally:
        folder.chmod(0o755)


def test_relative_path_and_single_string(tmp_path, monkeypatch):
    write(tmp_path / "movie.tif", noise())
    monkeypatch.chdir(tmp_path)
    assert open_recording("movie.tif").files[0].path == tmp_path / "movie.tif"


def test_summary_is_json_and_says_what_was_understood(tmp_path):
    paths = []
    for i in range(2):
        paths.append(tmp_path / f"{i}.tif")
        metadata = {"axes": "TYX", "finterval": 0.1, "unit": "um"}
        tifffile.imwrite(paths[i], noise(7), imagej=True, metadata=metadata, resolution=(2.0, 2.0))
    said = json.loads(json.dumps(open_recording(paths).summary()))
    files = said.pop("files")
    assert [file["path"] for file in files] == [str(path) for path in paths]
    assert [file["n_frames"] for file in files] == [7, 7]
    assert said == {
        "kind": "TIFF",
        "n_frames": 14,
        "field": [37, 53],
        "dtype": "uint16",
        "frame_rate": pytest.approx(10.0),
        "pixel_size": pytest.approx(0.5),
        "bytes": 14 * 37 * 53 * 2,
        "notes": [],
    }


def test_file_digest_tells_files_apart(tmp_path):
    path = write(tmp_path / "a.tif", noise())
    digest = file_digest(path)
    assert len(digest) == 64
    assert file_digest(path.rename(tmp_path / "b.tif")) == digest, "whatever the name"
    content = path.with_name("b.tif").read_bytes()
    for changed in (content[:-1], b"X" + content[1:], content[:-1] + b"X", content + b"\0"):
        path.write_bytes(changed)
        assert file_digest(path) != digest


def test_file_digest_reads_samples_only(tmp_path, monkeypatch):
    path = tmp_path / "large"
    path.write_bytes(b"")
    os.truncate(path, 2**32)
    read = []

    class Hash:
        def __init__(self, data):
            pass

        def update(self, data):
            read.append(len(data))

        def hexdigest(self):
            return ""

    monkeypatch.setattr(recording_module.hashlib, "sha256", Hash)
    file_digest(path)
    assert read == [2**20, *[2**16] * 16, 2**20]


def test_folder_digest_tells_folders_apart(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        zarr.create_array(tmp_path / name, data=noise(seed=seed), compressors=None)
    a, b, c = (folder_digest(tmp_path / name) for name in "abc")
    assert a == b != c
    with (tmp_path / "b" / "zarr.json").open("a") as file:
        file.write(" ")
    assert folder_digest(tmp_path / "b") != a


def refused(sources, *words):
    """Check that sources are refused with one sentence that has the words."""
    with pytest.raises(InputError) as error:
        open_recording(sources)
    text = str(error.value)
    assert "\n" not in text
    assert not [word for word in words if str(word) not in text], text


def test_sources_that_are_none(tmp_path):
    refused([], "no file is given")
    refused([tmp_path / "gone.tif"], tmp_path / "gone.tif", "does not exist", "check")
    refused([tmp_path], tmp_path, "no files that end in .tif, .tiff, .btf")


@pytest.mark.parametrize("name", ["movie.h5", "movie.avi", "movie", "movie.zarr"])
def test_unknown_kinds(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    refused([tmp_path / name], tmp_path / name, ".tif, .tiff, .btf", ".zarr")


def test_sources_that_do_not_go_together(tmp_path):
    movie = write(tmp_path / "a.tif", noise())
    size = write(tmp_path / "b.tif", noise(field=(53, 37)))
    kind = write(tmp_path / "c.tif", noise(dtype="int16"))
    refused([movie, size], size, "53 x 37", movie, "37 x 53", "one recording")
    refused([movie, kind], kind, "int16", movie, "uint16")
    refused([movie, tmp_path / "." / "a.tif"], movie, "twice")
    for name in ("a.zarr", "b.zarr"):
        zarr.create_array(tmp_path / name, data=noise())
    refused([movie, tmp_path / "a.zarr"], tmp_path / "a.zarr", movie, "alone")
    refused([tmp_path / "b.zarr", tmp_path / "a.zarr"], "a.zarr", "b.zarr", "alone")


def test_a_movie_of_one_frame(tmp_path):
    refused([write(tmp_path / "a.tif", noise(1))], "a.tif", "1 x 37 x 53", "at least 2 frames")


@pytest.mark.parametrize(
    ("shape", "options", "said"),
    [
        ((6, 2, 37, 53), {"imagej": True, "metadata": {"axes": "TCYX"}}, "C 2"),
        ((2, 37, 53), {"imagej": True, "metadata": {"axes": "CYX"}}, "C 2"),
        ((6, 2, 37, 53), {"ome": True, "metadata": {"axes": "TCYX"}}, "C 2"),
        ((6, 3, 2, 37, 53), {"imagej": True, "metadata": {"axes": "TZCYX"}}, "T 6, Z 3, C 2"),
        ((6, 2, 37, 53), {"metadata": {"axes": "TCYX"}}, "T 6, C 2"),
        ((6, 2, 37, 53), {}, "axis 0 6, axis 1 2"),
        ((6, 2, 37, 53), {"metadata": {"axes": "QQYX"}}, "axis 0 6, axis 1 2"),
        ((6, 37, 53), {"metadata": None, "software": "SI.hChannels.channelSave = [1;2]"}, "C 2"),
    ],
)
def test_several_channels(tmp_path, shape, options, said):
    path = tmp_path / "movie.tif"
    tifffile.imwrite(path, np.zeros(shape, "uint16"), photometric="minisblack", **options)
    refused([path], path, said, "Y 37, X 53", "not supported yet", "split")


VOLUMES = {
    "ImageJ": {"imagej": True, "metadata": {"axes": "TZYX"}},
    "OME": {"ome": True, "metadata": {"axes": "TZYX"}},
    "named": {"metadata": {"axes": "TZYX"}},
    "compressed": {"metadata": {"axes": "TZYX"}, "compression": "zlib"},
}


def volumes(n=9, planes=3, seed=0):
    return noise(n * planes, seed=seed).reshape(n, planes, 37, 53)


@pytest.mark.parametrize("writer", VOLUMES)
def test_volumes(tmp_path, writer, reads):
    movie = volumes()
    recording = open_recording([write(tmp_path / "m.tif", movie, **VOLUMES[writer])])
    said = "TIFF, 9 volumes of 3 planes of 37 x 53 px (y, x), uint16, in this order: m.tif"
    assert recording.understood() == said
    summary = recording.summary()
    assert (summary["n_frames"], summary["field"]) == (9, [3, 37, 53])
    assert summary["bytes"] == movie.nbytes
    assert recording.files[0].n_frames == 9
    assert not reads
    np.testing.assert_array_equal(recording.frames.compute(), movie)
    reads.clear()
    box = recording.frames[4:6, 1, 5:9, ::2].compute(scheduler="sync")
    np.testing.assert_array_equal(box, movie[4:6, 1, 5:9, ::2])
    assert reads == [13, 16]


@pytest.mark.parametrize("ome", [True, False])
def test_volumes_whose_planes_come_one_after_the_other(tmp_path, ome):
    movie = volumes()
    path = tmp_path / "m.tif"
    write(path, movie.swapaxes(0, 1).copy(), ome=ome, metadata={"axes": "ZTYX"})
    np.testing.assert_array_equal(open_recording([path]).frames.compute(), movie)


def test_volumes_in_several_files(tmp_path):
    parts = [volumes(5, seed=1), volumes(1, seed=2), volumes(3, seed=3)]
    paths = [tmp_path / f"{i}.tif" for i in range(3)]
    for path, part in zip(paths, parts, strict=True):
        write(path, part, **VOLUMES["ImageJ"])
    recording = open_recording(paths)
    assert [file.n_frames for file in recording.files] == [5, 1, 3]
    np.testing.assert_array_equal(recording.frames.compute(), np.concatenate(parts))
    np.testing.assert_array_equal(
        recording.frames[[8, 5], 2].compute(), np.concatenate(parts)[[8, 5], 2]
    )
    other = write(tmp_path / "other.tif", volumes(4, 2), **VOLUMES["ImageJ"])
    refused([paths[0], other], other, "2 planes", paths[0], "of 3")


def test_a_volume_that_is_cut_off_is_left_out(tmp_path):
    movie = volumes()
    path = tmp_path / "m.tif"
    description = "ImageJ=1.53t\nimages=27\nslices=3\nframes=9\nhyperstack=true\n"
    flat = movie.reshape(27, 37, 53)[:26]
    write(path, flat, description=description, metadata=None)
    recording = open_recording([path])
    np.testing.assert_array_equal(recording.frames.compute(), movie[:8])
    assert recording.understood().endswith(
        f"note: {path} speaks of 27 frames but holds 26\n"
        f"note: {path} ends within a volume; its last 2 planes are left out"
    )


def ome(path, pages, order, parts):
    """Write an OME-TIFF of 2 times and 3 planes whose description is given."""
    description = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="{order}" Type="uint16" '
        'SizeX="53" SizeY="37" SizeC="1" SizeZ="3" SizeT="2">'
        f"{''.join(parts)}</Pixels></Image></OME>"
    )
    return write(path, pages, description=description, metadata=None)


def test_ome_pages_in_another_order_than_that_of_the_axes(tmp_path):
    movie = volumes(2)
    pages = movie.reshape(6, 37, 53)
    part = '<TiffData IFD="{}" FirstT="{}" FirstZ="{}" PlaneCount="1"/>'
    right = [part.format(page, *divmod(page, 3)) for page in range(6)]
    path = ome(tmp_path / "a.ome.tif", pages, "XYCZT", right)
    np.testing.assert_array_equal(open_recording([path]).frames.compute(), movie)
    times_first = [part.format(page, page % 2, page // 2) for page in range(6)]
    turned = movie.swapaxes(0, 1).reshape(6, 37, 53)
    path = ome(tmp_path / "b.ome.tif", turned, "XYCTZ", times_first)
    np.testing.assert_array_equal(open_recording([path]).frames.compute(), movie)
    path = ome(tmp_path / "c.ome.tif", turned, "XYCZT", times_first)
    refused([path], path, "does not hold volume after volume of 3 planes", "anew")
    shared = ['<TiffData IFD="0"><UUID FileName="d.ome.tif">urn:uuid:1</UUID></TiffData>']
    path = ome(tmp_path / "d.ome.tif", pages, "XYCZT", shared)
    refused([path], path, "does not hold volume after volume of 3 planes", "anew")


def test_a_large_field_comes_in_small_blocks(tmp_path):
    path = tmp_path / "m.tif"
    shape = (90, 5, 1024, 1024)
    tifffile.imwrite(path, shape=shape, dtype="uint16", metadata={"axes": "TZYX"})
    assert open_recording([path]).frames.chunks[0] == (*[8] * 11, 2)
    path.unlink()


@pytest.mark.parametrize("axes", ["QYX", "IYX", "TYX", "ZYX"])
@pytest.mark.parametrize("options", [{}, {"imagej": True}, {"ome": True}])
def test_one_axis_of_any_other_name_is_time(tmp_path, axes, options):
    if options and axes in ("QYX", "IYX"):
        axes = "TYX"
    path = write(tmp_path / "movie.tif", noise(6), metadata={"axes": axes}, **options)
    assert open_recording([path]).frames.shape == (6, 37, 53)


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared recordings are not here")
def test_recordings_of_real_microscopes():
    two = open_recording([DATA / "two_photon_real"])
    assert (two.frames.shape, two.frames.dtype) == ((600, 320, 256), np.uint16)
    assert [file.path.name for file in two.files] == ["part_1.tif", "part_2.tif", "part_3.tif"]
    truth = tifffile.imread(DATA / "two_photon_real" / "part_2.tif", key=range(10))
    np.testing.assert_array_equal(two.frames[200:210].compute(), truth)
    one = open_recording([DATA / "one_photon_real" / "movie.zarr"])
    assert (one.frames.shape, one.frames.dtype) == ((1000, 240, 282), np.uint8)
    truth = zarr.open(DATA / "one_photon_real" / "movie.zarr", mode="r")[90:110]
    np.testing.assert_array_equal(one.frames[90:110].compute(), truth)


def test_a_path_the_system_refuses_is_a_sentence(tmp_path):
    with pytest.raises(
        InputError, match=r"cannot be opened \(File name too long\); check the path"
    ):
        open_recording([tmp_path / ("a" * 300 + ".tif")])


def test_notes_follow_what_is_understood(tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", np.zeros((3, 37, 53), np.uint16), photometric="minisblack")
    recording = open_recording([tmp_path / "m.tif"])
    said = "TIFF, 3 frames of 37 x 53 px (y, x), uint16, in this order: m.tif"
    assert recording.understood() == said
    assert replace(recording, notes=("one", "two")).understood() == f"{said}\nnote: one\nnote: two"
