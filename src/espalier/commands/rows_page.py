"""Rows as the model sees them, as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from espalier.commands.rows_view import NEWLINE_MARK, PROMPT, Block, Token, blocks, name, tasks_of, visible
from espalier.commands.task_view import summary
from espalier.errors import EspalierError
from espalier.files import write_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from espalier.commands.rows_view import Row

COLOURS = '<span class="t">Green</span>: trained; no background: not trained.'


def html(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write rows as one page that needs no network. A token under the pointer shows its id, role and weight.

    Raises EspalierError if `path` cannot be written.
    """
    page = resources.files("espalier.commands").joinpath("inspect.html").read_text(encoding="utf-8")
    articles, total, trained = [], 0, 0
    for block in blocks(rows, tokenizer):
        total += len(block.tokens)
        trained += len([token for token in block.tokens if token.trained])
        articles.append(_article(block))
    tasks = tasks_of(rows)
    head = f"{escape(summary(tasks))}." if tasks else ""
    if len(tasks) < len(rows) or not rows:
        counted = f"{len(rows):,} rows, {total:,} tokens, {trained:,} trained."
        head = " ".join(part for part in (head, counted, COLOURS) if part)
    page = page.replace("{{summary}}", head).replace("{{rows}}", "\n".join(articles))
    try:
        write_atomic(path, page)
    except OSError as error:
        raise EspalierError(f"{path}: cannot be written: {error.strerror}. Choose another file with --html") from None


def _article(block: Block) -> str:
    kind = ' class="branch"' if block.branch else ""
    body = "".join(_span(token, PROMPT in block.title) for token in block.tokens)
    lines = "".join(f"<h2>{escape(line)}</h2>" for line in block.details)
    return f"<article{kind}><h2>{escape(block.title)}</h2><p>{body}</p>{lines}</article>"


def _span(token: Token, prompt: bool) -> str:
    """A token as HTML; its classes are t (trained), s (special) and h (no text of its own). Of a task's `prompt`,
    nothing is said about training."""
    kinds = []
    if token.trained:
        kinds.append("t")
    if token.special:
        kinds.append("s")
    if not token.text:
        kinds.append("h")
    parts = [str(token.id), token.role]
    if not prompt:
        parts.append(f"weight {token.weight:g}" if token.trained else "not trained")
    tip = escape(" \u00b7 ".join(parts))
    text = name(token.text) if token.special else visible(token.text)
    body = escape(text).replace("\n", f"<i>{NEWLINE_MARK}</i>\n") or "\u00b7"
    read = f"<em>{escape(token.read)}</em>" if token.read else ""
    return f'<span class="{" ".join(kinds)}" data-tip="{tip}">{body}</span>{read}'
