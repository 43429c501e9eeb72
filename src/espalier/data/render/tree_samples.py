"""Conversation trees as samples: one per thread from the root, each message trained once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from espalier.data.render.drafts import EMPTIED, Draft, RenderedGroup
from espalier.data.render.trees import threads
from espalier.errors import RowError
from espalier.types import Chat, Message, Tree

if TYPE_CHECKING:
    from espalier.data.render.chats import Chats


def tree_samples(chats: Chats, example: Tree, key: int) -> RenderedGroup:
    """One sample per thread. A message is trained in the first thread, in preorder, that it is in.

    Threads that train nothing of their own are left out; those whose own messages are all behind max_length, or that
    cannot be rendered, are counted. Raises RowError if no thread is left.
    """
    group = RenderedGroup("tree")
    all_tokens = chats.train_on == "all"
    done: set[int] = set()  # nodes that an earlier thread trains
    emptied: RowError | None = None
    refused: RowError | None = None
    for thread in threads(example):
        messages = _messages(example, thread, () if all_tokens else done)
        weights = chats.weights(messages)
        if not any(weights):
            continue
        try:
            drafts = chats.drafts(Chat(messages), apart=True)
        except RowError as error:
            refused = refused or error
            group.drop(f"thread: {error.reason}")
            continue
        group.take(drafts)
        for draft in drafts:
            if all_tokens:
                # Markup around messages is trained too, and no message's weight speaks of it: what
                # earlier threads train is masked token by token.
                shared = sum(node in done for node in thread)
                _mask(draft, chats, messages[:shared])
            try:
                group.append(draft.finish(chats.max_length, key))
            except RowError as error:
                if error.reason != EMPTIED:
                    raise
                emptied = error
                group.drop(EMPTIED)
        # What max_length cuts off counts as trained: it is as far from the root in every other
        # thread.
        for node, weight in zip(thread, weights, strict=True):
            if weight or all_tokens:
                done.add(node)
    if not group:
        raise refused or emptied or RowError("nothing to train", got="no trained message")
    return group


def _messages(example: Tree, thread: Sequence[int], untrained: Collection[int]) -> tuple[Message, ...]:
    """The messages of a thread, those of the nodes `untrained` with weight 0."""
    messages = []
    for node in thread:
        message = example.nodes[node].message
        messages.append(replace(message, weight=0.0) if node in untrained else message)
    return tuple(messages)


def _mask(draft: Draft, chats: Chats, shared: tuple[Message, ...]) -> None:
    """Train nothing of the messages that a thread begins with, their markup included."""
    if not shared:
        return
    sample = draft.sample
    alone = Chat(tuple(replace(message, weight=1.0) for message in shared))
    (before,) = chats.drafts(alone, apart=True)
    size = len(before.sample)
    if sample.tokens[:size] != before.sample.tokens:
        raise RowError(
            "template rewrites a message of several threads",
            expected="a chat template under which later messages leave earlier ones as they are",
            fix="Leave train_on out, or choose another template",
        )
    sample.mask[:size], sample.weights[:size] = [False] * size, [0.0] * size
    draft.spans = [span._replace(trained=span.trained and span.start >= size) for span in draft.spans]
