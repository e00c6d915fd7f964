"""What was drawn in layers, against the same shapes and labels written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from napari.layers import Image, Labels, Shapes

from napari_calcium.errors import InputError
from napari_calcium.io.regions import read_regions, regions_from_outlines
from napari_calcium.napari.drawn import (
    Placement,
    chosen_outline,
    drawn_labels,
    drawn_outlines,
    outline_of_shape,
    write_seeds,
)

FIELD = (37, 53)
BOX = np.array([[10, 20], [10, 32], [16, 32], [16, 20]], float)
TRIANGLE = np.array([[3, 4], [3, 12], [11, 6]], float)


def area(outline: Any) -> float:
    y, x = np.asarray(outline).T
    return 0.5 * abs(float(y @ np.roll(x, -1) - x @ np.roll(y, -1)))


def turned(points: Any, degrees: float) -> Any:
    """Return points turned about their middle."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = points.mean(axis=0)
    return (points - middle) @ turn.T + middle


@pytest.mark.parametrize("degrees", [0, 33])
def test_an_ellipse_becomes_its_outline(degrees: float) -> None:
    outline = outline_of_shape(turned(BOX, degrees), "ellipse")
    # an inscribed polygon of 96 points has 0.07 % less area than the ellipse
    assert area(outline) == pytest.approx(np.pi * 6 * 3, rel=1e-3)
    straight = turned(outline, -degrees) - outline.mean(axis=0)
    y, x = straight.T
    np.testing.assert_allclose((y / 3) ** 2 + (x / 6) ** 2, 1)


@pytest.mark.parametrize("kind", ["polygon", "rectangle", "path"])
def test_other_shapes_are_their_points_without_the_time(kind: str) -> None:
    drawn = np.insert(BOX, 0, 7, axis=1)
    np.testing.assert_array_equal(outline_of_shape(drawn, kind), BOX)
    closed = np.vstack((drawn, drawn[:1]))
    np.testing.assert_array_equal(outline_of_shape(closed, kind), BOX)


def test_a_layer_lies_on_the_movie_wherever_both_were_put() -> None:
    movie = Image(np.zeros((5, *FIELD)), scale=(1, 2, 3), translate=(0, 100, -40))
    layer = Shapes([BOX], scale=(0.5, 0.25), translate=(3, 4), rotate=20)
    world = np.array([layer.data_to_world(point) for point in BOX])
    expected = (world - (100, -40)) / (2, 3)
    np.testing.assert_allclose(Placement.between(layer, movie).of(BOX), expected)
    there_and_back = Placement.between(layer, movie).then(Placement.between(movie, layer))
    np.testing.assert_allclose(there_and_back.of(BOX), BOX)


def test_shapes_become_outlines_in_the_movies_pixels() -> None:
    with_time = [np.insert(BOX, 0, 7, axis=1), np.insert(TRIANGLE, 0, 9, axis=1)]
    layer = Shapes(with_time, shape_type=["ellipse", "polygon"], scale=(1, 2, 2))
    movie = Image(np.zeros((20, *FIELD)), scale=(1, 2, 2))
    ellipse, triangle = drawn_outlines(layer, movie)
    np.testing.assert_allclose(ellipse.mean(axis=0), BOX.mean(axis=0))
    np.testing.assert_allclose(triangle, TRIANGLE)
    np.testing.assert_allclose(drawn_outlines(layer)[1], 2 * TRIANGLE)


def test_lines_and_empty_layers_of_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="the layer 'cells of mine' holds no shape; draw an"):
        drawn_outlines(Shapes(name="cells of mine"))
    line = Shapes([BOX, BOX[:2]], shape_type=["polygon", "line"], name="mine")
    with pytest.raises(InputError, match="shape 2 of the layer 'mine' is a line, which encloses"):
        drawn_outlines(line)
    with pytest.raises(InputError, match="shape 1 of the layer 'mine' is a line"):
        drawn_outlines(Shapes([BOX[:2]], shape_type="path", name="mine"))


def painted() -> Any:
    labels = np.zeros(FIELD, np.uint8)
    labels[3:9, 4:12], labels[20:31, 40:46] = 3, 200
    return labels


def test_labels_of_the_field_are_as_they_are() -> None:
    found = drawn_labels(Labels(painted()), FIELD, Image(np.zeros((5, *FIELD))))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, painted())


def test_labels_elsewhere_are_laid_on_the_field() -> None:
    part = Labels(painted()[2:32, 3:], translate=(2, 3))
    np.testing.assert_array_equal(drawn_labels(part, FIELD), painted())
    # of twice the resolution: its pixel (0, 0) has its centre at -0.25 of the movie's
    fine = np.repeat(np.repeat(painted(), 2, axis=0), 2, axis=1)
    layer = Labels(fine, scale=(0.5, 0.5), translate=(-0.25, -0.25))
    np.testing.assert_array_equal(drawn_labels(layer, FIELD), painted())
    moved = Image(np.zeros((5, *FIELD)), scale=(1, 3, 3), translate=(0, -7, 12))
    again = Labels(painted(), scale=(3, 3), translate=(-7, 12))
    np.testing.assert_array_equal(drawn_labels(again, FIELD, moved), painted())


