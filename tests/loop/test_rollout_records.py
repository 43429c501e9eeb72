"""Lines of samples.jsonl, by hand."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from espalier.outcomes import Graded, Outcome
from rollouts import FakeGraders, FakeSampler, FakeTasks, exact, source


def test_a_line_says_what_was_drawn_graded_and_learned() -> None:
    sampler = FakeSampler(lambda request, k: ([7, 14], "stop" if k else "length"))
    built = source(FakeTasks(1), sampler, FakeGraders(lambda key, s: exact(float(key[2]), right=1.0)))
    (group,) = built.draw(0).groups
    for s in group:
        s.streams["advantages"] = [0.0, 0.5, 0.5]
        s.streams["entropy"] = [9.0, 1.0, 2.0]
        s.streams["old_logprobs"] = [0.0, -1.0, -2.0]
        s.streams["ref_logprobs"] = [0.0, -1.0, -2.0 + math.log(2)]
    group[1].streams["advantages"] = [0.0, 1.0, 2.0]
    first, second = built.records(0)
    assert first == {
        "step": 1,
        "task": {"row": 0, "source": "t", "line": 1},
        "epoch": 0,
        "k": 0,
        "prompt": "100",
        "response": "7 14",
        "ids": [7, 14],
        "score": 0.0,
        "parts": {"right": 1.0},
        "invalid": "",
        "error": "",
        "fate": "keep",
        "stop": "length",
        "length": 2,
        "advantage": 0.5,
        "logprob": -1.5,
        "entropy": 1.5,
        # k3 is 0 at the first token and 2 - 1 - ln 2 at the second.
        "kl": pytest.approx((1 - math.log(2)) / 2),
    }
    assert (second["k"], second["score"], second["stop"]) == (1, 1.0, "stop")
    # 14 is the stop token here; where the response was cut, it is text.
    assert (second["response"], second["ids"]) == ("7", [7, 14])
    assert (second["advantage"], second["advantages"]) == (1.5, [1.0, 2.0])


def test_what_no_stream_says_is_null() -> None:
    outcome = Outcome(-1.0, {"right": Graded(0.0)}, invalid="no answer tag")
    built = source(FakeTasks(1), FakeSampler(lambda r, k: ([7], "stop")), FakeGraders(lambda key, s: outcome))
    built.draw(0)
    line = built.records(0)[0]
    assert [line[name] for name in ("score", "invalid", "advantage", "logprob", "entropy", "kl")] == [
        -1.0,
        "no answer tag",
        None,
        -1.0,
        None,
        None,
    ]


def test_records_are_of_the_last_draw() -> None:
    built = source(FakeTasks(1), FakeSampler(lambda r, k: ([7], "stop")), FakeGraders(lambda key, s: exact(0.0)))
    built.draw(1)
    with pytest.raises(ValueError, match="got records of step 0, but the last draw was step 1"):
        built.records(0)


def fields(heading: str) -> set[str]:
    """The names in the first column of the table below a heading of docs/rollouts.md."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "rollouts.md").read_text(encoding="utf-8")
    table = text.split(f"\n## {heading}\n")[1].split("\n|---")[1].split("\n\n")[0]
    return {name for line in table.splitlines()[1:] for name in re.findall(r"`(\w+)`", line.split("|")[1])}


def test_the_document_names_every_field() -> None:
    outcome = Outcome(1.0, {"right": Graded(1.0)})
    built = source(FakeTasks(1), FakeSampler(lambda r, k: ([7], "stop")), FakeGraders(lambda key, s: outcome))
    numbers = built.draw(0).numbers
    assert {*built.records(0)[0]} == fields("samples.jsonl")
    documented = {name.replace("NAME", "right") for name in fields("metrics.jsonl")}
    assert numbers.keys() <= documented
    assert documented - numbers.keys() == {
        *("entropy", "kl", "ratio", "ratio_max", "clip_low", "clip_high", "clamped", "updates", "trained"),
        *("seconds_draw", "seconds_annotate", "seconds_update", "resident_bytes"),
        *("seconds_reward_model", "reward_cut"),
    }
