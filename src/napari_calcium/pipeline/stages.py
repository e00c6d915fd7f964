"""The table of stages: what each needs, its parameters, and how its graph is built.

The dock widgets, the command line, the recipe, the session's groups and the reference page are all
made from `STAGES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import dask.array as da
import scipy.sparse as sp
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from napari_calcium.activity.dff import DffParameters, dff_attrs, dff_components, dff_to_arrays
from napari_calcium.components import Components
from napari_calcium.errors import InputError
from napari_calcium.evaluation.evaluation import (
    ComponentEvaluationParameters,
    evaluate_components,
    why_not_asked,
)
from napari_calcium.extraction.cnmf import SourceExtractionParameters, fit_model
from napari_calcium.extraction.model import Model
from napari_calcium.extraction.refinement import components_of
from napari_calcium.extraction.seeding import regions_from_structure
from napari_calcium.extraction.summary_images import SummaryImagesParameters, summary_images
from napari_calcium.io.image import read_image
from napari_calcium.io.importing import ImportParameters, checked_range
from napari_calcium.io.recording import Recording
from napari_calcium.io.regions import read_regions
from napari_calcium.io.session import (
    Session,
    components_attrs,
    components_to_arrays,
    frames_layout,
    quality_to_arrays,
    shifts_attrs,
    shifts_to_arrays,
)
from napari_calcium.motion.correction import (
    MotionCorrectionParameters,
    correct_and_measure,
    estimate_motion,
)
from napari_calcium.motion.quality import MotionQuality
from napari_calcium.movie import Movie
from napari_calcium.parameters import Parameters, nearest
from napari_calcium.pipeline.deciding import decision_attrs, store_decision
from napari_calcium.pipeline.inferring import infer_rates
from napari_calcium.shifts import Shifts
from napari_calcium.spikes.inference import SpikeInferenceParameters

__all__ = ["STAGES", "Inputs", "Results", "Stage", "read_seeds", "stage_named", "stages_until"]


@dataclass(frozen=True)
class Inputs:
    """What a stage is built from: the session, and for the import the recording."""

    session: Session
    recording: Recording | None = None


@dataclass(frozen=True)
class Results:
    """What a stage will make, all lazy.

    Parameters
    ----------
    movies : mapping of str to dask.array.Array (time, y, x)
        Written block by block as they are computed.
    arrays : Delayed of dict of str to ndarray, optional
        Small arrays by their name in the stage's group.
    attrs : Delayed of dict of str to dict, optional
        Attributes by the name of the group or array within the stage's group, "" being that group
        itself.
    then : callable (computed) -> Results, optional
        Builds what can only be built once `computed` is, such as a movie whose field depends on it.
    computed : Delayed, optional
        What `then` is given.
    """

    movies: Mapping[str, da.Array] = field(default_factory=dict)
    arrays: Delayed | None = None
    attrs: Delayed | None = None
    then: Callable[[Any], Results] | None = None
    computed: Delayed | None = None


@dataclass(frozen=True)
class Stage:
    """One step of the analysis.

    Parameters
    ----------
    name : str
        Name in the recipe and on the command line.
    title : str
        Name in the window.
    needs : tuple of str
        Stages whose results it reads.
    parameters : type
        Its `Parameters`.
    build : callable (Inputs, Parameters) -> Results
        Builds the graph, never computes.
    group : str
        The session's group it writes.
    summary : str
        What it does, in a sentence.
    titles : mapping of str to str
        Its name where recordings are marked so, if another.
    decide : callable (Session, Parameters), optional
        Stores what parameters that only decide make of stored results, where these differ.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    parameters: type[Parameters]
    build: Callable[[Inputs, Any], Results]
    group: str
    summary: str
    titles: Mapping[str, str] = field(default_factory=dict)
    decide: Callable[[Session, Any], Any] | None = None

    def titled(self, modality: str) -> str:
        """Return the name for recordings that are marked so."""
        return self.titles.get(modality, self.title)


def _import(inputs: Inputs, parameters: ImportParameters) -> Results:
    if inputs.recording is None:
        raise InputError(
            f"{inputs.session.path} holds no movie of these import parameters; "
            "name the recording to import it"
        )
    frames = _whole_frames(inputs.recording.frames)
    return Results(movies={"frames": frames}, attrs=checked_range(frames))


