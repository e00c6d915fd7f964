"""The recipe: what it refuses, and that it comes back from its file as it was."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import zarr

from napari_calcium.errors import InputError
from napari_calcium.io.session import Session
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.stages import STAGES


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (
            {"motion_corection": {}},
            "unknown stage 'motion_corection'; did you mean 'motion_correction'?",
        ),
        (
            {"motion_correction": {"max_shfit": 3}},
            "unknown parameter 'motion_correction.max_shfit'; did you mean 'max_shift'?",
        ),
        (
            {"import": {"frame_rat": 3}},
            "unknown parameter 'import.frame_rat'; did you mean 'frame_rate'?",
        ),
        (
            {"import": {"frame_rate": 0}},
            "import.frame_rate is 0 Hz; it must be above 0 Hz",
        ),
        (
            {"motion_correction": {"max_shift": "far"}},
            "motion_correction.max_shift is 'far'; it must be a whole number in px",
        ),
        (
            {"motion_correction": {"method": "rigit"}},
            "motion_correction.method is 'rigit'; it must be one of 'piecewise', 'rigid', 'none'",
        ),
        (
            {"dff": 3},
            "dff is 3 in the recipe; it must be a table of keys",
        ),
    ],
)
def test_what_is_wrong_is_said(tables: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        Recipe(tables)
    assert str(error.value) == said


def test_what_is_needed_is_missed_when_it_is_used() -> None:
    recipe = Recipe({"import": {"pixel_size": 2}})
    with pytest.raises(InputError, match=r"^import\.frame_rate is not given; it is needed, in Hz$"):
        recipe.parameters("import")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("motion_correction.max_shift", "7", 7),
        ("dff.percentile", "12.5", 12.5),
        ("motion_correction.method", "none", "none"),
        ("import.frame_rate", 30, 30.0),
    ],
)
def test_a_value_from_a_shell_gets_its_type(key: str, value: Any, expected: Any) -> None:
    stage, name = key.split(".")
    found = getattr(Recipe().with_value(key, value).parameters(stage), name)
    assert found == expected
    assert type(found) is type(expected)


def test_with_values_leaves_the_rest_and_the_original() -> None:
    first = Recipe({"import": {"frame_rate": 5.0}, "dff": {"window": 9.0}})
    second = first.with_values("import", {"pixel_size": 2.0})
    assert second.tables == {"import": {"frame_rate": 5.0, "pixel_size": 2.0}, "dff": {"window": 9}}
    assert first.tables["import"] == {"frame_rate": 5.0}


@pytest.mark.parametrize("key", ["max_shift", ""])
def test_a_key_without_its_stage_is_refused(key: str) -> None:
    with pytest.raises(InputError, match=r"is not a parameter; write stage\.key"):
        Recipe().with_value(key, 3)


class TestFile:
    """Recipes as TOML."""

    @pytest.fixture
    def full(self, recipe: Recipe) -> Recipe:
        values = {stage.name: recipe.parameters(stage.name).to_mapping() for stage in STAGES}
        return Recipe(values).with_value("dff.percentile", 1 / 3)

    def test_comes_back_as_it_was(self, full: Recipe, tmp_path: Path) -> None:
        path = tmp_path / "größe µm.toml"
        path.write_text(full.to_toml(), encoding="utf-8")
        assert Recipe.from_toml(path) == full
        assert tomllib.loads(full.to_toml()) == full.tables

    def test_what_is_not_given_is_written_as_its_default(self) -> None:
        written = tomllib.loads(Recipe().to_toml())
        for stage in STAGES:
            defaults = {d.name: d.default for d in stage.parameters.describe() if not d.required}
            assert written[stage.name] == defaults

    def test_every_key_is_explained(self) -> None:
        text = Recipe().to_toml()
        said = " ".join(text.replace("#", " ").split())
        for stage in STAGES:
            assert f"[{stage.name}]" in text
            for description in stage.parameters.describe():
                assert description.description in said

    def test_the_default_is_accepted_once_the_needed_key_is_filled_in(self, tmp_path: Path) -> None:
        text = Recipe().to_toml()
        needed = re.findall(r"^# (\w+) = \(needed, (\w+)\)$", text, re.M)
        assert needed == [("frame_rate", "Hz")]
        path = tmp_path / "recipe.toml"
        path.write_text(text.replace("# frame_rate = (needed, Hz)", "frame_rate = 7"))
        recipe = Recipe.from_toml(path)
        expected = {"frame_rate": 7.0, "pixel_size": 0.0, "modality": "two-photon"}
        assert recipe.parameters("import").to_mapping() == expected
        for stage in STAGES:
            recipe.parameters(stage.name)

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"none\.toml cannot be read \(No such file"):
            Recipe.from_toml(tmp_path / "none.toml")

    @pytest.mark.parametrize("content", [b"[dff\nwindow = 3", b"a = 1\na = 2", b"x = \xff\xfe"])
    def test_not_toml(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "recipe.toml"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"recipe\.toml is not TOML \(.+\); correct it$"):
            Recipe.from_toml(path)

    def test_a_misspelt_key_in_it(self, tmp_path: Path) -> None:
        path = tmp_path / "recipe.toml"
        path.write_text("[source_extraction]\ncell_raduis = 4\n")
        with pytest.raises(InputError, match="did you mean 'cell_radius'"):
            Recipe.from_toml(path)


class TestOfSession:
    """What a session says of how it was made."""

    def test_is_what_was_used(self, finished: Path, recipe: Recipe) -> None:
        used = Recipe.of_session(Session(finished))
        assert used.tables.keys() == {stage.name for stage in STAGES}
        for stage in STAGES:
            assert used.parameters(stage.name) == recipe.parameters(stage.name)
            assert used.tables[stage.name] == recipe.parameters(stage.name).to_mapping()

    def test_what_an_earlier_version_asked_is_left_out(
        self, session_path: Path, recipe: Recipe
    ) -> None:
        """So that one can go on with its session."""
        group = zarr.open_group(session_path, path="motion_correction")
        stored = {**group.attrs["parameters"], "given_up": 1.15}
        group.attrs["parameters"] = stored
        session = Session(session_path)
        session.update_attrs({"recipe": session.attrs["recipe"] | {"motion_correction": stored}})
        for asked in (False, True):
            used = Recipe.of_session(session, asked=asked)
            assert used.parameters("motion_correction") == recipe.parameters("motion_correction")

    def test_an_empty_session_has_none(self, tmp_path: Path) -> None:
        session = Session.create(tmp_path / "s.zarr", {"source": []})
        assert Recipe.of_session(session) == Recipe()
