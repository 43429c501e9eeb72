"""Transcripts: the turns of a conversation in one string, each behind the name of its speaker."""

from __future__ import annotations

import re
from collections.abc import Sequence

from espalier.types import Message, Role

_HUMAN = ("Human", "User", "HUMAN", "USER")
_ASSISTANT = ("Assistant", "ASSISTANT")
_ROLES: dict[str, Role] = {"human": "user", "user": "user", "assistant": "assistant"}
# `### ` before the names, or not; the speakers of one transcript are written alike.
_START = re.compile(rf"\s*(?P<mark>#{{0,4}} ?)(?P<human>{'|'.join(_HUMAN)}):")


def turns_of(text: str) -> list[Message] | None:
    r"""The turns of a transcript; None if the text is none.

    A transcript begins with a person (`Human:`, `User:`, `### Human:` ...) and has an assistant named in the same way.
    Turns begin after a blank line; if the assistant never does, at the begin of a line, or, with a mark such as `###`,
    anywhere. Space around a turn is not part of it. An empty assistant turn at the end, where the answer is to be
    written, is left out.

    >>> [(m.role, m.content) for m in turns_of("\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Bye\n\nAssistant:")]
    [('user', 'Hi'), ('assistant', 'Hello!'), ('user', 'Bye')]
    >>> turns_of("Human: what does this word mean?")
    """
    start = _START.match(text)
    if start is None:
        return None
    human = start["human"]
    assistant = _ASSISTANT[human.isupper()]
    mark = re.escape(start["mark"])
    borders = [r"\n[ \t]*\n\s*", r"\n\s*"]
    if start["mark"].strip():
        borders.append(r"\s*")
    for border in borders:
        if re.search(f"{border}{mark}{assistant}:", text):
            return _split(text, f"(?:\\A\\s*|{border}){mark}({human}|{assistant}):")
    return None


def _split(text: str, border: str) -> list[Message]:
    _, *parts = re.split(border, text)
    turns = []
    for name, words in zip(parts[::2], parts[1::2], strict=True):
        turns.append(Message(_ROLES[name.lower()], words.strip()))
    if turns[-1].role == "assistant" and not turns[-1].content:
        turns.pop()
    return turns


def prompt_of(text: str) -> list[Message] | None:
    """The turns of a transcript that waits for an answer, so that it is a prompt; None for any other text."""
    turns = turns_of(text)
    return turns if turns and turns[-1].role == "user" else None


def whole(text: str) -> list[Message] | None:
    """The turns of a transcript whose last turn is an answer; None for any other text."""
    turns = turns_of(text)
    return turns if turns and turns[-1].role == "assistant" else None


def stripped(answer: str, prompt: Sequence[Message]) -> str:
    """An answer that goes on a transcript of these turns, without the space and the name before it."""
    return re.sub(rf"\A\s*(?:{'|'.join(_ASSISTANT)}):", "", answer).strip() if prompt else answer
