"""One worker process as its parent sees it: its pipes, its deadline, and everything that descends from it.

A reward may be wrong in any way, and its process and all that it started still end. This is no sandbox: rewards run
with the rights of whoever started the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from espalier.rewards import descent, worker

LONGEST = 16 * 2**20
"""Bytes of an answer without a line end, above which what a worker writes is no answer."""
CLOSED = "closed the descriptors that it answers on"
TAIL = 4096
"""Bytes of stderr that are kept."""


class WorkerProcess:
    """A started worker: `jobs` and `answers` are this end of its pipes, both non-blocking; `exits` is a descriptor that
    is readable once it has ended (-1 if the system has none)."""

    def __init__(self, first: dict[str, Any]):
        self.mark = uuid.uuid4().hex
        jobs, self.jobs = os.pipe()
        self.answers, answers = os.pipe()
        self.errors, errors = os.pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "espalier.rewards.worker", *map(str, (jobs, answers, os.getpid()))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(jobs, answers),
                start_new_session=True,
                env=environment(self.mark),
            )
        except BaseException:
            for fd in (self.jobs, self.answers, self.errors):
                os.close(fd)
            raise
        finally:
            for fd in (jobs, answers, errors):
                os.close(fd)
        # The keeper; what grades is its child, of which the first answer gives the number.
        self.pid = self.grader = self.process.pid
        for fd in (self.jobs, self.answers, self.errors):
            os.set_blocking(fd, False)
        self.exits = _exits(self.pid)
        self.outgoing = b""
        self.incoming = b""
        self.tail = b""
        self.kept: frozenset[int] = frozenset()
        self.send(first)

    def send(self, entries: dict[str, Any]) -> None:
        """Queue one line and write what the pipe takes. What JSON does not have (a date in a column) goes as text."""
        self.outgoing += json.dumps(entries, default=str).encode() + b"\n"
        self.write()

    def write(self) -> None:
        """Write what the pipe takes. A worker that reads no more is seen by its end or by its deadline."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self.outgoing:
                self.outgoing = self.outgoing[os.write(self.jobs, self.outgoing) :]

    def read(self) -> list[dict[str, Any]]:
        """The lines that have come, as objects. Raises EOFError at the end of the pipe, ValueError if something else
        than answers comes."""
        data, ended = _available(self.answers)
        self.incoming += data
        *lines, self.incoming = self.incoming.split(b"\n")
        if len(self.incoming) > LONGEST:
            raise ValueError(f"{LONGEST >> 20} MiB without a line end")
        entries = [json.loads(line) for line in lines]
        if not all(isinstance(entry, dict) for entry in entries):
            raise ValueError("no JSON objects")
        if ended and not entries:
            raise EOFError
        return entries

    def read_errors(self) -> bool:
        """Keep the end of what was written to stderr; False at its end."""
        data, ended = _available(self.errors)
        self.tail = (self.tail + data)[-TAIL:]
        return not ended

    def children(self) -> frozenset[int]:
        """The processes that what it runs has started and that have not been waited for, adopted ones included."""
        return descent.children(self.grader)

    def cause_of_death(self) -> str:
        """How it ended, with the last line of its stderr."""
        with contextlib.suppress(OSError):
            self.read_errors()
        try:
            code = self._code()
        except subprocess.TimeoutExpired:
            return CLOSED
        if code == worker.CLOSED:
            return CLOSED
        if code < 0:
            how = f"its process was ended by {signal.Signals(-code).name}"
        else:
            how = f"its process ended with exit code {code}"
        lines = self.tail.decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{how}; its last words: {last[:200]}" if last else how

    def _code(self) -> int:
        """Its exit code. Raises TimeoutExpired if it runs on."""
        until = time.monotonic() + 0.1
        while descent.alive(self.grader) and time.monotonic() < until:
            time.sleep(0.005)
        # Behind a grader that has ended, its keeper ends what that has left.
        return self.process.wait(0.0 if descent.alive(self.grader) else 2.0)

    def end(self) -> None:
        """Kill it and everything that descends from it, and close the pipes."""
        for pid in (self.pid, self.grader):
            # Stopped, they start nothing while their descendants are looked up.
            descent.kill(pid, signal.SIGSTOP)
        descent.end_all(self.pid, self.mark)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        descent.kill(self.pid, signal.SIGKILL)
        self.process.wait()
        for fd in (self.jobs, self.answers, self.errors, self.exits):
            if fd >= 0:
                os.close(fd)


def _available(fd: int) -> tuple[bytes, bool]:
    """What can be read without waiting, at most 1 MiB, and whether the pipe has ended behind it."""
    data = b""
    while len(data) < 2**20:
        try:
            piece = os.read(fd, 65536)
        except BlockingIOError:
            return data, False
        if not piece:
            return data, True
        data += piece
    return data, False


def _exits(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def environment(mark: str) -> dict[str, str]:
    """This process's environment, with the mark; hashes of texts are the same in each worker, one thread each unless
    the user has set it, and the package is found where it is found here."""
    package = str(Path(worker.__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH", "")
    return {
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        **os.environ,
        "PYTHONPATH": os.pathsep.join([package, *([inherited] if inherited else [])]),
        descent.MARK: mark,
    }
