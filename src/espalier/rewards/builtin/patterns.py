"""Rewards of texts that follow a pattern: `regex` and `json_schema`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from espalier.errors import ConfigError
from espalier.rewards.builtin.shape import code_blocks
from espalier.rewards.reward import Answer, Known, Reward, Setting, Settings

# -------------------------------------------------------------------------------------------------------------- regex


def grade_regex(answer: Answer, settings: Settings) -> float:
    """1 if the pattern (Python's `re`) matches somewhere in the response, with `whole` all of it, else 0.

    The pattern is the setting, else the task's fact `pattern`. `.` matches line breaks, `^` and `$` match at lines. A
    pattern that takes too long ends at the deadline of graders, which is an error.
    """
    pattern = _compiled(settings["pattern"] or answer.facts["pattern"], settings["ignore_case"])
    match = pattern.fullmatch(answer.response) if settings["whole"] else pattern.search(answer.response)
    return float(match is not None)


@lru_cache(maxsize=1024)
def _compiled(pattern: str, ignore_case: bool) -> re.Pattern[str]:
    return re.compile(pattern, re.DOTALL | re.MULTILINE | (re.IGNORECASE if ignore_case else 0))


def _check_regex(settings: Settings) -> None:
    try:
        _compiled(settings["pattern"], settings["ignore_case"])
    except re.error as error:
        raise ValueError(f"pattern {settings['pattern']!r} is no regular expression: {error}") from None


REGEX = Reward(
    "regex",
    "1 if a regular expression (setting or fact `pattern`) matches in the response.",
    grade_regex,
    needs=("pattern",),
    settings={
        "pattern": Setting("", "The regular expression; empty takes the task's."),
        "whole": Setting(False, "Whether it must match the whole response."),
        "ignore_case": Setting(False, "Whether upper and lower case are the same."),
    },
    check=_check_regex,
    known=(
        Known("on 2024-05-01.", 1.0, facts={"pattern": r"\d{4}-\d\d-\d\d"}),
        Known("on 2024-5-1.", 0.0, facts={"pattern": r"\d{4}-\d\d-\d\d"}),
        Known("a 12", 0.0, settings={"pattern": r"\d+", "whole": True}),
        Known("12", 1.0, settings={"pattern": r"\d+", "whole": True}),
        Known("YES", 1.0, settings={"pattern": "^yes$", "ignore_case": True}),
        Known("no\nYES\n", 0.0, settings={"pattern": "^yes$"}),
        Known("", 0.0, facts={"pattern": "yes"}),
    ),
)

# -------------------------------------------------------------------------------------------------------- JSON schema


def grade_json_schema(answer: Answer, settings: Settings) -> float | dict[str, str]:
    """1 if the response is JSON that the schema allows, 0 if the schema does not allow it.

    The JSON is the whole response, or the only fenced block in it if `fenced` allows one. A response that is no JSON
    (NaN and Infinity are none) is invalid. The schema is the task's fact `schema` (an object, or its JSON), or the
    setting: JSON, or the path of a file that ends in .json. References to other documents are not followed. Drafts
    and keywords as in the library jsonschema.
    """
    text = answer.response.strip()
    blocks = code_blocks(answer.response) if settings["fenced"] else []
    if len(blocks) == 1:
        text = blocks[0][1]
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return {"invalid": "no JSON"}
    return float(_validator(_schema_text(settings["schema"] or answer.facts["schema"])).is_valid(value))


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _schema_text(schema: object) -> str:
    if isinstance(schema, str):
        return Path(schema).read_text(encoding="utf-8") if schema.endswith(".json") else schema
    return json.dumps(schema, sort_keys=True)


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    """The validator of a schema. Raises ValueError for a schema that is none, ConfigError without the library."""
    try:
        import jsonschema
        import referencing
    except ImportError:
        raise ConfigError(
            'reward json_schema needs jsonschema, which is not installed; run: pip install "espalier[json]"'
        ) from None
    try:
        rules = json.loads(schema)
    except ValueError as error:
        raise ValueError(f"schema {schema[:60]!r} is no JSON: {error}") from None
    if not isinstance(rules, (bool, Mapping)):
        raise ValueError(f"schema {schema[:60]!r} is no JSON Schema; expected an object, true or false")
    kind = jsonschema.validators.validator_for(rules, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(rules)
    except jsonschema.SchemaError as error:
        raise ValueError(f"schema {schema[:60]!r} is no JSON Schema: {error.message}") from None
    # An empty registry: what the schema refers to elsewhere would be fetched otherwise.
    return kind(rules, registry=referencing.Registry())


def _check_schema(settings: Settings) -> None:
    if settings["schema"]:
        try:
            _validator(_schema_text(settings["schema"]))
        except OSError as error:
            raise ValueError(f"schema {settings['schema']!r} cannot be read: {error}") from None


_PERSON = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}, "required": ["age"]}

JSON_SCHEMA = Reward(
    "json_schema",
    "1 if the response is JSON that a JSON Schema (setting or fact `schema`) allows.",
    grade_json_schema,
    needs=("schema",),
    settings={
        "schema": Setting("", "The schema: JSON, or a path that ends in .json; empty takes the task's."),
        "fenced": Setting(True, "Whether the JSON may be the only fenced block of the response."),
    },
    check=_check_schema,
    load=lambda: _validator("true").validate(1),
    known=(
        Known('{"age": 7}', 1.0, facts={"schema": _PERSON}),
        Known('Here:\n```json\n{"age": 7}\n```', 1.0, facts={"schema": _PERSON}),
        Known('```json\n{"age": 7}\n```', "invalid", facts={"schema": _PERSON}, settings={"fenced": False}),
        Known('{"age": -7}', 0.0, facts={"schema": _PERSON}),
        Known('{"age": "7"}', 0.0, facts={"schema": _PERSON}),
        Known("{}", 0.0, facts={"schema": _PERSON}),
        Known("[1]", 1.0, settings={"schema": '{"type": "array"}'}),
        Known('{"age": NaN}', "invalid", facts={"schema": _PERSON}),
        Known('{"age": 7', "invalid", facts={"schema": _PERSON}),
        Known("", "invalid", facts={"schema": _PERSON}),
    ),
)
