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

# Names under which templates take "answer with reasoning".
_SWITCHES = ("enable_thinking", "open_thinking", "thinking")
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
        """The text of `messages`; `generate` adds the generation prompt. Raises RowError."""
        names = {**self.names, "strftime_now": _fixed_date, **(values or {})}
        names |= {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": generate}
        return templates.write(self.source(tools), names)

    def source(self, tools: Any) -> str:
        """The template for a conversation with `tools`."""
        return self.tools if tools else self.plain

    def variants(self, tools: bool) -> list[dict[str, bool]]:
        """The template's own defaults, then reasoning switched on, then off, if it has a switch."""
        known = templates.variables(self.source(tools))
        switches = [name for name in _SWITCHES if name in known]
        if not switches:
            return [{}]
        return [{}, dict.fromkeys(switches, True), dict.fromkeys(switches, False)]


class SealedChat:
    """A conversation whose content is sealed (see `control`), ready to be rendered; all texts below are sealed.

    stops: ids that end a turn.
    """

    def __init__(self, chat: Chat, form: Templates, codec: Codec, stops: Sequence[int]) -> None:
        self._form, self._codec, self._stops = form, codec, frozenset(stops)
        # One seal for the whole row: a template may copy content from anywhere to anywhere, so that
        # the characters of the seal must occur nowhere in it, the template's own text included.
        self.seal = codec.seal(list(_strings(chat)), form.source(chat.tools))
        self.messages = [self._message(message) for message in chat.messages]
        self.tools = [self._close(tool) for tool in chat.tools] or None

    def _close(self, value: Any, markup: bool = False) -> Any:
        """`value` with every text in it sealed; with `markup`, a text keeps other added tokens than special ones."""
        if self.seal is None:
            return value
        if isinstance(value, str):
            return self.seal.close(value, markup)
        if isinstance(value, Mapping):
            return {self._close(key): self._close(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._close(item) for item in value]
        return value

    def _message(self, message: Message) -> dict[str, Any]:
        """A message as templates take it."""
        fields: dict[str, Any] = {
            "role": message.role,
            "content": self._close(message.content, message.role == "assistant"),
        }
        if message.reasoning is not None:
            fields["reasoning_content"] = self._close(message.reasoning)
            fields["thinking"] = fields["reasoning_content"]  # what some templates call it
        if message.tool_calls:
            fields["tool_calls"] = [self._close(_parsed(call)) for call in message.tool_calls]
        if message.name is not None:
            fields["name"] = self._close(message.name)
        return fields

    def write(self, size: int, generate: bool = False, values: Mapping[str, Any] | None = None) -> str:
        """The first `size` messages rendered."""
        text = self._form.write(self.messages[:size], self.tools, generate, values)
        return self.seal.rendered(text) if self.seal else text

    def turn(self, index: int) -> Turn:
        """The turn of assistant message `index`, behind the prompt that a sampler is given there.

        The prompt is the template's own if the turn begins with it, else the variant with reasoning switched on or off
        with which it does. Raises RowError if neither does, or the turn does not end in a stop token.
        """
        text = prompt = ""
        for values in self._form.variants(self.tools is not None):
            text = self.write(index + 1, values=values)
            prompt = self.write(index, generate=True, values=values)
            if text.startswith(prompt):
                return Turn(index, text, len(prompt), self._end(text, len(prompt)))
        at = _first_difference(prompt, text)
        raise RowError(
            "prompt is no prefix of the turn",
            field=f"messages[{index}]",
            got=f"{prompt[at : at + 40]!r} in the prompt, {text[at : at + 40]!r} in the turn",
            expected="a turn that begins with what the template writes to start it",
        )

    def _end(self, text: str, start: int) -> int:
        """Where the turn from `start` on ends: behind its stop token, after which only whitespace may stand."""
        end, last = self._codec.last_written(text, start)
        if last is None or last.id not in self._stops or text[end:].strip():
            stops = [repr(self._codec.added[i].text) for i in sorted(self._stops)]
            raise RowError(
                "turn without a stop token",
                got=f"a turn that ends in {text[start:][-40:]!r}",
                expected=f"one of {', '.join(stops)}",
            )
        return end

    def region(self, index: int, text: str) -> tuple[int, int]:
        """Where message `index` stands in `text`, the whole rendering. Raises RowError if it is rewritten."""
        before = self.write(index) if index else ""
        through = self.write(index + 1)
        if not (text.startswith(through) and through.startswith(before)):
            raise rewritten(index)
        return len(before), len(through)

    def contents(self, text: str, size: int) -> Iterator[tuple[int, int, int]]:
        """(message, start, end) of the contents of the first `size` messages in `text`, in order.

        They are searched for, as whole words; those that the template changed are left out.
        """
        # Each search starts behind the content before it. A content that a template repeats in
        # front of its own place (a system prompt inside the first user turn) is found there; only
        # counts by role depend on it.
        at = 0
        for index, message in enumerate(self.messages[:size]):
            content = message["content"].strip()
            start = text.find(content, at) if content else -1
            while start >= 0 and _inside_word(text, start, start + len(content)):
                start = text.find(content, start + 1)
            if start >= 0:
                at = start + len(content)
                yield index, start, at


def _first_difference(some: str, other: str) -> int:
    """The first place at which two texts differ; the end of the shorter one if it begins the other."""
    for at, (a, b) in enumerate(zip(some, other, strict=False)):
        if a != b:
            return at
    return min(len(some), len(other))


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
    for message in chat.messages:
        yield message.content, message.role == "assistant"
        if message.reasoning is not None:
            yield message.reasoning, False
        if message.name is not None:
            yield message.name, False
        for call in message.tool_calls:
            yield from _inner(_parsed(call))
    for tool in chat.tools:
        yield from _inner(tool)


def _inner(value: Any) -> Iterator[tuple[str, bool]]:
    """All text inside a JSON value, keys included; none of it may hold markup."""
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
    """A tool call whose arguments are an object, if their text is that of one: templates write both forms, and some
    take objects only."""
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


# -------------------------------------------------------------------------------------------------------------- probe


class Probe:
    """What a template does with conversations made for the purpose.

    ends: ids of the tokens that end an assistant turn, that of a tool call among them. drops: what a row can hold and
    the template leaves out without a word. renders: whether it takes one question with one answer.
    """

    def __init__(self, form: Templates, codec: Codec) -> None:
        # A template is a program: what it does shows only when it runs. The words begin with "Zq",
        # which no template writes by itself, so that a word in the text is the content, and one
        # that is missing was left out.
        system, user, answer = _turn("system", "Zqs"), _turn("user", "Zqu"), _turn("assistant", "Zqa")
        thought = {**answer, "reasoning_content": "Zqr", "thinking": "Zqr"}
        call = {"type": "function", "id": "zqcall000", "function": {"name": "zqf", "arguments": {"zqk": 1}}}
        caller = {**_turn("assistant", ""), "tool_calls": [call]}
        result = {**_turn("tool", "Zqt"), "name": "zqf"}
        tool = {"type": "function", "function": {"name": "zqo", "description": "", "parameters": {}}}

        self._twice = _tried(form, (user, answer, user, answer))
        answered, called = _tried(form, (user, answer)), _tried(form, (user, caller))
        self.renders = answered is not None
        self.ends = _ends(codec, answered, called)
        words_and_texts = {
            "system messages": ("Zqs", _tried(form, (system, user, answer))),
            "reasoning": ("Zqr", _tried(form, (user, thought))),
            "tool calls": ("zqf", called),
            "tools": ("zqo", _tried(form, (user, answer), [tool])),
            "tool messages": ("Zqt", _tried(form, (user, caller, result, answer))),
        }
        dropped = []
        for name, (word, text) in words_and_texts.items():
            if text is not None and word not in text:
                dropped.append(name)
        self.drops = frozenset(dropped)

    def opens_with(self, text: str) -> bool:
        """Whether a conversation starts with `text` and holds it once."""
        return self._twice is not None and self._twice.startswith(text) and self._twice.count(text) == 1

    def check(self, chat: Chat) -> None:
        """Raise RowError if the template would silently leave out a part of `chat`."""
        if not self.drops:
            return
        parts = {
            "system messages": any(message.role == "system" for message in chat.messages),
            "reasoning": any(message.reasoning for message in chat.messages),
            "tool calls": any(message.tool_calls for message in chat.messages),
            "tools": bool(chat.tools),
            "tool messages": any(message.role == "tool" for message in chat.messages),
        }
        for name in sorted(self.drops):
            if parts[name]:
                fix = "Choose another template, or remove them from the row"
                raise RowError(f"chat template drops {name}", fix=fix)


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _tried(form: Templates, messages: Sequence[dict[str, Any]], tools: Any = None) -> str | None:
    """The text of `messages`; None if the template refuses such a conversation."""
    try:
        return form.write(messages, tools)
    except RowError:  # it will refuse such rows, too, and in its own words
        return None


def _ends(codec: Codec, answered: str | None, called: str | None) -> tuple[int, ...]:
    """The ids that end the answer "Zqa" and the call of "zqf", each once.

    The end of a call counts only if it is a special token: markup such as `</tool_call>` ends the call, not the turn.
    """
    ends: list[int] = []
    first = True
    for text, word in ((answered, "Zqa"), (called, "zqf")):
        if not text or word not in text:
            continue
        end, token = codec.last_written(text, text.rindex(word))
        if token is not None and not text[end:].strip() and (first or token.special):
            ends.append(token.id)
        first = False
    return tuple(dict.fromkeys(ends))
