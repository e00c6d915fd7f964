"""The recording beside the corrected movie, and all as it was afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from napari_calcium.napari.side_by_side import SideBySide


@pytest.fixture(params=[(20, 37, 53), (20, 3, 37, 53)], ids=["planes", "volumes"])
def shown(request: pytest.FixtureRequest, make_napari_viewer_proxy: Any) -> Any:
    """A viewer with a recording at an odd place, a cropped corrected movie, and another image."""
    viewer, shape = make_napari_viewer_proxy(), request.param
    place = (*[0] * (len(shape) - 2), -2.1, -4.3)
    viewer.add_image(np.zeros(shape), name="recording", translate=place, visible=False)
    cropped = np.zeros((*shape[:-2], 30, 44))
    viewer.add_image(cropped, name="corrected")
    viewer.add_labels(np.zeros((30, 44), int), name="cells")
    return viewer


def test_the_movies_lie_beside_each_other(shown: Any) -> None:
    recording, corrected = shown.layers["recording"], shown.layers["corrected"]
    SideBySide(shown).show(recording, [corrected])
    assert recording.visible
    assert corrected.visible
    assert recording.extent.world[1, -1] < corrected.extent.world[0, -1]
    assert recording.translate[-2] == -2.1
    np.testing.assert_array_equal(corrected.translate, 0)
    np.testing.assert_array_equal(shown.layers["cells"].translate, 0)


def test_all_is_as_it_was_afterwards(shown: Any) -> None:
    recording, corrected = shown.layers["recording"], shown.layers["corrected"]
    shown.scene.camera.zoom, shown.scene.camera.center = 3.3, (0.0, 12.0, 17.0)
    place = np.array(recording.translate)
    side = SideBySide(shown)
    for _ in range(3):
        side.show(recording, [corrected])
        assert side.shown
        side.restore()
    assert not side.shown
    np.testing.assert_array_equal(recording.translate, place)
    assert not recording.visible
    assert corrected.visible
    assert shown.scene.camera.zoom == 3.3
    assert shown.scene.camera.center == (0.0, 12.0, 17.0)


def test_what_a_run_moved_stays_moved(shown: Any) -> None:
    recording = shown.layers["recording"]
    before, side = np.array(recording.translate), SideBySide(shown)
    side.show(recording, [shown.layers["corrected"]])
    recording.translate = recording.translate + np.eye(recording.ndim)[-2]
    recording.visible = False
    side.show_also([shown.layers["corrected"]])
    assert recording.visible
    side.restore()
    np.testing.assert_allclose(recording.translate - before, np.eye(recording.ndim)[-2])


def test_a_layer_that_was_removed_is_left_alone(shown: Any) -> None:
    side = SideBySide(shown)
    side.show(shown.layers["recording"], [shown.layers["corrected"]])
    del shown.layers["recording"]
    shown.layers["corrected"].visible = False
    side.restore()
    assert shown.layers["corrected"].visible
