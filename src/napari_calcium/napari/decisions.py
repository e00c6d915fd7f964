"""What is decided of the cells of a session, live, and the layers that show it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from napari.utils.colormaps import CyclicLabelColormap
from napari.utils.notifications import show_error
from numpy.typing import NDArray
from qtpy.QtCore import QObject, QTimer, Signal

from napari_calcium.components import Quality
from napari_calcium.errors import InputError
from napari_calcium.evaluation.evaluation import ComponentEvaluationParameters
from napari_calcium.io.choices import choose, read_choices
from napari_calcium.io.session import Session, StageRecord
from napari_calcium.napari.decided import (
    SCORES,
    Decided,
    label_colormap,
    label_colours,
    of_these_cells,
    parameters_of,
    read_decided,
)
from napari_calcium.napari.layers import CELLS, OUTLINES, metadata_of, session_name
from napari_calcium.napari.runner import runner_of
from napari_calcium.napari.viewing import show_colormap, shown_layer
from napari_calcium.pipeline.deciding import decide_again

__all__ = ["MARK", "Decisions", "decisions_of", "single_shot"]

MARK = (1.0, 1.0, 1.0, 1.0)
"""Colour of the outlines of the cells that are looked at."""

DECIDED = ("accepted", "reason", "choice")
"""The columns of the table of cells that change without new scores."""

SECONDS_BETWEEN_PAINTS = 0.02
MILLISECONDS_TO_PAINT, MILLISECONDS_TO_TABULATE, MILLISECONDS_BETWEEN_POLLS = 20, 120, 30


class Decisions(QObject):  # type: ignore[misc]
    """What is decided of the cells of one session, before it is stored and after.

    The layers of cells and of outlines that a viewer shows of the session are kept in step: their
    colours at once, the table of cells some times a second.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer.
    session : str
        The session, by its name in the layers' metadata.
    parent : QObject
        What lives as long as the viewer.

    Attributes
    ----------
    decided : Decided
        What is decided now; of no cells where the session has no scores.

    Signals
    -------
    changed()
        Something is decided otherwise, or of other cells.
    stored()
        What is decided is on disk.
    refused(str)
        It could not be stored, and why; what is on disk is taken again.
    """

    changed = Signal()
    stored = Signal()
    refused = Signal(str)

    def __init__(self, viewer: Any, session: str, parent: QObject) -> None:
        super().__init__(parent)
        self.session, self.decided = session, Decided.of_nothing()
        self._viewer, self._runner = viewer, runner_of(viewer)
        self._marked: frozenset[int] = frozenset()
        self._shows_rejected = True
        self._painted = 0.0
        self._seen: Seen | None = None
        self._stored = self.decided.parameters
        self._storing: list[Future[ComponentEvaluationParameters | None]] = []
        self._choosing: list[Future[None]] = []
        self._paint = single_shot(self, MILLISECONDS_TO_PAINT, self.paint)
        self._tabulate = single_shot(self, MILLISECONDS_TO_TABULATE, self.tabulate)
        self._poll = single_shot(self, MILLISECONDS_BETWEEN_POLLS, self._look)
        self._connect()
        self.renew()

    @property
    def quality(self) -> Quality:
        """The scores, decided by the thresholds."""
        return self.decided.quality

    @property
    def parameters(self) -> ComponentEvaluationParameters:
        """The thresholds, and what the scores were made with."""
        return self.decided.parameters

    @property
    def choices(self) -> Mapping[int, bool]:
        """The cells that a person accepted or rejected, by identity."""
        return self.decided.choices

    @property
    def cell_id(self) -> NDArray[np.int64]:
        """Identity of each cell, (cell,)."""
        return self.decided.cell_id

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """Which cells are accepted, by the thresholds and over them by a person, (cell,)."""
        return self.decided.accepted

    def why(self, index: int) -> str:
        """Say in a sentence why a cell is accepted or rejected."""
        return self.decided.why(index)

    # ----------------------------------------------------------------------------- deciding

    def set_parameters(self, parameters: ComponentEvaluationParameters) -> None:
        """Decide by other thresholds, which are not stored yet."""
        if parameters != self.parameters:
            self._take(self.decided.by(parameters))

    def store(self) -> None:
        """Store the thresholds and what they decide; where a run is at work, when it has ended."""
        if not self._storing and not self._unstored():
            return
        last = self._storing[-1] if self._storing else None
        if last is None or last.running() or last.done():
            self._storing.append(self._runner.write(self._store))
            self._poll.start()

    def _store(self) -> ComponentEvaluationParameters | None:
        """Store the thresholds that there are when their turn comes; none without scores."""
        session = Session(self.session)
        record = session.record(SCORES) if of_these_cells(session, SCORES) else None
        if record is None:
            return None
        parameters = _thresholds_of(self.parameters, parameters_of(record))
        decide_again(self.session, parameters)
        return parameters

    @property
    def waits(self) -> bool:
        """Whether thresholds were given that cannot be stored, as the scores are gone."""
        return not self.decided.scores and self._unstored()

    def _unstored(self) -> bool:
        """Whether the thresholds are others than those last read or stored."""
        return _thresholds_of(self.parameters, self._stored) != self._stored

    def choose(self, cell_ids: Iterable[int], accepted: bool | None, shown: str = "") -> None:
        """Accept or reject cells by hand, or with None leave them to their scores; it is stored.

        Parameters
        ----------
        cell_ids : iterable of int
            Identities of the cells.
        accepted : bool or None
            What is chosen.
        shown : str
            Digest of the layer in which the person sees the cells; nothing is chosen if the session
            holds others by now. Without it they are those that this is of.
        """
        chosen, shown = [int(cell_id) for cell_id in cell_ids], shown or self.decided.cells
        if self.decided.is_of(shown):
            choices = {each: made for each, made in self.choices.items() if each not in chosen}
            if accepted is not None:
                choices |= dict.fromkeys(chosen, accepted)
            self._take(replace(self.decided, choices=choices))
        self._choosing.append(self._runner.note(_choose, self.session, shown, chosen, accepted))
        self._poll.start()

    def _take(self, decided: Decided) -> None:
        self.decided = decided
        self.changed.emit()
        if not self._tabulate.isActive():  # once for all that comes until then
            self._tabulate.start()
        if time.monotonic() - self._painted > SECONDS_BETWEEN_PAINTS:
            self.paint()  # at once: what else this step changes is drawn with it
        elif not self._paint.isActive():
            self._paint.start()

    def renew(self) -> None:
        """Read what is on disk, if that is not what is held; thresholds not stored yet stay."""
        if self._choosing or any(write.running() for write in self._storing):
            return  # it is being replaced
        seen = _seen(self.session)
        if seen == self._seen and seen.choices == self.choices:
            return
        found = _read(self.session, self.decided, seen)
        unstored = self._unstored() and bool(self._storing or self.decided.scores)
        if found.scores:
            self._stored = found.parameters
        if unstored or not found.scores:
            found = found.by(_thresholds_of(self.parameters, found.parameters))
        self._seen = seen
        if _identity(found) != _identity(self.decided):
            self._take(found)
            self.paint()
            self.tabulate()

    def _look(self) -> None:
        """See whether what was to be stored is stored."""
        stored = [write for write in self._storing if write.done()]
        chosen = [write for write in self._choosing if write.done()]
        self._storing = [write for write in self._storing if write not in stored]
        self._choosing = [write for write in self._choosing if write not in chosen]
        if self._storing or self._choosing:
            self._poll.start()
        for write in stored:
            self._settle(write)
        try:
            if stored or chosen:
                self.renew()
        finally:
            for error in [*(w.exception() for w in stored), *(w.exception() for w in chosen)]:
                self._tell(error)

    def _settle(self, write: Future[ComponentEvaluationParameters | None]) -> None:
        """Remember the thresholds that were stored; go back to them if no others could be."""
        if write.exception() is None:
            self._stored = write.result() or self._stored
        elif not self._storing:  # otherwise they are to be stored once more
            self._take(self.decided.by(_thresholds_of(self._stored, self.parameters)))
            self.paint()

    def _tell(self, error: BaseException | None) -> None:
        """Tell what came of a write."""
        if error is not None:
            known = isinstance(error, InputError)
            said = str(error) if known else f"{type(error).__name__}: {error}"
            show_error(said)
            self.refused.emit(said)
        elif self.decided.scores:
            self.stored.emit()

    # ------------------------------------------------------------------------------ showing

    def mark(self, cell_ids: Collection[int]) -> None:
        """Outline these cells in white, and no others."""
        if self._marked != frozenset(cell_ids):
            self._marked = frozenset(cell_ids)
            self.paint()

    @property
    def shows_rejected(self) -> bool:
        """Whether rejected cells are to be seen."""
        return self._shows_rejected

    @shows_rejected.setter
    def shows_rejected(self, wanted: bool) -> None:
        self._shows_rejected = wanted
        self.paint()

    def paint(self) -> None:
        """Give each cell and its outline the colour that says what is decided of it."""
        self._paint.stop()
        colours = self.decided.colours(self._shows_rejected)
        if (cells := self._layer(CELLS)) is not None:
            _paint_labels(cells, self.cell_id + 1, colours)
        if (outlines := self._layer(OUTLINES)) is not None:
            _paint_outlines(outlines, self.cell_id, colours, self._marked)
        self._painted = time.monotonic()

    def tabulate(self) -> None:
        """Say in the table of the layer of cells what is decided of each."""
        self._tabulate.stop()
        if (cells := self._layer(CELLS)) is None:
            return
        table, columns = cells.features, self.decided.features()
        if any(name not in table or (table[name] != columns[name]).any() for name in DECIDED):
            cells.features = table.assign(**columns)

    def _layer(self, name: str) -> Any:
        """Return a layer of the cells that this is of; None where it is not shown."""
        layer = shown_layer(self._viewer, self.session, name)
        shown = layer is not None and self.decided.is_of(metadata_of(layer)["digest"])
        return layer if shown and len(self.cell_id) else None

    # ------------------------------------------------------------------------- what it hears

    def _connect(self) -> None:
        self._runner.ended.connect(self._on_ended)
        inserted, callback = self._viewer.layers.events.inserted, self._on_inserted
        inserted.connect(callback)
        self.destroyed.connect(lambda: inserted.disconnect(callback))

    def _on_ended(self, answer: Mapping[str, Any]) -> None:
        if "preview" not in answer:
            self.renew()
            self.paint()  # layers may be new though nothing else is
            self.tabulate()

    def _on_inserted(self, event: Any) -> None:
        about = metadata_of(event.value)
        if about.get("session") == self.session and about.get("layer") in (CELLS, OUTLINES):
            self._paint.start()


def single_shot(parent: QObject, milliseconds: int, slot: Callable[[], None]) -> QTimer:
    """Return a timer that calls once, so long after it was started last."""
    timer = QTimer(parent)
    timer.setSingleShot(True)
    timer.setInterval(milliseconds)
    timer.timeout.connect(slot)
    return timer


def decisions_of(viewer: Any, session: str) -> Decisions | None:
    """Return what is decided of a session's cells, up to date; None where they have no scores.

    There is one for each session of a viewer, made when it is first asked for.
    """
    viewer = getattr(viewer, "__wrapped__", viewer)  # napari hands plugins a proxy
    if not session or not Session.is_session(session):
        return None
    name, window = session_name(session), viewer.window._qt_window
    known = {each.session: each for each in window.findChildren(Decisions)}
    decisions = known.get(name)
    if decisions is None:
        decisions = Decisions(viewer, name, window)
    else:
        decisions.renew()
    return decisions if decisions.decided.scores else None


@dataclass(frozen=True)
class Seen:
    """What of a session on disk says whether something is decided anew."""

    cells: StageRecord | None
    scores: StageRecord | None
    choices: Mapping[int, bool]


def _seen(path: str) -> Seen:
    if not Session.is_session(path):
        return Seen(None, None, {})
    session = Session(path)
    scores = session.record(SCORES) if of_these_cells(session, SCORES) else None
    return Seen(session.record("source_extraction"), scores, read_choices(session))


def _of_same(held: Decided, seen: Seen) -> bool:
    """Whether what is held is of the same cells and scores as what is on disk."""
    if seen.cells is None or seen.scores is None:
        return False
    return (held.cells, held.scores) == (seen.cells.digest, seen.scores.digest)


def _read(path: str, held: Decided, seen: Seen) -> Decided:
    """Return what is on disk; scores are read only where they are not those that are held."""
    if seen.scores is None:
        return Decided.of_nothing()
    if _of_same(held, seen):
        return replace(held.by(parameters_of(seen.scores)), choices=seen.choices)
    return read_decided(Session(path)) or Decided.of_nothing()


def _identity(decided: Decided) -> tuple[Any, ...]:
    """Return all by which two decisions can differ."""
    return decided.cells, decided.scores, decided.parameters, dict(decided.choices)


def _thresholds_of(
    parameters: ComponentEvaluationParameters, others: ComponentEvaluationParameters
) -> ComponentEvaluationParameters:
    """Return the thresholds of some parameters with what the scores of others were made with."""
    thresholds = [each.name for each in parameters.describe() if each.decides]
    return replace(others, **{name: getattr(parameters, name) for name in thresholds})


def _choose(path: str, shown: str, cell_ids: list[int], accepted: bool | None) -> None:
    """Store a person's choice, if the session's cells are still those that the person sees."""
    session = Session(path)
    record = session.record("source_extraction")
    if record is None or not shown.startswith(record.digest):
        raise InputError(f"the cells of {path} were found anew since; open it again and choose")
    choose(session, cell_ids, accepted, of=record.digest)


def _paint_labels(layer: Any, labels: NDArray[np.int64], colours: NDArray[np.float32]) -> None:
    """Colour a Labels layer, if it is coloured otherwise."""
    table, shown = label_colours(labels, colours), layer.colormap
    if not isinstance(shown, CyclicLabelColormap) or shown.colors.shape != table.shape:
        show_colormap(layer, label_colormap(labels, colours))
    elif (shown.colors != table).any():  # in place, which takes a third of the time
        shown.colors[:] = table
        shown.events.colors(value=shown.colors)
        layer.events.colormap()


def _paint_outlines(
    layer: Any,
    cell_id: NDArray[np.int64],
    colours: NDArray[np.float32],
    marked: Collection[int],
) -> None:
    """Colour a Shapes layer of outlines, if it is coloured otherwise."""
    shown = np.asarray(layer.features["cell_id"])
    order = np.argsort(cell_id)
    wanted = colours[order[np.searchsorted(cell_id, shown, sorter=order)]]
    wanted[np.isin(shown, list(marked))] = MARK
    if (layer.edge_color != wanted).any():
        with layer.block_thumbnail_update():
            layer.edge_color = wanted
