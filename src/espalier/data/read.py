"""Data sources: how a user names one, and how its examples are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from espalier.data.columns.ledger import Ledger
from espalier.data.columns.mapping import Prepared
from espalier.data.columns.watched import watched
from espalier.data.files.json_rows import Row
from espalier.data.files.rows import MISNAMED, open_file
from espalier.data.formats import FILES, FOLDERS, convert, sniff, sniff_folder, unknown, vote
from espalier.data.formats.expand import WRONG, expand
from espalier.data.formats.marked import refuse_marks
from espalier.data.formats.remarks import remarks
from espalier.data.formats.scale import Notes, SourceScale, add
from espalier.data.formats.tasks import CUT, as_task, unread_columns
from espalier.data.formats.unjudged import as_scored, read_unjudged
from espalier.data.formats.unwrap import at_least_one, drained, unwrapped
from espalier.data.formats.wrong import ONE_ANSWER, SKIPPED, Verdicts
from espalier.data.places import is_folder, is_hub
from espalier.data.proposal import proposal
from espalier.data.sources import AUTO, READ_VERSION, Source, check_known, given_source, parse_source, parse_sources
from espalier.errors import ConfigError, RowError
from espalier.types import Chat, Example, Origin, Task

__all__ = ["READ_VERSION", "Source", "given_source", "parse_source", "parse_sources", "read"]

ELSEWHERE = "These are solutions in steps, which `espalier prm` learns from"
FORMLESS = ("no judgement", "no steps", "no prompt")
"""Reasons of rows that were read as something else than what the run consumes."""
WINDOW = 16
"""Rows that vote on a source's format."""


def read(source: Source, ledger: Ledger | None = None) -> Iterator[Example | RowError]:
    """The examples of a source in file order, read as they are asked for, with a RowError in place of each bad row.

    They come in the form that the run consumes (`expand.expand`), which also decides the format if a row can be read in
    two ways. A format of "auto" is decided once, by the first WINDOW rows. `ledger` counts what was read of each row
    that gave an example, and what was not, and notes what else was done to rows.

    A row gives one example or one RowError, so rows = distinct lines among the examples + errors, except for:
    seed tasks and several solutions: one example for each, all with the row's `origin.line`;
    tree, read as rankings: one Ranking or RowError for each group of sibling answers, all with the row's line;
    nodes: one Tree (or its rankings) for all its rows, with the root's line;
    reviews: one Ranking for each question, with its line; every other row is part of one or has a RowError.

    Raises ConfigError for an unknown format or a mapped column that the first rows lack, and DataError if the source is
    missing, empty, broken off or of a kind that is not read: at once if the first bytes show it, else later.
    """
    name, path = source.read_as, source.path
    notes: Notes = {} if ledger is None else ledger.notes
    check_known(name, path)
    if os.path.isdir(path):
        folder_format = sniff_folder(path) if name == AUTO else name
        if folder_format in FOLDERS:
            if source.columns.fields:
                raise ConfigError(f"{path}: columns are given, but {folder_format} reads a folder by its own names")
            if ledger is not None:
                ledger.format, ledger.guessed, ledger.ignored = folder_format, name == AUTO, source.columns.ignored
            return _expanded(
                source,
                FOLDERS[folder_format](path, source.name, ledger),
                lambda: "",
                {} if ledger is None else ledger.notes,
            )
    if name in FOLDERS:
        raise ConfigError(f"{path}: got format {name}, which reads a folder; expected the path of one")
    # Plain text has no columns to account for.
    name, rows, is_plain = _open(path, name, notes)
    reading = _Reading(source, None if is_plain else ledger, notes)
    return _expanded(source, reading.examples(name, at_least_one(rows, path)), reading.proposal, reading.notes)


def _open(path: str, name: str, notes: Notes) -> tuple[str, Iterator[Row | RowError], bool]:
    """The rows of a file, a data set folder or a hub data set, their format (`name`, or text for plain text), and
    whether it is plain text."""
    if is_folder(path) or is_hub(path):
        from espalier.data.files.hub import hub_rows

        return name, unwrapped(hub_rows(path), notes), False
    file = open_file(Path(path), path, plain=name == "text")
    if file.container == "plain":
        if name not in (AUTO, "text"):
            way_out = "Leave the format out, or give JSON, JSONL or Parquet"
            raise ConfigError(f"{path}: got format {name} for a file of plain text; expected text. {way_out}")
        name = "text"
    if file.is_misnamed:
        notes[MISNAMED] = 1
    return name, unwrapped(file.rows(), notes), file.container == "plain"


