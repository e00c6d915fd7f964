from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from napari_calcium.extraction.temporal import demixed_traces


def test_it_is_least_squares() -> None:
    """To 1e-4 of the traces: a ridge of 1e-6 on footprints that overlap."""
    rng = np.random.default_rng(0)
    footprints = sp.csc_array(rng.random((37 * 53, 8)) * (rng.random((37 * 53, 8)) < 0.1))
    pixels = rng.normal(size=(37 * 53, 40)) + footprints @ rng.exponential(5, (8, 40))
    expected = np.linalg.lstsq(footprints.toarray(), pixels, rcond=None)[0]
    found = demixed_traces(footprints, (footprints.T @ pixels).astype(np.float32))
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_any_scale_of_a_footprint_is_undone() -> None:
    footprints = np.zeros((12, 2))
    footprints[:6, 0], footprints[4:, 1] = 1e4, 1e-4
    traces = np.array([[1e-4, 0, 3e-4], [2e4, 1e4, 0]])
    found = demixed_traces(sp.csc_array(footprints), footprints.T @ (footprints @ traces))
    scale = traces.max(axis=1, keepdims=True)
    np.testing.assert_allclose(found / scale, traces / scale, atol=1e-5)


def test_an_empty_footprint_has_a_trace_of_zeros_and_twins_share() -> None:
    footprints = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    found = demixed_traces(sp.csc_array(footprints), footprints.T @ np.array([[2.0], [2.0]]))
    np.testing.assert_allclose(found[:, 0], [1, 1, 0], atol=1e-5)


def test_no_footprints() -> None:
    none = demixed_traces(sp.csc_array((9, 0), dtype=np.float32), np.zeros((0, 5), np.float32))
    assert none.shape == (0, 5)
