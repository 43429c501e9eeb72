"""What a data source contains, as one line: the name under which its tokens are cached."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from espalier.errors import DataError
from espalier.files import sealed, unsealed

SETTLED_S = 2.0
"""Seconds after which a file is taken to be finished: its hash is remembered."""
_PLACE = re.compile(r"(?:@(?P<config>[\w.-]+))?(?:#(?P<split>[\w.-]+))?\Z")


def split_place(path: str) -> tuple[str, str, str]:
    """A folder or hub data set, and the configuration and the split that follow its name; empty if not named.

    >>> split_place("owner/name@main#test"), split_place("folder#dev")
    (('owner/name', 'main', 'test'), ('folder', '', 'dev'))
    """
    place = _PLACE.search(path)
    assert place is not None, "the pattern matches the empty text at the end"
    return path[: place.start()], place["config"] or "", place["split"] or ""


def content_key(path: str, cache: Path | None = None) -> str:
    """Names what a source contains, for `open_store`: equal for equal bytes.

    A file is named by `content_hash`; a folder by the names and hashes of all files in it, with the configuration and
    split that follow it; a hub data set by its path and the commit that the hub serves now. `cache` is as for
    `content_hash`. Raises DataError if these cannot be found out.
    """
    try:
        if os.path.isfile(path):
            return f"file {content_hash(Path(path), cache)}"
        name = path if os.path.isdir(path) else split_place(path)[0]
        if Path(name).is_dir():
            return f"folder {path[len(name) :]} {_folder_hash(Path(name), cache)}"
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return f"hub {path} {_hub_commit(name, path)}"


def _folder_hash(folder: Path, cache: Path | None) -> str:
    """sha256 of the names and hashes of all files in a folder and below it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    hashes = {str(file.relative_to(folder)): content_hash(file, cache) for file in files}
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _hub_commit(name: str, path: str) -> str | None:
    """The commit of a hub data set. Raises DataError if the hub does not say."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name).sha
    # The network raises errors of several libraries, with no common base.
    except Exception as error:
        reason = " ".join(str(error).split())[:500]
        raise DataError(
            f"{path}: no such file, and the hub does not answer for it: {type(error).__name__}: {reason}"
        ) from error


def content_hash(path: Path, cache: Path | None = None) -> str:
    """sha256 of the bytes of `path`, as 64 hex digits, read as a stream.

    With `cache`, the result is remembered under `cache/hashes` and returned without reading the file for as long as its
    size, modification time and inode stay the same. A file changed less than 2 s ago is not remembered: a second change
    within the resolution of its time stamp would go unseen. Raises OSError if the file cannot be read.
    """
    path = path.resolve()
    stamp = _stamp(path)
    memo = None
    if cache:
        memo = cache / "hashes" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
        known = _recall(memo, path, stamp)
        if known:
            return known
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    # Not if the file changed while it was read.
    if memo and _stamp(path) == stamp and time.time() - path.stat().st_mtime > SETTLED_S:
        _remember(memo, {"path": str(path), "stamp": stamp, "hash": digest})
    return digest


def _remember(memo: Path, known: dict[str, Any]) -> None:
    """Write a memo. One that cannot be written costs another reading of the file, and nothing else."""
    draft = memo.with_name(f"{memo.name}.{os.getpid()}")
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(sealed(known), encoding="ascii")
        os.replace(draft, memo)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _recall(memo: Path, path: Path, stamp: list[int]) -> str | None:
    """The hash that `memo` remembers for a file of this stamp, None if it does not."""
    try:
        known = unsealed(memo.read_bytes())
    # Never written, or not to be read by this user.
    except OSError:
        return None
    # Damaged, or cut short by a full disk: the file is hashed again.
    if known is None or known.get("path") != str(path) or known.get("stamp") != stamp:
        return None
    digest = known.get("hash")
    return digest if isinstance(digest, str) and len(digest) == 64 else None
