"""What a person drew in a viewer, as outlines and labels in the pixels of a movie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from napari.layers import Labels, Shapes
from numpy.typing import ArrayLike, NDArray
from skimage.measure import find_contours

from napari_calcium.errors import InputError
from napari_calcium.io.regions import regions_from_outlines, write_regions

__all__ = [
    "Placement",
    "Seeds",
    "chosen_outline",
    "drawn_labels",
    "drawn_outlines",
    "outline_of_shape",
    "write_seeds",
]

Doubles = NDArray[np.float64]

POINTS = 96
"""Points of an ellipse's outline: its area is right to a part in a thousand."""

OPEN = ("line",)
"""Kinds of shape that enclose nothing."""


@dataclass(frozen=True)
class Placement:
    """How points (y, x) of one layer lie in the pixels of another.

    Parameters
    ----------
    matrix : ndarray (2, 2)
    offset : ndarray (2,)
        A point becomes ``matrix @ point + offset``.
    """

    matrix: Doubles
    offset: Doubles

    @classmethod
    def between(cls, layer: Any, movie: Any = None) -> Placement:
        """Return how a layer lies on a movie's layer; on the world where there is none.

        Parameters
        ----------
        layer, movie : napari.layers.Layer
            Their last two axes are (y, x).
        """
        own = _in_world(layer)
        return own if movie is None else own.then(_in_world(movie).inverse())

    def then(self, other: Placement) -> Placement:
        """Return this placement followed by another."""
        return Placement(other.matrix @ self.matrix, other.of(self.offset[None])[0])

    def inverse(self) -> Placement:
        """Return the way back."""
        back: Doubles = np.linalg.inv(self.matrix).astype(np.float64)
        return Placement(back, -back @ self.offset)

    def of(self, points: ArrayLike) -> Doubles:
        """Return where points (point, 2) lie."""
        return np.asarray(np.asarray(points, np.float64) @ self.matrix.T + self.offset)


def _in_world(layer: Any) -> Placement:
    corner, down, right = (
        np.asarray(layer.data_to_world((*[0] * (layer.ndim - 2), *point)))[-2:]
        for point in ((0, 0), (1, 0), (0, 1))
    )
    return Placement(np.stack([down - corner, right - corner], axis=1), corner)


def outline_of_shape(points: ArrayLike, kind: str) -> Doubles:
    """Return the outline of a napari shape.

    Parameters
    ----------
    points : array_like (point, axis)
        As napari keeps them, the last two axes (y, x); of an ellipse the corners of its box.
    kind : str
        The shape's type.

    Returns
    -------
    ndarray (point, 2)
        Points (y, x), open.

    Examples
    --------
    >>> box = [(7, 10, 20), (7, 10, 30), (7, 16, 30), (7, 16, 20)]
    >>> outline_of_shape(box, "rectangle").tolist()
    [[10.0, 20.0], [10.0, 30.0], [16.0, 30.0], [16.0, 20.0]]
    >>> ellipse = outline_of_shape(box, "ellipse")
    >>> ellipse.min(axis=0).tolist(), ellipse.max(axis=0).tolist()
    ([10.0, 20.0], [16.0, 30.0])
    """
    corners = np.asarray(points, np.float64)[:, -2:]
    if kind == "ellipse":
        angle = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
        across, down = (corners[1] - corners[0]) / 2, (corners[3] - corners[0]) / 2
        turned = np.cos(angle)[:, None] * across + np.sin(angle)[:, None] * down
        return np.asarray(corners.mean(axis=0) + turned)
    closed = len(corners) > 1 and np.array_equal(corners[0], corners[-1])
    return corners[:-1] if closed else corners


def drawn_outlines(layer: Shapes, movie: Any = None) -> list[Doubles]:
    """Return the outlines of a Shapes layer, (y, x) in the pixels of a movie's layer.

    Raises
    ------
    InputError
        If there is none, or one is a line.
    """
    if not layer.data:
        raise InputError(f"the layer {layer.name!r} holds no shape; draw an outline around a cell")
    place = Placement.between(layer, movie)
    found = []
    for number, (points, kind) in enumerate(zip(layer.data, layer.shape_type, strict=True), 1):
        outline = place.of(outline_of_shape(points, kind))
        if kind in OPEN or len(outline) < 3:
            raise InputError(
                f"shape {number} of the layer {layer.name!r} is a line, which encloses no pixel; "
                "delete it, or draw a polygon or an ellipse"
            )
        found.append(outline)
    return found


def drawn_labels(
    layer: Labels, field: tuple[int, int], movie: Any = None, at: Sequence[float] = ()
) -> NDArray[np.int32]:
    """Return the labels of a Labels layer at each pixel of a movie's field.

    Parameters
    ----------
    layer : napari.layers.Labels
        Of labels over time, the frame that is shown is taken.
    field : tuple of int
        (y, x), px.
    movie : napari.layers.Image, optional
        The movie's layer.
    at : sequence of float
        The place in the world that the sliders show.

    Returns
    -------
    ndarray of int32 (y, x)
        The label at the pixel's centre, 0 outside of the layer.

    Raises
    ------
    InputError
        If none is in the field.
    """
    image = _shown_plane(layer, at)
    to_labels = Placement.between(layer, movie).inverse()
    y, x = np.mgrid[: field[0], : field[1]]
    places = np.rint(to_labels.of(np.stack([y.ravel(), x.ravel()], axis=1))).astype(np.int64)
    inside = ((places >= 0) & (places < image.shape)).all(axis=1)
    labels = np.zeros(field, np.int32)
    labels.ravel()[inside] = image[tuple(places[inside].T)]
    if not labels.any():
        frames = " in the frame that is shown" if layer.ndim > 2 else ""
        raise InputError(
            f"the layer {layer.name!r} holds no label in the field{frames}; "
            "paint each cell with a label of its own"
        )
    return labels


