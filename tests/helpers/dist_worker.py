"""Run by test_processes.py: every check trains the same steps alone and on all ranks, and compares.

    python dist_worker.py OUT

starts both ranks, with the environment that torchrun would give them, as forks of one process, so that torch and
transformers are imported once. Rank 0 trains alone, too; the others wait for what they compare with. Rank 0 writes
OUT/results.json: {check: {figure: value}}, where the value of a check that failed is {"error": traceback}. A check in
which the ranks part ways ends the launch, because what follows would mix up collectives; it names itself in
OUT/lost.json.
"""

from __future__ import annotations

import errno
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from dist_commands import commands, start_ranks
from dist_processes import bytes_of_all_ranks
from dist_reference import HELD
from dist_sampling import sampling
from espalier.algorithms.sft import SFT
from espalier.checks.model import layout
from espalier.config.sections import ModelConfig, OptimConfig
from espalier.engines import fsdp
from espalier.engines import learner as learners
from espalier.engines import processes as worlds
from espalier.engines.learner import ExportOptions, LearnerOptions, TorchLearner
from espalier.engines.protocols import together
from espalier.errors import CheckpointError
from espalier.files import file_to_tensors
from espalier.forest.microbatches import Packing, microbatches
from espalier.loop import checkpoint
from espalier.loop.train import FRESH
from espalier.models.adapters import add_adapter
from espalier.models.policy import Policy
from espalier.types import Batch, Outputs, Sample, Term
from samples import Groups, sample, tree_groups
from tiny import tiny_model, tiny_tokenizer

STEPS = 3
LR = 1e-3
SFT_LOSS = SFT(replay_coef=0.3)

world: Any
folder: Path
Figures = dict[str, Any]


def linear(outputs: Outputs, batch: Batch) -> dict[str, Term]:
    return SFT_LOSS.loss(outputs, batch)


def squared(outputs: Outputs, batch: Batch) -> dict[str, Term]:
    """Not linear in the log-probabilities."""
    return {"squared": Term(outputs.logprobs.square(), "tokens")}


def data() -> Groups:
    """Trees, single samples and replay, with weights; six forwards and more at 64 tokens."""
    groups = tree_groups(1)
    for i, s in enumerate(s for g in groups for s in g):
        s.key, s.weights = i, [w * (0.5 + i % 2) for w in s.weights]
    replay = Sample(part="replay", key=50)
    replay.append(list(range(30, 60)), trained=True)
    return [*groups, [replay]]


def make(
    family: str,
    on: Any,
    *,
    over: dict[str, Any] | None = None,
    lora: bool = False,
    tokens: tuple[int, ...] = (),
    layout: Any = "forest",
    freeze: str = "",
    policy: dict[str, Any] | None = None,
    optim: dict[str, Any] | None = None,
    **options: Any,
) -> TorchLearner:
    model = tiny_model(family, **(over or {}))
    if lora:
        add_adapter(model, ModelConfig(model="m", lora_rank=4, lora_alpha=8.0), tokens, seed=3)
        for name, p in model.named_parameters():
            if "lora_B" in name:  # a B of 0 hides what is wrong with A
                torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    for name, p in model.named_parameters():
        if freeze and freeze in name:
            p.requires_grad_(False)
    made = Policy(model, layout, **(policy or {}))
    settings = LearnerOptions(**{"budget": 64, "linear": True, **options})
    export = ExportOptions(tiny_tokenizer(), torch.float32, (4,))
    return TorchLearner(
        made, OptimConfig(**{"lr": LR, "eps": 1e-4, **(optim or {})}), settings, world=on, export_options=export
    )


def gradients(made: TorchLearner) -> dict[str, torch.Tensor]:
    """Whole gradients, of which ranks hold parts along the first dimension; one exchange is for all of them."""
    found = {n: p.grad for n, p in made.optimizer.parameters().items() if p.grad is not None}
    if not any(isinstance(grad, DTensor) for grad in found.values()):
        return {n: grad.clone() for n, grad in found.items()}
    assert all(grad.placements == (Shard(0),) for grad in found.values())
    parts: list[Any] = [None] * world.size
    dist.all_gather_object(parts, {n: grad.to_local() for n, grad in found.items()})
    return {n: torch.cat([part[n] for part in parts]) for n in found}


