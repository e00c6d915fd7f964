"""The run: takes a session through its stages. The only module that computes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import dask
import numpy as np
import psutil
import tifffile
from dask.callbacks import Callback
from dask.delayed import Delayed, delayed
from threadpoolctl import threadpool_limits

from napari_calcium.errors import InputError
from napari_calcium.io.importing import ImportParameters
from napari_calcium.io.recording import Recording, open_recording
from napari_calcium.io.session import Session, StageRecord, StageWriter, stage_digest
from napari_calcium.movie import Movie
from napari_calcium.parameters import Parameters
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.stages import STAGES, Inputs, Results, Stage, stages_until

__all__ = ["Progress", "RunReport", "StageReport", "run", "save_movie"]

VERSIONED = ("napari-calcium", "dask", "numba", "numpy", "scipy", "tifffile", "zarr")


@dataclass(frozen=True)
class Progress:
    """How far a run is: `done` of `total` tasks of a stage."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class StageReport:
    """How one stage went; `skipped` if its results were there already."""

    stage: str
    seconds: float
    skipped: bool


@dataclass(frozen=True)
class RunReport:
    """How a run went; `peak_memory` is the process's own, in bytes."""

    stages: tuple[StageReport, ...]
    peak_memory: int


def run(
    session: str | Path,
    sources: Sequence[str | Path] = (),
    *,
    recipe: Recipe | None = None,
    until: str | None = None,
    workers: int | None = None,
    scheduler: str = "threads",
    progress: Callable[[Progress], None] | None = None,
) -> RunReport:
    """Take a recording through the stages, each stored when it is done.

    A stage whose inputs and parameters are those of its stored results is skipped, so a run that
    was interrupted goes on where it stopped.

    Parameters
    ----------
    session : path
        The session's folder; made if it does not exist.
    sources : sequence of path, optional
        The recording; not needed once it is imported.
    recipe : Recipe, optional
        Parameters of the stages; the session's own where none is given.
    until : str, optional
        The last stage to run, with all that it needs; all stages if not given.
    workers : int, optional
        Tasks at a time; as many as there are processors if not given.
    scheduler : {"threads", "processes", "synchronous"}
        Where the tasks run.
    progress : callable, optional
        Called with a `Progress` after each task.

    Returns
    -------
    RunReport
        Seconds of each stage, and the peak memory.

    Raises
    ------
    InputError
        If the recording, the session or a parameter cannot be used. Finished stages are kept.
    """
    stages = stages_until(until) if until else STAGES
    path = Path(session)
    recipe = recipe or (Recipe.of_session(Session(path)) if Session.is_session(path) else Recipe())
    for stage in stages:
        recipe.parameters(stage.name)  # a wrong value is refused before anything is opened
    recording = open_recording(sources) if sources else None
    opened, new = _opened(path, recording)
    shape = recording.frames.shape if recording else opened.array("movie/frames").shape
    try:
        for stage in stages:
            recipe.parameters(stage.name).check_movie(shape)
        with opened.lock(), _one_thread_each(), _scheduler(scheduler, workers):
            reports = tuple(
                _run_stage(stage, Inputs(opened, recording), recipe, progress) for stage in stages
            )
    except BaseException:
        if new and opened.record("movie") is None:
            shutil.rmtree(path, ignore_errors=True)
        raise
    return RunReport(reports, _peak_memory())


