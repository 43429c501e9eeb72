"""Runs on given rows, against the step written out by hand: the same weights and optimizer, bit for bit, and the same
numbers under the same names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.algorithms.dpo import DPO
from espalier.algorithms.kto import KTO
from espalier.algorithms.sft import SFT
from espalier.algorithms.traits import Algorithm
from espalier.config.sections import LoopConfig, OptimConfig
from espalier.engines.learner import TorchLearner
from espalier.engines.protocols import Roles
from espalier.engines.reference import StartReference
from espalier.forest.pack import pack, totals
from espalier.loop import checkpoint
from espalier.loop.metrics import MetricsFile, read_lines
from espalier.loop.offline import OfflineSource
from espalier.loop.schedule import learning_rate
from espalier.loop.state import TrainState
from espalier.loop.train import Reporters, Trainer
from espalier.types import Outputs
from preferences import make, pair_groups
from samples import Groups

OPTIM = OptimConfig(lr=1e-2, schedule="cosine", warmup=0.5)
STEPS = 3
COMMON = {
    *("step", "loss", "lr", "grad_norm", "epoch", "samples", "groups", "tokens", "packed", "scored", "seconds"),
    *("tokens_per_second", "memory_bytes", "rows"),
}
PAIRS = ("sigmoid", "accuracy", "margin", "rewards_chosen", "rewards_rejected", "logprobs_chosen", "logprobs_rejected",
         "length_chosen", "length_rejected")  # fmt: skip
LABELS = ("kto", "kl", "accuracy", "good", "imbalance", "rewards_good", "rewards_bad", "logprobs_good", "logprobs_bad")
CASES: dict[str, tuple[Algorithm, set[str]]] = {
    "sft": (SFT(), {"nll", "nll_chosen"}),
    "dpo": (DPO(), set(PAIRS)),
    "kto": (KTO(), set(LABELS)),
}


@dataclass
class Rows:
    """Three pairs a step; without pairs, each answer is a group with a label of its own."""

    pairs: bool
    steps: int = STEPS

    def groups(self, step: int) -> Groups:
        groups = pair_groups(3, seed=step, base=100 * step)
        if self.pairs:
            return groups
        alone = [[s] for g in groups for s in g]
        for number, (s,) in enumerate(alone):
            s.beats, s.group = [], number
        return alone

    def held_out(self) -> Iterator[Groups]:
        yield self.groups(99)

    def epoch_of(self, step: int) -> float:
        return step / STEPS

    def consumed(self, step: int) -> str:
        return f"{step:016x}"


def learner_of(algorithm: Algorithm) -> TorchLearner:
    return make(whole=algorithm.traits.whole, linear=algorithm.traits.linear)


def streams(learner: TorchLearner, reference: StartReference, algorithm: Algorithm, groups: Groups) -> dict[str, float]:
    """What stands on samples before the loss; mates go through the models in the forest of their group."""
    mates = algorithm.mates(groups) if algorithm.traits.mates else []
    joined = [[*g, *(s for m in mates for s in m if m[0].group == g[0].group)] for g in groups]
    if "ref_logprobs" in algorithm.traits.needs:
        for s, logprobs in zip((s for g in joined for s in g), reference.logprobs(joined), strict=True):
            s.streams["ref_logprobs"] = logprobs
    if mates:
        for s, said in zip((s for g in mates for s in g), learner.say(mates, ["logprobs"]), strict=True):
            s.streams["old_logprobs"] = said.logprobs
    return algorithm.credit([*groups, *mates], {})


def step_by_hand(learner: TorchLearner, algorithm: Algorithm, groups: Groups, state: dict[str, float]) -> float:
    """Gradients of one step: each micro-batch's sums over the totals of the step. Returns the loss."""
    sums, policy, loss = totals(groups), learner.policy, 0.0

    def value_of(outputs: Outputs, batch: Any) -> Any:
        value: Any = None
        for term in algorithm.loss(outputs, batch).values():
            if term.coef:
                share = term.coef * (term.x.sum() / sums[term.over, term.part])
                value = share if value is None else share + value
        return value

    for forward in learner.forwards.plan(groups):
        batch = pack(forward, sums, state=state, share=policy.shares)
        cotangent = None
        if algorithm.traits.linear:
            zeros = torch.zeros(len(batch.targets_U), requires_grad=True)
            (cotangent,) = torch.autograd.grad(value_of(Outputs(zeros[batch.score]), batch), zeros)
        scores = policy(batch, cotangent_U=cotangent)
        value = value_of(Outputs(scores["logprobs"][batch.score]), batch)
        value.backward()
        loss += value.item()
    return loss


@pytest.mark.parametrize("name", CASES)
def test_a_run_on_rows_is_the_step_written_out(tmp_path: Path, name: str) -> None:
    algorithm, terms = CASES[name]
    rows = Rows(pairs=name != "kto")
    learner = learner_of(algorithm)
    trainer = Trainer(
        Roles(learner, reference=StartReference(learner)), algorithm, OfflineSource(rows), optim=OPTIM,
        loop=LoopConfig(out=str(tmp_path)), root=tmp_path / "checkpoints", metrics=MetricsFile(tmp_path / "m.jsonl"),
        reporters=Reporters(lambda *_: None, lambda *_: None, lambda _: None, lambda: 0),
    )  # fmt: skip
    trainer.run()
    lines = [line for line in read_lines(tmp_path / "m.jsonl") if "loss" in line]

    other = learner_of(algorithm)
    reference = StartReference(other)
    for step in range(STEPS):
        groups = rows.groups(step)
        state = streams(other, reference, algorithm, groups)
        loss = step_by_hand(other, algorithm, groups, state)
        norm = other.optimizer.step(learning_rate(step, STEPS, OPTIM))
        assert (lines[step]["loss"], lines[step]["grad_norm"]) == (loss, norm)
        assert lines[step].keys() == COMMON | terms
    (tmp_path / "by-hand").mkdir()
    other.save(tmp_path / "by-hand")
    saved = tmp_path / "checkpoints" / checkpoint.step_name(STEPS)
    for file in ("trained.safetensors", "optimizer.safetensors"):
        assert (saved / "policy" / file).read_bytes() == (tmp_path / "by-hand" / file).read_bytes()
    held = [line for line in read_lines(tmp_path / "m.jsonl") if "eval_loss" in line]
    assert len(held) == 1 and "eval_score" not in held[0]
    assert trainer.state.best_score == -held[0]["eval_loss"]


def test_a_checkpoint_of_the_old_layout_loads(tmp_path: Path) -> None:
    """Files of the policy beside state.json, and the best loss as `best`."""
    learner = learner_of(SFT())
    learner.save(tmp_path / "policy")
    assert checkpoint.role_folder(tmp_path, "policy") == tmp_path / "policy"
    old = tmp_path / "old"
    (tmp_path / "policy").rename(old)
    assert checkpoint.role_folder(old, "policy") == old
    learner_of(SFT()).load(checkpoint.role_folder(old, "policy"))
    entries: dict[str, Any] = {
        "step": 3,
        "epoch": 0,
        "position": 12,
        "counters": {},
        "state": {},
        "best_step": 2,
        "stale": 0,
    }
    entries["lengths"] = {"metrics.jsonl": 10}
    state = TrainState.from_json(json.dumps({**entries, "best": 0.75}))
    assert (state.best_score, state.best_step) == (-0.75, 2)
    assert TrainState.from_json(json.dumps({**entries, "best": None})).best_score is None
    assert json.loads(state.to_json())["best_score"] == -0.75 and "best" not in json.loads(state.to_json())
