"""Checks of dist_worker.py: references, measuring and scalar heads on all ranks, against one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dist_updates import updates, values
from espalier.algorithms.dpo import DPO
from espalier.config.sections import ModelConfig, OptimConfig
from espalier.engines import fsdp, precomputed
from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.engines.precomputed import PrecomputedReference
from espalier.engines.processes import OneProcess
from espalier.engines.reference import FILE, ModelReference, StartReference
from espalier.engines.reward_model import RewardModel
from espalier.files import file_to_tensors
from espalier.models import heads
from espalier.models.adapters import add_adapter
from espalier.models.policy import Policy
from espalier.types import Batch, Outputs, Says, Term
from preferences import Table, furthest, likelihood, pair_groups
from samples import Groups
from tiny import tiny_model

Figures = dict[str, Any]


def make(on: Any, *, lora: bool = False, compute: torch.dtype = torch.float32, says: Says = "tokens") -> TorchLearner:
    model = tiny_model("llama")
    if lora:
        add_adapter(model, ModelConfig(model="m", lora_rank=4), seed=3)
    if says == "reads":
        heads.attach(model, 2, seed=1)
    options = LearnerOptions(budget=64, whole=True, compute=compute)
    return TorchLearner(Policy(model, "forest", says=says), OptimConfig(eps=1e-4), options, world=on)


def train(learner: TorchLearner, groups: Groups, loss: Any = likelihood) -> None:
    learner.forward_backward(groups, loss, {}, 0)
    learner.optim_step(1e-2)


def policy_logprobs(learner: TorchLearner, groups: Groups) -> list[list[float]]:
    return [outputs.logprobs for outputs in learner.say(groups, ["logprobs"])]


def shards(learner: TorchLearner) -> dict[str, torch.Tensor]:
    return {n: fsdp.local(p.detach()).clone() for n, p in learner.policy.named_parameters()}


def start(world: Any, folder: Path) -> Figures:
    """The start's numbers after training, and after moves; the shards keep their bits. One group leaves a rank idle."""
    groups, out = pair_groups(), {}
    for name, how in (("full", {}), ("lora", {"lora": True}), ("bfloat16", {"compute": torch.bfloat16})):
        alone, spread = make(OneProcess(), **how), make(world, **how)
        one, two = (StartReference(made, moves=True) for made in (alone, spread))
        first = two.logprobs(groups)
        assert first == policy_logprobs(spread, groups), "at the start they are the same to the bit"
        train(alone, groups), train(spread, groups)
        before, trained = shards(spread), policy_logprobs(spread, groups)
        again = two.logprobs(groups)
        assert again == first and furthest(trained, first) > 0.05
        after = shards(spread)
        assert all(torch.equal(before[n], after[n]) for n in before), "the exchange changed live shards"
        assert policy_logprobs(spread, groups) == trained
        out[f"{name} start"] = furthest(first, one.logprobs(groups))
        out[f"{name} idle"] = furthest(two.logprobs(groups[:1]), one.logprobs(groups[:1]))
        one.move(0.25), two.move(0.25)
        moved = two.logprobs(groups)
        out[f"{name} moved"] = furthest(moved, one.logprobs(groups))
        assert furthest(moved, first) > 0.005
        saved = folder / name
        saved.mkdir(exist_ok=True)
        two.save(saved)
        world.barrier()
        other = StartReference(make(world, **how), moves=True)
        other.load(saved)
        assert other.logprobs(groups) == moved
        held = file_to_tensors(saved / FILE)
        out[f"{name} file"] = max((held[n] - x).abs().max().item() for n, x in one._exact.items())
    return out


def error(world: Any, _: Path) -> Figures:
    """An error on every rank in the middle of a reference's forward leaves the shards as they were: what is saved."""
    spread, groups = make(world), pair_groups()
    reference = StartReference(spread)
    train(spread, groups)
    held = {n: fsdp.local(p.detach()) for n, p in spread.optimizer.parameters().items()}
    before = {n: shard.clone() for n, shard in held.items()}
    forward = Policy.forward

    def fail(self: Policy, *args: Any, **kwargs: Any) -> Any:
        forward(self, *args, **kwargs)
        assert not all(torch.equal(before[n], held[n]) for n in before), "the forward runs on the live shards"
        raise RuntimeError("out of memory")

    said = ""
    Policy.forward = fail  # type: ignore[method-assign]
    try:
        reference.logprobs(groups)
    except RuntimeError as caught:
        said = str(caught)
    finally:
        Policy.forward = forward  # type: ignore[method-assign]
    assert said == "out of memory", said
    return {"shards": max((before[n] - held[n]).abs().max().item() for n in before)}


