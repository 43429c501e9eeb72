"""Rewards of texts that follow a pattern."""

import json
from pathlib import Path

import pytest

from espalier.errors import ConfigError
from espalier.rewards.builtin.patterns import JSON_SCHEMA, REGEX
from graded import grade


def test_regex_matches_somewhere_or_as_a_whole() -> None:
    assert grade(REGEX, "a1b", pattern=r"\d") == 1.0
    assert grade(REGEX, "a1b", pattern=r"\d", whole=True) == 0.0
    assert grade(REGEX, "a\nb", pattern="a.b", whole=True) == 1.0
    assert grade(REGEX, "x\nB\n", pattern="^b$", ignore_case=True) == 1.0
    assert grade(REGEX, "b", facts={"pattern": "a"}, pattern="b") == 1.0


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="no regular expression"):
        REGEX.with_defaults({"pattern": "("})


POINT = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("[1, 2.5]", 1.0),
        ("\n[1, 2.5]\n", 1.0),
        ("```\n[1, 2]\n```", 1.0),
        ("A point:\n```json\n[1, 2]\n```\nDone.", 1.0),
        ("```json\n[1, 2]\n```\n```json\n[1, 2]\n```", "invalid"),
        ("A point: [1, 2]", "invalid"),
        ("[1]", 0.0),
        ('["1", "2"]', 0.0),
        ("[1, Infinity]", "invalid"),
        ("[1, 2", "invalid"),
        ("[" * 100_000, "invalid"),
        ("", "invalid"),
    ],
)
def test_json_schema(response: str, score: float | str) -> None:
    assert grade(JSON_SCHEMA, response, facts={"schema": POINT}) == score
    assert grade(JSON_SCHEMA, response, schema=json.dumps(POINT)) == score


def test_a_schema_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "point.json"
    path.write_text(json.dumps(POINT), encoding="utf-8")
    assert [grade(JSON_SCHEMA, text, schema=str(path)) for text in ("[1, 2]", "[1]")] == [1.0, 0.0]
    with pytest.raises(ConfigError, match="cannot be read"):
        JSON_SCHEMA.with_defaults({"schema": str(tmp_path / "other.json")})


@pytest.mark.parametrize("schema", ["{", "[]", '{"type": "nonsense"}'])
def test_a_schema_that_is_none_is_refused(schema: str) -> None:
    with pytest.raises(ConfigError, match="schema"):
        JSON_SCHEMA.with_defaults({"schema": schema})


def test_no_other_document_is_fetched() -> None:
    with pytest.raises(Exception, match="Unresolvable"):
        grade(JSON_SCHEMA, "1", schema='{"$ref": "http://localhost:1/other.json"}')
