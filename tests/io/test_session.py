"""The session on disk: what comes back, what is never half there, who may write."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given
from hypothesis import strategies as st

from napari_calcium.components import Background, Components
from napari_calcium.errors import InputError
from napari_calcium.io.session import (
    FORMAT_VERSION,
    VARIABLES,
    Session,
    StageRecord,
    components_attrs,
    components_to_arrays,
    frames_layout,
    stage_digest,
)

RECORD = StageRecord("dff", {"window": 3.0}, {"source_extraction": "abc"}, "digest", {"zarr": "3"})
DFF = {
    "traces": np.arange(6, dtype="float32").reshape(2, 3),
    "baseline": np.ones((2, 3), "float32"),
    "floored": np.zeros(2, bool),
}


@pytest.fixture
def empty(tmp_path: Path) -> Session:
    return Session.create(tmp_path / "s.zarr", {"source": []})


def write_dff(session: Session, record: StageRecord = RECORD, offset: float = 0.0) -> None:
    with session.writing("dff") as writer:
        for name, values in DFF.items():
            writer.write(name, values if values.dtype == bool else values + np.float32(offset))
        writer.commit(record)


class TestRoot:
    """The folder and what makes it a session."""

    def test_is_a_zarr_group_that_says_so(self, empty: Session) -> None:
        metadata = json.loads((empty.path / "zarr.json").read_text())
        assert (metadata["zarr_format"], metadata["node_type"]) == (3, "group")
        assert metadata["attributes"] == {
            "format": "napari-calcium session",
            "format_version": FORMAT_VERSION,
            "source": [],
        }
        assert Session(str(empty.path)).attrs == metadata["attributes"]

    def test_attrs_are_replaced_one_by_one(self, empty: Session) -> None:
        empty.update_attrs({"recipe": {"dff": {"window": 3}}})
        assert Session(empty.path).attrs["recipe"] == {"dff": {"window": 3}}
        assert Session(empty.path).attrs["source"] == []

    def test_an_empty_folder_may_become_one(self, tmp_path: Path) -> None:
        (tmp_path / "s.zarr").mkdir()
        assert Session.is_session(Session.create(tmp_path / "s.zarr", {}).path)

    def test_folders_above_it_are_made(self, tmp_path: Path) -> None:
        assert Session.is_session(Session.create(tmp_path / "a" / "b c" / "s.zarr", {}).path)

    def test_what_exists_is_not_overwritten(self, empty: Session, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("kept")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "file").write_text("kept")
        for path in (tmp_path / "file", tmp_path / "folder", empty.path):
            with pytest.raises(
                InputError, match=r"exists and is not a session; give another path$"
            ):
                Session.create(path, {})
        assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "file").read_text()

    @pytest.mark.parametrize(
        "content", ["", "{", "[]", "3", '{"attributes": 3}', '{"attributes": {"format": "x"}}']
    )
    def test_something_else_is_not_one(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "zarr.json").write_text(content)
        assert not Session.is_session(tmp_path)
        with pytest.raises(InputError, match="is not a napari-calcium session; import a recording"):
            Session(tmp_path)

    @pytest.mark.parametrize("name", ["none.zarr", "file", "file/below"])
    def test_no_folder_is_not_one(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert not Session.is_session(tmp_path / name)

    def test_a_newer_format_is_refused(self, empty: Session) -> None:
        empty.update_attrs({"format_version": FORMAT_VERSION + 1})
        with pytest.raises(InputError, match=r"has session format 2 but .* reads up to 1; update"):
            Session(empty.path)

    def test_a_place_below_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match=r"s\.zarr cannot be written \(.+\); give another"):
            Session.create(tmp_path / "file" / "s.zarr", {})

    def test_the_rate_is_that_of_the_import(self, empty: Session, handmade: Session) -> None:
        assert (handmade.frame_rate, handmade.pixel_size) == (8.0, 1.5)
        with pytest.raises(InputError, match=r"s\.zarr has no movie; run import first"):
            _ = empty.frame_rate


class TestLock:
    """One run at a time."""

    def test_a_second_is_refused_until_the_first_ends(self, empty: Session) -> None:
        refused = pytest.raises(InputError, match=r"^another run is at work in .*; wait until it")
        with empty.lock(), refused:
            Session(empty.path).lock().__enter__()
        with Session(empty.path).lock():
            pass

    def test_it_ends_with_the_process(self, empty: Session) -> None:
        code = "import os, sys; from napari_calcium.io.session import Session\n"
        code += "Session(sys.argv[1]).lock().__enter__(); print('locked', flush=True); os._exit(9)"
        command = [sys.executable, "-c", code, str(empty.path)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stdout) == (9, "locked\n")
        with empty.lock():
            pass


class TestCommit:
    """A group is there whole, or not at all."""

    def test_what_is_committed_is_there(self, empty: Session) -> None:
        write_dff(empty)
        assert Session(empty.path).record("dff") == RECORD
        assert empty.group_attrs("dff") == {**vars(RECORD), "complete": True}
        for name, values in DFF.items():
            found = empty.read(f"dff/{name}")
            assert found.dtype == values.dtype
            np.testing.assert_array_equal(found, values)
        assert not (empty.path / ".partial").exists()

    def test_before_it_nothing_is(self, empty: Session) -> None:
        with empty.writing("dff") as writer:
            writer.write("traces", DFF["traces"])
            assert empty.record("dff") is None
            assert "dff" not in empty
            assert "dff/traces" not in empty
            with pytest.raises(InputError, match="has no dff/traces; run dff first"):
                empty.array("dff/traces")
        assert sorted(file.name for file in empty.path.iterdir()) == ["zarr.json"]

    def test_an_error_keeps_the_earlier_result(self, empty: Session) -> None:
        write_dff(empty)
        with pytest.raises(KeyError), empty.writing("dff") as writer:  # noqa: PT012
            writer.write("traces", DFF["traces"] + 5)
            writer.write("unknown", DFF["traces"])
        assert empty.record("dff") == RECORD
        np.testing.assert_array_equal(empty.read("dff/traces"), DFF["traces"])

    def test_a_later_result_replaces_it(self, empty: Session) -> None:
        write_dff(empty)
        write_dff(empty, StageRecord("dff", {}, {}, "later", {}), offset=5)
        record = empty.record("dff")
        assert record is not None
        assert record.digest == "later"
        np.testing.assert_array_equal(empty.read("dff/traces"), DFF["traces"] + 5)
        assert not (empty.path / ".partial").exists()

    def test_a_group_that_is_not_complete_is_no_result(self, empty: Session) -> None:
        write_dff(empty)
        zarr.open_group(empty.path, path="dff").attrs["complete"] = False
        assert empty.record("dff") is None

    @pytest.mark.parametrize("step", [1, 2])
    def test_a_step_that_fails_loses_nothing(
        self, step: int, empty: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As a window that has a file open makes it fail on Windows."""
        write_dff(empty)
        replace, steps = os.replace, []

        def failing(source: Any, target: Any) -> None:
            if "dff" in (Path(source).name, Path(target).name):
                steps.append(source)
                if len(steps) == step:
                    raise PermissionError(13, "in use")
            replace(source, target)

        monkeypatch.setattr(os, "replace", failing)
        with pytest.raises(PermissionError):
            write_dff(empty, StageRecord("dff", {}, {}, "later", {}), offset=5)
        record = empty.record("dff")
        assert record is not None
        offset = {"digest": 0, "later": 5}[record.digest]
        np.testing.assert_array_equal(empty.read("dff/traces"), DFF["traces"] + offset)

    @pytest.mark.parametrize("new", [True, False])
    def test_one_that_was_cut_off_is_finished_or_undone(self, new: bool, empty: Session) -> None:
        """Killed between its two steps, the earlier result is aside and the new one not in."""
        write_dff(empty, StageRecord("dff", {}, {}, "later", {}), offset=5)
        later = empty.path / "later"
        (empty.path / "dff").rename(later)
        write_dff(empty)
        partial = empty.path / ".partial"
        partial.mkdir()
        (empty.path / "dff").rename(partial / "old-dff")
        if new:
            later.rename(partial / "dff")
        assert empty.record("dff") is None
        empty.recover()
        record = empty.record("dff")
        assert record is not None
        assert record.digest == ("later" if new else "digest")
        np.testing.assert_array_equal(empty.read("dff/traces"), DFF["traces"] + 5 * new)
        assert not partial.exists()


