"""TIFF stacks against the arrays they were written from; equality is exact throughout."""

from __future__ import annotations

import importlib.util
import itertools
import pickle
import time

import numpy as np
import pytest
import tifffile

from napari_calcium.errors import InputError
from napari_calcium.io.tiff import TiffFrames, read_stack

FIELD = (37, 53)

WRITERS = {
    "plain": {},
    "BigTIFF": {"bigtiff": True},
    "big-endian": {"byteorder": ">"},
    "big-endian BigTIFF": {"byteorder": ">", "bigtiff": True},
    "strips": {"rowsperstrip": 5},
    "one page for all": {"truncate": True, "metadata": {"axes": "TYX"}},
    "OME": {"ome": True, "metadata": {"axes": "TYX"}},
    "no description": {"metadata": None},
    "zlib": {"compression": "zlib"},
    "zlib, big-endian": {"compression": "zlib", "byteorder": ">"},
    "zlib, strips": {"compression": "zlib", "rowsperstrip": 7},
    "predictor": {"compression": "zlib", "predictor": True},
    "lzma": {"compression": "lzma"},
    "tiled": {"tile": (16, 32)},
    "tiled, big-endian": {"tile": (32, 16), "byteorder": ">"},
    "tiled, zlib": {"tile": (16, 16), "compression": "zlib"},
    "singleton axes": {"metadata": {"axes": "TCZYX"}},
}


def noise(dtype, n=9, field=FIELD, seed=0):
    """Return frames over the whole range of a type, its ends among them."""
    info = np.iinfo(dtype)
    values = np.random.default_rng(seed).integers(
        info.min, info.max, (n, *field), dtype, endpoint=True
    )
    values[0, 0, :2] = values[-1, -1, -2:] = info.min, info.max
    return values


def write(path, movie, **options):
    if len(options.get("metadata", "") or "") and options["metadata"].get("axes") == "TCZYX":
        movie = movie[:, None, None]
    tifffile.imwrite(path, movie, photometric="minisblack", **options)
    return path


def opened(*paths):
    return TiffFrames(tuple(read_stack(path) for path in paths))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
@pytest.mark.parametrize("writer", WRITERS)
def test_every_pixel_is_read_as_written(tmp_path, writer, dtype):
    movie = noise(dtype)
    frames = opened(write(tmp_path / "movie.tif", movie, **WRITERS[writer]))
    assert frames.shape == movie.shape
    assert frames.dtype == frames[:].dtype == movie.dtype
    assert frames.dtype.isnative
    np.testing.assert_array_equal(frames[:], movie)


@pytest.mark.parametrize("writer", ["plain", "strips", "zlib", "tiled", "big-endian"])
def test_any_box_is_read_as_numpy_cuts_it(tmp_path, writer):
    movie = [noise("int16", n, seed=n) for n in (4, 1, 7)]
    paths = [write(tmp_path / f"{len(part)}.tif", part, **WRITERS[writer]) for part in movie]
    frames, truth = opened(*paths), np.concatenate(movie)
    rng = np.random.default_rng(1)
    for _ in range(60):
        index = tuple(
            int(rng.integers(-n, n))
            if rng.random() < 0.3
            else slice(*rng.integers(-n - 2, n + 2, 2), rng.choice([1, 2, 5, -1, -3]))
            for n in truth.shape
        )[: rng.integers(1, 4)]
        np.testing.assert_array_equal(frames[index], truth[index])
    np.testing.assert_array_equal(frames[[9, 3, -1, 3], ::-2], truth[[9, 3, -1, 3], ::-2])
    np.testing.assert_array_equal(frames[4, 5:9, [50, 1]], truth[4, 5:9][:, [50, 1]])
    with pytest.raises(IndexError):
        frames[12]


def test_imagej_file_keeps_values_above_the_signed_range(tmp_path):
    movie = noise("uint16", 12)
    path = tmp_path / "movie.tif"
    tifffile.imwrite(path, movie, imagej=True, metadata={"axes": "TYX", "finterval": 0.05})
    frames = opened(path)
    assert movie.max() == 65535
    np.testing.assert_array_equal(frames[:], movie)
    assert frames.stacks[0].metadata.frame_rate == pytest.approx(20.0, rel=1e-12)


