"""What is decided, live: the colours of the layers, the table, and what is stored."""

from __future__ import annotations

import shutil
import threading
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
    assert decisions._writes == []


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
    qtbot.waitUntil(lambda: decisions._thresholds.running(), timeout=SECONDS)
    decisions.set_parameters(first)
    decisions.store()
    go.set()
    qtbot.waitUntil(lambda: decisions._writes == [], timeout=SECONDS)
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


# ----------------------------------------------------------------------------------- renewed


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
    assert first.done()
    held = [writer.write(lambda n=n: written.append(n)) for n in (2, 3)]
    assert written == [1]
    assert not any(each.running() or each.done() for each in held)
    writer.release()
    for each in held:
        each.result(10)
    assert written == [1, 2, 3]


def test_a_write_that_fails_is_told_and_the_next_goes_on() -> None:
    writer = Writer()

    def refuse() -> None:
        raise InputError("no")

    failed, fine = writer.write(refuse), writer.write(lambda: 5)
    with pytest.raises(InputError, match="no"):
        failed.result(10)
    assert fine.result(10) == 5
