"""A form for the parameters of a stage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from magicgui.widgets import Widget, create_widget
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFormLayout, QLabel, QSizePolicy, QToolButton, QVBoxLayout, QWidget

from napari_calcium.parameters import Parameter, Parameters

__all__ = ["FoldingGroup", "ParametersForm"]

LARGEST = 1_000_000
DECIMALS, MOST_DECIMALS = 3, 9
INDENT = 12
"""How far the fields of a group stand in from its heading, px."""


class FoldingGroup(QWidget):  # type: ignore[misc]
    """Fields under a heading that folds them away.

    Parameters
    ----------
    heading : str
        What the fields are about.
    content : QWidget
        The fields.
    unfolded : bool
        Whether they are seen at first.

    Attributes
    ----------
    header : QToolButton
        Unfolds the fields while it is down.
    """

    def __init__(self, heading: str, content: QWidget, unfolded: bool) -> None:
        super().__init__()
        self.heading, self.content = heading, content
        self.header = QToolButton()
        self.header.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.header.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.header.setStyleSheet("QToolButton { font-weight: bold; text-align: left; }")
        self.header.setCheckable(True)
        self.header.toggled.connect(self._fold)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(self.header)
        layout.addWidget(content)
        self.header.setChecked(unfolded)
        self._fold(unfolded)
        self.show_changed(0)

    def show_changed(self, n: int) -> None:
        """Say in the heading how many fields differ from their default."""
        self.header.setText(f"{self.heading} ({n} changed)" if n else self.heading)

    def _fold(self, unfolded: bool) -> None:
        kind = Qt.ArrowType.DownArrow if unfolded else Qt.ArrowType.RightArrow
        self.header.setArrowType(kind)
        self.content.setVisible(unfolded)


class ParametersForm:
    """A form with a field for each parameter, with its unit, its bounds and its meaning.

    A number that must be given starts at 0, which its stage refuses.

    Parameters
    ----------
    parameters : type
        The stage's `Parameters`.
    groups : mapping of str to sequence of str, optional
        Names of parameters under headings, of which the first is unfolded. What is in no group
        stands above them.

    Attributes
    ----------
    fields : dict of str to magicgui.widgets.Widget
        The fields by the names of the parameters.
    groups : dict of str to FoldingGroup
        The groups by their headings.
    native : QWidget
        The form.
    """

    def __init__(
        self, parameters: type[Parameters], groups: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._described = {each.name: each for each in parameters.describe()}
        self._given: dict[str, Any] = {}
        self.fields: dict[str, Any] = {n: _field(d) for n, d in self._described.items()}
        self.native = QWidget()
        self.groups: dict[str, FoldingGroup] = {}
        self._lay_out(groups or {})
        self.reset()
        for heading, names in (groups or {}).items():
            self._count_changes(self.groups[heading], names)

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

    def _lay_out(self, groups: Mapping[str, Sequence[str]]) -> None:
        grouped = {name for names in groups.values() for name in names}
        self._add_rows(self.native, [name for name in self.fields if name not in grouped])
        for heading, names in groups.items():
            content = QWidget()
            self._add_rows(content, names).setContentsMargins(INDENT, 0, 0, 0)
            group = self.groups[heading] = FoldingGroup(heading, content, not self.groups)
            self.native.layout().addRow(group)

    def _add_rows(self, widget: QWidget, names: Iterable[str]) -> QFormLayout:
        layout = QFormLayout(widget)
        layout.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for field in map(self.fields.__getitem__, names):
            label = QLabel(field.label)
            label.setToolTip(field.tooltip)
            layout.addRow(label, field.native)
        return layout

    def _count_changes(self, group: FoldingGroup, names: Sequence[str]) -> None:
        """Have a group's heading say how many of its fields are not as they start."""
        starts = {name: self.fields[name].value for name in names}

        def count() -> None:
            changed = [name for name in names if self.fields[name].value != starts[name]]
            group.show_changed(len(changed))

        for name in names:
            self.fields[name].changed.connect(count)

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
