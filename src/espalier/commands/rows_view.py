"""Rows as the model sees them: their tokens, which of them are trained, and with which weight."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from espalier.commands.task_view import Shown, details, summary
from espalier.data.render.drafts import Rendered, RenderedGroup
from espalier.types import Response, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Row = tuple[str, Sequence[Rendered]]
    """The place that a row was read from, and the samples it became."""

TRAINED = ("white on dark_green", "white on green4")  # by turns, so that token boundaries show
SPECIAL = "bold"
READ = "bold magenta"
READ_MARK = "\u25c0"
NEWLINE_MARK = "\u23ce"
PROMPT = "prompt of a task"
KEPT = "\n\t\u200c\u200d"  # scripts and emoji need the two joiners; other invisible characters are spelt out


@dataclass(frozen=True, slots=True)
class Token:
    """One token as it is shown.

    `text` is "" if its character ends only in a later token, which then has all of it. `read` marks a token behind
    which a scalar head is read, with the target there.
    """

    id: int
    text: str
    special: bool
    trained: bool
    weight: float
    role: str
    read: str = ""


def tokens(row: Rendered, tokenizer: PreTrainedTokenizerBase) -> list[Token]:
    """The tokens of a rendered row. The role of a token outside every span is "template"."""
    sample = row.sample
    roles = ["template"] * len(sample)
    for span in row.spans:
        roles[span.start : span.end] = [span.role] * (span.end - span.start)
    added = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    reads = _read_marks(sample)
    shown = []
    cells = zip(sample.tokens, pieces(sample.tokens, tokenizer, added), sample.mask, sample.weights, roles, strict=True)
    for place, (token, text, mask, weight, role) in enumerate(cells):
        trained = mask and weight != 0
        shown.append(Token(token, text, token in added, trained, weight, role, reads.get(place, "")))
    return shown


def _read_marks(sample: Sample) -> dict[int, str]:
    """The mark at each place where a scalar head is read, with its target if there is one, ? if it is unknown."""
    if not sample.grades:
        return dict.fromkeys(sample.reads, READ_MARK)
    marks = {}
    for place, targets in zip(sample.reads, sample.grades, strict=True):
        marks[place] = READ_MARK + ", ".join("?" if math.isnan(target) else f"{target:g}" for target in targets)
    return marks


def pieces(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, added: set[int]) -> list[str]:
    """The text of each token; together they are the text of all, if that is valid UTF-8.

    Tokens in `added` give their name. Bytes of a character that a token does not complete go to the token that does;
    a character that is never completed is shown as U+FFFD.
    """
    # In front of the decoded token, because SentencePiece decoders drop a space at the start of the text.
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
    skip = len(_decode(tokenizer, anchor))
    texts: list[str] = []
    waiting: list[int] = []
    for place, token in enumerate(ids):
        if token in added:
            texts.append(str(tokenizer.convert_ids_to_tokens(token)))
            continue
        waiting.append(token)
        text = _decode(tokenizer, anchor + waiting)[skip:]
        more = place + 1 < len(ids) and ids[place + 1] not in added
        # A character has at most 4 bytes, so no more than 4 tokens.
        if text.endswith("\ufffd") and more and len(waiting) < 4:
            texts.append("")
        else:
            texts.append(text)
            waiting = []
    return texts


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def visible(text: str) -> str:
    """The text with control and direction-changing characters spelt out, newlines and tabs aside.

    >>> visible("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    shown = ""
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cf") and character not in KEPT:
            character = character.encode("unicode_escape").decode()
        shown += character
    return shown


def name(text: str) -> str:
    """A control token's name in brackets that no content can imitate by accident: `<|im_end|>` becomes `⟨|im_end|⟩`."""
    if text.startswith("<") and text.endswith(">") and len(text) > 2:
        text = text[1:-1]
    return f"\u27e8{visible(text)}\u27e9"


# -------------------------------------------------------------------------------------------------------------- blocks


@dataclass(frozen=True, slots=True)
class Block:
    """What is shown under one title: a whole sample, the prefix that a group shares, or, as a branch, what follows it.
    The `last` one of its row ends in an empty line. `details` are lines about it."""

    title: str
    tokens: list[Token]
    branch: bool = False
    last: bool = True
    details: tuple[str, ...] = ()


def blocks(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> Iterator[Block]:
    """Rows as they are shown; if row 2 has several samples, they are numbered 2.1, 2.2 and on.

    The prefix that judged answers or the threads of a tree share is shown once, then each sample from the place where
    it leaves those before it.
    """
    for count, (origin, group) in enumerate(rows, 1):
        shown = [tokens(row, tokenizer) for row in group]
        if isinstance(group, RenderedGroup) and group.kind != "chat" and len(group) > 1:
            yield from _tree(str(count), origin, group, shown)
            continue
        for index, (row, cells) in enumerate(zip(group, shown, strict=True), 1):
            number = f"row {count}.{index}" if len(group) > 1 else f"row {count}"
            notes = []
            if isinstance(group, RenderedGroup):
                notes = [*judgement(row, group, str(count)), *_left_out(group)]
            yield Block(header(number, origin, row, cells, notes), cells, details=_details(group))


def _details(group: Sequence[Rendered]) -> tuple[str, ...]:
    if not isinstance(group, RenderedGroup) or group.task is None:
        return ()
    return tuple(map(visible, details(group.task, group.graders)))


def header(number: str, origin: str, row: Rendered, shown: Sequence[Token], notes: Sequence[str] = ()) -> str:
    """Number, where it was read, tokens, trained tokens, their weights, whether the tail was cut off, judgements."""
    weights = Counter(token.weight for token in shown if token.trained)
    parts = [number, origin, f"{len(shown):,} tokens"]
    if PROMPT not in notes:
        parts.append(f"{weights.total():,} trained")
    if set(weights) - {1.0}:
        counts = [f"{weight:g} ({count:,})" for weight, count in sorted(weights.items())]
        parts.append("weights " + ", ".join(counts))
    if row.sample.stop == "length":
        parts.append("truncated")
    return _title([*parts, *notes])


def _title(parts: Sequence[str]) -> str:
    return "  ".join(visible(part) for part in parts if part)


def _tree(number: str, origin: str, group: RenderedGroup, shown: Sequence[list[Token]]) -> Iterator[Block]:
    """The shared prefix of a group, then its samples as branches."""
    leaves = [(0, 0)]
    for place in range(1, len(group)):
        leaves.append(_leaves(group, place))
    stem = min(at for at, _ in leaves[1:])
    kind = "responses to one prompt" if group.kind == "ranking" else "threads of one tree"
    title = [f"row {number}", origin, f"{len(group)} {kind}", f"{stem:,} tokens shared", *_left_out(group)]
    yield Block(_title(title), shown[0][:stem], last=False)
    for place, (row, cells) in enumerate(zip(group, shown, strict=True)):
        at, other = leaves[place]
        own = cells[max(at, stem) :]
        notes = judgement(row, group, number)
        if at > stem:
            notes.insert(0, f"after token {at:,} of {number}.{other + 1}")
        title_of_branch = header(f"{number}.{place + 1}", "", row, own, notes)
        yield Block(title_of_branch, own, branch=True, last=place + 1 == len(group))


def _leaves(group: RenderedGroup, place: int) -> tuple[int, int]:
    """How many tokens, up to the beginning or end of a turn, a sample shares with the earlier one that it shares most
    with; and that one's place."""
    row, most, nearest = group[place], -1, 0
    for other in range(place):
        common = _common_prefix(row.sample.tokens, group[other].sample.tokens)
        if common > most:
            most, nearest = common, other
    turn = 0
    for span in row.spans:
        for edge in (span.start, span.end):
            # A branch begins with a whole turn, even if both turns begin with the same words.
            if edge <= most:
                turn = max(turn, edge)
    return turn, nearest


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    length = min(len(one), len(other))
    for place in range(length):
        if one[place] != other[place]:
            return place
    return length


def judgement(row: Rendered, group: RenderedGroup, number: str) -> list[str]:
    """The judgements of a sample of a group, and what a run uses of them; of a task, that it is one."""
    sample, parts = row.sample, []
    if group.task is not None:
        return [PROMPT]
    if row.response is not None:
        parts += _response_notes(row.response, group.dimensions)
    if sample.label is not None:
        parts.append(_label(sample.label, group))
    if sample.beats:
        parts.append(f"beats {_numbers(number, sample.beats)}")
    if sample.ties:
        parts.append(f"ties with {_numbers(number, sample.ties)}")
    return parts


def _response_notes(response: Response, dimensions: Sequence[str]) -> list[str]:
    """Author, rank, scores and label of a response, as the data has them."""
    notes = []
    if response.author:
        notes.append(f"by {response.author}")
    if response.rank is not None:
        notes.append(f"rank {response.rank}")
    scores = ["?" if score is None else f"{score:g}" for score in response.scores]
    if len(scores) == len(dimensions):
        scores = [f"{name} {score}" for name, score in zip(dimensions, scores, strict=True)]
    elif scores:
        scores[0] = f"scored {scores[0]}"
    if scores:
        notes.append(", ".join(scores))
    if response.good is not None:
        notes.append("good" if response.good else "bad")
    return notes


def _label(label: float, group: RenderedGroup) -> str:
    if group.labelled:
        return f"label {label:g}"
    if group.kind == "steps":
        return "solved" if label else "not solved"
    return f"level {label:g}"


def _numbers(number: str, places: Sequence[int]) -> str:
    """The numbers of siblings: places 0 and 2 of row 1 are 1.1, 1.3."""
    return ", ".join(f"{number}.{place + 1}" for place in places)


def _left_out(group: RenderedGroup) -> list[str]:
    notes = []
    for title, counts in (("left out", group.dropped), ("changed", group.noted), ("ordinary text", group.controls)):
        if counts:
            notes.append(f"{title}: " + ", ".join(f"{reason} ({count:,})" for reason, count in counts.items()))
    return notes


# ----------------------------------------------------------------------------------------------------------- terminal


def show(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, console: Console) -> None:
    """Print rows. Trained tokens have a background, in two shades by turns; without colour, ⟦ ⟧ enclose their runs."""
    colour = console.color_system is not None and not console.no_color
    for block in blocks(rows, tokenizer):
        title = Text(block.title, style="bold cyan")
        body = _coloured(block.tokens) if colour else _bracketed(block.tokens)
        if block.branch:
            title, body = _as_branch(title, body, block.last)
        console.print(title, soft_wrap=True)
        console.print(body, soft_wrap=True)
        for line in block.details:
            console.print(Text(line, style="cyan"), soft_wrap=True)
        if block.last:
            console.print()
    tasks = tasks_of(rows)
    if tasks:
        console.print(Text(summary(tasks), style="bold"), soft_wrap=True)
    with_reads = any(row.sample.reads for _, group in rows for row in group)
    console.print(_legend(colour, with_reads, trains=len(tasks) < len(rows)), soft_wrap=True)


def tasks_of(rows: Sequence[Row]) -> list[Shown]:
    """The rows that are tasks."""
    tasks = []
    for _, group in rows:
        if isinstance(group, RenderedGroup) and group.task is not None:
            tasks.append(Shown(group.task, group.graders, sum(len(row.sample) for row in group)))
    return tasks


def _as_branch(title: Text, body: Text, last: bool) -> tuple[Text, Text]:
    """A title and body with the lines of a tree drawn in front of them."""
    corner, rail = ("\u2514\u2500 ", "   ") if last else ("\u251c\u2500 ", "\u2502  ")
    lines = [Text.assemble(rail, line) for line in body.split("\n", allow_blank=True)]
    return Text.assemble(corner, title), Text("\n").join(lines)


def _legend(colour: bool, with_reads: bool, trains: bool) -> Text:
    legend = Text("")
    if trains:
        marked = Text("\u27e6trained tokens\u27e7")
        if colour:
            marked = Text.assemble(("trained", TRAINED[0]), (" tokens", TRAINED[1]))
        legend = Text.assemble(marked, "  not trained  ")
    legend = Text.assemble(legend, (name("<control token>"), SPECIAL), f"  {NEWLINE_MARK} newline")
    if with_reads:
        legend = Text.assemble(legend, "  ", (READ_MARK, READ), " a scalar head is read here")
    return legend


def _text(token: Token) -> str:
    if token.special:
        return name(token.text)
    return visible(token.text).replace("\n", f"{NEWLINE_MARK}\n")


def _coloured(shown: Sequence[Token]) -> Text:
    text = Text()
    for index, token in enumerate(shown):
        styles = []
        if token.special:
            styles.append(SPECIAL)
        if token.trained:
            styles.append(TRAINED[index % 2])
        text.append(_text(token), style=" ".join(styles) or None)
        if token.read:
            text.append(token.read, style=READ)
    return text


def _bracketed(shown: Sequence[Token]) -> Text:
    text = ""
    for trained, run in groupby(shown, key=lambda token: token.trained):
        inside = "".join(_text(token) + token.read for token in run)
        text += f"\u27e6{inside}\u27e7" if trained else inside
    return Text(text)
