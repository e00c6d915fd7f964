"""Every way of extracting sources that can be asked for, on recordings of known cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.extraction.cnmf import SourceExtractionParameters, extract_sources, fit_model
from napari_calcium.extraction.model import Model
from napari_calcium.extraction.refinement import _weights, components_of
from napari_calcium.movie import Movie

FIELD = (61, 83)
PLACES = ((12, 14), (14, 26), (44, 20), (30, 52), (50, 70), (0, 60))
DEFAULT = SourceExtractionParameters()


def soma(y: float, x: float, radius: float = 5) -> NDArray[np.float64]:
    """Disc with soft edges, 1 inside."""
    rows, columns = np.mgrid[: FIELD[0], : FIELD[1]]
    return 1 / (1 + np.exp(np.clip(4 * (np.hypot(rows - y, columns - x) - radius), -50, 50)))


def transients(n_frames: int, seed: int, rise: float = 0.0, decay: float = 6.0) -> Any:
    """Transients of height about 1, on average 50 frames apart."""
    spikes = np.random.default_rng(seed).random(n_frames) < 0.02
    spikes[30 + 5 * seed % 400] = True
    after = np.arange(80)
    kernel = np.exp(-after / decay) - (np.exp(-after / rise) if rise else 0)
    return np.convolve(spikes, kernel / kernel.max())[:n_frames]


def recording(
    places: Sequence[tuple[float, float]] = PLACES,
    seed: int = 0,
    radius: float = 5,
    height: float = 80,
    **shape: float,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Frames (500, 61, 83) around 1000 with noise of 10 and cells of a height, and their traces."""
    rng = np.random.default_rng(seed)
    traces = np.array([transients(500, 10 * seed + i + 1, **shape) for i in range(len(places))])
    frames = (1000 + 10 * rng.normal(size=(500, *FIELD))).astype(np.float32)
    for place, trace in zip(places, traces, strict=True):
        frames += (height * trace[:, None, None] * soma(*place, radius)).astype(np.float32)
    return frames, traces


def fitted(
    frames: NDArray[np.floating], seeds: sp.csc_array | None = None, **values: Any
) -> tuple[Model, Any]:
    """Return the model and the components of frames at 10 Hz."""
    movie = Movie(da.from_array(frames, chunks=(128, *FIELD)), 10.0)
    model = fit_model(movie, replace(DEFAULT, **values), seeds).compute(scheduler="threads")
    return model, components_of(model)


def cosines(found: Any, places: Sequence[tuple[float, float]], radius: float = 5) -> Any:
    """Return the cosine of each found footprint with each true one."""
    true = np.stack([soma(*place, radius).ravel() for place in places], axis=1)
    return found.footprints.T @ (true / np.linalg.norm(true, axis=0))


def assert_found(found: Any, places: Any, traces: Any, cosine: float, correlation: float) -> None:
    """Each true cell is one of those found, and nothing else is."""
    alike = cosines(found, places)
    best = alike.argmax(axis=0)
    assert sorted(best) == list(range(len(places))) == list(range(found.n_cells))
    assert alike.max(axis=0).min() > cosine
    agreement = [
        np.corrcoef(found.traces[i], trace)[0, 1] for i, trace in zip(best, traces, strict=True)
    ]
    assert min(agreement) > correlation


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"initialization": "sparse_nmf"},
        {"initialization": "graph_nmf"},
        {"initialization": "pca_ica"},
        {"n_cells": 4},
        {"patch_size": 0},
        {"patch_size": 30, "patch_overlap": 24},
        {"decimate_space": 2},
        {"decimate_time": 0.1},
        {"background": "low_rank", "n_background": 2},
        {"background": "patches"},
        {"background": "none"},
        {"support": "ellipse"},
        {"support_radius": 4.0},
        {"footprint_edge": "energy", "edge_energy": 0.99},
        {"penalty": "l1"},
        {"ar_order": 2},
        {"merge": False},
        {"duplicate_overlap": 1.0},
        {"refinements": 4},
    ],
    ids=lambda values: ", ".join(f"{k}={v}" for k, v in values.items()) or "default",
)
def test_every_way_finds_the_cells(values: dict[str, Any], seed: int) -> None:
    """Cells of 8 times the noise: no way misses one, or finds one more."""
    frames, traces = recording(seed=seed)
    _, found = fitted(frames, **values)
    assert_found(found, PLACES, traces, 0.95, 0.97)


