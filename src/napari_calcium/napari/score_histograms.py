"""How the scores of all cells lie, with thresholds that are dragged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyqtgraph as pg
from napari.utils.theme import get_theme
from numpy.typing import NDArray
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

from napari_calcium.components import Quality
from napari_calcium.evaluation.decision import THRESHOLDS, TITLES
from napari_calcium.evaluation.evaluation import ComponentEvaluationParameters
from napari_calcium.parameters import Parameter

__all__ = [
    "COLOURS",
    "ENOUGH",
    "HEADROOM",
    "HIGHEST",
    "NOT_ASKED",
    "NO_CELLS",
    "SPACING",
    "TOO_LOW",
    "ScoreHistogram",
    "ScoreHistograms",
    "binned",
    "plain_plot",
    "rounded",
    "spot",
    "standings",
]

Floats = NDArray[np.float32]

ENOUGH, NEITHER, TOO_LOW = "#2fae6b", "#8a8f98", "#e8603c"
"""Of scores that are enough by themselves, that say nothing, and that reject a cell; as
``#rrggbb``, to be seen on dark and on light."""

COLOURS: dict[str, tuple[str, str, str]] = {
    score: (TOO_LOW, NEITHER, TOO_LOW if score == "size" else ENOUGH) for score in THRESHOLDS
}
"""Colours of what lies below the lower threshold of each score, between, and above the upper."""

LINE = "#d99a00"
MEANINGS = {
    "snr": "Trace SNR: how exceptional a cell's largest transient is, in units of 3 sd of noise",
    "spatial_correlation": "Spatial correlation: of the footprint with the movie at the cell's "
    "transients",
    "cnn_probability": "Classifier: probability by a neural network that the footprint is a soma",
    "size": "Size: area above a fifth of the maximum, in discs of the typical cell's radius",
}
USES = {
    "upper": "at the upper line or above, enough by itself",
    "lower": "at the lower line or below, rejected",
}
USES_OF_SIZE = {"upper": "above the upper line, too large", "lower": "below the lower, too small"}
NOT_ASKED, NO_CELLS = "not asked", "no cells"

FEWEST_BINS, MOST_BINS = 12, 48
HIGHEST = 99.5
"""Percentile of a score at which its axis ends; what lies beyond is in the last bin."""

WHOLE: dict[str, tuple[float, float]] = {"spatial_correlation": (0, 1), "cnn_probability": (0, 1)}
"""What the axes of scores that have an end show at least."""

DIGITS = 3
FURTHEST = 2.0
"""How far a threshold may stretch the axis, as a multiple of the span of the scores."""

HEADROOM = 1.25
"""Height of a plot relative to its highest bar: the thresholds are written there."""

HEIGHT, HEIGHT_OF_AXIS, MARKER, SPACING = 56, 17, 9, 5
"""Least height of a plot, height of its axis, size of a line's grip, and room, px."""

PLACES_OF_NUMBERS, PLACE_OF_GRIPS = (0.6, 0.82), 0.94
"""Heights at which the lower and the upper threshold are written, so that neither hides the other,
and of the grips."""

ROOM = 0.12
"""Room that a number takes beside its line, as a part of the axis."""

SIZE_OF_A_SPOT = 9


