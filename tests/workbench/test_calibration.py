"""Calibration and ties of a reward model, against numbers counted by hand."""

from __future__ import annotations

import math
import random

import pytest

from espalier.workbench import calibration, records
from espalier.workbench.records import HeldOutGroup, JudgedResponse


def test_calibration_by_hand() -> None:
    found = calibration.calibration([math.log(4)] * 3 + [-math.log(4)])
    assert found is not None
    assert found["ece"] == pytest.approx(0.05) and found["brier"] == pytest.approx(0.19)
    assert found["log_loss"] == pytest.approx((3 * math.log(1.25) + math.log(5)) / 4)
    full = [b for b in found["bins"] if b["n"]]
    assert [(b["n"], round(b["confidence"], 9), b["accuracy"]) for b in full] == [(4, 0.8, 0.75)]
    assert found["ece_floor"] == pytest.approx(math.sqrt(2 / math.pi * 4 * 0.16) / 4)


def test_a_model_that_says_nothing_is_calibrated() -> None:
    found = calibration.calibration([0.0] * 6)
    assert found is not None and found["ece"] == 0 and found["brier"] == 0.25
    assert found["log_loss"] == pytest.approx(math.log(2))


def test_a_model_that_is_sure_and_wrong_is_not() -> None:
    found = calibration.calibration([-20.0] * 5)
    assert found is not None and found["ece"] == pytest.approx(1) and found["brier"] == pytest.approx(1)


def test_folding_equals_both_orders_with_half_the_weight() -> None:
    """ECE over 20 bins of [0, 1] of the set that holds every pair both ways."""
    random_ = random.Random(5)
    gaps = [random_.gauss(0.7, 1.5) for _ in range(500)]
    both = [(1 / (1 + math.exp(-d)), 1.0) for d in gaps] + [(1 / (1 + math.exp(d)), 0.0) for d in gaps]
    ece = 0.0
    for b in range(20):
        here = [(p, y) for p, y in both if int(p * 20) == b]
        ece += abs(sum(y - p for p, y in here)) / len(both)
    found = calibration.calibration(gaps)
    assert found is not None and found["ece"] == pytest.approx(ece)
    assert found["brier"] == pytest.approx(sum((p - y) ** 2 for p, y in both) / len(both))


def test_a_calibrated_model_shows_about_the_floor() -> None:
    random_ = random.Random(1)
    gaps = [random_.gauss(0, 2) for _ in range(4000)]
    seen = [abs(d) if random_.random() < 1 / (1 + math.exp(-abs(d))) else -abs(d) for d in gaps]
    found = calibration.calibration(seen)
    assert found is not None and 0.3 * found["ece_floor"] < found["ece"] < 2 * found["ece_floor"] < 0.04


def test_ties_by_hand() -> None:
    found = calibration.at_ties([0.1, -2.0], [1.0, -3.0])
    assert found == {"n": 2, "accuracy": 0.5, "gap": 1.05, "gap_strict": 2.0, "told_apart": 0.75}
    assert calibration.at_ties([], [1.0]) is None


def test_equal_labels_are_ties_unless_a_pair_says_otherwise() -> None:
    answers = [JudgedResponse(0.0, label=x) for x in (1, 1, 1, 0)]
    record = HeldOutGroup("a", 1, answers, pairs=[(2, 0)], ties=[(3, 1)])
    assert list(records.tied_places(record)) == [(0, 1), (1, 2), (1, 3)]
