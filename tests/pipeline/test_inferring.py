"""Spike inference as a stage: which cells, which traces, what is said, and on what it depends."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from napari_calcium.activity.dff import DffParameters
from napari_calcium.errors import InputError
from napari_calcium.io.choices import accepted_cells, choose
from napari_calcium.io.importing import ImportParameters
from napari_calcium.io.session import Session, StageRecord
from napari_calcium.pipeline import inferring
from napari_calcium.pipeline.inferring import check_rates, infer_rates
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import RunReport, run
from napari_calcium.spikes.guards import Mark
from napari_calcium.spikes.inference import (
    SHIPPED,
    SpikeInferenceParameters,
    SpikeModel,
    infer_spikes,
    read_spike_model,
    spike_rate,
)
from napari_calcium.spikes.noise import noise_level

NAMES = ("rate", "noise_level", "marks")
RATE = 10.0


def with_dff(path: Path, traces: NDArray[Any], **attrs: str) -> Session:
    """Put other traces in the place of a session's dF/F."""
    session = Session(path)
    record = session.record("dff")
    assert record is not None
    with session.writing("dff") as writer:
        for name in ("traces", "baseline"):
            writer.write(name, traces.astype(np.float32))
        for name in ("floored", "percentile"):
            writer.write(name, np.zeros(len(traces), bool if name == "floored" else np.float32))
        writer.attrs("", {"kind": "dff", "output": "raw", **attrs})
        writer.commit(StageRecord("dff", record.parameters, record.inputs, "another", {}))
    return session


def inferred(session: Session, **parameters: Any) -> dict[str, Any]:
    """Return the arrays of the stage, computed, and its attributes under the name ""."""
    rates = infer_rates(session, SpikeInferenceParameters(**parameters))
    with dask.config.set(scheduler="synchronous"):
        arrays, attrs = dask.compute(rates.arrays, rates.attrs)
    return {**arrays, "": attrs[""]}


def transients(n_cells: int, n_frames: int, seed: int = 0) -> NDArray[np.float32]:
    """Return dF/F (cell, time) of transients in white noise of a usual level."""
    rng = np.random.default_rng(seed)
    spikes = rng.random((n_cells, n_frames)) < 0.03
    decay = np.exp(-np.arange(60) / 8)
    calcium = np.stack([np.convolve(row, decay)[:n_frames] for row in spikes])
    return (calcium + rng.normal(0, 0.1, calcium.shape)).astype(np.float32)


class TestRates:
    """What is stored is what the kernel gives for the session's dF/F."""

    def test_of_all_cells_accepted_or_not(self, finished: Path) -> None:
        session = Session(finished)
        dff = session.read("dff/traces")
        parameters = SpikeInferenceParameters()
        model = read_spike_model(parameters)
        assert session.spike_rate().shape == dff.shape
        marks = session.read("spike_inference/marks")
        known = (marks & (Mark.UNKNOWN | Mark.PERCENT)) == 0
        assert known.sum() >= 4
        rate = spike_rate(dff, RATE, model, parameters)
        np.testing.assert_array_equal(session.spike_rate(), rate)
        assert np.isfinite(rate[known]).any(axis=1).all()
        found = session.spike_noise_level()
        np.testing.assert_allclose(found, noise_level(dff, RATE), rtol=1e-6)

    def test_a_decision_changes_no_rate(self, session_path: Path) -> None:
        session = Session(session_path)
        before = session.spike_rate()
        identity = int(session.read("source_extraction/cell_id")[0])
        choose(session, [identity], not accepted_cells(session)[0])
        recipe = Recipe.of_session(session).with_value("component_evaluation.snr_upper", 99.0)
        report = run(session_path, recipe=recipe)
        assert all(stage.skipped for stage in report.stages)
        assert session.spike_rate().tobytes() == before.tobytes()
        session.current("spike_inference")

    def test_the_attributes_say_how_it_was_made(self, finished: Path) -> None:
        session = Session(finished)
        about = session.group_attrs("spike_inference")
        model = read_spike_model(SpikeInferenceParameters())
        assert about["model"] == model.name
        assert len(about["model_digest"]) == 64
        assert about["smoothing"] == model.smoothing(RATE)
        assert about["kernel"] == "gaussian"
        assert about["margin"] == model.margin
        assert about["frame_rates"] == list(model.frame_rates)
        assert about["noise_levels"] == list(model.noise_levels)
        assert session.summary("spike_inference").startswith(
            f"Spike rates (Hz), model {model.name}"
        )
        meanings = session.array("spike_inference/marks").attrs["meanings"]
        assert isinstance(meanings, dict)
        assert meanings.keys() == {str(int(mark)) for mark in Mark}

    def test_a_smoothing_of_its_own(self, finished: Path) -> None:
        own, given = (inferred(Session(finished), smoothing=value) for value in (0.0, 0.4))
        assert given[""]["smoothing"] == 0.4
        assert np.nanstd(given["rate"]) < np.nanstd(own["rate"])

    def test_without_a_cell(self, session_path: Path) -> None:
        found = inferred(with_dff(session_path, np.zeros((0, 300))))
        assert [found[name].shape for name in NAMES] == [(0, 300), (0,), (0,)]
        assert [found[name].dtype.name for name in NAMES] == ["float32", "float32", "uint8"]
        assert found[""]["warnings"] == []
        assert found[""]["summary"].endswith("cells: 0.")


