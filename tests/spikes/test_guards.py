from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d, uniform_filter1d
from scipy.signal import lfilter, savgol_filter

from napari_calcium.spikes import guards as module
from napari_calcium.spikes.ground_truth import read_dataset, resample
from napari_calcium.spikes.guards import (
    MEANINGS,
    NO_RATE,
    Mark,
    mark_sentence,
    mark_words,
    trace_marks,
    warnings_of,
)
from napari_calcium.spikes.noise import noise_level

RATE = 30.0
ANY = (0.0, np.inf)
GROUND_TRUTH = Path(__file__).parents[3] / "shared" / "data" / "spike_ground_truth"
REAL = [
    "DS06-GCaMP6f-zf-aDp",
    "DS13-GCaMP6s-m-V1-neuropil-corrected",
    "DS18-R-CaMP-m-CA3",
    "DS28-XCaMPgf-m-V1",
]


def calcium(seed: int = 0, n_frames: int = 3000, sd: float = 0.1, n_cells: int = 6) -> np.ndarray:
    """Transients of 1 dF/F and 0.7 s, one every 3 s, in white noise."""
    random = np.random.default_rng(seed)
    spikes = (random.random((n_cells, n_frames)) < 1 / 90).astype(float)
    return lfilter([1], [1, -np.exp(-1 / 21)], spikes) + random.normal(0, sd, spikes.shape)


def marks_of(dff: np.ndarray, levels: tuple[float, float] = ANY) -> list[int]:
    return trace_marks(np.atleast_2d(dff), RATE, levels).tolist()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("sd", [0.01, 0.1, 0.5])
def test_noise_and_calcium_are_not_marked(seed: int, sd: float) -> None:
    random = np.random.default_rng(seed)
    assert not any(marks_of(calcium(seed, sd=sd)))
    assert not any(marks_of(random.normal(0, sd, (50, 300))))
    assert not any(marks_of(random.normal(0, sd, (50, 70))))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "smoothed",
    [
        lambda dff: gaussian_filter1d(dff, 1.0),
        lambda dff: gaussian_filter1d(dff, 3.0),
        lambda dff: uniform_filter1d(dff, 2),
        lambda dff: uniform_filter1d(dff, 3),
        lambda dff: uniform_filter1d(dff, 5),
        lambda dff: savgol_filter(dff, 5, 2),
        lambda dff: np.stack([np.interp(np.arange(0, 2999, 0.5), np.arange(3000), r) for r in dff]),
        lambda dff: np.stack([np.interp(np.arange(0, 2999, 0.3), np.arange(3000), r) for r in dff]),
        lambda dff: np.float32(gaussian_filter1d(dff, 1.0)) + np.float32(5),
    ],
)
def test_smoothed_is_marked(seed: int, smoothed) -> None:
    assert marks_of(smoothed(calcium(seed))) == [Mark.SMOOTHED] * 6


def test_light_smoothing_is_mostly_marked() -> None:
    """A Savitzky-Golay filter over 7 frames of order 3 leaves most of the high frequencies."""
    marks = [mark for seed in range(5) for mark in marks_of(savgol_filter(calcium(seed), 7, 3))]
    assert sum(mark == Mark.SMOOTHED for mark in marks) > 20  # of 30


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_denoised_is_marked(seed: int) -> None:
    """Calcium without its noise, which only decays between spikes, also over float rounding."""
    clean = calcium(seed, sd=0.0)
    assert marks_of(clean) == [Mark.SMOOTHED] * 6
    assert marks_of(np.float32(clean) + np.float32(1)) == [Mark.SMOOTHED] * 6


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("sd", [0.02, 0.1, 0.5])
def test_percent_is_marked(seed: int, sd: float) -> None:
    """0.02 is a noise level of 0.35, as low as that of the best recordings."""
    assert marks_of(100 * calcium(seed, sd=sd)) == [Mark.PERCENT] * 6
    assert all(mark & Mark.PERCENT for mark in marks_of(100 * calcium(seed, sd=0.0)))


