"""The flat specification of DPO and the library compute the same losses, metrics, gradients and weights."""

import copy
import functools
import random
from typing import Any

import pytest
import torch

from espalier.algorithms.dpo import DPO
from espalier.config.sections import OptimConfig
from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.forest.pack import pack, totals
from espalier.loop.schedule import learning_rate
from espalier.models.policy import Policy
from espalier.types import Batch, Outputs
from samples import Groups, sample
from scratches import load
from tiny import tiny_model

STEPS = 4
Gradients = dict[str, torch.Tensor]
METRICS = ("accuracy", "margin", "rewards_chosen", "rewards_rejected", "logprobs_chosen", "logprobs_rejected",
           "length_chosen", "length_rejected")  # fmt: skip


def rankings(step: int) -> list[dict[str, Any]]:
    """Pairs and K-way lists, with a tie, prompts long enough to be shared and answers that share their beginning."""
    rng = random.Random(step)

    def run(n: int) -> list[int]:
        return [rng.randrange(5, 128) for _ in range(n)]

    opening = run(18)
    return [
        {"prompt": run(20), "answers": [run(5), run(9)], "wins": [[0, 1]]},
        {"prompt": run(3), "answers": [run(1), run(2)], "wins": [[1, 0]]},
        {
            "prompt": run(24),
            "answers": [opening + run(4), opening + run(7), run(6), run(11)],
            "wins": [[2, 0], [2, 1], [2, 3], [0, 3], [1, 3]],
        },
        {"prompt": run(17), "answers": [run(8), run(2), run(3)], "wins": [[0, 2], [1, 2]]},
    ]


def groups_of(rows: list[dict[str, Any]], learner: TorchLearner) -> Groups:
    """The same as samples, with log-probabilities of the reference that `learner` holds."""
    groups = []
    for number, row in enumerate(rows):
        beats = [[l for w, l in row["wins"] if w == place] for place in range(len(row["answers"]))]
        groups.append(
            [sample(row["prompt"], y, group=number, beats=b) for y, b in zip(row["answers"], beats, strict=True)]
        )
    flat = [s for g in groups for s in g]
    for s, out in zip(flat, learner.say(groups, ["logprobs"]), strict=True):
        s.streams["ref_logprobs"] = out.logprobs
    return groups


OPTIM = {"lr": 1e-3, "warmup": 0.3, "clip_norm": 0.5, "eps": 1e-3}


@functools.cache
def flat_run(family: str, **fields: float) -> tuple[list[Gradients], list[dict[str, float]], Any]:
    """What the flat specification computes, once for all budgets: each step's gradients and line, the model at last."""
    flat = load("dpo")
    model: Any = tiny_model(family).double()
    held = copy.deepcopy(model).eval().requires_grad_(False)
    settings = flat.Settings(steps=STEPS, beta=0.2, **OPTIM, **fields)
    batches = [[flat.Ranking(**row) for row in rankings(step)] for step in range(STEPS)]
    gradients, lines = [], []
    run = flat.train(model, iter(batches), settings)
    for batch in batches:
        probe = copy.deepcopy(model)
        flat.backward(probe, held, batch, settings)
        gradients.append({name: p.grad for name, p in probe.named_parameters()})
        lines.append(next(run))
    return gradients, lines, model


@pytest.mark.parametrize("budget", [1, 60, 100_000])
@pytest.mark.parametrize(
    ("family", "fields"),
    [("gpt2", {}), ("llama", {"sft_coef": 0.5}), ("qwen2", {"label_smoothing": 0.1, "sft_coef": 1.0})],
)
def test_dpo_is_the_same_as_in_the_library(family: str, fields: dict[str, float], budget: int) -> None:
    """Streams are float32 in a batch, which is the rounding that the tolerances allow for."""
    gradients, lines, spec = flat_run(family, **fields)
    algorithm = DPO(beta=0.2, **fields)
    optim = OptimConfig(**OPTIM)
    model: Any = tiny_model(family).double()
    learner = TorchLearner(Policy(model, "forest"), optim, LearnerOptions(budget=budget, whole=True))
    held = copy.deepcopy(model).eval().requires_grad_(False)
    reference = TorchLearner(Policy(held, "forest"), optim, LearnerOptions())

    def loss(outputs: Outputs, batch: Batch) -> Any:
        return algorithm.loss(outputs, batch)

    for step in range(STEPS):
        result = learner.forward_backward(groups_of(rankings(step), reference), loss, {}, step)
        scale = max(grad.abs().max() for grad in gradients[step].values())
        for name, grad in gradients[step].items():
            got = model.get_parameter(name).grad
            assert got is not None
            assert (got - grad).abs().max() < 1e-6 * scale, (step, name)
        line = dict(lines[step])
        norm = learner.optim_step(learning_rate(step, STEPS, optim))["grad_norm"]
        names = ["sigmoid", *METRICS, *(["nll"] if algorithm.sft_coef else [])]
        assert set(result.terms) == set(names)
        if step == 0:  # margins are 0 up to rounding, so their sign says nothing
            line["accuracy"] = result.terms["accuracy"]
        assert result.terms == pytest.approx({name: line[name] for name in names}, rel=1e-6, abs=1e-6)
        assert result.loss == pytest.approx(line["loss"], rel=1e-6)
        assert norm == pytest.approx(line["grad_norm"], rel=1e-5)
    for name, p in spec.named_parameters():
        moved = model.get_parameter(name)
        assert (moved - p).abs().max() < 1e-6 * max(1.0, p.abs().max()), name
    assert abs(result.terms["margin"]) > 1e-3


def test_the_forest_lays_a_prompt_down_once() -> None:
    reference = TorchLearner(Policy(tiny_model("gpt2"), "forest"), OptimConfig(), LearnerOptions())
    groups = groups_of(rankings(0), reference)
    batch = pack(groups, totals(groups))
    assert batch.inputs_N.numel() < sum(len(s) - 1 for g in groups for s in g) - 3 * 24 - 18 + 4
    assert batch.wins_P2.tolist()[:3] == [[0, 1], [3, 2], [4, 7]]
