"""The parts of these pages that are made from the package: its stages and its modules.

A page asks for a part by a marker, an HTML comment such as ``<!-- stages -->``. Nothing is written
to disk, so the pages cannot fall behind the code.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterable
from typing import Any

import napari_calcium
from napari_calcium.parameters import Parameter
from napari_calcium.pipeline.stages import STAGES, Stage

NOT_LIBRARY = {"__main__", "cli", "demo", "napari"}
"""Modules and folders that are not for use from Python: what they do is what is seen."""


def fill(page: str) -> str:
    """Return a page with its markers replaced."""
    for marker, make in {"stages": stages, "modules": modules}.items():
        comment = f"<!-- {marker} -->"
        if comment in page:
            page = page.replace(comment, make())
    return page


def stages() -> str:
    """Return a section for each stage, as Markdown."""
    return "\n\n".join(stage_section(stage) for stage in STAGES)


def stage_section(stage: Stage) -> str:
    """Return what a stage does, what it needs and a table of its parameters."""
    needs = ", ".join(f"`{name}`" for name in stage.needs) or "the recording"
    rows = [
        (f"`{p.name}`", _default(p), p.unit or "", _allowed(p), p.description)
        for p in stage.parameters.describe()
    ]
    header = ("Parameter", "Default", "Unit", "Allowed", "Meaning")
    table = _table(header, rows) if rows else "It has no parameters."
    return (
        f"## {stage.title}\n\n{stage.summary} In the recipe it is `[{stage.name}]`; it reads "
        f"{needs} and writes the session's group `{stage.group}/`.\n\n{table}"
    )


def modules() -> str:
    """Return an autodoc section for each module meant for use from Python."""
    return "\n\n".join(
        f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```" for name in _module_names()
    )


def with_numbered_references(lines: Iterable[str]) -> list[str]:
    """Return a docstring whose references are a numbered list instead of footnotes of the page.

    Examples
    --------
    >>> with_numbered_references(["As in [1]_.", "", ".. [1] A paper,", "       of a year."])
    ['As in [1].', '', '1. A paper,', '   of a year.']
    """
    numbered, within = [], False
    for line in lines:
        text = re.sub(r"\[(\d+)\]_", r"[\1]", line)
        found = re.match(r"(\s*)\.\. \[(\d+)\] (.*)", text)
        if found:
            indent, within = found[1], True
            text = f"{indent}{found[2]}. {found[3]}"
        elif within and text.strip():
            text = f"{indent}   {text.strip()}"
        else:
            within = False
        numbered.append(text)
    return numbered


def _module_names() -> list[str]:
    package = napari_calcium.__name__
    found = pkgutil.walk_packages(napari_calcium.__path__, f"{package}.")
    return [
        module.name
        for module in found
        if module.name.split(".")[1] not in NOT_LIBRARY and not module.ispkg
    ]


def _default(parameter: Parameter) -> str:
    return "needed" if parameter.required else f"`{_written(parameter.default)}`"


def _allowed(parameter: Parameter) -> str:
    if parameter.choices:
        return ", ".join(f"`{_written(choice)}`" for choice in parameter.choices)
    bounds = {"above": parameter.above, "≥": parameter.minimum, "≤": parameter.maximum}
    said = [f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None]
    return ", ".join(said) or {bool: "true or false"}.get(parameter.type, "")


def _written(value: Any) -> str:
    """Write a value as a recipe does."""
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = tuple(header)
    lines = [header, ("---",) * len(header), *rows]
    escaped = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)
