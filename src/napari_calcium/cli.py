"""The command line: the same stages, without a window."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import dask.array as da
import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from napari_calcium.activity.movies import detrended_movie, dff_movie
from napari_calcium.components import Components
from napari_calcium.errors import InputError
from napari_calcium.extraction.choosing import Proposal, propose_from_image, propose_from_outline
from napari_calcium.extraction.reconstruction import (
    background_movie,
    cells_movie,
    model_movie,
    residual_movie,
)
from napari_calcium.footprints import outlines
from napari_calcium.io.export import (
    KINDS,
    export_cells_csv,
    export_csv,
    export_piecewise_csv,
    export_shifts_csv,
    kind_of_change,
    kinds_of,
)
from napari_calcium.io.recording import Recording, open_recording
from napari_calcium.io.regions import read_regions
from napari_calcium.io.session import Session, frames_layout
from napari_calcium.motion.correction import apply_shifts
from napari_calcium.movie import Movie
from napari_calcium.pipeline.classifier_training import (
    HELD_OUT,
    N_MOVIES,
    plot_reliability,
    report_text,
    train_classifier,
)
from napari_calcium.pipeline.demo import DemoReport, run_demo
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import Progress, RunReport, run, save_movie
from napari_calcium.pipeline.stages import STAGES, stage_named
from napari_calcium.simulation import SimulationParameters, simulate
from napari_calcium.truth import save_truth

__all__ = ["app", "main"]

app = typer.Typer(
    help="Calcium imaging: from a recording to cells, traces and dF/F.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Sources = Annotated[
    list[Path], typer.Argument(help="TIFF files, a folder of them, or a Zarr movie.")
]
STAGE_NAMES = ", ".join(stage.name for stage in STAGES)
TITLES = {
    "save_movie": "Writing",
    "classifier_examples": "Simulating recordings",
    "classifier_training": "Training",
}
"""Names of what is done and is no stage."""


def main() -> None:
    """Run the command line; a mistake in what was given is one sentence and exit status 2."""
    try:
        app(prog_name="napari-calcium")
    except InputError as error:
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(
            f"napari-calcium: {error}"
        )
        sys.exit(2)


@app.command()
def info(
    sources: Sources,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what the import understands of a recording, without reading its frames."""
    summary = open_recording(sources).summary()
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    for key, value in summary.items():
        for line in _lines(key, value):
            typer.echo(line)


@app.command("run")
def run_command(
    session: Annotated[Path, typer.Option("--session", help="The session's folder, NAME.zarr.")],
    sources: Annotated[
        list[Path] | None,
        typer.Argument(help="TIFF files, a folder of them, or a Zarr movie; none to go on."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="TOML file with parameters; without one the session's own are kept."),
    ] = None,
    until: Annotated[str | None, typer.Option(help=f"Last stage to run: {STAGE_NAMES}.")] = None,
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STAGE.KEY=VALUE",
            help="One parameter; repeatable. napari-calcium recipe lists them.",
        ),
    ] = None,
    frame_rate: Annotated[
        float | None, typer.Option(help="Frames per second, Hz; needed once.")
    ] = None,
    pixel_size: Annotated[float | None, typer.Option(help="Side of a pixel, um.")] = None,
    modality: Annotated[
        str | None, typer.Option(help="two-photon (if not given) or one-photon.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Tasks at a time; all processors if not given.")
    ] = None,
    scheduler: Annotated[str, typer.Option(help="threads, processes or synchronous.")] = "threads",
) -> None:
    """Take a recording through the stages; what is done already is not done again.

    napari-calcium run movie.tif --session movie.zarr --frame-rate 30
    """
    recording = open_recording(sources) if sources else None
    given = {"frame_rate": frame_rate, "pixel_size": pixel_size, "modality": modality}
    chosen = _recipe(session, recording, recipe, values or (), given)
    if recording:
        typer.echo(recording.understood())
    modality = chosen.parameters("import").to_mapping()["modality"]
    with _bars(modality) as progress:
        report = run(
            session,
            recording or (),
            recipe=chosen,
            until=until,
            workers=workers,
            scheduler=scheduler,
            progress=progress,
        )
    Console().print(_run_table(report, modality))
    if any(stage.stage == "motion_correction" for stage in report.stages):
        typer.echo(_motion_line(Session(session)))
        if advice := Session(session).motion_advice():
            typer.echo(advice)
    for stage in report.stages:
        if summary := Session(session).summary(stage_named(stage.stage).group):
            typer.echo(summary)
    for stage in report.stages:
        for warning in stage.warnings:
            typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"session: {session}")


