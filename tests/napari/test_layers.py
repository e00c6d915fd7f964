"""Sessions and recordings as layer data, without a window."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import scipy.sparse as sp
import tifffile
from napari.utils.colormaps.standardize_color import transform_color
from skimage.draw import polygon2mask

from napari_calcium.io.choices import choose
from napari_calcium.io.recording import open_recording
from napari_calcium.io.session import Session
from napari_calcium.napari.decided import COLOURS
from napari_calcium.napari.layers import (
    KEY,
    cells_preview_layer,
    contrast_limits,
    label_image,
    layer_digests,
    outlines,
    preview_layer,
    recording_layer,
    recording_offset,
    session_layers,
)
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run


def discs(shape: tuple[int, int], *cells: tuple[float, float, float]) -> sp.csc_array:
    """Return a Gaussian footprint (y, x, sd) of unit norm for each cell."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    images = [np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * sd**2)) for cy, cx, sd in cells]
    kept = [np.where(image > 0.05, image, 0) for image in images]
    columns = [(image / np.linalg.norm(image)).ravel() for image in kept]
    return sp.csc_array(np.stack(columns, axis=1).astype(np.float32))


def named(layers: list[Any]) -> dict[str, Any]:
    return {attributes["name"]: (data, attributes, kind) for data, attributes, kind in layers}


def test_a_pixel_is_of_the_cell_that_weighs_most() -> None:
    footprints = discs((37, 53), (10, 20, 3.0), (10, 26, 3.0))
    image = label_image(footprints, np.array([4, 9]), (37, 53))
    first, second = footprints.toarray().T.reshape(2, 37, 53)
    assert set(np.unique(image)) == {0, 4, 9}
    assert image[10, 20] == 4
    assert image[10, 26] == 9
    assert np.all(first[image == 4] >= second[image == 4])
    assert np.all(second[image == 9] >= first[image == 9])
    inside = (first > 0.2 * first.max()) | (second > 0.2 * second.max())
    np.testing.assert_array_equal(image > 0, inside)


def test_no_cells_make_an_empty_image() -> None:
    image = label_image(sp.csc_array((37 * 53, 0), dtype=np.float32), np.arange(0), (37, 53))
    assert image.shape == (37, 53)
    assert not image.any()


def test_an_outline_encloses_the_pixels_above_its_level() -> None:
    footprints = discs((37, 53), (12, 30, 3.0))
    (polygon,) = outlines(footprints, (37, 53))
    image = footprints.toarray().reshape(37, 53)
    inside = polygon2mask((37, 53), polygon)
    different = inside != (image > 0.25 * image.max())
    # find_contours interpolates between pixels, and vertices are left out where the line stays
    # within 0.2 px; only pixels on the line itself may differ
    assert different.sum() <= 2
    assert 8 <= len(polygon) <= 20  # of some 40 at which the line crosses from pixel to pixel


def test_an_outline_closes_at_the_border_of_the_field() -> None:
    (polygon,) = outlines(discs((37, 53), (0, 52, 4.0)), (37, 53))
    assert polygon.min() >= -0.5
    assert polygon[:, 0].max() < 10
    assert polygon[:, 1].max() <= 52.5
    assert polygon2mask((37, 53), polygon)[1, 51]


def test_of_a_footprint_of_two_parts_the_longer_outline_is_taken() -> None:
    two = discs((37, 53), (10, 10, 4.0)) + 0.15 * discs((37, 53), (30, 45, 1.0))
    (polygon,) = outlines(sp.csc_array(two), (37, 53))
    assert polygon[:, 1].max() < 30


def test_contrast_limits_read_three_frames_only() -> None:
    read: list[int] = []

    def block(index: int) -> Any:
        read.append(index)
        return np.full((1, 37, 53), index)

    from dask import delayed

    parts = [da.from_delayed(delayed(block)(i), (1, 37, 53), int) for i in range(9)]
    assert contrast_limits(da.concatenate(parts)) == (0.0, 8.0)
    assert sorted(read) == [0, 4, 8]


def test_contrast_limits_of_volumes_read_one_plane_of_three() -> None:
    volumes = np.zeros((9, 5, 37, 53))
    volumes[[0, 4, 8], 2] = np.array([1, 2, 8])[:, None, None]
    assert contrast_limits(volumes) == (1.0, 8.0)


def test_volumes_are_lazy_layers_of_four_axes(tmp_path: Path) -> None:
    volumes = np.random.default_rng(0).integers(0, 900, (9, 3, 37, 53), dtype=np.uint16)
    path = tmp_path / "v.tif"
    tifffile.imwrite(path, volumes, imagej=True, metadata={"axes": "TZYX"})
    recipe = Recipe({"import": {"frame_rate": 2.5}})
    run(tmp_path / "s.zarr", [path], recipe=recipe, until="import")
    layers = session_layers(Session(tmp_path / "s.zarr"))
    layers.append(recording_layer(open_recording([path]), [str(path)]))
    for data, attributes, kind in layers:
        assert (kind, attributes["axis_labels"]) == ("image", ("time", "z", "y", "x"))
        assert isinstance(data, da.Array)
        np.testing.assert_array_equal(data[4, 1].compute(), volumes[4, 1])
        low, high = attributes["contrast_limits"]
        np.testing.assert_allclose((low, high), np.percentile(volumes[[0, 4, 8], 1], (1, 99.8)))
    assert len(layers) == 2


