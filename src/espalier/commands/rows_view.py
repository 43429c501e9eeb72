"""Rows as the model sees them: which tokens there are, which of them are trained, and with which weight."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from espalier.data.render.drafts import Rendered, RenderedGroup
from espalier.errors import EspalierError
from espalier.files import write_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Row = tuple[str, Sequence[Rendered]]
    """Where a row was read, and the samples it became."""

TRAINED = ("white on dark_green", "white on green4")  # by turns, so that token boundaries show
SPECIAL = "bold"
READ = "bold magenta"
KEPT_JOINERS = "\u200c\u200d"  # scripts and emoji need them; other invisible characters are spelt out


@dataclass(frozen=True, slots=True)
class Token:
    """One token as it is shown.

    `text` is "" where a character ends only in a later token, which then has all of it. `read` marks a token behind
    which a scalar head is read, with what it should say there.
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
    texts = pieces(sample.tokens, tokenizer, added)
    told = [f"\u25c0{', '.join('?' if math.isnan(x) else f'{x:g}' for x in grade)}" for grade in sample.grades]
    reads = dict(zip(sample.reads, told or ["\u25c0"] * len(sample.reads), strict=True))
    cells = zip(sample.tokens, texts, sample.mask, sample.weights, roles, strict=True)
    return [
        Token(i, text, i in added, mask and weight != 0, weight, role, reads.get(place, ""))
        for place, (i, text, mask, weight, role) in enumerate(cells)
    ]


def pieces(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, added: set[int]) -> list[str]:
    """The text of each token; together they are the text of all, where that is valid UTF-8.

    Tokens in `added` give their name. Bytes of a character that a token does not complete go to the token that does;
    what is never completed shows as U+FFFD.
    """
    # In front of the decoded token, because SentencePiece decoders drop a space at the start of the text.
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
    skip = len(_decode(tokenizer, anchor))
    found: list[str] = []
    waiting: list[int] = []
    for index, i in enumerate(ids):
        if i in added:
            found.append(str(tokenizer.convert_ids_to_tokens(i)))
            continue
        waiting.append(i)
        text = _decode(tokenizer, anchor + waiting)[skip:]
        more = index + 1 < len(ids) and ids[index + 1] not in added
        # A character has at most 4 bytes, so no more than 4 tokens.
        if text.endswith("\ufffd") and more and len(waiting) < 4:
            found.append("")
        else:
            found.append(text)
            waiting = []
    return found


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def visible(text: str) -> str:
    """The text with control and direction-changing characters spelt out, newlines and tabs aside.

    >>> visible("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    return "".join(
        c.encode("unicode_escape").decode()
        if c not in "\n\t" and c not in KEPT_JOINERS and unicodedata.category(c) in ("Cc", "Cf")
        else c
        for c in text
    )


def name(text: str) -> str:
    """A control token's name in brackets that no content can imitate by accident: `<|im_end|>` becomes `⟨|im_end|⟩`."""
    inner = text[1:-1] if text.startswith("<") and text.endswith(">") and len(text) > 2 else text
    return f"\u27e8{visible(inner)}\u27e9"


def header(number: str, origin: str, row: Rendered, shown: Sequence[Token], judgement: Sequence[str] = ()) -> str:
    """Number, where it was read, tokens, trained tokens, their weights, whether the tail was cut off, judgements."""
    trained = [t for t in shown if t.trained]
    parts = [number, origin, f"{len(shown):,} tokens", f"{len(trained):,} trained"]
    weights = Counter(t.weight for t in trained)
    if set(weights) - {1.0}:
        parts.append("weights " + ", ".join(f"{w:g} ({n:,})" for w, n in sorted(weights.items())))
    if row.sample.stop == "length":
        parts.append("truncated")
    return "  ".join(visible(part) for part in (*parts, *judgement) if part)


@dataclass(frozen=True, slots=True)
class Block:
    """What is shown under one title: a whole sample, the prefix that a group shares, or, as a branch, what follows it.
    The `last` one of its row ends in an empty line."""

    title: str
    tokens: list[Token]
    branch: bool = False
    last: bool = True


