"""Footprints that start from seeds: regions a person drew, or cell bodies of another channel.

For recordings in which it is known where the cells are, from a structural channel, an earlier
session or a person's eye. Every seed becomes one component, also one that is silent.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.morphology import disk
from skimage.segmentation import watershed

from napari_calcium.extraction.factorization import activity_scores
from napari_calcium.extraction.initialization import ACTIVE, EDGE
from napari_calcium.extraction.noise import pixel_noise
from napari_calcium.extraction.spatial import update_footprints
from napari_calcium.extraction.temporal import demixed_traces
from napari_calcium.footprints import cropped, dilated_support, masks, placed, unit

__all__ = ["regions_from_structure", "seeded"]

Floats = NDArray[np.float32]
Masks = NDArray[np.bool_]

ITERATIONS = 4  # of footprints and traces in turn
ABOVE_NOISE = 4.0  # a cell body is brighter than its surround by so many sd of the noise
FAINT = 0.15  # of the contrast of bright cell bodies, below which something is none
TOUCHING = np.ones((3, 3), bool)  # pixels that touch at a corner hang together


def seeded(
    frames: Floats, regions: Masks, radius: float, threshold: float = 12.0
) -> tuple[Floats, Floats]:
    """Turn regions into footprints and traces, all demixed together.

    CaImAn: masks_in (Ain).

    Parameters
    ----------
    frames : ndarray (bin, y, x), float32
        The patch, of zero median in time, without NaN; high-passed, or footprints fill with what
        surrounds them. Not changed.
    regions : ndarray (cell, y, x), bool
        One seed each; they may overlap, be alike or be empty.
    radius : float
        Radius of a cell, px; a footprint may reach half of it beyond its region.
    threshold : float
        Smallest score of an active cell, `activity_scores`, in sd. A seed with less keeps its
        region as its footprint, and its trace is the region's, not demixed.

    Returns
    -------
    footprints : ndarray (cell, y, x), float32
        One for each seed, in the order of the seeds; of unit norm, or 0 for an empty region.
    traces : ndarray (cell, bin), float32
        In the unit of the frames times pixels.

    Examples
    --------
    >>> frames = np.random.default_rng(0).normal(size=(200, 37, 53)).astype(np.float32)
    >>> frames[50:60, 10:16, 30:36] += 9
    >>> regions = np.zeros((2, 37, 53), bool)
    >>> regions[0, 11:15, 31:35] = regions[1, 25:30, 10:15] = True
    >>> footprints, traces = seeded(frames, regions, radius=3)
    >>> (footprints > 0).sum(axis=(1, 2)), traces.argmax(axis=1)[0] // 10
    (array([36, 25]), np.int64(5))
    """
    count, height, width = regions.shape
    shape, flat = (height, width), frames.reshape(len(frames), height * width)
    plain = unit(sp.csc_array(regions.reshape(count, height * width).T, dtype=np.float32))
    if not (count and len(frames)):
        return np.zeros(regions.shape, np.float32), np.zeros((count, len(frames)), np.float32)
    reach = dilated_support(plain, shape, max(1, round(radius / 2)))
    footprints = plain
    for _ in range(ITERATIONS):
        traces = demixed_traces(footprints, np.asarray(footprints.T @ flat.T))
        refined = _refined(flat, np.ascontiguousarray(traces), reach)
        refined = _rooted(refined, plain, shape)
        silent = (activity_scores(traces) < threshold) | (np.diff(refined.indptr) == 0)
        footprints = _chosen(plain, refined, silent)
    traces = demixed_traces(footprints, np.asarray(footprints.T @ flat.T))
    traces[silent] = (plain.T @ flat.T)[silent]
    return footprints.toarray().T.reshape(regions.shape), traces


def _refined(flat: Floats, traces: Floats, reach: sp.csc_array) -> sp.csc_array:
    """Return the footprints that explain the activity of traces best, within their reach."""
    noise = pixel_noise(np.ascontiguousarray(traces.T))
    active = np.where(traces > ACTIVE * noise[:, None], traces, 0)
    starts = reach.indptr
    parts = [
        trace @ flat[:, reach.indices[start:stop]]
        for trace, start, stop in zip(active, starts[:-1], starts[1:], strict=True)
    ]
    sums = sp.csc_array((np.concatenate(parts), reach.indices, starts), shape=reach.shape)
    gram = active.astype(np.float64) @ active.T.astype(np.float64)
    solved = update_footprints(sums, gram, np.zeros(sums.nnz))
    return sp.csc_array(solved * masks(solved, EDGE))


def _rooted(footprints: sp.csc_array, plain: sp.csc_array, shape: tuple[int, int]) -> sp.csc_array:
    """Keep of each footprint the parts that its region touches, at unit norm."""
    columns = []
    region = np.zeros(shape, bool)
    for index in range(footprints.shape[1]):
        pixels = plain.indices[plain.indptr[index] : plain.indptr[index + 1]]
        box, image = cropped(footprints, shape, index, 0)
        labels, _ = ndimage.label(image > 0, TOUCHING)
        region.ravel()[pixels] = True
        kept = np.isin(labels, labels[region[box] & (labels > 0)])
        region.ravel()[pixels] = False
        columns.append((np.where(kept, image, 0).astype(np.float32), box))
    return unit(placed(columns, shape))


def _chosen(plain: sp.csc_array, refined: sp.csc_array, silent: Masks) -> sp.csc_array:
    """Return the plain footprints of silent seeds and the refined ones of the others."""
    scale = silent.astype(np.float32)
    chosen = plain @ sp.diags_array(scale) + refined @ sp.diags_array(1 - scale)
    chosen = sp.csc_array(chosen, dtype=np.float32)
    chosen.eliminate_zeros()
    return chosen


# ------------------------------------------------------------------------------------ structure


def regions_from_structure(
    image: NDArray[np.floating] | NDArray[np.integer],
    radius: float,
    min_size: float = 0.3,
    max_size: float = 3.0,
) -> sp.csc_array:
    """Find nuclei or cell bodies in the image of a structural channel.

    What is brighter than its surround by more than noise is opened, those that touch are split by
    a watershed on the distance to the border, and each ends at half its height. For labels that
    fill the cell or its nucleus; rings of an unlabelled nucleus are filled. CaImAn:
    ``extract_binary_masks_from_structural_channel``.

    Parameters
    ----------
    image : ndarray (y, x)
        Of any unit; NaN counts as dark.
    radius : float
        Radius of a nucleus or cell body, px.
    min_size, max_size : float
        Smallest and largest area, in discs of `radius`.

    Returns
    -------
    scipy.sparse.csc_array (pixel, region), float32
        Ones, pixel = y * width + x; disjoint, from top to bottom. None is a valid result.

    Examples
    --------
    >>> y, x = np.mgrid[:37, :53]
    >>> image = sum((np.hypot(y - 18, x - place) < 5) * 9.0 for place in (15, 24, 40))
    >>> regions_from_structure(image, radius=5).sum(axis=0)
    array([71., 71., 69.], dtype=float32)
    """
    contrast, noise = _contrast(np.asarray(image, np.float64), radius)
    inside = ndimage.binary_opening(contrast > ABOVE_NOISE * noise, disk(max(1, round(radius / 3))))
    labels = _split(ndimage.binary_fill_holes(inside), contrast, radius)
    places = ndimage.find_objects(labels)
    found = [_trimmed(contrast, labels, n, box, radius) for n, box in enumerate(places, 1) if box]
    least = FAINT * np.percentile([height for _, _, height in found], 90) if found else 0.0
    low, high = (size * np.pi * radius**2 for size in (min_size, max_size))
    kept = [
        (mask, box) for mask, box, height in found if height >= least and low <= mask.sum() <= high
    ]
    return placed(kept, (image.shape[0], image.shape[1]))


def _contrast(image: NDArray[np.float64], radius: float) -> tuple[NDArray[np.float64], float]:
    """Return by how much each pixel is brighter than its surround, and the noise of that."""
    known = np.isfinite(image)
    image = np.where(known, image, image[known].min() if known.any() else 0)
    changes = image[1:, 1:] - image[1:, :-1] - image[:-1, 1:] + image[:-1, :-1]
    sigma = 0.25 * radius
    # changes are of four pixels; a Gaussian averages over 4 pi sigma^2
    noise = 1.4826 * float(np.median(np.abs(changes))) / 2 if changes.size else 0.0
    noise *= min(1.0, 1 / np.sqrt(4 * np.pi * sigma**2))
    smooth = ndimage.gaussian_filter(image, sigma, mode="nearest")
    return smooth - ndimage.gaussian_filter(image, 2.5 * radius, mode="nearest"), noise


def _split(inside: Masks, contrast: NDArray[np.float64], radius: float) -> NDArray[np.int32]:
    """Return labels of what hangs together, those that touch split, from top to bottom.

    The waist between two is clearest in what is at least half as bright as what is near.
    """
    parts, _ = ndimage.label(inside)
    near = disk(max(1, round(0.5 * radius)))
    core = inside & (contrast > 0.5 * ndimage.maximum_filter(contrast, footprint=near))
    depth = ndimage.distance_transform_edt(ndimage.binary_fill_holes(core))
    depth = ndimage.gaussian_filter(depth, 0.15 * radius)
    peaks = peak_local_max(
        depth, min_distance=max(1, round(0.6 * radius)), labels=parts, exclude_border=False
    )
    markers = np.zeros(inside.shape, np.int32)
    for label, (y, x) in enumerate(sorted(map(tuple, peaks)), 1):
        markers[y, x] = label
    return np.asarray(watershed(-depth, markers, mask=inside), np.int32)


def _trimmed(
    contrast: NDArray[np.float64],
    labels: NDArray[np.int32],
    label: int,
    box: tuple[slice, ...],
    radius: float,
) -> tuple[Floats, tuple[slice, slice], float]:
    """Return one region down to half its height, in its box, and the height."""
    margin = round(radius)
    around = tuple(slice(max(0, part.start - margin), part.stop + margin) for part in box)
    inside = labels[box] == label
    high = float(np.percentile(contrast[box][inside], 90))
    low = float(np.percentile(contrast[around], 5))
    kept = inside & (contrast[box] > (high + low) / 2)
    parts, count = ndimage.label(kept)
    if count > 1:
        kept = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    rows, columns = box
    return ndimage.binary_fill_holes(kept).astype(np.float32), (rows, columns), high - low
