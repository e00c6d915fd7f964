"""The demo: the whole analysis of the sample recording, scored against its known truth."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from napari_calcium.io.choices import accepted_cells
from napari_calcium.io.export import export_csv
from napari_calcium.io.overview import save_overview
from napari_calcium.io.recording import file_digest
from napari_calcium.io.sample import SAMPLE_FRAME_RATE, sample_recording, sample_truth
from napari_calcium.io.session import Session
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import Progress, RunReport, run
from napari_calcium.truth import Score, load_truth, score_cells

__all__ = ["DemoReport", "run_demo"]


@dataclass(frozen=True)
class DemoReport:
    """What the demo found and where it wrote it."""

    n_frames: int
    n_cells: int
    n_accepted: int
    n_true: int
    score: Score
    run: RunReport
    session: Path
    traces: Path
    overview: Path


def run_demo(output: str | Path, progress: Callable[[Progress], None] | None = None) -> DemoReport:
    """Analyse the sample recording from its file to dF/F, and score it.

    Parameters
    ----------
    output : path
        Folder for the session, the table of traces and the picture; those of an earlier demo are
        replaced.
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
    paths = folder / "session.zarr", folder / "traces.csv", folder / "overview.png"
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
    save_overview(session, paths[2])
    n_frames, n_true = session.movie().n_frames, truth.footprints.shape[1]
    n_accepted = int(accepted.sum())
    return DemoReport(n_frames, components.n_cells, n_accepted, n_true, score, report, *paths)


def _holds(session: Session, recording: Path) -> bool:
    """Whether a session is of one recording, so that no other is ever removed."""
    digests = [file["digest"] for file in session.attrs["source"]]
    return digests == [file_digest(recording)]
