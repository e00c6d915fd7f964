"""The session on disk: one Zarr group that holds a recording and everything found in it.

Each stage owns one group. A group is written beside the session and moved into it in one step when
it is whole, so a reader never sees half of one, whenever the writer is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import dask.array as da
import numpy as np
import scipy.sparse as sp
import zarr
from dask.delayed import delayed
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from zarr.errors import ContainsGroupError

from napari_calcium.components import (
    PROPERTIES,
    QUALITY_TYPES,
    Background,
    Components,
    Quality,
)
from napari_calcium.errors import InputError
from napari_calcium.io.shards import COMPRESSOR, ShardedFrames
from napari_calcium.movie import Movie, blocks
from napari_calcium.shifts import Shifts

__all__ = [
    "FORMAT_VERSION",
    "VARIABLES",
    "Session",
    "StageRecord",
    "StageWriter",
    "Variable",
    "components_attrs",
    "components_to_arrays",
    "frames_layout",
    "quality_attrs",
    "quality_to_arrays",
    "shifts_attrs",
    "shifts_to_arrays",
    "stage_digest",
]

FORMAT = "napari-calcium session"
FORMAT_VERSION = 1
CHUNK = 128
SHARD_BYTES = 128 * 2**20
PARTIAL = ".partial"
OLD = "old-"
STAGE_GROUPS = {"import": "movie"}
"""Groups of stages that have another name than their stage."""

MUCH_MORE_MOTION = 1.5
"""Motion in coarse detail relative to that in all, above which fine detail does not move."""

OUTSIDE = ("source", "files", "classifier", "spike_model")
"""Inputs of stages that are no stages."""

MARKS = {"modality": "two-photon"}
"""What a recording may be marked with, and how one is that nobody marked."""

HEEDS = {"component_evaluation": ("modality",), "dff": ("modality",)}
"""The marks that a stage heeds: they are inputs of its results."""


@dataclass(frozen=True)
class Variable:
    """What one array of a session is: its axes, its unit and its meaning.

    An axis `z` is there in sessions of volumes only.

    Examples
    --------
    >>> frames = Variable(("time", "z", "y", "x"), "counts", "the recording")
    >>> frames.axes_of(3), frames.axes_of(4)
    (('time', 'y', 'x'), ('time', 'z', 'y', 'x'))
    """

    axes: tuple[str, ...]
    units: str
    comment: str

    def axes_of(self, ndim: int) -> tuple[str, ...]:
        """Return the axes of an array of so many; `ValueError` if it cannot be this variable."""
        of_one_plane = tuple(axis for axis in self.axes if axis != "z")
        for axes in (self.axes, of_one_plane):
            if len(axes) == ndim:
                return axes
        raise ValueError(f"the axes are {self.axes}, not {ndim}")


READ_AT_ONCE = 2**15
"""Frames of a table of traces that are read at once: the length of its chunks."""

FRAMES = ("time", "z", "y", "x")

VARIABLES: Mapping[str, Variable] = {
    "movie/frames": Variable(FRAMES, "counts", "the recording as it was stored"),
    "motion_correction/frames": Variable(FRAMES, "counts", "the movie put right"),
    "motion_correction/template": Variable(FRAMES[1:], "counts", "what frames were aligned to"),
    "motion_correction/shifts_rigid": Variable(
        ("time", "axis"),
        "px",
        "(y, x), or (z, y, x) for volumes, added to a frame's content position to undo the motion",
    ),
    "motion_correction/shifts_piecewise": Variable(
        ("time", "z", "grid_y", "grid_x", "axis"),
        "px",
        "whole shift (y, x) at the patch centres, whose places are the attributes grid_y, grid_x",
    ),
    "motion_correction/flagged": Variable(
        ("time",),
        "1",
        "frames without visible motion: blank, saturated or unlike all others; "
        "their shifts are interpolated",
    ),
    "motion_correction/correlation_before": Variable(
        ("time",), "1", "correlation of each recorded frame with the template"
    ),
    "motion_correction/correlation_after": Variable(
        ("time",), "1", "correlation of each corrected frame with the template"
    ),
    "motion_correction/principal_motion_before": Variable(
        ("component",),
        "px",
        "motion between the recorded frames lowest and highest along each principal component",
    ),
    "motion_correction/principal_motion_after": Variable(
        ("component",),
        "px",
        "motion between the corrected frames lowest and highest along each principal component",
    ),
    "summary_images/mean": Variable(("y", "x"), "counts", "mean over time"),
    "summary_images/max": Variable(("y", "x"), "counts", "largest value over time"),
    "summary_images/std": Variable(("y", "x"), "counts", "standard deviation over time"),
    "summary_images/correlation": Variable(
        ("y", "x"), "1", "mean temporal correlation of a pixel with its neighbours"
    ),
    "summary_images/max_correlation": Variable(
        ("y", "x"), "1", "largest such correlation in bins of time"
    ),
    "summary_images/correlation_filtered": Variable(
        ("y", "x"), "1", "such correlation of the filtered movie where it is above its noise"
    ),
    "summary_images/pnr": Variable(
        ("y", "x"), "1", "peak of the filtered movie, in sd of the pixel's noise"
    ),
    "source_extraction/footprints/data": Variable(("entry",), "1", "weights, unit norm (CSC)"),
    "source_extraction/footprints/indices": Variable(("entry",), "1", "pixel = y * width + x"),
    "source_extraction/footprints/indptr": Variable(("cell",), "1", "first entry of each cell"),
    "source_extraction/traces": Variable(
        ("cell", "time"), "counts", "denoised fluorescence above rest"
    ),
    "source_extraction/residuals": Variable(("cell", "time"), "counts", "raw minus denoised trace"),
    "source_extraction/deconvolved": Variable(("cell", "time"), "counts/frame", "activity"),
    "source_extraction/background/footprints/data": Variable(("entry",), "1", "weights (CSC)"),
    "source_extraction/background/footprints/indices": Variable(
        ("entry",), "1", "pixel = y * width + x"
    ),
    "source_extraction/background/footprints/indptr": Variable(
        ("component",), "1", "first entry of each component"
    ),
    "source_extraction/background/traces": Variable(
        ("component", "time"), "counts", "activity of the background"
    ),
    "source_extraction/cell_id": Variable(("cell",), "1", "identity of each cell"),
    "source_extraction/baseline": Variable(("cell",), "counts", "at rest, neuropil included"),
    "source_extraction/noise": Variable(("cell",), "counts", "sd of the raw trace's white noise"),
    "source_extraction/time_constants": Variable(
        ("cell", "kind"), "s", "of a transient's decay and rise; NaN where the model has none"
    ),
    "component_evaluation/snr": Variable(("cell",), "1", "exceptionality of the best transient"),
    "component_evaluation/spatial_correlation": Variable(
        ("cell",), "1", "footprint against the movie at the cell's transients"
    ),
    "component_evaluation/cnn_probability": Variable(
        ("cell",), "1", "classifier; NaN where it was not asked"
    ),
    "component_evaluation/size": Variable(("cell",), "1", "area, in discs of the cell radius"),
    "component_evaluation/pairs": Variable(
        ("pair", "cell"), "1", "cells that overlap, by their index"
    ),
    "component_evaluation/overlap": Variable(
        ("pair",), "1", "part of the smaller one's area that lies in the other"
    ),
    "component_evaluation/accepted": Variable(("cell",), "1", "the decision"),
    "component_evaluation/reasons": Variable(
        ("cell",), "1", "why it is rejected, the bits that the attribute meanings names; 0 if not"
    ),
    "component_evaluation/triggered/data": Variable(
        ("entry",), "counts", "mean of the movie at the cell's transients, less all others (CSC)"
    ),
    "component_evaluation/triggered/indices": Variable(("entry",), "1", "pixel = y * width + x"),
    "component_evaluation/triggered/indptr": Variable(("cell",), "1", "first entry of each cell"),
    "dff/traces": Variable(("cell", "time"), "1", "dF/F as a fraction"),
    "dff/baseline": Variable(("cell", "time"), "counts", "F0, what was divided by or subtracted"),
    "dff/floored": Variable(("cell",), "1", "whether F0 was raised to a multiple of the noise"),
    "dff/percentile": Variable(("cell",), "%", "percentile taken for the resting level"),
    "spike_inference/rate": Variable(
        ("cell", "time"), "Hz", "rate of spikes, smoothed as the attributes say; NaN where unknown"
    ),
    "spike_inference/noise_level": Variable(
        ("cell",), "% Hz^-0.5", "median step of dF/F between frames, over the root of their rate"
    ),
    "spike_inference/marks": Variable(
        ("cell",), "1", "what speaks against its rate, the bits that meanings names; 0 if nothing"
    ),
}


@dataclass(frozen=True)
class StageRecord:
    """How a stage's results came to be, as its group's attributes say."""

    stage: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, str]
    digest: str
    versions: Mapping[str, str]


class Session:
    """A recording and its results on disk.

    Parameters
    ----------
    path : Path
        The session's folder, by convention named ``*.zarr``.

    Raises
    ------
    InputError
        If `path` holds no session, or one of a newer format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.is_session(self.path):
            raise InputError(f"{self.path} is not a napari-calcium session; import a recording")
        version = int(self.attrs.get("format_version", 0))
        if version > FORMAT_VERSION:
            raise InputError(
                f"{self.path} has session format {version} but this program reads up to "
                f"{FORMAT_VERSION}; update napari-calcium"
            )

    @staticmethod
    def is_session(path: str | Path) -> bool:
        """Whether a folder is a session, by its root attributes."""
        try:
            metadata = json.loads((Path(path) / "zarr.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        attributes = metadata.get("attributes") if isinstance(metadata, dict) else None
        return isinstance(attributes, dict) and attributes.get("format") == FORMAT

    @classmethod
    def create(cls, path: str | Path, attrs: Mapping[str, Any]) -> Self:
        """Make an empty session.

        Raises
        ------
        InputError
            If something is at `path` already, or it cannot be written.
        """
        path = Path(path)
        root = {"format": FORMAT, "format_version": FORMAT_VERSION, **attrs}
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise InputError(f"{path} exists and is not a session; give another path")
            zarr.create_group(path, attributes=root)
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror}); give another path"
            ) from error
        except ContainsGroupError:
            raise InputError(f"another run is at work in {path}; wait until it ends") from None
        return cls(path)

    @property
    def attrs(self) -> dict[str, Any]:
        """The session's own attributes."""
        return dict(zarr.open_group(self.path, mode="r").attrs)

    def update_attrs(self, attrs: Mapping[str, Any]) -> None:
        """Replace some of the session's own attributes."""
        zarr.open_group(self.path, mode="r+").attrs.update(attrs)

    @property
    def frame_rate(self) -> float:
        """Frames per second, Hz."""
        return float(self._imported["frame_rate"])

    @property
    def pixel_size(self) -> float:
        """Length of a pixel's side, um; 0 where unknown."""
        return float(self._imported["pixel_size"])

    @property
    def modality(self) -> str:
        """How the recording is marked: "two-photon" or "one-photon"."""
        return str(self.attrs.get("modality", MARKS["modality"]))

    def heeds(self, record: StageRecord) -> bool:
        """Whether a stage's results are of a recording marked as this one is now."""
        heeded = HEEDS.get(record.stage, ())
        return all(getattr(self, name) == record.inputs.get(name, MARKS[name]) for name in heeded)

    @property
    def _imported(self) -> Mapping[str, Any]:
        """The parameters of the import: they change together with the movie."""
        record = self.record("movie")
        if record is None:
            raise InputError(f"{self.path} has no movie; run import first")
        return record.parameters

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other run out; ends by itself with the process."""
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"another run is at work in {self.path}; wait until it ends") from None
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}); copy it to where you may write"
            ) from error
        try:
            yield
        finally:
            if os.name != "nt":  # zarr warns of files it does not know; Windows keeps an open one
                (self.path / ".lock").unlink(missing_ok=True)
            lock.release()

    def record(self, group: str) -> StageRecord | None:
        """Return how a finished stage came to be, or None where it is not finished."""
        try:
            attrs = self.group_attrs(group)
        except (FileNotFoundError, ValueError):  # none, or a damaged one: to be made again
            return None
        if not attrs.get("complete"):
            return None
        keys = ("stage", "parameters", "inputs", "digest", "versions")
        return StageRecord(**{key: attrs[key] for key in keys})

    def current(self, group: str) -> StageRecord:
        """Return how a stage's results came to be, if that is from what is there now.

        Raises
        ------
        InputError
            If the stage has not run, or since then a stage it needs has run again or the recording
            was marked otherwise.
        """
        record = self.record(group)
        if record is None:
            raise InputError(f"{self.path} has no {group}; run {_stage_of(group)} first")
        if not self.heeds(record):
            raise InputError(
                f"{record.stage} in {self.path} was made before the recording was marked "
                f"{self.modality}; run it again"
            )
        for stage, digest in record.inputs.items():
            if (
                stage not in (*OUTSIDE, *MARKS)
                and self.current(STAGE_GROUPS.get(stage, stage)).digest != digest
            ):
                raise InputError(
                    f"{record.stage} in {self.path} is of an earlier {stage}; run it again"
                )
        return record

    def is_current(self, group: str) -> bool:
        """Whether a stage has run, on what is there now: see `current`."""
        try:
            self.current(group)
        except InputError:
            return False
        return True

    def group_attrs(self, group: str) -> dict[str, Any]:
        """Return the attributes of a stage's group."""
        return dict(zarr.open_group(self.path, path=group, mode="r").attrs)

    def __contains__(self, name: str) -> bool:
        return (self.path / name / "zarr.json").is_file()

    def array(self, name: str) -> zarr.Array[Any]:
        """Return one array for reading.

        Raises
        ------
        InputError
            If the stage that makes it has not run.
        """
        if name not in self:
            stage = _stage_of(name.split("/")[0])
            raise InputError(f"{self.path} has no {name}; run {stage} first")
        return zarr.open_array(self.path, path=name, mode="r")

    def read(self, name: str) -> NDArray[Any]:
        """Return one array in memory."""
        return np.asarray(self.array(name)[...])

    def movie(self, name: str = "movie/frames") -> Movie:
        """Return a movie of the session, of planes or of volumes, lazily."""
        array = self.array(name)
        chunks = ((array.shards or array.chunks)[0], *array.shape[1:])
        token = f"{name}-{hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:16]}"
        record = self.record(name.split("/")[0])
        suffix = record.digest[:16] if record else "unfinished"
        frames = da.from_array(
            ShardedFrames(array),
            chunks=chunks,
            name=f"{token}-{suffix}",
            meta=np.empty((0,) * array.ndim, array.dtype),
        )
        return Movie(frames, self.frame_rate, self.pixel_size)

    def table(self, name: str, n_cells: int) -> da.Array:
        """Return an array (cell, time) lazily, in blocks of so many cells and of all frames.

        Raises
        ------
        InputError
            If the stage that makes it has not run.
        """
        n_rows, n_frames = self.array(name).shape
        dtype = self.array(name).dtype
        runs = list(blocks(n_rows, n_cells)) or [slice(0, 0)]
        rows = [
            da.from_delayed(
                delayed(_read_rows)(self.path, name, run), (run.stop - run.start, n_frames), dtype
            )
            for run in runs
        ]
        return da.concatenate(rows, axis=0)

    def shifts(self) -> Shifts:
        """Return what undoes the motion of the recording.

        Raises
        ------
        InputError
            If motion correction has not run.
        """
        parts: dict[str, Any] = {}
        if "motion_correction/shifts_piecewise" in self:
            piecewise = self.array("motion_correction/shifts_piecewise")
            parts = {n: np.array(piecewise.attrs[n], np.float32) for n in ("grid_y", "grid_x")}
            parts["piecewise"] = np.asarray(piecewise[...])
        if "motion_correction/flagged" in self:
            parts["flagged"] = self.read("motion_correction/flagged")
        field = self.array("movie/frames").shape[1:]
        return Shifts(self.read("motion_correction/shifts_rigid"), field, **parts)

    def motion_advice(self) -> str:
        """Return what to do where motion correction saw no motion, or in coarse detail only; or "".

        Raises
        ------
        InputError
            If motion correction has not run.
        """
        self.array("motion_correction/shifts_rigid")
        flagged = "motion_correction/flagged"
        if flagged in self and self.read(flagged).all():
            return (
                "No frame agrees with the template better than noise does, so none was moved; "
                "set smoothing to 2 px, or give a template, and run again."
            )
        ratio = float(self.group_attrs("motion_correction").get("coarse_motion", 1.0))
        if ratio < MUCH_MORE_MOTION:
            return ""
        return (
            f"Coarse detail moves {ratio:.1f} times as far as fine detail: the camera may have a "
            "pattern of its own; set smoothing to 3 px, high_pass to 10 px and run again."
        )

    def summary(self, group: str) -> str:
        """Return what a finished stage says of its results in a sentence; empty if nothing."""
        return "" if self.record(group) is None else str(self.group_attrs(group).get("summary", ""))

    def warnings(self, group: str) -> tuple[str, ...]:
        """Return what a person should know of a stage's results before trusting them."""
        return tuple(self.group_attrs(group).get("warnings", ())) if self.record(group) else ()

    def components(self) -> Components:
        """Return the cells that source extraction found."""
        group = "source_extraction"
        return Components(
            footprints=self._footprints(f"{group}/footprints"),
            shape=tuple(self.group_attrs(group)["field"]),
            traces=self.read(f"{group}/traces"),
            residuals=self.read(f"{group}/residuals"),
            deconvolved=self.read(f"{group}/deconvolved"),
            background=Background(
                self._footprints(f"{group}/background/footprints"),
                self.read(f"{group}/background/traces"),
            ),
            cell_id=self.read(f"{group}/cell_id"),
            **{n: self.read(f"{group}/{n}") for n in PROPERTIES if f"{group}/{n}" in self},
        )

    def footprints(self) -> sp.csc_array:
        """Return the cells' footprints alone, (pixel, cell)."""
        return self._footprints("source_extraction/footprints")

    def quality(self) -> Quality:
        """Return the scores of component evaluation and the decision made from them."""
        group = "component_evaluation"
        self.array(f"{group}/accepted")
        arrays = {n: self.read(f"{group}/{n}") for n in QUALITY_TYPES if f"{group}/{n}" in self}
        images = f"{group}/triggered"
        return Quality(**arrays, triggered=self._footprints(images) if images in self else None)

    def reasons(self) -> list[str]:
        """Return, in a few words for each cell, what its scores have against it; "" if nothing."""
        name = "component_evaluation/reasons"
        if name not in self:  # of an earlier version
            return ["" if accepted else "rejected" for accepted in self.quality().accepted]
        return self._in_words(name)

    def spike_rate(self) -> NDArray[np.float32]:
        """Return the inferred rates of spikes (cell, time), Hz; NaN where they are unknown."""
        return self.read("spike_inference/rate")

    def spike_noise_level(self) -> NDArray[np.float32]:
        """Return the noise level of the dF/F of each cell (cell,), % per root Hz; NaN if none."""
        return self.read("spike_inference/noise_level")

    def spike_marks(self) -> list[str]:
        """Return, in a few words for each cell, what speaks against its rate; "" if nothing."""
        return self._in_words("spike_inference/marks")

    def _in_words(self, name: str) -> list[str]:
        """Return the meanings of the bits of each cell."""
        named: Any = self.array(name).attrs["meanings"]
        meanings = {int(bit): str(words) for bit, words in named.items()}
        return [
            ", ".join(words for bit, words in meanings.items() if bit & bits)
            for bits in self.read(name).tolist()
        ]

    def _footprints(self, group: str) -> sp.csc_array:
        data, indices, indptr = (self.read(f"{group}/{p}") for p in ("data", "indices", "indptr"))
        pixels, columns = self.group_attrs(group)["shape"]
        return sp.csc_array((data, indices, indptr), shape=(pixels, columns))

    @contextlib.contextmanager
    def writing(self, group: str) -> Iterator[StageWriter]:
        """Write a stage's group; `StageWriter.commit` makes it part of the session.

        Whatever was not committed is removed.
        """
        self.recover()
        try:
            yield StageWriter(self.path, group, self.path / PARTIAL / group)
        finally:
            self.recover()

    def recover(self) -> None:
        """Finish a commit that was cut off and remove all else that was left half-written.

        Only for the holder of `lock`.
        """
        partial = self.path / PARTIAL
        for old in partial.glob(f"{OLD}*"):
            group = old.name.removeprefix(OLD)
            if not (self.path / group).exists():  # killed between the two steps of a commit
                new = partial / group
                os.replace(new if new.exists() else old, self.path / group)
        shutil.rmtree(partial, ignore_errors=True)


