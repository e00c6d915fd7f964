from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_calcium.deconvolution.autoregression import decay_coefficient, noise_level
from napari_calcium.deconvolution.constrained import deconvolve
from napari_calcium.deconvolution.decay import fitted_decay, fitted_rise

N_FRAMES = 3000


def traces_of(
    decay: float,
    seed: int,
    rise: float = 0.0,
    n_cells: int = 12,
    snr: float = 5,
    bursts: bool = True,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Noisy traces (noise of sd 1) and their calcium; time constants in frames."""
    rng = np.random.default_rng(seed)
    frames = np.arange(N_FRAMES)
    kernel = np.exp(-frames / decay) - (np.exp(-frames / rise) if rise else 0)
    rate = np.full((n_cells, N_FRAMES), 0.015)
    if bursts:  # an eighth of the time, eight times the rate, for 40 frames at a time
        states = rng.random((n_cells, N_FRAMES // 40)) < 0.125
        rate *= 0.3 + 7 * np.repeat(states, 40, axis=1)
    spikes = rng.poisson(rate)
    calcium = np.stack([np.convolve(each, kernel / kernel.max())[:N_FRAMES] for each in spikes])
    return 100 + snr * calcium + rng.normal(size=calcium.shape), calcium


def constants(coefficients: NDArray[np.float32]) -> NDArray[np.float64]:
    return -1 / np.log(np.asarray(coefficients, np.float64))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("decay", [4.0, 18.0, 60.0])
def test_the_decay_is_found_also_of_bursts(decay: float, seed: int) -> None:
    """Within a fifth; of 4 frames somewhat longer, as onsets pass for noise in part."""
    traces, _ = traces_of(decay, seed)
    found = constants(fitted_decay(traces))
    assert 0.8 * decay < np.median(found) < (1.2 if decay > 10 else 1.45) * decay
    assert np.all((found > 0.5 * decay) & (found < 2 * decay))


def test_the_autocovariance_takes_bursts_for_slow_calcium() -> None:
    """What the fit is there for; if this fails it has become superfluous."""
    traces, calcium = traces_of(18.0, seed=3)
    by_covariance = decay_coefficient(traces, np.ones(len(traces)))
    fitted = fitted_decay(traces)
    assert np.median(constants(by_covariance)) > 1.5 * np.median(constants(fitted))

    def agreement(decay: NDArray[np.float32]) -> float:
        noise = noise_level(traces)
        both = [
            (deconvolve(trace, g, sd, penalty="none").calcium, true)
            for trace, g, sd, true in zip(traces, decay, noise, calcium, strict=True)
        ]
        return float(np.median([np.corrcoef(*pair)[0, 1] for pair in both]))

    assert agreement(fitted) > agreement(by_covariance) + 0.003


def test_cells_may_differ() -> None:
    """Two kinds of cells: each with its own, not the mean of both."""
    slow, fast = traces_of(30.0, seed=4, snr=8)[0], traces_of(10.0, seed=5, snr=8)[0]
    found = constants(fitted_decay(np.concatenate([slow, fast])))
    np.testing.assert_allclose(np.median(found[:12]), 30, rtol=0.2)
    np.testing.assert_allclose(np.median(found[12:]), 10, rtol=0.2)


def test_a_silent_cell_gets_what_the_others_say() -> None:
    traces, _ = traces_of(18.0, seed=6)
    noise = np.random.default_rng(7).normal(100, 1, (2, N_FRAMES))
    constant, missing = np.full((1, N_FRAMES), 3.0), np.full((1, N_FRAMES), np.nan)
    found = constants(fitted_decay(np.concatenate([traces, noise, constant, missing])))
    assert np.all(np.abs(found[-4:] - 18) < 9)
    np.testing.assert_allclose(found[-2:], np.median(found[:-2]), rtol=1e-4)


def test_one_for_all() -> None:
    traces, _ = traces_of(18.0, seed=8)
    shared = fitted_decay(traces, shared=True)
    assert np.ptp(shared) == 0
    assert 0.8 * 18 < constants(shared)[0] < 1.25 * 18


@pytest.mark.parametrize("shape", [(0, 50), (2, 0), (2, 1), (2, 2), (1, 3), (3, 20)])
def test_too_little_to_see(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).normal(size=shape)
    for traces in (noise, np.zeros(shape), np.full(shape, np.nan)):
        found = fitted_decay(traces)
        assert found.shape == shape[:1]
        assert np.all((found > 0) & (found < 1))


def test_unit_and_offset_do_not_matter() -> None:
    """To a thousandth: traces are float32."""
    traces, _ = traces_of(18.0, seed=9, n_cells=4)
    found, scaled = fitted_decay(traces), fitted_decay(1000 * traces - 5e4)
    np.testing.assert_allclose(scaled, found, rtol=1e-3)


@pytest.mark.parametrize(("rise", "decay"), [(0.0, 18.0), (2.0, 18.0), (5.0, 40.0)])
def test_the_rise_is_found(rise: float, decay: float) -> None:
    """The rises tried are a factor 1.5 apart."""
    traces, _ = traces_of(decay, seed=10, rise=rise, snr=10)
    noise = np.ones(len(traces))
    found, decays = fitted_rise(traces, noise, constants(fitted_decay(traces, noise)))
    assert rise / 1.6 <= found <= max(1.6 * rise, 0.6)
    np.testing.assert_allclose(np.median(decays), decay, rtol=0.25)


def test_no_rise_where_nothing_is_to_be_seen() -> None:
    rise, decays = fitted_rise(np.full((2, 40), np.nan), np.ones(2), np.array([3.0, 4.0]))
    assert rise == 0
    np.testing.assert_array_equal(decays, [3, 4])


def test_a_long_trace_is_fitted_where_it_varies_most() -> None:
    """50,000 frames of which 3000 have transients: within a tenth of what these alone say."""
    traces, _ = traces_of(18.0, seed=5)
    traces = traces[:4]
    n_frames = traces.shape[1]
    long = np.random.default_rng(0).normal(size=(4, 50_000)) + 100
    long[:, 30_000 : 30_000 + n_frames] = traces
    expected = np.median(constants(fitted_decay(traces, np.ones(4))))
    assert np.median(constants(fitted_decay(long, np.ones(4)))) == pytest.approx(expected, rel=0.1)


def test_the_slowest_decay_is_kept() -> None:
    traces, _ = traces_of(60.0, seed=1)
    assert constants(fitted_decay(traces, slowest=30.0)).max() <= 30 * 1.001
    flat = np.ones((2, 100)) * np.arange(100)
    assert constants(fitted_decay(flat, slowest=30.0)).max() <= 30 * 1.001
