"""Training of the classifier that comes with the package: examples, network, and how good it is."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from napari_calcium.errors import InputError
from napari_calcium.evaluation.crops import RADIUS, SIDE
from napari_calcium.evaluation.examples import (
    MASK_RADIUS,
    Examples,
    in_groups,
    joined,
    mask_examples,
)
from napari_calcium.evaluation.network import (
    BATCH,
    BATCHES,
    EPOCHS,
    ask,
    domains,
    report,
    train,
)
from napari_calcium.keras_models import import_keras, save_model
from napari_calcium.pipeline.classifier_examples import simulated_examples
from napari_calcium.pipeline.run import Progress

__all__ = ["HELD_OUT", "N_MOVIES", "plot_reliability", "report_text", "train_classifier"]

N_MOVIES = 60
"""Simulated recordings to train on."""

PARTS = {"training": (0, 1), "validation": (500, 1 / 6), "test": (1000, 1 / 3)}
"""First seed of the simulated recordings of each part, and how many for each to train on."""

HELD_OUT = ("524691284", "527048992")
"""Real recordings for testing."""

VALIDATION = ("503109347",)
"""Real recordings by which the epoch is chosen and the probabilities are calibrated."""

VARIANTS = 8
"""Footprints made of each mask of the recordings to train on."""

DIGITS = 5
"""Of the figures in a card."""

TITLES = {
    "simulated": "simulated recordings",
    "real": "real recordings, all masks",
    "real_found": "real recordings, masks found by programs",
}


def train_classifier(
    output: str | Path,
    masks: str | Path | None = None,
    *,
    seed: int = 0,
    n_movies: int = N_MOVIES,
    epochs: int = EPOCHS,
    batches: int = BATCHES,
    held_out: Collection[str] = HELD_OUT,
    validation: Collection[str] = VALIDATION,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Train the classifier and write it, with a card that says on what and how good it is.

    Examples are footprints that source extraction finds in simulated recordings, and, where given,
    masks of real ones. Whole recordings are for training, for validation (which epoch, and
    calibration) or for testing, never for two of these. On one machine the same arguments give the
    same files.

    Parameters
    ----------
    output : path
        The model, NAME.keras; its card is NAME.json beside it.
    masks : path, optional
        Masks of real recordings, .npz: see `mask_examples`.
    seed : int
        Of the training; which recordings are simulated does not depend on it.
    n_movies : int
        Simulated recordings to train on.
    epochs, batches : int
        Length of the training: epochs of so many batches.
    held_out, validation : collection of str
        Names of the real recordings for testing and for validation.
    workers : int, optional
        Tasks at a time in simulation and extraction; the result does not depend on it.
    progress : callable, optional
        Called with a `Progress` of "classifier_examples" or "classifier_training".

    Returns
    -------
    dict
        The card: ``data`` (what each part is made of), ``training``, ``crop``, ``software`` and
        ``figures``: `report` of the test for "simulated", "real" and "real_found", the masks that
        programs and not people drew.

    Raises
    ------
    InputError
        If the files cannot be used, or TensorFlow cannot be imported.
    """
    output = _checked_output(output)
    settings = {"seed": seed, "epochs": epochs, "batches": batches}
    _check_numbers(n_movies, settings)
    recordings = {"validation": set(validation), "test": set(held_out)}
    real = {} if masks is None else _real_parts(masks, recordings)
    import_keras()  # said now if it cannot be, and not when the movies are done
    simulated = _simulated_parts(n_movies, workers, progress)
    parts = {part: joined(simulated[part], *real.get(part, ())) for part in PARTS}
    model = train(parts["training"], parts["validation"], **settings, progress=_telling(progress))
    card = {
        "data": {part: _content(examples) for part, examples in parts.items()},
        "masks": None if masks is None else hashlib.sha256(Path(masks).read_bytes()).hexdigest(),
        "crop": {"side_px": SIDE, "cell_radius_px": RADIUS, "mask_radius_px": MASK_RADIUS},
        "training": {**settings, "batch": BATCH, "n_weights": int(model.count_params())},
        "software": {name: importlib.metadata.version(name) for name in ("keras", "tensorflow")},
        "figures": _figures(model, parts["test"]),
    }
    plain: dict[str, Any] = _plain(card)
    save_model(model, output)
    _write_text(output.with_suffix(".json"), json.dumps(plain, indent=1, allow_nan=False) + "\n")
    return plain


def report_text(card: Mapping[str, Any]) -> str:
    """Say in a few lines how good a classifier is, by its card.

    Examples
    --------
    >>> at = {"precision": 0.9, "recall": 0.8, "f1": 0.847, "false_positives": 0.1}
    >>> figures = {"n_cells": 70, "n_others": 60, "roc_auc": 0.91, "calibration_error": 0.02}
    >>> test = {**figures, "thresholds": {"0.5": at}, "kinds": {"soma": {"n_cells": 70}}}
    >>> print(report_text({"figures": {"simulated": test}}))
    simulated recordings: 70 cells, 60 others, ROC-AUC 0.910, calibration error 0.020
      from 0.5: precision 0.900, recall 0.800, F1 0.847, false positives 0.100
      soma: 70 cells
    """
    return "\n".join(
        line for name, figures in card["figures"].items() for line in _lines(TITLES[name], figures)
    )


