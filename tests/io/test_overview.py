"""The picture of a session."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from matplotlib.figure import Figure
from matplotlib.image import imread

from napari_calcium.errors import InputError
from napari_calcium.io.overview import save_overview
from napari_calcium.io.session import Session


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_it_is_a_picture(handmade: Session, tmp_path: Path) -> None:
    save_overview(handmade, tmp_path / "overview.png")
    image = imread(tmp_path / "overview.png")
    height, width = image.shape[:2]
    assert width > 2 * height
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 50


def test_the_field_lies_as_the_movie_does(
    handmade: Session, tmp_path: Path, drawn: list[Figure]
) -> None:
    save_overview(handmade, tmp_path / "overview.png")
    field = drawn[0].axes[0]
    (image,) = field.images
    np.testing.assert_array_equal(image.get_array(), handmade.read("summary_images/mean"))
    assert image.get_array().shape == (37, 53)
    bottom, top = field.get_ylim()
    assert bottom > top  # y runs down, as in napari
    assert "1.5 um" in field.get_xlabel()


def test_outlines_lie_around_the_accepted_cells(
    handmade: Session, tmp_path: Path, drawn: list[Figure]
) -> None:
    save_overview(handmade, tmp_path / "overview.png")
    lines = drawn[0].axes[0].lines
    centres = sorted((line.get_ydata().mean(), line.get_xdata().mean()) for line in lines)
    np.testing.assert_allclose(centres, [(8, 40), (20, 25)], atol=0.5)  # not that at (30, 11)
    assert "2 accepted of 3" in drawn[0].axes[0].get_title()


def test_traces_are_the_accepted_cells_best_first(
    handmade: Session, tmp_path: Path, drawn: list[Figure]
) -> None:
    shutil.rmtree(handmade.path / "spike_inference")
    save_overview(handmade, tmp_path / "overview.png")
    plot = drawn[0].axes[1]
    assert [label.get_text() for label in plot.get_yticklabels()] == ["cell 9", "cell 4"]
    dff = handmade.read("dff/traces")
    for line, cell in zip(plot.lines, (2, 0), strict=True):
        np.testing.assert_allclose(line.get_xdata(), np.arange(40) / 8.0)
        assert np.corrcoef(line.get_ydata(), dff[cell])[0, 1] > 0.999999
    colours = {line.get_color() for line in plot.lines}
    assert {line.get_color() for line in drawn[0].axes[0].lines} == colours
    assert len(colours) == 2


def test_rates_are_drawn_below_their_traces(
    handmade: Session, tmp_path: Path, drawn: list[Figure]
) -> None:
    save_overview(handmade, tmp_path / "overview.png")
    plot = drawn[0].axes[1]
    assert plot.get_title() == (
        "dF/F (fraction) and, in black, spike rate (Hz), each scaled to its maximum"
    )
    traces, rates = plot.lines[:2], plot.lines[2:]
    assert {line.get_color() for line in rates} == {"black"}
    stored = handmade.spike_rate()
    for trace, rate, cell in zip(traces, rates, (2, 0), strict=True):
        drawn_rate = rate.get_ydata()
        np.testing.assert_array_equal(np.isnan(drawn_rate), np.isnan(stored[cell]))
        assert np.corrcoef(drawn_rate[3:], stored[cell, 3:])[0, 1] > 0.999999
        assert np.nanmax(drawn_rate) < np.max(trace.get_ydata()) - 1  # rest is 1 below the peak
    said = [text.get_text().strip() for text in plot.texts]
    assert said[2:] == [f"max {np.nanmax(stored[cell]):.2g} Hz" for cell in (2, 0)]


@pytest.mark.parametrize("why", ["unknown", "of other traces"])
def test_rates_that_are_not_known_are_not_drawn(
    why: str, handmade: Session, tmp_path: Path, drawn: list[Figure], put: Any
) -> None:
    if why == "unknown":
        zarr.open_array(handmade.path, path="spike_inference/rate", mode="r+")[...] = np.nan
    else:
        names = ("traces", "baseline", "floored")
        put(handmade, "dff", {name: handmade.read(f"dff/{name}") for name in names}, window=9.0)
    save_overview(handmade, tmp_path / "overview.png")
    assert len(drawn[0].axes[1].lines) == 2
    assert "Hz" not in drawn[0].axes[1].get_title()


def test_traces_say_what_they_are(handmade: Session, tmp_path: Path, drawn: list[Figure]) -> None:
    shutil.rmtree(handmade.path / "spike_inference")
    save_overview(handmade, tmp_path / "overview.png")
    group = zarr.open_group(handmade.path, path="dff", mode="r+")
    group.attrs["kind"] = "detrended"
    traces = 1000 * handmade.read("dff/traces")
    traces[2, :7] = np.nan
    traces[2, 9] = 12_345
    zarr.open_array(handmade.path, path="dff/traces", mode="r+")[...] = traces
    save_overview(handmade, tmp_path / "overview.png")
    titles = [figure.axes[1].get_title() for figure in drawn]
    assert titles == [
        "dF/F (fraction), each scaled to its maximum",
        "detrended (counts), each scaled to its maximum",
    ]
    plot = drawn[1].axes[1]
    assert plot.texts[0].get_text().strip() == "max 12000"
    np.testing.assert_allclose(plot.lines[0].get_ydata(), traces[2] / 12_345, rtol=1e-5)


def test_a_session_without_an_accepted_cell(handmade: Session, tmp_path: Path, put: Any) -> None:
    scores = {name: np.zeros(3, "float32") for name in ("snr", "spatial_correlation")}
    scores |= {"cnn_probability": np.full(3, np.nan), "accepted": np.zeros(3, bool)}
    put(handmade, "component_evaluation", scores)
    save_overview(handmade, tmp_path / "overview.png")
    assert (tmp_path / "overview.png").stat().st_size > 1000


def test_a_stage_that_has_not_run(tmp_path: Path) -> None:
    session = Session.create(tmp_path / "s.zarr", {"source": []})
    with pytest.raises(InputError, match="has no summary_images; run summary_images first"):
        save_overview(session, tmp_path / "overview.png")
    assert not (tmp_path / "overview.png").exists()


def test_a_session_of_volumes(tmp_path: Path, put: Any) -> None:
    """They have no cells yet: what is missing is said, nothing breaks."""
    session = Session.create(tmp_path / "s.zarr", {"source": []})
    frames = np.zeros((9, 3, 37, 53), "uint16")
    put(session, "movie", {"frames": frames}, frame_rate=8.0, pixel_size=1.5)
    with pytest.raises(InputError, match="has no summary_images; run summary_images first"):
        save_overview(session, tmp_path / "overview.png")
