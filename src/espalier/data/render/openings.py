"""Turns that do not begin as their generation prompt does: what a sampler is given and what the template writes are
put together again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from espalier.errors import RowError

THOUGHT = re.compile(r"(?:[<\[]\|?/?(?:think|thinking|thought|reasoning|(?:start|end)_thinking)\|?[>\]]\s*)+\Z", re.I)
"""What a generation prompt may end in so that the model thinks, or does not."""
CLOSE = "</think>"
_OPEN = "<think>"
SPACED = "answers behind a generation prompt that has other white space than the template's turns"
THINKING = "answers behind a generation prompt that opens their reasoning, which the template's turns leave out"
BARE = "answers without reasoning, trained without the opening of reasoning that the generation prompt ends in"


def opens_thought(prompt: str) -> bool:
    """Whether a generation prompt ends in the opening of reasoning."""
    opening = THOUGHT.search(prompt)
    return opening is not None and CLOSE not in opening[0]


class Opened(NamedTuple):
    """The conversation through a turn, where the turn starts in it, and what was done to it."""

    text: str
    start: int
    note: str


def opened_turn(before: str, prompt: str, text: str, content: str, reasoning: str) -> Opened | None:
    """The turn at the end of `text`, which does not begin with `prompt`; None if the two cannot be put together.

    before: the conversation without the turn and without a generation prompt. content, reasoning: what the turn says.

    If the two differ in white space alone, the turn stands behind the prompt. If the prompt ends in the opening of
    reasoning and the turn lacks that, a turn with reasoning stands behind the prompt, in the words in which a model
    goes on there, and one without begins where the opening would.
    """
    at = _spaced(prompt, text)
    if at is not None:
        return Opened(prompt + text[at:], len(prompt), SPACED)
    opening = THOUGHT.search(prompt)
    if opening is None or opening.start() <= len(before) or not text.startswith(prompt[: opening.start()]):
        return None
    start = opening.start()
    thought, closed, answer = content.rpartition(CLOSE)
    if not closed and not reasoning:
        return Opened(text, start, BARE)
    if CLOSE in opening[0]:  # the prompt says that there is no reasoning
        return None
    end = _behind(text, start, (content, answer))
    if end is None:
        return None
    if reasoning:
        thought, answer = reasoning, f"\n\n{content.lstrip()}" if content.strip() else ""
        closed = f"\n{CLOSE}"
    thought = thought.lstrip().removeprefix(_OPEN).lstrip()
    return Opened(f"{prompt}{thought}{closed}{answer}{text[end:]}", len(prompt), THINKING)


def check_thought(message: Mapping[str, Any], turn: str, index: int) -> None:
    """Raise RowError if a template left out the reasoning of a trained turn, in the content or beside it."""
    thoughts = [message.get("reasoning_content") or ""]
    thought, closed, _ = message["content"].rpartition(CLOSE)
    if closed:
        thoughts.append(thought.lstrip().removeprefix(_OPEN))
    written = _squash(turn)
    for thought in thoughts:
        if _squash(thought) not in written:
            raise RowError(
                "chat template drops reasoning",
                field=f"messages[{index}]",
                got=f"a turn that begins with {turn[:40]!r}",
                expected=f"{thought.strip()[:40]!r} in it",
                fix="Choose another --template, or leave such rows out with --on-bad-row skip",
            )


def _squash(text: str) -> str:
    return "".join(text.split())


def _spaced(prompt: str, text: str) -> int | None:
    """Where `text` goes on behind `prompt`, if it begins with that but for white space, which it must not begin with
    there; else None."""
    at = 0
    for char in prompt:
        if char.isspace():
            continue
        while at < len(text) and text[at].isspace():
            at += 1
        if text[at : at + 1] != char:
            return None
        at += 1
    return at + len(text[at:]) - len(text[at:].lstrip())


def _behind(text: str, start: int, answers: Sequence[str]) -> int | None:
    """Where `text` goes on behind the first of the answers that it holds at `start`, white space around it aside."""
    at = start + len(text[start:]) - len(text[start:].lstrip())
    for answer in answers:
        for place, piece in ((start, answer), (at, answer.strip())):
            if text.startswith(piece, place):
                return place + len(piece)
    return None