def test_contrast_limits_leave_out_what_is_not_a_number() -> None:
    assert contrast_limits(np.array([[np.nan, 2.0], [2.0, np.inf]])) == (2.0, 3.0)
    assert contrast_limits(np.full((2, 3), np.nan)) == (0.0, 1.0)


def test_a_recording_is_lazy_and_says_what_was_understood(movie_path: Path) -> None:
    data, attributes, kind = recording_layer(open_recording([movie_path]), [str(movie_path)])
    assert kind == "image"
    assert isinstance(data, da.Array)
    assert attributes["name"] == "blobs"
    low, high = attributes["contrast_limits"]
    assert 50 < low < 130 < high < 500  # rest of 100 to 140 counts, transients of up to 300 more
    about = attributes["metadata"][KEY]
    assert about["sources"] == [str(movie_path)]
    assert about["understood"].startswith("TIFF, 200 frames of 37 x 53 px (y, x), uint16, in this")


def test_a_session_becomes_layers_from_the_movie_up(session: Session) -> None:
    layers = named(session_layers(session))
    assert list(layers) == [
        "recording",
        "corrected",
        "mean",
        "max",
        "std",
        "correlation",
        "max correlation",
        "cells",
        "outlines",
    ]
    visible = [name for name, layer in layers.items() if layer[1].get("visible", True)]
    assert visible == ["corrected", "cells", "outlines"]
    for name in ("recording", "corrected"):
        assert isinstance(layers[name][0], da.Array)
    assert all("contrast_limits" in layer[1] for layer in layers.values() if layer[2] == "image")
    assert all("scale" not in layer[1] for layer in layers.values())


def test_images_of_the_filtered_movie_are_shown_where_they_were_made(
    finished: Path, tmp_path: Path
) -> None:
    session = Session(shutil.copytree(finished, tmp_path / "s.zarr"))
    recipe = Recipe.of_session(session).with_value("summary_images.filter_radius", 4.0)
    run(session.path, recipe=recipe, until="summary_images")
    layers, before = (named(session_layers(each)) for each in (session, Session(finished)))
    assert [name for name in layers if name not in before] == [
        "filtered correlation",
        "peak to noise",
    ]
    for name in ("filtered correlation", "peak to noise"):
        image, attributes, kind = layers[name]
        assert (kind, image.shape, attributes["visible"]) == ("image", (37, 53), False)
        assert attributes["contrast_limits"] == contrast_limits(image)


def test_labels_are_identities_plus_one_with_their_scores(session: Session) -> None:
    image, attributes, kind = named(session_layers(session))["cells"]
    features, quality = attributes["features"], session.quality()
    assert kind == "labels"
    np.testing.assert_array_equal(features["index"], session.read("source_extraction/cell_id") + 1)
    np.testing.assert_array_equal(features["snr"], quality.snr)
    np.testing.assert_array_equal(features["accepted"], quality.accepted)
    np.testing.assert_array_equal(features["size"], quality.size)
    assert [bool(reason) for reason in features["reason"]] == (~quality.accepted).tolist()
    np.testing.assert_array_equal(features["f0_floored"], session.read("dff/floored"))
    assert set(np.unique(image)) <= {0, *features["index"]}
    components = session.components()
    for row, label in enumerate(features["index"]):
        y, x = np.unravel_index(np.argmax(components.footprint(row)), components.shape)
        others = [components.footprint(other)[y, x] for other in range(components.n_cells)]
        if np.argmax(others) == row:
            assert image[y, x] == label


def test_outlines_are_of_all_cells_in_the_colours_of_the_decision(session: Session) -> None:
    polygons, attributes, kind = named(session_layers(session))["outlines"]
    quality = session.quality()
    assert kind == "shapes"
    assert len(polygons) == len(quality.accepted) >= 4
    assert 0 < quality.accepted.sum() < len(quality.accepted)
    np.testing.assert_array_equal(
        attributes["features"]["cell_id"], session.read("source_extraction/cell_id")
    )
    yellow, red = (transform_color(COLOURS[accepted, False])[0] for accepted in (True, False))
    expected = np.where(quality.accepted[:, None], yellow, red)
    np.testing.assert_array_equal(attributes["edge_color"], expected)


