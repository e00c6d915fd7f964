from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from napari_calcium.errors import InputError
from napari_calcium.evaluation.classifier import cnn_probability
from napari_calcium.evaluation.crops import RADIUS, SIDE
from napari_calcium.evaluation.examples import Examples, joined
from napari_calcium.pipeline import classifier_training
from napari_calcium.pipeline.classifier_training import (
    PARTS,
    plot_reliability,
    report_text,
    train_classifier,
)
from napari_calcium.pipeline.run import Progress

pytestmark = pytest.mark.tensorflow

RECORDINGS = ("a", "b", "c", "d")


def drawn(seed: int) -> Examples:
    """Four discs and four lines, in place of what extraction finds in a simulated movie."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    discs = [np.hypot(y, x) < radius for radius in rng.uniform(5, 9, 4)]
    lines = [np.abs(y * np.cos(a) + x * np.sin(a)) < 1 for a in rng.uniform(0, np.pi, 4)]
    crops = np.stack(discs + lines) * rng.uniform(0.5, 1, (8, SIDE, SIDE))
    crops /= np.linalg.norm(crops, axis=(1, 2), keepdims=True)
    kinds = ["soma"] * 4 + ["dendrite"] * 4
    return Examples(crops, np.arange(8) < 4, [f"seed {seed}"] * 8, kinds)


@pytest.fixture(scope="module")
def asked() -> Iterator[list[int]]:
    """Seeds that were to be simulated, of which drawings are made."""
    seeds: list[int] = []

    def simulated(some: list[int], **options: Any) -> Examples:
        seeds.extend(some)
        if options["progress"]:
            options["progress"](Progress("classifier_examples", len(some), len(some)))
        return joined(*(drawn(seed) for seed in some))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier_training, "simulated_examples", simulated)
        yield seeds


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    y, x = np.mgrid[:47, :53]
    both = np.stack([np.hypot(y - 23, x - 26) < 7, np.abs(y - x + 3) < 2])
    path = tmp_path_factory.mktemp("masks") / "masks.npz"
    np.savez(
        path,
        mask=np.tile(both, (8, 1, 1)),
        neuron=np.tile([1, 0], 8),
        recording=np.repeat(RECORDINGS, 4),
        source=np.tile(["annotator", "suite2p", "caiman", "caiman"], 4),
    )
    return path


def trained(output: Path, masks: Path | None = None, **options: Any) -> dict[str, Any]:
    options = {"n_movies": 3, "epochs": 1, "batches": 1, **options}
    return train_classifier(output, masks, held_out=("c", "d"), validation=("b",), **options)


@dataclass
class Training:
    """What one training left."""

    output: Path
    card: dict[str, Any]
    told: list[Progress]
    seeds: list[int]


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, masks: Path, asked: list[int]) -> Training:
    output, told = tmp_path_factory.mktemp("once") / "first.keras", []
    asked.clear()
    card = trained(output, masks, progress=told.append)
    return Training(output, card, told, list(asked))


def test_the_same_arguments_give_the_same_files(once: Training, masks: Path) -> None:
    trained(once.output.with_name("second.keras"), masks)
    for suffix in (".keras", ".json"):
        files = (once.output.with_name(name + suffix) for name in ("first", "second"))
        first, second = (file.read_bytes() for file in files)
        assert first == second
    text = once.output.with_suffix(".json").read_text("utf-8")
    assert json.loads(text) == once.card
    assert str(once.output.parent) not in text
    assert len(list(once.output.parent.iterdir())) == 4


def test_progress_is_told(once: Training) -> None:
    assert [(at.stage, at.done, at.total) for at in once.told] == [
        ("classifier_examples", 5, 5),
        ("classifier_training", 0, 1),
        ("classifier_training", 1, 1),
    ]


def test_no_recording_is_in_two_parts(once: Training) -> None:
    data = once.card["data"]
    groups = {part: set(data[part]["groups"]) for part in PARTS}
    assert groups["training"] == {"seed 0", "seed 1", "seed 2", "recording a"}
    assert groups["validation"] == {"seed 500", "recording b"}
    assert groups["test"] == {"seed 1000", "recording c", "recording d"}
    assert once.seeds == [0, 1, 2, 500, 1000]
    assert data["test"]["groups"]["recording c"] == [2, 2]
    assert data["training"]["groups"]["recording a"] == [16, 16]  # eight variants of each


def test_the_figures_are_those_of_the_stored_model(once: Training) -> None:
    """Asked as evaluation asks it, of the drawings in a field larger than their crop."""
    figures = once.card["figures"]
    assert set(figures) == {"simulated", "real", "real_found"}
    counts = {name: (part["n_cells"], part["n_others"]) for name, part in figures.items()}
    assert counts == {"simulated": (4, 4), "real": (4, 4), "real_found": (2, 4)}
    fields = np.pad(drawn(1000).crops, ((0, 0), (3, 3), (5, 5)))
    columns = sp.csc_array(fields.reshape(8, -1).T)
    found = cnn_probability(columns, fields.shape[1:], RADIUS, str(once.output))
    kinds = figures["simulated"]["kinds"]
    # to 0.05: the drawings are cut out again, around their weighted centroid
    assert kinds["soma"]["mean_of_cells"] == pytest.approx(found[:4].mean(), abs=0.05)
    assert kinds["dendrite"]["mean_of_others"] == pytest.approx(found[4:].mean(), abs=0.05)


@pytest.mark.usefixtures("asked")
def test_simulated_examples_are_enough(tmp_path: Path) -> None:
    card = trained(tmp_path / "model.keras")
    assert set(card["figures"]) == {"simulated"}
    assert card["masks"] is None


def test_the_report_is_said_and_drawn(once: Training, tmp_path: Path) -> None:
    text = report_text(once.card)
    assert "real recordings, masks found by programs: 2 cells, 4 others, ROC-AUC" in text
    assert text.count("from 0.9: precision") == 3
    plot_reliability(once.card, tmp_path / "first.png")
    plot_reliability(once.card, tmp_path / "second.png")
    assert (tmp_path / "first.png").stat().st_size > 10_000
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_what_cannot_be_used_is_said_before_a_movie_is_made(
    tmp_path: Path, masks: Path, asked: list[int]
) -> None:
    asked.clear()
    for output, options, said in (
        ("model.h5", {}, "NAME.keras"),
        ("none/model.keras", {}, "does not exist"),
        ("model.keras", {"n_movies": 0}, "n_movies is 0"),
        ("model.keras", {"n_movies": 501}, "n_movies is 501"),
        ("model.keras", {"epochs": 0}, "epochs is 0"),
    ):
        with pytest.raises(InputError, match=said):
            trained(tmp_path / output, masks, **options)
    with pytest.raises(InputError, match="has no recording e, which is for test; it has a, b, c"):
        train_classifier(tmp_path / "model.keras", masks, held_out=["e"], validation=["b"])
    with pytest.raises(InputError, match="recording b is for validation and for test"):
        train_classifier(tmp_path / "model.keras", masks, held_out=["b"], validation=["b"])
    assert asked == []
    assert list(tmp_path.iterdir()) == []
