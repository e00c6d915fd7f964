"""The noise of a session's traces and the fit of a model, without a window."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from napari_calcium.io.session import Session
from napari_calcium.napari.trace_noise import TraceNoise, fit_of, read_noise
from napari_calcium.spikes.guards import Mark, trace_marks
from napari_calcium.spikes.inference import SHIPPED, SpikeInferenceParameters
from napari_calcium.spikes.noise import noise_level

VALUES = SpikeInferenceParameters().to_mapping()


@pytest.fixture
def changed(finished: Path, tmp_path: Path) -> Any:
    """Give the stage dff other traces and attributes, in a session of its own."""
    path = Path(shutil.copytree(finished, tmp_path / "changed.zarr"))

    def change(traces: Any = None, **attrs: str) -> str:
        group = zarr.open_group(path, path="dff", mode="r+")
        group.attrs.update(attrs)
        if traces is not None:
            group["traces"][...] = traces
        return str(path)

    return change


# ------------------------------------------------------------------------------------- noise


def test_before_a_run_it_is_measured(session: Session) -> None:
    noise = read_noise(str(session.path))
    traces = session.read("dff/traces")
    np.testing.assert_allclose(noise.noise_level, noise_level(traces, 10.0), rtol=1e-6)  # float32
    levels = (0.5, 0.7)
    np.testing.assert_array_equal(noise.marks_for(levels), trace_marks(traces, 10.0, levels))


def test_after_a_run_it_is_what_was_stored(rated: Session, write_rates: Any) -> None:
    n_cells = len(rated.spike_noise_level())
    levels, marks = np.linspace(1, 9, n_cells), np.full(n_cells, Mark.SMOOTHED | Mark.TOO_NOISY)
    write_rates(rated.path, rated.spike_rate(), levels, marks)
    noise = read_noise(str(rated.path))
    np.testing.assert_allclose(noise.noise_level, levels, rtol=1e-6)
    np.testing.assert_array_equal(noise.marks, Mark.SMOOTHED)  # the rest depends on the model
    found = noise.marks_for((2.0, 5.0))
    expected = Mark.SMOOTHED | np.where(levels > 5, Mark.TOO_NOISY, 0)
    np.testing.assert_array_equal(found, expected | np.where(levels < 2, Mark.TOO_QUIET, 0))


@pytest.mark.parametrize("mark", [Mark.FRAME_RATE, Mark.UNKNOWN])
def test_that_an_earlier_model_was_not_for_the_traces_says_nothing_of_another(
    mark: Mark, rated: Session, write_rates: Any
) -> None:
    """Its frame rates or its margin were others; other marks are not stored then."""
    rate, traces = rated.spike_rate(), rated.read("dff/traces")
    level = noise_level(traces, 10.0)
    write_rates(rated.path, rate * np.nan, level, np.full(len(rate), mark))
    noise = read_noise(str(rated.path))
    np.testing.assert_allclose(noise.noise_level, level, rtol=1e-6)  # float32
    levels = (0.5, 0.7)
    np.testing.assert_array_equal(noise.marks_for(levels), trace_marks(traces, 10.0, levels))
    assert "frame rate" not in noise.said(levels)


def test_noise_is_of_the_frame_rate_that_the_recording_has_now(rated: Session) -> None:
    movie = rated.path / "movie" / "zarr.json"
    about = json.loads(movie.read_text("utf-8"))
    about["attributes"]["parameters"]["frame_rate"] = 40.0
    about["attributes"]["digest"] = "another"
    movie.write_text(json.dumps(about), "utf-8")
    noise = read_noise(str(rated.path))
    expected = noise_level(rated.read("dff/traces"), 40.0)
    np.testing.assert_allclose(noise.noise_level, expected, rtol=1e-6)  # float32


def test_infinite_frames_are_unknown(changed: Any, finished: Path) -> None:
    traces = Session(finished).read("dff/traces")
    traces[0, 50:52], traces[1, 60] = np.inf, -np.inf
    path = changed(traces)
    noise = read_noise(path)
    known = np.where(np.isfinite(traces), traces, np.nan)
    np.testing.assert_allclose(noise.noise_level, noise_level(known, 10.0), rtol=1e-6)  # float32
    np.testing.assert_array_equal(noise.marks_for((1, 8)), trace_marks(traces, 10.0, (1, 8)))


@pytest.mark.parametrize(("low", "high"), [(0.5, 20.0), (1.0, 8.0), (3.0, 4.0)])
def test_marks_for_a_model_are_those_that_inference_gives(
    low: float, high: float, changed: Any, finished: Path
) -> None:
    shape = Session(finished).array("dff/traces").shape
    rng = np.random.default_rng(0)
    traces = rng.normal(0, 1, shape) * np.geomspace(0.01, 0.6, shape[0])[:, None]
    traces[1, 20:] = np.nan
    path = changed(traces.astype(np.float32))
    stored = Session(path).read("dff/traces")
    found = read_noise(path).marks_for((low, high))
    np.testing.assert_array_equal(found, trace_marks(stored, 10.0, (low, high)))
    assert found[1] == Mark.UNKNOWN
    assert len(set(found.tolist())) > 1


def test_detrended_traces_have_no_noise_level(changed: Any) -> None:
    noise = read_noise(changed(kind="detrended"))
    assert np.isnan(noise.noise_level).all()
    np.testing.assert_array_equal(noise.marks, Mark.DETRENDED)
    assert noise.said((1, 8)).startswith(f"All {len(noise.marks)} cells are detrended, ")


def test_denoised_traces_are_marked(changed: Any) -> None:
    noise = read_noise(changed(output="denoised"))
    assert ((noise.marks & Mark.SMOOTHED) != 0).all()
    assert f"All {len(noise.marks)} cells are denoised, " in noise.said((0.1, 80))


def test_without_traces_there_is_none(finished: Path, tmp_path: Path) -> None:
    assert read_noise(str(tmp_path / "none.zarr")) is None
    path = shutil.copytree(finished, tmp_path / "s.zarr", ignore=lambda *_: ["dff"])
    assert read_noise(str(path)) is None


def test_counts_are_said() -> None:
    noise = TraceNoise(np.float32([1, 2, 9, 12]), np.zeros(4, np.uint8))
    assert noise.said((1, 8)).startswith("2 of 4 cells are noisier than ")
    assert noise.said((1, 20)) == (
        "The noise of the 4 cells has the median 5.5 % Hz^-0.5 and is within what the model was "
        "trained on, 1 to 20."
    )
    assert noise.said(None) == "The noise of the 4 cells has the median 5.5 % Hz^-0.5."
    assert TraceNoise(np.zeros(0, np.float32), np.zeros(0, np.uint8)).said((1, 2)) == (
        "There are no cells."
    )


# --------------------------------------------------------------------------------------- fit


@pytest.mark.parametrize("name", SHIPPED)
def test_a_model_says_what_it_is_for(name: str, session: Session) -> None:
    card = json.loads((SHIPPED[name] / "card.json").read_text("utf-8"))
    fit = fit_of(str(session.path), {**VALUES, "model": name})
    low, high = card["frame_rates"]
    neurons = sum(each["neurons"] for each in card["data"])
    kind = "excitatory neurons" if name == "excitatory" else "interneurons"
    assert fit.said.startswith(f"For {kind}")
    assert f"at {low:g} to {high:g} Hz; trained on {neurons} neurons of" in fit.said
    # 1.5 frames at 10 Hz, more than the 50 ms of the model
    assert fit.said.endswith(
        "Recommended at the 10 Hz of this recording; rates will be smoothed with a Gaussian of sd "
        "150 ms."
    )
    assert fit.noise_levels == tuple(card["noise_levels"])
    assert fit.fits


def test_a_smoothing_that_is_asked_for_is_said(session: Session) -> None:
    fit = fit_of(str(session.path), {**VALUES, "smoothing": 0.3, "kernel": "causal"})
    assert fit.said.endswith("smoothed with a causal kernel of 300 ms.")


def test_at_another_frame_rate_it_says_what_to_do(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "frame_rate", property(lambda _: 400.0))
    fit = fit_of(str(session.path), VALUES)
    assert not fit.fits
    assert "Recommended" not in fit.said
    assert "Frame_rate is 400 Hz and the model excitatory is for " in fit.said
    assert fit.noise_levels is not None


def test_without_a_session_only_what_it_is_for_is_said(tmp_path: Path) -> None:
    for path in ("", str(tmp_path / "none.zarr")):
        fit = fit_of(path, VALUES)
        assert fit.said.startswith("For excitatory neurons, at ")
        assert "Recommended" not in fit.said
        assert fit.fits


def test_a_model_of_ones_own_has_its_name(session: Session, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHIPPED["excitatory"], tmp_path / "own"))
    card = json.loads((folder / "card.json").read_text("utf-8"))
    card |= {"name": "mine", "frame_rates": [10, 10], "noise_levels": [2, 3], "data": []}
    (folder / "card.json").write_text(json.dumps(card), "utf-8")
    fit = fit_of(str(session.path), {**VALUES, "model_file": str(folder)})
    assert fit.said.startswith("The model mine, at 10 Hz. Recommended at the 10 Hz of this ")
    assert fit.noise_levels == (2.0, 3.0)


def test_what_cannot_be_used_is_said(session: Session, tmp_path: Path) -> None:
    fit = fit_of(str(session.path), {**VALUES, "model_file": str(tmp_path)})
    assert (fit.noise_levels, fit.fits) == (None, False)
    assert "holds no model for spike inference; give a folder" in fit.said
    fit = fit_of(str(session.path), {**VALUES, "smoothing": -1.0})
    assert fit.said.startswith("Smoothing is -1 s")
