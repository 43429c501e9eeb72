"""Which answers a reward model is calibrated on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from espalier.types import Sample
from espalier.workbench.from_groups import by_grades, chosen
from samples import sample
from scoring import Place, lists


def graded(*grades: tuple[float, ...]) -> list[Sample]:
    group = [sample([5], [6 + i]) for i in range(len(grades))]
    for s, grade in zip(group, grades, strict=True):
        s.grades = [grade] if grade else []
    return group


def test_the_chosen_beat_a_sibling_and_none_beats_them() -> None:
    group = graded((), (), (), ())
    group[0].beats, group[1].beats = [1, 2], [2]
    assert chosen(group) == {0}
    group[3].beats = [2]
    assert chosen(group) == {0, 3}


def test_the_chosen_of_graded_answers_have_the_highest_total() -> None:
    """7, 3, 7, unknown; weighed 3/4 and -1/4 (8, 2) is 5.5 and (7, 0) is 5.25."""
    assert chosen(graded((7.0,), (3.0,), (7.0,), ()), [1.0]) == {0, 2}
    assert chosen(graded((7.0,), (math.nan,)), [1.0]) == chosen(graded((5.0,), (5.0,)), [1.0]) == set()
    assert chosen(graded((8.0, 2.0), (7.0, 0.0)), [0.75, -0.25]) == {0}
    assert chosen(graded((8.0, 6.0), (7.0, 0.0)), [0.75, -0.25]) == {1}
    assert chosen(graded((0.0,), (-1.0,)), [1.0]) == {0}


def test_pairs_that_are_made_of_grades_are_known() -> None:
    """(8, 2) and (7, 0) weighed 3 and -1 are 22/4 and 21/4; ranks 0 and -1 are no grades."""
    group = graded((8.0, 2.0), (7.0, 0.0))
    for labels, weights, expected in (
        ((5.5, 5.25), [3.0, -1.0], True), ((5.0, 3.5), [1.0, 1.0], True), ((5.0, 3.5), [3.0, -1.0], False),
        ((0.0, -1.0), [1.0, 1.0], False),
    ):  # fmt: skip
        group[0].label, group[1].label = labels
        assert by_grades(group, weights) == expected
    group[1].grades = []
    assert not by_grades(group, [1.0, 1.0])


@pytest.mark.parametrize("k", [3, 1])
def test_a_pointwise_model_is_calibrated_at_defaults(tmp_path: Path, capsys: Any, k: int) -> None:
    place = Place(tmp_path)
    rows = lists(12, 1, k=3)
    data = place.data("lists", [{**r, "responses": r["responses"][:k], "scores": r["scores"][:k]} for r in rows])
    place.run("reward", "run", "--data", data, "--objective", "pointwise", "--steps", "1")
    said = " ".join(capsys.readouterr().out.split())
    best = sum(row["scores"].count(max(row["scores"])) for row in rows)
    assert (f"calibrated on {best} answers (chosen)" in said) == (k == 3)
    assert ("not calibrated" in said and "use --calibrate-on all" in said) == (k == 1)
