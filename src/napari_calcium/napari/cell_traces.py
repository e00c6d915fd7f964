"""What is known of one cell of a session: its traces and its scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_calcium.io.session import Session
from napari_calcium.napari.layers import of_these_cells

__all__ = ["CellTraces", "read_cell"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class CellTraces:
    """The traces of one cell.

    Parameters
    ----------
    title : str
        The cell, its scores and the decision.
    seconds : ndarray (time,)
        Time of each frame, s.
    raw, denoised : ndarray (time,)
        Fluorescence above rest, in the movie's unit, with its noise and without.
    dff : ndarray (time,), optional
        dF/F as a fraction, where the stage was run on these cells.
    """

    title: str
    seconds: NDArray[np.float64]
    raw: Floats
    denoised: Floats
    dff: Floats | None


def read_cell(session: Session, cell_id: int) -> CellTraces | None:
    """Read one cell, and no other, from a session.

    Parameters
    ----------
    session : Session
        A session whose cells were found.
    cell_id : int
        Identity of the cell.

    Returns
    -------
    CellTraces or None
        None where the session has no such cell.
    """
    if session.record("source_extraction") is None:
        return None
    rows = np.flatnonzero(session.read("source_extraction/cell_id") == cell_id)
    if not rows.size:
        return None
    row = int(rows[0])
    denoised = _row(session, "source_extraction/traces", row)
    return CellTraces(
        title=_title(session, cell_id, row),
        seconds=np.arange(len(denoised)) / session.frame_rate,
        raw=denoised + _row(session, "source_extraction/residuals", row),
        denoised=denoised,
        dff=_row(session, "dff/traces", row) if of_these_cells(session, "dff") else None,
    )


def _row(session: Session, name: str, row: int) -> Floats:
    return np.asarray(session.array(name)[row], np.float32)


def _title(session: Session, cell_id: int, row: int) -> str:
    title = f"cell {cell_id}"
    if of_these_cells(session, "component_evaluation"):
        scores: dict[str, Any] = {
            name: session.array(f"component_evaluation/{name}")[row]
            for name in ("snr", "spatial_correlation", "accepted")
        }
        decision = "accepted" if scores["accepted"] else "rejected"
        title += f", SNR {scores['snr']:.1f}, r {scores['spatial_correlation']:.2f}, {decision}"
    return title
