"""The commands of spike inference, with a stand-in for the networks and their training."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.io

from napari_calcium import cli as module
from napari_calcium.cli import main
from napari_calcium.errors import InputError
from napari_calcium.spikes.discrete import WARNING
from napari_calcium.spikes.examples import SpikeTrainingParameters
from napari_calcium.spikes.guards import Mark, mark_words
from napari_calcium.spikes.inference import SpikeInferenceParameters

MARGIN = 8


class StandIn(NamedTuple):
    """A model whose rate is 10 times what dF/F is above 0."""

    name: str = "stand-in"
    frame_rates: tuple[float, float] = (5.0, 60.0)
    noise_levels: tuple[float, float] = (0.1, 8.0)
    margin: int = MARGIN

    def smoothing(self, frame_rate: float) -> float:
        return max(0.05, 1.5 / frame_rate)


class Answer(NamedTuple):
    """What the command left: its exit status and what it wrote."""

    status: int
    out: str
    err: str


Spikes = Callable[..., Answer]


@pytest.fixture
def asked() -> list[SpikeInferenceParameters]:
    """What the stand-in was called with, a block of cells at a time."""
    return []


@pytest.fixture
def spikes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: list[Any]
) -> Spikes:
    """Call the command as the shell does."""

    def check(parameters: SpikeInferenceParameters, frame_rate: float) -> None:
        if frame_rate > 60:
            raise InputError(f"frame_rate is {frame_rate:g} Hz; the model is for 5 to 60")

    def rate(dff: np.ndarray, frame_rate: float, model: Any, parameters: Any) -> np.ndarray:
        assert isinstance(model, StandIn)
        assert len(dff) <= 16
        asked.append(parameters)
        found = 10 * np.maximum(dff, 0)
        found[:, :MARGIN] = found[:, -MARGIN:] = np.nan
        return found.astype(np.float32)

    monkeypatch.setattr(module, "read_spike_model", lambda parameters: StandIn())
    monkeypatch.setattr(module, "check_model", check)
    monkeypatch.setattr(module, "spike_rate", rate)

    def call(*arguments: Any) -> Answer:
        monkeypatch.setattr(sys, "argv", ["napari-calcium", "spikes", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Answer(status, *capsys.readouterr())

    return call


@pytest.fixture
def dff() -> np.ndarray:
    """37 cells, more than one block, of 301 frames."""
    values = np.random.default_rng(0).normal(0, 0.05, (37, 301)).astype(np.float32)
    values[:, 100:103] += 1
    return values


@pytest.fixture
def traces(tmp_path: Path, dff: np.ndarray) -> Path:
    np.save(tmp_path / "dff.npy", dff)
    return tmp_path / "dff.npy"


def expected(dff: np.ndarray) -> np.ndarray:
    rate = 10 * np.maximum(dff, 0)
    rate[:, :MARGIN] = rate[:, -MARGIN:] = np.nan
    return rate


def test_rates_are_written_beside_the_traces(spikes: Spikes, traces: Path, dff: Any) -> None:
    answer = spikes(traces, "--frame-rate", 30)
    assert answer.status == 0
    assert answer.err == ""
    written = np.load(traces.with_name("dff_spikes.npy"))
    np.testing.assert_array_equal(written, expected(dff))
    assert written.dtype == np.float32
    for line in (
        "dff.npy: 37 cells in rows, 301 frames in columns",
        "model: stand-in",
        "cells: 37, 37 with a rate",
        "frames: 301 at 30 Hz, 10.0333 s",
        str(traces.with_name("dff_spikes.npy")),
    ):
        assert line in answer.out.splitlines()
    assert "% Hz^-0.5 (median)" in answer.out


def test_percent_is_refused_by_naming_the_remedy(spikes: Spikes, traces: Path, dff: Any) -> None:
    np.save(traces, 100 * dff)
    answer = spikes(traces, "--frame-rate", 30)
    assert answer.status == 2
    assert answer.err.startswith("napari-calcium: the traces look like percent")
    assert answer.err.endswith("add --percent\n")
    assert not list(traces.parent.glob("*spikes*"))
    assert spikes(traces, "--frame-rate", 30, "--percent").status == 0
    written = np.load(traces.with_name("dff_spikes.npy"))
    np.testing.assert_allclose(written, expected(dff), rtol=1e-5)


@pytest.mark.parametrize(("f0", "options"), [(500, ()), (500, ("--percent",)), (1, ())])
def test_fluorescence_is_refused(
    spikes: Spikes, traces: Path, dff: Any, f0: float, options: tuple[str, ...]
) -> None:
    """Counts, and F / F0: what dF/F is is said."""
    np.save(traces, f0 * (1 + dff))
    answer = spikes(traces, "--frame-rate", 30, *options)
    assert answer.status == 2
    assert answer.err.startswith("napari-calcium: the traces look like fluorescence, not dF/F")
    assert answer.err.endswith("give (F - F0) / F0, with F0 the baseline of each cell\n")
    assert answer.err.count("\n") == 1
    baseline = float(answer.err.split("baseline is ")[1].split(",")[0])
    assert baseline == pytest.approx(f0, rel=0.1)  # the first decile is 1.3 sd of 5 % lower
    assert not list(traces.parent.glob("*spikes*"))


def test_a_few_cells_with_a_high_baseline_are_let_through(
    spikes: Spikes, traces: Path, dff: Any
) -> None:
    dff[:18] += 3
    np.save(traces, dff)
    assert spikes(traces, "--frame-rate", 30).status == 0
    np.save(traces, np.full_like(dff, np.nan))  # nor is anything said of cells without a frame
    assert spikes(traces, "--frame-rate", 30).status == 0


def test_marked_cells_are_said_and_some_have_no_rate(
    spikes: Spikes, traces: Path, dff: np.ndarray
) -> None:
    dff[0] = np.nan
    dff[1] *= 1000
    dff[2] = np.random.default_rng(1).normal(0, 1, 301)
    dff[3, 50] = np.inf
    np.save(traces, dff)
    output = traces.with_name("rates.npz")
    answer = spikes(traces, "--frame-rate", 30, "--output", output)
    assert answer.status == 0
    with np.load(output) as stored:
        marks, rate = stored["marks"], stored["rate"]
        assert stored["frame_rate"] == 30
        assert np.isnan(stored["noise_level"][0])
    assert marks[:5].tolist() == [Mark.UNKNOWN, Mark.PERCENT | Mark.TOO_NOISY, Mark.TOO_NOISY, 0, 0]
    assert np.isnan(rate[:2]).all()
    assert np.isfinite(rate[2, MARGIN:-MARGIN]).all()
    assert np.isfinite(rate[4, MARGIN:-MARGIN]).all()
    assert answer.err.count("warning: ") == 3
    said = f"marked: 1 {mark_words(Mark.UNKNOWN)}, 2 too noisy, 1 dF/F in percent"
    assert said in answer.out
    assert "cells: 37, 35 with a rate" in answer.out


def test_options_reach_the_model(spikes: Spikes, traces: Path, asked: list[Any]) -> None:
    options = "--causal --smoothing 0.1 --threshold one_spike --edges padded --model interneurons"
    assert spikes(traces, "--frame-rate", 30, *options.split(), "--model-file", "mine").status == 0
    assert asked == 3 * [
        SpikeInferenceParameters("interneurons", "mine", "causal", 0.1, "one_spike", "padded")
    ]


def test_single_spikes_come_with_a_warning(spikes: Spikes, traces: Path, dff: np.ndarray) -> None:
    answer = spikes(traces, "--frame-rate", 30, "--discrete", "--seed", 3)
    assert answer.status == 0
    assert f"warning: {WARNING}\n" in answer.err
    path = traces.with_name("dff_spikes_times.csv")
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["cell", "time_s"]
    assert {row[0] for row in rows} == {str(i) for i in range(37)}  # each has a spike's worth
    assert f"{path}: {len(rows)} spikes" in answer.out
    first = path.read_bytes()
    spikes(traces, "--frame-rate", 30, "--discrete", "--seed", 3)
    assert path.read_bytes() == first


def test_the_traces_are_not_replaced(
    spikes: Spikes, traces: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by single spikes, nor where the home folder is written short."""
    folder = traces.parent
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    table = folder / "x_times.csv"
    np.savetxt(table, np.load(traces).T, delimiter=",")
    for arguments in (
        (table, "--output", folder / "x.csv", "--discrete"),
        ("~/dff.npy", "--output", "~/dff.npy"),
        ("~/dff.npy", "--output", traces),
    ):
        before = {file: file.read_bytes() for file in folder.iterdir()}
        answer = spikes(*arguments, "--frame-rate", 30)
        assert answer.status == 2
        assert "holds the traces; give another --output" in answer.err
        assert {file: file.read_bytes() for file in folder.iterdir()} == before
    assert asked == []
    assert spikes("~/dff.npy", "--frame-rate", 30).status == 0
    assert (folder / "dff_spikes.npy").is_file()


