"""`--columns NAME=VALUE`: which column, part of a column or constant a field of a format is read from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from espalier.config.data_source import mapped_fields
from espalier.data.columns.contents import decoded
from espalier.data.columns.names import replaced, same_field
from espalier.data.columns.watched import WatchedRow, peek
from espalier.errors import ConfigError, RowError, nearest

_PART = re.compile(r"([^.\[\]]+)|\[(-?\d*)\]")
_LETTER = re.compile(r"(?:\w+[ _-])?[a-zA-Z]")
FLAGS = ("label", "kto_tag")
"""Fields of which a mapped 0 or 1 is false or true."""
COMPARED = ("best", "preference")
"""Fields that say which of `responses` is best; readers get `ranks`."""
LISTS = ("responses", "steps", "completions", "solutions", "labels", "ratings", "scores", "ranks", "history")
"""Fields that are lists, also of a column that holds their JSON."""
Trail = list[tuple[WatchedRow, str, bool]]
"""The objects that a path goes through, each with the key it takes there and whether that is the last one."""


class NoSuchColumn(Exception):
    """A path leads nowhere in a row. `name` is the part that is missing, `known` what stands in its place."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name, self.known = name, list(known)
        super().__init__(name)


@dataclass(frozen=True, slots=True)
class Field:
    """One field and where it is read from: `path`, a column or a part of one, or the text `constant`."""

    name: str
    path: str = ""
    constant: str | None = None

    def value(self, row: Mapping[str, Any], trail: Trail) -> Any:
        """Its value in a row; the objects on its way are added to `trail`. Raises NoSuchColumn."""
        if self.constant is not None:
            return self.constant
        if self.path in row:
            return _step(row, self.path, trail, last=True)
        if "," in self.path:
            return [Field(self.name, part.strip()).value(row, trail) for part in self.path.split(",")]
        return _follow(row, parts_of(self.path), trail)


def parts_of(path: str) -> list[str | int | None]:
    """The keys and places of a path; None stands for every item of a list.

    >>> parts_of("a.b[0].c"), parts_of("answers[].text")
    (['a', 'b', 0, 'c'], ['answers', None, 'text'])
    """
    parts: list[str | int | None] = []
    for match in _PART.finditer(path):
        key, place = match.groups()
        if key is not None:
            parts.append(key)
        else:
            parts.append(int(place) if place else None)
    return parts


def _step(row: Mapping[str, Any], key: str, trail: Trail, *, last: bool) -> Any:
    """What stands under a key of an object."""
    if isinstance(row, WatchedRow):
        trail.append((row, key, last))
    return peek(row, key)


def _follow(value: Any, parts: Sequence[str | int | None], trail: Trail) -> Any:
    """What a path leads to from a value; None as soon as that is null. Raises NoSuchColumn."""
    for number, part in enumerate(parts):
        if value is None:
            return None
        value = decoded(value)
        if isinstance(part, str):
            if not isinstance(value, dict) or part not in value:
                raise NoSuchColumn(part, value if isinstance(value, dict) else ())
            last = not any(isinstance(later, str) for later in parts[number + 1 :])
            value = _step(value, part, trail, last=last)
            continue
        if not isinstance(value, list):
            raise NoSuchColumn(f"[{'' if part is None else part}]", ())
        if part is None:
            return [_follow(item, parts[number + 1 :], trail) for item in value]
        if not -len(value) <= part < len(value):
            raise NoSuchColumn(f"[{part}]", (f"{len(value)} items",))
        value = value[part]
    return value


@dataclass(slots=True)
class Prepared:
    """A row as a reader gets it, and the row it was made of.

    trails: for each mapped field, the objects that its path goes through; they count as read if the field is.
    rivals: columns under another name of a mapped field.
    """

    raw: WatchedRow
    row: WatchedRow
    trails: dict[str, Trail]
    rivals: frozenset[str]

    def settle(self) -> list[str]:
        """Note in the row what was read of it; returns the mapped fields that were read."""
        if self.row is self.raw:
            return []
        for key in self.row.taken:
            for owner, part, last in self.trails.get(key, ()):
                owner.taken.setdefault(part, key if last else part)
            if key not in self.trails and key in self.raw:
                self.raw.taken.setdefault(key, self.row.taken[key])
        self.raw.rivals |= self.row.rivals | self.rivals
        compared = [name for name in COMPARED if name in self.trails and "ranks" in self.row.taken]
        derived = {"ranks"} if compared else set()
        return [*compared, *(name for name in self.trails if name in self.row.taken and name not in derived)]


