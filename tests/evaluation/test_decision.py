from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from napari_calcium.components import Quality
from napari_calcium.evaluation.decision import (
    THRESHOLDS,
    Reason,
    counts,
    decide,
    explain,
    reason_words,
    warnings_of,
)
from napari_calcium.evaluation.evaluation import ComponentEvaluationParameters

PARAMETERS = ComponentEvaluationParameters(
    snr_lower=1.0,
    snr_upper=2.0,
    correlation_lower=0.2,
    correlation_upper=0.8,
    cnn_lower=0.1,
    cnn_upper=0.9,
    min_size=0.5,
    max_size=3.0,
    duplicate_overlap=0.6,
)


def scores(
    snr: Any, correlation: Any = 0.5, cnn: Any = np.nan, size: Any = 1.0, **others: Any
) -> Quality:
    columns = np.broadcast_arrays(*np.atleast_1d(snr, correlation, cnn, size))
    snr, correlation, cnn, size = (np.float32(column) for column in columns)
    return Quality(snr, correlation, cnn, np.zeros(len(snr), bool), size, **others)


def overlapping(snr: Any, pairs: Any, overlap: Any, cnn: Any = np.nan) -> Quality:
    return scores(snr, cnn=cnn, pairs=np.array(pairs), overlap=np.array(overlap))


def found(quality: Quality, parameters: Any = PARAMETERS) -> list[Reason]:
    decided = decide(quality, parameters)
    assert decided.accepted.tolist() == (decided.reasons == 0).tolist()
    return [Reason(int(bits)) for bits in decided.reasons]


@pytest.mark.parametrize(
    ("snr", "correlation", "cnn", "reasons"),
    [
        (2.0, 0.5, 0.5, 0),  # at the upper threshold is enough
        (1.5, 0.8, 0.5, 0),
        (1.5, 0.5, 0.9, 0),
        (9.0, 0.9, np.nan, 0),  # a classifier that was not asked says nothing
        (1.5, 0.5, 0.5, Reason.NO_SCORE),
        (1.5, 0.5, np.nan, Reason.NO_SCORE),
        (1.0, 0.9, 0.9, Reason.SNR),  # at the lower threshold fails
        (9.0, 0.2, 0.9, Reason.CORRELATION),
        (9.0, 0.9, 0.1, Reason.CNN),
        (0.0, -1.0, 0.0, Reason.SNR | Reason.CORRELATION | Reason.CNN),
        (np.inf, 0.5, np.nan, 0),
        (np.nan, np.nan, np.nan, Reason.NO_SCORE),
    ],
)
def test_any_upper_and_no_lower(snr: float, correlation: float, cnn: float, reasons: int) -> None:
    assert found(scores(snr, correlation, cnn)) == [reasons]


@pytest.mark.parametrize(
    ("size", "reasons"),
    [(0.5, 0), (0.49, Reason.SMALL), (3.0, 0), (3.01, Reason.LARGE), (np.nan, 0)],
)
def test_sizes_are_reasons_of_their_own(size: float, reasons: int) -> None:
    assert found(scores(9.0, size=size)) == [reasons]
    assert found(scores(0.5, size=size)) == [reasons | Reason.SNR]


def test_of_two_duplicates_the_one_of_the_higher_snr_stays() -> None:
    assert found(overlapping([3, 4], [[0, 1]], [0.7])) == [Reason.DUPLICATE, 0]
    assert found(overlapping([4, 3], [[0, 1]], [0.7])) == [0, Reason.DUPLICATE]
    assert found(overlapping([4, 3], [[0, 1]], [0.6])) == [0, 0]  # no more than the threshold
    assert found(overlapping([3, 3], [[0, 1]], [0.7])) == [0, Reason.DUPLICATE]  # the first of two


