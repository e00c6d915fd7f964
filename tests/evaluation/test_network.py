from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_calcium.errors import InputError
from napari_calcium.evaluation import network
from napari_calcium.evaluation.crops import SIDE
from napari_calcium.evaluation.examples import Examples
from napari_calcium.keras_models import import_keras, save_model

pytestmark = pytest.mark.tensorflow

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def blobs(n: int, seed: int, group: str = "seed 1") -> Examples:
    """Discs, which are cells, and thin lines, at random angles."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    cell = np.arange(n) % 2 == 0
    crops = np.zeros((n, SIDE, SIDE), np.float32)
    for i in range(n):
        angle = rng.uniform(0, np.pi)
        far = (
            np.hypot(y, x) - rng.uniform(5, 8)
            if cell[i]
            else np.abs(y * np.cos(angle) + x * np.sin(angle)) - 1
        )
        crops[i] = np.clip(0.5 - far, 0, 1) * rng.uniform(0.5, 1, (SIDE, SIDE))
        crops[i] /= np.linalg.norm(crops[i])
    return Examples(crops, cell, [group] * n, np.where(cell, "soma", "dendrite"))


@pytest.fixture(scope="module")
def trained() -> Any:
    return network.train(blobs(200, 0), blobs(60, 1, "seed 2"), epochs=2, batches=8)


def test_it_learns_what_can_be_learnt(trained: Any) -> None:
    test = blobs(100, 2, "seed 3")
    probability = network.ask(trained, test.crops)
    assert network.roc_auc(probability, test.cell) > 0.98
    assert np.mean((probability > 0.5) == test.cell) > 0.95


def test_it_is_small(trained: Any, tmp_path: Path) -> None:
    save_model(trained, tmp_path / "model.keras")
    assert 50_000 < trained.count_params() < 300_000
    assert (tmp_path / "model.keras").stat().st_size < 2e6
    assert list(tmp_path.iterdir()) == [tmp_path / "model.keras"]


def test_the_same_training_gives_the_same_file_and_another_seed_another(tmp_path: Path) -> None:
    training, validation, told = blobs(40, 0), blobs(20, 1), []
    for name, seed in (("first", 5), ("second", 5), ("third", 6)):
        model = network.train(
            training,
            validation,
            seed=seed,
            epochs=1,
            batches=1,
            progress=lambda *at: told.append(at),
        )
        save_model(model, tmp_path / f"{name}.keras")
    first, second, third = (
        (tmp_path / f"{name}.keras").read_bytes() for name in ("first", "second", "third")
    )
    assert first == second
    assert first != third
    assert told == [(0, 1), (1, 1)] * 3


def test_the_file_holds_no_date_and_no_place_in_memory(trained: Any, tmp_path: Path) -> None:
    save_model(trained, tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert b"date" not in file.read("metadata.json")
        config = file.read("config.json").decode()
    assert "optimizer" not in config
    numbers = {int(number) for number in re.findall(r'"shared_object_id": (\d+)', config)}
    assert numbers == set(range(len(numbers)))  # and no places in memory, another in each process


def test_a_stored_model_gives_the_same_probabilities(trained: Any, tmp_path: Path) -> None:
    save_model(trained, tmp_path / "model.keras")
    keras = import_keras()
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    crops = blobs(30, 7).crops
    np.testing.assert_array_equal(network.ask(again, crops), network.ask(trained, crops))


def test_the_answer_does_not_depend_on_what_else_is_asked(trained: Any) -> None:
    """To the bit: a batch always has the same size, and its rows do not know each other."""
    crops = blobs(network.BATCH + 9, 8).crops
    every = network.ask(trained, crops)
    order = np.random.default_rng(0).permutation(len(crops))
    np.testing.assert_array_equal(network.ask(trained, crops[order]), every[order])
    np.testing.assert_array_equal(network.ask(trained, crops[5:6]), every[5:6])
    assert network.ask(trained, crops[:0]).shape == (0,)


def test_training_needs_both_classes() -> None:
    both = blobs(10, 0)
    with pytest.raises(InputError, match="of 5 examples for validation, 5 are cells"):
        network.train(both, both[both.cell], epochs=1, batches=1)


def test_calibration_undoes_a_wrong_scale(trained: Any) -> None:
    """Odds made 3 times too sure and shifted are put right, to the digits of a probability."""
    examples = blobs(200, 4)
    flipped = np.random.default_rng(0).random(len(examples)) < 0.2  # so that nothing is sure
    noisy = Examples(examples.crops, examples.cell ^ flipped, examples.group, examples.kind)
    model = network.build_network()
    model.set_weights(trained.get_weights())
    network.calibrate(model, noisy)
    before = network.cross_entropy(network.ask(model, noisy.crops), noisy)
    layer = model.get_layer("logit")
    kernel, bias = layer.get_weights()
    layer.set_weights([3 * kernel, 3 * bias + 1])
    assert network.cross_entropy(network.ask(model, noisy.crops), noisy) > before + 0.05
    factor, summand = network.calibrate(model, noisy)
    assert (factor, summand) == pytest.approx((1 / 3, -1 / 3), abs=0.03)
    after = network.cross_entropy(network.ask(model, noisy.crops), noisy)
    assert after == pytest.approx(before, abs=1e-3)


def test_roc_auc_counts_pairs() -> None:
    """Against counting all pairs of a cell and another, ties half."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        score, cell = rng.integers(0, 6, 25) / 5, rng.random(25) < 0.4
        above = np.sign(score[cell][:, None] - score[~cell][None])
        expected = (above + 1).mean() / 2
        assert network.roc_auc(score, cell) == pytest.approx(expected)
    assert np.isnan(network.roc_auc(np.ones(3), np.ones(3, bool)))


