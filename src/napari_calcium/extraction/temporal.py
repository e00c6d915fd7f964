"""Temporal update: the traces that fit the movie best, given the footprints."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy import linalg

from napari_calcium.deconvolution.decay import (
    SLOWEST_RISE,
    fitted_decay,
    fitted_rise,
    noise_left,
)
from napari_calcium.deconvolution.oasis import deconvolve_cells
from napari_calcium.deconvolution.second_order import (
    coefficients_from_times,
    deconvolve_second_order,
)
from napari_calcium.traces import noise_level

__all__ = ["Denoised", "demixed_traces", "denoise"]

Floats = NDArray[np.float32]

RIDGE = 1e-6

ROUNDS, SETTLED = 4, 0.97
"""Times the noise is estimated from what a fit leaves, and the part it may still change by."""

NORMAL_QUARTER = 0.6745
"""Distance of the lower quartile of normally distributed values from their mean, sd."""


def demixed_traces(footprints: sp.csc_array, products: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the least-squares traces of footprints that may overlap.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, component)
        Cells and background.
    products : ndarray (component, time)
        ``footprints.T @ pixels``, as `napari_calcium.movie.project` gives.

    Returns
    -------
    ndarray (component, time), float32
        Unconstrained, so that noise stays unbiased; a component without pixels gets zeros.

    Examples
    --------
    >>> footprints = sp.csc_array(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    >>> traces = np.array([[1.0, 2.0], [5.0, 0.0]])
    >>> demixed_traces(footprints, footprints.T @ (footprints @ traces)).round(3)
    array([[1., 2.],
           [5., 0.]], dtype=float32)
    """
    if footprints.shape[1] == 0:
        return np.zeros(products.shape, np.float32)
    doubles = footprints.astype(np.float64)
    gram = (doubles.T @ doubles).toarray()
    energy = np.sqrt(np.diagonal(gram))
    scale = np.where(energy > 0, 1 / np.maximum(energy, 1e-30), 0)
    unit = gram * scale[:, None] * scale + RIDGE * np.eye(len(gram))
    factor = linalg.cho_factor(unit)
    solved = linalg.cho_solve(factor, products * scale[:, None])
    return np.ascontiguousarray(solved * scale[:, None], dtype=np.float32)


@dataclass(frozen=True)
class Denoised:
    """Traces with their noise taken away.

    Parameters
    ----------
    calcium : ndarray (cell, time)
        Denoised fluorescence with its baseline, in the traces' unit.
    activity : ndarray (cell, time)
        Non-negative increments of calcium per frame, in the traces' unit.
    baseline, noise : ndarray (cell,)
        Fluorescence without calcium, and standard deviation of the noise, in the traces' unit.
    time_constants : ndarray (cell, 2)
        Of decay and rise, frames; NaN where the model has none.
    """

    calcium: Floats
    activity: Floats
    baseline: Floats
    noise: Floats
    time_constants: Floats


def denoise(
    traces: Floats, order: int = 1, penalized: bool = False, shared: bool = False
) -> Denoised:
    """Take the noise out of traces by the calcium model of an order, fitted to them.

    Parameters
    ----------
    traces : ndarray (cell, time)
        Fluorescence in any unit; any offset; a trace with NaN gives NaN.
    order : {0, 1, 2}
        Of the calcium's autoregression: 0 leaves the traces as they are, 1 decays, 2 also rises.
    penalized : bool
        Whether activity is shrunk until the residual is as large as the noise.
    shared : bool
        Whether all cells get the same time constants, which is faster.

    Returns
    -------
    Denoised
        Of order 0, `calcium` is the trace itself, and `activity` what of it is above the baseline,
        a quarter of the frames being taken for silent.

    References
    ----------
    Pnevmatikakis et al. 2016, 10.1016/j.neuron.2015.11.037.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> calcium = np.stack([np.convolve(rng.random(900) < 0.02, 0.9 ** np.arange(60))[:900]] * 2)
    >>> found = denoise(10 * calcium + rng.normal(size=calcium.shape))
    >>> bool(np.corrcoef(found.calcium[0], calcium[0])[0, 1] > 0.99)
    True
    """
    traces = np.asarray(traces, np.float32)
    noise = noise_level(traces)
    if order == 0:
        return _as_they_are(traces, noise)
    decay = fitted_decay(traces, noise, shared)
    times, rise = -1 / np.log(decay), 0.0
    if order == 2:
        rise, times = fitted_rise(traces, noise, times)
    for _ in range(ROUNDS):
        first = _deconvolved(traces, times, rise, noise, penalized=False)
        before, noise = noise, noise_left(traces, first.calcium, first.activity, noise)
        if np.all(noise >= SETTLED * before):
            break
    return _deconvolved(traces, times, rise, noise, penalized)


def _deconvolved(
    traces: Floats, decay: NDArray[np.floating], rise: float, noise: Floats, penalized: bool
) -> Denoised:
    """Denoise traces by a model whose time constants, in frames, are known."""
    constants = np.full((len(traces), 2), np.nan, np.float32)
    constants[:, 0] = decay
    rises = np.minimum(rise, SLOWEST_RISE * decay)
    if not rise:
        found = deconvolve_cells(traces, np.exp(-1 / decay), noise, penalized=penalized)
        return Denoised(found.calcium, found.activity, found.baseline, noise, constants)
    constants[:, 1] = rises
    calcium, activity = np.empty_like(traces), np.empty_like(traces)
    baseline = np.empty(len(traces), np.float32)
    for cell, trace in enumerate(traces):
        g1, g2 = coefficients_from_times(decay[cell], rises[cell], 1.0)
        each = deconvolve_second_order(trace, (g1, g2), float(noise[cell]), penalized=penalized)
        calcium[cell] = each.calcium + np.float32(each.baseline)
        activity[cell], baseline[cell] = each.activity, each.baseline
    return Denoised(calcium, activity, baseline, noise, constants)


def _typical_noise(traces: Floats) -> Floats:
    """Return the noise by the typical second difference, which few fast transients do not raise."""
    if traces.shape[1] < 3:
        return np.zeros(len(traces), np.float32)
    changes = np.abs(np.diff(traces, n=2, axis=1))
    return np.asarray(np.median(changes, axis=1) / (NORMAL_QUARTER * np.sqrt(6)), np.float32)


def _as_they_are(traces: Floats, noise: Floats) -> Denoised:
    noise = np.minimum(noise, _typical_noise(traces))
    quarter = np.quantile(traces, 0.25, axis=1) if traces.shape[1] else np.zeros(len(traces))
    baseline = (quarter + NORMAL_QUARTER * noise).astype(np.float32)
    activity = np.maximum(traces - baseline[:, None], 0)
    constants = np.full((len(traces), 2), np.nan, np.float32)
    return Denoised(traces, activity, baseline, noise, constants)
