"""Runs the tests that import TensorFlow in a process of their own: see conftest.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_networks_in_a_process_of_their_own(request: pytest.FixtureRequest) -> None:
    """All of them, where tests of windows are run too; else they have been run already."""
    windows = Path(__file__).parent / "napari"
    if not any(item.path.is_relative_to(windows) for item in request.session.items):
        pytest.skip("without tests of windows, those of networks run with the others")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "tensorflow", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [*command, "tests/evaluation", "tests/pipeline", "tests/spikes"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-2000:]
    assert " passed" in ended.stdout
    assert "skipped" not in ended.stdout
