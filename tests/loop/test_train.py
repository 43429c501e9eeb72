"""The loop with a reference that moves, a state that moves and mates: every bit of it is in the checkpoint."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.algorithms.dpo import DPO
from espalier.algorithms.kto import KTO
from espalier.algorithms.sft import SFT
from espalier.algorithms.traits import Algorithm, Traits
from espalier.config.sections import LoopConfig, OptimConfig
from espalier.engines.protocols import Group, Roles
from espalier.engines.reference import FILE, StartReference
from espalier.loop import checkpoint
from espalier.loop.metrics import MetricsFile, read_lines
from espalier.loop.offline import OfflineSource
from espalier.loop.train import Reporters, Trainer
from espalier.types import Batch, Outputs, Term
from preferences import furthest, make, pair_groups, policy_logprobs
from runs import without_time
from samples import Groups

STEPS = 6


@dataclass
class Data:
    """Two pairs a step, drawn anew; the same three are held out, in chunks of two and one."""

    steps: int = STEPS
    held: bool = True

    def groups(self, step: int) -> Groups:
        return pair_groups(2, seed=step % 3, base=1000 * step)

    def held_out(self) -> Iterator[Groups]:
        if self.held:
            groups = pair_groups(3, seed=50)
            yield from (groups[:2], groups[2:])

    def epoch_of(self, step: int) -> float:
        return step / self.steps

    def consumed(self, step: int) -> str:
        return f"{step:016x}"


@dataclass(frozen=True)
class Shifted(Algorithm):
    """DPO of pairs whose loss and gradient depend on a moving mean of how far the policy is from the reference."""

    inner: DPO = field(default_factory=lambda: DPO(beta=0.5, sync_every=2, sync_alpha=0.25))

    @property
    def traits(self) -> Traits:
        inner = self.inner.traits
        return Traits(
            "ranking", needs=("ref_logprobs", "old_logprobs"), whole=True, sync_every=inner.sync_every,
            sync_alpha=inner.sync_alpha,
        )  # fmt: skip

    def credit(self, groups: Sequence[Group], state: dict[str, float]) -> dict[str, float]:
        streams = [s.streams for g in groups for s in g]
        apart = math.fsum(sum(x["old_logprobs"]) - sum(x["ref_logprobs"]) for x in streams) / len(streams)
        return {"mean": 0.9 * state.get("mean", 0.0) + 0.1 * apart, "steps": state.get("steps", 0.0) + 1}

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        terms = self.inner.loss(outputs, batch)
        terms["pull"] = Term(outputs.logprobs * batch.state["mean"], "tokens", coef=0.1)
        return terms


class Run:
    """A trainer in a folder, with what it said."""

    def __init__(self, folder: Path, algorithm: Any, *, source: Data | None = None, watch: Any = None, **how: Any):
        traits = algorithm.traits
        self.notes: list[str] = []
        self.tracked: list[tuple[int, Mapping[str, float]]] = []
        self.learner = make(whole=traits.whole, **how)
        needs = "ref_logprobs" in traits.needs
        self.reference = StartReference(self.learner, moves=traits.sync_every > 0) if needs else None
        folder.mkdir(exist_ok=True)
        self.file = folder / "metrics.jsonl"
        self.trainer = Trainer(
            Roles(self.learner, reference=self.reference), algorithm, OfflineSource(source or Data()),
            optim=OptimConfig(lr=1e-2, schedule="constant"),
            loop=LoopConfig(out=str(folder), eval_every=2, save_every=1, keep=0), root=folder / "checkpoints",
            metrics=MetricsFile(self.file), watch=watch,
            reporters=Reporters(
                lambda step, numbers: None, lambda step, numbers: self.tracked.append((step, numbers)),
                self.notes.append, lambda: 0,
            ),
        )  # fmt: skip

    def lines(self) -> list[dict[str, Any]]:
        return [without_time(line) for line in read_lines(self.file)]


@pytest.mark.parametrize("how", [{}, {"lora": True}, {"compute": torch.bfloat16}], ids=["full", "lora", "bfloat16"])
@pytest.mark.parametrize("at", [1, 3])
def test_a_run_resumes_bit_for_bit_with_its_reference_and_its_state(
    tmp_path: Path, how: dict[str, Any], at: int
) -> None:
    """Step 1 is before the first move and step 3 between two; the rest repeats lines, weights and reference."""
    whole = Run(tmp_path / "whole", Shifted(), **how)
    finished = whole.trainer.run()
    assert finished.state.state["steps"] == STEPS and finished.state.state["mean"] != 0

    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    again = Run(tmp_path / "cut", Shifted(), **how)
    found = checkpoint.verify(tmp_path / "cut" / "checkpoints" / checkpoint.step_name(at))
    assert FILE in found.files
    again.trainer.resume(found)
    assert len(again.lines()) == at + at // 2
    again.trainer.run()
    assert again.lines() == whole.lines() and len(whole.lines()) == STEPS + STEPS // 2
    for name in (FILE, "policy/trained.safetensors", "policy/optimizer.safetensors"):
        a, b = (tmp_path / run / "checkpoints" / checkpoint.step_name(STEPS) / name for run in ("whole", "cut"))
        assert a.read_bytes() == b.read_bytes()
    # Lines hold times, so their lengths and digests differ.
    states = [replace(state, lengths={}, digests={}) for state in (again.trainer.state, finished.state)]
    assert states[0] == states[1]


def test_the_reference_moves_after_every_second_step_and_no_other(tmp_path: Path) -> None:
    run = Run(tmp_path, DPO(sync_every=2, sync_alpha=1.0))
    run.trainer.run()
    losses = [line["loss"] for line in run.lines() if "loss" in line]
    # Held against itself, the policy's loss is ln 2: before the first step, and after every move.
    same = [abs(loss - math.log(2)) < 1e-6 for loss in losses]
    assert same == [True, False, True, False, True, False]
    assert run.reference is not None
    groups = pair_groups()
    assert run.reference.logprobs(groups) == policy_logprobs(run.learner, groups)


def test_a_reference_that_stays_keeps_the_start_over_a_resume(tmp_path: Path) -> None:
    groups = pair_groups()
    start = policy_logprobs(make(), groups)
    Run(tmp_path, DPO()).trainer.run()
    again = Run(tmp_path, DPO())
    found = checkpoint.choose(tmp_path / "checkpoints")
    assert found is not None and FILE not in found.files
    again.trainer.resume(found)
    assert again.reference is not None and again.reference.logprobs(groups) == start
    assert furthest(policy_logprobs(again.learner, groups), start) > 0.1


def test_dpo_learns_and_its_held_out_numbers_say_so(tmp_path: Path) -> None:
    run = Run(tmp_path, DPO(beta=0.5))
    finished = run.trainer.run()
    steps = [line for line in run.lines() if "loss" in line]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and steps[0]["margin"] == 0
    assert steps[-1]["loss"] < 0.5 and steps[-1]["accuracy"] == 1  # the pairs of steps 4 to 6 are those of 1 to 3
    held = [line for line in run.lines() if "eval_loss" in line]
    assert [line["step"] for line in held] == [2, 4, 6]
    assert {"eval_sigmoid", "eval_accuracy", "eval_margin"} <= held[0].keys() and "eval_perplexity" not in held[0]
    assert finished.state.best_score == -min(line["eval_loss"] for line in held)
    assert run.notes[0].startswith(f"step 2: held-out loss {held[0]['eval_loss']:.4f}, accuracy ")
    assert ", margin " in run.notes[0]


def test_every_step_trains_with_the_rate_of_its_own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the steps rise and half fall: by hand, 6 steps with a peak of 0.01. The learner and the file agree."""
    run = Run(tmp_path, SFT())
    run.trainer.optim = OptimConfig(lr=1e-2, schedule="linear", warmup=0.5)
    rates: list[float] = []
    step = run.learner.optim_step

    def heard(lr: float) -> Any:
        rates.append(lr)
        return step(lr)

    monkeypatch.setattr(run.learner, "optim_step", heard)
    run.trainer.run()
    thirds = [0.01 / 3, 0.02 / 3, 0.01, 0.01, 0.02 / 3, 0.01 / 3]
    assert rates == pytest.approx(thirds)
    assert [line["lr"] for line in run.lines() if "lr" in line] == rates


