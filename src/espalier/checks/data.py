"""Checks of the data: what was kept, what is trained, where answers stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from espalier.checks.table import Check
from espalier.types import Chat, Completion, Example, Message, Ranking, Sample, Steps, Text, Tree

STOP_SHARE = 0.99


class Stats(Protocol):
    """Counts of one data source: see `data.stats.StoreStats`."""

    rows: int
    kept: int
    rejected: int
    truncated: int
    tokens: int
    trained: int
    whole: int
    stopped: int
    bos_0: int
    bos_1: int
    bos_more: int
    samples: int
    untrained: int
    trained_by_role: dict[str, int]
    reasons: dict[str, int]


Render = Callable[[Example], Sequence[Any]]


def rows(stats: Sequence[Stats]) -> Check:
    """Rows read, kept, rejected, truncated; every row read is one or the other."""
    read, kept, rejected = (sum(getattr(s, n) for s in stats) for n in ("rows", "kept", "rejected"))
    cut = sum(s.truncated for s in stats)
    value = f"{read:,} read, {kept:,} kept, {rejected:,} rejected, {cut:,} truncated"
    if read != kept + rejected:
        return Check(
            "rows", value, "read = kept + rejected", "fail", "The token cache is damaged: use another --cache."
        )
    lost = cut > 0.1 * max(1, kept)
    way_out = "More than a tenth of the rows lose their tail: raise max_length, or shorten the rows." if lost else ""
    return Check("rows", value, "at most 10 % truncated", "warn" if lost else "pass", way_out)


def trained(stats: Sequence[tuple[str, Stats]]) -> Check:
    """Trained tokens of all tokens, by source and role."""
    total, of = sum(s.trained for _, s in stats), sum(s.tokens for _, s in stats)
    sources = [
        f"{name}: " + (", ".join(f"{role} {n:,}" for role, n in sorted(s.trained_by_role.items()) if n) or "none")
        for name, s in stats
    ]
    value = f"{total:,} of {of:,} ({total / max(1, of):.1%}); {'; '.join(sources)}"
    if not total:
        return Check("trained", value, "some", "fail", "No token is trained: look at train_on and the rows' weights.")
    return Check("trained", value, "some", "pass")


def stop(stats: Sequence[Stats]) -> Check:
    """Share of untruncated samples whose trained part ends in a stop token."""
    whole, stopped = sum(s.whole for s in stats), sum(s.stopped for s in stats)
    share = stopped / whole if whole else 1.0
    ok = share >= STOP_SHARE
    return Check(
        "stop", f"{share:.2%} of {whole:,}", f">= {STOP_SHARE:.0%} train a stop token", "pass" if ok else "fail",
        "" if ok else "The model would not learn to stop: look at the template's turn end with `espalier inspect`.",
    )  # fmt: skip


def bos(stats: Sequence[Stats], bos_id: int | None) -> Check:
    """Exactly one begin-of-text token in a sample, where the tokenizer has one."""
    if bos_id is None:
        return Check("bos", "the tokenizer puts none", "none", "pass")
    none, one, more = (sum(getattr(s, n) for s in stats) for n in ("bos_0", "bos_1", "bos_more"))
    ok = not none and not more
    return Check(
        "bos", f"{one:,} with one, {none:,} with none, {more:,} with more", "exactly one", "pass" if ok else "fail",
        "" if ok else "Template and tokenizer disagree about the begin-of-text token: give another --template.",
    )  # fmt: skip


def mask(examples: Iterable[Example], render: Render, decode: Callable[[list[int]], str], train_on: str) -> Check:
    """The trained tokens of the first rows, decoded, against the text that should be trained.

    The rendered remainder of each trained turn is checked row by row when rows are tokenised; this looks from the other
    end: every trained message's content must stand in the decoded trained tokens, and every untrained one's in the
    decoded rest. Of a ranking each sample must train its own response and nothing of the prompt; of a solution, each
    step must stand between the place where the step before it is read and its own. What is cut to max_length is left
    out; the check is skipped where nothing else is among the first rows.
    """
    seen = wrong = 0
    first = ""
    for example in examples:
        group = render(example)
        whole = [r for r in group if r.sample.stop != "length"]
        if not whole or (len(whole) < len(group) and not isinstance(example, Ranking)):
            continue
        group = whole
        for content, holds, said in _claims(example, group, decode, train_on):
            seen += 1
            if not holds:
                wrong += 1
                first = first or f"{example.origin}: {content[:60]!r} {said}"
    if not seen:
        return Check("mask", "no whole answer among the first rows", "all messages on the right side", "skipped")
    ok = wrong == 0
    return Check(
        "mask", f"{seen - wrong} of {seen} messages on the right side", "all", "pass" if ok else "fail",
        "" if ok else f"First in {first}. Look at it with `espalier inspect`.",
    )  # fmt: skip


def _claims(
    example: Example, group: Sequence[Any], decode: Callable[[list[int]], str], train_on: str
) -> Iterator[tuple[str, bool, str]]:
    """Texts, whether they stand where they should, and what is wrong where they do not."""
    samples: list[Sample] = [r.sample for r in group]
    trained, rest = ([_squash(decode(_side(s, side))) for s in samples] for side in (True, False))

    def inside(contents: Iterable[str], text: str, said: str) -> Iterator[tuple[str, bool, str]]:
        return ((content, _squash(content) in text, said) for content in contents)

    if isinstance(example, Ranking):
        for r, own, before in zip(group, trained, rest, strict=True):
            yield from inside([r.response.message.content], own, "is not trained")
            yield from inside([m.content for m in example.prompt], before, "is trained")
    elif isinstance(example, Steps):
        (sample,) = samples
        start, said = sample.mask.index(True), "is read at another place than its end"
        for step, read in zip(example.steps, sample.reads, strict=True):
            text = _squash(decode(sample.tokens[start : read + 1]))
            last = read == sample.reads[-1]  # others may share a token with what follows them
            yield step, text.endswith(_squash(step)) if last else _squash(step) in text, said
            start = read + 1
        yield from inside([m.content for m in example.prompt], rest[0], "is trained")
    else:
        yield from inside(_wanted(example, train_on), "".join(trained), "is not trained")
        yield from inside(_unwanted(example, train_on), "".join(rest), "is trained")


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
    turns = [m for m in _messages(example) if m.role == "assistant" and m.content.strip()]
    last = turns[-1:] if isinstance(example, Chat) else []  # each thread of a tree has its own, told by no message
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
    if isinstance(example, Tree):
        answered: set[int] = set()
        for i, node in reversed(list(enumerate(example.nodes))):
            if node.message.role == "assistant" or i in answered:
                answered.add(node.parent)
        messages = [m for i, m in enumerate(messages) if i in answered]
    return [m.content for m in messages if m.role in ("user", "system") and not m.weight and m.content.strip()]


def _messages(example: Chat | Tree) -> list[Message]:
    return list(example.messages) if isinstance(example, Chat) else [node.message for node in example.nodes]


def template(examples: Iterable[Example], render: Render, stored: Iterable[list[Sample]]) -> Check:
    """Rows render now to the tokens and judgements that are stored, and twice to the same."""
    count = 0
    for example, group in zip(examples, stored, strict=False):
        now, again = ([_told(r.sample) for r in render(example)] for _ in range(2))
        if now != again or now != [_told(s) for s in group]:
            return Check(
                "template", f"{example.origin} renders differently now", "the same tokens each time", "fail",
                "The template depends on more than the row (a date, a random number): take one that does not.",
            )  # fmt: skip
        count += 1
    return Check("template", f"{count} rows render to the same tokens", "the same tokens each time", "pass")


def _told(sample: Sample) -> tuple[Any, ...]:
    # nan differs from itself, and a store fills in nan for rows without grades beside rows that have some
    known = any(not math.isnan(x) for grade in sample.grades for x in grade)
    grades = [str(grade) for grade in sample.grades] if known else []
    return sample.tokens, sample.label, sample.beats, sample.ties, sample.reads, grades
