"""Deciding again which components are cells, from scores that are stored: nothing is computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from napari_calcium.components import Quality
from napari_calcium.errors import InputError
from napari_calcium.evaluation.decision import REASONS, counts, decide, warnings_of
from napari_calcium.evaluation.evaluation import ComponentEvaluationParameters
from napari_calcium.io.session import (
    Session,
    StageRecord,
    quality_attrs,
    quality_to_arrays,
)

__all__ = ["decide_again", "decision_attrs", "store_decision"]

GROUP = "component_evaluation"


def decide_again(path: str | Path, parameters: ComponentEvaluationParameters) -> Quality:
    """Store another decision in a session, made from the scores that it holds.

    Parameters
    ----------
    path : path
        The session.
    parameters : ComponentEvaluationParameters
        Its thresholds are what may differ from those with which component evaluation was run.

    Returns
    -------
    Quality
        The same scores and the new decision. What a person chose is stored elsewhere, and stays.

    Raises
    ------
    InputError
        If there are no scores of such parameters and of the cells that the session holds, a run is
        at work in it, or it cannot be written.
    """
    session = Session(path)
    try:
        with session.lock():
            session.current(GROUP)
            _check_scores(session, parameters)
            _remember(session, parameters)  # first: what is remembered is decided by the next run
            return store_decision(session, parameters)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); make room or check the drive"
        ) from error


def store_decision(session: Session, parameters: ComponentEvaluationParameters) -> Quality:
    """Store a decision as above, by the holder of the session's lock."""
    record = _check_scores(session, parameters)
    attrs = session.group_attrs(GROUP)
    quality = decide(session.quality(), parameters)
    with session.writing(GROUP) as writer:
        for name, values in quality_to_arrays(quality).items():
            writer.write(name, values)
        for group, about in decision_attrs(quality, str(attrs.get("classifier", ""))).items():
            writer.attrs(group, about)
        writer.commit(replace(record, parameters=parameters.to_mapping()))
    return quality


def _check_scores(session: Session, parameters: ComponentEvaluationParameters) -> StageRecord:
    """Return how the scores came to be, if such parameters made them."""
    record = session.record(GROUP)
    if record is None:
        raise InputError(f"{session.path} has no scores; run {GROUP} first")
    for name, value in parameters.identity().items():
        if name not in record.parameters:
            raise InputError(
                f"{GROUP} in {session.path} was made by an earlier version; run it again"
            )
        if record.parameters[name] != value:
            raise InputError(
                f"{name} is {value!r} but {GROUP} was run with {record.parameters[name]!r}; "
                "run it again"
            )
    return record


def _remember(session: Session, parameters: ComponentEvaluationParameters) -> None:
    """Put the thresholds into the session's recipe, and leave all else that was asked there."""
    recipe = session.attrs.get("recipe", {})
    asked = recipe.get(GROUP, {})
    thresholds = {each.name for each in parameters.describe() if each.decides}
    given = {k: v for k, v in parameters.to_mapping().items() if k in thresholds or k not in asked}
    session.update_attrs({"recipe": {**recipe, GROUP: {**asked, **given}}})


def decision_attrs(quality: Quality, classifier: str) -> dict[str, dict[str, Any]]:
    """Return the attributes of the ``component_evaluation`` group and of what is in it.

    Parameters
    ----------
    quality : Quality
        Scores and decision.
    classifier : str
        Why the classifier was not asked; "" where it was.
    """
    said = f"{_summary(quality)} {classifier}".strip()
    about = {"summary": said, "warnings": warnings_of(quality), "classifier": classifier}
    meanings = {str(int(reason)): words for reason, words in REASONS.items()}
    return {"": about, **quality_attrs(quality), "reasons": {"meanings": meanings}}


def _summary(quality: Quality) -> str:
    """Say how many components are accepted, and what rejects the others.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_calcium.evaluation.decision import Reason
    >>> bits = np.array([0, Reason.SNR, Reason.SNR | Reason.SMALL])
    >>> _summary(Quality(*np.zeros((3, 3)), bits == 0, reasons=bits))
    '1 of 3 components accepted; rejected: 2 trace SNR too low, 1 too small.'
    """
    said = f"{int(quality.accepted.sum())} of {quality.n_cells} components accepted"
    rejected = [f"{n} {REASONS[reason]}" for reason, n in counts(quality).items()]
    return f"{said}; rejected: {', '.join(rejected)}." if rejected else f"{said}."