class StageWriter:
    """Writes one stage's group out of sight of readers; see `Session.writing`."""

    def __init__(self, root: Path, group: str, path: Path) -> None:
        self._root = root
        self._group = group
        self._path = path
        zarr.create_group(path)

    def create_frames(self, name: str, frames: da.Array) -> zarr.Array[Any]:
        """Make the array that a movie's blocks are written to, by `shards.write_frames`.

        Raises
        ------
        ValueError
            If the blocks do not fall together with the array's shards: writing them would corrupt.
        """
        chunks, shards = frames_layout(frames.shape, frames.dtype.itemsize)
        for sizes, shard in zip(frames.chunks, shards, strict=True):
            if any(size % shard for size in sizes[:-1]):
                raise ValueError(f"blocks of {sizes} are not aligned with shards of {shard}")
        return self._create(name, frames.shape, frames.dtype, chunks, shards)

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Write one small array whole."""
        values = np.asarray(values)
        chunks = tuple(max(1, size) for size in values.shape)
        if values.ndim == 2 and values.nbytes > 2**22:
            chunks = (min(64, chunks[0]), min(2**15, chunks[1]))
        if values.ndim > 2:
            chunks = (max(1, 2**22 * chunks[0] // max(2**22, values.nbytes)), *chunks[1:])
        self._create(name, values.shape, values.dtype, chunks, None)[...] = values

    def attrs(self, name: str, attrs: Mapping[str, Any]) -> None:
        """Set attributes of the stage's group, "", or of a group or an array within it."""
        zarr.open(self._path / name, mode="r+").attrs.update(attrs)

    def commit(self, record: StageRecord) -> None:
        """Make the group part of the session, replacing an earlier one, in one step."""
        self.attrs("", {**vars(record), "complete": True})
        final, old = self._root / self._group, self._path.with_name(OLD + self._group)
        if final.exists():
            os.replace(final, old)
        os.replace(self._path, final)

    def _create(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        chunks: tuple[int, ...],
        shards: tuple[int, ...] | None,
    ) -> zarr.Array[Any]:
        variable = VARIABLES[f"{self._group}/{name}"]
        axes = variable.axes_of(len(shape))
        return zarr.open_group(self._path, mode="r+").create_array(
            name,
            shape=shape,
            dtype=dtype,
            chunks=chunks,
            shards=shards,
            compressors=COMPRESSOR,
            dimension_names=axes,
            attributes={
                "axes": list(axes),
                "units": variable.units,
                "comment": variable.comment,
            },
        )


