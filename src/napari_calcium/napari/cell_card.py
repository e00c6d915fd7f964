"""One cell at a glance: how it looks, what it looks like when active, and what is decided of it."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from qtpy.QtCore import QPointF, QRectF, Qt, QTimer
from qtpy.QtGui import QColor, QImage, QPainter, QPen, QPolygonF
from qtpy.QtWidgets import QGridLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

from napari_calcium.evaluation.decision import THRESHOLDS, TITLES
from napari_calcium.footprints import cropped, outlines
from napari_calcium.io.session import Session
from napari_calcium.napari.decided import COLOURS as CHOSEN_COLOURS
from napari_calcium.napari.decided import Decided, of_these_cells
from napari_calcium.napari.layers import OUTLINE_LEVEL, metadata_of
from napari_calcium.napari.runner import runner_of
from napari_calcium.napari.score_histograms import COLOURS, NOT_ASKED, spot, standings
from napari_calcium.napari.stage_form import wrapped
from napari_calcium.spikes.guards import UNIT as NOISE_UNIT

__all__ = ["HINT", "CellCard", "CellImages", "CellSource", "CropView", "cell_images", "read_source"]

Floats = NDArray[np.float32]

HINT = "Click on a cell, or on a row of the table, to see it here"
READING = "Reading the images"
NO_PIXELS = "The cell has no pixels: other cells explain all that it did"
NOT_EVALUATED = "Run component evaluation to have scores of these cells"
NOT_KNOWN = "not known"
NAMES = {"mean": "mean image", "footprint": "footprint", "triggered": "when active"}
TIPS = {
    "mean": "The mean image over time, with the outline of the cell",
    "footprint": "The weights of the cell's pixels",
    "triggered": "The mean of the movie at the cell's largest transients, less background and "
    "neighbours: it should look like the footprint",
}
MISSING = {
    "mean": "no summary images",
    "footprint": "",
    "triggered": "not evaluated",
}

RADII, MARGIN = 2.0, 1.0
"""Half the side of a crop at least, and what is seen around a cell, in radii of a typical cell."""

DARKEST, BRIGHTEST = 1.0, 99.8
"""Percentiles of a crop's pixels that are shown black and white."""

SMALLEST, LARGEST, SPACING, WIDTH_OF_OUTLINE = 64, 140, 4, 1.5
"""Least and largest side of an image, room, and width of an outline, px."""

LINES = 3
"""Room for the reason, so that what is below it stays where it is from cell to cell."""

PLAIN = "#ffffff"
MILLISECONDS_BETWEEN_LOOKS = 15
MOST_OVERLAPS = 3


@dataclass(frozen=True)
class CellSource:
    """What the images of all cells of a session are cut from.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
    shape : tuple of int
        Field of view, (y, x), px.
    cell_id : ndarray of int64 (cell,)
    radius : float
        Radius of a typical cell, px.
    mean : ndarray (y, x), optional
        The mean image, where there is one of this field.
    triggered : scipy.sparse.csc_array (pixel, cell), optional
        The movie at the cells' transients, where these cells were evaluated.
    """

    footprints: sp.csc_array
    shape: tuple[int, int]
    cell_id: NDArray[np.int64]
    radius: float
    mean: Floats | None = None
    triggered: sp.csc_array | None = None


@dataclass(frozen=True)
class CellImages:
    """Images of one cell, all of the same square of the field.

    Parameters
    ----------
    mean, footprint, triggered : ndarray (y, x), optional
        NaN beyond the field, and where the movie at the cell's transients is not known.
    outline : list of ndarray (vertex, 2)
        Closed outlines of the cell (y, x), px of the crop.
    """

    mean: Floats | None
    footprint: Floats
    triggered: Floats | None
    outline: list[NDArray[np.float64]]


