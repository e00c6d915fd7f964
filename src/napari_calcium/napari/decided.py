"""What is decided of the cells of a session, and the colours and words that say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from napari.utils import colormaps
from napari.utils.colormaps import CyclicLabelColormap, DirectLabelColormap
from napari.utils.colormaps.standardize_color import transform_color
from numpy.typing import NDArray

from napari_calcium.components import Quality
from napari_calcium.evaluation.decision import REASONS, TITLES, counts, decide, explain
from napari_calcium.evaluation.decision import reason_words as words_of
from napari_calcium.evaluation.evaluation import ComponentEvaluationParameters
from napari_calcium.io.choices import read_choices
from napari_calcium.io.session import Session, StageRecord

__all__ = [
    "COLOURS",
    "RATES",
    "SCORES",
    "Decided",
    "digest_of_these_cells",
    "label_colormap",
    "label_colours",
    "of_these_cells",
    "parameters_of",
    "read_decided",
]

SCORES = "component_evaluation"
"""The group of a session in which the scores are."""

CHANGE, RATES = "dff", "spike_inference"
"""The groups of a session in which the change of fluorescence and the rates of spikes are."""

COLOURS: dict[tuple[bool, bool], str] = {
    (True, False): "#ffd84d",
    (False, False): "#a8474f",
    (True, True): "#9dff57",
    (False, True): "#ff5f5f",
}
"""Of cells that are accepted or not, by their scores or by hand."""

MOST_LABELS = 2**16 - 1
"""The largest label of a table of colours; beyond, napari takes a dictionary, which is slower."""

Colours = NDArray[np.float32]


@dataclass(frozen=True)
class Decided:
    """The scores of a session's cells, and what thresholds and a person make of them.

    Parameters
    ----------
    quality : Quality
        The scores, decided by `parameters`.
    parameters : ComponentEvaluationParameters
        How they were made, and the thresholds.
    cell_id : ndarray of int64 (cell,)
        Identity of each cell.
    choices : mapping of int to bool
        By identity, which cells a person accepted or rejected.
    classifier : str
        Why the classifier was not asked; "" where it was.
    cells, scores : str
        Digests of the source extraction and of the component evaluation that this is of.
    """

    quality: Quality
    parameters: ComponentEvaluationParameters
    cell_id: NDArray[np.int64]
    choices: Mapping[int, bool] = field(default_factory=dict)
    classifier: str = ""
    cells: str = ""
    scores: str = ""

    @classmethod
    def of_nothing(cls) -> Self:
        """Return what is decided where there are no scores."""
        nothing = np.zeros(0, np.float32)
        quality = Quality(nothing, nothing, nothing, nothing.astype(bool))
        return cls(quality, ComponentEvaluationParameters(), nothing.astype(np.int64))

    def is_of(self, digest: str) -> bool:
        """Whether a layer of cells, or of their outlines, with a digest shows these cells."""
        return bool(self.cells) and digest.startswith(self.cells)  # see `layers.layer_digests`

    def by(self, parameters: ComponentEvaluationParameters) -> Self:
        """Return the same cells decided by other thresholds."""
        return replace(self, quality=decide(self.quality, parameters), parameters=parameters)

    @cached_property
    def chosen(self) -> NDArray[np.bool_]:
        """Which cells a person decided, (cell,)."""
        return np.isin(self.cell_id, list(self.choices))

    @cached_property
    def accepted(self) -> NDArray[np.bool_]:
        """Which cells are accepted, by the thresholds and over them by a person, (cell,)."""
        accepted = self.quality.accepted.copy()
        for index in np.flatnonzero(self.chosen):
            accepted[index] = self.choices[int(self.cell_id[index])]
        return accepted

    def why(self, index: int) -> str:
        """Say in a sentence why a cell is accepted or rejected."""
        said = explain(self.quality, self.parameters, index, self.cell_id)
        if not self.chosen[index]:
            return said
        chosen = "accepted" if self.accepted[index] else "rejected"
        return f"{chosen} by hand; by its scores {said}"

    def figures(self, index: int) -> str:
        """Say the scores of a cell; those that are not known are left out."""
        scores = {
            title: float(getattr(self.quality, name)[index]) for name, title in TITLES.items()
        }
        return ", ".join(
            f"{title} {score:.3g}" for title, score in scores.items() if score == score
        )

    def counted(self) -> str:
        """Say how many cells are accepted, what rejects the others, and how many were chosen."""
        n_accepted, by_hand = int(self.accepted.sum()), int(self.chosen.sum())
        said = f"{n_accepted} accepted, {len(self.accepted) - n_accepted} rejected"
        scored = replace(self.quality, reasons=np.where(self.chosen, 0, self.quality.reasons))
        if reasons := [f"{n} {REASONS[reason]}" for reason, n in counts(scored).items()]:
            said += f": {', '.join(reasons)}"
        return f"{said}; {by_hand} chosen by hand" if by_hand else said

    def features(self) -> dict[str, NDArray[Any]]:
        """Return scores and decision as columns of a table, without scores that no cell has."""
        scores = {name: getattr(self.quality, name) for name in TITLES}
        known = {name: values for name, values in scores.items() if np.isfinite(values).any()}
        found, which = np.unique(self.quality.reasons, return_inverse=True)
        reason = np.array([words_of(each) for each in found.tolist()], object)[which]
        reason[self.chosen] = np.where(self.accepted[self.chosen], "", "by hand")
        choice = np.where(self.accepted, "accept", "reject").astype(object)
        choice[~self.chosen] = ""
        return {**known, "accepted": self.accepted, "reason": reason, "choice": choice}

    def colours(self, rejected: bool = True) -> Colours:
        """Return the colour of each cell, (cell, 4); that of the rejected is clear on demand."""
        table = np.asarray(transform_color(list(COLOURS.values())), np.float32)
        colours: Colours = table[2 * self.chosen + ~self.accepted]  # as `COLOURS` are in order
        if not rejected:
            colours[~self.accepted, 3] = 0
        return colours


def read_decided(session: Session) -> Decided | None:
    """Read what is decided of the cells of a session; None where they have no scores."""
    if not of_these_cells(session, SCORES):
        return None
    record, cells = session.record(SCORES), session.record("source_extraction")
    assert record is not None
    assert cells is not None
    parameters = parameters_of(record)
    return Decided(
        decide(session.quality(), parameters),
        parameters,
        session.read("source_extraction/cell_id"),
        read_choices(session),
        str(session.group_attrs(SCORES).get("classifier", "")),
        cells.digest,
        record.digest,
    )


def parameters_of(record: StageRecord) -> ComponentEvaluationParameters:
    """Return the parameters with which cells were scored, but those of a later version."""
    known = {each.name for each in ComponentEvaluationParameters.describe()}
    given = {name: value for name, value in record.parameters.items() if name in known}
    return ComponentEvaluationParameters.from_mapping(given)


def of_these_cells(session: Session, group: str) -> bool:
    """Whether a stage's results are of the cells that the session holds, as it is marked, now."""
    record = session.record(group)
    if record is None or not session.heeds(record):
        return False
    if CHANGE in record.inputs:  # which is itself of some cells
        change = session.record(CHANGE)
        same = change is not None and record.inputs[CHANGE] == change.digest
        return same and of_these_cells(session, CHANGE)
    cells = session.record("source_extraction")
    return cells is not None and record.inputs.get("source_extraction") == cells.digest


