"""Judged rows as the formats read them, for tests by eye."""

from __future__ import annotations

from typing import Any

from espalier.data.formats import convert
from espalier.types import Origin, Ranking

HERE = Origin("file", 7)


ASK = {"role": "user", "content": "Q"}


GOOD, BAD = {"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no"}


Said = list[tuple[str, int | None, tuple[float | None, ...], bool | None]]


def one(name: str, row: dict[str, Any]) -> Ranking:
    (example,) = convert(name, row, HERE)
    assert isinstance(example, Ranking) and example.origin == HERE
    return example


def prompt(example: Ranking) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in example.prompt]


def said(example: Ranking) -> Said:
    assert all(r.message.role == "assistant" for r in example.responses)
    return [(r.message.content, r.rank, r.scores, r.good) for r in example.responses]


PAIR: Said = [("yes", 0, (), None), ("no", 1, (), None)]
