"""The form of source extraction: choosing parameters, the patches, seeds, and a preview."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from napari.layers import Labels, Shapes
from napari.utils.notifications import show_error
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_calcium.errors import InputError
from napari_calcium.extraction.choosing import (
    Proposal,
    Tile,
    propose_from_image,
    propose_from_outline,
    quilt,
)
from napari_calcium.extraction.parameters import SourceExtractionParameters
from napari_calcium.io.session import Session
from napari_calcium.napari.drawn import chosen_outline, write_seeds
from napari_calcium.napari.layers import KEY, metadata_of
from napari_calcium.napari.quilt import Quilt
from napari_calcium.napari.runner import ExtractionPreviewRequest
from napari_calcium.napari.stage_form import StageWidget, button, row
from napari_calcium.napari.viewing import cells_preview_of, show_cells_preview, shown_layer
from napari_calcium.pipeline.extraction_preview import read_extraction_preview
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.stages import stage_named

__all__ = ["GROUPS", "SourceExtractionWidget", "proposal_of"]

GROUPS: dict[str, tuple[str, ...]] = {
    "Cells": (
        "cell_radius",
        "decay_time",
        "initialization",
        "seeds_file",
        "seeds_kind",
        "n_cells",
        "threshold",
    ),
    "Patches and averaging": ("patch_size", "patch_overlap", "decimate_time", "decimate_space"),
    "Background": ("background", "n_background", "neuropil_spacing"),
    "Footprints": (
        "refinements",
        "sparsity",
        "support",
        "support_radius",
        "footprint_edge",
        "edge_maximum",
        "edge_energy",
        "connected",
    ),
    "Traces": ("ar_order", "time_constants", "rise_time", "penalty", "min_spike"),
    "Merging and sizes": (
        "merge",
        "merge_correlation",
        "duplicate_overlap",
        "min_size",
        "max_size",
        "max_spread",
    ),
}
"""The parameters under the headings of the form."""

OF_PATCHES = ("cell_radius", "patch_size", "patch_overlap")
"""The parameters that say where the patches are."""

RECORDING, CORRECTED = "movie/frames", "motion_correction/frames"
CORRELATION = "summary_images/correlation"
FRAMES, MOST_FRAMES = 2000, 10_000_000
SEEDS = "ImageJ ROIs, labels or an image (*.zip *.roi *.tif *.tiff *.npy)"
MILLISECONDS_BETWEEN_LOOKS, MILLISECONDS_TO_REDRAW = 30, 100
MOST_TILES = 1024
LEAST_HEIGHT = 100
"""Of the form, px."""


class SourceExtractionWidget(StageWidget):
    """The form of source extraction.

    Attributes
    ----------
    outline_button, guess_button : QPushButton
        Fill in cell radius and patches, from an outline or from the correlation image.
    quilt_button : QPushButton
        Shows the patches while it is down.
    seeds_line : QComboBox
        The viewer's layers that may hold seeds.
    seeds_button, file_button : QPushButton
        Take the chosen layer, or a file, as seeds.
    preview_button : QPushButton
        Previews the patch that is selected in the quilt, or is in the middle of the canvas.
    n_frames : QSpinBox
        Frames that are previewed.
    """

    stage = stage_named("source_extraction")
    groups = GROUPS
    _reading: Future[Proposal] | None = None
    _folder: Path | None = None
    _previewed = ""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.list_seeds()
        self.runner.warm_up(stage=self.stage.name)

    def show_recorded(self) -> None:
        """Show the parameters of the session, and nothing of the one before."""
        super().show_recorded()
        self.quilt_button.setChecked(False)
        self._forget_preview()
        self._forget_guess()

    # ----------------------------------------------------------------------------- choosing

    def propose_from_outline(self) -> None:
        """Fill in what suits the cell that is outlined in the selected layer."""
        with self._told():
            layer = self.viewer.layers.selection.active
            about = {} if layer is None else metadata_of(layer)
            outline = chosen_outline(
                None if about.get("quilt") else layer, self._movie_layer(), self.viewer.dims.point
            )
            session = self._session()
            pixel_size = session.pixel_size
            self._fill_in(propose_from_outline(outline, self._field(session), pixel_size))

    def guess(self) -> None:
        """Fill in what suits the cells of the correlation image, as soon as it is looked at."""
        self.status.setText("Looking at the correlation image")
        self.guess_button.setEnabled(False)
        self._reading = self.runner.read(proposal_of, self.session_path)
        self._look.start()

    def _show_guess(self) -> None:
        reading = self._reading
        if reading is not None and reading.done():
            self._forget_guess()
            with self._told():
                self._fill_in(reading.result())

    def _forget_guess(self) -> None:
        self._look.stop()
        self._reading = None
        self.guess_button.setEnabled(True)

    def _fill_in(self, proposal: Proposal) -> None:
        self.form.set_values(proposal.to_mapping())
        self.status.setText(proposal.text)

    # -------------------------------------------------------------------------------- quilt

    def show_quilt(self, wanted: bool) -> None:
        """Show the patches over the movie, or no more."""
        if not wanted:
            self._quilt.remove()
            return
        shown = False
        with self._told():
            self._quilt.show(self._tiles(), self._movie_layer())
            shown = True
        self.quilt_button.setChecked(shown)

    def _tiles(self) -> list[Tile]:
        """Return the patches as the form says.

        Raises
        ------
        InputError
            If there is no movie, or there are so many that drawing them takes long.
        """
        field = self._field(self._session())
        values = self.form.values()
        parameters = SourceExtractionParameters(**{name: values[name] for name in OF_PATCHES})
        tiles = quilt(field, parameters.core(field), parameters.halo)
        if len(tiles) > MOST_TILES:
            raise InputError(
                f"patch_size is {parameters.patch_size} px, which makes {len(tiles)} patches, too "
                "many to draw; give larger patches"
            )
        return tiles

    def _renew_quilt(self) -> None:
        if self.quilt_button.isChecked():
            self.show_quilt(True)

    # -------------------------------------------------------------------------------- seeds

    def list_seeds(self) -> None:
        """List the layers that may hold seeds: a person's own Labels and Shapes."""
        chosen = self.seeds_line.currentText()
        names = [
            layer.name
            for layer in self.viewer.layers
            if isinstance(layer, Labels | Shapes) and KEY not in layer.metadata
        ]
        self.seeds_line.clear()
        self.seeds_line.addItems(names)
        if chosen in names:
            self.seeds_line.setCurrentText(chosen)

    def use_seeds(self) -> None:
        """Write the chosen layer beside the session, and look for cells there."""
        with self._told():
            session = self._session()
            field = self._field(session)
            place = self._movie_layer(), self.viewer.dims.point
            seeds = write_seeds(self._seeds_layer(), session.path, field, *place)
            self._take_seeds(str(seeds.path), seeds_kind="regions")
            cells = "1 cell" if seeds.count == 1 else f"{seeds.count} cells"
            self.status.setText(f"{cells} written to {seeds.path.name}; press Preview or Run.")

    def choose_seeds_file(self) -> None:
        """Have a file of seeds chosen."""
        folder = str(Path(self.session_path).parent) if self.session_path else ""
        path, _ = QFileDialog.getOpenFileName(self, "Seeds", folder, SEEDS)
        if path:
            self._take_seeds(path)

    def _take_seeds(self, path: str, **others: str) -> None:
        self.form.set_values({"initialization": "seeds", "seeds_file": path, **others})

    def _seeds_layer(self) -> Any:
        """Return the layer that is chosen for seeds, or None."""
        name = self.seeds_line.currentText()
        return self.viewer.layers[name] if name else None

    # ------------------------------------------------------------------------------ preview

    def preview(self) -> None:
        """Ask the worker for the cells of one patch, as the form says."""
        self._start(self._preview_request)

    def _preview_request(self) -> ExtractionPreviewRequest:
        """Return what the form asks to be previewed.

        Raises
        ------
        InputError
            If a parameter cannot be used, or there is no corrected movie.
        """
        recipe = Recipe().with_values(self.stage.name, self.form.values())
        recipe.parameters(self.stage.name)
        session = self._session()
        n_all = int(session.array(CORRECTED).shape[0])
        n_frames = min(self.n_frames.value(), n_all)
        start = min(max(self._frame() - n_frames // 2, 0), n_all - n_frames)
        self._previewed = self.session_path
        return ExtractionPreviewRequest(
            session=self.session_path,
            recipe={name: dict(values) for name, values in recipe.tables.items()},
            centre=self._quilt.selected() or self._looked_at(),
            start=start,
            stop=start + n_frames,
            folder=tempfile.mkdtemp(dir=self._previews()),
        )

    def _frame(self) -> int:
        """Return the frame of the movie that is shown."""
        movie = self._movie_layer()
        return 0 if movie is None else round(float(movie.world_to_data(self.viewer.dims.point)[0]))

    def _looked_at(self) -> tuple[float, float]:
        """Return the point of the movie (y, x) in the middle of the canvas, px."""
        dims = self.viewer.dims
        world = list(dims.point)
        centre = self.viewer.scene.camera.center[-len(dims.displayed) :]
        for axis, place in zip(dims.displayed, centre, strict=True):
            world[axis] = place
        movie = self._movie_layer()
        y, x = world[-2:] if movie is None else movie.world_to_data(world)[-2:]
        return float(y), float(x)

    def _show_preview(self, folder: str) -> str:
        """Show what the worker left in a folder, and say what it is."""
        if self.session_path != self._previewed:
            return "Another session was chosen; preview again."
        found = read_extraction_preview(folder)
        show_cells_preview(self.viewer, found, self._movie_layer())
        rows, columns = found.core
        where = f"y {rows.start} to {rows.stop - 1}, x {columns.start} to {columns.stop - 1}"
        if found.time.stop - found.time.start < self._session().array(CORRECTED).shape[0]:
            where += f", frames {found.time.start} to {found.time.stop - 1}"
        return f"{found.summary} Preview of {where}; the session is as it was."

    def _previews(self) -> Path:
        """Return the folder of previews, which is removed with this form or the program."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="napari-calcium-"))
            remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            self.destroyed.connect(lambda: remove())
        return self._folder

    def _clear_previews(self) -> None:
        """Remove what previews left on disk: what is shown is in memory."""
        if self._folder is not None:
            for folder in self._folder.iterdir():
                shutil.rmtree(folder, ignore_errors=True)

    def _forget_preview(self) -> None:
        if (layer := cells_preview_of(self.viewer)) is not None:
            self.viewer.layers.remove(layer)

    # --------------------------------------------------------------------------- the session

    def _session(self) -> Session:
        """Return the session.

        Raises
        ------
        InputError
            If there is none.
        """
        if not self.session_path:
            raise InputError("session is not given; import a recording or choose a session")
        return Session(self.session_path)

    def _field(self, session: Session) -> tuple[int, int]:
        """Return the field of the corrected movie, or of the recording where there is none yet."""
        shape = session.array(CORRECTED if CORRECTED in session else RECORDING).shape
        return int(shape[-2]), int(shape[-1])

    def _movie_layer(self) -> Any:
        """Return the layer in whose pixels the cells are; None where it is not shown: it is at 0.

        That is the corrected movie, or the recording where there is none yet.
        """
        path = self.session_path
        if not Session.is_session(path):
            return None
        return shown_layer(
            self.viewer, path, CORRECTED if CORRECTED in Session(path) else RECORDING
        )

    # ------------------------------------------------------------------------- what it hears

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Say why something cannot be done."""
        try:
            yield
        except InputError as error:
            self.status.setText(str(error))
            show_error(str(error))

    def _connect(self) -> None:
        super()._connect()
        self._look = QTimer(self)
        self._look.setInterval(MILLISECONDS_BETWEEN_LOOKS)
        self._look.timeout.connect(self._show_guess)
        self._redraw = QTimer(self)  # once for all fields that a proposal changes
        self._redraw.setSingleShot(True)
        self._redraw.setInterval(MILLISECONDS_TO_REDRAW)
        self._redraw.timeout.connect(self._renew_quilt)
        for name in OF_PATCHES:
            self.form.fields[name].changed.connect(lambda _: self._redraw.start())
        events, quilted = self.viewer.layers.events, self._quilt
        callbacks = [
            (events.inserted, self._on_listed),
            (events.renamed, self._on_listed),
            (events.removed, self._on_removed),
        ]
        for event, callback in callbacks:
            event.connect(callback)

        def leave() -> None:
            for event, callback in callbacks:
                event.disconnect(callback)
            quilted.remove()

        self.destroyed.connect(leave)

    def _on_listed(self, event: Any) -> None:
        self.list_seeds()

    def _on_removed(self, event: Any) -> None:
        self.list_seeds()
        if metadata_of(event.value).get("quilt"):
            self.quilt_button.setChecked(False)

    def _on_ended(self, answer: dict[str, Any]) -> None:
        made = [stage["stage"] for stage in answer.get("stages", ()) if not stage["skipped"]]
        if self.stage.name in made or (self._mine and "stages" in answer):
            self._forget_preview()
        super()._on_ended(answer)
        self._clear_previews()
        if answer["state"] == "cancelled":
            self.runner.warm_up(stage=self.stage.name)

    def _finished(self, answer: dict[str, Any]) -> str:
        if "preview" in answer:
            return self._show_preview(answer["preview"])
        return super()._finished(answer)

    def _show_state(self) -> None:
        super()._show_state()
        self.preview_button.setEnabled(not self.runner.busy)

    # -------------------------------------------------------------------------- its widgets

    def _centre(self) -> QWidget:
        self._quilt = Quilt(self.viewer)
        centre = QWidget()
        layout = QVBoxLayout(centre)
        layout.setContentsMargins(0, 0, 0, 0)
        form = super()._centre()
        form.setMinimumHeight(LEAST_HEIGHT)
        layout.addWidget(form, stretch=1)
        for line in (self._choosing_line(), self._seeds_line(), self._preview_line()):
            layout.addLayout(line)
        return centre

    def _choosing_line(self) -> QHBoxLayout:
        self.outline_button = button(
            "From outline",
            "Take radius and patches from the cell that is outlined in the selected layer",
            self.propose_from_outline,
        )
        self.guess_button = button(
            "Guess", "Take radius and patches from the cells of the correlation image", self.guess
        )
        self.quilt_button = QPushButton("Quilt")
        self.quilt_button.setToolTip("Show the patches in which cells are searched")
        self.quilt_button.setCheckable(True)
        self.quilt_button.toggled.connect(self.show_quilt)
        label = QLabel("Cell size")
        return row(label, self.outline_button, self.guess_button, self.quilt_button)

    def _seeds_line(self) -> QHBoxLayout:
        self.seeds_line = QComboBox()
        self.seeds_line.setToolTip("Layer in which cells are painted or outlined")
        self.seeds_line.setMinimumContentsLength(6)
        self.seeds_line.setSizeAdjustPolicy(
            QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        )
        self.seeds_button = button(
            "Use as seeds", "Look for cells where this layer has some", self.use_seeds
        )
        self.file_button = button("File...", "Choose a file of seeds", self.choose_seeds_file)
        return row(QLabel("Seeds"), self.seeds_line, self.seeds_button, self.file_button)

    def _preview_line(self) -> QHBoxLayout:
        self.preview_button = button(
            "Preview",
            "Find the cells of one patch as the form says: of the patch that is selected in the "
            "quilt, or else of the one in the middle of the canvas",
            self.preview,
        )
        self.n_frames = QSpinBox()
        self.n_frames.setRange(1, MOST_FRAMES)
        self.n_frames.setValue(FRAMES)
        self.n_frames.setToolTip("Frames around the one that is shown; in few, less is active")
        line = row(self.preview_button, QLabel("one patch, frames"))
        line.addWidget(self.n_frames, stretch=1)
        return line


def proposal_of(session: str) -> Proposal:
    """Return what suits the cells of a session's correlation image; to be called in a thread.

    Raises
    ------
    InputError
        If there is no such image, or no cells can be told in it.
    """
    if not session:
        raise InputError("session is not given; import a recording or choose a session")
    opened = Session(session)
    if CORRELATION not in opened:
        raise InputError(
            f"{session} has no correlation image yet; run Summary images first, or outline a cell"
        )
    return propose_from_image(opened.read(CORRELATION), opened.pixel_size)
