"""The first loss of chat runs and of runs over steps, and evaluations, on whole commands."""

from __future__ import annotations

import math
from typing import Any

import pytest

from desk import Desk
from espalier.checks.losses import evaluation

CHATS = [
    {"messages": [{"role": "user", "content": f"{i}+{i}?"}, {"role": "assistant", "content": f"{2 * i} or so"}]}
    for i in range(10)
]
STEPS = [{"question": f"{i}+1?", "steps": [f"add {i}", "one more", "done"], "mistake_index": i % 3} for i in range(12)]


def said(desk: Desk) -> str:
    return desk.err + desk.out


@pytest.mark.parametrize("flags", [(), ("--neftune-alpha", 5), ("--dtype", "bfloat16"), ("--lora-rank", 2)])
def test_a_chat_run_has_a_first_loss(desk: Desk, flags: tuple[Any, ...]) -> None:
    text = desk.rows("text", [{"text": f"{i} and {i} is {2 * i}"} for i in range(10)])
    desk.run(
        "check sft", "--replay", text, "--replay-fraction", 0.3, *flags, data=desk.rows("chats", CHATS)
    )  # fmt: skip
    assert "first_loss sft" in desk.out and "evaluation eval_loss" in desk.out


def test_weights_that_are_ignored_stop_a_chat_run(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from espalier.losses import tokens

    was = tokens.nll
    monkeypatch.setattr(tokens, "nll", lambda logprobs, weights: was(logprobs, (weights > 0).float()))
    desk.run("check sft", "--skip-checks", "accumulation", data=desk.rows("chats", CHATS), code=2)
    assert "first_loss: sft" in said(desk)


def test_replay_that_weighs_one_stops_a_chat_run(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from espalier.algorithms.sft import SFT
    from espalier.types import Term

    def heavy(self: Any, outputs: Any, batch: Any) -> Any:
        terms = was(self, outputs, batch)
        return {name: Term(term.x, term.over, term.part) for name, term in terms.items()}

    was = SFT.loss
    text = desk.rows("text", [{"text": f"{i} and {i} is {2 * i}"} for i in range(10)])
    flags = ("--replay", text, "--replay-fraction", 0.3)
    monkeypatch.setattr(SFT, "loss", heavy)
    desk.run("check sft", *flags, data=desk.rows("chats", CHATS), code=2)
    assert "first_loss: sft" in said(desk)


def test_an_evaluation_without_weights_stops_a_run(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from espalier.loop import evaluate

    def unweighted(learner: Any, batches: Any) -> dict[str, float]:
        for groups in batches:
            for group in groups:
                for s in group:
                    s.weights = [float(w > 0) for w in s.weights]
            return was(learner, iter([groups]))
        return {}

    was = evaluate.evaluate
    monkeypatch.setattr(evaluate, "evaluate", unweighted)
    desk.run("check sft", data=desk.rows("chats", CHATS), code=2)
    assert "evaluation:" in said(desk)


def test_a_run_over_steps_has_a_first_loss(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from espalier.losses import steps

    data = desk.rows("steps", STEPS)
    desk.run("check prm", data=data)
    assert "first_loss prm" in desk.out
    was = steps.cross_entropy
    monkeypatch.setattr(steps, "cross_entropy", lambda s, y, weight: was(s, 1 - y, weight))
    desk.run("check prm", data=data, code=2)
    assert "first_loss: prm" in said(desk)


def test_a_reference_that_shares_memory_stops_a_run(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from espalier.engines.reference import StartReference

    def live(self: Any, learner: Any, *, moves: bool = False) -> None:
        was(self, learner, moves=moves)
        self._copies = {name: parameter.detach() for name, parameter in self._live.items()}

    desk.run("check dpo", "--lora-rank", 2, name="lora")
    was = StartReference.__init__
    monkeypatch.setattr(StartReference, "__init__", live)
    desk.run("check dpo", code=2)
    assert "reference_stays:" in said(desk)


def test_means_of_batches_are_no_evaluation() -> None:
    expected = {"eval_loss": 0.6931, "eval_margin": 2.0}
    assert evaluation(expected, expected, 1e-4).verdict == "pass"
    assert evaluation({**expected, "eval_margin": 2.5}, expected, 1e-4).verdict == "fail"
    assert evaluation({**expected, "eval_loss": math.nan}, expected, 1e-4).verdict == "fail"
    assert evaluation({"eval_loss": 0.6931}, expected, 1e-4).verdict == "fail"


def test_a_reference_one_token_off_stops_a_run(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from espalier.engines.reference import StartReference

    def rolled(self: Any, groups: Any) -> list[list[float]]:
        return [stream[1:] + stream[:1] for stream in was(self, groups)]

    was = StartReference.logprobs
    monkeypatch.setattr(StartReference, "logprobs", rolled)
    desk.run("check dpo", "--skip-checks", "reference", code=2)
    assert "first_loss: dpo" in said(desk)
