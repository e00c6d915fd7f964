"""How good inferred rates are: against recorded spikes, at a frame rate and a noise level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray

from napari_calcium.parameters import Parameters, parameter
from napari_calcium.spikes.ground_truth import (
    SAME_RATE,
    Dataset,
    causal_kernel,
    gaussian_kernel,
    resample,
    smooth,
    spikes_per_frame,
)
from napari_calcium.spikes.inference import LEAST_SMOOTHING
from napari_calcium.spikes.noise import add_noise

__all__ = ["Condition", "Scores", "Trial", "prepare", "score", "score_dataset"]

Floats = NDArray[np.float64]

LONGEST_LAG = 0.5
"""Lags are tried up to so many seconds to either side."""

FEWEST_FRAMES = 64
"""Recordings of fewer frames are not used."""

Method = Callable[[NDArray[np.float32], float], NDArray[np.floating]]
"""From dF/F (time,) and the frame rate, Hz, to smoothed spikes per frame (time,)."""


@dataclass(frozen=True)
class Condition(Parameters):
    """What recordings are made into before methods are compared on them.

    Parameters
    ----------
    frame_rate : float
        Hz; only recordings of at least this rate are used.
    noise : float
        Noise level, % per root Hz; only recordings of at most this one are used.
    kernel : {"gaussian", "causal"}
        What the recorded spikes are smoothed with.
    smoothing : float
        Its sd, s; of a Gaussian at least 1.5 frames.
    """

    frame_rate: float = parameter(30.0, unit="Hz", above=0)
    noise: float = parameter(2.0, unit="% Hz^-0.5", above=0)
    kernel: Literal["gaussian", "causal"] = "gaussian"
    smoothing: float = parameter(0.05, unit="s", above=0)

    @property
    def seconds(self) -> float:
        """The smoothing that is used, s."""
        return max(self.smoothing, LEAST_SMOOTHING / self.frame_rate)

    @property
    def taps(self) -> Floats:
        """What one spike becomes."""
        made = gaussian_kernel if self.kernel == "gaussian" else causal_kernel
        return made(self.seconds, self.frame_rate)


@dataclass(frozen=True)
class Trial:
    """A recording as it is given to a method.

    Parameters
    ----------
    neuron : str
        Name.
    dff : ndarray of float32 (time,)
        dF/F as a fraction, of the frame rate and noise level of the condition.
    spikes : ndarray of float32 (time,)
        Recorded spikes per frame.
    """

    neuron: str
    dff: NDArray[np.float32]
    spikes: NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """How good a method is on the neurons of a dataset.

    Parameters
    ----------
    correlation : ndarray (neuron,)
        Pearson's r of inferred and recorded smoothed spikes.
    best_correlation : ndarray (neuron,)
        The same after the inferred ones are shifted by `lag`.
    lag : float
        By how much they are shifted, s: the lag with the highest median r, the same for all
        neurons; positive if what is inferred comes too early.
    error, bias : ndarray (neuron,)
        Sum of absolute and of signed differences over the number of recorded spikes, both smoothed
        once more: as many again as there were is an error of 1 and a bias of 1. NaN where no frame
        with a spike is inferred.
    """

    correlation: Floats
    best_correlation: Floats
    lag: float
    error: Floats
    bias: Floats

    def medians(self) -> dict[str, float]:
        """Return the number of neurons, and the medians over them, NaN left out."""
        found = {"n_neurons": float(len(self.correlation)), "lag": self.lag}
        for name in ("correlation", "best_correlation", "error", "bias"):
            values = getattr(self, name)
            values = values[np.isfinite(values)]
            found[name] = float(np.median(values)) if len(values) else float("nan")
        return found


def prepare(
    dataset: Dataset, condition: Condition, seed: int = 0, upsampled: bool = False
) -> list[Trial]:
    """Return the recordings of a dataset at a frame rate and a noise level.

    Parameters
    ----------
    dataset : Dataset
    condition : Condition
    seed : int
        Of the noise, which is the same for all methods.
    upsampled : bool
        Whether recordings of lower frame rates are used too: their frames are interpolated.
    """
    trials = []
    for i, recording in enumerate(dataset.recordings):
        if not upsampled and condition.frame_rate > recording.frame_rate * SAME_RATE:
            continue
        one = resample(recording, condition.frame_rate)
        if len(one.dff) < FEWEST_FRAMES or not np.isfinite(one.dff).all():
            continue
        random = default_rng([seed, i])
        noisy = add_noise(one.dff, condition.frame_rate, condition.noise, random)
        if noisy is not None:
            trials.append(Trial(one.neuron, noisy.astype(np.float32), spikes_per_frame(one)))
    return trials


def score(
    trials: Sequence[Trial], inferred: Sequence[NDArray[np.floating]], condition: Condition
) -> Scores:
    """Compare what was inferred with what was recorded.

    Parameters
    ----------
    trials : sequence of Trial
    inferred : sequence of ndarray (time,)
        Smoothed spikes per frame of each trial; frames that are NaN are left out.
    condition : Condition
        What the recorded spikes are smoothed with.

    Returns
    -------
    Scores
        Of the neurons that have a spike. A rate that is constant has a correlation of 0.

    Examples
    --------
    >>> spikes = np.zeros(200, np.float32)
    >>> spikes[[50, 120]] = 1
    >>> condition = Condition()
    >>> trial = Trial("a", spikes, spikes)
    >>> scores = score([trial], [2 * smooth(spikes, condition.taps)], condition)
    >>> round(float(scores.correlation[0]), 3), round(float(scores.bias[0]), 3)
    (1.0, 1.0)
    """
    reach = round(LONGEST_LAG * condition.frame_rate)
    names = list(dict.fromkeys(trial.neuron for trial in trials))
    rows = [_of_neuron(name, trials, inferred, condition, reach) for name in names]
    found = np.array([row for row in rows if row is not None]).reshape(-1, 2 * reach + 3)
    by_lag = found[:, :-2]
    best = int(np.argmax(np.median(by_lag, axis=0))) if len(found) else reach
    lag = (best - reach) / condition.frame_rate
    return Scores(by_lag[:, reach], by_lag[:, best], lag, found[:, -2], found[:, -1])


def score_dataset(
    method: Method,
    dataset: Dataset,
    condition: Condition,
    seed: int = 0,
    upsampled: bool = False,
) -> Scores:
    """Score a method on a dataset at a frame rate and a noise level.

    Parameters
    ----------
    method : callable (dff, frame_rate) -> ndarray (time,)
        Gives smoothed spikes per frame.
    dataset, condition, seed, upsampled
        See `prepare`.
    """
    trials = prepare(dataset, condition, seed, upsampled)
    inferred = [method(trial.dff, condition.frame_rate) for trial in trials]
    return score(trials, inferred, condition)


def _of_neuron(
    name: str,
    trials: Sequence[Trial],
    inferred: Sequence[NDArray[np.floating]],
    condition: Condition,
    reach: int,
) -> list[float] | None:
    """Return the correlation at each lag, the error and the bias; None without a spike."""
    taps = condition.taps
    mine = [i for i, trial in enumerate(trials) if trial.neuron == name]
    if not any(trials[i].spikes.any() for i in mine):
        return None
    truth = [smooth(trials[i].spikes, taps) for i in mine]
    given = [np.asarray(inferred[i], np.float64) for i in mine]
    at_lags = [
        _correlation(np.concatenate([_shifted(one, lag) for one in given]), np.concatenate(truth))
        for lag in range(-reach, reach + 1)
    ]
    pairs = [_both_known(one, two) for one, two in zip(given, truth, strict=True)]
    wide = [(smooth(one, taps), smooth(two, taps)) for one, two in pairs if len(one)]
    n_spikes = sum(float(two.sum()) for _, two in wide)
    if n_spikes < 1e-9:
        return [*at_lags, float("nan"), float("nan")]
    error = sum(float(np.abs(one - two).sum()) for one, two in wide) / n_spikes
    bias = sum(float((one - two).sum()) for one, two in wide) / n_spikes
    return [*at_lags, error, bias]


def _shifted(values: Floats, lag: int) -> Floats:
    """Return values that come later by some frames, NaN where there are none."""
    moved = np.full_like(values, np.nan)
    if abs(lag) < len(values):
        moved[max(lag, 0) : len(values) + min(lag, 0)] = values[
            max(-lag, 0) : len(values) - max(lag, 0)
        ]
    return moved


def _both_known(given: Floats, truth: Floats) -> tuple[Floats, Floats]:
    known = np.isfinite(given)
    return given[known], truth[known]


def _correlation(given: Floats, truth: Floats) -> float:
    known = np.isfinite(given)
    one, two = given[known], truth[known]
    if len(one) < 2 or one.std() == 0 or two.std() == 0:
        return 0.0
    return float(np.corrcoef(one, two)[0, 1])