def imagej_of_one_page(path, images, held, extra=0):
    """Write an ImageJ file of a single page that speaks of `images` frames and holds `held`."""
    movie = noise("uint16", 3)
    description = f"ImageJ=1.53t\nimages={images}\nframes={images}\nloop=false\n"
    tifffile.imwrite(
        path, movie[0], description=description, metadata=None, byteorder=">", software=False
    )
    with tifffile.TiffFile(path) as file:
        start = file.pages.first.dataoffsets[0]
    with path.open("r+b") as file:
        assert start + movie[0].nbytes == path.stat().st_size
        file.truncate(start + held * movie[0].nbytes + extra)
        for frame, picture in ((0, movie[0]), (1, movie[1]), (held - 1, movie[2])):
            file.seek(start + frame * picture.nbytes)
            file.write(picture.astype(">u2").tobytes())
    return movie


def test_imagej_above_4_gb_has_one_page_and_over_a_million_frames(tmp_path):
    path = tmp_path / "movie.tif"
    movie = imagej_of_one_page(path, 1_100_000, 1_100_000)  # sparse: takes no room on disk
    assert path.stat().st_size > 2**32
    begin = time.perf_counter()
    frames = opened(path)
    assert time.perf_counter() - begin < 5, "headers alone take a moment, 4 GB do not"
    assert frames.shape == (1_100_000, *FIELD)
    np.testing.assert_array_equal(frames[:2], movie[:2])
    np.testing.assert_array_equal(frames[-1], movie[2])
    assert not frames[70_000].any()
    assert len(pickle.dumps(frames)) < 2000


@pytest.mark.parametrize(("images", "held", "extra"), [(500, 40, 17), (10, 40, 0), (40, 40, 100)])
def test_number_of_frames_is_what_the_bytes_hold(tmp_path, images, held, extra):
    path = tmp_path / "movie.tif"
    movie = imagej_of_one_page(path, images, held, extra)
    frames = opened(path)
    assert len(frames[:]) == frames.shape[0] == held
    np.testing.assert_array_equal(frames[-1], movie[2])
    notes = frames.stacks[0].notes
    assert (not notes) == (images == held)
    assert images == held or f"speaks of {images} frames but holds {held}" in notes[0]


@pytest.mark.parametrize(("said", "noted"), [(30, True), (3, False)])
def test_pages_count_whatever_the_description_says(tmp_path, said, noted):
    path = tmp_path / "movie.tif"
    description = f"ImageJ=1.53t\nimages={said}\nslices={said}\n"
    tifffile.imwrite(
        path,
        noise("uint8", 9),
        photometric="minisblack",
        metadata=None,
        description=description,
    )
    stack = read_stack(path)
    assert len(stack.offsets) == 9
    assert bool(stack.notes) == noted


def test_more_than_65535_pages(tmp_path):
    movie = noise("uint8", 70_000, (3, 5))
    frames = opened(write(tmp_path / "movie.tif", movie))
    assert frames.shape == movie.shape
    np.testing.assert_array_equal(frames[65_530:65_540], movie[65_530:65_540])
    np.testing.assert_array_equal(frames[::9999, 1:, 2], movie[::9999, 1:, 2])


def test_frames_appended_one_by_one(tmp_path):
    movie = noise("uint16", 20)
    for name, contiguous in (("apart", False), ("together", True)):
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as file:
            for picture in movie:
                file.write(picture, contiguous=contiguous)
        np.testing.assert_array_equal(opened(tmp_path / f"{name}.tif")[:], movie)


def test_pages_at_uneven_distances(tmp_path):
    """As ScanImage writes them: each page with a description of its own length."""
    movie = noise("int16", 6)
    with tifffile.TiffWriter(tmp_path / "movie.tif") as file:
        for i, picture in enumerate(movie):
            file.write(picture, description="x" * (3 * i**2), metadata=None, contiguous=False)
    frames = opened(tmp_path / "movie.tif")
    assert isinstance(frames.stacks[0].offsets, tuple)
    np.testing.assert_array_equal(frames[:], movie)


def test_strips_of_one_page_out_of_order(tmp_path):
    movie = noise("uint16", 5)
    path = write(tmp_path / "movie.tif", movie, rowsperstrip=12)
    with tifffile.TiffFile(path, mode="r+b") as file:
        tag = file.pages[3].tags[273]
        first, second, *others = tag.value
        tag.overwrite((second, first, *others))
    movie[3, :24] = np.concatenate([movie[3, 12:24], movie[3, :12]])
    np.testing.assert_array_equal(opened(path)[:], movie)


