"""What the formats share: looking fields up, naming what is wrong with them, tool calls, and which turns may follow."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from espalier.config.template_args import RESERVED
from espalier.data.columns.watched import WatchedRow, peek, plain
from espalier.data.files.json_rows import clipped, decode_string, readable
from espalier.errors import RowError, nearest
from espalier.types import Message, Role

Fields = Mapping[str, Any]
WEIGHTS = ("weight", "loss_weight")
TEMPLATE_ARGS = "chat_template_kwargs"
FLAGS = ("train", "training", "trainable", "loss", "loss_mask", "is_trainable", "train_on_turn", "trained")
"""Keys of a message that say whether it is trained; a `loss` that is another number is a weight."""
HIDDEN = ("masked", "is_masked", "ignore", "ignored", "skip")
"""Keys of a message that say whether it is not trained."""
UNCLEAR = "mask"
"""A key of a message of which 1 means that it is trained to some, and that it is not to others."""
_OWN_WEIGHTS = (*WEIGHTS, *FLAGS, *HIDDEN, UNCLEAR)
SHOWN_KEYS = 20


class Given(dict[str, Any]):
    """An object of a tool call or a function schema that the row holds as an object, not as JSON in a string: a table
    may have put null keys into it that belong to other rows."""


def shown(value: Any) -> str:
    """A value as an error names it: its JSON type and its beginning."""
    if value is None:
        return "null"
    names = {str: "string", bool: "boolean", int: "number", float: "number", list: "list", dict: "object"}
    name = names.get(type(value), "object" if isinstance(value, dict) else type(value).__name__)
    return f"{name} {clipped(repr(value))}"


def wrong_type(field: str, value: Any, expected: str) -> RowError:
    """The error for a field whose value is of another type than `expected`."""
    return RowError("wrong type", field=field, got=shown(value), expected=expected)


def missing(field: str, row: Fields, expected: str, fix: str = "") -> RowError:
    """The error for a row without `field`, which names the keys that it has."""
    keys = sorted(map(readable, row))
    if not keys:
        got = "no keys"
    else:
        got = "the keys " + ", ".join(keys[:SHOWN_KEYS])
        if len(keys) > SHOWN_KEYS:
            got += " ..."
    return RowError("missing key", field=field, got=got, expected=expected, fix=fix)


def blank(reason: str, field: str, text: str, expected: str) -> RowError:
    """The error for a text that is empty or white space."""
    return RowError(reason, field=field, got=f"content {text[:20]!r}", expected=expected)


def empty_answer(field: str, text: str) -> RowError:
    """The error for an assistant turn without text."""
    return blank("empty assistant turn", field, text, "a text to learn")


def role_of(name: str, roles: Mapping[str, Role], field: str) -> Role:
    """The role that a format calls `name`. Raises RowError if it is not one of `roles`."""
    role = roles.get(name.strip().lower())
    if role is None:
        fix = nearest(name, roles)
        raise RowError("unknown role", field=field, got=shown(name), expected=", ".join(roles), fix=fix)
    return role


def first_key(row: Fields, keys: Sequence[str]) -> str | None:
    """The first of `keys` that `row` holds with a value other than null, written so or with a capital (`Question`); it
    counts as read once it is looked up."""
    spellings, known = _spellings(keys if isinstance(keys, tuple) else tuple(keys))
    # A row has none of most names that are asked for, which a short one shows at once.
    if len(row) <= len(spellings) and known.isdisjoint(row):
        return None
    for name in spellings:
        if name in row and peek(row, name) is not None:
            return _offered(row, name, keys)
    return None


def has_any(row: Fields, keys: tuple[str, ...]) -> bool:
    """Whether `row` holds one of `keys`, be it null; `first_key` finds none if not."""
    spellings, known = _spellings(keys)
    if len(row) <= len(spellings):
        return not known.isdisjoint(row)
    return any(name in row for name in spellings)


@lru_cache(1024)
def _spellings(keys: tuple[str, ...]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Each key as it is and with a capital, in the order in which they are looked for, and as a set."""
    spellings = tuple(dict.fromkeys(name for key in keys for name in (key, key.capitalize())))
    return spellings, frozenset(spellings)


def _offered(row: Fields, key: str, keys: Sequence[str]) -> str:
    """The key, which a row that is watched expects to be looked up next."""
    if isinstance(row, WatchedRow):
        row.offer(key, keys)
    return key


def first_list(row: Fields, keys: Sequence[str]) -> str | None:
    """The first of `keys` under which `row` holds a list."""
    for key in keys:
        if isinstance(peek(row, key), list):
            return _offered(row, key, keys)
    return None


