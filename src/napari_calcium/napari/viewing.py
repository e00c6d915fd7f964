"""Keep the layers of a viewer in step with a session on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Layer

from napari_calcium.io.session import Session
from napari_calcium.napari.layers import (
    IMAGES,
    KEY,
    MOVIES,
    LayerData,
    cells_preview_layer,
    contrast_limits,
    layer_digests,
    metadata_of,
    preview_layer,
    recording_offset,
    session_layers,
    session_name,
)
from napari_calcium.pipeline.extraction_preview import ExtractionPreview
from napari_calcium.pipeline.stages import STAGES, Stage

__all__ = [
    "Changes",
    "add_quietly",
    "cells_preview_of",
    "changes",
    "hide_recording",
    "lying_on",
    "outdated_stages",
    "preview_of",
    "show_cells_preview",
    "show_changes",
    "show_colormap",
    "show_preview",
    "shown_digests",
    "shown_layer",
    "warm_up",
]

CONTOUR = 1
"""Width of the cells' outlines in a preview, px: what is inside them is to be seen."""


@dataclass(frozen=True)
class Changes:
    """What has to be done to the layers of a session.

    Parameters
    ----------
    session : path
        The session.
    names : tuple of str
        Every layer it has now, from the bottom to the top; others are to be removed.
    layers : list of (data, attributes, kind)
        Those that are new or different.
    """

    session: str | Path
    names: tuple[str, ...]
    layers: list[LayerData]


def changes(path: str | Path, shown: Mapping[str, str]) -> Changes | None:
    """Read from a session what a viewer does not show yet; touches no viewer.

    Parameters
    ----------
    path : path
        The session.
    shown : mapping of str to str
        The digests of what is shown, by name: see `shown_digests`.

    Returns
    -------
    Changes or None
        None where there is no session.
    """
    if not Session.is_session(path):
        return None
    session = Session(path)
    digests = layer_digests(session)
    new = [name for name, digest in digests.items() if shown.get(name) != digest]
    return Changes(path, tuple(digests), session_layers(session, new))


def warm_up() -> None:
    """Make napari compile what it needs for cells, which takes it seconds the first time."""
    corner = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    Layer.create(np.zeros((2, 2), np.int32), {}, "labels")
    Layer.create([corner], {"shape_type": "path"}, "shapes")


def shown_digests(viewer: Any, path: str | Path) -> dict[str, str]:
    """Return the digests of what a viewer shows of a session, by name."""
    return {name: metadata_of(layer)["digest"] for name, layer in _shown(viewer, path).items()}


def show_changes(viewer: Any, changes: Changes) -> None:
    """Add what is new of a session, and renew what was there.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer; layers are renewed in place, so what a person set of them stays.
    changes : Changes
        What `changes` returned.
    """
    shown = _shown(viewer, changes.session)
    for name in shown.keys() - set(changes.names):
        viewer.layers.remove(shown[name])
    for layer_data in changes.layers:
        name = layer_data[1]["metadata"][KEY]["layer"]
        if name in shown:
            _renew(viewer, shown[name], layer_data)
        else:
            above = changes.names[changes.names.index(name) + 1 :]
            _add(viewer, changes.session, above, layer_data)


def _shown(viewer: Any, session: str | Path) -> dict[str, Any]:
    """Return the layers that show a session, by what they show of it."""
    about = [(layer, metadata_of(layer)) for layer in viewer.layers]
    name = session_name(session)
    return {each["layer"]: layer for layer, each in about if each.get("session") == name}


def shown_layer(viewer: Any, session: str | Path, name: str) -> Any:
    """Return the layer that shows one thing of a session, or None."""
    return _shown(viewer, session).get(name)


def hide_recording(viewer: Any, sources: list[str]) -> None:
    """Hide the layer of a recording that was imported: the session shows the same pixels."""
    for layer in viewer.layers:
        if metadata_of(layer).get("sources") == sources:
            layer.visible = False


def preview_of(viewer: Any) -> Any:
    """Return the layer that shows a preview, or None."""
    found = [layer for layer in viewer.layers if metadata_of(layer).get("preview")]
    return found[0] if found else None


def show_preview(viewer: Any, frames: Any, start: int, session: str, recording: Any) -> None:
    """Show a preview above the movies and images, and below the cells, in place of an earlier one.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer; its slider is moved to the stretch if it is not there.
    frames : array (time, y, x) or (time, z, y, x)
        The corrected frames.
    start : int
        Number of the first in the recording.
    session : str
        The session, if there is one.
    recording : napari.layers.Image or None
        The layer that shows the recording, whose contrast is taken.
    """
    offset = recording_offset(Session(session)) if Session.is_session(session) else (0, 0)
    limits = contrast_limits(frames) if recording is None else recording.contrast_limits
    new = Layer.create(*preview_layer(frames, start, offset, tuple(limits)))
    earlier = preview_of(viewer)
    if earlier is not None and earlier.ndim == new.ndim:
        earlier.data, earlier.translate = new.data, new.translate  # contrast stays as it was set
        earlier.visible = True
    else:
        shown = _shown(viewer, session) if session else {}
        below = [layer for name, layer in shown.items() if name in IMAGES]
        below += [recording] if recording is not None else []
        places = [viewer.layers.index(layer) + 1 for layer in below]
        if earlier is not None:
            viewer.layers.remove(earlier)
        viewer.layers.insert(max(places, default=len(viewer.layers)), new)
    axis = viewer.dims.ndim - frames.ndim
    if not start <= viewer.dims.point[axis] < start + len(frames):
        viewer.dims.set_point(axis, start)


