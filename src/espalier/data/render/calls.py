"""Tool calls in the form that a chat template takes: arguments as objects or as JSON text, ids as given or made.

Templates disagree: some take the arguments of a call as an object and write a text in quotes, others join texts and
fail for an object; some demand an id of nine letters and digits for each call, and most write none.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from espalier.types import Message

_ID = re.compile(r"[A-Za-z0-9]{9}")
_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class CallForm:
    """How calls are written: with `text`, their arguments are JSON text; with `ids`, each call has an id of nine
    letters and digits, made if the row has none of that shape."""

    text: bool = False
    ids: bool = False

    def written(self, messages: Sequence[Message]) -> list[Message]:
        """The messages in this form. Each tool result names the call it answers, if that has an id."""
        names: dict[str, str] = {}  # ids of the row, by what they become
        waiting: list[tuple[str, str]] = []  # (id, function) of calls that no result has answered
        result: list[Message] = []
        for message in messages:
            if message.tool_calls:
                calls = [self._call(call, names, len(result), place) for place, call in enumerate(message.tool_calls)]
                waiting = [(call["id"], str(_function(call).get("name"))) for call in calls if "id" in call]
                message = replace(message, tool_calls=tuple(calls))
            elif message.role == "tool":
                message = replace(message, tool_call_id=_answered(message, names, waiting))
            result.append(message)
        return result

    def _call(self, call: Mapping[str, Any], names: dict[str, str], message: int, place: int) -> dict[str, Any]:
        call = as_text(call) if self.text else as_object(call)
        own = call.get("id")
        if not self.ids or (isinstance(own, str) and _ID.fullmatch(own)):
            if isinstance(own, str):
                names[own] = own
            return dict(call)
        made = _made(f"{message} {place} {own} {json.dumps(_function(call), sort_keys=True, default=str)}")
        if isinstance(own, str):
            names[own] = made
        # First, as templates that print a whole call show its keys in their order.
        return {"id": made, **{key: value for key, value in call.items() if key != "id"}}


FORMS = tuple(CallForm(text, ids) for ids in (False, True) for text in (False, True))
"""All forms, in the order in which they are tried."""


def as_object(call: Mapping[str, Any]) -> dict[str, Any]:
    """The call with its arguments as an object, if they are the JSON text of one."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        decoded = json.loads(function["arguments"])
    except ValueError:  # not JSON: the template gets the text
        return dict(call)
    if not isinstance(decoded, dict):
        return dict(call)
    return {**call, "function": {**function, "arguments": decoded}}


def as_text(call: Mapping[str, Any]) -> dict[str, Any]:
    """The call with its arguments as JSON text."""
    function = call.get("function")
    if not isinstance(function, Mapping) or isinstance(function.get("arguments"), str):
        return dict(call)
    text = json.dumps(function.get("arguments"), ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def _function(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    return function if isinstance(function, Mapping) else {}


def _made(text: str) -> str:
    """Nine letters and digits that follow from `text`."""
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little")
    letters = ""
    for _ in range(9):
        number, place = divmod(number, len(_LETTERS))
        letters += _LETTERS[place]
    return letters


def _answered(message: Message, names: Mapping[str, str], waiting: list[tuple[str, str]]) -> str | None:
    """The id of the call that a result answers, which is taken out of `waiting`: the one it names, else the first of
    its function, else the first. An id that no call has stays as it is."""
    own = message.tool_call_id
    if own is not None and own in names:
        waiting[:] = [call for call in waiting if call[0] != names[own]]
        return names[own]
    for place, (_, function) in enumerate(waiting):
        if message.name in (None, function):
            return waiting.pop(place)[0]
    return waiting.pop(0)[0] if waiting else own


class Habits:
    """What a template does with tool calls beyond writing them, found out with calls made for the purpose.

    drops: what a row can hold and the template leaves out without a word. prints: whether it writes arguments that are
    objects as Python does (`{'a': 1}`), so that it must be given JSON text. holes: whether it writes an id in a place
    of its own, which is empty without one, so that ids must be made.
    """

    def __init__(self, write: Any) -> None:
        """write: messages as templates take them to text; None if the template refuses them."""
        one, other = _sample("zqf", "Zqv", "zqcall000"), _sample("zqg", "Zqw", "zqcall001")
        alone = write(_asked("", one))
        both = write(_asked("", one, other))
        beside = write(_asked("Zqb", one))
        self.drops: dict[str, str] = {}
        if alone is not None and both is not None and "zqf" in both and not ("zqg" in both and "Zqw" in both):
            self.drops["parallel tool calls"] = "Put each call into a turn of its own, with its result"
        if alone is not None and beside is not None and "zqf" in beside and "Zqb" not in beside:
            self.drops["text beside tool calls"] = "Put the text into a turn of its own"
        self.prints = alone is not None and "{'zqk'" in alone
        bare = write(_asked("", {key: value for key, value in one.items() if key != "id"}))
        self.holes = False
        if alone is not None and bare is not None and "zqcall000" in alone:
            self.holes = bare in (alone.replace("zqcall000", ""), alone.replace("zqcall000", "None"))

    def dropped(self, messages: Sequence[Message]) -> str | None:
        """The first of `drops` that a conversation holds."""
        for message in messages:
            if len(message.tool_calls) > 1 and "parallel tool calls" in self.drops:
                return "parallel tool calls"
            if message.tool_calls and message.content.strip() and "text beside tool calls" in self.drops:
                return "text beside tool calls"
        return None

    def forms(self, messages: Sequence[Message]) -> tuple[CallForm, ...]:
        """The forms to try for a conversation, the first that the template takes being the one."""
        calls = [call for message in messages for call in message.tool_calls]
        if not calls:
            return FORMS[:1]
        lacking = any("id" not in call for call in calls)
        return tuple(sorted(FORMS, key=lambda form: (form.ids != (self.holes and lacking), form.text != self.prints)))


def _sample(name: str, value: str, id: str) -> dict[str, Any]:
    return {"type": "function", "id": id, "function": {"name": name, "arguments": {"zqk": value}}}


def _asked(content: str, *calls: dict[str, Any]) -> list[dict[str, Any]]:
    asked = {"role": "user", "content": "Zqu"}
    return [asked, {"role": "assistant", "content": content, "tool_calls": list(calls)}]
