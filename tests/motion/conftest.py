"""Recordings with known motion, cropped from a larger scene that moves."""

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
def film() -> Film:
    """Frames (time, y, x) of a scene whose content lies where `places` (time, 2) say, in px.

    The scene is larger than the field, so motion brings in what was outside; nothing wraps. With
    `photons` per pixel the frames are Poisson counts (uint16), else noiseless float32.
    """

    def make(
        field: tuple[int, int],
        places: Any,
        photons: float | None = None,
        seed: int = 0,
    ) -> NDArray[Any]:
        rng = np.random.default_rng(seed)
        larger = [n + 2 * MARGIN for n in field]
        texture = ndimage.gaussian_filter(rng.normal(size=larger), 2.0)
        scene = np.exp(0.7 * texture / texture.std())
        inside = tuple(slice(MARGIN, MARGIN + n) for n in field)
        frames = np.stack([ndimage.shift(scene, place, order=3)[inside] for place in places])
        if photons is None:
            return frames.astype(np.float32)
        counts: NDArray[Any] = rng.poisson(frames.clip(0) * (photons / scene.mean()))
        return counts.astype(np.uint16)

    return make