def test_without_refinements_footprints_stay_as_they_were_found() -> None:
    frames, _ = recording()
    model, found = fitted(frames, refinements=0)
    assert model.census.small == model.census.large == model.census.inside == 0
    alike = cosines(found, PLACES).max(axis=0)
    assert alike.min() > 0.85
    refined = cosines(fitted(frames)[1], PLACES).max(axis=0)
    assert refined.mean() > alike.mean()
    assert found.traces.shape == (found.n_cells, len(frames))


def test_traces_that_are_not_denoised() -> None:
    frames, traces = recording()
    _, found = fitted(frames, ar_order=0)
    assert_found(found, PLACES, traces, 0.95, 0.9)
    np.testing.assert_array_equal(found.residuals, 0)
    assert found.deconvolved.min() == 0
    assert np.isnan(found.time_constants).all()


@pytest.mark.parametrize(("order", "rise"), [(1, 0.0), (2, 1.0)])
def test_each_cell_has_its_baseline_noise_and_time_constants(order: int, rise: float) -> None:
    """Noise of 10 in every pixel is 10 in a trace of unit norm; 0.6 s of decay within a third."""
    frames, _ = recording(rise=rise, height=30)
    _, found = fitted(frames, ar_order=order)
    np.testing.assert_allclose(found.noise, 10, rtol=0.25)
    np.testing.assert_allclose(np.median(found.time_constants[:, 0]), 0.6, rtol=0.35)
    if order == 2:
        np.testing.assert_allclose(found.time_constants[:, 1], rise / 10, rtol=0.6)
    sums = np.asarray(found.footprints.sum(axis=0)).ravel()
    np.testing.assert_allclose(found.baseline, 1000 * sums, rtol=0.01)  # 1000 in every pixel


def test_an_edge_by_energy_keeps_that_part_of_it() -> None:
    frames, _ = recording()
    whole = fitted(frames, footprint_edge="energy", edge_energy=1.0)[1].footprints
    half = fitted(frames, footprint_edge="energy", edge_energy=0.6, min_size=0.0)[1].footprints
    assert half.nnz < 0.75 * whole.nnz


def test_large_cells_are_searched_in_averaged_pixels() -> None:
    places = ((16, 18), (40, 58))
    frames, _ = recording(places, radius=14)
    _, found = fitted(frames, cell_radius=14.0)
    assert replace(DEFAULT, cell_radius=14.0).pixels_averaged == 2
    alike = cosines(found, places, 14)
    assert found.n_cells == 2
    assert alike.max(axis=0).min() > 0.97


@pytest.mark.parametrize("period", [20, 30, 47])
def test_a_cell_that_never_pauses_is_found(period: int) -> None:
    """A pacemaker at 30 Hz: averages over 9 frames change by its calcium more than by noise."""
    rng = np.random.default_rng(period)
    times = np.cumsum(rng.normal(period, 0.1 * period, 100)).round().astype(int)
    spikes = np.zeros(1500)
    spikes[times[times < 1500]] = 1
    trace = np.convolve(spikes, np.exp(-np.arange(150) / 18))[:1500]
    frames = (1000 + 10 * rng.normal(size=(1500, *FIELD))).astype(np.float32)
    frames += (60 * trace[:, None, None] * soma(30, 40)).astype(np.float32)
    movie = Movie(da.from_array(frames, chunks=(128, *FIELD)), 30.0)
    model = fit_model(movie, DEFAULT).compute(scheduler="threads")
    found = components_of(model)
    assert found.n_cells == 1
    assert cosines(found, ((30, 40),))[0, 0] > 0.97
    assert np.corrcoef(found.traces[0], trace)[0, 1] > 0.97
    inside = soma(30, 40).ravel() > 0.9  # calcium falls by little from frame to frame
    np.testing.assert_allclose(model.noise[inside], 10, rtol=0.5)


