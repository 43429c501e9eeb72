"""Checks of dist_worker.py: updates of rollouts and critics on all ranks, against one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from espalier.config.sections import OptimConfig
from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.engines.processes import OneProcess
from espalier.models import heads
from espalier.models.policy import Policy
from espalier.types import Batch, Outputs, Says, Term
from preferences import furthest, pair_groups
from tiny import tiny_model

Figures = dict[str, Any]


def make(on: Any, says: Says = "tokens") -> TorchLearner:
    model = tiny_model("llama")
    if says == "values":
        heads.attach(model, 1, seed=1)
    options = LearnerOptions(budget=64, entropy=says == "tokens")
    return TorchLearner(Policy(model, "forest", says=says), OptimConfig(eps=1e-4), options, world=on)


def bonus(outputs: Outputs, batch: Batch) -> dict[str, Term]:
    """Log-probabilities, an entropy bonus, and the largest log-probability."""
    assert outputs.entropy is not None
    return {
        "nll": Term(-outputs.logprobs, "tokens"),
        "bonus": Term(-outputs.entropy, "tokens", coef=0.1),
        "mean": Term(outputs.logprobs.detach(), "tokens", coef=0.0),
        "largest": Term(outputs.logprobs.detach(), "max", coef=0.0),
    }


def squares(outputs: Outputs, batch: Batch) -> dict[str, Term]:
    assert outputs.values is not None
    return {"value": Term((outputs.values - 1).square(), "tokens")}


def updates(world: Any, _: Path) -> Figures:
    """Silent groups, kept outputs, largest entries; one group leaves a rank idle."""
    out: Figures = {"terms": 0.0, "kept": 0.0, "weights": 0.0}
    for count in (4, 1):
        groups, silent = pair_groups(count), pair_groups(2, seed=9)
        alone, spread = make(OneProcess()), make(world)
        one, two = (
            made.forward_backward(groups, bonus, {}, 0, silent=silent, keep=("logprobs", "entropy"))
            for made in (alone, spread)
        )
        assert one.terms.keys() == two.terms.keys() and one.peaks == two.peaks == ("largest",)
        out["terms"] = max(out["terms"], *(abs(one.terms[name] - two.terms[name]) for name in one.terms))
        for name in ("logprobs", "entropy"):
            kept = [[getattr(outputs, name) for outputs in result.outputs] for result in (one, two)]
            out["kept"] = max(out["kept"], furthest(*kept))
        out["weights"] = max(out["weights"], stepped(alone, spread))
    return out


def values(world: Any, _: Path) -> Figures:
    """A critic: what it says, and its weights after an update."""
    out: Figures = {"loss": 0.0, "said": 0.0, "weights": 0.0}
    for count in (4, 1):
        groups = pair_groups(count)
        alone, spread = make(OneProcess(), "values"), make(world, "values")
        one, two = (made.forward_backward(groups, squares, {}, 0) for made in (alone, spread))
        out["loss"] = max(out["loss"], abs(one.loss - two.loss))
        out["weights"] = max(out["weights"], stepped(alone, spread))
        said = [[outputs.values for outputs in made.say(groups, ["values"])] for made in (alone, spread)]
        out["said"] = max(out["said"], furthest(*said))
    return out


def stepped(alone: TorchLearner, spread: TorchLearner) -> float:
    """The largest difference of a weight after an update of both."""
    for made in (alone, spread):
        made.optim_step(1e-2)
    ours, theirs = ({n: t.clone() for n, t in made.optimizer.weights()} for made in (alone, spread))
    return max(torch.sub(ours[n], theirs[n]).abs().max().item() for n in ours)
