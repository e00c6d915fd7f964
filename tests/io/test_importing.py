"""What the import asks for, and what it says of the values it read."""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest

from napari_calcium.errors import InputError
from napari_calcium.io.importing import ImportParameters, checked_range


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"frame_rate": 0}, "frame_rate is 0 Hz; it must be above 0 Hz"),
        ({"frame_rate": -30}, "frame_rate is -30 Hz; it must be above 0 Hz"),
        ({"frame_rate": "fast"}, "frame_rate is 'fast'; it must be a number in Hz"),
        ({"frame_rate": float("nan")}, "frame_rate is nan Hz; it must be a finite number in Hz"),
        ({"frame_rate": 1e9}, "frame_rate is 1e+09 Hz; it must be at most 100000 Hz"),
        ({"frame_rate": 30, "pixel_size": -1}, "pixel_size is -1 um; it must be at least 0 um"),
        ({}, "frame_rate is not given; it is needed, in Hz"),
    ],
)
def test_what_is_wrong_is_said(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        ImportParameters.from_mapping(values)
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("uint8", 0, 255),
        ("uint16", 32000, 65535),
        ("int16", -32768, -5),
        ("int32", -(2**31), 2**31 - 1),
    ],
)
@pytest.mark.parametrize("chunks", [-1, (7, 20, 30)])
def test_the_range_is_exact(dtype: str, low: int, high: int, chunks: Any) -> None:
    values = np.full((40, 37, 53), low, dtype)
    values[23, 36, 0] = high
    range_ = checked_range(da.from_array(values, chunks=chunks)).compute()
    assert range_ == {"": {"value_range": [low, high]}}
    assert {type(value) for value in range_[""]["value_range"]} == {int}  # JSON takes no others


def test_a_movie_of_one_value_is_refused() -> None:
    frames = da.full((40, 37, 53), 7, dtype="uint16", chunks=(8, 37, 53))
    with pytest.raises(InputError, match=r"^every pixel of the movie is 7; check that the right"):
        checked_range(frames).compute()


def test_each_block_is_looked_at_once_and_not_before() -> None:
    looked: list[int] = []

    def block(block_info: Any = None) -> Any:
        looked.append(block_info[None]["chunk-location"][0])
        return np.full((8, 3, 4), len(looked), "uint16")

    frames = da.map_blocks(block, chunks=((8,) * 5, (3,), (4,)), dtype="uint16", meta=np.empty(0))
    range_ = checked_range(frames)
    assert looked == []
    with dask.config.set(scheduler="synchronous"):
        range_.compute()
    assert sorted(looked) == [0, 1, 2, 3, 4]