@pytest.mark.parametrize("n_cells", [1, 2, 3])
@pytest.mark.parametrize("initialization", ["greedy", "pca_ica"])
def test_as_many_cells_in_each_patch_as_asked_for(n_cells: int, initialization: str) -> None:
    """Two patches of three cells each; those that a patch sees of the other do not count."""
    frames, _ = recording()
    values = {"n_cells": n_cells, "initialization": initialization}
    model, found = fitted(frames, **values)
    assert model.census.candidates == found.n_cells == {1: 2, 2: 4, 3: 6}[n_cells]


@pytest.mark.parametrize("background", ["low_rank", "patches"])
@pytest.mark.parametrize("initialization", ["greedy", "sparse_nmf", "pca_ica"])
def test_an_empty_patch_beside_a_good_one(background: str, initialization: str) -> None:
    frames, traces = recording(PLACES[:2])
    _, found = fitted(frames, background=background, initialization=initialization)
    assert_found(found, PLACES[:2], traces, 0.95, 0.97)


@pytest.mark.parametrize("values", [{"background": "low_rank", "n_background": 20}, {}])
@pytest.mark.parametrize("n_frames", [1, 2, 3, 5])
def test_movies_of_a_few_frames(n_frames: int, values: dict[str, Any]) -> None:
    frames = np.random.default_rng(0).normal(1000, 10, (n_frames, *FIELD)).astype(np.float32)
    model, found = fitted(frames, **values)
    assert found.n_cells == 0
    assert found.background.traces.shape[1] == n_frames
    assert np.isfinite(found.background.traces).all()
    if n_frames < 7:  # 3 frames are averaged
        assert "too short to search" in model.census.sentence(0, DEFAULT)


def test_a_dark_level_far_from_zero_does_not_matter() -> None:
    """As uint16 of 40000: sums over the field keep the digits of what changes."""
    frames, _ = recording()
    wave = 20 * np.sin(np.arange(500) / 31)
    counts = (frames + wave[:, None, None].astype(np.float32)).round()
    found = {}
    for offset in (0, 40000):
        movie = (counts + offset).astype(np.uint16)
        model, cells = fitted(movie, background="low_rank")
        raw, _ = model.measured
        found[offset] = cells.traces, raw[model.n_cells]
    for low, high in zip(found[0], found[40000], strict=True):
        np.testing.assert_allclose(high, low, atol=0.02 * np.abs(low).max())


# ---------------------------------------------------------------------------- low-rank background


@pytest.mark.parametrize("background", ["low_rank", "patches"])
def test_a_background_that_all_of_the_field_shares_is_taken_out(background: str) -> None:
    """A slow wave nearly as high as the cells over an uneven field: traces stay right."""
    frames, traces = recording()
    y, x = np.mgrid[: FIELD[0], : FIELD[1]]
    uneven = 0.5 + (y / FIELD[0]) * (1 - x / FIELD[1])
    wave = 60 * np.sin(np.arange(500) / 31)
    frames += (wave[:, None, None] * uneven).astype(np.float32)
    model, found = fitted(frames, background=background)
    assert found.n_cells <= len(PLACES) + 1  # a corner of the wave may pass for a cell
    alike = cosines(found, PLACES)
    assert alike.max(axis=0).min() > 0.95
    for which, trace in zip(alike.argmax(axis=0), traces, strict=True):
        assert np.corrcoef(found.traces[which], trace)[0, 1] > 0.97
    raw, _ = model.measured
    components = {"low_rank": 1, "patches": 2}[background]  # the field is two patches
    for trace in raw[model.n_cells : model.n_cells + components]:
        assert abs(np.corrcoef(trace, wave)[0, 1]) > 0.999


# ------------------------------------------------------------------------------------------ seeds


def seeds_at(places: Sequence[tuple[float, float]], radius: float = 4) -> sp.csc_array:
    masks = [soma(*place, radius).ravel() > 0.5 for place in places]
    return sp.csc_array(np.stack(masks, axis=1).astype(np.float32))


