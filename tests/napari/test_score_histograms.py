"""Histograms of scores: what is counted and drawn, and lines dragged with the mouse."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from napari.utils.theme import get_theme
from qtpy.QtCore import QEvent, QPointF, Qt
from qtpy.QtGui import QMouseEvent
from qtpy.QtWidgets import QApplication

from napari_calcium.components import Quality
from napari_calcium.evaluation.decision import THRESHOLDS, Reason, decide
from napari_calcium.evaluation.evaluation import ComponentEvaluationParameters
from napari_calcium.napari.score_histograms import (
    COLOURS,
    NO_CELLS,
    NOT_ASKED,
    ScoreHistogram,
    ScoreHistograms,
    rounded,
    standings,
)

LEFT, NONE = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton
NAMES = [name for pair in THRESHOLDS.values() for name in pair]


def quality(seed: int = 0, n: int = 500, **scores: Any) -> Quality:
    rng = np.random.default_rng(seed)
    drawn = {
        "snr": rng.gamma(2, 2, n),
        "spatial_correlation": rng.uniform(-0.2, 1, n),
        "cnn_probability": rng.random(n),
        "size": rng.gamma(4, 0.25, n),
    }
    return Quality(**(drawn | scores), accepted=np.zeros(n, bool))


@pytest.fixture
def histograms(qtbot: Any) -> ScoreHistograms:
    widget = ScoreHistograms()
    qtbot.addWidget(widget)
    widget.resize(340, 450)
    widget.show()
    qtbot.waitExposed(widget)
    widget.show(quality())
    qtbot.wait(20)
    return widget


def emitted(widget: ScoreHistograms) -> tuple[list[dict[str, float]], list[bool]]:
    """Return lists that the signals are going to fill."""
    dragged: list[dict[str, float]] = []
    released: list[bool] = []
    widget.dragged.connect(dragged.append)
    widget.released.connect(lambda: released.append(True))
    return dragged, released


def drag(qtbot: Any, histogram: ScoreHistogram, name: str, to: float, steps: int = 8) -> None:
    """Press the mouse on a line, move it to a value and let go."""
    plot, start = histogram.plot, histogram.lines[name].value()
    middle = sum(plot.getViewBox().viewRange()[1]) / 2

    def send(kind: QEvent.Type, value: float, pressed: Any) -> None:
        place = plot.mapFromScene(plot.getViewBox().mapViewToScene(QPointF(value, middle)))
        where = QPointF(place)
        everywhere = QPointF(plot.viewport().mapToGlobal(place))
        held = NONE if kind == QEvent.Type.MouseButtonRelease else pressed
        button = NONE if kind == QEvent.Type.MouseMove else LEFT
        modifiers = Qt.KeyboardModifier.NoModifier
        event = QMouseEvent(kind, where, everywhere, button, held, modifiers)
        QApplication.sendEvent(plot.viewport(), event)
        qtbot.wait(15)  # pyqtgraph takes 100 moves a second

    send(QEvent.Type.MouseMove, start, NONE)
    send(QEvent.Type.MouseButtonPress, start, LEFT)
    for value in np.linspace(start, to, steps + 1)[1:]:
        send(QEvent.Type.MouseMove, float(value), LEFT)
    send(QEvent.Type.MouseButtonRelease, to, LEFT)


def pixel(histogram: ScoreHistogram) -> float:
    """Return how much of the score a pixel is."""
    return float(histogram.plot.getViewBox().viewPixelSize()[0])


# ------------------------------------------------------------------------- counts and bars


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_the_decision(seed: int) -> None:
    scores = quality(seed)
    rng = np.random.default_rng(seed)
    given = {}
    for lower, upper in THRESHOLDS.values():
        given[lower], given[upper] = np.sort(rng.uniform(0.1, 0.9, 2))
    parameters = ComponentEvaluationParameters(**given)
    reasons = decide(scores, parameters).reasons
    bits = {"snr": Reason.SNR, "spatial_correlation": Reason.CORRELATION}
    bits["cnn_probability"] = Reason.CNN
    enough, too_low = np.zeros((2, 500), bool)
    for score, names in THRESHOLDS.items():
        limits = (given[name] for name in names)
        below, above = standings(score, getattr(scores, score), *limits)
        if score == "size":
            np.testing.assert_array_equal(below, (reasons & Reason.SMALL) > 0)
            np.testing.assert_array_equal(above, (reasons & Reason.LARGE) > 0)
        else:
            np.testing.assert_array_equal(below, (reasons & bits[score]) > 0)
            enough |= above
            too_low |= below
    np.testing.assert_array_equal(~enough & ~too_low, (reasons & Reason.NO_SCORE) > 0)


def test_a_score_at_both_thresholds_is_rejected() -> None:
    below, above = standings("snr", np.float32([2.0]), 2.0, 2.0)
    assert below.all()
    assert not above.any()


@pytest.mark.parametrize("score", THRESHOLDS)
def test_bars_are_cut_at_the_thresholds_and_have_the_colours(
    score: str, histograms: ScoreHistograms
) -> None:
    histogram = histograms.histograms[score]
    lower, upper = THRESHOLDS[score]
    histogram.set_thresholds({lower: 0.3137, upper: 0.7271})
    values = getattr(quality(), score)
    ends = [-np.inf, 0.3137, 0.7271, np.inf]
    width, drawn = np.diff(histogram._edges)[0], 0.0
    for bars, colour, first, last in zip(
        histogram.bars, COLOURS[score], ends[:-1], ends[1:], strict=True
    ):
        x0, x1, height = (np.asarray(bars.opts[each]) for each in ("x0", "x1", "height"))
        assert (x0 >= first).all()
        assert (x1 <= last).all()
        assert bars._sharedBrush.color().name() == colour
        drawn += ((x1 - x0) * height).sum() / width
    assert drawn == pytest.approx(len(values))  # what is drawn is every cell, once
    assert histogram.counts == (
        f"{(values > 0.7271).sum()} above, "
        f"{((values > 0.3137) & (values < 0.7271)).sum()} between, {(values < 0.3137).sum()} below"
    )


def test_a_large_size_is_rejected_but_a_large_score_is_enough() -> None:
    assert COLOURS["size"][0] == COLOURS["size"][2] != COLOURS["snr"][2]
    assert COLOURS["size"][0] == COLOURS["snr"][0]


def test_one_huge_value_does_not_squeeze_the_rest(histograms: ScoreHistograms) -> None:
    values = np.append(quality().snr[:-2], np.float32([1e6, np.inf]))
    histograms.show(quality(snr=values))
    histogram = histograms.histograms["snr"]
    assert histogram.plot.getViewBox().viewRange()[0][1] < 30
    assert histogram._heights.sum() == 500
    assert histogram._heights[-1] >= 2
    assert "beyond" in histogram.toolTip()


def test_scores_that_were_not_asked_for(histograms: ScoreHistograms) -> None:
    unknown = np.full(500, np.nan)
    histograms.show(quality(cnn_probability=unknown, size=np.append(unknown[1:], 1.0)))
    histogram = histograms.histograms["cnn_probability"]
    assert histogram.counts == NOT_ASKED
    assert histogram.plot.isHidden()
    assert histograms.histograms["size"].counts == "0 above, 1 between, 0 below, 499 not known"
    histograms.set_thresholds({"cnn_upper": 0.7})
    histograms.show(quality())
    assert not histogram.plot.isHidden()
    assert histogram.lines["cnn_upper"].value() == 0.7


def test_without_cells_it_says_so(histograms: ScoreHistograms) -> None:
    histograms.clear()
    assert {each.counts for each in histograms.histograms.values()} == {NO_CELLS}
    histograms.show(quality(n=0))
    assert {each.counts for each in histograms.histograms.values()} == {NO_CELLS}


@pytest.mark.parametrize("value", [0.0, -3.0, 7.5])
def test_cells_that_are_all_the_same(value: float, histograms: ScoreHistograms) -> None:
    histograms.show(quality(snr=np.full(500, value)))
    assert histograms.histograms["snr"]._heights.sum() == 500


# ----------------------------------------------------------------------------- thresholds


def test_the_lines_begin_at_the_defaults(histograms: ScoreHistograms) -> None:
    defaults = ComponentEvaluationParameters().to_mapping()
    for histogram in histograms.histograms.values():
        for name, line in histogram.lines.items():
            assert line.value() == defaults[name]


def test_setting_thresholds_moves_the_lines_and_emits_nothing(
    histograms: ScoreHistograms,
) -> None:
    dragged, released = emitted(histograms)
    given = dict.fromkeys(NAMES, 0.25) | {"snr_upper": 1.23456, "decay_time": 3.0}
    histograms.set_thresholds(given)
    for histogram in histograms.histograms.values():
        for name, line in histogram.lines.items():
            assert line.value() == given[name]
    assert histograms.histograms["snr"].lines["snr_upper"].label.toPlainText() == "1.23"
    assert (dragged, released) == ([], [])


def test_a_lower_threshold_above_the_upper_one_is_drawn_at_it(
    histograms: ScoreHistograms,
) -> None:
    histograms.set_thresholds({"cnn_lower": 0.8, "cnn_upper": 0.6})
    lines = histograms.histograms["cnn_probability"].lines
    assert lines["cnn_lower"].value() == lines["cnn_upper"].value() == 0.6


def test_a_threshold_far_off_does_not_stretch_the_axis(histograms: ScoreHistograms) -> None:
    histogram = histograms.histograms["snr"]
    before = histogram.plot.getViewBox().viewRange()[0]
    histograms.set_thresholds({"snr_upper": 1000.0})
    assert histogram.plot.getViewBox().viewRange()[0] == before
    assert histogram.counts.startswith("0 above")
    histograms.set_thresholds({"snr_upper": 1.5 * before[1]})
    assert histogram.plot.getViewBox().viewRange()[0][1] > 1.5 * before[1]


@pytest.mark.parametrize(
    ("score", "name", "to"),
    [
        ("snr", "snr_upper", 6.0),
        ("snr", "snr_lower", 1.7),
        ("spatial_correlation", "correlation_upper", 0.93),
        ("spatial_correlation", "correlation_lower", 0.2),
        ("cnn_probability", "cnn_upper", 0.55),
        ("size", "max_size", 1.6),
        ("size", "min_size", 0.9),
    ],
)
def test_a_line_is_dragged_with_the_mouse(
    score: str, name: str, to: float, qtbot: Any, histograms: ScoreHistograms
) -> None:
    dragged, released = emitted(histograms)
    histogram = histograms.histograms[score]
    start, values = histogram.lines[name].value(), getattr(quality(), score)
    drag(qtbot, histogram, name, to)
    assert [list(each) for each in dragged] == [[name]] * len(dragged)
    assert len(dragged) >= 4
    found = [each[name] for each in dragged]
    assert found == sorted(found, reverse=to < start)
    # the line is grasped within a pixel of where it is, and values are rounded
    assert found[-1] == pytest.approx(to, abs=2 * pixel(histogram) + 0.005 * abs(to))
    assert float(f"{found[-1]:.3g}") == found[-1]
    assert released == [True]
    assert histogram.lines[name].value() == found[-1]
    below, above = standings(score, values, *histogram.thresholds.values())
    assert histogram.counts.startswith(f"{above.sum()} above")
    assert histogram.counts.endswith(f"{below.sum()} below")


def test_a_line_stops_at_the_other_and_at_its_bounds(
    qtbot: Any, histograms: ScoreHistograms
) -> None:
    dragged, _ = emitted(histograms)
    histogram = histograms.histograms["cnn_probability"]
    histograms.set_thresholds({"cnn_lower": 0.30149, "cnn_upper": 0.6})
    drag(qtbot, histogram, "cnn_upper", 0.1)
    assert dragged[-1] == {"cnn_upper": 0.30149}
    drag(qtbot, histogram, "cnn_upper", 1.015)
    assert dragged[-1] == {"cnn_upper": 1.0}
    drag(qtbot, histogram, "cnn_lower", -0.015)
    assert dragged[-1] == {"cnn_lower": 0.0}
    for each in dragged:
        ComponentEvaluationParameters(**({"cnn_lower": 0.0} | each))  # raises if out of bounds


def test_the_largest_size_stays_above_nothing(qtbot: Any, histograms: ScoreHistograms) -> None:
    dragged, _ = emitted(histograms)
    histogram = histograms.histograms["size"]
    histograms.set_thresholds({"min_size": 0.0, "max_size": 0.2})
    drag(qtbot, histogram, "max_size", -0.05)
    ComponentEvaluationParameters(min_size=0.0, **dragged[-1])


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_lines_at_the_same_end_can_be_dragged_apart(
    end: float, qtbot: Any, histograms: ScoreHistograms
) -> None:
    dragged, _ = emitted(histograms)
    histogram = histograms.histograms["cnn_probability"]
    histograms.set_thresholds({"cnn_lower": end, "cnn_upper": end})
    drag(qtbot, histogram, "cnn_upper", 0.5)
    name = "cnn_lower" if end else "cnn_upper"
    assert dragged[-1][name] == pytest.approx(0.5, abs=0.02)


def test_who_sets_what_was_dragged_does_not_disturb_the_drag(
    qtbot: Any, histograms: ScoreHistograms
) -> None:
    dragged, released = emitted(histograms)
    histograms.dragged.connect(histograms.set_thresholds)
    histograms.dragged.connect(lambda _: histograms.show(quality()))
    histogram = histograms.histograms["snr"]
    drag(qtbot, histogram, "snr_upper", 7.0)
    assert dragged[-1]["snr_upper"] == pytest.approx(7.0, abs=2 * pixel(histogram) + 0.05)
    assert released == [True]


def test_a_step_of_a_drag_is_fast(histograms: ScoreHistograms) -> None:
    """About 0.3 ms for 2,000 cells where this was written; a frame of 60 Hz has 16 ms."""
    histograms.show(quality(n=2000))
    histogram = histograms.histograms["snr"]
    line, seconds = histogram.lines["snr_upper"], []
    for value in np.linspace(2, 9, 20):
        begin = time.perf_counter()
        line.setValue(value)
        line.sigDragged.emit(line)
        seconds.append(time.perf_counter() - begin)
    assert np.median(seconds) < 5e-3


def test_numbers_stand_beside_their_lines_where_there_is_room(
    histograms: ScoreHistograms,
) -> None:
    lines = histograms.histograms["cnn_probability"].lines
    sides = {}
    for lower, upper in ((0.3, 0.7), (0.02, 0.98)):
        histograms.set_thresholds({"cnn_lower": lower, "cnn_upper": upper})
        sides[lower] = [line.label.anchor.x() for line in lines.values()]
    assert sides == {0.3: [1, 0], 0.02: [0, 1]}  # 1: the number ends at the line


@pytest.mark.parametrize("seed", range(3))
def test_rounding_keeps_three_digits_and_the_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for span in (1.0, 40.0, 1234.0):
        values = np.sort(rng.uniform(0, span, 50))
        found = [rounded(value, span) for value in values]
        assert found == sorted(found)
        # half of the last of three digits, of the largest value
        assert np.abs(values - found).max() <= 0.5e-2 * span


def test_it_follows_the_theme(make_napari_viewer_proxy: Any) -> None:
    viewer = make_napari_viewer_proxy()
    widget = ScoreHistograms(viewer)
    viewer.window.add_dock_widget(widget)
    plot = widget.histograms["snr"].plot
    for theme in ("light", "dark"):
        viewer.theme = theme
        colours = get_theme(theme)
        assert plot.backgroundBrush().color().name() == colours.background.as_hex(format="long")
        text = plot.getAxis("bottom").textPen().color().name()
        assert text == colours.text.as_hex(format="long")
