"""One form for each stage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QFileDialog, QLabel, QListWidget, QWidget

from napari_calcium.errors import InputError
from napari_calcium.io.session import Session
from napari_calcium.io.tiff import EXTENSIONS
from napari_calcium.napari.dff_widget import DffWidget
from napari_calcium.napari.evaluation_widget import ComponentEvaluationWidget
from napari_calcium.napari.extraction_widget import SourceExtractionWidget
from napari_calcium.napari.layers import metadata_of
from napari_calcium.napari.motion_widget import MotionCorrectionWidget
from napari_calcium.napari.runner import Request
from napari_calcium.napari.spike_widget import SpikeInferenceWidget
from napari_calcium.napari.stage_form import StageWidget, button, row
from napari_calcium.pipeline.stages import stage_named

__all__ = [
    "ComponentEvaluationWidget",
    "DffWidget",
    "ImportWidget",
    "MotionCorrectionWidget",
    "SourceExtractionWidget",
    "SpikeInferenceWidget",
    "StageWidget",
    "SummaryImagesWidget",
    "new_session_path",
]


class ImportWidget(StageWidget):
    """The form of the import: also the files, and where the session is to be."""

    stage = stage_named("import")

    def sources(self) -> list[str]:
        """Return the files to import, in the order of the list."""
        return [self.source_list.item(row).text() for row in range(self.source_list.count())]

    def follow(self, layer: Any) -> None:
        """Take the recording, or the session, from a layer that shows one."""
        about = metadata_of(layer)
        if not about.get("sources"):
            super().follow(layer)
            return
        self.source_list.clear()
        self.source_list.addItems(about["sources"])
        self.form.reset()
        self.form.set_values(
            {key: about[key] for key in ("frame_rate", "pixel_size") if about.get(key)}
        )
        self.session_path = about.get("new_session") or new_session_path(about["sources"])
        self.status.setText(about.get("understood", ""))

    def open(self, paths: list[str]) -> None:
        """Open files as one recording; they are listed when it is shown."""
        if paths:
            self.viewer.open(paths, stack=len(paths) > 1, plugin="napari-calcium")

    def _request(self) -> Request:
        if not self.sources() and not Session.is_session(self.session_path):
            raise InputError("no recording is given; open TIFF files or a .zarr folder")
        return super()._request()

    def _above(self) -> list[QWidget]:
        self.source_list = QListWidget()
        self.source_list.setMaximumHeight(80)
        self.source_list.setToolTip("The recording: its files in the order of time")
        buttons = QWidget()
        line = row(
            QLabel("Recording"),
            button("Files...", "Open the TIFF files of one recording", self._choose_files),
            button("Zarr...", "Open a recording in a .zarr folder", self._choose_folder),
        )
        buttons.setLayout(line)
        line.setContentsMargins(0, 0, 0, 0)
        return [buttons, self.source_list]

    def _choose_files(self) -> None:
        pattern = " ".join(f"*{extension}" for extension in EXTENSIONS)
        paths, _ = QFileDialog.getOpenFileNames(self, "Recording", "", f"TIFF ({pattern})")
        self.open(paths)

    def _choose_folder(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "Recording", "")
        self.open([path] if path else [])


class SummaryImagesWidget(StageWidget):
    """The form of the summary images."""

    stage = stage_named("summary_images")


def new_session_path(sources: list[str]) -> str:
    """Return where the session of a recording goes: beside its first file.

    In the home folder where nothing can be written there.

    Examples
    --------
    >>> Path(new_session_path(["/nowhere/movie_001.tif"])).name
    'movie_001.zarr'
    >>> Path(new_session_path(["/nowhere/movie.zarr"])).name
    'movie_session.zarr'
    """
    first = Path(sources[0])
    name = f"{first.stem}_session.zarr" if first.suffix == ".zarr" else f"{first.stem}.zarr"
    folder = first.parent if os.access(first.parent, os.W_OK) else Path.home()
    return str(folder / name)