@pytest.mark.parametrize("writer", ["plain", "zlib"])
def test_only_the_frames_asked_for_are_read(tmp_path, writer):
    """Everything but one frame's own bytes is overwritten after opening; the frame is intact."""
    movie = noise("uint16", 9)
    path = write(tmp_path / "movie.tif", movie, **WRITERS[writer])
    frames = opened(path)
    with tifffile.TiffFile(path) as file:
        spans = [(page.dataoffsets[0], page.databytecounts[0]) for page in file.pages]
    with path.open("r+b") as file:
        for frame, (start, length) in enumerate(spans):
            if frame != 4:
                file.seek(start)
                file.write(b"\xff" * length)
    np.testing.assert_array_equal(frames[4, 3:9], movie[4, 3:9])


def test_scanimage_description(tmp_path):
    settings = (
        "SI.hChannels.channelSave = 1\nSI.hFastZ.enable = false\n"
        "SI.hStackManager.numSlices = 30\nSI.hScan2D.logAverageFactor = 2\n"
        "SI.hRoiManager.scanFrameRate = 30.0\nSI.hRoiManager.scanVolumeRate = 30.0"
    )
    path = write(tmp_path / "movie.tif", noise("int16"), metadata=None, software=settings)
    said = read_stack(path).metadata
    assert said.frame_rate == pytest.approx(15.0), "frames are averages of two"
    assert said.axes == {"Z": 1, "C": 1}
    settings = settings.replace("= 1\n", "= [1;2]\n").replace("false", "true")
    path = write(tmp_path / "two.tif", noise("int16"), metadata=None, software=settings)
    assert read_stack(path).metadata.axes == {"Z": 30, "C": 2}


def test_ome_description(tmp_path):
    metadata = {
        "axes": "TYX",
        "TimeIncrement": 50.0,
        "TimeIncrementUnit": "ms",
        "PhysicalSizeX": 650.0,
        "PhysicalSizeXUnit": "nm",
    }
    path = write(tmp_path / "movie.ome.tif", noise("uint16"), ome=True, metadata=metadata)
    said = read_stack(path).metadata
    assert said.frame_rate == pytest.approx(20.0)
    assert said.pixel_size == pytest.approx(0.65)
    assert said.axes["T"] == said.declared == 9


@pytest.mark.parametrize("unit", ["micron", "um", "\\u00B5m"])
def test_imagej_description(tmp_path, unit):
    path = tmp_path / "movie.tif"
    metadata = {"axes": "TYX", "unit": unit, "fps": 12.5}
    tifffile.imwrite(
        path, noise("uint16"), imagej=True, metadata=metadata, resolution=(1 / 0.8, 1 / 0.8)
    )
    said = read_stack(path).metadata
    assert said.frame_rate == pytest.approx(12.5)
    assert said.pixel_size == pytest.approx(0.8, rel=1e-6), "resolutions are fractions of integers"


def test_resolution_is_a_pixel_size_only_with_a_unit(tmp_path):
    movie = noise("uint16")
    options = {"resolution": (2.0, 2.0), "resolutionunit": "micrometer"}
    path = write(tmp_path / "movie.tif", movie, **options)
    assert read_stack(path).metadata.pixel_size == pytest.approx(0.5)
    options["resolutionunit"] = "inch"
    path = write(tmp_path / "inch.tif", movie, **options)
    assert read_stack(path).metadata.pixel_size is None


def test_white_as_zero_is_noted(tmp_path):
    tifffile.imwrite(tmp_path / "movie.tif", noise("uint16"), photometric="miniswhite")
    assert "0 is white" in read_stack(tmp_path / "movie.tif").notes[0]


def test_description_that_cannot_be_understood_is_left_aside(tmp_path):
    for i, text in enumerate(('{"shape": 7}', "<OME><broken OME>", "ImageJ=\nimages=nan\n")):
        path = tmp_path / f"{i}.tif"
        tifffile.imwrite(
            path, noise("uint16"), photometric="minisblack", metadata=None, description=text
        )
        assert len(read_stack(path).offsets) == 9


def refused(path, *words):
    """Check that a file is refused with one sentence that names it and has the words."""
    with pytest.raises(InputError) as error:
        read_stack(path)
    text = str(error.value)
    assert str(path) in text
    assert "\n" not in text
    assert not [word for word in words if word not in text], text


@pytest.mark.parametrize("content", [b"", b"II", b"frame,value\n1,2\n" * 50, b"II*\0\0\0\0\0"])
def test_file_that_is_no_tiff(tmp_path, content):
    path = tmp_path / "notes.tif"
    path.write_bytes(content)
    refused(path, "not a TIFF file", "copy it again")


