"""Curation: cells merged, split, deleted and added by hand, their neighbours demixed again.

A cell that comes, goes or changes its footprint takes light from those it overlaps, or leaves it to
them. So the traces of all of these are estimated anew together, by least squares on the movie, with
the other cells and the neuropil as they are; nothing else changes. What is found then is what
source extraction would have found with these footprints (Pnevmatikakis et al. 2016,
10.1016/j.neuron.2015.11.037).

Only the box around the affected cells is read, a run of frames at a time, inside the tasks: where
it lies is known when they run.

Examples
--------
Two cells side by side that do the same, and a third that was not found:

>>> import dask.array as da
>>> footprints = sp.csc_array(np.kron(np.eye(3), np.full((8, 1), 8**-0.5)))
>>> time = np.arange(120)
>>> traces = np.maximum(50 * np.sin([time / 9, time / 9, time / 5]), 0)
>>> frames = 300 + footprints @ traces + np.random.default_rng(0).normal(size=(24, 120))
>>> movie = Movie(da.from_array(frames.T.reshape(120, 4, 6)), frame_rate=30.0)
>>> still = Background(sp.csc_array(np.full((24, 1), 300.0)), np.ones((1, 120)))
>>> some = [traces[:2], 0 * traces[:2], traces[:2]]
>>> cells = Components(footprints[:, :2], (4, 6), *some, still, np.arange(2))
>>> one = merge_cells(movie, cells, [0, 1])
>>> region = np.arange(24).reshape(4, 6) >= 17
>>> both = add_cell(movie, one, region, margin=1).compute()
>>> both.cell_id, bool(np.corrcoef(both.traces[1], traces[2])[0, 1] > 0.99)
(array([2, 3]), True)
>>> halves = np.arange(24).reshape(4, 6) // 8 + 1
>>> split_cell(movie, both, 2, parts=np.where(halves < 3, halves, 0)).compute().cell_id
array([3, 4, 5])
>>> delete_cells(movie, both, [2]).compute().cell_id
array([3])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray
from scipy import linalg

from napari_calcium.components import Background, Components
from napari_calcium.deconvolution.oasis import deconvolve_cells
from napari_calcium.errors import InputError
from napari_calcium.extraction.merging import merged
from napari_calcium.extraction.noise import pixel_noise
from napari_calcium.extraction.patches import bin_frames
from napari_calcium.extraction.reconstruction import Reader
from napari_calcium.extraction.spatial import update_footprints
from napari_calcium.extraction.temporal import Denoised, demixed_traces, denoise
from napari_calcium.footprints import dilated_support, trimmed_footprints, unit
from napari_calcium.movie import Movie, blocks, check_one_plane

__all__ = ["add_cell", "delete_cells", "merge_cells", "redemix", "selected", "split_cell"]

Floats = NDArray[np.float32]
Denoise = Callable[[Floats], Denoised]

OF_CELLS = ("traces", "residuals", "deconvolved", "baseline", "noise", "time_constants")
"""What `Components` has for each cell beside its footprint and its identity."""

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

ACTIVE = 3.0
"""A frame counts as active beyond this many standard deviations."""

CHANCE = (0.0147, 0.163)
"""Mean of z**2 and of z**4 of Gaussian noise, counted where z is above `ACTIVE`."""

CLEAR = 5.0
"""Pixels of so many sd of signal along its main directions tell the parts of a cell apart."""


@dataclass(frozen=True)
class Edit:
    """What becomes of the cells, before anything is read of the movie.

    Parameters
    ----------
    components : Components
        The cells as they are.
    removed : ndarray of int
        Indices of the cells that go.
    changed : ndarray of int
        Indices of cells that stay but whose traces are to be estimated anew.
    footprints : scipy.sparse.csc_array (pixel, new)
        Unit footprints of the cells that come, or what they are to be fitted from.
    support : scipy.sparse.csc_array (pixel, new), optional
        Where they may reach if they are to be fitted.
    alike : bool
        Whether the footprints to start from are all the same, still to be told apart.
    """

    components: Components
    removed: NDArray[np.int64]
    changed: NDArray[np.int64]
    footprints: sp.csc_array
    support: sp.csc_array | None = None
    alike: bool = False

    @property
    def kept(self) -> NDArray[np.int64]:
        """Indices of the cells that stay, in their order."""
        return np.setdiff1d(np.arange(self.components.n_cells), self.removed)

    @property
    def touched(self) -> NDArray[np.int64]:
        """Indices of the cells that stay and share light with what comes, goes or changes."""
        own = self.components.footprints
        gone_or_changed = own[:, np.concatenate([self.removed, self.changed])]
        both = sp.hstack([gone_or_changed, _support(self)], format="csc")
        overlap = sp.csc_array(both).T @ own
        shared = np.asarray(overlap.sum(axis=0)).ravel() > 0
        shared[self.changed] = True
        return self.kept[shared[self.kept]]


@dataclass(frozen=True)
class Window:
    """The pixels that an edit is about, and what is made of them in a task.

    Parameters
    ----------
    rows, columns : slice
        The box that holds them.
    inside : ndarray of int (pixel,)
        Their numbers in the box, as `pixels` are in the field.
    pixels : ndarray of int (pixel,)
        Pixel = y * width + x, ascending.
    rest : ndarray (pixel,)
        The static image there.
    """

    rows: slice
    columns: slice
    inside: NDArray[np.int64]
    pixels: NDArray[np.int64]
    rest: Floats

    @classmethod
    def around(cls, footprints: sp.csc_array, components: Components) -> Window:
        """Return the window of all pixels that some footprints (pixel, cell) have."""
        pixels = np.unique(footprints.indices[footprints.data > 0]).astype(np.int64)
        y, x = np.divmod(pixels, components.shape[1])
        rows, columns = (
            slice(int(axis[0]), int(axis[-1]) + 1) if len(axis) else slice(0, 0)
            for axis in (np.sort(y), np.sort(x))
        )
        inside = (y - rows.start) * (columns.stop - columns.start) + x - columns.start
        return cls(rows, columns, inside, pixels, _static(components)[pixels])

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


def selected(components: Components, index: NDArray[np.integer] | Sequence[int]) -> Components:
    """Return some of the cells, in the order asked for; the background is the same.

    Parameters
    ----------
    components : Components
        Cells.
    index : array of int, or of bool (cell,)
        Their places, not their identities.

    Returns
    -------
    Components
        Copies, each cell with its own identity.

    Examples
    --------
    >>> still = Background(sp.csc_array(np.ones((6, 1))), np.ones((1, 5)))
    >>> some = [np.zeros((3, 5))] * 3
    >>> cells = Components(sp.csc_array(np.eye(6, 3)), (2, 3), *some, still, np.array([4, 7, 9]))
    >>> selected(cells, [2, 0]).cell_id
    array([9, 4])
    """
    places = np.arange(components.n_cells)[np.asarray(index, None if len(index) else int)]
    parts = {name: getattr(components, name)[places] for name in (*OF_CELLS, "cell_id")}
    return replace(components, footprints=components.footprints[:, places], **parts)


# -------------------------------------------------------------------------------- what is asked


def redemix(
    movie: Movie,
    components: Components | Delayed,
    cell_ids: Sequence[int],
    *,
    denoise: Denoise = denoise,
) -> Delayed:
    """Estimate the traces of some cells, and of all that overlap them, anew.

    Parameters
    ----------
    movie : Movie
        The recording that the cells were found in, registered, of one plane.
    components : Components, or Delayed of it
        Cells; an edit of them can be edited further before it is computed.
    cell_ids : sequence of int
        Identities of the cells.
    denoise : callable
        Takes the noise out of raw traces (cell, time), as source extraction did.

    Returns
    -------
    Delayed of Components
        The cells asked for and their neighbours have traces that fit the movie best together, with
        the same footprints. What they show at rest is moved into the static image. All the others
        are as they were, to the bit.

    Raises
    ------
    InputError
        If there is no cell of that identity, or the cells are of another movie; in the task where
        `components` are lazy.

    References
    ----------
    Pnevmatikakis et al. 2016, 10.1016/j.neuron.2015.11.037.
    """
    draft = partial(_redemix, cell_ids=tuple(cell_ids))
    return _edited(movie, components, draft, denoise)


def delete_cells(
    movie: Movie,
    components: Components | Delayed,
    cell_ids: Sequence[int],
    *,
    denoise: Denoise = denoise,
) -> Delayed:
    """Delete cells and give their light to those that overlap them.

    Parameters
    ----------
    movie, components, cell_ids, denoise
        See `redemix`.

    Returns
    -------
    Delayed of Components
        Without these cells; their neighbours have new traces. The background is as it was, and so
        is all else. What no neighbour explains is part of the residual movie.

    Raises
    ------
    InputError
        See `redemix`.
    """
    draft = partial(_delete, cell_ids=tuple(cell_ids))
    return _edited(movie, components, draft, denoise, settle=False)


def merge_cells(
    movie: Movie,
    components: Components | Delayed,
    cell_ids: Sequence[int],
    *,
    next_id: int | None = None,
    denoise: Denoise = denoise,
) -> Delayed:
    """Replace cells by one: parts of a cell that were found as several.

    Parameters
    ----------
    movie, components, cell_ids, denoise
        See `redemix`.
    next_id : int, optional
        Identity of the new cell; by default the largest that there is, and 1.

    Returns
    -------
    Delayed of Components
        The new cell is the last. Its footprint is that of the best single component in place of the
        sum of the others, its trace is read from the movie, together with those of its neighbours.

    Raises
    ------
    InputError
        If fewer than two cells are named; see also `redemix`.
    """
    draft = partial(_merge, cell_ids=tuple(cell_ids))
    return _edited(movie, components, draft, denoise, next_id)


def split_cell(
    movie: Movie,
    components: Components | Delayed,
    cell_id: int,
    *,
    parts: int | NDArray[Any] = 2,
    margin: int = 2,
    next_id: int | None = None,
    denoise: Denoise = denoise,
) -> Delayed:
    """Replace a cell by several: cells that were found as one.

    Parameters
    ----------
    movie, components, denoise
        See `redemix`.
    cell_id : int
        Identity of the cell.
    parts : int or ndarray
        Into how many it is split, by what its pixels do over time; or where the parts lie: labels
        (y, x) above 0, or masks (part, y, x).
    margin : int
        How far a part may reach beyond its mask, or beyond the cell's footprint if it has none, px;
        parts overlap as far as the movie says.
    next_id : int, optional
        Identity of the first part; by default the largest that there is, and 1.

    Returns
    -------
    Delayed of Components
        The parts are the last, in the order of their labels, else the clearer first. A part that
        shows no activity keeps the footprint it began with.

    Raises
    ------
    InputError
        If it is split into fewer than two parts, if a part has no pixel of the cell, or if labels
        are of another field; see also `redemix`.

    Notes
    -----
    Pixels that belong to one part only are the corners of the cone that all pixels' time courses
    lie in; they are found by successive projection [1]_ in the few directions that matter.

    References
    ----------
    .. [1] Gillis and Vavasis 2014, 10.1109/TPAMI.2013.226.
    """
    where = np.asarray(parts) if np.ndim(parts) else int(parts)
    draft = partial(_split, cell_id=cell_id, parts=where, margin=margin)
    return _edited(movie, components, draft, denoise, next_id, fit=True)


def add_cell(
    movie: Movie,
    components: Components | Delayed,
    region: NDArray[np.bool_],
    *,
    margin: int = 3,
    next_id: int | None = None,
    denoise: Denoise = denoise,
) -> Delayed:
    """Add a cell that was not found (CaImAn: ``manually_refine_components``).

    Parameters
    ----------
    movie, components, denoise
        See `redemix`.
    region : ndarray of bool (y, x)
        Where the cell is, roughly.
    margin : int
        How far its footprint may reach beyond, px.
    next_id : int, optional
        Identity of the cell; by default the largest that there is, and 1.

    Returns
    -------
    Delayed of Components
        The cell is the last. Its footprint is fitted, together with the traces of those it
        overlaps, to what the others leave of the movie; the region itself is its footprint if
        nothing is active there. The activity that the static image held in its place is taken out
        of it.

    Raises
    ------
    InputError
        If the region is empty or not an image of the field; see also `redemix`.
    """
    draft = partial(_add, region=np.asarray(region), margin=margin)
    return _edited(movie, components, draft, denoise, next_id, fit=True)


def _edited(
    movie: Movie,
    components: Components | Delayed,
    draft: Callable[[Components], Edit],
    denoise: Denoise,
    next_id: int | None = None,
    *,
    fit: bool = False,
    settle: bool = True,
) -> Delayed:
    """Build an edit of cells; what is wrong with it is said at once where the cells are known."""
    check_one_plane(movie.frames.shape, "curation")
    checked = partial(_drafted, draft=draft, shape=movie.frames.shape)
    if isinstance(components, Components):
        edit = delayed(checked(components), traverse=False)
    else:
        edit = delayed(checked)(components)
    reader = delayed(Reader(movie), traverse=False)
    runs = list(blocks(movie.n_frames, FRAMES_PER_RUN))
    if fit:
        around = delayed(_fit_window)(edit)
        binned = [delayed(_binned)(reader, around, run, movie.n_frames) for run in runs]
        edit = delayed(_fitted)(edit, around, runs, binned)
    window = delayed(_window)(edit)
    products = [delayed(_products)(reader, window, edit, run) for run in runs]
    solved = delayed(_solved)(edit, window, products)
    return delayed(_finished)(edit, solved, denoise, movie.frame_rate, next_id, settle)


def _drafted(
    components: Components, draft: Callable[[Components], Edit], shape: tuple[int, ...]
) -> Edit:
    own = (components.traces.shape[1], *components.shape)
    if shape != own:
        raise InputError(
            f"the movie is {' x '.join(map(str, shape))} (time, y, x) but the cells are of one of "
            f"{' x '.join(map(str, own))}; give the movie they were found in"
        )
    return draft(components)


# --------------------------------------------------------------------------- what is to be done


def _indices(components: Components, cell_ids: Sequence[int]) -> NDArray[np.int64]:
    """Return the places of cells, in their order, each once."""
    wanted = np.unique(np.asarray(cell_ids, np.int64))
    unknown = wanted[~np.isin(wanted, components.cell_id)]
    if len(unknown):
        raise InputError(
            f"cell_id is {unknown[0]}, which none of the {components.n_cells} cells has; "
            "give the number of a cell that there is"
        )
    return np.flatnonzero(np.isin(components.cell_id, wanted))


def _none(components: Components) -> sp.csc_array:
    return sp.csc_array((components.footprints.shape[0], 0), dtype=np.float32)


NOTHING = np.zeros(0, np.int64)


def _redemix(components: Components, cell_ids: Sequence[int]) -> Edit:
    changed = _indices(components, cell_ids)
    return Edit(components, NOTHING, changed, _none(components))


def _delete(components: Components, cell_ids: Sequence[int]) -> Edit:
    removed = _indices(components, cell_ids)
    return Edit(components, removed, NOTHING, _none(components))


def _merge(components: Components, cell_ids: Sequence[int]) -> Edit:
    removed = _indices(components, cell_ids)
    if len(removed) < 2:
        raise InputError(
            f"merge_cells is given {len(removed)} cell; select at least two that are one"
        )
    raw = components.traces[removed] + components.residuals[removed]
    groups = np.zeros(len(removed), np.int64)
    footprint = merged(components.footprints[:, removed], raw, groups)[0]
    footprint.data[footprint.data < 1e-6 * footprint.data.max(initial=0)] = 0  # what is left out
    return Edit(components, removed, NOTHING, unit(footprint))


def _split(components: Components, cell_id: int, parts: int | NDArray[Any], margin: int) -> Edit:
    removed = _indices(components, [cell_id])
    whole = sp.csc_array(components.footprints[:, removed])
    masks = _masks(components, whole, parts, cell_id)
    starts = [whole.multiply(mask.reshape(-1, 1)) for mask in masks]
    start = sp.csc_array(sp.hstack(starts, format="csc"), dtype=np.float32)
    support = dilated_support(start, components.shape, margin)
    return Edit(components, removed, NOTHING, unit(start), support, isinstance(parts, int))


def _masks(
    components: Components, whole: sp.csc_array, parts: int | NDArray[Any], cell_id: int
) -> NDArray[np.bool_]:
    """Return where the parts of a cell lie, (part, pixel)."""
    if isinstance(parts, int):
        masks = np.ones((max(parts, 0), whole.shape[0]), bool)
    else:
        if parts.shape[-2:] != components.shape or parts.ndim not in (2, 3):
            raise InputError(
                f"parts are an image of {parts.shape} but the field is {components.shape} (y, x); "
                "give labels (y, x) or masks (part, y, x) of the same field"
            )
        labels = np.unique(parts[parts > 0])
        stack = parts > 0 if parts.ndim == 3 else parts == labels[:, None, None]
        masks = stack.reshape(len(stack), parts.shape[-2] * parts.shape[-1])
    if len(masks) < 2:
        raise InputError(
            f"cell {cell_id} is split into {len(masks)}; give at least two parts, or leave it"
        )
    pixels = whole.indices[whole.data > 0]
    if len(pixels) < len(masks) or not masks[:, pixels].any(axis=1).all():
        raise InputError(
            f"cell {cell_id} of {len(pixels)} px has no pixel in one of the {len(masks)} parts; "
            "draw each part over a piece of the cell"
        )
    return masks


def _add(components: Components, region: NDArray[Any], margin: int) -> Edit:
    if region.shape != components.shape:
        raise InputError(
            f"region is an image of {region.shape} but the field is {components.shape} (y, x); "
            "give a mask of the same field"
        )
    if not region.any():
        raise InputError("region has 0 px; draw it over the cell")
    image = sp.csc_array((region.reshape(-1, 1) != 0).astype(np.float32))
    support = dilated_support(image, components.shape, margin)
    return Edit(components, NOTHING, NOTHING, unit(image), support)


# ---------------------------------------------------------------------- what is read of the movie


def _static(components: Components) -> Floats:
    """Return the static image, (pixel,)."""
    return np.asarray(components.background.footprints[:, [0]].toarray().ravel())


def _affected(edit: Edit) -> sp.csc_array:
    """Return the footprints whose traces are to be estimated: neighbours, then new cells."""
    own = edit.components.footprints[:, edit.touched]
    return sp.csc_array(sp.hstack([own, edit.footprints], format="csc"))


def _window(edit: Edit) -> Window:
    return Window.around(_affected(edit), edit.components)


def _fit_window(edit: Edit) -> Window:
    """Return the pixels of the neighbours, and all that new cells may reach."""
    own = edit.components.footprints[:, edit.touched]
    both = sp.hstack([own, _support(edit)], format="csc")
    return Window.around(sp.csc_array(both), edit.components)


def _support(edit: Edit) -> sp.csc_array:
    return edit.footprints if edit.support is None else edit.support


def _rows(
    footprints: sp.csc_array, pixels: NDArray[np.int64], there: NDArray[np.bool_] | None = None
) -> sp.csc_array:
    """Return footprints at some pixels only (pixel of the window, cell), 0 where one is missing."""
    rows = sp.csc_array(sp.csr_array(footprints)[pixels])
    if there is not None and not there.all():
        rows = sp.csc_array(sp.diags_array(there.astype(np.float32)) @ rows)
        rows.eliminate_zeros()
    return rows


def _products(reader: Reader, window: Window, edit: Edit, run: slice) -> Floats:
    """Return footprints times light above rest (cell, time) of a run of frames."""
    weights = sp.csr_array(_rows(_affected(edit), window.pixels).T)
    if not len(window.pixels):
        return np.zeros((weights.shape[0], run.stop - run.start), np.float32)
    parts = []
    for piece in window.pieces(run):
        light = window.light(reader, piece)
        light[~np.isfinite(light)] = 0  # what is missing is taken to be at rest
        parts.append(weights @ light)
    return np.concatenate(parts, axis=1, dtype=np.float32)


def _binned(reader: Reader, window: Window, run: slice, n_frames: int) -> Floats:
    """Return the light above rest (pixel, bin) of a run of frames, averaged in bins of time."""
    size = _frames_per_bin(n_frames, len(window.pixels))
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


def _others(edit: Edit, pixels: NDArray[np.int64]) -> tuple[sp.csc_array, Floats]:
    """Return what else shines on some pixels, as it is: the other cells there, and neuropil.

    Returns
    -------
    footprints : scipy.sparse.csc_array (pixel of the window, n)
    traces : ndarray (n, time)
        Raw: with these the traces that source extraction found are found again.
    """
    components, background = edit.components, edit.components.background
    rest = np.setdiff1d(edit.kept, edit.touched)
    cells, neuropil = (
        _rows(part, pixels)
        for part in (components.footprints[:, rest], background.footprints[:, 1:])
    )
    near, moving = np.flatnonzero(np.diff(cells.indptr)), np.flatnonzero(np.diff(neuropil.indptr))
    raw = components.traces[rest[near]] + components.residuals[rest[near]]
    footprints = sp.hstack([cells[:, near], neuropil[:, moving]], format="csc")
    return sp.csc_array(footprints), np.concatenate([raw, background.traces[1 + moving]])


# --------------------------------------------------------------------------------- new footprints


def _fitted(edit: Edit, window: Window, runs: Sequence[slice], binned: Sequence[Floats]) -> Edit:
    """Fit the footprints of new cells to what others leave of the movie."""
    light = np.concatenate(binned, axis=1)
    size = _frames_per_bin(runs[-1].stop, len(window.pixels))
    light -= _shine(*_others(edit, window.pixels), runs, size)
    # a pixel that is missing in some frame is in no cell
    there = np.asarray(np.isfinite(light).all(axis=1))
    own = edit.components.footprints[:, edit.touched]
    own, start, support = (
        _rows(part, window.pixels, there) for part in (own, edit.footprints, _support(edit))
    )
    if not np.diff(start.indptr).all():
        raise InputError("region has no px but missing ones, NaN in some frame; draw it elsewhere")
    if start.shape[1] > 1:
        raw = edit.components.traces[edit.touched] + edit.components.residuals[edit.touched]
        start = _told_apart(light - _shine(own, raw, runs, size), start, edit.alike)
    fit = start = unit(start)
    for _ in range(ROUNDS):
        found = _placed(_updated(light, fit, own, support), window, edit)
        found = trimmed_footprints(found, edit.components.shape, EDGE)
        fit = _where_it_is_any(unit(_rows(found, window.pixels)), start)
    return replace(edit, footprints=_placed(fit, window, edit), support=None, alike=False)


def _shine(footprints: sp.csc_array, traces: Floats, runs: Sequence[slice], size: int) -> Floats:
    """Return footprints times traces (pixel, bin), the traces averaged in bins of each run."""
    parts = [_in_bins(traces[:, run], size) for run in runs]
    return np.asarray(footprints @ np.concatenate(parts, axis=1))


def _placed(footprints: sp.csc_array, window: Window, edit: Edit) -> sp.csc_array:
    """Return footprints of a window's pixels as those of the field."""
    parts = (footprints.data, window.pixels[footprints.indices], footprints.indptr)
    return sp.csc_array(parts, shape=(edit.footprints.shape[0], footprints.shape[1]))


