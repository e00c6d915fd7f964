"""Source extraction: constrained non-negative matrix factorization, out of core.

The movie is modelled as footprints times traces, plus neuropil that varies smoothly over the
field, plus a static image (Pnevmatikakis et al. 2016, 10.1016/j.neuron.2015.11.037). Cells are
found patch by patch on frames averaged in time; then the whole field is refined together, each
refinement one pass over the movie for the traces and one for the footprints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray
from scipy import ndimage

from napari_calcium.components import Background, Components
from napari_calcium.deconvolution.oasis import Deconvolved, deconvolve_cells
from napari_calcium.errors import InputError
from napari_calcium.extraction.background import neuropil_footprints
from napari_calcium.extraction.initialization import Seeds, find_cells
from napari_calcium.extraction.merging import inside_stronger, merge_groups, merged
from napari_calcium.extraction.patches import Patch, boxes, cut, read_binned
from napari_calcium.extraction.spatial import update_footprints
from napari_calcium.extraction.temporal import demixed_traces
from napari_calcium.footprints import (
    areas,
    connected_footprints,
    dilated_support,
    placed,
    spreads,
    unit,
)
from napari_calcium.movie import Box, Movie, check_one_plane, project, weighted_sums
from napari_calcium.parameters import Parameters, parameter

__all__ = ["SourceExtractionParameters", "extract_sources"]

Floats = NDArray[np.float32]

MOST_BINS = 4000
"""Cells are searched in at most so many averaged frames: memory is bounded for any length."""


@dataclass(frozen=True)
class SourceExtractionParameters(Parameters):
    """Parameters of `extract_sources`.

    Parameters
    ----------
    cell_radius : float
        Radius of a typical cell, px. CaImAn: gSig; Suite2p: diameter / 2.
    decay_time : float
        Time in which a transient falls to 1/e, s; sets the averaging in time while cells are
        searched. CaImAn: decay_time; Suite2p: tau.
    threshold : float
        Smallest root of the summed squared activity of a cell, in sd of its noise; what has less
        is taken for noise, so the number of cells need not be given. CaImAn: K, min_pnr; Suite2p:
        threshold_scaling.
    patch_size : int
        Side of the patches in which cells are searched, px, without their overlap; at least eight
        times `cell_radius` is taken. CaImAn: rf.
    neuropil_spacing : float
        Distance over which neuropil may change, px. CaImAn: nb per patch; Suite2p: ratio_neuropil.
    sparsity : float
        Weight of a pixel in a footprint that counts as noise, in sd. CaImAn: the
        noise-constrained LASSO.
    merge_correlation : float
        Overlapping components whose traces correlate more are one cell, 1; above 1 nothing is
        merged. CaImAn: merge_thr.
    min_size : float
        Area of the smallest cell, in discs of `cell_radius`; what is smaller is dropped. CaImAn:
        min_size_neuro.
    max_size : float
        Area of the largest cell, in discs of `cell_radius`; what is larger is no cell in focus and
        becomes part of the background. CaImAn: max_size_neuro.
    max_spread : float
        Spread of the most ragged cell, 1 for a disc; what is more spread out (neuropil, vessels,
        also dendrites: raise it for those) becomes part of the background. Suite2p: the ``mrs``
        of its compactness.
    refinements : int
        Passes over the whole field after the search, each an update of traces and footprints.
        CaImAn: refit.
    """

    cell_radius: float = parameter(5.0, unit="px", minimum=1.5, maximum=100)
    decay_time: float = parameter(0.6, unit="s", above=0, maximum=60)
    threshold: float = parameter(12.0, unit="sd", above=0)
    patch_size: int = parameter(64, unit="px", minimum=16, maximum=1024)
    neuropil_spacing: float = parameter(40.0, unit="px", minimum=8)
    sparsity: float = parameter(1.5, unit="sd", minimum=0)
    merge_correlation: float = parameter(0.8, unit="1", minimum=0)
    min_size: float = parameter(0.5, unit="discs", minimum=0)
    max_size: float = parameter(2.5, unit="discs", above=0)
    max_spread: float = parameter(1.6, unit="1", minimum=1)
    refinements: int = parameter(2, unit="passes", minimum=1, maximum=10)

    def check_movie(self, shape: tuple[int, ...]) -> None:
        """Raise `InputError` for volumes, or if a cell does not fit into the field."""
        check_one_plane(shape, "source_extraction")
        if min(shape[1:]) < 2 * self.cell_radius:
            raise InputError(
                f"cell_radius is {self.cell_radius:g} px but the field is only {shape[1]} x "
                f"{shape[2]} px; give a smaller cell_radius"
            )


@dataclass(frozen=True)
class Model:
    """What is known of the movie between two updates.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
        Unit norm.
    neuropil : scipy.sparse.csc_array (pixel, n)
        Background that varies in time.
    mean, noise : ndarray (pixel,)
        Of single frames.
    shape : tuple of int
        (y, x).
    raw : ndarray (cell + n, time), optional
        Demixed traces about their mean.
    denoised : Deconvolved, optional
        The cells' part of `raw`.
    """

    footprints: sp.csc_array
    neuropil: sp.csc_array
    mean: Floats
    noise: Floats
    shape: tuple[int, int]
    raw: Floats | None = None
    denoised: Deconvolved | None = None

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.footprints.shape[1])

    @property
    def all_footprints(self) -> sp.csc_array:
        """Cells, then neuropil, side by side."""
        return sp.csc_array(sp.hstack([self.footprints, self.neuropil], format="csc"))


def extract_sources(movie: Movie, parameters: SourceExtractionParameters) -> Delayed:
    """Find the cells of a registered movie.

    Parameters
    ----------
    movie : Movie
        Registered; without NaN.
    parameters : SourceExtractionParameters
        See there.

    Returns
    -------
    Delayed of Components
        Cells in the order of their place, patch by patch; none is a valid result.

    Raises
    ------
    InputError
        If a cell does not fit into the field.

    References
    ----------
    Pnevmatikakis et al. 2016, 10.1016/j.neuron.2015.11.037; Giovannucci et al. 2019,
    10.7554/eLife.38173.

    Examples
    --------
    >>> import dask.array as da
    >>> movie = Movie(da.ones((50, 37, 53), dtype="uint16", chunks=20), frame_rate=10)
    >>> extract_sources(movie, SourceExtractionParameters()).compute().n_cells
    0
    """
    parameters.check_movie(movie.frames.shape)
    model = _search(movie, parameters)
    for _ in range(parameters.refinements):
        model = _with_traces(movie, model)
        model = delayed(_merge)(model, parameters)
        weights = delayed(_weights)(model)
        support = delayed(_support)(model, parameters)
        sums = weighted_sums(movie, weights, support)
        model = delayed(_with_footprints)(model, sums, weights, parameters)
    model = _with_traces(movie, model)
    return delayed(_components)(model)


def _search(movie: Movie, parameters: SourceExtractionParameters) -> Delayed:
    """Build the search for cells in all patches and their union into one model."""
    frames_per_bin = max(
        1, round(0.5 * parameters.decay_time * movie.frame_rate), -(-movie.n_frames // MOST_BINS)
    )
    halo = int(np.ceil(4 * parameters.cell_radius))
    patches = cut(movie.plane, max(parameters.patch_size, 2 * halo), halo)
    seeds = [
        delayed(_searched)(boxes(movie, patch, frames_per_bin), frames_per_bin, parameters)
        for patch in patches
    ]
    return delayed(_united)(seeds, patches, movie.plane, frames_per_bin, parameters)


def _searched(
    runs: Sequence[Box], frames_per_bin: int, parameters: SourceExtractionParameters
) -> Seeds:
    """Read a patch and find its cells."""
    least = max(4, int(0.3 * np.pi * parameters.cell_radius**2))
    return find_cells(
        read_binned(runs, frames_per_bin), parameters.cell_radius, parameters.threshold, least
    )


def _united(
    seeds: Sequence[Seeds],
    patches: Sequence[Patch],
    field: tuple[int, int],
    frames_per_bin: int,
    parameters: SourceExtractionParameters,
) -> Model:
    """Join what the patches found, each cell from the patch whose core holds its centre."""
    mean, noise = np.zeros(field, np.float32), np.zeros(field, np.float32)
    places: list[tuple[Floats, tuple[slice, slice]]] = []
    traces: list[Floats] = []
    for found, patch in zip(seeds, patches, strict=True):
        mean[patch.core] = found.mean[patch.core_in_halo]
        noise[patch.core] = found.noise[patch.core_in_halo] * np.sqrt(frames_per_bin)
        for footprint, trace in zip(found.footprints, found.traces, strict=True):
            if _is_centred(footprint, patch):
                places.append((footprint, patch.halo))
                traces.append(trace)
    footprints = placed(places, field)
    if places:
        stacked = np.stack(traces)
        groups = merge_groups(footprints, stacked, parameters.merge_correlation)
        footprints = unit(merged(footprints, stacked, groups)[0])
    smooth = ndimage.gaussian_filter(mean, 2 * parameters.cell_radius, mode="nearest")
    brightness = smooth - smooth.min() + 0.1 * max(float(np.ptp(smooth)), 1e-6)
    neuropil = neuropil_footprints(brightness / brightness.mean(), parameters.neuropil_spacing)
    return Model(footprints, neuropil, mean.ravel(), noise.ravel(), field)


def _is_centred(footprint: Floats, patch: Patch) -> bool:
    """Whether a footprint's centre of mass lies in the core of its patch."""
    total = float(footprint.sum(dtype=np.float64))
    y = float(footprint.sum(axis=1, dtype=np.float64) @ np.arange(footprint.shape[0])) / total
    x = float(footprint.sum(axis=0, dtype=np.float64) @ np.arange(footprint.shape[1])) / total
    rows, columns = patch.core_in_halo
    return bool(rows.start <= round(y) < rows.stop and columns.start <= round(x) < columns.stop)


