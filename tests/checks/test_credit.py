"""Rewards, credit and loss of made-up answers are what arithmetic gives, and faults in them are named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from espalier.algorithms.dapo import DAPO
from espalier.algorithms.dr_grpo import DrGRPO
from espalier.algorithms.grpo import GRPO
from espalier.algorithms.gspo import GSPO
from espalier.algorithms.onpolicy import OnPolicy
from espalier.algorithms.raft import RAFT
from espalier.algorithms.reinforce import Reinforce
from espalier.algorithms.reinforce_pp import ReinforcePP
from espalier.algorithms.rloo import RLOO
from espalier.checks import credit
from espalier.checks.invented import policy_logprobs
from espalier.credit import returns, rollouts
from espalier.engines.protocols import SamplingParams
from espalier.losses import policy
from espalier.types import Sample, Term
from rollouts import FakeRank, OneRank, on_ranks, prompt


def groups() -> list[list[Sample]]:
    """Two prompts, answers of 4, 2, 5 and 3 tokens; the reward is a quarter of the tokens before the last."""
    made = []
    for number in range(2):
        group = []
        for k, words in enumerate(credit.WORDS):
            s = Sample(group=number, key=4 * number + k, stop="stop", reward=words / 4)
            s.append([100 + number, 7], trained=False)
            s.append([9] * words + [2], trained=True, logprobs=[-1.0] * (words + 1))
            s.streams["logprobs"] = policy_logprobs(s)
            group.append(s)
        made.append(group)
    return made


ALGORITHMS: dict[str, Any] = {
    "grpo": GRPO(),
    "grpo, several updates": GRPO(beta=0.1, kl="k1", rollout_epochs=2),
    "grpo, sequence": GRPO(beta=2.0, kl_gradient="sequence", entropy_coef=0.1),
    "grpo, KL in the reward": GRPO(beta=0.1, kl_in="reward", old="sampler"),
    "grpo, batch": GRPO(scale="batch"),
    "grpo, winners": GRPO(advantage="winners"),
    "grpo, each": GRPO(reward_norm="each"),
    "grpo, naive": GRPO(beta=0.1, kl="k2", kl_gradient="naive"),
    "grpo, signs": GRPO(advantage="sign"),
    "dr-grpo": DrGRPO(beta=0.1),
    "rloo": RLOO(beta=0.1),
    "dapo": DAPO(),
    "gspo": GSPO(beta=0.1),
    "gspo, products": GSPO(length_normalised=False, token_form=True),
    "reinforce": Reinforce(),
    "reinforce, none": Reinforce(baseline="none", beta=5.0),
    "reinforce, moving": Reinforce(baseline="moving", beta=5.0, kl_per="answer"),
    "reinforce, KL in the loss": Reinforce(beta=0.1, kl_in="loss", rollout_epochs=2),
    "reinforce-pp": ReinforcePP(beta=5.0, old="sampler"),
    "reinforce-pp, group": ReinforcePP(beta=0.1, baseline="group", minibatches=2),
    "reinforce-pp, KL in the loss": ReinforcePP(beta=0.1, kl_in="loss", entropy_coef=0.1),
    "raft": RAFT(),
    "raft, top": RAFT(select="top", top_share=0.5),
    "raft, batch": RAFT(select="batch", top_share=0.5),
    "raft, nothing leads": RAFT(select="batch", margin=0.5),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_healthy_algorithms_pass(name: str) -> None:
    algorithm, made = ALGORITHMS[name], groups()
    assert list(credit.faults(algorithm, made)) == []
    assert len(credit.expected(algorithm, made) or ()) == 28


def test_gradients_of_grpo_by_hand() -> None:
    """Rewards 0.75, 0.25, 1, 0.5 have mean 0.625 and std 0.3227; the best answer's 5 tokens are two of 8 x 5."""
    made = groups()
    algorithm = GRPO()
    algorithm.credit(made, {})
    gradient, of_kl = credit.gradients(algorithm, made, {})
    assert of_kl == [] and len(gradient) == 28
    assert gradient[6:11] == pytest.approx([-(1 - 0.625) / (0.322749 + 1e-4) / 40] * 5, rel=1e-4)


def swapped(monkeypatch: pytest.MonkeyPatch, made: list[list[Sample]]) -> None:
    made[1][0].reward, made[1][1].reward = made[1][1].reward, made[1][0].reward


def rotated(monkeypatch: pytest.MonkeyPatch, made: list[list[Sample]]) -> None:
    fill = rollouts.fill
    monkeypatch.setattr(rollouts, "fill", lambda g, x, **more: fill(g, [[*of[1:], of[0]] for of in x], **more))


def flipped(monkeypatch: pytest.MonkeyPatch, made: list[list[Sample]]) -> None:
    clipped = policy.clipped
    monkeypatch.setattr(policy, "clipped", lambda *arguments: -clipped(*arguments))


