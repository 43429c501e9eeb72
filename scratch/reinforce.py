"""REINFORCE and REINFORCE++ in one flat file: what `espalier reinforce` and `espalier reinforce-pp` compute, answer by
answer, with nothing clever.

    L = sum_t -min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t) / tokens of all answers
    r_t = pi(y_t) / old(y_t)      G_t = reward - beta sum_{k >= t} log(old(y_k) / ref(y_k))

    baseline none     A_t = G_t
             batch    A_t = G_t - mean of G_1 over the other answers
             moving   A_t = G_t - m, m a moving mean of G_1 over the steps before; in the first step as batch
    whiten            A_t = (G_t - mean) / sqrt(var + 1e-8) over all tokens of the step            (REINFORCE++)
             group    the same of G_t = reward - mean reward of the prompt, and beta k2_t = beta log(pi_t / ref_t)^2 / 2
                      beside the clipped term

    python scratch/reinforce.py                     a tiny random model learns to answer in even numbers
    python scratch/reinforce.py --baseline whiten --beta 0.01
    python scratch/reinforce.py --model DIR --data prompts.jsonl      one JSON object a line: {"prompt": [5, 6]}

Imports torch and transformers only. A step draws one answer to each of some prompts (`--answers` for several) with the
weights as they are, one full forward a token, scores them with `reward`, and makes `--epochs` updates, each over all
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
    """An answer to the prompt number `group` of its step, with its stop token if it has one; `old` and `ref` are the
    log-probabilities of its tokens before the first update, `A` its tokens' advantages."""

    prompt: list[int]
    tokens: list[int]
    reward: float
    group: int = 0
    old: list[float] = field(default_factory=list)
    ref: list[float] = field(default_factory=list)
    A: list[float] = field(default_factory=list)


@dataclass
class Settings:
    steps: int = 40
    prompts: int = 32
    answers: int = 1
    max_tokens: int = 6
    epochs: int = 1
    lr: float = 3e-3
    warmup: float = 0.1
    clip_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_low: float = 0.2
    clip_high: float = 0.2
    beta: float = 0.0
    baseline: str = "batch"
    decay: float = 0.9


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


def credit(answers: list[Answer], s: Settings, moving: float | None) -> float | None:
    """Fill the advantages of a step; returns the moving mean for the next one (None before the first)."""
    in_reward = 0.0 if s.baseline == "group" else s.beta
    to_go = []
    for a in answers:
        k1 = [old - ref for old, ref in zip(a.old, a.ref, strict=True)]
        center = 0.0
        if s.baseline == "group":
            center = statistics.fmean(b.reward for b in answers if b.group == a.group)
        to_go.append([a.reward - center - in_reward * math.fsum(k1[t:]) for t in range(len(k1))])
    totals = [G[0] for G in to_go]
    for i, (a, G) in enumerate(zip(answers, to_go, strict=True)):
        if s.baseline in ("whiten", "group"):
            tokens = [x for y in to_go for x in y]
            scale = math.sqrt(statistics.pvariance(tokens) + 1e-8)
            a.A = [(x - statistics.fmean(tokens)) / scale for x in G]
        elif s.baseline == "moving" and moving is not None:
            a.A = [x - moving for x in G]
        elif s.baseline == "none":
            a.A = G
        else:
            others = totals[:i] + totals[i + 1 :]
            a.A = [x - statistics.fmean(others) for x in G]
    mean = statistics.fmean(totals)
    return mean if moving is None else s.decay * moving + (1 - s.decay) * mean


def backward(model: Any, answers: list[Answer], s: Settings) -> dict[str, float]:
    """Add the gradient of one update's loss, one answer after the other; return the loss and what is watched."""
    tokens = sum(len(a.tokens) for a in answers)
    out = dict.fromkeys(("policy", "kl_loss", "ratio", "clip_low", "clip_high"), 0.0)
    for a in answers:
        logp = logprobs(model, a)
        old, ref, A = (torch.tensor(x, dtype=logp.dtype, device=logp.device) for x in (a.old, a.ref, a.A))
        r = (logp - old).clamp(-20, 20).exp()
        policy = -torch.minimum(r * A, r.clamp(1 - s.clip_low, 1 + s.clip_high) * A)
        k2 = (logp - ref).clamp(-20, 20).square() / 2
        held = s.beta * k2 if s.baseline == "group" else torch.zeros_like(k2)
        loss = (policy + held).sum() / tokens
        loss.backward()  # type: ignore[no-untyped-call]
        out["policy"] += policy.sum().item() / tokens
        out["kl_loss"] += k2.sum().item() / tokens
        out["ratio"] += r.sum().item() / tokens
        out["clip_low"] += ((r < 1 - s.clip_low) & (A < 0)).sum().item() / tokens
        out["clip_high"] += ((r > 1 + s.clip_high) & (A > 0)).sum().item() / tokens
    return {"loss": out["policy"] + (s.beta * out["kl_loss"] if s.baseline == "group" else 0.0), **out}


def updates(model: Any, reference: Any, steps: Iterator[list[Answer]], s: Settings) -> Iterator[dict[str, float]]:
    """The updates of each step of answers; yields what `backward` says, the gradient's norm, and the mean reward."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(s.beta1, s.beta2), eps=s.eps, weight_decay=0.0)
    warm = math.ceil(s.warmup * s.steps)
    moving: float | None = None
    for step, answers in enumerate(steps):
        with torch.no_grad():
            for a in answers:
                a.old, a.ref = logprobs(model, a).tolist(), logprobs(reference, a).tolist()
        moving = credit(answers, s, moving)
        for _ in range(s.epochs):
            terms = backward(model, answers, s)
            norm = nn.utils.clip_grad_norm_(parameters, s.clip_norm or math.inf, error_if_nonfinite=True)
            for parameter_group in optimizer.param_groups:
                parameter_group["lr"] = s.lr * min(1.0, (step + 1) / max(warm, 1))
            optimizer.step()
            optimizer.zero_grad()
            yield {"reward": statistics.fmean(a.reward for a in answers), **terms, "grad_norm": norm.item()}


def rollouts(model: Any, prompts: list[list[int]], s: Settings, stop: int, seed: int) -> Iterator[list[Answer]]:
    """Each step's scored answers, drawn with the weights as they are by then."""
    order, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    for _ in range(s.steps):
        answers = []
        for group, prompt in enumerate(order.sample(prompts, min(s.prompts, len(prompts)))):
            for _ in range(s.answers):
                y = sample(model, prompt, s, stop, noise)
                answers.append(Answer(prompt, y, reward(prompt, y), group))
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
    names = {"baseline": ("none", "batch", "moving", "whiten", "group")}
    for name, value in vars(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, choices=names.get(name))
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
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    steps = rollouts(model, prompts, s, args.stop, args.seed)
    for number, line in enumerate(updates(model, reference, steps, s)):
        print(f"update {number:4d}  " + "  ".join(f"{name} {value:.6g}" for name, value in line.items()))
    if args.out:
        model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
