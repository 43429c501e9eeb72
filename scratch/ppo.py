"""PPO in one flat file: what `espalier ppo` computes, answer by answer, with nothing clever.

    L        = sum_t -min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t) / tokens of all answers
    L_critic = sum_t 1/2 max( (V_t - R_t)^2, (V_old + clip(V_t - V_old, -value_clip, value_clip) - R_t)^2 ) / tokens
    r_t = pi(y_t) / old(y_t)
    A_t = sum_{k >= t} (gamma lam)^(k - t) d_k      d_k = reward_k + gamma V_{k + 1} - V_k      V behind the end is 0
    R_t = A_t + V_t; then A is brought to mean 0 and deviation 1 over all tokens of the step
    reward_k = -beta log(old(y_k) / ref(y_k)), and the score, clipped, at the last token

    python scratch/ppo.py                     a tiny random model learns to answer in even numbers
    python scratch/ppo.py --lam 1 --beta 0.01
    python scratch/ppo.py --model DIR --data prompts.jsonl      one JSON object a line: {"prompt": [5, 6]}

Imports torch and transformers only. The critic is a copy of the model without its token head, and a weight that starts
at 0: V_t = weight . hidden state in front of y_t. A step draws one answer to each of some prompts with the weights as
they are, one full forward a token, scores them with `reward`, and makes `--epochs` updates of both, each over all
answers. The reference is a frozen copy of the model: an executable specification, which a test compares with the
library.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Answer:
    """An answer with its stop token if it has one; before the first update `old` and `ref` are the log-probabilities of
    its tokens and `V` the values in front of them; then its tokens' advantages `A` and returns `R`."""

    prompt: list[int]
    tokens: list[int]
    reward: float
    old: list[float] = field(default_factory=list)
    ref: list[float] = field(default_factory=list)
    V: list[float] = field(default_factory=list)
    A: list[float] = field(default_factory=list)
    R: list[float] = field(default_factory=list)


@dataclass
class Settings:
    steps: int = 40
    prompts: int = 32
    max_tokens: int = 6
    epochs: int = 4
    lr: float = 2e-3
    critic_lr: float = 5e-3
    warmup: float = 0.1
    clip_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_low: float = 0.2
    clip_high: float = 0.2
    value_clip: float = 0.2
    beta: float = 0.05
    score_clip: float = 5.0
    gamma: float = 1.0
    lam: float = 0.95


class Critic(nn.Module):
    """The model's layers, and a weight of its own."""

    def __init__(self, model: Any):
        super().__init__()
        self.backbone = copy.deepcopy(model.model)
        self.weight = nn.Parameter(torch.zeros_like(next(self.backbone.parameters())[:1]))

    def forward(self, answer: Answer) -> Tensor:
        """The value in front of each token of an answer."""
        ids = torch.tensor([answer.prompt + answer.tokens], device=self.weight.device)
        hidden = self.backbone(input_ids=ids, use_cache=False).last_hidden_state[0]
        values: Tensor = (hidden @ self.weight[0])[len(answer.prompt) - 1 : -1]
        return values


def reward(prompt: list[int], answer: list[int]) -> float:
    """The share of even tokens among those of the answer."""
    return sum(token % 2 == 0 for token in answer) / len(answer)


def logprobs(model: Any, answer: Answer) -> Tensor:
    """log p(y_t | x, y_<t) of the tokens of an answer; at least float32."""
    ids = torch.tensor([answer.prompt + answer.tokens], device=next(model.parameters()).device)
    z = model(input_ids=ids, use_cache=False).logits[0, len(answer.prompt) - 1 : -1]
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    of_tokens: Tensor = z.log_softmax(-1).gather(1, ids[0, len(answer.prompt) :, None])[:, 0]
    return of_tokens


@torch.no_grad()
def sample(model: Any, prompt: list[int], s: Settings, stop: int, noise: torch.Generator) -> list[int]:
    """An answer that ends in the stop token, or at the limit."""
    y: list[int] = []
    while len(y) < s.max_tokens and (not y or y[-1] != stop):
        ids = torch.tensor([prompt + y], device=next(model.parameters()).device)
        p = model(input_ids=ids, use_cache=False).logits[0, -1].float().softmax(-1).cpu()
        y.append(int(torch.multinomial(p, 1, generator=noise)))
    return y


def credit(answers: list[Answer], s: Settings) -> None:
    """Fill the advantages and returns of a step."""
    for a in answers:
        rewards = [-s.beta * (old - ref) for old, ref in zip(a.old, a.ref, strict=True)]
        rewards[-1] += max(-s.score_clip, min(s.score_clip, a.reward))
        following = [*a.V[1:], 0.0]
        a.A, later = [], 0.0
        for r, v, v_next in zip(reversed(rewards), reversed(a.V), reversed(following), strict=True):
            later = r + s.gamma * v_next - v + s.gamma * s.lam * later
            a.A.insert(0, later)
        a.R = [A + v for A, v in zip(a.A, a.V, strict=True)]
    tokens = [A for a in answers for A in a.A]
    center, scale = statistics.fmean(tokens), math.sqrt(statistics.pvariance(tokens) + 1e-8)
    for a in answers:
        a.A = [(A - center) / scale for A in a.A]