def _shown_plane(layer: Labels, at: Sequence[float]) -> NDArray[np.integer]:
    data = layer.data[0] if layer.multiscale else layer.data
    place = np.rint(layer.world_to_data(np.asarray(at, np.float64))[: layer.ndim - 2])
    index = tuple(
        int(np.clip(here, 0, n - 1)) for here, n in zip(place, data.shape[:-2], strict=True)
    )
    return np.asarray(data[index])


def chosen_outline(layer: Any, movie: Any = None, at: Sequence[float] = ()) -> Doubles:
    """Return the outline of the one cell that a person chose in a layer.

    Parameters
    ----------
    layer : napari.layers.Layer or None
        A Shapes layer with one shape, or one selected; or a Labels layer, of which the selected
        label is taken, or the only one.
    movie : napari.layers.Image, optional
        The layer of the movie.
    at : sequence of float
        The place in the world that the sliders show.

    Returns
    -------
    ndarray (point, 2)
        (y, x), in the movie's pixels.

    Raises
    ------
    InputError
        If none is chosen.
    """
    if isinstance(layer, Shapes):
        return _chosen_shape(layer, movie)
    if isinstance(layer, Labels):
        return _chosen_label(layer, movie, at)
    raise InputError(
        "no outline is chosen; draw around one cell in a Shapes or a Labels layer, and leave that "
        "layer selected"
    )


def _chosen_shape(layer: Shapes, movie: Any) -> Doubles:
    chosen = sorted(layer.selected_data) or list(range(len(layer.data)))
    if len(chosen) != 1:
        many = f"{len(chosen)} shapes" if chosen else "no shape"
        raise InputError(
            f"{many} of the layer {layer.name!r} can be meant; draw one around a cell, or select it"
        )
    (index,) = chosen
    outline = outline_of_shape(layer.data[index], layer.shape_type[index])
    return Placement.between(layer, movie).of(outline)


def _chosen_label(layer: Labels, movie: Any, at: Sequence[float]) -> Doubles:
    image = _shown_plane(layer, at)
    present = np.unique(image[image != 0])
    chosen = layer.selected_label if layer.selected_label in present else None
    if chosen is None and len(present) != 1:
        many = f"{len(present)} labels" if len(present) else "no label"
        raise InputError(
            f"{many} of the layer {layer.name!r} can be meant; paint one cell, or pick its label"
        )
    mask = np.pad(image == (present[0] if chosen is None else chosen), 1)
    longest = max(find_contours(mask.astype(float), 0.5), key=len)
    return Placement.between(layer, movie).of(longest[:-1] - 1)


# ---------------------------------------------------------------------------------------- seeds


@dataclass(frozen=True)
class Seeds:
    """A file of seeds, and how many there are in it."""

    path: Path
    count: int


def write_seeds(
    layer: Any,
    session: str | Path,
    field: tuple[int, int],
    movie: Any = None,
    at: Sequence[float] = (),
) -> Seeds:
    """Write what is drawn in a layer to a file beside a session, as seeds of source extraction.

    Parameters
    ----------
    layer : napari.layers.Labels or napari.layers.Shapes
        Labels become an image, ``*_seeds.tif``, shapes ImageJ ROIs, ``*_seeds.zip``; an earlier
        file is replaced.
    session : path
        The session.
    field : tuple of int
        The field of its corrected movie, (y, x), px.
    movie : napari.layers.Image, optional
        The layer of that movie.
    at : sequence of float
        The place in the world that the sliders show.

    Raises
    ------
    InputError
        If the layer is empty or of another kind, or the file cannot be written.
    """
    session = Path(session).expanduser().absolute()
    if isinstance(layer, Shapes):
        outlines = drawn_outlines(layer, movie)
        names = [f"shape {n} of the layer {layer.name!r}" for n in range(1, len(outlines) + 1)]
        regions_from_outlines(outlines, field, names)  # each is to hold a pixel of the field
        path = session.with_name(f"{session.stem}_seeds.zip")
        write_regions(path, outlines)
        return Seeds(path, len(outlines))
    if isinstance(layer, Labels):
        labels = drawn_labels(layer, field, movie, at)
        path = session.with_name(f"{session.stem}_seeds.tif")
        _write_labels(path, labels)
        return Seeds(path, len(np.unique(labels[labels != 0])))
    raise InputError("no seeds are chosen; paint cells in a Labels layer or outline them in Shapes")


def _write_labels(path: Path, labels: NDArray[np.int32]) -> None:
    try:
        tifffile.imwrite(path, labels, photometric="minisblack", metadata=None)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); give another path"
        ) from error