def cells_preview_of(viewer: Any) -> Any:
    """Return the layer that shows a preview of source extraction, or None."""
    found = [layer for layer in viewer.layers if metadata_of(layer).get("cells_preview")]
    return found[0] if found else None


def show_cells_preview(viewer: Any, found: ExtractionPreview, movie: Any) -> None:
    """Show the cells of a preview above all else, in place of those of an earlier one.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer.
    found : ExtractionPreview
        The cells.
    movie : napari.layers.Image or None
        The layer of the corrected movie, on which they are to lie.
    """
    data, attributes, kind = cells_preview_layer(found.footprints, found.shape)
    place = lying_on(movie, found.offset)
    earlier = cells_preview_of(viewer)
    if earlier is None:
        layer = Layer.create(data, {**attributes, **place}, kind)
        layer.contour = CONTOUR
        add_quietly(viewer, layer)
        return
    earlier.data, earlier.visible = data, True
    for name, value in place.items():
        setattr(earlier, name, value)


def lying_on(movie: Any, offset: tuple[float, float] = (0, 0)) -> dict[str, Any]:
    """Return scale and translation of a layer (y, x) whose first pixel is one of a movie's layer.

    Parameters
    ----------
    movie : napari.layers.Layer or None
        Any whose last two axes are (y, x); where there is none, one that lies at 0.
    offset : tuple of float
        That pixel, (y, x).
    """
    if movie is None:
        return {"scale": (1.0, 1.0), "translate": offset}
    scale, corner = np.asarray(movie.scale)[-2:], np.asarray(movie.translate)[-2:]
    return {"scale": scale, "translate": corner + scale * offset}


def add_quietly(viewer: Any, layer: Any) -> None:
    """Add a layer above all others, and leave those selected that were."""
    selected = set(viewer.layers.selection)
    viewer.layers.append(layer)
    if selected:
        viewer.layers.selection = selected


def outdated_stages(session: Session) -> list[Stage]:
    """Return the finished stages whose inputs were computed anew since, in the order they run."""
    groups = {stage.name: stage.group for stage in STAGES}
    outdated: list[Stage] = []
    for stage in STAGES:
        record = session.record(stage.group)
        if record is None:
            continue
        now = {name: session.record(groups[name]) for name in stage.needs}
        same = all(need and record.inputs.get(name) == need.digest for name, need in now.items())
        same = same and session.heeds(record)
        if not same or any(earlier.name in stage.needs for earlier in outdated):
            outdated.append(stage)
    return outdated


def _add(viewer: Any, path: str | Path, above: Sequence[str], layer_data: LayerData) -> None:
    """Add a layer below those of its session that belong above it."""
    shown = _shown(viewer, path)
    places = [viewer.layers.index(shown[name]) for name in above if name in shown]
    if layer_data[1]["metadata"][KEY]["layer"] in MOVIES and layer_data[1]["visible"]:
        for name in MOVIES.keys() & shown.keys():
            shown[name].visible = False
    viewer.layers.insert(min(places, default=len(viewer.layers)), Layer.create(*layer_data))


def _renew(viewer: Any, layer: Any, layer_data: LayerData) -> None:
    """Show what is on disk now in a layer that shows what was."""
    data, attributes, kind = layer_data
    if kind == "shapes":
        index, visible = viewer.layers.index(layer), layer.visible
        viewer.layers.remove(layer)
        viewer.layers.insert(index, Layer.create(data, attributes | {"visible": visible}, kind))
        return
    layer.data = data
    if "translate" in attributes:  # moved from where it lies, wherever a person put it
        moved = np.subtract(attributes["translate"], metadata_of(layer)["translate"])
        layer.translate = layer.translate + moved
    layer.metadata = {**layer.metadata, **attributes["metadata"]}
    if kind == "labels":
        show_colormap(layer, attributes["colormap"])
    for name in ("contrast_limits", "features"):
        if name in attributes:
            setattr(layer, name, attributes[name])


def show_colormap(layer: Any, colormap: Any) -> None:
    """Give a Labels layer a colormap; the label that is selected stays so, and nobody is told."""
    colormap.use_selection, colormap.selection = layer.show_selected_label, layer.selected_label
    with layer.events.selected_label.blocker():
        layer.colormap = colormap
