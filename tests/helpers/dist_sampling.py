"""A check of dist_worker.py: sharded policies are drawn from as one process draws from its own."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor

from dist_reference import make, train
from drawing import PROMPTS, at, drained, response, scored
from espalier.engines.processes import OneProcess
from espalier.engines.protocols import Request, Sampler
from espalier.engines.sampler.generate import GenerateSampler
from espalier.engines.sampler.local import LocalSampler
from preferences import pair_groups


def sampling(world: Any) -> dict[str, Any]:
    """Ranks draw different shares, also before any training, whose steps differ in number; between two updates weights
    are sharded again."""
    figures = {"tokens": 0.0, "logprobs": 0.0, "weights": 0.0, "responses": 0.0}
    for compute in (torch.float32, torch.bfloat16):
        alone, spread = make(OneProcess(), compute=compute), make(world, compute=compute)
        own: Sampler = LocalSampler(spread.policy)
        other: Sampler = LocalSampler(alone.policy)
        for epoch in range(2):
            compare(figures, world.rank, own, other, epoch, exact=compute == torch.float32)
            if epoch == 0:
                with own.drawing():
                    assert not any(isinstance(p, DTensor) for p in spread.policy.parameters())
            assert all(isinstance(p, DTensor) for p in spread.policy.parameters())
            train(alone, pair_groups()), train(spread, pair_groups())
            one = dict(alone.weights())
            for name, weight in spread.weights():
                figures["weights"] = max(figures["weights"], float((weight - one[name]).abs().max()))
            own.load(None, epoch + 1), other.load(None, epoch + 1)
    compare(figures, world.rank, GenerateSampler(spread.policy), GenerateSampler(alone.policy), 3, exact=False)
    return figures


def compare(figures: dict[str, Any], rank: int, own: Sampler, other: Sampler, epoch: int, *, exact: bool) -> None:
    """Draw this rank's share, twice as long on rank 1, and the same alone."""
    params = at(1.0, max_tokens=6 + 6 * rank)
    share = [Request(prompt, i, i, params, epoch, (0, 1)) for i, prompt in enumerate(PROMPTS) if i % 2 == rank]
    drawn = []
    for sampler in (own, other):
        sampler.submit(share)
        with sampler.drawing():
            drawn.append(drained(sampler))
    for one, two in zip(*drawn, strict=True):
        assert (one.request, one.k) == (two.request, two.k)
        figures["responses"] += 1
        if exact:
            figures["tokens"] += float(response(one.sample) != response(two.sample))
            pairs = zip(scored(one.sample), scored(two.sample), strict=True)
            figures["logprobs"] = max(figures["logprobs"], *(abs(a - b) for a, b in pairs))
