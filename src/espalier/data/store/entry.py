"""One entry of the token cache on disk: flat binary files that are complete or not there.

    tokens.bin          int32, one per token
    runs.bin            RUN, one per run of tokens of equal mask and weight
    samples.bin         SAMPLE, one per sample
    judged.bin          for each group with judgements: JUDGED, one per sample, then all its numbers (`pack_judgements`)
    group_*.bin         one number per group, for each of COLUMNS
    tasks.bin           of a store of tasks alone: each group's task, a line of JSON (`task_json`)
    group_task.bin      the byte in tasks.bin at which it starts
    rejected.jsonl      one JSON object per row that could not be used
    meta.json           version, size and CRC-32 of each other file, names of parts, statistics, what was read of which
                        column; sha256 of itself

An entry is written into a folder beside its final place, synced, and renamed: what carries an entry's name is whole. A
lock keeps processes of one machine from doing the same work; without it (other machines, file systems that have none)
the first rename wins and the others use its result.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
import socket
import uuid
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from espalier import files
from espalier.data.store.rejected import NAME as REJECTED
from espalier.errors import DataError, EspalierError
from espalier.types import Sample, StopReason

VERSION = 4
"""Raised whenever the layout changes: entries of another version are not read, but built anew under another name."""
# All numbers are little-endian and of fixed width, so that machines that share a cache read the
# same entry. Records are packed: a SAMPLE is 26 bytes, no padding.
TOKEN = np.dtype("<i4")
# A mask and a weight per token would be 9 bytes; they change a few times in a sample.
RUN = np.dtype([("length", "<i4"), ("trained", "?"), ("weight", "<f8")])
# token, run: the number of the sample's first token and first run in their files; tokens, runs: how
# many it has. part is a place in the list of meta.json, stop one in STOPS.
SAMPLE = np.dtype(
    [
        ("token", "<i8"),
        ("tokens", "<i4"),
        ("run", "<i8"),
        ("runs", "<i4"),
        ("part", "u1"),
        ("stop", "u1"),
    ]
)
# Counts of what follows the records; width: dimensions of a grade.
JUDGED = np.dtype(
    [
        ("label", "<f8"),
        ("beats", "<i4"),
        ("ties", "<i4"),
        ("reads", "<i4"),
        ("grades", "<i4"),
        ("width", "<i4"),
    ]
)
# first: the number of the group's first sample; judged: the byte in judged.bin at which its
# judgements start.
COLUMNS = {
    "first": "<i8",
    "samples": "<i4",
    "tokens": "<i4",
    "line": "<i8",
    "hash": "<u8",
    "prompt": "<u8",
    "judged": "<i8",
}
TASKS = ("tasks", "group_task")
PLACE = "<i8"
STOPS: tuple[StopReason, ...] = ("stop", "length", "error")
META = "meta.json"
_BUFFER = 1 << 18
_FRESH = Sample()


@contextlib.contextmanager
def writing(home: Path) -> Iterator[None]:
    """Turn an OSError inside the block into an EspalierError: the cache cannot be written, and the way out."""
    try:
        yield
    except OSError as e:
        raise EspalierError(
            f"the token cache {home} cannot be written: {e.strerror or e}. Free some space, or name another folder "
            "with --cache"
        ) from e


class Damaged(Exception):
    """An entry is there, and not as it was written."""


class _Stream:
    """A file that is written, with the size and the CRC-32 of what was."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.size, self.crc = file, 0, 0

    def write(self, data: bytes) -> int:
        self.file.write(data)
        self.size += len(data)
        self.crc = zlib.crc32(data, self.crc)
        return len(data)


