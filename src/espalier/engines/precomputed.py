"""The reference as a table: log-probabilities computed once, before the first step, and kept on disk.

    CACHE/reference/KEY/    values.bin   float32, one per token of every sample of a store, 0 if it is not scored
                            index.bin    INDEX, one per sample
                            meta.json    size and CRC-32 of each other file; sha256 of itself

KEY is a hash of what they were computed from and how, so an entry serves every run that would compute the same. An
entry is written in whole chunks under a name that starts with a dot, and renamed when all are there; a build that was
killed continues after its last whole chunk. Memory is constant: a sample is found by its key, with two reads.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from espalier import files
from espalier.engines.forwards import Forwards
from espalier.engines.protocols import Group, World, from_first, samples_of, together
from espalier.errors import ConfigError, EspalierError
from espalier.types import Sample

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
VERSION = 2
CHUNK = 256
"""Groups that are computed, written and flushed at a time."""
INDEX = np.dtype([("start", "<i8"), ("tokens", "<i4"), ("crc", "<u4")])
VALUE = np.dtype("<f4")
FILES = ("index.bin", "values.bin")
META, PROGRESS = "meta.json", "progress.json"
_NUMBER = (1 << 40) - 1
"""The bits of a sample's key that number it within its store; those above are the store's base."""
_WAY_OUT = "Set reference: memory"


class Rows(Protocol):
    """The part of a token store that is used here. Keys of `group(i)`'s samples count up from the store's base."""

    @property
    def key(self) -> str: ...
    @property
    def part(self) -> str: ...
    def __len__(self) -> int: ...
    def group(self, i: int) -> list[Sample]: ...


class PrecomputedReference:
    """The log-probabilities of a reference for all groups of `stores`, from the cache or computed into it now.

    forwards: the reference's (the policy's before its first step and before a checkpoint is loaded, or another
        model's); not kept.
    weights: names and content hashes of all files that it was loaded from.
    progress: called with the groups done and all groups, after each chunk.
    note: called with a line for the user if an entry was damaged. Rank 0 verifies every byte of an entry; one that is
        damaged is computed anew, and so is a draft that is.

    An entry's key is the sha256 of weights, store key and part, dtype, layout, device, ranks and token budget. The last
    three change rounding only, but a run must not depend on what the cache held. Every rank calls this; rank 0 writes,
    and processes of one machine build an entry one after the other.

    Raises ConfigError if the processes do not share `cache`, EspalierError if it cannot be written.
    """

    def __init__(
        self,
        forwards: Forwards,
        stores: Sequence[Rows],
        *,
        cache: Path,
        weights: Mapping[str, str],
        progress: Callable[[int, int], None] | None = None,
        note: Callable[[str], None] | None = None,
    ):
        home = cache / "reference"
        self._tables: dict[int, _Table] = {}
        for store in stores:
            folder = home / _key(forwards, store, weights)
            _ensure(forwards, store, folder, progress, note)
            base = store.group(0)[0].key & ~_NUMBER
            known = self._tables.setdefault(base, _Table(folder))
            if known.folder != folder:
                raise ConfigError(f"two data sources have the same key base {base:#x}; rename one. {_WAY_OUT}")

    def logprobs(self, groups: Sequence[Group]) -> list[list[float]]:
        """Raises ConfigError for a sample that is in none of the stores, such as one built during the step."""
        return [self._of_sample(s) for s in samples_of(groups)]

    def _of_sample(self, s: Sample) -> list[float]:
        table = self._tables.get(s.key & ~_NUMBER)
        logprobs = table.read(s.key & _NUMBER, s) if table else None
        if logprobs is None:
            raise ConfigError(
                f"the sample with key {s.key} was not precomputed: got {len(s.tokens)} tokens that are none of the "
                f"data's. {_WAY_OUT}"
            )
        return logprobs

    def move(self, alpha: float) -> None:
        """Raises ConfigError."""
        raise ConfigError(f"the reference is precomputed and cannot move, but the algorithm moves it. {_WAY_OUT}")

    def moved(self) -> Iterator[tuple[str, Tensor]]:
        """Nothing: it does not move."""
        return iter(())

    def save(self, folder: Path) -> None:
        """Nothing: the cache holds it."""

    def load(self, folder: Path) -> None:
        """Nothing."""


def _key(forwards: Forwards, store: Rows, weights: Mapping[str, str]) -> str:
    policy = forwards.policy
    facts = {
        "version": VERSION,
        "weights": dict(weights),
        "store": [store.key, store.part],
        "dtype": str(forwards.compute),
        "layout": [policy.layout, policy.shares, forwards.packing.whole, forwards.packing.long_from],
        "rounding": [forwards.device.type, forwards.world.size, forwards.budget],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]


class _Table:
    """An entry that is whole, open for reading."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._index, self._values = (os.open(folder / name, os.O_RDONLY) for name in FILES)
        for fd in (self._index, self._values):
            weakref.finalize(self, os.close, fd)

    def read(self, number: int, s: Sample) -> list[float] | None:
        """The values of sample `number`; None if there is none, or if it had other tokens than `s`."""
        row = os.pread(self._index, INDEX.itemsize, number * INDEX.itemsize)
        if len(row) < INDEX.itemsize:
            return None
        start, tokens, crc = np.frombuffer(row, INDEX)[0].tolist()
        if (tokens, crc) != (len(s.tokens), _crc(s)):
            return None
        data = os.pread(self._values, tokens * VALUE.itemsize, start * VALUE.itemsize)
        values: list[float] = np.frombuffer(data, VALUE).tolist()
        return values if len(values) == tokens else None


