"""The run: takes a session through its stages. The only module that computes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import multiprocessing
import os
import platform
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import dask
import dask.array as da
import numpy as np
import psutil
import tifffile
import zarr
from dask.callbacks import Callback
from dask.delayed import Delayed, delayed
from dask.system import CPU_COUNT
from threadpoolctl import threadpool_limits

from napari_calcium.activity.dff import DffParameters
from napari_calcium.errors import InputError
from napari_calcium.extraction.parameters import SourceExtractionParameters
from napari_calcium.io.importing import ImportParameters
from napari_calcium.io.recording import Recording, open_recording
from napari_calcium.io.session import (
    HEEDS,
    Session,
    StageRecord,
    StageWriter,
    frames_layout,
    stage_digest,
)
from napari_calcium.io.shards import COMPRESSOR, write_frames
from napari_calcium.movie import Movie
from napari_calcium.parameters import Parameters
from napari_calcium.pipeline.inferring import check_rates
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.stages import (
    STAGES,
    Inputs,
    Results,
    Stage,
    read_seeds,
    stage_named,
    stages_until,
)
from napari_calcium.spikes.inference import SpikeInferenceParameters

__all__ = ["Progress", "RunReport", "StageReport", "compute_graph", "run", "save_movie"]

SCHEDULERS = ("threads", "processes", "synchronous")
VERSIONED = ("napari-calcium", "dask", "numba", "numpy", "scipy", "tifffile", "zarr")
REFUSED_BY_THE_SYSTEM = frozenset(
    getattr(errno, name)
    for name in ("EACCES", "EDQUOT", "EFBIG", "EIO", "ENOSPC", "EPERM", "EROFS", "ESTALE")
    if hasattr(errno, name)
)
"""What a disk, and not a bug, answers."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: `done` of `total` tasks of a stage."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class StageReport:
    """How one stage went; `skipped` if its results were there already, `warnings` if any."""

    stage: str
    seconds: float
    skipped: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunReport:
    """How a run went; `peak_memory` is the process's own, in bytes."""

    stages: tuple[StageReport, ...]
    peak_memory: int


