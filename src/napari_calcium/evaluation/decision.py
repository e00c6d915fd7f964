"""The decision: which components are accepted, and why the others are not.

Made from scores that are there already, so it can be made again at once with other thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntFlag
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_calcium.components import Quality

if TYPE_CHECKING:
    from napari_calcium.evaluation.evaluation import ComponentEvaluationParameters

__all__ = [
    "REASONS",
    "THRESHOLDS",
    "TITLES",
    "Reason",
    "counts",
    "decide",
    "explain",
    "reason_words",
    "warnings_of",
]


class Reason(IntFlag):
    """Why a component is rejected; several may hold, NO_SCORE only where no score is too low."""

    NO_SCORE = 1
    SNR = 2
    CORRELATION = 4
    CNN = 8
    SMALL = 16
    LARGE = 32
    DUPLICATE = 64


REASONS: dict[Reason, str] = {
    Reason.NO_SCORE: "no score high enough",
    Reason.SNR: "trace SNR too low",
    Reason.CORRELATION: "spatial correlation too low",
    Reason.CNN: "no cell for the classifier",
    Reason.SMALL: "too small",
    Reason.LARGE: "too large",
    Reason.DUPLICATE: "duplicate of a better one",
}
"""Each reason in a few words."""

THRESHOLDS: dict[str, tuple[str, str]] = {
    "snr": ("snr_lower", "snr_upper"),
    "spatial_correlation": ("correlation_lower", "correlation_upper"),
    "cnn_probability": ("cnn_lower", "cnn_upper"),
    "size": ("min_size", "max_size"),
}
"""The lower and the upper threshold of each score, by their names among the parameters."""

TITLES: dict[str, str] = {
    "snr": "Trace SNR",
    "spatial_correlation": "Spatial correlation",
    "cnn_probability": "Classifier",
    "size": "Size",
}
"""What each score is called."""

TOO_LOW = {
    "snr": Reason.SNR,
    "spatial_correlation": Reason.CORRELATION,
    "cnn_probability": Reason.CNN,
}
"""The scores of which one has to be high and none may be low, and the reason if it is."""

A_CELL = 0.5
"""Of two duplicates, one that the classifier holds for a cell is better than one it does not."""

SAME = 1e-6
"""Scores of a classifier that differ by less are the same."""

FEWEST_COMPARED = 5
"""Of fewer components it is no wonder that they have the same score."""


@dataclass(frozen=True)
class _Limits:
    """The thresholds of one score."""

    lower: float
    upper: float


def decide(quality: Quality, parameters: ComponentEvaluationParameters) -> Quality:
    """Decide which components are cells.

    A component is accepted if any score reaches its upper threshold, none is at or below its lower
    one, it is neither too small nor too large, and it is not a duplicate of a better one. Of two
    duplicates the better is the one that the classifier holds for a cell, or else the one of the
    higher trace SNR.

    Parameters
    ----------
    quality : Quality
        The scores; a score that is NaN counts neither for nor against.
    parameters : ComponentEvaluationParameters
        The thresholds.

    Returns
    -------
    Quality
        The same scores with `accepted` and `reasons` as the thresholds say.

    References
    ----------
    .. [1] Giovannucci et al., eLife 2019, doi:10.7554/eLife.38173

    Examples
    --------
    >>> from napari_calcium.evaluation.evaluation import ComponentEvaluationParameters
    >>> parameters = ComponentEvaluationParameters(correlation_lower=0.2)
    >>> snr, correlation = np.array([3.0, 1.0, 3.0, 1.0]), np.array([0.5, 0.9, 0.1, 0.5])
    >>> unknown = np.full(4, np.nan)
    >>> found = decide(Quality(snr, correlation, unknown, np.zeros(4, bool)), parameters)
    >>> found.accepted
    array([ True,  True, False, False])
    >>> [reason_words(bits) for bits in found.reasons[2:]]
    ['spatial correlation too low', 'no score high enough']
    """
    reasons = np.zeros(quality.n_cells, np.int64)
    enough = np.zeros(quality.n_cells, bool)
    for score, reason in TOO_LOW.items():
        values, limits = getattr(quality, score), _limits(score, parameters)
        enough |= values >= limits.upper
        reasons[values <= limits.lower] |= reason
    reasons[~enough & (reasons == 0)] |= Reason.NO_SCORE
    size = _limits("size", parameters)
    reasons[quality.size < size.lower] |= Reason.SMALL
    reasons[quality.size > size.upper] |= Reason.LARGE
    for cell in _better(quality, reasons == 0, parameters.duplicate_overlap):
        reasons[cell] |= Reason.DUPLICATE
    return replace(quality, accepted=reasons == 0, reasons=reasons.astype(np.uint16))


def explain(
    quality: Quality,
    parameters: ComponentEvaluationParameters,
    index: int,
    cell_id: Sequence[int] | NDArray[np.int64] | None = None,
) -> str:
    """Say in a sentence why a component is accepted or rejected.

    Parameters
    ----------
    quality : Quality
        As `decide` returned it with the same parameters.
    parameters : ComponentEvaluationParameters
        The thresholds.
    index : int
        Which component.
    cell_id : sequence of int, optional
        What the cells are called, to name the one of which it is a duplicate.

    Examples
    --------
    >>> from napari_calcium.evaluation.evaluation import ComponentEvaluationParameters
    >>> parameters, unknown = ComponentEvaluationParameters(), np.full(2, np.nan)
    >>> scores = Quality(np.array([3.1, 0.4]), np.array([0.9, 0.82]), unknown, np.zeros(2, bool))
    >>> found = decide(scores, parameters)
    >>> explain(found, parameters, 0)
    'accepted: trace SNR 3.1 reaches 2.5, spatial correlation 0.9 reaches 0.85'
    >>> explain(found, parameters, 1)
    'rejected: trace SNR 0.4 is not above 0.5'
    """
    reasons = Reason(int(quality.reasons[index]))
    if not reasons:
        return f"accepted: {', '.join(_reached(quality, parameters, index))}"
    said = [
        _too_low(name, quality, parameters, index) for name in TOO_LOW if reasons & TOO_LOW[name]
    ]
    size, limits = quality.size[index], _limits("size", parameters)
    if reasons & Reason.SMALL:
        said.append(f"size {_figure(size, limits.lower)} discs, below {limits.lower:g}")
    if reasons & Reason.LARGE:
        said.append(f"size {_figure(size, limits.upper)} discs, above {limits.upper:g}")
    if reasons & Reason.DUPLICATE:
        said.append(_duplicate(quality, parameters, index, cell_id))
    if reasons & Reason.NO_SCORE:
        said.insert(0, _none_reached(quality, parameters, index))
    return f"rejected: {'; '.join(said)}"


def reason_words(reasons: int) -> str:
    """Return the reasons in a few words; "" for an accepted component.

    Examples
    --------
    >>> reason_words(Reason.SNR | Reason.SMALL), reason_words(0)
    ('trace SNR too low, too small', '')
    """
    return ", ".join(words for reason, words in REASONS.items() if reason & int(reasons))


def counts(quality: Quality) -> dict[Reason, int]:
    """Return how many components each reason rejects, those of no reason left out.

    Examples
    --------
    >>> bits = np.array([0, Reason.SNR | Reason.SMALL, Reason.NO_SCORE])
    >>> found = Quality(*np.zeros((3, 3)), bits == 0, reasons=bits)
    >>> [(reason.name, n) for reason, n in counts(found).items()]
    [('NO_SCORE', 1), ('SNR', 1), ('SMALL', 1)]
    """
    rejected = {reason: int((quality.reasons & reason != 0).sum()) for reason in Reason}
    return {reason: n for reason, n in rejected.items() if n}


def warnings_of(quality: Quality) -> list[str]:
    """Return what a person should know of scores and decision before trusting them.

    Parameters
    ----------
    quality : Quality
        As `decide` returned it.

    Returns
    -------
    list of str
        A sentence where the classifier gives the same score to everything, and one where no
        component is accepted.

    Examples
    --------
    >>> scores = np.zeros((2, 6))
    >>> for said in warnings_of(Quality(*scores, np.full(6, 0.25), np.zeros(6, bool))):
    ...     print(said)
    The classifier gives all 6 components the same score, 0.25: its model says nothing here; \