def _updated(
    light: Floats, cells: sp.csc_array, neighbours: sp.csc_array, support: sp.csc_array
) -> sp.csc_array:
    """Update footprints once, on traces demixed from those of the neighbours.

    Each pixel is regressed on the traces of the neighbours too, whose footprints stay as they are.
    A cell that is not active gets nothing.
    """
    n = cells.shape[1]
    both = sp.csc_array(sp.hstack([cells, neighbours], format="csc"))
    traces = demixed_traces(both, (both.T @ light).astype(np.float32))
    denoised = deconvolve_cells(traces)
    weights = (denoised.calcium - denoised.calcium.mean(axis=1, keepdims=True)).astype(np.float64)
    weights[:n][~_is_active(traces[:n])] = 0
    pattern = sp.csc_array(sp.hstack([support, neighbours], format="csc"))
    column = np.repeat(np.arange(pattern.shape[1]), np.diff(pattern.indptr))
    data = (light @ weights.T)[pattern.indices, column]
    sums = sp.csc_array((data, pattern.indices, pattern.indptr), shape=pattern.shape)
    gram = weights @ weights.T
    penalty = SPARSITY * np.sqrt(np.diagonal(gram))[column] * pixel_noise(light.T)[pattern.indices]
    return sp.csc_array(update_footprints(sums, gram, penalty * (column < n))[:, :n])


