"""Fluorescence relative to its own baseline: dF/F, or detrended where there is no dF/F."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from napari_calcium.activity.bleaching import (
    Trend,
    exponential_trend,
    polynomial_trend,
    positive_part,
)
from napari_calcium.activity.level import resting_percentiles
from napari_calcium.activity.neuropil import (
    Fluorescence,
    above_background,
    above_ring,
    ring_corrected,
)
from napari_calcium.activity.percentile import running_percentile, whole_percentile
from napari_calcium.components import Components
from napari_calcium.errors import InputError
from napari_calcium.movie import Movie, blocks, check_one_plane
from napari_calcium.parameters import Parameters, parameter
from napari_calcium.traces import noise_level

__all__ = ["KINDS", "Dff", "DffParameters", "dff", "dff_attrs", "dff_components", "dff_to_arrays"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

KINDS = {"two-photon": "dff", "one-photon": "detrended"}
"""What there is of a recording, by how it is marked."""

GROUPS = 16
"""Tasks that the cells are shared out to."""

VALUES_AT_ONCE = 2**22
"""Cells times frames that are worked on together: a few arrays of 32 MB."""

WINDOWS_OF_TREND = 32
"""Windows of a recording in which the percentile is taken whose trend is removed."""

LEAST_FLOOR = 1e-30
"""F0 relative to the largest fluorescence below which dF/F would not be a number."""

SMALLEST_F0 = 1e-6
"""Least F0 of a trace without noise, as a fraction of its largest value."""


@dataclass(frozen=True)
class DffParameters(Parameters):
    """How F0 is found, and what is divided by it.

    Parameters
    ----------
    kind : {"auto", "dff", "detrended"}
        dff: (F - F0) / F0, where F0 is fluorescence of the cell and of what lies under it.
        detrended: F - F0 in counts, for one-photon recordings, whose background is mostly not of
        the cell. auto: as the recording is marked.
    window : float
        Length of the running window whose percentile is the baseline, s; several times longer
        than a transient (CaImAn: frames_window; Suite2p: win_baseline). 0: the whole recording.
    percentile : float
        Percentile of the window that is the baseline, % (CaImAn: quantileMin; Suite2p:
        prctile_baseline). A low one lies below the resting level by the noise: the 8th by 1.4 sd.
        0: for each cell the one at which it rests, by its whole trace (CaImAn: flag_auto).
    neuropil : {"background", "ring"}
        background: source extraction has taken the neuropil out of the traces, and F0 is to have
        it. ring: the weighted mean of the cell's pixels less a part of the mean of a ring around
        it, read from the movie (Suite2p: Fneu).
    ring_factor : float
        Part of the ring's mean that is taken away (Suite2p: neucoeff).
    ring_gap : int
        Distance from the cell up to which pixels are not of its ring, px (Suite2p:
        inner_neuropil_radius).
    ring_pixels : int
        Pixels a ring has at least; it is as wide as that takes (Suite2p: min_neuropil_pixels).
    bleaching : {"none", "polynomial", "exponential"}
        The trend of the resting level over the recording that is taken out first: what is longer
        than the window. Divided out of dff, subtracted from detrended.
    bleaching_order : int
        Order of the polynomial.
    output : {"raw", "denoised"}
        raw: the traces with their noise. denoised: the denoised traces over the same F0 (CaImAn:
        use_residuals=False).
    dark_level : float
        What a pixel reads without light, counts (the offset of the camera or the amplifier): F0 is
        less by that. Left at 0, an offset makes dF/F too small. Detrended traces are without it.
    floor : float
        Smallest F0 of dff, as a multiple of the trace's noise. F0 near or below zero would give
        wild values; a cell whose F0 was raised to this is flagged.
    """

    kind: Literal["auto", "dff", "detrended"] = parameter("auto")
    window: float = parameter(30.0, unit="s", minimum=0)
    percentile: float = parameter(0.0, unit="%", minimum=0, maximum=100)
    neuropil: Literal["background", "ring"] = parameter("background")
    ring_factor: float = parameter(0.7, minimum=0, maximum=1)
    ring_gap: int = parameter(2, unit="px", minimum=0)
    ring_pixels: int = parameter(350, minimum=1)
    bleaching: Literal["none", "polynomial", "exponential"] = parameter("none")
    bleaching_order: int = parameter(1, minimum=1, maximum=5)
    output: Literal["raw", "denoised"] = parameter("raw")
    dark_level: float = parameter(0.0, unit="counts")
    floor: float = parameter(1.0, unit="noise sd", minimum=0)

    def check_marks(self, marks: Mapping[str, Any]) -> None:
        """Raise `InputError` where dF/F is asked of a one-photon recording."""
        _kind(self, str(marks["modality"]))

    def check_movie(self, shape: tuple[int, ...]) -> None:
        """Raise `InputError` where rings are to be read from a movie of volumes."""
        if self.neuropil == "ring":
            check_one_plane(shape, "dff")


@dataclass(frozen=True)
class Dff:
    """Changes of fluorescence, and the baseline they are changes of.

    Parameters
    ----------
    traces : ndarray (cell, time)
        Of the kind "dff", dF/F as a fraction: 1 is a doubling. Of the kind "detrended", F - F0 in
        counts.
    baseline : ndarray (cell, time)
        F0 of the raw fluorescence in its unit, before any bleaching is removed. Of "dff", what the
        change was divided by: the cell's own and what lies under it, above 0. Of "detrended", what
        was subtracted from the raw fluorescence (from denoised traces, their own rest is).
    floored : ndarray of bool (cell,)
        Whether F0 had to be raised to its floor in any frame: dF/F is not to be trusted.
    percentile : ndarray (cell,)
        Percentile of the window that was taken for the baseline, %.
    kind : {"dff", "detrended"}
        What the traces are.
    output : {"raw", "denoised"}
        Which fluorescence the traces are made of.
    neuropil : {"background", "ring"}
        How the neuropil was allowed for.
    trend_limited : ndarray of bool (cell,), optional
        Whether the trend that was to be removed could not be fitted, or was held at its bound.
    """

    traces: Floats
    baseline: Floats
    floored: NDArray[np.bool_]
    percentile: Floats
    kind: str = "dff"
    output: str = "raw"
    neuropil: str = "background"
    trend_limited: NDArray[np.bool_] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        limited = getattr(self, "trend_limited", None)
        limited = np.zeros(len(self.traces), bool) if limited is None else limited
        object.__setattr__(self, "trend_limited", limited)
        for name in ("traces", "baseline", "percentile"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), np.float32))
        for name in ("floored", "trend_limited"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), bool))
        if self.traces.ndim != 2 or self.traces.shape != self.baseline.shape:
            raise ValueError(f"traces {self.traces.shape} and baseline {self.baseline.shape}")
        for name in ("floored", "percentile", "trend_limited"):
            if getattr(self, name).shape != self.traces.shape[:1]:
                raise ValueError(f"{len(self.traces)} traces but {name} of another number")
        if self.kind not in KINDS.values():
            raise ValueError(f"kind is {self.kind!r}; it is one of {', '.join(KINDS.values())}")


def dff(
    fluorescence: Fluorescence,
    parameters: DffParameters,
    frame_rate: float,
    modality: str = "two-photon",
) -> Dff:
    """Return the change of each cell's fluorescence relative to its baseline.

    With F the fluorescence, B the background under the cell and P the running percentile, dff has
    F0 = P(F) + P(B), not below its floor, and the traces (F - P(F)) / F0. Detrended has F0 = P(F)
    and the traces F - F0. The denoised output puts C - P(C) in place of F - P(F), where C is the
    denoised fluorescence.

    Where bleaching is removed, P(X) is g P(X / g) for dff, g being the trend of the resting F + B,
    and m + P(X - m) for detrended, m being the trend of X. A cell too short for a trend keeps its
    light as it is, g is held between 0.2 and 5 times its mean, and both are flagged.

    Parameters
    ----------
    fluorescence : Fluorescence
        Of the cells, from `napari_calcium.activity.neuropil`. Frames that are NaN or infinite in
        `raw` or `behind` are left out.
    parameters : DffParameters
        Of any `neuropil`, which is not looked at here.
    frame_rate : float
        Frames per second, Hz.
    modality : {"two-photon", "one-photon"}
        How the recording is marked.

    Returns
    -------
    Dff
        Never infinite; traces are NaN only in frames where the fluorescence is NaN or infinite, and
        the baseline only where that is throughout the window.

    Raises
    ------
    InputError
        If the frame rate is not above 0 Hz, or dF/F is asked of a one-photon recording.
    ValueError
        If the arrays differ in shape.

    References
    ----------
    .. [1] Giovannucci et al., eLife 2019, doi:10.7554/eLife.38173

    Examples
    --------
    >>> import numpy as np
    >>> raw = np.full((1, 90), 60.0)
    >>> raw[0, 40] = 100.0
    >>> light = Fluorescence(raw, raw, behind=np.full((1, 90), 20.0))
    >>> result = dff(light, DffParameters(), frame_rate=30.0)
    >>> result.traces[0, 39:42], result.baseline[0, 0], result.floored
    (array([0. , 0.5, 0. ], dtype=float32), np.float32(80.0), array([False]))
    >>> dff(light, DffParameters(), frame_rate=30.0, modality="one-photon").traces[0, 39:42]
    array([ 0., 40.,  0.], dtype=float32)
    """
    _check_frame_rate(frame_rate)
    kind = _kind(parameters, modality)
    shapes = {np.shape(part) for part in fluorescence if part is not None}
    if len(shapes) != 1:
        raise ValueError("raw, denoised and background fluorescence differ in shape")
    n_cells, n_frames = shapes.pop()
    frames = 0 if parameters.window == 0 else max(1, round(parameters.window * frame_rate))
    parts = [
        CHANGES[kind](_known(fluorescence, run), parameters, frames)
        for run in blocks(n_cells, max(1, VALUES_AT_ONCE // max(1, n_frames)))
    ]
    if not parts:
        parts = [CHANGES[kind](_known(fluorescence, slice(0)), parameters, frames)]
    arrays = (np.concatenate(part) for part in zip(*parts, strict=True))
    names = (kind, parameters.output, parameters.neuropil)
    traces, baseline, floored, percentile, limited = arrays
    return Dff(traces, baseline, floored, percentile, *names, limited)


def dff_components(
    movie: Movie | None,
    components: Delayed,
    frame_rate: float,
    parameters: DffParameters | None = None,
    modality: str = "two-photon",
) -> Delayed:
    """Return lazily the changes of fluorescence of components; nothing is computed here.

    Parameters
    ----------
    movie : Movie, optional
        The registered recording, of one plane; only rings need it, and only for them is it read:
        one pass.
    components : Delayed of Components
        Cells and background of the recording.
    frame_rate : float
        Frames per second, Hz.
    parameters : DffParameters, optional
        How F0 is found.
    modality : {"two-photon", "one-photon"}
        How the recording is marked.

    Returns
    -------
    Delayed of Dff
        The cells are shared out to 16 tasks; each cell is worked on by itself, so the result
        depends neither on that nor on the workers.

    Raises
    ------
    InputError
        If the frame rate is not above 0 Hz, dF/F is asked of a one-photon recording, or the movie
        is of volumes; when computed, if footprints cover the field so that there are no rings.
    ValueError
        If rings are asked for without a movie.

    Examples
    --------
    >>> import scipy.sparse as sp
    >>> from napari_calcium.components import Background
    >>> nothing = Background(sp.csc_array((1, 0)), np.zeros((0, 90)))
    >>> footprint, traces = sp.csc_array([[1.0]]), np.full((1, 90), 60.0)
    >>> cells = Components(footprint, (1, 1), traces, traces, traces, nothing, np.arange(1))
    >>> dff_components(None, delayed(cells), frame_rate=30.0).compute().baseline[0, :2]
    array([120., 120.], dtype=float32)
    """
    parameters = parameters or DffParameters()
    _check_frame_rate(frame_rate)
    _kind(parameters, modality)
    corrected = None
    if parameters.neuropil == "ring":
        if movie is None:
            raise ValueError("neuropil is 'ring', which is read from a movie, but there is none")
        parameters.check_movie(movie.frames.shape)
        ring = (parameters.ring_factor, parameters.ring_gap, parameters.ring_pixels)
        corrected = ring_corrected(movie, components, *ring)
    groups = [
        delayed(_of_group, pure=True)(
            components, corrected, group, parameters, frame_rate, modality
        )
        for group in range(GROUPS)
    ]
    return delayed(_joined, pure=True)(groups)


def dff_to_arrays(result: Dff) -> dict[str, NDArray[Any]]:
    """Return the arrays of the group "dff" of a session by their names.

    Examples
    --------
    >>> zeros = np.zeros((2, 9))
    >>> list(dff_to_arrays(Dff(zeros, zeros, np.zeros(2), np.zeros(2))))
    ['traces', 'baseline', 'floored', 'percentile']
    """
    names = ("traces", "baseline", "floored", "percentile")
    return {name: getattr(result, name) for name in names}


def dff_attrs(result: Dff) -> dict[str, dict[str, Any]]:
    """Return the attributes of the group "dff" of a session and of its arrays.

    Examples
    --------
    >>> zeros = np.zeros((2, 9))
    >>> attrs = dff_attrs(Dff(zeros, zeros, np.ones(2), np.zeros(2), kind="dff", output="raw"))
    >>> attrs[""]["n_floored"], attrs["traces"]
    (2, {'units': '1', 'comment': 'dF/F of the raw fluorescence, as a fraction'})
    """
    units, comment = {
        "dff": ("1", "dF/F of the {} fluorescence, as a fraction"),
        "detrended": ("counts", "detrended {} fluorescence, F - F0"),
    }[result.kind]
    group = {
        "summary": _summary(result),
        "kind": result.kind,
        "output": result.output,
        "neuropil": result.neuropil,
        "n_floored": int(np.count_nonzero(result.floored)),
        "n_trend_limited": int(np.count_nonzero(result.trend_limited)),
    }
    return {"": group, "traces": {"units": units, "comment": comment.format(result.output)}}


def _summary(result: Dff) -> str:
    """Return in a sentence what the traces are and in how many cells they are not to be trusted."""
    names = {"dff": "dF/F (fraction)", "detrended": "Detrended traces (counts)"}
    said = f"{names[result.kind]}; cells: {len(result.traces)}"
    for cells, reason in (
        (result.floored, "with F0 raised to its floor"),
        (result.trend_limited, "with a trend that could not be fitted or is at its bound"),
    ):
        if np.any(cells):
            said += f", {np.count_nonzero(cells)} {reason}"
    return f"{said}."


def _kind(parameters: DffParameters, modality: str) -> str:
    """Return which kind of traces there will be."""
    if modality not in KINDS:
        raise InputError(f"modality is {modality!r}; it must be one of {', '.join(KINDS)}")
    if parameters.kind == "auto":
        return KINDS[modality]
    if parameters.kind == "dff" and KINDS[modality] == "detrended":
        raise InputError(
            "kind is 'dff' but the recording is marked one-photon, whose background is not the "
            "cells' own; set kind to 'auto', or the recording's modality to 'two-photon'"
        )
    return parameters.kind


def _check_frame_rate(frame_rate: float) -> None:
    if not (frame_rate > 0 and math.isfinite(frame_rate)):
        raise InputError(f"frame_rate is {frame_rate} Hz; give the frames recorded per second")


def _of_group(
    components: Components,
    corrected: Floats | None,
    group: int,
    parameters: DffParameters,
    frame_rate: float,
    modality: str,
) -> Dff:
    n_cells = components.n_cells
    cells = slice(group * n_cells // GROUPS, (group + 1) * n_cells // GROUPS)
    if corrected is None:
        light = above_background(components, cells, parameters.dark_level)
    else:
        dark = (1 - parameters.ring_factor) * parameters.dark_level
        light = above_ring(components, corrected, cells, dark)
    return dff(light, parameters, frame_rate, modality)


def _joined(groups: list[Dff]) -> Dff:
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(group, name) for group in groups])
        for name in ("traces", "baseline", "floored", "percentile", "trend_limited")
    }
    return replace(groups[0], **arrays)


# ---------------------------------------------------------------------------- some cells at a time


class _Light(NamedTuple):
    """`Fluorescence` of some cells in double precision, NaN in frames where it is not known."""

    raw: Doubles
    denoised: Doubles
    behind: Doubles | None


class _Change(NamedTuple):
    """The arrays of a `Dff` of some cells."""

    traces: Floats
    baseline: Floats
    floored: NDArray[np.bool_]
    percentile: Floats
    trend_limited: NDArray[np.bool_]


class _Resting(NamedTuple):
    """Takes the resting level of traces: window in frames, 0 for all of them, and percentiles."""

    window: int
    percentiles: Floats

    def __call__(self, traces: Doubles) -> Doubles:
        """Return the level (cell, time)."""
        if self.window:
            return running_percentile(traces, self.window, self.percentiles).astype(np.float64)
        level = whole_percentile(traces, self.percentiles).astype(np.float64)
        return np.repeat(level[:, None], traces.shape[1], axis=1)


def _relative(light: _Light, parameters: DffParameters, window: int) -> _Change:
    """Return dF/F of some cells, the trend divided out."""
    factor, limited = np.ones((len(light.raw), 1)), np.zeros(len(light.raw), bool)
    if parameters.bleaching != "none":
        whole = light.raw if light.behind is None else light.raw + light.behind
        trend = positive_part(_trend(whole, light.raw, parameters))
        factor, limited = trend.values.astype(np.float64), trend.limited
    resting = _Resting(window, _percentiles(light.raw / factor, parameters, window))
    own = f0 = factor * resting(light.raw / factor)
    if light.behind is not None:
        f0 = own + factor * resting(light.behind / factor)
    floor = _f0_floor(light.raw, parameters.floor)[:, None]
    floored = np.any(f0 < floor, axis=1)
    f0 = np.maximum(f0, floor)
    chosen = light.raw
    if parameters.output == "denoised":
        chosen, own = light.denoised, factor * resting(light.denoised / factor)
    change = _finite((chosen - own) / f0)
    return _Change(change, _finite(f0), floored, resting.percentiles, limited)


def _detrended(light: _Light, parameters: DffParameters, window: int) -> _Change:
    """Return F - F0 of some cells, the trend subtracted."""
    slow, limited = _slow(light.raw, light.raw, parameters)
    resting = _Resting(window, _percentiles(light.raw - slow, parameters, window))
    f0 = own = slow + resting(light.raw - slow)
    chosen = light.raw
    if parameters.output == "denoised":
        chosen = light.denoised
        slow, _ = _slow(chosen, light.raw, parameters)
        own = slow + resting(chosen - slow)
    floored = np.zeros(len(f0), bool)
    return _Change(_finite(chosen - own), _finite(f0), floored, resting.percentiles, limited)


def _slow(
    light: Doubles, raw: Doubles, parameters: DffParameters
) -> tuple[Doubles, NDArray[np.bool_]]:
    if parameters.bleaching == "none":
        return np.zeros((len(light), 1)), np.zeros(len(light), bool)
    trend = _trend(light, raw, parameters)
    return trend.values.astype(np.float64), trend.limited


CHANGES: dict[str, Callable[[_Light, DffParameters, int], _Change]] = {
    "dff": _relative,
    "detrended": _detrended,
}


def _known(fluorescence: Fluorescence, cells: slice) -> _Light:
    raw = _doubles(fluorescence.raw[cells])
    denoised = _doubles(fluorescence.denoised[cells])
    known, behind = np.isfinite(raw), None
    if fluorescence.behind is not None:
        behind = _doubles(fluorescence.behind[cells])
        known &= np.isfinite(behind)
        behind = np.where(known, behind, np.nan)
    denoised = np.where(known & np.isfinite(denoised), denoised, np.nan)
    return _Light(np.where(known, raw, np.nan), denoised, behind)


def _doubles(traces: NDArray[np.floating]) -> Doubles:
    """Return traces of single precision in double: what is equal to its baseline stays equal."""
    return np.asarray(np.asarray(traces, np.float32), np.float64)


def _percentiles(traces: Doubles, parameters: DffParameters, window: int) -> Floats:
    if parameters.percentile == 0:
        return resting_percentiles(traces, window)
    return np.full(len(traces), parameters.percentile, np.float32)


def _trend(light: Doubles, raw: Doubles, parameters: DffParameters) -> Trend:
    """Return the trend of the resting level of light, at the percentile of raw."""
    percentiles = _percentiles(raw, parameters, max(1, light.shape[1] // WINDOWS_OF_TREND))
    if parameters.bleaching == "polynomial":
        return polynomial_trend(light, percentiles, parameters.bleaching_order)
    return exponential_trend(light, percentiles)


def _f0_floor(fluorescence: Doubles, multiple: float) -> Doubles:
    """Smallest F0 (cell,), above 0 even for a trace without noise."""
    floor = multiple * noise_level(fluorescence).astype(np.float64)
    known, tiny = np.isfinite(fluorescence), float(np.finfo(np.float32).tiny)
    largest = np.max(np.abs(fluorescence), axis=1, initial=0, where=known)
    silent = np.where(largest > 0, SMALLEST_F0 * largest, 1)
    return np.maximum(np.where(floor > 0, np.maximum(floor, LEAST_FLOOR * largest), silent), tiny)


def _finite(values: Doubles) -> Floats:
    """Return values in single precision, none of them infinite; NaN stays."""
    largest = float(np.finfo(np.float32).max)
    return np.clip(values, -largest, largest).astype(np.float32)
