"""Simulated examples for the classifier: what our own extraction finds, named by the known truth.

A classifier learns the mistakes that it is shown. So the footprints are not drawn but found, by
source extraction with settings that let through what is no cell, on many small recordings whose
truth is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import scipy.sparse as sp
from dask.delayed import Delayed
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from scipy.optimize import nnls

from napari_calcium.errors import InputError
from napari_calcium.evaluation.crops import SIDE, footprint_crops
from napari_calcium.evaluation.examples import Examples, joined
from napari_calcium.extraction.cnmf import SourceExtractionParameters, extract_sources
from napari_calcium.footprints import at_border, dilated_support, masks, unit
from napari_calcium.movie import Movie
from napari_calcium.pipeline.run import Progress, compute_graph
from napari_calcium.simulation import SimulationParameters, simulate
from napari_calcium.truth import Truth

__all__ = ["footprint_kinds", "recording_examples", "simulated_examples"]

Floats = NDArray[np.float32]

CELLS = ("soma",)
"""Kinds that are cells; all others are none."""

SAME, OTHER = 0.8, 0.7
"""Cosine with a true cell from which a footprint is that cell, and below which it is none."""

WHOLE, HALF, INSIDE = 0.65, 0.6, 0.7
"""Part of a cell's area that a good picture of it covers at least and a half at most, and part of
the half's energy in that cell."""

CENTRED, ASIDE, SMALL = 0.15, 0.3, 0.6
"""Distance from the cell's centre, in its radii, up to which a footprint with gaps is yet of the
whole cell, and from which it is of one side (a half disc: 0.42); and its size in those of the cell,
as the spread of its pixels, up to which it is a piece."""

BOTH = 0.4
"""Part of its area of which a pair covers each of its cells, at least."""

SHARED = (0.35, 0.45)
"""Weight of a second cell up to which a footprint is one cell, and from which it is a pair."""

IN_PLACE = 0.35
"""Area in common over area of both from which what is no cell may be a bad picture of one."""

ADDED = 0.2
"""Halves, and pairs, that are made for each cell that was found."""

COPIES = (2, 3)
"""Crops of each footprint that is no cell, and of each cell: there are fewer of these."""

JITTER = 0.15
"""Standard deviation of the logarithm of a crop's size."""


def simulated_examples(
    seeds: Sequence[int],
    *,
    progress: Callable[[Progress], None] | None = None,
    workers: int | None = None,
) -> Examples:
    """Make examples from simulated recordings, a few seconds each.

    Parameters
    ----------
    seeds : sequence of int
        One recording each, which depends on its seed and on nothing else.
    progress : callable, optional
        Called with a `Progress` of "classifier_examples" after each recording.
    workers : int, optional
        Tasks at a time; as many as there are processors if not given. The examples do not depend
        on it.

    Returns
    -------
    examples : Examples
        One recording after the other; the group is "seed 17", the kinds are those of
        `footprint_kinds`. A cell that was found twice is an example twice, and a cell that was
        found is one also where it never was active.

    Raises
    ------
    InputError
        If there are no seeds.
    """
    if not len(seeds):
        raise InputError("seeds are none; give at least one")
    report = progress or _nothing
    parts = []
    for done, seed in enumerate(seeds):
        report(Progress("classifier_examples", done, len(seeds)))
        parts.append(_examples(int(seed), workers))
    report(Progress("classifier_examples", len(seeds), len(seeds)))
    return joined(*parts)


def _nothing(_: Progress) -> None:
    """Report nothing."""


def _examples(seed: int, workers: int | None) -> Examples:
    """Simulate a recording, find what is in it, and name it."""
    random = default_rng(seed)
    parameters = _recording(seed, random)
    return recording_examples(parameters, _ways(parameters, random), random, workers)


