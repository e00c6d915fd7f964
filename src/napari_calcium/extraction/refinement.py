"""The refinement: footprints and traces of the whole field in turn, each a pass over the movie."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from napari_calcium.components import Background, Components
from napari_calcium.deconvolution.foopsi import deconvolve_traces
from napari_calcium.extraction.factorization import activity_scores
from napari_calcium.extraction.merging import inside_stronger, merge_groups, merged
from napari_calcium.extraction.model import Model
from napari_calcium.extraction.parameters import SourceExtractionParameters
from napari_calcium.extraction.patches import bin_frames
from napari_calcium.extraction.spatial import update_footprints
from napari_calcium.extraction.temporal import demixed_traces
from napari_calcium.footprints import (
    areas,
    dilated_support,
    elliptic_support,
    spreads,
    trimmed_footprints,
    unit,
)
from napari_calcium.movie import Movie, project, weighted_sums

__all__ = ["components_of", "refined", "with_traces"]

Floats = NDArray[np.float32]

ROUNDING = 1e-5
"""Part of a raw trace's largest value below which a denoised one is constant but for rounding."""

MOST_BINS = 4000
"""Seeds are judged active by traces averaged to at most so many bins."""


def refined(movie: Movie, model: Delayed, parameters: SourceExtractionParameters) -> Delayed:
    """Build one refinement: traces, merging, footprints. Two passes over the movie."""
    model = with_traces(movie, model, parameters, shared=True)
    model = delayed(_merge)(model, parameters, movie.frame_rate)
    weights = delayed(_weights)(model)
    support = delayed(_support)(model, parameters)
    sums = weighted_sums(movie, weights, support)
    return delayed(_with_footprints)(model, sums, weights, parameters)


def with_traces(
    movie: Movie, model: Delayed, parameters: SourceExtractionParameters, shared: bool = False
) -> Delayed:
    """Build the update of the traces: one pass over the movie.

    Parameters
    ----------
    movie : Movie
    model : Delayed of Model
    parameters : SourceExtractionParameters
    shared : bool
        Whether all cells get the same time constants, which is enough between refinements.
    """
    products = project(movie, model.all_footprints, model.mean)
    return delayed(_demix)(model, products, parameters, movie.frame_rate, shared)


def _demix(
    model: Model,
    products: Floats,
    parameters: SourceExtractionParameters,
    frame_rate: float,
    shared: bool,
) -> Model:
    footprints = model.all_footprints
    raw = demixed_traces(footprints, products)
    cells = raw[: model.n_cells]
    denoised = deconvolve_traces(cells, frame_rate, parameters.deconvolution, shared)
    return replace(model, raw=raw, denoised=denoised)


def _merge(model: Model, parameters: SourceExtractionParameters, frame_rate: float) -> Model:
    """Merge cells whose denoised traces are alike; seeds are what somebody asked for and stay."""
    if not parameters.merge or parameters.initialization == "seeds":
        return model
    raw, denoised = model.measured
    groups = merge_groups(model.footprints, denoised.calcium, parameters.merge_correlation)
    n_merged = model.n_cells - len(np.unique(groups))
    if not n_merged:
        return model
    footprints, traces = merged(model.footprints, raw[: model.n_cells], groups)
    norms = np.sqrt(np.asarray(footprints.multiply(footprints).sum(axis=0)))
    traces = (traces * norms[:, None]).astype(np.float32)
    return replace(
        model,
        footprints=unit(footprints),
        census=model.census.plus(merged=n_merged),
        raw=np.concatenate([traces, raw[model.n_cells :]]),
        denoised=deconvolve_traces(traces, frame_rate, parameters.deconvolution, shared=True),
    )


def _weights(model: Model) -> Floats:
    """Return the traces that pixels are regressed on, each about its mean."""
    raw, denoised = model.measured
    traces = np.concatenate([denoised.calcium, raw[model.n_cells :]])
    traces -= traces.mean(axis=1, keepdims=True, dtype=np.float64)
    spread = np.abs(traces).max(axis=1, initial=0)
    level = np.abs(raw).max(axis=1, initial=0)
    traces[spread <= ROUNDING * level] = 0  # a silent trace: what is left is rounding
    return np.asarray(traces, np.float32)


def _support(model: Model, parameters: SourceExtractionParameters) -> sp.csc_array:
    """Return where each component may reach."""
    grown = elliptic_support if parameters.support == "ellipse" else dilated_support
    cells = grown(model.footprints, model.shape, parameters.reach)
    if model.missing.any():
        cells = sp.csc_array(sp.diags_array((~model.missing).astype(np.float32)) @ cells)
        cells.eliminate_zeros()
    return sp.csc_array(sp.hstack([cells, model.neuropil], format="csc"))


