"""Correlation of windows of a frame with those of a template, weighted by what noise lets through.

A lag is where a frame's content lies relative to the template's, px; the shift is its opposite.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.fft
from numba import njit
from numpy.typing import NDArray

from napari_calcium.movie import blocks

__all__ = ["PIXELS_AT_ONCE", "Band", "MatchedFilter", "Windows", "finite", "for_numba"]

CUTOFF = 0.35
"""Highest spatial frequency used for the estimate, cycles per px; above it is mostly noise."""

TAPER = 0.25
"""Part of each side, at either end, over which a window fades out before it is transformed."""

PIXELS_AT_ONCE = 2**17
"""Pixels that are transformed together: their arrays stay in the cache, and need no new memory."""

TRUST = 0.1
"""How much of the template's own power counts as noise: no frequency is trusted without limit."""

NEWTON_STEPS = 1
"""Steps from the parabola through the highest whole lag to the peak; one leaves below 0.005 px."""

Floats = NDArray[np.float32]
Complex = NDArray[np.complex64]


@dataclass(frozen=True)
class Windows:
    """Rectangles of one size in the planes of a field.

    Parameters
    ----------
    planes, tops, lefts : ndarray of int64 (window,)
        Plane, first row and first column of each; plane 0 where there is only one.
    size : tuple of int
        Height and width, px.
    """

    planes: NDArray[np.int64]
    tops: NDArray[np.int64]
    lefts: NDArray[np.int64]
    size: tuple[int, int]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Windows:
        """Return one window for each plane of a field (z, y, x), the plane as a whole."""
        nothing = np.zeros(shape[0], np.int64)
        return cls(np.arange(shape[0]), nothing, nothing, (shape[1], shape[2]))


