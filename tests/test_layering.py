"""Arrows between modules point down only, and only the run computes.

The rules are read off the syntax tree, so an import inside a function, under ``TYPE_CHECKING`` or
by ``importlib`` counts like any other, and an example in a docstring does not.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "napari_calcium"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

NOUNS = {
    "errors",
    "parameters",
    "movie",
    "shifts",
    "components",
    "footprints",
    "keras_models",
    "scenery",
    "simulation",
    "traces",
    "truth",
}
MIDDLE = {"motion", "extraction", "deconvolution", "evaluation", "activity", "spikes", "io"}
BELOW = NOUNS | MIDDLE | {"pipeline"}
MAY_IMPORT = {
    "": NOUNS,
    **dict.fromkeys(NOUNS, NOUNS),
    **{folder: NOUNS | {folder} for folder in MIDDLE},
    "extraction": NOUNS | {"extraction", "deconvolution"},
    "pipeline": BELOW,
    "napari": BELOW | {"napari"},
    "demo": BELOW,
    "cli": BELOW | {"cli", "demo"},
    "__main__": {"cli"},
}
"""What each module or folder directly in the package may import of it; "" is the package itself."""

WINDOW = {"napari", "magicgui", "qtpy", "PyQt5", "PyQt6", "PySide2", "PySide6", "pyqtgraph"}
NETWORKS = {"tensorflow", "keras"}
COMPUTING = {"compute", "persist"}
STORING = {"store", "to_zarr", "to_hdf5"}
"""Dask functions that compute unless they are told ``compute=False``."""


def modules() -> list[tuple[str, str, bool]]:
    """Return the name below the package, the source and whether it is a folder, of each module."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        is_folder = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_folder else parts)
        found.append((name, path.read_text("utf-8"), is_folder))
    return found


def imported(source: str, name: str, is_folder: bool = False) -> Iterator[tuple[int, str]]:
    """Yield the line and the full dotted name of everything a module imports."""
    here = [PACKAGE, *name.split(".")] if name else [PACKAGE]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = node.level - 1 if is_folder else node.level
            base = here[: len(here) - up] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
            yield from ((node.lineno, text) for text in _constants(node.args[:1]))


def arrow_violations(
    source: str, name: str, is_folder: bool = False, known: frozenset[str] = frozenset(MAY_IMPORT)
) -> list[str]:
    """List the imports of a module that its place in the package does not allow."""
    layer = name.partition(".")[0]
    if layer not in MAY_IMPORT:
        return [f"{name}: has no layer yet; add {layer!r} to MAY_IMPORT"]
    found = []
    for line, target in imported(source, name, is_folder):
        top, _, rest = target.partition(".")
        other = rest.partition(".")[0]
        if top == PACKAGE and other in known and other not in MAY_IMPORT[layer]:
            found.append(f"{name}:{line}: {layer or PACKAGE} may not import {target}")
        if top in WINDOW and layer != "napari":
            found.append(f"{name}:{line}: only napari/ may import {target}")
        if top in NETWORKS and layer == "napari":
            found.append(f"{name}:{line}: the window's process may not import {target}")
    return found


def computing_violations(source: str, name: str) -> list[str]:
    """List the calls by which a module below the command line and the window computes."""
    if name.partition(".")[0] not in BELOW | {""} or name == "pipeline.run":
        return []
    tree = ast.parse(source)
    dask_names = {
        alias.asname or alias.name.partition(".")[0]: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and _is_dask(node)
        for alias in node.names
    }
    return [
        f"{name}:{node.lineno}: only pipeline/run.py may compute, not {ast.unparse(node.func)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _computes(node, dask_names)
    ]


def _is_dask(node: ast.Import | ast.ImportFrom) -> bool:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
    return any((name or "").partition(".")[0] == "dask" for name in names)


def _computes(node: ast.Call, dask_names: dict[str, str]) -> bool:
    """Tell whether a call computes, given what the module calls the names it has from Dask."""
    called, owner = _called(node), ""
    if isinstance(node.func, ast.Attribute):
        owner = ast.unparse(node.func.value).partition(".")[0]
    elif called in dask_names:
        called = dask_names[called]
    else:
        return False
    if called in COMPUTING:
        return True
    if called not in STORING or (called == "store" and owner and owner not in dask_names):
        return False
    return False not in _constants([key.value for key in node.keywords if key.arg == "compute"])


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _constants(nodes: list[ast.expr]) -> list[Any]:
    return [node.value for node in nodes if isinstance(node, ast.Constant)]


def test_modules_are_found() -> None:
    names = {name for name, _, _ in modules()}
    assert {"", "movie", "motion", "napari"} <= names


def test_arrows_point_down() -> None:
    top = frozenset(name.partition(".")[0] for name, _, _ in modules())
    found = [
        line
        for name, source, is_folder in modules()
        for line in arrow_violations(source, name, is_folder, known=top)
    ]
    assert found == []