class CropView(QWidget):  # type: ignore[misc]
    """A small image with an outline over it; NaN is clear."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels: Floats | None = None
        self._image: QImage | None = None
        self._outline: Sequence[NDArray[np.float64]] = ()
        self._colour, self._missing = PLAIN, ""
        self.setMinimumWidth(SMALLEST)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def show_pixels(
        self, pixels: Floats | None, outline: Sequence[NDArray[np.float64]], missing: str = ""
    ) -> None:
        """Show an image (y, x) and outlines (y, x); or in words why there is none."""
        self.pixels, self._outline, self._missing = pixels, outline, missing
        self._image = None if pixels is None else _image(pixels)
        self.update()

    def set_colour(self, colour: str) -> None:
        """Draw the outline in a colour."""
        if colour != self._colour:
            self._colour = colour
            self.update()

    def paintEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        """Draw the image as large as there is room, and the outline over it."""
        painter = QPainter(self)
        side = min(self.width(), self.height())
        left, top = (self.width() - side) / 2, (self.height() - side) / 2
        frame = QRectF(left, top, side, side)
        if self._image is None:
            painter.setPen(QPen(self.palette().windowText().color()))
            flags = Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap
            painter.drawText(frame, int(flags), self._missing)
        else:
            painter.drawImage(frame, self._image)
            self._draw_outline(painter, frame, side / self._image.width())
        painter.end()

    def _draw_outline(self, painter: QPainter, frame: QRectF, scale: float) -> None:
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setClipRect(frame)
        painter.setPen(QPen(QColor(self._colour), WIDTH_OF_OUTLINE))
        for line in self._outline:
            places = (line + 0.5) * scale + (frame.top(), frame.left())
            painter.drawPolyline(QPolygonF([QPointF(x, y) for y, x in places.tolist()]))


class CellCard(QWidget):  # type: ignore[misc]
    """Images of a cell, its scores, and why it is accepted or rejected.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer, in whose threads sessions are read.

    Attributes
    ----------
    views : dict of str to CropView
        The images by the names of `CellImages`.
    cell_id : int or None
        The cell that is shown.
    """

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self.cell_id: int | None = None
        self.views = {name: CropView() for name in NAMES}
        self._runner = runner_of(viewer)
        self._layer: Any = None
        self._decided: Decided | None = None
        self._source: tuple[Any, CellSource | None] | None = None
        self._reading: tuple[Any, Future[CellSource | None]] | None = None
        self._n_runs = 0
        self._hint, self._said, self._scores = wrapped(HINT), wrapped(""), wrapped("")
        self._correlation, self._noise = QLabel(), wrapped("")
        self._pictures = QWidget()
        self._lay_out()
        self._look = QTimer(self)
        self._look.setInterval(MILLISECONDS_BETWEEN_LOOKS)
        self._look.timeout.connect(self._take)
        self._runner.ended.connect(self._on_ended)
        self._draw()

    @property
    def text(self) -> str:
        """What is written: hint, reason, correlation, scores and noise, a line each."""
        labels = (self._hint, self._said, self._correlation, self._scores, self._noise)
        return "\n".join(label.property("said") for label in labels if not label.isHidden())

    @property
    def reading(self) -> bool:
        """Whether images are being read."""
        return self._reading is not None

    def show_cell(self, layer: Any, cell_id: int | None, decided: Decided | None = None) -> None:
        """Show a cell of a layer of cells, or none.

        Parameters
        ----------
        layer : napari.layers.Labels or None
            A layer of cells of a session.
        cell_id : int or None
            Identity of the cell.
        decided : Decided, optional
            What is decided of the session's cells, where they have scores.
        """
        self._layer, self._decided = layer, decided
        self.cell_id = cell_id if layer is not None else None
        if self._wanted is not None and (self._source is None or self._source[0] != self._wanted):
            self._read(self._wanted)
        self._draw()

    def show_decided(self, decided: Decided | None) -> None:
        """Show the same cell with what is decided of it now."""
        self._decided = decided
        self._say()

    @property
    def _wanted(self) -> tuple[str, str, int] | None:
        """What identifies the images that are to be shown; None without a cell."""
        if self.cell_id is None:
            return None
        about = metadata_of(self._layer)
        return about["session"], about["digest"], self._n_runs

    def _read(self, wanted: tuple[str, str, int]) -> None:
        if self._reading is None or self._reading[0] != wanted:
            self._reading = wanted, self._runner.read(read_source, wanted[0])
            self._look.start()

    def _take(self) -> None:
        """Take what was read, once it is, if nothing else is wanted by now."""
        if self._reading is None or not self._reading[1].done():
            return
        self._look.stop()
        (wanted, future), self._reading = self._reading, None
        self._source = wanted, future.result()
        if self._wanted in (None, wanted):
            self._draw()
        else:
            self._read(self._wanted)

    def _on_ended(self, answer: Any) -> None:
        """Read again what a run may have made anew."""
        if "preview" not in answer:
            self._n_runs += 1
            self.show_cell(self._layer, self.cell_id, self._decided)

    def _draw(self) -> None:
        """Show the images, if they were read, and the words."""
        wanted, source = self._wanted, self._source
        ready = wanted is not None and source is not None and source[0] == wanted
        images = cell_images(source[1], self.cell_id) if ready and source and source[1] else None
        self._pictures.setVisible(images is not None)
        if images is not None:
            for name, view in self.views.items():
                missing = "" if name == "footprint" else MISSING[name]
                view.show_pixels(getattr(images, name), images.outline, missing)
        hint = HINT if wanted is None else NO_PIXELS if ready else READING
        _write(self._hint, hint if images is None else "")
        self._say()

    def _say(self) -> None:
        """Write what is decided of the cell."""
        index = self._index()
        decided = self._decided
        colour, said, correlation, scores = PLAIN, "", "", ""
        if self.cell_id is not None and decided is None:
            said = f"Cell {self.cell_id}. {NOT_EVALUATED}."
        if decided is not None and index is not None:
            said = f"Cell {self.cell_id}, {decided.why(index)}"
            colour = CHOSEN_COLOURS[bool(decided.accepted[index]), bool(decided.chosen[index])]
            r = float(decided.quality.spatial_correlation[index])
            correlation = NOT_KNOWN if math.isnan(r) else f"{r:.2f}"
            correlation = f"correlation of these two: {correlation}"
            scores = _table_of(decided, index)
        _write(self._said, said)
        _write(self._correlation, correlation)
        _write(self._scores, scores)
        _write(self._noise, "" if self.cell_id is None else _noise_of(self._layer, self.cell_id))
        self._scores.setToolTip(decided.classifier if decided is not None else "")
        for view in self.views.values():
            view.set_colour(colour)

    def _index(self) -> int | None:
        """Return the place of the cell among those that were decided; None where it is not."""
        if self._decided is None or self.cell_id is None:
            return None
        places = np.flatnonzero(self._decided.cell_id == self.cell_id)
        return int(places[0]) if places.size else None

    def resizeEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        """Make the images as high as they are wide."""
        super().resizeEvent(event)
        side = (self.width() - (len(self.views) - 1) * SPACING) // len(self.views)
        for view in self.views.values():
            view.setFixedHeight(min(max(side, SMALLEST), LARGEST))

    def _lay_out(self) -> None:
        layout, grid = QVBoxLayout(self), QGridLayout(self._pictures)
        for each in (layout, grid):
            each.setContentsMargins(0, 0, 0, 0)
            each.setSpacing(SPACING)
        for column, (name, view) in enumerate(self.views.items()):
            caption = QLabel(NAMES[name])
            caption.setAlignment(Qt.AlignmentFlag.AlignCenter)
            caption.setToolTip(TIPS[name])
            view.setToolTip(TIPS[name])
            grid.addWidget(view, 0, column)
            grid.addWidget(caption, 1, column)
            grid.setColumnStretch(column, 1)
        grid.addWidget(self._correlation, 2, 1, 1, 2)
        self._correlation.setAlignment(Qt.AlignmentFlag.AlignCenter)
        layout.addWidget(self._pictures)
        for label in (self._hint, self._said, self._scores, self._noise):
            layout.addWidget(label)
        layout.addStretch()
        self._scores.setTextFormat(Qt.TextFormat.RichText)
        self._said.setAlignment(Qt.AlignmentFlag.AlignTop)
        self._said.setMinimumHeight(LINES * self._said.fontMetrics().lineSpacing())


def read_source(path: str) -> CellSource | None:
    """Read what the images of a session's cells are cut from; to be called in a thread.

    Returns
    -------
    CellSource or None
        None where there is no session, or it has no cells.
    """
    if not Session.is_session(path):
        return None
    session = Session(path)
    record = session.record("source_extraction")
    if record is None:
        return None
    height, width = (int(n) for n in session.group_attrs("source_extraction")["field"])
    footprints = session.footprints()
    name, mean = "summary_images/mean", None
    if name in session and session.array(name).shape == (height, width):
        mean = session.read(name)
    evaluated = of_these_cells(session, "component_evaluation")
    return CellSource(
        footprints,
        (height, width),
        session.read("source_extraction/cell_id"),
        float(record.parameters.get("cell_radius") or _radius(footprints)),
        mean,
        session.quality().triggered if evaluated else None,
    )


def cell_images(source: CellSource, cell_id: int | None) -> CellImages | None:
    """Cut the images of one cell.

    Parameters
    ----------
    source : CellSource
    cell_id : int or None
        Identity of the cell.

    Returns
    -------
    CellImages or None
        None for a cell that is not there, or has no pixels. The square is around the box of the
        footprint, with a radius to spare, and has a side of four radii at least.

    Examples
    --------
    >>> image = np.zeros((37, 53), np.float32)
    >>> image[10:13, 50:53] = 1
    >>> source = CellSource(sp.csc_array(image.reshape(-1, 1)), (37, 53), np.array([7]), 4.0)
    >>> images = cell_images(source, 7)
    >>> images.footprint.shape, np.nansum(images.footprint), int(np.isnan(images.footprint).sum())
    ((17, 17), np.float32(9.0), 119)
    """
    places = np.flatnonzero(source.cell_id == cell_id)
    if not places.size:
        return None
    index = int(places[0])
    box, footprint = cropped(source.footprints, source.shape, index, 0)
    if not footprint.size:
        return None
    centre = [(part.start + part.stop - 1) // 2 for part in box]
    largest = max(part.stop - part.start for part in box)
    half = math.ceil(max(RADII * source.radius, largest / 2 + MARGIN * source.radius))
    corner = (centre[0] - half, centre[1] - half)
    weights = _column(source.footprints, index, source.shape, corner, 2 * half + 1, 0)
    return CellImages(
        None if source.mean is None else _crop(source.mean, corner, 2 * half + 1),
        weights,
        None
        if source.triggered is None
        else _column(source.triggered, index, source.shape, corner, 2 * half + 1, np.nan),
        outlines(np.nan_to_num(weights), OUTLINE_LEVEL),
    )


def _crop(image: Floats, corner: tuple[int, int], side: int) -> Floats:
    """Return a square of an image, NaN beyond its borders."""
    crop = np.full((side, side), np.nan, np.float32)
    here, there = zip(
        *(
            (
                slice(max(-start, 0), min(n - start, side)),
                slice(max(start, 0), min(start + side, n)),
            )
            for start, n in zip(corner, image.shape, strict=True)
        ),
        strict=True,
    )
    crop[here] = image[there]
    return crop


def _column(
    matrix: sp.csc_array,
    index: int,
    shape: tuple[int, int],
    corner: tuple[int, int],
    side: int,
    empty: float,
) -> Floats:
    """Return a square of one column's image, with a value where the column says nothing."""
    crop = np.full((side, side), empty, np.float32)
    y, x = np.indices((side, side)) + np.reshape(corner, (2, 1, 1))
    crop[(y < 0) | (x < 0) | (y >= shape[0]) | (x >= shape[1])] = np.nan
    start, stop = matrix.indptr[index : index + 2]
    y, x = np.divmod(matrix.indices[start:stop], shape[1])
    y, x = y - corner[0], x - corner[1]
    inside = (y >= 0) & (x >= 0) & (y < side) & (x < side)
    crop[y[inside], x[inside]] = matrix.data[start:stop][inside]
    return crop