def _is_active(traces: Floats) -> NDArray[np.bool_]:
    """Say which traces (cell, bin) rise above their noise more than noise alone does."""
    noise = np.maximum(pixel_noise(traces.T), 1e-30)
    z = (traces - np.median(traces, axis=1, keepdims=True)) / noise[:, None]
    energy = np.sum(np.where(z > ACTIVE, z, 0) ** 2, axis=1, dtype=np.float64)
    mean, square = CHANCE[0] * traces.shape[1], CHANCE[1] * traces.shape[1]
    return np.asarray(energy > mean + 6 * np.sqrt(square) + 6 * ACTIVE**2)


def _where_it_is_any(found: sp.csc_array, start: sp.csc_array) -> sp.csc_array:
    """Return the footprints found, and where there is none, or none at the start, the start."""
    lost = np.asarray(found.multiply(start).sum(axis=0)).ravel() == 0
    columns = [start[:, [i]] if lost[i] else found[:, [i]] for i in range(len(lost))]
    return sp.csc_array(sp.hstack(columns, format="csc"))


def _told_apart(light: Floats, start: sp.csc_array, alike: bool) -> sp.csc_array:
    """Return a footprint for each part of a cell, by what its pixels do over time.

    Parameters
    ----------
    light : ndarray (pixel, bin)
        Without that of other cells.
    start : scipy.sparse.csc_array (pixel, part)
        Pixels that a part may be told by.
    alike : bool
        Whether these are the same for all parts.
    """
    n, inside = start.shape[1], np.flatnonzero(start.sum(axis=1))
    pixels = light[inside] - light[inside].mean(axis=1, keepdims=True)
    noise = np.maximum(pixel_noise(pixels.T), 1e-30).astype(np.float64)
    pixels = pixels / noise[:, None]
    largest = (len(inside) - n, len(inside) - 1)
    power, directions = linalg.eigh(pixels @ pixels.T, subset_by_index=largest)
    scores = directions * np.sqrt(np.maximum(power, 0))  # in sd of noise
    masks = start[inside].toarray() > 0
    corners = _corners(scores, None if alike else masks)
    weights = np.maximum(scores @ np.linalg.pinv(corners), 0) * noise[:, None]
    if alike:  # in no order yet: the clearest first
        strength = np.linalg.norm(weights, axis=0) * np.linalg.norm(corners, axis=1)
        weights = weights[:, np.argsort(-strength, kind="stable")]
    image = np.zeros(start.shape, np.float32)
    image[inside] = weights
    return _where_it_is_any(unit(sp.csc_array(image)), start)