set classifier to off, or give another classifier_file.
    None of 6 components is accepted (6 with no score high enough); lower the thresholds.
    """
    said = []
    known = quality.cnn_probability[np.isfinite(quality.cnn_probability)]
    if len(known) >= FEWEST_COMPARED and np.ptp(known) < SAME:
        said.append(
            f"The classifier gives all {len(known)} components the same score, {known[0]:.2g}: "
            "its model says nothing here; set classifier to off, or give another classifier_file."
        )
    if quality.n_cells and not quality.accepted.any():
        found = [f"{n} with {REASONS[reason]}" for reason, n in counts(quality).items()]
        said.append(
            f"None of {quality.n_cells} components is accepted ({', '.join(found)}); "
            "lower the thresholds."
        )
    return said


def _limits(score: str, parameters: ComponentEvaluationParameters) -> _Limits:
    return _Limits(*(getattr(parameters, name) for name in THRESHOLDS[score]))


def _better(quality: Quality, accepted: NDArray[np.bool_], overlap: float) -> dict[int, int]:
    """Return the duplicates, and for each the better cell that stays."""
    pairs = quality.pairs[quality.overlap > overlap]
    holds = ~(quality.cnn_probability < A_CELL)  # also where it was not asked
    rank = np.empty(quality.n_cells, np.int64)
    rank[np.lexsort((-np.arange(quality.n_cells), quality.snr, holds))] = np.arange(len(rank))
    better = np.take_along_axis(pairs, np.argsort(-rank[pairs], axis=1), axis=1)
    found: dict[int, int] = {}
    for first, second in better[np.argsort(-rank[better[:, 0]], kind="stable")]:
        if accepted[first] and first not in found:
            found.setdefault(int(second), int(first))
    return found


def _reached(quality: Quality, parameters: ComponentEvaluationParameters, index: int) -> list[str]:
    found = []
    for score in TOO_LOW:
        value, upper = getattr(quality, score)[index], _limits(score, parameters).upper
        if value >= upper:  # in single precision, as `decide` compares
            found.append(f"{_lower(TITLES[score])} {_figure(value, upper)} reaches {upper:g}")
    return found


def _none_reached(quality: Quality, parameters: ComponentEvaluationParameters, index: int) -> str:
    found = []
    for score in TOO_LOW:
        value, upper = getattr(quality, score)[index], _limits(score, parameters).upper
        if np.isfinite(value):
            found.append(f"{_lower(TITLES[score])} {_figure(value, upper)} of {upper:g}")
    if not found:
        return "no score is known"
    return f"no score reaches its upper threshold ({', '.join(found)})"


def _too_low(
    score: str, quality: Quality, parameters: ComponentEvaluationParameters, index: int
) -> str:
    value, lower = getattr(quality, score)[index], _limits(score, parameters).lower
    return f"{_lower(TITLES[score])} {_figure(value, lower)} is not above {lower:g}"


def _duplicate(
    quality: Quality,
    parameters: ComponentEvaluationParameters,
    index: int,
    cell_id: Sequence[int] | NDArray[np.int64] | None,
) -> str:
    accepted = quality.reasons & ~np.uint16(Reason.DUPLICATE) == 0
    other = _better(quality, accepted, parameters.duplicate_overlap).get(index)
    if other is None:
        return "lies over a better cell"
    both = (np.sort(quality.pairs, axis=1) == sorted((index, other))).all(axis=1)
    part = float(quality.overlap[both].max())
    name = "a better cell" if cell_id is None else f"cell {cell_id[other]}, which is better"
    return f"{100 * part:.0f} % of the smaller lies in the other: duplicate of {name}"


def _figure(value: float, limit: float) -> str:
    """Return a value with three digits, or as many as tell it from a limit that it is not.

    Examples
    --------
    >>> _figure(2.341, 2.5), _figure(2.4998, 2.5), _figure(2.5, 2.5)
    ('2.34', '2.4998', '2.5')
    """
    for digits in range(3, 8):
        figure = f"{value:.{digits}g}"
        if float(figure) != limit or np.float32(value) == np.float32(limit):
            break
    return figure


def _lower(title: str) -> str:
    """Return a title within a sentence."""
    return title[0].lower() + title[1:]