class TestArrays:
    """Each array as it is described, in the layout it must have."""

    def test_every_variable_is_described(self) -> None:
        for name, variable in VARIABLES.items():
            assert variable.units, name
            assert len(variable.comment) > 5, name

    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32"])
    def test_frames_come_back_exactly(self, dtype: str, empty: Session, put: Any) -> None:
        ends = np.iinfo(dtype)
        rng = np.random.default_rng(0)
        shape = (300, 37, 53)
        frames = rng.integers(ends.min, ends.max, shape, dtype=dtype, endpoint=True)
        put(empty, "movie", {"frames": frames}, frame_rate=8.0, pixel_size=0.0)
        movie = empty.movie()
        assert movie.frames.dtype == dtype
        assert movie.frames.chunks == ((128, 128, 44), (37,), (53,))
        np.testing.assert_array_equal(movie.frames.compute(), frames)
        np.testing.assert_array_equal(
            movie.read(slice(100, 200), slice(3, 36), slice(50, 53)).compute(),
            frames[100:200, 3:36, 50:],
        )

    def test_volumes_come_back_exactly(self, empty: Session, put: Any) -> None:
        frames = np.random.default_rng(0).integers(0, 60_000, (9, 3, 37, 53), dtype="uint16")
        put(empty, "movie", {"frames": frames}, frame_rate=2.0, pixel_size=0.0)
        image = frames.mean(axis=0).astype("float32")
        shifts = np.zeros((9, 3), "float32")
        corrected = {"frames": frames + 1, "template": image, "shifts_rigid": shifts}
        put(empty, "motion_correction", corrected)
        movie = empty.movie()
        assert (movie.field, movie.n_planes) == ((3, 37, 53), 3)
        np.testing.assert_array_equal(movie.frames.compute(), frames)
        box = movie.read(slice(3, 8), slice(3, 36), slice(50, 53), slice(1, 2)).compute()
        np.testing.assert_array_equal(box, frames[3:8, 1:2, 3:36, 50:])
        np.testing.assert_array_equal(empty.read("motion_correction/template"), image)
        for name, axes in (
            ("movie/frames", ["time", "z", "y", "x"]),
            ("motion_correction/frames", ["time", "z", "y", "x"]),
            ("motion_correction/template", ["z", "y", "x"]),
        ):
            metadata = json.loads((empty.path / name / "zarr.json").read_text())
            assert metadata["attributes"]["axes"] == metadata["dimension_names"] == axes

    def test_a_movie_is_named_by_its_content(self, handmade: Session, put: Any) -> None:
        first, again = handmade.movie().frames.name, handmade.movie().frames.name
        frames = {"frames": handmade.read("movie/frames") + 1}
        put(handmade, "movie", frames, frame_rate=9.0, pixel_size=1.5)
        assert first == again
        assert handmade.movie().frames.name != first

    @pytest.mark.parametrize("chunks", [(100, 37, 53), (128, 20, 53), ((128, 120, 52), 37, 53)])
    def test_blocks_that_do_not_fall_on_shards_are_refused(
        self, chunks: Any, empty: Session
    ) -> None:
        frames = da.zeros((300, 37, 53), dtype="uint16", chunks=chunks)
        with empty.writing("movie") as writer, pytest.raises(ValueError, match="not aligned"):
            writer.create_frames("frames", frames)

    @pytest.mark.parametrize("chunks", [(128, 37, 53), (256, 37, 53), -1])
    def test_blocks_that_do_are_not(self, chunks: Any, empty: Session) -> None:
        frames = da.zeros((300, 37, 53), dtype="uint16", chunks=chunks)
        with empty.writing("movie") as writer:
            array = writer.create_frames("frames", frames)
        assert (array.shape, array.shards) == ((300, 37, 53), (128, 37, 53))

    def test_blocks_of_volumes_fall_on_shards(self, empty: Session) -> None:
        """A volume is 20 MiB: shards take 4 of them, 80 MiB, as 8 would be above 128 MiB."""
        frames = da.zeros((30, 40, 512, 512), dtype="uint16", chunks=(8, 40, 512, 512))
        with empty.writing("movie") as writer:
            array = writer.create_frames("frames", frames)
            assert array.shards == (4, 40, 512, 512)
            assert array.chunks == (4, 1, 128, 128)
            for chunks in ((6, 40, 512, 512), (8, 20, 512, 512)):
                with pytest.raises(ValueError, match="not aligned"):
                    writer.create_frames("frames", frames.rechunk(chunks))

    def test_what_is_not_described_is_refused(self, empty: Session) -> None:
        with empty.writing("dff") as writer:
            with pytest.raises(KeyError):
                writer.write("trace", DFF["traces"])
            with pytest.raises(ValueError, match="the axes"):
                writer.write("traces", DFF["floored"])

    def test_an_array_can_have_attributes_of_its_own(self, empty: Session) -> None:
        with empty.writing("dff") as writer:
            writer.write("traces", DFF["traces"])
            writer.attrs("traces", {"window": [1.0, 2.0]})
            writer.commit(RECORD)
        attributes = dict(empty.array("dff/traces").attrs)
        assert attributes.pop("window") == [1.0, 2.0]
        assert attributes["axes"] == ["cell", "time"]
        np.testing.assert_array_equal(empty.read("dff/traces"), DFF["traces"])

    @pytest.mark.parametrize("shape", [(0, 40), (3, 0), (70, 40_000)])
    def test_empty_and_large_tables_come_back(self, shape: tuple[int, int], empty: Session) -> None:
        values = np.arange(math.prod(shape), dtype="float32").reshape(shape)
        with empty.writing("dff") as writer:
            writer.write("traces", values)
            writer.commit(RECORD)
        np.testing.assert_array_equal(empty.read("dff/traces"), values)
        assert empty.read("dff/traces").shape == shape

    def test_a_large_grid_of_shifts_is_stored_in_pieces(self, empty: Session) -> None:
        values = np.arange(60_000 * 12 * 2, dtype="float32").reshape(60_000, 3, 4, 2)
        with empty.writing("motion_correction") as writer:
            writer.write("shifts_piecewise", values)
            writer.commit(RECORD)
        array = empty.array("motion_correction/shifts_piecewise")
        assert math.prod(array.chunks) * 4 <= 2**22
        np.testing.assert_array_equal(array[...], values)

    def test_a_missing_movie_is_the_imports(self, empty: Session) -> None:
        with pytest.raises(InputError, match=r"has no movie/frames; run import first$"):
            empty.movie()


