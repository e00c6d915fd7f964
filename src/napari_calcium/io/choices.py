"""What a person decided of cells, by hand: kept apart from what the machine found.

The choices are a log in the session's group ``curation``, to which entries are only added. No run
touches it, so no evaluation erases them. An entry is of the cells of one source extraction, by its
digest: cells that are found anew have other identities, and the choices made before wait in the log
in case these cells come back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.io.session import Session

__all__ = ["accepted_cells", "choose", "read_choices"]

GROUP = "curation"
CELLS = "source_extraction"
ACTIONS = {True: "accept", False: "reject", None: "as scored"}
"""What is written in the log for each choice."""

SECONDS_TO_WAIT = 10
"""For another window that is writing its choice."""


def read_choices(session: Session) -> dict[int, bool]:
    """Return what a person decided of the cells that a session holds now.

    Parameters
    ----------
    session : Session
        Any session.

    Returns
    -------
    dict of int to bool
        By `cell_id`, whether the cell was accepted or rejected; only those chosen by hand.
    """
    record = session.record(CELLS)
    chosen: dict[int, bool] = {}
    for entry in _log(session):
        if record is None or entry["of"] != record.digest:
            continue
        for cell_id in entry["cell_id"]:
            chosen.pop(cell_id, None)
            if entry["action"] != ACTIONS[None]:
                chosen[cell_id] = entry["action"] == ACTIONS[True]
    return chosen


def choose(
    session: Session, cell_ids: Iterable[int], accepted: bool | None, *, of: str | None = None
) -> None:
    """Accept or reject cells by hand, or leave them to their scores again.

    Parameters
    ----------
    session : Session
        The session; its log has one entry more, written in one step.
    cell_ids : iterable of int
        Identities of the cells.
    accepted : bool or None
        None takes earlier choices back.
    of : str, optional
        Digest of the source extraction whose cells these are; that of now if not given.

    Raises
    ------
    InputError
        If the session has no such cell, holds the cells of another extraction, or cannot be
        written.
    """
    record = session.record(CELLS)
    if of is not None and (record is None or record.digest != of):
        raise InputError(f"the cells of {session.path} were found anew since; choose again")
    known = set() if record is None else set(session.read(f"{CELLS}/cell_id").tolist())
    chosen = [int(cell_id) for cell_id in cell_ids]
    if unknown := [cell_id for cell_id in chosen if cell_id not in known]:
        raise InputError(f"cell_id is {unknown[0]} but {session.path} has no such cell; check it")
    if not chosen or record is None:
        return
    entry = {"action": ACTIONS[accepted], "cell_id": chosen, "of": record.digest}
    folder = session.path / GROUP
    try:
        folder.mkdir(exist_ok=True)
        with FileLock(folder / ".lock", timeout=SECONDS_TO_WAIT):  # two windows may choose at once
            _write(folder, [*_log(session), entry])
    except (OSError, Timeout) as error:
        why = "another window is at it" if isinstance(error, Timeout) else error.strerror
        raise InputError(
            f"{folder} cannot be written ({why}); copy the session to where you may write"
        ) from error


def accepted_cells(session: Session) -> NDArray[np.bool_]:
    """Return which cells are accepted: by the machine, and over it by what a person chose.

    Parameters
    ----------
    session : Session
        A session with component evaluation.

    Returns
    -------
    ndarray of bool (cell,)

    Raises
    ------
    InputError
        If component evaluation has not run, or ran before a stage that it needs: its decision is of
        other cells.
    """
    session.current("component_evaluation")
    accepted = session.quality().accepted.copy()
    cell_id = session.read(f"{CELLS}/cell_id")
    for chosen, decision in read_choices(session).items():
        accepted[cell_id == chosen] = decision
    return accepted


def _log(session: Session) -> list[dict[str, Any]]:
    path = session.path / GROUP / "zarr.json"
    if not path.is_file():
        return []
    try:
        log: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["attributes"]["log"]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} is damaged; restore it, or remove the folder {GROUP}") from None
    return log


def _write(folder: Path, log: list[dict[str, Any]]) -> None:
    """Replace the group's metadata in one step: a kill leaves the old log or the new one."""
    metadata = {"zarr_format": 3, "node_type": "group", "attributes": {"log": log}}
    partial = folder / "zarr.json.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(metadata, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / "zarr.json")
