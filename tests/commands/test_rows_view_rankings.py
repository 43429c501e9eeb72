"""Judged answers as they are shown: the prompt once, a branch an answer, and what each of them is held to be."""

from __future__ import annotations

import html as stdlib_html
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rich.console import Console

from espalier.commands.rows_page import html
from espalier.commands.rows_view import blocks, show
from espalier.config.sections import StepLabelsConfig
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.types import Chat, Example, Ranking, Response, Steps, Tree, TreeNode
from toys import assistant, letters, user

CHATML = letters(template="chatml")
QUESTION = (user("Why?"),)
KEEP = StepLabelsConfig(neutral="half", after_mistake="keep")
STEPS = Steps(QUESTION, ("one", "two", "six"), (1.0, 0.0, None), False)


def rendered(example: Example, form: Form) -> Any:
    return Renderer(CHATML, form=form).render(example)


def shown(*rows: Any) -> list[str]:
    out = io.StringIO()
    show([(f"d:{i}", row) for i, row in enumerate(rows, 1)], CHATML, Console(file=out, width=300, no_color=True))
    return out.getvalue().splitlines()


def graded() -> Ranking:
    made = [
        Response(assistant("Because"), scores=(5.0, 2.0), author="m1"),
        Response(assistant("Be it so"), scores=(3.0, None)),
        Response(assistant(" ")),
    ]
    return Ranking(QUESTION, tuple(made), ("helpful", "brief"))


def test_a_ranking_is_a_tree() -> None:
    made = [Response(assistant(text), rank=rank) for text, rank in (("Abc", 1), ("Abd", 0), ("x", 1), ("", 2))]
    lines = shown(rendered(Ranking(QUESTION, tuple(made)), Form("ranking", reads=True)))
    head = ["row 1  d:1  3 responses to one prompt  23 tokens shared  left out: empty response (1)"]
    prompt = ["⟨|im_start|⟩user⏎", "Why?⟨|im_end|⟩⏎", "⟨|im_start|⟩assistant⏎", ""]
    branches = [
        "├─ 1.1  5 tokens  4 trained  rank 1  level -1  ties with 1.3",
        "│  ⟦Abc⟨|im_end|⟩⟧⏎",
        "│  ◀",
        "├─ 1.2  5 tokens  4 trained  rank 0  level 0  beats 1.1, 1.3",
        "│  ⟦Abd⟨|im_end|⟩⟧⏎",
        "│  ◀",
        "└─ 1.3  3 tokens  2 trained  rank 1  level -1",
        "   ⟦x⟨|im_end|⟩⟧⏎",
        "   ◀",
    ]
    assert lines[:-2] == head + prompt + branches
    assert "◀ a scalar head is read here" in lines[-1]


def test_grades_and_labels_are_told_beside_what_they_come_from() -> None:
    lines = shown(
        rendered(graded(), Form("ranking", "grades", True)),
        rendered(Ranking(QUESTION, (Response(assistant("A"), good=False),)), Form("ranking", "labels")),
    )
    titles = [line for line in lines if re.search(r"\d trained", line)]
    assert titles == [
        "├─ 1.1  9 tokens  8 trained  by m1  helpful 5, brief 2  level 3.5",
        "└─ 1.2  10 tokens  9 trained  helpful 3, brief ?",
        "row 2  d:2  25 tokens  2 trained  bad  label 0",
    ]
    places = [line for line in lines if "◀" in line][:2]
    assert "│  ⟦Because⟨|im_end|⟩⟧⏎" in lines and places == ["│  ◀5, 2", "   ◀3, ?"]


def test_steps_are_marked_where_they_are_read() -> None:
    lines = shown(rendered(STEPS, Form("steps", reads=True, labels=KEEP)))
    assert lines[0] == "row 1  d:1  36 tokens  12 trained  not solved"
    assert lines[4:7] == ["⟦one◀1⏎", "two◀0⏎", "six◀?⟨|im_end|⟩⟧⏎"]


def test_threads_of_a_tree_leave_where_they_part() -> None:
    parts = [(user("Q"), -1), (assistant("A"), 0), (user("R"), 1), (assistant("B"), 2), (assistant("C"), 2),
             (assistant("D"), 0)]  # fmt: skip
    group = rendered(Tree(tuple(TreeNode(*part) for part in parts)), Form())
    found = list(blocks([("d:1", group)], CHATML))
    assert [b.title for b in found] == [
        "row 1  d:1  3 threads of one tree  20 tokens shared",
        "1.1  25 tokens  4 trained",
        "1.2  2 tokens  2 trained  after token 43 of 1.1",
        "1.3  2 tokens  2 trained",
    ]
    trained = "".join(t.text for b in found for t in b.tokens if t.trained)
    assert trained == "A<|im_end|>B<|im_end|>C<|im_end|>D<|im_end|>"
    assert "".join(t.text for t in found[0].tokens).endswith("<|im_start|>assistant\n")


def test_rows_without_judgements_look_as_ever() -> None:
    lines = shown(rendered(Chat((*QUESTION, assistant("A"))), Form()))
    assert lines[0] == "row 1  d:1  25 tokens  2 trained" and "scalar head" not in lines[-1]


class Page(HTMLParser):
    """The articles of a page, and whether its tags are balanced."""

    VOID = ("meta", "br", "!doctype")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.articles: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "article":
            self.articles.append((dict(attrs).get("class") or "", ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "article" in self.open:
            kind, text = self.articles[-1]
            self.articles[-1] = kind, text + data


def test_the_page_shows_the_same_tree(tmp_path: Path) -> None:
    group = rendered(graded(), Form("ranking", "grades", True))
    steps = rendered(STEPS, Form("steps", reads=True, labels=KEEP))
    html([("<d>:1", group), ("d:2", steps)], CHATML, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert [kind for kind, _ in page.articles] == ["", "branch", "branch", ""]
    stem, first, second, whole = (said for _, said in page.articles)
    assert stem.startswith("row 1  <d>:1  2 responses to one prompt  23 tokens shared  left out: empty response (1)")
    assert stem.count("Why?") == 1 and "Why?" not in first + second
    assert first.endswith("Because⟨|im_end|⟩⏎\n◀5, 2") and second.endswith("Be it so⟨|im_end|⟩⏎\n◀3, ?")
    assert "one◀1⏎\ntwo◀0⏎\nsix◀?⟨|im_end|⟩" in whole
    tips = re.findall(r'data-tip="([^"]*)"', text)
    assert len(tips) == 23 + 9 + 10 + 36 and stdlib_html.unescape(tips[0]).endswith("template · not trained")
    assert not re.findall(r"(?:src|href)\s*=|url\(|@import|https?:", text)
