from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray

from napari_calcium.extraction.temporal import demixed_traces, denoise


def test_it_is_least_squares() -> None:
    """To 1e-4 of the traces: a ridge of 1e-6 on footprints that overlap."""
    rng = np.random.default_rng(0)
    footprints = sp.csc_array(rng.random((37 * 53, 8)) * (rng.random((37 * 53, 8)) < 0.1))
    pixels = rng.normal(size=(37 * 53, 40)) + footprints @ rng.exponential(5, (8, 40))
    expected = np.linalg.lstsq(footprints.toarray(), pixels, rcond=None)[0]
    found = demixed_traces(footprints, (footprints.T @ pixels).astype(np.float32))
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_any_scale_of_a_footprint_is_undone() -> None:
    footprints = np.zeros((12, 2))
    footprints[:6, 0], footprints[4:, 1] = 1e4, 1e-4
    traces = np.array([[1e-4, 0, 3e-4], [2e4, 1e4, 0]])
    found = demixed_traces(sp.csc_array(footprints), footprints.T @ (footprints @ traces))
    scale = traces.max(axis=1, keepdims=True)
    np.testing.assert_allclose(found / scale, traces / scale, atol=1e-5)


def test_an_empty_footprint_has_a_trace_of_zeros_and_twins_share() -> None:
    footprints = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    found = demixed_traces(sp.csc_array(footprints), footprints.T @ np.array([[2.0], [2.0]]))
    np.testing.assert_allclose(found[:, 0], [1, 1, 0], atol=1e-5)


def test_no_footprints() -> None:
    none = demixed_traces(sp.csc_array((9, 0), dtype=np.float32), np.zeros((0, 5), np.float32))
    assert none.shape == (0, 5)


def noisy(seed: int, rise: float = 0.0, snr: float = 6) -> tuple[NDArray[Any], NDArray[Any]]:
    """Six traces of 2000 frames around 50 with noise of 1, decay of 12 frames, and the calcium."""
    rng = np.random.default_rng(seed)
    after = np.arange(150)
    kernel = np.exp(-after / 12) - (np.exp(-after / rise) if rise else 0)
    spikes = rng.random((6, 2000)) < 0.02
    calcium = snr * np.stack([np.convolve(each, kernel / kernel.max())[:2000] for each in spikes])
    return 50 + calcium + rng.normal(size=calcium.shape), calcium


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("penalized", [False, True])
@pytest.mark.parametrize(("order", "rise"), [(1, 0.0), (2, 3.0), (2, 0.0)])
def test_the_calcium_is_found(order: int, rise: float, penalized: bool, seed: int) -> None:
    """With its baseline, noise and time constants, each to a part that is said."""
    traces, calcium = noisy(seed, rise)
    found = denoise(traces, order, penalized)
    for each, true in zip(found.calcium, calcium, strict=True):
        assert np.corrcoef(each, true)[0, 1] > 0.98
    assert found.activity.min() >= 0
    np.testing.assert_allclose(found.baseline, 50, atol=0.5)
    np.testing.assert_allclose(found.noise, 1, rtol=0.1)
    np.testing.assert_allclose(found.time_constants[:, 0], 12, rtol=0.3)
    if rise:
        np.testing.assert_allclose(found.time_constants[:, 1], rise, rtol=0.55)
    else:
        assert np.all(~(found.time_constants[:, 1] > 0.6))


def test_a_penalty_makes_silence_nearly_silent() -> None:
    noise = 50 + np.random.default_rng(2).normal(size=(3, 2000))
    sums = [denoise(noise, penalized=each).activity.sum() for each in (False, True)]
    assert sums[1] < 0.05 * sums[0]


@pytest.mark.parametrize("seed", [3, 4])
def test_a_penalty_makes_transients_smaller(seed: int) -> None:
    """Measured at 3 times the noise: 0.91 and 0.93 of their height, with a penalty 0.81, 0.84."""
    traces, calcium = noisy(seed, snr=3)
    heights, agreements = [], []
    for penalized in (False, True):
        found = denoise(traces, penalized=penalized).calcium - 50
        top = calcium > 0.7 * calcium.max(axis=1, keepdims=True)
        heights.append(found[top].mean() / calcium[top].mean())
        pairs = zip(found, calcium, strict=True)
        agreements.append(np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs]))
    assert heights[0] > 0.88 > 0.86 > heights[1]
    assert agreements[0] > agreements[1]


def test_order_0_leaves_traces_alone() -> None:
    traces, _ = noisy(4)
    found = denoise(traces, order=0)
    np.testing.assert_array_equal(found.calcium, traces.astype(np.float32))
    assert found.activity.min() == 0
    assert np.isnan(found.time_constants).all()
    silent = denoise(50 + np.random.default_rng(5).normal(size=(3, 4000)), order=0)
    np.testing.assert_allclose(silent.baseline, 50, atol=0.1)


def test_shared_time_constants_are_the_same_in_all() -> None:
    found = denoise(noisy(6)[0], shared=True)
    assert np.ptp(found.time_constants[:, 0]) == 0


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("shape", [(0, 30), (2, 1), (2, 2), (3, 40)])
def test_traces_that_show_nothing(order: int, shape: tuple[int, int]) -> None:
    found = denoise(np.full(shape, 7.0), order)
    assert found.calcium.shape == found.activity.shape == shape
    np.testing.assert_allclose(found.calcium, 7, atol=1e-4)
    np.testing.assert_allclose(found.activity, 0, atol=1e-4)
    assert found.noise.shape == found.baseline.shape == shape[:1]
    assert found.time_constants.shape == (shape[0], 2)


@pytest.mark.parametrize("order", [1, 2])
def test_a_missing_frame_makes_only_its_own_trace_unknown(order: int) -> None:
    traces, calcium = noisy(7)
    traces[2, 900] = np.nan
    found = denoise(traces, order)
    assert np.isnan(found.calcium[2]).all()
    for i in (0, 1, 3, 4, 5):
        assert np.corrcoef(found.calcium[i], calcium[i])[0, 1] > 0.98


def test_the_noise_of_traces_that_are_left_alone_is_not_their_transients() -> None:
    """Transients of 20 times the noise that fall by a sixth from frame to frame."""
    rng = np.random.default_rng(8)
    spikes = rng.random((4, 3000)) < 0.02
    calcium = 20 * np.stack([np.convolve(s, 0.84 ** np.arange(60))[:3000] for s in spikes])
    found = denoise(calcium + rng.normal(size=calcium.shape), order=0)
    np.testing.assert_allclose(found.noise, 1, atol=0.6)
    np.testing.assert_allclose(found.baseline, 0, atol=0.8)
