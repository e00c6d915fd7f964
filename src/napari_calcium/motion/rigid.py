"""Shifts of frames as a whole, by weighted correlation with the template."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from napari_calcium.motion.correlation import (
    PIXELS_AT_ONCE,
    Band,
    MatchedFilter,
    Windows,
    finite,
    for_numba,
)
from napari_calcium.movie import blocks

__all__ = ["RigidFilter", "chance_agreement"]

LOOKS = 4
"""How often a frame is moved by whole px and compared again, at most."""

LARGE = 256
"""Fields of at least as many px along both axes are halved: half the resolution is enough."""

Floats = NDArray[np.float32]
Complex = NDArray[np.complex64]


@dataclass(frozen=True)
class RigidFilter:
    """Finds how far frames lie from a template.

    Parameters
    ----------
    matched : MatchedFilter
        Filters of the planes, of half the size where `factor` is 2.
    factor : int
        Pixels along each axis that are joined to one before frames are compared.
    max_shift, max_shift_z : int
        Largest shift looked for, px and planes.
    upsampling : int
        Shifts are whole multiples of ``1 / upsampling`` px.
    """

    matched: MatchedFilter
    factor: int
    max_shift: int
    max_shift_z: int
    upsampling: int

    @classmethod
    def of(
        cls,
        template: Floats,
        max_shift: int,
        noise: Floats | None = None,
        *,
        max_shift_z: int = 0,
        high_pass: float = 0.0,
        smoothing: float = 0.0,
        upsampling: int = 1024,
    ) -> RigidFilter:
        """Make the filter of a template.

        Parameters
        ----------
        template : ndarray (z, y, x), float32
            What a frame without motion looks like, finite.
        max_shift : int
            Largest shift looked for along y and x, px.
        noise : ndarray (y, x frequency), optional
            Power of what frames have and the template has not, from `power`.
        max_shift_z : int
            Largest shift looked for along z, planes.
        high_pass : float
            Standard deviation of the Gaussian whose blur is taken away, px; 0 takes nothing away.
        smoothing : float
            Standard deviation of the Gaussian that frames are blurred by, px.
        upsampling : int
            Shifts are whole multiples of ``1 / upsampling`` px.

        Examples
        --------
        >>> scene = np.random.default_rng(0).normal(size=(1, 60, 70)).astype(np.float32)
        >>> found = RigidFilter.of(scene[:, 10:50, 10:60], max_shift=5)
        >>> shifts, agreement = found.shifts(scene[None, :, 13:53, 8:58])
        >>> shifts.round(1).tolist()
        [[0.0, 3.0, -2.0]]
        """
        factor = _factor(template.shape)
        small = _joined(template, factor)
        band = Band.of(small.shape[1:], high_pass / factor, smoothing / factor)
        lag = -(-max_shift // factor)
        matched = MatchedFilter.of(small, Windows.whole(small.shape), band, lag, noise)
        if small.min() == small.max():  # what is left of it is rounding, which agrees with itself
            matched = replace(matched, norm=np.zeros_like(matched.norm))
        return cls(matched, factor, max_shift, max_shift_z, upsampling)

    def shifts(self, frames: NDArray[Any]) -> tuple[Floats, Floats]:
        """Return the shift of each frame, and how well it agrees with the template.

        A frame whose highest correlation is not at lag 0, or 1 where a large field is halved, is
        laid over the template by whole pixels and compared again until it lies there, so that the
        taper hides the same part of the scene in both.

        Parameters
        ----------
        frames : ndarray (n, z, y, x)
            Frames in any real type; what is not finite counts as the mean of the frame.

        Returns
        -------
        shifts : ndarray (n, 3), float32
            Order (z, y, x), px and planes.
        agreement : ndarray (n,), float32
            Weighted correlation coefficient, -1 to 1; 0 for a constant frame.
        """
        shifts = np.zeros((len(frames), 3), np.float32)
        agreement = np.zeros(len(frames), np.float32)
        source = for_numba(frames)
        pixels = self.matched.windows.size[0] * self.matched.windows.size[1] * frames.shape[1]
        for group in blocks(len(frames), max(1, PIXELS_AT_ONCE // pixels)):
            small = np.stack([_joined(finite(frame), self.factor) for frame in source[group]])
            shifts[group], agreement[group] = self._shifts(small)
        limits = np.array([self.max_shift_z, self.max_shift, self.max_shift], np.float32)
        rounded = np.rint(shifts * self.upsampling) / np.float32(self.upsampling)
        return rounded.clip(-limits, limits).astype(np.float32), agreement

    def power(self, frame: NDArray[Any]) -> Floats:
        """Return the power (y, x frequency) of a frame (z, y, x), a mean over the planes."""
        spectra = self.matched.spectra(_joined(finite(for_numba(frame)), self.factor))
        return np.asarray((np.abs(spectra) ** 2).mean(axis=0))

    def _shifts(self, small: NDArray[Any]) -> tuple[NDArray[np.float64], Floats]:
        """Return the shifts (n, 3) of a few frames (n, z, y, x), and their agreement."""
        whole = np.zeros((len(small), 2), np.int64)
        products, maps, agreement, plane = self._compared(small, whole)
        moved = np.arange(len(small))
        for _ in range(LOOKS):
            highest = maps[moved].reshape(len(moved), -1).argmax(axis=1)
            step = np.stack(np.divmod(highest, maps.shape[2]), axis=1) - self.matched.max_lag
            step = (whole[moved] + step).clip(-self.matched.max_lag, self.matched.max_lag)
            step -= whole[moved]
            again = np.abs(step).max(axis=1) > self.factor - 1  # 1 px of a large field: no matter
            moved = moved[again]
            if not len(moved):
                break
            whole[moved] += step[again]
            found = self._compared(small[moved], whole[moved])
            products[moved], maps[moved], agreement[moved], plane[moved] = found
        near = slice(max(0, self.matched.max_lag - 2), self.matched.max_lag + 3)
        lags = whole + self.matched.peaks(products, maps[:, near, near])
        shifts = -np.column_stack([plane, self.factor * lags])
        flat = small.min(axis=(1, 2, 3)) == small.max(axis=(1, 2, 3))
        agreement[flat | ~np.isfinite(agreement) | ~np.isfinite(shifts).all(axis=1)] = 0
        shifts[agreement == 0] = 0
        return shifts, agreement

    def _compared(
        self, small: NDArray[Any], whole: NDArray[np.int64]
    ) -> tuple[Complex, Floats, Floats, NDArray[np.float64]]:
        """Compare frames, moved by whole px (n, 2), at the lag in planes where they agree best.

        Returns products of spectra, correlation, agreement, and that lag, (n, ...) each.
        """
        count, n = small.shape[:2]
        tops, lefts = (np.repeat(each, n) for each in whole.T)
        there = Windows(np.arange(count * n), tops, lefts, self.matched.windows.size)
        planes = small.reshape(-1, *small.shape[2:])
        spectra = self.matched.band.spectra(planes, there, self.matched.level)
        norms = self.matched.norms(spectra).reshape(count, n)
        spectra = spectra.reshape(count, n, *spectra.shape[1:])
        deepest = min(self.max_shift_z, n - 1)
        found = [self._at_plane(spectra, norms, lag) for lag in range(-deepest, deepest + 1)]
        agreements = np.stack([agreement for _, _, agreement in found])
        best = agreements.argmax(axis=0)
        products, maps, agreement = (
            np.stack([found[lag][part][index] for index, lag in enumerate(best)])
            for part in range(3)
        )
        tops_z = [_vertex(each, lag) for each, lag in zip(agreements.T, best, strict=True)]
        return products, maps, agreement, best - deepest + np.array(tops_z)

    def _at_plane(
        self, spectra: Complex, norms: Floats, lag: int
    ) -> tuple[Complex, Floats, Floats]:
        """Return products, correlation and agreement of frames at one lag in planes."""
        n = spectra.shape[1]
        here, there = slice(max(0, lag), n + min(0, lag)), slice(max(0, -lag), n - max(0, lag))
        products = np.einsum("nzyx,zyx->nyx", spectra[:, here], self.matched.filters[there])
        maps = self.matched.maps(products)
        weight = np.sqrt((norms[:, here] ** 2).sum(1) * (self.matched.norm[there] ** 2).sum())
        peaks = maps.max(axis=(1, 2))
        return products, maps, np.where(weight > 0, peaks / np.where(weight > 0, weight, 1), 0)


def chance_agreement(found: RigidFilter) -> float:
    """Return the agreement that a frame of mere noise hardly ever exceeds.

    Parameters
    ----------
    found : RigidFilter
        The filter; the more frequencies and planes it has, and the fewer lags, the lower it is.
    """
    matched = found.matched
    power = (np.abs(matched.filters) ** 2 * matched.noise).sum(axis=0)
    independent = float(power.sum() ** 2 / (power**2 / np.maximum(matched.band.weights, 1)).sum())
    independent *= matched.independence * len(matched.windows.planes)
    lags = (2 * matched.max_lag + 1) ** 2 * (2 * found.max_shift_z + 1)
    return float(np.sqrt(2 * np.log(100 * lags) / independent))


def _factor(shape: tuple[int, ...]) -> int:
    return 2 if min(shape[1:]) >= LARGE else 1


def _vertex(values: Floats, peak: int) -> float:
    """Place of a parabola's top relative to the largest of equidistant values."""
    if not 0 < peak < len(values) - 1:
        return 0.0
    before, top, after = values[peak - 1 : peak + 2]
    bend = before - 2 * top + after
    return float(0.5 * (before - after) / bend) if bend < 0 else 0.0


def _joined(frame: NDArray[Any], factor: int) -> NDArray[Any]:
    """Return the planes of a frame (z, y, x) with pixels joined, as they are where factor is 1."""
    if factor == 1:
        return frame
    planes, height, width = frame.shape
    small = np.empty((planes, height // 2, width // 2), np.float32)
    _halve(frame, small)
    return small


@njit(nogil=True, cache=True)
def _halve(frame, out):  # type: ignore[no-untyped-def]
    """Mean of 2 x 2 pixels; what is left over at the end of an odd axis is left out."""
    quarter = np.float32(0.25)
    for z in range(len(out)):
        for y in range(out.shape[1]):
            above, below, row = frame[z, 2 * y], frame[z, 2 * y + 1], out[z, y]
            for x in range(len(row)):
                upper = np.float32(above[2 * x]) + np.float32(above[2 * x + 1])
                row[x] = quarter * (upper + np.float32(below[2 * x]) + np.float32(below[2 * x + 1]))
