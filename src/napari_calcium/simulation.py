"""Recordings with known truth: two-photon movies of cells, neuropil, motion and noise.

Light is modelled in photons on a scene larger than the field of view. Each frame is sampled out of
the moving scene, so what enters at a border is new tissue and never the opposite edge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import dask.array as da
import numpy as np
import scipy.ndimage as ndi
import scipy.signal
import scipy.sparse as sp
from dask.base import tokenize
from dask.delayed import delayed
from numba import njit
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.movie import Movie
from napari_calcium.parameters import Parameters, parameter
from napari_calcium.scenery import (
    WIDTH,
    blob,
    columns,
    dendrite,
    shadow,
    smooth_noise,
    soma,
    vessel,
    vignette,
)
from napari_calcium.truth import Truth

__all__ = [
    "Simulation",
    "SimulationParameters",
    "simulate",
]

Floats = NDArray[np.float32]
Integers = NDArray[np.integer[Any]]

FRAMES_PER_BLOCK = 64
"""Frames of one block of the movie; each block has a random stream of its own."""

MARGIN_STEP = 16
"""The scene's margin is a multiple of this, px: small changes of motion keep the same tissue."""

TISSUE, PLACES, ACTIVITY, NEUROPIL, MOTION, NOISE, PROCESSES, PULSE = range(8)
"""Keys of the independent random streams of one seed."""


@dataclass(frozen=True)
class SimulationParameters(Parameters):
    """What is simulated: field, cells, neuropil, motion, light and camera.

    Parameters
    ----------
    height : int
        Height of the field of view, px.
    width : int
        Width of the field of view, px.
    n_frames : int
        Number of frames.
    frame_rate : float
        Frames per second, Hz.
    n_cells : int
        Cells in focus, with their centre in the field; these are the truth.
    cell_radius : float
        Mean radius of a soma, px.
    radius_spread : float
        Largest deviation of a soma's radius from the mean one, relative to it.
    nucleus : float
        How dark nuclei are: 1 as where they hold little indicator, 0 where somata are filled.
    n_out_of_focus : int
        Large, blurred, weak cells above and below the plane; not in the truth as cells.
    n_dendrites : int
        Thin, winding, active processes in the plane, 0.3 to 0.6 radii of a cell wide and 3 to 12
        long; not in the truth as cells.
    n_boutons : int
        Small active spots (boutons, spines, processes that cross the plane), 0.35 to 0.7 radii of a
        cell wide; not in the truth as cells.
    cell_brightness : float
        Resting brightness of a soma relative to the neuropil around it, which it adds to.
    spike_rate : float
        Median rate of spikes of a cell that is not silent, Hz.
    silent_fraction : float
        Part of the cells that have none to two spikes.
    spike_amplitude : float
        Peak of the transient of one spike relative to the cell's resting brightness.
    rise_time : float
        Time constant of a transient's rise, s.
    decay_time : float
        Time constant of a transient's decay, s.
    neuropil : float
        Standard deviation of the neuropil's activity relative to its resting brightness.
    pulsation : float
        Largest relative change of the blood vessel's width, by slow vasomotion and a faster beat.
    bleaching : float
        Part of the brightness lost from the first to the last frame.
    motion_rigid : float
        Largest shift of the whole frame along an axis, px.
    motion_piecewise : float
        Largest deviation of a place in the frame from the frame's shift, px.
    photons : float
        Mean number of photons per pixel and frame, of the tissue at rest.
    gain : float
        Counts per photon.
    read_noise : float
        Standard deviation of the Gaussian noise of the electronics, counts.
    offset : float
        Distance of darkness from 0, counts: above 0 for uint16, below 0 for int16, where dim pixels
        are negative as those of ScanImage.
    dtype : {"uint16", "int16"}
        Integer type of the frames.
    seed : int
        Seed of all random numbers; the same parameters always make the same recording.

    Examples
    --------
    >>> SimulationParameters(rise_time=2.0)
    Traceback (most recent call last):
    ...
    napari_calcium.errors.InputError: rise_time is 2 s; it must be below decay_time, 0.6 s
    """

    height: int = parameter(96, unit="px", minimum=8)
    width: int = parameter(128, unit="px", minimum=8)
    n_frames: int = parameter(1000, minimum=2)
    frame_rate: float = parameter(30.0, unit="Hz", above=0)
    n_cells: int = parameter(30, minimum=0)
    cell_radius: float = parameter(5.0, unit="px", minimum=1)
    radius_spread: float = parameter(0.2, minimum=0, maximum=0.6)
    nucleus: float = parameter(1.0, minimum=0, maximum=1)
    n_out_of_focus: int = parameter(12, minimum=0)
    n_dendrites: int = parameter(0, minimum=0)
    n_boutons: int = parameter(0, minimum=0)
    cell_brightness: float = parameter(0.7, above=0)
    spike_rate: float = parameter(0.5, unit="Hz", minimum=0)
    silent_fraction: float = parameter(0.1, minimum=0, maximum=1)
    spike_amplitude: float = parameter(0.6, minimum=0)
    rise_time: float = parameter(0.07, unit="s", minimum=0)
    decay_time: float = parameter(0.6, unit="s", above=0)
    neuropil: float = parameter(0.08, minimum=0)
    pulsation: float = parameter(0.0, minimum=0, maximum=0.9)
    bleaching: float = parameter(0.1, minimum=0, maximum=0.99)
    motion_rigid: float = parameter(3.0, unit="px", minimum=0)
    motion_piecewise: float = parameter(0.8, unit="px", minimum=0)
    photons: float = parameter(12.0, unit="photons", above=0)
    gain: float = parameter(10.0, unit="counts/photon", above=0)
    read_noise: float = parameter(8.0, unit="counts", minimum=0)
    offset: float = parameter(200.0, unit="counts", minimum=0)
    dtype: Literal["uint16", "int16"] = "uint16"
    seed: int = parameter(0, minimum=0)

    def check(self) -> None:
        """Raise `InputError` where the rise is not faster than the decay."""
        if self.rise_time >= self.decay_time:
            raise InputError(
                f"rise_time is {self.rise_time:g} s; "
                f"it must be below decay_time, {self.decay_time:g} s"
            )


