"""The form of a stage: its parameters, a button that runs it, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from napari.utils.notifications import show_error
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_calcium.errors import InputError
from napari_calcium.io.session import Session
from napari_calcium.napari.docking import shrink, stack, window_size
from napari_calcium.napari.form import ParametersForm
from napari_calcium.napari.layers import metadata_of
from napari_calcium.napari.runner import AnyRequest, Request, progress_text, runner_of
from napari_calcium.napari.viewing import outdated_stages
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.stages import Stage

__all__ = ["StageWidget", "button", "row", "wrapped"]


class StageWidget(QWidget):  # type: ignore[misc]
    """The form of one stage, in a dock of a viewer.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer; its layers tell the session, and the results become layers of it.

    Attributes
    ----------
    groups : mapping of str to tuple of str
        Headings in the form, and the parameters under each.
    """

    stage: ClassVar[Stage]
    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.runner = runner_of(napari_viewer)
        self.form = ParametersForm(self.stage.parameters, self.groups)
        self.session_line = _session_line()
        self.run_button = QPushButton("Run")
        self.cancel_button = QPushButton("Cancel")
        self.progress_bar = QProgressBar()
        self.status = wrapped("")
        self._mine = self._placed = self._settled = False
        self._window_size = window_size(napari_viewer)
        for other in self.runner.parent().findChildren(StageWidget):
            if not other._settled:  # opened at the same time, and perhaps has made it larger
                self._window_size = self._window_size.boundedTo(other._window_size)
        self._marked = ""
        self._lay_out()
        self._connect()
        self._show_state()
        for layer in napari_viewer.layers:
            self.follow(layer)

    @property
    def session_path(self) -> str:
        """The session's folder, as the form says."""
        return str(self.session_line.currentText()).strip()

    @session_path.setter
    def session_path(self, path: str | Path) -> None:
        if self.session_line.findText(str(path)) < 0:
            self.session_line.addItem(str(path))
        self.session_line.setCurrentText(str(path))

    def follow(self, layer: Any) -> None:
        """Take the session from a layer that shows one."""
        session = metadata_of(layer).get("session")
        if session and session != self.session_path:
            self.session_path = session

    def run(self) -> None:
        """Ask the worker for this stage, and for those before it that are not finished."""
        self._start(self._request)

    def _start(self, make: Callable[[], AnyRequest]) -> None:
        """Ask the worker for something, or say why it cannot be asked."""
        try:
            request = make()
        except InputError as error:
            self.status.setText(str(error))
            show_error(str(error))
            return
        self._mine = True
        self._marked = self._modality()  # once: reports of progress come many times a second
        self.status.setText("Starting the worker")
        self.runner.start(request)

    def sources(self) -> list[str]:
        """Return the files to import; none, but for the import."""
        return []

    def showEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        """Become a tab of the other forms when this one is shown first."""
        super().showEvent(event)
        if not self._placed:
            self._placed = True
            QTimer.singleShot(0, self._place)

    def _place(self) -> None:
        stack(self, StageWidget)
        QTimer.singleShot(0, self._settle)

    def _settle(self) -> None:
        """Leave the window as large as it was before this form."""
        shrink(self, self._window_size)
        self._settled = True

    def show_recorded(self) -> None:
        """Show the parameters with which this stage of the session was run, if it was."""
        if Session.is_session(self.session_path):
            record = Session(self.session_path).record(self.stage.group)
            if record is not None:
                recorded = Recipe.of_session(Session(self.session_path)).tables[self.stage.name]
                self.form.set_values(recorded)

    def _request(self) -> Request:
        """Return what the form asks for.

        Raises
        ------
        InputError
            If a parameter or the session cannot be used.
        """
        path = self.session_path
        if not path:
            raise InputError("session is not given; import a recording or choose a session")
        recipe = Recipe()
        if Session.is_session(path):
            recipe = Recipe.of_session(Session(path))
        recipe = recipe.with_values(self.stage.name, self.form.values())
        recipe.parameters(self.stage.name)
        tables = {stage: dict(values) for stage, values in recipe.tables.items()}
        return Request(path, tuple(self.sources()), tables, self.stage.name)

    def _lay_out(self) -> None:
        layout = QVBoxLayout(self)
        # or napari adds room below that nobody needs, in a second window of a process even more
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        layout.addWidget(wrapped(self.stage.summary))
        for widget in self._above():
            layout.addWidget(widget)
        layout.addLayout(row(QLabel("Session"), self.session_line, self._browse_button()))
        layout.addWidget(self._centre(), stretch=1)
        layout.addLayout(row(self.run_button, self.cancel_button, *self._beside_run()))
        layout.addWidget(self.progress_bar)
        layout.addWidget(self.status)

    def _above(self) -> list[QWidget]:
        """Return what stands above the session's line."""
        return []

    def _centre(self) -> QWidget:
        """Return the form, and what shares its room."""
        return _scrolled(self.form.native)

    def _beside_run(self) -> list[QWidget]:
        """Return what stands beside the buttons that run and cancel."""
        return []

    def _browse_button(self) -> QPushButton:
        return button("...", "Choose the session's folder", self._browse)

    def _browse(self) -> None:
        if path := QFileDialog.getExistingDirectory(self, "Session", self.session_path):
            self.session_path = path

    def _connect(self) -> None:
        self.run_button.clicked.connect(self.run)
        self.cancel_button.clicked.connect(self.runner.cancel)
        self.session_line.currentTextChanged.connect(self.show_recorded)
        self.runner.started.connect(self._on_started)
        self.runner.progressed.connect(self._on_progressed)
        self.runner.ended.connect(self._on_ended)
        inserted, callback = self.viewer.layers.events.inserted, self._on_inserted
        inserted.connect(callback)
        self.destroyed.connect(lambda: inserted.disconnect(callback))

    def _on_inserted(self, event: Any) -> None:
        self.follow(event.value)

    def _on_started(self, request: AnyRequest) -> None:
        self._show_state()

    def _on_progressed(self, progress: dict[str, Any]) -> None:
        if self._mine:
            text = progress_text(progress, self._marked)
            self.progress_bar.setRange(0, progress["total"] if progress["done"] else 0)
            self.progress_bar.setValue(progress["done"])
            self.progress_bar.setFormat(text)
            self.status.setText(text)

    def _on_ended(self, answer: dict[str, Any]) -> None:
        if self._mine:
            self.status.setText(answer.get("message") or self._finished(answer))
        self._mine = False
        self._show_state()

    def _finished(self, answer: dict[str, Any]) -> str:
        """Say how a run went, and what it left behind the times."""
        stages = [stage for stage in answer["stages"] if not stage["skipped"]]
        said = f"Done in {sum(stage['seconds'] for stage in stages):.1f} s."
        if not stages:
            said = "Done before with these parameters; nothing had to be computed."
        if found := self._found():
            said += f" {found}"
        stages = outdated_stages(Session(self.session_path))
        outdated = [stage.titled(self._modality()) for stage in stages]
        if outdated:
            said += f" Run again, their inputs have changed: {', '.join(outdated)}."
        return said

    def _modality(self) -> str:
        """Return how the recording is marked; empty where there is no session yet."""
        path = self.session_path
        return Session(path).modality if Session.is_session(path) else ""

    def _found(self) -> str:
        """Say what the stage found in the session."""
        return Session(self.session_path).summary(self.stage.group)

    def _show_state(self) -> None:
        """Enable what can be pressed now."""
        self.run_button.setEnabled(not self.runner.busy)
        self.cancel_button.setEnabled(self.runner.busy and self._mine)
        if not (self.runner.busy and self._mine):
            self.progress_bar.setRange(0, 1)
            self.progress_bar.reset()


def _session_line() -> QComboBox:
    line = QComboBox()
    line.setEditable(True)
    line.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
    line.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    line.setMinimumContentsLength(12)
    line.lineEdit().setPlaceholderText("folder of the session, *.zarr")
    line.setToolTip("Folder that holds the recording and all results")
    return line


def button(text: str, tooltip: str, clicked: Callable[..., None]) -> QPushButton:
    """Return a button that does something when it is pressed."""
    made = QPushButton(text)
    made.setToolTip(tooltip)
    made.clicked.connect(clicked)
    return made


def row(*widgets: QWidget) -> QHBoxLayout:
    """Return widgets beside each other; a list to choose from takes the room that is left."""
    made = QHBoxLayout()
    for widget in widgets:
        made.addWidget(widget, stretch=1 if isinstance(widget, QComboBox) else 0)
    return made


def wrapped(text: str) -> QLabel:
    """Return a text that is broken into lines and can be copied."""
    label = QLabel(text)
    label.setWordWrap(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label


def _scrolled(widget: QWidget) -> QScrollArea:
    area = QScrollArea()
    area.setWidgetResizable(True)
    area.setFrameShape(QScrollArea.Shape.NoFrame)
    area.setWidget(widget)
    return area
