"""How well motion was corrected, judged without knowing the true motion."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import scipy.fft
import scipy.linalg
from dask.delayed import Delayed, delayed
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

__all__ = ["Measurements", "MotionQuality", "combine", "combine_lazily", "measure", "sampling"]

MAX_SAMPLES = 300
"""Sampled frames; more make the principal components no better, only slower."""

SAMPLE_PIXELS = 2**16
"""Pixels of a sampled frame at most, two bytes each: 500 of them are 66 MB."""

GRAM_PIXELS = 2**14
"""Pixels of a sampled frame for the principal components: motion is seen without fine detail."""

COMPONENTS = 30
EXTREME_PART = 0.2
"""Part of the frames at either end of a principal component."""

MIN_FRAMES = 10
"""Frames that principal motion takes, and that a group of frames for the optical flow has."""

MAX_GROUPS = 10

GRADIENT_SCALE = 0.7
"""Standard deviation of the Gaussian whose derivative is the gradient, px."""

FLOW_WINDOW = 31
"""Window of the optical flow, px of a sampled frame; half of it doubles the flow of noise."""

FLOW_MARGIN = 0.05
"""Part of the field left out at each border, where motion brings in what others did not see."""

SMOOTHING, CUTOFF, TAPER = 1.15, 0.25, 0.25
"""Smoothing, px, and highest frequency, 1/px, of the phase correlation; part that is faded out."""

FINE_STEPS, MAX_LAG = 20, 32
"""Steps of the fine search in a px, and largest lag, px of a sampled frame."""

STRIP = 16
"""Rows that are taken of all frames before the next rows, so that their sum stays in cache."""

FRAMES_PER_SUM = 2**15
"""Frames whose 16-bit values cannot overflow a sum of 32 bits."""

PARTS_AT_ONCE = 8
PIXELS_PER_PRODUCT = 2048
ROWS_PER_PRODUCT = 8
HALF_LIMIT = 6e4

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Measurements:
    """What is measured of one run of frames while they are in memory; see `measure`.

    Parameters
    ----------
    correlation : ndarray (n,), float32
        Correlation of each frame with the template.
    total : ndarray (y, x) or (z, y, x), float64
        Sum of the frames, in the movie's unit.
    n_frames : int
        Number of frames in `total`.
    sampled : ndarray (k, y', x'), float16
        Some of the frames, averaged over z and binned, less the template treated alike, in units
        of that template's standard deviation; so two bytes are enough for any type of movie.
    """

    correlation: Floats
    total: NDArray[np.float64]
    n_frames: int
    sampled: NDArray[np.float16]


@dataclass(frozen=True)
class MotionQuality:
    """How much motion is left in a movie; compare the corrected movie with the recorded one.

    Parameters
    ----------
    correlation : ndarray (time,), float32
        Pearson correlation of each frame with the template; higher is better.
    crispness : float
        Root mean square gradient of the mean image relative to its standard deviation, 1/px;
        higher is better, and 0 for a constant image.
    residual_flow : float
        Root mean square optical flow from the mean image to the means of consecutive groups of
        frames, px; lower is better. NaN if the recording is too short for two groups.
    principal_motion : ndarray (component,), float32
        Distance between the two ends of each principal component, px, largest component first;
        lower is better. Empty if fewer than 10 frames were sampled.
    """

    correlation: Floats
    crispness: float
    residual_flow: float
    principal_motion: Floats


def sampling(n_frames: int) -> int:
    """Return the distance between sampled frames that gives at most 300 of them.

    Parameters
    ----------
    n_frames : int
        Frames of the whole movie.

    Examples
    --------
    >>> sampling(300), sampling(500), sampling(501), sampling(0)
    (1, 2, 2, 1)
    """
    return max(1, math.ceil(n_frames / MAX_SAMPLES))


def measure(frames: NDArray[Any], template: Floats, start: int, every: int) -> Measurements:
    """Measure one run of consecutive frames; the runs of a movie are then joined by `combine`.

    Parameters
    ----------
    frames : ndarray (n, y, x) or (n, z, y, x)
        Frames of any integer or floating type. A pixel that is not finite counts as the mean of
        its frame, or as 0 in a frame without any finite pixel.
    template : ndarray (y, x) or (z, y, x), float32
        What a frame without motion looks like, in the movie's unit. Pixels where it is not finite
        are left out of all measures.
    start : int
        Index of the first of the frames in the whole movie.
    every : int
        Frames whose index in the movie is a multiple of this are sampled; see `sampling`.

    Returns
    -------
    Measurements
        The correlation is Pearson's, of frame and template both binned 2 x 2 in (y, x), over the
        bins where all of the template is finite; 0 for a constant frame. Sampled frames are
        binned by the smallest whole factor that leaves at most 65,536 px.

    Raises
    ------
    ValueError
        If frames and template differ in shape.

    Notes
    -----
    Correlation with the template is a measure of Pnevmatikakis and Giovannucci (2017),
    `doi:10.1016/j.jneumeth.2017.07.031`; noise of single pixels lowers it less after binning.
    What is measured of a frame does not depend on the other frames of its run.

    Examples
    --------
    >>> scene = np.arange(37 * 53, dtype=np.uint16).reshape(37, 53)
    >>> frames = np.stack([scene, scene[::-1, ::-1], np.full_like(scene, 7)])
    >>> measured = measure(frames, scene.astype(np.float32), start=8, every=10)
    >>> measured.correlation.round(3).tolist(), len(measured.sampled)
    ([1.0, -1.0, 0.0], 1)
    """
    if frames.shape[1:] != template.shape or template.ndim not in (2, 3):
        raise ValueError(f"frames are {frames.shape}, but the template is {template.shape}")
    volumes = _filled(_as_volumes(frames))
    reference = _as_volumes(template[None])[0]
    correlation, total = _compare(volumes, reference)
    return Measurements(
        correlation,
        total.reshape(template.shape),
        len(frames),
        _sampled(volumes[-start % every :: every], reference),
    )


def combine_lazily(parts: Sequence[Delayed], template: Any) -> Delayed:
    """Return lazily what `combine` makes of lazy parts, few of which are in memory at a time.

    Parameters
    ----------
    parts : sequence of Delayed of Measurements
        In the order of the movie.
    template : ndarray or Delayed of ndarray
        As in `combine`.
    """
    parts = list(parts)
    while len(parts) > PARTS_AT_ONCE:  # a tree of fixed shape: the same rounding always
        runs = [parts[i : i + PARTS_AT_ONCE] for i in range(0, len(parts), PARTS_AT_ONCE)]
        parts = [delayed(_merged, pure=True)(run) for run in runs]
    return delayed(combine, pure=True)(parts, template)


def _merged(parts: list[Measurements]) -> Measurements:
    """Return the measurements of consecutive runs as those of one."""
    return Measurements(
        correlation=np.concatenate([part.correlation for part in parts]),
        total=np.sum([part.total for part in parts], axis=0),
        n_frames=sum(part.n_frames for part in parts),
        sampled=np.concatenate([part.sampled for part in parts]),
    )


def combine(parts: list[Measurements], template: Floats) -> MotionQuality:
    """Judge a movie by what was measured of its runs of frames.

    Parameters
    ----------
    parts : list of Measurements
        What `measure` gave for each run, in the order of time.
    template : ndarray (y, x) or (z, y, x), float32
        The template that `measure` was given.

    Returns
    -------
    MotionQuality
        See the notes for what each measure means.

    Raises
    ------
    ValueError
        If there are no parts.

    Notes
    -----
    *Crispness* is the norm of the gradient of the mean image (Pnevmatikakis and Giovannucci 2017,
    `doi:10.1016/j.jneumeth.2017.07.031`), here divided by the norm of the mean image less its
    mean, so that neither gain nor offset matters. The gradient in (y, x) is that of a Gaussian of
    0.7 px, which noise left in the mean of a short recording enters less than a difference of
    pixels; the norms are over the planes of a volume. Sharpening makes it larger too.

    *Residual flow* is the dense optical flow of Farneback (2003),
    `doi:10.1007/3-540-45103-X_50`, from the mean of all sampled frames to that of each of up to
    10 consecutive groups of at least 10. It sees slow motion, also where only a part of
    the field moves; motion within a group is averaged out. Noise alone gives 0.05 to 0.15 px of a
    sampled frame.

    *Principal motion* follows Pachitariu et al. (2017), `doi:10.1101/061507`: along each of the
    first 30 principal components over time, the mean of the fifth of the frames
    at one end is registered to that at the other end by phase correlation, the peak refined by a
    matrix product (Guizar-Sicairos et al. 2008, `doi:10.1364/OL.33.000156`) in steps of 0.05 px of
    a sampled frame. Motion, fast or slow, is a large part of the variance, so it lies in these
    components; those of activity give about 0.

    Flow and principal motion of a volume are those of the mean over z, and are in px of the full
    field. Needs, beyond the parts, less than 100 MB.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> scene = rng.normal(size=(37, 53)).cumsum(0).cumsum(1).astype(np.float32)
    >>> still = scene + rng.normal(size=(40, 37, 53)).astype(np.float32)
    >>> moved = np.stack([np.roll(frame, i % 3, axis=1) for i, frame in enumerate(still)])
    >>> judged = [combine([measure(frames, scene, 0, 1)], scene) for frames in (moved, still)]
    >>> [float(quality.principal_motion.max().round()) for quality in judged]
    [2.0, 0.0]
    """
    if not parts:
        raise ValueError("there is nothing measured to combine")
    total = sum((part.total for part in parts[1:]), parts[0].total.copy())
    mean = total / max(1, sum(part.n_frames for part in parts))
    flow, principal_motion = _motion_left([part.sampled for part in parts], template)
    return MotionQuality(
        np.concatenate([part.correlation for part in parts]),
        _crispness(mean, np.isfinite(template)),
        flow,
        principal_motion,
    )


# --------------------------------------------------------------------------------------- frames


def _as_volumes(frames: NDArray[Any]) -> NDArray[Any]:
    """Frames (n, z, y, x) in C order and in a type that Numba knows, z of 1 for a plane."""
    kind = frames.dtype.newbyteorder("=")
    if kind.kind == "b":
        kind = np.dtype(np.uint8)
    elif kind == np.float16:
        kind = np.dtype(np.float32)
    volumes = frames[:, None] if frames.ndim == 3 else frames
    return np.ascontiguousarray(volumes, dtype=kind)


def _filled(volumes: NDArray[Any]) -> NDArray[Any]:
    """Values that are not finite replaced by the mean of their frame; a copy if there are any."""
    if volumes.dtype.kind != "f":
        return volumes
    with np.errstate(all="ignore"):
        unsafe = [i for i, volume in enumerate(volumes) if not np.isfinite(volume.sum())]
    volumes = volumes.copy() if unsafe else volumes
    for volume in (volumes[i] for i in unsafe):
        finite = np.isfinite(volume)
        volume[~finite] = volume[finite].mean(dtype=np.float64) if finite.any() else 0
    return volumes


def _compare(volumes: NDArray[Any], template: Floats) -> tuple[Floats, NDArray[np.float64]]:
    """Correlation (n,) of each frame with the template, and the sum (z, y, x) of the frames."""
    small = volumes.dtype.kind in "iu" and volumes.dtype.itemsize <= 2
    weights, pattern = _pattern(template, np.float32 if small else np.float64)
    levels = 4 * _levels(volumes).astype(pattern.dtype)
    sums, total = np.zeros((len(volumes), 3)), np.zeros(template.shape)
    strip = np.zeros((STRIP, template.shape[2]), np.int32 if small else np.float64)
    for first in range(0, len(volumes), FRAMES_PER_SUM):
        run = slice(first, first + FRAMES_PER_SUM)
        _add_products(volumes[run], levels[run], weights, pattern, strip, total, sums[run])
    variance = sums[:, 1] - sums[:, 0] ** 2 / max(1, int(np.count_nonzero(weights)))
    varies = variance > 0
    correlation = np.where(varies, sums[:, 2], 0) / np.sqrt(np.where(varies, variance, 1))
    return correlation.clip(-1, 1).astype(np.float32), total


def _pattern(template: Floats, kind: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weights 0 or 1 of the bins of 2 x 2 px, and the template there with mean 0 and norm 1."""
    odd = [(0, 0), *((0, n % 2) for n in template.shape[1:])]
    doubled = np.pad(template.astype(np.float64), odd, mode="edge")
    rows = doubled[:, ::2] + doubled[:, 1::2]
    bins = rows[..., ::2] + rows[..., 1::2]
    seen = np.isfinite(bins)
    pattern = np.where(seen, bins, 0)
    pattern[seen] -= pattern[seen].mean() if seen.any() else 0
    norm = float(np.linalg.norm(pattern))
    constant = norm <= 1e-6 * np.abs(bins[seen]).max(initial=0)
    return seen.astype(kind), (pattern * (0 if constant else 1 / norm)).astype(kind)


