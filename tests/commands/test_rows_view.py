"""Rows as they are shown: every token once, trained ones marked, nothing that the content could act through."""

from __future__ import annotations

import html as stdlib_html
import io
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from espalier.commands.rows_page import html
from espalier.commands.rows_view import name, pieces, show, tokens, visible
from espalier.data.render.drafts import Rendered, Span
from espalier.errors import EspalierError
from espalier.types import Sample

END = "<|im_end|>"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, and a control token: every character beyond ASCII spans several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=raw)
    made.add_special_tokens({"eos_token": END})
    return made


def row(tokenizer: Any, *parts: tuple[str, str, float]) -> Rendered:
    """A row of (role, text, weight) parts; weight 0 is not trained; the text of role "" may hold control tokens."""
    sample, spans = Sample(), []
    for role, text, weight in parts:
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=role == "user")
        start = len(sample)
        sample.append(ids, trained=weight > 0, weight=weight)
        if role:
            spans.append(Span(start, len(sample), role, weight > 0))
    return Rendered(sample, spans)


def shown(tokenizer: Any, *rows: tuple[str, list[Rendered]], colour: bool = False) -> str:
    out = io.StringIO()
    options: dict[str, Any] = {"force_terminal": True, "color_system": "256"} if colour else {"no_color": True}
    show(list(rows), tokenizer, Console(file=out, width=40, **options))
    return out.getvalue()


def test_tokens_know_their_text_role_and_weight(tokenizer: Any) -> None:
    found = tokens(row(tokenizer, ("user", "hé", 0.0), ("", END, 0.0), ("assistant", "ok" + END, 0.5)), tokenizer)
    assert [t.text for t in found] == ["h", "", "é", END, "o", "k", END]
    assert [t.special for t in found] == [False, False, False, True, False, False, True]
    assert [t.trained for t in found] == [False] * 4 + [True] * 3
    assert [t.weight for t in found] == [0.0] * 4 + [0.5] * 3
    assert [t.role for t in found] == ["user"] * 3 + ["template"] + ["assistant"] * 3


def test_a_token_of_weight_0_is_not_shown_as_trained(tokenizer: Any) -> None:
    sample = Sample()
    sample.append(tokenizer.encode("ab"), trained=True, weight=0.0)
    assert [t.trained for t in tokens(Rendered(sample, []), tokenizer)] == [False, False]


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.text(max_size=8), max_size=4))
def test_pieces_add_up_to_the_text(tokenizer: Any, parts: list[str]) -> None:
    ids: list[int] = []
    for part in parts:
        ids += [*tokenizer.encode(part, split_special_tokens=True), tokenizer.eos_token_id]
    assert "".join(pieces(ids, tokenizer, {tokenizer.eos_token_id})) == "".join(part + END for part in parts)


def test_a_character_cut_off_at_the_end_is_a_replacement_character(tokenizer: Any) -> None:
    ids = tokenizer.encode("a\u4f60")[:-1]
    assert pieces(ids, tokenizer, set()) == ["a", "", "\ufffd"]


def test_plain_terminals_get_brackets(tokenizer: Any) -> None:
    one = row(tokenizer, ("user", "1+1?", 0.0), ("", END + "\n", 0.0), ("assistant", "2" + END, 1.0), ("", "\n", 0.0))
    lines = shown(tokenizer, ("d.jsonl:7", [one])).splitlines()
    assert lines[:3] == ["row 1  d.jsonl:7  9 tokens  2 trained", "1+1?⟨|im_end|⟩⏎", "⟦2⟨|im_end|⟩⟧⏎"]
    assert "⟦trained tokens⟧" in lines[-1]


def test_colour_marks_each_trained_token_and_no_other(tokenizer: Any) -> None:
    text = shown(tokenizer, ("", [row(tokenizer, ("user", "ab", 0.0), ("assistant", "cd" + END, 1.0))]), colour=True)
    body = text.splitlines()[1]
    assert body.startswith("ab\x1b[")
    marked = re.findall(r"\x1b\[([\d;]*48;5;\d+)m([^\x1b]*)", body)
    assert [piece for _, piece in marked] == ["c", "d", "⟨|im_end|⟩"]
    assert marked[0][0] != marked[1][0]  # neighbours differ in shade
    assert marked[2][0].startswith("1;")  # bold


