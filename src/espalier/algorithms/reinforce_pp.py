"""REINFORCE++: token rewards with the KL, advantages whitened over the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from espalier.algorithms import online_combinations
from espalier.algorithms.onpolicy import OnPolicy
from espalier.algorithms.traits import Traits
from espalier.config.fields import section
from espalier.credit import advantages, returns, rollouts, shaping, token_rewards
from espalier.credit.whitening import whiten
from espalier.outcomes import Fate
from espalier.types import Batch, Outputs, Sample, Term


@section
class ReinforcePP(OnPolicy):
    """The clipped policy gradient without a critic; advantages of all tokens of a step have mean 0 and deviation 1:

        L = sum_t -min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t)  /  tokens

        r_t = pi(y_t) / old(y_t)        A_t = (G_t - mean) / sqrt(var + 1e-8) over all tokens of the step
        G_t = reward - beta sum_{k >= t} log(old_k / ref_k)

    Hu et al., arXiv:2501.03262, section 3. With baseline group (REINFORCE++-baseline there) the KL leaves the reward:

        L = sum_t [ -min(r_t A_t, clip(r_t) A_t) + beta k2_t ]  /  tokens         k2_t = log(pi_t / ref_t)^2 / 2
        G_t = reward - mean reward of the answers to the prompt

    var divides by the number of tokens. With process rewards G_t has the scores of the steps that end at or after t,
    too, as they are.

    tokens is the weight of all tokens of the minibatch, over all answers. The tokens of a cut answer without weight
    (mask_cut) leave it; they stay in all means and in var. No group is silent: equal answers to a prompt still differ
    from those to others.
    """

    kl_in: Literal["loss", "reward"] = "reward"
    """The KL is a term of the loss, or is taken from the reward (k1, each token losing that from itself to the end)."""
    baseline: Literal["batch", "group"] = "batch"
    """batch whitens the rewards to go; group subtracts the mean of the answers to a prompt before that, and takes k2
    into the loss (naive) in place of the KL in the reward."""

    def __post_init__(self) -> None:
        online_combinations.check_reinforce_pp(self)

    @property
    def kl_place(self) -> Literal["loss", "reward", ""]:
        return "loss" if self.beta and self.baseline == "group" else super().kl_place

    @property
    def traits(self) -> Traits:
        traits = super().traits
        assert traits.online is not None
        least = 2 if self.baseline == "group" else 1
        return replace(traits, online=replace(traits.online, least_group=least, least_step=2))

    def keep(self, group: list[Sample]) -> Fate:
        """Always keep."""
        return "keep"

    def credit(self, groups: Sequence[list[Sample]], state: dict[str, float]) -> dict[str, float]:
        drawn = rollouts.drawn(groups)
        beta = self.beta if self.kl_place == "reward" else 0.0
        raw = []
        for group in drawn:
            to_go = [returns.to_go(token_rewards.of_sample(s, rollouts.score(s), beta)) for s in group]
            if self.baseline == "group":
                totals = [G[0] if G else rollouts.score(s) for G, s in zip(to_go, group, strict=True)]
                relative = advantages.centred(totals)
                to_go = [returns.shifted(G, A) for G, A in zip(to_go, relative, strict=True)]
            raw += to_go
        for s, A in zip((s for group in drawn for s in group), whiten(raw), strict=True):
            s.streams["advantages"] = token_rewards.stream(s, A)
        if self.mask_cut:
            shaping.mask_cut(drawn)
        return state

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """`policy` over tokens, `kl_loss` and `entropy_bonus` if they are on, and metrics."""
        from espalier.losses import kl, policy

        log_ratio = policy.to_old(outputs, batch)
        ratio = log_ratio.exp()
        x = policy.clipped(ratio, batch.streams["advantages"], self.clip())
        terms = {
            "policy": Term(x * batch.weights, "tokens"),
            **self.beside(log_ratio, batch.weights, "tokens", outputs, batch),
            **policy.metrics(ratio, self.clip(), outputs, batch),
        }
        if self.beta and self.baseline == "group":
            ref = batch.streams["ref_logprobs"]
            k2 = kl.penalty(outputs.logprobs, ref, log_ratio, batch, "k2", "naive")
            terms["kl_loss"] = Term(k2 * batch.weights, "tokens", coef=self.beta)
        return terms
