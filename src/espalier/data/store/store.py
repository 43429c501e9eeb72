"""Tokenised data: rows are read as a stream, rendered once, and cached on disk under what they contain.

Memory is constant: a build holds one row and the file buffers, and an open store maps a few numbers a group.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from espalier.data.columns.ledger import Ledger
from espalier.data.render.drafts import Rendered, RenderedGroup
from espalier.data.store import entry as disk
from espalier.data.store.rejected import record, rejections, restore
from espalier.data.store.stats import StoreStats
from espalier.data.store.task_json import from_line, to_line
from espalier.errors import ConfigError, DataError, RowError
from espalier.types import Example, Origin, Sample, Task

if TYPE_CHECKING:
    from espalier.data.read import Source
    from espalier.data.render.renderer import Renderer

_PROGRESS_EVERY = 256
_SLOW_S = 2.0
"""Seconds from which on the user hears what it took to verify an entry."""
_BUCKET = 1 << 18
_BYTE = np.dtype("u1")


class Store:
    """The groups of one data source; a group holds the samples of one row.

    `part` renames the part of samples that rendering left in "main". `key` identifies contents and rendering;
    `source` and `path` are the source's; `folder` holds the files.
    """

    def __init__(self, folder: Path, meta: dict[str, Any], *, key: str, source: Source, part: str) -> None:
        self.folder, self.key, self.part = folder, key, part
        self.source, self.path = source.name, source.path
        self.stats = StoreStats.from_json(meta["stats"])
        self.columns = Ledger.from_json(meta["columns"])
        """What was read of the rows, and what was not."""
        self.lengths: NDArray[np.int32] = disk.column(folder, "tokens")
        """Tokens of each group, all its samples together, a shared prefix counted for each."""
        self.samples_per_group: NDArray[np.int32] = disk.column(folder, "samples")
        self.hashes: NDArray[np.uint64] = disk.column(folder, "hash")
        """64 bits of each group's tokens, and of its task: equal for exact duplicates."""
        self.prompts: NDArray[np.uint64] = disk.column(folder, "prompt")
        """64 bits of what decides a group's side of a split: its prompt's tokens if it is a task, or if responses or
        steps are judged, else those of the whole group."""
        self.dimensions = self.stats.dimensions
        """What grades are about. Set to other names, `group` leaves its own grades out and gives nan for each."""
        self._first = disk.column(folder, "first")
        self._lines = disk.column(folder, "line")
        self._judged = disk.column(folder, "judged")
        self._judged_end = int(meta["files"]["judged.bin"]["bytes"])
        self._parts = [part if name == "main" else name for name in meta["parts"]]
        # Keys of samples differ between stores in 22 bits that follow from the contents, and inside
        # a store by number: 40 bits. Two stores share their 22 bits by chance once in 4 million.
        digest = hashlib.sha256(f"{key}\n{part}".encode()).digest()
        self._base = (int.from_bytes(digest[:8], "little") & 0x3FFFFF) << 40
        self._tasks = disk.column(folder, "task") if disk.TASKS[0] + ".bin" in meta["files"] else None
        self._tasks_end = int(meta["files"].get("tasks.bin", {"bytes": 0})["bytes"])
        self._fds: list[int] = []
        for name in ("samples", "tokens", "runs", "judged", *(("tasks",) if self._tasks is not None else ())):
            self._fds.append(os.open(folder / f"{name}.bin", os.O_RDONLY))
        weakref.finalize(self, _close, self._fds)

    def __len__(self) -> int:
        return len(self._first)

    def group(self, i: int) -> list[Sample]:
        """New Sample objects of group `i` (0 <= i < len), with `group` = i and keys that no other sample has. If some
        rows have grades, all reads have: nan if they are not known.

        Raises IndexError outside that range, and DataError if the files were cut short.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"group {i} of {self.source}, which has {len(self)}")
        samples, tokens, runs, judged = self._fds[:4]
        first, count = int(self._first[i]), int(self.samples_per_group[i])
        # Samples of a group stand side by side in every file: three reads, whatever their number.
        table = disk.read_at(samples, disk.SAMPLE, first, count, self.folder)
        size, changes = int(table["tokens"].sum()), int(table["runs"].sum())
        ids = disk.read_at(tokens, disk.TOKEN, int(table["token"][0]), size, self.folder).tolist()
        run = disk.read_at(runs, disk.RUN, int(table["run"][0]), changes, self.folder)
        mask = np.repeat(run["trained"], run["length"]).tolist()
        weights = np.repeat(run["weight"], run["length"]).tolist()
        group, start = [], 0
        for j, row in enumerate(table.tolist()):
            _, length, _, _, part, stop = row
            end = start + length
            sample = Sample(ids[start:end], mask[start:end], weights[start:end], group=i)
            sample.part, sample.stop = self._parts[part], disk.STOPS[stop]
            sample.key = self._base + first + j
            group.append(sample)
            start = end
        if self._judged_end:
            at = int(self._judged[i])
            behind = int(self._judged[i + 1]) if i + 1 < len(self) else self._judged_end
            if behind > at:
                data = disk.read_at(judged, _BYTE, at, behind - at, self.folder)
                disk.unpack_judgements(group, data.tobytes())
        if self.dimensions:
            for s in group:
                if not s.grades or self.dimensions != self.stats.dimensions:
                    s.grades = [(math.nan,) * len(self.dimensions) for _ in s.reads]
        return group

    @property
    def holds_tasks(self) -> bool:
        """Whether its groups are the prompts of tasks."""
        return self._tasks is not None

    def task(self, i: int) -> Task:
        """The task that group `i` is the prompt of. Raises IndexError outside 0 <= i < len, TypeError for a store of
        other examples, DataError if the files were cut short."""
        if not 0 <= i < len(self):
            raise IndexError(f"task {i} of {self.source}, which has {len(self)}")
        if self._tasks is None:
            raise TypeError(f"{self.source} holds no tasks")
        at = int(self._tasks[i])
        end = int(self._tasks[i + 1]) if i + 1 < len(self) else self._tasks_end
        return from_line(disk.read_at(self._fds[4], _BYTE, at, end - at, self.folder).tobytes(), self.origin(i))

    def origin(self, i: int) -> Origin:
        """Where group `i` was read."""
        return Origin(self.source, int(self._lines[i]))

    def groups_of(self, line: int, start: int) -> range:
        """The groups of a line of the source, from group `start` on, which is the first one behind earlier lines."""
        end = start
        while end < len(self) and self._lines[end] == line:
            end += 1
        return range(start, end)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def open_store(
    source: Source,
    read_rows: Callable[[], Iterator[Example | RowError]],
    renderer: Renderer,
    *,
    cache: Path,
    content_key: str,
    options: str = "",
    part: str = "main",
    on_bad_row: Literal["stop", "skip"] = "stop",
    on_progress: Callable[[int], None] | None = None,
    ledger: Ledger | None = None,
    note: Callable[[str], None] | None = None,
) -> Store:
    """The tokens of `source`, from the cache if they are there, else read, rendered and cached.

    content_key: what the source contains, such as `content_hash` of a file, or name and revision of a hub data set.
    options: how its rows are read, beyond `source.format`; part of the entry's key, as the renderer's fingerprint is.
    on_bad_row: "skip" lists rows that cannot be used in the entry (`write_rejected` copies them out); "stop" raises the
        first as a RowError, caches nothing, and does not accept an entry that lists any.
    on_progress: called with the number of rows read so far, every 256 and at the end; not for a cached source.
    ledger: what `read_rows` counts of the columns that it reads; kept in the entry, so that a cached source says the
        same.
    note: called with a line for the user: an entry was damaged, or took long to verify. Every byte of a cached entry is
        verified; one that is damaged is built anew.

    Processes that open the same source at the same time build it once. Raises RowError; DataError if the source has no
    row that can be used, or columns that must not be left out without a word; EspalierError if the cache cannot be
    written.
    """
    key = _entry_key(content_key, renderer.fingerprint, source.format, options)
    home = cache / "tokens"
    meta = _verified(home / key, note)
    if meta is None:
        with disk.locked(home, key):
            # Another process may have built it while this one waited for the lock.
            meta = _verified(home / key)
            if meta is None:
                with disk.building(home, key) as folder:
                    stop = on_bad_row == "stop"
                    _build(folder, key, source, read_rows, renderer, stop, on_progress, ledger or Ledger())
                meta = _verified(home / key)
    if meta is None:
        raise DataError(f"{home / key}: the token cache is damaged as soon as written. Use another folder with --cache")
    store = Store(home / key, meta, key=key, source=source, part=part)
    if on_bad_row == "stop" and store.stats.rejected:
        raise restore(next(rejections(store.folder)), source.path)
    store.columns.refuse(source.path)
    if not len(store):
        counts = [f"{reason} ({count})" for reason, count in store.stats.reasons.items()]
        counts += [f"{note} ({count})" for note, count in store.columns.notes.items()]
        reasons = ", ".join(counts) or "it has no rows"
        rejected = store.folder / "rejected.jsonl"
        raise DataError(f"{source.path}: no row can be used: {reasons}. See {rejected}")
    return store


def _verified(folder: Path, note: Callable[[str], None] | None = None) -> dict[str, Any] | None:
    """The meta of an entry of which every byte is as it was written; None if there is none."""
    began = time.perf_counter()
    try:
        meta = disk.read_meta(folder)
    except disk.Damaged as error:
        if note:
            note(f"damaged token cache: {error}; it is built anew from the data")
        return None
    seconds = time.perf_counter() - began
    if meta is not None and note and seconds >= _SLOW_S:
        note(f"verified {disk.bytes_of(meta) / 1e9:.1f} GB of cached tokens in {seconds:.0f} s")
    return meta


def _entry_key(*names: str) -> str:
    """The name of an entry: equal if the layout and all `names` are. Each is hashed by itself, so that none can hold a
    border."""
    text = "\n".join(hashlib.sha256(name.encode()).hexdigest() for name in (str(disk.VERSION), *names))
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _build(
    folder: Path,
    key: str,
    source: Source,
    read_rows: Callable[[], Iterator[Example | RowError]],
    renderer: Renderer,
    stop: bool,
    on_progress: Callable[[int], None] | None,
    ledger: Ledger,
) -> None:
    """Write the entry `key`: rows one by one, in the order of the source."""
    stats, stop_ids, bos_id = StoreStats(), frozenset(renderer.stop_ids), renderer.bos_id
    # Only what writes stands inside `writing`: an OSError of reading or rendering is not about the
    # cache.
    with disk.writing(folder.parent):
        writer = disk.Writer(folder)
    try:
        for example in read_rows():
            if ledger.early:
                ledger.refuse(source.path)
            rendered = _render(renderer, example, stats, source.path)
            if isinstance(rendered, RowError):
                if stop:
                    raise rendered
                stats.reject(rendered.reason)
                with disk.writing(folder.parent):
                    writer.reject(record(rendered, stats.rows, source.name, source.path))
            else:
                line, group = rendered
                samples = [one.sample for one in group]
                stats.keep(group, stop_ids, bos_id)
                digest = prompt = _digest([s.tokens for s in samples])
                task = b""
                if isinstance(group, RenderedGroup) and group.kind in ("ranking", "steps"):
                    prompt = _digest([_prompt(samples[0])])
                if isinstance(group, RenderedGroup) and group.task is not None:
                    task = to_line(group.task)
                    digest = _digest([samples[0].tokens, list(to_line(replace(group.task, columns={})))])
                with disk.writing(folder.parent):
                    writer.add(samples, line, digest, prompt, task)
            if on_progress and stats.rows % _PROGRESS_EVERY == 0:
                on_progress(stats.rows)
        with disk.writing(folder.parent):
            writer.flush()
            stats.duplicates = stats.kept - _distinct(folder / "group_hash.bin")
            meta = {"source": source.name, "stats": stats.to_json(), "columns": ledger.to_json()}
            writer.finish(key, meta)
    except BaseException:
        writer.abandon()
        raise
    if on_progress:
        on_progress(stats.rows)


def _render(
    renderer: Renderer, example: Example | RowError, stats: StoreStats, path: str
) -> tuple[int, Sequence[Rendered]] | RowError:
    """The line and the samples of a row, or why it has none."""
    if isinstance(example, RowError):
        return example
    try:
        rendered = renderer.render(example, stats.rows)
        if not rendered or not all(one.sample.tokens for one in rendered):
            raise RowError("no tokens", expected="at least one token in every sample")
        if isinstance(rendered, RenderedGroup):
            _agree(rendered, stats.dimensions)
    except RowError as e:
        return e.at(f"{path}:{example.origin.line}")
    return example.origin.line, rendered


def _agree(group: RenderedGroup, dimensions: tuple[str, ...]) -> None:
    """Leave out grades that are about other dimensions than those of the rows before; of a run that learns from grades
    alone, raise RowError."""
    if not dimensions or group.dimensions in ((), dimensions):
        return
    if group.learned:
        got, expected = ", ".join(group.dimensions), f"{', '.join(dimensions)}, as in the rows before"
        raise RowError("scores in other dimensions", got=got, expected=expected)
    group.drop("grade in another dimension", len(group))
    group.dimensions = ()
    for one in group:
        one.sample.grades = []


def _prompt(s: Sample) -> list[int]:
    """The tokens before the first trained one, which all samples of a judged group share."""
    return s.tokens[: s.mask.index(True)] if True in s.mask else s.tokens


def _digest(runs: Sequence[Sequence[int]]) -> int:
    """64 bits of runs of tokens, such as those of a group, sample by sample."""
    state = hashlib.blake2b(digest_size=8)
    for tokens in runs:
        state.update(len(tokens).to_bytes(8, "little"))
        state.update(np.array(tokens, disk.TOKEN).tobytes())
    return int.from_bytes(state.digest(), "little")


def _distinct(path: Path) -> int:
    """How many different numbers a file of uint64 holds, a bucket of them in memory at a time."""
    # Equal numbers fall into the same bucket, so that buckets can be counted one after another.
    total = path.stat().st_size // 8
    buckets = max(1, -(-total // _BUCKET))
    distinct = 0
    for bucket in range(buckets):
        kept = [np.zeros(0, "<u8")]
        with open(path, "rb") as stream:
            while len(chunk := np.fromfile(stream, "<u8", _BUCKET)):
                kept.append(chunk[chunk % np.uint64(buckets) == bucket])
        distinct += len(np.unique(np.concatenate(kept)))
    return distinct


def split(store: Store, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of groups to train on and to hold out, both ascending; about `fraction` of the groups are held out.

    A group's side follows from its tokens, `seed` and `fraction` alone, so that exact duplicates are on the same side,
    in this store and in others, and rows added to a file move no other row. Of judged responses, steps and tasks it
    follows from the prompt's tokens, so that no prompt is on both sides: a model that has seen other
    answers to it would look better than it is. If that leaves a side empty, the tokens nearest to it change sides.
    Raises ConfigError for a fraction outside (0, 1), and if all groups are alike.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"eval_fraction got {fraction}, expected more than 0 and less than 1", key="eval_fraction")
    place = _mix(store.prompts ^ _mix(np.array([seed % (1 << 64)], np.uint64)))
    if len(place) < 2 or (place == place[0]).all():
        what = "tokens" if len(np.unique(store.hashes)) < 2 else "prompt"
        raise ConfigError(
            f"eval_fraction {fraction}: {store.source} has {len(place)} usable row(s) and all hold the same {what}; "
            "expected two that differ. Name held-out files with --eval-data instead",
            key="eval_fraction",
        )
    # The 53 upper bits as a number in [0, 1), which a float holds exactly.
    held = (place >> np.uint64(11)) * 2.0**-53 < fraction
    if not held.any():
        held = place == place.min()
    elif held.all():
        held = place != place.max()
    return np.flatnonzero(~held), np.flatnonzero(held)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit numbers in which every input bit reaches every output bit (the finaliser of SplitMix64)."""
    # Overflow is meant: numbers wrap at 2^64.
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
