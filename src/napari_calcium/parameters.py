"""Parameters of a stage: frozen dataclasses of scalars, checked when they are made.

A stage's parameters are declared once, as a subclass of `Parameters` beside the stage. The form of
the dock widget, the command line, the recipe and the reference page are all made from it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

import docstring_parser

from napari_calcium.errors import InputError

__all__ = ["Parameter", "Parameters", "nearest", "parameter"]

_REQUIRED: Any = MISSING


def parameter(
    default: Any = _REQUIRED,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    mark: bool = False,
    decides: bool = False,
) -> Any:
    """Declare one field of a `Parameters` class with its unit and its bounds.

    Parameters
    ----------
    default : bool, int, float or str, optional
        Value when none is given; a field without one must be given.
    unit : str
        Unit shown in forms, recipes and error messages, for example ``"px"``.
    minimum, maximum : float, optional
        Smallest and largest value allowed.
    above : float, optional
        The value must be larger than this one.
    mark : bool
        Whether it says how results are to be taken, and is no part of how they were made: a change
        does not make the stage run again.
    decides : bool
        Whether it only decides what is made of the results: a change decides again from what is
        stored, and computes nothing.
    """
    bounds = {"minimum": minimum, "maximum": maximum, "above": above}
    metadata = {"unit": unit, "mark": mark, "decides": decides, **bounds}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Parameter:
    """What is known of one parameter: see `Parameters.describe`."""

    name: str
    type: Any
    default: Any
    unit: str
    description: str
    minimum: float | None
    maximum: float | None
    above: float | None
    mark: bool = False
    decides: bool = False

    @property
    def required(self) -> bool:
        """Whether the parameter has no default."""
        return self.default is MISSING

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values allowed, for a parameter that is one of a few."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()


@dataclass(frozen=True)
class Parameters:
    """Base of every stage's parameters: typed, bounded, to a mapping and back.

    Raises
    ------
    InputError
        If a value has the wrong type or lies outside its bounds; the message names the field, its
        value and its unit.

    Examples
    --------
    >>> @dataclass(frozen=True)
    ... class BlurParameters(Parameters):
    ...     '''Blur.
    ...
    ...     Parameters
    ...     ----------
    ...     radius : float
    ...         Standard deviation of the Gaussian, px.
    ...     '''
    ...     radius: float = parameter(2.0, unit="px", minimum=0)
    >>> BlurParameters.from_mapping({"radius": 3})
    BlurParameters(radius=3.0)
    >>> BlurParameters(radius=-1.0)
    Traceback (most recent call last):
    ...
    napari_calcium.errors.InputError: radius is -1 px; it must be at least 0 px
    """

    def __post_init__(self) -> None:
        for description in self.describe():
            value = _typed(description, getattr(self, description.name))
            _check_bounds(description, value)
            object.__setattr__(self, description.name, value)
        self.check()

    def check(self) -> None:
        """Raise `InputError` where fields that are right by themselves do not fit together."""

    def check_movie(self, shape: tuple[int, ...]) -> None:
        """Raise `InputError` where the parameters do not fit a movie of the shape (time, y, x)."""

    def check_marks(self, marks: Mapping[str, Any]) -> None:
        """Raise `InputError` where the parameters do not fit how the recording is marked."""

    def check_means(self) -> None:
        """Raise `InputError` where a file or a library that is needed cannot be used."""

    def shipped(self) -> Mapping[str, str]:
        """Return the digests of what comes with the program and decides the results, by a name."""
        return {}

    def files(self) -> tuple[str, ...]:
        """Return the paths of files that are read: their content counts as a parameter."""
        return ()

    @classmethod
    def describe(cls) -> tuple[Parameter, ...]:
        """Return the description of each parameter, in the order of the form."""
        return _describe(cls)  # type: ignore[arg-type]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Make parameters from a mapping such as a recipe's table.

        Raises
        ------
        InputError
            For an unknown key, naming the nearest known one, and for a key that is missing.
        """
        known = {description.name: description for description in cls.describe()}
        for key in values:
            if key not in known:
                raise InputError(f"unknown parameter {key!r}; {nearest(key, known)}")
        for name, description in known.items():
            if description.required and name not in values:
                raise InputError(f"{name} is not given; it is needed{_in(description, ', in')}")
        return cls(**values)

    def to_mapping(self) -> dict[str, Any]:
        """Return the parameters as a dictionary of JSON scalars."""
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """Return those that the results depend on: all but marks and what decides."""
        others = {each.name for each in self.describe() if each.mark or each.decides}
        return {name: value for name, value in self.to_mapping().items() if name not in others}


def nearest(word: str, known: Any) -> str:
    """Say which of the known words is meant, or list them all.

    Examples
    --------
    >>> nearest("max_shfit", ["max_shift", "method"])
    "did you mean 'max_shift'?"
    >>> nearest("zzz", ["max_shift", "method"])
    'known are max_shift, method'
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


@cache
def _describe(cls: type[Parameters]) -> tuple[Parameter, ...]:
    hints = get_type_hints(cls)
    documented = {
        entry.arg_name: " ".join((entry.description or "").split())
        for entry in docstring_parser.parse_from_object(cls).params
        if entry.args[0] == "param"
    }
    if missing := [f.name for f in fields(cls) if not documented.get(f.name)]:
        raise TypeError(f"{cls.__name__} does not document {', '.join(missing)}")
    return tuple(
        Parameter(
            name=f.name,
            type=hints[f.name],
            default=f.default,
            unit=f.metadata.get("unit", ""),
            description=documented[f.name],
            minimum=f.metadata.get("minimum"),
            maximum=f.metadata.get("maximum"),
            above=f.metadata.get("above"),
            mark=f.metadata.get("mark", False),
            decides=f.metadata.get("decides", False),
        )
        for f in fields(cls)
    )


def _typed(description: Parameter, value: Any) -> Any:
    """Return the value in the type of its field; a number may come as text from a shell."""
    name, kind = description.name, description.type
    if description.choices:
        for choice in description.choices:
            if isinstance(value, type(choice) | str) and str(value) == str(choice):
                return choice
        choices = ", ".join(map(repr, description.choices))
        raise InputError(f"{name} is {value!r}; it must be one of {choices}")
    if kind is bool:
        known = {"true": True, "false": False, "True": True, "False": False}
        value = known.get(value, value) if isinstance(value, str) else value
        if isinstance(value, bool):
            return value
        raise InputError(f"{name} is {value!r}; it must be true or false")
    if kind is str:
        return str(value)
    try:
        if isinstance(value, bool):
            raise ValueError
        number = kind(value)
        if kind is int and float(value) != number:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        word = "a whole number" if kind is int else "a number"
        raise InputError(f"{name} is {value!r}; it must be {word}{_in(description)}") from None
    return number


def _check_bounds(description: Parameter, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    unit = f" {description.unit}" if description.unit else ""
    said = f"{description.name} is {value:g}{unit}; it must be"
    if not math.isfinite(value):
        raise InputError(f"{said} a finite number{_in(description)}")
    if description.above is not None and value <= description.above:
        raise InputError(f"{said} above {description.above:g}{unit}")
    if description.minimum is not None and value < description.minimum:
        raise InputError(f"{said} at least {description.minimum:g}{unit}")
    if description.maximum is not None and value > description.maximum:
        raise InputError(f"{said} at most {description.maximum:g}{unit}")


def _in(description: Parameter, word: str = " in") -> str:
    return f"{word} {description.unit}" if description.unit else ""
