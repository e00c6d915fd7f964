"""What is known of one cell of a session: its traces and its scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_calcium.io.export import KINDS, kind_of_change
from napari_calcium.io.session import Session
from napari_calcium.napari.decided import RATES, of_these_cells, read_decided

__all__ = ["CellTraces", "read_cell"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class CellTraces:
    """The traces of one cell; NaN in frames where something is not known.

    Parameters
    ----------
    name : str
        What the cell is called.
    seconds : ndarray (time,)
        Time of each frame, s.
    raw, denoised : ndarray (time,)
        Fluorescence above rest, in counts, with its noise and without.
    deconvolved : ndarray (time,)
        Activity, in counts per frame.
    dff : ndarray (time,), optional
        Change of fluorescence, where the stage was run on these cells: dF/F as a fraction, or of
        one-photon recordings detrended, in counts.
    f0 : ndarray (time,), optional
        F0, in counts, where `dff` is.
    fluorescence : ndarray (time,), optional
        The fluorescence that F0 is the baseline of, in counts, where `dff` is: that which lies
        above F0 by the change. It is not `raw`: of dF/F it has in it the background at rest.
    dff_kind : {"dff", "detrended"}
        What `dff` is.
    output : {"raw", "denoised"}
        Whether `dff` and `fluorescence` have their noise.
    floored : bool
        Whether F0 was raised to its floor in any frame: the change is not to be trusted.
    spike_rate : ndarray (time,), optional
        Rate of spikes, Hz, where it was inferred of this change.
    spike_marks : str
        What speaks against that rate, in a few words; "" if nothing.
    decision : str
        Why it is accepted or rejected; "" where nobody has decided.
    """

    name: str
    seconds: NDArray[np.float64]
    raw: Floats
    denoised: Floats
    deconvolved: Floats
    dff: Floats | None = None
    f0: Floats | None = None
    fluorescence: Floats | None = None
    dff_kind: str = "dff"
    output: str = "raw"
    floored: bool = False
    spike_rate: Floats | None = None
    spike_marks: str = ""
    decision: str = ""

    @property
    def title(self) -> str:
        """The cell, what is decided of it and why, and what speaks against its F0 and its rate."""
        floored = "F0 floored" if self.floored else ""
        marked = f"spike rate: {self.spike_marks}" if self.spike_marks else ""
        said = (self.name, self.decision, floored, marked)
        return ", ".join(each for each in said if each)

    @property
    def dff_units(self) -> str:
        """The unit of `dff`: "fraction" or "counts"."""
        return KINDS[self.dff_kind].unit

    def known(self, names: Iterable[str]) -> dict[str, Floats]:
        """Return the traces of these names, without those of which nothing is known."""
        traces = {name: getattr(self, name) for name in names}
        return {
            name: values
            for name, values in traces.items()
            if values is not None and np.isfinite(values).any()
        }


def read_cell(session: Session, cell_id: int, decision: str | None = None) -> CellTraces | None:
    """Read one cell, and no other, from a session.

    Parameters
    ----------
    session : Session
        A session whose cells were found.
    cell_id : int
        Identity of the cell.
    decision : str, optional
        Why it is accepted or rejected, where that is known; else it is read, too.

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
        name=f"cell {cell_id}",
        seconds=np.arange(len(denoised)) / session.frame_rate,
        raw=denoised + _row(session, "source_extraction/residuals", row),
        denoised=denoised,
        deconvolved=_row(session, "source_extraction/deconvolved", row),
        decision=_decision(session, row) if decision is None else decision,
        **_change(session, row),
        **_rate(session, row),
    )


def _change(session: Session, row: int) -> dict[str, Any]:
    """Return what the stage dff found of a cell; nothing where it is of other cells."""
    if not of_these_cells(session, "dff"):
        return {}
    kind = kind_of_change(session)
    dff, f0 = _row(session, "dff/traces", row), _row(session, "dff/baseline", row)
    return {
        "dff": dff,
        "f0": f0,
        "fluorescence": f0 + (dff * f0 if kind == "dff" else dff),
        "dff_kind": kind,
        "output": session.group_attrs("dff").get("output", "raw"),
        "floored": bool(session.array("dff/floored")[row]),
    }


def _rate(session: Session, row: int) -> dict[str, Any]:
    """Return what spike inference found of a cell; nothing where it is of other traces."""
    if not of_these_cells(session, RATES):
        return {}
    rate = _row(session, f"{RATES}/rate", row)
    return {"spike_rate": rate, "spike_marks": session.spike_marks()[row]}


def _row(session: Session, name: str, row: int) -> Floats:
    return np.asarray(session.array(name)[row], np.float32)


def _decision(session: Session, row: int) -> str:
    """Say why a cell is accepted or rejected, as the session has it."""
    decided = read_decided(session)
    return "" if decided is None else decided.why(row)
