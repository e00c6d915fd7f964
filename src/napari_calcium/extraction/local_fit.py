"""Footprints and traces of a few cells estimated from the part of the movie that they lie in.

Least squares with the other cells and the neuropil as they are: what is found is what source
extraction would have found with these footprints (Pnevmatikakis et al. 2016,
10.1016/j.neuron.2015.11.037).

Only the box around the affected cells is read, a run of frames at a time, inside the tasks: where
it lies is known when they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from napari_calcium.components import Components
from napari_calcium.deconvolution.foopsi import DeconvolutionParameters, deconvolve_traces
from napari_calcium.errors import InputError
from napari_calcium.extraction.edit import Edit, static_image
from napari_calcium.extraction.factorization import activity_scores
from napari_calcium.extraction.initialization import ACTIVE
from napari_calcium.extraction.noise import pixel_noise
from napari_calcium.extraction.patches import bin_frames
from napari_calcium.extraction.spatial import update_footprints
from napari_calcium.extraction.splitting import told_apart
from napari_calcium.extraction.temporal import demixed_traces
from napari_calcium.footprints import trimmed_footprints, unit
from napari_calcium.movie import Movie, Reader, blocks

__all__ = ["Window", "affected_traces", "with_fitted_footprints"]

Floats = NDArray[np.float32]

FRAMES_PER_RUN = 2048
"""Frames of a task; a power of two, so that runs are of whole bins."""

PIXELS_AT_ONCE = 2**22
"""A task reads so many pixels at a time."""

MOST_BINS = 4000
"""New footprints are fitted to at most so many averaged frames, as cells are searched in."""

MOST_VALUES = 2**26
"""Averaged frames are also fewer where they would be more values than this."""

ROUNDS = 8
"""Updates of traces and footprints while a new footprint is fitted."""

SPARSITY = 0.5
"""Weight of a pixel in a new footprint that counts as noise, sd; less than in source extraction,
as somebody said where the cell is."""

EDGE = 0.1
"""A new footprint ends where it falls below this part of its maximum."""

CHANCE = (0.0147, 0.163)
"""Mean of z**2 and of z**4 of Gaussian noise, counted where z is above `ACTIVE`."""


BRIEFLY = DeconvolutionParameters(time_constants="autocovariance", penalty="l1")
"""How traces are deconvolved between updates of footprints."""


@dataclass(frozen=True)
class Window:
    """The pixels that an edit is about, and the box of the movie that holds them.

    Parameters
    ----------
    rows, columns : slice
        The box.
    inside : ndarray of int (pixel,)
        Numbers of the pixels in the box, as `pixels` are in the field.
    pixels : ndarray of int (pixel,)
        Pixel = y * width + x, ascending.
    rest : ndarray (pixel,)
        The static image there.
    field : tuple of int
        Field of view, (y, x), px.

    Examples
    --------
    >>> import dask.array as da
    >>> from napari_calcium.components import Background
    >>> none = np.zeros((0, 9))
    >>> still = Background(sp.csc_array(np.full((20, 1), 3.0)), np.ones((1, 9)))
    >>> cells = Components(sp.csc_array((20, 0)), (4, 5), none, none, none, still, np.arange(0))
    >>> window = Window.around(sp.csc_array(np.eye(20)[:, [7, 13]]), cells)
    >>> window.rows, window.columns, window.pixels
    (slice(1, 3, None), slice(2, 4, None), array([ 7, 13]))
    >>> movie = Movie(da.from_array(np.arange(180).reshape(9, 4, 5)), frame_rate=30.0)
    >>> window.light(Reader(movie), slice(1, 3))
    array([[24., 44.],
           [30., 50.]], dtype=float32)
    """

    rows: slice
    columns: slice
    inside: NDArray[np.int64]
    pixels: NDArray[np.int64]
    rest: Floats
    field: tuple[int, int]

    @classmethod
    def around(cls, footprints: sp.csc_array, components: Components) -> Window:
        """Return the window of all pixels that some footprints (pixel, cell) have."""
        pixels = np.unique(footprints.indices[footprints.data > 0]).astype(np.int64)
        y, x = np.divmod(pixels, components.shape[1])
        rows, columns = (
            slice(int(axis.min()), int(axis.max()) + 1) if len(axis) else slice(0, 0)
            for axis in (y, x)
        )
        inside = (y - rows.start) * (columns.stop - columns.start) + x - columns.start
        rest = static_image(components.background)[pixels]
        return cls(rows, columns, inside, pixels, rest, components.shape)

    def light(self, reader: Reader, time: slice) -> Floats:
        """Read the pixels' light above rest, (pixel, time)."""
        frames = reader.read(time, self.rows, self.columns)
        pixels = frames.reshape(len(frames), -1)[:, self.inside].astype(np.float32)
        return np.ascontiguousarray((pixels - self.rest).T)

    def pieces(self, run: slice) -> list[slice]:
        """Cut a run of frames into those that are read at a time."""
        area = (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)
        size = max(1, PIXELS_AT_ONCE // max(1, area))
        return [
            slice(run.start + cut.start, run.start + cut.stop)
            for cut in blocks(run.stop - run.start, 1 << (size.bit_length() - 1))
        ]

    def only(self, which: NDArray[np.bool_]) -> Window:
        """Return the window with some of its pixels (pixel,) alone, in the same box."""
        parts = {name: getattr(self, name)[which] for name in ("inside", "pixels", "rest")}
        return replace(self, **parts)

    def part(self, footprints: sp.csc_array) -> sp.csc_array:
        """Return footprints of the field at these pixels alone, (pixel of the window, cell)."""
        return sp.csc_array(sp.csr_array(footprints)[self.pixels])

    def placed(self, footprints: sp.csc_array) -> sp.csc_array:
        """Return footprints of these pixels as those of the field; the inverse of `part`."""
        parts = (footprints.data, self.pixels[footprints.indices], footprints.indptr)
        return sp.csc_array(parts, (self.field[0] * self.field[1], footprints.shape[1]))


# ---------------------------------------------------------------------------------------- graphs


def affected_traces(movie: Movie, edit: Delayed) -> Delayed:
    """Return lazily the raw traces of the cells that an edit affects, one pass over their window.

    Parameters
    ----------
    movie : Movie
        The recording that the cells were found in, of one plane.
    edit : Delayed of Edit
        Which cells, their footprints as they are to be.

    Returns
    -------
    Delayed of ndarray (touched + new, time), float32
        Those that fit the movie best together. A pixel that is NaN is taken to be at rest.

    References
    ----------
    Pnevmatikakis et al. 2016, 10.1016/j.neuron.2015.11.037.
    """
    reader, runs = _reader(movie), _runs(movie)
    window = delayed(_window)(edit)
    products = [delayed(_products)(reader, window, edit, run) for run in runs]
    return delayed(_solved)(edit, window, products)


def with_fitted_footprints(movie: Movie, edit: Delayed) -> Delayed:
    """Fit the footprints of an edit's new cells lazily, one pass over their window.

    Parameters
    ----------
    movie, edit
        See `affected_traces`; the edit says where its new cells may reach.

    Returns
    -------
    Delayed of Edit
        With unit footprints, fitted to what the other cells leave of the movie. One that shows no
        activity is what it was to be fitted from. A pixel that is NaN in some frame is in none.

    Raises
    ------
    InputError
        In the task, if a new cell has no pixel but missing ones.
    """
    reader, runs = _reader(movie), _runs(movie)
    window = delayed(_window)(edit)
    binned = [delayed(_binned)(reader, window, run) for run in runs]
    return delayed(_fitted)(edit, window, runs, binned)


def _reader(movie: Movie) -> Delayed:
    """Return a reader that has one key for all the edits of a movie."""
    return delayed(Reader(movie), pure=True, traverse=False)


def _runs(movie: Movie) -> list[slice]:
    return list(blocks(movie.n_frames, FRAMES_PER_RUN))


# ---------------------------------------------------------------------- what is read of the movie


def _window(edit: Edit) -> Window:
    """Return the pixels of the neighbours, and all that new cells may reach."""
    both = sp.hstack([edit.neighbours, edit.reach], format="csc")
    return Window.around(sp.csc_array(both), edit.components)


def _products(reader: Reader, window: Window, edit: Edit, run: slice) -> Floats:
    """Return footprints times light above rest (cell, time) of a run of frames."""
    weights = sp.csr_array(window.part(edit.affected).T)
    if not len(window.pixels):
        return np.zeros((weights.shape[0], run.stop - run.start), np.float32)
    parts = []
    for piece in window.pieces(run):
        light = window.light(reader, piece)
        light[~np.isfinite(light)] = 0  # what is missing is taken to be at rest
        parts.append(weights @ light)
    return np.concatenate(parts, axis=1, dtype=np.float32)


def _binned(reader: Reader, window: Window, run: slice) -> Floats:
    """Return the light above rest (pixel, bin) of a run of frames, averaged in bins of time."""
    size = _frames_per_bin(reader.shape[0], len(window.pixels))
    parts, left = [], np.zeros((len(window.pixels), 0), np.float32)
    for piece in window.pieces(run):
        light = np.concatenate([left, window.light(reader, piece)], axis=1)
        whole = light.shape[1] if piece.stop == run.stop else light.shape[1] // size * size
        parts.append(_in_bins(light[:, :whole], size))
        left = light[:, whole:]
    return np.concatenate(parts, axis=1)


def _frames_per_bin(n_frames: int, n_pixels: int) -> int:
    """Return a power of two, so that a run is of whole bins."""
    least = max(-(-n_frames // MOST_BINS), -(-n_frames * n_pixels // MOST_VALUES), 1)
    return int(min(1 << (least - 1).bit_length(), FRAMES_PER_RUN))


def _in_bins(rows: Floats, size: int) -> Floats:
    """Average runs of `size` frames of rows (n, time)."""
    if size == 1 or not rows.shape[1]:
        return rows
    return np.ascontiguousarray(bin_frames(rows.T[:, None], size)[:, 0].T)


# ---------------------------------------------------------------------------------------- traces


def _solved(edit: Edit, window: Window, products: Sequence[Floats]) -> Floats:
    """Return the raw traces of the affected cells, (cell, time)."""
    footprints = window.part(edit.affected)
    others, traces = _others(edit, window)
    own = np.concatenate(products, axis=1) - (footprints.T @ others) @ traces
    return demixed_traces(footprints, own)


def _others(edit: Edit, window: Window) -> tuple[sp.csc_array, Floats]:
    """Return what else shines in a window, as it is: the other cells there, and neuropil.

    Returns
    -------
    footprints : scipy.sparse.csc_array (pixel of the window, n)
    traces : ndarray (n, time)
        Raw: with these the traces that source extraction found are found again.
    """
    components, background = edit.components, edit.components.background
    rest = np.setdiff1d(edit.kept, edit.touched)
    cells = window.part(components.footprints[:, rest])
    neuropil = window.part(background.footprints[:, 1:])
    near, moving = (np.flatnonzero(np.diff(part.indptr)) for part in (cells, neuropil))
    raw = components.traces[rest[near]] + components.residuals[rest[near]]
    footprints = sp.hstack([cells[:, near], neuropil[:, moving]], format="csc")
    return sp.csc_array(footprints), np.concatenate([raw, background.traces[1 + moving]])


# --------------------------------------------------------------------------------- new footprints


def _fitted(edit: Edit, window: Window, runs: Sequence[slice], binned: Sequence[Floats]) -> Edit:
    """Fit the footprints of new cells to what others leave of the movie."""
    light = np.concatenate(binned, axis=1)
    size = _frames_per_bin(runs[-1].stop, len(window.pixels))
    present = np.asarray(np.isfinite(light).all(axis=1))
    if not present.all():  # a pixel that is missing in some frame is in no cell
        window, light = window.only(present), light[present]
    light -= _shine(*_others(edit, window), runs, size)
    own, start, reach = map(window.part, (edit.neighbours, edit.footprints, edit.reach))
    if not np.diff(start.indptr).all():
        raise InputError("region has no px but missing ones, NaN in some frame; draw it elsewhere")
    if start.shape[1] > 1:
        raw = edit.components.traces[edit.touched] + edit.components.residuals[edit.touched]
        parts = told_apart(light - _shine(own, raw, runs, size), start, edit.alike)
        start = _or_start(parts, start)
    fit = start = unit(start)
    for _ in range(ROUNDS):
        found = window.placed(_updated(light, fit, own, reach))
        found = trimmed_footprints(found, window.field, EDGE)
        fit = _or_start(unit(window.part(found)), start)
    return replace(edit, footprints=window.placed(fit), support=None, alike=False)


def _shine(footprints: sp.csc_array, traces: Floats, runs: Sequence[slice], size: int) -> Floats:
    """Return footprints times traces (pixel, bin), the traces averaged in bins of each run."""
    parts = [_in_bins(traces[:, run], size) for run in runs]
    return np.asarray(footprints @ np.concatenate(parts, axis=1))


def _updated(
    light: Floats, cells: sp.csc_array, neighbours: sp.csc_array, reach: sp.csc_array
) -> sp.csc_array:
    """Update footprints once, on traces demixed from those of the neighbours.

    Each pixel is regressed on the traces of the neighbours too, whose footprints stay as they are.
    A cell that is not active gets nothing.
    """
    n = cells.shape[1]
    both = sp.csc_array(sp.hstack([cells, neighbours], format="csc"))
    traces = demixed_traces(both, (both.T @ light).astype(np.float32))
    denoised = deconvolve_traces(traces, 1.0, BRIEFLY)
    weights = (denoised.calcium - denoised.calcium.mean(axis=1, keepdims=True)).astype(np.float64)
    weights[:n][~_is_active(traces[:n])] = 0
    pattern = sp.csc_array(sp.hstack([reach, neighbours], format="csc"))
    column = np.repeat(np.arange(pattern.shape[1]), np.diff(pattern.indptr))
    data = (light @ weights.T)[pattern.indices, column]
    sums = sp.csc_array((data, pattern.indices, pattern.indptr), shape=pattern.shape)
    gram = weights @ weights.T
    penalty = SPARSITY * np.sqrt(np.diagonal(gram))[column] * pixel_noise(light.T)[pattern.indices]
    return sp.csc_array(update_footprints(sums, gram, penalty * (column < n))[:, :n])


def _is_active(traces: Floats) -> NDArray[np.bool_]:
    """Say which traces (cell, bin) rise above their noise more than noise alone does."""
    energy = activity_scores(traces - np.median(traces, axis=1, keepdims=True)) ** 2
    mean, square = CHANCE[0] * traces.shape[1], CHANCE[1] * traces.shape[1]
    return np.asarray(energy > mean + 6 * np.sqrt(square) + 6 * ACTIVE**2)


def _or_start(found: sp.csc_array, start: sp.csc_array) -> sp.csc_array:
    """Return the footprints found, and where there is none, or none at the start, the start."""
    lost = np.asarray(found.multiply(start).sum(axis=0)).ravel() == 0
    columns = [start[:, [i]] if lost[i] else found[:, [i]] for i in range(len(lost))]
    return sp.csc_array(sp.hstack(columns, format="csc"))
