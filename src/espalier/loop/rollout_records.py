"""The lines of samples.jsonl: every answer of a step, also those that were not trained on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from espalier.loop.rolled import Rolled
from espalier.types import Sample

CLAMP = 20.0
"""Log-ratios are clamped to this on both sides, as in the losses."""


def records(
    done: int, groups: Sequence[Rolled], decode: Callable[[list[int]], str], stop: Collection[int] = ()
) -> Iterator[dict[str, Any]]:
    """One record per answer, in the order of the requests; `done` is the number of the step, from 1, and `stop` are the
    ids that end a response.

    step, task (row, source, line), epoch, k: which answer. prompt, response: text, the latter as the rewards read it,
        without the stop token; ids: those of the response, all of them.
    score, parts, invalid, error: what the rewards say. fate: of its group; an answer with an error left it.
    advantage: mean over the trained tokens; `advantages` has one per token if they differ.
    logprob: mean over the response, of the sampler, in nats. entropy: mean, in nats. kl: mean of k3 = r - 1 - log r
        with r = reference / policy before the update (Schulman, Approximating KL Divergence).

    What no stream says is null: advantages of groups that were dropped, entropy and kl if nothing computed them.
    """
    for group in groups:
        prompt = decode(group.prompt.tokens)
        origin = group.prompt.task.origin
        task = {"row": group.prompt.row, "source": origin.source, "line": origin.line}
        for k, s in enumerate(group.answers):
            ids = s.tokens[len(group.prompt.tokens) :]
            record = {"step": done, "task": task, "epoch": group.epoch, "k": k, "prompt": prompt}
            words = ids[:-1] if s.stop == "stop" and ids and ids[-1] in stop else ids
            record |= {"response": decode(words), "ids": ids}
            yield record | verdict(s, group.fate) | _measured(s)


def verdict(sample: Sample, fate: str) -> dict[str, Any]:
    """What the rewards say of an answer, and what becomes of it."""
    outcome = sample.outcome
    assert outcome is not None
    return {
        "score": None if outcome.error else outcome.score,
        "parts": {name: graded.alone for name, graded in outcome.parts.items()},
        "invalid": outcome.invalid,
        "error": outcome.error,
        "fate": fate,
        "stop": sample.stop,
        "length": sum(sample.mask),
    }


def _measured(sample: Sample) -> dict[str, Any]:
    """Means of the sample's streams over its trained tokens."""
    advantages = _trained(sample, "advantages")
    entries = {
        "advantage": _mean(advantages),
        "logprob": _mean(_trained(sample, "logprobs")),
        "entropy": _mean(_trained(sample, "entropy")),
        "kl": _mean(_k3(sample)),
    }
    return {**entries, "advantages": advantages} if len(set(advantages)) > 1 else entries


def _trained(sample: Sample, name: str) -> list[float]:
    """The entries of a stream at the trained tokens; empty without the stream."""
    if name not in sample.streams:
        return []
    return [x for x, trained in zip(sample.streams[name], sample.mask, strict=True) if trained]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _k3(sample: Sample) -> list[float]:
    references = _trained(sample, "ref_logprobs")
    policies: list[float] = []
    # The learner's own, if the old ones are the sampler's.
    for name in ("policy_logprobs", "old_logprobs", "logprobs"):
        policies = policies or _trained(sample, name)
    if not references or not policies:
        return []
    estimates = []
    for reference, policy in zip(references, policies, strict=True):
        log_ratio = max(-CLAMP, min(CLAMP, reference - policy))
        estimates.append(math.exp(log_ratio) - 1 - log_ratio)
    return estimates
