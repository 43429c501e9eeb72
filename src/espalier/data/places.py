"""Where a data source is: a file, a folder, or a data set on the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from espalier.data.files.content import split_place
from espalier.data.files.rows import NAMES, open_file
from espalier.errors import DataError

_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w.-]+)?(#[\w.-]+)?")


def is_data_name(path: str) -> bool:
    """Whether a path ends as a data file does, gzipped or not."""
    return os.path.splitext(path.lower().removesuffix(".gz"))[1] in NAMES


def is_folder(path: str) -> bool:
    """Whether a path, without a configuration and a split behind it, is a folder."""
    return os.path.isdir(path) or os.path.isdir(split_place(path)[0])


def is_hub(path: str) -> bool:
    """Whether a path that names nothing on this machine can be OWNER/NAME on the hub."""
    owner = path.split("/")[0]
    if os.path.exists(path) or os.path.isdir(owner) or is_data_name(path):
        return False
    return bool(_HUB.fullmatch(path))


def refuse_missing(path: str) -> None:
    """Raise DataError for a path that is no file, no folder and no name of a hub data set, before the hub is asked."""
    if os.path.isfile(path) or is_folder(path) or is_hub(path):
        return
    if os.path.exists(path):
        raise DataError(f"{path}: is not a regular file, so it cannot be read twice; write its rows into a file")
    open_file(Path(path), path, plain=False)
