"""The sample recording that comes with the package, and its truth."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from napari_calcium.errors import InputError

__all__ = ["SAMPLE_FRAME_RATE", "sample_recording", "sample_truth"]

SAMPLE_FRAME_RATE = 15.0
"""Frames per second of the sample recording, Hz."""

INSTALLED = "napari_calcium_sample_data"
"""Name under which the files are installed beside the package."""


def sample_recording() -> Path:
    """Return the sample recording: simulated two-photon imaging, a TIFF (time, y, x).

    Raises
    ------
    InputError
        If the installation lacks it.

    Examples
    --------
    >>> sample_recording().name
    'sample.tif'
    """
    return _file("sample.tif")


def sample_truth() -> Path:
    """Return what the sample recording was simulated from: an NPZ file.

    Raises
    ------
    InputError
        If the installation lacks it.

    Examples
    --------
    >>> sample_truth().name
    'sample_truth.npz'
    """
    return _file("sample_truth.npz")


def _file(name: str) -> Path:
    for folder in _folders():
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{name} is not installed; install napari-calcium again")


def _folders() -> list[Path]:
    """Return where the files may be: beside the package, or at the top of its source tree."""
    spec = importlib.util.find_spec(INSTALLED)
    installed = list(spec.submodule_search_locations or ()) if spec else []
    return [*map(Path, installed), Path(__file__).parents[3] / "sample_data"]
