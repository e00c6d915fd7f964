"""A form for the parameters of a stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from magicgui.widgets import Widget, create_widget
from qtpy.QtWidgets import QFormLayout, QLabel, QWidget

from napari_calcium.parameters import Parameter, Parameters

__all__ = ["ParametersForm"]

LARGEST = 1_000_000
DECIMALS, MOST_DECIMALS = 3, 9


class ParametersForm:
    """A form with a field for each parameter, with its unit, its bounds and its meaning.

    A number that must be given starts at 0, which its stage refuses.

    Parameters
    ----------
    parameters : type
        The stage's `Parameters`.

    Attributes
    ----------
    fields : dict of str to magicgui.widgets.Widget
        The fields by the names of the parameters.
    native : QWidget
        The form.
    """

    def __init__(self, parameters: type[Parameters]) -> None:
        self._described = {each.name: each for each in parameters.describe()}
        self._given: dict[str, Any] = {}
        self.fields: dict[str, Any] = {n: _field(d) for n, d in self._described.items()}
        self.native = QWidget()
        self._lay_out()
        self.reset()

    def reset(self) -> None:
        """Set every field to its default."""
        self.set_values({name: _start(each) for name, each in self._described.items()})

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Set some fields; a name that the form does not have is left out."""
        for name, value in values.items():
            if name in self.fields:
                _set(self.fields[name], value)
                self._given[name] = (value, self.fields[name].value)

    def values(self) -> dict[str, Any]:
        """Return what the form says; a number keeps the digits that the form does not show."""
        return {name: self._value(name) for name in self.fields}

    def _lay_out(self) -> None:
        layout = QFormLayout(self.native)
        layout.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for field in self.fields.values():
            label = QLabel(field.label)
            label.setToolTip(field.tooltip)
            layout.addRow(label, field.native)

    def _value(self, name: str) -> Any:
        given, shown = self._given[name]
        value = self.fields[name].value
        return given if value == shown else value


def _field(described: Parameter) -> Widget:
    kind = described.type
    options: dict[str, Any] = {"tooltip": described.description}
    if kind in (int, float) and not described.choices:
        low = described.minimum if described.minimum is not None else described.above
        options["min"] = kind(-LARGEST if low is None else low)
        options["max"] = kind(LARGEST if described.maximum is None else described.maximum)
    field = create_widget(
        _start(described),
        annotation=kind,
        name=described.name,
        label=_label(described),
        options=options,
    )
    if kind is float:
        field.native.setDecimals(DECIMALS)
    return field


def _label(described: Parameter) -> str:
    name = described.name.replace("_", " ")
    return f"{name} ({described.unit})" if described.unit not in ("", "1") else name


def _start(described: Parameter) -> Any:
    return described.type(0) if described.required else described.default


def _set(field: Any, value: Any) -> None:
    """Set a field, with as many decimals as the value needs."""
    if isinstance(value, float):
        field.native.setDecimals(_decimals(value))
    field.value = value


def _decimals(value: float) -> int:
    """Return how many decimals show a value.

    Examples
    --------
    >>> _decimals(0.6), _decimals(30.0363), _decimals(1 / 3)
    (3, 4, 9)
    """
    for decimals in range(DECIMALS, MOST_DECIMALS):
        if math.isclose(round(value, decimals), value, rel_tol=1e-12):
            return decimals
    return MOST_DECIMALS
