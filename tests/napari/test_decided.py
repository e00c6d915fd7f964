"""Decisions in words and colours, without a window."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import zarr
from napari.utils.colormaps import DirectLabelColormap
from napari.utils.colormaps.standardize_color import transform_color

from napari_calcium.components import Quality
from napari_calcium.evaluation.decision import Reason, decide
from napari_calcium.evaluation.evaluation import ComponentEvaluationParameters
from napari_calcium.io.session import Session
from napari_calcium.napari.decided import (
    COLOURS,
    Decided,
    label_colormap,
    of_these_cells,
    read_decided,
)

LENIENT = ComponentEvaluationParameters(correlation_lower=0.2)


def decided(choices: dict[int, bool] | None = None) -> Decided:
    """Four cells: one whose SNR is enough, one whose correlation is, two that are rejected."""
    quality = Quality(
        snr=np.array([3.0, 1.0, 0.3, 1.0]),
        spatial_correlation=np.array([0.5, 0.9, 0.1, 0.5]),
        cnn_probability=np.full(4, np.nan),
        accepted=np.zeros(4, bool),
        size=np.array([1.0, 1.0, 0.1, np.nan]),
    )
    return Decided(decide(quality, LENIENT), LENIENT, np.array([0, 4, 7, 9]), choices or {})


def test_a_choice_is_over_the_scores() -> None:
    found = decided({4: False, 9: True})
    np.testing.assert_array_equal(decided().accepted, [True, True, False, False])
    np.testing.assert_array_equal(found.accepted, [True, False, False, True])
    np.testing.assert_array_equal(found.chosen, [False, True, False, True])
    np.testing.assert_array_equal(found.quality.accepted, decided().quality.accepted)


def test_choices_of_cells_that_are_not_there_change_nothing() -> None:
    np.testing.assert_array_equal(decided({100: True}).accepted, decided().accepted)


def test_the_scores_decide_again_and_the_choices_stay() -> None:
    found = decided({4: False}).by(ComponentEvaluationParameters(correlation_lower=0.0))
    assert found.choices == {4: False}
    strict = decided({4: False}).by(ComponentEvaluationParameters(snr_upper=9.0))
    np.testing.assert_array_equal(strict.accepted, [False, False, False, False])
    assert strict.quality.reasons[0] & Reason.CORRELATION


def test_colours_tell_the_decision_and_whose_it_is() -> None:
    colours = decided({4: False, 9: True}).colours()
    kinds = [(True, False), (False, True), (False, False), (True, True)]
    expected = np.concatenate([transform_color(COLOURS[kind]) for kind in kinds])
    np.testing.assert_array_equal(colours, expected)
    hidden = decided({4: False, 9: True}).colours(rejected=False)
    np.testing.assert_array_equal(hidden[:, 3], [1, 0, 0, 1])
    np.testing.assert_array_equal(hidden[:, :3], colours[:, :3])


def test_why_names_the_scores_and_the_person() -> None:
    assert decided().why(0) == "accepted: trace SNR 3 reaches 2.5"
    assert decided().why(2).startswith("rejected: trace SNR 0.3 is not above 0.5; ")
    said = decided({4: False}).why(1)
    assert said == "rejected by hand; by its scores accepted: spatial correlation 0.9 reaches 0.85"


def test_figures_leave_out_what_is_not_known() -> None:
    assert decided().figures(0) == "Trace SNR 3, Spatial correlation 0.5, Size 1"
    assert decided().figures(3) == "Trace SNR 1, Spatial correlation 0.5"


def test_the_count_is_of_all_and_its_reasons_of_those_that_nobody_chose() -> None:
    assert decided().counted() == (
        "2 accepted, 2 rejected: 1 no score high enough, 1 trace SNR too low, "
        "1 spatial correlation too low, 1 too small"
    )
    assert decided({7: False, 9: True}).counted() == "3 accepted, 1 rejected; 2 chosen by hand"
    assert Decided.of_nothing().counted() == "0 accepted, 0 rejected"


def test_the_table_has_the_scores_that_are_known() -> None:
    table = decided({4: False, 9: True}).features()
    assert list(table) == [
        "snr",
        "spatial_correlation",
        "size",
        "accepted",
        "reason",
        "choice",
    ]
    assert table["reason"].tolist() == [
        "",
        "by hand",
        "trace SNR too low, spatial correlation too low, too small",
        "",
    ]
    assert table["choice"].tolist() == ["", "reject", "", "accept"]


def test_every_label_has_its_colour_whatever_its_number() -> None:
    colours = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    for labels in (np.array([1, 2, 3, 4, 5]), np.array([3, 70, 300, 999, 2]), [1, 2, 3, 4, 70_000]):
        labels = np.asarray(labels)
        colormap = label_colormap(labels, colours)
        np.testing.assert_allclose(colormap.map(labels), colours)
        np.testing.assert_array_equal(colormap.map(0), np.zeros(4))
        assert isinstance(colormap, DirectLabelColormap) == (labels.max() > 65_535)
    one = label_colormap(np.array([1]), colours[:1])
    np.testing.assert_allclose(one.map(1), colours[0])
    assert label_colormap(np.zeros(0, int), colours[:0]).map(0)[3] == 0


def test_what_is_read_is_what_is_stored(session: Session) -> None:
    found = read_decided(session)
    assert found is not None
    np.testing.assert_array_equal(found.accepted, session.read("component_evaluation/accepted"))
    np.testing.assert_array_equal(found.quality.reasons, session.quality().reasons)
    assert found.classifier == session.group_attrs("component_evaluation")["classifier"]
    assert found.scores == session.record("component_evaluation").digest


def test_parameters_that_only_a_later_version_knows_are_left_out(
    finished: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(finished, tmp_path / "s.zarr")
    before = read_decided(Session(path))
    group = zarr.open_group(path, path="component_evaluation", mode="r+")
    group.attrs["parameters"] = {**group.attrs["parameters"], "shape_upper": 0.3}
    found = read_decided(Session(path))
    assert before is not None
    assert found is not None
    assert found.parameters == before.parameters


def test_a_digest_tells_whether_a_layer_shows_these_cells() -> None:
    found = replace(decided(), cells="a1")
    assert found.is_of("a1")
    assert found.is_of("a1f7")  # with those of the evaluation and of dF/F behind it
    assert not found.is_of("f7a1")
    assert not Decided.of_nothing().is_of("a1")


def test_rates_are_of_these_cells_only_if_their_traces_are(rated: Session) -> None:
    assert of_these_cells(rated, "spike_inference")
    dff, cells = (rated.path / name / "zarr.json" for name in ("dff", "source_extraction"))
    for file, group in ((dff, "dff"), (cells, "source_extraction")):
        before = file.read_text()
        file.write_text(before.replace(rated.record(group).digest, "another"))
        assert not of_these_cells(rated, "spike_inference")
        file.write_text(before)
    assert of_these_cells(rated, "spike_inference")
