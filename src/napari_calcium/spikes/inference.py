"""From dF/F to the rate of spikes, by networks that were trained on recorded spikes.

A model is a folder: networks of which the mean is taken, and ``card.json``, which says on what they
were trained and how good they are. They are run with NumPy, a cell at a time, so that what is
inferred of a cell does not depend on the others, and no memory is needed for more than one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from napari_calcium.errors import UNREADABLE, InputError
from napari_calcium.parameters import Parameters, parameter
from napari_calcium.spikes.features import Features, channels, trace_features
from napari_calcium.spikes.forward import Conditioned, Published, read_network
from napari_calcium.spikes.ground_truth import (
    SAME_RATE,
    causal_kernel,
    gaussian_kernel,
    smooth,
)
from napari_calcium.spikes.guards import NO_RATE, trace_marks
from napari_calcium.spikes.noise import noise_level

__all__ = [
    "CARD",
    "LEAST_SMOOTHING",
    "SHIPPED",
    "Inferred",
    "SpikeInferenceParameters",
    "SpikeModel",
    "check_model",
    "check_smoothing",
    "infer_spikes",
    "model_digest",
    "noise_levels",
    "rate_kernel",
    "rate_marks",
    "read_spike_model",
    "spike_rate",
]

SHIPPED = {
    name: Path(__file__).with_name("models") / name for name in ("excitatory", "interneurons")
}
"""The models that come with the package."""

CARD = "card.json"
"""File in the folder of a model that says what it is."""

LEAST_SMOOTHING = 1.5
"""Rates are smoothed at least so much, in frames: less cannot be told from the noise."""

MOST_CAUSAL = 1.0
"""Smoothing of the causal kernel at most, s: of more its peak does not move, only its tail."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SpikeInferenceParameters(Parameters):
    """How spike rates are inferred from dF/F.

    Parameters
    ----------
    model : {"excitatory", "interneurons"}
        Network that comes with the program: trained on excitatory neurons, or on interneurons,
        which fire faster and in other patterns. Cascade: model_name.
    model_file : str
        A folder that ``napari-calcium train-spikes`` wrote, instead of `model`.
    kernel : {"gaussian", "causal"}
        What spikes are smoothed with: a Gaussian, or a kernel that begins at the spike and peaks
        after it, so that no rate comes before its cause. Cascade: causal_kernel.
    smoothing : float
        Sd of the Gaussian, s; the mean delay of the causal kernel is twice this less one frame, and
        this at most 1 s. 0 for 50 ms, or 1.5 frames where this is more. Cascade: smoothing.
    threshold : {"none", "non_negative", "one_spike"}
        What is set to 0: nothing; what is negative, which only networks of the published design
        give; or what is smaller than the peak of one smoothed spike over e. Cascade: threshold
        False, 0, 1.
    edges : {"unknown", "padded"}
        Whether the rate near both ends of a trace, and near frames that are NaN, is NaN, or what
        the networks say who take the trace to be at rest beyond.
    """

    model: Literal["excitatory", "interneurons"] = "excitatory"
    model_file: str = ""
    kernel: Literal["gaussian", "causal"] = "gaussian"
    smoothing: float = parameter(0.0, unit="s", minimum=0, maximum=5)
    threshold: Literal["none", "non_negative", "one_spike"] = "non_negative"
    edges: Literal["unknown", "padded"] = "unknown"

    def check(self) -> None:
        """Refuse a causal kernel that only has a longer tail."""
        if self.kernel == "causal" and self.smoothing > MOST_CAUSAL:
            raise InputError(
                f"smoothing is {self.smoothing:g} s, of which a causal kernel only gets a longer "
                f"tail; set it to at most {MOST_CAUSAL:g} s, or kernel to gaussian"
            )

    @property
    def folder(self) -> Path:
        """Folder of the model."""
        return Path(self.model_file).expanduser() if self.model_file else SHIPPED[self.model]

    def shipped(self) -> Mapping[str, str]:
        """Return the digest of the model that comes with the program, where it is used."""
        return {} if self.model_file else {"spike_model": model_digest(SHIPPED[self.model])}

    def files(self) -> tuple[str, ...]:
        """Return the folder of the model, if one is given."""
        return (self.model_file,) if self.model_file else ()


