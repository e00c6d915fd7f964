"""The table of traces: what is in it is what is in the session."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_calcium.components import Components
from napari_calcium.errors import InputError
from napari_calcium.io.export import export_csv
from napari_calcium.io.session import Session

HALF_A_SIXTH_DIGIT = 5e-6
"""Values are written with six significant digits."""


def read(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    """Return the header and the numbers (time, column) of a table."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    return header, np.array(rows, float)


@pytest.mark.parametrize("kind", ["dff", "raw", "denoised"])
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
    }[kind]
    rows = [0, 2] if accepted_only else [0, 1, 2]
    identities = [4, 9] if accepted_only else [4, 7, 9]
    header, values = read(path)
    assert n_cells == len(rows)
    assert header == ["time (s)", *(f"cell_{identity} {kind}" for identity in identities)]
    np.testing.assert_allclose(values[:, 0], np.arange(40) / 8.0, atol=1e-6)
    np.testing.assert_allclose(values[:, 1:].T, traces[rows], rtol=HALF_A_SIXTH_DIGIT)


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
    assert str(error.value) == "kind of trace is 'dfff'; it must be one of dff, raw, denoised"


def test_what_has_not_run_is_said(tmp_path: Path) -> None:
    session = Session.create(tmp_path / "s.zarr", {"source": []})
    with pytest.raises(InputError, match=r"s\.zarr has no dff; run dff first$"):
        export_csv(session, tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize(
    ("kind", "accepted_only", "said"),
    [
        ("dff", False, r"^dff in .* is of an earlier source_extraction; run it again$"),
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


SOURCE_EXTRACTION = [
    f"source_extraction/{name}" for name in ("traces", "residuals", "deconvolved", "cell_id")
]
