"""The wheel: what a user installs holds all that is needed, and takes nothing from the source."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and unpacked."""
    built = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", built, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = built.glob("*.whl")
    folder = built / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def inside(installed: Path, code: str, cwd: Path) -> str:
    """Run Python that takes the package from the wheel, and asserts that it did."""
    check = f"""
    import sys
    sys.path.insert(0, {str(installed)!r})
    import napari_calcium
    assert napari_calcium.__file__.startswith({str(installed)!r}), napari_calcium.__file__
    """
    script = textwrap.dedent(check) + textwrap.dedent(code)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_sample_recording_opens_from_within(installed: Path, tmp_path: Path) -> None:
    said = inside(
        installed,
        """
        from napari_calcium.io.recording import open_recording
        from napari_calcium.io.sample import sample_recording, sample_truth
        from napari_calcium.truth import load_truth
        for path in (sample_recording(), sample_truth()):
            print(path)
        recording = open_recording([sample_recording()])
        print(recording.frames.shape, int(recording.frames[-1].max().compute()) > 0)
        print(load_truth(sample_truth()).n_cells)
        """,
        tmp_path,
    ).splitlines()
    assert [Path(line).is_relative_to(installed) for line in said[:2]] == [True, True]
    assert said[2:] == ["(800, 96, 128) True", "28"]


def test_the_manifest_is_the_one_at_the_top(installed: Path) -> None:
    manifest = installed / "napari_calcium_manifest" / "napari.yaml"
    assert manifest.read_bytes() == (ROOT / "napari.yaml").read_bytes()


def test_the_whole_package_is_in_it(installed: Path) -> None:
    source = ROOT / "src" / "napari_calcium"
    expected = {file.relative_to(source) for file in source.rglob("*.py")}
    package = installed / "napari_calcium"
    assert {file.relative_to(package) for file in package.rglob("*.py")} == expected
    assert (package / "py.typed").is_file()


def test_nothing_else_is_in_it(installed: Path) -> None:
    names = sorted(path.name for path in installed.iterdir() if path.suffix != ".dist-info")
    assert names == ["napari_calcium", "napari_calcium_manifest", "napari_calcium_sample_data"]
    assert sum(path.stat().st_size for path in installed.rglob("*.*")) < 20e6


def test_its_entry_points_exist(installed: Path, tmp_path: Path) -> None:
    (metadata,) = installed.glob("*.dist-info")
    entries = (metadata / "entry_points.txt").read_text("utf-8")
    assert "napari-calcium = napari_calcium.cli:main" in entries
    assert "napari-calcium = napari_calcium_manifest:napari.yaml" in entries
    code = "from napari_calcium.cli import main; sys.argv = ['napari-calcium', 'recipe']; main()"
    assert inside(installed, code, tmp_path).startswith("# napari-calcium recipe")
