"""Score deconvolution by recorded spikes: calcium imaging of cells that were patched as well.

    python benchmarks/score_deconvolution.py FOLDER [--datasets DS06 ...] [--times fitted] [--quick]

FOLDER holds one npz per dataset: recordings one after the other in ``dff``, from ``rec_ptr[i]`` to
``rec_ptr[i + 1]``, at ``rec_fs[i]`` Hz from ``rec_t0[i]`` s, of the neuron ``rec_neuron[i]`` of
``neuron_id``; spike times in ``spk`` and ``spk_ptr``, s; and ``meta``, JSON.

Recordings above 60 Hz are averaged in blocks of frames to about 30 Hz; those below 4 s are left
out. Each is deconvolved by itself, with its own baseline and noise. Activity and spikes, counted
in the frame nearest to each, are smoothed with the same Gaussian, of 50 ms or one frame, whichever
is longer. Their correlation over all of a neuron's recordings is given as the median over neurons:
without a lag, and at the one lag of a dataset and method, up to 0.5 s either way, that makes this
median largest. A positive lag is activity that comes late; half a frame of it is sampling. The
derivative is the trace smoothed with that Gaussian, its decreases left out.

Time constants (``--times``; several make a table each): "fitted" to a neuron's traces, drawn to
those of its dataset, as of the cells of a movie; fitted to each recording "alone"; by the
"autocovariance" of each; or typical of the "indicator". With ``--refine``, then fitted to isolated
transients.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter1d

from napari_calcium.deconvolution.constrained import Penalty
from napari_calcium.deconvolution.decay import SLOWEST_RISE, fitted_decay, fitted_rise
from napari_calcium.deconvolution.foopsi import (
    SLOWEST_DECAY,
    SLOWEST_FITTED_RISE,
    DeconvolutionParameters,
    constrained_foopsi,
)
from napari_calcium.traces import noise_level

Doubles = NDArray[np.float64]
Times = NDArray[np.float64]  # (recording, 2), s: decay and rise

FASTEST, USUAL = 60.0, 30.0  # Hz
SHORTEST = 4.0  # s
SMOOTHING = 0.05  # s
LAGS = np.arange(-25, 26) / 50  # s
SEGMENT = 2000
"""Frames of the pieces that recordings are cut into where time constants are fitted."""

KINDS = {"excitatory": "exc", "inhibitory": "inh"}
"""Kinds of cells whose medians are given, and how the datasets call them."""

LONGEST = 20.0
"""Largest time constant, s."""

MIN_SPIKE = 3.0
"""Smallest transient of the L0 methods, sd of the noise."""

SHARED_TRACE = {"DS01-OGB1-m-V1": ("cell_4", "cell_5")}
"""Neurons that are left out: the two have one trace."""

PENALTIES: dict[str, Penalty] = {"": "none", " L1": "l1", " L0": "l0"}
TYPICAL = {
    "OGB-1": (0.7, 0.01),
    "Cal-520": (0.6, 0.03),
    "GCaMP5k": (0.7, 0.05),
    "GCaMP6f": (0.4, 0.04),
    "GCaMP6s": (1.0, 0.08),
    "jGCaMP8f": (0.15, 0.01),
    "jGCaMP8m": (0.2, 0.01),
    "jGCaMP8s": (0.4, 0.01),
    "XCaMP-Gf": (0.2, 0.02),
    "R-CaMP1.07": (0.7, 0.05),
    "jRCaMP1a": (1.0, 0.06),
    "jRGECO1a": (0.6, 0.03),
}
"""Time constants of decay and rise, s."""


class Recording(NamedTuple):
    """One recording: the trace, its frame rate in Hz, its first frame's time and spikes in s."""

    neuron: int
    trace: NDArray[np.float32]
    frame_rate: float
    start: float
    spikes: Doubles


class Dataset(NamedTuple):
    """The recordings of one indicator and kind of cell."""

    name: str
    indicator: str
    kind: str
    recordings: list[Recording]


