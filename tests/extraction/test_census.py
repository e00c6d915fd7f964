from __future__ import annotations

import pytest

from napari_calcium.extraction.census import Census
from napari_calcium.extraction.parameters import SourceExtractionParameters

DEFAULT = SourceExtractionParameters()


def test_the_sum_over_patches_keeps_the_strongest() -> None:
    parts = [Census(few_pixels=2, strongest=3.5), Census(few_pixels=1, strongest=11.0), Census()]
    assert Census.joined(parts) == Census(few_pixels=3, strongest=11.0)
    assert Census.joined([]) == Census()


def test_counts_add_up() -> None:
    census = Census(candidates=9, small=1).plus(small=2, merged=1)
    assert (census.candidates, census.small, census.merged) == (9, 3, 1)


@pytest.mark.parametrize(
    ("census", "n_cells", "sentence"),
    [
        (Census(candidates=1), 1, "1 cell of 1 candidate."),
        (Census(candidates=3, ragged=1), 2, "2 cells of 3 candidates: 1 above max_spread (1.6)."),
        (Census(candidates=2, large=2), 0, "No cells of 2 candidates: 2 above max_size (2.5 "
         "discs)."),
        (Census(few_pixels=4), 0, "No cells: 4 places had too few pixels for a cell_radius "
         "of 5 px."),
        (Census(candidates=3, few_pixels=1, merged=1), 2, "2 cells of 3 candidates: 1 merged; 1 "
         "more place had too few pixels for a cell_radius of 5 px."),
        (Census(), 0, "No cells: nothing in the movie changes beyond its noise."),
        (Census(strongest=2.04), 0, "No cells: no place reached the threshold of 12 sd (the "
         "strongest had 2.0 sd)."),
    ],
)  # fmt: skip
def test_the_sentence(census: Census, n_cells: int, sentence: str) -> None:
    assert census.sentence(n_cells, DEFAULT) == sentence


def test_every_reason_is_named() -> None:
    names = ("few_pixels", "merged", "small", "large", "ragged", "inside", "faded")
    census = Census(candidates=28, **dict(zip(names, range(1, 8), strict=True)))
    said = census.sentence(0, DEFAULT)
    for key in (
        "cell_radius",
        "min_size",
        "max_size",
        "max_spread",
        "duplicate_overlap",
        "sparsity",
        "merged",
    ):
        assert key in said
    assert [str(n) for n in range(1, 8) if f"{n} " not in said] == []