def test_noise_outside_of_the_training_is_marked() -> None:
    dff = np.random.default_rng(0).normal(0, 0.1, (1, 3000))
    level = float(noise_level(dff, RATE)[0])
    assert marks_of(dff, (0.9 * level, 1.1 * level)) == [0]
    assert marks_of(dff, (0.5 * level, 0.9 * level)) == [Mark.TOO_NOISY]
    assert marks_of(dff, (1.1 * level, 2 * level)) == [Mark.TOO_QUIET]


def test_short_and_broken_traces_are_unknown_and_nothing_else() -> None:
    dff = np.full((4, 640), np.nan)
    dff[1, ::2] = 1.0  # no two neighbouring frames
    dff[2, :63] = 500 * np.arange(63)
    dff[3, :64] = np.random.default_rng(0).normal(0, 0.1, 64)
    assert marks_of(dff) == [Mark.UNKNOWN] * 3 + [0]
    assert marks_of(np.zeros((1, 5))) == [Mark.UNKNOWN]
    assert trace_marks(np.zeros((0, 500)), RATE, ANY).shape == (0,)
    assert marks_of(np.zeros((2, 0))) == [Mark.UNKNOWN] * 2


def test_traces_without_noise_are_unknown() -> None:
    """Dead cells, and those of which most frames are the one before: there is no unit for them."""
    assert marks_of(np.zeros((1, 100)), (1, 8)) == [Mark.UNKNOWN]
    assert marks_of(np.full((2, 300), -0.7)) == [Mark.UNKNOWN] * 2
    assert marks_of(np.repeat(calcium(0), 3, axis=1)) == [Mark.UNKNOWN] * 6
    once = np.zeros((1, 300))
    once[0, 40:60] = 1 / np.arange(1, 21)
    assert marks_of(once) == [Mark.UNKNOWN]


@pytest.mark.parametrize("margin", [0, 16, 32])
def test_no_stretch_longer_than_two_margins_is_unknown(margin: int) -> None:
    """One stretch of 64 frames, one of 65, none; two gaps beside each other are no stretch."""
    dff = np.tile(calcium(0)[:1, :300], (4, 1))
    dff[0, 64:101] = dff[0, 165:200] = dff[0, 240:] = np.nan
    dff[1, 65:] = np.inf
    dff[2, ::30] = np.nan
    dff[2, 1::30] = np.nan
    found = trace_marks(dff, RATE, ANY, margin) == Mark.UNKNOWN
    longest = np.array([64, 65, 28, 300])
    np.testing.assert_array_equal(found, longest <= 2 * margin)


@pytest.mark.parametrize("hole", [np.nan, np.inf])
def test_unknown_frames_are_left_out(hole: float) -> None:
    dff = calcium(3)
    smoothed = gaussian_filter1d(dff, 1.5)
    for trace in (dff, smoothed):
        trace[:, 500:700] = trace[:, ::97] = hole
    assert not any(marks_of(dff))
    assert marks_of(smoothed) == [Mark.SMOOTHED] * 6


def test_marks_do_not_depend_on_the_other_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    dff = np.concatenate([calcium(0), gaussian_filter1d(calcium(1), 1.0), 100 * calcium(2)])
    together = trace_marks(dff.astype(np.float32), RATE, (1, 8))
    assert together.dtype == np.uint8
    monkeypatch.setattr(module, "AT_ONCE", 1)
    np.testing.assert_array_equal(trace_marks(dff.astype(np.float32), RATE, (1, 8)), together)
    with pytest.raises(ValueError, match="cell, time"):
        trace_marks(dff[0], RATE, ANY)


