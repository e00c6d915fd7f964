"""One cell's traces, read from a session without a window."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from napari_calcium.evaluation.decision import explain
from napari_calcium.evaluation.evaluation import ComponentEvaluationParameters
from napari_calcium.io.choices import choose
from napari_calcium.io.session import Session
from napari_calcium.napari.cell_traces import read_cell

COUNTS = 1e-3
"""Rounding of float32 at some 1000 counts, a few times over."""


@pytest.fixture
def changed(finished: Path, tmp_path: Path) -> Any:
    """Give the stage dff other arrays and attributes, in a session of its own."""

    def change(arrays: dict[str, Any], **attrs: str) -> Session:
        path = tmp_path / "changed.zarr"
        shutil.copytree(finished, path)
        group = zarr.open_group(path, path="dff", mode="r+")
        group.attrs.update(attrs)
        for name, values in arrays.items():
            group[name][...] = values
        return Session(path)

    return change


def test_a_cell_is_read_by_its_identity(session: Session) -> None:
    components, quality = session.components(), session.quality()
    recorded = session.record("component_evaluation").parameters
    for row, cell_id in enumerate(components.cell_id):
        cell = read_cell(session, int(cell_id))
        assert cell is not None
        np.testing.assert_array_equal(cell.denoised, components.traces[row])
        np.testing.assert_array_equal(cell.raw, (components.traces + components.residuals)[row])
        np.testing.assert_array_equal(cell.deconvolved, components.deconvolved[row])
        np.testing.assert_array_equal(cell.dff, session.read("dff/traces")[row])
        np.testing.assert_array_equal(cell.f0, session.read("dff/baseline")[row])
        np.testing.assert_allclose(cell.seconds[[0, 1, -1]], [0, 0.1, 19.9])  # 200 frames, 10 Hz
        why = explain(quality, ComponentEvaluationParameters(**recorded), row)
        assert why.startswith("accepted: " if quality.accepted[row] else "rejected: ")
        assert cell.title == f"cell {cell_id}, {why}"


def test_a_choice_by_hand_is_said_and_what_the_scores_say(finished: Path, tmp_path: Path) -> None:
    session = Session(shutil.copytree(finished, tmp_path / "s.zarr"))
    row = int(np.flatnonzero(~session.quality().accepted)[0])
    cell_id = int(session.read("source_extraction/cell_id")[row])
    choose(session, [cell_id], True)
    start = f"cell {cell_id}, accepted by hand; by its scores rejected: "
    assert read_cell(session, cell_id).title.startswith(start)


def test_a_decision_that_is_known_is_not_read(session: Session) -> None:
    cell_id = int(session.read("source_extraction/cell_id")[0])
    assert (
        read_cell(session, cell_id, "rejected: too shy").title
        == f"cell {cell_id}, rejected: too shy"
    )


def test_there_is_no_cell_that_was_not_found(session: Session) -> None:
    assert read_cell(session, 10_000) is None


def test_without_the_stage_there_is_no_change(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "s.zarr", ignore=lambda *_: ["dff"])
    session = Session(tmp_path / "s.zarr")
    cell = read_cell(session, int(session.read("source_extraction/cell_id")[0]))
    assert (cell.dff, cell.f0, cell.fluorescence) == (None, None, None)
    assert set(cell.known(["raw", "f0", "dff", "fluorescence"])) == {"raw"}


@pytest.mark.parametrize("kind", [None, "dff", "detrended"])
@pytest.mark.parametrize("output", [None, "raw", "denoised"])
def test_the_fluorescence_is_that_whose_change_was_taken(
    kind: str | None, output: str | None, session: Session, changed: Any
) -> None:
    """Fluorescence and F0 are drawn by chance, and what is stored follows from them."""
    shape, rng = session.array("dff/traces").shape, np.random.default_rng(0)
    f0 = rng.uniform(500, 900, shape).astype("float32")
    fluorescence = rng.uniform(400, 2000, shape).astype("float32")
    difference = fluorescence - f0
    stored = difference if kind == "detrended" else difference / f0
    attrs = {name: each for name, each in (("kind", kind), ("output", output)) if each}
    session = changed({"baseline": f0, "traces": stored}, **attrs)
    for row, cell_id in enumerate(session.read("source_extraction/cell_id")):
        cell = read_cell(session, int(cell_id))
        assert cell.dff_kind == (kind or "dff")
        assert cell.dff_units == ("counts" if kind == "detrended" else "fraction")
        assert cell.output == (output or "raw")
        np.testing.assert_array_equal(cell.dff, stored[row])
        np.testing.assert_array_equal(cell.f0, f0[row])
        np.testing.assert_allclose(cell.fluorescence, fluorescence[row], atol=COUNTS)


def test_a_floored_cell_says_so(session: Session, changed: Any) -> None:
    n_cells = session.components().n_cells
    session = changed({"floored": np.arange(n_cells) == 1})
    for row, cell_id in enumerate(session.read("source_extraction/cell_id")):
        cell = read_cell(session, int(cell_id))
        assert cell.floored == (row == 1)
        assert cell.title.endswith(", F0 floored") == (row == 1)


def test_a_trace_without_any_number_is_not_known(session: Session, changed: Any) -> None:
    values = session.read("dff/traces")
    values[0], values[1, :100] = np.nan, np.nan
    session = changed({"traces": values})
    first, second, *_ = session.read("source_extraction/cell_id")
    names = ["dff", "f0", "fluorescence"]
    assert set(read_cell(session, int(first)).known(names)) == {"f0"}
    known = read_cell(session, int(second)).known(names)
    assert set(known) == set(names)
    for name in ("dff", "fluorescence"):
        np.testing.assert_array_equal(np.isnan(known[name]), np.arange(200) < 100)


def test_the_rate_is_that_of_the_cell(rated: Session) -> None:
    for row, cell_id in enumerate(rated.read("source_extraction/cell_id")):
        cell = read_cell(rated, int(cell_id))
        np.testing.assert_array_equal(cell.spike_rate, rated.spike_rate()[row])
        assert cell.spike_marks == ("too noisy" if rated.spike_noise_level()[row] > 8 else "")
        assert cell.title.endswith(", spike rate: too noisy") == bool(cell.spike_marks)


def test_without_the_stage_there_is_no_rate(session: Session) -> None:
    cell = read_cell(session, int(session.read("source_extraction/cell_id")[0]))
    assert (cell.spike_rate, cell.spike_marks) == (None, "")