def other_model(world: Any, folder: Path) -> Figures:
    """Another model, sharded, and its table: rank 0 writes it, all read it."""
    precomputed.CHUNK = 2
    options = LearnerOptions(budget=64, whole=True)
    table = Table(pair_groups(5, base=9 << 40))
    groups = [table.group(i) for i in (4, 0)]
    one, two = (ModelReference(Policy(tiny_model("gpt2"), "forest"), options, world=on) for on in (OneProcess(), world))
    seen: list[int] = []
    kept = PrecomputedReference(
        two.forwards, [table], cache=folder, weights={"m": "1"}, progress=lambda done, _: seen.append(done)
    )
    PrecomputedReference(two.forwards, [table], cache=folder, weights={"m": "1"}, progress=lambda *_: seen.append(-1))
    assert seen == [2, 4, 5]
    expected = one.logprobs(groups)
    return {"sharded": furthest(two.logprobs(groups), expected), "table": furthest(kept.logprobs(groups), expected)}


def measure(world: Any, _: Path) -> Figures:
    """Held-out terms, with all ranks at work and with one of them idle."""
    out = {}
    learners = [make(on) for on in (OneProcess(), world)]
    references = [StartReference(made) for made in learners]
    for made in learners:
        train(made, pair_groups())
    for name, groups in (("all", pair_groups(4, seed=3)), ("idle", pair_groups(1, seed=4))):
        for s, said in zip((s for g in groups for s in g), references[0].logprobs(groups), strict=True):
            s.streams["ref_logprobs"] = said
        found = [made.measure(groups, DPO(sft_coef=0.5).loss, {}) for made in learners]
        assert list(found[0]) == list(found[1]) and found[0]["sigmoid"].total == len(groups)
        for one, two in zip(found[0].values(), found[1].values(), strict=True):
            assert (one.total, one.coef) == (two.total, two.coef)
        out[name] = max(abs(a.sum - b.sum) for a, b in zip(found[0].values(), found[1].values(), strict=True))
    return out


def reads(world: Any, _: Path) -> Figures:
    """A scalar head: scores, terms and weights, a rank without data included."""

    def squares(outputs: Outputs, batch: Batch) -> dict[str, Term]:
        assert outputs.scores_RK is not None
        return {"squares": Term(outputs.scores_RK.square().sum(-1), "reads")}

    out: Figures = {"loss": 0.0, "score": 0.0, "weights": 0.0}
    for count in (4, 1):
        groups = pair_groups(count)
        for s in (s for g in groups for s in g):
            s.reads, s.beats = [len(s.tokens) - 1], []
        alone, spread = make(OneProcess(), says="reads"), make(world, says="reads")
        for _ in range(2):
            one, two = (made.forward_backward(groups, squares, {}, 0) for made in (alone, spread))
            assert one.terms.keys() == two.terms.keys() == {"squares"}
            out["loss"] = max(out["loss"], abs(one.loss - two.loss))
            for made in (alone, spread):
                made.optim_step(1e-2)
        said = [made.say(groups, ["scores"]) for made in (alone, spread)]
        scores = [[list(row) for outputs in samples for row in outputs.scores] for samples in said]
        out["score"] = max(out["score"], furthest(*scores))
        ours, theirs = ({n: t.clone() for n, t in made.optimizer.weights()} for made in (alone, spread))
        out["weights"] = max(out["weights"], *((ours[n] - theirs[n]).abs().max().item() for n in ours))
    low = make(world, says="reads", compute=torch.bfloat16)
    seen: list[torch.dtype] = []
    low.policy.model.score.register_forward_pre_hook(lambda head, _: seen.append(head.weight.dtype))
    low.say(groups, ["scores"])
    out["heads not in float32"] = float(set(seen) != {torch.float32})
    return out


def reward_model(world: Any, _: Path) -> Figures:
    """A sharded reward model says the same on all ranks, with all of them at work and with one idle."""
    out = {}
    asked = [[replace(s, reads=[len(s) - 1], beats=[], ties=[]) for s in group] for group in pair_groups(5)]
    models = []
    for on in (OneProcess(), world):
        model = tiny_model("llama")
        heads.attach(model, 2, seed=1)
        heads.set_calibration(model, heads.Calibration((0.5, -1.0), (1.0, 2.0)))
        models.append(RewardModel(Policy(model, "forest", says="reads"), LearnerOptions(budget=64), on))
    for name, groups in (("all", asked), ("idle", asked[:1])):
        one, two = (torch.tensor(engine.scores(groups)) for engine in models)
        out[name] = float((one - two).abs().max())
        text = repr(two.tolist()).encode()
        assert world.gather(text) == [text] * world.size
    return out


HELD: dict[str, Callable[[Any, Path], Figures]] = {
    "start": start,
    "error": error,
    "other_model": other_model,
    "measure": measure,
    "reads": reads,
    "reward_model": reward_model,
    "updates": updates,
    "values": values,
}
