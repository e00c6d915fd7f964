"""The classifier's network: how it is built, trained, calibrated, scored and stored.

A small convolutional network looks at the footprint alone, after Giovannucci et al. 2019,
10.7554/eLife.38173. TensorFlow is imported only inside the functions that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from scipy.optimize import Bounds, minimize
from scipy.special import expit
from scipy.stats import rankdata

from napari_calcium.errors import InputError
from napari_calcium.evaluation.crops import SIDE
from napari_calcium.evaluation.examples import Examples
from napari_calcium.keras_models import import_keras

__all__ = [
    "ask",
    "balanced_weights",
    "build_network",
    "calibrate",
    "calibration_error",
    "cross_entropy",
    "domains",
    "precision_recall",
    "reliability",
    "report",
    "roc_auc",
    "train",
]

BATCH = 128
"""Crops of one step of training, and of one question."""

EPOCHS, BATCHES = 30, 64
"""How long is trained: epochs, and batches of each."""

LEARNING_RATE = 2e-3
"""Of the first step; it falls to 0 along a cosine."""

WEIGHT_DECAY = 1e-3

LARGEST_SHIFT = 2
"""Crops are shifted by up to this in training, px: the centroid is not always the middle."""

LEAST_DOUBT = 1e-6
"""Probabilities are taken to be this far from 0 and 1: single precision has no more digits."""

THRESHOLDS = (0.1, 0.5, 0.9)
"""Probabilities for which precision and recall are reported."""

BINS = 10
"""Of the table of reliability."""

Floats = NDArray[np.float64]


def build_network() -> Any:
    """Return a new network: crops (n, SIDE, SIDE, 1) to the probability of a cell (n, 1).

    Three times two convolutions and a pooling, then two dense layers: 128 thousand weights.
    """
    keras = import_keras()
    layers = keras.layers
    inputs = layers.Input((SIDE, SIDE, 1), name="crop")
    values = layers.Rescaling(SIDE / 4, name="scale")(inputs)  # a cell of unit norm to about 1
    for number, width in enumerate((16, 32, 48), start=1):
        for half in "ab":
            name = f"convolution_{number}{half}"
            values = layers.Conv2D(width, 3, padding="same", activation="relu", name=name)(values)
        values = layers.MaxPooling2D(name=f"pooling_{number}")(values)
    values = layers.Flatten(name="flat")(values)
    values = layers.Dropout(0.4, name="dropout")(values)
    values = layers.Dense(64, activation="relu", name="dense")(values)
    values = layers.Dense(1, name="logit")(values)
    probability = layers.Activation("sigmoid", name="probability")(values)
    return keras.Model(inputs, probability, name="footprint_classifier")


def train(
    training: Examples,
    validation: Examples,
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    batches: int = BATCHES,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Return a network trained on some examples and calibrated on others.

    A batch has as many cells as others and as many simulated as real examples, however many there
    are, drawn at random; each is turned, mirrored and shifted. Of the epochs the weights are kept
    that have the least cross-entropy in validation, weighed in the same way.

    Parameters
    ----------
    training, validation : Examples
        Of different groups.
    seed : int
        Of all random numbers: on one machine the same arguments give the same weights.
    epochs, batches : int
        Epochs, each of so many batches of `BATCH` crops.
    progress : callable, optional
        Called with the number of epochs done and of all, first with none done.

    Raises
    ------
    InputError
        If all examples for one of the two are cells, or none is.
    """
    for name, examples in (("training", training), ("validation", validation)):
        if examples.cell.all() or not examples.cell.any():
            raise InputError(
                f"of {len(examples)} examples for {name}, {examples.cell.sum()} are cells; "
                "there must be cells and others: give more movies"
            )
    model = _compiled(seed, epochs * batches)
    best, kept = np.inf, model.get_weights()
    for epoch in range(epochs):
        if progress is not None:
            progress(epoch, epochs)
        for crops, cell in _batches(training, batches, default_rng([seed, epoch])):
            model.train_on_batch(crops, cell)
        loss = cross_entropy(ask(model, validation.crops), validation)
        if loss < best:
            best, kept = loss, model.get_weights()
    trained = build_network()  # without the state of the training
    trained.set_weights(kept)
    calibrate(trained, validation)
    if progress is not None:
        progress(epochs, epochs)
    return trained