def _motion_correction(inputs: Inputs, parameters: MotionCorrectionParameters) -> Results:
    movie = inputs.session.movie()
    template = read_image(parameters.template_file) if parameters.template_file else None
    motion = estimate_motion(movie, parameters, template)

    def corrected(found: tuple[Shifts, NDArray[Any]]) -> Results:
        n_frames = _frames_per_block(movie, found[0], parameters.borders)
        made = correct_and_measure(movie, *found, parameters.borders, n_frames)
        return Results(
            movies={"frames": made.movie.frames},
            arrays=delayed(_quality_to_arrays)(made.quality, "after"),
            attrs=delayed(_quality_attrs)(made.quality, "after"),
        )

    return Results(
        arrays=delayed(_motion_to_arrays)(motion.shifts, motion.template, motion.quality),
        attrs=delayed(_motion_attrs)(motion.shifts, motion.quality, motion.coarse_motion),
        then=corrected,
        computed=delayed(tuple)([motion.shifts, motion.template]),
    )


def _frames_per_block(movie: Movie, shifts: Shifts, borders: str) -> int:
    """Return how many frames the blocks of the corrected movie have, cropped or not, on disk."""
    field = list(movie.field)
    if borders == "crop":
        field[-2:] = [max(1, part.stop - part.start) for part in shifts.valid_region()]
    return frames_layout((movie.n_frames, *field), movie.frames.dtype.itemsize)[1][0]


def _motion_to_arrays(
    shifts: Shifts, template: NDArray[Any], quality: MotionQuality
) -> dict[str, NDArray[Any]]:
    arrays = {**shifts_to_arrays(shifts), "template": template}
    return {**arrays, **_quality_to_arrays(quality, "before")}


def _motion_attrs(
    shifts: Shifts, quality: MotionQuality, coarse_motion: float
) -> dict[str, dict[str, Any]]:
    attrs = shifts_attrs(shifts)
    coarse = {"coarse_motion": coarse_motion} if math.isfinite(coarse_motion) else {}
    return {**attrs, "": {**attrs[""], **coarse, **_quality_attrs(quality, "before")[""]}}


def _quality_to_arrays(quality: MotionQuality, when: str) -> dict[str, NDArray[Any]]:
    names = ("correlation", "principal_motion")
    return {f"{name}_{when}": getattr(quality, name) for name in names}


def _quality_attrs(quality: MotionQuality, when: str) -> dict[str, dict[str, Any]]:
    names = ("crispness", "residual_flow")
    values = {f"{name}_{when}": float(getattr(quality, name)) for name in names}
    return {"": {name: value for name, value in values.items() if math.isfinite(value)}}


def _summary_images(inputs: Inputs, parameters: SummaryImagesParameters) -> Results:
    return Results(arrays=summary_images(_corrected(inputs), parameters))


def _source_extraction(inputs: Inputs, parameters: SourceExtractionParameters) -> Results:
    movie = _corrected(inputs)
    model = fit_model(movie, parameters, read_seeds(parameters, movie.plane))
    components = delayed(components_of)(model)
    return Results(
        arrays=delayed(components_to_arrays)(components),
        attrs=delayed(_extraction_attrs)(components, model, parameters),
    )


def read_seeds(
    parameters: SourceExtractionParameters, field: tuple[int, int]
) -> sp.csc_array | None:
    """Return where the cells are by the file of seeds, if they are to be found by seeds.

    Parameters
    ----------
    parameters : SourceExtractionParameters
        Its `seeds_file` and `seeds_kind`.
    field : tuple of int
        (y, x), px; the seeds are to be of the same.

    Raises
    ------
    InputError
        If the file cannot be read, is of another field, or holds no cell.
    """
    if parameters.initialization != "seeds":
        return None
    if parameters.seeds_kind == "regions":
        return read_regions(parameters.seeds_file, field)
    image = read_image(parameters.seeds_file)
    if image.shape != field:
        raise InputError(
            f"the structural channel {parameters.seeds_file!r} has the shape {image.shape} but "
            f"the field is {field[0]} x {field[1]} px; give an image of the same field"
        )
    regions = regions_from_structure(image, parameters.cell_radius)
    if regions.shape[1] == 0:
        raise InputError(
            f"the structural channel {parameters.seeds_file!r} has no body of "
            f"{parameters.cell_radius:g} px radius in it; change cell_radius or give another image"
        )
    return regions


