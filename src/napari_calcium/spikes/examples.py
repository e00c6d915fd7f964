"""Examples to train networks with: stretches of noisy traces and their spikes.

Recordings are resampled to the frame rates, and made noisy to the noise levels, for which a network
is trained, as in Rupprecht et al. 2021, doi:10.1038/s41593-021-00895-5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.parameters import Parameters, parameter
from napari_calcium.spikes.features import channels, trace_features
from napari_calcium.spikes.ground_truth import (
    SAME_RATE,
    Dataset,
    gaussian_kernel,
    resample,
    smooth,
    spikes_per_frame,
)
from napari_calcium.spikes.inference import LEAST_SMOOTHING
from napari_calcium.spikes.noise import add_noise, noise_level

__all__ = [
    "FRAMES",
    "FRAME_RATES",
    "NOISE_LEVELS",
    "Library",
    "Segments",
    "SpikeTrainingParameters",
    "draw_segments",
]

FRAME_RATES = (2.0, 3.0, 4.0, 5.5, 7.5, 10.0, 15.0, 20.0, 30.0, 42.0, 60.0)
"""Frame rates for which examples are made, those between them following by stretching, Hz."""

NOISE_LEVELS = (0.2, 12.0)
"""Noise levels that one network serves, % per root Hz."""

FRAMES = 512
"""Length of a stretch of a trace."""

FROM_ONE = 4
"""Stretches cut at most from one noisy trace."""

SHORTEST = 16
"""Recordings of fewer frames are not used."""

STRETCHED, SCALED = 0.2, 0.3
"""Up to so much, in logarithms, traces are taken to be faster or slower and larger or smaller."""

LEAST_POWER = 1e-4
"""Added to the mean square of spikes per frame, of which there may be none."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SpikeTrainingParameters(Parameters):
    """What networks are trained for, and how long.

    Parameters
    ----------
    design : {"conditioned", "published"}
        One network for any frame rate and noise, which is told of both and of how fast the
        indicator is; or that of Rupprecht et al. 2021, which serves one frame rate and one noise
        level.
    frame_rate : float
        The frame rate, Hz; 0 for 2 to 60 Hz, which only the conditioned network can. Cascade:
        sampling_rate.
    noise : float
        The noise level, % per root Hz; 0 for 0.2 to 12, which only the conditioned network can.
        Cascade: noise_levels.
    smoothing : float
        Sd of the Gaussian with which spikes are smoothed, s; at least 1.5 frames. What the
        conditioned network gives can be smoothed otherwise afterwards. Cascade: smoothing.
    causal : bool
        Whether the published network gives rates smoothed with a kernel that begins at the spike;
        those of the conditioned one can be smoothed so afterwards. Cascade: causal_kernel.
    members : int
        Networks of which the mean is taken. Cascade: ensemble_size.
    frames : float
        Frames that each is trained with, in millions.
    seed : int
        Of all random numbers; the members have this and those that follow.
    """

    design: Literal["conditioned", "published"] = "conditioned"
    frame_rate: float = parameter(0.0, unit="Hz", minimum=0, maximum=200)
    noise: float = parameter(0.0, unit="% Hz^-0.5", minimum=0, maximum=100)
    smoothing: float = parameter(0.05, unit="s", above=0, maximum=5)
    causal: bool = False
    members: int = parameter(5, minimum=1, maximum=100)
    frames: float = parameter(16.0, unit="million", above=0)
    seed: int = parameter(0, minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.design == "published" and not (self.frame_rate and self.noise):
            raise InputError(
                "the published design serves one frame rate and one noise level; give frame_rate "
                "(Hz) and noise (% per root Hz)"
            )
        if self.design == "conditioned" and self.causal:
            raise InputError(
                "causal is True and the conditioned design learns spikes that are not smoothed; "
                "leave causal out and choose the causal kernel when rates are inferred"
            )

    @property
    def frame_rates(self) -> tuple[float, float]:
        """Lowest and highest frame rate, Hz."""
        if not self.frame_rate:
            return FRAME_RATES[0], FRAME_RATES[-1]
        return self.frame_rate, self.frame_rate

    @property
    def noise_levels(self) -> tuple[float, float]:
        """Lowest and highest noise level, % per root Hz."""
        return (self.noise, self.noise) if self.noise else NOISE_LEVELS

    @property
    def smoothing_used(self) -> float:
        """Smoothing of the rates that are learned, s; at any frame rate the one asked for."""
        least = LEAST_SMOOTHING / self.frame_rate if self.frame_rate else 0.0
        return max(self.smoothing, least)

    @property
    def smoothing_frames(self) -> float:
        """Smoothing of the rates that are learned, in frames."""
        return max(LEAST_SMOOTHING, self.smoothing * self.frame_rate)

    @property
    def examples_at(self) -> tuple[float, ...]:
        """Frame rates for which examples are made, Hz."""
        return (self.frame_rate,) if self.frame_rate else FRAME_RATES


@dataclass
class Library:
    """Ground truth at several frame rates, each made when it is first asked for.

    Parameters
    ----------
    datasets : sequence of Dataset
        What is trained on.
    upsampled : bool
        Whether recordings also stand for higher frame rates than their own, as in the published
        training: frames are interpolated then.
    """

    datasets: Sequence[Dataset]
    upsampled: bool = False
    made: dict[tuple[int, float], dict[str, list[tuple[Floats, Floats]]]] = field(
        default_factory=dict, repr=False
    )
    scales: dict[tuple[int, float, float], float] = field(default_factory=dict, repr=False)

    def weights(self) -> NDArray[np.float64]:
        """Return how often each dataset is drawn: as the root of its minutes, of sum 1."""
        minutes = [sum(one.duration for one in each.recordings) for each in self.datasets]
        roots = np.sqrt(minutes)
        return np.asarray(roots / roots.sum())

    def rates(self, dataset: int, wanted: Sequence[float]) -> list[float]:
        """Return those of the wanted frame rates that a dataset can stand for."""
        fastest = max(one.frame_rate for one in self.datasets[dataset].recordings) * SAME_RATE
        return [rate for rate in wanted if self.upsampled or rate <= fastest]

    def neurons(self, dataset: int, frame_rate: float) -> dict[str, list[tuple[Floats, Floats]]]:
        """Return dF/F and spikes per frame of each neuron's recordings at a frame rate."""
        key = dataset, frame_rate
        if key not in self.made:
            found: dict[str, list[tuple[Floats, Floats]]] = {}
            for one in self.datasets[dataset].recordings:
                if self.upsampled or frame_rate <= one.frame_rate * SAME_RATE:
                    other = resample(one, frame_rate)
                    if len(other.dff) >= SHORTEST and np.isfinite(other.dff).all():
                        pair = other.dff, spikes_per_frame(other)
                        found.setdefault(one.neuron, []).append(pair)
            self.made[key] = found
        return self.made[key]

    def scale(self, dataset: int, frame_rate: float, smoothing: float) -> float:
        """Return one over the mean square of a dataset's spikes, smoothed by some frames.

        With it, errors count as much in datasets of few spikes, or of fast frames, as in others.
        """
        key = dataset, frame_rate, smoothing
        if key not in self.scales:
            taps = gaussian_kernel(smoothing, 1.0)
            powers = [
                np.mean(smooth(counts, taps) ** 2)
                for recordings in self.neurons(dataset, frame_rate).values()
                for _, counts in recordings
            ]
            self.scales[key] = float(1 / (np.mean(powers) + LEAST_POWER))
        return self.scales[key]


@dataclass(frozen=True)
class Segments:
    """Stretches of noisy traces with their spikes.

    Parameters
    ----------
    traces : ndarray of float32 (segment, time, channel)
        As the network sees them: see `features.channels`; or dF/F alone, of one channel.
    features : ndarray of float32 (segment, feature)
        Statistics of the traces they are cut from.
    truth : ndarray of float32 (segment, time, 3)
        Spikes per frame; 1 where there is a frame and 0 beyond the end of a short trace; and what
        squared errors are multiplied by: see `Library.scale`.
    """

    traces: Floats
    features: Floats
    truth: Floats


def draw_segments(
    library: Library, parameters: SpikeTrainingParameters, n_segments: int, random: Generator
) -> Segments:
    """Make examples: of random datasets, neurons, frame rates and noise levels.

    Parameters
    ----------
    library : Library
    parameters : SpikeTrainingParameters
    n_segments : int
        How many.
    random : numpy.random.Generator
        Where all that is random is from.

    Raises
    ------
    InputError
        If no recording can be used.
    """
    weights = library.weights()
    found: list[tuple[Floats, Floats, Floats]] = []
    for failures in range(max(1001, 50 * n_segments)):
        if len(found) >= n_segments:
            break
        if failures >= 1000 and not found:
            raise InputError(
                f"none of the {len(library.datasets)} datasets has a recording for frame rates of "
                f"{_range(parameters.frame_rates)} Hz and noise levels of "
                f"{_range(parameters.noise_levels)}; name others, or other rates"
            )
        dataset = int(random.choice(len(weights), p=weights))
        found.extend(_examples(library, dataset, parameters, random))
    columns = list(zip(*found[:n_segments], strict=True))
    return Segments(*(np.stack(column) for column in columns))


def _examples(
    library: Library, dataset: int, parameters: SpikeTrainingParameters, random: Generator
) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Yield stretches of one noisy trace; none where it is too noisy to begin with."""
    rates = library.rates(dataset, parameters.examples_at)
    if not rates:
        return
    rate = rates[random.integers(len(rates))]
    neurons = list(library.neurons(dataset, rate).values())
    if not neurons:
        return
    recordings = neurons[random.integers(len(neurons))]
    dff, counts = recordings[random.integers(len(recordings))]
    low, high = parameters.noise_levels
    low = max(low, float(noise_level(dff, rate)))
    level = float(np.exp(random.uniform(np.log(low), np.log(high)))) if low < high else high
    noisy = add_noise(dff, rate, level, random)
    if noisy is None:
        return
    scale = library.scale(dataset, rate, parameters.smoothing_frames)
    yield from _cut(noisy, counts, rate, scale, parameters, random)


def _cut(
    noisy: NDArray[np.float64],
    counts: Floats,
    rate: float,
    scale: float,
    parameters: SpikeTrainingParameters,
    random: Generator,
) -> Iterator[tuple[Floats, Floats, Floats]]:
    told = parameters.design == "conditioned"
    if told:  # what the trace of a faster or brighter indicator might be
        rate *= float(np.exp(random.uniform(-STRETCHED, STRETCHED)))
        noisy = noisy * np.exp(random.uniform(-SCALED, SCALED))
    features = trace_features(noisy, rate)
    seen = channels(noisy, features) if told else noisy.astype(np.float32)[:, None]
    truth = np.stack((counts, np.ones_like(counts), np.full_like(counts, scale)), axis=-1)
    for _ in range(min(FROM_ONE, max(1, len(noisy) // FRAMES))):
        first = random.integers(max(1, len(noisy) - FRAMES + 1))
        run = slice(first, first + FRAMES)
        short = ((0, max(0, FRAMES - len(noisy))), (0, 0))
        yield np.pad(seen[run], short), features.values, np.pad(truth[run], short)


def _range(values: tuple[float, float]) -> str:
    low, high = values
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