@dataclass(frozen=True)
class SpikeModel:
    """Networks of which the mean is taken, and what they are for.

    Parameters
    ----------
    name : str
        Name of the model.
    card : dict
        What its ``card.json`` says.
    networks : tuple
        All of one design.
    """

    name: str
    card: dict[str, Any]
    networks: tuple[Conditioned | Published, ...]

    @property
    def frame_rates(self) -> tuple[float, float]:
        """Lowest and highest frame rate, Hz; the same one if it was trained for one."""
        low, high = self.card["frame_rates"]
        return float(low), float(high)

    @property
    def noise_levels(self) -> tuple[float, float]:
        """Lowest and highest noise level, % per root Hz."""
        low, high = self.card["noise_levels"]
        return float(low), float(high)

    @property
    def causal(self) -> bool:
        """Whether it was trained on rates that begin at the spike."""
        return bool(self.card["causal"])

    @property
    def margin(self) -> int:
        """Frames at both ends of which the rate is not known for lack of what is beyond."""
        return int(self.card["margin"])

    @property
    def smooths(self) -> bool:
        """Whether the networks give spikes that are smoothed already."""
        return isinstance(self.networks[0], Published)

    def serves(self, frame_rate: float) -> bool:
        """Whether it was trained for a frame rate, Hz."""
        low, high = self.frame_rates
        return low / SAME_RATE <= frame_rate <= high * SAME_RATE

    def smoothing(self, frame_rate: float) -> float:
        """Return what rates are smoothed with if nothing else is asked for, s."""
        own = float(self.card["smoothing"])
        return own if self.smooths else max(own, LEAST_SMOOTHING / frame_rate)


class Inferred(NamedTuple):
    """What is inferred of traces, lazily: see `infer_spikes`."""

    rate: da.Array
    noise_level: da.Array
    marks: da.Array


