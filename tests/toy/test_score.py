"""The score of the toy world."""

from collections import Counter

import pytest

from espalier.errors import ConfigError
from espalier.toy import (
    answer_of,
    exact_match,
    problem,
    problems,
    score,
)


def test_the_answer_is_what_follows_the_last_mark() -> None:
    assert answer_of("3+4=7\n#### 7") == "7"
    assert answer_of("#### 5\nno, wait\n#### 7.\nDone") == "7"
    assert answer_of("#### 1,200") == "1200"
    assert answer_of("It is 7.") is None
    assert answer_of("#### ") is None
    item = problem(0)
    assert exact_match(item.text, item)
    assert not exact_match(item.text + "0", item)
    assert not exact_match(item.answer, item)


def test_score_counts_what_a_solver_gets_right() -> None:
    asked = problems(40, seed=2, split="test")
    solver = {item.question: item.solution for item in asked[:10]} | {item.prompt: item.solution for item in asked[:20]}

    def generate(prompts: list[str]) -> list[str]:
        return [solver.get(prompt, "I do not know.") for prompt in prompts]

    assert score(generate, asked, "chat").accuracy == 0.25
    text = score(generate, asked, "text")
    assert text.accuracy == text.marked == 0.5
    lengths = Counter(len(item.steps) for item in asked)
    assert sum(text.by_steps[n] * lengths[n] for n in lengths) == pytest.approx(20)
    # A model that reads on into another problem has answered this one.
    assert score(lambda ps: [r + "\n\nProblem:\nx\n#### 1" for r in generate(ps)], asked, "text").accuracy == 0.5
    with pytest.raises(ConfigError, match="1 responses for 40 prompts"):
        score(lambda prompts: [""], asked)
    with pytest.raises(ConfigError, match="no problems"):
        score(generate, [])