def _crc(s: Sample) -> int:
    """A checksum of the tokens and of which of them are scored."""
    return zlib.crc32(np.array([s.tokens, s.mask], "<i4").tobytes())


# ------------------------------------------------------------------------------------------------------------ building


def _ensure(
    forwards: Forwards,
    store: Rows,
    folder: Path,
    progress: Callable[[int, int], None] | None,
    note: Callable[[str], None] | None,
) -> None:
    """Build the entry unless it is whole. Rank 0 decides and writes; all ranks compute and leave together."""
    world = forwards.world
    main, count = world.rank == 0, len(store)
    draft, stack = _Draft(folder), contextlib.ExitStack()

    def begin() -> int:
        if not main:
            return 0
        files.make_dir(folder.parent)
        fault = _fault(folder)
        if fault and os.path.lexists(folder) and note:
            note(f"damaged reference table: {fault}; it is computed anew")
        if fault:
            stack.enter_context(_locked(folder))
            # Another process may have built it while this one waited for the lock.
            fault = _fault(folder)
        return draft.begin() if fault else count

    with stack:
        stack.callback(draft.close)
        first: int = from_first(_together(begin, folder, world), world)
        for low in range(first, count, CHUNK):
            groups = [store.group(i) for i in range(low, min(low + CHUNK, count))]
            logprobs = [outputs.logprobs for outputs in forwards.say(groups, ["logprobs"])]
            done = low + len(groups)
            add = partial(draft.add, samples_of(groups), logprobs, done)
            _together(add if main else _nothing, folder, world)
            if progress:
                progress(done, count)
        _together(draft.finish if main else _nothing, folder, world)
    if world.sum([float((folder / META).exists())])[0] < world.size:
        raise ConfigError(
            f"not every process sees {folder}, which rank 0 wrote; name a folder that all share with --cache, or set "
            "reference: memory"
        )


def _nothing() -> None:
    """What the other ranks write."""


def _together(part: Callable[[], T], folder: Path, world: World) -> T:
    """Run `part` on all ranks; raise EspalierError on all of them if one could not write."""

    def explained() -> T:
        try:
            return part()
        except OSError as error:
            raise EspalierError(
                f"{outcome}: {error.strerror or error}. Free some space, name another folder with --cache, or set "
                "reference: memory; what was computed so far is kept"
            ) from error

    outcome = f"the cache {folder.parent} cannot be written"
    return together(explained, outcome, world, EspalierError)


