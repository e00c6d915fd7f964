"""The recipe: every parameter of every stage, as a TOML file."""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import tomlkit

from napari_calcium.errors import InputError
from napari_calcium.io.session import MARKS, Session
from napari_calcium.parameters import Parameters, nearest
from napari_calcium.pipeline.stages import STAGES, stage_named

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """What was asked of each stage; what was not asked takes its default.

    Parameters
    ----------
    tables : mapping of str to mapping
        For each stage the parameters given, by name.

    Raises
    ------
    InputError
        For a stage or a parameter that does not exist, naming the nearest one that does, and for a
        value out of bounds.

    Examples
    --------
    >>> recipe = Recipe().with_value("import.frame_rate", "30")
    >>> recipe.parameters("import").frame_rate
    30.0
    >>> recipe.with_value("motion_correction.max_shfit", 3)
    Traceback (most recent call last):
    ...
    napari_calcium.errors.InputError: unknown parameter 'motion_correction.max_shfit'; did you ...
    """

    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for stage, values in self.tables.items():
            self._check_table(stage, values)

    @staticmethod
    def _check_table(stage: str, values: Any) -> None:
        cls = stage_named(stage).parameters
        if not isinstance(values, Mapping):
            raise InputError(f"{stage} is {values!r} in the recipe; it must be a table of keys")
        known = {description.name: description for description in cls.describe()}
        for key in values:
            if key not in known:
                raise InputError(f"unknown parameter {f'{stage}.{key}'!r}; {nearest(key, known)}")
        missing = [d.name for d in known.values() if d.required and d.name not in values]
        if not missing:
            _made(stage, cls, values)

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read a recipe from a file."""
        try:
            return cls(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise InputError(f"recipe {path} cannot be read ({error.strerror})") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"recipe {path} is not TOML ({error}); correct it") from error

    @classmethod
    def of_session(cls, session: Session, *, asked: bool = False) -> Self:
        """Return the recipe that made the finished stages, and what was asked of the others.

        With `asked` what was asked last is preferred: to go on with a run that was cut off while
        it replaced a finished stage. What an earlier version asked and this one does not know is
        left out.
        """
        records = {stage.name: session.record(stage.group) for stage in STAGES}
        made = {name: dict(record.parameters) for name, record in records.items() if record}
        if "import" in made:  # marked otherwise since, perhaps
            made["import"] |= {mark: getattr(session, mark) for mark in MARKS}
        last = session.attrs.get("recipe", {})
        tables = made | last if asked else last | made
        return cls({name: _known(name, tables[name]) for name in records if name in tables})

    def parameters(self, stage: str) -> Parameters:
        """Return one stage's parameters."""
        return _made(stage, stage_named(stage).parameters, self.tables.get(stage, {}))

    def with_value(self, key: str, value: Any) -> Self:
        """Return the recipe with one parameter, ``stage.name``, set."""
        return self.with_all({key: value})

    def with_all(self, values: Mapping[str, Any]) -> Self:
        """Return the recipe with some parameters, each ``stage.name``, set at the same time.

        Examples
        --------
        >>> keys = ("initialization", "seeds_file")  # neither can be set without the other
        >>> keys = [f"source_extraction.{key}" for key in keys]
        >>> Recipe().with_all(dict(zip(keys, ("seeds", "cells.zip")))).tables
        {'source_extraction': {'initialization': 'seeds', 'seeds_file': 'cells.zip'}}
        """
        tables = {stage: dict(table) for stage, table in self.tables.items()}
        for key, value in values.items():
            stage, dot, name = key.partition(".")
            if not dot:
                raise InputError(
                    f"{key!r} is not a parameter; write stage.key, as in import.frame_rate"
                )
            tables.setdefault(stage, {})[name] = value
        return type(self)(tables)

    def with_whole_paths(self) -> Self:
        """Return the recipe with files named from the root: it may be used from another folder.

        Examples
        --------
        >>> given = Recipe({"motion_correction": {"template_file": "mean.tif"}})
        >>> whole = given.with_whole_paths().tables["motion_correction"]["template_file"]
        >>> Path(whole).is_absolute(), Path(whole).name
        (True, 'mean.tif')
        """
        tables = {stage: dict(table) for stage, table in self.tables.items()}
        for table in tables.values():
            for name, value in table.items():
                if name.endswith("_file") and value:
                    table[name] = str(Path(str(value)).expanduser().absolute())
        return type(self)(tables)

    def with_values(self, stage: str, values: Mapping[str, Any]) -> Self:
        """Return the recipe with some parameters of a stage set."""
        table = {**self.tables.get(stage, {}), **values}
        return type(self)({**self.tables, stage: table})

    def to_toml(self) -> str:
        """Return the recipe with every key, its unit and its meaning, as TOML."""
        document = tomlkit.document()
        document.add(tomlkit.comment("napari-calcium recipe"))
        for stage in STAGES:
            table = tomlkit.table()
            given = self.tables.get(stage.name, {})
            for parameter in stage.parameters.describe():
                for line in textwrap.wrap(parameter.description, 96, break_on_hyphens=False):
                    table.add(tomlkit.comment(line))
                value = given.get(parameter.name, parameter.default)
                if parameter.required and parameter.name not in given:
                    table.add(tomlkit.comment(f"{parameter.name} = (needed, {parameter.unit})"))
                else:
                    table.add(parameter.name, value)
            document.add(tomlkit.nl())
            document.add(stage.name, table)
        return tomlkit.dumps(document)


def _known(stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a stage still knows of stored parameters."""
    names = {description.name for description in stage_named(stage).parameters.describe()}
    return {name: value for name, value in values.items() if name in names}


def _made(stage: str, cls: type[Parameters], values: Mapping[str, Any]) -> Parameters:
    try:
        return cls.from_mapping(values)
    except InputError as error:
        raise InputError(f"{stage}.{error}") from None