class ScoreHistogram(QWidget):  # type: ignore[misc]
    """The histogram of one score, with its two thresholds.

    Parameters
    ----------
    score : str
        One of `evaluation.decision.THRESHOLDS`.

    Attributes
    ----------
    lines : dict of str to pyqtgraph.InfiniteLine
        The thresholds by the names of their parameters, first the lower one.
    bars : tuple of pyqtgraph.BarGraphItem
        What lies below the lower threshold, between, and above the upper one.
    """

    dragged = Signal(object)
    released = Signal()

    def __init__(self, score: str) -> None:
        super().__init__()
        self.score, self.names = score, THRESHOLDS[score]
        described = {each.name: each for each in ComponentEvaluationParameters.describe()}
        self._described = [described[name] for name in self.names]
        self._defaults = [float(each.default) for each in self._described]
        self.thresholds = dict(zip(self.names, self._defaults, strict=True))
        self._values = np.zeros(0, np.float32)
        self._edges, self._heights = np.array([0.0, 1.0]), np.zeros(1)
        self._title, self._counts = QLabel(_title(score, self._described[0])), QLabel()
        self.plot = plain_plot()
        self.bars = tuple(self._bars(colour) for colour in COLOURS[score])
        self.lines = {name: self._line(place) for place, name in enumerate(self.names)}
        self._lay_out()
        self.show_values(self._values)

    @property
    def counts(self) -> str:
        """How many cells lie above, between and below the thresholds, as it is written."""
        return str(self._counts.property("said"))

    def show_values(self, values: Floats) -> None:
        """Show the score of each cell (cell,); NaN where it is not known."""
        values = np.asarray(values, np.float32)
        if self._values.size and np.array_equal(values, self._values, equal_nan=True):
            return
        self._values = values
        known = self._values[~np.isnan(self._values)]
        self.plot.setVisible(bool(known.size))
        policy = QSizePolicy.Policy
        self.setSizePolicy(policy.Expanding, policy.Expanding if known.size else policy.Fixed)
        self._count()
        if known.size:
            self._stretch(known)
            self._draw()

    def set_thresholds(self, thresholds: Mapping[str, float]) -> None:
        """Move the lines, which emits nothing; the lower one is at most at the upper one."""
        self.thresholds |= {
            name: float(thresholds[name]) for name in self.names if name in thresholds
        }
        lower, upper = self.names
        self.thresholds[lower] = min(self.thresholds[lower], self.thresholds[upper])
        known = self._values[~np.isnan(self._values)]
        if known.size and not any(line.moving for line in self.lines.values()):
            self._stretch(known)
        self._place_lines()
        self._draw()
        self._count()

    def show_theme(self, background: str, text: str) -> None:
        """Take the colours of a theme."""
        self.plot.setBackground(background)
        axis = self.plot.getAxis("bottom")
        axis.setPen(text)
        axis.setTextPen(text)
        for line in self.lines.values():
            line.label.fill = pg.mkBrush(background)
            line.label.setColor(text)

    def _stretch(self, known: Floats) -> None:
        """Have the axis show nearly all scores, and the thresholds where they are not far off."""
        low, high = _span(known, self.score)
        defaults, reach = self._defaults, FURTHEST * (high - low)
        near = [each for each in self.thresholds.values() if low - reach < each < high + reach]
        low, high = min(low, *defaults, *near), max(high, *defaults, *near)
        self._heights, self._edges = binned(known, low, high)
        margin = 0.02 * (high - low)
        self.plot.setXRange(low - margin, high + margin, padding=0)
        self.plot.setYRange(0, HEADROOM * max(1, int(self._heights.max())), padding=0)
        self._tell(int((known > high).sum()), high)
        self._place_lines()

    def _place_lines(self) -> None:
        """Put each line at its threshold, and let it go no further than may be."""
        lower, upper = (self.thresholds[name] for name in self.names)
        first, last = float(self._edges[0]), float(self._edges[-1])
        for place, (name, bounds) in enumerate(
            zip(self.names, ((first, upper), (lower, last)), strict=True)
        ):
            line, value = self.lines[name], self.thresholds[name]
            low, high = _bounds(self._described[place], *bounds)
            line.setBounds((min(low, value), max(high, value)))
            line.setValue(value)
        # where both are at one place, the one that can be dragged away from there is on top
        self.lines[self.names[0]].setZValue(9 if 2 * upper < first + last else 11)
        self._turn_numbers()

    def _turn_numbers(self) -> None:
        """Write the lower threshold left of its line, the upper one right, where there is room."""
        first, last = float(self._edges[0]), float(self._edges[-1])
        lower, upper = ((self.thresholds[name] - first) / (last - first) for name in self.names)
        left, right = (1, 0.5), (0, 0.5)
        for name, anchor in zip(
            self.names,
            (left if lower > ROOM else right, right if upper < 1 - ROOM else left),
            strict=True,
        ):
            self.lines[name].label.anchors = [anchor, anchor]
            self.lines[name].label.updatePosition()

    def _draw(self) -> None:
        """Colour the bars as the thresholds say; one in which a threshold lies has two colours."""
        lower, upper = (self.thresholds[name] for name in self.names)
        starts, ends = self._edges[:-1], self._edges[1:]
        parts = ((-np.inf, lower), (lower, upper), (upper, np.inf))
        for bars, (first, last) in zip(self.bars, parts, strict=True):
            x0, x1 = np.maximum(starts, first), np.minimum(ends, last)
            seen = (x1 > x0) & (self._heights > 0)
            bars.setOpts(x0=x0[seen], x1=x1[seen], height=self._heights[seen])

    def _count(self) -> None:
        lower, upper = (self.thresholds[name] for name in self.names)
        below, above = standings(self.score, self._values, lower, upper)
        known = int((~np.isnan(self._values)).sum())
        numbers = (int(above.sum()), known - int((above | below).sum()), int(below.sum()))
        said = NOT_ASKED if self._values.size else NO_CELLS
        text = said
        if known:
            said = f"{numbers[0]} above, {numbers[1]} between, {numbers[2]} below"
            said += f", {unknown} not known" if (unknown := self._values.size - known) else ""
            colours = reversed(COLOURS[self.score])
            text = "&nbsp;".join(
                f"{spot(colour)}&nbsp;{n}" for colour, n in zip(colours, numbers, strict=True)
            )
        self._counts.setProperty("said", said)
        self._counts.setText(text)
        self._counts.setToolTip(said)

    def _tell(self, beyond: int, high: float) -> None:
        uses = USES_OF_SIZE if self.score == "size" else USES
        said = [MEANINGS[self.score], f"Drag the lines: {uses['upper']}; {uses['lower']}"]
        if beyond:
            said.append(f"{beyond} beyond {high:.3g} in the last bar")
        self.setToolTip("\n".join(said))

    def _drag(self, line: Any) -> None:
        name = next(each for each, other in self.lines.items() if other is line)
        span = float(self._edges[-1] - self._edges[0])
        low, high = line.maxRange
        self.thresholds[name] = min(max(rounded(line.value(), span), low), high)
        place = 1 - self.names.index(name)
        other = self.lines[self.names[place]]
        value = self.thresholds[name]  # the other one may come as far as here, and no further
        bounds = (value, self._edges[-1]) if place else (self._edges[0], value)
        low, high = _bounds(self._described[place], *bounds)
        other.setBounds((min(low, other.value()), max(high, other.value())))
        self._turn_numbers()
        self._draw()
        self._count()
        self.dragged.emit({name: self.thresholds[name]})

    def _end(self, line: Any) -> None:
        self._place_lines()
        self.released.emit()

    def _bars(self, colour: str) -> Any:
        bars = pg.BarGraphItem(x0=[], x1=[], height=[], pen=None, brush=colour)
        self.plot.addItem(bars)
        return bars

    def _line(self, place: int) -> Any:
        line = pg.InfiniteLine(
            self._defaults[place],
            movable=True,
            pen=pg.mkPen(LINE, width=2),
            hoverPen=pg.mkPen(LINE, width=4),
            label="{value:.3g}",
            labelOpts={"position": PLACES_OF_NUMBERS[place]},
        )
        line.addMarker("o", position=PLACE_OF_GRIPS, size=MARKER)
        line.setCursor(Qt.CursorShape.SizeHorCursor)
        line.setZValue(10)
        line.sigDragged.connect(self._drag)
        line.sigPositionChangeFinished.connect(self._end)
        self.plot.addItem(line)
        return line

    def _lay_out(self) -> None:
        layout, row = QVBoxLayout(self), QHBoxLayout()
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addLayout(row)
        layout.addWidget(self.plot, stretch=1)
        row.setContentsMargins(SPACING, 0, SPACING, 0)
        row.addWidget(self._title, stretch=1)
        row.addWidget(self._counts)
        self._title.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self._title.setStyleSheet("font-weight: bold;")