def over_tokens(monkeypatch: pytest.MonkeyPatch, made: list[list[Sample]]) -> None:
    means = policy.means
    monkeypatch.setattr(policy, "means", lambda batch, dtype: means(batch, dtype) / 2)


def old_of_others(monkeypatch: pytest.MonkeyPatch, made: list[list[Sample]]) -> None:
    monkeypatch.setattr(policy, "old_of", lambda outputs, batch: batch.streams["old_logprobs"].roll(1))


def away(monkeypatch: pytest.MonkeyPatch, made: list[list[Sample]]) -> None:
    beside = GRPO.beside

    def negative(self: GRPO, *arguments: Any) -> dict[str, Term]:
        terms = beside(self, *arguments)
        return {**terms, "kl_loss": replace(terms["kl_loss"], coef=-self.beta)}

    monkeypatch.setattr(GRPO, "beside", negative)


def added(monkeypatch: pytest.MonkeyPatch, made: list[list[Sample]]) -> None:
    def scores(self: GRPO, groups: Any) -> list[list[float]]:
        return [[s.reward + self.beta * credit.RATIO for s in group] for group in groups]

    monkeypatch.setattr(GRPO, "scores", scores)


def of_what_came_before(monkeypatch: pytest.MonkeyPatch, made: list[list[Sample]]) -> None:
    monkeypatch.setattr(returns, "to_go", lambda rewards: [sum(rewards[: t + 1]) for t in range(len(rewards))])


def without_a_baseline(monkeypatch: pytest.MonkeyPatch, made: list[list[Sample]]) -> None:
    monkeypatch.setattr(returns, "shifted", lambda G, first: G)


Fault = Callable[[pytest.MonkeyPatch, list[list[Sample]]], None]
FAULTS: dict[str, tuple[Fault, OnPolicy, str]] = {
    "rewards of a sibling": (swapped, GRPO(), "an answer of 4 tokens has the reward 0.25, by hand 0.75"),
    "advantages of a sibling": (rotated, GRPO(), "rewards in rising order have the advantages"),
    "the policy's sign": (flipped, GRPO(), r"the gradient at scored token 0 is 0\.0121, by hand -0\.0121"),
    "a denominator": (over_tokens, GRPO(), r"the gradient at scored token 0 is -0\.006\d+, by hand -0\.0121"),
    "old ones of other rows": (old_of_others, GRPO(rollout_epochs=2), "the gradient at scored token"),
    "the KL's sign": (away, GRPO(beta=0.1), "the KL's gradient is -.* expected more than 0"),
    "the KL's sign in rewards": (
        added,
        GRPO(beta=0.1, kl_in="reward"),
        r"has the score 0\.78 beside the KL, by hand 0.72",
    ),
    # 0.75 less the mean of the others, 4.25 / 7.
    "what came before a token": (
        of_what_came_before,
        Reinforce(),
        r"an answer of reward 0\.75 has advantages -?[\d.]+ at token 0, by hand 0\.1429",
    ),
    "no baseline": (without_a_baseline, Reinforce(), r"has advantages 0\.75 at token 0, by hand 0\.1429"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    put_in, algorithm, message = FAULTS[name]
    made = groups()
    put_in(monkeypatch, made)
    lines: Iterator[str] = credit.faults(algorithm, made)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(next(lines))


def test_the_worst_that_is_kept_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "score", lambda s: -s.reward)
    assert next(credit.faults(RAFT(), groups())) == "of answers in rising order of reward, kept, left, left, left"


def session(world: Any, verifier: str = "") -> Any:
    params = SamplingParams(max_tokens=9, temperature=1.0, stop=(2,))
    posed = [prompt(row) for row in range(5)]
    posed = [replace(p, task=replace(p.task, verifier=verifier)) for p in posed]
    tasks = SimpleNamespace(prompts=lambda step: [(p, 0) for p in posed])
    return SimpleNamespace(rollouts=SimpleNamespace(params=params), tasks=tasks, processes=world)


def test_graders_and_ranks_bring_rewards_back_to_their_answers() -> None:
    assert [[s.reward for s in group] for group in credit.graded(session(OneRank()))] == [[0.75, 0.25, 1.0, 0.5]] * 2

    def part(world: FakeRank) -> list[list[float | None]]:
        return [[s.reward for s in group] for group in credit.graded(session(world))]

    assert on_ranks(2, part) == [[[0.75, 0.25, 1.0, 0.5]] * 2] * 2


def test_tasks_that_name_a_verifier_are_graded_by_the_checks_own_reward() -> None:
    graded = credit.graded(session(OneRank(), verifier="regex"))
    assert [[s.reward for s in group] for group in graded] == [[0.75, 0.25, 1.0, 0.5]] * 2
