"""Components of one patch found all at once, by factorization: for dendrites and axons.

`greedy` looks for round cells of a given radius, one by one. The three ways here know no shape: the
whole patch, bins by pixels, is written as footprints times traces. They differ in what makes the
answer the wanted one of many:

* `sparse_nmf`: few pixels in each footprint; for thin and crossing processes, and for cells of any
  shape;
* `graph_nmf`: pixels that go together with their neighbours weigh like them; for processes so faint
  that single pixels are noisy;
* `pca_ica`: independence; for bright cells that are not always active together, and as a second
  opinion, as nothing need be positive while it is looked for.

All see a source only if it stands out of the noise of the whole patch, so that `greedy` finds
fainter cells; and a source on pixels that none has for itself may come out mixed.

The patch is first reduced to its largest singular vectors, found with random projections (Halko et
al. 2011, 10.1137/090771806), so that the time taken hardly depends on the number of iterations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.sparse as sp
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage, optimize

from napari_calcium.extraction.initialization import ACTIVE, EDGE
from napari_calcium.extraction.noise import pixel_noise
from napari_calcium.extraction.spatial import update_footprints
from napari_calcium.extraction.temporal import demixed_traces
from napari_calcium.footprints import masks, unit

__all__ = ["activity_scores", "graph_nmf", "pca_ica", "sparse_nmf"]

Floats = NDArray[np.float32]

ITERATIONS = 40  # of footprints and traces in turn
ROTATIONS = 60  # of principal components, at most
SWEEPS = 20  # over the pixels of smooth footprints, at the end
POWERS = 4  # times the patch is applied to the random projections and back
SPARE = 16  # projections more than components looked for
SURE = 3.0  # a pixel belongs to a footprint beyond this many sd of its weight
TRACY_WIDOM = 4.0  # sd by which the largest singular value of noise may exceed its limit
MARGIN = 1.05  # on that, as noise is not quite the same everywhere
PART = 0.1  # of the weight of the heaviest part, below which another is no cell of its own
TOUCHING = np.ones((3, 3), bool)  # pixels that touch at a corner hang together


@dataclass(frozen=True)
class _Reduced:
    """A smoothed patch in units of its noise, as ``bins @ pixels.T``.

    Parameters
    ----------
    bins : ndarray (bin, rank)
        Orthonormal columns.
    pixels : ndarray (pixel, rank)
        Orthogonal columns, scaled by the singular values, largest first.
    n_components : int
        How many components to look for.
    field : tuple of int
        (y, x).
    """

    bins: Floats
    pixels: Floats
    n_components: int
    field: tuple[int, int]

    def onto_traces(self, traces: Floats) -> Floats:
        """Return the products of pixels and traces, (pixel, component)."""
        return np.asarray(self.pixels @ (self.bins.T @ traces))

    def onto_images(self, images: Floats) -> Floats:
        """Return the products of bins and images, (bin, component)."""
        return np.asarray(self.bins @ (self.pixels.T @ images))


def sparse_nmf(
    frames: Floats,
    n_components: int,
    sparsity: float,
    min_pixels: int,
    threshold: float = 12.0,
    smoothing: float = 1.0,
    connected: bool = False,
) -> tuple[Floats, Floats]:
    """Factorize a patch into non-negative traces and sparse non-negative footprints.

    For dendrites, axons and boutons: thin, branching, crossing. CaImAn: method_init
    ``sparse_nmf``.

    Parameters
    ----------
    frames : ndarray (bin, y, x), float32
        The patch, of zero median in time, without NaN; high-passed or not. Not changed.
    n_components : int
        Components looked for; fewer may be returned. 0: as many as singular values stand out of
        the noise. CaImAn: K.
    sparsity : float
        Weight of a pixel in a footprint that counts as noise, in sd. CaImAn: alpha_snmf.
    min_pixels : int
        Parts of footprints of fewer pixels are dropped.
    threshold : float
        Smallest `activity_scores` of a component, in sd.
    smoothing : float
        Sd of a Gaussian by which frames are smoothed while components are looked for, px; the
        footprints are then taken from the frames as they are. CaImAn: sigma_smooth_snmf.
    connected : bool
        Keep of a footprint only the part with the most weight, as for cell bodies.

    Returns
    -------
    footprints : ndarray (cell, y, x), float32
        Of unit norm, not negative; the strongest component first.
    traces : ndarray (cell, bin), float32
        Demixed, in the unit of the frames times pixels.

    References
    ----------
    Andilla and Hamprecht 2014, Sparse space-time deconvolution for calcium image analysis;
    Pnevmatikakis et al. 2016, 10.1016/j.neuron.2015.11.037. HALS: Cichocki and Phan 2009,
    10.1587/transfun.E92.A.708. Start from the purest pixels: Gillis and Vavasis 2014,
    10.1109/TPAMI.2013.226.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> frames = rng.normal(size=(200, 37, 53)).astype(np.float32)
    >>> sparse_nmf(frames, 0, 1.5, 10)[0].shape
    (0, 37, 53)
    >>> frames[20:60:4, 9, 5:40] += 12
    >>> frames[90:150:5, 5:30, 20] += 12
    >>> footprints, traces = sparse_nmf(frames, 0, 1.5, 10)
    >>> footprints.shape, (footprints > 0).sum(axis=(1, 2))
    ((2, 37, 53), array([35, 25]))
    """
    reduced = _reduced(frames, n_components, smoothing)
    if reduced is None:
        return _nothing(frames)
    traces = _pure_traces(reduced)
    images = np.zeros((len(reduced.pixels), traces.shape[1]), np.float32)
    for _ in range(ITERATIONS):
        gram = _gram(traces)
        _descend(reduced.onto_traces(traces) - np.float32(sparsity), gram, images)
        _descend(reduced.onto_images(images), _gram(images), traces)
        traces, images = _balanced(traces, images)
    supports = _supports(images, reduced.field, SURE - sparsity, min_pixels, connected)
    weigh = partial(_sparse_weights, noise=pixel_noise(frames).ravel(), sparsity=sparsity)
    return _finished(frames, traces, supports, min_pixels, threshold, weigh)


def graph_nmf(
    frames: Floats,
    n_components: int,
    smoothness: float,
    min_pixels: int,
    threshold: float = 12.0,
    smoothing: float = 1.0,
    connected: bool = False,
) -> tuple[Floats, Floats]:
    """Factorize a patch into non-negative factors, footprints smooth along what goes together.

    Each pixel of a footprint is drawn to its eight neighbours, to each as strongly as the two
    correlate, so that noise is averaged along a process but not across its border. For faint
    processes and cells. CaImAn: method_init ``graph_nmf``.

    Parameters
    ----------
    frames, n_components, min_pixels, threshold, smoothing, connected
        See `sparse_nmf`.
    smoothness : float
        Weight of all neighbours against the pixel itself; 0 for plain factorization. CaImAn:
        lambda_gnmf.

    Returns
    -------
    footprints : ndarray (cell, y, x), float32
    traces : ndarray (cell, bin), float32
        See `sparse_nmf`.

    References
    ----------
    Cai et al. 2011, 10.1109/TPAMI.2010.231.

    Examples
    --------
    >>> frames = np.random.default_rng(0).normal(size=(200, 37, 53)).astype(np.float32)
    >>> frames[20:60:4, 9, 5:40] += 12
    >>> graph_nmf(frames, 0, 1, 10)[0].shape
    (1, 37, 53)
    """
    reduced = _reduced(frames, n_components, smoothing)
    if reduced is None:
        return _nothing(frames)
    neighbours = np.float32(smoothness) * _neighbours(reduced)
    traces = _pure_traces(reduced)
    images = np.zeros((len(reduced.pixels), traces.shape[1]), np.float32)
    for _ in range(ITERATIONS):
        _descend_graph(reduced.onto_traces(traces), _gram(traces), images, neighbours)
        _descend(reduced.onto_images(images), _gram(images), traces)
        traces, images = _balanced(traces, images)
    supports = _supports(images, reduced.field, SURE, min_pixels, connected)
    weigh = partial(_smooth_weights, noise=pixel_noise(frames).ravel(), neighbours=neighbours)
    return _finished(frames, traces, supports, min_pixels, threshold, weigh)


def pca_ica(
    frames: Floats,
    n_components: int,
    temporal_weight: float,
    min_pixels: int,
    threshold: float = 12.0,
    smoothing: float = 1.0,
    connected: bool = True,
) -> tuple[Floats, Floats]:
    """Find components that are skewed and independent in space and time.

    Principal components are rotated until images and traces together are as skewed as can be: few
    bright pixels, few bright frames. For many bright cells that are not always active together.
    CaImAn: ``IPCA_stICA``.

    Parameters
    ----------
    frames, n_components, min_pixels, threshold, smoothing
        See `sparse_nmf`.
    temporal_weight : float
        Weight of traces against images, 0 to 1. CellSort, CaImAn: mu.
    connected : bool
        Make each connected part of a footprint a component of its own.

    Returns
    -------
    footprints : ndarray (cell, y, x), float32
    traces : ndarray (cell, bin), float32
        See `sparse_nmf`.

    References
    ----------
    Mukamel et al. 2009, 10.1016/j.neuron.2009.08.009; the symmetric iteration after Hyvärinen 1999,
    10.1109/72.761722.

    Examples
    --------
    >>> frames = np.random.default_rng(0).normal(size=(200, 37, 53)).astype(np.float32)
    >>> frames[20:60:4, 9, 5:40] += 12
    >>> pca_ica(frames, 0, 0.15, 10)[0].shape
    (1, 37, 53)
    """
    reduced = _reduced(frames, n_components, smoothing)
    if reduced is None:
        return _nothing(frames)
    count = reduced.n_components
    bins, pixels = reduced.bins[:, :count], reduced.pixels[:, :count]
    rotation = _independent(bins, pixels / np.linalg.norm(pixels, axis=0), temporal_weight)
    supports = _supports(pixels @ rotation, reduced.field, SURE, min_pixels, connected, split=True)
    weigh = partial(_sparse_weights, noise=pixel_noise(frames).ravel(), sparsity=0.0)
    return _finished(frames, bins @ rotation, supports, min_pixels, threshold, weigh)


def activity_scores(traces: Floats) -> NDArray[np.float64]:
    """Return the root of the summed squared activity of traces beyond 3 sd of their noise, in sd.

    Parameters
    ----------
    traces : ndarray (cell, bin)
        Of zero median.

    Returns
    -------
    ndarray (cell,)
        0 for a trace without noise or of fewer than three bins.

    Examples
    --------
    >>> traces = np.random.default_rng(0).normal(size=(2, 900)).astype(np.float32)
    >>> traces[1, ::100] += 20
    >>> activity_scores(traces).round()
    array([ 3., 27.])
    """
    noise = pixel_noise(np.ascontiguousarray(traces.T)).astype(np.float64)
    relative = traces / np.where(noise > 0, noise, np.inf)[:, None]
    return np.asarray(np.sqrt(np.square(relative).sum(axis=1, where=relative > ACTIVE)))


# ------------------------------------------------------------------------------------- reduction


def _nothing(frames: Floats) -> tuple[Floats, Floats]:
    return np.zeros((0, *frames.shape[1:]), np.float32), np.zeros((0, len(frames)), np.float32)


def _reduced(frames: Floats, n_components: int, smoothing: float) -> _Reduced | None:
    """Reduce a patch to what stands out, and something to spare; None where that is nothing."""
    whitened = _whitened(frames, smoothing)
    if whitened is None:
        return None
    largest = min(len(frames), frames[0].size)
    flat = whitened.reshape(len(frames), -1)
    edge = 0.0 if n_components else _noise_edge(_noise_spectrum(whitened), len(frames))
    rank = min(largest, (n_components or 48) + SPARE)
    bins, values, pixels = _decomposed(flat, rank)
    while not n_components and rank < largest and values[-SPARE] > edge:
        rank = min(largest, 2 * rank)
        bins, values, pixels = _decomposed(flat, rank)
    count = n_components or int((values > edge).sum())
    count = min(count, int((values > 1e-5 * values[0]).sum()))
    return _Reduced(bins, pixels * values, count, frames.shape[1:]) if count else None


def _whitened(frames: Floats, smoothing: float) -> Floats | None:
    """Return smoothed frames in units of their noise; None where nothing changes."""
    smooth = ndimage.gaussian_filter(frames, smoothing, axes=(1, 2), mode="reflect", truncate=3.0)
    noise = pixel_noise(smooth)
    if not noise.any():
        return None
    smooth /= np.maximum(noise, 1e-3 * np.median(noise[noise > 0]))
    return smooth


def _decomposed(data: Floats, rank: int) -> tuple[Floats, Floats, Floats]:
    """Return the largest singular vectors and values of (bin, pixel), by random projections."""
    start = np.random.default_rng(0).standard_normal((data.shape[1], rank), np.float32)
    basis = np.linalg.qr(data @ start)[0]
    for _ in range(POWERS):
        basis = np.linalg.qr(data @ np.linalg.qr(data.T @ basis)[0])[0]
    pixels, values, rotation = np.linalg.svd(data.T @ basis, full_matrices=False)
    return np.ascontiguousarray(basis @ rotation.T), values, pixels


def _noise_spectrum(frames: Floats) -> NDArray[np.float64]:
    """Return the variance of the noise at each spatial frequency, (y, x), 1 where it is white.

    From second differences in time, the median over some frames, most of which hold no onset.
    """
    times = np.unique(np.linspace(1, len(frames) - 2, min(len(frames) - 2, 400)).astype(int))
    changes = frames[times] - np.float32(0.5) * (frames[times - 1] + frames[times + 1])
    power = np.abs(np.fft.fft2(changes, norm="ortho")) ** 2 / 1.5
    # a power has the distribution of an exponential: its mean is its median / ln 2
    median = np.median(power, axis=0) / np.log(2)
    return ndimage.gaussian_filter(median.astype(np.float64), 1.0, mode="wrap")


def _noise_edge(spectrum: NDArray[np.float64], n_bins: int) -> float:
    """Return the largest singular value that noise alone is likely to have.

    For white noise the limit of Marchenko and Pastur, sqrt(bins) + sqrt(pixels); for correlated
    noise that of Silverstein and Choi 1995, 10.1006/jmva.1995.1058.

    Parameters
    ----------
    spectrum : ndarray
        Variance of the noise along each of its principal directions in space.
    n_bins : int
        Samples in time, independent.

    Examples
    --------
    >>> round(_noise_edge(np.ones((37, 53)), 10**6) / (1000 + math.sqrt(37 * 53)), 2)
    1.05
    """
    h = spectrum.ravel() / spectrum.max()
    ratio = spectrum.size / n_bins

    def limit(m: float) -> float:
        return 1 / m + ratio * float(np.mean(h / (1 - h * m)))

    found = optimize.minimize_scalar(limit, bounds=(1e-6, 1 - 1e-9), method="bounded")
    pixels = float(h.sum()) ** 2 / float(h @ h)  # as many independent ones
    a, b = math.sqrt(n_bins), math.sqrt(pixels)
    spread = math.cbrt(1 / a + 1 / b) / (a + b)
    energy = n_bins * float(spectrum.max()) * float(found.fun)
    return MARGIN * math.sqrt(energy * (1 + TRACY_WIDOM * spread))


# --------------------------------------------------------------------------------- factorization


def _pure_traces(reduced: _Reduced) -> Floats:
    """Return the traces of pixels unlike each other, (bin, component), to start from.

    Each is that of the pixel with most of what those before it do not have: successive projection.
    """
    count = reduced.n_components
    left = reduced.pixels[:, :count].copy()
    traces = np.empty((len(reduced.bins), count), np.float32)
    for index in range(count):
        pixel = int(np.argmax(np.einsum("pr,pr->p", left, left)))
        direction = left[pixel] / max(float(np.linalg.norm(left[pixel])), 1e-30)
        left -= np.outer(left @ direction, direction)
        traces[:, index] = reduced.bins[:, :count] @ reduced.pixels[pixel, :count]
    traces = np.maximum(traces, 0)
    return np.asarray(traces / np.maximum(np.linalg.norm(traces, axis=0), 1e-30))


def _gram(columns: Floats) -> Floats:
    return np.asarray(columns.T @ columns, np.float32)


def _balanced(traces: Floats, images: Floats) -> tuple[Floats, Floats]:
    """Give traces unit norm, so that images are in units of the noise of their pixels."""
    norms = np.maximum(np.linalg.norm(traces, axis=0), 1e-30)
    return traces / norms, images * norms


@njit(nogil=True, cache=True, error_model="numpy")
def _descend(products, gram, weights):  # type: ignore[no-untyped-def]
    """Improve each row's non-negative weights, one component after the other, in place."""
    count = len(gram)
    slopes = np.empty(count, np.float32)
    for row in range(len(weights)):
        slopes[:] = products[row]
        for k in range(count):
            if weights[row, k] != 0:
                for j in range(count):
                    slopes[j] -= gram[k, j] * weights[row, k]
        for k in range(count):
            if gram[k, k] <= 0:
                continue
            new = max(np.float32(0), weights[row, k] + slopes[k] / gram[k, k])
            step = new - weights[row, k]
            if step != 0:
                weights[row, k] = new
                for j in range(count):
                    slopes[j] -= gram[k, j] * step


