"""The command line, as a person or a script uses it."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
import typer.main
import zarr
from numpy.typing import NDArray

from napari_calcium.activity.movies import detrended_movie, dff_movie
from napari_calcium.cli import app, main
from napari_calcium.io.recording import open_recording
from napari_calcium.io.session import Session
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.stages import STAGES
from napari_calcium.simulation import SimulationParameters, simulate
from napari_calcium.truth import load_truth

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data" / "two_photon_real"
NAMES = [stage.name for stage in STAGES]
FITTING = ["--set", "motion_correction.max_shift=6", "--set", "source_extraction.cell_radius=4"]
"""Options that suit the small movie."""


class Answer(NamedTuple):
    """What a command left: its exit status and what it wrote."""

    status: int
    out: str
    err: str


Cli = Callable[..., Answer]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Call `main` as the shell does."""

    def call(*arguments: Any) -> Answer:
        monkeypatch.setattr(sys, "argv", ["napari-calcium", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        return Answer(status, *capsys.readouterr())

    return call


def shell(*arguments: Any) -> Answer:
    """Run the command in a process of its own."""
    code = "from napari_calcium.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return Answer(ended.returncode, ended.stdout, ended.stderr)


def _cut_off(*_: object) -> None:
    raise RuntimeError("cut off")


def is_one_sentence(answer: Answer) -> bool:
    """Whether a command failed as a user's mistake does: one line of error and no result.

    What the import understood of the recording may have been said before.
    """
    return (
        answer.status == 2
        and re.fullmatch(r"((TIFF|Zarr), \d+ frames of [^\n]+\n)?", answer.out) is not None
        and re.fullmatch(r"napari-calcium: [^\n]+\n", answer.err) is not None
    )


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint16]:
    """Two cells in 37 x 53 px that move."""
    parameters = SimulationParameters(
        height=37, width=53, n_frames=150, frame_rate=10.0, n_cells=3, cell_radius=4.0,
        n_out_of_focus=0, motion_rigid=2.0, photons=40.0, spike_amplitude=1.5, silent_fraction=0.0,
    )  # fmt: skip
    values: NDArray[np.uint16] = simulate(parameters).movie.frames.compute()
    return values


@pytest.fixture(scope="module")
def movie(frames: NDArray[np.uint16], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "movie.tif"
    tifffile.imwrite(path, frames)
    return path


@pytest.fixture(scope="module")
def finished(movie: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session made by the command; not to be changed."""
    path = tmp_path_factory.mktemp("finished") / "s.zarr"
    answer = shell("run", movie, "--session", path, "--frame-rate", 10, "--pixel-size", 2, *FITTING)
    assert answer.status == 0, answer.err
    assert answer.err == ""  # no bars where nobody looks
    return path


def pictures(folder: Path) -> dict[str, Path]:
    """Write what is no recording, or none that can be used; return its paths."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 900, (30, 37, 53), dtype="uint16")
    movies = {
        "good.tif": noise,
        "other_size.tif": noise[:, :, :50],
        "tiny.tif": noise[:, :6, :7],
        "one_frame.tif": noise[0],
        "constant.tif": np.full_like(noise, 3),
        "float.tif": noise / 900,
    }
    for name, values in movies.items():
        tifffile.imwrite(folder / name, values, photometric="minisblack")
    colours = rng.integers(0, 255, (37, 53, 3), dtype="uint8")
    tifffile.imwrite(folder / "colours.tif", colours, photometric="rgb")
    (folder / "text.tif").write_text("not an image")
    (folder / "notes.docx").write_text("not an image")
    (folder / "empty").mkdir()
    return {path.name: path for path in folder.iterdir()}


RATE = ["--frame-rate", "10"]
MISTAKES = {
    "no such file": (["none.tif"], RATE, r"none\.tif does not exist; check the path"),
    "an empty folder": (["empty"], RATE, r"empty has no files that end in \.tif"),
    "not an image": (["text.tif"], RATE, r"text\.tif .*TIFF"),
    "of an unknown kind": (["notes.docx"], RATE, r"notes\.docx is of an unknown kind; known are"),
    "frames of two sizes": (
        ["good.tif", "other_size.tif"],
        RATE,
        r"other_size\.tif has frames of 37 x 50 px but .*good\.tif of 37 x 53; open only",
    ),
    "a colour picture": (["colours.tif"], RATE, r"colours\.tif .*; "),
    "real numbers": (["float.tif"], RATE, r"float\.tif has pixels of type float64; save it as"),
    "one frame": (["one_frame.tif"], RATE, r"one_frame\.tif is of 1 x 37 x 53 .* at least 2 fr"),
    "one value": (["constant.tif"], RATE, r"every pixel of the movie is 3; check"),
    "a field below the motion": (
        ["tiny.tif"],
        [*RATE, "--set", "source_extraction.cell_radius=2"],
        r"motion_correction\.max_shift is 15 px .* field is 6 x 7 px;",
    ),
    "a field below a cell": (
        ["tiny.tif"],
        RATE,
        r"source_extraction\.cell_radius is 5 px but the field is only 6 x 7 px; give a smaller",
    ),
    "no frame rate": (["good.tif"], [], r"the frame rate is not given; add --frame-rate HZ"),
    "frame rate 0": (["good.tif"], ["--frame-rate", "0"], r"import\.frame_rate is 0 Hz; it must"),
    "a negative pixel size": (
        ["good.tif"],
        [*RATE, "--pixel-size", "-1"],
        r"import\.pixel_size is -1 um; it must be at least 0 um",
    ),
    "a misspelt key": (
        ["good.tif"],
        [*RATE, "--set", "motion_correction.max_shfit=3"],
        r"unknown parameter 'motion_correction\.max_shfit'; did you mean 'max_shift'\?",
    ),
    "a misspelt stage": (
        ["good.tif"],
        [*RATE, "--set", "motion.max_shift=3"],
        r"unknown stage 'motion'; ",
    ),
    "a key without its stage": (
        ["good.tif"],
        [*RATE, "--set", "max_shift=3"],
        r"'max_shift' is not a parameter; write stage\.key",
    ),
    "a key without a value": (
        ["good.tif"],
        [*RATE, "--set", "dff.window"],
        r"--set dff\.window has no value; write --set dff\.window=VALUE",
    ),
    "a value of another type": (
        ["good.tif"],
        [*RATE, "--set", "motion_correction.max_shift=far"],
        r"motion_correction\.max_shift is 'far'; it must be a whole number in px",
    ),
    "an unknown last stage": (
        ["good.tif"],
        [*RATE, "--until", "dfff"],
        r"unknown stage 'dfff'; did you mean 'dff'\?",
    ),
    "no workers": (["good.tif"], [*RATE, "--workers", "0"], r"workers is 0; it must be at least"),
    "an unknown scheduler": (
        ["good.tif"],
        [*RATE, "--scheduler", "slurm"],
        r"scheduler is 'slurm'; it must be one of threads, processes, synchronous",
    ),
    "no such classifier": (
        ["good.tif"],
        [*RATE, "--set", "component_evaluation.classifier_file=none.keras"],
        r"component_evaluation is to read '\S+none\.keras' but there is no such file; check",
    ),
    "no classifier": (
        ["good.tif"],
        [*RATE, "--set", f"component_evaluation.classifier_file={__file__}"],
        r"component_evaluation\.classifier_file \S+ is no classifier .* give a \.keras file",
    ),
    "no such recipe": (
        ["good.tif"],
        [*RATE, "--recipe", "none.toml"],
        r"recipe none\.toml cannot be read \(No such file",
    ),
}


class TestMistakes:
    """Exit status 2, one sentence, and no session left."""

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_is_a_sentence(self, mistake: str, cli: Cli, tmp_path: Path) -> None:
        names, options, said = MISTAKES[mistake]
        (tmp_path / "in").mkdir()
        pictures(tmp_path / "in")
        sources = [tmp_path / "in" / name for name in names]
        answer = cli("run", *sources, "--session", tmp_path / "s.zarr", *options)
        assert is_one_sentence(answer), answer
        assert re.search(said, answer.err), answer.err
        assert [path.name for path in tmp_path.iterdir()] == ["in"]

    @pytest.mark.parametrize("mistake", ["no such file", "one value"])
    def test_in_a_process_of_its_own(self, mistake: str, tmp_path: Path) -> None:
        names, options, said = MISTAKES[mistake]
        (tmp_path / "in").mkdir()
        pictures(tmp_path / "in")
        sources = [tmp_path / "in" / name for name in names]
        answer = shell("run", *sources, "--session", tmp_path / "s.zarr", *options)
        assert is_one_sentence(answer), answer
        assert re.search(said, answer.err)
        assert [path.name for path in tmp_path.iterdir()] == ["in"]

    def test_a_misspelt_key_in_a_recipe(self, movie: Path, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "r.toml").write_text("[import]\nframe_rate = 9\n[dff]\nwindwo = 3\n")
        answer = cli("run", movie, "--session", tmp_path / "s", "--recipe", tmp_path / "r.toml")
        assert is_one_sentence(answer), answer
        assert "unknown parameter 'dff.windwo'; did you mean 'window'?" in answer.err

    def test_a_recipe_without_the_frame_rate(self, movie: Path, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "r.toml").write_text("[dff]\nwindow = 3\n")
        answer = cli("run", movie, "--session", tmp_path / "s", "--recipe", tmp_path / "r.toml")
        assert is_one_sentence(answer), answer
        assert "add --frame-rate HZ" in answer.err

    @pytest.mark.parametrize(
        "arguments",
        [
            ["info", "none.tif"],
            ["export", "none.zarr", "out.csv"],
            ["apply-shifts", "none.zarr", "none.tif", "--output", "out.tif"],
            ["recipe", "none.zarr"],
            ["simulate", "out.tif", "--set", "n_frame=3"],
            ["simulate", "out.tif", "--set", "n_frames=1"],
            ["train-classifier", "out.h5"],
            ["train-classifier", "out.keras", "--masks", "none.npz"],
            ["train-classifier", "out.keras", "--movies", "0"],
            ["run", "--session", "none.zarr", "--frame-rate", "3"],
        ],
    )
    def test_of_every_command(
        self, arguments: list[str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        answer = cli(*arguments)
        assert is_one_sentence(answer), answer
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "arguments",
        [
            ["run", "movie.tif"],
            ["run", "movie.tif", "--session", "s.zarr", "--frame-rate", "fast"],
            ["run", "movie.tif", "--session", "s.zarr", "--frames-rate", "3"],
            ["export", "s.zarr", "out.mat", "--format", "mat"],
            ["reprot"],
        ],
    )
    def test_of_the_form_exits_2_too(
        self, arguments: list[str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        answer = cli(*arguments)
        assert (answer.status, answer.out) == (2, "")
        assert "Usage: napari-calcium" in answer.err
        assert "Traceback" not in answer.err
        assert list(tmp_path.iterdir()) == []

    def test_a_bug_keeps_its_traceback(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(_: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("napari_calcium.cli.open_recording", broken)
        with pytest.raises(ZeroDivisionError):
            cli("info", "movie.tif")


class TestInfo:
    """What the import understands."""

    def test_for_a_person(self, movie: Path, cli: Cli) -> None:
        answer = cli("info", movie)
        assert (answer.status, answer.err) == (0, "")
        lines = answer.out.splitlines()
        for line in (
            "kind: TIFF",
            "files: 1, in this order",
            f"  1. {movie} (150 frames)",
            "n_frames: 150",
            "field: 37 x 53 px (y, x)",
            "dtype: uint16",
            "frame_rate: not found",
        ):
            assert line in lines

    def test_of_volumes(self, cli: Cli, tmp_path: Path) -> None:
        volumes = zarr.create_array(tmp_path / "v.zarr", shape=(4, 3, 37, 53), dtype="uint16")
        volumes[:] = 1
        assert "field: 3 x 37 x 53 px (z, y, x)" in cli("info", tmp_path / "v.zarr").out

    def test_for_a_program(self, movie: Path, cli: Cli) -> None:
        answer = cli("info", "--json", movie)
        assert json.loads(answer.out) == open_recording([movie]).summary()

    def test_files_in_natural_order(
        self, frames: NDArray[np.uint16], cli: Cli, tmp_path: Path
    ) -> None:
        for number in (10, 2, 1):
            tifffile.imwrite(tmp_path / f"part {number}.tif", frames[:number])
        answer = cli("info", tmp_path, "--json")
        files = json.loads(answer.out)["files"]
        assert [Path(file["path"]).name for file in files] == [
            "part 1.tif",
            "part 2.tif",
            "part 10.tif",
        ]
        assert [file["n_frames"] for file in files] == [1, 2, 10]

    def test_notes_are_told(self, movie: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        class Noted:
            def summary(self) -> dict[str, Any]:
                return {"notes": ["the last frame is incomplete", "another"]}

        monkeypatch.setattr("napari_calcium.cli.open_recording", lambda _: Noted())
        assert cli("info", movie).out == "note: the last frame is incomplete\nnote: another\n"

    def test_no_frame_is_read(self, movie: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr("napari_calcium.io.tiff.TiffFrames.__getitem__")
        assert cli("info", movie).status == 0


class TestRun:
    """From a recording to a session."""

    def test_every_stage_is_there(self, finished: Path, frames: NDArray[np.uint16]) -> None:
        session = Session(finished)
        assert all(session.record(stage.group) for stage in STAGES)
        np.testing.assert_array_equal(session.read("movie/frames"), frames)
        assert (session.frame_rate, session.pixel_size) == (10.0, 2.0)
        recipe = Recipe.of_session(session)
        assert recipe.tables["motion_correction"]["max_shift"] == 6
        assert recipe.tables["source_extraction"]["cell_radius"] == 4.0

    def test_a_second_run_says_that_all_was_done(
        self, finished: Path, movie: Path, cli: Cli
    ) -> None:
        for sources in ([], [movie]):
            answer = cli("run", *sources, "--session", finished)
            assert answer.status == 0
            assert answer.out.count("was done") == len(STAGES)
            assert f"session: {finished}" in answer.out

    def test_how_well_motion_was_corrected_is_told_in_a_line(
        self, finished: Path, cli: Cli
    ) -> None:
        out = cli("run", "--session", finished, "--until", "motion_correction").out
        (line,) = [line for line in out.splitlines() if line.startswith("motion: ")]
        number = r"(\d+\.\d\d)"
        found = re.fullmatch(
            rf"motion: crispness {number} -> {number}, residual flow {number} -> {number} px, "
            rf"median correlation {number} -> {number}",
            line,
        )
        assert found, line
        crispness, flow, correlation = np.array(found.groups(), float).reshape(3, 2)
        assert crispness[1] > crispness[0]
        assert flow[1] < flow[0]
        assert correlation[1] > correlation[0]
        assert "motion:" not in cli("run", "--session", finished, "--until", "import").out

    def test_step_by_step(
        self, finished: Path, movie: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "two words" / "s.zarr"
        first = cli("run", movie, "--session", path, "--until", "import", *RATE, *FITTING)
        assert (first.status, first.out.count("was done")) == (0, 0)
        assert "Import" in first.out
        assert "Motion" not in first.out
        second = cli("run", "--session", path, "--until", "summary_images", *FITTING)
        assert second.out.count("was done") == 1
        third = cli("run", "--session", path, "--set", "source_extraction.cell_radius=4")
        assert third.out.count("was done") == 3
        for name in ("dff/traces", "source_extraction/footprints/data"):
            np.testing.assert_array_equal(Session(path).read(name), Session(finished).read(name))

    def test_a_recording_marked_one_photon_is_detrended_by_name(
        self, finished: Path, cli: Cli, tmp_path: Path
    ) -> None:
        """And needs no import for that: what is printed never says dF/F."""
        path = tmp_path / "s.zarr"
        shutil.copytree(finished, path)
        answer = cli("run", "--session", path, "--modality", "one-photon")
        assert (answer.status, answer.out.count("was done")) == (0, len(STAGES) - 3)
        assert "this one is marked one-photon; set classifier to on" in answer.out
        assert "Detrending" in answer.out
        assert "Detrended traces (counts); cells: " in answer.out
        exported = cli("export", path, tmp_path / "tables", "--include-rejected")
        assert "dF/F" not in answer.out + exported.out
        header = (tmp_path / "tables" / "traces.csv").read_text().splitlines()[0]
        assert header.split(",")[1].endswith("detrended (counts)")
        wrong = cli("run", "--session", path, "--modality", "three-photon")
        assert is_one_sentence(wrong)
        assert "it must be one of 'two-photon', 'one-photon'" in wrong.err

    @pytest.mark.parametrize("options", [["--workers", 1], ["--scheduler", "synchronous"]])
    def test_workers_and_schedulers(
        self, options: list[Any], finished: Path, movie: Path, cli: Cli, tmp_path: Path
    ) -> None:
        path = tmp_path / "s.zarr"
        answer = cli("run", movie, "--session", path, *RATE, "--pixel-size", 2, *FITTING, *options)
        assert answer.status == 0
        traces = Session(path).read("dff/traces")
        np.testing.assert_array_equal(traces, Session(finished).read("dff/traces"))

    def test_options_win_over_the_recipe(self, movie: Path, cli: Cli, tmp_path: Path) -> None:
        written = tmp_path / "r.toml"
        written.write_text("[import]\nframe_rate = 9\n[motion_correction]\nmax_shift = 4\n")
        path = tmp_path / "s.zarr"
        options = ["--frame-rate", 8, "--set", "motion_correction.high_pass=9"]
        until = ["--until", "motion_correction"]
        cli("run", movie, "--session", path, "--recipe", written, *options, *until)
        tables = Recipe.of_session(Session(path)).tables
        assert tables["import"]["frame_rate"] == 8.0
        assert tables["motion_correction"]["max_shift"] == 4
        assert tables["motion_correction"]["high_pass"] == 9.0

    def test_a_recipe_that_is_given_replaces_the_sessions_own(
        self, movie: Path, cli: Cli, tmp_path: Path
    ) -> None:
        path, written = tmp_path / "s.zarr", tmp_path / "r.toml"
        until = ["--until", "motion_correction"]
        cli("run", movie, "--session", path, *RATE, *FITTING, *until)
        written.write_text("[import]\nframe_rate = 10\n")
        answer = cli("run", "--session", path, "--recipe", written, *until)
        assert answer.out.count("was done") == 1
        assert Recipe.of_session(Session(path)).tables["motion_correction"]["max_shift"] == 15

    def test_a_recipe_without_an_import_keeps_the_sessions(
        self, movie: Path, cli: Cli, tmp_path: Path
    ) -> None:
        path, written = tmp_path / "s.zarr", tmp_path / "r.toml"
        until = ["--until", "motion_correction"]
        cli("run", movie, "--session", path, *RATE, *FITTING, *until)
        written.write_text("[motion_correction]\nmax_shift = 3\n")
        answer = cli("run", "--session", path, "--recipe", written, *until)
        assert (answer.status, answer.out.count("was done")) == (0, 1)
        assert Recipe.of_session(Session(path)).tables["motion_correction"]["max_shift"] == 3

    def test_what_was_asked_of_a_run_that_was_cut_off_is_asked_again(
        self, movie: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, until = tmp_path / "s.zarr", ["--until", "motion_correction"]
        cli("run", movie, "--session", path, *RATE, *FITTING, *until)
        changed = ["--set", "motion_correction.max_shift=3"]
        with monkeypatch.context() as cut:
            cut.setattr("napari_calcium.pipeline.run._compute", _cut_off)
            with pytest.raises(RuntimeError, match="cut off"):
                cli("run", "--session", path, *changed, *until)
        refused = cli("run", "--session", path, "--frame-rate", 99, *until)
        assert "name the recording to import it" in refused.err
        assert cli("run", "--session", path, *until).out.count("was done") == 1
        tables = Recipe.of_session(Session(path)).tables
        assert tables["motion_correction"]["max_shift"] == 3

    def test_a_zarr_movie(self, frames: NDArray[np.uint16], cli: Cli, tmp_path: Path) -> None:
        zarr.create_array(tmp_path / "movie.zarr", data=frames, chunks=(40, 20, 30))
        path = tmp_path / "s.zarr"
        cli("run", tmp_path / "movie.zarr", "--session", path, *RATE, "--until", "import")
        np.testing.assert_array_equal(Session(path).read("movie/frames"), frames)

    @pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
    def test_bars_are_for_a_terminal(self, movie: Path, tmp_path: Path) -> None:
        import pty

        ours, theirs = pty.openpty()
        code = "from napari_calcium.cli import main; main()"
        command = [sys.executable, "-c", code, "run", movie, "--session", tmp_path / "s.zarr"]
        ended = subprocess.run(
            [*command, *RATE, "--until", "import"],
            stdout=subprocess.PIPE,
            stderr=theirs,
            check=False,
        )
        os.close(theirs)
        assert ended.returncode == 0
        assert "Import" in os.read(ours, 2**16).decode()
        os.close(ours)


class TestRecipe:
    """Recipes on paper."""

    def test_the_default_is_accepted_once_the_rate_is_filled_in(
        self, movie: Path, cli: Cli, tmp_path: Path
    ) -> None:
        text = cli("recipe").out
        assert list(tomllib.loads(text)) == NAMES
        (needed,) = re.findall(r"^# (\w+) = \(needed, Hz\)$", text, re.M)
        written = tmp_path / "r.toml"
        written.write_text(text.replace(f"# {needed} = (needed, Hz)", f"{needed} = 10"))
        path = tmp_path / "s.zarr"
        until = ["--until", "motion_correction"]
        answer = cli("run", movie, "--session", path, "--recipe", written, *until)
        assert answer.status == 0, answer.err

    def test_that_of_a_session_repeats_it(
        self, finished: Path, movie: Path, cli: Cli, tmp_path: Path
    ) -> None:
        written = tmp_path / "r.toml"
        written.write_text(cli("recipe", finished).out)
        path = tmp_path / "s.zarr"
        assert cli("run", movie, "--session", path, "--recipe", written).status == 0
        assert Recipe.of_session(Session(path)) == Recipe.of_session(Session(finished))
        for name in ("dff/traces", "motion_correction/frames"):
            np.testing.assert_array_equal(Session(path).read(name), Session(finished).read(name))


class TestExport:
    """Traces for other programs."""

    @pytest.mark.parametrize(
        ("kind", "unit"),
        [
            (None, "fraction"),
            ("raw", "counts"),
            ("denoised", "counts"),
            ("deconvolved", "counts/frame"),
            ("f0", "counts"),
        ],
    )
    def test_values_are_those_of_the_session(
        self, kind: str | None, unit: str, finished: Path, cli: Cli, tmp_path: Path
    ) -> None:
        options = ["--kind", kind] if kind else []
        answer = cli("export", finished, tmp_path / "t.csv", "--format", "csv", *options)
        session = Session(finished)
        accepted = session.quality().accepted
        assert accepted.any()
        name = kind or "dff"
        rates = f"{tmp_path / 't_spikes.csv'}: spike_rate of {accepted.sum()} cells"
        assert answer.out.splitlines() == [
            f"{tmp_path / 't.csv'}: {name} of {accepted.sum()} cells",
            *([] if kind else [rates]),
            f"{tmp_path / 't_cells.csv'}: scores of {len(accepted)} cells",
            f"{tmp_path / 't_shifts.csv'}: shifts of 150 frames",
            f"{tmp_path / 't_shifts_piecewise.csv'}: shifts of 1 patches",
        ]
        cells = session.components()
        traces = {
            "dff": session.read("dff/traces"),
            "raw": cells.traces + cells.residuals,
            "denoised": cells.traces,
            "deconvolved": cells.deconvolved,
            "f0": session.read("dff/baseline"),
        }[name]
        with (tmp_path / "t.csv").open(newline="") as file:
            header, *rows = list(csv.reader(file))
        identities = cells.cell_id[accepted]
        columns = [f"cell_{identity} {name} ({unit})" for identity in identities]
        assert header == ["time (s)", *columns]
        values = np.array(rows, float)
        np.testing.assert_allclose(values[:, 0], np.arange(150) / 10)
        np.testing.assert_allclose(values[:, 1:].T, traces[accepted], rtol=5e-6)

    def test_rejected_cells_are_asked_for(
        self, finished: Path, movie: Path, cli: Cli, tmp_path: Path
    ) -> None:
        path = tmp_path / "s.zarr"
        strict = ["--set", "component_evaluation.snr_upper=1e9",
                  "--set", "component_evaluation.correlation_upper=1",
                  "--set", "component_evaluation.cnn_upper=1"]  # fmt: skip
        cli("run", movie, "--session", path, *RATE, *FITTING, *strict)
        n_cells = Session(path).components().n_cells
        assert n_cells > 0
        few = cli("export", path, tmp_path / "few.csv").out
        all_ = cli("export", path, tmp_path / "all.csv", "--include-rejected").out
        assert few.startswith(f"{tmp_path / 'few.csv'}: dff of 0 cells\n")
        assert all_.startswith(f"{tmp_path / 'all.csv'}: dff of {n_cells} cells\n")

    def test_into_a_folder(self, finished: Path, cli: Cli, tmp_path: Path) -> None:
        for folder in (tmp_path / "new", tmp_path):
            answer = cli("export", finished, folder)
            assert answer.status == 0
            names = ["cells.csv", "shifts.csv", "shifts_piecewise.csv", "spikes.csv", "traces.csv"]
            assert sorted(path.name for path in folder.glob("*.csv")) == names
        with (tmp_path / "shifts.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        rigid = Session(finished).read("motion_correction/shifts_rigid")
        for axis, name in enumerate(("shift_y_px", "shift_x_px")):
            found = np.array([row[name] for row in rows], np.float32)
            np.testing.assert_array_equal(found, rigid[:, axis])

    def test_of_motion_correction_alone(self, movie: Path, cli: Cli, tmp_path: Path) -> None:
        path = tmp_path / "s.zarr"
        rigid = [*FITTING, "--set", "motion_correction.method=rigid"]
        cli("run", movie, "--session", path, *RATE, *rigid, "--until", "motion_correction")
        answer = cli("export", path, tmp_path / "t.csv")
        assert (answer.status, answer.err) == (0, "")
        assert answer.out == f"{tmp_path / 't_shifts.csv'}: shifts of 150 frames\n"
        assert [file.name for file in tmp_path.glob("*.csv")] == ["t_shifts.csv"]
        asked = cli("export", path, tmp_path / "t.csv", "--kind", "dff")
        assert is_one_sentence(asked)
        assert "has no dff; run dff first" in asked.err

    def test_a_stage_that_has_not_run(self, movie: Path, cli: Cli, tmp_path: Path) -> None:
        path = tmp_path / "s.zarr"
        cli("run", movie, "--session", path, *RATE, "--until", "import")
        answer = cli("export", path, tmp_path / "t.csv")
        assert is_one_sentence(answer)
        assert "has no dff; run dff first" in answer.err
        assert not (tmp_path / "t.csv").exists()

    def test_an_unknown_kind(self, finished: Path, cli: Cli, tmp_path: Path) -> None:
        answer = cli("export", finished, tmp_path / "t.csv", "--kind", "spikes")
        assert is_one_sentence(answer)
        assert "must be one of dff, detrended, raw, denoised" in answer.err

    def test_all_kinds_are_tables_of_their_own(
        self, finished: Path, cli: Cli, tmp_path: Path
    ) -> None:
        kinds = ["dff", "raw", "denoised", "deconvolved", "f0", "spike_rate"]
        for destination, name in ((tmp_path / "folder", "traces"), (tmp_path / "t.csv", "t")):
            answer = cli("export", finished, destination, "--kind", "all")
            assert (answer.status, answer.err) == (0, "")
            folder = destination if name == "traces" else tmp_path
            for kind, line in zip(kinds, answer.out.splitlines(), strict=False):
                path = folder / f"{name}_{kind}.csv"
                assert line.startswith(f"{path}: {kind} of ")
                header = path.read_text().splitlines()[0].split(",")
                assert all(f" {kind} (" in column for column in header[1:])
            assert not (folder / f"{name}.csv").exists()

    def test_detrended_traces_are_called_so(self, finished: Path, cli: Cli, tmp_path: Path) -> None:
        path = tmp_path / "s.zarr"
        shutil.copytree(finished, path)
        zarr.open_group(path, path="dff", mode="r+").attrs["kind"] = "detrended"
        answer = cli("export", path, tmp_path / "t.csv")
        assert answer.out.startswith(f"{tmp_path / 't.csv'}: detrended of ")
        assert "cell_" in (tmp_path / "t.csv").read_text().splitlines()[0]
        assert "dff" not in (tmp_path / "t.csv").read_text()
        refused = cli("export", path, tmp_path / "d.csv", "--kind", "dff")
        assert is_one_sentence(refused)
        assert "export --kind detrended" in refused.err
        assert cli("export", path, tmp_path / "all", "--kind", "all").status == 0
        assert (tmp_path / "all" / "traces_detrended.csv").exists()


@pytest.fixture(scope="module")
def cropped(movie: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of all stages whose movie was cut to what every frame saw; not to be changed."""
    path = tmp_path_factory.mktemp("cropped") / "s.zarr"
    borders = ["--set", "motion_correction.borders=crop"]
    answer = shell("run", movie, "--session", path, *RATE, *FITTING, *borders)
    assert answer.status == 0, answer.err
    return path


def test_a_whole_analysis_of_what_every_frame_saw(cropped: Path, cli: Cli, tmp_path: Path) -> None:
    session = Session(cropped)
    field = session.movie("motion_correction/frames").field
    assert field[0] < 37
    assert field[1] < 53
    assert session.components().shape == field
    assert cli("export", cropped, tmp_path).status == 0


class TestApplyShifts:
    """Another channel of the same recording."""

    def red(self, frames: NDArray[Any], folder: Path, name: str = "red.tif") -> Path:
        tifffile.imwrite(folder / name, frames)
        return folder / name

    @pytest.mark.parametrize("name", ["out.tif", "out.zarr", "new/out.TIFF"])
    def test_the_recording_itself_gives_the_corrected_movie(
        self, name: str, finished: Path, movie: Path, cli: Cli, tmp_path: Path
    ) -> None:
        output = tmp_path / name
        answer = cli("apply-shifts", finished, movie, "--output", output, "--workers", 2)
        assert (answer.status, answer.err) == (0, "")
        assert answer.out.splitlines()[-1] == f"{output}: 150 frames of 37 x 53 px"
        written = open_recording([output])
        assert written.frame_rate == pytest.approx(10.0)
        expected = Session(finished).read("motion_correction/frames")
        np.testing.assert_array_equal(written.frames.compute(), expected)

    def test_another_channel_of_two_files(
        self, finished: Path, frames: NDArray[np.uint16], cli: Cli, tmp_path: Path
    ) -> None:
        """Twice as bright, it is moved as the first; 1 count of each is rounding."""
        parts = [self.red(2 * part, tmp_path, f"red_{number}.tif")
                 for number, part in enumerate((frames[:70], frames[70:]))]  # fmt: skip
        answer = cli("apply-shifts", finished, *parts, "--output", tmp_path / "out.tif")
        assert answer.status == 0, answer.err
        found = tifffile.imread(tmp_path / "out.tif").astype(int)
        expected = 2 * Session(finished).read("motion_correction/frames").astype(int)
        np.testing.assert_allclose(found, expected, atol=1)

    def test_a_part_of_the_field(
        self, finished: Path, frames: NDArray[np.uint16], cli: Cli, tmp_path: Path
    ) -> None:
        """Away from the borders of the part it is that part of the corrected movie."""
        part = self.red(frames[:, 4:34, 8:50], tmp_path)
        options = ["--output", tmp_path / "out.tif", "--crop", "4:34,8:50"]
        answer = cli("apply-shifts", finished, part, *options)
        assert answer.status == 0, answer.err
        expected = Session(finished).read("motion_correction/frames")[:, 4:34, 8:50]
        found = tifffile.imread(tmp_path / "out.tif")
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found[:, 6:-6, 6:-6], expected[:, 6:-6, 6:-6])

    def test_the_borders_are_those_of_the_session_or_as_given(
        self, cropped: Path, finished: Path, movie: Path, cli: Cli, tmp_path: Path
    ) -> None:
        same = cli("apply-shifts", cropped, movie, "--output", tmp_path / "same.tif")
        assert same.status == 0, same.err
        expected = Session(cropped).read("motion_correction/frames")
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "same.tif"), expected)
        options = ["--output", tmp_path / "whole.tif", "--borders", "nearest"]
        cli("apply-shifts", cropped, movie, *options)
        expected = Session(finished).read("motion_correction/frames")
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "whole.tif"), expected)

    @pytest.mark.parametrize(
        ("cut", "options", "said"),
        [
            (np.s_[:149], [], r"shifts are of 150 frames but the movie has 149; give the movie"),
            (
                np.s_[:, :30],
                [],
                r"source has a field of 30 x 53 px but the session of 37 x 53 px; say by --crop",
            ),
            (
                np.s_[:, :30],
                ["--crop", "0:31,0:53"],
                r"field of 30 x 53 px but the part of the session of 31 x 53 px; say by --crop",
            ),
            (np.s_[:], ["--crop", "0:38,0:53"], r"--crop is 0:38,0:53 but the session's field is"),
            (np.s_[:], ["--crop", "5:5,0:53"], r"--crop is 5:5,0:53 but the session's field is 37"),
            (np.s_[:], ["--crop", "all"], r"--crop is 'all'; write Y0:Y1,X0:X1, the first px and"),
            (np.s_[:], ["--output", "out.avi"], r"out\.avi is of an unknown kind; give a path tha"),
            (np.s_[:], ["--output", "red.tif"], r"red\.tif is the recording itself; give another"),
            (np.s_[:], ["--output", "old.zarr"], r"old\.zarr exists already; give another path"),
            (np.s_[:], ["--workers", "0"], r"workers is 0; it must be at least 1"),
        ],
    )
    def test_mistakes(
        self,
        cut: Any,
        options: list[str],
        said: str,
        finished: Path,
        frames: NDArray[np.uint16],
        cli: Cli,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        source = self.red(frames[cut], tmp_path)
        before = source.read_bytes()
        (tmp_path / "old.zarr").mkdir()
        answer = cli("apply-shifts", finished, source, "--output", "out.tif", *options)
        assert is_one_sentence(answer), answer
        assert re.search(said, answer.err), answer.err
        assert source.read_bytes() == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["old.zarr", "red.tif"]

    def test_a_session_whose_motion_was_not_corrected(
        self, movie: Path, cli: Cli, tmp_path: Path
    ) -> None:
        path = tmp_path / "s.zarr"
        cli("run", movie, "--session", path, "--until", "import", *RATE)
        answer = cli("apply-shifts", path, movie, "--output", tmp_path / "out.tif")
        assert is_one_sentence(answer), answer
        assert "has no motion_correction; run motion_correction first" in answer.err


class TestPropose:
    """Radius and patches, from the image or from an outline."""

    def test_from_one_cell_that_was_outlined(
        self, finished: Path, cli: Cli, tmp_path: Path
    ) -> None:
        """A square of 9 px has the area of a disc of 5.1 px; a pixel is 2 um."""
        square = np.zeros((37, 53), np.uint8)
        square[10:19, 30:39] = 1
        np.save(tmp_path / "cell.npy", square)
        answer = cli("propose", finished, "--outline", tmp_path / "cell.npy")
        assert (answer.status, answer.err) == (0, "")
        first, radius, *_ = answer.out.splitlines()
        assert re.match(r"Cells of (5\.\d|4\.9) px \((10\.\d|9\.\d) um\) radius\.", first)
        assert radius.startswith("--set source_extraction.cell_radius=")

    def test_what_it_prints_can_be_given(self, finished: Path, cli: Cli, tmp_path: Path) -> None:
        square = np.zeros((37, 53), np.uint8)
        square[10:17, 30:37] = 1
        np.save(tmp_path / "cell.npy", square)
        answer = cli("propose", finished, "--outline", tmp_path / "cell.npy")
        values = [value for line in answer.out.splitlines()[1:] for value in line.split()]
        copy = tmp_path / "s.zarr"
        shutil.copytree(finished, copy)
        assert cli("run", "--session", copy, *values, "--until", "source_extraction").status == 0
        used = Session(copy).record("source_extraction")
        assert used is not None
        assert used.parameters["cell_radius"] == pytest.approx(7 / np.sqrt(np.pi), rel=0.06)

    def test_mistakes(self, finished: Path, movie: Path, cli: Cli, tmp_path: Path) -> None:
        two = np.zeros((37, 53), np.uint8)
        two[3:9, 3:9], two[20:30, 20:30] = 1, 2
        np.save(tmp_path / "two.npy", two)
        answer = cli("propose", finished, "--outline", tmp_path / "two.npy")
        assert is_one_sentence(answer)
        assert "has 2 regions; outline one cell" in answer.err
        cli("run", movie, "--session", tmp_path / "s.zarr", "--until", "motion_correction", *RATE)
        answer = cli("propose", tmp_path / "s.zarr")
        assert is_one_sentence(answer)
        assert "run summary_images first" in answer.err


class TestReconstruct:
    """Movies that the result stands for."""

    def test_they_add_up_to_the_recording(self, finished: Path, cli: Cli, tmp_path: Path) -> None:
        """A C + b f and the residual are the corrected movie, to float32 of 1000 counts."""
        made = {}
        for kind in ("cells", "background", "model", "residual"):
            path = tmp_path / f"{kind}.tif"
            answer = cli("reconstruct", finished, path, "--kind", kind)
            assert (answer.status, answer.err) == (0, "")
            assert answer.out.splitlines()[-1] == f"{path}: 150 frames of 37 x 53 px"
            made[kind] = tifffile.imread(path)
            assert made[kind].dtype == np.float32
        np.testing.assert_allclose(made["cells"] + made["background"], made["model"], atol=1e-3)
        corrected = Session(finished).read("motion_correction/frames")
        np.testing.assert_allclose(made["model"] + made["residual"], corrected, atol=1e-3)
        assert made["cells"].std() > 0

    def test_relative_to_the_baseline(
        self, finished: Path, movie: Path, cli: Cli, tmp_path: Path
    ) -> None:
        """The lazy movies themselves, written; a one-photon recording has no dF/F."""
        corrected = Session(finished).movie("motion_correction/frames")
        for kind, make in (("dff", dff_movie), ("detrended", detrended_movie)):
            path = tmp_path / f"{kind}.tif"
            assert cli("reconstruct", finished, path, "--kind", kind).status == 0
            np.testing.assert_array_equal(tifffile.imread(path), make(corrected).compute())
        until = ("--until", "motion_correction", "--modality", "one-photon", *RATE)
        cli("run", movie, "--session", tmp_path / "one.zarr", *until)
        answer = cli("reconstruct", tmp_path / "one.zarr", tmp_path / "x.tif", "--kind", "dff")
        assert is_one_sentence(answer)
        assert "marked one-photon, which has no dF/F; ask for --kind detrended" in answer.err
        assert not (tmp_path / "x.tif").exists()

    def test_into_zarr_with_raw_traces(self, finished: Path, cli: Cli, tmp_path: Path) -> None:
        path = tmp_path / "residual.zarr"
        answer = cli("reconstruct", finished, path, "--kind", "residual", "--raw", "--workers", 2)
        assert (answer.status, answer.err) == (0, "")
        components = Session(finished).components()
        cells = components.footprints @ (components.traces + components.residuals)
        background = components.background.footprints @ components.background.traces
        corrected = Session(finished).read("motion_correction/frames").reshape(150, -1)
        written = zarr.open_array(path)[:].reshape(150, -1)
        np.testing.assert_allclose(written, corrected - (cells + background).T, atol=1e-3)

    def test_mistakes(self, finished: Path, movie: Path, cli: Cli, tmp_path: Path) -> None:
        answer = cli("reconstruct", finished, tmp_path / "out.avi")
        assert is_one_sentence(answer)
        assert "give a path that ends in .tif or .zarr" in answer.err
        cli("run", movie, "--session", tmp_path / "s.zarr", "--until", "motion_correction", *RATE)
        answer = cli("reconstruct", tmp_path / "s.zarr", tmp_path / "out.tif")
        assert is_one_sentence(answer)
        assert "run source_extraction first" in answer.err


class TestSeeds:
    """Cells that are known beforehand."""

    def test_from_a_labels_image_and_from_the_session_that_it_makes(
        self, finished: Path, cli: Cli, tmp_path: Path
    ) -> None:
        labels = np.zeros((37, 53), np.int32)
        labels[5:12, 30:38], labels[20:30, 8:17], labels[25:33, 40:47] = 7, 2, 4
        tifffile.imwrite(tmp_path / "seeds.tif", labels)
        made = []
        for name, seeds in (("first", tmp_path / "seeds.tif"), ("second", tmp_path / "first.zarr")):
            path = tmp_path / f"{name}.zarr"
            shutil.copytree(finished, path)
            values = ("initialization=seeds", f"seeds_file={seeds}", "refinements=0")
            options = [part for v in values for part in ("--set", f"source_extraction.{v}")]
            answer = cli("run", "--session", path, *options, "--until", "source_extraction")
            assert answer.status == 0, answer.err
            assert "3 cells of 3 candidates." in answer.out.splitlines()
            made.append(Session(path).footprints())
        inside = np.stack([labels.ravel() == label for label in (2, 4, 7)])
        assert (inside @ made[0].toarray()).argmax(axis=0).tolist() == [0, 1, 2]
        cosines = (made[0].T @ made[1]).toarray()
        assert np.diagonal(cosines).min() > 0.8

    def test_new_seeds_in_the_same_file_are_another_analysis(
        self, finished: Path, cli: Cli, tmp_path: Path
    ) -> None:
        path, seeds = tmp_path / "s.zarr", tmp_path / "seeds.npy"
        shutil.copytree(finished, path)
        options = ["--set", "source_extraction.initialization=seeds"]
        options += ["--set", f"source_extraction.seeds_file={seeds}"]
        labels = np.zeros((37, 53), np.int32)
        for count, place in ((1, np.s_[5:12, 30:38]), (2, np.s_[20:30, 8:17])):
            labels[place] = count
            np.save(seeds, labels)
            for said in (f"{count} cell", "was done"):
                command = ("run", "--session", path, *options, "--until", "source_extraction")
                assert said in cli(*command).out
            assert Session(path).components().n_cells == count

    def test_mistakes(self, finished: Path, cli: Cli, tmp_path: Path) -> None:
        np.save(tmp_path / "small.npy", np.ones((9, 9), int))
        path = tmp_path / "s.zarr"
        shutil.copytree(finished, path)
        for values, said in {
            ("initialization=seeds",): "seeds_file is not given",
            ("seeds_file=cells.zip",): "set initialization to 'seeds' or leave the file out",
            ("initialization=seeds", "seeds_file=no.zip"): "there is no such file",
            ("initialization=seeds", f"seeds_file={tmp_path / 'small.npy'}"): "37 x 53 px",
            ("initialization=seeds", f"seeds_file={path}"): "the session that it writes",
        }.items():
            options = [part for v in values for part in ("--set", f"source_extraction.{v}")]
            answer = cli("run", "--session", path, *options, "--until", "source_extraction")
            assert is_one_sentence(answer), answer
            assert said in answer.err

    def test_a_file_is_named_from_the_root(
        self, finished: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The session goes on from another folder, and never with another file of that name."""
        path, labels = tmp_path / "s.zarr", np.zeros((37, 53), np.int32)
        shutil.copytree(finished, path)
        labels[20:30, 8:17] = 1
        np.save(tmp_path / "seeds.npy", labels)
        monkeypatch.chdir(tmp_path)
        values = ("initialization=seeds", "seeds_file=seeds.npy")
        options = [part for v in values for part in ("--set", f"source_extraction.{v}")]
        assert cli("run", "--session", path, *options, "--until", "source_extraction").status == 0
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        answer = cli("run", "--session", path, "--set", "source_extraction.ar_order=0")
        assert answer.status == 0, answer.err
        used = Session(path).record("source_extraction")
        assert used is not None
        assert used.parameters["seeds_file"] == str(tmp_path / "seeds.npy")

    def test_unusable_seeds_are_refused_before_anything_is_computed(
        self, movie: Path, cli: Cli, tmp_path: Path
    ) -> None:
        np.save(tmp_path / "small.npy", np.ones((9, 9), int))
        values = ("initialization=seeds", f"seeds_file={tmp_path / 'small.npy'}")
        options = [part for v in values for part in ("--set", f"source_extraction.{v}")]
        answer = cli("run", movie, "--session", tmp_path / "s.zarr", *RATE, *options)
        assert is_one_sentence(answer), answer
        assert not (tmp_path / "s.zarr").exists()


def test_no_cells_is_said_with_the_reason(finished: Path, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    shutil.copytree(finished, path)
    answer = cli("run", "--session", path, "--set", "source_extraction.threshold=5000")
    assert answer.status == 0
    assert "No cells: no place reached the threshold of 5000 sd" in answer.out
    assert Session(path).read("dff/traces").shape == (0, 150)


class TestSimulate:
    """Movies with known truth."""

    @pytest.mark.parametrize("dtype", ["uint16", "int16"])
    def test_movie_and_truth_come_back(self, dtype: str, cli: Cli, tmp_path: Path) -> None:
        values = {"height": 37, "width": 53, "n_frames": 70, "n_cells": 2, "frame_rate": 12.5}
        given = {**values, "n_out_of_focus": 1, "dtype": dtype}
        options = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
        path = tmp_path / "new" / "sim 1.tif"
        answer = cli("simulate", path, *options)
        assert answer.status == 0, answer.err
        assert answer.out == f"{path}: 70 frames; truth in {tmp_path / 'new' / 'sim 1_truth.npz'}\n"
        expected = simulate(SimulationParameters.from_mapping(given))
        recording = open_recording([path])
        assert recording.frames.dtype == dtype
        assert recording.frame_rate == pytest.approx(12.5)
        np.testing.assert_array_equal(recording.frames.compute(), expected.movie.frames.compute())
        truth = load_truth(tmp_path / "new" / "sim 1_truth.npz")
        assert truth.shape == (37, 53)
        np.testing.assert_array_equal(truth.traces, expected.truth.traces)
        np.testing.assert_array_equal(truth.shifts, expected.truth.shifts)
        assert (truth.footprints != expected.truth.footprints).nnz == 0

    def test_keys_are_listed_without_a_movie(self, cli: Cli) -> None:
        answer = cli("simulate", "--keys")
        assert answer.status == 0
        names = [line.split(" = ")[0] for line in answer.out.splitlines()]
        assert names == [key.name for key in SimulationParameters.describe()]
        assert "height = 96  px  Height of the field of view, px." in answer.out


def test_demo(cli: Cli, tmp_path: Path) -> None:
    answer = cli("demo", "--output", tmp_path / "out put")
    assert (answer.status, answer.err) == (0, "")
    (f1,) = re.findall(r"F1 of the accepted\W+([\d.]+)", answer.out)
    assert float(f1) >= 0.8
    for name in ("session.zarr", "traces.csv", "spikes.csv", "overview.png"):
        assert (tmp_path / "out put" / name).exists()
        assert str(tmp_path / "out put" / name) in answer.out.splitlines()


class TestHelp:
    """Enough to use it."""

    group = typer.main.get_group(app)

    @pytest.mark.parametrize("command", [None, *group.commands])
    def test_help_exits_well(self, command: str | None, cli: Cli) -> None:
        answer = cli(*([command] if command else []), "--help")
        assert (answer.status, answer.err) == (0, "")
        assert answer.out.startswith("Usage: napari-calcium")

    @pytest.mark.parametrize("command", group.commands)
    def test_every_option_is_explained(self, command: str) -> None:
        described = self.group.commands[command]
        assert len(described.help or "") > 20
        for parameter in described.params:
            assert len(getattr(parameter, "help", None) or "") > 10, parameter.name

    def test_the_commands_are_these(self, cli: Cli) -> None:
        commands = ["info", "run", "export", "apply-shifts", "propose", "reconstruct"]
        commands += ["recipe", "simulate", "train-classifier", "spikes", "train-spikes"]
        commands += ["benchmark-spikes", "demo"]
        assert list(self.group.commands) == commands
        for command in self.group.commands:
            assert re.search(rf"^  {command} +\w", cli("--help").out, re.M)

    def test_stages_are_named_where_one_is_asked_for(self, cli: Cli) -> None:
        said = " ".join(cli("run", "--help").out.split())
        assert ", ".join(NAMES) in said


@pytest.mark.skipif(not REAL.is_dir(), reason="the real two-photon recording is not here")
def test_a_real_recording(tmp_path: Path) -> None:
    """Better than the 0.22 of the reference analysis against the same labels."""
    path = tmp_path / "s.zarr"
    answer = shell("run", *sorted(REAL.glob("*.tif")), "--session", path, "--frame-rate", "7")
    assert answer.status == 0, answer.err
    script = ROOT / "benchmarks" / "score_two_photon_real.py"
    spec = importlib.util.spec_from_file_location("score_two_photon_real", script)
    assert spec is not None
    assert spec.loader is not None
    scoring = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scoring)
    session = Session(path)
    assert session.components().shape == (320, 256)
    assert session.movie().n_frames == 600
    labels = scoring.read_labels(REAL / "regions.json", (320, 256))
    accepted = session.footprints()[:, session.quality().accepted]
    f1, _, _ = scoring.score(scoring.binary(accepted), labels)
    assert f1 > 0.22


class TestTrainClassifier:
    """What it trains is tested where it is made; here, what it is told and says."""

    def test_options_reach_it_and_its_figures_are_said(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: dict[str, Any] = {}
        at = {"precision": 0.9, "recall": 0.8, "f1": 0.85, "false_positives": 0.1}
        figures = {"n_cells": 70, "n_others": 60, "roc_auc": 0.91, "calibration_error": 0.02}
        test = {**figures, "thresholds": {"0.5": at}, "kinds": {}, "reliability": [[1, 0.5, 0.5]]}

        def train(output: Path, masks: Path | None, **options: Any) -> dict[str, Any]:
            told.update(options, output=output, masks=masks)
            return {"figures": {"simulated": test}}

        monkeypatch.setattr("napari_calcium.cli.train_classifier", train)
        model, picture = tmp_path / "m.keras", tmp_path / "m.png"
        answer = cli(
            "train-classifier", model, "--masks", "masks.npz", "--held-out", "7", "--movies", 3,
            "--seed", 5, "--plot", picture, "--workers", 2,
        )  # fmt: skip
        assert answer.status == 0
        assert (told["output"], told["masks"]) == (model, Path("masks.npz"))
        assert (told["seed"], told["n_movies"], told["workers"]) == (5, 3, 2)
        assert list(told["held_out"]) == ["7"]
        assert "ROC-AUC 0.910" in answer.out
        assert answer.out.splitlines()[-1] == str(model)
        assert picture.stat().st_size > 1000
