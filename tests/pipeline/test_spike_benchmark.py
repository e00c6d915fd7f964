"""Methods compared on simulated datasets; networks are stood in for."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_calcium.errors import InputError
from napari_calcium.pipeline import spike_benchmark as module
from napari_calcium.pipeline.run import Progress
from napari_calcium.pipeline.spike_benchmark import (
    METHODS,
    Row,
    benchmark_spikes,
    named_datasets,
    summarise,
    write_rows,
)
from napari_calcium.spikes.benchmark import Condition
from napari_calcium.spikes.examples import SpikeTrainingParameters
from napari_calcium.spikes.ground_truth import Dataset, Recording
from napari_calcium.spikes.inference import SpikeInferenceParameters, read_spike_model

CONDITION = Condition(frame_rate=15.0, noise=3.0)


def recording(seed: int, amplitude: float, n_spikes: int = 20) -> Recording:
    """Transients of 0.5 s in 600 frames at 15 Hz."""
    random, n_frames = np.random.default_rng(seed), 600
    spikes = np.sort(random.uniform(1, n_frames / 15 - 1, n_spikes))
    since = np.arange(n_frames)[:, None] / 15 - spikes
    calcium = np.where(since >= 0, np.exp(-np.maximum(since, 0) / 0.5), 0).sum(axis=1)
    dff = amplitude * calcium + random.normal(0, 0.04, n_frames)
    return Recording(f"cell-{seed}", dff.astype(np.float32), 15.0, 0.0, spikes)


@pytest.fixture(scope="module")
def datasets() -> tuple[Dataset, ...]:
    return tuple(
        Dataset(name, tuple(recording(10 * i + k, 0.6) for k in range(2)), indicator=f"dye {i}")
        for i, name in enumerate(("DS01-one", "DS02-two", "DS10-three"))
    )


class Trainer:
    """Stands in for `train_model`: gives the model that comes with the program."""

    def __init__(self) -> None:
        self.calls: list[tuple[Path, list[str], SpikeTrainingParameters]] = []

    def __call__(
        self, folder: Path, datasets: Sequence[Dataset], parameters: SpikeTrainingParameters
    ) -> Any:
        self.calls.append((folder, [one.name for one in datasets], parameters))
        model = read_spike_model(SpikeInferenceParameters())
        if parameters.design == "published":
            return replace(model, name="published")
        return model


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    made = Trainer()
    monkeypatch.setattr(module, "train_model", made)
    return made


# ------------------------------------------------------------------------------- what is judged


def test_deconvolution_needs_no_network(
    datasets: Sequence[Dataset], trainer: Trainer, tmp_path: Path
) -> None:
    """It finds bright transients (r above 0.7), and is scaled to the spikes of the others.

    Which are as bright: half as many, or twice, would be a bias of -0.5 or 1.
    """
    said: list[Progress] = []
    rows = benchmark_spikes(
        tmp_path, datasets, [CONDITION], methods=["deconvolution"], progress=said.append
    )
    assert not trainer.calls
    assert [row.dataset for row in rows] == [one.name for one in datasets]
    assert [one.done for one in said] == [0, 1, 2, 3]
    assert {one.total for one in said} == {3}
    for row, dataset in zip(rows, datasets, strict=True):
        assert (row.method, row.indicator) == ("deconvolution", dataset.indicator)
        assert (row.frame_rate, row.noise, row.kernel) == (15.0, 3.0, "gaussian")
        assert row.smoothing == CONDITION.seconds
        assert row.n_neurons == 2
        assert row.best_correlation > 0.7
        assert row.best_correlation >= row.correlation
        assert abs(row.bias) < 0.4
        assert row.error < 1


def test_the_gain_is_that_of_the_others(datasets: Sequence[Dataset], tmp_path: Path) -> None:
    """A dataset twice as bright as they are is taken for twice the spikes, and one does not help.

    Noise of a wanted level is the same in all; to 30 %.
    """
    bright = Dataset("bright", tuple(recording(50 + k, 1.2) for k in range(2)))
    rows = benchmark_spikes(
        tmp_path,
        [*datasets, bright],
        [CONDITION],
        methods=["deconvolution"],
        held_out=["bright", "DS01"],
    )
    by_name = {row.dataset: row for row in rows}
    assert set(by_name) == {"bright", "DS01-one"}
    assert by_name["bright"].bias == pytest.approx(1, abs=0.3)
    assert abs(by_name["DS01-one"].bias) < 0.4


@pytest.mark.parametrize("method", ["conditioned", "published"])
def test_networks_never_learn_from_what_is_held_out(
    datasets: Sequence[Dataset], trainer: Trainer, tmp_path: Path, method: Any
) -> None:
    rows = benchmark_spikes(
        tmp_path, datasets, [CONDITION], methods=[method], frames=0.5, members=2, seed=7
    )
    names = {one.name for one in datasets}
    assert len(trainer.calls) == len(rows) == 3
    for (folder, used, parameters), row in zip(trainer.calls, rows, strict=True):
        assert set(used) == names - {row.dataset}
        assert folder.name == row.dataset
        assert tmp_path in folder.parents
        assert (parameters.frames, parameters.members, parameters.seed) == (0.5, 2, 7)
        assert parameters.design == method
        assert row.correlation > 0.3
    asked = trainer.calls[0][2]
    expected = (
        (15.0, 3.0, CONDITION.seconds, False) if method == "published" else (0, 0, 0.05, False)
    )
    assert (asked.frame_rate, asked.noise, asked.smoothing, asked.causal) == expected
    assert len({folder for folder, _, _ in trainer.calls}) == 3


def test_conditions_share_the_conditioned_network_and_not_the_published_one(
    datasets: Sequence[Dataset], trainer: Trainer, tmp_path: Path
) -> None:
    conditions = [
        CONDITION,
        replace(CONDITION, frame_rate=7.5),
        replace(CONDITION, noise=5.0),
        replace(CONDITION, kernel="causal"),
    ]
    methods: list[Any] = ["conditioned", "published"]
    rows = benchmark_spikes(tmp_path, datasets, conditions, methods=methods, held_out=["DS01"])
    assert [(row.frame_rate, row.noise, row.kernel, row.method) for row in rows] == [
        (one.frame_rate, one.noise, one.kernel, method) for one in conditions for method in methods
    ]
    folders = [folder for folder, _, _ in trainer.calls]
    assert len(set(folders[::2])) == 1
    assert len(set(folders[1::2])) == 4
    assert [parameters.causal for _, _, parameters in trainer.calls[1::2]] == [False] * 3 + [True]


def test_rates_that_are_unknown_do_no_harm(
    datasets: Sequence[Dataset], trainer: Trainer, tmp_path: Path
) -> None:
    """A neuron that looks like percent has no rate: a correlation of 0, the others their own."""
    wild = recording(70, 400.0, 6)
    mixed = replace(datasets[0], recordings=(*datasets[0].recordings, wild))
    (row,) = benchmark_spikes(
        tmp_path / "a",
        [mixed, datasets[1]],
        [CONDITION],
        methods=["conditioned"],
        held_out=["DS01"],
    )
    assert row.n_neurons == 3
    assert np.isfinite([row.correlation, row.error, row.bias]).all()
    alone = replace(datasets[0], recordings=(wild,))
    (row,) = benchmark_spikes(
        tmp_path / "b",
        [alone, datasets[1]],
        [CONDITION],
        methods=["conditioned"],
        held_out=["DS01"],
    )
    assert (row.n_neurons, row.correlation) == (1, 0)


def test_a_dataset_that_cannot_be_judged(
    datasets: Sequence[Dataset], trainer: Trainer, tmp_path: Path
) -> None:
    """Too slow for the condition: no neuron, no score, and no network is trained."""
    condition = Condition(frame_rate=30.0)
    rows = benchmark_spikes(tmp_path, datasets, [condition], held_out=["DS01"])
    assert not trainer.calls
    assert [row.method for row in rows] == list(METHODS)
    assert [row.n_neurons for row in rows] == [0, 0, 0]
    assert all(np.isnan(row.correlation) and np.isnan(row.error) for row in rows)
    again = benchmark_spikes(tmp_path, datasets, [condition], held_out=["DS01"])
    assert [row.n_neurons for row in again] == [0, 0, 0]


# ------------------------------------------------------------------------------- going on


def test_what_is_done_is_not_done_again(
    datasets: Sequence[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(**values: Any) -> list[Row]:
        return benchmark_spikes(
            tmp_path, datasets, [CONDITION], methods=["deconvolution"], **values
        )

    first = run(held_out=["DS01"])
    judged: list[str] = []
    scores = module._scores

    def spied(fold: Any, method: Any, condition: Condition) -> Any:
        judged.append(fold.held_out.name)
        return scores(fold, method, condition)

    monkeypatch.setattr(module, "_scores", spied)
    rows = run()
    assert judged == ["DS02-two", "DS10-three"]
    assert rows[0] == first[0]
    assert run() == rows
    assert len(judged) == 2
    assert run(seed=1, held_out=["DS01"]) != first  # made otherwise: it is made again
    assert judged[2:] == ["DS01-one"]
    smoother = [replace(CONDITION, smoothing=0.2)]
    benchmark_spikes(tmp_path, datasets, smoother, methods=["deconvolution"], held_out=["DS01"])
    assert judged[3:] == ["DS01-one"]
    kept = [json.loads(file.read_text("utf-8")) for file in tmp_path.rglob("*.json")]
    assert len(kept) == 4
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("method", ["conditioned", "published"])
def test_scores_are_of_the_networks_that_are_there(
    datasets: Sequence[Dataset],
    trainer: Trainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    """Where these are others, or are made otherwise now, they are judged again."""

    def run() -> int:
        before = len(trainer.calls)
        benchmark_spikes(tmp_path, datasets, [CONDITION], methods=[method], held_out=["DS01"])
        return len(trainer.calls) - before

    assert (run(), run()) == (1, 0)
    folder = trainer.calls[0][0]
    folder.mkdir(parents=True)
    (folder / "member_0.keras").write_bytes(b"another")
    assert (run(), run()) == (1, 0)
    numbers = module.design_numbers
    monkeypatch.setattr(
        module, "design_numbers", lambda design: {**numbers(design), "N_FEATURES": 17}
    )
    assert (run(), run()) == (1, 0)


def test_layout_of_the_folder(
    datasets: Sequence[Dataset], trainer: Trainer, tmp_path: Path
) -> None:
    condition = Condition(frame_rate=15.0, noise=2.0)
    methods = ["conditioned", "published"]
    benchmark_spikes(tmp_path, datasets, [condition], methods=methods, held_out=["DS01"])
    folders = [str(folder.relative_to(tmp_path)) for folder, _, _ in trainer.calls]
    assert folders == ["conditioned/DS01-one", "published-15Hz-2-gaussian-100ms/DS01-one"]


# ------------------------------------------------------------------------------- mistakes


def test_mistakes(datasets: Sequence[Dataset], trainer: Trainer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="of 1 dataset none can be held out; name two or more"):
        benchmark_spikes(tmp_path, datasets[:1], [CONDITION])
    with pytest.raises(InputError, match=r"there is no dataset 'DS03'"):
        benchmark_spikes(tmp_path, datasets, [CONDITION], held_out=["DS03"])
    quiet = replace(CONDITION, noise=13.0)
    with pytest.raises(InputError, match=r"15 Hz and noise level 13 is none of the network's"):
        benchmark_spikes(tmp_path, datasets, [quiet], methods=["conditioned"])
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"file cannot be made \(.*; name another folder"):
        benchmark_spikes(tmp_path / "file", datasets, [CONDITION])
    assert not trainer.calls


def test_names_of_datasets(datasets: Sequence[Dataset]) -> None:
    def found(*names: str) -> list[str]:
        return [one.name for one in named_datasets(datasets, names)]

    assert found() == [one.name for one in datasets]
    assert found("DS0") == ["DS01-one", "DS02-two"]
    assert found("DS10", "DS01-one") == ["DS01-one", "DS10-three"]


# ------------------------------------------------------------------------------- tables


def row(method: str, dataset: str, noise: float, r: float, bias: float, n: int = 3) -> Row:
    nan = float("nan")
    values = (r, r + 0.1, 0.0, abs(bias), bias) if n else (nan, nan, 0.0, nan, nan)
    return Row(method, dataset, "dye", 15.0, noise, "gaussian", 0.1, n, *values)


def test_summary() -> None:
    rows = [
        row("published", "a", 2.0, 0.5, -0.4),
        row("published", "b", 2.0, 0.7, 0.2),
        row("published", "c", 2.0, 0.9, 0.3),
        row("published", "d", 2.0, 0, 0, n=0),
        row("published", "a", 4.0, 0.4, 0.1),
        row("deconvolution", "a", 2.0, 0, 0, n=0),
    ]
    first, second, third = summarise(rows)
    assert first == {
        "method": "published",
        "frame_rate": 15.0,
        "noise": 2.0,
        "kernel": "gaussian",
        "smoothing": 0.1,
        "n_datasets": 3,
        "correlation": 0.7,
        "best_correlation": pytest.approx(0.8),
        "error": 0.3,
        "bias": 0.2,
        "absolute_bias": 0.3,
    }
    assert (second["noise"], second["n_datasets"], second["correlation"]) == (4.0, 1, 0.4)
    assert (third["method"], third["n_datasets"]) == ("deconvolution", 0)
    assert np.isnan([third["correlation"], third["absolute_bias"]]).all()
    assert summarise([]) == []


def test_what_is_unknown_of_one_dataset_hides_nothing_of_the_others() -> None:
    nan = float("nan")
    unknown = replace(row("published", "c", 2.0, 0.9, 0.3), error=nan, bias=nan)
    rows = [row("published", "a", 2.0, 0.5, -0.4), row("published", "b", 2.0, 0.7, 0.2), unknown]
    (found,) = summarise(rows)
    assert (found["n_datasets"], found["correlation"]) == (3, 0.7)
    assert found["error"] == found["absolute_bias"] == pytest.approx(0.3)
    assert found["bias"] == pytest.approx(-0.1)
    assert np.isnan(summarise([unknown])[0]["bias"])


def test_smoothings_are_summarised_apart() -> None:
    rows = [row("published", "a", 2.0, 0.5, 0.1), row("published", "a", 2.0, 0.9, 0.1)]
    rows[1] = replace(rows[1], smoothing=0.2)
    found = [(one["smoothing"], one["n_datasets"], one["correlation"]) for one in summarise(rows)]
    assert found == [(0.1, 1, 0.5), (0.2, 1, 0.9)]


def test_the_table_on_disk(tmp_path: Path) -> None:
    rows = [row("published", "a", 2.0, 0.123456, -0.4), row("published", 'b, "c"', 2.0, 0, 0, n=0)]
    write_rows(rows, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == list(Row.__dataclass_fields__)
    assert found[0]["correlation"] == "0.1235"
    assert (found[0]["n_neurons"], found[0]["bias"]) == ("3", "-0.4")
    assert (found[1]["dataset"], found[1]["correlation"]) == ('b, "c"', "nan")


def test_the_lag_of_a_method_is_looked_for(
    datasets: Sequence[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes two frames early has that lag, and the correlation of what does not."""
    activity = module._activity
    (here,) = benchmark_spikes(
        tmp_path / "a", datasets, [CONDITION], methods=["deconvolution"], held_out=["DS01"]
    )
    monkeypatch.setattr(module, "_activity", lambda *given: np.roll(activity(*given), -2))
    (early,) = benchmark_spikes(
        tmp_path / "b", datasets, [CONDITION], methods=["deconvolution"], held_out=["DS01"]
    )
    assert early.lag - here.lag == pytest.approx(2 / 15)
    assert early.best_correlation == pytest.approx(here.best_correlation, abs=0.02)
    assert early.correlation < here.correlation
