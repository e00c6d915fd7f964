"""How the noise levels of all cells lie beside what a model was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyqtgraph as pg
from napari.utils.theme import get_theme
from numpy.typing import NDArray
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

from napari_calcium.napari.score_histograms import (
    ENOUGH,
    HEADROOM,
    HIGHEST,
    SPACING,
    TOO_LOW,
    binned,
    plain_plot,
)
from napari_calcium.spikes.guards import UNIT

__all__ = ["NoiseHistogram"]

SHADE = "#2fae6b30"
"""Of the noise levels that the model was trained on, as ``#rrggbbaa``."""

FURTHEST = 3.0
"""How far the axis goes to show all of them, as a multiple of the noisiest cell."""

HEIGHT = 96
"""Height of the plot, px."""

TIP = (
    "Noise level of dF/F: the median step from frame to frame, over the root of the frame rate. "
    "Shaded: what the model was trained on. Green: cells within it, red: cells beyond"
)


class NoiseHistogram(QWidget):  # type: ignore[misc]
    """The histogram of the noise levels of cells, with a model's range shaded.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer whose theme is followed.

    Attributes
    ----------
    bars : dict of bool to pyqtgraph.BarGraphItem
        The cells within the range, and those beyond it.
    shade : pyqtgraph.LinearRegionItem
        The range.
    """

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self.plot = plain_plot()
        self.plot.setFixedHeight(HEIGHT)
        self.shade = pg.LinearRegionItem((0, 1), movable=False, brush=SHADE, pen=ENOUGH)
        self.shade.setZValue(-10)
        self.plot.addItem(self.shade, ignoreBounds=True)
        self.bars = {within: self._bars(TOO_LOW if not within else ENOUGH) for within in (1, 0)}
        self._lay_out()
        self._follow_theme()

    def show_levels(
        self, levels: NDArray[np.float32], noise_levels: tuple[float, float] | None
    ) -> None:
        """Show noise levels of cells, and what the model was trained on.

        Parameters
        ----------
        levels : ndarray (cell,)
            % per root Hz; NaN is left out.
        noise_levels : tuple of float or None
            Lowest and highest of training; None where there is no model.
        """
        known = levels[np.isfinite(levels)]
        self.setVisible(bool(known.size))
        if not known.size:
            return
        low, high = noise_levels or (0.0, np.inf)
        self.shade.setVisible(noise_levels is not None)
        end = float(np.percentile(known, HIGHEST)) or 1.0
        if noise_levels is not None:  # in the last bar is all beyond the axis
            end = max(end, high if (known > high).any() else min(high, FURTHEST * end))
            self.shade.setRegion((low, high))
        heights, edges = binned(known, 0.0, 1.05 * end)
        self.plot.setXRange(0, 1.05 * end, padding=0)
        self.plot.setYRange(0, HEADROOM * max(1, int(heights.max())), padding=0)
        self._draw(heights, edges, low, high)

    def _draw(self, heights: Any, edges: Any, low: float, high: float) -> None:
        """Colour the bars; one in which an end of the range lies has two colours."""
        starts, ends = edges[:-1], edges[1:]
        parts = {1: [(low, high)], 0: [(-np.inf, low), (high, np.inf)]}
        for within, spans in parts.items():
            x0 = np.concatenate([np.maximum(starts, first) for first, _ in spans])
            x1 = np.concatenate([np.minimum(ends, last) for _, last in spans])
            height = np.tile(heights, len(spans))
            seen = (x1 > x0) & (height > 0)
            self.bars[within].setOpts(x0=x0[seen], x1=x1[seen], height=height[seen])

    def _bars(self, colour: str) -> Any:
        bars = pg.BarGraphItem(x0=[], x1=[], height=[], pen=None, brush=colour)
        self.plot.addItem(bars)
        return bars

    def _lay_out(self) -> None:
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        title = QLabel(f"Noise of dF/F ({UNIT}), cells")
        title.setStyleSheet("font-weight: bold;")
        title.setContentsMargins(SPACING, 0, SPACING, 0)
        layout.addWidget(title)
        layout.addWidget(self.plot)
        self.setToolTip(TIP)

    def _follow_theme(self) -> None:
        emitter, callback = self._viewer.events.theme, self._show_theme
        emitter.connect(callback)
        self.destroyed.connect(lambda: emitter.disconnect(callback))
        self._show_theme()

    def _show_theme(self, event: Any = None) -> None:
        theme = get_theme(self._viewer.theme)
        self.plot.setBackground(theme.background.as_hex())
        axis = self.plot.getAxis("bottom")
        axis.setPen(theme.text.as_hex())
        axis.setTextPen(theme.text.as_hex())
