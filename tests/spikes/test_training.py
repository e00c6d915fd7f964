"""Training of models; most tests with a small network and few steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_calcium.errors import InputError
from napari_calcium.keras_models import import_keras
from napari_calcium.spikes import training as module
from napari_calcium.spikes.examples import FRAMES, Library, SpikeTrainingParameters
from napari_calcium.spikes.features import N_PLAIN, channels, trace_features
from napari_calcium.spikes.forward import network_of, read_network
from napari_calcium.spikes.ground_truth import (
    Dataset,
    Recording,
    causal_kernel,
    gaussian_kernel,
    smooth,
    spikes_per_frame,
)
from napari_calcium.spikes.inference import (
    CARD,
    SpikeInferenceParameters,
    check_model,
    model_digest,
    rate_kernel,
    read_spike_model,
    spike_rate,
)
from napari_calcium.spikes.network import AFTER, BEFORE, build_conditioned
from napari_calcium.spikes.noise import add_noise
from napari_calcium.spikes.training import SETTINGS, n_rounds, train_member, train_model

pytestmark = pytest.mark.tensorflow

BATCH, STEPS = 8, 1
"""Stretches of a step, and steps of a round."""

Simulate = Callable[..., Recording]


def parameters(rounds: float = 3, **values: Any) -> SpikeTrainingParameters:
    """What members of so many rounds are trained for, by `small`."""
    frames = rounds * STEPS * BATCH * FRAMES / 1e6
    return SpikeTrainingParameters(**{"members": 1, "frames": frames, **values})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small network, of which each step is run as it is written: none is compiled."""
    import_keras(fast=True)
    import tensorflow

    build = partial(build_conditioned, channels=4, dilations=(1, 3, 9), taps=3)
    monkeypatch.setattr(module, "build_conditioned", build)
    monkeypatch.setattr(module, "SEGMENTS", STEPS * BATCH // module.PASSES)
    monkeypatch.setattr(module, "BATCH", BATCH)
    tensorflow.config.run_functions_eagerly(True)
    yield
    tensorflow.config.run_functions_eagerly(False)


class StoppedError(Exception):
    """The training is interrupted."""


def stop_at(wanted: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == wanted:
            raise StoppedError

    return progress


def weights(folder: Path, member: int = 0) -> dict[str, Any]:
    network = read_network(folder / f"member_{member}.keras")
    found = {
        f"{name}-{i}": one for name, pair in network.layers.items() for i, one in enumerate(pair)
    }
    return {**found, **{name: getattr(network, name, 0) for name in ("mean", "sd")}}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first.keys() | second.keys())


# ------------------------------------------------------------------------------- interrupted


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["conditioned", "published"])
def test_an_interrupted_training_goes_on(
    datasets: Sequence[Dataset], tmp_path: Path, kind: str
) -> None:
    """To the bit what comes of one that was not, in the first member and in the second."""
    published = {"design": "published", "frame_rate": 15.0, "noise": 6.0}
    chosen = parameters(3, members=2, **(published if kind == "published" else {}))
    assert n_rounds(chosen) == 3
    calls: list[tuple[int, int]] = []
    whole = train_model(
        tmp_path / "whole",
        datasets[:2],
        chosen,
        datasets[2:],
        progress=lambda *both: calls.append(both),
    )
    assert calls == [(0, 6), (1, 6), (2, 6), (3, 6), (3, 6), (4, 6), (5, 6), (6, 6)]
    folder = tmp_path / "parts"
    for stop in (2, 4):
        with pytest.raises(StoppedError):
            train_model(folder, datasets[:2], chosen, datasets[2:], progress=stop_at(stop))
        assert not (folder / CARD).exists()
        assert (folder / SETTINGS).exists()
        assert len(list(folder.glob("*.unfinished.npz"))) == 1
    assert (folder / "member_0.keras").exists()
    parts = train_model(folder, datasets[:2], chosen, datasets[2:])
    for member in (0, 1):
        assert same(weights(folder, member), weights(tmp_path / "whole", member))
    assert not same(weights(folder, 0), weights(folder, 1))
    assert {**parts.card, "name": "whole"} == whole.card
    assert np.shape(parts.card["validation"]) == (2, 3)
    files = ["card.json", "member_0.keras", "member_1.keras"]
    assert sorted(file.name for file in folder.iterdir()) == files


