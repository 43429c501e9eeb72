"""What an assistant turn must train, worked out with transformers' own rendering and nothing of the renderer's."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from espalier.data.render.calls import FORMS
from espalier.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SWITCHES = ("enable_thinking", "open_thinking", "thinking")
_NEXT, _OTHER = "Zqnext", "Zqother"
# What a generation prompt may end in beyond what the template writes before answers.
_THINKS = re.compile(
    r"[<\[]\|?/?(?:think|thinking|thought|reasoning|start_thinking|end_thinking)\|?[>\]]", re.IGNORECASE
)


def squash(text: str) -> str:
    """Text without white space, case and compatibility forms, which tokenizers and templates may change."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(text.split()).replace("\ufffd", "").replace("\u2581", "")


def begins(text: str, start: str) -> bool:
    """Whether a squashed text begins with another, which may end inside a character and its accents."""
    return unicodedata.normalize("NFKD", text).startswith(unicodedata.normalize("NFKD", start))


def leading(text: str) -> str:
    """The white space with which a text begins."""
    return text[: len(text) - len(text.lstrip())]


@dataclass(frozen=True, slots=True)
class Expected:
    """What one turn may train: `bodies` are the texts (squashed) of which one must be trained, `through` the samples
    through there (squashed), for each of them; `lead` is the white space with which the turn begins."""

    bodies: tuple[str, ...]
    through: tuple[str, ...]
    lead: str


