"""Which processes came from a worker, and their end. Without /proc there are none to see."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "ESPALIER_GRADER"
"""A variable of the environment that every descendant of a worker inherits, so that one which left its session and
whose parents have ended is still known."""
PROC = Path("/proc")


def end_all(root: int, mark: str, seconds: float = 1.0) -> None:
    """Kill what descends from `root`, itself aside, until nothing is left of it or the time is over."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        left = descendants(root, mark)
        if not left:
            return
        for pid in left:
            kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def kill(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def children(pid: int) -> frozenset[int]:
    """The children of a process; none if it has ended."""
    pids: set[int] = set()
    with contextlib.suppress(OSError):
        folder = f"{PROC}/{pid}/task"
        for task in os.listdir(folder):
            with open(f"{folder}/{task}/children", "rb") as file:
                pids.update(int(child) for child in file.read().split())
    return frozenset(pids)


def alive(pid: int) -> bool:
    """Whether a process still runs."""
    return any(stat.pid == pid and not stat.ended for stat in _stats([str(pid)]))


def descendants(root: int, mark: str) -> list[int]:
    """Living processes that came from `root`: by parentage, by session, and by the mark in their environment; itself
    aside."""
    stats = {stat.pid: stat for stat in _stats(os.listdir(PROC) if PROC.is_dir() else [])}
    known = {root}
    grew = True
    while grew:
        more = {pid for pid, stat in stats.items() if stat.parent in known} - known
        grew = bool(more)
        known |= more
    for pid, stat in stats.items():
        if pid not in known and (stat.session == root or _marked(pid, mark)):
            known.add(pid)
    return sorted(pid for pid in known - {root} if pid in stats and not stats[pid].ended)


class _Stat:
    """What the system says of a process. `ended`: it is a zombie that its parent has not looked at."""

    __slots__ = ("ended", "parent", "pid", "session")

    def __init__(self, pid: int, text: str):
        # The name in brackets may hold blanks and brackets itself.
        state, parent, _, session = text.rpartition(")")[2].split()[:4]
        self.pid, self.parent, self.session, self.ended = pid, int(parent), int(session), state in "ZX"


def _stats(names: list[str]) -> Iterator[_Stat]:
    for name in names:
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                yield _Stat(int(name), (PROC / name / "stat").read_text(encoding="utf-8", errors="replace"))


def _marked(pid: int, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False
