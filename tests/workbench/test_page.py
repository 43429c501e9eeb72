"""What must not change a score, and how the workbench's numbers are shown."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from xml.etree import ElementTree

import pytest
from rich.console import Console

from espalier.errors import ModelError
from espalier.loop.progress import Progress
from espalier.workbench import bootstrap, page, process, reward, steps_page, tables
from espalier.workbench.charts import Series, chart
from espalier.workbench.records import HeldOutGroup, JudgedResponse
from espalier.workbench.sensitivity import sensitivity
from espalier.workbench.solutions import Solved

HOW = bootstrap.Resampling(seed=1, resamples=200)
GROUPS = [[3.0, 1.0], [2.0], [5.0, 4.0, 7.0]]
Said = list[list[tuple[float, ...]]]


def alone(groups: Sequence[list[float]]) -> Said:
    return [[(x,)] for group in groups for x in group]


def test_a_score_of_its_own_tokens_is_sensitive_to_nothing() -> None:
    found = sensitivity(alone, GROUPS)
    assert (found["order"], found["mates"], found["siblings"], found["ok"]) == (0, 0, 0, True)
    assert found["samples"] == 6 and found["spread"] == pytest.approx(math.sqrt(104 / 6 - (22 / 6) ** 2))


def test_a_score_that_sees_its_place_is_found() -> None:
    def placed(groups: Sequence[list[float]]) -> Said:
        return [[(x + place,)] for group in groups for place, x in enumerate(group)]

    found = sensitivity(placed, GROUPS)
    assert found["order"] == 2 and found["mates"] == 0 and found["siblings"] == 2 and not found["ok"]


def test_a_score_that_sees_its_batch_is_found() -> None:
    def crowded(groups: Sequence[list[float]]) -> Said:
        return [[(x, x + len(groups) / 8)] for group in groups for x in group]

    found = sensitivity(crowded, GROUPS)
    assert found["order"] == 0 and found["mates"] == 0.25 and found["siblings"] == 0.25 and not found["ok"]


def test_a_score_that_is_no_number_is_not_ok() -> None:
    found = sensitivity(lambda groups: [[(math.nan,)] for group in groups for _ in group], GROUPS)
    assert not found["ok"] and found["order"] == math.inf


# -------------------------------------------------------------------------------------------------------------- report


def judged(name: str = "a") -> list[HeldOutGroup]:
    rows = []
    for k in range(6):
        answers = [
            JudgedResponse(0.3 * k, (0.3 * k,), 10 + k, "- a\n- b" if k % 2 else "a", 1.0, (4.0,), True),
            JudgedResponse(0.5, (0.5,), 20, "so", 0.0, (2.0,), False),
            JudgedResponse(0.1, (0.1,), 15, "**so**", 0.0, (2.0,), False),
        ]
        rows.append(HeldOutGroup(name, 7, answers, [(0, 1), (0, 2)]))
    return rows


def test_the_report_is_json_and_shown_whole() -> None:
    report = reward.judge(judged(), HOW, sensitivity(alone, GROUPS))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["counts"] == {"groups": 6, "prompts": 6, "responses": 18, "pairs": 12, "ties": 6, "prompt_tokens": 42}
    assert report["accuracy"]["all"]["value"] == pytest.approx(9 / 12)
    console = Console(width=160)
    progress = Progress(0, console=console, rank=0)
    with console.capture() as capture:
        for section, rows in tables.by_section(tables.findings(report)).items():
            progress.table(section, ("what", "value"), rows)
    html = page.page(report)
    for shown in (capture.get(), unescape(html)):
        for _, what, value in tables.findings(report):
            if value != tables.NOTHING:
                assert what in shown and value in shown
        assert "75.0% [" in shown and "siblings in another order" in shown


def test_nothing_to_judge_is_no_error() -> None:
    report = reward.judge([HeldOutGroup("a", 3, [JudgedResponse(1.0)])], HOW)
    assert report["accuracy"]["all"]["value"] is None and report["calibration"] is None and report["best_of_n"] is None
    assert "<svg" not in page.page(report)
    assert page.page(reward.judge([], HOW)).startswith("<!doctype html>")


def test_the_page_loads_nothing_and_escapes_names() -> None:
    html = page.page(reward.judge(judged("<script>alert(1)</script>"), HOW), "A & B")
    assert "<script" not in html and "&lt;script&gt;" in html and "<title>A &amp; B</title>" in html
    assert not re.search(r"(?:src|href|url|import|http)\s*[=(:]", html)
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) == 3
    for drawing in drawings:
        ElementTree.fromstring(drawing)


def test_points_stand_where_they_belong() -> None:
    svg = chart([Series("s", [(0, 0), (1, 1), (0.5, 0.5)], "#000", sizes=[1, 1, 1])], (0, 1), (0, 1), ("x", "y"))
    circles = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert [(float(x), float(y)) for x, y in circles] == [(48, 240), (408, 12), (228, 126)]


def test_the_diagram_is_symmetric() -> None:
    svg = page.reliability(reward.judge(judged(), HOW))
    points = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', svg)
    xyr = [(float(x), float(y), r) for x, y, r in points]
    for (x, y, r), (u, v, q) in zip(xyr, reversed(xyr), strict=True):
        assert x + u == pytest.approx(456, abs=0.02) and y + v == pytest.approx(252, abs=0.02) and r == q


def test_bad_records_are_refused() -> None:
    with pytest.raises(ModelError, match="nan"):
        reward.judge([HeldOutGroup("a", 3, [JudgedResponse(math.nan)])])
    for pair in ((0, 0), (0, 1), (-1, 0)):
        with pytest.raises(ValueError, match="expected two of its 1 responses"):
            reward.judge([HeldOutGroup("a", 3, [JudgedResponse(1.0)], [pair])])


# ------------------------------------------------------------------------------------------------------ steps, grades


def solved() -> list[Solved]:
    """Six problems of two solutions, one right and one whose second step is bad."""
    found = []
    for k in range(6):
        found.append(Solved(f"p{k}", (2.0, 1.0 + k / 10), (1.0, 1.0), True))
        found.append(Solved(f"p{k}", (2.0, -1.0 + k / 4), (1.0, 0.0), False))
    return found


def test_the_page_of_steps_shows_every_figure_and_loads_nothing() -> None:
    report = process.process(solved(), HOW)
    alone = steps_page.page(report)
    assert alone.count("<svg") == 2, "without an outcome model there is nothing to choose beside"
    scores = [1.0, 0.0] * 6
    html = steps_page.page({**report, "against_outcome": process.against_outcome(solved(), scores, HOW)}, "A & B")
    assert "<script" not in html and "<title>A &amp; B</title>" in html and "12 solutions, 24 steps" in html
    assert not re.search(r"(?:src|href|url|import|http)\s*[=(:]", html)
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) == 3
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    for part in ("ProcessBench F1", "product, AUC", "min minus outcome, best of 2", "Brier score (0.25 = chance)"):
        assert part in html


def test_the_reliability_of_steps_stands_where_it_belongs() -> None:
    """One step at p = 1/2, bad: half across, at the bottom."""
    svg = steps_page.reliability(process.process([Solved("p", (0.0,), (0.0,))], HOW))
    assert re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg) == [("228.0", "240.0")]


def test_the_curves_of_steps_run_over_n() -> None:
    """Six problems of two solutions: n is 1 and 2, at the left and right edge, whatever the number of problems."""
    against = process.against_outcome(solved(), [1.0, 0.0] * 6, HOW)
    assert against is not None
    svg = steps_page.curve(against)
    assert {float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg)} == {48, 408}
    assert len(re.findall("<circle", svg)) == 2 * len(against["judges"])


def test_charts_name_both_axes_and_places() -> None:
    svg = page.lengths(reward.judge(judged(), HOW))
    for part in ("the preferred response is", ">accuracy<", ">shorter<", ">equal length<", ">longer<"):
        assert part in svg


def test_solutions_that_nobody_judged_have_a_page() -> None:
    assert "<svg" not in steps_page.page(process.process([Solved("p", (1.0,), (None,))], HOW))


def test_grades_are_called_by_their_dimension() -> None:
    rows = judged()
    for weights, name in (({"helpful": 1.0}, "grade helpful"), ({"": 1.0}, "grade"), (None, "grade")):
        found = [what for _, what, _ in tables.findings(reward.judge(rows, HOW, None, weights))]
        assert f"{name}, Spearman within prompts" in found
    made = reward.judge([replace(r, by_grades=True) for r in rows], HOW)
    values = {what: value for _, what, value in tables.findings(made)}
    assert values["people's pairs and people's grades"] == "12 pairs follow from the grades, so they always agree"
    assert all(isinstance(x["n"], int) for x in made["length"]["preferred_longer"].values())