@pytest.mark.parametrize("writer", ["plain", "BigTIFF", "zlib", "tiled", "strips", "OME"])
def test_file_cut_off_anywhere(tmp_path, writer):
    """A prefix of a file either is refused or, if only padding is missing, is read in full."""
    movie = noise("uint16", 4, (11, 17))
    whole = write(tmp_path / "whole.tif", movie, **WRITERS[writer]).read_bytes()
    path = tmp_path / "cut.tif"
    refusals = 0
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        try:
            frames = opened(path)
        except InputError:
            refusals += 1
        else:
            np.testing.assert_array_equal(frames[:], movie)
    assert refusals > 0.9 * len(range(0, len(whole), 13))


def test_damaged_headers_never_raise_anything_but_input_errors(tmp_path):
    movie = noise("uint16", 4, (11, 17))
    for writer in ("plain", "zlib", "strips"):
        whole = write(tmp_path / "whole.tif", movie, **WRITERS[writer]).read_bytes()
        with tifffile.TiffFile(tmp_path / "whole.tif") as file:
            heads = [range(8), *(range(p.offset, p.offset + 200) for p in file.pages)]
        rng = np.random.default_rng(0)
        for place in itertools.chain(*(head[:: rng.integers(1, 3)] for head in heads)):
            damaged = bytearray(whole)
            if place >= len(damaged):
                continue
            damaged[place] ^= int(rng.integers(1, 256))
            path = tmp_path / "damaged.tif"
            path.write_bytes(damaged)
            try:
                frames = opened(path)
                if np.prod(frames.shape, dtype=float) < 1e7:
                    frames[:]
            except InputError:
                continue


def test_chain_of_pages_that_bites_its_tail(tmp_path):
    path = write(tmp_path / "movie.tif", noise("uint16", 4))
    with tifffile.TiffFile(path) as file:
        first, last = file.pages[0].offset, file.pages[3].offset
    data = bytearray(path.read_bytes())
    count = int.from_bytes(data[last : last + 2], "little")
    data[last + 2 + 12 * count :][:4] = first.to_bytes(4, "little")
    data[last + 2 + 12 * count : last + 6 + 12 * count] = first.to_bytes(4, "little")
    path.write_bytes(data)
    refused(path, "cut off after frame 4")


def test_colour_picture(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, *FIELD, 3), "uint8"), photometric="rgb")
    refused(tmp_path / "a.tif", "colour", "3 samples", "grey")


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "bool", "uint64", "int64"])
def test_types_that_are_not_recorded(tmp_path, dtype):
    path = write(tmp_path / "movie.tif", np.zeros((5, *FIELD), dtype))
    refused(path, "pixels of type", dtype, "8, 16 or 32 bit integers")


def test_frames_of_different_size_or_type(tmp_path):
    for name, other in (("size", noise("uint16", 1, (37, 54))), ("type", noise("uint8", 1))):
        path = tmp_path / f"{name}.tif"
        with tifffile.TiffWriter(path) as file:
            for picture in (*noise("uint16", 4), other[0]):
                file.write(picture, contiguous=False)
        shape = "x".join(map(str, other.shape[1:])).replace("x", " x ")
        refused(path, "frame 4 of", f"{shape} px of {other.dtype}", "37 x 53 px of uint16", "split")


def test_frames_compressed_in_different_ways(tmp_path):
    path = tmp_path / "movie.tif"
    with tifffile.TiffWriter(path) as file:
        for compression in (None, None, "zlib"):
            file.write(noise("uint16", 1)[0], contiguous=False, compression=compression)
    refused(path, "frame 2 of", "save the movie anew")


@pytest.mark.skipif(
    importlib.util.find_spec("imagecodecs") is not None, reason="imagecodecs is installed"
)
def test_compression_that_needs_another_package(tmp_path):
    path = write(tmp_path / "movie.tif", noise("uint16"))
    with tifffile.TiffFile(path, mode="r+b") as file:
        for page in file.pages:
            page.tags[259].overwrite(5)
    refused(path, "LZW", "install the package imagecodecs")


@pytest.mark.parametrize("writer", ["plain", "zlib"])
def test_file_that_changes_or_goes_after_it_was_opened(tmp_path, writer):
    path = write(tmp_path / "movie.tif", noise("uint16"), **WRITERS[writer])
    frames = opened(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="has changed since it was opened"):
        frames[0]
    path.unlink()
    with pytest.raises(InputError, match="can no longer be read"):
        frames[0]
