"""The range of many values over time, as a band that stays fluid for long recordings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from qtpy.QtWidgets import QGraphicsPathItem

__all__ = ["Band", "thinned"]

MOST_BINS = 500

Values = NDArray[Any]


class Band:
    """A band in a plot; of what is seen no more is drawn than can be told apart.

    Parameters
    ----------
    plot : pyqtgraph.PlotItem
        The plot.
    colour : QColor
        Colour, with its opacity.
    """

    def __init__(self, plot: Any, colour: Any) -> None:
        self._plot = plot
        self._values: tuple[Values, Values, Values] | None = None
        self._item = QGraphicsPathItem()
        self._item.setPen(pg.mkPen(None))
        self._item.setBrush(pg.mkBrush(colour))
        self._item.setZValue(-1)
        plot.addItem(self._item)
        plot.sigXRangeChanged.connect(self._draw)

    @property
    def values(self) -> tuple[Values, Values, Values] | None:
        """What is shown: the times (time,), and the lower and the upper border; or None."""
        return self._values

    def show(self, times: Values, low: Values, high: Values) -> None:
        """Show the band between two borders, (time,) each."""
        self._values = times, low, high
        self._draw()

    def clear(self) -> None:
        """Show nothing."""
        self._values = None
        self._draw()

    def _draw(self, *event: Any) -> None:
        x = y = np.zeros(0)
        if self._values is not None:
            first, last = np.searchsorted(self._values[0], self._plot.viewRange()[0])
            times, low, high = thinned(*self._values, max(0, first - 1), last + 1)
            x, y = np.concatenate([times, times[::-1]]), np.concatenate([low, high[::-1]])
        self._item.setPath(pg.arrayToQPath(x, y))


def thinned(
    times: Values, low: Values, high: Values, start: int, stop: int, most: int = MOST_BINS
) -> tuple[Values, Values, Values]:
    """Return the borders of a part of a band as those of fewer, wider bins.

    Parameters
    ----------
    times, low, high : ndarray (time,)
        Times, and the borders.
    start, stop : int
        The part.
    most : int
        About the most bins to be returned.

    Returns
    -------
    tuple of ndarray (bin,)
        Mean time, least `low` and largest `high` of each bin. A bin holds the same frames wherever
        the part begins.

    Examples
    --------
    >>> low = np.array([0, -1, 0, -3, 0, 0])
    >>> thinned(np.arange(6.0), low, low + 2, 2, 6, most=2)
    (array([2.5, 4.5]), array([-3,  0]), array([2, 2]))
    """
    size = max(1, -(-(stop - start) // most))
    start = start - start % size
    part = slice(start, max(start + 1, stop))
    edges = np.arange(0, len(times[part]), size)
    counts = np.diff(np.append(edges, len(times[part])))
    return (
        np.add.reduceat(times[part], edges) / counts,
        np.minimum.reduceat(low[part], edges),
        np.maximum.reduceat(high[part], edges),
    )