@app.command()
def export(
    session: Annotated[Path, typer.Argument(help="A session with traces, or with shifts.")],
    destination: Annotated[
        Path,
        typer.Argument(
            help="A folder for traces.csv, cells.csv, shifts.csv and so on; or a file NAME.csv."
        ),
    ],
    file_format: Annotated[
        Literal["csv"], typer.Option("--format", help="csv: one row per frame.")
    ] = "csv",
    kind: Annotated[
        str | None,
        typer.Option(
            help=f"Traces: {', '.join(KINDS)}, or all; dff or detrended, whichever there are, "
            "if not given."
        ),
    ] = None,
    include_rejected: Annotated[
        bool, typer.Option("--include-rejected", help="Also cells not accepted.")
    ] = False,
) -> None:
    """Write traces, scores of the cells and shifts for other programs.

    napari-calcium export movie.zarr tables writes tables/traces.csv, tables/cells.csv (scores and
    decisions, also of rejected cells), tables/shifts.csv and, where patches moved,
    tables/shifts_piecewise.csv; NAME.csv instead of a folder writes NAME.csv, NAME_cells.csv and so
    on. Where dF/F has not run, the others are written.
    With --kind all, each kind of trace has a table of its own, such as traces_raw.csv.
    """
    opened = Session(session)
    traces, cells, shifts, piecewise = _tables(destination)
    moved = opened.record("motion_correction") is not None
    if kind is not None or opened.record("dff") is not None or not moved:
        for name, path in _kinds(opened, kind, traces).items():
            n_cells = export_csv(opened, path, accepted_only=not include_rejected, kind=name)
            typer.echo(f"{path}: {name} of {n_cells} cells")
    if opened.record("component_evaluation") is not None:
        typer.echo(f"{cells}: scores of {export_cells_csv(opened, cells)} cells")
    if moved:
        typer.echo(f"{shifts}: shifts of {export_shifts_csv(opened, shifts)} frames")
        if "motion_correction/shifts_piecewise" in opened:
            n_patches = export_piecewise_csv(opened, piecewise)
            typer.echo(f"{piecewise}: shifts of {n_patches} patches")


