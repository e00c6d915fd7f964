"""The window's end of the worker: starts it, asks it, hears it, and ends it at once.

The other end, and what both say, is `napari_calcium.pipeline.worker`. Nothing here waits for the
worker: two threads read its pipes, and `WorkerProcess.poll` takes what they have.
"""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["WorkerProcess"]

COMMAND = (sys.executable, "-P", "-m", "napari_calcium.pipeline.worker")
SECONDS_TO_END = 1.0
LINES_KEPT = 20

Answers = queue.SimpleQueue[dict[str, Any]]
Lines = deque[str]


@dataclass(frozen=True)
class _Running:
    """A worker at work, and what has come from it."""

    process: subprocess.Popen[str]
    answers: Answers
    reader: threading.Thread
    end: weakref.finalize[Any, Any]


class WorkerProcess:
    """A process that runs sessions, started when it is first asked and kept for the next time.

    It ends with `cancel` or `close`, when this object is collected, and with the interpreter.
    """

    def __init__(self) -> None:
        self._running: _Running | None = None

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._running is not None and self._running.process.poll() is None

    def request(self, request: Mapping[str, Any]) -> None:
        """Ask for a run; the answers come by `poll`, as `pipeline.worker` documents them.

        A worker that died since is replaced by a new one.
        """
        running = self._running if self.alive else None
        if running is None:
            self.close()
            self._running = running = self._started()
        line = json.dumps(request) + "\n"
        threading.Thread(target=_send, args=(running.process, line), daemon=True).start()

    def poll(self) -> list[dict[str, Any]]:
        """Return the answers since the last call, without waiting for any.

        Besides those of the worker there is ``{"state": "died", "message"}``, when it ended by
        itself.
        """
        found: list[dict[str, Any]] = []
        if self._running is not None:
            with contextlib.suppress(queue.Empty):
                while True:
                    found.append(self._running.answers.get_nowait())
        return found

    def cancel(self) -> None:
        """End the worker at once, in whatever it does; the next request starts another.

        What it had committed to a session is kept, and what was half written is never read.
        """
        running, self._running = self._running, None
        if running is not None:
            running.end()
            running.reader.join(SECONDS_TO_END)

    def close(self) -> None:
        """End the worker for good."""
        self.cancel()

    def _started(self) -> _Running:
        # Its pipes are text of this program's own making: JSON lines, and whatever libraries print.
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        answers: Answers = queue.SimpleQueue()
        reader = threading.Thread(target=_read, args=(process, answers), daemon=True)
        reader.start()
        return _Running(process, answers, reader, weakref.finalize(self, process.kill))


def _send(process: subprocess.Popen[str], line: str) -> None:
    """Write a line, in a thread of its own: a worker that is starting does not read yet."""
    with contextlib.suppress(OSError, ValueError):  # it ended; `_read` says so
        assert process.stdin is not None
        process.stdin.write(line)
        process.stdin.flush()


def _read(process: subprocess.Popen[str], answers: Answers) -> None:
    """Take the answers until the worker ends, then say how it ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    lines: Lines = deque(maxlen=LINES_KEPT)
    errors = threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True)
    errors.start()
    for line in process.stdout:
        with contextlib.suppress(ValueError):  # a line cut off by the worker's end
            answers.put(json.loads(line))
    code = process.wait()
    errors.join(SECONDS_TO_END)
    answers.put({"state": "died", "message": _ending(code, lines)})
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError):
            pipe.close()


def _ending(code: int, lines: Lines) -> str:
    """Say in a sentence how a worker ended."""
    if code == -9:
        how = "was killed (SIGKILL), perhaps for want of memory"
    elif code < 0:
        how = f"crashed ({signal.Signals(-code).name})"
    else:
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        how = f"ended with exit code {code}" + (f" ({last})" if last else "")
    return f"the worker {how}; what was finished is kept, run again to go on"
