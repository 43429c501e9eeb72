"""A source of graded answers that no sampler drew, for tests of the loop."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from espalier.algorithms.traits import Algorithm
from espalier.engines.protocols import Roles
from espalier.loop.signals import Interrupted
from espalier.types import Draw
from samples import Groups, sample


def answers(groups: int, size: int, *, seed: int, first: int = 0) -> Groups:
    """Prompts of 20 tokens with `size` answers of 3 to 8 tokens each; the reward is the share of even tokens."""
    rng = random.Random(seed)
    out: Groups = []
    for number in range(first, first + groups):
        prompt = [rng.randrange(5, 128) for _ in range(20)]
        group = []
        for k in range(size):
            tokens = [rng.randrange(5, 128) for _ in range(3 + (number + k) % 6)]
            s = sample(prompt, tokens, group=number, key=100 * number + k)
            s.reward = sum(token % 2 == 0 for token in tokens) / len(tokens)
            s.streams["logprobs"] = [-4.0 if trained else 0.0 for trained in s.mask]
            group.append(s)
        out.append(group)
    return out


@dataclass
class Answered:
    """Four groups of three answers a step, one of them silent; held-out scores as given, in turn.

    interrupts: draws and evaluations that a stop interrupts, as ("draw", step) and ("evaluate", version).
    """

    steps: int = 4
    scores: list[float] = field(default_factory=list)
    interrupts: set[tuple[str, int]] = field(default_factory=set)
    silent: int = 1
    masked: bool = False
    notes: list[str] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    count: int = 0

    def draw(self, step: int) -> Draw:
        self.calls.append(("draw", step))
        self._stop("draw", step)
        groups = answers(4, 3, seed=step)
        self._last = groups
        self.count += 10
        for s in groups[-1]:
            if self.silent:
                s.reward = 1.0
        if self.masked:
            for s in (s for g in groups for s in g):
                s.weights = [0.0] * len(s)
        kept = 4 - self.silent
        rewards = [s.reward or 0.0 for g in groups for s in g]
        numbers = {"reward": sum(rewards) / len(rewards), "sampled_tokens": 99.0, "length": 5.5}
        return Draw(groups[:kept], groups[kept:], numbers, [*self.notes])

    def _stop(self, what: str, number: int) -> None:
        if (what, number) in self.interrupts:
            self.interrupts.remove((what, number))
            raise Interrupted

    def records(self, step: int) -> list[dict[str, Any]]:
        return [{"step": step + 1, "key": s.key, "streams": sorted(s.streams)} for g in self._last for s in g]

    def moved(self, version: int) -> None:
        self.version = version
        self.calls.append(("moved", version))

    def evaluate(self, roles: Roles, algorithm: Algorithm, state: dict[str, float]) -> dict[str, float]:
        self._stop("evaluate", self.version)
        return {"eval_score": self.scores[self.version - 1], "eval_length": 7.0} if self.scores else {}

    def heed(self, requested: Callable[[], bool]) -> None:
        self.requested = requested

    def state(self) -> dict[str, int]:
        return {"count": self.count}

    def restore(self, counts: Mapping[str, int]) -> None:
        self.count = counts["count"]

    def epoch_of(self, step: int) -> float:
        return step / 2

    def consumed(self, step: int) -> str:
        return f"{step:016x}"
