"""The import stage: what must be known of a recording, and the look at its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.parameters import Parameters, parameter

__all__ = ["ImportParameters", "checked_range"]


@dataclass(frozen=True)
class ImportParameters(Parameters):
    """What a file does not say, or does not say reliably.

    Parameters
    ----------
    frame_rate : float
        Frames recorded per second, Hz; of volumes, volumes per second. CaImAn: fr; Suite2p: fs.
    pixel_size : float
        Length of a pixel's side, um; 0 where unknown. CaImAn: dxy.
    modality : {"two-photon", "one-photon"}
        How it was recorded. One-photon recordings (miniscopes, widefield) have no fluorescence at
        rest to divide by: their traces are "detrended", never dF/F. It can be changed later.
    """

    frame_rate: float = parameter(unit="Hz", above=0, maximum=100_000)
    pixel_size: float = parameter(0.0, unit="um", minimum=0)
    modality: Literal["two-photon", "one-photon"] = parameter("two-photon", mark=True)


def checked_range(frames: da.Array) -> Delayed:
    """Return lazily the smallest and the largest value of a movie, as attributes.

    Parameters
    ----------
    frames : dask.array.Array (time, y, x) or (time, z, y, x)
        The movie; each of its blocks is looked at once.

    Returns
    -------
    Delayed of dict
        ``{"": {"value_range": [smallest, largest]}}``; computing it raises `InputError` where both
        are the same, since a movie of one value holds no cells.

    Examples
    --------
    >>> import dask.array as da
    >>> checked_range(da.arange(8).reshape(2, 2, 2)).compute()
    {'': {'value_range': [0, 7]}}
    """
    blocks = frames.to_delayed(optimize_graph=False).ravel()
    return delayed(_range)([delayed(_block_range)(block) for block in blocks])


def _block_range(block: NDArray[Any]) -> tuple[int, int]:
    return int(np.min(block)), int(np.max(block))


def _range(ranges: list[tuple[int, int]]) -> dict[str, dict[str, list[int]]]:
    smallest, largest = min(low for low, _ in ranges), max(high for _, high in ranges)
    if smallest == largest:
        raise InputError(
            f"every pixel of the movie is {smallest}; check that the right file was recorded"
        )
    return {"": {"value_range": [smallest, largest]}}