def string(row: Fields, keys: Sequence[str], field: str = "", default: str | None = None) -> str:
    """The string under the first of `keys` that the row has.

    `field` is the place of `row` in the whole row, with a dot at the end, and stands before the key in errors. Raises
    RowError if the value is not a string, or missing without a `default`.
    """
    key = first_key(row, keys)
    if key is None:
        if default is not None:
            return default
        raise missing(field + keys[0], row, " or ".join(keys))
    value = row[key]
    if not isinstance(value, str):
        raise wrong_type(field + key, value, "a string")
    return str(value)


def weight(row: Fields, field: str) -> float | None:
    """A message's own loss weight: `weight` or `loss_weight`, a number from 0 up, or one of `FLAGS`, true (1) or false
    (0), or of `HIDDEN`, the other way round. None if it has none of them. Raises RowError, also if they contradict each
    other, and for a `mask`, which says nothing clear.
    """
    if not has_any(row, _OWN_WEIGHTS):
        return None
    weights: dict[str, float] = {}
    for name in WEIGHTS:
        key = first_key(row, (name,))
        if key is not None:
            weights[key] = _weight_number(row[key], f"{field}.{key}")
    for name in (*FLAGS, *HIDDEN):
        key = first_key(row, (name,))
        if key is not None:
            weights[key] = _flag_number(row[key], name, f"{field}.{key}")
    if first_key(row, (UNCLEAR,)):
        place = re.sub(r"\[\d+\]", "", field)
        fix = f"Say it with train: true or false, or leave it out with --ignore-columns {place}.mask"
        raise RowError("unclear weight", field=f"{field}.mask", got=shown(row.get(UNCLEAR)), expected="train", fix=fix)
    # What is no flag but a number, must be the same number.
    numbers = {number for name, number in weights.items() if name.lower() in WEIGHTS or number not in (0, 1)}
    if len(numbers) > 1 or len({number > 0 for number in weights.values()}) > 1:
        got = " with ".join(f"{name} {json.dumps(row[name])}" for name in weights)
        raise RowError("contradicting weight", field=field, got=got, expected="ones that agree", fix="Keep one of them")
    # A weight says more than a flag does.
    return next(iter(weights.values()), None)


def _flag_number(value: Any, name: str, field: str) -> float:
    """The weight of a flag called `name`: 1 or 0, and any number from 0 up of a `loss`."""
    if name == "loss" and isinstance(value, int | float):
        return _weight_number(int(value) if isinstance(value, bool) else value, field)
    if not isinstance(value, int | float) or value not in (0, 1):
        raise wrong_type(field, value, "true or false")
    return float(not value) if name in HIDDEN else float(value)


def _weight_number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(field, value, "a number from 0 up")
    number = finite(value)
    if number is None or number < 0:
        got = clipped(str(value))
        raise RowError("impossible weight", field=field, got=got, expected="a number from 0 up")
    return number


