"""Clicks on cells in a viewer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from napari_calcium.napari.layers import CELLS, metadata_of

__all__ = ["cell_under", "shown_where_clicked"]

PIXELS_OF_A_CLICK = 3
"""The button is let go at most so far from where it was pressed."""


def shown_where_clicked(show: Callable[[Any, int], None]) -> Callable[[Any, Any], Iterator[None]]:
    """Return a mouse callback of a viewer that shows the cell that is clicked on.

    Parameters
    ----------
    show : callable (layer, cell_id)
        Called when the button is let go over a cell, where it was pressed.
    """

    def on_click(viewer: Any, event: Any) -> Iterator[None]:
        start = tuple(event.pos)
        yield
        while event.type == "mouse_move":
            yield
        moved = max(abs(a - b) for a, b in zip(start, event.pos, strict=True))
        if moved <= PIXELS_OF_A_CLICK and (found := cell_under(viewer, event)) is not None:
            show(*found)

    return on_click


def cell_under(viewer: Any, event: Any) -> tuple[Any, int] | None:
    """Return the layer and the identity of the cell under the mouse; None where there is none.

    Layers from which labels are picked or on which a person paints are left out.
    """
    for layer in reversed(list(viewer.layers)):
        if metadata_of(layer).get("layer") != CELLS or not layer.visible:
            continue
        label = layer.get_value(
            event.position,
            view_direction=event.view_direction,
            dims_displayed=event.dims_displayed,
            world=True,
        )
        if label and layer.mode == "pan_zoom":
            return layer, int(label) - 1
    return None
