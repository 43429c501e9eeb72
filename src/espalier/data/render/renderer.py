"""Examples to samples: what is trained is what a sampler would have to produce, token for token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from espalier.data.render.chats import Chats
from espalier.data.render.control import closed
from espalier.data.render.drafts import EMPTIED, Draft, Drafts, RenderedGroup
from espalier.data.render.form import CHATS, Form
from espalier.data.render.ranking_samples import ranking_samples
from espalier.data.render.step_samples import step_samples
from espalier.data.render.task_prompts import prompt_ids, task_prompt
from espalier.data.render.tokenizer_json import Follows
from espalier.data.render.tree_samples import tree_samples
from espalier.errors import RowError
from espalier.types import Chat, Completion, Example, Message, Ranking, Steps, Task, Text, TrainOn, Tree

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RENDER_VERSION = 7
"""Part of the fingerprint: raised whenever the same example would give other tokens or judgements."""

_FORMS = {
    "chat": "a conversation, a tree of them, a text or a completion",
    "ranking": "a ranking: a prompt with judged responses",
    "steps": "a solution in steps",
    "task": "a task: a prompt to answer",
}


class Renderer:
    """Turns examples into samples under one tokenizer and its chat template.

    A trained turn is encode(what a sampler would be given there) + encode(the rest of that turn through its stop
    token), joined as ids; the rest is trained. What follows the stop token belongs to the next prompt. A conversation
    is one sample, or, if later turns re-render earlier ones (templates that drop old reasoning), one sample for each
    trained turn. Example, under ChatML, trained tokens in brackets:

        <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n[Hello<|im_end|>]

    train_on: `assistant` trains every assistant turn, `last` the last one, `all` every token of the rendered
    conversation; a message's own weight goes first. max_length: longest sample in tokens, 0 for no limit; longer ones
    lose their tail and have stop "length", but a plain text becomes several samples and loses nothing. known_stops: ids
    that the model stops on. `stop_ids` end an assistant turn: those of the template, the end-of-text token, and
    known_stops that no turn holds inside. `bos_id` is what a sample must start with and hold once, None if there is no
    such token. A template that writes the date of today gets a fixed one.

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
        chats = Chats(tokenizer, train_on=train_on, max_length=max_length, form=form, known_stops=known_stops)
        self.chats, self.train_on, self.max_length, self.form = chats, train_on, max_length, form
        self.stop_ids, self.bos_id = chats.stop_ids, chats.bos_id
        # All that decides the tokens and judgements of an example, in this order: what a token
        # store is cached under.
        parts = [RENDER_VERSION, chats.codec.backend_json, tokenizer.all_special_ids, chats.bos, chats.eos]
        parts += [tokenizer.chat_template, dict(tokenizer.special_tokens_map), train_on, max_length]
        parts += [form.settings(), sorted(chats.stop_ids)]
        text = json.dumps(parts, sort_keys=True, default=str)
        self.fingerprint: str = hashlib.sha256(text.encode()).hexdigest()

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that the text of a finished answer may end in: a stop token, or what the template writes behind it.
        A reward model is read there, so that its pad token must be another one."""
        return (*self.stop_ids, *self.chats.tail.ids[-1:])

    # ------------------------------------------------------------------------------------------------------ the verbs

    def render(self, example: Example, key: int = 0) -> RenderedGroup:
        """The group of samples that `example` becomes; `key` is the key and the group of them all.

        Raises RowError, with a reason that can be counted, if it cannot be used, and ModelError if the tokenizer has no
        template that chats could use.
        """
        group = self._group(example, key)
        ordinary, tokens = self.chats.lookout.see(example)
        group.controls = ordinary
        group.noted |= tokens
        return group

    def _group(self, example: Example, key: int) -> RenderedGroup:
        """The samples of an example, by its form."""
        match self.form.consumes, example:
            case "chat", Chat():
                return self._whole(self.chats.drafts(example), key)
            case "chat", Text():
                return self._whole(self._windows(self._plain(("text", example.text, 1.0))), key)
            case "chat", Completion():
                parts = (("prompt", example.prompt, 0.0), ("completion", example.completion, 1.0))
                return self._whole([self._plain(*parts)], key)
            case "chat", Tree():
                return tree_samples(self.chats, example, key)
            case "ranking", Ranking():
                return ranking_samples(self.chats, example, key)
            case "steps", Steps():
                return step_samples(self.chats, example, key)
            case "task", Task():
                return task_prompt(self.chats, example, key)
            case _:
                raise RowError(
                    "wrong form",
                    got=f"a {type(example).__name__}",
                    expected=_FORMS[self.form.consumes],
                    fix="Give such rows to a command that reads them, or name their format with PATH:FORMAT",
                )

    def _whole(self, drafts: Sequence[Draft], key: int) -> RenderedGroup:
        """The samples of a row, cut to length. Those of which nothing trained is left are counted; raises RowError if
        that is so of all."""
        group = RenderedGroup("chat")
        if isinstance(drafts, Drafts):
            group.take(drafts)
        emptied: RowError | None = None
        for draft in drafts:
            try:
                group.append(draft.finish(self.max_length, key))
            except RowError as error:
                if error.reason != EMPTIED:
                    raise
                emptied = emptied or error
                group.drop(EMPTIED)
        if emptied and not group:
            raise emptied
        return group

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """The ids that a sampler is given before an assistant turn that follows `messages`. Raises as `render` does."""
        return prompt_ids(self.chats, Chat(tuple(messages), tuple(tools)))

    def text(self, prompt: str) -> list[int]:
        """The ids of a text that a sampler goes on with, without chat markup; nothing in it becomes a control token."""
        codec = self.chats.codec
        seal = codec.seal([(prompt, "none")])
        return self.chats.head("") + codec.encode(closed(prompt, seal), seal).ids

    # -------------------------------------------------------------------------------------------------- text, no chat

    def _plain(self, *parts: tuple[str, str, float]) -> Draft:
        """Parts of a text, each with its role and weight; the last one is trained through the end-of-text token."""
        last, content, _ = parts[-1]
        if not content:
            raise RowError("nothing to train", field=last, got="an empty string")
        codec, lookout = self.chats.codec, self.chats.lookout
        wholes = [lookout.whole(role) for role, _, _ in parts]
        if last == "completion":
            content = lookout.without_stop(content, last) + (self._stop_of(content) if wholes[-1] == "all" else "")
        texts = [*(text for _, text, _ in parts[:-1]), content]
        seal = codec.seal(list(zip(texts, wholes, strict=True)))
        sealed = [closed(text, seal, whole) for text, whole in zip(texts, wholes, strict=True)]
        stopped = wholes[-1] == "all" and self._stops_at(sealed[-1])
        if stopped:
            sealed[-1] = sealed[-1].rstrip()
        draft = Draft()
        follows: Follows = "start"
        draft.add(self.chats.head("".join(sealed)), parts[0][2])
        # Each part is encoded on its own, as a sampler is given the ids of the prompt and goes on
        # from there.
        for text, whole, (role, _, weight) in zip(sealed, wholes, parts, strict=True):
            if follows == "token" and codec.added[draft.sample.tokens[-1]].rstrip:
                text = text.lstrip()  # the token before takes the spaces behind it
            if text:
                ids = codec.encode(text, seal, follows).ids
                if role == last and not stopped:
                    ids = [*ids, self.chats.eos]
                draft.add(ids, weight, role)
                follows = codec.ending(text) if whole == "all" else "text"
        return draft

    def _stops_at(self, sealed: str) -> bool:
        """Whether a text ends in a stop token, white space behind it aside."""
        end, token = self.chats.codec.last_written(sealed)
        return token is not None and token.id in self.stop_ids and not sealed[end:].strip()

    def _stop_of(self, completion: str) -> str:
        """The stop token that a completion ends in; empty if it ends in none."""
        _, token = self.chats.codec.last_written(completion)
        return token.text if token is not None and self._stops_at(completion) else ""

    def _windows(self, draft: Draft) -> list[Draft]:
        """A text in samples of at most max_length tokens, so that every token is scored once; the last one stops.

        A window begins with the begin-of-text token or, if there is none, with the last token of the one before.
        """
        ids, head = draft.sample.tokens, self.chats.head("")
        if self.max_length < 2 or len(ids) <= self.max_length:
            return [draft]
        windows, step = [], self.max_length - 1
        for low in range(1, len(ids), step):
            window = Draft()
            if head:
                window.add(head, 1.0)
            else:
                # The token is there to predict from, and counts in the window before; the text's
                # first one has none.
                window.add(ids[low - 1 : low], 1.0 if low == 1 else 0.0, "text")
            window.add(ids[low : low + step], 1.0, "text")
            window.sample.stop = "stop" if low + step >= len(ids) else "length"
            windows.append(window)
        return windows