class ScoreHistograms(QWidget):  # type: ignore[misc]
    """A histogram of each score, one below the other.

    Parameters
    ----------
    viewer : napari.Viewer, optional
        The viewer whose theme is followed; without one the colours are those of the dark theme.

    Attributes
    ----------
    histograms : dict of str to ScoreHistogram
        By the names of the scores.

    Signals
    -------
    dragged(dict)
        The threshold that is being dragged, by the name of its parameter.
    released()
        It was let go.
    """

    dragged = Signal(object)
    released = Signal()

    def __init__(self, viewer: Any = None) -> None:
        super().__init__()
        self._viewer = viewer
        self.histograms = {score: ScoreHistogram(score) for score in THRESHOLDS}
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(SPACING)
        for histogram in self.histograms.values():
            layout.addWidget(histogram)
            histogram.dragged.connect(self.dragged)
            histogram.released.connect(self.released)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self._show_theme()
        if viewer is not None:
            self._follow_theme()

    def show(self, quality: Quality | None = None) -> None:
        """Show the scores of some cells; without them, the widget itself, as Qt's `show` does."""
        if quality is None:
            super().show()
            return
        for score, histogram in self.histograms.items():
            histogram.show_values(getattr(quality, score))

    def clear(self) -> None:
        """Show no cells."""
        for histogram in self.histograms.values():
            histogram.show_values(np.zeros(0, np.float32))

    def set_thresholds(self, thresholds: Mapping[str, float]) -> None:
        """Move the lines to thresholds, by the names of their parameters; others are left out."""
        for histogram in self.histograms.values():
            histogram.set_thresholds(thresholds)

    def _follow_theme(self) -> None:
        emitter, callback = self._viewer.events.theme, self._show_theme
        emitter.connect(callback)
        self.destroyed.connect(lambda: emitter.disconnect(callback))

    def _show_theme(self, event: Any = None) -> None:
        theme = get_theme(self._viewer.theme if self._viewer is not None else "dark")
        for histogram in self.histograms.values():
            histogram.show_theme(theme.background.as_hex(), theme.text.as_hex())


