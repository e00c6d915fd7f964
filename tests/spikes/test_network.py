"""The designs, as Keras models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_calcium.spikes.features import N_FEATURES
from napari_calcium.spikes.network import (
    AFTER,
    BEFORE,
    WINDOW,
    build_conditioned,
    build_published,
    build_windowed,
)

pytestmark = pytest.mark.tensorflow

SINGLE_PRECISION = 1e-5
"""Sums of some thousand products of single precision, in another order; the results are about 1."""


def at_random(model: Any, seed: int) -> Any:
    """The same model with random weights, biases too."""
    random = np.random.default_rng(seed)
    weights = model.get_weights()
    sizes = [0.5 / np.sqrt(max(1, np.prod(one.shape[:-1]))) for one in weights]
    model.set_weights(
        [random.normal(0, 2 * s, one.shape) for s, one in zip(sizes, weights, strict=True)]
    )
    return model


def noise(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def test_the_published_design_has_its_weights() -> None:
    """34,381, as in Rupprecht et al. 2021."""
    assert build_windowed().count_params() == 34_381
    assert build_published().count_params() == 34_381


@pytest.mark.parametrize("seed", [0, 1])
def test_one_pass_gives_what_windows_give(seed: int) -> None:
    """On every frame, the weights copied; the last ones in another shape."""
    windowed, published = at_random(build_windowed(), seed), build_published()
    shapes = [one.shape for one in published.get_weights()]
    copied = [one.reshape(shape) for one, shape in zip(windowed.get_weights(), shapes, strict=True)]
    published.set_weights(copied)
    trace = noise(seed, 200)
    windows = np.lib.stride_tricks.sliding_window_view(trace, WINDOW)[..., None]
    expected = windowed(windows).numpy()[:, 0]
    found = published(trace[None, :, None]).numpy()[0, :, 0]
    assert len(found) == len(trace) - BEFORE - AFTER
    assert WINDOW == BEFORE + AFTER + 1
    np.testing.assert_allclose(found, expected, atol=SINGLE_PRECISION)
    assert np.ptp(expected) > 0.1


@pytest.mark.parametrize("n_frames", [1, 37, 300])
def test_the_conditioned_design_gives_every_frame_a_rate(n_frames: int) -> None:
    model = at_random(build_conditioned(), 0)
    trace, features = noise(1, 2, n_frames, 2), noise(2, 2, N_FEATURES)
    found = model([trace, features]).numpy()
    assert found.shape == (2, n_frames, 1)
    assert (found >= 0).all()
    alone = model([trace[:1], features[:1]]).numpy()
    np.testing.assert_allclose(alone[0], found[0], rtol=1e-4, atol=SINGLE_PRECISION)


def test_the_conditioned_design_uses_what_it_is_told() -> None:
    model = at_random(build_conditioned(), 0)
    trace = noise(1, 1, 100, 2)
    found = [model([trace, noise(seed, 1, N_FEATURES)]).numpy() for seed in (2, 3)]
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_it_begins_near_no_spikes() -> None:
    """softplus(-2) is 0.13; the first weights of what is told are 0."""
    found = build_conditioned()([noise(1, 1, 100, 2), noise(2, 1, N_FEATURES)]).numpy()
    assert 0.01 < np.median(found) < 0.6


def test_other_sizes() -> None:
    model = build_conditioned(channels=4, dilations=(1, 3), taps=3)
    assert model([noise(1, 1, 9, 2), noise(2, 1, N_FEATURES)]).shape == (1, 9, 1)
    assert model.get_layer("conv_1").dilation_rate == (3,)
