"""A prompt and its answer, strings or lists of messages, as a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from espalier.data.columns.watched import peek
from espalier.data.formats import transcripts
from espalier.data.formats.common import (
    Fields,
    blank,
    check_turns,
    empty_answer,
    first_key,
    missing,
    string,
    wrong_type,
)
from espalier.data.formats.format import Format
from espalier.data.formats.lead import (
    answer_of,
    context_of,
    is_texts,
    tools_of,
    turns_with_context,
    with_context,
    with_history,
    with_system,
)
from espalier.data.formats.messages import KEYS as TURNS
from espalier.data.formats.messages import decoded_turns, is_turns
from espalier.data.formats.sharegpt import turns
from espalier.errors import RowError
from espalier.types import Chat, Consumes, Message, Origin

QUESTIONS = ("prompt", "question", "query", "problem")
PROMPTS = (*QUESTIONS, "input", "inputs", "context")
ASKS = (*QUESTIONS, "instruction", *TURNS, "trajectory", "input", "inputs", "context")
"""Where the prompt of a judged answer may stand. `context` and `input` are prompts if nothing else is."""
ANSWERS = (
    *("completion", "response", "attempt", "generated_solution", "solution", "answer", "output"),
    *("target", "targets", "answers"),
)
"""A worked solution comes before an answer, which beside it is the result alone."""
SOURCE, TARGET = "source", "target"


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a row has a prompt and an answer, which is a text, texts or turns."""
    keys = keys_of(row)
    if keys is None:
        return False
    answer = peek(row, keys[1])
    # Objects of another kind are several answers, or parts of one.
    parts = answer if isinstance(answer, list) else [answer]
    return all(first_key(part, ("role", "from")) for part in parts if isinstance(part, dict))


def keys_of(row: Fields) -> tuple[str, str] | None:
    """Under which keys a row has its prompt and its answer; None if it lacks one of them."""
    answer = first_key(row, ANSWERS)
    prompt = first_key(row, PROMPTS)
    if answer is None:
        return None
    # Elsewhere a source is where a row comes from.
    if prompt is None and answer.lower() == TARGET:
        prompt = first_key(row, (SOURCE,))
    return None if prompt is None else (prompt, answer)


def read_prompt(row: Fields, origin: Origin) -> Chat:
    """A Chat of a prompt, with what stands beside it (`asked`), and its answer, a text or turns, before which its
    reasoning may stand in a column of its own. Raises RowError."""
    keys = keys_of(row)
    if keys is None:
        names = PROMPTS if first_key(row, PROMPTS) is None else ANSWERS
        raise missing(names[0], row, " or ".join(names))
    prompt_key, answer_key = keys
    # Named with its rivals, so that what stands under those is known to be the same.
    question = asked(row, PROMPTS if first_key(row, PROMPTS) else (prompt_key,))
    value = decoded_turns(row[answer_key], answer_key)
    if isinstance(value, list) and value and isinstance(value[0], str):
        if len(value) > 1:
            got, fix = f"{len(value)} answers", "Keep one of them, or judge them and use another format"
            raise RowError("several answers", field=answer_key, got=got, expected="one answer", fix=fix)
        value = value[0]
    if isinstance(value, (list, dict)):
        answers = turns([value] if isinstance(value, dict) else value, answer_key)
    else:
        text = value if isinstance(value, str) else string(row, (answer_key,))
        if question.transcript:
            text = transcripts.stripped(text, question.messages)
        if not text.strip():
            raise empty_answer(answer_key, text)
        answers = [answer_of(row, text)]
    messages = check_turns((*question.messages, *answers), f"{prompt_key} + {answer_key}")
    return Chat(messages, question.tools, origin)


class Asked(NamedTuple):
    """What is to be answered. `transcript` says that it was one string with the names of its speakers."""

    messages: list[Message]
    tools: tuple[dict[str, Any], ...]
    transcript: bool


def asked(row: Fields, keys: Sequence[str] = ASKS) -> Asked:
    """What stands under the first of `keys` that the row has: a text, a transcript, turns, or an object of `messages`
    and `tools`; with a system text, earlier turns and a context in columns of their own. Raises RowError."""
    key = first_key(row, keys)
    if key is None:
        raise missing(keys[0], row, " or ".join(keys))
    value, field = decoded_turns(row[key], key), key
    tools = tools_of(row)
    if isinstance(value, dict):
        field = f"{key}.messages"
        tools = tools or tools_of(value)
        value = value.get("messages")
        if not isinstance(value, list):
            raise wrong_type(key, row[key], "a text, a list of turns, or an object with messages")
    context = context_of(row, key)
    in_transcript = None
    if is_texts(value) and len(value) % 2 == 0:
        # Texts are turns by turns: the last of an even number would be the assistant's.
        raise wrong_type(field, value, "a text, or turns that end on the user")
    if isinstance(value, list):
        messages = turns_with_context(turns(value, field), context)
        tools = tools_of(row, value, field) or tools
    else:
        text = value if isinstance(value, str) else string(row, (key,))
        in_transcript = transcripts.prompt_of(text)
        if in_transcript:
            messages = turns_with_context(in_transcript, context)
        else:
            text = with_context(text, context)
            if not text.strip():
                raise blank("empty prompt", key, text, "a text to answer")
            messages = [Message("user", text)]
    return Asked(with_system(row, with_history(row, messages, turns)), tools, in_transcript is not None)


def is_question(row: Fields) -> bool:
    """Whether a row has a prompt that is a text or turns."""
    key = first_key(row, PROMPTS)
    return key is not None and (isinstance(row[key], str) or is_turns(row[key]))


FORMAT = Format("prompt", read_prompt, looks)