class TestRepetition:
    """The result depends on the traces alone."""

    @pytest.mark.parametrize("size", [1, 3, 7, 64])
    def test_how_cells_are_shared_out_does_not_matter(
        self, size: int, session_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dff = transients(11, 300)
        dff[4] = np.nan
        dff[5, 40:90] = np.nan
        session = with_dff(session_path, dff)
        expected = inferred(session)
        monkeypatch.setattr(inferring, "CELLS", size)
        found = inferred(session)
        for name in NAMES:
            np.testing.assert_array_equal(found[name], expected[name])
        assert found["marks"][4] & Mark.UNKNOWN
        assert np.isnan(found["rate"][4]).all()

    @pytest.mark.parametrize("workers", [1, 2, 5])
    def test_workers_do_not_matter(
        self,
        workers: int,
        finished: Path,
        session_path: Path,
        recipe: Recipe,
        assert_identical: Callable[[Path, Path], None],
    ) -> None:
        shutil.rmtree(session_path / "spike_inference")
        report = run(session_path, recipe=recipe, workers=workers)
        assert [s.stage for s in report.stages if not s.skipped] == ["spike_inference"]
        assert_identical(finished, session_path)

    @pytest.mark.parametrize("shape", [(40, 300), (3, 200_000), (1, 2**20)])
    def test_tasks_are_bounded(
        self, shape: tuple[int, int], session_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A task takes 2 MB of traces, or one cell; 16 cells at most."""
        taken = []

        def watched(dff: da.Array, *rest: Any) -> Any:
            taken.append(dff.chunks)
            return infer_spikes(dff, *rest)

        monkeypatch.setattr(inferring, "infer_spikes", watched)
        session = with_dff(session_path, np.zeros(shape, np.float32))
        infer_rates(session, SpikeInferenceParameters())
        ((cells, frames),) = taken
        assert frames == shape[1:]
        assert max(cells) <= 16
        assert max(cells) == 1 or max(cells) * shape[1] * 4 <= 2**21
        assert len(cells) == -(-shape[0] // max(cells))


class TestKinds:
    """Traces of which no rate is to be trusted, or none is known."""

    def ran(self, path: Path, **values: Any) -> RunReport:
        recipe = Recipe.of_session(Session(path))
        return run(
            path, recipe=recipe.with_all({k.replace("__", "."): v for k, v in values.items()})
        )

    def test_detrended(self, session_path: Path) -> None:
        report = self.ran(session_path, import__modality="one-photon")
        session = Session(session_path)
        assert session.group_attrs("dff")["kind"] == "detrended"
        assert session.spike_rate().shape == session.array("dff/traces").shape
        assert np.isnan(session.spike_rate()).all()
        assert np.isnan(session.spike_noise_level()).all()
        assert set(session.read("spike_inference/marks").tolist()) == {int(Mark.DETRENDED)}
        assert {words.split(",")[0] for words in session.spike_marks()} == {"detrended"}
        (warning,) = report.stages[-1].warnings
        assert "no spikes are inferred" in warning
        assert session.summary("spike_inference").startswith("No spike rates; cells: ")

    def test_detrended_traces_need_no_model(self, session_path: Path) -> None:
        """Neither need the frame rate be one of a model."""
        for rate in (1e-3, 1e5):
            imported = ImportParameters(frame_rate=rate, modality="one-photon")
            check_rates(SpikeInferenceParameters(model_file="none"), imported, DffParameters())
        session = with_dff(session_path, transients(2, 300), kind="detrended")
        found = inferred(session, model_file="none")
        assert np.isnan(found["rate"]).all()

    def test_denoised(self, session_path: Path) -> None:
        report = self.ran(session_path, dff__output="denoised")
        session = Session(session_path)
        assert np.isfinite(session.spike_rate()).any()
        assert (session.read("spike_inference/marks") & Mark.SMOOTHED).all()
        said = report.stages[-1].warnings
        assert "set dff.output to raw and run again" in said[0]
        report = self.ran(session_path, dff__output="raw")
        assert not any("dff.output" in warning for warning in report.stages[-1].warnings)

    def test_a_session_from_before_dff_said_what_it_is(self, session_path: Path) -> None:
        session = Session(session_path)
        expected = inferred(session)
        group = zarr.open_group(session_path, path="dff", mode="r+")
        for name in ("kind", "output"):
            del group.attrs[name]
        np.testing.assert_array_equal(inferred(session)["rate"], expected["rate"])

    def test_cells_of_all_sorts(self, session_path: Path) -> None:
        """Far too noisy, in percent and unknown: each is marked and counted, others are not."""
        model = read_spike_model(SpikeInferenceParameters())
        dff = transients(6, 600)
        noisy = 3 * model.noise_levels[1] * np.sqrt(RATE) / 95.4
        dff[1] = np.random.default_rng(1).normal(0, noisy, 600)
        dff[2] *= 100
        dff[3] = np.nan
        found = inferred(with_dff(session_path, dff))
        marks, rate = found["marks"], found["rate"]
        assert marks[1] & Mark.TOO_NOISY
        assert marks[2] & Mark.PERCENT
        assert marks[3] == Mark.UNKNOWN
        assert not (marks[[0, 4, 5]] & (Mark.UNKNOWN | Mark.PERCENT | Mark.TOO_NOISY)).any()
        assert np.isnan(rate[[2, 3]]).all()
        assert np.isfinite(rate[[0, 1, 4, 5]]).any(axis=1).all()
        assert "2 too noisy, 1 dF/F in percent" in found[""]["summary"]
        assert len(found[""]["warnings"]) >= 3

    @pytest.mark.parametrize("edges", ["unknown", "padded"])
    def test_whatever_has_no_rate_is_marked(self, edges: str, session_path: Path) -> None:
        """Dead cells, and those with gaps so close that every frame is near one."""
        dff = transients(5, 300)
        dff[0], dff[1] = 0, 0.2
        dff[2:4, ::30] = np.nan
        found = inferred(with_dff(session_path, dff), edges=edges)
        marked = [True, True, edges == "unknown", edges == "unknown", False]
        assert (found["marks"] == Mark.UNKNOWN).tolist() == marked
        assert np.isnan(found["rate"]).all(axis=1).tolist() == marked
        assert f"{sum(marked)} too short or constant" in found[""]["summary"]
        assert any(warning.startswith(f"{sum(marked)} of 5") for warning in found[""]["warnings"])


class TestModelFile:
    """A model from elsewhere."""

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        """A folder of a model: a copy of the one that comes with the program."""
        return Path(shutil.copytree(SHIPPED["excitatory"], tmp_path / "model"))

    def again(self, path: Path, model: Path | str, **others: Any) -> bool:
        """Infer spikes, and say whether there was anything to do."""
        values = {"model_file": str(model), **others}
        recipe = Recipe.of_session(Session(path)).with_values("spike_inference", values)
        report = run(path, recipe=recipe, until="spike_inference")
        assert all(stage.skipped for stage in report.stages[:-1])
        return not report.stages[-1].skipped

    def test_its_content_counts(self, model: Path, session_path: Path) -> None:
        assert self.again(session_path, model)
        assert not self.again(session_path, model)
        for file in model.iterdir():
            file.touch()  # another date, the same content
        assert not self.again(session_path, model)
        (model / "note.txt").write_text("trained once more")
        assert self.again(session_path, model)
        Session(session_path).current("spike_inference")
        assert self.again(session_path, "")

    def test_the_same_model_gives_the_same_rates(
        self, model: Path, finished: Path, session_path: Path
    ) -> None:
        assert self.again(session_path, model)
        expected = Session(finished).spike_rate()
        np.testing.assert_array_equal(Session(session_path).spike_rate(), expected)

    def test_once_used_it_is_not_needed_any_more(self, model: Path, session_path: Path) -> None:
        assert self.again(session_path, model)
        shutil.rmtree(model)
        assert not self.again(session_path, model)
        with pytest.raises(InputError, match="there is no such file; check the path"):
            self.again(session_path, model, smoothing=0.3)
        assert Session(session_path).record("spike_inference") is not None

    def test_a_folder_without_one_is_said_before_anything_runs(
        self, tiff: Path, recipe: Recipe, tmp_path: Path
    ) -> None:
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
        asked = recipe.with_value("spike_inference.model_file", str(tmp_path / "thesis"))
        with pytest.raises(InputError, match=r"^spike_inference\..*thesis"):
            run(tmp_path / "s.zarr", [tiff], recipe=asked)
        assert not (tmp_path / "s.zarr").exists()

    def test_a_new_model_that_comes_with_the_program(
        self, session_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def another(_: SpikeInferenceParameters) -> dict[str, str]:
            return {"spike_model": "that of a later version"}

        monkeypatch.setattr(SpikeInferenceParameters, "shipped", another)
        report = run(session_path, recipe=recipe)
        assert [s.stage for s in report.stages if not s.skipped] == ["spike_inference"]
        Session(session_path).current("spike_inference")


@pytest.mark.parametrize("rates", [(0.1, 1.0), (100.0, 200.0)])
def test_a_frame_rate_that_was_not_trained_marks_every_cell(
    rates: tuple[float, float], session_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other stages are not in vain: the run goes on and says why there are no rates."""
    session = with_dff(session_path, transients(2, 300))
    monkeypatch.setattr(SpikeModel, "frame_rates", rates)
    found = inferred(session)
    assert np.isnan(found["rate"]).all()
    assert np.isfinite(found["noise_level"]).all()
    assert found["marks"].tolist() == [Mark.FRAME_RATE] * 2
    (warning,) = found[""]["warnings"]
    assert warning.startswith("All 2 cells are of a frame rate that the model was not trained for")