@pytest.mark.parametrize(
    ("output", "options"),
    [("file/out.npy", ()), ("folder.npy", ()), ("new/out.npy", ("--discrete",))],
)
def test_the_destination_is_tried_before_anything_is_inferred(
    spikes: Spikes, traces: Path, asked: list[Any], output: str, options: tuple[str, ...]
) -> None:
    (traces.parent / "file").write_text("", "utf-8")
    (traces.parent / "folder.npy").mkdir()
    (traces.parent / "new" / "out_times.csv").mkdir(parents=True)
    answer = spikes(traces, "--frame-rate", 30, "--output", traces.parent / output, *options)
    assert answer.status == 2
    assert answer.err.endswith("; give another path\n")
    assert answer.err.count("\n") == 1
    assert asked == []
    assert [path.name for path in (traces.parent / "new").iterdir()] == ["out_times.csv"]


def test_tables_keep_their_names_and_kind(spikes: Spikes, tmp_path: Path, dff: Any) -> None:
    path = tmp_path / "dff.tsv"
    lines = ["time\tleft\tright"]
    lines += [f"{i / 30:.4f}\t{a:.4f}\t{b:.4f}" for i, (a, b) in enumerate(dff[:2].T)]
    path.write_text("\n".join(lines), "utf-8")
    assert spikes(path, "--frame-rate", 30).status == 0
    with (tmp_path / "dff_spikes.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["time (s)", "left rate (Hz)", "right rate (Hz)"]
    assert len(rows) == 301
    assert rows[0][1:] == ["", ""]


def test_variable_and_axes_of_a_file(spikes: Spikes, tmp_path: Path, dff: np.ndarray) -> None:
    scipy.io.savemat(tmp_path / "dff.mat", {"a": dff.T, "b": dff[:5]})
    answer = spikes(tmp_path / "dff.mat", "--frame-rate", 30)
    assert answer.status == 2
    assert "name one of: a, b" in answer.err
    options = ("--variable", "a", "--axes", "time,cell")
    assert spikes(tmp_path / "dff.mat", "--frame-rate", 30, *options).status == 0
    stored = scipy.io.loadmat(tmp_path / "dff_spikes.mat", squeeze_me=True)
    np.testing.assert_array_equal(stored["rate"], expected(dff))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--frame-rate", "0"], "--frame-rate is 0 Hz"),
        (["--frame-rate", "nan"], "--frame-rate is nan Hz"),
        (["--frame-rate", "500"], "frame_rate is 500 Hz"),
        (["--frame-rate", "30", "--output", "rates.tif"], "unknown kind"),
        (["--frame-rate", "30", "--output", "{traces}"], "holds the traces"),
        (["--frame-rate", "30", "--smoothing", "-1"], "smoothing"),
    ],
)
def test_mistakes_are_one_sentence(
    spikes: Spikes, traces: Path, arguments: list[str], said: str
) -> None:
    answer = spikes(traces, *(part.format(traces=traces) for part in arguments))
    assert answer.status == 2
    assert answer.err.startswith("napari-calcium: ")
    assert said in answer.err
    assert answer.err.count("\n") == 1
    assert [file.name for file in traces.parent.iterdir()] == ["dff.npy"]


