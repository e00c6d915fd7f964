from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.spikes import inference as module
from napari_calcium.spikes.features import channels, trace_features
from napari_calcium.spikes.forward import Conditioned
from napari_calcium.spikes.ground_truth import (
    Recording,
    causal_kernel,
    gaussian_kernel,
    smooth,
    spikes_per_frame,
)
from napari_calcium.spikes.guards import Mark, trace_marks
from napari_calcium.spikes.inference import (
    CARD,
    LEAST_SMOOTHING,
    MOST_CAUSAL,
    SHIPPED,
    SpikeInferenceParameters,
    SpikeModel,
    check_model,
    infer_spikes,
    model_digest,
    rate_kernel,
    rate_marks,
    read_spike_model,
    spike_rate,
)
from napari_calcium.spikes.noise import noise_level

RATE = 30.0
CHOSEN = SpikeInferenceParameters()
PADDED = SpikeInferenceParameters(edges="padded")

Simulate = Callable[..., Recording]


@pytest.fixture(scope="module")
def model() -> SpikeModel:
    return read_spike_model(CHOSEN)


@pytest.fixture(scope="module")
def dff(simulated: Simulate) -> NDArray[np.float32]:
    """Seven cells, of 400 frames."""
    return np.stack([simulated(seed, RATE, 400 / RATE).dff for seed in range(7)])


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A model that comes with the program, in a folder of the user."""
    return Path(shutil.copytree(SHIPPED["excitatory"], tmp_path / "mine"))


def of_folder(folder: Path, **values: Any) -> SpikeInferenceParameters:
    return SpikeInferenceParameters(model_file=str(folder), **values)


def rate_of(dff: Any, frame_rate: float, parameters: SpikeInferenceParameters) -> Any:
    return spike_rate(dff, frame_rate, read_spike_model(parameters), parameters)


# ------------------------------------------------------------------------------- shapes and ends


@pytest.mark.parametrize("n_frames", [64, 65, 200])
@pytest.mark.parametrize("n_cells", [0, 1, 3])
def test_every_frame_has_its_rate(model: SpikeModel, n_cells: int, n_frames: int) -> None:
    dff = np.random.default_rng(0).normal(0, 0.1, (n_cells, n_frames))
    for parameters in (CHOSEN, PADDED):
        rate = spike_rate(dff, RATE, model, parameters)
        assert rate.shape == dff.shape
        assert rate.dtype == np.float32
        assert (rate[np.isfinite(rate)] >= 0).all()


def test_ends_are_unknown_unless_padded(model: SpikeModel, dff: NDArray[np.float32]) -> None:
    unknown, padded = (spike_rate(dff, RATE, model, one) for one in (CHOSEN, PADDED))
    assert model.margin > 0
    inside = slice(model.margin, dff.shape[1] - model.margin)
    assert np.isfinite(padded).all()
    np.testing.assert_array_equal(unknown[:, inside], padded[:, inside])
    assert np.isnan(unknown[:, : model.margin]).all()
    assert np.isnan(unknown[:, -model.margin :]).all()


def test_frames_near_a_gap_are_unknown_unless_padded(
    model: SpikeModel, dff: NDArray[np.float32]
) -> None:
    """A gap of one frame, one of 20, and a run between gaps that is all margin."""
    dff, margin = dff.copy(), model.margin
    dff[0, 100] = np.nan
    dff[0, 200:220] = np.nan
    dff[0, 220 + 2 * margin] = np.inf
    known = np.isfinite(dff[0])
    padded = spike_rate(dff, RATE, model, PADDED)
    np.testing.assert_array_equal(np.isfinite(padded[0]), known)
    assert np.isfinite(padded[1:]).all()
    unknown = spike_rate(dff, RATE, model, CHOSEN)[0]
    far = np.convolve(np.pad(~known, margin, constant_values=True), np.ones(2 * margin + 1), "same")
    np.testing.assert_array_equal(np.isfinite(unknown), far[margin:-margin] == 0)
    assert not np.isfinite(unknown[220 : 221 + 2 * margin]).any()
    shown = np.isfinite(unknown)
    np.testing.assert_array_equal(unknown[shown], padded[0, shown])


def test_what_is_beyond_a_gap_is_a_trace_of_its_own(
    model: SpikeModel, dff: NDArray[np.float32]
) -> None:
    """With the statistics of the whole trace; to single precision."""
    trace = dff[0].astype(np.float64)
    trace[150:160] = np.nan
    rate = spike_rate(trace[None], RATE, model, PADDED)[0]
    features, taps = trace_features(trace, RATE), rate_kernel(model, PADDED, RATE)
    for run in (slice(0, 150), slice(160, 400)):
        spikes = np.zeros(run.stop - run.start)
        for network in model.networks:
            assert isinstance(network, Conditioned)
            spikes += network(channels(trace[run], features), features.values)
        spikes /= len(model.networks)
        expected = RATE * smooth(spikes, taps) / smooth(np.ones_like(spikes), taps)
        np.testing.assert_allclose(rate[run], expected, rtol=1e-4, atol=1e-4)


def test_infinite_frames_are_unknown_ones(model: SpikeModel, dff: NDArray[np.float32]) -> None:
    holes, infinite = dff.copy(), dff.copy()
    holes[2, 90:93], infinite[2, 90:93] = np.nan, (np.inf, -np.inf, np.inf)
    np.testing.assert_array_equal(
        spike_rate(infinite, RATE, model, CHOSEN), spike_rate(holes, RATE, model, CHOSEN)
    )


def test_statistics_are_taken_once_for_a_cell(
    model: SpikeModel, dff: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many runs of known frames it has."""
    taken = []

    def counted(trace: NDArray[np.float64], frame_rate: float) -> Any:
        taken.append(len(trace))
        return trace_features(trace, frame_rate)

    monkeypatch.setattr(module, "trace_features", counted)
    dff = dff[:2].copy()
    dff[:, ::50] = np.nan
    assert np.isfinite(spike_rate(dff, RATE, model, PADDED)).sum() == 2 * (400 - 8)
    assert taken == [400, 400]