@dataclass(frozen=True)
class Simulation:
    """A simulated recording.

    Parameters
    ----------
    movie : Movie
        The recording, made block by block when it is read.
    truth : Truth
        What really happened in it.
    scenery : mapping of str to scipy.sparse.csc_array (pixel, n)
        Where it has what is no cell in focus, without motion: "dendrite", "bouton", "out of focus"
        and "vessel", whose weights are its shadow. Unit norm, only what lies in the field.
    """

    movie: Movie
    truth: Truth
    scenery: Mapping[str, sp.csc_array]


def simulate(parameters: SimulationParameters) -> Simulation:
    """Simulate a two-photon recording with known truth.

    Parameters
    ----------
    parameters : SimulationParameters
        Field, cells, neuropil, motion, light and camera.

    Returns
    -------
    Simulation
        The movie, a lazy array (time, y, x) in blocks of `FRAMES_PER_BLOCK` frames which never
        holds more than one frame as floats in a task, and its truth. The same parameters make the
        same movie, whatever the scheduler and whichever frames are read.

    Notes
    -----
    Somata are irregular, with a dark nucleus, a static resting brightness and transients that are
    differences of exponentials, the second-order autoregression of Pnevmatikakis et al. (2016),
    `doi:10.1016/j.neuron.2015.11.037`, linear in the spikes. Neuropil varies smoothly in space,
    slowly and fast in time, and in part with the cells near by. Dendrites, boutons and a pulsating
    vessel are left out unless asked for, and change nothing of the cells' places, sizes and spikes.
    The light of the moving scene is interpolated by bicubic splines, bleached, and read out with
    Poisson and Gaussian noise.

    Examples
    --------
    >>> simulation = simulate(SimulationParameters(height=37, width=53, n_frames=90, n_cells=5))
    >>> simulation.movie.frames.shape, simulation.truth.traces.shape
    ((90, 37, 53), (5, 90))
    """
    scene, spikes, rest = _scene(parameters)
    token = tokenize(parameters.to_mapping())
    n, field = parameters.n_frames, (parameters.height, parameters.width)
    sizes = tuple(min(FRAMES_PER_BLOCK, n - start) for start in range(0, n, FRAMES_PER_BLOCK))
    frames = da.map_blocks(
        _render_block,
        scene=delayed(scene, name=f"scene-{token}", traverse=False),
        chunks=(sizes, (field[0],), (field[1],)),
        dtype=parameters.dtype,
        meta=np.empty((0, 0, 0), parameters.dtype),
        name=f"simulation-{token}",
    )
    movie = Movie(frames, parameters.frame_rate)
    return Simulation(movie, _truth(scene, spikes, rest), _scenery(scene))


