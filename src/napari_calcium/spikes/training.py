"""Training of models for spike inference, which can be interrupted and taken up again.

A network is trained on stretches of traces and not on windows around single frames, which is the
same at a thirteenth of the work.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.keras_models import import_keras, save_model
from napari_calcium.spikes import features, network
from napari_calcium.spikes.benchmark import Condition, score_dataset
from napari_calcium.spikes.examples import FRAMES, Library, SpikeTrainingParameters, draw_segments
from napari_calcium.spikes.forward import network_of
from napari_calcium.spikes.ground_truth import Dataset, causal_kernel, gaussian_kernel
from napari_calcium.spikes.inference import (
    CARD,
    SpikeInferenceParameters,
    SpikeModel,
    read_spike_model,
    spike_rate,
)
from napari_calcium.spikes.network import AFTER, BEFORE, build_conditioned, build_published

__all__ = ["design_numbers", "make_folder", "n_rounds", "train_member", "train_model"]

SETTINGS = "training.json"
"""File in the folder of a model that is being trained; then its card takes its place."""

MARGIN = 16
"""Frames at both ends of which the conditioned network is less precise."""

VALIDATED_AT = (30.0, 2.0)
"""Frame rate (Hz) and noise level (% per root Hz) at which networks are validated, or the nearest
they are for."""

BATCH = 32
"""Stretches of one step."""

SEGMENTS, PASSES = 2048, 2
"""Stretches that are made at a time, and how often each is used."""

LEARNING_RATE, WEIGHT_DECAY = 2e-3, 1e-4
"""Of the first step; it falls to 0 along a cosine."""

Floats = NDArray[np.float32]


def train_model(
    folder: str | Path,
    datasets: Sequence[Dataset],
    parameters: SpikeTrainingParameters,
    held_out: Sequence[Dataset] = (),
    *,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SpikeModel:
    """Train a model, an ensemble of networks, and write it with its card.

    What was finished before an interruption is kept, and the training goes on from there: the
    result is the same. Trained again with the same arguments nothing is done.

    Parameters
    ----------
    folder : path
        The model: ``member_0.keras`` and so on, and ``card.json``.
    datasets : sequence of Dataset
        What is trained on; those held out are left out of it.
    parameters : SpikeTrainingParameters
        What for, and how long.
    held_out : sequence of Dataset
        Whole datasets for validation: of each network the weights after that round of training are
        kept with which it does best on them.
    about : mapping, optional
        What else the card is to say.
    progress : callable, optional
        Called with the rounds done and all, of all networks together.

    Returns
    -------
    SpikeModel

    Raises
    ------
    InputError
        If Keras cannot be imported, the folder cannot be made or holds another training, or no
        recording can be used.
    """
    folder = Path(folder).expanduser()
    import_keras(fast=True)
    kept = {dataset.name for dataset in held_out}
    used = [dataset for dataset in datasets if dataset.name not in kept]
    if not used:
        raise InputError("no dataset is left to train on; hold fewer out, or name more")
    card = {**_card(folder.name, used, held_out, parameters), **(about or {})}
    judge = _judge(card, held_out) if held_out else None
    _claim(folder, card)
    library = Library(used, upsampled=parameters.design == "published")
    rounds = n_rounds(parameters)
    finished = (folder / CARD).is_file()
    validation = _validation(folder)
    for number in range(parameters.members):
        path = folder / f"member_{number}.keras"
        judged = train_member(
            library,
            parameters,
            path,
            number,
            None if progress is None else _later(progress, number * rounds, parameters),
            judge,
        )
        if judged and not finished and len(validation) <= number:
            validation.append([round(value, 4) for value in judged])
            _write(folder / SETTINGS, {**card, "validation": validation})
        _unfinished(path).unlink(missing_ok=True)
    if not finished:
        _write(folder / CARD, {**card, "validation": validation})
    (folder / SETTINGS).unlink(missing_ok=True)
    return read_spike_model(SpikeInferenceParameters(model_file=str(folder)))


def design_numbers(design: str) -> dict[str, Any]:
    """Return what a network of a design is made with: where a number changes it is another network.

    Parameters
    ----------
    design : {"conditioned", "published"}
        The published one does not change, and there is nothing to say of it.

    Examples
    --------
    >>> design_numbers("conditioned")["N_FEATURES"]
    28
    """
    modules = (network, features) if design == "conditioned" else ()
    return {
        name: value for module in modules for name, value in vars(module).items() if name.isupper()
    }


def make_folder(folder: Path) -> None:
    """Make a folder, and those it is in, unless it is there.

    Raises
    ------
    InputError
        If it cannot be made, as where there is a file of that name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the folder {folder} cannot be made ({error.strerror}); name another folder"
        ) from error


