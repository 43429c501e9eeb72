"""Every figure of the reward model's workbench against a number worked out by hand, then what must not change it."""

from __future__ import annotations

import gzip
import json
import math
import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from espalier.workbench import agreement, bestof, biases, bootstrap, calibration, records, reward
from espalier.workbench.records import HeldOutGroup, JudgedResponse

HOW = bootstrap.Resampling(seed=3, resamples=400)


def group(*scores: float, pairs: tuple[tuple[int, int], ...] = (), source: str = "a", **more: object) -> HeldOutGroup:
    """Answers with these scores and lengths 10, 20, ..."""
    answers = [JudgedResponse(s, length=10 * (i + 1)) for i, s in enumerate(scores)]
    return HeldOutGroup(source, 5, answers, list(pairs), **more)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- accuracy, intervals


def test_accuracy_counts_equal_scores_half_and_knows_sources_and_k() -> None:
    found = reward.judge(
        [
            group(3, 2, 1, pairs=((0, 1), (0, 2), (1, 2)), source="a"),
            group(1, 2, pairs=((0, 1),), source="b"),
            group(1, 1, pairs=((0, 1),), source="b"),
        ],
        HOW,
    )["accuracy"]
    assert found["all"]["value"] == 3.5 / 5 and found["all"]["n"] == 5 and found["all"]["prompts"] == 3
    assert found["macro"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["source"]["a"]["value"] == 1.0 and found["source"]["b"]["value"] == 0.25
    assert found["k"]["3"]["value"] == 1.0 and found["k"]["2"]["value"] == 0.25


def test_interval_of_a_share_is_near_the_normal_one() -> None:
    """80 of 100 prompts with one pair each: 0.8 +- 1.96 * 0.04."""
    found = bootstrap.ratio([1] * 80 + [0] * 20, [1] * 100, range(100), bootstrap.Resampling(resamples=4000))
    assert found.low == pytest.approx(0.8 - 0.0784, abs=0.015)
    assert found.high == pytest.approx(0.8 + 0.0784, abs=0.015)


def test_prompts_are_resampled_not_pairs() -> None:
    """Ten pairs of one prompt, all alike, say as much as one: the interval is that of the prompts."""
    few = bootstrap.ratio([1, 1, 1, 0] * 5, [1] * 20, range(20), HOW)
    many = bootstrap.ratio([1, 1, 1, 0] * 50, [1] * 200, [k % 20 for k in range(200)], HOW)
    assert (many.low, many.high) == (few.low, few.high)
    alone = bootstrap.ratio([1, 1, 1, 0] * 50, [1] * 200, range(200), HOW)
    assert alone.low is not None and few.low is not None and alone.low > few.low + 0.05


def test_groups_of_one_prompt_are_resampled_together() -> None:
    same = [group(1, 0, pairs=((0, 1),), prompt="p"), group(1, 0, pairs=((0, 1),), prompt="p"), group(1, 0)]
    assert records.prompt_numbers(same) == [0, 0, 1]


def test_an_interval_is_a_function_of_the_seed() -> None:
    args = ([1, 0, 1, 1, 0], [1] * 5, range(5))
    assert bootstrap.ratio(*args, HOW) == bootstrap.ratio(*args, HOW)


def test_all_right_is_no_certainty() -> None:
    found = bootstrap.ratio([1] * 10, [1] * 10, range(10), HOW, share=True)
    assert (found.low, found.high) == (pytest.approx(0.6915, abs=1e-4), 1.0)
    none = bootstrap.ratio([0] * 10, [1] * 10, range(10), HOW, share=True)
    assert (none.low, none.high) == (0.0, pytest.approx(0.3085, abs=1e-4))


def test_one_prompt_has_no_interval_and_none_no_value() -> None:
    assert bootstrap.ratio([1, 0], [1, 1], [4, 4], HOW).as_dict() == {
        "value": 0.5, "low": None, "high": None, "n": 2, "prompts": 1,
    }  # fmt: skip
    assert bootstrap.ratio([], [], [], HOW).value is None


# -------------------------------------------------------------------------------------------------------- calibration


def test_calibration_by_hand() -> None:
    found = calibration.calibration([math.log(4)] * 3 + [-math.log(4)])
    assert found is not None
    assert found["ece"] == pytest.approx(0.05) and found["brier"] == pytest.approx(0.19)
    assert found["log_loss"] == pytest.approx((3 * math.log(1.25) + math.log(5)) / 4)
    full = [b for b in found["bins"] if b["n"]]
    assert [(b["n"], round(b["confidence"], 9), b["accuracy"]) for b in full] == [(4, 0.8, 0.75)]
    assert found["ece_floor"] == pytest.approx(math.sqrt(2 / math.pi * 4 * 0.16) / 4)


def test_a_model_that_says_nothing_is_calibrated() -> None:
    found = calibration.calibration([0.0] * 6)
    assert found is not None and found["ece"] == 0 and found["brier"] == 0.25
    assert found["log_loss"] == pytest.approx(math.log(2))


def test_a_model_that_is_sure_and_wrong_is_not() -> None:
    found = calibration.calibration([-20.0] * 5)
    assert found is not None and found["ece"] == pytest.approx(1) and found["brier"] == pytest.approx(1)


def test_folding_equals_both_orders_with_half_the_weight() -> None:
    """ECE over 20 bins of [0, 1] of the set that holds every pair both ways."""
    random_ = random.Random(5)
    gaps = [random_.gauss(0.7, 1.5) for _ in range(500)]
    both = [(1 / (1 + math.exp(-d)), 1.0) for d in gaps] + [(1 / (1 + math.exp(d)), 0.0) for d in gaps]
    ece = 0.0
    for b in range(20):
        here = [(p, y) for p, y in both if int(p * 20) == b]
        ece += abs(sum(y - p for p, y in here)) / len(both)
    found = calibration.calibration(gaps)
    assert found is not None and found["ece"] == pytest.approx(ece)
    assert found["brier"] == pytest.approx(sum((p - y) ** 2 for p, y in both) / len(both))


def test_a_calibrated_model_shows_about_the_floor() -> None:
    random_ = random.Random(1)
    gaps = [random_.gauss(0, 2) for _ in range(4000)]
    seen = [abs(d) if random_.random() < 1 / (1 + math.exp(-abs(d))) else -abs(d) for d in gaps]
    found = calibration.calibration(seen)
    assert found is not None and 0.3 * found["ece_floor"] < found["ece"] < 2 * found["ece_floor"] < 0.04


def test_ties_by_hand() -> None:
    found = calibration.at_ties([0.1, -2.0], [1.0, -3.0])
    assert found == {"n": 2, "accuracy": 0.5, "gap": 1.05, "gap_strict": 2.0, "told_apart": 0.75}
    assert calibration.at_ties([], [1.0]) is None


def test_equal_labels_are_ties_unless_a_pair_says_otherwise() -> None:
    answers = [JudgedResponse(0.0, label=x) for x in (1, 1, 1, 0)]
    record = HeldOutGroup("a", 1, answers, pairs=[(2, 0)], ties=[(3, 1)])
    assert list(records.tied_places(record)) == [(0, 1), (1, 2), (1, 3)]


# ------------------------------------------------------------------------------------------------------------- biases


def test_slope_of_length_by_hand() -> None:
    """Demeaned by prompt: equal lengths add nothing, and a prompt's level is no slope."""
    one = HeldOutGroup("a", 1, [JudgedResponse(0, length=100), JudgedResponse(1, length=300)])
    other = HeldOutGroup("a", 1, [JudgedResponse(5, length=200), JudgedResponse(9, length=200)])
    far = HeldOutGroup("a", 1, [JudgedResponse(100, length=1000), JudgedResponse(101, length=1200)])
    assert biases.length_bias([one, other], [0, 1], HOW)["slope"]["value"] == pytest.approx(0.5)
    found = biases.length_bias([one, other, far], [0, 1, 2], HOW)["slope"]
    assert found["value"] == pytest.approx(0.5) and found["n"] == 4
    assert (found["low"], found["high"]) == (pytest.approx(0.5), pytest.approx(0.5))


def test_accuracy_where_the_longer_loses() -> None:
    """A model that likes length is right where the longer wins and wrong where it loses."""
    answers = [JudgedResponse(1, length=10), JudgedResponse(2, length=20), JudgedResponse(0, length=10)]
    found = biases.length_bias([HeldOutGroup("a", 1, answers, pairs=[(0, 1), (1, 2), (0, 2)])], [0], HOW)
    assert [found[k]["value"] for k in ("longer_loses", "longer_wins", "equal_length")] == [0, 1, 1]
    assert found["preferred_longer"]["people"]["value"] == 0.5
    assert found["preferred_longer"]["model"]["value"] == 1.0


def test_slope_between_equals_and_correlations() -> None:
    answers = [JudgedResponse(1, length=100, label=1), JudgedResponse(3, length=200, label=1),
               JudgedResponse(0, length=300, label=0)]  # fmt: skip
    found = biases.length_bias([HeldOutGroup("a", 1, answers)], [0], HOW)
    assert found["slope_at_ties"]["value"] == pytest.approx(2.0) and found["slope_at_ties"]["n"] == 1
    assert found["label_correlation"] == pytest.approx(-math.sqrt(3) / 2)
    assert found["correlation"] == pytest.approx(-100 / math.sqrt(20000 * (14 / 3)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Buy\n- milk\n- bread", True), ("1. one\n2. two", True), ("1) a\n2) b", True), ("1、一\n2、二", True),
        ("## Title\ntext", True), ("so **bold** it is", True), ("|a|b|\n|-|-|\n|1|2|", True),
        ("- only one", False), ("2 * 3 ** 2 - 1\n3.5 and 4", False), ("plain - and 1. so", False), ("", False),
        ("#hash\nno", False),
    ],
)  # fmt: skip
def test_what_counts_as_formatted(text: str, expected: bool) -> None:
    assert biases.formatted(text) is expected