def test_labels_have_the_colours_of_the_outlines(session: Session) -> None:
    layers = named(session_layers(session))
    colormap, features = (layers["cells"][1][name] for name in ("colormap", "features"))
    shown = colormap.map(features["index"])
    np.testing.assert_array_equal(shown, layers["outlines"][1]["edge_color"])
    np.testing.assert_array_equal(colormap.map(0), np.zeros(4))


def test_choices_of_a_person_are_shown_over_the_scores(finished: Path, tmp_path: Path) -> None:
    session = Session(shutil.copytree(finished, tmp_path / "s.zarr"))
    accepted, cell_id = session.quality().accepted, session.read("source_extraction/cell_id")
    kept, dropped = (cell_id[np.flatnonzero(accepted == was)[0]] for was in (True, False))
    choose(session, [kept], False)
    choose(session, [dropped], True)
    layers = named(session_layers(session))
    features, colours = layers["cells"][1]["features"], layers["outlines"][1]["edge_color"]
    for chosen, now in ((kept, False), (dropped, True)):
        row = int(np.flatnonzero(cell_id == chosen)[0])
        assert features["accepted"][row] == now
        assert features["choice"][row] == ("accept" if now else "reject")
        assert features["reason"][row] == ("" if now else "by hand")
        np.testing.assert_array_equal(colours[row], transform_color(COLOURS[now, True])[0])
    by_hand = np.isin(cell_id, [kept, dropped])
    assert all(choice == "" for choice in features["choice"][~by_hand])
    np.testing.assert_array_equal(features["accepted"][~by_hand], accepted[~by_hand])


def test_an_unfinished_session_shows_what_there_is(tmp_path: Path) -> None:
    assert session_layers(Session.create(tmp_path / "s.zarr", {"source": []})) == []


def test_only_the_layers_asked_for_are_made(session: Session) -> None:
    assert [layer[1]["name"] for layer in session_layers(session, ["cells"])] == ["cells"]
    assert len(layer_digests(session)) == len(session_layers(session))


def test_the_recording_lies_where_a_cropped_movie_was_cut_out(cropped: Path) -> None:
    session = Session(cropped)
    layers = named(session_layers(session))
    recorded, attributes, _ = layers["recording"]
    corrected = layers["corrected"][0]
    top, left = recording_offset(session)
    (y0, y1), (x0, x1) = session.group_attrs("motion_correction")["valid_region"]
    assert (-top, -left) == (y0, x0)
    assert corrected.shape[1:] == (y1 - y0, x1 - x0) != recorded.shape[1:]
    assert attributes["translate"] == (0, top, left)
    assert "translate" not in layers["corrected"][1]
    # the same cells at the same places of the canvas: the means are alike to motion of some px
    mean = np.asarray(recorded[..., y0:y1, x0:x1]).mean(axis=0)
    assert np.corrcoef(mean.ravel(), np.asarray(corrected).mean(axis=0).ravel())[0, 1] > 0.8


def test_where_the_recording_lies_is_a_part_of_its_digest(session: Session, cropped: Path) -> None:
    plain, moved = (layer_digests(each) for each in (session, Session(cropped)))
    assert recording_offset(session) == (0, 0)
    assert plain["movie/frames"] == session.record("movie").digest
    assert moved["movie/frames"] == plain["movie/frames"] + str(recording_offset(Session(cropped)))


def test_a_preview_lies_on_the_recording_at_its_frames() -> None:
    data, attributes, kind = preview_layer(np.zeros((20, 3, 37, 53)), 40, (-2, -5), (1.0, 9.0))
    assert (kind, data.shape) == ("image", (20, 3, 37, 53))
    assert attributes["translate"] == (40, 0, -2, -5)
    assert attributes["contrast_limits"] == (1.0, 9.0)
    assert attributes["axis_labels"] == ("time", "z", "y", "x")


def test_cells_of_a_preview_are_labels_from_1_apart_from_those_of_the_session() -> None:
    weights = np.zeros((6, 2), np.float32)
    weights[[0, 1], 0], weights[[4, 5], 1] = 1, 0.5
    data, attributes, kind = cells_preview_layer(sp.csc_array(weights), (2, 3))
    assert kind == "labels"
    np.testing.assert_array_equal(data, [[1, 1, 0], [0, 2, 2]])
    assert attributes["name"] == "preview of cells"
    assert attributes["metadata"] == {KEY: {"cells_preview": True}}


def test_noise_and_marks_are_in_the_table_where_spikes_were_inferred(
    session: Session, rated: Session
) -> None:
    without, with_rates = layer_digests(session), layer_digests(rated)
    assert with_rates["cells"] == without["cells"] + rated.record("spike_inference").digest
    assert {**with_rates, "cells": ""} == {**without, "cells": ""}
    table = named(session_layers(rated, ["cells"]))["cells"][1]["features"]
    np.testing.assert_array_equal(table["noise_level"], rated.spike_noise_level())
    assert list(table["spike_marks"]) == rated.spike_marks()
    assert "noise_level" not in named(session_layers(session, ["cells"]))["cells"][1]["features"]