def n_rounds(parameters: SpikeTrainingParameters) -> int:
    """Return in how many rounds a network is trained."""
    return math.ceil(_n_steps(parameters) / (PASSES * SEGMENTS // BATCH))


def _n_steps(parameters: SpikeTrainingParameters) -> int:
    return max(1, round(parameters.frames * 1e6 / (BATCH * FRAMES)))


def _later(
    progress: Callable[[int, int], None], before: int, parameters: SpikeTrainingParameters
) -> Callable[[int, int], None]:
    total = parameters.members * n_rounds(parameters)
    return lambda done, _: progress(before + done, total)


def _card(
    name: str,
    datasets: Sequence[Dataset],
    held_out: Sequence[Dataset],
    parameters: SpikeTrainingParameters,
) -> dict[str, Any]:
    return {
        "name": name,
        "design": parameters.design,
        "frame_rates": list(parameters.frame_rates),
        "noise_levels": list(parameters.noise_levels),
        "smoothing": parameters.smoothing_used,
        "causal": parameters.causal,
        "network": design_numbers(parameters.design),
        "margin": BEFORE if parameters.design == "published" else MARGIN,
        "data": [_content(dataset) for dataset in datasets],
        "held_out": [dataset.name for dataset in held_out],
        "training": {**parameters.to_mapping(), "batch": BATCH, "stretch_frames": FRAMES},
        "software": {"keras": importlib.metadata.version("keras")},
    }


def _content(dataset: Dataset) -> dict[str, Any]:
    """Return what a dataset is, and a digest of it."""
    return {
        "name": dataset.name,
        "indicator": dataset.indicator,
        "neurons": len(dataset.neurons),
        "minutes": round(sum(one.duration for one in dataset.recordings) / 60, 1),
        "digest": dataset.digest,
    }


def _claim(folder: Path, card: Mapping[str, Any]) -> None:
    """Make the folder of a model, or check that it is that of the same training."""
    plain = json.loads(json.dumps(card))
    for name in (CARD, SETTINGS):
        if (folder / name).is_file():
            there = _said(folder / name)
            same = all(there.get(key) == plain[key] for key in ("data", "held_out", "training"))
            if not same or there.get("network", plain["network"]) != plain["network"]:
                raise InputError(
                    f"{folder} holds a model of other datasets, settings or design; name another "
                    "folder"
                )
            return
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no model; name another folder")
    make_folder(folder)
    _write(folder / SETTINGS, plain)


def _validation(folder: Path) -> list[list[float]]:
    """Return what was said of the networks that were finished before an interruption."""
    path = folder / SETTINGS
    return list(_said(path).get("validation", [])) if path.is_file() else []


def _said(path: Path) -> dict[str, Any]:
    """Return what the card of a model says, or that of one that is being trained."""
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}); name another folder"
        ) from error


