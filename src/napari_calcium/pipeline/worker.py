"""The worker: runs sessions for a window, in a process of its own.

Started as ``python -m napari_calcium.pipeline.worker``. It reads requests from standard input and
answers on standard output, each one JSON object on one line, so the window never computes, a kill
is a prompt cancel (a session's commits are atomic), and nothing is pickled.

Request: ``{"session", "sources", "recipe", "until", "workers"}``. Answers: ``{"state": "ready"}``
once; then ``{"state": "progress", "stage", "done", "total"}`` any number of times, ended by
``{"state": "done", "stages", "peak_memory"}``, ``{"state": "refused", "message"}`` for an
`InputError`, or ``{"state": "failed", "message", "traceback"}`` for a bug.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import IO, Any

from napari_calcium.errors import InputError
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import Progress, run

__all__ = ["serve"]

SECONDS_BETWEEN_REPORTS = 0.05


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Answer requests until there are no more."""

    def answer(message: Mapping[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    answer({"state": "ready"})
    for line in requests:
        answer(_answered(json.loads(line), _sparing(answer)))


def _answered(request: Mapping[str, Any], progress: Callable[[Progress], None]) -> dict[str, Any]:
    try:
        report = run(
            request["session"],
            request.get("sources", ()),
            recipe=Recipe(request.get("recipe", {})),
            until=request.get("until"),
            workers=request.get("workers"),
            progress=progress,
        )
    except InputError as error:
        return {"state": "refused", "message": str(error)}
    except Exception as error:  # noqa: BLE001 - a bug in a stage is reported, not fatal to the worker
        message = f"{type(error).__name__}: {error}"
        return {"state": "failed", "message": message, "traceback": traceback.format_exc()}
    return {"state": "done", **asdict(report)}


def _sparing(answer: Callable[[Mapping[str, Any]], None]) -> Callable[[Progress], None]:
    """Report the first and last task of a stage, and others a few times a second."""
    last = 0.0

    def progress(report: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if report.done in (0, report.total) or now - last > SECONDS_BETWEEN_REPORTS:
            last = now
            answer({"state": "progress", **asdict(report)})

    return progress


def main() -> None:
    """Serve standard input; whatever else writes to standard output goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
