"""Solutions in steps as samples: an ordinary turn, read at the end of each step."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import replace
from typing import TYPE_CHECKING

from espalier.data.render.drafts import EMPTIED, Draft, RenderedGroup
from espalier.data.render.steplabels import relabel
from espalier.errors import RowError
from espalier.types import Chat, Message, Steps

if TYPE_CHECKING:
    from espalier.data.render.chats import Chats


def step_samples(chats: Chats, example: Steps, key: int) -> RenderedGroup:
    """One sample: the solution as an ordinary turn, labelled as the form says.

    `reads` are where each step's last visible character is; `label` is whether the solution is right.
    The last step, too, is read at its own last token, not at the stop token behind it: all steps are then read alike,
    and a solution that is still being written can be scored before it has a stop token. Reads behind max_length are
    left out and counted. Raises RowError for an empty step, and for two steps that end in one token.
    """
    group = RenderedGroup("steps")
    if len(example.labels) != len(example.steps):
        raise RowError("steps without labels", got=f"{len(example.labels)} labels", expected=str(len(example.steps)))
    example = relabel(example, chats.form.labels)
    if example.steps:
        *earlier, last = example.steps
        example = replace(example, steps=(*earlier, chats.lookout.without_stop(last, f"steps[{len(earlier)}]")))
    text = example.separator.join(example.steps)
    prompt = tuple(replace(message, weight=0.0) for message in example.prompt)
    solution = Message("assistant", text, weight=1.0)
    drafts = chats.drafts(Chat((*prompt, solution), template_args=example.template_args))
    (draft,) = drafts
    group.take(drafts)
    reads = _step_ends(draft, example, text)
    rendered = draft.finish(chats.max_length, key)
    sample = rendered.sample
    sample.reads = [read for read in reads if read < len(sample)]
    if not sample.reads:
        got = f"a first step of {reads[0] + 1 - draft.turn_at} tokens"
        raise RowError(EMPTIED, got=got, expected="its end before max_length")
    labels = example.labels[: len(sample.reads)]
    if all(label is None for label in labels):
        raise RowError("no label before the cut", got=f"{len(labels)} steps without one", expected="a label")
    sample.grades = [(math.nan if label is None else float(label),) for label in labels]
    group.drop("step behind the cut", len(reads) - len(sample.reads))
    sample.label = None if example.solved is None else float(example.solved)
    group.append(rendered)
    return group


def _step_ends(draft: Draft, example: Steps, text: str) -> list[int]:
    """The token that holds the last visible character of each step."""
    at = _solution_start(draft.turn_text, text)
    starts = draft.turn.starts()
    ends: list[int] = []
    for number, step in enumerate(example.steps):
        field = f"steps[{number}]"
        if not step.strip():
            raise RowError("empty step", field=field, got=repr(step), expected="some text")
        last = at + len(step.rstrip()) - 1
        # The token that starts last at or before this character: a separator that was merged into
        # it is read with it.
        end = draft.turn_at + bisect_right(starts, last) - 1
        if ends and end == ends[-1]:
            raise RowError(
                "two steps end in one token",
                field=field,
                got=repr(step[:40]),
                expected="steps that end in tokens of their own",
                fix="Join these steps, or choose another separator",
            )
        ends.append(end)
        at += len(step) + len(example.separator)
    return ends


def _solution_start(turn_text: str, text: str) -> int:
    """The character of a turn at which the solution `text` starts; negative by what the template stripped in front.

    Raises RowError if the template changes the solution beyond stripping it.
    """
    written = turn_text.rstrip()
    for content in (text.rstrip(), text.strip()):
        if content and written.endswith(content):
            return len(written) - len(text.rstrip())
    raise RowError(
        "template changes the solution",
        got=repr(written[-60:]),
        expected=repr(text.rstrip()[-60:]),
        fix="Choose another --template",
    )
