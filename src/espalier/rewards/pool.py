"""Worker processes that grade, under a deadline that is kept from outside.

A thread of its own hands out jobs, reads answers and ends what is late, whatever the rest of this process does: a step
of the sampler neither delays a deadline nor makes an answer late that was there in time.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import selectors
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from espalier.errors import EspalierError
from espalier.rewards.process import WorkerProcess
from espalier.rewards.results import Result
from espalier.rewards.worker import no_answer

BATCH = 64
"""The most answers of one call of a batched reward."""
WAIT = 0.5
"""The most seconds that the owner waits for a result before it looks around."""
LOADING = 120.0
"""Seconds in which a worker must have loaded its rewards."""
TRIES = 3
"""How often in a row a worker may fail to load before the run stops, once one of them could."""
AT_ONCE = 16
"""The most answers that are handed to a worker together, to be graded one after the other."""
QUICK = 0.01
"""Seconds for an answer below which a reward's answers are handed out together; slower ones go to idle workers."""
GRACE = 1.0
"""Seconds that an async reward has beyond the deadline, which its worker keeps itself, one for each answer."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a worker loads: an entry of the catalogue, or `function` of the file `path`, whose content has `sha256`.
    `of` is the entry's name in the catalogue if it is not `name`: one entry may be loaded with several settings."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    path: str = ""
    function: str = ""
    sha256: str = ""
    of: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One answer (the fields of `reward.Answer`, as JSON) for one reward. `alone`: its batch has failed once."""

    ticket: int
    name: str
    answer: dict[str, Any]
    alone: bool = False


@dataclass(slots=True)
class _Seat:
    """A worker and what it does: loading, idle, or jobs. Of a `batch` all are under way since `since`, of others the
    first; `until` is its deadline."""

    worker: WorkerProcess
    until: float
    since: float = 0.0
    ready: bool = False
    number: int = 0
    batch: bool = False
    jobs: list[Job] = field(default_factory=list)