def blocks(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> Iterator[Block]:
    """Rows as they are shown; the samples of row 2, where there are several, are numbered 2.1, 2.2 and on.

    Of judged answers and of trees the shared prefix comes once, then each sample from where it leaves those before it.
    """
    for count, (origin, group) in enumerate(rows, 1):
        shown = [tokens(row, tokenizer) for row in group]
        if isinstance(group, RenderedGroup) and len(group) > 1:
            yield from _tree(str(count), origin, group, shown)
            continue
        for index, (row, cells) in enumerate(zip(group, shown, strict=True), 1):
            number = f"row {count}.{index}" if len(group) > 1 else f"row {count}"
            told = (*judgement(row, group, str(count)), *_left_out(group)) if isinstance(group, RenderedGroup) else ()
            yield Block(header(number, origin, row, cells, told), cells)


def _tree(number: str, origin: str, group: RenderedGroup, shown: Sequence[list[Token]]) -> Iterator[Block]:
    leaves = [(0, 0), *(_leaves(group, i) for i in range(1, len(group)))]
    stem = min(at for at, _ in leaves[1:])
    kind = f"{len(group)} responses to one prompt" if group.kind == "ranking" else f"{len(group)} threads of one tree"
    title = [f"row {number}", origin, kind, f"{stem:,} tokens shared", *_left_out(group)]
    yield Block("  ".join(visible(part) for part in title if part), shown[0][:stem], last=False)
    for i, (row, cells) in enumerate(zip(group, shown, strict=True)):
        at, other = leaves[i]
        own = cells[max(at, stem) :]
        told = [f"behind token {at:,} of {number}.{other + 1}"] if at > stem else []
        said = header(f"{number}.{i + 1}", "", row, own, (*told, *judgement(row, group, number)))
        yield Block(said, own, branch=True, last=i + 1 == len(group))


def _leaves(group: RenderedGroup, i: int) -> tuple[int, int]:
    """How many tokens, up to the beginning or end of a turn, sample `i` shares with the one before it that it shares
    most with; and that one's place."""
    row = group[i]
    found = []
    for other in range(i):
        pairs = enumerate(zip(row.sample.tokens, group[other].sample.tokens, strict=False))
        shorter = min(len(row.sample), len(group[other].sample))
        found.append((next((at for at, (a, b) in pairs if a != b), shorter), -other))
    common, other = max(found)
    edges = (edge for span in row.spans for edge in (span.start, span.end))
    return max((edge for edge in edges if edge <= common), default=0), -other


def judgement(row: Rendered, group: RenderedGroup, number: str) -> list[str]:
    """What is known of a sample of a group, and what a run takes from it."""
    sample, response, parts = row.sample, row.response, []
    if response is not None:
        scores = ["?" if score is None else f"{score:g}" for score in response.scores]
        if len(scores) == len(group.dimensions):
            scores = [f"{name} {score}" for name, score in zip(group.dimensions, scores, strict=True)]
        elif scores:
            scores[0] = f"scored {scores[0]}"
        ranked = "" if response.rank is None else f"rank {response.rank}"
        good = {True: "good", False: "bad", None: ""}[response.good]
        parts += [response.author and f"by {response.author}", ranked, ", ".join(scores), good]
    if sample.label is not None and group.labelled:
        parts.append(f"label {sample.label:g}")
    elif sample.label is not None:
        parts.append(
            ("solved" if sample.label else "not solved") if group.kind == "steps" else f"level {sample.label:g}"
        )
    for verb, places in (("beats", sample.beats), ("ties with", sample.ties)):
        if places:
            parts.append(f"{verb} " + ", ".join(f"{number}.{place + 1}" for place in places))
    return [part for part in parts if part]


def _left_out(group: RenderedGroup) -> list[str]:
    told = ", ".join(f"{reason} ({count:,})" for reason, count in group.dropped.items())
    return [f"left out: {told}"] if told else []


# ----------------------------------------------------------------------------------------------------------- terminal


def show(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, console: Console) -> None:
    """Print rows. Trained tokens have a background, in two shades by turns; without colour, ⟦ ⟧ enclose their runs."""
    colour = console.color_system is not None and not console.no_color
    for block in blocks(rows, tokenizer):
        title = Text(block.title, style="bold cyan")
        body = _coloured(block.tokens) if colour else _bracketed(block.tokens)
        if block.branch:
            title = Text.assemble("\u2514\u2500 " if block.last else "\u251c\u2500 ", title)
            rail = Text("   " if block.last else "\u2502  ")
            body = Text("\n").join(Text.assemble(rail, line) for line in body.split("\n", allow_blank=True))
        console.print(title, soft_wrap=True)
        console.print(body, soft_wrap=True)
        if block.last:
            console.print()
    mark = Text("\u27e6trained tokens\u27e7")
    if colour:
        mark = Text.assemble(("trained", TRAINED[0]), (" tokens", TRAINED[1]))
    rest = Text.assemble("  not trained  ", (name("<control token>"), SPECIAL), "  \u23ce newline")
    read = Text.assemble("  ", ("\u25c0", READ), " a scalar head is read here")
    judged = any(row.sample.reads for _, group in rows for row in group)
    console.print(Text.assemble(mark, rest, read if judged else ""), soft_wrap=True)


def _text(token: Token) -> str:
    return name(token.text) if token.special else visible(token.text).replace("\n", "\u23ce\n")


def _coloured(shown: Sequence[Token]) -> Text:
    text = Text()
    for index, token in enumerate(shown):
        style = f"{SPECIAL if token.special else ''} {TRAINED[index % 2] if token.trained else ''}".strip()
        text.append(_text(token), style=style or None)
        if token.read:
            text.append(token.read, style=READ)
    return text


def _bracketed(shown: Sequence[Token]) -> Text:
    return Text("".join(f"\u27e6{run}\u27e7" if trained else run for trained, run in _runs(shown)))


def _runs(shown: Sequence[Token]) -> Iterator[tuple[bool, str]]:
    start = 0
    for end in range(1, len(shown) + 1):
        if end == len(shown) or shown[end].trained != shown[start].trained:
            yield shown[start].trained, "".join(_text(token) + token.read for token in shown[start:end])
            start = end


# --------------------------------------------------------------------------------------------------------------- page


def html(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write rows as one page that needs no network. A token under the pointer says its id, role and weight.

    Raises EspalierError where `path` cannot be written.
    """
    page = resources.files("espalier.commands").joinpath("inspect.html").read_text(encoding="utf-8")
    articles, total, trained = [], 0, 0
    for block in blocks(rows, tokenizer):
        total, trained = total + len(block.tokens), trained + sum(t.trained for t in block.tokens)
        kind = ' class="branch"' if block.branch else ""
        body = "".join(map(_span, block.tokens))
        articles.append(f"<article{kind}><h2>{escape(block.title)}</h2><p>{body}</p></article>")
    summary = f"{len(rows):,} rows, {total:,} tokens, {trained:,} trained"
    page = page.replace("{{summary}}", summary).replace("{{rows}}", "\n".join(articles))
    try:
        write_atomic(path, page)
    except OSError as error:
        raise EspalierError(f"{path}: cannot be written: {error.strerror}. Choose another file with --html") from None


def _span(token: Token) -> str:
    kinds = " ".join(kind for kind, on in (("t", token.trained), ("s", token.special), ("h", not token.text)) if on)
    tip = f"{token.id} \u00b7 {token.role} \u00b7 " + (f"weight {token.weight:g}" if token.trained else "not trained")
    text = name(token.text) if token.special else visible(token.text)
    body = escape(text).replace("\n", "<i>\u23ce</i>\n") or "\u00b7"
    read = f"<em>{escape(token.read)}</em>" if token.read else ""
    return f'<span class="{kinds}" data-tip="{escape(tip)}">{body}</span>{read}'
