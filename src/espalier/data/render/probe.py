"""What a template does with conversations that are made for the purpose: what ends its turns, and what it drops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from espalier.data.render import stops
from espalier.data.render.calls import as_text
from espalier.data.render.control import Added, Codec
from espalier.data.render.openings import opens_thought
from espalier.data.render.turns import Templates
from espalier.errors import RowError
from espalier.types import Chat


class Probe:
    """What a template does with conversations made for the purpose.

    ends: how assistant turns end. drops: what a row can hold and the template leaves out without a word. renders:
    whether it takes one question with one answer. known: ids that the model stops on, the tokenizer's end of text
    first; the attribute has those that can end a turn.
    """

    def __init__(self, form: Templates, codec: Codec, known: Sequence[int]) -> None:
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
        if called is None:  # a template that joins the arguments of calls as text
            caller = {**caller, "tool_calls": [as_text(call)]}
            called = _tried(form, (user, caller))
        self.renders = answered is not None
        instructed = _tried(form, (system, user, answer))
        resulted = _tried(form, (user, caller, result, answer))
        considered = _tried(form, (user, thought))
        turns = _Turns(_tried(form, (user,)), answered, considered, self._twice, called, resulted, instructed)
        prompt = _tried(form, (user,), generate=True)
        self.known, self.ends = _ends(codec, turns, known, prompt)
        words_and_texts = {
            "system messages": ("Zqs", instructed),
            "reasoning": ("Zqr", considered),
            "tool calls": ("zqf", called),
            "tools": ("zqo", _tried(form, (user, answer), [tool])),
            "tool messages": ("Zqt", resulted),
        }
        dropped = []
        for name, (word, text) in words_and_texts.items():
            # Reasoning that the prompt opens goes behind the prompt, see `openings`.
            opened = name == "reasoning" and prompt is not None and opens_thought(prompt)
            if text is not None and word not in text and not opened:
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


def _tried(
    form: Templates, messages: Sequence[dict[str, Any]], tools: Any = None, generate: bool = False
) -> str | None:
    """The text of `messages`; None if the template refuses such a conversation."""
    try:
        return form.write(messages, tools, generate)
    except RowError:  # it will refuse such rows, too, and in its own words
        return None


class _Turns(NamedTuple):
    """Renderings of a question, with an answer, with a thought and an answer, of two questions with answers, of a
    question with a call, with its result and an answer, and with an answer behind a system message; None for what the
    template refuses."""

    asked: str | None
    answered: str | None
    thought: str | None
    twice: str | None
    called: str | None
    resulted: str | None
    instructed: str | None


def _ends(
    codec: Codec, texts: _Turns, known: Sequence[int], prompt: str | None
) -> tuple[Sequence[int], stops.TurnEnds]:
    """Those of the `known` stops that are usable, and how the answer "Zqa" and the call of "zqf" end in these texts.
    prompt: the question with a generation prompt.

    The end of a call counts only if it is a special token: markup such as `</tool_call>` ends the call, not the turn.
    """
    if texts.answered is None or "Zqa" not in texts.answered:
        return [], stops.TurnEnds()
    opening_text = texts.answered.partition("Zqu")[0]
    if texts.instructed is not None and "Zqs" in texts.instructed:
        opening_text = texts.instructed.partition("Zqs")[0]
    opening = {token.id for _, _, token in codec.written(opening_text)}
    header = stops.header(codec, texts.asked, prompt)
    # A system turn that the template always writes has its end in what opens a conversation; what opens turns is
    # what also opens the assistant's.
    opening &= {token.id for _, _, token in codec.written(header)} or opening
    answer = _behind(texts.answered, texts.twice, "Zqa", "Zqu")
    call = _behind(texts.called, texts.resulted, "zqf", "Zqt")
    held = []
    for text, word in ((texts.answered, "Zqa"), (texts.thought, "Zqa"), (texts.called, "zqf")):
        if text and prompt and text.startswith(prompt) and word in text:
            held.append(text[len(prompt) : text.rindex(word)])
    known = stops.usable(known, codec, held)
    ids: list[int] = []
    closing: list[Added | None] = []
    for place, special in ((answer, False), (call, True)):
        own = stops.own_end(codec, place, opening, known, special=special) if place else None
        following = stops.marker(codec, place) if place else None
        closed = None
        if following is not None and following.id in known and (own is None or own.id not in known):
            own, closed = None, following
        elif own is None and following is not None and known:
            closed = codec.added[known[0]]
        closing.append(closed)
        ids += [token.id for token in (own, closed) if token is not None]
    tails = stops.tails(codec, ((texts.asked, texts.answered), (texts.answered, texts.twice)))
    behind = set()
    for place in (answer, call):
        if place and (end := stops.first_written(codec, place.end, 0, ids)) >= 0:
            behind.add(place.end[end:])
    return known, stops.TurnEnds(tuple(dict.fromkeys(ids)), closing[0], closing[1], tails, frozenset(behind), header)


def _behind(text: str | None, longer: str | None, word: str, next_word: str) -> stops.Behind | None:
    """What stands behind `word` in a rendering, and up to `next_word` in a longer one; None if it is not in there."""
    if not text or word not in text:
        return None
    _, _, following = (longer or "").partition(word)
    between, found, _ = following.partition(next_word)
    return stops.Behind(text.partition(word)[2], between if found else "")