class Writer:
    """Appends groups to the files of an entry; memory is bounded by the file buffers and one group."""

    def __init__(self, folder: Path) -> None:
        names = ["tokens", "runs", "samples", "judged", *(f"group_{column}" for column in COLUMNS)]
        self.folder = folder
        self.parts: list[str] = []
        self._files: dict[str, _Stream] = {}
        self._tokens = self._runs = self._samples = self._judged = self._tasks = 0
        with contextlib.ExitStack() as stack:
            for name in names:
                file = stack.enter_context(open(folder / f"{name}.bin", "wb", buffering=_BUFFER))
                self._files[name] = _Stream(file)
            self._files["rejected"] = _Stream(stack.enter_context(open(folder / REJECTED, "wb")))
            self._opened = stack.pop_all()

    def add(self, samples: Sequence[Sample], line: int, digest: int, prompt: int, task: bytes = b"") -> None:
        """Append one group, with the JSON of the task that it is the prompt of. Raises ValueError for a sample with
        something that the files do not hold, and if some groups have a task and others none."""
        self._task(task)
        group = {"first": self._samples, "samples": len(samples), "line": line, "hash": digest, "prompt": prompt}
        group["tokens"] = sum(len(s.tokens) for s in samples)
        group["judged"] = self._judged
        for s in samples:
            self._add(s)
        self._judged += self._files["judged"].write(pack_judgements(samples))
        for column, kind in COLUMNS.items():
            self._files[f"group_{column}"].write(np.array(group[column], kind).tobytes())

    def _task(self, task: bytes) -> None:
        """Append a task; the first group decides if there are any."""
        if task and not self._samples:
            for name in TASKS:
                file = open(self.folder / f"{name}.bin", "wb", buffering=_BUFFER)  # noqa: SIM115
                self._files[name] = _Stream(self._opened.enter_context(file))
        if bool(task) != (TASKS[0] in self._files):
            raise ValueError("some groups are prompts of tasks and others are not; expected all or none")
        if task:
            self._files["group_task"].write(np.array(self._tasks, PLACE).tobytes())
            self._tasks += self._files["tasks"].write(task)

    def _add(self, s: Sample) -> None:
        size = len(s.tokens)
        if len(s.mask) != size or len(s.weights) != size:
            raise ValueError(f"a sample has {size} tokens, {len(s.mask)} mask entries and {len(s.weights)} weights")
        for name in ("reward", "streams", "temperature", "version"):
            if getattr(s, name) != getattr(_FRESH, name):
                raise ValueError(f"the token cache does not hold a sample's {name}, got {getattr(s, name)!r}")
        mask, weights = np.array(s.mask, bool), np.array(s.weights, np.float64)
        # A run starts at the first token, and wherever mask or weight differ from those of the
        # token before.
        change = np.ones(size, bool)
        change[1:] = (mask[1:] != mask[:-1]) | (weights[1:] != weights[:-1])
        starts = np.flatnonzero(change)
        runs = np.empty(len(starts), RUN)
        runs["length"] = np.diff(starts, append=size)
        runs["trained"], runs["weight"] = mask[starts], weights[starts]
        if s.part not in self.parts:
            self.parts.append(s.part)
        part, stop = self.parts.index(s.part), STOPS.index(s.stop)
        place = (self._tokens, size, self._runs, len(runs), part, stop)
        self._files["tokens"].write(np.array(s.tokens, TOKEN).tobytes())
        self._files["runs"].write(runs.tobytes())
        self._files["samples"].write(np.array(place, SAMPLE).tobytes())
        self._tokens += size
        self._runs += len(runs)
        self._samples += 1

    def reject(self, item: dict[str, Any]) -> None:
        """Append one row that could not be used."""
        # A row may hold lone surrogates, which UTF-8 cannot write; the report shows them escaped.
        text = json.dumps(item, ensure_ascii=False)
        self._files["rejected"].write(text.encode("utf-8", "backslashreplace") + b"\n")

    def flush(self) -> None:
        """Make what was appended readable through the files' names."""
        for stream in self._files.values():
            stream.file.flush()

    def finish(self, key: str, meta: dict[str, Any]) -> None:
        """Write meta.json of the entry `key` and sync everything to the disk."""
        # The files before meta.json, which holds their sizes and checksums: an entry with a meta.json
        # that matches them is whole.
        entries = {}
        for stream in self._files.values():
            stream.file.flush()
            os.fsync(stream.file.fileno())
            entries[Path(stream.file.name).name] = {"bytes": stream.size, "crc32": stream.crc}
        self._opened.close()
        text = files.sealed({"version": VERSION, "key": key, "parts": self.parts, "files": entries, **meta})
        files.write_atomic(self.folder / META, text)

    def abandon(self) -> None:
        """Close the files of an entry that will not be finished; errors of a full disk on closing are ignored."""
        for stream in self._files.values():
            with contextlib.suppress(OSError):
                stream.file.close()


