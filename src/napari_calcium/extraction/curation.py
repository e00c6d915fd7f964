"""Curation: cells merged, split, deleted and added by hand, their neighbours demixed again.

A cell that comes, goes or changes its footprint takes light from those it overlaps, or leaves it to
them. So the traces of all of these are estimated anew together, by least squares on the movie, with
the other cells and the neuropil as they are; nothing else changes. What is found then is what
source extraction would have found with these footprints (Pnevmatikakis et al. 2016,
10.1016/j.neuron.2015.11.037).

Edits are drafted here; what they need of the movie is estimated in
`napari_calcium.extraction.local_fit`.

Examples
--------
Two cells side by side that do the same, and a third that was not found:

>>> import dask.array as da
>>> from napari_calcium.components import Background
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
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from napari_calcium.components import Components
from napari_calcium.deconvolution.foopsi import deconvolve_traces
from napari_calcium.errors import InputError
from napari_calcium.extraction.edit import Denoise, Edit, finished, selected
from napari_calcium.extraction.local_fit import affected_traces, with_fitted_footprints
from napari_calcium.extraction.merging import merged
from napari_calcium.extraction.reconstruction import check_same_movie
from napari_calcium.footprints import dilated_support, unit
from napari_calcium.movie import Movie, check_one_plane

__all__ = ["add_cell", "delete_cells", "merge_cells", "redemix", "selected", "split_cell"]


def redemix(
    movie: Movie,
    components: Components | Delayed,
    cell_ids: Sequence[int],
    *,
    denoise: Denoise = deconvolve_traces,
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
        Takes the noise out of raw traces (cell, time), given the frame rate, as source extraction
        did.

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
    denoise: Denoise = deconvolve_traces,
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
    denoise: Denoise = deconvolve_traces,
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
    denoise: Denoise = deconvolve_traces,
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
    denoise: Denoise = deconvolve_traces,
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
    if fit:
        edit = with_fitted_footprints(movie, edit)
    raw = affected_traces(movie, edit)
    return delayed(finished)(edit, raw, denoise, movie.frame_rate, next_id, settle)


def _drafted(
    components: Components, draft: Callable[[Components], Edit], shape: tuple[int, ...]
) -> Edit:
    check_same_movie(shape, components)
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


def _redemix(components: Components, cell_ids: Sequence[int]) -> Edit:
    changed = _indices(components, cell_ids)
    return Edit(components, components.footprints[:, :0], changed=changed)


def _delete(components: Components, cell_ids: Sequence[int]) -> Edit:
    removed = _indices(components, cell_ids)
    return Edit(components, components.footprints[:, :0], removed)


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
    return Edit(components, unit(footprint), removed)


def _split(components: Components, cell_id: int, parts: int | NDArray[Any], margin: int) -> Edit:
    removed = _indices(components, [cell_id])
    whole = sp.csc_array(components.footprints[:, removed])
    masks = _masks(components, whole, parts, cell_id)
    starts = [whole.multiply(mask.reshape(-1, 1)) for mask in masks]
    start = sp.csc_array(sp.hstack(starts, format="csc"), dtype=np.float32)
    support = dilated_support(start, components.shape, margin)
    alike = isinstance(parts, int)
    return Edit(components, unit(start), removed, support=support, alike=alike)


def _masks(
    components: Components, whole: sp.csc_array, parts: int | NDArray[Any], cell_id: int
) -> NDArray[np.bool_]:
    """Return where the parts of a cell lie, (part, pixel)."""
    if isinstance(parts, int):
        masks = np.broadcast_to(np.array(True), (max(parts, 0), whole.shape[0]))
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
    return Edit(components, unit(image), support=support)
