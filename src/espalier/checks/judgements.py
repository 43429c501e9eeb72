"""Checks of preference runs before their first step: each stops the run with the cause.

Where the reference is the policy as it starts, every log-ratio is 0 and the first loss is a known number; where there
is none, the first loss follows from the log-probabilities by arithmetic. `first_loss` holds the loss against
`firstloss.expected_first_loss`, which is written without the losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from espalier.checks.model import LAYOUT_LIMIT
from espalier.checks.table import Check
from espalier.types import Sample, Wants

REFERENCE_LIMIT = {torch.float64: 1e-10, torch.float32: 1e-5}
ONE_CLASS = 0.9  # beyond this share of good or of bad answers one side is hardly trained
LONGER = (0.2, 0.8)  # outside it length alone tells most pairs apart

# ----------------------------------------------------------------------------------------------------------- reference


def rounding(logprobs: Callable[[Sequence[list[Sample]]], list[list[float]]], groups: Sequence[list[Sample]]) -> float:
    """The largest difference, in nats a token, between log-probabilities of the same policy under two packings: all
    groups together, and every sample alone. What is seen here is rounding, and no reference can be held to less.

    `logprobs` takes groups and returns a list for every sample, in order, as `Reference.logprobs` does.
    """
    return apart(logprobs(groups), [said for group in groups for s in group for said in logprobs([[s]])])


def apart(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """The largest absolute difference of two lists of streams; infinite where one of them is not finite.

    >>> apart([[0.0, -1.0], [-2.0]], [[0.0, -1.5], [-2.25]])
    0.5
    """
    gaps = [abs(x - y) for a, b in zip(one, other, strict=True) for x, y in zip(a, b, strict=True)]
    return max((gap if math.isfinite(gap) else math.inf for gap in gaps), default=0.0)


def reference_equals_policy(max_abs_diff: float, dtype: torch.dtype, probe: float = 0.0) -> Check:
    """The reference's log-probabilities against those of the policy before its first step, in nats a token.

    The limit is the largest of 1e-5 in float32 (1e-10 in float64; nothing fixed in half precision) and 2 * probe, at
    most `preflight.LAYOUT_LIMIT`. `probe` is `rounding`, measured on the same model: bfloat16 rounds by 0.01 to 0.1
    nats a token between two packings, and a long row in float32 by more than 1e-5. A reference that runs in the
    policy's own packing differs by exactly 0.
    """
    cap = LAYOUT_LIMIT.get(dtype, 0.25)
    limit = min(cap, max(REFERENCE_LIMIT.get(dtype, 0.0), 2 * probe))
    name = str(dtype).removeprefix("torch.")
    why = f"{name}; another packing of the policy changes {probe:.1e}" if probe else name
    ok = max_abs_diff <= limit
    return Check(
        "reference", f"{max_abs_diff:.1e} nats a token from the policy", f"<= {limit:.1e} ({why})",
        "pass" if ok else "fail",
        "" if ok else "The reference is not the policy as it starts: another model, another dtype, dropout that is on, "
        "or adapters that are not switched off. Leave reference_model empty, or name the model that the policy was "
        "trained from.",
    )  # fmt: skip


def first_loss(value: float, expected: float | None, tolerance: float, name: str) -> Check:
    """The first step's loss, or another number of it such as its margin, against what it must be.

    expected: from `firstloss.expected_first_loss`; None skips the check, where pairs alone do not say it. tolerance:
    the absolute difference that rounding explains.
    """
    if expected is None:
        return Check("first_loss", f"{name} {value:.6f}", "follows from more than the pairs", "skipped")
    ok = abs(value - expected) <= tolerance  # false for nan
    return Check(
        "first_loss", f"{name} {value:.6f}", f"{expected:.6f} ± {tolerance:.0e}", "pass" if ok else "fail",
        "" if ok else "The loss is not that of these pairs: reference and policy disagree, chosen and rejected are "
        "mixed up, or tokens are counted wrongly. Look at the pairs with `espalier inspect`.",
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- data


@dataclass(slots=True)
class PreferenceStats:
    """Counts of judgements. `groups` become comparisons and labels as `add` sees them; `dropped` counts what was left
    out, by reason.

    longer, shorter: pairs whose preferred answer has more, or fewer, trained tokens. good, bad: labelled answers of
    groups without pairs. graded: answers with a grade.
    """

    groups: int = 0
    pairs: int = 0
    ties: int = 0
    longer: int = 0
    shorter: int = 0
    good: int = 0
    bad: int = 0
    graded: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def add(self, group: Sequence[Sample]) -> None:
        """Count one group of siblings."""
        lengths = [sum(s.mask) for s in group]
        self.groups += 1
        for s, length in zip(group, lengths, strict=True):
            self.pairs += len(s.beats)
            self.ties += len(s.ties)
            self.longer += sum(length > lengths[place] for place in s.beats)
            self.shorter += sum(length < lengths[place] for place in s.beats)
            self.graded += any(math.isfinite(x) for grade in s.grades for x in grade)
        if not any(s.beats for s in group):
            self.good += sum(s.label == 1 for s in group)
            self.bad += sum(s.label == 0 for s in group)


def counted(groups: Iterable[Sequence[Sample]], dropped: Mapping[str, int] | None = None) -> PreferenceStats:
    """The counts of all groups. `dropped` are rows or comparisons that became none, by reason."""
    stats = PreferenceStats(dropped=dict(dropped or {}))
    for group in groups:
        stats.add(group)
    return stats


def preferences(stats: PreferenceStats, wants: Wants = "pairs") -> Check:
    """Whether the data hold what the algorithm `wants` (see `algorithms.traits.Traits`), and what they hold.

    Fails where there is none of it: no strict preference at all, no comparison, no label, no grade; and where labels
    are all good or all bad. Warns where more than 90 % of labels are of one class, and where the preferred answer is
    the longer one of more than 80 % of the pairs of unequal length, or of fewer than 20 %: length then tells them
    apart.
    """
    unequal = stats.longer + stats.shorter
    share = stats.longer / unequal if unequal else 0.0
    labels = stats.good + stats.bad
    parts = [f"{stats.groups:,} prompts"]
    if wants in ("pairs", "comparisons"):
        parts += [f"{stats.pairs:,} pairs", f"{stats.ties:,} ties"]
        if stats.pairs:
            parts.append(f"preferred is longer in {stats.longer / stats.pairs:.0%}, shorter in "
                         f"{stats.shorter / stats.pairs:.0%}")  # fmt: skip
    if wants == "labels":
        parts += [f"{stats.good:,} good", f"{stats.bad:,} bad"]
    if wants == "grades":
        parts.append(f"{stats.graded:,} graded")
    parts += [f"{n:,} dropped: {reason}" for reason, n in sorted(stats.dropped.items()) if n]
    value = "; ".join(parts)
    found = {"pairs": stats.pairs, "comparisons": stats.pairs + stats.ties, "labels": labels, "grades": stats.graded}
    words = {"pairs": "strict preferences", "comparisons": "preferences or ties", "labels": "labels, good and bad"}
    limit = f"some {words.get(wants, 'grades')}"
    if not found[wants]:
        return Check(
            "preferences", value, limit, "fail",
            "Nothing here says which answer is better: look at the reasons above and at ranks, scores or labels with "
            "`espalier inspect`; a min_gap that is too large drops every comparison.",
        )  # fmt: skip
    if wants == "labels" and not (stats.good and stats.bad):
        kind, other = ("bad", "good") if stats.good else ("good", "bad")
        return Check(
            "preferences", value, limit, "fail",
            f"There is no {kind} answer at all: add some; {other} ones alone say nothing of what to tell apart. "
            "(--skip-checks preferences trains on them all the same.)",
        )  # fmt: skip
    way_out = ""
    if wants == "labels" and max(stats.good, stats.bad) > ONE_CLASS * labels:
        way_out = (
            f"{max(stats.good, stats.bad) / labels:.0%} of the labels are of one class: weigh the other one up, so "
            "that weight times count is about the same on both sides."
        )
    elif wants in ("pairs", "comparisons") and unequal >= 20 and not LONGER[0] <= share <= LONGER[1]:
        way = "longer" if share > 0.5 else "shorter"
        way_out = (
            f"The preferred answer is the {way} one of most pairs, so length alone tells them apart: see what the "
            "model learns on pairs where it is not."
        )
    return Check("preferences", value, limit, "warn" if way_out else "pass", way_out)
