"""Held-out numbers of a model that is being trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from espalier.algorithms.traits import Algorithm
from espalier.engines.protocols import Group, Learner, Roles, samples_of
from espalier.loop.annotate import annotate


def evaluate(learner: Learner, batches: Iterator[list[Group]]) -> dict[str, float]:
    """Held-out numbers over all trained tokens, weighted as in training. Empty without data.

    `eval_loss`: nats per token. `eval_perplexity`: its exponential. `eval_accuracy`: share of targets that are the most
    probable token. `eval_tokens`: how many there are.
    """
    loss = weight = hits = count = 0.0
    for groups in batches:
        for s, outputs in zip(samples_of(groups), learner.say(groups, ["logprobs", "correct"]), strict=True):
            for t in range(1, len(s.tokens)):
                if s.mask[t]:
                    loss -= s.weights[t] * outputs.logprobs[t]
                    weight += s.weights[t]
                    hits += outputs.correct[t]
                    count += 1
    if not weight:
        return {}
    mean = loss / weight
    # exp(710) overflows.
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return {"eval_loss": mean, "eval_perplexity": perplexity, "eval_accuracy": hits / count, "eval_tokens": count}


def evaluate_loss(
    roles: Roles,
    algorithm: Algorithm,
    state: dict[str, float],
    batches: Iterator[list[Group]],
) -> dict[str, float]:
    """Held-out numbers of an algorithm whose loss is no likelihood: `eval_TERM` for every term that has weight there,
    summed over all held-out data and divided once, and `eval_loss`, their weighted sum. Empty without data, and if no
    trained term has weight.

    Streams are filled as in a step; `state` is that of the last step, for all of the data.
    """
    sums: dict[str, tuple[float, float, float]] = {}
    for groups in batches:
        annotate(groups, algorithm, roles, state)
        for name, measured in roles.policy.measure(groups, algorithm.loss, state).items():
            added, total, _ = sums.get(name, (0.0, 0.0, 0.0))
            sums[name] = (added + measured.sum, total + measured.total, measured.coef)
    means = {name: (added / total, coef) for name, (added, total, coef) in sums.items() if total}
    if not any(coef for _, coef in means.values()):
        return {}
    loss = sum(coef * mean for mean, coef in means.values())
    return {"eval_loss": loss, **{f"eval_{name}": mean for name, (mean, _) in means.items()}}


def shown(numbers: Mapping[str, float]) -> str:
    """Held-out numbers in a line: of rows the loss, and perplexity, accuracy and margin if they were measured; of tasks
    the score, and the length of answers."""
    if "eval_loss" not in numbers:
        parts = [f"held-out score {numbers['eval_score']:.4f}"]
        if "eval_length" in numbers:
            parts.append(f"length {numbers['eval_length']:.1f}")
        return ", ".join(parts)
    parts = [f"held-out loss {numbers['eval_loss']:.4f}"]
    if "eval_perplexity" in numbers:
        parts.append(f"perplexity {numbers['eval_perplexity']:.3f}, token accuracy {numbers['eval_accuracy']:.1%}")
    elif "eval_accuracy" in numbers:
        parts.append(f"accuracy {numbers['eval_accuracy']:.1%}")
    if "eval_margin" in numbers:
        parts.append(f"margin {numbers['eval_margin']:.4f}")
    return ", ".join(parts)