def test_evaluation_moves_no_state(tmp_path: Path) -> None:
    """With and without held-out data the run is the same, though evaluation credits its own groups."""
    for name, held in (("with", True), ("without", False)):
        Run(tmp_path / name, Shifted(), source=Data(held=held)).trainer.run()
    states = [
        checkpoint.verify(tmp_path / name / "checkpoints" / checkpoint.step_name(STEPS)).state().state
        for name in ("with", "without")
    ]
    assert states[0] == states[1]


def test_kto_runs_with_its_mates(tmp_path: Path) -> None:
    class Unpaired(Data):
        def groups(self, step: int) -> Groups:
            groups = super().groups(step)
            for s in (s for g in groups for s in g):
                s.beats = []
            return groups

    run = Run(tmp_path, KTO(beta=0.5), source=Unpaired(held=False))
    state = run.trainer.run().state.state
    lines = run.lines()
    assert lines[0]["kto"] == pytest.approx(0.5, abs=1e-6) and lines[0]["kl"] == 0
    assert state["kl"] == lines[-1]["kl"] and lines[-1]["kto"] < 0.45


def test_likelihood_is_measured_as_before(tmp_path: Path) -> None:
    run = Run(tmp_path, SFT())
    run.trainer.run()
    held = [line for line in run.lines() if "eval_loss" in line]
    assert all({"eval_perplexity", "eval_accuracy", "eval_tokens"} <= line.keys() for line in held)
    assert "perplexity" in run.notes[0]


def test_what_watchers_say_is_noted_and_written(tmp_path: Path) -> None:
    seen = []

    def watch(step: int, numbers: Mapping[str, float]) -> list[str]:
        seen.append((step, numbers["loss"]))
        return ["margins fall"] if step == 3 else []

    run = Run(tmp_path, DPO(), source=Data(held=False), watch=watch)
    run.trainer.run()
    lines = run.lines()
    assert seen == [(line["step"], line["loss"]) for line in lines]
    assert [line.get("notes") for line in lines] == [None, None, ["margins fall"], None, None, None]
    assert run.notes == ["step 3: margins fall"]
    assert all("notes" not in numbers for _, numbers in run.tracked)


def test_a_moving_reference_that_is_missing_is_said(tmp_path: Path) -> None:
    class Moving(SFT):
        traits = Traits(likelihood=True, sync_every=1, sync_alpha=0.5)

    with pytest.raises(ValueError, match="moves its reference, and there is none"):
        Run(tmp_path, Moving()).trainer.run()
