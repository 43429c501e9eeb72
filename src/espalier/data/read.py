"""Data sources: how a user names one, and how its examples are read."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from espalier.data.files.json_rows import Row
from espalier.data.files.rows import NAMES, open_file
from espalier.data.formats import FILES, FOLDERS, KNOWN, convert, sniff, unknown, vote
from espalier.data.formats.expand import expand
from espalier.data.formats.reviews import is_reviews
from espalier.errors import ConfigError, DataError, RowError, nearest
from espalier.types import Consumes, Example, Origin

READ_VERSION = 3
"""Part of what tokens are cached under: raised whenever the same file would give other examples."""
ELSEWHERE = "These are solutions in steps, which `espalier prm` learns from"
WINDOW = 16
"""Rows that vote on a source's format."""
_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w.-]+)?(#[\w.-]+)?")
_PLACE = re.compile(r"(@[\w.-]+)?(#[\w.-]+)?$")


@dataclass(frozen=True, slots=True)
class Source:
    """A data source: where it is, how its rows are to be read, its share of the samples, and its name in reports.

    `path` is a file, a folder or a hub data set, the latter two with an optional `@CONFIG` and `#SPLIT`. `proportion`
    is a positive weight relative to the other sources, None where the user gave none.
    """

    path: str
    format: str = "auto"
    proportion: float | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", _name(self.path))


def _name(path: str) -> str:
    """A file's name without extensions, and everything else as it is: `a/math.jsonl.gz` is `math`."""
    if _is_hub(path):
        return path
    name = os.path.basename(path.rstrip("/")).removesuffix(".gz")
    return (os.path.splitext(name)[0] if _is_data_name(name) else name) or path


def _is_data_name(path: str) -> bool:
    return os.path.splitext(path.lower().removesuffix(".gz"))[1] in NAMES


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) or os.path.isdir(_PLACE.sub("", path))


def _is_hub(path: str) -> bool:
    """Whether a path that names nothing on this machine can be OWNER/NAME on the hub."""
    owner = path.split("/")[0]
    if os.path.exists(path) or os.path.isdir(owner) or _is_data_name(path):
        return False
    return bool(_HUB.fullmatch(path))


def parse_source(spec: str) -> Source:
    """Read `PATH`, `PATH:FORMAT`, `PATH=PROPORTION` or `PATH:FORMAT=PROPORTION`.

    A path that exists is taken whole, whatever it contains. Raises ConfigError for an unknown format or an impossible
    proportion.

    >>> parse_source("a/math.jsonl:prompt=0.3")
    Source(path='a/math.jsonl', format='prompt', proportion=0.3, name='math')
    """
    if not spec.strip():
        raise ConfigError("data: got an empty name; expected PATH, PATH:FORMAT or PATH=PROPORTION")
    if os.path.exists(spec):
        return Source(spec)
    rest, proportion = spec, None
    head, equals, tail = spec.rpartition("=")
    if equals and "/" not in tail and not _is_data_name(tail):
        try:
            proportion = float(tail)
        except ValueError:
            way = "Write for example PATH=0.3"
            raise ConfigError(f"data {spec}: got proportion {tail!r}; expected a number above 0. {way}") from None
        if not (math.isfinite(proportion) and proportion > 0):
            raise ConfigError(f"data {spec}: got proportion {tail}; expected a finite number above 0")
        rest = head
    path, colon, name = rest.rpartition(":")
    if os.path.exists(rest) or not colon or not path or not name.isidentifier():
        return Source(rest, "auto", proportion)
    _known(name, f"data {spec}")
    return Source(path, name, proportion)


def parse_sources(specs: Sequence[str]) -> tuple[Source, ...]:
    """Sources with names that differ: where two files share a name, each is called by its path.

    Raises ConfigError as `parse_source` does, and where one path is given twice.
    """
    sources = [parse_source(spec) for spec in specs]
    for path, times in Counter(source.path for source in sources).items():
        if times > 1:
            raise ConfigError(
                f"data: got {path} {times} times; expected each once. Give it a larger proportion instead"
            )
    names = Counter(source.name for source in sources)
    return tuple(source if names[source.name] == 1 else replace(source, name=source.path) for source in sources)


def _known(name: str, what: str) -> None:
    if name != "auto" and name not in KNOWN:
        known = ("auto", *KNOWN)
        expected = f"expected one of {', '.join(known)}.{nearest(name, known)}"
        raise ConfigError(f"{what}: got format {name!r}; {expected}")


