from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from napari_calcium.errors import InputError
from napari_calcium.simulation import SimulationParameters, simulate
from napari_calcium.truth import CSC_PARTS, Truth, load_truth, save_truth, score_cells

SMALL = SimulationParameters(height=37, width=53, n_frames=150, n_cells=6, n_out_of_focus=3)


def _equal(first: Truth, second: Truth) -> bool:
    parts = [(getattr(first.footprints, n), getattr(second.footprints, n)) for n in CSC_PARTS]
    names = ("traces", "spikes", "template", "shifts", "shifts_piecewise", "grid_y", "grid_x")
    parts += [(getattr(first, n), getattr(second, n)) for n in names]
    same = all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in parts)
    return same and first.shape == second.shape and first.frame_rate == second.frame_rate


class TestFile:
    def test_saved_and_loaded(self, tmp_path):
        truth = simulate(SMALL).truth
        path = tmp_path / "truth of é"
        save_truth(truth, path)
        assert _equal(load_truth(path), truth)
        save_truth(truth, tmp_path / "again.npz")
        assert path.read_bytes() == (tmp_path / "again.npz").read_bytes()

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"text"])
    def test_another_file_is_refused(self, tmp_path, content):
        (tmp_path / "other.npz").write_bytes(content)
        with pytest.raises(InputError, match="not the truth of a simulation"):
            load_truth(tmp_path / "other.npz")

    def test_another_npz_and_no_file_are_refused(self, tmp_path):
        np.savez(tmp_path / "other.npz", traces=np.zeros(3))
        with pytest.raises(InputError, match="not the truth of a simulation"):
            load_truth(tmp_path / "other.npz")
        with pytest.raises(InputError, match="no such file"):
            load_truth(tmp_path / "none.npz")


def _hand_made(spikes=(5, 5, 0)):
    """Three cells of four pixels side by side in a field of 3 x 7, with sine traces."""
    footprints = np.zeros((21, 3), np.float32)
    for cell, first in enumerate((0, 7, 14)):
        footprints[first : first + 4, cell] = 0.5
    time = np.arange(50, dtype=np.float32)
    return Truth(
        footprints=sp.csc_array(footprints),
        shape=(3, 7),
        traces=np.stack([np.sin(time), np.cos(time), time]),
        spikes=np.array([[n] + [0] * 49 for n in spikes], np.int32),
        template=np.zeros((3, 7), np.float32),
        shifts=np.zeros((50, 2), np.float32),
        shifts_piecewise=np.zeros((50, 2, 2, 2), np.float32),
        grid_y=np.float32([0, 2]),
        grid_x=np.float32([0, 6]),
        frame_rate=30.0,
    )


def _score(truth, cells, traces=None, **options):
    """Score copies of true cells."""
    found = truth.traces[cells] if traces is None else traces
    return score_cells(sp.csc_array(truth.footprints.toarray()[:, cells]), found, truth, **options)


class TestScoreCells:
    def test_perfect_in_another_order_and_scale(self):
        truth = _hand_made((5, 5, 5))
        footprints = sp.csc_array(truth.footprints[:, [2, 0, 1]] * 7)
        score = score_cells(footprints, truth.traces[[2, 0, 1]] * 3 + 1, truth)
        assert (score.f1, score.precision, score.recall) == (1, 1, 1)
        assert score.trace_correlation == pytest.approx(1)
        assert score.matches.tolist() == [[0, 2], [1, 0], [2, 1]]

    def test_duplicate_is_false(self):
        score = _score(_hand_made(), [0, 0, 1])
        assert (score.precision, score.recall) == (pytest.approx(2 / 3), 1)
        assert score.f1 == pytest.approx(0.8)

    def test_missed(self):
        score = _score(_hand_made(), [1])
        assert (score.precision, score.recall, score.f1) == (1, 0.5, pytest.approx(2 / 3))
        assert score.matches.tolist() == [[0, 1]]

    def test_silent_cell_is_neither_hit_nor_false(self):
        score = _score(_hand_made(), [0, 1, 2])
        assert (score.f1, len(score.matches)) == (1, 2)
        assert _score(_hand_made(), [0, 1]).f1 == 1
        assert _score(_hand_made(), [0, 1, 2], min_spikes=6).f1 == 0

    def test_only_silent_cells_found(self):
        score = _score(_hand_made(), [2])
        assert (score.precision, score.recall, score.f1) == (0, 0, 0)

    def test_none_found(self):
        score = _score(_hand_made(), [])
        assert (score.precision, score.recall, score.f1) == (0, 0, 0)
        assert np.isnan(score.trace_correlation)
        assert score.matches.shape == (0, 2)

    def test_threshold_is_a_cosine(self):
        truth = _hand_made()
        half = np.zeros((21, 1), np.float32)
        half[:2] = 1  # two of the cell's four pixels: a cosine of sqrt(1 / 2)
        for threshold, hits in ((0.70, 1), (0.72, 0)):
            score = score_cells(sp.csc_array(half), truth.traces[:1], truth, threshold)
            assert len(score.matches) == hits

    def test_flat_trace_and_empty_footprint(self):
        truth = _hand_made()
        flat = _score(truth, [0], traces=np.ones((1, 50), np.float32))
        assert (flat.recall, flat.trace_correlation) == (0.5, 0)
        empty = score_cells(sp.csc_array((21, 1), dtype=np.float32), truth.traces[:1], truth)
        assert empty.precision == 0

    def test_another_field_or_recording_is_refused(self):
        truth = _hand_made()
        with pytest.raises(InputError, match="20 pixels"):
            score_cells(sp.csc_array((20, 0)), truth.traces[:0], truth)
        with pytest.raises(InputError, match="truth of the same movie"):
            score_cells(truth.footprints, truth.traces[:, :9], truth)