def weights(made: TorchLearner) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in made.optimizer.weights()}


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference, relative to the largest entry of all."""
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())
    largest = max(t.abs().max().item() for t in a.values())
    return max((a[n].float() - b[n].float()).abs().max().item() for n in a) / largest


def of_rank_0(value: Any) -> Any:
    """What rank 0 has, on all ranks."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def compare(family: str = "llama", *, groups: Groups | None = None, loss: Any = linear, **how: Any) -> Figures:
    """Train alone, on rank 0, and on all ranks. Differences are relative, and measured on rank 0.

    What is checked on the way holds exactly, on all ranks.
    """
    alone = make(family, worlds.OneProcess(), **how) if world.rank == 0 else None
    start = weights(alone) if alone else {}
    spread = make(family, world, **how)
    groups = groups or data()
    assert all(isinstance(p, DTensor) for p in spread.optimizer.parameters().values())
    assert all(isinstance(layer, FSDPModule) for layer in fsdp.layers(spread.policy.model)), (
        "layers are gathered at once"
    )
    out: Figures = {"loss": 0.0, "terms": 0.0, "norm": 0.0, "gradients": 0.0}
    for step in range(STEPS):
        one = of_rank_0(alone.forward_backward(groups, loss, {}, step) if alone else None)
        two = spread.forward_backward(groups, loss, {}, step)
        assert one.terms.keys() == two.terms.keys() and (one.tokens, one.scored) == (two.tokens, two.scored)
        out["loss"] = max(out["loss"], abs(one.loss - two.loss) / abs(one.loss))
        out["terms"] = max(out["terms"], *(abs(one.terms[n] / two.terms[n] - 1) for n in one.terms))
        whole = gradients(spread)
        if alone:
            out["gradients"] = max(out["gradients"], apart(gradients(alone), whole))
        norms = [of_rank_0(alone.optim_step(LR)["grad_norm"] if alone else None), spread.optim_step(LR)["grad_norm"]]
        out["norm"] = max(out["norm"], abs(norms[0] - norms[1]) / norms[0])
        here = (alone, spread) if alone else (spread,)
        assert all(p.grad is None for made in here for p in made.policy.parameters()), "gradients stay"
    whole = weights(spread)
    if alone:
        out |= {"weights": apart(weights(alone), whole), "moved": apart(weights(alone), start)}
    out |= {"grad_norm": norms[0], "packed": [one.packed, two.packed]}
    quantities = ("logprobs", "entropy", "correct")
    theirs = spread.say(groups, quantities)
    if alone:
        said = alone.say(groups, quantities)
        for name in quantities:
            pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(said, theirs, strict=True)]
            out[name] = max(abs(x - y) for a, b in pairs for x, y in zip(a, b, strict=True))
    assert all(isinstance(p, DTensor) for p in spread.policy.parameters()), "an evaluation leaves whole parameters"
    spread.export(folder / "spread")
    held = {n: t.clone() for n, t in spread.weights()}
    if alone:
        alone.export(folder / "alone")
        files = [file_to_tensors(folder / name / "model.safetensors") for name in ("alone", "spread")]
        out["export"] = apart(*files)
        if files[1].keys() == held.keys():  # files name experts one by one
            out["exact"] = apart(files[1], held)
    return out


def short_step() -> Figures:
    """One group, one forward: the other rank runs a dummy, in training and in evaluation."""
    return compare(groups=[[sample(range(5, 40), range(40, 60))]], loss=squared, linear=False)


def replay_on_one_rank() -> Figures:
    replay = Sample(part="replay", key=1)
    replay.append(list(range(30, 85)), trained=True)
    groups = [[sample(range(5, 40), range(40, 60))], [replay]]
    plan = microbatches(groups, 64, Packing(), ranks=2)
    assert [[g[0].part for g in forward] for forward in plan] in ([["main"], ["replay"]], [["replay"], ["main"]])
    return compare(groups=groups)