def backward(model: Any, critic: Critic, answers: list[Answer], s: Settings) -> dict[str, float]:
    """Add the gradients of one update's losses, one answer after the other; return the losses and what is watched."""
    tokens = sum(len(a.tokens) for a in answers)
    out = dict.fromkeys(("policy", "ratio", "approx_kl", "clip_low", "clip_high", "value", "value_error"), 0.0)
    for a in answers:
        logp, V = logprobs(model, a), critic(a)
        old, A, V_old, R = (torch.tensor(x, dtype=logp.dtype, device=logp.device) for x in (a.old, a.A, a.V, a.R))
        log_ratio = (logp - old).clamp(-20, 20)
        r = log_ratio.exp()
        policy = -torch.minimum(r * A, r.clamp(1 - s.clip_low, 1 + s.clip_high) * A)
        reach = s.value_clip or math.inf
        near = V_old + (V - V_old).clamp(-reach, reach)
        value = torch.maximum((V - R).square(), (near - R).square()) / 2
        ((policy.sum() + value.sum()) / tokens).backward()  # type: ignore[no-untyped-call]
        out["policy"] += policy.sum().item() / tokens
        out["ratio"] += r.sum().item() / tokens
        out["approx_kl"] += (r - 1 - log_ratio).sum().item() / tokens
        out["clip_low"] += ((r < 1 - s.clip_low) & (A < 0)).sum().item() / tokens
        out["clip_high"] += ((r > 1 + s.clip_high) & (A > 0)).sum().item() / tokens
        out["value"] += value.sum().item() / tokens
        out["value_error"] += (V - R).square().sum().item() / tokens
    return out


def updates(model: Any, critic: Critic, reference: Any, steps: Iterator[list[Answer]], s: Settings) -> Iterator[Any]:
    """The updates of each step of answers; yields what `backward` says, the gradients' norms, and the mean reward."""
    both = [[p for p in module.parameters() if p.requires_grad] for module in (model, critic)]
    options = {"betas": (s.beta1, s.beta2), "eps": s.eps, "weight_decay": 0.0}
    optimizers = [torch.optim.AdamW(parameters, **options) for parameters in both]  # type: ignore[arg-type]
    warm = math.ceil(s.warmup * s.steps)
    for step, answers in enumerate(steps):
        with torch.no_grad():
            for a in answers:
                a.old, a.ref = logprobs(model, a).tolist(), logprobs(reference, a).tolist()
                a.V = critic(a).tolist()
        credit(answers, s)
        for _ in range(s.epochs):
            line = {"reward": statistics.fmean(a.reward for a in answers), **backward(model, critic, answers, s)}
            names, rates = ("grad_norm", "grad_norm_critic"), (s.lr, s.critic_lr)
            for name, lr, parameters, optimizer in zip(names, rates, both, optimizers, strict=True):
                norm = nn.utils.clip_grad_norm_(parameters, s.clip_norm or math.inf, error_if_nonfinite=True)
                for parameter_group in optimizer.param_groups:
                    parameter_group["lr"] = lr * min(1.0, (step + 1) / max(warm, 1))
                optimizer.step()
                optimizer.zero_grad()
                line[name] = norm.item()
            yield line


def rollouts(model: Any, prompts: list[list[int]], s: Settings, stop: int, seed: int) -> Iterator[list[Answer]]:
    """Each step's scored answers, drawn with the weights as they are by then."""
    order, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    for _ in range(s.steps):
        answers = []
        for prompt in order.sample(prompts, min(s.prompts, len(prompts))):
            y = sample(model, prompt, s, stop, noise)
            answers.append(Answer(prompt, y, reward(prompt, y)))
        yield answers


def example() -> tuple[Any, list[list[int]]]:
    """A random Llama of 50,000 parameters, and prompts of three tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    rng = random.Random(0)
    return model, [[rng.randrange(2, 64) for _ in range(3)] for _ in range(64)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="Hugging Face directory or hub name; empty makes a tiny one")
    parser.add_argument("--data", type=Path, help="tokenised prompts, one JSON object a line")
    parser.add_argument("--stop", type=int, default=0, help="id of the stop token")
    parser.add_argument("--out", default="", help="where to save the model")
    parser.add_argument("--seed", type=int, default=0, help="seed of prompts and answers")
    for name, value in vars(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = parser.parse_args()
    if bool(args.model) != bool(args.data):
        parser.error("--model and --data go together")
    if args.model:
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        lines = args.data.read_text(encoding="utf-8").splitlines()
        prompts = [json.loads(line)["prompt"] for line in lines if line.strip()]
    else:
        model, prompts = example()
    s = Settings(**{name: getattr(args, name) for name in vars(Settings())})
    reference, critic = copy.deepcopy(model).eval().requires_grad_(False), Critic(model)
    steps = rollouts(model, prompts, s, args.stop, args.seed)
    for number, line in enumerate(updates(model, critic, reference, steps, s)):
        print(f"update {number:4d}  " + "  ".join(f"{name} {value:.6g}" for name, value in line.items()))
    if args.out:
        model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
