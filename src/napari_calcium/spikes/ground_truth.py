"""Ground truth: calcium imaging and spikes recorded together, read, resampled and made noisy.

The files are those of the database of Rupprecht et al. 2021, doi:10.1038/s41593-021-00895-5: one
``.npz`` file of this project for each dataset, or a folder of the database's own ``.mat`` files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray
from scipy.io.matlab import MatReadError
from scipy.stats import invgauss

from napari_calcium.errors import UNREADABLE, InputError

__all__ = [
    "Dataset",
    "Recording",
    "causal_kernel",
    "gaussian_kernel",
    "of_class",
    "read_dataset",
    "read_datasets",
    "resample",
    "smooth",
    "spikes_per_frame",
]

Floats = NDArray[np.float64]

SAME_RATE = 1.05
"""Frame rates closer than by this factor are the same, and nothing is resampled."""

TICK = 1e-4
"""Unit of the spike times of the database's .mat files, s."""

GAP = 1.5
"""Frames of which the times are further apart, in median steps, are of two recordings."""

SHARED_TRACES = {"DS01-OGB1-m-V1": (4, 5)}
"""Neurons of an .npz file that share one trace with another, counted from 1: left out."""


@dataclass(frozen=True)
class Recording:
    """One neuron's fluorescence and spikes over one stretch of time.

    Parameters
    ----------
    neuron : str
        Name of the neuron, unique in its dataset.
    dff : ndarray of float32 (time,)
        dF/F as a fraction; NaN where it is unknown.
    frame_rate : float
        Hz.
    start : float
        Time of the first frame, s.
    spike_times : ndarray (spike,)
        s, on the same clock; some may lie outside of what was imaged.
    """

    neuron: str
    dff: NDArray[np.float32]
    frame_rate: float
    start: float
    spike_times: Floats

    def __post_init__(self) -> None:
        if self.dff.ndim != 1 or self.spike_times.ndim != 1:
            raise ValueError("dff is (time,) and spike_times (spike,)")
        if not self.frame_rate > 0:
            raise ValueError(f"frame_rate is {self.frame_rate} Hz; it is larger than 0")

    @property
    def duration(self) -> float:
        """Length of what was imaged, s."""
        return len(self.dff) / self.frame_rate


@dataclass(frozen=True)
class Dataset:
    """The recordings of one laboratory, indicator and brain area.

    Parameters
    ----------
    name : str
        Name, for example ``"DS13-GCaMP6s-m-V1-neuropil-corrected"``.
    recordings : tuple of Recording
        At least one.
    indicator, species, area : str
        What was recorded; empty where the files do not say it.
    cell_class : str
        ``"exc"`` or ``"inh"`` with what follows it; empty where the files do not say it.
    """

    name: str
    recordings: tuple[Recording, ...]
    indicator: str = ""
    species: str = ""
    area: str = ""
    cell_class: str = ""

    @property
    def neurons(self) -> tuple[str, ...]:
        """Names of the neurons, in order."""
        return tuple(dict.fromkeys(one.neuron for one in self.recordings))

    @property
    def frame_rate(self) -> float:
        """Median frame rate of the recordings, Hz."""
        return float(np.median([one.frame_rate for one in self.recordings]))

    @cached_property
    def digest(self) -> str:
        """What tells it from a dataset of other recordings, in whatever they differ."""
        found = hashlib.sha256()
        for one in self.recordings:
            clock = float(one.frame_rate), float(one.start)
            about = [one.neuron, *clock, len(one.dff), len(one.spike_times)]
            found.update(json.dumps(about).encode())
            found.update(one.dff.tobytes() + one.spike_times.tobytes())
        return found.hexdigest()[:16]


