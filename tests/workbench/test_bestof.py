"""Best of n: its curve by hand, over all subsets, and on scored solutions."""

from __future__ import annotations

import gzip
import json
from itertools import combinations
from pathlib import Path

import pytest

from espalier.workbench import bestof, reward
from espalier.workbench.records import HeldOutGroup, JudgedResponse
from held_out import HOW


def test_best_of_n_by_hand() -> None:
    assert bestof.best_of([3, 2, 1], [False, True, False], 2) == pytest.approx(1 / 3)
    assert bestof.best_of([1, 1], [True, False], 2) == 0.5
    assert bestof.any_of([False, True, False], 2) == pytest.approx(2 / 3)


def test_best_of_n_equals_all_subsets() -> None:
    scores, good = [2.0, 0.5, 2.0, 1.0, 0.5, 3.0], [True, False, False, True, True, False]
    for n in range(1, 7):
        picked = oracle = 0.0
        subsets = list(combinations(range(6), n))
        for subset in subsets:
            top = [i for i in subset if scores[i] == max(scores[j] for j in subset)]
            picked += sum(good[i] for i in top) / len(top)
            oracle += any(good[i] for i in subset)
        assert bestof.best_of(scores, good, n) == pytest.approx(picked / len(subsets))
        assert bestof.any_of(good, n) == pytest.approx(oracle / len(subsets))


def test_the_curve_keeps_its_prompts() -> None:
    def known(size: int) -> HeldOutGroup:
        return HeldOutGroup("a", 1, [JudgedResponse(i, good=i == size - 1) for i in range(size)])

    rows = [*(known(4) for _ in range(19)), known(2), HeldOutGroup("a", 1, [JudgedResponse(0)] * 4)]
    found = bestof.best_of_n(rows, list(range(21)), HOW)
    assert found is not None and found["groups"] == 19 and found["left_out"] == 1
    assert [p["model"]["value"] for p in found["points"]] == [0.25, 0.5, 0.75, 1]
    assert [p["random"] for p in found["points"]] == [0.25] * 4
    assert bestof.best_of_n(rows[-1:], [0], HOW) is None


@pytest.mark.real_data
def test_best_of_n_on_scored_solutions(shared: Path) -> None:
    """100 problems with 8 solutions: the first is right 90 % of the time, the best of 8 by score 94 %, any 96 %."""
    path = shared / "data/process/qwen_math_cot_100x8_rm.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    judged = [
        HeldOutGroup(
            "math", 0, [JudgedResponse(s[-1], good=g) for s, g in zip(row["pred_score"], row["score"], strict=True)]
        )
        for row in rows
    ]
    found = reward.judge(judged, HOW)["best_of_n"]
    assert found["points"][7]["model"]["value"] == pytest.approx(0.94)
    assert found["points"][7]["oracle"] == pytest.approx(0.96)