def _with_traces(movie: Movie, model: Delayed) -> Delayed:
    """Build the update of the traces: one pass over the movie."""
    products = project(movie, model.all_footprints)
    return delayed(_demix)(model, products)


def _demix(model: Model, products: Floats) -> Model:
    footprints = model.all_footprints
    products = products - (footprints.T @ model.mean)[:, None]
    raw = demixed_traces(footprints, products)
    return replace(model, raw=raw, denoised=deconvolve_cells(raw[: model.n_cells]))


def _merge(model: Model, parameters: SourceExtractionParameters) -> Model:
    """Merge cells whose denoised traces are alike."""
    assert model.raw is not None
    assert model.denoised is not None
    groups = merge_groups(model.footprints, model.denoised.calcium, parameters.merge_correlation)
    if len(np.unique(groups)) == model.n_cells:
        return model
    cells = model.raw[: model.n_cells]
    footprints, traces = merged(model.footprints, cells, groups)
    norms = np.sqrt(np.asarray(footprints.multiply(footprints).sum(axis=0)))
    traces = (traces * norms[:, None]).astype(np.float32)
    return replace(
        model,
        footprints=unit(footprints),
        raw=np.concatenate([traces, model.raw[model.n_cells :]]),
        denoised=deconvolve_cells(traces),
    )


