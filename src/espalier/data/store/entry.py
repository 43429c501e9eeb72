"""One entry of the token cache on disk: flat binary files that are complete or not there.

    tokens.bin          int32, one a token
    runs.bin            RUN, one for each run of tokens of equal mask and weight
    samples.bin         SAMPLE, one a sample
    judged.bin          for each group with judgements: JUDGED, one a sample, then all its numbers (see `judgements`)
    group_*.bin         one number a group, for each of COLUMNS
    rejected.jsonl      one JSON object for each row that could not be used
    meta.json           version, sizes of the other files, names of parts, statistics

An entry is written into a folder beside its final place, synced, and renamed: what carries an entry's name is whole. A
lock keeps processes of one machine from doing the same work; without it (other machines, file systems that have none)
the first rename wins and the others use its result.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from espalier.data.store.rejected import NAME as REJECTED
from espalier.errors import DataError, EspalierError
from espalier.files import fsync_dir
from espalier.types import Sample, StopReason

VERSION = 3
TOKEN = np.dtype("<i4")
RUN = np.dtype([("length", "<i4"), ("trained", "?"), ("weight", "<f8")])
SAMPLE = np.dtype(
    [("token", "<i8"), ("tokens", "<i4"), ("run", "<i8"), ("runs", "<i4"), ("part", "u1"), ("stop", "u1")]
)
JUDGED = np.dtype(
    [("label", "<f8"), ("beats", "<i4"), ("ties", "<i4"), ("reads", "<i4"), ("grades", "<i4"), ("width", "<i4")]
)
COLUMNS = {
    "first": "<i8",
    "samples": "<i4",
    "tokens": "<i4",
    "line": "<i8",
    "hash": "<u8",
    "prompt": "<u8",
    "judged": "<i8",
}
STOPS: tuple[StopReason, ...] = ("stop", "length", "error")
_BUFFER = 1 << 18
_FRESH = Sample()


@contextlib.contextmanager
def writing(home: Path) -> Iterator[None]:
    """Say of an OSError inside the block that the cache cannot be written, and what to do."""
    try:
        yield
    except OSError as e:
        raise EspalierError(
            f"the token cache {home} cannot be written: {e.strerror or e}. Free some space, or name another folder "
            "with --cache"
        ) from e


class Writer:
    """Appends groups to the files of an entry; memory is bounded by the file buffers and one group."""

    def __init__(self, folder: Path) -> None:
        names = ["tokens", "runs", "samples", "judged", *(f"group_{column}" for column in COLUMNS)]
        self.folder = folder
        self.parts: list[str] = []
        self._files: dict[str, IO[bytes]] = {}
        self._tokens = self._runs = self._samples = self._judged = 0
        with contextlib.ExitStack() as stack:
            for name in names:
                self._files[name] = stack.enter_context(open(folder / f"{name}.bin", "wb", buffering=_BUFFER))
            self._files["rejected"] = stack.enter_context(open(folder / REJECTED, "wb"))
            self._close = stack.pop_all().close

    def add(self, samples: Sequence[Sample], line: int, digest: int, prompt: int) -> None:
        """Append one group. Raises ValueError for a sample with something that the files do not hold."""
        group = {"first": self._samples, "samples": len(samples), "line": line, "hash": digest, "prompt": prompt}
        group["tokens"] = sum(len(s.tokens) for s in samples)
        for s in samples:
            self._add(s)
        judged = judgements(samples)
        group["judged"] = self._judged
        self._judged += self._files["judged"].write(judged)
        for column, kind in COLUMNS.items():
            self._files[f"group_{column}"].write(np.array(group[column], kind).tobytes())

    def _add(self, s: Sample) -> None:
        n = len(s.tokens)
        if len(s.mask) != n or len(s.weights) != n:
            raise ValueError(f"a sample has {n} tokens, {len(s.mask)} mask entries and {len(s.weights)} weights")
        for name in ("reward", "streams", "temperature", "version"):
            if getattr(s, name) != getattr(_FRESH, name):
                raise ValueError(f"the token cache does not hold a sample's {name}, got {getattr(s, name)!r}")
        mask, weights = np.array(s.mask, bool), np.array(s.weights, np.float64)
        change = np.ones(n, bool)
        change[1:] = (mask[1:] != mask[:-1]) | (weights[1:] != weights[:-1])
        starts = np.flatnonzero(change)
        runs = np.empty(len(starts), RUN)
        runs["length"], runs["trained"], runs["weight"] = np.diff(starts, append=n), mask[starts], weights[starts]
        if s.part not in self.parts:
            self.parts.append(s.part)
        place = (self._tokens, n, self._runs, len(runs), self.parts.index(s.part), STOPS.index(s.stop))
        self._files["tokens"].write(np.array(s.tokens, TOKEN).tobytes())
        self._files["runs"].write(runs.tobytes())
        self._files["samples"].write(np.array(place, SAMPLE).tobytes())
        self._tokens, self._runs, self._samples = self._tokens + n, self._runs + len(runs), self._samples + 1

    def reject(self, item: dict[str, Any]) -> None:
        self._files["rejected"].write(json.dumps(item, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")

    def flush(self) -> None:
        """Make what was appended readable through the files' names."""
        for stream in self._files.values():
            stream.flush()

    def finish(self, meta: dict[str, Any]) -> None:
        """Write meta.json and sync everything to the disk."""
        for stream in self._files.values():
            stream.flush()
            os.fsync(stream.fileno())
        self._close()
        sizes = {path.name: path.stat().st_size for path in self.folder.iterdir()}
        text = json.dumps({"version": VERSION, "parts": self.parts, "files": sizes, **meta}, indent=1)
        with open(self.folder / "meta.json", "wb") as stream:
            stream.write(text.encode("utf-8", "backslashreplace"))
            stream.flush()
            os.fsync(stream.fileno())
        fsync_dir(self.folder)

    def abandon(self) -> None:
        """Close the files of an entry that will not be finished, whatever their buffers say about a full disk."""
        for stream in self._files.values():
            with contextlib.suppress(OSError):
                stream.close()


