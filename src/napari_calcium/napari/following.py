"""Which layer of cells a dock shows: the last that came, or that of the session last chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from napari_calcium.napari.layers import CELLS, metadata_of

__all__ = ["CellLayers"]


class CellLayers:
    """The layers of cells of a viewer, followed until a dock is destroyed.

    Parameters
    ----------
    viewer : napari.Viewer
    dock : CellDock
        Its ``follow`` is called with the layer to show, or None when there is none any more.
    on_label : callable (event)
        Called when a label of a layer of cells is selected.
    on_leave : callable, optional
        Called after another layer was taken because one was removed, or a session chosen.
    """

    def __init__(
        self,
        viewer: Any,
        dock: Any,
        on_label: Callable[[Any], None],
        on_leave: Callable[[], None] | None = None,
    ) -> None:
        self._dock, self._on_label, self._on_leave = dock, on_label, on_leave
        self._attached: list[tuple[Any, Callable[[Any], None]]] = []
        pairs = [
            (viewer.layers.events.inserted, self._on_inserted),
            (viewer.layers.events.removed, self._on_removed),
            (viewer.layers.selection.events.active, self._on_active),
        ]
        attached = self._attached
        for emitter, callback in pairs:
            emitter.connect(callback)

        def disconnect() -> None:
            for emitter, callback in (*pairs, *attached):
                emitter.disconnect(callback)

        dock.destroyed.connect(disconnect)
        for layer in viewer.layers:
            self._attach(layer)

    def _attach(self, layer: Any) -> None:
        if metadata_of(layer).get("layer") == CELLS:
            layer.events.selected_label.connect(self._on_label)
            self._attached.append((layer.events.selected_label, self._on_label))
            self._dock.follow(layer)

    def _leave_for(self, layer: Any) -> None:
        self._dock.follow(layer)
        if self._on_leave is not None:
            self._on_leave()

    def _on_inserted(self, event: Any) -> None:
        self._attach(event.value)

    def _on_removed(self, event: Any) -> None:
        for pair in [each for each in self._attached if each[0].source is event.value]:
            pair[0].disconnect(pair[1])
            self._attached.remove(pair)
        if event.value is self._dock.layer:
            self._leave_for(self._attached[-1][0].source if self._attached else None)

    def _on_active(self, event: Any) -> None:
        """Follow the session of the layer that was chosen, if it has cells."""
        session = metadata_of(event.value).get("session") if event.value is not None else None
        for emitter, _ in self._attached:
            layer = emitter.source
            if metadata_of(layer)["session"] == session and layer is not self._dock.layer:
                self._leave_for(layer)
