"""The process that grades: `python -m espalier.rewards.worker JOBS ANSWERS PARENT`, two descriptors of pipes, a number.

It runs as two: a keeper, which only waits, and its child, which grades. What the child starts and leaves becomes the
keeper's, however it has cut itself off, and ends when the child or the parent does.

One JSON object a line. It reads what to load, says that it is ready, and then answers one job after the other:

    {"rewards": [...], "timeout": s, "memory": bytes}  ->  {"ready": {name: {"batch": bool, "note": text}}, "pid": n}
                                                       or  {"failed": name, "cause": text}
    {"job": n, "reward": name, "answers": [...]}       ->  {"job": n, "worn": bool, "results": [...]}

A reward that takes batches answers once for a job, with `broken` and the cause instead of results if all of it failed;
any other answers once for each of the job's answers, so that its parent knows which one it is at. `worn` says that the
process should be replaced. stdout goes nowhere. It keeps running whatever a reward raises; what it cannot survive (a
hang, an exit, closed descriptors), its parent sees.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from espalier.errors import EspalierError
from espalier.rewards.descent import MARK, end_all
from espalier.rewards.results import Result, read
from espalier.rewards.reward import Answer, Reward, Settings
from espalier.rewards.user import UserFunction, load

CLOSED = 81
"""Exit code of a worker whose descriptors were closed by what it ran."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class Worker:
    """Grades with some rewards. `worn`: memory ran out, and what has been left half done is not known."""

    def __init__(self, timeout: float):
        self.timeout = timeout
        self.builtin: dict[str, tuple[Reward, Settings]] = {}
        self.user: dict[str, UserFunction] = {}
        self.sources: dict[str, str] = {}
        self.loop: Any = None
        self.worn = False

    def load(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Load one reward; how it is called. Raises whatever the user's file does."""
        name, settings = spec["name"], spec["settings"]
        if spec["path"]:
            self.sources[name] = spec["path"]
            function = self.user[name] = load(Path(spec["path"]), spec["function"], spec["sha256"], settings)
            return {"batch": self.batch(name), "note": function.note}
        # Users' rewards alone need none of them.
        from espalier.rewards.builtin import BUILTIN

        reward: Reward = BUILTIN[spec.get("of") or name]
        if reward.load is not None:
            reward.load()
        self.builtin[name] = (reward, settings)
        return {"batch": False, "note": ""}

    def batch(self, name: str) -> bool:
        """Whether a reward takes several answers at a time."""
        function = self.user.get(name)
        return function is not None and (function.batched or function.is_async)

    def job(self, name: str, answers: Sequence[Answer]) -> dict[str, Any]:
        """The results of one call, or that it failed as a whole."""
        if name in self.builtin:
            reward, settings = self.builtin[name]
            return {"results": [self._one(name, lambda: reward.grade_any(answers[0], settings), read).to_json()]}
        function = self.user[name]
        if function.is_async and not function.batched:
            return {"results": [result.to_json() for result in self._side_by_side(name, function, answers)]}
        try:
            value = function.calls(answers)
            if inspect.isawaitable(value):
                value = self._loop().run_until_complete(value)
            results = function.results(value, len(answers))
        except BaseException as error:
            text = self.cause(name, error)
            return {"broken": text} if len(answers) > 1 else {"results": [Result(error=text).to_json()]}
        return {"results": [result.to_json() for result in results]}

    def _one(self, name: str, call: Callable[[], Any], reading: Callable[[Any], Result]) -> Result:
        try:
            return reading(call())
        except BaseException as error:
            return Result(error=self.cause(name, error))

    def _side_by_side(self, name: str, function: UserFunction, answers: Sequence[Answer]) -> list[Result]:
        """An async function, called for all answers at the same time, each under the deadline."""
        import asyncio

        async def one(answer: Answer) -> Result:
            limit = asyncio.timeout(self.timeout)
            try:
                async with limit:
                    value = await function.calls([answer])
                return function.results(value, 1)[0]
            except BaseException as error:
                return Result(error=no_answer(self.timeout) if limit.expired() else self.cause(name, error))

        async def every() -> list[Result]:
            return list(await asyncio.gather(*(one(answer) for answer in answers)))

        return list(self._loop().run_until_complete(every()))

    def _loop(self) -> Any:
        """One event loop for the life of the process: clients that a function keeps belong to their first loop."""
        import asyncio

        if self.loop is None:
            self.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.loop)
        return self.loop

    def cause(self, name: str, error: BaseException) -> str:
        """An exception on one line, with the line of the user's file at which it passed last."""
        self.worn = self.worn or isinstance(error, MemoryError)
        try:
            text = " ".join(str(error).split())[:300]
        except Exception:
            text = "its message cannot be shown"
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
        source = self.sources.get(name, "")
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if frame.filename == source:
                return f"{text} ({Path(source).name}:{frame.lineno})"
        return text