def run(
    session: str | Path,
    sources: Sequence[str | Path] | Recording = (),
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
    sources : sequence of path or Recording, optional
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
        If the recording, the session or a parameter cannot be used, or the disk is full or fails.
        Finished stages are kept; a session that has none yet is removed again.
    """
    team = Team(scheduler, CPU_COUNT if workers is None else workers)
    stages = stages_until(until) if until else STAGES
    path = Path(session)
    recipe = recipe or (Recipe.of_session(Session(path)) if Session.is_session(path) else Recipe())
    recipe = recipe.with_whole_paths()
    for stage in stages:  # a wrong value is refused before anything is opened
        _check_marks(stage, recipe)
    with _disk_errors(path):
        recording = _recording(sources)
        with _opened(path, recording) as opened, _one_thread_each(), team.at_work() as pool:
            shape = recording.frames.shape if recording else opened.array("movie/frames").shape
            unmade = _unmade(stages, opened, recipe)
            for stage in reversed(stages):  # a cell that does not fit is said before a shift
                _check_movie(stage, recipe.parameters(stage.name), shape)
                _check_files(stage, opened, recipe.parameters(stage.name), stage in unmade)
            _check_seeds(unmade, recipe, shape)
            _check_spikes(unmade, recipe)
            inputs = Inputs(opened, recording)
            _check_import(inputs, recipe)
            _remember(opened, {stage.name: recipe.parameters(stage.name) for stage in stages})
            reports = tuple(_run_stage(stage, inputs, recipe, pool, progress) for stage in stages)
    return RunReport(reports, _peak_memory())


def compute_graph(
    lazy: Any,
    stage: str,
    *,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Any:
    """Compute what is lazy as a run would, in threads, but without a session.

    Parameters
    ----------
    lazy : Delayed, dask.array.Array, or a list, tuple or dict of these
        What is to be computed, in one graph.
    stage : str
        Name of the stage that it is of, for `progress`.
    workers : int, optional
        Tasks at a time; as many as there are processors if not given.
    progress : callable, optional
        Called with a `Progress` after each task.

    Returns
    -------
    object
        The same, computed.
    """
    team = Team("threads", CPU_COUNT if workers is None else workers)
    with _one_thread_each(), team.at_work(), _reporting(stage_named(stage), progress):
        (computed,) = dask.compute(lazy)
    return computed


def _recording(sources: Sequence[str | Path] | Recording) -> Recording | None:
    if isinstance(sources, Recording):
        return sources
    return open_recording(sources) if sources else None


def _check_movie(stage: Stage, parameters: Parameters, shape: tuple[int, ...]) -> None:
    """Refuse parameters that do not fit the movie before any stage has run."""
    try:
        parameters.check_movie(shape)
    except InputError as error:
        named = str(error).startswith(f"{stage.name} ")  # the stage itself, not a parameter of it
        raise InputError(str(error) if named else f"{stage.name}.{error}") from None


def _check_marks(stage: Stage, recipe: Recipe) -> None:
    """Refuse parameters that do not fit how the recording is marked."""
    marks, parameters = (recipe.parameters(name) for name in ("import", stage.name))
    try:
        parameters.check_marks(marks.to_mapping())
    except InputError as error:
        raise InputError(f"{stage.name}.{error}") from None


def _check_files(stage: Stage, session: Session, parameters: Parameters, to_run: bool) -> None:
    """Refuse files that cannot be used before any stage has run; finished results need none."""
    missing = [path for path in parameters.files() if not Path(path).expanduser().exists()]
    if missing and to_run:
        raise InputError(
            f"{stage.name} is to read {missing[0]!r} but there is no such file; check the path"
        )
    if to_run:
        try:
            parameters.check_means()
        except InputError as error:
            raise InputError(f"{stage.name}.{error}") from None
    for path in parameters.files():
        if Path(path).expanduser().resolve() == session.path.resolve():
            raise InputError(
                f"{stage.name} is to read {path!r}, the session that it writes; name another one, "
                "such as a copy"
            )


def _check_seeds(unmade: Collection[Stage], recipe: Recipe, shape: tuple[int, ...]) -> None:
    """Refuse seeds that cannot be used before any stage has run."""
    stage = stage_named("source_extraction")
    motion = recipe.parameters("motion_correction").to_mapping()
    if stage not in unmade or motion["borders"] == "crop":  # how large, is not known yet
        return
    parameters = recipe.parameters(stage.name)
    assert isinstance(parameters, SourceExtractionParameters)
    if parameters.files():
        read_seeds(parameters, (shape[-2], shape[-1]))


def _check_spikes(unmade: Collection[Stage], recipe: Recipe) -> None:
    """Refuse a model of spike inference that cannot be used before any stage has run."""
    stage = stage_named("spike_inference")
    if stage not in unmade:
        return
    parameters, imported, dff = (recipe.parameters(s) for s in (stage.name, "import", "dff"))
    assert isinstance(parameters, SpikeInferenceParameters)
    assert isinstance(imported, ImportParameters)
    assert isinstance(dff, DffParameters)
    try:
        check_rates(parameters, imported, dff)
    except InputError as error:
        if str(error).startswith("model_file "):
            raise InputError(f"{stage.name}.{error}") from None
        raise InputError(f"{stage.name}: {error}; or leave it out (--until dff)") from None


def _unmade(stages: Sequence[Stage], session: Session, recipe: Recipe) -> list[Stage]:
    """Return the stages that will surely run, as far as can be told before the first has run."""
    groups = {stage.name: stage.group for stage in STAGES}
    found: list[Stage] = []
    for stage in stages:
        record = session.record(stage.group)
        needed = {name: session.record(groups[name]) for name in stage.needs}
        again = any(earlier.name in stage.needs for earlier in found)
        made = record is not None and _was_made(stage, session, recipe.parameters(stage.name))
        inputs = {} if record is None else record.inputs
        same = all(need and inputs.get(name) == need.digest for name, need in needed.items())
        if again or not made or not same:
            found.append(stage)
    return found


def _was_made(stage: Stage, session: Session, parameters: Parameters) -> bool:
    """Whether a stage has results of these parameters."""
    done = session.record(stage.group)
    made = {} if done is None else done.parameters
    return done is not None and parameters.identity().items() <= made.items()


def save_movie(
    movie: Movie,
    path: str | Path,
    *,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Write a movie as one TIFF or one Zarr array, block by block.

    Parameters
    ----------
    movie : Movie
        Computed as many blocks at a time as there are workers.
    path : path
        A TIFF file, or a Zarr array where the name ends in ``.zarr``. It has its name only once it
        is whole; an existing file is replaced, an existing Zarr is refused. TIFF files are in
        ImageJ's format where its types allow, with the frame interval, and BigTIFF beyond 4 GB;
        volumes are written plane by plane.
    workers : int, optional
        Blocks at a time; as many as there are processors if not given.
    progress : callable, optional
        Called with a `Progress` of the stage "save_movie" after some blocks.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    path, save = Path(path), _save_tiff
    if path.suffix.lower() == ".zarr":
        save = _save_zarr
        if path.exists():
            raise InputError(f"{path} exists already; give another path")
    team = Team("threads", CPU_COUNT if workers is None else workers)
    partial = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _one_thread_each(), team.at_work():
            save(movie, partial, team.workers, progress or _nothing)
        os.replace(partial, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); give another path"
        ) from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        elif partial.exists():
            partial.unlink()


def _nothing(_: Progress) -> None:
    """Report nothing."""


def _save_tiff(
    movie: Movie, path: Path, workers: int, progress: Callable[[Progress], None]
) -> None:
    frames = movie.frames
    large = frames.nbytes > 3.9e9
    imagej = not large and frames.dtype.name in ("uint8", "uint16", "float32")
    axes = "TZYX" if movie.is_volume else "TYX"
    metadata = {"axes": axes, "finterval": 1 / movie.frame_rate, "fps": movie.frame_rate}
    runs = _computed_blocks(frames, workers, progress)
    tifffile.imwrite(
        path,
        (page for run in runs for page in run.reshape(-1, *movie.plane)),
        shape=frames.shape,
        dtype=frames.dtype,
        imagej=imagej,
        bigtiff=large,
        photometric="minisblack",
        metadata=metadata,
    )


def _save_zarr(
    movie: Movie, path: Path, workers: int, progress: Callable[[Progress], None]
) -> None:
    frames = movie.frames
    chunks, shards = frames_layout(frames.shape, frames.dtype.itemsize)
    target = zarr.create_array(
        path,
        shape=frames.shape,
        dtype=frames.dtype,
        chunks=chunks,
        shards=shards,
        compressors=COMPRESSOR,
        dimension_names=("time", "z", "y", "x") if movie.is_volume else ("time", "y", "x"),
        attributes={"frame_rate": movie.frame_rate, "pixel_size": movie.pixel_size},
        overwrite=True,
    )
    start, whole = 0, frames.rechunk((shards[0], *frames.shape[1:]))
    for run in _computed_blocks(whole, workers, progress):
        write_frames(target, start, run)
        start += len(run)


def _computed_blocks(
    frames: da.Array, workers: int, progress: Callable[[Progress], None]
) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the runs of frames of a movie in order, as many computed at a time as workers."""
    n = frames.numblocks[0]
    progress(Progress("save_movie", 0, n))
    for first in range(0, n, workers):
        last = min(first + workers, n)
        yield from dask.compute(*(frames.blocks[i] for i in range(first, last)))
        progress(Progress("save_movie", last, n))


@contextlib.contextmanager
def _opened(path: Path, recording: Recording | None) -> Iterator[Session]:
    """Open the session, or make it for a recording, and keep every other run out of it.

    A session made here is removed again by an error before it holds a movie.
    """
    new = not Session.is_session(path)
    if new and recording is None:
        raise InputError(f"{path} is not a napari-calcium session; name a recording to import")
    session = Session.create(path, {"source": []}) if new else Session(path)
    useless = False
    try:
        with session.lock():
            try:
                session.recover()
                _claim(session, recording)
                yield session
            except BaseException:
                useless = new and session.record("movie") is None
                raise
    finally:
        if useless:
            shutil.rmtree(path, ignore_errors=True)


def _claim(session: Session, recording: Recording | None) -> None:
    """Note whose session this is, or check that it is this recording's."""
    if recording is None:
        if session.record("movie") is None:
            raise InputError(f"{session.path} holds no movie yet; name the recording to import")
        return
    held = session.attrs["source"]
    if session.record("movie") is None:
        session.update_attrs({"source": _source(recording), "software": _software()})
    elif held != _source(recording):
        names = ", ".join(file["name"] for file in held[:3])
        raise InputError(f"{session.path} holds another recording ({names}); give another session")


def _check_import(inputs: Inputs, recipe: Recipe) -> None:
    """Refuse other import parameters where there is no recording to import."""
    stage, session = STAGES[0], inputs.session
    done = session.record(stage.group)
    record = _record(stage, session, recipe.parameters(stage.name))
    if inputs.recording is None and (done is None or done.digest != record.digest):
        raise InputError(
            f"{session.path} holds no movie of these import parameters; "
            "name the recording to import it"
        )


def _remember(session: Session, asked: Mapping[str, Parameters]) -> None:
    """Note what is asked of stages, so that a run which is cut off can be continued."""
    recipe = session.attrs.get("recipe", {})
    tables = {name: parameters.to_mapping() for name, parameters in asked.items()}
    session.update_attrs({"recipe": recipe | tables})


def _source(recording: Recording) -> list[dict[str, Any]]:
    return [
        {"name": file.path.name, "n_frames": file.n_frames, "digest": file.digest}
        for file in recording.files
    ]


def _run_stage(
    stage: Stage,
    inputs: Inputs,
    recipe: Recipe,
    pool: Executor | None,
    progress: Callable[[Progress], None] | None,
) -> StageReport:
    start = time.perf_counter()
    session = inputs.session
    parameters = recipe.parameters(stage.name)
    record = _record(stage, session, parameters)
    done = session.record(stage.group)
    skipped = done is not None and done.digest == record.digest
    if not skipped:
        if "motion_correction" in stage.needs:  # which may have cropped the movie
            _check_movie(stage, parameters, session.array("motion_correction/frames").shape)
        with session.writing(stage.group) as writer:
            _compute(stage, stage.build(inputs, parameters), writer, pool, progress)
            writer.commit(record)
    elif stage.decide is not None and done is not None and done.parameters != record.parameters:
        stage.decide(session, parameters)
    if isinstance(parameters, ImportParameters):
        session.update_attrs(asdict(parameters))
    seconds = 0.0 if skipped else time.perf_counter() - start
    return StageReport(stage.name, seconds, skipped, session.warnings(stage.group))


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Put into a sentence what a disk or the system refuses."""
    try:
        yield
    except BrokenProcessPool as error:
        raise InputError(
            f"the run in {path} was stopped: the system ended a worker process, most often for "
            "want of memory; run it again with fewer workers"
        ) from error
    except OSError as error:
        if error.errno not in REFUSED_BY_THE_SYSTEM:
            raise
        place = f" ({error.filename})" if error.filename else ""
        raise InputError(
            f"the run in {path} was stopped: {error.strerror}{place}; make room or check the "
            "drive, then run it again to go on with the finished stages"
        ) from error


def _record(stage: Stage, session: Session, parameters: Parameters) -> StageRecord:
    """Return how the stage's results will have come to be."""
    source = enumerate(session.attrs["source"])
    inputs = {"source": stage_digest("source", {}, {str(i): f["digest"] for i, f in source})}
    if stage.needs:
        groups = {s.name: s.group for s in STAGES}
        needed = {name: session.record(groups[name]) for name in stage.needs}
        inputs = {name: record.digest for name, record in needed.items() if record}
    inputs |= {mark: getattr(session, mark) for mark in HEEDS.get(stage.name, ())}
    inputs |= parameters.shipped()
    if parameters.files():
        inputs["files"] = _files_digest(stage, session, parameters)
    values = parameters.to_mapping()
    versions = {name: importlib.metadata.version(name) for name in VERSIONED}
    versions["python"] = platform.python_version()
    return StageRecord(
        stage.name,
        values,
        inputs,
        stage_digest(stage.name, parameters.identity(), inputs),
        versions,
    )


def _files_digest(stage: Stage, session: Session, parameters: Parameters) -> str:
    """Return what identifies the content of files: as it was, where they are gone by now."""
    files = {path: Path(path).expanduser() for path in parameters.files()}
    done = session.record(stage.group)
    gone = not all(file.exists() for file in files.values())
    if gone and done is not None and _was_made(stage, session, parameters):
        return done.inputs.get("files", "")
    digests = {path: hashlib.sha256(_content(file)).hexdigest() for path, file in files.items()}
    return stage_digest("files", {}, digests)


def _content(path: Path) -> bytes:
    """Return what identifies a file, the cells of a session, or the files of a folder."""
    if Session.is_session(path):
        path = path / "source_extraction" / "zarr.json"  # has the stage's digest
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return b"".join(file.read_bytes() for file in files if file.is_file())


def _compute(
    stage: Stage,
    results: Results,
    writer: StageWriter,
    pool: Executor | None,
    progress: Callable[[Progress], None] | None,
) -> None:
    """Compute one stage's graph, once, into its group, and then what is built on it."""
    writes = [
        write for name, frames in results.movies.items() for write in _writes(writer, name, frames)
    ]
    try:
        with _reporting(stage, progress if results.then is None else _half(progress, 0)):
            lazy = (results.arrays, results.attrs, results.computed)
            arrays, attrs, computed, _ = dask.compute(*lazy, writes)
    except BaseException:
        if pool is not None:
            pool.shutdown()  # no task still writes when what was half-written is removed
        raise
    for name, values in (arrays or {}).items():
        writer.write(name, values)
    for group, values in (attrs or {}).items():
        writer.attrs(group, values)
    if results.then is not None:
        _compute(stage, results.then(computed), writer, pool, _half(progress, 1))


def _half(
    progress: Callable[[Progress], None] | None, half: int
) -> Callable[[Progress], None] | None:
    """Report the first or the second half, 0 or 1, of a stage as part of it all."""
    if progress is None:
        return None

    def report(part: Progress) -> None:
        progress(Progress(part.stage, half * part.total + part.done, 2 * part.total))

    return report


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
    write_frames(target, start, block)


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


@dataclass(frozen=True)
class Team:
    """Who does the tasks: threads, processes, or the caller, and how many at a time."""

    scheduler: str
    workers: int

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            raise InputError(
                f"scheduler is {self.scheduler!r}; it must be one of {', '.join(SCHEDULERS)}"
            )
        if self.workers < 1:
            raise InputError(f"workers is {self.workers}; it must be at least 1")

    @contextlib.contextmanager
    def at_work(self) -> Iterator[Executor | None]:
        """Have Dask use the team."""
        with self._pool() as pool, dask.config.set(scheduler=self.scheduler, pool=pool):
            yield pool

    def _pool(self) -> contextlib.AbstractContextManager[Executor | None]:
        if self.scheduler == "threads":
            return ThreadPoolExecutor(self.workers)
        if self.scheduler == "processes":
            spawned = multiprocessing.get_context("spawn")
            return ProcessPoolExecutor(self.workers, spawned, initializer=_limit_to_one_thread)
        return contextlib.nullcontext()


def _limit_to_one_thread() -> None:
    cv2.setNumThreads(1)
    threadpool_limits(1)


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


def _software() -> str:
    return f"napari-calcium {importlib.metadata.version('napari-calcium')}"


def _peak_memory() -> int:
    """Return the most memory this process has held, in bytes."""
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):
        return int(memory.peak_wset)
    status = Path("/proc/self/status")
    if status.is_file():  # the resource module would count the process that started this one too
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
