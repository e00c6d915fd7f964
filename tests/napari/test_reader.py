"""What is dropped on the window."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr

from napari_calcium.errors import InputError
from napari_calcium.io.recording import open_recording
from napari_calcium.napari.layers import metadata_of
from napari_calcium.napari.reader import napari_get_reader

PLUGIN = "napari-calcium"


@pytest.mark.parametrize("name", ["a.txt", "a.nd2", "folder"])
def test_other_files_are_left_to_others(tmp_path: Path, name: str) -> None:
    assert napari_get_reader(str(tmp_path / name)) is None
    assert napari_get_reader([str(tmp_path / "a.tif"), str(tmp_path / name)]) is None
    assert napari_get_reader([]) is None


def test_a_tiff_opens_lazily(make_napari_viewer_proxy: Any, movie_path: Path) -> None:
    viewer = make_napari_viewer_proxy()
    (layer,) = viewer.open(str(movie_path), plugin=PLUGIN)
    assert isinstance(layer.data, da.Array)
    assert layer.name == "blobs"
    assert layer.data.shape == (200, 37, 53)
    assert metadata_of(layer)["sources"] == [str(movie_path)]
    np.testing.assert_array_equal(layer.data[7], tifffile.imread(movie_path, key=7))


def test_volumes_have_a_slider_of_planes(make_napari_viewer_proxy: Any, tmp_path: Path) -> None:
    volumes = np.random.default_rng(0).integers(0, 900, (9, 3, 37, 53), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "v.tif", volumes, imagej=True, metadata={"axes": "TZYX"})
    viewer = make_napari_viewer_proxy()
    (layer,) = viewer.open(str(tmp_path / "v.tif"), plugin=PLUGIN)
    assert layer.data.shape == volumes.shape
    assert layer.axis_labels == ("time", "z", "y", "x")
    assert [int(each[1]) for each in viewer.dims.range[:2]] == [8, 2]
    viewer.dims.current_step = (5, 2, 0, 0)
    np.testing.assert_array_equal(np.asarray(layer.data[5, 2]), volumes[5, 2])


def test_several_files_are_one_recording(
    make_napari_viewer_proxy: Any, movie_path: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / "run_10.tif", tmp_path / "run_2.tif"]
    for path in paths:
        shutil.copy(movie_path, path)
    viewer = make_napari_viewer_proxy()
    (layer,) = viewer.open([str(path) for path in paths], stack=True, plugin=PLUGIN)
    assert layer.data.shape == (400, 37, 53)
    assert "in this order: run_2.tif, run_10.tif" in metadata_of(layer)["understood"]


def test_a_session_opens_with_everything_in_it(
    make_napari_viewer_proxy: Any, finished: Path
) -> None:
    viewer = make_napari_viewer_proxy()
    layers = viewer.open(str(finished), plugin=PLUGIN)
    assert [layer.name for layer in layers][-2:] == ["cells", "outlines"]
    assert {metadata_of(layer)["session"] for layer in layers} == {str(finished)}
    assert viewer.dims.range[0][:2] == (0, 199)
    features = viewer.layers["cells"].features
    scores = ["snr", "spatial_correlation", "cnn_probability", "size"]
    decided = ["accepted", "reason", "choice"]
    assert list(features) == ["index", "cell_id", *scores, *decided, "f0_floored"]


def test_a_zarr_that_is_no_session_is_a_movie(
    make_napari_viewer_proxy: Any, tmp_path: Path
) -> None:
    path = tmp_path / "raw.zarr"
    frames = np.arange(20 * 37 * 53, dtype=np.uint16).reshape(20, 37, 53)
    zarr.create_array(path, data=frames, dimension_names=("t", "y", "x"))
    viewer = make_napari_viewer_proxy()
    (layer,) = viewer.open(str(path), plugin=PLUGIN)
    assert layer.name == "raw"
    assert layer.data.shape == frames.shape


def a_text(path: Path) -> None:
    path.write_text("not an image")


def a_cut(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((20, 37, 53), np.uint16))
    path.write_bytes(path.read_bytes()[:300])


def of_floats(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((20, 37, 53), np.float32))


@pytest.mark.parametrize("made", [a_text, a_cut, of_floats])
def test_what_cannot_be_read_is_told_in_the_sentence_of_the_command_line(
    make_napari_viewer_proxy: Any, notifications: Any, tmp_path: Path, made: Callable[[Path], None]
) -> None:
    path = tmp_path / "broken.tif"
    made(path)
    with pytest.raises(InputError) as error:
        open_recording([path])
    viewer = make_napari_viewer_proxy()
    viewer.open(str(path), plugin=PLUGIN)
    assert notifications() == [str(error.value)]
    assert len(viewer.layers) == 0


def test_the_sample_opens_and_its_frame_rate_is_known(make_napari_viewer_proxy: Any) -> None:
    viewer = make_napari_viewer_proxy()
    (layer,) = viewer.open_sample(PLUGIN, "two_photon")
    assert metadata_of(layer)["frame_rate"] == 15.0
    assert layer.data.ndim == 3
