"""Transcripts in one string, as the pairs of "Training a Helpful and Harmless Assistant" have them.

Bai et al., arXiv:2204.05862: turns begin with "Human:" and "Assistant:" after a blank line, a person first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from espalier.data.formats.common import Fields, empty_answer, first_key, shown, string
from espalier.data.formats.format import Format
from espalier.data.formats.judged import pair_keys, ranking, split_pair
from espalier.data.formats.lead import context_of, tools_of, turns_with_context, with_history, with_system
from espalier.data.formats.prompt import QUESTIONS
from espalier.data.formats.sharegpt import turns
from espalier.errors import RowError
from espalier.types import Consumes, Message, Origin, Ranking, Response, Role

# Only after a blank line: a text may hold "Human:" inside a turn.
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a row has a pair of whole transcripts in strings, and no prompt apart from them."""
    return is_transcripts(row)


def is_transcripts(row: Fields) -> bool:
    """As `looks`, whatever a run learns from."""
    keys = pair_keys(row)
    if keys is None or first_key(row, QUESTIONS) is not None:
        return False
    return all(isinstance(row[key], str) and row[key].lstrip().startswith("Human:") for key in keys)


def read_hh(row: Fields, origin: Origin) -> Ranking:
    r"""A Ranking from `chosen` and `rejected`, whole transcripts that share all turns but the last.

    The longest common run of turns is the prompt; space around a turn is not part of it.

    >>> row = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: No."}
    >>> read = read_hh(row, Origin())
    >>> [m.content for m in read.prompt], [(r.message.content, r.rank) for r in read.responses]
    (['Hi'], [('Hello!', 0), ('No.', 1)])

    Raises RowError, in this order: identical responses, prompts differ, roles do not alternate, and an empty assistant
    turn.
    """
    chosen = _transcript(string(row, ("chosen",)), "chosen")
    rejected = _transcript(string(row, ("rejected",)), "rejected")
    shared = split_pair(chosen, rejected, "chosen and rejected")
    _alternate(chosen, "chosen")
    _alternate(rejected, "rejected")
    prompt = with_system(row, with_history(row, turns_with_context(shared, context_of(row, None)), turns))
    responses = [Response(chosen[-1], rank=0), Response(rejected[-1], rank=1)]
    return ranking(prompt, responses, origin, field="chosen and rejected", tools=tools_of(row))


def _transcript(text: str, field: str) -> list[Message]:
    head, *parts = _TURN.split(text)
    if head.strip() or not parts:
        expected = "a transcript that begins with 'Human:'"
        raise RowError("no transcript", field=field, got=shown(text), expected=expected, fix="Give the prompt apart")
    return [Message(_ROLES[role], words.strip()) for role, words in zip(parts[::2], parts[1::2], strict=True)]


def _alternate(turns: Sequence[Message], field: str) -> None:
    """Raise RowError unless a user's turns and an assistant's take turns, and the assistant's have content."""
    for i, turn in enumerate(turns):
        expected = "assistant" if i % 2 else "user"
        if turn.role != expected:
            raise RowError("roles do not alternate", field=f"{field}, turn {i + 1}", got=turn.role, expected=expected)
        if turn.role == "assistant" and not turn.content:
            raise empty_answer(f"{field}, turn {i + 1}", turn.content)
    if turns[-1].role != "assistant":
        got = "a Human turn at the end"
        raise RowError("conversation ends on the user", field=field, got=got, expected="an Assistant turn")


FORMAT = Format("hh", read_hh, looks)
