"""The worker: runs sessions for a window, in a process of its own.

Started as ``python -m napari_calcium.pipeline.worker``. It reads requests from standard input and
answers on standard output, each one JSON object on one line, so the window never computes, a kill
is a prompt cancel (a session's commits are atomic), and nothing is pickled.

Request: ``{"session", "sources", "recipe", "until", "workers"}``. Answers: ``{"state": "ready"}``
once; then ``{"state": "progress", "stage", "done", "total"}`` any number of times, ended by
``{"state": "done", "stages", "peak_memory"}``, ``{"state": "refused", "message"}`` for an
`InputError`, or ``{"state": "failed", "message", "traceback"}`` for a bug.

Other kinds of requests have a ``"kind"``. ``{"kind": "preview", "session", "sources", "recipe",
"start", "stop", "folder", "workers"}`` corrects the motion of a stretch into a folder and touches
no session; it is answered like a run, and ended by ``{"state": "done", "preview": folder}``.
``{"kind": "preview_extraction", "session", "recipe", "centre", "start", "stop", "folder",
"workers"}`` finds the cells of the patch around a point (y, x), px, in the frames from `start` to
before `stop`, in the same way. ``{"kind": "warm_up", "session", "stage"}`` loads what the preview
of a stage needs and is answered ``{"state": "warm"}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import IO, Any

from napari_calcium.errors import InputError
from napari_calcium.extraction.parameters import SourceExtractionParameters
from napari_calcium.motion.correction import MotionCorrectionParameters
from napari_calcium.pipeline.extraction_preview import (
    corrected_movie,
    preview_extraction,
    warm_up_extraction,
)
from napari_calcium.pipeline.preview import preview, recorded_movie, warm_up
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import Progress, run
from napari_calcium.pipeline.stages import read_seeds

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
    kind = request.get("kind", "run")
    if kind == "warm_up":
        return _warm(request)
    try:
        return {"state": "done", **KINDS[kind](request, progress)}
    except InputError as error:
        return {"state": "refused", "message": str(error)}
    except Exception as error:  # noqa: BLE001 - a bug in a stage is reported, not fatal to the worker
        message = f"{type(error).__name__}: {error}"
        return {"state": "failed", "message": message, "traceback": traceback.format_exc()}


def _run(request: Mapping[str, Any], progress: Callable[[Progress], None]) -> dict[str, Any]:
    report = run(
        request["session"],
        request.get("sources", ()),
        recipe=Recipe(request.get("recipe", {})),
        until=request.get("until"),
        workers=request.get("workers"),
        progress=progress,
    )
    return asdict(report)


def _preview(request: Mapping[str, Any], progress: Callable[[Progress], None]) -> dict[str, Any]:
    parameters = Recipe(request.get("recipe", {})).parameters("motion_correction")
    assert isinstance(parameters, MotionCorrectionParameters)
    preview(
        recorded_movie(request["session"], request.get("sources", ())),
        parameters,
        request["start"],
        request["stop"],
        request["folder"],
        workers=request.get("workers"),
        progress=progress,
    )
    return {"preview": request["folder"]}


def _preview_extraction(
    request: Mapping[str, Any], progress: Callable[[Progress], None]
) -> dict[str, Any]:
    parameters = Recipe(request.get("recipe", {})).parameters("source_extraction")
    assert isinstance(parameters, SourceExtractionParameters)
    movie = corrected_movie(request["session"])
    parameters.check_movie(movie.frames.shape)
    y, x = request["centre"]
    preview_extraction(
        movie,
        parameters,
        (y, x),
        request["folder"],
        seeds=read_seeds(parameters, movie.plane),
        time=slice(request["start"], request["stop"]),
        workers=request.get("workers"),
        progress=progress,
    )
    return {"preview": request["folder"]}


KINDS = {"run": _run, "preview": _preview, "preview_extraction": _preview_extraction}
"""What answers each kind of request."""


def _warm(request: Mapping[str, Any]) -> dict[str, Any]:
    """Load what a preview needs; what cannot be loaded is told when it is asked for."""
    with contextlib.suppress(Exception):
        if request.get("stage") == "source_extraction":
            warm_up_extraction()
        else:
            warm_up(request.get("session", ""))
    return {"state": "warm"}


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
