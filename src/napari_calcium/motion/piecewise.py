"""Shifts of the patches of frames, and what of them is motion and not noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_calcium.motion.correlation import (
    Band,
    MatchedFilter,
    Windows,
    finite,
    for_numba,
)
from napari_calcium.movie import blocks

__all__ = ["Grid", "PiecewiseFilter", "without_noise"]

CERTAIN = 40.0
"""By how much the log-likelihood of a patch's best lag must exceed that of any distant lag.

As if all that differs from the template were Gaussian noise; activity is not, so it is large.
"""

DISTANT = 2
"""Lags further away than this, px, are of another peak."""

POOLINGS = 3
"""How often the correlation of a patch that stays uncertain takes in its neighbours'."""

MORE_NOISE = 1.1
"""How much larger the noise of shifts is than follows from the movie's; measured."""

FRAMES_PER_PART = 1024
"""Frames whose shifts are taken to floats of double precision at a time."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Complex = NDArray[np.complex64]


@dataclass(frozen=True)
class Grid:
    """Patches that cover a field evenly, with overlap.

    Parameters
    ----------
    tops, lefts : ndarray of int64 (grid_y,), (grid_x,)
        First rows and first columns.
    size : tuple of int
        Height and width of a patch, px.
    planes : int
        Number of planes; each has the same patches.
    """

    tops: NDArray[np.int64]
    lefts: NDArray[np.int64]
    size: tuple[int, int]
    planes: int = 1

    @classmethod
    def over(cls, field: tuple[int, ...], patch_size: int, overlap: int) -> Grid:
        """Cover a field.

        Parameters
        ----------
        field : tuple of int
            Field of view, (z, y, x), px.
        patch_size : int
            Side of a patch, px; an axis that is shorter has one patch of its length.
        overlap : int
            Least overlap of neighbours, px, less than `patch_size`.

        Examples
        --------
        >>> grid = Grid.over((1, 170, 40), patch_size=64, overlap=16)
        >>> grid.tops.tolist(), grid.lefts.tolist(), grid.y.tolist()
        ([0, 35, 71, 106], [0], [31.5, 66.5, 102.5, 137.5])
        """
        planes, height, width = field
        size = min(patch_size, height), min(patch_size, width)
        tops, lefts = _starts(height, size[0], overlap), _starts(width, size[1], overlap)
        return cls(tops, lefts, size, planes)

    @property
    def y(self) -> Floats:
        """Centres along y, px."""
        return (self.tops + (self.size[0] - 1) / 2).astype(np.float32)

    @property
    def x(self) -> Floats:
        """Centres along x, px."""
        return (self.lefts + (self.size[1] - 1) / 2).astype(np.float32)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of planes, and of patches along y and x."""
        return self.planes, len(self.tops), len(self.lefts)

    @property
    def windows(self) -> Windows:
        """The patches, plane by plane and row by row."""
        plane, y, x = (index.ravel() for index in np.indices(self.shape))
        return Windows(plane, self.tops[y], self.lefts[x], self.size)

    def neighbours(self) -> Floats:
        """Return what each patch takes of the correlation of the patches beside it, (n, n)."""
        plane, y, x = (index.ravel() for index in np.indices(self.shape))
        near = np.maximum(np.abs(y[:, None] - y), np.abs(x[:, None] - x)) <= 1
        straight = (y[:, None] == y) | (x[:, None] == x)
        weights = np.where(straight, 0.5, 0.25) * (near & (plane[:, None] == plane))
        np.fill_diagonal(weights, 1)
        taken: Floats = weights.astype(np.float32)
        return taken

    def shared_noise(self, taper: Floats) -> Doubles:
        """Return the correlation (n, n) of the noise of a plane's patches: of what overlaps.

        The taper (y, x) is the product of one along y and one along x.
        """
        along_y = _overlaps(self.tops, taper[:, self.size[1] // 2])
        along_x = _overlaps(self.lefts, taper[self.size[0] // 2])
        return np.asarray(np.kron(along_y, along_x))


@dataclass(frozen=True)
class PiecewiseFilter:
    """Finds how far the patches of frames lie from those of a template.

    Parameters
    ----------
    matched : MatchedFilter
        Filters of the patches.
    grid : Grid
        The patches.
    max_deviation : float
        Largest deviation from the frame's own shift, px.
    noise : ndarray (y, x frequency) or None
        Power of what frames have and the template has not.
    """

    matched: MatchedFilter
    grid: Grid
    max_deviation: float
    noise: Floats | None

    @classmethod
    def of(
        cls,
        template: Floats,
        grid: Grid,
        max_deviation: float,
        noise: Floats | None = None,
        high_pass: float = 0.0,
        smoothing: float = 0.0,
    ) -> PiecewiseFilter:
        """Make the filters of a template (z, y, x); the rest as in `RigidFilter.of`."""
        band = Band.of(grid.size, high_pass, smoothing)
        lag = int(np.ceil(max_deviation + 0.5))
        matched = MatchedFilter.of(template, grid.windows, band, lag, noise)
        return cls(matched, grid, max_deviation, noise)

    def shifts(self, frames: NDArray[Any], rigid: Floats) -> Floats:
        """Return the shift of each patch of frames whose own shifts are known.

        Where the best lag of a patch is hardly more likely than a distant one, its correlation and
        those of its neighbours are added up, up to three times.

        Parameters
        ----------
        frames : ndarray (n, z, y, x)
            Frames in any real type; what is not finite counts as the mean of the frame.
        rigid : ndarray (n, 3)
            Shifts of the frames, (z, y, x), px and planes.

        Returns
        -------
        ndarray (n, z, grid_y, grid_x, 2), float32
            Whole shifts in px, order (y, x), within `max_deviation` of the frame's.
        """
        shifts = np.empty((len(frames), *self.grid.shape, 2), np.float32)
        source = for_numba(frames)
        neighbours = self.grid.neighbours()
        for frame, shift, out in zip(source, rigid.astype(np.float64), shifts, strict=True):
            found = self._shifts(finite(frame), shift, neighbours)
            nearest = np.clip(found, shift[1:] - self.max_deviation, shift[1:] + self.max_deviation)
            out[:] = nearest.reshape(out.shape)
        return shifts

    def power(self, frame: NDArray[Any]) -> Floats:
        """Return the power (y, x frequency) of a frame (z, y, x), a mean over the patches."""
        spectra = self.matched.spectra(finite(for_numba(frame)))
        return np.asarray((np.abs(spectra) ** 2).mean(axis=0))

    def without_noise(self, shifts: Floats, usable: NDArray[np.bool_]) -> Floats:
        """Return shifts as `shifts` found them without what noise adds, plane by plane.

        See the function `without_noise`.
        """
        clean = np.empty_like(shifts)
        for plane in range(self.grid.planes):
            part = slice(plane, plane + 1)
            clean[:, part] = without_noise(shifts[:, part], self.covariance(plane), usable)
        return clean

    def covariance(self, plane: int = 0) -> Doubles:
        """Return the covariance (patch and axis, patch and axis) that noise gives shifts, px^2.

        Of the patches of one plane; planes share no noise.
        """
        noise = self.matched.noise if self.noise is None else self.noise
        shared = self.grid.shared_noise(self.matched.band.taper)
        own = slice(plane * len(shared), (plane + 1) * len(shared))
        variance = self.matched.variance(noise, moderated=True, windows=own)
        each = np.linalg.cholesky(variance + 1e-9 * np.eye(2))
        size = 2 * len(shared)
        covariance = np.einsum("pq,pab,qcb->paqc", shared, each, each)
        return np.asarray(covariance.reshape(size, size), np.float64)

    def _shifts(self, frame: NDArray[Any], rigid: Doubles, neighbours: Floats) -> Doubles:
        """Return the shift (patch, 2) of each patch of a frame (z, y, x)."""
        whole = np.rint(rigid).astype(np.int64)
        windows, (height, width) = self.matched.windows, self.grid.size
        planes = windows.planes - whole[0]
        outside = (planes < 0) | (planes >= len(frame))
        planes = planes.clip(0, len(frame) - 1)
        tops, lefts = windows.tops - whole[1], windows.lefts - whole[2]
        inside_y = tops.clip(0, frame.shape[1] - height)
        inside_x = lefts.clip(0, frame.shape[2] - width)
        there = Windows(planes, inside_y, inside_x, self.grid.size)
        spectra = self.matched.band.spectra(frame, there, self.matched.level)
        spectra = self.matched.turned(spectra, inside_y - tops, inside_x - lefts)
        products = self.matched.products(spectra)
        maps = self.matched.maps(products)
        sure = self._pool(products, maps, neighbours)
        lags = self.matched.peaks(products, maps)
        far = np.flatnonzero(sure & (np.abs(np.rint(lags)) > 0).any(axis=1))
        if len(far):
            places = planes[far], tops[far], lefts[far]
            lags[far] = self._second_look(frame, far, places, np.rint(lags[far]).astype(np.int64))
        shifts: Doubles = whole[1:] - lags
        shifts[outside] = rigid[1:]  # there is nothing to see
        shifts[~np.isfinite(shifts).all(axis=1)] = rigid[1:]
        return shifts

    def _pool(self, products: Complex, maps: Floats, neighbours: Floats) -> NDArray[np.bool_]:
        """Add to uncertain patches, in place, their neighbours; return which were certain."""
        certain = np.ones(len(maps), bool)
        for _ in range(POOLINGS if len(maps) > 1 else 0):
            unsure = np.flatnonzero(self._margins(maps) < CERTAIN)
            if not len(unsure):
                break
            certain[unsure] = False
            weights = neighbours[unsure]
            products[unsure] = np.tensordot(weights, products, 1)
            maps[unsure] = np.tensordot(weights, maps, 1)
        return certain

    def _second_look(
        self,
        frame: NDArray[Any],
        chosen: NDArray[np.int64],
        places: tuple[NDArray[np.int64], ...],
        moved: NDArray[np.int64],
    ) -> Doubles:
        """Return lags of patches cut again where their content lies by whole px.

        So the taper hides the same part of the scene in the frame and in the template.
        """
        planes, tops, lefts = places[0], places[1] + moved[:, 0], places[2] + moved[:, 1]
        height, width = self.grid.size
        inside_y = tops.clip(0, frame.shape[1] - height)
        inside_x = lefts.clip(0, frame.shape[2] - width)
        there = Windows(planes, inside_y, inside_x, self.grid.size)
        matched = self.matched.only(chosen)
        spectra = matched.band.spectra(frame, there, matched.level)
        products = matched.products(matched.turned(spectra, inside_y - tops, inside_x - lefts))
        near = slice(max(0, matched.max_lag - 2), matched.max_lag + 3)
        return moved + matched.peaks(products, matched.maps(products)[:, near, near])

    def _margins(self, maps: Floats) -> Floats:
        """Return by how much the log-likelihood of the best lag exceeds that of distant ones."""
        lags = np.arange(maps.shape[1])
        peak = np.divmod(maps.reshape(len(maps), -1).argmax(axis=1), maps.shape[2])
        far_y, far_x = (np.abs(lags - at[:, None]) > DISTANT for at in peak)
        far = far_y[:, :, None] | far_x[:, None, :]
        second = np.where(far, maps, -np.inf).max(axis=(1, 2))
        margins: Floats = (maps.max(axis=(1, 2)) - second) * self.matched.independence
        return margins


def without_noise(shifts: Floats, covariance: Doubles, usable: NDArray[np.bool_]) -> Floats:
    """Return the shifts of patches without what noise adds to them.

    Patches move together, noise does not. The shifts are taken to coordinates in which noise has
    the variance 1; in the directions in which they vary by more than that, each is reduced by what
    noise adds there (the shrinkage of Gavish & Donoho 2017, doi:10.1109/TIT.2017.2653801). What
    is left in the other directions is dropped where it is no more than noise, and reduced
    (James & Stein 1961) where a frame moved as it never does otherwise.

    Parameters
    ----------
    shifts : ndarray (n, z, grid_y, grid_x, 2), float32
        As they were found, px.
    covariance : ndarray (patch and axis, patch and axis)
        Of their noise, px^2: see `PiecewiseFilter.covariance`.
    usable : ndarray of bool (n,)
        Frames to learn from.

    Returns
    -------
    ndarray (n, z, grid_y, grid_x, 2), float32
        Shifts in px; as they were where there are fewer than 2 usable frames.
    """
    n_usable = int(usable.sum())
    if n_usable < 2:
        return shifts
    flat = shifts.reshape(len(shifts), -1)
    size = flat.shape[1]
    centre = np.median(flat[usable], axis=0)
    noise = MORE_NOISE**2 * (covariance + 1e-6 * np.trace(covariance) / size * np.eye(size))
    colour = np.linalg.cholesky(noise)
    whiten = np.linalg.inv(colour).T
    second = np.zeros((size, size))
    for part in blocks(len(flat), FRAMES_PER_PART):
        white = (flat[part][usable[part]] - centre) @ whiten
        second += white.T @ white
    values, directions = np.linalg.eigh(second / n_usable)
    gain = _gains(values, size / n_usable)
    clean = np.empty_like(flat)
    for part in blocks(len(flat), FRAMES_PER_PART):
        along = ((flat[part] - centre) @ whiten) @ directions
        kept = along * np.where(gain > 0, np.maximum(gain, _beyond(along, values)), 0)
        rest = along[:, gain == 0]
        kept[:, gain == 0] = rest * _excess(rest)[:, None]
        clean[part] = (kept @ directions.T) @ colour.T + centre
    return clean.reshape(shifts.shape)


def _gains(values: Doubles, ratio: float) -> Doubles:
    """Return the part of each variance that is not noise, 0 where it may be noise alone."""
    edge = (1 + np.sqrt(ratio)) ** 2
    free = values + 1 - ratio
    true = (free + np.sqrt(np.maximum(free**2 - 4 * values, 0))) / 2
    return np.where(values > 1.02 * edge, 1 - 1 / np.maximum(true, 1), 0.0)


def _beyond(along: Doubles, values: Doubles) -> Doubles:
    """Return the part that is not noise of what lies far outside of all else in a direction."""
    power = along**2
    return np.where(power > 9 * np.maximum(values, 1), 1 - 1 / np.maximum(power, 1), 0.0)


def _excess(rest: Doubles) -> Doubles:
    """Return what part of the rest (n, direction) of each frame is more than noise."""
    size = rest.shape[1]
    power = (rest**2).sum(axis=1)
    beyond = power > size + 3 * np.sqrt(2 * size)
    return np.where(beyond, 1 - size / np.maximum(power, 1e-9), 0.0)


def _starts(n: int, size: int, overlap: int) -> NDArray[np.int64]:
    """Return evenly spaced first pixels of patches, the last one ending with the axis."""
    count = 1 + -(-(n - size) // max(1, size - overlap))
    return np.rint(np.linspace(0, n - size, count)).astype(np.int64)


def _overlaps(starts: NDArray[np.int64], fade: Floats) -> Doubles:
    """Return what windows along one axis have in common, 1 with themselves."""
    weights = np.zeros((len(starts), int(starts[-1]) + len(fade)))
    for row, start in zip(weights, starts, strict=True):
        row[start : start + len(fade)] = fade.astype(np.float64) ** 2
    shared: Doubles = weights @ weights.T
    return np.asarray(shared / shared[0, 0])
