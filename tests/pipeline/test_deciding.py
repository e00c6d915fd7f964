from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from napari_calcium.components import QUALITY_TYPES
from napari_calcium.errors import InputError
from napari_calcium.evaluation import evaluation
from napari_calcium.evaluation.classifier import SHIPPED
from napari_calcium.evaluation.decision import decide
from napari_calcium.evaluation.evaluation import ComponentEvaluationParameters
from napari_calcium.io.choices import accepted_cells, choose
from napari_calcium.io.session import Session
from napari_calcium.pipeline import deciding
from napari_calcium.pipeline.deciding import decide_again
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run

GROUP = "component_evaluation"
SCORES = tuple(name for name in QUALITY_TYPES if name not in ("accepted", "reasons"))
STRICT: dict[str, Any] = {"snr_upper": 1e6, "correlation_upper": 1.0, "cnn_upper": 1.0}


@pytest.fixture
def session(session_path: Path) -> Session:
    return Session(session_path)


def parameters(session: Session, **changes: Any) -> ComponentEvaluationParameters:
    made = Recipe.of_session(session).parameters(GROUP)
    assert isinstance(made, ComponentEvaluationParameters)
    return replace(made, **changes)


def scores(session: Session) -> dict[str, Any]:
    found = {name: session.read(f"{GROUP}/{name}") for name in SCORES}
    return found | {"triggered": session.read(f"{GROUP}/triggered/data")}


def test_another_decision_leaves_the_scores(session: Session) -> None:
    before, record = scores(session), session.record(GROUP)
    assert session.quality().accepted.any()
    strict = parameters(session, **STRICT)
    returned = decide_again(session.path, strict)
    assert not session.quality().accepted.any()
    np.testing.assert_array_equal(returned.reasons, session.quality().reasons)
    np.testing.assert_array_equal(
        decide(session.quality(), strict).reasons, session.quality().reasons
    )
    for name, values in scores(session).items():
        np.testing.assert_array_equal(values, before[name])
    after = session.record(GROUP)
    assert after is not None
    assert record is not None
    assert after.parameters == strict.to_mapping()
    assert (after.digest, after.inputs) == (record.digest, record.inputs)
    assert Recipe.of_session(session).parameters(GROUP) == strict
    session.current("dff")


def test_a_run_with_other_thresholds_decides_and_computes_nothing(session: Session) -> None:
    recipe = Recipe.of_session(session)
    for name, value in STRICT.items():
        recipe = recipe.with_value(f"{GROUP}.{name}", value)
    before = scores(session)
    report = run(session.path, recipe=recipe)
    assert all(stage.skipped for stage in report.stages)
    assert not session.quality().accepted.any()
    for name, values in scores(session).items():
        np.testing.assert_array_equal(values, before[name])
    (said,) = next(stage.warnings for stage in report.stages if stage.stage == GROUP)
    assert said.startswith(f"None of {session.quality().n_cells} components is accepted")
    assert session.summary(GROUP).startswith("0 of ")


def test_deciding_gives_what_a_run_gives(session: Session, tmp_path: Path, tiff: Path) -> None:
    """Bit by bit and word by word."""
    changed = parameters(session, snr_upper=3.0, min_size=0.6)
    decide_again(session.path, changed)
    recipe = Recipe.of_session(session)
    run(tmp_path / "fresh.zarr", [tiff], recipe=recipe)
    fresh = Session(tmp_path / "fresh.zarr")
    assert fresh.group_attrs(GROUP) == session.group_attrs(GROUP)
    for name, values in scores(fresh).items():
        np.testing.assert_array_equal(values, scores(session)[name])
    np.testing.assert_array_equal(fresh.quality().reasons, session.quality().reasons)


def test_a_choice_by_hand_survives_deciding_and_evaluating_again(session: Session) -> None:
    cells = session.read("source_extraction/cell_id")
    chosen = int(cells[np.flatnonzero(session.quality().accepted)[0]])
    choose(session, [chosen], False)
    lenient = {"snr_lower": -1.0, "correlation_lower": -1.0, "snr_upper": 0.0, "cnn_lower": 0.0}
    decide_again(session.path, parameters(session, **lenient))
    assert accepted_cells(session)[cells != chosen].all()
    assert not accepted_cells(session)[cells == chosen].any()
    run(session.path, recipe=Recipe.of_session(session).with_value(f"{GROUP}.decay_time", 0.5))
    assert not accepted_cells(session)[cells == chosen].any()


