"""Rows that are checked before a run stand beside what is stored of the same line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from espalier.checks.evidence import matched
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.data.store.store import open_store
from espalier.types import Example, Origin
from judged_stores import CHATML, build, listed
from stores import FakeSource


def numbered(rows: list[tuple[int, Example]]) -> list[Example]:
    return [replace(row, origin=Origin("toy", line)) for line, row in rows]


def test_a_row_that_only_the_store_refuses_shifts_nothing(tmp_path: Path) -> None:
    form = Form("ranking", "grades", True)
    rows: list[Example] = [
        listed(1.0, 2.0, texts="AB", dimensions=("helpful",)),
        listed(3.0, 4.0, texts="CD", dimensions=("brief",)),  # rendered, and refused beside the first
        listed(None, texts="E"),  # not rendered
        listed(5.0, 6.0, texts="FG", dimensions=("helpful",)),
    ]
    store = build(tmp_path, rows, form)
    renderer = Renderer(CHATML, form=form)
    examples = numbered([(line, row) for line, row in enumerate(rows, 1)])
    found = list(matched(renderer, store, iter(examples)))
    assert [row.example.origin.line for row in found] == [1, 4]
    for row in found:
        assert [s.tokens for s in row.stored] == [r.sample.tokens for r in renderer.render(row.example)]
        assert [s.tokens for s in row.stored] == [r.sample.tokens for r in row.rendered]


def test_several_examples_of_a_line_are_all_matched_or_none(tmp_path: Path) -> None:
    form = Form("ranking", "grades", True)
    rows = [
        (1, listed(1.0, 2.0, texts="AB", dimensions=("helpful",))),
        (1, listed(3.0, 4.0, texts="CD", dimensions=("helpful",))),
        (2, listed(1.0, 2.0, texts="EF", dimensions=("helpful",))),
        (2, listed(3.0, 4.0, texts="GH", dimensions=("brief",))),  # refused: which of the line's is stored is not said
        (5, listed(3.0, 4.0, texts="AH", dimensions=("helpful",))),
    ]
    renderer, examples = Renderer(CHATML, form=form), numbered(rows)
    store = open_store(
        FakeSource(), lambda: iter(examples), renderer, cache=tmp_path, content_key="v1", on_bad_row="skip"
    )
    assert [store.origin(i).line for i in range(len(store))] == [1, 1, 2, 5]
    found = list(matched(renderer, store, iter(examples)))
    assert [row.example.origin.line for row in found] == [1, 1, 5]
    for row in found:
        assert [s.tokens for s in row.stored] == [r.sample.tokens for r in renderer.render(row.example)]
        assert [s.tokens for s in row.stored] == [r.sample.tokens for r in row.rendered]
