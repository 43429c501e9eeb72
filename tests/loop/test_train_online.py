"""The loop on rollouts: several updates a step, files of samples, what is logged, stops in the middle, a critic."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from drawn import Answered
from espalier.algorithms.grpo import GRPO
from espalier.algorithms.online import Online
from espalier.algorithms.traits import Algorithm, Traits
from espalier.config.sections import LoopConfig, OptimConfig
from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.engines.protocols import Group, Roles
from espalier.engines.reference import StartReference
from espalier.errors import CheckpointError, EspalierError
from espalier.loop import checkpoint
from espalier.loop.critic import CriticTraining
from espalier.loop.metrics import MetricsFile, read_lines
from espalier.loop.train import Reporters, Trainer
from espalier.models import heads
from espalier.models.policy import Policy
from espalier.types import Batch, Outputs, Term
from preferences import make
from runs import without_time
from tiny import tiny_model


class Run:
    """A trainer in a folder, with what it said."""

    def __init__(self, folder: Path, algorithm: Algorithm, source: Answered, *, critic: Any = None, **loop: Any):
        online = algorithm.traits.online
        assert online is not None
        self.notes: list[str] = []
        self.learner = make(whole=False, entropy=online.entropy)
        self.critic = critic
        reference = StartReference(self.learner) if "ref_logprobs" in algorithm.traits.needs else None
        folder.mkdir(exist_ok=True)
        self.folder = folder
        settings: dict[str, Any] = {"out": str(folder), "save_every": 1, "keep": 0, "seed": 7, **loop}
        self.trainer = Trainer(
            Roles(self.learner, critic, reference), algorithm, source,
            optim=OptimConfig(lr=1e-3, schedule="constant"), loop=LoopConfig(**settings),
            critic=CriticTraining(OptimConfig(lr=2e-3, schedule="linear", warmup=0.0)) if critic else None,
            root=folder / "checkpoints", metrics=MetricsFile(folder / "metrics.jsonl"),
            samples=MetricsFile(folder / "samples.jsonl"),
            reporters=Reporters(lambda step, numbers: None, lambda step, numbers: None, self.notes.append, lambda: 0),
        )  # fmt: skip

    def lines(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        return [without_time(line) for line in read_lines(self.folder / name)]

    def files(self, step: int) -> dict[str, bytes]:
        folder = self.folder / "checkpoints" / checkpoint.step_name(step)
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}

    def resume(self, step: int) -> None:
        self.trainer.resume(checkpoint.verify(self.folder / "checkpoints" / checkpoint.step_name(step)))


ALGORITHMS = {
    "one update": GRPO(),
    "six updates": GRPO(rollout_epochs=2, minibatches=3, beta=0.1, kl_in="reward"),
    "the sampler's": GRPO(minibatches=2, old="sampler", entropy_coef=0.01),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_run_that_a_draw_interrupts_resumes_bit_for_bit(tmp_path: Path, name: str) -> None:
    """The step whose draw was given up is drawn again; weights, optimizer, metrics and samples are those of a run that
    nothing interrupted."""
    # With the KL in the reward no group is silent: its advantages are not 0.
    silent = int(name != "six updates")
    whole = Run(tmp_path / "whole", ALGORITHMS[name], Answered(silent=silent))
    finished = whole.trainer.run()
    assert finished.state.counters["source.count"] == 40 and not finished.stopped

    cut = Run(tmp_path / "cut", ALGORITHMS[name], Answered(silent=silent, interrupts={("draw", 2)}))
    stopped = cut.trainer.run()
    assert stopped.chosen is None and stopped.stopped == "stop signal" and stopped.state.step == 2
    source = Answered(silent=silent)
    again = Run(tmp_path / "cut", ALGORITHMS[name], source)
    again.resume(2)
    assert again.trainer.run().state.counters == finished.state.counters
    assert source.calls[:3] == [("moved", 2), ("draw", 2), ("moved", 3)]
    for file in ("metrics.jsonl", "samples.jsonl"):
        assert again.lines(file) == whole.lines(file)
    assert again.files(4) == whole.files(4) and "policy/optimizer.safetensors" in whole.files(4)


class Signalled(Answered):
    """A SIGTERM comes in the update of step `at`, or in the evaluation after it if there are scores."""

    at = 2

    def moved(self, version: int) -> None:
        super().moved(version)
        if version == self.at and not self.scores:
            os.kill(os.getpid(), signal.SIGTERM)

    def evaluate(self, roles: Any, algorithm: Any, state: dict[str, float]) -> dict[str, float]:
        if self.version == self.at and self.scores:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().evaluate(roles, algorithm, state)


def test_a_signal_in_an_update_ends_the_run_after_its_step(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    finished = Run(tmp_path, GRPO(), Signalled()).trainer.run()
    assert (finished.stopped, finished.chosen, finished.state.step) == ("SIGTERM", None, 2)
    assert (tmp_path / "checkpoints" / checkpoint.step_name(2)).is_dir()
    assert "SIGTERM: saving after this step, then stopping" in capfd.readouterr().err


def test_a_signal_after_the_last_step_changes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = Signalled(scores=[0.1, 0.2, 0.3, 0.4])
    source.at = 4
    finished = Run(tmp_path, GRPO(), source).trainer.run()
    assert (finished.stopped, finished.state.step, finished.state.best_score) == ("", 4, 0.4)
    assert finished.chosen is not None and finished.chosen.name == checkpoint.step_name(4)
    assert "SIGTERM: the last step is made already, and the run ends as it would have" in capfd.readouterr().err


def test_a_run_interrupted_before_its_first_step_begins_again(tmp_path: Path) -> None:
    cut = Run(tmp_path, GRPO(), Answered(interrupts={("draw", 0)}))
    assert cut.trainer.run().state.step == 0
    again = Run(tmp_path, GRPO(), Answered())
    again.resume(0)
    assert again.trainer.run().state.step == 4 and len(again.lines()) == 4


def test_lines_after_the_checkpoint_are_cut_from_both_files(tmp_path: Path) -> None:
    Run(tmp_path / "a", GRPO(), Answered()).trainer.run()
    again = Run(tmp_path / "a", GRPO(), Answered())
    again.resume(1)
    assert len(again.lines()) == 1 and len(again.lines("samples.jsonl")) == 12
    file = tmp_path / "a" / "samples.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"key": 0', b'"key": 1'))
    with pytest.raises(CheckpointError, match=r"samples\.jsonl have sha256"):
        Run(tmp_path / "a", GRPO(), Answered()).resume(1)


def test_a_checkpoint_of_a_run_without_samples_loads(tmp_path: Path) -> None:
    first = Run(tmp_path, GRPO(), Answered(steps=2))
    first.trainer.samples = None
    first.trainer.run()
    again = Run(tmp_path, GRPO(), Answered())
    again.resume(2)
    again.trainer.run()
    assert {line["step"] for line in again.lines("samples.jsonl")} == {3, 4}


def test_what_a_step_of_one_update_writes(tmp_path: Path) -> None:
    """One forward says what is logged: no other is made, and the streams are there when samples are written."""
    run = Run(tmp_path, GRPO(), Answered(steps=1, notes=["nine were dropped"]))
    run.learner.say = None  # type: ignore[assignment, method-assign]
    run.trainer.run()
    (line,) = run.lines()
    assert line["reward"] > 0 and line["ratio"] == pytest.approx(1, abs=1e-6)
    assert line["clip_low"] == line["clip_high"] == 0
    assert line["updates"] == 1 and line["groups"] == 3 and line["samples"] == 9 and line["trained"] == 9 / 12
    assert 4 < line["entropy"] < 5, "near ln 128 = 4.85, untrained"
    assert line["notes"] == ["nine were dropped"] and run.notes == ["step 1: nine were dropped"]
    (timed,) = read_lines(tmp_path / "metrics.jsonl")
    assert {"seconds_draw", "seconds_annotate", "seconds_update"} <= timed.keys()
    ran = [line["streams"] for line in run.lines("samples.jsonl") if line["key"] < 300]
    assert all({"old_logprobs", "entropy", "advantages"} <= set(streams) for streams in ran) and len(ran) == 9
    silent = [line["streams"] for line in run.lines("samples.jsonl") if line["key"] >= 300]
    assert all("old_logprobs" not in streams for streams in silent) and len(silent) == 3


def test_updates_are_counted_and_the_rate_is_constant_in_a_step(tmp_path: Path, monkeypatch: Any) -> None:
    run = Run(tmp_path, ALGORITHMS["six updates"], Answered(steps=2, silent=0))
    run.trainer.optim = OptimConfig(lr=1e-3, schedule="linear", warmup=0.0)
    rates: list[float] = []
    keys: list[int] = []
    step, forward = run.learner.optim_step, run.learner.forward_backward
    monkeypatch.setattr(run.learner, "optim_step", lambda lr: (rates.append(lr), step(lr))[1])
    monkeypatch.setattr(run.learner, "forward_backward", lambda *a, **k: (keys.append(a[3]), forward(*a, **k))[1])
    state = run.trainer.run().state
    assert rates == [1e-3] * 6 + [5e-4] * 6 and keys == list(range(12))
    assert state.step == 2 and state.counters["updates"] == 12
    assert set(run.learner.optimizer.updates().values()) == {12}
    assert [line["updates"] for line in run.lines()] == [6, 6]


def test_without_anything_to_run_nothing_moves(tmp_path: Path) -> None:
    """Steps of silent groups, and of samples without weight: no update, not even by momentum, and a line says so."""
    run = Run(tmp_path, GRPO(), Answered(steps=2))
    run.trainer._step()
    before = {n: p.detach().clone() for n, p in run.learner.optimizer.parameters().items()}
    run.trainer.source.silent = 4  # type: ignore[attr-defined]
    run.trainer._step()
    for name, parameter in run.learner.optimizer.parameters().items():
        assert torch.equal(parameter, before[name])
    line = run.lines()[1]
    assert "loss" not in line and line["updates"] == 0 and line["trained"] == 0 and line["tokens"] == 0
    assert line["notes"] == ["1 of 1 updates had nothing to run and were not made"]
    other = Run(tmp_path / "masked", GRPO(), Answered(steps=2, masked=True))
    start = {n: p.detach().clone() for n, p in other.learner.optimizer.parameters().items()}
    other.trainer.run()
    assert all(torch.equal(p, start[n]) for n, p in other.learner.optimizer.parameters().items())


def test_the_highest_held_out_score_is_the_best(tmp_path: Path) -> None:
    source = Answered(steps=4, scores=[0.25, 0.75, 0.5, 0.5])
    run = Run(tmp_path, GRPO(), source, eval_every=1, patience=2)
    finished = run.trainer.run()
    assert (finished.state.best_score, finished.state.best_step, finished.state.stale) == (0.75, 2, 2)
    assert finished.chosen == tmp_path / "checkpoints" / "step-000002"
    assert [line["eval_score"] for line in run.lines() if "eval_score" in line] == source.scores
    assert run.notes[1] == "step 2: held-out score 0.7500, length 7.0, the best so far"


def test_an_interrupted_evaluation_is_made_when_the_run_goes_on(tmp_path: Path) -> None:
    scores = [0.25, 0.75, 0.5, 0.5]
    whole = Run(tmp_path / "whole", GRPO(), Answered(scores=scores), eval_every=2)
    whole.trainer.run()
    cut = Run(tmp_path / "cut", GRPO(), Answered(scores=scores, interrupts={("evaluate", 2)}), eval_every=2)
    stopped = cut.trainer.run()
    assert stopped.state.step == 2 and "evaluated_at" not in stopped.state.counters
    again = Run(tmp_path / "cut", GRPO(), Answered(scores=scores), eval_every=2)
    again.resume(2)
    again.trainer.run()
    assert again.lines() == whole.lines()
    bare = {"lengths": {}, "digests": {}}
    assert replace(again.trainer.state, **bare) == replace(whole.trainer.state, **bare)


# ------------------------------------------------------------------------------------------------------------- a critic


@dataclass(frozen=True)
class ActorCritic(Algorithm):
    """Raises tokens by their return less the critic's value; a return is the reward of the whole."""

    online: Online = field(default_factory=lambda: Online(minibatches=2))

    @property
    def traits(self) -> Traits:
        return Traits("task", needs=("values", "old_logprobs"), online=self.online)

    def credit(self, groups: Sequence[Group], state: dict[str, float]) -> dict[str, float]:
        for s in (s for g in groups for s in g):
            s.streams["returns"] = [s.reward or 0.0] * len(s)
        return state

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        advantages = batch.streams["returns"] - batch.streams["values"]
        return {"policy": Term(-outputs.logprobs * advantages * batch.weights, "tokens")}

    def value_loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        assert outputs.values is not None
        gap = outputs.values - batch.streams["returns"]
        return {"value": Term(0.5 * gap * gap * batch.weights, "tokens")}


