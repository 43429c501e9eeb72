"""Ranked lists, each by an example that can be checked by eye."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.data.formats import sniff
from rankings import Said, one, prompt, said


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        (
            {"responses": ["a", "b", "c"], "ranks": [2, 1, 2]},
            [("a", 1, (), None), ("b", 0, (), None), ("c", 1, (), None)],
        ),
        ({"answers": ["a", "b"], "scores": [0.5, None]}, [("a", None, (0.5,), None), ("b", None, (None,), None)]),
        ({"completions": ["a", "b"], "good": [True, 0]}, [("a", None, (), True), ("b", None, (), False)]),
        (
            {"response": ["a", "b"], "score": [True, False], "pred_score": [[1.5], [-2]]},
            [("a", None, (1.5,), True), ("b", None, (-2.0,), False)],
        ),
        (
            {"responses": [{"text": "a", "rank": 0, "score": 9}, {"text": "b", "rank": None}]},
            [("a", 0, (9.0,), None), ("b", None, (None,), None)],
        ),
        (
            {"responses": [{"text": "a", "correct": True}, {"response": "b", "label": False}]},
            [("a", None, (), True), ("b", None, (), False)],
        ),
    ],
)
def test_lists_with_judgements_inside_or_beside(judged: dict[str, Any], expected: Said) -> None:
    row = {"prompt": "Q", **judged}
    assert sniff(row) == sniff(row, "ranking") == "ranked"
    assert prompt(one("ranked", row)) == [("user", "Q")] and said(one("ranked", row)) == expected


def test_scores_of_several_dimensions_have_names() -> None:
    own = {"prompt": "Q", "responses": [{"text": "a", "scores": {"x": 1, "y": 2}}, {"text": "b", "scores": {"x": 3}}]}
    beside = {"prompt": "Q", "responses": ["a", "b"], "scores": [{"x": 1, "y": 2}, {"x": 3}]}
    for row in (own, beside):
        assert one("ranked", row).dimensions == ("x", "y")
        assert [r.scores for r in one("ranked", row).responses] == [(1.0, 2.0), (3.0, None)]


def test_ranks_and_scores_may_agree_and_a_tie_may_have_other_scores() -> None:
    row = {"prompt": "Q", "responses": ["a", "b", "c"], "ranks": [1, 1, 2], "scores": [2, 3, 1]}
    assert said(one("ranked", row)) == [("a", 0, (2.0,), None), ("b", 0, (3.0,), None), ("c", 1, (1.0,), None)]
    flags = {"prompt": "Q", "response": ["a", "b"], "score": [True, False]}
    assert said(one("ranked", flags)) == [("a", None, (), True), ("b", None, (), False)]


def test_authors_are_kept() -> None:
    row = {
        "prompt": "Q",
        "responses": [{"text": "a", "rank": 1, "model": "m"}, {"text": "b", "rank": 2, "author": "n"}],
    }
    assert [r.author for r in one("ranked", row).responses] == ["m", "n"]
    beside = {"prompt": "Q", "responses": ["a", "b"], "ranks": [1, 2], "models": ["m", None]}
    assert [r.author for r in one("ranked", beside).responses] == ["m", ""]


def test_judged_solutions_are_lists_or_steps_as_the_run_asks() -> None:
    row = {"question": "Q", "answer": "4", "query": "Q", "response": ["a", "b"], "score": [True, False]}
    assert (sniff(row), sniff(row, "ranking"), sniff(row, "steps")) == ("ranked", "ranked", "steps")
    steps = {"input": "Q", "steps": ["a", "b"], "mistake_index": 1}
    assert sniff(steps) == sniff(steps, "ranking") == "steps"
    assert sniff({"prompt": "Q", "responses": ["a", "b"]}) is None  # nobody judged
