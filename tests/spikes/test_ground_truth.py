from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from napari_calcium.errors import InputError
from napari_calcium.spikes.ground_truth import (
    Dataset,
    Recording,
    causal_kernel,
    gaussian_kernel,
    read_dataset,
    read_datasets,
    resample,
    smooth,
    spikes_per_frame,
)
from napari_calcium.spikes.noise import noise_sd

GROUND_TRUTH = Path(__file__).parents[3] / "shared" / "data" / "spike_ground_truth"


def recording(
    dff: Any, frame_rate: float = 60.0, start: float = 5.0, spikes: Any = ()
) -> Recording:
    return Recording(
        "cell", np.asarray(dff, np.float32), frame_rate, start, np.asarray(spikes, np.float64)
    )


def times_of(one: Recording) -> np.ndarray:
    return one.start + np.arange(len(one.dff)) / one.frame_rate


# ------------------------------------------------------------------------------- resampling


@pytest.mark.parametrize("rate", [30.0, 25.0, 17.3, 7.5, 90.0, 144.7])
def test_a_ramp_stays_at_its_time(rate: float) -> None:
    """dF/F that says the time says it afterwards, but for the ends.

    To 6 % of an old frame, of which a part counts as the whole does; on average to 0.5 %.
    """
    one = recording(np.zeros(600), start=5.0)
    again = resample(replace(one, dff=times_of(one).astype(np.float32)), rate)
    away = (again.dff - times_of(again))[2:-2] * 60
    assert np.abs(away).max() < 0.06
    assert abs(away.mean()) < 0.005
    assert again.frame_rate == rate
    assert abs(again.duration - one.duration) < 1 / rate
    np.testing.assert_array_equal(again.spike_times, one.spike_times)


@pytest.mark.parametrize("rate", [30.0, 20.0, 13.7])
def test_an_impulse_stays_at_its_time(rate: float) -> None:
    """Its centre to half a new frame, on average over places to a hundredth of one; its sum too."""
    away = []
    for frame in range(200, 260):
        dff = np.zeros(600)
        dff[frame] = 1.0
        one = recording(dff)
        again = resample(one, rate)
        np.testing.assert_allclose(again.dff.sum() / rate, 1 / 60, rtol=1e-4)
        centre = (again.dff @ times_of(again)) / again.dff.sum()
        away.append((centre - times_of(one)[frame]) * rate)
    assert np.abs(away).max() <= 0.5
    assert abs(np.mean(away)) < 0.02


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("rate", [30.0, 15.0, 6.0])
def test_noise_goes_with_the_root_of_the_rate(seed: int, rate: float) -> None:
    """To 5 %: a few thousand steps are left."""
    white = np.random.default_rng(seed).normal(0, 0.3, 60_000)
    again = resample(recording(white), rate)
    np.testing.assert_allclose(noise_sd(again.dff), 0.3 * np.sqrt(rate / 60), rtol=0.05)


def test_means_of_frames_are_exact() -> None:
    dff = np.random.default_rng(0).normal(0, 1, 605)
    again = resample(recording(dff), 12.0)
    np.testing.assert_allclose(again.dff, dff[:605].reshape(-1, 5).mean(axis=1), atol=1e-5)
    assert again.dff.dtype == np.float32
    np.testing.assert_allclose(again.start, 5.0 + 2 / 60)


@pytest.mark.parametrize("rate", [58.0, 60.0, 62.5])
def test_rates_that_are_about_the_same_are_left(rate: float) -> None:
    one = recording(np.ones(60))
    assert resample(one, rate) is one


@pytest.mark.parametrize("rate", [30.0, 20.0, 13.7, 120.0])
def test_unknown_frames_stay_unknown_and_touch_no_others(rate: float) -> None:
    dff = np.random.default_rng(0).normal(0, 1, 600).astype(np.float32)
    holes = dff.copy()
    holes[[100, 301]] = np.nan
    whole, again = (resample(recording(values), rate).dff for values in (dff, holes))
    unknown = np.isnan(again)
    assert 2 <= unknown.sum() <= 4 * max(1, rate / 60)
    np.testing.assert_allclose(again[~unknown], whole[~unknown], atol=1e-5)
    centres = times_of(resample(recording(holes), rate))[unknown] - 5.0
    assert all(min(abs(t - 100 / 60), abs(t - 301 / 60)) < 1 / 60 + 1 / rate for t in centres)