class Plain:
    """The tokenizer's chat template as transformers alone renders it.

    known: ids that the model stops on. given: names that the run gives the template.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, known: Sequence[int], given: Mapping[str, Any] | None = None
    ) -> None:
        self.tokenizer, self.given = tokenizer, given or {}
        self.special: dict[str, int] = {}
        self.markup: dict[str, int] = {}
        for i, token in tokenizer.added_tokens_decoder.items():
            if token.special or i in tokenizer.all_special_ids or i in known:
                self.special[token.content] = i
            elif not token.content.isspace():
                self.markup[token.content] = i
        self.known = {*known, tokenizer.eos_token_id}
        # Such vocabularies have tokens that begin with a space where the text has none.
        self.spare = " " * any(name.startswith("\u2581") for name in tokenizer.get_vocab())
        # Others may lose spaces at the edges of what they encode or decode, or take them into control tokens.
        takes = any(token.rstrip or token.lstrip for token in tokenizer.added_tokens_decoder.values())
        ids = tokenizer(" \n  a", add_special_tokens=False)["input_ids"]
        self.keeps_space = not takes and tokenizer.decode(ids, clean_up_tokenization_spaces=False) == " \n  a"
        names = sorted(self.special, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def variants(self, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The names given to the template, with each switch for reasoning as it is, on and off."""
        source = str(self.tokenizer.get_chat_template())
        own = {**self.given, **given}
        switches = [name for name in _SWITCHES if name in source and name not in own]
        if not switches:
            return [own]
        return [own, {**own, **dict.fromkeys(switches, True)}, {**own, **dict.fromkeys(switches, False)}]

    def write(
        self, messages: Sequence[Mapping[str, Any]], tools: Any = None, generate: bool = False, **values: Any
    ) -> str | None:
        """The text of messages; None if the template refuses them."""
        # What `apply_chat_template` calls; that one takes no function, and the date of today must be the fixed one.
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import _compile_jinja_template

        from espalier.data.render.turns import fixed_date

        names = {**self.tokenizer.special_tokens_map, "strftime_now": fixed_date, **values}
        names |= {"messages": messages, "tools": tools or None, "documents": None, "add_generation_prompt": generate}
        try:
            source = self.tokenizer.get_chat_template(tools=tools or None)
            return str(_compile_jinja_template(source).render(**names))
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError):
            return None

    @cached_property
    def _opening(self) -> set[str]:
        """Control tokens that stand in front of the first content of a conversation."""
        question = {"role": "user", "content": "Zquestion"}
        for first in ({"role": "system", "content": "Zqsystem"}, question):
            text = self.write([first, question] if first is not question else [question])
            if text is not None and first["content"] in text:
                return set(self._control.findall(text.partition(first["content"])[0]))
        return set()

    @cached_property
    def _header(self) -> str:
        """What a generation prompt adds behind a question, if it holds a control token."""
        question = {"role": "user", "content": "Zquestion"}
        asked, prompt = self.write([question]), self.write([question], generate=True)
        if asked is None or prompt is None or not prompt.startswith(asked):
            return ""
        header = prompt[len(asked) : self._opening_of_thought(prompt)]
        return header if self._control.search(header) else ""

    def turn(self, messages: Sequence[Message], index: int, tools: Any, given: Mapping[str, Any]) -> Expected | None:
        """What the assistant message `index` must train; None if the template does not say it. given: names that the
        row gives the template.

        Tool calls may be written in each form that the template takes.
        """
        message = messages[index]
        bodies: list[str] = []
        through: list[str] = []
        lead = ""
        for call_form in FORMS if any(m.tool_calls for m in messages) else FORMS[:1]:
            written = [as_dict(m) for m in call_form.written(messages[: index + 1])]
            for values in self.variants(given):
                prompt = self.write(written[:-1], tools, generate=True, **values)
                text = self.write(written, tools, **values)
                if prompt is None or text is None or not text.startswith(prompt):
                    continue
                start = len(prompt)
                left_out = self._header and self.write(written[:-1], tools, **values) == prompt
                if left_out and text.startswith(self._header, start):
                    start += len(self._header)
                ends = list(self._ends(written, message, tools, values, text, start))
                bodies += [squash(end[start:]) for end in ends]
                through += [squash(self._unmarked(end)) for end in ends]
                lead = max(lead, leading(text[start:]), key=len)
                break
            else:
                for prompt, turn in self._apart(written, message, tools, given):
                    bodies.append(squash(turn))
                    through.append(squash(self._unmarked(prompt + turn)))
                    lead = max(lead, leading(turn), key=len)
        return Expected(tuple(bodies), tuple(through), lead) if bodies else None

    def _apart(
        self, asked: list[dict[str, Any]], message: Message, tools: Any, given: Mapping[str, Any]
    ) -> Iterator[tuple[str, str]]:
        """(prompt, turn) of a turn that does not begin with its generation prompt: the same but for white space, or the
        prompt opens the reasoning. Reasoning stands behind that opening, an answer without any before it."""
        for values in self.variants(given):
            prompt = self.write(asked[:-1], tools, generate=True, **values)
            text = self.write(asked, tools, **values)
            if prompt is None or text is None:
                continue
            starts = [at for at in range(len(text) + 1) if squash(text[:at]) == squash(prompt)]
            if starts:
                for end in self._ends(asked, message, tools, values, text, starts[-1]):
                    yield prompt, end[starts[-1] :]
                return
            start = self._opening_of_thought(prompt)
            if start is None or not text.startswith(prompt[:start]):
                continue
            thought, closed, answer = message.content.rpartition("</think>")
            if message.reasoning:
                thought, closed, answer = message.reasoning, "</think>", message.content
            for end in self._ends(asked, message, tools, values, text, start):
                if not closed:
                    yield prompt[:start], end[start:]
                    continue
                rest = end[start:].lstrip()
                for said in (message.content.strip(), answer.strip()):
                    if rest.startswith(said):
                        rest = rest.removeprefix(said)
                        break
                yield prompt, thought.replace("<think>", "").lstrip() + closed + answer + rest
            return

    def _ends(
        self,
        asked: list[dict[str, Any]],
        message: Message,
        tools: Any,
        values: Mapping[str, Any],
        text: str,
        start: int,
    ) -> Iterator[str]:
        """The texts that end where the turn may: the rendering through its one stop token."""
        behind = self._behind(asked, message, tools, values, text)
        if behind is None:
            behind = content_end(message, self._control.sub(lambda match: "\0" * len(match[0]), text), start)
        following = self._followed(asked, message, tools, values)
        kept = [longer for longer in following if longer.startswith(text[:behind])]
        own = [(match.end(), match[0]) for match in self._control.finditer(text, behind)]
        common = [(end, name) for end, name in own if kept and all(longer.startswith(text[:end]) for longer in kept)]
        for tokens in (common, own):
            known = [(end, name) for end, name in tokens if self.special[name] in self.known]
            fresh = [(end, name) for end, name in tokens if name not in self._opening]
            if tokens:
                for end, _ in known or fresh or tokens:
                    yield text[:end]
                return
        # The template leaves the turn open: the next message's marker ends it, if the model stops there, or the
        # end-of-text token.
        for longer in kept:
            rest = longer[len(text.rstrip()) :].lstrip() if longer.startswith(text.rstrip()) else ""
            marker = self._control.match(rest)
            if marker and self.special[marker[0]] in self.known:
                yield text + marker[0]
        for name, i in self.special.items():
            if i in self.known:
                yield text + name

    def opens_thought(self, prompt: str) -> bool:
        """Whether a prompt ends in an opening of reasoning."""
        return self._opening_of_thought(prompt) is not None

    def _opening_of_thought(self, prompt: str) -> int | None:
        """Where the opening of reasoning starts in which a prompt ends; None if it ends in something else."""
        for match in _THINKS.finditer(prompt):
            if not _THINKS.sub("", prompt[match.start() :]).strip():
                return match.start()
        return None

    def _behind(
        self, asked: list[dict[str, Any]], message: Message, tools: Any, values: Mapping[str, Any], text: str
    ) -> int | None:
        """Where the content of the last message ends in `text`: in front of what is also written behind another one.
        None if the message calls tools, or the template writes these in different ways."""
        if message.tool_calls or not message.content.strip():
            return None
        other = self.write([*asked[:-1], {**asked[-1], "content": _OTHER}], tools, **values)
        if other is None or _OTHER not in other:
            return None
        rest = other[other.rindex(_OTHER) + len(_OTHER) :]
        return len(text) - len(rest) if text.endswith(rest) else None

    def _followed(
        self, asked: list[dict[str, Any]], message: Message, tools: Any, values: Mapping[str, Any]
    ) -> list[str]:
        """The conversation with a user's message behind it, or a tool's behind a call, up to its content."""
        next_messages = [{"role": "user", "content": _NEXT}]
        if message.tool_calls:
            next_messages.insert(0, {"role": "tool", "content": _NEXT, "name": "f"})
        texts = []
        for following in next_messages:
            longer = self.write([*asked, following], tools, **values)
            if longer is not None and _NEXT in longer:
                texts.append(longer[: longer.rindex(_NEXT)])
                break
        return texts

    def _unmarked(self, text: str) -> str:
        """Text without the begin-of-text token, which template or tokenizer write."""
        return text.removeprefix(str(self.tokenizer.bos_token)) if self.tokenizer.bos_token else text

    def controls(self, messages: Sequence[Message], tools: Any, given: Mapping[str, Any]) -> Counter[int] | None:
        """How often the template writes each control token if no content holds one; None if it refuses them.

        Answers may hold markup that is not special.
        """
        neutral = []
        for message in messages:
            names: Collection[str] = self.special if message.role == "assistant" else {**self.special, **self.markup}
            neutral.append(as_dict(message, names))
        text = None
        for values in self.variants(given):
            text = self.write(neutral, tools, **values)
            if text is not None:
                break
        if text is None:
            return None
        control = {*self.special.values(), *self.markup.values()}
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        counts = Counter(i for i in ids if i in control)
        # Reasoning that a generation prompt opens: the template leaves it and its ends out of turns.
        prompt = self.write(neutral[:1], generate=True, **self.given) or ""
        if self._opening_of_thought(prompt) is not None:
            answers = [m for m in messages if m.role == "assistant"]
            said = prompt + "".join(m.content + "</think>" * bool(m.reasoning) for m in answers)
            for name, i in self.markup.items():
                counts[i] += said.count(name) * bool(_THINKS.fullmatch(name))
        return counts


def as_dict(message: Message, without: Collection[str] = ()) -> dict[str, Any]:
    """A message as templates take it, without the texts `without` in its content."""
    content = message.content
    for name in without:
        content = re.sub(re.escape(name), "x" * len(name), content, flags=re.IGNORECASE)
    fields: dict[str, Any] = {"role": message.role, "content": content}
    if message.reasoning is not None:
        fields["reasoning_content"] = fields["thinking"] = message.reasoning
    if message.tool_calls:
        fields["tool_calls"] = [dict(call) for call in message.tool_calls]
    if message.name is not None:
        fields["name"] = message.name
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    return fields


def content_end(message: Message, text: str, start: int) -> int:
    """Where the last of what a message says stands in `text` from `start` on, as whole words; `start` if nothing of it
    is found. Control tokens in `text` are blanked."""
    end = start
    pieces = [message.content.strip(), (message.reasoning or "").strip()]
    for call in message.tool_calls:
        pieces += _texts(call)
    for piece in filter(None, pieces):
        before = r"(?<!\w)" if piece[0].isalnum() else ""
        after = r"(?!\w)" if piece[-1].isalnum() else ""
        for match in re.compile(before + re.escape(piece) + after).finditer(text, start):
            end = max(end, match.end())
    return end


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
