"""Options of runs that learn from their own answers: those that would change nothing are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.assembly.online_runs import unused
from espalier.assembly.runs import ONLINE, RUNS, RunConfig
from espalier.config.options import build
from espalier.errors import ConfigError


def config(command: str, **given: Any) -> RunConfig:
    return build(RUNS[command], {"model": "m", "data": ["d"], "out": "o", "reward": ["numeric"], **given})


def test_waves_are_for_algorithms_that_refill() -> None:
    assert [name for name, (_, algorithm) in ONLINE.items() if "max_waves" not in unused(algorithm)] == ["dapo"]
    assert config("dapo", max_waves="3").rollout.max_waves == 3
    with pytest.raises(ConfigError, match="max_waves is given, but `espalier grpo` has no use for it; drop it"):
        config("grpo", max_waves="3")


def test_answers_to_held_out_tasks_need_held_out_tasks() -> None:
    with pytest.raises(ConfigError, match="eval_samples is given, but nothing is held out"):
        config("grpo", eval_samples="2")
    assert config("grpo", eval_samples="2", eval_fraction="0.1").rollout.eval_samples == 2
    assert config("grpo", eval_samples="2", eval_data=["e"]).rollout.eval_samples == 2
