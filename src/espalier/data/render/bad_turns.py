"""Conversations as far as they can be used: turns that a chat template or a learner has no place for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from espalier.config.sections import TurnsConfig
from espalier.errors import RowError
from espalier.types import Message, TrainOn

LEADING = "assistant turns before any question"
EMPTY = "empty assistant turn"
TAILS = {"user": "user turns without an answer", "tool": "tool results without an answer"}
_BETWEEN = "\n\n"  # what stands between texts that become one turn


@dataclass(slots=True)
class Usable:
    """The turns of a conversation that are used. dropped: how many are left out, by reason. noted: what else was done
    to them, by what. leading: how many assistant turns, or system and assistant turns, stand before any other turn and
    are context alone."""

    messages: tuple[Message, ...]
    dropped: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    leading: int = 0

    def with_leading_untrained(self) -> Usable:
        """The same with the assistant turns that stand before any other as context alone."""
        kept = []
        for message in self.messages[: self.leading]:
            kept.append(replace(message, weight=0.0) if message.role == "assistant" else message)
        noted = dict(self.noted)
        if any(message.weight != 0 for message in self.messages[: self.leading] if message.role == "assistant"):
            noted[f"{LEADING}, kept untrained"] = sum(message.role == "assistant" for message in kept)
        return replace(self, messages=(*kept, *self.messages[self.leading :]), noted=noted)

    def without_leading(self) -> Usable:
        """The same without the assistant turns that stand before any other."""
        rest = [m for i, m in enumerate(self.messages) if i >= self.leading or m.role != "assistant"]
        noted = {reason: count for reason, count in self.noted.items() if not reason.startswith(LEADING)}
        dropped = {**self.dropped, LEADING: len(self.messages) - len(rest)}
        return Usable(tuple(rest), dropped, noted)


def merged(messages: Sequence[Message], config: TurnsConfig) -> Usable:
    """The turns with those merged that the config names, system turns first."""
    usable = Usable(tuple(messages))
    if config.merge_system:
        _merge_system(usable)
    if config.merge_turns:
        _merge_turns(usable)
    return usable


def usable(messages: Sequence[Message], config: TurnsConfig, train_on: TrainOn) -> Usable:
    """The turns of a conversation that are used, for training.

    If `on_bad_turn` is "drop": turns after the last answer are left out; an empty assistant turn before it is context
    and is not trained, and so is an assistant turn with nothing before it, unless it has a weight of its own or is all
    that can be trained. Raises RowError if nothing is left, for a system turn that is not first, and, if `on_bad_turn`
    is "refuse", for each of the above.
    """
    result = merged(messages, config)
    check_system(result.messages)
    refuse = config.on_bad_turn == "refuse"
    _drop_tail(result, refuse)
    _empty_turns(result, refuse)
    if train_on != "all":
        _leading_turns(result, refuse)
    return result


def is_empty(message: Message) -> bool:
    """Whether an assistant message says nothing: no content and no tool calls."""
    return message.role == "assistant" and not message.content.strip() and not message.tool_calls


# ---------------------------------------------------------------------------------------------------------------- merge


def _merge_system(usable: Usable) -> None:
    """Put the text of each system turn into the user turn after it, or make it one."""
    result: list[Message] = []
    waiting: list[str] = []
    for message in usable.messages:
        if message.role == "system":
            if message.weight:
                expected = "a system turn without a weight of its own, if merge_system is on"
                raise RowError("weighted system turn", got=f"weight {message.weight:g}", expected=expected)
            waiting.append(message.content)
            continue
        if waiting and message.role == "user":
            message = replace(message, content=_joined([*waiting, message.content]))
            waiting = []
        elif waiting and message.role == "assistant":
            result.append(Message("user", _joined(waiting)))
            waiting = []
        result.append(message)
    if waiting:
        result.append(Message("user", _joined(waiting)))
    count = sum(message.role == "system" for message in usable.messages)
    if count:
        usable.noted["system turns merged into user turns"] = count
    usable.messages = tuple(result)


def _merge_turns(usable: Usable) -> None:
    """Join consecutive turns of one role."""
    result: list[Message] = []
    for message in usable.messages:
        joined = _join(result[-1], message) if result else None
        if joined is None:
            result.append(message)
        else:
            result[-1] = joined
    if len(result) < len(usable.messages):
        usable.noted["turns merged into the one before"] = len(usable.messages) - len(result)
    usable.messages = tuple(result)


def _join(one: Message, other: Message) -> Message | None:
    """Two turns as one; None if they differ in more than their text, or would have to be moved."""
    if one.role != other.role or one.role == "tool" or one.weight != other.weight or one.name != other.name:
        return None
    if one.tool_calls and (other.content.strip() or other.reasoning):
        return None
    if other.reasoning and (one.content.strip() or one.reasoning):
        return None
    return replace(
        one,
        content=_joined([one.content, other.content]),
        reasoning=one.reasoning or other.reasoning,
        tool_calls=(*one.tool_calls, *other.tool_calls),
    )


def _joined(texts: Sequence[str]) -> str:
    return _BETWEEN.join(text for text in texts if text.strip())


# ------------------------------------------------------------------------------------------------------------ bad turns


def check_system(messages: Sequence[Message]) -> None:
    """Raise RowError for a system turn that is not first."""
    for i, message in enumerate(messages):
        if message.role == "system" and i:
            previous = messages[i - 1].role
            raise RowError(
                "system turn not first",
                field=f"messages[{i}]",
                got="a system turn after " + ("another" if previous == "system" else f"a {previous} turn"),
                expected="one, at the start",
                fix="--merge-system puts its text into the user turn after it",
            )


def _drop_tail(usable: Usable, refuse: bool) -> None:
    """Leave out what follows the last turn that can be trained."""
    messages = usable.messages
    end = len(messages)
    while end and not _trainable(messages[end - 1]):
        end -= 1
    if not end:
        empty = [i for i, message in enumerate(messages) if is_empty(message)]
        if empty:
            raise _empty(messages, empty[0])
        got = "the roles " + ", ".join(message.role for message in messages[:6])
        raise RowError("nothing to train", got=got, expected="an assistant turn to learn from")
    if end == len(messages):
        return
    last = messages[-1]
    if refuse and is_empty(last):
        raise _empty(messages, len(messages) - 1)
    if refuse:
        raise RowError(
            f"conversation ends on {'a tool result' if last.role == 'tool' else f'the {last.role}'}",
            field=f"messages[{len(messages) - 1}]",
            got=f"role {last.role}",
            expected="an assistant turn at the end",
            fix="--on-bad-turn drop leaves out what follows the last assistant turn",
        )
    for message in messages[end:]:
        reason = EMPTY if message.role == "assistant" else TAILS.get(message.role, f"{message.role} turns at the end")
        usable.dropped[reason] = usable.dropped.get(reason, 0) + 1
    usable.messages = messages[:end]


def _trainable(message: Message) -> bool:
    """Whether a conversation may end on a message: an answer, or a turn with a weight of its own."""
    if message.role == "assistant":
        return not is_empty(message) or bool(message.weight)
    return bool(message.weight)


def _empty_turns(usable: Usable, refuse: bool) -> None:
    """Train no empty assistant turn; it stays as context."""
    messages = list(usable.messages)
    for i, message in enumerate(messages):
        if is_empty(message) and not message.weight:
            if refuse:
                raise _empty(messages, i)
            messages[i] = replace(message, weight=0.0)
            reason = "empty assistant turns, kept untrained"
            usable.noted[reason] = usable.noted.get(reason, 0) + 1
    usable.messages = tuple(messages)


def _empty(messages: Sequence[Message], place: int) -> RowError:
    message = messages[place]
    got = "reasoning alone" if message.reasoning else f"content {message.content[:20]!r}"
    fix = "Leave such rows out with --on-bad-row skip"
    return RowError(EMPTY, field=f"messages[{place}]", got=got, expected="content or tool calls", fix=fix)


def _leading_turns(usable: Usable, refuse: bool) -> None:
    """Train no assistant turn with nothing before it, unless nothing else can be trained."""
    messages = usable.messages
    start = 0
    while start < len(messages) and messages[start].role in ("system", "assistant"):
        start += 1
    usable.leading = start
    first = next((i for i, message in enumerate(messages) if message.role != "system"), 0)
    answered = any(message.role == "assistant" for message in messages[start:])
    if first == start or not answered:
        usable.leading = 0
        return
    if messages[0].role == "system":
        # A system turn is something to answer: the turn stays trained if the template can write it.
        return
    if any(message.weight for message in messages[:start]):
        usable.leading = 0
        return
    if refuse:
        raise RowError(
            "conversation starts with the assistant",
            field="messages[0]",
            got="role assistant",
            expected="a system or user turn",
            fix="--on-bad-turn drop keeps it as context, without training it",
        )
    untrained = usable.with_leading_untrained()
    usable.messages, usable.noted = untrained.messages, untrained.noted
