"""What a simulated field looks like: somata, processes, what is out of focus, vessels, light.

Images of things are (pixels, weights): numbers of pixels, y * width + x, on a field of the `size`
(y, x), and the brightness there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.ndimage as ndi
import scipy.sparse as sp
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial import cKDTree

__all__ = [
    "WIDTH",
    "blob",
    "columns",
    "dendrite",
    "shadow",
    "smooth_noise",
    "soma",
    "vessel",
    "vignette",
]

Floats = NDArray[np.float32]
Image = tuple[NDArray[np.int64], Floats]

WIDTH = 2.355
"""Width of a Gaussian at half its maximum, in its standard deviations."""


def smooth_noise(random: Generator, size: tuple[int, int], sigma: float) -> Floats:
    """Gaussian noise of unit variance, smooth over `sigma` pixels."""
    image = ndi.gaussian_filter(random.standard_normal(size), sigma, mode="wrap")
    return np.asarray(image / image.std(), dtype=np.float32)


def vignette(size: tuple[int, int]) -> Floats:
    """Return how bright the field is towards its corners, relative to its middle."""
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in size)
    return np.asarray(1 - 0.2 * (y[:, None] ** 2 + x**2), dtype=np.float32)


def vessel(random: Generator, size: tuple[int, int]) -> NDArray[np.float64]:
    """Return the distance from the middle of a vessel from top to bottom, in its half-widths."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    start, slope, phase = random.uniform((0.2, -0.4, 0), (0.8, 0.4, 6.3))
    middle = size[1] * start + slope * y + 6 * np.sin(y / 17 + phase)
    return np.asarray((x - middle) / 3.5, dtype=np.float64)


def shadow(beside_vessel: NDArray[np.float64], width: float = 1.0) -> Floats:
    """Brightness beside a vessel whose width is the one given, relative to what it is at rest."""
    return np.asarray(1 - 0.5 * np.exp(-((beside_vessel / width) ** 4)), dtype=np.float32)


def _window(
    place: NDArray[np.float64], reach: float, size: tuple[int, int]
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Return pixel numbers around a place, and their distances from it along y and x."""
    low = np.maximum(np.floor(place - reach), 0).astype(int)
    high = np.minimum(np.ceil(place + reach) + 1, size).astype(int)
    y, x = np.mgrid[low[0] : high[0], low[1] : high[1]]
    away = (y - place[0]).astype(np.float32), (x - place[1]).astype(np.float32)
    return (y * size[1] + x).ravel(), away[0].ravel(), away[1].ravel()


def soma(
    place: NDArray[np.float64],
    radius: float,
    spread: float,
    nucleus_depth: float,
    size: tuple[int, int],
    random: Generator,
) -> Image:
    """Return pixels and weights of an irregular soma with a dark nucleus off its centre.

    Its own radius differs from the one given by up to the part `spread`; the nucleus is as dark as
    `nucleus_depth` says, 0 to 1.
    """
    pixels, y, x = _window(place, max(1.8, 1.5 * (1 + spread)) * radius + 2, size)
    radius *= random.uniform(1 - spread, 1 + spread)
    angle = np.arctan2(y, x)
    outline = np.ones_like(angle)
    for order, depth in ((2, 0.16), (3, 0.08), (4, 0.05), (5, 0.03)):
        outline += depth * random.normal() * np.cos(order * angle + random.uniform(0, 6.3))
    outline = radius * np.clip(outline, 0.55, 1.5)
    nucleus_y, nucleus_x = random.uniform(-0.15, 0.15, 2) * radius
    distance = np.hypot(y - nucleus_y, x - nucleus_x)
    nucleus = _edge(0.6 * outline - distance, 0.08 * radius)
    side = 1 + 0.25 * np.cos(angle + random.uniform(0, 6.3)) * np.hypot(y, x) / radius
    weights = _edge(outline - np.hypot(y, x), 0.09 * radius) * side
    weights *= 1 - random.uniform(0.4, 0.8) * nucleus_depth * nucleus
    return pixels, weights.astype(np.float32)


def _edge(inside: NDArray[Any], width: float) -> Floats:
    return np.asarray(1 / (1 + np.exp(np.clip(-inside / width, -30, 30))), dtype=np.float32)


def blob(place: NDArray[np.float64], sigma: float, size: tuple[int, int]) -> Image:
    """Return pixels and weights of a Gaussian."""
    pixels, y, x = _window(place, 3 * sigma, size)
    return pixels, np.exp(-(y**2 + x**2) / (2 * sigma**2))


def dendrite(
    start: NDArray[np.float64], radius: float, size: tuple[int, int], random: Generator
) -> Image:
    """Return pixels and weights of a process that winds from its start, thicker here and there."""
    length, sigma = random.uniform(3, 12) * radius, random.uniform(0.3, 0.6) * radius / WIDTH
    n = math.ceil(2 * length)  # steps of half a pixel
    bends = random.standard_normal(n) * math.sqrt(0.5 / (6 * radius))
    angle = random.uniform(0, 2 * math.pi) + np.cumsum(bends)
    path = start + 0.5 * np.cumsum(np.stack((np.sin(angle), np.cos(angle)), axis=1), axis=0)
    thickness = 1 + 0.25 * ndi.gaussian_filter1d(random.standard_normal(n), 4) * math.sqrt(14)
    middle = (path.min(0) + path.max(0)) / 2
    pixels, y, x = _window(middle, np.ptp(path, axis=0).max() / 2 + 3 * sigma, size)
    away, nearest = cKDTree(path - middle).query(np.stack((y, x), axis=1))
    weights = np.exp(-(away**2) / (2 * sigma**2)) * np.clip(thickness, 0.4, 1.6)[nearest]
    return pixels, weights.astype(np.float32)


def columns(images: list[Image], shading: Floats) -> sp.csc_array:
    """Gather (pixels, weights) as columns, shaded, without the faint ends."""
    kept = [(pixels[w > 0.03], w[w > 0.03]) for pixels, w in images]
    starts = np.cumsum([0, *(len(pixels) for pixels, _ in kept)])
    rows = np.concatenate([np.zeros(0, int), *(pixels for pixels, _ in kept)])
    weights = np.concatenate([np.zeros(0, np.float32), *(w for _, w in kept)])
    data = (weights * shading.ravel()[rows]).astype(np.float32)
    return sp.csc_array((data, rows, starts), shape=(shading.size, len(images)))
