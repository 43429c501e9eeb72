"""A prompt and its answer: strings or lists of messages, as a chat or, without chat markup, as a completion."""

from __future__ import annotations

from espalier.data.formats.common import Fields, check_turns, empty_answer, first_key, missing, string, tools
from espalier.data.formats.messages import message_list
from espalier.errors import RowError
from espalier.types import Chat, Completion, Message, Origin

PROMPTS = ("prompt", "question", "query")
ANSWERS = ("completion", "response", "answer", "output")


def read_prompt(row: Fields, origin: Origin) -> Chat:
    """A Chat of an optional `system` turn, the prompt and the answer. Raises RowError."""
    asked, answered = _key(row, PROMPTS), _key(row, ANSWERS)
    messages = []
    if system := string(row, ("system",), default=""):
        messages.append(Message("system", system))
    if isinstance(row[asked], list):
        messages += message_list(row[asked], asked)
    elif string(row, (asked,)).strip():
        messages.append(Message("user", row[asked]))
    else:
        raise RowError("empty prompt", field=asked, got=f"content {row[asked][:20]!r}", expected="a text to answer")
    if isinstance(row[answered], list):
        messages += message_list(row[answered], answered)
    elif string(row, (answered,)).strip():
        messages.append(Message("assistant", row[answered]))
    else:
        raise empty_answer(answered, row[answered])
    return Chat(check_turns(messages, f"{asked} + {answered}"), tools(row), origin)


def read_completion(row: Fields, origin: Origin) -> Completion:
    """A Completion of two strings, which are joined as they are. The prompt may be empty. Raises RowError."""
    prompt, completion = string(row, (_key(row, PROMPTS),)), string(row, (answered := _key(row, ANSWERS),))
    if not completion.strip():
        raise empty_answer(answered, completion)
    return Completion(prompt, completion, origin)


def _key(row: Fields, keys: tuple[str, ...]) -> str:
    key = first_key(row, keys)
    if key is None:
        raise missing(keys[0], row, " or ".join(keys))
    return key