def _write(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file; it is whole or not there."""
    target = path.with_suffix(".tmp")
    target.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", "utf-8")
    os.replace(target, path)


def _judge(card: dict[str, Any], held_out: Sequence[Dataset]) -> Callable[[Any], float]:
    """Return what says how good a network is on whole datasets: the mean of their median r."""
    (slow, fast), (low, high) = card["frame_rates"], card["noise_levels"]
    condition = Condition(
        frame_rate=float(np.clip(VALIDATED_AT[0], slow, fast)),
        noise=float(np.clip(VALIDATED_AT[1], low, high)),
        kernel="causal" if card["causal"] else "gaussian",
        smoothing=card["smoothing"],
    )
    chosen = SpikeInferenceParameters(kernel=condition.kernel, edges="padded")
    if not any(_n_neurons(one, condition) for one in held_out):
        raise InputError(
            f"no neuron of the datasets held out has spikes and a noise level of at most "
            f"{condition.noise:g} % per root Hz; hold others out"
        )

    def judge(trained: Any) -> float:
        model = SpikeModel("", card, (network_of(trained),))

        def infer(dff: Floats, frame_rate: float) -> NDArray[np.floating]:
            return np.asarray(spike_rate(dff[None], frame_rate, model, chosen)[0] / frame_rate)

        found = [score_dataset(infer, one, condition, upsampled=True) for one in held_out]
        medians = [scores.medians()["correlation"] for scores in found]
        return float(np.nanmean(medians))

    return judge


def _n_neurons(dataset: Dataset, condition: Condition) -> int:
    """Return of how many neurons a network can be judged by."""

    def nothing(dff: Floats, _: float) -> NDArray[np.floating]:
        return np.zeros_like(dff)

    return len(score_dataset(nothing, dataset, condition, upsampled=True).correlation)


def train_member(
    library: Library,
    parameters: SpikeTrainingParameters,
    path: Path,
    number: int = 0,
    progress: Callable[[int, int], None] | None = None,
    judge: Callable[[Any], float] | None = None,
) -> list[float]:
    """Train one network of an ensemble and write it; where it was interrupted it goes on.

    What is reached is kept beside the file after every round, in NAME.unfinished.npz; with it, the
    result is the same as that of a training without interruption. It is there still when the
    network is written, with what `judge` said of it, until `train_model` has stored that.

    Parameters
    ----------
    library : Library
        What is trained on.
    parameters : SpikeTrainingParameters
        What for.
    path : path
        The network, NAME.keras; if it is there nothing is done.
    number : int
        Which of the ensemble it is; it follows the seed.
    progress : callable, optional
        Called with the rounds done and all, first where it begins.
    judge : callable, optional
        Given the network after every round, says how good it is, the larger the better: the best
        is kept.

    Returns
    -------
    list of float
        What `judge` said, one for each round; of a network that is there, if it is still kept.
    """
    kept = _unfinished(path)
    if path.is_file():
        return _State.judgements(kept) if kept.is_file() else []
    steps, rounds = _n_steps(parameters), n_rounds(parameters)
    per_round = PASSES * SEGMENTS // BATCH
    model = _compiled(parameters, number, steps)
    state = _State.load(kept, model) if kept.is_file() else _State()
    while state.done < rounds:
        if progress is not None:
            progress(state.done, rounds)
        random = default_rng([parameters.seed + number, state.done])
        n_steps = min(per_round, steps - state.done * per_round)
        wanted = SEGMENTS if n_steps > SEGMENTS // BATCH else n_steps * BATCH
        segments = draw_segments(library, parameters, wanted, random)
        if state.done == 0 and parameters.design == "conditioned":
            model.get_layer("normalise").adapt(segments.features)
        for batch in _batches(len(segments.traces), n_steps, random):
            inputs: Any = segments.traces[batch]
            if parameters.design == "conditioned":
                inputs = [inputs, segments.features[batch]]
            model.train_on_batch(inputs, segments.truth[batch])
        state.next(model, judge)
        state.save(kept, model)
    if state.best:
        model.set_weights(state.best)
    _written(model, parameters, path)
    if progress is not None:
        progress(rounds, rounds)
    return state.judged


def _unfinished(path: Path) -> Path:
    """Return the file in which is kept how far the training of a network is."""
    return path.with_suffix(".unfinished.npz")


@dataclass
class _State:
    """How far a training is."""

    done: int = 0
    judged: list[float] = field(default_factory=list)
    best: list[NDArray[Any]] = field(default_factory=list)

    def next(self, model: Any, judge: Callable[[Any], float] | None) -> None:
        """Count a round, and keep the weights if they are the best so far."""
        self.done += 1
        if judge is not None:
            self.judged.append(judge(model))
            if self.judged[-1] == max(self.judged):
                self.best = model.get_weights()

    def save(self, path: Path, model: Any) -> None:
        """Write all that is needed to go on; the file is whole or the one before."""
        variables = [*model.variables, *model.optimizer.variables]
        arrays: dict[str, Any] = {f"variable_{i}": np.asarray(x) for i, x in enumerate(variables)}
        arrays |= {f"best_{i}": one for i, one in enumerate(self.best)}
        arrays |= {"done": self.done, "judged": np.array(self.judged)}
        target = path.with_suffix(".tmp.npz")
        np.savez(target, **arrays)
        os.replace(target, path)

    @staticmethod
    def judgements(path: Path) -> list[float]:
        """Return what was said of the network."""
        with np.load(path, allow_pickle=False) as file:
            return list(file["judged"].tolist())

    @classmethod
    def load(cls, path: Path, model: Any) -> _State:
        """Read what is needed to go on, and put it into the model."""
        with np.load(path, allow_pickle=False) as file:
            for i, one in enumerate([*model.variables, *model.optimizer.variables]):
                one.assign(file[f"variable_{i}"])
            for layer in model.layers:
                if hasattr(layer, "finalize_state"):  # what it normalises by is a copy
                    layer.finalize_state()
            n_best = sum(name.startswith("best_") for name in file.files)
            best = [file[f"best_{i}"] for i in range(n_best)]
            return cls(int(file["done"]), file["judged"].tolist(), best)


def _batches(n_segments: int, n_steps: int, random: Generator) -> Iterator[NDArray[np.intp]]:
    """Yield which segments each step takes, all of them once before any a second time."""
    order = np.concatenate([random.permutation(n_segments) for _ in range(PASSES)])
    for step in range(n_steps):
        yield np.take(order, np.arange(step * BATCH, (step + 1) * BATCH), mode="wrap")


def _compiled(parameters: SpikeTrainingParameters, number: int, steps: int) -> Any:
    """Return a new network ready for training, all its random numbers from its seed."""
    keras = import_keras(fast=True)
    keras.utils.set_random_seed(parameters.seed + number)
    conditioned = parameters.design == "conditioned"
    model = build_conditioned() if conditioned else build_published()
    if conditioned and number % 2:
        _tell_less(model)
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=WEIGHT_DECAY, clipnorm=1.0)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, _loss(parameters), jit_compile=False)
    return model


def _tell_less(model: Any) -> None:
    """Have a network learn without the statistics that tell one indicator from another.

    It does worse where an indicator is known and better where it is not; so every second network of
    an ensemble is such a one.
    """
    kernel = model.get_layer("told_0").kernel
    plain = np.arange(kernel.shape[0])[:, None] < features.N_PLAIN
    kernel.constraint = lambda weights: weights * plain.astype(np.float32)
    kernel.assign(kernel.constraint(kernel))


def _loss(parameters: SpikeTrainingParameters) -> Callable[[Any, Any], Any]:
    """Return the loss of a design."""
    from keras import ops

    def smoothed(values: Any) -> Any:
        return ops.conv(values[:, :, None], kernel, padding="same")[:, :, 0]

    def published(truth: Any, found: Any) -> Any:
        """Return the mean squared error of spikes that are smoothed already."""
        wanted = smoothed(truth[:, :, 0])[:, BEFORE:-AFTER]
        known = truth[:, BEFORE:-AFTER, 1]
        return ops.sum(known * (found[:, :, 0] - wanted) ** 2) / ops.sum(known)

    def conditioned(truth: Any, found: Any) -> Any:
        """Return the mean squared error of smoothed spikes, as a part of those of the dataset."""
        known, scale = truth[:, :, 1], truth[:, 0, 2]
        errors = known * (smoothed(found[:, :, 0]) - smoothed(truth[:, :, 0])) ** 2
        return ops.mean(scale * ops.sum(errors, axis=1) / ops.sum(known, axis=1))

    if parameters.design == "conditioned":
        taps = gaussian_kernel(parameters.smoothing_frames, 1.0)
    elif parameters.causal:
        taps = causal_kernel(parameters.smoothing_used, parameters.frame_rate)[::-1]
    else:
        taps = gaussian_kernel(parameters.smoothing_used, parameters.frame_rate)
    kernel = taps.astype(np.float32)[:, None, None]
    return conditioned if parameters.design == "conditioned" else published


def _written(model: Any, parameters: SpikeTrainingParameters, path: Path) -> None:
    """Write a network without the state of its training."""
    plain = build_conditioned() if parameters.design == "conditioned" else build_published()
    plain.set_weights(model.get_weights())
    save_model(plain, path)