class Score(NamedTuple):
    """Median correlation over neurons: at lag 0, at the best lag, and that lag in s."""

    zero: float
    best: float
    lag: float


class Row(NamedTuple):
    """What is said of a dataset, its kind, and each method's score."""

    about: tuple[str, ...]
    kind: str
    scores: dict[str, Score]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--datasets", nargs="+", default=[""], help="how their names begin")
    parser.add_argument("--times", nargs="+", choices=[*GIVEN, *ALONE], default=["fitted"])
    parser.add_argument("--refine", action="store_true")
    parser.add_argument("--quick", action="store_true", help="three neurons of each dataset")
    arguments = parser.parse_args()
    chosen = tuple(arguments.datasets)
    paths = [path for path in arguments.folder.glob("*.npz") if path.name.startswith(chosen)]
    if not paths:
        parser.error(f"{arguments.folder} holds no such dataset (*.npz)")
    for way in arguments.times:
        most = 3 if arguments.quick else None
        rows = [row(read_dataset(path, most), way, arguments.refine) for path in sorted(paths)]
        for kind, best in (("without lag", False), ("at the best lag, ms", True)):
            title = f"Correlation {kind}; time constants: {way}{', refined' * arguments.refine}"
            Console(width=150).print(table(title, rows, best))


def row(dataset: Dataset, way: str, refine: bool) -> Row:
    """Score a dataset."""
    found, times = activities(dataset, way, refine)
    (first, _), second = (np.median(times[order], axis=0) for order in (1, 2))
    about = (
        dataset.name[:17],
        f"{np.median([each.frame_rate for each in dataset.recordings]):.0f}",
        str(len({each.neuron for each in dataset.recordings})),
        f"{first:.2f}",
        f"{second[0]:.2f} {second[1]:.2f}",
    )
    return Row(about, dataset.kind, score(dataset, found))


def read_dataset(path: Path, most: int | None) -> Dataset:
    """Return the recordings of the first `most` neurons, above 60 Hz resampled."""
    with np.load(path) as data:
        arrays = {name: data[name] for name in data.files}
    meta = json.loads(str(arrays["meta"]))
    left_out = SHARED_TRACE.get(path.stem, ())
    names = [str(name) for name in arrays["neuron_id"]]
    kept = [i for i, name in enumerate(names) if not name.endswith(left_out)][:most]
    recordings = [
        resampled(recording(arrays, i))
        for i, neuron in enumerate(arrays["rec_neuron"])
        if neuron in kept
    ]
    recordings = [each for each in recordings if usable(each)]
    return Dataset(path.stem, meta["indicator"], meta["cell_class"].split()[0], recordings)


def recording(arrays: dict[str, NDArray[np.generic]], i: int) -> Recording:
    """Return recording i of a dataset's arrays."""
    frames, spikes = (slice(*arrays[name][i : i + 2]) for name in ("rec_ptr", "spk_ptr"))
    return Recording(
        int(arrays["rec_neuron"][i]),
        arrays["dff"][frames].astype(np.float32),
        float(arrays["rec_fs"][i]),
        float(arrays["rec_t0"][i]),
        arrays["spk"][spikes].astype(np.float64),
    )