def finite(value: float) -> float | None:
    """A number as a finite float; None if it is none: infinite, nan, or a whole number too large for one."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


# ------------------------------------------------------------------------------------------------------------- tools

TOOLS = ("tools", "functions")


def _json(value: Any, field: str, expected: str) -> Any:
    """`value`; if it is a string, what that decodes to as JSON."""
    # Tables without nested columns hold it as text, and models answer in text.
    if isinstance(value, str):
        return decode_string(value, field, expected)
    return value


def tools(row: Fields, field: str = "") -> tuple[dict[str, Any], ...]:
    """The functions on offer, from `tools` or `functions`: a list or its JSON, each in its OpenAI wrapper or bare.
    `field` is the place of `row` in the whole row, with a dot at the end.

    A bare schema `{"name": ...}` becomes `{"type": "function", "function": {"name": ...}}`. Raises RowError.
    """
    key = first_key(row, TOOLS)
    if key is None or (isinstance(row[key], str) and not row[key].strip()):
        return ()
    expected = "a list of function schemas, or its JSON"
    here = f"{field}{key}"
    entries = _json(plain(row[key]), here, expected)
    if entries is None:
        return ()
    given = not isinstance(row[key], str)
    if isinstance(entries, dict):
        entries = [entries]
    if not isinstance(entries, list):
        raise wrong_type(here, row[key], expected)
    return tuple(_tool(entry, f"{here}[{i}]", given) for i, entry in enumerate(entries))


def _tool(entry: Any, field: str, given: bool) -> dict[str, Any]:
    tool = _json(entry, field, "a function schema, or its JSON")
    if not isinstance(tool, dict):
        raise wrong_type(field, tool, "an object")
    schema = tool.get("function")
    bare = schema is None
    if bare:
        schema = {key: value for key, value in tool.items() if key != "function"} if "function" in tool else tool
    if not isinstance(schema, dict):
        raise wrong_type(f"{field}.function", schema, "an object")
    string(schema, ("name",), f"{field}.")
    wrapped = {"type": "function", "function": schema} if bare else dict(tool)
    return Given(wrapped) if given and not isinstance(entry, str) else wrapped


def tool_call_id(row: Fields, field: str) -> str | None:
    """Which call a tool result answers, None if it does not say so. Raises RowError if that is no text or number."""
    value = row.get("tool_call_id")
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise wrong_type(f"{field}.tool_call_id", value, "a text")
    return str(value)


def template_args(row: Fields) -> dict[str, Any]:
    """What a row gives to the chat template, from `chat_template_kwargs`: an object, or its JSON. Raises RowError, also
    for names that the rendering itself gives."""
    value = row.get(TEMPLATE_ARGS)
    if value is None or value == "":
        return {}
    expected = "an object with names that the chat template uses, or its JSON"
    given = _json(value, TEMPLATE_ARGS, expected)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise wrong_type(TEMPLATE_ARGS, value, expected)
    for name in given:
        if name in RESERVED or not str(name).isidentifier():
            fix = "Offer tools in a column of their own" if name == "tools" else "Leave it out"
            raise RowError(
                "impossible template argument", field=TEMPLATE_ARGS, got=shown(name), expected="another name", fix=fix
            )
    # A table gives every row all names that any row has, null where a row has none.
    return {str(name): item for name, item in given.items() if item is not None}


def calls(value: Any, field: str) -> tuple[dict[str, Any], ...]:
    """Tool calls in OpenAI form from one call or a list of parallel ones, given as objects or as JSON.

    Arguments that are the JSON of an object are decoded, so that a template does not write them as a quoted string.
    Raises RowError.
    """
    expected = "a tool call {name, arguments}, a list of them, or the JSON of either"
    # As plain objects: a call is kept as it is, so that all its keys are read.
    decoded = _json(plain(value), field, expected)
    given = not isinstance(value, str)
    if not isinstance(decoded, list):
        return (_call(decoded, field, expected, given),)
    if not decoded:
        raise RowError("empty tool calls", field=field, got="an empty list", expected=expected)
    return tuple(_call(entry, f"{field}[{i}]", expected, given) for i, entry in enumerate(decoded))


def _call(entry: Any, field: str, expected: str, given: bool) -> dict[str, Any]:
    call = _json(entry, field, expected)
    given = given and not isinstance(entry, str)
    if not isinstance(call, dict):
        raise wrong_type(field, call, expected)
    function = call.get("function")
    if function is None:
        function = call
    if not isinstance(function, dict):
        raise wrong_type(f"{field}.function", function, "an object")
    name = string(function, ("name",), f"{field}.")
    if not name:
        raise RowError("empty tool name", field=f"{field}.name", got="an empty string", expected="a name")
    result = {"type": "function", "function": {"name": name, "arguments": _arguments(function, field, given)}}
    own = call.get("id")
    if isinstance(own, str | int) and not isinstance(own, bool) and own != "":
        # First, as templates that print a whole call show its keys in their order.
        return {"id": str(own), **result}
    return result


def _arguments(function: Fields, field: str, given: bool) -> dict[str, Any]:
    """The arguments of a call, empty if it has none or an empty string; `given` says that the row holds them, and what
    they stand in, as objects."""
    key = first_key(function, ("arguments", "parameters"))
    if key is None or function[key] == "":
        return {}
    arguments = _json(function[key], f"{field}.{key}", "the JSON of an object")
    if not isinstance(arguments, dict):
        raise wrong_type(f"{field}.{key}", arguments, "an object, or its JSON")
    return Given(arguments) if given and not isinstance(function[key], str) else arguments


# ------------------------------------------------------------------------------------------------------------- turns


def check_turns(messages: Sequence[Message], field: str) -> tuple[Message, ...]:
    """Return the messages if there is something to learn from them; raise RowError otherwise.

    Refused: no turn, no assistant turn, a tool result that follows neither an assistant turn nor another result. What
    becomes of other turns that are out of place (an assistant turn first, a user turn last, an empty assistant turn, a
    system turn that is not first) is decided where they meet the chat template: see `data.render.bad_turns`.
    """
    if not messages:
        expected = "at least one user and one assistant turn"
        raise RowError("no turns", field=field, got="an empty list", expected=expected)
    previous = ""
    for i, message in enumerate(messages):
        if message.role == "tool" and previous not in ("assistant", "tool"):
            got = "a tool result " + (f"after a {previous} turn" if previous else "at the start")
            expected = "an assistant turn before it"
            raise RowError("tool result without a call", field=f"{field}[{i}]", got=got, expected=expected)
        previous = message.role
    if "assistant" not in {message.role for message in messages}:
        got = "the roles " + ", ".join(message.role for message in messages[:6])
        raise RowError("no assistant turn", field=field, got=got, expected="an assistant turn to learn from")
    return tuple(messages)
