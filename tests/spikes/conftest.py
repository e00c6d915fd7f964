"""Recordings of which every spike is known: exponential transients in white noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from napari_calcium.spikes.ground_truth import Dataset, Recording

Simulate = Callable[..., Recording]


def recording(
    seed: int = 0,
    frame_rate: float = 30.0,
    seconds: float = 60.0,
    *,
    spike_rate: float = 0.5,
    times: Sequence[float] | None = None,
    noise: float = 0.05,
    amplitude: float = 0.3,
    rise: float = 0.02,
    decay: float = 0.7,
    start: float = 0.0,
    neuron: str = "cell",
) -> Recording:
    """One neuron; spikes at random (Poisson, Hz) or at given times, s from the first frame."""
    random = np.random.default_rng(seed)
    drawn = random.uniform(0, seconds, random.poisson(spike_rate * seconds))
    spikes = np.sort(drawn) if times is None else np.asarray(times, np.float64)
    frames = np.arange(round(seconds * frame_rate)) / frame_rate
    since = np.maximum(frames[:, None] - spikes, 0)
    calcium = amplitude * ((1 - np.exp(-since / rise)) * np.exp(-since / decay)).sum(axis=1)
    dff = (calcium + random.normal(0, noise, len(frames))).astype(np.float32)
    return Recording(neuron, dff, frame_rate, start, spikes + start)


@pytest.fixture(scope="session")
def simulated() -> Simulate:
    """What simulates a recording: see `recording`."""
    return recording


@pytest.fixture(scope="session")
def datasets() -> tuple[Dataset, ...]:
    """Three datasets of three neurons: fast and bright, slow, and of 15 Hz."""
    kinds = {
        "fast": {"decay": 0.3, "amplitude": 0.5},
        "slow": {"decay": 1.2, "amplitude": 0.2},
        "coarse": {"frame_rate": 15.0},
    }
    return tuple(
        Dataset(
            name,
            tuple(
                recording(100 * i + seed, neuron=f"{name}-{seed}", **values)  # type: ignore[arg-type]
                for seed in range(3)
            ),
            indicator="simulated",
            cell_class="exc",
        )
        for i, (name, values) in enumerate(kinds.items())
    )
