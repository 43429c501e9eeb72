"""Every file of a folder, damaged in many ways."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path


def damages(folder: Path, *, every: int = 1) -> Iterator[str]:
    """Damage the files below `folder` one by one, say how, and put all back after each: one bit of each byte flipped
    (of every n-th byte), cut in half, emptied, lengthened, deleted, exchanged with another file, made a folder."""
    good = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock"}
    for path, data in good.items():
        changed: dict[str, bytes | None] = {
            f"bit {at % 8} of byte {at}": data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
            for at in range(0, len(data), every)
        }
        changed["longer"], changed["deleted"] = data + b"x\n", None
        if data:
            changed["half"], changed["empty"] = data[: len(data) // 2], b""
        for other, content in good.items():
            if other.parent == path.parent and content != data:
                changed[f"content of {other.name}"] = content
        for how, content in changed.items():
            _put(path, content)
            yield f"{path.name}: {how}"
            for name, original in good.items():
                _put(name, original)


def _put(path: Path, content: bytes | None) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(content)
