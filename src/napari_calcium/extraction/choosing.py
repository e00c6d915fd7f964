"""Choosing the parameters of source extraction from one outlined cell or from an image.

The radius of a cell is what everything else follows from. A person outlines one cell, or it is
guessed from the blobs of the correlation image; patch size and overlap are multiples of it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, special

from napari_calcium.errors import InputError
from napari_calcium.extraction.parameters import SourceExtractionParameters
from napari_calcium.extraction.patches import cut

__all__ = [
    "Proposal",
    "Tile",
    "guess_radius",
    "propose_from_image",
    "propose_from_outline",
    "quilt",
]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

PATCH_IN_RADII = 12.8  # 64 px for cells of 5 px
OVERLAP_IN_RADII = 4.0
PATCH_STEP, SMALLEST_PATCH, LARGEST_PATCH = 4, 32, 256  # px

SMALLEST_DISC, LARGEST_DISC = 2.0, 32.0  # px
PER_OCTAVE = 6  # radii between one and its double
LARGEST_IMAGE = 1024  # px along each axis
RADII_IN_FIELD = 5  # no disc is tried of which fewer fit side by side
SHARPNESS = 0.7  # contrast times radius to this power is largest at the cell's edge
ROUND = 0.5  # least over largest fall of the contrast around a blob, of four directions
FAINTEST, FAINT, CERTAIN = 3.0, 4.0, 6.0  # sd; noise alone reached 5.4
UNLIKELY = 3.2  # sd; excess of bright over dark blobs that noise has once in some hundred images
LIKENESS = 0.2  # radii that differ by so much, in logarithms, may be of the same kind of cell
STRONG = 0.2  # blobs with this part of the third strongest's contrast vote
FULLNESS = 0.84  # radius of a cell over that of the disc that fits its irregular shape best


@dataclass(frozen=True)
class Proposal:
    """Parameters of source extraction that fit the cells of a recording.

    Parameters
    ----------
    cell_radius : float
        Radius of a typical cell, px. CaImAn: gSig; Suite2p: diameter / 2.
    patch_size : int
        Side of a patch without its overlap, px; the field is cut evenly, so patches may be a
        little smaller. CaImAn: 2 rf less the overlap.
    patch_overlap : int
        What is added to a patch on each side, px. CaImAn: half of stride.
    field : tuple of int
        Field of view, (y, x), px.
    pixel_size : float
        Length of a pixel's side, um; 0 where unknown.
    source : {"outline", "image"}
        What the radius was taken from.

    Examples
    --------
    >>> proposal = Proposal(5.2, 68, 21, (320, 256), 0.87, "outline")
    >>> print(proposal.text)
    Cells of 5.2 px (4.5 um) radius. Patches of 68 px (59 um) every 68 px with 21 px (18 um) around
    each, fitted to the field: 5 x 4 patches.
    >>> proposal.in_um()["cell_radius"]
    4.524
    """

    cell_radius: float
    patch_size: int
    patch_overlap: int
    field: tuple[int, int]
    pixel_size: float
    source: Literal["outline", "image"]

    @property
    def stride(self) -> int:
        """Distance between the starts of neighbouring patches, px: their size, as cores abut."""
        return self.patch_size

    @property
    def n_patches(self) -> tuple[int, int]:
        """Number of patches along y and x."""
        rows, columns = (-(-n // self.patch_size) for n in self.field)
        return rows, columns

    @property
    def text(self) -> str:
        """The proposal in two sentences, for the window and the command line."""
        size, overlap = self._length(self.patch_size, 0), self._length(self.patch_overlap, 0)
        cells = f"Cells of {self._length(self.cell_radius, 1)} radius."
        if self.n_patches == (1, 1):
            return f"{cells} One patch of up to {size}: the whole field."
        return (
            f"{cells} Patches of {size} every {self.stride} px with {overlap} around each, "
            f"fitted to the field: {self.n_patches[0]} x {self.n_patches[1]} patches."
        )

    def in_um(self) -> dict[str, float]:
        """Return radius, patch size, overlap and stride in um; NaN where that is unknown."""
        scale = self.pixel_size or math.nan
        lengths = {**self.to_mapping(), "stride": self.stride}
        return {name: length * scale for name, length in lengths.items()}

    def to_mapping(self) -> dict[str, Any]:
        """Return the parameters of source extraction, px."""
        return {
            "cell_radius": self.cell_radius,
            "patch_size": self.patch_size,
            "patch_overlap": self.patch_overlap,
        }

    def _length(self, length: float, digits: int) -> str:
        px = f"{length:.{digits}f} px"
        return f"{px} ({length * self.pixel_size:.{digits}f} um)" if self.pixel_size else px


class Tile(NamedTuple):
    """Corners of a patch, (4, 2) each, (y, x) px: its core, and the core with its overlap."""

    core: Doubles
    halo: Doubles


def propose_from_outline(
    outline: ArrayLike, field: tuple[int, int], pixel_size: float = 0.0
) -> Proposal:
    """Propose parameters from one cell that a person outlined.

    Parameters
    ----------
    outline : array_like (point, 2)
        Polygon, (y, x) px, open or closed; of an ellipse its outline, not the corners of its box.
    field : tuple of int
        Field of view, (y, x), px.
    pixel_size : float, optional
        Length of a pixel's side, um; 0 where unknown.

    Returns
    -------
    Proposal
        Its cells have the radius of the disc of the outline's area.

    Raises
    ------
    InputError
        If the outline has fewer than three points or no area, lies outside of the field, or is
        too small or too large for a cell.

    Examples
    --------
    >>> angle = np.linspace(0, 2 * np.pi, 50)
    >>> outline = np.stack([18 + 5 * np.sin(angle), 30 + 5 * np.cos(angle)], axis=1)
    >>> propose_from_outline(outline, (128, 170)).to_mapping()
    {'cell_radius': 4.99, 'patch_size': 64, 'patch_overlap': 20}
    """
    points = _points(outline)
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    if (middle < -0.5).any() or (middle > np.array(field) - 0.5).any():
        raise InputError(
            f"the outline is around y {middle[0]:.0f}, x {middle[1]:.0f} px, outside of the field "
            f"of {field[0]} x {field[1]} px; outline a cell inside it"
        )
    y, x = (points - middle).T
    area = 0.5 * abs(float(y @ np.roll(x, -1) - x @ np.roll(y, -1)))
    if area < 1e-6:
        raise InputError("the outline has no area; draw a line around one cell")
    radius = math.sqrt(area / math.pi)
    _check_radius(radius, field)
    return _proposal(radius, field, pixel_size, "outline")


def propose_from_image(image: NDArray[Any], pixel_size: float = 0.0) -> Proposal:
    """Propose parameters from the blobs of an image.

    Parameters
    ----------
    image : ndarray (y, x)
        Correlation image, or another in which cells are bright; see `guess_radius`.
    pixel_size : float, optional
        Length of a pixel's side, um; 0 where unknown.

    Raises
    ------
    InputError
        If no cells can be told in the image.
    """
    field = (int(image.shape[0]), int(image.shape[1]))
    return _proposal(guess_radius(image), field, pixel_size, "image")


def quilt(field: tuple[int, int], patch_size: int, patch_overlap: int) -> list[Tile]:
    """Return the patches in which cells are searched, as rectangles to draw over the image.

    Parameters
    ----------
    field : tuple of int
        Field of view, (y, x), px.
    patch_size, patch_overlap : int
        See `Proposal`.

    Returns
    -------
    list of Tile
        Row by row; in coordinates in which a pixel's centre is an integer, so that the field's
        edges are at -0.5 and its size less 0.5.

    Examples
    --------
    >>> first, second = quilt((37, 54), 40, 4)
    >>> second.core.tolist()
    [[-0.5, 26.5], [-0.5, 53.5], [36.5, 53.5], [36.5, 26.5]]
    >>> second.halo[0].tolist()
    [-0.5, 22.5]
    """
    patches = cut(field, patch_size, patch_overlap)
    return [Tile(_corners(patch.core), _corners(patch.halo)) for patch in patches]


def guess_radius(image: NDArray[Any]) -> float:
    """Guess the radius of the cells from an image in which they are bright.

    Discs of all radii are laid everywhere. There is a blob where the contrast of a disc with the
    ring of the same area around it is largest over place and radius. It counts if it is round and
    stands out from the noise. Among the strongest blobs the radius on which most agree is taken,
    so that neither specks of dendrites nor what is blurred below the plane outvotes the cells.

    Parameters
    ----------
    image : ndarray (y, x)
        Correlation image, or mean or standard deviation; NaN counts as the median.

    Returns
    -------
    float
        Radius, px, about that of the disc of a cell's area; 1.8 to 25 px, and no more than a
        sixth of the field.

    Raises
    ------
    InputError
        If neither one blob stands out beyond all doubt, nor the strongest are bright far more often
        than dark, which in noise are as many.

    Notes
    -----
    Maxima over place and scale after Lindeberg 1998, 10.1023/A:1008045108935, with discs in place
    of Laplacians of Gaussians: their response is sharper and they do not see the hole that a dark
    nucleus leaves.

    Examples
    --------
    >>> y, x = np.mgrid[:96, :128]
    >>> discs = ((y % 32 - 16) ** 2 + (x % 32 - 16) ** 2 < 6**2) * 1.0
    >>> 4.5 < guess_radius(discs + 0.1 * np.random.default_rng(0).normal(size=(96, 128))) < 6.5
    True
    """
    radii, contrast = _disc_contrast(_filled(_middle(image)))
    if len(radii) < 3:
        raise _cannot_tell()
    sd = _spread(contrast)
    bright, dark = (_apart(_blobs(values, sd, radii)) for values in (contrast, -contrast))
    floor = min(float(dark.height.max(initial=FAINTEST)), FAINT)
    blobs = bright.where(bright.height > floor)
    is_certain = blobs.height.max(initial=0) >= CERTAIN or _excess(bright, dark) >= UNLIKELY
    if not len(blobs.height) or not is_certain:
        raise _cannot_tell()
    third = np.sort(blobs.strength)[-3:][0]
    voters = blobs.where(blobs.strength >= STRONG * third)
    return FULLNESS * _most_common(voters.radius)


# ----------------------------------------------------------------------------- what follows


def _proposal(
    radius: float, field: tuple[int, int], pixel_size: float, source: Literal["outline", "image"]
) -> Proposal:
    """Return patches that suit cells of a radius.

    A cell is searched in the patch whose core holds its centre, on the core and its overlap. The
    surround that is taken off reaches over 2.5 radii (sd) and a footprint over 2, so an overlap of
    4 radii leaves a cell at the core's edge as it would be in its middle. The overlap is searched
    again by each neighbour: with cores of 8 radii four times the field is worked through, with 12.8
    it is 2.6 times, with 25 still 1.7 times. Larger cores save little more while a task's memory
    grows with their area, so they end at 256 px (or twice the overlap) and at the field.
    """
    if not 0 <= pixel_size < math.inf:
        raise InputError(f"pixel_size is {pixel_size:g} um; give a length above 0, or 0 if unknown")
    overlap = math.ceil(OVERLAP_IN_RADII * radius - 1e-9)
    size = PATCH_STEP * round(PATCH_IN_RADII * radius / PATCH_STEP)
    size = max(min(max(size, SMALLEST_PATCH), LARGEST_PATCH), 2 * overlap)
    return Proposal(
        round(radius, 2), min(size, max(field)), overlap, field, float(pixel_size), source
    )


def _check_radius(radius: float, field: tuple[int, int]) -> None:
    """Raise `InputError` if no cell of the field can have this radius."""
    low, high = _bounds()
    if 2 * radius > min(field):
        raise InputError(
            f"the outline is as large as a disc of {radius:.1f} px radius but the field is only "
            f"{field[0]} x {field[1]} px; outline one cell"
        )
    if not low <= radius <= high:
        raise InputError(
            f"the outline is as large as a disc of {radius:.1f} px radius, but cells must have "
            f"{low:g} to {high:g} px; outline one whole cell"
        )


def _bounds() -> tuple[float, float]:
    """Return the smallest and the largest radius that source extraction takes."""
    known = {parameter.name: parameter for parameter in SourceExtractionParameters.describe()}
    radius = known["cell_radius"]
    assert radius.minimum is not None
    assert radius.maximum is not None
    return radius.minimum, radius.maximum


def _points(outline: ArrayLike) -> Doubles:
    points = np.asarray(outline, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise InputError(
            f"the outline has the shape {points.shape} or is not finite; give points (y, x) in px"
        )
    if len(points) < 3:
        raise InputError(f"the outline has {len(points)} points; draw at least 3 around one cell")
    return points


def _corners(box: tuple[slice, slice]) -> Doubles:
    rows, columns = box
    top, bottom, left, right = rows.start, rows.stop, columns.start, columns.stop
    return np.array([[top, left], [top, right], [bottom, right], [bottom, left]]) - 0.5


# ------------------------------------------------------------------------------------ blobs


class Blobs(NamedTuple):
    """Round blobs, strongest first: radius, place, contrast times a power of it, and that in sd."""

    radius: Doubles
    y: Integers
    x: Integers
    strength: Doubles
    height: Doubles

    def where(self, which: NDArray[Any]) -> Blobs:
        """Return some of the blobs."""
        return Blobs(*(values[which] for values in self))


def _cannot_tell() -> InputError:
    return InputError("no cells stand out from the image's noise; outline one cell by hand instead")


def _middle(image: NDArray[Any]) -> NDArray[Any]:
    """Return the middle of a large image: it has cells enough, and memory stays bounded."""
    if image.ndim != 2:
        raise ValueError(f"the image has {image.ndim} axes; it must have two, (y, x)")
    y, x = (max(0, (n - LARGEST_IMAGE) // 2) for n in image.shape)
    return image[y : y + LARGEST_IMAGE, x : x + LARGEST_IMAGE]


def _filled(image: NDArray[Any]) -> Floats:
    """Return the image less its median, which stands for NaN; largest magnitude 1."""
    values = np.array(image, dtype=np.float64)
    known = np.isfinite(values)
    if not known.any():
        raise _cannot_tell()
    values[~known] = np.median(values[known])
    values -= np.median(values)
    largest = float(np.abs(values).max())
    if largest == 0:
        raise _cannot_tell()
    return (values / largest).astype(np.float32)


def _disc_contrast(image: Floats) -> tuple[Doubles, Floats]:
    """Return radii and, for each, the contrast (radius, y, x) of discs with rings of their area."""
    largest = min(LARGEST_DISC, min(image.shape) / RADII_IN_FIELD)
    steps = int(PER_OCTAVE * math.log2(max(largest / SMALLEST_DISC, 1)) + 1e-9) + 1
    half = PER_OCTAVE // 2  # a disc that is larger by the square root of 2 has twice the area
    radii = SMALLEST_DISC * 2 ** (np.arange(steps + half) / PER_OCTAVE)
    means = _disc_means(image, radii)
    return radii[:steps], 2 * (means[:-half] - means[half:])


def _disc_means(image: Floats, radii: Doubles) -> Floats:
    """Return means over discs around every pixel (radius, y, x); mirrored at the borders."""
    margin = math.ceil(radii[-1])
    padded = np.pad(image, margin, mode="symmetric")
    size = [fft.next_fast_len(n, real=True) for n in padded.shape]
    spectrum = fft.rfft2(padded, size)
    rows = np.abs(np.rint(fft.fftfreq(size[0]) * size[0])).astype(np.int64)
    frequency = np.hypot(np.arange(rows.max() + 1)[:, None] / size[0], fft.rfftfreq(size[1]))
    phase = (2 * np.pi * frequency).astype(np.float32)
    height, width = image.shape
    means = np.empty((len(radii), height, width), np.float32)
    for radius, mean in zip(radii.astype(np.float32), means, strict=True):
        full = fft.irfft2(spectrum * _disc_spectrum(phase * radius)[rows], size)
        mean[:] = full[margin : margin + height, margin : margin + width]
    return means


def _disc_spectrum(phase: Floats) -> Floats:
    """Return the Fourier transform of a disc, at angular frequency times radius."""
    phase = np.maximum(phase, np.float32(1e-4))
    return np.asarray(2 * special.j1(phase) / phase, dtype=np.float32)


def _spread(contrast: Floats) -> Doubles:
    """Return the standard deviation of the contrast at each radius, as of Gaussian noise."""
    some = contrast[:, ::2, ::2]  # enough for a median
    away = np.abs(some - np.median(some, axis=(1, 2), keepdims=True))
    sd = 1.4826 * np.median(away, axis=(1, 2))
    return np.asarray(np.maximum(sd, 1e-6), dtype=np.float64)


def _blobs(contrast: Floats, sd: Doubles, radii: Doubles) -> Blobs:
    """Return the maxima over place and radius that are round and whole in the field."""
    score = contrast * (radii**SHARPNESS).astype(np.float32)[:, None, None]
    above = contrast[1:-1] > (FAINTEST * sd[1:-1]).astype(np.float32)[:, None, None]
    index, y, x = _maxima(score, above)
    height, width = contrast.shape[1:]
    r = radii[index]
    whole = (y >= r - 1) & (y <= height - r) & (x >= r - 1) & (x <= width - r)
    peaks = index[whole], y[whole], x[whole]
    peaks = tuple(axis[_roundness(contrast, radii, *peaks) > ROUND] for axis in peaks)
    radius = radii[peaks[0]] * 2 ** (_vertex(score, *peaks) / PER_OCTAVE)
    strength = score[peaks].astype(np.float64)
    blobs = Blobs(radius, peaks[1], peaks[2], strength, contrast[peaks] / sd[peaks[0]])
    return blobs.where(np.argsort(-strength, kind="stable"))


def _maxima(score: Floats, above: NDArray[np.bool_]) -> tuple[Integers, Integers, Integers]:
    """Return where the inner radii of a score that are `above` exceed all their neighbours."""
    index, y, x = np.nonzero(above)
    index += 1
    height, width = score.shape[1:]
    for step, down, right in itertools.product((0, -1, 1), repeat=3):
        here = score[index, y, x]
        low, left = np.clip(y + down, 0, height - 1), np.clip(x + right, 0, width - 1)
        largest = here >= score[index + step, low, left]
        index, y, x = index[largest], y[largest], x[largest]
    return index, y, x


def _vertex(score: Floats, index: Integers, y: Integers, x: Integers) -> Doubles:
    """Return how far from a maximum the parabola through it and its neighbours peaks, steps."""
    below, here, above = (score[index + step, y, x].astype(np.float64) for step in (-1, 0, 1))
    curvature = np.maximum(2 * here - below - above, 1e-30)
    return np.asarray(np.clip(0.5 * (above - below) / curvature, -0.5, 0.5))


def _roundness(
    contrast: Floats, radii: Doubles, index: Integers, y: Integers, x: Integers
) -> Doubles:
    """Return the least over the largest curvature of the contrast, of four directions."""
    curvatures = []
    height, width = contrast.shape[1:]
    for down, right in ((1, 0), (0, 1), (1, 1), (1, -1)):
        length = np.hypot(down, right)
        step = np.maximum(np.rint(0.5 * radii[index] / length), 1).astype(np.int64)
        ends = [
            contrast[
                index,
                np.clip(y + sign * down * step, 0, height - 1),
                np.clip(x + sign * right * step, 0, width - 1),
            ]
            for sign in (-1, 1)
        ]
        curvatures.append((2 * contrast[index, y, x] - ends[0] - ends[1]) / (length * step) ** 2)
    least, largest = np.min(curvatures, axis=0), np.max(curvatures, axis=0)
    return np.asarray(least / np.maximum(largest, 1e-30))


def _apart(blobs: Blobs) -> Blobs:
    """Drop blobs whose centre a stronger one covers, or that cover its centre."""
    kept: list[int] = []
    for index, (radius, y, x) in enumerate(zip(blobs.radius, blobs.y, blobs.x, strict=True)):
        distance = np.hypot(blobs.y[kept] - y, blobs.x[kept] - x)
        if (distance > np.maximum(blobs.radius[kept], radius)).all():
            kept.append(index)
    return blobs.where(np.array(kept, np.int64))


def _excess(bright: Blobs, dark: Blobs) -> float:
    """Return how far the strongest blobs are bright more often than chance has it, sd."""
    sign = np.repeat([1.0, -1.0], [len(bright.strength), len(dark.strength)])
    order = np.argsort(-np.concatenate([bright.strength, dark.strength]), kind="stable")
    count = np.arange(1, len(sign) + 1)
    return float(np.max(np.cumsum(sign[order]) / np.sqrt(count), initial=0))


def _most_common(radii: Doubles) -> float:
    """Return the radius about which most radii lie; each weighs with its root."""
    places, weights = np.log(radii), np.sqrt(radii)
    density = np.exp(-0.5 * ((places[:, None] - places) / LIKENESS) ** 2) @ weights
    middle = places[np.argmax(density)]
    for _ in range(20):  # mean shift to the density's maximum
        near = weights * np.exp(-0.5 * ((places - middle) / LIKENESS) ** 2)
        middle = near @ places / near.sum()
    return math.exp(middle)
