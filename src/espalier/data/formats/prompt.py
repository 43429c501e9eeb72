"""A prompt and its answer, strings or lists of messages, as a chat."""

from __future__ import annotations

from espalier.data.formats.common import Fields, blank, check_turns, empty_answer, first_key, missing, string, tools
from espalier.data.formats.format import Format
from espalier.data.formats.messages import message_list
from espalier.types import Chat, Consumes, Message, Origin

PROMPTS = ("prompt", "question", "query")
ANSWERS = ("completion", "response", "answer", "output")


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a row has a prompt and an answer."""
    return first_key(row, PROMPTS) is not None and first_key(row, ANSWERS) is not None


def read_prompt(row: Fields, origin: Origin) -> Chat:
    """A Chat of an optional `system` turn, the prompt and the answer. Raises RowError."""
    prompt_key, answer_key = one_of(row, PROMPTS), one_of(row, ANSWERS)
    messages = []
    system = string(row, ("system",), default="")
    if system:
        messages.append(Message("system", system))
    if isinstance(row[prompt_key], list):
        messages += message_list(row[prompt_key], prompt_key)
    else:
        prompt = string(row, (prompt_key,))
        if not prompt.strip():
            raise blank("empty prompt", prompt_key, prompt, "a text to answer")
        messages.append(Message("user", prompt))
    if isinstance(row[answer_key], list):
        messages += message_list(row[answer_key], answer_key)
    else:
        answer = string(row, (answer_key,))
        if not answer.strip():
            raise empty_answer(answer_key, answer)
        messages.append(Message("assistant", answer))
    return Chat(check_turns(messages, f"{prompt_key} + {answer_key}"), tools(row), origin)


def one_of(row: Fields, keys: tuple[str, ...]) -> str:
    """The first of `keys` that the row has. Raises RowError if it has none of them."""
    key = first_key(row, keys)
    if key is None:
        raise missing(keys[0], row, " or ".join(keys))
    return key


FORMAT = Format("prompt", read_prompt, looks)
