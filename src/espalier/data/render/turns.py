"""One conversation under one chat template: what it renders to, and where in that text its turns stand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

from espalier.data.render import templates
from espalier.data.render.control import Codec
from espalier.errors import RowError
from espalier.types import Chat, Message

_SWITCHES = ("enable_thinking", "open_thinking", "thinking")  # names under which templates take "answer with reasoning"
_DATE = date(2024, 7, 26)


def _fixed_date(form: str) -> str:
    """Templates that write the date of today would make the tokens of a row depend on the day; they get this one."""
    return _DATE.strftime(form)


class Turn(NamedTuple):
    """`text` is the conversation rendered through message number `message`; `text[start:end]` is what the model writes
    there, its stop token included."""

    message: int
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Templates:
    """The template for conversations without tools, the one for those with, and the names they may use."""

    plain: str
    tools: str
    names: Mapping[str, Any]

    def write(
        self,
        messages: Sequence[Any],
        tools: Any = None,
        generate: bool = False,
        values: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of `messages`, with the generation prompt where `generate` says so. Raises RowError."""
        names = {**self.names, "strftime_now": _fixed_date, **(values or {})}
        names |= {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": generate}
        return templates.write(self.tools if tools else self.plain, names)

    def variants(self, tools: bool) -> list[dict[str, bool]]:
        """The template's own defaults, then reasoning switched on, then off, where it has a switch."""
        known = templates.variables(self.tools if tools else self.plain)
        switches = [name for name in _SWITCHES if name in known]
        return [{}, *(dict.fromkeys(switches, value) for value in (True, False) if switches)]


class Row:
    """A conversation whose content is sealed (see `control`), ready to be rendered; all texts below are sealed.

    stops: ids that end a turn.
    """

    def __init__(self, chat: Chat, form: Templates, codec: Codec, stops: Sequence[int]) -> None:
        self._form, self._codec, self._stops = form, codec, frozenset(stops)
        self.seal = codec.seal(list(_strings(chat)), form.tools if chat.tools else form.plain)
        self.messages = [self._message(m) for m in chat.messages]
        self.tools = [self._close(tool) for tool in chat.tools] or None

    def _close(self, value: Any, markup: bool = False) -> Any:
        if self.seal is None:
            return value
        if isinstance(value, str):
            return self.seal.close(value, markup)
        if isinstance(value, Mapping):
            return {self._close(key): self._close(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._close(item) for item in value]
        return value

    def _message(self, m: Message) -> dict[str, Any]:
        made: dict[str, Any] = {"role": m.role, "content": self._close(m.content, m.role == "assistant")}
        if m.reasoning is not None:  # `thinking` is what some templates call it
            made["reasoning_content"] = made["thinking"] = self._close(m.reasoning)
        if m.tool_calls:
            made["tool_calls"] = [self._close(_parsed(call)) for call in m.tool_calls]
        if m.name is not None:
            made["name"] = self._close(m.name)
        return made

    def write(self, size: int, generate: bool = False, values: Mapping[str, Any] | None = None) -> str:
        """The first `size` messages rendered."""
        text = self._form.write(self.messages[:size], self.tools, generate, values)
        return self.seal.rendered(text) if self.seal else text

    def turn(self, index: int) -> Turn:
        """The turn of assistant message `index`, behind the prompt that a sampler is given there.

        The prompt is the template's own where the turn begins with it, else the variant with reasoning switched on or
        off with which it does. Raises RowError where neither does, or the turn does not end in a stop token.
        """
        for values in self._form.variants(self.tools is not None):
            text = self.write(index + 1, values=values)
            prompt = self.write(index, generate=True, values=values)
            if text.startswith(prompt):
                return Turn(index, text, len(prompt), self._end(text, len(prompt)))
        same = next(
            (i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), min(len(prompt), len(text))
        )
        raise RowError(
            "prompt is no prefix of the turn",
            field=f"messages[{index}]",
            got=f"{prompt[same : same + 40]!r} in the prompt, {text[same : same + 40]!r} in the turn",
            expected="a turn that begins with what the template writes to start it",
        )

    def _end(self, text: str, start: int) -> int:
        last = None
        for last in self._codec.written(text, start):  # noqa: B007
            pass
        if last is None or last[2].id not in self._stops or text[last[1] :].strip():
            raise RowError(
                "turn without a stop token",
                got=f"a turn that ends in {text[start:][-40:]!r}",
                expected="one of " + ", ".join(repr(self._codec.added[i].text) for i in sorted(self._stops)),
            )
        return last[1]

    def region(self, index: int, text: str) -> tuple[int, int]:
        """Where message `index` stands in `text`, the whole rendering. Raises RowError where it is rewritten."""
        before = self.write(index) if index else ""
        through = self.write(index + 1)
        if not (text.startswith(through) and through.startswith(before)):
            raise rewritten(index)
        return len(before), len(through)

    def contents(self, text: str, size: int) -> Iterator[tuple[int, int, int]]:
        """(message, start, end) of the contents of the first `size` messages in `text`, in order.

        They are searched for, as whole words; those that the template changed are left out.
        """
        at = 0
        for index, message in enumerate(self.messages[:size]):
            content = message["content"].strip()
            start = text.find(content, at) if content else -1
            while start >= 0 and _inside_word(text, start, start + len(content)):
                start = text.find(content, start + 1)
            if start >= 0:
                at = start + len(content)
                yield index, start, at


def _inside_word(text: str, start: int, end: int) -> bool:
    begins = start == 0 or not text[start - 1 : start + 1].isalnum()
    ends = end == len(text) or not text[end - 1 : end + 1].isalnum()
    return not (begins and ends)


def rewritten(index: int) -> RowError:
    return RowError(
        "template rewrites a weighted message",
        field=f"messages[{index}].weight",
        expected="a chat template under which later messages leave earlier ones as they are",
        fix="Remove the weight, or choose another template",
    )


def _strings(chat: Chat) -> Iterator[tuple[str, bool]]:
    """All text of a conversation that its template could write, each with whether it may hold markup."""
    for m in chat.messages:
        yield m.content, m.role == "assistant"
        if m.reasoning is not None:
            yield m.reasoning, False
        if m.name is not None:
            yield m.name, False
        for call in m.tool_calls:
            yield from _inner(_parsed(call))
    for tool in chat.tools:
        yield from _inner(tool)


def _inner(value: Any) -> Iterator[tuple[str, bool]]:
    if isinstance(value, str):
        yield value, False
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key), False
            yield from _inner(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _inner(item)


def _parsed(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call whose arguments are an object where their text is one: templates write both, and some only that."""
    function = call.get("function")
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(arguments, str):
        return dict(call)
    try:
        decoded = json.loads(arguments)
    except ValueError:  # no JSON: the template gets the text
        return dict(call)
    whole = isinstance(decoded, dict)
    return {**call, "function": {**function, "arguments": decoded}} if whole else dict(call)


class Probe:
    """What a template does with conversations made for the purpose.

    ends: ids of the tokens that end an assistant turn, that of a tool call among them. drops: what a row can hold and
    the template leaves out without a word. renders: whether it takes one question with one answer.
    """

    def __init__(self, form: Templates, codec: Codec) -> None:
        def turn(role: str, word: str, **more: Any) -> dict[str, Any]:
            return {"role": role, "content": word, **more}

        def text(*messages: dict[str, Any], tools: Any = None) -> str | None:
            try:
                return form.write(messages, tools)
            except RowError:  # refuses this kind of conversation: so it will with rows, with its own words
                return None

        user, answer = turn("user", "Zqu"), turn("assistant", "Zqa")
        call = {"type": "function", "id": "zqcall000", "function": {"name": "zqf", "arguments": {"zqk": 1}}}
        caller = turn("assistant", "", tool_calls=[call])
        offer = [{"type": "function", "function": {"name": "zqo", "description": "", "parameters": {}}}]
        self._twice = text(user, answer, user, answer)
        answered, called = text(user, answer), text(user, caller)
        self.renders = answered is not None
        found = [_last(codec, t, word) for t, word in ((answered, "Zqa"), (called, "zqf")) if t and word in t]
        self.ends = tuple(dict.fromkeys(a.id for i, a in enumerate(found) if a and (i == 0 or a.special)))
        drops = {
            "system messages": ("Zqs", text(turn("system", "Zqs"), user, answer)),
            "reasoning": ("Zqr", text(user, {**answer, "reasoning_content": "Zqr", "thinking": "Zqr"})),
            "tool calls": ("zqf", called),
            "tools": ("zqo", text(user, answer, tools=offer)),
            "tool messages": ("Zqt", text(user, caller, turn("tool", "Zqt", name="zqf"), answer)),
        }
        self.drops = frozenset(name for name, (word, t) in drops.items() if t is not None and word not in t)

    def opens_with(self, text: str) -> bool:
        """Whether a conversation starts with `text` and holds it once."""
        return self._twice is not None and self._twice.startswith(text) and self._twice.count(text) == 1

    def check(self, chat: Chat) -> None:
        """Raise RowError where the template would silently leave out a part of `chat`."""
        if not self.drops:
            return
        holds = {
            "system messages": any(m.role == "system" for m in chat.messages),
            "reasoning": any(m.reasoning for m in chat.messages),
            "tool calls": any(m.tool_calls for m in chat.messages),
            "tools": bool(chat.tools),
            "tool messages": any(m.role == "tool" for m in chat.messages),
        }
        for name in sorted(self.drops):
            if holds[name]:
                raise RowError(
                    f"chat template drops {name}", fix="Choose another template, or remove them from the row"
                )


def _last(codec: Codec, text: str, word: str) -> Any:
    """The added token that ends `text` behind `word`, if one does."""
    last = None
    for last in codec.written(text, text.rindex(word)):  # noqa: B007
        pass
    return last[2] if last is not None and not text[last[1] :].strip() else None
