from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray

from napari_calcium.components import Background, Components
from napari_calcium.deconvolution.foopsi import DeconvolvedTraces
from napari_calcium.extraction.edit import Edit, finished, selected

FIELD = (37, 53)
OF_CELLS = ("traces", "residuals", "deconvolved", "baseline", "noise", "time_constants")


def square(x: int) -> NDArray[np.float32]:
    """A footprint (pixel, 1) of 5 x 5 px, whose column of the left edge is given."""
    image = np.zeros(FIELD, np.float32)
    image[10:15, x : x + 5] = 0.2
    return image.reshape(-1, 1)


@pytest.fixture(params=[0, 1])
def components(request: pytest.FixtureRequest) -> Components:
    """Six squares in a row; the first three overlap, 0 and 1, 1 and 2; the others are apart."""
    rng = np.random.default_rng(request.param)
    footprints = np.concatenate([square(x) for x in (0, 4, 8, 20, 30, 40)], axis=1)
    values = {name: rng.normal(size=(6, 90)) for name in OF_CELLS[:3]}
    return Components(
        footprints=sp.csc_array(footprints),
        shape=FIELD,
        background=Background(sp.csc_array(rng.random((37 * 53, 2))), rng.random((2, 90))),
        cell_id=np.array([7, 3, 9, 4, 12, 5]),
        baseline=rng.random(6),
        noise=rng.random(6),
        time_constants=rng.random((6, 2)),
        **values,
    )


def as_it_is(raw: NDArray[np.float32], frame_rate: float) -> DeconvolvedTraces:
    """A denoising that finds half of a trace to be calcium and a baseline of 1, 2, 3 ..."""
    counts = np.arange(1, len(raw) + 1, dtype=np.float32)
    times = np.stack([counts, counts], axis=1) / frame_rate
    return DeconvolvedTraces(raw / 2, np.abs(raw), counts, 2 * counts, times)


@pytest.mark.parametrize(
    ("removed", "changed", "new", "kept", "touched"),
    [
        ([], [0], None, [0, 1, 2, 3, 4, 5], [0, 1]),
        ([1], [], None, [0, 2, 3, 4, 5], [0, 2]),
        ([3], [], None, [0, 1, 2, 4, 5], []),
        ([], [], 24, [0, 1, 2, 3, 4, 5], [3]),
        ([4], [], 27, [0, 1, 2, 3, 5], []),
        ([0, 1], [5], 11, [2, 3, 4, 5], [2, 5]),
    ],
)
def test_cells_that_share_light_are_touched(
    components: Components,
    removed: list[int],
    changed: list[int],
    new: int | None,
    kept: list[int],
    touched: list[int],
) -> None:
    footprints = components.footprints[:, :0] if new is None else sp.csc_array(square(new))
    edit = Edit(components, footprints, np.array(removed, int), np.array(changed, int))
    assert edit.kept.tolist() == kept
    assert edit.touched.tolist() == touched
    expected = np.concatenate(
        [components.footprints.toarray()[:, touched], footprints.toarray()], axis=1
    )
    np.testing.assert_array_equal(edit.affected.toarray(), expected)


def test_a_cell_without_pixels_can_change(components: Components) -> None:
    footprints = components.footprints.toarray()
    footprints[:, 3] = 0
    cells = replace(components, footprints=sp.csc_array(footprints))
    edit = Edit(cells, cells.footprints[:, :0], changed=np.array([0, 3]))
    assert edit.touched.tolist() == [0, 1, 3]


def test_what_a_cell_may_reach_counts_while_it_is_fitted(components: Components) -> None:
    wide = sp.csc_array(square(16) + square(20))
    edit = Edit(components, sp.csc_array(square(15)), support=wide)
    assert edit.touched.tolist() == [3]
    assert edit.reach is wide
    assert Edit(components, sp.csc_array(square(15))).touched.tolist() == []


def test_all_is_joined_in_its_place(components: Components) -> None:
    """Cell 1 goes, 0 and 2 are estimated, one comes; by hand with the denoising above."""
    edit = Edit(components, sp.csc_array(square(30)), np.array([1]))
    assert edit.touched.tolist() == [0, 2, 4]
    raw = np.random.default_rng(5).normal(size=(4, 90)).astype(np.float32)
    found = finished(edit, raw, as_it_is, frame_rate=10.0)
    assert found.cell_id.tolist() == [7, 9, 4, 12, 5, 13]
    counts = np.arange(1, 5, dtype=np.float32)
    places = [0, 1, 3, 5]
    np.testing.assert_array_equal(found.traces[places], raw / 2 - counts[:, None])
    np.testing.assert_array_equal(found.residuals[places], raw / 2)
    np.testing.assert_array_equal(found.deconvolved[places], np.abs(raw))
    np.testing.assert_array_equal(found.noise[places], 2 * counts)
    np.testing.assert_allclose(found.time_constants[places, 0], counts / 10, rtol=1e-6)
    for name in OF_CELLS:
        before, after = getattr(components, name), getattr(found, name)
        np.testing.assert_array_equal(after[[2, 4]], before[[3, 5]])
    change = found.background.footprints - components.background.footprints
    expected = np.zeros_like(change.toarray())
    expected[:, [0]] = square(0) + 2 * square(8) + 3 * square(30) + 4 * square(30)
    np.testing.assert_allclose(change.toarray(), expected, atol=1e-6)  # roundings of 1 or so
    still = found.background.footprints[:, [0]].toarray()
    np.testing.assert_allclose(found.baseline[-1:], square(30).T[0] @ still, rtol=1e-5)


def test_the_image_at_rest_is_left_where_it_is_not_to_settle(components: Components) -> None:
    edit = Edit(components, components.footprints[:, :0], np.array([1]))
    found = finished(edit, np.ones((2, 90), np.float32), as_it_is, 10.0, settle=False)
    assert found.background is components.background
    found = finished(edit, np.ones((2, 90), np.float32), as_it_is, 10.0, settle=True)
    assert found.background is not components.background


def test_where_none_is_affected_the_others_are_selected(components: Components) -> None:
    """And no denoising is asked for."""

    def refuse(*_: Any) -> DeconvolvedTraces:
        raise AssertionError("there is nothing to denoise")

    edit = Edit(components, components.footprints[:, :0], np.array([3]))
    found = finished(edit, np.zeros((0, 90), np.float32), refuse, 10.0)
    expected = selected(components, [0, 1, 2, 4, 5])
    for name in (*OF_CELLS, "cell_id"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.background is components.background


def test_selected_cells_keep_all_that_is_theirs(components: Components) -> None:
    some = selected(components, [5, 2])
    assert some.cell_id.tolist() == [5, 9]
    for name in OF_CELLS:
        np.testing.assert_array_equal(getattr(some, name), getattr(components, name)[[5, 2]])
    np.testing.assert_array_equal(some.footprint(1), components.footprint(2))
    assert some.background is components.background
    by_mask = selected(components, components.cell_id < 6)
    assert by_mask.cell_id.tolist() == [3, 4, 5]
    assert selected(components, []).n_cells == 0
    some.traces[0] = 0
    assert components.traces[5].any()
