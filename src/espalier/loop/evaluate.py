"""Held-out numbers of a model that is being trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from espalier.algorithms.traits import Algorithm
from espalier.engines.protocols import Group, Learner, Reference
from espalier.loop.annotate import annotate


def evaluate(learner: Learner, batches: Iterator[list[Group]]) -> dict[str, float]:
    """Held-out numbers over all trained tokens, weighted as in training: `eval_loss` (nats a token), `eval_perplexity`
    (its exponential), `eval_accuracy` (share of targets that are the most probable token), `eval_tokens`. Empty
    without data.
    """
    loss = weight = hits = count = 0.0
    for groups in batches:
        samples = [s for g in groups for s in g]
        for s, outputs in zip(samples, learner.say(groups, ["logprobs", "correct"]), strict=True):
            for t in range(1, len(s.tokens)):
                if s.mask[t]:
                    loss -= s.weights[t] * outputs.logprobs[t]
                    weight += s.weights[t]
                    hits += outputs.correct[t]
                    count += 1
    if not weight:
        return {}
    mean = loss / weight
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return {"eval_loss": mean, "eval_perplexity": perplexity, "eval_accuracy": hits / count, "eval_tokens": count}


def evaluate_loss(
    learner: Learner,
    algorithm: Algorithm,
    reference: Reference | None,
    state: dict[str, float],
    batches: Iterator[list[Group]],
) -> dict[str, float]:
    """Held-out numbers of an algorithm whose loss is no likelihood: `eval_TERM` for every term that has weight there,
    summed over all held-out data and divided once, and `eval_loss`, their weighted sum. Empty without data, and where
    no trained term has weight.

    Streams are filled as in a step; `state` is what the last step left, for all of the data.
    """
    sums: dict[str, tuple[float, float, float]] = {}
    for groups in batches:
        annotate(groups, algorithm, learner, reference, state)
        for name, found in learner.measure(groups, algorithm.loss, state).items():
            x, total, _ = sums.get(name, (0.0, 0.0, 0.0))
            sums[name] = (x + found.sum, total + found.total, found.coef)
    means = {name: (x / total, coef) for name, (x, total, coef) in sums.items() if total}
    if not any(coef for _, coef in means.values()):
        return {}
    loss = sum(coef * mean for mean, coef in means.values())
    return {"eval_loss": loss, **{f"eval_{name}": mean for name, (mean, _) in means.items()}}


def shown(numbers: Mapping[str, float]) -> str:
    """Held-out numbers in a line: the loss, and what people ask for next where it was measured."""
    said = [f"held-out loss {numbers['eval_loss']:.4f}"]
    if "eval_perplexity" in numbers:
        said.append(f"perplexity {numbers['eval_perplexity']:.3f}, token accuracy {numbers['eval_accuracy']:.1%}")
    elif "eval_accuracy" in numbers:
        said.append(f"accuracy {numbers['eval_accuracy']:.1%}")
    if "eval_margin" in numbers:
        said.append(f"margin {numbers['eval_margin']:.4f}")
    return ", ".join(said)
