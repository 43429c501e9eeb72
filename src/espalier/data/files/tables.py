"""Parquet, read in small batches. The only file here that imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from espalier.data.files.json_rows import Row, checked_row
from espalier.errors import DataError, RowError

BATCH = 256
"""Rows decoded at a time."""


def parquet_rows(path: Path, shown: str) -> Iterator[Row | RowError]:
    """Rows of a Parquet file, numbered from 1, with the nulls that they hold.

    Raises DataError if the file is damaged, or two columns have one name.
    """
    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            _check_names(file.schema_arrow.names, shown)
            number = 0
            for batch in file.iter_batches(batch_size=BATCH):
                for i in range(batch.num_rows):
                    number += 1
                    yield _row(batch, i, number, shown)
    # A damaged schema shows as names that do not decode.
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{shown}: broken Parquet: {reason}. Copy or download the file again") from error


def _check_names(names: list[str], shown: str) -> None:
    for name in names:
        if names.count(name) > 1:
            got = f"got {names.count(name)} columns called {name!r}"
            raise DataError(f"{shown}: {got}; expected one of each name. Rename one")


def _row(batch: Any, i: int, number: int, shown: str) -> Row | RowError:
    where = f"{shown}:{number}"
    try:
        # Row by row: a value that Python cannot hold spoils its own row alone.
        value = batch.slice(i, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        got = f"byte 0x{error.object[error.start]:02x} at byte {error.start + 1} of the string"
        return RowError("not UTF-8", where=where, got=got, expected="UTF-8", fix="Write the column again as UTF-8")
    # For example a date after the year 9999.
    except (ValueError, OverflowError) as error:
        got = " ".join(str(error).split())
        return RowError("unreadable value", where=where, got=got, expected="a value Python can hold")
    return checked_row(number, value, where)
