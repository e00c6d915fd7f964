"""Tests that import TensorFlow run in a process without windows: with OpenGL it crashes.

That is one test, of minutes, and the first, so that other processes have the others meanwhile.
"""

from __future__ import annotations

from pathlib import Path

import pytest

NETWORKS = "test_networks.py"
WINDOWS = Path(__file__).parent / "napari"
MARK = "tensorflow"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{MARK}: imports TensorFlow; beside tests of windows it is left to {NETWORKS}",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    networks = [item for item in items if item.get_closest_marker(MARK)]
    if networks and any(item.path.is_relative_to(WINDOWS) for item in items):
        config.hook.pytest_deselected(items=networks)
        items[:] = [item for item in items if item not in set(networks)]
    items.sort(key=lambda item: item.path.name != NETWORKS)