def test_scores_of_other_parameters_are_refused(session: Session) -> None:
    with pytest.raises(InputError, match=r"decay_time is 9.0 but .* was run with 0.6; run it"):
        decide_again(session.path, parameters(session, decay_time=9.0))
    assert session.record(GROUP) is not None


def test_without_scores_it_is_refused(session: Session) -> None:
    run(session.path, recipe=Recipe.of_session(session).with_value("import.modality", "one-photon"),
        until="import")  # fmt: skip
    with pytest.raises(InputError, match="before the recording was marked one-photon"):
        decide_again(session.path, parameters(session))


def test_while_a_run_is_at_work_it_is_refused(session: Session) -> None:
    with session.lock(), pytest.raises(InputError, match="another run is at work"):
        decide_again(session.path, parameters(session))


def test_reasons_have_their_meanings_on_disk(session: Session) -> None:
    decide_again(session.path, parameters(session, **STRICT))
    metadata = json.loads((session.path / GROUP / "reasons" / "zarr.json").read_text())
    meanings = metadata["attributes"]["meanings"]
    assert meanings["2"] == "trace SNR too low"
    assert len(meanings) == 7
    assert all(session.reasons())


def test_thresholds_go_into_the_recipe_and_nothing_else(session: Session) -> None:
    """What was asked of a run that was cut off is still asked."""
    decided = parameters(session, snr_upper=3.5)
    asked = Recipe.of_session(session).with_value(f"{GROUP}.decay_time", 0.4)
    session.update_attrs({"recipe": {name: dict(table) for name, table in asked.tables.items()}})
    decide_again(session.path, decided)
    table = session.attrs["recipe"][GROUP]
    assert (table["snr_upper"], table["decay_time"]) == (3.5, 0.4)


def test_a_kill_before_the_decision_is_stored_leaves_it_to_the_next_run(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    strict = parameters(session, **STRICT)
    with monkeypatch.context() as patch:
        patch.setattr(deciding, "store_decision", killed)
        with pytest.raises(KeyboardInterrupt):
            decide_again(session.path, strict)
    assert session.quality().accepted.any()
    run(session.path, recipe=Recipe.of_session(session, asked=True))
    assert not session.quality().accepted.any()


def test_a_full_disk_is_a_sentence(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(deciding, "store_decision", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        decide_again(session.path, parameters(session))


def test_scores_of_an_earlier_version_are_to_be_made_again(session: Session) -> None:
    group = zarr.open_group(session.path / GROUP, mode="r+")
    held = dict(group.attrs["parameters"])
    del held["classifier"]
    group.attrs["parameters"] = held
    with pytest.raises(InputError, match="made by an earlier version; run it again"):
        decide_again(session.path, ComponentEvaluationParameters())


def test_another_model_that_comes_with_the_program_scores_again(
    session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And off, or with a model of one's own, it does not matter."""
    other = tmp_path / "classifier.keras"
    other.write_bytes(SHIPPED.read_bytes() + b"\0")
    monkeypatch.setattr(evaluation, "SHIPPED", other)
    report = run(session.path)
    assert [stage.stage for stage in report.stages if not stage.skipped] == [GROUP]
    off = parameters(session, classifier="off")
    own = parameters(session, classifier_file=str(other))
    assert off.shipped() == own.shipped() == {}


def test_a_classifier_that_is_gone_is_told_before_cells_are_found_anew(
    session: Session, tmp_path: Path
) -> None:
    own = tmp_path / "own.keras"
    own.write_bytes(SHIPPED.read_bytes())
    recipe = Recipe.of_session(session).with_value(f"{GROUP}.classifier_file", str(own))
    run(session.path, recipe=recipe)
    own.unlink()
    assert all(stage.skipped for stage in run(session.path).stages)  # nobody needs it
    before = session.record("source_extraction")
    with pytest.raises(InputError, match="there is no such file; check the path"):
        run(session.path, recipe=recipe.with_value("source_extraction.threshold", 11.0))
    assert session.record("source_extraction") == before
