"""Exact match on problems of the toy world, asked in either of two forms: a model may fail at the form alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from espalier.errors import ConfigError
from espalier.toy.problems import Problem

Generate = Callable[[list[str]], list[str]]
Style = Literal["chat", "text"]


def answer_of(text: str) -> str | None:
    """The rest of the line after the last `####`, without thousands separators and a final full stop; None without it.

    >>> answer_of("Ada has 3+4=7 eggs.\\n#### 7"), answer_of("#### 1\\n#### 1,200."), answer_of("It is 7.")
    ('7', '1200', None)
    """
    marks = re.findall(r"####([^\n]*)", text)
    if not marks:
        return None
    answer = re.sub(r"(?<=\d),(?=\d{3})", "", marks[-1].strip()).removesuffix(".")
    return answer or None


def exact_match(text: str, problem: Problem) -> bool:
    """Whether the marked answer of `text` is the problem's."""
    return answer_of(text) == problem.answer


@dataclass(frozen=True, slots=True)
class Score:
    """`accuracy` is the share of exact matches, `by_steps` the same by the problems' number of steps, `marked` that of
    responses with a `####` at all; all are in [0, 1]."""

    accuracy: float
    marked: float
    by_steps: dict[int, float]
    responses: list[str]


def score(generate: Generate, problems: Sequence[Problem], style: Style = "chat") -> Score:
    """Exact match of the responses to `problems`.

    `generate` takes prompts and returns one response each, without the prompt. With style `chat` a prompt is the user's
    message, which `generate` renders with the chat template of its model; with `text` it is the text form up to
    `Solution:`, to be continued as it is. Text after a next `Problem:` does not count: a model that goes on with
    another problem has answered this one.

    Raises ConfigError without problems, for another style, and if the number of responses is not that of the prompts.
    """
    if style not in ("chat", "text"):
        raise ConfigError(f"score got style {style!r}; expected 'chat' or 'text'")
    if not problems:
        raise ConfigError("score got no problems; expected at least one")
    responses = generate([item.question if style == "chat" else item.prompt for item in problems])
    if len(responses) != len(problems):
        raise ConfigError(f"score got {len(responses)} responses for {len(problems)} prompts; expected one each")
    answers = [response.split("Problem:")[0] for response in responses]
    right = [exact_match(text, item) for text, item in zip(answers, problems, strict=True)]
    marked = [answer_of(text) is not None for text in answers]
    by_steps: dict[int, list[bool]] = {}
    for match, item in zip(right, problems, strict=True):
        by_steps.setdefault(len(item.steps), []).append(match)
    return Score(
        accuracy=_share(right),
        marked=_share(marked),
        by_steps={steps: _share(by_steps[steps]) for steps in sorted(by_steps)},
        responses=responses,
    )


def _share(marks: Sequence[bool]) -> float:
    """The share that is True."""
    return sum(marks) / len(marks)
