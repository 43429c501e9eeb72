"""Data sources: how a user names one, and what decides which examples it gives."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from espalier.config.data_source import DataSource
from espalier.data.columns.mapping import AS_THEY_ARE, Columns
from espalier.data.formats import KNOWN
from espalier.data.places import is_data_name, is_hub
from espalier.errors import ConfigError, nearest
from espalier.types import Consumes

READ_VERSION = 11
"""Part of what tokens are cached under: raised whenever the same file would give other examples."""
AUTO = "auto"
"""The format of a source whose rows decide it."""


@dataclass(frozen=True, slots=True)
class Source:
    """A data source, and everything that decides which examples it gives.

    path: a file, a folder or a hub data set, the latter two with an optional `@CONFIG` and `#SPLIT`.
    format: the format that the user gave this source; "auto" if none.
    proportion: a positive weight relative to the other sources, None if the user gave none.
    name: the source's name in reports, from its path if empty.
    part: the part of a run that its samples belong to.
    default_format: the format if the source has none of its own; if "auto" too, its rows decide.
    alpaca_prompt: rows of format alpaca are worded as `alpaca.alpaca_prompt` does.
    consumes: what the run learns from.
    columns: the fields that the user maps, and the columns that are not read.
    keep_wrong: answers that their rows call wrong are conversations all the same.
    judged: off if the answers are to be scored: nothing need judge them.
    """

    path: str
    format: str = AUTO
    proportion: float | None = None
    name: str = ""
    part: str = "main"
    default_format: str = AUTO
    alpaca_prompt: bool = False
    consumes: Consumes = "chat"
    columns: Columns = AS_THEY_ARE
    keep_wrong: bool = False
    judged: bool = True

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", _name(self.path))

    @property
    def read_as(self) -> str:
        """The format of its rows, "auto" if they decide it."""
        return self.default_format if self.format == AUTO else self.format

    @property
    def options(self) -> str:
        """How its rows are read, beyond `format`: part of the key that its tokens are cached under."""
        options = f"{READ_VERSION} {self.consumes} {self.default_format} {self.alpaca_prompt}"
        kept = (" keep_wrong" if self.keep_wrong else "") + ("" if self.judged else " unjudged")
        return f"{options} {self.columns.text}".rstrip() + kept


def _name(path: str) -> str:
    """A file's name without extensions, and everything else as it is: `a/math.jsonl.gz` is `math`."""
    if is_hub(path):
        return path
    name = os.path.basename(path.rstrip("/")).removesuffix(".gz")
    if is_data_name(name):
        name = os.path.splitext(name)[0]
    return name or path


def parse_source(spec: str) -> Source:
    """Read `PATH`, `PATH:FORMAT`, `PATH=PROPORTION` or `PATH:FORMAT=PROPORTION`.

    A path that exists is taken whole, whatever it contains. Raises ConfigError for an unknown format or an impossible
    proportion.

    >>> source = parse_source("a/math.jsonl:prompt=0.3")
    >>> source.path, source.format, source.proportion, source.name
    ('a/math.jsonl', 'prompt', 0.3, 'math')
    """
    if not spec.strip():
        raise ConfigError("data: got an empty name; expected PATH, PATH:FORMAT or PATH=PROPORTION")
    if os.path.exists(spec):
        return Source(spec)
    rest, proportion = spec, None
    head, equals, tail = spec.rpartition("=")
    if equals and "/" not in tail and not is_data_name(tail):
        rest, proportion = head, _proportion(tail, spec)
    path, colon, name = rest.rpartition(":")
    if os.path.exists(rest) or not colon or not path or not name.isidentifier():
        return Source(rest, AUTO, proportion)
    check_known(name, f"data {spec}")
    return Source(path, name, proportion)


def _proportion(text: str, spec: str) -> float:
    try:
        proportion = float(text)
    except ValueError:
        way_out = "Write for example PATH=0.3"
        raise ConfigError(f"data {spec}: got proportion {text!r}; expected a number above 0. {way_out}") from None
    if not (math.isfinite(proportion) and proportion > 0):
        raise ConfigError(f"data {spec}: got proportion {text}; expected a finite number above 0")
    return proportion


def given_source(spec: str | DataSource) -> Source:
    """A source as a config names it. Raises ConfigError as `parse_source` does."""
    if isinstance(spec, str):
        return parse_source(spec)
    if spec.format:
        check_known(spec.format, f"data {spec.path}")
    columns = Columns.parse(spec.columns, spec.ignore_columns)
    return Source(spec.path, spec.format or AUTO, spec.share or None, columns=columns)


def parse_sources(specs: Sequence[str | DataSource]) -> tuple[Source, ...]:
    """Sources with names that differ: if two files share a name, each is called by its path.

    Raises ConfigError as `parse_source` does, and if one path is given twice.
    """
    sources = [given_source(spec) for spec in specs]
    for path, times in Counter(source.path for source in sources).items():
        if times > 1:
            raise ConfigError(
                f"data: got {path} {times} times; expected each once. Give it a larger proportion instead"
            )
    names = Counter(source.name for source in sources)
    return tuple(source if names[source.name] == 1 else replace(source, name=source.path) for source in sources)


def check_known(name: str, what: str) -> None:
    """Raise ConfigError for an unknown format."""
    known = (AUTO, *KNOWN)
    if name not in known:
        raise ConfigError(
            f"{what}: got format {name!r}; expected one of {', '.join(known)}.{nearest(name, known)}",
        )
