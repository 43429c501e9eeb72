"""The checks of held-out data and of the order of draws see what is on the wrong side, missing or drawn twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from desk import PAIRS, Desk
from espalier.checks.order import LOOKED_AT, _coverage, _shares, first_draws, held_out, refuse_side, side_of
from espalier.errors import CheckError
from samples import sample


def verdict(**changed: Any) -> str:
    facts = {"train": [0, 1, 3], "held": [2, 4], "drawn": [0, 3], "shared": 0, **changed}
    return held_out([side_of(2, [0], [1], [0]), side_of(5, **facts)]).verdict


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "pass"), ({"train": [0, 1, 2, 3]}, "fail"), ({"held": [2]}, "fail"), ({"drawn": [0, 4]}, "fail"),
        ({"shared": 1}, "fail"),
    ],
)  # fmt: skip
def test_sides_are_disjoint_and_add_up(changed: dict[str, Any], expected: str) -> None:
    assert verdict(**changed) == expected


def epochs(*orders: list[int]) -> list[tuple[int, int]]:
    return [(0, group) for order in orders for group in order]


def test_an_epoch_draws_every_row_once_and_the_next_in_another_order() -> None:
    one, two = [0, 1, 2, 3, 4], [4, 1, 0, 2, 3]

    def faults(draws: list[tuple[int, int]], count: float) -> list[str]:
        return _coverage(draws, [5], [None], count, whole=True)

    assert faults(epochs(one, two), 2.0) == []
    assert faults(epochs(one, one), 2.0) == ["epoch 2 has the order of epoch 1"]
    assert faults(epochs([0, 1, 2, 2, 4], two), 2.0) == ["epoch 1 draws 1 rows again"]
    assert faults(epochs(one, two[:3]), 2.0) == ["8 rows are drawn in 2 epochs, expected 10"]
    assert faults(epochs(one, two[:3]), 0.0) == []
    assert _coverage(epochs(one, one), [5], [0.5], 2.0, whole=True) == []


def test_shares_are_those_that_were_asked_for() -> None:
    def faults(counts: tuple[int, ...], asked: list[float | None], replay: float = 0.0, main: int = 2) -> list[str]:
        draws = [(source, i) for source, count in enumerate(counts) for i in range(count)]
        return _shares(draws, [100] * len(counts), asked, main, replay)

    assert faults((70, 30), [0.7, 0.3]) == [] and len(faults((30, 70), [0.7, 0.3])) == 2
    assert faults((34, 33, 33), [0.333] * 3, main=3) == []
    assert faults((50, 50), [0.5, None]) == [] and faults((80, 20), [0.5, None])
    assert faults((70, 30), [None, None], 0.3, 1) == [] and faults((90, 10), [None, None], 0.3, 1)


def test_only_the_first_draws_of_a_long_run_are_looked_at() -> None:
    plan = SimpleNamespace(steps=10**9, step=lambda i: [(0, i)] * 1000)
    assert len(first_draws(plan)) == LOOKED_AT


def test_rows_of_the_other_side_are_refused_where_a_model_is_fitted_or_judged() -> None:
    groups = [[sample([5, n], [9])] for n in range(4)]

    class Store(list[Any]):
        group = list.__getitem__

    stores = [Store(groups)]
    opened = SimpleNamespace(main=stores, held_out=stores, chosen=[np.array([0, 1])], kept_back=[np.array([2, 3])])
    refuse_side(opened, groups[:2], held=False)
    refuse_side(opened, groups[2:], held=True)
    with pytest.raises(CheckError, match="held_out: 2 of 4 training groups are held-out data"):
        refuse_side(opened, groups, held=False)
    with pytest.raises(CheckError, match="2 of 4 held-out groups are training data"):
        refuse_side(opened, groups, held=True)


def test_a_split_that_is_mixed_up_stops_a_run(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    import espalier.data.dataset as dataset

    was = dataset.split
    desk.run("check dpo", "--eval-fraction", 0.3, name="right")
    assert "held_out" in desk.out

    def one_side(*arguments: Any) -> Any:
        train, held = was(*arguments)
        return np.concatenate([train, held]), held

    monkeypatch.setattr(dataset, "split", one_side)
    desk.run("check dpo", "--eval-fraction", 0.3, code=2)
    assert "held_out:" in desk.err + desk.out


def test_prompts_on_both_sides_stop_a_run(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two answers to each prompt in rows of their own, which a split by row takes apart."""
    rows = [{**row, "rejected": f"{row['rejected']} {n}"} for row in PAIRS for n in range(2)]
    import espalier.data.dataset as dataset

    monkeypatch.setattr(dataset, "split", lambda store, *_: (np.arange(0, len(store), 2), np.arange(1, len(store), 2)))
    desk.run("check dpo", "--eval-fraction", 0.3, data=desk.rows("twice", rows), code=2)
    assert "held_out:" in desk.err + desk.out
