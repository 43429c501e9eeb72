"""Checks of the data: what was kept, what is trained, where answers stop."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from espalier.checks.table import Outcome, failed, passed, skipped, warned
from espalier.data.render.drafts import EMPTIED, RenderedGroup
from espalier.types import Chat, Completion, Example, Message, Ranking, Sample, Steps, Task, Text, Tree

if TYPE_CHECKING:
    from espalier.checks.evidence import Evidence, Row
    from espalier.data.render.drafts import Rendered
    from espalier.data.store.stats import StoreStats

STOP_SHARE = 0.99
TRUNCATED_SHARE = 0.1
_STOPS = re.compile(r"(\s*<[^<>\s]{1,60}>)+\s*\Z")


def check_rows(evidence: Evidence) -> Outcome:
    """The rows of all sources."""
    return rows([stats for _, stats in evidence.stats])


def check_trained(evidence: Evidence) -> Outcome:
    """The trained tokens of all sources."""
    return trained(evidence.stats)


def check_stop(evidence: Evidence) -> Outcome:
    """The stop tokens of all sources but replay text, which may end anywhere."""
    return stop([store.stats for store in evidence.session.opened.all if store.part == "main"])


def check_bos(evidence: Evidence) -> Outcome:
    """The begin-of-text tokens of all sources."""
    return bos([stats for _, stats in evidence.stats], evidence.session.renderer.bos_id)


def check_mask(evidence: Evidence) -> Outcome:
    """The trained tokens of the first rows."""
    tokenizer = evidence.session.model.loaded.tokenizer
    return mask(evidence.rows, lambda ids: str(tokenizer.decode(ids)), evidence.session.renderer.train_on)


def check_template(evidence: Evidence) -> Outcome:
    """The first rows, rendered once more."""
    return template(evidence.rows, evidence.session.renderer.render)


# ------------------------------------------------------------------------------------------------------------- counts


def rows(stats: Sequence[StoreStats]) -> Outcome:
    """Rows read, kept, rejected, truncated; every row read is kept or rejected."""
    read = kept = rejected = truncated = 0
    for s in stats:
        read += s.rows
        kept += s.kept
        rejected += s.rejected
        truncated += s.truncated
    value = f"{read:,} read, {kept:,} kept, {rejected:,} rejected, {truncated:,} truncated"
    if read != kept + rejected:
        return failed(value, "read = kept + rejected", "The token cache is damaged: use another --cache.")
    limit = "at most 10 % truncated"
    if truncated > TRUNCATED_SHARE * max(1, kept):
        way_out = "More than a tenth of the rows lose their tail: raise max_length, or shorten the rows."
        return warned(value, limit, way_out)
    return passed(value, limit)


def trained(stats: Sequence[tuple[str, StoreStats]]) -> Outcome:
    """Trained tokens of all tokens, by source and role."""
    total = tokens = 0
    sources = []
    for name, s in stats:
        total += s.trained
        tokens += s.tokens
        roles = [f"{role} {count:,}" for role, count in sorted(s.trained_by_role.items()) if count]
        sources.append(f"{name}: {', '.join(roles) or 'none'}")
    value = f"{total:,} of {tokens:,} ({total / max(1, tokens):.1%}); {'; '.join(sources)}"
    if not total:
        return failed(value, "some", "No token is trained: look at train_on and the rows' weights.")
    return passed(value, "some")


def stop(stats: Sequence[StoreStats]) -> Outcome:
    """Share of untruncated samples whose trained part ends in a stop token."""
    whole, stopped = sum(s.whole for s in stats), sum(s.stopped for s in stats)
    share = stopped / whole if whole else 1.0
    value, limit = f"{share:.2%} of {whole:,}", f">= {STOP_SHARE:.0%} train a stop token"
    if share < STOP_SHARE:
        way_out = "The model would not learn to stop: look at the template's turn end with `espalier inspect`."
        return failed(value, limit, way_out)
    return passed(value, limit)


def bos(stats: Sequence[StoreStats], bos_id: int | None) -> Outcome:
    """Exactly one begin-of-text token in a sample, if the tokenizer has one."""
    if bos_id is None:
        return passed("the tokenizer puts none", "none")
    none, one, more = sum(s.bos_0 for s in stats), sum(s.bos_1 for s in stats), sum(s.bos_more for s in stats)
    value = f"{one:,} with one, {none:,} with none, {more:,} with more"
    if none or more:
        way_out = "Template and tokenizer disagree about the begin-of-text token: give another --template."
        return failed(value, "exactly one", way_out)
    return passed(value, "exactly one")


# --------------------------------------------------------------------------------------------------------- first rows


def mask(rows: Iterable[Row], decode: Callable[[list[int]], str], train_on: str) -> Outcome:
    """The trained tokens of rows, decoded, against the text that should be trained.

    The rendered remainder of each trained turn is checked row by row when rows are tokenised; this looks from the other
    end: every trained message's content must stand in the decoded trained tokens, and every untrained one's in the
    decoded rest. Of a ranking each sample must train its own response and nothing of the prompt; of a solution, each
    step must stand between the place where the step before it is read and its own; of a task the whole prompt must be
    there, and nothing is trained. What is cut to max_length is left out; the check is skipped if nothing else is among
    the rows.
    """
    claims = wrong = 0
    first = ""
    for row in rows:
        group = [r for r in row.rendered if r.sample.stop != "length"]
        if not group:
            continue
        # Of a conversation of several samples some may be left out for their length, which is counted elsewhere.
        lost = isinstance(row.rendered, RenderedGroup) and EMPTIED in row.rendered.dropped
        if not isinstance(row.example, Ranking) and (lost or len(group) < len(row.rendered)):
            continue
        for content, holds, fault in _claims(row.example, group, decode, train_on):
            claims += 1
            if not holds:
                wrong += 1
                first = first or f"{row.example.origin}: {content[:60]!r} {fault}"
    if not claims:
        return skipped("no whole answer among the first rows", "all messages on the right side")
    value = f"{claims - wrong} of {claims} messages on the right side"
    if wrong:
        return failed(value, "all", f"First in {first}. Look at it with `espalier inspect`.")
    return passed(value, "all")


Claim = tuple[str, bool, str]
"""A text, whether it stands where it should, and what is wrong if it does not."""


def _claims(
    example: Example, group: Sequence[Rendered], decode: Callable[[list[int]], str], train_on: str
) -> Iterator[Claim]:
    trained = [_squash(decode(_side(r.sample, True))) for r in group]
    rest = [_squash(decode(_side(r.sample, False))) for r in group]
    if isinstance(example, Ranking):
        prompt = [m.content for m in _without_greeting(example.prompt)]
        for r, own, before in zip(group, trained, rest, strict=True):
            if r.response is not None:
                yield from _inside([r.response.message.content], own, "is not trained")
            yield from _inside(prompt, before, "is trained")
    elif isinstance(example, Steps):
        (rendered,) = group
        yield from _step_claims(example, rendered.sample, decode)
        yield from _inside([m.content for m in example.prompt], rest[0], "is trained")
    elif isinstance(example, Task):
        yield from _inside([m.content for m in example.prompt if m.content.strip()], rest[0], "is not in the prompt")
        if trained[0]:
            yield trained[0], False, "is trained"
    else:
        yield from _inside(_wanted(example, train_on), "".join(trained), "is not trained")
        yield from _inside(_unwanted(example, train_on), "".join(rest), "is trained")


def _inside(contents: Iterable[str], text: str, fault: str) -> Iterator[Claim]:
    for content in contents:
        # Where strings become control tokens, the stop token at the end of an answer is the template's own.
        # Where the generation prompt opens reasoning, an answer goes on behind that.
        opened = content.lstrip().removeprefix("<think>")
        holds = any(_squash(part) in text for part in (content, _STOPS.sub("", content), opened))
        yield content, holds, fault


def _step_claims(example: Steps, sample: Sample, decode: Callable[[list[int]], str]) -> Iterator[Claim]:
    start = sample.mask.index(True)
    for step, read in zip(example.steps, sample.reads, strict=True):
        text = _squash(decode(sample.tokens[start : read + 1]))
        # The last step is read at its last token; others may share a token with what follows them.
        holds = text.endswith(_squash(step)) if read == sample.reads[-1] else _squash(step) in text
        yield step, holds, "is read at another place than its end"
        start = read + 1


def _side(sample: Sample, trained: bool) -> list[int]:
    return [t for t, m in zip(sample.tokens, sample.mask, strict=True) if m == trained]


def _squash(text: str) -> str:
    """Text without white space, which tokenizers and templates may change at the edges of turns."""
    return "".join(text.split()).replace("\ufffd", "")


def _wanted(example: Chat | Completion | Text | Tree, train_on: str) -> list[str]:
    if isinstance(example, Completion):
        return [example.completion]
    if isinstance(example, Text):
        return [example.text]
    messages = _messages(example)
    if isinstance(example, Chat) and train_on != "all":
        messages = _without_greeting(messages)
    turns = [m for m in messages if m.role == "assistant" and m.content.strip()]
    last = turns[-1:] if isinstance(example, Chat) else []  # each thread of a tree has its own
    chosen = last if train_on == "last" else turns
    return [m.content for m in turns if (m.weight or (m.weight is None and m in chosen))]


def _unwanted(example: Chat | Completion | Text | Tree, train_on: str) -> list[str]:
    """What must not be trained: users' and systems' messages without a weight, and a raw completion's prompt. A branch
    of a tree that ends without an answer is left out."""
    if train_on == "all" or isinstance(example, Text):
        return []
    if isinstance(example, Completion):
        return [example.prompt]
    messages = _messages(example)
    if isinstance(example, Chat):
        messages = _through_last_answer(messages)
    if isinstance(example, Tree):
        answered: set[int] = set()
        for i, node in reversed(list(enumerate(example.nodes))):
            if node.message.role == "assistant" or i in answered:
                answered.add(node.parent)
        messages = [m for i, m in enumerate(messages) if i in answered]
    return [m.content for m in messages if m.role in ("user", "system") and not m.weight and m.content.strip()]


def _without_greeting(messages: Sequence[Message]) -> list[Message]:
    """The messages without assistant turns before the first question, which may be context or left out, unless they
    have a weight or nothing but them is answered."""
    kept: list[Message] = []
    for i, message in enumerate(messages):
        if message.role in ("user", "tool"):
            rest = messages[i:]
            answered = message is messages[-1] or any(later.role == "assistant" for later in rest)
            return [*kept, *rest] if answered else list(messages)
        if message.role != "assistant" or message.weight:
            kept.append(message)
    return list(messages)


def _through_last_answer(messages: list[Message]) -> list[Message]:
    """The messages up to the last one that can be trained: what follows it is in no sample."""
    for end in range(len(messages), 0, -1):
        last = messages[end - 1]
        says = last.role == "assistant" and (last.content.strip() or last.tool_calls)
        if last.weight or (says and last.weight is None):
            return messages[:end]
    return []


def _messages(example: Chat | Tree) -> list[Message]:
    return list(example.messages) if isinstance(example, Chat) else [node.message for node in example.nodes]


def template(rows: Iterable[Row], render: Callable[[Example], Sequence[Rendered]]) -> Outcome:
    """Rows render now to the tokens and judgements that are stored, and twice to the same."""
    limit = "the same tokens each time"
    count = 0
    for row in rows:
        now = [_content(r.sample) for r in row.rendered]
        again = [_content(r.sample) for r in render(row.example)]
        if now != again or now != [_content(s) for s in row.stored]:
            return failed(
                f"{row.example.origin} renders differently now",
                limit,
                "The template depends on more than the row (a date, a random number): take one that does not.",
            )
        count += 1
    return passed(f"{count} rows render to the same tokens", limit)


def _content(sample: Sample) -> tuple[Any, ...]:
    """The tokens, what is trained of them, and the judgements of a sample, in a form that compares equal."""
    # nan differs from itself, and a store fills in nan for rows without grades beside rows that have some.
    known = any(not math.isnan(x) for grade in sample.grades for x in grade)
    grades = [str(grade) for grade in sample.grades] if known else []
    weights = [struct.pack("f", weight) for weight in sample.weights]  # a store keeps float32
    trained = (sample.mask, weights, sample.stop)
    return sample.tokens, *trained, sample.label, sample.beats, sample.ties, sample.reads, grades