# ------------------------------------------------------------------------------- known spikes


@pytest.mark.parametrize("frame_rate", [7.5, 15.0, 30.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_spike_is_where_it_was(
    simulated: Simulate, model: SpikeModel, frame_rate: float, seed: int
) -> None:
    """The peak within a frame of the spike in the median, and within two of nine spikes in ten.

    The transient has 4 sd of the noise and rises for 60 ms: its largest frame is any of the first.
    """
    jitter = np.random.default_rng(seed).uniform(-0.5, 0.5, 20) / frame_rate
    times = np.arange(10, 170, 8) + jitter
    one = simulated(seed, frame_rate, 180, times=times, amplitude=0.4, noise=0.05)
    away: dict[str, NDArray[np.intp]] = {}
    for kernel in ("gaussian", "causal"):
        chosen = SpikeInferenceParameters(kernel=kernel)
        rate = spike_rate(one.dff[None], frame_rate, model, chosen)[0]
        reach = int(2 * frame_rate)
        frames = np.rint(times * frame_rate).astype(int)
        peaks = [np.argmax(rate[frame - reach : frame + reach]) - reach for frame in frames]
        away[kernel] = np.array(peaks)
    assert abs(np.median(away["gaussian"])) <= 1
    assert np.mean(np.abs(away["gaussian"]) <= 2) >= 0.9
    taps = causal_kernel(model.smoothing(frame_rate), frame_rate)
    mode = int(taps.argmax()) - len(taps) // 2
    assert mode >= 1
    later = away["causal"] - away["gaussian"]
    assert abs(np.median(later) - mode) <= 1
    assert (later >= 0).mean() >= 0.9


@pytest.mark.parametrize("frame_rate", [7.5, 15.0, 30.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_rates_add_up_to_spikes(
    simulated: Simulate, model: SpikeModel, frame_rate: float, seed: int
) -> None:
    """To a factor of 3: nothing tells a network how bright one spike of this indicator is.

    One is 15 % here, as of GCaMP6; of the indicators trained on, brighter ones are of bursts.
    """
    totals = []
    for wanted in (0.3, 1.0):
        one = simulated(seed, frame_rate, 150, spike_rate=wanted, amplitude=0.15, noise=0.03)
        rate = spike_rate(one.dff[None], frame_rate, model, PADDED)[0]
        truth = spikes_per_frame(one)
        totals.append(float(rate.sum()) / frame_rate)
        assert 1 / 3 < totals[-1] / truth.sum() < 3
        taps = rate_kernel(model, PADDED, frame_rate)
        r = np.corrcoef(rate, smooth(truth, taps))[0, 1]
        assert r > 0.45  # a shift by two frames costs that much and more
    assert totals[1] > 1.5 * totals[0]


def test_noise_alone_has_few_spikes(model: SpikeModel) -> None:
    """Fewer than one in 4 s, where busy cells have one in 1 s."""
    white = np.random.default_rng(0).normal(0, 0.1, (5, 3000))
    rate = spike_rate(white, RATE, model, PADDED)
    assert rate.mean() < 0.25


# ------------------------------------------------------------------------------- smoothing


def test_the_kernel_is_as_asked(model: SpikeModel) -> None:
    """50 ms, or 1.5 frames where this is more."""
    assert model.smoothing(60.0) == pytest.approx(0.05)
    assert model.smoothing(7.5) == pytest.approx(LEAST_SMOOTHING / 7.5)
    for rate in (7.5, 60.0):
        taps = rate_kernel(model, CHOSEN, rate)
        np.testing.assert_array_equal(taps, gaussian_kernel(model.smoothing(rate), rate))
    causal = replace(CHOSEN, kernel="causal", smoothing=0.2)
    np.testing.assert_array_equal(rate_kernel(model, causal, RATE), causal_kernel(0.2, RATE))


@pytest.mark.parametrize(
    ("smoothing", "frame_rate", "delay"),
    [(0.05, 30.0, 0.066), (0.05, 60.0, 0.083), (0.2, 7.5, 0.26), (0.2, 30.0, 0.366), (1, 30, 1.65)],
)
def test_the_delay_of_the_causal_kernel(
    model: SpikeModel, smoothing: float, frame_rate: float, delay: float
) -> None:
    """As is said: twice the smoothing less a frame, to 3 %; of 1 s the tail is cut off."""
    taps = rate_kernel(model, replace(CHOSEN, kernel="causal", smoothing=smoothing), frame_rate)
    lags = (np.arange(len(taps)) - len(taps) // 2) / frame_rate
    np.testing.assert_allclose(taps @ lags, delay, atol=0.005)
    assert lags[taps.argmax()] <= 1 / 3
    if smoothing < 1:
        np.testing.assert_allclose(taps @ lags, 2 * smoothing - 1 / frame_rate, rtol=0.03)


def test_causal_smoothing_is_bounded() -> None:
    """Not by less than what the lowest frame rate asks for."""
    for value in (LEAST_SMOOTHING / 2, MOST_CAUSAL):
        assert SpikeInferenceParameters(kernel="causal", smoothing=value).smoothing == value
    assert SpikeInferenceParameters(smoothing=5.0).smoothing == 5
    with pytest.raises(InputError, match=r"smoothing is 1.2 s.* to at most 1 s, or kernel"):
        SpikeInferenceParameters(kernel="causal", smoothing=1.2)


@pytest.mark.parametrize("smoothing", [0.05, 0.4])
def test_before_a_padded_trace_is_rest(
    model: SpikeModel, dff: NDArray[np.float32], smoothing: float
) -> None:
    """A spike in the first frame counts once; to single precision."""
    dff = dff.copy()
    dff[0, :40] += np.exp(-np.arange(40) / 20)
    dff[1, 200] = np.nan
    raw = spike_rate(dff, RATE, model, replace(PADDED, smoothing=1e-9))
    assert raw[0, :2].sum() > 0.3 * RATE
    chosen = replace(PADDED, kernel="causal", smoothing=smoothing)
    rate, taps = spike_rate(dff, RATE, model, chosen), causal_kernel(smoothing, RATE)
    for run in (slice(0, 200), slice(201, 400)):
        expected = smooth(raw[:2, run], taps)
        np.testing.assert_allclose(rate[1, run], expected[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rate[0], smooth(raw[0], taps), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frame_rate", [15.0, 30.0])
def test_more_smoothing_is_convolution(
    model: SpikeModel, dff: NDArray[np.float32], frame_rate: float
) -> None:
    """To 0.3 % of the largest: Gaussians are cut off at 4 sd; the ends are left out."""
    wanted, own = 0.3, model.smoothing(frame_rate)
    fine = spike_rate(dff, frame_rate, model, PADDED)
    wide = spike_rate(dff, frame_rate, model, replace(PADDED, smoothing=wanted))
    more = gaussian_kernel(float(np.sqrt(wanted**2 - own**2)), frame_rate)
    reach = len(gaussian_kernel(wanted, frame_rate)) // 2 + 8
    inside = slice(reach, -reach)
    np.testing.assert_allclose(
        wide[:, inside], smooth(fine, more)[:, inside], atol=3e-3 * wide.max()
    )
    assert wide.max() < 0.9 * fine.max()


def test_a_constant_rate_stays_one_at_the_ends(tmp_path: Path) -> None:
    """What is beyond is taken to be as what is inside."""
    folder = published(tmp_path / "flat", bias=0.5)
    dff = -np.abs(np.random.default_rng(0).normal(0, 0.1, (1, 200)))
    rate = rate_of(dff, RATE, of_folder(folder, edges="padded", smoothing=0.2))
    np.testing.assert_allclose(rate, 0.5 * RATE, rtol=1e-5)


# ------------------------------------------------------------------------------- thresholds


def test_less_than_one_spike_is_set_to_0(model: SpikeModel, dff: NDArray[np.float32]) -> None:
    whole = spike_rate(dff, RATE, model, replace(PADDED, threshold="none"))
    positive = spike_rate(dff, RATE, model, PADDED)
    np.testing.assert_array_equal(whole, positive)  # this design has no negative rates
    cut = spike_rate(dff, RATE, model, replace(PADDED, threshold="one_spike"))
    least = gaussian_kernel(model.smoothing(RATE), RATE).max() / np.e * RATE
    expected = np.where(whole < least, 0, whole)
    clear = np.abs(whole - least) > 1e-3
    np.testing.assert_array_equal(cut[clear], expected[clear])
    assert (cut == 0).any()
    assert (cut > 0).any()


# ------------------------------------------------------------------------------- the published one


def published(
    folder: Path, *, bias: float = 0.0, members: int = 1, card: Mapping[str, Any] | None = None
) -> Path:
    """A model of the published design whose rate is known: see `forward_maximum`.

    All filters but one are left out; what the kernels are told apart by is which tap is 1.
    """
    taps = {"conv_0": (31, 15), "conv_1": (19, 9), "conv_2": (5, 2), "rate": (2, 1)}
    folder.mkdir(parents=True)
    for member in range(members):
        with h5py.File(folder / "weights.h5", "w") as file:
            for name in (*taps, "dense"):
                n, chosen = taps.get(name, (1, 0))
                kernel = np.zeros((n, 1, 1), np.float32)
                kernel[chosen] = 1
                variables = file.create_group(f"layers/{name}/vars")
                variables.attrs["name"] = name
                variables["0"] = kernel[0] if name == "dense" else kernel
                given = bias * (member + 1) if name == "rate" else 0
                variables["1"] = np.array([given], np.float32)
        dilations = {"conv_0": 1, "conv_1": 1, "conv_2": 2, "rate": 4}
        layers = [
            {"config": {"name": name, "dilation_rate": [by]}} for name, by in dilations.items()
        ]
        with zipfile.ZipFile(folder / f"member_{member}.keras", "w") as archive:
            archive.writestr("config.json", json.dumps({"config": {"layers": layers}}))
            archive.write(folder / "weights.h5", "model.weights.h5")
    (folder / "weights.h5").unlink()
    said = {
        "name": folder.name,
        "design": "published",
        "frame_rates": [RATE, RATE],
        "noise_levels": [1.0, 8.0],
        "smoothing": 0.05,
        "causal": False,
        "margin": 32,
        **(card or {}),
    }
    (folder / CARD).write_text(json.dumps(said), "utf-8")
    return folder


def forward_maximum(trace: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest of a frame and the three after it, 0 or more."""
    padded = np.pad(trace, (0, 3))
    return np.maximum(np.lib.stride_tricks.sliding_window_view(padded, 4).max(axis=-1), 0)


@pytest.mark.parametrize("members", [1, 3])
def test_the_published_design_reaches_the_rates(tmp_path: Path, members: int) -> None:
    """The mean of the members, whose biases are 1, 2 and 3 times the first; to single precision."""
    folder = published(tmp_path / "known", bias=-0.1, members=members)
    dff = np.random.default_rng(0).normal(0, 0.1, (2, 300))
    dff[1, 120:] = np.nan
    rate = rate_of(dff, RATE, of_folder(folder, edges="padded", threshold="none"))
    expected = np.full((2, 300), np.nan)
    for row, known in ((0, 300), (1, 120)):
        expected[row, :known] = RATE * (forward_maximum(dff[row, :known]) - 0.1 * (members + 1) / 2)
    np.testing.assert_allclose(rate, expected, atol=1e-5)
    assert np.nanmin(rate) < 0
    positive = rate_of(dff, RATE, of_folder(folder, edges="padded"))
    np.testing.assert_array_equal(positive, np.maximum(rate, 0))
    cut = rate_of(dff, RATE, of_folder(folder, edges="padded", threshold="one_spike"))
    least = gaussian_kernel(0.05, RATE).max() / np.e * RATE
    np.testing.assert_array_equal(cut, np.where(positive < np.float32(least), 0, positive))
    unknown = rate_of(dff, RATE, of_folder(folder, threshold="none"))
    np.testing.assert_array_equal(unknown[:, 32:88], rate[:, 32:88])
    assert np.isfinite(unknown).sum() == 300 - 64 + 120 - 64


def test_the_published_design_is_smoothed_by_what_is_missing(tmp_path: Path) -> None:
    folder = published(tmp_path / "known")
    dff = np.random.default_rng(0).normal(0, 0.1, (1, 300))
    rate = rate_of(dff, RATE, of_folder(folder, smoothing=0.13, edges="padded"))
    expected = RATE * smooth(forward_maximum(dff[0]), gaussian_kernel(0.12, RATE))
    np.testing.assert_allclose(rate[0, 20:-20], expected[20:-20], rtol=1e-5)
    # one spike has the peak of the whole smoothing, not of what is missing
    chosen = of_folder(folder, smoothing=0.13)
    taps = rate_kernel(read_spike_model(chosen), chosen, RATE)
    np.testing.assert_array_equal(taps, gaussian_kernel(0.13, RATE))


@pytest.mark.parametrize(
    ("causal", "asked"),
    [
        (False, {"kernel": "causal"}),
        (True, {"kernel": "gaussian"}),
        (False, {"smoothing": 0.03}),
        (True, {"kernel": "causal", "smoothing": 0.2}),
    ],
)
def test_what_was_smoothed_otherwise_is_refused(
    tmp_path: Path, causal: bool, asked: dict[str, Any]
) -> None:
    folder = published(tmp_path / "known", card={"causal": causal})
    kernel = "causal" if causal else "gaussian"
    for check in (check_model, lambda one, rate: infer_spikes(da.zeros((2, 99)), rate, one)):
        with pytest.raises(InputError, match=f"known smooths with a {kernel} kernel of 0.05 s"):
            check(of_folder(folder, **asked), RATE)
    check_model(of_folder(folder, kernel=kernel), RATE)


# ------------------------------------------------------------------------------- cells and blocks


def test_cells_do_not_depend_on_others(model: SpikeModel, dff: NDArray[np.float32]) -> None:
    """To the bit."""
    together = spike_rate(dff, RATE, model, CHOSEN)
    for cell in (0, 3, 6):
        np.testing.assert_array_equal(
            spike_rate(dff[[cell]], RATE, model, CHOSEN)[0], together[cell]
        )
    np.testing.assert_array_equal(spike_rate(dff[::-1], RATE, model, CHOSEN), together[::-1])
    np.testing.assert_array_equal(spike_rate(np.asfortranarray(dff), RATE, model, CHOSEN), together)


@pytest.mark.parametrize("chunks", [(1, 400), (3, 400), (7, 133), (2, 50)])
def test_blocks_do_not_matter(
    model: SpikeModel, dff: NDArray[np.float32], chunks: tuple[int, int]
) -> None:
    dff = dff.copy()
    dff[1, 10:20] = np.nan
    found = infer_spikes(da.from_array(dff, chunks=chunks), RATE, CHOSEN)
    for lazy, expected in zip(
        found,
        (
            spike_rate(dff, RATE, model, CHOSEN),
            noise_level(dff, RATE).astype(np.float32),
            trace_marks(dff, RATE, model.noise_levels),
        ),
        strict=True,
    ):
        assert lazy.dtype == expected.dtype
        assert lazy.shape == expected.shape
        np.testing.assert_array_equal(lazy.compute(scheduler="threads"), expected)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("computed while building")


def test_building_computes_nothing() -> None:
    with dask.config.set(scheduler=refuse):
        found = infer_spikes(da.zeros((5, 100), chunks=(2, 30)), RATE, CHOSEN)
    assert found.rate.chunks == ((2, 2, 1), (100,))
    assert found.noise_level.shape == found.marks.shape == (5,)
    assert found.rate.dtype == np.float32
    assert found.marks.dtype == np.uint8


def test_tensorflow_is_not_imported() -> None:
    code = (
        "import sys, numpy as np; from napari_calcium.spikes import inference as s; "
        "p = s.SpikeInferenceParameters(); "
        "s.spike_rate(np.random.normal(0, .1, (1, 99)), 30.0, s.read_spike_model(p), p); "
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------- marked traces


def test_marked_traces(model: SpikeModel, dff: NDArray[np.float32]) -> None:
    """Percent, unknown and too short ones have no rate; noisy ones have."""
    dff = np.concatenate((100 * dff[:1], 20 * dff[1:2], dff[2:4], dff[4:5]))
    dff[2] = np.nan
    dff[3, 63:] = np.nan
    marks = trace_marks(dff, RATE, model.noise_levels)
    assert marks[0] & Mark.PERCENT
    assert marks[1] == Mark.TOO_NOISY
    assert (marks[2:4] == Mark.UNKNOWN).all()
    rate = spike_rate(dff, RATE, model, PADDED)
    np.testing.assert_array_equal(np.isfinite(rate).all(axis=1), [False, True, False, False, True])
    assert np.isnan(rate[[0, 2, 3]]).all()


@pytest.mark.parametrize("every", [20, 33, 34, 60])
def test_a_cell_without_any_rate_is_marked(
    model: SpikeModel, dff: NDArray[np.float32], every: int
) -> None:
    """With gaps so close that no frame is a margin away from one."""
    dff = dff.copy()
    dff[1, ::every] = np.nan
    dff[2, 64:] = np.nan
    found = infer_spikes(da.from_array(dff, chunks=(2, 400)), RATE, CHOSEN)
    marks, rate = dask.compute(found.marks, found.rate, scheduler="synchronous")
    np.testing.assert_array_equal(marks, rate_marks(dff, RATE, model, CHOSEN))
    np.testing.assert_array_equal(np.isfinite(rate).any(axis=1), marks != Mark.UNKNOWN)
    assert (marks[1] == Mark.UNKNOWN) == (every - 1 <= 2 * model.margin)
    assert marks[2] != Mark.UNKNOWN
    assert not (rate_marks(dff, RATE, model, PADDED) & Mark.UNKNOWN).any()
    assert np.isfinite(spike_rate(dff, RATE, model, PADDED)[1]).sum() == 400 - -(-400 // every)


@pytest.mark.parametrize("n_frames", [64, 65])
def test_a_trace_of_two_margins_is_marked(tmp_path: Path, n_frames: int) -> None:
    chosen = of_folder(published(tmp_path / "known"))
    dff = np.random.default_rng(0).normal(0, 0.1, (1, n_frames))
    marks = rate_marks(dff, RATE, read_spike_model(chosen), chosen)
    assert (marks == Mark.UNKNOWN).all() == (n_frames == 64)
    assert np.isfinite(rate_of(dff, RATE, chosen)).sum() == n_frames - 64


def test_a_dead_cell_has_no_rate(model: SpikeModel, dff: NDArray[np.float32]) -> None:
    """Constant, or nearly all the time."""
    dff = dff[:4].copy()
    dff[0], dff[1], dff[2, 80:] = 0, -0.3, 0.1
    assert np.isnan(spike_rate(dff, RATE, model, PADDED)[:3]).all()
    assert (rate_marks(dff, RATE, model, PADDED) == Mark.UNKNOWN).tolist() == [True] * 3 + [False]


def test_too_short_for_a_rate(model: SpikeModel) -> None:
    dff = np.random.default_rng(0).normal(0, 0.1, (2, 40))
    assert np.isnan(spike_rate(dff, RATE, model, PADDED)).all()
    assert spike_rate(dff[:, :0], RATE, model, PADDED).shape == (2, 0)


# ------------------------------------------------------------------------------- models


@pytest.mark.parametrize("frame_rate", [0.5, 1.8, 70.0, 500.0])
def test_frame_rates_outside_are_refused(frame_rate: float) -> None:
    with pytest.raises(InputError, match=r"is for 2 to 60 Hz; average frames, or train") as caught:
        check_model(CHOSEN, frame_rate)
    assert f"frame_rate is {frame_rate:g} Hz" in str(caught.value)
    with pytest.raises(InputError, match="frame_rate"):
        infer_spikes(da.zeros((2, 99)), frame_rate, CHOSEN)


@pytest.mark.parametrize("frame_rate", [0.0, -30.0, np.nan, np.inf, 1.8, 100.0])
def test_no_rate_is_inferred_at_another_frame_rate(
    model: SpikeModel, dff: NDArray[np.float32], frame_rate: float
) -> None:
    said = "is for 2 to 60 Hz" if 0 < frame_rate < np.inf else "give the frames recorded per second"
    with pytest.raises(InputError, match=rf"^frame_rate is {frame_rate:g} Hz.* {said}"):
        spike_rate(dff, frame_rate, model, CHOSEN)
    with pytest.raises(InputError, match=said):
        check_model(CHOSEN, frame_rate)


@pytest.mark.parametrize("frame_rate", [1.95, 2.0, 31.3, 60.0, 62.0])
def test_frame_rates_that_are_about_the_same_are_served(frame_rate: float) -> None:
    check_model(CHOSEN, frame_rate)


def test_a_model_for_one_frame_rate(tmp_path: Path) -> None:
    folder = published(tmp_path / "known")
    check_model(of_folder(folder), 29.0)
    with pytest.raises(InputError, match="known is for 30 Hz;"):
        check_model(of_folder(folder), 20.0)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_say_what_they_are(name: str) -> None:
    chosen = SpikeInferenceParameters(model=name)  # type: ignore[arg-type]
    model = read_spike_model(chosen)
    assert model.name == name
    assert model.frame_rates == (2.0, 60.0)
    assert model.noise_levels == (0.2, 12.0)
    assert not model.smooths
    assert chosen.shipped() == {"spike_model": model_digest(SHIPPED[name])}
    assert chosen.files() == ()
    assert model.card["data"]
    assert all(0 < one["correlation"] < 1 for one in model.card["figures"]["medians"])
    assert read_spike_model(chosen) is model


def test_the_two_differ(dff: NDArray[np.float32]) -> None:
    chosen = replace(PADDED, model="interneurons")
    assert np.abs(rate_of(dff, RATE, chosen) - rate_of(dff, RATE, PADDED)).max() > 0.1


def test_a_folder_of_the_user(copied: Path, dff: NDArray[np.float32]) -> None:
    chosen = of_folder(copied, model="interneurons")
    assert chosen.files() == (str(copied),)
    assert chosen.shipped() == {}
    assert chosen.folder == copied
    np.testing.assert_array_equal(rate_of(dff, RATE, chosen), rate_of(dff, RATE, CHOSEN))


def test_a_change_of_a_file_is_seen(copied: Path) -> None:
    before, model = model_digest(copied), read_spike_model(of_folder(copied))
    assert before == model_digest(SHIPPED["excitatory"])
    card = json.loads((copied / CARD).read_text("utf-8"))
    (copied / CARD).write_text(json.dumps({**card, "name": "other"}), "utf-8")
    after = model_digest(copied)
    assert after != before
    assert (model.name, read_spike_model(of_folder(copied)).name) == ("excitatory", "other")
    (copied / "member_0.keras").rename(copied / "member_7.keras")
    assert model_digest(copied) not in (before, after)
    shutil.copy(copied / "member_7.keras", copied / "member_8.keras")
    more = len(model.networks) + 1
    (copied / CARD).write_text(json.dumps({**card, "training": {"members": more}}), "utf-8")
    assert len(read_spike_model(of_folder(copied)).networks) == more


def refused(folder: Path, said: str) -> None:
    for call in (read_spike_model, lambda one: check_model(one, RATE)):
        with pytest.raises(InputError, match=said) as caught:
            call(of_folder(folder))
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)
        assert "train-spikes" in str(caught.value)


def test_where_there_is_no_model(tmp_path: Path) -> None:
    refused(tmp_path / "none", "holds no model for spike inference")
    refused(tmp_path, "holds no model for spike inference")
    (tmp_path / "file").write_text("text")
    refused(tmp_path / "file", "holds no model for spike inference")


@pytest.mark.parametrize(
    "card",
    [
        "",
        "nothing",
        "[]",
        "3",
        "{}",
        '{"name": "a", "frame_rates": 3}',
        '{"name": "a"}',
        '{"name": "a", "frame_rates": [2, 6], "noise_levels": [1, 8], "margin": 1, "smoothing": 0}',
        b"\xff",
    ],
)
def test_a_damaged_card(copied: Path, card: str | bytes) -> None:
    (copied / CARD).write_bytes(card if isinstance(card, bytes) else card.encode())
    refused(copied, "cannot be read")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("smoothing", np.nan),
        ("smoothing", -1),
        ("smoothing", np.inf),
        ("margin", -5),
        ("margin", np.nan),
        ("margin", np.inf),
        ("noise_levels", [12.0, 0.2]),
        ("noise_levels", [np.nan, 12.0]),
        ("noise_levels", [0.2, np.inf]),
        ("noise_levels", [-1, 12.0]),
        ("frame_rates", [60.0, 2.0]),
        ("frame_rates", [0, 60.0]),
        ("frame_rates", [2.0, np.nan]),
        ("frame_rates", [2.0, 10**400]),
    ],
)
def test_a_card_that_cannot_be_meant(copied: Path, name: str, value: Any) -> None:
    card = json.loads((copied / CARD).read_text("utf-8"))
    (copied / CARD).write_text(json.dumps({**card, name: value}), "utf-8")
    refused(copied, "cannot be read")


@pytest.mark.parametrize("missing", [0, -1])
def test_a_missing_member(copied: Path, missing: int) -> None:
    members = sorted(copied.glob("*.keras"))
    members[missing].unlink()
    refused(copied, f"{len(members) - 1} of {len(members)} networks")


def test_a_member_too_many(copied: Path) -> None:
    n_members = len(list(copied.glob("*.keras")))
    shutil.copy(copied / "member_0.keras", copied / "member_99.keras")
    refused(copied, f"{n_members + 1} of {n_members} networks")


def test_a_card_alone(copied: Path) -> None:
    for file in copied.glob("*.keras"):
        file.unlink()
    refused(copied, "0 networks")


def test_networks_of_two_designs(copied: Path, tmp_path: Path) -> None:
    other = published(tmp_path / "known")
    shutil.copy(other / "member_0.keras", copied / "member_9.keras")
    refused(copied, "networks of one design")


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_network(copied: Path, seed: int) -> None:
    """Bytes that are others, or missing; where nothing that matters is hit it is read."""
    file, random = next(copied.glob("*.keras")), np.random.default_rng(seed)
    content = bytearray(file.read_bytes())
    first = int(random.integers(len(content) - 200))
    content[first : first + 100] = random.bytes(100)
    file.write_bytes(content if seed % 4 else content[:first])
    refused(copied, "cannot be read")


@pytest.mark.parametrize("place", [60, 61, 62, 63])
def test_a_network_that_cannot_be_unpacked(copied: Path, place: int) -> None:
    """In the packed config.json, and the version of the archive that it asks for."""
    file = next(copied.glob("*.keras"))
    content = bytearray(file.read_bytes())
    if place == 63:
        content[content.rindex(b"PK\x01\x02") + 6] = 250
    content[place : place + 40] = b"\xff" * 40 if place < 63 else content[place : place + 40]
    file.write_bytes(content)
    refused(copied, "cannot be read")
