"""Points of the over-optimisation curve, by hand and by enumeration of all subsets."""

import itertools
import json
import math
from pathlib import Path
from random import Random
from typing import Any

import pytest

from espalier.errors import EspalierError
from espalier.workbench.overopt_points import divergence, of_best, of_run, powers, records, regraded, scored, ties


def line(step: int, row: int, score: float, kl: float | None, length: int = 2) -> dict[str, Any]:
    task = {"row": row, "source": "s", "line": row}
    return {"step": step, "k": 0, "task": task, "score": score, "error": "", "kl": kl, "length": length}


def test_answers_of_some_steps_make_a_point(tmp_path: Path) -> None:
    """KL of an answer is its mean a token times its tokens: 0.5 x 2 and 0.25 x 4 are 1 nat each, the third is 4."""
    lines = [
        line(1, 0, 1.0, 0.5),
        line(2, 0, 3.0, 0.25, 4),
        line(2, 7, 5.0, 2.0),
        line(3, 1, 9.0, 0),
        {**line(3, 2, 0.0, 1.0), "error": "late"},
        line(3, 2, 0.0, None),
        line(3, 2, 0.0, 1.0),
    ]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    # The last answer could not be graded by gold.
    answers = list(scored(records(path), [0.0, 1.0, 0.5, 9.0, 0.0, 0.0, None]))
    assert [answer is None for _, answer in answers] == [False] * 4 + [True, False, True]
    first, second = of_run(answers, 2)
    assert (first.at, first.prompts, first.counts) == (2, (("s", 0), ("s", 7)), (2.0, 1.0))
    assert [first.mean(name) for name in ("proxy", "gold", "kl")] == [3.0, 0.5, 2.0]
    assert first.d == math.sqrt(2)
    assert (second.at, second.mean("gold"), second.d) == (4, 9.0, 0.0)


def test_gold_is_read_from_the_same_answers() -> None:
    lines = [line(1, 0, 1.0, 0.5), line(1, 1, 2.0, 0.5)]
    graded = [{**lines[0], "score": 0.25}, {**lines[1], "score": None}]
    assert list(regraded(lines, graded)) == [0.25, None]
    for other in (graded[:1], [*graded, graded[0]], [graded[1], graded[0]]):
        with pytest.raises(EspalierError, match="are not those of the run; remove the folder `gold`"):
            list(regraded(lines, other))


def test_best_of_n_is_the_mean_over_all_subsets() -> None:
    rng = Random(0)
    groups = {("s", p): [(float(rng.randrange(4)), rng.random()) for _ in range(6)] for p in range(3)}
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
    groups = {("s", 0): [(1.0, 1.0), (2.0, 0.0)], ("s", 1): [(1.0, 1.0)]}
    assert [point.prompts for point in of_best(groups, [1, 2])] == [(("s", 0),)] * 2
    with pytest.raises(EspalierError, match="no prompt has 4 answers of the start that were graded"):
        of_best(groups, [1, 2, 4])


def test_best_of_two_by_hand() -> None:
    """Proxies 3, 2, 2 with golds 0, 1, 5: the pairs are won by 3, 3 and one of the equal ones: gold (0 + 0 + 3) / 3."""
    one, two = of_best({("s", 0): [(3.0, 0.0), (2.0, 1.0), (2.0, 5.0)]}, [1, 2])
    assert (one.mean("proxy"), one.mean("gold")) == pytest.approx((7 / 3, 2.0))
    assert (two.mean("proxy"), two.mean("gold")) == pytest.approx((8 / 3, 1.0))


def test_the_bound_is_exact_without_ties() -> None:
    """Best of 2 of a uniform choice among many: density 2 F, so KL = 2 integral of x log 2x... = log 2 - 1/2."""
    count = 20_000
    p = [((k + 1) ** 2 - k**2) / count**2 for k in range(count)]
    assert sum(x * math.log(x * count) for x in p) == pytest.approx(divergence(2), abs=1e-4)


def test_powers_and_ties() -> None:
    assert powers(1) == [1] and powers(64) == [1, 2, 4, 8, 16, 32, 64]
    assert ties([[1.0, 2.0], [3.0, 3.0]]) == 0.5 and ties([]) == 0.0
    assert ties([[(1, 2), (1, 2), (1,), (1,)]]) == 2 / 6
