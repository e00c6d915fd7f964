from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from dask.delayed import delayed
from numpy.typing import NDArray

from napari_calcium.components import Background, Components, Quality
from napari_calcium.errors import InputError
from napari_calcium.evaluation.evaluation import (
    ComponentEvaluationParameters,
    decide,
    evaluate_components,
)
from napari_calcium.evaluation.snr import trace_snr
from napari_calcium.evaluation.spatial_correlation import spatial_correlation
from napari_calcium.movie import Movie

FIELD = (37, 53)
N_FRAMES = 900
THRESHOLDS = ComponentEvaluationParameters(
    snr_lower=1.0, snr_upper=2.0, correlation_lower=0.2, correlation_upper=0.8
)


def soma(y: float, x: float) -> NDArray[np.float64]:
    rows, columns = np.mgrid[: FIELD[0], : FIELD[1]]
    return np.clip(5.5 - np.hypot(rows - y, columns - x), 0, 1)


def recording(n_cells: int) -> tuple[Movie, Components]:
    """A movie of cells that are there, but for the last: that one is noise in a wrong place."""
    rng = np.random.default_rng(0)
    images = np.array([soma(10 + 9 * i, 10 + 14 * i) for i in range(n_cells)])
    flat = images.reshape(n_cells, 37 * 53)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True) if n_cells else flat
    traces = np.zeros((n_cells, N_FRAMES))
    for number, trace in enumerate(traces[:-1]):
        for start in range(30 + 20 * number, N_FRAMES, 150):
            trace[start:] += 500 * 0.85 ** np.arange(N_FRAMES - start)
    pixels = flat.T @ traces + 300
    frames = pixels.T.reshape(N_FRAMES, *FIELD) + rng.normal(0, 8, (N_FRAMES, *FIELD))
    components = Components(
        footprints=sp.csc_array(flat.T),
        shape=FIELD,
        traces=traces,
        residuals=rng.normal(0, 8, traces.shape),
        deconvolved=traces,
        background=Background(sp.csc_array(np.full((37 * 53, 1), 300.0)), np.ones((1, N_FRAMES))),
        cell_id=np.arange(n_cells),
    )
    movie = Movie(da.from_array(frames.round().astype(np.uint16), chunks=(200, 37, 20)), 10.0)
    return movie, components


@pytest.mark.parametrize(
    ("snr", "correlation", "accepted"),
    [
        (2.0, 0.5, True),  # at the upper threshold is enough
        (1.5, 0.8, True),
        (9.0, 0.9, True),
        (1.5, 0.5, False),  # neither is enough
        (1.0, 0.9, False),  # at the lower threshold fails
        (9.0, 0.2, False),
        (0.0, -1.0, False),
        (np.inf, 0.5, True),
        (np.nan, np.nan, False),
    ],
)
def test_any_upper_and_no_lower(snr: float, correlation: float, accepted: bool) -> None:
    found = decide(np.array([snr]), np.array([correlation]), THRESHOLDS)
    assert found.dtype == bool
    assert found.tolist() == [accepted]


def test_a_lower_threshold_of_minus_1_asks_only_for_the_other_score() -> None:
    lenient = ComponentEvaluationParameters(correlation_lower=-1.0)
    assert decide(np.array([9.0]), np.array([-0.9]), lenient).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"snr_lower": 3.0}, r"snr_lower is 3, above snr_upper \(2.5\); lower it"),
        (
            {"correlation_upper": 0.5},
            r"correlation_lower is 0.8, above correlation_upper \(0.5\); lower it",
        ),
        ({"correlation_upper": 1.1}, "correlation_upper is 1.1 1; it must be at most 1 1"),
        ({"decay_time": 0}, "decay_time is 0 s; it must be above 0 s"),
    ],
)
def test_thresholds_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ComponentEvaluationParameters(**changes)


def test_cells_are_accepted_and_noise_is_not() -> None:
    movie, components = recording(3)
    parameters = ComponentEvaluationParameters()
    quality = evaluate_components(movie, delayed(components), parameters).compute()
    assert isinstance(quality, Quality)
    assert quality.accepted.tolist() == [True, True, False]
    assert np.isnan(quality.cnn_probability).all()
    raw = components.traces + components.residuals
    np.testing.assert_array_equal(quality.snr, trace_snr(raw, 10.0, parameters.decay_time))
    correlation = spatial_correlation(movie, delayed(components), parameters.decay_time)
    np.testing.assert_array_equal(quality.spatial_correlation, correlation.compute())
    assert abs(quality.spatial_correlation[2]) < 0.4


@pytest.mark.parametrize("n_cells", [0, 1])
def test_few_cells(n_cells: int) -> None:
    movie, components = recording(n_cells)
    parameters = ComponentEvaluationParameters()
    quality = evaluate_components(movie, delayed(components), parameters).compute()
    assert quality.snr.shape == quality.accepted.shape == (n_cells,)
    assert not quality.accepted.any()


def test_the_builder_does_not_compute() -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the builder computed")

    movie, components = recording(1)
    with dask.config.set(scheduler=refuse):
        evaluate_components(movie, delayed(components), ComponentEvaluationParameters())
