"""Shifts: how far each frame is from the template, and frames moved by that much.

A shift is what must be added to a frame's content position to undo the motion, in px, order
(y, x): ``corrected[y, x] = frame[y - shift_y, x - shift_x]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import scipy.fft
from dask.delayed import Delayed
from numba import njit
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.movie import Movie

if TYPE_CHECKING:
    from napari_calcium.motion.correction import MotionCorrectionParameters

__all__ = ["check_max_shift", "estimate_shifts", "rigid_shifts", "shift_frames"]

CUTOFF = 0.25
"""Highest spatial frequency used for the estimate, cycles per px; above it is mostly noise."""

TAPER = 0.25
"""Part of each side, at either end, over which a frame fades out before it is transformed."""

FINE = 4
"""Fine lags per px in the local search around the peak."""

RESOLUTION = 1024
"""Shifts are whole multiples of 1 / RESOLUTION px, so that rounding never moves a still frame."""

Floats = NDArray[np.float32]


def estimate_shifts(
    movie: Movie, template: Delayed, parameters: MotionCorrectionParameters
) -> da.Array:
    """Return lazily the shift of each frame that lays it over the template.

    Parameters
    ----------
    movie : Movie
        The recording.
    template : Delayed of ndarray (y, x)
        What a frame without motion looks like.
    parameters : MotionCorrectionParameters
        Its `max_shift`, `smoothing` and `high_pass` are used.

    Returns
    -------
    dask.array.Array (time, 2), float32
        Shifts in px, order (y, x); see `rigid_shifts`. One task per 256 frames, whatever the
        movie's chunks.

    Raises
    ------
    InputError
        If `max_shift` is larger than half the field.

    Examples
    --------
    >>> import dask.array as da
    >>> from dask import delayed
    >>> from napari_calcium.motion.correction import MotionCorrectionParameters
    >>> movie = Movie(da.zeros((300, 37, 53), dtype="uint16"), frame_rate=30.0)
    >>> estimate_shifts(movie, delayed(np.zeros((37, 53))), MotionCorrectionParameters()).chunks
    ((256, 44), (2,))
    """
    check_max_shift(parameters.max_shift, movie.field)
    options = (parameters.max_shift, parameters.smoothing, parameters.high_pass)
    parts = [
        da.from_delayed(
            movie.apply(rigid_shifts, template, *options, time=block),
            shape=(block.stop - block.start, 2),
            dtype=np.float32,
        )
        for block in movie.blocks()
    ]
    return da.concatenate(parts) if parts else da.zeros((0, 2), dtype=np.float32)


def rigid_shifts(
    frames: NDArray[Any],
    template: NDArray[Any],
    max_shift: int,
    smoothing: float = 1.15,
    high_pass: float = 0.0,
) -> Floats:
    """Return the shift of each frame that lays it over the template, by phase correlation.

    Each frame is tapered towards its borders, transformed, whitened and multiplied by the
    conjugate of the whitened template (Kuglin & Hines 1975); frequencies above 0.25 cycles per px
    are left out. A frame whose highest correlation among the lags allowed is not at lag 0 is laid
    over the template by whole pixels and transformed again, so that the taper hides the same part
    of the scene in both. The rest is found on a grid of 0.25 px by a small matrix product
    with the Fourier basis (Guizar-Sicairos et al. 2008, doi:10.1364/OL.33.000156), and between its
    points by a parabola.

    Parameters
    ----------
    frames : ndarray (n, y, x)
        Frames in any real type. Values that are not finite count as the frame's mean.
    template : ndarray (y, x)
        What a frame without motion looks like.
    max_shift : int
        Largest shift looked for along either axis, px.
    smoothing : float
        Standard deviation of the Gaussian by which the correlation is smoothed, px.
    high_pass : float
        Standard deviation of the Gaussian whose blur is taken away, px; 0 takes nothing away.

    Returns
    -------
    ndarray (n, 2), float32
        Shifts in px, order (y, x), multiples of 1/1024 px and never NaN. 0 for a frame that is
        constant, and for all frames if the template is.

    Raises
    ------
    InputError
        If `max_shift` is larger than half the field.

    Examples
    --------
    >>> scene = np.random.default_rng(0).normal(size=(60, 70))
    >>> template, frame = scene[10:50, 10:60], scene[13:53, 8:58]
    >>> rigid_shifts(frame[None], template, max_shift=5).round(1).tolist()
    [[3.0, -2.0]]
    """
    check_max_shift(max_shift, template.shape)
    correlation = _PhaseCorrelation.against(template, max_shift, smoothing, high_pass)
    shifts = np.zeros((len(frames), 2), np.float32)
    for shift, frame in zip(shifts, frames, strict=True):
        shift[:] = correlation.shift(frame)
    return shifts


def shift_frames(frames: NDArray[Any], shifts: NDArray[Any]) -> NDArray[Any]:
    """Return the frames moved by their shifts, each by one bicubic resampling.

    ``moved[y, x] = frame[y - shift_y, x - shift_x]``. What comes in from outside of the field is
    a copy of the nearest pixel of the border, never of the opposite side.

    Parameters
    ----------
    frames : ndarray (n, y, x)
        Frames in any integer or floating type. A NaN spreads over the up to 4 x 4 pixels that
        are interpolated from it.
    shifts : ndarray (n, 2)
        Shifts in px, order (y, x), finite.

    Returns
    -------
    ndarray (n, y, x)
        In the type of `frames` and native byte order. Integers are rounded and kept within the
        type's range. A shift by whole pixels copies values exactly.

    References
    ----------
    Keys 1981, doi:10.1109/TASSP.1981.1163711 (cubic convolution).

    Examples
    --------
    >>> frames = np.arange(12, dtype=np.uint16).reshape(1, 3, 4)
    >>> shift_frames(frames, np.array([[1.0, -2.0]]))[0]
    array([[2, 3, 3, 3],
           [2, 3, 3, 3],
           [6, 7, 7, 7]], dtype=uint16)
    """
    source = _for_numba(frames)
    moved = np.empty_like(source)
    lowest, highest = _limits(source.dtype)
    for frame, shift, out in zip(source, np.asarray(shifts, np.float64), moved, strict=True):
        whole = np.floor(-shift)
        part = -shift - whole
        if part.any():
            weights = _cubic_weights(part).astype(lowest.dtype)
            _interpolate(frame, int(whole[0]), int(whole[1]), weights, lowest, highest, out)
        else:
            _copy(frame, int(whole[0]), int(whole[1]), out)
    return moved.astype(frames.dtype.newbyteorder("="), copy=False)


def check_max_shift(max_shift: int, field: tuple[int, ...]) -> None:
    """Raise if shifts are to be looked for over more than half the field.

    Parameters
    ----------
    max_shift : int
        Largest shift looked for, px.
    field : tuple of int
        Field of view, (y, x), px.

    Raises
    ------
    InputError
        If `max_shift` is larger than half the field along either axis.

    Examples
    --------
    >>> check_max_shift(15, (20, 53))
    Traceback (most recent call last):
    ...
    napari_calcium.errors.InputError: max_shift is 15 px but the field is 20 x 53 px; set max_shift
    to at most 10 px
    """
    if 2 * max_shift > min(field):
        raise InputError(
            f"max_shift is {max_shift} px but the field is {field[0]} x {field[1]} px; "
            f"set max_shift to at most {min(field) // 2} px"
        )


@dataclass(frozen=True)
class _PhaseCorrelation:
    """Whitened correlation of frames with one template, at the lags allowed.

    Lag = where the frame's content lies relative to the template's; the shift is its opposite.
    """

    max_shift: int
    taper: Floats  # (y, x), mean 1
    template: NDArray[np.complex64]  # (y, low x frequencies): conjugate, whitened, filtered
    low: NDArray[np.bool_]  # (y,): the y frequencies that are not filtered out
    basis_y: NDArray[np.complex64]  # (fine lag, low y frequency)
    basis_x: NDArray[np.complex64]  # (low x frequency, fine lag)

    @classmethod
    def against(
        cls, template: NDArray[Any], max_shift: int, smoothing: float, high_pass: float
    ) -> _PhaseCorrelation:
        """Transform the template once for all frames."""
        height, width = template.shape
        y, x = np.fft.fftfreq(height), np.fft.rfftfreq(width)
        x, low = x[x < CUTOFF], np.abs(y) < CUTOFF
        taper = np.outer(_taper(height), _taper(width)).astype(np.float32)
        taper /= taper.mean()
        weights = _frequency_weights(y, x, smoothing, high_pass)
        spectrum = _whiten(_spectrum(_levelled(_finite(template), taper), len(x)), weights)
        lags = np.arange(-FINE, FINE + 1) / FINE
        basis_x = _waves(x, lags)
        basis_x[1:] *= 2  # a real image: the negative frequencies are the mirror of these
        return cls(max_shift, taper, spectrum.conj(), low, _waves(y[low], lags).T.copy(), basis_x)

    def shift(self, frame: NDArray[Any]) -> Floats:
        """Return the (y, x) shift of one frame, px.

        A frame that lies off by whole pixels is laid over the template and seen a second time:
        the taper then hides the same part of the scene in both, which otherwise costs accuracy.
        """
        image = _finite(frame)
        product = self._product(image)
        coarse = self._at_whole_lags(product)
        if not coarse.any():
            return np.zeros(2, np.float32)
        peak = np.array(np.unravel_index(np.argmax(coarse), coarse.shape)) - self.max_shift
        if peak.any():
            moved = np.empty_like(image)
            _copy(image, peak[0], peak[1], moved)
            product = self._product(moved)
        shift = np.clip(-peak - self._near_zero(product), -self.max_shift, self.max_shift)
        return (np.round(shift * RESOLUTION) / RESOLUTION + 0.0).astype(np.float32)

    def _product(self, image: Floats) -> NDArray[np.complex64]:
        """Whitened spectrum of the image times the template's."""
        spectrum = _spectrum(_levelled(image, self.taper), self.template.shape[1])
        product: NDArray[np.complex64] = _whiten(spectrum, self.template)
        return product

    def _at_whole_lags(self, product: NDArray[np.complex64]) -> Floats:
        """Correlation at lags -max_shift to max_shift, (y, x): inverse transform of those only."""
        height, width = self.taper.shape
        lags = np.arange(-self.max_shift, self.max_shift + 1)
        rows = scipy.fft.ifft(product, axis=0, workers=1)[lags % height]
        correlation: Floats = scipy.fft.irfft(rows, width, axis=1, workers=1)[:, lags % width]
        return correlation

    def _near_zero(self, product: NDArray[np.complex64]) -> NDArray[np.float64]:
        """Lag (y, x) of the highest correlation within a px of lag 0."""
        near = (self.basis_y @ product[self.low] @ self.basis_x).real
        i, j = np.unravel_index(np.argmax(near), near.shape)
        tops = np.array([i + _vertex(near[:, j], int(i)), j + _vertex(near[i], int(j))])
        return tops / FINE - 1


