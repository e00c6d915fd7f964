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
from numpy.typing import NDArray
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
    left_out,
)
from napari_calcium.io.recording import Recording, open_recording
from napari_calcium.io.regions import read_regions
from napari_calcium.io.session import Session, frames_layout
from napari_calcium.io.trace_files import (
    TraceFile,
    check_destination,
    read_traces,
    try_destination,
    write_rates,
    write_spike_times,
)
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
from napari_calcium.pipeline.inferring import CELLS
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import Progress, RunReport, run, save_movie
from napari_calcium.pipeline.spike_benchmark import (
    METHODS,
    Row,
    benchmark_spikes,
    named_datasets,
    summarise,
    write_rows,
)
from napari_calcium.pipeline.stages import STAGES, stage_named
from napari_calcium.simulation import SimulationParameters, simulate
from napari_calcium.spikes.benchmark import Condition
from napari_calcium.spikes.discrete import WARNING, discrete_spikes
from napari_calcium.spikes.examples import SpikeTrainingParameters
from napari_calcium.spikes.ground_truth import of_class, read_datasets
from napari_calcium.spikes.guards import NO_RATE, Mark, mark_words, warnings_of
from napari_calcium.spikes.inference import (
    SpikeInferenceParameters,
    SpikeModel,
    check_model,
    rate_kernel,
    rate_marks,
    read_spike_model,
    spike_rate,
)
from napari_calcium.spikes.noise import noise_level
from napari_calcium.spikes.training import train_model
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
    "spike_training": "Training",
    "spike_benchmark": "Benchmark",
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
            help=f"Traces: {', '.join(KINDS)}, or all; dff or detrended, whichever there are, and "
            "spike_rate, if not given."
        ),
    ] = None,
    include_rejected: Annotated[
        bool, typer.Option("--include-rejected", help="Also cells not accepted.")
    ] = False,
) -> None:
    """Write traces, scores of the cells and shifts for other programs.

    napari-calcium export movie.zarr tables writes tables/traces.csv, tables/spikes.csv (rates, Hz),
    tables/cells.csv (scores and decisions, also of rejected cells), tables/shifts.csv and, where
    patches moved, tables/shifts_piecewise.csv; NAME.csv instead of a folder writes NAME.csv,
    NAME_spikes.csv and so on. Where dF/F has not run, the others are written.
    With --kind all, each kind of trace has a table of its own, such as traces_raw.csv.
    """
    opened = Session(session)
    traces, spikes, cells, shifts, piecewise = _tables(destination)
    moved = opened.record("motion_correction") is not None
    if kind is not None or opened.record("dff") is not None or not moved:
        for name, path in _kinds(opened, kind, traces, spikes).items():
            n_cells = export_csv(opened, path, accepted_only=not include_rejected, kind=name)
            typer.echo(f"{path}: {name} of {n_cells} cells")
    if kind in (None, "all") and (said := left_out(opened)):
        typer.echo(f"warning: {said}", err=True)
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
def spikes(
    traces: Annotated[
        Path,
        typer.Argument(help="dF/F as a fraction: .npy (cell, time), .csv, .tsv or .mat."),
    ],
    frame_rate: Annotated[float, typer.Option(help="Frames per second, Hz.")],
    output: Annotated[
        Path | None,
        typer.Option(
            help="The rates to write, .npy, .csv, .mat or .npz; NAME_spikes beside the traces, of "
            "their kind, if not given."
        ),
    ] = None,
    model: Annotated[
        Literal["excitatory", "interneurons"], typer.Option(help="For which cells.")
    ] = "excitatory",
    model_file: Annotated[
        Path | None, typer.Option(help="A folder that train-spikes wrote, instead of --model.")
    ] = None,
    smoothing: Annotated[
        float, typer.Option(help="Of the rate, s; 0: 50 ms, at least 1.5 frames.")
    ] = 0.0,
    causal: Annotated[
        bool, typer.Option("--causal", help="Rates that rise only after a spike, not before.")
    ] = False,
    threshold: Annotated[
        Literal["none", "non_negative", "one_spike"],
        typer.Option(help="What of the rate is set to 0: nothing, below 0, below 1/e of a spike."),
    ] = "non_negative",
    edges: Annotated[
        Literal["unknown", "padded"], typer.Option(help="Whether the rate at both ends is NaN.")
    ] = "unknown",
    percent: Annotated[bool, typer.Option("--percent", help="The traces are in percent.")] = False,
    discrete: Annotated[
        bool,
        typer.Option("--discrete", help="Also guess single spikes, OUTPUT_times.csv; discouraged."),
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="Of --discrete; the same gives the same times.")
    ] = 0,
    axes: Annotated[
        Literal["cell,time", "time,cell"] | None,
        typer.Option(help="Rows and columns of the file; the longer is time if not given."),
    ] = None,
    variable: Annotated[str | None, typer.Option(help="Which one of a .mat file.")] = None,
) -> None:
    """Infer rates of spikes, Hz, from dF/F traces of any program.

    napari-calcium spikes dff.csv --frame-rate 30 writes dff_spikes.csv. A rate summed over frames
    and divided by the frame rate is a number of spikes.
    """
    parameters = SpikeInferenceParameters(
        model=model,
        model_file=str(model_file or ""),
        kernel="causal" if causal else "gaussian",
        smoothing=smoothing,
        threshold=threshold,
        edges=edges,
    )
    if not 0 < frame_rate < np.inf:
        raise InputError(f"--frame-rate is {frame_rate:g} Hz; give the frames recorded per second")
    check_model(parameters, frame_rate)
    traces = traces.expanduser()
    suffix = traces.suffix.lower() if traces.suffix.lower() != ".tsv" else ".csv"
    destination = check_destination(output or traces.with_name(f"{traces.stem}_spikes{suffix}"))
    times = destination.with_name(f"{destination.stem}_times.csv") if discrete else None
    for path in (destination, times or destination):
        if path.exists() and traces.exists() and path.samefile(traces):
            raise InputError(f"{path} holds the traces; give another --output")
    found = read_traces(traces, variable=variable, axes=axes)
    typer.echo(found.understood)
    _infer_from_file(found, frame_rate, parameters, destination, percent, times, seed)