# ------------------------------------------------------------------------------- spikes


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_spike_is_in_the_frame_next_to_it(seed: int) -> None:
    random = np.random.default_rng(seed)
    spikes = np.sort(random.uniform(0, 20, 200))
    one = recording(np.zeros(600), start=5.0, spikes=spikes)
    counts = spikes_per_frame(one)
    inside = (spikes >= 5 - 1 / 120) & (spikes < 15 - 1 / 120)
    nearest = np.abs(times_of(one)[:, None] - spikes[inside]).argmin(axis=0)
    np.testing.assert_array_equal(counts, np.bincount(nearest, minlength=600))
    for rate in (30.0, 7.5):
        assert spikes_per_frame(resample(one, rate)).sum() == inside.sum()


def test_without_spikes_there_are_none() -> None:
    assert spikes_per_frame(recording(np.zeros(9))).tolist() == [0.0] * 9


# ------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("make", [gaussian_kernel, causal_kernel])
@pytest.mark.parametrize(("smoothing", "rate"), [(0.05, 30.0), (0.2, 7.5), (0.025, 120.0)])
def test_kernels_have_sum_1_and_a_middle(make: Any, smoothing: float, rate: float) -> None:
    kernel = make(smoothing, rate)
    assert len(kernel) % 2 == 1
    assert (kernel >= 0).all()
    np.testing.assert_allclose(kernel.sum(), 1)
    np.testing.assert_array_equal(make(0.0, rate), [1.0])


def test_gaussian_has_its_sd() -> None:
    kernel = gaussian_kernel(0.1, 60.0)
    lags = np.arange(len(kernel)) - len(kernel) // 2
    np.testing.assert_allclose(np.sqrt(kernel @ lags**2), 6.0, rtol=0.01)  # cut off at 4 sd
    np.testing.assert_array_equal(kernel, kernel[::-1])


def test_causal_taps_are_those_published() -> None:
    """At 30 Hz and 50 ms: 0.003 0.334 0.418 0.179 0.051 0.012 0.003, the peak 67 ms late."""
    kernel = causal_kernel(0.05, 30.0)
    middle = len(kernel) // 2
    assert not kernel[:middle].any()
    expected = [0.003, 0.334, 0.418, 0.179, 0.051, 0.012, 0.003]
    np.testing.assert_allclose(kernel[middle : middle + 7], expected, atol=6e-4)
    assert kernel.argmax() - middle == 2


@pytest.mark.parametrize("n_frames", [3, 40])
def test_smoothing_keeps_place_shape_and_sum(n_frames: int) -> None:
    kernel = causal_kernel(0.05, 30.0)
    values = np.zeros((2, 3, n_frames))
    values[1, 2, 1] = 2.0
    found = smooth(values, kernel)
    assert found.shape == values.shape
    middle = len(kernel) // 2
    n = min(n_frames - 1, middle + 1)
    np.testing.assert_allclose(found[1, 2, 1 : 1 + n], 2 * kernel[middle : middle + n])
    assert found[0].sum() == 0


# ------------------------------------------------------------------------------- files


def save_npz(path: Path, name: str = "DS99-GCaMP6s-m-V1", n_neurons: int = 6) -> Path:
    """Two recordings of each neuron, 50 and 1 frames long."""
    lengths = np.tile([50, 1], n_neurons)
    np.savez(
        path,
        meta=json.dumps({"dataset": name, "indicator": "GCaMP6s", "cell_class": "exc"}),
        neuron_id=np.array([f"n{i}" for i in range(n_neurons)]),
        rec_neuron=np.repeat(np.arange(n_neurons), 2),
        rec_trial=np.tile([0, 1], n_neurons),
        rec_ptr=np.concatenate(([0], np.cumsum(lengths))),
        dff=np.arange(lengths.sum()).astype(np.float16),
        rec_t0=np.full(2 * n_neurons, 0.5),
        rec_fs=np.full(2 * n_neurons, 12.5),
        spk_ptr=np.arange(2 * n_neurons + 1),
        spk=np.arange(2 * n_neurons) / 10,
    )
    return path


