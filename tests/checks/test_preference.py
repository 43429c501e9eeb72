"""The checks of preference runs on their own first step, one-sided labels and whole orders included."""

from __future__ import annotations

import math
from typing import Any

import pytest

from desk import Desk
from espalier.checks import losses, preference
from samples import sample

LN2 = math.log(2)


def labelled(good: int, bad: int) -> list[dict[str, Any]]:
    return [{"prompt": f"q{i}", "completion": f"a{i}", "label": i < good} for i in range(good + bad)]


@pytest.mark.parametrize(("command", "expected"), [("kto", 0.5), ("bco", LN2)])
@pytest.mark.parametrize(("good", "bad"), [(12, 0), (0, 12), (11, 1)])
def test_one_sided_labels_have_a_first_loss(desk: Desk, command: str, expected: float, good: int, bad: int) -> None:
    desk.run(
        f"check {command}", "--samples-per-step", 12, "--skip-checks", "preferences",
        data=desk.rows("labels", labelled(good, bad)),
    )  # fmt: skip
    assert f"{command} {expected:.6f}" in desk.out and "in the first step" not in desk.out


def test_labels_of_one_class_alone_are_refused(desk: Desk) -> None:
    desk.run("check kto", data=desk.rows("labels", labelled(30, 0)), code=2)
    assert "All labels are good. Add bad" in desk.err + desk.out
    desk.run("check kto", data=desk.rows("more", labelled(30, 1)), name="other")


def test_a_rare_class_is_looked_for_in_all_rows(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espalier.checks.judgements.COUNTED_ROWS", 4)
    rows = [{"prompt": f"q{i}", "completion": f"a{i}", "label": i != 7} for i in range(12)]
    desk.run("check kto", data=desk.rows("labels", rows))
    assert "11 good; 1 bad" in desk.out


def test_whole_orders_are_checked_by_their_length(desk: Desk) -> None:
    """Three prompts of 3 answers and three of 4: the mean of ln 3! and ln 4!; a pair of them costs ln 2."""
    rows = [
        {"prompt": f"q{i}", "responses": [f"a{i} {k}" for k in range(n)], "ranks": list(range(n))}
        for i, n in enumerate((3, 3, 3, 4, 4, 4))
    ]
    data = desk.rows("ranked", rows)
    flags = ("--samples-per-step", 21, "--steps", 1)
    run = desk.run("dpo", "--variant", "plackett_luce", *flags, data=data)
    order = (math.log(6) + math.log(24)) / 2
    check = run.checks["first_loss"]
    assert check["verdict"] == "pass" and check["value"] == f"dpo {order:.6f}"
    run = desk.run("dpo", "--variant", "plackett_luce=0.5", "sigmoid", "--sft-coef", 0.1, *flags, data=data, name="b")
    assert run.checks["first_loss"]["verdict"] == "pass"
    assert run.checks["first_loss"]["value"] == f"dpo {run.steps[0]['loss']:.6f}"


# ------------------------------------------------------------------------------------------- numbers against limits


@pytest.mark.parametrize(
    ("value", "dtype", "probe", "verdict", "limit"),
    [
        (0.0, "float32", 0.0, "pass", "1.0e-05"), (9e-6, "float32", 0.0, "pass", "1.0e-05"),
        (2e-5, "float32", 0.0, "fail", "1.0e-05"), (2e-5, "float32", 1.1e-5, "pass", "2.2e-05"),
        (0.01, "float32", 1.0, "fail", "2.0e-03"), (0.0, "bfloat16", 0.0, "pass", "0.0e+00"),
        (0.15, "bfloat16", 0.1, "pass", "2.0e-01"), (0.3, "bfloat16", 0.2, "fail", "2.5e-01"),
        (math.inf, "bfloat16", 0.1, "fail", "2.0e-01"), (math.nan, "float32", 0.0, "fail", "1.0e-05"),
    ],
)  # fmt: skip
def test_reference_limits(value: float, dtype: str, probe: float, verdict: str, limit: str) -> None:
    check = preference.reference_equals_policy(value, dtype, probe)
    assert check.verdict == verdict and f"<= {limit}" in check.limit and dtype in check.limit
    assert bool(check.way_out) == (verdict == "fail")


def test_the_probe_finds_what_packing_changes() -> None:
    groups = [[sample([5], [6, 7]), sample([5], [8])], [sample([5], [9])]]

    def crowded(some: Any) -> list[list[float]]:
        return [[-1.0 - 0.001 * len(some)] * len(s) for g in some for s in g]

    assert preference.rounding(crowded, groups) == pytest.approx(0.001)
    assert preference.rounding(lambda some: [[-1.0] * len(s) for g in some for s in g], groups) == 0
    assert preference.apart([[0.0, math.nan]], [[0.0, math.nan]]) == math.inf


def test_first_loss_limits() -> None:
    assert losses.first_loss(0.69315, LN2, 1e-4, "loss").verdict == "pass"
    assert losses.first_loss(0.6941, LN2, 1e-4, "loss").verdict == "fail"
    assert losses.first_loss(math.nan, LN2, 1e-4, "loss").verdict == "fail"
    assert losses.first_loss(-1e-3, 0.0, 1e-4, "margin").verdict == "fail"
    assert losses.first_loss(20.001, 20.0, 1e-4, "loss").verdict == "pass"
    assert losses.first_loss(3.0, None, 1e-4, "loss").verdict == "skipped"