def _levels(volumes: NDArray[Any]) -> NDArray[Any]:
    """A value from the middle of each frame's values, so that their squares stay exact."""
    y, x = (((np.arange(5) + 0.5) / 5 * n).astype(int) for n in volumes.shape[2:])
    some = volumes[:, volumes.shape[1] // 2, y[:, None], x]
    middle: NDArray[Any] = np.sort(some.reshape(len(volumes), 25), axis=1)[:, 12]
    return middle.astype(np.float64)


@njit(nogil=True, cache=True)
def _add_products(frames, levels, weights, pattern, strip, total, sums):  # type: ignore[no-untyped-def]
    """Add each frame's sum, sum of squares and product with the pattern, and the frames' sum."""
    n, n_planes, height = frames.shape[:3]
    line = np.empty(2 * pattern.shape[2], pattern.dtype)
    for z in range(n_planes):
        for top in range(0, height, len(strip)):
            bottom = min(top + len(strip), height)
            strip[:] = 0
            for i in range(n):
                for y in range(top, bottom, 2):
                    below = min(y + 1, height - 1)
                    _add_row(frames[i, z, y], strip[y - top])
                    if below > y:
                        _add_row(frames[i, z, below], strip[below - top])
                    _add_rows(frames[i, z, y], frames[i, z, below], line)
                    seen, row = weights[z, y // 2], pattern[z, y // 2]
                    plain, square, product = _row_products(line, levels[i], seen, row)
                    sums[i, 0] += plain
                    sums[i, 1] += square
                    sums[i, 2] += product
            for y in range(top, bottom):
                _add_row(strip[y - top], total[z, y])


@njit(nogil=True, cache=True)
def _add_row(row, out):  # type: ignore[no-untyped-def]
    kind = out.dtype.type
    for x in range(len(out)):
        out[x] += kind(row[x])


@njit(nogil=True, cache=True)
def _add_rows(a, b, out):  # type: ignore[no-untyped-def]
    """Sum of two rows, the last px twice if their number is odd."""
    real = out.dtype.type
    for x in range(len(a)):
        out[x] = real(a[x]) + real(b[x])
    out[-1] = out[len(a) - 1]


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _row_products(line, level, weights, pattern):  # type: ignore[no-untyped-def]
    """Sum, sum of squares and product with the pattern of pairs of px, less a level."""
    real = line.dtype.type
    plain, square, product = real(0), real(0), real(0)
    for x in range(len(pattern)):
        value = (line[2 * x] + line[2 * x + 1] - level) * weights[x]
        plain += value
        square += value * value
        product += value * pattern[x]
    return plain, square, product


# -------------------------------------------------------------------------------------- sampled


def _factors(field: tuple[int, ...], pixels: int) -> tuple[int, int]:
    """Smallest whole factor (y, x) that leaves at most so many px, no larger than the field."""
    height, width = field[-2:]
    factor = 1
    while (height // min(factor, height)) * (width // min(factor, width)) > pixels:
        factor += 1
    return min(factor, height), min(factor, width)


def _sampled(volumes: NDArray[Any], template: Floats) -> NDArray[np.float16]:
    """Binned frames (k, y', x') less the binned template, in units of its standard deviation."""
    image, seen, unit = _binned_template(template)
    binned = _bin(np.ascontiguousarray(volumes), *_factors(template.shape, SAMPLE_PIXELS))
    binned -= image
    binned *= np.float32(1 / unit)
    binned[:, ~seen] = 0
    np.clip(binned, -HALF_LIMIT, HALF_LIMIT, out=binned)
    sampled: NDArray[np.float16] = binned.astype(np.float16)
    return sampled


def _binned_template(template: Floats) -> tuple[Floats, NDArray[np.bool_], float]:
    """Template (y', x') as the sampled frames are binned, where it is finite, and their unit."""
    binned = _bin(template[None], *_factors(template.shape, SAMPLE_PIXELS))[0]
    seen = np.isfinite(binned)
    level = binned[seen].mean(dtype=np.float64) if seen.any() else 0.0
    unit = float(binned[seen].std(dtype=np.float64)) if seen.any() else 0.0
    return np.where(seen, binned, np.float32(level)), seen, unit if unit > 0 else 1.0


@njit(nogil=True, cache=True)
def _bin(frames, factor_y, factor_x):  # type: ignore[no-untyped-def]
    """Means (n, y', x') over z and bins of whole px; what is left over at the ends is dropped."""
    n, n_planes, height, width = frames.shape
    out = np.zeros((n, height // factor_y, width // factor_x), np.float32)
    line = np.empty(width, np.float32)
    scale = np.float32(1 / (n_planes * factor_y * factor_x))
    for i in range(n):
        for row in range(out.shape[1]):
            line[:] = 0
            for z in range(n_planes):
                for y in range(row * factor_y, (row + 1) * factor_y):
                    _add_row(frames[i, z, y], line)
            if factor_x == 2:
                _add_pairs(line, out[i, row])
            else:
                for x in range(factor_x):
                    _add_row(line[x::factor_x], out[i, row])
            out[i, row] *= scale
    return out


@njit(nogil=True, cache=True)
def _add_pairs(row, out):  # type: ignore[no-untyped-def]
    for x in range(len(out)):
        out[x] += row[2 * x] + row[2 * x + 1]


# ------------------------------------------------------------------------------------- measures


def _crispness(mean: NDArray[np.float64], seen: NDArray[np.bool_]) -> float:
    """Norm of the gradient relative to that of the image less its mean, where it was seen."""
    steepness, contrast = 0.0, 0.0
    for image, mask in zip(_planes(mean), _planes(seen), strict=True):
        if mask.any():
            plane = np.where(mask, image - image[mask].mean(), np.nan)
            gradients = [gaussian_filter(plane, GRADIENT_SCALE, each) for each in ((1, 0), (0, 1))]
            known = np.isfinite(sum(gradients, plane))
            steepness += sum(float((each[known] ** 2).sum()) for each in gradients)
            contrast += float((plane[known] ** 2).sum())
    return math.sqrt(steepness / contrast) if contrast > 0 else 0.0


def _planes(image: NDArray[Any]) -> NDArray[Any]:
    return image.reshape(-1, *image.shape[-2:])


def _motion_left(sampled: list[NDArray[np.float16]], template: Floats) -> tuple[float, Floats]:
    """Optical flow, px, and principal motion (component,), px, of the sampled frames."""
    n, reference = sum(map(len, sampled)), _as_volumes(template[None])[0]
    image, seen, unit = _binned_template(reference)
    groups, ends = _group_weights(n), _end_weights(sampled)
    means = _means(sampled, np.concatenate([groups, ends]))
    means *= np.float32(unit)
    means += image
    factors = np.array(_factors(reference.shape, SAMPLE_PIXELS))
    flow = _flow(means[: len(groups)], seen, factors)
    extremes = means[len(groups) :].reshape(len(ends) // 2, 2, *image.shape)
    moved = [np.hypot(*(factors * _displacement(low, high))) for low, high in extremes]
    return flow, np.array(moved, np.float32)


def _group_weights(n: int) -> Floats:
    """Weights (1 + group, frame) of the mean of all and of consecutive groups; or no group."""
    groups = np.array_split(np.arange(n), min(MAX_GROUPS, n // MIN_FRAMES) or 1)
    chosen = [np.arange(n), *groups] if len(groups) > 1 else []
    weights = np.zeros((len(chosen), n), np.float32)
    for row, frames in zip(weights, chosen, strict=True):
        row[frames] = 1 / len(frames)
    return weights


def _end_weights(sampled: list[NDArray[np.float16]]) -> Floats:
    """Weights (2 * component, frame) of the means at the two ends of the principal components."""
    n = sum(map(len, sampled))
    n_components = min(COMPONENTS, n - 1) if n >= MIN_FRAMES else 0
    weights = np.zeros((n_components, 2, n), np.float32)
    if n_components:
        last = (n - n_components, n - 1)
        _, scores = scipy.linalg.eigh(_gram(sampled), subset_by_index=last, check_finite=False)
        size = max(1, int(EXTREME_PART * n))
        for component, order in enumerate(np.argsort(scores[:, ::-1].T, kind="stable")):
            weights[component, 0, order[:size]] = 1 / size
            weights[component, 1, order[-size:]] = 1 / size
    return weights.reshape(2 * n_components, n)


def _gram(sampled: list[NDArray[np.float16]]) -> NDArray[np.float64]:
    """Products (frame, frame) of the sampled frames less their mean, over coarser bins."""
    factors = _factors(sampled[0].shape, GRAM_PIXELS)
    n = sum(map(len, sampled))
    gram = np.zeros((n, n))
    for rows in _row_strips(sampled[0].shape[1], factors[0]):
        strip = np.concatenate([part[:, None, rows].astype(np.float32) for part in sampled])
        pixels = _bin(strip, *factors).reshape(len(strip), -1)
        gram += pixels @ pixels.T
    gram -= gram.mean(axis=0)
    gram -= gram.mean(axis=1, keepdims=True)
    return gram


def _row_strips(height: int, factor: int) -> Iterator[slice]:
    """Cut the rows into strips of whole bins."""
    size = factor * max(1, ROWS_PER_PRODUCT // factor)
    stop = height - height % factor
    return (slice(start, min(start + size, stop)) for start in range(0, stop, size))


def _means(sampled: list[NDArray[np.float16]], weights: Floats) -> Floats:
    """Weighted sums (weight, y', x') of the sampled frames."""
    field = sampled[0].shape[1:]
    flat = [part.reshape(len(part), math.prod(field)) for part in sampled]
    sums = np.empty((len(weights), field[0] * field[1]), np.float32)
    for strip in _strips(sums.shape[1], PIXELS_PER_PRODUCT):
        pixels = np.concatenate([part[:, strip] for part in flat], dtype=np.float32)
        sums[:, strip] = weights @ pixels
    return sums.reshape(len(weights), *field)


def _strips(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _flow(means: Floats, seen: NDArray[np.bool_], factors: NDArray[np.int64]) -> float:
    """Root mean square flow, px, from the first image to the others; NaN without others."""
    inner = tuple(slice(int(FLOW_MARGIN * n), n - int(FLOW_MARGIN * n)) for n in seen.shape)
    if len(means) < 2 or not seen[inner].any():
        return math.nan
    first, *others = (_contrasted(image, seen) for image in means)
    squares = []
    for image in others:
        flow = cv2.calcOpticalFlowFarneback(
            first, image, None, 0.5, 2, FLOW_WINDOW, 3, 5, 1.1, 0
        )  # scale and levels of the pyramid, window, iterations, px and sigma of the polynomials
        moved = flow[inner][seen[inner]] * factors[::-1]
        squares.append(np.mean(np.sum(moved**2, axis=-1)))
    return float(np.sqrt(np.mean(squares)))


def _contrasted(image: Floats, seen: NDArray[np.bool_]) -> Floats:
    """Image of the mean and contrast of a usual picture of 8 bits."""
    level, spread = image[seen].mean(dtype=np.float64), image[seen].std(dtype=np.float64)
    scaled = (image - level) * (50 / spread if spread > 0 else 0) + 128
    return np.where(seen, scaled, 128).astype(np.float32)


def _displacement(low: Floats, high: Floats) -> NDArray[np.float64]:
    """Place (y, x) of the highest phase correlation, px: what must be added to `low`."""
    shape = low.shape
    taper = np.outer(*(_taper(n) for n in shape))
    product = _spectrum(high, taper) * _spectrum(low, taper).conj()
    frequencies = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    squared = frequencies[0] ** 2 + frequencies[1] ** 2
    power = np.abs(product)
    product /= np.where(power > 0, power, 1)
    product *= np.exp(-2 * (np.pi * SMOOTHING) ** 2 * squared) * (squared < CUTOFF**2)
    if not product.any():
        return np.zeros(2)
    lags = [np.arange(-_max_lag(n), _max_lag(n) + 1) for n in shape]
    coarse = scipy.fft.irfft2(product, shape, workers=1)[np.ix_(lags[0], lags[1])]
    peak = np.unravel_index(np.argmax(coarse), coarse.shape)
    steps = np.arange(-FINE_STEPS, FINE_STEPS + 1) / FINE_STEPS
    near = [lag[i] + steps * (len(lag) > 1) for lag, i in zip(lags, peak, strict=True)]
    fine = _correlation(product, frequencies, near)
    i, j = np.unravel_index(np.argmax(fine), fine.shape)
    return np.array([near[0][i], near[1][j]])


def _correlation(
    product: NDArray[Any], frequencies: tuple[Any, Any], lags: list[NDArray[Any]]
) -> NDArray[np.float64]:
    """Inverse Fourier transform (y, x) of a half spectrum at any lags, up to a factor."""
    rows = np.exp(2j * np.pi * frequencies[0].T * lags[0][:, None])
    columns = np.exp(2j * np.pi * frequencies[1].T * lags[1])
    columns[1:] *= 2
    correlation: NDArray[np.float64] = (rows @ product @ columns).real
    return correlation


def _max_lag(n: int) -> int:
    return min(MAX_LAG, n // 4)


def _taper(n: int) -> NDArray[np.float64]:
    """Weights 0 to 1 that fade out over a part of either end as a raised cosine."""
    distance = (np.minimum(np.arange(n), np.arange(n)[::-1]) + 0.5) / (TAPER * n)
    return 0.5 - 0.5 * np.cos(np.pi * np.minimum(distance, 1))


def _spectrum(image: Floats, taper: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Half spectrum of an image less its weighted mean, faded out to the borders."""
    level = np.average(image, weights=taper)
    spectrum: NDArray[np.complex128] = scipy.fft.rfft2((image - level) * taper, workers=1)
    return spectrum
