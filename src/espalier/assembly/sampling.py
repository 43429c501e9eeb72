"""From a model to the sampler that draws from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from espalier.assembly.machine import free_memory, total_memory
from espalier.engines.protocols import Drawn, Request, Sampler, SamplingParams
from espalier.engines.sampler.generate import GenerateSampler
from espalier.engines.sampler.local import LocalSampler
from espalier.engines.sampler.packed import packed_bytes
from espalier.engines.sampler.store import padded_length, token_bytes
from espalier.errors import ConfigError
from espalier.models.layout import obstacle
from espalier.models.load import Loaded
from espalier.models.policy import Policy
from espalier.types import Sample

ROWS = 256
GENERATE_ROWS = 64
GENERATE_TOKENS = 16384
SHARE_OF_MEMORY = 4
"""A quarter of the free memory is what keys and values may take."""
SHARE_OF_COPIES = 8
Kind = Literal["auto", "local", "generate"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """A sampler, how many rows and tokens it holds at most (pin both for resume: they decide who is drawn beside whom,
    and so its rounding), the bytes of its keys and values and of the copies of weights with which it draws, and a line
    for the user."""

    sampler: Sampler
    rows: int
    tokens: int
    bytes: int
    copies: int
    note: str


def build_sampler(
    loaded: Loaded,
    policy: Policy | None = None,
    *,
    kind: Kind = "auto",
    rows: int = 0,
    tokens: int = 0,
    longest: int = 0,
    most: int = 0,
    interrupted: Callable[[], bool] | None = None,
) -> Sampling:
    """The sampler for a model: the embedded one if every layer calls the attention interface, else `generate`.

    policy: the policy that trains `loaded`, under several processes sharded already. rows, tokens: bounds on what is
    held at the same time; 0 rows is `ROWS`, or `most` if no more answers are ever wanted at once (0: unknown); 0 tokens
    is what rows of `longest` tokens (prompt and answer; 0 if they are unknown) need, within a quarter of the memory
    that is free now. interrupted: see `LocalSampler`. Weights are copied for drawing if the copy is no more than an
    eighth of the machine's memory.

    Raises ConfigError for `local` and an architecture that it does not serve.
    """
    reason = obstacle(loaded.model) or ""
    if policy is not None and policy.layout == "padded" and not reason:
        reason = "the layout is padded"
    if kind == "local" and reason:
        raise ConfigError(f"sampler is local, but {reason}; set sampler to auto or generate", key="sampler")
    model: Any = loaded.model if policy is None else policy
    parts: dict[str, Any] = {
        "limit": loaded.limit,
        "original_limit": loaded.original_limit,
        "tokenizer": loaded.tokenizer,
        "interrupted": interrupted,
    }
    copies = packed_bytes(list(loaded.model.modules()))
    # Not of the free memory: what a run draws with must not differ from day to day.
    parts["pack"] = copies <= total_memory() / SHARE_OF_COPIES
    copies = copies if parts["pack"] else 0
    if kind == "generate" or reason:
        why = reason or "as configured"
        rows, tokens = rows or min(GENERATE_ROWS, most or GENERATE_ROWS), tokens or GENERATE_TOKENS
        sampler: Sampler = GenerateSampler(model, rows=rows, tokens=tokens, **parts)
        note = f"sampler generate ({why}): transformers' generate, up to {rows} answers at the same time"
        return Sampling(sampler, rows, tokens, tokens * _token_bytes(loaded), copies, note)
    rows = rows or min(ROWS, most or ROWS)
    if not tokens:
        tokens = int(_free(loaded) / SHARE_OF_MEMORY / _token_bytes(loaded))
        if longest:
            tokens = min(tokens, rows * padded_length(longest))
    local = LocalSampler(model, rows=rows, tokens=tokens, **parts)
    size = tokens * _token_bytes(loaded)
    note = f"sampler local: up to {rows} answers at the same time"
    if longest:
        note = f"sampler local: up to {rows} answers and keys and values of {tokens:,} tokens at the same time"
    return Sampling(local, rows, tokens, size, copies, note)


def draw_groups(
    sampler: Sampler, prompts: Sequence[list[int]], n: int, params: SamplingParams | Sequence[SamplingParams]
) -> list[list[Sample]]:
    """`n` samples for each prompt, in order. Prompts are tasks 0, 1, ...; `params` are one for all, or one a prompt."""
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
    requests = []
    for i, (prompt, own) in enumerate(zip(prompts, each, strict=True)):
        requests.append(Request(prompt, row=i, group=i, params=own, ks=tuple(range(n))))
    drawn: list[Drawn] = []
    with sampler.drawing():
        sampler.submit(requests)
        while sampler.busy:
            drawn += sampler.finished()
    drawn.sort(key=lambda one: (one.request.row, one.k))
    return [[one.sample for one in drawn[i * n : (i + 1) * n]] for i in range(len(prompts))]


def room(length: int, most: int, limit: int | None, original_limit: int | None) -> int:
    """How many tokens a response to a prompt of `length` tokens may have: at most `most`, and none across the model's
    limit or a switch of its RoPE."""
    bounds = [most]
    if limit is not None:
        bounds.append(limit - length)
    if original_limit and length <= original_limit:
        bounds.append(original_limit - length)
    return min(bounds)


def _token_bytes(loaded: Loaded) -> int:
    return token_bytes(loaded.model.config, loaded.model.dtype)


def _free(loaded: Loaded) -> float:
    """Free bytes of the model's device."""
    if loaded.model.device.type == "cuda":
        return float(torch.cuda.mem_get_info(loaded.model.device)[0])
    return free_memory()
