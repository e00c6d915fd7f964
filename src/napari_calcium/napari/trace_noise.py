"""How noisy a session's traces are, and whether a model of spike inference is for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.io.session import Session
from napari_calcium.napari.decided import CHANGE, RATES, of_these_cells
from napari_calcium.spikes.guards import UNIT, Mark, trace_marks, warnings_of
from napari_calcium.spikes.inference import (
    SpikeInferenceParameters,
    SpikeModel,
    check_model,
    read_spike_model,
)
from napari_calcium.spikes.noise import noise_level

__all__ = ["Fit", "TraceNoise", "fit_of", "read_noise"]

CELLS_AT_ONCE = 64
"""As they lie on disk."""

OF_RANGE = Mark.TOO_NOISY | Mark.TOO_QUIET
"""The marks that depend on what noise the model was trained on."""

OF_MODEL = Mark.FRAME_RATE | Mark.UNKNOWN
"""The marks that depend otherwise on the model, and in place of which there may be others."""

ANY = (0.0, np.inf)

PURPOSES = {
    "excitatory": "For excitatory neurons",
    "interneurons": "For interneurons, which fire faster and in other patterns",
}
"""What the models that come with the program are for."""


@dataclass(frozen=True)
class TraceNoise:
    """The noise of the traces of the stage dff.

    Parameters
    ----------
    noise_level : ndarray (cell,)
        % per root Hz; NaN where it is not known.
    marks : ndarray of uint8 (cell,)
        Bits of `Mark`, but those that depend on the model.
    """

    noise_level: NDArray[np.float32]
    marks: NDArray[np.uint8]

    def marks_for(self, noise_levels: tuple[float, float]) -> NDArray[np.uint8]:
        """Return all marks (cell,), with those for a model that was trained on noise levels.

        Examples
        --------
        >>> noise = TraceNoise(np.float32([0.5, 2, 9, 9]), np.array([0, 0, 0, 1], np.uint8))
        >>> noise.marks_for((1, 8)).tolist()
        [4, 0, 2, 1]
        """
        low, high = noise_levels
        found = np.where(self.noise_level > high, Mark.TOO_NOISY, 0)
        found = found + np.where(self.noise_level < low, Mark.TOO_QUIET, 0)
        found[(self.marks & Mark.UNKNOWN) != 0] = 0
        return (self.marks | found).astype(np.uint8)

    def said(self, noise_levels: tuple[float, float] | None) -> str:
        """Say of how many cells what speaks against their rates by such a model, or by any."""
        n_cells = len(self.marks)
        if not n_cells:
            return "There are no cells."
        marks = self.marks_for(noise_levels or ANY)
        sentences = warnings_of(marks, self.noise_level, noise_levels)
        if sentences:
            return " ".join(sentences)
        said = f"The noise of the {n_cells} cells has the median {self._median:.3g} {UNIT}"
        if noise_levels is None:
            return f"{said}."
        low, high = noise_levels
        return f"{said} and is within what the model was trained on, {low:g} to {high:g}."

    @property
    def _median(self) -> float:
        known = self.noise_level[np.isfinite(self.noise_level)]
        return float(np.median(known)) if known.size else math.nan


@dataclass(frozen=True)
class Fit:
    """What a model is for, and whether it is for a recording.

    Parameters
    ----------
    said : str
        In a few sentences; why it cannot be used where it cannot.
    noise_levels : tuple of float, optional
        Lowest and highest noise level it was trained on, % per root Hz; None without a model.
    fits : bool
        Whether it can be used at the frame rate.
    """

    said: str
    noise_levels: tuple[float, float] | None = None
    fits: bool = False


def read_noise(path: str) -> TraceNoise | None:
    """Return the noise of a session's traces, as stored or else measured; to be called in a thread.

    It is measured anew where what is stored is of another frame rate, or has marks of which those
    for another model do not follow.

    Returns
    -------
    TraceNoise or None
        None where there is no session, or no traces of the cells that it holds now.
    """
    if not Session.is_session(path) or not of_these_cells(Session(path), CHANGE):
        return None
    session = Session(path)
    if session.is_current(RATES):
        marks = session.read(f"{RATES}/marks")
        if not (marks & np.uint8(OF_MODEL)).any():
            return TraceNoise(session.spike_noise_level(), marks & ~np.uint8(OF_RANGE))
    about, array = session.group_attrs(CHANGE), session.array(f"{CHANGE}/traces")
    levels = np.full(array.shape[0], np.nan, np.float32)
    if about.get("kind", "dff") == "detrended":
        return TraceNoise(levels, np.full(len(levels), Mark.DETRENDED, np.uint8))
    marks = np.zeros(len(levels), np.uint8)
    for start in range(0, len(levels), CELLS_AT_ONCE):
        rows = slice(start, min(start + CELLS_AT_ONCE, len(levels)))
        traces = np.asarray(array[rows], np.float32)
        traces[~np.isfinite(traces)] = np.nan
        levels[rows] = noise_level(traces, session.frame_rate)
        marks[rows] = trace_marks(traces, session.frame_rate, ANY)
    smoothed = Mark.SMOOTHED if about.get("output") == "denoised" else 0
    return TraceNoise(levels, marks | np.uint8(smoothed))


def fit_of(path: str, values: Mapping[str, Any]) -> Fit:
    """Return whether the model that a form says is for a session; to be called in a thread.

    Parameters
    ----------
    path : str
        The session; without one only what the model is for is said.
    values : mapping
        Parameters of spike inference by their names.
    """
    try:
        parameters = SpikeInferenceParameters.from_mapping(values)
        model = read_spike_model(parameters)
    except InputError as error:
        return Fit(_sentence(error))
    session = Session(path) if Session.is_session(path) else None
    if session is None or session.record("movie") is None:
        return Fit(_for_what(model), model.noise_levels, fits=True)
    try:
        check_model(parameters, session.frame_rate)
    except InputError as error:
        return Fit(f"{_for_what(model)} {_sentence(error)}", model.noise_levels)
    said = f"{_for_what(model)} {_recommended(session.frame_rate, model, parameters)}"
    return Fit(said, model.noise_levels, fits=True)


def _for_what(model: SpikeModel) -> str:
    """Say what a model is for and what it was trained on, as its card does."""
    low, high = model.frame_rates
    about = PURPOSES.get(model.name, f"The model {model.name}")
    rates = f"{low:g} Hz" if low == high else f"{low:g} to {high:g} Hz"
    data = model.card.get("data", ())
    neurons = sum(int(each.get("neurons", 0)) for each in data)
    trained = f"; trained on {neurons} neurons of {len(data)} data sets" if neurons else ""
    return f"{about}, at {rates}{trained}."


def _recommended(rate: float, model: SpikeModel, parameters: SpikeInferenceParameters) -> str:
    """Say that a model can be used at a frame rate, and how its rates will be smoothed."""
    seconds = parameters.smoothing or model.smoothing(rate)
    kernel = "a Gaussian of sd" if parameters.kernel == "gaussian" else "a causal kernel of"
    return (
        f"Recommended at the {rate:g} Hz of this recording; rates will be smoothed with {kernel} "
        f"{1000 * seconds:.3g} ms."
    )


def _sentence(error: InputError) -> str:
    """Return what is wrong as a sentence.

    Examples
    --------
    >>> _sentence(InputError("frame_rate is 1 Hz"))
    'Frame_rate is 1 Hz.'
    """
    said = str(error)
    return f"{said[:1].upper()}{said[1:]}."
