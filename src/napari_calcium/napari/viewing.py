"""Keep the layers of a viewer in step with a session on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari.layers import Layer

from napari_calcium.io.session import Session
from napari_calcium.napari.layers import (
    KEY,
    MOVIES,
    LayerData,
    layer_digests,
    metadata_of,
    session_layers,
    session_name,
)
from napari_calcium.pipeline.stages import STAGES, Stage

__all__ = ["hide_recording", "outdated_stages", "show_session", "shown_layer"]


def show_session(viewer: Any, path: str | Path) -> None:
    """Add the layers of a session, and renew those that are there already.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer; layers are renewed in place, so what a person set of them stays.
    path : path
        The session; where there is none yet, nothing happens.
    """
    if not Session.is_session(path):
        return
    session = Session(path)
    digests = layer_digests(session)
    shown = _shown(viewer, path)
    for name in shown.keys() - digests.keys():
        viewer.layers.remove(shown[name])
    known = {name: metadata_of(layer)["digest"] for name, layer in shown.items()}
    changed = [name for name, digest in digests.items() if known.get(name) != digest]
    for layer_data in session_layers(session, changed):
        name = layer_data[1]["metadata"][KEY]["layer"]
        if name in shown:
            _renew(viewer, shown[name], layer_data)
        else:
            above = list(digests)[list(digests).index(name) + 1 :]
            _add(viewer, path, above, layer_data)


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
        if not same or any(earlier.name in stage.needs for earlier in outdated):
            outdated.append(stage)
    return outdated


def _add(viewer: Any, path: str | Path, above: list[str], layer_data: LayerData) -> None:
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
    layer.metadata = {**layer.metadata, **attributes["metadata"]}
    for name in ("contrast_limits", "features"):
        if name in attributes:
            setattr(layer, name, attributes[name])
