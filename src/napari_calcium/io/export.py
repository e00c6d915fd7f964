"""Results for other programs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from napari_calcium.errors import InputError
from napari_calcium.io.session import Session

__all__ = ["export_csv"]

TRACES = {"dff": "dff/traces", "denoised": "source_extraction/traces"}


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
        If the stage that makes the traces has not run, or the file cannot be written.
    """
    if kind == "raw":
        traces = session.read(TRACES["denoised"]) + session.read("source_extraction/residuals")
    elif kind in TRACES:
        traces = session.read(TRACES[kind])
    else:
        raise InputError(f"kind of trace is {kind!r}; it must be one of dff, raw, denoised")
    identities = session.read("source_extraction/cell_id")
    if accepted_only:
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
                rows.writerow([f"{time:.6g}", *(f"{value:.6g}" for value in values)])
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); give another path"
        ) from None
    return len(traces)
