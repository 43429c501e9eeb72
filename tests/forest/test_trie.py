"""The trie of a group, by hand and by properties."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.forest import trie
from espalier.forest.trie import MIN_SHARED, build, common_prefix, laid_length
from espalier.types import Sample
from samples import groups, sample

P, A, B = 1, 2, 3


def runs(made: trie.Trie) -> list[tuple[list[int], int, int, int, int]]:
    return [(n.tokens, n.start, n.parent, n.depth, n.leave) for n in made.nodes]


def test_laid_length_ends_before_the_last_trained_token() -> None:
    assert laid_length(sample([P] * 3, [A] * 2)) == 4  # the last A is predicted, not laid down
    assert laid_length(sample([P] * 3, [])) == 0
    assert laid_length(Sample([P], [True], [1.0])) == 0  # nothing precedes the first token
    tail = sample([P] * 3, [A])
    tail.append([B] * 5, trained=False)
    assert laid_length(tail) == 3
    tail.reads = [5]
    assert laid_length(tail) == 6  # a scalar head reads after token 5


@given(st.lists(st.integers(0, 1), max_size=20), st.lists(st.integers(0, 1), max_size=20))
def test_common_prefix_counts_equal_tokens(a: list[int], b: list[int]) -> None:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    assert common_prefix(a, b) == n


def test_worked_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trie, "MIN_SHARED", 1)
    made = build([sample([P] * 3, [A] * 2), sample([P] * 3, [B] * 3)])
    assert runs(made) == [([P, P, P], 0, -1, 0, 3), ([A], 3, 0, 3, 2), ([B, B], 4, 0, 3, 3)]
    assert made.paths == [[0, 1], [0, 2]]
    assert made.size == 6
    assert made.where(0, 4) == [0, 1, 2, 3]
    assert made.where(1, 5) == [0, 1, 2, 4, 5]


def test_a_sample_that_ends_inside_another_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trie, "MIN_SHARED", 1)
    made = build([sample([P] * 3, [A] * 4), sample([P] * 2, [P, A]), sample([P] * 3, [B, B])])
    # laid: P P P A A A | P P P | P P P B
    assert runs(made) == [([P, P, P], 0, -1, 0, 3), ([A, A, A], 3, 0, 3, 2), ([B], 6, 0, 3, 3)]
    assert made.where(1, 3) == [0, 1, 2]


def test_turns_of_one_conversation_are_one_run_in_any_order() -> None:
    turns = [sample([P] * n, [A]) for n in (20, 40, 60)]
    for order in (turns, turns[::-1], [turns[1], turns[0], turns[2]]):
        made = build(order)
        assert runs(made) == [([P] * 60, 0, -1, 0, 1)]
        assert made.paths == [[0], [0], [0]]


def test_runs_at_the_limit_are_shared_and_shorter_ones_copied() -> None:
    for shared, size in ((MIN_SHARED, MIN_SHARED + 2), (MIN_SHARED - 1, 2 * (MIN_SHARED - 1) + 2)):
        assert build([sample([P] * shared, [A, A]), sample([P] * shared, [B, B])]).size == size


def test_a_short_run_below_a_long_one_is_copied_into_its_children() -> None:
    stem, short = [P] * 20, [A] * 3
    made = build([sample(stem + short, [4, 4]), sample(stem + short, [5, 5]), sample(stem, [B, B])])
    assert [n.tokens for n in made.nodes] == [stem, [*short, 4], [*short, 5], [B]]
    assert [n.parent for n in made.nodes] == [-1, 0, 0, 0]


def test_a_deep_tree_needs_no_recursion() -> None:
    stem = [i % 7 for i in range(16 * 1100)]
    made = build([sample(stem[: 16 * i], [8, 9]) for i in range(1, 1101)])
    assert max(n.depth for n in made.nodes) == 16 * 1099
    assert made.size == 16 * 1100 + 1100
    assert len(made.nodes) == 2 * 1100 - 1


def test_without_sharing_every_sample_is_a_root() -> None:
    made = build([sample([P] * 20, [A] * 2), sample([P] * 20, [B] * 3), sample([P], [])], share=False)
    assert [(n.start, n.parent, n.depth, n.leave) for n in made.nodes] == [(0, -1, 0, 1), (21, -1, 0, 2)]
    assert made.paths == [[0], [1], []]


@settings(max_examples=150, deadline=None)
@given(groups(samples=8), st.sampled_from([1, 2, 16]))
def test_properties(groups_: list[list[Sample]], least: int) -> None:
    before, trie.MIN_SHARED = trie.MIN_SHARED, least
    try:
        for group in groups_:
            made = build(group)
            laid = [s.tokens[: laid_length(s)] for s in group]
            flat = [t for n in made.nodes for t in n.tokens]
            assert made.size == len(flat) <= sum(map(len, laid))
            assert [flat[i] for i in range(made.size)] == flat
            for i, tokens in enumerate(laid):
                assert [flat[p] for p in made.where(i, len(tokens))] == tokens
                assert made.where(i, len(tokens)) == sorted(made.where(i, len(tokens)))
            used = {p for i, tokens in enumerate(laid) for p in made.where(i, len(tokens))}
            assert used == set(range(made.size))  # nothing is laid down that no sample needs
            for i, n in enumerate(made.nodes):
                below = {j for j in range(len(made.nodes)) if _under(made, j, i)}
                assert below == set(range(i, n.leave))  # preorder
                parent = made.nodes[n.parent] if n.parent >= 0 else None
                assert n.depth == (parent.depth + len(parent.tokens) if parent else 0)
                children = [m for m in made.nodes if m.parent == i]
                assert not children or (len(children) > 1 and len(n.tokens) >= least)
            if least == 1:  # the smallest forest: one position for each distinct prefix
                assert made.size == len({tuple(t[:k]) for t in laid for k in range(1, len(t) + 1)})
    finally:
        trie.MIN_SHARED = before


def _under(made: trie.Trie, node: int, top: int) -> bool:
    while node > top:
        node = made.nodes[node].parent
    return node == top
