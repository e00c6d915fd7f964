"""The search: a first guess of cells and background, patch by patch, on averaged frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray
from scipy import ndimage

from napari_calcium.extraction.background import (
    low_rank_background,
    neuropil_footprints,
    shared_background,
)
from napari_calcium.extraction.census import Census
from napari_calcium.extraction.factorization import (
    activity_scores,
    graph_nmf,
    pca_ica,
    sparse_nmf,
)
from napari_calcium.extraction.initialization import greedy, high_pass
from napari_calcium.extraction.merging import merge_groups, merged
from napari_calcium.extraction.model import Model
from napari_calcium.extraction.parameters import SourceExtractionParameters
from napari_calcium.extraction.patches import (
    Averaged,
    Patch,
    averaged_pixels,
    cut,
    read_averaged,
)
from napari_calcium.extraction.seeding import seeded
from napari_calcium.footprints import cropped, placed, unit
from napari_calcium.movie import Movie, Reader

__all__ = ["Found", "find_components", "search"]

Floats = NDArray[np.float32]

SMOOTHNESS = 1.0
"""Weight of a pixel's neighbours against the pixel itself, in `graph_nmf`."""

TEMPORAL_WEIGHT = 0.15
"""Weight of independence in time against that in space, in `pca_ica`."""

LEAST_AREA = 0.3
"""Area of the smallest candidate, in discs of a cell's radius."""


@dataclass(frozen=True)
class Found:
    """What the search found in one patch.

    Parameters
    ----------
    footprints : ndarray (cell, y, x)
        On the patch.
    traces : ndarray (cell, bin)
        On the binned time axis.
    mean, noise : ndarray (y, x)
        Mean and white noise of single frames; NaN where a pixel is missing.
    background : ndarray (n, y, x)
        Low-rank background, of unit norm; none unless it was asked for.
    background_traces : ndarray (n, bin)
    census : Census
    seeds : ndarray of int (cell,)
        Number of the seed that each cell is; empty where there are no seeds.
    """

    footprints: Floats
    traces: Floats
    mean: Floats
    noise: Floats
    background: Floats
    background_traces: Floats
    census: Census
    seeds: NDArray[np.intp]


def search(
    movie: Movie, parameters: SourceExtractionParameters, seeds: sp.csc_array | None = None
) -> Delayed:
    """Build the search for cells in all patches and their union into one model.

    Parameters
    ----------
    movie : Movie
        Registered.
    parameters : SourceExtractionParameters
        See there.
    seeds : scipy.sparse.csc_array (pixel, cell), optional
        Where the cells are, for the initialization by seeds.

    Returns
    -------
    Delayed of Model
    """
    patches = cut(movie.plane, parameters.core(movie.plane), parameters.halo)
    largest = max(height * width for height, width in (patch.shape for patch in patches))
    averaged = parameters.frames_averaged(movie.n_frames, movie.frame_rate, largest)
    reader = Reader(movie)
    given = None if seeds is None else delayed(seeds, pure=True)
    found = []
    for patch in patches:
        inside = None if given is None else delayed(_cropped)(given, movie.plane, patch)
        found.append(delayed(_searched)(reader, patch, averaged, parameters, inside))
    return delayed(_united)(found, patches, movie.plane, parameters, given)


def _searched(
    reader: Reader,
    patch: Patch,
    averaged: int,
    parameters: SourceExtractionParameters,
    seeds: tuple[NDArray[np.intp], Floats] | None,
) -> Found:
    """Read a patch and find what is in it."""
    read = read_averaged(reader, patch, averaged, parameters.pixels_averaged)
    if seeds is None:
        return find_components(read, averaged, parameters, core=patch.core_in_halo)
    return replace(find_components(read, averaged, parameters, seeds[1] > 0), seeds=seeds[0])