def frames_layout(shape: tuple[int, ...], itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the chunks and shards of a movie (time, y, x) or (time, z, y, x) on disk.

    A shard is a run of whole frames or volumes, what one task writes; its chunks are 128 px tiles
    of one plane, so that one tile over all time and one frame are both read cheaply. A field so
    large that 128 frames would exceed 128 MiB gets fewer frames in a chunk.

    Examples
    --------
    >>> frames_layout((1000, 300, 37), 2)
    ((128, 128, 37), (128, 384, 37))
    >>> frames_layout((1000, 20, 512, 512), 2)
    ((8, 1, 128, 128), (8, 20, 512, 512))
    """
    _, *planes, height, width = shape
    tile = (min(CHUNK, height), min(CHUNK, width))
    field = (*planes, -(-height // tile[0]) * tile[0], -(-width // tile[1]) * tile[1])
    frames = CHUNK
    while frames > 1 and frames * math.prod(field) * itemsize > SHARD_BYTES:
        frames //= 2
    return (frames, *[1] * len(planes), *tile), (frames, *field)


def _read_rows(path: Path, name: str, rows: slice) -> NDArray[Any]:
    """Return some rows of a table, read a stretch at a time: chunks hold other rows as well."""
    array = zarr.open_array(path, path=name, mode="r")
    n_frames = array.shape[1]
    values = np.empty((rows.stop - rows.start, n_frames), array.dtype)
    for start in range(0, n_frames, READ_AT_ONCE):
        stretch = slice(start, min(start + READ_AT_ONCE, n_frames))
        values[:, stretch] = array[rows, stretch]
    return values


def _stage_of(group: str) -> str:
    """Return the stage that makes a group."""
    return {group: stage for stage, group in STAGE_GROUPS.items()}.get(group, group)


def stage_digest(stage: str, parameters: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return what identifies a stage's result: its name, its parameters and its inputs' digests."""
    parts = [stage, dict(parameters), dict(inputs)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def shifts_to_arrays(shifts: Shifts) -> dict[str, NDArray[Any]]:
    """Return the arrays of shifts in the ``motion_correction`` group."""
    assert shifts.flagged is not None
    arrays: dict[str, NDArray[Any]] = {"shifts_rigid": shifts.rigid, "flagged": shifts.flagged}
    if shifts.piecewise is not None:
        arrays["shifts_piecewise"] = shifts.piecewise
    return arrays


def shifts_attrs(shifts: Shifts) -> dict[str, dict[str, Any]]:
    """Return the attributes of the ``motion_correction`` group and of its arrays."""
    region = [[part.start, part.stop] for part in shifts.valid_region()]
    attrs: dict[str, dict[str, Any]] = {"": {"field": list(shifts.field), "valid_region": region}}
    if shifts.grid_y is not None and shifts.grid_x is not None:
        grid = {"grid_y": shifts.grid_y.tolist(), "grid_x": shifts.grid_x.tolist()}
        attrs["shifts_piecewise"] = grid
    return attrs


def components_to_arrays(components: Components) -> dict[str, NDArray[Any]]:
    """Return the arrays of the ``source_extraction`` group."""
    return {
        **_sparse_to_arrays("footprints", components.footprints),
        "traces": components.traces,
        "residuals": components.residuals,
        "deconvolved": components.deconvolved,
        **_sparse_to_arrays("background/footprints", components.background.footprints),
        "background/traces": components.background.traces,
        "cell_id": components.cell_id,
        **{name: getattr(components, name) for name in PROPERTIES},
    }


def _sparse_to_arrays(name: str, matrix: sp.csc_array) -> dict[str, NDArray[Any]]:
    return {
        f"{name}/data": matrix.data,
        f"{name}/indices": matrix.indices.astype(np.int64),
        f"{name}/indptr": matrix.indptr.astype(np.int64),
    }


def components_attrs(components: Components) -> dict[str, dict[str, Any]]:
    """Return the attributes of the ``source_extraction`` group and of the groups in it."""
    return {
        "": {"field": list(components.shape), "n_cells": components.n_cells},
        "footprints": {"shape": list(components.footprints.shape)},
        "background/footprints": {"shape": list(components.background.footprints.shape)},
    }


def quality_to_arrays(quality: Quality) -> dict[str, NDArray[Any]]:
    """Return the arrays of the ``component_evaluation`` group."""
    arrays = {name: getattr(quality, name) for name in QUALITY_TYPES}
    images = quality.triggered
    return arrays if images is None else arrays | _sparse_to_arrays("triggered", images)


def quality_attrs(quality: Quality) -> dict[str, dict[str, Any]]:
    """Return the attributes of the groups within ``component_evaluation``."""
    images = quality.triggered
    return {} if images is None else {"triggered": {"shape": list(images.shape)}}
