"""pass@k, best of k and the figures of rollouts."""

from __future__ import annotations

import itertools
import statistics

import pytest

from espalier.workbench.bootstrap import Resampling
from espalier.workbench.rollouts import Answer, answer_of, best_of_k, pass_at_k, sizes, summary

QUICK = Resampling(seed=1, resamples=200)


@pytest.mark.parametrize("n", [1, 4, 6])
def test_pass_at_k_is_the_share_of_all_subsets_with_a_right_answer(n: int) -> None:
    for right, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = [any(i < right for i in chosen) for chosen in itertools.combinations(range(n), k)]
        assert pass_at_k(n, right, k) == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


def test_best_of_k_is_the_mean_over_all_subsets() -> None:
    scores = [0.5, -1.0, 2.0, 2.0, 0.25]
    for k in range(1, 6):
        subsets = [max(chosen) for chosen in itertools.combinations(scores, k)]
        assert best_of_k(scores, k) == pytest.approx(statistics.fmean(subsets), abs=1e-12)


def test_sizes_are_powers_of_two_and_the_most() -> None:
    assert [sizes(most) for most in (0, 1, 2, 3, 8)] == [[], [1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]


def made(task: int, *scores: float | None, **fields: object) -> list[Answer]:
    """Answers to one task; None is one that could not be graded."""
    return [
        Answer((task,), x, {"math": x} if x is not None else {}, error="" if x is not None else "math: died", **fields)  # type: ignore[arg-type]
        for x in scores
    ]


def test_figures_by_hand() -> None:
    """Three tasks of four answers: 2 right, none right, 1 right of 2 with two errors."""
    answers = [
        *made(0, 1.0, 1.0, 0.0, 0.0, length=10),
        *made(1, 0.0, 0.0, 0.0, 0.0, length=20, stop="length", invalid="no tag"),
        *made(2, 1.0, None, 0.0, None, length=3),
    ]
    figures = summary(answers, 1.0, QUICK)
    assert {name: figures[name] for name in ("tasks", "answers", "errors", "invalid")} == {
        "tasks": 3,
        "answers": 12,
        "errors": 2,
        "invalid": 4,
    }
    assert (figures["causes"], figures["reasons"]) == ({"math: died": 2}, {"no tag": 4})
    assert figures["reward"]["value"] == figures["rewards"]["math"]["value"] == pytest.approx(3 / 10)
    assert figures["pass"]["1"]["value"] == pytest.approx((0.5 + 0 + 0.5) / 3)
    # Task 0: one of six pairs has no right answer.
    assert figures["pass"]["2"]["value"] == pytest.approx((5 / 6 + 0 + 1) / 3)
    # Task 2 has too few answers.
    assert (figures["pass"]["4"]["value"], figures["pass"]["4"]["prompts"]) == (pytest.approx(1 / 2), 2)
    assert figures["best_of"]["2"]["value"] == pytest.approx(figures["pass"]["2"]["value"])
    shares = [figures[name]["value"] for name in ("dead", "never", "always")]
    assert shares == pytest.approx([1 / 3, 1 / 3, 0.0])
    # None of three: the exact bound is 1 - 0.025^(1/3).
    assert figures["always"]["high"] == pytest.approx(1 - 0.025 ** (1 / 3))
    assert figures["length"] == {"mean": 11.0, "median": 10.0, "p90": 20, "max": 20}
    assert figures["stops"] == {"stop": 8, "length": 4}
    low, value, high = (figures["pass"]["1"][name] for name in ("low", "value", "high"))
    assert 0 <= low < value < high <= 0.5


def test_without_a_best_score_nothing_is_called_right() -> None:
    figures = summary(made(0, 0.5, 2.5), None, QUICK)
    assert "pass" not in figures and "never" not in figures
    assert figures["best_of"]["2"]["value"] == 2.5


def test_figures_of_nothing_and_of_errors_alone() -> None:
    assert summary([], 1.0, QUICK)["reward"]["value"] is None
    figures = summary(made(0, None, None), 1.0, QUICK)
    assert (figures["errors"], figures["reward"]["value"], figures["pass"]) == (2, None, {})


def test_an_answer_is_read_from_its_line() -> None:
    line = {
        "task": {"row": 3, "source": "a", "line": 4},
        "score": 1.0,
        "parts": {"x": 1.0},
        "invalid": "",
        "error": "",
        "stop": "stop",
        "length": 7,
        "ids": [1],
    }
    assert answer_of(line) == Answer(("a", 4, 3), 1.0, {"x": 1.0}, "", "", "stop", 7)
