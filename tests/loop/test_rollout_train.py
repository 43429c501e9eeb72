"""The loop on rollouts: killed anywhere in a step, a run goes on bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.algorithms.dapo import DAPO
from espalier.algorithms.grpo import GRPO
from espalier.algorithms.traits import Algorithm
from espalier.config.sections import LoopConfig, OptimConfig
from espalier.engines.protocols import Request, Roles
from espalier.errors import EspalierError
from espalier.loop import checkpoint
from espalier.loop.journal import Journal
from espalier.loop.metrics import MetricsFile, read_lines
from espalier.loop.train import Reporters, Trainer
from espalier.outcomes import Key, Outcome
from espalier.types import Sample, StopReason
from learners import values
from preferences import make
from rollouts import FakeGraders, FakeSampler, FakeTasks, exact, source
from runs import without_time

STEPS = 4


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def kill_at(count: int) -> Callable[[], None]:
    """A function that kills at its call number `count`, from 1; 0 never."""
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            raise Killed

    return call


def respond(request: Request, k: int) -> tuple[list[int], StopReason]:
    row, epoch = request.row, request.epoch
    return [5 + (row + 3 * j + 7 * k - epoch) % 50 for j in range(2 + k)], "length" if k == 2 else "stop"


class Run:
    """A run in `folder` whose random reward answers differently in every process; `sampled`, `graded`, `updated` are
    called whenever it draws, grades or updates."""

    process = 0

    def __init__(self, folder: Path, algorithm: Algorithm, *, tasks: FakeTasks | None = None, **kills: int):
        Run.process += 1
        self.number = Run.process
        sampled, graded, updated = (kill_at(kills.get(name, 0)) for name in ("sampled", "graded", "updated"))

        def answer(request: Request, k: int) -> tuple[list[int], StopReason]:
            sampled()
            return respond(request, k)

        def outcome(key: Key, sample: Sample) -> Outcome:
            graded()
            return self.outcome(key)

        self.learner = make()
        step = self.learner.optim_step

        def optim_step(lr: float) -> dict[str, float]:
            updated()
            return step(lr)

        self.learner.optim_step = optim_step  # type: ignore[method-assign]
        folder.mkdir(exist_ok=True)
        self.folder, self.notes = folder, list[str]()
        self.journal = Journal(folder / "journal.jsonl")
        self.trainer = Trainer(
            Roles(self.learner),
            algorithm,
            source(
                tasks or FakeTasks(2, held=2, steps=STEPS),
                FakeSampler(answer),
                FakeGraders(outcome, delay=1),
                algorithm,
                group_size=3,
                journal=self.journal,
            ),
            optim=OptimConfig(lr=1e-2, schedule="constant"),
            loop=LoopConfig(out=str(folder), eval_every=2, save_every=2, keep=0),
            root=folder / "checkpoints",
            metrics=MetricsFile(folder / "metrics.jsonl"),
            samples=MetricsFile(folder / "samples.jsonl"),
            reporters=Reporters(lambda s, n: None, lambda s, n: None, self.notes.append, lambda: 0),
        )
        state = self.trainer.state
        self.trainer.state = replace(state, state={"max_tokens": 8.0})

    def outcome(self, key: Key) -> Outcome:
        row, epoch, k = key
        return exact(float((row * 5 + k * 3 - epoch) % 4))

    def go(self) -> Run:
        saved = checkpoint.choose(self.folder / "checkpoints")
        if saved is not None:
            self.trainer.resume(saved)
        else:
            # What the command does for a run that has no checkpoint yet.
            for name in ("metrics", "samples"):
                getattr(self.trainer, name).truncate_to(0)
        try:
            self.trainer.run()
        finally:
            self.journal.close()
        return self

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [without_time(line) for line in read_lines(self.folder / name)]


def assert_same(one: Run, other: Run) -> None:
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert one.lines(name) == other.lines(name)
    for (name, x), y in zip(values(one.learner).items(), values(other.learner).values(), strict=True):
        assert torch.equal(x, y), name
    blank: dict[str, Any] = {"lengths": {}, "digests": {}}
    assert replace(one.trainer.state, **blank) == replace(other.trainer.state, **blank)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("whole"), GRPO()).go()


def test_a_run_leaves_all_its_samples_and_numbers(whole: Run) -> None:
    samples, metrics = whole.lines("samples.jsonl"), whole.lines("metrics.jsonl")
    assert len(samples) == STEPS * 2 * 3
    assert [line["step"] for line in samples] == sorted(line["step"] for line in samples)
    steps = [line for line in metrics if "reward" in line]
    for step in steps:
        own = [line for line in samples if line["step"] == step["step"]]
        assert step["reward"] == pytest.approx(sum(line["score"] for line in own) / len(own))
        assert step["entropy"] == pytest.approx(
            sum(line["entropy"] * line["length"] for line in own) / sum(line["length"] for line in own)
        )
    assert {line["fate"] for line in samples} == {"keep"}
    assert [line["step"] for line in metrics if "eval_score" in line] == [2, 4]
    assert any("eval_score" in line for line in metrics)


@pytest.mark.parametrize(
    "kill", [{"sampled": 9}, {"graded": 22}, {"graded": 14}, {"updated": 3}, {"updated": 2}], ids=str
)
def test_a_run_that_is_killed_goes_on_bit_for_bit(tmp_path: Path, whole: Run, kill: dict[str, int]) -> None:
    """In a rollout before the first checkpoint and one after it, in an evaluation, in an update after and before."""
    with pytest.raises(Killed):
        Run(tmp_path, GRPO(), **kill).go()
    assert_same(Run(tmp_path, GRPO()).go(), whole)


class Moody(Run):
    """Graders that answer at random: differently in every process."""

    def outcome(self, key: Key) -> Outcome:
        return exact(hash((self.number, key)) % 1000 / 1000)


def test_what_was_graded_at_random_is_read_from_the_journal(tmp_path: Path) -> None:
    """Killed in the update of step 3, after all of its rollout was graded: the scores of the first process stay."""
    with pytest.raises(Killed):
        first = Moody(tmp_path, GRPO(), updated=3)
        first.go()
    second = Moody(tmp_path, GRPO()).go()
    scores = {(line["step"], line["task"]["row"], line["k"]): line["score"] for line in second.lines("samples.jsonl")}
    for (step, row, k), score in scores.items():
        process = first if step <= 3 else second
        assert score == process.outcome((row, 0, k)).score


def test_a_run_without_anything_to_learn_stops_at_the_same_step_after_a_kill(tmp_path: Path) -> None:
    """DAPO refills; with all scores equal, three steps without a live group end the run, killed in between or not."""

    class Flat(Run):
        def outcome(self, key: Key) -> Outcome:
            return exact(0.0)

    tasks = FakeTasks(2, steps=STEPS)
    with pytest.raises(EspalierError, match="3 steps in a row"):
        Flat(tmp_path / "whole", DAPO(), tasks=tasks).go()
    with pytest.raises(Killed):
        # A step draws 2 x 3 answers and 8 waves of as many.
        Flat(tmp_path / "cut", DAPO(), tasks=tasks, sampled=2 * 54 + 4).go()
    ended = Flat(tmp_path / "cut", DAPO(), tasks=tasks)
    with pytest.raises(EspalierError, match="3 steps in a row"):
        ended.go()
    assert ended.trainer.state.step == 2
    assert [line["fate"] for line in ended.lines("samples.jsonl")[:54]] == ["refilled"] * 48 + ["drop"] * 6
