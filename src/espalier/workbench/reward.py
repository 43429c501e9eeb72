"""The workbench of a reward model: everything that is measured on held-out groups, as one JSON-able dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from espalier.workbench.agreement import agreement
from espalier.workbench.bestof import best_of_n
from espalier.workbench.biases import accuracy, format_bias, length_bias
from espalier.workbench.bootstrap import Resampling
from espalier.workbench.calibration import at_ties, calibration
from espalier.workbench.records import HeldOutGroup, Pair, check, prompt_numbers, strict_pairs, tied_pairs


def judge(
    groups: Sequence[HeldOutGroup],
    resampling: Resampling | None = None,
    sensitivity: Mapping[str, Any] | None = None,
    weights: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Measure a reward model on held-out groups. `weights` are those of the grades' dimensions, by name.

    Keys of the result, each None or with value None if the data does not show it:

    counts       groups, prompts, responses, pairs, ties, prompt_tokens (of all groups)
    accuracy     share of strict pairs whose preferred response scores higher (equal scores count half): `all`, by
                 `source`, and by `k`, the number of responses in the group; `macro` is the mean over prompts, in which
                 a prompt with many pairs weighs no more than another
    calibration  see `calibration.calibration`; ties: `calibration.at_ties`
    length       `biases.length_bias`
    format       `biases.format_bias`
    agreement    `agreement.agreement`
    best_of_n    `bestof.best_of_n`
    sensitivity  as given: `sensitivity.sensitivity` needs the model
    intervals    how intervals were computed: seed, resamples, confidence; prompts are resampled

    An estimate is {"value", "low", "high", "n", "prompts"}. Raises ValueError for pairs of responses that do not exist
    and ModelError for scores that are not finite.
    """
    check(groups)
    resampling = resampling or Resampling()
    prompts = prompt_numbers(groups)
    gaps = [pair.gap for pair in strict_pairs(groups)]
    gaps_at_ties = [pair.gap for pair in tied_pairs(groups)]
    return {
        "counts": {
            "groups": len(groups),
            "prompts": len(set(prompts)),
            "responses": sum(len(group.responses) for group in groups),
            "pairs": len(gaps),
            "ties": len(gaps_at_ties),
            "prompt_tokens": sum(group.prompt_tokens for group in groups),
        },
        "accuracy": _accuracies(groups, prompts, resampling),
        "calibration": calibration(gaps),
        "ties": at_ties(gaps_at_ties, gaps),
        "length": length_bias(groups, prompts, resampling),
        "format": format_bias(groups, prompts, resampling),
        "agreement": agreement(groups, prompts, resampling, weights),
        "best_of_n": best_of_n(groups, prompts, resampling),
        "sensitivity": None if sensitivity is None else dict(sensitivity),
        "intervals": {
            "seed": resampling.seed,
            "resamples": resampling.resamples,
            "confidence": resampling.confidence,
            "over": "prompts",
        },
    }


def _accuracies(groups: Sequence[HeldOutGroup], prompts: Sequence[int], resampling: Resampling) -> dict[str, Any]:
    """Accuracy on all strict pairs, by prompt, by source and by the size of the group."""
    pairs = strict_pairs(groups)

    def by(key: Callable[[HeldOutGroup], Any]) -> dict[str, Any]:
        parts: dict[Any, list[Pair]] = {}
        for pair in pairs:
            parts.setdefault(key(groups[pair.group]), []).append(pair)
        return {str(value): accuracy(parts[value], prompts, resampling) for value in sorted(parts)}

    return {
        "all": accuracy(pairs, prompts, resampling),
        "macro": accuracy_by_prompt(groups, prompts),
        "source": by(lambda group: group.source),
        "k": by(lambda group: len(group.responses)),
    }


def accuracy_by_prompt(groups: Sequence[HeldOutGroup], prompts: Sequence[int]) -> float | None:
    """Mean over prompts of the accuracy on each one's pairs; None without pairs.

    By hand: one prompt with 3 pairs, all right, and one with 1, wrong: 0.5 (pooled: 0.75).
    """
    wins: dict[int, list[float]] = {}
    for pair in strict_pairs(groups):
        wins.setdefault(prompts[pair.group], []).append(pair.win)
    if not wins:
        return None
    return sum(sum(of_prompt) / len(of_prompt) for of_prompt in wins.values()) / len(wins)
