"""The same losses and gradients as TRL 1.16 on one recorded rollout, on a small model and on random logits.

Needs an interpreter in whose environment TRL 1.16 is installed: `TRL_PYTHON=/path/to/python make test-full`. Advantages
are computed by TRL from the same rewards. docs/policy-losses.md says where the two differ on purpose.
"""

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from espalier.algorithms.dapo import DAPO
from espalier.algorithms.dr_grpo import DrGRPO
from espalier.algorithms.grpo import GRPO
from espalier.algorithms.gspo import GSPO
from espalier.algorithms.onpolicy import OnPolicy
from espalier.algorithms.rloo import RLOO
from espalier.config.sections import OptimConfig
from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.forest.pack import pack, totals
from espalier.losses.ops import normalise
from espalier.models.policy import Policy
from espalier.outcomes import Graded, Outcome
from espalier.types import Batch, Outputs
from samples import Groups, sample
from tiny import VOCAB, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

PYTHON = os.environ.get("TRL_PYTHON", "")
FAMILY = "gpt2"  # float64 from end to end
WIDE = torch.float64
PROMPTS, GROUP, PROMPT, LIMIT, STOP = 3, 4, 5, 9, 2
WEIGHTS = [1.0, 0.5]
KL = {"beta": 0.3, "rollout_epochs": 2}


def grpo(old: str = "far", **settings: Any) -> dict[str, Any]:
    return {"trainer": "grpo", "settings": settings, "old": old}


def rloo(**settings: Any) -> dict[str, Any]:
    return {"trainer": "rloo", "settings": settings, "old": "far"}


WIDER = {"clip_low": 0.1, "clip_high": 0.15}
OF_TRL = {"epsilon_low": 0.1, "epsilon_high": 0.15, "importance_sampling_level": "sequence"}
CASES: dict[str, tuple[OnPolicy, dict[str, Any]]] = {
    "grpo": (GRPO(), grpo()),
    "grpo-kl": (GRPO(**KL), grpo(beta=0.3)),
    "grpo-naive": (GRPO(**KL, kl_gradient="naive"), grpo(beta=0.3, **{"args.use_bias_correction_kl": False})),
    "grpo-batch": (GRPO(scale="batch"), grpo(scale_rewards="batch")),
    "grpo-none": (GRPO(scale="none"), grpo(scale_rewards="none")),
    "grpo-each": (GRPO(reward_norm="each"), grpo(multi_objective_aggregation="normalize_then_sum")),
    "grpo-dual": (GRPO(clip_dual=1.25), grpo(**{"args.delta": 1.25})),
    "grpo-cut": (GRPO(mask_cut=True), grpo(mask_truncated_completions=True)),
    "dr_grpo": (DrGRPO(), grpo(loss_type="dr_grpo", scale_rewards="none")),
    "dr_grpo-kl": (DrGRPO(**KL), grpo(loss_type="dr_grpo", scale_rewards="none", beta=0.3)),
    "dapo": (
        DAPO(overlong_share=0),
        grpo(loss_type="dapo", epsilon_high=0.28, mask_truncated_completions=True),
    ),
    "dapo-kl": (DAPO(**KL, overlong_share=0, mask_cut=False), grpo(loss_type="dapo", epsilon_high=0.28, beta=0.3)),
    "dapo-entropy": (
        DAPO(overlong_share=0, entropy_coef=0.1, mask_cut=False),
        grpo(loss_type="dapo", epsilon_high=0.28, entropy_coef=0.1),
    ),
    "gspo": (GSPO(), grpo("near", epsilon_low=3e-4, epsilon_high=4e-4, importance_sampling_level="sequence")),
    "gspo-wide": (GSPO(**WIDER), grpo(**OF_TRL)),
    "gspo-token": (GSPO(**WIDER, token_form=True), grpo(**OF_TRL)),
    "rloo": (RLOO(), rloo()),
    "rloo-kl": (RLOO(beta=0.3), rloo(beta=0.3)),
}
WITHOUT_STD = ("grpo-none", "dr_grpo", "dr_grpo-kl", "rloo", "rloo-kl")


def rolled() -> tuple[list[list[int]], list[list[int]], list[list[float]]]:
    """Prompts, one for each answer; answers of 1 to 9 tokens, of which two were cut; two rewards of each."""
    rng = random.Random(3)
    prompts, answers, rewards = [], [], []
    for _ in range(PROMPTS):
        prompt = [rng.randrange(5, VOCAB) for _ in range(PROMPT)]
        for _ in range(GROUP):
            prompts.append(prompt)
            answers.append([rng.randrange(5, VOCAB) for _ in range(rng.randrange(LIMIT))] + [STOP])
            rewards.append([float(rng.random() < 0.5), round(rng.random(), 2)])
    for cut in (1, 6):
        answers[cut] = [rng.randrange(5, VOCAB) for _ in range(LIMIT)]
    return prompts, answers, rewards