def router_loss() -> Figures:
    """It depends on the split, so both sides get the same one: two forwards of one sample each."""
    groups = [[sample(range(5, 50), range(50, 60))], [sample(range(60, 100), range(100, 110))]]
    return compare("qwen3_moe", groups=groups, router_coef=0.1, policy={"router_loss": True})


def router_loss_short_step() -> Figures:
    """A dummy forward has no share in the mean over forwards."""
    groups = [[sample(range(5, 50), range(50, 60))]]
    return compare("qwen3_moe", groups=groups, router_coef=0.1, policy={"router_loss": True})


def moe_with_idle_experts() -> Figures:
    """Two tokens on one rank reach few experts; the others get no gradient there."""
    return compare("qwen3_moe", over={"num_experts": 16}, groups=[[sample([5], [6])], [sample(range(5, 60), [7, 8])]])


def bfloat16() -> Figures:
    """Shards stay float32, as masters do in one process; both compute in bfloat16."""
    out = compare(compute=torch.bfloat16)
    low, high = (make("llama", world, compute=dtype) for dtype in (torch.bfloat16, torch.float32))
    for made in (low, high):
        made.forward_backward(data(), linear, {}, 0)
    assert {p.dtype for p in low.optimizer.parameters().values()} == {torch.float32}
    return out | {"rounding": apart(gradients(low), gradients(high))}


def save_and_load() -> Figures:
    """Two ranks save, one process goes on, saves, and two ranks go on: as one process that never stopped."""
    groups, out = data(), {}
    whole = make("llama", worlds.OneProcess())
    spread = make("llama", world)
    state = replace(FRESH, step=1)

    def train(made: TorchLearner, step: int) -> None:
        made.forward_backward(groups, linear, {}, step)
        made.optim_step(LR)

    train(whole, 0), train(spread, 0)
    first = checkpoint.save(folder / "saved", state, spread.save, world=world)
    names = sorted(path.name for path in first.path.iterdir())
    written = "manifest.json optimizer.safetensors rng-00000.json rng-00001.json state.json trained.safetensors"
    assert names == written.split()
    alone = make("llama", worlds.OneProcess())
    alone.load(first.path)
    out["two to one"] = apart(weights(alone), weights(spread))
    train(whole, 1), train(alone, 1)
    mine = folder / f"mine-{world.rank}"
    mine.mkdir()
    alone.save(mine)
    back = make("llama", world)
    back.load(mine)
    out["one to two"] = apart(weights(alone), weights(back))
    states = [{n: t.clone() for n, t in made.optimizer.state()} for made in (alone, back)]
    out["optimizer"] = apart(*states)
    train(whole, 2), train(back, 2)
    out["weights"] = apart(weights(whole), weights(back))
    again = make("llama", world)
    again.load(first.path)
    train(spread, 1), train(again, 1)
    out["same ranks"] = apart(weights(spread), weights(again))
    return out


def full_disk() -> Figures:
    """Rank 0 cannot write: both ranks say so at once, and what was saved before is intact."""
    spread = make("llama", world)
    state = replace(FRESH, step=1)

    def write(target: Path) -> None:
        together(lambda: spread.save(target), "not written", world, CheckpointError)
        spread.export(target / "model")

    root = folder / "disk"
    checkpoint.save(root, state, write, world=world)
    real, began, said = (learners.tensors_to_file, learners.export), time.monotonic(), []

    def full(*_: object, write: bool = True, **__: object) -> None:
        if write:
            raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("tensors_to_file", "export"):
        setattr(learners, name, full)
        try:
            checkpoint.save(root, replace(state, step=2), write, world=world)
        except CheckpointError as error:
            said.append(str(error))
        finally:
            learners.tensors_to_file, learners.export = real
    assert checkpoint.choose(root, world=world).step == 1 and not list(root.glob(".step*"))
    return {"seconds": time.monotonic() - began, "said": said}


