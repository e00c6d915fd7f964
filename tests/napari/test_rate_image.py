"""Rates as an image, against the rates themselves and without a window."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_calcium.io.session import Session
from napari_calcium.napari import rate_image as module
from napari_calcium.napari.rate_image import pooled, rate_image, read_rate_image


def some_rates(seed: int, n_cells: int = 37, n_frames: int = 1301) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rates = rng.exponential(3.0, (n_cells, n_frames)) * (rng.random((n_cells, n_frames)) < 0.1)
    rates[:, :8], rates[5], rates[7, 100:300] = np.nan, np.nan, np.nan
    return rates.astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_steps_are_the_rates_to_half_a_step(seed: int) -> None:
    rates = some_rates(seed)
    image = rate_image(rates, np.arange(37))
    first = image.levels[0]
    unknown = np.isnan(rates)
    np.testing.assert_array_equal(first == 0, unknown)
    shown = (first[~unknown].astype(float) - 1) * image.brightest / 254
    expected = np.minimum(rates[~unknown], image.brightest)
    np.testing.assert_allclose(shown, expected, atol=0.5001 * image.brightest / 254)
    beyond = np.nanmean(rates > image.brightest)
    assert 0 < beyond < 0.003  # 0.2 %, and the rounding of the brightest to two digits
    np.testing.assert_array_equal(image.known, ~unknown.all(axis=1))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [(37, 1301), (10, 200), (3, 61), (1, 1)])
@pytest.mark.parametrize(
    ("rows", "frames"),
    [((0, 30), (0, 1301)), ((3.4, 21.2), (250.5, 777.7)), ((-4, 99), (-50, 3e3))],
)
def test_a_pixel_is_the_largest_of_what_it_stands_for(
    seed: int,
    size: tuple[int, int],
    rows: tuple[float, float],
    frames: tuple[float, float],
) -> None:
    """And no spike that is seen is left out, whatever the room."""
    image = rate_image(some_rates(seed), np.arange(37))
    cells = np.delete(np.arange(37), [0, 11, 12, 13, 20, 30, 36])
    found = image.stretch(cells, rows, frames, size)
    whole = image.levels[0][cells]
    per_row, per_column = found.cells_per_row, found.frames_per_column
    height, width = found.pixels.shape
    tops = found.first_row + per_row * np.arange(height)
    lefts = found.first_frame + per_column * np.arange(width)
    expected = np.maximum.reduceat(whole[: tops[-1] + per_row], tops, axis=0)
    expected = np.maximum.reduceat(expected[:, : lefts[-1] + per_column], lefts, axis=1)
    np.testing.assert_array_equal(found.pixels, expected)
    assert height <= size[0] + 1  # and one that is seen in part at each end
    if per_column < 2 ** (len(image.levels) - 1):
        assert width <= size[1] + 2
    assert found.first_row <= max(rows[0], 0)
    assert found.first_frame <= max(frames[0], 0)
    assert found.first_row + height * per_row >= min(rows[1], len(cells))
    assert found.first_frame + width * per_column >= min(frames[1], 1301)


def test_without_any_rate_above_0_there_is_a_scale() -> None:
    nothing = np.zeros((3, 10), np.float32)
    assert rate_image(nothing, np.arange(3)).brightest == 1.0
    assert rate_image(nothing * np.nan, np.arange(3)).brightest == 1.0
    assert rate_image(np.zeros((0, 10), np.float32), np.arange(0)).brightest == 1.0
    nothing[1, 4] = 0.123  # hardly any: above the percentile there is one of a million
    assert rate_image(np.repeat(nothing, 1000, axis=1), np.arange(3)).brightest == 0.12


def test_pooling_leaves_nothing_out() -> None:
    rates = some_rates(0)
    for factor in (1, 2, 7, 5000):
        found = pooled(rates, factor)
        starts = range(0, 1301, factor)
        expected = [np.fmax.reduce(rates[:, n : n + factor], axis=1) for n in starts]
        np.testing.assert_array_equal(found, np.stack(expected, axis=1))


def test_it_is_read_from_a_session(rated: Session) -> None:
    image = read_rate_image(str(rated.path))
    rate = rated.spike_rate()
    expected = rate_image(rate, rated.read("source_extraction/cell_id"))
    np.testing.assert_array_equal(image.cell_id, expected.cell_id)
    np.testing.assert_array_equal(image.levels[0], expected.levels[0])
    assert (image.n_frames, image.frames_per_column) == (200, 1)


def test_a_long_recording_is_held_coarser(rated: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    n_cells, n_frames = rated.spike_rate().shape
    monkeypatch.setattr(module, "LARGEST", n_cells * n_frames // 3)
    image = read_rate_image(str(rated.path))
    assert image.frames_per_column == 4
    assert image.n_frames == n_frames
    assert image.levels[0].shape == (n_cells, n_frames // 4)
    found = image.stretch(np.arange(n_cells), (0, n_cells), (100, 140), (50, 50))
    assert (found.first_frame, found.frames_per_column) == (100, 4)
    assert found.pixels.shape == (n_cells, 10)


def test_there_is_none_without_rates_of_these_traces(
    finished: Path, rated: Session, tmp_path: Path
) -> None:
    assert read_rate_image(str(tmp_path / "none.zarr")) is None
    assert read_rate_image(str(finished)) is None
    dff = rated.path / "dff" / "zarr.json"
    record = rated.record("dff")
    dff.write_text(dff.read_text().replace(record.digest, "another"))
    assert read_rate_image(str(rated.path)) is None


def test_a_thousand_cells_are_drawn_in_milliseconds(tmp_path: Path, many_cells: Any) -> None:
    """What the window does itself, of 1000 cells in 10 000 frames; reading is a thread's."""
    path = many_cells(tmp_path / "many.zarr", 1000, 10_000)
    image = read_rate_image(str(path))
    cells = np.arange(0, 1000, 2)
    for frames in ((0, 10_000), (2_000, 4_500), (500, 600)):
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            found = image.stretch(cells, (0, 500), frames, (250, 1000))
            seconds.append(time.perf_counter() - start)
        assert found.pixels.size <= 251 * 1002
        assert min(seconds) < 0.02  # measured 0.5 ms; 100 ms is what a person would feel


def test_write_rates_is_read_as_current(rated: Session, write_rates: Any) -> None:
    assert rated.is_current("spike_inference")
    write_rates(rated.path, rated.spike_rate() * 0 + 2, rated.spike_noise_level())
    assert read_rate_image(str(rated.path)).brightest == 2
