"""The workbench of process reward models, against numbers counted by hand."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
import torch

from espalier.errors import ModelError
from espalier.losses import steps as losses
from espalier.types import Aggregate, Sample
from espalier.workbench.bootstrap import Resampling
from espalier.workbench.mistakes import choose_threshold, first_error, steps
from espalier.workbench.process import against_outcome, best_cut, findings, process, whole_solutions
from espalier.workbench.solutions import Solved, aggregate, auc, from_samples, halves

HOW = Resampling(seed=3, resamples=200)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def solved(
    p: list[float], labels: list[float | None] | None = None, right: bool | None = None, problem: str = ""
) -> Solved:
    return Solved(problem, tuple(map(logit, p)), tuple(labels or [None] * len(p)), right)


def values(found: Any, *names: str) -> list[Any]:
    return [found[name]["value"] for name in names]


# ----------------------------------------------------------------------------------------------------- first mistakes

KINDS = ("accuracy", "erroneous", "correct", "f1")


def five() -> list[Solved]:
    """Three with a mistake (found; called a step late; not called) and two without (none called; one called)."""
    return [
        solved([0.9, 0.2, 0.1], [1, 0, None], problem="1"),
        solved([0.6, 0.7, 0.3], [1, 0, None], problem="2"),
        solved([0.8, 0.7], [0.5, 0], problem="3"),
        solved([0.9, 0.6], [1, 1], problem="4"),
        solved([0.9, 0.4], [1, 0.5], problem="5"),
    ]


def test_first_error_by_hand() -> None:
    found = first_error(five(), 0.5, HOW)
    assert values(found, *KINDS) == pytest.approx([2 / 5, 1 / 3, 1 / 2, 2 * (1 / 3) * (1 / 2) / (5 / 6)])
    assert [found[name]["n"] for name in KINDS] == [5, 3, 2, 5]
    assert found["accuracy"]["low"] < 2 / 5 < found["accuracy"]["high"]
    # At 0.75 the second is called a step early, the third is found, and both without a mistake have one called.
    assert values(first_error(five(), 0.75, HOW), *KINDS) == pytest.approx([2 / 5, 2 / 3, 0, 0])


def test_a_step_at_the_threshold_is_not_called_bad() -> None:
    assert values(first_error([solved([0.5, 0.4], [1, 0])], 0.5, HOW), "erroneous") == [1]


def test_one_kind_alone_has_no_harmonic_mean() -> None:
    assert values(first_error(five()[:3], 0.5, HOW), *KINDS) == [1 / 3, 1 / 3, None, None]
    assert values(first_error(five()[3:], 0.5, HOW), *KINDS) == [1 / 2, None, 1 / 2, None]


@pytest.mark.parametrize(
    ("labels", "mistake"),
    [([1, 0, None], 1), ([1, 0.5, 0], 2), ([1, 1, 1], 3), ([1, None, 0], None), ([1, 1, None], None), ([0, 1, 1], 0)],
)
def test_where_the_first_mistake_is_known(labels: list[float | None], mistake: int | None) -> None:
    assert solved([0.5] * 3, labels).mistake == mistake


def test_a_solution_that_was_cut_may_have_a_mistake_further_on() -> None:
    assert Solved("p", (1.0, 1.0), (1.0, 1.0), whole=False).mistake is None
    assert Solved("p", (1.0, 1.0), (1.0, 0.0), whole=False).mistake == 1


def test_the_threshold_is_the_best_of_all_there_are() -> None:
    """Against trying a fine grid of thresholds, on random solutions."""
    rng = random.Random(0)
    known = []
    for i in range(60):
        n = rng.randrange(1, 5)
        k = rng.randrange(n + 1)
        p = [min(max(rng.gauss(0.4 if j == k else 0.7, 0.2), 0.01), 0.99) for j in range(n)]
        known.append(solved(p, [1.0] * k + [0.0] * (k < n) + [None] * (n - k - 1), problem=str(i)))
    none = Resampling(resamples=1)
    best = max(first_error(known, i / 400, none)["f1"]["value"] for i in range(1, 400))
    threshold = choose_threshold(known)
    assert first_error(known, threshold, none)["f1"]["value"] >= best > 0.3
    assert choose_threshold([solved([0.9, 0.3], [1, 0])]) == 0.5  # everything from 0.3 to 0.9 is as good


# -------------------------------------------------------------------------------------------------------------- steps


def test_steps_by_hand() -> None:
    """0.9 good, 0.2 bad, 0.6 bad, 0.4 good; a neutral and an unlabelled step count nowhere."""
    found = steps([solved([0.9, 0.2, 0.1], [1, 0, 0.5], problem="a"), solved([0.6, 0.4, 0.9], [0, 1, None])], HOW)
    assert found is not None
    assert values(found, "accuracy", "precision", "recall", "f1", "brier") == pytest.approx([0.5] * 4 + [0.77 / 4])
    assert found["ece"] == pytest.approx(1.5 / 4)
    assert [(b["n"], b["good"]) for b in found["bins"] if b["n"]] == [(1, 0), (1, 1), (1, 0), (1, 1)]
    assert [b["low"] for b in found["bins"] if b["n"]] == pytest.approx([0.2, 0.4, 0.6, 0.9])


def test_precision_and_recall_differ() -> None:
    """Three steps are called bad and one of them is; of two bad ones one is called."""
    found = steps([solved([0.1, 0.2, 0.3, 0.8, 0.9], [0, 1, 1, 0, 1])], HOW)
    assert found is not None
    assert values(found, "precision", "recall", "f1", "accuracy") == pytest.approx([1 / 3, 1 / 2, 2 / 5, 2 / 5])
    assert steps([solved([0.1], right=True)], HOW) is None


def test_a_bin_is_judged_by_its_means() -> None:
    """Four steps at 0.75, three of them good: calibrated. All good: off by 1/4."""
    four = [0.75] * 4
    for labels, ece in (([1, 1, 1, 0], 0.0), ([1, 1, 1, 1], 0.25)):
        found = steps([solved(four, list(labels))], HOW)
        assert found is not None and found["ece"] == pytest.approx(ece)


# ---------------------------------------------------------------------------------------------------- whole solutions


@pytest.mark.parametrize(
    ("how", "value"), [("product", math.log(0.36)), ("min", 0.5), ("last", 0.8), ("mean", 2.2 / 3)]
)
def test_aggregates_agree_with_the_loss(how: Aggregate, value: float) -> None:
    scores = [logit(p) for p in (0.9, 0.5, 0.8)]
    assert aggregate(scores, how) == pytest.approx(value)
    trained = losses.aggregate(torch.tensor(scores), torch.tensor([3]), how).item()
    assert trained == pytest.approx(math.exp(value) if how == "product" else value)


def test_auc_by_hand() -> None:
    """Right 3 and 1, wrong 2 and 1: 3 > 2, 3 > 1, 1 < 2, and 1 = 1 counts half."""
    found = auc([3, 1, 2, 1], [True, True, False, False], [0, 1, 2, 3], HOW)
    assert found["value"] == pytest.approx(2.5 / 4) and 0 <= found["low"] <= 2.5 / 4 <= found["high"] <= 1
    assert auc([1, 2], [True, True], [0, 1], HOW)["value"] is None


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


def test_samples_with_one_prompt_are_solutions_of_one_problem() -> None:
    def made(prompt: list[int], solution: list[int], label: float | None) -> Sample:
        sample = Sample(label=label)
        sample.append(prompt, trained=False)
        sample.append(solution, trained=True)
        sample.reads, sample.grades = [len(prompt), len(sample) - 1], [(1.0,), (math.nan,)]
        return sample

    groups = [[made([1, 2], [3, 4], 1.0)], [made([1, 2], [3, 5, 6], 0.0), made([1], [2, 3], None)]]
    found = from_samples(groups, [[(0.5,), (1.5,)], [(2.0,), (3.0,)], [(4.0,), (5.0,)]])
    assert [(s.problem, s.scores, s.solved) for s in found] == [
        ("1 2", (0.5, 1.5), True), ("1 2", (2.0, 3.0), False), ("1", (4.0, 5.0), None)
    ]  # fmt: skip
    assert found[0].labels == (1.0, None)
    groups[0][0].stop = "length"
    assert [s.whole for s in from_samples(groups, [[(0.0,)] * 2] * 3)] == [False, True, True]
