"""`espalier score`: what a scoring model says of the answers in files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from espalier import __version__, files
from espalier.assembly.data import cache_folder
from espalier.assembly.model import weights_of
from espalier.assembly.scorer import Scorer
from espalier.config.sections import ScoreConfig
from espalier.data.columns.ledger import Ledger
from espalier.data.columns.mapping import Columns
from espalier.data.files.content import content_hash, content_key, split_place
from espalier.data.read import READ_VERSION, Source, parse_sources
from espalier.data.render.renderer import RENDER_VERSION
from espalier.engines import processes
from espalier.errors import ConfigError, RowError
from espalier.loop.progress import Progress
from espalier.types import Example

CHUNK = 64
"""Rows that are scored and written at a time."""
SHOWN = 5
"""Errors of rows that are printed."""

_MARK = "espalier score"
"""The field of OUT.partial.json by which the command knows its own."""

Pins = dict[str, Any]


def run(config: ScoreConfig) -> None:
    """Write a line of scores for every row."""
    out = Path(config.out)
    if out.exists() and not config.overwrite:
        raise ConfigError(f"out: {out} exists; choose another file, or give --overwrite", key="out")
    columns = Columns.parse(config.columns, config.ignore_columns)
    sources = [replace(s, default_format=config.format, columns=columns) for s in parse_sources(config.data)]
    partial = Partial(out)
    _refuse_inputs(config, partial, sources)
    partial.refuse_foreign()
    console = Progress(0)
    scorer = Scorer(config, processes.pick_device())
    for note in scorer.loaded.notes:
        console.note(note)
    files.make_dir(out.parent)
    done = partial.open(pins(config, scorer, sources))
    if done:
        console.note(f"goes on with {partial.path}: {done:,} rows are scored")
    elif partial.other:
        console.note(f"{partial.path} is of another model, other data or other settings: all rows are scored anew")
    _score(scorer, sources, partial, done, console)
    counts = partial.finish()
    for line in counts.shown:
        console.note(line)
    cut = f"; {counts.cut:,} were cut to max_length and scored at the cut" if counts.cut else ""
    lost = f", {counts.without:,} answers or steps without (see `errors` there)" if counts.without else ""
    refused = f", {counts.refused:,} rows without (see `error` there)" if counts.refused else ""
    console.note(f"{out} holds {counts.rows:,} rows: {counts.scored:,} with scores{refused}{lost}{cut}")


def _refuse_inputs(config: ScoreConfig, partial: Partial, sources: list[Source]) -> None:
    """Raise ConfigError if a file that is written is one that is read, or would stand in a data folder."""
    given = [*(("data", source.path) for source in sources), ("template", config.template)]
    models = [(name, path) for name, path in (("model", config.model), ("adapter", config.adapter)) if path]
    for path in (partial.out, partial.path, partial.pinned):
        for name, text in (*given, *models):
            # A folder may name its part.
            candidates = {text, split_place(text)[0]} - {""}
            for read in (Path(candidate).expanduser() for candidate in candidates):
                inside = read.is_dir() and path.resolve().is_relative_to(read.resolve())
                # Scores may stand beside a model's files, in place of none of them.
                if inside and name in ("model", "adapter"):
                    inside = path == partial.out and path.exists()
                if inside or _same(path, read):
                    raise ConfigError(
                        f"out: {partial.out} would replace or change {name} {text} (it writes {path}); choose another "
                        "file",
                        key="out",
                    )
    if partial.out.is_dir():
        raise ConfigError(f"out: {partial.out} is a folder; expected a file to write", key="out")


def _same(one: Path, other: Path) -> bool:
    """Whether two names lead to one file, also by links."""
    if one.resolve() == other.resolve():
        return True
    return one.exists() and other.exists() and one.samefile(other)


def pins(config: ScoreConfig, scorer: Scorer, sources: list[Source]) -> Pins:
    """All that the lines follow from, beside the order of rows. Names of columns that are left out do not matter."""
    cache = cache_folder("")
    settings = {
        name: value for name, value in asdict(config).items() if name not in ("out", "overwrite", "ignore_columns")
    }
    template = Path(config.template)
    return {
        "settings": settings,
        "model": weights_of(scorer.loaded, config.adapter, cache),
        "renderer": scorer.renderer.fingerprint,
        "template": content_hash(template, cache) if template.is_file() else "",
        "data": {source.path: content_key(source.path, cache) for source in sources},
        "versions": [__version__, READ_VERSION, RENDER_VERSION],
    }


def _score(scorer: Scorer, sources: list[Source], partial: Partial, done: int, console: Progress) -> None:
    """Score the rows behind the first `done`, and write them chunk by chunk."""
    shown = console.reading("rows scored")
    ledgers = {source.path: Ledger() for source in sources}

    def rows() -> Iterator[tuple[Source, Example | RowError]]:
        for source in sources:
            for example in scorer.rows(source, ledgers[source.path]):
                yield source, example
            for line in ledgers[source.path].lines():
                console.note(f"{source.name}: {line}")

    everything = rows()
    for _ in islice(everything, done):
        pass
    while chunk := list(islice(everything, CHUNK)):
        partial.write(scorer.lines(chunk))
        done += len(chunk)
        shown(chunk[-1][0].name, done)


class Counts:
    """What a file of scores holds: rows, those with scores, those refused, and answers or steps without a
    score or cut."""

    def __init__(self, path: Path) -> None:
        self.rows = self.scored = self.refused = self.without = self.cut = 0
        self.shown: list[str] = []
        with open(path, encoding="utf-8") as lines:
            for text in lines:
                self._add(json.loads(text))

    def _add(self, line: dict[str, Any]) -> None:
        self.rows += 1
        self.refused += "error" in line
        self.cut += line.get("cut", 0)
        self.scored += any(score is not None for score in line.get("scores", ()))
        self.without += sum(error is not None for error in line.get("errors", ()))
        if "error" in line and len(self.shown) < SHOWN:
            self.shown.append(line["error"])


class Partial:
    """The lines so far, beside the file that they become, with what they follow from in a file of its own."""

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out.with_name(out.name + ".partial")
        self.pinned, self.other = out.with_name(out.name + ".partial.json"), False

    def refuse_foreign(self) -> None:
        """Raise ConfigError if files that this command did not write stand in its places."""
        ours = self.pinned.is_file() and _MARK in (files.unsealed(self.pinned.read_bytes()) or {})
        for path in (self.path, self.pinned):
            if os.path.lexists(path) and (not ours or path.is_symlink() or not path.is_file()):
                raise ConfigError(
                    f"out: {path} exists and was not written by `espalier score`, which would replace it; move it "
                    "away, or choose another out",
                    key="out",
                )

    def open(self, pins: Pins) -> int:
        """How many rows are scored: those of whole chunks, if they follow from the same; others are thrown away."""
        text = files.sealed({_MARK: 1, **pins})
        done = 0
        if self.path.is_file() and self.pinned.is_file() and self.pinned.read_text(encoding="utf-8") == text:
            done = self._whole_chunks()
        else:
            self.other = self.path.is_file()
            # In this order a kill leaves no lines without what they follow from.
            self.path.unlink(missing_ok=True)
            files.write_atomic(self.pinned, text)
            self.path.write_bytes(b"")
        return done

    def _whole_chunks(self) -> int:
        """Cut the file behind its last whole chunk, so that rows are batched as if nothing had happened."""
        ends, at = [0], 0
        with open(self.path, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                at += len(line)
                ends.append(at)
        done = (len(ends) - 1) // CHUNK * CHUNK
        os.truncate(self.path, ends[done])
        return done

    def write(self, lines: list[dict[str, Any]]) -> None:
        """Add the lines of a chunk."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> Counts:
        """Put the file in its place."""
        counts = Counts(self.path)
        os.replace(self.path, self.out)
        self.pinned.unlink()
        return counts