SIDES = st.integers(1, 5000)


@given(
    st.one_of(
        st.tuples(st.integers(1, 10**6), SIDES, SIDES),
        st.tuples(st.integers(1, 10**6), st.integers(2, 60), SIDES, SIDES),
    ),
    st.sampled_from([1, 2, 4]),
)
def test_layout(shape: tuple[int, ...], itemsize: int) -> None:
    chunks, shards = frames_layout(shape, itemsize)
    assert all(shard % chunk == 0 for chunk, shard in zip(chunks, shards, strict=True))
    assert all(shard >= size for shard, size in zip(shards[1:], shape[1:], strict=True))
    assert shards[0] == chunks[0] in (1, 2, 4, 8, 16, 32, 64, 128)
    assert max(chunks) <= 128
    assert len(shape) == 3 or (chunks[1], shards[1]) == (1, shape[1])
    assert chunks[0] == 1 or math.prod(shards) * itemsize <= 128 * 2**20
    assert chunks[0] == 128 or 2 * math.prod(shards) * itemsize > 128 * 2**20


class TestShifts:
    """What undoes the motion."""

    @pytest.mark.parametrize("planes", [(), (3,)])
    def test_they_come_back(self, planes: tuple[int, ...], empty: Session, put: Any) -> None:
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 900, (9, *planes, 37, 53), dtype="uint16")
        put(empty, "movie", {"frames": frames}, frame_rate=2.0, pixel_size=0.0)
        rigid = rng.normal(size=(9, 2 + len(planes))).astype("float32")
        put(empty, "motion_correction", {"shifts_rigid": rigid})
        found = empty.shifts()
        np.testing.assert_array_equal(found.rigid, rigid)
        assert (found.field, found.piecewise) == ((*planes, 37, 53), None)
        assert found.flagged is not None
        assert not found.flagged.any()
        piecewise = rng.normal(size=(9, *planes, 2, 3, 2)).astype("float32")
        parts = {"shifts_rigid": rigid, "shifts_piecewise": piecewise, "flagged": np.eye(9)[4] > 0}
        grid = {"grid_y": [9.5, 27.25], "grid_x": [8.0, 26.5, 44.0]}
        put(empty, "motion_correction", parts, {"shifts_piecewise": grid}, method="piecewise")
        found = empty.shifts()
        assert found.piecewise is not None
        np.testing.assert_array_equal(found.piecewise, piecewise)
        np.testing.assert_array_equal(found.flagged, parts["flagged"])
        for name, places in grid.items():
            assert getattr(found, name).tolist() == places
            assert getattr(found, name).dtype == np.float32

    def test_advice_where_no_frame_shows_its_motion(self, empty: Session, put: Any) -> None:
        frames = np.zeros((9, 37, 53), dtype="uint16")
        put(empty, "movie", {"frames": frames}, frame_rate=2.0, pixel_size=0.0)
        arrays = {"shifts_rigid": np.zeros((9, 2), np.float32), "flagged": np.eye(9)[4] > 0}
        put(empty, "motion_correction", arrays, {"": {"coarse_motion": 1.1}})
        assert empty.motion_advice() == ""
        put(empty, "motion_correction", arrays, {"": {"coarse_motion": 3.72}})
        assert empty.motion_advice().startswith("Coarse detail moves 3.7 times as far")
        arrays["flagged"] = np.ones(9, bool)
        put(empty, "motion_correction", arrays, {"": {"coarse_motion": 1.1}})
        assert empty.motion_advice().startswith("No frame agrees with the template better than")

    def test_a_session_without_them(self, empty: Session, put: Any) -> None:
        frames = np.zeros((9, 37, 53), dtype="uint16")
        put(empty, "movie", {"frames": frames}, frame_rate=2.0, pixel_size=0.0)
        with pytest.raises(InputError, match="shifts_rigid; run motion_correction first"):
            empty.shifts()