def test_npz(tmp_path: Path) -> None:
    dataset = read_dataset(save_npz(tmp_path / "a.npz"))
    assert (dataset.name, dataset.indicator, dataset.cell_class) == (
        "DS99-GCaMP6s-m-V1",
        "GCaMP6s",
        "exc",
    )
    assert dataset.neurons == tuple(f"n{i}" for i in range(6))
    assert dataset.frame_rate == 12.5
    third = dataset.recordings[2]  # the recordings of one frame are left out
    np.testing.assert_array_equal(third.dff, np.arange(102, 152))
    np.testing.assert_array_equal(third.spike_times, [0.4])
    assert (third.start, third.frame_rate, third.duration) == (0.5, 12.5, 4.0)


def test_neurons_that_share_a_trace_are_left_out(tmp_path: Path) -> None:
    dataset = read_dataset(save_npz(tmp_path / "a.npz", "DS01-OGB1-m-V1"))
    assert dataset.neurons == ("n0", "n1", "n2", "n5")
    np.testing.assert_array_equal(dataset.recordings[-1].dff, np.arange(255, 305))


def attached(n_frames: int, shift: float, column: bool) -> dict[str, np.ndarray]:
    """Return a trial as files of the database hold it: its end without time, spikes in 0.1 ms."""
    times = shift + np.arange(n_frames) / 20.0
    times[-2:] = np.nan
    dff = np.sin(np.arange(n_frames))
    dff[4] = np.nan
    spikes = np.array([shift + 0.5, np.nan, shift + 0.1]) * 1e4
    turn = (lambda row: row[:, None]) if column else (lambda row: row[None])
    return {"fluo_time": turn(times), "fluo_mean": turn(dff), "events_AP": turn(spikes)}


@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("n_trials", [1, 3])
def test_mat_of_matlab(tmp_path: Path, column: bool, n_trials: int) -> None:
    """A cell array of structs, with rows or columns, one trial or several."""
    folder = tmp_path / "DS98-GCaMP6f-m-PV-V1"
    folder.mkdir()
    for name in ("CAttached_b", "CAttached_a"):
        cells = np.empty((1, n_trials), object)
        for i in range(n_trials):
            cells[0, i] = attached(30 + i, 2.0 * i, column)
        scipy.io.savemat(folder / f"{name}.mat", {"CAttached": cells})
    dataset = read_dataset(folder)
    assert dataset.neurons == ("CAttached_a", "CAttached_b")
    assert (dataset.name, dataset.species, dataset.cell_class) == (folder.name, "mouse", "inh")
    assert len(dataset.recordings) == 2 * n_trials
    last = dataset.recordings[n_trials - 1]
    start = 2.0 * (n_trials - 1)
    assert (len(last.dff), last.start) == (28 + n_trials - 1, start)
    np.testing.assert_allclose(last.frame_rate, 20.0)
    np.testing.assert_allclose(last.spike_times, [start + 0.1, start + 0.5])
    expected = np.sin(np.arange(len(last.dff)))
    expected[4] = np.nan
    np.testing.assert_allclose(last.dff, expected, atol=1e-6)
    one = read_dataset(folder / "CAttached_a.mat")
    assert one.neurons == ("CAttached_a",)


def save_mat(
    path: Path, times: Any, dff: Any = None, spikes: Any = (), compressed: bool = False
) -> Path:
    """One neuron with one trial; dF/F counts the frames."""
    cells = np.empty((1, 1), object)
    cells[0, 0] = {
        "fluo_time": np.asarray(times, np.float64),
        "fluo_mean": np.arange(len(times)) if dff is None else dff,
        "events_AP": 1e4 * np.asarray(spikes, np.float64),
    }
    scipy.io.savemat(path, {"CAttached": cells}, do_compression=compressed)
    return path


