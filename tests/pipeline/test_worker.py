"""The worker as a process: what it answers, and what is left when it is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from napari_calcium.io.session import Session
from napari_calcium.pipeline.extraction_preview import read_extraction_preview
from napari_calcium.pipeline.preview import read_preview

RECIPE = {"import": {"frame_rate": 10.0}}


class Worker:
    """A worker, asked and heard in turn."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "napari_calcium.pipeline.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def asked(self, **request: Any) -> list[dict[str, Any]]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answers = [self.answer()]
        while answers[-1]["state"] == "progress":
            answers.append(self.answer())
        return answers


@pytest.fixture
def worker() -> Iterator[Worker]:
    started = Worker()
    with started.process:
        assert started.answer() == {"state": "ready"}
        yield started
        started.process.kill()


@pytest.fixture
def movie(tmp_path: Path) -> Path:
    path = tmp_path / "movie.tif"
    tifffile.imwrite(path, np.random.default_rng(0).poisson(50, (60, 37, 53)).astype(np.uint16))
    return path


def test_a_run_reports_its_progress_and_its_end(
    worker: Worker, movie: Path, tmp_path: Path
) -> None:
    session = str(tmp_path / "s.zarr")
    answers = worker.asked(session=session, sources=[str(movie)], recipe=RECIPE, until="import")
    assert [answer["state"] for answer in answers[:-1]] == ["progress"] * (len(answers) - 1)
    assert {answer["stage"] for answer in answers[:-1]} == {"import"}
    assert all(0 <= answer["done"] <= answer["total"] for answer in answers[:-1])
    done = answers[-1]
    assert done["state"] == "done"
    assert [(stage["stage"], stage["skipped"]) for stage in done["stages"]] == [("import", False)]
    assert done["peak_memory"] > 2**20
    assert Session(session).movie().frames.shape == (60, 37, 53)
    again = worker.asked(session=session, recipe=RECIPE, until="import")
    assert [answer["state"] for answer in again] == ["done"]
    assert again[-1]["stages"][0]["skipped"]


def test_a_refusal_is_the_sentence_and_the_worker_goes_on(
    worker: Worker, movie: Path, tmp_path: Path
) -> None:
    session = str(tmp_path / "s.zarr")
    request = {"session": session, "sources": [str(movie)], "until": "import"}
    (refused,) = worker.asked(**request, recipe={"import": {"frame_rate": 0}})
    assert refused == {
        "state": "refused",
        "message": "import.frame_rate is 0 Hz; it must be above 0 Hz",
    }
    assert worker.asked(**request, recipe=RECIPE)[-1]["state"] == "done"


def test_a_bug_is_answered_with_its_traceback(worker: Worker, tmp_path: Path) -> None:
    (failed,) = worker.asked(session=7, recipe=RECIPE)
    assert failed["state"] == "failed"
    assert failed["message"].startswith("TypeError: ")
    assert "Traceback" in failed["traceback"]


def test_a_preview_is_answered_with_its_folder(worker: Worker, movie: Path, tmp_path: Path) -> None:
    session, folder = str(tmp_path / "s.zarr"), str(tmp_path / "preview")
    (warm,) = worker.asked(kind="warm_up", session=session)
    assert warm == {"state": "warm"}
    asked = {"kind": "preview", "session": session, "start": 8, "stop": 48, "folder": folder}
    (refused,) = worker.asked(**asked)
    assert refused["state"] == "refused"
    assert "holds no movie" in refused["message"]
    answers = worker.asked(**asked, sources=[str(movie)])
    assert {answer["stage"] for answer in answers[:-1]} == {"motion_correction"}
    assert answers[-1] == {"state": "done", "preview": folder}
    assert read_preview(folder).frames.shape == (40, 37, 53)
    assert not Path(session).exists()


def test_a_preview_takes_the_values_of_its_recipe(
    worker: Worker, movie: Path, tmp_path: Path
) -> None:
    asked = {"kind": "preview", "session": "", "sources": [str(movie)], "start": 0, "stop": 40}
    recipe = {"motion_correction": {"max_shift": 30}}
    (refused,) = worker.asked(**asked, folder=str(tmp_path), recipe=recipe)
    assert refused["message"].startswith("max_shift is 30 px but the field is 37 x 53 px")
    recipe = {"motion_correction": {"method": "none"}}
    assert worker.asked(**asked, folder=str(tmp_path), recipe=recipe)[-1]["state"] == "done"
    assert not read_preview(tmp_path).shifts.rigid.any()


def test_a_preview_of_extraction_is_answered_with_its_folder(
    worker: Worker, movie: Path, tmp_path: Path
) -> None:
    session, folder = str(tmp_path / "s.zarr"), str(tmp_path / "preview")
    assert worker.asked(kind="warm_up", stage="source_extraction") == [{"state": "warm"}]
    asked = {"kind": "preview_extraction", "session": session, "centre": [30.0, 50.0]}
    asked |= {"start": 0, "stop": 60, "folder": folder}
    worker.asked(session=session, sources=[str(movie)], recipe=RECIPE, until="import")
    (refused,) = worker.asked(**asked)
    assert refused["message"].endswith(
        "has no motion_correction/frames; run motion_correction first"
    )
    recipe = {**RECIPE, "motion_correction": {"method": "none"}}
    worker.asked(session=session, recipe=recipe, until="motion_correction")
    small = {"cell_radius": 2, "patch_size": 20, "patch_overlap": 8}
    answers = worker.asked(**asked, recipe={"source_extraction": small})
    assert {answer["stage"] for answer in answers[:-1]} == {"source_extraction"}
    assert answers[-1] == {"state": "done", "preview": folder}
    found = read_extraction_preview(folder)
    assert (found.offset, found.shape) == ((10, 27), (27, 26))
    assert Session(session).record("source_extraction") is None
    np.save(tmp_path / "labels.npy", np.eye(37, 50, dtype=np.int32))
    seeds = {"initialization": "seeds", "seeds_file": str(tmp_path / "labels.npy")}
    (refused,) = worker.asked(**asked, recipe={"source_extraction": {**small, **seeds}})
    assert "is of a field of 37 x 50 px but this one is 37 x 53 px" in refused["message"]


def test_the_worker_ends_when_its_input_ends(worker: Worker) -> None:
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.process.wait(30) == 0


@pytest.mark.skipif(os.name == "nt", reason="a file cannot be removed while it is open")
def test_what_is_committed_survives_a_kill(worker: Worker, movie: Path, tmp_path: Path) -> None:
    session = str(tmp_path / "s.zarr")
    worker.asked(session=session, sources=[str(movie)], recipe=RECIPE, until="import")
    assert worker.process.stdin is not None
    worker.process.stdin.write(json.dumps({"session": session, "recipe": RECIPE}) + "\n")
    worker.process.stdin.flush()
    worker.answer()
    worker.process.kill()
    worker.process.wait()
    second = Worker()
    with second.process:
        assert second.answer() == {"state": "ready"}
        done = second.asked(session=session, recipe=RECIPE, until="motion_correction")[-1]
        second.process.kill()
    assert done["stages"][0]["skipped"]
    assert Session(session).record("motion_correction") is not None
