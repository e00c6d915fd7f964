"""The patches in which cells are searched, drawn over the movie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from napari.layers import Layer

from napari_calcium.extraction.choosing import Tile
from napari_calcium.napari.layers import KEY, LayerData, metadata_of
from napari_calcium.napari.viewing import add_quietly, lying_on

__all__ = ["Quilt", "quilt_layer"]

PATCHES = "patches"
CORE, HALO = (0.31, 0.70, 1.0, 0.9), (0.31, 0.70, 1.0, 0.22)
WIDTH = 1 / 500
"""Width of a core's edge, as a part of the field's longer side; that of a halo's is half of it."""


def quilt_layer(tiles: Sequence[Tile]) -> LayerData:
    """Return patches as a layer: a faint rectangle for each halo, then one for each core.

    Examples
    --------
    >>> from napari_calcium.extraction.choosing import quilt
    >>> data, attributes, kind = quilt_layer(quilt((37, 54), 40, 4))
    >>> len(data), data[3].tolist(), kind
    (4, [[-0.5, 26.5], [-0.5, 53.5], [36.5, 53.5], [36.5, 26.5]], 'shapes')
    """
    rectangles = [tile.halo for tile in tiles] + [tile.core for tile in tiles]
    return rectangles, {"name": PATCHES, "metadata": {KEY: {"quilt": True}}}, "shapes"


class Quilt:
    """Shows patches as one Shapes layer of a viewer, and knows which of them is selected.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self._tiles: Sequence[Tile] = ()

    @property
    def layer(self) -> Any:
        """The layer, or None where there is none."""
        found = [each for each in self._viewer.layers if metadata_of(each).get("quilt")]
        return found[0] if found else None

    def show(self, tiles: Sequence[Tile], movie: Any = None) -> None:
        """Show patches on a movie's layer, in place of those shown before."""
        self._tiles = tiles
        data, attributes, kind = quilt_layer(tiles)
        layer = self.layer
        if layer is None:
            styled = {**attributes, **lying_on(movie), "edge_width": 1.0}
            layer = Layer.create(data, {**styled, "face_color": "transparent"}, kind)
            self._style(layer)
            add_quietly(self._viewer, layer)
            return
        layer.selected_data = set()
        layer.data = [(corners, "rectangle") for corners in data]
        self._style(layer)

    def remove(self) -> None:
        """Show no patches."""
        if (layer := self.layer) is not None:
            self._viewer.layers.remove(layer)

    def selected(self) -> tuple[float, float] | None:
        """Return the centre (y, x) of the patch that is selected, px, or None."""
        layer = self.layer
        if layer is None or len(layer.selected_data) != 1:
            return None
        (index,) = layer.selected_data
        y, x = self._tiles[index % len(self._tiles)].core.mean(axis=0)
        return float(y), float(x)

    def _style(self, layer: Any) -> None:
        n = len(self._tiles)
        longest = float(np.max([tile.core.max() for tile in self._tiles])) + 0.5
        layer.edge_width = [WIDTH * longest / 2] * n + [WIDTH * longest] * n
        layer.edge_color = np.array([HALO] * n + [CORE] * n)
        layer.face_color = "transparent"
