"""What stands on samples before the loss: whose numbers, on which samples, in which forward. No model runs here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from espalier.algorithms.bco import BCO
from espalier.algorithms.dpo import DPO
from espalier.algorithms.grpo import GRPO
from espalier.algorithms.kto import KTO
from espalier.algorithms.online import Online
from espalier.algorithms.sft import SFT
from espalier.algorithms.simpo import SimPO
from espalier.algorithms.traits import Algorithm, Traits
from espalier.assembly.runs import RUNS, RunConfig
from espalier.config.sections import DataConfig, LoopConfig, ModelConfig, ReferenceConfig
from espalier.engines.protocols import Group, Quantity, Roles, SampleOutputs
from espalier.errors import ConfigError
from espalier.loop.annotate import annotate
from espalier.types import Sample
from samples import Groups, sample


def said(s: Sample, scale: float) -> list[float]:
    """A number that only this sample's token gets: scale x token where it is scored."""
    return [scale * token if t and s.mask[t] else 0.0 for t, token in enumerate(s.tokens)]


@dataclass
class Model:
    """Learner and reference at once: says `scale` x token, and remembers which forests it was asked about."""

    scale: float
    asked: list[list[Group]] = field(default_factory=list)

    def logprobs(self, groups: Sequence[Group]) -> list[list[float]]:
        self.asked.append([list(g) for g in groups])
        return [said(s, self.scale) for g in groups for s in g]

    def say(self, groups: Sequence[Group], what: Sequence[Quantity]) -> list[SampleOutputs]:
        assert list(what) == ["logprobs"]
        return [SampleOutputs(logprobs=x) for x in self.logprobs(groups)]


def roles(policy: Any, reference: Any) -> Roles:
    return Roles(policy, reference=reference)


@dataclass(frozen=True)
class Toy(Algorithm):
    """One mate for each group: its prompt with the next group's answer."""

    needs: tuple[Any, ...] = ("ref_logprobs",)

    @property
    def traits(self) -> Traits:
        return Traits("ranking", needs=self.needs, mates=True)

    def mates(self, groups: Sequence[Group]) -> list[Group]:
        return [
            [sample(g[0].tokens[:2], groups[(i + 1) % len(groups)][0].tokens[2:], group=g[0].group, part="mates")]
            for i, g in enumerate(groups)
        ]

    def credit(self, groups: Sequence[Group], state: dict[str, float]) -> dict[str, float]:
        state["seen"] = state.get("seen", 0) + len(groups)
        for s in (s for g in groups for s in g if s.part == "mates"):
            state["kl"] = state.get("kl", 0.0) + sum(s.streams["old_logprobs"]) - sum(s.streams["ref_logprobs"])
        return state


def two() -> Groups:
    return [
        [sample([1, 2], [3, 4], group=0), sample([1, 2], [5], group=0)],
        [sample([6, 7], [8], group=1)],
    ]


def test_streams_are_the_reference_s_one_entry_a_token() -> None:
    groups, policy, reference = two(), Model(-1.0), Model(-2.0)
    state = {"kept": 1.5}
    assert annotate(groups, DPO(), roles(policy, reference), state) == state  # type: ignore[arg-type]
    streams = [s.streams for g in groups for s in g]
    assert streams == [{"ref_logprobs": x} for x in ([0, 0, -6, -8], [0, 0, -10], [0, 0, -16])]
    assert policy.asked == [] and len(reference.asked) == 1


def test_old_logprobs_are_the_policy_s() -> None:
    groups, policy, reference = two(), Model(-1.0), Model(-2.0)
    for s in (s for g in groups for s in g):
        s.label = 1.0
    annotate(groups, BCO(), roles(policy, reference), {})  # type: ignore[arg-type]
    assert groups[0][0].streams == {"ref_logprobs": [0, 0, -6, -8], "old_logprobs": [0, 0, -3, -4]}