@dataclass(frozen=True)
class Band:
    """The low frequencies of a window, and how it is faded out; see `Band.of`."""

    rows: NDArray[np.int64]
    y: Floats
    x: Floats
    weights: Floats
    taper: Floats
    leak: Complex

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        high_pass: float = 0.0,
        smoothing: float = 0.0,
        taper: float = TAPER,
    ) -> Band:
        """Choose the frequencies of windows of one size.

        Parameters
        ----------
        size : tuple of int
            Height and width, px.
        high_pass : float
            Standard deviation of the Gaussian whose blur is taken away, px; 0 takes nothing away.
        smoothing : float
            Standard deviation of the Gaussian that windows are blurred by, px; 0 blurs nothing.
        taper : float
            Part of each side, at either end, over which a window fades out.

        Returns
        -------
        Band
            ``rows`` of the transform that are kept, of its columns the first; their frequencies
            ``y`` and ``x``, cycles per px; ``weights`` (y, x), 0 for what is left out and 2 for
            what stands for two frequencies; the ``taper`` (y, x) of mean square 1; its spectrum
            relative to its sum, the ``leak`` (y, x).
        """
        y, x = scipy.fft.fftfreq(size[0]), scipy.fft.rfftfreq(size[1])
        rows = np.flatnonzero(np.abs(y) <= CUTOFF)
        y, x = y[rows], x[x <= CUTOFF]
        squared = y[:, None] ** 2 + x[None, :] ** 2
        weights = np.where(x > 0, 2.0, 1.0) * (squared < CUTOFF**2)
        if high_pass > 0:
            weights = weights * (1 - np.exp(-2 * (np.pi * high_pass) ** 2 * squared)) ** 2
        weights = weights * np.exp(-2 * (np.pi * smoothing) ** 2 * squared) ** 2
        weights[0, 0] = 0
        window = np.outer(_fade(size[0], taper), _fade(size[1], taper))
        window /= np.sqrt(np.mean(window**2))
        leak = scipy.fft.rfft2(window)[rows, : len(x)] / window.sum()
        kinds = (np.float32, np.float32, np.float32, np.float32, np.complex64)
        parts = (y, x, weights, window, leak)
        return cls(rows, *(part.astype(kind) for part, kind in zip(parts, kinds, strict=True)))

    def spectra(self, frame: NDArray[Any], windows: Windows, level: float) -> Complex:
        """Return the spectra (window, y, x frequency) of windows of a frame (z, y, x).

        Parameters
        ----------
        frame : ndarray (z, y, x)
            The frame, finite. Outside of it count copies of the nearest pixel.
        windows : Windows
            Where.
        level : float
            Rough level of the frame, taken away before rounding to float32; whatever it is, the
            mean of a window does not count.
        """
        count = len(windows.tops)
        spectra = np.empty((count, len(self.y), len(self.x)), np.complex64)
        at_once = max(1, PIXELS_AT_ONCE // self.taper.size)
        buffer = np.empty((min(count, at_once), *windows.size), np.float32)
        for part in blocks(count, at_once):
            cut = buffer[: part.stop - part.start]
            where = windows.planes[part], windows.tops[part], windows.lefts[part]
            _cut(frame, *where, level, self.taper, cut)
            half = scipy.fft.rfft(cut, axis=2, workers=1)[:, :, : len(self.x)]
            full = scipy.fft.fft(half, axis=1, workers=1)
            _select(full, self.rows, self.leak, spectra[part])
        return spectra


@dataclass(frozen=True)
class MatchedFilter:
    """Filters for windows, each highest at the lag where the content of its template lies.

    Each frequency of the product of two spectra counts by the power of the noise there, which
    makes the highest correlation the most likely lag (Knapp & Carter 1976,
    doi:10.1109/TASSP.1976.1162830).

    Parameters
    ----------
    windows : Windows
        Where in the field.
    band : Band
        The frequencies that count.
    max_lag : int
        Largest lag looked for, px.
    level : float
        Rough level of the frames.
    filters : ndarray (window, y, x frequency)
        Conjugate spectra of the template, divided by the noise.
    noise : ndarray (y, x frequency)
        Power by which frequencies are weighed.
    norm : ndarray (window,)
        Weighted norm of the template's spectra.
    """

    windows: Windows
    band: Band
    max_lag: int
    level: float
    filters: Complex
    noise: Floats
    norm: Floats

    @classmethod
    def of(
        cls,
        template: NDArray[Any],
        windows: Windows,
        band: Band,
        max_lag: int,
        noise: NDArray[Any] | None = None,
    ) -> MatchedFilter:
        """Make the filters of a template.

        Parameters
        ----------
        template : ndarray (z, y, x)
            What a frame without motion looks like, finite.
        windows : Windows
            Where in it.
        band : Band
            Of windows of that size.
        max_lag : int
            Largest lag looked for along either axis, px.
        noise : ndarray (y, x frequency), optional
            Power of what frames have and the template has not; that of the
            template itself if not given, which whitens it.
        """
        level = float(template.mean())
        spectra = band.spectra(template, windows, level)
        power = (np.abs(spectra) ** 2).mean(axis=0)
        total = TRUST * power + (power if noise is None else noise)
        total = np.maximum(total, 1e-6 * (total.max() or 1.0))
        weights = (band.weights / total).astype(np.float32)
        norm = np.sqrt(_weighted_power(spectra, weights))
        filters = np.conj(spectra) * weights
        return cls(windows, band, max_lag, level, filters, total.astype(np.float32), norm)

    def only(self, chosen: NDArray[np.int64]) -> MatchedFilter:
        """Return the filters of some of the windows."""
        where = self.windows
        windows = Windows(where.planes[chosen], where.tops[chosen], where.lefts[chosen], where.size)
        return replace(self, windows=windows, filters=self.filters[chosen], norm=self.norm[chosen])

    def spectra(self, frame: NDArray[Any], tops: Any = 0, lefts: Any = 0) -> Complex:
        """Return the spectra of a frame's windows (z, y, x), moved down and right by whole px."""
        there = replace(
            self.windows, tops=self.windows.tops + tops, lefts=self.windows.lefts + lefts
        )
        return self.band.spectra(frame, there, self.level)

    def turned(self, spectra: Complex, y: NDArray[Any], x: NDArray[Any]) -> Complex:
        """Return spectra of windows whose content was moved by whole px (window,) each."""
        turned = spectra.copy()
        for index in np.flatnonzero((y != 0) | (x != 0)):
            wave_y = np.exp(-2j * np.pi * self.band.y * y[index])
            wave_x = np.exp(-2j * np.pi * self.band.x * x[index])
            turned[index] *= np.outer(wave_y, wave_x).astype(np.complex64)
        return turned

    def products(self, spectra: Complex) -> Complex:
        """Return the products of spectra with the filters, each frequency's amplitude moderated.

        What is far above the noise, as a cell that lights up, counts little more than what is
        just above it.
        """
        products = np.empty_like(spectra)
        _moderate(spectra, self.filters, self.noise, products)
        return products

    def maps(self, products: Complex) -> Floats:
        """Return the correlation (window, lag y, lag x) at whole lags of products of spectra."""
        waves_y, waves_x = self._whole_lags
        return np.asarray(((waves_y @ products) @ waves_x).real, np.float32)

    @cached_property
    def _whole_lags(self) -> tuple[Complex, Complex]:
        """Fourier bases (lag, y frequency) and (x frequency, lag)."""
        lags = np.arange(-self.max_lag, self.max_lag + 1)
        return _waves(lags, self.band.y), _waves(lags, self.band.x).T.copy()

    def peaks(self, products: Complex, maps: Floats) -> NDArray[np.float64]:
        """Return the lag (window, 2) of the highest correlation, between whole lags too.

        From the top of a parabola at the highest whole lag a Newton step is made. The maps may
        be cut to the lags nearest 0.
        """
        flat = maps.reshape(len(maps), -1).argmax(axis=1)
        whole = np.stack(np.divmod(flat, maps.shape[2]), axis=1)
        start = whole + _vertices(maps, whole) - (maps.shape[1] - 1) // 2
        fine = start
        for _ in range(NEWTON_STEPS):
            fine = (fine + self._newton(products, fine)).clip(start - 1, start + 1)
        return np.asarray(fine, np.float64)

    def _newton(self, products: Complex, lags: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the step (window, 2) towards the peak near each lag; 0 where there is none."""
        y, x = self.band.y, self.band.x
        rows = _waves(lags[:, 0], y)
        along_y = np.stack([rows, rows * y, rows * y * y], axis=1) @ products
        columns = _waves(lags[:, 1], x)
        along_x = np.stack([columns, columns * x, columns * x * x], axis=2)
        sums = (along_y @ along_x).astype(np.complex128)
        slope = -np.stack([sums[:, 1, 0], sums[:, 0, 1]], axis=1).imag
        yy, yx, xx = -sums[:, 2, 0].real, -sums[:, 1, 1].real, -sums[:, 0, 2].real
        bend = yy * xx - yx * yx
        top = (yy < 0) & (bend > 0)
        safe = np.where(top, bend, 1.0)
        step = np.stack([yx * slope[:, 1] - xx * slope[:, 0], yx * slope[:, 0] - yy * slope[:, 1]])
        steps: NDArray[np.float64] = np.where(top, step / safe, 0.0).T / (2 * np.pi)
        return steps

    def norms(self, spectra: Complex) -> Floats:
        """Return the norm (window,) of a frame's spectra, weighed as the filters are."""
        norms: Floats = np.sqrt(_weighted_power(spectra, self._weights))
        return norms

    @cached_property
    def _weights(self) -> Floats:
        return self.band.weights / self.noise

    @cached_property
    def independence(self) -> float:
        """Part of the frequencies that are independent: the taper ties neighbours together."""
        return 1 / float((self.band.taper**4).mean())

    def variance(
        self, noise: NDArray[Any], moderated: bool = False, windows: slice = slice(None)
    ) -> NDArray[np.float64]:
        """Return the variance (window, 2, 2) of lags that noise of this power leaves, px^2.

        `moderated` is for lags found from `products`, otherwise from the mere product.
        """
        y, x = 2 * np.pi * self.band.y[:, None], 2 * np.pi * self.band.x[None, :]
        squares = np.stack([y * y + 0 * x, y * x, y * x, 0 * y + x * x]).reshape(4, -1).T
        power = np.abs(self.filters[windows]) ** 2
        count, weights = len(power), np.maximum(self.band.weights, 1e-9)
        template = power * self.noise / weights
        passed = np.ones_like(power)
        if moderated:
            passed = 1 / np.sqrt(1 + template / weights + noise / self.noise)
        half = np.where(self.band.x > 0, 2, 1)  # one of two equal frequencies stands for both
        bend = (template * passed).reshape(count, -1) @ squares
        spread = (power * passed**2 * noise / half).reshape(count, -1) @ squares
        inverse = np.linalg.pinv(bend.reshape(count, 2, 2).astype(np.float64), hermitian=True)
        variance: NDArray[np.float64] = (
            inverse @ spread.reshape(count, 2, 2) @ inverse / self.independence
        )
        return variance


def finite(frames: NDArray[Any]) -> NDArray[Any]:
    """Return frames with values that are not finite replaced by their frame's mean, or 0."""
    if frames.dtype.kind != "f" or np.isfinite(frames).all():
        return frames
    filled = frames.copy()
    for frame in filled:
        known = np.isfinite(frame)
        frame[~known] = frame[known].mean(dtype=np.float64) if known.any() else 0
    return filled


def for_numba(frames: NDArray[Any]) -> NDArray[Any]:
    """Return frames in C order, native byte order and a type that Numba knows."""
    kind = np.float32 if frames.dtype == np.float16 else frames.dtype.newbyteorder("=")
    return np.ascontiguousarray(frames, dtype=kind)


def _fade(n: int, part: float) -> NDArray[np.float64]:
    """Weights 0 to 1 that fade out over a part of either end as a raised cosine."""
    if part <= 0:
        return np.ones(n)
    distance = (np.minimum(np.arange(n), np.arange(n)[::-1]) + 0.5) / (part * n)
    return 0.5 - 0.5 * np.cos(np.pi * np.minimum(distance, 1))


def _waves(lags: NDArray[Any], frequencies: Floats) -> Complex:
    """Fourier basis (lag, frequency)."""
    phase = 2 * np.pi * np.outer(lags, frequencies)
    waves = np.empty(phase.shape, np.complex64)
    waves.real, waves.imag = np.cos(phase), np.sin(phase)
    return waves


def _vertices(maps: Floats, whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """Place (window, 2) of a parabola's top relative to the highest whole lag."""
    window, (i, j), last = np.arange(len(maps)), whole.T, maps.shape[1] - 1
    top = maps[window, i, j].astype(np.float64)
    tops = []
    for at, step in ((i, (1, 0)), (j, (0, 1))):
        inner = (at > 0) & (at < last)
        dy, dx = np.where(inner, step[0], 0), np.where(inner, step[1], 0)
        before, after = maps[window, i - dy, j - dx], maps[window, i + dy, j + dx]
        bend = before - 2 * top + after
        tops.append(np.where(bend < 0, 0.5 * (before - after) / np.where(bend < 0, bend, 1), 0.0))
    return np.stack(tops, axis=1)


@njit(nogil=True, cache=True)
def _cut(frame, planes, tops, lefts, level, taper, out):  # type: ignore[no-untyped-def]
    """Cut windows out of a frame and fade them out; the border is repeated outside."""
    height, width = taper.shape
    bottom, right = frame.shape[1] - 1, frame.shape[2]
    base = np.float32(level)
    for window in range(len(tops)):
        left = lefts[window]
        first = min(max(-left, 0), width)
        last = max(first, min(right - left, width))
        for y in range(height):
            source = frame[planes[window], min(max(tops[window] + y, 0), bottom)]
            fade, row = taper[y], out[window, y]
            middle, inner = source[left + first : left + last], fade[first:last]
            target = row[first:last]
            for x in range(len(middle)):
                target[x] = (np.float32(middle[x]) - base) * inner[x]
            for x in range(first):
                row[x] = (np.float32(source[0]) - base) * fade[x]
            for x in range(last, width):
                row[x] = (np.float32(source[right - 1]) - base) * fade[x]


@njit(nogil=True, cache=True)
def _select(full, rows, leak, out):  # type: ignore[no-untyped-def]
    """Copy the rows that are kept, less what the mean leaks through the taper."""
    for window in range(len(full)):
        mean = full[window, 0, 0]
        for k in range(len(rows)):
            source, lost, target = full[window, rows[k]], leak[k], out[window, k]
            for j in range(len(target)):
                target[j] = source[j] - mean * lost[j]


@njit(nogil=True, cache=True, error_model="numpy")  # a check for zero would forbid vectors
def _moderate(spectra, filters, noise, out):  # type: ignore[no-untyped-def]
    """Multiply spectra, their power limited to that of the noise, with filters."""
    one = np.float32(1)
    for window in range(len(spectra)):
        for k in range(len(noise)):
            row, factor, target = spectra[window, k], filters[window, k], out[window, k]
            level = noise[k]
            for j in range(len(level)):
                a, b, c, d = row[j].real, row[j].imag, factor[j].real, factor[j].imag
                gain = one / np.sqrt(one + (a * a + b * b) / level[j])
                target[j] = complex(gain * (a * c - b * d), gain * (a * d + b * c))


@njit(nogil=True, cache=True)
def _weighted_power(spectra, weights):  # type: ignore[no-untyped-def]
    """Weighted sum of squares of each window's spectrum."""
    powers = np.zeros(len(spectra), np.float32)
    for window in range(len(spectra)):
        total = 0.0
        for k in range(len(weights)):
            row, weight = spectra[window, k], weights[k]
            part: Any = np.float32(0.0)
            for j in range(len(weight)):
                value = row[j]
                part += weight[j] * (value.real * value.real + value.imag * value.imag)
            total += part
        powers[window] = total
    return powers