def save_movie(movie: Movie, path: str | Path) -> None:
    """Write a movie as one TIFF, block by block.

    Parameters
    ----------
    movie : Movie
        Computed one block at a time.
    path : path
        The file; an existing one is replaced. ImageJ's format where its types allow, with the
        frame interval; BigTIFF beyond 4 GB.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    frames = movie.frames
    large = frames.nbytes > 3.9e9
    imagej = not large and frames.dtype.name in ("uint8", "uint16", "float32")
    metadata = {"axes": "TYX", "finterval": 1 / movie.frame_rate, "fps": movie.frame_rate}
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(
            path,
            (frame for block in frames.blocks for frame in block.compute()),
            shape=frames.shape,
            dtype=frames.dtype,
            imagej=imagej,
            bigtiff=large,
            photometric="minisblack",
            metadata=metadata,
        )
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); give another path"
        ) from error


def _opened(path: Path, recording: Recording | None) -> tuple[Session, bool]:
    """Open the session, or make it for a recording; say which."""
    if not Session.is_session(path):
        if recording is None:
            raise InputError(f"{path} is not a napari-calcium session; name a recording to import")
        return Session.create(path, _root_attrs(recording)), True
    session = Session(path)
    if recording is not None and session.attrs["source"] != _source(recording):
        names = ", ".join(file["name"] for file in session.attrs["source"][:3])
        raise InputError(f"{path} holds another recording ({names}); give another session")
    return session, False


def _root_attrs(recording: Recording) -> dict[str, Any]:
    return {"source": _source(recording), "software": f"napari-calcium {_version()}"}


def _source(recording: Recording) -> list[dict[str, Any]]:
    return [
        {"name": file.path.name, "n_frames": file.n_frames, "digest": file.digest}
        for file in recording.files
    ]


def _run_stage(
    stage: Stage, inputs: Inputs, recipe: Recipe, progress: Callable[[Progress], None] | None
) -> StageReport:
    start = time.perf_counter()
    session = inputs.session
    parameters = recipe.parameters(stage.name)
    record = _record(stage, session, parameters)
    done = session.record(stage.group)
    if done is not None and done.digest == record.digest:
        return StageReport(stage.name, 0.0, skipped=True)
    if isinstance(parameters, ImportParameters):
        session.update_attrs(asdict(parameters))
    with session.writing(stage.group) as writer:
        _compute(stage, stage.build(inputs, parameters), writer, progress)
        writer.commit(record)
    return StageReport(stage.name, time.perf_counter() - start, skipped=False)


def _record(stage: Stage, session: Session, parameters: Parameters) -> StageRecord:
    """Return how the stage's results will have come to be."""
    inputs = {
        "source": stage_digest(
            "source", {}, {f["name"]: f["digest"] for f in session.attrs["source"]}
        )
    }
    if stage.needs:
        groups = {s.name: s.group for s in STAGES}
        needed = {name: session.record(groups[name]) for name in stage.needs}
        inputs = {name: record.digest for name, record in needed.items() if record}
    values = parameters.to_mapping()
    versions = {name: importlib.metadata.version(name) for name in VERSIONED}
    versions["python"] = platform.python_version()
    return StageRecord(
        stage.name, values, inputs, stage_digest(stage.name, values, inputs), versions
    )


def _compute(
    stage: Stage,
    results: Results,
    writer: StageWriter,
    progress: Callable[[Progress], None] | None,
) -> None:
    """Compute one stage's graph, once, into its group."""
    writes = [
        write for name, frames in results.movies.items() for write in _writes(writer, name, frames)
    ]
    with _reporting(stage, progress):
        arrays, attrs, _ = dask.compute(results.arrays, results.attrs, writes)
    for name, values in (arrays or {}).items():
        writer.write(name, values)
    for group, values in (attrs or {}).items():
        writer.attrs(group, values)


def _writes(writer: StageWriter, name: str, frames: Any) -> list[Delayed]:
    """Return a task for each block of a movie that writes it to its shards."""
    target = writer.create_frames(name, frames)
    starts = np.cumsum((0, *frames.chunks[0][:-1]))
    blocks = frames.to_delayed(optimize_graph=False).ravel()
    return [
        delayed(_write_block)(target, int(start), block)
        for start, block in zip(starts, blocks, strict=True)
    ]


def _write_block(target: Any, start: int, block: np.ndarray[Any, Any]) -> None:
    target[start : start + len(block)] = block


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Pin BLAS and OpenCV to one thread: the tasks are what runs in parallel."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        cv2.setNumThreads(threads)


@contextlib.contextmanager
def _scheduler(name: str, workers: int | None) -> Iterator[None]:
    known = ("threads", "processes", "synchronous")
    if name not in known:
        raise InputError(f"scheduler is {name!r}; it must be one of {', '.join(known)}")
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; it must be at least 1")
    with dask.config.set(scheduler=name, num_workers=workers or psutil.cpu_count() or 1):
        yield


@contextlib.contextmanager
def _reporting(stage: Stage, progress: Callable[[Progress], None] | None) -> Iterator[None]:
    if progress is None:
        yield
        return

    def report(state: Mapping[str, Any]) -> None:
        total = sum(len(state[part]) for part in ("ready", "waiting", "running", "finished"))
        progress(Progress(stage.name, len(state["finished"]), total))

    def posttask(key: Any, value: Any, dsk: Any, state: Mapping[str, Any], worker: Any) -> None:
        report(state)

    progress(Progress(stage.name, 0, 1))
    with Callback(posttask=posttask):
        yield
    progress(Progress(stage.name, 1, 1))


def _version() -> str:
    return importlib.metadata.version("napari-calcium")


def _peak_memory() -> int:
    """Return the most memory this process has held, in bytes."""
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):
        return int(memory.peak_wset)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
