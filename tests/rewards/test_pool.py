"""Rewards that go wrong in every way: one error each, in time, and no process left."""

from __future__ import annotations

import hashlib
import inspect
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import hostile_graders
from espalier.errors import EspalierError
from espalier.rewards import pool as pool_module
from espalier.rewards.pool import Job, Pool, Spec, memory_limit
from espalier.rewards.results import Result
from hostile_graders import RUN

FILE = Path(__file__).resolve().parents[1] / "helpers" / "hostile_graders.py"
DEADLINE = 0.5


def spec(name: str, file: Path = FILE) -> Spec:
    return Spec(name, {}, str(file), name, hashlib.sha256(file.read_bytes()).hexdigest())


def answer(response: str) -> dict[str, object]:
    return {"prompt": "2 + 2?", "response": response, "answer": "4"}


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    names = [name for name, value in vars(hostile_graders).items() if inspect.isfunction(value)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RUN, str(os.getpid()))
        pool = Pool([spec(name) for name in names], timeout=DEADLINE, workers=1, memory=2**28)
        pool.start()
        yield pool
        pool.close()
        assert running() == []


def running(run: str = "") -> list[str]:
    """The commands of all workers that this process has started as `run`, and of what those have left behind: by their
    environment, and by the program that `starts_program` starts without it."""
    commands = []
    for name in os.listdir("/proc"):
        try:
            environ = Path("/proc", name, "environ").read_bytes() if name.isdigit() else b""
            command = Path("/proc", name, "cmdline").read_text() if name.isdigit() else ""
        except OSError:
            continue
        own = f"{RUN}={os.getpid()}{run}\0".encode() in environ
        if own or command.startswith(f"sleep\0600.{os.getpid()}"):
            commands.append(command)
    return commands


def grade(pool: Pool, name: str, *responses: str) -> list[Result]:
    """The results of a few answers by one reward, in order."""
    for ticket, response in enumerate(responses):
        pool.submit(Job(ticket, name, answer(response)))
    results: dict[int, Result] = {}
    while len(results) < len(responses):
        results |= {ticket: result for ticket, _, result in pool.results(wait=True)}
    return [results[ticket] for ticket in range(len(responses))]


LATE = f"no answer within {DEADLINE:g} s"


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("hangs", LATE),
        ("spins", LATE),
        ("ignores_signals", LATE),
        ("raises", "ValueError: no number in the answer (hostile_graders.py:43)"),
        ("raises_system_exit", "SystemExit: done (hostile_graders.py:47)"),
        ("exits", "its process ended with exit code 3; its last words: about to go"),
        ("crashes", "its process was ended by SIGSEGV"),
        ("prints", 0.25),
        ("forks", 0.5),
        ("forks_and_returns", 0.5),
        ("forks_and_exits", "its process ended with exit code 4"),
        ("starts_program_and_exits", "its process ended with exit code 7"),
        ("leaves_session", 0.5),
        ("leaves_session_and_hangs", LATE),
        ("starts_program", 0.5),
        ("closes_descriptors", "closed the descriptors that it answers on"),
        ("closes_and_hangs", "closed the descriptors that it answers on"),
        ("writes_to_pipes", "wrote something else than its answer to its pipe"),
        ("eats_memory", "MemoryError (hostile_graders.py"),
        ("leaves_alarm", 0.5),
        ("not_a_number", "ValueError: returned nan; expected a finite number"),
        ("text", "TypeError: returned str 'good'; expected a number"),
    ],
)
def test_each_costs_one_answer_at_most(pool: Pool, name: str, outcome: str | float) -> None:
    began = time.monotonic()
    results = grade(pool, name, "4")
    took = time.monotonic() - began
    if isinstance(outcome, float):
        assert results == [Result({"": outcome})]
    else:
        assert results[0].error.startswith(outcome) and not results[0].scores
    assert took < DEADLINE + 2.0
    # The next answer is graded as if nothing had been.
    assert grade(pool, "plain", "4", "5") == [Result({"": 1.0}), Result({"": 0.0})]
    assert len(running()) == 2  # A keeper, and what grades.


def test_a_batch_that_dies_is_graded_again_one_by_one(pool: Pool) -> None:
    blocked, *results = grade_behind(pool, "batch", ["a", "bad", "ccc"])
    assert blocked.error == LATE
    assert [result.scores for result in results] == [{"": 1.0}, {}, {"": 3.0}]
    assert results[1].error == "its process ended with exit code 5"


def test_a_batch_with_a_wrong_number_of_entries_is_graded_again_one_by_one(pool: Pool) -> None:
    _, *results = grade_behind(pool, "short_batch", ["a", "b"])
    assert results == [Result({"": 1.0})] * 2