def test_seeds_become_cells_in_their_order() -> None:
    """Drawn a pixel too small and 1.5 px off: the footprints are right all the same."""
    frames, traces = recording()
    order = [3, 0, 5, 1, 4, 2]
    places = [PLACES[i] for i in order]
    drawn = seeds_at([(y + 1, x - 1) for y, x in places])
    _, found = fitted(frames, drawn, initialization="seeds", seeds_file="drawn.tif")
    alike = cosines(found, places)
    np.testing.assert_array_equal(alike.argmax(axis=0), range(6))
    assert np.diagonal(alike).min() > 0.95
    for trace, i in zip(found.traces, order, strict=True):
        assert np.corrcoef(trace, traces[i])[0, 1] > 0.97


@pytest.mark.parametrize("refinements", [0, 2])
def test_silent_and_doubled_seeds_stay(refinements: int) -> None:
    frames, _ = recording(PLACES[:2])
    drawn = seeds_at([PLACES[0], (50, 60), PLACES[0], PLACES[1]])
    parameters = {"initialization": "seeds", "seeds_file": "x", "refinements": refinements}
    _, found = fitted(frames, drawn, **parameters)
    assert found.n_cells == 4
    assert np.isfinite(found.traces).all()
    silent = found.footprints[:, [1]].toarray().ravel()
    np.testing.assert_array_equal(silent > 0, drawn[:, [1]].toarray().ravel() > 0)
    assert np.abs(found.traces[1]).max() < 0.2 * found.traces[3].max()


def test_a_seed_larger_than_a_patch() -> None:
    frames, _ = recording(PLACES[:2])
    wide = np.zeros(FIELD, np.float32)
    wide[40:44, 2:80] = 1
    drawn = sp.csc_array(wide.reshape(-1, 1))
    frames += (60 * transients(500, 99)[:, None, None] * wide).astype(np.float32)
    parameters = {
        "initialization": "seeds",
        "seeds_file": "x",
        "patch_size": 40,
        "patch_overlap": 5,
    }
    _, found = fitted(frames, drawn, connected=False, **parameters)
    image = found.footprint(0)
    assert (image[40:44, 2:80] > 0).mean() > 0.95
    assert np.corrcoef(found.traces[0], transients(500, 99))[0, 1] > 0.97


def test_seeds_that_cannot_be_used() -> None:
    movie = Movie(da.zeros((50, *FIELD), dtype="uint16"), 10.0)
    seeded = replace(DEFAULT, initialization="seeds", seeds_file="x")
    with pytest.raises(InputError, match="initialization is 'seeds' but seeds are not given"):
        extract_sources(movie, seeded)
    with pytest.raises(InputError, match="initialization is 'greedy' but seeds are given"):
        extract_sources(movie, DEFAULT, seeds_at(PLACES))
    with pytest.raises(InputError, match="seeds have 12 pixels but the field is 61 x 83 px"):
        extract_sources(movie, seeded, sp.csc_array(np.ones((12, 1))))
    with pytest.raises(InputError, match="there are none in them"):
        extract_sources(movie, seeded, sp.csc_array((61 * 83, 0)))
    drawn = seeds_at(PLACES).toarray()
    drawn[:, 2] = 0
    with pytest.raises(InputError, match="seed 3 has no pixel; leave it out or draw it again"):
        extract_sources(movie, seeded, sp.csc_array(drawn))


def test_seeds_of_any_sparse_kind() -> None:
    frames, _ = recording(PLACES[:2])
    drawn = seeds_at(PLACES[:2])
    _, first = fitted(frames, drawn, initialization="seeds", seeds_file="x")
    for kind in (sp.csr_array, sp.coo_array):
        _, other = fitted(frames, kind(drawn), initialization="seeds", seeds_file="x")
        np.testing.assert_array_equal(first.traces, other.traces)


def test_a_silent_seed_of_a_long_movie_keeps_its_region() -> None:
    frames = np.random.default_rng(0).normal(1000, 10, (20000, 21, 33)).astype(np.float32)
    drawn = np.zeros((21, 33), np.float32)
    drawn[8:15, 12:19] = 1
    movie = Movie(da.from_array(frames, chunks=(2000, 21, 33)), 30.0)
    parameters = replace(DEFAULT, initialization="seeds", seeds_file="x")
    found = extract_sources(movie, parameters, sp.csc_array(drawn.reshape(-1, 1))).compute()
    np.testing.assert_array_equal(found.footprint(0) > 0, drawn > 0)