def groups_of(old: Tensor, ref: Tensor) -> Groups:
    groups: Groups = []
    for place, (prompt, answer, rewards) in enumerate(zip(*rolled(), strict=True)):
        score = sum(w * r for w, r in zip(WEIGHTS, rewards, strict=True))
        s = sample(prompt, answer, group=place // GROUP, reward=score, key=place)
        s.stop = "stop" if answer[-1] == STOP else "length"
        s.outcome = Outcome(score, {n: Graded(r, w) for n, r, w in zip("ab", rewards, WEIGHTS, strict=True)})
        for name, values in (("old_logprobs", old), ("ref_logprobs", ref)):
            s.streams[name] = [0.0] * len(prompt) + values[place, : len(answer)].tolist()
        if place % GROUP == 0:
            groups.append([])
        groups[-1].append(s)
    return groups


def model() -> Any:
    return tiny_model(FAMILY).to(WIDE)


def padded(logits: Tensor) -> Tensor:
    """log p of every answer's tokens, [B, LIMIT], 0 beyond its end, from logits [B, PROMPT + LIMIT, V]."""
    out = torch.zeros(PROMPTS * GROUP, LIMIT, dtype=WIDE)
    for place, answer in enumerate(rolled()[1]):
        of_all = logits[place, PROMPT - 1 : PROMPT - 1 + len(answer)].log_softmax(-1)
        out[place, : len(answer)] = of_all.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return out


@torch.no_grad()
def numbers() -> dict[str, Tensor]:
    """Random logits; old and reference log-probabilities beside those of the logits and of the model."""
    noise = torch.Generator().manual_seed(7)
    logits = torch.randn((PROMPTS * GROUP, PROMPT + LIMIT, VOCAB), generator=noise, dtype=WIDE)
    rows = [p + a + [STOP] * (LIMIT - len(a)) for p, a, _ in zip(*rolled(), strict=True)]
    out = {"logits": logits}
    for of, x in (("random", logits), ("model", model()(input_ids=torch.tensor(rows)).logits)):
        logprobs = padded(x)

        def beside(size: float, logprobs: Tensor = logprobs) -> Tensor:
            return logprobs + size * torch.randn(logprobs.shape, generator=noise, dtype=WIDE)

        out |= {f"{of}.old.far": beside(0.2), f"{of}.old.near": beside(1e-3), f"{of}.ref": beside(0.3)}
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What TRL computes in all cases."""
    if not PYTHON:
        pytest.skip("TRL_PYTHON is not set; set it to a Python in whose environment TRL 1.16 is installed")
    made = tmp_path_factory.mktemp("trl")
    tiny_model(FAMILY).save_pretrained(made / "policy")
    tiny_tokenizer(template=None).save_pretrained(made / "policy")
    prompts, answers, rewards = rolled()
    given = {"prompts": prompts, "answers": answers, "rewards": rewards, "weights": WEIGHTS, "group": GROUP}
    cases = {name: case for name, (_, case) in CASES.items()}
    (made / "cases.json").write_text(json.dumps({**given, "max_tokens": LIMIT, "cases": cases}), encoding="utf-8")
    save_file(numbers(), made / "numbers.safetensors")
    script = Path(__file__).resolve().parents[1] / "helpers" / "trl_policy.py"
    run = subprocess.run([PYTHON, str(script), str(made)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return made


def exact_streams(batch: Batch) -> None:
    """A batch keeps numbers in float32, whose rounding is larger than what is measured."""
    for name in batch.streams:
        values = [s.streams[name][t] for s in batch.samples for t, trained in enumerate(s.mask) if trained]
        batch.streams[name] = torch.tensor(values, dtype=WIDE)


def on_random_logits(algorithm: OnPolicy, groups: Groups, logits: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    logprobs, entropy = [], []
    for place, answer in enumerate(rolled()[1]):
        of_all = leaf[place, PROMPT - 1 : PROMPT - 1 + len(answer)].log_softmax(-1)
        logprobs.append(of_all.gather(1, torch.tensor(answer)[:, None])[:, 0])
        entropy.append(-(of_all.exp() * of_all).sum(1))
    sums = totals(groups)
    batch = pack(groups, sums, state={"max_tokens": float(LIMIT)})
    exact_streams(batch)
    outputs = Outputs(torch.cat(logprobs), entropy=torch.cat(entropy))
    loss, _ = normalise(algorithm.loss(outputs, batch), sums)
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def on_the_model(algorithm: OnPolicy, groups: Groups) -> tuple[float, dict[str, Tensor]]:
    """One micro-batch of the forest."""
    learner = TorchLearner(Policy(model(), "forest"), OptimConfig(), LearnerOptions(budget=10_000))

    def loss(outputs: Outputs, batch: Batch) -> Any:
        exact_streams(batch)
        return algorithm.loss(outputs, batch)

    result = learner.forward_backward(groups, loss, {"max_tokens": float(LIMIT)}, 0)
    return result.loss, {n: p.grad for n, p in learner.policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_trl(folder: Path, name: str) -> None:
    algorithm, case = CASES[name]
    want, given = load_file(folder / f"result-{name}.safetensors"), numbers()

    groups = groups_of(given[f"random.old.{case['old']}"], given["random.ref"])
    algorithm.credit(groups, {"max_tokens": float(LIMIT)})
    loss, slope = on_random_logits(algorithm, groups, given["logits"])
    off = (loss - want["random.loss"]).abs().item()
    slope_off = ((slope - want["random.logits"]).abs().max() / want["random.logits"].abs().max()).item()
    print(f"\n{name}: random logits: loss {loss.item():.6f}, off by {off:.1e}; gradient off by {slope_off:.1e}")
    # TRL takes n / (n - 1) under its std in float32
    exact = 1e-11 if name in WITHOUT_STD else 1e-7
    assert off < exact
    assert slope_off < exact

    if algorithm.entropy_coef:
        return  # without a learner's entropy
    groups = groups_of(given[f"model.old.{case['old']}"], given["model.ref"])
    algorithm.credit(groups, {"max_tokens": float(LIMIT)})
    value, slopes = on_the_model(algorithm, groups)
    off = abs(value - want["model.loss"].item())
    scale = max(x.abs().max().item() for x in slopes.values())
    slope_off = max((x - want[f"model.{n}"]).abs().max().item() for n, x in slopes.items()) / scale
    print(f"{name}: model: loss {value:.6f}, off by {off:.1e}; gradient off by {slope_off:.1e}")
    # TRL's head computes log-probabilities in float32, whatever the model's dtype
    assert off < 2e-5
    assert slope_off < 2e-4
