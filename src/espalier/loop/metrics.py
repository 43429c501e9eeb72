"""Append-only files of one JSON object per line: metrics.jsonl, samples.jsonl and others that a run resumes."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from espalier.errors import CheckpointError, EspalierError
from espalier.files import disk_full, free_bytes, fsync_dir


class MetricsFile:
    """A file that grows by whole lines.

    Every line reaches the operating system at once, so a killed process loses none; `sync` makes them last through a
    power failure. A line that a kill cut in two is dropped on opening.

    Raises EspalierError if the file cannot be opened or written.
    """

    def __init__(self, path: Path):
        self.path = path
        created = not path.exists()
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise EspalierError(f"cannot open {path}: {error.strerror}; expected a file that can be written") from error
        if created:
            fsync_dir(path.parent)
        self._length = self._end_of_lines()
        os.ftruncate(self._fd, self._length)
        self._sha256 = self._digest_of(self._length)

    def append(self, record: dict[str, Any]) -> None:
        """Add one line. Floats read back exactly; NaN and infinities are written as `line_of` says.

        A disk that fills up in the middle of the line leaves the file without any of it. Raises EspalierError then,
        and TypeError for a value that JSON does not have (a tensor, say).
        """
        line = line_of(record).encode()
        rest, size = memoryview(line), len(line)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            os.ftruncate(self._fd, self._length)
            message = f"cannot write {size} bytes to {self.path}: {error.strerror}"
            if disk_full(error):
                message += f"; {free_bytes(self.path.parent)} bytes are free: free some, then continue with --resume"
            raise EspalierError(message) from error
        self._length += size
        self._sha256.update(line)

    def length(self) -> int:
        """Bytes of all lines so far: what a checkpoint stores and `truncate_to` takes."""
        return self._length

    def digest(self) -> str:
        """sha256 of all lines so far, which a checkpoint stores beside their length."""
        return self._sha256.hexdigest()

    def sync(self) -> None:
        """Flush all lines to the disk; done before a checkpoint stores `length`."""
        os.fsync(self._fd)

    def truncate_to(self, length: int, digest: str = "") -> None:
        """Drop every line after the first `length` bytes.

        Raises CheckpointError, and changes nothing, if the file is shorter than that, `length` falls inside a line, or
        those bytes do not have the sha256 `digest` (empty: not known): then it is not the file that the checkpoint was
        written with.
        """
        if length > self._length:
            raise CheckpointError(
                f"{self.path} has {self._length} bytes of lines and had {length} when the checkpoint was written; "
                "put the original file back, or resume from an older checkpoint with --resume-from"
            )
        if length and os.pread(self._fd, 1, length - 1) != b"\n":
            raise CheckpointError(
                f"{self.path} has no line end at byte {length}, where the checkpoint expects one, so it was changed "
                "after the checkpoint was written; put the original file back"
            )
        kept = self._digest_of(length)
        if digest and kept.hexdigest() != digest:
            raise CheckpointError(
                f"the first {length} bytes of {self.path} have sha256 {kept.hexdigest()[:16]}... and had "
                f"{digest[:16]}... when the checkpoint was written, so a line was changed since; put the original file "
                "back, or take it as it is with --accept-changes"
            )
        os.ftruncate(self._fd, length)
        os.fsync(self._fd)
        self._length, self._sha256 = length, kept

    def _digest_of(self, length: int) -> hashlib._Hash:
        """sha256 of the first `length` bytes, a MB in memory at a time."""
        digest, at = hashlib.sha256(), 0
        while at < length:
            data = os.pread(self._fd, min(1 << 20, length - at), at)
            if not data:
                break
            digest.update(data)
            at += len(data)
        return digest

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end_of_lines(self) -> int:
        """Bytes up to and including the last line end, found from the back so that long files open at once."""
        end = os.fstat(self._fd).st_size
        while end:
            start = max(0, end - 65536)
            last = os.pread(self._fd, end - start, start).rfind(b"\n")
            if last >= 0:
                return start + last + 1
            end = start
        return 0


def line_of(record: dict[str, Any]) -> str:
    """One line of JSON. JSON has no NaN and no infinity: they become the strings "NaN", "Infinity" and "-Infinity",
    which `float()` reads back. Everything outside ASCII is escaped, so that no reader splits a line at U+2028.

    >>> line_of({"step": 3, "loss": 0.1 + 0.2, "kl": float("nan")})
    '{"step": 3, "loss": 0.30000000000000004, "kl": "NaN"}\\n'
    """
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return "NaN"
        return "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, in order; a last line without its end is skipped, because a kill cut it.

    Raises EspalierError for any other line that is not a JSON object.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                raise EspalierError(f"{path}:{number}: not JSON ({error}); expected one object per line") from error
            if not isinstance(record, dict):
                kind = type(record).__name__
                raise EspalierError(f"{path}:{number}: got {kind}, expected one JSON object per line")
            yield record