def test_mates_go_through_the_reference_beside_their_prompt_and_get_the_policy_s_numbers() -> None:
    groups, policy, reference = two(), Model(-1.0), Model(-2.0)
    before = {"seen": 5.0}
    state = annotate(groups, Toy(), roles(policy, reference), before)  # type: ignore[arg-type]
    first, second = reference.asked[0]
    assert [s.tokens for s in first] == [[1, 2, 3, 4], [1, 2, 5], [1, 2, 8]]
    assert [s.tokens for s in second] == [[6, 7, 8], [6, 7, 3, 4]]
    assert [[s.tokens for s in g] for g in policy.asked[0]] == [[[1, 2, 8]], [[6, 7, 3, 4]]]
    # mates: old -8 and -7, reference -16 and -14
    assert state == {"seen": 5 + 4, "kl": (-8 - 7) - (-16 - 14)}
    assert before == {"seen": 5.0} and all(type(x) is float for x in state.values())
    assert [len(g) for g in groups] == [2, 1], "mates are in no loss"
    assert all(set(s.streams) == {"ref_logprobs"} for g in groups for s in g)


def test_where_old_logprobs_are_needed_mates_share_that_forward_too() -> None:
    groups, policy, reference = two(), Model(-1.0), Model(-2.0)
    annotate(groups, Toy(("ref_logprobs", "old_logprobs")), roles(policy, reference), {})  # type: ignore[arg-type]
    assert [len(g) for g in policy.asked[0]] == [3, 2]
    assert all(set(s.streams) == {"ref_logprobs", "old_logprobs"} for g in groups for s in g)


def test_mates_whose_group_is_not_clear_stand_alone() -> None:
    groups, reference = two(), Model(-2.0)
    for s in (s for g in groups for s in g):
        s.group = 7
    annotate(groups, Toy(), roles(Model(-1.0), reference), {})  # type: ignore[arg-type]
    assert [len(g) for g in reference.asked[0]] == [2, 1, 1, 1]


def test_kto_gets_its_reference_point() -> None:
    """z is the mean over mates of log pi - log ref: they answer with 8 and with 3 4, and it is + token there."""
    groups = two()
    groups[0].pop()
    for (s,), label in zip(groups, (1.0, 0.0), strict=True):
        s.label = label
    assert annotate(groups, KTO(), roles(Model(-1.0), Model(-2.0)), {}) == {"kl": (8 + 3 + 4) / 2}  # type: ignore[arg-type]


def test_replay_is_held_against_nothing() -> None:
    groups, policy, reference = two(), Model(-1.0), Model(-2.0)
    replay = sample([9], [10, 11], part="replay", group=2)
    annotate([*groups, [replay]], DPO(), roles(policy, reference), {})  # type: ignore[arg-type]
    assert replay.streams == {} and all(s.part != "replay" for g in reference.asked[0] for s in g)
    annotate([[replay]], DPO(), roles(policy, reference), {})  # type: ignore[arg-type]
    assert len(reference.asked) == 1, "a step of replay alone asks nobody"


def test_who_needs_nothing_costs_nothing() -> None:
    groups, policy = two(), Model(-1.0)
    for algorithm in (SFT(), SimPO()):
        assert annotate(groups, algorithm, roles(policy, None), {}) == {}  # type: ignore[arg-type]
    assert policy.asked == [] and all(s.streams == {} for g in groups for s in g)


def test_a_missing_reference_is_said() -> None:
    with pytest.raises(ValueError, match="needs ref_logprobs, and there is no reference"):
        annotate(two(), DPO(), roles(Model(-1.0), None), {})  # type: ignore[arg-type]


def run_of(reference: ReferenceConfig, algorithm: Any) -> RunConfig:
    run = RUNS[type(algorithm).__name__.lower()]
    sections = {"model": ModelConfig(model="m"), "data": DataConfig(data=("d",)), "loop": LoopConfig(out="o")}
    return run(**sections, algorithm=algorithm, reference=reference)  # type: ignore[arg-type, call-arg]


