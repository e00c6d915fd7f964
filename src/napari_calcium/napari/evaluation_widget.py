"""The form of component evaluation: the scores of all cells, and thresholds that are dragged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from napari.utils.notifications import show_warning
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QCheckBox,
    QLabel,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_calcium.errors import InputError
from napari_calcium.evaluation.decision import THRESHOLDS
from napari_calcium.evaluation.evaluation import ComponentEvaluationParameters, why_not_asked
from napari_calcium.io.session import Session
from napari_calcium.napari.decided import SCORES
from napari_calcium.napari.decisions import Decisions, decisions_of, single_shot
from napari_calcium.napari.score_histograms import ScoreHistograms
from napari_calcium.napari.stage_form import StageWidget, button, row, wrapped
from napari_calcium.pipeline.stages import stage_named

__all__ = ["GROUPS", "RUN_FIRST", "RUN_TO_USE", "ComponentEvaluationWidget"]

DECIDES = tuple(each.name for each in ComponentEvaluationParameters.describe() if each.decides)
GROUPS: dict[str, tuple[str, ...]] = {
    "Scores": tuple(
        each.name for each in ComponentEvaluationParameters.describe() if not each.decides
    ),
    "Thresholds": DECIDES,
}
"""Headings of the form, and the parameters under each."""

RUN_FIRST = "Run to score the cells."
RUN_TO_USE = "Run component evaluation to use these thresholds."
NONE_ACCEPTED = "No cell is accepted; lower the thresholds."

LINES = 4
"""Of the counts: so many have room, and nothing moves while a line is dragged."""

MILLISECONDS_TO_DECIDE, MILLISECONDS_TO_STORE = 30, 600
"""From a change in the form to its effect: fields come one by one, and digits, too."""


class ComponentEvaluationWidget(StageWidget):
    """The form of component evaluation.

    Thresholds are dragged in the histograms or given in the form. What they decide is seen at once
    and is stored when a line is let go: no run is needed for it.

    Attributes
    ----------
    histograms : ScoreHistograms
        The scores of all cells, with the thresholds as lines.
    counts, note : QLabel
        How many cells are accepted, and why there are no scores of some kind.
    rejected_box : QCheckBox
        Whether rejected cells are shown.
    reset_button : QPushButton
        Takes the thresholds that nobody has changed.
    decisions : Decisions or None
        What is decided of the session's cells; None where they have no scores.
    """

    stage = stage_named("component_evaluation")
    groups = GROUPS
    histograms: ScoreHistograms
    counts: QLabel
    note: QLabel
    rejected_box: QCheckBox
    reset_button: QPushButton
    decisions: Decisions | None = None

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self._follow()

    def show_recorded(self) -> None:
        """Show the parameters of the session, and what they decide."""
        self._keep()  # of the session that is left
        super().show_recorded()
        self._decide_soon.stop()
        self._store_soon.stop()
        self._follow()

    def reset(self) -> None:
        """Take the thresholds that nobody has changed."""
        described = ComponentEvaluationParameters.describe()
        self.form.set_values({each.name: each.default for each in described if each.decides})

    # ----------------------------------------------------------------------------- deciding

    def _decide(self) -> None:
        """Decide as the form says; a form that cannot be used says why when it is run."""
        self._decide_soon.stop()
        values = self.form.values()
        self._move_lines(values)
        self._say_note()
        if self.decisions is None:
            return
        try:
            parameters = replace(self.decisions.parameters, **{n: values[n] for n in DECIDES})
        except InputError as error:
            self.counts.setText(str(error))
            return
        self.decisions.set_parameters(parameters)
        self.counts.setText(_counted(self.decisions))

    def _move_lines(self, thresholds: Mapping[str, Any]) -> None:
        """Move the lines that are elsewhere: each that is moved is drawn anew."""
        for score, names in THRESHOLDS.items():
            histogram = self.histograms.histograms[score]
            wanted = {name: float(thresholds[name]) for name in names}
            if histogram.thresholds != wanted:
                histogram.set_thresholds(wanted)

    def _store(self) -> None:
        """Store what is decided, if that is not what is stored."""
        self._store_soon.stop()
        if self.decisions is not None:
            self.decisions.store()

    def _keep(self) -> None:
        """Store what was given a moment ago, before this form, or its session, is left."""
        if self._decide_soon.isActive():
            self._decide()
        self._store()

    def _on_dragged(self, thresholds: Mapping[str, float]) -> None:
        self._fill_in(thresholds)
        self._decide()

    def _fill_in(self, thresholds: Mapping[str, float]) -> None:
        """Set fields of the form without the effect that a person's change has."""
        self.form.set_values(thresholds)
        self._decide_soon.stop()
        self._store_soon.stop()

    def _on_field(self) -> None:
        self._decide_soon.start()
        if self.decisions is not None:
            self._store_soon.start()

    # ----------------------------------------------------------------- what is decided elsewhere

    def _follow(self) -> None:
        """Show what is decided of the session's cells."""
        decisions = decisions_of(self.viewer, self.session_path)
        if decisions is not self.decisions:
            if self.decisions is not None:
                self.decisions.changed.disconnect(self._on_decided)
                self.decisions.refused.disconnect(self.status.setText)
            if decisions is not None:
                decisions.changed.connect(self._on_decided)
                decisions.refused.connect(self.status.setText)
            self.decisions = decisions
        self._on_decided()

    def _on_decided(self) -> None:
        decisions = self.decisions
        scored = decisions is not None and bool(decisions.decided.scores)
        for widget in (self.histograms, self.rejected_box):
            widget.setVisible(scored)
        if decisions is None or not scored:
            self.counts.setText(RUN_FIRST)
            self._shown = ""
            if decisions is not None and decisions.waits and not self.runner.busy:
                self.status.setText(RUN_TO_USE)
        else:
            if self._shown != decisions.decided.scores:
                self._shown = decisions.decided.scores
                self.histograms.show(decisions.quality)
                QTimer.singleShot(0, self._give_room)
            self._show_thresholds(decisions.parameters)
            self.counts.setText(_counted(decisions))
            self.rejected_box.setChecked(decisions.shows_rejected)
        self._say_note()

    def _give_room(self) -> None:
        """Keep the histograms as high as they must be, which is known once they are laid out."""
        self.histograms.setMinimumHeight(self.histograms.layout().minimumSize().height())

    def showEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        """Give the histograms their room."""
        super().showEvent(event)
        QTimer.singleShot(0, self._give_room)

    def hideEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        """Store what was given a moment ago: the dock may be closed for good."""
        super().hideEvent(event)
        self._keep()

    def closeEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        """Store what was given a moment ago."""
        super().closeEvent(event)
        self._keep()

    def _show_thresholds(self, parameters: ComponentEvaluationParameters) -> None:
        """Show thresholds that did not come from this form."""
        given, shown = parameters.to_mapping(), self.form.values()
        changed = {name: given[name] for name in DECIDES if given[name] != shown[name]}
        if changed and not self._decide_soon.isActive():
            self._fill_in(changed)
        self._move_lines(given)

    def _say_note(self) -> None:
        """Say why the classifier was not asked, or will not be."""
        self.note.setText(self._not_asked())
        self.note.setVisible(bool(self.note.text()))

    def _not_asked(self) -> str:
        if self.decisions is not None:
            return self.decisions.decided.classifier
        session = Session(self.session_path) if Session.is_session(self.session_path) else None
        record = None if session is None else session.record("source_extraction")
        if session is None or record is None:
            return ""
        parameters = ComponentEvaluationParameters(classifier=self.form.values()["classifier"])
        said = why_not_asked(parameters, session.modality, record.parameters)
        return said.replace("was not asked", "will not be asked")

    # ------------------------------------------------------------------------- what it hears

    def _connect(self) -> None:
        super()._connect()
        self._decide_soon = single_shot(self, MILLISECONDS_TO_DECIDE, self._decide)
        self._store_soon = single_shot(self, MILLISECONDS_TO_STORE, self._store)
        self.histograms.dragged.connect(self._on_dragged)
        self.histograms.released.connect(self._store)
        for name in (*DECIDES, "classifier"):
            self.form.fields[name].changed.connect(lambda _: self._on_field())

    def _on_rejected(self, wanted: bool) -> None:
        if self.decisions is not None and self.decisions.shows_rejected != wanted:
            self.decisions.shows_rejected = wanted

    def _on_ended(self, answer: dict[str, Any]) -> None:
        mine = self._mine
        super()._on_ended(answer)
        self._follow()
        if mine and answer["state"] == "done":
            for warning in Session(self.session_path).warnings(SCORES):
                show_warning(warning)

    def _finished(self, answer: dict[str, Any]) -> str:
        warnings = Session(self.session_path).warnings(SCORES)
        return " ".join((super()._finished(answer), *warnings))

    # -------------------------------------------------------------------------- its widgets

    def _centre(self) -> QWidget:
        self._shown = ""
        self.histograms = ScoreHistograms(self.viewer)
        self.histograms.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Ignored)
        self.counts, self.note = wrapped(RUN_FIRST), wrapped("")
        self.counts.setMinimumHeight(LINES * self.counts.fontMetrics().lineSpacing())
        self.counts.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
        self.rejected_box = QCheckBox("Show rejected")
        self.rejected_box.setToolTip("Show rejected cells in the layers of cells and of outlines")
        self.rejected_box.setChecked(True)
        self.rejected_box.toggled.connect(self._on_rejected)
        self.reset_button = button(
            "Reset thresholds", "Take the thresholds that nobody has changed", self.reset
        )
        area: QScrollArea = super()._centre()
        area.takeWidget()
        content = QWidget()
        layout = QVBoxLayout(content)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.histograms, stretch=1)
        for label in (self.counts, self.note):
            layout.addWidget(label)
        line = row(self.rejected_box)
        line.addStretch(1)
        line.addWidget(self.reset_button)
        layout.addLayout(line)
        layout.addWidget(self.form.native)
        for group in self.form.groups.values():
            group.header.setChecked(False)
        area.setWidget(content)
        return area


def _counted(decisions: Decisions) -> str:
    """Say what is decided, and what to do where that is nothing good."""
    said = decisions.decided.counted()
    none = len(decisions.accepted) and not decisions.accepted.any()
    return f"{said}. {NONE_ACCEPTED}" if none else said