def critic() -> TorchLearner:
    model = tiny_model("llama")
    heads.attach(model, 1, seed=1)
    return TorchLearner(Policy(model, "forest", says="values"), OptimConfig(lr=2e-3), LearnerOptions(budget=64))


def test_a_critic_learns_beside_and_has_its_own_folder(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole", ActorCritic(), Answered(silent=0), critic=critic())
    whole.trainer.run()
    lines = whole.lines()
    assert lines[-1]["value"] < 0.8 * lines[0]["value"] and lines[0]["value_loss"] == lines[0]["value"]
    assert [line["lr_critic"] for line in lines] == pytest.approx([2e-3, 1.5e-3, 1e-3, 0.5e-3])
    assert lines[0]["grad_norm"] != lines[0]["grad_norm_critic"] > 0
    assert {"policy/trained.safetensors", "critic/trained.safetensors"} <= whole.files(4).keys()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    again = Run(tmp_path / "cut", ActorCritic(), Answered(silent=0), critic=critic())
    again.resume(2)
    again.trainer.run()
    assert again.lines() == lines and again.files(4) == whole.files(4)


def test_a_checkpoint_without_a_critic_is_refused(tmp_path: Path) -> None:
    Run(tmp_path, GRPO(), Answered(steps=1)).trainer.run()
    with pytest.raises(CheckpointError, match="has no critic/, so it was written by a run without a critic"):
        Run(tmp_path, ActorCritic(), Answered(), critic=critic()).resume(1)


# ------------------------------------------------------------------------------------------------ gradients that fail


@pytest.mark.parametrize(("bad", "said"), [(0, "the weights before it are saved"), (1, "nothing is saved, since 1")])
def test_between_updates_nothing_is_saved(tmp_path: Path, monkeypatch: Any, bad: int, said: str) -> None:
    run = Run(tmp_path, GRPO(minibatches=2), Answered())
    step, made = run.learner.optim_step, 0

    def failing(lr: float) -> dict[str, float]:
        nonlocal made
        if made == bad:
            raise FloatingPointError("gradient norm is inf")
        made += 1
        return step(lr)

    monkeypatch.setattr(run.learner, "optim_step", failing)
    with pytest.raises(EspalierError, match=f"step 1: gradient norm is inf, so no update was made; {said}"):
        run.trainer.run()
    assert checkpoint.steps(tmp_path / "checkpoints") == ([0] if bad == 0 else [])


def test_a_draw_that_stops_the_run_leaves_its_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Answered()
    draw = source.draw

    def stopping(step: int) -> Any:
        drawn = draw(step)
        if step == 1:
            raise EspalierError("too many answers were cut")
        return drawn

    monkeypatch.setattr(source, "draw", stopping)
    run = Run(tmp_path, GRPO(), source)
    with pytest.raises(EspalierError, match="cut"):
        run.trainer.run()
    assert [line["step"] for line in run.lines("samples.jsonl")] == [1] * 12 + [2] * 12
    assert [line["step"] for line in run.lines()] == [1]