class Pool:
    """Grades answers with `specs` in up to `workers` processes.

    timeout: seconds for one call. memory: bytes that one process may have of its own. Every answer gets a result: what
    hangs, ends its process or closes its pipe costs one error each, no later than the deadline, and its process is
    replaced. So is a worker that has more children after an answer than it had after loading. A batch that fails is
    graded again, each of its answers alone; after one that was late, the reward's batches are half as large.
    """

    def __init__(self, specs: Sequence[Spec], *, timeout: float, workers: int, memory: int):
        self.timeout, self.most = timeout, workers
        self.first = {"rewards": [asdict(spec) for spec in specs], "timeout": timeout, "memory": memory}
        self.replaced: dict[str, int] = {}
        """How often workers were replaced because a reward had left processes behind, by reward."""
        self.repeated: dict[str, int] = {}
        """How often a batch failed and was graded again one by one, by reward."""
        self.notes: dict[str, str] = {}
        self._batch: dict[str, bool] = {}
        self._waiting: dict[str, deque[Job]] = {spec.name: deque() for spec in specs}
        self._seconds: dict[str, float] = {}
        self._sizes: dict[str, int] = {}
        self._fresh: list[tuple[int, str, Result]] = []
        self._seats: list[_Seat] = []
        self._count = 0
        self._failures = 0
        self._submitted: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[int, str, Result] | None] = queue.SimpleQueue()
        self._failure: Exception | None = None
        self._stopping = False
        self._woken = False
        self._started = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name="graders", daemon=True)

    # ------------------------------------------------------------------------------------------ called by the owner

    def start(self) -> dict[str, str]:
        """Start the first worker; what is to be said of each reward's form, by name. Raises EspalierError if a reward
        cannot be loaded."""
        atexit.register(self.close)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            failure = self._failure
            self.close()
            raise failure
        return self.notes

    def submit(self, job: Job) -> None:
        """Queue one answer for one reward."""
        self._submitted.put(job)
        self._wake()

    def results(self, *, wait: bool) -> list[tuple[int, str, Result]]:
        """The results that are there, as (ticket, reward, result); with `wait`, at least one if it comes within half a
        second, so that a signal to this process is heeded. Raises EspalierError if no worker can be started any
        more."""
        results: list[tuple[int, str, Result]] = []
        while wait or not self._results.empty():
            try:
                entry = self._results.get(timeout=WAIT)
            except queue.Empty:
                break
            if entry is None:
                self._results.put(None)
                raise self._failure or EspalierError("the grading processes are closed")
            results.append(entry)
            wait = False
        return results

    def close(self) -> None:
        """End all workers and what they have started. Results that have not been fetched are lost."""
        atexit.unregister(self.close)
        self._stopping = True
        self._woken = False
        if self._thread.is_alive():
            self._wake()
            self._thread.join()
        for fd in (self._wake_read, self._wake_write):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._wake_read = self._wake_write = -1

    def _wake(self) -> None:
        if self._woken:
            return
        self._woken = True
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_write, b"x")

    # ------------------------------------------------------------------------------------------- the thread's own

    def _run(self) -> None:
        try:
            self._seat()
            while not self._stopping:
                self._take()
                self._hand_out()
                self._listen()
                self._expire()
        except Exception as error:
            self._failure = error
        finally:
            self._started.set()
            self._results.put(None)
            for seat in list(self._seats):
                self._leave(seat)
            self._selector.close()

    def _seat(self) -> None:
        worker = WorkerProcess(self.first)
        seat = _Seat(worker, time.monotonic() + LOADING)
        self._seats.append(seat)
        for fd in (worker.answers, worker.errors, worker.exits):
            if fd >= 0:
                self._selector.register(fd, selectors.EVENT_READ, (seat, fd))

    def _leave(self, seat: _Seat) -> None:
        for fd in (seat.worker.answers, seat.worker.errors, seat.worker.exits, seat.worker.jobs):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(fd)
        self._seats.remove(seat)
        seat.worker.end()

    def _take(self) -> None:
        while not self._submitted.empty():
            job = self._submitted.get()
            self._waiting[job.name].append(job)

    def _hand_out(self) -> None:
        """Give the oldest jobs to idle workers, and start a worker if more jobs wait than workers are free."""
        for seat in self._seats:
            if seat.ready and not seat.jobs:
                jobs = self._next()
                if not jobs:
                    return
                self._give(seat, jobs)
        free = sum(not seat.jobs for seat in self._seats)
        waiting = sum(len(jobs) for jobs in self._waiting.values())
        while len(self._seats) < self.most and free < waiting:
            self._seat()
            free += 1

    def _next(self) -> list[Job]:
        """The job that has waited longest, with others of the same reward: as many as a batch takes, or a worker's
        share of those that are quickly graded."""
        queues = [jobs for jobs in self._waiting.values() if jobs]
        if not queues:
            return []
        oldest = min(queues, key=lambda jobs: jobs[0].ticket)
        first = oldest.popleft()
        jobs, most = [first], 1
        if self._batch[first.name]:
            most = 1 if first.alone else self._sizes.get(first.name, BATCH)
        elif self._seconds.get(first.name, QUICK) < QUICK:
            most = min(AT_ONCE, 1 + len(oldest) // self.most)
        while oldest and len(jobs) < most and oldest[0].alone == first.alone:
            jobs.append(oldest.popleft())
        return jobs

    def _give(self, seat: _Seat, jobs: list[Job]) -> None:
        self._count += 1
        name = jobs[0].name
        seat.number, seat.jobs, seat.batch = self._count, jobs, self._batch[name]
        self._clock(seat)
        seat.worker.send({"job": self._count, "reward": name, "answers": [job.answer for job in jobs]})
        if seat.worker.outgoing:
            self._selector.register(seat.worker.jobs, selectors.EVENT_WRITE, (seat, seat.worker.jobs))

    def _clock(self, seat: _Seat) -> None:
        seat.since = time.monotonic()
        seat.until = seat.since + self.timeout + (GRACE if seat.batch else 0.0)

    def _listen(self) -> None:
        """Wait for the next event, at most until the next deadline."""
        limits = [seat.until for seat in self._seats if seat.jobs or not seat.ready]
        wait = max(0.0, min(limits) - time.monotonic()) if limits else None
        if any(seat.worker.exits < 0 for seat in self._seats):
            wait = 0.2 if wait is None else min(wait, 0.2)
        for key, _ in self._selector.select(wait):
            if key.data is None:
                # The flag falls after the pipe is empty: a submit in between would write a byte that this read
                # swallows, and leave the flag up, so that nothing ever woke this thread again. It falls before jobs
                # are taken, so that the job of a submit which still saw it up is among them.
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 65536)
                self._woken = False
                continue
            seat, fd = key.data
            if seat in self._seats:
                self._heard(seat, fd)

    def _heard(self, seat: _Seat, fd: int) -> None:
        worker = seat.worker
        if fd == worker.jobs:
            worker.write()
            if not worker.outgoing:
                self._selector.unregister(worker.jobs)
        elif fd == worker.errors:
            if not worker.read_errors():
                self._selector.unregister(worker.errors)
        else:
            # An answer that was written before the process ended counts.
            self._answers(seat)
            ended = fd == worker.exits or worker.exits < 0
            if seat in self._seats and ended and worker.process.poll() is not None:
                self._lost(seat, worker.cause_of_death())

    def _answers(self, seat: _Seat) -> None:
        name = seat.jobs[0].name if seat.jobs else ""
        try:
            for entries in seat.worker.read():
                self._answer(seat, entries)
                if seat not in self._seats:
                    return
        except EOFError:
            self._lost(seat, seat.worker.cause_of_death())
        except (KeyError, TypeError, ValueError) as error:
            self._lost(seat, f"wrote something else than its answer to its pipe ({error})"[:200])
        else:
            # While a call runs it may well have children.
            if name and not seat.jobs and seat.worker.children() - seat.worker.kept:
                self.replaced[name] = self.replaced.get(name, 0) + 1
                self._leave(seat)
        finally:
            # Whoever gets an answer finds no process that its reward has left.
            fresh, self._fresh = self._fresh, []
            for entry in fresh:
                self._results.put(entry)

    def _answer(self, seat: _Seat, entries: dict[str, Any]) -> None:
        worker = seat.worker
        if "failed" in entries:
            self._leave(seat)
            self._unloadable(f"{entries['failed']}: {entries['cause']}")
        elif "ready" in entries:
            worker.grader = int(entries["pid"])
            seat.ready, worker.kept, self._failures = True, worker.children(), 0
            self._batch = {name: bool(form["batch"]) for name, form in entries["ready"].items()}
            self.notes = {name: str(form["note"]) for name, form in entries["ready"].items()}
            self._started.set()
        elif entries["job"] == seat.number and seat.jobs:
            if "broken" in entries:
                self._again(seat.jobs)
                seat.jobs = []
            else:
                self._done(seat, [Result.from_json(result) for result in entries["results"]])
            if entries["worn"]:
                self._requeue(seat.jobs)
                self._leave(seat)

    def _done(self, seat: _Seat, results: list[Result]) -> None:
        for job, result in list(zip(seat.jobs[: len(results)], results, strict=True)):
            self._fresh.append((job.ticket, job.name, result))
        name, began = seat.jobs[0].name, seat.since
        seat.jobs = seat.jobs[len(results) :]
        self._clock(seat)
        took = (seat.since - began) / len(results)
        self._seconds[name] = 0.9 * self._seconds.get(name, took) + 0.1 * took

    def _expire(self) -> None:
        now = time.monotonic()
        for seat in list(self._seats):
            if now < seat.until or (seat.ready and not seat.jobs):
                continue
            # It may have answered since the last look.
            self._answers(seat)
            if seat in self._seats and (seat.jobs or not seat.ready):
                if len(seat.jobs) > 1 and seat.batch:
                    # So many may be too much for one call.
                    self._sizes[seat.jobs[0].name] = max(1, len(seat.jobs) // 2)
                self._lost(seat, no_answer(self.timeout) if seat.ready else f"not loaded within {LOADING:g} s")

    def _lost(self, seat: _Seat, cause: str) -> None:
        """A worker that is of no use any more: end it, and account for what it was doing."""
        jobs, ready = seat.jobs, seat.ready
        self._leave(seat)
        if not ready:
            self._unloadable(cause)
        elif seat.batch and len(jobs) > 1:
            self._again(jobs)
        elif jobs:
            self._results.put((jobs[0].ticket, jobs[0].name, Result(error=cause)))
            self._requeue(jobs[1:])

    def _again(self, jobs: list[Job]) -> None:
        """Grade the answers of a batch that failed each alone, before anything else."""
        self.repeated[jobs[0].name] = self.repeated.get(jobs[0].name, 0) + 1
        self._requeue([Job(job.ticket, job.name, job.answer, alone=True) for job in jobs])

    def _requeue(self, jobs: list[Job]) -> None:
        for job in reversed(jobs):
            self._waiting[job.name].appendleft(job)

    def _unloadable(self, cause: str) -> None:
        self._failures += 1
        if not self._started.is_set() or self._failures >= TRIES:
            raise EspalierError(f"the rewards cannot be loaded: {cause}")


def memory_limit(workers: int) -> int:
    """Bytes that one worker may have of its own: half of the machine's memory for all of them, at least 1 GiB each."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(2**30, total // 2 // workers)


def cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def at(path: str) -> Path:
    """A user's file, as workers load it: absolute, whatever folder a worker stands in."""
    return Path(path).expanduser().resolve()
