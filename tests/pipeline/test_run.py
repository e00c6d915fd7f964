"""The run: what it skips, what survives a kill, and that its results depend on nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.io.recording import open_recording
from napari_calcium.io.session import HEEDS, VARIABLES, Session, frames_layout
from napari_calcium.movie import Movie
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import Progress, RunReport, run, save_movie
from napari_calcium.pipeline.stages import STAGES

NAMES = [stage.name for stage in STAGES]
GROUPS = {stage.name: stage.group for stage in STAGES}
Check = Callable[[Path, Path], None]
Contents = Callable[[Path], dict[str, NDArray[Any]]]


def computed(report: RunReport) -> list[str]:
    """Return the stages that were not skipped."""
    return [stage.stage for stage in report.stages if not stage.skipped]


def files(path: Path) -> dict[str, int]:
    """Return when each file of a session was written, but for the root's own."""
    found = {file.relative_to(path).as_posix(): file.stat() for file in path.rglob("*")}
    return {
        name: stat.st_mtime_ns for name, stat in found.items() if name not in (".lock", "zarr.json")
    }


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("the recording was read again")


class TestSkipping:
    """What is done with the same inputs and parameters is not done again."""

    def test_nothing_is_done_twice(
        self, session_path: Path, tiff: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = files(session_path)
        monkeypatch.setattr("napari_calcium.io.tiff.TiffFrames.__getitem__", refuse)
        report = run(session_path, [tiff], recipe=recipe)
        assert [stage.stage for stage in report.stages] == NAMES
        assert computed(report) == []
        assert files(session_path) == before

    def test_without_sources_a_session_goes_on(
        self, session_path: Path, tiff: Path, recipe: Recipe
    ) -> None:
        path = session_path.with_name("short.zarr")
        assert computed(run(path, [tiff], recipe=recipe, until="motion_correction")) == NAMES[:2]
        assert computed(run(path)) == NAMES[2:]

    @pytest.mark.parametrize(
        ("key", "value", "again"),
        [
            ("component_evaluation.decay_time", 0.5, ["component_evaluation"]),
            ("summary_images.neighbours", 4, ["summary_images"]),
            (
                "source_extraction.threshold",
                11.0,
                ["source_extraction", "component_evaluation", "dff", "spike_inference"],
            ),
            ("dff.percentile", 30.0, ["dff", "spike_inference"]),
            ("spike_inference.smoothing", 0.2, ["spike_inference"]),
            ("motion_correction.max_shift", 5, NAMES[1:]),
            ("import.frame_rate", 12.0, NAMES),
        ],
    )
    def test_a_change_runs_what_depends_on_it_and_no_more(
        self, key: str, value: float, again: list[str], session_path: Path, tiff: Path
    ) -> None:
        before = files(session_path)
        recipe = Recipe.of_session(Session(session_path)).with_value(key, value)
        assert computed(run(session_path, [tiff], recipe=recipe)) == again
        untouched = {GROUPS[name] for name in NAMES if name not in again}
        after = files(session_path)
        assert {name: time for name, time in before.items() if name.split("/")[0] in untouched} == {
            name: time for name, time in after.items() if name.split("/")[0] in untouched
        }
        stage, name = key.split(".")
        record = Session(session_path).record(GROUPS[stage])
        assert record is not None
        assert record.parameters[name] == value

    def test_a_change_and_back_gives_the_first_result(
        self, finished: Path, session_path: Path, recipe: Recipe, assert_identical: Check
    ) -> None:
        run(session_path, recipe=recipe.with_value("motion_correction.max_shift", 3))
        assert computed(run(session_path, recipe=recipe)) == NAMES[1:]
        assert_identical(finished, session_path)

    def test_the_rate_follows_the_import(self, session_path: Path, tiff: Path) -> None:
        session = Session(session_path)
        assert (session.frame_rate, session.pixel_size) == (10.0, 1.5)
        recipe = Recipe({"import": {"frame_rate": 20.0, "pixel_size": 0.5}})
        run(session_path, [tiff], recipe=recipe, until="import")
        assert (session.frame_rate, session.pixel_size) == (20.0, 0.5)
        assert (session.attrs["frame_rate"], session.attrs["pixel_size"]) == (20.0, 0.5)

    def test_a_recording_marked_otherwise_needs_no_import_but_other_traces(
        self, session_path: Path
    ) -> None:
        session = Session(session_path)
        assert session.modality == "two-photon"
        assert session.group_attrs("dff")["kind"] == "dff"
        fraction = session.read("dff/traces")
        marked = Recipe.of_session(session).with_value("import.modality", "one-photon")
        run(session_path, recipe=marked, until="import")
        assert session.modality == "one-photon"
        with pytest.raises(InputError, match="before the recording was marked one-photon"):
            session.current("dff")
        assert computed(run(session_path)) == ["component_evaluation", "dff", "spike_inference"]
        session.current("dff")
        assert session.group_attrs("dff")["kind"] == "detrended"
        units = session.array("dff/traces").attrs["units"]
        assert units == "counts"
        detrended, baseline = session.read("dff/traces"), session.read("dff/baseline")
        assert np.ptp(detrended) > 10 * np.ptp(fraction)
        raw = session.components().traces + session.components().residuals
        np.testing.assert_allclose(detrended, raw - baseline, atol=1e-2)
        assert computed(run(session_path)) == []

    def test_results_from_before_there_were_marks_are_of_two_photons(
        self, session_path: Path
    ) -> None:
        session = Session(session_path)
        group = zarr.open_group(session_path / "dff", mode="r+")
        inputs = dict(group.attrs["inputs"])
        del inputs["modality"]
        group.attrs["inputs"] = inputs
        root = zarr.open_group(session_path, mode="r+")
        del root.attrs["modality"]
        session.current("dff")
        session.update_attrs({"modality": "one-photon"})
        with pytest.raises(InputError, match="before the recording was marked one-photon"):
            session.current("dff")

    def test_dff_of_a_one_photon_recording_is_refused_before_anything_runs(
        self, tiff: Path, recipe: Recipe, tmp_path: Path
    ) -> None:
        marked = recipe.with_all({"import.modality": "one-photon", "dff.kind": "dff"})
        with pytest.raises(InputError, match=r"^dff.kind is 'dff' but .* marked one-photon"):
            run(tmp_path / "s.zarr", [tiff], recipe=marked)
        assert not (tmp_path / "s.zarr").exists()

    def test_an_import_that_is_asked_for_anew_needs_the_recording(self, session_path: Path) -> None:
        recipe = Recipe({"import": {"frame_rate": 20.0}})
        with pytest.raises(InputError, match="name the recording to import it"):
            run(session_path, recipe=recipe)
        assert Session(session_path).frame_rate == 10.0

    def test_only_what_is_needed_is_run(self, tiff: Path, recipe: Recipe, tmp_path: Path) -> None:
        path = tmp_path / "s.zarr"
        report = run(path, [tiff], recipe=recipe, until="summary_images")
        assert [stage.stage for stage in report.stages] == NAMES[:3]
        present = [name for name in NAMES if Session(path).record(GROUPS[name]) is not None]
        assert present == NAMES[:3]


class TestRepetition:
    """The same arrays, bit for bit, however the work is done."""

    @pytest.mark.parametrize(
        ("scheduler", "workers"),
        [("threads", 2), ("threads", 5), ("synchronous", 1), ("processes", 2)],
    )
    def test_workers_and_schedulers_do_not_matter(
        self,
        scheduler: str,
        workers: int,
        finished: Path,
        tiff: Path,
        recipe: Recipe,
        tmp_path: Path,
        assert_identical: Check,
    ) -> None:
        path = tmp_path / "s.zarr"
        run(path, [tiff], recipe=recipe, scheduler=scheduler, workers=workers)
        assert_identical(finished, path)

    def test_three_files_are_one_movie(
        self,
        finished: Path,
        frames: NDArray[np.uint16],
        recipe: Recipe,
        tmp_path: Path,
        assert_identical: Check,
    ) -> None:
        parts = [tmp_path / f"part_{number}.tif" for number in (1, 2, 10)]
        for part, piece in zip(parts, np.split(frames, (77, 190)), strict=True):
            tifffile.imwrite(part, piece)
        run(tmp_path / "s.zarr", parts[::-1], recipe=recipe)
        assert_identical(finished, tmp_path / "s.zarr")
        order = [file["name"] for file in Session(tmp_path / "s.zarr").attrs["source"]]
        assert order == ["part_1.tif", "part_2.tif", "part_10.tif"]

    @pytest.mark.parametrize("chunks", [(31, 17, 23), (300, 5, 53)])
    def test_chunks_do_not_matter(
        self,
        chunks: tuple[int, int, int],
        finished: Path,
        frames: NDArray[np.uint16],
        recipe: Recipe,
        tmp_path: Path,
        assert_identical: Check,
    ) -> None:
        zarr.create_array(tmp_path / "movie.zarr", data=frames, chunks=chunks)
        run(tmp_path / "s.zarr", [tmp_path / "movie.zarr"], recipe=recipe)
        assert_identical(finished, tmp_path / "s.zarr")

    def test_the_recipe_of_a_session_makes_it_again(
        self, finished: Path, tiff: Path, tmp_path: Path, assert_identical: Check
    ) -> None:
        written = tmp_path / "recipe.toml"
        written.write_text(Recipe.of_session(Session(finished)).to_toml(), encoding="utf-8")
        run(tmp_path / "s.zarr", [tiff], recipe=Recipe.from_toml(written))
        assert_identical(finished, tmp_path / "s.zarr")


KILLED = """
import os, signal, sys
from pathlib import Path
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run

session, source, recipe, stage, when = sys.argv[1:]

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def progress(report):
    if report.stage == stage and when != "renames":
        if when == "start" or report.total < 2 * report.done < 2 * report.total:
            kill()

replace = os.replace

def renamed(source, target):
    if Path(source) == Path(session, ".partial", stage):
        kill()
    replace(source, target)

if when == "renames":
    os.replace = renamed
run(session, [source], recipe=Recipe.from_toml(recipe), progress=progress)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
class TestKill:
    """Killed at any moment, a session keeps what was finished, and goes on."""

    @pytest.fixture
    def killed(self, tiff: Path, tmp_path: Path) -> Callable[..., None]:
        def run_and_kill(session: Path, recipe: Recipe, stage: str, when: str) -> None:
            written = tmp_path / "recipe.toml"
            written.write_text(recipe.to_toml(), encoding="utf-8")
            command = [sys.executable, "-c", KILLED, session, tiff, written, stage, when]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            assert ended.returncode == -9, ended.stderr

        return run_and_kill

    @pytest.mark.parametrize(
        ("stage", "when"),
        [
            ("import", "middle"),
            ("motion_correction", "middle"),
            ("source_extraction", "start"),
            ("source_extraction", "middle"),
            ("spike_inference", "start"),
            ("spike_inference", "middle"),
        ],
    )
    def test_a_new_session_goes_on(
        self,
        stage: str,
        when: str,
        killed: Callable[..., None],
        finished: Path,
        tiff: Path,
        recipe: Recipe,
        tmp_path: Path,
        assert_identical: Check,
    ) -> None:
        path = tmp_path / "s.zarr"
        killed(path, recipe, stage, when)
        done = NAMES[: NAMES.index(stage)]
        session = Session(path)
        assert [name for name in NAMES if session.record(GROUPS[name])] == done
        assert (path / ".partial" / GROUPS[stage]).is_dir()  # it was at work
        assert not (path / GROUPS[stage]).exists()  # and none of it is read
        before = files(path)
        continued = run(path, [tiff] if stage == "import" else [])
        assert computed(continued) == NAMES[NAMES.index(stage) :]
        after = files(path)
        for name, written in before.items():
            if name.split("/")[0] in {GROUPS[name] for name in done}:
                assert after[name] == written
        assert not (path / ".partial").exists()
        assert_identical(finished, path)

    def test_a_result_that_was_being_replaced_is_kept(
        self,
        killed: Callable[..., None],
        finished: Path,
        session_path: Path,
        recipe: Recipe,
        assert_identical: Check,
        contents: Contents,
    ) -> None:
        changed = recipe.with_value("motion_correction.max_shift", 3)
        killed(session_path, changed, "motion_correction", "middle")
        names = contents(finished).keys()
        assert set(names) < set(contents(session_path))  # the rest is in .partial
        assert computed(run(session_path, recipe=recipe)) == []
        assert_identical(finished, session_path)

    def test_the_rate_changes_only_with_the_movie(
        self, killed: Callable[..., None], session_path: Path, recipe: Recipe
    ) -> None:
        killed(session_path, recipe.with_value("import.frame_rate", 20.0), "import", "middle")
        assert Session(session_path).frame_rate == 10.0
        assert Session(session_path).movie().frame_rate == 10.0
        assert computed(run(session_path, recipe=recipe)) == []

    def test_between_the_two_steps_of_a_commit_nothing_is_lost(
        self,
        killed: Callable[..., None],
        session_path: Path,
        tiff: Path,
        recipe: Recipe,
        tmp_path: Path,
        assert_identical: Check,
    ) -> None:
        changed = recipe.with_value("dff.percentile", 30.0)
        killed(session_path, changed, "dff", "renames")
        assert not (session_path / "dff").exists()
        assert Recipe.of_session(Session(session_path)).tables["dff"]["percentile"] == 30.0
        assert computed(run(session_path)) == ["spike_inference"]  # the new one was whole
        other = tmp_path / "other.zarr"
        run(other, [tiff], recipe=changed)
        assert_identical(other, session_path)

    def test_a_session_that_never_got_its_movie_takes_another(
        self, killed: Callable[..., None], recipe: Recipe, tmp_path: Path
    ) -> None:
        path = tmp_path / "s.zarr"
        killed(path, recipe, "import", "middle")
        with pytest.raises(InputError, match="holds no movie yet; name the recording to import"):
            run(path, recipe=recipe)
        other = tmp_path / "other.tif"
        tifffile.imwrite(other, np.arange(40 * 37 * 53, dtype="int32").reshape(40, 37, 53))
        run(path, [other], recipe=recipe, until="import")
        assert Session(path).movie().frames.dtype == "int32"
        assert [file["name"] for file in Session(path).attrs["source"]] == ["other.tif"]


class TestOneAtATime:
    """Two runs in one session."""

    def test_the_second_is_refused_and_the_first_ends(
        self, finished: Path, tiff: Path, recipe: Recipe, tmp_path: Path, assert_identical: Check
    ) -> None:
        path, said = tmp_path / "s.zarr", set()

        def second(progress: Progress) -> None:
            if progress.stage in ("import", "source_extraction"):
                with pytest.raises(InputError) as error:
                    run(path, [tiff], recipe=recipe)
                said.add(str(error.value))

        assert computed(run(path, [tiff], recipe=recipe, progress=second)) == NAMES
        assert said == {f"another run is at work in {path}; wait until it ends"}
        assert_identical(finished, path)

    def test_another_process_is_refused(
        self, session_path: Path, finished: Path, assert_identical: Check
    ) -> None:
        code = "import sys; from napari_calcium.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "run", "--session", session_path]
        with Session(session_path).lock():
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr == (
            f"napari-calcium: another run is at work in {session_path}; wait until it ends\n"
        )
        assert_identical(finished, session_path)


class TestRefusal:
    """What cannot be used is said in a sentence, and leaves nothing that looks like a result."""

    def test_another_recording(
        self, session_path: Path, finished: Path, recipe: Recipe, assert_identical: Check
    ) -> None:
        other = session_path.with_name("movie.tif")  # the same name
        tifffile.imwrite(other, np.ones((20, *(37, 53)), "uint16") * np.arange(53, dtype="uint16"))
        with pytest.raises(InputError) as error:
            run(session_path, [other], recipe=recipe)
        assert str(error.value) == (
            f"{session_path} holds another recording (movie.tif); give another session"
        )
        assert_identical(finished, session_path)

    def test_a_folder_that_is_no_session(self, tiff: Path, recipe: Recipe, tmp_path: Path) -> None:
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
        with pytest.raises(InputError, match="thesis exists and is not a session; give another"):
            run(tmp_path / "thesis", [tiff], recipe=recipe)
        assert [file.name for file in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]
        assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"

    def test_no_session_and_no_recording(self, recipe: Recipe, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="is not a napari-calcium session; name a recording"):
            run(tmp_path / "s.zarr", recipe=recipe)
        assert not (tmp_path / "s.zarr").exists()

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"workers": 0}, "workers is 0; it must be at least 1"),
            (
                {"scheduler": "thread"},
                "scheduler is 'thread'; it must be one of threads, processes, synchronous",
            ),
            ({"until": "dfff"}, "unknown stage 'dfff'; did you mean 'dff'?"),
        ],
    )
    def test_options(
        self, options: dict[str, Any], said: str, tiff: Path, recipe: Recipe, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError) as error:
            run(tmp_path / "s.zarr", [tiff], recipe=recipe, **options)
        assert str(error.value) == said
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("movie", "said"),
        [
            (np.full((30, 37, 53), 7, "uint16"), "every pixel of the movie is 7"),
            (np.arange(37 * 53, dtype="uint16").reshape(1, 37, 53), "at least 2 frames"),
            (np.arange(30 * 35, dtype="uint16").reshape(30, 5, 7), "the field is only 5 x 7 px"),
        ],
    )
    def test_movies(self, movie: NDArray[Any], said: str, recipe: Recipe, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "m.tif", movie, photometric="minisblack")
        with pytest.raises(InputError, match=said):
            run(tmp_path / "s.zarr", [tmp_path / "m.tif"], recipe=recipe)
        assert [file.name for file in tmp_path.iterdir()] == ["m.tif"]

    def test_a_place_that_is_a_file(self, tiff: Path, recipe: Recipe) -> None:
        with pytest.raises(InputError, match=r"s\.zarr cannot be written \(Not a directory\)"):
            run(tiff / "s.zarr", [tiff], recipe=recipe)

    @pytest.fixture
    def guarded(self) -> Iterator[Path]:
        """A folder, open to read, in which this process may not write."""
        if os.name == "nt":
            pytest.skip("needs POSIX permissions")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            path.chmod(0o755)
            yield path
            path.chmod(0o755)

    @staticmethod
    def unprivileged(folder: Path, act: Callable[[], Any]) -> None:
        """Do something as one who may not write to a folder, root or not."""
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            act()
        finally:
            if root:
                os.seteuid(0)
            for path in (folder, *folder.rglob("*")):
                path.chmod(0o755)

    def test_a_place_that_cannot_be_written(
        self, guarded: Path, frames: NDArray[np.uint16], recipe: Recipe
    ) -> None:
        tifffile.imwrite(guarded / "movie.tif", frames)

        def act() -> None:
            with pytest.raises(InputError) as error:
                run(guarded / "s.zarr", [guarded / "movie.tif"], recipe=recipe)
            assert str(error.value) == (
                f"{guarded / 's.zarr'} cannot be written (Permission denied); give another path"
            )

        self.unprivileged(guarded, act)
        assert not (guarded / "s.zarr").exists()

    def test_a_session_that_cannot_be_written(
        self, guarded: Path, frames: NDArray[np.uint16], recipe: Recipe
    ) -> None:
        tifffile.imwrite(guarded / "movie.tif", frames)
        run(guarded / "s.zarr", [guarded / "movie.tif"], recipe=recipe, until="import")

        def act() -> None:
            assert Session(guarded / "s.zarr").read("movie/frames").tobytes() == frames.tobytes()
            with pytest.raises(InputError, match=r"s\.zarr cannot be written \(Permission denied"):
                run(guarded / "s.zarr", recipe=recipe)

        self.unprivileged(guarded, act)

    def test_an_error_of_a_task_leaves_no_session_behind(
        self, tiff: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started, ended = threading.Event(), threading.Event()

        def write_block(target: Any, start: int, block: NDArray[Any]) -> None:
            if start == 0:
                started.wait(10)
                raise RuntimeError("a bug")
            started.set()
            time.sleep(0.3)  # another thread is still writing when the first one fails
            target[start : start + len(block)] = block
            ended.set()

        monkeypatch.setattr("napari_calcium.pipeline.run._write_block", write_block)
        with pytest.raises(RuntimeError, match="a bug"):
            run(tmp_path / "s.zarr", [tiff], recipe=recipe, workers=3)
        assert ended.wait(5)
        time.sleep(0.1)
        assert list(tmp_path.iterdir()) == []

    def test_an_interrupted_run_keeps_what_is_finished(
        self, finished: Path, tiff: Path, recipe: Recipe, tmp_path: Path, assert_identical: Check
    ) -> None:
        def interrupt(progress: Progress) -> None:
            if progress.stage == "source_extraction" and progress.done > 3:
                raise KeyboardInterrupt

        path = tmp_path / "s.zarr"
        with pytest.raises(KeyboardInterrupt):
            run(path, [tiff], recipe=recipe, progress=interrupt)
        assert not (path / ".partial").exists()
        assert computed(run(path)) == NAMES[3:]
        assert_identical(finished, path)

    @pytest.mark.skipif(os.name == "nt", reason="needs a limit of the size of files")
    def test_a_disk_that_takes_no_more(self, tiff: Path, tmp_path: Path) -> None:
        code = """
        import resource, sys
        from napari_calcium.cli import main
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        main()
        """
        path = tmp_path / "s.zarr"
        options = [tiff, "--session", path, "--frame-rate", "10"]
        command = [sys.executable, "-c", textwrap.dedent(code), "run", *options]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        assert ended.stderr.startswith(
            f"napari-calcium: the run in {path} was stopped: File too large; make room or check"
        )
        assert ended.stderr.count("\n") == 1
        assert not path.exists()


class TestStorage:
    """What is in a session, read without the package's own reader."""

    def test_paths_with_spaces_and_signs(
        self, finished: Path, frames: NDArray[np.uint16], recipe: Recipe, tmp_path: Path,
        assert_identical: Check,
    ) -> None:  # fmt: skip
        folder = tmp_path / "Mäuse 2 % #1 細胞"
        folder.mkdir()
        tifffile.imwrite(folder / "größe µm.tif", frames)
        run(str(folder / "Sitzung 1.zarr"), [str(folder / "größe µm.tif")], recipe=recipe)
        assert_identical(finished, folder / "Sitzung 1.zarr")
        (source,) = Session(folder / "Sitzung 1.zarr").attrs["source"]
        assert (source["name"], source["n_frames"]) == ("größe µm.tif", 300)

    @pytest.mark.parametrize(
        ("dtype", "low", "high"),
        [
            ("uint8", 0, 255),
            ("uint16", 0, 65535),
            ("uint16", 30000, 40000),
            ("int16", -32768, 32767),
            ("int16", -900, -100),
            ("int32", -(2**31), 2**31 - 1),
        ],
    )
    def test_the_recorded_type_is_kept(
        self, dtype: str, low: int, high: int, tmp_path: Path
    ) -> None:
        rng = np.random.default_rng(0)
        movie = rng.integers(low, high, (140, 37, 53), dtype=dtype, endpoint=True)
        movie[0, 0, :2], movie[-1, -1, -2:] = (low, high), (high, low)
        tifffile.imwrite(tmp_path / "m.tif", movie, photometric="minisblack")
        recipe = Recipe({"import": {"frame_rate": 10.0}, "motion_correction": {"method": "none"}})
        run(tmp_path / "s.zarr", [tmp_path / "m.tif"], recipe=recipe, until="motion_correction")
        for name in ("movie/frames", "motion_correction/frames"):
            stored = zarr.open_array(tmp_path / "s.zarr" / name, mode="r")
            assert stored.dtype == dtype
            np.testing.assert_array_equal(stored[...], movie)
        attrs = zarr.open_group(tmp_path / "s.zarr" / "movie", mode="r").attrs
        assert attrs["value_range"] == [low, high]

    def test_corrected_frames_do_not_wrap_around(self, tmp_path: Path) -> None:
        """Overshoot of the resampling at the type's ends is clipped, exactly at them."""
        y, x = np.mgrid[:37, :53]
        board = np.where((y // 5 + x // 7) % 2, 65535, 0)
        moved = [np.roll(board, (t % 3, t % 2), (0, 1)) for t in range(40)]
        half = [(a + np.roll(a, 1, axis=0)) // 2 for a in moved]
        tifffile.imwrite(tmp_path / "m.tif", np.stack(half).astype("uint16"))
        recipe = Recipe({"import": {"frame_rate": 10.0}})
        run(tmp_path / "s.zarr", [tmp_path / "m.tif"], recipe=recipe, until="motion_correction")
        session = Session(tmp_path / "s.zarr")
        frames = session.read("motion_correction/frames")
        assert np.ptp(session.read("motion_correction/shifts_rigid"), axis=0).min() > 0.9
        template = np.median(frames.astype(float), axis=0)
        wrapped = np.abs(frames[:, 6:-6, 6:-6] - template[6:-6, 6:-6]) > 40000
        assert wrapped.mean() < 1e-3

    @pytest.mark.parametrize(
        ("shape", "chunk", "shard"),
        [
            ((300, 37, 53), [128, 37, 53], [128, 37, 53]),
            ((40, 150, 37), [128, 128, 37], [128, 256, 37]),
        ],
    )
    def test_chunks_and_shards(
        self, shape: tuple[int, int, int], chunk: list[int], shard: list[int], tmp_path: Path
    ) -> None:
        movie = np.random.default_rng(0).integers(0, 900, shape, dtype="uint16")
        tifffile.imwrite(tmp_path / "m.tif", movie)
        recipe = Recipe({"import": {"frame_rate": 10.0}})
        run(tmp_path / "s.zarr", [tmp_path / "m.tif"], recipe=recipe, until="motion_correction")
        for group in ("movie", "motion_correction"):
            metadata = json.loads((tmp_path / "s.zarr" / group / "frames/zarr.json").read_text())
            assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == shard
            (sharding,) = metadata["codecs"]
            assert sharding["name"] == "sharding_indexed"
            assert sharding["configuration"]["chunk_shape"] == chunk
            blosc = sharding["configuration"]["codecs"][-1]
            assert (blosc["name"], blosc["configuration"]["shuffle"]) == ("blosc", "bitshuffle")
            files = list((tmp_path / "s.zarr" / group / "frames" / "c").rglob("*"))
            assert sum(file.is_file() for file in files) == -(-shape[0] // 128)
        np.testing.assert_array_equal(Session(tmp_path / "s.zarr").read("movie/frames"), movie)

    def test_every_array_says_what_it_is(self, finished: Path, contents: Contents) -> None:
        for name in contents(finished):
            variable = VARIABLES[name]
            metadata = json.loads((finished / name / "zarr.json").read_text())
            attributes = metadata["attributes"]
            axes = list(variable.axes_of(len(metadata["shape"])))
            assert attributes["axes"] == axes == metadata["dimension_names"]
            assert attributes["units"] == variable.units
            assert attributes["comment"].startswith(variable.comment.split()[0])
            assert len(attributes["axes"]) == len(metadata["shape"])

    def test_every_group_says_how_it_came_to_be(self, finished: Path, recipe: Recipe) -> None:
        root = json.loads((finished / "zarr.json").read_text())["attributes"]
        assert root["format"] == "napari-calcium session"
        assert (root["frame_rate"], root["pixel_size"]) == (10.0, 1.5)
        assert [file["name"] for file in root["source"]] == ["movie.tif"]
        attrs = {
            stage.name: json.loads((finished / stage.group / "zarr.json").read_text())["attributes"]
            for stage in STAGES
        }
        digests = {name: found["digest"] for name, found in attrs.items()}
        assert len(set(digests.values())) == len(STAGES)
        for stage in STAGES:
            found = attrs[stage.name]
            assert found["complete"] is True
            assert found["stage"] == stage.name
            assert found["parameters"] == recipe.parameters(stage.name).to_mapping()
            assert found["versions"]["zarr"] == zarr.__version__
            if stage.needs:
                marks = dict.fromkeys(HEEDS.get(stage.name, ()), "two-photon")
                shipped = recipe.parameters(stage.name).shipped()
                models = {"component_evaluation": "classifier", "spike_inference": "spike_model"}
                assert list(shipped) == [models[name] for name in models if name == stage.name]
                needs = {name: digests[name] for name in stage.needs}
                assert found["inputs"] == {**needs, **marks, **shipped}
            else:
                assert found["inputs"].keys() == {"source"}

    def test_there_are_no_pickles(self, finished: Path, contents: Contents) -> None:
        names = {file.name for file in finished.rglob("*") if file.is_file()}
        assert {name for name in names if not name.isdigit()} == {"zarr.json"}
        types = {values.dtype.name for values in contents(finished).values()}
        assert types == {"bool", "uint8", "uint16", "int64", "float32"}

    def test_progress_goes_from_nothing_to_all(
        self, tiff: Path, recipe: Recipe, tmp_path: Path
    ) -> None:
        reports: list[Progress] = []
        run(tmp_path / "s.zarr", [tiff], recipe=recipe, progress=reports.append)
        assert list(dict.fromkeys(report.stage for report in reports)) == NAMES
        for name in NAMES:
            own = [report for report in reports if report.stage == name]
            assert own[0].done == 0
            assert own[-1].done == own[-1].total
            assert all(0 <= report.done <= report.total for report in own)
            parts = [report.done / report.total for report in own]
            assert parts == sorted(parts)
            assert len(set(parts)) > 2


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """3000 frames more are 123 MB more on disk; the peak may grow by a third of that, its noise.

    One worker: with more, the peak depends on which tasks happen to meet.
    """
    code = """
    import sys
    from napari_calcium.pipeline.recipe import Recipe
    from napari_calcium.pipeline.run import run
    recipe = Recipe({"import": {"frame_rate": 30.0}})
    until = "motion_correction"
    report = run(sys.argv[1] + ".zarr", [sys.argv[1]], recipe=recipe, until=until, workers=1)
    print(report.peak_memory)
    """
    rng = np.random.default_rng(0)
    peaks = []
    for n_frames in (1000, 4000):
        path = tmp_path / f"{n_frames}.tif"
        tifffile.imwrite(path, rng.integers(100, 200, (n_frames, 128, 160), dtype="uint16"))
        command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
        peaks.append(
            int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        )
    assert peaks[0] > 50e6
    assert peaks[1] - peaks[0] < 3000 * 128 * 160 * 2 / 3


class TestVolumes:
    """What can be done with them, and what not yet."""

    @pytest.fixture
    def volumes(self) -> NDArray[np.uint16]:
        return np.random.default_rng(0).integers(0, 900, (9, 3, 37, 53), dtype=np.uint16)

    @pytest.fixture(params=["tiff", "zarr"])
    def source(self, request: Any, volumes: NDArray[np.uint16], tmp_path: Path) -> Path:
        path = tmp_path / f"volumes.{request.param}"
        if request.param == "tiff":
            save_movie(Movie(da.from_array(volumes, chunks=(4, 3, 37, 53)), 2.5), path)
        else:
            names = ("time", "z", "y", "x")
            zarr.create_array(path, data=volumes, chunks=(2, 1, 20, 20), dimension_names=names)
        return path

    @pytest.mark.parametrize("scheduler", ["threads", "processes"])
    def test_they_are_imported(
        self, source: Path, volumes: NDArray[np.uint16], scheduler: str, tmp_path: Path
    ) -> None:
        recipe = Recipe({"import": {"frame_rate": 2.5}})
        path = tmp_path / "s.zarr"
        run(path, [source], recipe=recipe, until="import", scheduler=scheduler, workers=2)
        session = Session(path)
        np.testing.assert_array_equal(session.read("movie/frames"), volumes)
        np.testing.assert_array_equal(session.movie().frames.compute(), volumes)
        assert session.group_attrs("movie")["value_range"] == [volumes.min(), volumes.max()]
        assert session.array("movie/frames").chunks == (128, 1, 37, 53)

    @pytest.mark.parametrize(
        ("until", "stage"),
        [
            (None, "source_extraction"),
            ("summary_images", "summary_images"),
            ("component_evaluation", "source_extraction"),
            ("dff", "source_extraction"),
            ("spike_inference", "source_extraction"),
        ],
    )
    def test_what_takes_planes_only_is_refused_before_anything_runs(
        self, until: str | None, stage: str, source: Path, tmp_path: Path
    ) -> None:
        recipe = Recipe({"import": {"frame_rate": 2.5}})
        with pytest.raises(InputError) as error:
            run(tmp_path / "s.zarr", [source], recipe=recipe, until=until)
        assert str(error.value) == (
            f"{stage} takes movies of one plane but the recording has 3 planes; "
            "run motion_correction only (--until motion_correction)"
        )
        assert not (tmp_path / "s.zarr").exists()


class TestSaveMovie:
    """A movie as TIFF."""

    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
    def test_comes_back_as_it_was(self, dtype: str, tmp_path: Path) -> None:
        values = np.random.default_rng(0).integers(0, 120, (70, 37, 53)).astype(dtype)
        values -= np.array(60 if np.dtype(dtype).kind in "if" else 0, dtype)
        movie = Movie(da.from_array(values, chunks=(32, 37, 53)), frame_rate=12.5)
        save_movie(movie, tmp_path / "new" / "m.tif")
        written = tifffile.imread(tmp_path / "new" / "m.tif")
        assert written.dtype == dtype
        np.testing.assert_array_equal(written, values)
        if dtype != "float32":
            recording = open_recording([tmp_path / "new" / "m.tif"])
            assert recording.frame_rate == pytest.approx(12.5)
            assert recording.frames.shape == values.shape

    @pytest.mark.parametrize("dtype", ["uint16", "int16"])
    def test_volumes_come_back_as_they_were(self, dtype: str, tmp_path: Path) -> None:
        values = np.random.default_rng(0).integers(0, 120, (9, 3, 37, 53)).astype(dtype)
        movie = Movie(da.from_array(values, chunks=(4, 2, 37, 30)), frame_rate=12.5)
        save_movie(movie, tmp_path / "m.tif")
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "m.tif"), values)
        recording = open_recording([tmp_path / "m.tif"])
        assert recording.frame_rate == pytest.approx(12.5)
        np.testing.assert_array_equal(recording.frames.compute(), values)

    @pytest.mark.parametrize("workers", [1, 3])
    @pytest.mark.parametrize(
        ("shape", "chunks"),
        [((300, 37, 53), (50, 20, 53)), ((9, 3, 37, 53), (4, 2, 37, 30))],
    )
    def test_zarr_comes_back_as_it_was(
        self, shape: tuple[int, ...], chunks: tuple[int, ...], workers: int, tmp_path: Path
    ) -> None:
        values = np.random.default_rng(0).integers(0, 120, shape).astype("int16") - 60
        movie = Movie(da.from_array(values, chunks=chunks), 12.5, pixel_size=0.7)
        save_movie(movie, tmp_path / "new" / "m.zarr", workers=workers)
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["m.zarr"]
        written = zarr.open_array(tmp_path / "new" / "m.zarr", mode="r")
        np.testing.assert_array_equal(written[...], values)
        recording = open_recording([tmp_path / "new" / "m.zarr"])
        assert (recording.frame_rate, recording.pixel_size) == (12.5, 0.7)
        np.testing.assert_array_equal(recording.frames.compute(), values)
        assert recording.notes == ()

    @pytest.mark.parametrize("name", ["m.tif", "m.zarr"])
    def test_progress_is_told_and_a_movie_is_there_whole_or_not_at_all(
        self, name: str, tmp_path: Path
    ) -> None:
        told: list[Progress] = []

        def progress(report: Progress) -> None:
            told.append(report)
            assert not (tmp_path / name).exists()
            if report.done == 2 and len(told) < 4:
                raise KeyboardInterrupt

        movie = Movie(da.ones((600, 7, 9), dtype="uint16", chunks=(128, 7, 9)), 1.0)
        with pytest.raises(KeyboardInterrupt):
            save_movie(movie, tmp_path / name, workers=2, progress=progress)
        assert list(tmp_path.iterdir()) == []
        told.append(Progress("again", 0, 0))
        save_movie(movie, tmp_path / name, workers=2, progress=progress)
        assert [(report.done, report.total) for report in told[3:]] == [
            (0, 5),
            (2, 5),
            (4, 5),
            (5, 5),
        ]
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_a_file_is_replaced_and_a_folder_is_not(self, tmp_path: Path) -> None:
        movie = Movie(da.ones((2, 3, 4), dtype="uint8"), 1.0)
        for name in ("m.tif", "m.zarr"):
            save_movie(movie, tmp_path / name)
        save_movie(movie, tmp_path / "m.tif")
        with pytest.raises(InputError, match=r"m\.zarr exists already; give another path"):
            save_movie(movie, tmp_path / "m.zarr")
        with pytest.raises(InputError, match="workers is 0; it must be at least 1"):
            save_movie(movie, tmp_path / "n.tif", workers=0)

    def test_a_place_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        movie = Movie(da.zeros((2, 3, 4), dtype="uint8"), 1.0)
        with pytest.raises(InputError, match=r"m\.tif cannot be written"):
            save_movie(movie, tmp_path / "file" / "m.tif")


def test_layout_of_a_large_field() -> None:
    """2048 x 2000 px of 16 bits: 128 frames would be 1 GiB."""
    assert frames_layout((9000, 2048, 2000), 2) == ((16, 128, 128), (16, 2048, 2048))
