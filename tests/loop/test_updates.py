"""Minibatches of a draw: sizes, whole groups, silent shares, and the order they are a function of."""

from __future__ import annotations

import pytest

from espalier.algorithms.online import Online
from espalier.loop.updates import Update, updates
from espalier.types import Sample
from samples import Groups, sample


def drawn(*sizes: int, first: int = 0) -> Groups:
    """A group for each size; keys are 10 x group + place."""
    return [
        [sample([5, 6], [7, 8], group=g, key=10 * g + k) for k in range(size)] for g, size in enumerate(sizes, first)
    ]


def cut(groups: Groups, silent: Groups, online: Online | None, *, seed: int = 3, step: int = 5) -> list[Update]:
    return list(updates(groups, silent, online, seed=seed, step=step))


def keys(groups: Groups) -> list[list[int]]:
    return [[s.key for s in group] for group in groups]


def count(groups: Groups) -> int:
    return sum(map(len, groups))


def test_offline_a_step_is_one_update_of_the_very_groups() -> None:
    groups = drawn(2, 1)
    (update,) = cut(groups, [], None)
    assert update.groups == groups and update.groups[0] is groups[0] and (update.number, update.epoch) == (0, 0)


def test_epochs_without_minibatches_keep_the_order_of_the_draw() -> None:
    groups, silent = drawn(2, 1, 3), drawn(2, first=3)
    all_updates = cut(groups, silent, Online(epochs=3))
    assert [(u.number, u.epoch) for u in all_updates] == [(0, 0), (1, 1), (2, 2)]
    assert all(keys(u.groups) == keys(groups) and keys(u.silent) == keys(silent) for u in all_updates)


def test_equal_groups_are_never_cut_if_they_fill_minibatches() -> None:
    for step in range(10):
        parts = cut(drawn(4, 4, 4, 4), [], Online(minibatches=2), step=step)
        assert [[len(g) for g in u.groups] for u in parts] == [[4, 4], [4, 4]]


@pytest.mark.parametrize("siblings", [False, True])
@pytest.mark.parametrize("minibatches", [2, 3, 5])
def test_every_sample_is_in_one_minibatch_of_each_epoch(siblings: bool, minibatches: int) -> None:
    groups, silent = drawn(5, 1, 3, 4, 2, 2, 1), drawn(3, 3, first=7)
    online = Online(epochs=2, minibatches=minibatches, siblings=siblings)
    for step in range(5):
        parts = cut(groups, silent, online, step=step)
        assert [u.number for u in parts] == list(range(2 * minibatches))
        for epoch in range(2):
            mine = [u for u in parts if u.epoch == epoch]
            for kind, source in (("groups", groups), ("silent", silent)):
                place = sorted(s.key for u in mine for g in getattr(u, kind) for s in g)
                assert place == sorted(s.key for g in source for s in g)
            size = len if siblings else count
            run, quiet = [size(u.groups) for u in mine], [size(u.silent) for u in mine]
            for sizes in (run, [a + b for a, b in zip(run, quiet, strict=True)]):
                assert max(sizes) - min(sizes) <= 1
            if siblings:
                assert all(g in groups for u in mine for g in u.groups)


def test_siblings_stay_together_where_there_is_room() -> None:
    """3 + 1 and 3 + 1 fit two minibatches of 4 whatever the order; of 2, 2 and 2 in two of 3 one must be cut."""
    for step in range(10):
        whole = cut(drawn(3, 1, 3, 1), [], Online(minibatches=2), step=step)
        assert sorted(len(g) for u in whole for g in u.groups) in ([1, 1, 3, 3], [1, 1, 1, 2, 3])
        one = cut(drawn(2, 2, 2), [], Online(minibatches=2), step=step)
        assert sorted(len(g) for u in one for g in u.groups) == [1, 1, 2, 2]


def test_order_is_a_function_of_seed_step_and_epoch() -> None:
    online = Online(epochs=2, minibatches=4)

    def order(seed: int, step: int) -> list[list[list[int]]]:
        return [keys(u.groups) for u in cut(drawn(*[1] * 8), [], online, seed=seed, step=step)]

    assert order(1, 1) == order(1, 1)
    assert order(1, 1) != order(2, 1) and order(1, 1) != order(1, 2)
    assert order(1, 1)[:4] != order(1, 1)[4:]


def masked(s: Sample) -> Sample:
    s.weights = [0.0] * len(s)
    return s


def test_samples_without_weight_count_and_are_not_run() -> None:
    groups = drawn(3, 2, 1)
    masked(groups[0][1]), masked(groups[2][0])
    (update,) = cut(groups, [], Online())
    assert keys(update.groups) == [[0, 2], [10, 11]] and keys(update.silent) == [[1], [20]]
    (together,) = cut(groups, [], Online(siblings=True))
    assert keys(together.groups) == [[0, 1, 2], [10, 11]] and keys(together.silent) == [[20]]


def test_a_second_weighting_is_a_weight() -> None:
    (group,) = drawn(2)
    masked(group[0]).streams["weights:tool"] = [0.0, 0.0, 0.0, 1.0]
    masked(group[1]).streams["weights:tool"] = [1.0, 1.0, 0.0, 0.0]
    (update,) = cut([group], [], Online())
    assert keys(update.groups) == [[0]] and keys(update.silent) == [[1]]


def test_more_minibatches_than_samples_leave_some_without() -> None:
    parts = cut(drawn(2), [], Online(minibatches=4))
    assert [count(u.groups) for u in parts] == [1, 1, 0, 0]