def pack_judgements(samples: Sequence[Sample]) -> bytes:
    """The judgements of a group's samples; no bytes if no sample has any.

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
        for grade in s.grades:
            grades.extend(grade)
    return table.tobytes() + np.array(places, TOKEN).tobytes() + np.array(grades, "<f8").tobytes()


def unpack_judgements(samples: Sequence[Sample], data: bytes) -> None:
    """Give samples the judgements that `pack_judgements` wrote."""
    records = np.frombuffer(data, JUDGED, len(samples)).tolist()
    count = sum(beats + ties + reads for _, beats, ties, reads, _, _ in records)
    behind = len(records) * JUDGED.itemsize
    places = np.frombuffer(data, TOKEN, count, behind).tolist()
    grades = np.frombuffer(data, "<f8", offset=behind + count * TOKEN.itemsize).tolist()
    at = grade_at = 0
    for s, (label, beats, ties, reads, graded, width) in zip(samples, records, strict=True):
        s.label = None if math.isnan(label) else label
        s.beats = places[at : at + beats]
        at += beats
        s.ties = places[at : at + ties]
        at += ties
        s.reads = places[at : at + reads]
        at += reads
        s.grades = []
        for _ in range(graded):
            s.grades.append(tuple(grades[grade_at : grade_at + width]))
            grade_at += width


def read_meta(folder: Path) -> dict[str, Any] | None:
    """The content of meta.json, after every byte of the entry was compared with it; None if there is no entry.

    Raises Damaged that names the file at fault.
    """
    try:
        meta = files.unsealed((folder / META).read_bytes())
        if meta is None:
            raise Damaged(f"{folder / META} is not as it was written")
        if (meta["version"], meta["key"]) != (VERSION, folder.name):
            raise Damaged(f"{folder} holds the entry {meta['key']} of version {meta['version']}")
        for name, written in meta["files"].items():
            path = folder / name
            if path.stat().st_size != written["bytes"]:
                raise Damaged(f"{path} has {path.stat().st_size:,} bytes, and had {written['bytes']:,} when written")
            if files.checksum(path) != written["crc32"]:
                raise Damaged(f"{path} does not have the checksum that it was written with")
    except (FileNotFoundError, NotADirectoryError) as error:
        if not folder.is_dir():
            return None
        raise Damaged(f"{error.filename} is missing") from error
    except OSError as error:
        raise Damaged(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    return meta


def bytes_of(meta: dict[str, Any]) -> int:
    """How large the files of an entry are together."""
    return sum(int(written["bytes"]) for written in meta["files"].values())


def column(folder: Path, name: str) -> NDArray[Any]:
    """One number per group, mapped from its file."""
    path, kind = folder / f"group_{name}.bin", COLUMNS.get(name, PLACE)
    return np.memmap(path, kind, "r") if path.stat().st_size else np.zeros(0, kind)


def read_at(fd: int, kind: np.dtype[Any], first: int, count: int, folder: Path) -> NDArray[Any]:
    """Records first .. first + count of an open file. Raises DataError if the file ends before.

    Plain reads, not a memory map: pages of a map count as memory of the process for as long as they stay in the
    system's cache, so that a run's memory would grow with its data; and a map of a file cut short ends the process.
    """
    size, offset = count * kind.itemsize, first * kind.itemsize
    data = os.pread(fd, size, offset)
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            raise DataError(f"{folder}: the token cache is damaged, a file ends early. Remove this folder")
        data += more
    return np.frombuffer(data, kind)


@contextlib.contextmanager
def building(home: Path, key: str) -> Iterator[Path]:
    """A new folder to write the entry `home/key` into; renamed to it when the block ends, removed when it raises.

    Folders that killed builds of the same entry left behind on this machine are removed by `locked`, which proves that
    nobody writes to them.
    """
    # The host's name tells `locked` which drafts its lock speaks for: another machine may be
    # writing the others.
    draft = home / f".{key}.{socket.gethostname()}.{uuid.uuid4().hex}"
    with writing(home):
        draft.mkdir()
    try:
        yield draft
        # The draft's files and its own list of names are on the disk by now (`Writer.finish`); the
        # rename is one step, and durable once the folder above is synced. A crash at any point
        # leaves no entry, or a whole one.
        with writing(home):
            _place(draft, home / key)
            files.fsync_dir(home)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _place(draft: Path, final: Path) -> None:
    """Give a finished draft the name of its entry."""
    try:
        os.rename(draft, final)
    except OSError:
        # A folder cannot be renamed onto one that holds files. What is there is another machine's
        # entry, used if it is whole, or a damaged one, replaced.
        if not os.path.lexists(final):
            raise
        try:
            whole = read_meta(final) is not None
        except Damaged:
            whole = False
        if not whole:
            files.delete(final)
            os.rename(draft, final)


@contextlib.contextmanager
def locked(home: Path, key: str) -> Iterator[None]:
    """Hold the right to build `home/key`, waiting for another process of this machine that does. Ends with the process.

    If the file system has no locks, the block runs without one.
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
        # Under the lock no process of this machine builds the entry: these drafts are of processes
        # that were killed.
        for left in home.glob(f".{key}.{socket.gethostname()}.*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
