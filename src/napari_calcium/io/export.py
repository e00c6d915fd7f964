"""Results for other programs."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.io.choices import accepted_cells, read_choices
from napari_calcium.io.session import Session

__all__ = [
    "KINDS",
    "Kind",
    "export_cells_csv",
    "export_csv",
    "export_piecewise_csv",
    "export_shifts_csv",
    "kind_of_change",
    "kinds_of",
    "left_out",
]


@dataclass(frozen=True)
class Kind:
    """A kind of trace.

    Parameters
    ----------
    array : str
        The session's array that holds it; raw traces are that and the residuals.
    title : str
        Its name in plots.
    unit : str
        Its unit.
    """

    array: str
    title: str
    unit: str = "counts"

    @property
    def label(self) -> str:
        """Its name with its unit.

        Examples
        --------
        >>> KINDS["dff"].label, KINDS["detrended"].label
        ('dF/F (fraction)', 'detrended (counts)')
        """
        return f"{self.title} ({self.unit})"


KINDS = {
    "dff": Kind("dff/traces", "dF/F", "fraction"),
    "detrended": Kind("dff/traces", "detrended"),
    "raw": Kind("source_extraction/traces", "raw"),
    "denoised": Kind("source_extraction/traces", "denoised"),
    "deconvolved": Kind("source_extraction/deconvolved", "deconvolved", "counts/frame"),
    "f0": Kind("dff/baseline", "F0"),
    "spike_rate": Kind("spike_inference/rate", "spike rate", "Hz"),
}
"""The kinds of traces, by their names in tables."""

CHANGES = ("dff", "detrended")
"""The kinds of which a session has only one."""


def kind_of_change(session: Session) -> str:
    """Return what the traces of the stage dff are.

    Parameters
    ----------
    session : Session
        A session; where that stage has not run it is what the mark of the recording calls for.

    Returns
    -------
    {"dff", "detrended"}
        A fraction of F0; or, of one-photon recordings, the difference from F0 in counts.
    """
    if session.record("dff") is None:
        return "detrended" if session.modality == "one-photon" else "dff"
    return str(session.group_attrs("dff").get("kind", "dff"))


def kinds_of(session: Session) -> tuple[str, ...]:
    """Return the kinds of traces of a session whose stages up to dff have run, the change first.

    Rates of spikes are among them where spike inference has run, too, on the dF/F there is now.
    """
    change = kind_of_change(session)
    rates = change == "dff" and session.is_current("spike_inference")
    without = CHANGES if rates else (*CHANGES, "spike_rate")
    return change, *(kind for kind in KINDS if kind not in without)


def left_out(session: Session) -> str:
    """Say why a session that has rates of spikes has none for its dF/F; "" where nothing is amiss.

    Such rates are not among `kinds_of`.
    """
    if kind_of_change(session) != "dff" or session.record("spike_inference") is None:
        return ""
    try:
        session.current("spike_inference")
    except InputError as error:
        return f"the rates of spikes are left out: {error}"
    return ""


def export_csv(
    session: Session, path: str | Path, *, accepted_only: bool = True, kind: str | None = None
) -> int:
    """Write traces as a table, one row per frame, one column per cell.

    Parameters
    ----------
    session : Session
        A session with the traces asked for.
    path : path
        The file to write; its folder is made. An existing file is replaced. The first column is
        the time in seconds, the others are headed by cell, kind and unit, such as
        ``cell_12 dff (fraction)`` or ``cell_12 f0 (counts)``. NaN is an empty cell, which Excel,
        R, MATLAB and pandas all take for a value that is missing.
    accepted_only : bool
        Leave out cells that evaluation rejected.
    kind : {"dff", "detrended", "raw", "denoised", "deconvolved", "f0", "spike_rate"}, optional
        dF/F (CaImAn: ``F_dff``), or of one-photon recordings the detrended trace; the trace before
        or after denoising (``C + YrA``, ``C``); the activity in each frame (``S``); the running
        baseline; or the inferred rate of spikes (Cascade: spike_prob, times the frame rate). dF/F
        or detrended traces, whichever there are, if not given.

    Returns
    -------
    int
        Number of cells written.

    Raises
    ------
    InputError
        If the stage that makes the traces has not run, or ran before a stage that it needs, or
        made the other of dF/F and detrended traces, or rates are asked for of detrended traces, or
        the file cannot be written.
    """
    kind = kind or kind_of_change(session)
    if kind not in KINDS:
        raise InputError(f"kind of trace is {kind!r}; it must be one of {', '.join(KINDS)}")
    session.current(KINDS[kind].array.split("/")[0])
    _check_change(session, kind)
    traces = session.read(KINDS[kind].array)
    if kind == "raw":
        traces = traces + session.read("source_extraction/residuals")
    identities = session.read("source_extraction/cell_id")
    if accepted_only:
        session.current("component_evaluation")
        accepted = accepted_cells(session)
        traces, identities = traces[accepted], identities[accepted]
    columns = (f"cell_{identity} {kind} ({KINDS[kind].unit})" for identity in identities)
    times = np.arange(traces.shape[1]) / session.frame_rate
    rows = (
        [f"{time:.6f}", *map(_text, values.tolist())]
        for time, values in zip(times, traces.T, strict=True)
    )
    _write_table(Path(path), ["time (s)", *columns], rows)
    return len(traces)


def _check_change(session: Session, kind: str) -> None:
    """Refuse dF/F, and what is made of it, of a session of detrended traces, and vice versa."""
    there = kind_of_change(session)
    if kind in CHANGES and kind != there:
        raise InputError(
            f"{session.path} has {there} traces and no {kind} traces; export --kind {there}"
        )
    if kind == "spike_rate" and there == "detrended":
        raise InputError(
            f"{session.path} has detrended traces, of which there are no spike rates; "
            "export --kind detrended"
        )


def _text(value: float) -> str:
    """Write a value with six digits; nothing for NaN.

    Examples
    --------
    >>> _text(12.3456789), _text(math.nan)
    ('12.3457', '')
    """
    return "" if math.isnan(value) else f"{value:.6g}"


def export_cells_csv(session: Session, path: str | Path) -> int:
    """Write the scores of the cells and the decisions as a table, one row per cell.

    Parameters
    ----------
    session : Session
        A session with component evaluation.
    path : path
        The file to write; its folder is made. An existing file is replaced. The columns are
        ``cell_id``; ``y_px`` and ``x_px``, the centre of the footprint; ``size_discs``, its area in
        discs of the cell radius; ``trace_snr``, ``spatial_correlation`` and ``cnn_probability``,
        empty where the classifier was not asked; ``accepted``, 1 or 0; ``decided_by``, "scores" or
        "hand"; ``reason``, what the scores have against it; ``noise_percent_per_root_hz``, the
        noise level of its dF/F; and ``spike_marks``, what speaks against its rate of spikes. The
        last two are empty where spike inference has not run, or not on the traces there are now.

    Returns
    -------
    int
        Number of cells written, accepted or not.

    Raises
    ------
    InputError
        If component evaluation has not run, or ran before a stage that it needs, or the file cannot
        be written.
    """
    session.current("component_evaluation")
    quality, by_hand = session.quality(), read_choices(session)
    identities = session.read("source_extraction/cell_id").tolist()
    scores = (quality.size, quality.snr, quality.spatial_correlation, quality.cnn_probability)
    values = np.column_stack((_centres(session), *scores))
    decisions = zip(accepted_cells(session), session.reasons(), _spikes(session), strict=True)
    rows = [
        [
            str(identity),
            *map(_text, numbers.tolist()),
            str(int(accepted)),
            "hand" if identity in by_hand else "scores",
            reason,
            *spikes,
        ]
        for identity, numbers, (accepted, reason, spikes) in zip(
            identities, values, decisions, strict=True
        )
    ]
    header = "cell_id y_px x_px size_discs trace_snr spatial_correlation cnn_probability"
    decided = "accepted decided_by reason noise_percent_per_root_hz spike_marks"
    _write_table(Path(path), [*header.split(), *decided.split()], rows)
    return len(rows)


def _spikes(session: Session) -> list[tuple[str, str]]:
    """Return the noise level and the marks of each cell; empty where they are not of its trace."""
    if not session.is_current("spike_inference"):
        return [("", "")] * session.array("source_extraction/cell_id").shape[0]
    levels = map(_text, session.spike_noise_level().tolist())
    return list(zip(levels, session.spike_marks(), strict=True))


def _centres(session: Session) -> NDArray[np.float64]:
    """Return the centre of mass of each footprint, (cell, 2), (y, x) px; NaN for an empty one."""
    footprints = session.footprints()
    height, width = session.group_attrs("source_extraction")["field"]
    total = np.asarray(footprints.sum(axis=0), np.float64)
    total = np.where(total > 0, total, np.nan)
    places = np.divmod(np.arange(height * width), width)
    return np.column_stack([footprints.T @ place / total for place in places])


def export_shifts_csv(session: Session, path: str | Path) -> int:
    """Write the shifts of the frames as a table, one row per frame.

    Parameters
    ----------
    session : Session
        A session whose motion was corrected.
    path : path
        The file to write; its folder is made. An existing file is replaced. The columns are
        ``frame``, from 0; ``time_s``; ``shift_y_px`` and ``shift_x_px``, for volumes also
        ``shift_z_planes``, what must be added to the position of a frame's content to undo its
        motion; ``flagged``, 1 where no motion could be seen and the shift is interpolated; and
        ``correlation_before`` and ``correlation_after``, those of a frame with the template, where
        the session has them.

    Returns
    -------
    int
        Number of frames written.

    Raises
    ------
    InputError
        If motion correction has not run, or ran before the last import, or the file cannot be
        written.
    """
    session.current("motion_correction")
    shifts = session.shifts()
    assert shifts.flagged is not None
    columns = {"shift_y_px": shifts.rigid[:, -2], "shift_x_px": shifts.rigid[:, -1]}
    if len(shifts.field) == 3:
        columns["shift_z_planes"] = shifts.rigid[:, 0]
    columns["flagged"] = shifts.flagged.astype(np.float32)
    for name in ("correlation_before", "correlation_after"):
        if f"motion_correction/{name}" in session:
            columns[name] = session.read(f"motion_correction/{name}")
    _write_frames(session, path, list(columns), np.stack(list(columns.values()), axis=1))
    return shifts.n_frames


def export_piecewise_csv(session: Session, path: str | Path) -> int:
    """Write the shifts of the patches as a table, one row per frame.

    Parameters
    ----------
    session : Session
        A session whose motion was corrected piecewise.
    path : path
        The file to write; its folder is made. An existing file is replaced. The columns are
        ``frame``, from 0; ``time_s``; and two for each patch, headed by the centre of the patch in
        px of the recorded field, such as ``y31.5_x95.5_shift_y_px`` and ``y31.5_x95.5_shift_x_px``,
        for volumes led by the plane, ``z0_y31.5_x95.5_shift_y_px``. These are whole shifts, not
        what they add to those of the frame; between the centres they are bilinear.

    Returns
    -------
    int
        Number of patches written.

    Raises
    ------
    InputError
        If motion correction has not run, or ran before the last import, or not piecewise, or the
        file cannot be written.
    """
    session.current("motion_correction")
    shifts = session.shifts()
    if shifts.piecewise is None or shifts.grid_y is None or shifts.grid_x is None:
        raise InputError(
            f"{session.path} has no piecewise shifts; run motion_correction with method piecewise"
        )
    planes = [f"z{z}_" for z in range(shifts.field[0])] if len(shifts.field) == 3 else [""]
    patches = [f"{z}y{y:g}_x{x:g}" for z in planes for y in shifts.grid_y for x in shifts.grid_x]
    names = [f"{patch}_shift_{axis}_px" for patch in patches for axis in "yx"]
    _write_frames(session, path, names, shifts.piecewise.reshape(shifts.n_frames, -1))
    return len(patches)


def _write_frames(
    session: Session, path: str | Path, names: Sequence[str], values: NDArray[np.float32]
) -> None:
    """Write values (time, name) as a table, each row led by number and time of its frame."""
    rate = session.frame_rate
    rows = (
        [str(frame), f"{frame / rate:.6f}", *(f"{value:.9g}" for value in row)]
        for frame, row in enumerate(values)
    )
    _write_table(Path(path), ["frame", "time_s", *names], rows)


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table of text, or say why it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(header)
            table.writerows(rows)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); give another path"
        ) from None
