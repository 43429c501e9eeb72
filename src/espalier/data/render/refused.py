"""Conversations that a chat template refuses: which flag, if any, would have made them fit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from espalier.data.render.bad_turns import usable
from espalier.data.render.templates import REFUSED
from espalier.errors import RowError
from espalier.types import Chat

if TYPE_CHECKING:
    from espalier.data.render.chats import Chats

DROPS = "chat template drops"
_FLAGS = {
    ("merge_system",): "--merge-system puts the text of system turns into the user turn after them",
    ("merge_turns",): "--merge-turns joins consecutive turns of one role",
    ("merge_system", "merge_turns"): "--merge-system --merge-turns put system turns into user turns and join "
    "consecutive turns of one role",
}
_OTHERS = "Choose another --template, or leave such rows out with --on-bad-row skip"


def advised(chats: Chats, chat: Chat, error: RowError) -> RowError:
    """The error with a way out, if it is the template's refusal and has none: the first flags with which the template
    takes the conversation."""
    if error.fix and not error.reason.startswith(DROPS):
        return error
    if error.reason != REFUSED and not error.reason.startswith(DROPS):
        return error
    ways = [*_fitting(chats, chat)]
    if not ways and error.reason == REFUSED and any(len(message.tool_calls) > 1 for message in chat.messages):
        ways.append("If it takes one tool call a turn, put each call into a turn of its own")
    fix = ". ".join([*ways, error.fix or _OTHERS])
    return RowError(error.reason, where=error.where, field=error.field, got=error.got, expected=error.expected, fix=fix)


def _fitting(chats: Chats, chat: Chat) -> list[str]:
    """What the first flags do with which the template takes the conversation; none if none help."""
    config = chats.form.turns
    for names, text in _FLAGS.items():
        if any(getattr(config, name) for name in names):
            continue
        other = replace(
            config,
            merge_system=config.merge_system or "merge_system" in names,
            merge_turns=config.merge_turns or "merge_turns" in names,
        )
        try:
            messages = usable(chat.messages, other, chats.train_on).messages
            chats.sealed(replace(chat, messages=messages)).write(len(messages))
        except RowError:
            continue
        return [text]
    return []
