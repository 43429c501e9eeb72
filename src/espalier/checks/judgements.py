"""Checks of judgements: whether the data offer what an algorithm learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from espalier.checks.table import Outcome, failed, passed, warned
from espalier.types import Sample, Wants

if TYPE_CHECKING:
    from espalier.assembly.session import Session
    from espalier.checks.evidence import Evidence

COUNTED_ROWS = 2000  # of a source, evenly spread
ONE_CLASS = 0.9  # beyond this share of good or of bad answers one side is hardly trained
LONGER = (0.2, 0.8)  # outside it length alone tells most pairs apart
ENOUGH_PAIRS = 20  # with fewer pairs of unequal length, the share of longer ones says nothing
WORDS: dict[Wants, str] = {
    "pairs": "strict preferences",
    "comparisons": "preferences or ties",
    "labels": "labels, good and bad",
    "grades": "grades",
}


def check_preferences(evidence: Evidence) -> Outcome:
    """The judgements of the training data: of rows evenly spread over each source, or, if these fail, of all."""
    session = evidence.session
    wants, rows = session.traits.wants, sum(map(len, session.opened.main))
    stats = _count(session, COUNTED_ROWS)
    outcome = preferences(stats, wants)
    if outcome.verdict == "fail" and stats.groups < rows:  # what is rare may be in the others
        stats = _count(session, rows)
        outcome = preferences(stats, wants)
    if stats.groups == rows:
        return outcome
    return replace(outcome, value=f"of {rows:,} rows {outcome.value}")


def _count(session: Session, most: int) -> PreferenceStats:
    """The judgements of at most `most` rows of each source (a few more if it does not divide evenly)."""
    stats = PreferenceStats()
    for store in session.opened.main:
        for reason, count in store.stats.dropped.items():
            stats.dropped[reason] = stats.dropped.get(reason, 0) + count
        for i in range(0, len(store), max(1, len(store) // most)):
            stats.add(store.group(i))
    return stats


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
            for place in s.beats:
                if length > lengths[place]:
                    self.longer += 1
                elif length < lengths[place]:
                    self.shorter += 1
            if any(math.isfinite(x) for grade in s.grades for x in grade):
                self.graded += 1
        if any(s.beats for s in group):
            return
        for s in group:
            if s.label == 1:
                self.good += 1
            elif s.label == 0:
                self.bad += 1

    def of(self, wants: Wants) -> int:
        """How many there are of what an algorithm wants."""
        if wants == "pairs":
            return self.pairs
        if wants == "comparisons":
            return self.pairs + self.ties
        return self.good + self.bad if wants == "labels" else self.graded

    def shown(self, wants: Wants) -> str:
        """The counts in a line."""
        parts = [f"{self.groups:,} prompts"]
        if wants in ("pairs", "comparisons"):
            parts += [f"{self.pairs:,} pairs", f"{self.ties:,} ties"]
            if self.pairs:
                longer, shorter = self.longer / self.pairs, self.shorter / self.pairs
                parts.append(f"preferred is longer in {longer:.0%}, shorter in {shorter:.0%}")
        elif wants == "labels":
            parts += [f"{self.good:,} good", f"{self.bad:,} bad"]
        else:
            parts.append(f"{self.graded:,} graded")
        parts += [f"{count:,} dropped: {reason}" for reason, count in sorted(self.dropped.items()) if count]
        return "; ".join(parts)


def preferences(stats: PreferenceStats, wants: Wants = "pairs") -> Outcome:
    """Whether the data hold what the algorithm `wants` (see `types.Wants`), and what they hold.

    Fails if there is none of it: no strict preference at all, no comparison, no label, no grade; and if labels are all
    good or all bad. Warns if more than 90 % of labels are of one class, and if the preferred answer is the longer one
    of more than 80 % of the pairs of unequal length, or of fewer than 20 %: length then tells them apart.
    """
    value, limit = stats.shown(wants), f"some {WORDS[wants]}"
    if not stats.of(wants):
        return failed(
            value,
            limit,
            "Nothing here says which answer is better: look at the reasons above and at ranks, scores or labels with "
            "`espalier inspect`; a min_gap that is too large drops every comparison.",
        )
    if wants == "labels":
        return _labels(stats, value, limit)
    if wants == "grades":
        return passed(value, limit)
    return _lengths(stats, value, limit)


def _labels(stats: PreferenceStats, value: str, limit: str) -> Outcome:
    """Both classes of labels are there, and neither is rare."""
    if not stats.good or not stats.bad:
        present, absent = ("good", "bad") if stats.good else ("bad", "good")
        return failed(
            value,
            limit,
            f"All labels are {present}. Add {absent} answers: with one class there is nothing to distinguish. "
            "(--skip-checks preferences trains on them all the same.)",
        )
    share = max(stats.good, stats.bad) / (stats.good + stats.bad)
    if share > ONE_CLASS:
        return warned(
            value,
            limit,
            f"{share:.0%} of the labels are of one class: raise the weight of the other, so that weight times count is "
            "about the same on both sides.",
        )
    return passed(value, limit)


def _lengths(stats: PreferenceStats, value: str, limit: str) -> Outcome:
    """Preferred answers are not nearly always the longer ones, or the shorter ones."""
    unequal = stats.longer + stats.shorter
    share = stats.longer / unequal if unequal else 0.0
    low, high = LONGER
    if unequal < ENOUGH_PAIRS or low <= share <= high:
        return passed(value, limit)
    kind = "longer" if share > 0.5 else "shorter"
    return warned(
        value,
        limit,
        f"The preferred answer is the {kind} one of most pairs, so length alone tells them apart: see what the model "
        "learns on pairs where it is not.",
    )
