"""The demo: the sample recording from its file to dF/F, scored against its truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter1d

from napari_calcium.errors import InputError
from napari_calcium.io.sample import SAMPLE_FRAME_RATE, sample_recording, sample_truth
from napari_calcium.io.session import Session
from napari_calcium.pipeline.demo import DemoReport, run_demo
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run
from napari_calcium.pipeline.stages import STAGES
from napari_calcium.truth import load_truth


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "new" / "demo output"


@pytest.fixture(scope="module")
def report(folder: Path) -> DemoReport:
    return run_demo(folder)


def test_it_finds_the_cells(report: DemoReport) -> None:
    """The bound is what a user is promised; 0.9 is measured."""
    assert report.score.f1 >= 0.8
    assert report.score.trace_correlation > 0.9
    assert report.n_frames == 800
    assert report.n_true == 28
    assert 0.7 * 28 < report.n_accepted <= report.n_cells
    assert [stage.stage for stage in report.run.stages] == [stage.name for stage in STAGES]


def test_the_score_is_that_of_the_session(report: DemoReport) -> None:
    session = Session(report.session)
    assert session.frame_rate == SAMPLE_FRAME_RATE == 15.0
    assert int(session.quality().accepted.sum()) == report.n_accepted
    assert session.components().n_cells == report.n_cells


def test_the_rates_follow_the_spikes_of_the_simulation(report: DemoReport) -> None:
    """The bound is what a user is promised; 0.9 is measured. The smoothing here is scipy's."""
    session, truth = Session(report.session), load_truth(sample_truth())
    sd = session.group_attrs("spike_inference")["smoothing"] * session.frame_rate
    spikes = gaussian_filter1d(truth.spikes.astype(float), sd, mode="constant")
    rates = session.spike_rate()[session.quality().accepted]
    known = np.isfinite(rates).all(axis=0)
    assert known.mean() > 0.9
    matches = report.score.matches
    found = [np.corrcoef(rates[i, known], spikes[j, known])[0, 1] for i, j in matches]
    assert report.rate_correlation == pytest.approx(np.median(found), abs=1e-4)
    assert report.rate_correlation > 0.75


def test_its_files_are_there(report: DemoReport, folder: Path) -> None:
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["overview.png", "session.zarr", "spikes.csv", "traces.csv"]
    for table, kind in ((report.traces, "dff (fraction)"), (report.spikes, "spike_rate (Hz)")):
        rows = table.read_text(encoding="utf-8").splitlines()
        assert len(rows) == 801
        assert all(row.count(",") == report.n_accepted for row in rows)
        assert rows[0].endswith(kind)
    assert report.overview.read_bytes().startswith(b"\x89PNG")


def test_the_sample_is_imported_exactly_and_moves(report: DemoReport) -> None:
    session = Session(report.session)
    assert np.ptp(session.read("motion_correction/shifts_rigid"), axis=0).min() > 2
    np.testing.assert_array_equal(session.read("movie/frames"), tifffile.imread(sample_recording()))


def test_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    recipe = Recipe({"import": {"frame_rate": 3.0}})
    run(tmp_path / "session.zarr", [sample_recording()], recipe=recipe, until="import")
    report = run_demo(tmp_path)
    assert not any(stage.skipped for stage in report.run.stages)
    assert Session(report.session).frame_rate == 15.0


def test_a_session_of_another_recording_is_never_removed(tiff: Path, tmp_path: Path) -> None:
    recipe = Recipe({"import": {"frame_rate": 3.0}})
    sample = tmp_path / "sample.tif"  # even of the same name
    sample.write_bytes(tiff.read_bytes())
    run(tmp_path / "session.zarr", [sample], recipe=recipe, until="import")
    before = Session(tmp_path / "session.zarr").read("movie/frames")
    with pytest.raises(InputError, match=r"session\.zarr holds another recording \(sample\.tif\)"):
        run_demo(tmp_path)
    np.testing.assert_array_equal(Session(tmp_path / "session.zarr").read("movie/frames"), before)
