"""Supervised fine-tuning in one flat file: what `espalier sft` computes, sequence by sequence, with nothing clever.

    L = sum_main w_t nll_t / sum_main w_t  +  replay_coef * sum_replay w_t nll_t / sum_replay w_t
    nll_t = -log p(y_t | y_<t)

    python scratch/sft.py                                       a tiny random model learns a few made-up sequences
    python scratch/sft.py --model DIR --data samples.jsonl      one JSON object a line:
        {"tokens": [5, 6, 7], "weights": [0, 0, 1], "part": "main"}     (weight 0 is not trained; part main or replay)

Imports torch and transformers only. No packing, no sharing, no micro-batches, full logits: an executable specification,
which a test compares with the library.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Sequence:
    """`weights[i]` is about `tokens[i]`; the first token is never scored, nothing precedes it."""

    tokens: list[int]
    weights: list[float]
    part: str = "main"


@dataclass
class Settings:
    steps: int = 20
    lr: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    replay_coef: float = 0.1


def logprobs(model: nn.Module, tokens: list[int]) -> Tensor:
    """log p(tokens[i] | tokens[:i]) for i = 1, 2, ...; at least float32."""
    ids = torch.tensor([tokens], device=next(model.parameters()).device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


def backward(model: nn.Module, batch: list[Sequence], replay_coef: float) -> dict[str, float]:
    """Add the gradient of one step's loss, one sequence after the other; return the loss and its terms."""
    out = {"loss": 0.0}
    for part in sorted({s.part for s in batch}):
        members = [s for s in batch if s.part == part]
        total = sum(sum(s.weights[1:]) for s in members)
        coef = replay_coef if part == "replay" else 1.0
        out[part] = 0.0
        for s in members:
            if not any(s.weights[1:]):
                continue
            scores = logprobs(model, s.tokens)
            share = -(scores * scores.new_tensor(s.weights[1:])).sum() / total
            (coef * share).backward()
            out[part] += share.item()
        out["loss"] += coef * out[part]
    return out


def parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices; leave embeddings, the head, norms and biases alone."""
    plain = [m for m in model.modules() if isinstance(m, nn.Embedding)] + [model.get_output_embeddings()]
    spared = {id(p) for m in plain for p in m.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in spared]
    chosen = {id(p) for p in decayed}
    rest = [p for p in trained if id(p) not in chosen]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def rate(step: int, s: Settings) -> float:
    """Linear warm-up over the first `warmup` of the steps, then half a cosine down to 0."""
    warm = math.ceil(s.warmup * s.steps)
    if step < warm:
        return s.lr * (step + 1) / warm
    return s.lr * (1 + math.cos(math.pi * (step - warm) / (s.steps - warm))) / 2


def train(model: Any, batches: Iterator[list[Sequence]], s: Settings) -> Iterator[dict[str, float]]:
    """One optimizer step a batch; yields the loss, its terms, the gradient's norm before clipping, and the rate."""
    model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model, s.weight_decay), betas=(s.beta1, s.beta2), eps=s.eps)
    for step, batch in zip(range(s.steps), batches, strict=False):
        terms = backward(model, batch, s.replay_coef)
        parameters = [p for p in model.parameters() if p.requires_grad]
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        norm = nn.utils.clip_grad_norm_(parameters, s.clip_norm or math.inf, error_if_nonfinite=True)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, s)
        optimizer.step()
        optimizer.zero_grad()
        yield {**terms, "grad_norm": norm.item(), "lr": rate(step, s)}


def read(path: Path) -> list[Sequence]:
    return [Sequence(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def example() -> tuple[Any, list[Sequence]]:
    """A random Llama of 50,000 parameters, and questions `a b ?` answered by `a b b a`, with plain text to replay."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    rng = random.Random(0)
    data = []
    for _ in range(64):
        a, b = rng.randrange(2, 64), rng.randrange(2, 64)
        data.append(Sequence([a, b, 1, a, b, b, a, 0], [0, 0, 0, 1, 1, 1, 1, 1]))
        data.append(Sequence([a, a, a, a], [1, 1, 1, 1], "replay"))
    return model, data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="Hugging Face directory or hub name; empty makes a tiny one")
    parser.add_argument("--data", type=Path, help="tokenised samples, one JSON object a line")
    parser.add_argument("--out", default="", help="where to save the model")
    parser.add_argument("--batch", type=int, default=16, help="sequences in a step")
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
