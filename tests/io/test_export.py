"""The table of traces: what is in it is what is in the session."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from napari_calcium.components import Components
from napari_calcium.errors import InputError
from napari_calcium.io.choices import choose
from napari_calcium.io.export import (
    export_cells_csv,
    export_csv,
    export_piecewise_csv,
    export_shifts_csv,
    kind_of_change,
    kinds_of,
    left_out,
)
from napari_calcium.io.session import Session

HALF_A_SIXTH_DIGIT = 5e-6
"""Values are written with six significant digits."""


def read(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    """Return the header and the numbers (time, column) of a table, NaN where a cell is empty."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    return header, np.array([[value or "nan" for value in row] for row in rows], float)


UNITS = {
    "dff": "fraction",
    "raw": "counts",
    "denoised": "counts",
    "deconvolved": "counts/frame",
    "f0": "counts",
    "detrended": "counts",
    "spike_rate": "Hz",
}


@pytest.fixture
def detrended(handmade: Session) -> Session:
    """The session is of a one-photon recording now."""
    group = zarr.open_group(handmade.path, path="dff", mode="r+")
    group.attrs["kind"] = "detrended"
    group["traces"].attrs["units"] = "counts"
    return handmade


@pytest.mark.parametrize("kind", ["dff", "raw", "denoised", "deconvolved", "f0", "spike_rate"])
@pytest.mark.parametrize("accepted_only", [True, False])
def test_values_are_those_of_the_session(
    kind: str, accepted_only: bool, handmade: Session, components: Components, tmp_path: Path
) -> None:
    path = tmp_path / "new folder" / "größe.csv"
    n_cells = export_csv(handmade, path, accepted_only=accepted_only, kind=kind)
    traces = {
        "dff": handmade.read("dff/traces"),
        "raw": components.traces + components.residuals,
        "denoised": components.traces,
        "deconvolved": components.deconvolved,
        "f0": handmade.read("dff/baseline"),
        "spike_rate": handmade.spike_rate(),
    }[kind]
    rows = [0, 2] if accepted_only else [0, 1, 2]
    identities = [4, 9] if accepted_only else [4, 7, 9]
    header, values = read(path)
    assert n_cells == len(rows)
    columns = [f"cell_{identity} {kind} ({UNITS[kind]})" for identity in identities]
    assert header == ["time (s)", *columns]
    np.testing.assert_allclose(values[:, 0], np.arange(40) / 8.0, atol=1e-6)
    np.testing.assert_allclose(values[:, 1:].T, traces[rows], rtol=HALF_A_SIXTH_DIGIT)


def test_the_kind_is_that_of_the_session_if_none_is_asked_for(
    handmade: Session, tmp_path: Path
) -> None:
    assert kinds_of(handmade)[0] == kind_of_change(handmade) == "dff"
    export_csv(handmade, tmp_path / "t.csv")
    assert read(tmp_path / "t.csv")[0] == [
        "time (s)", "cell_4 dff (fraction)", "cell_9 dff (fraction)"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [None, "detrended"])
def test_detrended_traces_are_called_so(
    kind: str | None, detrended: Session, tmp_path: Path
) -> None:
    export_csv(detrended, tmp_path / "t.csv", kind=kind)
    header, values = read(tmp_path / "t.csv")
    assert header == ["time (s)", "cell_4 detrended (counts)", "cell_9 detrended (counts)"]
    traces = detrended.read("dff/traces")[[0, 2]]
    np.testing.assert_allclose(values[:, 1:].T, traces, rtol=HALF_A_SIXTH_DIGIT)
    assert kinds_of(detrended) == ("detrended", "raw", "denoised", "deconvolved", "f0")


