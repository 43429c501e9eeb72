"""A resumed run stands where its checkpoint stood, or is stopped."""

from __future__ import annotations

from typing import Any

import pytest

from desk import Desk
from espalier.checks.resume import resumed
from espalier.engines.optimizer import Optimizer
from espalier.engines.reference import StartReference
from espalier.loop.metrics import MetricsFile


def test_what_does_not_fit_is_named() -> None:
    assert resumed(5, {"a": 5, "b": 5}, 5, []) == [] and resumed(5, {}, 3, []) == []
    assert "made 4 updates of b after 5 steps" in resumed(5, {"a": 5, "b": 4}, 5, [])[0]
    assert "metrics go to step 7" in resumed(5, {"a": 5}, 7, [])[0]
    assert resumed(5, {"a": 5}, 5, ["lm_head"]) == ["lm_head of the reference is not that of the checkpoint"]


@pytest.mark.parametrize(
    ("owner", "method", "said"),
    [
        (Optimizer, "load", "has made 0 updates"), (MetricsFile, "truncate_to", "the metrics go to step 4"),
        (StartReference, "load", "of the reference is not that of the checkpoint"),
    ],
)  # fmt: skip
def test_what_is_not_restored_stops_the_run(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, said: str
) -> None:
    flags = ("--steps", 4, "--sync-every", 1, "--samples-per-step", 4, "--keep", 0, "--save-every", 2)
    desk.run("dpo", *flags)
    again = ("--resume", "--resume-from", "step-000002")
    with monkeypatch.context() as patched:
        patched.setattr(owner, method, lambda self, *arguments: None)
        desk.run("dpo", *flags, *again, code=2)
    assert said in desk.err + desk.out and "resume:" in desk.err + desk.out