def _infer_from_file(
    found: TraceFile,
    frame_rate: float,
    parameters: SpikeInferenceParameters,
    destination: Path,
    percent: bool,
    times: Path | None,
    seed: int,
) -> None:
    """Infer the rates of a file's traces, write them, and say what was found."""
    model, scale = read_spike_model(parameters), 0.01 if percent else 1.0
    n_cells, n_frames = found.traces.shape
    size = max(1, min(CELLS, 2**19 // n_frames))
    parts = [slice(start, start + size) for start in range(0, n_cells, size)]
    levels, marks = np.full(n_cells, np.nan, np.float32), np.zeros(n_cells, np.uint8)
    baselines = np.full(n_cells, np.nan, np.float32)
    for part in parts:
        dff = _block(found, part, scale)
        levels[part] = noise_level(dff, frame_rate)
        marks[part] = rate_marks(dff, frame_rate, model, parameters)
        baselines[part] = _far_baseline(dff, marks[part])
    _check_baseline(marks, baselines / scale)
    _check_fraction(marks, levels, percent)
    for path in (destination, times or destination):
        try_destination(path)
    rates = np.full((n_cells, n_frames), np.nan, np.float32)
    with _bars() as progress:
        for done, part in enumerate(parts, 1):
            rates[part] = spike_rate(_block(found, part, scale), frame_rate, model, parameters)
            progress(Progress("spike_inference", done, len(parts)))
    rates[(marks & int(NO_RATE)) != 0] = np.nan
    others: dict[str, NDArray[Any]] = {"noise_level": levels, "marks": marks}
    write_rates(destination, rates, found.names, frame_rate, others)
    for line in _spikes_lines(rates, levels, marks, model, frame_rate):
        typer.echo(line)
    for warning in warnings_of(marks, levels, model.noise_levels):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(str(destination))
    if times is not None:
        guessed = _spike_times(rates, frame_rate, model, parameters, seed)
        write_spike_times(times, found.names, guessed)
        typer.echo(f"warning: {WARNING}", err=True)
        typer.echo(f"{times}: {sum(map(len, guessed))} spikes")


def _block(found: TraceFile, part: slice, scale: float) -> NDArray[np.float32]:
    """Return some cells of a file, what is infinite taken for unknown."""
    dff = np.asarray(found.traces[part], np.float32) * np.float32(scale)
    return np.where(np.isfinite(dff), dff, np.float32(np.nan))


def _far_baseline(dff: NDArray[np.float32], marks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the first decile of traces that are not about 0, as dF/F is; NaN of all others.

    It is above 0.5 and a tenth of their range (98 % of the values). Of the recordings of Rupprecht
    et al. 2021 99 % are so if 1 is added to dF/F, 0.5 % as they are, 6 % in percent.
    """
    known = (marks & int(Mark.UNKNOWN)) == 0
    traces = np.where(known[:, None], dff, np.float32(0))
    low, base, high = np.nanquantile(traces, (0.01, 0.1, 0.99), axis=1)
    return np.where(base > np.maximum(0.5, 0.1 * (high - low)), base, np.nan)


def _check_baseline(marks: NDArray[np.uint8], baselines: NDArray[np.float32]) -> None:
    """Refuse traces of which most are not about 0, as fluorescence is."""
    far = baselines[np.isfinite(baselines)]
    if 2 * len(far) > np.count_nonzero((marks & int(Mark.UNKNOWN)) == 0):
        raise InputError(
            f"the traces look like fluorescence, not dF/F (their baseline is {np.median(far):.3g}, "
            "that of dF/F about 0); give (F - F0) / F0, with F0 the baseline of each cell"
        )


def _check_fraction(marks: NDArray[np.uint8], levels: NDArray[np.float32], percent: bool) -> None:
    """Refuse traces of which most look like percent."""
    likely = (marks & int(Mark.PERCENT)) != 0
    judged = np.count_nonzero((marks & int(Mark.UNKNOWN)) == 0)
    if 2 * np.count_nonzero(likely) > judged:
        level = f"the median noise level is {np.median(levels[likely]):.3g} % Hz^-0.5"
        if percent:
            raise InputError(
                f"the traces look no fraction even divided by 100 ({level}); check F0, or leave "
                "--percent away"
            )
        raise InputError(f"the traces look like percent, not a fraction ({level}); add --percent")


def _spikes_lines(
    rates: NDArray[np.float32],
    levels: NDArray[np.float32],
    marks: NDArray[np.uint8],
    model: SpikeModel,
    frame_rate: float,
) -> list[str]:
    """Return a summary of inferred rates."""
    known = np.isfinite(rates)
    n_known = np.count_nonzero(known, axis=1)
    sums = np.asarray(np.sum(rates, axis=1, where=known, dtype=np.float64))
    means = sums[n_known > 0] / n_known[n_known > 0]
    lines = [f"model: {model.name}", f"cells: {len(rates)}, {len(means)} with a rate"]
    lines.append(
        f"frames: {rates.shape[1]} at {frame_rate:g} Hz, {rates.shape[1] / frame_rate:g} s"
    )
    if np.isfinite(levels).any():
        lines.append(f"noise level: {np.nanmedian(levels):.3g} % Hz^-0.5 (median)")
    if len(means):
        lines.append(f"mean rate: {np.median(means):.3g} Hz (median)")
    counted = {mark_words(mark): np.count_nonzero(marks & int(mark)) for mark in Mark}
    said = [f"{n} {words}" for words, n in counted.items() if n]
    return [*lines, f"marked: {', '.join(said)}"] if said else lines


def _spike_times(
    rates: NDArray[np.float32],
    frame_rate: float,
    model: SpikeModel,
    parameters: SpikeInferenceParameters,
    seed: int,
) -> list[NDArray[np.float64]]:
    """Return the likely times of each cell's spikes, s."""
    taps = rate_kernel(model, parameters, frame_rate)
    return [discrete_spikes(rate, frame_rate, taps, seed) for rate in rates]


@app.command("train-spikes")
def train_spikes_command(
    output: Annotated[Path, typer.Argument(help="Folder of the model; it goes on if interrupted.")],
    datasets: Annotated[
        list[Path],
        typer.Option(
            help="Ground truth: .npz, a folder of them, or a folder of .mat files; repeatable."
        ),
    ],
    frame_rate: Annotated[
        float, typer.Option(help="Frames per second, Hz; 0: one model for 2 to 60 Hz.")
    ] = 0.0,
    noise: Annotated[
        float, typer.Option(help="Noise level, % per root Hz; 0: one model for 0.2 to 12.")
    ] = 0.0,
    smoothing: Annotated[float, typer.Option(help="Of the rates, s; at least 1.5 frames.")] = 0.05,
    causal: Annotated[
        bool, typer.Option("--causal", help="Rates that rise only after a spike, not before.")
    ] = False,
    design: Annotated[
        Literal["conditioned", "published"],
        typer.Option(help="One network for all, or that of Rupprecht et al. 2021."),
    ] = "conditioned",
    cells: Annotated[
        Literal["exc", "inh", "all"], typer.Option(help="Which datasets to learn from.")
    ] = "all",
    hold_out: Annotated[
        list[str] | None,
        typer.Option(help="A dataset for validation, or how its name begins; repeatable."),
    ] = None,
    members: Annotated[int, typer.Option(help="Networks of which the mean is taken.")] = 5,
    frames: Annotated[float, typer.Option(help="Frames that each learns from, in millions.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.")] = 0,
) -> None:
    """Train networks for spike inference on recorded spikes; needs TensorFlow.

    Use the model by --set spike_inference.model_file=OUTPUT, or by napari-calcium spikes
    --model-file OUTPUT. Where it was interrupted it goes on from the last round.
    """
    parameters = SpikeTrainingParameters(
        design=design,
        frame_rate=frame_rate,
        noise=noise,
        smoothing=smoothing,
        causal=causal,
        members=members,
        frames=frames,
        seed=seed,
    )
    found = of_class(read_datasets(datasets), cells)
    judged = named_datasets(found, hold_out) if hold_out else []
    with _bars() as progress:
        model = train_model(
            output,
            found,
            parameters,
            judged,
            progress=lambda done, total: progress(Progress("spike_training", done, total)),
        )
    typer.echo(f"networks: {len(model.networks)}, datasets: {len(model.card['data'])}")
    for judgements in model.card["validation"]:
        typer.echo(f"validation: r = {max(judgements):.3f} ({', '.join(model.card['held_out'])})")
    typer.echo(str(output))


@app.command("benchmark-spikes")
def benchmark_spikes_command(
    output: Annotated[Path, typer.Argument(help="Folder for networks and the table.")],
    datasets: Annotated[
        list[Path],
        typer.Option(
            help="Ground truth: .npz, a folder of them, or a folder of .mat files; repeatable."
        ),
    ],
    method: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(METHODS)}; repeatable; all three if not given."),
    ] = None,
    frame_rate: Annotated[
        list[float] | None, typer.Option(help="Hz; repeatable; 7.5, 15 and 30 if not given.")
    ] = None,
    noise: Annotated[
        list[float] | None,
        typer.Option(help="Noise level, % per root Hz; repeatable; 2, 4 and 8 if not given."),
    ] = None,
    kernel: Annotated[
        Literal["gaussian", "causal"], typer.Option(help="What spikes are smoothed with.")
    ] = "gaussian",
    smoothing: Annotated[float, typer.Option(help="s; at least 1.5 frames.")] = 0.05,
    cells: Annotated[
        Literal["exc", "inh", "all"], typer.Option(help="Which datasets to learn from.")
    ] = "exc",
    hold_out: Annotated[
        list[str] | None,
        typer.Option(help="A dataset to judge on, or how its name begins; repeatable; or all."),
    ] = None,
    members: Annotated[int, typer.Option(help="Networks of which the mean is taken.")] = 1,
    frames: Annotated[float, typer.Option(help="Frames that each learns from, in millions.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.")] = 0,
) -> None:
    """Compare methods of spike inference on recorded spikes that none of them learned from.

    For each dataset, networks are trained on all the others: an hour or more for the whole
    database and one condition. What is done is kept: the command goes on where it was interrupted.
    """
    conditions = [
        Condition(frame_rate=rate, noise=level, kernel=kernel, smoothing=smoothing)
        for level in noise or (2.0, 4.0, 8.0)
        for rate in frame_rate or (7.5, 15.0, 30.0)
    ]
    with _bars() as progress:
        rows = benchmark_spikes(
            output,
            of_class(read_datasets(datasets), cells),
            conditions,
            methods=method or METHODS,
            held_out=hold_out or (),
            frames=frames,
            members=members,
            seed=seed,
            progress=progress,
        )
    write_rows(rows, output.expanduser() / "table.csv")
    Console(width=None if sys.stdout.isatty() else 120).print(_benchmark_table(rows))
    typer.echo(str(output / "table.csv"))


def _benchmark_table(rows: list[Row]) -> Table:
    """Return the medians over datasets of each condition and method."""
    table = Table(title="Medians over datasets that were held out")
    for name in ("rate", "noise", "kernel", "method", "sets", "r", "r best lag", "error", "bias"):
        table.add_column(name)
    for one in summarise(rows):
        table.add_row(
            f"{one['frame_rate']:g} Hz",
            f"{one['noise']:g}",
            one["kernel"],
            one["method"],
            str(one["n_datasets"]),
            *(f"{one[name]:.3f}" for name in ("correlation", "best_correlation")),
            f"{one['error']:.2f}",
            f"{one['bias']:+.2f}",
        )
    return table


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
    for path in (report.session, report.traces, report.spikes, report.overview):
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


def _tables(destination: Path) -> tuple[Path, ...]:
    """Return the paths of the tables of traces, spikes, cells, shifts and patches' shifts."""
    others = ("spikes", "cells", "shifts", "shifts_piecewise")
    if destination.suffix and not destination.is_dir():
        names = (f"{destination.stem}_{name}.csv" for name in others)
        return destination, *(destination.with_name(name) for name in names)
    return tuple(destination / f"{name}.csv" for name in ("traces", *others))


def _kinds(session: Session, kind: str | None, path: Path, spikes: Path) -> dict[str, Path]:
    """Return the kinds of traces to write, and the path of the table of each.

    If none is asked for they are dF/F and, where there are any, the rates of spikes.
    """
    if kind is None:
        rates = {"spike_rate": spikes} if "spike_rate" in kinds_of(session) else {}
        return {kind_of_change(session): path, **rates}
    if kind != "all":
        return {kind: path}
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
    table.add_row("median trace correlation", f"{score.trace_correlation:.3f}")
    rates = f"r = {report.rate_correlation:.2f}"
    table.add_row("inferred and true spike rates", rates, end_section=True)
    for stage in report.run.stages:
        table.add_row(stage_named(stage.stage).title, f"{stage.seconds:.1f} s")
    table.add_row("peak memory", f"{report.run.peak_memory / 1e6:.0f} MB")
    return table


if __name__ == "__main__":
    main()
