from __future__ import annotations

import dask
import numpy as np
import pytest
import scipy.sparse as sp
from dask.delayed import delayed
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_calcium.activity.dff import (
    DffParameters,
    background_under_cells,
    dff,
    dff_components,
    running_percentile,
)
from napari_calcium.components import Background, Components
from napari_calcium.errors import InputError

RATE = 30.0


def brute_force(trace: np.ndarray, window: int, percentile: float) -> np.ndarray:
    result = np.full(len(trace), np.nan, np.float32)
    for t in range(len(trace)):
        values = trace[max(t - window // 2, 0) : t + (window + 1) // 2].astype(np.float64)
        values = values[np.isfinite(values)]
        if len(values):
            result[t] = np.percentile(values, percentile)
    return result


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(
        st.one_of(st.floats(-1e6, 1e6, width=32), st.integers(-3, 3).map(float), st.just(np.nan)),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 90),
    st.one_of(st.floats(0, 100), st.sampled_from([0, 8, 50, 100])),
)
def test_percentile_equals_brute_force(values: list[float], window: int, percentile: float) -> None:
    """Bit by bit after rounding to float32."""
    trace = np.array(values, np.float32)
    found = running_percentile(trace[None], window, percentile)[0]
    np.testing.assert_array_equal(found, brute_force(trace, window, percentile))


@pytest.mark.parametrize("window", [1, 2, 7, 100, 511, 513, 1400, 5000])
def test_percentile_across_parts(window: int) -> None:
    """Longer than one ranked part of 512 frames, windows shorter and longer than it."""
    traces = np.random.default_rng(0).normal(size=(2, 1300)).astype(np.float32)
    traces[1] = np.round(traces[1])
    found = running_percentile(traces, window, 8.0)
    for row, trace in zip(found, traces, strict=True):
        np.testing.assert_array_equal(row, brute_force(trace, window, 8.0))


def test_percentile_runs_along_time() -> None:
    """Each cell by itself: a constant per cell comes back, whatever the other cells are."""
    levels = np.arange(37.0)[:, None] * np.ones((1, 53))
    np.testing.assert_array_equal(running_percentile(levels, 9, 8.0), levels)


def test_percentile_shapes_and_errors() -> None:
    assert running_percentile(np.zeros((0, 9)), 3, 8).shape == (0, 9)
    assert running_percentile(np.zeros((3, 0)), 3, 8).shape == (3, 0)
    with pytest.raises(ValueError, match="window 0"):
        running_percentile(np.zeros((1, 9)), 0, 8)
    with pytest.raises(ValueError, match="percentile 101"):
        running_percentile(np.zeros((1, 9)), 3, 101)
    with pytest.raises(ValueError, match="1 axes"):
        running_percentile(np.zeros(9), 3, 8)


def known_cell(n_frames: int = 3000, drift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Fluorescence of one cell resting at 80 on a background of 20, and its true dF/F."""
    resting = 80 + drift * np.arange(n_frames) / n_frames
    change = np.zeros(n_frames)
    for start in range(200, n_frames, 700):
        change[start:] += 0.5 * 0.95 ** np.arange(n_frames - start)
    return resting + (resting + 20) * change, change


@pytest.mark.parametrize("drift", [0.0, 8.0])
def test_known_change_is_recovered(drift: float) -> None:
    """To 0.001; on a slope the 8th percentile is that of 12.6 s earlier, 0.01 here, so 0.02."""
    fluorescence, truth = known_cell(drift=drift)
    half = fluorescence[None] / 2
    result = dff(half, half, np.full((1, 3000), 20.0), DffParameters(), RATE)
    assert np.abs(result.traces[0] - truth).max() < (0.02 if drift else 1e-3)
    assert not result.floored.any()
    assert result.traces.dtype == result.baseline.dtype == np.float32


def test_baseline_is_the_denominator() -> None:
    fluorescence, _ = known_cell()
    residuals = np.random.default_rng(1).normal(size=(1, 3000))
    background = np.full((1, 3000), 20.0)
    result = dff(fluorescence[None], residuals, background, DffParameters(), RATE)
    total = (fluorescence + residuals).astype(np.float32)
    resting = running_percentile(total, 900, 8.0)
    np.testing.assert_allclose(result.baseline, resting + 20, rtol=1e-6)
    np.testing.assert_allclose(result.traces * result.baseline, total - resting, atol=1e-4)


@pytest.mark.parametrize("level", [0.0, -50.0, 1e-30])
def test_f0_near_or_below_zero_is_floored_and_flagged(level: float) -> None:
    """With a floor of 1 noise level, dF/F of noise stays within its range of about 10."""
    noise = np.random.default_rng(2).normal(size=(2, 1000)) * [[1.0], [1.0]]
    traces = noise + np.array([[level], [100.0]])
    zeros = np.zeros_like(traces)
    result = dff(traces, zeros, zeros, DffParameters(), RATE)
    assert result.floored.tolist() == [True, False]
    assert np.abs(result.traces).max() < 10
    assert np.all(result.baseline > 0)
    higher = dff(traces, zeros, zeros, DffParameters(floor=200.0), RATE)
    assert higher.floored.all()


@pytest.mark.parametrize("n_frames", [1, 2, 3, 31])
@pytest.mark.parametrize("level", [0.0, 5.0, -5.0, 1e-42, 1e30])
@pytest.mark.parametrize("floor", [0.0, 1.0])
def test_flat_traces_do_not_change(n_frames: int, level: float, floor: float) -> None:
    traces = np.full((3, n_frames), level)
    zeros = np.zeros_like(traces)
    result = dff(traces, zeros, zeros, DffParameters(floor=floor), RATE)
    np.testing.assert_array_equal(result.traces, 0)
    assert np.isfinite(result.baseline).all()
    assert result.floored.all() == (level < 1e-30)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50),
    st.floats(0.01, 1000),
    st.floats(0, 100),
    st.floats(0, 5),
)
def test_never_infinite_nor_nan(
    values: list[float], window: float, percentile: float, floor: float
) -> None:
    traces = np.array([values])
    zeros = np.zeros_like(traces)
    result = dff(traces, zeros, zeros, DffParameters(window, percentile, floor), RATE)
    assert np.isfinite(result.traces).all()
    assert np.all(result.baseline > 0)


def test_nan_stays_where_it_was() -> None:
    fluorescence, _ = known_cell(1000)
    traces = fluorescence[None].copy()
    traces[0, [0, 500]] = [np.nan, np.inf]
    zeros = np.zeros_like(traces)
    result = dff(traces, zeros, zeros + 20, DffParameters(), RATE)
    assert np.flatnonzero(~np.isfinite(result.traces[0])).tolist() == [0, 500]
    assert np.isnan(result.traces[0, [0, 500]]).all()
    assert np.isfinite(result.baseline).all()


def components(n_cells: int, n_frames: int) -> Components:
    """Cells on a field of 5 x 7 with two background components."""
    rng = np.random.default_rng(3)
    dense = rng.random((35, n_cells)) * (rng.random((35, n_cells)) < 0.3)
    dense /= np.maximum(np.linalg.norm(dense, axis=0), 1e-9)
    background = Background(sp.csc_array(rng.random((35, 2))), 50 * rng.random((2, n_frames)))
    traces = 100 * rng.random((n_cells, n_frames))
    residuals = rng.normal(size=(n_cells, n_frames))
    identity = np.arange(n_cells)
    footprints = sp.csc_array(dense)
    return Components(footprints, (5, 7), traces, residuals, traces, background, identity)


def test_background_in_the_unit_of_the_traces() -> None:
    """The trace a cell would have if the background were the only light: least squares."""
    cells = components(6, 40)
    movie = cells.background.footprints @ cells.background.traces
    footprints = cells.footprints.toarray()
    expected = [np.linalg.lstsq(footprints[:, [i]], movie)[0][0] for i in range(6)]
    np.testing.assert_allclose(background_under_cells(cells), expected, rtol=1e-4)


def test_dff_does_not_depend_on_the_scale_of_footprints() -> None:
    """Doubled footprints with halved traces are the same cells (float32 rounding)."""
    cells = components(4, 200)
    scaled = Components(
        2 * cells.footprints,
        cells.shape,
        cells.traces / 2,
        cells.residuals / 2,
        cells.deconvolved / 2,
        cells.background,
        cells.cell_id,
    )
    first, second = (
        dff_components(delayed(c), RATE, DffParameters(window=2.0)).compute(scheduler="sync")
        for c in (cells, scaled)
    )
    np.testing.assert_allclose(second.traces, first.traces, atol=1e-5)


def test_empty_footprint_and_no_background() -> None:
    empty = sp.csc_array((35, 1), dtype=np.float32)
    nothing = Background(sp.csc_array((35, 0), dtype=np.float32), np.zeros((0, 10)))
    ones = np.ones((1, 10))
    cells = Components(empty, (5, 7), ones, ones, ones, nothing, np.arange(1))
    np.testing.assert_array_equal(background_under_cells(cells), np.zeros((1, 10)))


def test_builder_computes_nothing_and_gives_the_kernels_result() -> None:
    cells = components(3, 120)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed while building")

    with dask.config.set(scheduler=refuse):
        lazy = dff_components(delayed(cells), RATE, DffParameters(window=1.0))
    result = lazy.compute(scheduler="sync")
    under = background_under_cells(cells)
    expected = dff(cells.traces, cells.residuals, under, DffParameters(window=1.0), RATE)
    np.testing.assert_array_equal(result.traces, expected.traces)
    np.testing.assert_array_equal(result.baseline, expected.baseline)
    none = dff_components(delayed(components(0, 120)), RATE).compute(scheduler="sync")
    assert none.traces.shape == none.baseline.shape == (0, 120)
    assert none.floored.shape == (0,)


def test_wrong_arguments_raise() -> None:
    zeros = np.zeros((1, 9))
    with pytest.raises(InputError, match="frame_rate is 0 Hz"):
        dff(zeros, zeros, zeros, DffParameters(), 0)
    with pytest.raises(InputError, match="window is 0 s"):
        DffParameters(window=0)
    with pytest.raises(InputError, match="percentile is 120 %"):
        DffParameters(percentile=120)
    with pytest.raises(ValueError, match="differ in shape"):
        dff(zeros, zeros, np.zeros((1, 8)), DffParameters(), RATE)


def test_a_floor_of_next_to_nothing_gives_no_infinity() -> None:
    """Found by hypothesis: noise times the smallest number there is."""
    traces = np.array([[0.0, 4.0]], np.float32)
    zeros = np.zeros_like(traces)
    result = dff(traces, zeros, zeros, DffParameters(window=1.0, percentile=0.0, floor=1e-45), 1.0)
    assert np.isfinite(result.traces).all()
