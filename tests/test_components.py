from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from napari_calcium.components import PROPERTIES, Background, Components, Quality

SHAPE = (37, 53)
PIXELS = 37 * 53


def columns(n: int, pixels: int = PIXELS) -> sp.csc_array:
    return sp.csc_array(sp.random_array((pixels, n), density=0.05, rng=0, dtype=np.float64))


def rows(n: int, frames: int = 9) -> np.ndarray:
    return np.asfortranarray(np.arange(n * frames, dtype=float).reshape(n, frames))


@pytest.fixture
def components() -> Components:
    return Components(
        footprints=columns(3),
        shape=SHAPE,
        traces=rows(3),
        residuals=rows(3),
        deconvolved=rows(3),
        background=Background(columns(2), rows(2)),
        cell_id=np.array([7, 2, 5]),
    )


def test_parts_become_float32_in_c_order(components: Components) -> None:
    assert components.n_cells == 3
    for part in (components.traces, components.residuals, components.background.traces):
        assert part.dtype == np.float32
        assert part.flags.c_contiguous
    assert components.footprints.dtype == np.float32
    assert components.footprints.has_sorted_indices
    assert components.cell_id.dtype == np.int64


def test_the_callers_matrix_is_left_alone() -> None:
    parts = np.array([1.0, 2.0], np.float32), np.array([5, 2]), np.array([0, 2])
    mine = sp.csc_array(parts, shape=(PIXELS, 1))
    Background(mine, rows(1))
    np.testing.assert_array_equal(mine.indices, [5, 2])


def test_a_footprint_is_an_image_of_rows_and_columns(components: Components) -> None:
    for index in range(3):
        image = components.footprint(index)
        assert image.shape == SHAPE
        np.testing.assert_array_equal(
            image.ravel(), components.footprints.toarray()[:, index].astype(np.float32)
        )
    one = sp.csc_array(([1.0], ([2 * 53 + 40], [0])), shape=(PIXELS, 1))
    single = replace(
        components,
        footprints=one,
        traces=rows(1),
        residuals=rows(1),
        deconvolved=rows(1),
        cell_id=np.array([0]),
        **dict.fromkeys(PROPERTIES),
    )
    assert np.argwhere(single.footprint(0)).tolist() == [[2, 40]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (53, 38)}, r"footprints have 1961 pixels but the field is \(53, 38\)"),
        ({"background": Background(columns(2, 12), rows(2))}, "background is of another field"),
        ({"residuals": rows(2)}, "traces, residuals and deconvolved differ in shape"),
        ({"deconvolved": rows(3, 8)}, "traces, residuals and deconvolved differ in shape"),
        ({"footprints": columns(4)}, "4 footprints, 3 traces, 3 identities"),
        ({"cell_id": np.arange(2)}, "3 footprints, 3 traces, 2 identities"),
        ({"cell_id": np.zeros((3, 1))}, "3 footprints, 3 traces, 3 identities"),
        ({"cell_id": np.array([4, 1, 4])}, "two cells have the same identity"),
        ({"background": Background(columns(1), rows(1, 8))}, "other frames than the traces"),
        ({"traces": np.zeros(9)}, "traces have 1 axes"),
        ({"noise": np.zeros(2)}, r"3 cells, noise \(2,\)"),
        ({"time_constants": np.zeros(3)}, r"3 cells, time_constants \(3,\)"),
    ],
)
def test_parts_that_do_not_fit(
    components: Components, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(components, **changes)


def test_a_background_has_a_trace_for_each_footprint() -> None:
    with pytest.raises(ValueError, match="2 background footprints but 3 traces"):
        Background(columns(2), rows(3))
    with pytest.raises(ValueError, match="background traces have 1 axes"):
        Background(columns(1), np.zeros(9))


def test_no_cells(components: Components) -> None:
    none = replace(
        components,
        footprints=columns(0),
        traces=rows(0),
        residuals=rows(0),
        deconvolved=rows(0),
        cell_id=np.arange(0),
        **dict.fromkeys(PROPERTIES),
    )
    assert none.n_cells == 0
    assert none.time_constants.shape == (0, 2)


def test_what_is_not_known_of_a_cell_is_nan(components: Components) -> None:
    assert np.isnan(components.baseline).all()
    assert components.time_constants.shape == (3, 2)
    known = replace(components, noise=[1, 2, 3])
    assert known.noise.dtype == np.float32
    assert known.noise.tolist() == [1, 2, 3]


def test_they_cannot_be_changed(components: Components) -> None:
    with pytest.raises(FrozenInstanceError):
        components.traces = rows(3)  # type: ignore[misc]


def test_scores_are_of_the_same_cells() -> None:
    quality = Quality(np.arange(3), np.arange(3.0), np.full(3, np.nan), np.array([1, 0, 1]))
    assert quality.snr.dtype == np.float32
    assert quality.accepted.tolist() == [True, False, True]
    assert np.isnan(quality.size).all()
    assert quality.reasons.tolist() == [0, 1, 0]
    assert quality.pairs.shape == (0, 2)
    with pytest.raises(ValueError, match=r"scores of different shapes: \{'snr': \(2,\)"):
        replace(quality, snr=np.arange(2))
    with pytest.raises(ValueError, match="scores of different shapes"):
        Quality(*(np.zeros((2, 2)) for _ in range(4)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"1 overlaps but pairs \(0, 2\)"):
        replace(quality, overlap=np.ones(1))
    with pytest.raises(ValueError, match="3 cells, 2 triggered images"):
        replace(quality, triggered=sp.csc_array((37 * 53, 2)))
