"""How Sphinx builds these pages."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import reference

project = "napari-calcium"
author = "The napari-calcium developers"
copyright = author
release = version = importlib.metadata.version(project)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "py:obj"
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = False
suppress_warnings = ["ref.python"]  # a name may be in more than one module

html_theme = "furo"
html_title = f"{project} {version}"


def fill_markers(app: object, name: str, source: list[str]) -> None:
    """Put what is made from the package itself where a page asks for it."""
    source[0] = reference.fill(source[0])


def number_references(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Let every docstring have a reference [1] of its own, also where many share a page."""
    lines[:] = reference.with_numbered_references(lines)


def setup(app: object) -> None:
    """Let pages and docstrings be changed as they are read."""
    app.connect("source-read", fill_markers)  # type: ignore[attr-defined]
    app.connect("autodoc-process-docstring", number_references)  # type: ignore[attr-defined]