def _image(pixels: Floats) -> QImage:
    """Return an image (y, x) in shades of grey, from dark to bright; NaN is clear."""
    finite = pixels[np.isfinite(pixels)]
    low, high = np.percentile(finite, (DARKEST, BRIGHTEST)) if finite.size else (0, 1)
    grey = np.nan_to_num((pixels - low) / (high - low if high > low else 1)).clip(0, 1)
    coloured = np.empty((*pixels.shape, 4), np.uint8)
    coloured[..., :3] = np.round(255 * grey)[..., None]
    coloured[..., 3] = 255 * np.isfinite(pixels)
    height, width = pixels.shape
    format_ = QImage.Format.Format_RGBA8888
    return QImage(coloured.tobytes(), width, height, 4 * width, format_).copy()


def _radius(footprints: sp.csc_array) -> float:
    """Return the radius of a typical cell from how many pixels footprints have, px."""
    counts = np.diff(footprints.indptr)
    return max(1.0, math.sqrt(float(np.median(counts)) / math.pi)) if len(counts) else 1.0


def _table_of(decided: Decided, index: int) -> str:
    """Return the scores of a cell and which thresholds they reach, as rich text."""
    rows = []
    for score in THRESHOLDS:
        colour, figure, meaning = _standing(decided, index, score)
        rows.append((spot(colour) if colour else "", TITLES[score], figure, meaning))
    cells = "".join(
        f'<tr style="white-space: nowrap"><td>{mark}&nbsp;</td><td>{title}&nbsp;</td>'
        f'<td align="right">{figure}</td><td>&nbsp; {html.escape(meaning)}</td></tr>'
        for mark, title, figure, meaning in rows
    )
    overlapping = _overlapping(decided, index)
    return f"<table>{cells}</table>{f'Overlaps {overlapping}' if overlapping else '&nbsp;'}"


