from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import nnls

from napari_calcium.extraction.spatial import update_footprints


@pytest.fixture
def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (pixel, time), traces (cell, time) that correlate, and the support (pixel, cell)."""
    rng = np.random.default_rng(0)
    traces = rng.exponential(size=(6, 300)) + 0.5 * rng.exponential(size=300)
    support = rng.random((200, 6)) < 0.5
    weights = support * np.maximum(rng.normal(0.3, 1, (200, 6)), 0)
    return weights @ traces + rng.normal(size=(200, 300)), traces, support


def products(pixels: np.ndarray, traces: np.ndarray, support: np.ndarray) -> sp.csc_array:
    pattern = sp.csc_array(support.astype(np.float64))
    pixel, cell = sp.coo_array(pattern).coords
    data = np.einsum("et,et->e", pixels[pixel], traces[cell])
    return sp.csc_array((data, pattern.indices, pattern.indptr), shape=pattern.shape)


def test_without_penalty_it_is_non_negative_least_squares(
    problem: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """The descent ends when a sweep changes less than 1e-4 of the largest weight: 2e-3 here."""
    pixels, traces, support = problem
    sums = products(pixels, traces, support)
    found = update_footprints(sums, traces @ traces.T, np.zeros(sums.nnz)).toarray()
    for pixel in range(200):
        cells = np.flatnonzero(support[pixel])
        expected = np.zeros(6)
        if len(cells):
            expected[cells] = nnls(traces[cells].T, pixels[pixel])[0]
        np.testing.assert_allclose(found[pixel], expected, atol=2e-3)


def test_a_penalty_is_that_of_the_lasso(
    problem: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """The conditions of Karush, Kuhn and Tucker, per stored entry."""
    pixels, traces, support = problem
    sums, gram = products(pixels, traces, support), traces @ traces.T
    penalty = np.random.default_rng(1).uniform(0, 0.5, sums.nnz) * np.abs(sums.data)
    found = update_footprints(sums, gram, penalty).toarray().astype(float)
    lowered = sp.csc_array((sums.data - penalty, sums.indices, sums.indptr), sums.shape).toarray()
    slope = (lowered - found @ gram) / np.diagonal(gram)
    assert (found >= 0).all()
    assert (found[~support] == 0).all()
    assert np.abs(slope[support & (found > 0)]).max() < 5e-3
    assert slope[support & (found == 0)].max() < 5e-3
    assert 0 < np.count_nonzero(found) < np.count_nonzero(support)


def test_a_large_penalty_leaves_nothing(
    problem: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    pixels, traces, support = problem
    sums = products(pixels, traces, support)
    found = update_footprints(sums, traces @ traces.T, np.full(sums.nnz, 1e9))
    assert found.shape == (200, 6)
    assert not found.toarray().any()


def test_a_flat_trace_and_no_cells() -> None:
    sums = sp.csc_array(np.array([[0.0, 3.0], [1.0, 0.0]]))
    found = update_footprints(sums, np.diag([0.0, 1.0]), np.zeros(2)).toarray()
    np.testing.assert_array_equal(found, [[0, 3], [0, 0]])
    none = update_footprints(sp.csc_array((9, 0)), np.zeros((0, 0)), np.zeros(0))
    assert none.shape == (9, 0)