def _taper(n: int) -> NDArray[np.float64]:
    """Weights 0 to 1 that fade out over a part of either end as a raised cosine."""
    distance = (np.minimum(np.arange(n), np.arange(n)[::-1]) + 0.5) / (TAPER * n)
    return 0.5 - 0.5 * np.cos(np.pi * np.minimum(distance, 1))


def _finite(frame: NDArray[Any]) -> Floats:
    """Frame as float32, values that are not finite replaced by the mean of the others."""
    image = frame.astype(np.float32)
    if not np.isfinite(image.sum()):
        finite = np.isfinite(image)
        image[~finite] = image[finite].mean() if finite.any() else 0
    return image


def _levelled(image: Floats, taper: Floats) -> Floats:
    """Image without its mean and faded out to the borders; 0 everywhere if it is constant."""
    if image.min() == image.max():
        return np.zeros_like(image)
    level: Floats = image - image.mean()
    level -= np.einsum("ij,ij->", level, taper) / level.size
    level *= taper
    return level


def _spectrum(image: Floats, columns: int) -> NDArray[np.complex64]:
    """Fourier transform (y, x frequency) of a real image, the first x frequencies only."""
    half = scipy.fft.rfft(image, axis=1, workers=1)[:, :columns]
    spectrum: NDArray[np.complex64] = scipy.fft.fft(half, axis=0, workers=1)
    return spectrum