def layout_check() -> Figures:
    """The start-up check runs on every rank before sharding, and its policy shards afterwards."""
    policy = Policy(tiny_model("llama"), "forest")
    found = layout(policy, data(), torch.float32)
    made = TorchLearner(policy, OptimConfig(), LearnerOptions(budget=64, linear=True), world=world)
    made.forward_backward(data(), linear, {}, 0)
    shares = made.probe_update(LR, torch.float32)
    assert all(p.grad is None for p in policy.parameters())
    return {"verdict": found.verdict, "share": shares["float32"]}


CHECKS: dict[str, Callable[[], Figures]] = {
    "untied": compare,
    "tied": lambda: compare("qwen2", over={"tie_word_embeddings": True}),
    "gpt2": lambda: compare("gpt2"),
    "lora": lambda: compare(lora=True),
    "lora_tokens_untied": lambda: compare(lora=True, tokens=(100, 7)),
    "lora_tokens_tied": lambda: compare(lora=True, tokens=(100, 7), over={"tie_word_embeddings": True}),
    "frozen": lambda: compare(freeze="layers.0."),
    "frozen_bfloat16": lambda: compare(freeze="layers.0.", compute=torch.bfloat16),
    "frozen_embedding": lambda: compare(freeze="embed"),
    "clipped": lambda: compare(optim={"clip_norm": 0.01, "weight_decay": 0.1}),
    "not_linear": lambda: compare(loss=squared, linear=False),
    "short_step": short_step,
    "replay_on_one_rank": replay_on_one_rank,
    "bfloat16": bfloat16,
    "grad_checkpointing": lambda: compare(grad_checkpointing=True),
    "neftune": lambda: compare(policy={"neftune_alpha": 5.0}),
    "padded": lambda: compare("lfm2", layout="padded"),
    "moe": lambda: compare("qwen3_moe"),
    "moe_with_idle_experts": moe_with_idle_experts,
    "router_loss": router_loss,
    "router_loss_short_step": router_loss_short_step,
    "muon": lambda: compare(optim={"optimizer": "muon"}),
    "save_and_load": save_and_load,
    "full_disk": full_disk,
    "layout_check": layout_check,
    "bytes_of_all_ranks": lambda: bytes_of_all_ranks(world),
    "sampling": lambda: sampling(world),
    **{name: lambda check=check: check(world, folder) for name, check in HELD.items()},  # type: ignore[misc]
}


def _both(out: Path, name: str, failed: str) -> bool:
    """Whether the other rank failed too. Asked through files: after a failure on one rank collectives do not meet."""
    (out / f"{name}-{world.rank}.txt").write_text(failed)
    for _ in range(30):
        if (out / f"{name}-{1 - world.rank}.txt").exists():
            return True
        time.sleep(0.1)
    (out / "lost.json").write_text(json.dumps({"check": name, "rank": world.rank, "error": failed}))
    return False


def main(out: Path) -> None:
    global world, folder
    torch.set_num_threads(1)
    worlds.TIMEOUT = timedelta(seconds=40)
    world = worlds.start(torch.device("cpu"))
    results: dict[str, Figures] = {}
    for name, check in CHECKS.items():
        if len(sys.argv) > 2 and name not in sys.argv[2:]:
            continue
        folder = out / name
        folder.mkdir(exist_ok=True)
        began, failed = time.monotonic(), ""
        try:
            results[name] = check()
        except Exception:
            failed = traceback.format_exc()
            results[name] = {"error": failed}
        results[name]["seconds_in_all"] = round(time.monotonic() - began, 2)
        if world.rank == 0:
            (out / "results.json").write_text(json.dumps(results))
        if failed and not _both(out, name, failed):
            sys.exit(3)
    if len(sys.argv) == 2:
        close, said = world.close, commands(world, out)
        (out / f"commands-{world.rank}.json").write_text(json.dumps(said))
        close()


if __name__ == "__main__":
    sys.exit(start_ranks(main, Path(sys.argv[1])))
