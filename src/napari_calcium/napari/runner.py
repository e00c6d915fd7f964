"""Runs the stages that a viewer's forms ask for, one at a time, in one worker process."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from napari.utils.notifications import show_error
from qtpy.QtCore import QObject, QTimer, Signal

from napari_calcium.napari.viewing import (
    Changes,
    changes,
    hide_recording,
    show_changes,
    shown_digests,
    warm_up,
)
from napari_calcium.napari.worker_process import WorkerProcess
from napari_calcium.pipeline.stages import stage_named

__all__ = [
    "AnyRequest",
    "ExtractionPreviewRequest",
    "PreviewRequest",
    "Request",
    "Runner",
    "Writer",
    "progress_text",
    "runner_of",
]

T = TypeVar("T")

MILLISECONDS_BETWEEN_POLLS = 50
ENDINGS = ("done", "refused", "failed", "died", "cancelled")


@dataclass(frozen=True)
class Request:
    """A run: a session, its recording, the recipe's tables, and the last stage."""

    session: str
    sources: tuple[str, ...]
    recipe: dict[str, dict[str, Any]]
    until: str

    def message(self) -> dict[str, Any]:
        """Return the request as the worker takes it."""
        return {**vars(self), "sources": list(self.sources)}


@dataclass(frozen=True)
class PreviewRequest:
    """Motion correction of a stretch, into a folder; the session is only read."""

    session: str
    sources: tuple[str, ...]
    recipe: dict[str, dict[str, Any]]
    start: int
    stop: int
    folder: str

    def message(self) -> dict[str, Any]:
        """Return the request as the worker takes it."""
        return {**vars(self), "sources": list(self.sources), "kind": "preview"}


@dataclass(frozen=True)
class ExtractionPreviewRequest:
    """Source extraction of the patch around a point (y, x), into a folder, as above."""

    session: str
    recipe: dict[str, dict[str, Any]]
    centre: tuple[float, float]
    start: int
    stop: int
    folder: str

    def message(self) -> dict[str, Any]:
        """Return the request as the worker takes it."""
        return {**vars(self), "centre": list(self.centre), "kind": "preview_extraction"}


AnyRequest = Request | PreviewRequest | ExtractionPreviewRequest
"""A run, which changes a session, or a preview, which changes none."""


class Writer:
    """Writes small things to sessions, in a thread and in turn, and not while a run is at work."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._held: list[tuple[Future[Any], Callable[[], Any]]] | None = None
        self._last: Future[Any] | None = None

    def write(self, function: Callable[[], T]) -> Future[T]:
        """Call a function in the thread, after `release` if `hold` was called."""
        future: Future[T] = Future()
        if self._held is not None:
            self._held.append((future, function))
        else:
            self._last = self._thread.submit(_fulfil, future, function)
        return future

    @property
    def busy(self) -> bool:
        """Whether something is being written, or is to be and is not held."""
        return self._last is not None and not self._last.done()

    def hold(self) -> None:
        """Keep what comes from now on; what came before is written yet, while this is `busy`."""
        if self._held is None:
            self._held = []

    def release(self) -> None:
        """Write what was kept."""
        held, self._held = self._held or [], None
        for future, function in held:
            self._last = self._thread.submit(_fulfil, future, function)


def _fulfil(future: Future[T], function: Callable[[], T]) -> None:
    """Call a function, and have a future tell what came of it."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:  # noqa: BLE001 - whoever asks the future is told
        future.set_exception(error)


