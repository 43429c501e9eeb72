"""Transcripts: the turns of a conversation in one string, each behind the name of its speaker."""

from __future__ import annotations

import re
from collections.abc import Sequence

from espalier.types import Message, Role

_HUMAN = ("Human", "User", "HUMAN", "USER", "human", "user")
_ASSISTANT = ("Assistant", "ASSISTANT", "assistant", "AI", "Bot", "Chatbot", "GPT")
_RESULT = "FUNCTION RESPONSE"
_END = "<|endoftext|>"
"""What stands behind each answer of Glaive's transcripts."""
_ROLES: dict[str, Role] = {"human": "user", "user": "user", "function response": "tool"}
# `### ` before the names, or not; the speakers of one transcript are written alike.
_START = re.compile(rf"\s*(?P<mark>#{{0,4}} ?)(?P<human>{'|'.join(_HUMAN)}):")
# What stands before the first turn of a prompt that waits for its answer.
_LEAD = re.compile(
    rf"(?P<system>.+?)\n[ \t]*\n(?P<turns>\s*(?:{'|'.join(_HUMAN)}):.*\n(?:{'|'.join(_ASSISTANT)}):)\s*", re.DOTALL
)


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
    mark = re.escape(start["mark"])
    borders = [r"\n[ \t]*\n\s*", r"\n\s*"]
    if start["mark"].strip():
        borders.append(r"\s*")
    for border in borders:
        for assistant in _ASSISTANT:
            if _is_like(human, assistant) and re.search(f"{border}{mark}{assistant}:", text):
                return _split(text, f"(?:\\A\\s*|{border}){mark}({human}|{assistant}|{_RESULT}):")
    return None


def _is_like(human: str, assistant: str) -> bool:
    """Whether the names of two speakers are written alike: both in capitals, in small letters, or neither."""
    if human.islower() or assistant.islower():
        return human.islower() and assistant.islower()
    return assistant in ("AI", "GPT") or human.isupper() == assistant.isupper()


def _split(text: str, border: str) -> list[Message]:
    _, *parts = re.split(border, text)
    turns = []
    for name, words in zip(parts[::2], parts[1::2], strict=True):
        role = _ROLES.get(name.lower(), "assistant")
        words = words.strip()
        if role == "assistant":
            words = words.removesuffix(_END).rstrip()
        turns.append(Message(role, words))
    if turns[-1].role == "assistant" and not turns[-1].content:
        turns.pop()
    return turns


def prompt_of(text: str) -> list[Message] | None:
    r"""The turns of a transcript that waits for an answer, so that it is a prompt; None for any other text.

    What stands before its first turn is the system turn, if the text ends in the name of the assistant.

    >>> [(m.role, m.content) for m in prompt_of("Be kind.\n\nHuman: Hi\n\nAssistant:")]
    [('system', 'Be kind.'), ('user', 'Hi')]
    """
    lead = None if _START.match(text) else _LEAD.fullmatch(text)
    if lead is not None:
        later = turns_of(lead["turns"])
        if later and later[-1].role == "user":
            return [Message("system", lead["system"].strip()), *later]
    turns = turns_of(text)
    return turns if turns and turns[-1].role == "user" else None


def whole(text: str) -> list[Message] | None:
    """The turns of a transcript whose last turn is an answer; None for any other text."""
    turns = turns_of(text)
    return turns if turns and turns[-1].role == "assistant" else None


def stripped(answer: str, prompt: Sequence[Message]) -> str:
    """An answer that goes on a transcript of these turns, without the space and the name before it."""
    return re.sub(rf"\A\s*(?:{'|'.join(_ASSISTANT)}):", "", answer).strip() if prompt else answer