# --------------------------------------------------------------------------------------- dendrites


def test_dendrites_keep_their_branches() -> None:
    """Two thin lines that cross: not cut to somata when they are asked for as they are."""
    first, second = np.zeros(FIELD), np.zeros(FIELD)
    first[10:55, 30:32] = 1
    second[28:30, 8:70] = 1
    frames, _ = recording(())
    traces = [transients(500, 3), transients(500, 4)]
    for line, trace in zip((first, second), traces, strict=True):
        frames += (100 * trace[:, None, None] * line).astype(np.float32)
    _, found = fitted(
        frames,
        initialization="sparse_nmf",
        connected=False,
        max_spread=50.0,
        min_size=0.3,
        max_size=10.0,
    )
    assert found.n_cells == 2
    true = np.stack([first.ravel(), second.ravel()], axis=1)
    alike = found.footprints.T @ (true / np.linalg.norm(true, axis=0))
    assert np.sort(alike.max(axis=0)).min() > 0.9
    for which, trace in zip(alike.argmax(axis=0), traces, strict=True):
        assert np.corrcoef(found.traces[which], trace)[0, 1] > 0.97


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("how", ["always", "in one frame", "a border in some frames"])
@pytest.mark.parametrize("values", [{}, {"background": "low_rank"}, {"initialization": "pca_ica"}])
def test_missing_pixels_belong_to_nothing(how: str, values: dict[str, Any]) -> None:
    frames, traces = recording()
    whole = fitted(frames, **values)[1]
    missing = np.zeros(FIELD, bool)
    if how == "a border in some frames":
        missing[:3] = missing[:, -2:] = True
        frames[100:120, missing] = np.nan
    else:
        missing[43:46, 19:22] = True  # inside the third cell
        frames[slice(None) if how == "always" else 77, missing] = np.nan
    model, found = fitted(frames, **values)
    assert np.isfinite(found.traces).all()
    assert np.isfinite(found.background.traces).all()
    np.testing.assert_array_equal(model.missing.reshape(FIELD), missing)
    for footprints in (found.footprints, found.background.footprints):
        assert not footprints.toarray()[missing.ravel()].any()
    lost = how == "a border in some frames"  # the cell on it has lost half of what it had
    assert found.n_cells == whole.n_cells - lost == len(PLACES) - lost
    for trace in traces[:5]:
        assert max(np.corrcoef(trace, each)[0, 1] for each in found.traces) > 0.96


def test_every_pixel_missing() -> None:
    model, found = fitted(np.full((60, *FIELD), np.nan, np.float32))
    assert found.n_cells == 0
    assert "every pixel that could hold one is NaN" in model.census.sentence(0, DEFAULT)


def test_saturated_pixels_do_no_harm() -> None:
    """Always at the top, or only at a cell's transients: that cell's trace is cut off, no more."""
    frames, traces = recording()
    counts = np.clip(frames, 0, 1050).round().astype(np.uint16)
    counts[:, 20:24, 70:76] = 1050
    _, found = fitted(counts)
    assert_found(found, PLACES, traces, 0.93, 0.9)
    inside = np.zeros(FIELD, bool)
    inside[20:24, 70:76] = True
    assert not found.footprints.toarray()[inside.ravel()].any()


def test_a_radius_larger_than_the_patch_is_taken_care_of() -> None:
    """Patches grow with the cell; a cell larger than the field is refused before."""
    frames, _ = recording(((30, 40),), radius=20)
    _, found = fitted(frames, cell_radius=20.0, patch_size=16, patch_overlap=4)
    assert found.n_cells == 1
    assert cosines(found, ((30, 40),), 20)[0, 0] > 0.95


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"threshold": 1e6}, r"No cells: no place reached the threshold of 1e\+06 sd \(the "),
        ({"min_size": 2.4}, r"No cells of \d candidates: 6 below min_size \(2.4 discs\)"),
        ({"max_size": 0.6}, r"No cells of \d candidates: .*6 above max_size \(0.6 discs\)"),
        ({"sparsity": 1e4}, r"No cells of \d candidates: .*6 without a pixel above the noise"),
        ({"initialization": "sparse_nmf", "threshold": 1e4}, r"No cells: no place reached the thr"),
        ({"initialization": "pca_ica", "threshold": 1e4}, r"No cells: no place reached the thresh"),
    ],
)
def test_no_cells_says_which_threshold_removed_how_many(
    values: dict[str, Any], reason: str
) -> None:
    frames, _ = recording()
    model, found = fitted(frames, **values)
    assert found.n_cells == 0
    assert re.search(reason, model.census.sentence(0, replace(DEFAULT, **values)))