def ask(model: Any, crops: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what a network says of each crop, (n,), always asking for `BATCH` at a time."""
    said = np.zeros(len(crops), np.float32)
    for start in range(0, len(crops), BATCH):
        part = crops[start : start + BATCH]
        batch = np.zeros((BATCH, SIDE, SIDE, 1), np.float32)
        batch[: len(part), ..., 0] = part
        said[start : start + BATCH] = model.predict_on_batch(batch)[: len(part), 0]
    return said


def calibrate(model: Any, examples: Examples) -> tuple[float, float]:
    """Make a network's probabilities true of some examples, `balanced_weights` given.

    Returns
    -------
    tuple of float
        Factor and summand of the log odds (Platt scaling); they are part of the last weights now.

    References
    ----------
    .. [1] Guo et al., ICML 2017, arXiv:1706.04599
    """
    layer = model.get_layer("logit")
    inner = import_keras().Model(model.inputs, layer.output)
    odds = ask(inner, examples.crops).astype(np.float64)
    weights, sign = balanced_weights(examples), np.where(examples.cell, 1.0, -1.0)

    def loss(line: Floats) -> tuple[float, Floats]:
        against = -sign * (line[0] * odds + line[1])
        slope = -sign * weights * expit(against)
        return float(weights @ np.logaddexp(0, against)), np.array([slope @ odds, slope.sum()])

    limits = Bounds([1e-3, -np.inf])  # a cell stays more probable than what looks less like it
    start = np.array([1.0, 0.0])
    factor, summand = minimize(loss, start, jac=True, bounds=limits, tol=1e-12).x
    kernel, bias = layer.get_weights()
    layer.set_weights([kernel * factor, bias * factor + summand])
    return float(factor), float(summand)


def domains(examples: Examples) -> NDArray[np.str_]:
    """Say of each example whether it is "real" or "simulated", by its group."""
    real = np.char.startswith(examples.group, "recording ")
    return np.where(real, "real", "simulated")


def balanced_weights(examples: Examples) -> Floats:
    """Return weights, of sum 1, by which cells and others count equally, and so both domains.

    Examples
    --------
    >>> crops = np.zeros((4, SIDE, SIDE))
    >>> groups = ["seed 1", "seed 1", "seed 1", "recording 1"]
    >>> balanced_weights(Examples(crops, [True, True, False, True], groups, [""] * 4)).round(2)
    array([0.17, 0.17, 0.33, 0.33])
    """
    _, strata = _strata(examples)
    counts = np.bincount(strata)
    return np.asarray(1 / (counts[strata] * np.count_nonzero(counts)))


def cross_entropy(probability: NDArray[np.floating], examples: Examples) -> float:
    """Return the mean surprise at the truth, in nats, with `balanced_weights`."""
    right = np.where(examples.cell, probability, 1 - np.asarray(probability, np.float64))
    return float(-balanced_weights(examples) @ np.log(np.clip(right, LEAST_DOUBT, None)))


def roc_auc(score: NDArray[np.floating], cell: NDArray[np.bool_]) -> float:
    """Return how often a cell scores above another component; ties count half.

    The area under the receiver operating characteristic; NaN without cells or without others.

    Examples
    --------
    >>> roc_auc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, True, False, True]))
    0.875
    """
    n_cells = int(cell.sum())
    n_pairs = n_cells * (len(cell) - n_cells)
    if not n_pairs:
        return float("nan")
    return float((rankdata(score)[cell].sum() - n_cells * (n_cells + 1) / 2) / n_pairs)


def precision_recall(
    probability: NDArray[np.floating], cell: NDArray[np.bool_], threshold: float
) -> dict[str, float]:
    """Return what accepting from a threshold on is worth, with the examples as many as they are.

    Returns
    -------
    dict
        ``precision``: cells among the accepted; ``recall``: accepted among the cells; ``f1``: their
        harmonic mean; ``false_positives``: accepted among the others. NaN where none is counted.

    Examples
    --------
    >>> precision_recall(np.array([0.1, 0.6, 0.6, 0.9]), np.array([True, True, False, True]), 0.5)
    {'precision': 0.666..., 'recall': 0.666..., 'f1': 0.666..., 'false_positives': 1.0}
    """
    accepted = probability >= threshold
    right = int((accepted & cell).sum())
    n_accepted, n_cells = int(accepted.sum()), int(cell.sum())
    return {
        "precision": _part(right, n_accepted),
        "recall": _part(right, n_cells),
        "f1": _part(2 * right, n_accepted + n_cells),
        "false_positives": _part(n_accepted - right, len(cell) - n_cells),
    }


def reliability(
    probability: NDArray[np.floating], cell: NDArray[np.bool_], weights: Floats, bins: int = BINS
) -> Floats:
    """Return what the probabilities of each bin are and what part of it are cells.

    Parameters
    ----------
    probability : ndarray (n,)
        0 to 1, cut into bins of equal width.
    cell : ndarray of bool (n,)
        The truth.
    weights : ndarray (n,)
        How much each example counts.
    bins : int
        How many.

    Returns
    -------
    ndarray (bin, 3)
        Weight of the bin, of a sum of 1; mean probability; part of cells. The last two are NaN
        in an empty bin.

    Examples
    --------
    >>> cell = np.array([False, True, True, True])
    >>> reliability(np.array([0.1, 0.3, 0.8, 1.0]), cell, np.ones(4), bins=2)
    array([[0.5, 0.2, 0.5],
           [0.5, 0.9, 1. ]])
    """
    place = np.clip((np.asarray(probability, np.float64) * bins).astype(int), 0, bins - 1)
    sums = [np.bincount(place, weights * part, bins) for part in (1.0, probability, cell)]
    with np.errstate(invalid="ignore"):
        return np.stack([sums[0] / weights.sum(), sums[1] / sums[0], sums[2] / sums[0]], axis=1)


def calibration_error(table: Floats) -> float:
    """Return how far the probabilities of a table of `reliability` are off, on average.

    Examples
    --------
    >>> calibration_error(np.array([[0.5, 0.2, 0.5], [0.5, 0.75, 1.0], [0, np.nan, np.nan]]))
    0.275
    """
    weight, probability, cells = table[table[:, 0] > 0].T
    return float(weight @ np.abs(probability - cells))


def report(probability: NDArray[np.floating], examples: Examples) -> dict[str, Any]:
    """Say how well some probabilities tell cells from others.

    Returns
    -------
    dict
        ``n_cells``, ``n_others``, ``roc_auc``; ``thresholds``: for each of `THRESHOLDS` what
        `precision_recall` says; ``calibration_error`` and ``reliability`` (its table), both
        classes weighed equally; ``kinds``: of each kind how many there are of each class, the mean
        probability of each, and the ROC-AUC where there are both.
    """
    cell = examples.cell
    table = reliability(probability, cell, balanced_weights(examples))
    return {
        "n_cells": int(cell.sum()),
        "n_others": int((~cell).sum()),
        "roc_auc": roc_auc(probability, cell),
        "thresholds": {str(at): precision_recall(probability, cell, at) for at in THRESHOLDS},
        "calibration_error": calibration_error(table),
        "reliability": table.tolist(),
        "kinds": {
            str(kind): _of_one_kind(probability[here], cell[here])
            for kind in np.unique(examples.kind)
            for here in [examples.kind == kind]
        },
    }


def _of_one_kind(probability: NDArray[np.floating], cell: NDArray[np.bool_]) -> dict[str, Any]:
    about: dict[str, Any] = {}
    for name, chosen in (("cells", cell), ("others", ~cell)):
        if chosen.any():
            about[f"n_{name}"] = int(chosen.sum())
            about[f"mean_of_{name}"] = float(probability[chosen].mean(dtype=np.float64))
            about[f"accepted_of_{name}"] = float((probability[chosen] >= 0.5).mean())
    if cell.any() and not cell.all():
        about["roc_auc"] = roc_auc(probability, cell)
    return about


def _part(count: int, of: int) -> float:
    return count / of if of else float("nan")


def _strata(examples: Examples) -> tuple[NDArray[np.str_], NDArray[np.intp]]:
    """Return the domains with their classes, and to which of them each example belongs."""
    named = np.char.add(domains(examples), np.where(examples.cell, " cell", " other"))
    names, strata = np.unique(named, return_inverse=True)
    return names, strata


def _compiled(seed: int, steps: int) -> Any:
    """Return a new network ready for training, all its random numbers from a seed."""
    keras = import_keras()
    import tensorflow

    keras.utils.set_random_seed(seed)
    tensorflow.config.experimental.enable_op_determinism()
    model = build_network()
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=WEIGHT_DECAY)
    model.compile(optimizer, keras.losses.BinaryCrossentropy(), jit_compile=False)
    return model


def _batches(
    examples: Examples, batches: int, stream: Generator
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield crops (BATCH, SIDE, SIDE, 1) and their classes, as many of each stratum."""
    names, strata = _strata(examples)
    members = [np.flatnonzero(strata == number) for number in range(len(names))]
    for _ in range(batches):
        drawn = np.arange(BATCH) % len(members)
        chosen = np.array([stream.choice(members[number]) for number in drawn])
        crops = np.stack([_moved(crop, stream) for crop in examples.crops[chosen]])
        yield crops[..., None], examples.cell[chosen].astype(np.float32)[:, None]


def _moved(crop: NDArray[np.float32], stream: Generator) -> NDArray[np.float32]:
    """Return a crop turned by a quarter or more, mirrored and shifted, at random."""
    turned = np.rot90(crop, int(stream.integers(4)))
    turned = turned[::-1] if stream.integers(2) else turned
    padded = np.pad(turned, LARGEST_SHIFT)
    y, x = stream.integers(0, 2 * LARGEST_SHIFT + 1, size=2)
    return np.asarray(padded[y : y + SIDE, x : x + SIDE])