class TestComponents:
    """Cells and scores, there and back."""

    def test_cells_come_back(self, handmade: Session, components: Components) -> None:
        found = handmade.components()
        assert found.shape == (37, 53)
        assert found.footprints.shape == (37 * 53, 3)
        assert (found.footprints != components.footprints).nnz == 0
        assert (found.background.footprints != components.background.footprints).nnz == 0
        for name in ("traces", "residuals", "deconvolved", "cell_id"):
            np.testing.assert_array_equal(getattr(found, name), getattr(components, name))
        np.testing.assert_array_equal(found.background.traces, components.background.traces)
        assert (handmade.footprints() != components.footprints).nnz == 0
        centre = np.unravel_index(np.argmax(found.footprint(0) > 0), (37, 53))
        assert centre == (4, 40)  # the topmost pixel of a disc of radius 4 px at (8, 40)

    def test_footprints_on_disk_are_csc(self, handmade: Session) -> None:
        """Read as anyone would who knows scipy and not this package."""
        group = zarr.open_group(handmade.path / "source_extraction" / "footprints", mode="r")
        parts = [np.asarray(group[name][...]) for name in ("data", "indices", "indptr")]
        matrix = sp.csc_matrix(tuple(parts), shape=tuple(group.attrs["shape"]))
        y, x = np.divmod(np.arange(37 * 53), 53)
        weights = matrix.toarray()
        centres = np.stack([y @ weights, x @ weights], axis=1) / weights.sum(axis=0)[:, None]
        np.testing.assert_allclose(centres, [(8, 40), (30, 11), (20, 25)], atol=1e-4)
        np.testing.assert_allclose((weights**2).sum(axis=0), 1, rtol=1e-5)

    def test_no_cell_comes_back(self, empty: Session, put: Any) -> None:
        nothing = np.zeros((0, 40), "float32")
        background = Background(sp.csc_array(np.ones((6, 1))), np.ones((1, 40), "float32"))
        none = sp.csc_array((6, 0), dtype=np.float32)
        cells = Components(none, (2, 3), nothing, nothing, nothing, background, np.arange(0))
        put(empty, "source_extraction", components_to_arrays(cells), components_attrs(cells))
        found = empty.components()
        assert (found.n_cells, found.shape, found.traces.shape) == (0, (2, 3), (0, 40))
        assert found.background.traces.shape == (1, 40)

    def test_scores_come_back(self, handmade: Session) -> None:
        quality = handmade.quality()
        np.testing.assert_array_equal(quality.snr, np.array([3, 1, 9], "float32"))
        np.testing.assert_array_equal(quality.accepted, [True, False, True])
        assert np.isnan(quality.cnn_probability).all()


