"""Recordings and sessions as napari's layer data: pure conversions, without a window."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from skimage.measure import find_contours

from napari_calcium.footprints import cropped
from napari_calcium.io.recording import Recording
from napari_calcium.io.session import Session
from napari_calcium.napari.decided import (
    RATES,
    Decided,
    label_colormap,
    of_these_cells,
    read_decided,
)

__all__ = [
    "CELLS",
    "IMAGES",
    "KEY",
    "MOVIES",
    "OUTLINES",
    "LayerData",
    "cells_preview_layer",
    "contrast_limits",
    "label_image",
    "layer_digests",
    "metadata_of",
    "of_these_cells",
    "outlines",
    "preview_layer",
    "recording_layer",
    "recording_offset",
    "session_layers",
    "session_name",
]

LayerData = tuple[Any, dict[str, Any], str]
Features = dict[str, NDArray[Any]]

KEY = "napari_calcium"
"""Key of a layer's metadata under which this package keeps what it knows of the layer."""

CELLS = "cells"
CELLS_PREVIEW, CELLS_PREVIEW_COLOUR = "preview of cells", "#ff5fd2"
OUTLINES = "outlines"
RECORDING = "movie/frames"
MOVIES = {RECORDING: "recording", "motion_correction/frames": "corrected"}
SUMMARY_IMAGES = {
    "summary_images/mean": "mean",
    "summary_images/max": "max",
    "summary_images/std": "std",
    "summary_images/correlation": "correlation",
    "summary_images/max_correlation": "max correlation",
    "summary_images/correlation_filtered": "filtered correlation",
    "summary_images/pnr": "peak to noise",
}
IMAGES = (*MOVIES, *SUMMARY_IMAGES)

AXES = {2: ("y", "x"), 3: ("time", "y", "x"), 4: ("time", "z", "y", "x")}

LABEL_LEVEL = 0.2
"""Least weight of a labelled pixel, as a fraction of the footprint's largest."""

OUTLINE_LEVEL = 0.25
"""Weight at which a footprint is outlined, as a fraction of its largest."""

LEFT_OUT = 0.2
"""How far an outline may be from where it would be with all its vertices, px."""

THINNEST, FIELD_IN_LINES = 0.4, 500
"""Least width of an outline, px, and how many outlines side by side fill the field."""

DARKEST, BRIGHTEST = 1.0, 99.8
"""Percentiles of the pixels that are shown black and white."""


def metadata_of(layer: Any) -> dict[str, Any]:
    """Return what this package keeps with a layer; empty for a layer from elsewhere."""
    return dict(layer.metadata.get(KEY, {}))


def session_name(path: str | Path) -> str:
    """Return the name by which a session is known in layers' metadata: its absolute path."""
    return str(Path(path).expanduser().absolute())


