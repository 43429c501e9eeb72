"""What a row of a task says beside its prompt, as `espalier inspect` shows it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from espalier.types import Task

LONGEST = 160
"""Characters of a value that are shown."""


class Shown(NamedTuple):
    """A task that is shown, the rewards that grade it, and the tokens of its prompt."""

    task: Task
    graders: Sequence[str]
    tokens: int


def summary(tasks: Sequence[Shown]) -> str:
    """How many prompts and tokens are shown, how many have an answer, and who grades how many.

    >>> summary([Shown(Task((), answer="72"), ["numeric", "length"], 9), Shown(Task(()), ["length"], 3)])
    '2 prompts to answer, 12 tokens; 1 with an answer; graded by length (2), numeric (1)'
    """
    prompts = "1 prompt" if len(tasks) == 1 else f"{len(tasks):,} prompts"
    answers = sum(bool(shown.task.answer) for shown in tasks)
    parts = [f"{prompts} to answer, {sum(shown.tokens for shown in tasks):,} tokens", f"{answers:,} with an answer"]
    graders = Counter(name for shown in tasks for name in shown.graders)
    if graders:
        parts.append("graded by " + ", ".join(f"{name} ({count:,})" for name, count in graders.most_common()))
    return "; ".join(parts)


def details(task: Task, graders: Sequence[str]) -> list[str]:
    """Lines about a task: the rewards that grade it, answer, verifier, facts, tools and columns; no line for what it
    does not have.

    >>> details(Task((), answer="72", facts={"choices": ["a", "b"]}, columns={"level": 3}), ["numeric"])
    ['graded by: numeric', 'answer: 72', 'facts: choices ["a", "b"]', 'columns: level 3']
    """
    lines = []
    if graders and tuple(graders) != (task.verifier,):
        lines.append(f"graded by: {', '.join(graders)}")
    for name, text in (("answer", task.answer), ("verifier", task.verifier)):
        if text:
            lines.append(f"{name}: {_clipped(text)}")
    for name, values in (("facts", task.facts), ("columns", task.columns)):
        if values:
            lines.append(f"{name}: " + ", ".join(f"{key} {_clipped(_shown(value))}" for key, value in values.items()))
    if task.tools:
        lines.append("tools: " + ", ".join(str(tool.get("function", {}).get("name", "?")) for tool in task.tools))
    return lines


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _clipped(text: str) -> str:
    """A text on one line, without its end if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}... ({len(line):,} characters)"
