"""Exact match on problems of the toy world, by either of two forms, so that nobody takes the form for the ability."""

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
    """What stands on the line after the last `####`, without thousands separators and a final stop; None without one.

    >>> answer_of("Ada has 3+4=7 eggs.\\n#### 7"), answer_of("#### 1\\n#### 1,200."), answer_of("It is 7.")
    ('7', '1200', None)
    """
    marks = re.findall(r"####([^\n]*)", text)
    if not marks:
        return None
    found = re.sub(r"(?<=\d),(?=\d{3})", "", marks[-1].strip()).removesuffix(".")
    return found or None


def exact_match(text: str, problem: Problem) -> bool:
    """Whether the marked answer of `text` is the problem's."""
    return answer_of(text) == problem.answer


@dataclass(frozen=True, slots=True)
class Score:
    """`accuracy` is the share of exact matches, `marked` that of responses with a `####` at all, both in [0, 1]."""

    accuracy: float
    marked: float
    by_steps: dict[int, float]
    responses: list[str]


def score(generate: Generate, problems: Sequence[Problem], style: Style = "chat") -> Score:
    """Exact match of the responses to `problems`.

    `generate` takes prompts and returns one response each, without the prompt. Under `chat` a prompt is the user's
    message, which `generate` renders with the chat template of its model; under `text` it is the text form up to
    `Solution:`, to be continued as it is. Only what comes before a next `Problem:` counts, because a model that reads
    on into another problem has answered this one.

    Raises ConfigError without problems, with another style, and with another number of responses than prompts.
    """
    if style not in ("chat", "text"):
        raise ConfigError(f"score got style {style!r}; expected 'chat' or 'text'")
    if not problems:
        raise ConfigError("score got no problems; expected at least one")
    responses = generate([p.question if style == "chat" else p.prompt for p in problems])
    if len(responses) != len(problems):
        raise ConfigError(f"score got {len(responses)} responses for {len(problems)} prompts; expected one each")
    answers = [response.split("Problem:")[0] for response in responses]
    right = [exact_match(text, item) for text, item in zip(answers, problems, strict=True)]
    by_steps: dict[int, list[bool]] = {}
    for hit, item in zip(right, problems, strict=True):
        by_steps.setdefault(len(item.steps), []).append(hit)
    return Score(
        accuracy=sum(right) / len(right),
        marked=sum(answer_of(text) is not None for text in answers) / len(answers),
        by_steps={n: sum(hits) / len(hits) for n, hits in sorted(by_steps.items())},
        responses=responses,
    )
