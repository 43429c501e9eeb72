"""The workbench of process reward models, against numbers counted by hand."""

from __future__ import annotations

import json
import math
import random

import pytest

from espalier.errors import ModelError
from espalier.workbench.process import against_outcome, best_cut, findings, process, whole_solutions
from espalier.workbench.solutions import Solved, halves
from solutions import HOW, five, solved

# ---------------------------------------------------------------------------------------------------- whole solutions


def test_whole_solutions_by_hand() -> None:
    """Numbers by minimum: 0.6 right, 0.4 right, 0.7 wrong, 0.1 wrong."""
    p = ([0.9, 0.6], [0.4], [0.7, 0.8], [0.1, 0.9])
    all_of = [solved(list(x), right=i < 2, problem=str(i)) for i, x in enumerate(p)]
    found = whole_solutions(all_of, "min", HOW)
    assert found["accuracy"]["value"] == 2 / 4 and found["auc"]["value"] == 2 / 4
    # products: 0.54, 0.4 right; 0.56, 0.09 wrong
    assert whole_solutions(all_of, "product", HOW)["accuracy"]["value"] == 2 / 4
    # means: 0.75, 0.4 right; 0.75, 0.5 wrong; 0.75 ties with 0.75
    found = whole_solutions(all_of, "mean", HOW)
    assert found["accuracy"]["value"] == 1 / 4 and found["auc"]["value"] == pytest.approx(1.5 / 4)


def test_the_cut_with_the_fewest_errors() -> None:
    assert best_cut([6, 1, 2, 3, 4, 5], [True, False, False, True, True, True]) == 2.5
    assert best_cut([1, 2, 2, 3], [False, False, True, True]) in (1.5, 2.5)  # never between equal numbers
    assert best_cut([1, 2, 3], [True, True, True]) == 1
    assert best_cut([1, 2, 3], [False, False, False]) > 3


def test_a_tuned_threshold_comes_from_other_problems() -> None:
    """Products of many steps lie below 1/2 all, right in one of four; cut between right and wrong on one half of the
    problems, they are told apart on the other."""
    made = []
    for i in range(40):
        right = i % 4 == 0
        made.append(solved([0.9 if right else 0.6] * 8, right=right, problem=f"p{i // 4}"))
    found = whole_solutions(made, "product", HOW)
    assert found["accuracy"]["value"] == 0.75 and found["tuned"]["value"] == 1.0
    assert 0.6**8 < found["tuned"]["threshold"] < 0.9**8
    first, second = halves(made, seed=3)
    assert len(first) == len(second) == 20 == found["tuned"]["chosen_on"]
    assert not {s.problem for s in first} & {s.problem for s in second}


# ------------------------------------------------------------------------------------------------- process and outcome


def two_problems() -> list[Solved]:
    """The last step names the right solutions of both problems, the worst step only those of the first."""
    return [
        solved([0.9, 0.8], right=True, problem="a"),
        solved([0.7, 0.2], right=False, problem="a"),
        solved([0.3, 0.9], right=True, problem="b"),
        solved([0.6, 0.5], right=False, problem="b"),
        solved([0.6, 0.5], right=False, problem="alone"),
        solved([0.6, 0.5], right=None, problem="unknown"),
        solved([0.6, 0.5], right=True, problem="unknown"),
    ]


def test_process_beside_outcome_by_hand() -> None:
    """An outcome model that is wrong on both: chance with one solution, nothing with two."""
    found = against_outcome(two_problems(), [0.0, 1.0, -2.0, -1.0, 5.0, 5.0, 5.0], HOW)
    assert found is not None and found["problems"] == 2 and found["left_out"] == 0
    best = {name: [p["value"] for p in x["best_of_n"]] for name, x in found["judges"].items()}
    assert best == {"outcome": [0.5, 0], "product": [0.5, 0.5], "min": [0.5, 0.5], "last": [0.5, 1], "mean": [0.5, 1]}
    assert {name: [p["value"] for p in x] for name, x in found["gains"].items()} == {
        "product": [0, 0.5], "min": [0, 0.5], "last": [0, 1], "mean": [0, 1]
    }  # fmt: skip
    # outcome: right 0, -2, wrong 1, -1: one pair of four; last: right 0.8, 0.9, wrong 0.2, 0.5: all
    assert found["judges"]["outcome"]["auc"]["value"] == 1 / 4 and found["judges"]["last"]["auc"]["value"] == 1
    assert found["random"] == 0.5 and found["oracle"] == [0.5, 1.0]


def test_a_model_against_itself_gains_nothing() -> None:
    rng = random.Random(1)
    made = [
        solved([rng.uniform(0.1, 0.9) for _ in range(3)], right=rng.random() < 0.5, problem=str(i // 4))
        for i in range(80)
    ]
    found = against_outcome(made, [s.scores[-1] for s in made], HOW)
    assert found is not None
    assert all(p["value"] == p["low"] == p["high"] == 0 for p in found["gains"]["last"])
    assert found["judges"]["last"] == found["judges"]["outcome"]
    assert found["judges"]["outcome"]["best_of_n"][0]["value"] == pytest.approx(found["random"])


def test_nothing_to_choose_from_is_none() -> None:
    assert against_outcome(two_problems()[4:], [0.0] * 3) is None
    with pytest.raises(ValueError, match="2 scores for 7 solutions"):
        against_outcome(two_problems(), [0.0, 1.0])


# -------------------------------------------------------------------------------------------------------------- whole


def test_the_report_is_json_repeats_by_seed_and_fills_a_table() -> None:
    made = [*five(), *two_problems()]
    report = process(made, HOW)
    assert json.loads(json.dumps(report)) == report == process(made, HOW)
    assert report["counts"] == {
        "problems": 9, "solutions": 12, "steps": 26, "good": 5, "bad": 3, "first_mistakes": 5, "outcomes": 6
    }  # fmt: skip
    assert report["first_error"]["accuracy"]["value"] == 2 / 5
    assert report["tuned"]["chosen_on"] == 2 and report["tuned"]["accuracy"]["n"] == 3
    against = against_outcome(made, [0.0] * len(made), HOW)
    rows = findings(report, against)
    assert (
        "first mistake",
        "accuracy, solutions with a mistake: the exact step is named",
        "33.3% [0.0% to 100.0%] of 3",
    ) in rows
    assert ("process and outcome", "random choice and oracle, best of 2", "50.0% and 100.0%") in rows
    assert len(rows) == len({row[:2] for row in rows})


def test_what_is_unknown_is_none() -> None:
    report = process([solved([0.4], [0.5])], HOW)
    assert report["first_error"] is not None  # a neutral step is no mistake
    assert report["steps"] is None and report["solutions"] is None and report["tuned"] is None
    assert findings(process([solved([0.4])], HOW)) == []


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ModelError, match="expected finite numbers"):
        Solved("p", (math.nan,), (1.0,))
    with pytest.raises(ValueError, match="2 scores for 1 labels"):
        Solved("p", (1.0, 2.0), (1.0,))
