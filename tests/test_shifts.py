"""Shifts as a noun: what they are of, their parts, crops and the field that is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from napari_calcium.errors import InputError
from napari_calcium.shifts import Shifts

FIELD = (37, 53)
GRID_Y, GRID_X = np.array([8.5, 28.0], np.float32), np.array([7.0, 26.5, 45.0], np.float32)


def piecewise(n: int = 5, planes: tuple[int, ...] = ()) -> Shifts:
    rng = np.random.default_rng(0)
    rigid = rng.normal(0, 3, (n, 2 + len(planes))).astype(np.float32)
    patches = rng.normal(0, 3, (n, *planes, 2, 3, 2)).astype(np.float32)
    flagged = np.arange(n) == 2
    return Shifts(rigid, (*planes, *FIELD), patches, GRID_Y, GRID_X, flagged)


def spread(shifts: Shifts, frame: int) -> NDArray[Any]:
    """Return the shift (y, x, axis) of one frame at each pixel, by an independent interpolation."""
    assert shifts.piecewise is not None
    y, x = np.indices(shifts.field[-2:])
    ends = (shifts.grid_y[[0, -1]], shifts.grid_x[[0, -1]])  # type: ignore[index]
    places = np.stack([y.clip(*ends[0]), x.clip(*ends[1])], axis=-1)
    grid: Any = (shifts.grid_y, shifts.grid_x)
    found: NDArray[Any] = RegularGridInterpolator(grid, shifts.piecewise[frame])(places)
    return found


class TestShape:
    """The parts belong together."""

    def test_of_a_plane_and_of_volumes(self) -> None:
        assert piecewise().n_frames == 5
        assert piecewise(planes=(4,)).field == (4, 37, 53)
        rigid = Shifts(np.zeros((3, 2), np.float32), (np.int64(37), 53))  # type: ignore[arg-type]
        assert rigid.flagged is not None
        assert rigid.flagged.tolist() == [False] * 3
        assert [type(size) for size in rigid.field] == [int, int]

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"field": (4, 37, 53)}, r"rigid has the shape \(5, 2\), the field is \(4, 37, 53\)"),
            ({"field": (53,)}, "rigid has the shape"),
            ({"rigid": np.zeros(5, np.float32)}, "rigid has the shape"),
            ({"flagged": np.zeros(4, bool)}, "flagged and rigid differ in frames"),
            ({"grid_y": None}, "need grid_y and grid_x"),
            ({"grid_x": GRID_X[:2]}, r"piecewise has the shape .*, the grid is \(2, 2\)"),
            ({"grid_x": GRID_X[::-1]}, "grid_y and grid_x must increase"),
            ({"rigid": np.full((5, 2), np.nan, np.float32)}, "shifts must be finite"),
            ({"piecewise": np.full((5, 2, 3, 2), np.inf, np.float32)}, "shifts must be finite"),
            ({"rigid": np.zeros((6, 2), np.float32)}, "differ in frames|piecewise has the shape"),
        ],
    )
    def test_parts_that_do_not_fit(self, changed: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            Shifts(**{**vars(piecewise()), **changed})

    def test_they_do_not_change(self) -> None:
        with pytest.raises(AttributeError):
            piecewise().field = (1, 2)  # type: ignore[misc]


class TestOfFrames:
    """A part of the recording."""

    @pytest.mark.parametrize("time", [slice(1, 4), np.array([True, False, True, True, False])])
    @pytest.mark.parametrize("planes", [(), (4,)])
    def test_all_parts_are_taken(self, planes: tuple[int, ...], time: Any) -> None:
        whole = piecewise(planes=planes)
        part = whole.of_frames(time)
        assert part.n_frames == 3
        assert part.field == whole.field
        for name in ("rigid", "piecewise", "flagged"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[time])

    def test_of_rigid_ones(self) -> None:
        shifts = Shifts(np.ones((5, 2), np.float32), FIELD)
        assert shifts.of_frames(slice(2)).piecewise is None
        assert shifts.of_frames(slice(0)).n_frames == 0


class TestCrop:
    """A part of the field."""

    @pytest.mark.parametrize("planes", [(), (4,)])
    def test_the_places_lie_where_they_lay(self, planes: tuple[int, ...]) -> None:
        whole = piecewise(planes=planes)
        part = whole.crop(slice(5, 30), slice(11, 53))
        assert part.field == (*planes, 25, 42)
        np.testing.assert_array_equal(part.rigid, whole.rigid)
        np.testing.assert_array_equal(part.piecewise, whole.piecewise)  # type: ignore[arg-type]
        if not planes:
            for frame in range(5):
                np.testing.assert_allclose(
                    spread(part, frame), spread(whole, frame)[5:30, 11:53], atol=1e-5
                )

    def test_of_rigid_ones(self) -> None:
        shifts = Shifts(np.ones((5, 2), np.float32), FIELD).crop(slice(10), slice(-5, None))
        assert (shifts.field, shifts.grid_y) == ((10, 5), None)

    @pytest.mark.parametrize(
        ("y", "x"),
        [(slice(5, 5), slice(9)), (slice(9), slice(53, 60)), (slice(0, 9, 2), slice(9))],
    )
    def test_nothing_and_steps_are_refused(self, y: slice, x: slice) -> None:
        with pytest.raises(InputError, match="of a field of 37 x 53 px is empty or has a step"):
            piecewise().crop(y, x)


def seen_by_all(shifts: Shifts) -> NDArray[np.bool_]:
    """Return which pixels (y, x) have their source inside of each frame that is not flagged."""
    assert shifts.flagged is not None
    y, x = np.indices(shifts.field[-2:])
    seen = np.ones(shifts.field[-2:], bool)
    for shift in shifts.rigid[~shifts.flagged][:, -2:]:
        seen &= (y - shift[0] >= 0) & (y - shift[0] <= shifts.field[-2] - 1)
        seen &= (x - shift[1] >= 0) & (x - shift[1] <= shifts.field[-1] - 1)
    return seen


SHIFT = st.one_of(st.just(0.0), st.integers(-6, 6).map(float), st.floats(-70, 70, width=32))


class TestValidRegion:
    """What every frame saw."""

    @given(st.lists(st.tuples(SHIFT, SHIFT), min_size=1, max_size=4), st.booleans())
    def test_it_is_all_that_was_seen(self, moved: list[tuple[float, float]], flag: bool) -> None:
        flagged = np.zeros(len(moved), bool)
        flagged[0] = flag
        shifts = Shifts(np.array(moved, np.float32), FIELD, flagged=flagged)
        seen = seen_by_all(shifts)
        region = shifts.valid_region()
        inside = np.zeros(FIELD, bool)
        inside[region] = True
        np.testing.assert_array_equal(inside, seen)
        for part, n in zip(region, FIELD, strict=True):
            assert 0 <= part.start <= part.stop <= n

    def test_of_patches_it_is_inside_of_what_was_seen(self) -> None:
        shifts = piecewise()
        y, x = np.indices(FIELD)
        seen = np.ones(FIELD, bool)
        for frame in (0, 1, 3, 4):  # the other one is flagged
            shift = spread(shifts, frame)
            seen &= (y - shift[..., 0] >= 0) & (y - shift[..., 0] <= 36)
            seen &= (x - shift[..., 1] >= 0) & (x - shift[..., 1] <= 52)
        region = shifts.valid_region()
        assert seen[region].all()
        assert seen[region].size > 0.3 * seen.sum()

    def test_of_volumes_it_is_of_their_planes(self) -> None:
        rigid = np.array([[9, 2, -3], [-9, -1, 4]], np.float32)
        assert Shifts(rigid, (5, *FIELD)).valid_region() == (slice(2, 36), slice(4, 50))

    def test_all_flagged(self) -> None:
        shifts = Shifts(np.full((2, 2), 3, np.float32), FIELD, flagged=np.ones(2, bool))
        assert shifts.valid_region() == (slice(0, 37), slice(0, 53))

    def test_no_frames(self) -> None:
        assert Shifts(np.zeros((0, 2), np.float32), FIELD).valid_region()[0] == slice(0, 37)