@pytest.mark.parametrize("n_missing", [1, 20, 600])
@pytest.mark.parametrize("timeless", [True, False])
def test_a_gap_ends_a_recording(tmp_path: Path, n_missing: int, timeless: bool) -> None:
    """Frames without a time, or none at all; each spike is in the frame at its time."""
    n_frames, first = 1200, 300
    times = 2.0 + np.arange(n_frames) / 30
    dff = np.arange(n_frames, dtype=np.float64)
    spikes = times[[100, 299, first + n_missing, 1000]]
    gap = slice(first, first + n_missing)
    if timeless:
        times[gap] = np.nan
    else:
        times, dff = np.delete(times, gap), np.delete(dff, gap)
    dataset = read_dataset(save_mat(tmp_path / "a.mat", times, dff, spikes))
    before, after = dataset.recordings
    assert dataset.neurons == ("a",)
    np.testing.assert_allclose([before.frame_rate, after.frame_rate], 30)
    np.testing.assert_allclose([before.start, after.start], [2, 2 + (first + n_missing) / 30])
    np.testing.assert_array_equal(before.dff, np.arange(first))
    np.testing.assert_array_equal(after.dff, np.arange(first + n_missing, n_frames))
    assert np.flatnonzero(spikes_per_frame(before)).tolist() == [100, 299]
    assert np.flatnonzero(spikes_per_frame(after)).tolist() == [0, 1000 - first - n_missing]


@pytest.mark.parametrize("seed", [0, 1])
def test_frames_that_come_a_little_early_or_late_are_no_gap(tmp_path: Path, seed: int) -> None:
    """By a fifth of a frame: steps of at most 1.4 frames. The rate to as much over its length."""
    times = (np.arange(300) + np.random.default_rng(seed).uniform(-0.2, 0.2, 300)) / 20
    (one,) = read_dataset(save_mat(tmp_path / "a.mat", times)).recordings
    np.testing.assert_allclose(one.frame_rate, 20, rtol=0.4 / 299)
    assert len(one.dff) == 300


def test_single_frames_between_gaps_are_left_out(tmp_path: Path) -> None:
    times = np.concatenate(([0.0], 5 + np.arange(50) / 20, [20.0]))
    (one,) = read_dataset(save_mat(tmp_path / "a.mat", times)).recordings
    assert (one.start, len(one.dff)) == (5, 50)


@pytest.mark.parametrize(
    "times", [np.zeros(50), np.arange(50)[::-1] / 20, np.r_[np.arange(25), np.arange(25)] / 20]
)
def test_times_that_do_not_increase_are_refused(tmp_path: Path, times: Any) -> None:
    with pytest.raises(InputError, match=r"a\.mat: fluo_time does not increase from"):
        read_dataset(save_mat(tmp_path / "a.mat", times))


def test_neurons_of_mat_files_are_all_kept(tmp_path: Path) -> None:
    """Which of them share a trace is known of whole .npz files, by their order."""
    folder = tmp_path / "DS01-OGB1-m-V1"
    folder.mkdir()
    for i in range(7):
        save_mat(folder / f"n{i}.mat", np.arange(50) / 20)
    assert read_dataset(folder).neurons == tuple(f"n{i}" for i in range(7))


def test_the_digest_is_of_all_that_is_recorded() -> None:
    one = Recording("a", np.arange(9, dtype=np.float32), 30.0, 1.0, np.array([1.1, 1.2]))
    both = Dataset("A", (one, replace(one, neuron="b")))
    halves = tuple(
        replace(one, dff=dff, spike_times=spikes)
        for dff, spikes in ((one.dff[:4], one.spike_times), (one.dff[4:], one.spike_times[:0]))
    )
    others = [
        (one,),
        (one, one),
        (one, replace(one, neuron="b", start=4.0)),
        (one, replace(one, neuron="b", frame_rate=30.5)),
        (one, replace(one, neuron="b", dff=one.dff + 1)),
        (one, replace(one, neuron="b", spike_times=one.spike_times + 0.1)),
        halves,
        tuple(replace(half, spike_times=one.spike_times[:1]) for half in halves),
    ]
    digests = {replace(both, recordings=recordings).digest for recordings in others}
    assert len(digests | {both.digest}) == len(others) + 1
    assert replace(both, recordings=tuple(replace(each) for each in both.recordings)).digest == (
        both.digest
    )


