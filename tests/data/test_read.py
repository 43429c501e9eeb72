"""Containers and sources: what is written is what is read, in bounded memory, under the name the user gave."""

import doctest
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import espalier.data.sources as data_sources
from containers import PAIR, examples
from espalier.data import interleave
from espalier.data.files import content
from espalier.data.places import refuse_missing
from espalier.data.read import Source, parse_source, parse_sources, read
from espalier.errors import ConfigError, DataError, RowError
from espalier.types import Chat, Completion, Text


@pytest.mark.parametrize("module", [content, interleave, data_sources], ids=lambda module: module.__name__)
def test_worked_examples(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)
    assert failed == 0 and tried >= 1


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("a/b.jsonl", Source("a/b.jsonl", "auto", None, "b")),
        ("a/b.json.gz:alpaca", Source("a/b.json.gz", "alpaca", None, "b")),
        ("b.txt=2", Source("b.txt", "auto", 2.0, "b")),
        ("b.jsonl:prompt=1e-1", Source("b.jsonl", "prompt", 0.1, "b")),
        ("b.jsonl:auto", Source("b.jsonl", "auto", None, "b")),
        ("x=1/b.jsonl", Source("x=1/b.jsonl", "auto", None, "b")),
        ("x:y.jsonl", Source("x:y.jsonl", "auto", None, "x:y")),
        ("owner/name@main#test:text=0.5", Source("owner/name@main#test", "text", 0.5, "owner/name@main#test")),
    ],
)
def test_source_specs(spec: str, expected: Source) -> None:
    assert parse_source(spec) == expected


def test_a_path_that_exists_is_taken_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a:text", "b=2", "c:d=3"):
        Path(name).write_text("x")
    assert parse_source("a:text") == Source("a:text")
    assert parse_source("a:text:text=2") == Source("a:text", "text", 2.0)
    assert parse_source("b=2=0.5") == Source("b=2", "auto", 0.5)
    assert parse_source("c:d=3") == Source("c:d=3")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("a.jsonl:alpacca", "got format 'alpacca'; expected one of auto, alpaca, .* Did you mean alpaca"),
        ("a.jsonl=half", "got proportion 'half'; expected a number above 0"),
        ("a.jsonl=0", "got proportion 0; expected a finite number above 0"),
        ("a.jsonl=nan", "got proportion nan"),
        ("a.jsonl=", "got proportion ''"),
        ("", "got an empty name"),
    ],
)
def test_source_specs_that_cannot_be(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_source(spec)


def test_names_differ_and_no_path_comes_twice() -> None:
    assert [s.name for s in parse_sources(["a/x.jsonl", "b/x.jsonl", "y.txt"])] == ["a/x.jsonl", "b/x.jsonl", "y"]
    with pytest.raises(ConfigError, match=r"got a/x\.jsonl 2 times"):
        parse_sources(["a/x.jsonl", "a/x.jsonl=2"])


def test_the_format_is_the_sources_own_else_the_default(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**PAIR, "text": "t"}) + "\n")
    assert [type(e) for e in examples(path)] == [Chat]
    assert [type(e) for e in examples(path, default_format="text")] == [Text]
    assert [type(e) for e in examples(f"{path}:completion", default_format="text")] == [Completion]
    with pytest.raises(ConfigError, match="got format 'txt'"):
        read(Source(str(path), default_format="txt"))
    (tmp_path / "b.md").write_text("one")
    assert [e.text for e in examples(f"{tmp_path}/b.md:text")] == ["one"]
    (tmp_path / "c.txt").write_text("one")
    with pytest.raises(ConfigError, match="got format alpaca for a file of plain text"):
        examples(f"{tmp_path}/c.txt:alpaca")


def test_the_format_is_decided_once_by_the_first_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows: list[Any] = [{"id": 1}, {"text": "t"}, PAIR, PAIR, *[{"text": "t"}] * 30]
    path.write_text("{\n" + "\n".join(map(json.dumps, rows)))
    got = examples(path)
    assert isinstance(got[0], RowError) and got[0].reason == "broken JSON"
    assert isinstance(got[1], RowError) and got[1].where.endswith(":2")
    assert [type(e).__name__ for e in got[2:5]] == ["Text", "RowError", "RowError"]
    assert all(isinstance(e, Text) for e in got[5:]) and len(got) == 35
    path.write_text("\n".join(map(json.dumps, [{"text": "t"}, PAIR, PAIR])))
    assert [type(e).__name__ for e in examples(path)] == ["RowError", "Chat", "Chat"]


def test_the_hub_is_not_asked_for_what_looks_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    refuse_missing(str(tmp_path / "rows.jsonl"))
    refuse_missing(str(tmp_path))
    refuse_missing("owner/name")
    with pytest.raises(DataError, match=r"rowz.jsonl: no such file. Did you mean .*rows.jsonl"):
        refuse_missing(str(tmp_path / "rowz.jsonl"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        refuse_missing(str(tmp_path / "pipe"))
