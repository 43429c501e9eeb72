"""Answers to tasks: each rank draws and grades its share, and all ranks get all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from espalier.engines.protocols import Drawn, Graders, Group, Request, Sampler, SamplingParams, World, together
from espalier.errors import EspalierError
from espalier.loop.journal import Journal
from espalier.loop.signals import Interrupted
from espalier.outcomes import Key, Outcome, outcome_from_json, outcome_to_json
from espalier.types import Prompt, Sample

Posed = tuple[Prompt, int]
"""A task and the epoch that keys its draws."""
Report = Callable[[str, int, int], None]


@dataclass(slots=True)
class Seconds:
    """Time of the slowest rank: drawing, and waiting for graders when nothing was left to draw."""

    sample: float = 0.0
    grade: float = 0.0

    def add(self, other: Seconds) -> None:
        self.sample += other.sample
        self.grade += other.grade


class Answers:
    """Draws and grades answers.

    journal: where this rank keeps outcomes; None keeps none. interrupted: whether a stop signal came. report: called
    with what is answered, how many of this rank's answers are graded, and how many there will be.

    Task number i of a call goes to rank i % size, so the share of a rank is a function of the tasks alone.
    """

    def __init__(
        self,
        sampler: Sampler,
        graders: Graders,
        world: World,
        journal: Journal | None,
        interrupted: Callable[[], bool],
        report: Report = lambda what, graded, total: None,
    ):
        self.sampler, self.graders, self.world = sampler, graders, world
        self.journal, self.interrupted, self.report = journal, interrupted, report

    def answer(
        self, step: int, posed: Sequence[Posed], params: SamplingParams, count: int, *, held_out: bool = False
    ) -> tuple[list[Group], Seconds]:
        """`count` graded answers to each task, in order; each sample has its outcome and, unless that is an error, its
        reward. Answers are graded while others are drawn.

        step, held_out: of the journal's lines. Raises Interrupted, on all ranks, if a stop signal came to one of them.
        """
        share = _Share(self, step, list(posed), held_out)
        own = range(self.world.rank, len(posed), self.world.size)
        requests = [
            Request(posed[i][0].tokens, posed[i][0].row, i, params, posed[i][1], tuple(range(count))) for i in own
        ]
        # Weights that are sharded are gathered here once, on all ranks, which then draw at their own pace.
        with self.sampler.drawing():
            together(lambda: share.work(requests), "answers were not drawn", self.world, EspalierError)
        groups, seconds = self._of_all(share, len(posed))
        for s in (s for group in groups for s in group):
            if s.outcome is not None and not s.outcome.error:
                s.reward = s.outcome.score
        return groups, seconds

    def _of_all(self, share: _Share, count: int) -> tuple[list[Group], Seconds]:
        """The groups of all ranks, and the time of the slowest."""
        if self.world.size == 1:
            if share.stopped:
                raise Interrupted
            return [share.group(i) for i in range(count)], share.seconds
        own = {i: [_to_json(s, len(share.posed[i][0].tokens)) for s in share.group(i)] for i in share.samples}
        seconds = [share.seconds.sample, share.seconds.grade]
        text = json.dumps({"stopped": share.stopped, "seconds": seconds, "groups": {} if share.stopped else own})
        ranks = [json.loads(data) for data in self.world.gather(text.encode())]
        if any(rank["stopped"] for rank in ranks):
            raise Interrupted
        groups = []
        for i in range(count):
            prompt = share.posed[i][0].tokens
            groups.append([_from_json(entries, prompt) for entries in ranks[i % self.world.size]["groups"][str(i)]])
        return groups, Seconds(*(max(rank["seconds"][j] for rank in ranks) for j in (0, 1)))


@dataclass(slots=True)
class _Share:
    """What one rank draws and grades in one call; `samples` by number of the task and of the sample."""

    answers: Answers
    step: int
    posed: list[Posed]
    held_out: bool
    samples: dict[int, dict[int, Sample]] = field(default_factory=dict)
    waiting: dict[Key, tuple[int, Sample]] = field(default_factory=dict)
    ungraded: dict[int, int] = field(default_factory=dict)
    recalled: set[Key] = field(default_factory=set)
    seconds: Seconds = field(default_factory=Seconds)
    stopped: bool = False

    def group(self, i: int) -> Group:
        return [sample for _, sample in sorted(self.samples[i].items())]

    def work(self, requests: list[Request]) -> None:
        """Draw and grade until everything is done, or a stop signal comes."""
        sampler, graders = self.answers.sampler, self.answers.graders
        for request in requests:
            self.samples[request.group] = {}
            self.ungraded[request.group] = len(request.ks)
        sampler.submit(requests)
        what, total = "held-out tasks" if self.held_out else f"step {self.step + 1}", sum(self.ungraded.values())
        while sampler.busy or self.waiting:
            if self.answers.interrupted():
                sampler.cancel([request.group for request in requests])
                self.stopped = True
                return
            began = time.perf_counter()
            if sampler.busy:
                drawn = sampler.finished()
                self.seconds.sample += time.perf_counter() - began
                for one in drawn:
                    self._grade(one)
                outcomes = graders.finished(wait=False)
            else:
                outcomes = graders.finished(wait=True)
                self.seconds.grade += time.perf_counter() - began
            for key, outcome in outcomes:
                # An interrupted call may have left answers with the graders.
                if key in self.waiting:
                    self._settle(key, *self.waiting.pop(key), outcome)
            self.answers.report(what, total - sum(self.ungraded.values()), total)
        unanswered = [i for i, left in self.ungraded.items() if left]
        if unanswered:
            prompt, _ = self.posed[unanswered[0]]
            raise EspalierError(
                f"the sampler ended with {self.ungraded[unanswered[0]]} answers to task {prompt.task.origin} missing; "
                "expected one for each number that was requested"
            )

    def _grade(self, drawn: Drawn) -> None:
        """Hand an answer to the graders, unless the journal has its outcome."""
        i, sample = drawn.request.group, drawn.sample
        key = (drawn.request.row, drawn.request.epoch, drawn.k)
        self.samples[i][drawn.k] = sample
        outcome = None
        if sample.stop == "error":
            outcome = Outcome(0.0, error="sampler: the answer was not finished")
        elif self.answers.journal is not None:
            outcome = self.answers.journal.recall(self.step, key, sample.tokens, held_out=self.held_out)
        if outcome is None:
            self.waiting[key] = (i, sample)
            self.answers.graders.submit(key, self.posed[i][0], sample)
        else:
            self.recalled.add(key)
            self._settle(key, i, sample, outcome)

    def _settle(self, key: Key, i: int, sample: Sample, outcome: Outcome) -> None:
        """Note an outcome; the last one of a group puts the group into the journal."""
        sample.outcome = outcome
        self.ungraded[i] -= 1
        if self.ungraded[i] or self.answers.journal is None:
            return
        row, epoch = key[:2]
        entries = []
        for k, graded in sorted(self.samples[i].items()):
            if (row, epoch, k) not in self.recalled and graded.outcome is not None:
                entries.append(((row, epoch, k), graded.tokens, graded.outcome))
        self.answers.journal.write(self.step, entries, held_out=self.held_out)


def _to_json(sample: Sample, prompt: int) -> dict[str, Any]:
    """What a sample has behind its `prompt` tokens; floats keep all their bits."""
    assert sample.outcome is not None
    return {
        "tokens": sample.tokens[prompt:],
        "mask": sample.mask[prompt:],
        "weights": sample.weights[prompt:],
        "streams": {name: stream[prompt:] for name, stream in sample.streams.items()},
        "stop": sample.stop,
        "temperature": sample.temperature,
        "version": sample.version,
        "outcome": outcome_to_json(sample.outcome),
    }


def _from_json(entries: dict[str, Any], prompt: list[int]) -> Sample:
    """The sample that `_to_json` was called with; everything about its prompt is untrained, streams are 0 there."""
    zeros = [0.0] * len(prompt)
    return Sample(
        tokens=[*prompt, *entries["tokens"]],
        mask=[False] * len(prompt) + entries["mask"],
        weights=zeros + entries["weights"],
        streams={name: zeros + stream for name, stream in entries["streams"].items()},
        stop=entries["stop"],
        temperature=entries["temperature"],
        version=entries["version"],
        outcome=outcome_from_json(entries["outcome"]),
    )