class Runner(QObject):  # type: ignore[misc]
    """The worker of one viewer, and the run it is at.

    Signals
    -------
    started(AnyRequest)
        A run or a preview began.
    progressed(dict)
        A stage's ``stage``, ``done`` and ``total`` tasks, and the ``seconds`` since it began.
    ended(dict)
        ``{"state": "done", "stages", ...}``, of a preview ``{"state": "done", "preview"}``, or
        refused, failed, died or cancelled with ``"message"``; the layers that show the session are
        up to date by then.
    """

    started = Signal(object)
    progressed = Signal(object)
    ended = Signal(object)

    def __init__(self, viewer: Any, parent: QObject) -> None:
        super().__init__(parent)
        self.worker = WorkerProcess()
        self.request: AnyRequest | None = None
        self._warm: set[str] = set()
        self._viewer = viewer
        self._stage, self._since = "", 0.0
        self._asked = False
        self._threads = ThreadPoolExecutor(1)
        self._writer, self._notes = Writer(), Writer()
        self._ending: tuple[dict[str, Any], Future[Changes | None]] | None = None
        self._timer = QTimer(self)
        self._timer.setInterval(MILLISECONDS_BETWEEN_POLLS)
        self._timer.timeout.connect(self._poll)
        worker, writer = self.worker, self._writer

        def leave() -> None:
            worker.close()
            writer.release()

        parent.destroyed.connect(leave)

    @property
    def busy(self) -> bool:
        """Whether a run is going on."""
        return self.request is not None

    def warm_up(self, session: str = "", stage: str = "motion_correction") -> None:
        """Have the first preview of a stage, perhaps of a session, be as fast as others.

        Starts the worker; does nothing where it was asked for already, or has something to do.
        """
        if not self.worker.alive:
            self._warm.clear()
        if stage not in self._warm and not self.busy:
            self._warm.add(stage)
            self.worker.request({"kind": "warm_up", "session": session, "stage": stage})

    def read(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call a function in a thread, one after the other."""
        return self._threads.submit(function, *arguments)

    def write(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call a function that changes results, in a thread, when no run is at work."""
        return self._writer.write(partial(function, *arguments))

    def note(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call a function that changes what no run touches, in a thread, one after the other."""
        return self._notes.write(partial(function, *arguments))

    def start(self, request: AnyRequest) -> None:
        """Begin a run or a preview; does nothing while another one goes on."""
        if self.busy:
            return
        self.request, self._asked = request, False
        self._stage = ""
        self._writer.hold()
        self._ask(request)
        self._timer.start()
        self._threads.submit(warm_up)
        self.started.emit(request)

    def _ask(self, request: AnyRequest) -> None:
        """Hand the worker a request, once nothing is being written to a session any more."""
        if not self._writer.busy:
            self._asked = True
            self.worker.request(request.message())

    def cancel(self) -> None:
        """End the run at once; what was finished is kept."""
        if self.busy and self._ending is None:
            self.worker.cancel()
            self._end({"state": "cancelled", "message": "Cancelled; what was finished is kept."})

    def _poll(self) -> None:
        if self._ending is not None:
            if self._ending[1].done():
                self._show(*self._ending)
            return
        if self.request is not None and not self._asked:
            self._ask(self.request)
            return
        for answer in self.worker.poll():
            if answer["state"] == "progress":
                self._progress(answer)
            elif answer["state"] in ENDINGS:
                self._end(answer)
                return

    def _progress(self, answer: dict[str, Any]) -> None:
        now = time.monotonic()
        if answer["stage"] != self._stage:
            self._stage, self._since = answer["stage"], now
        self.progressed.emit({**answer, "seconds": now - self._since})

    def _end(self, answer: dict[str, Any]) -> None:
        """Begin to read what the run made, also where it did not come to its end."""
        if answer["state"] in ("refused", "failed", "died"):
            show_error(answer["message"])
        assert self.request is not None
        if not isinstance(self.request, Request):  # a preview, which changed no session
            self._timer.stop()
            self.request = None
            self._tell(answer)
            return
        session = self.request.session
        shown = shown_digests(self._viewer, session)
        self._ending = answer, self._threads.submit(changes, session, shown)

    def _show(self, answer: dict[str, Any], read: Future[Changes | None]) -> None:
        """Show what was read; the run is over."""
        self._timer.stop()
        request, self.request, self._ending = self.request, None, None
        try:
            if (found := read.result()) is not None:
                show_changes(self._viewer, found)
            if answer["state"] == "done" and isinstance(request, Request) and request.sources:
                hide_recording(self._viewer, list(request.sources))
        finally:
            self._tell(answer)

    def _tell(self, answer: dict[str, Any]) -> None:
        """Tell that a run is over, and write what had to wait for it."""
        self.ended.emit(answer)
        if not self.busy:
            self._writer.release()


def runner_of(viewer: Any) -> Runner:
    """Return the runner of a viewer's window, made when it is first asked for."""
    viewer = getattr(viewer, "__wrapped__", viewer)  # napari hands plugins a proxy
    window = viewer.window._qt_window
    runner = window.findChild(Runner)
    return runner if runner is not None else Runner(viewer, window)


def progress_text(progress: dict[str, Any], modality: str = "") -> str:
    """Say how far a stage is, of a recording that is marked so.

    Examples
    --------
    >>> progress_text({"stage": "dff", "done": 3, "total": 12, "seconds": 30.0})
    'dF/F, 3 of 12, 2 min left'
    >>> progress_text({"stage": "dff", "done": 0, "total": 1, "seconds": 0.0})
    'dF/F'
    """
    done, total = progress["done"], progress["total"]
    title = stage_named(progress["stage"]).titled(modality)
    if not done:
        return title
    left = progress["seconds"] * (total - done) / done
    return f"{title}, {done} of {total}, {_duration(left)} left"


def _duration(seconds: float) -> str:
    """Return a time as a person says it.

    Examples
    --------
    >>> _duration(4.2), _duration(90), _duration(5400)
    ('5 s', '2 min', '1 h 30 min')
    """
    whole = -(-int(10 * seconds) // 10)
    if whole < 60:
        return f"{whole} s"
    minutes = -(-whole // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
