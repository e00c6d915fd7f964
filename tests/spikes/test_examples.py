from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from napari_calcium.errors import InputError
from napari_calcium.spikes.examples import (
    FRAME_RATES,
    FRAMES,
    NOISE_LEVELS,
    SCALED,
    STRETCHED,
    Library,
    Segments,
    SpikeTrainingParameters,
    draw_segments,
)
from napari_calcium.spikes.features import N_FEATURES
from napari_calcium.spikes.ground_truth import (
    Dataset,
    Recording,
    gaussian_kernel,
    smooth,
    spikes_per_frame,
)
from napari_calcium.spikes.noise import noise_level

Simulate = Callable[..., Recording]
PUBLISHED = SpikeTrainingParameters(design="published", frame_rate=30.0, noise=2.0)


def draw(
    recordings: Recording | list[Recording],
    parameters: SpikeTrainingParameters,
    n: int = 12,
    seed: int = 0,
) -> Segments:
    given = [recordings] if isinstance(recordings, Recording) else recordings
    library = Library([Dataset("A", tuple(given))], upsampled=parameters.design == "published")
    return draw_segments(library, parameters, n, np.random.default_rng(seed))


def places(segments: Segments, recording: Recording) -> list[int]:
    """Return where in the recording the spikes of each stretch are found."""
    counts = spikes_per_frame(recording)
    windows = np.lib.stride_tricks.sliding_window_view(counts, FRAMES)
    found = []
    for truth in segments.truth:
        (at,) = np.flatnonzero((windows == truth[:, 0]).all(axis=1))
        found.append(int(at))
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_stretches_have_their_own_spikes(simulated: Simulate, seed: int) -> None:
    """Each is found at one place of the recording, and dF/F there is that of the stretch.

    But for the noise that is added: 2 % per root Hz are an sd of 0.115.
    """
    one = simulated(seed, seconds=120, noise=0.02)
    segments = draw(one, PUBLISHED, seed=seed)
    assert segments.traces.shape == (12, FRAMES, 1)
    assert segments.features.shape == (12, N_FEATURES)
    assert segments.truth.shape == (12, FRAMES, 3)
    assert all(values.dtype == np.float32 for values in vars(segments).values())
    for at, trace in zip(places(segments, one), segments.traces, strict=True):
        away = trace[:, 0] - one.dff[at : at + FRAMES]
        assert abs(away.mean()) < 0.02
        assert 0.08 < away.std() < 0.15
    assert len(set(places(segments, one))) > 6


def test_every_stretch_says_how_much_there_is_to_learn(simulated: Simulate) -> None:
    one = simulated(0, seconds=120)
    truth = draw(one, PUBLISHED).truth
    assert (truth[:, :, 1] == 1).all()
    smoothed = smooth(spikes_per_frame(one), gaussian_kernel(1.5, 1.0))  # 0.05 s at 30 Hz
    np.testing.assert_allclose(truth[:, :, 2], 1 / (np.mean(smoothed**2) + 1e-4), rtol=1e-5)


@pytest.mark.parametrize("level", [1.0, 2.0, 6.0])
def test_the_noise_level_is_reached(simulated: Simulate, level: float) -> None:
    """To 8 % in the mean: 512 frames of each trace are seen, the level is that of the whole."""
    parameters = replace(PUBLISHED, noise=level)
    traces = draw(simulated(0, seconds=300, noise=0.02), parameters, 20).traces[:, :, 0]
    np.testing.assert_allclose(noise_level(traces, 30.0).mean(), level, rtol=0.08)


def test_noise_levels_are_spread_above_that_of_the_recording(simulated: Simulate) -> None:
    """Evenly in logarithms, but for what is made larger or smaller and stretched."""
    one = simulated(0, seconds=60, noise=0.1)  # 1.7 % per root Hz
    own = float(noise_level(one.dff, 30.0))
    parameters = SpikeTrainingParameters(frame_rate=30.0)
    told = draw(one, parameters, 150).features
    noise = 0.1 * np.exp(told[:, 1])
    scale, least = np.exp(SCALED), own * np.sqrt(30) / 95.4
    most = NOISE_LEVELS[1] * np.sqrt(30) / 95.4
    assert noise.min() > least / scale * 0.9
    assert noise.max() < most * scale * 1.1
    assert noise.max() / noise.min() > 5
    middle = np.sqrt(least * most)
    assert 0.3 < np.mean(noise < middle) < 0.7
    rates = 15 * np.exp(told[:, 0])
    assert (np.abs(np.log(rates / 30)) <= STRETCHED + 1e-6).all()
    assert rates.std() > 1


def test_recordings_stand_for_lower_frame_rates_only(simulated: Simulate) -> None:
    recordings = tuple(simulated(0, rate, neuron=f"{rate}") for rate in (7.5, 30.0))
    library = Library([Dataset("A", recordings), Dataset("B", recordings[:1])])
    assert library.rates(0, FRAME_RATES) == [rate for rate in FRAME_RATES if rate <= 30]
    assert library.rates(1, FRAME_RATES) == [rate for rate in FRAME_RATES if rate <= 7.5]
    assert set(library.neurons(0, 30.0)) == {"30.0"}
    assert set(library.neurons(0, 7.5)) == {"7.5", "30.0"}
    ((dff, counts),) = library.neurons(0, 10.0)["30.0"]
    assert len(dff) == len(counts) == 600
    assert counts.sum() == spikes_per_frame(recordings[1]).sum()
    assert library.neurons(0, 10.0) is library.neurons(0, 10.0)
    every = Library([Dataset("B", recordings[:1])], upsampled=True)
    assert every.rates(0, FRAME_RATES) == list(FRAME_RATES)
    assert len(every.neurons(0, 60.0)["7.5"][0][0]) == 3600


