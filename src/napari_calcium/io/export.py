"""Results for other programs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from napari_calcium.errors import InputError
from napari_calcium.io.session import Session

__all__ = ["export_csv"]

KINDS = {"dff": "dff", "raw": "source_extraction", "denoised": "source_extraction"}
"""The group that holds each kind of trace."""


def export_csv(
    session: Session, path: str | Path, *, accepted_only: bool = True, kind: str = "dff"
) -> int:
    """Write traces as a table, one row per frame, one column per cell.

    Parameters
    ----------
    session : Session
        A session with the traces asked for.
    path : path
        The file to write; its folder is made. An existing file is replaced.
    accepted_only : bool
        Leave out cells that evaluation rejected.
    kind : {"dff", "raw", "denoised"}
        dF/F as a fraction, or the trace before or after denoising in counts. The first column is
        the time in seconds, the others are headed ``cell_ID KIND``.

    Returns
    -------
    int
        Number of cells written.

    Raises
    ------
    InputError
        If the stage that makes the traces has not run, or ran before a stage that it needs, or
        the file cannot be written.
    """
    if kind not in KINDS:
        raise InputError(f"kind of trace is {kind!r}; it must be one of {', '.join(KINDS)}")
    session.current(KINDS[kind])
    traces = session.read(f"{KINDS[kind]}/traces")
    if kind == "raw":
        traces = traces + session.read("source_extraction/residuals")
    identities = session.read("source_extraction/cell_id")
    if accepted_only:
        session.current("component_evaluation")
        accepted = session.quality().accepted
        traces, identities = traces[accepted], identities[accepted]
    header = ["time (s)", *(f"cell_{identity} {kind}" for identity in identities)]
    times = np.arange(traces.shape[1]) / session.frame_rate
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(header)
            for time, values in zip(times, traces.T, strict=True):
                rows.writerow([f"{time:.6f}", *(f"{value:.6g}" for value in values)])
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); give another path"
        ) from None
    return len(traces)
