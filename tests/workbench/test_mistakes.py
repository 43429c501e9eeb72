"""First mistakes and steps, against numbers counted by hand."""

from __future__ import annotations

import random

import pytest

from espalier.workbench.bootstrap import Resampling
from espalier.workbench.mistakes import choose_threshold, first_error, steps
from espalier.workbench.solutions import Solved
from solutions import HOW, five, solved, values

KINDS = ("accuracy", "erroneous", "correct", "f1")


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
