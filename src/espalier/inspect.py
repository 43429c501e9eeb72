"""Rows as the model sees them: which tokens there are, which of them are trained, and with which weight."""

from __future__ import annotations

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

from espalier.errors import EspalierError
from espalier.files import write_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from espalier.data.rendered import Rendered

    Row = tuple[str, Sequence[Rendered]]
    """Where a row was read, and the samples it became."""

TRAINED = ("white on dark_green", "white on green4")  # by turns, so that token boundaries show
SPECIAL = "bold"
KEPT_JOINERS = "\u200c\u200d"  # scripts and emoji need them; other invisible characters are spelt out


@dataclass(frozen=True, slots=True)
class Token:
    """One token as it is shown. `text` is "" where a character ends only in a later token, which then has all of it."""

    id: int
    text: str
    special: bool
    trained: bool
    weight: float
    role: str


def tokens(row: Rendered, tokenizer: PreTrainedTokenizerBase) -> list[Token]:
    """The tokens of a rendered row. The role of a token outside every span is "template"."""
    sample = row.sample
    roles = ["template"] * len(sample)
    for span in row.spans:
        roles[span.start : span.end] = [span.role] * (span.end - span.start)
    added = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    texts = pieces(sample.tokens, tokenizer, added)
    cells = zip(sample.tokens, texts, sample.mask, sample.weights, roles, strict=True)
    return [Token(i, text, i in added, mask and weight != 0, weight, role) for i, text, mask, weight, role in cells]


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


def header(number: str, origin: str, row: Rendered, shown: Sequence[Token]) -> str:
    """Row number, where it was read, tokens, trained tokens, their weights, and whether the tail was cut off."""
    trained = [t for t in shown if t.trained]
    parts = [f"row {number}", origin, f"{len(shown):,} tokens", f"{len(trained):,} trained"]
    weights = Counter(t.weight for t in trained)
    if set(weights) - {1.0}:
        parts.append("weights " + ", ".join(f"{w:g} ({n:,})" for w, n in sorted(weights.items())))
    if row.sample.stop == "length":
        parts.append("truncated")
    return "  ".join(visible(part) for part in parts if part)


def _titled(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, list[Token]]]:
    """Each sample with its header; the samples of row 2, where there are several, are numbered 2.1, 2.2 and on."""
    for count, (origin, group) in enumerate(rows, 1):
        for index, row in enumerate(group, 1):
            shown = tokens(row, tokenizer)
            yield header(f"{count}.{index}" if len(group) > 1 else str(count), origin, row, shown), shown


# ----------------------------------------------------------------------------------------------------------- terminal


def show(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, console: Console) -> None:
    """Print rows. Trained tokens have a background, in two shades by turns; without colour, ⟦ ⟧ enclose their runs."""
    colour = console.color_system is not None and not console.no_color
    for title, shown in _titled(rows, tokenizer):
        console.print(Text(title, style="bold cyan"), soft_wrap=True)
        console.print(_coloured(shown) if colour else _bracketed(shown), soft_wrap=True)
        console.print()
    mark = Text("\u27e6trained tokens\u27e7")
    if colour:
        mark = Text.assemble(("trained", TRAINED[0]), (" tokens", TRAINED[1]))
    rest = Text.assemble("  not trained  ", (name("<control token>"), SPECIAL), "  \u23ce newline")
    console.print(Text.assemble(mark, rest), soft_wrap=True)


def _text(token: Token) -> str:
    return name(token.text) if token.special else visible(token.text).replace("\n", "\u23ce\n")


def _coloured(shown: Sequence[Token]) -> Text:
    text = Text()
    for index, token in enumerate(shown):
        style = f"{SPECIAL if token.special else ''} {TRAINED[index % 2] if token.trained else ''}".strip()
        text.append(_text(token), style=style or None)
    return text


def _bracketed(shown: Sequence[Token]) -> Text:
    return Text("".join(f"\u27e6{run}\u27e7" if trained else run for trained, run in _runs(shown)))


def _runs(shown: Sequence[Token]) -> Iterator[tuple[bool, str]]:
    start = 0
    for end in range(1, len(shown) + 1):
        if end == len(shown) or shown[end].trained != shown[start].trained:
            yield shown[start].trained, "".join(_text(token) for token in shown[start:end])
            start = end


# --------------------------------------------------------------------------------------------------------------- page


def html(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write rows as one page that needs no network. A token under the pointer says its id, role and weight.

    Raises EspalierError where `path` cannot be written.
    """
    page = resources.files("espalier").joinpath("inspect.html").read_text(encoding="utf-8")
    articles, total, trained = [], 0, 0
    for title, shown in _titled(rows, tokenizer):
        total, trained = total + len(shown), trained + sum(t.trained for t in shown)
        articles.append(f"<article><h2>{escape(title)}</h2><p>{''.join(map(_span, shown))}</p></article>")
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
    return f'<span class="{kinds}" data-tip="{escape(tip)}">{body}</span>'