def test_format_bias_by_hand() -> None:
    """People prefer plain text twice; the model prefers the list once; between equals the list gets 2 more."""
    plain, listed = JudgedResponse(1, text="so"), JudgedResponse(0, text="- a\n- b")
    rows = [
        HeldOutGroup("a", 1, [plain, listed], pairs=[(0, 1)]),
        HeldOutGroup("a", 1, [plain, replace(listed, score=4)], pairs=[(0, 1)]),
        HeldOutGroup("a", 1, [plain, replace(listed, score=3)], ties=[(0, 1)]),
        HeldOutGroup("a", 1, [plain, plain], pairs=[(0, 1)]),
    ]
    found = biases.format_bias(rows, [0, 1, 2, 3], HOW)
    assert [found[k]["value"] for k in ("people", "model", "excess", "gap_at_ties")] == [0, 0.5, 0.5, 2]
    assert found["people"]["n"] == 2 and found["formatted"] == 3 / 8


# ---------------------------------------------------------------------------------------------------------- agreement


def test_rank_correlations_by_hand() -> None:
    assert agreement.average_ranks([10, 30, 10]).tolist() == [1.5, 3, 1.5]
    assert agreement.spearman([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert agreement.kendall([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    assert agreement.kendall([1, 2, 3], [1, 1, 2]) == pytest.approx(2 / math.sqrt(6))
    assert agreement.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert agreement.spearman([1, 2], [4, 4]) is None and agreement.kendall([1, 2], [4, 4]) is None


def test_agreement_within_prompts_across_them_and_among_people() -> None:
    """Scores order answers rightly within each prompt, and the prompts wrongly."""
    nan = math.nan
    rows = [
        HeldOutGroup("a", 1, [JudgedResponse(11, (1, 8), label=1, grades=(2, 1)), JudgedResponse(10, (0, 9), label=0,
               grades=(1, 2))], pairs=[(0, 1)]),
        HeldOutGroup("a", 1, [JudgedResponse(1, (6, 7), label=1, grades=(9, nan)), JudgedResponse(0, (5, 6), label=0,
               grades=(8, nan))], pairs=[(0, 1)]),
    ]  # fmt: skip
    found = agreement.agreement(rows, [0, 1], HOW)
    assert found["labels"]["spearman"]["value"] == 1 and found["labels"]["kendall"]["n"] == 2
    first, second = found["grades"]
    assert first["kendall"]["value"] == 1 and first["across"] == pytest.approx(1) and first["n"] == 4
    assert second["kendall"]["value"] == 1 and second["n"] == 2
    assert found["pairs_and_grades"] == {"agree": 0, "same": 1, "against": 0, "by_grades": 0}
    weighed = agreement.agreement(rows, [0, 1], HOW, {"brief": 1.0, "kind": -1.0})
    assert weighed["pairs_and_grades"]["agree"] == 1, "2 - 1 above 1 - 2"
    assert [x["name"] for x in weighed["grades"]] == ["brief", "kind"]
    made = agreement.agreement([replace(r, by_grades=True) for r in rows], [0, 1], HOW)
    assert made["pairs_and_grades"] == {"agree": 0, "same": 0, "against": 0, "by_grades": 1}
    totals = [replace(r, responses=[replace(x, scores=()) for x in r.responses]) for r in rows]
    assert agreement.agreement(totals, [0, 1], HOW)["grades"][0]["across"] == pytest.approx(-0.6)


# ---------------------------------------------------------------------------------------------------------- best of n


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
