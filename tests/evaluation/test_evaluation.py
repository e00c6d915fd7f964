from __future__ import annotations

from dataclasses import replace
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
from napari_calcium.evaluation.classifier import cnn_probability
from napari_calcium.evaluation.evaluation import (
    ComponentEvaluationParameters,
    evaluate_components,
    overlaps,
    why_not_asked,
)
from napari_calcium.evaluation.snr import trace_snr
from napari_calcium.evaluation.spatial_correlation import correlations, triggered_images
from napari_calcium.movie import Movie

FIELD = (37, 53)
N_FRAMES = 900
PARAMETERS = ComponentEvaluationParameters()
RADIUS = 5.0
TRACES = ("traces", "residuals", "deconvolved")


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


def evaluated(movie: Movie, components: Components, *, ask: bool = False) -> Quality:
    lazy = evaluate_components(movie, delayed(components), PARAMETERS, RADIUS, ask=ask)
    quality = lazy.compute()
    assert isinstance(quality, Quality)
    return quality


def test_cells_are_accepted_and_noise_is_not() -> None:
    movie, components = recording(3)
    quality = evaluated(movie, components)
    assert quality.accepted.tolist() == [True, True, False]
    assert np.isnan(quality.cnn_probability).all()
    raw = components.traces + components.residuals
    np.testing.assert_array_equal(quality.snr, trace_snr(raw, 10.0, PARAMETERS.decay_time))
    images = triggered_images(movie, delayed(components), PARAMETERS.decay_time).compute()
    np.testing.assert_array_equal(quality.spatial_correlation, correlations(components, images))
    assert abs(quality.spatial_correlation[2]) < 0.4


def test_scores_of_many_cells_are_those_of_each() -> None:
    """More cells than are taken at a time."""
    movie, components = recording(2)
    many = replace(
        components,
        footprints=sp.hstack([components.footprints] * 40, format="csc"),
        cell_id=np.arange(80),
        **{n: np.tile(getattr(components, n), (40, 1)) for n in TRACES},
        **dict.fromkeys(("baseline", "noise", "time_constants")),
    )
    np.testing.assert_array_equal(
        evaluated(movie, many).snr, np.tile(evaluated(movie, components).snr, 40)
    )


def test_the_classifier_is_asked_of_the_footprints() -> None:
    movie, components = recording(3)
    quality = evaluated(movie, components, ask=True)
    expected = cnn_probability(components.footprints, FIELD, RADIUS)
    np.testing.assert_array_equal(quality.cnn_probability, expected)
    assert np.isfinite(expected).all()


def test_sizes_are_in_discs() -> None:
    """Discs of 5 px radius with a soft edge, above a fifth of the maximum: to 15 %."""
    movie, components = recording(3)
    np.testing.assert_allclose(evaluated(movie, components).size, 1, atol=0.15)


def test_triggered_images_look_like_the_cells() -> None:
    """A cell of a peak of 500 counts in unit norm, over noise of 8: correlation above 0.95."""
    movie, components = recording(3)
    images = evaluated(movie, components).triggered
    assert images is not None
    for cell in range(2):
        image = images[:, [cell]].toarray().ravel()
        around = image != 0
        footprint = components.footprint(cell).ravel()
        assert np.corrcoef(image[around], footprint[around])[0, 1] > 0.95
        assert 100 < image.max() / footprint.max() < 500


def test_pairs_are_those_that_overlap() -> None:
    images = np.stack([soma(10, 10), soma(11, 11), soma(10, 17), soma(30, 40)])
    pairs, part = overlaps(sp.csc_array(images.reshape(4, -1).T))
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    inside = images.reshape(4, -1) > 0.2
    for (first, second), value in zip(pairs, part, strict=True):
        both = (inside[first] & inside[second]).sum()
        assert value == pytest.approx(both / min(inside[first].sum(), inside[second].sum()))


def test_an_empty_footprint_overlaps_nothing() -> None:
    empty = sp.csc_array(np.stack([np.zeros(37 * 53), soma(10, 10).ravel()], axis=1))
    pairs, part = overlaps(empty)
    assert pairs.shape == (0, 2)
    assert part.shape == (0,)


@pytest.mark.parametrize("n_cells", [0, 1])
@pytest.mark.parametrize("ask", [False, True])
def test_few_cells(n_cells: int, ask: bool) -> None:
    movie, components = recording(n_cells)
    quality = evaluated(movie, components, ask=ask)
    assert quality.snr.shape == quality.accepted.shape == (n_cells,)
    assert not quality.accepted.any()


@pytest.mark.parametrize(
    ("classifier", "modality", "extraction", "asked"),
    [
        ("automatic", "two-photon", {"initialization": "greedy"}, True),
        ("automatic", "one-photon", {"initialization": "greedy"}, False),
        ("automatic", "two-photon", {"initialization": "sparse_nmf"}, False),
        ("automatic", "two-photon", {"initialization": "greedy", "connected": False}, False),
        ("on", "one-photon", {"initialization": "graph_nmf"}, True),
        ("off", "two-photon", {"initialization": "greedy"}, False),
    ],
)
def test_the_classifier_is_not_asked_of_what_it_does_not_know(
    classifier: Any, modality: str, extraction: dict[str, Any], asked: bool
) -> None:
    parameters = ComponentEvaluationParameters(classifier=classifier)
    why = why_not_asked(parameters, modality, extraction)
    assert (why == "") == asked
    assert asked or why.startswith("The classifier was not asked: ")


def test_the_builder_does_not_compute() -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the builder computed")

    movie, components = recording(1)
    with dask.config.set(scheduler=refuse):
        evaluate_components(movie, delayed(components), PARAMETERS, RADIUS)
