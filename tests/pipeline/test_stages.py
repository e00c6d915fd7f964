"""The table of stages: it is one, it fits the session, and nothing in it computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from dask.base import is_dask_collection

from napari_calcium.errors import InputError
from napari_calcium.io.recording import open_recording
from napari_calcium.io.session import VARIABLES, Session
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.stages import STAGES, Inputs, Stage, stage_named, stages_until

ORDER = [
    "import",
    "motion_correction",
    "summary_images",
    "source_extraction",
    "component_evaluation",
    "dff",
]


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("a stage computed or read frames while it was built")


@pytest.mark.parametrize("stage", STAGES, ids=ORDER)
def test_building_a_stage_computes_nothing(
    stage: Stage, finished: Path, tiff: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, recording = Session(finished), open_recording([tiff])
    monkeypatch.setattr(zarr.Array, "__getitem__", refuse)
    monkeypatch.setattr("napari_calcium.io.tiff.TiffFrames.__getitem__", refuse)
    with dask.config.set(scheduler=refuse):
        results = stage.build(Inputs(session, recording), recipe.parameters(stage.name))
    parts = [part for part in (results.arrays, results.attrs) if part is not None]
    assert [*results.movies, *parts]
    assert all(is_dask_collection(part) for part in (*results.movies.values(), *parts))


def test_the_scheduler_that_refuses_does(finished: Path) -> None:
    with dask.config.set(scheduler=refuse), pytest.raises(AssertionError, match="was built"):
        Session(finished).movie().frames.compute()


def test_the_stages_are_these_in_this_order() -> None:
    assert [stage.name for stage in STAGES] == ORDER
    assert len({stage.title for stage in STAGES}) == len({s.group for s in STAGES}) == len(STAGES)


def test_a_stage_needs_only_earlier_ones() -> None:
    for place, stage in enumerate(STAGES):
        assert set(stage.needs) <= set(ORDER[:place]), stage.name
        assert stage.summary.endswith(".")


def test_the_groups_are_those_of_the_session() -> None:
    assert {stage.group for stage in STAGES} == {name.split("/")[0] for name in VARIABLES}


def test_the_stages_write_every_variable_and_nothing_else(
    finished: Path, contents: Callable[[Path], dict[str, np.ndarray]]
) -> None:
    found = contents(finished).keys()
    assert found <= VARIABLES.keys()
    assert VARIABLES.keys() - found <= {"motion_correction/shifts_piecewise"}  # if asked for


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("import", ["import"]),
        ("summary_images", ["import", "motion_correction", "summary_images"]),
        ("dff", ["import", "motion_correction", "source_extraction", "dff"]),
    ],
)
def test_a_stage_comes_with_what_it_needs(name: str, expected: list[str]) -> None:
    assert [stage.name for stage in stages_until(name)] == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("motion_corection", "unknown stage 'motion_corection'; did you mean 'motion_correction'?"),
        ("spikes!", f"unknown stage 'spikes!'; known are {', '.join(ORDER)}"),
    ],
)
def test_an_unknown_stage_is_answered_with_the_nearest(name: str, said: str) -> None:
    for look_up in (stage_named, stages_until):
        with pytest.raises(InputError) as error:
            look_up(name)
        assert str(error.value) == said
