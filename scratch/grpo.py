"""Group relative policy optimisation in one flat file: what `espalier grpo` computes, answer by answer, with nothing
clever.

    L = 1/S sum_S 1/|y| sum_t [ -min(r_t A, clip(r_t, 1 - clip_low, 1 + clip_high) A) + beta r_t k3_t ]
    r_t = pi(y_t) / old(y_t)      A = (reward - mean) / (std + 1e-4) over the answers to a prompt
    k3_t = ref(y_t) / pi(y_t) - 1 - log(ref(y_t) / pi(y_t))

    python scratch/grpo.py                          a tiny random model learns to answer in even numbers
    python scratch/grpo.py --model DIR --data prompts.jsonl      one JSON object a line: {"prompt": [5, 6]}

Imports torch and transformers only. A step draws answers to some prompts with the weights as they are, one full forward
a token, scores them with `reward`, and makes `--epochs` updates, each over all answers. Answers are padded sequences,
prompts and all, with full logits; the reference is a frozen copy of the model: an executable specification, which a
test compares with the library.
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
class Group:
    """Answers to one prompt, each with its stop token if it has one; `old` are the log-probabilities of their tokens
    before the first update."""

    prompt: list[int]
    answers: list[list[int]]
    rewards: list[float]
    old: list[list[float]] = field(default_factory=list)

    def advantages(self) -> list[float]:
        if len(set(self.rewards)) == 1:
            return [0.0] * len(self.rewards)
        mean, std = statistics.fmean(self.rewards), statistics.stdev(self.rewards)
        return [(r - mean) / (std + 1e-4) for r in self.rewards]


@dataclass
class Settings:
    steps: int = 40
    prompts: int = 8
    answers: int = 8
    max_tokens: int = 6
    temperature: float = 1.0
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


def reward(prompt: list[int], answer: list[int]) -> float:
    """The share of even tokens among those of the answer."""
    return sum(token % 2 == 0 for token in answer) / len(answer)


def logits(model: Any, rows: list[list[int]], temperature: float) -> tuple[Tensor, Tensor]:
    """What the model says after every token of some rows, padded at the right, and the rows; at least float32."""
    longest = max(map(len, rows))
    device = next(model.parameters()).device
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    z = model(input_ids=ids, attention_mask=real, use_cache=False).logits
    return z.to(torch.promote_types(z.dtype, torch.float32)) / temperature, ids


def logprobs(model: Any, group: Group, temperature: float) -> list[Tensor]:
    """log p(y_t | x, y_<t) of the tokens of every answer."""
    z, ids = logits(model, [group.prompt + y for y in group.answers], temperature)
    of_all = z[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
    start = len(group.prompt) - 1
    return [of_all[i, start : start + len(y)] for i, y in enumerate(group.answers)]


@torch.no_grad()
def sample(model: Any, prompt: list[int], s: Settings, stop: int, noise: torch.Generator) -> list[list[int]]:
    """Answers that end in the stop token, or at the limit."""
    answers: list[list[int]] = [[] for _ in range(s.answers)]
    for _ in range(s.max_tokens):
        going = [y for y in answers if not y or y[-1] != stop]
        if not going:
            break
        z, _ = logits(model, [prompt + y for y in going], s.temperature)
        last = torch.tensor([len(prompt + y) - 1 for y in going])
        p = z[torch.arange(len(going)), last].softmax(-1).cpu()
        for y, token in zip(going, torch.multinomial(p, 1, generator=noise)[:, 0].tolist(), strict=True):
            y.append(token)
    return answers


def backward(model: Any, reference: Any, groups: list[Group], s: Settings) -> dict[str, float]:
    """Add the gradient of one update's loss, one group after the other; return the loss and what is watched."""
    count = sum(len(g.answers) for g in groups)
    tokens = sum(len(y) for g in groups for y in g.answers)
    out = dict.fromkeys(("policy", "kl_loss", "kl", "ratio", "clip_low", "clip_high"), 0.0)
    for g in groups:
        new = logprobs(model, g, s.temperature)
        with torch.no_grad():
            held = logprobs(reference, g, s.temperature)
        loss = torch.zeros(())
        for place, A in enumerate(g.advantages()):
            logp, old = new[place], torch.tensor(g.old[place], dtype=new[place].dtype, device=new[place].device)
            r = (logp - old).clamp(-20, 20).exp()
            policy = -torch.minimum(r * A, r.clamp(1 - s.clip_low, 1 + s.clip_high) * A)
            to_ref = (held[place] - logp).clamp(-20, 20)
            k3 = to_ref.exp() - 1 - to_ref
            loss = loss + (policy + s.beta * r * k3).mean() / count
            out["policy"] += policy.mean().item() / count
            out["kl_loss"] += (r * k3).mean().item() / count
            out["kl"] += k3.sum().item() / tokens
            out["ratio"] += r.sum().item() / tokens
            out["clip_low"] += ((r < 1 - s.clip_low) & (A < 0)).sum().item() / tokens
            out["clip_high"] += ((r > 1 + s.clip_high) & (A > 0)).sum().item() / tokens
        loss.backward()  # type: ignore[no-untyped-call]
    return {"loss": out["policy"] + s.beta * out["kl_loss"], **out}


def rate(step: int, s: Settings) -> float:
    """Linear warm-up over the first `warmup` of the steps, then the same rate; constant inside a step."""
    warm = math.ceil(s.warmup * s.steps)
    return s.lr * min(1.0, (step + 1) / max(warm, 1))


def updates(model: Any, reference: Any, steps: Iterator[list[Group]], s: Settings) -> Iterator[dict[str, float]]:
    """The updates of each step of answers; yields what `backward` says, the gradient's norm, and the mean reward."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(s.beta1, s.beta2), eps=s.eps, weight_decay=0.0)
    for step, groups in enumerate(steps):
        for g in groups:
            with torch.no_grad():
                g.old = [x.tolist() for x in logprobs(model, g, s.temperature)]
        scores = [r for g in groups for r in g.rewards]
        for _ in range(s.epochs):
            terms = backward(model, reference, groups, s)
            norm = nn.utils.clip_grad_norm_(parameters, s.clip_norm or math.inf, error_if_nonfinite=True)
            for parameter_group in optimizer.param_groups:
                parameter_group["lr"] = rate(step, s)
            optimizer.step()
            optimizer.zero_grad()
            yield {"reward": sum(scores) / len(scores), **terms, "grad_norm": norm.item()}


def rollouts(model: Any, prompts: list[list[int]], s: Settings, stop: int, seed: int) -> Iterator[list[Group]]:
    """Each step's scored answers, drawn with the weights as they are by then."""
    order, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    for _ in range(s.steps):
        chosen = order.sample(prompts, min(s.prompts, len(prompts)))
        answers = [sample(model, prompt, s, stop, noise) for prompt in chosen]
        yield [Group(x, ys, [reward(x, y) for y in ys]) for x, ys in zip(chosen, answers, strict=True)]


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
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    steps = rollouts(model, prompts, s, args.stop, args.seed)
    for number, line in enumerate(updates(model, reference, steps, s)):
        print(f"update {number:4d}  " + "  ".join(f"{name} {value:.6g}" for name, value in line.items()))
    if args.out:
        model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
