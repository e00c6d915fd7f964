"""Comparison of methods of spike inference on recorded spikes that none of them was trained on.

For every dataset, networks are trained on all the others. Deconvolution, which gives no number of
spikes, is scaled by what it gives for the other datasets; the lag that is best for a dataset is
looked for in the same way for every method.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from napari_calcium.deconvolution.foopsi import constrained_foopsi
from napari_calcium.errors import InputError
from napari_calcium.parameters import nearest
from napari_calcium.pipeline.run import Progress
from napari_calcium.spikes.benchmark import Condition, Scores, Trial, prepare, score
from napari_calcium.spikes.examples import FRAME_RATES, NOISE_LEVELS, SpikeTrainingParameters
from napari_calcium.spikes.ground_truth import Dataset, smooth
from napari_calcium.spikes.inference import (
    SpikeInferenceParameters,
    SpikeModel,
    model_digest,
    spike_rate,
)
from napari_calcium.spikes.noise import noise_sd
from napari_calcium.spikes.training import design_numbers, make_folder, train_model

__all__ = [
    "METHODS",
    "Method",
    "Row",
    "benchmark_spikes",
    "named_datasets",
    "summarise",
    "write_rows",
]

Method = Literal["conditioned", "published", "deconvolution"]

METHODS: tuple[Method, ...] = get_args(Method)
"""The network of this program, the published one, and un-penalised deconvolution (OASIS)."""

KEYS = ("method", "frame_rate", "noise", "kernel", "smoothing")
"""What rows have in common that are summarised together."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """How good a method is on one dataset.

    Parameters
    ----------
    method, dataset, indicator : str
        What is judged, and on what.
    frame_rate, noise, kernel, smoothing
        The condition: Hz, % per root Hz, and what spikes are smoothed with, s.
    n_neurons : int
        Neurons with a spike and of low enough noise; 0 if the dataset has none at this condition.
    correlation, best_correlation, lag, error, bias : float
        Medians over neurons: see `spikes.benchmark.Scores`. NaN without a neuron.
    """

    method: str
    dataset: str
    indicator: str
    frame_rate: float
    noise: float
    kernel: str
    smoothing: float
    n_neurons: int
    correlation: float
    best_correlation: float
    lag: float
    error: float
    bias: float


@dataclass(frozen=True)
class _Fold:
    """One dataset that is held out, and all that are not."""

    folder: Path
    datasets: Sequence[Dataset]
    held_out: Dataset
    frames: float
    members: int
    seed: int
    gains: dict[tuple[str, Condition], float]

    @property
    def others(self) -> list[Dataset]:
        return [one for one in self.datasets if one is not self.held_out]


def benchmark_spikes(
    folder: str | Path,
    datasets: Sequence[Dataset],
    conditions: Iterable[Condition],
    *,
    methods: Iterable[str] = METHODS,
    held_out: Iterable[str] = (),
    frames: float = 16.0,
    members: int = 1,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> list[Row]:
    """Judge methods on datasets that they were not trained on.

    Parameters
    ----------
    folder : path
        Where the networks are kept, with the scores of each dataset: what is there from an
        interrupted run is not made again, as long as the networks are those that were judged.
    datasets : sequence of Dataset
        At least two.
    conditions : iterable of Condition
        Frame rates, noise levels and kernels.
    methods : iterable of {"conditioned", "published", "deconvolution"}
    held_out : iterable of str
        Names of the datasets that are judged, or how they begin; all if none is named.
    frames : float
        Frames that each network is trained with, in millions.
    members : int
        Networks of which the mean is taken.
    seed : int
        Of the training and of the noise.
    progress : callable, optional
        Called with a `Progress` of "spike_benchmark".

    Returns
    -------
    list of Row
        In the order of conditions, methods and datasets.

    Raises
    ------
    InputError
        If there are fewer than two datasets, none of a name, no method of a name, the folder cannot
        be made, or a network cannot be trained.
    """
    if len(datasets) < 2:
        raise InputError(f"of {len(datasets)} dataset none can be held out; name two or more")
    asked = tuple(methods)
    if wrong := [name for name in asked if name not in METHODS]:
        raise InputError(f"there is no method {wrong[0]!r}; {nearest(wrong[0], METHODS)}")
    judged = named_datasets(datasets, held_out)
    folder = Path(folder).expanduser()
    make_folder(folder)
    tasks = list(product(conditions, asked, judged))
    rows: list[Row] = []
    gains: dict[tuple[str, Condition], float] = {}
    for done, (condition, method, dataset) in enumerate(tasks):
        if progress is not None:
            progress(Progress("spike_benchmark", done, len(tasks)))
        fold = _Fold(folder, datasets, dataset, frames, members, seed, gains)
        rows.append(_row(fold, method, condition))
    if progress is not None:
        progress(Progress("spike_benchmark", len(tasks), len(tasks)))
    return rows


def named_datasets(datasets: Sequence[Dataset], names: Iterable[str]) -> list[Dataset]:
    """Return the datasets of which the names begin so; all if there is no name.

    Raises
    ------
    InputError
        If no dataset has a name that begins so.
    """
    wanted = list(names)
    for name in wanted:
        if not any(dataset.name.startswith(name) for dataset in datasets):
            known = [dataset.name for dataset in datasets]
            raise InputError(f"there is no dataset {name!r}; {nearest(name, known)}")
    return [
        dataset
        for dataset in datasets
        if not wanted or any(dataset.name.startswith(name) for name in wanted)
    ]


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the medians over datasets for each condition and method.

    Returns
    -------
    list of dict
        ``method``, ``frame_rate``, ``noise``, ``kernel``, ``smoothing``; ``n_datasets`` with a
        neuron; the medians of ``correlation``, ``best_correlation``, ``error`` and ``bias``, and
        ``absolute_bias``, of the datasets of which they are known.

    Examples
    --------
    >>> condition = 30.0, 2.0, "gaussian", 0.05
    >>> row = Row("published", "DS", "GCaMP6s", *condition, 3, 0.7, 0.8, 0, 1, -0.5)
    >>> summarise([row])[0]["absolute_bias"]
    0.5
    """
    keys = list(dict.fromkeys(_key(row) for row in rows))
    found = []
    for key in keys:
        mine = [row for row in rows if _key(row) == key and row.n_neurons]
        named: dict[str, Any] = dict(zip(KEYS, key, strict=True))
        medians = {
            name: _median([getattr(row, name) for row in mine])
            for name in ("correlation", "best_correlation", "error", "bias")
        }
        absolute = _median([abs(row.bias) for row in mine])
        found.append({**named, "n_datasets": len(mine), **medians, "absolute_bias": absolute})
    return found


