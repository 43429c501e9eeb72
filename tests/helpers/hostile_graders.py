"""Rewards that go wrong, each in one way, for `tests/rewards` and `bench/graders.py`. Each forks once at most."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

RUN = "ESPALIER_HOSTILE_RUN"
"""A variable with the process number of whoever runs them, by which what they leave is told from that of others."""


def plain(prompt: str, response: str, answer: str, **task: Any) -> float:
    return float(response == answer)


def hangs(prompt: str, response: str, **task: Any) -> float:
    while True:
        time.sleep(60)


def spins(prompt: str, response: str, **task: Any) -> float:
    """A hang that holds the interpreter: catastrophic backtracking."""
    import re

    return float(bool(re.match(r"(a+)+$", "a" * 60 + "b")))


def ignores_signals(prompt: str, response: str, **task: Any) -> float:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            time.sleep(60)
        except BaseException:
            continue


def raises(prompt: str, response: str, **task: Any) -> float:
    raise ValueError("no number in\nthe answer")


def raises_system_exit(prompt: str, response: str, **task: Any) -> float:
    sys.exit("done")


def exits(prompt: str, response: str, **task: Any) -> float:
    print("about to go", file=sys.stderr, flush=True)
    os._exit(3)


def crashes(prompt: str, response: str, **task: Any) -> float:
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0.0


def prints(prompt: str, response: str, **task: Any) -> float:
    line = '{"job": 1, "results": [{"scores": {"": 100.0}}]}\n'
    sys.stdout.write(line * 2000)
    sys.stdout.flush()
    os.write(1, b"x" * 100_000)
    os.write(2, b"y" * 100_000)
    return 0.25


def forks(prompt: str, response: str, **task: Any) -> float:
    """The child outlives the answer."""
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    return 0.5


def forks_and_returns(prompt: str, response: str, **task: Any) -> float:
    """Parent and child both come back, the child with another score."""
    child = os.fork() == 0
    return 100.0 if child else 0.5


def forks_and_exits(prompt: str, response: str, **task: Any) -> float:
    """The child holds the pipes that the parent has left."""
    if os.fork() == 0:
        time.sleep(600)
    os._exit(4)


def leaves_session(prompt: str, response: str, **task: Any) -> float:
    """A daemon: a session of its own, its parent gone, another name."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    os.wait()
    return 0.5


def leaves_session_and_hangs(prompt: str, response: str, **task: Any) -> float:
    leaves_session(prompt, response)
    time.sleep(600)
    return 0.0


def starts_program(prompt: str, response: str, **task: Any) -> float:
    """A program without the worker's environment, in a session of its own."""
    environ = {"PATH": os.environ.get("PATH", "")}
    subprocess.Popen(["sleep", f"600.{os.environ[RUN]}"], env=environ, start_new_session=True)
    return 0.5


def closes_descriptors(prompt: str, response: str, **task: Any) -> float:
    os.closerange(0, 1024)
    return 0.5


def closes_and_hangs(prompt: str, response: str, **task: Any) -> float:
    os.closerange(0, 1024)
    time.sleep(600)
    return 0.0


def writes_to_pipes(prompt: str, response: str, **task: Any) -> float:
    for fd in range(3, 4096):
        try:
            os.write(fd, b"not an answer\n")
        except OSError:
            continue
    return 0.5


def eats_memory(prompt: str, response: str, **task: Any) -> float:
    pieces = []
    while True:
        pieces.append(bytearray(2**30))


def leaves_alarm(prompt: str, response: str, **task: Any) -> float:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    return 0.5


def not_a_number(prompt: str, response: str, **task: Any) -> float:
    return float("nan")


def text(prompt: str, response: str, **task: Any) -> Any:
    return "good"


async def waits(prompt: str, response: str, **task: Any) -> float:
    """Hangs for one answer only."""
    import asyncio

    await asyncio.sleep(600 if response == "hang" else 0.2)
    return float(len(response))


def batch(prompt: list[str], response: list[str], **task: Any) -> list[float]:
    """Ends its process if one of the answers is bad."""
    if "bad" in response:
        os._exit(5)
    return [float(len(text)) for text in response]


batch.batched = True  # type: ignore[attr-defined]


def short_batch(prompt: list[str], response: list[str], **task: Any) -> list[float]:
    return [1.0]


short_batch.batched = True  # type: ignore[attr-defined]


def exits_at_bad(prompt: str, response: str, **task: Any) -> float:
    if response == "bad":
        os._exit(6)
    return float(len(response))


def uses_programs(prompt: str, response: str, **task: Any) -> float:
    """Children that end with the call."""
    return float(subprocess.run(["true"]).returncode == 0)


def starts_program_and_exits(prompt: str, response: str, **task: Any) -> float:
    starts_program(prompt, response)
    os._exit(7)


def forks_and_spins(prompt: str, response: str, **task: Any) -> float:
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    return spins(prompt, response)


def hangs_over_five(prompt: list[str], response: list[str], **task: Any) -> list[float]:
    time.sleep(600 if len(response) > 5 else 0)
    return [1.0] * len(response)


hangs_over_five.batched = True  # type: ignore[attr-defined]
