"""Inferring spikes from the traces of a session, and what is said of the result."""

from __future__ import annotations

from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from napari_calcium.activity.dff import KINDS, DffParameters
from napari_calcium.io.importing import ImportParameters
from napari_calcium.io.session import Session
from napari_calcium.spikes.guards import Mark, mark_words, warnings_of
from napari_calcium.spikes.inference import (
    Inferred,
    SpikeInferenceParameters,
    check_smoothing,
    infer_spikes,
    model_digest,
    noise_levels,
    read_spike_model,
)

__all__ = ["CELLS", "Rates", "check_rates", "infer_rates"]

VALUES = 2**19
"""Cells times frames of one task: 2 MB, of which 32 channels of a network are 64 MB."""

CELLS = 16
"""Cells of one task at most, so that few cells, too, are shared out to the workers."""

DENOISED = (
    "dff was run with output denoised, but spikes are to be inferred from raw dF/F; "
    "set dff.output to raw and run again."
)


class Rates(NamedTuple):
    """What the group ``spike_inference`` will hold: see `infer_rates`."""

    arrays: Delayed
    attrs: Delayed


def check_rates(
    parameters: SpikeInferenceParameters, imported: ImportParameters, dff: DffParameters
) -> None:
    """Check before anything runs that the model can be used.

    For a frame rate that it was not trained for it is not used, and every cell is marked.

    Parameters
    ----------
    parameters : SpikeInferenceParameters
        Which model.
    imported : ImportParameters
        Modality of the recording.
    dff : DffParameters
        Which traces there will be; of detrended ones nothing is inferred, and any model does.

    Raises
    ------
    InputError
        If there is no such model, or it cannot smooth as is wanted.

    Examples
    --------
    >>> imported = ImportParameters(frame_rate=30.0)
    >>> check_rates(SpikeInferenceParameters(), imported, DffParameters())
    """
    kind = KINDS.get(imported.modality, "dff") if dff.kind == "auto" else dff.kind
    if kind == "dff":
        check_smoothing(parameters)


def infer_rates(session: Session, parameters: SpikeInferenceParameters) -> Rates:
    """Return lazily the rates of spikes of all cells of a session; nothing is computed here.

    Parameters
    ----------
    session : Session
        A session with traces of the stage dff.
    parameters : SpikeInferenceParameters
        Which model, and how it is used.

    Returns
    -------
    Rates
        Arrays and attributes of the group. The rows are those of ``dff/traces``, of accepted and
        of rejected cells: which they are may be decided again. Where the traces are detrended,
        rates and noise levels are NaN; where they are denoised, every cell is marked so.

    Raises
    ------
    InputError
        If dF/F has not run, or the model cannot be used.
    """
    about = session.group_attrs("dff")
    kind, output = str(about.get("kind", "dff")), str(about.get("output", "raw"))
    shape, rate = session.array("dff/traces").shape, session.frame_rate
    if kind == "detrended":
        inferred, said = _nothing(shape, Mark.DETRENDED), delayed({})
    else:
        traces = session.table("dff/traces", max(1, min(CELLS, VALUES // max(1, shape[1]))))
        inferred, said = _inferred(traces, rate, parameters)
        if output == "denoised":
            inferred = inferred._replace(marks=inferred.marks | np.uint8(Mark.SMOOTHED))
    arrays = delayed(_arrays)(*inferred)
    return Rates(arrays, delayed(_attrs)(arrays, said, output))


def _inferred(
    traces: da.Array, frame_rate: float, parameters: SpikeInferenceParameters
) -> tuple[Inferred, Delayed]:
    """Return what is inferred, and what made it; nothing at a frame rate that was not trained."""
    if read_spike_model(parameters).serves(frame_rate):
        inferred = infer_spikes(traces, frame_rate, parameters)
        return inferred, delayed(_model_attrs)(parameters, frame_rate)
    nothing = _nothing(traces.shape, Mark.FRAME_RATE)
    return nothing._replace(noise_level=noise_levels(traces, frame_rate)), delayed({})


def _nothing(shape: tuple[int, ...], mark: Mark) -> Inferred:
    """Return that of no cell a rate is known, and why."""
    rate = da.full(shape, np.nan, dtype=np.float32, chunks=(CELLS, -1))
    level = da.full(shape[:1], np.nan, dtype=np.float32)
    return Inferred(rate, level, da.full(shape[:1], int(mark), dtype=np.uint8))


def _arrays(
    rate: NDArray[np.float32], noise_level: NDArray[np.float32], marks: NDArray[np.uint8]
) -> dict[str, NDArray[Any]]:
    """Return the arrays of the group by their names."""
    return {
        "rate": np.asarray(rate, np.float32),
        "noise_level": np.asarray(noise_level, np.float32),
        "marks": np.asarray(marks, np.uint8),
    }


def _model_attrs(parameters: SpikeInferenceParameters, frame_rate: float) -> dict[str, Any]:
    """Return what made the rates."""
    model = read_spike_model(parameters)
    return {
        "model": model.name,
        "model_digest": model_digest(parameters.folder),
        "smoothing": float(parameters.smoothing or model.smoothing(frame_rate)),
        "kernel": parameters.kernel,
        "margin": int(model.margin),
        "frame_rates": [float(rate) for rate in model.frame_rates],
        "noise_levels": [float(level) for level in model.noise_levels],
    }


def _attrs(
    arrays: dict[str, NDArray[Any]], model: dict[str, Any], output: str
) -> dict[str, dict[str, Any]]:
    """Return the attributes of the group and of its marks."""
    marks = arrays["marks"]
    warnings = warnings_of(marks, arrays["noise_level"], model.get("noise_levels"))
    if model and output == "denoised":
        warnings = [DENOISED, *warnings]
    about = {"summary": _summary(marks, model), "warnings": warnings, **model}
    meanings = {str(int(mark)): mark_words(mark) for mark in Mark}
    return {"": about, "marks": {"meanings": meanings}}


def _summary(marks: NDArray[np.uint8], model: dict[str, Any]) -> str:
    """Say of how many cells rates were inferred, by what, and what speaks against some of them.

    Examples
    --------
    >>> model = {"model": "excitatory", "smoothing": 0.05}
    >>> _summary(np.array([0, Mark.TOO_NOISY, 0]), model)
    'Spike rates (Hz), model excitatory, smoothed by 50 ms; cells: 3, 1 too noisy.'
    """
    said = f"cells: {len(marks)}"
    for mark in Mark:
        if n := int(np.count_nonzero(marks & int(mark))):
            said += f", {n} {mark_words(mark)}"
    if not model:
        return f"No spike rates; {said}."
    return (
        f"Spike rates (Hz), model {model['model']}, smoothed by "
        f"{1000 * model['smoothing']:.3g} ms; {said}."
    )
