"""Thresholds that are dragged, in a real window with a real mouse."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from napari.utils.colormaps.standardize_color import transform_color
from qtpy.QtCore import QEvent, QPointF, Qt, QTimer
from qtpy.QtGui import QMouseEvent
from qtpy.QtWidgets import QApplication

from napari_calcium.evaluation.decision import THRESHOLDS, decide
from napari_calcium.evaluation.evaluation import ComponentEvaluationParameters
from napari_calcium.io.choices import read_choices
from napari_calcium.io.session import Session
from napari_calcium.napari.decided import COLOURS
from napari_calcium.napari.evaluation_widget import (
    GROUPS,
    RUN_FIRST,
    RUN_TO_USE,
    ComponentEvaluationWidget,
)
from napari_calcium.napari.stage_widget import ComponentEvaluationWidget as Exported
from napari_calcium.napari.viewing import shown_layer
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run
from napari_calcium.pipeline.stages import stage_named

PLUGIN = "napari-calcium"
GROUP = "component_evaluation"
SCORES = ("snr", "spatial_correlation", "cnn_probability", "size", "triggered/data")
SECONDS = 10_000
LEFT, NONE = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton


@pytest.fixture
def path(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "s.zarr"))


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any) -> Any:
    return make_napari_viewer_proxy()


def form(viewer: Any, path: Path | None = None) -> ComponentEvaluationWidget:
    if path is not None:
        viewer.open(str(path), plugin=PLUGIN)
    widget = ComponentEvaluationWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Component evaluation")
    return widget


@pytest.fixture
def shown(qtbot: Any, make_napari_viewer: Any, path: Path) -> Any:
    """The form in a window that is to be seen."""
    viewer = make_napari_viewer(show=True)
    viewer.window.resize(1400, 900)
    widget = form(viewer, path)
    qtbot.wait(200)
    return widget


def drag(
    qtbot: Any,
    widget: ComponentEvaluationWidget,
    name: str,
    to: float,
    step: Callable[[], None] = lambda: None,
    release: bool = True,
) -> None:
    """Press the mouse on a threshold, move it to a value in some steps, and let go."""
    score = next(score for score, names in THRESHOLDS.items() if name in names)
    histogram = widget.histograms.histograms[score]
    plot, start = histogram.plot, histogram.lines[name].value()
    middle = sum(plot.getViewBox().viewRange()[1]) / 2

    def send(kind: QEvent.Type, value: float, held: Any, button: Any = NONE) -> None:
        place = plot.mapFromScene(plot.getViewBox().mapViewToScene(QPointF(value, middle)))
        where, everywhere = QPointF(place), QPointF(plot.viewport().mapToGlobal(place))
        modifiers = Qt.KeyboardModifier.NoModifier
        event = QMouseEvent(kind, where, everywhere, button, held, modifiers)
        QApplication.sendEvent(plot.viewport(), event)
        qtbot.wait(40)  # pyqtgraph takes 100 moves a second, and colours 50

    send(QEvent.Type.MouseMove, start, NONE)
    send(QEvent.Type.MouseButtonPress, start, LEFT, LEFT)
    for value in np.linspace(start, to, 6)[1:]:
        send(QEvent.Type.MouseMove, float(value), LEFT)
        step()
    if release:
        send(QEvent.Type.MouseButtonRelease, to, NONE, LEFT)


def colours_of(widget: ComponentEvaluationWidget, accepted: Any, by_hand: Any) -> Any:
    pairs = zip(np.asarray(accepted).tolist(), np.asarray(by_hand).tolist(), strict=True)
    return np.concatenate([transform_color(COLOURS[pair]) for pair in pairs])


def assert_shown(widget: ComponentEvaluationWidget, accepted: Any) -> None:
    """Both layers are in the colours of a decision."""
    by_hand = np.isin(widget.decisions.cell_id, list(widget.decisions.choices))
    expected = colours_of(widget, accepted, by_hand)
    layers = [
        shown_layer(widget.viewer, widget.session_path, name) for name in ("cells", "outlines")
    ]
    labels = [int(label) for label in layers[0].features["index"]]
    cells = np.stack([layers[0].get_color(label) for label in labels])
    np.testing.assert_allclose(cells, expected, atol=1e-6)
    np.testing.assert_allclose(layers[1].edge_color, expected, atol=1e-6)


def on_disk(path: Path, *names: str) -> list[bytes]:
    return [Session(path).read(f"{GROUP}/{name}").tobytes() for name in names]


def finish(qtbot: Any, widget: ComponentEvaluationWidget) -> dict[str, Any]:
    """Press Run and wait for the end."""
    with qtbot.waitSignal(widget.runner.ended, timeout=120_000) as signal:
        widget.run_button.click()
    answer: dict[str, Any] = signal.args[0]
    return answer


def rescored(path: Path, **scores: Any) -> None:
    """Give the cells of a session other scores."""
    group = zarr.open_group(path, path=GROUP, mode="r+")
    for name, values in scores.items():
        group[name][...] = values


# ---------------------------------------------------------------------------------- dragging


def test_a_drag_recolours_the_cells_and_is_stored_when_it_ends(
    qtbot: Any, shown: ComponentEvaluationWidget, path: Path
) -> None:
    before, decided = on_disk(path, *SCORES), on_disk(path, "accepted", "reasons")
    quality = shown.decisions.quality
    seen: list[tuple[float, int]] = []

    def look() -> None:
        values = {name: shown.form.fields[name].value for name in GROUPS["Thresholds"]}
        parameters = replace(shown.decisions.parameters, **values)
        expected = decide(quality, parameters).accepted
        assert_shown(shown, expected)
        assert shown.counts.text().startswith(f"{expected.sum()} accepted, ")
        assert on_disk(path, "accepted", "reasons") == decided
        seen.append((values["correlation_upper"], int(expected.sum())))

    drag(qtbot, shown, "correlation_upper", 1.0, release=False)
    highest = float(quality.snr.max())
    drag(qtbot, shown, "snr_upper", 1.05 * highest, look, release=False)  # as far as the axis goes
    assert len({count for _, count in seen}) >= 2  # fewer and fewer
    assert seen[-1] == (pytest.approx(1, abs=0.01), 1)
    drag(qtbot, shown, "snr_upper", 0.8 * highest, look, release=False)
    with qtbot.waitSignal(shown.decisions.stored, timeout=SECONDS):
        drag(qtbot, shown, "snr_upper", 0.5 * highest, look)
    session = Session(path)
    assert on_disk(path, *SCORES) == before
    record = session.record(GROUP).parameters
    assert record["snr_upper"] == shown.form.values()["snr_upper"]
    assert record["snr_upper"] == pytest.approx(0.5 * highest, rel=0.1)
    np.testing.assert_array_equal(session.quality().accepted, shown.decisions.accepted)
    assert_shown(shown, session.quality().accepted)
    assert "tensorflow" not in sys.modules


def test_a_cell_chosen_by_hand_stays_so_through_a_drag_and_a_run(
    qtbot: Any, shown: ComponentEvaluationWidget, path: Path
) -> None:
    decisions = shown.decisions
    best = int(decisions.cell_id[np.argmax(decisions.quality.snr)])
    with qtbot.waitSignal(decisions.stored, timeout=SECONDS):
        decisions.choose([best], False)
    assert shown.counts.text().endswith("; 1 chosen by hand")

    def look() -> None:
        assert not decisions.accepted[decisions.cell_id == best].any()
        assert_shown(shown, decisions.accepted)

    with qtbot.waitSignal(decisions.stored, timeout=SECONDS):
        drag(qtbot, shown, "snr_lower", -1.0, look)
    old = decisions.decided.scores
    shown.form.fields["decay_time"].value = 0.5
    assert finish(qtbot, shown)["state"] == "done"
    assert shown.decisions is decisions
    assert decisions.decided.scores != old
    assert read_choices(Session(path)) == {best: False}
    qtbot.wait(50)
    look()
    assert Session(path).quality().accepted[decisions.cell_id == best].all()  # by its scores
    assert "tensorflow" not in sys.modules


def test_a_drag_during_a_run_is_stored_after_it(
    qtbot: Any, shown: ComponentEvaluationWidget, path: Path
) -> None:
    shown.form.fields["decay_time"].value = 0.4
    highest = float(shown.decisions.quality.snr.max())
    shown.run_button.click()
    drag(qtbot, shown, "snr_upper", 0.7 * highest)
    wanted = shown.form.values()["snr_upper"]
    assert shown.runner.busy
    with qtbot.waitSignal(shown.decisions.stored, timeout=120_000):
        pass
    record = Session(path).record(GROUP).parameters
    assert (record["decay_time"], record["snr_upper"]) == (0.4, wanted)
    assert shown.form.values()["snr_upper"] == wanted
    np.testing.assert_array_equal(Session(path).quality().accepted, shown.decisions.accepted)


def test_the_window_goes_on_while_a_threshold_is_stored(
    qtbot: Any, shown: ComponentEvaluationWidget, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_calcium.napari import decisions as module

    stored = module.decide_again

    def slow(*arguments: Any) -> Any:
        time.sleep(0.5)
        return stored(*arguments)

    monkeypatch.setattr(module, "decide_again", slow)
    ticks: list[float] = []
    timer = QTimer()
    timer.timeout.connect(lambda: ticks.append(time.monotonic()))
    shown.decisions.set_parameters(replace(shown.decisions.parameters, snr_lower=-1.0))
    qtbot.wait(300)
    timer.start(10)
    with qtbot.waitSignal(shown.decisions.stored, timeout=SECONDS):
        shown.decisions.store()
    timer.stop()
    assert len(ticks) > 15
    assert np.percentile(np.diff(ticks), 90) < 0.1


# ------------------------------------------------------------------------ the form and the lines


def test_fields_move_the_lines_and_are_stored(
    qtbot: Any, viewer: Any, path: Path, session: Session
) -> None:
    widget = form(viewer, path)
    assert widget.histograms.isVisibleTo(widget)
    with qtbot.waitSignal(widget.decisions.stored, timeout=SECONDS):
        widget.form.fields["snr_upper"].value = 3.25
        qtbot.waitUntil(lambda: widget.decisions.parameters.snr_upper == 3.25, timeout=SECONDS)
        assert widget.histograms.histograms["snr"].lines["snr_upper"].value() == 3.25
        assert Session(path).record(GROUP).parameters["snr_upper"] == 2.5
    assert Session(path).record(GROUP).parameters["snr_upper"] == 3.25
    np.testing.assert_array_equal(Session(path).read(f"{GROUP}/snr"), session.quality().snr)


def test_what_is_decided_elsewhere_moves_lines_and_fields(
    qtbot: Any, viewer: Any, path: Path
) -> None:
    widget, other = form(viewer, path), form(viewer)
    other.session_path = path
    assert widget.decisions is other.decisions
    parameters = replace(widget.decisions.parameters, cnn_lower=0.05, snr_lower=0.125)
    widget.decisions.set_parameters(parameters)
    for each in (widget, other):
        assert each.form.values()["snr_lower"] == 0.125
        assert each.form.values()["cnn_lower"] == 0.05
        assert each.histograms.histograms["snr"].lines["snr_lower"].value() == 0.125
        assert not each._store_soon.isActive()


def test_thresholds_that_cross_are_said_and_not_decided_by(
    qtbot: Any, viewer: Any, path: Path
) -> None:
    widget = form(viewer, path)
    before = widget.decisions.parameters
    widget.form.fields["snr_lower"].value = 9.0
    qtbot.waitUntil(lambda: "snr_lower is 9, above snr_upper" in widget.counts.text(), timeout=2000)
    qtbot.wait(700)
    assert widget.decisions.parameters == before
    assert Session(path).record(GROUP).parameters["snr_lower"] == 0.5
    widget.form.fields["snr_lower"].value = 0.5
    qtbot.waitUntil(lambda: " accepted, " in widget.counts.text(), timeout=2000)


def test_reset_takes_the_defaults_of_the_thresholds_alone(
    qtbot: Any, viewer: Any, path: Path
) -> None:
    widget = form(viewer, path)
    widget.form.fields["decay_time"].value = 0.9
    widget.decisions.set_parameters(replace(widget.decisions.parameters, snr_upper=7.0))
    assert widget.form.values()["snr_upper"] == 7.0
    widget.form.fields["classifier"].value = "off"
    widget.reset_button.click()
    qtbot.waitUntil(lambda: widget.decisions.parameters.snr_upper == 2.5, timeout=2000)
    assert widget.form.values()["decay_time"] == 0.9
    assert widget.form.values()["classifier"] == "off"


def test_that_nothing_is_accepted_is_said_at_once(qtbot: Any, viewer: Any, path: Path) -> None:
    widget = form(viewer, path)
    values = {"snr_upper": 1e6, "correlation_upper": 1.0}
    widget.decisions.set_parameters(replace(widget.decisions.parameters, **values))
    assert widget.counts.text().endswith(". No cell is accepted; lower the thresholds.")
    widget.decisions.set_parameters(replace(widget.decisions.parameters, snr_upper=0.6))
    assert "No cell" not in widget.counts.text()


def test_leaving_a_session_stores_what_was_just_given(
    qtbot: Any, viewer: Any, path: Path, finished: Path
) -> None:
    widget = form(viewer, path)
    decisions = widget.decisions
    widget.form.fields["snr_upper"].value = 3.5
    qtbot.waitUntil(lambda: decisions.parameters.snr_upper == 3.5, timeout=2000)
    with qtbot.waitSignal(decisions.stored, timeout=SECONDS):
        widget.session_path = finished
    assert Session(path).record(GROUP).parameters["snr_upper"] == 3.5
    assert widget.form.values()["snr_upper"] == 2.5
    assert widget.decisions is not decisions
    assert Session(finished).record(GROUP).parameters["snr_upper"] == 2.5


@pytest.mark.parametrize("milliseconds", [0, 100])
def test_closing_the_form_stores_what_was_just_given(
    qtbot: Any, make_napari_viewer: Any, path: Path, milliseconds: int
) -> None:
    viewer = make_napari_viewer(show=True)
    viewer.open(str(path), plugin=PLUGIN)
    dock, widget = viewer.window.add_plugin_dock_widget(PLUGIN, "Component evaluation")
    qtbot.wait(200)
    decisions = widget.decisions
    widget.form.fields["snr_upper"].value = 3.7
    qtbot.wait(milliseconds)
    with qtbot.waitSignal(decisions.stored, timeout=SECONDS):
        viewer.window.remove_dock_widget(dock)
        widget.deleteLater()
    assert Session(path).record(GROUP).parameters["snr_upper"] == 3.7


def test_a_form_that_is_not_seen_stores_what_was_just_given_when_it_is_closed(
    qtbot: Any, viewer: Any, path: Path
) -> None:
    viewer.open(str(path), plugin=PLUGIN)
    widget = ComponentEvaluationWidget(viewer)
    widget.form.fields["snr_upper"].value = 3.7
    with qtbot.waitSignal(widget.decisions.stored, timeout=SECONDS):
        widget.close()
        widget.deleteLater()
    assert Session(path).record(GROUP).parameters["snr_upper"] == 3.7


def test_thresholds_given_while_cells_are_found_anew_stay_in_the_form(
    qtbot: Any, viewer: Any, path: Path, notifications: Any
) -> None:
    widget = form(viewer, path)
    extraction = viewer.window.add_plugin_dock_widget(PLUGIN, "Source extraction")[1]
    extraction.form.fields["threshold"].value = 9.0
    extraction.run_button.click()
    widget.form.fields["snr_upper"].value = 3.7
    widget._keep()
    assert len(widget.decisions._storing) == 1
    decisions = widget.decisions
    with qtbot.waitSignal(widget.runner.ended, timeout=120_000):
        pass
    qtbot.waitUntil(lambda: decisions._storing == [], timeout=SECONDS)
    assert notifications() == []
    assert widget.counts.text() == RUN_FIRST
    assert widget.status.text() == RUN_TO_USE
    assert widget.form.values()["snr_upper"] == 3.7
    assert finish(qtbot, widget)["state"] == "done"
    assert Session(path).record(GROUP).parameters["snr_upper"] == 3.7
    assert widget.form.values()["snr_upper"] == widget.decisions.parameters.snr_upper == 3.7


def test_the_box_hides_what_is_rejected(viewer: Any, path: Path) -> None:
    widget = form(viewer, path)
    widget.rejected_box.setChecked(False)
    alpha = viewer.layers["outlines"].edge_color[:, 3]
    np.testing.assert_array_equal(alpha > 0, widget.decisions.accepted)
    widget.rejected_box.setChecked(True)
    assert viewer.layers["outlines"].edge_color[:, 3].all()


# ------------------------------------------------------------------------------ what it says


def test_without_scores_it_says_to_run(qtbot: Any, viewer: Any, path: Path) -> None:
    shutil.rmtree(path / GROUP)
    widget = form(viewer, path)
    assert widget.counts.text() == RUN_FIRST
    assert not widget.histograms.isVisibleTo(widget)
    widget.form.set_values({"classifier": "off"})
    assert finish(qtbot, widget)["state"] == "done"
    assert widget.histograms.isVisibleTo(widget)
    n_accepted = int(Session(path).quality().accepted.sum())
    assert widget.counts.text().startswith(f"{n_accepted} accepted, ")
    assert shown_layer(viewer, path, "outlines") is not None


def test_before_anything_is_opened_it_says_so(viewer: Any) -> None:
    widget = form(viewer)
    assert widget.counts.text() == RUN_FIRST
    assert widget.decisions is None
    widget.reset_button.click()


def test_why_the_classifier_was_not_asked_is_said(viewer: Any, path: Path) -> None:
    recipe = Recipe.of_session(Session(path)).with_value(f"{GROUP}.classifier", "off")
    run(path, recipe=recipe, until=GROUP)
    widget = form(viewer, path)
    assert widget.note.text() == "The classifier was not asked: classifier is off."
    assert widget.histograms.histograms["cnn_probability"].counts == "not asked"


def test_of_one_photon_recordings_the_classifier_is_not_asked(
    qtbot: Any, viewer: Any, path: Path
) -> None:
    Session(path).update_attrs({"modality": "one-photon"})
    widget = form(viewer, path)
    widget.form.set_values({"classifier": "automatic"})
    qtbot.waitUntil(lambda: "marked one-photon" in widget.note.text(), timeout=2000)
    assert widget.note.text().startswith("The classifier will not be asked: it knows somata of two")
    assert finish(qtbot, widget)["state"] == "done"
    assert widget.note.text().startswith("The classifier was not asked: it knows somata of two-ph")
    assert np.isnan(Session(path).quality().cnn_probability).all()


def test_a_run_that_accepts_nothing_warns(
    qtbot: Any, viewer: Any, path: Path, notifications: Any
) -> None:
    widget = form(viewer, path)
    widget.form.set_values({"snr_upper": 1e6, "correlation_upper": 1.0, "decay_time": 0.5})
    assert finish(qtbot, widget)["state"] == "done"
    (warning,) = Session(path).warnings(GROUP)
    assert warning.startswith("None of ")
    assert notifications() == [warning]
    assert widget.status.text().endswith(warning)
    assert widget.counts.text().endswith("No cell is accepted; lower the thresholds.")


def test_a_model_that_says_nothing_is_told(
    qtbot: Any, viewer: Any, path: Path, notifications: Any
) -> None:
    warning = "The classifier gives all 9 components the same score"
    group = zarr.open_group(path, path=GROUP, mode="r+")
    group.attrs["warnings"] = [warning]
    widget = form(viewer, path)
    answer = {"state": "done", "stages": []}
    widget._mine = True
    widget.runner.ended.emit(answer)
    assert notifications() == [warning]
    assert widget.status.text().endswith(warning)


def test_scores_made_anew_are_drawn_anew(qtbot: Any, viewer: Any, path: Path) -> None:
    widget = form(viewer, path)
    widget.form.fields["decay_time"].value = 0.3
    assert finish(qtbot, widget)["state"] == "done"
    drawn = widget.histograms.histograms["snr"]._values
    np.testing.assert_array_equal(drawn, Session(path).quality().snr)
    assert widget.form.values()["decay_time"] == 0.3


def test_a_form_that_was_closed_leaves_the_decisions_be(
    qtbot: Any, viewer: Any, path: Path
) -> None:
    viewer.open(str(path), plugin=PLUGIN)
    dock, widget = viewer.window.add_plugin_dock_widget(PLUGIN, "Component evaluation")
    decisions = widget.decisions
    viewer.window.remove_dock_widget(dock)
    with qtbot.waitSignal(widget.destroyed, timeout=2_000):
        widget.deleteLater()
    decisions.set_parameters(replace(decisions.parameters, snr_upper=4.0))
    assert decisions.parameters.snr_upper == 4.0


def test_every_parameter_stands_under_one_heading() -> None:
    known = [each.name for each in stage_named(GROUP).parameters.describe()]
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(known)
    assert set(GROUPS["Thresholds"]) >= {name for names in THRESHOLDS.values() for name in names}
    assert ComponentEvaluationParameters.from_mapping({}).snr_upper == 2.5
    assert Exported is ComponentEvaluationWidget
