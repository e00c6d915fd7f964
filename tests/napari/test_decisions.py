"""What is decided, live: the colours of the layers, the table, and what is stored."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.utils.colormaps.standardize_color import transform_color
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.io.choices import choose, read_choices
from napari_calcium.io.session import Session
from napari_calcium.napari import decisions as module
from napari_calcium.napari.decided import COLOURS
from napari_calcium.napari.decisions import MARK, Decisions, decisions_of
from napari_calcium.napari.layers import metadata_of
from napari_calcium.napari.runner import Writer
from napari_calcium.napari.viewing import changes, show_changes, shown_digests, shown_layer
from napari_calcium.pipeline.deciding import decide_again
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run

PLUGIN = "napari-calcium"
SCORES = ("snr", "spatial_correlation", "cnn_probability", "size", "triggered/data", "overlap")
SECONDS = 10_000


@pytest.fixture
def path(finished: Path, tmp_path: Path) -> str:
    """A session of the test's own, with at least one cell accepted and one rejected."""
    return str(shutil.copytree(finished, tmp_path / "s.zarr"))


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any, path: str) -> Any:
    viewer = make_napari_viewer_proxy()
    viewer.open(path, plugin=PLUGIN)
    return viewer


@pytest.fixture
def decisions(viewer: Any, path: str) -> Decisions:
    found = decisions_of(viewer, path)
    assert found is not None
    return found


