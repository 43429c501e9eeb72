"""What a format is. Each format's file ends in one `Format`, and `formats.ALL` lists them.

To add a format: write `formats/NAME.py`, which ends in `FORMAT = Format("NAME", ...)`; add a line to `formats.ALL` (or
to `chats.CHATS`, if its rows hold one conversation); name it in the help of `format` (`config.sections.DataConfig`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Format:
    """A format: its name, its reader, and what data in it looks like.

    `unit` is what one call of `read` takes, and decides what the two functions are:

        row      read(row, origin): the example of a row, or a list of its examples. Raises RowError.
                 looks(row, consumes): whether the keys of a row are those of the format.
        file     read(rows, path, source): the examples of all rows of a file, a RowError in place of each bad row.
                 looks(row, consumes): as for "row".
        folder   read(path, source, ledger): the examples of all files of a folder, likewise; what it read of each row
                 is counted in the ledger, if there is one.
                 looks(path): whether the files of a folder are those of the format.

    Rows are WatchedRows: a reader looks keys up with `[]`, `get`, and `common`'s `first_key` and `string`, and so it
    becomes known what was read and what was not. What it keeps whole, it takes as `plain`. `looks` sees plain rows.

    `source` is the name of the data source, `consumes` is what the run learns from. `looks` is None for a format that
    is never guessed. Rows are compared with the formats in the order of `formats.ALL`, and the first match counts: so
    `looks` may rely on the formats before it.
    """

    name: str
    read: Callable[..., Any]
    looks: Callable[..., bool] | None
    unit: Literal["row", "file", "folder"] = "row"