def _fault(folder: Path) -> str:
    """What keeps `folder` from being an entry of which every byte is as it was written; empty if it is one."""
    try:
        meta = files.unsealed((folder / META).read_bytes())
        if meta is None or (meta["version"], meta["key"]) != (VERSION, folder.name):
            return f"{folder / META} is not as it was written"
        for name, written in meta["files"].items():
            path = folder / name
            if path.stat().st_size != written["bytes"] or files.checksum(path) != written["crc32"]:
                return f"{path} is not as it was written"
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror}"
    return ""


class _Draft:
    """An entry being written, beside its final place. `progress.json` says what of it reached the disk."""

    def __init__(self, folder: Path):
        self.folder, self.partial = folder, files.beside(folder, files.PARTIAL)
        self._fds: list[int] = []
        self._sizes, self._crcs = [0, 0], [0, 0]

    def begin(self) -> int:
        """Make it, or take up the one of a killed build; returns how many groups are in it."""
        self.partial.mkdir(exist_ok=True)
        done = 0
        self._sizes, self._crcs = [0, 0], [0, 0]
        known = self._progress()
        if known is not None:
            done, self._sizes, self._crcs = known["groups"], known["sizes"], known["crcs"]
        self._fds = [os.open(self.partial / name, os.O_RDWR | os.O_CREAT, 0o644) for name in FILES]
        # What stands behind the last whole chunk is half of one.
        for fd, size in zip(self._fds, self._sizes, strict=True):
            os.ftruncate(fd, size)
        return done

    def _progress(self) -> dict[str, Any] | None:
        """What progress.json says, if it and the chunks that it counts are as they were written."""
        try:
            known = files.unsealed((self.partial / PROGRESS).read_bytes())
            if known is None or known["version"] != VERSION:
                return None
            for name, size, crc in zip(FILES, known["sizes"], known["crcs"], strict=True):
                path = self.partial / name
                if path.stat().st_size < size or files.checksum(path, size) != crc:
                    return None
        except FileNotFoundError:
            return None
        return known

    def add(self, samples: Sequence[Sample], logprobs: Sequence[list[float]], done: int) -> None:
        """Append a chunk, after which `done` groups are written."""
        lengths = [len(s.tokens) for s in samples]
        index = np.zeros(len(samples), INDEX)
        index["start"] = self._sizes[1] // VALUE.itemsize + np.cumsum([0, *lengths[:-1]])
        index["tokens"], index["crc"] = lengths, [_crc(s) for s in samples]
        values = np.concatenate([np.array(row, VALUE) for row in logprobs])
        for i, data in enumerate((index.tobytes(), values.tobytes())):
            self._crcs[i] = zlib.crc32(data, self._crcs[i])
            rest = memoryview(data)
            while rest:
                written = os.pwrite(self._fds[i], rest, self._sizes[i])
                rest = rest[written:]
                self._sizes[i] += written
            os.fsync(self._fds[i])
        # Last: progress.json may say less than the files hold, never more.
        known = {"version": VERSION, "groups": done, "sizes": self._sizes, "crcs": self._crcs}
        files.write_atomic(self.partial / PROGRESS, files.sealed(known))

    def finish(self) -> None:
        """Give the entry its name; nothing if none was begun."""
        if not self._fds:
            return
        (self.partial / PROGRESS).unlink(missing_ok=True)
        entries = {}
        for name, size, crc in zip(FILES, self._sizes, self._crcs, strict=True):
            entries[name] = {"bytes": size, "crc32": crc}
        meta = {"version": VERSION, "key": self.folder.name, "files": entries}
        files.write_atomic(self.partial / META, files.sealed(meta))
        files.replace_dir(self.partial, self.folder)

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the right to build an entry; wait while another process of this machine holds it. The right ends with the
    process. On a file system without locks the block runs without one."""
    with open(files.beside(folder, ".lock"), "ab") as stream:
        with contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
