"""Open a recording, TIFF files or a Zarr: headers are understood, frames read only when asked."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import numpy as np
from dask.base import tokenize
from natsort import natsorted, ns

from napari_calcium.errors import InputError
from napari_calcium.io.session import frames_layout
from napari_calcium.io.tiff import EXTENSIONS, TiffFrames, TiffStack, in_volumes, read_stack
from napari_calcium.io.zarr import METADATA, ZarrFrames, is_zarr, read_zarr

__all__ = ["Recording", "SourceFile", "file_digest", "folder_digest", "open_recording"]

MIB = 2**20
BLOCK_BYTES = 256 * MIB


@dataclass(frozen=True)
class SourceFile:
    """One file, or one Zarr folder, of a recording.

    Parameters
    ----------
    path : Path
        Where it is.
    n_frames : int
        Frames it holds.
    digest : str
        Fingerprint of size and samples of its content: see `file_digest`, `folder_digest`.
    """

    path: Path
    n_frames: int
    digest: str


@dataclass(frozen=True)
class Recording:
    """A recording as it was understood from its headers.

    Parameters
    ----------
    frames : dask.array.Array (time, y, x) or (time, z, y, x)
        The movie, not read, in the integer type it was recorded in.
    files : tuple of SourceFile
        Where it comes from, in the order of time.
    kind : {"TIFF", "Zarr"}
        Format of the files.
    frame_rate : float, optional
        Frames per second, Hz, where the metadata says so.
    pixel_size : float, optional
        Length of a pixel's side, um, where the metadata says so.
    notes : tuple of str
        What a person should know before analysing it, a sentence each.

    Examples
    --------
    >>> import numpy as np, tempfile, tifffile
    >>> path = Path(tempfile.mkdtemp()) / "movie.tif"
    >>> tifffile.imwrite(path, np.zeros((60, 37, 53), "uint16"), metadata={"fps": 30})
    >>> recording = open_recording([path])
    >>> recording.frames.shape, recording.frame_rate
    ((60, 37, 53), 30.0)
    """

    frames: da.Array
    files: tuple[SourceFile, ...]
    kind: Literal["TIFF", "Zarr"]
    frame_rate: float | None = None
    pixel_size: float | None = None
    notes: tuple[str, ...] = ()

    def understood(self) -> str:
        """Return in a line what the import understands of the recording, and a line for each note.

        Of many files in order the first two and the last are named.
        """
        n_frames, *planes, height, width = self.frames.shape
        counted = f"{n_frames} volumes of {planes[0]} planes" if planes else f"{n_frames} frames"
        names = [file.path.name for file in self.files]
        listed = names if len(names) <= 3 else [*names[:2], "...", names[-1]]
        said = (
            f"{self.kind}, {counted} of {height} x {width} px (y, x), {self.frames.dtype}, "
            f"in this order: {', '.join(listed)}"
        )
        return "\n".join((said, *(f"note: {note}" for note in self.notes)))

    def summary(self) -> dict[str, Any]:
        """Return what was understood, as JSON can hold it.

        Returns
        -------
        dict
            ``kind``, ``files``, ``n_frames``, ``field`` (y, x) or (z, y, x) in pixels,
            ``dtype``, ``frame_rate`` in Hz and ``pixel_size`` in um (None where unknown),
            ``bytes`` of all frames in memory, and ``notes``.
        """
        n_frames, *field = (int(size) for size in self.frames.shape)
        return {
            "kind": self.kind,
            "files": [
                {"path": str(file.path), "n_frames": file.n_frames, "digest": file.digest}
                for file in self.files
            ],
            "n_frames": n_frames,
            "field": field,
            "dtype": str(self.frames.dtype),
            "frame_rate": self.frame_rate,
            "pixel_size": self.pixel_size,
            "bytes": n_frames * math.prod(field) * self.frames.dtype.itemsize,
            "notes": list(self.notes),
        }


def open_recording(sources: Sequence[str | Path]) -> Recording:
    """Open TIFF files, a folder of them, or a Zarr, as one movie.

    Only headers and the samples of the digests are read, never the movie. Files are put in the
    natural order of their full names (1, 2, 10), whatever the order they are given in.

    Parameters
    ----------
    sources : sequence of str or Path
        TIFF files and folders of TIFF files, or a single Zarr.

    Returns
    -------
    Recording
        The lazy movie and what the headers say.

    Raises
    ------
    InputError
        If a source does not exist, is of an unknown kind, is damaged or is not a movie of integers
        with one channel, or if the files do not fit together.
    """
    given = [sources] if isinstance(sources, str | os.PathLike) else sources
    paths = [Path(source).expanduser().absolute() for source in given]
    if not paths:
        raise InputError("no file is given; give TIFF files, a folder of them, or a .zarr folder")
    try:
        return _opened(paths)
    except OSError as error:
        place = error.filename or paths[0]
        raise InputError(
            f"{place} cannot be opened ({error.strerror}); check the path and its permissions"
        ) from error


def _opened(paths: list[Path]) -> Recording:
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist; check the path")
    zarrs = [path for path in paths if is_zarr(path)]
    if not zarrs:
        return _open_tiffs(_in_order(paths))
    if len(paths) > 1:
        other = next((path for path in paths if path != zarrs[0]), paths[1])
        raise InputError(f"{zarrs[0]} is a Zarr, so {other} cannot be added; open it alone")
    return _open_zarr(zarrs[0])


def file_digest(path: Path) -> str:
    """Return the fingerprint of a file: SHA-256 of its size and of samples of its content.

    The samples are the first and the last MiB and 16 evenly spaced blocks of 64 KiB. Of a file
    under 64 MiB they are proportionally smaller, 16 KiB and 1 KiB at least, so that thousands of
    small files open quickly. It tells recordings apart and notices files that were replaced or
    cut; it does not prove that every pixel is unchanged.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    size = path.stat().st_size
    ends = max(2**14, min(MIB, size // 64))
    starts = [size * (i + 1) // 17 for i in range(16)]
    blocks = [(0, ends), *((start, ends // 16) for start in starts), (max(0, size - ends), ends)]
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start, length in blocks:
            file.seek(start)
            digest.update(file.read(length))
    return digest.hexdigest()


def folder_digest(path: Path) -> str:
    """Return the fingerprint of a Zarr folder: SHA-256 of names, sizes, metadata and samples.

    The names relative to the folder and the sizes of all files, in order, the whole of the metadata
    files, and the first 64 KiB of 16 evenly spaced other files.

    Parameters
    ----------
    path : Path
        The folder.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    found = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    files = {file.relative_to(path).as_posix(): file for file in found}
    names = sorted(files)
    chunks = [name for name in names if files[name].name not in METADATA]
    sampled = {chunks[len(chunks) * i // 16] for i in range(16)} if chunks else set()
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0{files[name].stat().st_size}\0".encode(errors="surrogateescape"))
        if files[name].name in METADATA:
            digest.update(files[name].read_bytes())
        elif name in sampled:
            with files[name].open("rb") as file:
                digest.update(file.read(MIB // 16))
    return digest.hexdigest()


def _in_order(paths: Sequence[Path]) -> list[Path]:
    """Return the TIFF files of files and folders in natural order."""
    files = [file for path in paths for file in (_tiffs(path) if path.is_dir() else [path])]
    for file in files:
        if file.suffix.lower() not in EXTENSIONS:
            known = ", ".join(EXTENSIONS)
            raise InputError(
                f"{file} is of an unknown kind; known are {known} and folders that are .zarr"
            )
    ordered: list[Path] = natsorted(sorted(files), key=str, alg=ns.PATH)
    seen: set[Path] = set()
    for file in ordered:
        if (true := file.resolve()) in seen:
            raise InputError(f"{file} is given twice; give each file once")
        seen.add(true)
    return ordered


def _tiffs(folder: Path) -> list[Path]:
    files = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".")
    ]
    if not files:
        raise InputError(
            f"{folder} has no files that end in {', '.join(EXTENSIONS)}; "
            "give the folder that holds the TIFF files"
        )
    return files


def _open_tiffs(paths: Sequence[Path]) -> Recording:
    stacks = tuple(read_stack(path) for path in paths)
    for stack in stacks:
        _check_axes(stack.path, stack.metadata.axes, stack.shape)
    volumes = any(stack.metadata.is_volume for stack in stacks)
    _check_alike(stacks, volumes)
    if volumes:
        stacks = tuple(in_volumes(stack) for stack in stacks)
    frames = TiffFrames(stacks, stacks[0].metadata.n_planes if volumes else 1)
    _check_movie(paths[0], frames)
    files = tuple(
        SourceFile(stack.path, len(stack.offsets) // frames.n_planes, file_digest(stack.path))
        for stack in stacks
    )
    return Recording(
        frames=_lazy(frames, files, (_frames_per_block(frames), *frames.shape[1:])),
        files=files,
        kind="TIFF",
        frame_rate=stacks[0].metadata.frame_rate,
        pixel_size=stacks[0].metadata.pixel_size,
        notes=tuple(note for stack in stacks for note in stack.notes),
    )


def _open_zarr(path: Path) -> Recording:
    movie = read_zarr(path)
    _check_axes(path, movie.axes, movie.frames.shape[-2:])
    _check_movie(path, movie.frames)
    files = (SourceFile(path, movie.frames.shape[0], folder_digest(path)),)
    return Recording(
        frames=_lazy(movie.frames, files, _blocks(movie.frames)),
        files=files,
        kind="Zarr",
        frame_rate=movie.frame_rate,
        pixel_size=movie.pixel_size,
        notes=movie.notes,
    )


def _frames_per_block(frames: TiffFrames | ZarrFrames) -> int:
    """Return how many frames Dask's blocks have: those of the session's shards."""
    return frames_layout(frames.shape, frames.dtype.itemsize)[1][0]


def _blocks(frames: ZarrFrames) -> tuple[int, ...]:
    """Return the shape of Dask's blocks: whole chunks, and the whole field if it fits."""
    time, *field = frames.chunks
    time *= math.ceil(_frames_per_block(frames) / time)
    if time * math.prod(frames.shape[1:]) * frames.dtype.itemsize <= BLOCK_BYTES:
        field = list(frames.shape[1:])
    return time, *field


def _lazy(frames: TiffFrames | ZarrFrames, files: tuple[SourceFile, ...], chunks: Any) -> da.Array:
    """Return frames as a Dask array whose name depends on the files alone."""
    token = tokenize([(str(file.path), file.digest, file.n_frames) for file in files])
    return da.from_array(
        frames,
        chunks=chunks,
        name=f"recording-{token}",
        meta=np.empty((0,) * frames.ndim, frames.dtype),
    )


def _check_axes(path: Path, axes: Mapping[str, int], shape: Sequence[int]) -> None:
    """Raise where there are several channels; any other single axis is time."""
    several = {name for name, size in axes.items() if size > 1}
    if several == {"T", "Z"} or (len(several) < 2 and "C" not in several):
        return
    sizes = {**axes, "Y": shape[0], "X": shape[1]}
    said = ", ".join(f"{name} {size}" for name, size in sizes.items())
    raise InputError(
        f"{path} has the axes {said}, and several channels are not supported yet; "
        "split it into one file per channel, with the axes T, Y, X, or T, Z, Y, X for volumes"
    )


def _check_alike(stacks: Sequence[TiffStack], volumes: bool) -> None:
    first = stacks[0]
    planes = [str(stack.metadata.n_planes) if volumes else "1" for stack in stacks]
    for other, n_planes in zip(stacks[1:], planes[1:], strict=True):
        for one, two, unit in (
            (planes[0], n_planes, "planes"),
            (f"{first.shape[0]} x {first.shape[1]}", f"{other.shape[0]} x {other.shape[1]}", "px"),
            (first.dtype.name, other.dtype.name, "pixels"),
        ):
            if one != two:
                raise InputError(
                    f"{other.path} has frames of {two} {unit} but {first.path} of {one}; "
                    "open only the files of one recording together"
                )


def _check_movie(path: Path, frames: TiffFrames | ZarrFrames) -> None:
    if frames.dtype.kind not in "ui" or frames.dtype.itemsize > 4:
        raise InputError(
            f"{path} has pixels of type {frames.dtype}; save it as 8, 16 or 32 bit integers"
        )
    if frames.shape[0] < 2 or 0 in frames.shape:
        sizes = " x ".join(str(size) for size in frames.shape)
        axes = "(time, y, x)" if frames.ndim == 3 else "(time, z, y, x)"
        raise InputError(f"{path} is of {sizes} {axes}; give a movie of at least 2 frames")
