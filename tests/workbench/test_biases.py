"""Biases of length and format, against numbers counted by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from espalier.workbench import biases
from espalier.workbench.records import HeldOutGroup, JudgedResponse
from held_out import HOW


def test_slope_of_length_by_hand() -> None:
    """Demeaned by prompt: equal lengths add nothing, and a prompt's level is no slope."""
    one = HeldOutGroup("a", 1, [JudgedResponse(0, length=100), JudgedResponse(1, length=300)])
    other = HeldOutGroup("a", 1, [JudgedResponse(5, length=200), JudgedResponse(9, length=200)])
    far = HeldOutGroup("a", 1, [JudgedResponse(100, length=1000), JudgedResponse(101, length=1200)])
    assert biases.length_bias([one, other], [0, 1], HOW)["slope"]["value"] == pytest.approx(0.5)
    found = biases.length_bias([one, other, far], [0, 1, 2], HOW)["slope"]
    assert found["value"] == pytest.approx(0.5) and found["n"] == 4
    assert (found["low"], found["high"]) == (pytest.approx(0.5), pytest.approx(0.5))


def test_accuracy_where_the_longer_loses() -> None:
    """A model that likes length is right where the longer wins and wrong where it loses."""
    answers = [JudgedResponse(1, length=10), JudgedResponse(2, length=20), JudgedResponse(0, length=10)]
    found = biases.length_bias([HeldOutGroup("a", 1, answers, pairs=[(0, 1), (1, 2), (0, 2)])], [0], HOW)
    assert [found[k]["value"] for k in ("longer_loses", "longer_wins", "equal_length")] == [0, 1, 1]
    assert found["preferred_longer"]["people"]["value"] == 0.5
    assert found["preferred_longer"]["model"]["value"] == 1.0


def test_slope_between_equals_and_correlations() -> None:
    answers = [JudgedResponse(1, length=100, label=1), JudgedResponse(3, length=200, label=1),
               JudgedResponse(0, length=300, label=0)]  # fmt: skip
    found = biases.length_bias([HeldOutGroup("a", 1, answers)], [0], HOW)
    assert found["slope_at_ties"]["value"] == pytest.approx(2.0) and found["slope_at_ties"]["n"] == 1
    assert found["label_correlation"] == pytest.approx(-math.sqrt(3) / 2)
    assert found["correlation"] == pytest.approx(-100 / math.sqrt(20000 * (14 / 3)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Buy\n- milk\n- bread", True), ("1. one\n2. two", True), ("1) a\n2) b", True), ("1、一\n2、二", True),
        ("## Title\ntext", True), ("so **bold** it is", True), ("|a|b|\n|-|-|\n|1|2|", True),
        ("- only one", False), ("2 * 3 ** 2 - 1\n3.5 and 4", False), ("plain - and 1. so", False), ("", False),
        ("#hash\nno", False),
    ],
)  # fmt: skip
def test_what_counts_as_formatted(text: str, expected: bool) -> None:
    assert biases.formatted(text) is expected


def test_format_bias_by_hand() -> None:
    """People prefer plain text twice; the model prefers the list once; between equals the list gets 2 more."""
    plain, listed = JudgedResponse(1, text="so"), JudgedResponse(0, text="- a\n- b")
    rows = [
        HeldOutGroup("a", 1, [plain, listed], pairs=[(0, 1)]),
        HeldOutGroup("a", 1, [plain, replace(listed, score=4)], pairs=[(0, 1)]),
        HeldOutGroup("a", 1, [plain, replace(listed, score=3)], ties=[(0, 1)]),
        HeldOutGroup("a", 1, [plain, plain], pairs=[(0, 1)]),
    ]
    found = biases.format_bias(rows, [0, 1, 2, 3], HOW)
    assert [found[k]["value"] for k in ("people", "model", "excess", "gap_at_ties")] == [0, 0.5, 0.5, 2]
    assert found["people"]["n"] == 2 and found["formatted"] == 3 / 8