def test_datasets_are_drawn_by_the_root_of_their_minutes(simulated: Simulate) -> None:
    long, short = simulated(0, seconds=90), simulated(1, seconds=10)
    library = Library([Dataset("A", (long,)), Dataset("B", (short,))])
    np.testing.assert_allclose(library.weights(), [0.75, 0.25])


@pytest.mark.parametrize("seed", [0, 1])
def test_short_recordings_are_filled_up_without_weight(simulated: Simulate, seed: int) -> None:
    one = simulated(seed, seconds=10, noise=0.02)
    for parameters in (PUBLISHED, SpikeTrainingParameters(frame_rate=30.0)):
        segments = draw(one, parameters, 5, seed)
        assert segments.traces.shape[1] == FRAMES
        assert (segments.truth[:, :300, 1] == 1).all()
        assert not segments.truth[:, 300:].any()
        assert not segments.traces[:, 300:].any()
        for truth in segments.truth:
            np.testing.assert_array_equal(truth[:300, 0], spikes_per_frame(one))


def test_the_conditioned_network_sees_two_channels(simulated: Simulate) -> None:
    segments = draw(simulated(0), SpikeTrainingParameters(frame_rate=30.0))
    assert segments.traces.shape[2] == 2
    assert np.isfinite(segments.traces).all()
    assert np.isfinite(segments.features).all()
    # the larger a frame is in one unit, the larger in the other
    for one in segments.traces:
        np.testing.assert_array_equal(np.argsort(one[:, 0])[-5:], np.argsort(one[:, 1])[-5:])


@pytest.mark.parametrize("parameters", [PUBLISHED, SpikeTrainingParameters()])
def test_the_same_seed_gives_the_same(
    datasets: tuple[Dataset, ...], parameters: SpikeTrainingParameters
) -> None:
    def drawn(seed: int) -> Segments:
        library = Library(datasets, upsampled=parameters.design == "published")
        return draw_segments(library, parameters, 10, np.random.default_rng(seed))

    first, second, other = drawn(0), drawn(0), drawn(1)
    for name, values in vars(first).items():
        assert len(values) == 10
        np.testing.assert_array_equal(values, getattr(second, name))
    assert (first.traces != other.traces).any()


# ------------------------------------------------------------------------------- nothing to use


@pytest.mark.parametrize("n", [1, 5, 40])
def test_what_cannot_be_used_is_said(simulated: Simulate, n: int) -> None:
    noisy = simulated(0, noise=0.5)  # 8.7 % per root Hz
    with pytest.raises(InputError, match=r"none of the 1 datasets .* 30 Hz and noise levels of 2;"):
        draw(noisy, PUBLISHED, n)
    slow = simulated(0, 7.5)
    with pytest.raises(InputError, match=r"rates of 30 Hz and noise levels of 0\.2 to 12;"):
        draw(slow, SpikeTrainingParameters(frame_rate=30.0), n)
    with pytest.raises(InputError, match="frame rates of 2 to 60 Hz"):
        draw(simulated(0, seconds=0.4), SpikeTrainingParameters(), n)


def test_recordings_with_unknown_frames_are_left_out(simulated: Simulate) -> None:
    whole, broken = simulated(0, neuron="whole"), simulated(1, neuron="broken")
    broken.dff[100] = np.nan
    library = Library([Dataset("A", (whole, broken))])
    assert set(library.neurons(0, 30.0)) == {"whole"}


# ------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("values", [{}, {"frame_rate": 30.0}, {"noise": 2.0}])
def test_the_published_design_is_for_one_rate_and_level(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="serves one frame rate and one noise level; give"):
        SpikeTrainingParameters(design="published", **values)


def test_the_conditioned_design_is_not_trained_causal() -> None:
    with pytest.raises(InputError, match=r"causal is True and the conditioned design .*; leave"):
        SpikeTrainingParameters(causal=True)
    assert replace(PUBLISHED, causal=True).causal


@pytest.mark.parametrize(
    ("frame_rate", "smoothing", "used"),
    [(30.0, 0.05, 0.05), (7.5, 0.05, 0.2), (7.5, 0.3, 0.3), (60.0, 0.05, 0.05)],
)
def test_smoothing_is_of_one_and_a_half_frames_at_least(
    frame_rate: float, smoothing: float, used: float
) -> None:
    chosen = replace(PUBLISHED, frame_rate=frame_rate, smoothing=smoothing)
    assert chosen.smoothing_used == pytest.approx(used)
    assert chosen.smoothing_used * frame_rate == pytest.approx(chosen.smoothing_frames)
    assert chosen.to_mapping()["smoothing"] == smoothing
    assert SpikeTrainingParameters(smoothing=smoothing).smoothing_used == smoothing


def test_what_networks_are_for() -> None:
    every = SpikeTrainingParameters()
    assert (every.frame_rates, every.noise_levels) == ((2.0, 60.0), NOISE_LEVELS)
    assert every.examples_at == FRAME_RATES
    assert every.smoothing_frames == 1.5
    one = SpikeTrainingParameters(frame_rate=100.0, noise=3.0, smoothing=0.1)
    assert (one.frame_rates, one.noise_levels) == ((100.0, 100.0), (3.0, 3.0))
    assert one.examples_at == (100.0,)
    assert one.smoothing_frames == pytest.approx(10)
