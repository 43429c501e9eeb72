"""The check of judgements passes on what is right and fails on the fault it is there for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from espalier.checks import judgements
from espalier.checks.judgements import PreferenceStats
from espalier.types import Sample
from samples import sample


def counted(groups: Sequence[Sequence[Sample]], dropped: dict[str, int] | None = None) -> PreferenceStats:
    stats = PreferenceStats(dropped=dropped or {})
    for group in groups:
        stats.add(group)
    return stats


def judged(*, win: int = 3, lose: int = 2, tie: bool = False, label: float | None = None) -> list[Sample]:
    group = [sample([5], range(6, 6 + win)), sample([5], range(40, 40 + lose))]
    if label is not None:
        group = group[:1]
        group[0].label = label
    elif tie:
        group[0].ties = [1]
    else:
        group[0].beats = [1]
    return group


def test_preferences_are_counted() -> None:
    stats = counted([judged(), judged(win=1), judged(win=2), judged(tie=True)], {"gap below min_gap": 7})
    assert (stats.groups, stats.pairs, stats.ties, stats.longer, stats.shorter) == (4, 3, 1, 1, 1)
    check = judgements.preferences(stats)
    assert check.verdict == "pass"
    for part in ("3 pairs", "1 ties", "longer in 33%, shorter in 33%", "7 dropped: gap below min_gap"):
        assert part in check.value


def test_no_strict_preference_at_all_is_refused() -> None:
    stats = counted([judged(tie=True)])
    assert judgements.preferences(stats).verdict == "fail"
    assert judgements.preferences(stats, "comparisons").verdict == "pass"
    assert judgements.preferences(counted([]), "labels").verdict == "fail"
    assert judgements.preferences(stats, "grades").verdict == "fail"


def test_one_sided_data_are_warned_about() -> None:
    labels = [judged(label=1.0)] * 91 + [judged(label=0.0)] * 9
    check = judgements.preferences(counted(labels), "labels")
    assert check.verdict == "warn" and "91%" in check.way_out and "91 good; 9 bad" in check.value
    assert judgements.preferences(counted([*labels[1:], judged(label=0.0)]), "labels").verdict == "pass"
    for label, said in ((1.0, "All labels are good. Add bad"), (0.0, "All labels are bad. Add good")):
        check = judgements.preferences(counted([judged(label=label)] * 30), "labels")
        assert check.verdict == "fail" and said in check.way_out and "raise the weight" not in check.way_out
    longer = judgements.preferences(counted([judged()] * 20))
    assert longer.verdict == "warn" and "longer one" in longer.way_out
    assert judgements.preferences(counted([judged(win=1)] * 20)).way_out.count("shorter one") == 1
    assert judgements.preferences(counted([judged()] * 19)).verdict == "pass"


def test_grades_of_which_one_is_known_count() -> None:
    group = [sample([5], [6]), sample([5], [7])]
    group[0].reads, group[0].grades = [1], [(math.nan, 3.0)]
    group[1].reads, group[1].grades = [1], [(math.nan, math.nan)]
    assert counted([group]).graded == 1