# ---------------------------------------------------------------------------------------- scene


@dataclass(frozen=True)
class _Scene:
    """All that a frame is made of, in photons; the scene is the field and its margin."""

    parameters: SimulationParameters
    margin: int
    tissue: Floats  # (y, x) what never changes
    neuropil: Floats  # (y, x) what the neuropil's activity multiplies
    neuropil_activity: Floats  # (time, node_y, node_x)
    neuropil_y: Floats  # (y, node_y) smooth weights of the nodes
    neuropil_x: Floats  # (x, node_x)
    beside_vessel: NDArray[np.float64]  # (y, x) distance from its middle, in its half-widths
    pulse: Floats  # (time,) the vessel's width, relative
    sources: sp.csc_array  # (pixel of the scene, source): cells of the truth first, processes last
    source_activity: Floats  # (source, time) with the resting brightness
    bleaching: Floats  # (time,)
    shifts_piecewise: Floats  # (time, grid_y, grid_x, 2)
    grid_y: Floats
    grid_x: Floats


def _random(parameters: SimulationParameters, *key: int) -> Generator:
    return default_rng(SeedSequence(parameters.seed, spawn_key=key))


def _margin(parameters: SimulationParameters) -> int:
    reach = parameters.motion_rigid + parameters.motion_piecewise + 3  # 3: taps of the spline
    return MARGIN_STEP * math.ceil(reach / MARGIN_STEP)


def _scene(parameters: SimulationParameters) -> tuple[_Scene, NDArray[np.int32], Floats]:
    """Return the scene, the spikes of the cells, and the resting brightness of all sources."""
    margin = _margin(parameters)
    size = (parameters.height + 2 * margin, parameters.width + 2 * margin)
    tissue, shading, beside_vessel = _tissue(parameters, size)
    places, cells = _sources(parameters, size, margin, shading)
    processes, rest_of_processes, spikes_of_processes = _processes(parameters, size, shading)
    sources = sp.csc_array(sp.hstack((cells, processes), format="csc"))
    rest = np.concatenate((_resting(parameters, cells.shape[1]), rest_of_processes))
    still = tissue + (sources @ rest).reshape(size)
    scale = np.float32(parameters.photons / _inside(still, margin).mean())
    tissue, rest = tissue * scale, rest * scale
    spikes = _spikes(parameters, cells.shape[1])
    transients = _transients(parameters, np.concatenate((spikes, spikes_of_processes)))
    activity = rest[:, None] * (1 + _amplitudes(parameters, len(rest))[:, None] * transients)
    nodes = _nodes(size)
    grid_y, grid_x, shifts = _shifts(parameters)
    scene = _Scene(
        parameters=parameters,
        margin=margin,
        tissue=tissue,
        neuropil=shading * np.float32(scale),
        neuropil_activity=_neuropil_activity(parameters, nodes, places, transients[: len(places)]),
        neuropil_y=_smooth_weights(size[0], nodes[0]),
        neuropil_x=_smooth_weights(size[1], nodes[1]),
        beside_vessel=beside_vessel,
        pulse=_pulse(parameters),
        sources=sources,
        source_activity=activity.astype(np.float32),
        bleaching=_bleaching(parameters),
        shifts_piecewise=shifts,
        grid_y=grid_y,
        grid_x=grid_x,
    )
    return scene, spikes[: parameters.n_cells], rest


def _inside(image: NDArray[Any], margin: int) -> NDArray[Any]:
    return image[margin:-margin, margin:-margin]