def test_no_spikes_and_one_spike_in_a_mat(tmp_path: Path) -> None:
    for name, spikes in (("none", np.zeros((0, 0))), ("one", np.array([[5000.0]]))):
        trial = {**attached(30, 0.0, False), "events_AP": spikes}
        cells = np.empty((1, 1), object)
        cells[0, 0] = trial
        scipy.io.savemat(tmp_path / f"{name}.mat", {"CAttached": cells})
    assert len(read_dataset(tmp_path / "none.mat").recordings[0].spike_times) == 0
    np.testing.assert_allclose(read_dataset(tmp_path / "one.mat").recordings[0].spike_times, [0.5])


def test_several_datasets(tmp_path: Path) -> None:
    save_npz(tmp_path / "b.npz", "B")
    save_npz(tmp_path / "a.npz", "A")
    assert [one.name for one in read_datasets([tmp_path])] == ["A", "B"]
    named = read_datasets([tmp_path / "b.npz", tmp_path / "a.npz"])
    assert [one.name for one in named] == ["B", "A"]
    assert all(isinstance(one, Dataset) for one in named)
    with pytest.raises(InputError, match="dataset A is named twice"):
        read_datasets([tmp_path, tmp_path / "a.npz"])
    with pytest.raises(InputError, match="no dataset is named"):
        read_datasets([])


def test_what_is_no_ground_truth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_dataset(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_bytes(b"nothing")
    np.savez(tmp_path / "other.npz", dff=np.zeros(9))
    scipy.io.savemat(tmp_path / "other.mat", {"dff": np.zeros(9)})
    (tmp_path / "damaged.mat").write_bytes(b"nothing" * 99)
    for name in ("empty.npz", "empty.mat"):
        (tmp_path / name).write_bytes(b"")
    whole = save_npz(tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    packed = save_mat(tmp_path / "b.mat", np.arange(500) / 20, compressed=True).read_bytes()
    (tmp_path / "packed.mat").write_bytes(packed[:200] + bytes(50) + packed[250:])
    refused = "text.npz other.npz other.mat damaged.mat empty.npz empty.mat cut.npz packed.mat"
    for name in refused.split():
        with pytest.raises(InputError, match=r"holds no ground truth \("):
            read_dataset(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no recording"):
        read_dataset(tmp_path / "empty")


def test_a_recording_is_checked() -> None:
    with pytest.raises(ValueError, match="frame_rate is 0"):
        recording(np.zeros(9), frame_rate=0)
    with pytest.raises(ValueError, match="dff is"):
        recording(np.zeros((2, 9)))


@pytest.mark.parametrize(
    ("name", "neurons"), [("DS01-OGB1-m-V1", 19), ("DS18-R-CaMP-m-CA3", 4), ("DS40", 0)]
)
def test_the_database(name: str, neurons: int) -> None:
    """Neurons as its table says, less the two that share a trace; spikes while it was imaged."""
    found = sorted(GROUND_TRUTH.glob(f"{name}*.npz"))
    if not found:
        pytest.skip("the ground truth is not here")
    dataset = read_dataset(found[0])
    assert neurons in (0, len(dataset.neurons))
    if name.startswith("DS01"):
        with np.load(found[0]) as file:
            names = [str(text) for text in file["neuron_id"]]
        assert not {names[3], names[4]} & set(dataset.neurons)
    for one in dataset.recordings:
        counts = spikes_per_frame(one)
        first, end = one.start - 0.5 / one.frame_rate, one.start + one.duration
        assert counts.sum() <= np.sum((one.spike_times >= first) & (one.spike_times <= end))
        assert (np.diff(one.spike_times) >= 0).all()
    spikes = sum(float(spikes_per_frame(one).sum()) for one in dataset.recordings)
    assert spikes > 0.9 * sum(len(one.spike_times) for one in dataset.recordings)