def _weights(model: Model) -> Floats:
    """Return the traces that pixels are regressed on, each about its mean."""
    assert model.raw is not None
    assert model.denoised is not None
    traces = np.concatenate([model.denoised.calcium, model.raw[model.n_cells :]])
    return np.asarray(traces - traces.mean(axis=1, keepdims=True), np.float32)


def _support(model: Model, parameters: SourceExtractionParameters) -> sp.csc_array:
    """Return where each component may reach."""
    radius = max(2, round(0.5 * parameters.cell_radius))
    cells = dilated_support(model.footprints, model.shape, radius)
    return sp.csc_array(sp.hstack([cells, model.neuropil], format="csc"))


def _with_footprints(
    model: Model, sums: sp.csc_array, weights: Floats, parameters: SourceExtractionParameters
) -> Model:
    """Update footprints and neuropil; cells that lost their pixels are dropped."""
    gram = weights.astype(np.float64) @ weights.T.astype(np.float64)
    lengths = np.diff(sums.indptr)
    norms = np.sqrt(np.diagonal(gram))
    penalty = np.repeat(norms, lengths) * model.noise[sums.indices].astype(np.float64)
    penalty *= np.repeat(np.arange(len(gram)) < model.n_cells, lengths) * parameters.sparsity
    solved = update_footprints(sums, gram, penalty)
    cells = unit(connected_footprints(solved[:, : model.n_cells], model.shape, edge=0.1))
    sizes = areas(cells) / (np.pi * parameters.cell_radius**2)
    diffuse = sizes > parameters.max_size
    diffuse |= (spreads(cells, model.shape) > parameters.max_spread) & (sizes > parameters.min_size)
    energy = np.where(diffuse, 0, np.diagonal(gram)[: model.n_cells])
    kept = (sizes >= parameters.min_size) & ~diffuse & ~inside_stronger(cells, energy)
    neuropil = [solved[:, model.n_cells :], cells[:, np.flatnonzero(diffuse)]]
    return replace(
        model,
        footprints=sp.csc_array(cells[:, np.flatnonzero(kept)]),
        neuropil=sp.csc_array(sp.hstack(neuropil, format="csc")),
        raw=None,
        denoised=None,
    )


def _components(model: Model) -> Components:
    """Return the result, the cells' resting fluorescence in the static image."""
    assert model.raw is not None
    assert model.denoised is not None
    resting = model.denoised.baseline[:, None]
    cells = model.raw[: model.n_cells] - resting
    calcium = model.denoised.calcium - resting
    neuropil = model.raw[model.n_cells :]
    static = model.mean - model.footprints @ cells.mean(axis=1)
    static -= model.neuropil @ neuropil.mean(axis=1)
    background = sp.hstack([sp.csc_array(static.reshape(-1, 1)), model.neuropil], format="csc")
    ones: NDArray[Any] = np.ones((1, model.raw.shape[1]), np.float32)
    return Components(
        footprints=model.footprints,
        shape=model.shape,
        traces=calcium,
        residuals=cells - calcium,
        deconvolved=model.denoised.activity,
        background=Background(sp.csc_array(background), np.concatenate([ones, neuropil])),
        cell_id=np.arange(model.n_cells),
    )
