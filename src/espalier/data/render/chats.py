"""Conversations to drafts: what is trained is what a sampler would have to produce, token for token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

from espalier.data.render import templates
from espalier.data.render.control import Codec, Follows
from espalier.data.render.drafts import Draft, Mark
from espalier.data.render.form import CHATS, Form
from espalier.data.render.turns import Probe, Row, Templates, Turn, rewritten
from espalier.errors import ConfigError, ModelError, RowError
from espalier.types import Chat, Message, TrainOn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHOICES = "Choose one with --template chatml, llama3, alpaca, plain or a Jinja file"


class Chats:
    """Turns conversations into drafts under one tokenizer and its chat template; see `renderer.Renderer`.

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
        self.eos = int(tokenizer.eos_token_id)
        self.bos = int(tokenizer.bos_token_id) if templates.adds_bos(tokenizer) else None
        self._bos_text = str(tokenizer.bos_token)
        self._templates: Templates | None = None
        self._probe: Probe | None = None
        if tokenizer.chat_template is None:
            self.codec = Codec(tokenizer)
        else:
            plain, tools = tokenizer.get_chat_template(), tokenizer.get_chat_template(tools=[{}])
            self._templates = Templates(plain, tools, dict(tokenizer.special_tokens_map))
            literals = [*templates.literals(plain), *templates.literals(tools)]
            self.codec = Codec(tokenizer, literals=literals)
            self._probe = Probe(self._templates, self.codec)
            if any(not self.codec.added[i].special for i in self._probe.ends):
                self.codec = Codec(tokenizer, turn_ends=self._probe.ends, literals=literals)
        ends = self._probe.ends if self._probe else ()
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((*ends, self.eos)))
        self.bos_id = self.bos
        if self._probe and self.bos is None and tokenizer.bos_token and self._probe.opens_with(self._bos_text):
            self.bos_id = int(tokenizer.bos_token_id)

    def head(self, text: str) -> list[int]:
        """The begin-of-text token, where the tokenizer puts one in front and the template has not written it."""
        return [] if self.bos is None or text.startswith(self._bos_text) else [self.bos]

    def row(self, chat: Chat) -> Row:
        """The conversation under its template. Raises ModelError for a tokenizer without one that chats can use."""
        if self._templates is None or self._probe is None:
            raise ModelError(f"the tokenizer has no chat template, and chat data needs one. {_CHOICES}")
        if self._probe.renders and not self._probe.ends:
            raise ModelError(f"the chat template writes no token that ends an assistant turn. {_CHOICES}")
        self._probe.check(chat)
        return Row(chat, self._templates, self.codec, self.stop_ids)

    def drafts(self, chat: Chat, *, apart: bool = False) -> list[Draft]:
        """The samples of a conversation, not yet cut to length. Raises as `render` does.

        apart: turns that are not trained are encoded on their own, too, so that conversations which share messages
        share their tokens.
        """
        row, weights, every = self.row(chat), self.weights(chat.messages), self.train_on == "all"
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
        draft.add(self.head(full), base)
        for turn in turns:
            follows = self._gap(draft, row, full, at, turn.start, follows, marks, base)
            response = full[turn.start : turn.end]
            piece = self.codec.encode(response, row.seal, follows)
            meant = row.seal.open(response) if row.seal else response
            if not self.codec.reads(piece.ids, meant):
                raise RowError(
                    "trained tokens decode to other text",
                    field=f"messages[{turn.message}]",
                    got=repr(self.codec.decode(piece.ids)[:60]),
                    expected=repr(meant[:60]),
                )
            stop = self.codec.added[piece.ids[-1]].text
            draft.add_turn(piece, weights[turn.message], meant.removesuffix(stop))
            at, follows = turn.end, "token"
        self._gap(draft, row, full, at, end, follows, marks, base)
        return draft

    def _gap(
        self, draft: Draft, row: Row, full: str, a: int, b: int, follows: Follows, marks: Sequence[Mark], base: float
    ) -> Follows:
        """Append the characters a to b, which stand between turns. Returns what the next piece follows."""
        if follows == "token" and self.codec.added[draft.sample.tokens[-1]].rstrip:
            a += len(full[a:b]) - len(full[a:b].lstrip())  # that token takes the spaces behind it
        if a == b:
            return follows
        piece = self.codec.encode(full[a:b], row.seal, follows)
        draft.add_piece(piece, a, [m for m in marks if m.start < b and m.end > a], base)
        return self.codec.ending(full[a:b])

    def _sampled(self, row: Row, full: str, last: Turn, draft: Draft) -> bool:
        """Whether a sampler that is given all of `full` before the last turn as text sees the tokens of `draft`."""
        text = full[: last.start]
        return self.head(text) + self.codec.encode(text, row.seal).ids == draft.sample.tokens[: draft.turn_at]