@pytest.mark.parametrize(
    ("config", "algorithm", "message"),
    [
        (ReferenceConfig(reference="precomputed"), DPO(sync_every=4), "moves every 4 steps.*set reference: memory"),
        (ReferenceConfig(reference="precomputed"), KTO(), "kto builds samples.*set reference: memory"),
        (ReferenceConfig(reference_model="m"), DPO(sync_every=4), "drop reference_model"),
        (ReferenceConfig(reference_model="m"), SimPO(), "uses no reference; drop reference_model"),
        (ReferenceConfig(reference="precomputed"), SimPO(), "uses no reference; drop reference"),
    ],
)
def test_references_that_cannot_be(config: ReferenceConfig, algorithm: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_of(config, algorithm)


@pytest.mark.parametrize(
    ("config", "algorithm"),
    [
        (ReferenceConfig(), DPO(sync_every=4)),
        (ReferenceConfig(), SimPO()),
        (ReferenceConfig(), KTO()),
        (ReferenceConfig(reference_model="m"), KTO()),
        (ReferenceConfig(reference="precomputed", reference_model="m"), DPO()),
    ],
)
def test_references_that_can_be(config: ReferenceConfig, algorithm: Any) -> None:
    run_of(config, algorithm)


# ---------------------------------------------------------------------------------------------------------- rollouts


@dataclass
class Speaker(Model):
    """Says entropies and values, too: twice and three times what it says of log-probabilities."""

    def say(self, groups: Sequence[Group], what: Sequence[Quantity]) -> list[SampleOutputs]:
        self.whats.append(tuple(what))
        factor = {"logprobs": 1.0, "entropy": 2.0, "values": 3.0}
        return [SampleOutputs(**{name: said(s, self.scale * factor[name]) for name in what}) for g in groups for s in g]

    whats: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Rolled(Algorithm):
    needs: tuple[Any, ...] = ("old_logprobs",)
    old: Any = "learner"

    @property
    def traits(self) -> Traits:
        return Traits("task", needs=self.needs, online=Online(old=self.old))

    def credit(self, groups: Sequence[Group], state: dict[str, float]) -> dict[str, float]:
        return {"groups": float(len(groups))}


def test_old_logprobs_of_rollouts_come_with_the_entropy_and_silent_groups_get_none() -> None:
    (groups, silent), policy = (two()[:1], two()[1:]), Speaker(-1.0)
    assert annotate(groups, Rolled(), roles(policy, None), {}, silent=silent) == {"groups": 2}
    assert policy.whats == [("logprobs", "entropy")]
    assert groups[0][0].streams == {"old_logprobs": [0, 0, -3, -4], "entropy": [0, 0, -6, -8]}
    assert silent[0][0].streams == {}


def test_the_sampler_s_logprobs_are_about_the_whole_distribution() -> None:
    """It drew 3 from half of it and 4 from all: log 1/2 is added where it filtered."""
    (group,), policy = two()[:1], Speaker(-1.0)
    group.pop()
    group[0].streams |= {"logprobs": [0, 0, -1.0, -2.0], "mass": [0.0, 0.0, 0.5, 1.0]}
    annotate([group], Rolled(old="sampler"), roles(policy, None), {})
    assert group[0].streams["old_logprobs"] == pytest.approx([0, 0, -1.0 + math.log(0.5), -2.0])
    del group[0].streams["mass"]
    annotate([group], Rolled(old="sampler"), roles(policy, None), {})
    assert group[0].streams["old_logprobs"] == [0, 0, -1.0, -2.0] and policy.whats == []
    del group[0].streams["logprobs"]
    with pytest.raises(ValueError, match="old is the sampler, and a sample has no stream logprobs"):
        annotate([group], Rolled(old="sampler"), roles(policy, None), {})


def test_a_step_of_one_update_asks_nobody() -> None:
    groups, policy = two(), Speaker(-1.0)
    annotate(groups, Rolled(needs=()), roles(policy, None), {})
    assert policy.whats == [] and all(s.streams == {} for g in groups for s in g)


def test_values_are_the_critic_s() -> None:
    groups, critic = two(), Speaker(-1.0)
    who: Any = Roles(Speaker(-2.0), critic)  # type: ignore[arg-type]
    annotate(groups, Rolled(needs=("values",)), who, {})
    assert groups[1][0].streams == {"values": [0, 0, -24]} and critic.whats == [("values",)]
    with pytest.raises(ValueError, match="needs values, and there is no critic"):
        annotate(groups, Rolled(needs=("values",)), roles(critic, None), {})


def test_given_texts_are_compared_with_nothing() -> None:
    """They have no log-probabilities of a sampler, and no loss reads others of them."""
    policy, reference = Model(1.0), Model(2.0)
    answers = [sample([5], [6, 7], reward=float(k), group=0, key=k) for k in range(2)]
    for s in answers:
        s.streams["logprobs"] = [0.0, -1.0, -2.0]
    text = sample([], [8, 9, 8], part="ptx", group=1)
    annotate([answers, [text]], GRPO(beta=0.1, old="sampler"), roles(policy, reference), {})
    assert text.streams == {}
    assert [s.streams["old_logprobs"] for s in answers] == [[0.0, -1.0, -2.0]] * 2
    assert policy.asked == [] and reference.asked == [[answers]]
