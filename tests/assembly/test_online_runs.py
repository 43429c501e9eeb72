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


def test_single_answers_are_the_default_where_no_group_is_compared() -> None:
    sizes = {name: config(name).rollout.group_size for name in ONLINE}
    assert {name for name, size in sizes.items() if size == 1} == {"ppo", "reinforce", "reinforce-pp"}
    assert set(sizes.values()) == {1, 8}
    assert config("reinforce").rollout.prompts_per_step == config("grpo").rollout.prompts_per_step == 32


def test_a_step_has_as_many_answers_as_its_baseline_compares() -> None:
    with pytest.raises(ConfigError, match="got 1 with group_size 1, but reinforce-pp as set compares the answers"):
        config("reinforce-pp", prompts_per_step="1")
    assert config("reinforce", prompts_per_step="1", group_size="2").rollout.group_size == 2
    assert config("reinforce", prompts_per_step="1", baseline="moving").rollout.prompts_per_step == 1
    assert config("reinforce", prompts_per_step="0").rollout.prompts_per_step == 0


def test_answers_to_held_out_tasks_need_held_out_tasks() -> None:
    with pytest.raises(ConfigError, match="eval_samples is given, but nothing is held out"):
        config("grpo", eval_samples="2")
    assert config("grpo", eval_samples="2", eval_fraction="0.1").rollout.eval_samples == 2
    assert config("grpo", eval_samples="2", eval_data=["e"]).rollout.eval_samples == 2
