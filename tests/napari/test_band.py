"""The band: what of it is drawn, in a plot without a viewer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyqtgraph as pg
import pytest

from napari_calcium.napari.band import MOST_BINS, Band, thinned


@pytest.mark.parametrize(("start", "stop"), [(0, 1000), (37, 953), (999, 1000), (500, 2000)])
@pytest.mark.parametrize("most", [1, 7, 5000])
def test_thinning_keeps_every_extreme(start: int, stop: int, most: int) -> None:
    rng = np.random.default_rng(0)
    times, low = np.arange(1000) / 3, rng.normal(size=1000)
    high = low + rng.random(1000)
    t, least, largest = thinned(times, low, high, start, stop, most)
    assert len(t) <= most + 2
    assert (np.diff(t) > 0).all()
    assert (least <= largest).all()
    assert least.min() <= low[start:stop].min()
    assert largest.max() >= high[start:stop].max()
    if most > 1000:
        np.testing.assert_array_equal(least, low[start:stop])
        np.testing.assert_allclose(t, times[start:stop])


def test_bins_do_not_move_with_the_view() -> None:
    times = np.arange(1000.0)
    low = np.random.default_rng(0).normal(size=1000)
    first = thinned(times, low, low, 100, 900, 80)
    second = thinned(times, low, low, 113, 913, 80)
    same = np.isin(first[0], second[0])
    assert same.sum() >= 78
    np.testing.assert_array_equal(first[1][same], second[1][np.isin(second[0], first[0])])


def test_no_more_is_drawn_than_can_be_told_apart(qtbot: Any) -> None:
    widget = pg.PlotWidget()
    qtbot.addWidget(widget)
    band = Band(widget.getPlotItem(), pg.mkColor("#4fb3ff"))
    times = np.arange(100_000.0)
    low = np.sin(times / 999)
    widget.setXRange(0, 99_999, padding=0)
    band.show(times, low, low + 1)
    path = band._item.path()
    assert MOST_BINS < path.elementCount() <= 2 * (MOST_BINS + 2)
    box = path.boundingRect()
    # a bin of 200 frames has a step of at most 0.2 px of the sine
    np.testing.assert_allclose([box.top(), box.bottom()], [-1, 2], atol=1e-3)
    widget.setXRange(500, 600, padding=0)
    assert 200 <= band._item.path().elementCount() <= 210
    band.clear()
    assert band._item.path().elementCount() == 0