def _tissue(
    parameters: SimulationParameters, size: tuple[int, int]
) -> tuple[Floats, Floats, NDArray[np.float64]]:
    """Return the neuropil at rest, the brightness that shades everything, and where the vessel is.

    The vessel's place is the distance from its middle in its half-widths.
    """
    random = _random(parameters, TISSUE)
    uneven = np.exp(0.18 * smooth_noise(random, size, 0.2 * min(size)))
    beside_vessel = vessel(random, size)
    shading = uneven * vignette(size) * shadow(beside_vessel)
    grain = 0.15 * smooth_noise(random, size, 0.9) + 0.13 * smooth_noise(random, size, 2.5)
    dark = np.minimum(smooth_noise(random, size, 2.2) + 1.6, 0)  # unlabelled somata
    tissue = np.asarray(shading * np.exp(grain + 0.4 * dark), np.float32)
    return tissue, shading, beside_vessel


def _sources(
    parameters: SimulationParameters, size: tuple[int, int], margin: int, shading: Floats
) -> tuple[Floats, sp.csc_array]:
    """Return places (source, 2) and images (pixel, source): truth, margin, out of focus."""
    random = _random(parameters, PLACES)
    cells = _cell_places(parameters, size, margin, random)
    blurred = random.uniform((0, 0), size, (parameters.n_out_of_focus, 2))
    radius = parameters.cell_radius
    shape = (radius, parameters.radius_spread, parameters.nucleus)
    images = [soma(place, *shape, size, random) for place in cells]
    images += [blob(place, radius * random.uniform(1.2, 2.2), size) for place in blurred]
    places = np.concatenate((cells, blurred)).astype(np.float32)
    return places, columns(images, shading)


def _cell_places(
    parameters: SimulationParameters, size: tuple[int, int], margin: int, random: Generator
) -> NDArray[np.float64]:
    """Centres of the cells in the field, then of those which only motion brings into it."""
    radius = parameters.cell_radius
    field = np.array((parameters.height, parameters.width))
    places: list[NDArray[np.float64]] = []
    edge = np.minimum(0.4 * radius, 0.4 * field)
    for _ in range(parameters.n_cells):
        places.append(_apart(places, margin + edge, margin + field - edge, radius, random))
    density = parameters.n_cells / (field[0] * field[1])
    low, high = margin - radius - 1, margin + field + radius
    for place in random.uniform((0, 0), size, (round(density * size[0] * size[1]), 2)):
        if np.any((place < low) | (place > high)):
            places.append(place)
    return np.array(places).reshape(-1, 2)


def _apart(
    places: list[NDArray[np.float64]], low: Any, high: Any, radius: float, random: Generator
) -> NDArray[np.float64]:
    """Return a place that is, if one is found, 1.3 radii from the others: some somata overlap."""
    for _ in range(50):
        place: NDArray[np.float64] = random.uniform(low, high)
        if all(np.hypot(*(place - other)) > 1.3 * radius for other in places):
            break
    return place


def _processes(
    parameters: SimulationParameters, size: tuple[int, int], shading: Floats
) -> tuple[sp.csc_array, Floats, NDArray[np.int32]]:
    """Return images, resting brightness and spikes of dendrites and boutons, in this order."""
    radius, n_dendrites = parameters.cell_radius, parameters.n_dendrites
    n = n_dendrites + parameters.n_boutons
    random = _random(parameters, PROCESSES, 0)
    starts = random.uniform((0, 0), size, (n, 2))
    images = [dendrite(start, radius, size, random) for start in starts[:n_dendrites]]
    widths = random.uniform(0.35, 0.7, n - n_dendrites) * radius
    images += [blob(*each, size) for each in zip(starts[n_dendrites:], widths / WIDTH, strict=True)]
    rest = 0.7 * parameters.cell_brightness * np.exp(0.35 * random.standard_normal(n))
    spikes = _bursts(parameters, _random(parameters, PROCESSES, 1), n)
    return columns(images, shading), rest.astype(np.float32), spikes.astype(np.int32)


# ------------------------------------------------------------------------------------- activity


