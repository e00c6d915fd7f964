"""The histogram of noise levels: bars, the shaded range, and colours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from napari.utils.theme import get_theme

from napari_calcium.napari.noise_histogram import NoiseHistogram


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any) -> Any:
    return make_napari_viewer_proxy()


@pytest.fixture
def histogram(qtbot: Any, viewer: Any) -> NoiseHistogram:
    widget = NoiseHistogram(viewer)
    qtbot.addWidget(widget)
    return widget


def areas(histogram: NoiseHistogram) -> dict[bool, float]:
    """Return the area of the bars within the range and of those beyond, in cells."""
    found = {}
    for within, bars in histogram.bars.items():
        x0, x1, height = (np.asarray(bars.opts[name]) for name in ("x0", "x1", "height"))
        found[bool(within)] = float(((x1 - x0) * height).sum())
    return found


@pytest.mark.parametrize("seed", range(3))
def test_bars_are_the_cells_in_two_colours(histogram: NoiseHistogram, seed: int) -> None:
    levels = np.random.default_rng(seed).uniform(0, 10, 1000).astype(np.float32)
    levels[:50] = np.nan
    histogram.show_levels(levels, (2.0, 7.0))
    assert not histogram.isHidden()
    assert histogram.shade.getRegion() == (2.0, 7.0)
    found = areas(histogram)
    width = 1.05 * np.percentile(levels[50:], 99.5) / 48
    assert sum(found.values()) == pytest.approx(950 * width, rel=1e-3)
    # bars in which an end lies are cut there, as if their cells were even in it
    n_within = ((levels >= 2) & (levels <= 7)).sum()
    assert found[True] / width == pytest.approx(n_within, abs=15)
    within = histogram.bars[1].opts
    assert min(within["x0"]) >= 2
    assert max(within["x1"]) <= 7


def test_without_a_model_all_are_of_one_colour(histogram: NoiseHistogram) -> None:
    histogram.show_levels(np.float32([1, 2, 3]), None)
    assert not histogram.shade.isVisible()
    assert areas(histogram)[False] == 0


def test_a_wide_range_leaves_the_cells_their_room(histogram: NoiseHistogram) -> None:
    histogram.show_levels(np.float32([1, 1.5, 2]), (0.3, 500.0))
    assert histogram.plot.viewRange()[0][1] < 7
    histogram.show_levels(np.float32([1, 1.5, 2]), (0.3, 4.0))
    assert histogram.plot.viewRange()[0][1] == pytest.approx(4.2)


def test_a_few_cells_beyond_the_range_are_seen_beyond_it(histogram: NoiseHistogram) -> None:
    """Though the axis ends before the noisiest: the last bar is of all that lies beyond."""
    levels = np.append(np.full(999, 1.0), 20.0).astype(np.float32)
    for high in (3.5, 12.0):
        histogram.show_levels(levels, (0.3, high))
        beyond = histogram.bars[0].opts
        assert np.asarray(beyond["height"]).tolist() == [1]
        assert min(beyond["x0"]) >= high
        assert histogram.plot.viewRange()[0][1] < 1.2 * high


def test_without_any_level_it_is_hidden(histogram: NoiseHistogram) -> None:
    for levels in (np.zeros(0), np.full(5, np.nan)):
        histogram.show_levels(levels.astype(np.float32), (1.0, 8.0))
        assert histogram.isHidden()
    histogram.show_levels(np.float32([0, 0]), (1.0, 8.0))
    assert not histogram.isHidden()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_has_the_colours_of_the_theme(
    viewer: Any, histogram: NoiseHistogram, theme: str
) -> None:
    viewer.theme = theme
    expected = get_theme(theme)
    brush = histogram.plot.backgroundBrush().color().name()
    assert brush == expected.background.as_hex()[:7].lower()
    axis = histogram.plot.getAxis("bottom")
    assert axis.textPen().color().name() == expected.text.as_hex()[:7].lower()