def model_digest(folder: str | Path) -> str:
    """Return what identifies a model: the digest of its files."""
    found = hashlib.sha256()
    for file in sorted(Path(folder).expanduser().glob("*")):
        if file.is_file():
            found.update(file.name.encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


def read_spike_model(parameters: SpikeInferenceParameters) -> SpikeModel:
    """Read a model; it is read once for as long as its files stay the same.

    Parameters
    ----------
    parameters : SpikeInferenceParameters
        Which.

    Raises
    ------
    InputError
        If there is no such folder, or it holds no model.

    Examples
    --------
    >>> model = read_spike_model(SpikeInferenceParameters(model="excitatory"))
    >>> model.frame_rates
    (2.0, 60.0)
    """
    folder = parameters.folder
    if not (folder / CARD).is_file():
        raise InputError(
            f"model_file {folder} holds no model for spike inference; give a folder that "
            "napari-calcium train-spikes wrote"
        )
    try:
        return _read(folder, model_digest(folder))
    except UNREADABLE as error:
        raise InputError(
            f"model_file {folder} cannot be read ({type(error).__name__}: {error}); give a folder "
            "that napari-calcium train-spikes wrote"
        ) from error


def check_model(parameters: SpikeInferenceParameters, frame_rate: float) -> None:
    """Check that a model can be used as it is asked to be.

    Parameters
    ----------
    parameters : SpikeInferenceParameters
    frame_rate : float
        Of the traces, Hz.

    Raises
    ------
    InputError
        As `read_spike_model`; or if the frame rate is none that the model is for, or it smooths
        otherwise than is wanted.
    """
    _check_frame_rate(read_spike_model(parameters), frame_rate)
    check_smoothing(parameters)


def check_smoothing(parameters: SpikeInferenceParameters) -> None:
    """Check that a model is there and can smooth as it is asked to, at whatever frame rate.

    Raises
    ------
    InputError
        As `read_spike_model`; or if it smooths otherwise than is wanted.
    """
    model = read_spike_model(parameters)
    if model.smooths:
        _more_smoothing(model, parameters)


def rate_kernel(
    model: SpikeModel, parameters: SpikeInferenceParameters, frame_rate: float
) -> NDArray[np.float64]:
    """Return the taps that one spike becomes in the rates, of sum 1, its own frame in the middle.

    Examples
    --------
    >>> chosen = SpikeInferenceParameters(smoothing=0.1)
    >>> taps = rate_kernel(read_spike_model(chosen), chosen, 30.0)
    >>> len(taps), taps.sum().round(6)
    (25, np.float64(1.0))
    """
    taps = gaussian_kernel if parameters.kernel == "gaussian" else causal_kernel
    return taps(parameters.smoothing or model.smoothing(frame_rate), frame_rate)


def rate_marks(
    dff: NDArray[np.floating],
    frame_rate: float,
    model: SpikeModel,
    parameters: SpikeInferenceParameters,
) -> NDArray[np.uint8]:
    """Return what speaks against the rates of some cells.

    Parameters
    ----------
    dff, frame_rate, model, parameters
        As for `spike_rate`.

    Returns
    -------
    ndarray of uint8 (cell,)
        See `guards.trace_marks`; UNKNOWN, too, where no frame is far enough from the ends of the
        trace and from its unknown frames.
    """
    return trace_marks(dff, frame_rate, model.noise_levels, _margin(model, parameters))


def spike_rate(
    dff: NDArray[np.floating],
    frame_rate: float,
    model: SpikeModel,
    parameters: SpikeInferenceParameters,
) -> Floats:
    """Infer the rates of spikes of some cells.

    Parameters
    ----------
    dff : ndarray (cell, time)
        dF/F as a fraction, raw: not denoised, not smoothed. Frames that are NaN or infinite are
        unknown; what is between two of them is inferred as a trace of its own.
    frame_rate : float
        Hz, among those of the model.
    model : SpikeModel
        See `read_spike_model`.
    parameters : SpikeInferenceParameters
        How the rate is smoothed, what is set to 0, and what it is at the ends.

    Returns
    -------
    ndarray of float32 (cell, time)
        Hz. The sum over the frames, divided by the frame rate, is the number of spikes. NaN where
        the trace is, near its ends and its unknown frames if these are wanted to be unknown, and
        in the whole of a trace whose marks forbid it: see `guards.NO_RATE`. What is inferred of a
        cell is the same to the bit whatever other cells there are.

    Raises
    ------
    InputError
        If the frame rate is none that the model is for.

    References
    ----------
    .. [1] Rupprecht et al., Nature Neuroscience 2021, doi:10.1038/s41593-021-00895-5

    Examples
    --------
    >>> dff = np.random.default_rng(0).normal(0, 0.05, (2, 300))
    >>> dff[0, 150:] += np.exp(-np.arange(150) / 30)
    >>> chosen = SpikeInferenceParameters()
    >>> rate = spike_rate(dff, 30.0, read_spike_model(chosen), chosen)
    >>> abs(int(np.nanargmax(rate[0])) - 150) <= 2
    True
    """
    _check_frame_rate(model, frame_rate)
    rate = np.full(np.shape(dff), np.nan, np.float32)
    kernel = rate_kernel(model, parameters, frame_rate)
    one, margin = float(kernel.max()), _margin(model, parameters)
    if model.smooths:
        kernel = gaussian_kernel(_more_smoothing(model, parameters), frame_rate)
    marks = rate_marks(dff, frame_rate, model, parameters)
    for cell in np.flatnonzero((marks & int(NO_RATE)) == 0):
        trace = np.asarray(dff[cell], np.float64)
        features = trace_features(np.where(np.isfinite(trace), trace, np.nan), frame_rate)
        for run in _known(trace, 2 * margin + 1):
            spikes = _smoothed(_spikes(trace[run], features, model), kernel, parameters)
            inside = slice(margin, len(spikes) - margin)
            rate[cell, run][inside] = _above(spikes, parameters, one)[inside] * frame_rate
    return rate


def infer_spikes(
    dff: da.Array, frame_rate: float, parameters: SpikeInferenceParameters
) -> Inferred:
    """Build the graph that infers the rates of spikes of all cells; nothing is computed.

    Parameters
    ----------
    dff : dask.array (cell, time)
        dF/F as a fraction; each block of cells is a task.
    frame_rate : float
        Hz.
    parameters : SpikeInferenceParameters
        Which model, and how it is used.

    Returns
    -------
    Inferred
        ``rate`` (cell, time), Hz, see `spike_rate`; ``noise_level`` (cell,), % per root Hz; and
        ``marks`` (cell,), uint8, see `guards.Mark`.

    Raises
    ------
    InputError
        As `check_model`.

    Examples
    --------
    >>> traces = da.zeros((3, 100), chunks=(2, 100))
    >>> infer_spikes(traces, 30.0, SpikeInferenceParameters()).rate.chunks
    ((2, 1), (100,))
    """
    check_model(parameters, frame_rate)
    model = read_spike_model(parameters)
    whole = dff.rechunk({1: -1})
    rate = whole.map_blocks(
        _rate_of_block, frame_rate, parameters, dtype=np.float32, meta=np.empty((0, 0), np.float32)
    )
    marks = whole.map_blocks(
        trace_marks,
        frame_rate,
        model.noise_levels,
        _margin(model, parameters),
        drop_axis=1,
        dtype=np.uint8,
        meta=np.empty(0, np.uint8),
    )
    return Inferred(rate, noise_levels(whole, frame_rate), marks)


def noise_levels(dff: da.Array, frame_rate: float) -> da.Array:
    """Build the graph of the noise levels of all cells; nothing is computed.

    Parameters
    ----------
    dff : dask.array (cell, time)
        dF/F as a fraction; what is not finite is left out.
    frame_rate : float
        Hz.

    Returns
    -------
    dask.array of float32 (cell,)
        % per root Hz: see `noise.noise_level`.
    """
    return dff.rechunk({1: -1}).map_blocks(
        _level_of_block, frame_rate, drop_axis=1, dtype=np.float32, meta=np.empty(0, np.float32)
    )


def _rate_of_block(
    dff: NDArray[np.floating], frame_rate: float, parameters: SpikeInferenceParameters
) -> Floats:
    return spike_rate(dff, frame_rate, read_spike_model(parameters), parameters)


def _level_of_block(dff: NDArray[np.floating], frame_rate: float) -> Floats:
    known = np.where(np.isfinite(dff), dff, np.nan)
    return np.asarray(noise_level(known, frame_rate), np.float32)


@lru_cache(maxsize=4)
def _read(folder: Path, digest: str) -> SpikeModel:
    card = json.loads((folder / CARD).read_text("utf-8"))
    networks = tuple(read_network(file) for file in sorted(folder.glob("*.keras")))
    if not networks or len({type(one) for one in networks}) > 1:
        raise ValueError(f"{len(networks)} networks of one design")
    members = card.get("training", {}).get("members", len(networks))
    if members != len(networks):
        raise ValueError(f"{len(networks)} of {members} networks")
    model = SpikeModel(str(card["name"]), card, networks)
    _check_card(model)
    return model


def _check_card(model: SpikeModel) -> None:
    """Check that what a card says can be meant."""
    (slow, fast), (low, high) = model.frame_rates, model.noise_levels
    _ = model.causal
    if not 0 < slow <= fast < np.inf:
        raise ValueError(f"frame_rates are {slow:g} to {fast:g} Hz")
    if not 0 <= low <= high < np.inf:
        raise ValueError(f"noise_levels are {low:g} to {high:g}")
    for name in ("margin", "smoothing"):
        value = float(model.card[name])
        if not 0 <= value < np.inf:
            raise ValueError(f"{name} is {value:g}")


def _check_frame_rate(model: SpikeModel, frame_rate: float) -> None:
    """Refuse a frame rate that is none, or none that a model is for."""
    if not 0 < frame_rate < np.inf:
        raise InputError(f"frame_rate is {frame_rate:g} Hz; give the frames recorded per second")
    low, high = model.frame_rates
    if not model.serves(frame_rate):
        serves = f"{low:g} Hz" if low == high else f"{low:g} to {high:g} Hz"
        raise InputError(
            f"frame_rate is {frame_rate:g} Hz and the model {model.name} is for {serves}; average "
            "frames, or train a model with napari-calcium train-spikes --frame-rate "
            f"{frame_rate:g}"
        )


def _margin(model: SpikeModel, parameters: SpikeInferenceParameters) -> int:
    """Return of how many frames at both ends of a run no rate is given."""
    return model.margin if parameters.edges == "unknown" else 0


def _known(trace: NDArray[np.floating], shortest: int) -> Iterator[slice]:
    """Yield the runs of frames that are finite, but those that are shorter."""
    known = np.concatenate(([False], np.isfinite(trace), [False]))
    edges = np.flatnonzero(known[1:] != known[:-1])
    for first, last in edges.reshape(-1, 2):
        if last - first >= shortest:
            yield slice(int(first), int(last))


def _spikes(
    trace: NDArray[np.float64], features: Features, model: SpikeModel
) -> NDArray[np.float64]:
    """Return spikes per frame of a run of known frames, the mean of the networks."""
    total = np.zeros(len(trace))
    seen = channels(trace, features)
    for network in model.networks:
        if isinstance(network, Conditioned):
            total += network(seen, features.values)
        else:
            total += network(trace.astype(np.float32))
    return total / len(model.networks)


def _smoothed(
    spikes: NDArray[np.float64],
    kernel: NDArray[np.float64],
    parameters: SpikeInferenceParameters,
) -> NDArray[np.float64]:
    """Smooth, what is beyond the ends being as what is inside; at rest before a padded causal one.

    The first taps of a causal kernel are small: over their sum, a spike in the first frame would
    count as several.
    """
    if len(kernel) == 1:
        return spikes
    weights = smooth(np.ones_like(spikes), kernel)
    if parameters.kernel == "causal" and parameters.edges == "padded":
        weights[: len(kernel) // 2] = 1
    return np.asarray(smooth(spikes, kernel) / weights)


def _above(
    spikes: NDArray[np.float64], parameters: SpikeInferenceParameters, one: float
) -> NDArray[np.float64]:
    """Set to 0 what is to be, ``one`` being the peak of one smoothed spike."""
    if parameters.threshold == "none":
        return spikes
    least = one / np.e if parameters.threshold == "one_spike" else 0
    return np.where(spikes < least, 0, spikes)


def _more_smoothing(model: SpikeModel, parameters: SpikeInferenceParameters) -> float:
    """Return the sd of the Gaussian that is still to be applied to smoothed spikes, s."""
    own, causal = float(model.card["smoothing"]), model.causal
    wanted = parameters.smoothing or own
    same = wanted == own and causal == (parameters.kernel == "causal")
    if not same and (causal or parameters.kernel == "causal" or wanted < own):
        kernel = "causal" if causal else "gaussian"
        raise InputError(
            f"the model {model.name} smooths with a {kernel} kernel of {own:g} s, not with a "
            f"{parameters.kernel} one of {wanted:g} s; set kernel to {kernel} and smoothing to 0"
        )
    return float(np.sqrt(wanted**2 - own**2))