def _with_footprints(
    model: Model, sums: sp.csc_array, weights: Floats, parameters: SourceExtractionParameters
) -> Model:
    """Update footprints and neuropil; what is no cell any more is dropped or becomes background."""
    gram = weights.astype(np.float64) @ weights.T.astype(np.float64)
    lengths = np.diff(sums.indptr)
    norms = np.sqrt(np.diagonal(gram))
    penalty = np.repeat(norms, lengths) * model.noise[sums.indices].astype(np.float64)
    penalty *= np.repeat(np.arange(len(gram)) < model.n_cells, lengths) * parameters.sparsity
    solved = update_footprints(sums, gram, penalty)
    energy = parameters.edge_energy if parameters.footprint_edge == "energy" else None
    cells = trimmed_footprints(
        solved[:, : model.n_cells],
        model.shape,
        parameters.edge_maximum,
        energy,
        parameters.connected,
    )
    raw, _ = model.measured
    model = replace(model, neuropil=solved[:, model.n_cells :], raw=None, denoised=None)
    if parameters.initialization == "seeds":
        active = _is_active(raw[: model.n_cells], parameters.threshold)
        return replace(model, footprints=_or_as_before(unit(cells), model.footprints, active))
    return _sorted_out(model, unit(cells), np.diagonal(gram)[: model.n_cells], parameters)


def _is_active(traces: Floats, threshold: float) -> NDArray[np.bool_]:
    """Say which traces show more than noise."""
    if not traces.size:
        return np.zeros(len(traces), bool)
    binned = bin_frames(traces.T[:, None], -(-traces.shape[1] // MOST_BINS))[:, 0].T
    return np.asarray(
        activity_scores(binned - np.median(binned, axis=1, keepdims=True)) >= threshold
    )


def _or_as_before(
    footprints: sp.csc_array, before: sp.csc_array, active: NDArray[np.bool_]
) -> sp.csc_array:
    """Keep the footprint of what shows no activity to find one by: a silent seed stays a seed."""
    renewed = active & (np.diff(footprints.indptr) > 0)
    columns = [(footprints if new else before)[:, [i]] for i, new in enumerate(renewed)]
    return sp.csc_array(sp.hstack(columns, format="csc")) if columns else footprints


def _sorted_out(
    model: Model,
    cells: sp.csc_array,
    energy: NDArray[np.float64],
    parameters: SourceExtractionParameters,
) -> Model:
    """Keep what is a cell by its size and shape; what is too large or ragged is background."""
    empty = np.diff(cells.indptr) == 0
    sizes = areas(cells) / parameters.disc
    large = sizes > parameters.max_size
    ragged = ~large & (sizes > parameters.min_size)
    ragged &= spreads(cells, model.shape) > parameters.max_spread
    diffuse = large | ragged
    small = ~empty & (sizes < parameters.min_size)
    energy = np.where(diffuse, 0, energy)
    inside = inside_stronger(cells, energy, parameters.duplicate_overlap)
    inside &= ~(empty | small | diffuse)
    counts = {"faded": empty, "small": small, "large": large, "ragged": ragged, "inside": inside}
    neuropil = [model.neuropil, cells[:, np.flatnonzero(diffuse)]]
    return replace(
        model,
        footprints=sp.csc_array(cells[:, np.flatnonzero(~(empty | small | diffuse | inside))]),
        neuropil=sp.csc_array(sp.hstack(neuropil, format="csc")),
        census=model.census.plus(**{name: int(which.sum()) for name, which in counts.items()}),
    )


def components_of(model: Model) -> Components:
    """Return the result, the cells' resting fluorescence in the static image."""
    raw, denoised = model.measured
    resting = denoised.baseline[:, None]
    cells = raw[: model.n_cells] - resting
    calcium = denoised.calcium - resting
    neuropil = raw[model.n_cells :]
    static = model.mean - model.footprints @ cells.mean(axis=1)
    static -= model.neuropil @ neuropil.mean(axis=1)
    background = sp.hstack([sp.csc_array(static.reshape(-1, 1)), model.neuropil], format="csc")
    ones: NDArray[Any] = np.ones((1, raw.shape[1]), np.float32)
    return Components(
        footprints=model.footprints,
        shape=model.shape,
        traces=calcium,
        residuals=cells - calcium,
        deconvolved=denoised.activity,
        background=Background(sp.csc_array(background), np.concatenate([ones, neuropil])),
        cell_id=np.arange(model.n_cells),
        baseline=model.footprints.T @ static,
        noise=denoised.noise,
        time_constants=denoised.time_constants,
    )