@pytest.mark.parametrize("name", [*REAL, "DS21-jGECO1a-m-V1"])
def test_ground_truth_is_not_marked(name: str) -> None:
    """As recorded, and averaged down; in percent all of it, interpolated nearly all is marked.

    Three recordings of DS21 were interpolated to twice their rate by those who published them.
    """
    path = GROUND_TRUTH / f"{name}.npz"
    if not path.is_file():
        pytest.skip("the ground truth is not here")
    found: Counter[str] = Counter()
    for one in read_dataset(path).recordings:
        slower = [rate for rate in (30.0, 15.0) if rate < 0.9 * one.frame_rate]
        for rate in (one.frame_rate, *slower, 2.5 * one.frame_rate):
            again = resample(one, rate)
            kind = "slower" if again.frame_rate <= one.frame_rate else "faster"
            marks = trace_marks(again.dff[None], again.frame_rate, ANY)[0]
            percent = trace_marks(100 * again.dff[None], again.frame_rate, ANY)[0]
            long = not marks & Mark.UNKNOWN
            found[kind] += long
            found[f"{kind} percent"] += long and bool(marks & Mark.PERCENT)
            found[f"{kind} smoothed"] += long and bool(marks & Mark.SMOOTHED)
            found["missed"] += long and not percent & Mark.PERCENT
    assert found["slower percent"] == found["faster percent"] == 0
    assert found["slower smoothed"] <= (3 if "DS21" in name else 0.02 * found["slower"])
    assert found["faster smoothed"] >= 0.98 * found["faster"] > 0
    assert found["missed"] <= 0.01 * (found["slower"] + found["faster"])


def test_words_and_meanings() -> None:
    assert MEANINGS == {
        "unknown": 1,
        "too_noisy": 2,
        "too_quiet": 4,
        "percent": 8,
        "smoothed": 16,
        "detrended": 32,
        "frame_rate": 64,
    }
    assert mark_words(0) == ""
    assert mark_words(np.uint8(127)).count(",") == 6
    assert NO_RATE == Mark.UNKNOWN | Mark.PERCENT | Mark.DETRENDED | Mark.FRAME_RATE


@pytest.mark.parametrize("mark", list(Mark))
def test_a_sentence_for_each_mark(mark: Mark) -> None:
    said = mark_sentence(int(mark), 12.34, RATE, (1, 8))
    assert said
    assert not said.endswith(".")
    assert "{" not in said
    if mark in (Mark.TOO_NOISY, Mark.TOO_QUIET, Mark.PERCENT):
        assert "12.3 % Hz^-0.5" in said
    assert mark_sentence(int(mark)) != ""
    assert mark_sentence(0) == ""


def test_nothing_is_said_of_the_rate_of_quiet_cells_that_does_not_hold() -> None:
    """Nothing sets their noise level to the lowest of training."""
    said = mark_sentence(Mark.TOO_QUIET, 0.01, RATE, (0.2, 12))
    for sentence in (said, *warnings_of([Mark.TOO_QUIET], [0.01], (0.2, 12))):
        assert "0.2" in sentence
        assert "lowest" not in sentence
        assert "has not been tested" in sentence


def test_warnings_count_the_cells() -> None:
    marks = np.array([0, 2, 2, 16, 8, 2], np.uint8)
    levels = np.array([1, 10, 12, 0.1, 300, 14], np.float32)
    said = warnings_of(marks, levels, (1, 8))
    assert len(said) == 3
    assert said[0].startswith("1 of 6 cells is probably in percent (median noise level 300")
    assert said[2].startswith("3 of 6 cells are noisier than the model was trained for (median 12")
    assert all(sentence.endswith(".") for sentence in said)
    assert warnings_of(np.zeros(4), np.ones(4)) == []
    assert warnings_of([], []) == []
    unknown = warnings_of([1, 1], [np.nan, np.nan])
    assert unknown == [
        "All 2 cells are constant, or known in fewer than 64 frames or too few in a row: "
        "no spikes are inferred."
    ]
    assert warnings_of([32], [np.nan])[0].startswith("The cell is detrended")