def _standing(decided: Decided, index: int, score: str) -> tuple[str, str, str]:
    """Return the colour of a cell's score, its figure, and how it stands to its thresholds."""
    value = getattr(decided.quality, score)[index : index + 1]
    lower, upper = (getattr(decided.parameters, name) for name in THRESHOLDS[score])
    if np.isnan(value[0]):
        return "", "", NOT_ASKED if score == "cnn_probability" else NOT_KNOWN
    below, above = (bool(each[0]) for each in standings(score, value, lower, upper))
    colour = COLOURS[score][0 if below else 2 if above else 1]
    if score == "size":
        meaning = f"below {lower:g}" if below else f"above {upper:g}" if above else ""
    else:
        meaning = f"not above {lower:g}" if below else f"reaches {upper:g}" if above else ""
    return colour, f"{value[0]:.3g}", meaning or f"between {lower:g} and {upper:g}"


def _noise_of(layer: Any, cell_id: int) -> str:
    """Say the noise level of a cell and what speaks against its rate; "" without its rate."""
    table = layer.features
    if "spike_marks" not in table:
        return ""
    rows = np.flatnonzero(np.asarray(table["cell_id"]) == cell_id)
    if not rows.size:
        return ""
    level, marks = (table[name].iloc[int(rows[0])] for name in ("noise_level", "spike_marks"))
    figure = NOT_KNOWN if math.isnan(level) else f"{level:.3g} {NOISE_UNIT}"
    return f"Noise level of dF/F {figure}; spike rate: {marks or 'nothing against it'}"


def _overlapping(decided: Decided, index: int) -> str:
    """Name the cells that overlap one, those with the largest overlap first."""
    pairs, overlap = decided.quality.pairs, decided.quality.overlap
    rows = np.flatnonzero((pairs == index).any(axis=1))
    rows = rows[np.argsort(-overlap[rows], kind="stable")][:MOST_OVERLAPS]
    named = []
    for row in rows:
        other = int(pairs[row].sum()) - index
        named.append(f"cell {decided.cell_id[other]} ({100 * overlap[row]:.0f} %)")
    return ", ".join(named)


def _write(label: QLabel, text: str) -> None:
    """Write a text, and let a label without one take no room."""
    label.setProperty("said", text)
    label.setText(text)
    label.setVisible(bool(text))