@pytest.mark.slow
def test_after_a_batch_that_is_late_batches_are_half_as_large(pool: Pool) -> None:
    _, *results = grade_behind(pool, "hangs_over_five", ["4"] * 8)
    assert results == [Result({"": 1.0})] * 8 and pool.repeated["hangs_over_five"] == 1
    _, *results = grade_behind(pool, "hangs_over_five", ["4"] * 8)
    assert results == [Result({"": 1.0})] * 8 and pool.repeated["hangs_over_five"] == 1


def test_async_answers_run_side_by_side_and_hang_alone(pool: Pool) -> None:
    began = time.monotonic()
    _, *results = grade_behind(pool, "waits", ["x" * n for n in range(1, 21)] + ["hang"])
    assert [result.scores for result in results[:20]] == [{"": float(n)} for n in range(1, 21)]
    assert results[20].error == LATE
    # One after the other they would take 20 times 0.2 s.
    assert time.monotonic() - began < DEADLINE * 2 + 2.9


def grade_behind(pool: Pool, name: str, responses: list[str]) -> list[Result]:
    """As `grade`, behind an answer that keeps the only worker busy until its deadline: the others wait together."""
    pool.submit(Job(0, "hangs", answer("4")))
    time.sleep(0.1)
    for ticket, response in enumerate(responses, 1):
        pool.submit(Job(ticket, name, answer(response)))
    results: dict[int, Result] = {}
    while len(results) <= len(responses):
        results |= {ticket: result for ticket, _, result in pool.results(wait=True)}
    return [results[ticket] for ticket in range(len(responses) + 1)]


def test_of_answers_that_are_handed_out_together_only_one_is_blamed(pool: Pool) -> None:
    responses = ["x" * (n % 7) for n in range(60)]
    responses[20] = responses[21] = responses[50] = "bad"
    results = grade(pool, "exits_at_bad", *responses)
    for response, result in zip(responses, results, strict=True):
        if response == "bad":
            assert result.error == "its process ended with exit code 6"
        else:
            assert result == Result({"": float(len(response))})


def test_waiting_ends_after_a_moment_so_that_signals_are_heeded(pool: Pool) -> None:
    began = time.monotonic()
    assert pool.results(wait=True) == []
    assert 0.4 < time.monotonic() - began < 3.0


def test_children_that_end_with_the_call_cost_nothing(pool: Pool) -> None:
    assert grade(pool, "uses_programs", *["4"] * 20) == [Result({"": 1.0})] * 20
    assert "uses_programs" not in pool.replaced


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environ = {**os.environ, RUN: f"{os.getpid()}-killed", "PYTHONPATH": str(Path(pool_module.__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, str(script), str(FILE)], env=environ, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "hanging\n"
    before = len(running("-killed"))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 5.0
    while running("-killed") and time.monotonic() < until:
        time.sleep(0.02)
    # The parent, a keeper, what grades, and what that has forked.
    assert before == 4 and running("-killed") == []


PARENT = """
import hashlib, sys, time
from pathlib import Path
from espalier.rewards import pool as pool_module
from espalier.rewards.pool import Job, Pool, Spec

file = Path(sys.argv[1])
spec = Spec("forks_and_spins", {}, str(file), "forks_and_spins", hashlib.sha256(file.read_bytes()).hexdigest())
pool = Pool([spec], timeout=60.0, workers=1, memory=2**28)
pool.start()
pool.submit(Job(0, "forks_and_spins", {"prompt": "", "response": ""}))
time.sleep(0.3)
print("hanging", flush=True)
time.sleep(60)
"""


def test_a_worker_that_a_reward_has_left_processes_in_is_replaced(pool: Pool) -> None:
    before = pool.replaced.get("forks", 0)
    grade(pool, "forks", "4")
    assert pool.replaced["forks"] == before + 1


def test_what_cannot_be_loaded_is_refused_with_its_cause(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_this_name\n")
    for specs, cause in (
        ([spec("reward", broken)], r"reward: ModuleNotFoundError: No module named .* \(broken.py:1\)"),
        ([spec("plane")], "plane: .* has no function plane; it has .*plain"),
        ([Spec("plain", {}, str(FILE), "plain", "0" * 64)], "plain: .* has changed since the run began"),
    ):
        pool = Pool(specs, timeout=1.0, workers=1, memory=2**28)
        with pytest.raises(EspalierError, match=f"the rewards cannot be loaded: {cause}"):
            pool.start()
        assert running() == []


def test_half_of_the_memory_is_shared_by_the_workers() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_limit(1) == max(2**30, total // 2) and memory_limit(10**6) == 2**30
