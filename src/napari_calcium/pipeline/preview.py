"""The preview: motion correction of a stretch of a recording, which no session keeps."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.io.image import read_image
from napari_calcium.io.recording import open_recording
from napari_calcium.io.session import Session, shifts_attrs, shifts_to_arrays
from napari_calcium.motion.correction import MotionCorrectionParameters, correct
from napari_calcium.motion.quality import Measurements, MotionQuality, combine, measure
from napari_calcium.motion.template import FEWEST_FRAMES
from napari_calcium.movie import Movie, blocks
from napari_calcium.pipeline.run import Progress, compute_graph
from napari_calcium.shifts import Shifts

__all__ = ["Preview", "preview", "read_preview", "recorded_movie", "warm_up"]

STAGE = "motion_correction"
FRAMES, MOTION = "frames.npy", "motion.npz"

FRAMES_PER_BLOCK = 32
"""Frames moved by one task: a preview is short, and all workers are to have a part of it. Also the
distance of the frames that flow and principal motion would be taken from."""

IN_MEMORY = 2**29
"""A stretch of fewer bytes than this is read once; a larger one by each pass over it."""

FEW, FEW_PIXELS = 16, 2**20
"""Frames previewed to warm up, and the most pixels of a frame for that."""

FEWEST_SAMPLES, SAMPLED_PIXELS = 40, 2**23
"""Frames that a preview's template is made from, if these are more pixels than that: it is to be
there at once."""

Reporter = Callable[[Progress], None]


@dataclass(frozen=True)
class Preview:
    """A stretch of a recording with its motion undone, and its motion.

    Parameters
    ----------
    start : int
        Number of its first frame in the recording.
    frames : ndarray (time, y, x) or (time, z, y, x)
        The corrected frames, of the recording's type and field; from disk, read when looked at.
    shifts : Shifts
        What was undone.
    before, after : MotionQuality
        Correlation of the frames with the template and crispness, before and after. Residual flow
        is NaN and principal motion empty: they take longer than all else.
    """

    start: int
    frames: NDArray[Any]
    shifts: Shifts
    before: MotionQuality
    after: MotionQuality


def recorded_movie(session: str | Path, sources: Sequence[str | Path] = ()) -> Movie:
    """Return lazily the recording of a session, or one that is not imported yet.

    Parameters
    ----------
    session : path
        A session; what it holds is taken before `sources`.
    sources : sequence of path, optional
        Files of a recording. A frame rate that they do not say is taken for 1 Hz.

    Raises
    ------
    InputError
        If there is neither.
    """
    if Session.is_session(session) and Session(session).record("movie") is not None:
        return Session(session).movie()
    if not sources:
        raise InputError(f"{session or 'the session'} holds no movie; open or import a recording")
    recording = open_recording(sources)
    return Movie(recording.frames, recording.frame_rate or 1.0)


def preview(
    movie: Movie,
    parameters: MotionCorrectionParameters,
    start: int,
    stop: int,
    folder: str | Path,
    *,
    workers: int | None = None,
    progress: Reporter | None = None,
) -> None:
    """Correct a stretch of a movie, by itself, into a folder: see `read_preview`.

    Parameters
    ----------
    movie : Movie
        The recording.
    parameters : MotionCorrectionParameters
        How. Without a `template_file` the template is made from the stretch, of a large field from
        40 of its frames. `borders` "crop" is taken for "nearest", so that the frames lie on those
        recorded.
    start, stop : int
        The first frame, and the one after the last.
    folder : path
        Made if it does not exist. An earlier preview in it is replaced.
    workers : int, optional
        Tasks at a time; as many as there are processors if not given.
    progress : callable, optional
        Called with a `Progress` after each task.

    Raises
    ------
    InputError
        If the stretch is not in the movie, a parameter does not fit, or the folder cannot be
        written.
    """
    if start == stop:
        raise InputError(f"the preview is of 0 frames from {start} on; choose at least 1 frame")
    if not 0 <= start < stop <= movie.n_frames:
        raise InputError(
            f"the preview is of the frames {start} to {stop - 1} but the recording has "
            f"{movie.n_frames}; give a stretch within it"
        )
    if (
        stop - start < FEWEST_FRAMES
        and parameters.method != "none"
        and not parameters.template_file
    ):
        raise InputError(
            f"the preview is of {_frames(stop - start)} but makes its template from at least "
            f"{FEWEST_FRAMES}; preview more frames or give a template"
        )
    if parameters.borders == "crop":
        parameters = replace(parameters, borders="nearest")
    few = min(
        parameters.template_frames, max(FEWEST_SAMPLES, SAMPLED_PIXELS // math.prod(movie.field))
    )
    parameters = replace(parameters, template_frames=few)
    template = read_image(parameters.template_file) if parameters.template_file else None
    stretch = _stretch(movie, slice(start, stop), workers)
    corrected, motion = correct(stretch, parameters, template, FRAMES_PER_BLOCK)
    try:
        target = _FramesFile.made(Path(folder) / FRAMES, corrected.frames)
        parts = (
            [motion.shifts, motion.template],
            _measured_before(stretch, motion.template),
            _measured_after(corrected, motion.template, target),
        )
        (shifts, seen), before, after = compute_graph(
            parts, STAGE, workers=workers, progress=progress
        )
        _save(Path(folder) / MOTION, start, shifts, combine(before, seen), combine(after, seen))
    except OSError as error:
        raise InputError(
            f"the preview cannot be written to {folder} ({error.strerror}); make room or preview "
            "fewer frames"
        ) from error


def read_preview(folder: str | Path) -> Preview:
    """Return what `preview` left in a folder.

    Examples
    --------
    >>> import tempfile
    >>> movie = Movie(da.random.random((60, 37, 53)), frame_rate=30.0)
    >>> with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    ...     preview(movie, MotionCorrectionParameters(method="rigid"), 20, 50, folder)
    ...     found = read_preview(folder)
    >>> found.start, found.frames.shape, found.shifts.rigid.shape
    (20, (30, 37, 53), (30, 2))
    """
    frames = np.load(Path(folder) / FRAMES, mmap_mode="r")
    with np.load(Path(folder) / MOTION) as arrays:
        found = dict(arrays)
    parts = {
        name: found[name]
        for name in ("shifts_piecewise", "grid_y", "grid_x", "flagged")
        if name in found
    }
    piecewise = parts.pop("shifts_piecewise", None)
    shifts = Shifts(found["shifts_rigid"], frames.shape[1:], piecewise, **parts)
    before, after = (
        MotionQuality(
            found[f"correlation_{when}"],
            float(found[f"crispness_{when}"]),
            float("nan"),
            np.zeros(0, np.float32),
        )
        for when in ("before", "after")
    )
    return Preview(int(found["start"]), frames, shifts, before, after)


def warm_up(session: str | Path = "") -> None:
    """Preview a small movie, so that all that a preview needs is loaded before it is asked for.

    Parameters
    ----------
    session : path, optional
        A session of which a few frames are previewed too, if it is one and they are not large.

    Raises
    ------
    InputError
        As `preview`, for those frames.
    """
    random = np.random.default_rng(0)
    scene = random.uniform(10, 90, (64, 80))
    frames = random.poisson(scene, (FEW, *scene.shape)).astype(np.uint16)
    movies = [Movie(da.from_array(frames, name=False), 1.0)]
    if Session.is_session(session) and Session(session).record("movie") is not None:
        movies.append(Session(session).movie())
    for movie in movies:
        if math.prod(movie.field) <= FEW_PIXELS:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                stop = min(FEW, movie.n_frames)
                parameters = MotionCorrectionParameters()
                if stop < FEWEST_FRAMES:
                    parameters = replace(parameters, method="none")
                preview(movie, parameters, 0, stop, folder)


def _frames(n: int) -> str:
    return "1 frame" if n == 1 else f"{n} frames"


def _stretch(movie: Movie, time: slice, workers: int | None) -> Movie:
    """Return a run of frames, in memory where they are few."""
    frames = movie.frames[time]
    if frames.nbytes <= IN_MEMORY:
        pixels = compute_graph(frames, STAGE, workers=workers)
        frames = da.from_array(pixels, chunks=(-1,) * pixels.ndim, name=False)
    return replace(movie, frames=frames)


def _measured_before(movie: Movie, template: Delayed) -> list[Delayed]:
    """Return lazily what is measured of the frames as they are."""
    return [
        movie.apply(measure, template, block.start, FRAMES_PER_BLOCK, time=block)
        for block in blocks(movie.n_frames, FRAMES_PER_BLOCK)
    ]


def _measured_after(movie: Movie, template: Delayed, target: _FramesFile) -> list[Delayed]:
    """Return lazily what is measured of the corrected frames, which are stored on the way."""
    parts = movie.frames.to_delayed(optimize_graph=False).ravel()
    starts = np.cumsum((0, *movie.frames.chunks[0][:-1]))
    return [
        delayed(_stored_and_measured)(part, target, template, int(start))
        for start, part in zip(starts, parts, strict=True)
    ]


def _stored_and_measured(
    frames: NDArray[Any],
    target: _FramesFile,
    template: NDArray[Any],
    start: int,
) -> Measurements:
    target.write(start, frames)
    return measure(frames, template, start, FRAMES_PER_BLOCK)


@dataclass(frozen=True)
class _FramesFile:
    """A .npy file of a movie that is written run by run.

    Not a memory map, by which a full disk would end the process.
    """

    path: str
    offset: int

    @classmethod
    def made(cls, path: Path, frames: da.Array) -> _FramesFile:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # an earlier one may be looked at still
        described = np.lib.format.dtype_to_descr(frames.dtype)
        header = {"descr": described, "fortran_order": False, "shape": frames.shape}
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            offset = file.tell()
        os.truncate(path, offset + frames.nbytes)
        return cls(str(path), offset)

    def write(self, start: int, frames: NDArray[Any]) -> None:
        pixels = np.ascontiguousarray(frames)
        with open(self.path, "r+b") as file:
            file.seek(self.offset + start * pixels[0].nbytes)
            file.write(pixels.data)


def _save(
    path: Path, start: int, shifts: Shifts, before: MotionQuality, after: MotionQuality
) -> None:
    grid = shifts_attrs(shifts).get("shifts_piecewise", {})
    arrays = {
        **shifts_to_arrays(shifts),
        **{name: np.array(places, np.float32) for name, places in grid.items()},
        "start": np.array(start),
    }
    for when, quality in (("before", before), ("after", after)):
        arrays[f"correlation_{when}"] = quality.correlation
        arrays[f"crispness_{when}"] = np.array(quality.crispness)
    np.savez(path, **arrays)  # type: ignore[arg-type]