def test_dff_of_detrended_traces_is_refused(detrended: Session, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        export_csv(detrended, tmp_path / "t.csv", kind="dff")
    assert str(error.value) == (
        f"{detrended.path} has detrended traces and no dff traces; export --kind detrended"
    )
    assert not (tmp_path / "t.csv").exists()


def test_detrended_traces_of_dff_are_refused(handmade: Session, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no detrended traces; export --kind dff$"):
        export_csv(handmade, tmp_path / "t.csv", kind="detrended")


def test_detrended_traces_have_no_rates(detrended: Session, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"of which there are no spike rates; export --kind detr"):
        export_csv(detrended, tmp_path / "t.csv", kind="spike_rate")
    assert not (tmp_path / "t.csv").exists()


def test_a_session_from_before_there_were_rates(handmade: Session, tmp_path: Path) -> None:
    """All else is exported; that there are none is said where they are asked for."""
    kinds = ("dff", "raw", "denoised", "deconvolved", "f0")
    assert kinds_of(handmade) == (*kinds, "spike_rate")
    shutil.rmtree(handmade.path / "spike_inference")
    assert kinds_of(handmade) == kinds
    with pytest.raises(InputError, match=r"has no spike_inference; run spike_inference first$"):
        export_csv(handmade, tmp_path / "t.csv", kind="spike_rate")
    assert export_csv(handmade, tmp_path / "t.csv") == 2


def test_rates_of_earlier_traces_do_not_stop_the_rest(
    handmade: Session, tmp_path: Path, put: Any
) -> None:
    """They are none of the kinds there are, and it is said why."""
    assert left_out(handmade) == ""
    names = ("traces", "baseline", "floored")
    put(handmade, "dff", {name: handmade.read(f"dff/{name}") for name in names}, window=9.0)
    kinds = kinds_of(handmade)
    assert kinds == ("dff", "raw", "denoised", "deconvolved", "f0")
    assert [export_csv(handmade, tmp_path / f"{kind}.csv", kind=kind) for kind in kinds] == [2] * 5
    assert left_out(handmade) == (
        f"the rates of spikes are left out: spike_inference in {handmade.path} is of an earlier "
        "dff; run it again"
    )
    shutil.rmtree(handmade.path / "spike_inference")
    assert left_out(handmade) == ""


def test_of_detrended_traces_nothing_is_left_out(detrended: Session) -> None:
    assert left_out(detrended) == ""


def test_nan_is_an_empty_cell(handmade: Session, tmp_path: Path) -> None:
    traces = handmade.read("dff/traces")
    traces[2, 5:8] = np.nan
    zarr.open_array(handmade.path, path="dff/traces", mode="r+")[...] = traces
    export_csv(handmade, tmp_path / "t.csv")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    empty = [line.endswith(",") for line in lines[1:]]
    np.testing.assert_array_equal(empty, np.isnan(traces[2]))
    found = np.genfromtxt(tmp_path / "t.csv", delimiter=",", skip_header=1)
    np.testing.assert_allclose(found[:, 1:].T, traces[[0, 2]], rtol=HALF_A_SIXTH_DIGIT)


def test_frames_hours_into_a_recording_have_times_of_their_own(
    handmade: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put: Any
) -> None:
    """One frame of 30 Hz after 3 hours is told from the next."""
    n_frames = 3 * 3600 * 30
    traces = np.zeros((3, n_frames), "float32")
    ends = {"traces": traces, "baseline": traces + 1, "floored": np.zeros(3, bool)}
    frames = {"frames": handmade.read("movie/frames")}
    record = put(handmade, "movie", frames, frame_rate=30.0, pixel_size=0.0)
    assert record.parameters["frame_rate"] == 30.0
    put(handmade, "dff", ends)
    monkeypatch.setattr(Session, "current", lambda *_: None)
    export_csv(handmade, tmp_path / "long.csv", accepted_only=False)
    lines = (tmp_path / "long.csv").read_text().splitlines()
    times = np.array([float(line.split(",")[0]) for line in lines[-100:]])
    np.testing.assert_allclose(np.diff(times), 1 / 30, atol=2e-6)


def test_no_accepted_cell_is_a_table_of_times(handmade: Session, tmp_path: Path, put: Any) -> None:
    scores = {name: np.zeros(3, "float32") for name in ("snr", "spatial_correlation")}
    scores |= {"cnn_probability": np.full(3, np.nan), "accepted": np.zeros(3, bool)}
    put(handmade, "component_evaluation", scores)
    assert export_csv(handmade, tmp_path / "t.csv") == 0
    header, values = read(tmp_path / "t.csv")
    assert header == ["time (s)"]
    assert values.shape == (40, 1)


def test_an_existing_table_is_replaced(handmade: Session, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x" * 10**6)
    export_csv(handmade, tmp_path / "t.csv")
    assert len(read(tmp_path / "t.csv")[1]) == 40


def test_an_unknown_kind_is_refused(handmade: Session, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        export_csv(handmade, tmp_path / "t.csv", kind="dfff")
    assert str(error.value) == (
        "kind of trace is 'dfff'; it must be one of dff, detrended, raw, denoised, deconvolved, "
        "f0, spike_rate"
    )


def test_what_has_not_run_is_said(tmp_path: Path) -> None:
    session = Session.create(tmp_path / "s.zarr", {"source": []})
    with pytest.raises(InputError, match=r"s\.zarr has no dff; run dff first$"):
        export_csv(session, tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize(
    ("kind", "accepted_only", "said"),
    [
        ("dff", False, r"^dff in .* is of an earlier source_extraction; run it again$"),
        ("f0", False, r"^dff in .* is of an earlier source_extraction; run it again$"),
        ("spike_rate", False, r"^dff in .* is of an earlier source_extraction; run it again$"),
        ("raw", True, r"^component_evaluation in .* is of an earlier source_extraction"),
    ],
)
def test_traces_of_cells_that_were_found_anew_since_are_refused(
    kind: str,
    accepted_only: bool,
    said: str,
    handmade: Session,
    tmp_path: Path,
    put: Any,
) -> None:
    arrays = {
        name.removeprefix("source_extraction/"): handmade.read(name) for name in SOURCE_EXTRACTION
    }
    put(handmade, "source_extraction", arrays, threshold=5.0)
    with pytest.raises(InputError, match=said):
        export_csv(handmade, tmp_path / "t.csv", kind=kind, accepted_only=accepted_only)
    assert not (tmp_path / "t.csv").exists()
    assert export_csv(handmade, tmp_path / "t.csv", kind="raw", accepted_only=False) == 3


def test_a_place_that_cannot_be_written(handmade: Session, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "t.csv", tmp_path):
        with pytest.raises(InputError, match=r"cannot be written \(.+\); give another path$"):
            export_csv(handmade, path)


RIGID = ("shift_y_px", "shift_x_px")


class TestShifts:
    """Tables of the motion."""

    @pytest.fixture
    def moved(self, handmade: Session, put: Any) -> dict[str, NDArray[Any]]:
        """The session has piecewise shifts now, in steps of 1/1024 px."""
        rng = np.random.default_rng(3)
        arrays = {
            "shifts_rigid": rng.integers(-16000, 16000, (40, 2)) / np.float32(1024),
            "shifts_piecewise": rng.integers(-16000, 16000, (40, 2, 3, 2)) / np.float32(1024),
            "flagged": np.isin(np.arange(40), [0, 17]),
            "correlation_before": rng.random(40, dtype="float32"),
            "correlation_after": rng.random(40, dtype="float32"),
        }
        grid = {"grid_y": [9.5, 27.25], "grid_x": [8.0, 26.5, 44.0]}
        put(handmade, "motion_correction", arrays, {"shifts_piecewise": grid}, method="piecewise")
        return arrays

    def test_of_frames(
        self, moved: dict[str, NDArray[Any]], handmade: Session, tmp_path: Path
    ) -> None:
        path = tmp_path / "new folder" / "größe.csv"
        assert export_shifts_csv(handmade, path) == 40
        header, values = read(path)
        measured = ["flagged", "correlation_before", "correlation_after"]
        assert header == ["frame", "time_s", *RIGID, *measured]
        np.testing.assert_array_equal(values[:, 0], np.arange(40))
        np.testing.assert_allclose(values[:, 1], np.arange(40) / 8.0, atol=1e-6)
        exact = values.astype(np.float32)
        np.testing.assert_array_equal(exact[:, 2:4], moved["shifts_rigid"])
        for place, name in enumerate(measured, 4):
            np.testing.assert_array_equal(exact[:, place], moved[name])
        assert path.read_text().splitlines()[18].split(",")[4] == "1"

    def test_of_patches(
        self, moved: dict[str, NDArray[Any]], handmade: Session, tmp_path: Path
    ) -> None:
        assert export_piecewise_csv(handmade, tmp_path / "p.csv") == 6
        header, values = read(tmp_path / "p.csv")
        assert header[:2] == ["frame", "time_s"]
        assert header[2:6] == [
            f"y9.5_x{x}_shift_{axis}_px" for x in ("8", "26.5") for axis in ("y", "x")
        ]
        assert header[-1] == "y27.25_x44_shift_x_px"
        found = values[:, 2:].reshape(40, 2, 3, 2).astype(np.float32)
        np.testing.assert_array_equal(found, moved["shifts_piecewise"])

    def test_of_volumes(self, tmp_path: Path, put: Any) -> None:
        session = Session.create(tmp_path / "s.zarr", {"source": []})
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 900, (9, 3, 37, 53), dtype="uint16")
        put(session, "movie", {"frames": frames}, frame_rate=2.0, pixel_size=0.0)
        rigid = rng.normal(size=(9, 3)).astype("float32")
        patches = rng.normal(size=(9, 3, 1, 2, 2)).astype("float32")
        grid = {"shifts_piecewise": {"grid_y": [18.0], "grid_x": [15.5, 36.5]}}
        arrays = {"shifts_rigid": rigid, "shifts_piecewise": patches}
        put(session, "motion_correction", arrays, grid)
        export_shifts_csv(session, tmp_path / "s.csv")
        header, values = read(tmp_path / "s.csv")
        assert header == ["frame", "time_s", *RIGID, "shift_z_planes", "flagged"]
        np.testing.assert_array_equal(values[:, [4, 2, 3]].astype(np.float32), rigid)
        assert export_piecewise_csv(session, tmp_path / "p.csv") == 6
        header, values = read(tmp_path / "p.csv")
        assert header[2] == "z0_y18_x15.5_shift_y_px"
        assert header[-1] == "z2_y18_x36.5_shift_x_px"
        np.testing.assert_array_equal(values[:, 2:].astype(np.float32), patches.reshape(9, -1))

    def test_rigid_ones_have_no_patches(self, handmade: Session, tmp_path: Path) -> None:
        """Neither need there be measures: those of an earlier version had none."""
        export_shifts_csv(handmade, tmp_path / "s.csv")
        header, values = read(tmp_path / "s.csv")
        assert header == ["frame", "time_s", *RIGID, "flagged"]
        assert not values[:, 2:].any()
        with pytest.raises(InputError, match=r"no piecewise shifts; run motion_correction with me"):
            export_piecewise_csv(handmade, tmp_path / "p.csv")
        assert not (tmp_path / "p.csv").exists()

    @pytest.mark.parametrize("export", [export_shifts_csv, export_piecewise_csv])
    def test_what_is_not_there_or_of_another_movie(
        self, export: Any, moved: Any, handmade: Session, tmp_path: Path, put: Any
    ) -> None:
        frames = {"frames": handmade.read("movie/frames") + 1}
        put(handmade, "movie", frames, frame_rate=9.0, pixel_size=1.5)
        with pytest.raises(InputError, match=r"motion_correction in .* is of an earlier import; r"):
            export(handmade, tmp_path / "s.csv")
        empty = Session.create(tmp_path / "s.zarr", {"source": []})
        with pytest.raises(InputError, match=r"has no motion_correction; run motion_correction fi"):
            export(empty, tmp_path / "s.csv")
        assert not (tmp_path / "s.csv").exists()


SOURCE_EXTRACTION = [
    f"source_extraction/{name}" for name in ("traces", "residuals", "deconvolved", "cell_id")
]


class TestCells:
    """The table of the cells' scores."""

    def read(self, session: Session, tmp_path: Path) -> list[dict[str, str]]:
        path = tmp_path / "cells.csv"
        n_cells = export_cells_csv(session, path)
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == n_cells
        return rows

    def test_a_row_for_each_cell_also_the_rejected(self, handmade: Session, tmp_path: Path) -> None:
        rows = self.read(handmade, tmp_path)
        quality = handmade.quality()
        assert [row["cell_id"] for row in rows] == ["4", "7", "9"]
        assert [row["accepted"] for row in rows] == [str(int(one)) for one in quality.accepted]
        for row, snr, correlation in zip(
            rows, quality.snr, quality.spatial_correlation, strict=True
        ):
            assert float(row["trace_snr"]) == pytest.approx(snr, rel=HALF_A_SIXTH_DIGIT)
            assert float(row["spatial_correlation"]) == pytest.approx(correlation, rel=1e-5)
            assert row["cnn_probability"] == ""
            assert row["decided_by"] == "scores"

    def test_centres_are_where_the_discs_are(self, handmade: Session, tmp_path: Path) -> None:
        """Two of them whole within the field; y and x are not swapped."""
        rows = self.read(handmade, tmp_path)
        assert [(float(row["y_px"]), float(row["x_px"])) for row in rows] == [
            (8, 40), (30, 11), (20, 25)]  # fmt: skip

    def test_a_choice_by_hand_is_told(self, handmade: Session, tmp_path: Path) -> None:
        accepted = dict(zip((4, 7, 9), handmade.quality().accepted.tolist(), strict=True))
        choose(handmade, [7], not accepted[7])
        rows = self.read(handmade, tmp_path)
        assert rows[1]["decided_by"] == "hand"
        assert rows[1]["accepted"] == str(int(not accepted[7]))
        export_csv(handmade, tmp_path / "t.csv")
        header, _ = read(tmp_path / "t.csv")
        accepted[7] = not accepted[7]
        assert [name.split()[0] for name in header[1:]] == [
            f"cell_{cell}" for cell, chosen in accepted.items() if chosen
        ]

    def test_reasons_are_in_words(self, handmade: Session, tmp_path: Path) -> None:
        group = zarr.open_group(handmade.path, path="component_evaluation", mode="r+")
        reasons = group.create_array("reasons", data=np.array([0, 2, 18], np.uint16))
        reasons.attrs["meanings"] = {"2": "trace SNR too low", "16": "too small"}
        assert [row["reason"] for row in self.read(handmade, tmp_path)] == [
            "", "trace SNR too low", "trace SNR too low, too small"]  # fmt: skip

    def test_noise_levels_and_marks_of_rates(self, handmade: Session, tmp_path: Path) -> None:
        rows = self.read(handmade, tmp_path)
        assert [row["noise_percent_per_root_hz"] for row in rows] == ["1.5", "", "9.25"]
        assert [row["spike_marks"] for row in rows] == ["", "unknown", "too noisy, smoothed"]

    def test_those_of_other_traces_are_left_out(
        self, handmade: Session, tmp_path: Path, put: Any
    ) -> None:
        names = ("traces", "baseline", "floored")
        put(handmade, "dff", {name: handmade.read(f"dff/{name}") for name in names}, window=9.0)
        with pytest.raises(InputError, match=r"spike_inference in .* is of an earlier dff"):
            export_csv(handmade, tmp_path / "t.csv", kind="spike_rate")
        for gone in (False, True):
            if gone:
                shutil.rmtree(handmade.path / "spike_inference")
            rows = self.read(handmade, tmp_path)
            assert [row["accepted"] for row in rows] == ["1", "0", "1"]
            assert {row["spike_marks"] + row["noise_percent_per_root_hz"] for row in rows} == {""}

    def test_without_evaluation(self, handmade: Session, tmp_path: Path) -> None:
        shutil.rmtree(handmade.path / "component_evaluation")
        with pytest.raises(InputError, match="run component_evaluation first"):
            export_cells_csv(handmade, tmp_path / "cells.csv")