def _frequency_weights(
    y: NDArray[Any], x: NDArray[Any], smoothing: float, high_pass: float
) -> NDArray[np.complex64]:
    """Weight of each frequency (y, x): none beyond the cutoff, Gaussian below."""
    squared = y[:, None] ** 2 + x[None, :] ** 2
    weights = np.exp(-2 * (np.pi * smoothing) ** 2 * squared) * (squared < CUTOFF**2)
    if high_pass > 0:
        weights *= 1 - np.exp(-2 * (np.pi * high_pass) ** 2 * squared)
    weights[0, 0] = 0
    filtered: NDArray[np.complex64] = weights.astype(np.complex64)
    return filtered


def _waves(frequencies: NDArray[Any], lags: NDArray[Any]) -> NDArray[np.complex64]:
    """Fourier basis (frequency, lag)."""
    phase = 2 * np.pi * frequencies[:, None] * lags[None, :]
    waves: NDArray[np.complex64] = np.exp(1j * phase).astype(np.complex64)
    return waves


def _vertex(values: NDArray[Any], peak: int) -> float:
    """Place of a parabola's top relative to the largest of equidistant values."""
    if not 0 < peak < len(values) - 1:
        return 0.0
    before, top, after = (float(value) for value in values[peak - 1 : peak + 2])
    curvature = before - 2 * top + after
    return 0.5 * (before - after) / curvature if curvature < 0 else 0.0


