"""The patches as a layer, against those in which cells are searched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from napari_calcium.extraction.choosing import quilt
from napari_calcium.extraction.patches import cut
from napari_calcium.napari.quilt import Quilt, quilt_layer

FIELD = (37, 113)


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any) -> Any:
    viewer = make_napari_viewer_proxy()
    viewer.add_image(np.zeros((5, *FIELD)), name="movie")
    return viewer


def test_cores_and_halos_are_drawn_at_the_pixels_edges() -> None:
    data, _, kind = quilt_layer(quilt(FIELD, 40, 6))
    patches = cut(FIELD, 40, 6)
    assert kind == "shapes"
    assert len(data) == 2 * len(patches) == 6
    spans = [patch.halo for patch in patches] + [patch.core for patch in patches]
    for corners, (rows, columns) in zip(data, spans, strict=True):
        np.testing.assert_array_equal(
            np.min(corners, axis=0), (rows.start - 0.5, columns.start - 0.5)
        )
        np.testing.assert_array_equal(
            np.max(corners, axis=0), (rows.stop - 0.5, columns.stop - 0.5)
        )


def test_the_quilt_is_shown_renewed_and_removed(viewer: Any) -> None:
    shown = Quilt(viewer)
    assert shown.layer is None
    before = viewer.layers.selection.active.name
    shown.show(quilt(FIELD, 40, 6))
    assert [layer.name for layer in viewer.layers] == ["movie", "patches"]
    assert viewer.layers.selection.active.name == before
    assert len(shown.layer.data) == 6
    for size, n in ((20, 24), (200, 2), (40, 6)):
        shown.show(quilt(FIELD, size, 6))
        assert len(shown.layer.data) == n
        widths, colours = shown.layer.edge_width, shown.layer.edge_color
        assert len(set(widths[: n // 2])) == len(set(widths[n // 2 :])) == 1
        assert widths[0] < widths[-1]
        assert (colours[: n // 2, 3] < colours[-1, 3]).all()
    np.testing.assert_array_equal(np.min(shown.layer.data, axis=(0, 1)), (-0.5, -0.5))
    np.testing.assert_array_equal(np.max(shown.layer.data, axis=(0, 1)), (36.5, 112.5))
    shown.remove()
    shown.remove()
    assert [layer.name for layer in viewer.layers] == ["movie"]


def test_the_quilt_lies_on_a_movie_that_was_moved(viewer: Any) -> None:
    movie = viewer.layers["movie"]
    movie.scale, movie.translate = (1, 2, 2), (0, 30, -10)
    shown = Quilt(viewer)
    shown.show(quilt(FIELD, 40, 6), movie)
    edges = [(30 - 2 * 0.5, -10 - 2 * 0.5), (30 + 2 * 36.5, -10 + 2 * 112.5)]
    corners = [shown.layer.data_to_world(corner) for corner in np.concatenate(shown.layer.data)]
    np.testing.assert_array_equal([np.min(corners, axis=0), np.max(corners, axis=0)], edges)


def test_the_selected_patch_is_known_by_its_core_or_its_halo(viewer: Any) -> None:
    shown = Quilt(viewer)
    assert shown.selected() is None
    shown.show(quilt(FIELD, 40, 6))
    assert shown.selected() is None
    middle = cut(FIELD, 40, 6)[1].core[1]
    for index in (1, 4):
        shown.layer.selected_data = {index}
        assert shown.selected() == (18.0, (middle.start + middle.stop - 1) / 2)
    shown.layer.selected_data = {1, 2}
    assert shown.selected() is None
    shown.layer.selected_data = {2}
    shown.show(quilt(FIELD, 200, 6))
    assert shown.selected() is None
