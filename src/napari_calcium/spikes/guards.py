"""What speaks against a spike rate: traces of a kind that no network was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_calcium.spikes.noise import MEDIAN_STEP
from napari_calcium.spikes.noise import noise_level as level_of

__all__ = [
    "MEANINGS",
    "NO_RATE",
    "WORDS",
    "Mark",
    "mark_sentence",
    "mark_words",
    "trace_marks",
    "warnings_of",
]

Floats = NDArray[np.float64]


class Mark(IntFlag):
    """What speaks against the spike rate of a cell; several may hold."""

    UNKNOWN = 1
    TOO_NOISY = 2
    TOO_QUIET = 4
    PERCENT = 8
    SMOOTHED = 16
    DETRENDED = 32
    FRAME_RATE = 64


NO_RATE = Mark.UNKNOWN | Mark.PERCENT | Mark.DETRENDED | Mark.FRAME_RATE
"""The marks with which the rate is not known."""

WORDS: dict[Mark, str] = {
    Mark.UNKNOWN: "too short or constant",
    Mark.TOO_NOISY: "too noisy",
    Mark.TOO_QUIET: "quieter than trained",
    Mark.PERCENT: "dF/F in percent",
    Mark.SMOOTHED: "denoised or smoothed",
    Mark.DETRENDED: "detrended",
    Mark.FRAME_RATE: "frame rate not trained",
}
"""Each mark in a few words."""

MEANINGS: dict[str, int] = {mark.name.lower(): int(mark) for mark in Mark if mark.name}
"""The bit of each mark by its name."""

SHORTEST = 64
"""Frames that a trace has at least: a window of the networks of Rupprecht et al. 2021."""

AT_ONCE = 2**18
"""Values that are looked at together: a few arrays of 2 MB."""

FEWEST_CHANGES = 0.25
"""Part of the steps that turn back, below which a trace is smooth: 2/3 do in white noise."""

FEWEST_RISES = 0.3
"""Part of the steps that go up, below which a trace is all decay: half of them do in noise."""

SAME = 1e-6
"""Steps smaller than this part of the largest value are rounding."""

WINDOW = 32
"""Frames of the windows whose spectra are averaged, each half over the next."""

FEWEST_WINDOWS = 16
"""Of fewer, a gap in the spectrum may be chance."""

GAPS = ((8, 0.07), (4, 0.02))
"""From which of the 17 frequencies up the weakest has less than which part of the strongest.

