"""Content that looks like control tokens: where it stands, and how often.

Content never becomes a control token by itself (see `control`), so that an answer that ends in `<|im_end|>` teaches to
write these characters. What is found here is said to the user, who may ask for the tokens (`parse_control`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from espalier.data.render.control import Codec, Whole
from espalier.errors import RowError
from espalier.types import Chat, Completion, Example, Message, Ranking, Steps, Task, Text, Tree

FOREIGN = "markup of another vocabulary"
# Besides `<|name|>`: what some families write around turns.
_OTHERS = ("<s>", "</s>", "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>")
_MARKUP = "<[|\uff5c][^<>\\s|\uff5c]{1,60}[|\uff5c]>"


class Lookout:
    """Counts contents that hold the text of control tokens.

    stop_ids: what an answer may end in. parsed: places in which control strings become tokens.
    """

    def __init__(self, codec: Codec, stop_ids: Sequence[int], parsed: Sequence[str]) -> None:
        self._codec, self._parsed = codec, parsed
        self.stops = tuple(codec.added[i].text for i in stop_ids if i in codec.added)
        self._known = {codec.added[i].text: codec.added[i] for i in codec.control_ids}
        texts = sorted({*self._known, *_OTHERS}, key=len, reverse=True)
        self._pattern = re.compile("|".join([*map(re.escape, texts), _MARKUP]))

    def whole(self, place: str) -> Whole:
        """What stays whole in content of a place: prompt, completion or text."""
        return "all" if place in self._parsed else "none"

    def see(self, example: Example) -> tuple[dict[str, int], dict[str, int]]:
        """Contents of `example` that hold control strings, by place and string: those that are written as ordinary
        text, and those that become tokens because the user asked for it."""
        ordinary: dict[str, int] = {}
        tokens: dict[str, int] = {}
        for place, text in _contents(example):
            for string, at_end in self._strings(text):
                known = self._known.get(string)
                verb = "end in" if at_end and place in ("answers", "completions") else "hold"
                if known is None:
                    _count(ordinary, f"{place} {verb} {FOREIGN}")
                elif _PARSED.get(place) in self._parsed:
                    _count(tokens, f"{place} {verb} the token {string}")
                elif place != "answers" or known.special:
                    _count(ordinary, f"{place} {verb} {string}")
        return ordinary, tokens

    def _strings(self, text: str) -> list[tuple[str, bool]]:
        """The control strings in a text, each once, with whether the text ends in it."""
        found: dict[str, bool] = {}
        end = len(text.rstrip())
        for match in self._pattern.finditer(text):
            found[match[0]] = match.end() == end
        if len(found) > 1:  # strings that no vocabulary here knows count once
            foreign = [string for string in found if string not in self._known]
            for string in foreign[:-1]:
                del found[string]
        return list(found.items())

    def without_stop(self, text: str, field: str) -> str:
        """An answer whose control strings become tokens, without the stop token that the template writes behind it.

        Raises RowError if a stop token stands inside it: nothing behind that could be sampled.
        """
        if "completion" not in self._parsed:
            return text
        stripped = text
        while (shorter := _without_end(stripped.rstrip(), self.stops)) is not None:
            stripped = shorter
        for stop in self.stops:
            if stop in stripped:
                raise RowError(
                    "stop token inside an answer",
                    field=field,
                    got=f"{stop} before {stripped.partition(stop)[2][:40]!r}",
                    expected="a stop token at its end alone",
                    fix="Split it into turns, or leave parse_control completion out",
                )
        return stripped


_PARSED = {"prompts": "prompt", "answers": "completion", "completions": "completion", "texts": "text"}


def _without_end(text: str, stops: Sequence[str]) -> str | None:
    for stop in stops:
        if stop and text.endswith(stop):
            return text.removesuffix(stop)
    return None


def _contents(example: Example) -> Iterator[tuple[str, str]]:
    """(place, text) of all contents of an example."""
    match example:
        case Text():
            yield "texts", example.text
        case Completion():
            yield "prompts", example.prompt
            yield "completions", example.completion
        case Chat():
            yield from _messages(example.messages)
            yield from _tools(example.tools)
        case Ranking():
            yield from _messages(example.prompt)
            yield from _messages([response.message for response in example.responses])
            yield from _tools(example.tools)
        case Steps():
            yield from _messages(example.prompt)
            yield "answers", example.separator.join(example.steps)
        case Task():
            yield from _messages(example.prompt)
            yield from _tools(example.tools)
        case Tree():
            yield from _messages([node.message for node in example.nodes])


def _messages(messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
    for message in messages:
        yield "answers" if message.role == "assistant" else "prompts", message.content
        if message.reasoning:
            yield "reasoning", message.reasoning
        for call in message.tool_calls:
            yield "tool calls", json.dumps(call, ensure_ascii=False, default=str)


def _tools(tools: Sequence[Mapping[str, object]]) -> Iterator[tuple[str, str]]:
    for tool in tools:
        yield "tools", json.dumps(tool, ensure_ascii=False, default=str)


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1