def read(
    source: Source, *, default_format: str = "auto", alpaca_prompt: bool = False, form: Consumes = "chat"
) -> Iterator[Example | RowError]:
    """The examples of a source in file order, read as they are asked for, with a RowError in place of each bad row.

    They come in the `form` that a run consumes (`expand.expand`), and so are what `auto` prefers where a row can be
    read in two ways. The format is the source's own, else `default_format`; `auto` is decided once, by the first WINDOW
    rows. `alpaca_prompt` concerns rows of format alpaca only.

    A row gives one example or one RowError, so rows = distinct lines among the examples + errors, except for:
    seed tasks and several solutions: one example for each, all with the row's `origin.line`;
    tree, read as rankings: one Ranking or RowError for each group of sibling answers, all with the row's line;
    nodes: one Tree (or its rankings) for all its rows, with the root's line;
    reviews: one Ranking for each question, with its line; every other row is part of one or has a RowError.

    Raises ConfigError for an unknown format, and DataError where the source is missing, empty, broken off or of a kind
    that is not read: at once where the first bytes show it, else when it is reached.
    """
    name = default_format if source.format == "auto" else source.format
    _known(name, source.path)
    path = source.path
    if os.path.isdir(path) and (name in FOLDERS or (name == "auto" and is_reviews(path))):
        return _expanded(FOLDERS["reviews" if name == "auto" else name](path, source.name), path, form)
    if name in FOLDERS:
        raise ConfigError(f"{path}: got format {name}, which reads a folder; expected the path of one")
    if _is_folder(path) or _is_hub(path):
        from espalier.data.files.hub import hub_rows

        rows = hub_rows(path)
    else:
        file = open_file(Path(path), path, plain=name == "text")
        if file.kind == "plain":
            if name not in ("auto", "text"):
                way = "Leave the format out, or give JSON, JSONL or Parquet"
                raise ConfigError(f"{path}: got format {name} for a file of plain text; expected text. {way}")
            name = "text"
        rows = file.rows()
    return _expanded(_examples(source, rows, name, alpaca_prompt, form), path, form)


def _expanded(found: Iterator[Example | RowError], path: str, form: Consumes) -> Iterator[Example | RowError]:
    for example in found:
        if isinstance(example, RowError):
            yield example
            continue
        for item in expand(example, form):
            yield item.at(f"{path}:{example.origin.line}") if isinstance(item, RowError) else item


def _examples(
    source: Source, rows: Iterator[Row | RowError], name: str, alpaca_prompt: bool, form: Consumes
) -> Iterator[Example | RowError]:
    """The examples of rows, whose format the first WINDOW of them decide where `name` is "auto"."""
    waiting: list[Row | RowError] = []
    count = 0

    def counted() -> Iterator[Row | RowError]:
        nonlocal count
        for row in rows:
            count += 1
            yield row

    def made(row: Row | RowError, name: str | None) -> Iterator[Example | RowError]:
        if isinstance(row, RowError):
            yield row
            return
        try:
            if name is None:
                raise unknown(row.value)
            yield from convert(name, row.value, Origin(source.name, row.line), alpaca_prompt=alpaca_prompt)
        except RowError as e:
            if name == "steps" and form != "steps":
                e.fix = f"{e.fix}. {ELSEWHERE}" if e.fix else ELSEWHERE
            yield e.at(f"{source.path}:{row.line}")

    every = counted()
    fixed = None if name == "auto" else name
    if fixed is None:
        for row in every:
            if isinstance(row, RowError) and not waiting:
                yield row  # at once, so that reading a file of broken lines holds none of them
                continue
            waiting.append(row)
            if len(waiting) == WINDOW:
                break
        fixed = vote([item.value for item in waiting if isinstance(item, Row)], form)
    rest = chain(_drained(waiting), every)
    for row in rest:
        if fixed is None and isinstance(row, Row):
            fixed = sniff(row.value, form)
        if fixed in FILES:
            yield from FILES[fixed](chain([row], rest), source.path, source.name)
        else:
            yield from made(row, fixed)
    if not count:
        raise DataError(f"{source.path}: it holds no rows; expected at least one")


def _drained(items: list[Row | RowError]) -> Iterator[Row | RowError]:
    """The items in order, each forgotten as it is handed out."""
    while items:
        yield items.pop(0)