def test_labels_over_time_are_those_of_the_frame_shown() -> None:
    film = np.zeros((9, *FIELD), np.uint16)
    film[6] = painted()
    layer = Labels(film, name="mine")
    np.testing.assert_array_equal(drawn_labels(layer, FIELD, at=(6, 0, 0)), painted())
    with pytest.raises(InputError, match="'mine' holds no label in the field in the frame that"):
        drawn_labels(layer, FIELD, at=(5, 0, 0))
    with pytest.raises(InputError, match="'mine' holds no label in the field; paint"):
        drawn_labels(Labels(np.zeros(FIELD, int), name="mine"), FIELD)


def test_the_chosen_shape_is_the_selected_or_the_only_one() -> None:
    layer = Shapes([BOX, TRIANGLE], shape_type=["ellipse", "path"], name="mine")
    with pytest.raises(InputError, match="2 shapes of the layer 'mine' can be meant"):
        chosen_outline(layer)
    layer.selected_data = {1}
    np.testing.assert_array_equal(chosen_outline(layer), TRIANGLE)
    layer.selected_data = {0}
    assert area(chosen_outline(layer)) == pytest.approx(np.pi * 18, rel=1e-3)
    only = Shapes([TRIANGLE], shape_type="polygon", scale=(2, 2))
    np.testing.assert_array_equal(chosen_outline(only), 2 * TRIANGLE)
    with pytest.raises(InputError, match="no shape of the layer 'none' can be meant"):
        chosen_outline(Shapes(name="none"))


def test_the_chosen_label_is_the_selected_or_the_only_one() -> None:
    layer = Labels(painted(), name="mine")
    layer.selected_label = 200
    outline = chosen_outline(layer)
    # of a mask the contour at a half cuts an eighth of a pixel off at each of four corners
    assert area(outline) == pytest.approx(11 * 6 - 0.5)
    np.testing.assert_allclose(outline.min(axis=0), (19.5, 39.5))
    np.testing.assert_allclose(outline.max(axis=0), (30.5, 45.5))
    layer.selected_label = 7
    with pytest.raises(InputError, match="2 labels of the layer 'mine' can be meant"):
        chosen_outline(layer)
    one = Labels(np.where(painted() == 3, 3, 0), scale=(2, 2))
    assert area(chosen_outline(one)) == pytest.approx(4 * (6 * 8 - 0.5))
    film = Labels(np.stack([np.zeros(FIELD, int), one.data]))
    assert area(chosen_outline(film, at=(1, 0, 0))) == pytest.approx(6 * 8 - 0.5)


@pytest.mark.parametrize("layer", [None, Image(np.zeros(FIELD))], ids=["none", "image"])
def test_without_a_drawing_no_outline_is_chosen(layer: Any) -> None:
    with pytest.raises(InputError, match="no outline is chosen; draw around one cell"):
        chosen_outline(layer)


def test_labels_are_written_as_the_regions_they_are(tmp_path: Path) -> None:
    seeds = write_seeds(Labels(painted()), tmp_path / "mouse 1.zarr", FIELD)
    assert (seeds.path, seeds.count) == (tmp_path / "mouse 1_seeds.tif", 2)
    assert tifffile.imread(seeds.path).dtype == np.int32
    regions = read_regions(seeds.path, FIELD).toarray().T.reshape(-1, *FIELD)
    np.testing.assert_array_equal(regions, [painted() == 3, painted() == 200])


def test_shapes_are_written_as_the_regions_they_are(tmp_path: Path) -> None:
    layer = Shapes([BOX, TRIANGLE], shape_type=["ellipse", "polygon"])
    seeds = write_seeds(layer, tmp_path / "s.zarr", FIELD)
    assert (seeds.path, seeds.count) == (tmp_path / "s_seeds.zip", 2)
    found = read_regions(seeds.path, FIELD).toarray()
    expected = regions_from_outlines(drawn_outlines(layer), FIELD).toarray()
    np.testing.assert_array_equal(found, expected)
    y, x = np.mgrid[: FIELD[0], : FIELD[1]]
    inside = ((y - 13) / 3) ** 2 + ((x - 26) / 6) ** 2 < 0.99
    assert found[:, 0].reshape(FIELD)[inside].all()


def test_what_cannot_be_seeds_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    session = tmp_path / "s.zarr"
    with pytest.raises(InputError, match="no seeds are chosen; paint cells"):
        write_seeds(None, session, FIELD)
    far = Shapes([BOX, BOX + 500], shape_type="polygon", name="mine")
    with pytest.raises(InputError, match="shape 2 of the layer 'mine' holds no pixel of the field"):
        write_seeds(far, session, FIELD)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"s_seeds.tif cannot be written \(No such file"):
        write_seeds(Labels(painted()), tmp_path / "nowhere" / "s.zarr", FIELD)
