"""The repository as a whole: what is installed, what is tracked, how it is set up."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LARGEST_FILE = 10 * 2**20
"""Bytes; what is larger belongs in a release or an archive, not in every clone."""

REGISTRIES = [
    ".".join(parts)
    for parts in [
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("anaconda", "org"),
        ("piwheels", "org"),
        ("npmjs", "org"),
    ]
]
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(work|root|home/\w+|Users/\w+)/")


def tracked() -> list[Path]:
    """Return the files that git has, or would take."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file()]


def text_of(path: Path) -> str:
    """Return the text of a file, and nothing for a binary one."""
    content = path.read_bytes()
    try:
        return "" if b"\0" in content else content.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def private_words(text: str) -> list[str]:
    """Return what names a package registry or a folder of one machine."""
    return [host for host in REGISTRIES if host in text] + [
        found.group() for found in MACHINE_PATH.finditer(text)
    ]


def test_the_installed_manifest_is_the_one_at_the_top() -> None:
    distribution = importlib.metadata.distribution(PROJECT["name"])
    installed = Path(str(distribution.locate_file("napari_calcium_manifest/napari.yaml")))
    same = installed.read_bytes() == (ROOT / "napari.yaml").read_bytes()
    assert same, "napari.yaml changed since the package was installed; run: make setup"


def test_the_manifest_has_the_name_of_the_distribution() -> None:
    manifest = (ROOT / "napari.yaml").read_text("utf-8")
    assert re.findall(r"^name: (\S+)$", manifest, re.M) == [PROJECT["name"]]


def test_the_version_is_the_same_everywhere() -> None:
    assert importlib.metadata.version(PROJECT["name"]) == PROJECT["version"]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert headings[0] == "Unreleased"
    assert headings[1:2] in ([], [PROJECT["version"]])


def test_the_license_is_the_declared_one() -> None:
    assert PROJECT["license"] == "BSD-3-Clause"
    assert text_of(ROOT / "LICENSE").startswith("BSD 3-Clause License")


def test_no_file_is_large() -> None:
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in tracked()}
    assert {name: size for name, size in sizes.items() if size > LARGEST_FILE} == {}


def test_no_text_names_a_registry_or_a_machine() -> None:
    found = {str(path.relative_to(ROOT)): private_words(text_of(path)) for path in tracked()}
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize(
    "text",
    [
        "see https://" + REGISTRIES[0] + "/project/dask",
        "/" + "work/main/movie.tif",
        "open('/" + "root/movie.tif')",
        "file:///" + "home/someone/x",
    ],
)
def test_a_planted_word_is_found(text: str) -> None:
    assert len(private_words(text)) == 1


@pytest.mark.parametrize("text", ["https://host.org/work/page", "~/work/x", "a/root/b", "network/"])
def test_other_words_are_not(text: str) -> None:
    assert private_words(text) == []


def test_continuous_integration_runs_make_test() -> None:
    lines = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert "set -euo pipefail" in lines
    assert [line for line in lines if line.startswith("make")] == ["make test"]


@pytest.mark.parametrize("name", ["run", "system-packages", "virtual-environment"])
def test_scripts_can_be_executed(name: str) -> None:
    assert os.access(ROOT / ".ci" / name, os.X_OK)


@pytest.mark.skipif(os.name == "nt", reason="a script for sh")
class TestSystemPackages:
    """The set-up of Debian packages, on a machine made of stubs."""

    @pytest.fixture
    def machine(self, tmp_path: Path) -> Path:
        stubs = {
            "uname": "echo Linux",
            "id": "echo 1000",
            "dpkg-query": 'case "$*" in *missing*) exit 1 ;; *) echo installed ;; esac',
            "apt-get": f'echo "$@" >> "{tmp_path}/apt-get.log"',
        }
        for name, body in stubs.items():
            self.replace(tmp_path, name, body)
        return tmp_path

    @staticmethod
    def replace(machine: Path, name: str, body: str) -> None:
        (machine / name).write_text(f"#!/bin/sh\n{body}\n", "utf-8")
        (machine / name).chmod(0o755)

    @staticmethod
    def run(machine: Path, packages: str) -> subprocess.CompletedProcess[str]:
        path = f"{machine}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [ROOT / ".ci" / "system-packages", "tests"],
            env={"PATH": path, "SYSTEM_PACKAGES": packages},
            capture_output=True,
            text=True,
            check=False,
        )

    def test_says_nothing_where_all_are_there(self, machine: Path) -> None:
        result = self.run(machine, "xvfb xauth")
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

    def test_says_what_to_type_to_who_is_not_root(self, machine: Path) -> None:
        result = self.run(machine, "xvfb missing-a missing-b")
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert "sudo apt-get install" in result.stderr
        assert result.stderr.endswith(" missing-a missing-b\n")
        assert not (machine / "apt-get.log").exists()

    def test_installs_what_is_missing_for_root(self, machine: Path) -> None:
        self.replace(machine, "id", "echo 0")
        assert self.run(machine, "xvfb missing-a").returncode == 0
        update, install = (machine / "apt-get.log").read_text("utf-8").splitlines()
        assert update.startswith("update")
        assert install.startswith("install -y")
        assert install.endswith(" --no-install-recommends missing-a")

    def test_fails_in_one_line_where_the_installation_fails(self, machine: Path) -> None:
        self.replace(machine, "id", "echo 0")
        self.replace(machine, "apt-get", "exit 100")
        result = self.run(machine, "missing-a")
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1

    def test_does_nothing_elsewhere(self, machine: Path) -> None:
        self.replace(machine, "uname", "echo Darwin")
        assert self.run(machine, "missing-a").returncode == 0
