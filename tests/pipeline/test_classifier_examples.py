from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from napari_calcium.errors import InputError
from napari_calcium.evaluation.crops import SIDE
from napari_calcium.extraction.parameters import SourceExtractionParameters
from napari_calcium.pipeline import classifier_examples
from napari_calcium.pipeline.classifier_examples import (
    footprint_kinds,
    recording_examples,
    simulated_examples,
)
from napari_calcium.simulation import SimulationParameters
from napari_calcium.truth import Truth

HEIGHT, WIDTH = FIELD = (37, 53)
Y, X = np.mgrid[:HEIGHT, :WIDTH].astype(float)
RADIUS = 4.5


def _disc(y, x, radius=RADIUS):
    return (np.hypot(Y - y, X - x) < radius).astype(np.float32)


def _ring(y, x):
    return _disc(y, x) - 0.7 * _disc(y, x, 0.5 * RADIUS)


def _columns(*images):
    columns = sp.csc_array(np.stack([image.ravel() for image in images], axis=1))
    return sp.csc_array(columns, dtype=np.float32)


LEFT, RIGHT, ALONE = _ring(20, 12), _ring(21, 21), _ring(10, 42)
"""The first two touch."""
LINE, SPOT = ((np.abs(Y - 4) < 1.5) & (X > 5) & (X < 30)).astype(float), _disc(32, 40, 1.5)
HAZE = np.exp(-((Y - 30) ** 2 + (X - 24) ** 2) / 50)
VESSEL = (np.abs(X - 33) < 2).astype(float)
SCENERY = {
    "dendrite": _columns(LINE),
    "bouton": _columns(SPOT),
    "out of focus": _columns(HAZE),
    "vessel": _columns(VESSEL),
}


def _truth(*images):
    cells = classifier_examples.unit(_columns(*images)) if images else sp.csc_array((37 * 53, 0))
    time, grid = 3, np.zeros(2, np.float32)
    return Truth(
        footprints=cells,
        shape=FIELD,
        traces=np.zeros((len(images), time), np.float32),
        spikes=np.zeros((len(images), time), np.int32),
        template=np.zeros(FIELD, np.float32),
        shifts=np.zeros((time, 2), np.float32),
        shifts_piecewise=np.zeros((time, 2, 2, 2), np.float32),
        grid_y=grid,
        grid_x=grid,
        frame_rate=10.0,
    )


TRUTH = _truth(LEFT, RIGHT, ALONE)


def _kind(image, truth=TRUTH):
    return footprint_kinds(_columns(image), truth, SCENERY).tolist()[0]


class TestKinds:
    @pytest.mark.parametrize("cell", [LEFT, RIGHT, ALONE])
    def test_a_cell_is_one_whatever_its_norm(self, cell):
        assert _kind(cell) == _kind(700 * cell) == "soma"

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_a_noisy_cell_is_one(self, seed):
        noise = np.random.default_rng(seed).uniform(0.3, 1.7, FIELD)
        assert _kind(ALONE * noise) == "soma"

    @pytest.mark.parametrize("angle", np.linspace(0, 2 * np.pi, 7))
    @pytest.mark.parametrize("cell", [(LEFT, 20, 12), (ALONE, 10, 42)])
    def test_a_half_is_none(self, angle, cell):
        image, y, x = cell
        side = np.sin(angle) * (Y - y) + np.cos(angle) * (X - x) > 0
        assert _kind(image * side) == "half"

    @pytest.mark.parametrize("weight", [0.7, 1.0, 1.4])
    def test_two_cells_are_none(self, weight):
        cosine = max(1, weight) / math.hypot(1, weight)
        kind = _kind(LEFT + weight * RIGHT)
        assert kind == ("pair" if cosine < 0.8 else "")

    def test_a_cell_with_a_trace_of_its_neighbour_is_one(self):
        assert _kind(LEFT + 0.2 * RIGHT) == "soma"

    def test_a_cell_with_a_wide_halo_is_in_between(self):
        assert _kind(_disc(10, 42, 1.45 * RADIUS)) == ""

    def test_one_side_of_a_cell_that_is_brightest_there_is_in_between(self):
        uneven = ALONE * np.clip(1 + 0.12 * (X - 42), 0, None)
        side = uneven * (X > 42)
        assert _kind(side, _truth(uneven)) == ""  # its cosine is above 0.8

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_a_cell_with_gaps_is_in_between(self, seed):
        gaps = np.random.default_rng(seed).random(FIELD) < 0.5
        assert _kind(ALONE * gaps) == ""

    def test_a_small_part_is_none(self):
        assert _kind(ALONE * _disc(10, 38, 2.5)) == "half"
        assert _kind(_disc(10, 42, 2.2)) == "half"

    @pytest.mark.parametrize(
        ("image", "kind"),
        [
            (LINE, "dendrite"),
            (LINE * (X < 18), "dendrite"),
            (SPOT, "bouton"),
            (_disc(30, 24), "out of focus"),
            (VESSEL * (Y > 10) * (Y < 22) * (X > 33), "vessel"),
            (_disc(30, 7), "neuropil"),
        ],
    )
    def test_what_is_no_cell(self, image, kind):
        assert _kind(image) == kind

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_noise_is_none(self, seed):
        image = np.random.default_rng(seed).random(FIELD)
        assert _kind(image * (image > 0.9)) == "neuropil"

    def test_without_cells_or_footprints(self):
        assert _kind(ALONE, _truth()) == "neuropil"
        assert footprint_kinds(sp.csc_array((37 * 53, 0)), TRUTH, SCENERY).shape == (0,)
        assert _kind(np.zeros(FIELD)) == "neuropil"

    def test_an_order_of_footprints_does_not_matter(self):
        images = [LEFT, LINE, LEFT + RIGHT, ALONE * (X > 42)]
        kinds = footprint_kinds(_columns(*images), TRUTH, SCENERY)
        assert kinds.tolist() == ["soma", "dendrite", "pair", "half"]
        assert footprint_kinds(_columns(*images[::-1]), TRUTH, SCENERY).tolist() == [*kinds[::-1]]