def test_headers_say_weights_truncation_and_siblings(tokenizer: Any) -> None:
    first = row(tokenizer, ("assistant", "abc", 1.0), ("assistant", "d", 0.25))
    second = row(tokenizer, ("assistant", "e", 1.0))
    second.sample.stop = "length"
    text = shown(tokenizer, ("x:1", [first, second]), ("x:2", [second]))
    heads = [line for line in text.splitlines() if line.startswith("row ")]
    assert heads == [
        "row 1.1  x:1  4 tokens  4 trained  weights 0.25 (1), 1 (3)",
        "row 1.2  x:1  1 tokens  1 trained  truncated",
        "row 2  x:2  1 tokens  1 trained  truncated",
    ]


def test_content_cannot_reach_the_terminal_or_pass_for_a_control_token(tokenizer: Any) -> None:
    evil = "\x1b[31m\x07\u202e\r" + END
    text = shown(tokenizer, ("bad\x1bname", [row(tokenizer, ("user", evil, 0.0))]))
    assert not set(text) & set("\x1b\x07\u202e\r")
    assert "\\x1b[31m\\x07\\u202e\\r<|im_end|>" in text
    assert "bad\\x1bname" in text


def test_visible_and_name() -> None:
    assert visible("a\tb\nc\u200dd") == "a\tb\nc\u200dd"
    assert visible("\x00\x7f\x85\u2066") == "\\x00\\x7f\\x85\\u2066"
    assert [name(text) for text in ("<s>", "<|x|>", "[INST]", "<>")] == ["⟨s⟩", "⟨|x|⟩", "⟨[INST]⟩", "⟨<>⟩"]


def test_the_page_is_escaped_offline_and_says_id_role_and_weight(tokenizer: Any, tmp_path: Path) -> None:
    evil = "<script>alert('&amp;')</script> {{rows}}"
    one = row(tokenizer, ("user", evil, 0.0), ("assistant", "é\n" + END, 0.5))
    html([('a"<b>.jsonl:1', [one])], tokenizer, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<b>" not in page
    assert "{{" not in re.sub(r"<main>.*</main>", "", page, flags=re.DOTALL)
    assert not re.findall(r"(?:src|href)\s*=|url\(|@import|https?:", page)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    body = re.search(r"<article>.*</article>", page, re.DOTALL)
    assert body is not None
    cells = re.findall(r'<span class="([^"]*)" data-tip="([^"]*)">(.*?)</span>', body[0], re.DOTALL)
    assert len(cells) == len(one.sample)
    user = "".join(stdlib_html.unescape(text) for kind, tip, text in cells if " user " in stdlib_html.unescape(tip))
    assert user == evil
    kinds, tips, texts = zip(*cells[-4:], strict=True)
    assert kinds == ("t h", "t", "t", "t s")
    assert texts == ("·", "é", "<i>⏎</i>\n", "⟨|im_end|⟩")
    assert tips[3] == f"{tokenizer.eos_token_id} · assistant · weight 0.5"
    assert cells[0][1].endswith(" · user · not trained")
    assert f"1 rows, {len(one.sample)} tokens, 4 trained" in page


def test_a_page_that_cannot_be_written_is_one_line(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(EspalierError, match=r"cannot be written: No such file or directory\. Choose another file"):
        html([], tokenizer, tmp_path / "absent" / "page.html")


@pytest.mark.real_data
def test_pieces_of_a_sentencepiece_tokenizer_keep_its_spaces(shared: Path) -> None:
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    ids = real.encode("Once  upon a 时 time", add_special_tokens=False)
    assert "".join(pieces(ids, real, set(real.added_tokens_decoder))) == " Once  upon a 时 time"