def test_the_census_adds_up() -> None:
    frames, _ = recording()
    for values in ({}, {"min_size": 1.05}, {"max_size": 0.9}, {"merge_correlation": 0.0}):
        model, found = fitted(frames, **values)
        census = model.census
        removed = [census.merged, census.small, census.large, census.ragged]
        assert census.candidates - sum(removed) - census.inside - census.faded == found.n_cells


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"min_size": 3.0}, "max_size is 2.5 discs; it must be above min_size, 3 discs"),
        ({"initialization": "seeds"}, "seeds_file is not given"),
        ({"seeds_file": "a.tif"}, "seeds_file is 'a.tif' but initialization is 'greedy'"),
        ({"ar_order": 3}, "ar_order is 3; it must be one of 0, 1, 2"),
        ({"background": "flat"}, "background is 'flat'; it must be one of 'grid'"),
    ],
)
def test_parameters_that_contradict(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        replace(DEFAULT, **values)


def test_averaging_follows_the_radius_the_rate_and_the_length() -> None:
    assert DEFAULT.pixels_averaged == 1
    assert replace(DEFAULT, cell_radius=20.0).pixels_averaged == 3
    assert replace(DEFAULT, cell_radius=20.0, decimate_space=1).pixels_averaged == 1
    assert DEFAULT.frames_averaged(3000, 30.0, 104**2) == 9
    assert DEFAULT.frames_averaged(3000, 1.0, 104**2) == 1
    assert replace(DEFAULT, decimate_time=1.0).frames_averaged(3000, 30.0, 104**2) == 30
    assert DEFAULT.frames_averaged(10**6, 30.0, 104**2) == 250  # never more than 4000 bins
    assert DEFAULT.frames_averaged(10**5, 30.0, 2048**2) * 2**26 / 2048**2 >= 10**5


def test_silent_traces_weigh_nothing() -> None:
    """A penalised trace of noise is constant: what its mean leaves of it is only rounding."""
    frames, _ = recording(PLACES[:1])
    drawn = seeds_at([PLACES[0], (50, 60)])
    model, _ = fitted(frames, drawn, initialization="seeds", seeds_file="x", penalty="l1")
    weights = _weights(model)
    assert weights[0].any()
    assert not weights[1].any() or np.ptp(weights[1]) > 1


@pytest.mark.parametrize(
    "values",
    [
        {"initialization": "sparse_nmf"},
        {"initialization": "graph_nmf"},
        {"initialization": "pca_ica"},
        {"initialization": "seeds", "seeds_file": "x"},
        {"background": "low_rank", "n_background": 2},
        {"background": "patches"},
        {"decimate_space": 2, "ar_order": 2},
    ],
    ids=lambda values: next(iter(values.values())),
)
def test_no_way_depends_on_chunks_or_workers(values: dict[str, Any]) -> None:
    """Bit for bit: the work is cut by the parameters alone."""
    frames, _ = recording()
    drawn = seeds_at(PLACES) if "seeds_file" in values else None
    parameters, found = replace(DEFAULT, **values), []
    for workers, chunks in ((1, (500, *FIELD)), (2, (77, 30, 41))):
        movie = Movie(da.from_array(frames, chunks=chunks), 10.0)
        lazy = extract_sources(movie, parameters, drawn)
        found.append(lazy.compute(scheduler="threads", num_workers=workers))
    first, second = found
    for name in ("traces", "residuals", "deconvolved", "baseline", "noise", "time_constants"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    np.testing.assert_array_equal(first.background.traces, second.background.traces)
    for one, other in (
        (first.footprints, second.footprints),
        (first.background.footprints, second.background.footprints),
    ):
        np.testing.assert_array_equal(one.toarray(), other.toarray())