Above half the Nyquist frequency, and above a quarter of it. Noise is as strong everywhere, calcium
weaker the higher the frequency, but only slowly; a filter over frames makes a gap, and so does
interpolation.
"""

PERCENT_PRODUCT = 250.0
"""Noise level times range (98 % of the values) above which dF/F is in percent: both are 100 times
larger then. Ground truth reaches 238 as a fraction, and 263 is its least in percent."""

PERCENT_RANGE = 60.0
"""Range above which dF/F is in percent whatever its noise."""

SENTENCES: dict[Mark, str] = {
    Mark.DETRENDED: (
        "the trace is F - F0 in counts, not dF/F, and spikes are not inferred from it; for "
        "two-photon recordings, mark the recording two-photon and run dff with kind dff"
    ),
    Mark.FRAME_RATE: (
        "the model was not trained for the frame rate{rate}, and spikes are not inferred; average "
        "frames, or train a model for it with napari-calcium train-spikes"
    ),
    Mark.UNKNOWN: (
        "the trace has fewer than {shortest} known frames, too few of them in a row, or mostly "
        "steps of 0, and spikes are not inferred from it; give one that is longer and as "
        "recorded, or set edges to padded where it has many gaps"
    ),
    Mark.PERCENT: (
        "dF/F looks like percent (noise level {level}), and spikes are not inferred from it; "
        "divide by 100, or find out whether F0 is near zero"
    ),
    Mark.SMOOTHED: (
        "the noise of neighbouring frames is not independent, as in denoised, smoothed or "
        "interpolated traces, and the rate is not to be trusted; give raw dF/F as recorded"
    ),
    Mark.TOO_NOISY: (
        "the noise level is {level}{above}, and the rate is less precise than it looks; average "
        "more pixels or frames, or leave the cell out"
    ),
    Mark.TOO_QUIET: (
        "the noise level is {level}{below}, and how good the rate is has not been tested; check "
        "that dF/F is a fraction and raw"
    ),
}
"""What to say of a cell of each mark, the gravest first."""

UNIT = "% Hz^-0.5"


def trace_marks(
    dff: ArrayLike, frame_rate: float, noise_levels: tuple[float, float], margin: int = 0
) -> NDArray[np.uint8]:
    """Return what speaks against inferring spikes from dF/F traces.

    SMOOTHED is told by the trace alone: its steps seldom turn back or seldom go up, or its spectrum
    has a gap that neither noise nor calcium has. Averaging or smoothing over 2 frames or more, with
    a Gaussian of sd 1 frame or more, or interpolation to twice the frame rate or more shows; less
    than that mostly does not. Frames averaged to a lower rate do not show, as they should not.

    Parameters
    ----------
    dff : array_like (cell, time)
        dF/F as a fraction. NaN and infinite frames are left out.
    frame_rate : float
        Hz.
    noise_levels : tuple of float
        Lowest and highest noise level that the model was trained on, % per root Hz.
    margin : int
        Frames at both ends, and beside unknown frames, of which no rate is wanted.

    Returns
    -------
    ndarray of uint8 (cell,)
        Bits of `Mark`, 0 where nothing speaks against it. Where UNKNOWN, that is the only one:
        fewer than 64 frames are known, no stretch of them is longer than two margins, or the noise
        level is 0, as that of a trace that is constant.

    Notes
    -----
    A trace in percent differs from one with a hundred times the noise by nothing but being likely.
    The product of noise level and range tells all ground truth of Rupprecht et al. 2021 from the
    same in percent, but for one neuron whose F0 is near zero.

    References
    ----------
    .. [1] Rupprecht et al., Nature Neuroscience 2021, doi:10.1038/s41593-021-00895-5

    Examples
    --------
    >>> white = np.random.default_rng(0).normal(0, 0.1, (1, 1000))
    >>> smoothed = (white[:, 1:-1] + white[:, :-2] + white[:, 2:]) / 3
    >>> [mark_words(*trace_marks(dff, 30.0, (1, 8))) for dff in (white, 10 * white, smoothed)]
    ['', 'too noisy', 'quieter than trained, denoised or smoothed']
    """
    dff = np.asarray(dff)
    if dff.ndim != 2:
        raise ValueError(f"dff is (cell, time), not {dff.shape}")
    marks = np.zeros(len(dff), np.uint8)
    size = max(1, AT_ONCE // max(1, dff.shape[1]))
    for start in range(0, len(dff), size):
        part = np.array(dff[start : start + size], np.float64)
        part[~np.isfinite(part)] = np.nan
        marks[start : start + size] = _marks(part, frame_rate, noise_levels, margin)
    return marks


def mark_words(marks: int) -> str:
    """Return marks in a few words; "" where there is none.

    Examples
    --------
    >>> mark_words(Mark.TOO_NOISY | Mark.SMOOTHED), mark_words(0)
    ('too noisy, denoised or smoothed', '')
    """
    return ", ".join(words for mark, words in WORDS.items() if int(marks) & mark)


def mark_sentence(
    marks: int,
    noise_level: float = np.nan,
    frame_rate: float = np.nan,
    noise_levels: Sequence[float] | None = None,
) -> str:
    """Say what speaks most against the rate of a cell, and what to do.

    Parameters
    ----------
    marks : int
        Bits of `Mark`.
    noise_level : float
        Of the cell, % per root Hz.
    frame_rate : float
        Hz; where it is given, the noise is also said as its sd from frame to frame.
    noise_levels : sequence of float, optional
        Lowest and highest that the model was trained on.

    Returns
    -------
    str
        One sentence on the gravest mark; "" where there is none.

    Examples
    --------
    >>> mark_sentence(Mark.TOO_NOISY, 12.0, noise_levels=(1, 8))
    'the noise level is 12 % Hz^-0.5, above the 8 of training, and the rate is less precise than \
it looks; average more pixels or frames, or leave the cell out'
    """
    low, high = noise_levels or (np.nan, np.nan)
    level = f"{noise_level:.3g} {UNIT}"
    if np.isfinite(frame_rate):
        sd = noise_level * np.sqrt(frame_rate) / (100 * MEDIAN_STEP)
        level += f", an sd of {sd:.2g} dF/F from frame to frame"
    above, below = (
        f", {side} the {limit:g} of training"
        if np.isfinite(limit)
        else f", {side} that of training"
        for side, limit in (("above", high), ("below", low))
    )
    gravest = next((mark for mark in SENTENCES if int(marks) & mark), None)
    if gravest is None:
        return ""
    rate = f" of {frame_rate:g} Hz" if np.isfinite(frame_rate) else ""
    return SENTENCES[gravest].format(
        level=level, above=above, below=below, shortest=SHORTEST, rate=rate
    )


def warnings_of(
    marks: ArrayLike, noise_level: ArrayLike, noise_levels: Sequence[float] | None = None
) -> list[str]:
    """Return what a person should know of a set of cells before trusting their rates.

    Parameters
    ----------
    marks : array_like of int (cell,)
        Bits of `Mark`.
    noise_level : array_like (cell,)
        % per root Hz.
    noise_levels : sequence of float, optional
        Lowest and highest that the model was trained on, to be said.

    Returns
    -------
    list of str
        One sentence for each mark that any cell has, the gravest first.

    Examples
    --------
    >>> warnings_of([0, Mark.TOO_NOISY, 0], [2.0, 12.0, 3.0], (1, 8))
    ['1 of 3 cells is noisier than the model was trained for (median 12, trained up to 8 \
% Hz^-0.5): marked too noisy, the rate is less precise than it looks.']
    """
    bits, levels = np.asarray(marks).astype(int), np.asarray(noise_level, np.float64)
    low, high = noise_levels or (None, None)
    said = []
    for mark in SENTENCES:
        marked = (bits & mark) != 0
        if marked.any():
            known = levels[marked & np.isfinite(levels)]
            median = f"{np.median(known):.3g}" if len(known) else "unknown"
            said.append(_counted(int(marked.sum()), len(bits)) + _about(mark, median, low, high))
    return said


def _counted(n: int, total: int) -> str:
    whole = total == 1 or n == total
    return (
        ("The cell is " if total == 1 else f"All {total} cells are ")
        if whole
        else (f"{n} of {total} cells {'is' if n == 1 else 'are'} ")
    )


def _about(mark: Mark, median: str, low: float | None, high: float | None) -> str:
    """Return the end of a sentence about the cells of a mark."""
    lowest = "" if low is None else f", trained from {low:g}"
    highest = "" if high is None else f", trained up to {high:g}"
    return {
        Mark.DETRENDED: "detrended, F - F0 in counts, of which there is no dF/F: no spikes are "
        "inferred.",
        Mark.FRAME_RATE: "of a frame rate that the model was not trained for: no spikes are "
        "inferred; average frames, or train a model with napari-calcium train-spikes.",
        Mark.UNKNOWN: f"constant, or known in fewer than {SHORTEST} frames or too few in a row: "
        "no spikes are inferred.",
        Mark.PERCENT: f"probably in percent (median noise level {median} {UNIT}): no spikes are "
        "inferred; divide dF/F by 100, or find out whether F0 is near zero.",
        Mark.SMOOTHED: "denoised, smoothed or interpolated, which the model was not trained for: "
        "the rate is not to be trusted; use raw dF/F as recorded.",
        Mark.TOO_NOISY: f"noisier than the model was trained for (median {median}{highest} "
        f"{UNIT}): marked too noisy, the rate is less precise than it looks.",
        Mark.TOO_QUIET: f"quieter than the model was trained for (median {median}{lowest} "
        f"{UNIT}): how good the rate is has not been tested; check that dF/F is a fraction and "
        "raw.",
    }[mark]


def _marks(
    traces: Floats, frame_rate: float, noise_levels: tuple[float, float], margin: int
) -> NDArray[np.uint8]:
    """Return the marks of a few traces, NaN where they are not known."""
    level = np.asarray(level_of(traces, frame_rate))
    n_known = np.count_nonzero(np.isfinite(traces), axis=1)
    unknown = (n_known < SHORTEST) | ~(level > 0) | (_longest_run(traces) <= 2 * margin)
    span = _range(traces, n_known)
    found = {
        Mark.TOO_NOISY: level > noise_levels[1],
        Mark.TOO_QUIET: level < noise_levels[0],
        Mark.PERCENT: (level * span > PERCENT_PRODUCT) | (span > PERCENT_RANGE),
        Mark.SMOOTHED: _seldom_turns(traces) | _has_gap(traces),
    }
    marks = np.zeros(len(traces), np.uint8)
    for mark, holds in found.items():
        marks[holds] |= np.uint8(mark)
    marks[unknown] = np.uint8(Mark.UNKNOWN)
    return marks


def _longest_run(traces: Floats) -> NDArray[np.intp]:
    """Return the length of the longest run of known frames."""
    frames = np.arange(traces.shape[1])
    last_unknown = np.maximum.accumulate(np.where(np.isfinite(traces), -1, frames), axis=1)
    return np.asarray((frames - last_unknown).max(axis=1, initial=0))


def _range(traces: Floats, n_known: NDArray[np.intp]) -> Floats:
    """Return what lies between the first and the last percent of the values."""
    if not traces.shape[1]:
        return np.zeros(len(traces))
    ordered = np.sort(traces, axis=1)  # NaN last
    last = np.maximum(n_known - 1, 0)
    low, high = (
        np.take_along_axis(ordered, np.rint(part * last).astype(int)[:, None], axis=1)[:, 0]
        for part in (0.01, 0.99)
    )
    return high - low


def _seldom_turns(traces: Floats) -> NDArray[np.bool_]:
    """Tell whether steps seldom turn back, or seldom go up."""
    steps = np.diff(traces, axis=1)
    known = np.isfinite(steps)
    scale = np.max(np.abs(traces), axis=1, initial=0, where=np.isfinite(traces))
    with np.errstate(invalid="ignore"):
        signs = np.sign(np.where(np.abs(steps) > SAME * scale[:, None], steps, 0)).astype(np.int8)
    n_pairs = np.count_nonzero(known[:, 1:] & known[:, :-1], axis=1)
    turns = np.count_nonzero(signs[:, 1:] * signs[:, :-1] < 0, axis=1)
    rises = np.count_nonzero(signs > 0, axis=1)
    seldom = turns < FEWEST_CHANGES * n_pairs
    return np.asarray(seldom | (rises < FEWEST_RISES * np.count_nonzero(known, axis=1)))


def _has_gap(traces: Floats) -> NDArray[np.bool_]:
    """Tell whether a frequency is weaker than noise and calcium leave it, on average of windows."""
    found = np.zeros(len(traces), bool)
    if traces.shape[1] < WINDOW:
        return found
    windows = np.lib.stride_tricks.sliding_window_view(traces, WINDOW, axis=1)[:, :: WINDOW // 2]
    taper = np.hanning(WINDOW + 1)[:-1]
    centred = (windows - windows.mean(axis=-1, keepdims=True)) * taper
    power = np.abs(np.fft.rfft(centred, axis=-1)) ** 2
    power[..., -1] *= 2  # the Nyquist frequency has no sine
    for lowest, least in GAPS:
        band = power[..., lowest:]
        total = band.sum(axis=-1, keepdims=True)
        known = total[..., 0] > 0  # neither NaN nor flat
        share = np.divide(band, total, out=np.zeros_like(band), where=known[..., None])
        mean = share.sum(axis=1)
        enough = np.count_nonzero(known, axis=1) >= FEWEST_WINDOWS
        found |= enough & (mean.min(axis=-1) < least * mean.max(axis=-1))
    return found