def _resting(parameters: SimulationParameters, n_sources: int) -> Floats:
    """Resting brightness of each source; those out of focus are weak."""
    random = _random(parameters, ACTIVITY, 0)
    rest = parameters.cell_brightness * np.exp(0.35 * random.standard_normal(n_sources))
    rest[n_sources - parameters.n_out_of_focus :] *= 0.35
    return rest.astype(np.float32)


def _amplitudes(parameters: SimulationParameters, n_sources: int) -> Floats:
    random = _random(parameters, ACTIVITY, 1)
    spread = np.exp(0.3 * random.standard_normal(n_sources))
    return (parameters.spike_amplitude * spread).astype(np.float32)


def _wander(
    random: Generator, shape: tuple[int, int], time_constant: float, frame_rate: float
) -> Floats:
    """Return Ornstein-Uhlenbeck processes (n, time) of unit variance; `time_constant` in s."""
    memory = math.exp(-1 / (time_constant * frame_rate))
    noise = random.standard_normal(shape)
    noise[:, 1:] *= math.sqrt(1 - memory**2)
    return scipy.signal.lfilter([1.0], [1.0, -memory], noise).astype(np.float32)


def _spikes(parameters: SimulationParameters, n_sources: int) -> NDArray[np.int32]:
    """Return spike counts (source, time), those of the silent cells in their place."""
    random = _random(parameters, ACTIVITY, 2)
    n = parameters.n_frames
    counts = _bursts(parameters, random, n_sources)
    silent = random.permutation(parameters.n_cells)
    for cell in silent[: round(parameters.silent_fraction * parameters.n_cells)]:
        counts[cell] = 0
        np.add.at(counts[cell], random.integers(0, n, random.integers(0, 3)), 1)
    return counts.astype(np.int32)


def _bursts(
    parameters: SimulationParameters, random: Generator, n_sources: int
) -> NDArray[np.int64]:
    """Return spike counts (source, time): bursts, with a little in common between sources."""
    n, rate = parameters.n_frames, parameters.frame_rate
    rates = parameters.spike_rate * np.exp(0.5 * random.standard_normal(n_sources))
    own = _wander(random, (n_sources, n), 1.0, rate)
    common = _wander(random, (1, n), 2.0, rate)
    state = 1.4 * (0.9 * own + 0.45 * common)
    return random.poisson(rates[:, None] / rate * np.exp(state - 1.0))


def _transients(parameters: SimulationParameters, spikes: NDArray[np.int32]) -> Floats:
    """Return transients (source, time) whose peak for one spike is 1: a difference of exponentials.

    The sum over earlier frames is the second-order autoregression
    ``c[t] = (d + r) c[t - 1] - d r c[t - 2] + s[t]``.
    """
    decay = math.exp(-1 / (parameters.decay_time * parameters.frame_rate))
    rise = 0.0
    if parameters.rise_time > 0:
        rise = math.exp(-1 / (parameters.rise_time * parameters.frame_rate))
    lags = np.arange(1, 2 + math.ceil(10 * parameters.rise_time * parameters.frame_rate))
    peak = np.max((decay**lags - rise**lags) / (decay - rise))
    model = [1.0, -(decay + rise), decay * rise]
    return scipy.signal.lfilter([1 / peak], model, spikes).astype(np.float32)


def _pulse(parameters: SimulationParameters) -> Floats:
    """Return the vessel's relative width (time,): vasomotion of 0.1 to 0.3 Hz, a beat of 2 to 6."""
    random = _random(parameters, PULSE)
    time = np.arange(parameters.n_frames) / parameters.frame_rate
    slow, fast = random.uniform(0.1, 0.3), random.uniform(2, 6)
    drift = 0.8 * _wander(random, (2, parameters.n_frames), 10.0, parameters.frame_rate)
    phases = 2 * math.pi * (np.outer((slow, fast), time) + random.uniform(0, 1, (2, 1))) + drift
    change = np.array((0.75, 0.25)) @ np.sin(phases)
    return np.asarray(1 + parameters.pulsation * change, dtype=np.float32)


def _bleaching(parameters: SimulationParameters) -> Floats:
    time = np.linspace(0, 1, parameters.n_frames)
    return ((1 - parameters.bleaching) ** time).astype(np.float32)


