"""Which reward models a config names, what they are called, and which are refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from desk import saved
from espalier.assembly.reward_choice import choices_of, names_of
from espalier.config.rollout_sections import RewardsConfig
from espalier.errors import ConfigError
from espalier.rewards.build import plan
from scored import reward_model


def chosen(*models: str, dimensions: tuple[str, ...] = ()) -> Any:
    rewards = RewardsConfig(reward_model=models, reward_dimensions=dimensions)
    config: Any = SimpleNamespace(rewards=rewards, model=SimpleNamespace(trust_remote_code=False))
    return choices_of(config)


def test_names_are_those_of_folders_and_runs_made_unique(tmp_path: Path) -> None:
    (tmp_path / "rules.py").write_text("def polite(response, **task):\n    return 1.0\n")
    paths = (
        *("runs/helpful", "runs/helpful/model", "other/helpful=2", "org/polite", "x/math", "y/std", "/model"),
        *("deep/model", "model/"),
    )
    config = RewardsConfig(reward=(f"{tmp_path / 'rules.py'}:polite",), reward_model=paths)
    names = names_of(config, plan(config))
    assert list(names.values())[:6] == ["helpful", "helpful-2", "helpful-3", "polite-2", "math-2", "std-2"]
    assert list(names.values())[6:8] == ["model", "deep"]
    assert "other/helpful" in names


def test_a_run_stands_for_its_model(tmp_path: Path) -> None:
    inside = reward_model(tmp_path / "helpful" / "model")
    (one,) = chosen(str(tmp_path / "helpful"))
    (two,) = chosen(f"{inside}=0.5")
    assert (one.name, one.weight, one.folder, one.dimensions) == ("helpful", 1.0, Path(inside), {"0": 1.0})
    assert (two.name, two.weight, two.folder) == ("helpful", 0.5, Path(inside))
    assert one.pins() == {"helpful weight": 1.0} and one.line() == "helpful" and two.line() == "helpful x 0.5"


def test_dimensions_need_weights(tmp_path: Path) -> None:
    path = reward_model(tmp_path / "two", (0.5, 1.0), names=("kind", "brief"))
    with pytest.raises(
        ConfigError, match=r"has the dimensions kind, brief, .* give --reward-dimensions .* kind=1"
    ) as e:
        chosen(path)
    assert e.value.key == "reward_model" and "\n" not in str(e.value)
    (one,) = chosen(path, dimensions=("brief=-0.5",))
    assert one.dimensions == {"kind": 0.0, "brief": -0.5}
    assert one.pins() == {"two weight": 1.0, "two.kind weight": 0.0, "two.brief weight": -0.5}
    assert one.line() == "two (kind x 0, brief x -0.5)"
    with pytest.raises(ConfigError, match=r"'kindd'; they are kind, brief\. Did you mean kind\?"):
        chosen(path, dimensions=("kind=1", "kindd=1"))
    plain = reward_model(tmp_path / "one")
    with pytest.raises(ConfigError, match=r"no reward model has several dimensions .* 'kind'; they are none"):
        chosen(plain, dimensions=("kind=1",))


def test_what_is_no_reward_model_is_refused_by_name(tmp_path: Path) -> None:
    steps = reward_model(tmp_path / "steps", kind="steps")
    rows = (
        (saved(tmp_path / "causal"), "LlamaForCausalLM without a scalar head; expected a reward model"),
        (steps, "is a process reward model, which scores the steps of a solution; expected a reward model"),
        (str(tmp_path / "nowhere"), "does not exist"),
    )
    for path, message in rows:
        with pytest.raises(ConfigError, match=message) as caught:
            chosen(path)
        assert caught.value.key == "reward_model" and path in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"reward_model": ("a=x",)}, "reward_model: got 'a=x', expected a once"),
        ({"reward_model": ("a", "a=2")}, "reward_model: got 'a=2', expected a once"),
        ({"reward_model": ("a",), "reward_dimensions": ("b",)}, "reward_dimensions: got 'b'"),
        ({"reward_dimensions": ("b=1",)}, "reward_dimensions is given, but no reward_model has dimensions"),
    ],
)
def test_what_the_config_refuses(more: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RewardsConfig(**more)