def recording_examples(
    parameters: SimulationParameters,
    ways: Sequence[SourceExtractionParameters],
    random: Generator,
    workers: int | None = None,
) -> Examples:
    """Make examples of one recording from what some ways of looking for cells find in it.

    Halves and pairs of the cells are made besides, as few of them are found: a footprint cut along
    a line through its centroid, the sum of two that touch. What reaches the border of the field is
    left out, as the classifier is not asked of it.

    Parameters
    ----------
    parameters : SimulationParameters
        The recording.
    ways : sequence of SourceExtractionParameters
        Of each extraction.
    random : numpy.random.Generator
        For the size of the crops, and how halves are cut and pairs joined.
    workers : int, optional
        Tasks at a time.
    """
    simulation = simulate(parameters)
    frames = compute_graph(simulation.movie.frames, "import", workers=workers)
    movie = Movie(da.from_array(frames, chunks=(128, -1, -1)), parameters.frame_rate)
    graphs: list[Delayed] = [extract_sources(movie, way) for way in ways]
    truth, parts = simulation.truth, []
    for components in compute_graph(graphs, "source_extraction", workers=workers):
        kinds = footprint_kinds(components.footprints, truth, simulation.scenery)
        kinds[at_border(components.footprints, truth.shape)] = ""  # may be half of anything
        named = components.footprints[:, np.flatnonzero(kinds != "")], kinds[kinds != ""]
        cells = components.footprints[:, np.flatnonzero(np.isin(kinds, CELLS))]
        parts += [named, _made(cells, truth.shape, parameters.cell_radius, random)]
    footprints = sp.csc_array(sp.hstack([part[0] for part in parts], format="csc"))
    kinds = np.concatenate([part[1] for part in parts])
    return _cropped(footprints, kinds, truth.shape, parameters, random)


def _cropped(
    footprints: sp.csc_array,
    kinds: NDArray[np.str_],
    shape: tuple[int, int],
    parameters: SimulationParameters,
    random: Generator,
) -> Examples:
    """Return the crops of footprints, each some times in other sizes."""
    cell = np.isin(kinds, CELLS)
    chosen = np.repeat(np.arange(len(kinds)), np.where(cell, COPIES[1], COPIES[0]))
    radii = parameters.cell_radius * np.exp(JITTER * random.standard_normal(len(chosen)))
    crops = [
        footprint_crops(footprints[:, [i]], shape, radius)
        for i, radius in zip(chosen, radii, strict=True)
    ]
    none = np.zeros((0, SIDE, SIDE), np.float32)
    group = np.full(len(chosen), f"seed {parameters.seed}")
    return Examples(np.concatenate([none, *crops]), cell[chosen], group, kinds[chosen])


# ---------------------------------------------------------------------------------------- kinds


@dataclass(frozen=True)
class _Match:
    """How a footprint lies on the true cells."""

    cosine: float
    """With the cell that is most like it."""
    covered: float
    """Part of that cell's area that it covers."""
    inside: float
    """Part of its energy in that cell."""
    in_common: float
    """Area in common over area of both."""
    aside: float
    """Distance of their centres, in radii of a disc of the cell's area."""
    extent: float
    """Root mean squared distance of its pixels from their centre over that of the cell's pixels."""
    second: float
    """Weight of a second cell in the sum of cells that is most like it, of unit norm as the cells,
    if it covers enough of that cell."""


def footprint_kinds(
    found: sp.csc_array, truth: Truth, scenery: Mapping[str, sp.csc_array]
) -> NDArray[np.str_]:
    """Say by the truth what each footprint shows.

    Parameters
    ----------
    found : scipy.sparse.csc_array (pixel, cell)
        Weights of any norm, none of them negative.
    truth : Truth
        The true cells.
    scenery : mapping of str to scipy.sparse.csc_array (pixel, n)
        Where there is what is no cell: see `Simulation`.

    Returns
    -------
    ndarray of str (cell,)
        "soma" where the cosine with a true cell is at least `SAME` and it shows the whole cell;
        "half" where it is one side or a piece of a cell; "pair" where two cells are in it; the name
        in the scenery where most of its energy lies there; "neuropil" for the rest, noise among it.
        Empty where it is in between: neither a good picture of a cell nor clearly none.

    Examples
    --------
    >>> made = simulate(SimulationParameters(height=37, width=53, n_frames=9, n_cells=1))
    >>> cell, x = made.truth.footprints, np.arange(37 * 53) % 53
    >>> left = sp.csc_array(sp.diags_array((x < x @ cell / cell.sum()) * 1.0) @ cell)
    >>> footprint_kinds(sp.hstack([cell, left], format="csc"), made.truth, made.scenery).tolist()
    ['soma', 'half']
    """
    found = unit(sp.csc_array(found, dtype=np.float64))
    places = {kind: sp.csc_array(masks(part, 0.2)) for kind, part in scenery.items()}
    energy = sp.csc_array(found.multiply(found))
    shares = {kind: _largest_overlap(energy, place) for kind, place in places.items()}
    kinds = [
        _kind(match, {kind: share[i] for kind, share in shares.items()})
        for i, match in enumerate(_matches(found, truth))
    ]
    return np.array(kinds, dtype=np.str_)


def _largest_overlap(energy: sp.csc_array, places: sp.csc_array) -> NDArray[np.float64]:
    """Return the largest part of each footprint's energy (pixel, cell) that is in one place."""
    if not places.shape[1]:
        return np.zeros(energy.shape[1])
    return np.asarray((energy.T @ places).toarray().max(axis=1))


