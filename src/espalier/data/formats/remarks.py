"""What is assumed of a row without being known, in words: counted and said."""

from __future__ import annotations

import re
from collections.abc import Iterator

from espalier.data.columns.watched import peek
from espalier.data.formats.choice import counts_from_0
from espalier.data.formats.common import Fields
from espalier.data.formats.lead import is_texts
from espalier.data.formats.messages import turns_key
from espalier.data.formats.tasks import answers_of, remark_of

ALTERNATING = "conversations whose turns are plain texts: read as the user and the assistant in turn, the user first"
RENDERED = "texts that hold the marks of a chat template, such as [INST], read as they are, not as turns"
ACCEPTED = "tasks with several answers, of which each counts as right"
PLACES = "choices of which the right one is a number: counted from 0"
# Llama 2, ChatML, Llama 3, Gemma, Phi, Zephyr, Alpaca and DeepSeek.
_MARKS = re.compile(
    r"\[/?INST\]|<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|(?:user|assistant|system)\|>"
    r"|<\uff5c(?:User|Assistant)\uff5c>"
    r"|^### (?:Instruction|Response):?[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
TASKS = ("ifeval", "gsm8k", "math", "task")
_TEXTS = ("text", "content", "prompt", "instruction", "question", "query", "problem", "input")


def remarks(name: str, row: Fields) -> Iterator[str]:
    """What to say of a row that was read as format `name`.

    >>> list(remarks("text", {"text": "<s>[INST] Hi [/INST] Hello! </s>"})) == [RENDERED]
    True
    """
    if name == "choice" and counts_from_0(row):
        yield PLACES
    if name in TASKS and remark_of(row):
        yield remark_of(row)
    if name in ("math", "task") and len(answers_of(row)) > 1:
        yield ACCEPTED
    if name in ("messages", "sharegpt"):
        key = turns_key(row)
        if key is not None and is_texts(peek(row, key)):
            yield ALTERNATING
        return
    for key in _TEXTS:
        text = peek(row, key)
        if is_texts(text):
            yield ALTERNATING
            return
        if isinstance(text, str) and _MARKS.search(text):
            yield RENDERED
            return
