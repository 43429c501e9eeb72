"""Sources and mapped columns, as flags, YAML and Python write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from espalier.config.data_source import DataSource, mapped_fields
from espalier.config.options import build, dump, load
from espalier.config.sections import DataConfig
from espalier.errors import ConfigError

YAML = """
data:
- plain.jsonl:prompt=0.5
- path: a.jsonl
  format: pairs
  columns: {prompt: problem, system: =Be kind., responses: [one, two]}
  ignore_columns: images
  share: 2
- {path: "b.jsonl"}
columns: {answer: "meta.solution[0]"}
"""


def test_sources_have_settings_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(YAML, encoding="utf-8")
    config = load(DataConfig, path)
    plain, own, other = config.data
    assert plain == "plain.jsonl:prompt=0.5" and other == DataSource("b.jsonl")
    assert isinstance(own, DataSource) and (own.format, own.share, own.ignore_columns) == ("pairs", 2.0, ("images",))
    assert own.columns == ("prompt=problem", "system==Be kind.", "responses=one,two")
    assert config.columns == ("answer=meta.solution[0]",)
    path.write_text(dump(config), encoding="utf-8")
    assert load(DataConfig, path) == config


def test_python_takes_both_forms() -> None:
    config = DataConfig(data=["a.jsonl", {"path": "b.jsonl", "columns": {"prompt": "q"}}, DataSource("c.jsonl")])  # type: ignore[list-item]
    assert config.data == ("a.jsonl", DataSource("b.jsonl", columns=("prompt=q",)), DataSource("c.jsonl"))
    assert DataConfig(data={"path": "b.jsonl"}).data == (DataSource("b.jsonl"),)  # type: ignore[arg-type]
    assert DataConfig(data="a.jsonl", columns={"prompt": "q"}).columns == ("prompt=q",)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"columns": ("prompt",)}, "columns: got 'prompt', expected NAME=COLUMN"),
        ({"columns": ("=problem",)}, "columns: got '=problem', expected NAME=COLUMN"),
        ({"columns": ("prompt=",)}, "columns: got 'prompt=', expected NAME=COLUMN"),
        ({"columns": ("prompt=a", "prompt=b")}, "columns: prompt is given twice"),
        ({"columns": {"prompt": 3}}, "columns: got prompt: 3, expected a column"),
        ({"data": [{"path": "a", "colums": {}}]}, "data: colums: no such field. Did you mean columns?"),
        ({"data": [{"columns": {}}]}, "data: path: got nothing"),
        ({"data": [{"path": "a", "share": -1}]}, "data: share: got -1, expected a number >= 0"),
        ({"data": [{"path": "a", "columns": ["x"]}]}, "data: columns: got 'x', expected NAME=COLUMN"),
        ({"data": [7]}, "data: got 7"),
    ],
)
def test_what_cannot_be_used_is_said(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(DataConfig, {"data": "a.jsonl", **values})
    assert str(error.value).startswith(message)


def test_a_constant_keeps_its_sign() -> None:
    assert mapped_fields(("a==b=c", "d=e=f")) == {"a": "=b=c", "d": "e=f"}
