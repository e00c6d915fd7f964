"""The preview of source extraction: the cells of one patch, which no session keeps."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import dask.array as da
import numpy as np
import scipy.sparse as sp
from dask.delayed import delayed
from numpy.typing import NDArray

from napari_calcium.components import Components
from napari_calcium.errors import InputError
from napari_calcium.extraction.cnmf import SourceExtractionParameters, fit_model
from napari_calcium.extraction.model import Model
from napari_calcium.extraction.patches import Patch, cut
from napari_calcium.extraction.refinement import components_of
from napari_calcium.io.session import Session
from napari_calcium.movie import Movie
from napari_calcium.pipeline.run import Progress, compute_graph

__all__ = [
    "ExtractionPreview",
    "corrected_movie",
    "patch_at",
    "preview_extraction",
    "read_extraction_preview",
    "warm_up_extraction",
]

STAGE = "source_extraction"
COMPONENTS = "components.npz"

LARGEST, LARGEST_IN_RADII = 128, 12.8
"""A patch that is larger than both, in px and in radii of a cell, is previewed in part."""

IN_MEMORY = 2**29
"""A patch of fewer bytes than this is read once; a larger one by each pass over it."""

Reporter = Callable[[Progress], None]


@dataclass(frozen=True)
class ExtractionPreview:
    """The cells that source extraction finds in one patch.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
        Of unit norm; pixel = y * width + x of the patch with its halo.
    traces : ndarray (cell, time)
        Denoised fluorescence above rest.
    shape : tuple of int
        The patch with its halo, (y, x), px.
    offset : tuple of int
        Where its first pixel lies in the field, (y, x), px.
    core : tuple of slice
        The patch without its halo, (y, x) in the field, px.
    time : slice
        The frames that were looked at.
    summary : str
        How many candidates became cells and what removed the others, of the patch with its halo.
    """

    footprints: sp.csc_array
    traces: NDArray[np.float32]
    shape: tuple[int, int]
    offset: tuple[int, int]
    core: tuple[slice, slice]
    time: slice
    summary: str

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.footprints.shape[1])


def corrected_movie(session: str | Path) -> Movie:
    """Return lazily the movie in which a session's cells are looked for.

    Raises
    ------
    InputError
        If there is no session, or its motion is not corrected yet.
    """
    if not str(session):
        raise InputError("session is not given; import a recording or choose a session")
    return Session(session).movie("motion_correction/frames")


def patch_at(
    field: tuple[int, int], parameters: SourceExtractionParameters, point: tuple[float, float]
) -> Patch:
    """Return the patch whose core holds a point of the field, or lies nearest to it.

    Of a patch larger than 128 px and 12.8 radii of a cell, the part of that size around the point
    is taken, unless `n_cells` says how many cells are in a patch.

    Parameters
    ----------
    field : tuple of int
        (y, x), px.
    parameters : SourceExtractionParameters
        Its `cell_radius`, `patch_size`, `patch_overlap` and `n_cells`.
    point : tuple of float
        (y, x), px.

    Examples
    --------
    >>> patch_at((100, 300), SourceExtractionParameters(), (80.2, 70.0))
    Patch(core=(slice(50, 100, None), slice(60, 120, None)),
          halo=(slice(30, 100, None), slice(40, 140, None)))
    >>> patch_at((100, 300), SourceExtractionParameters(patch_size=0), (80.2, 70.0)).core
    (slice(0, 100, None), slice(6, 134, None))
    """
    y, x = (min(max(round(c), 0), n - 1) for c, n in zip(point, field, strict=True))
    patches = cut(field, parameters.core(field), parameters.halo)
    patch = next(each for each in patches if _holds(each.core[0], y) and _holds(each.core[1], x))
    if parameters.n_cells:
        return patch
    most = max(LARGEST, math.ceil(LARGEST_IN_RADII * parameters.cell_radius))
    core = _around(patch.core[0], y, most), _around(patch.core[1], x, most)
    grown = [
        slice(max(span.start - parameters.halo, 0), min(span.stop + parameters.halo, n))
        for span, n in zip(core, field, strict=True)
    ]
    return Patch(core, (grown[0], grown[1]))


def preview_extraction(
    movie: Movie,
    parameters: SourceExtractionParameters,
    centre: tuple[float, float],
    folder: str | Path,
    *,
    seeds: sp.csc_array | None = None,
    time: slice | None = None,
    workers: int | None = None,
    progress: Reporter | None = None,
) -> None:
    """Find the cells of one patch into a folder: see `read_extraction_preview`.

    They are found as a run would find them in this patch, but for what a run takes from the whole
    field: a low-rank background is the patch's own here, cells that reach beyond the halo are cut
    off, and `n_cells` counts those in the halo too. Fewer frames hold less activity, so that near
    the `threshold` fewer cells are found.

    Parameters
    ----------
    movie : Movie
        Registered, of one plane.
    parameters : SourceExtractionParameters
        How.
    centre : tuple of float
        A point (y, x), px, of the patch: see `patch_at`.
    folder : path
        Made if it does not exist. An earlier preview in it is replaced.
    seeds : scipy.sparse.csc_array (pixel, cell), optional
        Of the whole field, for the initialization "seeds"; those that lie in the patch are taken.
    time : slice, optional
        Only these frames, from a start to a stop.
    workers : int, optional
        Tasks at a time; as many as there are processors if not given.
    progress : callable, optional
        Called with a `Progress` after each task.

    Raises
    ------
    InputError
        If the frames are not in the movie, a parameter does not fit it, no seed lies in the patch,
        or the folder cannot be written.
    """
    parameters.check_movie(movie.frames.shape)
    time = _checked(time, movie.n_frames)
    patch = patch_at(movie.plane, parameters, centre)
    inside = None if seeds is None else _seeds_in(seeds, movie.plane, patch)
    alone = replace(parameters, patch_size=0)
    crop = _cropped(movie, time, patch, workers)
    model = fit_model(crop, alone, inside)
    found = [delayed(components_of)(model), delayed(_summary)(model, parameters)]
    components, summary = compute_graph(found, STAGE, workers=workers, progress=progress)
    try:
        _save(Path(folder), components, patch, time, summary)
    except OSError as error:
        raise InputError(
            f"the preview cannot be written to {folder} ({error.strerror}); make room or preview "
            "fewer frames"
        ) from error


def read_extraction_preview(folder: str | Path) -> ExtractionPreview:
    """Return what `preview_extraction` left in a folder.

    Examples
    --------
    >>> import tempfile
    >>> frames = np.random.default_rng(0).poisson(40, (200, 37, 101)).astype(np.uint16)
    >>> frames[50:60, 10:18, 80:88] += 90
    >>> movie = Movie(da.from_array(frames), frame_rate=10.0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     parameters = SourceExtractionParameters(cell_radius=4, patch_size=64)
    ...     preview_extraction(movie, parameters, (20, 90), folder)
    ...     found = read_extraction_preview(folder)
    >>> found.n_cells, found.offset, found.core[1], found.summary
    (1, (0, 34), slice(50, 101, None), '1 cell of 2 candidates: 1 merged.')
    """
    with np.load(Path(folder) / COMPONENTS) as arrays:
        found = dict(arrays)
    height, width = (int(size) for size in found["shape"])
    parts = (found["data"], found["indices"], found["indptr"])
    (top, bottom), (left, right), (start, stop) = found["box"].tolist()
    return ExtractionPreview(
        sp.csc_array(parts, shape=(height * width, len(found["indptr"]) - 1)),
        found["traces"],
        (height, width),
        (int(found["offset"][0]), int(found["offset"][1])),
        (slice(top, bottom), slice(left, right)),
        slice(start, stop),
        str(found["summary"]),
    )


def warm_up_extraction() -> None:
    """Preview a small movie with one cell, so that all that a preview needs is loaded before."""
    random = np.random.default_rng(0)
    frames = random.poisson(40, (200, 37, 53)).astype(np.uint16)
    frames[50:60, 10:18, 20:28] += 90
    movie = Movie(da.from_array(frames, name=False), 10.0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        preview_extraction(movie, SourceExtractionParameters(cell_radius=4), (18, 26), folder)


def _holds(span: slice, place: int) -> bool:
    return bool(span.start <= place < span.stop)


def _around(span: slice, place: int, most: int) -> slice:
    """Return the part of a span around a place in it, no longer than `most`."""
    start = min(max(place - most // 2, span.start), max(span.stop - most, span.start))
    return slice(start, min(start + most, span.stop))


def _checked(time: slice | None, n_frames: int) -> slice:
    if time is None:
        return slice(0, n_frames)
    if not 0 <= time.start < time.stop <= n_frames:
        raise InputError(
            f"the preview is of the frames {time.start} to {time.stop - 1} but the movie has "
            f"{n_frames}; give a stretch within it"
        )
    return time


def _cropped(movie: Movie, time: slice, patch: Patch, workers: int | None) -> Movie:
    """Return a patch with its halo as a movie, in memory where it is small."""
    frames = movie.frames[(time, *patch.halo)]
    if frames.nbytes <= IN_MEMORY:
        pixels = compute_graph(frames, STAGE, workers=workers)
        frames = da.from_array(pixels, chunks=(-1, -1, -1), name=False)
    return replace(movie, frames=frames)


def _seeds_in(seeds: sp.csc_array, field: tuple[int, int], patch: Patch) -> sp.csc_array:
    """Return the part of the seeds that lies in a patch with its halo, if any does."""
    if seeds.shape[0] != field[0] * field[1]:
        raise InputError(
            f"seeds have {seeds.shape[0]} pixels but the field is {field[0]} x {field[1]} px; "
            "give seeds of the same field"
        )
    pixels = np.arange(field[0] * field[1]).reshape(field)[patch.halo].ravel()
    inside = sp.csc_array(sp.csr_array(seeds)[pixels])
    inside = sp.csc_array(inside[:, np.flatnonzero(np.diff(inside.indptr))])
    if not inside.shape[1]:
        rows, columns = patch.halo
        raise InputError(
            f"no seed lies at y {rows.start} to {rows.stop - 1}, x {columns.start} to "
            f"{columns.stop - 1} px, which is to be previewed; look at a place with seeds"
        )
    return inside


def _summary(model: Model, parameters: SourceExtractionParameters) -> str:
    return model.census.sentence(model.n_cells, parameters)


def _save(path: Path, components: Components, patch: Patch, time: slice, summary: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    rows, columns = patch.halo
    np.savez(
        path / COMPONENTS,
        data=components.footprints.data,
        indices=components.footprints.indices,
        indptr=components.footprints.indptr,
        traces=components.traces,
        shape=np.array(components.shape),
        offset=np.array([rows.start, columns.start]),
        box=np.array([[span.start, span.stop] for span in (*patch.core, time)]),
        summary=np.array(summary),
    )
