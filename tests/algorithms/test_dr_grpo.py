"""Dr. GRPO by hand: no std, and a denominator that no answer changes."""

import pytest

from batches import batch_of
from espalier.algorithms.dr_grpo import DrGRPO
from losses_by_hand import value, wide
from samples import sample


def test_credit_subtracts_the_mean_alone() -> None:
    group = [sample([5], [6], reward=score) for score in (1.0, 2.0, 6.0)]
    DrGRPO().credit([group], {"max_tokens": 8.0})
    assert [s.streams["advantages"] for s in group] == [[0, -2], [0, -1], [0, 3]]


def test_sums_are_divided_by_the_limit_and_the_number_of_answers() -> None:
    """Two tokens at A = 1 and one at -2, of 8 and 2 answers: all cancel in the loss; slopes are -A / 16."""
    batch = batch_of([2, 1], streams={"advantages": wide([1, 1, -2])}, state={"max_tokens": 8.0})
    loss, slope, _ = value(DrGRPO(), [-1, -1, -2], batch)
    assert loss == 0
    assert slope == pytest.approx([-1 / 16, -1 / 16, 2 / 16])


def test_masking_changes_no_denominator() -> None:
    weights = wide([1, 0, 0])
    batch = batch_of([2, 1], streams={"advantages": wide([1, 1, -2])}, state={"max_tokens": 8.0}, weights=weights)
    loss, slope, _ = value(DrGRPO(), [-1, -1, -2], batch)
    assert loss == pytest.approx(-1 / 16)
    assert slope == pytest.approx([-1 / 16, 0, 0])


def test_without_the_limit_there_is_no_loss() -> None:
    with pytest.raises(ValueError, match="state has no max_tokens"):
        value(DrGRPO(), [-1], batch_of([1], streams={"advantages": wide([1])}))
