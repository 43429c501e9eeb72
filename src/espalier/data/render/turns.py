"""One conversation under one chat template: what it renders to, and where in that text its turns stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

from espalier.data.render import stops, templates
from espalier.data.render.calls import FORMS, CallForm, as_object, as_text
from espalier.data.render.control import Added, Codec, Whole
from espalier.data.render.openings import Opened, check_thought, opened_turn
from espalier.errors import RowError
from espalier.types import Chat, Message

# Names under which templates take "answer with reasoning".
_SWITCHES = ("enable_thinking", "open_thinking", "thinking")
_DATE = date(2024, 7, 26)


def fixed_date(form: str) -> str:
    """Templates that write the date of today would make the tokens of a row depend on the day; they get this one."""
    return _DATE.strftime(form)


class Turn(NamedTuple):
    """`text` is the conversation rendered through message number `message`, and, if the template leaves that turn open,
    the stop token behind it; `text[start:end]` is what the model writes there, its stop token included."""

    message: int
    text: str
    start: int
    end: int
    left_open: bool = False


@dataclass(frozen=True, slots=True)
class Templates:
    """The template for conversations without tools, the one for those with, and the names they may use."""

    plain: str
    tools: str
    names: Mapping[str, Any]
    """Special tokens by name, and what the run gives to the template."""
    fixed: frozenset[str] = frozenset()
    """Those of `names` that the run gives."""

    def write(
        self,
        messages: Sequence[Any],
        tools: Any = None,
        generate: bool = False,
        values: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of `messages`; `generate` adds the generation prompt. Raises RowError."""
        names = {**self.names, "strftime_now": fixed_date, **(values or {})}
        names |= {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": generate}
        return templates.write(self.source(tools), names)

    def source(self, tools: Any) -> str:
        """The template for a conversation with `tools`."""
        return self.tools if tools else self.plain

    def variants(self, tools: bool, given: Mapping[str, Any]) -> list[dict[str, bool]]:
        """The template's own defaults, then reasoning switched on, then off, if it has a switch that neither the run
        nor the row (`given`) sets."""
        known = templates.variables(self.source(tools)) - self.fixed - given.keys()
        switches = [name for name in _SWITCHES if name in known]
        if not switches:
            return [{}]
        return [{}, dict.fromkeys(switches, True), dict.fromkeys(switches, False)]


class SealedChat:
    """A conversation whose content is sealed (see `control`), ready to be rendered; all texts below are sealed.

    ends: how turns end under the template. stop_ids: ids that end a turn. call_forms: how tool calls may be written,
    the first that the template takes being the one (`call_form`). whole: what stays whole in the contents of (prompts,
    answers). `noted` is what was done to turns.

    Raises RowError if the template takes tool calls in none of their forms.
    """

    def __init__(
        self,
        chat: Chat,
        form: Templates,
        codec: Codec,
        ends: stops.TurnEnds,
        stop_ids: Sequence[int],
        call_forms: Sequence[CallForm] = FORMS[:1],
        whole: tuple[Whole, Whole] = ("none", "markup"),
    ) -> None:
        self._form, self._codec, self._ends, self._stops = form, codec, ends, frozenset(stop_ids)
        self._whole = whole
        # One seal for the whole row: a template may copy content from anywhere to anywhere, so that
        # the characters of the seal must occur nowhere in it, the template's own text included.
        self.seal = codec.seal(list(_strings(chat, whole)), form.source(chat.tools))
        self.tools = [self._structure(tool) for tool in chat.tools] or None
        self._given = {name: self._close(value) for name, value in chat.template_args.items()}
        self.messages: list[dict[str, Any]] = []
        self.noted: set[str] = set()
        self.call_form = self._fitting(chat, call_forms)

    def _fitting(self, chat: Chat, call_forms: Sequence[CallForm]) -> CallForm:
        """The first form of tool calls that the template takes; `messages` are then in it."""
        first: RowError | None = None
        for call_form in call_forms:
            self.messages = [self._message(message) for message in call_form.written(chat.messages)]
            if len(call_forms) == 1:
                return call_form
            try:
                self.write(len(self.messages))
            except RowError as error:
                first = first or error
            else:
                return call_form
        raise first or RowError(templates.REFUSED)

    def _close(self, value: Any, whole: Whole = "none") -> Any:
        """`value` with every text in it sealed."""
        if self.seal is None:
            return value
        if isinstance(value, str):
            return self.seal.close(value, whole)
        if isinstance(value, Mapping):
            return {self._close(key): self._close(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._close(item) for item in value]
        return value

    def _structure(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """A call or tool with its texts sealed, but for the names by which templates find its parts."""
        sealed = {}
        for key, item in value.items():
            if key == "function" and isinstance(item, Mapping):
                sealed[key] = {name: self._close(part) for name, part in item.items()}
            else:
                sealed[key] = item if (key, item) == ("type", "function") else self._close(item)
        return sealed

    def _message(self, message: Message) -> dict[str, Any]:
        """A message as templates take it."""
        fields: dict[str, Any] = {
            "role": message.role,
            "content": self._close(message.content, self._whole[message.role == "assistant"]),
        }
        if message.reasoning is not None:
            fields["reasoning_content"] = self._close(message.reasoning)
            fields["thinking"] = fields["reasoning_content"]  # what some templates call it
        if message.tool_calls:
            fields["tool_calls"] = [self._structure(call) for call in message.tool_calls]
        if message.name is not None:
            fields["name"] = self._close(message.name)
        if message.tool_call_id is not None:
            fields["tool_call_id"] = self._close(message.tool_call_id)
        return fields

    def write(self, size: int, generate: bool = False, values: Mapping[str, Any] | None = None) -> str:
        """The first `size` messages rendered."""
        text = self._form.write(self.messages[:size], self.tools, generate, {**self._given, **(values or {})})
        return self.seal.rendered(text) if self.seal else text

    def turn(self, index: int) -> Turn:
        """The turn of assistant message `index`, behind the prompt that a sampler is given there.

        The prompt is the template's own if the turn begins with it, else the variant with reasoning switched on or off
        with which it does. Turns that begin with none are put together with their prompt, see `openings`. Raises
        RowError if there is no way to do so, if the turn does not end in a stop token, or lacks the row's reasoning.
        """
        text = prompt = ""
        variants = self._form.variants(self.tools is not None, self._given)
        for values in variants:
            text = self.write(index + 1, values=values)
            prompt = self.write(index, generate=True, values=values)
            if text.startswith(prompt):
                return self._stopped(index, text, self._start(index, text, len(prompt)), values)
        for values in variants:
            text, prompt = self.write(index + 1, values=values), self.write(index, generate=True, values=values)
            opened = self._opened(index, prompt, text, values)
            if opened is not None:
                self.noted.add(opened.note)
                return self._stopped(index, opened.text, opened.start, values)
        at = _first_difference(prompt, text)
        merge = ""
        if index and self.messages[index - 1]["role"] == "assistant":
            merge = "--merge-turns joins consecutive answers. "
        raise RowError(
            "prompt is no prefix of the turn",
            field=f"messages[{index}]",
            got=f"{prompt[at : at + 40]!r} in the prompt, {text[at : at + 40]!r} in the turn",
            expected="a turn that begins with what the template writes to start it",
            fix=f"{merge}Choose another --template, or leave the row out",
        )

    def _opened(self, index: int, prompt: str, text: str, values: Mapping[str, Any]) -> Opened | None:
        """The turn of message `index`, which does not begin with its prompt; None if it cannot be put behind it."""
        message = self.messages[index]
        try:
            before = self.write(index, values=values)
        except RowError:
            return None
        return opened_turn(before, prompt, text, message["content"], message.get("reasoning_content", ""))

    def _start(self, index: int, text: str, at: int) -> int:
        """Where a turn behind the prompt `text[:at]` begins: behind the spaces that the prompt's last token takes, and
        behind the header of a turn, if the template leaves that out of a prompt."""
        header = self._ends.header
        if header and text.startswith(header, at) and self.write(index, generate=True) == self.write(index):
            at += len(header)
        if self._codec.ending(text[:at]) == "token":
            _, last = self._codec.last_written(text[:at])
            if last is not None and last.rstrip:
                at += len(text[at:]) - len(text[at:].lstrip())
        return at

    def _stopped(self, index: int, text: str, start: int, values: Mapping[str, Any]) -> Turn:
        """The turn of message `index` from `start` on, through its stop token.

        That is the first one that the template writes behind the start. If there is none, it is the marker that starts
        the next message, if that is a stop token, else the one with which the template's turns end. Raises RowError if
        there is none either, or content stands behind it.
        """
        end = stops.first_written(self._codec, text, start, self._stops)
        if end < 0:
            stop = self._next_marker(index, text, values) or self._left_open(index)
            if stop is None:
                raise self._no_stop(text[start:])
            check_thought(self.messages[index], text[start:], index)
            text = text.rstrip() if stop.lstrip else text
            return Turn(index, text + stop.text, start, len(text) + len(stop.text), left_open=True)
        check_thought(self.messages[index], text[start:end], index)
        content = self.messages[index]["content"].strip()
        rest = text[end:]
        if content and content in rest and rest not in self._ends.behind:
            raise RowError(
                "template writes content behind the stop token",
                field=f"messages[{index}]",
                got=f"{text[start:end][-20:]!r}, then {rest[:40]!r}",
                expected="nothing of the message behind the token that ends it",
                fix="Choose another --template, or leave the row out",
            )
        return Turn(index, text, start, end)

    def _next_marker(self, index: int, text: str, values: Mapping[str, Any]) -> Added | None:
        """The stop token with which the message behind message `index` begins; None if it begins with another text, or
        the template writes the turn in another way if something follows."""
        if index + 1 == len(self.messages):
            return None
        try:
            longer = self.write(index + 2, values=values)
        except RowError:
            return None
        following = stops.marker(self._codec, stops.Behind(text, longer))
        return following if following is not None and following.id in self._stops else None

    def _left_open(self, index: int) -> Added | None:
        """What ends a turn that the template leaves open at the end of a conversation."""
        if self.messages[index].get("tool_calls") and self._ends.call is not None:
            return self._ends.call
        return self._ends.answer

    def _no_stop(self, turn: str) -> RowError:
        names = [repr(self._codec.added[i].text) for i in sorted(self._stops)]
        return RowError(
            "turn without a stop token",
            got=f"a turn that ends in {turn[-40:]!r}",
            expected=f"one of {', '.join(names)}",
            fix="Choose another --template, or leave the row out",
        )

    def region(self, index: int, text: str) -> tuple[int, int]:
        """Where message `index` stands in `text`, the whole rendering. Raises RowError if it is rewritten."""
        before = self._kept(self.write(index), text) if index else 0
        through = self._kept(self.write(index + 1), text)
        if before < 0 or through < before:
            raise rewritten(index)
        return before, through

    def _kept(self, shorter: str, text: str) -> int:
        """The size of `shorter` without what a rendering ends in, if `text` begins with that; else -1."""
        for tail in ("", *self._ends.tails):
            if shorter.endswith(tail) and text.startswith(shorter.removesuffix(tail)):
                return len(shorter) - len(tail)
        return -1

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


def _strings(chat: Chat, whole: tuple[Whole, Whole]) -> Iterator[tuple[str, Whole]]:
    """All text of a conversation that its template could write, each with what stays whole in it."""
    for message in chat.messages:
        yield message.content, whole[message.role == "assistant"]
        for text in (message.reasoning, message.name, message.tool_call_id):
            if text is not None:
                yield text, "none"
        for call in message.tool_calls:
            yield from _inner(as_object(call))
            yield from _inner(as_text(call))
    for tool in chat.tools:
        yield from _inner(tool)
    yield from _inner(chat.template_args)


def _inner(value: Any) -> Iterator[tuple[str, Whole]]:
    """All text inside a JSON value, keys included; none of it stays whole."""
    if isinstance(value, str):
        yield value, "none"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key), "none"
            yield from _inner(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _inner(item)