@app.command("apply-shifts")
def apply_shifts_command(
    session: Annotated[Path, typer.Argument(help="A session whose motion was corrected.")],
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="Another channel, or file, of its recording: TIFF files, a folder, or a Zarr.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="The movie to write, OUT.tif or OUT.zarr.")],
    crop: Annotated[
        str | None,
        typer.Option(
            metavar="Y0:Y1,X0:X1",
            help="The part of the session's field that the source is, px; all if not given.",
        ),
    ] = None,
    borders: Annotated[
        Literal["nearest", "minimum", "crop"] | None,
        typer.Option(help="What comes in from outside; as in the session if not given."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Blocks at a time; all processors if not given.")
    ] = None,
) -> None:
    """Undo the motion that a session found in another channel or file of the same recording.

    napari-calcium apply-shifts movie.zarr red.tif --output red_corrected.tif
    """
    recording = open_recording(sources)
    typer.echo(recording.understood())
    _check_output(output, recording)
    moved = _moved(Session(session), recording, crop, borders)
    with _bars() as progress:
        save_movie(moved, output, workers=workers, progress=progress)
    typer.echo(f"{output}: {moved.n_frames} frames of {_size(moved.field)} px")


@app.command()
def propose(
    session: Annotated[Path, typer.Argument(help="A session with a corrected movie.")],
    outline: Annotated[
        Path | None,
        typer.Option(
            help="ImageJ ROI, or labels image, of one cell; the correlation image if not given."
        ),
    ] = None,
) -> None:
    """Say which radius and patches of source extraction fit the cells of a session.

    napari-calcium propose movie.zarr --outline cell.roi
    """
    opened = Session(session)
    proposal = _proposal(opened, outline)
    typer.echo(proposal.text)
    for key, value in proposal.to_mapping().items():
        typer.echo(f"--set source_extraction.{key}={value:g}")


@app.command()
def reconstruct(
    session: Annotated[
        Path, typer.Argument(help="A session whose cells were extracted; motion is enough for dff.")
    ],
    output: Annotated[Path, typer.Argument(help="The movie to write, OUT.tif or OUT.zarr.")],
    kind: Annotated[
        Literal["cells", "background", "model", "residual", "dff", "detrended"],
        typer.Option(
            help="A C, b f, A C + b f, or the movie less both; dF/F of each pixel, or the movie "
            "less its F0."
        ),
    ] = "cells",
    raw: Annotated[bool, typer.Option("--raw", help="With raw traces, not denoised.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Blocks at a time; all processors if not given.")
    ] = None,
) -> None:
    """Write the movie that the found cells and background stand for, or what they leave over.

    napari-calcium reconstruct movie.zarr residual.tif --kind residual

    Or write the corrected movie relative to its baseline: --kind dff, for one-photon recordings
    --kind detrended.
    """
    opened = Session(session)
    by_pixel = {"dff": dff_movie, "detrended": detrended_movie}
    opened.current("motion_correction" if kind in by_pixel else "source_extraction")
    _check_kind_of_movie(output)
    if kind == "dff" and opened.modality == "one-photon":
        raise InputError(
            f"{session} is marked one-photon, which has no dF/F; ask for --kind detrended"
        )
    movie = opened.movie("motion_correction/frames")
    size = frames_layout(movie.frames.shape, 4)[1][0]
    if kind in by_pixel:
        frames = by_pixel[kind](movie, frames_per_block=size)
    else:
        frames = _modelled(opened.components(), movie, kind, raw, size)
    with _bars() as progress:
        save_movie(Movie(frames, movie.frame_rate), output, workers=workers, progress=progress)
    typer.echo(f"{output}: {movie.n_frames} frames of {_size(movie.field)} px")


def _modelled(components: Components, movie: Movie, kind: str, raw: bool, size: int) -> da.Array:
    """Return lazily a movie that is made of the cells and the background."""
    if kind == "background":
        return background_movie(components, frames_per_block=size)
    if kind == "residual":
        return residual_movie(movie, components, raw=raw, frames_per_block=size)
    make = cells_movie if kind == "cells" else model_movie
    return make(components, raw=raw, frames_per_block=size)


@app.command("recipe")
def recipe_command(
    session: Annotated[
        Path | None, typer.Argument(help="Print the recipe that made this session.")
    ] = None,
) -> None:
    """Print the default recipe: every key with its unit and meaning."""
    shown = Recipe.of_session(Session(session)) if session else Recipe()
    typer.echo(shown.to_toml(), nl=False)


def _print_keys(asked: bool) -> None:
    if asked:
        for key in SimulationParameters.describe():
            typer.echo(f"{key.name} = {key.default}  {key.unit}  {key.description}")
        raise typer.Exit


@app.command("simulate")
def simulate_command(
    output: Annotated[Path, typer.Argument(help="The movie to write, OUT.tif.")],
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="One parameter; repeatable. --keys lists them."
        ),
    ] = None,
    list_keys: Annotated[
        bool,
        typer.Option("--keys", help="List the parameters.", is_eager=True, callback=_print_keys),
    ] = False,
) -> None:
    """Write a two-photon movie with known truth, and the truth beside it (OUT_truth.npz)."""
    given = dict(_split(value) for value in values or ())
    simulation = simulate(SimulationParameters.from_mapping(given))
    truth = output.with_name(f"{output.stem}_truth.npz")
    save_movie(simulation.movie, output)
    save_truth(simulation.truth, truth)
    typer.echo(f"{output}: {simulation.movie.n_frames} frames; truth in {truth}")


@app.command("train-classifier")
def train_classifier_command(
    output: Annotated[
        Path, typer.Argument(help="The model to write, OUT.keras; its card is OUT.json.")
    ],
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Masks of real recordings, .npz: mask (n, y, x), neuron, recording, source (n,)."
        ),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(help="A real recording to test on; repeatable. Two are, if not given."),
    ] = None,
    movies: Annotated[int, typer.Option(help="Simulated recordings to train on.")] = N_MOVIES,
    seed: Annotated[int, typer.Option(help="Of the training; the same gives the same model.")] = 0,
    plot: Annotated[
        Path | None, typer.Option(help="A picture of how true the probabilities are, .png.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Tasks at a time; all processors if not given.")
    ] = None,
) -> None:
    """Train the network that tells cells from other footprints, and say how good it is.

    It learns from footprints that source extraction finds in simulated recordings, and from masks
    of real ones where these are given; needs TensorFlow. Use it by --set
    component_evaluation.classifier_file=OUT.keras.
    """
    with _bars() as progress:
        card = train_classifier(
            output,
            masks,
            seed=seed,
            n_movies=movies,
            held_out=HELD_OUT if held_out is None else held_out,
            workers=workers,
            progress=progress,
        )
    typer.echo(report_text(card))
    if plot is not None:
        plot_reliability(card, plot)
    typer.echo(str(output))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for what the demo makes.")] = Path(
        "demo_output"
    ),
) -> None:
    """Analyse the embedded sample recording and score it against its known truth."""
    with _bars() as progress:
        report = run_demo(output, progress)
    console = Console()
    console.print(_demo_table(report))
    for path in (report.session, report.traces, report.overview):
        typer.echo(str(path))