def _expanded(
    source: Source, examples: Iterator[Example | RowError], proposal: Callable[[], str], notes: Notes
) -> Iterator[Example | RowError]:
    """The examples in the form that the run consumes; `proposal` is a mapping that gives the last row that form."""
    for example in examples:
        if isinstance(example, RowError):
            yield example
            continue
        form = partial(expand, keep_wrong=source.keep_wrong) if source.judged else as_scored
        for item in form(example, source.consumes):
            if isinstance(item, RowError):
                if source.consumes == "chat" and item.reason in WRONG:
                    add(notes, SKIPPED)
                    continue
                if item.reason in FORMLESS and proposal():
                    item.fix = f"{item.fix}, or try {proposal()}".removeprefix(", or ")
                item = item.at(f"{source.path}:{example.origin.line}")
            yield item


class _Reading:
    """One pass over the rows of a source."""

    def __init__(self, source: Source, ledger: Ledger | None, notes: Notes) -> None:
        self.source, self.ledger, self.columns = source, ledger, source.columns
        self.notes, self._verdicts = notes, Verdicts(self._all_rows)
        self._scale = SourceScale(self._all_rows, notes)
        self._row: object = None
        self._proposal: str | None = None

    def _all_rows(self) -> Iterator[object]:
        """The rows of the source once more, as formats are compared with them."""
        for row in _open(self.source.path, "steps", {})[1]:
            if isinstance(row, Row):
                yield self._sniffed(row.value)

    def proposal(self) -> str:
        """A mapping to try, from the first row for which it is asked; empty if there is none, or columns are mapped."""
        if self._proposal is None:
            self._proposal = "" if self.columns.fields else proposal(self._row, self.source.consumes)
        return self._proposal

    def examples(self, name: str, rows: Iterator[Row | RowError]) -> Iterator[Example | RowError]:
        """The examples of rows of format `name`; if it is "auto", the first WINDOW rows decide."""
        known: str | None = name
        if name == AUTO or self.columns.fields:
            window: list[Row | RowError] = []
            for row in rows:
                if isinstance(row, RowError) and not window:
                    # At once, so that reading a file of broken lines holds none of them.
                    yield row
                    continue
                window.append(row)
                if len(window) == WINDOW:
                    break
            first = [row for row in window if isinstance(row, Row)]
            self._check_columns(first)
            if name == AUTO:
                known = vote([self._sniffed(row.value) for row in first], self.source.consumes)
            rows = chain(drained(window), rows)
        for row in rows:
            if known is None and isinstance(row, Row):
                known = sniff(self._sniffed(row.value), self.source.consumes)
            self._enter(known, guessed=name == AUTO)
            if known in FILES:
                yield from FILES[known](self._watched(chain([row], rows)), self.source.path, self.source.name)
            else:
                yield from self._converted(known, row)

    def _enter(self, name: str | None, *, guessed: bool) -> None:
        if self.ledger is not None:
            self.ledger.format, self.ledger.guessed = name or "", guessed
            self.ledger.ignored = self.columns.ignored
            self.ledger.kept = self.source.consumes == "task"
            for field in self.columns.fields:
                self.ledger.mapped.setdefault(field.name, 0)

    def _fix(self, error: RowError) -> str:
        """The way out of an error about a missing key, with the mapping that is given, or one to try."""
        if self.columns.fields:
            mapped = " ".join(f"{field.name}={field.path or f'={field.constant}'}" for field in self.columns.fields)
            return f"{error.fix}. Columns are mapped: {mapped}".removeprefix(". ")
        if self.proposal() and self.proposal() not in error.fix:
            return f"{error.fix}. Try {self.proposal()}".removeprefix(". ")
        return error.fix

    def _check_columns(self, rows: Sequence[Row]) -> None:
        objects = [row for row in rows if isinstance(row.value, dict)]
        if objects:
            self.columns.check([row.value for row in objects], f"{self.source.path}:{objects[0].line}")

    def _sniffed(self, value: object) -> object:
        """A row as formats are compared with it: plain, with its mapped fields."""
        if isinstance(value, dict) and self.columns:
            return dict(self.columns.apply(value, sniffed=True).row)
        return value

    def _prepared(self, value: object) -> Prepared | None:
        """A row that remembers what is read of it; None if it is no object."""
        return self.columns.apply(watched(value)) if isinstance(value, dict) else None

    def _settle(self, line: int, prepared: Prepared | None) -> None:
        """Enter a row that was read into the ledger."""
        if prepared is None or self.ledger is None:
            return
        for name in prepared.settle():
            self.ledger.mapped[name] += 1
        self.ledger.add(line, prepared.raw)

    def _watched(self, rows: Iterator[Row | RowError]) -> Iterator[Row | RowError]:
        """Rows for a reader of whole files, which has read each of them when it asks for the next."""
        for row in rows:
            prepared = self._prepared(row.value) if isinstance(row, Row) else None
            if prepared is None or isinstance(row, RowError):
                yield row
                continue
            yield Row(row.line, prepared.row)
            self._settle(row.line, prepared)

    def _converted(self, name: str | None, row: Row | RowError) -> Sequence[Example | RowError]:
        """The examples of a row of format `name`, or why it has none; None is a format that is not known."""
        source = self.source
        if isinstance(row, RowError):
            return [row]
        self._row = row.value
        try:
            prepared = self._prepared(row.value)
            value = row.value if prepared is None else prepared.row
            if not source.judged:
                # Each row by itself: what is only scored need not be of one format.
                own = sniff(self._sniffed(row.value), source.consumes) if source.read_as == AUTO else name
                examples = self._unjudged(own, value, Origin(source.name, row.line))
                self._settle(row.line, prepared)
                return examples
            if name is None:
                raise unknown(self._sniffed(row.value), self.proposal(), source.consumes)
            if source.consumes == "chat" and self._skips(name, value):
                return []
            prompt, scale = source.alpaca_prompt, self._scale.of(value) if name == "steps" else None
            origin = Origin(source.name, row.line)
            examples = convert(name, value, origin, alpaca_prompt=prompt, scale=scale, notes=self.notes)
            if source.consumes == "task":
                examples = self._tasks(examples)
        except RowError as error:
            guessed = source.judged and source.read_as == AUTO
            if name and guessed and sniff(self._sniffed(row.value), source.consumes) != name:
                guess = f"It is read as {name}, guessed from the first {WINDOW} rows; PATH:FORMAT names another format"
                error.fix = f"{error.fix}. {guess}".removeprefix(". ")
            if name == "steps" and source.consumes != "steps":
                error.fix = f"{error.fix}. {ELSEWHERE}" if error.fix else ELSEWHERE
            if error.reason in ("missing key", "no known format"):
                error.fix = self._fix(error)
            return [error.at(f"{source.path}:{row.line}")]
        for remark in remarks(name, value):
            add(self.notes, remark)
        self._settle(row.line, prepared)
        if source.consumes == "task" and prepared is not None:
            columns = unread_columns(prepared.raw, self.columns.ignored)
            return [replace(example, columns=columns) for example in examples if isinstance(example, Task)]
        return examples

    def _tasks(self, examples: Sequence[Example]) -> list[Example]:
        """The prompts of examples; conversations that lose their last answer are counted. Raises RowError."""
        tasks: list[Example] = []
        for example in examples:
            tasks.append(as_task(example))
            if isinstance(example, Chat) and example.messages[-1].role == "assistant":
                add(self.notes, CUT)
        return tasks

    def _unjudged(self, name: str | None, row: Any, origin: Origin) -> Sequence[Example]:
        """The examples of a row whose answers are to be scored."""

        def as_format(name: str, row: Any) -> Sequence[Example]:
            return convert(name, row, origin, alpaca_prompt=self.source.alpaca_prompt, notes=self.notes)

        return read_unjudged(name, row, origin, self.source.consumes, as_format)

    def _skips(self, name: str, row: Any) -> bool:
        """Whether a run on conversations skips a row, counted. Raises RowError for a conversation of marks."""
        refuse_marks(row)
        wrong = name in ONE_ANSWER and not self.source.keep_wrong and self._verdicts.of(row) is not None
        if wrong:
            add(self.notes, SKIPPED)
        return wrong