def test_only_the_run_computes() -> None:
    found = [line for name, source, _ in modules() for line in computing_violations(source, name)]
    assert found == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("movie", "from napari_calcium.motion.correction import correct"),
        ("movie", "from napari_calcium import io"),
        ("motion.correction", "import napari_calcium.extraction.cnmf"),
        ("motion.correction", "from ..extraction import cnmf"),
        ("motion.correction", "def later():\n    from napari_calcium.pipeline import run"),
        ("deconvolution.oasis", "from napari_calcium.extraction import cnmf"),
        ("evaluation.snr", "from napari_calcium.deconvolution.oasis import deconvolve"),
        ("pipeline.run", "from napari_calcium.cli import app"),
        ("pipeline.worker", "from napari_calcium.napari import layers"),
        ("cli", "from napari_calcium.napari.layers import show"),
        ("napari.layers", "from napari_calcium.cli import main"),
        ("io.tiff", "import napari"),
        ("pipeline.run", "def f():\n    from qtpy.QtCore import QTimer"),
        ("cli", "import importlib\nimportlib.import_module('pyqtgraph')"),
        ("napari.layers", "import tensorflow as tf"),
        ("plotting", "import numpy"),
    ],
)
def test_a_planted_import_is_found(name: str, source: str) -> None:
    assert len(arrow_violations(source, name)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("extraction.temporal", "from napari_calcium.deconvolution.oasis import deconvolve"),
        ("motion.correction", "from . import shifts\nfrom ..movie import Movie"),
        ("pipeline.stages", "from napari_calcium.extraction.cnmf import extract"),
        ("cli", "from napari_calcium.pipeline.run import run\nfrom napari_calcium import demo"),
        ("napari.layers", "import napari\nfrom napari_calcium.pipeline.stages import STAGES"),
        ("movie", '"""Example.\n\n>>> import napari\n"""\nimport dask.array as da'),
        ("cli", "from napari_calcium import __version__"),
    ],
)
def test_an_arrow_that_points_down_is_allowed(name: str, source: str) -> None:
    assert arrow_violations(source, name) == []


def test_a_folder_resolves_its_relative_imports_from_itself() -> None:
    assert list(imported("from .shifts import apply", "motion", is_folder=True)) == [
        (1, "napari_calcium.motion.shifts.apply")
    ]


@pytest.mark.parametrize(
    "source",
    [
        "frames.mean(axis=0).compute()",
        "x = frames[0].persist()",
        "import dask\ndask.compute(a, b)",
        "from dask import compute\ncompute(a)",
        "from dask import compute as now, delayed\nnow(delayed(a))",
        "from dask.base import persist\npersist(a)",
        "import dask.array as da\nda.store(a, b)",
        "import dask.array as da\nda.store(a, b, compute=True)",
        "import dask.array as da\nda.to_zarr(a, 'a.zarr')",
        "frames.to_zarr('a.zarr')",
        "def f():\n    return delayed.compute(scheduler='threads')",
    ],
)
@pytest.mark.parametrize("name", ["movie", "motion.correction", "pipeline.stages"])
def test_a_planted_computation_is_found(name: str, source: str) -> None:
    assert len(computing_violations(source, name)) == 1
    assert computing_violations(source, "pipeline.run") == []


@pytest.mark.parametrize(
    "source",
    [
        "import dask.array as da\nda.store(a, b, compute=False)",
        "frames.to_zarr('a.zarr', compute=False)",
        "session.store(a)",
        "def compute(a):\n    return a\ncompute(1)",
        '"""Example.\n\n>>> frames.compute()\n"""',
    ],
)
def test_building_a_graph_is_allowed(source: str) -> None:
    assert computing_violations(source, "motion.correction") == []


WITHOUT_WINDOW = """
import importlib, sys

window, names = (set(text.split()) for text in sys.argv[1:])

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in window:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
for name in sorted(names):
    importlib.import_module(name)
assert not window & set(sys.modules)
"""


def _import_without_window(names: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_WINDOW, " ".join(WINDOW), " ".join(names)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_blocking_the_window_works() -> None:
    result = _import_without_window(["qtpy"])
    assert result.returncode == 1
    assert "ImportError: qtpy is blocked" in result.stderr


def test_everything_below_the_window_imports_without_it_and_says_nothing() -> None:
    names = [name for name, _, _ in modules()]
    below = [name for name in names if name.partition(".")[0] in BELOW | {""}]
    result = _import_without_window([".".join(filter(None, (PACKAGE, name))) for name in below])
    assert (result.stdout + result.stderr).splitlines()[-1:] == []
    assert result.returncode == 0


def test_the_command_line_imports_without_the_window() -> None:
    result = _import_without_window([f"{PACKAGE}.cli"])
    assert (result.stdout + result.stderr).splitlines()[-1:] == []
    assert result.returncode == 0
