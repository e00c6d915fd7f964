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
    """

    rate: float = parameter(unit="Hz", above=0)
    count: int = parameter(3, minimum=1, maximum=9)
    width: float = parameter(1.5, unit="px")
    method: Literal["one", "other"] = parameter("other")
    sure: bool = parameter(False)


def test_a_form_starts_with_the_defaults(qtbot: Any) -> None:
    form = ParametersForm(SomeParameters)
    qtbot.addWidget(form.native)
    assert form.values() == {
        "rate": 0.0,
        "count": 3,
        "width": 1.5,
        "method": "other",
        "sure": False,
    }


def test_what_is_set_comes_back_in_its_type_and_to_the_last_digit(qtbot: Any) -> None:
    form = ParametersForm(SomeParameters)
    qtbot.addWidget(form.native)
    values = {"rate": 100 / 3, "count": 7, "width": -0.1, "method": "one", "sure": True}
    form.set_values({**values, "elsewhere": 1})
    assert form.values() == values
    assert [type(value) for value in form.values().values()] == [float, int, float, str, bool]
    assert SomeParameters.from_mapping(form.values()).rate == 100 / 3


def test_what_a_person_types_replaces_what_was_set(qtbot: Any) -> None:
    form = ParametersForm(SomeParameters)
    qtbot.addWidget(form.native)
    form.set_values({"rate": 100 / 3})
    form.fields["rate"].value = 30.5
    assert form.values()["rate"] == 30.5
    form.reset()
    assert form.values()["rate"] == 0.0