def resampled(each: Recording) -> Recording:
    """Average blocks of frames, so that the rate is about 30 Hz where it was above 60 Hz."""
    if each.frame_rate <= FASTEST:
        return each
    n = round(each.frame_rate / USUAL)
    blocks = each.trace[: len(each.trace) // n * n].reshape(-1, n)
    with np.errstate(invalid="ignore"):  # a block without a known frame: NaN
        trace = np.nansum(blocks, axis=1) / np.count_nonzero(np.isfinite(blocks), axis=1)
    return each._replace(
        trace=trace.astype(np.float32),
        frame_rate=each.frame_rate / n,
        start=each.start + (n - 1) / 2 / each.frame_rate,
    )


def usable(each: Recording) -> bool:
    """Say whether a recording is long enough, and not a constant."""
    long = np.isfinite(each.trace).sum() >= SHORTEST * each.frame_rate
    return bool(long and np.nanstd(each.trace) > 0)


def fitted(dataset: Dataset, order: int) -> Times:
    """Fit the decay to pieces of all recordings of a rate, and the rise that they share."""
    recordings = dataset.recordings
    rates = np.array([round(each.frame_rate) for each in recordings])
    times = np.empty((len(recordings), 2))
    for rate in np.unique(rates):
        same = np.flatnonzero(rates == rate)
        n_frames = min(SEGMENT, int(np.median([len(recordings[i].trace) for i in same])))
        traces, neurons = pieces([recordings[i] for i in same], n_frames)
        g = fitted_decay(traces, slowest=SLOWEST_DECAY * rate).astype(np.float64)
        rise, decay = 0.0, -1 / np.log(g)
        if order == 2:
            slowest = SLOWEST_FITTED_RISE * rate
            rise, decay = fitted_rise(traces, noise_level(traces), decay, slowest)
        for i in same:
            own = neurons == recordings[i].neuron
            usual = np.exp(np.log(decay[own] if own.any() else decay).mean())
            times[i] = np.array([usual, rise]) / recordings[i].frame_rate
    return times


def pieces(
    recordings: list[Recording], n_frames: int
) -> tuple[NDArray[np.float32], NDArray[np.int_]]:
    """Cut recordings into traces of one length, and say whose they are."""
    cut = [
        (each.trace[start : start + n_frames], each.neuron)
        for each in recordings
        for start in range(0, len(each.trace) - n_frames + 1, n_frames)
    ]
    return np.array([trace for trace, _ in cut]), np.array([neuron for _, neuron in cut])


def of_indicator(dataset: Dataset, order: int) -> Times:
    """Return what is typical of the indicator; of several, the first."""
    decay, rise = TYPICAL[dataset.indicator.split(",")[0].split(" ")[0]]
    return np.tile([decay, rise if order == 2 else 0.0], (len(dataset.recordings), 1))


GIVEN: dict[str, Callable[[Dataset, int], Times]] = {"fitted": fitted, "indicator": of_indicator}
"""Ways to every recording's time constants that look at the whole dataset."""

ALONE: dict[str, Literal["fitted", "autocovariance"]] = {
    "alone": "fitted",
    "autocovariance": "autocovariance",
}
"""And those that look at each recording by itself."""


def activities(
    dataset: Dataset, way: str, refine: bool
) -> tuple[dict[str, list[Doubles]], dict[int, Times]]:
    """Return what each method finds in every recording, and the time constants of each order."""
    found: dict[str, list[Doubles]] = {}
    used = {}
    for order in (1, 2):
        options = parameters(dataset, way, order, refine)
        apart = [deconvolved(*each) for each in zip(dataset.recordings, options, strict=True)]
        used[order] = np.nan_to_num([times for _, times in apart])
        for name in PENALTIES:
            found[f"AR({order}){name}"] = [activity[name] for activity, _ in apart]
    found["derivative"] = [derivative(each) for each in dataset.recordings]
    return found, used


def parameters(
    dataset: Dataset, way: str, order: Literal[1, 2], refine: bool
) -> list[DeconvolutionParameters]:
    """Return how each recording is to be deconvolved."""
    common = DeconvolutionParameters(ar_order=order, refine=refine, min_spike=MIN_SPIKE)
    if way in ALONE:
        return [replace(common, time_constants=ALONE[way])] * len(dataset.recordings)
    given = replace(common, time_constants="given")
    times = np.minimum(GIVEN[way](dataset, order), LONGEST)
    return [
        replace(given, decay_time=decay, rise_time=min(rise, SLOWEST_RISE * decay))
        for decay, rise in times.tolist()
    ]


def deconvolved(
    each: Recording, options: DeconvolutionParameters
) -> tuple[dict[str, Doubles], Doubles]:
    """Return a recording's activity by penalty, without what it begins with; time constants."""
    first = constrained_foopsi(each.trace, each.frame_rate, options)
    found = {}
    for name, penalty in PENALTIES.items():
        activity = constrained_foopsi(
            each.trace,
            each.frame_rate,
            replace(options, penalty=penalty, refine=False),
            coefficients=first.coefficients,
            noise=first.noise,
        ).activity
        found[name] = np.where(np.arange(len(activity)) < 2, 0.0, activity)
    return found, first.time_constants


def derivative(each: Recording) -> Doubles:
    """Return how much the smoothed trace increases per frame, without what it decreases."""
    known = np.isfinite(each.trace)
    level = smoothed(np.where(known, each.trace, np.nanmean(each.trace)), each.frame_rate)
    return np.where(known, np.maximum(np.diff(level, prepend=level[:1]), 0), np.nan)


def smoothed(values: NDArray[np.generic], frame_rate: float) -> Doubles:
    """Smooth with a Gaussian of 50 ms, or one frame if that is longer; NaN counts as 0."""
    sd = max(SMOOTHING * frame_rate, 1.0)
    return np.asarray(gaussian_filter1d(np.nan_to_num(values).astype(np.float64), sd))


def spike_rate(each: Recording, lag: float) -> Doubles:
    """Count the spikes per frame, as if they came `lag` s later, and smooth that."""
    frames = np.floor((each.spikes + lag - each.start) * each.frame_rate + 0.5)
    n_frames = len(each.trace)
    inside = frames[(frames >= 0) & (frames < n_frames)].astype(np.int64)
    return smoothed(np.bincount(inside, minlength=n_frames), each.frame_rate)


def score(dataset: Dataset, found: dict[str, list[Doubles]]) -> dict[str, Score]:
    """Score each method: one lag for all neurons. Neurons without spikes are left out."""
    neurons = np.array([each.neuron for each in dataset.recordings])
    by_neuron = []
    for neuron in np.unique(neurons):
        own = np.flatnonzero(neurons == neuron)
        recordings = [dataset.recordings[i] for i in own]
        theirs = [[each[i] for i in own] for each in found.values()]
        by_neuron.append(correlations(recordings, theirs))
    medians = np.nanmedian(by_neuron, axis=0)
    return {
        name: Score(median[LAGS == 0][0], median.max(), LAGS[np.argmax(median)])
        for name, median in zip(found, medians, strict=True)
    }


def correlations(recordings: list[Recording], found: list[list[Doubles]]) -> Doubles:
    """Return (method, lag): 0 where a method finds nothing, NaN where there are no spikes."""
    known = np.concatenate([np.isfinite(each.trace) for each in recordings])
    rates = [each.frame_rate for each in recordings]
    activity = np.array([np.concatenate(list(map(smoothed, each, rates))) for each in found])
    spikes = np.array(
        [np.concatenate([spike_rate(each, lag) for each in recordings]) for lag in LAGS]
    )
    standard = standardized(spikes[:, known])
    return np.nan_to_num(standardized(activity[:, known])) @ standard.T


def standardized(rows: Doubles) -> Doubles:
    """Take each row's mean off and give it the norm 1; NaN if it is constant."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norm > 0, norm, np.nan)


def table(title: str, rows: list[Row], best: bool) -> Table:
    """Make the table of one kind of correlation, medians over datasets of a kind below it."""
    result = Table(title=title)
    for heading in ("", "Hz", "cells", "AR(1) s", "AR(2) s", *rows[0].scores):
        result.add_column(heading, no_wrap=True)
    for each in rows:
        result.add_row(*each.about, *(shown(score, best) for score in each.scores.values()))
    result.add_section()
    for name, kind in KINDS.items():
        chosen = [each.scores.values() for each in rows if each.kind == kind]
        if chosen:
            values = [[each.best if best else each.zero for each in scores] for scores in chosen]
            medians = [f"{each:.3f}" for each in np.median(values, axis=0)]
            result.add_row(f"{len(chosen)} {name}", *[""] * 4, *medians)
    return result


def shown(each: Score, best: bool) -> str:
    """Return a correlation as text."""
    return f"{each.best:.3f} {1000 * each.lag:+.0f}" if best else f"{each.zero:.3f}"


if __name__ == "__main__":
    main()
