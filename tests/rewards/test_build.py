"""From a config to rewards: names, weights, gates, settings, what is refused, and what a resumed run must share."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from espalier.config.rollout_sections import RewardsConfig
from espalier.errors import ConfigError
from espalier.rewards.build import Plan, plan


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text("def brief(prompt, response): return 1.0\ndef exact(prompt, response): return 1.0\n")
    return path


def of(*rewards: str, verifiers: tuple[str, ...] = (), **fields: Any) -> Plan:
    return plan(RewardsConfig(reward=rewards, **fields), verifiers=verifiers)


def test_rewards_have_the_names_weights_and_order_of_the_config(file: Path) -> None:
    rewards = of("tags", f"{file}:brief=0.5", "exact=2", f"{file}:exact=-1", gate=("tags",))
    parts = [(c.name, c.weight, c.best, c.gate) for c in (entry.component for entry in rewards.entries)]
    assert parts == [
        ("tags", 1.0, 1.0, True),
        ("brief", 0.5, None, False),
        ("exact", 2.0, 1.0, False),
        ("mine.exact", -1.0, None, False),
    ]
    assert [(spec.name, spec.function) for spec in rewards.specs] == [
        ("tags", ""),
        ("brief", "brief"),
        ("exact", ""),
        ("mine.exact", "exact"),
    ]


def test_verifiers_that_tasks_name_are_added_and_said() -> None:
    rewards = of("exact", verifiers=("numeric", "exact", "numeric", "mine"), reward_args=("numeric.tolerance=0.5",))
    assert [entry.name for entry in rewards.entries] == ["exact", "numeric"] and rewards.added == ("numeric",)
    assert rewards.entries[1].settings["tolerance"] == 0.5
    assert rewards.lines({})[1].startswith("numeric, added because tasks name it: ")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"reward": ("exat",)},
            "reward: got 'exat', expected one of exact, .*, or PATH.py:FUNCTION. Did you mean exact?",
        ),
        ({"reward": ("nothing.py:f",)}, "reward: nothing.py does not exist; expected PATH.py:FUNCTION"),
        ({"reward": ("exact=much",)}, "reward: got 'exact=much'"),
        ({"reward": ("exact", "exact=2")}, "reward: got 'exact=2', expected exact once"),
        ({"reward": ("exact",), "gate": ("tags",)}, "gate: tags is not among the rewards"),
        ({"reward": ("exact", "tags"), "gate": ("tags",)}, "gate: tags is the last reward, and gates those behind it"),
        ({"reward": ("exact",), "reward_args": ("exact.strct=true",)}, "exact has no setting strct"),
        ({"reward": ("exact",), "reward_args": ("exakt.strict=true",)}, "exakt is not among .* Did you mean exact?"),
        ({"reward": ("exact",), "reward_args": ("strict=true",)}, "got 'strict=true', expected NAME.KEY=VALUE"),
        (
            {"reward": ("length",), "reward_args": ("length.target=1", "length.target=2")},
            "length.target is given twice",
        ),
        ({}, "reward: nothing grades; give one of exact, "),
    ],
)
def test_what_does_not_exist_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(RewardsConfig(**fields))


def test_two_functions_of_one_name_have_their_files_names_and_the_same_one_twice_is_refused(
    file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.py"
    other.write_text("def brief(prompt, response): return 0.0\n")
    rewards = of(f"{file}:brief", f"{other}:brief", reward_args=(f"{other}:brief.completions=text",))
    assert [entry.name for entry in rewards.entries] == ["mine.brief", "other.brief"]
    assert rewards.entries[1].settings == {"completions": "text"}
    folder = tmp_path / "again"
    folder.mkdir()
    (folder / "mine.py").write_text("def brief(prompt, response): return 0.0\n")
    with pytest.raises(ConfigError, match=r"two rewards are called mine\.brief"):
        of(f"{file}:brief", f"{folder / 'mine.py'}:brief")


def test_pins_hold_all_that_decides_an_outcome(file: Path) -> None:
    rewards = of("length=0.5", f"{file}:brief", gate=("length",), reward_args=("length.target=80",), invalid_score=-1.0)
    pins = rewards.pins()
    length = pins["rewards"].pop("length")
    assert length["weight"] == 0.5 and length["gate"] is True and length["settings"]["target"] == 80
    assert pins == {
        "rewards": {
            "brief": {
                "weight": 1.0,
                "settings": {"completions": ""},
                "function": "brief",
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
        },
        "invalid_score": -1.0,
        "timeout": 10.0,
    }


def test_the_start_says_what_grades_and_under_which_limits(file: Path) -> None:
    rewards = of("exact=2", f"{file}:brief", reward_workers=3, reward_timeout=2.5)
    lines = rewards.lines({"brief": "one call for each answer"})
    assert lines[0].startswith("exact x 2: ") and lines[1] == "brief: one call for each answer"
    assert lines[2].startswith("graded in up to 3 processes of their own, 2.5 s for an answer, ")


def test_a_gate_may_be_for_verifiers_that_tasks_name() -> None:
    assert of("tags", gate=("tags",), verifiers=("exact",)).added == ("exact",)


def test_reward_models_alone_need_no_rule_and_start_no_worker() -> None:
    rewards = of(reward_model=("runs/helpful",))
    assert rewards.entries == () and rewards.scored and rewards.lines({}) == []
    graders = rewards.start(lambda ids: "")
    assert not graders.pool._thread.is_alive() and graders.best is None
    graders.close()
    with pytest.raises(ConfigError, match=r"nothing grades; give one of .*, or a --reward-model"):
        of()


def test_a_gate_may_stand_before_reward_models_alone() -> None:
    assert of("tags", gate=("tags",), reward_model=("m",)).entries[0].component.gate
