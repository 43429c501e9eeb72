"""Running the children of `espalier overopt`, some at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, Protocol

from espalier.commands.overopt_grid import Grid, Job
from espalier.errors import EspalierError

Note = Callable[[str], None]


class Runner(Protocol):
    """Runs command lines of espalier. A call returns the exit code, with all output in `log`; `stop` ends those that
    run, from another thread."""

    def __call__(self, argv: Sequence[str], log: Path) -> int: ...

    def stop(self) -> None: ...


class Processes:
    """`Runner` by processes of this interpreter."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._stopped = threading.Lock(), False

    def __call__(self, argv: Sequence[str], log: Path) -> int:
        with log.open("ab") as output:
            with self._lock:
                if self._stopped:
                    return -signal.SIGTERM
                line = [sys.executable, "-m", "espalier", *argv]
                child = subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT, env=os.environ)
                self._running.add(child)
            code = child.wait()
            self._running.discard(child)
            return code

    def stop(self) -> None:
        """Children save their last step on this signal."""
        with self._lock:
            self._stopped = True
            for child in list(self._running):
                child.terminate()


def work(grid: Grid, run: Runner, note: Note, jobs: int = 1) -> None:
    """Run the children that are not finished, at most `jobs` at a time. Raises EspalierError for one that fails or
    was stopped, once those beside it have ended; KeyboardInterrupt if stopped, once they have saved."""
    progress = _Progress(grid, note, jobs)
    for stage in grid.stages:
        with _terminable(), ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(_chain, chain, run, progress) for chain in stage]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            except BaseException:
                run.stop()
                raise
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
            for future in futures:
                if not future.cancelled():
                    future.result()


def _chain(chain: Sequence[Job], run: Runner, progress: _Progress) -> None:
    for job in chain:
        if job.done:
            continue
        progress.begin(job)
        job.write(finished=False)
        began = time.monotonic()
        code = run(job.argv, job.log)
        if code:
            raise EspalierError(
                f"{job.name} ended with exit code {code}; {job.log} says why. Repair it, then give the command again"
            )
        if not job.complete:
            raise EspalierError(f"{job.name} was stopped before its end; give the command again, and it goes on")
        job.write(finished=True)
        progress.end(job, time.monotonic() - began)


class _Progress:
    """Lines about children as they begin and end, with the time that is left from the first policy on."""

    def __init__(self, grid: Grid, note: Note, jobs: int) -> None:
        self.note, self.side_by_side, self.lock = note, jobs, threading.Lock()
        self.left = [job for job in grid.jobs if not job.done]
        self.total, self.steps, self.seconds = len(grid.jobs), 0, 0.0

    def begin(self, job: Job) -> None:
        with self.lock:
            self.note(f"{job.name} begins; {len(self.left)} of {self.total} are left")

    def end(self, job: Job, seconds: float) -> None:
        with self.lock:
            self.left.remove(job)
            if not job.steps:
                return
            self.steps, self.seconds = self.steps + job.steps, self.seconds + seconds
            steps = sum(other.steps for other in self.left)
            rest = steps * self.seconds / self.steps / self.side_by_side
            self.note(f"{job.name} took {seconds / 60:.1f} minutes; policies that are left take about {rest / 60:.0f}")


@contextmanager
def _terminable() -> Iterator[None]:
    """Meanwhile SIGTERM is a KeyboardInterrupt, so that no child is left behind; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt("children have saved; the same command goes on")