def judgements(samples: Sequence[Sample]) -> bytes:
    """What a group's samples say about their judgements: nothing at all where none has any.

    The numbers behind the JUDGED records are the samples' beats, ties and reads (int32), then their grades, as many
    numbers each as the sample's width (float64). A label of None is nan. Raises ValueError for a sample whose grades
    differ in width.
    """
    if all(s.label is None and not (s.beats or s.ties or s.reads or s.grades) for s in samples):
        return b""
    table, places, grades = np.empty(len(samples), JUDGED), list[int](), list[float]()
    for i, s in enumerate(samples):
        widths = {len(grade) for grade in s.grades}
        if len(widths) > 1 or 0 in widths:
            raise ValueError(f"a sample has grades of {sorted(widths)} dimensions; expected as many in each, 1 or more")
        label = np.nan if s.label is None else s.label
        table[i] = (label, len(s.beats), len(s.ties), len(s.reads), len(s.grades), max(widths, default=0))
        places += (*s.beats, *s.ties, *s.reads)
        grades.extend(x for grade in s.grades for x in grade)
    return table.tobytes() + np.array(places, TOKEN).tobytes() + np.array(grades, "<f8").tobytes()


def judge(samples: Sequence[Sample], data: bytes) -> None:
    """Give samples the judgements that `judgements` wrote."""
    table = np.frombuffer(data, JUDGED, len(samples)).tolist()
    count = sum(beats + ties + reads for _, beats, ties, reads, _, _ in table)
    places = np.frombuffer(data, TOKEN, count, len(table) * JUDGED.itemsize).tolist()
    grades = np.frombuffer(data, "<f8", offset=len(table) * JUDGED.itemsize + count * TOKEN.itemsize).tolist()
    at = first = 0
    for s, (label, beats, ties, reads, graded, width) in zip(samples, table, strict=True):
        s.label = None if label != label else label
        s.beats = places[at : at + beats]
        s.ties = places[at + beats : at + beats + ties]
        s.reads = places[at + beats + ties : at + beats + ties + reads]
        s.grades = [tuple(grades[i : i + width]) for i in range(first, first + graded * width, width or 1)]
        at, first = at + beats + ties + reads, first + graded * width


def read_meta(folder: Path) -> dict[str, Any] | None:
    """The contents of meta.json, or None where there is no entry, or one whose files lost or gained bytes."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        whole = meta["version"] == VERSION and all(
            (folder / name).stat().st_size == size for name, size in meta["files"].items()
        )
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    return meta if whole else None


def column(folder: Path, name: str) -> NDArray[Any]:
    """One number a group, mapped from its file."""
    path, kind = folder / f"group_{name}.bin", COLUMNS[name]
    return np.memmap(path, kind, "r") if path.stat().st_size else np.zeros(0, kind)


def read_at(fd: int, kind: np.dtype[Any], first: int, count: int, folder: Path) -> NDArray[Any]:
    """Records first .. first + count of an open file. Raises DataError where the file ends before.

    Plain reads, not a memory map: pages of a map count as memory of the process for as long as they stay in the
    system's cache, so that a run's memory would grow with its data; and a map of a file cut short ends the process.
    """
    wanted, offset = count * kind.itemsize, first * kind.itemsize
    data = os.pread(fd, wanted, offset)
    while len(data) < wanted:
        more = os.pread(fd, wanted - len(data), offset + len(data))
        if not more:
            raise DataError(f"{folder}: the token cache is damaged, a file ends early. Remove this folder")
        data += more
    return np.frombuffer(data, kind)


@contextlib.contextmanager
def building(home: Path, key: str) -> Iterator[Path]:
    """A new folder to write the entry `home/key` into; renamed to it when the block ends, removed when it raises.

    Folders that killed builds of the same entry left behind on this machine are removed where a lock proves that
    nobody writes to them.
    """
    mine = f".{key}.{socket.gethostname()}."
    draft = home / f"{mine}{uuid.uuid4().hex}"
    with writing(home):
        draft.mkdir()
    try:
        yield draft
        with writing(home):
            _place(draft, home / key)
            fsync_dir(home)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _place(draft: Path, final: Path) -> None:
    try:
        os.rename(draft, final)
    except OSError:
        # Something is there: another machine's entry, used if it is whole, or a damaged one, replaced.
        if not final.exists():
            raise
        if read_meta(final) is None:
            shutil.rmtree(final)
            os.rename(draft, final)


@contextlib.contextmanager
def locked(home: Path, key: str) -> Iterator[None]:
    """Hold the right to build `home/key`, waiting for another process of this machine that does. Ends with the process.

    Where the file system has no locks, the block runs without one.
    """
    with writing(home):
        home.mkdir(parents=True, exist_ok=True)
        stream = open(home / f"{key}.lock", "ab")  # noqa: SIM115
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            yield
            return
        for left in home.glob(f".{key}.{socket.gethostname()}.*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