def _corners(scores: NDArray[np.float64], masks: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """Return the corners (part, direction) of the cone that pixels lie in.

    By successive projection: each is the pixel of the cone's section that is furthest from the span
    of the others.

    Parameters
    ----------
    scores : ndarray (pixel, direction)
        Each pixel along as many main directions as there are parts.
    masks : ndarray of bool (pixel, part), optional
        Where the corner of each part is looked for; by default anywhere.
    """
    n = scores.shape[1]
    middle = scores.sum(axis=0)
    along = scores @ (middle / max(float(np.linalg.norm(middle)), 1e-30))
    clear = along > min(CLEAR, 0.5 * float(along.max()))
    section = np.where(clear[:, None], scores / np.where(clear, along, 1)[:, None], 0)
    corners = np.zeros((n, n)) if masks is None else _centres(section, masks)
    for part in range(n):
        others = np.delete(corners, part, axis=0)
        left = section - section @ np.linalg.pinv(others) @ others
        distance = np.linalg.norm(left, axis=1)
        allowed = distance if masks is None else np.where(masks[:, part], distance, -1)
        corners[part] = section[np.argmax(allowed)]
    return corners


def _centres(section: NDArray[np.float64], masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mean of each part's pixels, (part, direction)."""
    return np.stack([section[mask].mean(axis=0) for mask in masks.T])


# ------------------------------------------------------------------------------------ the result


def _solved(edit: Edit, window: Window, products: Sequence[Floats]) -> Floats:
    """Return the raw traces of the affected cells, (cell, time)."""
    footprints = _rows(_affected(edit), window.pixels)
    others, traces = _others(edit, window.pixels)
    own = np.concatenate(products, axis=1) - (footprints.T @ others) @ traces
    return demixed_traces(footprints, own)


def _finished(
    edit: Edit,
    raw: Floats,
    denoise: Denoise,
    frame_rate: float,
    next_id: int | None,
    settle: bool,
) -> Components:
    """Return all cells, those affected with new traces, and new ones at the end."""
    if not len(raw):
        return selected(edit.components, edit.kept)
    denoised, footprints = denoise(raw), _affected(edit)
    background = edit.components.background
    if settle:
        background = _settled(edit.components, footprints @ denoised.baseline)
    resting = denoised.baseline[:, None]
    values = {
        "traces": denoised.calcium - resting,
        "residuals": raw - denoised.calcium,
        "deconvolved": denoised.activity,
        "baseline": footprints.T @ background.footprints[:, [0]].toarray().ravel(),
        "noise": denoised.noise,
        "time_constants": denoised.time_constants / frame_rate,
    }
    n_new = edit.footprints.shape[1]
    first = int(edit.components.cell_id.max(initial=-1)) + 1 if next_id is None else next_id
    kept = sp.csc_array(edit.components.footprints[:, edit.kept])
    return replace(
        edit.components,
        footprints=sp.csc_array(sp.hstack([kept, edit.footprints], format="csc")),
        background=background,
        cell_id=np.append(edit.components.cell_id[edit.kept], first + np.arange(n_new)),
        **{name: _joined(edit, name, values[name]) for name in OF_CELLS},
    )


def _settled(components: Components, change: Floats) -> Background:
    """Return the background, its static image changed by what cells show at rest, (pixel,)."""
    background = components.background
    image = _static(components) + np.nan_to_num(change).astype(np.float32)
    parts = [sp.csc_array(image.reshape(-1, 1)), background.footprints[:, 1:]]
    return Background(sp.csc_array(sp.hstack(parts, format="csc")), background.traces)


def _joined(edit: Edit, name: str, values: Floats) -> Any:
    """Return what is known of the kept cells, and of those affected the values given."""
    before, n_kept, n_touched = getattr(edit.components, name), len(edit.kept), len(edit.touched)
    rows = np.empty((n_kept + len(values) - n_touched, *before.shape[1:]), np.float32)
    np.take(before, edit.kept, axis=0, out=rows[:n_kept], mode="clip")
    rows[np.searchsorted(edit.kept, edit.touched)] = values[:n_touched]
    rows[n_kept:] = values[n_touched:]
    return rows
