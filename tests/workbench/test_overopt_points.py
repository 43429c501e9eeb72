"""Points of the over-optimisation curve, by hand and by enumeration of all subsets."""

import itertools
import json
import math
from pathlib import Path
from random import Random
from typing import Any

import pytest

from espalier.workbench.overopt_points import divergence, of_best, of_run, powers, records, scored, ties


def line(step: int, row: int, score: float, gold: float, kl: float | None, length: int = 2) -> dict[str, Any]:
    parts = {"proxy": score, "gold": gold}
    task = {"row": row, "source": "s", "line": 1}
    return {"step": step, "task": task, "score": score, "parts": parts, "error": "", "kl": kl, "length": length}


def test_answers_of_some_steps_make_a_point(tmp_path: Path) -> None:
    """KL of an answer is its mean a token times its tokens: 0.5 x 2 and 0.25 x 4 are 1 nat each, the third is 4."""
    lines = [
        line(1, 0, 1.0, 0.0, 0.5),
        line(2, 0, 3.0, 1.0, 0.25, 4),
        line(2, 7, 5.0, 0.5, 2.0),
        line(3, 1, 9.0, 9.0, 0),
    ]
    lines.append({**line(3, 2, 0.0, 0.0, 1.0), "error": "late"})
    lines.append(line(3, 2, 0.0, 0.0, None))
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    first, second = of_run(scored(records(path), "gold"), 2)
    assert (first.at, first.prompts, first.counts) == (2, (0, 7), (2.0, 1.0))
    assert [first.mean(name) for name in ("proxy", "gold", "kl")] == [3.0, 0.5, 2.0]
    assert first.d == math.sqrt(2)
    assert (second.at, second.mean("gold"), second.d) == (4, 9.0, 0.0)


def test_an_answer_without_gold_is_named() -> None:
    with pytest.raises(ValueError, match="an answer of step 1 has no reward exact; its rewards are proxy, gold"):
        list(scored([line(1, 0, 1.0, 0.0, 0.5)], "exact"))


def test_best_of_n_is_the_mean_over_all_subsets() -> None:
    rng = Random(0)
    groups = {p: [(float(rng.randrange(4)), rng.random()) for _ in range(6)] for p in range(3)}
    for point in of_best(groups, [1, 2, 4]):
        for which, name in enumerate(("proxy", "gold")):
            by_prompt = []
            for answers in groups.values():
                chosen = []
                for subset in itertools.combinations(answers, point.at):
                    best = max(proxy for proxy, _ in subset)
                    tied = [answer[which] for answer in subset if answer[0] == best]
                    chosen.append(sum(tied) / len(tied))
                by_prompt.append(sum(chosen) / len(chosen))
            assert point.mean(name) == pytest.approx(sum(by_prompt) / 3)
        assert point.mean("kl") == pytest.approx(math.log(point.at) - (point.at - 1) / point.at)


def test_prompts_with_fewer_answers_are_left_out() -> None:
    groups = {0: [(1.0, 1.0), (2.0, 0.0)], 1: [(1.0, 1.0)]}
    assert [point.prompts for point in of_best(groups, [1, 2])] == [(0,), (0,)]


def test_the_bound_is_exact_without_ties() -> None:
    """Best of 2 of a uniform choice among many: density 2 F, so KL = 2 integral of x log 2x... = log 2 - 1/2."""
    count = 20_000
    p = [((k + 1) ** 2 - k**2) / count**2 for k in range(count)]
    assert sum(x * math.log(x * count) for x in p) == pytest.approx(divergence(2), abs=1e-4)


def test_powers_and_ties() -> None:
    assert powers(1) == [1] and powers(64) == [1, 2, 4, 8, 16, 32, 64]
    assert ties({0: [1.0, 2.0], 1: [3.0, 3.0]}) == 0.5 and ties({}) == 0.0
