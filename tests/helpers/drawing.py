"""Requests to samplers, and what a plain forward says of the samples that they return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from espalier.engines.protocols import Drawn, Request, Sampler, SamplingParams
from espalier.types import Sample

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21], [30, 31, 32, 33], [40], [50, 51, 52, 53, 54, 55, 56, 57, 58, 59]]


def requests(prompts: Sequence[list[int]], n: int, params: SamplingParams, epoch: int = 0) -> list[Request]:
    """`n` samples of each prompt; prompt i is task i and group 100 + i."""
    ks = tuple(range(n))
    return [Request(p, row=i, group=100 + i, params=params, epoch=epoch, ks=ks) for i, p in enumerate(prompts)]


def drained(sampler: Sampler) -> list[Drawn]:
    """All that the sampler returns until it is not busy."""
    drawn: list[Drawn] = []
    while sampler.busy:
        drawn += sampler.finished()
    return drawn


def draw_all(sampler: Sampler, prompts: Sequence[list[int]], n: int, params: SamplingParams) -> list[list[Sample]]:
    """`n` samples of each prompt, in order."""
    sampler.submit(requests(prompts, n, params))
    drawn = sorted(drained(sampler), key=lambda one: (one.request.row, one.k))
    assert [(one.request.row, one.k) for one in drawn] == [(i, k) for i in range(len(prompts)) for k in range(n)]
    return [[one.sample for one in drawn[i * n : (i + 1) * n]] for i in range(len(prompts))]


def response(sample: Sample) -> list[int]:
    return [token for token, trained in zip(sample.tokens, sample.mask, strict=True) if trained]


def scored(sample: Sample, stream: str = "logprobs") -> list[float]:
    """A stream at the response's tokens."""
    return [x for x, trained in zip(sample.streams[stream], sample.mask, strict=True) if trained]


def greedy(model: Any, prompt: list[int], steps: int) -> list[int]:
    """The response without a cache."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            tokens.append(int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def teacher_forced(model: Any, sample: Sample) -> list[float]:
    """Log-probabilities of the trained tokens in one forward of the whole sequence, without a cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([sample.tokens]), use_cache=False).logits[0] / sample.temperature
    logprobs = logits.log_softmax(-1)
    return [float(logprobs[i - 1, token]) for i, token in enumerate(sample.tokens) if sample.mask[i]]


def at(temperature: float, **fields: Any) -> SamplingParams:
    """Params of short responses."""
    return replace(SamplingParams(max_tokens=8, temperature=temperature, seed=3), **fields)
