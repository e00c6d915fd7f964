"""Open what is dropped on the window: recordings and sessions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from napari.utils.notifications import show_error

from napari_calcium.errors import InputError
from napari_calcium.io.recording import open_recording
from napari_calcium.io.session import Session
from napari_calcium.io.tiff import EXTENSIONS
from napari_calcium.io.zarr import is_zarr
from napari_calcium.napari.layers import LayerData, recording_layer, session_layers

__all__ = ["napari_get_reader", "read"]

Paths = str | Sequence[str]

NOTHING: list[Any] = [(None,)]
"""What a reader returns, by napari's convention, where there is no layer to add."""


def napari_get_reader(path: Paths) -> Callable[[Paths], list[Any]] | None:
    """Return `read` for TIFF files and for Zarr folders, sessions among them.

    Parameters
    ----------
    path : str or list of str
        What was opened; a list is one recording in several files.
    """
    paths = [Path(one) for one in _listed(path)]
    if paths and all(one.suffix.lower() in EXTENSIONS or is_zarr(one) for one in paths):
        return read
    return None


def read(path: Paths) -> list[LayerData]:
    """Return the layers of a recording or of a session; movies are lazy.

    What cannot be opened is told in a notification, and no layer is added.
    """
    sources = _listed(path)
    try:
        if len(sources) == 1 and Session.is_session(sources[0]):
            return session_layers(Session(sources[0]))
        sources = [str(Path(source).expanduser().absolute()) for source in sources]
        return [recording_layer(open_recording(sources), sources)]
    except InputError as error:
        show_error(str(error))
        return NOTHING


def _listed(path: Paths) -> list[str]:
    return [str(path)] if isinstance(path, str | Path) else [str(one) for one in path]