def read_datasets(paths: Iterable[str | Path]) -> tuple[Dataset, ...]:
    """Read several datasets, in the order in which they are named.

    Parameters
    ----------
    paths : iterable of path
        As for `read_dataset`; a folder that holds .npz files stands for all of them.

    Raises
    ------
    InputError
        As `read_dataset`; or if a dataset is named twice, or none is.
    """
    files = [file for path in paths for file in _files(Path(path).expanduser())]
    datasets = tuple(read_dataset(file) for file in files)
    names = [dataset.name for dataset in datasets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"the dataset {twice} is named twice; name each once")
    if not datasets:
        raise InputError("no dataset is named; give .npz files or folders of the database")
    return datasets


def read_dataset(path: str | Path) -> Dataset:
    """Read a dataset of ground truth.

    Parameters
    ----------
    path : path
        A ``.npz`` file with ``meta``, ``neuron_id``, ``rec_neuron``, ``rec_ptr``, ``dff``,
        ``rec_t0``, ``rec_fs``, ``spk_ptr`` and ``spk``; or a folder of ``.mat`` files of the
        Cascade database, or one of these, which hold ``CAttached`` with ``fluo_time`` (s),
        ``fluo_mean`` (dF/F) and ``events_AP`` (0.1 ms). Where frames are missing, or have no time,
        a recording ends and another begins.

    Returns
    -------
    Dataset
        Without recordings of fewer than two frames, and, of ``.npz`` files, without neurons of
        which it is known that they share their trace with another.

    Raises
    ------
    InputError
        If there is no such file, or it holds no ground truth.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"the dataset {path} does not exist; give a .npz file or a folder of .mat")
    try:
        dataset = _read_npz(path) if path.suffix == ".npz" else _read_mat(path)
    except (*UNREADABLE, MatReadError) as error:
        raise InputError(
            f"{path} holds no ground truth ({type(error).__name__}: {error}); give a .npz file or "
            "a folder of .mat files with CAttached"
        ) from error
    kept = tuple(one for one in dataset.recordings if len(one.dff) > 1)
    if not kept:
        raise InputError(f"{path} holds no recording; give a .npz file or a folder of .mat files")
    return replace(dataset, recordings=kept)


def of_class(datasets: Iterable[Dataset], cell_class: str) -> tuple[Dataset, ...]:
    """Return the datasets of one class of cells: "exc", "inh", or "all" of them.

    Raises
    ------
    InputError
        If there is none.
    """
    given = tuple(datasets)
    found = tuple(one for one in given if cell_class in ("all", one.cell_class[:3]))
    if not found:
        names = ", ".join(one.name for one in given)
        raise InputError(f"no dataset is of the class {cell_class}: {names}; name others")
    return found


def resample(recording: Recording, frame_rate: float) -> Recording:
    """Return a recording as it would have been made at another frame rate.

    Slower, each frame is the mean over its time of exposure, as in a microscope, so that white
    noise becomes smaller by the root of the ratio of the rates. Faster, frames are interpolated,
    and no noise is added: what comes of it is smoother than a recording of that rate.

    Parameters
    ----------
    recording : Recording
    frame_rate : float
        Wanted rate, Hz.

    Returns
    -------
    Recording
        The same one where the rates differ by less than 5 %. A frame that touches a NaN is NaN.
    """
    ratio = frame_rate / recording.frame_rate
    if 1 / SAME_RATE < ratio < SAME_RATE:
        return recording
    n_frames = int(len(recording.dff) * ratio + 1e-6)
    old, new = 1 / recording.frame_rate, 1 / frame_rate
    trace: Floats = recording.dff.astype(np.float64)
    start = recording.start + (new - old) / 2  # frames are timed by their middle
    if ratio < 1:
        sums = np.concatenate(([0.0], np.cumsum(trace)))
        edges = np.interp(np.arange(n_frames + 1) * new / old, np.arange(len(sums)), sums)
        dff: Floats = np.diff(edges) * ratio
        if not np.isfinite(sums).all():
            dff = _means(trace, np.asarray(np.arange(n_frames + 1) * new / old, np.float64))
    else:
        at = ((np.arange(n_frames) + 0.5) * new - 0.5 * old) / old
        dff = np.interp(at, np.arange(len(trace)), trace)
    return replace(recording, dff=dff.astype(np.float32), frame_rate=frame_rate, start=start)


def spikes_per_frame(recording: Recording) -> NDArray[np.float32]:
    """Return how many spikes fall into each frame.

    A frame reaches half a frame to either side of its time, so that a spike is in the frame whose
    time is nearest; spikes outside of what was imaged are left out.

    Examples
    --------
    >>> dff = np.zeros(4, np.float32)
    >>> recording = Recording("cell", dff, 10.0, 0.0, np.array([0.0, 0.12, 0.14, 0.16, 9.0]))
    >>> spikes_per_frame(recording)
    array([1., 2., 1., 0.], dtype=float32)
    """
    n_frames = len(recording.dff)
    place = (recording.spike_times - recording.start) * recording.frame_rate + 0.5
    inside = (place >= 0) & (place < n_frames)
    return np.bincount(place[inside].astype(int), minlength=n_frames).astype(np.float32)


def gaussian_kernel(smoothing: float, frame_rate: float) -> Floats:
    """Return the taps of a Gaussian: what a spike is smoothed with.

    Parameters
    ----------
    smoothing : float
        Its sd, s. Cascade: smoothing.
    frame_rate : float
        Hz.

    Returns
    -------
    ndarray (2 n + 1,)
        Of sum 1, reaching four sd to either side; the middle one belongs to the spike's own frame.

    Examples
    --------
    >>> gaussian_kernel(0.05, 30.0).round(3)[5:8]
    array([0.213, 0.266, 0.213])
    """
    sd = smoothing * frame_rate
    reach = int(np.ceil(4 * sd))
    lags = np.arange(-reach, reach + 1)
    taps = np.exp(-0.5 * (lags / sd) ** 2) if sd > 0 else np.ones(1)
    return np.asarray(taps / taps.sum())


def causal_kernel(smoothing: float, frame_rate: float) -> Floats:
    """Return the taps of a causal kernel: nothing before the spike.

    An inverse Gaussian density of mean ``2 * smoothing`` s and shape 1 s, its first frame taken to
    be the spike's own. Its mean delay is thus ``2 * smoothing`` less one frame: 67 ms of 50 ms at
    30 Hz, 0.26 s of 0.2 s at 7.5 Hz. It is cut off after five means, by which 0.1 % is lost at
    0.2 s and 2.4 % at 1 s, where the mean delay is 1.65 s at 30 Hz. More smoothing makes its tail
    longer, but its peak never comes later than a third of a second.

    Parameters
    ----------
    smoothing : float
        Half the mean of the density, s. Cascade: smoothing, with causal_kernel.
    frame_rate : float
        Hz.

    Returns
    -------
    ndarray (2 n + 1,)
        Of sum 1; the middle one belongs to the spike's own frame, those before it are 0.

    Examples
    --------
    >>> causal_kernel(0.05, 30.0)[15:22].round(3)
    array([0.003, 0.334, 0.418, 0.179, 0.051, 0.012, 0.003])
    """
    mean = 2 * smoothing
    reach = int(np.ceil(5 * mean * frame_rate)) if smoothing > 0 else 0
    times = (np.arange(reach + 1) + 1) / frame_rate
    taps = invgauss.pdf(times, mean) if smoothing > 0 else np.ones(1)
    return np.concatenate((np.zeros(reach), taps / taps.sum()))


def smooth(values: NDArray[np.floating], kernel: Floats) -> Floats:
    """Smooth along time with a kernel of an odd number of taps, 0 being beyond the ends.

    Parameters
    ----------
    values : ndarray (..., time)
    kernel : ndarray (2 n + 1,)
        The middle tap stays in place.

    Returns
    -------
    ndarray (..., time)
    """
    reach = len(kernel) // 2
    flat = np.asarray(values, np.float64).reshape(-1, np.shape(values)[-1])
    full = np.stack([np.convolve(row, kernel) for row in flat])
    return np.asarray(full[:, reach : reach + flat.shape[1]].reshape(np.shape(values)))


def _means(trace: Floats, edges: Floats) -> Floats:
    """Return the mean of a trace between edges in frames, NaN where any part of it is NaN."""
    found = np.empty(len(edges) - 1)
    for i, (low, high) in enumerate(pairwise(edges)):
        frames = np.arange(int(low), min(int(np.ceil(high - 1e-9)), len(trace)))
        parts = np.minimum(frames + 1, high) - np.maximum(frames, low)
        found[i] = parts @ trace[frames] / parts.sum()
    return found


def _files(path: Path) -> list[Path]:
    """Return the datasets that a path stands for."""
    files = sorted(path.glob("*.npz")) if path.is_dir() else []
    return files or [path]


def _read_npz(path: Path) -> Dataset:
    with path.open("rb") as stored, np.load(stored, allow_pickle=False) as file:
        meta = json.loads(str(file["meta"]))
        names, neuron = [str(name) for name in file["neuron_id"]], file["rec_neuron"]
        ends, spike_ends = file["rec_ptr"], file["spk_ptr"]
        dff, spikes = file["dff"].astype(np.float32), file["spk"].astype(np.float64)
        rates, starts = file["rec_fs"], file["rec_t0"]
    name = str(meta["dataset"])
    left_out = {number - 1 for number in SHARED_TRACES.get(name, ())}
    recordings = tuple(
        Recording(
            names[neuron[i]],
            dff[ends[i] : ends[i + 1]],
            float(rates[i]),
            float(starts[i]),
            spikes[spike_ends[i] : spike_ends[i + 1]],
        )
        for i in range(len(rates))
        if neuron[i] not in left_out
    )
    about = {key: str(meta.get(key, "")) for key in ("indicator", "species", "area", "cell_class")}
    return Dataset(name, recordings, **about)


def _read_mat(path: Path) -> Dataset:
    files = sorted(path.glob("*.mat")) if path.is_dir() else [path]
    recordings = [one for file in files for one in _attached(file)]
    name = path.name if path.is_dir() else path.stem
    return Dataset(name, tuple(recordings), species=_species(name), cell_class=_cell_class(name))


def _attached(file: Path) -> Iterator[Recording]:
    """Yield the recordings of one neuron's file, the stretches of its trials without a gap."""
    stored = scipy.io.loadmat(file, squeeze_me=True, struct_as_record=False)["CAttached"]
    for trial in np.atleast_1d(stored):
        times, dff = (_row(getattr(trial, name)) for name in ("fluo_time", "fluo_mean"))
        if len(times) != len(dff):
            raise ValueError(f"{file.name}: fluo_time and fluo_mean differ in length")
        known = np.isfinite(times)
        times, trace = times[known], dff[known].astype(np.float32)
        if not (np.diff(times) > 0).all():
            raise ValueError(f"{file.name}: fluo_time does not increase from frame to frame")
        spikes = _row(trial.events_AP) * TICK
        found = np.sort(spikes[np.isfinite(spikes)])
        for run in _without_gaps(times):
            first, last = float(times[run][0]), float(times[run][-1])
            rate = (run.stop - run.start - 1) / (last - first)
            yield Recording(file.stem, trace[run], rate, first, found)


def _without_gaps(times: Floats) -> Iterator[slice]:
    """Yield the stretches of frames, two or more, that follow each other without a gap."""
    steps = np.diff(times)
    if not len(steps):
        return
    gaps = np.flatnonzero(steps > GAP * np.median(steps)) + 1
    for first, stop in pairwise([0, *gaps.tolist(), len(times)]):
        if stop - first > 1:
            yield slice(first, stop)


def _row(values: Any) -> Floats:
    return np.atleast_1d(np.asarray(values, np.float64)).ravel()


def _species(name: str) -> str:
    parts = name.split("-")
    return "zebrafish" if "zf" in parts else "mouse" if "m" in parts else ""


def _cell_class(name: str) -> str:
    inhibitory = ("SST", "PV", "VIP", "Interneurons", "inhibitory")
    return "inh" if any(part in name for part in inhibitory) else "exc"
