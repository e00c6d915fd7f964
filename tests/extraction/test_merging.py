from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from napari_calcium.extraction.merging import inside_stronger, merge_groups, merged


def rectangles(*bounds: tuple[int, int, int, int]) -> sp.csc_array:
    """Footprints of ones in a field of 37 x 53: top, bottom, left, right."""
    images = np.zeros((len(bounds), 37, 53), np.float32)
    for image, (top, bottom, left, right) in zip(images, bounds, strict=True):
        image[top:bottom, left:right] = 1
    return sp.csc_array(images.reshape(len(bounds), 37 * 53).T)


def noise(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, 500)).astype(np.float32)


def test_overlapping_and_correlated_become_one() -> None:
    """0 to 2 hang together by 1; 3 overlaps but is another; 4 is alike but elsewhere."""
    footprints = rectangles(
        (0, 9, 40, 46), (0, 9, 43, 49), (0, 9, 46, 52), (2, 11, 40, 46), (20, 29, 3, 9)
    )
    traces = noise(1) * np.array([[1], [7], [2], [0], [1]], np.float32) + 0.1 * noise(5, 1)
    traces[3] = noise(1, 2)[0]
    traces += 1000
    np.testing.assert_array_equal(merge_groups(footprints, traces, 0.8), [0, 0, 0, 1, 2])


def test_it_agrees_with_every_pair_looked_at() -> None:
    rng = np.random.default_rng(3)
    corners = rng.integers(0, (30, 45), (25, 2))
    footprints = rectangles(*[(y, y + 7, x, x + 8) for y, x in corners])
    traces = (rng.integers(0, 3, 25)[:, None] == np.arange(3)) @ noise(3) + 0.5 * noise(25, 4)
    groups = merge_groups(footprints, traces.astype(np.float32), 0.7)
    flat = footprints.toarray()
    cosine = flat.T @ flat / 56
    same = (cosine > 0.1) & (np.corrcoef(traces) > 0.7)
    reach = np.linalg.matrix_power(same.astype(float), 25) > 0
    np.testing.assert_array_equal(groups[:, None] == groups, reach)
    first_seen = list(dict.fromkeys(groups.tolist()))
    assert first_seen == sorted(first_seen)


def test_above_1_nothing_is_merged() -> None:
    twins = rectangles((5, 9, 5, 9), (5, 9, 5, 9), (5, 9, 5, 9))
    traces = np.repeat(noise(1), 3, axis=0)
    assert merge_groups(twins, traces, 0.99).tolist() == [0, 0, 0]
    assert merge_groups(twins, traces, 1.1).tolist() == [0, 1, 2]


def test_flat_traces_and_no_cells_are_not_merged() -> None:
    twins = rectangles((5, 9, 5, 9), (5, 9, 5, 9))
    assert merge_groups(twins, np.ones((2, 9), np.float32), 0.5).tolist() == [0, 1]
    none = sp.csc_array((37 * 53, 0), dtype=np.float32)
    assert merge_groups(none, np.zeros((0, 9), np.float32), 0.5).shape == (0,)
    assert merged(none, np.zeros((0, 9), np.float32), np.zeros(0, np.int64))[0].shape[1] == 0


def test_a_merged_component_is_the_best_of_rank_one() -> None:
    """Against the singular value decomposition of the sum: five iterations come to 1e-3 of it."""
    footprints = rectangles((0, 9, 3, 9), (0, 9, 6, 14), (20, 29, 40, 49))
    base = np.abs(noise(1))
    traces = np.concatenate([2 * base, 3 * base, noise(1, 5)]) + 0.05 * noise(3, 6)
    joined, rows = merged(footprints, traces, np.array([0, 0, 1]))
    assert (joined.shape, rows.shape) == ((37 * 53, 2), (2, 500))
    flat = footprints[:, [0, 1]].toarray() @ traces[:2]
    left, values, right = np.linalg.svd(flat, full_matrices=False)
    best = values[0] * np.outer(left[:, 0], right[0])
    fit = np.outer(joined.toarray()[:, 0], rows[0])
    assert np.linalg.norm(fit - best) < 1e-3 * np.linalg.norm(best)
    np.testing.assert_array_equal(joined.toarray()[:, 1], footprints.toarray()[:, 2])
    np.testing.assert_array_equal(rows[1], traces[2])


def test_what_lies_inside_a_stronger_one_is_found() -> None:
    footprints = rectangles((5, 15, 5, 15), (6, 10, 6, 16), (5, 15, 5, 15), (30, 35, 40, 50))
    energy = np.array([3.0, 2.0, 1.0, 0.5])
    assert inside_stronger(footprints, energy).tolist() == [False, True, True, False]
    assert inside_stronger(footprints, energy, 0.95).tolist() == [False, False, True, False]
    assert inside_stronger(footprints, energy * [0, 1, 1, 1]).tolist() == [True] + [False] * 3


def test_nothing_lies_inside_itself_or_an_equal() -> None:
    twins = rectangles((5, 9, 5, 9), (5, 9, 5, 9))
    assert not inside_stronger(twins, np.ones(2)).any()
    assert inside_stronger(rectangles(), np.zeros(0)).shape == (0,)
