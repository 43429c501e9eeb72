"""Token stores of judged answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.data.store.store import Store, open_store
from espalier.types import Example, Origin, Ranking, Response
from stores import FakeSource
from toys import assistant, letters, user

CHATML = letters(template="chatml")


def listed(*scores: float | None, texts: str = "ABCDEFGH", dimensions: tuple[str, ...] = ()) -> Ranking:
    made = [Response(assistant(t), scores=(s,)) for t, s in zip(texts, scores, strict=False)]
    return Ranking((user("Q"),), tuple(made), dimensions)


def build(folder: Path, rows: list[Example], form: Form, **options) -> Store:
    numbered = [replace(row, origin=Origin("toy", line)) for line, row in enumerate(rows, 1)]
    options = {"on_bad_row": "skip", "content_key": "v1", "cache": folder, **options}
    return open_store(FakeSource(), lambda: iter(numbered), Renderer(CHATML, form=form), **options)
