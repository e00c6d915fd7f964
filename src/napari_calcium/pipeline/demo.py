"""The demo: the whole analysis of the sample recording, scored against its known truth."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_calcium.io.choices import accepted_cells
from napari_calcium.io.export import export_csv
from napari_calcium.io.overview import save_overview
from napari_calcium.io.recording import file_digest
from napari_calcium.io.sample import SAMPLE_FRAME_RATE, sample_recording, sample_truth
from napari_calcium.io.session import Session
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import Progress, RunReport, run
from napari_calcium.spikes.ground_truth import causal_kernel, gaussian_kernel, smooth
from napari_calcium.truth import Score, Truth, load_truth, score_cells

__all__ = ["DemoReport", "run_demo"]


@dataclass(frozen=True)
class DemoReport:
    """What the demo found and where it wrote it.

    `rate_correlation` is the median, over the cells that are true ones, of the correlation of the
    inferred rate with the spikes of the simulation, smoothed alike; NaN if there is none.
    """

    n_frames: int
    n_cells: int
    n_accepted: int
    n_true: int
    score: Score
    rate_correlation: float
    run: RunReport
    session: Path
    traces: Path
    spikes: Path
    overview: Path


def run_demo(output: str | Path, progress: Callable[[Progress], None] | None = None) -> DemoReport:
    """Analyse the sample recording from its file to rates of spikes, and score it.

    Parameters
    ----------
    output : path
        Folder for the session, the tables of traces and of rates, and the picture; those of an
        earlier demo are replaced.
    progress : callable, optional
        Called with a `Progress` after each task.

    Returns
    -------
    DemoReport
        What was found, and how well.

    Raises
    ------
    InputError
        If the folder cannot be written, or its ``session.zarr`` holds another recording.
    """
    folder = Path(output)
    names = ("session.zarr", "traces.csv", "spikes.csv", "overview.png")
    paths = tuple(folder / name for name in names)
    sample = sample_recording()
    if Session.is_session(paths[0]) and _holds(Session(paths[0]), sample):
        shutil.rmtree(paths[0])
    recipe = Recipe({"import": {"frame_rate": SAMPLE_FRAME_RATE}})
    report = run(paths[0], [sample], recipe=recipe, progress=progress)
    session = Session(paths[0])
    components, truth = session.components(), load_truth(sample_truth())
    accepted = accepted_cells(session)
    raw = components.traces + components.residuals
    score = score_cells(components.footprints[:, accepted], raw[accepted], truth)
    export_csv(session, paths[1])
    export_csv(session, paths[2], kind="spike_rate")
    save_overview(session, paths[3])
    found = np.flatnonzero(accepted)[score.matches[:, 0]]
    agreement = _agreement(session, truth, found, score.matches[:, 1])
    n_frames, n_true = session.movie().n_frames, truth.footprints.shape[1]
    counts = (n_frames, components.n_cells, int(accepted.sum()), n_true)
    return DemoReport(*counts, score, agreement, report, *paths)


def _agreement(
    session: Session, truth: Truth, found: NDArray[np.intp], true: NDArray[np.int64]
) -> float:
    """Return the median correlation of rates with spikes that are smoothed like them."""
    about = session.group_attrs("spike_inference")
    shape = {"gaussian": gaussian_kernel, "causal": causal_kernel}[about["kernel"]]
    kernel = shape(about["smoothing"], session.frame_rate)
    spikes = smooth(truth.spikes[true].astype(np.float64), kernel)
    rates = session.spike_rate()[found]
    correlations = [
        np.corrcoef(rate[known], own[known])[0, 1]
        for rate, own, known in zip(rates, spikes, np.isfinite(rates), strict=True)
        if np.unique(rate[known]).size > 1 and np.unique(own[known]).size > 1
    ]
    return float(np.median(correlations)) if correlations else float("nan")


def _holds(session: Session, recording: Path) -> bool:
    """Whether a session is of one recording, so that no other is ever removed."""
    digests = [file["digest"] for file in session.attrs["source"]]
    return digests == [file_digest(recording)]