def find_components(
    read: Averaged,
    averaged: int,
    parameters: SourceExtractionParameters,
    seeds: NDArray[np.bool_] | None = None,
    core: tuple[slice, slice] = (slice(None), slice(None)),
) -> Found:
    """Find the components of a patch.

    Parameters
    ----------
    read : Averaged
        The patch; its frames are used as working memory. A pixel that is not finite in every frame
        is missing: it belongs to nothing.
    averaged : int
        Frames in each average.
    parameters : SourceExtractionParameters
        See there.
    seeds : ndarray of bool (seed, y, x), optional
        Where the components are, for the initialization by seeds.
    core : tuple of slice
        Where the components lie that count towards `n_cells`.
    """
    frames, side = read.frames, parameters.pixels_averaged
    missing = ~np.isfinite(read.mean)
    lacking = ~np.isfinite(frames).all(axis=0)
    frames[:, lacking] = 0 if missing.all() else read.mean[~missing].mean()
    noise = np.sqrt(averaged_pixels(np.where(missing, 0, read.noise)[None] ** 2, side)[0])
    noise = (noise / (side * np.sqrt(averaged))).astype(np.float32)
    frames -= np.median(frames[:: max(1, len(frames) // 500)], axis=0)
    low_rank = parameters.background in ("low_rank", "patches")
    kept = frames.copy() if low_rank else None
    small_core = tuple(
        slice(part.indices(n)[0] // side, -(-part.indices(n)[1] // side))
        for part, n in zip(core, missing.shape, strict=True)
    )
    footprints, traces, census = _components(frames, noise, small_core, parameters, seeds)
    images, activity = _background(kept, footprints, traces, parameters.n_background)
    enlarged, backgrounds = (_enlarged(each, side, missing) for each in (footprints, images))
    census = replace(census, short_patches=int(len(frames) < 3), missing_patches=int(missing.all()))
    none = np.zeros(0, np.intp)
    return Found(enlarged, traces, read.mean, read.noise, backgrounds, activity, census, none)


def _components(
    frames: Floats,
    noise: Floats,
    core: tuple[slice, ...],
    parameters: SourceExtractionParameters,
    seeds: NDArray[np.bool_] | None,
) -> tuple[Floats, Floats, Census]:
    """Find footprints and traces in frames of zero median, in the way that was asked for."""
    side = parameters.pixels_averaged
    radius = parameters.cell_radius / side
    least = max(4, int(LEAST_AREA * np.pi * radius**2))
    sharp = high_pass(frames, radius)
    if seeds is not None:
        regions = averaged_pixels(seeds.astype(np.float32), side) >= 0.5
        return *seeded(sharp, regions, radius, parameters.threshold), Census()
    if parameters.initialization == "greedy":
        threshold, n_cells = parameters.threshold, parameters.n_cells
        result = greedy(sharp, radius, threshold, least, n_cells, (core[0], core[1]), noise)
        census = Census(few_pixels=result.few_pixels, strongest=result.strongest)
        return result.footprints, result.traces, census
    footprints, traces = _factorized(sharp, core, least, parameters.threshold, parameters)
    if len(footprints):
        return footprints, traces, Census()
    weak = _factorized(sharp, core, least, 0.0, parameters)[1]
    return footprints, traces, Census(strongest=max(activity_scores(weak), default=-np.inf))


def _factorized(
    sharp: Floats,
    core: tuple[slice, ...],
    least: int,
    threshold: float,
    parameters: SourceExtractionParameters,
) -> tuple[Floats, Floats]:
    """Find components by factorization, as many as asked for in proportion to the core's area."""
    area = max(np.zeros(sharp.shape[1:])[core].size, 1)
    count = -(-parameters.n_cells * sharp[0].size // area)
    shared, connected = (least, threshold), parameters.connected
    if parameters.initialization == "sparse_nmf":
        return sparse_nmf(sharp, count, parameters.sparsity, *shared, connected=connected)
    if parameters.initialization == "graph_nmf":
        return graph_nmf(sharp, count, SMOOTHNESS, *shared, connected=connected)
    return pca_ica(sharp, count, TEMPORAL_WEIGHT, *shared, connected=connected)


def _background(
    frames: Floats | None, footprints: Floats, traces: Floats, n: int
) -> tuple[Floats, Floats]:
    """Return the low-rank background of frames, the cells taken out; nothing without frames."""
    if frames is None:
        return np.zeros((0, *footprints.shape[1:]), np.float32), np.zeros((0, 0), np.float32)
    flat = footprints.reshape(len(footprints), frames[0].size)
    frames -= (traces.T @ flat).reshape(frames.shape)
    frames -= frames.mean(axis=0)
    return low_rank_background(frames, n)


def _enlarged(images: Floats, size: int, missing: NDArray[np.bool_]) -> Floats:
    """Bring images of averaged pixels back to the field, without the missing pixels."""
    height, width = missing.shape
    large: Floats = np.repeat(np.repeat(images, size, axis=1), size, axis=2)[:, :height, :width]
    large[:, missing] = 0
    return large


def _cropped(
    seeds: sp.csc_array, field: tuple[int, int], patch: Patch
) -> tuple[NDArray[np.intp], Floats]:
    """Return the numbers of the seeds that lie in a patch, and their part in it."""
    pixels = np.arange(field[0] * field[1]).reshape(field)[patch.halo].ravel()
    inside = sp.csc_array(sp.csr_array(seeds)[pixels])
    present = np.flatnonzero(np.diff(inside.indptr))
    images = np.asarray(inside[:, present].T.toarray(), np.float32)
    return present, images.reshape(-1, *patch.shape)


# ------------------------------------------------------------------------------- all patches


def _united(
    found: Sequence[Found],
    patches: Sequence[Patch],
    field: tuple[int, int],
    parameters: SourceExtractionParameters,
    seeds: sp.csc_array | None,
) -> Model:
    """Join what the patches found."""
    mean, noise = np.zeros(field, np.float32), np.zeros(field, np.float32)
    for part, patch in zip(found, patches, strict=True):
        mean[patch.core] = part.mean[patch.core_in_halo]
        noise[patch.core] = part.noise[patch.core_in_halo]
    missing = np.isnan(mean)
    mean[missing], noise[missing] = mean[~missing].mean() if not missing.all() else 0, 0
    present = _present(missing)
    census = Census.joined([part.census for part in found])
    if seeds is None:
        footprints, n_candidates = _joined_cells(found, patches, field, parameters)
        merged_away = n_candidates - footprints.shape[1]
        census = census.plus(candidates=n_candidates, merged=merged_away)
    else:
        footprints = unit(sp.csc_array(present @ _refined_seeds(found, patches, field, seeds)))
        census = census.plus(candidates=footprints.shape[1])
    background = sp.csc_array(present @ _joined_background(found, patches, mean, parameters))
    background.eliminate_zeros()
    mean[missing] = 0
    return Model(
        footprints, background, mean.ravel(), noise.ravel(), missing.ravel(), field, census
    )


def _present(missing: NDArray[np.bool_]) -> sp.dia_array:
    """Return the matrix that takes missing pixels out of footprints."""
    return sp.diags_array((~missing).ravel().astype(np.float32))


def _joined_cells(
    found: Sequence[Found],
    patches: Sequence[Patch],
    field: tuple[int, int],
    parameters: SourceExtractionParameters,
) -> tuple[sp.csc_array, int]:
    """Return the cells, each from the patch whose core holds its centre, and the candidates."""
    places: list[tuple[Floats, tuple[slice, slice]]] = []
    traces: list[Floats] = []
    for part, patch in zip(found, patches, strict=True):
        centred = [i for i, image in enumerate(part.footprints) if _is_centred(image, patch)]
        for i in centred[: parameters.n_cells or None]:
            places.append((part.footprints[i], patch.halo))
            traces.append(part.traces[i])
    footprints = placed(places, field)
    if places and parameters.merge:
        stacked = np.stack(traces)
        groups = merge_groups(footprints, stacked, parameters.merge_correlation)
        footprints = merged(footprints, stacked, groups)[0]
    return unit(footprints), len(places)


def _refined_seeds(
    found: Sequence[Found],
    patches: Sequence[Patch],
    field: tuple[int, int],
    seeds: sp.csc_array,
) -> sp.csc_array:
    """Return seeds as footprints: as the patch of their centre found them, if it holds them."""
    ones = np.ones(seeds.nnz, np.float32)
    given = sp.csc_array((ones, seeds.indices, seeds.indptr), shape=seeds.shape)
    boxes = [cropped(given, field, i, 0) for i in range(given.shape[1])]
    columns = [(image, box) for box, image in boxes]
    for part, patch in zip(found, patches, strict=True):
        for number, footprint in zip(part.seeds, part.footprints, strict=True):
            box, image = boxes[number]
            if footprint.any() and _holds(patch, box) and _has_centre(patch, box, image):
                columns[number] = (footprint, patch.halo)
    return placed(columns, field)


def _holds(patch: Patch, box: tuple[slice, slice]) -> bool:
    """Whether a box of the field lies in a patch with its halo."""
    return all(
        halo.start <= part.start and part.stop <= halo.stop
        for halo, part in zip(patch.halo, box, strict=True)
    )


def _has_centre(patch: Patch, box: tuple[slice, slice], image: Floats) -> bool:
    """Whether the centre of an image in a box of the field lies in the core of a patch."""
    centres = (
        part.start + np.mean(places) for part, places in zip(box, np.nonzero(image), strict=True)
    )
    return all(
        core.start <= np.floor(centre + 0.5) < core.stop
        for core, centre in zip(patch.core, centres, strict=True)
    )


def _is_centred(footprint: Floats, patch: Patch) -> bool:
    """Whether a footprint's centre of mass lies in the core of its patch."""
    total = float(footprint.sum(dtype=np.float64))
    if total <= 0:
        return False
    y = float(footprint.sum(axis=1, dtype=np.float64) @ np.arange(footprint.shape[0])) / total
    x = float(footprint.sum(axis=0, dtype=np.float64) @ np.arange(footprint.shape[1])) / total
    rows, columns = patch.core_in_halo
    return bool(  # a half is rounded up: each centre is in one patch
        rows.start <= np.floor(y + 0.5) < rows.stop
        and columns.start <= np.floor(x + 0.5) < columns.stop
    )


def _joined_background(
    found: Sequence[Found],
    patches: Sequence[Patch],
    mean: Floats,
    parameters: SourceExtractionParameters,
) -> sp.csc_array:
    """Return the footprints of the background that varies in time."""
    if parameters.background == "none":
        return sp.csc_array((mean.size, 0), dtype=np.float32)
    if parameters.background == "grid":
        return neuropil_footprints(_brightness(mean, parameters), parameters.neuropil_spacing)
    images: list[tuple[NDArray[Any], tuple[slice, slice]]] = [
        (image[patch.core_in_halo], patch.core)
        for part, patch in zip(found, patches, strict=True)
        for image in part.background
    ]
    footprints = placed(images, (mean.shape[0], mean.shape[1]))
    if parameters.background == "patches" or not images:
        return footprints
    traces = [part.background_traces for part in found]
    weights = shared_background(traces, parameters.n_background)
    return sp.csc_array(footprints @ sp.csc_array(weights))


def _brightness(mean: Floats, parameters: SourceExtractionParameters) -> Floats:
    """Return how bright neuropil is from place to place, 1 on average."""
    smooth = ndimage.gaussian_filter(mean, 2 * parameters.cell_radius, mode="nearest")
    brightness = smooth - smooth.min() + 0.1 * max(float(np.ptp(smooth)), 1e-6)
    return np.asarray(brightness / brightness.mean(), np.float32)