def _kind(match: _Match, shares: Mapping[str, float]) -> str:
    if match.cosine >= SAME:
        whole = match.covered >= WHOLE or match.aside <= CENTRED
        return "soma" if whole and match.second <= SHARED[0] else ""
    if match.second >= SHARED[1]:
        return "pair"
    if match.inside >= INSIDE and match.covered <= HALF:  # or the cell with gaps
        return "half" if match.aside >= ASIDE or match.extent <= SMALL else ""
    if match.cosine >= OTHER or match.in_common >= IN_PLACE:
        return ""
    for kind in ("dendrite", "bouton", "vessel", "out of focus"):
        if shares.get(kind, 0.0) >= 0.5:
            return kind
    return "neuropil"


def _matches(found: sp.csc_array, truth: Truth) -> list[_Match]:
    """Return how each footprint of unit norm lies on the true cells."""
    if not truth.n_cells:
        return [_Match(0, 0, 0, 0, math.inf, math.inf, 0)] * found.shape[1]
    cells = sp.csc_array(truth.footprints, dtype=np.float64)
    cosines = (found.T @ cells).toarray()
    outlines, true_outlines = masks(found), masks(cells)
    common = (outlines.T @ true_outlines).toarray()
    within = (found.multiply(found).T @ masks(cells, 0.1)).toarray()
    sizes, centres, extents = _moments(outlines, truth.shape)
    true_sizes, true_centres, true_extents = _moments(true_outlines, truth.shape)
    covered = common / true_sizes
    matches = []
    for i, best in enumerate(cosines.argmax(axis=1)):
        distance = np.hypot(*(centres[i] - true_centres[best]))
        matches.append(
            _Match(
                cosine=float(cosines[i, best]),
                covered=float(covered[i, best]),
                inside=float(within[i, best]),
                in_common=float(common[i, best] / (sizes[i] + true_sizes[best] - common[i, best])),
                aside=float(distance / math.sqrt(true_sizes[best] / math.pi)),
                extent=float(extents[i] / true_extents[best]),
                second=_second(found[:, [i]], cells, best, np.flatnonzero(covered[i] >= BOTH)),
            )
        )
    return matches


