"""Rewards that go wrong, each once: what it costs, and what is left of it. Then answers a second of one that does not.

usage: python bench/graders.py [--deadline 1] [--answers 2000] [--workers 1]

For each reward of tests/helpers/hostile_graders.py: its outcome, the seconds until it came, the processes left when it
came, and whether the next two answers by another reward are right. Exits with 1 if one costs more than one error, more
than the deadline + 2 s, or leaves a process; and if a batch that dies costs the others their scores. Each reward starts
two processes at most.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from espalier.rewards.pool import Job, Pool, Spec
from espalier.rewards.results import Result

HELPERS = Path(__file__).resolve().parents[1] / "tests" / "helpers"
FILE = HELPERS / "hostile_graders.py"
sys.path.insert(0, str(HELPERS))
import hostile_graders  # noqa: E402

RUN = hostile_graders.RUN
ALLOWED = 2.0
SINGLE = (
    *("hangs", "spins", "ignores_signals", "raises", "raises_system_exit", "exits", "crashes", "prints", "forks"),
    *("forks_and_returns", "forks_and_exits", "leaves_session", "leaves_session_and_hangs", "starts_program"),
    "starts_program_and_exits",
    *("closes_descriptors", "closes_and_hangs", "writes_to_pipes", "eats_memory", "leaves_alarm", "not_a_number"),
    *("text", "uses_programs"),
)


def functions() -> list[str]:
    return [name for name, value in vars(hostile_graders).items() if inspect.isfunction(value)]


def left_over() -> int:
    """Processes that a reward has left: those of this run, by their environment or by their program, without workers
    (a keeper, which is a child of this process, and its child, which grades)."""
    own: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            environ = Path("/proc", name, "environ").read_bytes()
            command = Path("/proc", name, "cmdline").read_text()
            parent = int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if f"{RUN}={os.getpid()}\0".encode() in environ or command.startswith(f"sleep\0600.{os.getpid()}"):
            own[int(name)] = parent
    keepers = {pid for pid, parent in own.items() if parent == os.getpid()}
    return sum(pid not in keepers and parent not in keepers for pid, parent in own.items())


def grade(pool: Pool, name: str, responses: list[str]) -> list[Result]:
    for ticket, response in enumerate(responses):
        pool.submit(Job(ticket, name, {"prompt": "2 + 2?", "response": response, "answer": "4"}))
    results: dict[int, Result] = {}
    while len(results) < len(responses):
        results |= {ticket: result for ticket, _, result in pool.results(wait=True)}
    return [results[ticket] for ticket in range(len(responses))]


def word(result: Result) -> str:
    return f"error: {result.error}" if result.error else f"score {result.scores.get('', '')}"


def once(pool: Pool, name: str, deadline: float) -> bool:
    """Grade one answer by a reward that goes wrong; whether every promise was kept."""
    began = time.perf_counter()
    [result] = grade(pool, name, ["4"])
    took = time.perf_counter() - began
    left = left_over()
    after = [result.scores.get("") for result in grade(pool, "plain", ["4", "5"])]
    kept = took <= deadline + ALLOWED and left == 0 and after == [1.0, 0.0]
    print(f"{name:26s} {took:6.2f} {left:5d} {'yes' if after == [1.0, 0.0] else 'NO':>5s}  {word(result)[:100]}")
    return kept


def batches(pool: Pool) -> bool:
    """Of a batch in which one answer ends the process, and of async answers of which one hangs, the others count."""
    kept = True
    for name, bad in (("batch", "bad"), ("waits", "hang"), ("exits_at_bad", "bad")):
        began = time.perf_counter()
        results = grade(pool, name, ["a", "bb", bad, "dddd"])
        took = time.perf_counter() - began
        scores = [result.scores.get("") for result in results]
        right = scores == [1.0, 2.0, None, 4.0] and bool(results[2].error)
        kept = kept and right
        print(
            f"{name + ', 1 of 4':26s} {took:6.2f} {left_over():5d} {'yes' if right else 'NO':>5s}  {word(results[2])}"
        )
    return kept


def speed(pool: Pool, answers: int) -> None:
    rates = []
    for _ in range(5):
        began = time.perf_counter()
        grade(pool, "plain", ["4"] * answers)
        rates.append(answers / (time.perf_counter() - began))
    each = 1e6 / statistics.median(rates)
    print(f"plain: {statistics.median(rates):.0f} answers a second, {each:.0f} us each (median of 5 x {answers})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deadline", type=float, default=1.0)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=1)
    o = parser.parse_args()
    os.environ[RUN] = str(os.getpid())
    digest = hashlib.sha256(FILE.read_bytes()).hexdigest()
    specs = [Spec(name, {}, str(FILE), name, digest) for name in functions()]
    limits: dict[str, Any] = {"timeout": o.deadline, "workers": o.workers, "memory": 2**28}
    pool = Pool(specs, **limits)
    began = time.perf_counter()
    pool.start()
    print(f"first worker after {time.perf_counter() - began:.2f} s; deadline {o.deadline:g} s, 0.25 GiB each\n")
    print(f"{'reward':26s} {'s':>6s} {'left':>5s} {'next':>5s}  outcome")
    kept = [once(pool, name, o.deadline) for name in SINGLE]
    kept.append(batches(pool))
    print()
    speed(pool, o.answers)
    pool.close()
    remaining = left_over()
    print(f"processes left at the end: {remaining}")
    if not all(kept) or remaining:
        sys.exit("a promise is broken")


if __name__ == "__main__":
    main()