def contrast_limits(pixels: Any) -> tuple[float, float]:
    """Return the values to show black and white, from a few frames.

    Parameters
    ----------
    pixels : array of NumPy, Dask or Zarr, (time, z, y, x), (time, y, x) or (y, x)
        A movie, of which the first, the middle and the last frame are read, of volumes their middle
        plane, or an image. NaN is left out.

    Returns
    -------
    tuple of float
        The 1st and the 99.8th percentile, the second always larger.

    Examples
    --------
    >>> contrast_limits(np.arange(1001.0).reshape(7, 143))
    (10.0, 998.0)
    >>> contrast_limits(np.zeros((4, 5, 6)))
    (0.0, 1.0)
    """
    if pixels.ndim > 2:
        n_frames, *planes = pixels.shape[:-2]
        middle = tuple(n // 2 for n in planes)
        frames = sorted({0, n_frames // 2, n_frames - 1})
        sample = np.stack([np.asarray(pixels[(frame, *middle)]) for frame in frames])
    else:
        sample = np.asarray(pixels)
    finite = sample[np.isfinite(sample)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(finite, (DARKEST, BRIGHTEST)))
    return (low, high) if low < high else (low, low + 1)


def label_image(
    footprints: sp.csc_array, labels: NDArray[np.integer], shape: tuple[int, int]
) -> NDArray[np.int32]:
    """Return an image of labels: each pixel is of the cell that weighs most there.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
        Weights of unit norm, pixel = y * width + x.
    labels : ndarray of int (cell,)
        Label of each cell, above 0.
    shape : tuple of int
        Field of view, (y, x), px.

    Returns
    -------
    ndarray of int32 (y, x)
        0 where no cell has more than 20 % of its largest weight.

    Examples
    --------
    >>> weights = [[0.9, 0.0], [0.4, 0.5], [0.1, 0.9]]
    >>> label_image(sp.csc_array(weights), np.array([3, 7]), (1, 3))
    array([[3, 7, 7]], dtype=int32)
    """
    entries = footprints.tocoo()
    pixel, cell = entries.coords
    largest = np.zeros(footprints.shape[1])
    np.maximum.at(largest, cell, entries.data)
    kept = entries.data > LABEL_LEVEL * largest[cell]
    order = np.argsort(entries.data[kept], kind="stable")  # what is written last stays
    image = np.zeros(shape[0] * shape[1], np.int32)
    image[pixel[kept][order]] = np.asarray(labels)[cell[kept][order]]
    return image.reshape(shape)


def outlines(footprints: sp.csc_array, shape: tuple[int, int]) -> list[NDArray[np.float64]]:
    """Return the outline of each footprint, at 25 % of its largest weight.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
        Weights, pixel = y * width + x.
    shape : tuple of int
        Field of view, (y, x), px.

    Returns
    -------
    list of ndarray (vertex, 2)
        Polygons (y, x) in px, closed without repeating the first vertex, the longest where a
        footprint has several parts; empty for a footprint without weights.
    """
    return [_outline(footprints, shape, index) for index in range(footprints.shape[1])]


def recording_layer(recording: Recording, sources: list[str]) -> LayerData:
    """Return a recording that is not imported yet as a lazy Image layer."""
    first = Path(sources[0])
    about = {
        "sources": sources,
        "frame_rate": recording.frame_rate,
        "pixel_size": recording.pixel_size,
        "understood": recording.understood(),
    }
    return _image(recording.frames, first.stem, about, contrast_limits(recording.frames))


def preview_layer(
    frames: Any, start: int, offset: tuple[int, int], limits: tuple[float, float]
) -> LayerData:
    """Return the preview of a stretch as a layer that lies on the recording.

    Parameters
    ----------
    frames : array (time, y, x) or (time, z, y, x)
        The corrected frames of the stretch, of the recording's field.
    start : int
        Number of its first frame.
    offset : tuple of int
        Where the recording lies: see `recording_offset`.
    limits : tuple of float
        The values to show black and white, those of the recording.
    """
    layer = _image(frames, "preview", {"preview": True}, limits)
    layer[1]["translate"] = (start, *_place(frames.ndim - 1, offset))
    return layer


def cells_preview_layer(footprints: sp.csc_array, shape: tuple[int, int]) -> LayerData:
    """Return the cells that a preview of source extraction found as a layer of labels from 1.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
        On the patch with its halo, pixel = y * width + x.
    shape : tuple of int
        That patch, (y, x), px.
    """
    labels = np.arange(1, footprints.shape[1] + 1)
    attributes = {
        "name": CELLS_PREVIEW,
        "colormap": {None: CELLS_PREVIEW_COLOUR, 0: "transparent"},
        "opacity": 0.9,
        "metadata": {KEY: {"cells_preview": True}},
    }
    return label_image(footprints, labels, shape), attributes, "labels"


def recording_offset(session: Session) -> tuple[int, int]:
    """Return where the recording lies (y, x), px, so that the corrected movie lies at 0.

    That is (0, 0), but for a corrected movie that was cropped to what every frame saw.
    """
    record = session.record("motion_correction")
    if record is None or record.parameters.get("borders") != "crop":
        return 0, 0
    (top, _), (left, _) = session.group_attrs("motion_correction")["valid_region"]
    return -int(top), -int(left)


def layer_digests(session: Session) -> dict[str, str]:
    """Return what of a session can be shown, from the bottom to the top, and what identifies it.

    Parameters
    ----------
    session : Session
        Any session, whatever of it is finished.

    Returns
    -------
    dict of str to str
        For each layer, by its name in `session_layers`, the digests of the stages it shows, and
        where it lies, if not at 0.
    """
    digests = {name: _digest(session, name.split("/")[0]) for name in IMAGES if name in session}
    if RECORDING in digests and any(offset := recording_offset(session)):
        digests[RECORDING] += str(offset)
    digests[CELLS] = _digest(session, "source_extraction")
    if of_these_cells(session, "component_evaluation"):
        digests[CELLS] += _digest(session, "component_evaluation")
        digests[OUTLINES] = digests[CELLS]
    if of_these_cells(session, "dff"):
        digests[CELLS] += _digest(session, "dff")
    if of_these_cells(session, RATES):
        digests[CELLS] += _digest(session, RATES)
    return {name: digest for name, digest in digests.items() if digest}


def session_layers(session: Session, names: Collection[str] | None = None) -> list[LayerData]:
    """Return everything a session holds as layers, from the bottom to the top.

    Movies are lazy. The recording is hidden where there is a corrected movie, and the summary
    images are hidden. The time axis is in frames.

    Parameters
    ----------
    session : Session
        Any session, whatever of it is finished.
    names : collection of str, optional
        Only these of the names in `layer_digests`.

    Returns
    -------
    list of (data, attributes, kind)
        As napari's readers return. In each layer's metadata are the session, the layer's name in
        `layer_digests`, and its digest there.
    """
    digests = layer_digests(session)
    return [
        _session_layer(session, name, digests) for name in digests if names is None or name in names
    ]


def _session_layer(session: Session, name: str, digests: Mapping[str, str]) -> LayerData:
    about = {"session": session_name(session.path), "layer": name, "digest": digests[name]}
    if name in MOVIES:
        topmost = [movie for movie in MOVIES if movie in digests][-1]
        limits = contrast_limits(session.array(name))  # not by Dask, whose cache is the window's
        frames = session.movie(name).frames
        visible = name == topmost
        if name != RECORDING:
            return _image(frames, MOVIES[name], about, limits, visible)
        place = _place(frames.ndim, recording_offset(session))
        layer = _image(frames, MOVIES[name], {**about, "translate": place}, limits, visible)
        layer[1]["translate"] = place
        return layer
    if name in SUMMARY_IMAGES:
        image = session.read(name)
        return _image(image, SUMMARY_IMAGES[name], about, contrast_limits(image), visible=False)
    return _labels(session, about) if name == CELLS else _outlines_layer(session, about)


def _place(ndim: int, offset: tuple[int, int]) -> tuple[int, ...]:
    """Return an offset (y, x) as that of a layer of so many axes."""
    return (*[0] * (ndim - 2), *offset)


def _image(
    data: Any,
    name: str,
    about: Mapping[str, Any],
    limits: tuple[float, float],
    visible: bool = True,
) -> LayerData:
    attributes = {
        "name": name,
        "contrast_limits": limits,
        "visible": visible,
        "axis_labels": AXES[data.ndim],
        "metadata": {KEY: dict(about)},
    }
    return data, attributes, "image"


def _labels(session: Session, about: Mapping[str, Any]) -> LayerData:
    decided = read_decided(session)
    features = _features(session, decided)
    attributes = {
        "name": CELLS,
        "features": features,
        "colormap": label_colormap(features["index"], decided.colours() if decided else None),
        "opacity": 0.35,
        "metadata": {KEY: dict(about)},
    }
    return (
        label_image(session.footprints(), features["index"], _field(session)),
        attributes,
        "labels",
    )


def _features(session: Session, decided: Decided | None) -> Features:
    """Return the table of cells that napari shows under the pointer, by column."""
    cell_id = session.read("source_extraction/cell_id")
    table: Features = {"index": cell_id + 1, "cell_id": cell_id}
    if decided is not None:
        table |= decided.features()
    if of_these_cells(session, "dff"):
        table["f0_floored"] = session.read("dff/floored")
    if of_these_cells(session, RATES):
        table["noise_level"] = session.spike_noise_level()
        table["spike_marks"] = np.array(session.spike_marks(), object)
    return table


def _outlines_layer(session: Session, about: Mapping[str, Any]) -> LayerData:
    decided = read_decided(session)
    assert decided is not None
    polygons = outlines(session.footprints(), _field(session))
    drawn = [index for index, polygon in enumerate(polygons) if len(polygon) > 2]
    attributes = {
        "name": OUTLINES,
        "shape_type": "path",  # napari takes 10 ms to triangulate the face of each polygon
        "edge_color": decided.colours()[drawn],
        "edge_width": max(THINNEST, max(_field(session)) / FIELD_IN_LINES),
        "opacity": 0.9,
        "features": {"cell_id": decided.cell_id[drawn]},
        "metadata": {KEY: dict(about)},
    }
    closed = [np.vstack((polygons[index], polygons[index][:1])) for index in drawn]
    return closed, attributes, "shapes"


def _field(session: Session) -> tuple[int, int]:
    height, width = session.group_attrs("source_extraction")["field"]
    return int(height), int(width)


def _outline(footprints: sp.csc_array, shape: tuple[int, int], index: int) -> NDArray[np.float64]:
    box, image = cropped(footprints, shape, index, 0)
    if not image.size:
        return np.zeros((0, 2))
    padded = np.pad(image, 1)  # so that a contour closes at the field's border
    contours = find_contours(padded, OUTLINE_LEVEL * float(image.max()))
    longest = np.asarray(max(contours, key=len)[:-1, None], np.float32)
    needed = cv2.approxPolyDP(longest, LEFT_OUT, closed=True)[:, 0].astype(np.float64)
    polygon: NDArray[np.float64] = needed - 1 + (box[0].start, box[1].start)
    inside: NDArray[np.float64] = polygon.clip(-0.5, np.asarray(shape) - 0.5)
    return inside


def _digest(session: Session, group: str) -> str:
    record = session.record(group)
    return record.digest if record else ""
