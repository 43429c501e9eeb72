"""What is printed of rollouts."""

from __future__ import annotations

from typing import Any

from espalier.commands.rollout_text import LONGEST, examples, lines, shortened
from espalier.workbench.bootstrap import Resampling
from espalier.workbench.rollouts import Answer, summary


def record(row: int, score: float | None, *, invalid: str = "", error: str = "", k: int = 0) -> dict[str, Any]:
    return {
        "task": {"row": row, "source": "t", "line": row},
        "k": k,
        "score": score,
        "invalid": invalid,
        "error": error,
    }


def test_examples_are_the_best_and_the_worst_of_different_tasks() -> None:
    records = [
        record(0, 0.0),
        record(0, 1.0, k=1),
        record(1, 1.0),
        record(1, 1.0, k=1),
        record(2, 1.0),
        record(3, -1.0, invalid="no tag"),
        record(3, None, error="math: died"),
        record(4, 0.5),
    ]
    best, worst, invalid, failed = examples(records, 2)
    assert [(r["task"]["row"], r["k"]) for r in best] == [(0, 1), (1, 0)]
    assert [r["score"] for r in worst] == [-1.0, 0.0]
    assert (invalid, failed) == ([records[5]], [records[6]])


def test_equal_scores_have_no_worst() -> None:
    best, worst, _, _ = examples([record(0, 0.0), record(1, 0.0)], 2)
    assert (len(best), worst) == (2, [])


def test_counts_are_said_in_words() -> None:
    answers = [
        Answer((0,), 1.0, stop="stop", length=4),
        Answer((0,), 0.0, invalid="no tag", stop="length", length=8),
        Answer((1,), None, error="math: died", stop="stop", length=3),
        Answer((1,), 0.0, stop="stop", length=5),
    ]
    figures = {**summary(answers, 1.0, Resampling()), "tokens_per_second": 1234.4}
    assert lines(figures) == [
        "tokens an answer: mean 5.0, median 4.5, 90 % up to 8, longest 8; ended by stop 75.0%, length 25.0%",
        "1 answers did not qualify: no tag (1)",
        "1 answers could not be graded, and are in no figure: math: died (1)",
        "sampled 1,234 tokens/s",
    ]
    assert lines(summary(answers[:1], 1.0, Resampling()))[1:] == [
        "every answer that was graded qualified",
        "every answer could be graded",
    ]
    assert lines(summary(answers, None, Resampling()))[-1].startswith("pass@k: the rewards declare no best score")


def test_long_texts_lose_their_middle() -> None:
    assert shortened("x" * LONGEST) == "x" * LONGEST
    assert shortened("a" * 1000 + "b" * 1000) == "a" * 300 + " [... 1,400 characters ...] " + "b" * 300
