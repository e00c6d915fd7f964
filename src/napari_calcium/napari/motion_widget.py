"""The form of motion correction: with a plot of the motion, a preview, and a comparison."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSpinBox,
    QSplitter,
    QVBoxLayout,
    QWidget,
)

from napari_calcium.errors import InputError
from napari_calcium.io.session import Session
from napari_calcium.napari.layers import MOVIES, metadata_of
from napari_calcium.napari.motion_plot import MotionPlot
from napari_calcium.napari.motion_traces import MotionTraces, motion_of_preview, read_motion
from napari_calcium.napari.runner import PreviewRequest
from napari_calcium.napari.side_by_side import SideBySide
from napari_calcium.napari.stage_form import StageWidget, button
from napari_calcium.napari.viewing import preview_of, show_preview, shown_layer
from napari_calcium.pipeline.preview import read_preview
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.stages import stage_named

__all__ = ["MotionCorrectionWidget"]

FRAMES = 200
MOST_FRAMES = 10_000_000
MILLISECONDS_BETWEEN_LOOKS = 30
SHARES = (1, 1)
LEAST_HEIGHTS = (100, 280)
"""Heights of the form and of the plot: relative to each other, and the least, px."""

RECORDING, CORRECTED = MOVIES


class MotionCorrectionWidget(StageWidget):
    """The form of motion correction.

    Attributes
    ----------
    plot : MotionPlot
        The motion of the session, or of the preview while there is one.
    first_frame, n_frames : QSpinBox
        The stretch that is previewed.
    preview_button, side_button : QPushButton
        Previews, and shows the recording beside the corrected movie while it is down.
    """

    stage = stage_named("motion_correction")
    _reading: Future[MotionTraces | None] | None = None
    _folder: Path | None = None

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.runner.warm_up(self.session_path)
        self.show_motion()

    def show_motion(self) -> None:
        """Show the motion of the session, as soon as it is read."""
        self._reading = self.runner.read(read_motion, self.session_path)
        self._look.start()

    def preview(self) -> None:
        """Ask the worker to correct a stretch as the form says."""
        self._start(self._preview_request)

    def show_recorded(self) -> None:
        """Show the parameters and the motion of the session."""
        super().show_recorded()
        self.side_button.setChecked(False)
        self._forget_preview()
        self.show_motion()

    def show_side_by_side(self, wanted: bool) -> None:
        """Show the recording beside the corrected movie or the preview, or as before."""
        if not wanted:
            self._side.restore()
            return
        recording, others = self._recording_layer(), self._corrected_layers()
        if recording is None or not others:
            self.side_button.setChecked(False)
            self.status.setText("Nothing to compare yet; run or preview motion correction first.")
            return
        self._side.show(recording, others)

    # ------------------------------------------------------------------------------ preview

    def _preview_request(self) -> PreviewRequest:
        """Return what the form asks to be previewed.

        Raises
        ------
        InputError
            If a parameter cannot be used, or there is no recording.
        """
        recipe = Recipe().with_values(self.stage.name, self.form.values())
        recipe.parameters(self.stage.name)
        start, n_frames = self.first_frame.value(), self._length()
        if start >= n_frames:
            raise InputError(
                f"from frame is {start} but the recording has {n_frames} frames; give one of them"
            )
        return PreviewRequest(
            session=self.session_path,
            sources=tuple(self._about_recording().get("sources", ())),
            recipe={name: dict(values) for name, values in recipe.tables.items()},
            start=start,
            stop=min(start + self.n_frames.value(), n_frames),
            folder=tempfile.mkdtemp(dir=self._previews()),
        )

    def _previews(self) -> Path:
        """Return the folder of previews, which is removed with this form or the program."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="napari-calcium-"))
            remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            self.destroyed.connect(lambda: remove())
        return self._folder

    def _show_preview(self, folder: str) -> str:
        """Show what the worker left in a folder, and say what it is."""
        found = read_preview(folder)
        recording = self._recording_layer()
        show_preview(self.viewer, found.frames, found.start, self.session_path, recording)
        self._clear_previews(folder)
        self.plot.show_motion(motion_of_preview(found, self._frame_rate()))
        if self._side.shown:
            self._side.show_also(self._corrected_layers())
        return f"{self.plot.title}; the session is as it was."

    def _clear_previews(self, kept: str = "") -> None:
        """Remove what earlier previews left on disk."""
        if self._folder is not None:
            for folder in self._folder.iterdir():
                if str(folder) != kept:
                    shutil.rmtree(folder, ignore_errors=True)

    def _forget_preview(self) -> None:
        layer = preview_of(self.viewer)
        if layer is not None:
            self.viewer.layers.remove(layer)
        self._clear_previews()

    def _recording_layer(self) -> Any:
        """Return the layer of the session's recording, or of one that is not imported yet."""
        found = shown_layer(self.viewer, self.session_path, RECORDING)
        if found is not None or self._has_movie():
            return found
        not_imported = [layer for layer in self.viewer.layers if metadata_of(layer).get("sources")]
        return not_imported[-1] if not_imported else None

    def _has_movie(self) -> bool:
        path = self.session_path
        return Session.is_session(path) and Session(path).record("movie") is not None

    def _about_recording(self) -> dict[str, Any]:
        """Return what is known of the layer of the recording, if there is one."""
        layer = self._recording_layer()
        return {} if layer is None else metadata_of(layer)

    def _length(self) -> int:
        """Return how many frames the recording has.

        Raises
        ------
        InputError
            If there is none.
        """
        if self._has_movie():
            return int(Session(self.session_path).array(RECORDING).shape[0])
        layer = self._recording_layer()
        if layer is None:
            raise InputError("no recording is open; open one, or choose a session with a movie")
        return int(layer.data.shape[0])

    def _frame_rate(self) -> float:
        """Return the frame rate of the recording, Hz; 0 where unknown."""
        if self._has_movie():
            return Session(self.session_path).frame_rate
        return float(self._about_recording().get("frame_rate") or 0)

    def _corrected_layers(self) -> list[Any]:
        corrected = shown_layer(self.viewer, self.session_path, CORRECTED)
        return [layer for layer in (corrected, preview_of(self.viewer)) if layer is not None]

    # ------------------------------------------------------------------------- what it hears

    def _connect(self) -> None:
        super()._connect()
        self._look = QTimer(self)
        self._look.setInterval(MILLISECONDS_BETWEEN_LOOKS)
        self._look.timeout.connect(self._show_read)
        removed, callback, side = self.viewer.layers.events.removed, self._on_removed, self._side
        removed.connect(callback)

        def leave() -> None:
            removed.disconnect(callback)
            side.restore()

        self.destroyed.connect(leave)

    def _show_read(self) -> None:
        """Show what was read of the session, unless a preview is being looked at."""
        if self._reading is not None and self._reading.done():
            self._look.stop()
            motion, self._reading = self._reading.result(), None
            if preview_of(self.viewer) is None:
                self.plot.show_motion(motion)

    def _on_removed(self, event: Any) -> None:
        if metadata_of(event.value).get("preview"):
            self.show_motion()

    def _on_ended(self, answer: dict[str, Any]) -> None:
        made = [stage["stage"] for stage in answer.get("stages", ()) if not stage["skipped"]]
        if self.stage.name in made or (self._mine and "stages" in answer):
            self._forget_preview()
        super()._on_ended(answer)
        if "preview" not in answer:
            self.show_motion()
            self._side.show_also(self._corrected_layers())
        if answer["state"] == "cancelled":
            self.runner.warm_up(self.session_path)

    def _finished(self, answer: dict[str, Any]) -> str:
        if "preview" in answer:
            return self._show_preview(answer["preview"])
        return super()._finished(answer)

    def _show_state(self) -> None:
        super()._show_state()
        self.preview_button.setEnabled(not self.runner.busy)

    # -------------------------------------------------------------------------- its widgets

    def _centre(self) -> QWidget:
        self.plot = MotionPlot(self.viewer)
        self._side = SideBySide(self.viewer)
        below = QWidget()
        layout = QVBoxLayout(below)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(self._preview_line())
        layout.addWidget(self.plot, stretch=1)
        splitter = QSplitter(Qt.Orientation.Vertical)
        parts = zip((super()._centre(), below), SHARES, LEAST_HEIGHTS, strict=True)
        for index, (part, share, height) in enumerate(parts):
            part.setMinimumHeight(height)
            splitter.addWidget(part)
            splitter.setStretchFactor(index, share)
            splitter.setCollapsible(index, False)
        return splitter

    def _preview_line(self) -> QHBoxLayout:
        self.preview_button = button(
            "Preview", "Correct a part of the recording as the form says", self.preview
        )
        self.first_frame, self.n_frames = QSpinBox(), QSpinBox()
        self.first_frame.setRange(0, MOST_FRAMES)
        self.n_frames.setRange(1, MOST_FRAMES)
        self.n_frames.setValue(FRAMES)
        line = QHBoxLayout()
        line.addWidget(self.preview_button)
        for text, box in {"from frame": self.first_frame, "frames": self.n_frames}.items():
            line.addWidget(QLabel(text))
            line.addWidget(box, stretch=1)
        return line

    def _beside_run(self) -> list[QWidget]:
        self.side_button = QPushButton("Side by side")
        self.side_button.setToolTip("Show the recording to the left of the corrected movie")
        self.side_button.setCheckable(True)
        self.side_button.toggled.connect(self.show_side_by_side)
        return [self.side_button]