def _nodes(size: tuple[int, int], spacing: float = 32.0) -> tuple[Floats, Floats]:
    """Places along y and x, about `spacing` px apart, from the first pixel to the last."""
    counts = (max(2, 1 + round((n - 1) / spacing)) for n in size)
    y, x = (np.linspace(0, n - 1, c, dtype=np.float32) for n, c in zip(size, counts, strict=True))
    return y, x


def _smooth_weights(length: int, nodes: Floats) -> Floats:
    """Return weights (pixel, node) that sum to 1 and vary smoothly."""
    sigma = 0.6 * (nodes[1] - nodes[0])
    away = np.arange(length, dtype=np.float32)[:, None] - nodes
    weights = np.exp(-(away**2) / (2 * sigma**2))
    return np.asarray(weights / weights.sum(1, keepdims=True), dtype=np.float32)


def _spread_out(values: Floats, along_y: Floats, along_x: Floats) -> Floats:
    """Return values (..., y, x) of nodes (..., node_y, node_x), given each axis' weights.

    Not by BLAS, whose rounding depends on the number of its threads: one Poisson number that comes
    out differently changes all that follow.
    """
    rows = np.einsum("...nm,xm->...nx", values, along_x)
    return np.asarray(np.einsum("yn,...nx->...yx", along_y, rows))


def _neuropil_activity(
    parameters: SimulationParameters,
    nodes: tuple[Floats, Floats],
    places: Floats,
    transients: Floats,
) -> Floats:
    """Return the neuropil's relative change (time, node_y, node_x)."""
    random = _random(parameters, NEUROPIL)
    y, x = (axis.ravel() for axis in np.meshgrid(*nodes, indexing="ij"))
    shape, rate = (len(y), parameters.n_frames), parameters.frame_rate
    near = np.hypot(y[:, None] - places[:, 0], x[:, None] - places[:, 1])
    cells = _unit(np.einsum("ns,st->nt", np.exp(-((near / 40) ** 2)), transients))
    local = 0.7 * _wander(random, shape, 4.0, rate) + 0.5 * _wander(random, shape, 0.4, rate)
    common = 0.6 * _wander(random, (1, shape[1]), 8.0, rate)
    common += 0.4 * _wander(random, (1, shape[1]), parameters.decay_time, rate)
    activity = _unit(local + common + 0.5 * cells).T.reshape(-1, len(nodes[0]), len(nodes[1]))
    weights = [_smooth_weights(round(n[-1]) + 1, n)[np.round(n).astype(int)] for n in nodes]
    spread = float(_spread_out(activity, *weights).std(0).mean())
    return np.asarray(activity * (parameters.neuropil / spread), dtype=np.float32)


def _unit(rows: Floats) -> Floats:
    """Return rows of zero mean and, unless they are flat, unit variance."""
    rows = rows - rows.mean(1, keepdims=True)
    spread = rows.std(1, keepdims=True)
    return np.asarray(rows / np.where(spread > 0, spread, 1), dtype=np.float32)


# --------------------------------------------------------------------------------------- motion


def _shifts(parameters: SimulationParameters) -> tuple[Floats, Floats, Floats]:
    """Return the grid's places along y and x, and the shifts (time, grid_y, grid_x, 2)."""
    random = _random(parameters, MOTION)
    grid_y, grid_x = _nodes((parameters.height, parameters.width))
    rigid = _largest(_jerks(parameters, random), parameters.motion_rigid, axis=1)
    deviation = _deviation(parameters, grid_y, grid_x, random)
    deviation = _largest(deviation, parameters.motion_piecewise, axis=None)
    shifts = rigid.T[:, None, None, :] + deviation
    return grid_y, grid_x, np.ascontiguousarray(shifts, dtype=np.float32)


def _largest(values: Floats, largest: float, axis: int | None) -> Floats:
    """Scale values so that the largest magnitude along the axis is the one given."""
    peak = np.abs(values).max(axis=axis, keepdims=True)
    return np.asarray(values * (largest / np.maximum(peak, 1e-9)), dtype=np.float32)