@dataclass(frozen=True, slots=True)
class Columns:
    """The mapping of a source: its fields, and the columns that are not read at all.

    >>> columns = Columns.parse(("prompt=problem", "answer=meta.solution", "system==Be kind."), ("seed",))
    >>> columns.apply({"problem": "1 + 1?", "meta": {"solution": "2"}, "seed": 7}).row
    {'meta': {'solution': '2'}, 'prompt': '1 + 1?', 'answer': '2', 'system': 'Be kind.'}
    """

    fields: tuple[Field, ...] = ()
    ignored: tuple[str, ...] = ()
    instead: bool = True
    """A mapped answer takes the place of a conversation. Off for tasks, whose answer stands beside their prompt."""

    @classmethod
    def parse(cls, columns: Sequence[str], ignored: Sequence[str] = ()) -> Columns:
        """From texts NAME=COLUMN, NAME=PATH and NAME==TEXT. Raises ConfigError as `mapped_fields` does."""
        fields = []
        for name, value in mapped_fields(tuple(columns)).items():
            field = Field(name, constant=value[1:]) if value.startswith("=") else Field(name, value)
            fields.append(field)
        return cls(tuple(fields), tuple(ignored))

    def __bool__(self) -> bool:
        return bool(self.fields or self.ignored)

    def updated(self, other: Columns) -> Columns:
        """These fields, with those of `other` in place of equal names and of other names of the same fields, and the
        ignored columns of both."""
        renamed = same_field([field.name for field in other.fields])
        kept = [field for field in self.fields if field.name not in renamed]
        fields = {field.name: field for field in (*kept, *other.fields)}
        return Columns(tuple(fields.values()), tuple(dict.fromkeys((*self.ignored, *other.ignored))), self.instead)

    @property
    def text(self) -> str:
        """The mapping on one line, as flags give it: part of what tokens are cached under."""
        fields = [f"{field.name}={field.path or f'={field.constant}'}" for field in self.fields]
        return repr((sorted(fields), sorted(self.ignored))) if self else ""

    def apply(self, raw: Mapping[str, Any], *, sniffed: bool = False) -> Prepared:
        """The row that a reader gets of a raw one. A field whose path leads nowhere is not in it.

        Raises RowError for a preference that cannot be followed, unless the row is only `sniffed`.
        """
        if not self:
            assert isinstance(raw, WatchedRow)
            return Prepared(raw, raw, {}, frozenset())
        names = [field.name for field in self.fields]
        hidden = replaced(names) if self.instead else same_field(names)
        sources = {field.path for field in self.fields} - set(names)
        row = WatchedRow()
        for key in raw:
            if key not in hidden and key not in sources and key not in names:
                row[key] = without(peek(raw, key), key, self.ignored)
        for name in self.ignored:
            row.pop(name, None)
        trails: dict[str, Trail] = {}
        for field in self.fields:
            trails[field.name] = []
            try:
                value = field.value(raw, trails[field.name])
                # A table without nested columns holds lists as text.
                row[field.name] = decoded(value) if field.name in LISTS else value
            except NoSuchColumn:
                row.pop(field.name, None)
        for name in FLAGS:
            # As a column of this name 0 and 1 may be anything; mapped, they are a label, unless steps are counted.
            if name in trails and "steps" not in trails and peek(row, name) in (0, 1):
                row[name] = bool(row.pop(name))
        for name in COMPARED:
            # Without a list of answers, a format of its own reads them.
            if name in row and name in trails and isinstance(peek(row, "responses"), list):
                trails["ranks"] = trails[name]
                value, responses = row.pop(name), peek(row, "responses")
                row["ranks"] = [0] if sniffed else ranks_of(name, value, responses)
        return Prepared(raw if isinstance(raw, WatchedRow) else WatchedRow(raw), row, trails, same_field(names))

    def check(self, rows: Sequence[Mapping[str, Any]], where: str) -> None:
        """Raise ConfigError, which names the row at `where`, if a path leads nowhere in all of the rows."""
        for field in self.fields:
            missing: NoSuchColumn | None = None
            for row in rows:
                try:
                    field.value(row, [])
                    break
                except NoSuchColumn as error:
                    missing = missing or error
            else:
                if missing is not None:
                    raise _no_such(field, missing, where)


def ranks_of(name: str, value: Any, responses: Any) -> list[int]:
    """The ranks of responses of which the best one is named: `best` is its place from 0, or its letter from a, behind
    whatever word; `preference` of two is a number below 0 if the first is better, above 0 if the second is, 0 for a
    tie. Raises RowError.

    >>> ranks_of("best", 1, ["x", "y"]), ranks_of("best", "model_a", ["x", "y"]), ranks_of("preference", -2, ["x", "y"])
    ([1, 0], [0, 1], [0, 1])
    """
    count = len(responses) if isinstance(responses, list) else 0
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == "preference" and number and count == 2:
        return [int(value > 0), int(value < 0)]
    place: Any = value
    if isinstance(value, str):
        letter = value.strip().lower()[-1:]
        is_letter = _LETTER.fullmatch(value.strip()) is not None
        place = ord(letter) - ord("a") if is_letter else int(value) if value.strip().isdigit() else None
    if name == "best" and isinstance(place, int | float) and not isinstance(place, bool) and place in range(count):
        return [int(i != place) for i in range(count)]
    expected = f"a place from 0 to {count - 1}, or a letter, among the responses"
    if name == "preference":
        expected = "a number, below 0 if the first of two responses is better"
    raise RowError("unknown preference", field=name, got=repr(value)[:40], expected=expected)


AS_THEY_ARE = Columns()
"""No mapping: rows are read by the names that their columns have."""


def without(value: Any, place: str, names: Sequence[str]) -> Any:
    """The value without the keys that are named by their whole place, such as `messages.images`."""
    if not any(name.startswith(f"{place}.") for name in names):
        return value
    if isinstance(value, list):
        return [without(inner, place, names) for inner in value]
    if not isinstance(value, dict):
        return value
    for key in list(value):
        if f"{place}.{key}" in names:
            dict.pop(value, key)
        else:
            dict.__setitem__(value, key, without(dict.get(value, key), f"{place}.{key}", names))
    return value


def _no_such(field: Field, missing: NoSuchColumn, where: str) -> ConfigError:
    known = ", ".join(missing.known[:20]) or "nothing by name"
    part = "" if missing.name == field.path else f" of {field.path}"
    return ConfigError(
        f"{where}: columns {field.name}={field.path}: the row has no {missing.name}{part}; expected one of {known}."
        f"{nearest(missing.name, missing.known)}",
        key="columns",
    )