class TestMade:
    """Halves and pairs that are made are what `footprint_kinds` says of them."""

    CELLS = _columns(LEFT, RIGHT, ALONE)

    @pytest.mark.parametrize("seed", range(5))
    def test_halves(self, seed):
        random = np.random.default_rng(seed)
        for i in range(3):
            half = classifier_examples._half(self.CELLS[:, [i]], FIELD, random)
            assert footprint_kinds(half, TRUTH, SCENERY).tolist() == ["half"]

    def test_the_neighbours_are_those_that_touch(self):
        touching = classifier_examples._touching(self.CELLS, FIELD, RADIUS)
        assert touching.tolist() == [[0, 1]]

    def test_a_cell_does_not_touch_itself_found_twice(self):
        twice = _columns(ALONE, _ring(11, 42))
        assert classifier_examples._touching(twice, FIELD, RADIUS).shape == (0, 2)

    @pytest.mark.parametrize("seed", range(5))
    def test_pairs(self, seed):
        random = np.random.default_rng(seed)
        pair = classifier_examples._pair(self.CELLS[:, [0]], self.CELLS[:, [1]], random)
        match = classifier_examples._matches(classifier_examples.unit(pair), TRUTH)[0]
        assert match.second > 0.5  # 0.6 / hypot(1, 0.6)

    def test_a_few_of_each(self):
        random = np.random.default_rng(0)
        made, kinds = classifier_examples._made(self.CELLS, FIELD, RADIUS, random)
        assert kinds.tolist() == ["half", "pair"]
        assert made.shape == (37 * 53, 2)
        none, kinds = classifier_examples._made(self.CELLS[:, []], FIELD, RADIUS, random)
        assert none.shape == (37 * 53, 0)
        assert kinds.shape == (0,)


TINY = SimulationParameters(
    height=HEIGHT,
    width=WIDTH,
    n_frames=200,
    frame_rate=10.0,
    n_cells=7,
    cell_radius=4.0,
    n_out_of_focus=2,
    n_dendrites=3,
    spike_amplitude=2.0,
    photons=40.0,
    motion_rigid=0.0,
    motion_piecewise=0.0,
)
WAY = SourceExtractionParameters(
    cell_radius=4.0, threshold=6.0, min_size=0.1, max_size=6.0, max_spread=6.0, refinements=1
)


class TestExamples:
    def test_of_one_recording(self):
        examples = recording_examples(TINY, [WAY], np.random.default_rng(0), workers=1)
        assert examples.crops.shape == (len(examples), SIDE, SIDE)
        assert set(examples.group) == {"seed 0"}
        assert np.array_equal(examples.cell, examples.kind == "soma")
        assert "half" in examples.kind
        # each cell three times, whatever is none twice
        assert examples.cell.sum() % 3 == 0
        assert (~examples.cell).sum() % 2 == 0
        assert examples.cell.sum() >= 3 * 4  # of seven cells, most are found
        norms = np.sqrt((examples.crops.astype(float) ** 2).sum((1, 2)))
        np.testing.assert_allclose(norms, 1, rtol=1e-5)  # float32
        copies = examples.crops[examples.cell][:3]
        assert not np.array_equal(copies[0], copies[1])  # of another size

    def test_a_seed_depends_on_nothing_else(self, monkeypatch):
        monkeypatch.setattr(classifier_examples, "_recording", _small)
        reports = []
        both = simulated_examples([3, 4], workers=2, progress=reports.append)
        alone = simulated_examples([4], workers=1)
        part = both[both.group == "seed 4"]
        assert len(alone) > 0
        for name in ("crops", "cell", "group", "kind"):
            assert np.array_equal(getattr(alone, name), getattr(part, name))
        assert len(both) > len(part)
        assert [(each.done, each.total) for each in reports] == [(0, 2), (1, 2), (2, 2)]

    def test_recording_of_which_nothing_is_found(self):
        empty = SimulationParameters(height=37, width=53, n_frames=30, n_cells=0, photons=1.0)
        way = SourceExtractionParameters(threshold=1000.0)
        examples = recording_examples(empty, [way], np.random.default_rng(0), workers=1)
        assert examples.crops.shape == (0, SIDE, SIDE)

    def test_no_seeds_are_refused(self):
        with pytest.raises(InputError, match="seeds are none; give at least one"):
            simulated_examples([])

    def test_recordings_vary_and_are_valid(self):
        drawn = []
        for seed in range(100):
            random = np.random.default_rng(seed)
            parameters = classifier_examples._recording(seed, random)
            shape = (parameters.n_frames, parameters.height, parameters.width)
            for way in classifier_examples._ways(parameters, random):
                way.check_movie(shape)
            assert parameters.n_cells > 0
            assert 400 <= parameters.n_frames <= 800
            drawn.append(parameters)
        still = np.mean([each.motion_rigid == 0 for each in drawn])
        assert 0.3 < still < 0.7  # the spread of 100 draws of a half is 0.05
        assert max(each.motion_rigid for each in drawn) <= 0.7
        assert len({each.cell_radius for each in drawn}) == 100


def _small(seed, random):
    return replace(TINY, seed=seed)