def _moments(
    outlines: sp.csc_array, shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the area, the centre (cell, 2) and the root mean squared distance from it, px."""
    sizes = np.maximum(np.diff(outlines.indptr), 1).astype(np.float64)
    places = np.stack(np.divmod(np.arange(outlines.shape[0], dtype=np.float64), shape[1]), axis=1)
    centres = (outlines.T @ places) / sizes[:, None]
    squares = (outlines.T @ (places**2).sum(axis=1)) / sizes - (centres**2).sum(axis=1)
    return sizes, centres, np.sqrt(np.maximum(squares, 0) + 1 / 6)  # 1 / 6: a pixel's own


def _second(
    footprint: sp.csc_array, cells: sp.csc_array, best: int, near: NDArray[np.intp]
) -> float:
    """Return the second largest weight of cells that are covered, with the best one among them."""
    near = np.union1d(near, best)
    if len(near) < 2:
        return 0.0
    weights, _ = nnls(cells[:, near].toarray(), footprint.toarray().ravel())
    return float(np.sort(weights)[-2])


# ------------------------------------------------------------------------- halves and pairs made


def _made(
    cells: sp.csc_array, shape: tuple[int, int], cell_radius: float, random: Generator
) -> tuple[sp.csc_array, NDArray[np.str_]]:
    """Cut some cells in halves and join some neighbours to pairs; return them and their kinds."""
    wanted = math.ceil(ADDED * cells.shape[1])
    order = random.permutation(cells.shape[1])[:wanted]
    touching = random.permutation(_touching(cells, shape, cell_radius))[:wanted]
    halves = [_half(cells[:, [i]], shape, random) for i in order]
    pairs = [_pair(cells[:, [i]], cells[:, [j]], random) for i, j in touching]
    none = sp.csc_array((cells.shape[0], 0), dtype=np.float32)
    columns = sp.csc_array(sp.hstack([none, *halves, *pairs], format="csc"))
    return columns, np.repeat(["half", "pair"], [len(halves), len(pairs)])


def _half(footprint: sp.csc_array, shape: tuple[int, int], random: Generator) -> sp.csc_array:
    """Return the part of a footprint on one side of a line through its centroid."""
    y, x = np.divmod(footprint.indices, shape[1])
    angle, total = random.uniform(0, 2 * math.pi), footprint.data.sum()
    along = math.sin(angle) * y + math.cos(angle) * x
    kept = along > (footprint.data @ along) / total
    data, pixels = footprint.data[kept], footprint.indices[kept]
    return sp.csc_array((data, pixels, [0, len(data)]), shape=footprint.shape)


def _touching(
    footprints: sp.csc_array, shape: tuple[int, int], cell_radius: float
) -> NDArray[np.intp]:
    """Return the pairs (pair, 2) of footprints that touch, of cells that are not the same."""
    if footprints.shape[1] < 2:
        return np.zeros((0, 2), np.intp)
    inside = masks(footprints)
    touch = np.triu((dilated_support(inside, shape, 1).T @ inside).toarray() > 0, 1)
    sums = np.asarray(footprints.sum(axis=0)).ravel()
    places = np.divmod(np.arange(footprints.shape[0]), shape[1])
    y, x = (footprints.T @ place / sums for place in places)
    apart = np.hypot(y[:, None] - y, x[:, None] - x) > 1.2 * cell_radius
    return np.argwhere(touch & apart)


def _pair(first: sp.csc_array, second: sp.csc_array, random: Generator) -> sp.csc_array:
    """Return the sum of two footprints of about the same norm."""
    weight = math.exp(random.uniform(math.log(0.6), -math.log(0.6)))
    return sp.csc_array(unit(first) + weight * unit(second), dtype=np.float32)


# ------------------------------------------------------------------------------------ recordings


def _recording(seed: int, random: Generator) -> SimulationParameters:
    """Draw a small recording: cells, light, motion and what else there is."""
    height, width = int(random.integers(96, 129)), int(random.integers(128, 161))
    n_frames, frame_rate = int(random.integers(400, 801)), random.choice([5.0, 7.5, 10, 15, 20, 30])
    radius, decay_time = _log_uniform(random, 3.5, 9.0), _log_uniform(random, 0.3, 1.8)
    discs = height * width / (math.pi * radius**2)
    motion = random.choice([0.0, random.uniform(0.1, 0.7)])
    return SimulationParameters(
        height=height,
        width=width,
        n_frames=n_frames,
        frame_rate=frame_rate,
        n_cells=min(90, round(random.uniform(0.2, 0.45) * discs)),
        cell_radius=radius,
        radius_spread=random.uniform(0.1, 0.35),
        nucleus=random.choice([1.0, random.uniform(0, 1)]),
        n_out_of_focus=round(random.uniform(0, 0.12) * discs),
        n_dendrites=round(random.uniform(0.02, 0.12) * discs),
        n_boutons=round(random.uniform(0, 0.15) * discs),
        cell_brightness=_log_uniform(random, 0.3, 1.5),
        spike_rate=_log_uniform(random, 8, 80) * frame_rate / n_frames,
        silent_fraction=random.uniform(0, 0.3),
        spike_amplitude=_log_uniform(random, 0.3, 1.2),
        rise_time=decay_time * random.uniform(0.05, 0.3),
        decay_time=decay_time,
        neuropil=random.uniform(0.03, 0.15),
        pulsation=random.choice([0.0, random.uniform(0.05, 0.3)]),
        motion_rigid=motion,
        motion_piecewise=0.5 * motion,
        photons=_log_uniform(random, 4, 40),
        seed=seed,
    )


def _ways(parameters: SimulationParameters, random: Generator) -> list[SourceExtractionParameters]:
    """Draw two ways of looking for cells: with about the right radius, and with a wrong one."""
    wrong = random.choice([0.6, 1.6])
    factors = (math.exp(0.1 * random.standard_normal()), wrong)
    return [_way(parameters, factor, random) for factor in factors]


def _way(
    parameters: SimulationParameters, factor: float, random: Generator
) -> SourceExtractionParameters:
    """Draw an extraction that lets through what is no cell."""
    background: Any = str(random.choice(["grid", "grid", "grid", "none"]))
    return SourceExtractionParameters(
        cell_radius=factor * parameters.cell_radius,
        decay_time=parameters.decay_time,
        threshold=random.uniform(5, 10),
        background=background,
        sparsity=random.uniform(0.5, 2.5),
        edge_maximum=random.uniform(0.05, 0.2),
        merge=bool(random.random() < 0.6),
        duplicate_overlap=float(random.choice([0.7, 1.0])),
        min_size=random.uniform(0.1, 0.4),
        max_size=6.0,
        max_spread=6.0,
        refinements=int(random.integers(1, 3)),
    )


def _log_uniform(random: Generator, low: float, high: float) -> float:
    return math.exp(random.uniform(math.log(low), math.log(high)))
