"""REINFORCE: the policy gradient with a baseline that is a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from espalier.algorithms import online_combinations
from espalier.algorithms.onpolicy import OnPolicy
from espalier.algorithms.traits import Traits
from espalier.config.fields import Share, section
from espalier.credit import advantages, returns, rollouts, shaping, token_rewards
from espalier.outcomes import Fate
from espalier.types import Batch, Outputs, Sample, Term


@section
class Reinforce(OnPolicy):
    """Makes each token likelier by what came after it, less a baseline in which its answer has no part:

        L = sum_t [ -min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t) + beta KL_t ]  /  tokens

        r_t = pi(y_t) / old(y_t)        A_t = G_t - b
        G_t = score - beta sum_{k >= t} log(old_k / ref_k)          (kl_per token)
        b   = 0, the mean of G_1 over the other answers of the step, or a moving mean of it over the steps before

    Williams (1992), Machine Learning 8; to one prompt as in Ahmadian et al., arXiv:2402.14740, section 2.2. In the
    first update of a step r is 1 and the gradient is that of -A_t log pi(y_t): of E[score] - beta KL(pi || ref), with
    any of the baselines, times answers / tokens. The clipped ratio matters in later updates.

    With process rewards G_t has the scores of the steps that end at or after t, too, as they are.

    tokens is the weight of all tokens of the minibatch, over all answers. The tokens of a cut answer without weight
    (mask_cut) leave it; the answer stays in the baseline. No group is silent: equal answers to a prompt still differ
    from those to others.
    """

    kl_in: Literal["loss", "reward"] = "reward"
    """The KL is a term of the loss, or is taken from the reward (k1)."""
    kl_per: Literal["token", "answer"] = "token"
    """The KL in the reward: each token loses that from itself to the end, or that of the whole answer."""
    baseline: Literal["none", "moving", "batch"] = "batch"
    """0; an exponential mean of scores over the steps before (in the first step as batch); the mean score of the other
    answers of the step."""
    baseline_decay: Share = 0.9
    """Decay of the moving baseline; 0 takes the step before alone."""

    def __post_init__(self) -> None:
        online_combinations.check_reinforce(self)

    @property
    def traits(self) -> Traits:
        traits = super().traits
        assert traits.online is not None
        least = 2 if self.baseline == "batch" else 1
        return replace(traits, online=replace(traits.online, least_group=1, least_step=least))

    def keep(self, group: list[Sample]) -> Fate:
        """Always keep."""
        return "keep"

    def credit(self, groups: Sequence[list[Sample]], state: dict[str, float]) -> dict[str, float]:
        """Advantages of tokens; with the moving baseline, `score_mean`:

        m <- baseline_decay m + (1 - baseline_decay) mean G_1 of the step       the first mean is taken as it is
        """
        drawn = rollouts.drawn(groups)
        by_token = self.beta if self.kl_place == "reward" and self.kl_per == "token" else 0.0
        samples = [s for group in drawn for s in group]
        scores = [score for of_group in self.scores(drawn) for score in of_group]
        if by_token:
            scores = [rollouts.score(s) for s in samples]
        rewards = [token_rewards.of_sample(s, score, by_token) for s, score in zip(samples, scores, strict=True)]
        to_go = [returns.to_go(of_tokens) for of_tokens in rewards]
        totals = [G[0] if G else score for G, score in zip(to_go, scores, strict=True)]
        first = totals
        if self.baseline == "moving" and "score_mean" in state:
            first = [total - state["score_mean"] for total in totals]
        elif self.baseline != "none":
            first = advantages.leave_one_out(totals)
        for s, G, A in zip(samples, to_go, first, strict=True):
            s.streams["advantages"] = token_rewards.stream(s, returns.shifted(G, A))
        if self.mask_cut:
            shaping.mask_cut(drawn)
        if self.baseline == "moving" and totals:
            mean = advantages.mean(totals)
            moved = self.baseline_decay * state.get("score_mean", mean) + (1 - self.baseline_decay) * mean
            return {**state, "score_mean": moved}
        return state

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """`policy` over tokens, `kl_loss` and `entropy_bonus` if they are on, and metrics; among them `score_mean`, the
        moving baseline of the next step."""
        from espalier.losses import policy

        log_ratio = policy.to_old(outputs, batch)
        ratio = log_ratio.exp()
        x = policy.clipped(ratio, batch.streams["advantages"], self.clip())
        terms = {
            "policy": Term(x * batch.weights, "tokens"),
            **self.beside(log_ratio, batch.weights, "tokens", outputs, batch),
            **policy.metrics(ratio, self.clip(), outputs, batch),
        }
        if "score_mean" in batch.state:
            terms["score_mean"] = Term(batch.weights * batch.state["score_mean"], "tokens", coef=0.0)
        return terms