def no_answer(timeout: float) -> str:
    """The verdict of a deadline."""
    return f"no answer within {timeout:g} s"


def keep(parent: int, pipes: Sequence[int]) -> None:
    """Fork: the child returns; this process waits for it, ends all that it has left, and ends as it has ended. If the
    parent ends first, so do all of them."""
    _control(PR_SET_PDEATHSIG, signal.SIGTERM)
    # A process whose own parent has ended becomes a child of the nearest one above it that asks for this.
    _control(PR_SET_CHILD_SUBREAPER, 1)
    child = os.fork()
    if child == 0:
        _control(PR_SET_PDEATHSIG, signal.SIGKILL)
        _control(PR_SET_CHILD_SUBREAPER, 1)
        return
    for fd in pipes:
        os.close(fd)
    me, mark = os.getpid(), os.environ.get(MARK, "")

    def over(*_: Any) -> None:
        end_all(me, mark)
        os._exit(0)

    signal.signal(signal.SIGTERM, over)
    if os.getppid() != parent:
        over()
    pid = status = 0
    while pid != child:
        pid, status = os.wait()
    end_all(me, mark)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(me, -code)
    os._exit(code)


def _control(option: int, value: int) -> None:
    """prctl; nothing on other systems than Linux."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def limit(memory: int) -> None:
    """Let no process have more than `memory` bytes of its own."""
    # Not the address space: threads and accelerators reserve far more of it than they use.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def main(jobs: int, answers: int) -> None:
    """Load what the first line says, then answer jobs until the pipe ends."""
    me = os.getpid()
    pipes = [(fd, os.fstat(fd).st_ino) for fd in (jobs, answers)]
    lines = os.fdopen(jobs, "rb")
    first = json.loads(lines.readline())
    limit(first["memory"])
    worker = Worker(first["timeout"])
    notes = {}
    for spec in first["rewards"]:
        try:
            notes[spec["name"]] = worker.load(spec)
        except BaseException as error:
            own = isinstance(error, EspalierError)
            cause = str(error) if own else worker.cause(spec["name"], error)
            _send(answers, {"failed": spec["name"], "cause": cause})
            os._exit(1)
    _check(me, pipes)
    _send(answers, {"ready": notes, "pid": me})
    for line in lines:
        job = json.loads(line)
        given = [Answer(**answer) for answer in job["answers"]]
        for part in [given] if worker.batch(job["reward"]) else [[answer] for answer in given]:
            reply = worker.job(job["reward"], part)
            # An alarm that a reward has left would end a later call.
            signal.setitimer(signal.ITIMER_REAL, 0)
            _check(me, pipes)
            _send(answers, {"job": job["job"], "worn": worker.worn, **reply})


def _check(me: int, pipes: list[tuple[int, int]]) -> None:
    """End here if this is a copy that a reward has forked and that came back from it, or if a pipe is no longer
    open: the next job would be blamed for it."""
    if os.getpid() != me:
        os._exit(0)
    try:
        intact = all(os.fstat(fd).st_ino == inode for fd, inode in pipes)
    except OSError:
        intact = False
    if not intact:
        os._exit(CLOSED)


def _send(answers: int, entries: dict[str, Any]) -> None:
    data = json.dumps(entries).encode() + b"\n"
    while data:
        data = data[os.write(answers, data) :]


if __name__ == "__main__":
    JOBS, ANSWERS, PARENT = (int(text) for text in sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    keep(PARENT, (JOBS, ANSWERS))
    main(JOBS, ANSWERS)