def _jerks(parameters: SimulationParameters, random: Generator) -> Floats:
    """Return paths (2, time) of zero mean: slow drift, jitter, and bouts of fast movement."""
    shape, rate = (2, parameters.n_frames), parameters.frame_rate
    drift = _wander(random, shape, 6.0, rate)
    bouts = np.exp(0.8 * _wander(random, (1, shape[1]), 1.5, rate) - 0.6)
    path = drift + bouts * _wander(random, shape, 0.2, rate) + 0.1 * random.normal(size=shape)
    return np.asarray(path - path.mean(1, keepdims=True), dtype=np.float32)


def _deviation(
    parameters: SimulationParameters, grid_y: Floats, grid_x: Floats, random: Generator
) -> Floats:
    """Return smooth fields (time, grid_y, grid_x, 2) of zero mean over the frame."""
    y, x = grid_y / grid_y[-1], grid_x / grid_x[-1]
    n, rate = parameters.n_frames, parameters.frame_rate
    field = np.zeros((n, len(y), len(x), 2), np.float32)
    for wave_y, wave_x, weight in ((1, 0, 1.0), (2, 0, 0.5), (0, 1, 0.7), (1, 1, 0.5)):
        mode = weight * np.outer(np.cos(np.pi * wave_y * y), np.cos(np.pi * wave_x * x))
        mode -= mode.mean()
        paths = 0.6 * _wander(random, (2, n), 4.0, rate) + 0.5 * _wander(random, (2, n), 0.3, rate)
        paths -= paths.mean(1, keepdims=True)
        field += paths.T[:, None, None, :] * mode[:, :, None].astype(np.float32)
    return field


# --------------------------------------------------------------------------------------- frames


def _render_block(scene: _Scene, block_id: tuple[int, int, int] = (0, 0, 0)) -> Integers:
    """Return the frames of one block, made one by one from its own random stream."""
    parameters = scene.parameters
    random = _random(parameters, NOISE, block_id[0])
    start = block_id[0] * FRAMES_PER_BLOCK
    stop = min(start + FRAMES_PER_BLOCK, parameters.n_frames)
    frames = np.empty((stop - start, parameters.height, parameters.width), parameters.dtype)
    along_y = _linear_weights(parameters.height, scene.grid_y)
    along_x = _linear_weights(parameters.width, scene.grid_x)
    for frame, out in zip(range(start, stop), frames, strict=True):
        shifts = np.moveaxis(scene.shifts_piecewise[frame], -1, 0)
        out[...] = _read_out(
            parameters, _light(scene, frame, _spread_out(shifts, along_y, along_x)), random
        )
    return frames


def _light(scene: _Scene, frame: int, shifts: Floats) -> Floats:
    """Return the photons expected in one frame (y, x), given the shift of each pixel."""
    activity = _spread_out(scene.neuropil_activity[frame], scene.neuropil_y, scene.neuropil_x)
    light = (scene.sources @ scene.source_activity[:, frame]).reshape(scene.tissue.shape)
    light += scene.tissue + scene.neuropil * activity
    light *= scene.bleaching[frame]
    if scene.parameters.pulsation:
        pulsing = shadow(scene.beside_vessel, scene.pulse[frame])
        light *= pulsing / shadow(scene.beside_vessel)
    coefficients = ndi.spline_filter(light, 3, output=np.float32)
    return np.asarray(_sample(coefficients, shifts, scene.margin))


def _linear_weights(length: int, nodes: Floats) -> Floats:
    """Return weights (pixel, node) of linear interpolation between nodes."""
    pixels = np.arange(length)
    columns = [np.interp(pixels, nodes, unit) for unit in np.eye(len(nodes))]
    return np.stack(columns, axis=1).astype(np.float32)


def _read_out(parameters: SimulationParameters, light: Floats, random: Generator) -> Integers:
    """Return the counts (y, x) of the light: shot noise, gain, read noise, offset, rounding."""
    counts = parameters.gain * random.poisson(np.maximum(light, 0))
    counts += parameters.read_noise * random.standard_normal(light.shape, dtype=np.float32)
    counts += -parameters.offset if parameters.dtype == "int16" else parameters.offset
    limits = np.iinfo(parameters.dtype)
    return np.asarray(np.clip(np.rint(counts), limits.min, limits.max), dtype=parameters.dtype)


