"""The form of dF/F, with the movie of it for looking."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from napari.layers import Layer
from napari.utils import Colormap
from napari.utils.notifications import show_error
from numpy.typing import NDArray
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QWidget

from napari_calcium.activity.dff import KINDS
from napari_calcium.activity.movies import detrended_movie, dff_movie
from napari_calcium.errors import InputError
from napari_calcium.io.session import Session
from napari_calcium.movie import Movie, Reader
from napari_calcium.napari.layers import AXES, IMAGES, KEY, metadata_of, session_name
from napari_calcium.napari.stage_form import StageWidget, button
from napari_calcium.napari.viewing import lying_on, shown_layer
from napari_calcium.pipeline.stages import stage_named

__all__ = ["GROUPS", "ChangeMovie", "DffWidget", "change_movie", "change_movie_of"]

GROUPS: dict[str, tuple[str, ...]] = {
    "Baseline": ("window", "percentile", "dark_level", "floor"),
    "Neuropil": ("neuropil", "ring_factor", "ring_gap", "ring_pixels"),
    "Bleaching": ("bleaching", "bleaching_order"),
    "Output": ("kind", "output"),
}
"""Headings of the form, and the parameters under each."""

CORRECTED, STAGE = "motion_correction/frames", "motion_correction"
ABOUT = "change_movie"
"""Key of a layer's metadata for the session whose change it shows."""

NAMES = {"dff": "dF/F movie", "detrended": "detrended movie (counts)"}
BUTTONS = {"dff": "Show dF/F movie", "detrended": "Show detrended movie"}
TOOL_TIPS = {
    "dff": "Show how much each pixel differs from its own slow baseline, as a fraction of it, as "
    "window and percentile say; it is made as you look and nothing is stored",
    "detrended": "Show how many counts each pixel differs from its own slow baseline, as window "
    "and percentile say; it is made as you look and nothing is stored",
}

LOW = 8.0
"""Percentile of a pixel's baseline where the form leaves it to each cell, %."""

COLOURS = [
    (0.7, 0.95, 1.0),
    (0.05, 0.35, 0.75),
    (0.0, 0.0, 0.0),
    (0.75, 0.25, 0.05),
    (1, 0.95, 0.6),
]
"""From the darkest change through none, black, to the brightest."""

BRIGHTEST = 99.8
"""Percentile of the pixels that is shown brightest."""

WIDER = 4
"""How far the contrast can be drawn by its slider, relative to what is set at first."""

PLACES = (0.2, 0.5, 0.8)
"""Parts of the recording where frames are looked at for that."""

MILLISECONDS_BETWEEN_LOOKS = 30


@dataclass(frozen=True)
class ChangeMovie:
    """A movie of change, and how it is to be shown.

    Parameters
    ----------
    session : str
        The session.
    digest : str
        What identifies its corrected movie.
    kind : {"dff", "detrended"}
        Whether it is a fraction or counts.
    frames : dask.array.Array (time, y, x)
        The movie, lazy.
    limit : float
        The change to show brightest.
    said : str
        What it is, in a sentence.
    """

    session: str
    digest: str
    kind: str
    frames: da.Array
    limit: float
    said: str


class DffWidget(StageWidget):
    """The form of dF/F.

    Attributes
    ----------
    movie_button : QPushButton
        Shows the movie of change, or renews it.
    """

    stage = stage_named("dff")
    groups = GROUPS
    _reading: Future[ChangeMovie] | None = None

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self._name_button()

    def show_recorded(self) -> None:
        """Show the parameters of the session, and what its movie of change is called."""
        super().show_recorded()
        self._name_button()

    def show_movie(self) -> None:
        """Show the movie of change as the form says, as soon as a few frames are looked at."""
        values = self.form.values()
        self.movie_button.setEnabled(False)
        self.status.setText("Looking at the corrected movie")
        self._reading = self.runner.read(
            change_movie, self.session_path, self._kind(), values, self._frame()
        )
        self._look.start()

    def _show_read(self) -> None:
        reading = self._reading
        if reading is None or not reading.done():
            return
        self._look.stop()
        self._reading = None
        self.movie_button.setEnabled(True)
        try:
            found = reading.result()
        except InputError as error:
            self.status.setText(str(error))
            show_error(str(error))
            return
        if session_name(self.session_path) != found.session:
            self.status.setText("Another session was chosen; show its movie again.")
            return
        _show(self.viewer, found)
        self.status.setText(found.said)

    def _kind(self) -> str:
        """Return whether the session has dF/F or only what is left without the baseline."""
        kind = self.form.values()["kind"]
        return "detrended" if "detrended" in (kind, KINDS.get(self._modality())) else "dff"

    def _frame(self) -> int:
        """Return the frame that is shown."""
        movie = shown_layer(self.viewer, self.session_path, CORRECTED)
        return 0 if movie is None else round(float(movie.world_to_data(self.viewer.dims.point)[0]))

    # ------------------------------------------------------------------------- what it hears

    def _connect(self) -> None:
        super()._connect()
        self._look = QTimer(self)
        self._look.setInterval(MILLISECONDS_BETWEEN_LOOKS)
        self._look.timeout.connect(self._show_read)
        self.form.fields["kind"].changed.connect(lambda _: self._name_button())

    def _on_ended(self, answer: dict[str, Any]) -> None:
        super()._on_ended(answer)
        self._name_button()
        self._renew()

    def _renew(self) -> None:
        """Show the corrected movie that there is now, as it is marked, if another one is shown."""
        layer, path = change_movie_of(self.viewer, self.session_path), self.session_path
        if layer is None:
            return
        shown = metadata_of(layer)
        if (shown["digest"], shown["kind"]) == (_digest(path), self._kind()):
            return
        if Session.is_session(path) and CORRECTED in Session(path):
            self.show_movie()
        else:
            self.viewer.layers.remove(layer)

    # -------------------------------------------------------------------------- its widgets

    def _name_button(self) -> None:
        kind = self._kind()
        self.movie_button.setText(BUTTONS[kind])
        self.movie_button.setToolTip(TOOL_TIPS[kind])

    def _beside_run(self) -> list[QWidget]:
        self.movie_button = button(BUTTONS["dff"], TOOL_TIPS["dff"], self.show_movie)
        return [self.movie_button]