def test_precision_and_recall_are_counted() -> None:
    rng = np.random.default_rng(1)
    probability, cell = rng.random(200), rng.random(200) < 0.3
    found = network.precision_recall(probability, cell, 0.6)
    right = sum(p >= 0.6 and c for p, c in zip(probability, cell, strict=True))
    precision, recall = right / np.sum(probability >= 0.6), right / cell.sum()
    expected = {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "false_positives": np.mean(probability[~cell] >= 0.6),
    }
    assert found == pytest.approx(expected)
    none = network.precision_recall(np.zeros(2), np.zeros(2, bool), 0.5)
    assert all(np.isnan(none[name]) for name in ("precision", "recall", "f1"))


def test_reliability_of_probabilities_that_are_true_and_of_some_that_are_not() -> None:
    rng = np.random.default_rng(2)
    probability = rng.random(100_000)
    cell = rng.random(100_000) < probability
    weights = np.ones(100_000)
    table = network.reliability(probability, cell, weights)
    np.testing.assert_allclose(table[:, 0], 0.1, atol=0.01)
    np.testing.assert_allclose(table[:, 1], np.arange(0.05, 1, 0.1), atol=0.01)
    np.testing.assert_allclose(table[:, 2], table[:, 1], atol=0.02)
    assert network.calibration_error(table) < 0.01
    sure = network.reliability((probability > 0.5).astype(float), cell, weights)
    assert network.calibration_error(sure) == pytest.approx(0.25, abs=0.01)
    assert np.isnan(sure[1:9, 1:]).all()
    halved = network.reliability(probability, cell, np.where(cell, 1.0, 0.5))
    odds = table[:, 2] / (1 - table[:, 2])
    np.testing.assert_allclose(halved[:, 2], 2 * odds / (1 + 2 * odds), atol=1e-9)


def test_classes_and_domains_weigh_equally() -> None:
    parts = [blobs(20, 0), blobs(6, 1, "recording 1"), blobs(40, 2, "seed 2")]
    crops, cell, group, kind = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("crops", "cell", "group", "kind")
    )
    examples = Examples(crops, cell, group, kind)[1:]
    weights = network.balanced_weights(examples)
    for domain in ("real", "simulated"):
        for cells in (True, False):
            chosen = (network.domains(examples) == domain) & (examples.cell == cells)
            assert weights[chosen].sum() == pytest.approx(0.25)


def test_batches_hold_as_much_of_each(trained: Any) -> None:
    examples = blobs(100, 0)
    few = examples[np.r_[0:100:2, 1:9:2]]  # 50 cells, 4 others
    (crops, cell), *_ = network._batches(few, 1, np.random.default_rng(0))
    assert crops.shape == (network.BATCH, SIDE, SIDE, 1)
    assert cell.sum() == network.BATCH / 2


def test_moving_keeps_what_is_in_the_crop() -> None:
    crop = blobs(1, 0).crops[0]
    rng = np.random.default_rng(0)
    moved = [network._moved(crop, rng) for _ in range(20)]
    for image in moved:
        assert image.shape == crop.shape
        np.testing.assert_allclose(np.sort(image.ravel()), np.sort(crop.ravel()))
    assert len({image.tobytes() for image in moved}) > 15


def test_a_report_is_of_what_it_says() -> None:
    examples = blobs(40, 0)
    probability = np.where(examples.cell, 0.8, 0.3)
    probability[[0, 1]] = 0.3, 0.95
    found = network.report(probability, examples)
    assert (found["n_cells"], found["n_others"]) == (20, 20)
    assert found["roc_auc"] == network.roc_auc(probability, examples.cell)
    assert found["thresholds"]["0.9"]["false_positives"] == 1 / 20
    assert found["kinds"]["soma"]["mean_of_cells"] == pytest.approx((19 * 0.8 + 0.3) / 20)
    assert found["kinds"]["dendrite"]["accepted_of_others"] == 1 / 20
    assert "roc_auc" not in found["kinds"]["soma"]
    by_hand = (20 * abs(0.3 - 1 / 20) + 19 * abs(0.8 - 1) + abs(0.95 - 0)) / 40
    assert found["calibration_error"] == pytest.approx(by_hand)


def test_tensorflow_that_cannot_be_imported_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    with pytest.raises(InputError, match=r"TensorFlow cannot be imported .*pip install"):
        import_keras()
