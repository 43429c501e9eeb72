"""Agreement of scores with grades, against numbers counted by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from espalier.workbench import agreement
from espalier.workbench.records import HeldOutGroup, JudgedResponse
from held_out import HOW


def test_rank_correlations_by_hand() -> None:
    assert agreement.average_ranks([10, 30, 10]).tolist() == [1.5, 3, 1.5]
    assert agreement.spearman([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert agreement.kendall([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    assert agreement.kendall([1, 2, 3], [1, 1, 2]) == pytest.approx(2 / math.sqrt(6))
    assert agreement.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert agreement.spearman([1, 2], [4, 4]) is None and agreement.kendall([1, 2], [4, 4]) is None


def test_agreement_within_prompts_across_them_and_among_people() -> None:
    """Scores order answers rightly within each prompt, and the prompts wrongly."""
    nan = math.nan
    rows = [
        HeldOutGroup("a", 1, [JudgedResponse(11, (1, 8), label=1, grades=(2, 1)), JudgedResponse(10, (0, 9), label=0,
               grades=(1, 2))], pairs=[(0, 1)]),
        HeldOutGroup("a", 1, [JudgedResponse(1, (6, 7), label=1, grades=(9, nan)), JudgedResponse(0, (5, 6), label=0,
               grades=(8, nan))], pairs=[(0, 1)]),
    ]  # fmt: skip
    found = agreement.agreement(rows, [0, 1], HOW)
    assert found["labels"]["spearman"]["value"] == 1 and found["labels"]["kendall"]["n"] == 2
    first, second = found["grades"]
    assert first["kendall"]["value"] == 1 and first["across"] == pytest.approx(1) and first["n"] == 4
    assert second["kendall"]["value"] == 1 and second["n"] == 2
    assert found["pairs_and_grades"] == {"agree": 0, "same": 1, "against": 0, "by_grades": 0}
    weighed = agreement.agreement(rows, [0, 1], HOW, {"brief": 1.0, "kind": -1.0})
    assert weighed["pairs_and_grades"]["agree"] == 1, "2 - 1 above 1 - 2"
    assert [x["name"] for x in weighed["grades"]] == ["brief", "kind"]
    made = agreement.agreement([replace(r, by_grades=True) for r in rows], [0, 1], HOW)
    assert made["pairs_and_grades"] == {"agree": 0, "same": 0, "against": 0, "by_grades": 1}
    totals = [replace(r, responses=[replace(x, scores=()) for x in r.responses]) for r in rows]
    assert agreement.agreement(totals, [0, 1], HOW)["grades"][0]["across"] == pytest.approx(-0.6)