def colours_shown(viewer: Any, path: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the colour of each cell, (cell, 4), in the layer of labels and in that of outlines."""
    cells, outlines = (shown_layer(viewer, path, name) for name in ("cells", "outlines"))
    labels = np.asarray(cells.features["index"])
    np.testing.assert_array_equal(outlines.features["cell_id"] + 1, labels)
    return np.stack([cells.get_color(int(label)) for label in labels]), outlines.edge_color


def expected(accepted: NDArray[np.bool_], by_hand: Any = False) -> NDArray[Any]:
    hands = np.broadcast_to(by_hand, accepted.shape)
    pairs = zip(accepted.tolist(), hands.tolist(), strict=True)
    return np.concatenate([transform_color(COLOURS[pair]) for pair in pairs])


def assert_shown(viewer: Any, path: str, colours: NDArray[Any]) -> None:
    for shown in colours_shown(viewer, path):
        np.testing.assert_allclose(shown, colours, atol=1e-6)


def on_disk(path: str, *names: str) -> list[bytes]:
    return [Session(path).read(f"component_evaluation/{name}").tobytes() for name in names]


def cut(decisions: Decisions) -> Any:
    """Return parameters by which only the cell with the highest SNR is accepted."""
    highest = float(decisions.quality.snr.max())
    return replace(decisions.parameters, snr_upper=highest, correlation_upper=1.0)


# -------------------------------------------------------------------------------------- live


def test_there_is_one_for_each_session_of_a_viewer(
    viewer: Any, path: str, decisions: Decisions, finished: Path, tmp_path: Path
) -> None:
    assert decisions_of(viewer, path) is decisions
    assert decisions_of(viewer, str(finished)) is not decisions
    assert decisions_of(viewer, "") is None
    assert decisions_of(viewer, str(tmp_path / "none.zarr")) is None
    shutil.rmtree(Path(path) / "component_evaluation")
    assert decisions_of(viewer, path) is None


def test_thresholds_recolour_cells_and_outlines_at_once(
    viewer: Any, path: str, decisions: Decisions
) -> None:
    before = decisions.accepted.copy()
    assert_shown(viewer, path, expected(before))
    decisions.paint()
    decisions._painted = 0.0  # long ago
    decisions.set_parameters(cut(decisions))
    assert decisions.accepted.sum() == 1 < before.sum()
    assert_shown(viewer, path, expected(decisions.accepted))


def test_steps_in_quick_succession_are_painted_together(
    qtbot: Any, viewer: Any, path: str, decisions: Decisions
) -> None:
    painted: list[Any] = []
    shown_layer(viewer, path, "outlines").events.edge_color.connect(painted.append)
    decisions.paint()
    for threshold in np.linspace(2.5, float(decisions.quality.snr.max()), 50):
        decisions.set_parameters(replace(cut(decisions), snr_upper=float(threshold)))
    qtbot.waitUntil(lambda: not decisions._paint.isActive(), timeout=SECONDS)
    assert_shown(viewer, path, expected(decisions.accepted))
    assert decisions.accepted.sum() == 1
    assert 1 <= len(painted) <= 12  # napari tells twice of each


def test_the_table_follows_at_a_moderate_rate(
    qtbot: Any, viewer: Any, path: str, decisions: Decisions
) -> None:
    cells, told = viewer.layers["cells"], []
    cells.events.features.connect(told.append)
    parameters = cut(decisions)
    for step in range(30):
        decisions.set_parameters(replace(parameters, snr_lower=-0.1 * step))
    assert told == []
    qtbot.waitUntil(lambda: not decisions._tabulate.isActive(), timeout=SECONDS)
    assert len(told) == 1
    np.testing.assert_array_equal(cells.features["accepted"], decisions.accepted)
    assert [bool(reason) for reason in cells.features["reason"]] == (~decisions.accepted).tolist()
    assert "f0_floored" in cells.features


def test_nothing_is_stored_before_it_is_asked_for(path: str, decisions: Decisions) -> None:
    before = on_disk(path, "accepted", "reasons", *SCORES)
    decisions.set_parameters(cut(decisions))
    assert on_disk(path, "accepted", "reasons", *SCORES) == before


def test_rejected_cells_can_be_hidden(viewer: Any, path: str, decisions: Decisions) -> None:
    rejected = ~decisions.accepted
    decisions.shows_rejected = False
    for shown in colours_shown(viewer, path):
        np.testing.assert_array_equal(shown[:, 3] == 0, rejected)
    decisions.shows_rejected = True
    assert_shown(viewer, path, expected(decisions.accepted))


def test_marked_cells_are_white_and_stay_so_while_thresholds_move(
    viewer: Any, path: str, decisions: Decisions
) -> None:
    cell_id = int(decisions.cell_id[1])
    decisions.mark([cell_id])
    outlines = viewer.layers["outlines"]
    np.testing.assert_array_equal(outlines.edge_color[1], MARK)
    decisions.set_parameters(cut(decisions))
    decisions.paint()
    np.testing.assert_array_equal(outlines.edge_color[1], MARK)
    decisions.mark([])
    assert_shown(viewer, path, expected(decisions.accepted))


def test_a_selected_label_alone_is_shown_while_thresholds_move(
    viewer: Any, decisions: Decisions
) -> None:
    cells = viewer.layers["cells"]
    cells.selected_label, cells.show_selected_label = 2, True
    told: list[Any] = []
    cells.events.selected_label.connect(told.append)
    decisions.set_parameters(cut(decisions))
    decisions.paint()
    cells.new_colormap(seed=1)  # a person shuffles the colours, which would show a wrong decision
    told.clear()
    decisions.paint()
    assert cells.colormap.use_selection
    assert cells.colormap.selection == 2
    assert told == []


def test_layers_that_come_later_are_in_the_colours_of_now(
    qtbot: Any, viewer: Any, path: str, decisions: Decisions
) -> None:
    decisions.set_parameters(cut(decisions))
    viewer.layers.clear()
    viewer.open(path, plugin=PLUGIN)
    qtbot.waitUntil(lambda: not decisions._paint.isActive(), timeout=SECONDS)
    assert_shown(viewer, path, expected(decisions.accepted))


# ------------------------------------------------------------------------------------ stored


def test_only_thresholds_and_what_they_decide_are_stored(
    qtbot: Any, path: str, decisions: Decisions
) -> None:
    before, digest = on_disk(path, *SCORES), Session(path).record("component_evaluation").digest
    decisions.set_parameters(cut(decisions))
    with qtbot.waitSignal(decisions.stored, timeout=SECONDS):
        decisions.store()
    session = Session(path)
    assert on_disk(path, *SCORES) == before
    np.testing.assert_array_equal(session.quality().accepted, decisions.accepted)
    np.testing.assert_array_equal(session.quality().reasons, decisions.quality.reasons)
    record = session.record("component_evaluation")
    assert record.digest == digest
    assert dict(record.parameters) == decisions.parameters.to_mapping()
    assert Recipe.of_session(session).parameters("component_evaluation") == decisions.parameters


def test_what_is_stored_already_is_not_stored_again(
    path: str, decisions: Decisions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "decide_again", lambda *_: pytest.fail("stored"))
    decisions.store()
    assert decisions._storing == []


def test_going_back_while_the_first_is_stored_stores_the_second(
    qtbot: Any, path: str, decisions: Decisions, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, go = decisions.parameters, threading.Event()

    def slow(*arguments: Any) -> None:
        assert go.wait(10)
        decide_again(*arguments)

    monkeypatch.setattr(module, "decide_again", slow)
    decisions.set_parameters(cut(decisions))
    decisions.store()
    qtbot.waitUntil(lambda: decisions._storing[-1].running(), timeout=SECONDS)
    decisions.set_parameters(first)
    decisions.store()
    go.set()
    qtbot.waitUntil(lambda: decisions._storing == [], timeout=SECONDS)
    assert dict(Session(path).record("component_evaluation").parameters) == first.to_mapping()
    assert decisions.parameters == first


def test_a_session_that_is_in_use_elsewhere_keeps_its_thresholds(
    qtbot: Any, viewer: Any, path: str, decisions: Decisions, notifications: Any
) -> None:
    before = decisions.parameters
    with Session(path).lock():
        decisions.set_parameters(cut(decisions))
        with qtbot.waitSignal(decisions.refused, timeout=SECONDS) as refused:
            decisions.store()
    assert "another run is at work" in refused.args[0]
    assert notifications() == refused.args
    assert decisions.parameters == before
    assert_shown(viewer, path, expected(decisions.accepted))


def test_a_choice_is_shown_at_once_and_stored(
    qtbot: Any, viewer: Any, path: str, decisions: Decisions
) -> None:
    kept = int(np.flatnonzero(decisions.accepted)[0])
    cell_id = int(decisions.cell_id[kept])
    with qtbot.waitSignal(decisions.stored, timeout=SECONDS):
        decisions.choose([cell_id], False)
        assert not decisions.accepted[kept]
        assert decisions.why(kept).startswith("rejected by hand; by its scores accepted: ")
        decisions.paint()
    by_hand = decisions.cell_id == cell_id
    assert_shown(viewer, path, expected(decisions.accepted, by_hand))
    assert read_choices(Session(path)) == {cell_id: False}
    assert on_disk(path, "accepted") == [decisions.quality.accepted.tobytes()]
    with qtbot.waitSignal(decisions.stored, timeout=SECONDS):
        decisions.choose([cell_id], None)
    assert read_choices(Session(path)) == {}
    decisions.paint()
    assert_shown(viewer, path, expected(decisions.quality.accepted))


def test_a_choice_survives_thresholds(qtbot: Any, path: str, decisions: Decisions) -> None:
    lost = int(decisions.cell_id[np.argmin(decisions.quality.snr)])
    with qtbot.waitSignal(decisions.stored, timeout=SECONDS):
        decisions.choose([lost], True)
    decisions.set_parameters(cut(decisions))
    with qtbot.waitSignal(decisions.stored, timeout=SECONDS):
        decisions.store()
    assert decisions.accepted[decisions.cell_id == lost].all()
    assert read_choices(Session(path)) == {lost: True}


def test_a_choice_of_cells_that_were_found_anew_is_refused(
    qtbot: Any, path: str, decisions: Decisions, notifications: Any
) -> None:
    cell_id, other = int(decisions.cell_id[0]), replace(decisions.decided, cells="others")
    decisions.decided = other
    with qtbot.waitSignal(decisions.refused, timeout=SECONDS) as refused:
        decisions.choose([cell_id], False)
    assert "found anew" in refused.args[0]
    assert decisions.choices == {}
    assert read_choices(Session(path)) == {}


def found_again(path: str, more: bool = True) -> None:
    """Find the cells of a session anew as another program would, and score them."""
    before = len(Session(path).read("source_extraction/cell_id"))
    values = (2.0, 2.5, 0.05) if more else (9.0, 4.0, 0.25)
    names = ("threshold", "cell_radius", "min_size")
    given = {f"source_extraction.{n}": v for n, v in zip(names, values, strict=True)}
    run(path, recipe=Recipe.of_session(Session(path)).with_all(given), until="component_evaluation")
    assert (len(Session(path).read("source_extraction/cell_id")) > before) == more


@pytest.mark.parametrize("more", [True, False])
def test_layers_of_cells_that_were_found_anew_are_left_be(
    qtbot: Any, viewer: Any, path: str, decisions: Decisions, more: bool, notifications: Any
) -> None:
    cells = viewer.layers["cells"]
    colours, table = colours_shown(viewer, path), cells.features.copy()
    shown, cell_id = metadata_of(cells)["digest"], int(decisions.cell_id[0])
    found_again(path, more)
    decisions.renew()  # as another dock has it do
    assert not decisions.decided.is_of(shown)
    decisions.paint()
    decisions.tabulate()
    for before, now in zip(colours, colours_shown(viewer, path), strict=True):
        np.testing.assert_array_equal(before, now)
    assert cells.features.equals(table)
    with qtbot.waitSignal(decisions.refused, timeout=SECONDS) as refused:
        decisions.choose([cell_id], False, shown)
        assert decisions.choices == {}
    assert "found anew" in refused.args[0]
    assert notifications() == refused.args
    assert read_choices(Session(path)) == {}
    show_changes(viewer, changes(path, shown_digests(viewer, path)))
    decisions._runner.ended.emit({"state": "done", "stages": []})
    assert_shown_of(viewer, path, decisions)


def assert_shown_of(viewer: Any, path: str, decisions: Decisions) -> None:
    """The layer of cells is in the colours of what is decided."""
    cells = shown_layer(viewer, path, "cells")
    shown = np.stack([cells.get_color(int(label)) for label in decisions.cell_id + 1])
    np.testing.assert_allclose(shown, expected(decisions.accepted), atol=1e-6)


def test_a_write_that_fails_in_any_way_is_refused_and_others_are_told(
    qtbot: Any,
    viewer: Any,
    path: str,
    decisions: Decisions,
    monkeypatch: pytest.MonkeyPatch,
    notifications: Any,
) -> None:
    before, cell_id = decisions.parameters, int(decisions.cell_id[0])

    def broken(*_: Any) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(module, "decide_again", broken)
    told: list[str] = []
    decisions.refused.connect(told.append)
    decisions.stored.connect(lambda: told.append("stored"))
    decisions.set_parameters(cut(decisions))
    decisions.store()
    decisions.choose([cell_id], True)
    wait([*decisions._storing, *decisions._choosing], 10)
    qtbot.waitUntil(lambda: len(told) == 2, timeout=SECONDS)
    assert told == ["RuntimeError: no such luck", "stored"]
    assert notifications() == told[:1]
    assert decisions.parameters == before
    assert read_choices(Session(path)) == decisions.choices == {cell_id: True}
    decisions.paint()
    assert_shown(viewer, path, expected(decisions.accepted, decisions.cell_id == cell_id))


def test_a_choice_that_is_refused_leaves_thresholds_be(
    qtbot: Any, path: str, decisions: Decisions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise InputError("no room")

    monkeypatch.setattr(module, "choose", broken)
    parameters = cut(decisions)
    decisions.set_parameters(parameters)
    with qtbot.waitSignal(decisions.refused, timeout=SECONDS):
        decisions.choose([int(decisions.cell_id[0])], True)
    assert decisions.choices == {}
    assert decisions.parameters == parameters


# ----------------------------------------------------------------------------------- renewed


def test_what_others_decided_is_taken_when_something_is_stored(
    qtbot: Any, path: str, decisions: Decisions
) -> None:
    first, second, third = decisions.cell_id[:3].tolist()
    choose(Session(path), [first], False)
    with qtbot.waitSignal(decisions.stored, timeout=SECONDS):
        decisions.choose([second], False)
    assert decisions.choices == {first: False, second: False} == read_choices(Session(path))
    others = replace(decisions.parameters, snr_upper=9.0, snr_lower=1.0)
    decide_again(path, others)
    with qtbot.waitSignal(decisions.stored, timeout=SECONDS):
        decisions.choose([third], False)
    assert decisions.parameters == others
    choose(Session(path), [first], True)
    decisions.set_parameters(cut(decisions))
    with qtbot.waitSignal(decisions.stored, timeout=SECONDS):
        decisions.store()
    assert decisions.choices == {first: True, second: False, third: False}
    assert decisions.parameters == cut(decisions)


def test_thresholds_that_are_not_let_go_yet_outlast_what_is_stored(
    qtbot: Any, path: str, decisions: Decisions
) -> None:
    stored, dragged = cut(decisions), replace(cut(decisions), snr_lower=-1.0)
    decisions.set_parameters(stored)
    with qtbot.waitSignal(decisions.stored, timeout=SECONDS):
        decisions.store()
        qtbot.waitUntil(lambda: decisions._storing[-1].done(), timeout=SECONDS)
        decisions.set_parameters(dragged)
    assert decisions.parameters == dragged
    with qtbot.waitSignal(decisions.stored, timeout=SECONDS):
        decisions.choose([int(decisions.cell_id[0])], True)
    assert decisions.parameters == dragged
    with qtbot.waitSignal(decisions.stored, timeout=SECONDS):
        decisions.store()
    assert dict(Session(path).record("component_evaluation").parameters) == dragged.to_mapping()


def test_what_others_decided_is_taken_when_a_run_ends(
    viewer: Any, path: str, decisions: Decisions
) -> None:
    parameters = cut(decisions)
    decide_again(path, parameters)
    cell_id = int(decisions.cell_id[-1])
    choose(Session(path), [cell_id], True)
    told: list[bool] = []
    decisions.changed.connect(lambda: told.append(True))
    decisions._runner.ended.emit({"state": "done", "stages": []})
    assert decisions.parameters == parameters
    assert decisions.choices == {cell_id: True}
    assert told == [True]
    by_hand = decisions.cell_id == cell_id
    assert_shown(viewer, path, expected(decisions.accepted, by_hand))
    decisions._runner.ended.emit({"state": "done", "stages": []})
    assert told == [True]


def test_thresholds_that_are_not_stored_yet_outlast_new_scores(
    qtbot: Any, viewer: Any, path: str, decisions: Decisions
) -> None:
    """As if a run were going on: the thresholds are kept until it ends."""
    parameters = cut(decisions)
    decisions._runner._writer.hold()
    decisions.set_parameters(parameters)
    decisions.store()
    recipe = Recipe.of_session(Session(path)).with_value("component_evaluation.decay_time", 0.4)
    run(path, recipe=recipe, until="component_evaluation")
    old = decisions.decided.scores
    decisions._runner.ended.emit({"state": "done", "stages": []})
    assert decisions.decided.scores != old
    assert decisions.parameters == replace(parameters, decay_time=0.4)
    with qtbot.waitSignal(decisions.stored, timeout=SECONDS):
        decisions._runner._writer.release()
    record = Session(path).record("component_evaluation")
    assert dict(record.parameters) == decisions.parameters.to_mapping()


def test_thresholds_without_scores_are_not_stored_and_nothing_is_said(
    qtbot: Any, path: str, decisions: Decisions, notifications: Any
) -> None:
    """As if they were let go during a run of source extraction."""
    parameters = cut(decisions)
    decisions._runner._writer.hold()
    decisions.set_parameters(parameters)
    decisions.store()
    recipe = Recipe.of_session(Session(path)).with_value("source_extraction.threshold", 9.0)
    run(path, recipe=recipe, until="source_extraction")
    asked = Session(path).attrs["recipe"]
    decisions._runner.ended.emit({"state": "done", "stages": []})
    assert decisions.parameters == parameters
    assert decisions.waits
    decisions._runner._writer.release()
    qtbot.waitUntil(lambda: decisions._storing == [], timeout=SECONDS)
    assert notifications() == []
    assert Session(path).attrs["recipe"] == asked
    run(path, recipe=recipe, until="component_evaluation")
    decisions.renew()
    assert not decisions.waits
    record = Session(path).record("component_evaluation")
    assert dict(record.parameters) == decisions.parameters.to_mapping() != parameters.to_mapping()


def test_cells_that_were_found_anew_have_no_decision(
    viewer: Any, path: str, decisions: Decisions
) -> None:
    recipe = Recipe.of_session(Session(path)).with_value("source_extraction.threshold", 9.0)
    run(path, recipe=recipe, until="source_extraction")
    found = changes(path, shown_digests(viewer, path))
    assert found is not None
    show_changes(viewer, found)
    decisions._runner.ended.emit({"state": "done", "stages": []})
    assert decisions_of(viewer, path) is None
    assert len(decisions.accepted) == 0
    cells = viewer.layers["cells"]
    labels = [int(label) for label in cells.features["index"]]
    colours = np.stack([cells.get_color(label) for label in labels])
    assert len(np.unique(colours, axis=0)) == len(labels)  # each has its own again
    assert "accepted" not in cells.features


def test_a_viewer_that_was_closed_is_left_be(
    qtbot: Any, make_napari_viewer: Any, path: str
) -> None:
    viewer = make_napari_viewer()
    viewer.open(path, plugin=PLUGIN)
    decisions = decisions_of(viewer, path)
    assert decisions is not None
    decisions.set_parameters(cut(decisions))
    decisions.store()
    viewer.close()
    qtbot.wait(50)


# -------------------------------------------------------------------------------- the writer


def test_what_is_written_during_a_run_waits_for_its_end() -> None:
    writer, written = Writer(), []
    first = writer.write(lambda: written.append(1))
    writer.hold()
    first.result(10)
    held = [writer.write(lambda n=n: written.append(n)) for n in (2, 3)]
    assert written == [1]
    writer.hold()  # a run that another one begins with
    assert not any(each.running() or each.done() for each in held)
    writer.release()
    for each in held:
        each.result(10)
    assert written == [1, 2, 3]


def test_to_hold_what_comes_is_not_to_wait_for_what_came() -> None:
    writer, go = Writer(), threading.Event()
    assert not writer.busy
    first = writer.write(lambda: go.wait(10))
    started = time.monotonic()
    writer.hold()
    assert time.monotonic() - started < 1.0
    assert writer.busy
    assert not first.done()
    go.set()
    assert first.result(10)
    wait([writer._last], 10)
    assert not writer.busy


def test_a_write_that_fails_is_told_and_the_next_goes_on() -> None:
    writer = Writer()

    def refuse() -> None:
        raise InputError("no")

    failed, fine = writer.write(refuse), writer.write(lambda: 5)
    with pytest.raises(InputError, match="no"):
        failed.result(10)
    assert fine.result(10) == 5
