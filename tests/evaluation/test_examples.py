from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from napari_calcium.errors import InputError
from napari_calcium.evaluation.crops import RADIUS, SIDE
from napari_calcium.evaluation.examples import (
    MASK_RADIUS,
    Examples,
    in_groups,
    joined,
    mask_examples,
)

MASKS = Path(__file__).parents[3] / "shared" / "data" / "footprint_labels" / "masks.npz"


def examples(groups: list[str]) -> Examples:
    crops = np.arange(len(groups), dtype=np.float32)[:, None, None] * np.ones((SIDE, SIDE))
    return Examples(crops, np.arange(len(groups)) % 2 == 0, groups, ["soma"] * len(groups))


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Discs of the masks' radius, lines, and one empty mask, in a field that is not square."""
    y, x = np.mgrid[:47, :53]
    mask = np.zeros((5, 47, 53), bool)
    mask[0] = mask[3] = np.hypot(y - 23, x - 26) < MASK_RADIUS
    mask[1, 23, 15:40] = mask[4, 10:38, 26] = True
    path = tmp_path / "masks.npz"
    np.savez(
        path,
        mask=mask,
        neuron=np.int8([1, 0, 0, 1, 0]),
        recording=["a", "a", "a", "b", "b"],
        source=["annotator", "suite2p", "suite2p", "caiman", "caiman"],
    )
    return path


def test_parts_are_checked() -> None:
    crops = np.zeros((2, SIDE, SIDE))
    with pytest.raises(ValueError, match="2 crops but group"):
        Examples(crops, [True, False], ["a"], ["soma", "noise"])
    with pytest.raises(ValueError, match="they are"):
        Examples(crops[:, :-1], [True, False], ["a", "b"], ["soma", "noise"])


def test_joined_and_chosen() -> None:
    both = joined(examples(["a", "b"]), examples(["a", "a", "c"]))
    assert both.group.tolist() == ["a", "b", "a", "a", "c"]
    chosen = in_groups(both, {"a", "x"})
    assert chosen.crops[:, 0, 0].tolist() == [0, 0, 1]
    assert chosen.cell.tolist() == [True, True, False]
    assert len(in_groups(both, ())) == 0
    assert len(both[both.cell]) == 3


def test_masks_become_weighted_footprints(masks: Path) -> None:
    found = mask_examples(masks, variants=6)
    assert len(found) == 24  # the empty mask is left out
    assert found.group.tolist() == ["recording a"] * 12 + ["recording b"] * 12
    assert found.kind.tolist() == ["annotator"] * 6 + ["suite2p"] * 6 + ["caiman"] * 12
    assert found.cell.tolist() == [True] * 6 + [False] * 6 + [True] * 6 + [False] * 6
    np.testing.assert_allclose(np.linalg.norm(found.crops, axis=(1, 2)), 1, rtol=1e-6)
    levels = [len(np.unique(crop.round(3))) for crop in found.crops[:6]]
    assert min(levels) > 5  # nowhere a mask any more
    assert not np.allclose(found.crops[0], found.crops[1], atol=0.01)


def test_without_jitter_a_mask_keeps_its_size(masks: Path) -> None:
    """What is above a seventh of the maximum is the disc and its blurred edge, to a third of it."""
    area = []
    for jitter in (0.0, 0.3):
        found = mask_examples(masks, variants=40, jitter=jitter)[:40]
        area.append((found.crops > 0.15 * found.crops.max(axis=(1, 2), keepdims=True)).sum((1, 2)))
    still, moved = (values / (np.pi * RADIUS**2) for values in area)
    np.testing.assert_allclose(still, 1.1, atol=0.35)
    assert np.std(np.log(moved)) > 2 * np.std(np.log(still))


def test_an_example_depends_on_its_mask_variant_and_seed_only(masks: Path) -> None:
    few, many = mask_examples(masks, variants=1), mask_examples(masks, variants=3)
    np.testing.assert_array_equal(few.crops, many.crops[::3])
    np.testing.assert_array_equal(few.crops, mask_examples(masks, variants=1).crops)
    assert not np.array_equal(few.crops, mask_examples(masks, variants=1, seed=1).crops)


def test_what_are_no_masks_is_said(tmp_path: Path, masks: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        mask_examples(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no masks")
    with pytest.raises(InputError, match="holds no masks"):
        mask_examples(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", mask=np.zeros((2, 5, 5)))
    with pytest.raises(InputError, match="neuron"):
        mask_examples(tmp_path / "other.npz")
    with np.load(masks) as file:
        np.savez(tmp_path / "short.npz", **{**file, "neuron": file["neuron"][:2]})
    with pytest.raises(InputError, match=r"\(2,\) labels"):
        mask_examples(tmp_path / "short.npz")


@pytest.mark.skipif(not MASKS.exists(), reason="the labelled footprints are not here")
def test_the_masks_radius_is_that_of_the_annotators() -> None:
    with np.load(MASKS) as file:
        area = file["mask"][file["source"] == "annotator"].sum(axis=(1, 2))
    assert np.sqrt(np.median(area) / np.pi) == pytest.approx(MASK_RADIUS, abs=0.05)