def test_what_the_classifier_holds_for_a_cell_stays_before_a_higher_snr() -> None:
    """Two cells found as one have the highest SNR of all, and neither may go for it."""
    pair = overlapping([3, 9, 3], [[0, 1], [1, 2]], [1, 1], cnn=[0.8, 0.3, 0.8])
    assert found(pair) == [0, Reason.DUPLICATE, 0]


def test_a_cell_is_no_duplicate_of_one_that_is_rejected() -> None:
    larger = replace(overlapping([3, 9], [[0, 1]], [0.7]), size=np.float32([1, 5]))
    assert found(larger) == [0, Reason.LARGE]
    chain = overlapping([5, 4, 3], [[0, 1], [1, 2]], [0.7, 0.7])
    assert found(chain) == [0, Reason.DUPLICATE, 0]  # the third overlaps only what is gone


def test_from_1_on_duplicates_are_kept() -> None:
    keep = replace(PARAMETERS, duplicate_overlap=1.0)
    assert found(overlapping([3, 4], [[0, 1]], [1.0]), keep) == [0, 0]


def naive(quality: Quality, p: ComponentEvaluationParameters) -> list[bool]:
    """The rule once more, cell by cell, without duplicates."""
    accepted = []
    for cell in range(quality.n_cells):
        pairs = [
            (quality.snr[cell], p.snr_lower, p.snr_upper),
            (quality.spatial_correlation[cell], p.correlation_lower, p.correlation_upper),
            (quality.cnn_probability[cell], p.cnn_lower, p.cnn_upper),
        ]
        known = [each for each in pairs if not np.isnan(each[0])]
        good = any(value >= upper for value, _, upper in known)
        bad = any(value <= lower for value, lower, _ in known)
        accepted.append(good and not bad and p.min_size <= quality.size[cell] <= p.max_size)
    return accepted