@njit(nogil=True, cache=True)
def _sample(coefficients, shifts, margin):  # type: ignore[no-untyped-def]
    """Return the cubic spline (y, x) at each pixel's place plus its shift (2, y, x)."""
    height, width = shifts.shape[1:]
    out = np.empty((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            place_y = np.float32(y + margin) + shifts[0, y, x]
            place_x = np.float32(x + margin) + shifts[1, y, x]
            row, column = int(np.floor(place_y)), int(np.floor(place_x))
            weights_y = _spline(place_y - np.float32(row))
            weights_x = _spline(place_x - np.float32(column))
            total = np.float32(0.0)
            for i in range(4):
                line = np.float32(0.0)
                for j in range(4):
                    line += weights_x[j] * coefficients[row + i - 1, column + j - 1]
                total += weights_y[i] * line
            out[y, x] = total
    return out


@njit(nogil=True, cache=True)
def _spline(t):  # type: ignore[no-untyped-def]
    """Return the cubic B-spline's weights of the four neighbours of a place."""
    s, sixth = np.float32(1.0) - t, np.float32(1 / 6)
    return (
        s * s * s * sixth,
        (np.float32(4.0) + np.float32(3.0) * t * t * (t - np.float32(2.0))) * sixth,
        (np.float32(4.0) + np.float32(3.0) * s * s * (s - np.float32(2.0))) * sixth,
        t * t * t * sixth,
    )


# ---------------------------------------------------------------------------------------- truth


def _truth(scene: _Scene, spikes: NDArray[np.int32], rest: Floats) -> Truth:
    parameters, margin = scene.parameters, scene.margin
    still = scene.tissue + (scene.sources @ rest).reshape(scene.tissue.shape)
    offset = -parameters.offset if parameters.dtype == "int16" else parameters.offset
    footprints, norms = _cropped(scene.sources[:, : parameters.n_cells], scene.tissue.shape, margin)
    traces = scene.source_activity[: parameters.n_cells] * scene.bleaching
    return Truth(
        footprints=footprints,
        shape=(parameters.height, parameters.width),
        traces=(traces * (parameters.gain * norms[:, None])).astype(np.float32),
        spikes=spikes,
        template=(parameters.gain * _inside(still, margin) + offset).astype(np.float32),
        shifts=scene.shifts_piecewise.mean((1, 2)),
        shifts_piecewise=scene.shifts_piecewise,
        grid_y=scene.grid_y,
        grid_x=scene.grid_x,
        frame_rate=parameters.frame_rate,
    )


def _scenery(scene: _Scene) -> dict[str, sp.csc_array]:
    """Return where dendrites, boutons, what is out of focus and the vessel are in the field."""
    parameters, size = scene.parameters, scene.tissue.shape
    counts = {
        "bouton": parameters.n_boutons,
        "dendrite": parameters.n_dendrites,
        "out of focus": parameters.n_out_of_focus,
    }
    dark = 1 - shadow(scene.beside_vessel)
    sources = {"vessel": sp.csc_array(np.where(dark > 0.03, dark, 0).reshape(-1, 1))}
    last = scene.sources.shape[1]
    for kind, count in counts.items():
        sources[kind] = sp.csc_array(scene.sources[:, last - count : last])
        last -= count
    cropped = {kind: _cropped(each, size, scene.margin) for kind, each in sources.items()}
    return {kind: sp.csc_array(each[:, norms > 0]) for kind, (each, norms) in cropped.items()}


def _cropped(
    sources: sp.csc_array, size: tuple[int, ...], margin: int
) -> tuple[sp.csc_array, Floats]:
    """Return footprints of unit norm in the field, and the norms they had."""
    pixels = _inside(np.arange(size[0] * size[1]).reshape(size), margin).ravel()
    footprints = sp.csc_array(sources.tocsr()[pixels])
    norms = np.sqrt(np.asarray(footprints.multiply(footprints).sum(0), np.float64)).ravel()
    scale = sp.diags_array(1 / np.where(norms > 0, norms, 1))
    scaled = sp.csc_array(footprints @ scale, dtype=np.float32)
    scaled.sort_indices()
    return scaled, norms.astype(np.float32)
