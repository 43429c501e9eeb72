"""The page of the over-optimisation curve."""

from espalier.workbench.bootstrap import Resampling
from espalier.workbench.overopt import Run, report
from espalier.workbench.overopt_page import page
from espalier.workbench.overopt_points import Point, Prompt

PROMPTS: tuple[Prompt, ...] = (("s", 0), ("s", 1))


def run(beta: float | None, proxy: str = "proxy-500") -> Run:
    """Gold is 2 d - d^2 / 2, the proxy d."""
    points = []
    for at in range(9):
        d = at / 2
        points.append(Point(at, PROMPTS, (d, d), (2 * d - d * d / 2,) * 2, (d * d,) * 2, (1.0, 1.0)))
    return Run(proxy, beta, 0, tuple(points), points[0], left_out=1200)


def test_a_page_has_a_chart_for_each_cell_and_every_figure() -> None:
    equal = {"proxy-500": {"scores": 0.25, "answers": 0.125}}
    result = report([run(None), run(0.0), run(0.05)], equal, Resampling(resamples=20))
    result["cells"][1]["highest_gold"]["checkpoint"] = "runs/<a>/checkpoints/step-000004"
    text = page(result)
    assert text.startswith("<!doctype html>") and text.count("<svg") == 3
    assert "2 at step 4 of seed 0, d 2.00, checkpoint runs/&lt;a&gt;/checkpoints/step-000004" in text
    assert "25.0% scores, 12.5% answers" in text and "a 2 +- " in text and "1,200" in text
    assert "one frontier with beta 0 within the interval" in text
    assert "http" not in text and "<script" not in text


def test_a_cell_without_a_fit_has_dots_alone() -> None:
    short = run(0.0)._replace(points=run(0.0).points[:2])
    text = page(report([short], {}, Resampling(resamples=20)))
    assert text.count("<svg") == 1 and "<polyline" not in text and "too few distances for a fit" in text
