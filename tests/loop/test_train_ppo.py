"""The loop with PPO: critics that learn first, steps that stop, given texts, bands, shared backbones, resume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from drawn import Answered, answers
from espalier.algorithms.ppo import PPO
from espalier.config.sections import LoopConfig, OptimConfig
from espalier.engines.learner import ExportOptions, LearnerOptions, TorchLearner
from espalier.engines.protocols import Roles, samples_of
from espalier.engines.reference import StartReference
from espalier.loop import checkpoint
from espalier.loop.critic import CriticTraining
from espalier.loop.given import Ptx, trained
from espalier.loop.metrics import MetricsFile, read_lines
from espalier.loop.step import fit_critic, make_updates
from espalier.loop.train import Reporters, Trainer
from espalier.models import heads
from espalier.models.policy import Policy
from espalier.types import Draw, Sample
from learners import values
from runs import without_time
from samples import Groups, sample
from tiny import tiny_model, tiny_tokenizer

OPTIM = OptimConfig(lr=1e-3, schedule="constant")


def learner(kind: str) -> TorchLearner:
    """An actor, a critic of its own, or both in one."""
    model = tiny_model("llama")
    if kind == "critic":
        heads.attach_value(model)
    says: Any = "values" if kind == "critic" else "tokens"
    policy = Policy(model, "forest", says=says, value_head=kind == "shared")
    export = ExportOptions(tiny_tokenizer(), stop_ids=(4,))
    return TorchLearner(policy, OPTIM, LearnerOptions(budget=64), export_options=export)


class Run:
    """A trainer in a folder, and what it noted."""

    def __init__(self, folder: Path, algorithm: PPO, source: Answered, *, shared: bool = False, **critic: int):
        self.notes: list[str] = []
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.actor = learner("shared" if shared else "actor")
        self.critic = self.actor if shared else learner("critic")
        reference = StartReference(self.actor) if algorithm.beta else None
        training = None if shared else CriticTraining(OptimConfig(lr=2e-3, schedule="constant"), **critic)
        self.trainer = Trainer(
            Roles(self.actor, self.critic, reference), algorithm, source, optim=OPTIM, critic=training,
            loop=LoopConfig(out=str(folder), save_every=1, keep=0, seed=7),
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


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    changes = {not torch.equal(x, after[name]) for name, x in before.items()}
    assert len(changes) == 1, "all of a model's weights move, or none"
    return changes.pop()


def counts(one: TorchLearner) -> set[int]:
    """How many updates its weights had."""
    return set(one.optimizer.updates().values())


# ------------------------------------------------------------------------------------------- critics that learn first


def test_in_the_warm_up_the_critic_is_trained_alone(tmp_path: Path) -> None:
    run = Run(tmp_path, PPO(beta=0.1), Answered(steps=3, silent=0), warmup=2)
    policy, critic = values(run.actor), values(run.critic)
    for step in range(3):
        run.trainer._step()
        assert moved(policy, values(run.actor)) == (step == 2)
        assert not torch.equal(critic[heads.WEIGHT], values(run.critic)[heads.WEIGHT])
    first, second, third = run.lines()
    for line in (first, second):
        assert "policy" not in line and "grad_norm" not in line and line["grad_norm_critic"] > 0
        assert line["updates"] == 4 and line["value"] > 0 and line["tokens"] > 0
        assert line["kl_token"] == pytest.approx(0, abs=1e-6)
    assert second["value"] < first["value"]
    assert third["grad_norm"] > 0 and "policy" in third
    assert (counts(run.actor), counts(run.critic)) == ({4}, {12})
    counters = run.trainer.state.counters
    assert (counters["policy_updates"], counters["updates"]) == (4, 12)


def test_a_critic_may_learn_the_first_returns_before_anything_else(tmp_path: Path) -> None:
    """In three passes, of an update each; the values of the step are read again, and its answers learned from."""
    plain = Run(tmp_path / "plain", PPO(), Answered(steps=2, silent=0))
    plain.trainer.run()
    assert plain.lines()[0]["value_mean"] == 0
    run = Run(tmp_path / "first", PPO(), Answered(steps=2, silent=0), pretrain=3)
    finished = run.trainer.run()
    assert run.notes == ["step 1: the critic learned the returns of the first 4 groups 3 times"]
    first, second = run.lines()
    assert first["value_mean"] > 0.01 and first["kl_token"] == plain.lines()[0]["kl_token"]
    assert first["return_mean"] == pytest.approx(plain.lines()[0]["return_mean"], rel=0.5)
    assert "notes" not in second
    assert (counts(run.actor), counts(run.critic)) == ({8}, {11})
    assert finished.state.counters["updates"] == 8


def test_a_resumed_run_does_not_begin_with_the_critic_again(tmp_path: Path) -> None:
    Run(tmp_path, PPO(), Answered(steps=1, silent=0), pretrain=3).trainer.run()
    again = Run(tmp_path, PPO(), Answered(steps=2, silent=0), pretrain=3)
    again.resume(1)
    again.trainer.run()
    assert again.notes == [] and counts(again.critic) == {11}


def test_a_critic_that_shares_a_backbone_cannot_learn_first() -> None:
    both = learner("shared")
    with pytest.raises(ValueError, match="there is none of its own; give the loop one"):
        fit_critic(Roles(both, both), PPO(), Draw(answers(1, 1, seed=0)), {}, 1, 1e-3)


# ------------------------------------------------------------------------------------------------ steps that stop


@pytest.mark.parametrize("shared", [False, True])
def test_a_step_that_goes_too_far_leaves_the_policy_and_goes_on_with_the_critic(
    tmp_path: Path, shared: bool, monkeypatch: Any
) -> None:
    """The first minibatch is the old policy still; the second is beyond any limit."""
    run = Run(tmp_path, PPO(stop_kl=1e-9), Answered(steps=1, silent=0), shared=shared)
    after: list[dict[str, Tensor]] = []
    step = run.actor.optim_step
    monkeypatch.setattr(run.actor, "optim_step", lambda lr: (step(lr), after.append(values(run.actor)))[0])
    forwards: list[int] = []
    forward = run.actor.forward_backward
    monkeypatch.setattr(run.actor, "forward_backward", lambda *a, **k: (forwards.append(a[3]), forward(*a, **k))[1])
    run.trainer.run()
    assert len(after) == 1 and forwards == [0, 1]
    now = values(run.actor)
    assert all(torch.equal(x, now[name]) for name, x in after[0].items())
    assert all(p.grad is None for p in run.actor.optimizer.parameters().values())
    assert counts(run.actor) == {1} and (shared or counts(run.critic) == {4})
    # A shared critic is the policy's weights, so it cannot go on alone; its minibatches are counted all the same.
    note = "update 2 of 4 is too far from the old policy: it and those behind it left the policy as it was"
    (line,) = run.lines()
    assert line["notes"] == [note] and line["updates"] == 4


def test_the_limit_is_one_and_a_half_times_the_number() -> None:
    """The policy moves as far as it does without one, if the limit is just above what it comes to."""
    updates = []
    for stop_kl in (0.0, 1e9):
        algorithm = PPO(beta=0.0, stop_kl=stop_kl)
        roles = Roles(learner("actor"), learner("critic"))
        made = step_of(roles, algorithm, answers(4, 3, seed=0))
        updates.append((made.of_policy, made.stopped, made.numbers["approx_kl"]))
    assert updates[0] == updates[1] == (4, 0, pytest.approx(updates[0][2]))
    assert updates[0][2] > 0


def step_of(roles: Roles, algorithm: PPO, groups: Groups) -> Any:
    from espalier.loop.annotate import annotate

    state = annotate(groups, algorithm, roles, {})
    return make_updates(roles, algorithm, Draw(groups), state, step=0, seed=0, lr=1e-2, critic_lr=1e-2)


# ------------------------------------------------------------------------------------------------------- given texts


def text(n: int) -> Groups:
    """The n-th given text: of 4, 5 or 6 tokens, all but the first trained."""
    return [[sample([], [5 + (7 * n + k) % 100 for k in range(4 + n % 3)], part="ptx", group=n, key=9000 + n)]]


@dataclass
class Texts(Answered):
    """Beside its answers stand given texts, and it keeps their cursor."""

    silent: int = 0
    given: Ptx = field(default_factory=lambda: Ptx(text, 0.1, 4))

    def draw(self, step: int) -> Draw:
        drawn = super().draw(step)
        return replace(drawn, groups=[*drawn.groups, *self.given.take(step, drawn.groups)])

    def state(self) -> dict[str, int]:
        return {**super().state(), **self.given.state()}

    def restore(self, counts: Mapping[str, int]) -> None:
        super().restore(counts)
        self.given.restore(counts)


def test_texts_are_taken_in_order_until_they_have_their_share() -> None:
    """Answers of 27 trained tokens, a share of a quarter: nine tokens, after texts of 3, 4 and 5; then two of 3, 4."""
    given = Ptx(text, 0.25, 2)
    groups = [[sample([5], list(range(6, 33)))]]
    first = given.take(0, groups)
    assert [s.key for s in samples_of(first)] == [9000, 9001, 9002] and trained(first) == 12
    assert given.state() == {"given": 3}
    few = given.take(1, [[sample([5], [6])]])
    assert [s.key for s in samples_of(few)] == [9003, 9004], "one for each minibatch"
    assert given.take(2, []) == [] and given.state() == {"given": 5}
    other = Ptx(text, 0.25, 2)
    other.restore({"given": 3})
    assert [s.key for s in samples_of(other.take(0, [[sample([5], [6])]]))] == [9003, 9004]


def spied(one: TorchLearner, name: str, seen: list[list[str]], monkeypatch: Any) -> None:
    """Note the parts of the samples that a method is given."""
    inner = getattr(one, name)

    def noting(groups: Sequence[Sequence[Sample]], *args: Any, **kwargs: Any) -> Any:
        seen.append([s.part for s in samples_of(groups)])
        return inner(groups, *args, **kwargs)

    monkeypatch.setattr(one, name, noting)


@pytest.mark.parametrize("epochs", [1, 2])
def test_every_minibatch_has_a_text_and_the_critic_sees_none(tmp_path: Path, epochs: int, monkeypatch: Any) -> None:
    run = Run(tmp_path, PPO(ptx_coef=3.0, rollout_epochs=epochs), Texts(steps=2), pretrain=1)
    by_actor: list[list[str]] = []
    by_critic: list[list[str]] = []
    spied(run.actor, "forward_backward", by_actor, monkeypatch)
    for name in ("forward_backward", "say"):
        spied(run.critic, name, by_critic, monkeypatch)
    run.trainer.run()
    assert len(by_actor) == 2 * 4 * epochs
    assert all("ptx" in parts and parts.count("main") == 3 for parts in by_actor)
    assert len(by_critic) == 2 * 4 * epochs + 1 + 3 and all(set(parts) == {"main"} for parts in by_critic)
    for line in run.lines():
        assert line["ptx"] > 1
        # Each minibatch's loss is its policy's and three times its texts'; all minibatches of an epoch are alike.
        assert line["loss"] == pytest.approx(line["policy"] + 3 * line["ptx"], abs=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_the_cursor_of_texts_is_restored(tmp_path: Path, shared: bool) -> None:
    whole = Run(tmp_path / "whole", PPO(), Texts(steps=3), shared=shared)
    whole.trainer.run()
    cut = Run(tmp_path / "cut", PPO(), Texts(steps=3, interrupts={("draw", 2)}), shared=shared)
    assert cut.trainer.run().state.step == 2
    source = Texts(steps=3)
    again = Run(tmp_path / "cut", PPO(), source, shared=shared)
    again.resume(2)
    assert source.given.taken == 8
    again.trainer.run()
    assert source.given.taken == 12
    assert again.lines() == whole.lines() and again.files(3) == whole.files(3)


@dataclass
class Few(Texts):
    """Two answers a step, of which the limit ended one: fewer than minibatches."""

    def draw(self, step: int) -> Draw:
        groups = answers(2, 1, seed=step)
        self._last = groups
        groups[1][0].stop = "length"
        return Draw([*groups, *self.given.take(step, groups)], [], {"reward": 0.0})


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mask_cut", [False, True])
def test_texts_without_answers_make_no_update(tmp_path: Path, mask_cut: bool, shared: bool) -> None:
    """A minibatch whose answers all lost their weight trains on its text; one that never had any is not made."""
    run = Run(tmp_path, PPO(mask_cut=mask_cut), Few(steps=2), shared=shared)
    run.trainer.run()
    for line in run.lines():
        assert line["updates"] == 2
        assert line["notes"] == ["2 of 4 updates had nothing to run and were not made"]
    assert counts(run.actor) == {4}
    assert shared or counts(run.critic) == {2 if mask_cut else 4}


# -------------------------------------------------------------------------------------------------------------- bands


class Praised(Answered):
    """The same answers in every step, all of them good: they become likelier than the reference has them."""

    def draw(self, step: int) -> Draw:
        drawn = replace(super().draw(step), groups=answers(4, 3, seed=0))
        self._last = drawn.groups
        for s in samples_of(drawn.groups):
            s.reward = 1.0
        return drawn


def test_a_band_ends_a_run_above_it_and_saves(tmp_path: Path) -> None:
    """In the first step there is no KL but rounding; in the second there is some."""
    algorithm = PPO(kl_band="stop", kl_low=0.0, kl_high=1e-4, whiten_advantages=False)
    run = Run(tmp_path, algorithm, Praised(silent=0))
    finished = run.trainer.run()
    assert finished.stopped.startswith("KL to the reference is 0.") and "above kl_high 0.0001" in finished.stopped
    assert finished.state.step == 2 and len(run.lines()) == 2
    assert run.lines()[0]["kl_token"] < 1e-6 and run.lines()[1]["kl_token"] > 1e-4
    assert finished.chosen == tmp_path / "checkpoints" / checkpoint.step_name(2) and finished.chosen.is_dir()
    assert any("above the band 0 to 0.0001" in note for note in run.notes)
    again = Run(tmp_path, algorithm, Praised(silent=0))
    again.resume(2)
    assert again.trainer.run().stopped == finished.stopped and len(again.lines()) == 2


# ------------------------------------------------------------------------------------------------------------- resume


MOVING: dict[str, Any] = {"beta": 0.1, "kl_control": "adaptive", "kl_target": 0.01, "kl_horizon": 60.0}
FIELDS: dict[str, dict[str, Any]] = {
    "adaptive": {**MOVING, "rollout_epochs": 2, "returns": "monte_carlo"},
    "band": {"kl_band": "adapt", "kl_low": 0.001, "kl_high": 0.002},
    "cut": {"bootstrap_cut": True, "mask_cut": True, "whiten_rewards": True, "entropy_coef": 0.01},
    "no reference": {"beta": 0.0, "minibatches": 1},
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", FIELDS)
def test_a_run_that_was_interrupted_resumes_bit_for_bit(tmp_path: Path, name: str, shared: bool) -> None:
    """Weights and optimizers of both roles, moving numbers, metrics and samples."""
    algorithm = PPO(**FIELDS[name])
    first = {} if shared else {"warmup": 1, "pretrain": 1}
    whole = Run(tmp_path / "whole", algorithm, Answered(silent=0), shared=shared, **first)
    finished = whole.trainer.run()
    cut = Run(tmp_path / "cut", algorithm, Answered(silent=0, interrupts={("draw", 2)}), shared=shared, **first)
    assert cut.trainer.run().state.step == 2
    again = Run(tmp_path / "cut", algorithm, Answered(silent=0), shared=shared, **first)
    again.resume(2)
    state = again.trainer.run().state
    assert state.state == finished.state.state and state.counters == finished.state.counters
    for file in ("metrics.jsonl", "samples.jsonl"):
        assert again.lines(file) == whole.lines(file)
    files = whole.files(4)
    assert again.files(4) == files
    assert {name.split("/")[0] for name in files if "/" in name} >= ({"policy"} if shared else {"policy", "critic"})
    betas = [line["beta"] for line in whole.lines() if "beta" in line]
    if name in ("adaptive", "band"):
        assert len(set(betas)) > 2 and finished.state.state["beta_next"] != betas[-1]
    assert all("explained_variance" in line for line in whole.lines())


def test_a_shared_backbone_is_one_role_on_disk(tmp_path: Path) -> None:
    """Its value head is among the policy's weights, and moves."""
    run = Run(tmp_path, PPO(), Answered(steps=2, silent=0), shared=True)
    run.trainer.run()
    names = {name.split("/")[0] for name in run.files(2)}
    assert "policy" in names and "critic" not in names
    again = Run(tmp_path, PPO(), Answered(steps=2, silent=0), shared=True)
    again.resume(2)
    now, then = (values(one.actor)["value_head.weight"] for one in (run, again))
    assert torch.equal(now, then) and now.abs().sum() > 0
    assert all("value" in line and "lr_critic" not in line for line in run.lines())
