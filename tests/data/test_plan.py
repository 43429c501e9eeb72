"""The order of data: a function of (seed, step) that meets every share and draws every group as often as it says."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.data import plan as module
from espalier.data.plan import Plan, PlanSource
from espalier.errors import ConfigError


def source(n: int, proportion: float | None = None, part: str = "main", tokens: int = 10, **more) -> PlanSource:
    return PlanSource(np.full(n, tokens, np.int32), np.ones(n, np.int32), proportion, part, **more)


def drawn(plan: Plan) -> list[tuple[int, int]]:
    return [pair for i in range(plan.steps) for pair in plan.step(i)]


# -------------------------------------------------------------------------------------------------- no proportions


def test_each_group_is_drawn_once_an_epoch() -> None:
    plan = Plan([source(7), source(4)], seed=1, samples_per_step=3, epochs=2)
    assert plan.steps == 8  # 22 draws by 3: seven steps of 3 and one of 1
    assert [len(plan.step(i)) for i in range(8)] == [3] * 7 + [1]
    every = [(0, g) for g in range(7)] + [(1, g) for g in range(4)]
    order = drawn(plan)
    assert sorted(order[:11]) == every and sorted(order[11:]) == every
    assert order[:11] != order[11:] and order[:11] != every
    assert [plan.epoch_of(i) for i in (0, 3, 8)] == [0.0, 9 / 11, 2.0]


def test_sixteen_seeds_give_sixteen_orders() -> None:
    assert len({tuple(drawn(Plan([source(20)], seed=s, samples_per_step=4))) for s in range(16)}) == 16


def test_all_orders_are_about_as_likely() -> None:
    counts = Counter(tuple(drawn(Plan([source(3)], seed=s, samples_per_step=3))) for s in range(1200))
    assert len(counts) == 6 and all(150 < n < 250 for n in counts.values())  # 200 each, standard deviation 13


@pytest.mark.parametrize(("epochs", "draws"), [(0.5, 5), (0.25, 3), (1.5, 15), (0.001, 1)])
def test_epochs_may_be_fractions(epochs: float, draws: int) -> None:
    order = drawn(Plan([source(10)], seed=0, samples_per_step=4, epochs=epochs))
    assert len(order) == draws and max(Counter(order).values()) == -(-draws // 10)


def test_steps_decide_where_given() -> None:
    plan = Plan([source(5)], seed=0, samples_per_step=4, steps=6)
    assert plan.steps == 6 and [len(plan.step(i)) for i in range(6)] == [4] * 6
    counts = Counter(drawn(plan))
    assert len(counts) == 5 and set(counts.values()) <= {4, 5} and sum(counts.values()) == 24
    assert drawn(plan)[:20] == drawn(Plan([source(5)], seed=0, samples_per_step=4, epochs=4))


def test_without_a_budget_a_step_is_32_samples() -> None:
    assert len(Plan([source(100)], seed=0).step(0)) == 32


def test_a_selection_is_named_by_its_own_numbers() -> None:
    plan = Plan([source(3, groups=np.array([4, 8, 9])), source(2)], seed=0, samples_per_step=2)
    assert sorted(drawn(plan)) == [(0, 4), (0, 8), (0, 9), (1, 0), (1, 1)]


# -------------------------------------------------------------------------------------------------------------- budgets


def greedy(sizes: list[int], budget: int) -> list[int]:
    """How many groups each step takes, one group at a time."""
    steps: list[int] = []
    filled = budget + 1
    for size in sizes:
        if filled + size > budget:
            steps.append(0)
            filled = 0
        steps[-1] += 1
        filled += size
    return steps


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 12), st.integers(1, 3), st.integers(1, 7))
def test_steps_are_as_full_as_whole_groups_allow(sizes: list[int], budget: int, epochs: int, chunk: int) -> None:
    array = np.array(sizes, np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        by_tokens = Plan([PlanSource(array, array * 0 + 1)], seed=5, tokens_per_step=budget, epochs=epochs)
        by_samples = Plan([PlanSource(array * 100, array)], seed=5, samples_per_step=budget, epochs=epochs)
    order = drawn(by_tokens)
    assert order == drawn(by_samples) and Counter(order) == {(0, g): epochs for g in range(len(sizes))}
    expected = greedy([sizes[g] for _, g in order], budget)
    assert [len(by_tokens.step(i)) for i in range(by_tokens.steps)] == expected
    assert [len(by_samples.step(i)) for i in range(by_samples.steps)] == expected


def test_a_token_budget_is_exceeded_by_single_groups_only() -> None:
    lengths = np.random.default_rng(0).integers(1, 120, 500)
    plan = Plan([PlanSource(lengths, np.ones(500, int))], seed=0, tokens_per_step=100, steps=300)
    for i in range(300):
        tokens = [int(lengths[g]) for _, g in plan.step(i)]
        assert sum(tokens) <= 100 or len(tokens) == 1
    assert plan.steps == 300


# ---------------------------------------------------------------------------------------------------------- proportions


def test_shares_hold_in_every_prefix() -> None:
    plan = Plan([source(10, 0.3), source(500, 0.2), source(40), source(60)], seed=2, samples_per_step=8, epochs=3)
    order = drawn(plan)
    assert len(order) == 3 * 610
    for members, share in (((0,), 0.3), ((1,), 0.2), ((2, 3), 0.5)):
        hits = np.cumsum([s in members for s, _ in order])
        assert np.abs(hits - share * np.arange(1, len(order) + 1)).max() < 1
    # 549 draws of 10 groups: every pass holds each of them once, in an order of its own.
    first = [g for s, g in order if s == 0]
    passes = [first[i : i + 10] for i in range(0, 540, 10)]
    assert all(sorted(p) == list(range(10)) for p in passes) and len(set(map(tuple, passes))) == 54
    # Those without a proportion share what is left by size, pass by pass.
    rest = [pair for pair in order if pair[0] > 1]
    assert sorted(rest[:100]) == [(2, g) for g in range(40)] + [(3, g) for g in range(60)]
    assert plan.epoch_of(plan.steps) == 3.0


def test_replay_takes_its_share_of_every_step() -> None:
    main, replay = source(90), source(7, part="replay")
    plan = Plan([main, replay], seed=0, samples_per_step=10, replay_fraction=0.1, epochs=2)
    order = drawn(plan)
    assert Counter(pair for pair in order if pair[0] == 0) == {(0, g): 2 for g in range(90)}
    assert len(order) in (199, 200) and plan.epoch_of(plan.steps) == 2.0
    for i in range(plan.steps - 1):
        assert sum(s == 1 for s, _ in plan.step(i)) == 1
    assert abs(plan.epoch_of(5) - 45 / 90) <= 1 / 90


def test_shares_of_replay_are_shares_of_its_fraction() -> None:
    sources = [source(50, 0.5), source(50), source(9, 0.25, "replay"), source(9, None, "replay")]
    order = drawn(Plan(sources, seed=0, samples_per_step=16, replay_fraction=0.2, steps=50))
    assert [sum(s == i for s, _ in order) for i in range(4)] == [320, 320, 40, 120]


def test_three_thirds_make_one() -> None:
    order = drawn(Plan([source(5, 1 / 3), source(5, 1 / 3), source(5, 0.333333)], seed=0, samples_per_step=3, steps=4))
    assert Counter(s for s, _ in order) == {0: 4, 1: 4, 2: 4}


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ([source(5, 0.5), source(5, 0.6)], {}, "sum to 1.1, expected 1"),
        ([source(5, 0.5), source(5, 0.3)], {}, "sum to 0.8, expected 1"),
        ([source(5, 0.5), source(5, 0.5), source(5)], {}, "sum to 1, expected less than 1"),
        ([source(5, 2.0), source(5)], {}, "data source 1 got proportion 2.0"),
        ([source(5, 0.5), source(0, 0.5)], {}, "data source 2 got proportion 0.5 and 0 rows"),
        ([source(0)], {}, "data has no rows"),
        ([source(5, part="replay")], {"replay_fraction": 0.1}, "data has no rows"),
        ([source(5), source(0, part="replay")], {"replay_fraction": 0.1}, "replay has no rows"),
        ([source(5), source(5, part="replay")], {}, "replay_fraction got 0.0"),
        ([source(5)], {"samples_per_step": 2, "tokens_per_step": 2}, "give one of them"),
        ([source(5)], {"epochs": 0}, "epochs above 0"),
        ([source(5)], {"steps": -1}, "none below 0"),
    ],
)
def test_what_makes_no_plan(sources: list[PlanSource], options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Plan(sources, seed=0, **options)


# --------------------------------------------------------------------------------------------- a function of (seed, i)


def mixed(seed: int = 7, **options) -> Plan:
    rng = np.random.default_rng(0)
    sources = [
        PlanSource(rng.integers(5, 90, 60), rng.integers(1, 4, 60), 0.25, fingerprint="a"),
        PlanSource(rng.integers(5, 90, 30), rng.integers(1, 4, 30), fingerprint="b"),
        PlanSource(rng.integers(5, 90, 10), np.ones(10, int), part="replay", fingerprint="c"),
    ]
    return Plan(sources, seed=seed, replay_fraction=0.1, **{"tokens_per_step": 300, "epochs": 3, **options})


def test_a_step_is_the_same_alone_in_any_order_and_after_a_resume() -> None:
    whole = [mixed().step(i) for i in range(mixed().steps)]
    forwards, backwards = mixed(), mixed()
    assert [forwards.step(i) for i in range(forwards.steps)] == whole
    assert [backwards.step(i) for i in reversed(range(backwards.steps))] == whole[::-1]
    k = len(whole) // 2
    resumed = mixed()
    assert [resumed.step(i) for i in range(k, resumed.steps)] == whole[k:]
    for i in (-1, len(whole)):
        with pytest.raises(IndexError):
            resumed.step(i)


def test_consumed_tells_runs_apart() -> None:
    one, two = mixed(), mixed()
    hashes = [one.consumed(i) for i in range(one.steps + 1)]
    assert len(set(hashes)) == one.steps + 1
    assert two.consumed(two.steps) == hashes[-1] and two.consumed(3) == hashes[3]
    assert mixed(seed=8).consumed(3) != hashes[3]
    # A longer run begins alike; only the shorter one's last step, which is short, differs.
    longer = mixed(epochs=4)
    assert longer.consumed(one.steps - 1) == hashes[-2] and longer.consumed(one.steps) != hashes[-1]
    assert longer.fingerprint == one.fingerprint


def test_the_fingerprint_notices_other_data_and_budgets() -> None:
    base, lengths, ones = mixed(), np.array([3, 4, 5]), np.ones(3, int)
    others = [mixed(seed=8), mixed(tokens_per_step=301), mixed(tokens_per_step=0, samples_per_step=300)]
    made = [
        PlanSource(lengths, ones),
        PlanSource(lengths + 1, ones),
        PlanSource(lengths, ones * 2),
        PlanSource(lengths, ones, fingerprint="x"),
        PlanSource(lengths, ones, groups=np.array([0, 1, 3])),
    ]
    others += [Plan([s], seed=0, samples_per_step=2) for s in made]
    assert len({p.fingerprint for p in [base, *others]}) == 9
    assert mixed().fingerprint == base.fingerprint


def test_a_large_plan_costs_a_few_bytes_a_row() -> None:
    n = 400_000
    lengths = np.random.default_rng(0).integers(20, 800, n).astype(np.int32)
    ones = np.ones(n, np.int32)
    tracemalloc.start()
    plan = Plan([PlanSource(lengths, ones)], seed=0, samples_per_step=32)
    plan.step(plan.steps - 1)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.steps == n // 32
    assert held < 6 * n and peak < 24 * n


def test_permutations_of_past_epochs_are_let_go() -> None:
    n = 100_000
    plan = Plan([source(n)], seed=0, samples_per_step=1000, epochs=20)
    tracemalloc.start()
    for i in range(0, plan.steps, 50):
        plan.step(i)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 10 * n  # two permutations of 4 bytes a group


def test_a_few_steps_of_small_data_draw_a_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps over groups of several samples are cut from the line itself, which has no end where steps decide."""
    passes = []
    order = Plan._order
    monkeypatch.setattr(Plan, "_order", lambda self, p, number: passes.append(number) or order(self, p, number))
    plan = Plan([PlanSource(np.full(6, 10, np.int32), np.full(6, 3, np.int32))], seed=0, steps=4, samples_per_step=9)
    assert [len(plan.step(i)) for i in range(4)] == [3] * 4
    assert max(passes) <= 4 * 9 // 6, "no group has less than a sample"
