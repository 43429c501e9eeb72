"""A sampler without anything clever: one full padded forward a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from espalier.types import Sample


@torch.no_grad()
def next_logprobs(model: Any, rows: Sequence[list[int]]) -> Tensor:
    """log p of the next token after each row, [B, V]; by transformers' own attention, whatever the model has."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    own = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    logits = model(input_ids=ids, attention_mask=real, use_cache=False).logits
    model.set_attn_implementation(own)
    last: Tensor = logits[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
    return last.float().log_softmax(-1)


def draw(
    model: Any, prompts: Sequence[list[int]], count: int, *, limit: int, stop: int, noise: torch.Generator
) -> list[list[Sample]]:
    """`count` answers to each prompt, as groups; the stop token ends one and belongs to it. `logprobs` are those of the
    distribution drawn from."""
    groups = []
    for number, prompt in enumerate(prompts):
        groups.append([Sample(group=number, key=number * count + k, stop="length") for k in range(count)])
        for s in groups[-1]:
            s.append(prompt, trained=False)
    open_ = [s for group in groups for s in group]
    for _ in range(limit):
        logp = next_logprobs(model, [s.tokens for s in open_])
        tokens = torch.multinomial(logp.exp(), 1, generator=noise)
        for s, token, x in zip(open_, tokens[:, 0].tolist(), logp.gather(1, tokens)[:, 0].tolist(), strict=True):
            s.append([token], trained=True, logprobs=[x])
            s.stop = "stop" if token == stop else "length"
        open_ = [s for s in open_ if s.stop != "stop"]
        if not open_:
            break
    return groups
