"""A renderer of letters, and token stores of what it renders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from espalier.data.render.drafts import Rendered, Span
from espalier.data.store.store import Store, open_store
from espalier.errors import RowError
from espalier.types import Example, Origin, Sample, Text

BOS, STOP = 1, 2


@dataclass(frozen=True)
class FakeSource:
    path: str = "in/toy.jsonl"
    name: str = "toy"
    format: str = "text"


@dataclass
class FakeRenderer:
    """Letters are tokens: "ab|cd" is BOS a b (user), c d STOP (assistant, trained); "&" parts samples of one group."""

    fingerprint: str = "fake 1"
    stop_ids: frozenset[int] = frozenset({STOP})
    bos_id: int | None = BOS
    limit: int = 100
    calls: list[str] = field(default_factory=list)

    def render(self, example: Example, key: int) -> list[Rendered]:
        assert isinstance(example, Text)
        self.calls.append(example.text)
        if example.text.startswith("bad"):
            raise RowError("bad text", got=example.text, expected="better text")
        return [self._one(piece) for piece in example.text.split("&")] if example.text else []

    def _one(self, piece: str) -> Rendered:
        prompt, _, answer = piece.partition("|")
        s = Sample()
        s.append([BOS, *map(ord, prompt)], trained=False)
        middle = len(s)
        s.append([*map(ord, answer), STOP], trained=True, weight=0.1)
        if len(s) > self.limit:
            s.stop = "length"
            s.tokens, s.mask, s.weights = s.tokens[: self.limit], s.mask[: self.limit], s.weights[: self.limit]
        return Rendered(s, [Span(1, middle, "user", False), Span(middle, len(s), "assistant", True)])


@dataclass
class Rows:
    """A reader that counts how often it is asked."""

    texts: list[str | RowError]
    reads: int = 0

    def __call__(self) -> Iterator[Example | RowError]:
        self.reads += 1
        for line, text in enumerate(self.texts, 1):
            yield text if isinstance(text, RowError) else Text(text, Origin("toy", line))


def build(tmp_path: Path, texts: list[str | RowError], renderer: FakeRenderer | None = None, **options) -> Store:
    options = {"content_key": "v1", "cache": tmp_path, **options}
    return open_store(FakeSource(), Rows(texts), renderer or FakeRenderer(), **options)


def entries(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "tokens").iterdir() if p.is_dir())
