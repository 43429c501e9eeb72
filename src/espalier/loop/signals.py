"""A request to stop, which a loop honours between two steps or by giving a draw up."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

AFTER_STEP = "saving after this step, then stopping"
AT_END = "the last step is made already, and the run ends as it would have"
"""What a stop signal leads to in the middle of an update, and after the last one."""
_notices: list[str] = []
"""What it leads to now, the innermost last; signals are the process's, so is this."""


@contextmanager
def announcing(notice: str) -> Iterator[None]:
    """Meanwhile a `Stopper` answers a signal with `notice` in place of its own."""
    _notices.append(notice)
    try:
        yield
    finally:
        _notices.pop()


class Interrupted(Exception):
    """A stop was requested in the middle of something that is given up: a draw, an evaluation. Nothing is wrong."""


class Stopper:
    """While active, SIGTERM and SIGINT set `requested`, print what follows from that, and do nothing else; the loop
    then saves and ends. notice: what follows, if no `announcing` says otherwise.

        with Stopper() as stop:
            for step in ...:
                ...
                if stop.requested: save(); break

    A SIGINT after a request raises KeyboardInterrupt at once; a SIGTERM after a request changes nothing, so that a
    supervisor that repeats itself does not cut the save short. The handlers that were there on entry are put back on
    exit.

    Python lets only the main thread install handlers: in other threads the signals keep their meaning, and `request` is
    the only way to stop. Under several processes each receives its own signal at its own time, so the loop must agree
    on `requested` over all ranks before it acts.
    """

    def __init__(self, notice: str = AFTER_STEP) -> None:
        self.reason, self.notice = "", notice
        self._replaced: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a stop was requested; `reason` says by what."""
        return bool(self.reason)

    def request(self, reason: str) -> None:
        """Request a stop. The first reason stands."""
        self.reason = self.reason or reason

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        if not self.requested:
            # os.write, because a handler may interrupt a print that holds the stream's lock.
            name = signal.Signals(number).name
            notice = _notices[-1] if _notices else self.notice
            os.write(2, f"\n{name}: {notice}; Ctrl-C stops at once.\n".encode())
            self.request(name)

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._replaced[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._replaced:
            number, handler = self._replaced.popitem()
            # A handler that C code installed reads as None and cannot be put back; the default is
            # what is left.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