class TestSpikes:
    """Inferred rates, and what speaks against them."""

    def test_they_come_back(self, handmade: Session) -> None:
        rate, level = handmade.spike_rate(), handmade.spike_noise_level()
        assert (rate.shape, rate.dtype) == ((3, 40), np.float32)
        assert np.isnan(rate[1]).all()
        np.testing.assert_array_equal(level, np.array([1.5, np.nan, 9.25], "float32"))
        assert handmade.spike_marks() == ["", "unknown", "too noisy, smoothed"]
        assert handmade.array("spike_inference/rate").attrs["units"] == "Hz"
        assert handmade.array("spike_inference/noise_level").attrs["units"] == "% Hz^-0.5"

    def test_a_session_from_before_there_were_any(self, handmade: Session) -> None:
        shutil.rmtree(handmade.path / "spike_inference")
        assert handmade.record("spike_inference") is None
        assert not handmade.is_current("spike_inference")
        assert handmade.summary("spike_inference") == ""
        assert handmade.warnings("spike_inference") == ()
        handmade.current("dff")
        for read in (handmade.spike_rate, handmade.spike_noise_level, handmade.spike_marks):
            with pytest.raises(InputError, match="run spike_inference first"):
                read()

    def test_the_model_that_comes_with_the_program_is_no_stage(
        self, handmade: Session, put: Any
    ) -> None:
        group = zarr.open_group(handmade.path, path="spike_inference", mode="r+")
        group.attrs["inputs"] = {**group.attrs["inputs"], "spike_model": "digest of a file"}
        handmade.current("spike_inference")
        names = ("traces", "baseline", "floored")
        put(handmade, "dff", {name: handmade.read(f"dff/{name}") for name in names}, window=9.0)
        assert not handmade.is_current("spike_inference")
        with pytest.raises(InputError, match=r"spike_inference in .* is of an earlier dff; run i"):
            handmade.current("spike_inference")

    @pytest.mark.parametrize("n_cells", [1, 3, 64, 100])
    @pytest.mark.parametrize("shape", [(70, 40_000), (5, 37), (0, 40)])
    def test_a_table_is_read_in_blocks_of_cells(
        self, shape: tuple[int, int], n_cells: int, empty: Session
    ) -> None:
        """40000 frames are more than are read at once, and than a chunk of a large table has."""
        values = np.arange(math.prod(shape), dtype="float32").reshape(shape)
        with empty.writing("dff") as writer:
            writer.write("traces", values)
            writer.commit(RECORD)
        table = empty.table("dff/traces", n_cells)
        assert table.dtype == np.float32
        assert table.chunks[1] == shape[1:]
        assert max(table.chunks[0]) == min(n_cells, shape[0])
        np.testing.assert_array_equal(table.compute(), values)


