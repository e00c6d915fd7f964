"""Recordings with known motion, sampled out of a larger scene that moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

MARGIN = 16
Film = Callable[..., NDArray[Any]]


@pytest.fixture
def film(scene: Film) -> Film:
    """Frames (time, y, x) of a scene whose content lies where `places` (time, 2) say, in px.

    The scene is larger than the field, so motion brings in what was outside; nothing wraps. With
    `photons` per pixel the frames are Poisson counts (uint16), else noiseless float32.
    """

    def make(
        field: tuple[int, int],
        places: Any,
        photons: float | None = None,
        seed: int = 0,
        contrast: float = 0.7,
    ) -> NDArray[Any]:
        rng = np.random.default_rng(seed)
        larger = scene(tuple(n + 2 * MARGIN for n in field), rng, contrast)
        inside = tuple(slice(MARGIN, MARGIN + n) for n in field)
        frames = np.stack([ndimage.shift(larger, place, order=3)[inside] for place in places])
        if photons is None:
            return frames.astype(np.float32)
        counts: NDArray[Any] = rng.poisson(frames.clip(0) * (photons / larger.mean()))
        return counts.astype(np.uint16)

    return make


@pytest.fixture
def scene() -> Film:
    """Images of any size: above 0, as bright on the whole as 1, with detail of 2 px."""

    def make(size: tuple[int, ...], seed: Any = 0, contrast: float = 0.7) -> NDArray[Any]:
        texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), 2.0)
        image: NDArray[Any] = np.exp(contrast * texture / texture.std())
        return image

    return make


@pytest.fixture
def view() -> Film:
    """Look at a scene through a field inside of it, by cubic splines.

    Its content lies `place` px, (y, x) or an image (2, y, x) of it, from where it would be at rest.
    """

    def make(image: NDArray[Any], field: tuple[int, ...], place: Any = (0, 0)) -> NDArray[Any]:
        starts = np.reshape(
            [(m - n) // 2 for m, n in zip(image.shape, field, strict=True)], (-1, 1, 1)
        )
        away = np.reshape(place, (2, 1, 1)) if np.size(place) == 2 else place
        return ndimage.map_coordinates(image, np.indices(field) + starts - away, order=3)

    return make


@pytest.fixture
def no_computing() -> Callable[..., Any]:
    """A scheduler for Dask with which nothing can be computed."""

    def raises(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the builder computed")

    return raises