@pytest.mark.usefixtures("small")
def test_every_second_network_is_told_less(datasets: Sequence[Dataset], tmp_path: Path) -> None:
    """It does not depend on the other statistics, to the bit; the rest do."""
    model = train_model(tmp_path / "model", datasets, parameters(rounds=2, members=3))
    dff = datasets[0].recordings[0].dff
    features = trace_features(dff, datasets[0].frame_rate)
    trace, told = channels(dff, features), features.values
    plain, others = told.copy(), told.copy()
    others[N_PLAIN:] += 0.1
    plain[:N_PLAIN] += 0.1
    for number, network in enumerate(model.networks):
        same = np.array_equal(network(trace, told), network(trace, others))
        assert same == (number == 1)
        assert not np.array_equal(network(trace, told), network(trace, plain))


@pytest.mark.usefixtures("small")
def test_what_is_finished_is_not_trained_again(
    datasets: Sequence[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = parameters(1, members=2)
    with pytest.raises(StoppedError):
        train_model(tmp_path / "m", datasets[:1], chosen, progress=_after_first(tmp_path / "m"))
    before = (tmp_path / "m" / "member_0.keras").stat().st_mtime_ns
    train_model(tmp_path / "m", datasets[:1], chosen)
    assert (tmp_path / "m" / "member_0.keras").stat().st_mtime_ns == before
    contents = {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()}

    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "draw_segments", refuse)
    again = train_model(tmp_path / "m", datasets[:1], chosen)
    assert len(again.networks) == 2
    assert {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()} == contents


def _after_first(folder: Path) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if (folder / "member_0.keras").exists():
            raise StoppedError

    return progress


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("stored", [False, True])
def test_killed_between_a_network_and_what_was_said_of_it(
    datasets: Sequence[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    """Before that is stored, or after and before the state is removed: neither lost nor twice."""
    chosen = parameters(1, members=2)
    data = datasets[:1], chosen, datasets[2:]
    whole = train_model(tmp_path / "whole", *data)
    assert np.shape(whole.card["validation"]) == (2, 1)
    folder, write = tmp_path / "parts", module._write

    def killed(path: Path, values: Any) -> None:
        if "validation" in values:
            if stored:
                write(path, values)
            raise StoppedError
        write(path, values)

    with monkeypatch.context() as patched:
        patched.setattr(module, "_write", killed)
        with pytest.raises(StoppedError):
            train_model(folder, *data)
    assert (folder / "member_0.keras").is_file()
    parts = train_model(folder, *data)
    assert parts.card["validation"] == whole.card["validation"]
    files = ["card.json", "member_0.keras", "member_1.keras"]
    assert sorted(file.name for file in folder.iterdir()) == files


@pytest.mark.usefixtures("small")
def test_what_a_kill_left_of_a_finished_training_is_removed(
    datasets: Sequence[Dataset], tmp_path: Path
) -> None:
    """It would change the digest of the model, and so all rates that were inferred with it."""
    chosen, folder = parameters(1), tmp_path / "m"
    with pytest.raises(StoppedError):
        train_model(folder, datasets[:1], chosen, datasets[2:], progress=_after_first(folder))
    left = {
        name: (folder / name).read_bytes() for name in ("member_0.unfinished.npz", "training.json")
    }
    model = train_model(folder, datasets[:1], chosen, datasets[2:])
    digest = model_digest(folder)
    for name, content in left.items():
        (folder / name).write_bytes(content)
    again = train_model(folder, datasets[:1], chosen, datasets[2:])
    assert again.card == model.card
    assert model_digest(folder) == digest


# ------------------------------------------------------------------------------- folders and cards


@pytest.mark.usefixtures("small")
def test_a_folder_of_something_else_is_refused(datasets: Sequence[Dataset], tmp_path: Path) -> None:
    chosen, folder = parameters(1), tmp_path / "m"
    train_model(folder, datasets[:1], chosen)
    before = sorted(file.name for file in folder.iterdir())
    changed = replace(datasets[0], recordings=datasets[0].recordings[:2])
    later = tuple(replace(one, start=one.start + 3) for one in datasets[0].recordings)
    for others, settings, held_out in (
        (datasets[1:2], chosen, ()),
        ([changed], chosen, ()),
        ([replace(datasets[0], recordings=later)], chosen, ()),
        (datasets[:1], replace(chosen, seed=1), ()),
        (datasets[:1], replace(chosen, frames=9.0), ()),
        (datasets[:1], chosen, datasets[1:2]),
    ):
        with pytest.raises(InputError, match="a model of other datasets, settings or design; name"):
            train_model(folder, others, settings, held_out)
    with pytest.raises(StoppedError):
        train_model(tmp_path / "begun", datasets[:1], chosen, progress=stop_at(0))
    with pytest.raises(InputError, match="other datasets, settings or design"):
        train_model(tmp_path / "begun", datasets[1:2], chosen)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no model; name another folder"):
        train_model(tmp_path / "full", datasets[:1], chosen)
    assert sorted(file.name for file in folder.iterdir()) == before


@pytest.mark.usefixtures("small")
def test_a_folder_of_networks_of_another_design_is_refused(
    datasets: Sequence[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the published ones, and where the card does not say it."""
    chosen, published = parameters(1), parameters(1, design="published", frame_rate=15.0, noise=6.0)
    train_model(tmp_path / "m", datasets[:1], chosen)
    train_model(tmp_path / "p", datasets[:1], published)
    monkeypatch.setattr(module.features, "STEEP", 3.0)
    with pytest.raises(InputError, match="other datasets, settings or design"):
        train_model(tmp_path / "m", datasets[:1], chosen)
    train_model(tmp_path / "p", datasets[:1], published)
    card = json.loads((tmp_path / "m" / CARD).read_text("utf-8"))
    del card["network"]
    (tmp_path / "m" / CARD).write_text(json.dumps(card), "utf-8")
    train_model(tmp_path / "m", datasets[:1], chosen)


def test_what_is_no_folder_is_refused(datasets: Sequence[Dataset], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "m"):
        with pytest.raises(InputError, match=r"the folder .* cannot be made \(.*; name another"):
            train_model(path, datasets[:1], parameters(1))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", [CARD, SETTINGS])
@pytest.mark.parametrize("content", [b"{", b"3", b"\xff\xfe{"])
def test_a_broken_card_is_refused(
    datasets: Sequence[Dataset], tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} cannot be read \(.*; name another folder"):
        train_model(tmp_path, datasets[:1], parameters(1))
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.usefixtures("small")
def test_the_card_says_what_it_was_trained_on(datasets: Sequence[Dataset], tmp_path: Path) -> None:
    chosen = parameters(1, frame_rate=15.0, seed=3)
    model = train_model(
        tmp_path / "mine", datasets, chosen, datasets[2:], about={"licence": "as the data"}
    )
    card = json.loads((tmp_path / "mine" / CARD).read_text("utf-8"))
    assert model.card == card
    assert model.name == card["name"] == "mine"
    assert (model.frame_rates, model.noise_levels) == ((15.0, 15.0), (0.2, 12.0))
    assert (card["design"], card["margin"], card["causal"]) == ("conditioned", 16, False)
    assert [one["name"] for one in card["data"]] == ["fast", "slow"]
    first = card["data"][0]
    assert (first["indicator"], first["neurons"], first["minutes"]) == ("simulated", 3, 3.0)
    assert card["held_out"] == ["coarse"]
    assert (
        SpikeTrainingParameters.from_mapping(
            {name: card["training"][name] for name in chosen.to_mapping()}
        )
        == chosen
    )
    assert card["licence"] == "as the data"
    check_model(SpikeInferenceParameters(model_file=str(tmp_path / "mine")), 15.0)


@pytest.mark.usefixtures("small")
def test_the_card_says_the_smoothing_that_was_used(
    datasets: Sequence[Dataset], tmp_path: Path
) -> None:
    """1.5 frames at 7.5 Hz, where 50 ms are less; what was asked for is among the settings."""
    chosen = parameters(1, design="published", frame_rate=7.5, noise=8.0)
    model = train_model(tmp_path / "m", datasets[:1], chosen)
    assert model.card["smoothing"] == pytest.approx(0.2)
    assert model.card["training"]["smoothing"] == 0.05
    assert model.smoothing(7.5) == pytest.approx(0.2)


@pytest.mark.parametrize(("causal", "kernel"), [(False, gaussian_kernel), (True, causal_kernel)])
@pytest.mark.parametrize(("smoothing", "used"), [(0.05, 0.2), (0.3, 0.3)])
def test_what_a_published_network_is_to_give(
    causal: bool, kernel: Any, smoothing: float, used: float
) -> None:
    """Spikes smoothed by at least 1.5 frames: with them nothing is lost, in single precision."""
    chosen = parameters(
        1, design="published", frame_rate=7.5, noise=8.0, smoothing=smoothing, causal=causal
    )
    truth = np.zeros((1, FRAMES, 3), np.float32)
    truth[0, [100, 300], 0] = 1
    truth[..., 1] = 1
    wanted = smooth(truth[..., 0], kernel(used, 7.5)).astype(np.float32)
    found = wanted[:, BEFORE:-AFTER, None]
    lost = module._loss(chosen)
    assert float(lost(truth, found)) < 1e-12
    assert float(lost(truth, 0 * found)) > 1e-4


# ------------------------------------------------------------------------------- validation


@pytest.mark.usefixtures("small")
def test_the_best_round_is_kept(datasets: Sequence[Dataset], tmp_path: Path) -> None:
    """And the last one where nothing judges."""
    said, seen = [0.1, 0.7, 0.3], []

    def judge(network: Any) -> float:
        seen.append(network_of(network).layers)
        return said[len(seen) - 1]

    library, chosen = Library(datasets[:1]), parameters(3)
    assert train_member(library, chosen, tmp_path / "member_0.keras", 0, None, judge) == said
    assert train_member(library, chosen, tmp_path / "member_1.keras", 0, None, None) == []
    for member, best in ((0, 1), (1, 2)):
        kept = read_network(tmp_path / f"member_{member}.keras").layers
        for name, pair in kept.items():
            for one, two in zip(pair, seen[best][name], strict=True):
                np.testing.assert_array_equal(one, two)
    assert not same(weights(tmp_path, 0), weights(tmp_path, 1))


@pytest.mark.usefixtures("small")
def test_nothing_is_learned_from_what_is_held_out(
    datasets: Sequence[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[set[str]] = []
    draw = module.draw_segments

    def spied(library: Library, *others: Any) -> Any:
        used.append({one.name for one in library.datasets})
        return draw(library, *others)

    monkeypatch.setattr(module, "draw_segments", spied)
    train_model(tmp_path / "m", datasets, parameters(2), datasets[1:2])
    assert used == [{"fast", "coarse"}] * 2


@pytest.mark.usefixtures("small")
def test_what_cannot_be_trained_or_judged_is_said_before(
    datasets: Sequence[Dataset], simulated: Simulate, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no dataset is left to train on"):
        train_model(tmp_path / "m", datasets, parameters(1), datasets)
    noisy = Dataset("noisy", (simulated(0, noise=0.5),))
    silent = Dataset("silent", (simulated(0, times=[]),))
    with pytest.raises(InputError, match="no neuron of the datasets held out has spikes"):
        train_model(tmp_path / "m", datasets, parameters(1), (noisy, silent))
    assert not (tmp_path / "m").exists()


# ------------------------------------------------------------------------------- what is learned


@pytest.mark.parametrize(
    ("design", "steps", "learning_rate"), [("conditioned", 60, 4e-3), ("published", 80, 4e-3)]
)
def test_spikes_are_learned(
    simulated: Simulate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    design: str,
    steps: int,
    learning_rate: float,
) -> None:
    """Of cells that were not seen: r above 0.5 with the smoothed spikes, where a constant has 0.

    It is largest without a shift: what is learned is in the frame in which the spikes are.
    """
    build = partial(build_conditioned, channels=8, dilations=(1, 3, 9), taps=3)
    monkeypatch.setattr(module, "build_conditioned", build)
    monkeypatch.setattr(module, "SEGMENTS", 256)
    monkeypatch.setattr(module, "LEARNING_RATE", learning_rate)
    recordings = tuple(
        simulated(seed, 15.0, 200, amplitude=0.5, neuron=f"{seed}") for seed in range(6)
    )
    frames = steps * module.BATCH * FRAMES / 1e6
    chosen = SpikeTrainingParameters(
        design=design,  # type: ignore[arg-type]
        frame_rate=15.0,
        noise=2.0,
        smoothing=0.1,
        members=1,
        frames=frames,
    )
    folder = tmp_path / "m"
    train_model(folder, [Dataset("A", recordings)], chosen)
    asked = SpikeInferenceParameters(model_file=str(folder), edges="padded")
    model = read_spike_model(asked)
    found = {lag: [] for lag in range(-3, 4)}  # type: dict[int, list[float]]
    counts = []
    for seed in (20, 21, 22):
        one = simulated(seed, 15.0, 200, amplitude=0.5)
        noisy = add_noise(one.dff, 15.0, 2.0, np.random.default_rng(seed))
        assert noisy is not None
        rate = spike_rate(noisy[None], 15.0, model, asked)[0]
        truth = spikes_per_frame(one)
        smoothed = smooth(truth, rate_kernel(model, asked, 15.0))
        for lag, values in found.items():
            values.append(float(np.corrcoef(np.roll(rate, lag), smoothed)[0, 1]))
        counts.append(rate.sum() / 15 / truth.sum())
    medians = {lag: np.median(values) for lag, values in found.items()}
    assert medians[0] > 0.5
    assert max(medians, key=lambda lag: medians[lag]) == 0, medians
    assert 0.4 < np.median(counts) < 2.5
