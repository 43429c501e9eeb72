"""Transcripts in one string, as the pairs of "Training a Helpful and Harmless Assistant" have them.

Bai et al., arXiv:2204.05862: turns begin with "Human:" and "Assistant:" after a blank line, a person first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from espalier.data.formats.common import Fields, empty_answer, shown, string
from espalier.data.formats.judged import ranking, split_pair
from espalier.errors import RowError
from espalier.types import Message, Origin, Ranking, Response, Role

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: str) -> bool:
    """Whether a text begins as a transcript does."""
    return text.lstrip().startswith("Human:")


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
    chosen, rejected = (_transcript(string(row, (name,)), name) for name in ("chosen", "rejected"))
    prompt = split_pair(chosen, rejected, "chosen and rejected")
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        _alternate(turns, name)
    responses = [Response(side[-1], rank=place) for place, side in enumerate((chosen, rejected))]
    return ranking(prompt, responses, origin, field="chosen and rejected")


def _transcript(text: str, field: str) -> list[Message]:
    head, *parts = _TURN.split(text)
    if head.strip() or not parts:
        expected = "a transcript that begins with 'Human:'"
        raise RowError("no transcript", field=field, got=shown(text), expected=expected, fix="Give the prompt apart")
    return [Message(_ROLES[role], said.strip()) for role, said in zip(parts[::2], parts[1::2], strict=True)]


def _alternate(turns: Sequence[Message], field: str) -> None:
    for i, turn in enumerate(turns):
        due = "assistant" if i % 2 else "user"
        if turn.role != due:
            raise RowError("roles do not alternate", field=f"{field}, turn {i + 1}", got=turn.role, expected=due)
        if i % 2 and not turn.content:
            raise empty_answer(f"{field}, turn {i + 1}", turn.content)
    if turns[-1].role != "assistant":
        got = "a Human turn at the end"
        raise RowError("conversation ends on the user", field=field, got=got, expected="an Assistant turn")
