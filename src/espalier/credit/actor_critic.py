"""From scored answers and a critic's values to the rewards, advantages and returns of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from espalier.credit import returns, rollouts, shaping, token_rewards
from espalier.credit.advantages import mean
from espalier.credit.kl_control import streak
from espalier.credit.whitening import whiten
from espalier.types import Sample

SHOWN = (
    *("beta", "kl_answer", "kl_token", "reward_shaped", "explained_variance", "value_mean", "return_mean"),
    "advantage_std",
)
"""The moving numbers that belong into metrics.jsonl."""
UNEXPLAINED = (
    "explained variance has been below 0 for 20 steps: the critic's values are further from the returns than the mean "
    "return is. Raise critic_lr, let the critic learn first (critic_warmup, critic_pretrain), or start it from the "
    "reward model"
)


class Settings(Protocol):
    """What `fill` reads of an algorithm; see `algorithms.ppo.PPO`."""

    @property
    def kl_place(self) -> Literal["loss", "reward", ""]: ...
    @property
    def kl_per(self) -> Literal["token", "answer", "mean"]: ...
    @property
    def score_at(self) -> Literal["last", "spread"]: ...
    @property
    def score_clip(self) -> float: ...
    @property
    def stop_penalty(self) -> float: ...
    @property
    def gamma(self) -> float: ...
    @property
    def lam(self) -> float: ...
    @property
    def returns(self) -> Literal["gae", "monte_carlo"]: ...
    @property
    def whiten_advantages(self) -> bool: ...
    @property
    def whiten_rewards(self) -> bool: ...


def rewards_of(s: Sample, settings: Settings, beta: float) -> list[float]:
    """What each trained token of an answer earns: its clipped score (or the penalty for not stopping), its steps, and
    the KL where `kl_per` puts it."""
    score = rollouts.score(s)
    if settings.stop_penalty:
        score = token_rewards.unless_stopped(score, s.stop, -settings.stop_penalty)
    score = token_rewards.clip_score(score, settings.score_clip)
    in_reward = beta if settings.kl_place == "reward" else 0.0
    if in_reward and settings.kl_per != "token":
        score = token_rewards.sequence_kl(score, shaping.log_ratios(s), in_reward, average=settings.kl_per == "mean")
        in_reward = 0.0
    return token_rewards.of_sample(s, score, in_reward, spread=settings.score_at == "spread")


def fill(settings: Settings, samples: Sequence[Sample], beta: float) -> dict[str, float]:
    """Write the streams `advantages` and `returns` of a step's answers, 0 at tokens that are no actions; returns
    numbers about all of them.

    reward_shaped: mean over answers of all that their tokens earn. value_mean, return_mean: over tokens.
    explained_variance: see `returns.explained_variance`; left out if all returns are equal. advantage_std: standard
        deviation of the advantages before they are whitened.

    Reads the stream `values`, and `bootstrap` if it is there. Raises ValueError for a sample without values.
    """
    rewards = [rewards_of(s, settings, beta) for s in samples]
    shaped = mean([sum(of_answer) for of_answer in rewards])
    if settings.whiten_rewards:
        rewards = whiten(rewards, keep_mean=True)
    values = [_at_actions(s, "values") for s in samples]
    advantages, targets = [], []
    for s, r, v in zip(samples, rewards, values, strict=True):
        A = returns.gae(r, v, settings.gamma, settings.lam, after=_after(s))
        advantages.append(A)
        monte_carlo = settings.returns == "monte_carlo"
        targets.append(returns.to_go(r, settings.gamma) if monte_carlo else returns.lambda_returns(A, v))
    spread = _deviation([x for A in advantages for x in A])
    if settings.whiten_advantages:
        advantages = whiten(advantages)
    for s, A, R in zip(samples, advantages, targets, strict=True):
        s.streams["advantages"] = token_rewards.stream(s, A)
        s.streams["returns"] = token_rewards.stream(s, R)
    all_values, all_returns = [x for v in values for x in v], [x for R in targets for x in R]
    numbers = {
        "reward_shaped": shaped,
        "value_mean": mean(all_values),
        "return_mean": mean(all_returns),
        "advantage_std": spread,
    }
    explained = returns.explained_variance(all_returns, all_values)
    return numbers if explained is None else {**numbers, "explained_variance": explained}


def moved(state: Mapping[str, float], numbers: Mapping[str, float]) -> dict[str, float]:
    """The numbers of `fill`, and `unexplained`: for how many steps in a row the explained variance was below 0."""
    below = numbers.get("explained_variance", 0.0) < 0
    return {**numbers, "unexplained": streak(state.get("unexplained", 0.0), below)}


def _at_actions(s: Sample, name: str) -> list[float]:
    if name not in s.streams:
        raise ValueError(f"group {s.group}, part {s.part!r}: has no {name}; fill them before credit is called")
    return [s.streams[name][t] for t in token_rewards.actions(s)]


def _after(s: Sample) -> float:
    """The critic's value behind the last token; 0 without the stream `bootstrap`."""
    return s.streams["bootstrap"][-1] if "bootstrap" in s.streams else 0.0


def _deviation(numbers: Sequence[float]) -> float:
    center = mean(numbers)
    return float(mean([(x - center) ** 2 for x in numbers]) ** 0.5)