def plot_reliability(card: Mapping[str, Any], path: str | Path) -> None:
    """Draw what part of the components are cells against the probability that they were given.

    Parameters
    ----------
    card : mapping
        As `train_classifier` returns it.
    path : path
        The picture, such as NAME.png.
    """
    figure = Figure(figsize=(4.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="as it should be")
    for name, figures in card["figures"].items():
        table = np.array(figures["reliability"], np.float64)
        axes.plot(table[:, 1], table[:, 2], marker="o", markersize=4, label=TITLES[name])
    axes.set(
        xlabel="Probability by the classifier",
        ylabel="Part that are cells, of as many cells as others",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _checked_output(path: str | Path) -> Path:
    output = Path(path)
    if output.suffix != ".keras":
        raise InputError(f"the model {output} is not named NAME.keras; give it such a name")
    if not output.absolute().parent.is_dir():
        raise InputError(f"the folder {output.parent} does not exist; make it first")
    return output


def _check_numbers(n_movies: int, settings: Mapping[str, int]) -> None:
    if not 1 <= n_movies <= PARTS["validation"][0]:
        most = PARTS["validation"][0]
        raise InputError(f"n_movies is {n_movies}; give 1 to {most} movies to train on")
    for name in ("epochs", "batches"):
        if settings[name] < 1:
            raise InputError(f"{name} is {settings[name]}; give at least 1")


def _real_parts(
    masks: str | Path, recordings: Mapping[str, set[str]]
) -> dict[str, tuple[Examples, ...]]:
    """Return the real examples of each part; those to train on as several variants."""
    if both := recordings["validation"] & recordings["test"]:
        raise InputError(f"recording {sorted(both)[0]} is for validation and for test; leave one")
    several, once = (
        mask_examples(masks, variants=VARIANTS),
        mask_examples(masks, variants=1, jitter=0),
    )
    known = {name.removeprefix("recording ") for name in np.unique(once.group)}
    for part, names in recordings.items():
        if missing := names - known:
            raise InputError(
                f"{masks} has no recording {sorted(missing)[0]}, which is for {part}; "
                f"it has {', '.join(sorted(known))}"
            )
    others = known.difference(*recordings.values())
    chosen = {"training": (several, others)}
    chosen |= {part: (once, names) for part, names in recordings.items()}
    return {
        part: (in_groups(examples, {f"recording {name}" for name in names}),)
        for part, (examples, names) in chosen.items()
    }


def _simulated_parts(
    n_movies: int, workers: int | None, progress: Callable[[Progress], None] | None
) -> dict[str, Examples]:
    """Simulate the recordings of each part and return the examples found in them."""
    counts = {part: max(1, round(n_movies * share)) for part, (_, share) in PARTS.items()}
    seeds = {part: range(first, first + counts[part]) for part, (first, _) in PARTS.items()}
    every = [seed for some in seeds.values() for seed in some]
    examples = simulated_examples(every, progress=progress, workers=workers)
    return {
        part: in_groups(examples, {f"seed {seed}" for seed in some}) for part, some in seeds.items()
    }


def _telling(
    progress: Callable[[Progress], None] | None,
) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(Progress("classifier_training", done, total))


def _content(examples: Examples) -> dict[str, dict[str, list[int]]]:
    """Return how many cells and others there are of each group and of each kind."""
    about: dict[str, dict[str, list[int]]] = {}
    for name, values in (("groups", examples.group), ("kinds", examples.kind)):
        about[name] = {
            str(value): [int((examples.cell & here).sum()), int((~examples.cell & here).sum())]
            for value in np.unique(values)
            for here in [values == value]
        }
    return about


def _figures(model: Any, test: Examples) -> dict[str, dict[str, Any]]:
    """Report on each domain of the test, and on the real masks that programs found."""
    probability = ask(model, test.crops)
    real = domains(test) == "real"
    chosen = {"simulated": ~real, "real": real, "real_found": real & (test.kind != "annotator")}
    return {
        name: report(probability[here], test[here]) for name, here in chosen.items() if here.any()
    }


def _lines(title: str, figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of `report_text` on one set of examples."""
    yield (
        f"{title}: {figures['n_cells']} cells, {figures['n_others']} others, "
        f"ROC-AUC {_said(figures['roc_auc'])}, "
        f"calibration error {_said(figures['calibration_error'])}"
    )
    for threshold, about in figures["thresholds"].items():
        yield (
            f"  from {threshold}: precision {_said(about['precision'])}, "
            f"recall {_said(about['recall'])}, F1 {_said(about['f1'])}, "
            f"false positives {_said(about['false_positives'])}"
        )
    for kind, about in figures["kinds"].items():
        parts = []
        for name in ("cells", "others"):
            if f"n_{name}" in about:
                mean = f"mean_of_{name}"
                parts.append(f"{about[f'n_{name}']} {name}")
                parts[-1] += f" (mean {_said(about[mean])})" if mean in about else ""
        if "roc_auc" in about:
            parts.append(f"ROC-AUC {_said(about['roc_auc'])}")
        yield f"  {kind}: {', '.join(parts)}"


def _said(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _plain(value: Any) -> Any:
    """Return what can be written as JSON: fractions of a few digits, None for NaN."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return round(value, DIGITS) if math.isfinite(value) else None
    return value


def _write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder, path.name)
        whole.write_text(text, "utf-8")
        whole.replace(path)
