"""What a run says of rows that could not be used."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from espalier.data.store.rejected import record, rejections, restore
from espalier.data.store.store import Store
from espalier.files import PARTIAL, beside


def write_rejected(stores: Iterable[Store], path: Path) -> int:
    """Write the rejected rows of all `stores` to `path` as JSON lines and return how many there are.

    Each line holds `source`, `path`, `row`, `where`, `reason`, `field`, `got`, `expected`, `fix` and `message`. The
    file is replaced as a whole; without rejected rows it is empty.
    """
    count = 0
    draft = beside(path, PARTIAL)
    with open(draft, "w", encoding="utf-8", errors="backslashreplace") as out:
        for store in stores:
            for item in rejections(store.folder):
                item = record(restore(item, store.path), item["row"], store.source, store.path)
                out.write(json.dumps(item, ensure_ascii=False) + "\n")
                count += 1
    os.replace(draft, path)
    return count
