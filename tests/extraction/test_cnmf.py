from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray

from napari_calcium.components import Components
from napari_calcium.errors import InputError
from napari_calcium.extraction.cnmf import SourceExtractionParameters, extract_sources, fit_model
from napari_calcium.extraction.noise import pixel_noise
from napari_calcium.extraction.search import search
from napari_calcium.footprints import areas
from napari_calcium.movie import Movie
from napari_calcium.simulation import SimulationParameters, simulate
from napari_calcium.truth import Truth, score_cells

FIELD = (37, 53)
DEFAULT = SourceExtractionParameters()


def soma(y: float, x: float, radius: float = 5) -> NDArray[np.float64]:
    """Disc with soft edges in a field of 37 x 53, 1 inside."""
    rows, columns = np.mgrid[: FIELD[0], : FIELD[1]]
    return 1 / (1 + np.exp(4 * (np.hypot(rows - y, columns - x) - radius)))


def transients(n_frames: int, first: int, every: int) -> NDArray[np.float64]:
    """Transients of height 1 that fall to 0.85 from frame to frame."""
    trace = np.zeros(n_frames)
    for start in range(first, n_frames, every):
        trace[start:] += 0.85 ** np.arange(n_frames - start)
    return trace


def recording(
    places: Sequence[tuple[float, float]], radius: float = 5, noise: float = 10
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frames (400, 37, 53) around 1000 with cells of 8 times the noise, and their traces."""
    rng = np.random.default_rng(0)
    traces = np.array([transients(400, 15 + 17 * i, 47 + 12 * i) for i in range(len(places))])
    frames = 1000 + noise * rng.normal(size=(400, *FIELD))
    for place, trace in zip(places, traces, strict=True):
        frames += 8 * noise * trace[:, None, None] * soma(*place, radius)
    return frames, traces


def extracted(
    frames: NDArray[Any],
    parameters: SourceExtractionParameters = DEFAULT,
    frame_rate: float = 10.0,
    chunks: tuple[int, int, int] | None = None,
    workers: int = 2,
) -> Components:
    movie = Movie(da.from_array(frames, chunks=chunks or frames.shape), frame_rate)
    lazy = extract_sources(movie, parameters)
    found = lazy.compute(scheduler="threads", num_workers=workers)
    assert isinstance(found, Components)
    return found


def model_of(components: Components) -> NDArray[np.float32]:
    """What the components say the movie is, (pixel, time)."""
    background = components.background
    cells = components.traces + components.residuals
    return np.asarray(components.footprints @ cells + background.footprints @ background.traces)


def assert_equal(first: Components, second: Components) -> None:
    pairs = [
        (getattr(first, name), getattr(second, name))
        for name in ("traces", "residuals", "deconvolved", "cell_id")
    ]
    pairs.append((first.background.traces, second.background.traces))
    for one, other in (
        (first.footprints, second.footprints),
        (first.background.footprints, second.background.footprints),
    ):
        pairs += [(getattr(one, n), getattr(other, n)) for n in ("data", "indices", "indptr")]
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)


Simulated = tuple[NDArray[np.uint16], Truth, Components]


@pytest.fixture(scope="module", params=[0, 4])
def simulated(request: pytest.FixtureRequest) -> Simulated:
    """A recording of 64 x 88 px that does not move, its truth, and what is found."""
    simulation = simulate(
        SimulationParameters(
            height=64,
            width=88,
            n_frames=600,
            frame_rate=15.0,
            n_cells=12,
            n_out_of_focus=4,
            motion_rigid=0,
            motion_piecewise=0,
            seed=request.param,
        )
    )
    frames = simulation.movie.frames.compute(scheduler="synchronous")
    return frames, simulation.truth, extracted(frames, frame_rate=15.0)


def test_the_cells_are_those_that_are_there(simulated: Simulated) -> None:
    """Measured on seeds 0 to 5: F1 0.84 to 0.95, here 0.95; correlation 0.977 to 0.986."""
    _, truth, found = simulated
    score = score_cells(found.footprints, found.traces, truth)
    assert score.f1 >= 0.88
    assert score.precision >= 0.9
    assert score.trace_correlation >= 0.96


def test_the_model_explains_the_movie_up_to_its_noise(simulated: Simulated) -> None:
    """Measured: 0.995 of the noise in the median pixel, at most 1.17 in any."""
    frames, _, found = simulated
    left = frames.reshape(len(frames), -1).T - model_of(found)
    ratio = left.std(axis=1) / pixel_noise(frames.astype(np.float32)).ravel()
    assert 0.95 < np.median(ratio) < 1.02
    assert ratio.max() < 1.3
    assert np.abs(left.mean(axis=1)).max() < 0.05  # of about 130 counts


def test_what_is_found_is_as_it_is_described(simulated: Simulated) -> None:
    frames, _, found = simulated
    assert found.shape == (64, 88)
    assert found.traces.shape == (found.n_cells, len(frames))
    norms = np.sqrt(found.footprints.multiply(found.footprints).sum(axis=0))
    np.testing.assert_allclose(norms, 1, rtol=1e-5)
    assert found.footprints.data.min() >= 0
    assert found.deconvolved.min() >= 0
    assert found.background.footprints[:, 1:].toarray().min() >= 0
    np.testing.assert_array_equal(found.background.traces[0], 1)
    assert len(set(found.cell_id.tolist())) == found.n_cells
    assert np.abs(np.median(found.residuals, axis=1)).max() < 0.2 * found.traces.max()


def test_the_result_does_not_depend_on_chunks_or_workers(simulated: Simulated) -> None:
    """Bit for bit: the work is cut by the parameters alone."""
    frames, _, found = simulated
    for workers, chunks in ((1, None), (2, (100, 37, 53)), (1, (7, 64, 88))):
        again = extracted(frames, frame_rate=15.0, chunks=chunks, workers=workers)
        assert_equal(again, found)


def test_patches_make_little_difference(simulated: Simulated) -> None:
    """The field cut into 4 x 6 patches finds the same cells, also those on the cuts."""
    frames, truth, found = simulated
    pieces = extracted(frames, replace(DEFAULT, patch_size=16), frame_rate=15.0)
    whole = score_cells(found.footprints, found.traces, truth)
    score = score_cells(pieces.footprints, pieces.traces, truth)
    assert score.f1 >= whole.f1 - 0.11  # one cell
    assert score.trace_correlation >= 0.96


@pytest.mark.parametrize(
    "place", [(18, 26), (0, 30), (20, 0), (36, 52), (1.5, 51)], ids=lambda place: str(place)
)
def test_one_cell_anywhere(place: tuple[float, float]) -> None:
    """Also where half of it, or three quarters, lie outside the field.

    The raw trace has the right height; the denoised one is shrunk by the penalty on activity.
    """
    frames, (trace,) = recording([place])
    found = extracted(frames.round().astype(np.uint16), replace(DEFAULT, min_size=0.2))
    assert found.n_cells == 1
    true = soma(*place)
    footprint = found.footprint(0)
    assert (footprint * true).sum() > 0.95 * np.linalg.norm(true)
    assert np.corrcoef(found.traces[0], trace)[0, 1] > 0.98
    raw = found.traces[0] + found.residuals[0]
    slope = np.polyfit(80 * np.linalg.norm(true) * trace, raw, 1)[0]
    assert slope == pytest.approx(1, abs=0.03)


def test_rest_is_part_of_the_background() -> None:
    """The first background image is the movie at rest: 1000, in cells and between them."""
    frames, _ = recording([(18, 26)])
    found = extracted(frames.round().astype(np.uint16))
    static = found.background.footprints[:, [0]].toarray().reshape(FIELD)
    inside = soma(18, 26) > 0.9
    assert static[inside].mean() == pytest.approx(1000, abs=8)
    assert static[~inside].mean() == pytest.approx(1000, abs=1)


@pytest.mark.parametrize("offset", [-1800, 40000])
def test_integers_keep_their_values(offset: int) -> None:
    """Negative int16 and uint16 above 32767; float32 has 0.004 counts at 40000."""
    frames, _ = recording([(10, 12), (26, 38)])
    dtype = np.int16 if offset < 0 else np.uint16
    reference = extracted(frames.round().astype(np.float32))
    counts = (frames + offset).round().astype(dtype)
    assert (counts.max() > 32767) == (offset > 0)
    found = extracted(counts)
    assert found.n_cells == reference.n_cells == 2
    scale = reference.traces.max()
    np.testing.assert_allclose(
        found.footprints.toarray(), reference.footprints.toarray(), atol=0.02
    )
    np.testing.assert_allclose(found.traces, reference.traces, atol=0.02 * scale)
    static = [c.background.footprints[:, [0]].toarray().mean() for c in (found, reference)]
    assert static[0] - static[1] == pytest.approx(offset, abs=0.5)


@pytest.mark.parametrize("kind", ["noise", "constant", "dark", "two frames"])
def test_nothing_to_find(kind: str) -> None:
    noise = np.random.default_rng(1).normal(100, 10, (300, *FIELD)).round().astype(np.int16)
    frames = {
        "noise": noise,
        "constant": np.full_like(noise, 321),
        "dark": np.zeros_like(noise),
        "two frames": noise[:2],
    }[kind]
    found = extracted(frames)
    assert found.n_cells == 0
    assert found.footprints.shape == (37 * 53, 0)
    assert found.traces.shape == found.deconvolved.shape == (0, len(frames))
    assert found.background.traces.shape[1] == len(frames)
    static = found.background.footprints[:, [0]].toarray().ravel()
    np.testing.assert_allclose(static, frames.mean(axis=0).ravel(), atol=5)
    for part in (found.background.footprints.data, found.background.traces):
        assert np.isfinite(part).all()


def test_a_dead_half_of_the_field() -> None:
    frames, _ = recording([(18, 12)])
    frames[:, :, 27:] = 0
    found = extracted(frames.round().astype(np.uint16))
    assert found.n_cells == 1
    assert np.isfinite(model_of(found)).all()


def test_neighbours_are_told_apart() -> None:
    """Two somata that overlap by a third of their area keep traces of their own."""
    places = [(18, 20), (18, 27)]
    frames, traces = recording(places)
    found = extracted(frames.round().astype(np.uint16))
    assert found.n_cells == 2
    correlations = np.corrcoef(traces, found.traces)[:2, 2:]
    order = correlations.argmax(axis=1)
    assert sorted(order) == [0, 1]
    assert correlations.max(axis=1).min() > 0.95
    assert np.sort(correlations, axis=1)[:, 0].max() < 0.3


def test_merging_can_be_switched_off(simulated: Simulated) -> None:
    frames, *_ = simulated
    movie = Movie(da.from_array(frames), 15.0)
    merged = {}
    for merge, correlation in ((True, 0.0), (True, 1.5), (False, 0.0)):
        parameters = replace(DEFAULT, merge=merge, merge_correlation=correlation)
        merged[merge, correlation] = fit_model(movie, parameters).compute().census.merged
    assert merged[True, 0.0] > 0
    assert merged[True, 1.5] == merged[False, 0.0] == 0


def test_what_is_too_large_becomes_background() -> None:
    """A cell of three times the radius has nine times the area; its activity is not lost."""
    frames, (trace,) = recording([(8, 44)], radius=5)
    wide = transients(400, 31, 83)
    frames += 60 * wide[:, None, None] * soma(20, 18, 13)
    counts = frames.round().astype(np.uint16)
    found = extracted(counts)
    true, inside = soma(20, 18, 13).ravel(), soma(20, 18, 13).ravel() > 0.5
    background = found.background.footprints[:, 1:].toarray()
    alike = background.T @ true / np.linalg.norm(background, axis=0) / np.linalg.norm(true)
    assert alike.max() > 0.85
    assert found.n_cells <= 2  # a piece of it may pass for a cell, never all of it
    assert areas(found.footprints).max() < 0.4 * inside.sum()
    correlations = [abs(np.corrcoef(found.traces[i], trace)[0, 1]) for i in range(found.n_cells)]
    assert max(correlations) > 0.98
    left = counts.reshape(400, -1).T[inside] - model_of(found)[inside]
    assert left.std() < 12  # the noise is 10, the wide cell's peak 60


def test_large_components_are_moved() -> None:
    frames, _ = recording([(18, 26)])
    counts = frames.round().astype(np.uint16)
    usual, strict = extracted(counts), extracted(counts, replace(DEFAULT, max_size=0.8))
    assert (usual.n_cells, strict.n_cells) == (1, 0)
    more = strict.background.footprints.shape[1] - usual.background.footprints.shape[1]
    assert more == 1
    kept = sp.csc_array(strict.background.footprints[:, [-1]]).toarray().ravel()
    cosine = kept @ soma(18, 26).ravel() / np.linalg.norm(kept) / np.linalg.norm(soma(18, 26))
    assert cosine > 0.95


def test_small_components_are_dropped() -> None:
    counts = recording([(18, 26)])[0].round().astype(np.uint16)
    strict = extracted(counts, replace(DEFAULT, min_size=1.5))
    usual = extracted(counts)
    assert (strict.n_cells, usual.n_cells) == (0, 1)
    assert strict.background.traces.shape == usual.background.traces.shape


def test_a_cell_that_does_not_fit_is_refused() -> None:
    movie = Movie(da.zeros((50, *FIELD), dtype="uint16"), 10.0)
    with pytest.raises(InputError, match="cell_radius is 20 px but the field is only 37 x 53 px"):
        extract_sources(movie, replace(DEFAULT, cell_radius=20.0))


def test_the_builder_does_not_compute() -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the builder computed")

    with dask.config.set(scheduler=refuse):
        extract_sources(Movie(da.zeros((500, *FIELD)), 10.0), DEFAULT)


def test_two_searches_of_one_movie_do_not_disturb_each_other() -> None:
    """Kernels that work in place must not share what they read."""
    frames = recording([(10, 12), (26, 38)])[0].round().astype(np.uint16)
    movie = Movie(da.from_array(frames, chunks=(100, *FIELD)), 10.0)
    settings = [DEFAULT, replace(DEFAULT, threshold=20.0)]
    together = dask.compute(*(extract_sources(movie, s) for s in settings), num_workers=2)
    for found, parameters in zip(together, settings, strict=True):
        assert_equal(found, extracted(frames, parameters))


def test_the_graph_is_small_and_grows_with_the_movie() -> None:
    """Tasks of a pass take 256 frames, those of the search a patch: none per chunk or pixel."""
    sizes = [
        len(dict(extract_sources(Movie(da.zeros((n, 64, 88), chunks=64), 10.0), DEFAULT).dask))
        for n in (1024, 2048)
    ]
    assert sizes[0] < 60
    assert sizes[1] - sizes[0] < 50


@pytest.mark.parametrize("decay_time", [0.1, 1.0], ids=["frames", "bins of 5 frames"])
def test_noise_is_that_of_single_frames(decay_time: float) -> None:
    """Also where cells are searched in averaged frames; the sd of 400 frames is known to 4 %."""
    frames = np.random.default_rng(3).normal(1000, 7, (400, 37, 53)).astype(np.float32)
    movie = Movie(da.from_array(frames, chunks=100), frame_rate=10.0)
    model = search(movie, SourceExtractionParameters(decay_time=decay_time)).compute()
    assert np.median(model.noise) == pytest.approx(7, rel=0.05)
