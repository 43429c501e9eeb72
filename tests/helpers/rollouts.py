"""Tasks, samplers, graders and ranks that do what a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from espalier.algorithms.online import Online
from espalier.algorithms.traits import Algorithm, Traits
from espalier.config.rollout_sections import RolloutConfig
from espalier.engines.protocols import Drawn, Request, SamplingParams
from espalier.loop.journal import Journal
from espalier.loop.rollout import RolloutSource
from espalier.outcomes import Fate, Graded, Key, Outcome
from espalier.types import Message, Origin, Prompt, Sample, StopReason, Task

Answer = Callable[[Request, int], tuple[list[int], StopReason]]
"""The response to a request's prompt, and why it ended."""


def prompt(row: int, *tokens: int) -> Prompt:
    """Task number `row`, read from line row + 1 of t.jsonl; its prompt is 100 + row unless `tokens` are given."""
    return Prompt(
        row, list(tokens) or [100 + row], Task((Message("user", f"task {row}"),), origin=Origin("t", row + 1))
    )


def answer(tokens: Sequence[int], stop: StopReason = "stop", *, row: int = 0, logprob: float = -0.5) -> Sample:
    """A response of these tokens to task `row`, as a sampler returns it."""
    s = Sample(stop=stop, version=0)
    s.append([100 + row], trained=False)
    s.append(list(tokens), trained=True, logprobs=[logprob] * len(tokens))
    return s


@dataclass
class FakeTasks:
    """`first` tasks a step, rows in order, and the rows after them as refills, as long as there are `rows`."""

    first: int
    rows: int = 10**6
    held: int = 0
    steps: int = 4

    def prompts(self, step: int) -> list[tuple[Prompt, int]]:
        return [(prompt(step * self.first + i), 0) for i in range(self.first)]

    def refill(self, step: int, count: int, taken: set[int]) -> list[tuple[Prompt, int]]:
        free = [row for row in range(min(self.rows, max(taken) + 1 + count)) if row > max(taken)]
        return [(prompt(row), -1 - step) for row in free[:count]]

    def held_out(self) -> list[Prompt]:
        return [prompt(row) for row in range(self.held)]

    def epoch_of(self, step: int) -> float:
        return step / self.steps

    def consumed(self, step: int) -> str:
        return f"{step:064d}"


class FakeSampler:
    """Ends one answer a call, the last request first. A token's log-probability is minus its number over 7, no finite
    binary fraction."""

    def __init__(self, answer: Answer):
        self.answer = answer
        self.queue: list[tuple[Request, int]] = []
        self.requests: list[Request] = []
        self.version = 0
        self.interrupted: Callable[[], bool] = lambda: False

    def submit(self, requests: Sequence[Request]) -> None:
        self.requests += requests
        self.queue += [(request, k) for request in requests for k in request.ks]

    def finished(self) -> list[Drawn]:
        request, k = self.queue.pop()
        tokens, stop = self.answer(request, k)
        s = Sample(stop=stop, temperature=request.params.temperature or 1.0, version=self.version)
        s.append(request.prompt, trained=False)
        s.append(tokens, trained=True, logprobs=[-token / 7 for token in tokens])
        return [Drawn(request, k, s)]

    @property
    def busy(self) -> bool:
        return bool(self.queue)

    def cancel(self, groups: Sequence[int]) -> None:
        self.queue = [(request, k) for request, k in self.queue if request.group not in groups]

    def load(self, weights: Any, version: int) -> None:
        self.version = version

    def drawing(self) -> AbstractContextManager[None]:
        return nullcontext()


class FakeGraders:
    """Graders that need `delay` polls for an answer and return the newest first."""

    def __init__(self, outcome: Callable[[Key, Sample], Outcome], best: float | None = 1.0, delay: int = 0):
        self.outcome, self.best, self.delay = outcome, best, delay
        self.queue: list[tuple[Key, Outcome, int]] = []
        self.keys: list[Key] = []

    def grades(self, task: Task) -> tuple[str, ...]:
        return ("fake",)

    def submit(self, key: Key, prompt: Prompt, sample: Sample) -> None:
        self.keys.append(key)
        self.queue.append((key, self.outcome(key, sample), self.delay))

    def finished(self, *, wait: bool) -> list[tuple[Key, Outcome]]:
        ready = [(key, outcome) for key, outcome, left in self.queue if wait or not left]
        self.queue = [] if wait else [(key, outcome, left - 1) for key, outcome, left in self.queue if left]
        return ready[::-1]

    @property
    def busy(self) -> bool:
        return bool(self.queue)

    def close(self) -> None:
        self.queue = []


@dataclass(frozen=True)
class FakeAlgorithm(Algorithm):
    """Drops groups whose scores are all equal, or calls them silent."""

    online: Online = field(default_factory=Online)
    equal: Fate = "keep"

    @property
    def traits(self) -> Traits:
        return Traits(consumes="task", online=self.online)

    def loss(self, outputs: Any, batch: Any) -> dict[str, Any]:
        return {}

    def keep(self, group: list[Sample]) -> Fate:
        return self.equal if len({s.reward for s in group}) == 1 else "keep"


class FakeRank:
    """One of several ranks, each of which lives in a thread of `on_ranks`."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, board: list[bytes]):
        self.rank, self.size, self._barrier, self._board = rank, size, barrier, board

    def gather(self, data: bytes) -> list[bytes]:
        self._board[self.rank] = data
        self._barrier.wait()
        rows = list(self._board)
        self._barrier.wait()
        return rows

    def sum(self, values: Any) -> Any:
        raise NotImplementedError("rollouts sum nothing over ranks")

    def barrier(self) -> None:
        self._barrier.wait()


def on_ranks(size: int, part: Callable[[FakeRank], Any]) -> list[Any]:
    """What `part` returns, or the exception that it raises, on each rank."""
    barrier, board = threading.Barrier(size, timeout=20), [b""] * size
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = part(FakeRank(rank, size, barrier, board))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class OneRank:
    """A world of one."""

    rank, size = 0, 1

    def sum(self, values: Any) -> Any:
        return values

    def gather(self, data: bytes) -> list[bytes]:
        return [data]

    def barrier(self) -> None:
        pass


def exact(score: float, **parts: float) -> Outcome:
    """An outcome without faults; `parts` default to one reward named fake."""
    return Outcome(score, {name: Graded(x) for name, x in (parts or {"fake": score}).items()})


def source(
    tasks: FakeTasks,
    sampler: FakeSampler,
    graders: FakeGraders,
    algorithm: Algorithm | None = None,
    *,
    group_size: int = 2,
    max_waves: int = 8,
    eval_samples: int = 0,
    world: Any = None,
    journal: Journal | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    **rules: Any,
) -> RolloutSource:
    """A source with these parts; text is the ids with blanks between."""
    return RolloutSource(
        tasks,
        sampler,
        graders,
        algorithm or FakeAlgorithm(),
        RolloutConfig(group_size=group_size, max_waves=max_waves, eval_samples=eval_samples),
        SamplingParams(max_tokens=4, temperature=1.0, seed=7, stop=(14,)),
        world or OneRank(),
        journal,
        lambda ids: " ".join(map(str, ids)),
        interrupted,
        **rules,
    )
