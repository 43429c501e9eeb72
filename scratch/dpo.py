"""Direct preference optimisation in one flat file: what `espalier dpo` computes, pair by pair, with nothing clever.

    L = sum_pairs -[(1 - e) log sigma(m) + e log sigma(-m)] / pairs  +  sft_coef * sum_chosen nll_t / |chosen tokens|
    m = beta (log pi(w|x) - log ref(w|x) - log pi(l|x) + log ref(l|x))        nll_t = -log pi(y_t | y_<t)

    python scratch/dpo.py                                       a tiny random model learns which of two answers is liked
    python scratch/dpo.py --model DIR --data rankings.jsonl     one JSON object a line:
        {"prompt": [5, 6], "answers": [[7, 2], [8, 2], [9, 2]], "wins": [[0, 1], [0, 2]]}     (0 beats 1 and 2)

Imports torch and transformers only. Each pair is two padded sequences, prompts and all, with full logits, and the
reference is a frozen copy of the model: an executable specification, which a test compares with the library.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid


@dataclass
class Ranking:
    """`wins` are pairs (preferred, other) of places in `answers`; an answer ends in its stop token."""

    prompt: list[int]
    answers: list[list[int]]
    wins: list[list[int]]

    def chosen(self) -> list[list[int]]:
        """The answers that beat another and that none beats."""
        best = {w for w, _ in self.wins} - {l for _, l in self.wins}
        return [self.answers[place] for place in sorted(best)]


@dataclass
class Settings:
    steps: int = 30
    lr: float = 1e-3
    warmup: float = 0.1
    clip_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_coef: float = 0.0


def logprobs(model: Any, prompt: list[int], answers: list[list[int]]) -> Tensor:
    """log p(y_t | x, y_<t) of every answer's tokens, a row each, 0 beyond its end; at least float32."""
    rows = [prompt + y for y in answers]
    longest = max(map(len, rows))
    device = next(model.parameters()).device
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    logits = model(input_ids=ids, attention_mask=real, use_cache=False).logits[:, :-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    found: Tensor = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
    return (found * real[:, 1:])[:, len(prompt) - 1 :]


def backward(model: Any, reference: Any, batch: list[Ranking], s: Settings) -> dict[str, float]:
    """Add the gradient of one step's loss, one pair after the other; return the loss, its terms and what is watched."""
    total = sum(len(r.wins) for r in batch)
    out: dict[str, float] = {}

    def add(name: str, value: float) -> None:
        out[name] = out.get(name, 0.0) + value

    for r in batch:
        for pair in r.wins:
            answers = [r.answers[place] for place in pair]
            policy = logprobs(model, r.prompt, answers).sum(1)
            with torch.no_grad():
                held = logprobs(reference, r.prompt, answers).sum(1)
            chosen, rejected = s.beta * (policy - held)
            margin = chosen - rejected
            loss = -(1 - s.label_smoothing) * logsigmoid(margin) - s.label_smoothing * logsigmoid(-margin)
            (loss / total).backward()
            add("sigmoid", loss.item() / total)
            add("accuracy", float(margin > 0) / total)
            add("margin", margin.item() / total)
            for side, reward, logp, y in zip(("chosen", "rejected"), (chosen, rejected), policy, answers, strict=True):
                add(f"rewards_{side}", reward.item() / total)
                add(f"logprobs_{side}", logp.item() / total)
                add(f"length_{side}", len(y) / total)
    if s.sft_coef:
        tokens = sum(len(y) for r in batch for y in r.chosen())
        for r in batch:
            for y in r.chosen():
                nll = -logprobs(model, r.prompt, [y]).sum() / tokens
                (s.sft_coef * nll).backward()
                add("nll", nll.item())
    return {"loss": out["sigmoid"] + s.sft_coef * out.get("nll", 0.0), **out}


def rate(step: int, s: Settings) -> float:
    """Linear warm-up over the first `warmup` of the steps, then half a cosine down to 0."""
    warm = math.ceil(s.warmup * s.steps)
    if step < warm:
        return s.lr * (step + 1) / warm
    return s.lr * (1 + math.cos(math.pi * (step - warm) / (s.steps - warm))) / 2


def train(model: Any, batches: Iterator[list[Ranking]], s: Settings) -> Iterator[dict[str, float]]:
    """One optimizer step a batch; yields the loss, its terms, the gradient's norm before clipping, and the rate."""
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(s.beta1, s.beta2), eps=s.eps, weight_decay=0.0)
    for step, batch in zip(range(s.steps), batches, strict=False):
        terms = backward(model, reference, batch, s)
        norm = nn.utils.clip_grad_norm_(parameters, s.clip_norm or math.inf, error_if_nonfinite=True)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, s)
        optimizer.step()
        optimizer.zero_grad()
        yield {**terms, "grad_norm": norm.item(), "lr": rate(step, s)}


def read(path: Path) -> list[Ranking]:
    return [Ranking(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def example() -> tuple[Any, list[Ranking]]:
    """A random Llama of 50,000 parameters; to `a b ?`, answer `a b` is liked better than `b a`, both than `a`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    rng = random.Random(0)
    letters = [rng.sample(range(2, 64), 2) for _ in range(64)]
    return model, [Ranking([a, b, 1], [[a, b, 0], [b, a, 0], [a, 0]], [[0, 1], [0, 2], [1, 2]]) for a, b in letters]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="Hugging Face directory or hub name; empty makes a tiny one")
    parser.add_argument("--data", type=Path, help="tokenised rankings, one JSON object a line")
    parser.add_argument("--out", default="", help="where to save the model")
    parser.add_argument("--batch", type=int, default=16, help="rankings in a step")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order")
    for name, value in vars(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = parser.parse_args()
    if bool(args.model) != bool(args.data):
        parser.error("--model and --data go together")
    if args.model:
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        data = read(args.data)
    else:
        model, data = example()
    rng = random.Random(args.seed)
    batches = (rng.sample(data, min(args.batch, len(data))) for _ in range(args.steps))
    settings = Settings(**{name: getattr(args, name) for name in vars(Settings())})
    for step, line in enumerate(train(model, batches, settings)):
        print(f"step {step:4d}  " + "  ".join(f"{name} {value:.6g}" for name, value in line.items()))
    if args.out:
        model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
