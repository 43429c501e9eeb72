"""Hub datasets and dataset folders, streamed through `datasets`. The only file that imports it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from espalier.data.files.content import split_place
from espalier.data.files.json_rows import Row, checked_row
from espalier.errors import DataError, RowError


def hub_rows(shown: str) -> Iterator[Row | RowError]:
    """Rows of `NAME[@CONFIG][#SPLIT]`, numbered from 1: a hub name or a folder; the split is `train` if none is named.

    A folder may hold data files, or what `save_to_disk` writes. Raises DataError with
    the reason that `datasets` gives if the data set, its configuration or its split cannot be read.
    """
    name, config, split = split_place(shown)
    try:
        for number, value in enumerate(_load(name, config or None, split or "train"), 1):
            yield checked_row(number, value, f"{shown}:{number}")
    except DataError:
        raise
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        message = f"{shown}: no such file or folder, nor a data set on the hub"
        if isinstance(error, ConnectionError):
            message += " (offline: the hub cannot be reached)"
        raise DataError(message) from error
    # `datasets` and the network raise errors of many libraries, with no common base.
    except Exception as error:
        reason = " ".join(str(error).split())[:500]
        raise DataError(
            f"{shown}: this data set cannot be read: {type(error).__name__}: {reason}. "
            f"Name its configuration and split with {name}@CONFIG#SPLIT, or a file on this machine"
        ) from error


def _load(name: str, config: str | None, split: str) -> Any:
    folder = Path(name)
    if (folder / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(name)
        if split not in saved:
            raise DataError(f"{name}: no split {split}; expected one of {', '.join(saved)}. Write {name}#SPLIT")
        return saved[split]
    if (folder / "state.json").is_file():
        return datasets.load_from_disk(name)
    return datasets.load_dataset(name, config, split=split, streaming=True)