def _extraction_attrs(
    components: Components, model: Model, parameters: SourceExtractionParameters
) -> dict[str, dict[str, Any]]:
    attrs = components_attrs(components)
    summary = model.census.sentence(components.n_cells, parameters)
    return {**attrs, "": {**attrs[""], "summary": summary}}


def _component_evaluation(inputs: Inputs, parameters: ComponentEvaluationParameters) -> Results:
    session = inputs.session
    extraction = session.current("source_extraction").parameters
    not_asked = why_not_asked(parameters, session.modality, extraction)
    quality = evaluate_components(
        _corrected(inputs),
        delayed(_read_components)(session),
        parameters,
        extraction["cell_radius"],
        ask=not not_asked,
    )
    return Results(
        arrays=delayed(quality_to_arrays)(quality),
        attrs=delayed(decision_attrs)(quality, not_asked),
    )


def _dff(inputs: Inputs, parameters: DffParameters) -> Results:
    session = inputs.session
    components = delayed(_read_components)(session)
    movie = _corrected(inputs) if parameters.neuropil == "ring" else None
    dff = dff_components(movie, components, session.frame_rate, parameters, session.modality)
    return Results(arrays=delayed(dff_to_arrays)(dff), attrs=delayed(dff_attrs)(dff))


def _spike_inference(inputs: Inputs, parameters: SpikeInferenceParameters) -> Results:
    rates = infer_rates(inputs.session, parameters)
    return Results(arrays=rates.arrays, attrs=rates.attrs)


def _corrected(inputs: Inputs) -> Any:
    return inputs.session.movie("motion_correction/frames")


def _read_components(session: Session) -> Any:
    return session.components()


def _whole_frames(frames: da.Array) -> da.Array:
    """Cut a movie into the blocks of whole frames that its shards on disk take."""
    chunks, _ = frames_layout(frames.shape, frames.dtype.itemsize)
    return frames.rechunk((chunks[0], *frames.shape[1:]))


STAGES: tuple[Stage, ...] = (
    Stage(
        "import",
        "Import",
        (),
        ImportParameters,
        _import,
        "movie",
        "Reads the recording into the session, in the type it was recorded in.",
    ),
    Stage(
        "motion_correction",
        "Motion correction",
        ("import",),
        MotionCorrectionParameters,
        _motion_correction,
        "motion_correction",
        "Aligns every frame with a template and writes the movie put right.",
    ),
    Stage(
        "summary_images",
        "Summary images",
        ("motion_correction",),
        SummaryImagesParameters,
        _summary_images,
        "summary_images",
        "Mean, maximum, standard deviation and local correlations of the movie over time.",
    ),
    Stage(
        "source_extraction",
        "Source extraction",
        ("motion_correction",),
        SourceExtractionParameters,
        _source_extraction,
        "source_extraction",
        "Finds the cells: a footprint, a trace and the activity of each, and the background.",
    ),
    Stage(
        "component_evaluation",
        "Component evaluation",
        ("motion_correction", "source_extraction"),
        ComponentEvaluationParameters,
        _component_evaluation,
        "component_evaluation",
        "Scores every component and accepts those that are cells.",
        decide=store_decision,
    ),
    Stage(
        "dff",
        "dF/F",
        ("motion_correction", "source_extraction"),
        DffParameters,
        _dff,
        "dff",
        "Fluorescence of each cell relative to its running baseline.",
        {"one-photon": "Detrending"},
    ),
    Stage(
        "spike_inference",
        "Spike inference",
        ("dff",),
        SpikeInferenceParameters,
        _spike_inference,
        "spike_inference",
        "Rate of spikes of each cell in Hz, by a network that was trained on recorded spikes.",
    ),
)


def stage_named(name: str) -> Stage:
    """Return a stage by its name.

    Raises
    ------
    InputError
        If there is none of that name; the message names the nearest.
    """
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise InputError(f"unknown stage {name!r}; {nearest(name, [stage.name for stage in STAGES])}")


def stages_until(name: str) -> tuple[Stage, ...]:
    """Return the stages that lead to one, that one last, in the order they run.

    Examples
    --------
    >>> [stage.name for stage in stages_until("source_extraction")]
    ['import', 'motion_correction', 'source_extraction']
    """
    wanted = {stage_named(name).name}
    for stage in reversed(STAGES):
        if stage.name in wanted:
            wanted.update(stage.needs)
    return tuple(stage for stage in STAGES if stage.name in wanted)