def test_a_seed_below_0_is_refused_before_anything_is_written(
    spikes: Spikes, traces: Path, asked: list[Any]
) -> None:
    answer = spikes(traces, "--frame-rate", 30, "--discrete", "--seed", -1)
    assert answer.status == 2
    assert "--seed" in answer.err
    assert asked == []
    assert [file.name for file in traces.parent.iterdir()] == ["dff.npy"]


def test_a_missing_file(spikes: Spikes, tmp_path: Path) -> None:
    answer = spikes(tmp_path / "none.npy", "--frame-rate", 30)
    assert answer.status == 2
    assert "none.npy is no file" in answer.err


# ------------------------------------------------------------------------------- training


Call = Callable[..., Answer]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call a command as the shell does."""

    def called(*arguments: Any) -> Answer:
        monkeypatch.setattr(sys, "argv", ["napari-calcium", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Answer(status, *capsys.readouterr())

    return called


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """A folder of three datasets of 40 s at 15 Hz, the last one of interneurons."""
    folder = tmp_path / "truth"
    folder.mkdir()
    for i, (name, cell_class) in enumerate(
        (("DS01-a", "exc"), ("DS02-b", "exc"), ("DS03-c", "inh"))
    ):
        random = np.random.default_rng(i)
        spikes = np.sort(random.uniform(1, 39, 20))
        since = np.maximum(np.arange(600)[:, None] / 15 - spikes, 0)
        dff = 0.6 * ((since > 0) * np.exp(-since / 0.5)).sum(axis=1) + random.normal(0, 0.04, 600)
        np.savez(
            folder / f"{name}.npz",
            meta=json.dumps({"dataset": name, "indicator": "dye", "cell_class": cell_class}),
            neuron_id=np.array(["neuron"]),
            rec_neuron=np.array([0]),
            rec_ptr=np.array([0, 600]),
            dff=dff.astype(np.float32),
            rec_t0=np.zeros(1),
            rec_fs=np.full(1, 15.0),
            spk_ptr=np.array([0, 20]),
            spk=spikes,
        )
    return folder


class Trained(NamedTuple):
    """A model as `train_model` returns it."""

    networks: tuple[int, ...]
    card: dict[str, Any]


def test_training_is_asked_for_what_was_said(
    call: Call, truth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def train(*given: Any, progress: Callable[[int, int], None]) -> Trained:
        asked.extend(given)
        progress(1, 2)
        return Trained(
            (1, 2), {"data": [1], "held_out": ["DS02-b"], "validation": [[0.1, 0.7], [0.6]]}
        )

    monkeypatch.setattr(module, "train_model", train)
    output = truth.parent / "model"
    options = (
        "--design published --frame-rate 15 --noise 3 --smoothing 0.1 --causal --members 2 "
        "--frames 0.5 --seed 4 --cells exc --hold-out DS02"
    )
    answer = call("train-spikes", output, "--datasets", truth, *options.split())
    assert answer.status == 0
    folder, datasets, parameters, held_out = asked
    assert folder == output
    assert [one.name for one in datasets] == ["DS01-a", "DS02-b"]
    assert [one.name for one in held_out] == ["DS02-b"]
    assert parameters == SpikeTrainingParameters("published", 15, 3, 0.1, True, 2, 0.5, 4)
    assert answer.out.splitlines() == [
        "networks: 2, datasets: 1",
        "validation: r = 0.700 (DS02-b)",
        "validation: r = 0.600 (DS02-b)",
        str(output),
    ]


def test_benchmark_writes_its_table(call: Call, truth: Path) -> None:
    output = truth.parent / "benchmark"
    options = "--method deconvolution --frame-rate 15 --frame-rate 7.5 --noise 3 --kernel causal"
    command = ("benchmark-spikes", output, "--datasets", truth, *options.split())
    answer = call(*command)
    assert answer.status == 0
    with (output / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    judged = [(row["frame_rate"], row["dataset"], row["kernel"]) for row in rows]
    assert judged == [
        (rate, name, "causal") for rate in ("15", "7.5") for name in ("DS01-a", "DS02-b")
    ]
    assert all(float(row["best_correlation"]) > 0.5 for row in rows)
    for word in ("deconvolution", "causal", "Medians over datasets that were held out"):
        assert word in answer.out
    first = (output / "table.csv").read_bytes()
    assert call(*command).status == 0
    assert (output / "table.csv").read_bytes() == first


@pytest.mark.parametrize("command", ["train-spikes", "benchmark-spikes"])
def test_a_seed_of_training_is_not_below_0(call: Call, truth: Path, command: str) -> None:
    answer = call(command, truth.parent / "out", "--datasets", truth, "--seed", -1)
    assert answer.status == 2
    assert "--seed" in answer.err
    assert not (truth.parent / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train-spikes", "{out}", "--datasets", "{truth}/none.npz"], "does not exist"),
        (["train-spikes", "{out}", "--datasets", "{truth}", "--hold-out", "DS9"], "no dataset"),
        (["train-spikes", "{out}", "--datasets", "{truth}", "--members", "0"], "members is 0"),
        (
            ["train-spikes", "{out}", "--datasets", "{truth}", "--design", "published"],
            "give frame_rate (Hz) and noise",
        ),
        (
            ["train-spikes", "{out}", "--datasets", "{truth}/DS01-a.npz", "--cells", "inh"],
            "no dataset is of the class inh",
        ),
        (["benchmark-spikes", "{out}", "--datasets", "{truth}/DS01-a.npz"], "name two or more"),
        (["benchmark-spikes", "{out}", "--datasets", "{truth}", "--noise", "0"], "noise is 0"),
    ],
)
def test_mistakes_of_training_are_one_sentence(
    call: Call, truth: Path, arguments: list[str], said: str
) -> None:
    output = truth.parent / "out"
    answer = call(*(part.format(out=output, truth=truth) for part in arguments))
    assert answer.status == 2
    assert answer.err.startswith("napari-calcium: ")
    assert said in answer.err
    assert answer.err.count("\n") == 1
    assert not output.exists()