@njit(nogil=True, cache=True)
def _whiten(spectrum, weights):  # type: ignore[no-untyped-def]
    """Weights times the phase of the spectrum; 0 where the spectrum or the weight is 0."""
    product = np.zeros_like(weights)
    for row in range(len(weights)):
        values, factors, out = spectrum[row], weights[row], product[row]
        for column in range(len(out)):
            factor, value = factors[column], values[column]
            power = value.real * value.real + value.imag * value.imag
            if power > 0 and (factor.real != 0 or factor.imag != 0):
                out[column] = factor * value / np.sqrt(power)
    return product


def _for_numba(frames: NDArray[Any]) -> NDArray[Any]:
    """Frames in C order, native byte order and a type that Numba knows."""
    kind = np.float32 if frames.dtype == np.float16 else frames.dtype.newbyteorder("=")
    return np.ascontiguousarray(frames, dtype=kind)


def _limits(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """Range of values, in the floating type that the arithmetic needs to be exact."""
    if dtype.kind == "f":
        return dtype.type(-np.inf), dtype.type(np.inf)
    kind = np.float32 if dtype.itemsize <= 2 else np.float64
    info = np.iinfo(dtype)
    highest = kind(info.max)
    return kind(info.min), highest if int(highest) <= info.max else np.nextafter(highest, kind(0))


def _cubic_weights(part: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (axis, 4) of the pixels -1, 0, 1 and 2 at a point between pixels 0 and 1."""
    t = part[:, None]
    return np.hstack(
        [
            ((2 - t) * t - 1) * t / 2,
            ((3 * t - 5) * t * t + 2) / 2,
            ((4 - 3 * t) * t + 1) * t / 2,
            (t - 1) * t * t / 2,
        ]
    )


@njit(nogil=True, cache=True)
def _interpolate(frame, dy, dx, weights, lowest, highest, out):  # type: ignore[no-untyped-def]
    """Cubic interpolation at (y + dy, x + dx) plus a part of a px, over slices of rows."""
    height, width = frame.shape
    column = np.empty(width, weights.dtype)
    line = np.empty(width + 3, weights.dtype)
    for y in range(height):
        _across_rows(frame, y + dy, weights[0], column)
        _shifted_row(column, dx - 1, line)
        _along_row(line, weights[1], column)
        if lowest > -np.inf:
            _round(column, lowest, highest, out[y])
        else:
            out[y] = column


@njit(nogil=True, cache=True)
def _across_rows(frame, y, weights, out):  # type: ignore[no-untyped-def]
    """Weighted sum of the rows y - 1 to y + 2, the border's row repeated outside."""
    bottom = len(frame) - 1
    a, b = frame[min(max(y - 1, 0), bottom)], frame[min(max(y, 0), bottom)]
    c, d = frame[min(max(y + 1, 0), bottom)], frame[min(max(y + 2, 0), bottom)]
    wa, wb, wc, wd = weights[0], weights[1], weights[2], weights[3]
    for x in range(len(out)):
        out[x] = wa * a[x] + wb * b[x] + wc * c[x] + wd * d[x]


@njit(nogil=True, cache=True)
def _along_row(line, weights, out):  # type: ignore[no-untyped-def]
    """Weighted sum of four neighbours in a row that is 3 px longer than the output."""
    n = len(out)
    a, b, c, d = line[:n], line[1 : n + 1], line[2 : n + 2], line[3 : n + 3]
    wa, wb, wc, wd = weights[0], weights[1], weights[2], weights[3]
    for x in range(n):
        out[x] = wa * a[x] + wb * b[x] + wc * c[x] + wd * d[x]


@njit(nogil=True, cache=True)
def _shifted_row(row, dx, out):  # type: ignore[no-untyped-def]
    """Copy row[x + dx] to out[x], the border's pixel repeated outside."""
    first = min(max(-dx, 0), len(out))
    last = max(first, min(len(row) - dx, len(out)))
    out[:first] = row[0]
    out[first:last] = row[first + dx : last + dx]
    out[last:] = row[-1]


@njit(nogil=True, cache=True)
def _round(row, lowest, highest, out):  # type: ignore[no-untyped-def]
    """Store as whole numbers within the range."""
    for x in range(len(row)):
        out[x] = min(max(np.rint(row[x]), lowest), highest)


@njit(nogil=True, cache=True)
def _copy(frame, dy, dx, out):  # type: ignore[no-untyped-def]
    """Copy frame[y + dy, x + dx] to out[y, x], the border's pixel repeated outside."""
    bottom = len(frame) - 1
    for y in range(len(frame)):
        _shifted_row(frame[min(max(y + dy, 0), bottom)], dx, out[y])