@given(st.integers(0, 2**32 - 1))
def test_like_the_rule_told_cell_by_cell(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.choice([0.0, 0.1, 0.2, 0.5, 0.8, 0.9, 1.0, 2.0, 3.5, np.nan], (3, 20))
    quality = scores(*table, size=rng.uniform(0, 4, 20))
    assert decide(quality, PARAMETERS).accepted.tolist() == naive(quality, PARAMETERS)


@given(st.integers(0, 2**32 - 1))
def test_of_the_accepted_none_overlaps_another_and_every_duplicate_has_a_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = np.triu_indices(8, 1)
    kept = rng.random(len(first)) < 0.4
    pairs = np.stack([first[kept], second[kept]], axis=1)
    quality = overlapping(rng.uniform(0.5, 5, 8), pairs, rng.uniform(0.2, 1, len(pairs)))
    decided = decide(quality, PARAMETERS)
    close = pairs[decided.overlap > PARAMETERS.duplicate_overlap]
    assert not (decided.accepted[close].all(axis=1)).any()
    for cell in np.flatnonzero(decided.reasons & Reason.DUPLICATE):
        others = close[(close == cell).any(axis=1)].sum(axis=1) - cell
        assert any(decided.accepted[o] and quality.snr[o] >= quality.snr[cell] for o in others)


def test_the_order_of_the_cells_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    pairs: NDArray[np.int64] = np.array([[0, 1], [1, 2], [3, 4], [0, 5]])
    quality = overlapping(rng.permutation(6) + 2.0, pairs, np.full(4, 0.9))
    order = rng.permutation(6)
    place = np.argsort(order)
    turned = overlapping(quality.snr[order], place[pairs], np.full(4, 0.9))
    expected = decide(quality, PARAMETERS).reasons[order]
    np.testing.assert_array_equal(decide(turned, PARAMETERS).reasons, expected)


def test_scores_and_pairs_stay_as_they_are() -> None:
    quality = overlapping([3, 4], [[0, 1]], [0.7])
    decided = decide(decide(quality, PARAMETERS), ComponentEvaluationParameters(snr_upper=3.5))
    for name in ("snr", "spatial_correlation", "cnn_probability", "size", "pairs", "overlap"):
        np.testing.assert_array_equal(getattr(decided, name), getattr(quality, name))


@pytest.mark.parametrize(
    ("quality", "said"),
    [
        (scores(3.1, 0.85, 0.95), "accepted: trace SNR 3.1 reaches 2, spatial correlation 0.85 "
         "reaches 0.8, classifier 0.95 reaches 0.9"),
        (scores(0.41), "rejected: trace SNR 0.41 is not above 1"),
        (scores(1.5, 0.5), "rejected: no score reaches its upper threshold (trace SNR 1.5 of 2, "
         "spatial correlation 0.5 of 0.8)"),
        (scores(9, cnn=0.02), "rejected: classifier 0.02 is not above 0.1"),
        (scores(9, size=0.1), "rejected: size 0.1 discs, below 0.5"),
        (scores(9, 0.1, size=5), "rejected: spatial correlation 0.1 is not above 0.2; "
         "size 5 discs, above 3"),
    ],
)  # fmt: skip
def test_each_cell_says_why(quality: Quality, said: str) -> None:
    assert explain(decide(quality, PARAMETERS), PARAMETERS, 0) == said


def test_a_duplicate_names_the_better_one() -> None:
    decided = decide(overlapping([3, 4], [[0, 1]], [0.75]), PARAMETERS)
    said = "rejected: 75 % of the smaller lies in the other: duplicate of "
    assert explain(decided, PARAMETERS, 0) == said + "a better cell"
    assert explain(decided, PARAMETERS, 0, [7, 12]) == said + "cell 12, which is better"


@given(st.integers(0, 2**32 - 1))
def test_every_rejected_cell_has_words(seed: int) -> None:
    rng = np.random.default_rng(seed)
    quality = scores(*rng.uniform(0, 4, (3, 9)), size=rng.uniform(0, 5, 9))
    decided = decide(quality, PARAMETERS)
    for cell, accepted in enumerate(decided.accepted):
        assert bool(reason_words(decided.reasons[cell])) != accepted
        verdict = "accepted: " if accepted else "rejected: "
        assert explain(decided, PARAMETERS, cell).startswith(verdict)
        assert len(explain(decided, PARAMETERS, cell)) > len(verdict)


def test_counts_of_the_reasons() -> None:
    decided = decide(scores([9, 0.5, 0.5, 1.5], size=[1, 1, 0.1, 1]), PARAMETERS)
    assert counts(decided) == {Reason.NO_SCORE: 1, Reason.SNR: 2, Reason.SMALL: 1}


def test_a_classifier_that_says_the_same_of_everything_is_told() -> None:
    """A model that silently finds nothing: of fewer than five nobody can know."""
    same = decide(scores([3.0] * 6, cnn=0.31), PARAMETERS)
    (said,) = warnings_of(same)
    assert said.startswith("The classifier gives all 6 components the same score, 0.31")
    assert warnings_of(decide(scores([3.0] * 4, cnn=0.31), PARAMETERS)) == []
    differing = decide(scores([3.0] * 6, cnn=np.linspace(0.3, 0.4, 6)), PARAMETERS)
    assert warnings_of(differing) == []


def test_that_no_cell_is_accepted_is_told() -> None:
    (said,) = warnings_of(decide(scores([0.1, 0.2, 1.5]), PARAMETERS))
    assert said == (
        "None of 3 components is accepted (1 with no score high enough, 2 with trace SNR too low); "
        "lower the thresholds."
    )
    assert warnings_of(decide(scores(np.zeros(0)), PARAMETERS)) == []  # nothing was found at all


def test_every_threshold_is_a_parameter_that_only_decides() -> None:
    decides = {each.name for each in ComponentEvaluationParameters.describe() if each.decides}
    named = {name for pair in THRESHOLDS.values() for name in pair}
    assert decides == named | {"duplicate_overlap"}
    assert set(PARAMETERS.identity()) == {"decay_time", "classifier", "classifier_file"}
