"""Examples to samples: what is trained is what a sampler would have to produce, token for token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, get_args

from espalier.data import render_judged, templates
from espalier.data.control import Codec, Follows
from espalier.data.form import CHATS, Form
from espalier.data.rendered import Draft, Mark, Rendered
from espalier.data.turns import Probe, Row, Templates, Turn, rewritten
from espalier.errors import ConfigError, ModelError, RowError
from espalier.types import Chat, Completion, Example, Message, Ranking, Steps, Text, Tree

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RENDER_VERSION = 3
"""Part of the fingerprint: raised whenever the same example would give other tokens or judgements."""

TrainOn = Literal["assistant", "last", "all"]
_FORMS = {
    "chat": "a conversation, a tree of them, a text or a completion",
    "ranking": "a ranking: a prompt with judged responses",
    "steps": "a solution in steps",
}
_CHOICES = "Choose one with --template chatml, llama3, alpaca, plain or a Jinja file"


class Renderer:
    """Turns examples into samples under one tokenizer and its chat template.

    A trained turn is encode(what a sampler would be given there) + encode(the rest of that turn through its stop
    token), joined as ids; the rest is trained. What follows the stop token belongs to the next prompt. A conversation
    is one sample, or, where later turns re-render earlier ones (templates that drop old reasoning), one sample for each
    trained turn. Example, under ChatML, trained tokens in brackets:

        <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n[Hello<|im_end|>]

    train_on: `assistant` trains every assistant turn, `last` the last one, `all` every token of the rendered
    conversation; a message's own weight goes first. max_length: longest sample in tokens, 0 for no limit; longer ones
    lose their tail and have stop "length", but a plain text becomes several samples and loses nothing. `stop_ids` end
    an assistant turn. `bos_id` is what a sample must start with and hold once, None where there is no such token. A
    template that writes the date of today gets a fixed one.

    Raises ConfigError for an unknown train_on or a negative max_length, ModelError for a tokenizer that cannot be used.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        train_on: TrainOn = "assistant",
        max_length: int = 0,
        form: Form = CHATS,
    ) -> None:
        if train_on not in get_args(TrainOn):
            raise ConfigError(f"train_on got {train_on!r}; expected {', '.join(get_args(TrainOn))}")
        if form.consumes != "chat" and train_on != "assistant":
            raise ConfigError(f"train_on got {train_on!r}, but rankings and steps train the response; leave it out")
        if max_length < 0:
            raise ConfigError(f"max_length got {max_length}; expected a number of tokens, or 0 for no limit")
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer names no end-of-text token. Set eos_token in its tokenizer_config.json")
        self.train_on, self.max_length, self.form = train_on, max_length, form
        self._eos = int(tokenizer.eos_token_id)
        self._bos = int(tokenizer.bos_token_id) if templates.adds_bos(tokenizer) else None
        self._bos_text = str(tokenizer.bos_token)
        self._form: Templates | None = None
        self._probe: Probe | None = None
        if tokenizer.chat_template is None:
            self._codec = Codec(tokenizer)
        else:
            plain, tools = tokenizer.get_chat_template(), tokenizer.get_chat_template(tools=[{}])
            self._form = Templates(plain, tools, dict(tokenizer.special_tokens_map))
            literals = [*templates.literals(plain), *templates.literals(tools)]
            self._codec = Codec(tokenizer, literals=literals)
            self._probe = Probe(self._form, self._codec)
            if any(not self._codec.added[i].special for i in self._probe.ends):
                self._codec = Codec(tokenizer, turn_ends=self._probe.ends, literals=literals)
        ends = self._probe.ends if self._probe else ()
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((*ends, self._eos)))
        self.bos_id = self._bos
        if self._probe and self._bos is None and tokenizer.bos_token and self._probe.opens_with(self._bos_text):
            self.bos_id = int(tokenizer.bos_token_id)
        decides = [RENDER_VERSION, self._codec.backend_json, tokenizer.all_special_ids, self._bos, self._eos]
        decides += [tokenizer.chat_template, dict(tokenizer.special_tokens_map), train_on, max_length]
        decides += [asdict(form)]
        self.fingerprint: str = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()

    # ------------------------------------------------------------------------------------------------------ the verbs

    def render(self, example: Example, key: int = 0) -> list[Rendered]:
        """The group of samples that `example` becomes; `key` is the key and the group of them all.

        Raises RowError, with a reason that can be counted, where it cannot be used, and ModelError where the tokenizer
        has no template that chats could use.
        """
        match self.form.consumes, example:
            case "chat", Chat():
                drafts = self.drafts(example)
            case "chat", Text():
                drafts = self._windows(self._plain(("text", example.text, 1.0)))
            case "chat", Completion():
                drafts = [self._plain(("prompt", example.prompt, 0.0), ("completion", example.completion, 1.0))]
            case "chat", Tree():
                return render_judged.tree(self, example, key)
            case "ranking", Ranking():
                return render_judged.ranking(self, example, key)
            case "steps", Steps():
                return render_judged.steps(self, example, key)
            case _:
                raise RowError(
                    "wrong form",
                    got=f"a {type(example).__name__}",
                    expected=_FORMS[self.form.consumes],
                    fix="Give such rows to a command that reads them, or name their format with PATH:FORMAT",
                )
        return [draft.finish(self.max_length, key) for draft in drafts]

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """The ids that a sampler is given before an assistant turn that follows `messages`. Raises as `render` does."""
        row = self._row(Chat(tuple(messages), tuple(tools)))
        text = row.write(len(messages), generate=True)
        return self._head(text) + self._codec.encode(text, row.seal).ids

    def text(self, prompt: str) -> list[int]:
        """The ids of a text that a sampler goes on with, without chat markup; nothing in it becomes a control token."""
        seal = self._codec.seal([(prompt, False)])
        return self._head("") + self._codec.encode(seal.close(prompt) if seal else prompt, seal).ids

    # -------------------------------------------------------------------------------------------------- text, no chat

    def _plain(self, *parts: tuple[str, str, float]) -> Draft:
        if not parts[-1][1]:
            raise RowError("nothing to train", field=parts[-1][0], got="an empty string")
        draft = Draft()
        follows: Follows = "start"
        seal = self._codec.seal([(text, False) for _, text, _ in parts])
        draft.add(self._head(""), parts[0][2])
        for role, text, weight in parts:
            if text:
                ids = self._codec.encode(seal.close(text) if seal else text, seal, follows).ids
                draft.add([*ids, self._eos] if role == parts[-1][0] else ids, weight, role)
                follows = "text"
        return draft

    def _windows(self, draft: Draft) -> list[Draft]:
        """A text in samples of at most max_length tokens, so that every token is scored once; the last one stops.

        A window begins with the begin-of-text token, or, where there is none, with the last token of the one before.
        """
        ids, head = draft.sample.tokens, self._head("")
        if self.max_length < 2 or len(ids) <= self.max_length:
            return [draft]
        windows, step = [], self.max_length - 1
        for low in range(1, len(ids), step):
            window = Draft()
            window.add(head or ids[low - 1 : low], 1.0 if head or low == 1 else 0.0, "" if head else "text")
            window.add(ids[low : low + step], 1.0, "text")
            window.sample.stop = "stop" if low + step >= len(ids) else "length"
            windows.append(window)
        return windows

    def _head(self, text: str) -> list[int]:
        """The begin-of-text token, where the tokenizer puts one in front and the template has not written it."""
        return [] if self._bos is None or text.startswith(self._bos_text) else [self._bos]

    # ---------------------------------------------------------------------------------------------------------- chats

    def _row(self, chat: Chat) -> Row:
        if self._form is None or self._probe is None:
            raise ModelError(f"the tokenizer has no chat template, and chat data needs one. {_CHOICES}")
        if self._probe.renders and not self._probe.ends:
            raise ModelError(f"the chat template writes no token that ends an assistant turn. {_CHOICES}")
        self._probe.check(chat)
        return Row(chat, self._form, self._codec, self.stop_ids)

    def drafts(self, chat: Chat, *, apart: bool = False) -> list[Draft]:
        """The samples of a conversation, not yet cut to length. Raises as `render` does.

        apart: turns that are not trained are encoded on their own, too, so that conversations which share messages
        share their tokens.
        """
        row, weights, every = self._row(chat), self.weights(chat.messages), self.train_on == "all"
        size = len(weights) if every else 1 + max((i for i, w in enumerate(weights) if w), default=-1)
        if not any(weights):
            raise RowError("nothing to train", got="no trained message", expected="one assistant turn at least")
        roles = [m.role for m in chat.messages[:size]]
        own = [i for i, m in enumerate(chat.messages[:size]) if m.weight not in (None, 1.0 if every else 0.0)]
        others = [i for i in own if roles[i] != "assistant"]
        try:
            every_turn = every or apart
            turns = [row.turn(i) for i, r in enumerate(roles) if r == "assistant" and (every_turn or weights[i])]
        except RowError:
            if not every or own:
                raise
            turns = []  # all tokens are trained alike, so it does not matter where a turn begins
        full = turns[-1].text if turns and turns[-1].message == size - 1 else row.write(size)
        if all(full.startswith(turn.text[: turn.end]) for turn in turns):
            regions = [(i, *row.region(i, full)) for i in others]
            draft = self._draft(row, full, turns, weights, roles, regions)
            if len(turns) < 2 or self._sampled(row, full, turns[-1], draft):
                return [draft]
        if every:
            if own:
                raise rewritten(own[0])
            return [self._draft(row, full, [], weights, roles)]
        if others:
            raise rewritten(others[0])
        return [
            self._draft(row, t.text, [t], weights, roles[: t.message + 1])
            for t in turns  # each trains its own turn only
            if weights[t.message]
        ]

    def weights(self, messages: Sequence[Message]) -> list[float]:
        """The weight with which each message is trained, 0 where it is not. Raises RowError for a negative one."""
        last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=-1)
        found = []
        for i, m in enumerate(messages):
            trained = self.train_on == "all" or (m.role == "assistant" and (self.train_on != "last" or i == last))
            weight = float(trained) if m.weight is None else m.weight
            if not 0 <= weight < float("inf"):
                raise RowError(
                    "impossible weight", field=f"messages[{i}].weight", got=str(weight), expected="0 or more"
                )
            found.append(weight)
        return found

    def _draft(
        self,
        row: Row,
        full: str,
        turns: Sequence[Turn],
        weights: Sequence[float],
        roles: Sequence[str],
        regions: Sequence[tuple[int, int, int]] = (),
    ) -> Draft:
        """One sample of `full`, cut where its turns begin and end. `regions` are other messages with own weights."""
        base = 1.0 if self.train_on == "all" else 0.0
        cut = {turn.message for turn in turns} | {i for i, _, _ in regions}
        marks = [Mark(a, b, roles[i], weights[i]) for i, a, b in regions]
        marks += [Mark(a, b, roles[i], base) for i, a, b in row.contents(full, len(roles)) if i not in cut]
        marks.sort()
        end = len(full) if base else max([turn.end for turn in turns] + [b for _, _, b in regions])
        draft, at = Draft(), 0
        follows: Follows = "start"
        draft.add(self._head(full), base)
        for turn in turns:
            follows = self._gap(draft, row, full, at, turn.start, follows, marks, base)
            response = full[turn.start : turn.end]
            piece = self._codec.encode(response, row.seal, follows)
            meant = row.seal.open(response) if row.seal else response
            if not self._codec.reads(piece.ids, meant):
                raise RowError(
                    "trained tokens decode to other text",
                    field=f"messages[{turn.message}]",
                    got=repr(self._codec.decode(piece.ids)[:60]),
                    expected=repr(meant[:60]),
                )
            stop = self._codec.added[piece.ids[-1]].text
            draft.add_turn(piece, weights[turn.message], meant.removesuffix(stop))
            at, follows = turn.end, "token"
        self._gap(draft, row, full, at, end, follows, marks, base)
        return draft

    def _gap(
        self, draft: Draft, row: Row, full: str, a: int, b: int, follows: Follows, marks: Sequence[Mark], base: float
    ) -> Follows:
        """Append the characters a to b, which stand between turns. Returns what the next piece follows."""
        if follows == "token" and self._codec.added[draft.sample.tokens[-1]].rstrip:
            a += len(full[a:b]) - len(full[a:b].lstrip())  # that token takes the spaces behind it
        if a == b:
            return follows
        piece = self._codec.encode(full[a:b], row.seal, follows)
        draft.add_piece(piece, a, [m for m in marks if m.start < b and m.end > a], base)
        return self._codec.ending(full[a:b])

    def _sampled(self, row: Row, full: str, last: Turn, draft: Draft) -> bool:
        """Whether a sampler that is given all of `full` before the last turn as text sees the tokens of `draft`."""
        text = full[: last.start]
        return self._head(text) + self._codec.encode(text, row.seal).ids == draft.sample.tokens[: draft.turn_at]