def _recipe(
    session: Path,
    recording: Recording | None,
    recipe: Path | None,
    values: list[str] | tuple[str, ...],
    given: Mapping[str, Any],
) -> Recipe:
    """Return the recipe of the file, else of the session, with what the options change."""
    known = Session.is_session(session)
    chosen = Recipe.of_session(Session(session), asked=True) if known else Recipe()
    if recipe is not None:
        written = Recipe.from_toml(recipe)
        chosen = Recipe({"import": chosen.tables.get("import", {}), **written.tables})
    for key, value in given.items():
        if value is not None:
            chosen = chosen.with_value(f"import.{key}", value)
    chosen = chosen.with_all(dict(map(_split, values)))
    if "frame_rate" not in chosen.tables.get("import", {}):
        rate = recording.frame_rate if recording else None
        hint = f"; the file's metadata say {rate:.6g} Hz" if rate else ""
        raise InputError(
            f"the frame rate is not given; add --frame-rate HZ (frames per second){hint}"
        )
    return chosen


def _tables(destination: Path) -> tuple[Path, Path, Path, Path]:
    """Return the paths of the tables of traces, cells, shifts and patches' shifts."""
    others = ("cells", "shifts", "shifts_piecewise")
    if destination.suffix and not destination.is_dir():
        names = (f"{destination.stem}_{name}.csv" for name in others)
        cells, shifts, piecewise = (destination.with_name(name) for name in names)
        return destination, cells, shifts, piecewise
    cells, shifts, piecewise = (destination / f"{name}.csv" for name in others)
    return destination / "traces.csv", cells, shifts, piecewise


def _kinds(session: Session, kind: str | None, path: Path) -> dict[str, Path]:
    """Return the kinds of traces to write, and the path of the table of each."""
    if kind != "all":
        return {kind or kind_of_change(session): path}
    return {name: path.with_stem(f"{path.stem}_{name}") for name in kinds_of(session)}


def _proposal(session: Session, outline: Path | None) -> Proposal:
    """Return what fits the cell that was outlined, or the cells in the correlation image."""
    session.current("motion_correction")
    field = session.movie("motion_correction/frames").plane
    if outline is not None:
        regions = read_regions(outline, field)
        if regions.shape[1] != 1:
            raise InputError(f"{outline} has {regions.shape[1]} regions; outline one cell")
        mask = regions.toarray().reshape(field).astype(np.float32)
        return propose_from_outline(outlines(mask, 0.5)[0], field, session.pixel_size)
    session.current("summary_images")
    return propose_from_image(session.read("summary_images/correlation"), session.pixel_size)


def _check_kind_of_movie(output: Path) -> None:
    """Refuse to write a movie that is of no known kind."""
    if output.suffix.lower() not in (".tif", ".tiff", ".zarr"):
        raise InputError(f"{output} is of an unknown kind; give a path that ends in .tif or .zarr")


def _check_output(output: Path, recording: Recording) -> None:
    """Refuse a movie that is of no known kind, or would replace what it is made from."""
    _check_kind_of_movie(output)
    if output.exists() and any(output.samefile(file.path) for file in recording.files):
        raise InputError(f"{output} is the recording itself; give another path")


def _moved(session: Session, recording: Recording, crop: str | None, borders: Any) -> Movie:
    """Return lazily a recording, or a part of its field, moved by the shifts of a session."""
    record, shifts = session.current("motion_correction"), session.shifts()
    if crop is not None:
        shifts = shifts.crop(*_parts(crop, shifts.field))
    movie = Movie(recording.frames, session.frame_rate, session.pixel_size)
    if shifts.field != tuple(movie.field):
        part = "part of the session" if crop else "session"
        raise InputError(
            f"the source has a field of {_size(movie.field)} px but the {part} of "
            f"{_size(shifts.field)} px; say by --crop Y0:Y1,X0:X1 which part of it the source is"
        )
    n_frames = frames_layout(movie.frames.shape, movie.frames.dtype.itemsize)[1][0]
    borders = borders or record.parameters.get("borders", "nearest")
    return apply_shifts(movie, shifts, borders, n_frames)


