"""The manifest against the table of stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from npe2 import PluginManifest

from napari_calcium.napari.stage_widget import StageWidget
from napari_calcium.pipeline.stages import STAGES

ROOT = Path(__file__).parents[2]
TITLES = [stage.title for stage in STAGES]


@pytest.fixture(scope="module")
def manifest() -> PluginManifest:
    return PluginManifest.from_file(ROOT / "napari.yaml")


def test_it_is_valid_and_everything_it_names_can_be_imported(manifest: PluginManifest) -> None:
    manifest.validate_imports()


def test_there_is_one_widget_for_each_stage_in_their_order(manifest: PluginManifest) -> None:
    titles = [widget.display_name for widget in manifest.contributions.widgets]
    assert titles == [*TITLES, "Cells", "Traces", "Raster"]


def test_each_widget_is_of_the_stage_it_is_named_after(manifest: PluginManifest) -> None:
    for widget, stage in zip(manifest.contributions.widgets, STAGES, strict=False):
        assert widget.command == f"napari-calcium.{stage.name}"
        (command,) = [c for c in manifest.contributions.commands if c.id == widget.command]
        name = command.python_name.partition(":")[2]
        (cls,) = [cls for cls in StageWidget.__subclasses__() if cls.__name__ == name]
        assert cls.stage is stage


@pytest.mark.parametrize("title", TITLES)
def test_a_form_has_each_parameter_with_its_unit_bounds_and_meaning(
    make_napari_viewer_proxy: Any, title: str
) -> None:
    viewer = make_napari_viewer_proxy()
    _, widget = viewer.window.add_plugin_dock_widget("napari-calcium", title)
    (stage,) = [stage for stage in STAGES if stage.title == title]
    described = {each.name: each for each in stage.parameters.describe()}
    assert list(widget.form.fields) == list(described)
    for name, each in described.items():
        field = widget.form.fields[name]
        assert field.tooltip == each.description
        if each.choices:
            assert field.choices == each.choices
            continue
        if each.type in (str, bool):
            assert field.value == each.default
            continue
        low = each.above if each.minimum is None else each.minimum
        assert field.min == low or low is None
        assert field.max == each.maximum or each.maximum is None
        if each.unit not in ("", "1"):
            assert field.label.endswith(f"({each.unit})")
    wanted = {n: 0.0 if each.required else each.default for n, each in described.items()}
    assert widget.form.values() == wanted
