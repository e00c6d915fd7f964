from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from dask.delayed import delayed
from numpy.typing import NDArray
from scipy.optimize import nnls

from napari_calcium.extraction.hals import (
    hals_footprints,
    hals_traces,
    movie_footprints,
    movie_traces,
)
from napari_calcium.extraction.temporal import demixed_traces
from napari_calcium.movie import Movie

FIELD = (37, 53)
Doubles = NDArray[np.float64]
Problem = tuple[Doubles, Doubles, Doubles]


def somata(seed: int, n: int = 9, radius: float = 5) -> Doubles:
    """Footprints (pixel, cell) of unit norm, soft discs close together: cosines up to 0.9."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: FIELD[0], : FIELD[1]]
    places = rng.uniform((8, 12), (28, 40), (n, 2))
    images = [np.maximum(1.2 - np.hypot(y - a, x - b) / radius, 0).ravel() for a, b in places]
    footprints = np.array(images).T
    return np.asarray(footprints / np.linalg.norm(footprints, axis=0))


@pytest.fixture(params=[0, 1, 2])
def problem(request: pytest.FixtureRequest) -> Problem:
    """Pixels (pixel, time) with noise of 1, footprints (pixel, cell), traces (cell, time)."""
    rng = np.random.default_rng(request.param)
    footprints = somata(request.param)
    traces = 30 * rng.exponential(size=(9, 300)) * (rng.random((9, 300)) < 0.3)
    return footprints @ traces + rng.normal(size=(37 * 53, 300)), footprints, traces


def objective(pixels: Doubles, footprints: Doubles, traces: NDArray[np.floating]) -> float:
    return float(np.sum((pixels - footprints @ traces) ** 2))


# ---------------------------------------------------------------------------------------- traces


def test_traces_are_non_negative_least_squares(problem: Problem) -> None:
    """Each frame by Lawson and Hanson; 200 sweeps come to 2e-3 of traces of up to 200."""
    pixels, footprints, _ = problem
    expected = np.array([nnls(footprints, frame)[0] for frame in pixels.T]).T
    products, gram = footprints.T @ pixels, footprints.T @ footprints
    found = hals_traces(products, gram, sweeps=200)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert (found == 0).sum() > 100  # the bound matters


def test_the_usual_number_of_sweeps_is_nearly_enough() -> None:
    """Somata that overlap by half their diameter, cosine 0.4: to 1e-3 of the noise."""
    y, x = np.mgrid[: FIELD[0], : FIELD[1]]
    discs = [np.hypot(y - 18, x - centre) < 5 for centre in (15, 20, 25, 30)]
    footprints = np.array([disc.ravel() / np.linalg.norm(disc) for disc in discs]).T
    gram = footprints.T @ footprints
    assert 0.3 < gram[0, 1] < 0.5
    traces = 50 * np.random.default_rng(0).exponential(size=(4, 200))
    pixels = footprints @ traces + np.random.default_rng(1).normal(size=(37 * 53, 200))
    expected = np.array([nnls(footprints, frame)[0] for frame in pixels.T]).T
    np.testing.assert_allclose(hals_traces(footprints.T @ pixels, gram), expected, atol=1e-3)


def test_without_the_bound_it_is_least_squares(problem: Problem) -> None:
    """To 1e-2 of the noise: the ridge of 1e-6 of the direct solution, cosines up to 0.9."""
    pixels, footprints, _ = problem
    products = (footprints.T @ pixels).astype(np.float32)
    expected = demixed_traces(sp.csc_array(footprints), products)
    gram = footprints.T @ footprints
    found = hals_traces(products, gram, sweeps=500, nonnegative=False)
    assert found.min() < -1
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_no_sweep_makes_it_worse(problem: Problem) -> None:
    """From any start, and in the end it stands still; 1e-9: the traces are stored in float32."""
    pixels, footprints, _ = problem
    products, gram = footprints.T @ pixels, footprints.T @ footprints
    traces = np.random.default_rng(5).exponential(20, products.shape)
    values = [objective(pixels, footprints, traces)]
    for _ in range(12):
        traces = hals_traces(products, gram, traces, sweeps=1)
        values.append(objective(pixels, footprints, traces))
    assert (np.diff(values) <= 1e-9 * values[0]).all()
    assert values[1] < 0.9 * values[0]
    assert values[-2] - values[-1] < 1e-3 * (values[0] - values[-1])


def test_sweeps_follow_each_other(problem: Problem) -> None:
    """Twice three sweeps are six, but for float32 between them; the start is left as it is."""
    pixels, footprints, _ = problem
    products, gram = footprints.T @ pixels, footprints.T @ footprints
    start = np.ones(products.shape, np.float32)
    three = hals_traces(products, gram, start, sweeps=3)
    six = hals_traces(products, gram, three, sweeps=3)
    np.testing.assert_allclose(six, hals_traces(products, gram, start, sweeps=6), atol=1e-4)
    np.testing.assert_array_equal(start, 1)
    np.testing.assert_array_equal(hals_traces(products, gram, start, sweeps=0), start)


@pytest.mark.parametrize("form", [sp.csc_array, sp.csr_array, sp.coo_array])
def test_a_sparse_gram_gives_the_same(problem: Problem, form: Any) -> None:
    pixels, footprints, _ = problem
    products, gram = footprints.T @ pixels, footprints.T @ footprints
    assert 0 < np.count_nonzero(gram) < gram.size
    expected = hals_traces(products, gram)
    np.testing.assert_array_equal(hals_traces(products, form(gram)), expected)


def test_each_frame_is_solved_by_itself(problem: Problem) -> None:
    """Frames are swept over 256 at a time; cut elsewhere they give the same to the bit."""
    pixels, footprints, _ = problem
    products, gram = footprints.T @ pixels, footprints.T @ footprints
    whole = hals_traces(products, gram)
    parts = [hals_traces(products[:, cut], gram) for cut in (slice(0, 31), slice(31, 300))]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_an_empty_footprint_has_a_trace_of_zeros() -> None:
    footprints = somata(0, 3)
    footprints[:, 1] = 0
    pixels = footprints @ np.full((3, 20), 7.0)
    products, gram = footprints.T @ pixels, footprints.T @ footprints
    start = np.full((3, 20), 5.0)
    for traces in (None, start):
        found = hals_traces(products, gram, traces, sweeps=100)
        np.testing.assert_allclose(found[[0, 2]], 7, atol=1e-4)
        np.testing.assert_array_equal(found[1], 0)


def test_no_components_and_no_frames() -> None:
    assert hals_traces(np.zeros((0, 5)), np.zeros((0, 0))).shape == (0, 5)
    assert hals_traces(np.zeros((2, 0)), np.eye(2)).shape == (2, 0)


def test_nan_stays_where_it_is() -> None:
    """In its frame, in the component and in the one that overlaps it."""
    gram = np.array([[1.0, 0.3, 0.0], [0.3, 1.0, 0.0], [0.0, 0.0, 1.0]])
    products = np.ones((3, 4))
    products[0, 2] = np.nan
    found = hals_traces(products, gram)
    assert np.isnan(found[:2, 2]).all()
    assert np.isfinite(found[2]).all()
    assert np.isfinite(np.delete(found, 2, axis=1)).all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="the gram"):
        hals_traces(np.zeros((3, 5)), np.eye(2))
    with pytest.raises(ValueError, match="differ in shape"):
        hals_traces(np.zeros((2, 5)), np.eye(2), np.zeros((2, 4)))


# ------------------------------------------------------------------------------------ footprints


def sums_of(pixels: Doubles, traces: Doubles, support: NDArray[np.bool_]) -> sp.csc_array:
    pattern = sp.csc_array(support.astype(np.float64))
    pixel, cell = sp.coo_array(pattern).coords
    data = np.einsum("et,et->e", pixels[pixel], traces[cell])
    return sp.csc_array((data, pattern.indices, pattern.indptr), shape=pattern.shape)


def test_footprints_are_non_negative_least_squares(problem: Problem) -> None:
    """Each pixel by Lawson and Hanson, 1e-4 of the largest weight where the descent ends."""
    pixels, footprints, traces = problem
    support = footprints > 0
    found = hals_footprints(sums_of(pixels, traces, support), traces @ traces.T).toarray()
    for pixel in range(0, 37 * 53, 3):
        cells = np.flatnonzero(support[pixel])
        expected = np.zeros(9)
        if len(cells):
            expected[cells] = nnls(traces[cells].T, pixels[pixel])[0]
        np.testing.assert_allclose(found[pixel], expected, atol=2e-4)


def test_a_penalty_takes_weight_away(problem: Problem) -> None:
    pixels, footprints, traces = problem
    sums, gram = sums_of(pixels, traces, footprints > 0), traces @ traces.T
    plain, large = hals_footprints(sums, gram), hals_footprints(sums, gram, np.full(sums.nnz, 1e9))
    assert plain.toarray().any()
    assert not large.toarray().any()


def test_traces_and_footprints_in_turn_get_better(problem: Problem) -> None:
    """The factorization from rough footprints: the objective only falls, towards the noise."""
    pixels, footprints, _ = problem
    support = footprints > 0
    estimate = support.astype(np.float64)
    values = []
    for _ in range(6):
        traces = hals_traces(estimate.T @ pixels, estimate.T @ estimate, sweeps=100)
        values.append(objective(pixels, estimate, traces))
        exact = traces.astype(np.float64)
        sums = sums_of(pixels, exact, support)
        estimate = hals_footprints(sums, exact @ exact.T).toarray().astype(np.float64)
        values.append(objective(pixels, estimate, traces))
    assert (np.diff(values) <= 1e-6 * values[0]).all()
    assert values[-1] < 1.01 * pixels.size  # as large as the noise alone


# ----------------------------------------------------------------------------------------- movie


@pytest.mark.parametrize("chunks", [400, (100, 37, 53), (77, 10, 20)])
def test_a_movie_gives_what_its_arrays_give(chunks: Any) -> None:
    """The same to the bit whatever the chunks; to float32 what dense arrays give."""
    footprints = somata(3).astype(np.float32)
    rng = np.random.default_rng(3)
    traces = (30 * rng.exponential(size=(9, 400))).astype(np.float32)
    pixels = footprints @ traces + rng.normal(size=(37 * 53, 400))
    frames = np.ascontiguousarray(pixels.T.reshape(400, *FIELD), dtype=np.float32)
    movie = Movie(da.from_array(frames, chunks=chunks), 10.0)
    sparse = sp.csc_array(footprints)
    found = movie_traces(movie, sparse).compute(num_workers=2)
    whole = movie_traces(Movie(da.from_array(frames, chunks=-1), 10.0), delayed(sparse)).compute()
    np.testing.assert_array_equal(found, whole)
    exact = footprints.astype(np.float64)
    expected = hals_traces(exact.T @ pixels, exact.T @ exact)
    np.testing.assert_allclose(found, expected, atol=2e-3)

    images = movie_footprints(movie, traces, sparse).compute(num_workers=2)
    sums = sums_of(pixels, traces.astype(np.float64), footprints > 0)
    gram = traces.astype(np.float64) @ traces.T
    np.testing.assert_allclose(images.toarray(), hals_footprints(sums, gram).toarray(), atol=1e-4)


def test_the_builders_compute_nothing_and_hold_the_arrays_once() -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the builder computed")

    movie = Movie(da.zeros((2560, *FIELD), chunks=100), 10.0)
    footprints = sp.csc_array(somata(0))
    with dask.config.set(scheduler=refuse):
        traces = movie_traces(movie, footprints)
        images = movie_footprints(movie, traces, footprints)
    graph = dict(images.dask)
    assert len(graph) < 50
    arguments = [value for task in graph.values() for value in getattr(task, "args", ())]
    assert len(arguments) > 50
    assert not any(sp.issparse(value) for value in arguments)