def _parts(crop: str, field: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the part (y, x) of a field that a text names."""
    found = re.fullmatch(r"(\d+):(\d+),(\d+):(\d+)", crop.replace(" ", ""))
    if not found:
        raise InputError(f"--crop is {crop!r}; write Y0:Y1,X0:X1, the first px and that behind")
    y0, y1, x0, x1 = map(int, found.groups())
    if not (y0 < y1 <= field[-2] and x0 < x1 <= field[-1]):
        raise InputError(
            f"--crop is {crop} but the session's field is {_size(field[-2:])} px; "
            "give a part of it, not empty"
        )
    return slice(y0, y1), slice(x0, x1)


def _size(field: tuple[int, ...]) -> str:
    return " x ".join(map(str, field))


def _lines(key: str, value: Any) -> list[str]:
    """Return what a person reads of one entry of a recording's summary."""
    if key == "files":
        files = [f"{i}. {f['path']} ({f['n_frames']} frames)" for i, f in enumerate(value, 1)]
        return [f"files: {len(value)}, in this order", *(f"  {file}" for file in files)]
    if key == "notes":
        return [f"note: {note}" for note in value]
    if key == "field":
        axes = ("z", "y", "x")[-len(value) :]
        return [f"field: {' x '.join(map(str, value))} px ({', '.join(axes)})"]
    return [f"{key}: {'not found' if value is None else value}"]


def _split(assignment: str) -> tuple[str, str]:
    key, sign, value = assignment.partition("=")
    if not sign:
        raise InputError(f"--set {assignment} has no value; write --set {assignment}=VALUE")
    return key.strip(), value.strip()


@contextmanager
def _bars(modality: str = "") -> Iterator[_StageBars]:
    """Show a progress bar per stage on standard error, if that is a terminal."""
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    shown = sys.stderr.isatty()
    with Bars(*columns, console=Console(stderr=True), disable=not shown) as bars:
        yield _StageBars(bars, modality)


class _StageBars:
    """Turns reports of progress into bars."""

    def __init__(self, bars: Bars, modality: str) -> None:
        self._bars = bars
        self._modality = modality
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, report: Progress) -> None:
        if report.stage not in self._tasks:
            known = TITLES.get(report.stage)
            title = known or stage_named(report.stage).titled(self._modality)
            self._tasks[report.stage] = self._bars.add_task(title)
        self._bars.update(self._tasks[report.stage], completed=report.done, total=report.total)


def _motion_line(session: Session) -> str:
    """Return in a line how well the motion was corrected."""
    attrs = session.group_attrs("motion_correction")
    parts = [
        f"{title} {attrs[f'{name}_before']:.2f} -> {attrs[f'{name}_after']:.2f}{unit}"
        for name, title, unit in (
            ("crispness", "crispness", ""),
            ("residual_flow", "residual flow", " px"),
        )
        if f"{name}_before" in attrs and f"{name}_after" in attrs
    ]
    before, after = (
        float(np.median(session.read(f"motion_correction/correlation_{when}")))
        for when in ("before", "after")
    )
    parts.append(f"median correlation {before:.2f} -> {after:.2f}")
    flagged = int(session.read("motion_correction/flagged").sum())
    if flagged:
        parts.append(f"{flagged} frames flagged")
    return f"motion: {', '.join(parts)}"


def _run_table(report: RunReport, modality: str) -> Table:
    table = Table("stage", "seconds")
    for stage in report.stages:
        seconds = "was done" if stage.skipped else f"{stage.seconds:.1f}"
        table.add_row(stage_named(stage.stage).titled(modality), seconds)
    table.add_row("peak memory", f"{report.peak_memory / 1e6:.0f} MB", end_section=True)
    return table


def _demo_table(report: DemoReport) -> Table:
    table = Table("demo", "")
    table.add_row("frames", str(report.n_frames))
    table.add_row("true cells", str(report.n_true))
    table.add_row("cells found", str(report.n_cells))
    table.add_row("cells accepted", str(report.n_accepted))
    score = report.score
    table.add_row(
        "F1 of the accepted",
        f"{score.f1:.2f} (precision {score.precision:.2f}, recall {score.recall:.2f})",
    )
    table.add_row("median trace correlation", f"{score.trace_correlation:.3f}", end_section=True)
    for stage in report.run.stages:
        table.add_row(stage_named(stage.stage).title, f"{stage.seconds:.1f} s")
    table.add_row("peak memory", f"{report.run.peak_memory / 1e6:.0f} MB")
    return table


if __name__ == "__main__":
    main()
