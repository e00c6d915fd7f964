"""The form of a stage's parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from napari_calcium.napari.form import ParametersForm
from napari_calcium.parameters import Parameters, parameter


@dataclass(frozen=True)
class SomeParameters(Parameters):
    """One of each kind.

    Parameters
    ----------
    rate : float
        A rate, Hz.
    count : int
        A count.
    width : float
        A width, px.
    method : str
        A choice.
    sure : bool
        A switch.
    order : {0, 1, 2}
        A choice of numbers.
    """

    rate: float = parameter(unit="Hz", above=0)
    count: int = parameter(3, minimum=1, maximum=9)
    width: float = parameter(1.5, unit="px")
    method: Literal["one", "other"] = parameter("other")
    sure: bool = parameter(False)
    order: Literal[0, 1, 2] = 1


def test_a_form_starts_with_the_defaults(qtbot: Any) -> None:
    form = ParametersForm(SomeParameters)
    qtbot.addWidget(form.native)
    assert form.values() == {
        "rate": 0.0,
        "count": 3,
        "width": 1.5,
        "method": "other",
        "sure": False,
        "order": 1,
    }


def test_what_is_set_comes_back_in_its_type_and_to_the_last_digit(qtbot: Any) -> None:
    form = ParametersForm(SomeParameters)
    qtbot.addWidget(form.native)
    values = {"rate": 100 / 3, "count": 7, "width": -0.1, "method": "one", "sure": True, "order": 0}
    form.set_values({**values, "elsewhere": 1})
    assert form.values() == values
    assert [type(value) for value in form.values().values()] == [float, int, float, str, bool, int]
    assert SomeParameters.from_mapping(form.values()) == SomeParameters(**values)


def test_what_a_person_types_replaces_what_was_set(qtbot: Any) -> None:
    form = ParametersForm(SomeParameters)
    qtbot.addWidget(form.native)
    form.set_values({"rate": 100 / 3})
    form.fields["rate"].value = 30.5
    assert form.values()["rate"] == 30.5
    form.reset()
    assert form.values()["rate"] == 0.0


GROUPS = {"Sizes": ("width", "count"), "Ways": ("method", "sure", "order")}


def test_groups_are_folded_but_for_the_first(qtbot: Any) -> None:
    form = ParametersForm(SomeParameters, GROUPS)
    qtbot.addWidget(form.native)
    assert list(form.groups) == ["Sizes", "Ways"]
    assert not form.fields["rate"].native.isHidden()
    assert [group.content.isHidden() for group in form.groups.values()] == [False, True]
    for group in form.groups.values():
        group.header.click()
    assert [group.content.isHidden() for group in form.groups.values()] == [True, False]
    inside = form.groups["Ways"].content.isAncestorOf(form.fields["order"].native)
    assert inside
    assert list(form.values()) == ["rate", "count", "width", "method", "sure", "order"]


def test_a_heading_says_how_many_of_its_fields_are_changed(qtbot: Any) -> None:
    form = ParametersForm(SomeParameters, GROUPS)
    qtbot.addWidget(form.native)
    sizes, ways = (form.groups[heading].header for heading in GROUPS)
    assert (sizes.text(), ways.text()) == ("Sizes", "Ways")
    form.set_values({"rate": 5.0, "method": "one", "order": 2})
    assert (sizes.text(), ways.text()) == ("Sizes", "Ways (2 changed)")
    form.fields["method"].value = "other"
    form.fields["width"].value = 1.6
    assert (sizes.text(), ways.text()) == ("Sizes (1 changed)", "Ways (1 changed)")
    form.reset()
    assert (sizes.text(), ways.text()) == ("Sizes", "Ways")
