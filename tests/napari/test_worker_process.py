"""The window's end of the worker, without a window."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from napari_calcium.io.session import Session
from napari_calcium.napari.worker_process import WorkerProcess

RECIPE = {"import": {"frame_rate": 10.0}}


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    process = WorkerProcess()
    yield process
    process.close()


def heard(worker: WorkerProcess, *states: str, seconds: float = 60) -> list[dict[str, Any]]:
    """Poll until there is an answer of one of the states."""
    answers: list[dict[str, Any]] = []
    end = time.monotonic() + seconds
    while not any(answer["state"] in states for answer in answers):
        assert time.monotonic() < end, answers
        time.sleep(0.01)
        answers += worker.poll()
    return answers


def importing(movie_path: Path, session: Path, until: str = "import") -> dict[str, Any]:
    sources = [str(movie_path)]
    return {"session": str(session), "sources": sources, "recipe": RECIPE, "until": until}


def test_it_starts_on_the_first_request_and_stays(
    worker: WorkerProcess, movie_path: Path, tmp_path: Path
) -> None:
    assert not worker.alive
    assert worker.poll() == []
    worker.request(importing(movie_path, tmp_path / "s.zarr"))
    assert worker.alive
    answers = heard(worker, "done", "refused", "failed", "died")
    assert [answers[0]["state"], answers[-1]["state"]] == ["ready", "done"]
    worker.request(importing(movie_path, tmp_path / "s.zarr"))
    again = heard(worker, "done")
    assert "ready" not in [answer["state"] for answer in again]


def test_a_request_longer_than_a_pipe_does_not_block(worker: WorkerProcess, tmp_path: Path) -> None:
    names = [f"{'x' * 200}{i}.tif" for i in range(2000)]
    start = time.monotonic()
    worker.request({"session": str(tmp_path / "s.zarr"), "sources": names, "recipe": RECIPE})
    assert time.monotonic() - start < 0.5  # a worker needs longer than this to start reading
    assert "does not exist" in heard(worker, "refused")[-1]["message"]


def test_cancel_acts_in_the_middle_of_a_kernel(worker: WorkerProcess, tmp_path: Path) -> None:
    path = tmp_path / "long.tif"
    noise = np.random.default_rng(0).poisson(50, (900, 137, 153)).astype(np.uint16)
    tifffile.imwrite(path, noise)
    session = tmp_path / "s.zarr"
    worker.request(importing(path, session, "source_extraction"))
    answers: list[dict[str, Any]] = []
    while not any(answer.get("stage") == "source_extraction" for answer in answers):
        answers += heard(worker, "progress")
    start = time.monotonic()
    worker.cancel()
    assert time.monotonic() - start < 1
    assert not worker.alive
    assert worker.poll() == []
    assert Session(session).record("motion_correction") is not None
    assert Session(session).record("source_extraction") is None
    with Session(session).lock():
        pass  # the lock went with the process


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_death_is_told_in_a_sentence(
    worker: WorkerProcess, movie_path: Path, tmp_path: Path
) -> None:
    worker.request(importing(movie_path, tmp_path / "s.zarr"))
    assert worker._running is not None
    worker._running.process.kill()
    (died,) = [a for a in heard(worker, "died") if a["state"] == "died"]
    assert died["message"].startswith("the worker was killed (SIGKILL), perhaps for want of memory")
    worker.request(importing(movie_path, tmp_path / "s.zarr"))
    assert heard(worker, "done", "died")[-1]["state"] == "done"


def test_a_worker_that_cannot_start_says_why(
    worker: WorkerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import napari_calcium.napari.worker_process as module

    monkeypatch.setattr(module, "COMMAND", (module.sys.executable, "-c", "raise SystemExit('no')"))
    worker.request({"session": str(tmp_path)})
    message = heard(worker, "died")[-1]["message"]
    assert message.startswith("the worker ended with exit code 1 (no); ")


def test_it_ends_when_it_is_collected(movie_path: Path, tmp_path: Path) -> None:
    worker = WorkerProcess()
    worker.request(importing(movie_path, tmp_path / "s.zarr"))
    assert worker._running is not None
    process = worker._running.process
    del worker
    assert process.wait(5) != 0
