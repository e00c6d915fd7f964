"""The form of spike inference: which model, whether it is for this recording, and the noise."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from napari.utils.notifications import show_warning
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFileDialog, QLabel, QPushButton, QScrollArea, QVBoxLayout, QWidget

from napari_calcium.io.session import Session
from napari_calcium.napari.decided import CHANGE, RATES, digest_of_these_cells
from napari_calcium.napari.decisions import single_shot
from napari_calcium.napari.layers import session_name
from napari_calcium.napari.noise_histogram import NoiseHistogram
from napari_calcium.napari.stage_form import StageWidget, button, wrapped
from napari_calcium.napari.trace_noise import Fit, TraceNoise, fit_of, read_noise
from napari_calcium.pipeline.stages import stage_named
from napari_calcium.spikes.inference import SpikeInferenceParameters

__all__ = ["GROUPS", "RUN_DFF", "Seen", "SpikeInferenceWidget", "see"]

MODEL = ("model", "model_file")
GROUPS: dict[str, tuple[str, ...]] = {
    "Model": MODEL,
    "Rate": tuple(
        each.name for each in SpikeInferenceParameters.describe() if each.name not in MODEL
    ),
}
"""Headings of the form, and the parameters under each."""

ABOUT_MODEL = (*MODEL, "kernel", "smoothing")
"""The parameters on which what is said of the model depends."""

RUN_DFF = "Run dF/F to see how noisy the traces are; Run does so, too."
LOOKING = "Looking at the noise of the traces"
UNREADABLE = "The traces or the model cannot be read ({}: {}); choose them again."
CHOOSE_TIP = "Choose the folder of a model that napari-calcium train-spikes wrote"

MILLISECONDS_TO_SEE, MILLISECONDS_BETWEEN_LOOKS = 30, 30

Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Seen:
    """What is known of a session's traces and of a model.

    Parameters
    ----------
    key : tuple of str
        The session, and what identifies its recording and the traces and rates of its cells.
    noise : TraceNoise or None
        None where there are no traces.
    fit : Fit
        What the model is for.
    """

    key: Key
    noise: TraceNoise | None
    fit: Fit


class SpikeInferenceWidget(StageWidget):
    """The form of spike inference.

    Attributes
    ----------
    model_line : QLabel
        What the model is for, whether it is for this recording, and how its rates are smoothed.
    histogram : NoiseHistogram
        The noise levels of the cells, beside what the model was trained on.
    counts : QLabel
        Of how many cells what speaks against their rates.
    model_button : QPushButton
        Chooses a model of one's own.
    seen : Seen or None
        What those show; None before anything was read.
    """

    stage = stage_named("spike_inference")
    groups = GROUPS
    model_line: QLabel
    histogram: NoiseHistogram
    counts: QLabel
    model_button: QPushButton
    seen: Seen | None = None
    _reading: Future[Seen] | None = None

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self._see_soon.start()

    def show_recorded(self) -> None:
        """Show the parameters of the session, and how noisy its traces are."""
        super().show_recorded()
        self._see_soon.start()

    @property
    def looking(self) -> bool:
        """Whether something is being read, or is to be."""
        return self._reading is not None or self._see_soon.isActive()

    # ------------------------------------------------------------------------------- reading

    def _see(self) -> None:
        """Read what is to be shown, in a thread; what came meanwhile, afterwards."""
        if self.seen is None or self.seen.key[0] != session_name(self.session_path):
            self._show_nothing(LOOKING)
        if self._reading is not None:
            self._again = True
            return
        self._again = False
        self._reading = self._thread.submit(see, self.session_path, self.form.values(), self.seen)
        self._look.start()

    def _take(self) -> None:
        """Show what was read, once it is."""
        if self._reading is None or not self._reading.done():
            return
        self._look.stop()
        reading, self._reading = self._reading, None
        if (error := reading.exception()) is not None:  # as when they are replaced meanwhile
            self._show_nothing(UNREADABLE.format(type(error).__name__, error))
        else:
            self._show_seen(reading.result())
        if self._again:
            self._see()

    def _show_nothing(self, why: str) -> None:
        self.seen = None
        self.model_line.setText("")
        self.histogram.setVisible(False)
        self.counts.setText(why)

    def _show_seen(self, seen: Seen) -> None:
        self.seen = seen
        self.model_line.setText(seen.fit.said)
        levels = np.zeros(0, np.float32) if seen.noise is None else seen.noise.noise_level
        self.histogram.show_levels(levels, seen.fit.noise_levels)
        if seen.noise is None:
            self.counts.setText(RUN_DFF if self.session_path else "")
        else:
            self.counts.setText(seen.noise.said(seen.fit.noise_levels))

    # -------------------------------------------------------------------------- what it hears

    def _connect(self) -> None:
        super()._connect()
        self._again = False
        self._thread = thread = ThreadPoolExecutor(1)  # the runner's has to be free for a run's end
        self.destroyed.connect(lambda: thread.shutdown(wait=False))
        self._see_soon = single_shot(self, MILLISECONDS_TO_SEE, self._see)
        self._look = QTimer(self)
        self._look.setInterval(MILLISECONDS_BETWEEN_LOOKS)
        self._look.timeout.connect(self._take)
        for name in ABOUT_MODEL:
            self.form.fields[name].changed.connect(lambda _: self._see_soon.start())

    def _on_ended(self, answer: dict[str, Any]) -> None:
        mine = self._mine
        super()._on_ended(answer)
        if "preview" not in answer:
            self._see_soon.start()
        if mine and answer["state"] == "done":
            for warning in Session(self.session_path).warnings(RATES):
                show_warning(warning)

    def _finished(self, answer: dict[str, Any]) -> str:
        warnings = Session(self.session_path).warnings(RATES)
        return " ".join((super()._finished(answer), *warnings))

    def _choose_model(self) -> None:
        if path := QFileDialog.getExistingDirectory(self, "Model", ""):
            self.form.set_values({"model_file": path})

    # --------------------------------------------------------------------------- its widgets

    def _centre(self) -> QWidget:
        self.model_line, self.counts = wrapped(""), wrapped("")
        self.histogram = NoiseHistogram(self.viewer)
        self.histogram.setVisible(False)
        area: QScrollArea = super()._centre()
        area.takeWidget()
        content = QWidget()
        layout = QVBoxLayout(content)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.form.native)
        layout.addWidget(self.model_line)
        layout.addWidget(self.histogram)
        layout.addWidget(self.counts)
        layout.addStretch()
        area.setWidget(content)
        return area

    def _beside_run(self) -> list[QWidget]:
        self.model_button = button("Own model...", CHOOSE_TIP, self._choose_model)
        return [self.model_button]


def see(path: str, values: Mapping[str, Any], earlier: Seen | None = None) -> Seen:
    """Read what is known of a session's traces and of a model; to be called in a thread.

    Parameters
    ----------
    path : str
        The session.
    values : mapping
        What the form says.
    earlier : Seen, optional
        What was read before: traces are not read again where they are the same.
    """
    key = session_name(path), *_digests(path)
    same = earlier is not None and earlier.key == key
    noise = earlier.noise if earlier is not None and same else read_noise(path)
    return Seen(key, noise, fit_of(path, values))


def _digests(path: str) -> tuple[str, str, str]:
    """Return what identifies the recording, and traces and rates if they are of its cells."""
    if not Session.is_session(path):
        return "", "", ""
    session = Session(path)
    movie = session.record("movie")
    change, rates = (digest_of_these_cells(session, group) for group in (CHANGE, RATES))
    return movie.digest if movie else "", change, rates
