"""The recording beside its corrected movie, on one canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["SideBySide"]

GAP = 0.02
"""Room between the movies, as a part of their width; at least 2 px."""


@dataclass
class _Before:
    """How things were: which layers were seen, where the recording lay, and the view."""

    visible: list[tuple[Any, bool]]
    recording: Any
    translate: Any
    moved: Any
    camera: tuple[Any, float]


class SideBySide:
    """Shows a recording to the left of what was made of it.

    Both are layers of one canvas, so the time slider and the zoom are the same for both. Only the
    recording is moved: cells and outlines stay on the corrected movie.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self._before: _Before | None = None

    @property
    def shown(self) -> bool:
        """Whether a recording is beside something now."""
        return self._before is not None

    def show(self, recording: Any, others: Sequence[Any]) -> None:
        """Move a recording's layer to the left by its width and a gap, and make all visible.

        Parameters
        ----------
        recording : napari.layers.Image
            The layer to be moved.
        others : sequence of napari.layers.Image
            What is to be seen beside it.
        """
        self.restore()
        width = recording.data.shape[-1]
        move = np.zeros(recording.ndim)
        move[-1] = -(width + max(2, round(GAP * width))) * abs(float(recording.scale[-1]))
        camera = self._viewer.scene.camera
        self._before = _Before(
            [(layer, layer.visible) for layer in (recording, *others)],
            recording,
            np.array(recording.translate),
            np.array(recording.translate) + move,
            (camera.center, camera.zoom),
        )
        recording.translate = self._before.moved
        self.show_also(others)
        self._viewer.reset_view()

    def show_also(self, others: Sequence[Any]) -> None:
        """Make what came since visible too, and the recording again where that hid it."""
        if self._before is not None:
            self._before.recording.visible = True
            for layer in others:
                layer.visible = True

    def restore(self) -> None:
        """Put everything back as it was; what came since stays as it is."""
        before, self._before = self._before, None
        if before is None:
            return
        there = list(self._viewer.layers)
        for layer, visible in before.visible:
            if layer in there:
                layer.visible = visible
        if before.recording in there:  # a run may have moved it: by that it stays moved
            since = np.array(before.recording.translate) - before.moved
            before.recording.translate = before.translate + since
        self._viewer.scene.camera.center, self._viewer.scene.camera.zoom = before.camera
