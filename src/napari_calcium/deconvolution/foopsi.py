"""From traces to activity in one call: noise, time constants, baseline and deconvolution."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import dask.array as da
import numpy as np
from dask.delayed import delayed
from numpy.typing import ArrayLike, NDArray

from napari_calcium.deconvolution.autoregression import (
    MAX_DECAY,
    MIN_DECAY,
    coefficients_from_times,
    decay_and_rise,
    decay_coefficient,
    noise_level,
    second_order_coefficients,
    time_constants,
)
from napari_calcium.deconvolution.constrained import Penalty, deconvolve
from napari_calcium.deconvolution.decay import SLOWEST_RISE, fitted_decay, fitted_rise, noise_left
from napari_calcium.deconvolution.isolated import refined_coefficients
from napari_calcium.deconvolution.oasis import Trace, as_trace, known_part
from napari_calcium.errors import InputError
from napari_calcium.movie import blocks
from napari_calcium.parameters import Parameters, parameter

__all__ = [
    "DeconvolutionParameters",
    "DeconvolvedTraces",
    "Foopsi",
    "constrained_foopsi",
    "deconvolve_lazily",
    "deconvolve_traces",
]

Floats = NDArray[np.float32]

CELLS_PER_TASK = 128
"""Cells of one task, who share what is usual among them; the cut of the work, whatever the
chunks."""

SLOWEST_DECAY, SLOWEST_FITTED_RISE = 3.0, 0.1
"""Largest time constants that are fitted, s: what is slower is a drift, or spikes in a burst."""

ROUNDS, SETTLED = 4, 0.97
"""Times the noise is estimated from what a fit leaves, and the part it may still change by."""

NORMAL_QUARTER = 0.6745
"""Distance of the lower quartile of normally distributed values from their mean, sd."""


@dataclass(frozen=True)
class DeconvolutionParameters(Parameters):
    """What calcium is taken to do, and what activity costs.

    Parameters
    ----------
    ar_order : {1, 2, 0}
        Order of the calcium's autoregression: 1 decays, 2 also rises, 0 leaves traces as they are.
        CaImAn: p.
    time_constants : {"fitted", "autocovariance", "given"}
        Whether time constants are those that predict the traces best, a decay from 0.8 frames to
        3 s and a rise of at most 0.1 s, cells of one recording being alike; those of each trace's
        autocovariance, which bursts make too long; or `decay_time` and `rise_time`.
    decay_time : float
        Time in which a transient falls to 1/e, s, where it is given. CaImAn: decay_time; Suite2p:
        tau.
    rise_time : float
        Time constant of the rise, s, where it is given and the order is 2; not the time to peak.
        One that is too slow is worse than none: calcium that rises faster cannot be explained.
    lags : int
        Largest lag of the autocovariance, frames; 0 takes 5 for order 1, 15 for 2. CaImAn: lags.
    fudge_factor : float
        What the decay of the autocovariance is multiplied by, per frame. CaImAn: fudge_factor.
    refine : bool
        Whether time constants, however they came about, are fitted once more to isolated
        transients. CaImAn: optimize_g.
    penalty : {"none", "l1", "l0"}
        What activity costs: nothing, which correlates well with spikes; its sum, as much as the
        noise calls for, which leaves fewer small events and shrinks the others; or that no
        transient be smaller than `min_spike`. CaImAn: method_deconvolution, s_min.
    min_spike : float
        Height of the smallest transient, for "l0", in `min_spike_unit`. CaImAn: s_min.
    min_spike_unit : {"noise", "trace"}
        Whether `min_spike` is in standard deviations of the noise or in the traces' unit.
    """

    ar_order: Literal[1, 2, 0] = 1
    time_constants: Literal["fitted", "autocovariance", "given"] = "fitted"
    decay_time: float = parameter(0.6, unit="s", above=0, maximum=60)
    rise_time: float = parameter(0.05, unit="s", minimum=0, maximum=60)
    lags: int = parameter(0, unit="frames", minimum=0)
    fudge_factor: float = parameter(1.0, unit="1", above=0, maximum=1)
    refine: bool = False
    penalty: Penalty = "none"
    min_spike: float = parameter(3.0, minimum=0)
    min_spike_unit: Literal["noise", "trace"] = "noise"

    def check(self) -> None:
        """Raise `InputError` where the rise is slower than the decay."""
        if self.time_constants == "given" and self.ar_order == 2:
            coefficients_from_times(self.decay_time, self.rise_time, 1.0)

    def smallest(self, noise: float) -> float:
        """Return the height of the smallest transient, in the unit of traces of such noise."""
        return self.min_spike * (noise if self.min_spike_unit == "noise" else 1.0)


@dataclass(frozen=True)
class DeconvolvedTraces:
    """Traces taken apart.

    Parameters
    ----------
    calcium : ndarray (cell, time)
        Denoised fluorescence with its baseline, in the traces' unit.
    activity : ndarray (cell, time)
        Non-negative increments of calcium per frame, in the traces' unit. 0 in the first frame that
        is known: calcium there may be left over from before.
    baseline, noise : ndarray (cell,)
        Fluorescence without calcium, and standard deviation of the noise, in the traces' unit.
    time_constants : ndarray (cell, 2)
        Of decay and rise, s; NaN where the model has none.
    """

    calcium: Floats
    activity: Floats
    baseline: Floats
    noise: Floats
    time_constants: Floats


@dataclass(frozen=True)
class Foopsi:
    """One trace taken apart; ``baseline + calcium`` is the denoised trace.

    Parameters
    ----------
    calcium : ndarray (time,)
        Denoised fluorescence above the baseline, in the trace's unit (CaImAn: ``c``).
    activity : ndarray (time,)
        Non-negative increments of calcium per frame, in the trace's unit (CaImAn: ``sp``); 0 in
        the first frame that is known.
    initial : float
        Calcium in that frame, left over from before (CaImAn: ``c1``); it only decays.
    baseline, noise : float
        In the trace's unit (CaImAn: ``bl``, ``sn``).
    coefficients : ndarray (order,)
        Of the calcium one and two frames earlier (CaImAn: ``g``).
    time_constants : ndarray (2,)
        Of decay and rise, s; NaN where the model has none.
    penalty : float
        Price of activity, in the trace's unit (CaImAn: ``lam``); 0 unless the penalty is "l1".
    n_isolated : int
        Isolated transients that the coefficients were refined on.
    """

    calcium: Trace
    activity: Trace
    initial: float
    baseline: float
    noise: float
    coefficients: NDArray[np.float64]
    time_constants: NDArray[np.float64]
    penalty: float
    n_isolated: int


def constrained_foopsi(
    trace: ArrayLike,
    frame_rate: float,
    parameters: DeconvolutionParameters | None = None,
    *,
    coefficients: ArrayLike | None = None,
    noise: float | None = None,
    baseline: float | None = None,
) -> Foopsi:
    """Infer the activity behind a fluorescence trace: "fast non-negative deconvolution".

    The trace is taken for ``baseline + calcium + noise``, where calcium decays (order 1), or rises
    and decays (order 2), after activity that is never negative. What is not given is estimated.

    Parameters
    ----------
    trace : array (time,)
        Fluorescence or dF/F, in any unit; any offset; NaN (or infinite) where it is not known.
    frame_rate : float
        Frames per second, Hz.
    parameters : DeconvolutionParameters, optional
        Order, time constants and penalty.
    coefficients : float or (g1,) or (g1, g2), optional
        Coefficients where they are known (CaImAn: ``g``); they say the order.
    noise : float, optional
        Standard deviation of the noise where it is known, in the trace's unit (CaImAn: ``sn``).
    baseline : float, optional
        Baseline where it is known, in the trace's unit (CaImAn: ``bl``).

    Returns
    -------
    Foopsi
        Float64 if the trace is, and float32 otherwise. NaN in the frames that are not known,
        through which calcium decays: what happened there shows in the first frame after them. A
        trace that varies no more than its noise has no activity.

    Raises
    ------
    InputError
        If the frame rate is not above 0, the trace has more than one axis or no frame that is
        known, or the order is 0.

    References
    ----------
    .. [1] Vogelstein et al., J. Neurophysiol. 2010, doi:10.1152/jn.01073.2009
    .. [2] Pnevmatikakis et al., Neuron 2016, doi:10.1016/j.neuron.2015.11.037
    .. [3] Friedrich, Zhou & Paninski, PLoS Comput. Biol. 2017, doi:10.1371/journal.pcbi.1005423

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> spikes = np.zeros(900)
    >>> spikes[[100, 400, 430, 800]] = 1
    >>> trace = 2 + np.convolve(spikes, 0.95 ** np.arange(300))[:900]
    >>> trace += rng.normal(scale=0.1, size=900)
    >>> options = DeconvolutionParameters(penalty="l0", min_spike=5.0)
    >>> found = constrained_foopsi(trace, 30.0, options)
    >>> np.flatnonzero(found.activity)
    array([100, 400, 430, 800])
    >>> round(found.baseline, 1), found.time_constants.round(1)
    (2.0, array([0.7, nan]))
    """
    options = parameters or DeconvolutionParameters()
    row = _row(trace, frame_rate)
    rows = row[None]
    known = noise_level(rows) if noise is None else np.array([noise])
    if coefficients is not None:
        g = np.atleast_1d(np.asarray(coefficients, np.float64))
        decay_and_rise(g)
    elif options.ar_order == 0:
        raise InputError("ar_order is 0, which leaves the trace as it is; give 1 or 2")
    else:
        g, known = _estimated(rows, known, frame_rate, options, fixed=noise is not None)
        g = g[0]
    sd, n_isolated = float(known[0]), 0
    if options.refine:
        g, n_isolated = refined_coefficients(row, g, sd)
    found = deconvolve(row, g, sd, baseline, options.penalty, options.smallest(sd))
    initial = _take_initial(row, found.activity)
    return Foopsi(
        calcium=found.calcium,
        activity=found.activity,
        initial=initial,
        baseline=found.baseline,
        noise=sd,
        coefficients=g,
        time_constants=time_constants(g[None], frame_rate)[0],
        penalty=found.penalty,
        n_isolated=n_isolated,
    )


def deconvolve_traces(
    traces: NDArray[np.floating],
    frame_rate: float,
    parameters: DeconvolutionParameters | None = None,
    shared: bool = False,
) -> DeconvolvedTraces:
    """Infer the activity behind many traces of one recording.

    Like `constrained_foopsi`, except that fitted time constants of each cell are drawn to what is
    usual among all, and results are float32.

    Parameters
    ----------
    traces : ndarray (cell, time)
        Fluorescence in any unit; any offset; NaN where it is not known.
    frame_rate : float
        Frames per second, Hz.
    parameters : DeconvolutionParameters, optional
        Order, time constants and penalty. Of order 0, `calcium` is the trace itself, and
        `activity` what of it is above the baseline, a quarter of the frames being taken for silent.
    shared : bool
        Whether all cells get the same fitted time constants, which is faster.

    Returns
    -------
    DeconvolvedTraces
        NaN in the frames that are not known; a cell without any is NaN throughout, its noise 0.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> calcium = np.stack([np.convolve(rng.random(900) < 0.02, 0.9 ** np.arange(60))[:900]] * 2)
    >>> found = deconvolve_traces(10 * calcium + rng.normal(size=calcium.shape), 30.0)
    >>> bool(np.corrcoef(found.calcium[0], calcium[0])[0, 1] > 0.99)
    True
    """
    options = parameters or DeconvolutionParameters()
    traces = np.asarray(traces, np.float32)
    traces = np.where(np.isfinite(traces), traces, np.float32(np.nan))
    noise = noise_level(traces)
    if options.ar_order == 0:
        return _as_they_are(traces, noise)
    g, noise = _estimated(traces, noise, frame_rate, options, shared=shared)
    if options.refine:
        each = zip(traces, g, noise, strict=True)
        g = np.array([refined_coefficients(*one)[0] for one in each]).reshape(g.shape)
    return _deconvolved(traces, g, noise, frame_rate, options)


def deconvolve_lazily(
    traces: da.Array | NDArray[np.floating],
    frame_rate: float,
    parameters: DeconvolutionParameters | None = None,
) -> dict[str, da.Array]:
    """Return the fields of `DeconvolvedTraces` as lazy arrays; nothing is computed here.

    Parameters
    ----------
    traces : dask.array.Array or ndarray (cell, time)
        Fluorescence, of any chunks; cells are taken 128 at a time, whatever the chunks, and share
        what is usual among these.
    frame_rate, parameters
        As for `deconvolve_traces`.

    Returns
    -------
    dict of str to dask.array.Array
        ``calcium``, ``activity`` (cell, time), ``baseline``, ``noise`` (cell,) and
        ``time_constants`` (cell, 2), float32. Computed together, each task runs once.

    Examples
    --------
    >>> import dask
    >>> lazy = deconvolve_lazily(da.ones((300, 90), chunks=(100, 30)), 30.0)
    >>> lazy["calcium"].chunks
    ((128, 128, 44), (90,))
    >>> calcium, noise = dask.compute(lazy["calcium"], lazy["noise"])
    """
    options = parameters or DeconvolutionParameters()
    lazy = da.asarray(traces)
    n_cells, n_frames = lazy.shape
    shapes = {"calcium": (n_frames,), "activity": (n_frames,), "time_constants": (2,)}
    parts: dict[str, list[da.Array]] = {field.name: [] for field in fields(DeconvolvedTraces)}
    for part in blocks(n_cells, CELLS_PER_TASK):
        task = delayed(_apart, pure=True)(lazy[part], frame_rate, options)
        for name, arrays in parts.items():
            shape = (part.stop - part.start, *shapes.get(name, ()))
            arrays.append(da.from_delayed(task[name], shape, np.float32))
    if n_cells == 0:
        return {name: da.zeros((0, *shapes.get(name, ())), np.float32, chunks=-1) for name in parts}
    return {name: da.concatenate(arrays) for name, arrays in parts.items()}


def _apart(
    traces: NDArray[np.floating], frame_rate: float, parameters: DeconvolutionParameters
) -> dict[str, Floats]:
    return dict(vars(deconvolve_traces(np.asarray(traces), frame_rate, parameters)))


def _row(trace: ArrayLike, frame_rate: float) -> Trace:
    if not (frame_rate > 0 and np.isfinite(frame_rate)):
        raise InputError(f"frame_rate is {frame_rate} Hz; give the frames recorded per second")
    row = np.asarray(trace)
    if row.ndim != 1:
        raise InputError(f"the trace has {row.ndim} axes; give one trace (time,) at a time")
    if not np.isfinite(row).any():
        raise InputError(f"none of the trace's {row.size} frames is a number; give a fluorescence")
    return as_trace(row)


def _estimated(
    traces: NDArray[np.floating],
    noise: Floats,
    frame_rate: float,
    options: DeconvolutionParameters,
    shared: bool = False,
    fixed: bool = False,
) -> tuple[NDArray[np.float64], Floats]:
    """Return the coefficients (cell, order) of traces, and their noise (cell,) by what is left."""
    if options.time_constants == "given":
        rise = options.rise_time if options.ar_order == 2 else 0.0
        g = np.tile(coefficients_from_times(options.decay_time, rise, frame_rate), (len(traces), 1))
    elif options.time_constants == "autocovariance":
        g = _of_autocovariance(traces, noise, options)
    else:
        g = _fitted(traces, noise, frame_rate, options.ar_order, shared)
    g = g[:, : options.ar_order]
    for _ in range(0 if fixed else ROUNDS):
        first = _deconvolved(traces, g, noise, frame_rate, DeconvolutionParameters())
        before, noise = noise, noise_left(traces, first.calcium, first.activity, noise)
        if np.all(noise >= SETTLED * before):
            break
    return g, noise


def _of_autocovariance(
    traces: NDArray[np.floating], noise: Floats, options: DeconvolutionParameters
) -> NDArray[np.float64]:
    """Return g1 and g2 (cell, 2) by the autocovariance, the decay times the fudge factor."""
    if options.ar_order == 1:
        decay = decay_coefficient(traces, noise, options.lags or 5).astype(np.float64)
        rise = np.zeros(len(traces))
    else:
        g = second_order_coefficients(traces, lags=max(options.lags or 15, 3))
        decay, rise = np.array([decay_and_rise(each) for each in g]).reshape(-1, 2).T
    decay = np.clip(options.fudge_factor * decay, MIN_DECAY, MAX_DECAY)
    rise = np.minimum(rise, decay)
    return np.stack([decay + rise, -decay * rise], axis=1)


def _fitted(
    traces: NDArray[np.floating], noise: Floats, frame_rate: float, order: int, shared: bool
) -> NDArray[np.float64]:
    """Return g1 and g2 (cell, 2) that predict the traces best."""
    decay = fitted_decay(traces, noise, shared, SLOWEST_DECAY * frame_rate)
    times: NDArray[np.floating] = -1 / np.log(decay)
    rise = 0.0
    if order == 2:
        rise, times = fitted_rise(traces, noise, times, SLOWEST_FITTED_RISE * frame_rate)
    rises = np.minimum(rise, SLOWEST_RISE * times)
    return coefficients_from_times(times, rises, 1.0).reshape(-1, 2)


def _deconvolved(
    traces: NDArray[np.floating],
    g: NDArray[np.float64],
    noise: Floats,
    frame_rate: float,
    options: DeconvolutionParameters,
) -> DeconvolvedTraces:
    """Deconvolve traces whose coefficients are known."""
    calcium, activity = np.empty(traces.shape, np.float32), np.empty(traces.shape, np.float32)
    baseline = np.empty(len(traces), np.float32)
    for cell, trace in enumerate(traces):
        sd = float(noise[cell])
        least = options.smallest(sd)
        found = deconvolve(trace, g[cell], sd, penalty=options.penalty, min_spike=least)
        _take_initial(trace, found.activity)
        calcium[cell] = found.calcium + np.float32(found.baseline)
        activity[cell], baseline[cell] = found.activity, found.baseline
    times = time_constants(g, frame_rate).astype(np.float32)
    times[~np.isfinite(traces).any(axis=1) & (traces.shape[1] > 0)] = np.nan
    return DeconvolvedTraces(calcium, activity, baseline, noise, times)


def _take_initial(trace: Trace, activity: Trace) -> float:
    """Take out of the first known frame what is left over from before, and return it."""
    known = known_part(trace)
    if not known.stop:
        return 0.0
    initial = float(activity[known.start])
    activity[known.start] = 0
    return initial


def _typical_noise(traces: Floats) -> Floats:
    """Return the noise by the typical second difference, which few fast transients do not raise."""
    if traces.shape[1] < 3:
        return np.zeros(len(traces), np.float32)
    changes = np.abs(np.diff(traces, n=2, axis=1))
    known = [each[np.isfinite(each)] for each in changes]
    typical = [np.median(each) if each.size else np.inf for each in known]
    return np.asarray(np.array(typical) / (NORMAL_QUARTER * np.sqrt(6)), np.float32)


def _as_they_are(traces: Floats, noise: Floats) -> DeconvolvedTraces:
    noise = np.minimum(noise, _typical_noise(traces))
    known = [each[np.isfinite(each)] for each in traces]
    empty = np.nan if traces.shape[1] else 0.0
    quarter = np.array([np.quantile(each, 0.25) if each.size else empty for each in known])
    baseline = (quarter + NORMAL_QUARTER * noise).astype(np.float32)
    activity = np.maximum(traces - baseline[:, None], 0)
    constants = np.full((len(traces), 2), np.nan, np.float32)
    return DeconvolvedTraces(traces, activity, baseline, noise, constants)
