"""Run by test_train_resume.py in a process of its own: runs commands in forked children and kills them on request.

Forking after the imports makes a run of a tiny model cost less than half a second. What a child imports beyond them is
imported here before the next child is forked. Each line of stdin is one JSON request,

    {"argv": ["sft", ...], "hook": ["before", "espalier.loop.checkpoint:_write_manifest", 2]}

and is answered by one line: {"code": exit code, or minus the signal, "out": stdout, "err": stderr}. A hook is the name
of a function below and its arguments; it is set up in the child before the command starts.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.utils.tensorboard  # the rest of what a run imports
import transformers.models.llama.modeling_llama  # noqa: F401

from espalier.checks import start as _start  # noqa: F401
from espalier.commands import main as cli
from espalier.commands import train as _train  # noqa: F401

LIMIT = 60  # seconds a child may take
PACKAGES = ("espalier", "huggingface_hub", "numpy", "peft", "torch", "transformers")
HOOKS: dict[str, Callable[..., None]] = {}


def hook(function: Callable[..., None]) -> Callable[..., None]:
    HOOKS[function.__name__] = function
    return function


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wrap(target: str, around: Callable[[int, Callable[[], Any]], Any]) -> None:
    """Replace `module:name` or `module:Class.name`; `around` gets the number of the call, from 1, and the call."""
    place, _, path = target.partition(":")
    owner: Any = importlib.import_module(place)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    inner, count = getattr(owner, name), 0

    def replaced(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return around(count, lambda: inner(*args, **kwargs))

    setattr(owner, name, replaced)


@hook
def before(target: str, number: int) -> None:
    """Kill in place of a call."""
    wrap(target, lambda n, call: kill() if n == number else call())


@hook
def after(target: str, number: int) -> None:
    """Kill when a call has returned."""

    def around(n: int, call: Callable[[], Any]) -> Any:
        result = call()
        if n == number:
            kill()
        return result

    wrap(target, around)


@hook
def within(outer: str, inner: str, number: int) -> None:
    """Kill in place of the first call of `inner` inside a call of `outer`."""
    inside = False

    def around(n: int, call: Callable[[], Any]) -> Any:
        nonlocal inside
        inside = n == number
        result = call()
        inside = False
        return result

    wrap(outer, around)
    wrap(inner, lambda n, call: kill() if inside else call())


@hook
def in_step(step: int, microbatch: int) -> None:
    """Kill before a forward of a training step; both are counted from 0."""
    from espalier.engines.learner import TorchLearner
    from espalier.models.policy import Policy

    train_step, forward = TorchLearner.forward_backward, Policy.forward
    now, seen = -1, 0

    def stepping(self: Any, groups: Any, loss: Any, state: Any, number: int, **kwargs: Any) -> Any:
        nonlocal now, seen
        now, seen = number, 0
        result = train_step(self, groups, loss, state, number, **kwargs)
        now = -1
        return result

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        if now == step:
            if seen == microbatch:
                kill()
            seen += 1
        return forward(self, *args, **kwargs)

    TorchLearner.forward_backward = stepping  # type: ignore[method-assign]
    Policy.forward = counting  # type: ignore[method-assign]


@hook
def in_line(number: int) -> None:
    """Kill when half of a line of metrics.jsonl is written."""
    from espalier.loop import metrics

    class Halfway:
        count = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def write(self, fd: int, data: memoryview) -> int:
            Halfway.count += 1
            if Halfway.count == number:
                os.write(fd, data[: len(data) // 2])
                kill()
            return os.write(fd, data)

    metrics.os = Halfway()  # type: ignore[assignment]


@hook
def at_access(folder: str, number: int) -> None:
    """Kill at an access to a file below `folder`."""
    count = 0

    def audit(event: str, args: tuple[object, ...]) -> None:
        nonlocal count
        if any(folder in str(arg) for arg in args):
            count += 1
            if count == number:
                kill()

    sys.addaudithook(audit)


@hook
def full_disk(target: str, number: int) -> None:
    """Nothing can be written any more from a call on."""

    def around(n: int, call: Callable[[], Any]) -> Any:
        if n >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file")
        return call()

    wrap(target, around)


@hook
def signal_after_step(number: int, name: str) -> None:
    """Send this process a signal when an optimizer step is done, as a supervisor may at any time."""
    signal_at("espalier.loop.train:Trainer._step", number, name)


@hook
def signal_at(target: str, number: int, name: str) -> None:
    """Send this process a signal when a call has returned."""

    def around(n: int, call: Callable[[], Any]) -> Any:
        result = call()
        if n == number:
            os.kill(os.getpid(), signal.Signals[name])
        return result

    wrap(target, around)


@hook
def drawing(number: int) -> None:
    """Every step draws from all three generators, as a model of others may; kill after step `number`, 0 for never."""

    def around(n: int, call: Callable[[], Any]) -> Any:
        result = call()
        random.random(), numpy.random.rand(), torch.rand(1)
        if n == number:
            kill()
        return result

    wrap("espalier.loop.train:Trainer._step", around)


def child(request: dict[str, Any], said: Path, complained: Path, imported: Path) -> None:
    code = 70
    try:
        signal.alarm(LIMIT)
        os.fsync = lambda fd: None  # a killed process loses nothing that it wrote, flushed or not
        for fd, path in ((1, said), (2, complained)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), fd)
        if request.get("hook"):
            name, *args = request["hook"]
            HOOKS[name](*args)
        code = cli.main(request["argv"])
        imported.write_text("\n".join(sys.modules))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def catch_up(imported: Path) -> None:
    """Import what a child that ended has imported."""
    for name in imported.read_text().splitlines() if imported.exists() else ():
        if name not in sys.modules and name.partition(".")[0] in PACKAGES:
            importlib.import_module(name)


def main() -> None:
    torch.set_num_threads(1)
    gc.freeze()  # children need not search what was imported for garbage
    answers = os.fdopen(os.dup(1), "w")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            said, complained, imported = (Path(folder, name) for name in ("out", "err", "imported"))
            pid = os.fork()
            if pid == 0:
                child(json.loads(line), said, complained, imported)
            _, status = os.waitpid(pid, 0)
            texts = [path.read_text() if path.exists() else "" for path in (said, complained)]
            answer = {"code": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1]}
            catch_up(imported)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
