"""CSV and TSV: a row of a table is a row, its cells are texts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import IO, Any

from espalier.data.files.json_rows import LIMIT, Row, checked_row
from espalier.errors import DataError, RowError

JUDGEMENTS = (
    *("label", "kto_tag", "score", "rating", "reward", "rank", "correct", "is_correct", "solved", "is_safe"),
    *("mistake_index", "chosen_score", "rejected_score", "score_chosen", "score_rejected", "weight"),
)
"""Columns whose cells are numbers, true or false, and nothing if they are empty; all others are texts."""


def csv_rows(stream: IO[bytes], shown: str, delimiter: str) -> Iterator[Row | RowError]:
    """The rows under the header of a table, each with the line that it ends on.

    Raises DataError for a header that is empty or names a column twice, and for a table that breaks off or is not
    UTF-8.
    """
    csv.field_size_limit(LIMIT)
    text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
    table = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(table, [])]
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice or not all(header):
            got = f"{', '.join(map(repr, twice))} twice" if twice else "a column without a name"
            raise DataError(f"{shown}: got {got} in the first line; expected one name for each column")
        for cells in table:
            if cells:
                yield _row(header, cells, table.line_num, shown)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{shown}: broken CSV after line {table.line_num}: {error}. Write it as UTF-8, or as JSONL"
        ) from error
    finally:
        # The stream is closed by who opened it.
        text.detach()


def _row(header: list[str], cells: list[str], line: int, shown: str) -> Row | RowError:
    where = f"{shown}:{line}"
    if len(cells) != len(header):
        got, expected = f"{len(cells)} cells", f"{len(header)}, as in the first line"
        fix = "Put cells that hold commas, quotes or line ends in double quotes"
        return RowError("another number of cells", where=where, got=got, expected=expected, fix=fix)
    return checked_row(line, {name: _cell(name, cell) for name, cell in zip(header, cells, strict=True)}, where)


def _cell(name: str, cell: str) -> Any:
    """A cell's text; in a column of judgements, its number, true, false or null."""
    if name.lower() not in JUDGEMENTS:
        return cell
    word = cell.strip().lower()
    if not word:
        return None
    try:
        value = json.loads(word)
    except ValueError:
        return cell
    return value if isinstance(value, bool | int | float) else cell