def digest_of_these_cells(session: Session, group: str) -> str:
    """Return what identifies a stage's results of the cells held now; empty if there are none."""
    record = session.record(group)
    return record.digest if record and of_these_cells(session, group) else ""


def label_colours(labels: NDArray[np.integer], colours: Colours) -> Colours:
    """Return a table of colours by label, from the colour of each cell.

    Examples
    --------
    >>> label_colours(np.array([3, 1]), np.float32([[1, 0, 0, 1], [0, 0, 1, 1]])).tolist()[1:]
    [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]]
    """
    table = np.zeros((max(2, int(labels.max(initial=0)) + 1), 4), np.float32)
    table[labels] = colours
    return table


def label_colormap(labels: NDArray[np.integer], colours: Colours | None) -> Any:
    """Return the colormap of a Labels layer, from the label and the colour of each cell.

    Without colours, each cell has one that its neighbours are not likely to have.
    """
    if colours is None:
        return colormaps.label_colormap()
    if labels.max(initial=0) <= MOST_LABELS:
        return CyclicLabelColormap(colors=label_colours(labels, colours))
    clear = np.zeros(4, np.float32)
    return DirectLabelColormap(
        color_dict={None: clear, 0: clear, **dict(zip(labels.tolist(), colours, strict=True))}
    )