class TestProvenance:
    """Whether results belong together."""

    def test_of_one_run_they_do(self, handmade: Session) -> None:
        for group in dict.fromkeys(name.split("/")[0] for name in VARIABLES):
            assert handmade.current(group) == handmade.record(group)

    def test_after_an_earlier_stage_ran_again_they_do_not(
        self, handmade: Session, put: Any
    ) -> None:
        frames, table = handmade.read("movie/frames"), np.zeros((40, 2), "float32")
        corrected = {"frames": frames, "shifts_rigid": table, "template": table}
        put(handmade, "motion_correction", corrected, max_shift=3)
        handmade.current("motion_correction")
        with pytest.raises(InputError, match=r"^source_extraction in .* is of an earlier motion_"):
            handmade.current("source_extraction")
        with pytest.raises(InputError, match=r"is of an earlier motion_correction; run it again$"):
            handmade.current("dff")

    def test_digest_tells_stage_parameters_and_inputs_apart(self) -> None:
        base = stage_digest("dff", {"a": 1, "b": 2.0}, {"x": "1"})
        assert base == stage_digest("dff", {"b": 2.0, "a": 1}, {"x": "1"})
        others = [
            stage_digest("dfg", {"a": 1, "b": 2.0}, {"x": "1"}),
            stage_digest("dff", {"a": 1, "b": 2.5}, {"x": "1"}),
            stage_digest("dff", {"a": 1, "b": 2.0, "c": 3}, {"x": "1"}),
            stage_digest("dff", {"a": 1, "b": 2.0}, {"x": "2"}),
            stage_digest("dff", {"a": 1, "b": 2.0}, {"y": "1"}),
        ]
        assert len({base, *others}) == 6
