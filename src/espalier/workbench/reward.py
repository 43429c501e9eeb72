"""The workbench of a reward model: everything that is measured on held-out groups, as one JSON-able dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from espalier.workbench.agreement import agreement
from espalier.workbench.bestof import best_of_n
from espalier.workbench.biases import accuracy, format_bias, length_bias
from espalier.workbench.bootstrap import Resampling
from espalier.workbench.calibration import at_ties, calibration
from espalier.workbench.records import Judged, checked, clusters, pairs, ties


def judge(
    records: Sequence[Judged],
    how: Resampling | None = None,
    sensitivity: Mapping[str, Any] | None = None,
    weights: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Measure a reward model on held-out groups. `weights` are those of the grades' dimensions, by name.

    Keys of the result, each None or with value None where the data cannot say it:

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
    intervals    how intervals were made: seed, resamples, confidence; prompts are resampled

    An estimate is {"value", "low", "high", "n", "prompts"}. Raises ValueError for pairs of responses that are not there
    and ModelError for scores that are not finite.
    """
    how = how or Resampling()
    records = checked(records)
    cluster = clusters(records)
    strict, tied = pairs(records), ties(records)
    gaps = [p.gap for p in strict]
    sources = sorted({records[p.group].source for p in strict})
    sizes = sorted({len(records[p.group].responses) for p in strict})
    return {
        "counts": {
            "groups": len(records),
            "prompts": len(set(cluster)),
            "responses": sum(len(r.responses) for r in records),
            "pairs": len(strict),
            "ties": len(tied),
            "prompt_tokens": sum(r.prompt_tokens for r in records),
        },
        "accuracy": {
            "all": accuracy(strict, cluster, how),
            "macro": accuracy_by_prompt(records, cluster),
            "source": {
                name: accuracy([p for p in strict if records[p.group].source == name], cluster, how) for name in sources
            },
            "k": {
                str(k): accuracy([p for p in strict if len(records[p.group].responses) == k], cluster, how)
                for k in sizes
            },
        },
        "calibration": calibration(gaps),
        "ties": at_ties([p.gap for p in tied], gaps),
        "length": length_bias(records, cluster, how),
        "format": format_bias(records, cluster, how),
        "agreement": agreement(records, cluster, how, weights),
        "best_of_n": best_of_n(records, cluster, how),
        "sensitivity": dict(sensitivity) if sensitivity is not None else None,
        "intervals": {"seed": how.seed, "resamples": how.resamples, "confidence": how.confidence, "over": "prompts"},
    }


def accuracy_by_prompt(records: Sequence[Judged], cluster: Sequence[int]) -> float | None:
    """Mean over prompts of the accuracy on each one's pairs; None without pairs.

    By hand: one prompt with 3 pairs, all right, and one with 1, wrong: 0.5 (pooled: 0.75).
    """
    right: dict[int, list[float]] = {}
    for p in pairs(records):
        right.setdefault(cluster[p.group], []).append(1.0 if p.gap > 0 else 0.5 if p.gap == 0 else 0.0)
    return sum(sum(x) / len(x) for x in right.values()) / len(right) if right else None
