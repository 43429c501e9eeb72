"""Conversations to drafts: what is trained is what a sampler would have to produce, token for token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from espalier.data.render import templates
from espalier.data.render.bad_turns import Usable, merged, usable
from espalier.data.render.calls import Habits
from espalier.data.render.control import Codec, Whole, opened
from espalier.data.render.controls import Lookout
from espalier.data.render.drafts import Draft, Drafts, Mark
from espalier.data.render.form import CHATS, Form
from espalier.data.render.probe import Probe
from espalier.data.render.refused import DROPS, advised
from espalier.data.render.tokenizer_json import Follows
from espalier.data.render.turns import SealedChat, Templates, Turn, rewritten
from espalier.errors import ConfigError, ModelError, RowError
from espalier.types import Chat, Message, TrainOn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHOICES = "Choose one with --template chatml, llama3, alpaca, plain or a Jinja file"


class Tail(NamedTuple):
    """What a template writes behind the stop token of the last answer (a line end under ChatML), whether it leaves that
    answer open (then it writes no stop token there), and the token that stops it; None if the template takes no chat.
    """

    ids: tuple[int, ...]
    left_open: bool
    stop: int | None = None


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
        known_stops: Sequence[int] = (),
    ) -> None:
        if train_on not in get_args(TrainOn):
            raise ConfigError(f"train_on got {train_on!r}; expected {', '.join(get_args(TrainOn))}")
        if form.consumes != "chat" and train_on != "assistant":
            raise ConfigError(f"train_on got {train_on!r}, but rankings and steps train the response; leave it out")
        if max_length < 0:
            raise ConfigError(f"max_length got {max_length}; expected a number of tokens, or 0 for no limit")
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-text token. Set eos_token in its tokenizer_config.json")
        self.train_on, self.max_length, self.form = train_on, max_length, form
        self._base = 1.0 if train_on == "all" else 0.0  # the weight of tokens that no turn or region weighs
        self.eos = int(tokenizer.eos_token_id)
        self.bos = int(tokenizer.bos_token_id) if templates.adds_bos(tokenizer) else None
        self._bos_text = str(tokenizer.bos_token)
        self._templates: Templates | None = None
        self._probe: Probe | None = None
        turn_ends: tuple[int, ...] = ()
        if tokenizer.chat_template is None:
            self.codec = Codec(tokenizer)
        else:
            # A header that the template writes without a generation prompt is part of the prompt all the same.
            plain, tools = templates.both(tokenizer)
            header = templates.missing_prompt(tokenizer)
            plain, tools = templates.with_prompt(plain, header), templates.with_prompt(tools, header)
            given = form.turns.template_values
            self._templates = Templates(plain, tools, {**tokenizer.special_tokens_map, **given}, frozenset(given))
            literals = [*templates.literals(plain), *templates.literals(tools)]
            self.codec = Codec(tokenizer, literals=literals)
            self._probe = Probe(self._templates, self.codec, [self.eos, *known_stops])
            self._habits = Habits(self._tried)
            turn_ends = self._probe.ends.ids
            # Which tokens end a turn shows only in rendered text. One that the tokenizer does not
            # call special must never come from content either, so that the codec is built again
            # with it.
            if any(not self.codec.added[i].special for i in turn_ends):
                self.codec = Codec(tokenizer, turn_ends=turn_ends, literals=literals)
        known = self._probe.known if self._probe else ()
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((*turn_ends, self.eos, *known)))
        self.lookout = Lookout(self.codec, self.stop_ids, form.turns.parse_control)
        self.bos_id = self.bos
        if self._probe and self.bos is None and tokenizer.bos_token and self._probe.opens_with(self._bos_text):
            self.bos_id = int(tokenizer.bos_token_id)

    def _tried(self, messages: Sequence[dict[str, Any]]) -> str | None:
        """The text of messages as the template takes them; None if it refuses them."""
        assert self._templates is not None
        try:
            return self._templates.write(messages)
        except RowError:
            return None

    def head(self, text: str) -> list[int]:
        """The begin-of-text token, if the tokenizer puts one in front and the template has not written it."""
        return [] if self.bos is None or text.startswith(self._bos_text) else [self.bos]

    def sealed(self, chat: Chat) -> SealedChat:
        """The conversation under its template. Raises ModelError for a tokenizer without one that chats can use."""
        if self._templates is None or self._probe is None:
            raise ModelError(f"the tokenizer has no chat template, and chat data needs one. {_CHOICES}")
        ends = self._probe.ends
        if self._probe.renders and not ends.ids:
            raise ModelError(f"the chat template writes no token that ends an assistant turn. {_CHOICES}")
        self._probe.check(chat)
        dropped = self._habits.dropped(chat.messages)
        if dropped is not None:
            raise RowError(f"{DROPS} {dropped}", fix=f"{self._habits.drops[dropped]}, or choose another --template")
        forms, answers = self._habits.forms(chat.messages), self.lookout.whole("completion")
        whole: tuple[Whole, Whole] = (self.lookout.whole("prompt"), "markup" if answers == "none" else answers)
        return SealedChat(chat, self._templates, self.codec, ends, self.stop_ids, forms, whole)

    @cached_property
    def tail(self) -> Tail:
        """What follows the last answer of a conversation under the template. Raises nothing: rows say what is wrong."""
        question, answer = Message("user", "Zqu"), Message("assistant", "Zqa")
        try:
            sealed = self.sealed(Chat((question, answer)))
            turn = sealed.turn(1)
        except (ModelError, RowError):
            return Tail((), False)
        draft = Draft()
        self._turn(draft, sealed, turn, "token", 0.0)
        size = len(draft.sample)
        self._gap(draft, sealed, turn.text, turn.end, len(turn.text), "token", (), 0.0)
        return Tail(tuple(draft.sample.tokens[size:]), turn.left_open, draft.sample.tokens[size - 1])

    def prompt(self, chat: Chat) -> SealedChat:
        """The turns that an answer is to follow, merged as the form says."""
        return self.sealed(replace(chat, messages=merged(chat.messages, self.form.turns).messages))

    def drafts(self, chat: Chat, *, apart: bool = False) -> Drafts:
        """The samples of a conversation as far as it can be used, not yet cut to length. Raises as `render` does.

        apart: turns that are not trained are encoded on their own, too, so that conversations which share messages
        share their tokens.
        """
        fitting = usable(self._unstopped(chat.messages), self.form.turns, self.train_on)
        try:
            sealed, fitting = self._rendered(chat, fitting)
            drafts = self._drafts(sealed, replace(chat, messages=fitting.messages), fitting.leading, apart)
        except RowError as error:
            raise advised(self, chat, error) from None
        drafts.dropped, drafts.noted = fitting.dropped, {**fitting.noted, **dict.fromkeys(sorted(sealed.noted), 1)}
        if sealed.call_form.text:
            drafts.noted["tool calls with arguments as text"] = 1
        if sealed.call_form.ids:
            drafts.noted["tool calls with ids made"] = 1
        return drafts

    def _unstopped(self, messages: Sequence[Message]) -> list[Message]:
        """The messages without the stop tokens that answers end in, if those would become tokens."""
        result = []
        for i, message in enumerate(messages):
            content = message.content
            if message.role == "assistant":
                content = self.lookout.without_stop(content, f"messages[{i}]")
            result.append(message if content == message.content else replace(message, content=content))
        return result

    def _rendered(self, chat: Chat, fitting: Usable) -> tuple[SealedChat, Usable]:
        """The conversation under its template, without the assistant turns that open it if the template does not write
        them."""
        if fitting.leading:
            for attempt in (fitting, fitting.with_leading_untrained()):
                sealed = self._with_leading(chat, attempt)
                if sealed is not None:
                    return sealed, attempt
            fitting = fitting.without_leading()
        return self.sealed(replace(chat, messages=fitting.messages)), fitting

    def _with_leading(self, chat: Chat, fitting: Usable) -> SealedChat | None:
        """The conversation under its template; None if that does not write the turns that open it, or has no prompt for
        one that is trained."""
        leading = fitting.messages[: fitting.leading]
        try:
            sealed = self.sealed(replace(chat, messages=fitting.messages))
            text = sealed.write(len(fitting.messages))
            written = {index for index, _, _ in sealed.contents(text, len(leading))}
            for i, message in enumerate(leading):
                if message.content.strip() and i not in written:
                    return None
                if message.role == "assistant" and message.weight != 0:
                    sealed.turn(i)
        except RowError:
            return None
        return sealed

    def _drafts(self, sealed: SealedChat, chat: Chat, leading: int, apart: bool) -> Drafts:
        """The samples of a conversation of which all turns are used. leading: how many turns at its start the template
        may have no prompt for, if they are not trained."""
        weights = self.weights(chat.messages)
        result = Drafts()
        all_tokens = self.train_on == "all"
        trained = [i for i, weight in enumerate(weights) if weight]
        if not trained:
            fix = "Leave such rows out with --on-bad-row skip"
            if self.train_on == "last":
                fix = f"--train-on assistant trains every answer. {fix}"
            expected = "one trained assistant turn at least"
            raise RowError("nothing to train", got="no trained message", expected=expected, fix=fix)
        # What follows the last trained message decides nothing: the sample ends there.
        messages = chat.messages if all_tokens else chat.messages[: trained[-1] + 1]
        roles = [message.role for message in messages]
        own = [i for i, message in enumerate(messages) if message.weight not in (None, self._base)]
        others = [i for i in own if roles[i] != "assistant"]
        every, needed = all_tokens or apart, not all_tokens or bool(own)
        turns = self._turns(sealed, roles, weights, leading, every=every, needed=needed)
        last = len(roles) - 1
        full = turns[-1].text if turns and turns[-1].message == last else sealed.write(last + 1)

        # One sample holds the whole conversation if every turn stands in it as it was sampled:
        # later messages leave the text before them as it is, and the tokens before the last turn
        # are those of that text encoded at once.
        if all(full.startswith(turn.text[: turn.end]) for turn in turns):
            regions = [(i, *sealed.region(i, full)) for i in others]
            draft = self._draft(sealed, full, turns, weights, roles, regions)
            if len(turns) < 2 or self._sampled(sealed, full, turns[-1], draft):
                result.append(draft)
                return result

        # Else the template rewrites earlier turns (it drops old reasoning), or their ids join in
        # another way: each trained turn gets a sample. Under `all` every token is trained alike,
        # and one sample without turns does, unless a message has a weight of its own.
        if all_tokens:
            if own:
                raise rewritten(own[0])
            result.append(self._draft(sealed, full, [], weights, roles))
            return result
        if others:
            raise rewritten(others[0])
        for turn in turns:
            if weights[turn.message]:  # each sample trains its own turn only
                through = roles[: turn.message + 1]
                result.append(self._draft(sealed, turn.text, [turn], weights, through))
        return result

    def _turns(
        self,
        sealed: SealedChat,
        roles: Sequence[str],
        weights: Sequence[float],
        leading: int,
        *,
        every: bool,
        needed: bool,
    ) -> list[Turn]:
        """The assistant turns that are trained, or `every` one from `leading` on.

        needed: a turn that cannot be told from its prompt refuses the row. It need not if all tokens are trained alike:
        where a turn begins then does not matter, and there are none.
        """
        turns = []
        try:
            for i, role in enumerate(roles):
                if role == "assistant" and ((every and i >= leading) or weights[i]):
                    turns.append(sealed.turn(i))
        except RowError:
            if needed:
                raise
            return []
        return turns

    def weights(self, messages: Sequence[Message]) -> list[float]:
        """The weight with which each message is trained, 0 if it is not. Raises RowError for a negative one."""
        last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)
        weights = []
        for i, message in enumerate(messages):
            answer = message.role == "assistant" and (self.train_on != "last" or i == last)
            weight = message.weight
            if weight is None:
                weight = 1.0 if self.train_on == "all" or answer else 0.0
            if not 0 <= weight < float("inf"):
                field = f"messages[{i}].weight"
                raise RowError("impossible weight", field=field, got=str(weight), expected="0 or more")
            weights.append(weight)
        return weights

    def _draft(
        self,
        sealed: SealedChat,
        full: str,
        turns: Sequence[Turn],
        weights: Sequence[float],
        roles: Sequence[str],
        regions: Sequence[tuple[int, int, int]] = (),
    ) -> Draft:
        """One sample of `full`, cut where its turns begin and end.

        regions: (message, start, end) of other messages with own weights.
        """
        base = self._base
        # Marks of plain contents come from a search of the text and serve the counts by role alone;
        # turns and regions know their places from rendering prefixes, and carry the weights.
        weighted = {turn.message for turn in turns}
        marks: list[Mark] = []
        for i, start, end in regions:
            weighted.add(i)
            marks.append(Mark(start, end, roles[i], weights[i]))
        for i, start, end in sealed.contents(full, len(roles)):
            if i not in weighted:
                marks.append(Mark(start, end, roles[i], base))
        marks.sort()

        draft, at = Draft(), 0
        follows: Follows = "start"
        draft.add(self.head(full), base)
        # Where text goes over into a turn, ids are joined, not text: a sampler is given the ids of
        # the prompt, and merges across that border (of "\n" and "\n\n") are none it could produce.
        for turn in turns:
            follows = self._gap(draft, sealed, full, at, turn.start, follows, marks, base)
            self._turn(draft, sealed, turn, follows, weights[turn.message])
            at, follows, draft.left_open = turn.end, "token", turn.left_open
        # What stands behind the last trained token (a line end after the stop token) belongs to the
        # next prompt. A scalar head is read behind it: transformers reads a whole text at its end.
        end = len(full)
        if self.train_on != "all" and not self.form.reads:
            end = max([at, *(end for _, _, end in regions)])
        self._gap(draft, sealed, full, at, end, follows, marks, base)
        return draft

    def _turn(self, draft: Draft, sealed: SealedChat, turn: Turn, follows: Follows, weight: float) -> None:
        """Append what the model writes in `turn`. Raises RowError if its tokens decode to other text."""
        response = turn.text[turn.start : turn.end]
        piece = self.codec.encode(response, sealed.seal, follows)
        text = opened(response, sealed.seal)
        # The model would learn to write what the decoder shows, not what the row says.
        if not self.codec.reads(piece.ids, opened(self.codec.swallowed(response), sealed.seal)):
            raise RowError(
                "trained tokens decode to other text",
                field=f"messages[{turn.message}]",
                got=repr(self.codec.decode(piece.ids)[:60]),
                expected=repr(text[:60]),
            )
        stop = self.codec.added[piece.ids[-1]].text
        draft.add_turn(piece, weight, text.removesuffix(stop))

    def _gap(
        self,
        draft: Draft,
        sealed: SealedChat,
        full: str,
        start: int,
        end: int,
        follows: Follows,
        marks: Sequence[Mark],
        base: float,
    ) -> Follows:
        """Append the characters `start` to `end`, which stand between turns. Returns what the next piece follows."""
        # Some added tokens take the spaces behind them (`rstrip`); encoded on their own, these
        # would come twice.
        if follows == "token" and self.codec.added[draft.sample.tokens[-1]].rstrip:
            start += len(full[start:end]) - len(full[start:end].lstrip())
        if start == end:
            return follows
        piece = self.codec.encode(full[start:end], sealed.seal, follows)
        inside = [mark for mark in marks if mark.start < end and mark.end > start]
        draft.add_piece(piece, start, inside, base)
        return self.codec.ending(full[start:end])

    def _sampled(self, sealed: SealedChat, full: str, last: Turn, draft: Draft) -> bool:
        """Whether a sampler that is given all of `full` before the last turn as text sees the tokens of `draft`."""
        text = full[: last.start]
        return self.head(text) + self.codec.encode(text, sealed.seal).ids == draft.sample.tokens[: draft.turn_at]