def write_rows(rows: Sequence[Row], path: str | Path) -> None:
    """Write the table as a csv file, one line for each row."""
    names = list(Row.__dataclass_fields__)
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for row in rows:
            values = (getattr(row, name) for name in names)
            writer.writerow(f"{one:.4g}" if isinstance(one, float) else one for one in values)


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in KEYS)


def _median(values: Sequence[float]) -> float:
    """Return the median of what is known, NaN if nothing is."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else float("nan")


def _row(fold: _Fold, method: str, condition: Condition) -> Row:
    """Return the scores of a method on the dataset held out, from the file if it is there."""
    path = fold.folder / "scores" / f"{method}-{_named(condition)}" / f"{fold.held_out.name}.json"
    if path.is_file():
        kept = json.loads(path.read_text("utf-8"))
        if kept["made_by"] == _made_by(fold, method, condition):
            return _made(fold.held_out, method, condition, kept["scores"])
    medians = _scores(fold, method, condition).medians()
    plain = {name: value if np.isfinite(value) else None for name, value in medians.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path.with_suffix(".tmp")
    made_by = _made_by(fold, method, condition)  # the network may be a new one
    target.write_text(json.dumps({"made_by": made_by, "scores": plain}, indent=1), "utf-8")
    os.replace(target, path)
    return _made(fold.held_out, method, condition, plain)


def _made_by(fold: _Fold, method: str, condition: Condition) -> dict[str, Any]:
    """Return what scores depend on, as JSON has it; of a network, the files as they are now."""
    found: dict[str, Any] = {
        "datasets": {one.name: one.digest for one in fold.datasets},
        "condition": condition.to_mapping(),
        "training": [fold.frames, fold.members, fold.seed],
    }
    if method != "deconvolution":
        digest = model_digest(_model_folder(fold, method, condition))
        found["network"] = {"design": design_numbers(method), "digest": digest}
    return dict(json.loads(json.dumps(found)))


def _model_folder(fold: _Fold, method: str, condition: Condition) -> Path:
    name = f"published-{_named(condition)}" if method == "published" else "conditioned"
    return fold.folder / name / fold.held_out.name


def _named(condition: Condition) -> str:
    kernel = f"{condition.kernel}-{1000 * condition.seconds:g}ms"
    return f"{condition.frame_rate:g}Hz-{condition.noise:g}-{kernel}"


def _made(
    dataset: Dataset, method: str, condition: Condition, scores: Mapping[str, float | None]
) -> Row:
    known = {name: float("nan") if value is None else value for name, value in scores.items()}
    return Row(
        method,
        dataset.name,
        dataset.indicator,
        condition.frame_rate,
        condition.noise,
        condition.kernel,
        condition.seconds,
        n_neurons=int(known.pop("n_neurons")),
        **known,
    )


def _scores(fold: _Fold, method: str, condition: Condition) -> Scores:
    trials = prepare(fold.held_out, condition, fold.seed)
    if method == "deconvolution":
        gain = _gain_of_others(fold, condition)
        inferred = [
            gain * smooth(_activity(one, condition.frame_rate), condition.taps) for one in trials
        ]
    else:
        inferred = []
        if trials:
            model, chosen = _trained(fold, method, condition)
            inferred = [_inferred(model, chosen, condition.frame_rate, one) for one in trials]
    return score(trials, inferred, condition)


def _inferred(
    model: SpikeModel, chosen: SpikeInferenceParameters, frame_rate: float, trial: Trial
) -> Floats:
    rate = spike_rate(trial.dff[None], frame_rate, model, chosen)[0]
    return np.asarray(rate / frame_rate, np.float64)


def _trained(
    fold: _Fold, method: str, condition: Condition
) -> tuple[SpikeModel, SpikeInferenceParameters]:
    """Return a model that was not trained on the dataset that is held out."""
    values: dict[str, Any] = {"frames": fold.frames, "members": fold.members, "seed": fold.seed}
    if method == "published":
        values |= {
            "design": "published",
            "frame_rate": condition.frame_rate,
            "noise": condition.noise,
            "smoothing": condition.seconds,
            "causal": condition.kernel == "causal",
        }
    elif not _served(condition):
        raise InputError(
            f"the condition of {condition.frame_rate:g} Hz and noise level {condition.noise:g} is "
            f"none of the network's, {FRAME_RATES[0]:g} to {FRAME_RATES[-1]:g} Hz and "
            f"{NOISE_LEVELS[0]:g} to {NOISE_LEVELS[1]:g} % per root Hz; choose one within these"
        )
    folder = _model_folder(fold, method, condition)
    model = train_model(folder, fold.others, SpikeTrainingParameters(**values))
    chosen = SpikeInferenceParameters(
        model_file=str(folder),
        kernel=condition.kernel,
        smoothing=condition.seconds,
        edges="padded",
    )
    return model, chosen


def _served(condition: Condition) -> bool:
    rates = FRAME_RATES[0] <= condition.frame_rate <= FRAME_RATES[-1]
    return rates and NOISE_LEVELS[0] <= condition.noise <= NOISE_LEVELS[1]


def _activity(trial: Trial, frame_rate: float) -> Floats:
    """Return the activity per frame of a recording, in sd of its noise."""
    found = constrained_foopsi(trial.dff.astype(np.float64), frame_rate)
    return np.asarray(found.activity / max(float(noise_sd(trial.dff)), 1e-9), np.float64)


def _gain_of_others(fold: _Fold, condition: Condition) -> float:
    """Return the median gain of the datasets that are not held out; each is found once."""
    gains = []
    for one in fold.others:
        key = one.name, condition
        if key not in fold.gains:
            trials = prepare(one, condition, fold.seed)
            fold.gains[key] = _gain(trials, condition.frame_rate)
        gains.append(fold.gains[key])
    return float(np.nanmedian(gains)) if np.isfinite(gains).any() else 1.0


def _gain(trials: Sequence[Trial], frame_rate: float) -> float:
    """Return the spikes that an activity of one noise sd stands for, the median over neurons."""
    spikes: dict[str, float] = {}
    activity: dict[str, float] = {}
    for trial in trials:
        spikes[trial.neuron] = spikes.get(trial.neuron, 0) + float(trial.spikes.sum())
        found = float(_activity(trial, frame_rate).sum())
        activity[trial.neuron] = activity.get(trial.neuron, 0) + found
    gains = [spikes[name] / activity[name] for name in spikes if activity[name] > 0]
    return float(np.median(gains)) if gains else float("nan")