@njit(nogil=True, cache=True, error_model="numpy")
def _descend_graph(products, gram, images, neighbours):  # type: ignore[no-untyped-def]
    """Improve images (pixel, component) in place; `neighbours` (9, y, x) as `_neighbours`."""
    height, width = neighbours.shape[1:]
    count = len(gram)
    slopes = np.empty(count, np.float32)
    for pixel in range(height * width):
        y, x = divmod(pixel, width)
        image = images[pixel]
        slopes[:] = products[pixel]
        for k in range(count):
            if image[k] != 0:
                for j in range(count):
                    slopes[j] -= gram[k, j] * image[k]
        degree = np.float32(1)
        for place in range(9):
            weight = neighbours[place, y, x]
            if weight > 0:
                degree += weight
                other = images[pixel + (place // 3 - 1) * width + place % 3 - 1]
                for k in range(count):
                    slopes[k] += gram[k, k] * weight * (other[k] - image[k])
        for k in range(count):
            if gram[k, k] > 0:
                step = max(-image[k], slopes[k] / (gram[k, k] * degree))
                image[k] += step
                for j in range(count):
                    slopes[j] -= gram[k, j] * step


def _neighbours(reduced: _Reduced) -> Floats:
    """Return the weight of each pixel's neighbour at (-1, -1), (-1, 0) ... (1, 1), (9, y, x).

    The cosine of the two pixels' signals in what stands out of the noise, 0 where it is negative
    or outside of the patch; a pixel's weights sum to at most 1.
    """
    signals = reduced.pixels[:, : reduced.n_components].reshape(*reduced.field, -1)
    signals = signals / np.maximum(np.linalg.norm(signals, axis=2, keepdims=True), 1e-30)
    padded = np.pad(signals, ((1, 1), (1, 1), (0, 0)))
    height, width = reduced.field
    weights = np.zeros((9, height, width), np.float32)
    for place in (0, 1, 2, 3, 5, 6, 7, 8):
        y, x = divmod(place, 3)
        cosine = np.einsum("yxr,yxr->yx", signals, padded[y : y + height, x : x + width])
        weights[place] = np.maximum(cosine, 0) / 8
    return weights


def _independent(bins: Floats, pixels: Floats, temporal_weight: float) -> Floats:
    """Return the rotation (component, component) that makes orthonormal columns most skewed.

    The skewness is the third moment of what is above zero, the median of the frames; being convex,
    it grows with each step, all components at once.
    """
    weights = (temporal_weight, 1 - temporal_weight)
    parts = [(w * len(x) ** 0.5, x) for w, x in zip(weights, (bins, pixels), strict=True)]
    rotation, before = np.eye(bins.shape[1], dtype=np.float32), 0.0
    for _ in range(ROTATIONS):
        rotated = [(weight, x, x @ rotation) for weight, x in parts]
        moments = sum(weight * np.sum(u**3, axis=0, dtype=np.float64) for weight, _, u in rotated)
        signs = np.where(moments < 0, -1, 1).astype(np.float32)
        slope = sum(w * (x.T @ np.square(np.maximum(u * signs, 0))) for w, x, u in rotated)
        skewness = float(np.sum(slope * rotation * signs, dtype=np.float64))
        if skewness < (1 + 1e-4) * before:
            break
        left, _, right = np.linalg.svd(slope)
        rotation, before = left @ right, skewness
    return np.asarray(rotation * signs)


# ------------------------------------------------------------------------------------ footprints


def _supports(
    images: Floats,
    field: tuple[int, int],
    sure: float,
    min_pixels: int,
    connected: bool,
    split: bool = False,
) -> list[tuple[int, NDArray[np.bool_]]]:
    """Return where each component is surely there, as its index and a mask (y, x).

    All large enough parts together; or only the heaviest, or each by itself, if `connected`.
    """
    supports: list[tuple[int, NDArray[np.bool_]]] = []
    for index, column in enumerate(images.T):
        image = column.reshape(field)
        labels, count = ndimage.label(image > max(EDGE * float(image.max()), sure, 0), TOUCHING)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        kept = np.flatnonzero(sizes[1:] >= min_pixels) + 1
        weights = ndimage.sum_labels(image, labels, kept)
        if connected and len(kept):
            kept = kept[weights >= (PART if split else 1) * weights.max()]
        groups = [[part] for part in kept] if connected else [kept]
        supports += [(index, np.isin(labels, group)) for group in groups if len(group)]
    return supports


def _finished(
    frames: Floats,
    traces: Floats,
    supports: list[tuple[int, NDArray[np.bool_]]],
    min_pixels: int,
    threshold: float,
    weigh: Callable[[Floats, Floats, NDArray[np.bool_]], sp.csc_array],
) -> tuple[Floats, Floats]:
    """Return footprints from the frames as they are, and their demixed traces, if active.

    `weigh` makes footprints from the products of pixels and traces, the Gram matrix of the traces
    and the supports (pixel, component).
    """
    if not supports:
        return _nothing(frames)
    flat = frames.reshape(len(frames), -1)
    inside = np.stack([mask.ravel() for _, mask in supports], axis=1)
    regressors = np.ascontiguousarray(traces[:, [index for index, _ in supports]])
    footprints = weigh(np.asarray(flat.T @ regressors), _gram(regressors), inside)
    footprints = unit(sp.csc_array(footprints * masks(footprints, EDGE)))
    footprints.eliminate_zeros()
    for _ in range(2):  # traces change when components are dropped
        demixed = demixed_traces(footprints, np.asarray(footprints.T @ flat.T))
        kept = activity_scores(demixed) >= threshold
        kept &= np.diff(footprints.indptr) >= min_pixels
        footprints = sp.csc_array(footprints[:, np.flatnonzero(kept)])
        demixed = demixed[kept]
    order = np.argsort(-np.linalg.norm(demixed, axis=1), kind="stable")
    images = footprints.toarray().T[order].reshape(-1, *frames.shape[1:])
    return np.ascontiguousarray(images, np.float32), demixed[order]


def _sparse_weights(
    products: Floats, gram: Floats, inside: NDArray[np.bool_], noise: Floats, sparsity: float
) -> sp.csc_array:
    """Return the best weights of the pixels that a sparse regression chooses.

    `noise` (pixel,) is in the unit of the products; traces are of unit norm.
    """
    sums, gram64 = sp.csc_array(np.where(inside, products, 0)), gram.astype(np.float64)
    if sparsity:
        penalty = sparsity * noise[sums.indices].astype(np.float64)
        sums = sp.csc_array(sums * (update_footprints(sums, gram64, penalty) > 0))
    return update_footprints(sums, gram64, np.zeros(sums.nnz))


def _smooth_weights(
    products: Floats,
    gram: Floats,
    inside: NDArray[np.bool_],
    noise: Floats,
    neighbours: Floats,
) -> sp.csc_array:
    """Return weights drawn to those of neighbours, in units of the noise."""
    images = np.zeros(products.shape, np.float32)
    relative = products / np.maximum(noise, 1e-3 * np.median(noise[noise > 0]))[:, None]
    for _ in range(SWEEPS):
        _descend_graph(relative, gram, images, neighbours)
    return sp.csc_array(np.where(inside, images * noise[:, None], 0))
