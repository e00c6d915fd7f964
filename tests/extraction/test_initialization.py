from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_calcium.extraction.initialization import Greedy, greedy, high_pass

FIELD = (37, 53)


def soma(y: float, x: float, radius: float = 5) -> NDArray[np.float64]:
    rows, columns = np.mgrid[: FIELD[0], : FIELD[1]]
    return 1 / (1 + np.exp(4 * (np.hypot(rows - y, columns - x) - radius)))


def frames_of(
    places: list[tuple[float, float]], n_frames: int = 300, height: float = 8.0
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Frames of noise of sd 1 around 100 with cells, and the cells' traces."""
    rng = np.random.default_rng(0)
    traces = np.zeros((len(places), n_frames))
    for number, trace in enumerate(traces):
        for start in range(11 + 17 * number, n_frames, 47 + 12 * number):
            trace[start:] += height * 0.8 ** np.arange(n_frames - start)
    frames = 100 + rng.normal(size=(n_frames, *FIELD))
    for place, trace in zip(places, traces, strict=True):
        frames += trace[:, None, None] * soma(*place)
    return frames.astype(np.float32), traces


def find_cells(
    frames: NDArray[np.float32], min_pixels: int = 20, n_cells: int = 0, threshold: float = 12
) -> Greedy:
    sharp = high_pass(frames - np.median(frames, axis=0), 5)
    return greedy(sharp, 5, threshold, min_pixels, n_cells)


def cosine(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    norms = np.linalg.norm(first) * np.linalg.norm(second)
    return float((first * second).sum() / norms)


def test_each_cell_is_found() -> None:
    """Apart, touching, and at two borders; one fragment may remain, which refinement drops."""
    places = [(10, 12), (12, 22.5), (28, 30), (0, 40), (36, 52)]
    frames, traces = frames_of(places)
    found = find_cells(frames)
    assert len(places) <= len(found.footprints) == len(found.traces) <= len(places) + 1
    for place, trace in zip(places, traces, strict=True):
        scores = [cosine(footprint, soma(*place)) for footprint in found.footprints]
        best = int(np.argmax(scores))
        assert scores[best] > 0.9
        assert np.corrcoef(found.traces[best], trace)[0, 1] > 0.95


def test_footprints_have_unit_norm_and_are_not_negative() -> None:
    found = find_cells(frames_of([(10, 12), (28, 30)])[0])
    np.testing.assert_allclose(np.linalg.norm(found.footprints, axis=(1, 2)), 1, rtol=1e-6)
    assert found.footprints.min() == 0


@pytest.mark.parametrize("offset", [-30000, 0, 60000])
def test_what_is_added_to_all_frames_does_not_matter(offset: float) -> None:
    """Up to float32 of frames of 60000, whose last digit is 0.004."""
    frames, _ = frames_of([(10, 12), (28, 30)])
    found = find_cells(frames.copy())
    shifted = find_cells(frames + np.float32(offset))
    np.testing.assert_allclose(shifted.footprints, found.footprints, atol=0.01)


@pytest.mark.parametrize("n_frames", [1, 2, 3, 200])
def test_noise_and_constants_hold_no_cell(n_frames: int) -> None:
    rng = np.random.default_rng(4)
    for frames in (rng.normal(size=(n_frames, *FIELD)), np.full((n_frames, *FIELD), 7.0)):
        found = find_cells(frames.astype(np.float32))
        assert found.footprints.shape == (0, *FIELD)
        assert found.traces.shape == (0, n_frames)


def test_a_dead_half_of_the_field_does_no_harm() -> None:
    frames, _ = frames_of([(10, 12), (28, 15)])
    frames[:, :, 27:] = 0
    found = find_cells(frames)
    assert len(found.footprints) == 2
    assert np.isfinite(found.footprints).all()


def test_what_is_too_small_is_dropped() -> None:
    frames, _ = frames_of([(10, 12)])
    assert find_cells(frames, 40).few_pixels == 0
    assert len(find_cells(frames, 40).footprints) == 1
    assert find_cells(frames, 150).few_pixels > 0
    assert len(find_cells(frames, 150).footprints) == 0


def test_it_says_how_strong_the_strongest_was_that_was_not_enough() -> None:
    frames, _ = frames_of([(10, 12), (28, 30)])
    assert 1 < find_cells(frames).strongest < 12
    score = find_cells(frames, threshold=1000).strongest
    assert score > 12
    assert len(find_cells(frames, threshold=0.99 * score).footprints) == 1


def test_as_many_as_asked_for() -> None:
    frames, _ = frames_of([(10, 12), (12, 22.5), (28, 30)])
    every = find_cells(frames)
    for n_cells in (1, 2, 5):
        found = find_cells(frames, n_cells=n_cells)
        assert len(found.footprints) == n_cells
        both = min(n_cells, len(every.footprints))
        np.testing.assert_array_equal(found.footprints[:both], every.footprints[:both])


def test_the_high_pass_takes_away_what_is_wide() -> None:
    slope = np.mgrid[: FIELD[0], : FIELD[1]].sum(axis=0).astype(np.float32)
    inside = (slice(None), slice(16, 21), slice(20, 33))
    sharp = high_pass(np.stack([slope, np.full(FIELD, 9, np.float32)]), 2)
    assert np.abs(sharp[inside]).max() < 1e-3 * slope.max()
    assert np.abs(sharp[1]).max() < 1e-5 * 9


def test_greedy_takes_what_it_explains_out_of_the_patch() -> None:
    frames, _ = frames_of([(18, 26)], height=20)
    sharp = high_pass(frames - np.median(frames, axis=0), 5)
    footprints, traces, *_ = greedy(sharp, 5, 12, 20)
    assert len(footprints) == 1
    left = sharp - traces[0][:, None, None] * footprints[0]
    inside = soma(18, 26) > 0.9
    assert left[:, inside].std() < 1.2
    assert sharp[:, inside].std() > 3