def standings(
    score: str, values: Floats, lower: float, upper: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Say which values are below a score's lower threshold, and which are above its upper one.

    As the decision takes them: a score that reaches its upper threshold is above it, one that is
    at its lower threshold is below it, and a size is neither where it is as large as one of them.

    Parameters
    ----------
    score : str
        One of `evaluation.decision.THRESHOLDS`.
    values : ndarray (cell,)
        NaN is neither below nor above.
    lower, upper : float
        The thresholds.

    Returns
    -------
    tuple of ndarray of bool (cell,)

    Examples
    --------
    >>> values = np.float32([0.5, 1, 2.5, np.nan])
    >>> [each.tolist() for each in standings("snr", values, 0.5, 2.5)]
    [[True, False, False, False], [False, False, True, False]]
    >>> [each.tolist() for each in standings("size", values, 0.5, 2.5)]
    [[False, False, False, False], [False, False, False, False]]
    """
    if score == "size":
        return values < lower, values > upper
    below = values <= lower
    return below, (values >= upper) & ~below


def rounded(value: float, span: float) -> float:
    """Return a value with three digits that count, or fewer where an axis of some span ends there.

    Examples
    --------
    >>> rounded(38.1234, 40), rounded(2.5371, 40), rounded(0.84962, 1), rounded(0.0012345, 1)
    (38.1, 2.54, 0.85, 0.001)
    """
    largest = max(abs(value), span / 10)
    decimals = DIGITS - 1 - math.floor(math.log10(largest)) if largest > 0 else DIGITS
    return round(float(value), decimals)


def binned(known: Floats, low: float, high: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return how many values lie in each bin between two ends, and the bins' edges.

    What lies beyond is in the first and in the last bin.

    Examples
    --------
    >>> heights, edges = binned(np.array([0.5, 1.5, 99]), 0, 12)
    >>> heights.tolist(), edges[[0, 1, -1]].tolist()
    ([1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], [0.0, 1.0, 12.0])
    """
    n_bins = int(np.clip(2 * math.sqrt(known.size), FEWEST_BINS, MOST_BINS))
    heights, edges = np.histogram(np.clip(known, low, high), n_bins, (low, high))
    return heights, edges


def spot(colour: str) -> str:
    """Return a small square of a colour, as rich text."""
    return f'<span style="color: {colour}; font-size: {SIZE_OF_A_SPOT}pt">&#9632;</span>'


def _span(known: Floats, score: str) -> tuple[float, float]:
    """Return what the axis of a score shows of its values, at least one of them known.

    Examples
    --------
    >>> _span(np.append(np.arange(300.0), 1e6), "snr")
    (0.0, 298.5)
    >>> _span(np.float32([0.25, 0.5]), "cnn_probability")
    (0.0, 1.0)
    """
    finite = known[np.isfinite(known)]
    low, high = np.percentile(finite, (100 - HIGHEST, HIGHEST)) if finite.size else (0, 0)
    first, last = WHOLE.get(score, (0, 0))
    low, high = min(float(low), first), max(float(high), last)
    return float(low), float(high) if high > low else low + 1.0


def _bounds(described: Parameter, first: float, last: float) -> tuple[float, float]:
    """Return how far a threshold may go between two values, as its parameter allows."""
    low, high = first, last
    if described.minimum is not None:
        low = max(low, described.minimum)
    if described.above is not None:
        low = max(low, described.above + rounded((last - first) / 1000, 0) or first)
    if described.maximum is not None:
        high = min(high, described.maximum)
    return float(low), float(max(low, high))


def _title(score: str, described: Parameter) -> str:
    unit = described.unit if described.unit not in ("", "1") else ""
    return f"{TITLES[score]} ({unit})" if unit else TITLES[score]


def plain_plot() -> Any:
    """Return a plot that the mouse neither moves nor zooms, with numbers below it only."""
    plot = pg.PlotWidget()
    plot.setMenuEnabled(False)
    plot.setMouseEnabled(x=False, y=False)
    plot.hideButtons()
    plot.hideAxis("left")
    axis = plot.getAxis("bottom")
    axis.enableAutoSIPrefix(False)
    axis.setHeight(HEIGHT_OF_AXIS)
    axis.setStyle(tickLength=-3, tickTextOffset=2)
    plot.setMinimumHeight(HEIGHT)
    return plot