def change_movie(path: str, kind: str, values: Mapping[str, Any], frame: int) -> ChangeMovie:
    """Return a session's movie of change, after looking at a few frames; to be called in a thread.

    Parameters
    ----------
    path : str
        The session.
    kind : {"dff", "detrended"}
        Whether the change is divided by the baseline.
    values : mapping
        What the form says, of which `window` and `percentile` are taken.
    frame : int
        The frame that will be looked at first, so that it is there at once.

    Raises
    ------
    InputError
        If there is no corrected movie of one plane, or the values cannot be used.
    """
    if not path:
        raise InputError("session is not given; import a recording or choose a session")
    session = Session(path)
    movie = session.movie(CORRECTED)
    window, percentile = float(values["window"]), float(values["percentile"]) or LOW
    make = dff_movie if kind == "dff" else detrended_movie
    frames = make(movie, window, percentile)
    limit = _limit(Movie(frames, movie.frame_rate), frame)
    span = f"{window:g} s" if window else "the whole recording"
    said = (
        f"{NAMES[kind]} is shown, for looking: each pixel's baseline is the {percentile:g} % "
        f"percentile in {span}."
    )
    said = said[0].upper() + said[1:] if kind == "detrended" else said
    return ChangeMovie(session_name(path), _digest(path), kind, frames, limit, said)


def _limit(movie: Movie, frame: int) -> float:
    """Return the change to show brightest; not by Dask's scheduler, whose cache is the window's."""
    reader, last = Reader(movie), movie.n_frames - 1
    wanted = [round(place * last) for place in PLACES]
    wanted.append(min(max(frame, 0), last))  # the last one is surely kept
    sample = np.concatenate([reader.read(slice(each, each + 1)).ravel() for each in wanted])
    return _brightest(sample)


def _brightest(change: NDArray[np.float32]) -> float:
    """Return the change that few pixels exceed; 1 where nothing rises.

    Examples
    --------
    >>> _brightest(np.linspace(-0.5, 1, 10).astype(np.float32).round(2)), _brightest(np.zeros(3))
    (1.0, 1.0)
    """
    known = change[np.isfinite(change)]
    limit = float(np.percentile(known, BRIGHTEST)) if known.size else 0.0
    return float(f"{limit:.2g}") if limit > 0 else 1.0


def change_movie_of(viewer: Any, session: str) -> Any:
    """Return the layer that shows a session's movie of change, or None."""
    name = session_name(session)
    return next((each for each in viewer.layers if metadata_of(each).get(ABOUT) == name), None)


def _show(viewer: Any, found: ChangeMovie) -> None:
    """Show a movie of change in place of an earlier one; contrast stays where it means the same."""
    about = {ABOUT: found.session, "digest": found.digest, "kind": found.kind}
    place = _place(shown_layer(viewer, found.session, CORRECTED))
    looks = {"name": NAMES[found.kind], "contrast_limits": (-found.limit, found.limit)}
    layer = change_movie_of(viewer, found.session)
    if layer is None:
        _insert(viewer, found, {**looks, **place, "metadata": {KEY: about}})
        return
    changed = {} if metadata_of(layer) == about else looks
    layer.data, layer.visible = found.frames, True
    layer.metadata = {**layer.metadata, KEY: about}
    for name, value in {**place, **changed}.items():
        setattr(layer, name, value)


def _insert(viewer: Any, found: ChangeMovie, attributes: Mapping[str, Any]) -> None:
    """Add the layer above the session's movies and images, and leave those selected that were."""
    colours = Colormap(COLOURS, name="below and above the baseline")
    attributes = {"colormap": colours, "axis_labels": AXES[3], "visible": False, **attributes}
    below = [shown_layer(viewer, found.session, name) for name in IMAGES]
    places = [viewer.layers.index(layer) + 1 for layer in below if layer is not None]
    selected = set(viewer.layers.selection)
    layer = Layer.create(found.frames, attributes, "image")
    layer.contrast_limits_range = (-WIDER * found.limit, WIDER * found.limit)
    viewer.layers.insert(max(places, default=len(viewer.layers)), layer)
    layer.visible = True  # not before: napari would make the first frame, which nobody looks at
    if selected:
        viewer.layers.selection = selected


def _place(movie: Any) -> dict[str, Any]:
    """Return scale and translation (time, y, x) of a layer that lies on a movie's."""
    plane = lying_on(movie)
    time = (1.0, 0.0) if movie is None else (movie.scale[-3], movie.translate[-3])
    return {
        name: (first, *map(float, plane[name]))
        for name, first in zip(("scale", "translate"), time, strict=True)
    }


def _digest(path: str) -> str:
    """Return what identifies a session's corrected movie, empty where there is none."""
    record = Session(path).record(STAGE) if Session.is_session(path) else None
    return record.digest if record else ""
