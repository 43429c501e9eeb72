"""One data file in, its rows out, one at a time: gzip, JSON, JSONL, Parquet and plain text, told apart by their bytes.

Nothing here knows what a row means; `formats/` does. Memory is bounded by the largest row, never by the file.
"""

from __future__ import annotations

import difflib
import gzip
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

from espalier.data.files.csv_rows import csv_rows
from espalier.data.files.json_rows import Row, json_lines, json_values
from espalier.data.files.plain import plain_rows
from espalier.errors import DataError, RowError

Container = Literal["lines", "array", "values", "plain", "csv", "tsv", "parquet"]
"""How the bytes of a file hold its rows: JSON Lines, one JSON array, JSON values after one another, text, tables."""

BOM = b"\xef\xbb\xbf"
HEAD = 1 << 16
"""Bytes by which a container is known."""
JSON_NAMES = (".json", ".jsonl", ".ndjson")
PLAIN_NAMES = (".txt", ".text")
TABLE_NAMES = (".csv", ".tsv")
NAMES = (*JSON_NAMES, *PLAIN_NAMES, *TABLE_NAMES, ".parquet")
MISNAMED = "file of indented JSON, read as such although its name says one row a line"
# The first line of a JSON object or array that goes on in the next one, which no row on one line does.
_INDENTED = re.compile(rb'\[[ \t\r]*\n|\[[^\n]*[,{\[][ \t\r]*\n|\{[ \t\r]*\n\s*"|\{[^\n]*[\[{,][ \t\r]*\n\s*["\[{}\]]')
_PACKED = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
}
# UTF-32 first: its little-endian mark begins with that of UTF-16.
_WIDE = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that exists, can be opened and has a known container. `shown` is its path as the user wrote it."""

    path: Path
    shown: str
    container: Container
    gzipped: bool

    @property
    def is_misnamed(self) -> bool:
        """Whether its name says that a line is a row, and it holds JSON over several lines."""
        name = self.path.name.lower().removesuffix(".gz").removesuffix(".gzip")
        return self.container in ("array", "values") and name.endswith((".jsonl", ".ndjson"))

    def rows(self) -> Iterator[Row | RowError]:
        """Yield rows in file order, and a RowError in the place of each one that cannot be read.

        Raises DataError if the file itself breaks off (gzip, Parquet, the disk).
        """
        if self.container == "parquet":
            from espalier.data.files.tables import parquet_rows

            yield from parquet_rows(self.path, self.shown)
            return
        try:
            with _open(self.path, self.gzipped) as stream:
                if stream.peek(3)[:3] == BOM:  # type: ignore[attr-defined]
                    stream.read(3)
                if self.container == "lines":
                    yield from json_lines(stream, self.shown)
                elif self.container == "plain":
                    yield from plain_rows(stream, self.shown)
                elif self.container in ("csv", "tsv"):
                    yield from csv_rows(stream, self.shown, "," if self.container == "csv" else "\t")
                else:
                    yield from json_values(stream, self.shown, array=self.container == "array")
        except (EOFError, zlib.error, OSError) as error:
            raise broken(self.shown, error) from error


def broken(shown: str, error: Exception) -> DataError:
    """The error for a file whose bytes stop making sense, or stop coming, in the middle."""
    if isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile)):
        way_out = "Copy or download the file again"
        return DataError(f"{shown}: broken gzip: {error}; expected a complete gzip stream. {way_out}")
    return DataError(f"{shown}: cannot be read: {error}")


def _open(path: Path, gzipped: bool) -> IO[bytes]:
    if gzipped:
        return cast(IO[bytes], gzip.open(path, "rb"))
    return open(path, "rb")


def open_file(path: Path, shown: str, *, plain: bool = False) -> DataFile:
    """Find out what a file is from its first bytes; its name decides only between text and JSON.

    `plain` reads a file of unknown extension as plain text. Raises DataError for a file that is missing, a folder,
    unreadable, empty, UTF-16 or UTF-32, or packed or named in a way that is not read.
    """
    if not path.exists():
        raise DataError(f"{shown}: no such file.{_nearest(path)}")
    if not path.is_file():
        raise DataError(f"{shown}: not a file; expected one of {', '.join(NAMES)}, gzipped or not")
    try:
        with open(path, "rb") as raw:
            head = raw.read(4)
        gzipped = head[:2] == b"\x1f\x8b"
        with _open(path, gzipped) as stream:
            head = stream.read(HEAD)
    except PermissionError as error:
        raise DataError(f"{shown}: no permission to read it. Change its mode (chmod u+r) or read a copy") from error
    except (EOFError, zlib.error, OSError) as error:
        raise broken(shown, error) from error
    if not head.strip():
        raise DataError(f"{shown}: the file is empty; expected at least one row")
    container = _parquet(head, shown, gzipped) or _text_container(path, shown, head, plain)
    return DataFile(path, shown, container, gzipped)


def _parquet(head: bytes, shown: str, gzipped: bool) -> Container | None:
    """Whether a file is Parquet. Raises DataError if its first bytes are those of a kind that is not read."""
    for magic, what in _PACKED.items():
        if head.startswith(magic):
            raise DataError(f"{shown}: it is {what}; expected JSON, JSONL, text (gzipped or not) or Parquet. Unpack it")
    if head.startswith(b"PAR1"):
        if gzipped:
            raise DataError(f"{shown}: it is Parquet inside gzip; expected bare Parquet. Unpack it with gunzip")
        return "parquet"
    for magic, what in _WIDE.items():
        if head.startswith(magic):
            raise _wide(shown, what)
    # UTF-16 without a mark: of two letters, every other byte is 0.
    if [byte == 0 for byte in head[:4]] in ([False, True, False, True], [True, False, True, False]):
        raise _wide(shown, "UTF-16")
    return None


def _text_container(path: Path, shown: str, head: bytes, plain: bool) -> Container:
    """The container of a file of text, by its name and its first bytes."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".gzip")
    suffix = os.path.splitext(name)[1]
    if suffix in PLAIN_NAMES or (plain and suffix not in NAMES):
        return "plain"
    if suffix in TABLE_NAMES:
        return "csv" if suffix == ".csv" else "tsv"
    if suffix == ".parquet":
        raise DataError(f"{shown}: it does not start with the bytes PAR1; expected Parquet. Copy or download it again")
    if suffix not in JSON_NAMES:
        raise DataError(
            f"{shown}: unknown extension {suffix or '(none)'}; expected one of {', '.join(NAMES)}, gzipped or not. "
            f"Rename the file, or read it as plain text with {shown}:text"
        )
    body = head.removeprefix(BOM).lstrip()
    if suffix == ".json":
        return _json_container(body)
    # Each line is a row, a list of turns too. A bracket alone, or before a break inside the first value, is indented.
    if _INDENTED.match(body):
        return "array" if body.startswith(b"[") else "values"
    return "lines"


def _json_container(body: bytes) -> Container:
    """What a file called .json holds, by its beginning."""
    first = body.split(b"\n", 1)[0].rstrip()
    if body.startswith(b"["):
        # Lists on lines of their own, one after the other, are no array.
        second = body[len(first) :].lstrip()[:1]
        return "lines" if first.endswith(b"]") and second in (b"[", b"{") else "array"
    # A first line that ends in an opening bracket or a comma is the start of an indented object, not a row of JSONL.
    if first.endswith((b"{", b"[", b",")):
        return "values"
    return "lines"


def _wide(shown: str, what: str) -> DataError:
    way_out = f"Convert it: iconv -f {what} -t UTF-8 {shown} > converted.jsonl"
    return DataError(f"{shown}: it is {what}; expected UTF-8. {way_out}")


def _nearest(path: Path) -> str:
    """A sentence that names the file whose name is nearest, or the folder that is missing, with a blank before it."""
    if not path.parent.is_dir():
        return f" The folder {path.parent} does not exist either"
    try:
        names = [entry.name for entry in os.scandir(path.parent)]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {path.parent / close[0]}?" if close else ""
