"""How a step is split into forwards."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.forest.microbatches import Packing, microbatches
from espalier.forest.trie import build, laid_length
from espalier.types import Sample
from samples import groups, sample

Groups = list[list[Sample]]


def alone(*laid: int) -> Groups:
    """One group of one sample for each length to lay down; tokens differ, so nothing could be shared."""
    return [[sample([i] * n, [0], key=i)] for i, n in enumerate(laid)]


def keys(plan: list[list[list[Sample]]]) -> list[list[list[int]]]:
    return [[[s.key for s in group] for group in forward] for forward in plan]


def test_first_fit_decreasing_by_hand() -> None:
    # 7 and 3 fill the first forward, 5 4 the second; the 11 is above the budget and runs alone
    assert keys(microbatches(alone(3, 5, 7, 4, 11), 10, Packing())) == [[[4]], [[0], [2]], [[1], [3]]]


def test_ranks_are_dealt_evenly() -> None:
    assert keys(microbatches(alone(4, 4, 2), 10, Packing(), ranks=2)) == [[[0], [2]], [[1]]]
    assert keys(microbatches(alone(5), 10, Packing(), ranks=3)) == [[[0]], [], []]
    # Dealt over two forwards, 6 would join 5 or 12 above the budget of 10: the third forward stays, a fourth is empty.
    plan = microbatches(alone(12, 6, 5), 10, Packing(), ranks=2)
    assert keys(plan) == [[[0]], [[1]], [[2]], []]


def test_dealing_never_fills_a_forward_above_the_budget_because_one_piece_is() -> None:
    plan = microbatches(alone(100, 6, 6, 6, 6), 12, Packing(), ranks=4)
    assert all(len(f) == 1 or sum(build(g).size for g in f) <= 12 for f in plan)


def test_a_group_above_the_budget_is_cut_between_its_nearest_relatives() -> None:
    left, right = [1] * 20, [2] * 20
    group = [sample(left, [3, 3], key=0), sample(right, [3, 3], key=1), sample(left, [4, 4], key=2),
             sample(right, [4, 4], key=3)]  # fmt: skip
    assert keys(microbatches([group], 22, Packing())) == [[[0, 2]], [[1, 3]]]
    assert keys(microbatches([group], 44, Packing())) == [[[0, 1, 2, 3]]]  # two stems of 20 and four laid tokens
    assert keys(microbatches([group], 22, Packing(whole=True))) == [[[0, 1, 2, 3]]]
    assert keys(microbatches([group], 42, Packing(share=False))) == [[[0, 2]], [[1, 3]]]
    assert keys(microbatches([group], 41, Packing(share=False))) == [[[0]], [[2]], [[1]], [[3]]]


def test_padded_forwards_cost_samples_times_longest() -> None:
    padded = Packing(share=False, padded=True)
    assert keys(microbatches(alone(10, 3, 3), 20, padded)) == [[[0], [1]], [[2]]]  # 2 x 10; a third row would be 30
    group = [[sample([0] * 10, [0], key=0), sample([1] * 3, [0], key=1), sample([2] * 3, [0], key=2)]]
    assert keys(microbatches(group, 20, padded)) == [[[0, 1]], [[2]]]


def test_long_samples_never_share_a_forward_with_short_ones() -> None:
    layout = Packing(long_from=8)
    assert keys(microbatches(alone(8, 9, 2), 100, layout)) == [[[0], [2]], [[1]]]
    stem = [1] * 7
    group = [sample([*stem, 2], [3], key=0), sample([*stem, 3, 3], [3], key=1), sample(stem, [4], key=2)]
    assert keys(microbatches([group], 100, layout)) == [[[0, 2]], [[1]]]
    with pytest.raises(ValueError, match="both sides of 8 tokens"):
        microbatches([group], 100, Packing(long_from=8, whole=True))


def test_samples_without_anything_to_lay_down_take_no_forward() -> None:
    assert microbatches([[Sample([1], [True], [1.0])], [sample([1, 2, 3], [])]], 10, Packing()) == []


@settings(max_examples=150, deadline=None)
@given(
    groups(tokens=2),
    st.integers(1, 60),
    st.integers(1, 4),
    st.builds(Packing, share=st.booleans(), whole=st.booleans(), long_from=st.sampled_from([0, 10])),
    st.booleans(),
)
def test_properties(groups_: Groups, budget: int, ranks: int, layout: Packing, padded: bool) -> None:
    if padded:
        layout = Packing(share=False, padded=True, whole=layout.whole, long_from=layout.long_from)
    sides = [{laid_length(s) > 10 for s in g} for g in groups_]
    if layout.whole and layout.long_from and any(len(side) > 1 for side in sides):
        with pytest.raises(ValueError, match="RoPE"):
            microbatches(groups_, budget, layout, ranks=ranks)
        return
    plan = microbatches(groups_, budget, layout, ranks=ranks)
    assert plan == microbatches(groups_, budget, layout, ranks=ranks)
    assert len(plan) % ranks == 0
    seen = [id(s) for forward in plan for group in forward for s in group]
    assert len(seen) == len(set(seen))
    missing = [s for g in groups_ for s in g if id(s) not in set(seen)]
    assert not any(laid_length(s) for s in missing)
    for forward in plan:
        rows = [laid_length(s) for group in forward for s in group if laid_length(s)]
        cost = len(rows) * max(rows, default=0) if padded else sum(build(g, share=layout.share).size for g in forward)
        assert cost <= budget or (len(forward) == 1 and (layout.whole or len(rows) == 1))
        if layout.long_from:
            assert len({n > layout.long_from for n in rows}) <= 1
        if layout.whole:
            assert all(any(group is g for g in groups_) for group in forward)
